/*
 * rpc_test.c: calls between a client and a server over real sockets, with threads.
 */
#include "fixture.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <sys/stat.h>
#include <sys/wait.h>

static const struct mc_rpc_server_opts no_opts;

static uint64_t soon(void)
{
	return mc_now_ns() + SOON_NS;
}

static void echo_comes_back_over_tcp_and_unix(void **state)
{
	for (int i = 0; i < 2; i++) {
		struct fix f;
		struct mc_rpc_conn *conn;
		char reply[16];
		size_t len = 0;

		fix_open(&f, &mc_env_real, no_opts);
		if (i == 0)
			fix_listen_tcp(&f);
		else
			fix_listen_unix(&f);
		conn = fix_connect(&f, &mc_env_real, NULL);
		for (int n = 0; n < 100; n++) {
			assert_int_equal(
			    fix_call(conn, soon(), FIX_ECHO, "hello", 5, reply, 16, &len), 0);
			assert_int_equal(len, 5);
			assert_memory_equal(reply, "hello", 5);
		}
		mc_rpc_conn_close(conn);
		fix_close(&f);
	}
	(void)state;
}

static void handler_error_and_unknown_method_are_answers(void **state)
{
	struct fix f;
	struct mc_rpc_conn *conn;
	struct mc_rpc_call call = {.method = FIX_FAIL};

	conn = fix_pair(&f, fix_listen_unix, NULL, NULL);
	assert_int_equal(mc_rpc_sync(conn, &call), -MC_E_NOSPACE);
	assert_true(call.is_answered);
	assert_int_equal(call.reply_len, 3);
	assert_int_equal(fix_call(conn, soon(), 999, NULL, 0, NULL, 0, NULL), -MC_E_UNSUPPORTED);
	fix_pair_close(&f, conn);
	(void)state;
}

static void reply_above_the_buffer_says_too_big_and_how_big(void **state)
{
	struct fix f;
	struct mc_rpc_conn *conn;
	uint32_t want = 3u << 20;
	char small[8];
	char *large = mc_calloc(1, want);
	size_t len = 0;

	conn = fix_pair(&f, fix_listen_tcp, NULL, NULL);
	assert_int_equal(fix_call(conn, soon(), FIX_BIG, &want, 4, small, 8, &len), -MC_E_TOO_BIG);
	assert_int_equal(len, want);
	assert_int_equal(fix_call(conn, soon(), FIX_BIG, &want, 4, large, want, &len), 0);
	assert_int_equal(large[want - 1], 'b');
	fix_pair_close(&f, conn);
	mc_free(large);
	(void)state;
}

#define MANY 500

struct many {
	struct mc_rpc_call calls[MANY];
	uint32_t value[MANY];
	_Atomic unsigned ended, wrong;
	int order[MANY];
};

static void many_on_end(struct mc_rpc_call *call, int rc, const struct mc_rpc_msg *reply)
{
	struct many *m = call->user;
	size_t i = (size_t)(call - m->calls);

	if (rc != 0 || reply->len != 4 || memcmp(reply->data, &m->value[i], 4) != 0)
		atomic_fetch_add(&m->wrong, 1);
	atomic_fetch_add(&m->ended, 1);
}

static void wait_count(_Atomic unsigned *n, unsigned want)
{
	uint64_t deadline = soon();

	while (atomic_load(n) < want && mc_now_ns() < deadline)
		(void)sched_yield();
	assert_int_equal(atomic_load(n), want);
}

/* Starts call i; when there is no room, ends one round trip to make some. */
static void start_patiently(struct mc_rpc_conn *conn, struct mc_rpc_call *call)
{
	uint64_t deadline = soon();
	int rc;

	do {
		rc = mc_rpc_start(conn, call);
		if (rc == -MC_E_AGAIN) {
			mc_rpc_flush(conn);
			(void)sched_yield();
		}
	} while (rc == -MC_E_AGAIN && mc_now_ns() < deadline);
	assert_int_equal(rc, 0);
}

