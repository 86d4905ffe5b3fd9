/*
 * cuda_half.c: halves on GPUs: what the kernels are told, in which order they are queued, and what
 * they have noted.
 */
#include <string.h>

#include "base/mem.h"
#include "ep/cuda.h"
#include "ep/priv.h"
#include "ep/rows.h"

#define ALIGN 64u
#define COMBINE_ALIGN 4096u
#define BLOCKS_MAX 1024u  /* of kernels that go through tokens */
#define PAIR_BLOCKS 2048u /* of those that go through experts and sources */

struct mc_ep_cuda_half {
	struct mc_ep_cuda *ep;
	struct mc_epk_half arg;
	void *stream; /* of its begin */
};

/* ---- notes ---- */

static void explain(const struct mc_ep_cuda *ep, const struct mc_epk_note *n, struct mc_diag *diag)
{
	static const char *const text[] = {
	    [MC_EPK_BAD_NOTHING] = "half %llu was given up (%u)",
	    [MC_EPK_BAD_ROUTE] = ("half %llu: token %u goes to an expert that there is not, or to "
				  "one twice"),
	    [MC_EPK_BAD_RANGES] = "half %llu: range %u does not fit the shape",
	    [MC_EPK_BAD_SPACE] = "half %llu: rows of rank %u do not fit a slot: open with more",
	    [MC_EPK_BAD_CALL] = "half %llu: rank %u is in another call, or in one of another shape",
	    [MC_EPK_BAD_SHOWN] = "half %llu: rank %u shows what cannot be",
	    [MC_EPK_BAD_WAIT] = "half %llu: rank %u has not come",
	};
	unsigned long long half = mc_ep_half_of(n->word);

	if (n->what < MC_ARRAY_LEN(text))
		mc_diag_set(diag, text[n->what], half, n->who);
	else
		(void)mc_ep_say_stale(ep->coll, diag);
}

void mc_ep_cuda_harvest(struct mc_ep_cuda *ep)
{
	for (unsigned s = 0; s < MC_EP_SLOTS; s++) {
		struct mc_epk_note *note = &ep->host->note[s];
		/* acquire: the rest of it */
		uint64_t word = __atomic_load_n(&note->word, __ATOMIC_ACQUIRE);

		if (word == ep->slot[s].seen || mc_ep_epoch_of(word) != ep->epoch)
			continue;
		ep->slot[s].seen = word;
		ep->masked |= note->lost;
		ep->last[s / 2] = (struct mc_coll_result){.rc = note->rc,
							  .seq = mc_ep_half_of(word),
							  .ranks = note->taken,
							  .failed = note->rc ? 0 : note->lost};
		ep->is_out = ep->is_out || note->is_out || note->rc == -MC_E_STALE;
		if (note->rc < 0 && note->rc != -MC_E_STALE && ep->error == 0) {
			ep->error = note->rc;
			explain(ep, note, &ep->diag);
		}
	}
}

void mc_ep_cuda_slots_reset(struct mc_ep_cuda *ep)
{
	for (unsigned s = 0; s < MC_EP_SLOTS; s++) {
		ep->slot[s].seen = 0;
		ep->slot[s].is_open = ep->slot[s].is_lent = false;
		ep->host->note[s] = (struct mc_epk_note){0};
	}
	ep->half = ep->count[0] = ep->count[1] = 0;
	ep->last_slot[0] = ep->last_slot[1] = -1;
	ep->last[0] = ep->last[1] = (struct mc_coll_result){0};
	ep->masked = 0;
	ep->error = 0;
}

int mc_ep_cuda_settle(struct mc_ep_cuda *ep, struct mc_diag *diag)
{
	int rc = 0;

	for (unsigned s = 0; s < MC_EP_SLOTS && rc == 0; s++)
		if (ep->slot[s].is_used)
			rc = ep->gpu.api->event_sync(ep->slot[s].event);
	return mc_gpu_fail(ep->gpu.api, rc, "waiting for kernels", diag);
}

