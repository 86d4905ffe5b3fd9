/*
 * combine.c: what experts made of tokens, back to where these came from, and added up there: the
 * rows are read where they were shown.
 */
#include <mooncake/ep.h>
#include <string.h>

#include "base/mem.h"
#include "ep/net.h"
#include "ep/rows.h"

#define ALIGN 4096u

/* Where rows begin in a slot: the same for all that have the same shape. */
static uint64_t rows_at(const struct mc_ep_half *h)
{
	return mc_ep_align(sizeof(struct mc_ep_head) +
			       (uint64_t)h->shape.experts * sizeof(struct mc_ep_range),
			   ALIGN);
}

static uint64_t row_bytes(const struct mc_ep_half *h)
{
	return (uint64_t)h->shape.hidden * sizeof(uint16_t);
}

static struct mc_ep_range *ranges_at(uint8_t *slot)
{
	return (void *)(slot + sizeof(struct mc_ep_head));
}

static int parts_of(const struct mc_ep_half *h, unsigned q, struct mc_ep_parts *ret)
{
	const struct mc_ep_range *r = ranges_at(mc_ep_slot_at(h->ep->memory, h->slot));
	uint64_t at = rows_at(h), bytes = row_bytes(h);
	int rc = mc_ep_parts_add(
	    ret, 0, sizeof(struct mc_ep_head) + h->shape.experts * sizeof(struct mc_ep_range));

	for (uint32_t e = 0; e < h->le && rc == 0; e++) {
		struct mc_ep_range range = r[(uint64_t)e * h->shape.ranks + q];

		if (range.rows)
			rc = mc_ep_parts_add(ret, at + range.first * bytes, range.rows * bytes);
	}
	return rc;
}

static int half_make(struct mc_ep *ep, const struct mc_ep_shape *shape,
		     const struct mc_ep_patience *patience, struct mc_diag *diag,
		     struct mc_ep_half **ret)
{
	struct mc_ep_call call = {.kind = MC_EP_COMBINE, .elem_bytes = sizeof(uint16_t)};

	return mc_ep_half_make(ep, shape, call, patience, diag, ret);
}

int mc_ep_combine_rows(struct mc_ep *ep, const struct mc_ep_shape *shape,
		       const struct mc_ep_patience *patience, struct mc_diag *diag,
		       uint16_t **ret_rows)
{
	struct mc_ep_half *h;
	uint64_t at;
	int rc;

	if (shape->align) {
		mc_diag_set(diag, "rows one behind the other have no memory of their own");
		return -MC_E_INVAL;
	}
	rc = half_make(ep, shape, patience, diag, &h);
	if (rc < 0)
		return rc;
	at = rows_at(h);
	pthread_mutex_lock(&ep->lock);
	rc = mc_ep_take_slot(h, at + h->le * h->room * row_bytes(h), diag);
	if (rc == 0) {
		ep->slot[h->slot].is_lent = true;
		*ret_rows = (void *)(mc_ep_slot_at(ep->memory, h->slot) + at);
	}
	pthread_mutex_unlock(&ep->lock);
	mc_ep_half_drop(h);
	return rc;
}

/* ---- showing ---- */

/* A row of the caller's, and where its ranges of one expert say that they are. */
static int check_ranges(const struct mc_ep_half *h, const int64_t *ranges, struct mc_diag *diag)
{
	for (uint32_t i = 0; i < h->shape.experts; i++) {
		uint64_t first = (uint64_t)ranges[i] >> 32, n = (uint32_t)ranges[i];

		if (n > h->shape.tokens_max || first + n > h->room) {
			mc_diag_set(diag, "range %u has %llu rows from %llu, room is for %llu", i,
				    (unsigned long long)n, (unsigned long long)first,
				    (unsigned long long)h->room);
			return -MC_E_INVAL;
		}
	}
	return 0;
}

static uint64_t rows_of_expert(const struct mc_ep_half *h, const int64_t *ranges, uint32_t e)
{
	uint64_t n = 0;

	for (uint32_t q = 0; q < h->shape.ranks; q++)
		n += (uint32_t)ranges[(uint64_t)e * h->shape.ranks + q];
	return n;
}

