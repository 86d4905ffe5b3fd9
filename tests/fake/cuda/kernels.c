/*
 * kernels.c: the kernels of src/ep, compiled for the processor: blocks one after the other, and
 * between two barriers threads one after the other. Every other launch goes through both backwards,
 * so that what depends on an order that GPUs do not keep is seen.
 */
#include "kernels.h"

#include <mooncake/err.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/mem.h"
#include "ep/gpu_abi.h"

static _Thread_local struct {
	uint32_t x, y, nx, ny;
	bool is_backwards;
} grid;

static inline uint64_t in_order(uint64_t i, uint64_t n)
{
	return grid.is_backwards ? n - 1 - i : i;
}

#define MC_KERNEL(name) static void kernel_##name(const struct mc_epk_half h)
#define MC_DEV static inline
#define MC_SHARED
#define MC_EACH(i, n)                                                                              \
	for (uint32_t i##_of = (uint32_t)(n), i##_at = 0, i;                                       \
	     i##_at < i##_of && (i = (uint32_t)in_order(i##_at, i##_of)) < i##_of; i##_at++)
#define MC_SYNC() ((void)0)
#define MC_BLOCK_X grid.x
#define MC_BLOCK_Y grid.y
#define MC_BLOCKS_X grid.nx
#define MC_BLOCKS_Y grid.ny

MC_DEV uint64_t gpu_load(const uint64_t *from)
{
	return __atomic_load_n(from, __ATOMIC_ACQUIRE);
}

MC_DEV void gpu_store(uint64_t *to, uint64_t v)
{
	__atomic_store_n(to, v, __ATOMIC_RELEASE);
}

MC_DEV uint64_t gpu_cas(uint64_t *word, uint64_t expected, uint64_t to)
{
	(void)__atomic_compare_exchange_n(word, &expected, to, false, __ATOMIC_ACQ_REL,
					  __ATOMIC_ACQUIRE);
	return expected;
}

MC_DEV void gpu_fence(void)
{
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
}

MC_DEV uint64_t gpu_now_ns(void)
{
	return mc_now_ns();
}

/* A GPU has the time; here the rank that is waited for needs the core. */
MC_DEV void gpu_nap(void)
{
	(void)nanosleep(&(struct timespec){.tv_nsec = 20000}, NULL);
}

MC_DEV void gpu_or_shared(uint32_t *word, uint32_t bits)
{
	*word |= bits;
}

MC_DEV uint32_t gpu_ones(uint32_t bits)
{
	return (uint32_t)__builtin_popcount(bits);
}

#include "ep/kernels_rows.h"

static const struct {
	const char *name;
	void (*run)(struct mc_epk_half h);
} kernels[] = {
#define KERNEL_ROW(name) {"mc_epk_" #name, kernel_##name},
    MC_EPK_TABLE(KERNEL_ROW)
#undef KERNEL_ROW
};

int fake_kernel_find(const char *name)
{
	for (unsigned i = 0; i < MC_ARRAY_LEN(kernels); i++)
		if (strcmp(kernels[i].name, name) == 0)
			return (int)i;
	return -1;
}

void fake_kernel_run(int kernel, uint32_t blocks_x, uint32_t blocks_y, const void *arg,
		     bool is_backwards)
{
	struct mc_epk_half half;
	uint64_t n = (uint64_t)blocks_x * blocks_y;

	memcpy(&half, arg, sizeof(half));
	grid.nx = blocks_x;
	grid.ny = blocks_y;
	grid.is_backwards = is_backwards;
	for (uint64_t i = 0; i < n; i++) {
		uint64_t block = in_order(i, n);

		grid.x = (uint32_t)(block % blocks_x);
		grid.y = (uint32_t)(block / blocks_x);
		kernels[kernel].run(half);
	}
}
