/*
 * tcp_test.c: both ends of the TCP transport against a peer that speaks raw bytes. What needs only
 * the vtable is tests/conform.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <poll.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "base/mem.h"
#include "xport/tcp.h"
#include "xport/tcp_classic.h"
#include "xport/tcp_wire.h"

#define LEN (1u << 20)
#define EPOCH 0x1234
#define WAIT_NS (10 * MC_NS_PER_S)

static struct mc_loop *loop;
static struct mc_region_table *regions;
static struct mc_xdev *dev;
static struct mc_remote_region rr;
static _Alignas(64) uint8_t mem[LEN];
static uint8_t bytes[LEN];
static int64_t live_before;
static uint64_t hello_ns; /* 0: the default */
static const uint8_t nonce[16] = "sixteen bytes...";

static uint64_t deadline(void)
{
	return mc_now_ns() + WAIT_NS;
}

static int dev_open(unsigned conns_max)
{
	struct mc_xdev_env env = {.loops = &loop,
				  .nloops = 1,
				  .regions = regions,
				  .clk = &mc_clock_real,
				  .epoch = EPOCH,
				  .nonce = nonce};
	struct mc_tcp_opts o = {.naddrs = 1,
				.port_min = 20000,
				.port_max = 32000,
				.conns_max = conns_max,
				.hello_ns = hello_ns};

	if (mc_addr_parse("127.0.0.1", 0, &o.addrs[0]) < 0)
		return -1;
	return mc_tcp_dev_open(&env, &o, &dev);
}

static int region_add(void)
{
	struct mc_region_desc d = {.addr = (uintptr_t)mem, .len = LEN, .rights = 3};
	struct mc_region_info info;
	int rc = mc_region_add(regions, &d, &info);

	rr = (struct mc_remote_region){
	    .addr = d.addr, .len = LEN, .id = info.id, .gen = info.gen, .rights = 3};
	return rc;
}

static int setup(void **state)
{
	(void)state;
	live_before = mc_mem_live();
	for (size_t i = 0; i < LEN; i++)
		bytes[i] = (uint8_t)(i * 5 + (i >> 8));
	memset(mem, 0, LEN);
	if (mc_loop_open("tcp-test", &mc_clock_real, &loop) < 0 || mc_loop_start(loop) < 0 ||
	    mc_region_table_open(&regions) < 0 || dev_open(8) < 0)
		return -1;
	return region_add();
}

static int teardown(void **state)
{
	(void)state;
	dev->ops->dev_close(dev);
	(void)mc_region_del(regions, rr.addr); /* may be gone already */
	mc_region_table_close(regions);
	mc_loop_close(loop);
	return mc_mem_live() == live_before ? 0 : -1;
}

/* ---- a raw initiator ---- */

static int raw_open(void)
{
	struct mc_addr a;
	int fd;

	assert_int_equal(mc_addr_parse("127.0.0.1", mc_tcp_dev_port(dev), &a), 0);
	assert_int_equal(mc_sock_connect(&a, NULL, &fd), 0);
	assert_int_equal(mc_sock_wait(fd, POLLOUT, deadline()), 0);
	return fd;
}

static void raw_send(int fd, const void *data, size_t len)
{
	assert_int_equal(mc_sock_send_all(fd, data, len, deadline()), 0);
}

static void raw_recv(int fd, void *data, size_t len)
{
	assert_int_equal(mc_sock_recv_all(fd, data, len, deadline()), 0);
}

static void expect_closed(int fd)
{
	uint8_t byte;

	assert_int_equal(mc_sock_recv_all(fd, &byte, 1, deadline()), -MC_E_RESET);
	assert_int_equal(close(fd), 0);
}

/* @return the status of the welcome */
static int raw_hello(int fd, uint64_t lane)
{
	struct mc_tcp_hello h = {.lane = lane, .initiator_epoch = 77, .target_epoch = EPOCH};
	struct mc_tcp_welcome m = {0};
	uint8_t buf[MC_TCP_HELLO_BYTES];

	memcpy(h.nonce, nonce, sizeof(h.nonce));
	mc_tcp_hello_encode(buf, &h);
	raw_send(fd, buf, MC_TCP_HELLO_BYTES);
	raw_recv(fd, buf, MC_TCP_WELCOME_BYTES);
	assert_int_equal(mc_tcp_welcome_decode(buf, &m), 0);
	assert_int_equal(m.target_epoch, EPOCH);
	return m.status;
}

