/*
 * coll_bench.c: one rank of `./run bench coll` through mooncake/coll.h, and the limits of the
 * machine: a flag between two cores, copies. Commands come as lines from a unix socket:
 *
 *   run KIND BYTES N     N times; answers the shortest, p50 and p99 in nanoseconds
 *   until-lost           all_reduce until a rank is missing; answers when that was
 * (CLOCK_MONOTONIC) activate SLOT        wait until it is there, take it in
 *
 * coll_bench SOCKET RANK RANKS NAME FLAGS [core]  RANKS 0: joins instead of SLOT 2 of 3. It says
 * its address, and gets those of all.
 */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <mooncake/coll.h>

#include "base/clock.h"
#include "base/mem.h"
#include "base/sync.h"

#define RANKS_MAX 8u
#define TIMES_MAX 100000u
#define JOIN_NS (20 * MC_NS_PER_S)

struct bench {
	FILE *in, *out;
	uint32_t rank, ranks;
	struct mc_coll_hub *hub;
	struct mc_coll *coll;
	_Atomic uint32_t *flags; /* shared: one cache line a rank */
	uint8_t *a, *b;
	uint64_t room;
	uint64_t times[TIMES_MAX];
};

static void die(const char *what)
{
	(void)fprintf(stderr, "coll_bench: %s\n", what);
	exit(1);
}

static void say(struct bench *b, const char *text)
{
	(void)fprintf(b->out, "%s\n", text);
	(void)fflush(b->out);
}

static FILE *dial(const char *path)
{
	struct sockaddr_un at = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	FILE *f;

	if (strlen(path) >= sizeof(at.sun_path))
		die("the socket's path is too long");
	memcpy(at.sun_path, path, strlen(path));
	if (fd < 0 || connect(fd, (struct sockaddr *)&at, sizeof(at)) < 0)
		die(strerror(errno));
	f = fdopen(fd, "r+");
	if (!f)
		die("no memory");
	return f;
}

static void pin(const char *text)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(strtoul(text, NULL, 10), &set);
	if (sched_setaffinity(0, sizeof(set), &set) < 0)
		die("cannot be pinned");
}

static uint8_t *memory(uint64_t len)
{
	void *at = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (at == MAP_FAILED)
		die("no memory");
	memset(at, 0, len);
	return at;
}

static void need(struct bench *b, uint64_t len)
{
	if (len <= b->room)
		return;
	if (b->room) {
		(void)munmap(b->a, b->room);
		(void)munmap(b->b, b->room);
	}
	b->a = memory(len);
	b->b = memory(len);
	b->room = len;
}

/* ---- operations ---- */

struct job {
	struct mc_coll_op op;
	struct mc_coll_part in[RANKS_MAX], out[RANKS_MAX];
	uint64_t bytes;
};

static void parts(struct mc_coll_part *p, uint8_t *at, uint32_t n, uint64_t count, uint32_t esize)
{
	for (uint32_t i = 0; i < n; i++)
		p[i] = (struct mc_coll_part){at + i * count * esize, count};
}

