/*
 * engine_kill_test.c: engines in real processes, one of which is killed, stopped or restarted while
 * bytes move. What must hold whatever happens: no wrong bytes, every operation ends by its deadline
 * (and a second), nothing is left behind, and a peer that comes back is served without the caller
 * doing anything.
 *
 * The peer is this program again: "engine_kill_test target PORT" offers memory, "load NAME SEED"
 * writes and reads until it is killed, "once NAME" moves something and exits without a word.
 * KILL_LONG=1 or --long runs the larger numbers; KILL_SEED repeats a run.
 */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <mooncake/engine.h>

#include "base/clock.h"
#include "base/mem.h"
#include "base/rand.h"
#include "rundir.h"
#include "sanitized.h"

#define SLOT_BYTES (256u << 10)
#define SLOTS 24u
#define REGION_BYTES ((SLOTS + 1) * SLOT_BYTES) /* slot 0 tells the incarnation */
#define RIGHTS (MC_MEM_REMOTE_READ | MC_MEM_REMOTE_WRITE)
#define DEADLINE_NS (2 * MC_NS_PER_S)
#define NEWS_NS (20 * MC_NS_PER_S) /* a try that finds a busy process takes 2 s by itself */
#define LATE_NS MC_NS_PER_S
#define WRITERS 3u

static bool is_long;
static uint64_t seed;

/* ---- payload ---- */

static uint64_t word_of(uint64_t s, uint64_t op, uint64_t off)
{
	uint64_t x = s * 0x9e3779b97f4a7c15ull ^ op * 0xbf58476d1ce4e5b9ull ^ off;

	x ^= x >> 31;
	x *= 0x94d049bb133111ebull;
	return x ^ x >> 29;
}

static void fill(uint8_t *buf, size_t len, uint64_t s, uint64_t op)
{
	for (size_t i = 0; i + 8 <= len; i += 8) {
		uint64_t w = word_of(s, op, i);

		memcpy(buf + i, &w, 8);
	}
}

static bool is_filled(const uint8_t *buf, size_t len, uint64_t s, uint64_t op)
{
	for (size_t i = 0; i + 8 <= len; i += 8) {
		uint64_t w = word_of(s, op, i);

		if (memcmp(buf + i, &w, 8) != 0)
			return false;
	}
	return true;
}

/* ---- processes ---- */

struct child {
	pid_t pid;
	FILE *out;
};

static uint16_t some_port(void)
{
	static unsigned n;

	return (uint16_t)(20000 + ((unsigned)getpid() * 38 + n++ * 2) % 11000);
}

static struct child start(const char *role, const char *arg1, const char *arg2)
{
	char line[64];
	struct child c;
	int p[2];

	assert_int_equal(pipe(p), 0);
	c.pid = fork();
	assert_true(c.pid >= 0);
	if (c.pid == 0) {
		(void)prctl(PR_SET_PDEATHSIG, SIGKILL);
		(void)dup2(p[1], STDOUT_FILENO);
		(void)close(p[0]);
		(void)close(p[1]);
		(void)execl("/proc/self/exe", "engine_kill_test", role, arg1, arg2, (char *)NULL);
		_exit(127);
	}
	(void)close(p[1]);
	c.out = fdopen(p[0], "r");
	assert_non_null(c.out);
	assert_non_null(fgets(line, sizeof(line), c.out));
	return c;
}

static void end(struct child *c)
{
	(void)kill(c->pid, SIGKILL);
	(void)kill(c->pid, SIGCONT);
	(void)waitpid(c->pid, NULL, 0);
	(void)fclose(c->out);
	c->pid = 0;
}

static struct child start_target(uint16_t port)
{
	char text[16];

	(void)snprintf(text, sizeof(text), "%u", port);
	return start("target", text, NULL);
}

static void nap(uint64_t ns)
{
	struct timespec ts = {.tv_sec = (time_t)(ns / MC_NS_PER_S),
			      .tv_nsec = (long)(ns % MC_NS_PER_S)};

	(void)nanosleep(&ts, NULL);
}

