/*
 * chunk.c: a chunk's CRC over bytes that lie in several pieces.
 */
#include "base/crc.h"
#include "client/priv.h"

uint32_t mc_cli_chunk_crc(const struct mc_slot_info *info, const struct mc_store_range *ranges,
			  uint32_t *i, uint32_t chunk)
{
	uint64_t at = (uint64_t)chunk * MC_SLOT_CHUNK;
	size_t left = mc_slot_chunk_len(info, chunk), part;
	const struct mc_store_range *g;
	uint32_t crc;

	while (ranges[*i].offset + ranges[*i].len <= at)
		(*i)++;
	g = &ranges[*i];
	part = mc_min(left, (size_t)(g->offset + g->len - at));
	crc = mc_slot_chunk_crc(info, chunk, (const uint8_t *)g->addr + (at - g->offset), part);
	for (left -= part; left > 0; left -= part) {
		g = &ranges[++*i];
		part = mc_min(left, g->len);
		crc = mc_crc32c(crc, g->addr, part);
	}
	return crc;
}
