/*
 * ssd_test.c: a node with a disk, as the programs ship: more than its memory holds is read back,
 * also after a kill; what was removed is not; what was damaged is a miss, never other bytes.
 */
#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/mem.h"
#include "ledger.h"
#include "store_real.h"

#define KIB 1024ull
#define MIB (1024 * KIB)
#define LEN_MAX (6 * MIB)
#define PATIENCE_MS 30000u

static const char *client_program;

struct fix {
	struct real *c;
	struct mc_store *st;
	char dir[64];
	uint64_t bytes, quota;
	unsigned node;
	uint8_t *buf;
};

static void nap(unsigned ms)
{
	const struct timespec ts = {ms / 1000, (long)(ms % 1000) * 1000000};

	(void)nanosleep(&ts, NULL);
}

static const char *name(unsigned i, char text[16])
{
	(void)snprintf(text, 16, "o%u", i);
	return text;
}

static int put(struct fix *f, unsigned i, size_t len, uint64_t seed, unsigned flags)
{
	struct mc_store_part part = {f->buf, len};
	char text[16];
	struct mc_store_item item = {{name(i, text), strlen(text)}, &part, 1};
	int32_t ret = 1;

	ledger_fill(f->buf, len, seed);
	(void)!mc_store_put(f->st, &item, 1, NULL, flags, &ret);
	return ret;
}

/* @return bytes, which are right; or a code */
static int64_t get(struct fix *f, unsigned i, uint64_t seed)
{
	struct mc_store_part part = {f->buf, LEN_MAX};
	char text[16];
	struct mc_store_item item = {{name(i, text), strlen(text)}, &part, 1};
	int64_t ret = 1;

	memset(f->buf, 0, 64);
	(void)!mc_store_get(f->st, &item, 1, &ret);
	if (ret >= 0)
		assert_true(ledger_is_filled(f->buf, (size_t)ret, seed));
	return ret;
}

static int del(struct fix *f, unsigned i)
{
	char text[16];
	struct mc_store_key key = {name(i, text), strlen(text)};
	int32_t ret = 1;

	(void)!mc_store_remove(f->st, &key, 1, true, &ret);
	return ret;
}

static bool is_in(struct fix *f, unsigned i, unsigned kind)
{
	struct mc_store_replica replicas[MC_STORE_REPLICAS_MAX];
	char text[16];
	struct mc_store_key key = {name(i, text), strlen(text)};
	int n = mc_store_replicas(f->st, &key, replicas);

	for (int r = 0; r < n; r++) {
		if (replicas[r].kind == kind)
			return true;
	}
	return false;
}

static bool is_on_disk(struct fix *f, unsigned i)
{
	return is_in(f, i, MC_STORE_DISK);
}

/* All of [0, n) that `skip` leaves are on the disk. */
static void settle(struct fix *f, unsigned n)
{
	for (unsigned i = 0, ms = 0; i < n; ms += 20) {
		while (i < n && is_on_disk(f, i))
			i++;
		if (i < n && ms >= PATIENCE_MS)
			fail_msg("object %u does not get to the disk", i);
		if (i < n)
			nap(20);
	}
}

static void fix_start(struct fix *f)
{
	f->node = real_node_start(f->c, client_program, f->bytes, f->dir, f->quota);
}

static void fix_open_with(struct fix *f, uint64_t bytes, uint64_t quota, const char *const *flags)
{
	*f = (struct fix){.bytes = bytes, .quota = quota, .c = real_open_with(0, 0, 300, flags)};
	(void)snprintf(f->dir, sizeof(f->dir), "/tmp/mc-ssd-XXXXXX");
	assert_non_null(mkdtemp(f->dir));
	f->buf = mc_aligned_alloc(4096, LEN_MAX);
	assert_non_null(f->buf);
	fix_start(f);
	f->st = real_store(f->c, 20000, 0);
}

static void fix_open(struct fix *f, uint64_t bytes, uint64_t quota)
{
	fix_open_with(f, bytes, quota, NULL);
}