static struct mc_engine *open_engine(const char *name)
{
	struct mc_engine_opts opts = {.size = sizeof(opts), .name = name};
	struct mc_diag diag = {.text = ""};
	struct mc_engine *eng = NULL;
	int rc = -1;

	/* The port of a process that was killed a moment ago may still be held for it. */
	for (int i = 0; i < 50 && rc < 0; i++) {
		rc = mc_engine_open(&opts, &diag, &eng);
		if (rc < 0)
			nap(20 * MC_NS_PER_MS);
	}
	if (rc < 0)
		(void)fprintf(stderr, "open %s: %s\n", name, diag.text);
	return eng;
}

/* With P2P names an engine chooses its two ports: give it just two, until the control port is ours.
 */
static struct mc_engine *open_engine_at(uint16_t port)
{
	struct mc_engine *eng = NULL;
	char text[16];

	(void)snprintf(text, sizeof(text), "%u", port);
	(void)setenv("MC_MIN_RPC_PORT", text, 1);
	(void)snprintf(text, sizeof(text), "%u", port + 1);
	(void)setenv("MC_MAX_RPC_PORT", text, 1);
	for (int i = 0; i < 100; i++) {
		eng = open_engine("127.0.0.1");
		if (!eng || mc_engine_port(eng) == port)
			return eng;
		mc_engine_close(eng);
	}
	return NULL;
}

/* Peers of the last incarnation may be reading it already; so the kernel stores it, as it does what
 * comes from them. */
static bool put_word(uint8_t *mem, uint64_t word)
{
	int fds[2];
	bool is_put;

	if (pipe2(fds, O_CLOEXEC) != 0)
		return false;
	is_put = write(fds[1], &word, sizeof(word)) == sizeof(word) &&
		 syscall(SYS_read, fds[0], mem, sizeof(word)) == sizeof(word);
	(void)close(fds[0]);
	(void)close(fds[1]);
	return is_put;
}

static int target_main(const char *port)
{
	struct mc_engine *eng = open_engine_at((uint16_t)strtoul(port, NULL, 10));
	uint8_t *mem = eng ? mc_mem_alloc(eng, REGION_BYTES) : NULL;

	if (!mem || !put_word(mem, (uint64_t)getpid() << 20 ^ mc_now_ns()))
		return 1;
	(void)printf("ready\n");
	(void)fflush(stdout);
	for (;;)
		(void)pause();
}

/* ---- transfers ---- */

struct client {
	struct mc_engine *eng;
	int32_t seg;
	uint64_t base;
	uint64_t slowest_ns; /* beyond its deadline */
};

static int move(struct client *c, unsigned op, const struct mc_iov *local,
		const struct mc_iov *remote, uint32_t n)
{
	struct mc_transfer t = {.op = (uint8_t)op,
				.segment = c->seg,
				.nlocal = n,
				.nremote = n,
				.local = local,
				.remote = remote};
	struct mc_group g = {.size = sizeof(g),
			     .n = 1,
			     .transfers = &t,
			     .deadline_ns = DEADLINE_NS,
			     .priority = MC_PRIO_NORMAL};
	uint64_t at = mc_now_ns(), took;
	int rc = mc_transfer_sync(c->eng, &g, NULL);

	took = mc_now_ns() - at;
	if (took > DEADLINE_NS && took - DEADLINE_NS > c->slowest_ns)
		c->slowest_ns = took - DEADLINE_NS;
	return rc;
}

static uint64_t slot_at(const struct client *c, unsigned slot)
{
	return c->base + (uint64_t)(slot + 1) * SLOT_BYTES;
}