/* Head, one fragment and perhaps a signal. @return bytes */
static size_t request(uint8_t *buf, enum mc_op op, uint64_t seq, uint64_t off, uint64_t len,
		      const struct mc_tcp_frag *signal)
{
	struct mc_wr w = mc_wr_make(buf, MC_TCP_REQ_MAX);
	struct mc_tcp_frag f = {.region = rr.id, .gen = rr.gen, .off = off, .len = len};

	mc_tcp_req_encode(
	    &w, &(struct mc_tcp_req){
		    .op = op, .has_signal = signal != NULL, .nfrags = 1, .seq = seq, .len = len});
	mc_tcp_frag_encode(&w, &f);
	if (signal)
		mc_tcp_frag_encode(&w, signal);
	return mc_wr_len(&w);
}

static struct mc_tcp_reply raw_reply(int fd, uint64_t seq)
{
	uint8_t buf[MC_TCP_REPLY_BYTES];
	struct mc_tcp_reply p;

	raw_recv(fd, buf, sizeof(buf));
	assert_int_equal(mc_tcp_reply_decode(buf, &p), 0);
	assert_int_equal(p.seq, seq);
	return p;
}

static uint64_t retire(uint64_t lane)
{
	uint8_t token[16];
	struct mc_wr w = mc_wr_make(token, sizeof(token));
	uint64_t acked = 12345;

	mc_wr_u64(&w, 77);
	mc_wr_u64(&w, lane);
	assert_int_equal(dev->ops->retire(dev, token, sizeof(token), &acked), 0);
	return acked;
}

static void conns_wait(unsigned n)
{
	uint64_t end_ns = deadline();
	struct mc_tcp_served s;

	do {
		mc_tcp_dev_served(dev, &s);
		assert_true(mc_now_ns() < end_ns);
	} while (s.conns != n);
}

/* ---- the target ---- */

static void many_small_requests_in_one_piece_are_all_answered(void **state)
{
	static uint8_t buf[MC_TCP_REQ_MAX * 4];
	uint8_t byte;
	size_t len = 0;
	int fd = raw_open();

	assert_int_equal(raw_hello(fd, 1), 0);
	memcpy(mem, bytes, 64);
	for (unsigned i = 0; i < 80; i++)
		len += request(buf + len, MC_OP_READ, i + 1, i % 64, 1, NULL);
	assert_true(len <= 4608); /* one receive of the target takes it all */
	raw_send(fd, buf, len);
	for (unsigned i = 0; i < 80; i++) {
		assert_int_equal(raw_reply(fd, i + 1).status, 0);
		raw_recv(fd, &byte, 1);
		assert_int_equal(byte, bytes[i % 64]);
	}
	assert_int_equal(close(fd), 0);
	(void)state;
}

static void a_large_write_in_uneven_pieces_is_finished(void **state)
{
	static const size_t cuts[] = {1, 4608, 70000, 262144, 300000, 600000, LEN - 1, LEN};
	uint8_t buf[MC_TCP_REQ_MAX];
	int fd = raw_open();
	size_t at = 0;

	assert_int_equal(raw_hello(fd, 1), 0);
	raw_send(fd, buf, request(buf, MC_OP_WRITE, 1, 0, LEN, NULL));
	for (size_t i = 0; i < MC_ARRAY_LEN(cuts); i++) {
		raw_send(fd, bytes + at, cuts[i] - at);
		at = cuts[i];
		/* So that the target most likely has taken what there is, and waits, before more
		 * comes. tidy-ok(sleep): the result is the same if it has not. */
		(void)nanosleep(&(struct timespec){.tv_nsec = 3000000}, NULL);
	}
	assert_int_equal(raw_reply(fd, 1).status, 0);
	assert_memory_equal(mem, bytes, LEN);
	assert_int_equal(close(fd), 0);
	(void)state;
}

