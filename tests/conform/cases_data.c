/*
 * cases_data.c: bytes arrive, all of them, only where they belong, each slice once.
 */
#include <stdio.h>
#include <stdlib.h>

#include "base/hash.h"
#include "conform.h"

static const uint64_t sizes[] = {1,	7,     64,    4095,	4096,	 4097,
				 65535, 65536, 65537, MIB + 13, 16 * MIB};

static void one_size(struct mc_xlane *lane, enum mc_op op, uint64_t len, uint32_t nfrags,
		     uint64_t off)
{
	struct job j;

	job_make(&j, op, PLACE_MAIN, off, off * 3 % 4099, len, nfrags, nfrags > 1 ? 67 : 0);
	assert_int_equal(job_run(lane, &j), 0);
	lane_settle(lane);
	job_expect(&j);
	job_check(&j, 64);
	job_free(&j);
}

static void every_size_fragment_count_and_offset_moves_the_right_bytes(void **state)
{
	static const uint32_t frags[] = {1, 2, 7, 64, 511, 512};
	static const uint64_t offs[] = {0, 1, 4095};
	struct mc_xlane *lane = lane_open();

	env_reset();
	for (size_t i = 0; i < MC_ARRAY_LEN(sizes); i++) {
		bool is_big = sizes[i] > MIB;

		if (sizes[i] > MIB && (env.tr->flags & T_SLOW) && !env.is_long)
			continue;
		for (size_t f = 0; f < MC_ARRAY_LEN(frags); f++) {
			if (frags[f] > sizes[i] || frags[f] > lane->ops->frags_max ||
			    (is_big && f != 0 && frags[f] < 64))
				continue;
			for (size_t o = 0; o < (is_big ? 1 : MC_ARRAY_LEN(offs)); o++) {
				one_size(lane, MC_OP_WRITE, sizes[i], frags[f], offs[o]);
				one_size(lane, MC_OP_READ, sizes[i], frags[f], offs[o]);
			}
		}
	}
	env_check();
	lane_close(lane);
	(void)state;
}

static void the_first_and_the_last_byte_of_a_region_can_be_reached(void **state)
{
	struct mc_xlane *lane = lane_open();

	env_reset();
	for (int op = 0; op < MC_OP_COUNT; op++) {
		one_size(lane, (enum mc_op)op, 1, 1, 0);
		one_size(lane, (enum mc_op)op, 1, 1, MAIN_LEN - 1);
		one_size(lane, (enum mc_op)op, 4097, 3, MAIN_LEN - 4097 - 200);
		one_size(lane, (enum mc_op)op, 4097, 1, MAIN_LEN - 4097);
	}
	env_check();
	lane_close(lane);
	(void)state;
}

/* ---- many at once ---- */

#define MANY 150

/* Random slices on ranges of their own. */
static void many_make(struct job *jobs, unsigned n, uint64_t len_max, uint32_t frags_max)
{
	uint64_t step = 4 * (len_max + frags_max * 16) / 3 + 64, at = 0;

	for (unsigned i = 0; i < n; i++) {
		enum mc_op op = mc_rand_below(&env.rand, 2) ? MC_OP_WRITE : MC_OP_READ;
		uint64_t len = 1 + mc_rand_below(&env.rand, len_max);
		uint32_t nf =
		    1 + (uint32_t)mc_rand_below(&env.rand, mc_min(len, (uint64_t)frags_max));

		job_make(&jobs[i], op, PLACE_MAIN, at, at, len, nf, 16);
		at += step;
	}
}

static void many_run(struct mc_xlane *lane, uint64_t len_max, uint32_t frags_max)
{
	static struct job jobs[MANY];

	many_make(jobs, MANY, len_max, frags_max);
	assert_int_equal(jobs_run(lane, jobs, MANY), 0);
	lane_settle(lane);
	for (unsigned i = 0; i < MANY; i++) {
		assert_int_equal(jobs[i].ended, 1);
		assert_int_equal(jobs[i].s.status, 0);
		job_expect(&jobs[i]);
		job_free(&jobs[i]);
	}
}

static void many_slices_in_flight_all_end_once(void **state)
{
	struct mc_xlane *lane = lane_open();
	unsigned rounds = env.is_long ? 50 : 4;

	env_reset();
	for (unsigned i = 0; i < rounds; i++) {
		many_run(lane, 60, 4); /* heads only: many requests in one segment */
		many_run(lane, 4096, 200);
		many_run(lane, env.tr->flags & T_SLOW ? 20000 : 80000, 9);
		env_check();
	}
	lane_close(lane);
	(void)state;
}

