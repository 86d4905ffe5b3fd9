/*
 * tcp_wire_test.c: the bytes of our TCP frames and of upstream's, as written in the headers.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "xport/tcp_classic.h"
#include "xport/tcp_wire.h"

static void a_hello_has_its_documented_bytes(void **state)
{
	static const uint8_t want[MC_TCP_HELLO_BYTES] =
	    "\xf5MCLANE\xff\x01\0\0\0\0\0\0\0"
	    "\x05\0\0\0\0\0\0\0\x88\x77\0\0\0\0\0\0\x02\x01\0\0\0\0\0\x80"
	    "0123456789abcdef\0\0\0\0\0\0\0";
	struct mc_tcp_hello h = {.lane = 5,
				 .initiator_epoch = 0x7788,
				 .target_epoch = 0x8000000000000102,
				 .nonce = "0123456789abcde"},
			    back;
	uint8_t buf[MC_TCP_HELLO_BYTES];

	h.nonce[15] = 'f';
	mc_tcp_hello_encode(buf, &h);
	assert_memory_equal(buf, want, sizeof(want));
	assert_int_equal(mc_tcp_hello_decode(buf, &back), 0);
	assert_memory_equal(&back, &h, sizeof(h));
	/* Read as upstream's leading size it is longer than anything. */
	assert_true(le64toh(*(uint64_t *)(void *)buf) > MC_CLASSIC_LEN_MAX);
	(void)state;
}

static void a_hello_of_another_kind_is_told_apart(void **state)
{
	uint8_t buf[MC_TCP_HELLO_BYTES];
	struct mc_tcp_hello h = {.lane = 1}, back;

	mc_tcp_hello_encode(buf, &h);
	buf[8] = 2;
	assert_int_equal(mc_tcp_hello_decode(buf, &back), -MC_E_VERSION);
	buf[8] = 1;
	buf[63] = 1;
	assert_int_equal(mc_tcp_hello_decode(buf, &back), -MC_E_AUTH);
	buf[0] = 0;
	assert_int_equal(mc_tcp_hello_decode(buf, &back), -MC_E_PROTO);
	(void)state;
}

static void a_request_has_its_documented_bytes(void **state)
{
	static const uint8_t want[MC_TCP_REQ_BYTES + MC_TCP_FRAG_BYTES] =
	    "MCRQ\x01\x01\x02\0\x07\0\0\0\0\0\0\0\0\x10\0\0\0\0\0\0\0\0\0\0\0\0\0\0"
	    "\x03\0\0\0\x09\0\0\0\x64\0\0\0\0\0\0\0\0\x10\0\0\0\0\0";
	struct mc_tcp_req q = {
	    .op = MC_OP_WRITE, .has_signal = true, .nfrags = 2, .seq = 7, .len = 4096};
	struct mc_tcp_frag f = {.region = 3, .gen = 9, .off = 100, .len = 4096}, fback;
	uint8_t buf[sizeof(want)];
	struct mc_wr w = mc_wr_make(buf, sizeof(buf));
	struct mc_rd r;
	struct mc_tcp_req back;

	mc_tcp_req_encode(&w, &q);
	mc_tcp_frag_encode(&w, &f);
	assert_false(w.is_bad);
	assert_memory_equal(buf, want, sizeof(want));
	assert_int_equal(mc_tcp_req_decode(buf, &back), 0);
	assert_int_equal(back.op, q.op);
	assert_true(back.has_signal);
	assert_int_equal(back.nfrags, 2);
	assert_int_equal(back.seq, 7);
	assert_int_equal(back.len, 4096);
	assert_int_equal(mc_tcp_req_bytes(&back), 32 + 3 * 24);
	r = mc_rd_make(buf + MC_TCP_REQ_BYTES, MC_TCP_FRAG_BYTES);
	mc_tcp_frag_decode(&r, &fback);
	assert_true(mc_rd_is_done(&r));
	assert_memory_equal(&fback, &f, sizeof(f));
	(void)state;
}

/* Set one byte of a good request. */
static int spoilt(size_t at, uint8_t value)
{
	struct mc_tcp_req q = {.op = MC_OP_READ, .nfrags = 1, .seq = 1, .len = 1}, back;
	uint8_t buf[MC_TCP_REQ_BYTES];
	struct mc_wr w = mc_wr_make(buf, sizeof(buf));

	mc_tcp_req_encode(&w, &q);
	buf[at] = value;
	return mc_tcp_req_decode(buf, &back);
}

