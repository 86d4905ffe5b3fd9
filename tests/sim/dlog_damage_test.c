/*
 * dlog_damage_test.c: what the disk holds is changed behind the log's back, a bit, a block or a
 * whole file; and memory runs out at every allocation. Nothing wrong is read and nothing crashes.
 * One damage at a time after an orderly end brings back nothing that was overwritten or deleted,
 * either.
 * --long tries more.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "sim/dlog_fix.h"
#include "sim/mem_disk.h"

#define KEYS 24u
#define GENS 3u
#define SEGMENT (64u << 10)
#define SPACE (64u << 20)
#define FILES_MAX 40u
#define DAMAGES_MAX 5u

struct saved {
	char path[96];
	uint8_t *bytes;
	uint64_t len;
};

static bool is_long;

static struct {
	struct mem_disk *mem;
	const struct mc_disk *disk;
	struct mc_rand rand;
	struct mc_dlog *log;
	struct mc_dlog_conf conf;
	struct saved files[FILES_MAX];
	unsigned nfiles;
	uint64_t acked[KEYS]; /* 0: deleted */
	int64_t live_before;
} t;

static uint64_t len_of(unsigned key, uint64_t gen)
{
	static const uint64_t lens[] = {10, 300, 4096, 5000, 9000, 65536, 700, 0};

	return lens[(key + gen) % MC_ARRAY_LEN(lens)];
}

static int open_log(void)
{
	struct mc_diag diag = {.text = ""};
	int rc = mc_dlog_open(&t.conf, &t.log, &diag);

	if (rc < 0)
		t.log = NULL;
	return rc;
}

static void close_log(void)
{
	mc_dlog_close(t.log);
	t.log = NULL;
}

static void load(void)
{
	for (uint64_t gen = 1; gen <= GENS; gen++) {
		for (unsigned key = 0; key < KEYS; key++) {
			assert_int_equal(dlog_fix_put_wait(t.log, key, gen, len_of(key, gen)), 0);
			t.acked[key] = gen;
		}
	}
	for (unsigned key = 0; key < KEYS; key += 3) {
		assert_int_equal(dlog_fix_del_wait(t.log, key, GENS), 0);
		t.acked[key] = 0;
	}
}

/* ---- files as they were ---- */

static void save_name(void *user, const char *name)
{
	struct saved *f = &t.files[t.nfiles];

	(void)user;
	if (strcmp(name, "lock") == 0)
		return;
	assert_true(t.nfiles < FILES_MAX);
	(void)snprintf(f->path, sizeof(f->path), "%s/%s", MEM_DISK_DIR, name);
	t.nfiles++;
}

static void save_files(void)
{
	struct mc_disk_file *file;
	struct mc_disk_stat stat;

	assert_int_equal(t.disk->list(t.disk, MEM_DISK_DIR, save_name, NULL), 0);
	for (unsigned i = 0; i < t.nfiles; i++) {
		struct saved *f = &t.files[i];

		assert_int_equal(t.disk->open(t.disk, f->path, MC_DISK_READ, 0, &file), 0);
		assert_int_equal(t.disk->stat(file, &stat), 0);
		f->len = stat.len_bytes;
		f->bytes = mc_calloc(1, f->len + 1);
		assert_int_equal(t.disk->read(file, f->bytes, f->len, 0), f->len);
		t.disk->close(file);
	}
}

static void write_file(const struct saved *f)
{
	struct mc_disk_file *file;

	assert_int_equal(t.disk->open(t.disk, f->path, MC_DISK_WRITE | MC_DISK_CREATE, 0600, &file),
			 0);
	assert_int_equal(t.disk->truncate(file, f->len), 0);
	assert_int_equal(t.disk->write(file, f->bytes, f->len, 0), f->len);
	assert_int_equal(t.disk->sync(file, true), 0);
	t.disk->close(file);
}

/* To a new disk. */
static void restore_files(void)
{
	mem_disk_close(t.mem);
	t.mem = mem_disk_open(SPACE);
	t.disk = t.conf.disk = mem_disk_ops(t.mem);
	for (unsigned i = 0; i < t.nfiles; i++)
		write_file(&t.files[i]);
	assert_int_equal(t.disk->sync_dir(t.disk, MEM_DISK_DIR), 0);
}

static int setup(void **state)
{
	const char *text = getenv("SEED");
	uint64_t seed = text ? strtoull(text, NULL, 0) : mc_now_ns();

	(void)state;
	memset(&t, 0, sizeof(t));
	print_message("# seed %llu: SEED=… repeats it\n", (unsigned long long)seed);
	mc_rand_seed(&t.rand, seed);
	t.live_before = mc_mem_live();
	t.mem = mem_disk_open(SPACE);
	t.disk = mem_disk_ops(t.mem);
	t.conf = (struct mc_dlog_conf){
	    .disk = t.disk, .path = MEM_DISK_DIR, .segment_bytes = SEGMENT, .depth = 4};
	return open_log();
}

static int teardown(void **state)
{
	(void)state;
	close_log();
	for (unsigned i = 0; i < t.nfiles; i++)
		mc_free(t.files[i].bytes);
	mem_disk_close(t.mem);
	return mc_mem_live() == t.live_before ? 0 : -1;
}

/* ---- damage ---- */

