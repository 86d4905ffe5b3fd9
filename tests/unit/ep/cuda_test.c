/*
 * cuda_test.c: the kernels and who launches them, against one process that computes the same.
 *
 * Built twice. With the driver of tests/fake/cuda the kernels run on the processor, in every run of
 * the unit tests; with the machine's own on a GPU, which all processes share (suite gpu, skipped
 * where there is none).
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "../coll/world.h"
#include "base/clock.h"
#include "base/mem.h"
#include "cuda_rank.h"

#define STEPS 4
#define LETHAL 1 /* the step in which somebody dies or is late */
#define PACKED 8
#define DENSE 16

enum {
	NOTE_VICTIM,
	NOTE_PLACE,
	NOTE_TOPK,
	NOTE_MASKED,
	NOTE_FORMAT, /* enum mc_ep_format; + PACKED, + DENSE */
	NOTE_RANKS,
	NOTE_HIDDEN,
	NOTE_SEEN, /* by half: who was in it */
};
/* Where in a step. */
enum { BEFORE_DISPATCH, BEFORE_TAKING, BETWEEN, BEFORE_RETURN, NOWHERE };

static bool is_there; /* a GPU */

static uint64_t note(struct rank *r, unsigned which)
{
	return atomic_load(&r->w->note[which]);
}

static int open_rank(struct rank *r, struct gpu_rank *g)
{
	uint32_t ranks = (uint32_t)note(r, NOTE_RANKS);
	uint64_t format = note(r, NOTE_FORMAT);
	struct mc_ep_shape shape = {.ranks = ranks,
				    .experts = 16 * ranks,
				    .hidden = (uint32_t)note(r, NOTE_HIDDEN),
				    .topk = (uint32_t)note(r, NOTE_TOPK),
				    .tokens_max = 40,
				    .align = format & DENSE ? 8 : 0};
	int rc = gpu_rank_open(g, r->coll, &shape, r->rank, format & 3, format & PACKED);

	if (rc < 0)
		print_message("rank %u: %s\n", r->rank, g->layer.diag.text);
	return rc;
}

/* Nobody's memory goes while another reads it. */
static int close_rank(struct rank *r, struct gpu_rank *g)
{
	uint64_t ranks;

	WORLD_CHECK(!world_count_ranks(r, &ranks));
	gpu_rank_close(g);
	return 0;
}

static bool is_agreed(struct rank *r, uint64_t step, unsigned half, uint64_t ranks)
{
	uint64_t seen = 0;

	return atomic_compare_exchange_strong(&r->w->note[NOTE_SEEN + step * 2 + half], &seen,
					      ranks) ||
	       seen == ranks;
}

static void die_at(struct rank *r, uint64_t step, uint64_t place)
{
	if (step == LETHAL && note(r, NOTE_VICTIM) == r->rank && note(r, NOTE_PLACE) == place)
		(void)kill(getpid(), SIGKILL);
}

static int one_step(struct rank *r, struct gpu_rank *g, uint64_t step)
{
	struct layer *l = &g->layer;
	struct tokens t = tokens_of(&l->shape, r->rank, step);
	uint64_t masked = note(r, NOTE_MASKED);
	/* Who is masked gets and gives nothing, on either side. */
	uint64_t others = masked >> r->rank & 1 ? 1ull << r->rank : ~masked;
	struct mc_ep_cuda_half *h;
	int32_t active[WORLD_MAX];

	l->shape.tokens = r->rank == 1 && step % 2 == 1 ? 0 : l->shape.tokens_max - r->rank;
	for (uint32_t q = 0; q < l->shape.ranks; q++)
		active[q] = others >> q & 1;
	die_at(r, step, BEFORE_DISPATCH);
	WORLD_CHECK(!gpu_dispatch_begin(g, &t, active, MC_EP_NEVER, &h));
	die_at(r, step, BEFORE_TAKING);
	WORLD_CHECK(!gpu_dispatch_end(g, h, active));
	WORLD_CHECK(masked || is_agreed(r, step, 0, l->there));
	WORLD_CHECK(layer_has_arrived(l, step));
	die_at(r, step, BETWEEN);
	/* Now and then straight to where the others read. */
	WORLD_CHECK(!gpu_compute(g, step % 3 == 2 && !l->shape.align));
	WORLD_CHECK(!gpu_combine_begin(g, step & 1, active, MC_EP_NEVER, &h));
	die_at(r, step, BEFORE_RETURN);
	WORLD_CHECK(!gpu_combine_end(g, h, active));
	WORLD_CHECK(masked || is_agreed(r, step, 1, l->back));
	WORLD_CHECK(layer_is_right(l, &t));
	for (uint32_t q = 0; q < l->shape.ranks; q++)
		WORLD_CHECK(active[q] == (int32_t)(l->back >> q & 1));
	world_tick(r->w);
	tokens_free(&t);
	return 0;
}

