/*
 * compact.c: housekeeping in pieces.
 *
 * The sealed segment with the least live of it is walked; what the index points to in it is written
 * again at the end of the log, checked on the way, and moves in the index once that is durable.
 * When nothing points into the segment any more it is emptied: for each of its records the key's
 * count of older records goes down, tombstones whose count is zero are forgotten. It is removed
 * after the next checkpoint, which does not name it.
 *
 * A tombstone is copied like an object while an older record of its key may be on the disk. If
 * anything of a segment is not as it should be (unreadable, a payload that does not fit its CRCs),
 * it stays as it is: nothing is dropped on a guess.
 */
#include "log/priv.h"

#include <string.h>

#include "base/log.h"

#define COPY_BYTES_MAX (8ull << 20) /* of copies under way, or one record */
#define DEAD_SHARE 4u		    /* worth it from 1/4 dead on … */
#define DEAD_SHARE_TIGHT 16u	    /* … or from 1/16, if room is short */
#define SHARE_WHOLE 1024u
#define PASSES_MAX 4u		/* that do not empty a segment */
#define RECORDS_MAX (64u << 20) /* of a segment */

struct key {
	uint64_t hash;
	uint32_t check, place;
};

struct mc_dlog_compact {
	struct mc_dlog_seg *seg;
	struct mc_dlog_scan scan;
	struct key *keys; /* of all its records */
	size_t nkeys, keys_cap;
	unsigned ncopies;
	uint64_t copy_bytes;
	int rc; /* of copies */
};

void mc_dlog_compact_abort(struct mc_dlog *log)
{
	struct mc_dlog_compact *c = log->compact;

	if (!c)
		return;
	log->compact = NULL;
	mc_dlog_scan_fini(&c->scan);
	mc_free(c->keys);
	mc_free(c);
}

void mc_dlog_compact_copied(struct mc_dlog *log, int rc)
{
	struct mc_dlog_compact *c = log->compact;

	if (!c || c->ncopies == 0)
		return; /* of one that was given up */
	if (--c->ncopies == 0)
		c->copy_bytes = 0;
	if (rc < 0 && rc != -MC_E_STALE)
		c->rc = rc;
}

static bool is_tight(const struct mc_dlog *log)
{
	return log->quota > 0 &&
	       mc_dlog_used(log) + 2 * log->segment_bytes > log->quota - log->quota / 16;
}

/* Which segment gives most for the least copying. */
static struct mc_dlog_seg *choose(const struct mc_dlog *log)
{
	unsigned least = is_tight(log) ? DEAD_SHARE_TIGHT : DEAD_SHARE;
	struct mc_dlog_seg *best = NULL;
	uint64_t most = 0;

	for (size_t i = 0; i < log->nsegs; i++) {
		struct mc_dlog_seg *seg = log->segs[i];
		uint64_t kept = seg->live_bytes + seg->tomb_bytes + seg->foot_bytes, dead;

		if (seg == log->active || seg->is_gone || seg->is_doubtful || seg->tail == 0)
			continue;
		kept += mc_dlog_has_doubt(log) ? seg->idle_bytes : 0;
		dead = seg->tail > kept ? (seg->tail - kept) * SHARE_WHOLE / seg->tail : 0;
		if (dead > most && dead >= SHARE_WHOLE / least) {
			best = seg;
			most = dead;
		}
	}
	return best;
}

static int begin(struct mc_dlog *log, struct mc_dlog_seg *seg)
{
	struct mc_dlog_compact *c = mc_calloc(1, sizeof(*c));
	int rc;

	if (!c)
		return -MC_E_NOMEM;
	c->seg = seg;
	rc = mc_dlog_scan_init(&c->scan, log, seg, 0, seg->tail);
	log->compact = c;
	if (rc < 0)
		mc_dlog_compact_abort(log);
	return rc;
}

