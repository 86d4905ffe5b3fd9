/*
 * rec.h: the bytes of a record in a segment of the disk log. Pure: no I/O, no clock, no
 * allocation.
 *
 *   header 128 | key | TLV | 0 … 3 zeros | CRC of each chunk | zeros | payload | zeros
 *
 * Little-endian. A record begins at a multiple of 64, its payload too; from 64 KiB of payload up
 * both are at multiples of 4 KiB. The header names its log, segment and place, so that a record's
 * image inside a payload, in another file or at another place is no record. Its CRC covers the
 * header; `meta_crc` covers the rest before the payload; the CRC of a chunk begins with the
 * record's identity and the chunk's number, so an old chunk never passes under a new header.
 */
#ifndef MC_LOG_REC_H
#define MC_LOG_REC_H

#include <stdint.h>

#include "log/dlog.h"

#define MC_REC_HEAD 128u
#define MC_REC_ALIGN 64u
#define MC_REC_BLOCK 4096u /* writes begin and end at multiples of it */

enum mc_rec_flag {
	MC_REC_REUSED = 1, /* its file was another segment's before: bytes of that lie behind */
};

enum mc_rec_kind {
	MC_REC_PUT = 1,
	MC_REC_TOMB = 2, /* the key is deleted up to this generation */
	MC_REC_FOOT = 3, /* of a sealed segment: foot.c; no object */
};

struct mc_rec {
	uint64_t log_id, off; /* of the header in its segment */
	uint32_t segment;
	enum mc_rec_kind kind;
	uint64_t hash; /* of the key: these 96 bits */
	uint32_t check;
	struct mc_dlog_gen gen;
	uint64_t payload_len;
	uint32_t key_len, tlv_len, meta_crc;
	uint32_t flags;	  /* enum mc_rec_flag */
	uint64_t durable; /* all before this place of the segment was, when this was written */
};

struct mc_rec_layout {
	uint32_t table_off, nchunks; /* of the CRCs */
	uint32_t payload_off;
	uint32_t align;
	uint64_t len; /* whole, a multiple of `align` */
};

/** The lengths are within the limits of dlog.h. */
struct mc_rec_layout mc_rec_layout(uint32_t key_len, uint32_t tlv_len, uint64_t payload_len);
void mc_rec_encode(const struct mc_rec *rec, uint8_t *ret_head);
/** @param head  MC_REC_HEAD bytes. @return 0; -MC_E_CORRUPT: no record of this log at this place
 */
int mc_rec_decode(const uint8_t *head, uint64_t log_id, uint32_t segment, uint64_t off,
		  struct mc_rec *ret_rec);
/** Was it a record of an earlier segment of this log, at this place? */
bool mc_rec_is_old(const uint8_t *head, uint64_t log_id, uint32_t segment, uint64_t off);
/** Lengths, kind and `durable` are such as a record has. */
bool mc_rec_is_sane(const struct mc_rec *rec);
/** Of what lies between header and payload, up to the end of the table. */
uint32_t mc_rec_meta_crc(const struct mc_rec *rec, const void *meta, size_t len);
/** What the CRC of a chunk begins with. */
uint32_t mc_rec_chunk_seed(const struct mc_rec *rec, uint32_t chunk);
/** Bytes of a chunk. */
uint32_t mc_rec_chunk_len(uint64_t payload_len, uint32_t chunk);

static inline uint64_t mc_rec_round(uint64_t n, uint64_t align)
{
	return (n + align - 1) & ~(align - 1);
}

/** < 0, 0, > 0 */
static inline int mc_dlog_gen_cmp(struct mc_dlog_gen a, struct mc_dlog_gen b)
{
	if (a.epoch != b.epoch)
		return a.epoch < b.epoch ? -1 : 1;
	return a.counter < b.counter ? -1 : a.counter > b.counter;
}

#endif
