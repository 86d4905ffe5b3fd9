/*
 * offer.c: the bytes with which a lane introduces itself to its target, and the target's answer:
 * one layout for both (docs/protocol.md). Pure: bytes in, numbers out.
 *
 *   magic u32 | version u16 | mtu u8 | reads u8 | lane u64 | initiator's epoch u64 | target's epoch
 *   u64 | gid 16 | port u32 | lid u16 | queue pairs u16 | psn u32 | 0 u32 | numbers u32 each
 */
#include "base/codec.h"
#include "xport/rdma/priv.h"

#define OFFER_MAGIC 0x4f52434du /* "MCRO" */
#define OFFER_VERSION 1u
#define OFFER_HEAD_BYTES 64u
#define NUMBER_MAX 0xffffffu /* queue pairs and sequence numbers have 24 bits */

size_t mc_rdma_offer_encode(const struct mc_rdma_offer *o, uint8_t buf[MC_RDMA_OFFER_BYTES])
{
	struct mc_wr w = mc_wr_make(buf, MC_RDMA_OFFER_BYTES);

	mc_assert(o->end.nqps >= 1 && o->end.nqps <= MC_RDMA_QPS_MAX);
	mc_wr_u32(&w, OFFER_MAGIC);
	mc_wr_u16(&w, OFFER_VERSION);
	mc_wr_u8(&w, o->end.mtu);
	mc_wr_u8(&w, o->end.rd_atomic);
	mc_wr_u64(&w, o->lane);
	mc_wr_u64(&w, o->initiator_epoch);
	mc_wr_u64(&w, o->target_epoch);
	mc_wr_bytes(&w, o->end.gid, sizeof(o->end.gid));
	mc_wr_u32(&w, o->port);
	mc_wr_u16(&w, o->end.lid);
	mc_wr_u16(&w, (uint16_t)o->end.nqps);
	mc_wr_u32(&w, o->end.psn);
	mc_wr_u32(&w, 0);
	for (uint32_t i = 0; i < o->end.nqps; i++)
		mc_wr_u32(&w, o->end.qpn[i]);
	mc_assert(!w.is_bad);
	return mc_wr_len(&w);
}

bool mc_rdma_end_is_ok(const struct mc_rdma_end *e)
{
	if (e->nqps < 1 || e->nqps > MC_RDMA_QPS_MAX || e->psn > NUMBER_MAX ||
	    e->mtu > IBV_MTU_4096)
		return false;
	for (uint32_t i = 0; i < e->nqps; i++)
		if (e->qpn[i] == 0 || e->qpn[i] > NUMBER_MAX)
			return false;
	return true;
}

int mc_rdma_offer_decode(const uint8_t *buf, size_t len, struct mc_rdma_offer *ret)
{
	struct mc_rd r = mc_rd_make(buf, len);
	struct mc_rdma_offer o = {.lane = 0};
	const uint8_t *gid;

	if (mc_rd_u32(&r) != OFFER_MAGIC)
		return -MC_E_PROTO;
	if (mc_rd_u16(&r) != OFFER_VERSION)
		return r.is_bad ? -MC_E_PROTO : -MC_E_VERSION;
	o.end.mtu = mc_rd_u8(&r);
	o.end.rd_atomic = mc_rd_u8(&r);
	o.lane = mc_rd_u64(&r);
	o.initiator_epoch = mc_rd_u64(&r);
	o.target_epoch = mc_rd_u64(&r);
	gid = mc_rd_bytes(&r, sizeof(o.end.gid));
	if (gid)
		memcpy(o.end.gid, gid, sizeof(o.end.gid));
	o.port = mc_rd_u32(&r);
	o.end.lid = mc_rd_u16(&r);
	o.end.nqps = mc_rd_u16(&r);
	o.end.psn = mc_rd_u32(&r);
	if (mc_rd_u32(&r) != 0 || r.is_bad || o.end.nqps > MC_RDMA_QPS_MAX ||
	    len != OFFER_HEAD_BYTES + 4 * (size_t)o.end.nqps)
		return -MC_E_PROTO;
	for (uint32_t i = 0; i < o.end.nqps; i++)
		o.end.qpn[i] = mc_rd_u32(&r);
	/* Between ours both numbers are always told. */
	if (!mc_rdma_end_is_ok(&o.end) || o.end.mtu == 0 || o.end.rd_atomic == 0)
		return -MC_E_PROTO;
	*ret = o;
	return 0;
}