static void a_lane_is_welcome_once_and_never_after_its_end(void **state)
{
	int fd = raw_open(), second = raw_open(), late = raw_open();

	assert_int_equal(raw_hello(fd, 1), 0);
	assert_int_equal(raw_hello(second, 1), -MC_E_STALE);
	expect_closed(second);
	assert_int_equal(retire(2), 0);
	assert_int_equal(raw_hello(late, 2), -MC_E_STALE);
	expect_closed(late);
	assert_int_equal(close(fd), 0);
	conns_wait(0);
	fd = raw_open();
	assert_int_equal(raw_hello(fd, 1), -MC_E_STALE);
	expect_closed(fd);
	(void)state;
}

static void retirement_closes_the_lane_and_tells_how_far_it_got(void **state)
{
	uint8_t buf[MC_TCP_REQ_MAX];
	int fd = raw_open();

	assert_int_equal(raw_hello(fd, 3), 0);
	for (uint64_t seq = 5; seq < 8; seq++) {
		raw_send(fd, buf, request(buf, MC_OP_WRITE, seq, seq * 10, 10, NULL));
		raw_send(fd, bytes, 10);
		assert_int_equal(raw_reply(fd, seq).status, 0);
	}
	raw_send(fd, buf, request(buf, MC_OP_WRITE, 8, 1000, 10, NULL));
	raw_send(fd, bytes, 9); /* in the middle of the fourth */
	assert_int_equal(retire(3), 7);
	assert_int_equal(retire(3), 7);
	expect_closed(fd);
	(void)state;
}

/* @return what retiring says of a lane whose third of `n` writes is refused */
static uint64_t acked_with_third_refused(uint64_t lane, uint64_t n)
{
	uint8_t buf[MC_TCP_REQ_MAX];
	int fd = raw_open();
	uint64_t acked;

	assert_int_equal(raw_hello(fd, lane), 0);
	for (uint64_t seq = 1; seq <= n; seq++) {
		raw_send(fd, buf,
			 request(buf, MC_OP_WRITE, seq, seq == 3 ? LEN : seq * 10, 10, NULL));
		raw_send(fd, bytes, 10);
		assert_int_equal(raw_reply(fd, seq).status, seq == 3 ? -MC_E_RANGE : 0);
	}
	acked = retire(lane);
	expect_closed(fd);
	return acked;
}

static void a_refusal_ends_what_counts_as_applied(void **state)
{
	assert_int_equal(acked_with_third_refused(4, 3), 2);
	/* The fourth is applied, the third is not: no number says that. */
	assert_int_equal(acked_with_third_refused(5, 4), MC_ACKED_UNKNOWN);
	(void)state;
}

static void a_request_out_of_order_ends_the_connection(void **state)
{
	uint8_t buf[MC_TCP_REQ_MAX];
	int fd = raw_open();

	assert_int_equal(raw_hello(fd, 5), 0);
	raw_send(fd, buf, request(buf, MC_OP_READ, 2, 0, 1, NULL));
	assert_int_equal(raw_reply(fd, 2).status, 0);
	raw_recv(fd, buf, 1);
	raw_send(fd, buf, request(buf, MC_OP_READ, 2, 0, 1, NULL));
	expect_closed(fd);
	(void)state;
}

static void a_reads_signal_is_stored_once_its_memory_was_read(void **state)
{
	struct mc_tcp_frag signal = {.region = rr.id, .gen = rr.gen, .off = 4096, .len = 99};
	uint8_t buf[MC_TCP_REQ_MAX];
	uint64_t end_ns = deadline();
	int fd = raw_open();

	assert_int_equal(raw_hello(fd, 6), 0);
	raw_send(fd, buf, request(buf, MC_OP_READ, 1, 0, 100, &signal));
	assert_int_equal(raw_reply(fd, 1).status, 0);
	raw_recv(fd, buf, 100);
	while (atomic_load_explicit((_Atomic uint64_t *)(void *)(mem + 4096),
				    memory_order_acquire) != 99)
		assert_true(mc_now_ns() < end_ns);
	assert_int_equal(close(fd), 0);
	(void)state;
}

