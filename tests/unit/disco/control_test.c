/*
 * control_test.c: the control port over real sockets: hundreds of peers, stalled ones, bounds, and
 * where it listens.
 */
#include "disco/control.h"

#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/mem.h"
#include "base/str.h"

#define WAIT_NS (20 * MC_NS_PER_S)
#define PREFACE "MCRPC\xff\x01\xff"

struct owner {
	struct mc_control_text *text;
	_Atomic int notices, adopted_fd;
	char adopted[64];
	char name[MC_ADDR_TEXT_MAX];
	struct mc_hs_conf hs;
	struct mc_loop *loop;
	struct mc_control *ctl;
};

static int on_metadata(void *user, const char *json, size_t len, struct mc_control_text **ret)
{
	struct owner *o = user;

	if (len >= 4 && memcmp(json, "null", 4) == 0)
		return -MC_E_PROTO;
	*ret = mc_control_text_get(o->text);
	return 0;
}

static int on_notify(void *user, const struct mc_hs_notify *n)
{
	struct owner *o = user;

	if (strcmp(n->name, "full") == 0)
		return -MC_E_AGAIN;
	o->notices++;
	return 0;
}

static void on_adopt(void *user, int fd, const void *bytes, size_t len, const struct mc_addr *peer)
{
	struct owner *o = user;

	assert_true(len < sizeof(o->adopted));
	memcpy(o->adopted, bytes, len);
	o->adopted_fd = fd;
}

static const struct mc_control_ops ops = {on_metadata, on_notify, on_adopt, NULL};

static struct mc_control_conf conf_of(struct owner *o)
{
	struct mc_control_conf conf = {
	    .hs = &o->hs, .ops = &ops, .user = o, .preface_len = 8, .conns_max = 700};

	memcpy(conf.preface, PREFACE, 8);
	assert_int_equal(mc_addr_parse("127.0.0.1", 0, &conf.bind), 0);
	return conf;
}

static void open_with(struct owner *o, const char *json, const struct mc_control_conf *conf)
{
	struct mc_diag diag = {.text = ""};
	struct mc_addr addr;

	assert_int_equal(mc_control_text_open(mc_strdup(json), strlen(json), &o->text), 0);
	assert_int_equal(mc_loop_open("control", &mc_clock_real, &o->loop), 0);
	assert_int_equal(mc_loop_start(o->loop), 0);
	if (mc_control_open(o->loop, conf, &o->ctl, &diag) < 0)
		fail_msg("%s", diag.text);
	assert_int_equal(mc_addr_parse("127.0.0.1", mc_control_port(o->ctl), &addr), 0);
	mc_addr_format(&addr, o->name);
}

static void owner_init(struct owner *o)
{
	*o = (struct owner){.adopted_fd = -1};
	mc_hs_conf_load(&o->hs);
	o->hs.port_min = 20000;
	o->hs.port_max = 29000;
}

static void owner_end(struct owner *o)
{
	mc_control_close(o->ctl);
	mc_loop_close(o->loop);
	mc_control_text_put(o->text);
}

static int dial(const struct owner *o)
{
	struct mc_addr addr;
	int fd;

	assert_int_equal(mc_addr_parse(o->name, 0, &addr), 0);
	assert_int_equal(mc_sock_connect(&addr, NULL, &fd), 0);
	assert_int_equal(mc_sock_wait(fd, POLLOUT, mc_now_ns() + WAIT_NS), 0);
	assert_int_equal(mc_sock_connect_result(fd), 0);
	return fd;
}

static void send_bytes(int fd, const void *data, size_t len)
{
	assert_int_equal(mc_sock_send_all(fd, data, len, mc_now_ns() + WAIT_NS), 0);
}

/* Waits until the server has closed the connection, without a byte. */
static void assert_closed(int fd)
{
	char c;

	assert_int_equal(mc_sock_recv_all(fd, &c, 1, mc_now_ns() + WAIT_NS), -MC_E_RESET);
	mc_fd_close(&fd);
}

