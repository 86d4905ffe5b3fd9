/*
 * tcp_classic.h: upstream's TCP data frames (its versions 1 and 2), for mixed clusters. Pure.
 *
 *   head   24: size u64 LE | address u64 LE | opcode u8 (0 read, 1 write; | 0x80 in version 2) | 7
 * bytes of padding status  8: u64 LE, 0x4D435456 << 32 | code (0 ok, 1 address refused); version 2
 * only
 *
 * Version 2: the target sends a status before a read's payload, and after a write's payload is in
 * memory. Version 1: a read's payload follows without status, a write has no answer at all. A
 * connection carries requests one after the other.
 */
#ifndef MC_XPORT_TCP_CLASSIC_H
#define MC_XPORT_TCP_CLASSIC_H

#include "base/codec.h"
#include "xport/xport.h"

#define MC_CLASSIC_HEAD_BYTES 24u
#define MC_CLASSIC_STATUS_BYTES 8u
#define MC_CLASSIC_V2 0x80u
#define MC_CLASSIC_MAGIC 0x4D435456u
#define MC_CLASSIC_REFUSED 1u
#define MC_CLASSIC_LEN_MAX (1ull << 40)

struct mc_classic_head {
	uint64_t len, addr;
	enum mc_op op;
	bool is_v2;
};

static inline void mc_classic_head_encode(struct mc_wr *w, const struct mc_classic_head *h)
{
	static const uint8_t padding[7];

	mc_wr_u64(w, h->len);
	mc_wr_u64(w, h->addr);
	mc_wr_u8(w, (uint8_t)((h->op == MC_OP_WRITE ? 1u : 0u) | (h->is_v2 ? MC_CLASSIC_V2 : 0)));
	mc_wr_bytes(w, padding, sizeof(padding));
}

/** @return 0; -MC_E_PROTO (an opcode or a size that no peer sends) */
static inline int mc_classic_head_decode(const uint8_t *buf, struct mc_classic_head *ret)
{
	struct mc_rd r = mc_rd_make(buf, MC_CLASSIC_HEAD_BYTES);
	uint8_t op;

	ret->len = mc_rd_u64(&r);
	ret->addr = mc_rd_u64(&r);
	op = mc_rd_u8(&r);
	if ((op & ~MC_CLASSIC_V2) > 1 || ret->len > MC_CLASSIC_LEN_MAX)
		return -MC_E_PROTO;
	ret->op = op & 1 ? MC_OP_WRITE : MC_OP_READ;
	ret->is_v2 = (op & MC_CLASSIC_V2) != 0;
	return 0;
}

static inline void mc_classic_status_encode(uint8_t *buf, uint32_t code)
{
	struct mc_wr w = mc_wr_make(buf, MC_CLASSIC_STATUS_BYTES);

	mc_wr_u64(&w, (uint64_t)MC_CLASSIC_MAGIC << 32 | code);
}

/** @return 0; -MC_E_RANGE (refused); -MC_E_PROTO */
static inline int mc_classic_status_decode(const uint8_t *buf)
{
	struct mc_rd r = mc_rd_make(buf, MC_CLASSIC_STATUS_BYTES);
	uint64_t v = mc_rd_u64(&r);

	if (v >> 32 != MC_CLASSIC_MAGIC)
		return -MC_E_PROTO;
	return (uint32_t)v == 0 ? 0 : -MC_E_RANGE;
}

#endif
