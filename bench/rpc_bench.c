/*
 * rpc_bench.c: what a call costs, beside a raw ping-pong over the same kind of socket in the same
 * run.
 *
 * Each measurement forks its server, so that the CPU time of both ends is known apart. The raw
 * programs send and receive 64 bytes on a connected TCP socket, once blocking in recv(), once
 * spinning; rpc makes synchronous calls with 64 bytes each way from one thread, and then as many
 * calls as it can with up to `depth` in flight. Measurements are interleaved and medians reported.
 *
 * The last table is the gate of the control messages: nanoseconds a key to encode and decode a
 * lookup, request and answer, as protobuf with packed records.
 *
 * usage: rpc_bench [--secs S] [--reps N] [--json]; exit status 1 when a target is missed
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"
#include "io/sock.h"
#include "rpc/rpc.h"
#include "wire/control.h"
#include "wire/control.pb-c.h"
#include "wire/pb.h"

#define MSG_LEN 64
#define SAMPLES_MAX 2000000u
#define REPS_MAX 101
#define DEPTH 512u
#define PORT_MIN 20000
#define PORT_MAX 31999
#define METHOD 1

enum kind {
	RAW_BLOCK,
	RAW_SPIN,
	RPC_SYNC,
	RPC_BATCH,
	KIND_COUNT,
};

static const char *const kind_names[] = {"raw blocking", "raw spinning", "rpc sync", "rpc batched"};

struct result {
	double p50_us, p99_us, calls_per_s;
	double cpu_client_us, cpu_server_us; /* a call */
};

static double secs = 0.5;
static uint32_t *samples; /* nanoseconds */

static void die(const char *what, int rc)
{
	(void)fprintf(stderr, "rpc_bench: %s: %s\n", what, mc_err_text(rc));
	exit(2);
}