static void every_request_gets_its_answer(void **state)
{
	struct mc_diag diag = {.text = ""};
	struct mc_control_conf conf;
	struct owner o;
	char *reply;
	size_t len;

	owner_init(&o);
	conf = conf_of(&o);
	open_with(&o, "{\"name\":\"me\"}", &conf);
	assert_in_range(mc_control_port(o.ctl), 20000, 29000);
	assert_int_equal(mc_handshake_probe(&o.hs, o.name, mc_now_ns() + WAIT_NS, &diag), 0);
	assert_int_equal(
	    mc_handshake_metadata(&o.hs, o.name, "{}", mc_now_ns() + WAIT_NS, &reply, &len, &diag),
	    0);
	assert_string_equal(reply, "{\"name\":\"me\"}");
	mc_free(reply);
	assert_int_equal(
	    mc_handshake_notify(&o.hs, o.name, "a", 1, "b", 1, mc_now_ns() + WAIT_NS, &diag), 0);
	assert_int_equal(o.notices, 1);
	assert_int_equal(
	    mc_handshake_notify(&o.hs, o.name, "full", 4, "b", 1, mc_now_ns() + WAIT_NS, &diag),
	    -MC_E_AGAIN);
	assert_non_null(strstr(diag.text, "inbox is full"));
	assert_int_equal(mc_handshake_call(&o.hs, o.name, MC_HS_CONNECTION, "{}",
					   mc_now_ns() + WAIT_NS, &reply, &len, &diag),
			 0);
	assert_non_null(strstr(reply, "no RDMA device"));
	mc_free(reply);
	assert_int_equal(mc_handshake_metadata(&o.hs, o.name, "null", mc_now_ns() + WAIT_NS, &reply,
					       &len, &diag),
			 -MC_E_RESET);
	owner_end(&o);
	(void)state;
}

static void nothing(void *arg)
{
	(void)arg;
}

/* ---- answers that come later ---- */

/* What the owner is asked and answers from a thread of its own. */
struct slow {
	struct owner o; /* first: the ops' user */
	pthread_mutex_t mu;
	pthread_cond_t cond;
	struct mc_control_call *call; /* under mu */
	char asked[64];
	enum mc_hs_type type;
	_Atomic int n;
};

static int on_later(void *user, enum mc_hs_type type, const char *json, size_t len,
		    struct mc_control_call *call)
{
	struct slow *s = user;

	if (len >= 4 && memcmp(json, "null", 4) == 0)
		return -MC_E_PROTO;
	assert_true(len < sizeof(s->asked));
	pthread_mutex_lock(&s->mu);
	memcpy(s->asked, json, len);
	s->type = type;
	s->call = call;
	pthread_cond_signal(&s->cond);
	pthread_mutex_unlock(&s->mu);
	s->n++;
	return 0;
}

static struct mc_control_call *take_call(struct slow *s)
{
	struct mc_control_call *call;

	pthread_mutex_lock(&s->mu);
	while (!s->call)
		pthread_cond_wait(&s->cond, &s->mu);
	call = s->call;
	s->call = NULL;
	pthread_mutex_unlock(&s->mu);
	return call;
}

static void answer(struct mc_control_call *call, const char *json)
{
	struct mc_control_text *text = NULL;

	if (json)
		assert_int_equal(mc_control_text_open(mc_strdup(json), strlen(json), &text), 0);
	mc_control_answer(call, text);
}

static void slow_open(struct slow *s, uint64_t reply_ns)
{
	static const struct mc_control_ops slow_ops = {on_metadata, on_notify, on_adopt, on_later};
	struct mc_control_conf conf;

	memset(s, 0, sizeof(*s));
	owner_init(&s->o);
	pthread_mutex_init(&s->mu, NULL);
	pthread_cond_init(&s->cond, NULL);
	conf = conf_of(&s->o);
	conf.ops = &slow_ops;
	conf.later = 1u << MC_HS_CONNECTION;
	conf.reply_ns = reply_ns;
	open_with(&s->o, "{}", &conf);
}

