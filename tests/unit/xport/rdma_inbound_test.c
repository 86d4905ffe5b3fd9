/*
 * rdma_inbound_test.c: the target's side: who is accepted, how many, when they end, and what a
 * retired lane can still do (nothing).
 */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>

#include "base/codec.h"
#include "rdma_peers.h"

static struct rdma_job job;

static void open_peers(void)
{
	struct verbs_fake_conf conf = {.ndevs = 2};

	assert_int_equal(rdma_peers_open(&conf), 0);
}

static void stats(struct mc_rdma_stats *ret)
{
	mc_rdma_stats_get(rp.b.dev, ret);
}

/* What an initiator of this incarnation, with no device behind it, would offer. */
static size_t made_up_offer(uint64_t epoch, uint64_t lane, uint8_t buf[MC_RDMA_OFFER_BYTES])
{
	struct mc_rdma_offer o = {
	    .lane = lane,
	    .initiator_epoch = epoch,
	    .target_epoch = rp.b.epoch,
	    .port = 1,
	    .end = {
		.mtu = IBV_MTU_1024, .rd_atomic = 16, .nqps = 1, .qpn = {0x1000 + (uint32_t)lane}}};

	memcpy(o.end.gid, rdma_dev(&rp.a)->hca[0].port.gid, sizeof(o.end.gid));
	o.end.lid = rdma_dev(&rp.a)->hca[0].port.lid;
	return mc_rdma_offer_encode(&o, buf);
}

static int accept_made_up(uint64_t epoch, uint64_t lane)
{
	uint8_t offer[MC_RDMA_OFFER_BYTES], answer[MC_RDMA_OFFER_BYTES];
	size_t len = made_up_offer(epoch, lane, offer);

	return rp.b.dev->ops->accept(rp.b.dev, epoch, offer, len, answer, sizeof(answer));
}

static int retire_made_up(uint64_t epoch, uint64_t lane)
{
	uint8_t token[MC_XPORT_TOKEN_MAX];
	struct mc_wr w = mc_wr_make(token, sizeof(token));
	uint64_t acked;

	mc_wr_u64(&w, epoch);
	mc_wr_u64(&w, lane);
	return rp.b.dev->ops->retire(rp.b.dev, token, mc_wr_len(&w), &acked);
}

/* ---- offers ---- */

static void offers_that_are_wrong_are_refused_and_leave_nothing(void **state)
{
	uint8_t buf[MC_RDMA_OFFER_BYTES], answer[MC_RDMA_OFFER_BYTES];
	const struct mc_xport_ops *ops;
	size_t len;

	open_peers();
	ops = rp.b.dev->ops;
	len = made_up_offer(77, 1, buf);
	assert_int_equal(ops->accept(rp.b.dev, 78, buf, len, answer, 128), -MC_E_PROTO);
	assert_int_equal(ops->accept(rp.b.dev, 77, buf, len - 1, answer, 128), -MC_E_PROTO);
	buf[24] ^= 1; /* the target's epoch */
	assert_int_equal(ops->accept(rp.b.dev, 77, buf, len, answer, 128), -MC_E_PEER_RESTARTED);
	(void)made_up_offer(77, 1, buf);
	buf[48] = 2; /* its port */
	assert_int_equal(ops->accept(rp.b.dev, 77, buf, len, answer, 128), -MC_E_NOENT);
	(void)made_up_offer(77, 1, buf);
	buf[4] = 9; /* the version */
	assert_int_equal(ops->accept(rp.b.dev, 77, buf, len, answer, 128), -MC_E_VERSION);
	assert_int_equal(rdma_dev(&rp.b)->nqps, 0);
	assert_true(accept_made_up(77, 1) > 0);
	assert_int_equal(accept_made_up(77, 1), -MC_E_STALE); /* once */
	rdma_peers_close();
	(void)state;
}

