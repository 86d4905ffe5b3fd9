/*
 * tcp_wire.h: our TCP data frames, little-endian, version 1. Pure: layout, encode, decode; no I/O.
 *
 * A connection begins with a hello of the initiator, answered by a welcome. After it the initiator
 * sends requests, the target answers each, in order. A request = head, fragments, [signal],
 * [payload of a write]; a reply = head, [payload of a read that succeeded].
 *
 *   hello   64: magic 8 | version u16 | flags u16 | 0 u32 | lane u64 | initiator epoch u64 | target
 * epoch u64 (0: any) | nonce 16 | auth u64 welcome 32: magic 8 | version u16 | flags u16 | status
 * i32 | target epoch u64 | auth u64 request 32: magic u32 | op u8 | flags u8 | fragments u16 | seq
 * u64 | payload length u64 | auth u64 frag    24: region u32 | generation u32 | offset u64 | length
 * u64 signal  24: region u32 | generation u32 | offset u64 | value u64 reply   40: magic u32 |
 * status i32 | seq u64 | payload length u64 | bad fragment u32 | 0 u32 | auth u64
 *
 * The magic of a hello, read as upstream's leading u64 size, is beyond any length a request may
 * have, so one port serves both. auth is reserved for an authentication tag and must be 0 in
 * version 1. A reply's seq acknowledges all requests up to it.
 */
#ifndef MC_XPORT_TCP_WIRE_H
#define MC_XPORT_TCP_WIRE_H

#include "base/codec.h"
#include "base/err.h"
#include "xport/xport.h"

#define MC_TCP_VERSION 1
#define MC_TCP_HELLO_BYTES 64u
#define MC_TCP_WELCOME_BYTES 32u
#define MC_TCP_REQ_BYTES 32u
#define MC_TCP_FRAG_BYTES 24u
#define MC_TCP_REPLY_BYTES 40u
#define MC_TCP_NONCE_BYTES 16u
#define MC_TCP_MAGIC_TEXT "\xf5MCLANE\xff"
#define MC_TCP_REQ_MAGIC 0x5152434du   /* "MCRQ" */
#define MC_TCP_REPLY_MAGIC 0x5052434du /* "MCRP" */
#define MC_TCP_FLAG_SIGNAL 1u
#define MC_TCP_LEN_MAX (1ull << 40) /* bytes a request */
/* Head, all fragments and a signal: what a target must hold before it can look at the payload. */
#define MC_TCP_REQ_MAX (MC_TCP_REQ_BYTES + (MC_SLICE_FRAGS_MAX + 1) * MC_TCP_FRAG_BYTES)

struct mc_tcp_hello {
	uint64_t lane, initiator_epoch, target_epoch;
	uint8_t nonce[MC_TCP_NONCE_BYTES];
};

struct mc_tcp_welcome {
	int status; /* 0 or -enum mc_err */
	uint64_t target_epoch;
};

struct mc_tcp_req {
	enum mc_op op;
	bool has_signal;
	uint32_t nfrags;
	uint64_t seq, len;
};

struct mc_tcp_frag {
	uint32_t region, gen;
	uint64_t off, len; /* a signal: len is the value */
};

struct mc_tcp_reply {
	int status;
	uint32_t bad_frag;
	uint64_t seq, len;
};

static inline void mc_tcp_hello_encode(uint8_t *buf, const struct mc_tcp_hello *h)
{
	struct mc_wr w = mc_wr_make(buf, MC_TCP_HELLO_BYTES);

	mc_wr_bytes(&w, MC_TCP_MAGIC_TEXT, 8);
	mc_wr_u16(&w, MC_TCP_VERSION);
	mc_wr_u16(&w, 0);
	mc_wr_u32(&w, 0);
	mc_wr_u64(&w, h->lane);
	mc_wr_u64(&w, h->initiator_epoch);
	mc_wr_u64(&w, h->target_epoch);
	mc_wr_bytes(&w, h->nonce, MC_TCP_NONCE_BYTES);
	mc_wr_u64(&w, 0);
}

/** @return 0; -MC_E_PROTO; -MC_E_VERSION; -MC_E_AUTH */
static inline int mc_tcp_hello_decode(const uint8_t *buf, struct mc_tcp_hello *ret)
{
	struct mc_rd r = mc_rd_make(buf, MC_TCP_HELLO_BYTES);
	const uint8_t *magic = mc_rd_bytes(&r, 8);

	if (memcmp(magic, MC_TCP_MAGIC_TEXT, 8) != 0)
		return -MC_E_PROTO;
	if (mc_rd_u16(&r) != MC_TCP_VERSION)
		return -MC_E_VERSION;
	(void)mc_rd_u16(&r);
	(void)mc_rd_u32(&r);
	ret->lane = mc_rd_u64(&r);
	ret->initiator_epoch = mc_rd_u64(&r);
	ret->target_epoch = mc_rd_u64(&r);
	memcpy(ret->nonce, mc_rd_bytes(&r, MC_TCP_NONCE_BYTES), MC_TCP_NONCE_BYTES);
	return mc_rd_u64(&r) == 0 ? 0 : -MC_E_AUTH;
}

