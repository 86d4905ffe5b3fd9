/*
 * op.c: an operation: checked, cut into rounds that fit the scratch, begun again where a death
 * between two rounds asks for it.
 */
#include "base/clock.h"
#include "coll/net.h"

#define COUNT_MAX (1ull << 44) /* elements of a part */

/* How many parts of each an operation has: 0, 1, or one for each slot (ALL). */
#define ALL UINT32_MAX
static const struct shape {
	uint32_t in, out;	    /* of every rank that is not the root */
	uint32_t root_in, root_out; /* of the root */
	bool is_rooted, is_reduced;
} shapes[MC_COLL_KIND_COUNT] = {
    [MC_COLL_BARRIER] = {0, 0, 0, 0, false, false},
    [MC_COLL_ALL_REDUCE] = {1, 1, 1, 1, false, true},
    [MC_COLL_REDUCE] = {1, 0, 1, 1, true, true},
    [MC_COLL_REDUCE_SCATTER] = {ALL, 1, ALL, 1, false, true},
    [MC_COLL_ALL_GATHER] = {1, ALL, 1, ALL, false, false},
    [MC_COLL_GATHER] = {1, 0, 1, ALL, true, false},
    [MC_COLL_BROADCAST] = {0, 1, 1, 1, true, false},
    [MC_COLL_SCATTER] = {0, 1, ALL, 1, true, false},
    [MC_COLL_ALL_TO_ALL] = {ALL, ALL, ALL, ALL, false, false},
};

static int check_parts(struct mc_coll *g, const char *what, const struct mc_coll_part *parts,
		       uint32_t n, uint32_t want)
{
	want = want == ALL ? g->ranks_max : want;
	if (n != want) {
		mc_coll_say(g, "%u parts %s, not %u", n, what, want);
		return -MC_E_INVAL;
	}
	for (uint32_t i = 0; i < n; i++) {
		if (parts[i].count > COUNT_MAX || (parts[i].count && !parts[i].addr)) {
			mc_coll_say(g, "part %u %s has %llu elements at %p", i, what,
				    (unsigned long long)parts[i].count, parts[i].addr);
			return -MC_E_INVAL;
		}
	}
	return 0;
}

/* Where everything has one size. */
static int check_counts(struct mc_coll *g, const struct mc_coll_op *op)
{
	bool is_reduced = shapes[op->kind].is_reduced;
	uint64_t n = op->nin ? op->in[0].count : 0;

	for (uint32_t i = 0; (is_reduced || op->kind == MC_COLL_SCATTER) && i < op->nin; i++) {
		if (op->in[i].count != n) {
			mc_coll_say(g, "part %u in has %llu elements, part 0 %llu", i,
				    (unsigned long long)op->in[i].count, (unsigned long long)n);
			return -MC_E_INVAL;
		}
	}
	if ((is_reduced || op->kind == MC_COLL_BROADCAST || op->kind == MC_COLL_SCATTER) &&
	    op->nin && op->nout && op->out[0].count != n) {
		mc_coll_say(g, "%llu elements in, %llu out", (unsigned long long)n,
			    (unsigned long long)op->out[0].count);
		return -MC_E_INVAL;
	}
	return 0;
}

static int check(struct mc_coll *g, const struct mc_coll_op *op)
{
	const struct shape *s;
	bool is_root;
	int rc;

	if ((unsigned)op->kind >= MC_COLL_KIND_COUNT || (unsigned)op->type >= MC_COLL_TYPE_COUNT) {
		mc_coll_say(g, "no operation %d, or no type %d", op->kind, op->type);
		return -MC_E_INVAL;
	}
	s = &shapes[op->kind];
	if (s->is_reduced && !mc_coll_kernel_has(op->type, op->reduce)) {
		mc_coll_say(g, "reduction %d is not defined for %s", op->reduce,
			    mc_coll_type_text(op->type));
		return -MC_E_INVAL;
	}
	if (s->is_rooted ? op->root >= g->ranks_max : op->root != 0) {
		mc_coll_say(g, "root %u in a group of %u", op->root, g->ranks_max);
		return -MC_E_INVAL;
	}
	is_root = s->is_rooted && op->root == g->rank;
	rc = check_parts(g, "in", op->in, op->nin, is_root ? s->root_in : s->in);
	if (rc == 0)
		rc = check_parts(g, "out", op->out, op->nout, is_root ? s->root_out : s->out);
	return rc < 0 ? rc : check_counts(g, op);
}

static uint64_t longest(const struct mc_coll_op *op)
{
	uint64_t n = 0;

	for (uint32_t i = 0; i < op->nin; i++)
		n = mc_max(n, op->in[i].count);
	for (uint32_t i = 0; i < op->nout; i++)
		n = mc_max(n, op->out[i].count);
	return n;
}

/* The result overwrites the input: a round that is over cannot be done again. */
static bool is_in_place(const struct mc_coll_op *op, uint32_t esize)
{
	for (uint32_t i = 0; i < op->nin; i++) {
		uintptr_t in = (uintptr_t)op->in[i].addr;
		uintptr_t out = op->nout ? (uintptr_t)op->out[0].addr : 0;

		if (op->nout && in < out + op->out[0].count * esize &&
		    out < in + op->in[i].count * esize)
			return true;
	}
	return false;
}

