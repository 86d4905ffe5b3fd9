/*
 * cases_refuse.c: what a peer may not touch it does not touch, and saying no harms nobody else.
 *
 * Every refused slice stands between two good ones on the same lane; all three end, the good ones
 * well, and every byte and canary is compared afterwards.
 */
#include <stdio.h>
#include <sys/socket.h>

#include "conform.h"

/* One thing that is wrong with a fragment. */
struct wrong {
	const char *what;
	enum place place;
	int64_t off; /* from the region's start, or from its end when is_end */
	bool is_end;
	uint64_t len;
	bool is_read, is_write; /* which are refused */
	int code;		/* expected; 0: any of RANGE, INVAL, STALE */
	unsigned needs;
	int gen, id, key; /* added to the region's */
};

static const struct wrong wrongs[] = {
    {"length 0", PLACE_MAIN, 64, false, 0, true, true, .needs = T_GEN},
    {"one byte before", PLACE_MAIN, -1, false, 1, true, true, -MC_E_RANGE},
    {"begins before", PLACE_MAIN, -1, false, 2, true, true, -MC_E_RANGE},
    {"one byte beyond", PLACE_MAIN, 0, true, 1, true, true, -MC_E_RANGE},
    {"ends beyond", PLACE_MAIN, -1, true, 2, true, true, -MC_E_RANGE},
    {"a page beyond", PLACE_MAIN, 4096, true, 64, true, true, -MC_E_RANGE},
    {"all and one more", PLACE_SMALL, 0, false, SMALL_LEN + 1, true, true, -MC_E_RANGE},
    {"far beyond", PLACE_MAIN, 1ll << 40, false, 64, true, true, -MC_E_RANGE},
    {"address 0", PLACE_MAIN, INT64_MIN, false, 64, true, true, -MC_E_RANGE},
    {"end wraps to 0", PLACE_MAIN, INT64_MAX, false, 64, true, true, -MC_E_RANGE},
    {"read without the right", PLACE_WO, 0, false, 64, true, false, -MC_E_PERM},
    {"write without the right", PLACE_RO, 0, false, 64, false, true, -MC_E_PERM},
    {"older generation", PLACE_MAIN, 0, false, 64, true, true, -MC_E_STALE, T_GEN, .gen = -1},
    {"later generation", PLACE_MAIN, 0, false, 64, true, true, -MC_E_STALE, T_GEN, .gen = 1},
    {"no such region", PLACE_MAIN, 0, false, 64, true, true, -MC_E_STALE, T_GEN, .id = 5000},
    {"id beyond the table", PLACE_MAIN, 0, false, 64, true, true, -MC_E_STALE, T_GEN,
     .id = 0x7ffffff0},
    {"another key", PLACE_MAIN, 0, false, 64, true, true, -MC_E_STALE, T_KEY, .key = 1},
    {"no range under this key", PLACE_MAIN, 0, false, 64, true, true, -MC_E_STALE, T_KEY,
     .key = 0x55},
};

static uint64_t wrong_addr(const struct wrong *w)
{
	uint64_t start = env.rr[w->place].addr;

	if (w->off == INT64_MIN)
		return 0;
	if (w->off == INT64_MAX)
		return UINT64_MAX - 63;
	return start + (w->is_end ? place_len(w->place) : 0) + (uint64_t)w->off;
}

/* Upstream's status says no more than "refused". */
static void expect_refusal(int status, int code)
{
	if (env.tr->flags & T_ADDR)
		code = -MC_E_RANGE;
	if (code)
		assert_int_equal(status, code);
	else
		assert_true(status == -MC_E_RANGE || status == -MC_E_INVAL);
}

