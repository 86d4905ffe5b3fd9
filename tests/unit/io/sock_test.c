/*
 * sock_test.c: address texts, and listen, connect, accept over loopback and unix sockets.
 */
#include "io/sock.h"

#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"

#define WAIT_NS (5 * MC_NS_PER_S)

static void addresses_read_back_as_written(void **state)
{
	static const char *const texts[] = {"127.0.0.1:80", "0.0.0.0:0", "[::1]:65535",
					    "[fe80::1%lo]:7", "[::ffff:1.2.3.4]:9"};
	char buf[MC_ADDR_TEXT_MAX];
	struct mc_addr a;

	for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
		assert_int_equal(mc_addr_parse(texts[i], 1, &a), 0);
		assert_string_equal(mc_addr_format(&a, buf), texts[i]);
	}
	(void)state;
}

static void address_without_port_takes_the_default(void **state)
{
	static const char *const texts[] = {"127.0.0.1", "::1", "[::1]", "fe80::2%lo"};
	struct mc_addr a;

	for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
		assert_int_equal(mc_addr_parse(texts[i], 12001, &a), 0);
		assert_int_equal(mc_addr_port(&a), 12001);
	}
	(void)state;
}

static void bad_addresses_are_refused(void **state)
{
	static const char *const texts[] = {
	    "",		  ":1",		"1.2.3",	"1.2.3.4:",	 "1.2.3.4:65536",
	    "1.2.3.4:-1", "1.2.3.4:1x", "[::1",		"[::1]x",	 "[::1]:",
	    "host:1",	  "[]:1",	"::1%nosuchif", "1.2.3.4:000080"};
	struct mc_addr a;

	for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++)
		assert_int_equal(mc_addr_parse(texts[i], 1, &a), -MC_E_INVAL);
	(void)state;
}

static void text_gets_the_port_that_it_lacks(void **state)
{
	static const char *const cases[][2] = {
	    {"host", "host:7"},		  {"host:5", "host:5"}, {"10.0.0.1", "10.0.0.1:7"},
	    {"10.0.0.1:9", "10.0.0.1:9"}, {"::1", "[::1]:7"},	{"[::1]", "[::1]:7"},
	    {"[::1]:3", "[::1]:3"},
	};
	char buf[16];

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		assert_int_equal(mc_addr_text_full(cases[i][0], 7, buf, sizeof(buf)), 0);
		assert_string_equal(buf, cases[i][1]);
	}
	assert_int_equal(mc_addr_text_full("", 7, buf, sizeof(buf)), -MC_E_INVAL);
	assert_int_equal(mc_addr_text_full("a:b", 7, buf, sizeof(buf)), -MC_E_INVAL);
	assert_int_equal(mc_addr_text_full("fifteen-letters", 7, buf, sizeof(buf)), -MC_E_INVAL);
}

static void resolve_knows_localhost_and_names_what_it_does_not_know(void **state)
{
	struct mc_addr a;
	struct mc_diag diag = {0};

	assert_int_equal(mc_addr_resolve("localhost:77", 0, &a, &diag), 0);
	assert_true(mc_addr_is_loopback(&a));
	assert_int_equal(mc_addr_port(&a), 77);
	assert_int_equal(mc_addr_resolve("no-such-host.invalid:1", 0, &a, &diag), -MC_E_DNS);
	assert_non_null(strstr(diag.text, "no-such-host.invalid"));
	assert_int_equal(mc_addr_resolve("host:port", 0, &a, &diag), -MC_E_INVAL);
	assert_non_null(strstr(diag.text, "host:port"));
	(void)state;
}

static void mapped_ipv4_equals_plain_ipv4(void **state)
{
	struct mc_addr a, b;

	assert_int_equal(mc_addr_parse("127.0.0.1:5", 0, &a), 0);
	assert_int_equal(mc_addr_parse("[::ffff:127.0.0.1]:5", 0, &b), 0);
	assert_true(mc_addr_is_equal(&a, &b));
	assert_true(mc_addr_is_loopback(&b));
	mc_addr_port_set(&b, 6);
	assert_false(mc_addr_is_equal(&a, &b));
	(void)state;
}

