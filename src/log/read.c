/*
 * read.c: gets.
 *
 * A small record is read whole into a buffer, checked, and its range copied. Of a large one the
 * front (header, key, CRCs) is read, and at the same time those chunks that lie whole in memory
 * which the disk takes; chunks at the edges of the range follow through a buffer once the front is
 * known to be good. Every chunk of which a byte is given away is checked.
 */
#include "log/priv.h"

#include <string.h>

#include "base/crc.h"
#include "base/log.h"

#define PIECE_CHUNKS (MC_DLOG_IO / MC_DLOG_CHUNK)

struct mc_dlog_read {
	struct mc_list link;
	struct mc_dlog_op *op;
	struct mc_dlog_seg *seg;
	struct mc_index_entry entry; /* as it was at the beginning */
	struct mc_rec_layout layout;
	struct mc_rec rec;  /* once is_checked */
	uint64_t len;	    /* of the range */
	uint8_t *front;	    /* layout.payload_off bytes; NULL: read whole */
	uint32_t mem_align; /* of straight pieces, the same for all of it */
	uint32_t end;	    /* chunks of the range: up to here */
	uint32_t next;	    /* straight pieces: looked at up to here */
	uint32_t next_edge; /* the others */
	unsigned nios;
	int rc;
	bool is_front_begun, is_checked;
};

/* ---- what was read ---- */

int mc_dlog_check_record(const struct mc_dlog *log, const struct mc_index_entry *e,
			 const uint8_t *head, struct mc_rec *ret_rec)
{
	struct mc_rec_layout l = mc_index_layout(e);
	struct mc_rec rec;
	int rc = mc_rec_decode(head, log->log_id, e->segment, mc_index_off(e), &rec);

	if (rc < 0)
		return rc;
	if (rec.hash != e->hash || rec.check != e->check || (uint64_t)rec.kind != e->kind ||
	    mc_dlog_gen_cmp(rec.gen, e->gen) != 0 || rec.payload_len != e->payload_len ||
	    rec.key_len != e->key_len || rec.tlv_len != e->tlv_len)
		return -MC_E_CORRUPT;
	if (rec.meta_crc !=
	    mc_rec_meta_crc(&rec, head + MC_REC_HEAD, l.table_off + 4ull * l.nchunks - MC_REC_HEAD))
		return -MC_E_CORRUPT;
	*ret_rec = rec;
	return 0;
}

bool mc_dlog_is_chunk(const struct mc_rec *rec, const uint8_t *head, uint32_t chunk,
		      const uint8_t *bytes)
{
	struct mc_rec_layout l = mc_rec_layout(rec->key_len, rec->tlv_len, rec->payload_len);
	uint32_t want;

	memcpy(&want, head + l.table_off + 4ull * chunk, 4);
	return le32toh(want) == mc_crc32c(mc_rec_chunk_seed(rec, chunk), bytes,
					  mc_rec_chunk_len(rec->payload_len, chunk));
}

static int check_front(struct mc_dlog *log, struct mc_dlog_read *r, const uint8_t *head)
{
	int rc = mc_dlog_check_record(log, &r->entry, head, &r->rec);

	if (rc < 0)
		return rc;
	/* Another key of the same 96 bits: ours is not here. */
	if (memcmp(head + MC_REC_HEAD, r->op->key, r->op->key_len) != 0)
		return -MC_E_NOENT;
	r->is_checked = true;
	return 0;
}

/* Where byte `at` of the range goes, and how much fits there in one piece. */
static uint8_t *target_at(const struct mc_dlog_op *op, uint64_t at, uint64_t *ret_len)
{
	for (unsigned i = 0; i < op->niov; i++) {
		if (at < op->iov[i].iov_len) {
			*ret_len = op->iov[i].iov_len - at;
			return (uint8_t *)op->iov[i].iov_base + at;
		}
		at -= op->iov[i].iov_len;
	}
	*ret_len = 0;
	return NULL;
}