static void pipelined_calls_driven_by_the_loop_all_end_with_their_own_answer(void **state)
{
	struct fix f;
	struct mc_rpc_conn *conn;
	struct many *m = mc_calloc(1, sizeof(*m));

	conn = fix_pair(&f, fix_listen_tcp, NULL, NULL);
	for (unsigned i = 0; i < MANY; i++) {
		m->value[i] = i * 2654435761u;
		m->calls[i] = (struct mc_rpc_call){.method = FIX_ECHO,
						   .flags = i % 8 ? MC_RPC_MORE : 0,
						   .req = &m->value[i],
						   .req_len = 4,
						   .deadline_ns = soon(),
						   .on_end = many_on_end,
						   .user = m};
		start_patiently(conn, &m->calls[i]);
	}
	mc_rpc_flush(conn);
	wait_count(&m->ended, MANY);
	assert_int_equal(atomic_load(&m->wrong), 0);
	fix_pair_close(&f, conn);
	mc_free(m);
	(void)state;
}

static void answers_in_another_order_find_their_calls(void **state)
{
	struct fix f;
	struct mc_rpc_conn *conn;
	struct mc_rpc_call held[20];
	char reply[20][8];

	conn = fix_pair(&f, fix_listen_unix, NULL, NULL);
	for (int i = 0; i < 20; i++) {
		held[i] = (struct mc_rpc_call){.method = FIX_HOLD,
					       .flags = MC_RPC_WAITED,
					       .deadline_ns = soon(),
					       .reply_buf = reply[i],
					       .reply_cap = 8};
		assert_int_equal(mc_rpc_start(conn, &held[i]), 0);
	}
	assert_int_equal(fix_call(conn, soon(), FIX_RELEASE, NULL, 0, NULL, 0, NULL), 0);
	for (int i = 0; i < 20; i++) {
		assert_int_equal(mc_rpc_wait(conn, &held[i]), 0);
		assert_int_equal(held[i].reply_len, 4);
		assert_memory_equal(reply[i], "held", 4);
	}
	fix_pair_close(&f, conn);
	(void)state;
}

static void latency_is_from_the_call_to_its_late_answer(void **state)
{
	struct mc_rpc_call held = {.method = FIX_HOLD, .deadline_ns = soon()};
	uint64_t start_ns = mc_now_ns(), waited_ns;
	struct mc_rpc_conn *conn;
	struct fix f;

	conn = fix_pair(&f, fix_listen_unix, NULL, NULL);
	held.flags = MC_RPC_WAITED;
	assert_int_equal(mc_rpc_start(conn, &held), 0);
	assert_int_equal(fix_call(conn, soon(), FIX_ECHO, "a", 1, NULL, 0, NULL),
			 0); /* it is there */
	assert_int_equal(mc_hist_count(&f.hold_ns), 0);
	waited_ns = mc_now_ns();
	while (mc_now_ns() - waited_ns < MC_NS_PER_MS)
		(void)sched_yield();
	assert_int_equal(fix_call(conn, soon(), FIX_RELEASE, NULL, 0, NULL, 0, NULL), 0);
	assert_int_equal(mc_rpc_wait(conn, &held), 0);
	assert_int_equal(mc_hist_count(&f.hold_ns), 1);
	assert_in_range(atomic_load(&f.hold_ns.sum), MC_NS_PER_MS, mc_now_ns() - start_ns);
	fix_pair_close(&f, conn);
	(void)state;
}

struct ended {
	struct mc_rpc_call call;
	_Atomic unsigned times;
	int rc;
};

static void ended_on_end(struct mc_rpc_call *call, int rc, const struct mc_rpc_msg *reply)
{
	struct ended *e = mc_container_of(call, struct ended, call);

	(void)reply;
	e->rc = rc;
	atomic_fetch_add(&e->times, 1);
}

static void deadline_ends_waited_and_unwaited_calls(void **state)
{
	struct fix f;
	struct mc_rpc_conn *conn;
	struct ended e = {.call = {.method = FIX_HOLD, .on_end = ended_on_end}};
	uint64_t deadline;

	conn = fix_pair(&f, fix_listen_unix, NULL, NULL);
	deadline = mc_now_ns() + 5 * MC_NS_PER_MS;
	assert_int_equal(fix_call(conn, deadline, FIX_HOLD, NULL, 0, NULL, 0, NULL),
			 -MC_E_TIMEDOUT);
	assert_true(mc_now_ns() >= deadline);
	e.call.deadline_ns = mc_now_ns() + 5 * MC_NS_PER_MS;
	assert_int_equal(mc_rpc_start(conn, &e.call), 0);
	wait_count(&e.times, 1);
	assert_int_equal(e.rc, -MC_E_TIMEDOUT);
	wait_count(&f.cancels, 2); /* the handlers were told */
	assert_int_equal(fix_call(conn, soon(), FIX_ECHO, "x", 1, NULL, 0, NULL), 0);
	fix_pair_close(&f, conn);
	(void)state;
}

