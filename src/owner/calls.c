/*
 * calls.c: who asks for slots, and waits for room: this process and others over rpc.
 */
#include <string.h>

#include "base/sync.h"
#include "owner/priv.h"

#define NO_ROOM 1		       /* beside statuses, which are not above 0 */
#define MARGIN_NS (100 * MC_NS_PER_MS) /* an answer leaves so long before the call's deadline */
#define COMMIT_NS (500 * MC_NS_PER_MS) /* from a seal to its commit, mostly */
#define WAIT_NS (30 * MC_NS_PER_S)     /* of a call without deadline */
/* No room by the end of the call, and no word that there will be none: whoever asked may ask again.
 */
#define UNDECIDED MC_STORE_UNAVAILABLE_IN_CURRENT_STATUS

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
		/* A writer that asks again, maybe over another connection. An order to copy finds
		 * it busy: its writer's end gives it back. */
		if (s->state == MC_OSLOT_GRANTED && writer != &o->self)
			mc_opool_give(&o->pool, id, writer);
		*ret_id = id;
		return 0;
	}
	if (o->is_retiring)
		return MC_STORE_NO_AVAILABLE_HANDLE;
	if (!is_in_turn && !mc_list_is_empty(&o->waiting))
		return NO_ROOM; /* those who came first are served first */
	do {
		rc = mc_opool_take(&o->pool, g, &info, writer, ret_id);
	} while (rc == -MC_E_NOSPACE && mc_opool_reclaim(&o->pool, mc_clock_now(o->env->clk)));
	if (rc == -MC_E_NOSPACE)
		return NO_ROOM;
	if (rc < 0)
		return rc == -MC_E_LIMIT ? MC_STORE_NO_AVAILABLE_HANDLE : MC_STORE_INTERNAL_ERROR;
	return 0;
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
	status = mc_owner_fill(o, id, g->payload, g->crc);
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
	if (!mc_list_is_empty(&o->waiting))
		*ret_next = mc_min(*ret_next, mc_opool_reclaim_ns(&o->pool));
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
	is_quiet =
	    p->guest_bytes == 0 && p->ngranted <= own &&
	    (p->sealed.last == MC_OWNER_NIL || now - p->slots[p->sealed.last].when_ns >= COMMIT_NS);
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
	need -= mc_min(need, o->pool.guest_bytes); /* a moment later */
	pthread_mutex_unlock(&o->lock);
	return need;
}

void mc_owner_room(struct mc_owner *o)
{
	if (atomic_load(&o->nwaiting) > 0 && !atomic_exchange(&o->is_room_posted, true))
		mc_loop_post(o->loop, &o->room_task);
}
