/*
 * stream.c: the connection to the master: one call of MC_ST_OWNER for as long as it lasts, made
 * anew every 100 ms for ever. All of it on the loop.
 */
#include <string.h>

#include "base/log.h"
#include "base/sync.h"
#include "owner/priv.h"
#include "wire/pb.h"

#define AGAIN_NS (100 * MC_NS_PER_MS)
#define WANT_AGAIN_NS (100 * MC_NS_PER_MS)
#define SPACE_AGAIN_NS (50 * MC_NS_PER_MS)
#define TIMEOUT_MS 3000u /* of a peer that acknowledges nothing, in the kernel */
#define FREED_MAX 65536u /* waiting to be acknowledged before the master must wait */
#define CREDIT_MIN (32u << 10)
#define ORDER_COPY 1u

/* The next attempt, from a timer: a connection cannot be closed in its own callbacks. */
static void again_soon(struct mc_owner *o)
{
	uint64_t now = mc_clock_now(o->env->clk);

	o->stream.state = MC_OSTREAM_DOWN;
	atomic_store(&o->stream.is_adopted, false);
	if (!o->stream.is_leaving)
		(void)mc_loop_timer_set(o->loop, &o->stream.again, now + AGAIN_NS); /* one timer */
}

static void set_left(struct mc_owner *o)
{
	atomic_store(&o->stream.is_left, 1);
	mc_futex_wake(&o->stream.is_left, 1);
}

static void on_end(struct mc_rpc_call *call, int rc, const struct mc_rpc_msg *reply)
{
	struct mc_owner *o = call->user;

	(void)reply;
	if (o->stream.state != MC_OSTREAM_DOWN && !o->stream.is_leaving)
		mc_log_info("lost the master", "rc=%s", mc_err_name(rc));
	if (o->stream.is_leaving)
		set_left(o);
	again_soon(o);
}

static void hang_up(struct mc_owner *o, const char *why)
{
	mc_log_warn("the owner leaves its master", "cause=\"%s\"", why);
	(void)mc_rpc_cancel(o->stream.conn, o->stream.call.id); /* ended: just as well */
}

/* ---- what the master says ---- */

static void on_welcome(struct mc_owner *o, struct mc_rd *rd)
{
	struct mc_ostream *s = &o->stream;
	struct mc_st_welcome v;
	struct mc_onote *first;

	mc_st_welcome_decode(rd, &v);
	if (rd->is_bad || s->state != MC_OSTREAM_ASKED) {
		hang_up(o, "welcome out of place");
		return;
	}
	if (v.epoch < atomic_load(&s->epoch) || v.epoch == 0) {
		hang_up(o, "a master of an older epoch");
		return;
	}
	atomic_store(&s->epoch, v.epoch);
	mc_odisk_policy(o, v.flags & MC_ST_OFFLOAD_ASKED);
	s->state = MC_OSTREAM_UP;
	s->is_space_due = true;
	o->disk.is_space_due = o->disk.is_there;
	mc_counter_add(&o->count.connects, 1);
	if (v.from == 0) {
		mc_onotes_drop(o);
		s->number = 0;
		s->nfreed = 0; /* it will know by what is announced, and by what is not */
		mc_onotes_announce(o);
	} else {
		mc_onotes_ack(o, v.from - 1);
		first = mc_list_first(&s->notes, struct mc_onote, link);
		s->unsent = first;
		if ((first ? first->number : s->number + 1) != v.from) {
			/* Not kept so long: all of it again, which does no harm. */
			mc_onotes_drop(o);
			s->number = v.from - 1;
			mc_onotes_announce(o);
		}
	}
	mc_log_info("a master has welcomed the owner", "epoch=%llu from=%llu",
		    (unsigned long long)v.epoch, (unsigned long long)v.from);
}

bool mc_ostream_freed(struct mc_owner *o, const struct mc_st_place *p)
{
	struct mc_ostream *s = &o->stream;
	void *freed = s->freed;

	if (mc_array_grow(&freed, &s->freed_cap, s->nfreed + 1, (size_t)4 * FREED_MAX,
			  sizeof(*s->freed)) < 0) {
		hang_up(o, "no memory for a free");
		return false;
	}
	s->freed = freed;
	s->freed[s->nfreed++] = *p;
	return true;
}

