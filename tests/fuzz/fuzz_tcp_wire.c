/*
 * fuzz_tcp_wire.c: decoders of our TCP frames and of upstream's. What is accepted is within its
 * limits and encodes to bytes that decode to the same.
 */
#include <stdint.h>
#include <string.h>

#include "xport/tcp_classic.h"
#include "xport/tcp_wire.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

static void hello(const uint8_t *in)
{
	struct mc_tcp_hello a, b;
	uint8_t buf[MC_TCP_HELLO_BYTES];

	if (mc_tcp_hello_decode(in, &a) < 0)
		return;
	mc_tcp_hello_encode(buf, &a);
	mc_assert(mc_tcp_hello_decode(buf, &b) == 0);
	mc_assert(a.lane == b.lane && a.initiator_epoch == b.initiator_epoch &&
		  a.target_epoch == b.target_epoch && memcmp(a.nonce, b.nonce, 16) == 0);
}

static void welcome(const uint8_t *in)
{
	struct mc_tcp_welcome a, b;
	uint8_t buf[MC_TCP_WELCOME_BYTES];

	if (mc_tcp_welcome_decode(in, &a) < 0)
		return;
	mc_assert(a.status <= 0 && a.status > -MC_E_COUNT);
	mc_tcp_welcome_encode(buf, &a);
	mc_assert(mc_tcp_welcome_decode(buf, &b) == 0);
	mc_assert(a.status == b.status && a.target_epoch == b.target_epoch);
}

static void req(const uint8_t *in)
{
	struct mc_tcp_req a, b;
	uint8_t buf[MC_TCP_REQ_BYTES];
	struct mc_wr w = mc_wr_make(buf, sizeof(buf));

	if (mc_tcp_req_decode(in, &a) < 0)
		return;
	mc_assert(a.nfrags >= 1 && a.nfrags <= MC_SLICE_FRAGS_MAX && a.len <= MC_TCP_LEN_MAX);
	mc_assert(mc_tcp_req_bytes(&a) <= MC_TCP_REQ_MAX);
	mc_tcp_req_encode(&w, &a);
	mc_assert(!w.is_bad && mc_tcp_req_decode(buf, &b) == 0);
	mc_assert(a.op == b.op && a.has_signal == b.has_signal && a.nfrags == b.nfrags &&
		  a.seq == b.seq && a.len == b.len);
}

static void reply(const uint8_t *in)
{
	struct mc_tcp_reply a, b;
	uint8_t buf[MC_TCP_REPLY_BYTES];

	if (mc_tcp_reply_decode(in, &a) < 0)
		return;
	mc_assert(a.status <= 0 && a.status > -MC_E_COUNT);
	mc_tcp_reply_encode(buf, &a);
	mc_assert(mc_tcp_reply_decode(buf, &b) == 0);
	mc_assert(a.status == b.status && a.seq == b.seq && a.len == b.len &&
		  a.bad_frag == b.bad_frag);
}

static void classic(const uint8_t *in)
{
	struct mc_classic_head a, b;
	uint8_t buf[MC_CLASSIC_HEAD_BYTES];
	struct mc_wr w = mc_wr_make(buf, sizeof(buf));

	if (mc_classic_head_decode(in, &a) < 0)
		return;
	mc_assert(a.len <= MC_CLASSIC_LEN_MAX);
	mc_classic_head_encode(&w, &a);
	mc_assert(!w.is_bad && mc_classic_head_decode(buf, &b) == 0);
	mc_assert(a.len == b.len && a.addr == b.addr && a.op == b.op && a.is_v2 == b.is_v2);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	if (len >= MC_CLASSIC_STATUS_BYTES) {
		int rc = mc_classic_status_decode(data);

		mc_assert(rc == 0 || rc == -MC_E_RANGE || rc == -MC_E_PROTO);
	}
	if (len >= MC_CLASSIC_HEAD_BYTES)
		classic(data);
	if (len >= MC_TCP_WELCOME_BYTES)
		welcome(data);
	if (len >= MC_TCP_REQ_BYTES)
		req(data);
	if (len >= MC_TCP_REPLY_BYTES)
		reply(data);
	if (len >= MC_TCP_HELLO_BYTES)
		hello(data);
	return 0;
}
