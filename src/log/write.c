/*
 * write.c: puts and deletes.
 *
 * waiting -> placed in a group -> written -> made durable by a sync, with all groups before it ->
 * the index learns of it -> on_done(). Small records share a group's buffer; while groups are under
 * way the next one stays open, so the disk's own pace decides how many share a write and a sync. A
 * large payload goes to the disk from the caller's memory.
 *
 * Groups become durable in the order of the log, so what was acknowledged is always the beginning
 * of the active segment. When a write or a sync fails, nothing new is begun, what is under way
 * ends, and the segment is cut back to that beginning: what is then reported as failed can't come
 * back. If even that fails, it is reported as unfenced, and the log is read-only.
 */
#include "log/priv.h"

#include <errno.h>
#include <string.h>

#include "base/crc.h"
#include "base/log.h"

static void group_issue(struct mc_dlog *log, struct mc_dlog_group *g);

/* ---- beginning and end of an operation ---- */

static struct mc_dlog_put *put_new(struct mc_dlog *log)
{
	struct mc_list *link = mc_list_pop_front(&log->puts_spare);

	if (!link)
		return mc_calloc(1, sizeof(struct mc_dlog_put));
	return mc_list_entry(link, struct mc_dlog_put, link);
}

static void put_end(struct mc_dlog *log, struct mc_dlog_put *p, int rc)
{
	struct mc_dlog_op *op = p->op;
	uint8_t *held = p->held;
	bool is_copy = op == &p->copy;

	p->held = NULL;
	log->nputs--;
	mc_list_push_back(&log->puts_spare, &p->link);
	if (is_copy) {
		mc_free(held);
		mc_dlog_compact_copied(log, rc);
		return;
	}
	if (rc == 0 && p->rec.kind == MC_REC_PUT) {
		log->stats.puts++;
		log->stats.bytes_put += p->rec.payload_len;
	} else if (rc == 0) {
		log->stats.deletes++;
	}
	op->state = NULL;
	op->on_done(op, rc);
}

/* Of the records that are placed only copies and tombstones may use the last segment's worth. */
static bool is_over_quota(const struct mc_dlog *log, uint64_t len)
{
	uint64_t used = mc_dlog_used(log), reserve = mc_min(log->segment_bytes, log->quota / 4);

	return log->quota > 0 && used + len + reserve > log->quota;
}

static int put_start(struct mc_dlog *log, struct mc_dlog_op *op, enum mc_rec_kind kind,
		     uint64_t payload_len)
{
	struct mc_dlog_put *p;
	int rc;

	if (log->is_closing)
		return -MC_E_CLOSED;
	if (log->is_read_only)
		return -MC_E_PERM;
	rc = mc_index_reserve(&log->index, log->nputs + 1);
	if (rc < 0)
		return rc;
	p = put_new(log);
	if (!p)
		return -MC_E_NOMEM;
	p->op = op;
	p->rec = (struct mc_rec){.log_id = log->log_id,
				 .kind = kind,
				 .gen = op->gen,
				 .payload_len = payload_len,
				 .key_len = (uint32_t)op->key_len,
				 .tlv_len = (uint32_t)op->tlv_len};
	p->layout = mc_rec_layout(p->rec.key_len, p->rec.tlv_len, payload_len);
	mc_dlog_hash(log, op->key, op->key_len, &p->rec.hash, &p->rec.check);
	op->state = p;
	log->nputs++;
	mc_list_push_back(&log->waiting, &p->link);
	return 0;
}

static int iov_len(const struct mc_dlog_op *op, uint64_t *ret_len)
{
	uint64_t len = 0;

	if (op->niov > MC_DLOG_IOV_MAX)
		return -MC_E_INVAL;
	for (unsigned i = 0; i < op->niov; i++)
		if (__builtin_add_overflow(len, op->iov[i].iov_len, &len))
			return -MC_E_TOO_BIG;
	*ret_len = len;
	return len > MC_DLOG_PAYLOAD_MAX ? -MC_E_TOO_BIG : 0;
}

static const struct mc_index_entry *entry_of(const struct mc_dlog *log, const void *key, size_t len)
{
	uint64_t hash;
	uint32_t check;

	mc_dlog_hash(log, key, len, &hash, &check);
	return mc_index_find(&log->index, hash, check);
}

static int check_op(const struct mc_dlog_op *op)
{
	if (op->key_len == 0 || (op->gen.epoch == 0 && op->gen.counter == 0))
		return -MC_E_INVAL;
	return op->key_len > MC_DLOG_KEY_MAX || op->tlv_len > MC_DLOG_TLV_MAX ? -MC_E_TOO_BIG : 0;
}

