/*
 * ckpt.c: the checkpoint, a file with all of the index, replaced by rename.
 *
 *   head 64: magic, CRC of the rest of the head | log id | version, flags | segments, entries |
 *   CRC of the body | zeros
 *   body: segments of 16 bytes (id, bytes of the footer, how much is covered), ascending; entries
 *   of 48
 *
 * It covers each segment up to where it was durable; what follows is found by a walk. A segment
 * that compaction has emptied is removed only after a checkpoint that does not name it, so one that
 * is named and not there was lost: its objects are then missed, not replaced by older ones.
 */
#include "log/priv.h"

#include <errno.h>
#include <string.h>

#include "base/codec.h"
#include "base/crc.h"
#include "base/log.h"

#define MAGIC 0x434c434du /* "MCLC" */
#define VERSION 1u
#define HEAD 64u
#define CRC_OFF 4u
#define SEG_ROW 16u
#define ENTRY 48u
#define FLAG_COUNTED 1u
#define BUF (240u << 10) /* a multiple of all rows */
#define NAME "checkpoint"
#define NAME_NEW "checkpoint.new"

struct head {
	uint64_t log_id;
	uint32_t flags, nsegs, nentries, body_crc;
};

/* ---- bytes ---- */

static void head_encode(const struct head *h, uint8_t *to)
{
	struct mc_wr w = mc_wr_make(to, HEAD);
	uint32_t crc;

	memset(to, 0, HEAD);
	mc_wr_u32(&w, MAGIC);
	mc_wr_u32(&w, 0);
	mc_wr_u64(&w, h->log_id);
	mc_wr_u32(&w, VERSION);
	mc_wr_u32(&w, h->flags);
	mc_wr_u32(&w, h->nsegs);
	mc_wr_u32(&w, h->nentries);
	mc_wr_u32(&w, h->body_crc);
	crc = mc_crc32c(0, to + CRC_OFF + 4, HEAD - CRC_OFF - 4);
	w = mc_wr_make(to + CRC_OFF, 4);
	mc_wr_u32(&w, crc);
}

static bool head_decode(const uint8_t *from, struct head *ret_head)
{
	struct mc_rd r = mc_rd_make(from, HEAD);
	uint32_t magic = mc_rd_u32(&r), crc = mc_rd_u32(&r), version;

	ret_head->log_id = mc_rd_u64(&r);
	version = mc_rd_u32(&r);
	ret_head->flags = mc_rd_u32(&r);
	ret_head->nsegs = mc_rd_u32(&r);
	ret_head->nentries = mc_rd_u32(&r);
	ret_head->body_crc = mc_rd_u32(&r);
	return magic == MAGIC && crc == mc_crc32c(0, from + CRC_OFF + 4, HEAD - CRC_OFF - 4) &&
	       version == VERSION && ret_head->nsegs <= MC_DLOG_SEGMENTS_MAX &&
	       ret_head->nentries <= MC_INDEX_MAX;
}

static void entry_encode(const struct mc_index_entry *e, uint8_t *to)
{
	struct mc_wr w = mc_wr_make(to, ENTRY);

	mc_wr_u64(&w, e->hash);
	mc_wr_u64(&w, e->gen.epoch);
	mc_wr_u64(&w, e->gen.counter);
	mc_wr_u64(&w, e->payload_len | (uint64_t)e->nolder << 40 | (uint64_t)e->kind << 56);
	mc_wr_u32(&w, e->check);
	mc_wr_u32(&w, e->segment);
	mc_wr_u32(&w, e->place);
	mc_wr_u16(&w, e->key_len);
	mc_wr_u16(&w, e->tlv_len);
}

/* @return whether it can be an entry */
static bool entry_decode(const uint8_t *from, struct mc_index_entry *ret_e)
{
	struct mc_rd r = mc_rd_make(from, ENTRY);
	struct mc_index_entry e = {.hash = mc_rd_u64(&r)};
	uint64_t word;

	e.gen.epoch = mc_rd_u64(&r);
	e.gen.counter = mc_rd_u64(&r);
	word = mc_rd_u64(&r);
	e.payload_len = word & ((1ull << 40) - 1);
	e.nolder = word >> 40 & UINT16_MAX;
	e.kind = (uint8_t)(word >> 56);
	e.check = mc_rd_u32(&r);
	e.segment = mc_rd_u32(&r);
	e.place = mc_rd_u32(&r);
	e.key_len = mc_rd_u16(&r);
	e.tlv_len = mc_rd_u16(&r);
	*ret_e = e;
	if (e.key_len == 0 || e.key_len > MC_DLOG_KEY_MAX || e.tlv_len > MC_DLOG_TLV_MAX ||
	    e.payload_len > MC_DLOG_PAYLOAD_MAX)
		return false;
	return e.kind == MC_REC_PUT || (e.kind == MC_REC_TOMB && e.payload_len == 0);
}

/* ---- a file in order ---- */

struct stream {
	struct mc_dlog *log;
	struct mc_disk_file *file;
	uint64_t off; /* of buf */
	uint32_t len, at, crc;
	uint8_t *buf;
	int rc;
};

