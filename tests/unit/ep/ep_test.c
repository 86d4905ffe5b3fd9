/*
 * ep_test.c: a layer of experts across processes, of which some die, against one process that
 * computes the same sums.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <mooncake/ep.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../coll/world.h"
#include "base/bf16.h"
#include "base/mem.h"
#include "base/rand.h"

#define STEPS 4
#define LETHAL 1 /* the step in which somebody dies */

enum { NOTE_VICTIM, NOTE_PLACE, NOTE_TOPK, NOTE_MASKED };
/* Where in a step. */
enum { BEFORE_DISPATCH, BEFORE_EXCHANGE, BETWEEN, BEFORE_RETURN, NOWHERE };

struct tokens {
	uint16_t *rows;
	int64_t *topk;
	float *weights;
};

struct layer {
	struct mc_ep_shape shape;
	struct mc_ep_arrived got;
	uint16_t *out;
	uint32_t le;
	uint64_t room;
};

static struct tokens tokens_of(const struct mc_ep_shape *s, uint32_t rank, uint64_t step)
{
	uint64_t n = (uint64_t)s->tokens * s->topk;
	struct tokens t = {mc_calloc((size_t)s->tokens * s->hidden + 1, 2), mc_calloc(n + 1, 8),
			   mc_calloc(n + 1, 4)};
	struct mc_rand rng;

	mc_rand_seed(&rng, step * 1000 + rank);
	for (uint64_t i = 0; i < (uint64_t)s->tokens * s->hidden; i++)
		t.rows[i] = mc_bf16_store((float)mc_rand_below(&rng, 2000) / 500.0f - 2.0f);
	for (uint64_t i = 0; i < n; i++) {
		/* Different in a token: a walk from a random one. */
		t.topk[i] = i % s->topk ? (t.topk[i - i % s->topk] + (int64_t)(i % s->topk) * 3) %
					      s->experts
					: (int64_t)mc_rand_below(&rng, s->experts);
		t.weights[i] = (float)mc_rand_below(&rng, 1000) / 1000.0f;
	}
	for (uint64_t i = 0; i < n; i += 5)
		if (i % s->topk)
			t.topk[i] = -1;
	return t;
}

static void tokens_free(struct tokens *t)
{
	mc_free(t->rows);
	mc_free(t->topk);
	mc_free(t->weights);
}

static uint16_t expert(uint64_t e, uint16_t x)
{
	return mc_bf16_store(mc_bf16_load(x) * (0.5f + (float)(e % 7)) - (float)e / 16.0f);
}

/* The same in one process, without the experts of slots that are not in `ranks`. */
static bool is_right(const struct layer *l, const struct tokens *t, uint64_t ranks)
{
	const struct mc_ep_shape *s = &l->shape;

	for (uint64_t i = 0; i < (uint64_t)s->tokens * s->hidden; i++) {
		uint64_t token = i / s->hidden;
		float sum = 0;

		for (uint32_t k = 0; k < s->topk; k++) {
			int64_t e = t->topk[token * s->topk + k];

			if (e >= 0 && ranks >> e / l->le & 1)
				sum += t->weights[token * s->topk + k] *
				       mc_bf16_load(expert((uint64_t)e, t->rows[i]));
		}
		if (l->out[i] != mc_bf16_store(sum))
			return false;
	}
	return true;
}

/* Rows of a source for an expert are its tokens in order, bit by bit. */
static bool has_arrived(const struct layer *l, uint32_t rank, uint64_t ranks, uint64_t step)
{
	const struct mc_ep_shape *s = &l->shape;
	bool ok = true;

	for (uint32_t q = 0; q < s->ranks; q++) {
		struct tokens t = tokens_of(s, q, step);

		for (uint32_t e = 0; e < l->le; e++) {
			int64_t range = l->got.ranges[(uint64_t)e * s->ranks + q];
			uint64_t at = e * l->room + ((uint64_t)range >> 32);
			uint32_t n = 0;

			for (uint64_t i = 0; (ranks >> q & 1) && i < (uint64_t)s->tokens * s->topk;
			     i++) {
				uint64_t token = i / s->topk;

				if (t.topk[i] != (int64_t)rank * l->le + e)
					continue;
				ok = ok && l->got.tokens[at + n] == (int32_t)token &&
				     !memcmp(l->got.rows + (at + n) * s->hidden,
					     t.rows + token * s->hidden, s->hidden * 2);
				n++;
			}
			ok = ok && n == (uint32_t)range;
		}
		tokens_free(&t);
	}
	return ok;
}

