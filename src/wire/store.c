/*
 * store.c: the packed records of store.h.
 */
#include "wire/store.h"

#define KEY_MAX 4096u /* also of a TLV, as meta/slot.h has it */

/* `len` bytes of a key or TLV, refused above what any may have. */
static const uint8_t *text_decode(struct mc_rd *r, size_t len)
{
	if (len > KEY_MAX)
		r->is_bad = true;
	return mc_rd_bytes(r, len);
}

static const uint8_t *key_bytes(struct mc_rd *r, size_t len)
{
	if (len == 0)
		r->is_bad = true;
	return text_decode(r, len);
}

void mc_st_key_encode(struct mc_wr *w, const struct mc_st_key *v)
{
	mc_wr_u16(w, v->len);
	mc_wr_bytes(w, v->bytes, v->len);
}

void mc_st_key_decode(struct mc_rd *r, struct mc_st_key *ret)
{
	ret->len = mc_rd_u16(r);
	ret->bytes = key_bytes(r, ret->len);
}

static void replica_encode(struct mc_wr *w, const struct mc_st_replica *v)
{
	mc_wr_u64(w, v->owner);
	mc_wr_u64(w, v->addr);
	mc_wr_u8(w, v->kind);
	mc_wr_u8(w, 0);
	mc_wr_u16(w, 0);
	mc_wr_u32(w, v->life);
}

static void replica_decode(struct mc_rd *r, struct mc_st_replica *ret)
{
	*ret = (struct mc_st_replica){0};
	ret->owner = mc_rd_u64(r);
	ret->addr = mc_rd_u64(r);
	ret->kind = mc_rd_u8(r);
	(void)mc_rd_u8(r);
	(void)mc_rd_u16(r);
	ret->life = mc_rd_u32(r);
	if (ret->kind >= MC_ST_KIND_COUNT)
		r->is_bad = true;
}

/* At least one and at most what the struct has room for. */
static void replicas_decode(struct mc_rd *r, struct mc_st_replica *ret, uint8_t *n)
{
	if (*n == 0 || *n > MC_ST_REPLICAS_MAX) {
		r->is_bad = true;
		*n = 0;
	}
	for (unsigned i = 0; i < *n; i++)
		replica_decode(r, &ret[i]);
}

void mc_st_object_encode(struct mc_wr *w, const struct mc_st_object *v)
{
	mc_wr_u32(w, (uint32_t)v->status);
	if (v->status != 0)
		return;
	mc_wr_u32(w, v->lease_ms);
	mc_wr_u64(w, v->gen);
	mc_wr_u64(w, v->len);
	mc_wr_u32(w, v->type);
	mc_wr_u16(w, v->tlv_len);
	mc_wr_u8(w, v->nreplicas);
	mc_wr_u8(w, v->flags);
	for (unsigned i = 0; i < v->nreplicas; i++)
		replica_encode(w, &v->replicas[i]);
}

void mc_st_object_decode(struct mc_rd *r, struct mc_st_object *ret)
{
	*ret = (struct mc_st_object){.status = (int32_t)mc_rd_u32(r)};
	if (ret->status != 0 || r->is_bad)
		return;
	ret->lease_ms = mc_rd_u32(r);
	ret->gen = mc_rd_u64(r);
	ret->len = mc_rd_u64(r);
	ret->type = mc_rd_u32(r);
	ret->tlv_len = mc_rd_u16(r);
	ret->nreplicas = mc_rd_u8(r);
	ret->flags = mc_rd_u8(r);
	replicas_decode(r, ret->replicas, &ret->nreplicas);
}

void mc_st_commit_encode(struct mc_wr *w, const struct mc_st_commit *v)
{
	mc_wr_u64(w, v->gen);
	mc_wr_u64(w, v->len);
	mc_wr_u16(w, v->key_len);
	mc_wr_u16(w, v->tlv_len);
	mc_wr_u8(w, v->flags);
	mc_wr_u8(w, v->nreplicas);
	mc_wr_u16(w, 0);
	for (unsigned i = 0; i < v->nreplicas; i++)
		replica_encode(w, &v->replicas[i]);
	mc_wr_bytes(w, v->key, v->key_len);
	mc_wr_bytes(w, v->tlv, v->tlv_len);
}

void mc_st_commit_decode(struct mc_rd *r, struct mc_st_commit *ret)
{
	*ret = (struct mc_st_commit){0};
	ret->gen = mc_rd_u64(r);
	ret->len = mc_rd_u64(r);
	ret->key_len = mc_rd_u16(r);
	ret->tlv_len = mc_rd_u16(r);
	ret->flags = mc_rd_u8(r);
	ret->nreplicas = mc_rd_u8(r);
	(void)mc_rd_u16(r);
	replicas_decode(r, ret->replicas, &ret->nreplicas);
	ret->key = key_bytes(r, ret->key_len);
	ret->tlv = text_decode(r, ret->tlv_len);
}

