/*
 * cases_life.c: lanes and peers that end early, late, or badly.
 */
#include <signal.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "conform.h"

#define NJOBS 48

static struct job jobs[NJOBS];

static void jobs_make(enum mc_op op, uint64_t len)
{
	for (unsigned i = 0; i < NJOBS; i++)
		job_make(&jobs[i], op, PLACE_MAIN, i * (len + 64), i * (len + 64), len, 1 + i % 3,
			 8);
}

static void jobs_free(void)
{
	for (unsigned i = 0; i < NJOBS; i++)
		job_free(&jobs[i]);
}

/* Post what goes, without waiting for any. @return how many */
static unsigned post_all(struct mc_xlane *lane)
{
	unsigned posted = 0;

	for (int tries = 0; posted < NJOBS && tries < 1000; tries++) {
		struct mc_slice *s = &jobs[posted].s;
		int rc = lane->ops->post(lane, &s, 1);

		assert_in_range(rc, 0, 1);
		posted += (unsigned)rc;
		if (rc == 0 && !env.tr->fault.refuse)
			break;
	}
	return posted;
}

/* Poll until the lane neither moves nor finishes anything for a while. @return slices that ended */
static unsigned poll_until_stuck(struct mc_xlane *lane)
{
	uint64_t moved = lane->ops->progress(lane), end_ns = mc_now_ns() + 60 * MC_NS_PER_MS;
	unsigned ended = 0;

	while (mc_now_ns() < end_ns) {
		struct mc_slice *done[8];
		int rc = lane->ops->poll(lane, 5 * MC_NS_PER_MS, done, 8);

		assert_true(rc >= 0);
		for (int i = 0; i < rc; i++)
			assert_int_equal(((struct job *)done[i]->user)->ended++, 0);
		ended += (unsigned)rc;
		if (rc > 0 || lane->ops->progress(lane) != moved)
			end_ns = mc_now_ns() + 60 * MC_NS_PER_MS;
		moved = lane->ops->progress(lane);
	}
	return ended;
}

static void expect_ended_once(unsigned posted)
{
	for (unsigned i = 0; i < NJOBS; i++)
		assert_int_equal(jobs[i].ended, i < posted ? 1 : 0);
}

static struct reply retire(const uint8_t *token, size_t len)
{
	struct order o = {.op = ORDER_RETIRE, .a = len};

	memcpy(o.token, token, len);
	return peer_order(&env.peer, o);
}

/* ---- abort ---- */

static void an_unused_lane_can_be_aborted_and_closed_at_any_point(void **state)
{
	uint8_t token[MC_XPORT_TOKEN_MAX];
	struct mc_slice *done[1];
	struct mc_xlane *lane;
	unsigned maybe;

	lane_close(lane_open());
	lane = lane_open();
	assert_int_equal(lane_abort(lane, NULL, 0, token, &maybe), 0);
	lane = lane_open();
	assert_int_equal(lane->ops->poll(lane, 0, done, 1), 0);
	assert_int_equal(lane_abort(lane, NULL, 0, token, &maybe), 0);
	lane = lane_open();
	assert_int_equal(lane->ops->poll(lane, BLOCK_NS, done, 1), 0);
	assert_int_equal(lane->ops->poll(lane, BLOCK_NS, done, 1), 0);
	assert_int_equal(lane_abort(lane, NULL, 0, token, &maybe), 0);
	(void)state;
}

static void slices_that_never_left_come_back_unsent(void **state)
{
	struct mc_xlane *lane = lane_open();
	uint8_t token[MC_XPORT_TOKEN_MAX];
	unsigned posted, maybe;

	env_reset();
	jobs_make(MC_OP_WRITE, 5000);
	posted = post_all(lane); /* never polled, so never connected */
	assert_int_equal(lane_abort(lane, jobs, NJOBS, token, &maybe), 0);
	assert_int_equal(maybe, 0);
	expect_ended_once(posted);
	env_check();
	jobs_free();
	(void)state;
}