static void cancel_ends_a_call_once_and_tells_the_handler(void **state)
{
	struct fix f;
	struct mc_rpc_conn *conn;
	struct ended e = {.call = {.method = FIX_HOLD, .on_end = ended_on_end}};
	uint64_t id;

	conn = fix_pair(&f, fix_listen_unix, NULL, NULL);
	assert_int_equal(mc_rpc_start(conn, &e.call), 0);
	id = e.call.id;
	assert_int_equal(mc_rpc_cancel(conn, id), 0);
	assert_int_equal(e.rc, -MC_E_CANCELED);
	assert_int_equal(mc_rpc_cancel(conn, id), -MC_E_STALE);
	wait_count(&f.cancels, 1);
	assert_int_equal(fix_call(conn, soon(), FIX_RELEASE, NULL, 0, NULL, 0, NULL), 0);
	assert_int_equal(atomic_load(&e.times), 1);
	assert_int_equal(mc_rpc_cancel(conn, 12345), -MC_E_STALE);
	fix_pair_close(&f, conn);
	(void)state;
}

static void close_ends_calls_in_flight(void **state)
{
	struct fix f;
	struct mc_rpc_conn *conn;
	struct ended e[10];

	conn = fix_pair(&f, fix_listen_tcp, NULL, NULL);
	for (int i = 0; i < 10; i++) {
		e[i] = (struct ended){.call = {.method = FIX_HOLD, .on_end = ended_on_end}};
		assert_int_equal(mc_rpc_start(conn, &e[i].call), 0);
	}
	mc_rpc_conn_close(conn);
	for (int i = 0; i < 10; i++) {
		assert_int_equal(atomic_load(&e[i].times), 1);
		assert_int_equal(e[i].rc, -MC_E_CLOSED);
	}
	fix_close(&f);
	(void)state;
}

struct waiter {
	struct mc_rpc_conn *conn;
	pthread_t thread;
	_Atomic unsigned *started;
	int rc;
};

static void *waiter_main(void *arg)
{
	struct waiter *w = arg;
	struct mc_rpc_call call = {.method = FIX_HOLD, .flags = MC_RPC_WAITED};

	w->rc = mc_rpc_start(w->conn, &call);
	atomic_fetch_add(w->started, 1);
	if (w->rc == 0)
		w->rc = mc_rpc_wait(w->conn, &call);
	return NULL;
}

static void server_close_ends_waiting_threads_and_tells_the_loss(void **state)
{
	struct fix f;
	struct waiter w[4];
	_Atomic unsigned started = 0;
	struct mc_rpc_conn *conn;

	conn = fix_pair(&f, fix_listen_unix, NULL, NULL);
	for (int i = 0; i < 4; i++) {
		w[i] = (struct waiter){.conn = conn, .started = &started};
		assert_int_equal(pthread_create(&w[i].thread, NULL, waiter_main, &w[i]), 0);
	}
	wait_count(&started, 4);
	mc_loop_call(f.server_loop, fix_release_all, &(struct fix){0}); /* a round of the loop */
	mc_rpc_server_close(f.server);
	f.server = NULL;
	for (int i = 0; i < 4; i++) {
		assert_int_equal(pthread_join(w[i].thread, NULL), 0);
		assert_true(w[i].rc == -MC_E_CLOSED || w[i].rc == -MC_E_RESET);
	}
	assert_true(mc_rpc_conn_status(conn) < 0);
	fix_pair_close(&f, conn);
	(void)state;
}

struct down {
	_Atomic unsigned times;
	_Atomic int rc;
};

static void on_down(void *user, int rc)
{
	struct down *d = user;

	atomic_store(&d->rc, rc);
	atomic_fetch_add(&d->times, 1);
}

