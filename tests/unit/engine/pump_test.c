/*
 * pump_test.c: the pump between two real engines, over a TCP device of the test's: its lanes copy
 * when told to, hold, break, and say that writes may still land.
 */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "engine/priv.h"

#define BYTES (8u << 20)
#define LANES_MAX 64u

enum mood {
	WORK,
	HOLD,	      /* slices never end */
	BREAK_UNSENT, /* poll fails, nothing was sent */
	BREAK_MAYBE,  /* poll fails, writes may still land */
	BREAK_CLOSED, /* poll fails with an operation's code */
	POST_FAILS,
};

struct fake_dev {
	struct mc_xdev base;
	_Atomic int mood;
	_Atomic unsigned left; /* so many times, then WORK */
	_Atomic unsigned posts, opened, aborted;
	unsigned order[512], norder; /* first bytes of the slices, as they were posted */
	struct mc_signal signal;
	uint64_t max_frags;
};

struct fake_lane {
	struct mc_xlane base;
	struct fake_dev *dev;
	struct mc_list posted;
	uint64_t moved;
};

static struct fake_dev dev;
static struct mc_engine *a, *b; /* initiator, target */
static uint8_t *local, *remote;
static int32_t seg;

static struct fake_lane *lane_of(struct mc_xlane *x)
{
	return (struct fake_lane *)x;
}

static bool strikes(struct fake_dev *d, int mood)
{
	if (atomic_load(&d->mood) != mood || atomic_load(&d->left) == 0)
		return false;
	atomic_fetch_sub(&d->left, 1);
	return true;
}

static int fake_open(struct mc_xdev *x, const struct mc_xpath *path, struct mc_xlane **ret)
{
	struct fake_lane *l = mc_calloc(1, sizeof(*l));

	(void)path;
	if (!l)
		return -MC_E_NOMEM;
	l->base.ops = x->ops;
	l->dev = (struct fake_dev *)x;
	mc_list_init(&l->posted);
	atomic_fetch_add(&l->dev->opened, 1);
	*ret = &l->base;
	return 0;
}

static int fake_post(struct mc_xlane *x, struct mc_slice **slices, unsigned n)
{
	struct fake_lane *l = lane_of(x);

	if (strikes(l->dev, POST_FAILS))
		return -MC_E_CLOSED;
	for (unsigned i = 0; i < n; i++) {
		struct fake_dev *d = l->dev;

		if (d->norder < MC_ARRAY_LEN(d->order))
			d->order[d->norder++] = slices[i]->frags[0].local[0];
		d->max_frags = mc_max(d->max_frags, (uint64_t)slices[i]->nfrags);
		mc_list_push_back(&l->posted, &slices[i]->link);
	}
	atomic_fetch_add(&l->dev->posts, n);
	return (int)n;
}

static void copy(const struct mc_slice *s)
{
	for (uint32_t i = 0; i < s->nfrags; i++) {
		const struct mc_frag *f = &s->frags[i];
		uint8_t *there = (uint8_t *)(uintptr_t)f->raddr; /* one process: it is ours */

		memcpy(s->op == MC_OP_WRITE ? there : f->local,
		       s->op == MC_OP_WRITE ? f->local : there, f->len);
	}
}

static int fake_poll(struct mc_xlane *x, uint64_t block_ns, struct mc_slice **ret, unsigned max)
{
	struct fake_lane *l = lane_of(x);
	unsigned n = 0;
	struct mc_slice *s;

	if (mc_list_is_empty(&l->posted))
		return 0;
	if (strikes(l->dev, BREAK_UNSENT) ||
	    (atomic_load(&l->dev->mood) == BREAK_MAYBE && atomic_load(&l->dev->left) > 0))
		return -MC_E_RESET;
	if (strikes(l->dev, BREAK_CLOSED))
		return -MC_E_CLOSED;
	if (atomic_load(&l->dev->mood) == HOLD) {
		struct timespec ts = {.tv_nsec = (long)mc_min(block_ns, 5000000ull)};

		/* tidy-ok(sleep): a lane may block for block_ns, and this one has nothing else */
		(void)nanosleep(&ts, NULL);
		return 0;
	}
	while (n < max && (s = mc_list_first(&l->posted, struct mc_slice, link))) {
		mc_list_del(&s->link);
		copy(s);
		s->status = 0;
		s->verdict = MC_SLICE_DONE;
		l->moved += s->len;
		ret[n++] = s;
	}
	return (int)n;
}