/* What an earlier half has to say. */
static int take_error(struct mc_ep_cuda *ep, struct mc_diag *diag)
{
	int rc;

	mc_ep_cuda_harvest(ep);
	rc = ep->error;
	ep->error = 0;
	if (rc < 0)
		mc_diag_set(diag, "%s", ep->diag.text);
	return rc;
}

int mc_ep_cuda_result(struct mc_ep_cuda *ep, bool is_combine, struct mc_diag *diag,
		      struct mc_coll_result *ret_result)
{
	int rc, slot;

	if (mc_fork_is_child(ep->fork_gen))
		return -MC_E_FORKED;
	pthread_mutex_lock(&ep->lock);
	slot = ep->last_slot[is_combine];
	rc = mc_gpu_enter(&ep->gpu, diag);
	if (rc == 0 && slot >= 0)
		rc = mc_gpu_fail(ep->gpu.api, ep->gpu.api->event_sync(ep->slot[slot].event),
				 "waiting for kernels", diag);
	mc_gpu_leave(&ep->gpu);
	if (rc == 0) {
		rc = take_error(ep, diag);
		/* It may be out since, and yet have been in that half. */
		if (rc == 0 && ep->last[is_combine].rc == -MC_E_STALE)
			rc = mc_ep_say_stale(ep->coll, diag);
		if (ret_result)
			*ret_result = ep->last[is_combine];
	}
	pthread_mutex_unlock(&ep->lock);
	return rc;
}

/* ---- what kernels are told ---- */

static void lay_out(struct mc_epk_half *h)
{
	const struct mc_ep_call *c = &h->call;

	h->first_at = mc_ep_align(sizeof(struct mc_ep_head), ALIGN);
	if (c->kind == MC_EP_COMBINE) {
		h->row_bytes = h->stride = (uint64_t)c->hidden * sizeof(uint16_t);
		h->rows_at = mc_ep_align(
		    h->first_at + (uint64_t)c->experts * sizeof(struct mc_ep_range), COMBINE_ALIGN);
		return;
	}
	h->token_at = h->first_at + ((uint64_t)c->experts + 1) * sizeof(uint32_t);
	h->rows_at =
	    mc_ep_align(h->token_at + (uint64_t)c->tokens_max * c->topk * sizeof(uint32_t), ALIGN);
	h->row_bytes = (uint64_t)c->hidden * (c->format == MC_EP_SAME ? c->elem_bytes : 1);
	h->scales_at = mc_ep_align(h->row_bytes, sizeof(float));
	h->extra_at = h->scales_at + (c->format == MC_EP_SAME ? 0 : h->groups * sizeof(float));
	h->stride = mc_ep_align(h->extra_at + c->extra_bytes, ALIGN);
}

static struct mc_ep_call call_of(const struct mc_ep_shape *s, struct mc_ep_call call)
{
	call.ranks = s->ranks;
	call.experts = s->experts;
	call.hidden = s->hidden;
	call.topk = s->topk;
	call.tokens_max = s->tokens_max;
	return call;
}

uint64_t mc_ep_cuda_slot_bytes(const struct mc_ep_shape *s, uint32_t elem_bytes,
			       uint32_t extra_bytes)
{
	struct mc_epk_half d = {.call = call_of(s, (struct mc_ep_call){.kind = MC_EP_DISPATCH,
								       .elem_bytes = elem_bytes,
								       .extra_bytes = extra_bytes}),
				.groups = mc_ep_groups(s->hidden)};
	struct mc_epk_half c = {.call = call_of(s, (struct mc_ep_call){.kind = MC_EP_COMBINE})};

	lay_out(&d);
	lay_out(&c);
	/* Scales, too, though rows that stay as they are have none. */
	d.stride += d.groups * sizeof(float) + ALIGN;
	return mc_max(d.rows_at + s->tokens_max * d.stride,
		      c.rows_at + (uint64_t)s->experts * s->tokens_max * c.row_bytes);
}

