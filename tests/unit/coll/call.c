/*
 * call.c: see call.h.
 */
#include "call.h"

#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"
#include "coll/priv.h"
#include "oracle.h"

#define OPS 400
#define ASYNC_MAX 32

/* Elements that rank `from` sends to rank `to`. */
static uint64_t elems_of(const struct call *c, unsigned from, unsigned to)
{
	switch (c->op.kind) {
	case MC_COLL_ALL_TO_ALL:
		return c->count + (c->uneven ? (from * 7 + to * 3) % c->uneven : 0);
	case MC_COLL_ALL_GATHER:
		return c->count + (c->uneven ? from * 5 % c->uneven : 0);
	default:
		return c->count;
	}
}

static bool has_parts(enum mc_coll_kind kind, bool is_in, bool is_root, bool *ret_is_all)
{
	*ret_is_all = false;
	switch (kind) {
	case MC_COLL_BARRIER:
		return false;
	case MC_COLL_ALL_REDUCE:
		return true;
	case MC_COLL_REDUCE:
		return is_in || is_root;
	case MC_COLL_REDUCE_SCATTER:
		*ret_is_all = is_in;
		return true;
	case MC_COLL_ALL_GATHER:
		*ret_is_all = !is_in;
		return true;
	case MC_COLL_GATHER:
		*ret_is_all = !is_in;
		return is_in || is_root;
	case MC_COLL_BROADCAST:
		return !is_in || is_root;
	case MC_COLL_SCATTER:
		*ret_is_all = is_in;
		return !is_in || is_root;
	default:
		*ret_is_all = true;
		return true;
	}
}

static uint64_t lay(struct call *c, const struct rank *r, bool is_in, uint64_t at, uint8_t *memory)
{
	bool is_root = c->op.root == r->rank, is_all;
	struct mc_coll_part *parts = is_in ? c->in : c->out;
	uint32_t n = 0;

	if (has_parts(c->op.kind, is_in, is_root, &is_all))
		n = is_all ? r->ranks : 1;
	for (uint32_t i = 0; i < n; i++) {
		unsigned from = is_in ? r->rank : i, to = is_in ? i : r->rank;

		if (!is_in && !is_all)
			from = c->op.root;
		parts[i].count = elems_of(c, from, to);
		parts[i].addr = memory ? memory + at : NULL;
		at += (parts[i].count * mc_coll_type_bytes(c->op.type) + 63) & ~63ull;
	}
	if (is_in) {
		c->op.nin = n;
		c->op.in = c->in;
	} else {
		c->op.nout = n;
		c->op.out = c->out;
	}
	return at;
}

static void fill(struct call *c, const struct rank *r)
{
	for (uint32_t p = 0; p < c->op.nin; p++)
		for (uint64_t i = 0; i < c->in[p].count; i++)
			oracle_store(c->op.type, c->in[p].addr, i,
				     oracle_value(r->w->seed, c->number, r->rank, p, i));
}

void call_make_as(struct call *c, const struct rank *r, uint64_t number, enum mc_coll_kind kind,
		  enum mc_coll_type type, enum mc_coll_reduce reduce, uint64_t count)
{
	uint64_t len;

	c->op.kind = kind;
	c->op.type = type;
	c->op.reduce = reduce;
	c->op.factor = oracle_factor(r->rank);
	c->number = number;
	c->count = count;
	len = lay(c, r, false, lay(c, r, true, 0, NULL), NULL);
	c->memory = mc_calloc(1, len + 64);
	(void)lay(c, r, false, lay(c, r, true, 0, c->memory), c->memory);
	if (c->is_in_place && (kind == MC_COLL_ALL_REDUCE || kind == MC_COLL_REDUCE) && c->op.nout)
		c->out[0].addr = c->in[0].addr;
	fill(c, r);
}

