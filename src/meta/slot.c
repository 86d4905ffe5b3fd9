/*
 * slot.c: encode and check a slot. A field that decode accepts is in bounds, and all places are
 * computed anew from the lengths: what the image says of them has to agree.
 */
#include "meta/slot.h"

#include <stdatomic.h>
#include <string.h>

#include "base/codec.h"
#include "base/crc.h"
#include "base/hash.h"
#include "base/rand.h"

#define CRC_OFF 60u

static uint64_t align_up(uint64_t n, uint64_t align)
{
	return (n + align - 1) & ~(align - 1);
}

int mc_slot_layout(struct mc_slot_info *info)
{
	if (info->key_len == 0)
		return -MC_E_INVAL;
	if (info->key_len > MC_SLOT_KEY_MAX || info->tlv_len > MC_SLOT_TLV_MAX ||
	    info->len > MC_SLOT_PAYLOAD_MAX)
		return -MC_E_TOO_BIG;
	info->align = info->len >= MC_SLOT_PAGED_MIN ? 4096 : 64;
	info->nchunks = (uint32_t)((info->len + MC_SLOT_CHUNK - 1) / MC_SLOT_CHUNK);
	info->table_off = (uint32_t)align_up(MC_SLOT_HEADER_LEN + info->key_len + info->tlv_len, 4);
	info->payload_off = (uint32_t)align_up(mc_slot_head_len(info), info->align);
	info->slot_len = align_up(info->payload_off + info->len, info->align);
	return 0;
}

/* Different for each chunk of each write of each key in each life of an owner, as far as 32 bits
 * go. */
static uint32_t chunk_seed(const struct mc_slot_info *info, uint32_t index)
{
	uint64_t state = info->incarnation;
	uint64_t seed = mc_splitmix64(&state);

	state = seed ^ info->gen;
	seed = mc_splitmix64(&state);
	state = seed ^ info->key_hash;
	seed = mc_splitmix64(&state);
	state = seed ^ index;
	return (uint32_t)mc_splitmix64(&state);
}

uint32_t mc_slot_chunk_crc(const struct mc_slot_info *info, uint32_t index, const void *bytes,
			   size_t len)
{
	return mc_crc32c(chunk_seed(info, index), bytes, len);
}

uint32_t mc_slot_chunk_seed(const struct mc_slot_info *info, uint32_t index, uint32_t plain)
{
	return plain ^ mc_crc32c_skip(chunk_seed(info, index), mc_slot_chunk_len(info, index));
}

uint32_t mc_slot_chunk_copy(const struct mc_slot_info *info, uint32_t index, void *to,
			    const void *from, size_t len)
{
	uint32_t seed = chunk_seed(info, index);

	return info->len >= MC_CRC_STREAM_MIN ? mc_crc32c_stream(seed, to, from, len)
					      : mc_crc32c_copy(seed, to, from, len);
}

static void header_encode(const struct mc_slot_info *info, uint32_t meta_crc,
			  uint8_t header[MC_SLOT_HEADER_LEN])
{
	struct mc_wr w = mc_wr_make(header, MC_SLOT_HEADER_LEN);

	mc_wr_u32(&w, MC_SLOT_MAGIC);
	mc_wr_u16(&w, (uint16_t)info->key_len);
	mc_wr_u16(&w, (uint16_t)info->tlv_len);
	mc_wr_u64(&w, info->gen);
	mc_wr_u64(&w, info->incarnation);
	mc_wr_u64(&w, info->key_hash);
	mc_wr_u64(&w, info->len);
	mc_wr_u32(&w, info->payload_off);
	mc_wr_u32(&w, info->flags);
	mc_wr_u32(&w, meta_crc);
	mc_wr_u64(&w, 0);
	mc_wr_u32(&w, mc_crc32c(0, header, CRC_OFF));
}

void mc_slot_seal(const struct mc_slot_info *info, const uint32_t *table, uint8_t *image)
{
	uint8_t header[MC_SLOT_HEADER_LEN];
	uint64_t head_len = mc_slot_head_len(info);
	uint32_t texts = MC_SLOT_HEADER_LEN + info->key_len + info->tlv_len, first;
	struct mc_wr w = mc_wr_make(image + info->table_off, head_len - info->table_off);

	memcpy(image + MC_SLOT_HEADER_LEN, info->key, info->key_len);
	if (info->tlv_len)
		memcpy(image + MC_SLOT_HEADER_LEN + info->key_len, info->tlv, info->tlv_len);
	memset(image + texts, 0, info->table_off - texts);
	for (uint32_t i = 0; i < info->nchunks; i++)
		mc_wr_u32(&w, table[i]);
	memset(image + head_len, 0, info->payload_off - head_len);
	header_encode(info, mc_crc32c(0, image + MC_SLOT_HEADER_LEN, head_len - MC_SLOT_HEADER_LEN),
		      header);
	memcpy(image + 4, header + 4, MC_SLOT_HEADER_LEN - 4);
	memcpy(&first, header, 4);
	/* Release: who reads the magic (mc_slot_decode() of a copy) has the rest. */
	atomic_store_explicit((_Atomic uint32_t *)(void *)image, first, memory_order_release);
}

