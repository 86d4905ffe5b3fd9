/*
 * recover.c: what is in the directory.
 *
 * From the checkpoint what it covers, from a walk over the segments, or their footers, the rest. Of
 * the last segment a part may be torn: what was written after the last sync. Every record says how
 * much before it was durable when it was written; beyond the highest such place a record counts
 * only if all of it is as it was put, so that a torn one never hides the one before it. The segment
 * is then cut behind its last good record and made durable: what is shown from now on stays.
 */
#include "log/priv.h"

#include <string.h>

#include "base/log.h"

static void note_scan(struct mc_dlog *log, const struct mc_dlog_scan *s)
{
	uint64_t bad = mc_dlog_scan_bad(s);

	log->stats.bad_records += bad;
	if (bad > 0)
		mc_log_warn("bad records in the disk log were skipped",
			    "path=%s segment=%u places=%llu", log->path, s->seg->id,
			    (unsigned long long)bad);
}

/* How much of a segment was durable for certain. */
static int find_durable(struct mc_dlog *log, struct mc_dlog_seg *seg, uint64_t from,
			uint64_t *ret_durable)
{
	uint64_t durable = from;
	struct mc_dlog_scan s;
	const uint8_t *head;
	struct mc_rec rec;
	int rc = mc_dlog_scan_init(&s, log, seg, from, seg->tail);

	while (rc == 0 && mc_dlog_scan_next(&s, seg->tail, &rec, &head) == 1)
		durable = mc_max(durable, rec.durable);
	mc_dlog_scan_fini(&s);
	*ret_durable = durable;
	return rc;
}

/* @param durable  records before it count whatever their payload is */
static int scan_seg(struct mc_dlog *log, struct mc_dlog_seg *seg, uint64_t from, uint64_t durable,
		    uint64_t *ret_end)
{
	struct mc_dlog_scan s;
	const uint8_t *head;
	uint64_t end = from;
	struct mc_rec rec;
	int rc = mc_dlog_scan_init(&s, log, seg, from, seg->tail), n;

	while (rc == 0 && mc_dlog_scan_next(&s, seg->tail, &rec, &head) == 1) {
		n = rec.off < durable ? 1 : mc_dlog_scan_is_whole(&s, &rec);
		if (n <= 0) {
			rc = n;
			break; /* torn: nothing from here on was acknowledged */
		}
		end = s.at;
		rc = mc_dlog_apply(log, seg, &rec);
		rc = rc == -MC_E_STALE ? 0 : rc;
	}
	if (rc == 0)
		note_scan(log, &s);
	mc_dlog_scan_fini(&s);
	*ret_end = mc_max(end, durable);
	return rc;
}

/* The last segment: goes on as the active one, or is removed if nothing is in it. */
static int scan_last(struct mc_dlog *log, struct mc_dlog_seg *seg, uint64_t from,
		     struct mc_diag *ret_diag)
{
	uint64_t durable = from, end = from;
	int rc = find_durable(log, seg, from, &durable);

	if (rc == 0)
		rc = scan_seg(log, seg, from, durable, &end);
	if (rc < 0)
		return rc;
	log->stats.torn_bytes = seg->tail > end ? seg->tail - end : 0;
	if (end < seg->tail)
		rc = log->disk->truncate(seg->file, end);
	/* Zeros up to the block's end, nothing of what was torn. */
	if (rc == 0 && (end < seg->tail || end % MC_REC_BLOCK != 0))
		rc = log->disk->truncate(seg->file, mc_rec_round(end, MC_REC_BLOCK));
	end = mc_rec_round(end, MC_REC_BLOCK);
	if (rc == 0)
		rc = log->disk->sync(seg->file, false);
	if (rc < 0) {
		mc_diag_set(ret_diag, "cutting the torn end of segment %u: %s", seg->id,
			    strerror(-rc));
		return mc_err_from_errno(-rc);
	}
	seg->tail = seg->durable = seg->room = end;
	log->active = seg;
	if (end == 0)
		mc_dlog_foot_begin(log);
	return 0;
}

static int apply_entry(void *user, struct mc_dlog *log, struct mc_dlog_seg *seg,
		       const struct mc_rec *rec, const uint8_t *texts)
{
	int rc = mc_dlog_apply(log, seg, rec);

	return rc == -MC_E_STALE ? 0 : rc;
}

/* A sealed one: by its footer, else by a walk. */
static int scan_sealed(struct mc_dlog *log, struct mc_dlog_seg *seg, uint64_t from)
{
	int rc = from == 0 ? mc_dlog_foot_each(log, seg, apply_entry, NULL) : 0;
	uint64_t end;

	return rc != 0 ? mc_min(rc, 0) : scan_seg(log, seg, from, seg->tail, &end);
}

/* Segment files that are not known yet, those that the checkpoint left behind removed. */
static int adopt_all(struct mc_dlog *log, bool has_ckpt, uint32_t last_id)
{
	struct mc_dlog_seg *seg;
	uint32_t *ids = NULL;
	size_t n = 0;
	int rc = mc_dlog_seg_ids(log, &ids, &n);

	for (size_t i = 0; i < n && rc == 0; i++) {
		log->next_id = mc_max(log->next_id, ids[i] + 1);
		if (mc_dlog_seg_find(log, ids[i]))
			continue;
		if (has_ckpt && ids[i] <= last_id) { /* emptied before that checkpoint */
			rc = mc_dlog_seg_unlink(log, ids[i]);
			continue;
		}
		rc = mc_dlog_seg_adopt(log, ids[i], &seg);
	}
	mc_free(ids);
	return rc;
}

int mc_dlog_recover(struct mc_dlog *log, bool no_checkpoint, struct mc_diag *ret_diag)
{
	uint32_t last_id = 0;
	uint64_t from;
	int has_ckpt = no_checkpoint ? 0 : mc_dlog_ckpt_load(log, &last_id), rc;

	if (has_ckpt < 0)
		return has_ckpt;
	if (!has_ckpt)
		log->is_counted = true;
	mc_dlog_spare_unlink(log);
	rc = adopt_all(log, has_ckpt, last_id);
	for (size_t i = 0; i < log->nsegs && rc == 0; i++) {
		struct mc_dlog_seg *seg = log->segs[i];

		from = has_ckpt && seg->id <= last_id ? seg->durable : 0;
		if (i + 1 == log->nsegs)
			rc = scan_last(log, seg, from, ret_diag);
		else if (from < seg->tail)
			rc = scan_sealed(log, seg, from);
		seg->durable = seg->tail;
	}
	return rc;
}
