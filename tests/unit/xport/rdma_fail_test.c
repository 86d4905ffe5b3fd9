/*
 * rdma_fail_test.c: what breaks, and what the engine is told: codes and their scopes, verdicts,
 * fences, and that nothing is left behind by any of it.
 */
#include <errno.h>

#include "base/sync.h"
#include "rdma_peers.h"

#define DEPTH 128u

static struct rdma_job jobs[DEPTH];

static void open_peers(void)
{
	struct verbs_fake_conf conf = {.ndevs = 2, .max_inline = 32};

	assert_int_equal(rdma_peers_open(&conf), 0);
}

static void post_writes(struct mc_xlane *lane, unsigned n, uint64_t len)
{
	struct mc_slice *list[DEPTH];

	for (unsigned i = 0; i < n; i++)
		list[i] = rdma_job(&jobs[i], MC_OP_WRITE, i * len, len);
	assert_int_equal(lane->ops->post(lane, list, n), n);
}

/* Poll until the lane breaks. @return its code */
static int poll_broken(struct mc_xlane *lane)
{
	struct mc_slice *done[8];

	for (unsigned tries = 0; tries < RDMA_POLLS; tries++) {
		int rc = lane->ops->poll(lane, 0, done, 8);

		if (rc < 0)
			return rc;
		for (int i = 0; i < rc; i++)
			((struct rdma_job *)done[i]->user)->ended++;
	}
	fail_msg("the lane does not break");
	return 0;
}

/* ---- causes ---- */

static void a_stale_key_ends_its_slice_alone_and_innocents_go_again(void **state)
{
	struct mc_remote_region stale;
	unsigned again = 0, bad = 5;

	for (unsigned qps = 1; qps <= 4; qps += 3) {
		struct mc_slice *list[32];
		struct mc_xlane *lane;
		struct rdma_left left;
		int rc;

		open_peers();
		rdma_dev(&rp.a)->conf.qps = qps;
		lane = rdma_lane();
		stale = rp.b.rr;
		stale.key[4] ^= 1; /* of the remote port 1 */
		for (unsigned i = 0; i < 32; i++)
			list[i] = rdma_job(&jobs[i], MC_OP_WRITE, i * 4096, 4096);
		jobs[bad].frags[0].rr = &stale;
		/* None of these requests is signalled but the last of 16: the culprit is named by
		 * its number all the same. */
		assert_int_equal(lane->ops->post(lane, list, 32), 32);
		rc = poll_broken(lane);
		assert_int_equal(mc_err_scope(rc), MC_SCOPE_OP);
		for (unsigned i = 0; i < bad; i++)
			assert_true(jobs[i].ended == 1 && jobs[i].s.status == 0);
		assert_true(jobs[bad].ended == 1 && jobs[bad].s.status == -MC_E_STALE);
		left = rdma_lane_end_all(lane);
		for (unsigned i = bad + 1; i < 32; i++) {
			if (jobs[i].ended)
				continue;
			assert_int_equal(jobs[i].s.verdict, MC_SLICE_MAYBE);
			again++;
		}
		assert_true(left.maybe > 0 && left.token_len == 16);
		assert_int_equal(rdma_retire(&left), 0);
		lane = rdma_lane();
		for (unsigned i = bad + 1; i < 32; i++)
			if (!jobs[i].ended)
				assert_int_equal(rdma_run(lane, &jobs[i].s), 0);
		assert_true(rdma_same(0, bad * 4096) && rdma_same(6 * 4096, 26 * 4096));
		assert_false(rdma_same(bad * 4096, 4096));
		lane->ops->lane_close(lane);
		rdma_peers_close();
	}
	assert_true(again > 0);
	(void)state;
}

static void each_status_has_its_scope(void **state)
{
	static const struct {
		enum ibv_wc_status status;
		enum mc_err_scope scope;
	} causes[] = {
	    {IBV_WC_RETRY_EXC_ERR, MC_SCOPE_RAIL}, {IBV_WC_RNR_RETRY_EXC_ERR, MC_SCOPE_RAIL},
	    {IBV_WC_REM_OP_ERR, MC_SCOPE_RAIL},	   {IBV_WC_REM_ACCESS_ERR, MC_SCOPE_OP},
	    {IBV_WC_FATAL_ERR, MC_SCOPE_DEVICE},   {IBV_WC_GENERAL_ERR, MC_SCOPE_RAIL},
	};

	for (size_t i = 0; i < MC_ARRAY_LEN(causes); i++) {
		bool is_op = causes[i].scope == MC_SCOPE_OP;
		struct rdma_left left;
		struct mc_xlane *lane;
		int rc;

		open_peers();
		lane = rdma_lane();
		verbs_fake_fail_wr(3, causes[i].status);
		post_writes(lane, 8, 4096);
		rc = poll_broken(lane);
		assert_int_equal(mc_err_scope(rc), causes[i].scope);
		for (unsigned k = 0; k < 3; k++)
			assert_true(jobs[k].ended == 1 && jobs[k].s.status == 0);
		assert_int_equal(jobs[3].ended, is_op);
		left = rdma_lane_end_all(lane);
		assert_int_equal(left.maybe, is_op ? 4 : 5);
		rdma_peers_close();
	}
	(void)state;
}