static void idle_connection_hears_of_the_peers_death(void **state)
{
	struct fix f;
	struct down d = {0};
	struct mc_rpc_conn_opts opts = {.on_down = on_down, .user = &d};
	struct mc_rpc_conn *conn;

	conn = fix_pair(&f, fix_listen_tcp, NULL, &opts);
	assert_int_equal(fix_call(conn, soon(), FIX_ECHO, "x", 1, NULL, 0, NULL), 0);
	mc_rpc_server_close(f.server);
	f.server = NULL;
	wait_count(&d.times, 1);
	assert_true(atomic_load(&d.rc) < 0);
	assert_true(mc_rpc_start(conn, &(struct mc_rpc_call){.method = FIX_ECHO}) < 0);
	mc_rpc_conn_close(conn);
	assert_int_equal(atomic_load(&d.times), 1);
	fix_close(&f);
	(void)state;
}

static void connect_to_nobody_ends_calls_with_refused(void **state)
{
	struct fix f;
	struct mc_rpc_conn *conn;

	socklen_t len = sizeof(f.at.ss);
	int held = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	fix_open(&f, &mc_env_real, no_opts);
	/* Bound and not listening: no other program can come to listen there meanwhile. */
	assert_int_equal(mc_addr_parse("127.0.0.1:0", 0, &f.at), 0);
	assert_int_equal(bind(held, &f.at.sa, f.at.len), 0);
	assert_int_equal(getsockname(held, &f.at.sa, &len), 0);
	f.at.len = len;
	conn = fix_connect(&f, &mc_env_real, NULL);
	assert_int_equal(fix_call(conn, soon(), FIX_ECHO, "x", 1, NULL, 0, NULL), -MC_E_REFUSED);
	mc_rpc_conn_close(conn);
	mc_fd_close(&held);
	fix_close(&f);
	(void)state;
}

#define SHARERS 4
#define SHARER_CALLS 2000

struct sharer {
	struct mc_rpc_conn *conn;
	pthread_t thread;
	uint32_t number;
	unsigned wrong;
};

static void *sharer_main(void *arg)
{
	struct sharer *s = arg;

	for (uint32_t i = 0; i < SHARER_CALLS; i++) {
		uint32_t value[2] = {s->number, i}, back[2] = {0};

		if (fix_call(s->conn, soon(), FIX_ECHO, value, 8, back, 8, NULL) != 0 ||
		    memcmp(value, back, 8) != 0)
			s->wrong++;
	}
	return NULL;
}

static void threads_share_a_connection(void **state)
{
	struct fix f;
	struct sharer s[SHARERS];
	struct mc_rpc_conn *conn;
	struct many *m = mc_calloc(1, sizeof(*m));

	conn = fix_pair(&f, fix_listen_tcp, NULL, NULL);
	for (uint32_t i = 0; i < SHARERS; i++) {
		s[i] = (struct sharer){.conn = conn, .number = i};
		assert_int_equal(pthread_create(&s[i].thread, NULL, sharer_main, &s[i]), 0);
	}
	for (unsigned i = 0; i < MANY; i++) { /* and unwaited calls beside them */
		m->value[i] = i;
		m->calls[i] = (struct mc_rpc_call){.method = FIX_ECHO,
						   .req = &m->value[i],
						   .req_len = 4,
						   .deadline_ns = soon(),
						   .on_end = many_on_end,
						   .user = m};
		start_patiently(conn, &m->calls[i]);
	}
	for (int i = 0; i < SHARERS; i++) {
		assert_int_equal(pthread_join(s[i].thread, NULL), 0);
		assert_int_equal(s[i].wrong, 0);
	}
	wait_count(&m->ended, MANY);
	assert_int_equal(atomic_load(&m->wrong), 0);
	fix_pair_close(&f, conn);
	mc_free(m);
	(void)state;
}

#define LARGE_LEN (7u << 20) /* more than a socket takes at once; all answers fit the queue */
#define LARGE_CALLS 10

static void *large_main(void *arg)
{
	struct sharer *s = arg;
	uint32_t *sent = mc_calloc(1, LARGE_LEN), *back = mc_calloc(1, LARGE_LEN);
	size_t len = 0;

	for (uint32_t i = 0; i < LARGE_CALLS; i++) {
		size_t want = LARGE_LEN >> i % 10; /* some are small */

		for (uint32_t k = 0; k < want / 4; k++)
			sent[k] = s->number << 28 ^ i << 20 ^ k;
		if (fix_call(s->conn, soon(), FIX_ECHO, sent, want, back, want, &len) != 0 ||
		    len != want || memcmp(sent, back, want) != 0)
			s->wrong++;
	}
	mc_free(sent);
	mc_free(back);
	return NULL;
}

