/*
 * ep_test.c: a layer of experts across processes, of which some die, are late, or are replaced.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../coll/world.h"
#include "base/clock.h"
#include "base/mem.h"
#include "base/rand.h"
#include "coll/priv.h"
#include "ep/net.h"
#include "layer.h"

#define STEPS 4
#define LETHAL 1 /* the step in which somebody dies or is late */

enum {
	NOTE_VICTIM,
	NOTE_PLACE,
	NOTE_TOPK,
	NOTE_MASKED,
	NOTE_FORMAT, /* enum mc_ep_format; + PACKED, + DENSE */
	NOTE_RANKS,
	NOTE_STEPS, /* 0: STEPS */
	NOTE_SEEN,  /* by half: who was in it */
};
#define PACKED 8
#define DENSE 16
/* Where in a step. */
enum { BEFORE_DISPATCH, BEFORE_TAKING, BETWEEN, BEFORE_RETURN, NOWHERE };

static uint64_t note(struct rank *r, unsigned which)
{
	return atomic_load(&r->w->note[which]);
}

static struct mc_ep_shape shape_of(struct rank *r)
{
	uint32_t ranks = (uint32_t)note(r, NOTE_RANKS);

	return (struct mc_ep_shape){.ranks = ranks,
				    .experts = 16 * ranks,
				    .hidden = 16 * 17,
				    .topk = (uint32_t)note(r, NOTE_TOPK),
				    .tokens_max = 40,
				    .align = note(r, NOTE_FORMAT) & DENSE ? 8 : 0};
}

static void die_at(struct rank *r, uint64_t step, uint64_t place)
{
	if (step == LETHAL && note(r, NOTE_VICTIM) == r->rank && note(r, NOTE_PLACE) == place)
		(void)kill(getpid(), SIGKILL);
}

/* Everyone who ends this half must see the same ranks in it. */
static bool is_agreed(struct rank *r, uint64_t step, unsigned half, uint64_t ranks)
{
	uint64_t seen = 0;

	return atomic_compare_exchange_strong(&r->w->note[NOTE_SEEN + step * 2 + half], &seen,
					      ranks) ||
	       seen == ranks;
}

static int open_layer(struct rank *r, struct layer *l)
{
	uint64_t format = note(r, NOTE_FORMAT);
	struct mc_ep_shape shape = shape_of(r);
	struct mc_diag diag = {0};
	struct mc_ep *ep;

	WORLD_CHECK(!mc_ep_open(r->coll, &diag, &ep));
	*l = layer_of(ep, &shape, r->rank, format & 3, format & PACKED);
	return 0;
}

static void close_layer(struct layer *l)
{
	mc_ep_close(l->ep);
	layer_free(l);
}

static int one_step(struct rank *r, struct layer *l, uint64_t step)
{
	struct tokens t = tokens_of(&l->shape, r->rank, step);
	uint64_t masked = note(r, NOTE_MASKED);
	/* Who is masked gets and gives nothing, on either side. */
	uint64_t others = masked >> r->rank & 1 ? 1ull << r->rank : ~masked;
	int32_t active[WORLD_MAX];
	struct mc_ep_patience patience = {active, MC_EP_NEVER};
	uint16_t *own = l->rows;
	struct mc_ep_half *h;

	l->shape.tokens = r->rank == 1 && step % 2 == 1 ? 0 : l->shape.tokens_max - r->rank;
	for (uint32_t q = 0; q < l->shape.ranks; q++)
		active[q] = others >> q & 1;
	die_at(r, step, BEFORE_DISPATCH);
	WORLD_CHECK(!layer_dispatch_begin(l, &t, &patience, &h));
	die_at(r, step, BEFORE_TAKING);
	WORLD_CHECK(!layer_dispatch_end(l, h));
	WORLD_CHECK(masked || is_agreed(r, step, 0, l->there));
	WORLD_CHECK(layer_has_arrived(l, step));
	die_at(r, step, BETWEEN);
	/* Now and then straight to where the others read. */
	if (step % 3 == 2 && !l->shape.align)
		WORLD_CHECK(!mc_ep_combine_rows(l->ep, &l->shape, &patience, &l->diag, &l->rows));
	layer_compute(l);
	WORLD_CHECK(!layer_combine_begin(l, &t, step & 1, &patience, &h));
	die_at(r, step, BEFORE_RETURN);
	WORLD_CHECK(!layer_combine_end(l, &t, h));
	l->rows = own;
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
	uint64_t count = note(r, NOTE_STEPS) ? note(r, NOTE_STEPS) : STEPS;
	struct layer l;
	int rc = open_layer(r, &l);

	WORLD_CHECK(rc == 0);
	WORLD_CHECK(!mc_ep_update(l.ep, &l.diag));
	for (uint64_t step = 0; step < count && rc == 0; step++)
		rc = one_step(r, &l, step);
	if (rc == 0 && note(r, NOTE_PLACE) < NOWHERE)
		WORLD_CHECK(!(l.there >> note(r, NOTE_VICTIM) & 1));
	close_layer(&l);
	return rc;
}

