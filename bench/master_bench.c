/*
 * master_bench.c: a running master alone, over rpc: commits and lookups in batches of 128 as a
 * native client sends them. This program is the owner of all objects, too, and has no memory behind
 * them. Rates are for one core: keys by the CPU time of the master's process, with some calls in
 * flight. Percentiles are of calls one after the other. Prints JSON.
 *
 * usage: master_bench ADDRESS PID OBJECTS [OBJECTS...]; ascending numbers to grow to
 */
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <mooncake/store.h>

#include "base/clock.h"
#include "base/mem.h"
#include "base/rand.h"
#include "rpc/rpc.h"
#include "wire/pb.h"
#include "wire/store.h"
#include "wire/store.pb-c.h"

#define BATCH 128u
#define KEY_LEN 40u
#define DEPTH 8u      /* calls in flight where rates are measured */
#define SINGLES 4000u /* calls whose time is taken */
#define LOOKUPS 8000u /* calls */
#define OBJECTS_MAX 100000000u
#define RECORD_MAX 128u /* bytes of a commit, or of a lookup's answer */
#define CALL_NS (20 * MC_NS_PER_S)
#define BEAT_NS (MC_ST_BEAT_MS * MC_NS_PER_MS / 2)
#define OWNER 1u

struct slot {
	struct mc_rpc_call call;
	uint8_t req[4 + BATCH * RECORD_MAX], reply[4 + BATCH * RECORD_MAX];
	bool is_busy;
};

struct bench {
	struct mc_loop *loop;
	struct mc_rpc_conn *conn, *owner_conn;
	struct mc_rpc_call owner;
	uint8_t owner_req[256];
	uint64_t number, beat_ns; /* of the owner's notes */
	_Atomic bool is_welcome, is_lost;
	struct mc_rand rand;
	clockid_t master_cpu;
	uint64_t n; /* objects */
	struct slot slots[DEPTH];
	uint64_t took_ns[SINGLES];
};

static void die(const char *what, int rc)
{
	(void)fprintf(stderr, "master_bench: %s: %s\n", what, mc_err_text(rc));
	exit(1);
}

static void pause_ms(long ms)
{
	const struct timespec t = {.tv_nsec = ms * 1000000};

	(void)nanosleep(&t, NULL);
}

/* ---- the owner ---- */

static void owner_end(struct mc_rpc_call *call, int rc, const struct mc_rpc_msg *reply)
{
	struct bench *b = call->user;

	(void)rc;
	(void)reply;
	atomic_store(&b->is_lost, true);
}

/* The first piece has the welcome; what comes later is of no interest. */
static void owner_chunk(struct mc_rpc_call *call, const void *data, size_t len, bool is_last)
{
	struct bench *b = call->user;

	(void)data;
	(void)is_last;
	(void)mc_rpc_call_credit(b->owner_conn, call->id, (uint32_t)len);
	atomic_store(&b->is_welcome, true);
}

static void owner_note(struct bench *b, uint8_t type, const void *data, size_t len)
{
	const struct mc_st_note_head head = {
	    .len = (uint32_t)len, .type = type, .number = ++b->number};
	uint8_t buf[MC_ST_NOTE_HEAD_LEN + 64];
	int rc;

	mc_st_note_head_encode(&head, buf);
	if (len)
		memcpy(buf + MC_ST_NOTE_HEAD_LEN, data, len);
	rc = mc_rpc_call_send(b->owner_conn, b->owner.id, buf, MC_ST_NOTE_HEAD_LEN + len, false);
	if (rc < 0)
		die("owner's note", rc);
}

/* An owner that says nothing is suspect. */
static void owner_beat(struct bench *b)
{
	const struct mc_st_space s = {.capacity = 1ull << 46, .largest = 1ull << 46};
	uint64_t now_ns = mc_now_ns();
	uint8_t buf[64];
	struct mc_wr w = mc_wr_make(buf, sizeof(buf));

	if (now_ns - b->beat_ns < BEAT_NS)
		return;
	b->beat_ns = now_ns;
	mc_st_space_encode(&w, &s);
	owner_note(b, MC_ST_NOTE_SPACE, buf, mc_wr_len(&w));
}

