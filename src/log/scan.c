/*
 * scan.c: walking a segment record by record.
 *
 * Where no record begins the walk goes on at the next multiple of 64, so one bad record costs
 * itself alone. Zeros are the padding between groups, anything else is counted, but for what a file
 * that is used again had before, behind the last record. A place that can't
 * be read is tried again block by block; blocks that stay unreadable count as bad, and make the
 * segment doubtful: it is never removed.
 */
#include "log/priv.h"

#include <string.h>

#include "base/log.h"

#define JUMP_READ (32u << 10) /* read at first after a jump */

int mc_dlog_scan_init(struct mc_dlog_scan *s, struct mc_dlog *log, struct mc_dlog_seg *seg,
		      uint64_t from, uint64_t end)
{
	*s = (struct mc_dlog_scan){.log = log, .seg = seg, .at = from, .end = end};
	s->last_end = from;
	s->buf = mc_aligned_alloc(MC_REC_BLOCK,
				  mc_min(mc_rec_round(end, MC_REC_BLOCK), (uint64_t)MC_DLOG_IO) +
				      2 * MC_REC_BLOCK);
	return s->buf ? 0 : -MC_E_NOMEM;
}

void mc_dlog_scan_fini(struct mc_dlog_scan *s)
{
	mc_free(s->buf);
	s->buf = NULL;
}

/* @return bytes; 0 at the end; -errno */
static ssize_t read_block(struct mc_dlog_scan *s, uint8_t *to, uint32_t len, uint64_t off)
{
	struct mc_disk_file *file = s->seg->file;
	ssize_t n = s->log->disk->read(file, to, len, off);

	return n >= 0 ? n : s->log->disk->read(file, to, len, off);
}

/* Block by block, as far as it goes. */
static uint32_t read_slowly(struct mc_dlog_scan *s, uint8_t *to, uint32_t len, uint64_t off)
{
	uint32_t done = 0;
	ssize_t n;

	for (; done < len; done += MC_REC_BLOCK) {
		n = read_block(s, to + done, MC_REC_BLOCK, off + done);
		if (n < 0) {
			memset(to + done, 0xff, MC_REC_BLOCK); /* no record, no padding */
			s->unreadable += MC_REC_BLOCK;
			s->seg->is_doubtful = true;
			mc_log_error("a block of the disk log cannot be read",
				     "path=%s segment=%u off=%llu", s->log->path, s->seg->id,
				     (unsigned long long)(off + done));
		} else if (n < (ssize_t)MC_REC_BLOCK) {
			return done + (uint32_t)n;
		}
	}
	return done;
}

static void fill(struct mc_dlog_scan *s, uint64_t off, uint32_t len)
{
	uint32_t done = 0;
	ssize_t n;

	s->buf_off = off;
	while (done < len) {
		n = s->log->disk->read(s->seg->file, s->buf + done, len - done, off + done);
		if (n < 0)
			n = read_slowly(s, s->buf + done, len - done, off + done);
		if (n == 0)
			break;
		done += (uint32_t)n;
		if (done % MC_REC_BLOCK != 0)
			break; /* the file ends here; it may be direct */
	}
	s->buf_len = done;
	s->log->stats.scanned_bytes += done;
}

const uint8_t *mc_dlog_scan_view(struct mc_dlog_scan *s, uint64_t off, uint32_t len)
{
	uint64_t first = off & ~(uint64_t)(MC_REC_BLOCK - 1);
	uint64_t want = mc_rec_round(off + len, MC_REC_BLOCK) - first;
	bool is_next;

	mc_assert(len <= MC_DLOG_IO);
	if (off >= s->buf_off && off + len <= s->buf_off + s->buf_len)
		return s->buf + (off - s->buf_off);
	if (off + len > s->end)
		return NULL;
	is_next = off >= s->buf_off && off <= s->buf_off + s->buf_len;
	want = mc_max(want, (uint64_t)(is_next ? MC_DLOG_IO : JUMP_READ));
	want = mc_min(want, mc_rec_round(s->end, MC_REC_BLOCK) - first);
	fill(s, first, (uint32_t)want);
	if (off + len > s->buf_off + s->buf_len)
		return NULL;
	return s->buf + (off - s->buf_off);
}

static bool is_zero(const uint8_t *p, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (p[i])
			return false;
	return true;
}

/* No record begins here. */
static void step_over(struct mc_dlog_scan *s, const uint8_t *at)
{
	bool has_block =
	    s->at % MC_REC_BLOCK == 0 && s->at + MC_REC_BLOCK <= s->buf_off + s->buf_len;

	if (has_block && is_zero(at, MC_REC_BLOCK)) { /* what was never written, at the end */
		s->is_in_bad = false;
		s->at += MC_REC_BLOCK;
		return;
	}
	s->has_old |= mc_rec_is_old(at, s->log->log_id, s->seg->id, s->at);
	if (is_zero(at, MC_REC_ALIGN)) {
		s->is_in_bad = false;
	} else if (!s->is_in_bad) {
		s->is_in_bad = true;
		s->bad++;
	}
	s->at += MC_REC_ALIGN;
}

int mc_dlog_scan_next(struct mc_dlog_scan *s, uint64_t until, struct mc_rec *ret_rec,
		      const uint8_t **ret_head)
{
	const uint8_t *p;

	for (; s->at < until && s->at + MC_REC_HEAD <= s->end;) {
		struct mc_rec_layout l;

		p = mc_dlog_scan_view(s, s->at, MC_REC_HEAD);
		if (!p)
			break;
		if (mc_rec_decode(p, s->log->log_id, s->seg->id, s->at, ret_rec) < 0) {
			step_over(s, p);
			continue;
		}
		l = mc_rec_layout(ret_rec->key_len, ret_rec->tlv_len, ret_rec->payload_len);
		if (l.len > s->end - s->at) {
			step_over(s, p);
			continue;
		}
		p = mc_dlog_scan_view(s, s->at, l.payload_off);
		if (!p)
			break;
		s->is_in_bad = false;
		s->bad_before = s->bad;
		s->has_old |= ret_rec->flags & MC_REC_REUSED;
		s->at += l.len;
		if (ret_rec->kind == MC_REC_FOOT)
			continue;
		s->last_end = s->at;
		*ret_head = p;
		return 1;
	}
	return 0;
}

uint64_t mc_dlog_scan_bad(const struct mc_dlog_scan *s)
{
	return s->has_old ? s->bad_before : s->bad;
}

int mc_dlog_scan_is_whole(struct mc_dlog_scan *s, const struct mc_rec *rec)
{
	struct mc_rec_layout l = mc_rec_layout(rec->key_len, rec->tlv_len, rec->payload_len);
	size_t meta_len = l.table_off + 4ull * l.nchunks - MC_REC_HEAD;
	uint64_t at = rec->off + l.payload_off;
	const uint8_t *p = mc_dlog_scan_view(s, rec->off, l.payload_off);
	uint8_t *front;
	int is_whole;

	if (!p || rec->meta_crc != mc_rec_meta_crc(rec, p + MC_REC_HEAD, meta_len))
		return 0;
	front = mc_calloc(1, l.payload_off);
	if (!front)
		return -MC_E_NOMEM;
	memcpy(front, p, l.payload_off);
	is_whole = 1;
	for (uint32_t i = 0; i < l.nchunks && is_whole; i++) {
		p = mc_dlog_scan_view(s, at + (uint64_t)i * MC_DLOG_CHUNK,
				      mc_rec_chunk_len(rec->payload_len, i));
		is_whole = p && mc_dlog_is_chunk(rec, front, i, p);
	}
	mc_free(front);
	return is_whole;
}
