/*
 * transfer_engine_bench.c: the benchmark of two processes, with upstream's options and closing
 * line.
 *
 * The target registers a buffer and waits. The initiator's threads move batches of blocks between
 * their own parts of the two buffers, each thread one batch at a time, for `duration` seconds.
 * Unlike upstream's it counts only whole batches up to the bell, tells the latency of a batch, ends
 * with a clear error when a transfer fails, and can check every byte (--verify).
 */
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <mooncake/engine.h>

#include "base/clock.h"
#include "base/mem.h"
#include "base/stats.h"
#include "cli/args.h"
#include "cli/bench_conf.h"

struct bench {
	struct mc_bench_conf conf;
	struct mc_engine *eng;
	char *buffer; /* of the engine */
	int32_t segment;
	uint64_t remote;	  /* the target's buffer */
	_Atomic bool is_over;	  /* the bell, or a failure */
	_Atomic uint64_t batches; /* whole ones */
	_Atomic uint64_t wrong;	  /* bytes that --verify found different */
	struct mc_hist latency;	  /* ns a batch */
	pthread_mutex_t lock;	  /* guards diag */
	struct mc_diag diag;	  /* the first failure; "" for none */
};

struct worker {
	struct bench *bench;
	uint64_t index;
	pthread_t thread;
	struct mc_transfer *transfer;
	struct mc_iov *local, *remote;
};

/* ---- one batch ---- */

static void batch_prepare(struct worker *w)
{
	const struct mc_bench_conf *conf = &w->bench->conf;

	for (int64_t i = 0; i < conf->batch_size; i++) {
		uint64_t at = conf->block_size * (w->index + (uint64_t)(i * conf->threads));

		w->local[i] = (struct mc_iov){(uintptr_t)w->bench->buffer + at, conf->block_size};
		w->remote[i] = (struct mc_iov){w->bench->remote + at, conf->block_size};
		w->transfer[i] = (struct mc_transfer){
		    .segment = w->bench->segment,
		    .nlocal = 1,
		    .nremote = 1,
		    .local = &w->local[i],
		    .remote = &w->remote[i],
		};
	}
}

static int batch_move(struct worker *w, uint8_t op)
{
	struct bench *b = w->bench;
	struct mc_group group = {
	    .size = sizeof(group),
	    .n = (uint32_t)b->conf.batch_size,
	    .transfers = w->transfer,
	    .priority = MC_PRIO_NORMAL,
	};
	struct mc_diag diag = {.text = ""};
	uint64_t start = mc_now_ns();
	int rc;

	for (uint32_t i = 0; i < group.n; i++)
		w->transfer[i].op = op;
	rc = mc_transfer_sync(b->eng, &group, &diag);
	if (rc == 0) {
		mc_hist_add(&b->latency, mc_now_ns() - start);
		atomic_fetch_add_explicit(&b->batches, 1, memory_order_relaxed);
		return 0;
	}
	pthread_mutex_lock(&b->lock);
	if (!b->diag.text[0])
		(void)snprintf(b->diag.text, sizeof(b->diag.text), "%s",
			       diag.text[0] ? diag.text : mc_err_text(rc));
	pthread_mutex_unlock(&b->lock);
	atomic_store(&b->is_over, true);
	return rc;
}

/* What word i of a block holds in round `seed`: a mix in the manner of splitmix64 (S. Vigna). */
static uint64_t pattern(uint64_t seed, uint64_t i)
{
	uint64_t x = seed + i * 0x9e3779b97f4a7c15ull;

	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
	return x ^ (x >> 31);
}

static void block_fill(void *block, uint64_t len, uint64_t seed)
{
	for (uint64_t at = 0; at < len; at += 8) {
		uint64_t word = pattern(seed, at / 8);

		memcpy((char *)block + at, &word, mc_min(len - at, 8ull));
	}
}

static uint64_t block_wrong(const void *block, uint64_t len, uint64_t seed)
{
	uint64_t wrong = 0;

	for (uint64_t at = 0; at < len; at += 8) {
		uint64_t word = pattern(seed, at / 8);

		if (memcmp((const char *)block + at, &word, mc_min(len - at, 8ull)) != 0)
			wrong += mc_min(len - at, 8ull);
	}
	return wrong;
}

/* Write a pattern, read it into the buffer's other half, compare. */
static int batch_verify(struct worker *w, uint64_t round)
{
	struct bench *b = w->bench;
	uint64_t half = b->conf.buffer_size / 2, len = b->conf.block_size, wrong = 0;
	uint64_t n = (uint64_t)b->conf.batch_size, seed = (round * 1024 + w->index) << 20;
	int rc;

	for (uint64_t i = 0; i < n; i++)
		block_fill(b->buffer + (w->local[i].addr - (uintptr_t)b->buffer), len, seed + i);
	rc = batch_move(w, MC_WRITE);
	for (uint64_t i = 0; i < n; i++)
		w->local[i].addr += half;
	if (rc == 0)
		rc = batch_move(w, MC_READ);
	for (uint64_t i = 0; i < n; i++) {
		if (rc == 0)
			wrong += block_wrong(b->buffer + (w->local[i].addr - (uintptr_t)b->buffer),
					     len, seed + i);
		w->local[i].addr -= half;
	}
	atomic_fetch_add(&b->wrong, wrong);
	return rc;
}

