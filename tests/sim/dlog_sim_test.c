/*
 * dlog_sim_test.c: the disk log on a disk that loses its power, fails, is full or damages what it
 * holds. The object files are those that ship; only the disk is another.
 *
 * A ledger beside the log knows for each key what was acknowledged and what may also be there:
 * after every crash each key must show one of these, with the right bytes. --long tries more.
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
#include "base/log.h"
#include "base/mem.h"
#include "sim/dlog_fix.h"
#include "sim/fault_disk.h"
#include "sim/mem_disk.h"

#define KEYS 10u
#define BURSTS 14u
#define BURST_MAX 4u
#define SEGMENT (256u << 10)
#define SPACE (64u << 20)
#define MAYBE_MAX (BURSTS * BURST_MAX)
#define NEVER UINT64_MAX

struct ledger {
	uint64_t acked;		   /* generation that is there; 0: none */
	uint64_t maybe[MAYBE_MAX]; /* that may be there instead; 0: it may be gone */
	unsigned nmaybe;
};

static bool is_long;

static struct {
	struct mem_disk *mem;
	struct fault_disk fault;
	struct mc_rand rand, cut_rand;
	uint64_t seed;
	struct mc_dlog *log;
	struct mc_dlog_conf conf;
	struct ledger keys[KEYS];
	uint64_t next_gen, dead_from; /* calls of the disk from this one on fail: no power */
	uint64_t short_nr;	      /* this write comes back short; NEVER */
	uint64_t reused;	      /* segments made of others' files, so far */
	int64_t live_before;
	bool is_plain; /* no O_DIRECT, no blocks ahead: a file system that has neither */
} t;

/* ---- the disk ---- */

static int on_call(struct fault_disk *f, struct fault_call *call)
{
	(void)f;
	if (call->nr >= t.dead_from)
		return -EIO;
	if (t.is_plain && call->op == FAULT_OPEN && (call->flags & MC_DISK_DIRECT))
		return -EINVAL;
	if (t.is_plain && call->op == FAULT_ALLOCATE)
		return -EOPNOTSUPP;
	if (call->nr == t.short_nr && call->op == FAULT_WRITE && call->len > 1)
		call->len /= 2;
	return 0;
}

static void disk_begin(uint64_t seed, uint64_t space)
{
	memset(t.keys, 0, sizeof(t.keys));
	t.next_gen = 1;
	t.dead_from = t.short_nr = NEVER;
	mc_rand_seed(&t.rand, seed);
	t.mem = mem_disk_open(space);
	fault_disk_init(&t.fault, mem_disk_ops(t.mem));
	t.fault.before = on_call;
	t.conf = (struct mc_dlog_conf){
	    .disk = &t.fault.disk, .path = MEM_DISK_DIR, .segment_bytes = SEGMENT, .depth = 8};
}

static void disk_end(void)
{
	mc_dlog_close(t.log);
	t.log = NULL;
	mem_disk_close(t.mem);
}

static void heal(void)
{
	t.dead_from = t.short_nr = NEVER;
	t.fault.fail_nr = UINT64_MAX;
	mc_mem_fail_after(-1);
}

static int setup(void **state)
{
	const char *text = getenv("SEED");

	(void)state;
	memset(&t, 0, sizeof(t));
	t.seed = text ? strtoull(text, NULL, 0) : mc_now_ns();
	print_message("# seed %llu: SEED=… repeats it\n", (unsigned long long)t.seed);
	mc_rand_seed(&t.cut_rand, t.seed);
	t.live_before = mc_mem_live();
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	return mc_mem_live() == t.live_before ? 0 : -1;
}

/* ---- the ledger ---- */

static void note(const struct dlog_fix_op *op)
{
	struct ledger *l = &t.keys[op->key];
	uint64_t gen = op->is_del ? 0 : op->gen;

	if (op->rc == 0) {
		l->acked = gen;
		l->nmaybe = 0;
	} else if (op->rc == -MC_E_UNFENCED || t.fault.calls > t.dead_from) {
		assert_true(l->nmaybe < MAYBE_MAX);
		l->maybe[l->nmaybe++] = gen; /* cut off while it was under way */
	}
}