static void slow_end(struct slow *s)
{
	owner_end(&s->o);
	pthread_cond_destroy(&s->cond);
	pthread_mutex_destroy(&s->mu);
}

static uint32_t conns_of(const struct owner *o)
{
	struct mc_control_stats stats;

	mc_control_stats_get(o->ctl, &stats);
	return stats.conns;
}

static void answer_may_come_later_from_another_thread(void **state)
{
	struct slow s;
	char reply[64];
	int fd;

	slow_open(&s, 0);
	fd = dial(&s.o);
	send_bytes(fd, "\x04\0\0\0\0\0\0\0\x00{1}", 12);
	answer(take_call(&s), "{\"later\":1}");
	assert_int_equal(s.type, MC_HS_CONNECTION);
	assert_string_equal(s.asked, "{1}");
	assert_int_equal(mc_sock_recv_all(fd, reply, 20, mc_now_ns() + WAIT_NS), 0);
	assert_memory_equal(reply, "\x0c\0\0\0\0\0\0\0\x00{\"later\":1}", 20);
	assert_closed(fd);
	fd = dial(&s.o); /* an old peer: without type */
	send_bytes(fd, "\x03\0\0\0\0\0\0\0{2}", 11);
	answer(take_call(&s), "{}");
	assert_int_equal(mc_sock_recv_all(fd, reply, 10, mc_now_ns() + WAIT_NS), 0);
	assert_memory_equal(reply, "\x02\0\0\0\0\0\0\0{}", 10);
	assert_closed(fd);
	fd = dial(&s.o); /* other types are answered meanwhile as ever */
	send_bytes(fd, "\x03\0\0\0\0\0\0\0\x03{}", 11);
	assert_int_equal(mc_sock_recv_all(fd, reply, 29, mc_now_ns() + WAIT_NS), 0);
	assert_closed(fd);
	assert_int_equal(s.n, 2);
	slow_end(&s);
	(void)state;
}

static void request_that_cannot_be_answered_is_closed(void **state)
{
	struct slow s;
	int fd;

	slow_open(&s, 0);
	fd = dial(&s.o);
	send_bytes(fd, "\x05\0\0\0\0\0\0\0\x00null", 13); /* refused by the owner at once */
	assert_closed(fd);
	fd = dial(&s.o);
	send_bytes(fd, "\x03\0\0\0\0\0\0\0\x00{}", 11);
	answer(take_call(&s), NULL);
	assert_closed(fd);
	slow_end(&s);
	slow_open(&s, 50 * MC_NS_PER_MS); /* the owner takes longer than it may */
	fd = dial(&s.o);
	send_bytes(fd, "\x03\0\0\0\0\0\0\0\x00{}", 11);
	assert_closed(fd);
	answer(take_call(&s), "{}"); /* nobody is left to hear it */
	slow_end(&s);
	(void)state;
}

static void late_answer_outlives_its_connection_and_the_port(void **state)
{
	struct mc_control_call *call;
	struct slow s;
	int fd;

	slow_open(&s, 0);
	fd = dial(&s.o);
	send_bytes(fd, "\x03\0\0\0\0\0\0\0\x00{}", 11);
	call = take_call(&s);
	/* The peer dies: with a reset, so that nobody waits for its last byte. */
	assert_int_equal(
	    setsockopt(fd, SOL_SOCKET, SO_LINGER, &(struct linger){1, 0}, sizeof(struct linger)),
	    0);
	mc_fd_close(&fd);
	for (uint64_t end = mc_now_ns() + WAIT_NS; conns_of(&s.o) > 0 && mc_now_ns() < end;)
		mc_loop_call(s.o.loop, nothing, NULL);
	assert_int_equal(conns_of(&s.o), 0);
	answer(call, "{}");
	fd = dial(&s.o);
	send_bytes(fd, "\x03\0\0\0\0\0\0\0\x00{}", 11);
	call = take_call(&s);
	mc_control_close(s.o.ctl);
	s.o.ctl = NULL;
	answer(call, "{}");
	assert_closed(fd);
	slow_end(&s);
	(void)state;
}