static void on_free(struct mc_owner *o, const struct mc_st_place *p)
{
	bool is_freed = false, is_later;
	uint32_t id;

	pthread_mutex_lock(&o->lock);
	if (p->addr == 0)
		mc_opool_drop(&o->pool, p->gen); /* a copy that is not made yet */
	is_later = p->addr == MC_ST_DISK_ADDR && mc_odisk_free(o, p->gen);
	id = p->addr ? mc_opool_at(&o->pool, p->addr, p->gen) : mc_opool_of_gen(&o->pool, p->gen);
	if (id != MC_OWNER_NIL && o->pool.slots[id].state != MC_OSLOT_DEAD) {
		is_later = mc_odisk_slot_freed(o, id, p->addr != 0);
		is_freed = mc_opool_kill(&o->pool, id);
		mc_counter_add(&o->count.frees, 1);
	}
	pthread_mutex_unlock(&o->lock);
	if (is_freed)
		mc_owner_room(o);
	if (!is_later)
		(void)mc_ostream_freed(o, p); /* the stream is over: it is asked for again */
}

static void on_committed(struct mc_owner *o, struct mc_rd *rd)
{
	struct mc_st_place place;

	pthread_mutex_lock(&o->lock);
	while (mc_rd_left(rd) > 0 && !rd->is_bad) {
		uint32_t id;

		mc_st_place_decode(rd, &place);
		id = rd->is_bad ? MC_OWNER_NIL : mc_opool_at(&o->pool, place.addr, place.gen);
		if (id != MC_OWNER_NIL) /* else it was freed meanwhile */
			o->pool.slots[id].is_committed = true;
	}
	pthread_mutex_unlock(&o->lock);
}

static void on_order(struct mc_owner *o, struct mc_rd *rd)
{
	_Alignas(16) uint8_t buf[8192];
	struct mc_pb_arena arena;
	ProtobufCMessage *got;
	const Mc__St__Order *order;
	struct mc_odone done = {.status = MC_STORE_NOT_SUPPORTED};
	size_t len = mc_rd_left(rd);

	mc_pb_arena_init(&arena, buf, sizeof(buf));
	if (mc_pb_unpack(&arena, &mc__st__order__descriptor, mc_rd_bytes(rd, len), len, &got) < 0) {
		hang_up(o, "an order that cannot be read");
		return;
	}
	order = (const Mc__St__Order *)got;
	done.id = order->id;
	mc_counter_add(&o->count.orders, 1);
	if (order->what == ORDER_COPY) {
		int rc = o->stream.norders < MC_OWNER_ORDERS_MAX ? mc_oorder_copy(o, order)
								 : -MC_E_AGAIN;

		if (rc == 0) {
			o->stream.norders++;
			return;
		}
		done.status = rc == -MC_E_INVAL ? MC_STORE_INVALID_PARAMS
						: MC_STORE_TASK_PENDING_LIMIT_EXCEEDED;
	}
	if (o->stream.norders == MC_OWNER_ORDERS_MAX) {
		hang_up(o, "more orders at once than an owner takes");
		return;
	}
	o->stream.norders++;
	mc_ostream_done(o, &done);
}

