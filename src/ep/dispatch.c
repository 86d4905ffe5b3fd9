/*
 * dispatch.c: tokens to their experts: a row is shown once, and taken once for each expert.
 */
#include <mooncake/ep.h>
#include <stdatomic.h>
#include <string.h>

#include "base/mem.h"
#include "ep/net.h"
#include "ep/rows.h"

#define ALIGN 64u

/* Where things are in a slot; the same on both sides. */
struct layout {
	uint64_t first, token, rows;  /* offsets */
	uint64_t data, scales, extra; /* inside a row */
	uint64_t stride, end;
};

static uint64_t row_bytes(const struct mc_ep_call *c)
{
	return (uint64_t)c->hidden * (c->format == MC_EP_SAME ? c->elem_bytes : 1);
}

static struct layout layout_of(const struct mc_ep_call *c, uint64_t tokens, uint64_t entries)
{
	uint64_t nscales = c->format == MC_EP_SAME ? 0 : mc_ep_groups(c->hidden);
	struct layout l;

	l.first = mc_ep_align(sizeof(struct mc_ep_head), ALIGN);
	l.token = l.first + ((uint64_t)c->experts + 1) * sizeof(uint32_t);
	l.rows = mc_ep_align(l.token + entries * sizeof(uint32_t), ALIGN);
	l.data = 0;
	l.scales = mc_ep_align(row_bytes(c), sizeof(float));
	l.extra = l.scales + nscales * sizeof(float);
	l.stride = mc_ep_align(l.extra + c->extra_bytes, ALIGN);
	l.end = l.rows + tokens * l.stride;
	return l;
}

/* ---- showing ---- */

static void show_row(const struct mc_ep_half *h, const struct mc_ep_rows *in, uint32_t t,
		     const struct layout *l, uint8_t *to)
{
	const struct mc_ep_call *c = &h->call;
	const uint8_t *row = (const uint8_t *)in->rows + (uint64_t)t * c->hidden * c->elem_bytes;

	if (c->format == MC_EP_SAME)
		memcpy(to, row, row_bytes(c));
	else
		mc_ep_quantize((const void *)row, c->hidden, c->format == MC_EP_FP8_POW2, to,
			       (void *)(to + l->scales));
	if (c->extra_bytes)
		memcpy(to + l->extra, (const uint8_t *)in->extra + (uint64_t)t * c->extra_bytes,
		       c->extra_bytes);
}

static void show(const struct mc_ep_half *h, const struct mc_ep_rows *in, const struct layout *l)
{
	const struct mc_ep_shape *s = &h->shape;
	uint8_t *slot = mc_ep_slot_at(h->ep->memory, h->slot);
	uint32_t *token = (void *)(slot + l->token);

	*(struct mc_ep_head *)(void *)slot =
	    (struct mc_ep_head){.call = h->call, .tokens = s->tokens};
	memcpy(slot + l->first, h->first, ((size_t)s->experts + 1) * sizeof(*h->first));
	for (uint32_t t = 0; t < s->tokens; t++) {
		bool is_sent = false;

		for (uint32_t k = 0; k < s->topk; k++) {
			uint32_t place = h->place[(uint64_t)t * s->topk + k];

			if (place == MC_EP_NONE)
				continue;
			token[place] = t;
			is_sent = true;
		}
		if (is_sent)
			show_row(h, in, t, l, slot + l->rows + t * l->stride);
	}
}

/* The rank's entries lie one behind the other. */
static int parts_of(const struct mc_ep_half *h, unsigned q, struct mc_ep_parts *ret)
{
	const struct mc_ep_shape *s = &h->shape;
	struct layout l = layout_of(&h->call, s->tokens, h->first[s->experts]);
	uint32_t from = h->first[q * h->le], to = h->first[(q + 1) * h->le];
	int rc = mc_ep_parts_add(ret, 0, l.rows);

	for (uint32_t t = 0; t < s->tokens && rc == 0; t++) {
		for (uint32_t k = 0; k < s->topk; k++) {
			uint32_t place = h->place[(uint64_t)t * s->topk + k];

			if (place < from || place >= to)
				continue;
			rc = mc_ep_parts_add(ret, l.rows + t * l.stride, l.stride);
			break;
		}
	}
	return rc;
}