static void tell(struct mc_ep_cuda *ep, const struct mc_ep_shape *s,
		 const struct mc_ep_patience *patience, struct mc_epk_half *h)
{
	h->call = call_of(s, h->call);
	h->me = ep->coll->rank;
	h->tokens = s->tokens;
	h->le = s->experts / s->ranks;
	h->groups = mc_ep_groups(s->hidden);
	h->align = s->align;
	h->room = (uint64_t)s->ranks * s->tokens_max;
	h->slot = 2 * h->call.kind + (ep->count[h->call.kind] & 1);
	h->word = ep->epoch << MC_EP_EPOCH_BITS | (ep->half + 1) << 1;
	h->members = mc_ep_cuda_members(ep);
	h->mask = ~ep->masked;
	h->timeout_ns = patience->timeout_ns;
	h->group_ns = ep->coll->timeout_ns;
	h->span = ep->span;
	h->active = patience->active;
	h->host = (void *)(uintptr_t)ep->host_at;
	h->ctl = (struct mc_epk_ctl *)(uintptr_t)ep->ctl + h->slot;
	for (unsigned q = 0; q < MC_COLL_RANKS_MAX; q++)
		h->window[q] = ep->peer[q].window;
	h->window[h->me] = ep->window;
	lay_out(h);
}

/* Memory of the half's own. In the context, with the lock. */
static int need_scratch(struct mc_ep_cuda *ep, struct mc_epk_half *h, struct mc_diag *diag)
{
	struct mc_ep_cuda_slot *slot = &ep->slot[h->slot];
	const struct mc_gpu_api *api = ep->gpu.api;
	uint64_t experts = h->call.experts, n = (uint64_t)h->tokens * h->call.topk;
	uint64_t len = (2ull * h->le + experts) * 8 + (experts + 1 + 2 * n) * 4;
	int rc = 0;

	if (len > slot->scratch_len) {
		if (slot->is_used)
			rc = api->event_sync(slot->event);
		if (rc == 0 && slot->scratch)
			rc = api->free(slot->scratch);
		slot->scratch = slot->scratch_len = 0;
		if (rc == 0)
			rc = api->alloc(&slot->scratch, len + len / 8);
		if (rc)
			return mc_gpu_fail(api, rc, "memory for routes", diag);
		slot->scratch_len = len + len / 8;
	}
	h->base = (void *)(uintptr_t)slot->scratch;
	h->start = h->base + h->le;
	h->row = h->start + h->le;
	h->first = (void *)(h->row + experts);
	h->route = h->first + experts + 1;
	h->rank = h->route + n;
	return 0;
}

/* ---- queueing ---- */

struct step {
	enum mc_epk kernel;
	uint64_t blocks_x;
	unsigned blocks_y;
};

static int queue(struct mc_ep_cuda *ep, const struct mc_epk_half *h, const struct step *steps,
		 unsigned nsteps, void *stream, struct mc_diag *diag)
{
	struct mc_ep_cuda_slot *slot = &ep->slot[h->slot];
	const struct mc_gpu_api *api = ep->gpu.api;
	int rc = 0;

	if (slot->is_used)
		rc = mc_gpu_fail(api, api->stream_wait(stream, slot->event, 0), "order of streams",
				 diag);
	for (unsigned i = 0; i < nsteps && rc == 0; i++)
		rc = mc_gpu_launch(&ep->gpu, steps[i].kernel, steps[i].blocks_x, steps[i].blocks_y,
				   h, stream, diag);
	if (rc == 0)
		rc = mc_gpu_fail(api, api->event_record(slot->event, stream), "order of streams",
				 diag);
	slot->is_used = slot->is_used || rc == 0;
	return rc;
}

static uint64_t token_blocks(const struct mc_epk_half *h)
{
	return mc_min(h->tokens, BLOCKS_MAX);
}