static double cpu_of(pid_t pid)
{
	clockid_t id = CLOCK_PROCESS_CPUTIME_ID;
	struct timespec ts = {0};

	if (pid && clock_getcpuclockid(pid, &id) != 0)
		return 0;
	(void)clock_gettime(id, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

/* ---- servers ---- */

/* A blocking descriptor for the blocking program: that is what it is compared for. */
static void raw_prepare(int fd, bool is_spinning)
{
	int rc = mc_sock_nodelay(fd);

	if (rc < 0)
		die("socket", rc);
	if (!is_spinning && fcntl(fd, F_SETFL, 0) != 0)
		die("socket", mc_err_from_errno(errno));
}

/* @return false: the other end is gone */
static bool raw_recv(int fd, uint8_t *buf)
{
	size_t got = 0;

	while (got < MSG_LEN) {
		ssize_t n = recv(fd, buf + got, MSG_LEN - got, 0);

		if (n > 0)
			got += (size_t)n;
		else if (n == 0 || errno != EAGAIN)
			return false;
	}
	return true;
}

static bool raw_send(int fd, const uint8_t *buf)
{
	return send(fd, buf, MSG_LEN, MSG_NOSIGNAL) == MSG_LEN;
}

static _Noreturn void serve_raw(int listen_fd, bool is_spinning)
{
	uint8_t buf[MSG_LEN];
	int fd;

	if (mc_sock_wait(listen_fd, POLLIN, MC_TIME_NEVER) < 0 ||
	    mc_sock_accept(listen_fd, &fd, NULL) < 0)
		_exit(1);
	raw_prepare(fd, is_spinning);
	while (raw_recv(fd, buf) && raw_send(fd, buf))
		;
	_exit(0);
}

static void echo(struct mc_rpc_req *req, const struct mc_rpc_msg *msg, void *user)
{
	(void)user;
	(void)mc_rpc_reply(req, 0, msg->data, msg->len, NULL, 0);
}

static _Noreturn void serve_rpc(int listen_fd)
{
	static const struct mc_rpc_method methods[] = {{METHOD, "echo", echo, NULL}};
	const struct mc_rpc_server_opts opts = {.methods = methods, .nmethods = 1};
	struct mc_rpc_server *server;
	struct mc_loop *loop;
	int fd;

	if (mc_loop_open("server", &mc_clock_real, &loop) < 0 ||
	    mc_rpc_server_open(&mc_env_real, loop, &opts, &server) < 0 ||
	    mc_sock_wait(listen_fd, POLLIN, MC_TIME_NEVER) < 0 ||
	    mc_sock_accept(listen_fd, &fd, NULL) < 0 ||
	    mc_rpc_server_adopt(server, fd, NULL, 0) < 0)
		_exit(1);
	for (;;)
		(void)mc_loop_step(loop, MC_TIME_NEVER);
}

static pid_t serve(enum kind kind, struct mc_addr *ret_at)
{
	struct mc_addr host;
	int fd, rc = mc_addr_parse("127.0.0.1", 0, &host);
	pid_t pid;

	if (rc == 0)
		rc = mc_sock_listen_range(&host, PORT_MIN, PORT_MAX, 8, &fd, ret_at);
	if (rc < 0)
		die("listen", rc);
	pid = fork();
	if (pid < 0)
		die("fork", mc_err_from_errno(errno));
	if (pid == 0) {
		if (kind == RAW_BLOCK || kind == RAW_SPIN)
			serve_raw(fd, kind == RAW_SPIN);
		serve_rpc(fd);
	}
	mc_fd_close(&fd);
	return pid;
}

/* ---- clients: each returns the calls made ---- */

static int raw_connect(const struct mc_addr *at, bool is_spinning)
{
	int fd, rc = mc_sock_connect(at, NULL, &fd);

	if (rc == 0)
		rc = mc_sock_wait(fd, POLLOUT, mc_now_ns() + MC_NS_PER_S);
	if (rc < 0)
		die("connect", rc);
	raw_prepare(fd, is_spinning);
	return fd;
}

static void sample(uint32_t *n, uint64_t from_ns, uint64_t to_ns)
{
	if (*n < SAMPLES_MAX)
		samples[(*n)++] = (uint32_t)mc_min(to_ns - from_ns, (uint64_t)UINT32_MAX);
}

/* Both return the number of samples. */
static uint32_t run_raw(int fd, uint64_t until_ns)
{
	uint8_t buf[MSG_LEN] = {0};
	uint32_t n = 0;

	for (uint64_t from = mc_now_ns(), now; from < until_ns; from = now) {
		if (!raw_send(fd, buf) || !raw_recv(fd, buf))
			die("raw ping", -MC_E_RESET);
		now = mc_now_ns();
		sample(&n, from, now);
	}
	return n;
}

static uint32_t run_sync(struct mc_rpc_conn *conn, uint64_t until_ns)
{
	uint8_t buf[MSG_LEN] = {0};
	uint32_t n = 0;

	for (uint64_t from = mc_now_ns(), now; from < until_ns; from = now) {
		struct mc_rpc_call call = {.method = METHOD,
					   .req = buf,
					   .req_len = MSG_LEN,
					   .deadline_ns = from + 10 * MC_NS_PER_S,
					   .reply_buf = buf,
					   .reply_cap = MSG_LEN};
		int rc = mc_rpc_sync(conn, &call);

		if (rc < 0)
			die("call", rc);
		now = mc_now_ns();
		sample(&n, from, now);
	}
	return n;
}

/* One thread that steps the loop itself and starts a call for each that ended. */
struct batch {
	struct mc_rpc_conn *conn;
	struct mc_rpc_call calls[DEPTH];
	struct mc_rpc_call *idle[DEPTH];
	unsigned nidle;
	uint64_t ended;
	bool is_over;
};

static void batch_on_end(struct mc_rpc_call *call, int rc, const struct mc_rpc_msg *reply)
{
	struct batch *b = call->user;

	if (b->is_over) /* ended by the close */
		return;
	if (rc < 0 || reply->len != MSG_LEN)
		die("call", rc);
	b->ended++;
	b->idle[b->nidle++] = call;
}

static uint64_t run_batch(struct mc_rpc_conn *conn, struct mc_loop *loop, uint64_t until_ns)
{
	static const uint8_t req[MSG_LEN];
	struct batch *b = mc_calloc(1, sizeof(*b));
	uint64_t ended;

	if (!b)
		die("batch", -MC_E_NOMEM);
	b->conn = conn;
	for (unsigned i = 0; i < DEPTH; i++)
		b->idle[b->nidle++] = &b->calls[i];
	while (mc_now_ns() < until_ns) {
		int rc = 0;

		while (b->nidle > 0 && rc == 0) {
			struct mc_rpc_call *call = b->idle[b->nidle - 1];

			*call = (struct mc_rpc_call){.method = METHOD,
						     .flags = MC_RPC_MORE,
						     .req = req,
						     .req_len = MSG_LEN,
						     .on_end = batch_on_end,
						     .user = b};
			rc = mc_rpc_start(conn, call);
			if (rc == 0)
				b->nidle--;
			else if (rc != -MC_E_AGAIN)
				die("start", rc);
		}
		mc_rpc_flush(conn);
		(void)mc_loop_step(loop, until_ns);
	}
	ended = b->ended;
	b->is_over = true;
	mc_rpc_conn_close(conn);
	mc_free(b);
	return ended;
}

/* ---- one measurement ---- */

static int by_value(const void *a, const void *b)
{
	const uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return (x > y) - (x < y);
}

static struct result finish(uint64_t ncalls, uint32_t nsamples, double elapsed_s, double client_s,
			    double server_s)
{
	struct result r = {.calls_per_s = (double)ncalls / elapsed_s,
			   .cpu_client_us = client_s * 1e6 / (double)ncalls,
			   .cpu_server_us = server_s * 1e6 / (double)ncalls};

	if (nsamples) {
		qsort(samples, nsamples, sizeof(*samples), by_value);
		r.p50_us = samples[nsamples / 2] / 1e3;
		r.p99_us = samples[(uint64_t)nsamples * 99 / 100] / 1e3;
	}
	return r;
}

static struct result measure(enum kind kind)
{
	const uint64_t warm_ns = (uint64_t)(secs * 0.2e9), run_ns = (uint64_t)(secs * 1e9);
	const bool is_raw = kind == RAW_BLOCK || kind == RAW_SPIN;
	struct mc_rpc_conn_opts opts = {.calls_max = DEPTH};
	struct mc_rpc_conn *conn = NULL;
	struct mc_loop *loop = NULL;
	struct mc_addr at;
	pid_t pid = serve(kind, &at);
	uint64_t from, ncalls;
	uint32_t n = 0;
	double client_s, server_s, elapsed_s;
	int fd = -1, rc;

	if (is_raw) {
		fd = raw_connect(&at, kind == RAW_SPIN);
		(void)run_raw(fd, mc_now_ns() + warm_ns);
	} else {
		rc = mc_loop_open("client", &mc_clock_real, &loop);
		if (rc == 0 && kind == RPC_SYNC)
			rc = mc_loop_start(loop);
		if (rc == 0)
			rc = mc_rpc_conn_open(&mc_env_real, loop, &at, &opts, &conn);
		if (rc < 0)
			die("open", rc);
		if (kind == RPC_SYNC)
			(void)run_sync(conn, mc_now_ns() + warm_ns);
	}
	client_s = cpu_of(0);
	server_s = cpu_of(pid);
	from = mc_now_ns();
	if (is_raw)
		n = run_raw(fd, from + run_ns);
	else if (kind == RPC_SYNC)
		n = run_sync(conn, from + run_ns);
	ncalls = kind == RPC_BATCH ? run_batch(conn, loop, from + run_ns) : n;
	elapsed_s = (double)(mc_now_ns() - from) / 1e9;
	client_s = cpu_of(0) - client_s;
	server_s = cpu_of(pid) - server_s;
	if (kind == RPC_SYNC)
		mc_rpc_conn_close(conn);
	mc_loop_close(loop);
	mc_fd_close(&fd);
	(void)kill(pid, SIGKILL);
	(void)waitpid(pid, NULL, 0);
	return finish(ncalls, n, elapsed_s, client_s, server_s);
}

static double median(double *v, unsigned n)
{
	for (unsigned i = 1; i < n; i++) {
		for (unsigned k = i; k > 0 && v[k] < v[k - 1]; k--) {
			double t = v[k];

			v[k] = v[k - 1];
			v[k - 1] = t;
		}
	}
	return v[n / 2];
}

static struct result median_of(const struct result *r, unsigned n)
{
	struct result m;
	double v[REPS_MAX];

#define MEDIAN(field)                                                                              \
	for (unsigned i = 0; i < n; i++)                                                           \
		v[i] = r[i].field;                                                                 \
	m.field = median(v, n)
	MEDIAN(p50_us);
	MEDIAN(p99_us);
	MEDIAN(calls_per_s);
	MEDIAN(cpu_client_us);
	MEDIAN(cpu_server_us);
#undef MEDIAN
	return m;
}

/* ---- the control messages ---- */

#define KEYS_MAX 1000u
#define PB_BUF_LEN (KEYS_MAX * (MC_CTL_REGION_LEN + MC_CTL_RANGE_LEN) + 256)

struct codec {
	uint8_t records[KEYS_MAX * MC_CTL_REGION_LEN], wire[PB_BUF_LEN];
	_Alignas(16) uint8_t space[PB_BUF_LEN];
	struct mc_pb_arena arena;
	uint64_t sum; /* of what was decoded, so that it is */
};

static void lookup_request(struct codec *c, uint32_t keys)
{
	struct mc_wr w = mc_wr_make(c->records, sizeof(c->records));
	Mc__Ctl__Resolve msg = MC__CTL__RESOLVE__INIT;
	ProtobufCMessage *back;
	struct mc_rd r;
	size_t len;
	int rc;

	for (uint32_t i = 0; i < keys; i++)
		mc_ctl_range_encode(&w, &(struct mc_ctl_range){.addr = i, .len = 4096});
	msg.records = (ProtobufCBinaryData){.data = c->records, .len = mc_wr_len(&w)};
	rc = mc_pb_pack(&msg.base, c->wire, sizeof(c->wire), &len);
	if (rc == 0)
		rc = mc_pb_unpack(&c->arena, &mc__ctl__resolve__descriptor, c->wire, len, &back);
	if (rc < 0)
		die("lookup", rc);
	r = mc_rd_make(((Mc__Ctl__Resolve *)back)->records.data,
		       ((Mc__Ctl__Resolve *)back)->records.len);
	while (mc_rd_left(&r) > 0) {
		struct mc_ctl_range range;

		mc_ctl_range_decode(&r, &range);
		c->sum += range.addr + range.len;
	}
}

static void lookup_reply(struct codec *c, uint32_t keys)
{
	struct mc_wr w = mc_wr_make(c->records, sizeof(c->records));
	Mc__Ctl__ResolveReply msg = MC__CTL__RESOLVE_REPLY__INIT;
	ProtobufCMessage *back;
	struct mc_rd r;
	size_t len;
	int rc;

	for (uint32_t i = 0; i < keys; i++)
		mc_ctl_region_encode(&w, &(struct mc_ctl_region){.addr = i, .gen = 1, .len = 64});
	msg.records = (ProtobufCBinaryData){.data = c->records, .len = mc_wr_len(&w)};
	rc = mc_pb_pack(&msg.base, c->wire, sizeof(c->wire), &len);
	if (rc == 0)
		rc = mc_pb_unpack(&c->arena, &mc__ctl__resolve_reply__descriptor, c->wire, len,
				  &back);
	if (rc < 0)
		die("lookup", rc);
	r = mc_rd_make(((Mc__Ctl__ResolveReply *)back)->records.data,
		       ((Mc__Ctl__ResolveReply *)back)->records.len);
	while (mc_rd_left(&r) > 0) {
		struct mc_ctl_region region;

		mc_ctl_region_decode(&r, &region);
		c->sum += region.addr + region.gen;
	}
}

/* Nanoseconds a key, request and answer, encode and decode: the best of several rounds. */
static double codec_ns(struct codec *c, uint32_t keys)
{
	const uint32_t times = 200000 / (keys + 10);
	double best = 1e9;

	for (int round = 0; round < 7; round++) {
		uint64_t from = mc_now_ns();
		double ns;

		for (uint32_t i = 0; i < times; i++) {
			lookup_request(c, keys);
			lookup_reply(c, keys);
		}
		ns = (double)(mc_now_ns() - from) / ((double)times * keys);
		best = mc_min(best, ns);
	}
	return best;
}

/* ---- report ---- */

static const uint32_t key_counts[] = {1, 10, 100, 1000};

static bool report_text(const struct result *m, const double *codec)
{
	const struct result *block = &m[RAW_BLOCK], *spin = &m[RAW_SPIN], *sync = &m[RPC_SYNC];
	const double raw = mc_min(block->p50_us, spin->p50_us);
	bool is_met = sync->p50_us <= 1.2 * raw && m[RPC_BATCH].calls_per_s >= 500e3;

	(void)printf("%-14s %9s %9s %11s %11s %11s\n", "64 B over TCP", "p50 us", "p99 us",
		     "calls/s", "cpu us cl.", "cpu us srv");
	for (int k = 0; k < KIND_COUNT; k++)
		(void)printf("%-14s %9.2f %9.2f %11.0f %11.2f %11.2f\n", kind_names[k], m[k].p50_us,
			     m[k].p99_us, m[k].calls_per_s, m[k].cpu_client_us, m[k].cpu_server_us);
	(void)printf(
	    "rpc sync p50 / the faster raw one: %.2f (target <= 1.2); / raw blocking: %.2f\n",
	    sync->p50_us / raw, sync->p50_us / block->p50_us);
	(void)printf("rpc batched: %.0f calls/s (target >= 500000)\n", m[RPC_BATCH].calls_per_s);
	(void)printf("lookup, request and answer, encode + decode (target <= 100 ns a key):\n");
	for (size_t i = 0; i < MC_ARRAY_LEN(key_counts); i++) {
		(void)printf("  %5u keys %8.1f ns a key\n", key_counts[i], codec[i]);
		is_met = is_met && (codec[i] <= 100 || key_counts[i] == 1);
	}
	return is_met;
}

static void report_json(const struct result *m, const double *codec)
{
	(void)printf("{");
	for (int k = 0; k < KIND_COUNT; k++)
		(void)printf("\"%s\": {\"p50_us\": %.3f, \"p99_us\": %.3f, \"calls_per_s\": %.0f, "
			     "\"cpu_client_us\": %.3f, \"cpu_server_us\": %.3f}, ",
			     kind_names[k], m[k].p50_us, m[k].p99_us, m[k].calls_per_s,
			     m[k].cpu_client_us, m[k].cpu_server_us);
	(void)printf("\"codec_ns_per_key\": {");
	for (size_t i = 0; i < MC_ARRAY_LEN(key_counts); i++)
		(void)printf("%s\"%u\": %.1f", i ? ", " : "", key_counts[i], codec[i]);
	(void)printf("}}\n");
}

int main(int argc, char **argv)
{
	static const struct option options[] = {{"secs", required_argument, NULL, 's'},
						{"reps", required_argument, NULL, 'r'},
						{"json", no_argument, NULL, 'j'},
						{0}};
	static struct result all[KIND_COUNT][REPS_MAX];
	struct result m[KIND_COUNT];
	double codec[MC_ARRAY_LEN(key_counts)];
	struct codec *c = mc_aligned_alloc(MC_CACHELINE, sizeof(*c));
	unsigned reps = 7;
	bool is_json = false;
	int opt;

	while ((opt = getopt_long(argc, argv, "", options, NULL)) != -1) {
		if (opt == 's')
			secs = strtod(optarg, NULL);
		else if (opt == 'r')
			reps = (unsigned)strtoul(optarg, NULL, 10);
		else if (opt == 'j')
			is_json = true;
		else
			return 2;
	}
	if (!(secs >= 0.01 && secs <= 60) || reps < 1 || reps > REPS_MAX) {
		(void)fprintf(stderr, "rpc_bench: want --secs 0.01 to 60, --reps 1 to %d\n",
			      REPS_MAX);
		return 2;
	}
	samples = mc_calloc(SAMPLES_MAX, sizeof(*samples));
	if (!samples || !c)
		die("memory", -MC_E_NOMEM);
	for (unsigned i = 0; i < reps; i++) {
		for (int k = 0; k < KIND_COUNT; k++)
			all[k][i] = measure((enum kind)k);
	}
	for (int k = 0; k < KIND_COUNT; k++)
		m[k] = median_of(all[k], reps);
	mc_pb_arena_init(&c->arena, c->space, sizeof(c->space));
	for (size_t i = 0; i < MC_ARRAY_LEN(key_counts); i++)
		codec[i] = codec_ns(c, key_counts[i]);
	mc_free(samples);
	mc_free(c);
	if (is_json) {
		report_json(m, codec);
		return 0;
	}
	return report_text(m, codec) ? 0 : 1;
}