static inline void mc_tcp_welcome_encode(uint8_t *buf, const struct mc_tcp_welcome *m)
{
	struct mc_wr w = mc_wr_make(buf, MC_TCP_WELCOME_BYTES);

	mc_wr_bytes(&w, MC_TCP_MAGIC_TEXT, 8);
	mc_wr_u16(&w, MC_TCP_VERSION);
	mc_wr_u16(&w, 0);
	mc_wr_u32(&w, (uint32_t)m->status);
	mc_wr_u64(&w, m->target_epoch);
	mc_wr_u64(&w, 0);
}

/** Status of a foreign frame, forced into this version's table: what we do not know is a broken
 * protocol. */
static inline int mc_tcp_status(uint32_t raw)
{
	int status = (int)raw;

	return status <= 0 && status > -MC_E_COUNT ? status : -MC_E_PROTO;
}

/** @return 0; -MC_E_PROTO; -MC_E_VERSION */
static inline int mc_tcp_welcome_decode(const uint8_t *buf, struct mc_tcp_welcome *ret)
{
	struct mc_rd r = mc_rd_make(buf, MC_TCP_WELCOME_BYTES);

	if (memcmp(mc_rd_bytes(&r, 8), MC_TCP_MAGIC_TEXT, 8) != 0)
		return -MC_E_PROTO;
	if (mc_rd_u16(&r) != MC_TCP_VERSION)
		return -MC_E_VERSION;
	(void)mc_rd_u16(&r);
	ret->status = mc_tcp_status(mc_rd_u32(&r));
	ret->target_epoch = mc_rd_u64(&r);
	return 0;
}

static inline void mc_tcp_frag_encode(struct mc_wr *w, const struct mc_tcp_frag *f)
{
	mc_wr_u32(w, f->region);
	mc_wr_u32(w, f->gen);
	mc_wr_u64(w, f->off);
	mc_wr_u64(w, f->len);
}

static inline void mc_tcp_frag_decode(struct mc_rd *r, struct mc_tcp_frag *ret)
{
	ret->region = mc_rd_u32(r);
	ret->gen = mc_rd_u32(r);
	ret->off = mc_rd_u64(r);
	ret->len = mc_rd_u64(r);
}

static inline void mc_tcp_req_encode(struct mc_wr *w, const struct mc_tcp_req *q)
{
	mc_wr_u32(w, MC_TCP_REQ_MAGIC);
	mc_wr_u8(w, (uint8_t)q->op);
	mc_wr_u8(w, q->has_signal ? MC_TCP_FLAG_SIGNAL : 0);
	mc_wr_u16(w, (uint16_t)q->nfrags);
	mc_wr_u64(w, q->seq);
	mc_wr_u64(w, q->len);
	mc_wr_u64(w, 0);
}

/** @return 0; -MC_E_PROTO; -MC_E_AUTH */
static inline int mc_tcp_req_decode(const uint8_t *buf, struct mc_tcp_req *ret)
{
	struct mc_rd r = mc_rd_make(buf, MC_TCP_REQ_BYTES);
	uint8_t op, flags;

	if (mc_rd_u32(&r) != MC_TCP_REQ_MAGIC)
		return -MC_E_PROTO;
	op = mc_rd_u8(&r);
	flags = mc_rd_u8(&r);
	ret->nfrags = mc_rd_u16(&r);
	ret->seq = mc_rd_u64(&r);
	ret->len = mc_rd_u64(&r);
	if (op >= MC_OP_COUNT || (flags & ~MC_TCP_FLAG_SIGNAL) != 0 || ret->nfrags == 0 ||
	    ret->nfrags > MC_SLICE_FRAGS_MAX || ret->len > MC_TCP_LEN_MAX)
		return -MC_E_PROTO;
	ret->op = (enum mc_op)op;
	ret->has_signal = (flags & MC_TCP_FLAG_SIGNAL) != 0;
	return mc_rd_u64(&r) == 0 ? 0 : -MC_E_AUTH;
}

/** Bytes of a request before its payload. */
static inline size_t mc_tcp_req_bytes(const struct mc_tcp_req *q)
{
	return MC_TCP_REQ_BYTES +
	       (size_t)(q->nfrags + (q->has_signal ? 1u : 0u)) * MC_TCP_FRAG_BYTES;
}

static inline void mc_tcp_reply_encode(uint8_t *buf, const struct mc_tcp_reply *p)
{
	struct mc_wr w = mc_wr_make(buf, MC_TCP_REPLY_BYTES);

	mc_wr_u32(&w, MC_TCP_REPLY_MAGIC);
	mc_wr_u32(&w, (uint32_t)p->status);
	mc_wr_u64(&w, p->seq);
	mc_wr_u64(&w, p->len);
	mc_wr_u32(&w, p->bad_frag);
	mc_wr_u32(&w, 0);
	mc_wr_u64(&w, 0);
}

/** @return 0; -MC_E_PROTO; -MC_E_AUTH */
static inline int mc_tcp_reply_decode(const uint8_t *buf, struct mc_tcp_reply *ret)
{
	struct mc_rd r = mc_rd_make(buf, MC_TCP_REPLY_BYTES);

	if (mc_rd_u32(&r) != MC_TCP_REPLY_MAGIC)
		return -MC_E_PROTO;
	ret->status = mc_tcp_status(mc_rd_u32(&r));
	ret->seq = mc_rd_u64(&r);
	ret->len = mc_rd_u64(&r);
	ret->bad_frag = mc_rd_u32(&r);
	(void)mc_rd_u32(&r);
	return mc_rd_u64(&r) == 0 ? 0 : -MC_E_AUTH;
}

#endif
