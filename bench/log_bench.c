/*
 * log_bench.c: log_bench FOLDER OBJECTS BYTES DEPTH: the disk log alone. It puts and gets objects
 * of one size, opens the log again by its checkpoint and by a walk, and prints one line of JSON.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "base/clock.h"
#include "base/mem.h"
#include "log/dlog.h"

struct slot {
	struct mc_dlog_op op;
	struct iovec iov;
	char key[32];
};

struct run {
	struct mc_dlog *log;
	unsigned long next, objects, done;
	bool is_put;
};

static struct run run;

static double cpu_s(void)
{
	struct rusage u;

	mc_assert(getrusage(RUSAGE_SELF, &u) == 0);
	return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
	       (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

static void begin(struct slot *s)
{
	unsigned long nr = run.next++;
	int rc;

	s->op.key_len = (size_t)snprintf(s->key, sizeof(s->key), "bench-%lu", nr);
	s->op.gen = (struct mc_dlog_gen){1, nr + 1};
	rc = run.is_put ? mc_dlog_put(run.log, &s->op) : mc_dlog_get(run.log, &s->op);
	if (rc < 0) {
		fprintf(stderr, "log_bench: object %lu: %s\n", nr, mc_err_text(rc));
		exit(1);
	}
}

static void on_done(struct mc_dlog_op *op, int rc)
{
	if (rc < 0) {
		fprintf(stderr, "log_bench: %s\n", mc_err_text(rc));
		exit(1);
	}
	run.done++;
	if (run.next < run.objects)
		begin(op->user);
}

struct spent {
	double wall_s, cpu_s;
};

static struct spent all(struct slot *slots, unsigned depth, bool is_put)
{
	uint64_t begin_ns = mc_now_ns();
	double begin_cpu_s = cpu_s();

	run.next = run.done = 0;
	run.is_put = is_put;
	for (unsigned i = 0; i < depth && run.next < run.objects; i++)
		begin(&slots[i]);
	while (run.done < run.objects)
		(void)mc_dlog_reap(run.log, MC_NS_PER_S);
	return (struct spent){(double)(mc_now_ns() - begin_ns) / 1e9, cpu_s() - begin_cpu_s};
}

static double reopen(struct mc_dlog_conf *conf, bool no_checkpoint)
{
	struct mc_diag diag = {.text = ""};
	uint64_t begin_ns;

	mc_dlog_close(run.log);
	conf->no_checkpoint = no_checkpoint;
	begin_ns = mc_now_ns();
	if (mc_dlog_open(conf, &run.log, &diag) < 0) {
		fprintf(stderr, "log_bench: %s\n", diag.text);
		exit(1);
	}
	return (double)(mc_now_ns() - begin_ns) / 1e9;
}

int main(int argc, char **argv)
{
	struct mc_dlog_conf conf = {.disk = &mc_disk_real};
	size_t len = argc == 5 ? strtoul(argv[3], NULL, 10) : 0;
	unsigned depth = argc == 5 ? (unsigned)strtoul(argv[4], NULL, 10) : 0;
	double ckpt_s, walk_s;
	struct spent put, get;
	struct mc_dlog_stats stats, put_stats;
	struct slot *slots;
	uint8_t *memory;

	if (argc != 5 || depth == 0 || depth > 65536) {
		fprintf(stderr, "usage: log_bench FOLDER OBJECTS BYTES DEPTH\n");
		return 2;
	}
	conf.path = argv[1];
	run.objects = strtoul(argv[2], NULL, 10);
	slots = mc_calloc(depth, sizeof(*slots));
	memory = mc_aligned_alloc(4096, (size_t)depth * ((len + 4095) & ~4095ul) + 4096);
	mc_assert(slots && memory);
	for (unsigned i = 0; i < depth; i++) {
		slots[i].iov = (struct iovec){memory + i * ((len + 4095) & ~4095ul), len};
		memset(slots[i].iov.iov_base, (int)i + 1, len);
		slots[i].op = (struct mc_dlog_op){.key = slots[i].key,
						  .iov = &slots[i].iov,
						  .niov = 1,
						  .on_done = on_done,
						  .user = &slots[i]};
	}
	(void)reopen(&conf, false);
	put = all(slots, depth, true);
	mc_dlog_stats(run.log, &put_stats);
	ckpt_s = reopen(&conf, false);
	get = all(slots, depth, false);
	walk_s = reopen(&conf, true);
	mc_dlog_stats(run.log, &stats);
	printf("{\"objects\": %lu, \"bytes\": %zu, \"depth\": %u, \"put_GBps\": %.3f, "
	       "\"put_cpu_s\": %.3f, \"get_GBps\": %.3f, \"get_cpu_s\": %.3f, \"open_s\": %.3f, "
	       "\"walk_s\": %.3f, \"index_bytes_per_object\": %.1f, \"syncs\": %llu}\n",
	       run.objects, len, depth, (double)(run.objects * len) / put.wall_s / 1e9, put.cpu_s,
	       (double)(run.objects * len) / get.wall_s / 1e9, get.cpu_s, ckpt_s, walk_s,
	       (double)stats.index_bytes / (double)run.objects,
	       (unsigned long long)put_stats.syncs);
	mc_dlog_close(run.log);
	mc_free(slots);
	mc_free(memory);
	return 0;
}
