/*
 * move.c: operations that only move: each rank shows what others want of it, then copies what it
 * wants of them, beginning with its neighbour so that not all read from the same one.
 */
#include <string.h>

#include "coll/net.h"

/* What this rank wants of the bytes that `slot` shows. */
static int wanted(struct mc_coll_round *r, unsigned slot, uint64_t want, uint64_t *ret_at)
{
	struct mc_coll *g = r->g;
	const struct mc_coll_page *page = g->cur[slot]->page;
	const struct mc_coll_call *c = &page->call[r->parity];
	uint64_t at = 0, len = c->len;

	if (c->nin > 1) {
		for (unsigned q = 0; q < g->rank; q++)
			at += mc_min(page->part_len[r->parity][q], c->len);
		len = page->part_len[r->parity][g->rank];
	}
	if (len != want || at > c->len || len > c->len - at) {
		mc_diag_set(
		    &g->diag,
		    "operation %llu of group %s: rank %u sends %llu bytes, rank %u takes %llu",
		    (unsigned long long)(r->seq >> MC_COLL_ROUND_BITS), g->name, slot,
		    (unsigned long long)len, g->rank, (unsigned long long)want);
		r->has_read_area = true; /* the others are told when this is over */
		return -MC_E_INVAL;
	}
	*ret_at = at;
	return 0;
}

/* It came where it belongs. */
static bool is_in_place(const struct mc_coll_peer *p, uint64_t at)
{
	return p->wire && p->wire->has_direct && at >= p->wire->direct_from;
}

/* Copy what is ours of `slot`, chunk by chunk as it is shown. @return 0; MC_COLL_GONE */
static int take(struct mc_coll_round *r, unsigned slot, const struct mc_coll_part *out)
{
	uint64_t at, end, want, have = 0;
	const uint8_t *bytes;
	uint8_t *to;
	int rc;

	want = mc_coll_round_part(r, out, &to);
	rc = mc_coll_round_wait(r, slot, 0);
	if (rc != MC_COLL_THERE)
		return rc;
	rc = wanted(r, slot, want, &at);
	if (rc < 0)
		return rc;
	end = at + want;
	/* All of it: whether the rank's input is in the operation is one fact for everybody. */
	for (uint32_t c = (uint32_t)(at / MC_COLL_CHUNK); have < want; c++) {
		uint64_t until = mc_min((uint64_t)(c + 1) * MC_COLL_CHUNK, end);

		rc = mc_coll_round_wait(r, slot, c + 1);
		if (rc != MC_COLL_THERE)
			return rc;
		bytes = mc_coll_round_bytes(r, slot);
		if (!bytes)
			return -MC_E_NOMEM;
		if (!is_in_place(r->g->cur[slot], at + have))
			memcpy(to + have, bytes + at + have, until - at - have);
		have = until - at;
	}
	rc = mc_coll_round_wait(r, slot, UINT32_MAX);
	return rc == MC_COLL_THERE ? 0 : rc;
}

/* The input of `slot` does not count: zeroes, and nothing of it lands any more. */
static void zero(struct mc_coll_round *r, unsigned slot, const struct mc_coll_part *out)
{
	struct mc_coll_peer *p = r->g->cur[slot];
	uint8_t *to;
	uint64_t len = mc_coll_round_part(r, out, &to);

	if (p && p->wire)
		mc_coll_net_expect_end(p);
	if (len)
		memset(to, 0, len);
}

static void copy_own(struct mc_coll_round *r, const struct mc_coll_part *in,
		     const struct mc_coll_part *out)
{
	uint8_t *from, *to;
	uint64_t have = mc_coll_round_part(r, in, &from), room = mc_coll_round_part(r, out, &to);
	uint64_t len = mc_min(have, room);

	if (len && from != to)
		memmove(to, from, len);
}

/* From every other rank one part. An error with one of them is kept; the others' parts come. */
static int take_all(struct mc_coll_round *r)
{
	const struct mc_coll_op *op = r->op;
	struct mc_coll *g = r->g;
	int rc, kept = 0;

	for (unsigned i = 1; i < g->ranks_max; i++) {
		unsigned q = (g->rank + i) % g->ranks_max;
		const struct mc_coll_part none = {NULL, 0};
		const struct mc_coll_part *out = op->nout > q ? &op->out[q] : &none;

		if (!(r->active & MC_COLL_BIT(q))) {
			zero(r, q, out);
			continue;
		}
		rc = op->kind == MC_COLL_BARRIER ? mc_coll_round_wait(r, q, 0) : take(r, q, out);
		if (rc == MC_COLL_GONE) {
			r->ranks &= ~MC_COLL_BIT(q);
			zero(r, q, out);
		} else if (rc < 0) {
			kept = rc;
			if (rc != -MC_E_INVAL)
				break;
		}
	}
	return kept;
}