static void large_requests_of_threads_arrive_whole(void **state)
{
	struct fix f;
	struct sharer s[SHARERS];
	struct mc_rpc_conn *conn = fix_pair(&f, fix_listen_tcp, NULL, NULL);

	for (uint32_t i = 0; i < SHARERS; i++) {
		s[i] = (struct sharer){.conn = conn, .number = i};
		assert_int_equal(pthread_create(&s[i].thread, NULL, large_main, &s[i]), 0);
	}
	for (int i = 0; i < SHARERS; i++) {
		assert_int_equal(pthread_join(s[i].thread, NULL), 0);
		assert_int_equal(s[i].wrong, 0);
	}
	fix_pair_close(&f, conn);
	(void)state;
}

static void sync_calls_wait_for_room(void **state)
{
	struct fix f;
	struct sharer s[SHARERS];
	struct mc_rpc_conn_opts opts = {.calls_max = 2};
	struct mc_rpc_conn *conn;

	conn = fix_pair(&f, fix_listen_unix, NULL, &opts);
	for (uint32_t i = 0; i < SHARERS; i++) {
		s[i] = (struct sharer){.conn = conn, .number = i};
		assert_int_equal(pthread_create(&s[i].thread, NULL, sharer_main, &s[i]), 0);
	}
	for (int i = 0; i < SHARERS; i++) {
		assert_int_equal(pthread_join(s[i].thread, NULL), 0);
		assert_int_equal(s[i].wrong, 0);
	}
	fix_pair_close(&f, conn);
	(void)state;
}

/* ---- descriptors ---- */

static int open_fds(void)
{
	int n = 0;

	for (int fd = 0; fd < 1024; fd++)
		n += fcntl(fd, F_GETFD) >= 0;
	return n;
}

static void take_fd(struct mc_rpc_call *call, int rc, const struct mc_rpc_msg *reply)
{
	int *ret_fd = call->user;

	assert_int_equal(rc, 0);
	assert_int_equal(reply->nfds, 2);
	*ret_fd = reply->fds[1];
	reply->fds[1] = -1; /* ours now; the first one is closed for us */
}

