/*
 * dlog_test.c: the disk log on the machine's own disk: what was put is got, also after a restart,
 * what was deleted is gone, and the space of it comes back.
 */
#include "log/dlog.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"
#include "sim/dlog_fix.h"

#define SEGMENT (1u << 20)

static struct {
	char dir[64], path[80];
	struct mc_dlog *log;
	struct mc_dlog_conf conf;
	int64_t live_before;
} t;

static void open_log(void)
{
	struct mc_diag diag = {.text = ""};
	int rc = mc_dlog_open(&t.conf, &t.log, &diag);

	if (rc < 0)
		print_message("%s\n", diag.text);
	assert_int_equal(rc, 0);
}

static void reopen(void)
{
	mc_dlog_close(t.log);
	t.log = NULL;
	open_log();
}

static int setup(void **state)
{
	(void)state;
	t.live_before = mc_mem_live();
	(void)snprintf(t.dir, sizeof(t.dir), "dlog-test-XXXXXX");
	if (!mkdtemp(t.dir))
		return -1;
	(void)snprintf(t.path, sizeof(t.path), "%s/log", t.dir);
	t.conf =
	    (struct mc_dlog_conf){.disk = &mc_disk_real, .path = t.path, .segment_bytes = SEGMENT};
	open_log();
	return 0;
}

static void remove_name(void *user, const char *name)
{
	char path[400];

	(void)snprintf(path, sizeof(path), "%s/%s", (const char *)user, name);
	(void)unlink(path);
}

static int teardown(void **state)
{
	(void)state;
	mc_dlog_close(t.log);
	t.log = NULL;
	(void)mc_disk_real.list(&mc_disk_real, t.path, remove_name, t.path);
	return rmdir(t.path) == 0 && rmdir(t.dir) == 0 && mc_mem_live() == t.live_before ? 0 : -1;
}

static const uint64_t lens[] = {0,     1,     63,     4096,   65535,  65536,   65537,
				69632, 70001, 131072, 200000, 262144, 1048576, 1100000};

static void put_lens(void)
{
	for (unsigned i = 0; i < MC_ARRAY_LEN(lens); i++)
		assert_int_equal(dlog_fix_put_wait(t.log, i, i + 1, lens[i]), 0);
}

static void check_lens(void)
{
	uint64_t gen;

	for (unsigned i = 0; i < MC_ARRAY_LEN(lens); i++) {
		assert_int_equal(dlog_fix_look(t.log, i, &gen), 0);
		assert_int_equal(gen, i + 1);
	}
}

static void objects_of_every_length_come_back_also_after_a_restart(void **state)
{
	put_lens();
	check_lens();
	reopen(); /* by the checkpoint */
	check_lens();
	t.conf.no_checkpoint = true;
	reopen(); /* by a walk */
	check_lens();
	(void)state;
}

static void any_range_is_read_to_any_address(void **state)
{
	static const uint64_t at[] = {0, 1, 4095, 4096, 65535, 65536, 65537, 131072, 262143};

	put_lens();
	for (unsigned key = 0; key < MC_ARRAY_LEN(lens); key++)
		for (unsigned i = 0; i < MC_ARRAY_LEN(at); i++)
			for (unsigned k = 0; k < MC_ARRAY_LEN(at); k++) {
				if (at[i] + at[k] > lens[key] || at[k] == 0)
					continue;
				assert_int_equal(dlog_fix_get(t.log, key, at[i], at[k], 0), 0);
				assert_int_equal(dlog_fix_get(t.log, key, at[i], at[k], 1), 0);
			}
	assert_int_equal(dlog_fix_get(t.log, 3, 4095, 2, 0), -MC_E_INVAL);
	assert_int_equal(dlog_fix_get(t.log, 3, UINT64_MAX, 2, 0), -MC_E_INVAL);
	assert_int_equal(dlog_fix_get(t.log, 99, 0, 1, 0), -MC_E_NOENT);
	(void)state;
}

static void the_highest_generation_counts(void **state)
{
	uint64_t gen;

	assert_int_equal(dlog_fix_put_wait(t.log, 1, 5, 100), 0);
	assert_int_equal(dlog_fix_put_wait(t.log, 1, 5, 100), -MC_E_STALE);
	assert_int_equal(dlog_fix_put_wait(t.log, 1, 4, 100), -MC_E_STALE);
	assert_int_equal(dlog_fix_put_wait(t.log, 1, 6, 100000), 0);
	assert_int_equal(dlog_fix_del_wait(t.log, 1, 5), -MC_E_STALE);
	assert_int_equal(dlog_fix_look(t.log, 1, &gen), 0);
	assert_int_equal(gen, 6);
	assert_int_equal(dlog_fix_del_wait(t.log, 1, 6), 0);
	assert_int_equal(dlog_fix_del_wait(t.log, 1, 6), -MC_E_NOENT);
	assert_int_equal(dlog_fix_put_wait(t.log, 1, 6, 10), -MC_E_STALE);
	t.conf.no_checkpoint = true;
	reopen();
	assert_int_equal(dlog_fix_look(t.log, 1, &gen), 0);
	assert_int_equal(gen, 0);
	assert_int_equal(dlog_fix_put_wait(t.log, 1, 7, 10), 0);
	(void)state;
}

