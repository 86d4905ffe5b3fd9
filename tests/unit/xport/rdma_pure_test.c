/*
 * rdma_pure_test.c: the parts of the RDMA transport without a device: codes, the choice of an
 * address, settings, and the library that is loaded.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/mem.h"
#include "xport/rdma/priv.h"

/* ---- codes ---- */

static void every_status_that_failed_has_a_code(void **state)
{
	(void)state;
	assert_int_equal(mc_rdma_wc_error(IBV_WC_SUCCESS), 0);
	for (int s = IBV_WC_SUCCESS + 1; s <= IBV_WC_TM_RNDV_INCOMPLETE; s++)
		assert_true(mc_rdma_wc_error((enum ibv_wc_status)s) < 0);
	assert_int_equal(mc_rdma_wc_error((enum ibv_wc_status)1000), -MC_E_IO);
}

static void status_condemns_no_more_than_it_must(void **state)
{
	static const struct {
		enum ibv_wc_status status;
		enum mc_err_scope scope;
	} rows[] = {
	    {IBV_WC_REM_ACCESS_ERR, MC_SCOPE_OP},    {IBV_WC_LOC_PROT_ERR, MC_SCOPE_OP},
	    {IBV_WC_RETRY_EXC_ERR, MC_SCOPE_RAIL},   {IBV_WC_WR_FLUSH_ERR, MC_SCOPE_RAIL},
	    {IBV_WC_LOC_QP_OP_ERR, MC_SCOPE_RAIL},   {IBV_WC_REM_OP_ERR, MC_SCOPE_RAIL},
	    {IBV_WC_REM_INV_REQ_ERR, MC_SCOPE_RAIL}, {IBV_WC_FATAL_ERR, MC_SCOPE_DEVICE},
	};

	(void)state;
	for (size_t i = 0; i < MC_ARRAY_LEN(rows); i++)
		assert_int_equal(mc_err_scope(mc_rdma_wc_error(rows[i].status)), rows[i].scope);
}

static void errno_of_a_verb_says_whether_the_device_is_gone(void **state)
{
	(void)state;
	assert_int_equal(mc_rdma_errno(0), 0);
	assert_int_equal(mc_rdma_errno(EIO), -MC_E_DEVICE);
	assert_int_equal(mc_err_scope(mc_rdma_errno(EINVAL)), MC_SCOPE_RAIL);
	assert_int_equal(mc_rdma_errno(ETIMEDOUT), -MC_E_UNREACHABLE);
	assert_int_equal(mc_rdma_errno(ENOMEM), -MC_E_NOMEM);
}

/* ---- addresses ---- */

enum { LOCAL6, GLOBAL6, IP4, LOCAL4, NONE };

static struct mc_rdma_gid gid(unsigned index, int kind, bool is_v2, bool has_netdev, bool is_ours)
{
	static const uint8_t raw[][16] = {
	    [LOCAL6] = {0xfe, 0x80, [15] = 1},
	    [GLOBAL6] = {0x20, 0x01, [15] = 1},
	    [IP4] = {[10] = 0xff, [11] = 0xff, [12] = 10, [15] = 1},
	    [LOCAL4] = {[10] = 0xff, [11] = 0xff, [12] = 169, [13] = 254, [15] = 1},
	    [NONE] = {0},
	};
	struct mc_rdma_gid g = {.index = (uint8_t)index,
				.is_v2 = is_v2,
				.has_netdev = has_netdev,
				.is_addr_ours = is_ours};

	memcpy(g.raw, raw[kind], sizeof(g.raw));
	return g;
}

static void ipv4_of_the_interface_as_roce_v2_is_chosen(void **state)
{
	const struct mc_rdma_gid gids[] = {
	    gid(0, LOCAL6, false, true, true), gid(1, LOCAL6, true, true, true),
	    gid(2, IP4, false, true, true),    gid(3, IP4, true, true, true),
	    gid(4, GLOBAL6, true, true, true),
	};

	(void)state;
	assert_int_equal(mc_rdma_gid_choose(gids, MC_ARRAY_LEN(gids), -1), 3);
}