static void fix_close(struct fix *f)
{
	char command[128];

	mc_store_close(f->st);
	real_close(f->c);
	(void)snprintf(command, sizeof(command), "rm -rf '%s'", f->dir);
	assert_int_equal(system(command), 0);
	mc_free(f->buf);
}

/* Until object i is read: the node is back, and has said what it has. */
static void come_back(struct fix *f, unsigned i, uint64_t seed)
{
	for (unsigned ms = 0; get(f, i, seed) < 0; ms += 50) {
		if (ms >= PATIENCE_MS)
			fail_msg("object %u does not come back", i);
		nap(50);
	}
}

static size_t len_of(unsigned i)
{
	return i % 10 == 0 ? 1000 + i : i % 10 == 5 ? 5 * MIB + 3 * i : 512 * KIB + i;
}

static void more_than_memory_is_read_back_also_after_a_kill(void **state)
{
	enum { N = 110 }; /* 100 MB */
	struct fix f;

	fix_open(&f, 32 * MIB, 1024 * MIB);
	for (unsigned i = 0; i < N; i++)
		assert_int_equal(put(&f, i, len_of(i), i, 0), 0);
	for (unsigned i = 0; i < N; i++)
		assert_int_equal(get(&f, i, i), (int64_t)len_of(i));
	settle(&f, N);
	real_owner_kill(f.c, f.node);
	fix_start(&f);
	come_back(&f, 0, 0);
	for (unsigned i = 0; i < N; i++)
		assert_int_equal(get(&f, N - 1 - i, N - 1 - i), (int64_t)len_of(N - 1 - i));
	fix_close(&f);
	(void)state;
}

static void what_was_just_put_is_on_the_disk_after_a_stop(void **state)
{
	enum { N = 40 };
	struct fix f;

	fix_open(&f, 64 * MIB, 1024 * MIB);
	for (unsigned i = 0; i < N; i++)
		assert_int_equal(put(&f, i, 512 * KIB + i, i, 0), 0);
	real_owner_end(f.c, f.node);
	fix_start(&f);
	come_back(&f, 0, 0);
	for (unsigned i = 0; i < N; i++)
		assert_int_equal(get(&f, i, i), (int64_t)(512 * KIB + i));
	fix_close(&f);
	(void)state;
}

struct late {
	struct fix *f;
	int ret;
};

static void *put_one(void *arg)
{
	struct late *x = arg;

	x->ret = put(x->f, 1, 512 * KIB, 1, 0);
	return NULL;
}

static void what_is_committed_late_gets_to_the_disk(void **state)
{
	struct late late;
	pthread_t thread;
	struct fix f;

	fix_open(&f, 64 * MIB, 1024 * MIB);
	assert_int_equal(put(&f, 0, 1000, 0, 0), 0);
	real_stop(&f.c->m);
	late = (struct late){&f, 1};
	assert_int_equal(pthread_create(&thread, NULL, put_one, &late), 0);
	nap(1000); /* it is sealed, and its commit waits */
	assert_int_equal(kill(f.c->m.pid, SIGCONT), 0);
	assert_int_equal(pthread_join(thread, NULL), 0);
	assert_int_equal(late.ret, 0);
	settle(&f, 2);
	real_owner_kill(f.c, f.node);
	fix_start(&f);
	come_back(&f, 0, 0);
	assert_int_equal(get(&f, 1, 1), 512 * (int64_t)KIB);
	fix_close(&f);
	(void)state;
}

static unsigned count_on_disk(struct fix *f, unsigned n)
{
	unsigned k = 0;

	for (unsigned i = 0; i < n; i++)
		k += is_on_disk(f, i);
	return k;
}

