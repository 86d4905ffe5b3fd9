/*
 * calls.c: what is done to slots, and calls that wait for room.
 *
 * A slot in state SEALING belongs to whoever put it there: it alone ends that, and nobody else
 * releases it. So payloads are copied and counted without the lock.
 */
#include <string.h>

#include "base/crc.h"
#include "base/sync.h"
#include "owner/priv.h"

#define NO_ROOM 1		       /* beside statuses, which are not above 0 */
#define MARGIN_NS (100 * MC_NS_PER_MS) /* an answer leaves so long before the call's deadline */
#define COMMIT_NS (500 * MC_NS_PER_MS) /* from a seal to its commit, mostly */
#define WAIT_NS (30 * MC_NS_PER_S)     /* of a call without deadline */
/* No room by the end of the call, and no word that there will be none: whoever asked may ask again.
 */
#define UNDECIDED MC_STORE_UNAVAILABLE_IN_CURRENT_STATUS
#define INLINE_CHUNKS (MC_ST_INLINE_MAX / MC_SLOT_CHUNK)

static int32_t layout_of(const struct mc_st_grant *g, struct mc_slot_info *ret)
{
	*ret = (struct mc_slot_info){
	    .gen = g->gen, .len = g->len, .key_len = g->key_len, .tlv_len = g->tlv_len};
	if (g->gen == 0 || mc_slot_layout(ret) < 0)
		return MC_STORE_INVALID_PARAMS;
	ret->key_hash = mc_hash64(g->key, g->key_len, 0);
	return 0;
}

/* Whether it is the same write. */
static bool is_same(const struct mc_oslot *s, const struct mc_st_grant *g)
{
	return s->len == g->len && s->key_len == g->key_len &&
	       memcmp(s->texts, g->key, g->key_len) == 0;
}

/* Under the lock. `*ret_is_old`: it was there. @return 0; NO_ROOM; a status */
static int32_t take(struct mc_owner *o, const struct mc_st_grant *g, struct mc_owriter *writer,
		    bool is_in_turn, uint32_t *ret_id, bool *ret_is_old)
{
	struct mc_slot_info info;
	int32_t status = layout_of(g, &info);
	uint32_t id;
	int rc;

	if (status < 0)
		return status;
	if (info.slot_len > mc_extent_capacity(o->pool.extent))
		return MC_STORE_NO_AVAILABLE_HANDLE;
	if (mc_opool_is_dropped(&o->pool, g->gen))
		return MC_STORE_REPLICA_IS_GONE;
	id = mc_opool_of_gen(&o->pool, g->gen);
	*ret_is_old = id != MC_OWNER_NIL;
	if (*ret_is_old) {
		const struct mc_oslot *s = &o->pool.slots[id];

		if (!is_same(s, g))
			return MC_STORE_INVALID_PARAMS;
		if (s->state == MC_OSLOT_DEAD || s->is_doomed)
			return MC_STORE_REPLICA_IS_GONE;
		if (s->state == MC_OSLOT_GRANTED)
			mc_opool_give(&o->pool, id, writer);
		*ret_id = id;
		return 0;
	}
	if (o->is_retiring)
		return MC_STORE_NO_AVAILABLE_HANDLE;
	if (!is_in_turn && !mc_list_is_empty(&o->waiting))
		return NO_ROOM; /* those who came first are served first */
	rc = mc_opool_take(&o->pool, g, &info, writer, ret_id);
	if (rc == -MC_E_NOSPACE)
		return NO_ROOM;
	if (rc < 0)
		return rc == -MC_E_LIMIT ? MC_STORE_NO_AVAILABLE_HANDLE : MC_STORE_INTERNAL_ERROR;
	return 0;
}

/* ---- sealing ---- */

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
		mc_odisk_wake(o);
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

/*
 * CRCs of a payload, copied from `from` unless that is NULL, and the end of the sealing. The table
 * would vouch for what a wire made of the bytes, so it is asked whether it fits `crc`, the writer's
 * of all of them; 0: nobody said.
 */
static int32_t fill(struct mc_owner *o, uint32_t id, const uint8_t *from, uint32_t crc)
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

int32_t mc_owner_seal_compute(struct mc_owner *o, uint32_t id)
{
	return fill(o, id, NULL, 0);
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
	return status > 0 ? fill(o, id, NULL, 0) : status;
}