static int steps(struct rank *r)
{
	struct gpu_rank g;
	int rc = 0;

	WORLD_CHECK(!open_rank(r, &g));
	WORLD_CHECK(!mc_ep_cuda_update(g.ep, &g.layer.diag));
	for (uint64_t step = 0; step < STEPS && rc == 0; step++)
		rc = one_step(r, &g, step);
	if (rc == 0 && note(r, NOTE_PLACE) < NOWHERE)
		WORLD_CHECK(mc_ep_cuda_masked(g.ep) == 1ull << note(r, NOTE_VICTIM));
	return close_rank(r, &g) ? 1 : rc;
}

static struct world *gpu_world(uint32_t ranks, uint32_t topk, uint64_t format, uint32_t hidden)
{
	struct world *w;

	if (!is_there)
		skip();
	w = world_make(1);
	atomic_store(&w->note[NOTE_RANKS], ranks);
	atomic_store(&w->note[NOTE_TOPK], topk);
	atomic_store(&w->note[NOTE_FORMAT], format);
	atomic_store(&w->note[NOTE_HIDDEN], hidden);
	atomic_store(&w->note[NOTE_PLACE], NOWHERE);
	return w;
}

static void trial(struct world *w, uint32_t victim, uint64_t place, int (*fn)(struct rank *r))
{
	uint32_t ranks = (uint32_t)atomic_load(&w->note[NOTE_RANKS]);
	bool is_death = place < NOWHERE && fn == steps;
	pid_t pids[WORLD_MAX];

	atomic_store(&w->note[NOTE_VICTIM], victim);
	atomic_store(&w->note[NOTE_PLACE], place);
	for (uint32_t i = 0; i < ranks; i++)
		pids[i] = world_fork(w, i, ranks, ranks, 0, fn);
	for (uint32_t i = 0; i < ranks; i++)
		assert_int_equal(world_reap(pids[i]), is_death && i == victim ? 1000 + SIGKILL : 0);
	world_free(w);
}

static void tokens_go_to_their_experts_and_their_sums_come_back(void **state)
{
	static const uint32_t topk[] = {1, 5, 16}, hidden[] = {16, 272, 1024};
	static const uint64_t format[] = {MC_EP_SAME, MC_EP_FP8, MC_EP_FP8_POW2,
					  MC_EP_FP8_POW2 | PACKED, MC_EP_SAME | DENSE};

	(void)state;
	for (uint32_t ranks = 1; ranks <= 4; ranks++)
		for (unsigned f = 0; f < MC_ARRAY_LEN(format); f++)
			trial(gpu_world(ranks, topk[(ranks + f) % 3], format[f],
					hidden[(ranks + f / 2) % 3]),
			      0, NOWHERE, steps);
	trial(gpu_world(8, 32, MC_EP_FP8, 272), 0, NOWHERE, steps);
}

static void a_rank_that_is_masked_gets_nothing_and_adds_nothing(void **state)
{
	struct world *w = gpu_world(3, 4, MC_EP_SAME, 272);

	(void)state;
	atomic_store(&w->note[NOTE_MASKED], 1u << 2);
	trial(w, 0, NOWHERE, steps);
}

