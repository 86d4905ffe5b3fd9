/*
 * seg.c: segment files, and what of them is live.
 *
 * A segment is made only when all of the one before it is durable; so of all segments but the last
 * every record was acknowledged.
 */
#include "log/priv.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"

#define NAME "seg-%08x"
#define NAME_LEN 12u
#define SPARE "spare"
#define SPARE_MAX (512ull << 20) /* an opening reads what it had of another life */

struct mc_dlog_seg *mc_dlog_seg_find(const struct mc_dlog *log, uint32_t id)
{
	size_t lo = 0, hi = log->nsegs;

	while (lo < hi) {
		size_t mid = lo + (hi - lo) / 2;

		if (log->segs[mid]->id == id)
			return log->segs[mid];
		if (log->segs[mid]->id < id)
			lo = mid + 1;
		else
			hi = mid;
	}
	return NULL;
}

/* Direct where the file can. What it wants of memory is learnt from the first one. */
static int open_file(struct mc_dlog *log, const char *path, uint32_t flags, struct mc_dlog_seg *seg)
{
	uint32_t direct = log->no_direct ? 0 : MC_DISK_DIRECT;
	struct mc_disk_stat stat;
	int rc;

	flags |= MC_DISK_READ | MC_DISK_WRITE;
	rc = log->disk->open(log->disk, path, flags | direct, 0600, &seg->file);
	if (rc == -EINVAL && direct) {
		direct = 0;
		flags &= ~(uint32_t)MC_DISK_EXCL; /* it may have been made before it was refused */
		rc = log->disk->open(log->disk, path, flags, 0600, &seg->file);
	}
	if (rc < 0)
		return mc_err_from_errno(-rc);
	rc = log->disk->stat(seg->file, &stat);
	if (rc == 0 && !stat.is_regular)
		rc = -EINVAL;
	if (rc < 0) {
		log->disk->close(seg->file);
		seg->file = NULL;
		return mc_err_from_errno(-rc);
	}
	seg->tail = seg->room = stat.len_bytes;
	seg->is_direct = direct != 0;
	if (direct)
		log->mem_align =
		    mc_max(log->mem_align, stat.is_direct_known && stat.direct_mem ? stat.direct_mem
										   : MC_REC_BLOCK);
	return 0;
}

static int add_seg(struct mc_dlog *log, struct mc_dlog_seg *seg)
{
	void *segs = log->segs;
	int rc = mc_array_grow(&segs, &log->segs_cap, log->nsegs + 1, MC_DLOG_SEGMENTS_MAX,
			       sizeof(*log->segs));

	if (rc < 0)
		return rc;
	log->segs = segs;
	mc_assert(log->nsegs == 0 || log->segs[log->nsegs - 1]->id < seg->id);
	log->segs[log->nsegs++] = seg;
	log->next_id = mc_max(log->next_id, seg->id + 1);
	return 0;
}

static void free_seg(struct mc_dlog *log, struct mc_dlog_seg *seg)
{
	if (seg->file)
		log->disk->close(seg->file);
	mc_free(seg);
}

static int open_seg(struct mc_dlog *log, uint32_t id, uint32_t flags, struct mc_dlog_seg **ret_seg)
{
	struct mc_dlog_seg *seg = mc_calloc(1, sizeof(*seg));
	char path[MC_DLOG_PATH_MAX];
	int rc;

	if (!seg)
		return -MC_E_NOMEM;
	seg->id = id;
	rc = mc_dlog_path(log, NAME, id, path);
	if (rc == 0)
		rc = open_file(log, path, flags, seg);
	if (rc == 0)
		rc = add_seg(log, seg);
	if (rc < 0) {
		free_seg(log, seg);
		return rc;
	}
	*ret_seg = seg;
	return 0;
}

