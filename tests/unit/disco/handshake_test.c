/*
 * handshake_test.c: frames byte by byte, bodies, settings, and the client against a real socket.
 */
#include "disco/handshake.h"

#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/mem.h"
#include "io/sock.h"

static void frame_is_whole_only_with_its_last_byte(void **state)
{
	const char frame[] = "\x03\0\0\0\0\0\0\0\x03{}";
	struct mc_hs_frame f;
	size_t need;

	for (size_t n = 0; n < 11; n++) {
		assert_int_equal(mc_hs_frame_parse(frame, n, 1024, &f, &need), 0);
		assert_int_equal(need, n < 8 ? 9 : 11);
	}
	assert_int_equal(mc_hs_frame_parse(frame, 11, 1024, &f, &need), 1);
	assert_int_equal(f.type, MC_HS_PROBE);
	assert_false(f.is_legacy);
	assert_int_equal(f.len, 2);
	assert_memory_equal(f.json, "{}", 2);
	(void)state;
}

static void frame_without_type_is_an_old_connection_request(void **state)
{
	const char frame[] = "\x02\0\0\0\0\0\0\0{}";
	struct mc_hs_frame f;
	uint8_t head[MC_HS_HEAD_BYTES];
	size_t need;

	assert_int_equal(mc_hs_frame_parse(frame, 10, 1024, &f, &need), 1);
	assert_true(f.is_legacy);
	assert_int_equal(f.type, MC_HS_CONNECTION);
	assert_int_equal(f.len, 2);
	assert_int_equal(mc_hs_head_put(head, f.type, true, 2), 8);
	assert_memory_equal(head, frame, 8);
	(void)state;
}

static void frame_of_wrong_length_is_refused_at_once(void **state)
{
	struct mc_hs_frame f;
	size_t need;

	assert_int_equal(mc_hs_frame_parse("\0\0\0\0\0\0\0\0", 8, 1024, &f, &need), -MC_E_PROTO);
	assert_int_equal(mc_hs_frame_parse("\x01\x04\0\0\0\0\0\0", 8, 1024, &f, &need),
			 -MC_E_TOO_BIG);
	assert_int_equal(mc_hs_frame_parse("\xff\xff\xff\xff\xff\xff\xff\xff", 8, 1024, &f, &need),
			 -MC_E_TOO_BIG);
	(void)state;
}

static void notify_body_keeps_nuls_and_refuses_bytes(void **state)
{
	struct mc_hs_notify n;
	struct mc_diag diag;
	char *json;

	assert_int_equal(mc_hs_notify_encode("a\0b", 3, "", 0, &json, NULL), 0);
	assert_int_equal(mc_hs_notify_decode(json, strlen(json), &n, NULL), 0);
	assert_int_equal(n.name_len, 3);
	assert_memory_equal(n.name, "a\0b", 4);
	assert_int_equal(n.msg_len, 0);
	mc_hs_notify_fini(&n);
	mc_free(json);
	assert_int_equal(mc_hs_notify_encode("a", 1, "\xff", 1, &json, &diag), -MC_E_INVAL);
	assert_non_null(strstr(diag.text, "UTF-8"));
	assert_int_equal(mc_hs_notify_decode("{\"name\":\"a\"}", 12, &n, &diag), -MC_E_PROTO);
	assert_non_null(strstr(diag.text, "notify_msg"));
	(void)state;
}

static void reject_body_says_why(void **state)
{
	char *json = mc_hs_reject_encode("no RDMA here");

	assert_non_null(strstr(json, "\"reply_msg\":\"no RDMA here\""));
	assert_non_null(strstr(json, "\"qp_num\":[]"));
	mc_free(json);
	(void)state;
}

static void settings_come_from_the_environment(void **state)
{
	struct mc_hs_conf conf;

	setenv("MC_HANDSHAKE_CONNECT_TIMEOUT", "2", 1);
	setenv("MC_MIN_PRC_PORT", "20000", 1);
	setenv("MC_MAX_RPC_PORT", "21000", 1);
	mc_hs_conf_load(&conf);
	assert_int_equal(conf.connect_timeout_s, 2);
	assert_int_equal(conf.port_min, 20000);
	assert_int_equal(conf.port_max, 21000);
	assert_int_equal(conf.bytes_max, 1 << 20);
	assert_int_equal(conf.port_default, 12001);
	setenv("MC_MAX_RPC_PORT", "19000", 1);
	setenv("MC_HANDSHAKE_MAX_LENGTH", "5", 1);
	mc_hs_conf_load(&conf);
	assert_int_equal(conf.port_min, 15000);
	assert_int_equal(conf.port_max, 17000);
	assert_int_equal(conf.bytes_max, 1 << 20);
	setenv("MC_MIN_RPC_PORT", "40000", 1);
	setenv("MC_MAX_RPC_PORT", "41000", 1);
	mc_hs_conf_load(&conf);
	assert_int_equal(conf.port_min, 15000);
	unsetenv("MC_HANDSHAKE_CONNECT_TIMEOUT");
	unsetenv("MC_HANDSHAKE_MAX_LENGTH");
	unsetenv("MC_MIN_PRC_PORT");
	unsetenv("MC_MIN_RPC_PORT");
	unsetenv("MC_MAX_RPC_PORT");
	(void)state;
}