static void an_aborted_lane_takes_and_gives_nothing(void **state)
{
	struct mc_xlane *lane = lane_open();
	uint8_t token[MC_XPORT_TOKEN_MAX];
	struct mc_list left;
	struct mc_slice *s, *done[1];
	struct job j;

	job_make(&j, MC_OP_READ, PLACE_RO, 0, 0, 64, 1, 0);
	s = &j.s;
	mc_list_init(&left);
	(void)lane->ops->abort(lane, &left, token);
	assert_true(mc_list_is_empty(&left));
	assert_true(lane->ops->post(lane, &s, 1) < 0);
	assert_true(lane->ops->poll(lane, 0, done, 1) < 0);
	(void)lane->ops->abort(lane, &left, token);
	assert_true(mc_list_is_empty(&left));
	lane_close(lane);
	job_free(&j);
	(void)state;
}

static void reads_that_were_aborted_touch_local_memory_no_more(void **state)
{
	struct mc_xlane *lane = lane_open();
	uint8_t token[MC_XPORT_TOKEN_MAX];
	unsigned posted, maybe;

	env_reset();
	peer_stop(&env.peer);
	jobs_make(MC_OP_READ, 200000);
	posted = post_all(lane);
	(void)poll_until_stuck(lane);
	assert_int_equal(lane_abort(lane, jobs, NJOBS, token, &maybe), 0);
	assert_int_equal(maybe, 0);
	expect_ended_once(posted);
	memset(env.local, 0x77, LOCAL_LEN);
	memset(env.local_shadow, 0x77, LOCAL_LEN);
	peer_continue(&env.peer);
	lane =
	    lane_open(); /* the answers to the old lane's requests are out by the time of these */
	for (int i = 0; i < 20; i++) {
		struct job j;

		job_make(&j, MC_OP_READ, PLACE_SMALL, 0, 0, 1000, 1, 0);
		assert_int_equal(job_run(lane, &j), 0);
		job_expect(&j);
		job_free(&j);
	}
	env_check();
	lane_close(lane);
	jobs_free();
	(void)state;
}

/* ---- retirement ---- */

/* Break a lane in the middle of writes to a target that has stopped. @return the token's length */
static size_t break_in_the_middle(uint64_t len, uint8_t *ret_token, unsigned *ret_posted)
{
	struct mc_xlane *lane = lane_open();
	unsigned maybe;
	struct job j;
	size_t n;

	/* Connected and known, so that the lane's own frames are what gets stuck. */
	job_make(&j, MC_OP_WRITE, PLACE_SMALL, 0, 0, 1000, 1, 0);
	assert_int_equal(job_run(lane, &j), 0);
	job_expect(&j);
	job_free(&j);
	peer_stop(&env.peer);
	jobs_make(MC_OP_WRITE, len);
	*ret_posted = post_all(lane);
	(void)poll_until_stuck(lane);
	n = lane_abort(lane, jobs, NJOBS, ret_token, &maybe);
	assert_true(maybe > 0);
	expect_ended_once(*ret_posted);
	peer_continue(&env.peer);
	return n;
}

/* Memory as the verdicts and `acked` promise it. */
static void check_verdicts(unsigned posted, uint64_t acked)
{
	bool is_unsent_before = false;

	for (unsigned i = 0; i < posted; i++) {
		if (jobs[i].s.verdict == MC_SLICE_DONE ||
		    (acked != MC_ACKED_UNKNOWN && jobs[i].s.seq <= acked)) {
			job_expect(&jobs[i]);
			job_check(&jobs[i], 0);
		} else if (jobs[i].s.verdict == MC_SLICE_UNSENT) {
			job_check(&jobs[i], 0); /* as it was */
		}
		/* What left, left in order. */
		assert_false(is_unsent_before && jobs[i].s.verdict == MC_SLICE_MAYBE);
		is_unsent_before |= jobs[i].s.verdict == MC_SLICE_UNSENT;
	}
}