static bool may_be(const struct ledger *l, uint64_t gen)
{
	if (gen == l->acked)
		return true;
	for (unsigned i = 0; i < l->nmaybe; i++)
		if (gen == l->maybe[i])
			return true;
	return false;
}

/* Everything is as the ledger says; and from now on exactly so. */
static void check_all(const char *when)
{
	uint64_t gen;
	int rc;

	for (unsigned key = 0; key < KEYS; key++) {
		struct ledger *l = &t.keys[key];

		rc = dlog_fix_look(t.log, key, &gen);
		if (rc < 0 || !may_be(l, gen))
			print_message("%s: key %u: %s, generation %llu, acknowledged %llu\n", when,
				      key, mc_err_text(rc), (unsigned long long)gen,
				      (unsigned long long)l->acked);
		assert_int_equal(rc, 0);
		assert_true(may_be(l, gen));
		l->acked = gen;
		l->nmaybe = 0;
	}
}

/* ---- the load ---- */

static void begin_op(struct dlog_fix_op *op, unsigned key)
{
	uint64_t gen = t.next_gen++;

	if (mc_rand_below(&t.rand, 4) == 0)
		(void)dlog_fix_del(t.log, op, key, gen);
	else
		(void)dlog_fix_put(t.log, op, key, gen, dlog_fix_len(key, gen));
}

static void burst(void)
{
	unsigned n = 1 + (unsigned)mc_rand_below(&t.rand, BURST_MAX), turns = 0;
	unsigned first = (unsigned)mc_rand_below(&t.rand, KEYS);
	struct dlog_fix_op ops[BURST_MAX];

	for (unsigned i = 0; i < n; i++)
		begin_op(&ops[i], (first + i * 3) % KEYS);
	while (mc_dlog_reap(t.log, 0) > 0)
		assert_true(++turns < 10000); /* every operation ends */
	for (unsigned i = 0; i < n; i++) {
		assert_true(ops[i].is_done);
		note(&ops[i]);
		dlog_fix_end(&ops[i]);
	}
}

/* @return false: it did not open */
static bool try_open(void)
{
	struct mc_diag diag = {.text = ""};

	return mc_dlog_open(&t.conf, &t.log, &diag) == 0;
}

static void must_open(void)
{
	struct mc_diag diag = {.text = ""};
	int rc = mc_dlog_open(&t.conf, &t.log, &diag);

	if (rc < 0)
		print_message("%s\n", diag.text);
	assert_int_equal(rc, 0);
}

static void count_reused(void)
{
	struct mc_dlog_stats stats;

	mc_dlog_stats(t.log, &stats);
	t.reused += stats.reused_segments;
}

/* Puts, deletes, housekeeping and a restart in between. */
static void load(void)
{
	for (unsigned i = 0; i < BURSTS; i++) {
		if (!t.log && !try_open())
			return;
		burst();
		if (i % 3 == 2)
			(void)dlog_fix_tidy(t.log); /* what fails is left for later */
		if (i % 7 == 4)
			(void)mc_dlog_checkpoint(t.log);
		if (i == BURSTS / 2) {
			count_reused();
			mc_dlog_close(t.log);
			t.log = NULL;
		}
	}
}

static void crash(void)
{
	mc_dlog_close(t.log); /* without power: nothing reaches the disk */
	t.log = NULL;
	heal();
}

static void go_on(const char *when)
{
	must_open();
	check_all(when);
	for (unsigned i = 0; i < 3; i++)
		burst();
	assert_int_equal(dlog_fix_tidy(t.log), 0);
	check_all("going on");
	mc_dlog_close(t.log);
	t.conf.no_checkpoint = mc_rand_below(&t.cut_rand, 2) == 0;
	must_open();
	check_all("opened again");
}

/* ---- power cuts ---- */

static uint64_t calls_of_load(uint64_t seed)
{
	uint64_t calls;

	disk_begin(seed, SPACE);
	load();
	calls = t.fault.calls;
	check_all("no fault");
	count_reused();
	disk_end();
	return calls;
}

static void cut_at(uint64_t seed, uint64_t nr, bool has_power)
{
	disk_begin(seed, SPACE);
	t.dead_from = nr;
	load();
	crash();
	if (!has_power)
		mem_disk_cut(t.mem, &t.cut_rand);
	t.conf.no_checkpoint = mc_rand_below(&t.cut_rand, 3) == 0;
	go_on(has_power ? "after a crash" : "after a power cut");
	disk_end();
}