static struct layer layer_of(const struct rank *r, uint32_t topk)
{
	struct layer l = {.shape = {.rank = r->rank,
				    .ranks = r->ranks,
				    .experts = 16 * r->ranks,
				    .hidden = 16 * 7,
				    .topk = topk,
				    .tokens_max = 60,
				    .tokens = 60}};
	uint64_t n;

	l.le = l.shape.experts / l.shape.ranks;
	l.room = (uint64_t)l.shape.ranks * l.shape.tokens_max;
	n = l.le * l.room;
	l.got.rows = mc_calloc(n * l.shape.hidden, 2);
	l.got.counts = mc_calloc(l.le, 4);
	l.got.tokens = mc_calloc(n, 4);
	l.got.ranges = mc_calloc(l.shape.experts, 8);
	l.out = mc_calloc((size_t)l.shape.tokens * l.shape.hidden, 2);
	return l;
}

static void layer_free(struct layer *l)
{
	mc_free(l->got.rows);
	mc_free(l->got.counts);
	mc_free(l->got.tokens);
	mc_free(l->got.ranges);
	mc_free(l->out);
}

static void die_at(const struct rank *r, uint64_t step, uint64_t place)
{
	if (step == LETHAL && atomic_load(&r->w->note[NOTE_VICTIM]) == r->rank &&
	    atomic_load(&r->w->note[NOTE_PLACE]) == place)
		(void)kill(getpid(), SIGKILL);
}

static void compute(struct layer *l, uint32_t rank)
{
	for (uint32_t e = 0; e < l->le; e++)
		for (uint64_t i = 0; i < (uint64_t)l->got.counts[e] * l->shape.hidden; i++) {
			uint16_t *x = l->got.rows + e * l->room * l->shape.hidden + i;

			*x = expert((uint64_t)rank * l->le + e, *x);
		}
}

static int one_step(struct rank *r, struct layer *l, uint64_t step)
{
	struct tokens t = tokens_of(&l->shape, r->rank, step);
	uint64_t masked = atomic_load(&r->w->note[NOTE_MASKED]);
	/* Who is masked gets and gives nothing, on either side. */
	uint64_t others = masked >> r->rank & 1 ? 0 : ~masked;
	struct mc_coll_result there = {0}, back = {0};
	int32_t active[WORLD_MAX];
	struct mc_diag diag = {0};
	struct mc_ep_half *h;

	for (uint32_t q = 0; q < r->ranks; q++)
		active[q] = !(masked >> q & 1);
	die_at(r, step, BEFORE_DISPATCH);
	WORLD_CHECK(!mc_ep_dispatch_begin(r->coll, &l->shape, t.rows, t.topk, active, &diag, &h));
	die_at(r, step, BEFORE_EXCHANGE);
	WORLD_CHECK(!mc_ep_dispatch_end(h, &l->got, &there));
	WORLD_CHECK(has_arrived(l, r->rank, there.ranks & others, step));
	die_at(r, step, BETWEEN);
	compute(l, r->rank);
	WORLD_CHECK(!mc_ep_combine_begin(r->coll, &l->shape, l->got.rows, t.topk, active,
					 l->got.ranges, &diag, &h));
	die_at(r, step, BEFORE_RETURN);
	WORLD_CHECK(!mc_ep_combine_end(h, t.weights, l->out, &back));
	WORLD_CHECK(is_right(l, &t, there.ranks & back.ranks & others));
	if (step > LETHAL && atomic_load(&r->w->note[NOTE_PLACE]) < NOWHERE)
		WORLD_CHECK(!(there.ranks >> atomic_load(&r->w->note[NOTE_VICTIM]) & 1));
	world_tick(r->w);
	tokens_free(&t);
	return 0;
}