/* Read a slot together with the incarnation that it is of. */
static int read_slot(struct client *c, unsigned slot, uint8_t *buf, size_t len, uint64_t *ret_who)
{
	struct mc_iov local[2] = {{(uintptr_t)ret_who, 8}, {(uintptr_t)buf, len}};
	struct mc_iov remote[2] = {{c->base, 8}, {slot_at(c, slot), len}};

	return move(c, MC_READ, local, remote, 2);
}

static int write_slot(struct client *c, unsigned slot, uint8_t *buf, size_t len)
{
	struct mc_iov local = {(uintptr_t)buf, len}, remote = {slot_at(c, slot), len};

	return move(c, MC_WRITE, &local, &remote, 1);
}

static bool find(struct client *c, const char *name)
{
	struct mc_diag diag;

	return mc_segment_open(c->eng, name, DEADLINE_NS, &diag, &c->seg) == 0 &&
	       mc_segment_first_addr(c->eng, c->seg, &c->base) == 0 && c->base != 0;
}

/* ---- writers under kills ---- */

struct writer {
	struct client c;
	const char *name;
	unsigned first, nslots;
	uint64_t seed;
	_Atomic bool *is_over;
	uint64_t good, failed, wrong, after_bad; /* after_bad: successes after a failure */
};

static void writer_step(struct writer *w, struct mc_rand *r, uint64_t op, uint8_t *buf)
{
	unsigned slot = w->first + (unsigned)mc_rand_below(r, w->nslots);
	size_t len = (size_t)(1 + mc_rand_below(r, SLOT_BYTES / 8)) * 8;
	uint64_t before, after;

	if (mc_rand_below(r, 4) == 0)
		len = 64;
	if ((w->c.base == 0 && !find(&w->c, w->name)) ||
	    read_slot(&w->c, slot, buf, 8, &before) < 0)
		goto fail;
	fill(buf, len, w->seed, op);
	if (write_slot(&w->c, slot, buf, len) < 0)
		goto fail;
	memset(buf, 0x5a, len);
	if (read_slot(&w->c, slot, buf, len, &after) < 0)
		goto fail;
	if (after == before && !is_filled(buf, len, w->seed, op))
		w->wrong++;
	w->good++;
	w->after_bad += w->failed > 0;
	return;
fail:
	w->failed++;
	w->c.base = 0; /* it may be elsewhere in the next incarnation */
	nap(5 * MC_NS_PER_MS);
}

static void *writer_main(void *arg)
{
	struct writer *w = arg;
	uint8_t *buf = mc_calloc(1, SLOT_BYTES);
	struct mc_rand r;

	mc_rand_seed(&r, w->seed);
	for (uint64_t op = 1; buf && !atomic_load(w->is_over); op++)
		writer_step(w, &r, op, buf);
	mc_free(buf);
	return NULL;
}

static int load_main(const char *name, const char *seed_text)
{
	_Atomic bool is_over = false;
	struct writer w = {.name = name, .nslots = 4, .is_over = &is_over};

	w.seed = strtoull(seed_text, NULL, 10);
	w.first = (unsigned)(w.seed % 5) * 4;
	w.c.eng = open_engine("127.0.0.1");
	if (!w.c.eng)
		return 1;
	(void)printf("ready\n");
	(void)fflush(stdout);
	(void)writer_main(&w);
	return 0;
}

static int once_main(const char *name)
{
	struct client c = {0};
	uint8_t buf[4096];
	uint64_t who;

	c.eng = open_engine("127.0.0.1");
	if (!c.eng || !find(&c, name))
		return 1;
	fill(buf, sizeof(buf), 1, 1);
	if (write_slot(&c, 3, buf, sizeof(buf)) < 0 ||
	    read_slot(&c, 3, buf, sizeof(buf), &who) < 0 || !is_filled(buf, sizeof(buf), 1, 1))
		return 2;
	(void)printf("ready\n");
	(void)fflush(stdout);
	_exit(0);
}