static void owner_join(struct bench *b, const struct mc_addr *at)
{
	Mc__St__Owner m = MC__ST__OWNER__INIT;
	uint64_t end_ns = mc_now_ns() + CALL_NS;
	size_t len;
	int rc;

	m.version = MC_ST_VERSION;
	m.id = m.incarnation = OWNER;
	m.segment = m.address = m.host = (char *)"bench:1";
	m.capacity = 1ull << 46;
	rc = mc_pb_pack(&m.base, b->owner_req, sizeof(b->owner_req), &len);
	if (rc == 0)
		rc = mc_rpc_conn_open(&mc_env_real, b->loop, at, NULL, &b->owner_conn);
	b->owner = (struct mc_rpc_call){.method = MC_ST_OWNER,
					.flags = MC_RPC_STREAM,
					.req = b->owner_req,
					.req_len = len,
					.on_end = owner_end,
					.on_chunk = owner_chunk,
					.user = b};
	if (rc == 0)
		rc = mc_rpc_start(b->owner_conn, &b->owner);
	if (rc < 0)
		die("owner", rc);
	while (!atomic_load(&b->is_welcome)) {
		if (atomic_load(&b->is_lost) || mc_now_ns() > end_ns)
			die("owner", -MC_E_REFUSED);
		pause_ms(2);
	}
	owner_note(b, MC_ST_NOTE_HAS_ALL, NULL, 0);
	owner_beat(b);
}

/* ---- calls ---- */

static void key_make(uint8_t text[KEY_LEN], uint64_t number)
{
	memset(text, 0, KEY_LEN);
	(void)snprintf((char *)text + 1, KEY_LEN - 1, "model@%016llx@layer:%llu",
		       (unsigned long long)(number * 0x9e3779b97f4a7c15ull),
		       (unsigned long long)(number % 64));
}

static size_t commit_make(struct bench *b, uint8_t *req, size_t cap)
{
	struct mc_wr w = mc_wr_make(req, cap);
	uint8_t text[KEY_LEN];

	mc_wr_u32(&w, BATCH);
	for (uint32_t i = 0; i < BATCH; i++, b->n++) {
		const struct mc_st_commit c = {
		    .gen = b->n + 1,
		    .len = 65536,
		    .key_len = KEY_LEN,
		    .nreplicas = 1,
		    .replicas = {{.owner = OWNER, .addr = (b->n + 1) << 16}},
		    .key = text};

		key_make(text, b->n);
		mc_st_commit_encode(&w, &c);
	}
	return mc_wr_len(&w);
}

static size_t lookup_make(struct bench *b, uint8_t *req, size_t cap)
{
	uint64_t first = mc_rand_below(&b->rand, b->n / BATCH) * BATCH;
	struct mc_wr w = mc_wr_make(req, cap);
	uint8_t text[KEY_LEN];

	mc_wr_u32(&w, BATCH);
	for (uint32_t i = 0; i < BATCH; i++) {
		const struct mc_st_key k = {KEY_LEN, text};

		key_make(text, first + i);
		mc_st_key_encode(&w, &k);
	}
	return mc_wr_len(&w);
}

/* Every record must have gone well. @return the status of one that has not */
static int32_t check(const struct slot *s)
{
	struct mc_rd r = mc_rd_make(s->reply, s->call.reply_len);
	int n = mc_st_count_decode(&r);

	if (n != (int)BATCH)
		die("answer", n < 0 ? n : -MC_E_PROTO);
	for (uint32_t i = 0; i < BATCH; i++) {
		struct mc_st_committed done;
		struct mc_st_object got;
		int32_t status;

		if (s->call.method == MC_ST_COMMIT) {
			mc_st_committed_decode(&r, &done);
			status = done.status;
		} else {
			mc_st_object_decode(&r, &got);
			status = got.status;
			if (status == 0 && got.len != 65536)
				die("length in an answer", -MC_E_PROTO);
		}
		if (status != 0)
			return status;
	}
	if (!mc_rd_is_done(&r))
		die("answer", -MC_E_PROTO);
	return 0;
}

static void slot_end(struct bench *b, struct slot *s)
{
	int rc = s->is_busy ? mc_rpc_wait(b->conn, &s->call) : 0;

	if (rc < 0)
		die("call", rc);
	if (s->is_busy && check(s) != 0) {
		(void)fprintf(stderr, "master_bench: a record of method %u: status %d\n",
			      s->call.method, check(s));
		exit(1);
	}
	s->is_busy = false;
}

static void slot_start(struct bench *b, struct slot *s, uint16_t method)
{
	size_t len = method == MC_ST_COMMIT ? commit_make(b, s->req, sizeof(s->req))
					    : lookup_make(b, s->req, sizeof(s->req));
	int rc;

	s->call = (struct mc_rpc_call){.method = method,
				       .flags = MC_RPC_WAITED,
				       .req = s->req,
				       .req_len = len,
				       .deadline_ns = mc_now_ns() + CALL_NS,
				       .reply_buf = s->reply,
				       .reply_cap = sizeof(s->reply)};
	rc = mc_rpc_start(b->conn, &s->call);
	if (rc < 0)
		die("call", rc);
	s->is_busy = true;
}

static uint64_t cpu_ns(const struct bench *b)
{
	struct timespec t = {0};

	if (clock_gettime(b->master_cpu, &t) != 0)
		die("the master's CPU clock", -MC_E_INVAL);
	return (uint64_t)t.tv_sec * MC_NS_PER_S + (uint64_t)t.tv_nsec;
}

