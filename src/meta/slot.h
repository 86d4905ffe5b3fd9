/*
 * slot.h: the image of a stored object, the same in memory and on disk. Pure.
 *
 *   off size field              all little-endian
 *     0    4 magic              "MCS" and the version, 1; anything else: not readable
 *     4    2 key_len            1 … MC_SLOT_KEY_MAX
 *     6    2 tlv_len            0 … MC_SLOT_TLV_MAX
 *     8    8 gen                never 0
 *    16    8 incarnation        of the owner that sealed it, never 0
 *    24    8 key_hash           mc_hash64(key, key_len, 0)
 *    32    8 len                of the payload
 *    40    4 payload_off        from the start of the slot
 *    44    4 flags              enum mc_slot_flag
 *    48    4 meta_crc           CRC32C of key, TLV and table
 *    52    8 reserved           0
 *    60    4 header_crc         CRC32C of bytes 0 … 59
 *    64      key | TLV | zeros up to 4 | table: u32 for each chunk | zeros | payload
 *
 * The payload begins at a multiple of 64, of 4096 when it has MC_SLOT_PAGED_MIN bytes or more; such
 * slots begin at a multiple of 4096, others at one of 64. A chunk's CRC is CRC32C over its bytes,
 * begun with a seed that mixes incarnation, generation, key hash and index: an old chunk never
 * passes under a new header.
 *
 * TLVs: u8 type, u8 0, u16 length, bytes; unknown types are kept and ignored.
 */
#ifndef MC_META_SLOT_H
#define MC_META_SLOT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

#define MC_SLOT_MAGIC 0x0153434du /* "MCS" 1 */
#define MC_SLOT_HEADER_LEN 64u
#define MC_SLOT_KEY_MAX 4096u
#define MC_SLOT_TLV_MAX 4096u
#define MC_SLOT_CHUNK (64u << 10)
#define MC_SLOT_PAGED_MIN (64u << 10)
#define MC_SLOT_PAYLOAD_MAX (1ull << 40)

enum mc_slot_flag {
	MC_SLOT_TOMBSTONE = 1, /* on disk: the key is removed up to this generation; no payload */
};

enum mc_slot_tlv {
	MC_SLOT_TLV_GROUP = 1,	/* bytes: objects that are evicted together */
	MC_SLOT_TLV_PARENT = 2, /* u64: hash of the key before it in its prefix */
	MC_SLOT_TLV_PINS = 3,	/* u8 hard pin, u8 soft pin, u16 0, u32 0, u64 soft pin in ms */
	MC_SLOT_TLV_TYPE = 4,	/* u32: upstream's ObjectDataType */
	MC_SLOT_TLV_WANTED = 5, /* u32: replicas asked for */
};

/** What is said of an object beside its payload. */
struct mc_slot_info {
	uint64_t gen, incarnation, key_hash;
	uint64_t len;
	const uint8_t *key, *tlv; /* decoded: views into the image */
	uint32_t key_len, tlv_len;
	uint32_t flags;
	/* from mc_slot_layout(), or decoded */
	uint32_t nchunks, table_off, payload_off;
	uint64_t slot_len; /* all of it, a multiple of 64, or of 4096 */
	uint32_t align;	   /* of its start */
};

/** Bytes of the image that decode needs: header, key, TLV and table. */
static inline uint64_t mc_slot_head_len(const struct mc_slot_info *info)
{
	return info->table_off + (uint64_t)info->nchunks * 4;
}

/** Payload bytes of chunk `index`, which is below nchunks. */
static inline uint32_t mc_slot_chunk_len(const struct mc_slot_info *info, uint32_t index)
{
	uint64_t left = info->len - (uint64_t)index * MC_SLOT_CHUNK;

	return left < MC_SLOT_CHUNK ? (uint32_t)left : MC_SLOT_CHUNK;
}

/** Places of everything for info's key_len, tlv_len, len. @return 0; -MC_E_INVAL (no key);
 * -MC_E_TOO_BIG */
MC_MUST_CHECK int mc_slot_layout(struct mc_slot_info *info);
/** CRC of chunk `index` with these bytes. */
uint32_t mc_slot_chunk_crc(const struct mc_slot_info *info, uint32_t index, const void *bytes,
			   size_t len);
/** CRC of chunk `index` whose bytes have the CRC `plain`, begun with 0: mc_slot_chunk_crc() for
 * whoever sees bytes before he knows whose they are. */
uint32_t mc_slot_chunk_seed(const struct mc_slot_info *info, uint32_t index, uint32_t plain);
/** Copy a chunk and give its CRC, in one pass. Those of big objects past the cache. */
uint32_t mc_slot_chunk_copy(const struct mc_slot_info *info, uint32_t index, void *to,
			    const void *from, size_t len);
/**
 * Write all but the payload: [0, payload_off) of the image; with this the object is readable, so
 * the header's first word is stored last, with release order.
 * @param table  nchunks CRCs
 */
void mc_slot_seal(const struct mc_slot_info *info, const uint32_t *table, uint8_t *image);
/** No longer readable. Any later reader, also a remote one, finds no header. */
void mc_slot_clear(uint8_t *image);
/**
 * Check and decode the first bytes of an image, which nobody changes meanwhile: of a slot that is
 * not one's own, a copy.
 * @param n  bytes there; MC_SLOT_HEADER_LEN is enough to learn the lengths, see is_whole
 * @param ret_is_whole  key, TLV and table are among them and were checked, too. May be NULL: then
 *                      an image that is not whole is -MC_E_CORRUPT
 * @return 0; -MC_E_NOENT (no slot here); -MC_E_CORRUPT
 */
MC_MUST_CHECK int mc_slot_decode(const uint8_t *image, size_t n, struct mc_slot_info *ret_info,
				 bool *ret_is_whole);
/** CRC of chunk `index` as the table of a whole image says. */
uint32_t mc_slot_table(const uint8_t *image, const struct mc_slot_info *info, uint32_t index);

/** Next TLV. Start with *cursor = 0. @return false at the end, also of a damaged list */
bool mc_slot_tlv_next(const struct mc_slot_info *info, uint32_t *cursor, uint8_t *ret_type,
		      const uint8_t **ret_val, uint16_t *ret_len);

#endif
