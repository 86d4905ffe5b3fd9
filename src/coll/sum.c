/*
 * sum.c: operations that compute. Chunk by chunk: show one, reduce the one before, so that bytes
 * are read while they are in the caches.
 *
 * Few ranks, or little: everyone reduces everything it needs from all inputs. More: each reduces a
 * share of every chunk and shows it, and takes the others' shares; a share counts only for the same
 * ranks' inputs. An input that is not complete when its rank dies is in no result: whoever has used
 * a part of it begins again, from inputs that are still there. The share of a rank that died
 * afterwards is computed by everyone for itself: the same inputs in the same order.
 *
 * Over hosts inputs come as copies, and nobody ends before everybody has all: who computes only
 * then has nothing to do again, and no copy to make of its own input.
 */
#include <string.h>

#include "coll/net.h"

#define RESTART 1

struct sum {
	struct mc_coll_round *r;
	uint8_t *out;	  /* NULL: this rank gets nothing */
	uint64_t out_at;  /* of the shown bytes, where those for this rank begin */
	uint64_t out_len; /* bytes */
	/* This rank's input while all of it is as it was, which is nearer than what it has shown:
	 * shown bytes from in_at on. NULL: results have overwritten some. */
	uint8_t *in;
	uint64_t in_at;
	uint8_t *results; /* of this rank's shares, shown to the others; NULL: no shares */
	uint64_t ranks;	  /* whose inputs are in the results so far */
	uint32_t restart;
	uint32_t nreduced; /* chunks of which this rank's share is done */
};

/* Reduce bytes [at, at + len) of all inputs. */
static int reduce(struct sum *s, uint8_t *to, uint64_t at, uint64_t len)
{
	struct mc_coll_round *r = s->r;
	const uint8_t *src[MC_COLL_RANKS_MAX];
	double factors[MC_COLL_RANKS_MAX];
	unsigned q, n = 0;

	mc_coll_each(q, r->ranks)
	{
		const struct mc_coll_page *page = q == r->g->rank ? r->g->page : r->g->cur[q]->page;

		factors[n] = page->call[r->parity].factor;
		if (q == r->g->rank && s->in) {
			src[n++] = s->in + (at - s->in_at);
			continue;
		}
		src[n] = mc_coll_round_bytes(r, q);
		if (!src[n])
			return -MC_E_NOMEM;
		src[n++] += at;
	}
	mc_coll_kernel(r->op->type, r->op->reduce, to, src, factors, n, len / r->esize);
	return 0;
}

/* All inputs up to this chunk are there. @return 0; RESTART: somebody's never will be */
static int wait_inputs(struct sum *s, uint32_t chunk)
{
	struct mc_coll_round *r = s->r;
	uint64_t gone = 0;
	unsigned q;
	int rc;

	mc_coll_each(q, r->ranks & ~MC_COLL_BIT(r->g->rank))
	{
		rc = mc_coll_round_wait(r, q, chunk + 1);
		if (rc < 0)
			return rc;
		if (rc == MC_COLL_GONE)
			gone |= MC_COLL_BIT(q);
	}
	r->ranks &= ~gone;
	return gone ? RESTART : 0;
}

/* The piece of chunk [at, at + len) that belongs to the i-th of n ranks, in whole elements. */
static void share_of(const struct mc_coll_round *r, unsigned i, unsigned n, uint64_t at,
		     uint64_t len, uint64_t *ret_at, uint64_t *ret_len)
{
	uint64_t elems = len / r->esize, from = elems * i / n, to = elems * (i + 1) / n;

	*ret_at = at + from * r->esize;
	*ret_len = (to - from) * r->esize;
}

static void chunk_range(const struct mc_coll_round *r, uint32_t chunk, uint64_t *ret_at,
			uint64_t *ret_len)
{
	*ret_at = (uint64_t)chunk * MC_COLL_CHUNK;
	*ret_len = mc_min((uint64_t)MC_COLL_CHUNK, r->len - *ret_at);
}

/* Of this rank in one chunk: computed and shown. */
static int reduce_share(struct sum *s, uint32_t chunk)
{
	struct mc_coll_round *r = s->r;
	unsigned n = (unsigned)__builtin_popcountll(r->ranks);
	unsigned i = (unsigned)__builtin_popcountll(r->ranks & (MC_COLL_BIT(r->g->rank) - 1));
	uint64_t at, len, from, size;
	int rc;

	if (chunk < s->nreduced) /* a step that is done again */
		return 0;
	chunk_range(r, chunk, &at, &len);
	share_of(r, i, n, at, len, &from, &size);
	rc = reduce(s, s->out + from, from, size);
	if (rc < 0)
		return rc;
	mc_copy(s->results + from, s->out + from, size, r->hint);
	mc_coll_post_shares(r->g, mc_coll_share(r->seq, s->restart, ++s->nreduced));
	return 0;
}

/* Take everybody's shares of a chunk. @return 0; RESTART */
static int gather_shares(struct sum *s, uint32_t chunk)
{
	struct mc_coll_round *r = s->r;
	unsigned n = (unsigned)__builtin_popcountll(r->ranks), i = 0, q;
	uint64_t at, len, from, size;
	int rc;

	chunk_range(r, chunk, &at, &len);
	mc_coll_each(q, r->ranks)
	{
		const uint8_t *theirs;

		share_of(r, i++, n, at, len, &from, &size);
		if (q == r->g->rank)
			continue;
		rc = mc_coll_wait_share(r->g, q, r->seq, chunk + 1, r->ranks, r->deadline_ns);
		if (rc < 0 || rc == MC_COLL_AGAIN)
			return rc < 0 ? rc : RESTART;
		if (rc == MC_COLL_GONE) {
			/* Its input was complete, else it would not be in r->ranks. */
			rc = reduce(s, s->out + from, from, size);
			if (rc < 0)
				return rc;
			continue;
		}
		theirs = mc_coll_round_bytes(r, q);
		if (!theirs)
			return -MC_E_NOMEM;
		memcpy(s->out + from, theirs + r->len + from, size);
	}
	return 0;
}