/* How many hosts the ranks of a test are on; 0: one, where they share memory. */
static uint32_t hosts_of(void **state)
{
	return *state ? *(const uint32_t *)*state : 0;
}

static struct world *layer_world(void **state, uint32_t ranks, uint32_t topk, uint64_t format)
{
	struct world *w = world_make(1);

	w->hosts = hosts_of(state);
	atomic_store(&w->note[NOTE_RANKS], ranks);
	atomic_store(&w->note[NOTE_TOPK], topk);
	atomic_store(&w->note[NOTE_FORMAT], format);
	atomic_store(&w->note[NOTE_PLACE], NOWHERE);
	return w;
}

static void trial(struct world *w, uint32_t ranks, uint32_t victim, uint64_t place)
{
	pid_t pids[WORLD_MAX];

	atomic_store(&w->note[NOTE_VICTIM], victim);
	atomic_store(&w->note[NOTE_PLACE], place);
	for (uint32_t i = 0; i < ranks; i++)
		pids[i] = world_fork(w, i, ranks, ranks, 0, steps);
	for (uint32_t i = 0; i < ranks; i++)
		assert_int_equal(world_reap(pids[i]),
				 place < NOWHERE && i == victim ? 1000 + SIGKILL : 0);
	world_free(w);
}

static void tokens_go_to_their_experts_and_their_sums_come_back(void **state)
{
	static const uint32_t topk[] = {1, 5, 16};
	static const uint64_t format[] = {MC_EP_SAME, MC_EP_FP8, MC_EP_FP8_POW2,
					  MC_EP_FP8_POW2 | PACKED, MC_EP_SAME | DENSE};

	for (uint32_t ranks = 1; ranks <= 4; ranks++)
		for (unsigned f = 0; f < MC_ARRAY_LEN(format); f++)
			trial(layer_world(state, ranks, topk[(ranks + f) % 3], format[f]), ranks, 0,
			      NOWHERE);
	trial(layer_world(state, 8, 32, MC_EP_FP8), 8, 0, NOWHERE);
}

static void a_rank_that_is_masked_gets_nothing_and_adds_nothing(void **state)
{
	struct world *w = layer_world(state, 3, 4, MC_EP_SAME);

	atomic_store(&w->note[NOTE_MASKED], 1u << 2);
	trial(w, 3, 0, NOWHERE);
}

static void a_rank_killed_anywhere_in_a_step_is_left_out_by_all_alike(void **state)
{
	for (uint32_t ranks = 2; ranks <= 4; ranks++)
		for (uint64_t place = BEFORE_DISPATCH; place < NOWHERE; place++)
			for (uint32_t victim = 0; victim < ranks; victim++)
				trial(layer_world(state, ranks, 4,
						  victim % 2 ? MC_EP_FP8 : MC_EP_SAME),
				      ranks, victim, place);
}

/* ---- killed at any moment ---- */

static void a_rank_killed_at_any_moment_is_left_out_by_all_alike(void **state)
{
	struct mc_rand rng;

	mc_rand_seed(&rng, 7);
	for (unsigned i = 0; i < 24; i++) {
		struct world *w = layer_world(state, 3, 8, i % 2 ? MC_EP_FP8 : MC_EP_SAME);
		uint32_t victim = i % 3;
		pid_t pids[3];
		int how;

		atomic_store(&w->note[NOTE_STEPS], 24);
		for (uint32_t q = 0; q < 3; q++)
			pids[q] = world_fork(w, q, 3, 3, 0, steps);
		world_wait_ticks(w, 1 + (uint32_t)mc_rand_below(&rng, 40));
		(void)kill(pids[victim], SIGKILL);
		for (uint32_t q = 0; q < 3; q++) {
			how = world_reap(pids[q]);
			assert_true(how == 0 || (q == victim && how == 1000 + SIGKILL));
		}
		world_free(w);
	}
}