int32_t mc_owner_drop(struct mc_owner *o, const struct mc_st_place *p)
{
	bool is_freed = false;
	uint32_t id;

	pthread_mutex_lock(&o->lock);
	mc_opool_drop(&o->pool, p->gen);
	id = p->addr ? mc_opool_at(&o->pool, p->addr, p->gen) : mc_opool_of_gen(&o->pool, p->gen);
	if (id != MC_OWNER_NIL && o->pool.slots[id].state != MC_OSLOT_DEAD) {
		mc_counter_add(&o->count.drops, 1);
		(void)mc_odisk_slot_freed(o, id, false);
		if (o->pool.slots[id].state == MC_OSLOT_GRANTED) {
			mc_opool_release(&o->pool, id);
			is_freed = true;
		} else {
			is_freed = mc_opool_kill(&o->pool, id);
		}
	}
	pthread_mutex_unlock(&o->lock);
	if (is_freed)
		mc_owner_room(o);
	return 0;
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
		if (id != MC_OWNER_NIL && o->pool.slots[id].state == MC_OSLOT_SEALED)
			status = regen_seal(o, id, r->new_gen);
		else
			status = MC_STORE_REPLICA_IS_GONE;
	}
	pthread_mutex_unlock(&o->lock);
	return status;
}

/* ---- calls of this process ---- */

static int32_t wait_for_room(struct mc_owner *o, struct mc_owait *w)
{
	struct mc_slot_info info;

	/* Under the lock; take() has looked at the lengths. */
	if (layout_of(w->grant, &info) == 0)
		w->need = info.slot_len;
	if (o->is_closing)
		return MC_STORE_INTERNAL_ERROR;
	if (atomic_load(&o->nwaiting) >= o->waiting_max)
		return UNDECIDED;
	mc_list_push_back(&o->waiting, &w->link);
	atomic_fetch_add(&o->nwaiting, 1);
	pthread_mutex_unlock(&o->lock);
	mc_owner_room(o);
	while (!atomic_load(&w->is_over)) {
		if (mc_futex_wait(&w->is_over, 0, w->deadline_ns) == -MC_E_TIMEDOUT)
			break;
	}
	pthread_mutex_lock(&o->lock);
	if (!atomic_load(&w->is_over)) {
		mc_list_del(&w->link);
		atomic_fetch_sub(&o->nwaiting, 1);
		w->status = UNDECIDED;
	}
	return w->status;
}

/* As mc_owner_begin(), into `state` unless it is old. */
static int32_t begin(struct mc_owner *o, const struct mc_st_grant *g, uint64_t deadline_ns,
		     uint8_t state, uint32_t *ret_id, bool *ret_is_old)
{
	struct mc_owait w = {.grant = g, .deadline_ns = deadline_ns};
	int32_t status;

	pthread_mutex_lock(&o->lock);
	status = take(o, g, &o->self, false, ret_id, ret_is_old);
	if (status == NO_ROOM) {
		status = wait_for_room(o, &w);
		*ret_id = w.slot;
		*ret_is_old = w.is_old;
	}
	if (status == 0 && !*ret_is_old)
		o->pool.slots[*ret_id].state = state;
	pthread_mutex_unlock(&o->lock);
	if (status < 0)
		mc_counter_add(&o->count.refused, 1);
	return status;
}

int32_t mc_owner_begin(struct mc_owner *o, const struct mc_st_grant *g, uint64_t deadline_ns,
		       uint32_t *ret_id, bool *ret_is_old)
{
	return begin(o, g, deadline_ns, MC_OSLOT_SEALING, ret_id, ret_is_old);
}

/* Under the lock. */
static void tell(const struct mc_owner *o, uint32_t id, struct mc_st_granted *ret)
{
	*ret = (struct mc_st_granted){.addr = mc_opool_addr(&o->pool, id),
				      .incarnation = o->pool.incarnation};
}

int32_t mc_owner_grant(struct mc_owner *o, const struct mc_st_grant *g, uint64_t deadline_ns,
		       struct mc_st_granted *ret)
{
	uint32_t id;
	bool is_old;
	int32_t status = begin(o, g, deadline_ns, MC_OSLOT_GRANTED, &id, &is_old);

	if (status < 0)
		return status;
	mc_counter_add(&o->count.grants, 1);
	pthread_mutex_lock(&o->lock);
	tell(o, id, ret);
	pthread_mutex_unlock(&o->lock);
	return 0;
}

/* A sealed slot, or one to be filled. @return a status */
static int32_t put_into(struct mc_owner *o, const struct mc_st_grant *g, uint32_t id, bool is_old,
			struct mc_st_granted *ret)
{
	uint8_t state;
	int32_t status;

	pthread_mutex_lock(&o->lock);
	tell(o, id, ret);
	state = o->pool.slots[id].state;
	pthread_mutex_unlock(&o->lock);
	if (is_old)
		return state == MC_OSLOT_SEALED ? 0 : MC_STORE_OBJECT_REPLICA_BUSY;
	status = fill(o, id, g->payload, g->crc);
	if (status < 0)
		return status;
	mc_counter_add(&o->count.puts, 1);
	mc_counter_add(&o->count.bytes_put, g->len);
	return 0;
}

