/*
 * rdma_test.c: two real engines with RDMA between them, over the fabric of verbs_fake.h: rails,
 * lanes opened by a worker, keys, fallback to TCP and back, fences, peers that are gone.
 */
#include "rdma_ends.h"

/* ---- tests ---- */

static void bytes_go_both_ways_over_rdma(void **state)
{
	struct mc_rdma_stats st;
	char *text;

	(void)state;
	assert_int_equal(write_all(), 0);
	assert_memory_equal(local, remote, BYTES);
	memset(local, 0, BYTES);
	assert_int_equal(move(MC_READ, local, 0, BYTES, 0), 0);
	assert_memory_equal(local, remote, BYTES);
	assert_int_equal(rdma_bytes(), 2 * BYTES);
	assert_int_equal(tcp_bytes(), 0);
	assert_string_equal(session()->rdma.v[0].stats->rail, "fake0->fake0");
	stats_of(a, &st);
	/* Slices of 64 KiB, 16 of them with one call and one completion. */
	assert_true(st.posts <= 2 * BYTES / 65536 / 16 + 2);
	assert_true(st.signaled <= 2 * BYTES / 65536 / 16 + 2);
	text = mc_metrics_text(a);
	assert_non_null(text);
	assert_non_null(strstr(text, "rail=\"fake0->fake0\""));
	mc_text_free(text);
}

static void a_group_that_a_loop_drives_waits_for_its_lane(void **state)
{
	(void)state;
	memset(remote, 0, BYTES);
	assert_int_equal(result(submit(MC_WRITE, 0, BYTES)), 0);
	assert_memory_equal(local, remote, BYTES);
	assert_int_equal(rdma_bytes(), BYTES);
}

/* As if nobody had used them for long: the next claim looks at them first. */
static void lanes_age(void)
{
	struct mc_session *s = session();
	struct mc_elane *lane;

	pthread_mutex_lock(&s->mu);
	mc_list_each (lane, &s->lanes, link)
		lane->idle_since_ns = 0;
	pthread_mutex_unlock(&s->mu);
}

static void a_lane_that_lay_idle_is_used_again(void **state)
{
	struct mc_rdma_stats st;

	(void)state;
	for (unsigned i = 0; i < 10; i++) {
		assert_int_equal(result(submit(MC_WRITE, 0, BYTES)), 0);
		EVENTUALLY(lanes_owned() == 0);
		lanes_age();
		assert_int_equal(write_all(), 0);
		lanes_age();
	}
	stats_of(b, &st);
	assert_int_equal(st.accepted, 1);
	assert_int_equal(tcp_bytes(), 0);
}

static void a_lane_that_nobody_uses_is_closed_and_its_target_told(void **state)
{
	struct mc_rdma_stats st;

	(void)state;
	assert_int_equal(write_all(), 0);
	assert_int_equal(lanes_ready(), 1);
	/* Its last use is not older than that. */
	assert_int_equal(mc_lane_retire_idle(session(), MC_ROUTE_RDMA, mc_now_ns() - SOON_NS), 0);
	EVENTUALLY(lanes_ready() == 0);
	EVENTUALLY((stats_of(b, &st), st.inbound == 0));
	EVENTUALLY((stats_of(a, &st), st.lanes == 0 && st.qps == 0));
	assert_int_equal(session()->rdma.v[0].health.failures, 0);
	assert_int_equal(write_all(), 0);
	assert_memory_equal(local, remote, BYTES);
	assert_int_equal(rdma_bytes(), 2 * BYTES);
	assert_int_equal(tcp_bytes(), 0);
}

static void one_request_uses_all_rails(void **state)
{
	uint64_t id;

	(void)state;
	assert_int_equal(move(MC_WRITE, local, 0, 4096, 0), 0);
	assert_int_equal(session()->rdma.n, 4);
	EVENTUALLY(lanes_ready() == 4);
	verbs_fake_hold(VERBS_FAKE_HOLD_REQUESTS);
	id = submit(MC_WRITE, 0, BYTES);
	EVENTUALLY(verbs_fake_pending() >= BYTES / 65536);
	verbs_fake_hold(VERBS_FAKE_PROMPT);
	assert_int_equal(result(id), 0);
	assert_memory_equal(local, remote, BYTES);
	for (unsigned i = 0; i < 4; i++)
		assert_true(rail_bytes(&session()->rdma.v[i]) >= BYTES / 4);
	assert_int_equal(tcp_bytes(), 0);
}