static void the_disk_gets_what_leaves_memory_when_the_master_wants_that(void **state)
{
	static const char *const flags[] = {"--offload_on_evict=true", NULL};
	enum { FEW = 20, N = 150 };
	struct fix f;

	fix_open_with(&f, 32 * MIB, 1024 * MIB, flags);
	for (unsigned i = 0; i < FEW; i++)
		assert_int_equal(put(&f, i, 512 * KIB + i, i, 0), 0);
	nap(1000); /* several times as long as it would take */
	assert_int_equal(count_on_disk(&f, FEW), 0);
	for (unsigned i = FEW; i < N; i++)
		assert_int_equal(put(&f, i, 512 * KIB + i, i, 0), 0);
	assert_true(count_on_disk(&f, N) < N);
	for (unsigned i = 0; i < N; i++)
		assert_int_equal(get(&f, i, i), (int64_t)(512 * KIB + i));
	real_owner_end(f.c, f.node); /* leaves memory, too */
	fix_start(&f);
	come_back(&f, 0, 0);
	assert_int_equal(count_on_disk(&f, N), N);
	for (unsigned i = 0; i < N; i++)
		assert_int_equal(get(&f, i, i), (int64_t)(512 * KIB + i));
	fix_close(&f);
	(void)state;
}

/* Objects that a node finds on its disk when it starts; read until `kept`, or some times. */
static void read_after_a_start(const char *const *flags, bool is_kept)
{
	enum { N = 10 };
	struct fix f;

	fix_open_with(&f, 32 * MIB, 1024 * MIB, flags);
	for (unsigned i = 0; i < N; i++)
		assert_int_equal(put(&f, i, 512 * KIB + i, i, 0), 0);
	settle(&f, N);
	real_owner_kill(f.c, f.node);
	fix_start(&f);
	come_back(&f, N - 1, N - 1);
	for (unsigned i = 0; i < N; i++) {
		unsigned ms = 0;

		assert_false(is_in(&f, i, MC_STORE_MEMORY) && i < N - 1);
		for (; ms < 100 || (is_kept && !is_in(&f, i, MC_STORE_MEMORY)); ms += 20) {
			assert_true(ms < PATIENCE_MS);
			assert_int_equal(get(&f, i, i), (int64_t)(512 * KIB + i));
			nap(20);
		}
		assert_int_equal(is_in(&f, i, MC_STORE_MEMORY), is_kept);
	}
	fix_close(&f);
}

static void what_is_read_often_is_promoted_when_the_master_wants_that(void **state)
{
	static const char *const flags[] = {"--promotion_on_hit=true",
					    "--promotion_max_per_heartbeat=100", NULL};

	read_after_a_start(flags, true);
	read_after_a_start(NULL, false);
	(void)state;
}

static void what_was_removed_or_replaced_stays_so_after_a_kill(void **state)
{
	enum { N = 60, EARLY = 200 };
	struct fix f;

	fix_open(&f, 32 * MIB, 512 * MIB);
	for (unsigned i = 0; i < N; i++)
		assert_int_equal(put(&f, i, 100 * KIB, i, 0), 0);
	settle(&f, N);
	for (unsigned i = 0; i < N; i++) {
		if (i % 3 == 1)
			assert_int_equal(del(&f, i), 0);
		else if (i % 3 == 2)
			assert_int_equal(put(&f, i, 50 * KIB, 1000 + i, MC_STORE_UPSERT), 0);
	}
	/* Removed before, while and after they are written. */
	for (unsigned i = 0; i < EARLY; i++)
		assert_int_equal(put(&f, N + i, 20 * KIB, i, 0), 0);
	for (unsigned i = 0; i < EARLY; i++) {
		nap(2);
		assert_int_equal(del(&f, N + i), 0);
	}
	for (unsigned i = 2; i < N; i += 3)
		while (!is_on_disk(&f, i))
			nap(20);
	real_owner_kill(f.c, f.node);
	fix_start(&f);
	come_back(&f, 0, 0);
	for (unsigned i = 0; i < N; i++) {
		if (i % 3 == 0)
			assert_int_equal(get(&f, i, i), 100 * KIB);
		else if (i % 3 == 1)
			assert_int_equal(get(&f, i, i), MC_STORE_OBJECT_NOT_FOUND);
		else
			assert_int_equal(get(&f, i, 1000 + i), 50 * KIB);
	}
	for (unsigned i = 0; i < EARLY; i++)
		assert_int_equal(get(&f, N + i, i), MC_STORE_OBJECT_NOT_FOUND);
	fix_close(&f);
	(void)state;
}