static int steps(struct rank *r)
{
	struct layer l = layer_of(r, (uint32_t)atomic_load(&r->w->note[NOTE_TOPK]));
	int rc = 0;

	for (uint64_t step = 0; step < STEPS && rc == 0; step++)
		rc = one_step(r, &l, step);
	layer_free(&l);
	return rc;
}

static void trial(uint32_t ranks, uint32_t topk, uint32_t victim, uint64_t place, uint64_t masked)
{
	struct world *w = world_make(1);
	pid_t pids[WORLD_MAX];

	atomic_store(&w->note[NOTE_VICTIM], victim);
	atomic_store(&w->note[NOTE_PLACE], place);
	atomic_store(&w->note[NOTE_TOPK], topk);
	atomic_store(&w->note[NOTE_MASKED], masked);
	for (uint32_t i = 0; i < ranks; i++)
		pids[i] = world_fork(w, i, ranks, ranks, 0, steps);
	for (uint32_t i = 0; i < ranks; i++)
		assert_int_equal(world_reap(pids[i]),
				 place < NOWHERE && i == victim ? 1000 + SIGKILL : 0);
	world_free(w);
}

static void tokens_go_to_their_experts_and_their_sums_come_back(void **state)
{
	static const uint32_t topk[] = {1, 2, 5};

	(void)state;
	for (uint32_t ranks = 1; ranks <= 4; ranks++)
		for (unsigned k = 0; k < MC_ARRAY_LEN(topk); k++)
			trial(ranks, topk[k], 0, NOWHERE, 0);
}

static void a_rank_that_is_masked_gets_nothing_and_adds_nothing(void **state)
{
	(void)state;
	trial(3, 4, 0, NOWHERE, 1u << 2);
}

static void a_rank_killed_anywhere_in_a_step_is_left_out_of_the_sums(void **state)
{
	(void)state;
	for (uint32_t ranks = 2; ranks <= 4; ranks++)
		for (uint64_t place = BEFORE_DISPATCH; place < NOWHERE; place++)
			trial(ranks, 4, (uint32_t)(place % ranks), place, 0);
}

static void what_does_not_fit_is_refused_and_named(void **state)
{
	const struct mc_ep_shape good = {
	    .ranks = 1, .experts = 4, .hidden = 16, .topk = 2, .tokens_max = 1, .tokens = 1};
	struct mc_ep_shape bad[] = {good, good, good, good};
	const uint16_t row[16] = {0};
	const int64_t wrong[][2] = {{0, 4}, {1, 1}, {-2, 0}};
	struct mc_ep_half *h;
	struct mc_diag diag = {0};

	(void)state;
	bad[0].hidden = 24;
	bad[1].topk = 33;
	bad[2].tokens = 2;
	bad[3].experts = 0;
	for (unsigned i = 0; i < MC_ARRAY_LEN(bad); i++)
		assert_int_equal(
		    mc_ep_dispatch_begin(NULL, &bad[i], row, (int64_t[2]){0, 1}, NULL, &diag, &h),
		    -MC_E_INVAL);
	for (unsigned i = 0; i < MC_ARRAY_LEN(wrong); i++) {
		diag.text[0] = 0;
		assert_int_equal(mc_ep_dispatch_begin(NULL, &good, row, wrong[i], NULL, &diag, &h),
				 -MC_E_INVAL);
		assert_non_null(strstr(diag.text, "token 0"));
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(tokens_go_to_their_experts_and_their_sums_come_back),
	    cmocka_unit_test(a_rank_that_is_masked_gets_nothing_and_adds_nothing),
	    cmocka_unit_test(a_rank_killed_anywhere_in_a_step_is_left_out_of_the_sums),
	    cmocka_unit_test(what_does_not_fit_is_refused_and_named),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
