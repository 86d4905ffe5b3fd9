/*
 * round.c: what one rank shows to all others, once: its call, and its bytes in chunks.
 *
 * Small inputs are shown in the page, in two places that take turns: whoever has shown something in
 * the next round has read this one. Larger ones go to the area, which is used again when everyone
 * has said that the round is over. The bytes stay until then, so whatever a death spoils can be
 * done again from them.
 */
#include <stdio.h>

#include "coll/net.h"
#include "coll/shmem.h"

static bool is_root_only(enum mc_coll_kind kind)
{
	return kind == MC_COLL_BROADCAST || kind == MC_COLL_SCATTER;
}

uint64_t mc_coll_round_part(const struct mc_coll_round *r, const struct mc_coll_part *part,
			    uint8_t **ret_at)
{
	uint64_t n = part->count > r->first ? mc_min(part->count - r->first, r->elems) : 0;

	*ret_at = n ? (uint8_t *)part->addr + r->first * r->esize : NULL;
	return n * r->esize;
}

/* This rank's input is not shown: it has none, or nobody else reads it. */
static bool is_shown(const struct mc_coll_round *r, unsigned part)
{
	const struct mc_coll_op *op = r->op;

	if (is_root_only(op->kind) && op->root != r->g->rank)
		return false;
	if (op->nin == 1)
		return true;
	/* Parts for slots that are not there, and its own where that is a plain copy. */
	return (r->active & MC_COLL_BIT(part)) != 0 &&
	       (part != r->g->rank || op->kind == MC_COLL_REDUCE_SCATTER);
}

/* Nobody reads what this rank showed in round `seq` any more. */
static int wait_unused(struct mc_coll_round *r, uint64_t seq)
{
	unsigned q;
	int rc;

	if (seq == 0)
		return 0;
	mc_coll_each(q, r->active & ~MC_COLL_BIT(r->g->rank))
	{
		rc = mc_coll_wait_word(r->g, q, mc_coll_word(seq, MC_COLL_STEP_DONE),
				       r->deadline_ns);
		if (rc < 0)
			return rc;
	}
	return 0;
}

static uint64_t area_size(uint64_t len)
{
	uint64_t size = MC_COLL_AREA_MIN;

	while (size < len)
		size *= 2;
	return size;
}

static int area_need(struct mc_coll *g, uint64_t len)
{
	uint64_t want = area_size(len);
	void *at;
	int rc;

	if (g->area_len >= len && g->area_kept >= len)
		return 0;
	/* All of it anew after it was given back: memory that is missing is told here. */
	rc = mc_coll_shmem_grow(g->fd, MC_COLL_AREA_AT, MC_COLL_AREA_AT + want);
	if (rc < 0)
		return rc;
	if (g->area_kept == 0)
		mc_coll_rest_arm(g);
	g->area_kept = want;
	if (g->area_len >= len)
		return 0;
	rc = mc_coll_shmem_map(g->fd, MC_COLL_AREA_AT, want, &at);
	if (rc < 0)
		return rc;
	mc_coll_shmem_unmap(g->area, g->area_len);
	g->area = at;
	g->area_len = want;
	/* release: the length, before a word that says that there is something */
	atomic_store_explicit(&g->page->area_len, want, memory_order_release);
	return 0;
}

/* Where results of shares go: behind the input, so that one mapping has both. */
static uint64_t area_bytes(const struct mc_coll_round *r)
{
	return r->op->kind == MC_COLL_ALL_REDUCE && !r->g->net ? 2 * r->len : r->len;
}

/* Writing to `b` leaves `a` as it is: apart, or the same. */
static bool is_safe(const struct mc_coll_round *r, const struct mc_coll_part *a,
		    const struct mc_coll_part *b, bool may_be_same)
{
	uintptr_t x = (uintptr_t)a->addr, y = (uintptr_t)b->addr;

	return x + a->count * r->esize <= y || y + b->count * r->esize <= x ||
	       (may_be_same && x == y);
}

/* Over hosts: one input that is in one piece, and that nothing overwrites before it is sent, needs
 * no copy. Results are computed when everybody has all inputs (sum.c). */
