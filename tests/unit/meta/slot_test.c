/*
 * slot_test.c: images round trip, and no changed bit or stranger's chunk passes.
 */
#include "meta/slot.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/hash.h"
#include "base/mem.h"

static const uint8_t tlv[] = {MC_SLOT_TLV_TYPE, 0, 4, 0, 7, 0, 0, 0, 99, 0, 1, 0, 'x'};

static struct mc_slot_info info_of(const char *key, uint64_t len)
{
	struct mc_slot_info info = {.gen = 5, .incarnation = 9, .len = len};

	info.key = (const uint8_t *)key;
	info.key_len = (uint32_t)strlen(key);
	info.key_hash = mc_hash64(key, info.key_len, 0);
	info.tlv = tlv;
	info.tlv_len = sizeof(tlv);
	assert_int_equal(mc_slot_layout(&info), 0);
	return info;
}

/* A sealed image whose payload is `fill`. */
static uint8_t *image_of(const struct mc_slot_info *info, int fill)
{
	uint8_t *image = mc_aligned_alloc(4096, info->slot_len);
	uint32_t *table = mc_calloc(info->nchunks + 1, sizeof(*table));

	assert_non_null(image);
	assert_non_null(table);
	memset(image, 0x5a, info->slot_len);
	memset(image + info->payload_off, fill, info->len);
	for (uint32_t i = 0; i < info->nchunks; i++) {
		uint64_t at = (uint64_t)i * MC_SLOT_CHUNK;

		table[i] = mc_slot_chunk_crc(info, i, image + info->payload_off + at,
					     mc_slot_chunk_len(info, i));
	}
	mc_slot_seal(info, table, image);
	mc_free(table);
	return image;
}

static void layout_of_small_and_paged(void **state)
{
	struct mc_slot_info info = info_of("abc", 100);

	assert_int_equal(info.align, 64);
	assert_int_equal(info.table_off, 80);
	assert_int_equal(info.payload_off, 128);
	assert_int_equal(info.slot_len, 256);
	info = info_of("abc", MC_SLOT_PAGED_MIN);
	assert_int_equal(info.align, 4096);
	assert_int_equal(info.nchunks, 1);
	assert_int_equal(info.payload_off, 4096);
	assert_int_equal(info.slot_len, 4096 + 65536);
	info = info_of("abc", MC_SLOT_PAYLOAD_MAX);
	assert_int_equal(info.nchunks, 1u << 24);
	(void)state;
}

static void layout_refuses_what_no_slot_may_have(void **state)
{
	struct mc_slot_info info = {.key_len = 0, .len = 1};

	assert_int_equal(mc_slot_layout(&info), -MC_E_INVAL);
	info.key_len = MC_SLOT_KEY_MAX + 1;
	assert_int_equal(mc_slot_layout(&info), -MC_E_TOO_BIG);
	info = (struct mc_slot_info){.key_len = 1, .tlv_len = MC_SLOT_TLV_MAX + 1};
	assert_int_equal(mc_slot_layout(&info), -MC_E_TOO_BIG);
	info = (struct mc_slot_info){.key_len = 1, .len = MC_SLOT_PAYLOAD_MAX + 1};
	assert_int_equal(mc_slot_layout(&info), -MC_E_TOO_BIG);
	(void)state;
}

static void sealed_image_decodes_to_what_was_sealed(void **state)
{
	static const uint64_t lens[] = {0, 1, 63, 4096, 65535, 65536, 65537, 1 << 20};

	for (size_t i = 0; i < MC_ARRAY_LEN(lens); i++) {
		struct mc_slot_info in = info_of("the key", lens[i]), out;
		uint8_t *image = image_of(&in, 3);
		bool is_whole;

		assert_int_equal(mc_slot_decode(image, in.slot_len, &out, NULL), 0);
		assert_true(out.gen == in.gen && out.incarnation == in.incarnation);
		assert_true(out.len == in.len && out.slot_len == in.slot_len);
		assert_int_equal(out.key_len, in.key_len);
		assert_memory_equal(out.key, in.key, in.key_len);
		assert_memory_equal(out.tlv, in.tlv, in.tlv_len);
		for (uint32_t c = 0; c < out.nchunks; c++)
			assert_int_equal(
			    mc_slot_table(image, &out, c),
			    mc_slot_chunk_crc(&out, c,
					      image + out.payload_off + (size_t)c * MC_SLOT_CHUNK,
					      mc_slot_chunk_len(&out, c)));
		/* The header alone gives the lengths. */
		assert_int_equal(mc_slot_decode(image, MC_SLOT_HEADER_LEN, &out, &is_whole), 0);
		assert_false(is_whole);
		assert_int_equal(mc_slot_decode(image, MC_SLOT_HEADER_LEN, &out, NULL),
				 -MC_E_CORRUPT);
		assert_int_equal(mc_slot_decode(image, mc_slot_head_len(&in) - 1, &out, &is_whole),
				 0);
		assert_false(is_whole);
		mc_slot_clear(image);
		assert_int_equal(mc_slot_decode(image, in.slot_len, &out, NULL), -MC_E_NOENT);
		mc_free(image);
	}
	(void)state;
}

