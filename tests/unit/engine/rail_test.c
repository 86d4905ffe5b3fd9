/*
 * rail_test.c: decisions about rails, over time lines of outages, silences and completions.
 */
#include "engine/rail.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "base/mem.h"

#define MS MC_NS_PER_MS

static void rail_is_probed_after_a_pause_and_only_once(void **state)
{
	struct mc_rail_health h = {0};

	mc_rail_failed(&h, 1000 * MS);
	assert_int_equal(h.state, MC_RAIL_EJECTED);
	assert_false(mc_rail_wants_probe(&h, 1000 * MS + MC_RAIL_PAUSE_FIRST_NS - 1));
	assert_true(mc_rail_wants_probe(&h, 1000 * MS + MC_RAIL_PAUSE_FIRST_NS));
	assert_false(mc_rail_wants_probe(&h, 9000 * MS));
	mc_rail_probed(&h, true, 9000 * MS);
	assert_int_equal(h.state, MC_RAIL_UP);
	(void)state;
}

static void many_lanes_that_break_together_are_one_failure(void **state)
{
	struct mc_rail_health h = {0};

	for (int i = 0; i < 4; i++)
		mc_rail_failed(&h, 1000 * MS);
	assert_int_equal(h.failures, 1);
	assert_true(mc_rail_wants_probe(&h, 1000 * MS + MC_RAIL_PAUSE_FIRST_NS));
	/* A lane of before breaks while the probe is under way. */
	mc_rail_failed(&h, 1100 * MS);
	assert_int_equal(h.state, MC_RAIL_PROBING);
	(void)state;
}

/* Probes of a rail that is out for `out_ns` and needs 200 ms to be seen failing. @return when it is
 * back, after the repair */
static uint64_t outage(struct mc_rail_health *h, uint64_t from_ns, uint64_t out_ns,
		       unsigned *ret_probes)
{
	uint64_t now_ns = from_ns, repaired_ns = from_ns + out_ns;

	*ret_probes = 0;
	mc_rail_failed(h, now_ns);
	while (h->state != MC_RAIL_UP) {
		now_ns += 20 * MS;
		if (!mc_rail_wants_probe(h, now_ns))
			continue;
		++*ret_probes;
		if (now_ns < repaired_ns)
			now_ns += 200 * MS;
		mc_rail_probed(h, now_ns >= repaired_ns, now_ns);
	}
	return now_ns - repaired_ns;
}

static void repaired_rail_is_back_within_a_second_and_probes_are_few(void **state)
{
	for (uint64_t out_ms = 0; out_ms < 5000; out_ms += 130) {
		struct mc_rail_health h = {0};
		unsigned probes;

		assert_in_range(outage(&h, 7000 * MS, out_ms * MS, &probes), 0, 600 * MS);
		assert_in_range(probes, 1, 2 + out_ms / 200);
	}
	(void)state;
}

static void flapping_rail_waits_longer_until_it_has_been_good_for_a_while(void **state)
{
	struct mc_rail_health h = {0};
	uint64_t now_ns = 1000 * MS;

	for (int i = 0; i < 3; i++) {
		mc_rail_failed(&h, now_ns);
		now_ns = h.until_ns;
		assert_true(mc_rail_wants_probe(&h, now_ns));
		mc_rail_probed(&h, true, now_ns);
	}
	mc_rail_failed(&h, now_ns);
	assert_int_equal(h.until_ns - now_ns, MC_RAIL_PAUSE_MAX_NS);
	assert_true(mc_rail_wants_probe(&h, h.until_ns));
	mc_rail_probed(&h, true, h.until_ns);
	now_ns += 60 * MC_NS_PER_S;
	mc_rail_failed(&h, now_ns);
	assert_int_equal(h.until_ns - now_ns, MC_RAIL_PAUSE_FIRST_NS);
	(void)state;
}

/* What the watchdog saw each 20 ms, and when it has to give the rail up. */
struct watch_row {
	const char *name;
	struct mc_rail_watch w;
	uint64_t lost_after_ms; /* 0: never */
};

static void lost_rail_is_told_from_a_slow_peer(void **state)
{
	static const struct watch_row rows[] = {
	    {"link down",
	     {.has_others_up = true, .has_others_done = true, .is_link_down = true},
	     40},
	    {"link down, one slice only", {.has_others_up = true, .is_link_down = true}, 40},
	    {"silent, others moved", {.has_others_up = true, .has_others_done = true}, 100},
	    {"silent, nothing else moves: a stopped peer, or one slice",
	     {.has_others_up = true},
	     700},
	    {"the last rail", {.is_link_down = true, .has_others_done = true}, 0},
	};

	for (size_t i = 0; i < MC_ARRAY_LEN(rows); i++) {
		uint64_t lost_ms = 0;

		for (uint64_t ms = 0; ms <= 30000 && lost_ms == 0; ms += 20) {
			struct mc_rail_watch w = rows[i].w;

			w.silent_ns = ms * MS;
			w.patience_ns = MC_RAIL_STALL_NS;
			lost_ms = mc_rail_is_lost(&w) ? ms : 0;
		}
		if (lost_ms != rows[i].lost_after_ms)
			print_error("%s\n", rows[i].name);
		assert_int_equal(lost_ms, rows[i].lost_after_ms);
	}
	(void)state;
}

/* Completions of one lane on a 1 Gbit/s rail: us since the first post, bytes. They come in bursts,
 * because the reader sleeps in between. */
static const struct {
	uint64_t us, bytes;
} gigabit[] = {{2310, 262144},	{2312, 0},	 {4420, 262144},  {6660, 262144}, {8730, 262144},
	       {13010, 524288}, {15190, 262144}, {17380, 262144}, {19450, 262144}};