static void fake_arm(struct mc_xlane *x, struct mc_xarm *ret)
{
	(void)x;
	*ret = (struct mc_xarm){.fd = -1, .is_block_ok = true};
}

static uint64_t fake_progress(const struct mc_xlane *x)
{
	return ((const struct fake_lane *)x)->moved;
}

static size_t fake_abort(struct mc_xlane *x, struct mc_list *left, uint8_t *ret_token)
{
	struct fake_lane *l = lane_of(x);
	bool is_maybe = strikes(l->dev, BREAK_MAYBE);
	struct mc_slice *s;

	mc_list_each (s, &l->posted, link)
		s->verdict = is_maybe && s->op == MC_OP_WRITE ? MC_SLICE_MAYBE : MC_SLICE_UNSENT;
	mc_list_splice_back(left, &l->posted);
	atomic_fetch_add(&l->dev->aborted, 1);
	memset(ret_token, 7, 16);
	return is_maybe ? 16 : 0;
}

static void fake_lane_close(struct mc_xlane *x)
{
	mc_assert(mc_list_is_empty(&lane_of(x)->posted));
	mc_free(x);
}

static const struct mc_xport_ops fake_ops = {
    .name = "fake",
    .caps = MC_XCAP_VISIBLE | MC_XCAP_FENCE | MC_XCAP_MULTI_FRAG,
    .frags_max = MC_SLICE_FRAGS_MAX,
    .len_max = 1ull << 32,
    .depth_max = 64,
    .lane_open = fake_open,
    .post = fake_post,
    .poll = fake_poll,
    .arm = fake_arm,
    .progress = fake_progress,
    .abort = fake_abort,
    .lane_close = fake_lane_close,
};

static void mood_set(enum mood m, unsigned times)
{
	atomic_store(&dev.left, times);
	atomic_store(&dev.mood, m);
}

static int setup(void **state)
{
	struct mc_engine_opts opts = {.size = sizeof(opts), .name = "127.0.0.1"};

	(void)state;
	(void)setenv("MC_FORCE_TCP", "1", 1);
	(void)setenv("MC_NUM_TCP_IO_THREADS", "1", 1);
	(void)setenv("MC_TCP_LANES_PER_PEER", "1", 1);
	memset(&dev, 0, sizeof(dev));
	dev.base.ops = &fake_ops;
	local = mc_aligned_alloc(4096, BYTES);
	remote = mc_aligned_alloc(4096, BYTES);
	assert_true(local && remote);
	assert_int_equal(mc_engine_open(&opts, NULL, &a), 0);
	assert_int_equal(mc_engine_open(&opts, NULL, &b), 0);
	a->lanes_from = &dev.base;
	assert_int_equal(mc_mem_reg(b, remote, BYTES, NULL, 3), 0);
	assert_int_equal(mc_segment_open(a, mc_engine_name(b), 0, NULL, &seg), 0);
	for (size_t i = 0; i < BYTES; i++)
		local[i] = (uint8_t)(i * 31 + i / 253);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	mc_engine_close(a);
	mc_engine_close(b);
	mc_free(local);
	mc_free(remote);
	return 0;
}

static int write_once(uint64_t off, uint64_t len, uint64_t deadline_ns, struct mc_diag *diag)
{
	struct mc_iov l = {(uintptr_t)local + off, len}, r = {(uintptr_t)remote + off, len};
	struct mc_transfer t = {
	    .op = MC_WRITE, .segment = seg, .nlocal = 1, .nremote = 1, .local = &l, .remote = &r};
	struct mc_group g = {.size = sizeof(g),
			     .n = 1,
			     .transfers = &t,
			     .deadline_ns = deadline_ns,
			     .priority = MC_PRIO_NORMAL};

	return mc_transfer_sync(a, &g, diag);
}

