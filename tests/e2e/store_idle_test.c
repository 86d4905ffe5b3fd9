/*
 * store_idle_test.c: what memory the Store's programs take: 10,000 connections that say hello and
 * nothing else cost at most 64 KiB each and hold up nobody; at its cap a pool's owner and the
 * master do not grow.
 *
 * "store_idle_e2e MASTER [TEST]"
 */
#include <dirent.h>
#include <inttypes.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cmocka.h>

#include "../conform/sanitized.h"
#include "base/clock.h"
#include "base/mem.h"
#include "io/sock.h"
#include "ledger.h"
#include "store_real.h"
#include "wire/frame.h"

#define MIB (1ull << 20)
#define CONNS 10000u
#define COST_MAX (64u << 10)
#define PORTS_MAX 16u

/* ---- a process, seen from outside ---- */

static uint64_t rss_bytes(pid_t pid)
{
	char path[64], line[128];
	uint64_t kib = 0;
	FILE *f;

	(void)snprintf(path, sizeof(path), "/proc/%d/status", (int)pid);
	f = fopen(path, "r");
	assert_non_null(f);
	while (fgets(line, sizeof(line), f))
		if (strncmp(line, "VmRSS:", 6) == 0)
			kib = strtoull(line + 6, NULL, 10);
	(void)fclose(f);
	assert_true(kib > 0);
	return kib << 10;
}

static unsigned open_fds(pid_t pid, bool (*each)(void *user, const char *target), void *user)
{
	char path[64], target[128];
	unsigned n = 0;
	struct dirent *e;
	DIR *d;

	(void)snprintf(path, sizeof(path), "/proc/%d/fd", (int)pid);
	d = opendir(path);
	assert_non_null(d);
	while ((e = readdir(d))) {
		ssize_t len = readlinkat(dirfd(d), e->d_name, target, sizeof(target) - 1);

		if (len < 0)
			continue;
		target[len] = '\0';
		n += !each || each(user, target);
	}
	(void)closedir(d);
	return n;
}

static bool is_inode(void *user, const char *target)
{
	return strcmp(target, user) == 0;
}

/* The TCP ports it listens on. @return how many */
static unsigned ports_of(pid_t pid, unsigned ports[PORTS_MAX])
{
	char line[256], name[64];
	unsigned n = 0, port, state;
	unsigned long inode;
	FILE *f = fopen("/proc/net/tcp", "r");

	assert_non_null(f);
	while (fgets(line, sizeof(line), f) && n < PORTS_MAX) {
		if (sscanf(line, " %*d: %*x:%x %*x:%*x %x %*x:%*x %*x:%*x %*x %*d %*d %lu", &port,
			   &state, &inode) != 3 ||
		    state != 0x0a)
			continue;
		(void)snprintf(name, sizeof(name), "socket:[%lu]", inode);
		if (open_fds(pid, is_inode, name) > 0)
			ports[n++] = port;
	}
	(void)fclose(f);
	return n;
}

/* ---- connections ---- */

/* Says hello, and hears it. -1: refused, or closed */
static int idle_open(unsigned port)
{
	const struct mc_frame_hello hello = {.frame_max = 1 << 20, .calls_max = 16};
	const struct mc_frame frame = {.type = MC_FRAME_HELLO, .payload_len = MC_FRAME_HELLO_LEN};
	uint8_t words[MC_FRAME_PREFACE_LEN + MC_FRAME_HEADER_LEN + MC_FRAME_HELLO_LEN];
	struct pollfd p = {.events = POLLOUT};
	struct mc_addr to;
	char text[32];

	memcpy(words, MC_FRAME_PREFACE, MC_FRAME_PREFACE_LEN);
	mc_frame_encode(&frame, words + MC_FRAME_PREFACE_LEN);
	mc_frame_hello_encode(&hello, words + MC_FRAME_PREFACE_LEN + MC_FRAME_HEADER_LEN);
	(void)snprintf(text, sizeof(text), "127.0.0.1:%u", port);
	assert_int_equal(mc_addr_parse(text, 0, &to), 0);
	if (mc_sock_connect(&to, NULL, &p.fd) < 0)
		return -1;
	if (poll(&p, 1, 10000) == 1 && mc_sock_connect_result(p.fd) == 0 &&
	    send(p.fd, words, sizeof(words), MSG_NOSIGNAL) == (ssize_t)sizeof(words)) {
		p.events = POLLIN;
		if (poll(&p, 1, 10000) == 1 && recv(p.fd, words, sizeof(words), 0) > 0)
			return p.fd;
	}
	mc_fd_close(&p.fd);
	return -1;
}

static void is_served(struct mc_store *st, uint64_t version)
{
	static uint8_t in[4096], out[4096];
	struct mc_store_part put = {in, sizeof(in)}, get = {out, sizeof(out)};
	struct mc_store_item item = {{"served", 6}, &put, 1};
	uint64_t begin_ns = mc_now_ns();
	int32_t ret;
	int64_t got;

	ledger_fill(in, sizeof(in), version);
	assert_int_equal(mc_store_put(st, &item, 1, NULL, MC_STORE_UPSERT, &ret), 0);
	item.parts = &get;
	assert_int_equal(mc_store_get(st, &item, 1, &got), 0);
	assert_memory_equal(in, out, sizeof(in));
	assert_true(mc_now_ns() - begin_ns < MC_NS_PER_S);
}

