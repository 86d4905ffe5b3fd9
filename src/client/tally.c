/*
 * tally.c: CRCs of an object's chunks, taken while its bytes are copied, or lie in the cache after
 * a socket call. What passes in order is counted; of a chunk that comes in another order nothing is
 * known, and whoever needs its CRC reads it again.
 *
 * The seed of a chunk's CRC says whose bytes they are, which a reader knows only once he has the
 * header: it is added in the end.
 */
#include "base/crc.h"
#include "client/priv.h"

#define OUT_OF_ORDER UINT32_MAX

struct chunk {
	uint32_t crc; /* of its first `len` bytes, begun with 0 */
	uint32_t len;
};

struct mc_cli_tally {
	uint64_t payload_at;
	bool is_void;
	struct chunk chunks[];
};

struct mc_cli_tally *mc_cli_tally_new(struct mc_cli_op *op, const struct mc_slot_info *info,
				      uint64_t payload_at)
{
	struct mc_cli_tally *y;

	if (info->len < MC_SLOT_CHUNK)
		return NULL;
	y = mc_cli_alloc(op, 1, sizeof(*y) + info->nchunks * sizeof(y->chunks[0]));
	if (!y)
		return NULL;
	y->payload_at = payload_at;
	return y;
}

static void chunk_add(struct chunk *c, uint32_t at, uint8_t *dst, const uint8_t *src, size_t n,
		      bool is_big)
{
	if (c->len != at) {
		c->len = OUT_OF_ORDER;
		if (dst)
			memcpy(dst, src, n);
		return;
	}
	if (!dst)
		c->crc = mc_crc32c(c->crc, src, n);
	else if (is_big)
		c->crc = mc_crc32c_stream(c->crc, dst, src, n);
	else
		c->crc = mc_crc32c_copy(c->crc, dst, src, n);
	c->len += (uint32_t)n;
}

void mc_cli_tally_add(struct mc_cli_tally *y, uint64_t at, void *dst, const void *src, size_t n,
		      bool is_big)
{
	const uint8_t *from = src;
	uint8_t *to = dst;

	for (size_t part; n > 0; n -= part, at += part, from += part, to = dst ? to + part : NULL) {
		uint64_t off = at - y->payload_at;

		if (at < y->payload_at) {
			part = (size_t)mc_min(n, y->payload_at - at);
			if (to)
				memcpy(to, from, part);
			continue;
		}
		part = mc_min(n, (size_t)(MC_SLOT_CHUNK - off % MC_SLOT_CHUNK));
		chunk_add(&y->chunks[off / MC_SLOT_CHUNK], (uint32_t)(off % MC_SLOT_CHUNK), to,
			  from, part, is_big);
	}
}

void mc_cli_tally_void(struct mc_cli_tally *y)
{
	y->is_void = true;
}

bool mc_cli_tally_crc(const struct mc_cli_tally *y, const struct mc_slot_info *info, uint32_t chunk,
		      uint32_t *ret)
{
	if (!y || y->is_void || y->chunks[chunk].len != mc_slot_chunk_len(info, chunk))
		return false;
	*ret = mc_slot_chunk_seed(info, chunk, y->chunks[chunk].crc);
	return true;
}