static void on_note(struct mc_owner *o, const struct mc_st_note_head *head, const uint8_t *data)
{
	struct mc_rd rd = mc_rd_make(data, head->len);
	struct mc_st_place place;
	struct mc_st_space space;

	if (head->type == MC_ST_NOTE_WELCOME) {
		on_welcome(o, &rd);
		return;
	}
	if (o->stream.state != MC_OSTREAM_UP)
		return; /* hung up */
	switch (head->type) {
	case MC_ST_NOTE_ACK:
		mc_onotes_ack(o, mc_rd_u64(&rd));
		break;
	case MC_ST_NOTE_FREE:
		while (mc_rd_left(&rd) > 0 && !rd.is_bad) {
			mc_st_place_decode(&rd, &place);
			if (!rd.is_bad)
				on_free(o, &place);
		}
		break;
	case MC_ST_NOTE_OFFLOAD:
		while (mc_rd_left(&rd) > 0 && !rd.is_bad) {
			mc_st_place_decode(&rd, &place);
			if (!rd.is_bad)
				mc_odisk_ask(o, &place);
		}
		break;
	case MC_ST_NOTE_COMMITTED:
		on_committed(o, &rd);
		break;
	case MC_ST_NOTE_ORDER:
		on_order(o, &rd);
		break;
	case MC_ST_NOTE_NO_ROOM:
		mc_st_space_decode(&rd, &space);
		if (rd.is_bad)
			break;
		if (space.kind != MC_ST_MEMORY)
			mc_odisk_no_room(o);
		else if (mc_owner_is_hopeless(o)) /* else it is asked again soon */
			(void)mc_owner_serve_waiting(o, true);
		break;
	default:
		break; /* of a newer master */
	}
	if (rd.is_bad)
		hang_up(o, "a note that cannot be read");
}

/* Whole notes out of what has come. @return bytes used */
static size_t take_notes(struct mc_owner *o, const uint8_t *at, size_t len)
{
	struct mc_st_note_head head;
	size_t used = 0;

	while (len - used >= MC_ST_NOTE_HEAD_LEN) {
		if (mc_st_note_head_decode(at + used, &head) < 0) {
			hang_up(o, "a note that cannot be read");
			return len;
		}
		if (len - used < MC_ST_NOTE_HEAD_LEN + head.len)
			break;
		on_note(o, &head, at + used + MC_ST_NOTE_HEAD_LEN);
		used += MC_ST_NOTE_HEAD_LEN + head.len;
	}
	return used;
}

static void on_chunk(struct mc_rpc_call *call, const void *data, size_t len, bool is_last)
{
	struct mc_owner *o = call->user;
	struct mc_ostream *s = &o->stream;
	void *in = s->in;
	size_t used;

	(void)is_last; /* the reply follows */
	s->credit_owed += (uint32_t)len;
	if (mc_array_grow(&in, &s->in_cap, s->in_len + len,
			  (size_t)MC_ST_NOTE_MAX + MC_FRAME_CREDIT_MAX, 1) < 0) {
		hang_up(o, "no memory for a note");
		return;
	}
	s->in = in;
	memcpy(s->in + s->in_len, data, len);
	s->in_len += len;
	used = take_notes(o, s->in, s->in_len);
	memmove(s->in, s->in + used, s->in_len - used);
	s->in_len -= used;
	mc_ostream_pump(o);
}

static void on_room(struct mc_rpc_call *call)
{
	mc_ostream_pump(call->user);
}

/* ---- what we say ---- */

void mc_ostream_pump(struct mc_owner *o)
{
	struct mc_ostream *s = &o->stream;
	struct mc_list *next;
	int rc;

	if (s->state != MC_OSTREAM_UP || s->is_leaving)
		return;
	while (s->unsent || mc_onote_next(o)) {
		rc = mc_rpc_call_send(s->conn, s->call.id, s->unsent->bytes, s->unsent->len, false);
		if (rc == -MC_E_AGAIN)
			return; /* on_room() goes on */
		if (rc < 0)
			return; /* on_end() follows, and the note stays */
		next = s->unsent->link.next;
		s->unsent = next == &s->notes ? NULL : mc_list_entry(next, struct mc_onote, link);
	}
	if (s->credit_owed >= CREDIT_MIN && s->nfreed < FREED_MAX) {
		(void)mc_rpc_call_credit(s->conn, s->call.id, s->credit_owed); /* stale: ended */
		s->credit_owed = 0;
	}
}

void mc_ostream_done(struct mc_owner *o, const struct mc_odone *done)
{
	struct mc_ostream *s = &o->stream;

	mc_assert(s->ndone < MC_OWNER_ORDERS_MAX);
	s->done[s->ndone++] = *done;
	mc_ostream_pump(o);
}