static void a_rank_killed_anywhere_in_a_step_is_left_out_by_all_alike(void **state)
{
	(void)state;
	for (uint64_t place = BEFORE_DISPATCH; place < NOWHERE; place++)
		for (uint32_t victim = 0; victim < 3; victim++)
			trial(gpu_world(3, 4, victim % 2 ? MC_EP_FP8 : MC_EP_SAME, 272), victim,
			      place, steps);
}

/* ---- late ---- */

/* A step in which the victim comes to one half when the others have ended it. */
static int late_step(struct rank *r, struct gpu_rank *g)
{
	bool is_victim = note(r, NOTE_VICTIM) == r->rank,
	     is_combine = note(r, NOTE_PLACE) == BETWEEN;
	struct layer *l = &g->layer;
	uint32_t ranks = l->shape.ranks, ticks = ranks; /* of the step before */
	struct tokens t = tokens_of(&l->shape, r->rank, 0);
	int32_t active[WORLD_MAX];
	struct mc_ep_cuda_half *h;
	int rc;

	for (uint32_t q = 0; q < ranks; q++)
		active[q] = 1;
	l->shape.tokens = l->shape.tokens_max - r->rank;
	if (is_victim && !is_combine) {
		world_wait_ticks(r->w, ticks + 2 * (ranks - 1));
		/* The kernels find out, and the end says so. */
		WORLD_CHECK(!gpu_dispatch_begin(g, &t, NULL, MC_EP_NEVER, &h));
		WORLD_CHECK(gpu_dispatch_end(g, h, NULL) == -MC_E_STALE);
		WORLD_CHECK(strstr(l->diag.text, "left out"));
		WORLD_CHECK(gpu_dispatch_begin(g, &t, NULL, MC_EP_NEVER, &h) == -MC_E_STALE);
		tokens_free(&t);
		return 0;
	}
	WORLD_CHECK(!gpu_dispatch_begin(g, &t, active, is_combine ? MC_EP_NEVER : 1, &h));
	if (!is_combine) {
		world_tick(r->w);
		world_wait_ticks(r->w, ticks + ranks - 1);
	}
	WORLD_CHECK(!gpu_dispatch_end(g, h, active));
	WORLD_CHECK(is_agreed(r, LETHAL, 0, l->there) && layer_has_arrived(l, 0));
	WORLD_CHECK(!gpu_compute(g, false));
	if (is_victim) {
		world_wait_ticks(r->w, ticks + 2 * (ranks - 1));
		/* Told by the begin, if the half before saw it, too. */
		rc = gpu_combine_begin(g, false, NULL, MC_EP_NEVER, &h);
		WORLD_CHECK((rc ? rc : gpu_combine_end(g, h, NULL)) == -MC_E_STALE);
		tokens_free(&t);
		return 0;
	}
	WORLD_CHECK(!gpu_combine_begin(g, false, active, is_combine ? 1 : MC_EP_NEVER, &h));
	if (is_combine) {
		world_tick(r->w);
		world_wait_ticks(r->w, ticks + ranks - 1);
	}
	WORLD_CHECK(!gpu_combine_end(g, h, active));
	WORLD_CHECK(is_agreed(r, LETHAL, 1, l->back));
	WORLD_CHECK(l->back == mc_ep_cuda_members(g->ep) - (1ull << note(r, NOTE_VICTIM)));
	WORLD_CHECK(mc_ep_cuda_masked(g->ep) == 1ull << note(r, NOTE_VICTIM));
	WORLD_CHECK(active[note(r, NOTE_VICTIM)] == 0 && layer_is_right(l, &t));
	tokens_free(&t);
	world_tick(r->w);
	return 0;
}

static int late(struct rank *r)
{
	struct gpu_rank g;
	int rc;

	WORLD_CHECK(!open_rank(r, &g));
	WORLD_CHECK(!mc_ep_cuda_update(g.ep, &g.layer.diag));
	rc = one_step(r, &g, 0);
	if (rc == 0)
		rc = late_step(r, &g);
	/* All meet again, and it is in. */
	WORLD_CHECK(rc == 0 && !mc_ep_cuda_update(g.ep, &g.layer.diag));
	WORLD_CHECK(mc_ep_cuda_masked(g.ep) == 0);
	for (uint64_t step = 2; step < STEPS && rc == 0; step++)
		rc = one_step(r, &g, step);
	WORLD_CHECK(rc == 0 && g.layer.back == mc_ep_cuda_members(g.ep));
	return close_rank(r, &g);
}