static void after_retirement_nothing_of_the_lane_lands(void **state)
{
	static const uint64_t lens[] = {40, 5000, 300000};
	uint8_t token[MC_XPORT_TOKEN_MAX];
	unsigned rounds = env.is_long ? 60 : 6;

	for (unsigned i = 0; i < rounds; i++) {
		struct reply r, again;
		unsigned posted;
		size_t len;

		env_reset();
		len = break_in_the_middle(lens[i % MC_ARRAY_LEN(lens)], token, &posted);
		r = retire(token, len);
		assert_int_equal(r.rc, 0);
		check_verdicts(posted, r.val);
		again = retire(token, len);
		assert_int_equal(again.rc, 0);
		assert_int_equal(again.val, r.val);
		env_reset(); /* the sentinel: whatever lands from now on is seen */
		if (env.peer.relay)
			wait_until(({
				struct relay_stats st;

				relay_stats(env.peer.relay, &st);
				st.open == 0;
			}));
		for (int k = 0; k < 10; k++) {
			struct mc_xlane *lane = lane_open();
			struct job j;

			job_make(&j, MC_OP_READ, PLACE_RO, 0, 0, 100, 1, 0);
			assert_int_equal(job_run(lane, &j), 0);
			job_expect(&j);
			job_free(&j);
			lane_close(lane);
		}
		env_check();
		jobs_free();
	}
	(void)state;
}

static void a_lane_retired_before_it_arrives_is_refused_when_it_does(void **state)
{
	struct mc_xlane *lane;
	uint8_t token[MC_XPORT_TOKEN_MAX];
	struct relay_stats st;
	unsigned posted, maybe;
	struct reply r;
	size_t len;

	env_reset();
	relay_pause(env.peer.relay, true);
	lane = lane_open();
	jobs_make(MC_OP_WRITE, 900);
	posted = post_all(lane);
	(void)poll_until_stuck(lane);
	len = lane_abort(lane, jobs, NJOBS, token, &maybe);
	assert_int_equal(maybe, posted); /* all are on their way, as far as anybody can know */
	r = retire(token, len);
	assert_int_equal(r.rc, 0);
	assert_int_equal(r.val, 0);
	relay_pause(env.peer.relay, false);
	wait_until((relay_stats(env.peer.relay, &st), st.open == 0));
	assert_true(st.late_bytes > 0);
	env_check();
	jobs_free();
	(void)state;
}

static void a_strange_token_is_an_error_or_nobody(void **state)
{
	uint8_t token[MC_XPORT_TOKEN_MAX];
	struct mc_xlane *lane;
	struct job j;

	env_reset();
	for (size_t len = 0; len <= sizeof(token); len++) {
		struct reply r;

		memset(token, (int)(0xa0 + len), sizeof(token));
		r = retire(token, len);
		assert_true(r.rc == 0 || r.rc == -MC_E_PROTO);
		if (r.rc == 0)
			assert_true(r.val == 0 || r.val == MC_ACKED_UNKNOWN);
	}
	lane = lane_open();
	job_make(&j, MC_OP_WRITE, PLACE_MAIN, 0, 0, 100, 1, 0);
	assert_int_equal(job_run(lane, &j), 0);
	job_expect(&j);
	job_free(&j);
	env_check();
	lane_close(lane);
	(void)state;
}

/* ---- who is who ---- */

static void lie_is_found_out(struct lie lie, int code)
{
	struct mc_xlane *lane;
	uint8_t token[MC_XPORT_TOKEN_MAX];
	unsigned maybe;
	struct job j;
	size_t len;

	assert_int_equal(lane_open_to(&env.peer, lie, &lane), 0);
	job_make(&j, MC_OP_WRITE, PLACE_MAIN, 0, 0, 3000, 2, 0);
	assert_int_equal(jobs_run(lane, &j, 1), code);
	len = lane_abort(lane, &j, 1, token, &maybe);
	if (len > 0)
		assert_int_equal(retire(token, len).val, 0);
	job_free(&j);
}