static struct step by_pair(const struct mc_epk_half *h, enum mc_epk kernel)
{
	uint32_t share = PAIR_BLOCKS / mc_min(h->call.experts, PAIR_BLOCKS);
	uint32_t rows = mc_max(h->call.tokens_max, 1u);

	return (struct step){kernel, h->call.experts, mc_min(share, rows)};
}

static int check(struct mc_ep_cuda *ep, const struct mc_ep_shape *shape, struct mc_epk_half *h,
		 const struct mc_ep_patience *patience, struct mc_diag *diag)
{
	int rc = take_error(ep, diag);

	if (rc < 0)
		return rc;
	if (ep->is_out || !(mc_ep_cuda_members(ep) & MC_COLL_BIT(ep->coll->rank)))
		return mc_ep_say_stale(ep->coll, diag);
	tell(ep, shape, patience, h);
	if (ep->slot[h->slot].is_open) {
		mc_diag_set(diag, "two %s are under way: end one first",
			    h->call.kind == MC_EP_DISPATCH ? "dispatches" : "combines");
		return -MC_E_BUSY;
	}
	if (h->rows_at + (h->call.kind == MC_EP_DISPATCH ? h->tokens * h->stride : 0) > ep->span) {
		mc_diag_set(diag, "a half would show %llu bytes, slots have %llu: open with more",
			    (unsigned long long)(h->rows_at + h->tokens * h->stride),
			    (unsigned long long)ep->span);
		return -MC_E_TOO_BIG;
	}
	return need_scratch(ep, h, diag);
}

static int is_aligned(const void *at, const char *what, struct mc_diag *diag)
{
	if ((uintptr_t)at % 16 == 0)
		return 0;
	mc_diag_set(diag, "%s at %p, which is no multiple of 16", what, at);
	return -MC_E_INVAL;
}

/* With the lock; leave with done(). */
static int enter(struct mc_ep_cuda *ep, const struct mc_ep_shape *shape, struct mc_diag *diag)
{
	int rc = mc_fork_is_child(ep->fork_gen) ? -MC_E_FORKED
						: mc_ep_check_shape(ep->coll, shape, diag);

	if (rc < 0)
		return rc;
	pthread_mutex_lock(&ep->lock);
	rc = mc_gpu_enter(&ep->gpu, diag);
	if (rc < 0)
		pthread_mutex_unlock(&ep->lock);
	return rc;
}

static int done(struct mc_ep_cuda *ep, int rc)
{
	mc_gpu_leave(&ep->gpu);
	pthread_mutex_unlock(&ep->lock);
	return rc;
}

/* The half is queued. */
static int begun(struct mc_ep_cuda *ep, const struct mc_epk_half *arg, void *stream,
		 struct mc_ep_cuda_half **ret)
{
	struct mc_ep_cuda_half *h = *ret;

	*h = (struct mc_ep_cuda_half){.ep = ep, .arg = *arg, .stream = stream};
	ep->slot[arg->slot].is_open = true;
	ep->slot[arg->slot].is_lent = false;
	ep->half++;
	ep->count[arg->call.kind]++;
	return 0;
}

int mc_ep_cuda_dispatch_begin(struct mc_ep_cuda *ep, const struct mc_ep_shape *shape,
			      const struct mc_ep_rows *rows, const int64_t *topk,
			      const struct mc_ep_patience *patience, void *stream,
			      struct mc_diag *diag, struct mc_ep_cuda_half **ret_half)
{
	struct mc_epk_half h = {.call = {.kind = MC_EP_DISPATCH,
					 .format = rows->format,
					 .elem_bytes = rows->elem_bytes,
					 .extra_bytes = rows->extra_bytes},
				.rows = rows->rows,
				.extra = rows->extra,
				.topk = topk};
	enum mc_epk show = MC_EPK_show_same + (enum mc_epk)rows->format;
	struct mc_ep_cuda_half *made;
	int rc = mc_ep_check_rows(rows, diag);