/* Check chunks that lie at `bytes` and copy what of them is in the range. */
static int take_chunks(struct mc_dlog_read *r, const uint8_t *head, uint32_t chunk, uint32_t n,
		       const uint8_t *bytes)
{
	uint64_t at = (uint64_t)chunk * MC_DLOG_CHUNK, from, to, room;
	uint64_t len = mc_min((uint64_t)n * MC_DLOG_CHUNK, r->rec.payload_len - at);

	for (uint32_t i = 0; i < n; i++)
		if (!mc_dlog_is_chunk(&r->rec, head, chunk + i, bytes + i * MC_DLOG_CHUNK))
			return -MC_E_CORRUPT;
	from = mc_max(at, r->op->off);
	to = mc_min(at + len, r->op->off + r->len);
	while (from < to) {
		uint8_t *target = target_at(r->op, from - r->op->off, &room);

		mc_assert(target);
		room = mc_min(room, to - from);
		memcpy(target, bytes + (from - at), room);
		from += room;
	}
	return 0;
}

/* How many chunks from this one on can be read straight to where they belong. */
static uint32_t straight(const struct mc_dlog_read *r, uint32_t chunk, uint8_t **ret_mem)
{
	uint64_t at = (uint64_t)chunk * MC_DLOG_CHUNK, room, len = 0;
	uint32_t n = 0;
	uint8_t *mem;

	if (at < r->op->off)
		return 0;
	mem = target_at(r->op, at - r->op->off, &room);
	if (!mem || ((uintptr_t)mem & (r->mem_align - 1)) != 0)
		return 0;
	while (chunk + n < r->end && n < PIECE_CHUNKS) {
		len += mc_rec_chunk_len(r->entry.payload_len, chunk + n);
		if (len > room || len % MC_REC_BLOCK != 0)
			break;
		n++;
	}
	*ret_mem = mem;
	return n;
}

/* ---- its course ---- */

static void read_end(struct mc_dlog *log, struct mc_dlog_read *r)
{
	struct mc_dlog_op *op = r->op;
	int rc = r->rc;

	mc_list_del(&r->link);
	log->nreads--;
	if (rc == 0) {
		log->stats.gets++;
		log->stats.bytes_got += r->len;
	} else if (rc == -MC_E_CORRUPT) {
		log->stats.bad_reads++;
		mc_log_error("a record of the disk log is corrupt",
			     "path=%s segment=%u off=%llu len=%llu", log->path, r->entry.segment,
			     (unsigned long long)mc_index_off(&r->entry),
			     (unsigned long long)r->layout.len);
	}
	mc_dlog_seg_unref(log, r->seg);
	mc_free(r->front);
	mc_free(r);
	op->state = NULL;
	op->on_done(op, rc);
}

/* All straight pieces are here, and the front, too. */
static int check_straight(const struct mc_dlog_read *r)
{
	uint32_t chunk = (uint32_t)(r->op->off / MC_DLOG_CHUNK), n;
	uint8_t *mem;

	for (; chunk < r->end; chunk += mc_max(n, 1u)) {
		n = straight(r, chunk, &mem);
		for (uint32_t i = 0; i < n; i++)
			if (!mc_dlog_is_chunk(&r->rec, r->front, chunk + i,
					      mem + (size_t)i * MC_DLOG_CHUNK))
				return -MC_E_CORRUPT;
	}
	return 0;
}

static bool read_issue(struct mc_dlog *log, struct mc_dlog_read *r);

static void read_advance(struct mc_dlog *log, struct mc_dlog_read *r)
{
	if (r->rc == 0 && !log->is_broken && !read_issue(log, r))
		return; /* waits for slots */
	if (r->nios > 0)
		return;
	if (r->rc == 0 && r->front)
		r->rc = check_straight(r);
	read_end(log, r);
}

static void piece_end(struct mc_dlog_slot *slot, struct mc_dlog_read *r, int rc)
{
	struct mc_dlog *log = slot->log;

	mc_dlog_slot_put(slot);
	r->nios--;
	if (rc < 0 && r->rc == 0)
		r->rc = rc;
	read_advance(log, r);
}