static void a_peer_that_let_go_of_its_queue_pair_is_a_lost_rail(void **state)
{
	struct mc_xlane *lane;
	struct rdma_left left;
	int rc;

	open_peers();
	lane = rdma_lane();
	post_writes(lane, 4, 4096);
	assert_int_equal(rdma_poll(lane, 4), 0);
	mc_rdma_forget(rp.b.dev, rp.a.epoch);
	post_writes(lane, 4, 4096);
	(void)verbs_fake_expire();
	rc = poll_broken(lane);
	assert_int_equal(mc_err_scope(rc), MC_SCOPE_RAIL);
	left = rdma_lane_end_all(lane);
	assert_int_equal(left.maybe, 4);
	assert_int_equal(rdma_retire(&left), 0);
	rdma_peers_close();
	(void)state;
}

static void a_port_that_goes_down_breaks_its_lanes_and_opens_none(void **state)
{
	struct mc_xlane *lane, *none = NULL;
	struct mc_slice *s;

	open_peers();
	lane = rdma_lane();
	atomic_store(&rdma_dev(&rp.a)->hca[0].is_up, false);
	s = rdma_job(&jobs[0], MC_OP_WRITE, 0, 100);
	assert_int_equal(lane->ops->post(lane, &s, 1), -MC_E_LINK_DOWN);
	assert_int_equal(poll_broken(lane), -MC_E_LINK_DOWN);
	(void)rdma_lane_end_all(lane);
	assert_int_equal(rdma_lane_new(&none), -MC_E_LINK_DOWN);
	atomic_store(&rdma_dev(&rp.a)->hca[0].is_up, true);
	atomic_store(&rdma_dev(&rp.a)->hca[0].is_fatal, true);
	assert_int_equal(rdma_lane_new(&none), -MC_E_DEVICE);
	atomic_store(&rdma_dev(&rp.a)->hca[0].is_fatal, false);
	lane = rdma_lane();
	assert_int_equal(rdma_run(lane, s), 0);
	lane->ops->lane_close(lane);
	rdma_peers_close();
	(void)state;
}

static void a_dead_device_is_said_so_and_everything_is_freed(void **state)
{
	struct rdma_left left;
	struct mc_xlane *lane;
	int rc;

	open_peers();
	lane = rdma_lane();
	verbs_fake_hold(VERBS_FAKE_HOLD_REQUESTS);
	post_writes(lane, 4, 4096);
	verbs_fake_kill_dev(0);
	while (!atomic_load(&rdma_dev(&rp.a)->hca[0].is_fatal)) /* its event comes to the loop */
		mc_cpu_relax();
	rc = poll_broken(lane);
	assert_int_equal(mc_err_scope(rc), MC_SCOPE_DEVICE);
	left = rdma_lane_end_all(lane);
	assert_int_equal(left.maybe, 4);
	assert_int_equal(rdma_retire(&left), 0);
	verbs_fake_hold(VERBS_FAKE_PROMPT);
	rdma_peers_close();
	(void)state;
}

/* ---- stuck and late ---- */

static void a_stuck_request_does_not_hold_up_abort(void **state)
{
	struct mc_xlane *lane;
	struct rdma_left left;
	struct mc_slice *list[3], *done;
	uint64_t from_ns;

	open_peers();
	lane = rdma_lane();
	verbs_fake_link(1, 1, VERBS_FAKE_DROP);
	list[0] = rdma_job(&jobs[0], MC_OP_WRITE, 0, 4096);
	list[1] = rdma_job(&jobs[1], MC_OP_READ, 8192, 4096);
	assert_int_equal(lane->ops->post(lane, list, 2), 2);
	assert_int_equal(lane->ops->poll(lane, 0, &done, 1), 0);
	assert_int_equal(lane->ops->progress(lane), 0);
	from_ns = mc_now_ns();
	left = rdma_lane_end_all(lane);
	assert_true(mc_now_ns() - from_ns < MC_NS_PER_S);
	assert_int_equal(left.maybe, 1);
	assert_int_equal(left.unsent, 1);
	assert_int_equal(jobs[0].s.verdict, MC_SLICE_MAYBE);
	verbs_fake_link(1, 1, VERBS_FAKE_UP);
	rdma_peers_close();
	(void)state;
}