static void *worker_run(void *arg)
{
	struct worker *w = arg;
	struct bench *b = w->bench;
	uint8_t op = b->conf.operation == MC_BENCH_READ ? MC_READ : MC_WRITE;
	int rc = 0;

	for (uint64_t round = 1;
	     rc == 0 && !atomic_load_explicit(&b->is_over, memory_order_relaxed); round++)
		rc = b->conf.is_verifying ? batch_verify(w, round) : batch_move(w, op);
	return NULL;
}

/* ---- initiator ---- */

static void worker_close(struct worker *w)
{
	mc_free(w->transfer);
	mc_free(w->local);
	mc_free(w->remote);
}

static int worker_open(struct worker *w, struct bench *b, uint64_t index)
{
	size_t n = (size_t)b->conf.batch_size;

	w->bench = b;
	w->index = index;
	w->transfer = mc_calloc(n, sizeof(*w->transfer));
	w->local = mc_calloc(n, sizeof(*w->local));
	w->remote = mc_calloc(n, sizeof(*w->remote));
	if (!w->transfer || !w->local || !w->remote)
		return -MC_E_NOMEM;
	batch_prepare(w);
	return pthread_create(&w->thread, NULL, worker_run, w) == 0 ? 0 : -MC_E_LIMIT;
}

static double batch_bytes(const struct bench *b)
{
	return (double)b->conf.block_size * (double)b->conf.batch_size;
}

/* Until the bell; on a terminal with a line that goes on. */
static void bench_wait(struct bench *b, uint64_t start_ns)
{
	uint64_t end_ns = start_ns + (uint64_t)b->conf.duration * MC_NS_PER_S, before = 0;
	bool is_shown = isatty(STDERR_FILENO) == 1;

	for (uint64_t now = start_ns; now < end_ns && !atomic_load(&b->is_over);
	     now = mc_now_ns()) {
		struct timespec nap = {.tv_nsec = 200000000};
		uint64_t batches = atomic_load_explicit(&b->batches, memory_order_relaxed);

		if (is_shown)
			(void)fprintf(stderr, "\r%5.1f of %" PRId64 " s, %.2f %s/s ",
				      (double)(now - start_ns) / 1e9, b->conf.duration,
				      (double)(batches - before) * batch_bytes(b) * 5 /
					  mc_bench_unit_bytes(&b->conf),
				      b->conf.report_unit);
		before = batches;
		if (end_ns - now < (uint64_t)nap.tv_nsec)
			nap.tv_nsec = (long)(end_ns - now);
		(void)nanosleep(&nap, NULL);
	}
	if (is_shown)
		(void)fprintf(stderr, "\r\033[K");
	atomic_store(&b->is_over, true);
}

static void report(const struct bench *b, double seconds)
{
	static const struct {
		const char *name;
		double q;
	} quantiles[] = {{"p50", 0.5}, {"p90", 0.9}, {"p99", 0.99}, {"p999", 0.999}, {"max", 1.0}};
	uint64_t batches = atomic_load(&b->batches);
	double bytes = (double)batches * batch_bytes(b);
	double rate = bytes / seconds / mc_bench_unit_bytes(&b->conf);
	bool is_json = b->conf.is_json;

	if (is_json)
		printf("{\"operation\": \"%s\", \"threads\": %" PRId64 ", \"batch_size\": %" PRId64
		       ", \"block_size\": %" PRIu64 ", \"duration_s\": %.6f, \"batches\": %" PRIu64
		       ", \"bytes\": %.0f, \"bytes_per_s\": %.0f, \"batch_latency_us\": {",
		       b->conf.operation == MC_BENCH_READ ? "read" : "write", b->conf.threads,
		       b->conf.batch_size, b->conf.block_size, seconds, batches, bytes,
		       bytes / seconds);
	else
		printf("Batch latency us:");
	for (size_t i = 0; i < MC_ARRAY_LEN(quantiles); i++) {
		double us = (double)mc_hist_quantile(&b->latency, quantiles[i].q) / 1e3;

		if (is_json)
			printf("%s\"%s\": %.1f", i ? ", " : "", quantiles[i].name, us);
		else
			printf(" %s %.1f", quantiles[i].name, us);
	}
	if (is_json && b->conf.is_verifying)
		printf("}, \"wrong_bytes\": %" PRIu64 "}\n", atomic_load(&b->wrong));
	else if (is_json)
		printf("}}\n");
	else
		printf("\nTest completed: duration %.*f, batch count %" PRIu64
		       ", throughput %.*f %s/s\n",
		       (int)b->conf.report_precision, seconds, batches,
		       (int)b->conf.report_precision, rate, b->conf.report_unit);
}