/* All ranks wait for all others in it, so all know who is not in it. */
static bool is_seen_by_all(enum mc_coll_kind kind)
{
	return !shapes[kind].is_rooted;
}

/* One pass over all rounds. @param round  the next round's number, counted on */
static int pass(struct mc_coll_round *r, uint32_t *round, uint64_t elems, uint64_t *ranks)
{
	struct mc_coll *g = r->g;
	int rc = 0, kept = 0;

	for (uint32_t k = 0; k < r->rounds; k++) {
		if (*round >= MC_COLL_ROUNDS_MAX)
			return -MC_E_TOO_BIG;
		r->seq = g->op << MC_COLL_ROUND_BITS | (*round)++;
		r->first = k * elems;
		r->elems = elems;
		rc = k > 0 ? mc_coll_round_check(r) : 0;
		if (rc < 0)
			return rc;
		rc = mc_coll_round_begin(r);
		if (rc == 0)
			rc = shapes[r->op->kind].is_reduced ? mc_coll_reduce_round(r)
							    : mc_coll_move_round(r);
		if (rc == -MC_E_TIMEDOUT || rc == -MC_E_CANCELED)
			return rc;
		mc_coll_round_end(r);
		if (rc < 0 &&
		    (rc != -MC_E_INVAL || r->is_refused || shapes[r->op->kind].is_reduced))
			return rc;
		if (rc < 0)
			kept = rc; /* of one rank's part; the other rounds are waited for */
		if (r->ranks == *ranks)
			continue;
		*ranks = r->ranks;
		if (!is_seen_by_all(r->op->kind))
			continue;
		mc_coll_view_lose(g, r->active & ~r->ranks);
		if (k == 0)
			continue;
		/* Rounds before this one had an input that the operation does not have. */
		if (shapes[r->op->kind].is_reduced && is_in_place(r->op, r->esize)) {
			mc_diag_set(
			    &g->diag,
			    "a rank died in operation %llu of group %s, which is larger than "
			    "the scratch and overwrites its input",
			    (unsigned long long)g->op, g->name);
			return -MC_E_PEER_DEAD;
		}
		k = UINT32_MAX; /* 0 after the increment */
	}
	return kept;
}

int mc_coll_execute(struct mc_coll *g, const struct mc_coll_op *op, struct mc_coll_result *ret)
{
	struct mc_coll_round r = {.g = g, .op = op};
	uint64_t elems, active, ranks;
	uint32_t round = 0;
	int rc;

	*ret = (struct mc_coll_result){0};
	if (mc_fork_is_child(g->fork_gen))
		return -MC_E_FORKED;
	if (g->net && g->broken == 0)
		g->broken = atomic_load_explicit(&g->net->broken, memory_order_acquire);
	if (g->broken)
		return g->broken;
	if (atomic_load_explicit(&g->is_aborted, memory_order_acquire))
		return -MC_E_CANCELED;
	rc = check(g, op);
	if (rc < 0)
		return rc;
	r.esize = mc_coll_type_bytes(op->type);
	mc_assert(r.esize > 0); /* check() */
	r.deadline_ns = mc_time_after(mc_now_ns(), g->timeout_ns);
	elems = g->scratch_max / r.esize /
		(op->kind == MC_COLL_REDUCE_SCATTER || op->kind == MC_COLL_SCATTER ||
			 op->kind == MC_COLL_ALL_TO_ALL
		     ? g->ranks_max
		     : 1);
	r.rounds = (uint32_t)mc_min(longest(op) / elems + (longest(op) % elems || !longest(op)),
				    (uint64_t)MC_COLL_ROUNDS_MAX);
	rc = mc_coll_view_enter(g, r.deadline_ns);
	if (rc == -MC_E_STALE)
		return rc;
	active = ranks = atomic_load_explicit(&g->active, memory_order_relaxed);
	if (active != g->crowd_of)
		mc_coll_count_cores(g, g->crowd_of = active);
	if (rc == 0) {
		rc = pass(&r, &round, elems, &ranks);
		rc = rc == 0 ? mc_coll_round_verify(&r) : rc;
		if (rc == -MC_E_STALE)
			mc_coll_view_lose(g, MC_COLL_BIT(g->rank));
		g->before = g->now;
		if (rc == -MC_E_INVAL) {
			g->before = (struct mc_coll_past){.kind = MC_COLL_REFUSED};
			/* Nobody waits for what it would have shown. */
			mc_coll_post(g, mc_coll_word((g->op + 1) << MC_COLL_ROUND_BITS, 0));
		}
	}
	/* What this rank showed must not depend on its next call. */
	if (g->net && (rc == 0 || rc == -MC_E_INVAL || rc == -MC_E_PEER_DEAD))
		rc = mc_coll_net_flush(g, r.deadline_ns) < 0 ? -MC_E_TIMEDOUT : rc;
	if (g->net && rc < 0)
		mc_coll_net_keep(g);
	if (rc == -MC_E_TIMEDOUT || rc == -MC_E_CANCELED || rc == -MC_E_NOMEM)
		g->broken = rc;
	/* What we owe the others in the middle of an operation they can do without us. */
	if (rc == -MC_E_NOMEM)
		mc_coll_leave(g);
	if (rc == -MC_E_PEER_DEAD)
		mc_coll_view_lose(g, active & ~r.ranks);
	ret->seq = g->op;
	ret->ranks = ranks & r.ranks;
	ret->failed = active & ~ret->ranks;
	return rc;
}
