/*
 * limits.c: the raw limits of this machine, for use as denominators: memory copies, copies between
 * processes, and (in limits_tcp.c) TCP. One test a run, one line of JSON on stdout with the same
 * keys as a row of worker.py.
 *
 * CPU counts both processes; with time accounting by task it contains the loopback softirq that a
 * task runs.
 */
#include "limits.h"

#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define NS_PER_S 1000000000ull
enum { IOV_CALL_MAX = 512, SAMPLES_MAX = 1 << 22 };

typedef void copy_fn(char *dst, const char *src, size_t len);

_Noreturn void die(const char *what)
{
	fprintf(stderr, "limits: %s: %s\n", what, strerror(errno));
	exit(1);
}

uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * NS_PER_S + (uint64_t)t.tv_nsec;
}

double cpu_s(clockid_t clock)
{
	struct timespec t;

	if (clock_gettime(clock, &t) < 0)
		die("clock_gettime");
	return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* CPU seconds all cores spent on anything but idling and waiting for disks. */
static double busy_s(void)
{
	unsigned long long user, nice, sys, idle, iowait, irq, softirq, steal;
	FILE *f = fopen("/proc/stat", "r");
	int got;

	if (!f)
		die("/proc/stat");
	got = fscanf(f, "cpu %llu %llu %llu %llu %llu %llu %llu %llu", &user, &nice, &sys, &idle,
		     &iowait, &irq, &softirq, &steal);
	fclose(f);
	if (got != 8)
		die("/proc/stat");
	return (double)(user + nice + sys + irq + softirq + steal) / (double)sysconf(_SC_CLK_TCK);
}

static void meter_read(struct meter *m, double sign)
{
	m->wall_s = sign * m->wall_s + (double)now_ns() * 1e-9;
	m->own_cpu_s = sign * m->own_cpu_s + cpu_s(CLOCK_PROCESS_CPUTIME_ID);
	m->peer_cpu_s = sign * m->peer_cpu_s + (m->peer_clock ? cpu_s(m->peer_clock) : 0);
	m->busy_s = sign * m->busy_s + busy_s();
}

void meter_start(struct meter *m, pid_t peer)
{
	*m = (struct meter){0};
	if (peer && clock_getcpuclockid(peer, &m->peer_clock) != 0)
		die("clock_getcpuclockid");
	meter_read(m, 0);
}

void meter_stop(struct meter *m)
{
	meter_read(m, -1);
}

void samples_init(struct samples *s)
{
	*s = (struct samples){.ns = calloc(SAMPLES_MAX, sizeof(*s->ns)), .kept_max = SAMPLES_MAX};
	if (!s->ns)
		die("samples");
}

void samples_add(struct samples *s, uint64_t ns)
{
	if (s->count < s->kept_max)
		s->ns[s->count] = ns;
	s->count++;
}

static size_t samples_kept(const struct samples *s)
{
	return s->count < s->kept_max ? s->count : s->kept_max;
}

void samples_merge(struct samples *to, struct samples *from)
{
	for (size_t i = 0; i < samples_kept(from); i++)
		samples_add(to, from->ns[i]);
	free(from->ns);
	*from = (struct samples){0};
}

static int compare_ns(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return (x > y) - (x < y);
}

char *map_pool(size_t len, int fd)
{
	int flags = fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED;
	char *p = mmap(NULL, len, PROT_READ | PROT_WRITE, flags, fd, 0);

	if (p == MAP_FAILED)
		die("mmap");
	return p;
}

pid_t fork_peer(void)
{
	pid_t pid = fork();

	if (pid < 0)
		die("fork");
	if (pid == 0 && prctl(PR_SET_PDEATHSIG, SIGKILL) < 0)
		die("prctl");
	return pid;
}

void report(const struct options *opt, const struct meter *m, struct samples *s, uint64_t ops,
	    double base_us)
{
	double gb = (double)ops * (double)opt->batch * (double)opt->block / 1e9;
	double cpu = m->own_cpu_s + m->peer_cpu_s;
	double others = (m->busy_s - cpu) / m->wall_s;
	size_t n = samples_kept(s);

	if (ops == 0 || n == 0) {
		fprintf(stderr, "limits: no operation ended within %g s\n", opt->secs);
		exit(1);
	}
	qsort(s->ns, n, sizeof(*s->ns), compare_ns);
	printf(
	    "{\"test\": \"%s\", \"GBps\": %.6g, \"ops\": %llu, \"p50_us\": %.4g, \"p99_us\": %.4g, "
	    "\"cpu_s_per_GB\": %.5g, \"ini_cpu_s_per_GB\": %.5g, \"tgt_cpu_s_per_GB\": %.5g, "
	    "\"cpu_us_per_op\": %.5g, \"base_us_per_op\": %.5g, \"others\": %.3f, \"err\": 0}\n",
	    opt->test, gb / m->wall_s, (unsigned long long)ops, (double)s->ns[n / 2] / 1e3,
	    (double)s->ns[n * 99 / 100] / 1e3, cpu / gb, m->own_cpu_s / gb, m->peer_cpu_s / gb,
	    cpu / (double)ops * 1e6, base_us, others > 0 ? others : 0.0);
}

static void copy_plain(char *dst, const char *src, size_t len)
{
	memcpy(dst, src, len);
}

#if defined(__x86_64__)
/*
 * Stores that bypass the caches save reading the destination first (one third of the traffic).
 * Source: Intel 64 and IA-32 Architectures Optimization Reference Manual, "Non-temporal stores".
 */
__attribute__((target("avx512f"))) static void copy_avx512(char *dst, const char *src, size_t len)
{
	size_t i;

	for (i = 0; i + 256 <= len; i += 256) {
		__m512i a = _mm512_loadu_si512(src + i), b = _mm512_loadu_si512(src + i + 64);
		__m512i c = _mm512_loadu_si512(src + i + 128),
			d = _mm512_loadu_si512(src + i + 192);

		_mm512_stream_si512((void *)(dst + i), a);
		_mm512_stream_si512((void *)(dst + i + 64), b);
		_mm512_stream_si512((void *)(dst + i + 128), c);
		_mm512_stream_si512((void *)(dst + i + 192), d);
	}
	_mm_sfence();
	memcpy(dst + i, src + i, len - i);
}

__attribute__((target("avx2"))) static void copy_avx2(char *dst, const char *src, size_t len)
{
	size_t i;

	for (i = 0; i + 128 <= len; i += 128) {
		__m256i a = _mm256_loadu_si256((const void *)(src + i));
		__m256i b = _mm256_loadu_si256((const void *)(src + i + 32));
		__m256i c = _mm256_loadu_si256((const void *)(src + i + 64));
		__m256i d = _mm256_loadu_si256((const void *)(src + i + 96));

		_mm256_stream_si256((void *)(dst + i), a);
		_mm256_stream_si256((void *)(dst + i + 32), b);
		_mm256_stream_si256((void *)(dst + i + 64), c);
		_mm256_stream_si256((void *)(dst + i + 96), d);
	}
	_mm_sfence();
	memcpy(dst + i, src + i, len - i);
}

/* Streaming stores need aligned targets: blocks are walked from a page boundary, so the block size
 * decides. */
static copy_fn *copy_pick(const struct options *opt)
{
	if (opt->is_plain || opt->block % 64 != 0)
		return copy_plain;
	if (__builtin_cpu_supports("avx512f"))
		return copy_avx512;
	return __builtin_cpu_supports("avx2") ? copy_avx2 : copy_plain;
}
#else
static copy_fn *copy_pick(const struct options *opt)
{
	(void)opt; /* glibc's memcpy already picks non-temporal stores where they exist */
	return copy_plain;
}
#endif

/* Operations by copying, between `near` (ours) and `far` (the peer's, or a second pool of ours). */
static void copy_loop(const struct options *opt, char *near, char *far, pid_t peer)
{
	copy_fn *copy = copy_pick(opt);
	size_t slots = opt->pool / opt->block, slot = 0;
	uint64_t start, last, ops = 0;
	struct samples s;
	struct meter m;

	samples_init(&s);
	meter_start(&m, peer);
	start = last = now_ns();
	do {
		uint64_t t;

		for (int k = 0; k < opt->batch; k++) {
			char *a = near + slot * opt->block, *b = far + slot * opt->block;

			copy(opt->is_write ? b : a, opt->is_write ? a : b, opt->block);
			slot = slot + 1 == slots ? 0 : slot + 1;
		}
		t = now_ns();
		samples_add(&s, t - last);
		last = t;
		ops++;
	} while ((double)(last - start) < opt->secs * 1e9);
	meter_stop(&m);
	report(opt, &m, &s, ops, 0);
}

static void run_memcpy(const struct options *opt)
{
	char *a = map_pool(opt->pool, -1), *b = map_pool(opt->pool, -1);

	memset(a, 1, opt->pool);
	memset(b, 2, opt->pool);
	copy_loop(opt, a, b, 0);
}

/* A peer that has touched its pool and then sleeps; `pool` is shared memory, or private memory at
 * the same address. */
static pid_t pool_peer(char *pool, size_t len)
{
	int ready[2];
	char byte = 1;
	pid_t pid;

	if (pipe(ready) < 0)
		die("pipe");
	pid = fork_peer();
	if (pid == 0) {
		memset(pool, 1, len);
		if (write(ready[1], &byte, 1) != 1)
			_exit(1);
		for (;;)
			pause();
	}
	close(ready[1]);
	if (read(ready[0], &byte, 1) != 1)
		die("the peer ended early");
	close(ready[0]);
	return pid;
}

static void peer_end(pid_t pid)
{
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
}

static void run_memfd(const struct options *opt)
{
	char *near = map_pool(opt->pool, -1), *far;
	int fd = memfd_create("limits", MFD_CLOEXEC);
	pid_t peer;

	if (fd < 0 || ftruncate(fd, (off_t)opt->pool) < 0)
		die("memfd");
	far = map_pool(opt->pool, fd);
	peer = pool_peer(far, opt->pool);
	/* Our own page tables are filled by touching; an engine's are after the first transfer. */
	if (madvise(far, opt->pool, MADV_POPULATE_WRITE) < 0)
		die("populate");
	memset(near, 1, opt->pool);
	copy_loop(opt, near, far, peer);
	peer_end(peer);
	close(fd);
}

static void vm_call(const struct options *opt, pid_t peer, struct iovec *near, struct iovec *far,
		    int n)
{
	ssize_t want = (ssize_t)((size_t)n * opt->block), got;
	unsigned long count = (unsigned long)n;

	if (opt->is_write)
		got = process_vm_writev(peer, near, count, far, count, 0);
	else
		got = process_vm_readv(peer, near, count, far, count, 0);
	if (got != want)
		die("process_vm");
}

static void run_process_vm(const struct options *opt)
{
	char *near = map_pool(opt->pool, -1), *far = map_pool(opt->pool, -1);
	pid_t peer = pool_peer(far, opt->pool);
	struct iovec li[IOV_CALL_MAX], ri[IOV_CALL_MAX];
	size_t slots = opt->pool / opt->block, slot = 0;
	uint64_t start, last, ops = 0;
	struct samples s;
	struct meter m;

	memset(near, 1, opt->pool);
	samples_init(&s);
	meter_start(&m, peer);
	start = last = now_ns();
	do {
		uint64_t t;

		for (int k = 0; k < opt->batch;) {
			int n = 0;

			for (; n < IOV_CALL_MAX && k < opt->batch; n++, k++) {
				li[n] = (struct iovec){near + slot * opt->block, opt->block};
				ri[n] = (struct iovec){far + slot * opt->block, opt->block};
				slot = slot + 1 == slots ? 0 : slot + 1;
			}
			vm_call(opt, peer, li, ri, n);
		}
		t = now_ns();
		samples_add(&s, t - last);
		last = t;
		ops++;
	} while ((double)(last - start) < opt->secs * 1e9);
	meter_stop(&m);
	report(opt, &m, &s, ops, 0);
	peer_end(peer);
}

static const struct {
	const char *name;
	void (*run)(const struct options *opt);
	const char *help;
} tests[] = {
    {"memcpy", run_memcpy, "copy within one process"},
    {"memfd", run_memfd, "copy to or from memory shared with another process"},
    {"process_vm", run_process_vm, "process_vm_readv/writev on another process's private memory"},
    {"tcp", run_tcp,
     "batches of descriptors + scatter/gather over loopback TCP (-T clients, or -n streams a "
     "batch)"},
    {"pingpong", run_pingpong, "one block there and back over TCP, sleeping or spinning (-S)"},
};

static void usage(void)
{
	fputs("usage: limits TEST [options]\n", stderr);
	for (size_t i = 0; i < sizeof(tests) / sizeof(tests[0]); i++)
		fprintf(stderr, "  %-11s %s\n", tests[i].name, tests[i].help);
	fputs("  -w write (default: read)     -s block bytes          -b items a batch\n"
	      "  -P pool bytes (256 MiB)      -d seconds              -r operations a second (0: "
	      "no pacing)\n"
	      "  -T client threads            -n streams a batch      -p first port\n"
	      "  -c plain copies (memcpy)     -S spin\n",
	      stderr);
	exit(2);
}

static double number(const char *text, double min, double max)
{
	char *end;
	double v = strtod(text, &end);

	if (end == text || *end || !(v >= min && v <= max)) {
		fprintf(stderr, "limits: %s: want a number of %.15g to %.15g\n", text, min, max);
		exit(2);
	}
	return v;
}

static void parse(struct options *opt, int argc, char **argv)
{
	const double size_max = 64.0 * (1ull << 30);
	int c;

	while ((c = getopt(argc, argv, "ws:b:P:d:r:T:n:p:cS")) != -1) {
		switch (c) {
		case 'w':
			opt->is_write = true;
			break;
		case 's':
			opt->block = (size_t)number(optarg, 1, size_max);
			break;
		case 'b':
			opt->batch = (int)number(optarg, 1, BATCH_MAX);
			break;
		case 'P':
			opt->pool = (size_t)number(optarg, 4096, size_max);
			break;
		case 'd':
			opt->secs = number(optarg, 0.001, 3600);
			break;
		case 'r':
			opt->rate = number(optarg, 0, 1e6);
			break;
		case 'T':
			opt->threads = (int)number(optarg, 1, LANES_MAX);
			break;
		case 'n':
			opt->streams = (int)number(optarg, 1, LANES_MAX);
			break;
		case 'p':
			opt->port = (int)number(optarg, 1024, 65000);
			break;
		case 'c':
			opt->is_plain = true;
			break;
		case 'S':
			opt->is_spinning = true;
			break;
		default:
			usage();
		}
	}
	if (optind != argc || (opt->threads > 1 && opt->streams > 1))
		usage();
	if (opt->block * (size_t)opt->batch * (size_t)opt->threads > opt->pool) {
		fputs("limits: block x batch x threads is larger than the pool\n", stderr);
		exit(2);
	}
}

int main(int argc, char **argv)
{
	struct options opt = {.block = 1 << 20,
			      .pool = 256u << 20,
			      .batch = 1,
			      .threads = 1,
			      .streams = 1,
			      .port = 17100,
			      .secs = 1};

	if (argc < 2)
		usage();
	opt.test = argv[1];
	parse(&opt, argc - 1, argv + 1);
	for (size_t i = 0; i < sizeof(tests) / sizeof(tests[0]); i++) {
		if (strcmp(tests[i].name, opt.test) == 0) {
			tests[i].run(&opt);
			return 0;
		}
	}
	usage();
}
