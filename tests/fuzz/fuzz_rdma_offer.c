/*
 * fuzz_rdma_offer.c: offers of RDMA lanes, as a target takes them from any initiator. What is
 * accepted is within its limits and encodes to the very bytes that it came from.
 */
#include <string.h>

#include "xport/rdma/priv.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	uint8_t buf[MC_RDMA_OFFER_BYTES];
	struct mc_rdma_offer o;
	int rc = mc_rdma_offer_decode(data, len, &o);

	mc_assert(rc == 0 || rc == -MC_E_PROTO || rc == -MC_E_VERSION);
	if (rc < 0)
		return 0;
	mc_assert(mc_rdma_end_is_ok(&o.end) && o.end.nqps <= MC_RDMA_QPS_MAX);
	mc_assert(mc_rdma_offer_encode(&o, buf) == len && memcmp(buf, data, len) == 0);
	return 0;
}
