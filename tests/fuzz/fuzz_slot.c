/*
 * fuzz_slot.c: images of slots as they may lie in a pool or on a disk. What is accepted is in
 * bounds, and sealing it again gives the same bytes. The first byte's lowest bit says whether the
 * CRCs are put right before, so that what stands behind them is reached.
 */
#include "meta/slot.h"

#include <string.h>

#include "base/crc.h"
#include "base/hash.h"
#include "base/mem.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

static void put_right(uint8_t *image, size_t n)
{
	uint16_t key_len, tlv_len;
	uint32_t crc, payload_off, magic = MC_SLOT_MAGIC;
	uint64_t payload, hash, end;

	memcpy(image, &magic, 4);
	memcpy(&key_len, image + 4, 2);
	memcpy(&tlv_len, image + 6, 2);
	memcpy(&payload, image + 32, 8);
	payload %= (uint64_t)64 * MC_SLOT_CHUNK;
	memcpy(image + 32, &payload, 8);
	end = (MC_SLOT_HEADER_LEN + (uint64_t)key_len + tlv_len + 3) / 4 * 4 +
	      (payload + MC_SLOT_CHUNK - 1) / MC_SLOT_CHUNK * 4;
	payload_off = (uint32_t)(payload < MC_SLOT_PAGED_MIN ? (end + 63) / 64 * 64
							     : (end + 4095) / 4096 * 4096);
	memcpy(image + 40, &payload_off, 4);
	memset(image + 52, 0, 8);
	if (end <= n) {
		hash = mc_hash64(image + MC_SLOT_HEADER_LEN, key_len, 0);
		memcpy(image + 24, &hash, 8);
		crc = mc_crc32c(0, image + MC_SLOT_HEADER_LEN, end - MC_SLOT_HEADER_LEN);
		memcpy(image + 48, &crc, 4);
	}
	crc = mc_crc32c(0, image, 60);
	memcpy(image + 60, &crc, 4);
}

static void check(const uint8_t *image, size_t n, const struct mc_slot_info *info)
{
	uint32_t table[64], cursor = 0, texts = MC_SLOT_HEADER_LEN + info->key_len + info->tlv_len;
	const uint8_t *val;
	uint8_t *again, type;
	uint16_t len;

	mc_assert(info->key + info->key_len <= image + n && info->tlv + info->tlv_len <= image + n);
	mc_assert(mc_slot_head_len(info) <= n && info->payload_off + info->len <= info->slot_len);
	while (mc_slot_tlv_next(info, &cursor, &type, &val, &len))
		mc_assert(val >= info->tlv && val + len <= info->tlv + info->tlv_len);
	if (info->nchunks > MC_ARRAY_LEN(table))
		return;
	for (uint32_t i = 0; i < info->nchunks; i++)
		table[i] = mc_slot_table(image, info, i);
	for (uint32_t i = texts; i < info->table_off; i++) {
		if (image[i])
			return; /* sealing writes zeros there */
	}
	again = mc_aligned_alloc(64, info->payload_off);
	if (!again)
		return;
	mc_slot_seal(info, table, again);
	mc_assert(memcmp(again, image, mc_slot_head_len(info)) == 0);
	mc_free(again);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	struct mc_slot_info info;
	uint8_t *image;
	bool is_whole;

	if (len < 1 || len > 1u << 20)
		return 0;
	image = mc_aligned_alloc(64, len);
	if (!image)
		return 0;
	memcpy(image, data + 1, len - 1);
	if (data[0] & 1 && len - 1 >= MC_SLOT_HEADER_LEN)
		put_right(image, len - 1);
	if (mc_slot_decode(image, len - 1, &info, &is_whole) == 0 && is_whole)
		check(image, len - 1, &info);
	mc_free(image);
	return 0;
}