void mc_slot_clear(uint8_t *image)
{
	atomic_store_explicit((_Atomic uint32_t *)(void *)image, 0, memory_order_relaxed);
	/* Before any store into these bytes, also past the cache: a reader that looks at the header
	 * again after the payload must not see the old one with new bytes. */
	atomic_thread_fence(memory_order_seq_cst);
}

/* The fixed part; lengths are in bounds afterwards. */
static int header_decode(const uint8_t *image, struct mc_slot_info *info, uint32_t *ret_meta_crc)
{
	struct mc_rd r = mc_rd_make(image, MC_SLOT_HEADER_LEN);
	uint32_t payload_off;

	*info = (struct mc_slot_info){0};
	if (mc_rd_u32(&r) != MC_SLOT_MAGIC)
		return -MC_E_NOENT;
	info->key_len = mc_rd_u16(&r);
	info->tlv_len = mc_rd_u16(&r);
	info->gen = mc_rd_u64(&r);
	info->incarnation = mc_rd_u64(&r);
	info->key_hash = mc_rd_u64(&r);
	info->len = mc_rd_u64(&r);
	payload_off = mc_rd_u32(&r);
	info->flags = mc_rd_u32(&r);
	*ret_meta_crc = mc_rd_u32(&r);
	if (mc_rd_u64(&r) != 0 || mc_rd_u32(&r) != mc_crc32c(0, image, CRC_OFF))
		return -MC_E_CORRUPT;
	if (info->gen == 0 || info->incarnation == 0 || info->flags & ~(uint32_t)MC_SLOT_TOMBSTONE)
		return -MC_E_CORRUPT;
	if (mc_slot_layout(info) < 0 || info->payload_off != payload_off)
		return -MC_E_CORRUPT;
	return 0;
}

int mc_slot_decode(const uint8_t *image, size_t n, struct mc_slot_info *ret_info,
		   bool *ret_is_whole)
{
	struct mc_slot_info info;
	uint64_t head_len;
	uint32_t meta_crc;
	bool is_whole;
	int rc;

	if (n < MC_SLOT_HEADER_LEN)
		return -MC_E_CORRUPT;
	rc = header_decode(image, &info, &meta_crc);
	if (rc < 0)
		return rc;
	head_len = mc_slot_head_len(&info);
	is_whole = n >= head_len;
	if (is_whole) {
		info.key = image + MC_SLOT_HEADER_LEN;
		info.tlv = info.key + info.key_len;
		if (mc_crc32c(0, info.key, head_len - MC_SLOT_HEADER_LEN) != meta_crc ||
		    mc_hash64(info.key, info.key_len, 0) != info.key_hash)
			return -MC_E_CORRUPT;
	} else if (!ret_is_whole) {
		return -MC_E_CORRUPT;
	}
	*ret_info = info;
	if (ret_is_whole)
		*ret_is_whole = is_whole;
	return 0;
}

uint32_t mc_slot_table(const uint8_t *image, const struct mc_slot_info *info, uint32_t index)
{
	uint32_t v;

	memcpy(&v, image + info->table_off + (size_t)index * 4, 4);
	return le32toh(v);
}

bool mc_slot_tlv_next(const struct mc_slot_info *info, uint32_t *cursor, uint8_t *ret_type,
		      const uint8_t **ret_val, uint16_t *ret_len)
{
	struct mc_rd r;
	const uint8_t *val;
	uint16_t len;
	uint8_t type;

	if (*cursor >= info->tlv_len)
		return false;
	r = mc_rd_make(info->tlv + *cursor, info->tlv_len - *cursor);
	type = mc_rd_u8(&r);
	if (mc_rd_u8(&r) != 0)
		return false;
	len = mc_rd_u16(&r);
	val = mc_rd_bytes(&r, len);
	if (r.is_bad)
		return false;
	*cursor += 4u + len;
	*ret_type = type;
	*ret_val = val;
	*ret_len = len;
	return true;
}