static void targets_killed_under_load_cost_failures_but_no_byte_and_no_time(void **state)
{
	unsigned kills = is_long ? 200 : 30;
	uint16_t port = some_port();
	char name[32];
	struct writer w[WRITERS];
	pthread_t t[WRITERS];
	_Atomic bool is_over = false;
	struct mc_engine *eng = open_engine("127.0.0.1");
	struct child target = start_target(port);
	struct mc_rand r;

	(void)state;
	assert_non_null(eng);
	(void)snprintf(name, sizeof(name), "127.0.0.1:%u", port);
	mc_rand_seed(&r, seed);
	for (unsigned i = 0; i < WRITERS; i++) {
		w[i] = (struct writer){.c = {.eng = eng},
				       .name = name,
				       .first = i * (SLOTS / WRITERS),
				       .nslots = SLOTS / WRITERS,
				       .seed = seed + i,
				       .is_over = &is_over};
		assert_int_equal(pthread_create(&t[i], NULL, writer_main, &w[i]), 0);
	}
	for (unsigned i = 0; i < kills; i++) {
		nap((20 + mc_rand_below(&r, 180)) * MC_NS_PER_MS);
		end(&target);
		if (mc_rand_below(&r, 2))
			nap(mc_rand_below(&r, 100) * MC_NS_PER_MS);
		target = start_target(port);
	}
	nap(2 * MC_NS_PER_S); /* the last one must be served again */
	for (unsigned i = 0; i < WRITERS; i++)
		w[i].after_bad = 0; /* racy by one, which does no harm */
	nap(MC_NS_PER_S);
	atomic_store(&is_over, true);
	for (unsigned i = 0; i < WRITERS; i++) {
		assert_int_equal(pthread_join(t[i], NULL), 0);
		print_message("good=%llu failed=%llu wrong=%llu late_ms=%llu\n",
			      (unsigned long long)w[i].good, (unsigned long long)w[i].failed,
			      (unsigned long long)w[i].wrong,
			      (unsigned long long)(w[i].c.slowest_ns / MC_NS_PER_MS));
		assert_int_equal(w[i].wrong, 0);
		assert_true(w[i].c.slowest_ns <= LATE_NS);
		assert_true(w[i].after_bad > 0);
	}
	end(&target);
	mc_engine_close(eng);
}

/* ---- counting ---- */

static unsigned entries(const char *path)
{
	DIR *d = opendir(path);
	unsigned n = 0;

	assert_non_null(d);
	while (readdir(d))
		n++;
	(void)closedir(d);
	return n;
}

static unsigned long rss_kib(void)
{
	FILE *f = fopen("/proc/self/statm", "r");
	unsigned long pages = 0, all = 0;

	assert_non_null(f);
	assert_int_equal(fscanf(f, "%lu %lu", &all, &pages), 2);
	(void)fclose(f);
	return pages * (unsigned long)sysconf(_SC_PAGESIZE) / 1024;
}

/* Things end a moment after their peer. */
static void settle(const char *path, unsigned most)
{
	for (int i = 0; i < 100 && entries(path) > most; i++)
		nap(50 * MC_NS_PER_MS);
	assert_true(entries(path) <= most);
}

static void initiators_killed_under_load_leave_nothing_at_the_target(void **state)
{
	unsigned kills = is_long ? 200 : 30;
	struct mc_engine *eng = open_engine("127.0.0.1");
	struct child c[3] = {{0}};
	unsigned fds, threads;
	struct mc_rand r;
	uint8_t *mem;
	uint64_t at;

	(void)state;
	assert_non_null(eng);
	mem = mc_mem_alloc(eng, REGION_BYTES);
	assert_non_null(mem);
	mc_rand_seed(&r, seed + 77);
	fds = entries("/proc/self/fd");
	threads = entries("/proc/self/task");
	for (unsigned i = 0; i < kills; i++) {
		struct child *k = &c[i % 3];
		char text[24];

		if (k->pid)
			end(k);
		(void)snprintf(text, sizeof(text), "%llu", (unsigned long long)(seed + i));
		*k = start("load", mc_engine_name(eng), text);
		nap(mc_rand_below(&r, 150) * MC_NS_PER_MS);
	}
	for (unsigned i = 0; i < 3; i++)
		end(&c[i]);
	/* Slots that no load writes are as they were. */
	for (size_t i = 21 * SLOT_BYTES; i < REGION_BYTES; i++)
		assert_int_equal(mem[i], 0);
	settle("/proc/self/fd", fds + 2);
	settle("/proc/self/task", threads + 4);
	at = mc_now_ns();
	assert_int_equal(mc_mem_free(eng, mem), 0);
	mc_engine_close(eng);
	assert_true(mc_now_ns() - at < 5 * MC_NS_PER_S);
}