static void a_stalled_peer_holds_up_unregistering_for_about_a_second(void **state)
{
	uint8_t buf[MC_TCP_REQ_MAX];
	uint64_t from_ns = mc_now_ns();
	int fd = raw_open(), other = raw_open();

	assert_int_equal(raw_hello(fd, 7), 0);
	assert_int_equal(raw_hello(other, 8), 0);
	raw_send(fd, buf, request(buf, MC_OP_WRITE, 1, 0, 1000, NULL));
	raw_send(fd, bytes, 999); /* and no more */
	while (mem[998] != bytes[998])
		assert_true(mc_now_ns() - from_ns < WAIT_NS);
	assert_int_equal(mc_region_del(regions, rr.addr), 0);
	assert_true(mc_now_ns() - from_ns > 900 * MC_NS_PER_MS);
	assert_true(mc_now_ns() - from_ns < 5 * MC_NS_PER_S);
	expect_closed(fd);
	/* Who holds nothing is left alone. */
	raw_send(other, buf, request(buf, MC_OP_READ, 1, 0, 1, NULL));
	assert_int_equal(raw_reply(other, 1).status, -MC_E_STALE);
	assert_int_equal(close(other), 0);
	(void)state;
}

static void more_connections_than_the_limit_are_turned_away(void **state)
{
	int fds[8], fd;

	for (int i = 0; i < 8; i++) {
		fds[i] = raw_open();
		assert_int_equal(raw_hello(fds[i], (uint64_t)i + 1), 0);
	}
	fd = raw_open();
	expect_closed(fd);
	assert_int_equal(close(fds[3]), 0);
	conns_wait(7);
	fds[3] = raw_open();
	assert_int_equal(raw_hello(fds[3], 100), 0);
	for (int i = 0; i < 8; i++)
		assert_int_equal(close(fds[i]), 0);
	(void)state;
}

static int setup_impatient(void **state)
{
	int rc;

	hello_ns = 100 * MC_NS_PER_MS;
	rc = setup(state);
	hello_ns = 0;
	return rc;
}

static void who_does_not_say_who_he_is_in_time_is_hung_up_on(void **state)
{
	struct mc_tcp_served served;
	int silent = raw_open(), half = raw_open(), classic = raw_open(), good = raw_open();
	uint8_t buf[MC_TCP_REQ_MAX] = MC_TCP_MAGIC_TEXT, nothing[MC_CLASSIC_HEAD_BYTES - 1] = {0};

	(void)state;
	raw_send(half, buf, MC_TCP_HELLO_BYTES - 1);
	raw_send(classic, nothing, sizeof(nothing));
	assert_int_equal(raw_hello(good, 1), 0);
	expect_closed(silent);
	expect_closed(half);
	expect_closed(classic);
	/* Whoever has said it may be silent for as long as he likes. */
	raw_send(good, buf, request(buf, MC_OP_READ, 1, 0, 1, NULL));
	assert_int_equal(raw_reply(good, 1).status, 0);
	raw_recv(good, buf, 1);
	mc_tcp_dev_served(dev, &served);
	assert_int_equal(served.conns, 1);
	assert_int_equal(close(good), 0);
}

static void accepting_goes_on_after_descriptors_ran_out(void **state)
{
	struct rlimit old, low;
	int fd = raw_open(), next;

	assert_int_equal(raw_hello(fd, 1), 0);
	next = dup(fd); /* the lowest free one */
	assert_true(next >= 0);
	assert_int_equal(close(next), 0);
	assert_int_equal(getrlimit(RLIMIT_NOFILE, &old), 0);
	low = old;
	low.rlim_cur = (rlim_t)next + 1; /* enough for our end, none for the target's */
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &low), 0);
	next = raw_open();
	/* tidy-ok(sleep): gives accept() time to fail; the result is the same if it has not. */
	(void)nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &old), 0);
	assert_int_equal(raw_hello(next, 2), 0);
	assert_int_equal(close(fd), 0);
	assert_int_equal(close(next), 0);
	(void)state;
}

static void a_device_closes_over_requests_under_way(void **state)
{
	uint8_t buf[MC_TCP_REQ_MAX];
	int fds[3];

	for (int i = 0; i < 3; i++)
		fds[i] = raw_open();
	assert_int_equal(raw_hello(fds[0], 1), 0);
	assert_int_equal(raw_hello(fds[1], 2), 0);
	raw_send(fds[0], buf, request(buf, MC_OP_WRITE, 1, 0, 1000, NULL));
	raw_send(fds[1], buf, request(buf, MC_OP_READ, 1, 0, LEN, NULL));
	raw_send(fds[2], buf, 5);
	dev->ops->dev_close(dev);
	expect_closed(fds[0]);
	assert_int_equal(close(fds[1]), 0);
	expect_closed(fds[2]);
	assert_int_equal(mc_region_del(regions, rr.addr), 0); /* no pin was left */
	mc_region_table_close(regions);
	assert_int_equal(mc_region_table_open(&regions), 0);
	assert_int_equal(dev_open(8), 0); /* for the teardown */
	(void)state;
}

