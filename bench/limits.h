/*
 * limits.h: what the raw programs share: their options, a meter for time and CPU of two processes,
 * and latency samples.
 *
 * These programs are denominators. They do what an engine must do at least (the same bytes, the
 * same sizes, cold memory) with nothing around it: no registration, no checks of foreign input (the
 * peer is our own fork), no failure handling.
 */
#ifndef BENCH_LIMITS_H
#define BENCH_LIMITS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <time.h>

enum { BATCH_MAX = 4096, LANES_MAX = 16 };

struct options {
	const char *test;
	bool is_write;
	bool is_plain;	  /* glibc memcpy in place of non-temporal stores */
	bool is_spinning; /* ping-pong: poll the socket instead of sleeping in it */
	size_t block;	  /* bytes of one operation, or of one item of a batch */
	size_t pool;	  /* bytes the operations walk through; larger than the caches means cold */
	int batch;	  /* items of one operation */
	int threads;	  /* independent clients */
	int streams;	  /* connections that share one operation */
	int port;	  /* first port to try; the next 200 are tried when it is taken */
	double rate;	  /* operations a second; 0: as fast as possible */
	double secs;
};

/* Latencies of one thread in ns. Capacity is fixed; further samples are counted but not kept. */
struct samples {
	uint64_t *ns;
	size_t count;
	size_t kept_max;
};

/* One measured interval: wall time, CPU of this process and of `peer`, CPU of everybody. */
struct meter {
	clockid_t peer_clock;
	double wall_s, own_cpu_s, peer_cpu_s, busy_s;
};

uint64_t now_ns(void);
double cpu_s(clockid_t clock);

/** Start measuring this process and `peer` (0: this process alone). */
void meter_start(struct meter *m, pid_t peer);
/** Turn the start values into differences. */
void meter_stop(struct meter *m);

void samples_init(struct samples *s);
void samples_add(struct samples *s, uint64_t ns);
/** Append the kept samples of `from` to `to`, and end `from`. */
void samples_merge(struct samples *to, struct samples *from);

/** Anonymous private memory (fd < 0) or a shared mapping of fd; not touched yet. Ends the program
 * on failure. */
char *map_pool(size_t len, int fd);

/** Fork a peer that dies with us. Returns 0 in the peer. */
pid_t fork_peer(void);

/** Print the message with errno and end the program. */
_Noreturn void die(const char *what);

/** Print one line of JSON: `ops` operations of opt->batch items moved in the interval of `m`;
 * `base_us` is what pacing alone costs. */
void report(const struct options *opt, const struct meter *m, struct samples *s, uint64_t ops,
	    double base_us);

/* limits_tcp.c */
void run_tcp(const struct options *opt);
void run_pingpong(const struct options *opt);

#endif