/* However many rails share the work: each has sixteen slices at a time while there are as many. */
static void eight_rails_at_work_have_one_completion_for_sixteen_slices(void **state)
{
	const uint64_t len = 8ull * BYTES;
	struct mc_rdma_stats before, st;
	uint8_t *big = mc_aligned_alloc(4096, len), *there = mc_aligned_alloc(4096, len);
	uint8_t *far = remote;

	(void)state;
	assert_true(big && there);
	assert_int_equal(move(MC_WRITE, local, 0, 4096, 0), 0);
	EVENTUALLY(lanes_ready() == 8);
	assert_int_equal(mc_mem_reg(a, big, len, NULL, 3), 0);
	assert_int_equal(mc_mem_reg(b, there, len, NULL, 3), 0);
	stats_of(a, &before);
	remote = there;
	assert_int_equal(move(MC_WRITE, big, 0, len, 0), 0);
	remote = far;
	stats_of(a, &st);
	assert_true(st.signaled - before.signaled <= len / 65536 / 16 + 8);
	assert_int_equal(tcp_bytes(), 0);
	assert_int_equal(mc_mem_unreg(a, big), 0);
	assert_int_equal(mc_mem_unreg(b, there), 0);
	mc_free(big);
	mc_free(there);
}

/* Lanes of rails that are not used are not opened. */
static void ports_close_to_the_memory_are_taken_while_one_is_up(void **state)
{
	(void)state;
	assert_int_equal(write_all(), 0);
	EVENTUALLY(lanes_ready() == 2);
	assert_int_equal(write_all(), 0);
	assert_memory_equal(local, remote, BYTES);
	assert_int_equal(rail_bytes(&session()->rdma.v[1]) + rail_bytes(&session()->rdma.v[2]),
			 2 * BYTES);
	verbs_fake_link(1, 1, VERBS_FAKE_DOWN);
	verbs_fake_link(2, 1, VERBS_FAKE_DOWN);
	assert_int_equal(write_all(), 0);
	assert_memory_equal(local, remote, BYTES);
	assert_true(rail_bytes(&session()->rdma.v[0]) + rail_bytes(&session()->rdma.v[3]) > 0);
	assert_int_equal(tcp_bytes(), 0);
}

static void a_lane_that_cannot_be_opened_leaves_tcp(void **state)
{
	uint64_t before;

	(void)state;
	verbs_fake_fail(VERBS_FAKE_CREATE_QP, 0, ENOMEM);
	assert_int_equal(write_all(), 0);
	assert_true(verbs_fake_fail_clear());
	assert_memory_equal(local, remote, BYTES);
	assert_true(tcp_bytes() > 0);
	before = rdma_bytes();
	/* It is tried again by and by. */
	EVENTUALLY(move(MC_WRITE, local, 0, 4096, 0) == 0 && rdma_bytes() > before);
}

static void a_port_that_goes_down_costs_no_error(void **state)
{
	struct mc_rdma_stats st;
	struct mc_elane *lane;
	uint64_t before;

	(void)state;
	assert_int_equal(write_all(), 0);
	before = tcp_bytes();
	mc_list_each (lane, &session()->lanes, link)
		lane->idle_since_ns = 0; /* it is looked at before it is used again */
	verbs_fake_link(0, 1, VERBS_FAKE_DOWN);
	assert_int_equal(write_all(), 0);
	assert_memory_equal(local, remote, BYTES);
	assert_int_equal(tcp_bytes() - before, BYTES);
	verbs_fake_link(0, 1, VERBS_FAKE_UP);
	before = rdma_bytes();
	EVENTUALLY(move(MC_WRITE, local, 0, 4096, 0) == 0 && rdma_bytes() > before);
	EVENTUALLY((stats_of(b, &st), st.inbound == 1)); /* nothing is left of the old one */
}