static int stream_open(struct stream *s, struct mc_dlog *log, const char *name, uint32_t flags)
{
	char path[MC_DLOG_PATH_MAX];
	int rc = mc_dlog_path(log, name, 0, path);

	*s = (struct stream){.log = log, .off = HEAD};
	if (rc < 0)
		return rc;
	s->buf = mc_calloc(1, BUF);
	if (!s->buf)
		return -MC_E_NOMEM;
	rc = log->disk->open(log->disk, path, flags, 0600, &s->file);
	return rc == -ENOENT ? -MC_E_NOENT : rc < 0 ? mc_err_from_errno(-rc) : 0;
}

static void stream_close(struct stream *s)
{
	if (s->file)
		s->log->disk->close(s->file);
	mc_free(s->buf);
}

static int write_all(struct stream *s, const uint8_t *from, uint32_t len, uint64_t off)
{
	for (uint32_t done = 0; done < len;) {
		ssize_t n = s->log->disk->write(s->file, from + done, len - done, off + done);

		if (n < 0)
			return mc_err_from_errno((int)-n);
		if (n == 0)
			return -MC_E_NOSPACE;
		done += (uint32_t)n;
	}
	return 0;
}

static int read_all(struct stream *s, uint8_t *to, uint32_t len, uint64_t off)
{
	for (uint32_t done = 0; done < len;) {
		ssize_t n = s->log->disk->read(s->file, to + done, len - done, off + done);

		if (n < 0)
			return mc_err_from_errno((int)-n);
		if (n == 0)
			return -MC_E_CORRUPT;
		done += (uint32_t)n;
	}
	return 0;
}

static void put_out(struct stream *s)
{
	s->crc = mc_crc32c(s->crc, s->buf, s->at);
	if (s->rc == 0)
		s->rc = write_all(s, s->buf, s->at, s->off);
	s->off += s->at;
	s->at = 0;
}

/* Room for the next n bytes. */
static uint8_t *stream_put(struct stream *s, uint32_t n)
{
	if (s->at + n > BUF)
		put_out(s);
	s->at += n;
	return s->buf + s->at - n;
}

/* The next n of `left` bytes, or NULL. */
static const uint8_t *stream_get(struct stream *s, uint32_t n, uint64_t left)
{
	if (s->at == s->len) {
		s->off += s->len;
		s->len = (uint32_t)mc_min(left, (uint64_t)BUF);
		s->at = 0;
		s->rc = read_all(s, s->buf, s->len, s->off);
		if (s->rc < 0)
			return NULL;
		s->crc = mc_crc32c(s->crc, s->buf, s->len);
	}
	s->at += n;
	return s->buf + s->at - n;
}

/* ---- loading ---- */

static int load_segs(struct stream *s, const struct head *h, uint32_t *ret_last_id)
{
	uint64_t left = (uint64_t)h->nsegs * SEG_ROW;
	struct mc_dlog *log = s->log;
	int64_t last = -1;

	for (uint32_t i = 0; i < h->nsegs; i++, left -= SEG_ROW) {
		const uint8_t *p = stream_get(s, SEG_ROW, left);
		struct mc_dlog_seg *seg;
		struct mc_rd r;
		uint64_t covered;
		uint32_t id, foot;
		int rc;

		if (!p)
			return s->rc;
		r = mc_rd_make(p, SEG_ROW);
		id = mc_rd_u32(&r);
		foot = mc_rd_u32(&r);
		covered = mc_rd_u64(&r);
		if ((int64_t)id <= last || id == UINT32_MAX || covered % MC_REC_BLOCK != 0)
			return -MC_E_CORRUPT;
		last = id;
		rc = mc_dlog_seg_adopt(log, id, &seg);
		if (rc == -MC_E_NOENT) {
			mc_log_error("a segment of the disk log is lost", "path=%s segment=%u",
				     log->path, id);
			log->is_counted = false;
			continue;
		}
		if (rc < 0)
			return rc;
		if (seg->tail < covered) {
			mc_log_error("a segment of the disk log is too short", "path=%s segment=%u",
				     log->path, id);
			log->is_counted = false;
		}
		seg->durable = covered;
		seg->foot_bytes = foot <= covered ? foot : 0;
	}
	*ret_last_id = last < 0 ? 0 : (uint32_t)last;
	return 0;
}

static int load_entries(struct stream *s, const struct head *h)
{
	uint64_t left = (uint64_t)h->nentries * ENTRY;
	struct mc_dlog *log = s->log;

	for (uint32_t i = 0; i < h->nentries; i++, left -= ENTRY) {
		const uint8_t *p = stream_get(s, ENTRY, left);
		struct mc_index_entry in, *e;

		if (!p)
			return s->rc;
		if (!entry_decode(p, &in) || mc_index_find(&log->index, in.hash, in.check))
			return -MC_E_CORRUPT;
		e = mc_index_add(&log->index, in.hash, in.check);
		if (!e)
			return -MC_E_NOMEM;
		*e = in;
		mc_dlog_account(log, e);
		log->stats.lost_objects += !mc_dlog_seg_find(log, e->segment);
	}
	return 0;
}

