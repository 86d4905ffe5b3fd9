/*
 * seal.c: a slot gets its header, another generation, or is given up.
 *
 * A slot in state SEALING belongs to whoever put it there: it alone ends that, and nobody else
 * releases it. So payloads are copied and counted without the lock.
 */
#include "base/crc.h"
#include "owner/priv.h"

#define INLINE_CHUNKS (MC_ST_INLINE_MAX / MC_SLOT_CHUNK)

int32_t mc_owner_finish(struct mc_owner *o, uint32_t id, const uint32_t *table)
{
	struct mc_oslot *s;
	struct mc_slot_info info;
	int32_t status = 0;

	pthread_mutex_lock(&o->lock);
	s = &o->pool.slots[id];
	mc_assert(s->state == MC_OSLOT_SEALING);
	if (s->is_doomed)
		status = MC_STORE_REPLICA_IS_GONE;
	if (!table || s->is_doomed) {
		mc_opool_release(&o->pool, id);
	} else {
		mc_opool_info(&o->pool, id, &info);
		mc_slot_seal(&info, table, o->pool.base + s->off);
		mc_opool_sealed(&o->pool, id, mc_clock_now(o->env->clk));
		mc_counter_add(&o->count.seals, 1);
	}
	pthread_mutex_unlock(&o->lock);
	if (!table || status < 0)
		mc_owner_room(o);
	return status;
}

/* A slot in state SEALING: what it is, and where. */
static uint8_t *look(struct mc_owner *o, uint32_t id, struct mc_slot_info *ret_info)
{
	uint8_t *image;

	pthread_mutex_lock(&o->lock);
	mc_opool_info(&o->pool, id, ret_info);
	image = o->pool.base + o->pool.slots[id].off;
	pthread_mutex_unlock(&o->lock);
	return image;
}

/* The table would vouch for what a wire made of the bytes, so it is asked whether it fits `crc`. */
int32_t mc_owner_fill(struct mc_owner *o, uint32_t id, const uint8_t *from, uint32_t crc)
{
	uint32_t few[INLINE_CHUNKS], *table = few;
	struct mc_slot_info info;
	uint8_t *to = look(o, id, &info);
	uint32_t plain = 0;
	int32_t status;

	to += info.payload_off;
	if (info.nchunks > INLINE_CHUNKS) {
		table = mc_calloc(info.nchunks, sizeof(*table));
		if (!table) {
			(void)mc_owner_finish(o, id, NULL);
			return MC_STORE_INTERNAL_ERROR;
		}
	}
	for (uint32_t i = 0; i < info.nchunks; i++, to += MC_SLOT_CHUNK) {
		uint32_t len = mc_slot_chunk_len(&info, i);

		table[i] =
		    from ? mc_slot_chunk_copy(&info, i, to, from + (size_t)i * MC_SLOT_CHUNK, len)
			 : mc_slot_chunk_crc(&info, i, to, len);
		if (crc)
			plain = mc_crc32c_skip(plain, len) ^ mc_slot_chunk_seed(&info, i, table[i]);
	}
	if (crc && plain != crc) {
		(void)mc_owner_finish(o, id, NULL);
		status = MC_STORE_CHECKSUM_MISMATCH;
	} else {
		status = mc_owner_finish(o, id, table);
	}
	if (table != few)
		mc_free(table);
	return status;
}

int32_t mc_owner_seal_begin(struct mc_owner *o, uint64_t addr, uint64_t gen, uint32_t *ret_id)
{
	int32_t status = 1;
	bool is_freed = false;
	uint32_t id;

	pthread_mutex_lock(&o->lock);
	id = mc_opool_at(&o->pool, addr, gen);
	if (id == MC_OWNER_NIL || o->pool.slots[id].state == MC_OSLOT_DEAD) {
		status = MC_STORE_REPLICA_IS_GONE;
	} else if (o->pool.slots[id].state == MC_OSLOT_SEALED) {
		status = 0;
	} else if (o->pool.slots[id].state == MC_OSLOT_SEALING) {
		status = MC_STORE_OBJECT_REPLICA_BUSY;
	} else if (o->pool.slots[id].is_doomed) {
		mc_opool_release(&o->pool, id);
		is_freed = true;
		status = MC_STORE_REPLICA_IS_GONE;
	} else {
		o->pool.slots[id].state = MC_OSLOT_SEALING;
		*ret_id = id;
	}
	pthread_mutex_unlock(&o->lock);
	if (is_freed)
		mc_owner_room(o);
	return status;
}

/* The writer may try again: its grant is as it was. */
static void seal_undo(struct mc_owner *o, uint32_t id)
{
	pthread_mutex_lock(&o->lock);
	o->pool.slots[id].state = MC_OSLOT_GRANTED;
	pthread_mutex_unlock(&o->lock);
}