/* It is none of the log's any more. */
static struct mc_dlog_seg *take_seg(struct mc_dlog *log, struct mc_dlog_seg *seg)
{
	for (size_t i = 0; i < log->nsegs; i++) {
		if (log->segs[i] != seg)
			continue;
		memmove(&log->segs[i], &log->segs[i + 1],
			(log->nsegs - i - 1) * sizeof(*log->segs));
		log->nsegs--;
		break;
	}
	return seg;
}

static void forget_seg(struct mc_dlog *log, struct mc_dlog_seg *seg)
{
	(void)take_seg(log, seg);
	if (seg->refs == 0)
		free_seg(log, seg);
	else
		seg->is_gone = true; /* the last get frees it */
}

/* ---- a file that is used again ---- */

void mc_dlog_spare_unlink(struct mc_dlog *log)
{
	char path[MC_DLOG_PATH_MAX];

	if (mc_dlog_path(log, SPARE, 0, path) == 0)
		(void)log->disk->unlink(log->disk, path); /* it does no harm, or is not there */
}

void mc_dlog_spare_drop(struct mc_dlog *log)
{
	if (!log->spare)
		return;
	free_seg(log, log->spare);
	log->spare = NULL;
	mc_dlog_spare_unlink(log);
}

/* A segment that holds nothing any more becomes the spare file: its name is gone, as if it had been
 * removed. Its bytes stay: after a power cut the name may be there again. @return false: it is as
 * it was */
static bool spare_keep(struct mc_dlog *log, struct mc_dlog_seg *seg)
{
	char from[MC_DLOG_PATH_MAX], to[MC_DLOG_PATH_MAX];

	if (log->spare || seg->refs > 0 || seg->tail < log->segment_bytes / 2 ||
	    mc_dlog_path(log, NAME, seg->id, from) < 0 || mc_dlog_path(log, SPARE, 0, to) < 0)
		return false;
	if (log->disk->rename(log->disk, from, to) < 0)
		return false;
	log->spare = take_seg(log, seg);
	log->spare->room = seg->tail;
	return true;
}

/* The spare file gets the next segment's name. Its blocks were written before, so that a write
 * there changes nothing of the file but its bytes; what they are of an earlier segment no record of
 * this one is. @return NULL: there is none that can be used */
static struct mc_dlog_seg *spare_use(struct mc_dlog *log)
{
	char from[MC_DLOG_PATH_MAX], to[MC_DLOG_PATH_MAX];
	struct mc_dlog_seg *seg = log->spare;

	if (!seg || mc_dlog_path(log, SPARE, 0, from) < 0 ||
	    mc_dlog_path(log, NAME, log->next_id, to) < 0)
		return NULL;
	if (log->disk->rename(log->disk, from, to) < 0) {
		mc_dlog_spare_drop(log);
		return NULL;
	}
	log->spare = NULL;
	*seg = (struct mc_dlog_seg){.id = log->next_id,
				    .file = seg->file,
				    .room = seg->room,
				    .is_reused = true,
				    .is_direct = seg->is_direct};
	if (add_seg(log, seg) == 0) {
		log->stats.reused_segments++;
		return seg;
	}
	(void)log->disk->unlink(log->disk, to);
	free_seg(log, seg);
	log->next_id++;
	return NULL;
}

int mc_dlog_seg_make(struct mc_dlog *log)
{
	struct mc_dlog_seg *seg;
	int rc;

	if (log->next_id == UINT32_MAX)
		return -MC_E_LIMIT;
	seg = spare_use(log);
	rc = seg ? 0 : open_seg(log, log->next_id, MC_DISK_CREATE | MC_DISK_EXCL, &seg);
	if (rc < 0) {
		log->next_id++; /* a file of that name may be there now */
		return rc;
	}
	rc = log->disk->sync_dir(log->disk, log->path);
	if (rc < 0) {
		(void)mc_dlog_seg_remove(log, seg); /* an empty segment does no harm */
		return mc_err_from_errno(-rc);
	}
	if (seg->room > SPARE_MAX && log->disk->truncate(seg->file, SPARE_MAX) == 0)
		seg->room = SPARE_MAX;
	log->active = seg;
	mc_dlog_foot_begin(log);
	return 0;
}