static bool is_copied(const struct mc_ep_half *h, unsigned q)
{
	return (h->wanted >> q & 1) && !(h->own && q == h->ep->coll->rank);
}

/* Rows that others will read, and this rank itself. */
static uint64_t rows_shown(const struct mc_ep_half *h, const int64_t *ranges)
{
	uint64_t n = 0;

	for (uint32_t i = 0; i < h->shape.experts; i++)
		if (is_copied(h, i % h->shape.ranks))
			n += (uint32_t)ranges[i];
	return n;
}

/* @param is_lent  the rows are in the slot */
static void show(struct mc_ep_half *h, const uint16_t *rows, const int64_t *ranges, bool is_lent)
{
	uint8_t *slot = mc_ep_slot_at(h->ep->memory, h->slot);
	uint64_t bytes = row_bytes(h), base = 0, at = 0;
	uint8_t *to = slot + rows_at(h);

	*(struct mc_ep_head *)(void *)slot =
	    (struct mc_ep_head){.call = h->call, .tokens = h->shape.tokens};
	for (uint32_t e = 0; e < h->le; e++) {
		base = h->shape.align ? mc_ep_align(base, h->shape.align) : e * h->room;
		for (uint32_t q = 0; q < h->shape.ranks; q++) {
			uint64_t i = (uint64_t)e * h->shape.ranks + q;
			uint64_t from = base + ((uint64_t)ranges[i] >> 32);
			uint64_t n = (uint32_t)ranges[i];

			if (q == h->ep->coll->rank)
				h->start[e] = is_lent || h->own ? from : at;
			ranges_at(slot)[i] = (struct mc_ep_range){is_lent ? from : at, n};
			if (is_lent || !is_copied(h, q))
				continue;
			memcpy(to + at * bytes, (const uint8_t *)rows + from * bytes, n * bytes);
			at += n;
		}
		base += rows_of_expert(h, ranges, e);
	}
}

static int begin(struct mc_ep_half *h, const uint16_t *rows, bool is_kept, const int64_t *ranges,
		 struct mc_diag *diag)
{
	struct mc_ep *ep = h->ep;
	unsigned slot = 2 * MC_EP_COMBINE + (ep->count[MC_EP_COMBINE] & 1);
	const uint8_t *lent = mc_ep_slot_at(ep->memory, slot) + rows_at(h);
	bool is_lent = ep->slot[slot].is_lent && (const uint8_t *)rows == lent;
	uint64_t n;
	int rc;

	h->own = is_kept && !is_lent ? rows : NULL;
	n = is_lent ? h->le * h->room : rows_shown(h, ranges);
	rc = mc_ep_take_slot(h, rows_at(h) + n * row_bytes(h), diag);
	if (rc < 0)
		return rc;
	show(h, rows, ranges, is_lent);
	return mc_ep_show(h, diag);
}

int mc_ep_combine_begin(struct mc_ep *ep, const struct mc_ep_shape *shape, const uint16_t *rows,
			bool is_kept, const int64_t *topk, const int64_t *ranges,
			const struct mc_ep_patience *patience, struct mc_diag *diag,
			struct mc_ep_half **ret_half)
{
	struct mc_ep_half *h;
	int rc = half_make(ep, shape, patience, diag, &h);

	if (rc < 0)
		return rc;
	h->parts = parts_of;
	rc = mc_ep_route(h, topk, diag);
	if (rc == 0)
		rc = check_ranges(h, ranges, diag);
	h->start = mc_calloc(h->le, sizeof(*h->start));
	if (rc == 0 && !h->start)
		rc = -MC_E_NOMEM;
	if (rc == 0) {
		pthread_mutex_lock(&ep->lock);
		rc = begin(h, rows, is_kept, ranges, diag);
		pthread_mutex_unlock(&ep->lock);
	}
	if (rc < 0)
		mc_ep_half_drop(h);
	else
		*ret_half = h;
	return rc;
}

