/*
 * foot.c: the footer of a sealed segment: the heads, keys and metadata of all its records in one
 * record at its end, so that a walk or a listing reads it instead of each record's own head.
 *
 *   header, its one byte of key, CRCs | for each record: 56 of its header, key, TLV, zeros to a
 *   multiple of 8 | zeros | trailer 32: magic, CRC, log id, place of the footer, segment, entries
 *
 * The trailer ends the file. A footer is a help, not a promise: it is not synced, a segment of
 * small records has none (it would cost more than it saves), nor has one that two lives of the log
 * wrote; where it is not as it should be, in any bit, the segment is walked.
 */
#include <string.h>

#include "base/codec.h"
#include "base/crc.h"
#include "base/log.h"
#include "log/priv.h"

#define MAGIC 0x464c434du /* "MCLF" */
#define TRAILER 32u
#define ENTRY 56u /* without key and TLV */
#define ENTRY_ALIGN 8u
#define SHARE 32u /* of the segment, at most */
#define BYTES_MAX (16u << 20)

/* ---- writing ---- */

void mc_dlog_foot_drop(struct mc_dlog *log)
{
	mc_free(log->foot.bytes);
	log->foot = (struct mc_dlog_foot){0};
}

void mc_dlog_foot_begin(struct mc_dlog *log)
{
	log->foot.len = log->foot.n = 0;
	log->foot.is_whole = true;
}

void mc_dlog_foot_add(struct mc_dlog *log, const struct mc_dlog_put *p)
{
	struct mc_dlog_foot *f = &log->foot;
	uint64_t raw = ENTRY + (uint64_t)p->rec.key_len + p->rec.tlv_len;
	uint64_t len = mc_rec_round(raw, ENTRY_ALIGN), max;
	void *bytes = f->bytes;
	uint8_t *at;
	struct mc_wr w;

	if (!f->is_whole)
		return;
	max = mc_min(log->segment_bytes / SHARE, (uint64_t)BYTES_MAX);
	if (f->len + len > max || mc_array_grow(&bytes, &f->cap, f->len + len, max, 1) < 0) {
		mc_dlog_foot_drop(log);
		return;
	}
	f->bytes = bytes;
	at = f->bytes + f->len;
	w = mc_wr_make(at, ENTRY);
	mc_wr_u64(&w, p->rec.off);
	mc_wr_u64(&w, p->rec.hash);
	mc_wr_u64(&w, p->rec.gen.epoch);
	mc_wr_u64(&w, p->rec.gen.counter);
	mc_wr_u64(&w, p->rec.payload_len);
	mc_wr_u32(&w, p->rec.check);
	mc_wr_u32(&w, p->rec.key_len);
	mc_wr_u32(&w, p->rec.tlv_len);
	mc_wr_u32(&w, p->rec.kind);
	mc_assert(!w.is_bad);
	at += ENTRY;
	memcpy(at, p->op->key, p->rec.key_len);
	if (p->rec.tlv_len > 0)
		memcpy(at + p->rec.key_len, p->op->tlv, p->rec.tlv_len);
	memset(at + p->rec.key_len + p->rec.tlv_len, 0, len - raw);
	f->len += len;
	f->n++;
}

static void trailer_encode(const struct mc_rec *rec, uint32_t n, uint8_t *to)
{
	struct mc_wr w = mc_wr_make(to, TRAILER);

	mc_wr_u32(&w, MAGIC);
	mc_wr_u32(&w, 0);
	mc_wr_u64(&w, rec->log_id);
	mc_wr_u64(&w, rec->off);
	mc_wr_u32(&w, rec->segment);
	mc_wr_u32(&w, n);
	w = mc_wr_make(to + 4, 4);
	mc_wr_u32(&w, mc_crc32c(0, to + 8, TRAILER - 8));
}

/* A record whose payload ends with a block, `len` and the trailer in it. */
static struct mc_rec_layout fit(struct mc_rec *rec, uint64_t len)
{
	struct mc_rec_layout l;
	uint64_t want = len + TRAILER, blocks;

	do { /* its table grows with it */
		l = mc_rec_layout(rec->key_len, 0, want);
		blocks = mc_rec_round(l.payload_off + want, MC_REC_BLOCK);
		rec->payload_len = blocks - l.payload_off;
		want = rec->payload_len;
		l = mc_rec_layout(rec->key_len, 0, want);
	} while (l.len != blocks);
	return l;
}