/* Each write that makes a file longer waits for those before it, and its new length has to be
 * written for it to be durable; so the length comes ahead of them. What lies behind the tail is
 * zeros and reads as padding. Without these blocks writes find their own, or fail. */
void mc_dlog_seg_extend(struct mc_dlog *log, struct mc_dlog_seg *seg, uint64_t end)
{
	uint64_t more = mc_min(log->segment_bytes / 4, (uint64_t)MC_DLOG_EXTEND);
	int rc;

	if (end <= seg->room || log->no_extend)
		return;
	end = mc_rec_round(mc_max(end, seg->room + more), MC_REC_BLOCK);
	rc = log->disk->allocate(seg->file, seg->room, end - seg->room);
	if (rc == 0)
		seg->room = end;
	else
		log->no_extend = rc != -ENOSPC && rc != -EINTR;
}

void mc_dlog_seg_seal(struct mc_dlog *log)
{
	struct mc_dlog_seg *seg = log->active;

	log->active = NULL;
	/* If this fails, or is lost with the power, there are zeros at its end. */
	if (seg && seg->room > seg->tail && log->disk->truncate(seg->file, seg->tail) == 0)
		seg->room = seg->tail;
}

int mc_dlog_seg_adopt(struct mc_dlog *log, uint32_t id, struct mc_dlog_seg **ret_seg)
{
	return open_seg(log, id, 0, ret_seg);
}

int mc_dlog_seg_unlink(struct mc_dlog *log, uint32_t id)
{
	char path[MC_DLOG_PATH_MAX];
	int rc = mc_dlog_path(log, NAME, id, path);

	if (rc < 0)
		return rc;
	rc = log->disk->unlink(log->disk, path);
	return rc < 0 && rc != -ENOENT ? mc_err_from_errno(-rc) : 0;
}

int mc_dlog_seg_remove(struct mc_dlog *log, struct mc_dlog_seg *seg)
{
	int rc;

	if (spare_keep(log, seg))
		return 0;
	rc = mc_dlog_seg_unlink(log, seg->id);
	if (rc < 0)
		return rc;
	forget_seg(log, seg);
	return 0;
}

void mc_dlog_seg_unref(struct mc_dlog *log, struct mc_dlog_seg *seg)
{
	mc_assert(seg->refs > 0);
	if (--seg->refs == 0 && seg->is_gone && mc_dlog_seg_find(log, seg->id) != seg)
		free_seg(log, seg);
}

void mc_dlog_segs_close(struct mc_dlog *log)
{
	for (size_t i = 0; i < log->nsegs; i++)
		free_seg(log, log->segs[i]);
	mc_free(log->segs);
	log->segs = NULL;
	log->nsegs = log->segs_cap = 0;
	if (log->spare)
		free_seg(log, log->spare);
	log->spare = NULL;
	log->active = NULL;
}

/* ---- the directory ---- */

struct ids {
	uint32_t *ids;
	size_t n, cap;
	int rc;
};

static void on_name(void *user, const char *name)
{
	struct ids *found = user;
	void *grown = found->ids;
	unsigned id;
	char again[32];

	if (found->rc < 0 || strlen(name) != NAME_LEN || sscanf(name, NAME, &id) != 1)
		return;
	(void)snprintf(again, sizeof(again), NAME, id);
	if (strcmp(again, name) != 0)
		return;
	found->rc =
	    mc_array_grow(&grown, &found->cap, found->n + 1, MC_DLOG_SEGMENTS_MAX, sizeof(id));
	found->ids = grown;
	if (found->rc == 0)
		found->ids[found->n++] = id;
}

static int by_id(const void *a, const void *b)
{
	const uint32_t *x = a, *y = b;

	return *x < *y ? -1 : *x > *y;
}

