/*
 * frame_test.c: what each field of a frame may be, and what a server says to a peer that breaks it.
 */
#include "fixture.h"

#include "base/codec.h"

static struct mc_frame request(void)
{
	return (struct mc_frame){.type = MC_FRAME_REQUEST,
				 .flags = MC_FRAME_STREAM,
				 .method = 0x1234,
				 .call_id = 0x1122334455667788,
				 .payload_len = 99,
				 .deadline_ms = 5000,
				 .nfds = 2};
}

static int decode_with(size_t at, uint8_t value)
{
	struct mc_frame f = request();
	uint8_t buf[MC_FRAME_HEADER_LEN];

	mc_frame_encode(&f, buf);
	buf[at] = value;
	return mc_frame_decode(buf, &f);
}

static void frames_read_back_as_written(void **state)
{
	struct mc_frame f = request(), g;
	uint8_t buf[MC_FRAME_HEADER_LEN];

	mc_frame_encode(&f, buf);
	assert_int_equal(mc_frame_decode(buf, &g), 0);
	assert_int_equal(g.type, f.type);
	assert_int_equal(g.flags, f.flags);
	assert_int_equal(g.method, f.method);
	assert_int_equal(g.call_id, f.call_id);
	assert_int_equal(g.payload_len, f.payload_len);
	assert_int_equal(g.status, 0);
	assert_int_equal(g.deadline_ms, f.deadline_ms);
	assert_int_equal(g.nfds, f.nfds);
	(void)state;
}

static void header_bytes_are_as_documented(void **state)
{
	static const uint8_t want[MC_FRAME_HEADER_LEN] = {
	    'M',  'C',	'F', 1, 2, 1, 0x34, 0x12, 0x88, 0x77, 0x66, 0x55, 0x44, 0x33,
	    0x22, 0x11, 99,  0, 0, 0, 0,    0,	  0,	0,    0x88, 0x13, 0,	0,
	    2,	  0,	0,   0, 0, 0, 0,    0,	  0,	0,    0,    0};
	struct mc_frame f = request();
	uint8_t buf[MC_FRAME_HEADER_LEN];

	mc_frame_encode(&f, buf);
	assert_memory_equal(buf, want, sizeof(want));
	(void)state;
}

static void every_bad_field_is_refused(void **state)
{
	assert_int_equal(decode_with(0, 'X'), -MC_E_PROTO);
	assert_int_equal(decode_with(3, 2), -MC_E_VERSION);
	assert_int_equal(decode_with(4, 0), -MC_E_PROTO);
	assert_int_equal(decode_with(4, MC_FRAME_TYPE_COUNT), -MC_E_PROTO);
	assert_int_equal(decode_with(5, MC_FRAME_LAST), -MC_E_PROTO);
	assert_int_equal(decode_with(5, 0x80), -MC_E_PROTO);
	assert_int_equal(decode_with(20, 1), -MC_E_PROTO);
	assert_int_equal(decode_with(28, MC_FRAME_FDS_MAX + 1), -MC_E_PROTO);
	assert_int_equal(decode_with(29, 1), -MC_E_PROTO);
	assert_int_equal(decode_with(30, 1), -MC_E_PROTO);
	assert_int_equal(decode_with(31, 1), -MC_E_PROTO);
	for (size_t i = 32; i < MC_FRAME_HEADER_LEN; i++)
		assert_int_equal(decode_with(i, 1), -MC_E_AUTH);
	(void)state;
}

static int decode_frame(const struct mc_frame *f)
{
	uint8_t buf[MC_FRAME_HEADER_LEN];
	struct mc_frame g;

	mc_frame_encode(f, buf);
	return mc_frame_decode(buf, &g);
}