static void reads_that_were_aborted_touch_local_memory_no_more(void **state)
{
	struct mc_xlane *lane;
	struct rdma_left left;
	struct mc_slice *s;

	open_peers();
	lane = rdma_lane();
	verbs_fake_hold(VERBS_FAKE_HOLD_REQUESTS);
	s = rdma_job(&jobs[0], MC_OP_READ, 0, 4096);
	assert_int_equal(lane->ops->post(lane, &s, 1), 1);
	left = rdma_lane_end_all(lane);
	assert_int_equal(left.unsent, 1);
	memset(rp.a.mem, 0x77, 4096);
	verbs_fake_hold(VERBS_FAKE_PROMPT);
	for (unsigned i = 0; i < 4096; i++)
		assert_int_equal(rp.a.mem[i], 0x77);
	rdma_peers_close();
	(void)state;
}

/* A write of an aborted lane lands late: until its lane is retired, and never after. */
static void nothing_lands_once_the_target_has_retired_the_lane(void **state)
{
	for (unsigned is_retired = 0; is_retired < 2; is_retired++) {
		struct mc_xlane *lane;
		struct rdma_left left;

		open_peers();
		lane = rdma_lane();
		verbs_fake_hold(VERBS_FAKE_HOLD_REQUESTS);
		post_writes(lane, 16, 4096);
		left = rdma_lane_end_all(lane);
		assert_int_equal(left.maybe, 16);
		memset(rp.b.mem, 0x11, 16 * 4096);
		if (is_retired)
			assert_int_equal(rdma_retire(&left), 0);
		assert_true(verbs_fake_pending() > 0 || is_retired);
		(void)verbs_fake_step(1000);
		for (unsigned i = 0; i < 16 * 4096 && is_retired; i++)
			assert_int_equal(rp.b.mem[i], 0x11);
		/* Without the fence they do land, or this test would show nothing. */
		if (!is_retired)
			assert_true(rdma_same(0, 16 * 4096));
		verbs_fake_hold(VERBS_FAKE_PROMPT);
		rdma_peers_close();
	}
	(void)state;
}

static void what_completed_before_the_abort_is_done(void **state)
{
	struct mc_xlane *lane;
	struct rdma_left left;

	open_peers();
	lane = rdma_lane();
	post_writes(lane, 16, 4096);
	verbs_fake_hold(VERBS_FAKE_HOLD_REQUESTS);
	for (unsigned i = 16; i < 20; i++) {
		struct mc_slice *s = rdma_job(&jobs[i], MC_OP_WRITE, i * 4096, 4096);

		assert_int_equal(lane->ops->post(lane, &s, 1), 1);
	}
	left = rdma_lane_end_all(lane);
	assert_int_equal(left.done, 16);
	assert_int_equal(left.maybe, 4);
	for (unsigned i = 0; i < 16; i++)
		assert_int_equal(jobs[i].s.status, 0);
	verbs_fake_hold(VERBS_FAKE_PROMPT);
	rdma_peers_close();
	(void)state;
}

static void slices_that_found_no_room_come_back_unsent(void **state)
{
	struct mc_xlane *lane;
	struct rdma_left left;

	open_peers();
	rdma_dev(&rp.a)->conf.wrs_max = 4;
	lane = rdma_lane();
	verbs_fake_hold(VERBS_FAKE_HOLD_REQUESTS);
	post_writes(lane, 20, 4096);
	left = rdma_lane_end_all(lane);
	assert_int_equal(left.maybe, 4);
	assert_int_equal(left.unsent, 16);
	for (unsigned i = 0; i < 20; i++)
		assert_int_equal(jobs[i].s.verdict, i < 4 ? MC_SLICE_MAYBE : MC_SLICE_UNSENT);
	verbs_fake_hold(VERBS_FAKE_PROMPT);
	rdma_peers_close();
	(void)state;
}

static void an_aborted_lane_takes_and_gives_nothing(void **state)
{
	uint8_t token[MC_XPORT_TOKEN_MAX];
	struct mc_slice *s, *done;
	struct mc_xlane *lane;
	struct mc_list left;
	struct mc_xarm arm;

	open_peers();
	lane = rdma_lane();
	mc_list_init(&left);
	assert_int_equal(lane->ops->abort(lane, &left, token), 16);
	s = rdma_job(&jobs[0], MC_OP_READ, 0, 64);
	assert_true(lane->ops->post(lane, &s, 1) < 0);
	assert_true(lane->ops->poll(lane, 1000, &done, 1) < 0);
	lane->ops->arm(lane, &arm);
	assert_true(arm.fd == -1 && arm.is_ready);
	(void)lane->ops->abort(lane, &left, token);
	assert_true(mc_list_is_empty(&left));
	lane->ops->lane_close(lane);
	rdma_peers_close();
	(void)state;
}