static void no_changed_bit_of_the_head_passes(void **state)
{
	struct mc_slot_info in = info_of("k", 100), out;
	uint8_t *image = image_of(&in, 3);

	for (size_t bit = 0; bit < mc_slot_head_len(&in) * 8; bit++) {
		image[bit / 8] ^= (uint8_t)(1u << bit % 8);
		assert_true(mc_slot_decode(image, in.slot_len, &out, NULL) < 0);
		image[bit / 8] ^= (uint8_t)(1u << bit % 8);
	}
	assert_int_equal(mc_slot_decode(image, in.slot_len, &out, NULL), 0);
	mc_free(image);
	(void)state;
}

/* The same bytes of another life, write, key or place have another CRC. */
static void chunk_of_another_slot_does_not_pass(void **state)
{
	struct mc_slot_info a = info_of("k", 1 << 20), b = a;
	uint8_t bytes[64] = {1, 2, 3};
	uint32_t crc = mc_slot_chunk_crc(&a, 0, bytes, 64);

	assert_int_not_equal(mc_slot_chunk_crc(&a, 1, bytes, 64), crc);
	b.gen++;
	assert_int_not_equal(mc_slot_chunk_crc(&b, 0, bytes, 64), crc);
	b = a;
	b.incarnation++;
	assert_int_not_equal(mc_slot_chunk_crc(&b, 0, bytes, 64), crc);
	b = a;
	b.key_hash++;
	assert_int_not_equal(mc_slot_chunk_crc(&b, 0, bytes, 64), crc);
	(void)state;
}

static void chunk_copy_gives_bytes_and_crc(void **state)
{
	struct mc_slot_info info = info_of("k", 1 << 20);
	uint8_t *from = mc_calloc(1, MC_SLOT_CHUNK), *to = mc_calloc(1, MC_SLOT_CHUNK);

	assert_true(from && to);
	memset(from, 0x77, MC_SLOT_CHUNK);
	assert_int_equal(mc_slot_chunk_copy(&info, 3, to, from, MC_SLOT_CHUNK),
			 mc_slot_chunk_crc(&info, 3, from, MC_SLOT_CHUNK));
	assert_memory_equal(to, from, MC_SLOT_CHUNK);
	mc_free(from);
	mc_free(to);
	(void)state;
}

static void tlvs_are_listed_until_the_end_or_damage(void **state)
{
	struct mc_slot_info info = info_of("k", 1);
	uint8_t bad[sizeof(tlv)], type;
	const uint8_t *val;
	uint32_t cursor = 0;
	uint16_t len;

	assert_true(mc_slot_tlv_next(&info, &cursor, &type, &val, &len));
	assert_int_equal(type, MC_SLOT_TLV_TYPE);
	assert_int_equal(len, 4);
	assert_int_equal(val[0], 7);
	assert_true(mc_slot_tlv_next(&info, &cursor, &type, &val, &len));
	assert_int_equal(type, 99);
	assert_int_equal(val[0], 'x');
	assert_false(mc_slot_tlv_next(&info, &cursor, &type, &val, &len));
	memcpy(bad, tlv, sizeof(bad));
	bad[10] = 2; /* longer than what is left */
	info.tlv = bad;
	cursor = 8;
	assert_false(mc_slot_tlv_next(&info, &cursor, &type, &val, &len));
	(void)state;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(layout_of_small_and_paged),
	    cmocka_unit_test(layout_refuses_what_no_slot_may_have),
	    cmocka_unit_test(sealed_image_decodes_to_what_was_sealed),
	    cmocka_unit_test(no_changed_bit_of_the_head_passes),
	    cmocka_unit_test(chunk_of_another_slot_does_not_pass),
	    cmocka_unit_test(chunk_copy_gives_bytes_and_crc),
	    cmocka_unit_test(tlvs_are_listed_until_the_end_or_damage),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