static void a_full_lane_takes_no_more_until_polled(void **state)
{
	struct mc_xlane *lane = lane_open();
	uint32_t depth = lane->ops->depth_max;
	struct job *jobs = mc_calloc(depth + 1, sizeof(*jobs));
	uint32_t posted = 0;

	env_reset();
	for (uint32_t i = 0; i <= depth; i++)
		job_make(&jobs[i], MC_OP_WRITE, PLACE_MAIN, i * 100ull, i * 100ull, 90, 1, 0);
	for (int tries = 0; posted <= depth && tries < 10000; tries++) {
		struct mc_slice *s = &jobs[posted].s;
		int rc = lane->ops->post(lane, &s, 1);

		assert_in_range(rc, 0, 1);
		posted += (uint32_t)rc;
		if (rc == 0 && !env.tr->fault.refuse)
			break;
	}
	assert_int_equal(posted, depth);
	/* What was posted comes back, and then there is room again. */
	for (uint32_t ended = 0; ended < depth;) {
		struct mc_slice *done[9];
		int rc = lane->ops->poll(lane, BLOCK_NS, done, 9);

		assert_true(rc >= 0);
		for (int i = 0; i < rc; i++) {
			struct job *j = done[i]->user;

			assert_int_equal(j->ended++, 0);
			assert_int_equal(j->s.status, 0);
		}
		ended += (uint32_t)rc;
	}
	assert_int_equal(job_run(lane, &jobs[depth]), 0);
	lane_settle(lane);
	for (uint32_t i = 0; i <= depth; i++) {
		job_expect(&jobs[i]);
		job_free(&jobs[i]);
	}
	mc_free(jobs);
	env_check();
	lane_close(lane);
	(void)state;
}

/* ---- several lanes ---- */

#define LANES 6

static void several_lanes_work_side_by_side(void **state)
{
	struct mc_xlane *lanes[LANES];
	static struct job jobs[LANES * 20];
	unsigned posted[LANES] = {0}, ended = 0;
	uint64_t end_ns = mc_now_ns() + WAIT_NS;

	env_reset();
	many_make(jobs, LANES * 20, 90000, 30);
	for (int i = 0; i < LANES; i++)
		lanes[i] = lane_open();
	while (ended < LANES * 20) {
		for (unsigned i = 0; i < LANES; i++) {
			struct mc_slice *s = &jobs[i * 20 + mc_min(posted[i], 19u)].s, *done[3];
			int rc;

			if (posted[i] < 20) {
				rc = lanes[i]->ops->post(lanes[i], &s, 1);
				assert_in_range(rc, 0, 1);
				posted[i] += (unsigned)rc;
			}
			rc = lanes[i]->ops->poll(lanes[i], 0, done, 3);
			assert_true(rc >= 0);
			for (int k = 0; k < rc; k++) {
				struct job *j = done[k]->user;

				assert_int_equal((j - jobs) / 20, i);
				assert_int_equal(j->ended++, 0);
				assert_int_equal(j->s.status, 0);
				ended++;
			}
		}
		assert_true(mc_now_ns() < end_ns);
	}
	for (unsigned i = 0; i < LANES; i++) {
		lane_settle(lanes[i]);
		lane_close(lanes[i]);
	}
	for (unsigned i = 0; i < LANES * 20; i++) {
		job_expect(&jobs[i]);
		job_free(&jobs[i]);
	}
	env_check();
	(void)state;
}

struct worker {
	pthread_t thread;
	struct mc_xlane *lane;
	struct job jobs[20];
	int rc;
};

static void *worker_main(void *arg)
{
	struct worker *w = arg;

	for (int i = 0; i < 20 && w->rc == 0; i++)
		w->rc = job_run(w->lane, &w->jobs[i]);
	return NULL;
}

static void threads_with_a_lane_each_do_not_disturb_each_other(void **state)
{
	static struct worker workers[4];
	static struct job jobs[80];

	env_reset();
	memset(workers, 0, sizeof(workers));
	many_make(jobs, 80, 90000, 30);
	for (int i = 0; i < 4; i++) {
		struct worker *w = &workers[i];

		memcpy(w->jobs, jobs + (ptrdiff_t)i * 20, sizeof(w->jobs));
		for (int k = 0; k < 20; k++)
			w->jobs[k].s.user = &w->jobs[k];
		w->lane = lane_open();
		assert_int_equal(pthread_create(&w->thread, NULL, worker_main, w), 0);
	}
	for (int i = 0; i < 4; i++) {
		struct worker *w = &workers[i];

		assert_int_equal(pthread_join(w->thread, NULL), 0);
		assert_int_equal(w->rc, 0);
		lane_settle(w->lane);
		lane_close(w->lane);
	}
	for (int i = 0; i < 80; i++) {
		job_expect(&jobs[i]);
		job_free(&jobs[i]);
	}
	env_check();
	(void)state;
}