static void requests_beyond_the_limits_are_refused(void **state)
{
	assert_int_equal(spoilt(6, 1), 0);
	assert_int_equal(spoilt(0, 0), -MC_E_PROTO);
	assert_int_equal(spoilt(4, MC_OP_COUNT), -MC_E_PROTO);
	assert_int_equal(spoilt(5, 2), -MC_E_PROTO);
	assert_int_equal(spoilt(6, 0), -MC_E_PROTO);  /* no fragment */
	assert_int_equal(spoilt(7, 2), -MC_E_PROTO);  /* 513 */
	assert_int_equal(spoilt(21, 1), -MC_E_PROTO); /* 1 TiB + 1 */
	assert_int_equal(spoilt(24, 1), -MC_E_AUTH);
	(void)state;
}

static void a_reply_and_a_welcome_carry_known_codes_only(void **state)
{
	static const uint8_t want[MC_TCP_REPLY_BYTES] =
	    "MCRP\xf8\xff\xff\xff\x07\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\0\0\0\0\0\0"
	    "\0";
	struct mc_tcp_reply p = {.status = -MC_E_RANGE, .bad_frag = 2, .seq = 7}, back;
	struct mc_tcp_welcome m = {.status = -MC_E_AUTH, .target_epoch = 5}, mback;
	uint8_t buf[MC_TCP_REPLY_BYTES];

	mc_tcp_reply_encode(buf, &p);
	assert_memory_equal(buf, want, sizeof(want));
	assert_int_equal(mc_tcp_reply_decode(buf, &back), 0);
	assert_int_equal(back.status, -MC_E_RANGE);
	assert_int_equal(back.bad_frag, 2);
	p.status = -1000; /* of a later version */
	mc_tcp_reply_encode(buf, &p);
	assert_int_equal(mc_tcp_reply_decode(buf, &back), 0);
	assert_int_equal(back.status, -MC_E_PROTO);
	p.status = 5;
	mc_tcp_reply_encode(buf, &p);
	assert_int_equal(mc_tcp_reply_decode(buf, &back), 0);
	assert_int_equal(back.status, -MC_E_PROTO);
	mc_tcp_welcome_encode(buf, &m);
	assert_int_equal(mc_tcp_welcome_decode(buf, &mback), 0);
	assert_int_equal(mback.status, -MC_E_AUTH);
	assert_int_equal(mback.target_epoch, 5);
	(void)state;
}

static void upstreams_frames_have_their_bytes(void **state)
{
	static const uint8_t want[MC_CLASSIC_HEAD_BYTES] =
	    "\0\x10\0\0\0\0\0\0\x88\x77\x66\x55\0\x7f\0\0\x81\0\0\0\0\0\0";
	static const uint8_t refused[MC_CLASSIC_STATUS_BYTES] = {1, 0, 0, 0, 'V', 'T', 'C', 'M'};
	struct mc_classic_head h = {.len = 4096,
				    .addr = 0x7f0055667788,
				    .op = MC_OP_WRITE,
				    .is_v2 = true},
			       back = {0};
	uint8_t buf[MC_CLASSIC_HEAD_BYTES];
	struct mc_wr w = mc_wr_make(buf, sizeof(buf));

	mc_classic_head_encode(&w, &h);
	assert_memory_equal(buf, want, sizeof(want));
	assert_int_equal(mc_classic_head_decode(buf, &back), 0);
	assert_int_equal(back.len, h.len);
	assert_int_equal(back.addr, h.addr);
	assert_int_equal(back.op, MC_OP_WRITE);
	assert_true(back.is_v2);
	buf[16] = 2;
	assert_int_equal(mc_classic_head_decode(buf, &back), -MC_E_PROTO);
	mc_classic_status_encode(buf, MC_CLASSIC_REFUSED);
	assert_memory_equal(buf, refused, sizeof(refused));
	assert_int_equal(mc_classic_status_decode(buf), -MC_E_RANGE);
	buf[7] = 0;
	assert_int_equal(mc_classic_status_decode(buf), -MC_E_PROTO);
	(void)state;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(a_hello_has_its_documented_bytes),
	    cmocka_unit_test(a_hello_of_another_kind_is_told_apart),
	    cmocka_unit_test(a_request_has_its_documented_bytes),
	    cmocka_unit_test(requests_beyond_the_limits_are_refused),
	    cmocka_unit_test(a_reply_and_a_welcome_carry_known_codes_only),
	    cmocka_unit_test(upstreams_frames_have_their_bytes),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