/* ---- every verb, at every call ---- */

/* Opens both sides, a lane, moves 40 slices both ways with a signal among them, ends in one of two
 * ways. @return 0 or the first error */
static int whole_life(bool is_aborted)
{
	struct mc_xlane *lane = NULL;
	struct mc_slice *list[40];
	struct mc_xarm arm;
	int rc = rdma_lane_new(&lane);

	if (rc < 0)
		return rc;
	rc = rdma_lane_introduce(lane);
	for (unsigned i = 0; i < 40; i++)
		list[i] = rdma_job(&jobs[i], i % 2 ? MC_OP_READ : MC_OP_WRITE, i * 4096, 4096);
	jobs[4].s.signal =
	    (struct mc_signal){.rr = &rp.b.rr, .raddr = rp.b.rr.addr + 65536 * 8, .value = 5};
	if (rc == 0)
		rc = lane->ops->post(lane, list, 40);
	if (rc >= 0) {
		lane->ops->arm(lane, &arm);
		rc = rdma_poll(lane, 40);
	}
	if (rc < 0 || is_aborted) {
		struct rdma_left left = rdma_lane_end_all(lane);

		while (left.token_len && rdma_retire(&left) == -MC_E_AGAIN)
			;
	} else {
		lane->ops->lane_close(lane);
	}
	return rc;
}

static void every_verb_may_fail_at_every_call(void **state)
{
	unsigned failures = 0;

	for (unsigned call = 0; call <= VERBS_FAKE_ANY; call++) {
		for (unsigned index = 0;; index++) {
			struct verbs_fake_conf conf = {.ndevs = 2};
			bool has_failed;
			int rc;

			assert_int_equal(rdma_peers_open(&conf), 0);
			rdma_dev(&rp.a)->conf.qps = 2;
			verbs_fake_fail((enum verbs_fake_call)call, index,
					index % 2 ? EIO : ENOMEM);
			rc = whole_life(index % 3 == 0);
			has_failed = verbs_fake_fail_clear();
			failures += has_failed;
			if (rc < 0)
				assert_true(has_failed && mc_err_scope(rc) != MC_SCOPE_PEER);
			/* Afterwards everything works, and nothing is left. */
			assert_int_equal(whole_life(true), 0);
			rdma_peers_close();
			if (!has_failed)
				break;
		}
	}
	assert_true(failures > 60);
	(void)state;
}

static void a_thousand_failures_leave_nothing_behind(void **state)
{
	struct verbs_fake_live before, after;
	struct mc_rdma_stats st;
	int64_t live;

	open_peers();
	(void)whole_life(true);
	verbs_fake_live(&before);
	live = mc_mem_live();
	for (unsigned i = 0; i < 1000; i++) {
		struct rdma_left left;
		struct mc_xlane *lane = rdma_lane();

		verbs_fake_fail_wr((unsigned)mc_rand_below(&rp.rand, 8),
				   i % 2 ? IBV_WC_RETRY_EXC_ERR : IBV_WC_REM_ACCESS_ERR);
		post_writes(lane, 8, 4096);
		(void)poll_broken(lane);
		left = rdma_lane_end_all(lane);
		assert_int_equal(rdma_retire(&left), 0);
	}
	verbs_fake_live(&after);
	assert_memory_equal(&before, &after, sizeof(after));
	assert_int_equal(mc_mem_live(), live);
	mc_rdma_stats_get(rp.b.dev, &st);
	assert_true(st.accepted == 1001 && st.retired == 1001 && st.inbound == 0);
	rdma_peers_close();
	(void)state;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(a_stale_key_ends_its_slice_alone_and_innocents_go_again),
	    cmocka_unit_test(each_status_has_its_scope),
	    cmocka_unit_test(a_peer_that_let_go_of_its_queue_pair_is_a_lost_rail),
	    cmocka_unit_test(a_port_that_goes_down_breaks_its_lanes_and_opens_none),
	    cmocka_unit_test(a_dead_device_is_said_so_and_everything_is_freed),
	    cmocka_unit_test(a_stuck_request_does_not_hold_up_abort),
	    cmocka_unit_test(reads_that_were_aborted_touch_local_memory_no_more),
	    cmocka_unit_test(nothing_lands_once_the_target_has_retired_the_lane),
	    cmocka_unit_test(what_completed_before_the_abort_is_done),
	    cmocka_unit_test(slices_that_found_no_room_come_back_unsent),
	    cmocka_unit_test(an_aborted_lane_takes_and_gives_nothing),
	    cmocka_unit_test(every_verb_may_fail_at_every_call),
	    cmocka_unit_test(a_thousand_failures_leave_nothing_behind),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