int32_t mc_owner_put(struct mc_owner *o, const struct mc_st_grant *g, uint64_t deadline_ns,
		     struct mc_st_granted *ret)
{
	uint32_t id;
	bool is_old;
	int32_t status = mc_owner_begin(o, g, deadline_ns, &id, &is_old);

	return status < 0 ? status : put_into(o, g, id, is_old, ret);
}

/* ---- calls over rpc: the loop ---- */

static int32_t one_of(struct mc_owner *o, struct mc_owait *w, const struct mc_st_grant *g,
		      bool is_in_turn, struct mc_st_granted *ret)
{
	bool is_old;
	uint32_t id;
	int32_t status;

	if (w->has_payload && g->len > MC_ST_INLINE_MAX)
		return MC_STORE_INVALID_PARAMS;
	if (is_in_turn && mc_rpc_req_is_dead(w->req))
		return MC_STORE_NO_AVAILABLE_HANDLE; /* nobody would seal or drop it */
	pthread_mutex_lock(&o->lock);
	status = take(o, g, w->writer, is_in_turn, &id, &is_old);
	if (status == 0) {
		tell(o, id, ret);
		if (w->has_payload && !is_old)
			o->pool.slots[id].state = MC_OSLOT_SEALING;
		if (w->is_fetch)
			status = mc_odisk_begin(o, w, id, is_old);
	}
	pthread_mutex_unlock(&o->lock);
	if (status == 0 && w->has_payload)
		return put_into(o, g, id, is_old, ret);
	if (status == 0 && !w->is_fetch)
		mc_counter_add(&o->count.grants, 1);
	return status;
}

/* @param refusal  what those get that there is no room for; 0: they wait. @return false: the rest
 * waits */
static bool serve(struct mc_owner *o, struct mc_owait *w, bool is_in_turn, int32_t refusal)
{
	for (; w->done < w->n; w->done++) {
		struct mc_rd before = w->rd;
		struct mc_st_granted ret = {0};
		struct mc_slot_info info;
		struct mc_st_grant g;

		mc_st_grant_decode(&w->rd, &g, w->has_payload);
		ret.status = one_of(o, w, &g, is_in_turn, &ret);
		if (ret.status == NO_ROOM && refusal == 0) {
			w->rd = before;
			return false;
		}
		if (ret.status == NO_ROOM)
			ret.status = refusal;
		if (ret.status < 0) {
			mc_counter_add(&o->count.refused, 1);
			ret = (struct mc_st_granted){.status = ret.status};
		}
		w->ngranted += ret.status == 0 && !w->has_payload;
		mc_st_granted_encode(&w->reply, &ret);
		if (layout_of(&g, &info) == 0)
			w->need -= mc_min(w->need, info.slot_len);
	}
	return true;
}

void mc_owait_free(struct mc_owait *w)
{
	w->writer->nrefs--;
	mc_free(w->msg);
	mc_free(w->reply_buf);
	mc_free(w);
}

void mc_owait_answer(struct mc_owait *w)
{
	if (w->fetch) {
		mc_list_push_back(&w->fetch->waiters, &w->link);
		return;
	}
	mc_assert(!w->reply.is_bad);
	(void)mc_rpc_reply(w->req, 0, w->reply_buf, mc_wr_len(&w->reply), NULL, 0);
	mc_owait_free(w); /* whoever asked may be gone: then the answer is dropped */
}

/* The message is only ours during the call that brought it. */
static bool keep_rest(struct mc_owner *o, struct mc_owait *w)
{
	size_t left = mc_rd_left(&w->rd);

	if (atomic_load(&o->nwaiting) >= o->waiting_max ||
	    left > o->waiting_bytes_max - o->waiting_bytes)
		return false;
	if (w->msg)
		return true; /* a fetch made its message itself */
	w->msg = mc_calloc(1, left);
	if (!w->msg)
		return false;
	memcpy(w->msg, w->rd.at, left);
	w->msg_len = left;
	w->rd = mc_rd_make(w->msg, left);
	return true;
}

void mc_owait_start(struct mc_owner *o, struct mc_owait *w)
{
	uint64_t now = mc_clock_now(o->env->clk), left = WAIT_NS;
	bool is_kept;

	if (serve(o, w, false, 0)) {
		mc_owait_answer(w);
		return;
	}
	if (w->req->deadline_ns != MC_TIME_NEVER)
		left = w->req->deadline_ns > now ? w->req->deadline_ns - now : 0;
	w->deadline_ns = now + left - mc_min(MARGIN_NS, left / 4);
	pthread_mutex_lock(&o->lock);
	is_kept = !o->is_closing && keep_rest(o, w);
	if (is_kept) {
		mc_list_push_back(&o->waiting, &w->link);
		atomic_fetch_add(&o->nwaiting, 1);
		o->waiting_bytes += w->msg_len;
	}
	pthread_mutex_unlock(&o->lock);
	if (!is_kept) {
		(void)serve(o, w, false, UNDECIDED);
		mc_owait_answer(w);
		return;
	}
	mc_owner_room(o);
}