int mc_ep_dispatch_begin(struct mc_ep *ep, const struct mc_ep_shape *shape,
			 const struct mc_ep_rows *rows, const int64_t *topk,
			 const struct mc_ep_patience *patience, struct mc_diag *diag,
			 struct mc_ep_half **ret_half)
{
	struct mc_ep_call call = {.kind = MC_EP_DISPATCH,
				  .format = rows->format,
				  .elem_bytes = rows->elem_bytes,
				  .extra_bytes = rows->extra_bytes};
	struct mc_ep_half *h;
	struct layout l;
	int rc = mc_ep_check_rows(rows, diag);

	if (rc == 0)
		rc = mc_ep_half_make(ep, shape, call, patience, diag, &h);
	if (rc < 0)
		return rc;
	h->parts = parts_of;
	rc = mc_ep_route(h, topk, diag);
	if (rc == 0) {
		l = layout_of(&h->call, shape->tokens, h->first[shape->experts]);
		pthread_mutex_lock(&ep->lock);
		rc = mc_ep_take_slot(h, l.end, diag);
		if (rc == 0) {
			show(h, rows, &l);
			rc = mc_ep_show(h, diag);
		}
		pthread_mutex_unlock(&ep->lock);
	}
	if (rc < 0)
		mc_ep_half_drop(h);
	else
		*ret_half = h;
	return rc;
}

/* ---- taking ---- */

/*
 * What a source shows for this rank. Where the others have gone on without this rank the source may
 * write there meanwhile: what bounds a copy is read once.
 */
struct source {
	const uint8_t *slot;
	const _Atomic uint32_t *first; /* of this rank's experts */
	const _Atomic uint32_t *token;
	uint32_t tokens;
	uint64_t most; /* entries */
	struct layout l;
};

static uint32_t number(const _Atomic uint32_t *at)
{
	return atomic_load_explicit(at, memory_order_relaxed);
}

static struct source source_of(const struct mc_ep_half *h, unsigned q)
{
	struct mc_ep *ep = h->ep;
	const uint8_t *slot =
	    mc_ep_slot_at(q == ep->coll->rank ? ep->memory : ep->peer[q].memory, h->slot);
	struct mc_ep_head head = *(const struct mc_ep_head *)(const void *)slot;
	uint32_t tokens = mc_min(head.tokens, h->shape.tokens_max);
	uint64_t most = (uint64_t)tokens * h->shape.topk;
	const _Atomic uint32_t *all = (const void *)(slot + layout_of(&h->call, tokens, 0).first);
	struct layout l =
	    layout_of(&h->call, tokens, mc_min((uint64_t)number(&all[h->shape.experts]), most));

	return (struct source){.slot = slot,
			       .first = all + (uint64_t)ep->coll->rank * h->le,
			       .token = (const void *)(slot + l.token),
			       .tokens = tokens,
			       .most = most,
			       .l = l};
}

/* Rows of one source for each expert here, into `ranges`. */
static int count_source(const struct mc_ep_half *h, unsigned q, const struct source *from,
			int64_t *ranges, struct mc_diag *diag)
{
	uint32_t first = number(&from->first[0]);

	for (uint32_t e = 0; e < h->le; e++) {
		uint32_t next = number(&from->first[e + 1]);

		if (first > next || next > from->most || next - first > from->tokens) {
			mc_diag_set(diag, "rank %u shows entries %u to %u of expert %u", q, first,
				    next, e);
			return -MC_E_INVAL;
		}
		ranges[(uint64_t)e * h->shape.ranks + q] = next - first;
		first = next;
	}
	return from->l.end > MC_EP_SPAN ? -MC_E_INVAL : 0;
}

/* Numbers: of each expert and source. */
static void number_rows(const struct mc_ep_half *h, const struct mc_ep_arrived *out)
{
	for (uint32_t e = 0; e < h->le; e++) {
		int64_t at = 0, *range = out->ranges + (uint64_t)e * h->shape.ranks;

		for (uint32_t q = 0; q < h->shape.ranks; q++) {
			int64_t n = range[q];

			range[q] = at << 32 | n;
			at += n;
		}
		out->counts[e] = (int32_t)at;
	}
}

