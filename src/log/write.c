/*
 * write.c: puts and deletes from their place in the log to their end.
 *
 * waiting -> placed in a group -> written -> made durable by a sync, with all groups before it ->
 * the index learns of it -> on_done(). Records of up to MC_DLOG_JOIN share a group's buffer; while
 * groups are under way the next one stays open, so the disk's own pace decides how many share a
 * write and a sync: a few large writes cost a disk less than many of one object. A larger payload
 * goes to the disk from the caller's memory.
 *
 * Groups become durable in the order of the log, so what was acknowledged is always the beginning
 * of the active segment. When a write or a sync fails, nothing new is begun, what is under way
 * ends, and the segment is cut back to that beginning: what is then reported as failed can't come
 * back. If even that fails, it is reported as unfenced, and the log is read-only.
 */
#include "log/priv.h"

#include <errno.h>
#include <string.h>

#include "base/log.h"

static void group_issue(struct mc_dlog *log, struct mc_dlog_group *g);

/* ---- groups ---- */

/* A buffer for small records, as it was left. */
static uint8_t *buf_get(struct mc_dlog *log)
{
	if (log->nbufs > 0)
		return log->bufs[--log->nbufs];
	return mc_aligned_alloc(MC_REC_BLOCK, MC_DLOG_GROUP);
}

static void buf_put(struct mc_dlog *log, uint8_t *buf)
{
	if (log->nbufs < MC_DLOG_BUFS)
		log->bufs[log->nbufs++] = buf;
	else
		mc_free(buf);
}

static struct mc_dlog_group *group_new(struct mc_dlog *log, struct mc_dlog_put *big)
{
	struct mc_list *link = mc_list_pop_front(&log->groups_spare);
	struct mc_dlog_group *g =
	    link ? mc_list_entry(link, struct mc_dlog_group, link) : mc_calloc(1, sizeof(*g));

	if (!g)
		return NULL;
	*g = (struct mc_dlog_group){.off = log->active->tail, .big = big, .is_open = !big};
	mc_list_init(&g->puts);
	g->buf = big ? mc_aligned_alloc(MC_REC_BLOCK, big->layout.payload_off) : buf_get(log);
	if (!g->buf) {
		mc_free(g);
		return NULL;
	}
	mc_list_push_back(&log->groups, &g->link);
	return g;
}

static void group_free(struct mc_dlog *log, struct mc_dlog_group *g)
{
	if (g->big)
		mc_free(g->buf);
	else
		buf_put(log, g->buf);
	g->buf = NULL;
	mc_list_del(&g->link);
	mc_list_push_back(&log->groups_spare, &g->link);
}

static struct mc_dlog_group *open_group(const struct mc_dlog *log)
{
	struct mc_dlog_group *g;

	if (mc_list_is_empty(&log->groups))
		return NULL;
	g = mc_list_entry(log->groups.prev, struct mc_dlog_group, link);
	return g->is_open ? g : NULL;
}

/* The next record of the buffer begins at a multiple of this. */
static void group_align(struct mc_dlog *log, struct mc_dlog_group *g, uint64_t align)
{
	uint64_t len = mc_rec_round(g->len, align);

	memset(g->buf + g->len, 0, len - g->len);
	g->len = len;
	log->active->tail = g->off + len;
}

static void group_close(struct mc_dlog *log, struct mc_dlog_group *g)
{
	group_align(log, g, MC_REC_BLOCK);
	g->is_open = false;
	g->buf_len = (uint32_t)g->len;
	group_issue(log, g);
}

static void group_join(struct mc_dlog *log, struct mc_dlog_group *g, struct mc_dlog_put *p)
{
	if (!g->big)
		group_align(log, g, p->layout.align);
	p->rec.segment = log->active->id;
	p->rec.off = g->off + g->len;
	p->rec.durable = log->active->durable;
	p->rec.flags = log->active->is_reused ? MC_REC_REUSED : 0;
	mc_dlog_encode(p, g->buf + g->len, !g->big);
	g->len += p->layout.len;
	log->active->tail = g->off + g->len;
	mc_list_push_back(&g->puts, &p->link);
}

static bool is_written(const struct mc_dlog_group *g)
{
	return !g->is_open && g->nios == 0 && g->next == g->len;
}

/* ---- placing ---- */

/* @return 1: there is room in the active segment; 0: not before groups under way have ended; < 0 */
static int make_room(struct mc_dlog *log, uint64_t len)
{
	struct mc_dlog_seg *seg = log->active;
	struct mc_dlog_group *g = open_group(log);
	uint64_t end = seg ? mc_rec_round(seg->tail, MC_REC_BLOCK) + len : 0;
	int rc;

	if (seg && (seg->tail == 0 || end <= log->segment_bytes)) {
		mc_dlog_seg_extend(log, seg, end);
		return 1;
	}
	if (seg && g)
		group_close(log, g);
	if (seg && !mc_list_is_empty(&log->groups))
		return 0;
	if (seg)
		mc_dlog_foot_write(log, seg);
	mc_dlog_seg_seal(log);
	rc = mc_dlog_seg_make(log);
	if (rc == 0)
		mc_dlog_seg_extend(log, log->active, len);
	return rc < 0 ? rc : 1;
}