/* @return false: not an operation of a group */
static bool job_make(struct bench *b, struct job *j, const char *kind, uint64_t bytes)
{
	static const struct {
		const char *name;
		enum mc_coll_kind kind;
		bool is_reduced, many_in, many_out;
	} kinds[] = {{"barrier", MC_COLL_BARRIER, false, false, false},
		     {"all_reduce", MC_COLL_ALL_REDUCE, true, false, false},
		     {"reduce_scatter", MC_COLL_REDUCE_SCATTER, true, true, false},
		     {"all_gather", MC_COLL_ALL_GATHER, false, false, true},
		     {"broadcast", MC_COLL_BROADCAST, false, false, false},
		     {"all_to_all", MC_COLL_ALL_TO_ALL, false, true, true}};

	*j = (struct job){.bytes = bytes};
	need(b, bytes * b->ranks + 64);
	for (size_t i = 0; i < MC_ARRAY_LEN(kinds); i++) {
		uint32_t esize = kinds[i].is_reduced ? 4 : 1;

		if (strcmp(kind, kinds[i].name) != 0)
			continue;
		j->op.kind = kinds[i].kind;
		j->op.type = kinds[i].is_reduced ? MC_COLL_F32 : MC_COLL_BYTE;
		j->op.in = j->in;
		j->op.out = j->out;
		if (j->op.kind == MC_COLL_BARRIER)
			return true;
		j->op.nin = kinds[i].many_in ? b->ranks : 1;
		j->op.nout = kinds[i].many_out ? b->ranks : 1;
		if (j->op.kind == MC_COLL_BROADCAST)
			j->op.nin = b->rank == 0;
		parts(j->in, b->a, j->op.nin, bytes / esize, esize);
		parts(j->out, b->b, j->op.nout, bytes / esize, esize);
		if (j->op.kind == MC_COLL_ALL_REDUCE || j->op.kind == MC_COLL_BROADCAST)
			j->out[0] = j->in[0].addr ? j->in[0] : (struct mc_coll_part){b->a, bytes};
		return true;
	}
	return false;
}

/* There and back, by one word a rank: the least that two cores need to agree. */
static void ping(struct bench *b)
{
	_Atomic uint32_t *own = b->flags + b->rank * (MC_CACHELINE / 4);
	_Atomic uint32_t *other = b->flags + (1 - b->rank) * (MC_CACHELINE / 4);
	uint32_t next = atomic_load_explicit(own, memory_order_relaxed) + 1;

	if (b->rank == 0)
		atomic_store_explicit(own, next, memory_order_release);
	while (atomic_load_explicit(other, memory_order_acquire) != next)
		mc_cpu_relax();
	if (b->rank == 1)
		atomic_store_explicit(own, next, memory_order_release);
}

static int p2p(struct bench *b, uint64_t bytes)
{
	int rc = b->rank == 0 ? mc_coll_send(b->coll, 1, 0, b->a, bytes, NULL)
			      : mc_coll_recv(b->coll, 0, 0, b->a, bytes, NULL);

	if (rc < 0)
		return rc;
	return b->rank == 0 ? mc_coll_recv(b->coll, 1, 0, b->a, bytes, NULL)
			    : mc_coll_send(b->coll, 0, 0, b->a, bytes, NULL);
}

static int once(struct bench *b, struct job *j, const char *kind)
{
	if (j->op.in)
		return mc_coll_run(b->coll, &j->op, NULL);
	if (strcmp(kind, "p2p") == 0)
		return b->rank < 2 ? p2p(b, j->bytes) : 0;
	if (strcmp(kind, "copies") == 0) {
		for (int i = 0; i < 3; i++)
			memcpy(i & 1 ? b->a : b->b, i & 1 ? b->b : b->a, j->bytes);
		return 0;
	}
	if (b->rank < 2)
		ping(b);
	return 0;
}