/* ---- upstream's frames ---- */

static void classic_send(int fd, uint64_t len, uint64_t addr, enum mc_op op, bool is_v2)
{
	uint8_t buf[MC_CLASSIC_HEAD_BYTES];
	struct mc_wr w = mc_wr_make(buf, sizeof(buf));

	mc_classic_head_encode(
	    &w, &(struct mc_classic_head){.len = len, .addr = addr, .op = op, .is_v2 = is_v2});
	raw_send(fd, buf, sizeof(buf));
}

static void a_version_1_peer_that_is_refused_is_hung_up_on(void **state)
{
	int fd = raw_open();

	classic_send(fd, 100, rr.addr + LEN, MC_OP_READ, false);
	expect_closed(fd);
	fd = raw_open();
	classic_send(fd, 100, rr.addr + LEN - 99, MC_OP_WRITE, false);
	raw_send(fd, bytes, 100);
	expect_closed(fd);
	assert_int_equal(mem[LEN - 1], 0);
	(void)state;
}

static void versions_1_and_2_can_take_turns_on_a_connection(void **state)
{
	uint8_t status[MC_CLASSIC_STATUS_BYTES], got[64];
	int fd = raw_open();

	classic_send(fd, 64, rr.addr, MC_OP_WRITE, false);
	raw_send(fd, bytes, 64);
	classic_send(fd, 64, rr.addr, MC_OP_READ, false);
	raw_recv(fd, got, 64);
	assert_memory_equal(got, bytes, 64);
	classic_send(fd, 0, rr.addr, MC_OP_READ, true);
	raw_recv(fd, status, sizeof(status));
	assert_int_equal(mc_classic_status_decode(status), 0);
	classic_send(fd, 64, rr.addr + 1, MC_OP_WRITE, true);
	raw_send(fd, bytes, 64);
	raw_recv(fd, status, sizeof(status));
	assert_int_equal(mc_classic_status_decode(status), 0);
	assert_memory_equal(mem + 1, bytes, 64);
	classic_send(fd, 64, 1, MC_OP_READ, true);
	raw_recv(fd, status, sizeof(status));
	assert_int_equal(mc_classic_status_decode(status), -MC_E_RANGE);
	assert_int_equal(close(fd), 0);
	(void)state;
}

/* ---- the initiator, against a raw target ---- */

struct fake {
	int listen_fd, fd;
	struct mc_xlane *lane;
	struct mc_frag frag;
	struct mc_slice s;
};

static void fake_open(struct fake *f, int classic, enum mc_op op, uint64_t len)
{
	struct mc_xpath path = {.peer_epoch = EPOCH, .peer_name = "fake"};
	struct mc_addr any, at;
	struct mc_slice *s = &f->s, *done[1];

	assert_int_equal(mc_addr_parse("127.0.0.1", 0, &any), 0);
	assert_int_equal(mc_sock_listen_range(&any, 20000, 32000, 4, &f->listen_fd, &at), 0);
	path.remote = at;
	if (classic)
		assert_int_equal(mc_tcp_classic_lane_open(dev, &path, classic, &f->lane), 0);
	else
		assert_int_equal(dev->ops->lane_open(dev, &path, &f->lane), 0);
	f->frag = (struct mc_frag){.local = bytes, .raddr = rr.addr, .len = len, .rr = &rr};
	f->s = (struct mc_slice){.op = op, .nfrags = 1, .frags = &f->frag, .len = len};
	assert_int_equal(f->lane->ops->post(f->lane, &s, 1), 1);
	assert_int_equal(mc_sock_wait(f->listen_fd, POLLIN, deadline()), 0);
	assert_int_equal(mc_sock_accept(f->listen_fd, &f->fd, NULL), 0);
	/* Version 1 asks for no answer to a write. */
	assert_int_equal(f->lane->ops->poll(f->lane, 0, done, 1),
			 classic == 1 && op == MC_OP_WRITE);
}