static void one_rail_of_four_that_goes_down_is_left_to_the_others(void **state)
{
	uint64_t lost, id;

	(void)state;
	assert_int_equal(write_all(), 0);
	memset(remote, 0, BYTES);
	verbs_fake_hold(VERBS_FAKE_HOLD_REQUESTS);
	id = submit(MC_WRITE, 0, BYTES);
	EVENTUALLY(verbs_fake_pending() > 8);
	verbs_fake_link(1, 1, VERBS_FAKE_DOWN);
	verbs_fake_hold(VERBS_FAKE_PROMPT);
	assert_int_equal(result(id), 0);
	assert_memory_equal(local, remote, BYTES);
	assert_int_equal(tcp_bytes(), 0);
	lost = rail_bytes(&session()->rdma.v[1]);
	assert_int_equal(write_all(), 0);
	assert_int_equal(rail_bytes(&session()->rdma.v[1]), lost);
	verbs_fake_link(1, 1, VERBS_FAKE_UP);
	EVENTUALLY(write_all() == 0 && rail_bytes(&session()->rdma.v[1]) > lost);
}

static void a_port_that_was_down_at_first_becomes_a_rail(void **state)
{
	struct mc_rail *late;

	(void)state;
	assert_int_equal(write_all(), 0);
	assert_memory_equal(local, remote, BYTES);
	assert_int_equal(session()->rdma.n, 2);
	late = &session()->rdma.v[1];
	assert_string_equal(late->stats->rail, "fake1->fake1");
	assert_int_equal(rail_bytes(late), 0);
	verbs_fake_link(1, 1, VERBS_FAKE_UP);
	EVENTUALLY(write_all() == 0 && rail_bytes(late) > 0);
	assert_memory_equal(local, remote, BYTES);
	assert_int_equal(tcp_bytes(), 0);
}

static void rdma_begins_when_the_first_port_comes_up(void **state)
{
	(void)state;
	assert_int_equal(write_all(), 0);
	assert_int_equal(rdma_bytes(), 0);
	verbs_fake_link(0, 1, VERBS_FAKE_UP);
	verbs_fake_link(1, 1, VERBS_FAKE_UP);
	EVENTUALLY(write_all() == 0 && rdma_bytes() > 0);
	assert_memory_equal(local, remote, BYTES);
}

/* Both ends are this device's: the lane that lies idle knows an address that is no more. */
static void an_address_that_moves_costs_no_error(void **state)
{
	static const uint8_t none[16];
	struct mc_rdma_stats st;
	uint64_t before;
	uint8_t gid[16];

	(void)state;
	assert_int_equal(write_all(), 0);
	verbs_fake_gid_get(0, 1, 1, gid);
	gid[15] ^= 0x40;
	verbs_fake_gid_set(0, 1, 3, gid);
	verbs_fake_gid_set(0, 1, 1, none);
	EVENTUALLY(mc_rdma_port_is_up(a->rdma, 0) && mc_rdma_port_is_up(b->rdma, 0));
	lanes_age();
	assert_int_equal(write_all(), 0);
	assert_memory_equal(local, remote, BYTES);
	before = rdma_bytes();
	EVENTUALLY(write_all() == 0 && rdma_bytes() >= before + BYTES);
	EVENTUALLY((stats_of(b, &st), st.inbound == 1));
}

static void a_lid_that_changes_costs_no_error(void **state)
{
	uint64_t before;

	(void)state;
	assert_int_equal(write_all(), 0);
	verbs_fake_lid_set(0, 1, 99);
	assert_int_equal(write_all(), 0);
	assert_memory_equal(local, remote, BYTES);
	before = rdma_bytes();
	EVENTUALLY(write_all() == 0 && rdma_bytes() >= before + BYTES);
}

struct writing {
	pthread_t thread;
	int rc;
};

static void *write_main(void *arg)
{
	((struct writing *)arg)->rc = move(MC_WRITE, local, 0, BYTES, 0);
	return NULL;
}