static uint64_t submit(uint64_t off, uint64_t len, enum mc_priority prio, uint64_t deadline_ns)
{
	struct mc_iov l = {(uintptr_t)local + off, len}, r = {(uintptr_t)remote + off, len};
	struct mc_transfer t = {
	    .op = MC_WRITE, .segment = seg, .nlocal = 1, .nremote = 1, .local = &l, .remote = &r};
	struct mc_group g = {.size = sizeof(g),
			     .n = 1,
			     .transfers = &t,
			     .deadline_ns = deadline_ns,
			     .priority = (uint8_t)prio};
	uint64_t id;

	assert_int_equal(mc_submit(a, &g, &id), 0);
	return id;
}

static int result(uint64_t id)
{
	struct mc_status st;

	assert_int_equal(mc_group_wait(a, id, 20 * MC_NS_PER_S, &st), 0);
	assert_int_equal(mc_group_free(a, id), 0);
	return st.status;
}

static void sides_that_are_cut_differently_meet_byte_by_byte(void **state)
{
	struct mc_iov l[60], r[7];
	struct mc_transfer t = {
	    .op = MC_WRITE, .segment = seg, .nlocal = 60, .nremote = 7, .local = l, .remote = r};
	struct mc_group g = {
	    .size = sizeof(g), .n = 1, .transfers = &t, .priority = MC_PRIO_NORMAL};
	uint64_t off = 0;

	(void)state;
	for (unsigned i = 0; i < 60; i++) {
		l[i] = (struct mc_iov){(uintptr_t)local + off, i * 7 % 90};
		off += l[i].len;
	}
	for (unsigned i = 0; i < 7; i++)
		r[i] = (struct mc_iov){(uintptr_t)remote + i * (off / 7),
				       i == 6 ? off - 6 * (off / 7) : off / 7};
	assert_int_equal(mc_transfer_sync(a, &g, NULL), 0);
	assert_memory_equal(local, remote, off);
	assert_int_equal(atomic_load(&dev.posts), 1); /* one slice of them all */
	assert_true(dev.max_frags >= 60);
}

static void a_broken_lane_gives_its_slices_to_another(void **state)
{
	(void)state;
	mood_set(BREAK_UNSENT, 3);
	assert_int_equal(write_once(0, BYTES, 0, NULL), 0);
	assert_memory_equal(local, remote, BYTES);
	assert_int_equal(result(submit(0, 4096, MC_PRIO_NORMAL, 0)), 0);
	mood_set(BREAK_UNSENT, 3);
	assert_int_equal(result(submit(0, BYTES, MC_PRIO_NORMAL, 0)), 0);
}

static void writes_that_may_still_land_are_fenced_and_sent_again(void **state)
{
	(void)state;
	mood_set(BREAK_MAYBE, 2);
	assert_int_equal(write_once(0, BYTES, 0, NULL), 0);
	assert_memory_equal(local, remote, BYTES);
	memset(remote, 0, BYTES);
	mood_set(BREAK_MAYBE, 2);
	assert_int_equal(result(submit(0, BYTES, MC_PRIO_NORMAL, 0)), 0);
	assert_memory_equal(local, remote, BYTES);
	assert_int_equal(atomic_load(&a->quarantine.n), 0);
}

static void a_lane_that_always_fails_to_post_ends_the_retries(void **state)
{
	struct mc_diag diag;

	(void)state;
	mood_set(POST_FAILS, 1000000);
	assert_int_equal(write_once(0, 4096, 0, &diag), -MC_E_RESET);
	assert_int_equal(atomic_load(&dev.opened), atomic_load(&dev.aborted));
	/* The session was given up; its successor works. */
	mood_set(WORK, 0);
	assert_int_equal(write_once(0, 4096, 0, NULL), 0);
}

static void a_lane_that_breaks_with_an_operations_code_ends_the_retries(void **state)
{
	(void)state;
	mood_set(BREAK_CLOSED, 1000000);
	assert_int_equal(write_once(0, 4096, 0, NULL), -MC_E_RESET);
	mood_set(BREAK_CLOSED, 4);
	assert_int_equal(write_once(0, 4096, 0, NULL), 0);
}