static void peers_that_come_and_die_leave_nothing(void **state)
{
	unsigned cycles = is_long ? 1000 : IS_SANITIZED ? 60 : 300;
	struct mc_engine *eng = open_engine("127.0.0.1");
	unsigned fds = 0, threads = 0;
	unsigned long rss = 0;
	uint8_t *mem;

	(void)state;
	assert_non_null(eng);
	mem = mc_mem_alloc(eng, REGION_BYTES);
	assert_non_null(mem);
	for (unsigned i = 0; i < cycles; i++) {
		struct child c = start("once", mc_engine_name(eng), NULL);

		end(&c);
		if (i == cycles / 4) {
			settle("/proc/self/fd", entries("/proc/self/fd"));
			fds = entries("/proc/self/fd");
			threads = entries("/proc/self/task");
			rss = rss_kib();
		}
	}
	settle("/proc/self/fd", fds + 4);
	settle("/proc/self/task", threads + 2);
	print_message("cycles=%u rss=%lu -> %lu KiB\n", cycles, rss, rss_kib());
	if (!IS_SANITIZED) /* a sanitizer keeps freed memory for a while */
		assert_true(rss_kib() < rss + 4096);
	assert_int_equal(mc_mem_free(eng, mem), 0);
	mc_engine_close(eng);
}

/* ---- peers that stand still ---- */

#define GROUPS 16u

static int submit_write(struct client *c, struct mc_cq *cq, unsigned slot, uint8_t *buf,
			uint64_t deadline_ns, uint64_t *ret_id)
{
	struct mc_iov local = {(uintptr_t)buf, SLOT_BYTES}, remote = {slot_at(c, slot), SLOT_BYTES};
	struct mc_transfer t = {.op = MC_WRITE,
				.segment = c->seg,
				.nlocal = 1,
				.nremote = 1,
				.local = &local,
				.remote = &remote};
	struct mc_group g = {.size = sizeof(g),
			     .n = 1,
			     .transfers = &t,
			     .deadline_ns = deadline_ns,
			     .priority = MC_PRIO_NORMAL,
			     .cq = cq,
			     .user = slot};

	return mc_submit(c->eng, &g, ret_id);
}