static bool is_only_sent(const struct mc_coll_round *r)
{
	const struct mc_coll_op *op = r->op;

	if (!r->g->net || op->nin != 1 || r->g->ranks_max < 2 || mc_coll_net_has_near(r->g))
		return false;
	for (uint32_t q = 0; q < op->nout; q++)
		if (!is_safe(r, &op->in[0], &op->out[q], op->nout == 1 || q == r->g->rank))
			return false;
	return true;
}

static int place(struct mc_coll_round *r)
{
	struct mc_coll *g = r->g;
	uint8_t *at;
	int rc;

	r->len = 0;
	r->is_direct = false;
	for (uint32_t i = 0; i < r->op->nin; i++)
		if (is_shown(r, i))
			r->len += mc_coll_round_part(r, &r->op->in[i], &at);
	rc = wait_unused(r, g->small_seq[r->parity]);
	if (rc < 0)
		return rc;
	g->small_seq[r->parity] = r->seq;
	r->nchunks = (uint32_t)((r->len + MC_COLL_CHUNK - 1) / MC_COLL_CHUNK);
	if (r->len <= MC_COLL_SMALL) {
		r->base = g->page->small[r->parity];
		return 0;
	}
	rc = wait_unused(r, g->area_seq);
	if (rc < 0)
		return rc;
	g->area_seq = r->seq;
	/* Before what is stored there: pairs with the fence in is_overwritten(). */
	atomic_store_explicit(&g->page->area_seq, r->seq, memory_order_relaxed);
	atomic_thread_fence(memory_order_seq_cst);
	g->area_ranks = r->active;
	r->is_direct = is_only_sent(r);
	if (g->net)
		g->net->tx_base = NULL;
	if (r->is_direct) {
		(void)mc_coll_round_part(r, &r->op->in[0], &r->base);
		g->net->tx_base = r->base;
		return 0;
	}
	rc = area_need(g, area_bytes(r));
	r->base = g->area;
	return rc;
}

/* Elements of each part, where all ranks have to have the same. */
static uint64_t unit_of(const struct mc_coll_round *r)
{
	const struct mc_coll_op *op = r->op;

	switch (op->kind) {
	case MC_COLL_ALL_GATHER:
	case MC_COLL_ALL_TO_ALL:
	case MC_COLL_BARRIER:
		return 0; /* compared part by part, where they are read */
	case MC_COLL_BROADCAST:
	case MC_COLL_SCATTER:
		return op->out[0].count;
	default:
		return op->in[0].count;
	}
}

static void call_write(struct mc_coll_round *r)
{
	const struct mc_coll_op *op = r->op;
	struct mc_coll_page *page = r->g->page;
	struct mc_coll_call *c = &page->call[r->parity];
	uint8_t *at;

	*c = (struct mc_coll_call){.kind = (uint8_t)op->kind,
				   .type = (uint8_t)op->type,
				   .reduce = (uint8_t)op->reduce,
				   .root = (uint8_t)op->root,
				   .rounds = r->rounds,
				   .nin = op->nin,
				   .factor = op->factor,
				   .seq = r->seq,
				   .len = r->len,
				   .count = unit_of(r),
				   .before = r->g->before};
	r->g->now = (struct mc_coll_past){c->kind, c->type, c->reduce, c->root, c->count};
	for (uint32_t i = 0; op->nin > 1 && i < op->nin; i++)
		page->part_len[r->parity][i] =
		    is_shown(r, i) ? mc_coll_round_part(r, &op->in[i], &at) : 0;
	/* The round's number, before its bytes: pairs with mc_coll_round_verify(). */
	atomic_thread_fence(memory_order_release);
}

int mc_coll_round_begin(struct mc_coll_round *r)
{
	int rc;

	r->active = r->ranks = atomic_load_explicit(&r->g->active, memory_order_relaxed);
	r->parity = mc_coll_parity(r->seq);
	r->npublished = 0;
	r->has_read_area = false;
	r->part = 0;
	r->part_at = 0;
	rc = place(r);
	if (rc < 0)
		return rc;
	call_write(r);
	mc_coll_taste_begin(r);
	if (r->nchunks == 0)
		mc_coll_post(r->g, mc_coll_word(r->seq, 1));
	return 0;
}