/* A driver keeps a queue pair until its last packet is gone, which may take a second. */
static void others_go_on_while_the_lane_of_a_lost_rail_ends(void **state)
{
	struct writing w = {.rc = 1};
	uint64_t before[4];

	(void)state;
	assert_int_equal(move(MC_WRITE, local, 0, 4096, 0), 0);
	EVENTUALLY(lanes_ready() == 4); /* no rate is known yet: all get the same */
	for (unsigned i = 0; i < 4; i++)
		before[i] = rail_bytes(&session()->rdma.v[i]);
	memset(remote, 0, BYTES);
	verbs_fake_hold(VERBS_FAKE_HOLD_REQUESTS);
	assert_int_equal(pthread_create(&w.thread, NULL, write_main, &w), 0);
	EVENTUALLY(verbs_fake_pending() == BYTES / 65536);
	verbs_fake_block(VERBS_FAKE_DESTROY_QP);
	verbs_fake_link(1, 1, VERBS_FAKE_DOWN);
	EVENTUALLY(mc_counter_read(&session()->rdma.v[1].stats->broken) > 0);
	verbs_fake_hold(VERBS_FAKE_PROMPT);
	for (unsigned i = 0; i < 4; i++)
		if (i != 1)
			EVENTUALLY(rail_bytes(&session()->rdma.v[i]) >= before[i] + BYTES / 8);
	verbs_fake_block(VERBS_FAKE_ANY);
	assert_int_equal(pthread_join(w.thread, NULL), 0);
	assert_int_equal(w.rc, 0);
	assert_memory_equal(local, remote, BYTES);
	assert_int_equal(tcp_bytes(), 0);
}

/* Nor does a lane that was lost while it lay idle cost its next user anything. */
static void an_idle_lane_that_was_lost_ends_without_its_next_user(void **state)
{
	(void)state;
	assert_int_equal(write_all(), 0);
	EVENTUALLY(write_all() == 0 && lanes_ready() == 4);
	lanes_age();
	verbs_fake_block(VERBS_FAKE_DESTROY_QP);
	verbs_fake_link(1, 1, VERBS_FAKE_DOWN);
	EVENTUALLY(!mc_rdma_port_is_up(a->rdma, 1));
	assert_int_equal(write_all(), 0);
	assert_memory_equal(local, remote, BYTES);
	verbs_fake_block(VERBS_FAKE_ANY);
	assert_int_equal(tcp_bytes(), 0);
}

static unsigned probes_of(struct mc_rail *rail)
{
	unsigned n;

	pthread_mutex_lock(&rail->session->mu);
	n = rail->health.probes;
	pthread_mutex_unlock(&rail->session->mu);
	return n;
}

/* Its port stays up and its lanes connect, for introductions go another way. */
static void a_rail_that_loses_all_in_silence_gets_no_slice_until_bytes_cross_it(void **state)
{
	struct mc_rail *rail;
	uint64_t moved, retries, id;

	(void)state;
	assert_int_equal(write_all(), 0);
	rail = &session()->rdma.v[1];
	EVENTUALLY(write_all() == 0 && rail_bytes(rail) > 0); /* its lane is there */
	memset(remote, 0, BYTES);
	verbs_fake_link(1, 1, VERBS_FAKE_DROP);
	id = submit(MC_WRITE, 0, BYTES);
	EVENTUALLY(verbs_fake_pending() > 0);
	(void)verbs_fake_expire(); /* the HCA gives up */
	assert_int_equal(result(id), 0);
	assert_memory_equal(local, remote, BYTES);
	assert_int_equal(tcp_bytes(), 0);
	moved = rail_bytes(rail);
	retries = mc_counter_read(&rail->stats->retries);
	assert_true(retries > 0);
	EVENTUALLY((verbs_fake_expire(), write_all()) == 0 && probes_of(rail) > 2);
	assert_memory_equal(local, remote, BYTES);
	assert_int_equal(mc_counter_read(&rail->stats->retries), retries);
	assert_int_equal(rail_bytes(rail), moved);
	verbs_fake_link(1, 1, VERBS_FAKE_UP);
	EVENTUALLY(write_all() == 0 && rail_bytes(rail) > moved);
}