static void a_stopped_peer_costs_the_deadline_and_no_late_byte(void **state)
{
	uint16_t port = some_port();
	struct child target = start_target(port);
	struct client c = {.eng = open_engine("127.0.0.1")};
	struct mc_completion done[GROUPS];
	uint8_t *buf = mc_calloc(GROUPS, SLOT_BYTES), *fresh = mc_calloc(1, SLOT_BYTES);
	unsigned n = 0, unfenced = 0;
	uint64_t id, at, who;
	struct mc_cq *cq;
	char name[32];

	(void)state;
	(void)snprintf(name, sizeof(name), "127.0.0.1:%u", port);
	assert_true(c.eng && buf && fresh && find(&c, name));
	assert_int_equal(read_slot(&c, 0, buf, 8, &who), 0); /* the region is known from now on */
	assert_int_equal(mc_cq_open(c.eng, GROUPS, &cq), 0);
	assert_int_equal(kill(target.pid, SIGSTOP), 0);
	at = mc_now_ns();
	for (unsigned i = 0; i < GROUPS; i++) {
		fill(buf + i * SLOT_BYTES, SLOT_BYTES, seed, i);
		assert_int_equal(submit_write(&c, cq, i, buf + i * SLOT_BYTES, DEADLINE_NS, &id),
				 0);
	}
	while (n < GROUPS) {
		int k = mc_cq_wait(cq, done + n, GROUPS - n, DEADLINE_NS + LATE_NS);

		assert_true(k > 0);
		n += (unsigned)k;
	}
	assert_true(mc_now_ns() - at < DEADLINE_NS + LATE_NS);
	for (unsigned i = 0; i < GROUPS; i++)
		unfenced += done[i].status == -MC_E_UNFENCED;
	assert_int_equal(kill(target.pid, SIGCONT), 0);
	/* A new write goes in only after the old ones are fenced, and is the last word. */
	for (unsigned i = 0; i < GROUPS; i++) {
		fill(fresh, SLOT_BYTES, seed + 1, i);
		assert_int_equal(write_slot(&c, i, fresh, SLOT_BYTES), 0);
	}
	nap(200 * MC_NS_PER_MS);
	for (unsigned i = 0; i < GROUPS; i++) {
		assert_int_equal(read_slot(&c, i, fresh, SLOT_BYTES, &who), 0);
		assert_true(is_filled(fresh, SLOT_BYTES, seed + 1, i));
	}
	print_message("unfenced=%u of %u\n", unfenced, GROUPS);
	mc_cq_close(cq);
	mc_engine_close(c.eng);
	end(&target);
	mc_free(buf);
	mc_free(fresh);
}

static void a_peer_that_is_stopped_now_and_then_loses_nothing(void **state)
{
	uint16_t port = some_port();
	struct child target = start_target(port);
	_Atomic bool is_over = false;
	char name[32];
	struct writer w = {.name = name, .nslots = SLOTS, .seed = seed, .is_over = &is_over};
	struct mc_rand r;
	pthread_t t;

	(void)state;
	(void)snprintf(name, sizeof(name), "127.0.0.1:%u", port);
	mc_rand_seed(&r, seed + 5);
	w.c.eng = open_engine("127.0.0.1");
	assert_true(w.c.eng && find(&w.c, name));
	assert_int_equal(pthread_create(&t, NULL, writer_main, &w), 0);
	for (unsigned i = 0; i < (is_long ? 60u : 12u); i++) {
		nap(mc_rand_below(&r, 60) * MC_NS_PER_MS);
		assert_int_equal(kill(target.pid, SIGSTOP), 0);
		nap(mc_rand_below(&r, 150) * MC_NS_PER_MS);
		assert_int_equal(kill(target.pid, SIGCONT), 0);
	}
	atomic_store(&is_over, true);
	assert_int_equal(pthread_join(t, NULL), 0);
	assert_int_equal(w.wrong, 0);
	assert_int_equal(w.failed, 0);
	assert_true(w.good > 0);
	mc_engine_close(w.c.eng);
	end(&target);
}

static void closing_with_groups_under_way_to_a_stopped_peer_is_bounded(void **state)
{
	uint16_t port = some_port();
	struct child target = start_target(port);
	struct client c = {.eng = open_engine("127.0.0.1")};
	uint8_t *buf = mc_calloc(GROUPS, SLOT_BYTES);
	uint64_t at, id, who;
	char name[32];

	(void)state;
	(void)snprintf(name, sizeof(name), "127.0.0.1:%u", port);
	assert_true(c.eng && buf && find(&c, name));
	assert_int_equal(read_slot(&c, 0, buf, 8, &who), 0);
	assert_int_equal(kill(target.pid, SIGSTOP), 0);
	for (unsigned i = 0; i < GROUPS; i++)
		assert_int_equal(
		    submit_write(&c, NULL, i, buf + i * SLOT_BYTES, 30 * MC_NS_PER_S, &id), 0);
	nap(50 * MC_NS_PER_MS);
	at = mc_now_ns();
	mc_engine_close(c.eng);
	assert_true(mc_now_ns() - at < 4 * MC_NS_PER_S);
	end(&target);
	mc_free(buf);
}