/* good, bad, good; the bad one's `at`-th of three fragments is the wrong one */
static void refuse_between(struct mc_xlane **lane, const struct wrong *w, enum mc_op op,
			   uint32_t at)
{
	struct mc_remote_region lying = env.rr[w->place];
	struct job jobs[3];

	lying.gen += (uint32_t)w->gen;
	lying.id += (uint32_t)w->id;
	for (unsigned i = 0; i < sizeof(lying.key); i += 4)
		lying.key[i] ^= (uint8_t)w->key; /* of each port */
	job_make(&jobs[0], MC_OP_WRITE, PLACE_MAIN, 1000, 0, 3000, 3, 9);
	job_make(&jobs[1], op, w->place == PLACE_MAIN ? PLACE_MAIN : PLACE_SMALL, 9000, 9000, 300,
		 3, 0);
	job_make(&jobs[2], MC_OP_READ, PLACE_MAIN, 20000, 20000, 3000, 3, 9);
	/* The other fragments are in order: nothing says that they are not moved. */
	jobs[1].s.len += w->len - jobs[1].frags[at].len;
	jobs[1].frags[at].rr = &lying;
	jobs[1].frags[at].raddr = wrong_addr(w);
	jobs[1].frags[at].len = w->len;
	assert_int_equal(jobs_drive(lane, jobs, 3), 0);
	assert_int_equal(jobs[0].s.status, 0);
	assert_int_equal(jobs[2].s.status, 0);
	if (jobs[1].s.status == 0)
		print_error("not refused: %s\n", w->what);
	expect_refusal(jobs[1].s.status, w->code);
	assert_int_equal(jobs[1].s.bad_frag, at);
	job_expect(&jobs[0]);
	job_expect(&jobs[2]);
	/* What the refused slice's good fragments may have changed, both sides agree on again. */
	if (env.tr->flags & (T_ADDR | T_KEY)) {
		for (uint32_t i = 0; i < 3; i++) {
			struct job one;

			if (i == at)
				continue;
			job_make(&one, op, jobs[1].place,
				 jobs[1].frags[i].raddr - jobs[1].frags[i].rr->addr,
				 (uint64_t)(jobs[1].frags[i].local - env.local),
				 jobs[1].frags[i].len, 1, 0);
			assert_int_equal(job_drive(lane, &one), 0);
			job_expect(&one);
			job_free(&one);
		}
	}
	for (int i = 0; i < 3; i++)
		job_free(&jobs[i]);
}

static void what_is_not_allowed_is_refused_and_disturbs_nobody(void **state)
{
	struct mc_xlane *lane = lane_open();

	env_reset();
	for (size_t i = 0; i < MC_ARRAY_LEN(wrongs); i++) {
		const struct wrong *w = &wrongs[i];

		if ((env.tr->flags & w->needs) != w->needs)
			continue;
		for (uint32_t at = 0; at < 3; at += 2) {
			if (w->is_read)
				refuse_between(&lane, w, MC_OP_READ, at);
			if (w->is_write)
				refuse_between(&lane, w, MC_OP_WRITE, at);
		}
	}
	env_check();
	lane_close(lane);
	(void)state;
}

/* A large refused write must be read to its end before the next request is understood. */
static void a_large_refused_write_leaves_the_lane_in_step(void **state)
{
	struct mc_xlane *lane = lane_open();
	struct job jobs[3];

	env_reset();
	job_make(&jobs[0], MC_OP_WRITE, PLACE_SMALL, 0, 0, SMALL_LEN, 5, 0);
	job_make(&jobs[1], MC_OP_WRITE, PLACE_MAIN, 0, SMALL_LEN, MIB, 1, 0);
	jobs[1].frags[0].raddr += MAIN_LEN - MIB + 1; /* one byte beyond */
	job_make(&jobs[2], MC_OP_WRITE, PLACE_MAIN, 77, 4 * MIB, MIB, 60, 5);
	assert_int_equal(jobs_run(lane, jobs, 3), 0);
	assert_int_equal(jobs[0].s.status, 0);
	expect_refusal(jobs[1].s.status, -MC_E_RANGE);
	assert_int_equal(jobs[2].s.status, 0);
	job_expect(&jobs[0]);
	job_expect(&jobs[2]);
	env_check();
	for (int i = 0; i < 3; i++)
		job_free(&jobs[i]);
	lane_close(lane);
	(void)state;
}

