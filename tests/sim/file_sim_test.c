/*
 * file_sim_test.c: the file transport on a disk that fails at every call, is slow, comes back
 * short, is full or loses its power. The object files are those that ship; only the disk is
 * another.
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
#include "xport/file_priv.h"

#define MIB (1u << 20)
#define PATH MEM_DISK_DIR "/seg"
#define LEN (3 * MIB + 777) /* of the file: several operations, and ends through the cache */
#define SPACE (4 * MIB)
#define SLICES 4u
#define POLLS_MAX 1000u

static const struct mc_remote_region whole = {.len = INT64_MAX, .rights = 3, .kind = MC_MEM_FILE};

static struct {
	struct mem_disk *mem;
	struct fault_disk fault;
	struct mc_rand rand;
	struct mc_xdev *dev;
	struct mc_file_seg *seg;
	struct mc_xlane *lane;
	uint8_t *old, *new, *seen, *want;
	struct mc_slice slices[SLICES];
	struct mc_frag frags[SLICES];
	int64_t live_before;
} t;

static void put_old(void)
{
	const struct mc_disk *disk = mem_disk_ops(t.mem);
	struct mc_disk_file *f;

	assert_int_equal(disk->open(disk, PATH, MC_DISK_WRITE | MC_DISK_CREATE, 0600, &f), 0);
	assert_int_equal(disk->write(f, t.old, LEN, 0), LEN);
	assert_int_equal(disk->sync(f, true), 0);
	disk->close(f);
	assert_int_equal(disk->sync_dir(disk, MEM_DISK_DIR), 0);
}

/* What the file holds, to t.seen. */
static void look(void)
{
	const struct mc_disk *disk = mem_disk_ops(t.mem);
	struct mc_disk_file *f;

	assert_int_equal(disk->open(disk, PATH, MC_DISK_READ, 0, &f), 0);
	assert_int_equal(disk->read(f, t.seen, LEN, 0), LEN);
	disk->close(f);
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
	t.old = mc_aligned_alloc(4096, LEN);
	t.new = mc_aligned_alloc(4096, LEN);
	t.seen = mc_aligned_alloc(4096, LEN);
	t.want = mc_aligned_alloc(4096, LEN);
	if (!t.old || !t.new || !t.seen || !t.want)
		return -1;
	for (unsigned i = 0; i < LEN; i++) {
		t.old[i] = (uint8_t)(i * 7 + (i >> 12));
		t.new[i] = (uint8_t)~t.old[i];
	}
	t.mem = mem_disk_open(SPACE);
	fault_disk_init(&t.fault, mem_disk_ops(t.mem));
	put_old();
	return 0;
}

static void close_all(void)
{
	if (t.lane)
		t.lane->ops->lane_close(t.lane);
	mc_file_seg_close(t.seg);
	if (t.dev)
		t.dev->ops->dev_close(t.dev);
	t.lane = NULL;
	t.seg = NULL;
	t.dev = NULL;
}

static int teardown(void **state)
{
	(void)state;
	close_all();
	mem_disk_close(t.mem);
	mc_free(t.old);
	mc_free(t.new);
	mc_free(t.seen);
	mc_free(t.want);
	return mc_mem_live() == t.live_before ? 0 : -1;
}

static int open_all(void)
{
	struct mc_xdev_env env = {.disk = &t.fault.disk};
	struct mc_diag diag = {.text = ""};
	struct mc_xpath path = {0};
	int rc = mc_file_dev_open(&env, &t.dev);

	if (rc == 0) {
		rc = mc_file_seg_open(t.dev, PATH, &t.seg, &diag);
		if (rc < 0)
			assert_non_null(strstr(diag.text, PATH)); /* the error names the file */
	}
	path.peer_state = t.seg;
	return rc < 0 ? rc : t.dev->ops->lane_open(t.dev, &path, &t.lane);
}

/* ---- slices that share the file ---- */

static void post(enum mc_op op, uint8_t *mem)
{
	struct mc_slice *ptrs[SLICES];
	uint64_t at = 0, len;

	for (unsigned i = 0; i < SLICES; i++, at += len) {
		len = i + 1 < SLICES ? LEN / SLICES + i * 100 : LEN - at;
		t.frags[i] = (struct mc_frag){mem + at, at, len, &whole};
		t.slices[i] = (struct mc_slice){
		    .op = op, .nfrags = 1, .frags = &t.frags[i], .len = len, .status = 12345};
		ptrs[i] = &t.slices[i];
	}
	assert_int_equal(t.lane->ops->post(t.lane, ptrs, SLICES), SLICES);
}