int32_t mc_owner_seal_table(struct mc_owner *o, const struct mc_st_seal *s)
{
	struct mc_slot_info info;
	uint32_t *table, id;
	int32_t status = mc_owner_seal_begin(o, s->addr, s->gen, &id);
	struct mc_rd rd = mc_rd_make(s->table, (size_t)s->nchunks * 4);

	if (status <= 0)
		return status;
	(void)look(o, id, &info);
	if (info.nchunks != s->nchunks) {
		seal_undo(o, id);
		return MC_STORE_INVALID_PARAMS;
	}
	table = mc_calloc((size_t)info.nchunks + 1, sizeof(*table));
	if (!table) {
		seal_undo(o, id);
		return MC_STORE_INTERNAL_ERROR;
	}
	for (uint32_t i = 0; i < info.nchunks; i++)
		table[i] = mc_rd_u32(&rd);
	status = mc_owner_finish(o, id, table);
	mc_free(table);
	return status;
}

int32_t mc_owner_seal(struct mc_owner *o, const struct mc_st_seal *s)
{
	uint32_t id;
	int32_t status;

	if (!(s->flags & MC_ST_SEAL_COMPUTE))
		return mc_owner_seal_table(o, s);
	status = mc_owner_seal_begin(o, s->addr, s->gen, &id);
	return status > 0 ? mc_owner_fill(o, id, NULL, mc_st_seal_crc(s)) : status;
}

/* Under the lock. @return whether there is room again */
static bool drop_slot(struct mc_owner *o, uint32_t id)
{
	mc_counter_add(&o->count.drops, 1);
	(void)mc_odisk_slot_freed(o, id, false);
	if (o->pool.slots[id].state != MC_OSLOT_GRANTED)
		return mc_opool_kill(&o->pool, id);
	mc_opool_release(&o->pool, id);
	return true;
}

int32_t mc_owner_drop(struct mc_owner *o, const struct mc_st_place *p)
{
	bool is_freed = false, is_there, is_announced;
	uint32_t id;

	pthread_mutex_lock(&o->lock);
	id = p->addr ? mc_opool_at(&o->pool, p->addr, p->gen) : mc_opool_of_gen(&o->pool, p->gen);
	is_there = id != MC_OWNER_NIL && o->pool.slots[id].state != MC_OSLOT_DEAD;
	is_announced = is_there && o->pool.slots[id].is_announced;
	if (!is_announced)
		mc_opool_drop(&o->pool, p->gen);
	if (is_there && !is_announced)
		is_freed = drop_slot(o, id);
	pthread_mutex_unlock(&o->lock);
	if (is_freed)
		mc_owner_room(o);
	return is_announced ? MC_STORE_OBJECT_ALREADY_EXISTS : 0;
}

/*
 * A CRC is linear: between two beginnings it changes by the same whatever the bytes are, so the
 * payload is not read, and a bit that has flipped in it since the first sealing is still found.
 */
static int32_t regen_seal(struct mc_owner *o, uint32_t id, uint64_t gen)
{
	static const uint8_t zeros[MC_SLOT_CHUNK];
	uint8_t *image = o->pool.base + o->pool.slots[id].off;
	struct mc_slot_info old, info;
	uint32_t *table;

	mc_opool_info(&o->pool, id, &old);
	table = mc_calloc((size_t)old.nchunks + 1, sizeof(*table));
	if (!table)
		return MC_STORE_INTERNAL_ERROR;
	mc_slot_clear(image);
	mc_opool_regen(&o->pool, id, gen);
	mc_opool_info(&o->pool, id, &info);
	for (uint32_t i = 0; i < info.nchunks; i++) {
		uint32_t len = mc_slot_chunk_len(&info, i);

		table[i] = mc_slot_table(image, &info, i) ^ mc_slot_chunk_crc(&old, i, zeros, len) ^
			   mc_slot_chunk_crc(&info, i, zeros, len);
	}
	mc_slot_seal(&info, table, image);
	mc_free(table);
	return 0;
}

int32_t mc_owner_regen(struct mc_owner *o, const struct mc_st_regen *r)
{
	int32_t status;
	uint32_t id;

	pthread_mutex_lock(&o->lock);
	id = mc_opool_at(&o->pool, r->addr, r->new_gen);
	if (id != MC_OWNER_NIL && o->pool.slots[id].state == MC_OSLOT_SEALED) {
		status = 0;
	} else if (r->new_gen <= r->gen) {
		status = MC_STORE_INVALID_VERSION;
	} else if (mc_opool_of_gen(&o->pool, r->new_gen) != MC_OWNER_NIL) {
		status = MC_STORE_INVALID_PARAMS;
	} else if (mc_opool_is_dropped(&o->pool, r->new_gen)) {
		status = MC_STORE_REPLICA_IS_GONE;
	} else {
		id = mc_opool_at(&o->pool, r->addr, r->gen);
		if (id != MC_OWNER_NIL && o->pool.slots[id].state == MC_OSLOT_SEALED &&
		    !o->pool.slots[id].is_announced)
			status = regen_seal(o, id, r->new_gen);
		else
			status = MC_STORE_REPLICA_IS_GONE;
	}
	if (status == 0 && id != MC_OWNER_NIL)
		mc_odisk_renamed(o, id);
	pthread_mutex_unlock(&o->lock);
	return status;
}