/* The bytes have landed, the acknowledgements are lost: nobody can know. */
static void writes_whose_outcome_is_unknown_are_fenced_before_they_go_elsewhere(void **state)
{
	struct mc_rdma_stats st;
	uint64_t id;

	(void)state;
	assert_int_equal(write_all(), 0);
	memset(remote, 0, BYTES);
	verbs_fake_link(0, 1, VERBS_FAKE_DROP_ACK);
	id = submit(MC_WRITE, 0, BYTES);
	EVENTUALLY(verbs_fake_pending() > 0);
	(void)verbs_fake_expire(); /* the HCA gives up */
	assert_int_equal(result(id), 0);
	assert_memory_equal(local, remote, BYTES);
	assert_true(tcp_bytes() > 0);
	stats_of(b, &st);
	assert_true(st.retired > 0);
	assert_int_equal(atomic_load(&a->quarantine.n), 0);
}

static void what_a_dead_peer_left_is_freed_after_a_while(void **state)
{
	struct mc_rdma_stats st;

	(void)state;
	assert_int_equal(write_all(), 0);
	stats_of(b, &st);
	assert_true(st.inbound > 0);
	mc_initiators_patience(b, 50 * MC_NS_PER_MS);
	assert_int_equal(mc_segment_close(a, seg), 0);
	EVENTUALLY((stats_of(b, &st), st.inbound == 0));
	/* A new session works as the first did. */
	assert_int_equal(mc_segment_open(a, mc_engine_name(b), 0, NULL, &seg), 0);
	assert_int_equal(write_all(), 0);
	assert_memory_equal(local, remote, BYTES);
	assert_int_equal(rdma_bytes(), 2 * BYTES);
}

static void a_device_list_is_held_to(void **state)
{
	struct mc_engine_opts opts = {.size = sizeof(opts),
				      .name = "127.0.0.1",
				      .protocol = "rdma",
				      .devices = "127.0.0.1, nosuch"};
	struct mc_engine *eng;
	struct mc_diag diag;

	(void)state;
	assert_int_equal(mc_engine_open_verbs(&opts, verbs, &diag, &eng), -MC_E_NOENT);
	assert_non_null(strstr(diag.text, "nosuch"));
	assert_non_null(strstr(diag.text, "fake0"));
	eng = engine("127.0.0.1,fake2");
	assert_int_equal(mc_rdma_ports(eng->rdma), 1);
	mc_engine_close(eng);
	opts.protocol = "tcp";
	assert_int_equal(mc_engine_open_verbs(&opts, verbs, &diag, &eng), 0);
	assert_null(eng->rdma);
	mc_engine_close(eng);
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
#define T4(name) cmocka_unit_test_setup_teardown(name, setup_four, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
	    T(bytes_go_both_ways_over_rdma),
	    T(a_group_that_a_loop_drives_waits_for_its_lane),
	    T(a_lane_that_lay_idle_is_used_again),
	    cmocka_unit_test_setup_teardown(a_lane_that_nobody_uses_is_closed_and_its_target_told,
					    setup_impatient, teardown),
	    T4(one_request_uses_all_rails),
	    cmocka_unit_test_setup_teardown(
		eight_rails_at_work_have_one_completion_for_sixteen_slices, setup_eight, teardown),
	    cmocka_unit_test_setup_teardown(ports_close_to_the_memory_are_taken_while_one_is_up,
					    setup_places, teardown),
	    T(a_lane_that_cannot_be_opened_leaves_tcp),
	    T(a_port_that_goes_down_costs_no_error),
	    T4(one_rail_of_four_that_goes_down_is_left_to_the_others),
	    cmocka_unit_test_setup_teardown(a_port_that_was_down_at_first_becomes_a_rail,
					    setup_half, teardown),
	    cmocka_unit_test_setup_teardown(rdma_begins_when_the_first_port_comes_up, setup_dark,
					    teardown),
	    T(an_address_that_moves_costs_no_error),
	    cmocka_unit_test_setup_teardown(a_lid_that_changes_costs_no_error, setup_infiniband,
					    teardown),
	    T4(others_go_on_while_the_lane_of_a_lost_rail_ends),
	    T4(an_idle_lane_that_was_lost_ends_without_its_next_user),
	    T4(a_rail_that_loses_all_in_silence_gets_no_slice_until_bytes_cross_it),
	    T(writes_whose_outcome_is_unknown_are_fenced_before_they_go_elsewhere),
	    T(what_a_dead_peer_left_is_freed_after_a_while),
	    T4(a_device_list_is_held_to),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