static void old_peer_gets_an_answer_without_type(void **state)
{
	struct mc_control_conf conf;
	struct owner o;
	char reply[12];
	int fd;

	owner_init(&o);
	conf = conf_of(&o);
	open_with(&o, "{}", &conf);
	fd = dial(&o);
	send_bytes(fd, "\x02\0\0\0\0\0\0\0{}", 10);
	assert_int_equal(mc_sock_recv_all(fd, reply, 9, mc_now_ns() + WAIT_NS), 0);
	assert_int_equal(reply[8], '{');
	mc_fd_close(&fd);
	owner_end(&o);
	(void)state;
}

static void request_may_come_byte_by_byte(void **state)
{
	struct mc_control_conf conf;
	struct owner o;
	char reply[64];
	int fd;

	owner_init(&o);
	conf = conf_of(&o);
	open_with(&o, "{}", &conf);
	fd = dial(&o);
	for (int i = 0; i < 11; i++)
		send_bytes(fd, "\x03\0\0\0\0\0\0\0\x03{}" + i, 1);
	assert_int_equal(mc_sock_recv_all(fd, reply, 29, mc_now_ns() + WAIT_NS), 0);
	assert_memory_equal(reply, "\x15\0\0\0\0\0\0\0\x03{\"status\":\"success\"}", 29);
	assert_closed(fd);
	owner_end(&o);
	(void)state;
}

static void connection_with_our_preface_is_handed_over(void **state)
{
	struct mc_control_conf conf;
	uint64_t limit = mc_now_ns() + WAIT_NS;
	struct owner o;
	char c;
	int fd, got;

	owner_init(&o);
	conf = conf_of(&o);
	open_with(&o, "{}", &conf);
	fd = dial(&o);
	send_bytes(fd, PREFACE "xy", 10);
	while (o.adopted_fd < 0 && mc_now_ns() < limit)
		(void)poll(NULL, 0, 1); /* waits for the loop's thread */
	assert_true(o.adopted_fd >= 0);
	assert_memory_equal(o.adopted, PREFACE, 8);
	owner_end(&o); /* the connection is not the port's any more */
	got = o.adopted_fd;
	send_bytes(got, "k", 1);
	assert_int_equal(mc_sock_recv_all(fd, &c, 1, mc_now_ns() + WAIT_NS), 0);
	mc_fd_close(&fd);
	mc_fd_close(&got);
	(void)state;
}

static void wrong_bytes_close_the_connection_at_once(void **state)
{
	static const struct {
		const char *bytes;
		size_t len;
	} rows[] = {{"GET / HTTP/1.1\r\n\r\n", 18},
		    {"\0\0\0\0\0\0\0\0", 8},
		    {"\xff\xff\xff\xff\xff\xff\xff\xff", 8},
		    {"\x01\0\x10\0\0\0\0\0", 8},
		    {"\x03\0\0\0\0\0\0\0\x02{]", 11}};
	struct mc_control_conf conf;
	struct owner o;

	owner_init(&o);
	conf = conf_of(&o);
	open_with(&o, "{}", &conf);
	for (size_t i = 0; i < MC_ARRAY_LEN(rows); i++) {
		int fd = dial(&o);

		send_bytes(fd, rows[i].bytes, rows[i].len);
		assert_closed(fd);
	}
	owner_end(&o);
	(void)state;
}

static void large_descriptors_pass_in_both_directions(void **state)
{
	size_t len = 900000, reply_len;
	char *mine = mc_calloc(len + 1, 1), *reply;
	struct mc_diag diag = {.text = ""};
	struct mc_control_conf conf;
	struct owner o;

	memset(mine, 'x', len);
	owner_init(&o);
	conf = conf_of(&o);
	open_with(&o, mine, &conf);
	assert_int_equal(mc_handshake_metadata(&o.hs, o.name, mine, mc_now_ns() + WAIT_NS, &reply,
					       &reply_len, &diag),
			 0);
	assert_int_equal(reply_len, len);
	assert_string_equal(reply, mine);
	mc_free(reply);
	mc_free(mine);
	owner_end(&o);
	(void)state;
}