	if (rc == 0)
		rc = is_aligned(rows->rows, "rows", diag);
	if (rc == 0)
		rc = enter(ep, shape, diag);
	if (rc < 0)
		return rc;
	made = mc_calloc(1, sizeof(*made));
	rc = made ? check(ep, shape, &h, patience, diag) : -MC_E_NOMEM;
	if (rc == 0) {
		struct step steps[] = {{MC_EPK_enter, 1, 1},
				       {MC_EPK_count, h.call.experts, 1},
				       {MC_EPK_scan, 1, 1},
				       {show, token_blocks(&h), 1},
				       {MC_EPK_publish, 1, 1}};

		rc = queue(ep, &h, steps, MC_ARRAY_LEN(steps), stream, diag);
	}
	if (rc == 0) {
		*ret_half = made;
		rc = begun(ep, &h, stream, ret_half);
	} else {
		mc_free(made);
	}
	return done(ep, rc);
}

/* The half ends in this epoch? With the lock. */
static int ending(struct mc_ep_cuda_half *h, struct mc_diag *diag)
{
	struct mc_ep_cuda *ep = h->ep;

	if (mc_ep_epoch_of(h->arg.word) != ep->epoch)
		return mc_ep_say_stale(ep->coll, diag);
	ep->slot[h->arg.slot].is_open = false;
	ep->last_slot[h->arg.call.kind] = (int)h->arg.slot;
	return 0;
}

static int finish(struct mc_ep_cuda_half *h, const struct step *steps, unsigned nsteps,
		  void *stream, struct mc_diag *diag)
{
	struct mc_ep_cuda *ep = h->ep;
	int rc;

	pthread_mutex_lock(&ep->lock);
	rc = mc_gpu_enter(&ep->gpu, diag);
	if (rc == 0) {
		rc = ending(h, diag);
		if (rc == 0)
			rc = queue(ep, &h->arg, steps, nsteps, stream, diag);
		mc_gpu_leave(&ep->gpu);
	}
	pthread_mutex_unlock(&ep->lock);
	mc_free(h);
	return rc;
}

int mc_ep_cuda_dispatch_end(struct mc_ep_cuda_half *half, const struct mc_ep_arrived *out,
			    void *stream, struct mc_diag *diag)
{
	struct mc_epk_half *h = &half->arg;
	bool is_packed = out->is_packed && h->call.format != MC_EP_SAME;
	struct step take = by_pair(h, h->call.format == MC_EP_SAME ? MC_EPK_take_same
				      : is_packed		   ? MC_EPK_take_packed
								   : MC_EPK_take_fp8);
	struct step steps[] = {{MC_EPK_wait, 1, 1},
			       {MC_EPK_count_in, 1, 1},
			       take,
			       {MC_EPK_finish, 1, 1},
			       {MC_EPK_poison, h->le, 1}};

	h->out_rows = out->rows;
	h->out_scales = out->scales;
	h->out_extra = out->extra;
	h->out_counts = out->counts;
	h->out_tokens = out->tokens;
	h->out_ranges = out->ranges;
	h->is_packed = is_packed;
	if (is_aligned(out->rows, "rows that come", diag) < 0) {
		mc_ep_cuda_half_free(half);
		return -MC_E_INVAL;
	}
	return finish(half, steps, MC_ARRAY_LEN(steps), stream, diag);
}

/* ---- combine ---- */

int mc_ep_cuda_combine_rows(struct mc_ep_cuda *ep, const struct mc_ep_shape *shape,
			    const struct mc_ep_patience *patience, void *stream,
			    struct mc_diag *diag, uint16_t **ret_rows)
{
	struct mc_epk_half h = {.call = {.kind = MC_EP_COMBINE, .elem_bytes = sizeof(uint16_t)}};
	static const struct step steps[] = {{MC_EPK_enter, 1, 1}};
	int rc;