static void many_puts_share_a_write_and_a_sync(void **state)
{
	static struct dlog_fix_op ops[500];
	struct mc_dlog_stats stats;

	for (unsigned i = 0; i < MC_ARRAY_LEN(ops); i++)
		assert_int_equal(dlog_fix_put(t.log, &ops[i], i, 1, 300), 0);
	while (mc_dlog_reap(t.log, MC_NS_PER_MS) > 0)
		;
	for (unsigned i = 0; i < MC_ARRAY_LEN(ops); i++) {
		assert_true(ops[i].is_done);
		assert_int_equal(ops[i].rc, 0);
		dlog_fix_end(&ops[i]);
	}
	mc_dlog_stats(t.log, &stats);
	assert_int_equal(stats.puts, MC_ARRAY_LEN(ops));
	assert_true(stats.syncs <= 4);
	assert_true(stats.used_bytes <= 512 * MC_ARRAY_LEN(ops) + 4 * 4096);
	(void)state;
}

static void the_file_of_an_emptied_segment_is_used_again(void **state)
{
	struct mc_dlog_stats stats;
	uint64_t gen;

	for (unsigned round = 1; round <= 10; round++) {
		for (unsigned key = 0; key < 20; key++)
			assert_int_equal(dlog_fix_put_wait(t.log, key, round, 20000 + key * 9000),
					 0);
		assert_int_equal(dlog_fix_tidy(t.log), 0);
	}
	mc_dlog_stats(t.log, &stats);
	assert_true(stats.reused_segments > 3);
	assert_true(stats.reused_segments <= stats.removed_segments);
	for (unsigned i = 0; i < 2; i++) {
		t.conf.no_checkpoint = i == 1;
		reopen();
		mc_dlog_stats(t.log, &stats);
		assert_int_equal(stats.bad_records, 0);
		for (unsigned key = 0; key < 20; key++) {
			assert_int_equal(dlog_fix_look(t.log, key, &gen), 0);
			assert_int_equal(gen, 10);
		}
	}
	(void)state;
}

static void compaction_gives_back_what_is_dead(void **state)
{
	struct mc_dlog_stats stats;
	uint64_t gen;

	for (unsigned round = 1; round <= 10; round++)
		for (unsigned key = 0; key < 20; key++)
			assert_int_equal(dlog_fix_put_wait(t.log, key, round, 20000 + key * 9000),
					 0);
	for (unsigned key = 0; key < 10; key++)
		assert_int_equal(dlog_fix_del_wait(t.log, key, 10), 0);
	assert_int_equal(dlog_fix_tidy(t.log), 0);
	mc_dlog_stats(t.log, &stats);
	assert_true(stats.compactions > 5 && stats.removed_segments > 5);
	assert_true(stats.used_bytes < 3 * stats.live_bytes);
	for (unsigned i = 0; i < 3; i++) {
		for (unsigned key = 0; key < 20; key++) {
			assert_int_equal(dlog_fix_look(t.log, key, &gen), 0);
			assert_int_equal(gen, key < 10 ? 0 : 10);
		}
		t.conf.no_checkpoint = i == 1;
		reopen();
	}
	(void)state;
}

static void count_item(void *user, const struct mc_dlog_item *item)
{
	uint8_t *seen = user;
	char text[32] = "";
	unsigned key;

	assert_true(item->key_len < sizeof(text));
	memcpy(text, item->key, item->key_len);
	assert_int_equal(sscanf(text, "key-%u", &key), 1);
	assert_int_equal(item->info.tlv_len, item->key_len);
	assert_memory_equal(item->tlv, item->key, item->key_len);
	assert_int_equal(item->info.gen.counter, 2);
	seen[key]++;
}

/* @param is_flipped  a byte of every footer, on the disk */
static uint64_t walk_and_check(bool is_flipped, unsigned nobjects, uint8_t *seen)
{
	struct mc_dlog_cursor cursor = {0};
	struct mc_dlog_stats stats;
	uint64_t gen, scanned;
	char path[100];

	mc_dlog_close(t.log);
	t.log = NULL;
	for (unsigned id = 0; is_flipped && id < 100; id++) {
		int fd;
		off_t len;

		(void)snprintf(path, sizeof(path), "%s/seg-%08x", t.path, id);
		fd = open(path, O_RDWR | O_CLOEXEC);
		len = fd < 0 ? 0 : lseek(fd, 0, SEEK_END);
		if (len > 0)
			assert_int_equal(pwrite(fd, "!", 1, len - 100), 1);
		if (fd >= 0)
			assert_int_equal(close(fd), 0);
	}
	t.conf.no_checkpoint = true;
	open_log();
	mc_dlog_stats(t.log, &stats);
	scanned = stats.scanned_bytes;
	for (unsigned key = 0; key < nobjects; key++) {
		assert_int_equal(dlog_fix_look(t.log, key, &gen), 0);
		assert_int_equal(gen, key % 3 == 0 ? 0 : 2);
	}
	while (mc_dlog_list(t.log, &cursor, 1, count_item, seen) == 1)
		;
	mc_dlog_stats(t.log, &stats);
	return is_flipped ? scanned : stats.scanned_bytes;
}

