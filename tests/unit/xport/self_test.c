/*
 * self_test.c: transfers to one's own segment through the vtable.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "base/mem.h"
#include "xport/self.h"

#define LEN 65536u

static struct mc_region_table *regions;
static struct mc_xdev *dev;
static struct mc_xlane *lane;
static int64_t live_before;
static _Alignas(64) uint8_t mem[LEN], local[LEN];
static struct mc_remote_region rr;

static int self_setup(void **state)
{
	struct mc_xdev_env env = {0};
	struct mc_xpath path = {0};
	struct mc_region_desc desc = {.addr = (uintptr_t)mem, .len = LEN, .rights = 3};
	struct mc_region_info info;

	live_before = mc_mem_live();
	for (size_t i = 0; i < LEN; i++) {
		mem[i] = (uint8_t)(i * 7 + (i >> 8));
		local[i] = (uint8_t)(i * 5 + 1);
	}
	if (mc_region_table_open(&regions) < 0 || mc_region_add(regions, &desc, &info) < 0)
		return -1;
	rr = (struct mc_remote_region){
	    .addr = desc.addr, .len = LEN, .id = info.id, .gen = info.gen, .rights = 3};
	env.regions = regions;
	if (mc_self_dev_open(&env, &dev) < 0)
		return -1;
	(void)state;
	return dev->ops->lane_open(dev, &path, &lane);
}

static int self_teardown(void **state)
{
	(void)state;
	lane->ops->lane_close(lane);
	dev->ops->dev_close(dev);
	mc_region_table_close(regions);
	return mc_mem_live() == live_before ? 0 : -1;
}

/* Post one slice and take it back. */
static int run(struct mc_slice *s)
{
	struct mc_slice *done = NULL;
	uint64_t calls = mc_mem_calls();

	s->status = 12345;
	for (uint32_t i = 0; i < s->nfrags; i++)
		s->len += s->frags[i].len;
	assert_int_equal(lane->ops->post(lane, &s, 1), 1);
	assert_int_equal(lane->ops->poll(lane, 0, &done, 1), 1);
	assert_ptr_equal(done, s);
	assert_int_equal(s->verdict, MC_SLICE_DONE);
	assert_int_equal(mc_mem_calls(), calls); /* no allocation per transfer */
	return s->status;
}

static int run_frag(enum mc_op op, uint8_t *at, uint64_t raddr, uint64_t len)
{
	struct mc_frag f = {at, raddr, len, &rr};
	struct mc_slice s = {.op = op, .nfrags = 1, .frags = &f};

	return run(&s);
}

static void fragments_are_read_and_written(void **state)
{
	struct mc_frag f[3] = {{local, rr.addr + 1, 1, &rr},
			       {local + 8, rr.addr + 100, 30000, &rr},
			       {local + LEN - 7, rr.addr + LEN - 7, 7, &rr}};
	struct mc_slice s = {.op = MC_OP_READ, .nfrags = 3, .frags = f};

	assert_int_equal(run(&s), 0);
	assert_int_equal(s.moved, 30008);
	assert_int_equal(local[0], mem[1]);
	assert_memory_equal(local + 8, mem + 100, 30000);
	assert_memory_equal(local + LEN - 7, mem + LEN - 7, 7);
	memset(local, 0x5a, LEN);
	s = (struct mc_slice){.op = MC_OP_WRITE, .nfrags = 3, .frags = f};
	assert_int_equal(run(&s), 0);
	assert_int_equal(mem[1], 0x5a);
	assert_int_equal(mem[99], (uint8_t)(99 * 7));
	assert_memory_equal(mem + 100, local, 30000);
	assert_int_equal(lane->ops->progress(lane), 60016);
	(void)state;
}

static void overlapping_source_and_target_move_as_memmove(void **state)
{
	uint8_t want[LEN];

	memcpy(want, mem, LEN);
	memmove(want + 100, want, 40000);
	assert_int_equal(run_frag(MC_OP_WRITE, mem, rr.addr + 100, 40000), 0);
	assert_memory_equal(mem, want, LEN);
	memmove(want, want + 64, 40000);
	assert_int_equal(run_frag(MC_OP_READ, mem, rr.addr + 64, 40000), 0);
	assert_memory_equal(mem, want, LEN);
	(void)state;
}