static void a_group_ends_by_its_deadline_when_nothing_moves(void **state)
{
	uint64_t at = mc_now_ns();

	(void)state;
	mood_set(HOLD, 1);
	assert_int_equal(write_once(0, 4096, 300 * MC_NS_PER_MS, NULL), -MC_E_TIMEDOUT);
	assert_int_equal(result(submit(0, 4096, MC_PRIO_NORMAL, 300 * MC_NS_PER_MS)),
			 -MC_E_TIMEDOUT);
	assert_true(mc_now_ns() - at < 2 * MC_NS_PER_S);
	mood_set(WORK, 0);
	assert_int_equal(write_once(0, 4096, 0, NULL), 0);
}

static void a_lane_broken_for_one_groups_sake_costs_the_others_no_try(void **state)
{
	uint64_t patient, hasty;

	(void)state;
	mood_set(HOLD, 1);
	patient = submit(0, 4096, MC_PRIO_NORMAL, 15 * MC_NS_PER_S);
	/* More groups than a slice has tries, each breaking the lane that both are on. */
	for (unsigned i = 0; i < 12; i++) {
		hasty = submit(65536, 4096, MC_PRIO_NORMAL, 60 * MC_NS_PER_MS);
		assert_int_equal(result(hasty), -MC_E_TIMEDOUT);
	}
	mood_set(WORK, 0);
	assert_int_equal(result(patient), 0);
}

static void cancel_ends_a_group_that_does_not_move(void **state)
{
	uint64_t id;

	(void)state;
	mood_set(HOLD, 1);
	id = submit(0, 4096, MC_PRIO_NORMAL, 15 * MC_NS_PER_S);
	assert_int_equal(mc_group_cancel(a, id), 0);
	assert_int_equal(result(id), -MC_E_CANCELED);
	assert_int_equal(mc_group_free(a, id), -MC_E_STALE); /* freed once is freed */
	mood_set(WORK, 0);
}

static void closing_a_segment_ends_its_groups(void **state)
{
	uint64_t id;

	(void)state;
	mood_set(HOLD, 1);
	id = submit(0, 4096, MC_PRIO_NORMAL, 15 * MC_NS_PER_S);
	assert_int_equal(mc_segment_close(a, seg), 0);
	assert_int_equal(result(id), -MC_E_CLOSED);
	mood_set(WORK, 0);
	assert_int_equal(write_once(0, 4096, 0, NULL), -MC_E_STALE);
	assert_int_equal(mc_segment_open(a, mc_engine_name(b), 0, NULL, &seg), 0);
	assert_int_equal(write_once(0, 4096, 0, NULL), 0);
}

static void arrived(void *arg)
{
	(void)arg;
}

static void high_priority_passes_what_waits(void **state)
{
	uint64_t filler[300], id[3];
	uint8_t mark[3] = {0};
	unsigned n = 0;

	(void)state;
	memset(local, 0xff, BYTES);
	assert_int_equal(write_once(0, 4096, 0, NULL), 0); /* nothing has to be asked any more */
	mood_set(HOLD, 1);
	for (unsigned i = 0; i < 300; i++) /* more than may fly */
		filler[i] = submit(i * 8192, 4096, MC_PRIO_LOW, 15 * MC_NS_PER_S);
	for (unsigned i = 0; i < 3; i++) {
		local[i * 8192 + 4096] = (uint8_t)(i + 1);
		id[i] = submit(i * 8192 + 4096, 4096, (enum mc_priority)(MC_PRIO_LOW - i),
			       15 * MC_NS_PER_S);
	}
	for (unsigned i = 0; i < a->nloops; i++)
		mc_loop_call(a->loops[i], arrived, NULL); /* all are with the pump now */
	mood_set(WORK, 0);
	for (unsigned i = 0; i < 3; i++)
		assert_int_equal(result(id[i]), 0);
	for (unsigned i = 0; i < 300; i++)
		assert_int_equal(result(filler[i]), 0);
	for (unsigned i = 0; i < dev.norder && n < 3; i++)
		if (dev.order[i] >= 1 && dev.order[i] <= 3)
			mark[n++] = (uint8_t)dev.order[i];
	assert_int_equal(n, 3);
	assert_int_equal(mark[0], 3);
	assert_int_equal(mark[1], 2);
	assert_int_equal(mark[2], 1);
}