static int order_of(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

static void run(struct bench *b, const char *kind, uint64_t bytes, uint32_t n)
{
	struct job j;
	uint64_t last, now;

	(void)job_make(b, &j, kind, bytes);
	n = n < TIMES_MAX ? n : TIMES_MAX;
	for (uint32_t i = 0; i < n / 10 + 2; i++)
		if (once(b, &j, kind) < 0)
			die("an operation failed");
	last = mc_now_ns();
	for (uint32_t i = 0; i < n; i++, last = now) {
		if (once(b, &j, kind) < 0)
			die("an operation failed");
		now = mc_now_ns();
		b->times[i] = now - last;
	}
	qsort(b->times, n, sizeof(b->times[0]), order_of);
	(void)fprintf(b->out, "%llu %llu %llu\n", (unsigned long long)b->times[0],
		      (unsigned long long)b->times[n / 2],
		      (unsigned long long)b->times[(uint64_t)n * 99 / 100]);
	(void)fflush(b->out);
}

static void until_lost(struct bench *b)
{
	struct mc_coll_result res = {0};
	struct job j;

	(void)job_make(b, &j, "all_reduce", 4096);
	while (res.failed == 0)
		if (mc_coll_run(b->coll, &j.op, &res) < 0)
			die("an operation failed");
	(void)fprintf(b->out, "%llu\n", (unsigned long long)mc_now_ns());
	(void)fflush(b->out);
}

static void activate(struct bench *b, uint32_t slot)
{
	uint64_t dropped = 0;

	while (!(mc_coll_ready(b->coll) & 1ull << slot))
		(void)usleep(200);
	if (mc_coll_activate(b->coll, 1ull << slot, 0, JOIN_NS, &dropped) < 0 || dropped)
		die("not activated");
	say(b, "ok");
}

static bool command(struct bench *b, char *line)
{
	char kind[32] = "";
	unsigned long long bytes = 0;
	unsigned n = 0;

	if (sscanf(line, "run %31s %llu %u", kind, &bytes, &n) == 3 && n > 0)
		run(b, kind, bytes, n);
	else if (strncmp(line, "until-lost", 10) == 0)
		until_lost(b);
	else if (sscanf(line, "activate %u", &n) == 1)
		activate(b, n);
	else
		return false;
	return true;
}

/* @param line  addresses of all slots, "-" where there is none */
static void meet(struct bench *b, const char *name, uint32_t ranks, char *line)
{
	const char *addrs[RANKS_MAX] = {NULL};
	struct mc_coll_opts opts = {.size = sizeof(opts), .name = name, .rank = b->rank};
	struct mc_diag diag = {0};
	uint64_t from;
	uint32_t n = 0;
	char *save;

	for (char *w = strtok_r(line, " \n", &save); w && n < RANKS_MAX;
	     w = strtok_r(NULL, " \n", &save), n++)
		addrs[n] = strcmp(w, "-") == 0 ? NULL : w;
	opts.ranks = ranks;
	opts.ranks_max = b->ranks = n;
	from = mc_now_ns();
	if (mc_coll_open(b->hub, &opts, addrs, &diag, &b->coll) < 0)
		die(diag.text);
	if (ranks == 0 && mc_coll_join(b->coll, JOIN_NS) < 0)
		die("not taken in");
	(void)fprintf(b->out, "%llu\n", (unsigned long long)(mc_now_ns() - from));
	(void)fflush(b->out);
}

int main(int argc, char **argv)
{
	static struct bench b;
	struct mc_diag diag = {0};
	char line[4096];
	int fd;

	if (argc < 6 || argc > 7)
		die("SOCKET RANK RANKS NAME FLAGS [core]");
	if (argc == 7)
		pin(argv[6]);
	b.rank = (uint32_t)strtoul(argv[2], NULL, 10);
	fd = open(argv[5], O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (fd < 0 || ftruncate(fd, 4096) < 0)
		die("no file for the flags");
	b.flags = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (b.flags == MAP_FAILED || mc_coll_hub_open(NULL, &diag, &b.hub) < 0)
		die("no hub");
	b.in = dial(argv[1]);
	b.out = fdopen(dup(fileno(b.in)), "w");
	if (!b.out)
		die("no memory");
	(void)fprintf(b.out, "%u %s\n", b.rank, mc_coll_hub_address(b.hub));
	(void)fflush(b.out);
	if (!fgets(line, sizeof(line), b.in))
		die("nobody to meet");
	meet(&b, argv[4], (uint32_t)strtoul(argv[3], NULL, 10), line);
	while (fgets(line, sizeof(line), b.in) && command(&b, line))
		continue;
	mc_coll_close(b.coll);
	mc_coll_hub_close(b.hub);
	return 0;
}