void mc_coll_round_publish(struct mc_coll_round *r)
{
	uint64_t at = (uint64_t)r->npublished * MC_COLL_CHUNK;
	uint64_t end = mc_min(at + MC_COLL_CHUNK, r->len);

	while (at < end && !r->is_direct) {
		uint8_t *from = NULL;
		uint64_t len =
		    is_shown(r, r->part) ? mc_coll_round_part(r, &r->op->in[r->part], &from) : 0;
		uint64_t n = mc_min(len - r->part_at, end - at);

		if (n > 0)
			mc_copy(r->base + at, from + r->part_at, n, r->hint);
		at += n;
		r->part_at += n;
		if (r->part_at == len) {
			r->part++;
			r->part_at = 0;
		}
	}
	mc_coll_post(r->g, mc_coll_word(r->seq, 1 + ++r->npublished));
}

void mc_coll_round_publish_all(struct mc_coll_round *r)
{
	while (r->npublished < r->nchunks)
		mc_coll_round_publish(r);
}

static void call_text(char *to, size_t size, const struct mc_coll_past *c)
{
	static const char *const kinds[] = {"barrier",	      "all_reduce", "reduce",
					    "reduce_scatter", "all_gather", "gather",
					    "broadcast",      "scatter",    "all_to_all"};

	if (c->kind == MC_COLL_REFUSED) {
		(void)snprintf(to, size, "refused another's");
		return;
	}
	(void)snprintf(to, size, "calls %s type %s reduction %u root %u count %lld",
		       c->kind < MC_COLL_KIND_COUNT ? kinds[c->kind] : "?",
		       c->type < MC_COLL_TYPE_COUNT ? mc_coll_type_text(c->type) : "?", c->reduce,
		       c->root, (long long)c->count);
}

/* Say on both sides who does, or did, something else. */
static int differ(struct mc_coll_round *r, unsigned slot, uint64_t op, const struct mc_coll_past *a,
		  const struct mc_coll_past *b)
{
	char text[2][96];

	r->has_read_area = true; /* the others are told when this is over */
	r->is_refused = true;
	if (mc_coll_view_is_out(r->g))
		return -MC_E_STALE;
	call_text(text[0], sizeof(text[0]), a);
	call_text(text[1], sizeof(text[1]), b);
	mc_coll_say(r->g, "operation %llu of group %s: rank %u %s, rank %u %s",
		    (unsigned long long)op, r->g->name, r->g->rank, text[0], slot, text[1]);
	return -MC_E_INVAL;
}

static bool is_same(const struct mc_coll_past *a, const struct mc_coll_past *b)
{
	return a->kind == b->kind && a->type == b->type && a->reduce == b->reduce &&
	       a->root == b->root && a->count == b->count;
}

static bool is_same_before(const struct mc_coll_past *a, const struct mc_coll_past *b)
{
	return is_same(a, b) || a->kind == MC_COLL_UNKNOWN || b->kind == MC_COLL_UNKNOWN;
}

static struct mc_coll_past past_of(const struct mc_coll_call *c)
{
	return (struct mc_coll_past){c->kind, c->type, c->reduce, c->root, c->count};
}

int mc_coll_round_check(struct mc_coll_round *r)
{
	struct mc_coll *g = r->g;
	uint64_t active = atomic_load_explicit(&g->active, memory_order_relaxed), seq = r->seq - 1;
	unsigned q;

	mc_coll_each(q, active & ~MC_COLL_BIT(g->rank))
	{
		int rc = mc_coll_wait_word(g, q, mc_coll_word(seq, 1), r->deadline_ns);
		const struct mc_coll_page *page;
		struct mc_coll_past them;

		if (rc < 0)
			return rc;
		if (rc == MC_COLL_GONE)
			continue;
		page = g->cur[q]->page;
		them = past_of(&page->call[mc_coll_parity(seq)]);
		/* One that has gone on waits for us again, and may have stored another call there:
		 * pairs with the fence in mc_coll_ring(). */
		atomic_thread_fence(memory_order_acquire);
		if (atomic_load_explicit(&page->word, memory_order_relaxed) >> MC_COLL_STEP_BITS ==
			seq &&
		    !is_same(&g->now, &them))
			return differ(r, q, g->op, &g->now, &them);
	}
	return 0;
}