static unsigned poll_all(void)
{
	struct mc_slice *done[SLICES];
	unsigned n = 0, polls = 0;
	int rc;

	for (; n < SLICES; n += (unsigned)rc) {
		rc = t.lane->ops->poll(t.lane, 1, done, SLICES);
		assert_true(rc >= 0);
		assert_true(++polls < POLLS_MAX);
	}
	return polls;
}

/* Slices that ended well have their bytes in the file, whatever became of the others. */
static unsigned well_written(void)
{
	unsigned n = 0;

	look();
	for (unsigned i = 0; i < SLICES; i++) {
		const struct mc_frag *f = &t.frags[i];

		assert_true(t.slices[i].status <= 0);
		if (t.slices[i].status < 0)
			continue;
		assert_memory_equal(t.seen + f->raddr, t.new + f->raddr, f->len);
		n++;
	}
	return n;
}

/* ---- every call ---- */

/* Write all, read all. @return slices of both that ended well; < 0: it did not open */
static int flow(void)
{
	unsigned well;
	int rc;

	put_old();
	rc = open_all();
	if (rc < 0)
		return rc;
	post(MC_OP_WRITE, t.new);
	(void)poll_all();
	well = well_written();
	memcpy(t.want, t.seen, LEN);
	memset(t.seen, 0, LEN);
	post(MC_OP_READ, t.seen);
	(void)poll_all();
	for (unsigned i = 0; i < SLICES; i++) {
		const struct mc_frag *f = &t.frags[i];

		if (t.slices[i].status == 0)
			assert_memory_equal(t.seen + f->raddr, t.want + f->raddr, f->len);
		well += t.slices[i].status == 0;
	}
	return (int)well;
}

static void fail_each_call(int error, int want_least)
{
	uint64_t calls;
	int well;

	t.fault.fail_nr = UINT64_MAX;
	t.fault.calls = 0;
	assert_int_equal(flow(), 2 * SLICES);
	close_all();
	calls = t.fault.calls;
	assert_true(calls > 2 * SLICES + 5); /* aio, 2 opens, 2 stats, queue */
	for (uint64_t nr = 0; nr < calls; nr++) {
		t.fault.fail_nr = nr;
		t.fault.fail_errno = error;
		t.fault.calls = 0;
		well = flow();
		if (well >= 0)
			assert_true(well >= want_least);
		assert_true(t.fault.calls > nr);
		if (t.lane) { /* the lane is as good as before */
			t.fault.fail_nr = UINT64_MAX;
			post(MC_OP_WRITE, t.new);
			(void)poll_all();
			assert_int_equal(well_written(), SLICES);
		}
		close_all();
	}
}

static void each_call_that_fails_costs_its_slice_and_nothing_else(void **state)
{
	fail_each_call(EIO, 2 * SLICES - 1);
	fail_each_call(ENOSPC, 2 * SLICES - 1);
	fail_each_call(ENOMEM, 2 * SLICES - 1);
	(void)state;
}

static void each_call_that_is_interrupted_or_refused_once_costs_nothing(void **state)
{
	fail_each_call(EINTR, 2 * SLICES);
	fail_each_call(ECANCELED, 2 * SLICES);
	(void)state;
}

static int refuse_direct(struct fault_disk *f, struct fault_call *call)
{
	(void)f;
	return call->op == FAULT_OPEN && (call->flags & MC_DISK_DIRECT) ? -EINVAL : 0;
}

static void a_file_system_without_o_direct_works_through_the_cache(void **state)
{
	t.fault.before = refuse_direct;
	assert_int_equal(flow(), 2 * SLICES);
	assert_null(t.seg->direct);
	(void)state;
}

static int replace_meanwhile(struct fault_disk *f, struct fault_call *call)
{
	if (call->op == FAULT_OPEN && (call->flags & MC_DISK_DIRECT)) {
		(void)f->inner->unlink(f->inner, PATH);
		put_old();
	}
	return 0;
}

static void a_file_replaced_while_it_is_opened_is_not_mixed(void **state)
{
	t.fault.before = replace_meanwhile;
	assert_int_equal(open_all(), -MC_E_BUSY);
	(void)state;
}

/* ---- short, slow, full ---- */

