/*
 * rec.c: records to bytes and back.
 */
#include "log/rec.h"

#include <string.h>

#include "base/codec.h"
#include "base/crc.h"
#include "base/mem.h"

#define MAGIC 0x524c434du /* "MCLR" */
#define VERSION 1u
#define CRC_OFF 4u /* of the header's CRC; it covers what follows it */

struct mc_rec_layout mc_rec_layout(uint32_t key_len, uint32_t tlv_len, uint64_t payload_len)
{
	uint64_t align = payload_len >= MC_DLOG_CHUNK ? MC_REC_BLOCK : MC_REC_ALIGN;
	struct mc_rec_layout l = {.align = (uint32_t)align};
	uint64_t meta;

	mc_assert(key_len <= MC_DLOG_KEY_MAX && tlv_len <= MC_DLOG_TLV_MAX &&
		  payload_len <= MC_DLOG_PAYLOAD_MAX);
	l.table_off = (uint32_t)mc_rec_round(MC_REC_HEAD + key_len + tlv_len, 4);
	l.nchunks = (uint32_t)((payload_len + MC_DLOG_CHUNK - 1) / MC_DLOG_CHUNK);
	meta = l.table_off + 4ull * l.nchunks;
	l.payload_off = (uint32_t)mc_rec_round(meta, align);
	l.len = l.payload_off + mc_rec_round(payload_len, align);
	return l;
}

void mc_rec_encode(const struct mc_rec *rec, uint8_t *ret_head)
{
	struct mc_wr w = mc_wr_make(ret_head, MC_REC_HEAD);
	uint32_t crc;

	memset(ret_head, 0, MC_REC_HEAD);
	mc_wr_u32(&w, MAGIC);
	mc_wr_u32(&w, 0);
	mc_wr_u64(&w, rec->log_id);
	mc_wr_u64(&w, rec->off);
	mc_wr_u32(&w, rec->segment);
	mc_wr_u16(&w, VERSION);
	mc_wr_u16(&w, (uint16_t)rec->kind);
	mc_wr_u64(&w, rec->hash);
	mc_wr_u32(&w, rec->check);
	mc_wr_u32(&w, rec->key_len);
	mc_wr_u64(&w, rec->gen.epoch);
	mc_wr_u64(&w, rec->gen.counter);
	mc_wr_u64(&w, rec->payload_len);
	mc_wr_u32(&w, rec->tlv_len);
	mc_wr_u32(&w, rec->meta_crc);
	mc_wr_u64(&w, rec->durable);
	mc_wr_u32(&w, rec->flags);
	mc_assert(!w.is_bad);
	crc = mc_crc32c(0, ret_head + CRC_OFF + 4, MC_REC_HEAD - CRC_OFF - 4);
	w = mc_wr_make(ret_head + CRC_OFF, 4);
	mc_wr_u32(&w, crc);
}

bool mc_rec_is_sane(const struct mc_rec *rec)
{
	if (rec->key_len == 0 || rec->key_len > MC_DLOG_KEY_MAX || rec->tlv_len > MC_DLOG_TLV_MAX)
		return false;
	if (rec->payload_len > MC_DLOG_PAYLOAD_MAX || rec->durable > rec->off)
		return false;
	if (rec->kind == MC_REC_TOMB)
		return rec->payload_len == 0 && rec->tlv_len == 0;
	if (rec->kind == MC_REC_FOOT)
		return rec->key_len == 1 && rec->tlv_len == 0;
	return rec->kind == MC_REC_PUT;
}

/* Whatever segment it says. */
static int decode(const uint8_t *head, uint64_t log_id, uint64_t off, struct mc_rec *ret_rec)
{
	struct mc_rd r = mc_rd_make(head, MC_REC_HEAD);
	uint32_t magic = mc_rd_u32(&r), crc = mc_rd_u32(&r), version;
	struct mc_rec rec;

	if (magic != MAGIC || crc != mc_crc32c(0, head + CRC_OFF + 4, MC_REC_HEAD - CRC_OFF - 4))
		return -MC_E_CORRUPT;
	rec.log_id = mc_rd_u64(&r);
	rec.off = mc_rd_u64(&r);
	rec.segment = mc_rd_u32(&r);
	version = mc_rd_u16(&r);
	rec.kind = (enum mc_rec_kind)mc_rd_u16(&r);
	rec.hash = mc_rd_u64(&r);
	rec.check = mc_rd_u32(&r);
	rec.key_len = mc_rd_u32(&r);
	rec.gen.epoch = mc_rd_u64(&r);
	rec.gen.counter = mc_rd_u64(&r);
	rec.payload_len = mc_rd_u64(&r);
	rec.tlv_len = mc_rd_u32(&r);
	rec.meta_crc = mc_rd_u32(&r);
	rec.durable = mc_rd_u64(&r);
	rec.flags = mc_rd_u32(&r);
	if (version != VERSION || rec.log_id != log_id || rec.off != off)
		return -MC_E_CORRUPT;
	if (!mc_rec_is_sane(&rec))
		return -MC_E_CORRUPT;
	*ret_rec = rec;
	return 0;
}

int mc_rec_decode(const uint8_t *head, uint64_t log_id, uint32_t segment, uint64_t off,
		  struct mc_rec *ret_rec)
{
	struct mc_rec rec;

	if (decode(head, log_id, off, &rec) < 0 || rec.segment != segment)
		return -MC_E_CORRUPT;
	*ret_rec = rec;
	return 0;
}

bool mc_rec_is_old(const uint8_t *head, uint64_t log_id, uint32_t segment, uint64_t off)
{
	struct mc_rec rec;

	return decode(head, log_id, off, &rec) == 0 && rec.segment < segment;
}

static uint32_t identity_crc(const struct mc_rec *rec, uint32_t salt)
{
	uint8_t buf[4 + 8 + 8 + 8 + 8 + 4];
	struct mc_wr w = mc_wr_make(buf, sizeof(buf));

	mc_wr_u32(&w, salt);
	mc_wr_u64(&w, rec->log_id);
	mc_wr_u64(&w, rec->hash);
	mc_wr_u64(&w, rec->gen.epoch);
	mc_wr_u64(&w, rec->gen.counter);
	mc_wr_u32(&w, rec->check);
	return mc_crc32c(0, buf, sizeof(buf));
}

uint32_t mc_rec_meta_crc(const struct mc_rec *rec, const void *meta, size_t len)
{
	return mc_crc32c(identity_crc(rec, UINT32_MAX), meta, len);
}

uint32_t mc_rec_chunk_seed(const struct mc_rec *rec, uint32_t chunk)
{
	return identity_crc(rec, chunk);
}

uint32_t mc_rec_chunk_len(uint64_t payload_len, uint32_t chunk)
{
	uint64_t at = (uint64_t)chunk * MC_DLOG_CHUNK;

	return (uint32_t)mc_min(payload_len - at, (uint64_t)MC_DLOG_CHUNK);
}