static void on_whole(struct mc_dlog_slot *slot, int rc)
{
	struct mc_dlog_read *r = slot->owner;
	const uint8_t *head = slot->bounce + mc_index_off(&r->entry) % MC_REC_BLOCK;

	if (rc == 0)
		rc = check_front(slot->log, r, head);
	if (rc == 0)
		rc =
		    take_chunks(r, head, slot->count, r->end - slot->count,
				head + r->layout.payload_off + (size_t)slot->count * MC_DLOG_CHUNK);
	piece_end(slot, r, rc);
}

static void on_front(struct mc_dlog_slot *slot, int rc)
{
	struct mc_dlog_read *r = slot->owner;

	piece_end(slot, r, rc < 0 ? rc : check_front(slot->log, r, r->front));
}

static void on_straight(struct mc_dlog_slot *slot, int rc)
{
	piece_end(slot, slot->owner, rc);
}

static void on_edge(struct mc_dlog_slot *slot, int rc)
{
	struct mc_dlog_read *r = slot->owner;

	if (rc == 0)
		rc = take_chunks(r, r->front, (uint32_t)slot->at, slot->count, slot->bounce);
	piece_end(slot, r, rc);
}

static void start_io(struct mc_dlog_read *r, struct mc_dlog_slot *slot,
		     void (*on_end)(struct mc_dlog_slot *slot, int rc), void *mem, uint64_t len,
		     uint64_t off)
{
	slot->owner = r;
	slot->on_end = on_end;
	r->nios++;
	mc_dlog_io_start(slot, MC_DISK_OP_READ, r->seg->file, mem, (uint32_t)len, off);
}

/* @return false: no slot or buffer now */
static bool issue_whole(struct mc_dlog *log, struct mc_dlog_read *r)
{
	uint64_t off = mc_index_off(&r->entry) & ~(uint64_t)(MC_REC_BLOCK - 1);
	uint64_t end = mc_rec_round(mc_index_off(&r->entry) + r->layout.len, MC_REC_BLOCK);
	struct mc_dlog_slot *slot = mc_dlog_slot_get(log, MC_DLOG_BUF_SMALL);

	if (!slot)
		return false;
	r->is_front_begun = true;
	slot->count = r->next; /* the first chunk */
	start_io(r, slot, on_whole, slot->bounce, end - off, off);
	return true;
}

static bool issue_straight(struct mc_dlog *log, struct mc_dlog_read *r)
{
	uint64_t payload = mc_index_off(&r->entry) + r->layout.payload_off;
	struct mc_dlog_slot *slot;
	uint8_t *mem = NULL;
	uint64_t at;
	uint32_t n;

	for (; r->next < r->end; r->next += mc_max(n, 1u)) {
		n = straight(r, r->next, &mem);
		if (n == 0)
			continue;
		slot = mc_dlog_slot_get(log, MC_DLOG_BUF_NONE);
		if (!slot)
			return false;
		at = (uint64_t)r->next * MC_DLOG_CHUNK;
		start_io(r, slot, on_straight, mem,
			 mc_min((uint64_t)n * MC_DLOG_CHUNK, r->entry.payload_len - at),
			 payload + at);
	}
	return true;
}

static bool issue_edges(struct mc_dlog *log, struct mc_dlog_read *r)
{
	uint64_t payload = mc_index_off(&r->entry) + r->layout.payload_off, at, len;
	struct mc_dlog_slot *slot;
	uint8_t *mem = NULL;
	uint32_t n, skip;

	while (r->next_edge < r->end) {
		skip = straight(r, r->next_edge, &mem);
		if (skip > 0) {
			r->next_edge += skip;
			continue;
		}
		slot = mc_dlog_slot_get(log, MC_DLOG_BUF_IO);
		if (!slot)
			return false;
		for (n = 1; r->next_edge + n < r->end && n < PIECE_CHUNKS; n++)
			if (straight(r, r->next_edge + n, &mem) > 0)
				break;
		at = (uint64_t)r->next_edge * MC_DLOG_CHUNK;
		len = mc_min((uint64_t)n * MC_DLOG_CHUNK, r->entry.payload_len - at);
		slot->at = r->next_edge;
		slot->count = n;
		r->next_edge += n;
		start_io(r, slot, on_edge, slot->bounce, mc_rec_round(len, MC_REC_BLOCK),
			 payload + at);
	}
	return true;
}