/* Peers that connect and then say nothing, half a head, or half a body. */
static void stall(const struct owner *o, int *fds, int n)
{
	static const char parts[] = "\xff\xff\x0f\0\0\0\0\0\x01{";

	for (int i = 0; i < n; i++) {
		fds[i] = dial(o);
		send_bytes(fds[i], parts, (size_t)(i % 3) * 5);
	}
}

static void *caller(void *arg)
{
	struct owner *o = arg;
	intptr_t failed = 0;
	char *reply;
	size_t len;

	for (int i = 0; i < 20; i++) {
		if (mc_handshake_metadata(&o->hs, o->name, "{}", mc_now_ns() + WAIT_NS, &reply,
					  &len, NULL) < 0)
			failed++;
		else
			mc_free(reply);
	}
	return (void *)failed;
}

static void stalled_peers_stall_nobody_else(void **state)
{
	struct mc_control_conf conf;
	struct mc_control_stats stats;
	pthread_t threads[16];
	int fds[300];
	struct owner o;
	void *failed;

	owner_init(&o);
	conf = conf_of(&o);
	conf.step_ns = 3600 * MC_NS_PER_S;
	open_with(&o, "{\"name\":\"me\"}", &conf);
	stall(&o, fds, 300);
	for (int i = 0; i < 16; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, caller, &o), 0);
	for (int i = 0; i < 16; i++) {
		pthread_join(threads[i], &failed);
		assert_null(failed);
	}
	/* A caller may have its reply before the loop has counted it. */
	mc_loop_call(o.loop, nothing, NULL);
	mc_control_stats_get(o.ctl, &stats);
	assert_int_equal(stats.replied, 320);
	assert_true(stats.conns >= 300);
	owner_end(&o);
	for (int i = 0; i < 300; i++)
		mc_fd_close(&fds[i]);
	(void)state;
}

static void full_table_gives_up_its_oldest_silent_connection(void **state)
{
	struct mc_diag diag = {.text = ""};
	struct mc_control_conf conf;
	struct mc_control_stats stats;
	struct owner o;
	int fds[40];

	owner_init(&o);
	conf = conf_of(&o);
	conf.step_ns = 3600 * MC_NS_PER_S;
	conf.conns_max = 8;
	open_with(&o, "{}", &conf);
	for (int i = 0; i < 40; i++)
		fds[i] = dial(&o);
	assert_int_equal(mc_handshake_probe(&o.hs, o.name, mc_now_ns() + WAIT_NS, &diag), 0);
	assert_closed(fds[0]);
	mc_control_stats_get(o.ctl, &stats);
	assert_true(stats.evicted >= 33);
	assert_true(stats.conns <= 8);
	owner_end(&o);
	for (int i = 1; i < 40; i++)
		mc_fd_close(&fds[i]);
	(void)state;
}

static void silent_and_slow_peers_are_dropped_at_their_deadline(void **state)
{
	struct mc_control_conf conf;
	struct owner o;
	int fds[3];

	owner_init(&o);
	conf = conf_of(&o);
	conf.step_ns = 20 * MC_NS_PER_MS;
	open_with(&o, "{}", &conf);
	stall(&o, fds, 3);
	for (int i = 0; i < 3; i++)
		assert_closed(fds[i]);
	owner_end(&o);
	(void)state;
}