/* What is reduced is read as far as our own goes: a stranger's call may say anything. */
static bool is_same_length(const struct mc_coll_round *r, const struct mc_coll_call *theirs)
{
	return (r->op->kind != MC_COLL_ALL_REDUCE && r->op->kind != MC_COLL_REDUCE &&
		r->op->kind != MC_COLL_REDUCE_SCATTER) ||
	       theirs->len == r->len;
}

int mc_coll_round_wait(struct mc_coll_round *r, unsigned slot, uint32_t chunks)
{
	struct mc_coll *g = r->g;
	const struct mc_coll_call *theirs, *own = &g->page->call[r->parity];
	struct mc_coll_past them;
	uint32_t n;
	int rc;

	if (slot == g->rank)
		return MC_COLL_THERE;
	rc = mc_coll_wait_word(g, slot, mc_coll_word(r->seq, 1), r->deadline_ns);
	if (rc != MC_COLL_THERE)
		return rc;
	theirs = &g->cur[slot]->page->call[r->parity];
	them = past_of(theirs);
	if (theirs->seq != r->seq) /* it has left the operation before this round */
		them = (struct mc_coll_past){.kind = MC_COLL_REFUSED};
	if (!is_same(&g->now, &them) || (g->net && !is_same_length(r, theirs)))
		return differ(r, slot, g->op, &g->now, &them);
	if (!is_same_before(&own->before, &theirs->before))
		return differ(r, slot, g->op - 1, &own->before, &theirs->before);
	/* It waits for all to be past this round, though they may want none of it. */
	r->has_read_area |= theirs->len > MC_COLL_SMALL;
	if (theirs->rounds > r->rounds)
		r->rounds = mc_min(theirs->rounds, MC_COLL_ROUNDS_MAX);
	n = (uint32_t)mc_min(theirs->len / MC_COLL_CHUNK + (theirs->len % MC_COLL_CHUNK != 0),
			     MC_COLL_STEP_DONE - 2u);
	n = mc_min(chunks, n);
	return n == 0 ? MC_COLL_THERE
		      : mc_coll_wait_word(g, slot, mc_coll_word(r->seq, 1 + n), r->deadline_ns);
}

int mc_coll_round_verify(const struct mc_coll_round *r)
{
	unsigned q;

	if (r->g->net || !mc_coll_view_is_out(r->g))
		return 0;
	mc_coll_each(q, r->ranks & ~MC_COLL_BIT(r->g->rank))
	{
		const struct mc_coll_page *page = r->g->cur[q]->page;
		const struct mc_coll_call *c = &page->call[r->parity];

		if (c->seq != r->seq ||
		    atomic_load_explicit(&page->area_seq, memory_order_relaxed) > r->seq)
			return -MC_E_STALE;
	}
	return 0;
}

/* Of a rank of this host in a group over hosts. */
static const uint8_t *near_bytes(struct mc_coll_peer *p, uint64_t len)
{
	struct mc_coll_wire *wire = p->wire;
	uint64_t want = area_size(len);
	void *at;

	if (wire->near_len < len) {
		if (mc_coll_shmem_map(atomic_load_explicit(&wire->near_fd, memory_order_acquire),
				      MC_COLL_AREA_AT, want, &at) < 0)
			return NULL; /* it says what it does not show */
		mc_coll_shmem_unmap(wire->near_area, wire->near_len);
		wire->near_area = at;
		wire->near_len = want;
	}
	return wire->near_area;
}

/* Somebody of this host has given us up and shows something else where we read. */
static bool is_overwritten(const struct mc_coll_round *r)
{
	unsigned q;

	atomic_thread_fence(memory_order_seq_cst);
	mc_coll_each(q, r->active & ~MC_COLL_BIT(r->g->rank))
	{
		struct mc_coll_wire *wire = r->g->cur[q] ? r->g->cur[q]->wire : NULL;

		if (wire && wire->is_near && wire->area_seq == r->seq &&
		    atomic_load_explicit(&wire->near_page->area_seq, memory_order_relaxed) !=
			r->seq)
			return true;
	}
	return false;
}