/* ---- restart, allocation, fork ---- */

static void a_watch_ends_with_the_process_it_was_begun_for(void **state)
{
	uint16_t port = some_port();
	struct child target = start_target(port);
	struct client c = {.eng = open_engine("127.0.0.1")};
	struct mc_status st;
	char name[32];
	uint64_t id[4];

	(void)state;
	(void)snprintf(name, sizeof(name), "127.0.0.1:%u", port);
	assert_true(c.eng && find(&c, name));
	assert_int_equal(mc_segment_watch(c.eng, c.seg, NULL, 0, &id[0]), 0);
	for (int i = 0; i < 3; i++) {
		end(&target);
		target = start_target(port); /* at once: nobody may have looked in between */
		assert_int_equal(mc_group_wait(c.eng, id[i], NEWS_NS, &st), 0);
		assert_int_equal(st.status, -MC_E_PEER_DEAD);
		assert_int_equal(mc_group_free(c.eng, id[i]), 0);
		assert_int_equal(mc_segment_watch(c.eng, c.seg, NULL, 0, &id[i + 1]), 0);
		assert_int_equal(mc_group_wait(c.eng, id[i + 1], MC_NS_PER_S / 5, &st),
				 -MC_E_TIMEDOUT);
	}
	mc_engine_close(c.eng);
	end(&target);
}

static void a_peer_that_restarts_on_its_port_is_served_at_the_first_try(void **state)
{
	uint16_t port = some_port();
	struct child target = start_target(port);
	struct client c = {.eng = open_engine("127.0.0.1")};
	uint8_t buf[4096];
	char name[32];
	uint64_t who[2];
	int32_t seg;

	(void)state;
	(void)snprintf(name, sizeof(name), "127.0.0.1:%u", port);
	assert_true(c.eng && find(&c, name));
	seg = c.seg;
	assert_int_equal(read_slot(&c, 1, buf, sizeof(buf), &who[0]), 0);
	for (int i = 0; i < 3; i++) {
		end(&target);
		target = start_target(port);
		nap(50 * MC_NS_PER_MS); /* the news of the old one's end has come */
		assert_int_equal(mc_segment_first_addr(c.eng, seg, &c.base), 0);
		fill(buf, sizeof(buf), seed, (uint64_t)i);
		assert_int_equal(write_slot(&c, 1, buf, sizeof(buf)), 0);
		assert_int_equal(read_slot(&c, 1, buf, sizeof(buf), &who[1]), 0);
		assert_true(is_filled(buf, sizeof(buf), seed, (uint64_t)i));
		assert_true(who[0] != who[1]);
		who[0] = who[1];
	}
	mc_engine_close(c.eng);
	end(&target);
}

static void a_transfer_allocates_nothing_once_warm(void **state)
{
	uint16_t port = some_port();
	struct child target = start_target(port);
	struct client c = {.eng = open_engine("127.0.0.1")};
	uint8_t *buf = mc_calloc(1, SLOT_BYTES);
	struct mc_completion done;
	uint64_t calls = 0, id, who;
	struct mc_cq *cq;
	char name[32];

	(void)state;
	(void)snprintf(name, sizeof(name), "127.0.0.1:%u", port);
	assert_true(c.eng && buf && find(&c, name));
	assert_int_equal(mc_cq_open(c.eng, 4, &cq), 0);
	for (unsigned i = 0; i < 400; i++) {
		if (i == 200)
			calls = mc_mem_calls();
		assert_int_equal(write_slot(&c, i % SLOTS, buf, i % 2 ? 64 : SLOT_BYTES), 0);
		assert_int_equal(read_slot(&c, i % SLOTS, buf, SLOT_BYTES, &who), 0);
		assert_int_equal(submit_write(&c, cq, 1, buf, DEADLINE_NS, &id), 0);
		assert_int_equal(mc_cq_wait(cq, &done, 1, DEADLINE_NS), 1);
		assert_int_equal(done.status, 0);
	}
	assert_int_equal(mc_mem_calls() - calls, 0);
	mc_cq_close(cq);
	mc_engine_close(c.eng);
	end(&target);
	mc_free(buf);
}