/* Poll until something is said. @return what poll() said */
static int fake_poll(struct fake *f)
{
	uint64_t end_ns = deadline();
	struct mc_slice *done[4];
	int rc = 0;

	while (rc == 0) {
		rc = f->lane->ops->poll(f->lane, 10 * MC_NS_PER_MS, done, 4);
		assert_true(mc_now_ns() < end_ns);
	}
	return rc;
}

static size_t fake_close(struct fake *f)
{
	uint8_t token[MC_XPORT_TOKEN_MAX];
	struct mc_list left;
	size_t n;

	mc_list_init(&left);
	n = f->lane->ops->abort(f->lane, &left, token);
	f->lane->ops->lane_close(f->lane);
	mc_fd_close(&f->fd);
	mc_fd_close(&f->listen_fd);
	return n;
}

static void fake_welcome(struct fake *f, int status, uint64_t epoch)
{
	uint8_t buf[MC_TCP_HELLO_BYTES];

	raw_recv(f->fd, buf, MC_TCP_HELLO_BYTES);
	mc_tcp_welcome_encode(buf,
			      &(struct mc_tcp_welcome){.status = status, .target_epoch = epoch});
	raw_send(f->fd, buf, MC_TCP_WELCOME_BYTES);
}

static void fake_reply(struct fake *f, int status, uint64_t seq, uint64_t len)
{
	uint8_t buf[MC_TCP_REPLY_BYTES];

	mc_tcp_reply_encode(buf, &(struct mc_tcp_reply){.status = status, .seq = seq, .len = len});
	raw_send(f->fd, buf, sizeof(buf));
}

static void a_welcome_of_another_incarnation_breaks_the_lane(void **state)
{
	struct fake f;

	fake_open(&f, 0, MC_OP_WRITE, 100);
	fake_welcome(&f, 0, EPOCH + 1);
	assert_int_equal(fake_poll(&f), -MC_E_PEER_RESTARTED);
	assert_int_equal(fake_close(&f), 16);
	(void)state;
}

static void the_reason_is_told_though_the_target_hangs_up_on_unread_payload(void **state)
{
	struct fake f;

	fake_open(&f, 0, MC_OP_WRITE, LEN); /* more than the sockets hold */
	fake_welcome(&f, -MC_E_AUTH, EPOCH);
	mc_fd_close(&f.fd);
	assert_int_equal(fake_poll(&f), -MC_E_AUTH);
	assert_int_equal(fake_close(&f), 16);
	(void)state;
}

static void answers_that_fit_no_request_break_the_lane(void **state)
{
	static const struct {
		int status;
		uint64_t seq, len;
	} bad[] = {{0, 2, 100}, {0, 0, 100}, {0, 1, 99}, {0, 1, 101}, {-MC_E_RANGE, 1, 100}};

	for (size_t i = 0; i < MC_ARRAY_LEN(bad); i++) {
		struct fake f;

		fake_open(&f, 0, MC_OP_READ, 100);
		fake_welcome(&f, 0, EPOCH);
		fake_reply(&f, bad[i].status, bad[i].seq, bad[i].len);
		assert_int_equal(fake_poll(&f), -MC_E_PROTO);
		assert_int_equal(fake_close(&f), 0); /* reads need no fence */
	}
	(void)state;
}

static void an_end_behind_a_good_answer_is_told_after_it(void **state)
{
	uint8_t buf[2 * MC_TCP_REPLY_BYTES];
	struct mc_slice second, *s = &second;
	struct fake f;

	fake_open(&f, 0, MC_OP_WRITE, 100);
	second = f.s;
	assert_int_equal(f.lane->ops->post(f.lane, &s, 1), 1);
	fake_welcome(&f, 0, EPOCH);
	mc_tcp_reply_encode(buf, &(struct mc_tcp_reply){.seq = 1});
	mc_tcp_reply_encode(buf + MC_TCP_REPLY_BYTES, &(struct mc_tcp_reply){.seq = 7});
	raw_send(f.fd, buf, sizeof(buf)); /* sense and nonsense in one piece */
	assert_int_equal(fake_poll(&f), 1);
	assert_int_equal(f.s.status, 0);
	assert_int_equal(fake_poll(&f), -MC_E_PROTO);
	assert_int_equal(fake_close(&f), 16);
	(void)state;
}

