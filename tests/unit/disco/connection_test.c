/*
 * connection_test.c: Connection messages as upstream writes them, and what is refused of others.
 */
#include "disco/connection.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/mem.h"

#define REQUEST                                                                                    \
	"{\"local_gid\":\"00:00:00:00:00:00:00:00:00:00:ff:ff:0a:4d:00:01\",\"local_lid\":7,"      \
	"\"local_nic_path\":\"10.77.0.1:15001@rxe0\",\"payload\":\"\","                            \
	"\"peer_nic_path\":\"[fd00::1]:15002@mlx5_0\",\"qp_num\":[17,18],\"ready_ack\":false,"     \
	"\"reply_msg\":\"\"}"

static void request_of_upstream_is_read(void **state)
{
	struct mc_diag diag = {.text = ""};
	struct mc_connection c;
	struct mc_view server, device;

	assert_int_equal(mc_connection_decode(REQUEST, strlen(REQUEST), &c, &diag), 0);
	assert_string_equal(c.local_nic, "10.77.0.1:15001@rxe0");
	assert_true(c.has_gid);
	assert_int_equal(c.gid[10], 0xff);
	assert_int_equal(c.gid[15], 1);
	assert_int_equal(c.lid, 7);
	assert_int_equal(c.nqps, 2);
	assert_int_equal(c.qpn[1], 18);
	assert_true(c.has_ready_ack);
	assert_false(c.is_ready);
	assert_string_equal(c.reason, "");
	assert_int_equal(mc_nic_path_split(c.peer_nic, &server, &device), 0);
	assert_true(mc_view_is(server, "[fd00::1]:15002"));
	assert_true(mc_view_is(device, "mlx5_0"));
	(void)state;
}

static void what_is_written_is_read_back(void **state)
{
	struct mc_connection c = {.local_nic = "a@b",
				  .peer_nic = "c@d",
				  .has_gid = true,
				  .gid = {0xfe, 0x80, [15] = 0xab},
				  .lid = 65535,
				  .nqps = 3,
				  .qpn = {0, 1, 0xffffff},
				  .has_ready_ack = true,
				  .is_ready = true,
				  .reason = "no \"reason\""};
	struct mc_diag diag = {.text = ""};
	struct mc_connection back;
	char *json;
	size_t len;

	for (int i = 0; i < 3; i++) {
		assert_int_equal(mc_connection_encode(&c, &json, &len), 0);
		assert_int_equal(strlen(json), len);
		assert_int_equal(strstr(json, "ready_ack") != NULL, c.has_ready_ack);
		assert_int_equal(mc_connection_decode(json, len, &back, &diag), 0);
		assert_memory_equal(&back, &c, sizeof(c));
		mc_free(json);
		c.has_ready_ack = c.is_ready = false;
		if (i == 1) { /* least of all */
			c.has_gid = false;
			memset(c.gid, 0, sizeof(c.gid));
			c.nqps = 0;
			memset(c.qpn, 0, sizeof(c.qpn));
		}
	}
	memcpy(c.peer_nic, "\xff@x", 4);
	assert_int_equal(mc_connection_encode(&c, &json, &len), -MC_E_INVAL);
	(void)state;
}

static void wrong_members_are_named(void **state)
{
	static const struct {
		const char *json, *name;
	} cases[] = {
	    {"[]", "local_nic_path"},
	    {"{}", "local_nic_path"},
	    {"{\"local_nic_path\":\"a@b\"}", "peer_nic_path"},
	    {"{\"local_nic_path\":\"a@b\",\"peer_nic_path\":1}", "peer_nic_path"},
	    {"{\"local_nic_path\":\"a@b\",\"peer_nic_path\":\"c@d\",\"local_lid\":65536}",
	     "local_lid"},
	    {"{\"local_nic_path\":\"a@b\",\"peer_nic_path\":\"c@d\",\"local_gid\":\"fe:80\"}",
	     "local_gid"},
	    {"{\"local_nic_path\":\"a@b\",\"peer_nic_path\":\"c@d\",\"qp_num\":[1,16777216]}",
	     "qp_num\"[1]"},
	    {"{\"local_nic_path\":\"a@b\",\"peer_nic_path\":\"c@d\",\"qp_num\":[-1]}", "qp_num"},
	    {"{\"local_nic_path\":\"a@b\",\"peer_nic_path\":\"c@d\",\"qp_num\":{}}", "qp_num"},
	    {"{\"local_nic_path\":\"a@b\",\"peer_nic_path\":\"c@d\",\"reply_msg\":1}", "reply_msg"},
	};
	struct mc_connection c;

	for (size_t i = 0; i < MC_ARRAY_LEN(cases); i++) {
		struct mc_diag diag = {.text = ""};

		assert_int_equal(
		    mc_connection_decode(cases[i].json, strlen(cases[i].json), &c, &diag),
		    -MC_E_PROTO);
		if (!strstr(diag.text, cases[i].name))
			fail_msg("%s: \"%s\" does not name %s", cases[i].json, diag.text,
				 cases[i].name);
	}
	(void)state;
}