static int initiator_run(struct bench *b)
{
	struct worker *workers = mc_calloc((size_t)b->conf.threads, sizeof(*workers));
	uint64_t start = mc_now_ns();
	int64_t started = 0;
	int rc = workers ? 0 : -MC_E_NOMEM;

	while (rc == 0 && started < b->conf.threads) {
		rc = worker_open(&workers[started], b, (uint64_t)started);
		if (rc == 0)
			started++;
		else
			worker_close(&workers[started]);
	}
	if (rc == 0)
		bench_wait(b, start);
	atomic_store(&b->is_over, true);
	for (int64_t i = 0; i < started; i++) {
		(void)pthread_join(workers[i].thread, NULL);
		worker_close(&workers[i]);
	}
	mc_free(workers);
	if (rc < 0)
		mc_diag_set(&b->diag, "%" PRId64 " threads do not start: %s", b->conf.threads,
			    mc_err_text(rc));
	if (b->diag.text[0])
		return -MC_E_IO;
	report(b, (double)(mc_now_ns() - start) / 1e9);
	if (atomic_load(&b->wrong) == 0)
		return 0;
	mc_diag_set(&b->diag, "%" PRIu64 " bytes came back wrong", atomic_load(&b->wrong));
	return -MC_E_CORRUPT;
}

static int initiator(struct bench *b)
{
	int rc = mc_segment_open(b->eng, b->conf.segment_id, 0, &b->diag, &b->segment);

	if (rc < 0) {
		mc_diag_wrap(&b->diag, "segment \"%s\"", b->conf.segment_id);
		return rc;
	}
	rc = mc_segment_first_addr(b->eng, b->segment, &b->remote);
	if (rc < 0 || b->remote == 0) {
		mc_diag_set(&b->diag, "segment \"%s\" has no registered buffer",
			    b->conf.segment_id);
		return -MC_E_NOENT;
	}
	return initiator_run(b);
}

/* ---- both ---- */

/* The target serves until a signal; no thread of the process may take it before. */
static int target(struct bench *b, const sigset_t *stop)
{
	int signo;

	if (b->conf.is_json)
		printf("{\"segment_id\": \"%s\", \"buffer_size\": %" PRIu64 "}\n",
		       mc_engine_name(b->eng), b->conf.buffer_size);
	else
		printf("Target serves %" PRIu64 " bytes; on the other end: "
		       "transfer_engine_bench --segment_id %s\n",
		       b->conf.buffer_size, mc_engine_name(b->eng));
	(void)fflush(stdout);
	(void)sigwait(stop, &signo);
	return 0;
}

static int bench_open(struct bench *b)
{
	struct mc_engine_opts opts = {
	    .size = sizeof(opts),
	    .name = b->conf.local_server_name,
	    .metadata = b->conf.metadata_server,
	    .protocol = mc_bench_protocol_name(&b->conf),
	    .devices = b->conf.device_name,
	};
	int rc = mc_engine_open(&opts, &b->diag, &b->eng);

	if (rc < 0)
		return rc;
	b->buffer = mc_mem_alloc(b->eng, b->conf.buffer_size);
	if (!b->buffer) {
		mc_diag_set(&b->diag, "--buffer_size: no memory for %" PRIu64 " bytes",
			    b->conf.buffer_size);
		return -MC_E_NOMEM;
	}
	if (b->conf.init_mem)
		memset(b->buffer, b->conf.mode == MC_BENCH_TARGET ? 0x5a : 0xa5,
		       b->conf.buffer_size);
	return 0;
}

int main(int argc, char **argv)
{
	struct bench *b = mc_calloc(1, sizeof(*b));
	sigset_t stop;
	int rc;

	if (!b)
		return 1;
	pthread_mutex_init(&b->lock, NULL);
	rc =
	    mc_args_parse(mc_bench_opts, mc_bench_opts_count, NULL, argc, argv, &b->conf, &b->diag);
	if (rc > 0)
		mc_args_help(mc_bench_opts, mc_bench_opts_count,
			     "usage: transfer_engine_bench --mode target, then elsewhere\n"
			     "       transfer_engine_bench --segment_id NAME");
	if (rc == 0)
		rc = mc_bench_conf_check(&b->conf, &b->diag);
	if (rc == 0) {
		sigemptyset(&stop);
		sigaddset(&stop, SIGINT);
		sigaddset(&stop, SIGTERM);
		if (b->conf.mode == MC_BENCH_TARGET)
			(void)pthread_sigmask(SIG_BLOCK, &stop, NULL);
		rc = bench_open(b);
		if (rc == 0)
			rc = b->conf.mode == MC_BENCH_TARGET ? target(b, &stop) : initiator(b);
	}
	if (rc < 0)
		(void)fprintf(stderr, "transfer_engine_bench: %s\n", b->diag.text);
	mc_engine_close(b->eng);
	pthread_mutex_destroy(&b->lock);
	mc_free(b);
	return rc < 0 ? 1 : 0;
}