static void a_power_cut_at_any_call_loses_nothing_acknowledged(void **state)
{
	const unsigned seeds = is_long ? 12 : 2, least = is_long ? 2000 : 300;
	unsigned s = 0, states = 0;

	/* Loads differ in length: it goes on until enough was cut. */
	while (s < seeds || states < least || t.reused <= s) {
		uint64_t calls = calls_of_load(t.seed + s);

		assert_true(s < 10 * seeds);
		for (uint64_t nr = 0; nr < calls; nr++, states++)
			cut_at(t.seed + s, nr, false);
		s++;
	}
	print_message("# %u states of %u seeds, %llu files used again\n", states, s,
		      (unsigned long long)t.reused);
	(void)state;
}

static void a_killed_process_loses_nothing_acknowledged(void **state)
{
	uint64_t calls = calls_of_load(t.seed), step = is_long ? 1 : 3;

	for (uint64_t nr = 0; nr < calls; nr += step)
		cut_at(t.seed, nr, true);
	print_message("# %llu states\n", (unsigned long long)((calls + step - 1) / step));
	(void)state;
}

/* ---- failing calls ---- */

static void fail_at(uint64_t seed, uint64_t nr, int error)
{
	disk_begin(seed, SPACE);
	if (error > 0) {
		t.fault.fail_nr = nr;
		t.fault.fail_errno = error;
	} else {
		t.short_nr = nr;
	}
	load();
	heal();
	if (t.log) {
		check_all("after a failed call");
		mc_dlog_close(t.log);
		t.log = NULL;
	}
	mem_disk_cut(t.mem, &t.cut_rand);
	go_on("after a failed call and a power cut");
	disk_end();
}

static void a_failed_call_is_an_error_and_never_comes_back(void **state)
{
	static const int errors[] = {EIO, ENOSPC, 0}; /* 0: a short write */
	uint64_t calls = calls_of_load(t.seed);
	unsigned n = 0;

	for (uint64_t nr = 0; nr < calls; nr++) {
		for (unsigned i = 0; i < MC_ARRAY_LEN(errors); i++) {
			if (!is_long && nr % 3 != i)
				continue;
			fail_at(t.seed, nr, errors[i]);
			n++;
		}
	}
	print_message("# %u failures at %llu calls\n", n, (unsigned long long)calls);
	(void)state;
}

static void a_plain_file_system_is_used_through_the_cache(void **state)
{
	struct mc_dlog_stats stats;
	uint64_t calls;

	t.is_plain = true;
	disk_begin(t.seed, SPACE);
	load();
	check_all("no direct files, no blocks ahead");
	mc_dlog_stats(t.log, &stats);
	assert_false(stats.is_direct || stats.is_read_only);
	assert_true(stats.puts > 0 && stats.write_failures == 0);
	calls = t.fault.calls;
	disk_end();
	for (uint64_t nr = 0; nr < calls; nr += is_long ? 1 : 10)
		cut_at(t.seed, nr, false);
	(void)state;
}

static void a_full_disk_refuses_and_what_is_there_stays(void **state)
{
	for (unsigned i = 0; i < (is_long ? 100u : 10u); i++) {
		disk_begin(t.seed + i, (1u << 20) + mc_rand_below(&t.cut_rand, 1u << 20));
		load();
		if (t.log)
			check_all("on a full disk");
		mc_dlog_close(t.log);
		t.log = NULL;
		mem_disk_cut(t.mem, &t.cut_rand);
		must_open();
		check_all("on a full disk, after a power cut");
		disk_end();
	}
	(void)state;
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
	    T(a_power_cut_at_any_call_loses_nothing_acknowledged),
	    T(a_killed_process_loses_nothing_acknowledged),
	    T(a_failed_call_is_an_error_and_never_comes_back),
	    T(a_plain_file_system_is_used_through_the_cache),
	    T(a_full_disk_refuses_and_what_is_there_stays),
	};

	is_long = argc > 1 && strcmp(argv[1], "--long") == 0;
	mc_log_level_set(getenv("DBG") ? MC_LOG_INFO
				       : MC_LOG_OFF); /* errors are what this is about */
	return cmocka_run_group_tests(tests, NULL, NULL);
}