static void sealed_segments_are_found_by_their_footers(void **state)
{
	enum { N = 80 };
	uint64_t by_foot, by_walk;
	uint8_t seen[100] = {0};

	for (unsigned gen = 1; gen <= 2; gen++)
		for (unsigned key = 0; key < N; key++)
			assert_int_equal(dlog_fix_put_wait(t.log, key, gen, 66000), 0);
	for (unsigned key = 0; key < N; key += 3)
		assert_int_equal(dlog_fix_del_wait(t.log, key, 2), 0);
	by_foot = walk_and_check(false, N, seen);
	by_walk = walk_and_check(true, N, seen); /* damaged: as if they were not there */
	assert_true(4 * by_foot < by_walk);
	for (unsigned key = 0; key < N; key++)
		assert_int_equal(seen[key], key % 3 == 0 ? 0 : 2);
	(void)state;
}

static void the_quota_refuses_until_space_is_given_back(void **state)
{
	unsigned n = 0;
	uint64_t gen;
	int rc;

	t.conf.quota_bytes = 6 * SEGMENT;
	reopen();
	while ((rc = dlog_fix_put_wait(t.log, n, 1, 100000)) == 0)
		assert_true(++n < 100);
	assert_int_equal(rc, -MC_E_NOSPACE);
	assert_true(n > 40);
	for (unsigned i = 0; i < n; i += 2)
		assert_int_equal(dlog_fix_del_wait(t.log, i, 1), 0);
	assert_int_equal(dlog_fix_tidy(t.log), 0);
	for (unsigned i = 0; i < n / 3; i++)
		assert_int_equal(dlog_fix_put_wait(t.log, 1000 + i, 1, 100000), 0);
	for (unsigned i = 1; i < n; i += 2) {
		assert_int_equal(dlog_fix_look(t.log, i, &gen), 0);
		assert_int_equal(gen, 1);
	}
	(void)state;
}

static void a_second_opener_is_refused_and_told_by_whom(void **state)
{
	struct mc_diag diag = {.text = ""};
	struct mc_dlog *other;
	char who[32];
	int status;
	pid_t pid;

	assert_int_equal(mc_dlog_open(&t.conf, &other, &diag), -MC_E_BUSY);
	(void)snprintf(who, sizeof(who), "pid %ld", (long)getpid());
	assert_non_null(strstr(diag.text, who));
	assert_non_null(strstr(diag.text, t.path));
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		int rc = mc_dlog_open(&t.conf, &other, &diag);

		_exit(rc == -MC_E_BUSY && strstr(diag.text, who) ? 0 : 1);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
	(void)state;
}

static void a_directory_of_others_is_refused(void **state)
{
	struct mc_dlog_conf conf = t.conf;
	struct mc_diag diag = {.text = ""};
	struct mc_dlog *other;

	conf.path = t.dir; /* "log" is in it */
	assert_int_equal(mc_dlog_open(&conf, &other, &diag), -MC_E_INVAL);
	assert_non_null(strstr(diag.text, t.dir));
	remove_name(t.dir, "lock");
	conf.path = "/nowhere/log";
	assert_int_equal(mc_dlog_open(&conf, &other, &diag), -MC_E_NOENT);
	conf.segment_bytes = 1;
	assert_int_equal(mc_dlog_open(&conf, &other, &diag), -MC_E_INVAL);
	(void)state;
}

static void a_listing_tells_each_live_object(void **state)
{
	struct mc_dlog_cursor cursor = {0};
	uint8_t seen[100] = {0};
	unsigned calls = 0;
	int rc;

	for (unsigned gen = 1; gen <= 2; gen++)
		for (unsigned key = 0; key < 100; key++)
			assert_int_equal(dlog_fix_put_wait(t.log, key, gen, key * 1500), 0);
	for (unsigned key = 0; key < 100; key += 3)
		assert_int_equal(dlog_fix_del_wait(t.log, key, 2), 0);
	while ((rc = mc_dlog_list(t.log, &cursor, 1 << 12, count_item, seen)) == 1)
		calls++;
	assert_int_equal(rc, 0);
	assert_true(calls > 1);
	for (unsigned key = 0; key < 100; key++)
		assert_int_equal(seen[key], key % 3 != 0);
	(void)state;
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
	    T(objects_of_every_length_come_back_also_after_a_restart),
	    T(any_range_is_read_to_any_address),
	    T(the_highest_generation_counts),
	    T(many_puts_share_a_write_and_a_sync),
	    T(the_file_of_an_emptied_segment_is_used_again),
	    T(compaction_gives_back_what_is_dead),
	    T(sealed_segments_are_found_by_their_footers),
	    T(the_quota_refuses_until_space_is_given_back),
	    T(a_second_opener_is_refused_and_told_by_whom),
	    T(a_directory_of_others_is_refused),
	    T(a_listing_tells_each_live_object),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
