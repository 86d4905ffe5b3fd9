/*
 * statreg_test.c: Prometheus text, names, bounds.
 */
#include "base/statreg.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

static struct mc_counter counter;
static struct mc_gauge gauge;
static struct mc_hist hist;

static const struct mc_stat_desc ops = {
    .name = "mc_ops_total", .help = "Operations.", .kind = MC_STAT_COUNTER};
static const struct mc_stat_desc depth = {
    .name = "mc_depth", .help = "Queue\ndepth \\o/", .kind = MC_STAT_GAUGE};
static const struct mc_stat_desc latency = {.name = "mc_latency_seconds",
					    .help = "Latency.",
					    .kind = MC_STAT_HIST,
					    .scale = 1e-9,
					    .le_first = 10,
					    .le_last = 12};

static struct mc_stat_reg *reg_fixture(size_t max)
{
	struct mc_stat_reg *reg;

	assert_int_equal(mc_stat_reg_open(max, &reg), 0);
	return reg;
}

static void assert_rendered(struct mc_stat_reg *reg, const char *want)
{
	struct mc_str out;

	mc_str_init(&out, 10000);
	assert_int_equal(mc_stat_render(reg, &out), 0);
	assert_string_equal(mc_str_text(&out), want);
	mc_str_fini(&out);
}

static void statreg_renders_prometheus_text(void **state)
{
	const struct mc_stat_label b[] = {{"peer", "b"}};
	const struct mc_stat_label a[] = {{"peer", "a"}, {"rail", "x\"y\\\n"}};
	struct mc_stat_reg *reg = reg_fixture(10);

	mc_counter_add(&counter, 18446744073709551615ull);
	mc_gauge_set(&gauge, -3);
	mc_hist_add(&hist, 1024);
	mc_hist_add(&hist, 1025);
	mc_hist_add(&hist, 5000);
	assert_int_equal(mc_stat_add(reg, &ops, b, 1, &counter, NULL), 0);
	assert_int_equal(mc_stat_add(reg, &latency, b, 1, &hist, NULL), 0);
	assert_int_equal(mc_stat_add(reg, &depth, NULL, 0, &gauge, NULL), 0);
	assert_int_equal(mc_stat_add(reg, &ops, a, 2, &counter, NULL), 0);
	assert_rendered(reg,
			"# HELP mc_depth Queue\\ndepth \\\\o/\n"
			"# TYPE mc_depth gauge\n"
			"mc_depth -3\n"
			"# HELP mc_latency_seconds Latency.\n"
			"# TYPE mc_latency_seconds histogram\n"
			"mc_latency_seconds_bucket{peer=\"b\",le=\"1.024e-06\"} 1\n"
			"mc_latency_seconds_bucket{peer=\"b\",le=\"2.048e-06\"} 2\n"
			"mc_latency_seconds_bucket{peer=\"b\",le=\"4.096e-06\"} 2\n"
			"mc_latency_seconds_bucket{peer=\"b\",le=\"+Inf\"} 3\n"
			"mc_latency_seconds_sum{peer=\"b\"} 7.049e-06\n"
			"mc_latency_seconds_count{peer=\"b\"} 3\n"
			"# HELP mc_ops_total Operations.\n"
			"# TYPE mc_ops_total counter\n"
			"mc_ops_total{peer=\"a\",rail=\"x\\\"y\\\\\\n\"} 18446744073709551615\n"
			"mc_ops_total{peer=\"b\"} 18446744073709551615\n");
	mc_stat_reg_close(reg);
	mc_stat_reg_close(NULL);
	(void)state;
}

static void statreg_refuses_bad_names_and_doubles(void **state)
{
	const char *const bad[] = {"", "9x", "a-b", "a b", "\xc3\xa4"};
	const struct mc_stat_label bad_label[] = {{"a:b", "v"}};
	struct mc_stat_desc desc = ops;
	struct mc_stat_reg *reg = reg_fixture(10);

	for (size_t i = 0; i < MC_ARRAY_LEN(bad); i++) {
		desc.name = bad[i];
		assert_int_equal(mc_stat_add(reg, &desc, NULL, 0, &counter, NULL), -MC_E_INVAL);
	}
	assert_int_equal(mc_stat_add(reg, &ops, bad_label, 1, &counter, NULL), -MC_E_INVAL);
	assert_int_equal(mc_stat_add(reg, &ops, NULL, 0, &counter, NULL), 0);
	assert_int_equal(mc_stat_add(reg, &ops, NULL, 0, &counter, NULL), -MC_E_EXIST);
	desc = ops;
	desc.kind = MC_STAT_GAUGE;
	assert_int_equal(
	    mc_stat_add(reg, &desc, (struct mc_stat_label[]){{"a", "b"}}, 1, &gauge, NULL),
	    -MC_E_INVAL);
	mc_stat_reg_close(reg);
	(void)state;
}

static void statreg_is_bounded_and_forgets_deleted_ones(void **state)
{
	struct mc_stat_reg *reg = reg_fixture(2);
	struct mc_stat *stat;

	assert_int_equal(mc_stat_add(reg, &ops, NULL, 0, &counter, &stat), 0);
	assert_int_equal(mc_stat_add(reg, &depth, NULL, 0, &gauge, NULL), 0);
	assert_int_equal(mc_stat_add(reg, &latency, NULL, 0, &hist, NULL), -MC_E_LIMIT);
	mc_stat_del(reg, stat);
	mc_stat_del(reg, NULL);
	mc_gauge_set(&gauge, 1);
	assert_rendered(
	    reg, "# HELP mc_depth Queue\\ndepth \\\\o/\n# TYPE mc_depth gauge\nmc_depth 1\n");
	mc_stat_reg_close(reg);
	(void)state;
}

static void statreg_output_is_capped(void **state)
{
	struct mc_stat_reg *reg = reg_fixture(2);
	struct mc_str out;

	assert_int_equal(mc_stat_add(reg, &latency, NULL, 0, &hist, NULL), 0);
	mc_str_init(&out, 100);
	assert_int_equal(mc_stat_render(reg, &out), -MC_E_TOO_BIG);
	mc_str_fini(&out);
	mc_stat_reg_close(reg);
	(void)state;
}

static int add_and_render(void)
{
	const struct mc_stat_label labels[] = {{"peer", "b"}};
	struct mc_stat_reg *reg;
	struct mc_str out;
	int rc = mc_stat_reg_open(10, &reg);

	if (rc < 0)
		return rc;
	mc_str_init(&out, 10000);
	rc = mc_stat_add(reg, &ops, labels, 1, &counter, NULL);
	if (rc == 0)
		rc = mc_stat_add(reg, &latency, NULL, 0, &hist, NULL);
	if (rc == 0)
		rc = mc_stat_render(reg, &out);
	mc_str_fini(&out);
	mc_stat_reg_close(reg);
	return rc;
}

static void statreg_survives_every_failing_allocation(void **state)
{
	int64_t live = mc_mem_live();
	int rc = -1;

	for (int64_t n = 0; rc < 0; n++) {
		mc_mem_fail_after(n);
		rc = add_and_render();
		mc_mem_fail_after(-1);
		assert_true(rc == 0 || rc == -MC_E_NOMEM);
		assert_int_equal(mc_mem_live(), live);
	}
	(void)state;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(statreg_renders_prometheus_text),
	    cmocka_unit_test(statreg_refuses_bad_names_and_doubles),
	    cmocka_unit_test(statreg_is_bounded_and_forgets_deleted_ones),
	    cmocka_unit_test(statreg_output_is_capped),
	    cmocka_unit_test(statreg_survives_every_failing_allocation),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