/* ---- late ---- */

/* Over hosts what was shown takes its time. */
static struct mc_ep_patience none_left(const struct rank *r, int32_t *active, uint32_t ranks)
{
	for (uint32_t q = 0; q < ranks; q++)
		active[q] = 1;
	return (struct mc_ep_patience){active, r->w->hosts ? MC_NS_PER_S / 2 : 1};
}

/* Everyone but the victim has shown its half. */
static void all_but_one_are_here(struct rank *r, uint32_t ticks)
{
	world_tick(r->w);
	world_wait_ticks(r->w, ticks);
}

/* A step in which the victim comes to one half when the others have ended it. It is told so when it
 * begins; over hosts perhaps only when it ends. */
static int late_step(struct rank *r, struct layer *l, bool is_victim)
{
	bool is_combine = note(r, NOTE_PLACE) == BETWEEN;
	uint32_t ranks = l->shape.ranks, ticks = ranks; /* of the step before */
	struct tokens t = tokens_of(&l->shape, r->rank, 0);
	struct mc_ep_patience ever = {NULL, MC_EP_NEVER}, brief;
	int32_t active[WORLD_MAX];
	struct mc_ep_half *h;
	int rc;

	brief = none_left(r, active, ranks);
	l->shape.tokens = l->shape.tokens_max - r->rank;
	if (is_victim && !is_combine)
		world_wait_ticks(r->w, ticks + 2 * (ranks - 1));
	if (is_victim && !is_combine) {
		rc = layer_dispatch_begin(l, &t, &ever, &h);
		if (rc == 0 && r->w->hosts)
			rc = layer_dispatch_end(l, h);
		WORLD_CHECK(rc == -MC_E_STALE && strstr(l->diag.text, "left out"));
		tokens_free(&t);
		return 0;
	}
	WORLD_CHECK(!layer_dispatch_begin(l, &t, is_combine ? &ever : &brief, &h));
	if (!is_combine)
		all_but_one_are_here(r, ticks + ranks - 1);
	WORLD_CHECK(!layer_dispatch_end(l, h));
	WORLD_CHECK(is_agreed(r, LETHAL, 0, l->there));
	WORLD_CHECK(layer_has_arrived(l, 0));
	layer_compute(l);
	if (is_victim) {
		world_wait_ticks(r->w, ticks + 2 * (ranks - 1));
		rc = layer_combine_begin(l, &t, false, &ever, &h);
		if (rc == 0 && r->w->hosts)
			rc = layer_combine_end(l, &t, h);
		WORLD_CHECK(rc == -MC_E_STALE && strstr(l->diag.text, "left out"));
		tokens_free(&t);
		return 0;
	}
	WORLD_CHECK(!layer_combine_begin(l, &t, false, is_combine ? &brief : &ever, &h));
	if (is_combine)
		all_but_one_are_here(r, ticks + ranks - 1);
	WORLD_CHECK(!layer_combine_end(l, &t, h));
	WORLD_CHECK(is_agreed(r, LETHAL, 1, l->back));
	WORLD_CHECK(l->back == mc_ep_members(l->ep) - (1ull << note(r, NOTE_VICTIM)));
	WORLD_CHECK(mc_ep_masked(l->ep) == 1ull << note(r, NOTE_VICTIM));
	WORLD_CHECK(active[note(r, NOTE_VICTIM)] == 0 && layer_is_right(l, &t));
	tokens_free(&t);
	world_tick(r->w);
	return 0;
}

static int late(struct rank *r)
{
	struct layer l;
	int rc;

	WORLD_CHECK(!open_layer(r, &l));
	WORLD_CHECK(!mc_ep_update(l.ep, &l.diag));
	rc = one_step(r, &l, 0);
	if (rc == 0)
		rc = late_step(r, &l, note(r, NOTE_VICTIM) == r->rank);
	/* All meet again, and it is in. */
	WORLD_CHECK(rc == 0 && !mc_ep_update(l.ep, &l.diag));
	for (uint64_t step = 2; step < STEPS && rc == 0; step++)
		rc = one_step(r, &l, step);
	WORLD_CHECK(rc == 0 && l.back == mc_ep_members(l.ep));
	close_layer(&l);
	return 0;
}