/* While one read is alone its payload is received together with its head; another one makes it
 * company before the answer comes. */
static void a_refused_read_takes_nothing_of_the_answer_behind_it(void **state)
{
	static uint8_t first[100], second[100], zero[100], buf[2 * MC_TCP_REPLY_BYTES + 100];
	struct mc_slice other, *s = &other, *done[4];
	uint64_t end_ns = deadline();
	struct mc_frag frag;
	struct fake f;
	int n = 0;

	memset(first, 0, sizeof(first));
	fake_open(&f, 0, MC_OP_READ, 100);
	f.frag.local = first;
	fake_welcome(&f, 0, EPOCH);
	while (f.lane->ops->progress(f.lane) <
	       MC_TCP_HELLO_BYTES + MC_TCP_WELCOME_BYTES + MC_TCP_REQ_BYTES + MC_TCP_FRAG_BYTES) {
		assert_int_equal(f.lane->ops->poll(f.lane, MC_NS_PER_MS, done, 4), 0);
		assert_true(mc_now_ns() < end_ns);
	}
	assert_int_equal(f.lane->ops->poll(f.lane, 0, done, 4), 0); /* waits for the answer now */
	frag = f.frag;
	frag.local = second;
	other = f.s;
	other.frags = &frag;
	assert_int_equal(f.lane->ops->post(f.lane, &s, 1), 1);
	mc_tcp_reply_encode(buf, &(struct mc_tcp_reply){.status = -MC_E_RANGE, .seq = 1});
	mc_tcp_reply_encode(buf + MC_TCP_REPLY_BYTES, &(struct mc_tcp_reply){.seq = 2, .len = 100});
	memcpy(buf + sizeof(buf) - 100, bytes, 100);
	raw_send(f.fd, buf, sizeof(buf)); /* one piece */
	while (n < 2) {
		int rc = f.lane->ops->poll(f.lane, MC_NS_PER_MS, done, 4);

		assert_true(rc >= 0 && mc_now_ns() < end_ns);
		n += rc;
	}
	assert_int_equal(f.s.status, -MC_E_RANGE);
	assert_int_equal(other.status, 0);
	assert_memory_equal(first, zero, 100);
	assert_memory_equal(second, bytes, 100);
	(void)fake_close(&f);
	(void)state;
}

static void version_1_writes_and_reads_in_any_order_keep_their_places(void **state)
{
	static uint8_t got[300];
	struct mc_frag frags[3];
	struct mc_slice r = {.op = MC_OP_READ, .nfrags = 3, .frags = frags, .len = 300}, w;
	struct mc_slice *s = &r, *done[4];
	uint64_t end_ns = deadline();
	struct fake f;
	int n = 0;

	for (int i = 0; i < 3; i++)
		frags[i] = (struct mc_frag){
		    .local = got + i * 100, .raddr = rr.addr, .len = 100, .rr = &rr};
	fake_open(&f, 1, MC_OP_WRITE, 100); /* ends by being sent */
	assert_int_equal(f.s.verdict, MC_SLICE_DONE);
	w = f.s;
	assert_int_equal(f.lane->ops->post(f.lane, &s, 1), 1);
	assert_int_equal(f.lane->ops->poll(f.lane, 0, done, 4), 0);
	raw_send(f.fd, bytes, 150); /* the read stands in the middle of its second fragment */
	while (f.lane->ops->progress(f.lane) < 150 + 100 + 4 * MC_CLASSIC_HEAD_BYTES) {
		assert_int_equal(f.lane->ops->poll(f.lane, MC_NS_PER_MS, done, 4), 0);
		assert_true(mc_now_ns() < end_ns);
	}
	s = &w;
	assert_int_equal(f.lane->ops->post(f.lane, &s, 1), 1);
	assert_int_equal(f.lane->ops->poll(f.lane, 0, done, 4), 1);
	assert_ptr_equal(done[0], &w);
	raw_send(f.fd, bytes + 150, 150);
	while (n == 0) {
		n = f.lane->ops->poll(f.lane, MC_NS_PER_MS, done, 4);
		assert_true(mc_now_ns() < end_ns);
	}
	assert_int_equal(n, 1);
	assert_ptr_equal(done[0], &r);
	assert_int_equal(r.status, 0);
	assert_memory_equal(got, bytes, 300);
	assert_int_equal(fake_close(&f), 0);
	(void)state;
}