static void long_texts_and_lists_are_bounded(void **state)
{
	struct mc_diag diag = {.text = ""};
	struct mc_connection c;
	char json[8192];
	int n;

	n = snprintf(json, sizeof(json), "{\"local_nic_path\":\"%0600d\",\"peer_nic_path\":\"\"}",
		     1);
	assert_int_equal(mc_connection_decode(json, (size_t)n, &c, &diag), -MC_E_TOO_BIG);
	n = snprintf(json, sizeof(json),
		     "{\"local_nic_path\":\"\",\"peer_nic_path\":\"\",\"reply_msg\":\"%0600d\"}",
		     1);
	assert_int_equal(mc_connection_decode(json, (size_t)n, &c, &diag), 0);
	assert_int_equal(strlen(c.reason), MC_CONNECTION_REASON_MAX - 1);
	n = snprintf(json, sizeof(json),
		     "{\"local_nic_path\":\"\",\"peer_nic_path\":\"\",\"qp_num\":[0");
	for (unsigned i = 0; i < MC_CONNECTION_QPS_MAX; i++)
		n += snprintf(json + n, sizeof(json) - (size_t)n, ",%u", i);
	n += snprintf(json + n, sizeof(json) - (size_t)n, "]}");
	assert_true(mc_connection_decode(json, (size_t)n, &c, &diag) < 0);
	assert_non_null(strstr(diag.text, "qp_num"));
	(void)state;
}

static void paths_and_gids_are_checked(void **state)
{
	static const char *const paths[] = {"", "@", "a@", "@b", "ab"};
	static const char *const gids[] = {"",
					   "fe",
					   "fe80::1",
					   "00:00:00:00:00:00:00:00:00:00:ff:ff:0a:4d:00",
					   "00:00:00:00:00:00:00:00:00:00:ff:ff:0a:4d:00:01:",
					   "0g:00:00:00:00:00:00:00:00:00:ff:ff:0a:4d:00:01"};
	char path[MC_NIC_PATH_MAX], server[MC_NIC_PATH_MAX], text[MC_GID_TEXT_MAX];
	struct mc_view a, b;
	uint8_t gid[16];

	for (size_t i = 0; i < MC_ARRAY_LEN(paths); i++)
		assert_int_equal(mc_nic_path_split(paths[i], &a, &b), -MC_E_PROTO);
	assert_int_equal(mc_nic_path_split("a@b@c", &a, &b), 0);
	assert_true(mc_view_is(a, "a@b") && mc_view_is(b, "c"));
	memset(server, 's', sizeof(server) - 1);
	server[sizeof(server) - 1] = '\0';
	assert_int_equal(mc_nic_path_join(server, "d", path), -MC_E_TOO_BIG);
	server[sizeof(server) - 3] = '\0';
	assert_int_equal(mc_nic_path_join(server, "d", path), 0);
	for (size_t i = 0; i < MC_ARRAY_LEN(gids); i++)
		assert_int_equal(mc_gid_parse(gids[i], gid), -MC_E_PROTO);
	assert_int_equal(mc_gid_parse("FE:80:00:00:00:00:00:00:00:00:ff:ff:0a:4d:00:01", gid), 0);
	assert_string_equal(mc_gid_format(gid, text),
			    "fe:80:00:00:00:00:00:00:00:00:ff:ff:0a:4d:00:01");
	(void)state;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(request_of_upstream_is_read),
	    cmocka_unit_test(what_is_written_is_read_back),
	    cmocka_unit_test(wrong_members_are_named),
	    cmocka_unit_test(long_texts_and_lists_are_bounded),
	    cmocka_unit_test(paths_and_gids_are_checked),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