int mc_dlog_seg_ids(struct mc_dlog *log, uint32_t **ret_ids, size_t *ret_n)
{
	struct ids found = {0};
	int rc = log->disk->list(log->disk, log->path, on_name, &found);

	rc = rc < 0 ? mc_err_from_errno(-rc) : found.rc;
	if (rc < 0) {
		mc_free(found.ids);
		return rc;
	}
	if (found.n > 0)
		qsort(found.ids, found.n, sizeof(*found.ids), by_id);
	*ret_ids = found.ids;
	*ret_n = found.n;
	return 0;
}

/* ---- what is live ---- */

uint64_t mc_dlog_used(const struct mc_dlog *log)
{
	uint64_t used = 0;

	for (size_t i = 0; i < log->nsegs; i++)
		used += log->segs[i]->tail;
	return used + (log->spare ? log->spare->room : 0);
}

bool mc_dlog_has_doubt(const struct mc_dlog *log)
{
	for (size_t i = 0; i < log->nsegs; i++)
		if (log->segs[i]->is_doubtful)
			return true;
	return !log->is_counted;
}

static void account(struct mc_dlog *log, const struct mc_index_entry *e, int sign)
{
	struct mc_dlog_seg *seg = mc_dlog_seg_find(log, e->segment);
	uint64_t len = mc_index_layout(e).len;
	uint64_t n = sign > 0 ? len : (uint64_t)-len; /* modulo 2^64: added, it is taken away */

	if (e->kind == MC_REC_PUT)
		log->stats.objects += (uint64_t)(int64_t)sign;
	else
		log->stats.tombstones += (uint64_t)(int64_t)sign;
	if (!seg)
		return; /* lost */
	if (e->kind == MC_REC_PUT)
		seg->live_bytes += n;
	else if (e->nolder > 0)
		seg->tomb_bytes += n;
	else
		seg->idle_bytes += n;
}

void mc_dlog_account(struct mc_dlog *log, const struct mc_index_entry *e)
{
	account(log, e, 1);
}

void mc_dlog_unaccount(struct mc_dlog *log, const struct mc_index_entry *e)
{
	account(log, e, -1);
}

void mc_dlog_older_add(struct mc_dlog *log, struct mc_index_entry *e, int n)
{
	mc_dlog_unaccount(log, e);
	mc_index_older_add(e, n);
	mc_dlog_account(log, e);
}

/* Of two records of one key: does the second one count? Copies are equal: the later one stays when
 * the older segment goes. */
static bool is_newer(const struct mc_index_entry *e, const struct mc_dlog_seg *seg,
		     const struct mc_rec *rec)
{
	int cmp = mc_dlog_gen_cmp(e->gen, rec->gen);

	if (cmp != 0)
		return cmp < 0;
	if (e->kind != (uint64_t)rec->kind)
		return rec->kind == MC_REC_TOMB;
	return e->segment < seg->id || (e->segment == seg->id && mc_index_off(e) < rec->off);
}

int mc_dlog_apply(struct mc_dlog *log, struct mc_dlog_seg *seg, const struct mc_rec *rec)
{
	struct mc_index_entry *e = mc_index_find(&log->index, rec->hash, rec->check);

	log->is_dirty = true;
	if (e) {
		mc_dlog_older_add(log, e, 1);
		if (!is_newer(e, seg, rec))
			return -MC_E_STALE;
		mc_dlog_unaccount(log, e);
	} else {
		e = mc_index_add(&log->index, rec->hash, rec->check);
		if (!e)
			return -MC_E_NOMEM;
	}
	e->gen = rec->gen;
	e->kind = (uint8_t)rec->kind;
	e->payload_len = rec->payload_len & ((1ull << 40) - 1); /* <= MC_DLOG_PAYLOAD_MAX */
	e->segment = seg->id;
	e->place = (uint32_t)(rec->off / MC_REC_ALIGN);
	e->key_len = (uint16_t)rec->key_len;
	e->tlv_len = (uint16_t)rec->tlv_len;
	mc_dlog_account(log, e);
	return 0;
}
