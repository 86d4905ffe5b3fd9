/*
 * codec_test.c: cursors over bytes.
 */
#include "base/codec.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

static void codec_writes_little_endian_and_reads_back(void **state)
{
	uint8_t buf[15];
	struct mc_wr w = mc_wr_make(buf, sizeof(buf));
	struct mc_rd r;

	mc_wr_u8(&w, 1);
	mc_wr_u16(&w, 0x0302);
	mc_wr_u32(&w, 0x07060504);
	mc_wr_u64(&w, 0x0f0e0d0c0b0a0908ull);
	assert_false(w.is_bad);
	assert_int_equal(mc_wr_len(&w), 15);
	for (size_t i = 0; i < sizeof(buf); i++)
		assert_int_equal(buf[i], i + 1);
	r = mc_rd_make(buf, sizeof(buf));
	assert_int_equal(mc_rd_u8(&r), 1);
	assert_int_equal(mc_rd_u16(&r), 0x0302);
	assert_int_equal(mc_rd_u32(&r), 0x07060504);
	assert_false(mc_rd_is_done(&r));
	assert_true(mc_rd_u64(&r) == 0x0f0e0d0c0b0a0908ull);
	assert_true(mc_rd_is_done(&r));
	(void)state;
}

static void codec_reader_stays_bad_once_it_ran_out(void **state)
{
	struct mc_rd r = mc_rd_make("abc", 3);

	assert_int_equal(mc_rd_u32(&r), 0);
	assert_true(r.is_bad);
	assert_int_equal(mc_rd_u8(&r), 0);
	assert_null(mc_rd_bytes(&r, 0));
	assert_false(mc_rd_is_done(&r));
	(void)state;
}

static void codec_reader_gives_views_without_copy(void **state)
{
	const char *text = "abcd";
	struct mc_rd r = mc_rd_make(text, 4);

	assert_ptr_equal(mc_rd_bytes(&r, 3), text);
	assert_int_equal(mc_rd_left(&r), 1);
	assert_null(mc_rd_bytes(&r, SIZE_MAX));
	(void)state;
}

static void codec_writer_stays_bad_once_it_is_full(void **state)
{
	uint8_t buf[4];
	struct mc_wr w = mc_wr_make(buf, 3);
	const _Atomic size_t huge =
	    SIZE_MAX; /* atomic: unknown to the compiler, which would warn */

	memset(buf, 0xee, sizeof(buf));
	mc_wr_u32(&w, 0);
	assert_true(w.is_bad);
	mc_wr_u8(&w, 0);
	mc_wr_bytes(&w, "x", huge);
	assert_int_equal(mc_wr_len(&w), 0);
	assert_int_equal(buf[0], 0xee);
	assert_int_equal(buf[3], 0xee);
	(void)state;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(codec_writes_little_endian_and_reads_back),
	    cmocka_unit_test(codec_reader_stays_bad_once_it_ran_out),
	    cmocka_unit_test(codec_reader_gives_views_without_copy),
	    cmocka_unit_test(codec_writer_stays_bad_once_it_is_full),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