static void a_late_rank_is_out_of_the_step_for_all_and_told_so(void **state)
{
	static const uint64_t places[] = {BEFORE_DISPATCH, BETWEEN};

	(void)state;
	for (uint32_t victim = 0; victim < 3; victim++)
		for (unsigned i = 0; i < MC_ARRAY_LEN(places); i++)
			trial(gpu_world(3, 6, MC_EP_FP8, 272), victim, places[i], late);
}

/* ---- replaced ---- */

#define TICKS_BEFORE 7 /* steps 0 to 2 of three ranks, of which one dies in step 1 */

static int replaced(struct rank *r)
{
	bool is_joiner = r->ranks == 0;
	struct gpu_rank g;
	int rc = 0;

	if (is_joiner) {
		world_tick(r->w);
		WORLD_CHECK(!mc_coll_join(r->coll, 30 * MC_NS_PER_S));
	}
	WORLD_CHECK(!open_rank(r, &g));
	if (!is_joiner)
		WORLD_CHECK(!mc_ep_cuda_update(g.ep, &g.layer.diag));
	for (uint64_t step = 0; step < 3 && rc == 0 && !is_joiner; step++)
		rc = one_step(r, &g, step);
	WORLD_CHECK(rc == 0);
	if (r->rank == 0) {
		world_wait_ticks(r->w, TICKS_BEFORE + 1);
		WORLD_CHECK(!mc_coll_activate(r->coll, 2, 0, 30 * MC_NS_PER_S, NULL));
		world_tick(r->w);
	}
	world_wait_ticks(r->w, TICKS_BEFORE + 2);
	WORLD_CHECK(is_joiner || g.layer.there == 5);
	WORLD_CHECK(!mc_ep_cuda_update(g.ep, &g.layer.diag));
	for (uint64_t step = 3; step < 6 && rc == 0; step++)
		rc = one_step(r, &g, step);
	WORLD_CHECK(rc == 0 && g.layer.there == 7 && g.layer.back == 7);
	return close_rank(r, &g);
}

static void a_replacement_is_in_after_all_have_met(void **state)
{
	(void)state;
	for (uint64_t place = BEFORE_DISPATCH; place < NOWHERE; place++) {
		struct world *w = gpu_world(3, 6, MC_EP_SAME, 272);
		pid_t pids[3];

		atomic_store(&w->note[NOTE_VICTIM], 1);
		atomic_store(&w->note[NOTE_PLACE], place);
		for (uint32_t q = 0; q < 3; q++)
			pids[q] = world_fork(w, q, 3, 3, 0, replaced);
		assert_int_equal(world_reap(pids[1]), 1000 + SIGKILL);
		pids[1] = world_fork(w, 1, 0, 3, 0, replaced);
		for (uint32_t q = 0; q < 3; q++)
			assert_int_equal(world_reap(pids[q]), 0);
		world_free(w);
	}
}

/* ---- wrong use ---- */

/* Rank 1 has a token for an expert that there is not: it is told, and the others go on. */
static int stray(struct rank *r)
{
	struct mc_ep_cuda_half *h;
	struct gpu_rank g;
	struct tokens t;

	WORLD_CHECK(!open_rank(r, &g));
	WORLD_CHECK(!mc_ep_cuda_update(g.ep, &g.layer.diag));
	WORLD_CHECK(!one_step(r, &g, 0));
	g.layer.shape.tokens = g.layer.shape.tokens_max - r->rank;
	t = tokens_of(&g.layer.shape, r->rank, 0);
	if (r->rank == 1)
		t.topk[4 * 3] = t.topk[4 * 3 + 1] = t.topk[4 * 3 + 2];
	if (r->rank == 1 && note(r, NOTE_PLACE) == 0)
		t.topk[4 * 3] = g.layer.shape.experts;
	WORLD_CHECK(!gpu_dispatch_begin(&g, &t, NULL, MC_EP_NEVER, &h));
	if (r->rank == 1) {
		WORLD_CHECK(gpu_dispatch_end(&g, h, NULL) == -MC_E_INVAL);
		WORLD_CHECK(strstr(g.layer.diag.text, "token 3"));
		WORLD_CHECK(gpu_dispatch_begin(&g, &t, NULL, MC_EP_NEVER, &h) == -MC_E_STALE);
	} else {
		WORLD_CHECK(!gpu_dispatch_end(&g, h, NULL));
		WORLD_CHECK(g.layer.there == (mc_ep_cuda_members(g.ep) & ~2ull));
		WORLD_CHECK(layer_has_arrived(&g.layer, 0));
	}
	tokens_free(&t);
	WORLD_CHECK(!mc_ep_cuda_update(g.ep, &g.layer.diag));
	WORLD_CHECK(!one_step(r, &g, 3));
	return close_rank(r, &g);
}