void call_make(struct call *c, const struct rank *r, uint64_t number, uint64_t elems_max)
{
	struct mc_rand rng;
	enum mc_coll_kind kind;
	enum mc_coll_type type;
	enum mc_coll_reduce reduce;

	*c = (struct call){0};
	mc_rand_seed(&rng, r->w->seed * 1000003 + number);
	kind = (enum mc_coll_kind)mc_rand_below(&rng, MC_COLL_KIND_COUNT);
	do {
		type = (enum mc_coll_type)mc_rand_below(&rng, MC_COLL_TYPE_COUNT);
		reduce = (enum mc_coll_reduce)mc_rand_below(&rng, MC_COLL_REDUCE_COUNT);
	} while (!mc_coll_kernel_has(type, reduce));
	if (kind == MC_COLL_REDUCE || kind == MC_COLL_GATHER || kind == MC_COLL_BROADCAST ||
	    kind == MC_COLL_SCATTER)
		c->op.root = (uint32_t)mc_rand_below(&rng, r->ranks);
	c->is_async = mc_rand_below(&rng, 4) == 0;
	c->is_in_place = mc_rand_below(&rng, 2) == 0;
	c->uneven = mc_rand_below(&rng, 2) ? mc_rand_below(&rng, 40) : 0;
	/* Mostly small. */
	call_make_as(c, r, number, kind, type, reduce,
		     mc_rand_below(&rng, mc_rand_below(&rng, 4) ? 100 : elems_max));
}

void call_free(struct call *c)
{
	mc_free(c->memory);
}

static double want(const struct call *c, const struct rank *r, uint64_t mask, unsigned part,
		   uint64_t i)
{
	const struct mc_coll_op *op = &c->op;
	uint64_t seed = r->w->seed;
	unsigned from =
	    op->kind == MC_COLL_BROADCAST || op->kind == MC_COLL_SCATTER ? op->root : part;
	unsigned of = op->kind == MC_COLL_SCATTER || op->kind == MC_COLL_ALL_TO_ALL ? r->rank : 0;
	double v;

	if (op->kind == MC_COLL_ALL_REDUCE || op->kind == MC_COLL_REDUCE)
		return oracle_reduce(op->type, op->reduce, seed, c->number, mask, 0, i);
	if (op->kind == MC_COLL_REDUCE_SCATTER)
		return oracle_reduce(op->type, op->reduce, seed, c->number, mask, r->rank, i);
	if (!(mask & 1ull << from))
		return 0;
	v = oracle_value(seed, c->number, from, of, i);
	return op->type == MC_COLL_BOOL ? v > 1 : v;
}

bool call_is_right(const struct call *c, const struct rank *r, uint64_t mask)
{
	for (unsigned p = 0; p < c->op.nout; p++) {
		for (uint64_t i = 0; i < c->out[p].count; i++) {
			double have = oracle_load(c->op.type, c->out[p].addr, i);
			double need = want(c, r, mask, p, i);

			if (have == need)
				continue;
			(void)fprintf(
			    stderr,
			    "rank %u operation %llu kind %d type %s reduction %d root %u: part "
			    "%u of %u, element %llu of %llu is %g, not %g (ranks %llx)\n",
			    r->rank, (unsigned long long)c->number, c->op.kind,
			    mc_coll_type_text(c->op.type), c->op.reduce, c->op.root, p, c->op.nout,
			    (unsigned long long)i, (unsigned long long)c->out[p].count, have, need,
			    (unsigned long long)mask);
			return false;
		}
	}
	return true;
}

int call_random_ops(struct rank *r)
{
	static struct call calls[ASYNC_MAX];
	struct mc_coll_work *works[ASYNC_MAX];
	uint64_t all = (1ull << r->ranks) - 1;
	unsigned n = 0;

	for (uint64_t i = 0; i < OPS; i++) {
		struct call *c = &calls[n];
		struct mc_coll_result res;

		call_make(c, r, i, 200000);
		if (c->is_async) {
			WORLD_CHECK(mc_coll_start(r->coll, &c->op, &works[n]) == 0);
			n++;
		} else {
			int rc = mc_coll_run(r->coll, &c->op, &res);

			if (rc < 0)
				(void)fprintf(stderr, "%s\n", world_explain(r));
			WORLD_CHECK(rc == 0 && res.ranks == all && res.failed == 0);
			WORLD_CHECK(call_is_right(c, r, res.ranks));
			call_free(c);
		}
		if (n < ASYNC_MAX && i + 1 < OPS)
			continue;
		for (unsigned k = 0; k < n; k++) {
			WORLD_CHECK(mc_coll_work_wait(works[k], 60 * MC_NS_PER_S, &res) == 0);
			WORLD_CHECK(res.rc == 0 && call_is_right(&calls[k], r, res.ranks));
			mc_coll_work_free(works[k]);
			call_free(&calls[k]);
		}
		n = 0;
	}
	return 0;
}