static void an_answer_that_is_not_for_this_lane_is_refused(void **state)
{
	uint8_t buf[MC_RDMA_OFFER_BYTES], answer[MC_RDMA_OFFER_BYTES];
	static const struct {
		size_t at;
		int rc;
	} wrong[] = {{8, -MC_E_PROTO},		  /* lane */
		     {16, -MC_E_PROTO},		  /* initiator */
		     {24, -MC_E_PEER_RESTARTED}}; /* target */

	open_peers();
	for (size_t i = 0; i < MC_ARRAY_LEN(wrong); i++) {
		struct mc_xlane *lane;
		int n;

		assert_int_equal(rdma_lane_new(&lane), 0);
		n = lane->ops->offer(lane, buf, sizeof(buf));
		n = rp.b.dev->ops->accept(rp.b.dev, rp.a.epoch, buf, (size_t)n, answer,
					  sizeof(answer));
		assert_true(n > 0);
		answer[wrong[i].at] ^= 1;
		assert_int_equal(lane->ops->connect(lane, answer, (size_t)n), wrong[i].rc);
		assert_int_equal(lane->ops->connect(lane, answer, 3), -MC_E_PROTO);
		(void)rdma_lane_end_all(lane);
	}
	rdma_peers_close();
	(void)state;
}

/* ---- retiring ---- */

static void a_lane_retired_before_it_arrives_is_refused_when_it_does(void **state)
{
	open_peers();
	assert_int_equal(retire_made_up(77, 5), 0);
	assert_int_equal(accept_made_up(77, 5), -MC_E_STALE);
	assert_true(accept_made_up(77, 6) > 0);
	assert_true(accept_made_up(78, 5) > 0); /* another initiator's */
	assert_int_equal(retire_made_up(77, 6), 0);
	assert_int_equal(accept_made_up(77, 6), -MC_E_STALE);
	assert_int_equal(retire_made_up(77, 6), 0); /* again is the same */
	rdma_peers_close();
	(void)state;
}

static void four_thousand_retired_lanes_are_remembered(void **state)
{
	open_peers();
	for (uint64_t lane = 0; lane < 5000; lane++)
		assert_int_equal(retire_made_up(77, lane), 0);
	assert_int_equal(accept_made_up(77, 4999), -MC_E_STALE);
	assert_int_equal(accept_made_up(77, 5000 - 4096), -MC_E_STALE);
	assert_true(accept_made_up(77, 5000 - 4097) > 0); /* forgotten */
	rdma_peers_close();
	(void)state;
}

static void a_token_that_is_none_is_a_broken_protocol(void **state)
{
	uint8_t token[MC_XPORT_TOKEN_MAX] = {0};
	uint64_t acked;

	open_peers();
	for (size_t len = 0; len <= sizeof(token); len++)
		assert_int_equal(rp.b.dev->ops->retire(rp.b.dev, token, len, &acked),
				 len == 16 ? 0 : -MC_E_PROTO);
	rdma_peers_close();
	(void)state;
}

static void a_queue_pair_that_will_not_go_at_once_is_destroyed_all_the_same(void **state)
{
	open_peers();
	assert_true(accept_made_up(77, 1) > 0);
	verbs_fake_fail(VERBS_FAKE_DESTROY_QP, 0, EBUSY);
	assert_int_equal(retire_made_up(77, 1), 0);
	assert_true(verbs_fake_fail_clear());
	assert_int_equal(rdma_dev(&rp.b)->ninbound, 0);
	rdma_peers_close();
	(void)state;
}

/* ---- peers that are gone ---- */

static void what_a_dead_initiator_held_is_let_go_of(void **state)
{
	struct mc_rdma_stats st;

	open_peers();
	for (uint64_t lane = 0; lane < 20; lane++) {
		assert_true(accept_made_up(77, lane) > 0);
		assert_true(accept_made_up(78, lane) > 0);
	}
	stats(&st);
	assert_true(st.inbound == 40 && st.qps == 40);
	mc_rdma_forget(rp.b.dev, 77);
	mc_rdma_forget(rp.b.dev, 4711);
	stats(&st);
	assert_true(st.inbound == 20 && st.qps == 20 && st.evicted == 0);
	rdma_peers_close();
	(void)state;
}