const uint8_t *mc_coll_round_bytes(struct mc_coll_round *r, unsigned slot)
{
	struct mc_coll_peer *p = r->g->cur[slot];
	uint64_t len;
	void *at;

	if (slot == r->g->rank)
		return r->base;
	if (p->page->call[r->parity].len <= MC_COLL_SMALL)
		return p->page->small[r->parity];
	if (p->wire && p->wire->is_near)
		return near_bytes(p, p->page->call[r->parity].len);
	if (p->wire && p->area_len < p->page->call[r->parity].len)
		return NULL; /* it says what it did not send */
	/* acquire: pairs with the release in area_need() */
	len = atomic_load_explicit(&p->page->area_len, memory_order_acquire);
	if (p->area_len < len) {
		if (mc_coll_shmem_map(p->fd, MC_COLL_AREA_AT, len, &at) < 0)
			return NULL;
		mc_coll_shmem_unmap(p->area, p->area_len);
		p->area = at;
		p->area_len = len;
	}
	return p->area;
}

void mc_coll_round_end(struct mc_coll_round *r)
{
	if (r->len > MC_COLL_SMALL || r->rounds > 1 || r->has_read_area)
		mc_coll_post(r->g, mc_coll_word(r->seq, MC_COLL_STEP_DONE));
	if (r->from_ns && r->ranks == r->active)
		mc_coll_taste_end(r);
}

/* Somebody shows more than what is kept for the others. */
static bool is_large(const struct mc_coll_round *r)
{
	unsigned q;

	if (r->len > MC_COLL_SMALL)
		return true;
	mc_coll_each(q, r->ranks & ~MC_COLL_BIT(r->g->rank))
	{
		if (r->g->cur[q]->page->call[r->parity].len > MC_COLL_SMALL)
			return true;
	}
	return false;
}

/* Whoever reads has it. @return 0; MC_COLL_AGAIN */
static int wait_have(struct mc_coll_round *r, uint64_t readers)
{
	uint64_t givers = is_root_only(r->op->kind) ? MC_COLL_BIT(r->op->root) : r->ranks;
	unsigned q;
	int rc;

	mc_coll_each(q, readers & r->active & ~MC_COLL_BIT(r->g->rank))
	{
		rc = mc_coll_wait_word(r->g, q, mc_coll_word(r->seq, MC_COLL_STEP_HAVE),
				       r->deadline_ns);
		if (rc < 0)
			return rc;
		/* One that left after it had shown everything is still in. */
		if (rc == MC_COLL_GONE && givers & MC_COLL_BIT(q) &&
		    mc_coll_round_wait(r, q, UINT32_MAX) != MC_COLL_THERE)
			return MC_COLL_AGAIN;
	}
	return 0;
}

int mc_coll_round_confirm(struct mc_coll_round *r)
{
	const struct mc_coll_op *op = r->op;
	uint64_t readers = UINT64_MAX;
	int rc;

	if (!r->g->net || op->kind == MC_COLL_BARRIER)
		return 0;
	if (is_overwritten(r)) {
		mc_coll_net_break(r->g, -MC_E_PEER_DEAD);
		return -MC_E_PEER_DEAD;
	}
	if (op->kind == MC_COLL_GATHER || op->kind == MC_COLL_REDUCE) {
		/* The root has nobody to wait for, the others only for the root. */
		if (op->root != r->g->rank && r->len <= MC_COLL_SMALL)
			return 0;
		readers = op->root == r->g->rank ? 0 : MC_COLL_BIT(op->root);
	} else if (!is_large(r)) {
		return 0;
	}
	mc_coll_post(r->g, mc_coll_word(r->seq, MC_COLL_STEP_HAVE));
	rc = wait_have(r, readers);
	if (rc == 0 && readers == UINT64_MAX) {
		/* What was being agreed on meanwhile may have taken somebody's input away. */
		rc = mc_coll_net_settle(r->g, r->deadline_ns);
		if (rc == 0)
			rc = wait_have(r, readers);
	}
	return rc;
}