static void fields_that_a_type_does_not_have_must_be_zero(void **state)
{
	struct mc_frame f = {.type = MC_FRAME_CANCEL, .call_id = 1};

	assert_int_equal(decode_frame(&f), 0);
	f.payload_len = 1;
	assert_int_equal(decode_frame(&f), -MC_E_PROTO);
	f = (struct mc_frame){.type = MC_FRAME_CANCEL};
	assert_int_equal(decode_frame(&f), -MC_E_PROTO); /* no id */
	f = (struct mc_frame){.type = MC_FRAME_HELLO, .call_id = 1};
	assert_int_equal(decode_frame(&f), -MC_E_PROTO);
	f = (struct mc_frame){.type = MC_FRAME_REPLY, .call_id = 1, .status = 1};
	assert_int_equal(decode_frame(&f), -MC_E_PROTO);
	f.status = INT32_MIN; /* has no positive */
	assert_int_equal(decode_frame(&f), -MC_E_PROTO);
	f = (struct mc_frame){.type = MC_FRAME_REPLY, .call_id = 1, .deadline_ms = 1};
	assert_int_equal(decode_frame(&f), -MC_E_PROTO);
	f = (struct mc_frame){.type = MC_FRAME_REPLY, .call_id = 1, .method = 1};
	assert_int_equal(decode_frame(&f), -MC_E_PROTO);
	f = (struct mc_frame){.type = MC_FRAME_CHUNK, .call_id = 1, .nfds = 1};
	assert_int_equal(decode_frame(&f), -MC_E_PROTO);
	f = (struct mc_frame){.type = MC_FRAME_CREDIT, .call_id = 1, .status = 1};
	assert_int_equal(decode_frame(&f), 0);
	f.status = 0;
	assert_int_equal(decode_frame(&f), -MC_E_PROTO);
	f.status = (int32_t)MC_FRAME_CREDIT_MAX + 1;
	assert_int_equal(decode_frame(&f), -MC_E_PROTO);
	(void)state;
}

static void preface_is_no_plausible_length(void **state)
{
	uint64_t as_len;

	_Static_assert(sizeof(MC_FRAME_PREFACE) == MC_FRAME_PREFACE_LEN + 1, "eight bytes");
	memcpy(&as_len, MC_FRAME_PREFACE, sizeof(as_len));
	assert_true(le64toh(as_len) > UINT64_C(1) << 40);
	(void)state;
}

/* ---- over a socket ---- */

#define RAW_MAX 4096

/* Sends bytes to a server, reads until it closes. @return the status of its goodbye, or 0 */
static int32_t status_of_goodbye(const void *bytes, size_t len)
{
	uint64_t deadline = mc_now_ns() + SOON_NS;
	struct fix f;
	uint8_t in[RAW_MAX];
	size_t n = 0, at = MC_FRAME_PREFACE_LEN;
	int32_t status = 0;
	int fd;

	fix_open(&f, &mc_env_real, (struct mc_rpc_server_opts){.frame_max = 1000});
	fix_listen_unix(&f);
	assert_int_equal(mc_sock_connect(&f.at, NULL, &fd), 0);
	assert_int_equal(mc_sock_send_all(fd, bytes, len, deadline), 0);
	while (n < sizeof(in) && mc_sock_recv_all(fd, in + n, 1, deadline) == 0)
		n++;
	while (at + MC_FRAME_HEADER_LEN <= n) {
		struct mc_frame g;

		assert_int_equal(mc_frame_decode(in + at, &g), 0);
		at += MC_FRAME_HEADER_LEN + g.payload_len;
		if (g.type == MC_FRAME_GOODBYE)
			status = g.status;
	}
	mc_fd_close(&fd);
	fix_close(&f);
	return status;
}

struct raw {
	struct mc_wr w;
	uint8_t bytes[RAW_MAX];
};

static void raw_frame(struct raw *r, const struct mc_frame *f)
{
	static const uint8_t payload[RAW_MAX];
	uint8_t buf[MC_FRAME_HEADER_LEN];

	mc_frame_encode(f, buf);
	mc_wr_bytes(&r->w, buf, sizeof(buf));
	mc_wr_bytes(&r->w, payload, mc_min(f->payload_len, 2000u));
}