static void descriptors_travel_and_none_is_left_over(void **state)
{
	struct fix f;
	struct mc_rpc_conn *conn;
	int before = open_fds(), got = -1, p[2];
	struct stat a, b;

	conn = fix_pair(&f, fix_listen_unix, NULL, NULL);
	assert_int_equal(pipe2(p, O_CLOEXEC), 0);
	for (int i = 0; i < 20; i++) {
		struct mc_rpc_call call = {.method = FIX_FD,
					   .fds = p,
					   .nfds = 2,
					   .deadline_ns = soon(),
					   .on_end = take_fd,
					   .user = &got};

		assert_int_equal(mc_rpc_sync(conn, &call), 0);
		assert_int_equal(fstat(p[1], &a), 0);
		assert_int_equal(fstat(got, &b), 0);
		assert_int_equal(a.st_ino, b.st_ino);
		assert_int_equal(fcntl(got, F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
		(void)close(got);
	}
	(void)close(p[0]);
	(void)close(p[1]);
	fix_pair_close(&f, conn);
	assert_int_equal(open_fds(), before);
	(void)state;
}

static void descriptors_over_tcp_are_refused_and_break_only_that_connection(void **state)
{
	struct fix f;
	struct mc_rpc_conn *conn;
	int fd = 0;
	struct mc_rpc_call call = {.method = FIX_FD, .fds = &fd, .nfds = 1};

	conn = fix_pair(&f, fix_listen_tcp, NULL, NULL);
	assert_int_equal(mc_rpc_sync(conn, &call), -MC_E_UNSUPPORTED);
	fix_pair_close(&f, conn);
	(void)state;
}

/* ---- streams ---- */

struct stream {
	struct mc_rpc_call call;
	struct mc_rpc_conn *conn;
	uint32_t sent, received, total, sent_first;
	bool is_wrong, is_last_seen;
};

static void stream_push(struct stream *s)
{
	static const uint8_t piece[8192];
	int rc = 0;

	while (s->sent < s->total && rc == 0) {
		uint32_t n = mc_min(s->total - s->sent, (uint32_t)sizeof(piece));

		rc = mc_rpc_call_send(s->conn, s->call.id, piece, n, s->sent + n == s->total);
		if (rc == 0)
			s->sent += n;
	}
	if (rc < 0 && rc != -MC_E_AGAIN)
		s->is_wrong = true;
}

static void stream_push_on_loop(void *arg)
{
	struct stream *s = arg;

	stream_push(s);
	s->sent_first = s->sent;
}

static void stream_on_room(struct mc_rpc_call *call)
{
	stream_push(mc_container_of(call, struct stream, call));
}

static void stream_on_chunk(struct mc_rpc_call *call, const void *data, size_t len, bool is_last)
{
	struct stream *s = mc_container_of(call, struct stream, call);

	(void)data;
	s->received += (uint32_t)len;
	s->is_last_seen = is_last;
	if (mc_rpc_call_credit(s->conn, call->id, (uint32_t)len) < 0)
		s->is_wrong = true;
}

static void stream_of_megabytes_goes_both_ways_within_its_credit(void **state)
{
	struct fix f;
	struct stream s = {.total = 5u << 20,
			   .call = {.method = FIX_STREAM,
				    .flags = MC_RPC_STREAM | MC_RPC_WAITED,
				    .on_chunk = stream_on_chunk,
				    .on_room = stream_on_room}};

	fix_open(&f, &mc_env_real, no_opts);
	fix_listen_tcp(&f);
	s.call.deadline_ns = soon();
	s.conn = fix_connect(&f, &mc_env_real, NULL);
	assert_int_equal(mc_rpc_start(s.conn, &s.call), 0);
	/* on the loop that reads credit: none can come before the first one is used up */
	mc_loop_call(f.client_loop, stream_push_on_loop, &s);
	assert_int_equal(s.sent_first, MC_FRAME_CREDIT_START);
	assert_int_equal(mc_rpc_wait(s.conn, &s.call), 0);
	assert_int_equal(s.received, s.total);
	assert_true(s.is_last_seen);
	assert_false(s.is_wrong);
	assert_int_equal(mc_rpc_call_send(s.conn, s.call.id, "x", 1, true), -MC_E_STALE);
	mc_rpc_conn_close(s.conn);
	fix_close(&f);
	(void)state;
}

/* ---- the server's limits ---- */

static void calls_above_the_servers_limit_are_refused_by_the_client_itself(void **state)
{
	struct fix f;
	struct mc_rpc_server_opts opts = {.calls_max = MC_RPC_CALLS_START};
	struct ended e[MC_RPC_CALLS_START + 1];
	struct mc_rpc_conn *conn;

	conn = fix_pair(&f, fix_listen_unix, &opts, NULL);
	for (int i = 0; i <= MC_RPC_CALLS_START; i++) {
		e[i] = (struct ended){.call = {.method = FIX_HOLD, .on_end = ended_on_end}};
		assert_int_equal(mc_rpc_start(conn, &e[i].call),
				 i < MC_RPC_CALLS_START ? 0 : -MC_E_AGAIN);
	}
	assert_int_equal(mc_rpc_cancel(conn, e[0].call.id), 0);
	/* The server has not answered it, so it still counts. */
	assert_int_equal(mc_rpc_start(conn, &e[MC_RPC_CALLS_START].call), -MC_E_AGAIN);
	fix_pair_close(&f, conn);
	(void)state;
}

static void frame_above_the_servers_limit_is_refused(void **state)
{
	struct fix f;
	struct mc_rpc_server_opts opts = {.frame_max = 1000};
	char big[2000] = {0};
	struct mc_rpc_conn *conn;

	conn = fix_pair(&f, fix_listen_unix, &opts, NULL);
	assert_int_equal(fix_call(conn, soon(), FIX_ECHO, big, 1000, NULL, 0, NULL), 0);
	assert_int_equal(fix_call(conn, soon(), FIX_ECHO, big, 1001, NULL, 0, NULL), -MC_E_TOO_BIG);
	fix_pair_close(&f, conn);
	(void)state;
}

static void connection_above_the_limit_waits_until_one_is_gone(void **state)
{
	struct fix f;
	struct mc_rpc_server_opts opts = {.conns_max = 1};
	struct mc_rpc_conn *a, *b;
	uint64_t short_ns = 20 * MC_NS_PER_MS;

	fix_open(&f, &mc_env_real, opts);
	fix_listen_unix(&f);
	a = fix_connect(&f, &mc_env_real, NULL);
	assert_int_equal(fix_call(a, soon(), FIX_ECHO, "x", 1, NULL, 0, NULL), 0);
	b = fix_connect(&f, &mc_env_real, NULL);
	assert_int_equal(fix_call(b, mc_now_ns() + short_ns, FIX_ECHO, "x", 1, NULL, 0, NULL),
			 -MC_E_TIMEDOUT);
	mc_rpc_conn_close(a);
	assert_int_equal(fix_call(b, soon(), FIX_ECHO, "x", 1, NULL, 0, NULL), 0);
	mc_rpc_conn_close(b);
	fix_close(&f);
	(void)state;
}

static void client_that_reads_nothing_stalls_nobody(void **state)
{
	struct fix f;
	struct mc_rpc_server_opts opts = {.queue_max = 1u << 20};
	struct mc_rpc_conn *stalled, *other;
	struct mc_rpc_call call[100];
	uint32_t want = 256u << 10;
	unsigned n = 0;

	fix_open(&f, &mc_env_real, opts);
	fix_listen_tcp(&f);
	stalled = fix_connect(&f, &mc_env_real, NULL);
	other = fix_connect(&f, &mc_env_real, NULL);
	assert_int_equal(fix_call(stalled, soon(), FIX_ECHO, "x", 1, NULL, 0, NULL), 0);
	/* Waited calls that nobody waits for: the answers stay in the socket. */
	for (; n < MC_ARRAY_LEN(call); n++) {
		call[n] = (struct mc_rpc_call){.method = FIX_BIG,
					       .flags = MC_RPC_WAITED,
					       .req = &want,
					       .req_len = 4,
					       .deadline_ns = soon()};
		assert_int_equal(mc_rpc_start(stalled, &call[n]), 0);
	}
	for (int i = 0; i < 50; i++)
		assert_int_equal(fix_call(other, soon(), FIX_ECHO, "x", 1, NULL, 0, NULL), 0);
	while (n > 0)
		assert_int_equal(mc_rpc_wait(stalled, &call[--n]), 0);
	mc_rpc_conn_close(stalled);
	mc_rpc_conn_close(other);
	fix_close(&f);
	(void)state;
}

/* ---- answers from other threads, adoption, fork ---- */

static void late_answers_after_the_loss_are_dropped(void **state)
{
	struct fix f;
	struct mc_rpc_conn *conn;
	struct mc_rpc_call call = {.method = FIX_HOLD, .flags = MC_RPC_WAITED};
	struct mc_rpc_req *req;

	conn = fix_pair(&f, fix_listen_unix, NULL, NULL);
	assert_int_equal(mc_rpc_start(conn, &call), 0);
	assert_int_equal(fix_call(conn, soon(), FIX_ECHO, "x", 1, NULL, 0, NULL), 0);
	mc_rpc_conn_close(conn);
	wait_count(&f.downs, 1);
	wait_count(&f.cancels, 1);
	req = f.held[0];
	f.nheld = 0;
	assert_true(mc_rpc_req_is_dead(req));
	mc_rpc_server_close(f.server);
	f.server = NULL;
	assert_int_equal(mc_rpc_reply(req, 0, "late", 4, NULL, 0), -MC_E_CLOSED);
	fix_close(&f);
	(void)state;
}

struct adopt {
	struct fix *f;
	int fd, rc;
	char first[MC_FRAME_PREFACE_LEN];
};

static void adopt_on_loop(void *arg)
{
	struct adopt *a = arg;

	a->rc = mc_rpc_server_adopt(a->f->server, a->fd, a->first, sizeof(a->first));
}

static void server_adopts_a_sniffed_connection(void **state)
{
	struct fix f;
	struct adopt a = {.f = &f};
	struct mc_addr host;
	struct mc_rpc_conn *conn;
	int l;

	fix_open(&f, &mc_env_real, no_opts);
	assert_int_equal(mc_addr_parse("127.0.0.1", 0, &host), 0);
	assert_int_equal(mc_sock_listen_range(&host, 20000, 32000, 8, &l, &f.at), 0);
	conn = fix_connect(&f, &mc_env_real, NULL);
	assert_int_equal(mc_sock_wait(l, 1 /* POLLIN */, soon()), 0);
	assert_int_equal(mc_sock_accept(l, &a.fd, NULL), 0);
	assert_int_equal(mc_sock_recv_all(a.fd, a.first, sizeof(a.first), soon()), 0);
	assert_memory_equal(a.first, MC_FRAME_PREFACE, sizeof(a.first));
	mc_loop_call(f.server_loop, adopt_on_loop, &a);
	assert_int_equal(a.rc, 0);
	assert_int_equal(fix_call(conn, soon(), FIX_ECHO, "x", 1, NULL, 0, NULL), 0);
	mc_rpc_conn_close(conn);
	mc_fd_close(&l);
	fix_close(&f);
	(void)state;
}

static void child_of_fork_gets_errors_and_the_parent_goes_on(void **state)
{
	struct fix f;
	struct mc_rpc_conn *conn;
	struct mc_rpc_call call = {.method = FIX_ECHO};
	int status = -1;
	pid_t pid;

	conn = fix_pair(&f, fix_listen_unix, NULL, NULL);
	assert_int_equal(mc_rpc_sync(conn, &call), 0);
	pid = fork();
	if (pid == 0) {
		bool ok = mc_rpc_sync(conn, &call) == -MC_E_FORKED &&
			  mc_rpc_start(conn, &call) == -MC_E_FORKED &&
			  mc_rpc_conn_status(conn) == -MC_E_FORKED &&
			  mc_rpc_server_listen(f.server, &f.at, NULL) == -MC_E_FORKED;

		mc_rpc_conn_close(conn);
		mc_rpc_server_close(f.server);
		mc_loop_close(f.client_loop);
		mc_loop_close(f.server_loop);
		_exit(ok ? 0 : 1);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	assert_int_equal(mc_rpc_sync(conn, &call), 0);
	fix_pair_close(&f, conn);
	(void)state;
}

static void calls_allocate_nothing_once_warm(void **state)
{
	struct fix f;
	struct mc_rpc_conn *conn;
	uint64_t calls;

	conn = fix_pair(&f, fix_listen_unix, NULL, NULL);
	for (int i = 0; i < 8; i++)
		assert_int_equal(fix_call(conn, soon(), FIX_ECHO, "x", 1, NULL, 0, NULL), 0);
	calls = mc_mem_calls();
	for (int i = 0; i < 100; i++)
		assert_int_equal(fix_call(conn, soon(), FIX_ECHO, "x", 1, NULL, 0, NULL), 0);
	assert_int_equal(mc_mem_calls(), calls);
	fix_pair_close(&f, conn);
	(void)state;
}

static int64_t live_before;

static int note_live(void **state)
{
	live_before = mc_mem_live();
	(void)state;
	return 0;
}

static int check_live(void **state)
{
	(void)state;
	return mc_mem_live() == live_before ? 0 : -1;
}

#define T(name) cmocka_unit_test_setup_teardown(name, note_live, check_live)

int main(void)
{
	const struct CMUnitTest tests[] = {
	    T(echo_comes_back_over_tcp_and_unix),
	    T(handler_error_and_unknown_method_are_answers),
	    T(reply_above_the_buffer_says_too_big_and_how_big),
	    T(pipelined_calls_driven_by_the_loop_all_end_with_their_own_answer),
	    T(answers_in_another_order_find_their_calls),
	    T(latency_is_from_the_call_to_its_late_answer),
	    T(deadline_ends_waited_and_unwaited_calls),
	    T(cancel_ends_a_call_once_and_tells_the_handler),
	    T(close_ends_calls_in_flight),
	    T(server_close_ends_waiting_threads_and_tells_the_loss),
	    T(idle_connection_hears_of_the_peers_death),
	    T(connect_to_nobody_ends_calls_with_refused),
	    T(threads_share_a_connection),
	    T(large_requests_of_threads_arrive_whole),
	    T(sync_calls_wait_for_room),
	    T(descriptors_travel_and_none_is_left_over),
	    T(descriptors_over_tcp_are_refused_and_break_only_that_connection),
	    T(stream_of_megabytes_goes_both_ways_within_its_credit),
	    T(calls_above_the_servers_limit_are_refused_by_the_client_itself),
	    T(frame_above_the_servers_limit_is_refused),
	    T(connection_above_the_limit_waits_until_one_is_gone),
	    T(client_that_reads_nothing_stalls_nobody),
	    T(late_answers_after_the_loss_are_dropped),
	    T(server_adopts_a_sniffed_connection),
	    T(child_of_fork_gets_errors_and_the_parent_goes_on),
	    T(calls_allocate_nothing_once_warm),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