static void another_epoch_or_nonce_is_turned_away(void **state)
{
	env_reset();
	lie_is_found_out((struct lie){.epoch = 2}, -MC_E_PEER_RESTARTED);
	lie_is_found_out((struct lie){.epoch = 1ull << 63}, -MC_E_PEER_RESTARTED);
	lie_is_found_out((struct lie){.nonce = 1}, -MC_E_AUTH);
	lie_is_found_out((struct lie){.nonce = 0x80}, -MC_E_AUTH);
	env_check();
	(void)state;
}

/* ---- peers that stop and die ---- */

static void a_peer_that_stops_and_goes_on_loses_nothing(void **state)
{
	struct mc_xlane *lane = lane_open();
	unsigned posted, ended;

	env_reset();
	for (int round = 0; round < 2; round++) {
		jobs_make(round ? MC_OP_READ : MC_OP_WRITE, 100000);
		peer_stop(&env.peer);
		posted = post_all(lane);
		ended = poll_until_stuck(lane);
		peer_continue(&env.peer);
		while (ended < posted) {
			struct mc_slice *done[8];
			int rc = lane->ops->poll(lane, BLOCK_NS, done, 8);

			assert_true(rc >= 0);
			for (int i = 0; i < rc; i++)
				assert_int_equal(((struct job *)done[i]->user)->ended++, 0);
			ended += (unsigned)rc;
		}
		lane_settle(lane);
		for (unsigned i = 0; i < posted; i++) {
			assert_int_equal(jobs[i].s.status, 0);
			job_expect(&jobs[i]);
		}
		env_check();
		jobs_free();
	}
	lane_close(lane);
	(void)state;
}

static void peer_renew(void)
{
	env.peer = peer_start(env.tr);
	memcpy(env.rr, env.peer.hello.rr, sizeof(env.rr));
	assert_int_equal(peer_attach(&env.peer), 0);
}

/* Kills the target when about `after` slices of an endless stream have ended. */
static void kill_target_once(unsigned after)
{
	struct mc_xlane *lane = lane_open();
	uint8_t token[MC_XPORT_TOKEN_MAX];
	uint64_t end_ns = mc_now_ns() + WAIT_NS;
	unsigned posted = 0, ended = 0, maybe;
	int rc = 0;

	jobs_make(MC_OP_WRITE, 30000);
	for (unsigned i = 0; i < NJOBS; i++)
		jobs[i].ended = 1; /* free to post */
	while (rc >= 0) {
		struct job *next = &jobs[posted % NJOBS];
		struct mc_slice *s = &next->s, *done[4];

		if (next->ended == 1) {
			next->ended = 0;
			s->op = posted % 3 ? MC_OP_WRITE : MC_OP_READ;
			rc = lane->ops->post(lane, &s, 1);
			next->ended = rc <= 0;
			posted += rc > 0;
		}
		if (rc >= 0)
			rc = lane->ops->poll(lane, 0, done, 4);
		for (int i = 0; i < rc; i++) {
			struct job *j = done[i]->user;

			assert_int_equal(j->ended++, 0);
			if (env.peer.pid)
				assert_int_equal(j->s.status, 0);
			ended++;
		}
		if (ended >= after && env.peer.pid)
			peer_kill(&env.peer, SIGKILL);
		assert_true(mc_now_ns() < end_ns);
	}
	assert_true(mc_err_scope(rc) == MC_SCOPE_RAIL || mc_err_scope(rc) == MC_SCOPE_PEER);
	(void)lane_abort(lane, jobs, NJOBS, token, &maybe);
	for (unsigned i = 0; i < NJOBS; i++)
		assert_int_equal(jobs[i].ended, 1);
	jobs_free();
}

static void a_killed_target_ends_every_slice_and_leaves_nothing_behind(void **state)
{
	unsigned rounds = env.is_long ? 200 : 12, fds = 0;
	int64_t live = 0;

	memset(env.local, 1, LOCAL_LEN);
	for (unsigned i = 0; i < rounds; i++) {
		kill_target_once((unsigned)mc_rand_below(&env.rand, 60));
		peer_detach(&env.peer);
		if (i == 1) {
			fds = fds_open();
			live = mc_mem_live();
		}
		if (i > 1) {
			assert_int_equal(fds_open(), fds);
			assert_int_equal(mc_mem_live(), live);
		}
		peer_renew();
	}
	env_reset();
	env_check();
	(void)state;
}