static int shorten(struct fault_disk *f, struct fault_call *call)
{
	(void)f;
	if ((call->op == FAULT_READ || call->op == FAULT_WRITE) && call->len > MEM_DISK_SECTOR) {
		call->len = 1 + mc_rand_below(&t.rand, call->len);
		if (call->flags & MC_DISK_DIRECT)
			call->len = mc_max(call->len & ~(MEM_DISK_SECTOR - 1ull),
					   (uint64_t)MEM_DISK_SECTOR);
	}
	return 0;
}

static void short_operations_are_continued(void **state)
{
	t.fault.before = shorten;
	for (unsigned i = 0; i < 5; i++) {
		t.fault.calls = 0;
		assert_int_equal(flow(), 2 * SLICES);
		assert_true(t.fault.calls > 30);
		close_all();
	}
	(void)state;
}

static void slow_operations_end_when_the_disk_says_so(void **state)
{
	assert_int_equal(open_all(), 0);
	t.fault.held_reaps = 20;
	post(MC_OP_WRITE, t.new);
	assert_true(poll_all() >= 10);
	assert_int_equal(well_written(), SLICES);
	(void)state;
}

static void what_a_slow_disk_has_not_begun_does_not_land_after_an_abort(void **state)
{
	uint8_t token[MC_XPORT_TOKEN_MAX];
	struct mc_list left;
	unsigned n = 0;

	assert_int_equal(open_all(), 0);
	t.fault.held_reaps = 20;
	post(MC_OP_WRITE, t.new);
	mc_list_init(&left);
	assert_int_equal(t.lane->ops->abort(t.lane, &left, token), 0);
	while (mc_list_pop_front(&left))
		n++;
	assert_int_equal(n, SLICES);
	look();
	assert_memory_equal(t.seen, t.old, LEN);
	(void)state;
}

static void a_full_disk_fails_the_slice_that_does_not_fit(void **state)
{
	struct mc_slice *s = &t.slices[0], *done;

	assert_int_equal(open_all(), 0);
	t.frags[0] = (struct mc_frag){t.new, LEN - 100, 2 * MIB, &whole};
	*s =
	    (struct mc_slice){.op = MC_OP_WRITE, .nfrags = 1, .frags = &t.frags[0], .len = 2 * MIB};
	assert_int_equal(t.lane->ops->post(t.lane, &s, 1), 1);
	for (int rc = 0; rc == 0;)
		rc = t.lane->ops->poll(t.lane, 1, &done, 1);
	assert_int_equal(s->status, -MC_E_NOSPACE);
	look();
	assert_memory_equal(t.seen, t.old, LEN - 100); /* what was there stays */
	(void)state;
}

/* ---- power ---- */

static void what_was_written_and_synced_outlives_a_power_cut(void **state)
{
	assert_int_equal(open_all(), 0);
	post(MC_OP_WRITE, t.new);
	(void)poll_all();
	assert_int_equal(t.fault.disk.sync(t.seg->plain, true), 0);
	mem_disk_cut(t.mem, NULL);
	look();
	assert_memory_equal(t.seen, t.new, LEN);
	post(MC_OP_READ, t.seen); /* the lane is of before the cut */
	(void)poll_all();
	for (unsigned i = 0; i < SLICES; i++)
		assert_int_equal(t.slices[i].status, -MC_E_IO);
	(void)state;
}

static void a_completed_write_alone_may_be_lost_or_torn(void **state)
{
	unsigned olds = 0, news = 0;

	assert_int_equal(open_all(), 0);
	post(MC_OP_WRITE, t.new);
	(void)poll_all();
	mem_disk_cut(t.mem, &t.rand);
	look();
	for (unsigned i = 0; i < LEN; i++) {
		assert_true(t.seen[i] == t.old[i] || t.seen[i] == t.new[i]);
		olds += t.seen[i] == t.old[i];
		news += t.seen[i] == t.new[i];
	}
	assert_true(olds > LEN / 4 && news > LEN / 4);
	(void)state;
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
	    T(each_call_that_fails_costs_its_slice_and_nothing_else),
	    T(each_call_that_is_interrupted_or_refused_once_costs_nothing),
	    T(a_file_system_without_o_direct_works_through_the_cache),
	    T(a_file_replaced_while_it_is_opened_is_not_mixed),
	    T(short_operations_are_continued),
	    T(slow_operations_end_when_the_disk_says_so),
	    T(what_a_slow_disk_has_not_begun_does_not_land_after_an_abort),
	    T(a_full_disk_fails_the_slice_that_does_not_fit),
	    T(what_was_written_and_synced_outlives_a_power_cut),
	    T(a_completed_write_alone_may_be_lost_or_torn),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