static void a_token_for_no_expert_is_told_and_nobody_else_suffers(void **state)
{
	(void)state;
	for (uint64_t how = 0; how < 2; how++)
		trial(gpu_world(3, 4, MC_EP_SAME, 272), 9, how, stray);
}

/* Ranks of different shapes: both are told, sums are no numbers. */
static int differing(struct rank *r)
{
	struct mc_ep_cuda_half *h;
	struct gpu_rank g;
	struct tokens t;

	WORLD_CHECK(!open_rank(r, &g));
	WORLD_CHECK(!mc_ep_cuda_update(g.ep, &g.layer.diag));
	WORLD_CHECK(!one_step(r, &g, 0));
	g.layer.shape.tokens = 4;
	t = tokens_of(&g.layer.shape, r->rank, 0);
	WORLD_CHECK(!gpu_dispatch_begin(&g, &t, NULL, MC_EP_NEVER, &h));
	WORLD_CHECK(!gpu_dispatch_end(&g, h, NULL));
	g.layer.shape.tokens_max -= r->rank;
	WORLD_CHECK(!gpu_combine_begin(&g, false, NULL, MC_EP_NEVER, &h));
	WORLD_CHECK(gpu_combine_end(&g, h, NULL) == -MC_E_INVAL);
	WORLD_CHECK(strstr(g.layer.diag.text, "another call"));
	for (uint32_t i = 0; i < 4 * g.layer.shape.hidden; i++)
		WORLD_CHECK((g.layer.out[i] & 0x7fff) > 0x7f80);
	/* Told once. */
	WORLD_CHECK(!mc_ep_cuda_result(g.ep, true, &g.layer.diag, NULL));
	g.layer.shape.tokens_max += r->rank;
	tokens_free(&t);
	return close_rank(r, &g);
}

static void ranks_that_differ_are_told(void **state)
{
	(void)state;
	trial(gpu_world(2, 4, MC_EP_SAME, 272), 9, NOWHERE, differing);
}

/* What can be seen without the GPU is refused at once. */
static int refused(struct rank *r)
{
	struct mc_ep_patience ever = {NULL, MC_EP_NEVER};
	struct mc_ep_cuda_half *h[3], *none;
	struct mc_ep_cuda *other;
	struct gpu_rank g;
	struct tokens t;

	WORLD_CHECK(!open_rank(r, &g));
	t = tokens_of(&g.layer.shape, r->rank, 0);
	g.layer.shape.tokens = 4;
	WORLD_CHECK(mc_ep_cuda_open(r->coll, 99, 1, &g.layer.diag, &other) == -MC_E_INVAL);
	WORLD_CHECK(mc_ep_cuda_open(r->coll, 0, 0, &g.layer.diag, &other) == -MC_E_INVAL);
	WORLD_CHECK(gpu_dispatch_begin(&g, &t, NULL, MC_EP_NEVER, &none) == -MC_E_STALE);
	WORLD_CHECK(!mc_ep_cuda_update(g.ep, &g.layer.diag));
	for (unsigned i = 0; i < 2; i++)
		WORLD_CHECK(!gpu_dispatch_begin(&g, &t, NULL, MC_EP_NEVER, &h[i]));
	WORLD_CHECK(gpu_dispatch_begin(&g, &t, NULL, MC_EP_NEVER, &none) == -MC_E_BUSY);
	mc_ep_cuda_half_free(h[0]);
	WORLD_CHECK(mc_ep_cuda_result(g.ep, false, &g.layer.diag, NULL) == -MC_E_CANCELED);
	WORLD_CHECK(!gpu_dispatch_end(&g, h[1], NULL) && layer_has_arrived(&g.layer, 0) == false);
	g.layer.shape.tokens_max = 1u << 20;
	WORLD_CHECK(gpu_dispatch_begin(&g, &t, NULL, MC_EP_NEVER, &none) == -MC_E_TOO_BIG);
	WORLD_CHECK(strstr(g.layer.diag.text, "slots have"));
	g.layer.shape.tokens_max = 40;
	WORLD_CHECK(mc_ep_cuda_combine_begin(g.ep, &g.layer.shape, (void *)8, false, NULL, NULL,
					     &ever, NULL, &g.layer.diag, &none) == -MC_E_INVAL);
	tokens_free(&t);
	return close_rank(r, &g);
}

