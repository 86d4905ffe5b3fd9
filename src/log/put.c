/*
 * put.c: puts and deletes up to where they wait for their place, and the bytes of their records.
 */
#include <string.h>

#include "base/crc.h"
#include "log/priv.h"

/* ---- beginning and end of an operation ---- */

static struct mc_dlog_put *put_new(struct mc_dlog *log)
{
	struct mc_list *link = mc_list_pop_front(&log->puts_spare);

	if (!link)
		return mc_calloc(1, sizeof(struct mc_dlog_put));
	return mc_list_entry(link, struct mc_dlog_put, link);
}

void mc_dlog_put_end(struct mc_dlog *log, struct mc_dlog_put *p, int rc)
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

bool mc_dlog_is_over_quota(const struct mc_dlog *log, uint64_t len)
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
	if (mc_dlog_is_over_quota(
		log, mc_rec_layout((uint32_t)op->key_len, (uint32_t)op->tlv_len, len).len))
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

/* ---- bytes ---- */

const uint8_t *mc_dlog_payload_at(const struct mc_dlog_put *p, uint64_t at, uint64_t *ret_len)
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

void mc_dlog_gather(const struct mc_dlog_put *p, uint64_t at, uint8_t *to, uint64_t len)
{
	uint64_t n, done = 0;

	for (; done < len; done += n) {
		const uint8_t *from = mc_dlog_payload_at(p, at + done, &n);

		mc_assert(from);
		n = mc_min(n, len - done);
		memcpy(to + done, from, n);
	}
}

/* @param to  NULL, or where the chunk is copied, in the same pass */
static uint32_t chunk_crc(const struct mc_dlog_put *p, uint32_t chunk, uint8_t *to)
{
	uint32_t crc = mc_rec_chunk_seed(&p->rec, chunk);
	uint64_t at = (uint64_t)chunk * MC_DLOG_CHUNK, n;
	uint64_t end = at + mc_rec_chunk_len(p->rec.payload_len, chunk);

	for (; at < end; at += n) {
		const uint8_t *from = mc_dlog_payload_at(p, at, &n);

		mc_assert(from);
		n = mc_min(n, end - at);
		crc = to ? mc_crc32c_copy(crc, to, from, n) : mc_crc32c(crc, from, n);
		to = to ? to + n : NULL;
	}
	return crc;
}

void mc_dlog_encode(struct mc_dlog_put *p, uint8_t *to, bool has_payload)
{
	const struct mc_dlog_op *op = p->op;
	const struct mc_rec_layout *l = &p->layout;
	uint8_t *at = to + MC_REC_HEAD, *payload = has_payload ? to + l->payload_off : NULL;

	memset(to, 0, l->payload_off);
	memcpy(at, op->key, op->key_len);
	if (op->tlv_len > 0)
		memcpy(at + op->key_len, op->tlv, op->tlv_len);
	at = to + l->table_off;
	for (uint32_t i = 0; i < l->nchunks; i++, at += 4) {
		uint8_t *chunk = payload ? payload + (size_t)i * MC_DLOG_CHUNK : NULL;
		uint32_t crc = htole32(chunk_crc(p, i, chunk));

		memcpy(at, &crc, 4);
	}
	if (payload)
		memset(payload + p->rec.payload_len, 0,
		       l->len - l->payload_off - p->rec.payload_len);
	p->rec.meta_crc =
	    mc_rec_meta_crc(&p->rec, to + MC_REC_HEAD, (size_t)(at - to) - MC_REC_HEAD);
	mc_rec_encode(&p->rec, to);
}