void mc_st_committed_encode(struct mc_wr *w, const struct mc_st_committed *v)
{
	mc_wr_u32(w, (uint32_t)v->status);
	mc_wr_u64(w, v->gen);
}

void mc_st_committed_decode(struct mc_rd *r, struct mc_st_committed *ret)
{
	ret->status = (int32_t)mc_rd_u32(r);
	ret->gen = mc_rd_u64(r);
}

void mc_st_bad_encode(struct mc_wr *w, const struct mc_st_bad *v)
{
	mc_wr_u64(w, v->gen);
	replica_encode(w, &v->replica);
	mc_wr_u16(w, v->key_len);
	mc_wr_bytes(w, v->key, v->key_len);
}

void mc_st_bad_decode(struct mc_rd *r, struct mc_st_bad *ret)
{
	ret->gen = mc_rd_u64(r);
	replica_decode(r, &ret->replica);
	ret->key_len = mc_rd_u16(r);
	ret->key = key_bytes(r, ret->key_len);
}

void mc_st_grant_encode(struct mc_wr *w, const struct mc_st_grant *v, bool has_payload)
{
	mc_wr_u64(w, v->gen);
	mc_wr_u64(w, v->len);
	mc_wr_u16(w, v->key_len);
	mc_wr_u16(w, v->tlv_len);
	mc_wr_u32(w, v->crc);
	mc_wr_bytes(w, v->key, v->key_len);
	mc_wr_bytes(w, v->tlv, v->tlv_len);
	if (has_payload)
		mc_wr_bytes(w, v->payload, v->len);
}

void mc_st_grant_decode(struct mc_rd *r, struct mc_st_grant *ret, bool has_payload)
{
	*ret = (struct mc_st_grant){0};
	ret->gen = mc_rd_u64(r);
	ret->len = mc_rd_u64(r);
	ret->key_len = mc_rd_u16(r);
	ret->tlv_len = mc_rd_u16(r);
	ret->crc = mc_rd_u32(r);
	ret->key = key_bytes(r, ret->key_len);
	ret->tlv = text_decode(r, ret->tlv_len);
	if (!has_payload)
		return;
	if (ret->len > MC_ST_INLINE_MAX)
		r->is_bad = true;
	ret->payload = mc_rd_bytes(r, (size_t)ret->len);
}

void mc_st_granted_encode(struct mc_wr *w, const struct mc_st_granted *v)
{
	mc_wr_u32(w, (uint32_t)v->status);
	mc_wr_u64(w, v->addr);
	mc_wr_u64(w, v->incarnation);
}

void mc_st_granted_decode(struct mc_rd *r, struct mc_st_granted *ret)
{
	ret->status = (int32_t)mc_rd_u32(r);
	ret->addr = mc_rd_u64(r);
	ret->incarnation = mc_rd_u64(r);
}

void mc_st_seal_encode(struct mc_wr *w, const struct mc_st_seal *v)
{
	mc_wr_u64(w, v->addr);
	mc_wr_u64(w, v->gen);
	mc_wr_u32(w, v->nchunks);
	mc_wr_u32(w, v->flags);
	mc_wr_bytes(w, v->table, (size_t)v->nchunks * sizeof(uint32_t));
}

void mc_st_seal_decode(struct mc_rd *r, struct mc_st_seal *ret)
{
	ret->addr = mc_rd_u64(r);
	ret->gen = mc_rd_u64(r);
	ret->nchunks = mc_rd_u32(r);
	ret->flags = mc_rd_u32(r);
	ret->table = mc_rd_bytes(r, (size_t)ret->nchunks * sizeof(uint32_t));
	if (ret->flags & MC_ST_SEAL_COMPUTE && ret->nchunks > 1)
		r->is_bad = true;
}

uint32_t mc_st_seal_crc(const struct mc_st_seal *v)
{
	struct mc_rd r = mc_rd_make(v->table, v->nchunks * sizeof(uint32_t));

	return v->flags & MC_ST_SEAL_COMPUTE && v->nchunks == 1 ? mc_rd_u32(&r) : 0;
}

void mc_st_place_encode(struct mc_wr *w, const struct mc_st_place *v)
{
	mc_wr_u64(w, v->addr);
	mc_wr_u64(w, v->gen);
}

void mc_st_place_decode(struct mc_rd *r, struct mc_st_place *ret)
{
	ret->addr = mc_rd_u64(r);
	ret->gen = mc_rd_u64(r);
}