/* ---- adding up ---- */

/* By expert: its first row for this rank; NULL: it adds nothing. */
static int sources(struct mc_ep_half *h, uint64_t taken, const uint16_t **row, struct mc_diag *diag)
{
	struct mc_ep *ep = h->ep;
	uint32_t me = ep->coll->rank;
	uint64_t at = rows_at(h), bytes = row_bytes(h), most = (MC_EP_SPAN - at) / bytes;

	for (uint32_t e = 0; e < h->shape.experts; e++) {
		uint32_t q = e / h->le, sent = h->first[e + 1] - h->first[e];
		uint8_t *slot = mc_ep_slot_at(q == me ? ep->memory : ep->peer[q].memory, h->slot);
		struct mc_ep_range r;

		row[e] = NULL;
		if (!(taken >> q & 1) || sent == 0)
			continue;
		r = ranges_at(slot)[(uint64_t)(e % h->le) * h->shape.ranks + me];
		if (r.rows == 0)
			continue; /* it had not taken our tokens */
		if (r.rows != sent || sent > most || r.first > most - sent) {
			mc_diag_set(diag, "rank %u returns %llu rows of expert %u, %u were sent", q,
				    (unsigned long long)r.rows, e, sent);
			return -MC_E_INVAL;
		}
		row[e] = q == me && h->own ? h->own + h->start[e % h->le] * h->shape.hidden
					   : (const void *)(slot + at + r.first * bytes);
	}
	return 0;
}

static void add_up(const struct mc_ep_half *h, const uint16_t *const *row, uint32_t *expert_of,
		   const float *weights, uint16_t *out)
{
	const struct mc_ep_shape *s = &h->shape;

	for (uint32_t e = 0; e < s->experts; e++)
		for (uint32_t i = h->first[e]; i < h->first[e + 1]; i++)
			expert_of[i] = e;
	for (uint64_t t = 0; t < s->tokens; t++) {
		const uint16_t *rows[MC_EP_TOPK_MAX];
		float w[MC_EP_TOPK_MAX];
		uint32_t n = 0;

		for (uint64_t i = t * s->topk; i < (t + 1) * s->topk; i++) {
			uint32_t place = h->place[i];
			uint32_t e = place == MC_EP_NONE ? 0 : expert_of[place];

			if (place == MC_EP_NONE || !row[e])
				continue;
			rows[n] = row[e] + (uint64_t)(place - h->first[e]) * s->hidden;
			w[n++] = weights ? weights[i] : 1.0f;
		}
		mc_ep_add_up(rows, w, n, s->hidden, out + t * s->hidden);
	}
}

int mc_ep_combine_end(struct mc_ep_half *h, const float *weights, uint16_t *out,
		      struct mc_diag *diag, struct mc_coll_result *ret_result)
{
	struct mc_ep *ep = h->ep;
	const uint16_t **row = mc_calloc(h->shape.experts, sizeof(*row));
	uint32_t *expert_of = mc_calloc((size_t)h->first[h->shape.experts] + 1, sizeof(*expert_of));
	uint64_t taken = 0;
	int rc;

	atomic_fetch_add_explicit(&ep->ninside, 1, memory_order_acquire);
	rc = mc_ep_wait_all(h, &taken, diag);
	if (rc == 0 && (!row || !expert_of))
		rc = -MC_E_NOMEM;
	if (rc == 0)
		rc = sources(h, taken, row, diag);
	if (rc == 0)
		add_up(h, row, expert_of, weights, out);
	/* What was read may be nonsense if we were overtaken. */
	if (rc == 0 || rc == -MC_E_INVAL) {
		int tags = mc_ep_check_tags(h, taken, diag);

		rc = tags < 0 ? tags : rc;
	}
	rc = mc_ep_finish(h, taken, rc, ret_result);
	atomic_fetch_sub_explicit(&ep->ninside, 1, memory_order_release);
	mc_free(row);
	mc_free(expert_of);
	return rc;
}