int mc_dlog_put(struct mc_dlog *log, struct mc_dlog_op *op)
{
	const struct mc_index_entry *e;
	uint64_t len;
	int rc = check_op(op);

	if (rc == 0)
		rc = iov_len(op, &len);
	if (rc < 0)
		return rc;
	e = entry_of(log, op->key, op->key_len);
	if (e && mc_dlog_gen_cmp(e->gen, op->gen) >= 0)
		return -MC_E_STALE;
	if (is_over_quota(log,
			  mc_rec_layout((uint32_t)op->key_len, (uint32_t)op->tlv_len, len).len))
		return -MC_E_NOSPACE;
	return put_start(log, op, MC_REC_PUT, len);
}

int mc_dlog_del(struct mc_dlog *log, struct mc_dlog_op *op)
{
	const struct mc_index_entry *e;
	int rc = check_op(op);

	if (rc < 0)
		return rc;
	if (op->tlv_len > 0 || op->niov > 0)
		return -MC_E_INVAL;
	e = entry_of(log, op->key, op->key_len);
	if (!e || e->kind != MC_REC_PUT)
		return -MC_E_NOENT;
	if (mc_dlog_gen_cmp(e->gen, op->gen) > 0)
		return -MC_E_STALE;
	return put_start(log, op, MC_REC_TOMB, 0);
}

int mc_dlog_put_copy(struct mc_dlog *log, const struct mc_rec *rec, uint8_t *held)
{
	struct mc_rec_layout l = mc_rec_layout(rec->key_len, rec->tlv_len, rec->payload_len);
	struct mc_dlog_put *p;
	int rc;

	if (log->is_read_only)
		return -MC_E_PERM;
	rc = mc_index_reserve(&log->index, log->nputs + 1);
	if (rc < 0)
		return rc;
	p = put_new(log);
	if (!p)
		return -MC_E_NOMEM;
	p->op = &p->copy;
	p->held = held;
	p->copy = (struct mc_dlog_op){.key = held + MC_REC_HEAD,
				      .key_len = rec->key_len,
				      .tlv = held + MC_REC_HEAD + rec->key_len,
				      .tlv_len = rec->tlv_len};
	p->rec = *rec;
	p->layout = l;
	log->nputs++;
	mc_list_push_back(&log->waiting, &p->link);
	return 0;
}

/* ---- the payload ---- */

/* Where byte `at` of the payload lies, and how much is there in one piece. */
static const uint8_t *payload_at(const struct mc_dlog_put *p, uint64_t at, uint64_t *ret_len)
{
	const struct mc_dlog_op *op = p->op;

	if (p->held) {
		*ret_len = p->rec.payload_len - at;
		return p->held + p->layout.payload_off + at;
	}
	for (unsigned i = 0; i < op->niov; i++) {
		if (at < op->iov[i].iov_len) {
			*ret_len = op->iov[i].iov_len - at;
			return (const uint8_t *)op->iov[i].iov_base + at;
		}
		at -= op->iov[i].iov_len;
	}
	*ret_len = 0;
	return NULL;
}

static void gather(const struct mc_dlog_put *p, uint64_t at, uint8_t *to, uint64_t len)
{
	uint64_t n, done = 0;

	for (; done < len; done += n) {
		const uint8_t *from = payload_at(p, at + done, &n);

		mc_assert(from);
		n = mc_min(n, len - done);
		memcpy(to + done, from, n);
	}
}

static uint32_t chunk_crc(const struct mc_dlog_put *p, uint32_t chunk)
{
	uint32_t crc = mc_rec_chunk_seed(&p->rec, chunk);
	uint64_t at = (uint64_t)chunk * MC_DLOG_CHUNK, n;
	uint64_t end = at + mc_rec_chunk_len(p->rec.payload_len, chunk);

	for (; at < end; at += n) {
		const uint8_t *from = payload_at(p, at, &n);

		mc_assert(from);
		n = mc_min(n, end - at);
		crc = mc_crc32c(crc, from, n);
	}
	return crc;
}