static void large_requests_share_one_budget(void **state)
{
	char *part = mc_calloc(300000, 1);
	struct mc_control_conf conf;
	struct mc_control_stats stats;
	struct mc_diag diag;
	uint64_t limit = mc_now_ns() + WAIT_NS;
	struct owner o;
	int a, b;

	memcpy(part, "\xff\xff\x0f\0\0\0\0\0\x01", 9);
	owner_init(&o);
	conf = conf_of(&o);
	conf.bytes_max = 600000;
	open_with(&o, "{}", &conf);
	a = dial(&o);
	send_bytes(a, part, 300000);
	do {
		mc_control_stats_get(o.ctl, &stats);
	} while (stats.bytes < 300000 && mc_now_ns() < limit);
	assert_true(stats.bytes >= 300000);
	b = dial(&o);
	(void)mc_sock_send_all(b, part, 300000, limit); /* may fail: it is being closed */
	assert_closed(b);
	assert_int_equal(mc_handshake_probe(&o.hs, o.name, mc_now_ns() + WAIT_NS, &diag), 0);
	mc_fd_close(&a);
	owner_end(&o);
	mc_free(part);
	(void)state;
}

static void lack_of_descriptors_passes_by_itself(void **state)
{
	uint64_t limit = mc_now_ns() + WAIT_NS;
	struct mc_control_stats stats;
	struct mc_control_conf conf;
	struct rlimit old, low;
	struct owner o;
	char reply[29];
	int fd, next;

	owner_init(&o);
	conf = conf_of(&o);
	open_with(&o, "{}", &conf);
	assert_int_equal(getrlimit(RLIMIT_NOFILE, &old), 0);
	next = dup(0);
	assert_true(next > 0);
	close(next);
	low = old;
	low.rlim_cur = (rlim_t)next + 1; /* one more: the client's */
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &low), 0);
	fd = dial(&o);
	send_bytes(fd, "\x03\0\0\0\0\0\0\0\x03{}", 11);
	do {
		mc_control_stats_get(o.ctl, &stats);
	} while (stats.paused == 0 && mc_now_ns() < limit);
	assert_int_equal(stats.paused, 1);
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &old), 0);
	assert_int_equal(mc_sock_recv_all(fd, reply, 29, limit), 0);
	mc_fd_close(&fd);
	owner_end(&o);
	(void)state;
}

static void port_in_use_is_named(void **state)
{
	struct mc_control_conf conf;
	struct mc_control *second;
	struct mc_diag diag = {.text = ""};
	struct owner o;

	owner_init(&o);
	conf = conf_of(&o);
	open_with(&o, "{}", &conf);
	mc_addr_port_set(&conf.bind, mc_control_port(o.ctl));
	assert_int_equal(mc_control_open(o.loop, &conf, &second, &diag), -MC_E_ADDR_IN_USE);
	assert_non_null(strstr(diag.text, o.name));
	owner_end(&o);
	(void)state;
}

static void name_of_another_machine_needs_a_place_to_listen(void **state)
{
	struct mc_hs_conf hs;
	struct mc_control_place p;
	struct mc_diag diag;

	mc_hs_conf_load(&hs);
	assert_int_equal(mc_control_place(&hs, "192.0.2.9:14321", true, &p, &diag), -MC_E_ADDR);
	assert_non_null(strstr(diag.text, "192.0.2.9"));
	assert_non_null(strstr(diag.text, "MC_TCP_BIND_ADDRESS"));
	assert_int_equal(mc_control_place(&hs, "no.such.host.invalid", true, &p, &diag), -MC_E_DNS);
	assert_non_null(strstr(diag.text, "no.such.host.invalid"));
	(void)mc_strlcpy(hs.bind_address, sizeof(hs.bind_address), "127.0.0.2");
	assert_int_equal(mc_control_place(&hs, "192.0.2.9", true, &p, &diag), 0);
	assert_string_equal(p.host, "192.0.2.9");
	assert_true(mc_addr_is_loopback(&p.bind));
	(void)mc_strlcpy(hs.bind_address, sizeof(hs.bind_address), "0.0.0.0");
	assert_int_equal(mc_control_place(&hs, "192.0.2.9", true, &p, &diag), 0);
	assert_true(mc_addr_is_any(&p.bind));
	assert_int_equal(mc_control_place(&hs, "192.0.2.9", false, &p, &diag), -MC_E_ADDR);
	(void)state;
}