/* @return connections that it held at once */
static unsigned cost_at(pid_t pid, unsigned fds, unsigned port, const char *who,
			struct mc_store *st)
{
	uint64_t before = rss_bytes(pid), after;
	unsigned held, n = 0;
	int *conns = mc_calloc(CONNS, sizeof(*conns));

	while (n < CONNS) {
		conns[n] = idle_open(port);
		if (conns[n] < 0)
			break;
		n++;
	}
	after = rss_bytes(pid);
	held = open_fds(pid, NULL, NULL);
	held -= mc_min(held, fds);
	if (n == CONNS) {
		print_message("%s, port %u: %u connections, %u held at once, %" PRIu64
			      " bytes each (memory %" PRIu64 " -> %" PRIu64 " KiB)\n",
			      who, port, n, held, (after - mc_min(before, after)) / n, before >> 10,
			      after >> 10);
		assert_true(IS_SANITIZED || after <= before + (uint64_t)n * COST_MAX);
		is_served(st, port);
	} else {
		print_message("%s, port %u: took %u, or speaks something else\n", who, port, n);
	}
	while (n > 0)
		mc_fd_close(&conns[--n]);
	mc_free(conns);
	return held;
}

static void cost_of(pid_t pid, const char *who, struct mc_store *st)
{
	unsigned ports[PORTS_MAX], n = ports_of(pid, ports), most = 0;
	unsigned fds = open_fds(pid, NULL, NULL);

	assert_true(n > 0);
	for (unsigned i = 0; i < n; i++)
		most = mc_max(most, cost_at(pid, fds, ports[i], who, st));
	assert_true(most >= CONNS);
}

static void idle_connections_cost_little(void **state)
{
	struct rlimit lim;
	struct mc_store *st;
	struct real *c;

	mc_fd_limit_raise();
	assert_int_equal(getrlimit(RLIMIT_NOFILE, &lim), 0);
	if (lim.rlim_cur < CONNS + 1000) {
		print_message("skipped: %u descriptors are needed, the hard limit is %llu\n",
			      CONNS + 1000, (unsigned long long)lim.rlim_cur);
		skip();
	}
	c = real_open(1, 32 * MIB);
	st = real_store(c, 10000, 0);
	is_served(st, 1);
	cost_of(c->m.pid, "master", st);
	cost_of(c->owners[0].pid, "owner", st);
	mc_store_close(st);
	real_close(c);
	(void)state;
}

/* ---- a full pool ---- */

static void put_small(struct mc_store *st, unsigned from, unsigned n)
{
	enum { BATCH = 500 };
	static uint8_t buf[2000];
	static char keys[BATCH][24];
	struct mc_store_part part = {buf, sizeof(buf)};
	struct mc_store_item items[BATCH];
	int32_t ret[BATCH];

	for (unsigned i = 0; i < n; i += BATCH) {
		for (unsigned k = 0; k < BATCH; k++) {
			(void)snprintf(keys[k], sizeof(keys[k]), "small-%u", from + i + k);
			items[k] = (struct mc_store_item){{keys[k], strlen(keys[k])}, &part, 1};
		}
		assert_int_equal(mc_store_put(st, items, BATCH, NULL, 0, ret), 0);
	}
}

static void nothing_grows_at_the_cap(void **state)
{
	enum { FULL = 16000, TURNS = 5 }; /* objects of a pool of 32 MiB */
	struct real *c = real_open(1, 32 * MIB);
	struct mc_store *st = real_store(c, 20000, 0);
	uint64_t master, owner, master_end, owner_end;

	put_small(st, 0, 2 * FULL);
	master = rss_bytes(c->m.pid);
	owner = rss_bytes(c->owners[0].pid);
	put_small(st, 2 * FULL, TURNS * FULL);
	master_end = rss_bytes(c->m.pid);
	owner_end = rss_bytes(c->owners[0].pid);
	print_message("after 2 and %u pools of objects: master %" PRIu64 " and %" PRIu64
		      " KiB, owner of 32 MiB %" PRIu64 " and %" PRIu64 " KiB\n",
		      2 + TURNS, master >> 10, master_end >> 10, owner >> 10, owner_end >> 10);
	if (!IS_SANITIZED) { /* they keep what was freed */
		assert_true(master_end <= master + MIB);
		assert_true(owner_end <= owner + 2 * MIB);
		assert_true(owner_end <= (32 + 16) * MIB);
	}
	mc_store_close(st);
	real_close(c);
	(void)state;
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(idle_connections_cost_little),
	    cmocka_unit_test(nothing_grows_at_the_cap),
	};
	const char *only = NULL;
	bool is_long = false;
	uint64_t seed = 0;
	int ret;

	if (real_is_owner(argc, argv, &ret))
		return ret;
	if (!real_args(argc, argv, &is_long, &seed, &only))
		return 2;
	if (only)
		cmocka_set_test_filter(only);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
