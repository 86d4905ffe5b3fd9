/*
 * rdma_offer_test.c: the bytes of offers: what goes in comes out, and nothing else is taken.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "base/mem.h"
#include "xport/rdma/priv.h"

static size_t encode(unsigned nqps, uint8_t *buf)
{
	struct mc_rdma_offer o = {.lane = 7,
				  .initiator_epoch = 0x1122334455667788,
				  .target_epoch = 9,
				  .port = 3,
				  .end = {.lid = 0x1234,
					  .mtu = IBV_MTU_4096,
					  .rd_atomic = 16,
					  .psn = 0xabcdef,
					  .nqps = nqps}};

	memset(o.end.gid, 0x5a, sizeof(o.end.gid));
	for (unsigned i = 0; i < nqps; i++)
		o.end.qpn[i] = 0x1000 + i;
	return mc_rdma_offer_encode(&o, buf);
}

static void an_offer_comes_back_as_it_was(void **state)
{
	uint8_t buf[MC_RDMA_OFFER_BYTES];
	struct mc_rdma_offer o;

	for (unsigned n = 1; n <= MC_RDMA_QPS_MAX; n++) {
		size_t len = encode(n, buf);

		assert_int_equal(len, 64 + 4 * n);
		assert_int_equal(mc_rdma_offer_decode(buf, len, &o), 0);
		assert_true(o.lane == 7 && o.initiator_epoch == 0x1122334455667788);
		assert_true(o.target_epoch == 9 && o.port == 3 && o.end.lid == 0x1234);
		assert_true(o.end.mtu == IBV_MTU_4096 && o.end.rd_atomic == 16);
		assert_true(o.end.psn == 0xabcdef && o.end.nqps == n && o.end.gid[15] == 0x5a);
		assert_int_equal(o.end.qpn[n - 1], 0x1000 + n - 1);
	}
	(void)state;
}

static void every_other_length_is_refused(void **state)
{
	uint8_t buf[2 * MC_RDMA_OFFER_BYTES] = {0};
	struct mc_rdma_offer o;
	size_t len = encode(2, buf);

	for (size_t n = 0; n < sizeof(buf); n++)
		assert_int_equal(mc_rdma_offer_decode(buf, n, &o), n == len ? 0 : -MC_E_PROTO);
	(void)state;
}

static void numbers_that_cannot_be_are_refused(void **state)
{
	static const struct {
		size_t at, len;
		uint64_t value;
		int rc;
	} bad[] = {
	    {0, 4, 0x4f52434e, -MC_E_PROTO}, /* magic */
	    {4, 2, 2, -MC_E_VERSION},	     /* a later one */
	    {4, 2, 0, -MC_E_VERSION},
	    {6, 1, 0, -MC_E_PROTO}, /* no packet size */
	    {6, 1, 6, -MC_E_PROTO},
	    {7, 1, 0, -MC_E_PROTO},  /* no reads */
	    {54, 2, 0, -MC_E_PROTO}, /* queue pairs: none */
	    {54, 2, 1, -MC_E_PROTO}, /* fewer than follow */
	    {54, 2, 9, -MC_E_PROTO}, /* too many */
	    {54, 2, 0xffff, -MC_E_PROTO},
	    {56, 4, 0x1000000, -MC_E_PROTO}, /* sequence number of 25 bits */
	    {60, 4, 1, -MC_E_PROTO},	     /* reserved */
	    {64, 4, 0, -MC_E_PROTO},	     /* queue pair 0 */
	    {68, 4, 0x1000000, -MC_E_PROTO},
	};
	uint8_t buf[MC_RDMA_OFFER_BYTES];

	for (size_t i = 0; i < MC_ARRAY_LEN(bad); i++) {
		struct mc_rdma_offer o = {.lane = 4711};
		size_t len = encode(2, buf);

		memcpy(buf + bad[i].at, &bad[i].value, bad[i].len);
		assert_int_equal(mc_rdma_offer_decode(buf, len, &o), bad[i].rc);
		assert_int_equal(o.lane, 4711); /* untouched */
	}
	(void)state;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(an_offer_comes_back_as_it_was),
	    cmocka_unit_test(every_other_length_is_refused),
	    cmocka_unit_test(numbers_that_cannot_be_are_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