static int note_key(struct mc_dlog_compact *c, const struct mc_rec *rec)
{
	void *keys = c->keys;
	int rc = mc_array_grow(&keys, &c->keys_cap, c->nkeys + 1, RECORDS_MAX, sizeof(*c->keys));

	if (rc < 0)
		return rc;
	c->keys = keys;
	c->keys[c->nkeys++] =
	    (struct key){rec->hash, rec->check, (uint32_t)(rec->off / MC_REC_ALIGN)};
	return 0;
}

/* The record as on the disk, in memory of its own. */
static int load(struct mc_dlog_compact *c, const struct mc_rec *rec, const struct mc_rec_layout *l,
		uint8_t **ret_held)
{
	uint8_t *held = mc_aligned_alloc(MC_REC_BLOCK, l->len);
	uint64_t done = 0, n;

	if (!held)
		return -MC_E_NOMEM;
	for (; done < l->len; done += n) {
		const uint8_t *p;

		n = mc_min(l->len - done, (uint64_t)MC_DLOG_CHUNK);
		p = mc_dlog_scan_view(&c->scan, rec->off + done, (uint32_t)n);
		if (!p) {
			mc_free(held);
			return -MC_E_CORRUPT;
		}
		memcpy(held + done, p, n);
	}
	*ret_held = held;
	return 0;
}

static bool is_sound(const struct mc_dlog *log, const struct mc_index_entry *e,
		     const struct mc_rec_layout *l, const uint8_t *held)
{
	struct mc_rec rec;

	if (mc_dlog_check_record(log, e, held, &rec) < 0)
		return false;
	for (uint32_t i = 0; i < l->nchunks; i++)
		if (!mc_dlog_is_chunk(&rec, held, i,
				      held + l->payload_off + (size_t)i * MC_DLOG_CHUNK))
			return false;
	return true;
}

static int copy(struct mc_dlog *log, struct mc_dlog_compact *c, const struct mc_index_entry *e,
		const struct mc_rec *rec)
{
	struct mc_rec_layout l = mc_index_layout(e);
	uint8_t *held;
	int rc = load(c, rec, &l, &held);

	if (rc < 0)
		return rc;
	rc = is_sound(log, e, &l, held) ? mc_dlog_put_copy(log, rec, held) : -MC_E_CORRUPT;
	if (rc < 0) {
		mc_free(held);
		return rc;
	}
	c->ncopies++;
	c->copy_bytes += l.len;
	log->stats.moved_bytes += l.len;
	return 0;
}

static bool is_here(const struct mc_index_entry *e, const struct mc_dlog_seg *seg, uint64_t off)
{
	return e && e->segment == seg->id && mc_index_off(e) == off;
}

/* @return 1: the walk is over; 0: more to do; < 0 */
static int walk(struct mc_dlog *log, struct mc_dlog_compact *c, uint64_t bytes)
{
	uint64_t until = log->stats.scanned_bytes + bytes;
	const struct mc_index_entry *e;
	const uint8_t *head;
	struct mc_rec rec;
	int rc;

	while (log->stats.scanned_bytes < until && c->copy_bytes < COPY_BYTES_MAX) {
		if (mc_dlog_scan_next(&c->scan, c->seg->tail, &rec, &head) == 0)
			return c->seg->is_doubtful ? -MC_E_IO : 1;
		rc = note_key(c, &rec);
		e = mc_index_find(&log->index, rec.hash, rec.check);
		if (rc == 0 && is_here(e, c->seg, rec.off) &&
		    (e->kind == MC_REC_PUT || e->nolder > 0 || mc_dlog_has_doubt(log)))
			rc = copy(log, c, e, &rec);
		if (rc < 0)
			return rc;
	}
	return 0;
}

/* @return whether nothing counts on the segment's records any more */
static bool is_empty(const struct mc_dlog *log, const struct mc_dlog_compact *c)
{
	for (size_t i = 0; i < c->nkeys; i++) {
		const struct key *k = &c->keys[i];
		const struct mc_index_entry *e = mc_index_find(&log->index, k->hash, k->check);

		if (e && e->segment == c->seg->id && e->place == k->place &&
		    (e->kind == MC_REC_PUT || e->nolder > 0))
			return false;
	}
	return c->seg->live_bytes == 0;
}