/* All before the payload; `to` is zeroed. */
static void encode_front(struct mc_dlog_put *p, uint8_t *to)
{
	const struct mc_dlog_op *op = p->op;
	uint8_t *at = to + MC_REC_HEAD;

	memcpy(at, op->key, op->key_len);
	if (op->tlv_len > 0)
		memcpy(at + op->key_len, op->tlv, op->tlv_len);
	at = to + p->layout.table_off;
	for (uint32_t i = 0; i < p->layout.nchunks; i++, at += 4) {
		uint32_t crc = htole32(chunk_crc(p, i));

		memcpy(at, &crc, 4);
	}
	p->rec.meta_crc =
	    mc_rec_meta_crc(&p->rec, to + MC_REC_HEAD, (size_t)(at - to) - MC_REC_HEAD);
	mc_rec_encode(&p->rec, to);
}

/* ---- groups ---- */

static struct mc_dlog_group *group_new(struct mc_dlog *log, struct mc_dlog_put *big)
{
	uint32_t buf_len = big ? big->layout.payload_off : MC_DLOG_GROUP;
	struct mc_list *link = mc_list_pop_front(&log->groups_spare);
	struct mc_dlog_group *g =
	    link ? mc_list_entry(link, struct mc_dlog_group, link) : mc_calloc(1, sizeof(*g));

	if (!g)
		return NULL;
	*g = (struct mc_dlog_group){.off = log->active->tail, .big = big, .is_open = !big};
	mc_list_init(&g->puts);
	g->buf = mc_aligned_alloc(MC_REC_BLOCK, buf_len);
	if (!g->buf) {
		mc_free(g);
		return NULL;
	}
	mc_list_push_back(&log->groups, &g->link);
	return g;
}

static void group_free(struct mc_dlog *log, struct mc_dlog_group *g)
{
	mc_free(g->buf);
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

static void group_close(struct mc_dlog *log, struct mc_dlog_group *g)
{
	g->is_open = false;
	g->len = mc_rec_round(g->len, MC_REC_BLOCK); /* the rest of the block is zeros */
	g->buf_len = (uint32_t)g->len;
	log->active->tail = g->off + g->len;
	group_issue(log, g);
}

static void group_join(struct mc_dlog *log, struct mc_dlog_group *g, struct mc_dlog_put *p)
{
	p->rec.segment = log->active->id;
	p->rec.off = g->off + g->len;
	p->rec.durable = log->active->durable;
	encode_front(p, g->buf + g->len);
	if (!g->big)
		gather(p, 0, g->buf + g->len + p->layout.payload_off, p->rec.payload_len);
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
	int rc;

	if (seg &&
	    (seg->tail == 0 || mc_rec_round(seg->tail, MC_REC_BLOCK) + len <= log->segment_bytes))
		return 1;
	if (seg && g)
		group_close(log, g);
	if (seg && !mc_list_is_empty(&log->groups))
		return 0;
	log->active = NULL; /* sealed: all of it is durable */
	rc = mc_dlog_seg_make(log);
	return rc < 0 ? rc : 1;
}

/* @return as make_room(); < 0: this one fails */
static int place(struct mc_dlog *log, struct mc_dlog_put *p)
{
	struct mc_dlog_group *g;
	int rc;

	if (p->rec.kind == MC_REC_PUT && p->op != &p->copy && is_over_quota(log, p->layout.len))
		return -MC_E_NOSPACE;
	rc = make_room(log, p->layout.len);
	if (rc <= 0)
		return rc;
	g = open_group(log);
	if (g && (p->layout.align == MC_REC_BLOCK || g->len + p->layout.len > MC_DLOG_GROUP)) {
		group_close(log, g);
		g = NULL;
	}
	if (!g) {
		g = group_new(log, p->layout.align == MC_REC_BLOCK ? p : NULL);
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
	const uint8_t *from = payload_at(g->big, at, &n);
	struct mc_dlog_slot *slot;

	n = mc_min(n, left);
	n = mc_min(n, (uint64_t)MC_DLOG_IO) & ~(uint64_t)(MC_REC_BLOCK - 1);
	if (n > 0 && ((uintptr_t)from & (log->mem_align - 1)) == 0) {
		slot = mc_dlog_slot_get(log, false);
		*ret_mem = (void *)from; /* a write does not change it */
		*ret_len = (uint32_t)n;
		return slot;
	}
	slot = mc_dlog_slot_get(log, true);
	if (!slot)
		return NULL;
	n = mc_min(left, (uint64_t)MC_DLOG_IO);
	gather(g->big, at, slot->bounce, n);
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
			slot = mc_dlog_slot_get(log, false);
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
		rc = mc_dlog_apply(log, log->active, &p->rec);
		put_end(log, p, rc);
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
	slot = mc_dlog_slot_get(log, false);
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
		put_end(log, p, rc);
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
		put_end(log, p, rc);
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
		put_end(log, p, rc);
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
}