static void wrong_use_is_refused(void **state)
{
	(void)state;
	trial(gpu_world(1, 4, MC_EP_SAME, 272), 9, NOWHERE, refused);
}

/* ---- bits ---- */

/* Every bf16 there is, as one rank's row to itself: codes and scales are those of rows.c. */
static int all_numbers(struct rank *r)
{
	struct mc_ep_cuda_half *h;
	struct gpu_rank g;
	struct tokens t;

	WORLD_CHECK(!open_rank(r, &g));
	WORLD_CHECK(!mc_ep_cuda_update(g.ep, &g.layer.diag));
	for (uint32_t round = 0; round < 2; round++) {
		t = tokens_of(&g.layer.shape, 0, 0);
		g.layer.shape.tokens = 40;
		for (uint32_t i = 0; i < 40u * 1024; i++) {
			uint32_t bits = round * 40u * 1024 + i;

			/* NaNs keep no bits. */
			t.rows[i] = (bits & 0x7fff) > 0x7f80 ? 0 : (uint16_t)bits;
		}
		WORLD_CHECK(!gpu_dispatch_begin(&g, &t, NULL, MC_EP_NEVER, &h));
		WORLD_CHECK(!gpu_dispatch_end(&g, h, NULL));
		for (uint32_t e = 0; e < g.layer.le; e++)
			for (uint32_t i = 0; i < (uint32_t)g.layer.got.counts[e]; i++) {
				uint64_t place = e * g.layer.room + i;
				uint32_t token = (uint32_t)g.layer.got.tokens[place];

				WORLD_CHECK(gpu_row_is(&g, e, i, t.rows + token * 1024ull));
			}
		tokens_free(&t);
	}
	return close_rank(r, &g);
}

static void every_number_becomes_the_code_that_the_processor_makes(void **state)
{
	static const uint64_t format[] = {MC_EP_FP8, MC_EP_FP8_POW2, MC_EP_FP8_POW2 | PACKED};

	(void)state;
	for (unsigned f = 0; f < MC_ARRAY_LEN(format); f++)
		trial(gpu_world(1, 4, format[f], 1024), 9, NOWHERE, all_numbers);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(tokens_go_to_their_experts_and_their_sums_come_back),
	    cmocka_unit_test(every_number_becomes_the_code_that_the_processor_makes),
	    cmocka_unit_test(a_rank_that_is_masked_gets_nothing_and_adds_nothing),
	    cmocka_unit_test(a_rank_killed_anywhere_in_a_step_is_left_out_by_all_alike),
	    cmocka_unit_test(a_late_rank_is_out_of_the_step_for_all_and_told_so),
	    cmocka_unit_test(a_replacement_is_in_after_all_have_met),
	    cmocka_unit_test(a_token_for_no_expert_is_told_and_nobody_else_suffers),
	    cmocka_unit_test(ranks_that_differ_are_told),
	    cmocka_unit_test(wrong_use_is_refused),
	};

	is_there = gpu_is_there();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