/* ---- nothing grows ---- */

static struct reply stat_when_settled(struct reply before)
{
	struct reply now;

	wait_until(
	    (now = order(.op = ORDER_STAT), now.val <= before.val && now.val2 <= before.val2));
	return now;
}

static void lane_cycle(void)
{
	struct mc_xlane *lane = lane_open();
	struct job j;

	for (int op = 0; op < MC_OP_COUNT; op++) {
		job_make(&j, (enum mc_op)op, PLACE_MAIN, 0, 0, 3000, 2, 0);
		assert_int_equal(job_run(lane, &j), 0);
		lane_settle(lane);
		job_free(&j);
	}
	lane_close(lane);
}

static void a_thousand_lanes_leave_nothing_behind(void **state)
{
	struct reply before, after;
	uint64_t resident;
	unsigned fds;
	int64_t live;

	for (int i = 0; i < 50; i++)
		lane_cycle(); /* pools and stacks have grown */
	if (env.peer.relay)
		wait_until(({
			struct relay_stats st;

			relay_stats(env.peer.relay, &st);
			st.open == 0;
		}));
	sched_yield_some();
	before = order(.op = ORDER_STAT);
	fds = fds_open();
	live = mc_mem_live();
	resident = resident_kib();
	for (int i = 0; i < 1000; i++)
		lane_cycle();
	after = stat_when_settled(before);
	wait_until(fds_open() <= fds && mc_mem_live() <= live); /* a relay's are its thread's */
	assert_true(after.val3 <= before.val3 + RESIDENT_SLACK_KIB);
	assert_true(resident_kib() <= resident + RESIDENT_SLACK_KIB);
	(void)state;
}

/* Writes into the target until it is killed. Its parent is the test. */
int initiator_main(const char *name, int ctl)
{
	struct mc_xlane *lane;
	const struct transport *tr = transport_find(name);
	struct job j;
	int rc;

	if (!tr || recv(ctl, &env.peer.hello, sizeof(env.peer.hello), 0) != sizeof(env.peer.hello))
		return 1;
	env.tr = tr;
	env.local = mc_calloc(1, LOCAL_LEN);
	memcpy(env.rr, env.peer.hello.rr, sizeof(env.rr));
	env.peer.ctl = ctl; /* the test passes its orders on to the target */
	if (!env.local || side_open(&env.side, tr) < 0 || local_reg() < 0 ||
	    peer_attach(&env.peer) < 0)
		return 1;
	mc_rand_seed(&env.rand, (uint64_t)getpid());
	lane = lane_open();
	for (unsigned i = 0;; i++) {
		job_make(&j, i % 2 ? MC_OP_READ : MC_OP_WRITE, PLACE_SMALL, i % 100, 0, 100000, 9,
			 0);
		rc = job_run(lane, &j);
		job_free(&j);
		if (rc < 0 || (i == 2 && send(ctl, &rc, sizeof(rc), MSG_NOSIGNAL) < 0))
			return 1;
	}
}

/* Until it has begun to transfer, it may ask the target for something. @return its epoch, 0 when
 * nobody had to know it */
static uint64_t serve_initiator(struct peer *p)
{
	uint64_t epoch = 0;
	struct order o;

	while (recv(p->ctl, &o, sizeof(o), 0) == sizeof(o)) {
		struct reply r = peer_order(&env.peer, o);

		epoch = o.b;
		assert_int_equal(send(p->ctl, &r, sizeof(r), MSG_NOSIGNAL), sizeof(r));
	}
	return epoch;
}