	if (shape->align) {
		mc_diag_set(diag, "rows one behind the other have no memory of their own");
		return -MC_E_INVAL;
	}
	rc = enter(ep, shape, diag);
	if (rc < 0)
		return rc;
	rc = check(ep, shape, &h, patience, diag);
	if (rc == 0 && h.rows_at + h.le * h.room * h.row_bytes > ep->span) {
		mc_diag_set(diag, "%llu rows of experts, slots have %llu bytes: open with more",
			    (unsigned long long)(h.le * h.room), (unsigned long long)ep->span);
		rc = -MC_E_TOO_BIG;
	}
	if (rc == 0)
		rc = queue(ep, &h, steps, MC_ARRAY_LEN(steps), stream, diag);
	if (rc == 0) {
		ep->slot[h.slot].is_lent = true;
		*ret_rows = (void *)(uintptr_t)(ep->window + MC_EPK_PAGE_LEN + h.slot * ep->span +
						h.rows_at);
	}
	return done(ep, rc);
}

int mc_ep_cuda_combine_begin(struct mc_ep_cuda *ep, const struct mc_ep_shape *shape,
			     const uint16_t *rows, bool is_kept, const int64_t *topk,
			     const int64_t *ranges, const struct mc_ep_patience *patience,
			     void *stream, struct mc_diag *diag, struct mc_ep_cuda_half **ret_half)
{
	struct mc_epk_half h = {.call = {.kind = MC_EP_COMBINE, .elem_bytes = sizeof(uint16_t)},
				.made = rows,
				.topk = topk,
				.ranges = ranges};
	struct mc_ep_cuda_half *made;
	int rc = is_aligned(rows, "rows", diag);

	if (rc == 0)
		rc = enter(ep, shape, diag);
	if (rc < 0)
		return rc;
	made = mc_calloc(1, sizeof(*made));
	rc = made ? check(ep, shape, &h, patience, diag) : -MC_E_NOMEM;
	if (rc == 0) {
		uint64_t lent = ep->window + MC_EPK_PAGE_LEN + h.slot * ep->span + h.rows_at;
		struct step steps[] = {{MC_EPK_enter, 1, 1},	 {MC_EPK_count, h.call.experts, 1},
				       {MC_EPK_scan, 1, 1},	 {MC_EPK_range, 1, 1},
				       by_pair(&h, MC_EPK_give), {MC_EPK_publish, 1, 1}};

		h.is_lent = ep->slot[h.slot].is_lent && (uintptr_t)rows == lent;
		h.is_kept = is_kept && !h.is_lent;
		rc = queue(ep, &h, steps, MC_ARRAY_LEN(steps), stream, diag);
	}
	if (rc == 0) {
		*ret_half = made;
		rc = begun(ep, &h, stream, ret_half);
	} else {
		mc_free(made);
	}
	return done(ep, rc);
}

int mc_ep_cuda_combine_end(struct mc_ep_cuda_half *half, const float *weights, uint16_t *out,
			   void *stream, struct mc_diag *diag)
{
	struct mc_epk_half *h = &half->arg;
	struct step steps[] = {{MC_EPK_wait, 1, 1},
			       {MC_EPK_source, 1, 1},
			       {MC_EPK_add, token_blocks(h), 1},
			       {MC_EPK_finish, 1, 1},
			       {MC_EPK_poison, token_blocks(h), 1}};

	h->weights = weights;
	h->sums = out;
	if (is_aligned(out, "sums", diag) < 0) {
		mc_ep_cuda_half_free(half);
		return -MC_E_INVAL;
	}
	return finish(half, steps, MC_ARRAY_LEN(steps), stream, diag);
}

void mc_ep_cuda_half_free(struct mc_ep_cuda_half *half)
{
	static const struct step steps[] = {{MC_EPK_finish, 1, 1}};
	struct mc_diag diag;

	if (!half)
		return;
	half->arg.is_canceled = 1;
	/* Of an old epoch, or on a GPU that failed: nobody waits for it. */
	(void)!finish(half, steps, MC_ARRAY_LEN(steps), half->stream, &diag);
}