static void local_and_any_addresses_are_told_apart(void **state)
{
	struct mc_addr a;

	assert_int_equal(mc_addr_parse("0.0.0.0", 0, &a), 0);
	assert_true(mc_addr_is_any(&a));
	assert_false(mc_addr_is_local(&a));
	assert_int_equal(mc_addr_parse("192.0.2.1", 0, &a), 0); /* TEST-NET-1 of RFC 5737 */
	assert_false(mc_addr_is_local(&a));
	assert_int_equal(mc_addr_default(AF_INET, &a), 0);
	assert_true(mc_addr_is_local(&a));
	(void)state;
}

static int listen_any(struct mc_addr *ret_addr)
{
	struct mc_addr host;
	int fd;

	assert_int_equal(mc_addr_parse("127.0.0.1", 0, &host), 0);
	assert_int_equal(mc_sock_listen_range(&host, 20000, 32000, 8, &fd, ret_addr), 0);
	return fd;
}

static void bytes_cross_a_connection(void **state)
{
	struct mc_addr at, peer;
	int l = listen_any(&at), c = -1, s = -1;
	char buf[6] = {0};

	assert_in_range(mc_addr_port(&at), 20000, 32000);
	assert_int_equal(mc_sock_accept(l, &s, &peer), -MC_E_AGAIN);
	assert_int_equal(mc_sock_connect(&at, NULL, &c), 0);
	assert_int_equal(mc_sock_wait(c, POLLOUT, mc_now_ns() + WAIT_NS), 0);
	assert_int_equal(mc_sock_connect_result(c), 0);
	assert_int_equal(mc_sock_wait(l, POLLIN, mc_now_ns() + WAIT_NS), 0);
	assert_int_equal(mc_sock_accept(l, &s, &peer), 0);
	assert_true(mc_addr_is_loopback(&peer));
	assert_int_equal(mc_sock_nodelay(s), 0);
	assert_int_equal(mc_sock_user_timeout(s, 5000), 0);
	assert_int_equal(fcntl(s, F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
	assert_int_equal(mc_sock_send_all(c, "hello", 6, mc_now_ns() + WAIT_NS), 0);
	assert_int_equal(mc_sock_recv_all(s, buf, 6, mc_now_ns() + WAIT_NS), 0);
	assert_string_equal(buf, "hello");
	assert_int_equal(mc_sock_recv_all(s, buf, 1, mc_now_ns()), -MC_E_TIMEDOUT);
	mc_fd_close(&c);
	assert_int_equal(c, -1);
	assert_int_equal(mc_sock_recv_all(s, buf, 1, mc_now_ns() + WAIT_NS), -MC_E_RESET);
	mc_fd_close(&s);
	mc_fd_close(&l);
	(void)state;
}

static void connect_to_nobody_is_refused(void **state)
{
	struct mc_addr at;
	int l = listen_any(&at), c = -1, rc;

	mc_fd_close(&l);
	rc = mc_sock_connect(&at, NULL, &c);
	if (rc == 0) {
		assert_int_equal(mc_sock_wait(c, POLLOUT, mc_now_ns() + WAIT_NS), 0);
		rc = mc_sock_connect_result(c);
	}
	assert_int_equal(rc, -MC_E_REFUSED);
	mc_fd_close(&c);
	(void)state;
}

static void listen_twice_says_in_use(void **state)
{
	struct mc_addr at, host;
	int l = listen_any(&at), second = -1;

	assert_int_equal(mc_sock_listen(&at, 8, &second, NULL), -MC_E_ADDR_IN_USE);
	host = at;
	assert_int_equal(
	    mc_sock_listen_range(&host, mc_addr_port(&at), mc_addr_port(&at), 8, &second, NULL),
	    -MC_E_ADDR_IN_USE);
	assert_int_equal(mc_sock_listen_range(&host, 9, 8, 8, &second, NULL), -MC_E_INVAL);
	assert_int_equal(mc_addr_parse("192.0.2.1:20001", 0, &host), 0);
	assert_int_equal(mc_sock_listen(&host, 8, &second, NULL), -MC_E_ADDR);
	mc_fd_close(&l);
	(void)state;
}

static void connect_from_an_address_shows_it_to_the_peer(void **state)
{
	struct mc_addr at, from, peer;
	char text[MC_ADDR_TEXT_MAX];
	int l = listen_any(&at), c = -1, s = -1;

	assert_int_equal(mc_addr_parse("127.0.0.2", 0, &from), 0);
	assert_int_equal(mc_sock_connect(&at, &from, &c), 0);
	assert_int_equal(mc_sock_wait(l, POLLIN, mc_now_ns() + WAIT_NS), 0);
	assert_int_equal(mc_sock_accept(l, &s, &peer), 0);
	assert_string_equal(mc_addr_format_host(&peer, text), "127.0.0.2");
	mc_fd_close(&c);
	mc_fd_close(&s);
	mc_fd_close(&l);
	(void)state;
}

static void unix_sockets_connect_by_abstract_name(void **state)
{
	char name[64], text[MC_ADDR_TEXT_MAX];
	struct mc_addr at;
	int l = -1, c = -1, s = -1;

	(void)snprintf(name, sizeof(name), "@mc-sock-test-%d", (int)getpid());
	assert_int_equal(mc_addr_unix(name, &at), 0);
	assert_int_equal(mc_sock_connect(&at, NULL, &c), -MC_E_REFUSED);
	assert_int_equal(mc_sock_listen(&at, 4, &l, NULL), 0);
	assert_int_equal(mc_sock_connect(&at, NULL, &c), 0);
	assert_int_equal(mc_sock_connect_result(c), 0);
	assert_int_equal(mc_sock_accept(l, &s, NULL), 0);
	assert_int_equal(mc_sock_nodelay(c), 0);
	assert_int_equal(mc_sock_user_timeout(c, 5000), 0);
	assert_memory_equal(mc_addr_format(&at, text), "unix:@mc-sock", 13);
	assert_int_equal(mc_addr_unix("", &at), -MC_E_INVAL);
	mc_fd_close(&c);
	mc_fd_close(&s);
	mc_fd_close(&l);
	(void)state;
}

static void accept_without_descriptors_says_limit(void **state)
{
	struct rlimit old, low;
	struct mc_addr at;
	int l = listen_any(&at), c = -1, s = -1, rc;

	assert_int_equal(mc_sock_connect(&at, NULL, &c), 0);
	assert_int_equal(mc_sock_wait(l, POLLIN, mc_now_ns() + WAIT_NS), 0);
	assert_int_equal(getrlimit(RLIMIT_NOFILE, &old), 0);
	low = old;
	low.rlim_cur = (rlim_t)dup(c); /* the next free number, at the same time */
	(void)close((int)low.rlim_cur);
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &low), 0);
	rc = mc_sock_accept(l, &s, NULL);
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &old), 0);
	assert_int_equal(rc, -MC_E_LIMIT);
	assert_int_equal(mc_sock_accept(l, &s, NULL), 0);
	mc_fd_close(&s);
	mc_fd_close(&c);
	mc_fd_close(&l);
	(void)state;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(text_gets_the_port_that_it_lacks),
	    cmocka_unit_test(addresses_read_back_as_written),
	    cmocka_unit_test(address_without_port_takes_the_default),
	    cmocka_unit_test(bad_addresses_are_refused),
	    cmocka_unit_test(resolve_knows_localhost_and_names_what_it_does_not_know),
	    cmocka_unit_test(mapped_ipv4_equals_plain_ipv4),
	    cmocka_unit_test(local_and_any_addresses_are_told_apart),
	    cmocka_unit_test(bytes_cross_a_connection),
	    cmocka_unit_test(connect_to_nobody_is_refused),
	    cmocka_unit_test(listen_twice_says_in_use),
	    cmocka_unit_test(connect_from_an_address_shows_it_to_the_peer),
	    cmocka_unit_test(unix_sockets_connect_by_abstract_name),
	    cmocka_unit_test(accept_without_descriptors_says_limit),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