static void forget_records(struct mc_dlog *log, const struct mc_dlog_compact *c)
{
	for (size_t i = 0; i < c->nkeys; i++) {
		const struct key *k = &c->keys[i];
		struct mc_index_entry *e = mc_index_find(&log->index, k->hash, k->check);

		if (!e)
			continue; /* a tombstone of this segment that went before its older records
				   */
		if (e->segment == c->seg->id && e->place == k->place) {
			mc_dlog_unaccount(log, e);
			mc_index_del(&log->index, e);
		} else if (e->nolder > 0) {
			mc_dlog_older_add(log, e, -1);
		}
	}
	log->is_dirty = true;
}

static void finish(struct mc_dlog *log)
{
	struct mc_dlog_compact *c = log->compact;

	if (is_empty(log, c)) {
		forget_records(log, c);
		c->seg->is_gone = true;
		log->ngone++;
		log->stats.compactions++;
	} else if (++c->seg->failures ==
		   PASSES_MAX) { /* else something came in between: once more */
		c->seg->is_doubtful = true;
		mc_log_warn("a segment of the disk log cannot be emptied", "path=%s segment=%u",
			    log->path, c->seg->id);
	}
	mc_dlog_compact_abort(log);
}

/* In ascending order: a forgotten tombstone is never older than the records it hid, so those go
 * first. */
static int remove_gone(struct mc_dlog *log)
{
	int rc = mc_dlog_ckpt_save(log);

	for (size_t i = 0; i < log->nsegs && rc == 0;) {
		if (!log->segs[i]->is_gone) {
			i++;
			continue;
		}
		rc = mc_dlog_seg_remove(log, log->segs[i]);
		if (rc == 0) {
			log->ngone--;
			log->stats.removed_segments++;
		}
	}
	return rc;
}

static uint64_t gone_bytes(const struct mc_dlog *log)
{
	uint64_t bytes = 0;

	for (size_t i = 0; i < log->nsegs; i++)
		bytes += log->segs[i]->is_gone ? log->segs[i]->tail : 0;
	return bytes;
}

static int work(struct mc_dlog *log, uint64_t bytes)
{
	struct mc_dlog_compact *c = log->compact;
	struct mc_dlog_seg *seg;
	int rc;

	if (!c) {
		seg = choose(log);
		if (!seg)
			return 0;
		rc = begin(log, seg);
		if (rc < 0)
			return rc;
		c = log->compact;
	}
	rc = c->rc < 0 ? c->rc : walk(log, c, bytes);
	if (rc == 0 || (rc == 1 && c->ncopies > 0))
		return 1;
	if (rc == 1) {
		finish(log);
		return 1;
	}
	if (rc == -MC_E_CORRUPT)
		c->seg->is_doubtful = true;
	mc_dlog_compact_abort(log);
	return rc;
}

static int step(struct mc_dlog *log, uint64_t bytes)
{
	uint64_t gone = gone_bytes(log);
	int rc;

	if (log->ngone > 0 &&
	    (gone >= 8 * log->ckpt_bytes + log->segment_bytes / 2 || is_tight(log))) {
		rc = remove_gone(log);
		return rc < 0 ? rc : 1;
	}
	rc = work(log, bytes);
	if (rc != 0)
		return rc;
	if (log->ngone > 0)
		return remove_gone(log);
	if (log->spare && (is_tight(log) || log->wants_room)) {
		mc_dlog_spare_drop(log);
		log->wants_room = false;
		return 1;
	}
	if (log->since_ckpt > 4 * mc_max(log->segment_bytes, log->ckpt_bytes))
		return mc_dlog_ckpt_save(log);
	return 0;
}

int mc_dlog_step(struct mc_dlog *log, uint64_t bytes)
{
	int rc;

	if (log->is_read_only || log->is_closing)
		return 0;
	rc = step(log, bytes);
	if (rc < 0)
		mc_log_warn("housekeeping of the disk log failed", "path=%s cause=\"%s\"",
			    log->path, mc_err_text(rc));
	mc_dlog_flush(log);
	return rc;
}