static void a_lone_refused_read_is_followed_by_others(void **state)
{
	struct mc_xlane *lane = lane_open();
	struct job bad, good;

	env_reset();
	for (int i = 0; i < 5; i++) {
		job_make(&bad, MC_OP_READ, PLACE_WO, 0, 0, 64, 1, 0);
		job_make(&good, i & 1 ? MC_OP_READ : MC_OP_WRITE, PLACE_MAIN, 0, 4096, 5000, 3, 3);
		expect_refusal(job_run(lane, &bad), -MC_E_PERM);
		assert_int_equal(job_run(lane, &good), 0);
		job_expect(&good);
		job_free(&bad);
		job_free(&good);
	}
	env_check();
	lane_close(lane);
	(void)state;
}

static void a_signal_outside_or_unaligned_is_refused(void **state)
{
	static const struct {
		enum place place;
		int64_t off;
		int code;
	} bad[] = {
	    {PLACE_MAIN, 4, -MC_E_INVAL},
	    {PLACE_RO, 0, -MC_E_PERM},
	    {PLACE_SMALL, SMALL_LEN, -MC_E_RANGE},
	    {PLACE_SMALL, -8, -MC_E_RANGE},
	};
	struct mc_xlane *lane = lane_open();

	env_reset();
	for (size_t i = 0; i < MC_ARRAY_LEN(bad); i++) {
		struct job j;

		job_make(&j, MC_OP_WRITE, PLACE_MAIN, 64, 64, 100, 2, 3);
		j.s.signal = (struct mc_signal){
		    .rr = &env.rr[bad[i].place],
		    .raddr = env.rr[bad[i].place].addr + (uint64_t)bad[i].off,
		    .value = 1,
		};
		assert_int_equal(job_run(lane, &j), bad[i].code);
		/* The data may have moved; say it again without the signal. */
		j.s.signal.rr = NULL;
		j.ended = 0;
		assert_int_equal(job_run(lane, &j), 0);
		job_expect(&j);
		job_free(&j);
	}
	env_check();
	lane_close(lane);
	(void)state;
}

/* ---- version 1 cannot say no: it hangs up ---- */

static void version_1_is_hung_up_on(void **state)
{
	env_reset();
	for (size_t i = 0; i < MC_ARRAY_LEN(wrongs); i++) {
		const struct wrong *w = &wrongs[i];

		for (int op = 0; op < MC_OP_COUNT; op++) {
			struct mc_xlane *lane;
			struct job jobs[2];
			uint8_t token[MC_XPORT_TOKEN_MAX];
			unsigned maybe;

			if ((env.tr->flags & w->needs) != w->needs ||
			    !(op == MC_OP_READ ? w->is_read : w->is_write))
				continue;
			lane = lane_open();
			job_make(&jobs[0], (enum mc_op)op, PLACE_MAIN, 0, 0, 64, 1, 0);
			jobs[0].frags[0].raddr = wrong_addr(w);
			jobs[0].frags[0].len = jobs[0].s.len = w->len;
			/* Behind the write, whose end is not told, a read finds out. */
			job_make(&jobs[1], MC_OP_READ, PLACE_MAIN, 0, 100, 64, 1, 0);
			assert_int_equal(jobs_run(lane, jobs, 2), -MC_E_RESET);
			assert_int_equal(lane_abort(lane, jobs, 2, token, &maybe), 0);
			job_free(&jobs[0]);
			job_free(&jobs[1]);
		}
	}
	env_check();
	(void)state;
}

/* ---- regions that go while slices fly ---- */

/* Until the target has unregistered, slices end well; afterwards they are refused, and nothing
 * lands. */