static int load(struct stream *s, uint32_t *ret_last_id)
{
	uint8_t bytes[HEAD];
	struct mc_disk_stat stat;
	struct head h;
	int rc = s->log->disk->stat(s->file, &stat);

	if (rc < 0)
		return mc_err_from_errno(-rc);
	rc = read_all(s, bytes, HEAD, 0);
	if (rc < 0)
		return rc;
	if (!head_decode(bytes, &h) || h.log_id != s->log->log_id ||
	    stat.len_bytes != HEAD + (uint64_t)h.nsegs * SEG_ROW + (uint64_t)h.nentries * ENTRY)
		return -MC_E_CORRUPT;
	s->log->is_counted = h.flags & FLAG_COUNTED;
	rc = mc_index_reserve(&s->log->index, h.nentries);
	if (rc == 0)
		rc = load_segs(s, &h, ret_last_id);
	s->at = s->len; /* entries begin with a buffer of their own */
	if (rc == 0)
		rc = load_entries(s, &h);
	if (rc == 0 && s->crc != h.body_crc)
		rc = -MC_E_CORRUPT;
	s->log->ckpt_bytes = stat.len_bytes;
	s->log->stats.from_checkpoint = h.nentries;
	return rc;
}

static void forget_all(struct mc_dlog *log)
{
	mc_dlog_segs_close(log);
	mc_index_fini(&log->index);
	log->stats = (struct mc_dlog_stats){0};
	log->ckpt_bytes = 0;
	log->next_id = 0;
}

int mc_dlog_ckpt_load(struct mc_dlog *log, uint32_t *ret_last_id)
{
	struct stream s;
	int rc = stream_open(&s, log, NAME, MC_DISK_READ);

	if (rc == 0)
		rc = load(&s, ret_last_id);
	stream_close(&s);
	if (rc == 0)
		return 1;
	forget_all(log);
	if (rc == -MC_E_NOMEM || rc == -MC_E_LIMIT)
		return rc;
	if (rc != -MC_E_NOENT)
		mc_log_warn("the checkpoint of the disk log is not good, reading all segments",
			    "path=%s cause=\"%s\"", log->path, mc_err_text(rc));
	return 0;
}

/* ---- saving ---- */

static int save(struct stream *s)
{
	struct mc_dlog *log = s->log;
	struct head h = {.log_id = log->log_id,
			 .flags = mc_dlog_has_doubt(log) ? 0 : FLAG_COUNTED,
			 .nentries = log->index.count};
	const struct mc_index_entry *e;
	uint8_t bytes[HEAD];
	uint32_t cursor = 0;
	struct mc_wr w;
	int rc;

	for (size_t i = 0; i < log->nsegs; i++) {
		if (log->segs[i]->is_gone)
			continue;
		w = mc_wr_make(stream_put(s, SEG_ROW), SEG_ROW);
		mc_wr_u32(&w, log->segs[i]->id);
		mc_wr_u32(&w, (uint32_t)log->segs[i]->foot_bytes);
		mc_wr_u64(&w, log->segs[i]->durable & ~(uint64_t)(MC_REC_BLOCK - 1));
		h.nsegs++;
	}
	while ((e = mc_index_each(&log->index, &cursor)))
		entry_encode(e, stream_put(s, ENTRY));
	put_out(s);
	h.body_crc = s->crc;
	head_encode(&h, bytes);
	rc = s->rc < 0 ? s->rc : write_all(s, bytes, HEAD, 0);
	if (rc < 0)
		return rc;
	rc = log->disk->sync(s->file, false);
	return rc < 0 ? mc_err_from_errno(-rc) : 0;
}

int mc_dlog_ckpt_save(struct mc_dlog *log)
{
	char from[MC_DLOG_PATH_MAX], to[MC_DLOG_PATH_MAX];
	struct stream s;
	uint64_t bytes = 0;
	int rc = mc_dlog_path(log, NAME_NEW, 0, from);

	if (rc == 0)
		rc = mc_dlog_path(log, NAME, 0, to);
	if (rc < 0)
		return rc;
	rc = log->disk->unlink(log->disk, from); /* of an attempt before */
	if (rc < 0 && rc != -ENOENT)
		return mc_err_from_errno(-rc);
	rc = stream_open(&s, log, NAME_NEW, MC_DISK_WRITE | MC_DISK_CREATE | MC_DISK_EXCL);
	if (rc == 0) {
		rc = save(&s);
		bytes = s.off;
	}
	stream_close(&s);
	if (rc < 0)
		return rc;
	rc = log->disk->rename(log->disk, from, to);
	if (rc == 0)
		rc = log->disk->sync_dir(log->disk, log->path);
	if (rc < 0)
		return mc_err_from_errno(-rc);
	log->ckpt_bytes = bytes;
	log->since_ckpt = 0;
	log->is_dirty = false;
	log->stats.checkpoints++;
	return 0;
}