static void damage(void)
{
	struct saved *f = &t.files[mc_rand_below(&t.rand, t.nfiles)], bad = *f;
	uint64_t at, n;

	if (f->len == 0)
		return;
	bad.bytes = mc_calloc(1, f->len);
	assert_non_null(bad.bytes);
	memcpy(bad.bytes, f->bytes, f->len);
	at = mc_rand_below(&t.rand, f->len);
	n = 1 + mc_rand_below(&t.rand, mc_min(f->len - at, 5000ul));
	switch (mc_rand_below(&t.rand, 8)) {
	case 0: /* the file ends here */
		bad.len = at;
		break;
	case 1: /* zeros */
		memset(bad.bytes + at, 0, n);
		break;
	case 2: /* anything */
		for (uint64_t i = 0; i < n; i++)
			bad.bytes[at + i] = (uint8_t)mc_rand_u64(&t.rand);
		break;
	case 3: /* what belongs elsewhere: a misdirected write */
		memmove(bad.bytes + at, f->bytes + mc_rand_below(&t.rand, f->len - n + 1), n);
		break;
	default:
		bad.bytes[at] ^= (uint8_t)(1u << mc_rand_below(&t.rand, 8));
		break;
	}
	if (mc_rand_below(&t.rand, 50) == 0)
		(void)t.disk->unlink(t.disk, f->path); /* a second time: it is gone */
	else
		write_file(&bad);
	mc_free(bad.bytes);
}

/* @param is_strict  what is got is what was acknowledged last */
static unsigned look_at_all(bool is_strict)
{
	unsigned found = 0;
	uint64_t gen;

	for (unsigned key = 0; key < KEYS; key++) {
		/* The bytes are judged by dlog_fix_look(). */
		if (dlog_fix_look(t.log, key, &gen) < 0 || gen == 0)
			continue;
		found++;
		assert_true(gen <= GENS);
		if (is_strict)
			assert_int_equal(gen, t.acked[key]);
	}
	return found;
}

static void rounds(unsigned n, unsigned damages, bool is_strict)
{
	unsigned opened = 0, whole = 0;

	for (unsigned i = 0; i < n; i++) {
		restore_files();
		for (unsigned k = 0; k < damages; k++)
			damage();
		t.conf.no_checkpoint = !is_strict && mc_rand_below(&t.rand, 2) == 0;
		if (open_log() < 0)
			continue;
		opened++;
		whole += look_at_all(is_strict) == KEYS - KEYS / 3;
		if (i % 8 == 0) { /* housekeeping meets it, too */
			(void)dlog_fix_tidy(t.log);
			look_at_all(is_strict);
		}
		close_log();
	}
	print_message("# %u damages, %u times opened, %u times nothing lost\n", n, opened, whole);
	assert_true(opened > n / 2 && whole > 0);
}

static void one_damage_shows_nothing_wrong_and_nothing_old(void **state)
{
	load();
	close_log();
	save_files();
	rounds(is_long ? 100000 : 4000, 1, true);
	(void)state;
}

static void damages_after_a_crash_show_nothing_wrong(void **state)
{
	load();
	save_files(); /* as a killed process leaves it: no checkpoint */
	close_log();
	for (unsigned damages = 1; damages <= DAMAGES_MAX; damages++)
		rounds(is_long ? 20000 : 500, damages, false);
	(void)state;
}

/* ---- memory ---- */

/* Puts, gets, a delete, housekeeping; payloads are made before memory runs out. */
static void some_load(int64_t fail_after)
{
	struct dlog_fix_op ops[6];
	struct mc_dlog_info info;

	for (unsigned i = 0; i < MC_ARRAY_LEN(ops); i++)
		(void)dlog_fix_put(t.log, &ops[i], i, GENS + 1, len_of(i, GENS + 1));
	mc_mem_fail_after(fail_after);
	while (mc_dlog_reap(t.log, 0) > 0)
		;
	(void)mc_dlog_step(t.log, SEGMENT);
	(void)mc_dlog_reap(t.log, 0);
	(void)mc_dlog_checkpoint(t.log);
	mc_mem_fail_after(-1);
	for (unsigned i = 0; i < MC_ARRAY_LEN(ops); i++) {
		assert_true(ops[i].is_done);
		assert_true(ops[i].rc == 0 || ops[i].rc == -MC_E_NOMEM);
		assert_int_equal(mc_dlog_stat(t.log, ops[i].key_text, ops[i].op.key_len, &info) ==
					 0 &&
				     info.gen.counter == GENS + 1,
				 ops[i].rc == 0);
		if (ops[i].rc == 0)
			t.acked[i] = GENS + 1;
		dlog_fix_end(&ops[i]);
	}
}

static void without_memory_there_are_errors_and_nothing_is_lost(void **state)
{
	uint64_t acked[KEYS], gen;
	unsigned failed = 0;

	load();
	close_log();
	save_files();
	memcpy(acked, t.acked, sizeof(acked));
	for (int64_t nr = 0; nr < 60; nr++) { /* more than an open or a load allocates */
		restore_files();
		memcpy(t.acked, acked, sizeof(acked));
		t.conf.no_checkpoint = nr % 2 == 0;
		mc_mem_fail_after(nr / 2);
		if (open_log() < 0) {
			failed++;
			mc_mem_fail_after(-1);
			assert_int_equal(open_log(), 0);
		}
		mc_mem_fail_after(-1);
		some_load(nr / 2);
		close_log();
		assert_int_equal(open_log(), 0);
		for (unsigned key = 0; key < KEYS; key++) {
			assert_int_equal(dlog_fix_look(t.log, key, &gen), 0);
			assert_int_equal(gen, t.acked[key]);
		}
		close_log();
	}
	assert_true(failed > 10);
	(void)state;
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
	    T(one_damage_shows_nothing_wrong_and_nothing_old),
	    T(damages_after_a_crash_show_nothing_wrong),
	    T(without_memory_there_are_errors_and_nothing_is_lost),
	};

	is_long = argc > 1 && strcmp(argv[1], "--long") == 0;
	mc_log_level_set(MC_LOG_OFF); /* errors are what this is about */
	return cmocka_run_group_tests(tests, NULL, NULL);
}