static void kill_initiator_once(void)
{
	char num[16];
	struct peer p = {.ctl = -1};
	uint64_t epoch;
	int fds[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds), 0);
	(void)snprintf(num, sizeof(num), "%d", fds[1]);
	p.pid = fork();
	assert_true(p.pid >= 0);
	if (p.pid == 0) {
		int fd = dup(fds[1]); /* without CLOEXEC */

		(void)prctl(PR_SET_PDEATHSIG, SIGKILL);
		(void)snprintf(num, sizeof(num), "%d", fd);
		execl("/proc/self/exe", "conform", "--initiator", env.tr->name, num, (char *)NULL);
		_exit(127);
	}
	assert_int_equal(close(fds[1]), 0);
	p.ctl = fds[0];
	assert_int_equal(send(p.ctl, &env.peer.hello, sizeof(env.peer.hello), 0),
			 sizeof(env.peer.hello));
	epoch = serve_initiator(&p);
	if (mc_rand_below(&env.rand, 2))
		(void)usleep((unsigned)mc_rand_below(&env.rand, 1000));
	peer_kill(&p, SIGKILL);
	if (env.tr->forget)
		assert_int_equal(order(.op = ORDER_FORGET, .a = epoch).rc, 0);
}

static void killed_initiators_leave_nothing_at_the_target(void **state)
{
	unsigned rounds = env.is_long ? 200 : 16;
	struct reply before, after;

	env_reset();
	kill_initiator_once();
	sched_yield_some();
	wait_until(order(.op = ORDER_STAT).rc == 0);
	before = order(.op = ORDER_STAT);
	for (unsigned i = 0; i < rounds; i++)
		kill_initiator_once();
	/* Whatever a dead initiator held, the owner can take its memory back. */
	assert_int_equal(order(.op = ORDER_DEL, .i = PLACE_SMALL).rc, 0);
	env.rr[PLACE_SMALL] = order(.op = ORDER_ADD, .i = PLACE_SMALL).rr;
	env.peer.hello.rr[PLACE_SMALL] = env.rr[PLACE_SMALL];
	after = stat_when_settled(before);
	assert_true(after.val3 <= before.val3 + RESIDENT_SLACK_KIB);
	assert_int_equal(order(.op = ORDER_FILL, .i = PLACE_SMALL, .a = 3).rc, 0);
	pattern_fill(env.shadow[PLACE_SMALL], place_len(PLACE_SMALL), 3);
	env_check();
	(void)state;
}

const struct conform_case cases_life[] = {
    {"an unused lane can be aborted and closed at any point",
     an_unused_lane_can_be_aborted_and_closed_at_any_point, 0, 0, 0},
    {"slices that never left come back unsent", slices_that_never_left_come_back_unsent, T_ALIVE, 0,
     0},
    {"an aborted lane takes and gives nothing", an_aborted_lane_takes_and_gives_nothing, T_ALIVE, 0,
     0},
    {"reads that were aborted touch local memory no more",
     reads_that_were_aborted_touch_local_memory_no_more, T_ALIVE, 0, 0},
    {"after retirement nothing of the lane lands", after_retirement_nothing_of_the_lane_lands,
     T_ALIVE, 0, MC_XCAP_FENCE},
    {"a lane retired before it arrives is refused when it does",
     a_lane_retired_before_it_arrives_is_refused_when_it_does, T_RELAY, 0, MC_XCAP_FENCE},
    {"a strange token is an error or nobody", a_strange_token_is_an_error_or_nobody, 0, 0,
     MC_XCAP_FENCE},
    {"another epoch or nonce is turned away", another_epoch_or_nonce_is_turned_away, T_AUTH, 0, 0},
    {"a peer that stops and goes on loses nothing", a_peer_that_stops_and_goes_on_loses_nothing,
     T_ALIVE, 0, 0},
    {"a killed target ends every slice and leaves nothing behind",
     a_killed_target_ends_every_slice_and_leaves_nothing_behind, T_REMOTE, T_MUTE, 0},
    {"a thousand lanes leave nothing behind", a_thousand_lanes_leave_nothing_behind, 0, 0, 0},
    {"killed initiators leave nothing at the target", killed_initiators_leave_nothing_at_the_target,
     T_REMOTE, T_RELAY, 0},
    {0},
};