/* Over hosts: whose input does not count after all is not in the result. */
static int confirm_all(struct mc_coll_round *r)
{
	const struct mc_coll_op *op = r->op;
	unsigned q;
	int rc;

	while ((rc = mc_coll_round_confirm(r)) == MC_COLL_AGAIN) {
		mc_coll_each(q, r->ranks & ~MC_COLL_BIT(r->g->rank))
		{
			rc = mc_coll_round_wait(r, q, UINT32_MAX);
			if (rc < 0)
				return rc;
			if (rc != MC_COLL_GONE)
				continue;
			r->ranks &= ~MC_COLL_BIT(q);
			if (op->nout > q)
				zero(r, q, &op->out[q]);
		}
	}
	return rc;
}

static int take_everyone(struct mc_coll_round *r)
{
	int kept = take_all(r), rc;

	if (kept < 0 && kept != -MC_E_INVAL)
		return kept;
	rc = confirm_all(r);
	return rc < 0 ? rc : kept;
}

static int take_from_root(struct mc_coll_round *r)
{
	const struct mc_coll_op *op = r->op;
	int rc = take(r, op->root, &op->out[0]);

	if (rc == 0)
		rc = mc_coll_round_confirm(r);
	while (rc == MC_COLL_AGAIN) {
		rc = mc_coll_round_wait(r, op->root, UINT32_MAX);
		if (rc == MC_COLL_THERE)
			rc = mc_coll_round_confirm(r);
	}
	return rc;
}

static int take_root(struct mc_coll_round *r)
{
	const struct mc_coll_op *op = r->op;
	int rc = take_from_root(r);

	if (rc != MC_COLL_GONE)
		return rc;
	r->ranks &= ~MC_COLL_BIT(op->root);
	mc_coll_say(r->g, "rank %u, the root of operation %llu of group %s, is gone", op->root,
		    (unsigned long long)(r->seq >> MC_COLL_ROUND_BITS), r->g->name);
	return -MC_E_PEER_DEAD;
}

/* This rank only gives. */
static int give(struct mc_coll_round *r)
{
	int rc = mc_coll_round_confirm(r);

	return rc < 0 ? rc : 0;
}

/* Over hosts: what others show as one piece is received where it belongs. */
static void expect(struct mc_coll_round *r, bool is_over)
{
	const struct mc_coll_op *op = r->op;
	bool is_rooted = op->kind == MC_COLL_BROADCAST;
	unsigned q;

	if (!r->g->net || (op->kind != MC_COLL_ALL_GATHER && op->kind != MC_COLL_GATHER &&
			   op->kind != MC_COLL_BROADCAST))
		return;
	mc_coll_each(q, r->active & ~MC_COLL_BIT(r->g->rank))
	{
		struct mc_coll_wire *wire = r->g->cur[q] ? r->g->cur[q]->wire : NULL;
		const struct mc_coll_part *out = is_rooted ? op->out : &op->out[q];
		uint8_t *to;
		uint64_t len;

		if (!wire || (is_rooted ? op->root != q : q >= op->nout))
			continue;
		len = mc_coll_round_part(r, out, &to);
		if (is_over)
			mc_coll_net_expect_end(wire->p);
		else if (len > MC_COLL_SMALL)
			mc_coll_net_expect(wire->p, r->seq, to, len);
	}
}

static int move(struct mc_coll_round *r)
{
	const struct mc_coll_op *op = r->op;
	unsigned me = r->g->rank;

	mc_coll_round_publish_all(r);
	switch (op->kind) {
	case MC_COLL_BARRIER:
		return take_all(r);
	case MC_COLL_ALL_GATHER:
		copy_own(r, &op->in[0], &op->out[me]);
		return take_everyone(r);
	case MC_COLL_GATHER:
		if (op->root != me)
			return give(r);
		copy_own(r, &op->in[0], &op->out[me]);
		return take_everyone(r);
	case MC_COLL_ALL_TO_ALL:
		copy_own(r, &op->in[me], &op->out[me]);
		return take_everyone(r);
	case MC_COLL_BROADCAST:
		if (op->root != me)
			return take_root(r);
		copy_own(r, &op->in[0], &op->out[0]);
		return give(r);
	default: /* scatter */
		if (op->root != me)
			return take_root(r);
		copy_own(r, &op->in[me], &op->out[0]);
		return give(r);
	}
}

int mc_coll_move_round(struct mc_coll_round *r)
{
	int rc;

	expect(r, false);
	rc = move(r);
	expect(r, true);
	return rc;
}