static void a_refused_slice_has_moved_nothing(void **state)
{
	struct mc_remote_region stale = rr, gpu = rr;
	struct mc_frag f[2] = {{local, rr.addr, 64, &rr}, {local + 64, rr.addr + LEN - 1, 2, &rr}};
	struct mc_slice s = {.op = MC_OP_WRITE, .nfrags = 2, .frags = f};
	uint8_t before = mem[0];

	assert_int_equal(run(&s), -MC_E_RANGE);
	assert_int_equal(s.bad_frag, 1);
	stale.gen++;
	f[1] = (struct mc_frag){local, rr.addr, 1, &stale};
	assert_int_equal(run(&s), -MC_E_STALE);
	gpu.kind = MC_MEM_CUDA;
	f[1].rr = &gpu;
	assert_int_equal(run(&s), -MC_E_UNSUPPORTED);
	assert_int_equal(run_frag(MC_OP_WRITE, local, rr.addr - 1, 2), -MC_E_RANGE);
	assert_int_equal(run_frag(MC_OP_READ, local, rr.addr, LEN + 1), -MC_E_RANGE);
	assert_int_equal(run_frag(MC_OP_READ, local, rr.addr + 1, UINT64_MAX), -MC_E_RANGE);
	assert_int_equal(mem[0], before);
	assert_int_equal(mc_region_del(regions, rr.addr), 0); /* no pin was left behind */
	assert_int_equal(run_frag(MC_OP_READ, local, rr.addr, 1), -MC_E_STALE);
	(void)state;
}

static void a_signal_follows_the_data(void **state)
{
	struct mc_frag f = {local, rr.addr, 64, &rr};
	struct mc_slice s = {
	    .op = MC_OP_WRITE, .nfrags = 1, .frags = &f, .signal = {&rr, rr.addr + 128, 77}};
	uint64_t word;

	assert_int_equal(run(&s), 0);
	memcpy(&word, mem + 128, sizeof(word));
	assert_int_equal(word, 77);
	s.signal.raddr = rr.addr + 129;
	assert_int_equal(run(&s), -MC_E_INVAL);
	s.signal.raddr = rr.addr + LEN;
	assert_int_equal(run(&s), -MC_E_RANGE);
	(void)state;
}

static void a_full_lane_takes_no_more_and_abort_returns_the_finished(void **state)
{
	static struct mc_slice slices[1500];
	static struct mc_slice *ptrs[1500];
	struct mc_frag f = {local, rr.addr, 8, &rr};
	uint8_t token[MC_XPORT_TOKEN_MAX];
	struct mc_list left;
	struct mc_xarm arm;
	int n = 0;

	for (int i = 0; i < 1500; i++) {
		slices[i] = (struct mc_slice){.op = MC_OP_READ, .nfrags = 1, .frags = &f, .len = 8};
		ptrs[i] = &slices[i];
	}
	assert_int_equal(lane->ops->post(lane, ptrs, 1500), lane->ops->depth_max);
	assert_int_equal(lane->ops->post(lane, ptrs + 1100, 1), 0);
	lane->ops->arm(lane, &arm);
	assert_int_equal(arm.fd, -1);
	mc_list_init(&left);
	assert_int_equal(lane->ops->abort(lane, &left, token), 0);
	for (struct mc_list *l = mc_list_pop_front(&left); l; l = mc_list_pop_front(&left), n++)
		assert_int_equal(mc_list_entry(l, struct mc_slice, link)->verdict, MC_SLICE_DONE);
	assert_int_equal(n, lane->ops->depth_max);
	assert_int_equal(lane->ops->post(lane, ptrs, 1), 1);
	(void)state;
}

#define T(f) cmocka_unit_test_setup_teardown(f, self_setup, self_teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
	    T(fragments_are_read_and_written),
	    T(overlapping_source_and_target_move_as_memmove),
	    T(a_refused_slice_has_moved_nothing),
	    T(a_signal_follows_the_data),
	    T(a_full_lane_takes_no_more_and_abort_returns_the_finished),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