static void place_follows_the_kind_of_metadata(void **state)
{
	struct mc_hs_conf hs;
	struct mc_control_place p;
	struct mc_diag diag;
	char name[64];

	mc_hs_conf_load(&hs);
	assert_int_equal(mc_control_place(&hs, "127.0.0.1:14321", true, &p, &diag), 0);
	assert_string_equal(p.host, "127.0.0.1");
	assert_true(mc_addr_is_loopback(&p.bind));
	assert_int_equal(mc_addr_port(&p.bind), 0);
	hs.is_legacy_port = true;
	assert_int_equal(mc_control_place(&hs, "127.0.0.1:14321", true, &p, &diag), 0);
	assert_int_equal(mc_addr_port(&p.bind), 0);
	assert_int_equal(mc_control_place(&hs, "127.0.0.1:14321", false, &p, &diag), 0);
	assert_int_equal(mc_addr_port(&p.bind), 14321);
	assert_int_equal(mc_control_place(&hs, "127.0.0.1", false, &p, &diag), 0);
	assert_int_equal(mc_addr_port(&p.bind), 12001);
	hs.is_legacy_port = false;
	(void)mc_strlcpy(hs.bind_address, sizeof(hs.bind_address), "127.0.0.2");
	assert_int_equal(mc_control_place(&hs, "node7:14321", false, &p, &diag), 0);
	assert_string_equal(p.host, "127.0.0.2");
	(void)mc_strlcpy(hs.bind_address, sizeof(hs.bind_address), "192.0.2.77");
	assert_int_equal(mc_control_place(&hs, "node7", false, &p, &diag), -MC_E_ADDR);
	assert_non_null(strstr(diag.text, "192.0.2.77"));
	assert_int_equal(mc_control_place(&hs, "host:port", true, &p, &diag), -MC_E_INVAL);
	assert_int_equal(mc_control_place(&hs, "", true, &p, &diag), -MC_E_ADDR);
	(void)mc_strlcpy(hs.bind_address, sizeof(hs.bind_address), "127.0.0.3");
	assert_int_equal(mc_control_place(&hs, "", true, &p, &diag), 0);
	assert_string_equal(p.host, "127.0.0.3");
	hs.bind_address[0] = '\0';
	assert_int_equal(mc_control_place(&hs, "", true, &p, &diag), 0);
	assert_true(mc_addr_is_local(&p.bind));
	assert_int_equal(mc_control_name("fd00::1", 5, name, sizeof(name)), 0);
	assert_string_equal(name, "[fd00::1]:5");
	(void)state;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(every_request_gets_its_answer),
	    cmocka_unit_test(answer_may_come_later_from_another_thread),
	    cmocka_unit_test(request_that_cannot_be_answered_is_closed),
	    cmocka_unit_test(late_answer_outlives_its_connection_and_the_port),
	    cmocka_unit_test(old_peer_gets_an_answer_without_type),
	    cmocka_unit_test(request_may_come_byte_by_byte),
	    cmocka_unit_test(connection_with_our_preface_is_handed_over),
	    cmocka_unit_test(wrong_bytes_close_the_connection_at_once),
	    cmocka_unit_test(large_descriptors_pass_in_both_directions),
	    cmocka_unit_test(stalled_peers_stall_nobody_else),
	    cmocka_unit_test(full_table_gives_up_its_oldest_silent_connection),
	    cmocka_unit_test(silent_and_slow_peers_are_dropped_at_their_deadline),
	    cmocka_unit_test(large_requests_share_one_budget),
	    cmocka_unit_test(lack_of_descriptors_passes_by_itself),
	    cmocka_unit_test(port_in_use_is_named),
	    cmocka_unit_test(name_of_another_machine_needs_a_place_to_listen),
	    cmocka_unit_test(place_follows_the_kind_of_metadata),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