/* @return keys by second of the master's CPU time */
static double run_many(struct bench *b, uint16_t method, uint64_t calls)
{
	uint64_t begin_ns = cpu_ns(b);

	for (uint64_t i = 0; i < calls; i++) {
		struct slot *s = &b->slots[i % DEPTH];

		owner_beat(b);
		slot_end(b, s);
		slot_start(b, s, method);
	}
	for (unsigned i = 0; i < DEPTH; i++)
		slot_end(b, &b->slots[(calls + i) % DEPTH]);
	return (double)(calls * BATCH) * 1e9 / (double)(cpu_ns(b) - begin_ns);
}

static int order_of(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

/* @return p99 of a call, in microseconds */
static double run_single(struct bench *b, uint16_t method, uint32_t calls)
{
	for (uint32_t i = 0; i < calls; i++) {
		uint64_t begin_ns = mc_now_ns();

		slot_start(b, &b->slots[0], method);
		slot_end(b, &b->slots[0]);
		b->took_ns[i] = mc_now_ns() - begin_ns;
		owner_beat(b);
	}
	qsort(b->took_ns, calls, sizeof(b->took_ns[0]), order_of);
	return (double)b->took_ns[calls * 99 / 100] / 1000;
}

static void run_size(struct bench *b, uint64_t objects)
{
	uint64_t calls = (objects - mc_min(objects, b->n)) / BATCH;
	uint32_t singles = (uint32_t)mc_min((uint64_t)SINGLES, calls / 2);
	double commits = run_many(b, MC_ST_COMMIT, mc_max(calls - singles, (uint64_t)1));
	double commit_p99 = run_single(b, MC_ST_COMMIT, mc_max(singles, 1u));
	double lookups = run_many(b, MC_ST_LOOKUP, LOOKUPS);
	double lookup_p99 = run_single(b, MC_ST_LOOKUP, SINGLES);

	(void)printf("{\"objects\": %llu, \"commits_per_s\": %.0f, \"commit_batch_p99_us\": %.1f, "
		     "\"lookups_per_s\": %.0f, \"lookup_batch_p99_us\": %.1f}",
		     (unsigned long long)b->n, commits, commit_p99, lookups, lookup_p99);
}

/* A master that has just come asks clients to wait: until it takes a commit. */
static void first_commit(struct bench *b)
{
	uint64_t end_ns = mc_now_ns() + CALL_NS;
	struct slot *s = &b->slots[0];
	int32_t status;

	do {
		int rc;

		b->n = 0;
		slot_start(b, s, MC_ST_COMMIT);
		rc = mc_rpc_wait(b->conn, &s->call);
		status = rc < 0 ? MC_STORE_UNAVAILABLE_IN_CURRENT_STATUS : check(s);
		s->is_busy = false;
		owner_beat(b);
		if (status != 0)
			pause_ms(5);
	} while (status != 0 && mc_now_ns() < end_ns);
	if (status == 0)
		return;
	(void)fprintf(stderr, "master_bench: no commit succeeds: status %d\n", status);
	exit(1);
}

int main(int argc, char **argv)
{
	struct bench *b = mc_calloc(1, sizeof(*b));
	struct mc_addr at;
	int rc;

	if (argc < 4) {
		(void)fprintf(stderr, "usage: master_bench ADDRESS PID OBJECTS [OBJECTS...]\n");
		return 2;
	}
	rc = b ? mc_addr_parse(argv[1], 0, &at) : -MC_E_NOMEM;
	if (rc == 0 && clock_getcpuclockid((pid_t)strtol(argv[2], NULL, 10), &b->master_cpu) != 0)
		rc = -MC_E_INVAL;
	if (rc == 0)
		rc = mc_loop_open("bench", mc_env_real.clk, &b->loop);
	if (rc == 0)
		rc = mc_loop_start(b->loop);
	if (rc == 0)
		rc = mc_rpc_conn_open(&mc_env_real, b->loop, &at, NULL, &b->conn);
	if (rc < 0)
		die(argv[1], rc);
	mc_rand_seed(&b->rand, 1);
	owner_join(b, &at);
	first_commit(b);
	(void)printf("{\"batch\": %u, \"key_bytes\": %u, \"in_flight\": %u, \"sizes\": [", BATCH,
		     KEY_LEN, DEPTH);
	for (int i = 3; i < argc; i++) {
		unsigned long long objects = strtoull(argv[i], NULL, 10);

		if (objects < BATCH || objects > OBJECTS_MAX) {
			(void)fprintf(stderr, "master_bench: objects: %s\n", argv[i]);
			return 2;
		}
		(void)printf("%s\n  ", i > 3 ? "," : "");
		run_size(b, objects);
	}
	(void)printf("]}\n");
	mc_rpc_conn_close(b->owner_conn);
	mc_rpc_conn_close(b->conn);
	mc_loop_close(b->loop);
	mc_free(b);
	return 0;
}
