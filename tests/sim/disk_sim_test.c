/*
 * disk_sim_test.c: the disk in memory keeps its word: what was synced outlives a power cut, what
 * was not may be lost or torn, and nothing else appears. The way to replace a file for good is cut
 * at every call.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"
#include "sim/fault_disk.h"
#include "sim/mem_disk.h"

#define SPACE 100000u
#define LEN 3000u /* of a file; no multiple of a sector */
#define FILE_RW (MC_DISK_READ | MC_DISK_WRITE | MC_DISK_CREATE)
#define ROUNDS 200u

static struct {
	struct mem_disk *mem;
	const struct mc_disk *disk;
	struct mc_rand rand;
	uint8_t old[LEN], new[LEN], seen[LEN + 1];
} t;

static int setup(void **state)
{
	const char *text = getenv("SEED");
	uint64_t seed = text ? strtoull(text, NULL, 0) : mc_now_ns();

	(void)state;
	print_message("# seed %llu: SEED=… repeats it\n", (unsigned long long)seed);
	mc_rand_seed(&t.rand, seed);
	memset(t.old, 'o', LEN);
	memset(t.new, 'n', LEN);
	t.mem = mem_disk_open(SPACE);
	t.disk = mem_disk_ops(t.mem);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	mem_disk_close(t.mem);
	return 0;
}

static struct mc_disk_file *open_file(const char *path)
{
	struct mc_disk_file *f;

	assert_int_equal(t.disk->open(t.disk, path, FILE_RW, 0600, &f), 0);
	return f;
}

/* @return the length of what `path` holds now, or -errno; the bytes are in t.seen */
static int look(const char *path)
{
	struct mc_disk_file *f;
	int rc = t.disk->open(t.disk, path, MC_DISK_READ, 0, &f);

	if (rc < 0)
		return rc;
	rc = (int)t.disk->read(f, t.seen, sizeof(t.seen), 0);
	t.disk->close(f);
	return rc;
}

static void what_was_synced_outlives_a_cut(void **state)
{
	struct mc_disk_file *f = open_file(MEM_DISK_DIR "/a");

	assert_int_equal(t.disk->write(f, t.old, LEN, 0), LEN);
	assert_int_equal(t.disk->sync(f, true), 0);
	assert_int_equal(t.disk->sync_dir(t.disk, MEM_DISK_DIR), 0);
	mem_disk_cut(t.mem, NULL);
	assert_int_equal(t.disk->read(f, t.seen, 1, 0), -EIO);
	t.disk->close(f);
	assert_int_equal(look(MEM_DISK_DIR "/a"), LEN);
	assert_memory_equal(t.seen, t.old, LEN);
	(void)state;
}

static void what_was_not_synced_is_gone(void **state)
{
	struct mc_disk_file *f = open_file(MEM_DISK_DIR "/a");

	assert_int_equal(t.disk->write(f, t.old, LEN, 0), LEN);
	assert_int_equal(t.disk->sync_dir(t.disk, MEM_DISK_DIR), 0);
	mem_disk_cut(t.mem, NULL);
	t.disk->close(f);
	assert_int_equal(look(MEM_DISK_DIR "/a"), 0); /* its name was durable, its bytes were not */
	f = open_file(MEM_DISK_DIR "/b");
	assert_int_equal(t.disk->write(f, t.old, LEN, 0), LEN);
	assert_int_equal(t.disk->sync(f, false), 0);
	mem_disk_cut(t.mem, NULL);
	t.disk->close(f);
	assert_int_equal(look(MEM_DISK_DIR "/b"), -ENOENT); /* the other way round */
	(void)state;
}

static void a_torn_write_is_old_or_new_by_whole_sectors(void **state)
{
	struct mc_disk_file *f = open_file(MEM_DISK_DIR "/a");
	unsigned olds = 0, news = 0;

	assert_int_equal(t.disk->sync_dir(t.disk, MEM_DISK_DIR), 0);
	for (unsigned i = 0; i < ROUNDS; i++) {
		assert_int_equal(t.disk->write(f, t.old, LEN, 0), LEN);
		assert_int_equal(t.disk->sync(f, true), 0);
		assert_int_equal(t.disk->write(f, t.new, LEN, 0), LEN);
		mem_disk_cut(t.mem, &t.rand);
		t.disk->close(f);
		assert_int_equal(look(MEM_DISK_DIR "/a"), LEN);
		for (unsigned k = 0; k < LEN; k++) {
			assert_true(t.seen[k] == 'o' || t.seen[k] == 'n');
			assert_int_equal(t.seen[k], t.seen[k - k % MEM_DISK_SECTOR]);
			olds += t.seen[k] == 'o';
			news += t.seen[k] == 'n';
		}
		f = open_file(MEM_DISK_DIR "/a");
	}
	t.disk->close(f);
	assert_true(olds > 0 && news > 0);
	(void)state;
}