/* @return as make_room(); < 0: this one fails */
static int place(struct mc_dlog *log, struct mc_dlog_put *p)
{
	struct mc_dlog_group *g;
	bool is_big;
	int rc;

	if (p->rec.kind == MC_REC_PUT && p->op != &p->copy &&
	    mc_dlog_is_over_quota(log, p->layout.len))
		return -MC_E_NOSPACE;
	rc = make_room(log, p->layout.len);
	if (rc <= 0)
		return rc;
	g = open_group(log);
	is_big = p->layout.len > MC_DLOG_JOIN;
	if (g &&
	    (is_big || mc_rec_round(g->len, p->layout.align) + p->layout.len > MC_DLOG_GROUP)) {
		group_close(log, g);
		g = NULL;
	}
	if (!g) {
		g = group_new(log, is_big ? p : NULL);
		if (!g)
			return -MC_E_NOMEM;
	}
	mc_list_del(&p->link);
	group_join(log, g, p);
	if (g->big) {
		g->buf_len = p->layout.payload_off;
		group_issue(log, g);
		if (log->queue->ops->flush(log->queue) < 0)
			return 0; /* the next turn finds out */
	}
	return 1;
}

/* ---- the disk ---- */

static void take_back(struct mc_dlog *log);
static void advance(struct mc_dlog *log);

static void fail(struct mc_dlog *log, int rc)
{
	if (log->fail_rc == 0)
		log->fail_rc = rc;
}

static void on_written(struct mc_dlog_slot *slot, int rc)
{
	struct mc_dlog *log = slot->log;
	struct mc_dlog_group *g = slot->owner;

	mc_dlog_slot_put(slot);
	g->nios--;
	log->nwrites--;
	if (rc < 0)
		fail(log, rc);
	advance(log);
}

/* The next piece of a large payload: straight from memory that the disk takes, else by a copy. */
static struct mc_dlog_slot *payload_piece(struct mc_dlog *log, struct mc_dlog_group *g,
					  void **ret_mem, uint32_t *ret_len)
{
	uint64_t at = g->next - g->buf_len, left = g->big->rec.payload_len - at, n;
	const uint8_t *from = mc_dlog_payload_at(g->big, at, &n);
	struct mc_dlog_slot *slot;

	n = mc_min(n, left);
	n = mc_min(n, (uint64_t)MC_DLOG_IO) & ~(uint64_t)(MC_REC_BLOCK - 1);
	if (n > 0 && ((uintptr_t)from & (log->mem_align - 1)) == 0) {
		slot = mc_dlog_slot_get(log, MC_DLOG_BUF_NONE);
		*ret_mem = (void *)from; /* a write does not change it */
		*ret_len = (uint32_t)n;
		return slot;
	}
	slot = mc_dlog_slot_get(log, MC_DLOG_BUF_IO);
	if (!slot)
		return NULL;
	n = mc_min(left, (uint64_t)MC_DLOG_IO);
	mc_dlog_gather(g->big, at, slot->bounce, n);
	*ret_len = (uint32_t)mc_rec_round(n, MC_REC_BLOCK);
	memset(slot->bounce + n, 0, *ret_len - n);
	*ret_mem = slot->bounce;
	return slot;
}

/* Give the disk as much of a closed group as there are slots for. */
static void group_issue(struct mc_dlog *log, struct mc_dlog_group *g)
{
	struct mc_dlog_slot *slot;
	uint32_t len;
	void *mem;

	while (!g->is_open && g->next < g->len && log->fail_rc == 0 && !log->is_broken) {
		if (g->next < g->buf_len) {
			slot = mc_dlog_slot_get(log, MC_DLOG_BUF_NONE);
			mem = g->buf;
			len = g->buf_len;
		} else {
			slot = payload_piece(log, g, &mem, &len);
		}
		if (!slot)
			return; /* the next turn goes on */
		slot->owner = g;
		slot->on_end = on_written;
		g->nios++;
		log->nwrites++;
		mc_dlog_io_start(slot, MC_DISK_OP_WRITE, log->active->file, mem, len,
				 g->off + g->next);
		g->next += len;
	}
}

static void group_done(struct mc_dlog *log, struct mc_dlog_group *g)
{
	struct mc_dlog_put *p;
	int rc;

	log->active->durable = g->off + g->len;
	log->since_ckpt += g->len;
	mc_list_each (p, &g->puts, link) {
		mc_list_del(&p->link);
		mc_dlog_foot_add(log, p);
		rc = mc_dlog_apply(log, log->active, &p->rec);
		mc_dlog_put_end(log, p, rc);
	}
	group_free(log, g);
}

static void on_synced(struct mc_dlog_slot *slot, int rc)
{
	struct mc_dlog *log = slot->log;
	struct mc_dlog_group *upto = log->sync_upto, *g;

	mc_dlog_slot_put(slot);
	log->sync_upto = NULL;
	log->nwrites--;
	log->stats.syncs++;
	if (rc < 0) {
		log->is_sync_failure = true;
		fail(log, rc);
	}
	while (rc == 0) {
		g = mc_list_first(&log->groups, struct mc_dlog_group, link);
		group_done(log, g);
		if (g == upto)
			break;
	}
	advance(log);
}