static void a_late_rank_is_out_of_the_step_for_all_and_told_so(void **state)
{
	static const uint64_t places[] = {BEFORE_DISPATCH, BETWEEN};

	/* Of two ranks one goes on because the other says that it is out. */
	for (uint32_t i = 0; i < 2 * (2 + 3); i++) {
		uint32_t ranks = i < 4 ? 2 : 3;
		struct world *w = layer_world(state, ranks, 6, MC_EP_FP8);
		pid_t pids[3];

		atomic_store(&w->note[NOTE_VICTIM], (i < 4 ? i : i - 4) / 2);
		atomic_store(&w->note[NOTE_PLACE], places[i % 2]);
		for (uint32_t q = 0; q < ranks; q++)
			pids[q] = world_fork(w, q, ranks, ranks, 0, late);
		for (uint32_t q = 0; q < ranks; q++)
			assert_int_equal(world_reap(pids[q]), 0);
		world_free(w);
	}
}

/* ---- replaced ---- */

#define TICKS_BEFORE 7 /* steps 0 to 2 of three ranks, of which one dies in step 1 */

static int replaced(struct rank *r)
{
	bool is_joiner = r->ranks == 0;
	struct layer l;
	int rc = 0;

	if (is_joiner) {
		world_tick(r->w);
		WORLD_CHECK(!mc_coll_join(r->coll, 30 * MC_NS_PER_S));
	}
	WORLD_CHECK(!open_layer(r, &l));
	if (!is_joiner)
		WORLD_CHECK(!mc_ep_update(l.ep, &l.diag));
	for (uint64_t step = 0; step < 3 && rc == 0 && !is_joiner; step++)
		rc = one_step(r, &l, step);
	WORLD_CHECK(rc == 0);
	if (r->rank == 0) {
		world_wait_ticks(r->w, TICKS_BEFORE + 1);
		WORLD_CHECK(!mc_coll_activate(r->coll, 2, 0, 30 * MC_NS_PER_S, NULL));
		world_tick(r->w);
	}
	world_wait_ticks(r->w, TICKS_BEFORE + 2);
	WORLD_CHECK(is_joiner || l.there == 5);
	WORLD_CHECK(!mc_ep_update(l.ep, &l.diag));
	for (uint64_t step = 3; step < 6 && rc == 0; step++)
		rc = one_step(r, &l, step);
	WORLD_CHECK(rc == 0 && l.there == 7 && l.back == 7);
	close_layer(&l);
	return 0;
}