static void a_forked_child_gets_errors_and_exits_at_once(void **state)
{
	uint16_t port = some_port();
	struct child target = start_target(port);
	struct client c = {.eng = open_engine("127.0.0.1")};
	struct mc_completion done;
	struct mc_cq *cq;
	uint8_t buf[64];
	char name[32];
	int status;
	pid_t pid;

	(void)state;
	(void)snprintf(name, sizeof(name), "127.0.0.1:%u", port);
	assert_true(c.eng && find(&c, name));
	assert_int_equal(mc_cq_open(c.eng, 4, &cq), 0);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		bool is_ok = write_slot(&c, 1, buf, sizeof(buf)) == -MC_E_FORKED &&
			     mc_cq_wait(cq, &done, 1, 0) == -MC_E_FORKED &&
			     !mc_mem_alloc(c.eng, 64) &&
			     mc_segment_close(c.eng, c.seg) == -MC_E_FORKED;

		(void)alarm(10);
		mc_cq_close(cq);
		mc_engine_close(c.eng);
		_exit(is_ok ? 0 : 1);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
	assert_int_equal(write_slot(&c, 1, buf, sizeof(buf)), 0); /* the parent is none the wiser */
	mc_cq_close(cq);
	mc_engine_close(c.eng);
	end(&target);
}

int main(int argc, char **argv)
{
	char dir[] = "/tmp/mc-kill-XXXXXX";
	int failed;
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(a_transfer_allocates_nothing_once_warm),
	    cmocka_unit_test(a_watch_ends_with_the_process_it_was_begun_for),
	    cmocka_unit_test(a_peer_that_restarts_on_its_port_is_served_at_the_first_try),
	    cmocka_unit_test(a_forked_child_gets_errors_and_exits_at_once),
	    cmocka_unit_test(a_stopped_peer_costs_the_deadline_and_no_late_byte),
	    cmocka_unit_test(a_peer_that_is_stopped_now_and_then_loses_nothing),
	    cmocka_unit_test(closing_with_groups_under_way_to_a_stopped_peer_is_bounded),
	    cmocka_unit_test(targets_killed_under_load_cost_failures_but_no_byte_and_no_time),
	    cmocka_unit_test(initiators_killed_under_load_leave_nothing_at_the_target),
	    cmocka_unit_test(peers_that_come_and_die_leave_nothing),
	};
	const char *text = getenv("KILL_SEED");

	if (argc >= 3 && strcmp(argv[1], "target") == 0)
		return target_main(argv[2]);
	if (argc >= 4 && strcmp(argv[1], "load") == 0)
		return load_main(argv[2], argv[3]);
	if (argc >= 3 && strcmp(argv[1], "once") == 0)
		return once_main(argv[2]);
	is_long = getenv("KILL_LONG") || (argc > 1 && strcmp(argv[argc - 1], "--long") == 0);
	if (argc > 1 && strcmp(argv[1], "tcp") == 0)
		(void)setenv("MC_FORCE_TCP", "1", 1);
	seed = text ? strtoull(text, NULL, 10) : mc_now_ns() % 1000000 + 1;
	print_message("seed %llu\n", (unsigned long long)seed);
	if (getenv("KILL_FILTER"))
		cmocka_set_test_filter(getenv("KILL_FILTER"));
	rundir_open(dir);
	failed = cmocka_run_group_tests(tests, NULL, NULL);
	rundir_close(dir);
	return failed;
}