/* A peer that takes one connection, reads `read_len` bytes, answers and closes. */
struct peer {
	int fd;
	char name[MC_ADDR_TEXT_MAX];
	size_t read_len, reply_len;
	const char *reply;
	char got[256];
	pthread_t thread;
};

static void *peer_main(void *arg)
{
	struct peer *p = arg;
	uint64_t deadline = mc_time_after(mc_now_ns(), 20 * MC_NS_PER_S);
	struct mc_addr from;
	int fd = -1;

	if (mc_sock_wait(p->fd, POLLIN, deadline) == 0 && mc_sock_accept(p->fd, &fd, &from) == 0 &&
	    mc_sock_recv_all(fd, p->got, p->read_len, deadline) == 0 && p->reply_len)
		(void)mc_sock_send_all(fd, p->reply, p->reply_len, deadline);
	mc_fd_close(&fd);
	return NULL;
}

static void peer_start(struct peer *p)
{
	struct mc_addr host, bound;

	assert_int_equal(mc_addr_parse("127.0.0.1", 0, &host), 0);
	assert_int_equal(mc_sock_listen_range(&host, 21000, 25000, 8, &p->fd, &bound), 0);
	mc_addr_format(&bound, p->name);
	assert_int_equal(pthread_create(&p->thread, NULL, peer_main, p), 0);
}

static void peer_end(struct peer *p)
{
	pthread_join(p->thread, NULL);
	mc_fd_close(&p->fd);
}

static int probe(const struct peer *p, struct mc_diag *diag)
{
	struct mc_hs_conf conf;

	mc_hs_conf_load(&conf);
	return mc_handshake_probe(&conf, p->name, mc_time_after(mc_now_ns(), 10 * MC_NS_PER_S),
				  diag);
}

static void probe_sends_upstreams_frame_and_takes_its_answer(void **state)
{
	struct peer p = {.read_len = 11,
			 .reply = "\x16\0\0\0\0\0\0\0\x03{\"status\":\"success\"}\n",
			 .reply_len = 30};
	struct mc_diag diag = {.text = ""};

	peer_start(&p);
	assert_int_equal(probe(&p, &diag), 0);
	peer_end(&p);
	assert_memory_equal(p.got, "\x03\0\0\0\0\0\0\0\x03{}", 11);
	(void)state;
}

static void client_names_the_peer_and_what_it_did(void **state)
{
	static const struct {
		const char *reply;
		size_t len;
		int rc;
		const char *word;
	} rows[] = {
	    {"", 0, -MC_E_RESET, "reset"},
	    {"\x16\0\0\0\0\0\0\0\x03{", 10, -MC_E_RESET, "reset"},
	    {"\x03\0\0\0\0\0\0\0\x02{}", 11, -MC_E_PROTO, "type 2"},
	    {"\x03\0\0\0\0\0\0\0\x03{]", 11, -MC_E_PROTO, "JSON"},
	    {"\x01\0\0\0\0\0\0\0\x03", 9, -MC_E_PROTO, "JSON"},
	    {"\xff\xff\xff\xff\0\0\0\0\x03", 9, -MC_E_TOO_BIG, "length"},
	    {"\x0e\0\0\0\0\0\0\0\x03{\"status\":\"\"}", 22, -MC_E_AGAIN, "status"},
	};
	struct mc_diag diag;

	for (size_t i = 0; i < MC_ARRAY_LEN(rows); i++) {
		struct peer p = {.read_len = 11, .reply = rows[i].reply, .reply_len = rows[i].len};

		peer_start(&p);
		assert_int_equal(probe(&p, &diag), rows[i].rc);
		peer_end(&p);
		if (!strstr(diag.text, p.name) || !strstr(diag.text, rows[i].word))
			fail_msg("row %zu: %s", i, diag.text);
	}
	(void)state;
}

static void client_ends_by_its_deadline_when_nobody_answers(void **state)
{
	struct mc_addr host, bound;
	struct mc_hs_conf conf;
	struct mc_diag diag;
	char name[MC_ADDR_TEXT_MAX];
	int fd;

	mc_hs_conf_load(&conf);
	assert_int_equal(mc_addr_parse("127.0.0.1", 0, &host), 0);
	assert_int_equal(mc_sock_listen_range(&host, 21000, 25000, 8, &fd, &bound), 0);
	mc_addr_format(&bound, name);
	assert_int_equal(mc_handshake_probe(&conf, name, mc_now_ns() + MC_NS_PER_MS, &diag),
			 -MC_E_TIMEDOUT);
	assert_non_null(strstr(diag.text, name));
	mc_fd_close(&fd);
	assert_int_equal(mc_handshake_probe(&conf, name, mc_now_ns() + MC_NS_PER_S, &diag),
			 -MC_E_REFUSED);
	(void)state;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(frame_is_whole_only_with_its_last_byte),
	    cmocka_unit_test(frame_without_type_is_an_old_connection_request),
	    cmocka_unit_test(frame_of_wrong_length_is_refused_at_once),
	    cmocka_unit_test(notify_body_keeps_nuls_and_refuses_bytes),
	    cmocka_unit_test(reject_body_says_why),
	    cmocka_unit_test(settings_come_from_the_environment),
	    cmocka_unit_test(probe_sends_upstreams_frame_and_takes_its_answer),
	    cmocka_unit_test(client_names_the_peer_and_what_it_did),
	    cmocka_unit_test(client_ends_by_its_deadline_when_nobody_answers),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