static void a_replacement_is_in_after_all_have_met(void **state)
{
	for (uint64_t place = BEFORE_DISPATCH; place < NOWHERE; place++) {
		struct world *w = layer_world(state, 3, 6, MC_EP_SAME);
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

/* ---- a connection is lost ---- */

/* Halves until one goes wrong. @return its error */
static int halves_until_one_fails(struct rank *r, struct layer *l, uint64_t timeout_ns)
{
	struct mc_ep_patience patience = {NULL, timeout_ns};
	struct tokens t = tokens_of(&l->shape, r->rank, 0);
	struct mc_ep_half *h;
	int rc = 0;

	l->shape.tokens = l->shape.tokens_max - r->rank;
	while (rc == 0 && mc_ep_masked(l->ep) == 0) {
		rc = layer_dispatch_begin(l, &t, &patience, &h);
		if (rc == 0)
			rc = layer_dispatch_end(l, h);
	}
	tokens_free(&t);
	return rc;
}

/* The ranks 0 and 1 hear nothing of each other any more, of 2 they do. */
static int cut(struct rank *r, struct layer *l)
{
	WORLD_CHECK(!open_layer(r, l));
	WORLD_CHECK(!mc_ep_update(l->ep, &l->diag));
	WORLD_CHECK(!one_step(r, l, 0));
	world_wait_ticks(r->w, l->shape.ranks);
	if (r->rank == 1)
		(void)shutdown(l->ep->net->link[0].conn.fd, SHUT_RDWR);
	return 0;
}

static int meet_again(struct rank *r, struct layer *l)
{
	WORLD_CHECK(!mc_ep_update(l->ep, &l->diag));
	WORLD_CHECK(!one_step(r, l, 2));
	WORLD_CHECK(l->back == mc_ep_members(l->ep));
	close_layer(l);
	return 0;
}

static int cut_for_ever(struct rank *r)
{
	struct layer l;

	WORLD_CHECK(!cut(r, &l));
	WORLD_CHECK(halves_until_one_fails(r, &l, MC_EP_NEVER) == -MC_E_STALE);
	WORLD_CHECK(strstr(l.diag.text, "ranks 0 and 1 have lost their connection"));
	WORLD_CHECK(mc_ep_masked(l.ep) == 0);
	return meet_again(r, &l);
}

static void nobody_alive_is_left_out_for_a_lost_connection(void **state)
{
	for (uint32_t ranks = 2; ranks <= 3; ranks++) {
		struct world *w = layer_world(state, ranks, 6, MC_EP_SAME);
		pid_t pids[3];

		for (uint32_t q = 0; q < ranks; q++)
			pids[q] = world_fork(w, q, ranks, ranks, 0, cut_for_ever);
		/* Of two ranks the other has to hear it of the network, too. */
		for (uint32_t q = 0; q < ranks; q++)
			assert_int_equal(world_reap(pids[q]), 0);
		world_free(w);
	}
}

static int cut_for_a_while(struct rank *r)
{
	struct layer l;
	int rc;

	WORLD_CHECK(!cut(r, &l));
	rc = halves_until_one_fails(r, &l, MC_NS_PER_S / 4);
	/* Two go on; the third, which is 0 or 1, is told so. */
	WORLD_CHECK(rc == 0 || (rc == -MC_E_STALE && strstr(l.diag.text, "left out")));
	WORLD_CHECK(r->rank < 2 || rc == 0);
	if (rc == 0) {
		WORLD_CHECK(is_agreed(r, 1, 0, l.there));
		world_tick(r->w);
	}
	world_wait_ticks(r->w, 3 + 2);
	return meet_again(r, &l);
}

static void where_callers_do_not_wait_one_without_a_connection_is_left_out_by_all(void **state)
{
	struct world *w = layer_world(state, 3, 6, MC_EP_SAME);
	pid_t pids[3];

	for (uint32_t q = 0; q < 3; q++)
		pids[q] = world_fork(w, q, 3, 3, 0, cut_for_a_while);
	for (uint32_t q = 0; q < 3; q++)
		assert_int_equal(world_reap(pids[q]), 0);
	world_free(w);
}

/* ---- a meeting fails ---- */

static int meeting_fails(struct rank *r)
{
	struct mc_coll_op barrier = {.kind = MC_COLL_BARRIER};
	struct mc_ep_patience ever = {NULL, MC_EP_NEVER};
	struct mc_ep_half *before, *h;
	struct tokens t;
	struct layer l;

	WORLD_CHECK(!open_layer(r, &l));
	WORLD_CHECK(!mc_ep_update(l.ep, &l.diag));
	t = tokens_of(&l.shape, r->rank, 0);
	l.shape.tokens = l.shape.tokens_max - r->rank;
	WORLD_CHECK(!layer_dispatch_begin(&l, &t, &ever, &before));
	if (r->rank == 0) {
		WORLD_CHECK(mc_coll_run(r->coll, &barrier, NULL) == -MC_E_INVAL);
		mc_ep_half_free(before);
	} else {
		WORLD_CHECK(mc_ep_update(l.ep, &l.diag) == -MC_E_INVAL);
		WORLD_CHECK(mc_ep_members(l.ep) == 0 && mc_ep_masked(l.ep) == 0);
		WORLD_CHECK(layer_dispatch_begin(&l, &t, &ever, &h) == -MC_E_STALE);
		WORLD_CHECK(strstr(l.diag.text, "meet again"));
		WORLD_CHECK(layer_dispatch_end(&l, before) == -MC_E_STALE);
	}
	tokens_free(&t);
	WORLD_CHECK(!mc_ep_update(l.ep, &l.diag));
	for (uint64_t step = 0; step < 2; step++)
		WORLD_CHECK(!one_step(r, &l, step));
	WORLD_CHECK(l.back == mc_ep_members(l.ep) && l.back == 7);
	close_layer(&l);
	return 0;
}

static void after_a_meeting_that_failed_there_are_no_members_until_all_meet_again(void **state)
{
	struct world *w = layer_world(state, 3, 6, MC_EP_SAME);
	pid_t pids[3];

	for (uint32_t q = 0; q < 3; q++)
		pids[q] = world_fork(w, q, 3, 3, 0, meeting_fails);
	for (uint32_t q = 0; q < 3; q++)
		assert_int_equal(world_reap(pids[q]), 0);
	world_free(w);
}

/* ---- closed ---- */

static uint64_t memory_of(struct rank *r)
{
	struct stat st = {0};

	(void)fstat(r->coll->fd, &st);
	return (uint64_t)st.st_blocks * 512;
}

/* Rank 0 is done and gone while rank 1 still has to read what it showed. */
static int read_after_close(struct rank *r)
{
	struct mc_ep_patience ever = {NULL, MC_EP_NEVER};
	struct mc_ep_half *h;
	struct tokens t;
	struct layer l;
	uint64_t rest;

	WORLD_CHECK(!open_layer(r, &l));
	WORLD_CHECK(!mc_ep_update(l.ep, &l.diag));
	rest = memory_of(r);
	l.shape.tokens = l.shape.tokens_max - r->rank;
	t = tokens_of(&l.shape, r->rank, 0);
	WORLD_CHECK(!layer_dispatch_begin(&l, &t, &ever, &h));
	world_tick(r->w);
	if (r->rank == 0) {
		WORLD_CHECK(!layer_dispatch_end(&l, h));
		close_layer(&l);
		WORLD_CHECK(memory_of(r) > rest);
		world_tick(r->w);
		world_wait_ticks(r->w, 4);
		while (memory_of(r) > rest) /* or the test's time ends */
			world_pause(10 * MC_NS_PER_MS);
	} else {
		world_wait_ticks(r->w, 3);
		WORLD_CHECK(!layer_dispatch_end(&l, h));
		WORLD_CHECK(layer_has_arrived(&l, 0));
		world_tick(r->w);
		close_layer(&l);
		WORLD_CHECK(memory_of(r) <= rest); /* nobody reads it */
	}
	tokens_free(&t);
	return 0;
}

static void what_is_still_read_is_given_back_when_the_last_reader_is_done(void **state)
{
	struct world *w = layer_world(state, 2, 4, MC_EP_SAME);
	pid_t pids[2];

	for (uint32_t q = 0; q < 2; q++)
		pids[q] = world_fork(w, q, 2, 2, 0, read_after_close);
	for (uint32_t q = 0; q < 2; q++)
		assert_int_equal(world_reap(pids[q]), 0);
	world_free(w);
}

/* ---- wrong use ---- */

static const struct mc_ep_shape small = {
    .ranks = 1, .experts = 4, .hidden = 16, .topk = 2, .tokens_max = 1, .tokens = 1};

static int wrong(struct rank *r)
{
	struct mc_ep_shape bad[] = {small, small, small, small, small};
	const uint16_t row[16] = {0};
	const int64_t wrong[][2] = {{0, 4}, {1, 1}, {-2, 0}}, right[2] = {0, -1};
	const struct mc_ep_rows rows = {.elem_bytes = 2, .rows = row};
	const struct mc_ep_patience ever = {NULL, MC_EP_NEVER};
	struct mc_ep_half *h[3];
	struct mc_diag diag = {0};
	struct mc_ep *ep;

	bad[0].hidden = 24;
	bad[1].topk = 33;
	bad[2].tokens = 2;
	bad[3].experts = 0;
	bad[4].ranks = 2;
	WORLD_CHECK(!mc_ep_open(r->coll, &diag, &ep));
	/* Nobody has met. */
	WORLD_CHECK(mc_ep_dispatch_begin(ep, &small, &rows, right, &ever, &diag, &h[0]) ==
		    -MC_E_STALE);
	WORLD_CHECK(!mc_ep_update(ep, &diag));
	for (unsigned i = 0; i < MC_ARRAY_LEN(bad); i++)
		WORLD_CHECK(mc_ep_dispatch_begin(ep, &bad[i], &rows, right, &ever, &diag, &h[0]) ==
			    -MC_E_INVAL);
	for (unsigned i = 0; i < MC_ARRAY_LEN(wrong); i++) {
		diag.text[0] = 0;
		WORLD_CHECK(mc_ep_dispatch_begin(ep, &small, &rows, wrong[i], &ever, &diag,
						 &h[0]) == -MC_E_INVAL);
		WORLD_CHECK(strstr(diag.text, "token 0"));
	}
	/* Two are under way; an end makes room, also by giving up. */
	for (unsigned i = 0; i < 2; i++)
		WORLD_CHECK(!mc_ep_dispatch_begin(ep, &small, &rows, right, &ever, &diag, &h[i]));
	WORLD_CHECK(mc_ep_dispatch_begin(ep, &small, &rows, right, &ever, &diag, &h[2]) ==
		    -MC_E_BUSY);
	mc_ep_half_free(h[0]);
	WORLD_CHECK(!mc_ep_dispatch_begin(ep, &small, &rows, right, &ever, &diag, &h[2]));
	/* What had begun before all met is void. */
	WORLD_CHECK(!mc_ep_update(ep, &diag));
	WORLD_CHECK(mc_ep_dispatch_end(h[1], NULL, &diag, NULL) == -MC_E_STALE);
	mc_ep_half_free(h[2]);
	mc_ep_close(ep);
	return 0;
}

static void what_does_not_fit_is_refused_and_named(void **state)
{
	(void)state;
	world_run(1, 0, wrong);
}

static int differ(struct rank *r)
{
	const uint16_t row[32] = {0};
	const int64_t topk[2] = {0, 1};
	const struct mc_ep_rows rows = {.elem_bytes = 2, .rows = row};
	const struct mc_ep_patience ever = {NULL, MC_EP_NEVER};
	struct mc_ep_shape shape = small;
	struct mc_ep_arrived out = {0};
	struct mc_ep_half *h;
	struct mc_diag diag = {0};
	struct mc_ep *ep;

	shape.ranks = 2;
	shape.hidden = 16 + 16 * r->rank;
	WORLD_CHECK(!mc_ep_open(r->coll, &diag, &ep));
	WORLD_CHECK(!mc_ep_update(ep, &diag));
	WORLD_CHECK(!mc_ep_dispatch_begin(ep, &shape, &rows, topk, &ever, &diag, &h));
	WORLD_CHECK(mc_ep_dispatch_end(h, &out, &diag, NULL) == -MC_E_INVAL);
	WORLD_CHECK(strstr(diag.text, "rows of 16") && strstr(diag.text, "rows of 32"));
	mc_ep_close(ep);
	return 0;
}

static void ranks_that_call_different_things_are_told_so(void **state)
{
	(void)state;
	world_run_on(hosts_of(state), 2, 0, differ);
}

int main(void)
{
	static uint32_t two = 2;
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(tokens_go_to_their_experts_and_their_sums_come_back),
	    cmocka_unit_test(a_rank_that_is_masked_gets_nothing_and_adds_nothing),
	    cmocka_unit_test(a_rank_killed_anywhere_in_a_step_is_left_out_by_all_alike),
	    cmocka_unit_test(a_rank_killed_at_any_moment_is_left_out_by_all_alike),
	    cmocka_unit_test(a_late_rank_is_out_of_the_step_for_all_and_told_so),
	    cmocka_unit_test(a_replacement_is_in_after_all_have_met),
	    cmocka_unit_test_prestate(tokens_go_to_their_experts_and_their_sums_come_back, &two),
	    cmocka_unit_test_prestate(a_rank_that_is_masked_gets_nothing_and_adds_nothing, &two),
	    cmocka_unit_test_prestate(a_rank_killed_anywhere_in_a_step_is_left_out_by_all_alike,
				      &two),
	    cmocka_unit_test_prestate(a_rank_killed_at_any_moment_is_left_out_by_all_alike, &two),
	    cmocka_unit_test_prestate(a_late_rank_is_out_of_the_step_for_all_and_told_so, &two),
	    cmocka_unit_test_prestate(a_replacement_is_in_after_all_have_met, &two),
	    cmocka_unit_test_prestate(ranks_that_call_different_things_are_told_so, &two),
	    cmocka_unit_test(after_a_meeting_that_failed_there_are_no_members_until_all_meet_again),
	    cmocka_unit_test_prestate(
		after_a_meeting_that_failed_there_are_no_members_until_all_meet_again, &two),
	    cmocka_unit_test_prestate(nobody_alive_is_left_out_for_a_lost_connection, &two),
	    cmocka_unit_test_prestate(
		where_callers_do_not_wait_one_without_a_connection_is_left_out_by_all, &two),
	    cmocka_unit_test(what_is_still_read_is_given_back_when_the_last_reader_is_done),
	    cmocka_unit_test(what_does_not_fit_is_refused_and_named),
	    cmocka_unit_test(ranks_that_call_different_things_are_told_so),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