static void a_name_has_one_set_of_queue_pairs_a_port(void **state)
{
	struct mc_rdma_end peer = {.nqps = 2, .qpn = {0x100, 0x101}}, mine, first;
	char longest[2048];
	struct mc_rdma_stats st;

	open_peers();
	memcpy(peer.gid, rdma_dev(&rp.a)->hca[0].port.gid, sizeof(peer.gid));
	peer.lid = rdma_dev(&rp.a)->hca[0].port.lid;
	assert_int_equal(mc_rdma_accept_named(rp.b.dev, 1, "h:1@mlx5_0", &peer, &first), 0);
	assert_true(first.nqps == 2 && first.psn == 0);
	assert_int_equal(verbs_fake_qp_state(first.qpn[0]), IBV_QPS_RTS);
	assert_int_equal(mc_rdma_accept_named(rp.b.dev, 1, "h:1@mlx5_1", &peer, &mine), 0);
	assert_int_equal(mc_rdma_accept_named(rp.b.dev, 1, "h:1@mlx5_0", &peer, &mine), 0);
	assert_int_equal(verbs_fake_qp_state(first.qpn[0]), IBV_QPS_UNKNOWN);
	stats(&st);
	assert_true(st.inbound == 2 && st.qps == 4 && st.evicted == 0);
	assert_int_equal(mc_rdma_accept_named(rp.b.dev, 0, "h:1@mlx5_0", &peer, &first), 0);
	mc_rdma_forget_named(rp.b.dev, "h:1@mlx5_0"); /* at both ports */
	stats(&st);
	assert_true(st.inbound == 1 && st.qps == 2);
	assert_int_equal(mc_rdma_accept_named(rp.b.dev, 2, "x", &peer, &mine), -MC_E_NOENT);
	memset(longest, 'x', sizeof(longest) - 1);
	longest[sizeof(longest) - 1] = 0;
	assert_int_equal(mc_rdma_accept_named(rp.b.dev, 1, longest, &peer, &mine), -MC_E_PROTO);
	peer.nqps = 9;
	assert_int_equal(mc_rdma_accept_named(rp.b.dev, 1, "x", &peer, &mine), -MC_E_PROTO);
	peer.nqps = 0;
	assert_int_equal(mc_rdma_accept_named(rp.b.dev, 1, "x", &peer, &mine), -MC_E_PROTO);
	rdma_peers_close();
	(void)state;
}

/* As upstream's processes are met: both ends by their numbers, no offer. */
static void a_joined_lane_moves_bytes_and_has_no_fence(void **state)
{
	struct mc_xpath path = {.local_port = 0, .remote_port = 1};
	struct mc_rdma_end mine, theirs, wrong;
	struct rdma_left left;
	struct mc_xlane *lane;

	open_peers();
	assert_int_equal(rp.a.dev->ops->lane_open(rp.a.dev, &path, &lane), 0);
	mc_rdma_lane_end(lane, &mine);
	assert_int_equal(mine.nqps, 2); /* upstream's number */
	assert_int_equal(mc_rdma_accept_named(rp.b.dev, 1, "a@fake0", &mine, &theirs), 0);
	wrong = theirs;
	wrong.nqps = 1;
	assert_int_equal(mc_rdma_lane_join(lane, &wrong), -MC_E_PROTO);
	wrong.nqps = 77;
	assert_int_equal(mc_rdma_lane_join(lane, &wrong), -MC_E_PROTO);
	theirs.mtu = theirs.rd_atomic = 0; /* its handshake has no place for them */
	assert_int_equal(mc_rdma_lane_join(lane, &theirs), 0);
	assert_int_equal(rdma_run(lane, rdma_job(&job, MC_OP_WRITE, 0, 5000)), 0);
	assert_true(rdma_same(0, 5000));
	left = rdma_lane_end_all(lane);
	assert_int_equal(left.token_len, 0);
	rdma_peers_close();
	(void)state;
}

/* ---- bounds ---- */

static void too_many_lanes_make_room_as_sieve_says(void **state)
{
	struct mc_rdma_stats st;

	open_peers();
	rdma_dev(&rp.b)->conf.inbound_max = 4;
	for (uint64_t epoch = 1; epoch <= 4; epoch++)
		assert_true(accept_made_up(epoch, 1) > 0);
	/* 1, the oldest, was heard of since: the hand spares it and takes 2. */
	assert_int_equal(retire_made_up(1, 99), 0);
	assert_true(accept_made_up(5, 1) > 0);
	stats(&st);
	assert_true(st.inbound == 4 && st.evicted == 1);
	assert_int_equal(accept_made_up(1, 1), -MC_E_STALE);
	assert_int_equal(accept_made_up(3, 1), -MC_E_STALE);
	/* That was heard of both; the hand stands at 3: it is spared, 4 goes. */
	assert_true(accept_made_up(2, 1) > 0);
	assert_int_equal(accept_made_up(3, 1), -MC_E_STALE);
	assert_int_equal(accept_made_up(5, 1), -MC_E_STALE);
	assert_true(accept_made_up(4, 1) > 0);
	stats(&st);
	assert_true(st.inbound == 4 && st.evicted == 3);
	rdma_peers_close();
	(void)state;
}