/* ---- waiting as the engine's loops do ---- */

static void a_lane_that_is_only_polled_when_its_descriptor_says_so_gets_done(void **state)
{
	struct mc_xlane *lane = lane_open();
	static struct job jobs[40];
	unsigned posted = 0, ended = 0;

	env_reset();
	many_make(jobs, 40, 90000, 30);
	while (ended < 40) {
		struct mc_slice *s, *done[4];
		struct pollfd fd;
		struct mc_xarm arm = {.fd = -1};
		int rc = 1;

		while (posted < 40 && rc > 0) {
			s = &jobs[posted].s;
			rc = lane->ops->post(lane, &s, 1);
			assert_true(rc >= 0);
			posted += (unsigned)rc;
		}
		lane->ops->arm(lane, &arm);
		fd = (struct pollfd){.fd = arm.fd, .events = arm.events};
		if (arm.fd >= 0 && !arm.is_ready &&
		    !(rc == 0 && env.tr->fault.refuse && posted < 40))
			assert_int_equal(poll(&fd, 1, (int)(WAIT_NS / MC_NS_PER_MS)), 1);
		rc = lane->ops->poll(lane, 0, done, 4);
		assert_true(rc >= 0);
		for (int i = 0; i < rc; i++)
			assert_int_equal(((struct job *)done[i]->user)->ended++, 0);
		ended += (unsigned)rc;
	}
	lane_settle(lane);
	for (unsigned i = 0; i < 40; i++) {
		assert_int_equal(jobs[i].s.status, 0);
		job_expect(&jobs[i]);
		job_free(&jobs[i]);
	}
	env_check();
	lane_close(lane);
	(void)state;
}

/* ---- signals ---- */

static void a_signal_is_seen_only_after_the_data(void **state)
{
	struct mc_xlane *lane = lane_open();
	unsigned rounds = env.is_long ? 300 : 30;

	env_reset();
	for (unsigned i = 1; i <= rounds; i++) {
		uint64_t at = 8 + 8 * mc_rand_below(&env.rand, 100), len = 1 + i * 5003 % 300000;
		struct order o = {.op = ORDER_SIGNAL, .i = PLACE_MAIN, .a = at, .b = i};
		struct reply r;
		struct job j;

		job_make(&j, MC_OP_WRITE, PLACE_MAIN, 4096, i, len, 1 + i % 7, 20);
		j.s.signal = (struct mc_signal){
		    .rr = &env.rr[PLACE_MAIN], .raddr = env.rr[PLACE_MAIN].addr + at, .value = i};
		job_expect(&j);
		o.c = j.rlo;
		o.d = j.rhi;
		/* The target looks while the slice moves, where it is another process. */
		if (!env.peer.local)
			assert_int_equal(send(env.peer.ctl, &o, sizeof(o), 0), sizeof(o));
		assert_int_equal(job_run(lane, &j), 0);
		if (env.peer.local)
			r = peer_order(&env.peer, o);
		else
			assert_int_equal(recv(env.peer.ctl, &r, sizeof(r), 0), sizeof(r));
		assert_int_equal(r.rc, 0);
		assert_int_equal(r.val,
				 mc_hash64(env.shadow[PLACE_MAIN] + j.rlo, j.rhi - j.rlo, 0));
		job_free(&j);
	}
	env_check();
	lane_close(lane);
	(void)state;
}

const struct conform_case cases_data[] = {
    {"every size, fragment count and offset moves the right bytes",
     every_size_fragment_count_and_offset_moves_the_right_bytes, 0, 0, 0},
    {"the first and the last byte of a region can be reached",
     the_first_and_the_last_byte_of_a_region_can_be_reached, 0, 0, 0},
    {"many slices in flight all end once", many_slices_in_flight_all_end_once, 0, 0, 0},
    {"a full lane takes no more until polled", a_full_lane_takes_no_more_until_polled, 0, 0, 0},
    {"several lanes work side by side", several_lanes_work_side_by_side, 0, 0, 0},
    {"threads with a lane each do not disturb each other",
     threads_with_a_lane_each_do_not_disturb_each_other, 0, 0, 0},
    {"a lane polled only when its descriptor says so gets done",
     a_lane_that_is_only_polled_when_its_descriptor_says_so_gets_done, 0, 0, 0},
    {"a signal is seen only after the data", a_signal_is_seen_only_after_the_data, 0, 0,
     MC_XCAP_SIGNAL},
    {0},
};