static void leave(struct mc_owner *o, struct mc_owait *w)
{
	mc_list_del(&w->link);
	atomic_fetch_sub(&o->nwaiting, 1);
	o->waiting_bytes -= w->msg_len;
}

/* The head of the queue, which is of this process. Under the lock. @return false: it waits on */
static bool serve_own(struct mc_owner *o, struct mc_owait *w, bool is_hopeless)
{
	w->status = take(o, w->grant, &o->self, true, &w->slot, &w->is_old);
	if (w->status == NO_ROOM && !is_hopeless)
		return false;
	if (w->status == NO_ROOM)
		w->status = o->is_closing ? MC_STORE_INTERNAL_ERROR : MC_STORE_NO_AVAILABLE_HANDLE;
	leave(o, w);
	/* Its caller takes the lock before it leaves, so w is there until we let go of it. */
	atomic_store(&w->is_over, 1);
	mc_futex_wake(&w->is_over, 1);
	return true;
}

/* @return false when nobody is at the head whom something can be done for */
static bool serve_head(struct mc_owner *o, bool is_hopeless)
{
	uint64_t now = mc_clock_now(o->env->clk);
	struct mc_owait *w;
	int32_t refusal = 0;
	bool is_done;

	pthread_mutex_lock(&o->lock);
	w = mc_list_first(&o->waiting, struct mc_owait, link);
	is_done = w && !w->req && serve_own(o, w, is_hopeless);
	pthread_mutex_unlock(&o->lock);
	if (!w || is_done || !w->req)
		return is_done;
	if (is_hopeless)
		refusal = MC_STORE_NO_AVAILABLE_HANDLE;
	else if (now >= w->deadline_ns || mc_rpc_req_is_dead(w->req))
		refusal = UNDECIDED;
	if (!serve(o, w, true, refusal))
		return false;
	pthread_mutex_lock(&o->lock);
	leave(o, w);
	pthread_mutex_unlock(&o->lock);
	mc_owait_answer(w);
	return true;
}

/* Of those behind the head, one whose time is up. */
static struct mc_owait *take_late(struct mc_owner *o, uint64_t now, uint64_t *ret_next)
{
	struct mc_owait *w, *late = NULL;

	*ret_next = MC_TIME_NEVER;
	pthread_mutex_lock(&o->lock);
	mc_list_each (w, &o->waiting, link) {
		if (!w->req)
			continue;
		if (!late && now >= w->deadline_ns) {
			leave(o, w);
			late = w;
		} else {
			*ret_next = mc_min(*ret_next, w->deadline_ns);
		}
	}
	pthread_mutex_unlock(&o->lock);
	return late;
}

uint64_t mc_owner_serve_waiting(struct mc_owner *o, bool is_hopeless)
{
	struct mc_owait *late;
	uint64_t next;

	while (serve_head(o, is_hopeless))
		;
	while ((late = take_late(o, mc_clock_now(o->env->clk), &next)) != NULL) {
		(void)serve(o, late, false, UNDECIDED);
		mc_owait_answer(late);
	}
	return next;
}

bool mc_owner_is_hopeless(struct mc_owner *o)
{
	uint64_t now = mc_clock_now(o->env->clk), own = 0;
	const struct mc_opool *p = &o->pool;
	struct mc_owait *w;
	bool is_quiet;

	pthread_mutex_lock(&o->lock);
	mc_list_each (w, &o->waiting, link)
		own += w->ngranted;
	is_quiet = p->ngranted <= own && (p->sealed.last == MC_OWNER_NIL ||
					  now - p->slots[p->sealed.last].when_ns >= COMMIT_NS);
	pthread_mutex_unlock(&o->lock);
	return is_quiet;
}

uint64_t mc_owner_need(struct mc_owner *o)
{
	struct mc_owait *w;
	uint64_t need = 0;

	pthread_mutex_lock(&o->lock);
	mc_list_each (w, &o->waiting, link)
		need += w->need;
	pthread_mutex_unlock(&o->lock);
	return need;
}

void mc_owner_room(struct mc_owner *o)
{
	if (atomic_load(&o->nwaiting) > 0 && !atomic_exchange(&o->is_room_posted, true))
		mc_loop_post(o->loop, &o->room_task);
}
