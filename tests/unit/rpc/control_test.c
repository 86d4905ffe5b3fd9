/*
 * control_test.c: control messages through protobuf-c in a capped arena, and packed records.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "base/mem.h"
#include "wire/control.h"
#include "wire/control.pb-c.h"
#include "wire/pb.h"

static void records_read_back_as_written(void **state)
{
	struct mc_ctl_region in = {.addr = 1,
				   .len = 2,
				   .id = 3,
				   .gen = 4,
				   .rights = 5,
				   .kind = 6,
				   .arena = 7,
				   .arena_off = 8,
				   .key = "key"},
			     out;
	struct mc_ctl_range range = {.addr = 0x1122334455667788, .len = 9}, back;
	uint8_t buf[MC_CTL_REGION_LEN + MC_CTL_RANGE_LEN];
	uint8_t again[MC_CTL_REGION_LEN];
	struct mc_wr w = mc_wr_make(buf, sizeof(buf));
	struct mc_rd r = mc_rd_make(buf, sizeof(buf));

	mc_ctl_region_encode(&w, &in);
	assert_int_equal(mc_wr_len(&w), MC_CTL_REGION_LEN);
	mc_ctl_range_encode(&w, &range);
	assert_false(w.is_bad);
	assert_int_equal(mc_wr_len(&w), sizeof(buf));
	mc_ctl_region_decode(&r, &out);
	mc_ctl_range_decode(&r, &back);
	assert_true(mc_rd_is_done(&r));
	assert_memory_equal(&range, &back, sizeof(range));
	w = mc_wr_make(again, sizeof(again)); /* the struct has gaps, its bytes have none */
	mc_ctl_region_encode(&w, &out);
	assert_memory_equal(again, buf, sizeof(again));
	assert_int_equal(buf[MC_CTL_REGION_LEN], 0x88); /* little-endian */
	(void)state;
}

static void ports_read_back_as_written(void **state)
{
	struct mc_ctl_port in = {.gid = {0xfe, 0x80, [15] = 9},
				 .mbps = 400000,
				 .lid = 7,
				 .mtu = 5,
				 .flags = MC_CTL_PORT_ETHERNET,
				 .numa = -1,
				 .name = "a name of six and thirty characters!"},
			   out;
	uint8_t buf[MC_CTL_PORT_LEN];
	struct mc_wr w = mc_wr_make(buf, sizeof(buf));
	struct mc_rd r = mc_rd_make(buf, sizeof(buf));

	mc_ctl_port_encode(&w, &in);
	assert_false(w.is_bad);
	assert_int_equal(mc_wr_len(&w), MC_CTL_PORT_LEN);
	mc_ctl_port_decode(&r, &out);
	assert_true(mc_rd_is_done(&r));
	assert_memory_equal(&in, &out, sizeof(in));
	r = mc_rd_make(buf, sizeof(buf) - 1);
	mc_ctl_port_decode(&r, &out);
	assert_true(r.is_bad);
	assert_string_equal(out.name, "");
	(void)state;
}

static void record_counts_are_checked(void **state)
{
	assert_int_equal(mc_ctl_count(0, MC_CTL_RANGE_LEN), 0);
	assert_int_equal(mc_ctl_count(160, MC_CTL_RANGE_LEN), 10);
	assert_int_equal(mc_ctl_count(161, MC_CTL_RANGE_LEN), -MC_E_PROTO);
	assert_int_equal(
	    mc_ctl_count((MC_CTL_RECORDS_MAX + 1) * MC_CTL_RANGE_LEN, MC_CTL_RANGE_LEN),
	    -MC_E_TOO_BIG);
	(void)state;
}

static void hello_survives_the_arena_without_the_heap(void **state)
{
	_Alignas(16) uint8_t space[4096];
	char *rails[] = {"127.0.0.1:1", "10.0.0.1:2"};
	Mc__Ctl__Hello in = MC__CTL__HELLO__INIT, *out;
	ProtobufCMessage *msg;
	struct mc_pb_arena arena;
	uint8_t buf[512];
	size_t len;

	in.segment = "node-a";
	in.epoch = 77;
	in.nonce = (ProtobufCBinaryData){.data = (uint8_t *)"0123456789abcdef", .len = 16};
	in.rails = rails;
	in.n_rails = 2;
	assert_int_equal(mc_pb_pack(&in.base, buf, sizeof(buf), &len), 0);
	mc_pb_arena_init(&arena, space, sizeof(space));
	for (int i = 0; i < 3; i++) {
		assert_int_equal(mc_pb_unpack(&arena, &mc__ctl__hello__descriptor, buf, len, &msg),
				 0);
		out = (Mc__Ctl__Hello *)msg;
		assert_string_equal(out->segment, "node-a");
		assert_int_equal(out->epoch, 77);
		assert_int_equal(out->nonce.len, 16);
		assert_int_equal(out->n_rails, 2);
		assert_string_equal(out->rails[1], "10.0.0.1:2");
		assert_true((uint8_t *)out >= space && (uint8_t *)out < space + sizeof(space));
	}
	(void)state;
}

static void message_above_the_arena_is_refused(void **state)
{
	_Alignas(16) uint8_t space[1024];
	uint8_t records[4000] = {0}, buf[4100];
	Mc__Ctl__Resolve in = MC__CTL__RESOLVE__INIT;
	ProtobufCMessage *msg;
	struct mc_pb_arena arena;
	size_t len;

	in.records = (ProtobufCBinaryData){.data = records, .len = sizeof(records)};
	assert_int_equal(mc_pb_pack(&in.base, buf, 100, &len), -MC_E_TOO_BIG);
	assert_in_range(len, 4001, 4100);
	assert_int_equal(mc_pb_pack(&in.base, buf, sizeof(buf), &len), 0);
	mc_pb_arena_init(&arena, space, sizeof(space));
	assert_int_equal(mc_pb_unpack(&arena, &mc__ctl__resolve__descriptor, buf, len, &msg),
			 -MC_E_TOO_BIG);
	assert_int_equal(mc_pb_unpack(&arena, &mc__ctl__resolve__descriptor, buf, len - 1, &msg),
			 -MC_E_PROTO);
	assert_int_equal(mc_pb_unpack(&arena, &mc__ctl__probe__descriptor, "", 0, &msg), 0);
	(void)state;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(records_read_back_as_written),
	    cmocka_unit_test(record_counts_are_checked),
	    cmocka_unit_test(ports_read_back_as_written),
	    cmocka_unit_test(hello_survives_the_arena_without_the_heap),
	    cmocka_unit_test(message_above_the_arena_is_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