static void unregister_during_transfers_once(struct mc_xlane **lane, enum mc_op op)
{
	static struct job jobs[64];
	struct order del = {.op = ORDER_DEL, .i = PLACE_SMALL};
	unsigned n = MC_ARRAY_LEN(jobs);
	struct reply r;
	struct job after;

	for (unsigned i = 0; i < n; i++)
		job_make(&jobs[i], op, PLACE_SMALL, 0, i * 65000ull, 60000, 1 + i % 5, 9);
	peer_order_begin(&env.peer, del);
	assert_int_equal(jobs_drive(lane, jobs, n), 0);
	r = peer_order_end(&env.peer);
	assert_int_equal(r.rc, 0);
	for (unsigned i = 0; i < n; i++) {
		if (jobs[i].s.status != 0)
			expect_refusal(jobs[i].s.status, -MC_E_STALE);
		job_free(&jobs[i]);
	}
	/* From here on it is the owner's alone. */
	assert_int_equal(order(.op = ORDER_FILL, .i = PLACE_SMALL, .a = 4711).rc, 0);
	pattern_fill(env.shadow[PLACE_SMALL], place_len(PLACE_SMALL), 4711);
	job_make(&after, op, PLACE_SMALL, 0, 0, 100, 1, 0);
	expect_refusal(job_drive(lane, &after), -MC_E_STALE);
	job_free(&after);
	env_check_range(PLACE_SMALL, 0, SMALL_LEN);
	r = order(.op = ORDER_ADD, .i = PLACE_SMALL);
	assert_int_equal(r.rc, 0);
	env.rr[PLACE_SMALL] = r.rr;
}

static void unregistering_under_fire_ends_every_slice(void **state)
{
	struct mc_xlane *lane = lane_open();
	unsigned rounds = env.is_long ? 200 : 10;

	env_reset();
	for (unsigned i = 0; i < rounds; i++)
		unregister_during_transfers_once(&lane, i & 1 ? MC_OP_READ : MC_OP_WRITE);
	memcpy(env.local_shadow, env.local, LOCAL_LEN); /* reads came and went */
	env_check();
	lane_close(lane);
	(void)state;
}

static void a_region_registered_again_does_not_know_its_old_name(void **state)
{
	struct mc_xlane *lane = lane_open();
	struct mc_remote_region old = env.rr[PLACE_SMALL];
	struct reply r;
	struct job j;

	env_reset();
	assert_int_equal(order(.op = ORDER_DEL, .i = PLACE_SMALL).rc, 0);
	r = order(.op = ORDER_ADD, .i = PLACE_SMALL);
	assert_int_equal(r.rc, 0);
	env.rr[PLACE_SMALL] = r.rr;
	for (int op = 0; op < MC_OP_COUNT; op++) {
		job_make(&j, (enum mc_op)op, PLACE_SMALL, 0, 0, 64, 1, 0);
		j.frags[0].rr = &old;
		assert_int_equal(job_drive(&lane, &j), -MC_E_STALE);
		job_free(&j);
		job_make(&j, (enum mc_op)op, PLACE_SMALL, 0, 0, 64, 1, 0);
		assert_int_equal(job_drive(&lane, &j), 0);
		job_expect(&j);
		job_free(&j);
	}
	env_check();
	lane_close(lane);
	(void)state;
}

const struct conform_case cases_refuse[] = {
    {"what is not allowed is refused and disturbs nobody",
     what_is_not_allowed_is_refused_and_disturbs_nobody, 0, T_MUTE | T_PLAIN, 0},
    {"a large refused write leaves the lane in step", a_large_refused_write_leaves_the_lane_in_step,
     0, T_MUTE | T_PLAIN, 0},
    {"a lone refused read is followed by others", a_lone_refused_read_is_followed_by_others, 0,
     T_MUTE | T_PLAIN, 0},
    {"a signal outside or unaligned is refused", a_signal_outside_or_unaligned_is_refused, 0, 0,
     MC_XCAP_SIGNAL},
    {"version 1 is hung up on", version_1_is_hung_up_on, T_MUTE, 0, 0},
    {"unregistering under fire ends every slice", unregistering_under_fire_ends_every_slice, 0,
     T_MUTE | T_PLAIN, 0},
    {"a region registered again does not know its old name",
     a_region_registered_again_does_not_know_its_old_name, T_GEN, 0, 0},
    {"a region registered again does not know its old key",
     a_region_registered_again_does_not_know_its_old_name, T_KEY, 0, 0},
    {0},
};