/* The range of an unfenced write, as fence.c leaves it when the target gives no answer in time. */
static void a_range_that_is_unfenced_is_fenced_before_the_next_write(void **state)
{
	(void)state;
	mood_set(BREAK_MAYBE, 1);
	a->fence_end_ns = 1; /* no time to fence at all */
	assert_int_equal(write_once(0, 4096, 0, NULL), -MC_E_UNFENCED);
	assert_true(atomic_load(&a->quarantine.n) > 0);
	mood_set(WORK, 0);
	assert_int_equal(write_once(0, 64, 0, NULL), -MC_E_UNFENCED);
	assert_int_equal(write_once(65536, 64, 0, NULL), 0); /* elsewhere is another matter */
	/* A new session to the same incarnation knows it, too. */
	assert_int_equal(mc_segment_close(a, seg), 0);
	assert_int_equal(mc_segment_open(a, mc_engine_name(b), 0, NULL, &seg), 0);
	assert_int_equal(write_once(0, 64, 0, NULL), -MC_E_UNFENCED);
	a->fence_end_ns = 0;
	assert_int_equal(write_once(0, 64, 0, NULL), 0);
	assert_int_equal(atomic_load(&a->quarantine.n), 0);
}

static void a_later_range_of_a_group_is_looked_for_in_quarantine(void **state)
{
	struct mc_iov l[2] = {{(uintptr_t)local + 65536, 64}, {(uintptr_t)local, 64}};
	struct mc_iov r[2] = {{(uintptr_t)remote + 65536, 64}, {(uintptr_t)remote, 64}};
	struct mc_transfer t = {
	    .op = MC_WRITE, .segment = seg, .nlocal = 2, .nremote = 2, .local = l, .remote = r};
	struct mc_group g = {
	    .size = sizeof(g), .n = 1, .transfers = &t, .priority = MC_PRIO_NORMAL};

	(void)state;
	mood_set(BREAK_MAYBE, 1);
	a->fence_end_ns = 1;
	assert_int_equal(write_once(0, 4096, 0, NULL), -MC_E_UNFENCED);
	mood_set(WORK, 0);
	assert_int_equal(mc_transfer_sync(a, &g, NULL), -MC_E_UNFENCED);
	a->fence_end_ns = 0;
	assert_int_equal(mc_transfer_sync(a, &g, NULL), 0);
}

static void ranges_without_memory_to_note_them_block_the_whole_incarnation(void **state)
{
	(void)state;
	assert_int_equal(write_once(0, 64, 0, NULL), 0); /* warm: no other allocation in between */
	mood_set(BREAK_MAYBE, 1);
	a->fence_end_ns = 1;
	mc_mem_fail_after(0);
	assert_int_equal(write_once(0, 64, 0, NULL), -MC_E_UNFENCED);
	mc_mem_fail_after(-1);
	mood_set(WORK, 0);
	assert_int_equal(write_once(65536, 64, 0, NULL), -MC_E_UNFENCED);
	a->fence_end_ns = 0;
	assert_int_equal(write_once(65536, 64, 0, NULL), 0);
	assert_int_equal(atomic_load(&a->quarantine.n), 0);
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
	    T(sides_that_are_cut_differently_meet_byte_by_byte),
	    T(a_broken_lane_gives_its_slices_to_another),
	    T(writes_that_may_still_land_are_fenced_and_sent_again),
	    T(a_lane_that_always_fails_to_post_ends_the_retries),
	    T(a_lane_that_breaks_with_an_operations_code_ends_the_retries),
	    T(a_group_ends_by_its_deadline_when_nothing_moves),
	    T(a_lane_broken_for_one_groups_sake_costs_the_others_no_try),
	    T(cancel_ends_a_group_that_does_not_move),
	    T(closing_a_segment_ends_its_groups),
	    T(high_priority_passes_what_waits),
	    T(a_range_that_is_unfenced_is_fenced_before_the_next_write),
	    T(a_later_range_of_a_group_is_looked_for_in_quarantine),
	    T(ranges_without_memory_to_note_them_block_the_whole_incarnation),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
