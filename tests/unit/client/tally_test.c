/*
 * tally_test.c: CRCs of chunks taken in pieces are those of the whole, or not known; never others.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/rand.h"
#include "client/priv.h"

#define HEAD 301u /* of the transfer, before the payload */
#define LEN (5u * MC_SLOT_CHUNK + 777)

struct object {
	struct mc_cli_op *op;
	struct mc_slot_info info;
	uint8_t *bytes, *copy; /* head and payload */
	struct mc_rand rand;
};

static void object_open(struct object *o, uint64_t len)
{
	*o = (struct object){.op = mc_calloc(1, sizeof(*o->op)),
			     .info = {.gen = 7,
				      .incarnation = 99,
				      .key_hash = 5,
				      .len = len,
				      .key = (const uint8_t *)"\0k",
				      .key_len = 2},
			     .bytes = mc_calloc(1, HEAD + len),
			     .copy = mc_calloc(1, HEAD + len)};
	assert_true(o->op && o->bytes && o->copy);
	assert_int_equal(mc_slot_layout(&o->info), 0);
	mc_rand_seed(&o->rand, len);
	for (size_t i = 0; i < HEAD + len; i++)
		o->bytes[i] = (uint8_t)mc_rand_u64(&o->rand);
}

static void object_close(struct object *o)
{
	mc_free(o->bytes);
	mc_free(o->copy);
	mc_cli_op_free(o->op);
}

static uint32_t crc_of(const struct object *o, uint32_t chunk)
{
	return mc_slot_chunk_crc(&o->info, chunk, o->bytes + HEAD + chunk * MC_SLOT_CHUNK,
				 mc_slot_chunk_len(&o->info, chunk));
}

/* @return how many chunks are known, each of which is right */
static unsigned known(const struct object *o, const struct mc_cli_tally *y)
{
	unsigned n = 0;
	uint32_t crc;

	for (uint32_t i = 0; i < o->info.nchunks; i++) {
		if (!mc_cli_tally_crc(y, &o->info, i, &crc))
			continue;
		assert_int_equal(crc, crc_of(o, i));
		n++;
	}
	return n;
}

/* All of it in pieces of any length, in order. @param is_copied  or only counted */
static void pass(struct object *o, struct mc_cli_tally *y, size_t max, bool is_copied, bool is_big)
{
	for (size_t at = 0, n; at < HEAD + o->info.len; at += n) {
		n = 1 + mc_rand_below(&o->rand, max);
		n = mc_min(n, (size_t)(HEAD + o->info.len - at));
		mc_cli_tally_add(y, at, is_copied ? o->copy + at : NULL, o->bytes + at, n, is_big);
	}
	if (is_copied)
		assert_memory_equal(o->copy, o->bytes, HEAD + o->info.len);
}

static void pieces_in_order_are_all_known(void **state)
{
	static const size_t max[] = {1000, MC_SLOT_CHUNK, 3 * MC_SLOT_CHUNK, 2 * LEN};
	struct object o;

	(void)state;
	object_open(&o, LEN);
	for (size_t i = 0; i < MC_ARRAY_LEN(max); i++)
		for (unsigned how = 0; how < 3; how++) {
			struct mc_cli_tally *y = mc_cli_tally_new(o.op, &o.info, HEAD);

			assert_non_null(y);
			assert_int_equal(known(&o, y), 0);
			memset(o.copy, 0, HEAD + LEN);
			pass(&o, y, max[i], how > 0, how > 1);
			assert_int_equal(known(&o, y), o.info.nchunks);
		}
	object_close(&o);
}

/* Halves of the whole, the second one first: only the chunk that is cut is not known. */
static void of_a_chunk_that_is_out_of_order_nothing_is_known(void **state)
{
	const size_t cut = HEAD + 2 * MC_SLOT_CHUNK + 100;
	struct mc_cli_tally *y;
	struct object o;
	uint32_t crc;

	(void)state;
	object_open(&o, LEN);
	y = mc_cli_tally_new(o.op, &o.info, HEAD);
	mc_cli_tally_add(y, cut, o.copy + cut, o.bytes + cut, HEAD + LEN - cut, true);
	mc_cli_tally_add(y, 0, o.copy, o.bytes, cut, true);
	assert_memory_equal(o.copy, o.bytes, HEAD + LEN);
	assert_int_equal(known(&o, y), o.info.nchunks - 1);
	assert_false(mc_cli_tally_crc(y, &o.info, 2, &crc));
	object_close(&o);
}

static void what_is_void_or_missing_is_not_known(void **state)
{
	struct mc_cli_tally *y;
	struct object o;

	(void)state;
	object_open(&o, LEN);
	y = mc_cli_tally_new(o.op, &o.info, HEAD);
	mc_cli_tally_add(y, 0, NULL, o.bytes, HEAD + LEN - 1, false);
	assert_int_equal(known(&o, y), o.info.nchunks - 1); /* the last byte did not come */
	mc_cli_tally_void(y);
	assert_int_equal(known(&o, y), 0);
	pass(&o, y, LEN, false, false);
	assert_int_equal(known(&o, y), 0); /* who moves bytes again shows only some of them */
	assert_int_equal(known(&o, NULL), 0);
	object_close(&o);
	object_open(&o, MC_SLOT_CHUNK - 1);
	assert_null(mc_cli_tally_new(o.op, &o.info, HEAD));
	object_close(&o);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(pieces_in_order_are_all_known),
	    cmocka_unit_test(of_a_chunk_that_is_out_of_order_nothing_is_known),
	    cmocka_unit_test(what_is_void_or_missing_is_not_known),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