static void put_scales(const struct mc_ep_half *h, const struct mc_ep_arrived *out, uint32_t expert,
		       uint64_t at, const float *from)
{
	uint32_t groups = mc_ep_groups(h->shape.hidden);

	if (!out->is_packed) {
		float *to = (float *)out->scales + (uint64_t)expert * groups * h->room + at;

		for (uint32_t g = 0; g < groups; g++)
			to[g * h->room] = from[g];
		return;
	}
	for (uint32_t g = 0; g < groups; g += 4) {
		uint32_t word = 0;

		for (uint32_t i = 0; i < 4 && g + i < groups; i++) {
			uint32_t bits;

			memcpy(&bits, &from[g + i], sizeof(bits));
			word |= (bits >> 23 & 0xff) << 8 * i;
		}
		((uint32_t *)
		     out->scales)[((uint64_t)expert * ((groups + 3) / 4) + g / 4) * h->room + at] =
		    word;
	}
}

/* Rows of one source for one expert: its `range`; the expert begins at row `base`. */
static int put(const struct mc_ep_half *h, const struct source *from, uint32_t expert,
	       uint64_t base, uint64_t range, const struct mc_ep_arrived *out)
{
	const struct mc_ep_call *c = &h->call;
	uint64_t bytes = row_bytes(c), at = range >> 32, n = (uint32_t)range;
	uint64_t i = number(&from->first[expert]), end = i + n;

	if (end > from->most)
		return -MC_E_INVAL;
	for (; i < end; i++, at++) {
		uint32_t t = number(&from->token[i]);
		const uint8_t *row = from->slot + from->l.rows + t * from->l.stride;

		if (t >= from->tokens)
			return -MC_E_INVAL;
		memcpy((uint8_t *)out->rows + (base + at) * bytes, row, bytes);
		if (out->tokens)
			out->tokens[base + at] = (int32_t)t;
		if (c->format != MC_EP_SAME && out->scales)
			put_scales(h, out, expert, at, (const void *)(row + from->l.scales));
		if (c->extra_bytes && out->extra)
			memcpy((uint8_t *)out->extra + (base + at) * c->extra_bytes,
			       row + from->l.extra, c->extra_bytes);
	}
	return 0;
}

static int take(struct mc_ep_half *h, uint64_t taken, const struct mc_ep_arrived *out,
		struct mc_diag *diag)
{
	struct source from[MC_COLL_RANKS_MAX];
	uint64_t base = 0;
	unsigned q;
	int rc = 0;

	memset(out->ranges, 0, (size_t)h->shape.experts * sizeof(*out->ranges));
	mc_coll_each(q, taken)
	{
		from[q] = source_of(h, q);
		rc = count_source(h, q, &from[q], out->ranges, diag);
		if (rc < 0)
			return rc;
	}
	number_rows(h, out);
	for (uint32_t e = 0; e < h->le && rc == 0; e++) {
		base = h->shape.align ? mc_ep_align(base, h->shape.align) : e * h->room;
		mc_coll_each(q, taken)
		{
			int64_t range = out->ranges[(uint64_t)e * h->shape.ranks + q];

			rc = put(h, &from[q], e, base, (uint64_t)range, out);
			if (rc < 0) {
				mc_diag_set(diag, "rank %u shows a token that it has not", q);
				break;
			}
		}
		base += (uint64_t)out->counts[e];
	}
	return rc;
}

int mc_ep_dispatch_end(struct mc_ep_half *h, const struct mc_ep_arrived *out, struct mc_diag *diag,
		       struct mc_coll_result *ret_result)
{
	struct mc_ep *ep = h->ep;
	uint64_t taken = 0;
	int rc;

	atomic_fetch_add_explicit(&ep->ninside, 1, memory_order_acquire);
	rc = mc_ep_wait_all(h, &taken, diag);
	if (rc == 0)
		rc = take(h, taken, out, diag);
	/* What was read may be nonsense if we were overtaken. */
	if (rc == 0 || rc == -MC_E_INVAL) {
		int tags = mc_ep_check_tags(h, taken, diag);

		rc = tags < 0 ? tags : rc;
	}
	rc = mc_ep_finish(h, taken, rc, ret_result);
	atomic_fetch_sub_explicit(&ep->ninside, 1, memory_order_release);
	return rc;
}