/* After something ended: what is next? */
static void advance(struct mc_dlog *log)
{
	struct mc_dlog_group *g, *last = NULL;
	struct mc_dlog_slot *slot;

	if (log->fail_rc < 0 || log->is_broken) {
		if (log->nwrites == 0)
			take_back(log);
		return;
	}
	if (log->sync_upto)
		return;
	mc_list_each (g, &log->groups, link) {
		if (!is_written(g))
			break;
		last = g;
	}
	if (!last)
		return;
	slot = mc_dlog_slot_get(log, MC_DLOG_BUF_NONE);
	if (!slot)
		return;
	slot->on_end = on_synced;
	log->sync_upto = last;
	log->nwrites++;
	mc_dlog_io_start(slot, MC_DISK_OP_SYNC, log->active->file, NULL, 0, 0);
}

/* Cut the segment back to what was acknowledged, durably. */
static int cut(struct mc_dlog *log)
{
	struct mc_dlog_seg *seg = log->active;
	int rc = log->disk->truncate(seg->file, seg->durable);

	if (rc == 0)
		seg->room = seg->durable;
	if (rc == 0)
		rc = log->disk->sync(seg->file, false);
	return rc < 0 ? mc_err_from_errno(-rc) : 0;
}

static void take_back(struct mc_dlog *log)
{
	int rc = log->fail_rc < 0 ? log->fail_rc : -MC_E_IO, cut_rc;
	struct mc_list failed;
	struct mc_dlog_group *g;
	struct mc_dlog_put *p;

	mc_list_init(&failed);
	mc_list_each (g, &log->groups, link) {
		mc_list_splice_back(&failed, &g->puts);
		group_free(log, g);
	}
	log->stats.write_failures++;
	log->wants_room |= rc == -MC_E_NOSPACE;
	cut_rc = cut(log);
	if (cut_rc < 0) {
		mc_dlog_set_read_only(log, "a failed write could not be taken back", cut_rc);
		rc = -MC_E_UNFENCED;
	} else {
		mc_log_warn("a write to the disk log failed and was taken back",
			    "path=%s segment=%u cause=\"%s\"", log->path, log->active->id,
			    mc_err_text(rc));
		log->active->tail = log->active->durable;
	}
	if (cut_rc < 0 || log->is_sync_failure || rc != -MC_E_NOSPACE) {
		struct mc_dlog_seg *seg = log->active;

		log->active = NULL; /* not where it failed again */
		if (seg->durable == 0 && cut_rc == 0)
			(void)mc_dlog_seg_remove(log, seg); /* empty: harmless where it is */
	}
	log->fail_rc = 0;
	log->is_sync_failure = false;
	mc_list_each (p, &failed, link) {
		mc_list_del(&p->link);
		mc_dlog_put_end(log, p, rc);
	}
}

void mc_dlog_write_pump(struct mc_dlog *log)
{
	struct mc_dlog_group *g;
	struct mc_dlog_put *p;
	int rc = 1;

	if (log->fail_rc < 0 || log->is_broken) {
		if (log->nwrites == 0 && !mc_list_is_empty(&log->groups))
			take_back(log);
		return;
	}
	if (log->is_read_only) {
		mc_dlog_write_refuse(log, -MC_E_PERM);
		return;
	}
	mc_list_each (g, &log->groups, link)
		group_issue(log, g);
	/* Not more than the disk can begin with: what is placed has had its CRCs computed. */
	while (rc > 0 && !mc_list_is_empty(&log->slots_free) &&
	       (p = mc_list_first(&log->waiting, struct mc_dlog_put, link))) {
		rc = place(log, p);
		if (rc >= 0)
			continue;
		mc_list_del(&p->link);
		mc_dlog_put_end(log, p, rc);
		rc = 1;
	}
	g = open_group(log);
	if (g && g->link.prev == &log->groups) /* nothing else is under way */
		group_close(log, g);
	advance(log);
}

void mc_dlog_write_refuse(struct mc_dlog *log, int rc)
{
	struct mc_list all;
	struct mc_dlog_put *p;

	mc_list_init(&all);
	mc_list_splice_back(&all, &log->waiting);
	mc_list_each (p, &all, link) {
		mc_list_del(&p->link);
		mc_dlog_put_end(log, p, rc);
	}
}

void mc_dlog_write_fini(struct mc_dlog *log)
{
	struct mc_dlog_group *g;
	struct mc_dlog_put *p;

	mc_list_each (g, &log->groups, link) {
		mc_list_splice_back(&log->waiting, &g->puts);
		group_free(log, g);
	}
	mc_list_splice_back(&log->puts_spare, &log->waiting);
	mc_list_each (p, &log->puts_spare, link) {
		mc_free(p->held);
		mc_free(p);
	}
	mc_list_each (g, &log->groups_spare, link)
		mc_free(g);
	while (log->nbufs > 0)
		mc_free(log->bufs[--log->nbufs]);
	mc_dlog_foot_drop(log);
}