void mc_st_regen_encode(struct mc_wr *w, const struct mc_st_regen *v)
{
	mc_wr_u64(w, v->addr);
	mc_wr_u64(w, v->gen);
	mc_wr_u64(w, v->new_gen);
}

void mc_st_regen_decode(struct mc_rd *r, struct mc_st_regen *ret)
{
	ret->addr = mc_rd_u64(r);
	ret->gen = mc_rd_u64(r);
	ret->new_gen = mc_rd_u64(r);
}

void mc_st_has_encode(struct mc_wr *w, const struct mc_st_has *v)
{
	mc_wr_u64(w, v->gen);
	mc_wr_u64(w, v->len);
	mc_wr_u64(w, v->addr);
	mc_wr_u16(w, v->key_len);
	mc_wr_u16(w, v->tlv_len);
	mc_wr_u8(w, v->kind);
	mc_wr_u8(w, v->flags);
	mc_wr_u16(w, 0);
	mc_wr_bytes(w, v->key, v->key_len);
	mc_wr_bytes(w, v->tlv, v->tlv_len);
}

void mc_st_has_decode(struct mc_rd *r, struct mc_st_has *ret)
{
	*ret = (struct mc_st_has){0};
	ret->gen = mc_rd_u64(r);
	ret->len = mc_rd_u64(r);
	ret->addr = mc_rd_u64(r);
	ret->key_len = mc_rd_u16(r);
	ret->tlv_len = mc_rd_u16(r);
	ret->kind = mc_rd_u8(r);
	ret->flags = mc_rd_u8(r);
	(void)mc_rd_u16(r);
	if (ret->kind >= MC_ST_KIND_COUNT)
		r->is_bad = true;
	ret->key = key_bytes(r, ret->key_len);
	ret->tlv = text_decode(r, ret->tlv_len);
}

void mc_st_welcome_encode(struct mc_wr *w, const struct mc_st_welcome *v)
{
	mc_wr_u64(w, v->epoch);
	mc_wr_u64(w, v->from);
	mc_wr_u32(w, v->flags);
}

void mc_st_welcome_decode(struct mc_rd *r, struct mc_st_welcome *ret)
{
	ret->epoch = mc_rd_u64(r);
	ret->from = mc_rd_u64(r);
	ret->flags = mc_rd_u32(r);
}

void mc_st_space_encode(struct mc_wr *w, const struct mc_st_space *v)
{
	mc_wr_u64(w, v->capacity);
	mc_wr_u64(w, v->used);
	mc_wr_u64(w, v->largest);
	mc_wr_u64(w, v->want);
	mc_wr_u8(w, v->kind);
	mc_wr_u8(w, v->flags);
	mc_wr_u16(w, 0);
	mc_wr_u32(w, 0);
}

void mc_st_space_decode(struct mc_rd *r, struct mc_st_space *ret)
{
	*ret = (struct mc_st_space){0};
	ret->capacity = mc_rd_u64(r);
	ret->used = mc_rd_u64(r);
	ret->largest = mc_rd_u64(r);
	ret->want = mc_rd_u64(r);
	ret->kind = mc_rd_u8(r);
	ret->flags = mc_rd_u8(r);
	(void)mc_rd_u16(r);
	(void)mc_rd_u32(r);
	if (ret->kind >= MC_ST_KIND_COUNT)
		r->is_bad = true;
}

int mc_st_count_decode(struct mc_rd *r)
{
	uint32_t n = mc_rd_u32(r);

	if (r->is_bad)
		return -MC_E_PROTO;
	return n > MC_ST_RECORDS_MAX ? -MC_E_TOO_BIG : (int)n;
}

void mc_st_note_head_encode(const struct mc_st_note_head *v, uint8_t buf[MC_ST_NOTE_HEAD_LEN])
{
	struct mc_wr w = mc_wr_make(buf, MC_ST_NOTE_HEAD_LEN);

	mc_wr_u32(&w, v->len);
	mc_wr_u8(&w, v->type);
	mc_wr_u8(&w, 0);
	mc_wr_u16(&w, 0);
	mc_wr_u64(&w, v->number);
}

int mc_st_note_head_decode(const uint8_t buf[MC_ST_NOTE_HEAD_LEN], struct mc_st_note_head *ret)
{
	struct mc_rd r = mc_rd_make(buf, MC_ST_NOTE_HEAD_LEN);

	ret->len = mc_rd_u32(&r);
	ret->type = mc_rd_u8(&r);
	(void)mc_rd_u8(&r);
	(void)mc_rd_u16(&r);
	ret->number = mc_rd_u64(&r);
	if (ret->len > MC_ST_NOTE_MAX - MC_ST_NOTE_HEAD_LEN)
		return -MC_E_TOO_BIG;
	return ret->number == 0 ? -MC_E_PROTO : 0;
}
