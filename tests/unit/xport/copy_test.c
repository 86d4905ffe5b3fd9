/*
 * copy_test.c: every alignment and length around the kernels' block sizes, between guard pages.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>
#include <sys/mman.h>

#include "base/mem.h"
#include "xport/copy.h"

#define PAGE 4096u
#define AREA (8 * PAGE)

struct area {
	uint8_t *base; /* AREA bytes between two pages that fault */
};

static struct area area_map(void)
{
	uint8_t *p = mmap(NULL, AREA + 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	assert_ptr_not_equal(p, MAP_FAILED);
	assert_int_equal(mprotect(p + PAGE, AREA, PROT_READ | PROT_WRITE), 0);
	return (struct area){p + PAGE};
}

static void area_unmap(struct area a)
{
	assert_int_equal(munmap(a.base - PAGE, AREA + 2 * PAGE), 0);
}

static void check(struct area dst, struct area src, size_t dst_at, size_t src_at, size_t len,
		  enum mc_copy_hint hint)
{
	memset(dst.base, 0xee, AREA);
	mc_copy(dst.base + dst_at, src.base + src_at, len, hint);
	assert_memory_equal(dst.base + dst_at, src.base + src_at, len);
	for (size_t i = dst_at > 64 ? dst_at - 64 : 0; i < dst_at; i++)
		assert_int_equal(dst.base[i], 0xee);
	for (size_t i = dst_at + len; i < mc_min(dst_at + len + 64, (size_t)AREA); i++)
		assert_int_equal(dst.base[i], 0xee);
}

static void copy_moves_exactly_the_bytes_at_any_alignment(void **state)
{
	static const size_t lens[] = {0,    1,	  7,	8,    63,   64,	  65,	255,
				      256,  257,  1023, 1024, 1025, 1087, 1279, 1280,
				      1281, 4095, 4096, 4097, 8191, 20000};
	struct area dst = area_map(), src = area_map();

	for (size_t i = 0; i < AREA; i++)
		src.base[i] = (uint8_t)(i * 31 + (i >> 8));
	for (size_t l = 0; l < MC_ARRAY_LEN(lens); l++) {
		for (size_t off = 0; off < 64; off += 7) {
			for (int hint = 0; hint < MC_COPY_HINT_COUNT; hint++) {
				check(dst, src, off, 63 - off, lens[l], hint);
				check(dst, src, AREA - lens[l], AREA - lens[l], lens[l], hint);
				check(dst, src, 0, AREA - lens[l], lens[l], hint);
			}
		}
	}
	area_unmap(dst);
	area_unmap(src);
	(void)state;
}

static void hint_streams_large_transfers_only(void **state)
{
	assert_int_equal(mc_copy_hint_of(0), MC_COPY_CACHED);
	assert_int_equal(mc_copy_hint_of(MC_COPY_STREAM_MIN - 1), MC_COPY_CACHED);
	assert_int_equal(mc_copy_hint_of(MC_COPY_STREAM_MIN), MC_COPY_STREAM);
	assert_int_equal(mc_copy_hint_of(UINT64_MAX), MC_COPY_STREAM);
	(void)state;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(copy_moves_exactly_the_bytes_at_any_alignment),
	    cmocka_unit_test(hint_streams_large_transfers_only),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