void mc_ostream_want(struct mc_owner *o)
{
	struct mc_ostream *s = &o->stream;
	uint64_t now = mc_clock_now(o->env->clk), need = mc_owner_need(o);

	if (need == 0) {
		s->wanted = 0;
		return;
	}
	if (need <= s->wanted && now - s->want_ns < WANT_AGAIN_NS)
		return;
	s->wanted = need;
	s->want_ns = now;
	s->is_want_due = true;
	mc_ostream_pump(o);
}

void mc_ostream_tick(struct mc_owner *o, uint64_t now_ns)
{
	struct mc_ostream *s = &o->stream;
	uint64_t used;

	pthread_mutex_lock(&o->lock);
	used = mc_opool_used(&o->pool);
	o->disk.is_space_due |=
	    o->disk.capacity != o->disk.said_capacity || o->disk.used != o->disk.said_used;
	pthread_mutex_unlock(&o->lock);
	if (now_ns - s->space_ns >=
	    (used == s->space_used ? MC_ST_BEAT_MS * MC_NS_PER_MS / 2 : SPACE_AGAIN_NS))
		s->is_space_due = true;
	mc_ostream_want(o);
	mc_ostream_pump(o);
}

/* ---- life ---- */

static int ask(struct mc_owner *o)
{
	struct mc_ostream *s = &o->stream;
	Mc__St__Owner owner = MC__ST__OWNER__INIT;
	uint8_t buf[2048];
	size_t len;
	int rc;

	owner.version = MC_ST_VERSION;
	owner.id = o->id;
	owner.incarnation = o->pool.incarnation;
	owner.epoch = atomic_load(&s->epoch);
	owner.segment = (char *)(uintptr_t)mc_engine_name(o->engine); /* packing only reads */
	owner.address = o->address;
	owner.host = o->host;
	owner.protocol = o->protocol;
	owner.capacity = mc_extent_capacity(o->pool.extent);
	pthread_mutex_lock(&o->lock);
	owner.disk_capacity = o->disk.capacity;
	pthread_mutex_unlock(&o->lock);
	owner.acked = s->acked;
	rc = mc_pb_pack(&owner.base, buf, sizeof(buf), &len);
	if (rc < 0)
		return rc;
	s->call = (struct mc_rpc_call){.method = MC_ST_OWNER,
				       .flags = MC_RPC_STREAM,
				       .req = buf,
				       .req_len = len,
				       .on_end = on_end,
				       .on_chunk = on_chunk,
				       .on_room = on_room,
				       .user = o};
	return mc_rpc_start(s->conn, &s->call);
}

void mc_ostream_connect(struct mc_owner *o)
{
	const struct mc_rpc_conn_opts opts = {.user_timeout_ms = TIMEOUT_MS};
	struct mc_ostream *s = &o->stream;
	int rc;

	mc_rpc_conn_close(s->conn); /* its call has ended */
	s->conn = NULL;
	s->in_len = 0;
	s->credit_owed = 0;
	s->unsent = NULL;
	s->state = MC_OSTREAM_ASKED;
	rc = mc_rpc_conn_open(o->env, o->loop, &s->master, &opts, &s->conn);
	if (rc == 0)
		rc = ask(o);
	if (rc < 0)
		again_soon(o);
}

static void on_again(struct mc_timer *t)
{
	struct mc_owner *o = mc_container_of(t, struct mc_owner, stream.again);

	if (!o->stream.is_leaving)
		mc_ostream_connect(o);
}

void mc_ostream_init(struct mc_owner *o)
{
	mc_list_init(&o->stream.notes);
	o->stream.again.on_time = on_again;
}

void mc_ostream_leave(struct mc_owner *o)
{
	struct mc_ostream *s = &o->stream;
	bool is_up = s->state == MC_OSTREAM_UP;

	s->is_leaving = true;
	mc_loop_timer_cancel(o->loop, &s->again);
	if (!is_up || mc_rpc_call_send(s->conn, s->call.id, "", 0, true) < 0)
		set_left(o);
}

void mc_ostream_fini(struct mc_owner *o)
{
	struct mc_ostream *s = &o->stream;

	mc_onotes_drop(o);
	mc_free(s->in);
	mc_free(s->freed);
}