static void nobody_listening_is_told_as_refused(void **state)
{
	struct mc_xpath path = {.peer_name = "nobody"};
	uint8_t token[MC_XPORT_TOKEN_MAX];
	struct mc_list left;
	struct mc_xlane *lane;
	struct mc_slice *done[1];
	struct mc_addr any;
	int fd, rc;

	assert_int_equal(mc_addr_parse("127.0.0.1", 0, &any), 0);
	assert_int_equal(mc_sock_listen_range(&any, 20000, 32000, 4, &fd, &path.remote), 0);
	mc_fd_close(&fd);
	rc = dev->ops->lane_open(dev, &path, &lane);
	if (rc == 0) {
		while ((rc = lane->ops->poll(lane, 10 * MC_NS_PER_MS, done, 1)) == 0)
			;
		mc_list_init(&left);
		(void)lane->ops->abort(lane, &left, token);
		lane->ops->lane_close(lane);
	}
	assert_int_equal(rc, -MC_E_REFUSED);
	(void)state;
}

/* ---- memory ---- */

static void opening_without_memory_fails_cleanly_at_every_step(void **state)
{
	struct mc_xdev *first = dev;
	struct mc_region_table *t = regions;
	struct mc_xpath path = {.peer_epoch = EPOCH};
	struct mc_xlane *lane;
	int64_t live;
	int rc = -1;

	assert_int_equal(mc_region_table_open(&regions), 0);
	live = mc_mem_live();
	for (int n = 0; rc < 0; n++) {
		mc_mem_fail_after(n);
		rc = dev_open(0);
		mc_mem_fail_after(-1);
		if (rc < 0) {
			assert_int_equal(rc, -MC_E_NOMEM);
			assert_int_equal(mc_mem_live(), live);
		}
	}
	dev->ops->dev_close(dev);
	mc_region_table_close(regions);
	dev = first;
	regions = t;
	assert_int_equal(mc_addr_parse("127.0.0.1", mc_tcp_dev_port(dev), &path.remote), 0);
	live = mc_mem_live();
	mc_mem_fail_after(0);
	assert_int_equal(dev->ops->lane_open(dev, &path, &lane), -MC_E_NOMEM);
	assert_int_equal(mc_tcp_classic_lane_open(dev, &path, 2, &lane), -MC_E_NOMEM);
	mc_mem_fail_after(-1);
	assert_int_equal(mc_mem_live(), live);
	(void)state;
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
	    T(many_small_requests_in_one_piece_are_all_answered),
	    T(a_large_write_in_uneven_pieces_is_finished),
	    T(a_lane_is_welcome_once_and_never_after_its_end),
	    T(retirement_closes_the_lane_and_tells_how_far_it_got),
	    T(a_refusal_ends_what_counts_as_applied),
	    T(a_request_out_of_order_ends_the_connection),
	    T(a_reads_signal_is_stored_once_its_memory_was_read),
	    T(a_stalled_peer_holds_up_unregistering_for_about_a_second),
	    T(more_connections_than_the_limit_are_turned_away),
	    cmocka_unit_test_setup_teardown(who_does_not_say_who_he_is_in_time_is_hung_up_on,
					    setup_impatient, teardown),
	    T(accepting_goes_on_after_descriptors_ran_out),
	    T(a_device_closes_over_requests_under_way),
	    T(a_version_1_peer_that_is_refused_is_hung_up_on),
	    T(versions_1_and_2_can_take_turns_on_a_connection),
	    T(a_welcome_of_another_incarnation_breaks_the_lane),
	    T(the_reason_is_told_though_the_target_hangs_up_on_unread_payload),
	    T(answers_that_fit_no_request_break_the_lane),
	    T(an_end_behind_a_good_answer_is_told_after_it),
	    T(a_refused_read_takes_nothing_of_the_answer_behind_it),
	    T(version_1_writes_and_reads_in_any_order_keep_their_places),
	    T(nobody_listening_is_told_as_refused),
	    T(opening_without_memory_fails_cleanly_at_every_step),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