static void a_device_without_queue_pairs_left_gives_up_an_old_lane(void **state)
{
	struct verbs_fake_conf conf = {.ndevs = 2, .max_qp = 4};
	struct mc_rdma_stats st;

	assert_int_equal(rdma_peers_open(&conf), 0);
	for (uint64_t epoch = 1; epoch <= 4; epoch++)
		assert_true(accept_made_up(epoch, 1) > 0);
	assert_true(accept_made_up(5, 1) > 0);
	stats(&st);
	assert_true(st.inbound == 4 && st.qps == 4 && st.evicted == 1);
	rdma_peers_close();
	(void)state;
}

static void every_verb_may_fail_while_accepting(void **state)
{
	unsigned failures = 0;

	for (unsigned index = 0;; index++) {
		bool has_failed;
		int rc;

		open_peers();
		verbs_fake_fail(VERBS_FAKE_ANY, index, index % 2 ? EINVAL : ENOMEM);
		rc = accept_made_up(77, 1);
		if (rc > 0)
			rc = retire_made_up(77, 1);
		has_failed = verbs_fake_fail_clear();
		failures += has_failed && rc < 0;
		assert_true(rc == 0 || has_failed);
		assert_true(accept_made_up(77, 2) > 0);
		assert_int_equal(retire_made_up(77, 2), 0);
		assert_int_equal(rdma_dev(&rp.b)->nqps, 0);
		rdma_peers_close();
		if (!has_failed)
			break;
	}
	assert_true(failures >= 4);
	(void)state;
}

/* ---- several at once ---- */

static _Atomic bool is_over;

static void *retirer(void *arg)
{
	(void)arg;
	for (uint64_t lane = 0; !atomic_load(&is_over); lane = (lane + 1) % 200) {
		while (retire_made_up(77, lane) == -MC_E_AGAIN)
			;
		if (lane == 100)
			mc_rdma_forget(rp.b.dev, 77);
	}
	return NULL;
}

/* Once a retirement is answered the lane has no queue pair and never gets one. */
static void accepting_and_retiring_race_to_the_same_end(void **state)
{
	pthread_t thread;
	struct mc_rdma_stats st;
	unsigned accepted = 0;

	open_peers();
	atomic_store(&is_over, false);
	assert_int_equal(pthread_create(&thread, NULL, retirer, NULL), 0);
	for (unsigned i = 0; i < 2000; i++) {
		int rc = accept_made_up(77, i % 200);

		assert_true(rc > 0 || rc == -MC_E_STALE);
		accepted += rc > 0;
	}
	atomic_store(&is_over, true);
	assert_int_equal(pthread_join(thread, NULL), 0);
	for (uint64_t lane = 0; lane < 200; lane++)
		assert_int_equal(retire_made_up(77, lane), 0);
	stats(&st);
	assert_true(st.inbound == 0 && st.qps == 0);
	assert_int_equal(st.accepted, accepted);
	rdma_peers_close();
	(void)state;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(offers_that_are_wrong_are_refused_and_leave_nothing),
	    cmocka_unit_test(an_answer_that_is_not_for_this_lane_is_refused),
	    cmocka_unit_test(a_lane_retired_before_it_arrives_is_refused_when_it_does),
	    cmocka_unit_test(four_thousand_retired_lanes_are_remembered),
	    cmocka_unit_test(a_token_that_is_none_is_a_broken_protocol),
	    cmocka_unit_test(a_queue_pair_that_will_not_go_at_once_is_destroyed_all_the_same),
	    cmocka_unit_test(what_a_dead_initiator_held_is_let_go_of),
	    cmocka_unit_test(a_name_has_one_set_of_queue_pairs_a_port),
	    cmocka_unit_test(a_joined_lane_moves_bytes_and_has_no_fence),
	    cmocka_unit_test(too_many_lanes_make_room_as_sieve_says),
	    cmocka_unit_test(a_device_without_queue_pairs_left_gives_up_an_old_lane),
	    cmocka_unit_test(every_verb_may_fail_while_accepting),
	    cmocka_unit_test(accepting_and_retiring_race_to_the_same_end),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