/* Where chunk [at, at + len) meets what this rank gets. */
static int reduce_direct(struct sum *s, uint32_t chunk)
{
	uint64_t at, len, from, to;

	chunk_range(s->r, chunk, &at, &len);
	from = mc_max(at, s->out_at);
	to = mc_min(at + len, s->out_at + s->out_len);
	if (!s->out || from >= to)
		return 0;
	return reduce(s, s->out + (from - s->out_at), from, to - from);
}

/* Begin again: nothing of the results so far is kept. */
static void restart(struct sum *s)
{
	struct mc_coll_round *r = s->r;
	struct mc_coll_page *page = r->g->page;

	s->nreduced = 0;
	s->ranks = r->ranks;
	if (!s->results)
		return;
	s->restart++;
	atomic_store_explicit(&page->shares_mask[s->restart & 1], r->ranks, memory_order_relaxed);
	/* release (in post): the mask, before a word that refers to it */
	mc_coll_post_shares(r->g, mc_coll_share(r->seq, s->restart, 0));
}

/* One step: a chunk's share, and the shares of the chunk before it. */
static int step(struct sum *s, uint32_t chunk)
{
	struct mc_coll_round *r = s->r;
	int rc = 0;

	if (chunk < r->nchunks) {
		rc = wait_inputs(s, chunk);
		if (rc == 0)
			rc = s->results ? reduce_share(s, chunk) : reduce_direct(s, chunk);
	}
	if (rc == 0 && s->results && chunk > 0)
		rc = gather_shares(s, chunk - 1);
	return rc;
}

static int run(struct sum *s)
{
	struct mc_coll_round *r = s->r;
	uint32_t ahead = r->g->net ? MC_COLL_AHEAD_NET : 2;
	uint32_t nsteps = r->nchunks + (s->results ? 1 : 0), chunk = 0;
	int rc;

	for (;;) {
		/* Ahead of what is reduced: by one chunk, as much as caches hold; over hosts by
		 * what keeps the connections busy. */
		while (r->npublished < mc_min(chunk + ahead, r->nchunks))
			mc_coll_round_publish(r);
		rc = chunk < nsteps ? step(s, chunk) : mc_coll_round_confirm(r);
		if (rc == 0 && chunk++ < nsteps)
			continue;
		if (rc == 0)
			return 0;
		if (rc < 0)
			return rc;
		s->in = NULL;
		/* Others may wait for the rest of our input before they begin again, too. */
		mc_coll_round_publish_all(r);
		rc = wait_inputs(s, r->nchunks);
		if (rc < 0)
			return rc;
		if (r->ranks != s->ranks) {
			restart(s);
			chunk = 0;
		}
	}
}

/* Over hosts, this rank's input where the caller has it: it must stay as it is until all of it is
 * sent, and until nothing can have to be done again. So first everybody has everything. */
static int run_whole(struct sum *s)
{
	struct mc_coll_round *r = s->r;
	bool is_pair = __builtin_popcountll(r->active) == 2;
	int rc;

	mc_coll_round_publish_all(r);
	do {
		do {
			rc = wait_inputs(s, r->nchunks);
		} while (rc == RESTART);
		/* Of two the one that has both inputs decides alone, should the other one die. */
		if (rc == 0 && !is_pair)
			rc = mc_coll_round_confirm(r);
	} while (rc == MC_COLL_AGAIN);
	if (rc == 0 && is_pair)
		mc_coll_post(r->g, mc_coll_word(r->seq, MC_COLL_STEP_HAVE));
	if (rc == 0)
		rc = mc_coll_net_flush(r->g, r->deadline_ns);
	for (uint32_t chunk = 0; chunk < r->nchunks && rc == 0; chunk++)
		rc = reduce_direct(s, chunk);
	if (rc < 0 || !is_pair)
		return rc;
	rc = mc_coll_round_confirm(r);
	if (rc == MC_COLL_AGAIN) { /* cannot be; its input is in the result */
		rc = -MC_E_PEER_DEAD;
		mc_coll_net_break(r->g, rc);
	}
	return rc;
}

int mc_coll_reduce_round(struct mc_coll_round *r)
{
	const struct mc_coll_op *op = r->op;
	struct mc_coll *g = r->g;
	struct sum s = {.r = r};
	unsigned me = g->rank;
	int rc;

	if (op->kind == MC_COLL_REDUCE_SCATTER) {
		for (unsigned q = 0; q < me; q++)
			s.out_at += g->page->part_len[r->parity][q];
	}
	if (op->nout > 0)
		s.out_len = mc_coll_round_part(r, &op->out[0], &s.out);
	/* Over hosts all bytes go to everyone, who might as well reduce them. */
	if (op->kind == MC_COLL_ALL_REDUCE && r->len > MC_COLL_SMALL && !g->net &&
	    __builtin_popcountll(r->active) > 2)
		s.results = r->base + r->len;
	mc_coll_round_part(r, &op->in[op->nin > 1 ? me : 0], &s.in);
	s.in_at = s.out_at;
	restart(&s);
	if (r->len == 0) {
		rc = wait_inputs(&s, 0);
		return rc < 0 ? rc : 0;
	}
	if (op->kind == MC_COLL_REDUCE && op->root != me) {
		mc_coll_round_publish_all(r);
		rc = mc_coll_round_confirm(r);
		return rc < 0 ? rc : 0;
	}
	return r->is_direct ? run_whole(&s) : run(&s);
}