/* One byte in every MiB of every file. @return how many */
static unsigned damage(const char *dir)
{
	DIR *d = opendir(dir);
	struct dirent *entry;
	unsigned n = 0;
	char path[512];
	struct stat st;
	uint8_t byte;
	int fd;

	assert_non_null(d);
	while ((entry = readdir(d)) != NULL) {
		(void)snprintf(path, sizeof(path), "%s/%s", dir, entry->d_name);
		fd = open(path, O_RDWR | O_CLOEXEC);
		if (fd < 0)
			continue;
		assert_int_equal(fstat(fd, &st), 0);
		for (off_t at = 700001; at < st.st_size; at += MIB) {
			assert_int_equal(pread(fd, &byte, 1, at), 1);
			byte ^= 0x10;
			assert_int_equal(pwrite(fd, &byte, 1, at), 1);
			n++;
		}
		(void)close(fd);
	}
	(void)closedir(d);
	return n;
}

static void what_was_damaged_is_a_miss(void **state)
{
	enum { N = 60 };
	struct fix f;
	unsigned hits = 0, misses = 0;

	fix_open(&f, 32 * MIB, 512 * MIB);
	for (unsigned i = 0; i < N; i++)
		assert_int_equal(put(&f, i, 300 * KIB, i, 0), 0);
	settle(&f, N);
	real_owner_kill(f.c, f.node);
	assert_true(damage(f.dir) > 5);
	fix_start(&f);
	assert_int_equal(put(&f, N, 1000, N, 0), 0); /* the node is back */
	for (unsigned i = 0; i < N; i++) {
		int64_t got = get(&f, i, i);

		if (got == 300 * (int64_t)KIB)
			hits++;
		else
			misses++;
		assert_true(got == 300 * (int64_t)KIB || got < 0);
	}
	assert_true(hits > 10);
	assert_true(misses > 3);
	fix_close(&f);
	(void)state;
}

static void a_full_disk_lets_the_oldest_go(void **state)
{
	enum { N = 250 };
	struct fix f;
	unsigned hits = 0;

	fix_open(&f, 16 * MIB, 64 * MIB);
	for (unsigned i = 0; i < N; i++)
		assert_int_equal(put(&f, i, 512 * KIB, i, 0), 0);
	for (unsigned i = 0; i < N; i++) {
		int64_t got = get(&f, i, i);

		assert_true(got == 512 * (int64_t)KIB || got == MC_STORE_OBJECT_NOT_FOUND);
		hits += got > 0;
	}
	assert_true(hits >= 48); /* 24 MiB: more than the memory takes */
	assert_true(hits < N);
	fix_close(&f);
	(void)state;
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(more_than_memory_is_read_back_also_after_a_kill),
	    cmocka_unit_test(what_was_just_put_is_on_the_disk_after_a_stop),
	    cmocka_unit_test(what_is_committed_late_gets_to_the_disk),
	    cmocka_unit_test(the_disk_gets_what_leaves_memory_when_the_master_wants_that),
	    cmocka_unit_test(what_is_read_often_is_promoted_when_the_master_wants_that),
	    cmocka_unit_test(what_was_removed_or_replaced_stays_so_after_a_kill),
	    cmocka_unit_test(what_was_damaged_is_a_miss),
	    cmocka_unit_test(a_full_disk_lets_the_oldest_go),
	};

	if (argc != 3) {
		(void)fprintf(stderr, "usage: ssd_e2e MOONCAKE_MASTER MOONCAKE_CLIENT\n");
		return 2;
	}
	real_init(argv[1]);
	client_program = argv[2];
	return cmocka_run_group_tests(tests, NULL, NULL);
}