/* @return the bytes of the footer, or NULL */
static uint8_t *encode(struct mc_dlog *log, const struct mc_dlog_seg *seg, uint64_t *ret_len)
{
	const struct mc_dlog_foot *f = &log->foot;
	struct mc_dlog_put p = {.rec = {.log_id = log->log_id,
					.off = seg->tail,
					.segment = seg->id,
					.kind = MC_REC_FOOT,
					.key_len = 1,
					.durable = seg->tail}};
	struct mc_dlog_op op = {.key = "", .key_len = 1, .niov = 1};
	struct iovec iov;
	uint8_t *to, *payload;

	p.layout = fit(&p.rec, f->len);
	to = mc_aligned_alloc(MC_REC_BLOCK, p.layout.len);
	if (!to)
		return NULL;
	payload = to + p.layout.payload_off;
	memcpy(payload, f->bytes, f->len);
	trailer_encode(&p.rec, (uint32_t)f->n, payload + p.rec.payload_len - TRAILER);
	iov = (struct iovec){payload, p.rec.payload_len};
	op.iov = &iov;
	p.op = &op;
	mc_dlog_encode(&p, to, false);
	*ret_len = p.layout.len;
	return to;
}

void mc_dlog_foot_write(struct mc_dlog *log, struct mc_dlog_seg *seg)
{
	uint64_t len = 0, done = 0;
	uint8_t *bytes;
	ssize_t n = 1;

	if (!log->foot.is_whole || log->foot.n == 0 || seg->tail % MC_REC_BLOCK != 0)
		return;
	bytes = encode(log, seg, &len);
	seg->room = mc_max(seg->room, seg->tail + len);
	for (; bytes && done < len && n > 0; done += (uint64_t)mc_max(n, (ssize_t)0)) {
		n = log->disk->write(seg->file, bytes + done, len - done, seg->tail + done);
		if (n > 0 && n % MC_REC_BLOCK != 0)
			break; /* full */
	}
	mc_free(bytes);
	if (!bytes || done < len)
		return; /* what is there of it is cut off */
	seg->tail = seg->durable = seg->tail + len;
	seg->foot_bytes = len;
}

/* ---- reading ---- */

static bool read_all(const struct mc_dlog_seg *seg, uint8_t *to, uint64_t len, uint64_t off)
{
	ssize_t n;

	for (uint64_t done = 0; done < len; done += (uint64_t)n) {
		n = seg->file->disk->read(seg->file, to + done, len - done, off + done);
		if (n <= 0 || n % MC_REC_BLOCK != 0)
			return false;
	}
	return true;
}

/* @return where the footer begins; 0: there is none */
static uint64_t find(const struct mc_dlog *log, const struct mc_dlog_seg *seg, uint32_t *ret_n)
{
	uint8_t *block = mc_aligned_alloc(MC_REC_BLOCK, MC_REC_BLOCK);
	uint64_t off = 0, id, at;
	uint32_t segment;

	if (block && read_all(seg, block, MC_REC_BLOCK, seg->tail - MC_REC_BLOCK)) {
		const uint8_t *t = block + MC_REC_BLOCK - TRAILER;
		struct mc_rd r = mc_rd_make(t, TRAILER);
		bool is_good = mc_rd_u32(&r) == MAGIC;

		is_good &= mc_rd_u32(&r) == mc_crc32c(0, t + 8, TRAILER - 8);
		id = mc_rd_u64(&r);
		at = mc_rd_u64(&r);
		segment = mc_rd_u32(&r);
		*ret_n = mc_rd_u32(&r);
		if (is_good && id == log->log_id && segment == seg->id && at < seg->tail &&
		    at % MC_REC_BLOCK == 0 && seg->tail - at <= 2 * BYTES_MAX)
			off = at;
	}
	mc_free(block);
	return off;
}

/* Whole and sound? */
static bool is_sound(const struct mc_dlog *log, const struct mc_dlog_seg *seg, uint64_t off,
		     const uint8_t *bytes, struct mc_rec *ret_rec)
{
	struct mc_rec_layout l;

	if (mc_rec_decode(bytes, log->log_id, seg->id, off, ret_rec) < 0 ||
	    ret_rec->kind != MC_REC_FOOT)
		return false;
	l = mc_rec_layout(ret_rec->key_len, ret_rec->tlv_len, ret_rec->payload_len);
	if (l.len != seg->tail - off || ret_rec->payload_len < TRAILER ||
	    ret_rec->meta_crc != mc_rec_meta_crc(ret_rec, bytes + MC_REC_HEAD,
						 l.table_off + 4ull * l.nchunks - MC_REC_HEAD))
		return false;
	for (uint32_t i = 0; i < l.nchunks; i++)
		if (!mc_dlog_is_chunk(ret_rec, bytes, i,
				      bytes + l.payload_off + (size_t)i * MC_DLOG_CHUNK))
			return false;
	return true;
}