/* @return false: no slot or buffer now */
static bool read_issue(struct mc_dlog *log, struct mc_dlog_read *r)
{
	struct mc_dlog_slot *slot;

	if (!r->front)
		return r->is_front_begun || issue_whole(log, r);
	if (!r->is_front_begun) {
		slot = mc_dlog_slot_get(log, MC_DLOG_BUF_NONE);
		if (!slot)
			return false;
		r->is_front_begun = true;
		start_io(r, slot, on_front, r->front, r->layout.payload_off,
			 mc_index_off(&r->entry));
	}
	return issue_straight(log, r) && (!r->is_checked || issue_edges(log, r));
}

void mc_dlog_read_pump(struct mc_dlog *log)
{
	struct mc_dlog_read *r;

	mc_list_each (r, &log->reads, link) {
		if (log->is_broken && r->rc == 0)
			r->rc = -MC_E_IO;
		if (r->rc < 0)
			read_advance(log, r);
		else if (!read_issue(log, r))
			break; /* in order: those behind wait, too */
	}
}

int mc_dlog_get(struct mc_dlog *log, struct mc_dlog_op *op)
{
	const struct mc_index_entry *e;
	struct mc_dlog_seg *seg;
	struct mc_dlog_read *r;
	uint64_t hash, len = 0;
	uint32_t check;

	if (op->key_len == 0 || op->key_len > MC_DLOG_KEY_MAX || op->niov > MC_DLOG_IOV_MAX)
		return -MC_E_INVAL;
	for (unsigned i = 0; i < op->niov; i++)
		if (__builtin_add_overflow(len, op->iov[i].iov_len, &len))
			return -MC_E_INVAL;
	mc_dlog_hash(log, op->key, op->key_len, &hash, &check);
	e = mc_index_find(&log->index, hash, check);
	if (!e || e->kind != MC_REC_PUT || e->key_len != op->key_len)
		return -MC_E_NOENT;
	if ((op->gen.epoch || op->gen.counter) && mc_dlog_gen_cmp(e->gen, op->gen) != 0)
		return -MC_E_STALE;
	if (op->off > e->payload_len || len > e->payload_len - op->off)
		return -MC_E_INVAL;
	if (len == 0 && e->payload_len > 0)
		return -MC_E_INVAL;
	seg = mc_dlog_seg_find(log, e->segment);
	if (!seg)
		return -MC_E_CORRUPT; /* its file is lost */
	r = mc_calloc(1, sizeof(*r));
	if (!r)
		return -MC_E_NOMEM;
	r->op = op;
	r->entry = *e;
	r->layout = mc_index_layout(e);
	r->mem_align = log->mem_align;
	r->len = len;
	r->seg = seg;
	r->end = (uint32_t)((op->off + len + MC_DLOG_CHUNK - 1) / MC_DLOG_CHUNK);
	r->next = r->next_edge = (uint32_t)(op->off / MC_DLOG_CHUNK);
	if (r->layout.align == MC_REC_BLOCK) {
		r->front = mc_aligned_alloc(MC_REC_BLOCK, r->layout.payload_off);
		if (!r->front) {
			mc_free(r);
			return -MC_E_NOMEM;
		}
	}
	r->seg->refs++;
	op->state = r;
	log->nreads++;
	mc_list_push_back(&log->reads, &r->link);
	return 0;
}

void mc_dlog_read_fini(struct mc_dlog *log)
{
	struct mc_dlog_read *r;

	mc_list_each (r, &log->reads, link) {
		mc_dlog_seg_unref(log, r->seg);
		mc_free(r->front);
		mc_free(r);
	}
}