static void address_of_another_network_namespace_is_not_chosen(void **state)
{
	const struct mc_rdma_gid gids[] = {
	    gid(0, IP4, true, false, false),
	    gid(1, IP4, true, true, false), /* an interface of the same name is here */
	    gid(2, LOCAL6, true, true, true),
	};

	(void)state;
	assert_int_equal(mc_rdma_gid_choose(gids, 3, -1), 2);
	assert_int_equal(mc_rdma_gid_choose(gids, 2, -1), 1);
	assert_int_equal(mc_rdma_gid_choose(gids, 1, -1), 0);
}

static void routable_ipv6_comes_before_link_local(void **state)
{
	const struct mc_rdma_gid gids[] = {
	    gid(0, LOCAL4, true, true, true),
	    gid(1, LOCAL6, true, true, true),
	    gid(2, GLOBAL6, true, true, true),
	};

	(void)state;
	assert_int_equal(mc_rdma_gid_choose(gids, 3, -1), 2);
	assert_int_equal(mc_rdma_gid_choose(gids, 2, -1), 0);
}

static void lowest_index_of_equals_is_chosen_and_nothing_from_nothing(void **state)
{
	const struct mc_rdma_gid gids[] = {
	    gid(7, IP4, true, true, true),
	    gid(3, IP4, true, true, true),
	    gid(0, NONE, true, true, true),
	};

	(void)state;
	assert_int_equal(mc_rdma_gid_choose(gids, 3, -1), 1);
	assert_int_equal(mc_rdma_gid_choose(gids, 3, 0), 0); /* unless one is in use */
	assert_true(mc_rdma_gid_is_best(&gids[0]));
	assert_false(mc_rdma_gid_is_best(&gids[2]));
	assert_int_equal(mc_rdma_gid_choose(&gids[2], 1, -1), -1);
	assert_int_equal(mc_rdma_gid_choose(NULL, 0, -1), -1);
}

/* ---- settings ---- */

static void settings_have_upstreams_names(void **state)
{
	struct mc_rdma_conf c;

	(void)state;
	assert_int_equal(setenv("NCCL_IB_GID_INDEX", "5", 1), 0);
	mc_rdma_conf_load(&c);
	assert_int_equal(c.gid_index, 5);
	assert_int_equal(c.retry_cnt, 6);
	assert_int_equal(c.timeout, 16);
	assert_int_equal(c.mtu, 4096);
	assert_int_equal(setenv("MC_GID_INDEX", "3", 1), 0);
	assert_int_equal(setenv("MC_MTU", "3000", 1), 0);
	mc_rdma_conf_load(&c);
	assert_int_equal(c.gid_index, 3);
	assert_int_equal(c.mtu, 2048);
	assert_int_equal(unsetenv("NCCL_IB_GID_INDEX"), 0);
	assert_int_equal(unsetenv("MC_GID_INDEX"), 0);
	assert_int_equal(unsetenv("MC_MTU"), 0);
}

/* ---- the library ---- */

static void library_is_loaded_once_or_its_package_is_named(void **state)
{
	const struct mc_verbs *v = NULL, *again = NULL;
	struct mc_diag diag = {.text = ""};
	int rc = mc_verbs_load(&v, &diag);

	(void)state;
	if (rc < 0) {
		assert_int_equal(rc, -MC_E_UNAVAILABLE);
		assert_non_null(strstr(diag.text, "libibverbs1"));
		skip();
	}
	for (size_t i = 0; i < sizeof(*v) / sizeof(void *); i++) {
		void *fn;

		memcpy(&fn, (const char *)v + i * sizeof(void *), sizeof(fn));
		assert_non_null(fn); /* Debian 12 has also the optional ones */
	}
	assert_int_equal(mc_verbs_load(&again, NULL), 0);
	assert_ptr_equal(again, v);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(every_status_that_failed_has_a_code),
	    cmocka_unit_test(status_condemns_no_more_than_it_must),
	    cmocka_unit_test(errno_of_a_verb_says_whether_the_device_is_gone),
	    cmocka_unit_test(ipv4_of_the_interface_as_roce_v2_is_chosen),
	    cmocka_unit_test(address_of_another_network_namespace_is_not_chosen),
	    cmocka_unit_test(routable_ipv6_comes_before_link_local),
	    cmocka_unit_test(lowest_index_of_equals_is_chosen_and_nothing_from_nothing),
	    cmocka_unit_test(settings_have_upstreams_names),
	    cmocka_unit_test(library_is_loaded_once_or_its_package_is_named),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