/* Of bytes [*at, len). @return whether it is one */
static bool entry_get(const struct mc_dlog *log, const struct mc_dlog_seg *seg,
		      const uint8_t *bytes, uint64_t len, uint64_t *at, struct mc_rec *ret_rec,
		      const uint8_t **ret_texts)
{
	struct mc_rec rec = {.log_id = log->log_id, .segment = seg->id};
	uint64_t whole;
	struct mc_rd r;

	if (len - *at < ENTRY)
		return false;
	r = mc_rd_make(bytes + *at, ENTRY);
	rec.off = mc_rd_u64(&r);
	rec.hash = mc_rd_u64(&r);
	rec.gen.epoch = mc_rd_u64(&r);
	rec.gen.counter = mc_rd_u64(&r);
	rec.payload_len = mc_rd_u64(&r);
	rec.check = mc_rd_u32(&r);
	rec.key_len = mc_rd_u32(&r);
	rec.tlv_len = mc_rd_u32(&r);
	rec.kind = (enum mc_rec_kind)mc_rd_u32(&r);
	if (!mc_rec_is_sane(&rec) || rec.kind == MC_REC_FOOT || rec.off % MC_REC_ALIGN != 0 ||
	    rec.off >= seg->tail ||
	    mc_rec_layout(rec.key_len, rec.tlv_len, rec.payload_len).len > seg->tail - rec.off)
		return false;
	whole = mc_rec_round(ENTRY + (uint64_t)rec.key_len + rec.tlv_len, ENTRY_ALIGN);
	if (whole > len - *at)
		return false;
	*ret_rec = rec;
	*ret_texts = bytes + *at + ENTRY;
	*at += whole;
	return true;
}

/* All of the footer, checked. @return NULL: it is not good, or there is none */
static uint8_t *load(struct mc_dlog *log, const struct mc_dlog_seg *seg, uint64_t off,
		     struct mc_rec *ret_foot)
{
	uint8_t *bytes = mc_aligned_alloc(MC_REC_BLOCK, seg->tail - off);

	if (!bytes)
		return NULL;
	if (read_all(seg, bytes, seg->tail - off, off) &&
	    is_sound(log, seg, off, bytes, ret_foot)) {
		log->stats.scanned_bytes += seg->tail - off;
		return bytes;
	}
	mc_log_warn("a footer of the disk log is not good, reading its segment",
		    "path=%s segment=%u", log->path, seg->id);
	mc_free(bytes);
	return NULL;
}

/* @return how many of the n entries are good */
static uint32_t count_good(const struct mc_dlog *log, const struct mc_dlog_seg *seg,
			   const uint8_t *entries, uint64_t len, uint32_t n)
{
	const uint8_t *texts;
	struct mc_rec rec;
	uint64_t at = 0;

	for (uint32_t i = 0; i < n; i++)
		if (!entry_get(log, seg, entries, len, &at, &rec, &texts))
			return i;
	return n;
}

int mc_dlog_foot_each(struct mc_dlog *log, struct mc_dlog_seg *seg, mc_dlog_foot_fn *each,
		      void *user)
{
	const uint8_t *texts, *entries;
	uint64_t off = 0, len, at = 0;
	struct mc_rec foot, rec;
	uint8_t *bytes = NULL;
	uint32_t n = 0;
	int rc = 0;

	if (!seg->is_footless && seg->tail >= 2 * MC_REC_BLOCK && seg->tail % MC_REC_BLOCK == 0)
		off = find(log, seg, &n);
	if (off > 0)
		bytes = load(log, seg, off, &foot);
	if (!bytes) {
		seg->is_footless = true;
		return 0;
	}
	entries = bytes + mc_rec_layout(foot.key_len, foot.tlv_len, foot.payload_len).payload_off;
	len = foot.payload_len - TRAILER;
	if (count_good(log, seg, entries, len, n) < n) { /* before anything is told */
		mc_free(bytes);
		seg->is_footless = true;
		return 0;
	}
	for (uint32_t i = 0; i < n && rc == 0; i++) {
		mc_assert(entry_get(log, seg, entries, len, &at, &rec, &texts));
		rc = each(user, log, seg, &rec, texts);
	}
	mc_free(bytes);
	seg->foot_bytes = seg->tail - off;
	return rc < 0 ? rc : 1;
}