static void meter_learns_the_rate_of_a_bursty_rail(void **state)
{
	struct mc_rail_health h = {0};
	struct mc_rail_meter m;

	mc_rail_meter_begin(&m, 5000);
	for (size_t i = 0; i < MC_ARRAY_LEN(gigabit); i++)
		if (mc_rail_meter_add(&m, gigabit[i].bytes, 5000 + gigabit[i].us * 1000))
			mc_rail_meter_done(&m, &h, 5000 + gigabit[i].us * 1000);
	assert_true(h.rate > 0.110 && h.rate < 0.130);
	assert_int_equal(mc_rail_lanes(h.rate, 64u << 20, 4), 1);
	(void)state;
}

static void lanes_are_added_where_a_core_is_the_limit(void **state)
{
	assert_int_equal(mc_rail_lanes(0, 64u << 20, 4), 1);
	assert_int_equal(mc_rail_lanes(0.125, 64u << 20, 4), 1);
	assert_int_equal(mc_rail_lanes(2.5, 1u << 20, 4), 1);
	assert_int_equal(mc_rail_lanes(2.5, 9u << 20, 4), 3);
	assert_int_equal(mc_rail_lanes(2.5, 64u << 20, 4), 4);
	(void)state;
}

static void slow_rail_is_left_out_where_it_would_finish_last(void **state)
{
	const double fast = 3 * 0.125,
		     slow = 0.00125;	    /* three of 1 Gbit/s beside one of 10 Mbit/s */
	const double at_ns = 262144 / slow; /* 210 ms */

	assert_false(mc_rail_is_worth(at_ns, 8u << 20, fast));
	assert_true(mc_rail_is_worth(at_ns, 256u << 20, fast));
	assert_true(mc_rail_is_worth(at_ns, 8u << 20, 0));
	(void)state;
}

static void last_slices_go_to_equal_rails(void **state)
{
	/* 4 MiB under way on each of four; one more slice anywhere is worth it. */
	assert_true(mc_rail_is_worth((4194304 + 262144) / 0.125, (16u << 20) + 262144, 3 * 0.125));
	(void)state;
}

static void silence_of_a_busy_peer_teaches_patience_for_a_while(void **state)
{
	struct mc_rail_health h = {0};
	uint64_t now_ns = 1000 * MS;

	mc_rail_gap(&h, 20 * MS, now_ns);
	assert_int_equal(mc_rail_patience(&h, now_ns), MC_RAIL_STALL_NS);
	mc_rail_gap(&h, 90 * MS, now_ns);
	assert_int_equal(mc_rail_patience(&h, now_ns), 270 * MS);
	mc_rail_gap(&h, 5000 * MS, now_ns);
	assert_int_equal(mc_rail_patience(&h, now_ns), MC_RAIL_STALL_ALONE_NS);
	assert_int_equal(mc_rail_patience(&h, now_ns + 60 * MC_NS_PER_S), MC_RAIL_STALL_NS);
	(void)state;
}

static void rail_that_answers_its_first_probe_was_ejected_too_soon(void **state)
{
	struct mc_rail_health h = {0};
	uint64_t now_ns = 1000 * MS;

	mc_rail_failed(&h, now_ns);
	assert_true(mc_rail_wants_probe(&h, h.until_ns));
	mc_rail_probed(&h, true, h.until_ns);
	assert_int_equal(mc_rail_patience(&h, h.until_ns), 2 * MC_RAIL_STALL_NS);
	(void)state;
}

static void real_outage_does_not_make_us_patient(void **state)
{
	struct mc_rail_health h = {0};
	unsigned probes;

	(void)outage(&h, 7000 * MS, 3000 * MS, &probes);
	assert_int_equal(mc_rail_patience(&h, 11000 * MS), MC_RAIL_STALL_NS);
	(void)state;
}

static void an_rdma_lane_is_given_the_time_its_hca_needs(void **state)
{
	assert_int_equal(mc_rail_wr_patience(0, 64 << 10, 0), 2000 * MS);
	assert_int_equal(mc_rail_wr_patience(1880 * MS, 64 << 10, 10), 3760 * MS);
	/* 4 MiB at a megabyte a second */
	assert_in_range(mc_rail_wr_patience(0, 4 << 20, 0.001), 16000 * MS, 17000 * MS);
	assert_int_equal(mc_rail_wr_patience(0, 4 << 20, 25), 2000 * MS);
	(void)state;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(rail_is_probed_after_a_pause_and_only_once),
	    cmocka_unit_test(many_lanes_that_break_together_are_one_failure),
	    cmocka_unit_test(repaired_rail_is_back_within_a_second_and_probes_are_few),
	    cmocka_unit_test(flapping_rail_waits_longer_until_it_has_been_good_for_a_while),
	    cmocka_unit_test(lost_rail_is_told_from_a_slow_peer),
	    cmocka_unit_test(meter_learns_the_rate_of_a_bursty_rail),
	    cmocka_unit_test(lanes_are_added_where_a_core_is_the_limit),
	    cmocka_unit_test(slow_rail_is_left_out_where_it_would_finish_last),
	    cmocka_unit_test(last_slices_go_to_equal_rails),
	    cmocka_unit_test(silence_of_a_busy_peer_teaches_patience_for_a_while),
	    cmocka_unit_test(rail_that_answers_its_first_probe_was_ejected_too_soon),
	    cmocka_unit_test(real_outage_does_not_make_us_patient),
	    cmocka_unit_test(an_rdma_lane_is_given_the_time_its_hca_needs),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