static void raw_open(struct raw *r)
{
	struct mc_frame f = {.type = MC_FRAME_HELLO, .payload_len = MC_FRAME_HELLO_LEN};
	struct mc_frame_hello h = {.frame_max = 1000, .calls_max = 64};
	uint8_t buf[MC_FRAME_HEADER_LEN];

	r->w = mc_wr_make(r->bytes, sizeof(r->bytes));
	mc_wr_bytes(&r->w, MC_FRAME_PREFACE, MC_FRAME_PREFACE_LEN);
	mc_frame_encode(&f, buf);
	mc_wr_bytes(&r->w, buf, sizeof(buf));
	mc_frame_hello_encode(&h, buf);
	mc_wr_bytes(&r->w, buf, MC_FRAME_HELLO_LEN);
}

static int32_t status_after(struct raw *r)
{
	return status_of_goodbye(r->bytes, mc_wr_len(&r->w));
}

static void server_says_why_it_leaves(void **state)
{
	struct raw r;
	struct mc_frame f = {.type = MC_FRAME_REQUEST, .method = FIX_HOLD, .call_id = 7};

	assert_int_equal(status_of_goodbye("GET / HTTP/1.1\r\n\r\n", 18), -MC_E_PROTO);
	assert_int_equal(status_of_goodbye("MCRPC\x02\xff\xff", 8), -MC_E_VERSION);

	raw_open(&r); /* a call twice */
	raw_frame(&r, &f);
	raw_frame(&r, &f);
	assert_int_equal(status_after(&r), -MC_E_PROTO);

	raw_open(&r); /* larger than the hello said */
	f.payload_len = 1001;
	raw_frame(&r, &f);
	assert_int_equal(status_after(&r), -MC_E_TOO_BIG);

	raw_open(&r); /* what only a server says */
	raw_frame(&r, &(struct mc_frame){.type = MC_FRAME_REPLY, .call_id = 7});
	assert_int_equal(status_after(&r), -MC_E_PROTO);

	raw_open(&r); /* descriptors that did not come */
	raw_frame(&r, &(struct mc_frame){.type = MC_FRAME_REQUEST, .call_id = 7, .nfds = 1});
	assert_int_equal(status_after(&r), -MC_E_PROTO);

	raw_open(&r); /* more than the credit of a stream */
	raw_frame(&r, &(struct mc_frame){.type = MC_FRAME_REQUEST,
					 .flags = MC_FRAME_STREAM,
					 .method = FIX_STREAM,
					 .call_id = 7});
	raw_frame(&r, &(struct mc_frame){
			  .type = MC_FRAME_CREDIT, .call_id = 7, .status = MC_FRAME_CREDIT_MAX});
	assert_int_equal(status_after(&r), -MC_E_PROTO);
	(void)state;
}

static void frames_before_the_hello_are_refused(void **state)
{
	struct raw r;

	r.w = mc_wr_make(r.bytes, sizeof(r.bytes));
	mc_wr_bytes(&r.w, MC_FRAME_PREFACE, MC_FRAME_PREFACE_LEN);
	raw_frame(&r, &(struct mc_frame){.type = MC_FRAME_CANCEL, .call_id = 7});
	assert_int_equal(status_after(&r), -MC_E_PROTO);
	raw_open(&r);
	raw_frame(&r, &(struct mc_frame){.type = MC_FRAME_HELLO, .payload_len = 16});
	assert_int_equal(status_after(&r), -MC_E_PROTO); /* twice */
	(void)state;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(frames_read_back_as_written),
	    cmocka_unit_test(header_bytes_are_as_documented),
	    cmocka_unit_test(every_bad_field_is_refused),
	    cmocka_unit_test(fields_that_a_type_does_not_have_must_be_zero),
	    cmocka_unit_test(preface_is_no_plausible_length),
	    cmocka_unit_test(server_says_why_it_leaves),
	    cmocka_unit_test(frames_before_the_hello_are_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
