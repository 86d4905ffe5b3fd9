/*
 * crc_test.c: every way to a CRC32C against one bit at a time, over lengths and alignments.
 */
#include "base/crc.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/mem.h"
#include "base/rand.h"

#define GUARD 64

static uint32_t oracle(uint32_t crc, const uint8_t *at, size_t n)
{
	uint32_t v = ~crc;

	for (size_t i = 0; i < n; i++) {
		v ^= at[i];
		for (int bit = 0; bit < 8; bit++)
			v = v >> 1 ^ (v & 1 ? 0x82f63b78u : 0);
	}
	return ~v;
}

static uint8_t *noise(size_t n)
{
	uint8_t *buf = mc_calloc(n, 1);
	struct mc_rand rand;

	assert_non_null(buf);
	mc_rand_seed(&rand, 7);
	for (size_t i = 0; i < n; i++)
		buf[i] = (uint8_t)mc_rand_u64(&rand);
	return buf;
}

/* Copies, and sees that nothing beside the target was touched. */
static void check_copy(uint8_t *dst, const uint8_t *src, size_t n, uint32_t seed,
		       enum mc_crc_way way, enum mc_crc_what what)
{
	memset(dst - GUARD, 0xa5, n + (size_t)2 * GUARD);
	assert_int_equal(mc_crc32c_by(way, what, seed, dst, src, n), oracle(seed, src, n));
	assert_memory_equal(dst, src, n);
	for (size_t i = 0; i < GUARD; i++) {
		assert_int_equal(dst[-1 - (ptrdiff_t)i], 0xa5);
		assert_int_equal(dst[n + i], 0xa5);
	}
}

static void check_all(const uint8_t *src, uint8_t *dst, size_t n, uint32_t seed)
{
	uint32_t want = oracle(seed, src, n);

	assert_int_equal(mc_crc32c(seed, src, n), want);
	assert_int_equal(mc_crc32c_table(seed, src, n), want);
	assert_int_equal(mc_crc32c_copy(seed, dst, src, n), want);
	assert_int_equal(mc_crc32c_stream(seed, dst, src, n), want);
	for (enum mc_crc_way way = MC_CRC_WIDE; way <= MC_CRC_TABLE; way++) {
		assert_int_equal(mc_crc32c_by(way, MC_CRC_READ, seed, NULL, src, n), want);
		check_copy(dst, src, n, seed, way, MC_CRC_COPY);
		check_copy(dst, src, n, seed, way, MC_CRC_STREAM);
	}
}

static void crc_of_the_standard_string(void **state)
{
	assert_int_equal(mc_crc32c(0, "123456789", 9), 0xe3069283u);
	assert_int_equal(mc_crc32c_table(0, "123456789", 9), 0xe3069283u);
	assert_int_equal(mc_crc32c(0, "", 0), 0);
	(void)state;
}

static void every_short_length_at_every_alignment(void **state)
{
	uint8_t *src = noise(2048), *dst = mc_calloc(1, 4096);

	assert_non_null(dst);
	for (size_t n = 0; n < 900; n += n < 300 ? 1 : 7) {
		for (size_t at = 0; at < 16; at++)
			check_all(src + at, dst + GUARD + (at * 5) % 64, n, (uint32_t)n * 77);
	}
	mc_free(dst);
	mc_free(src);
	(void)state;
}

/* Around multiples of what is run three abreast, and of what is folded. */
static void lengths_around_the_limits(void **state)
{
	static const size_t at[] = {512, 768, 1024, 1536, 5440, 16320, 17088, 32640, 65536, 262144};
	uint8_t *src = noise(300000), *dst = mc_calloc(1, 300000 + 2 * GUARD + 64);

	assert_non_null(dst);
	for (size_t i = 0; i < MC_ARRAY_LEN(at); i++) {
		for (size_t n = at[i] - 9; n <= at[i] + 9; n++)
			check_all(src + n % 11, dst + GUARD + n % 61, n, 0x12345678);
	}
	mc_free(dst);
	mc_free(src);
	(void)state;
}

static void a_crc_goes_on_where_another_ended(void **state)
{
	uint8_t *src = noise(40000);
	uint32_t whole = mc_crc32c(0, src, 40000);

	for (size_t cut = 0; cut <= 40000; cut += 997)
		assert_int_equal(mc_crc32c(mc_crc32c(0, src, cut), src + cut, 40000 - cut), whole);
	mc_free(src);
	(void)state;
}

static void a_seed_may_come_after_the_bytes(void **state)
{
	static const size_t at[] = {0,	1,   2,	   3,	  7,	 8,	 63,
				    64, 255, 4095, 65535, 65536, 131072, 299999};
	uint8_t *src = noise(300000);

	for (size_t i = 0; i < MC_ARRAY_LEN(at); i++)
		for (uint32_t seed = 1; seed != 0; seed <<= 3)
			assert_int_equal(mc_crc32c(0, src, at[i]) ^ mc_crc32c_skip(seed, at[i]),
					 mc_crc32c(seed, src, at[i]));
	mc_free(src);
	(void)state;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(crc_of_the_standard_string),
	    cmocka_unit_test(every_short_length_at_every_alignment),
	    cmocka_unit_test(lengths_around_the_limits),
	    cmocka_unit_test(a_crc_goes_on_where_another_ended),
	    cmocka_unit_test(a_seed_may_come_after_the_bytes),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