static void a_full_disk_takes_what_fits_and_then_nothing(void **state)
{
	struct mc_disk_file *f = open_file(MEM_DISK_DIR "/a");
	uint8_t byte = 1;

	assert_int_equal(t.disk->truncate(f, SPACE + 1), -ENOSPC);
	assert_int_equal(t.disk->truncate(f, SPACE - 10), 0);
	assert_int_equal(t.disk->write(f, t.old, LEN, SPACE - 10), 10);
	assert_int_equal(t.disk->write(f, &byte, 1, SPACE), -ENOSPC);
	assert_int_equal(t.disk->write(f, &byte, 1, 0), 1);
	assert_int_equal(t.disk->truncate(f, 0), 0);
	assert_int_equal(t.disk->write(f, t.old, LEN, 0), LEN);
	t.disk->close(f);
	(void)state;
}

static void a_direct_file_insists_on_sectors(void **state)
{
	static _Alignas(MEM_DISK_SECTOR) uint8_t buf[2 * MEM_DISK_SECTOR];
	struct mc_disk_file *f;

	assert_int_equal(t.disk->open(t.disk, MEM_DISK_DIR "/a", FILE_RW | MC_DISK_DIRECT, 0, &f),
			 0);
	assert_int_equal(t.disk->write(f, buf, MEM_DISK_SECTOR, MEM_DISK_SECTOR), MEM_DISK_SECTOR);
	assert_int_equal(t.disk->write(f, buf, MEM_DISK_SECTOR, 1), -EINVAL);
	assert_int_equal(t.disk->write(f, buf + 1, MEM_DISK_SECTOR, 0), -EINVAL);
	assert_int_equal(t.disk->read(f, buf, MEM_DISK_SECTOR + 1, 0), -EINVAL);
	assert_int_equal(t.disk->read(f, buf, 2 * MEM_DISK_SECTOR, 0), 2 * MEM_DISK_SECTOR);
	t.disk->close(f);
	(void)state;
}

static int write_whole(const struct mc_disk *disk, const char *path, const uint8_t *bytes)
{
	struct mc_disk_file *f;
	int rc = disk->open(disk, path, FILE_RW, 0600, &f);

	if (rc < 0)
		return rc;
	rc = disk->truncate(f, 0);
	if (rc == 0)
		rc = (int)disk->write(f, bytes, LEN, 0);
	if (rc == LEN)
		rc = disk->sync(f, true);
	disk->close(f);
	return rc;
}

#define REPLACE_CALLS 6u

/* New file, sync, rename, sync of the directory. */
static int replace(const struct mc_disk *disk)
{
	int rc = write_whole(disk, MEM_DISK_DIR "/new", t.new);

	if (rc == 0)
		rc = disk->rename(disk, MEM_DISK_DIR "/new", MEM_DISK_DIR "/a");
	return rc < 0 ? rc : disk->sync_dir(disk, MEM_DISK_DIR);
}

static void a_file_replaced_by_rename_is_whole_at_every_cut(void **state)
{
	struct fault_disk fault;
	unsigned olds = 0, news = 0;

	fault_disk_init(&fault, t.disk);
	for (unsigned i = 0; i < ROUNDS; i++) {
		bool is_done = false;

		assert_int_equal(write_whole(t.disk, MEM_DISK_DIR "/a", t.old), 0);
		assert_int_equal(t.disk->sync_dir(t.disk, MEM_DISK_DIR), 0);
		fault.calls = 0;
		fault.fail_nr = i % (REPLACE_CALLS + 1); /* the power goes with this call */
		fault.fail_errno = EIO;
		if (replace(&fault.disk) == 0) {
			assert_int_equal(fault.fail_nr, REPLACE_CALLS);
			assert_int_equal(fault.calls, REPLACE_CALLS);
			is_done = true;
		}
		mem_disk_cut(t.mem, &t.rand);
		assert_int_equal(look(MEM_DISK_DIR "/a"), LEN);
		if (is_done)
			assert_int_equal(t.seen[0], 'n');
		for (unsigned k = 1; k < LEN; k++)
			assert_int_equal(t.seen[k], t.seen[0]);
		olds += t.seen[0] == 'o';
		news += t.seen[0] == 'n';
	}
	assert_true(olds > 0 && news > 0);
	(void)state;
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
	    T(what_was_synced_outlives_a_cut),
	    T(what_was_not_synced_is_gone),
	    T(a_torn_write_is_old_or_new_by_whole_sectors),
	    T(a_full_disk_takes_what_fits_and_then_nothing),
	    T(a_direct_file_insists_on_sectors),
	    T(a_file_replaced_by_rename_is_whole_at_every_cut),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
