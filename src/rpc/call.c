/*
 * call.c: calls in flight: starting, ending, and the frames that come for them.
 */
#include <string.h>

#include "base/fork.h"
#include "base/mem.h"
#include "base/sync.h"
#include "rpc/conn.h"

#define DIRECT_MIN                                                                                 \
	(16u << 10) /* a request's bytes from which its copy costs more than it saves              \
		     */

static const struct mc_rpc_msg no_reply;

/* Lock held. */
static struct mc_rpc_call *call_find(struct mc_rpc_conn *conn, uint64_t id)
{
	const uint64_t slot = id & (MC_RPC_CALLS_MAX - 1);

	if (slot >= conn->opts.calls_max || conn->slots[slot].gen != id >> MC_RPC_SLOT_BITS)
		return NULL;
	return conn->slots[slot].call;
}

/* Lock held. */
static void call_insert(struct mc_rpc_conn *conn, struct mc_rpc_call *call)
{
	struct mc_rpc_slot *slot = &conn->slots[conn->slot_free];

	conn->slot_free = slot->next_free;
	slot->call = call;
	conn->ncalls++;
	if (call->flags & MC_RPC_STREAM)
		conn->nstreams++;
	if (call->flags & MC_RPC_WAITED)
		return;
	conn->ncalls_async++;
	if (call->deadline_ns != MC_TIME_NEVER) {
		int rc = mc_heap_push(&conn->deadlines, &call->deadline_node, call->deadline_ns);

		mc_assert(rc == 0); /* room for all was made at open */
	}
}

/* Lock held. */
static void call_remove(struct mc_rpc_conn *conn, struct mc_rpc_call *call)
{
	const uint32_t at = (uint32_t)(call->id & (MC_RPC_CALLS_MAX - 1));
	struct mc_rpc_slot *slot = &conn->slots[at];

	slot->call = NULL;
	slot->gen++;
	slot->next_free = conn->slot_free;
	conn->slot_free = at;
	conn->ncalls--;
	if (call->flags & MC_RPC_STREAM)
		conn->nstreams--;
	if (call->flags & MC_RPC_WAITED)
		return;
	conn->ncalls_async--;
	mc_heap_del(&conn->deadlines, &call->deadline_node);
}

bool mc_rpc_conn_wake(struct mc_list *waiters)
{
	struct mc_rpc_call *call;

	mc_list_each (call, waiters, wait_link) {
		uint32_t phase = atomic_load_explicit(&call->phase, memory_order_relaxed);

		/* acq_rel: pairs with the waiter's exchange in wait.c */
		while (phase == MC_RPC_PENDING || phase == MC_RPC_ASLEEP) {
			if (!atomic_compare_exchange_weak_explicit(
				&call->phase, &phase, MC_RPC_TAKEOVER, memory_order_acq_rel,
				memory_order_relaxed))
				continue;
			if (phase == MC_RPC_ASLEEP)
				mc_futex_wake(&call->phase, 1);
			return true;
		}
	}
	return false;
}

bool mc_rpc_conn_room(struct mc_rpc_conn *conn)
{
	bool is_wanted;

	if (conn->ncalls + conn->nabandoned >= conn->calls_limit ||
	    mc_chan_queued(&conn->ch) > conn->ch.queue_max / 2)
		return false;
	(void)mc_rpc_conn_wake(&conn->room_waiters);
	is_wanted = atomic_load_explicit(&conn->is_room_wanted, memory_order_relaxed);
	atomic_store_explicit(&conn->is_room_wanted, false, memory_order_relaxed);
	return is_wanted && conn->opts.on_room;
}

void mc_rpc_call_end(struct mc_rpc_call *call, int rc, const struct mc_rpc_msg *reply)
{
	const bool is_waited = call->flags & MC_RPC_WAITED;

	call->is_answered = reply != NULL;
	if (!reply)
		reply = &no_reply;
	call->reply_len = reply->len;
	if (reply->len && call->reply_buf) {
		if (reply->len <= call->reply_cap)
			memcpy(call->reply_buf, reply->data, reply->len);
		else if (rc == 0)
			rc = -MC_E_TOO_BIG;
	}
	call->rc = rc;
	if (call->on_end)
		call->on_end(call, rc, reply);
	/* release: pairs with the acquire in mc_rpc_wait(). Without a waiter the call may be gone.
	 */
	if (is_waited && atomic_exchange_explicit(&call->phase, MC_RPC_DONE,
						  memory_order_acq_rel) == MC_RPC_ASLEEP)
		mc_futex_wake(&call->phase, 1);
}

struct mc_rpc_call *mc_rpc_call_abandon(struct mc_rpc_conn *conn, uint64_t id, int rc)
{
	struct mc_rpc_call *call = call_find(conn, id);
	struct mc_frame f = {.type = MC_FRAME_CANCEL, .call_id = id};

	if (!call)
		return NULL;
	if (conn->pinned == call) {
		if (conn->pinned_rc == 0)
			conn->pinned_rc = rc;
		return NULL;
	}
	call_remove(conn, call);
	conn->nabandoned++;
	mc_chan_put_short(&conn->ch, &f);
	return call;
}

void mc_rpc_conn_lost(struct mc_rpc_conn *conn, int rc)
{
	(void)pthread_mutex_lock(&conn->ch.lock);
	mc_chan_break(&conn->ch, rc);
	rc = conn->ch.rc;
	for (uint32_t i = 0; i < conn->opts.calls_max && conn->ncalls > 0; i++) {
		struct mc_rpc_call *call = conn->slots[i].call;

		if (!call)
			continue;
		call_remove(conn, call);
		(void)pthread_mutex_unlock(&conn->ch.lock);
		mc_rpc_call_end(call, rc, NULL);
		(void)pthread_mutex_lock(&conn->ch.lock);
	}
	conn->is_lost = true;
	mc_rpc_conn_kick(conn);
	(void)pthread_mutex_unlock(&conn->ch.lock);
}

/* ---- starting ---- */

static uint32_t deadline_ms(const struct mc_rpc_conn *conn, uint64_t deadline_ns)
{
	uint64_t now, ms;

	if (deadline_ns == MC_TIME_NEVER)
		return 0;
	now = mc_clock_now(conn->env.clk);
	ms = deadline_ns > now ? (deadline_ns - now + MC_NS_PER_MS - 1) / MC_NS_PER_MS : 1;
	return (uint32_t)mc_min(ms, (uint64_t)UINT32_MAX);
}

/* Its caller keeps the request until mc_rpc_start() returns, whatever ends the call before. */
static bool is_direct(const struct mc_rpc_call *call)
{
	return call->req_len >= DIRECT_MIN && call->nfds == 0 &&
	       (call->flags & (MC_RPC_WAITED | MC_RPC_MORE)) == MC_RPC_WAITED;
}

/* Lock held. @param ret_claimed  the frame was not put: the sender's seat is ours, to send it */
static int start_locked(struct mc_rpc_conn *conn, struct mc_rpc_call *call, struct mc_frame *ret_f,
			bool *ret_claimed)
{
	struct mc_frame f = {.type = MC_FRAME_REQUEST,
			     .flags = call->flags & MC_RPC_STREAM ? MC_FRAME_STREAM : 0,
			     .method = call->method,
			     .nfds = (uint16_t)call->nfds};
	int rc = 0;

	if (conn->ch.rc < 0)
		return conn->ch.rc;
	if (call->req_len > conn->frame_limit || call->nfds > MC_FRAME_FDS_MAX)
		return -MC_E_TOO_BIG;
	if (conn->ncalls + conn->nabandoned >= conn->calls_limit ||
	    (call->flags & MC_RPC_STREAM && conn->nstreams >= MC_RPC_STREAMS_MAX)) {
		atomic_store_explicit(&conn->is_room_wanted, true, memory_order_relaxed);
		return -MC_E_AGAIN;
	}
	f.payload_len = (uint32_t)call->req_len;
	f.call_id = conn->slots[conn->slot_free].gen << MC_RPC_SLOT_BITS | conn->slot_free;
	f.deadline_ms = deadline_ms(conn, call->deadline_ns);
	*ret_claimed = is_direct(call) && mc_chan_claim(&conn->ch);
	if (!*ret_claimed)
		rc = mc_chan_put(&conn->ch, &f, call->req, call->fds);
	if (rc == -MC_E_AGAIN)
		atomic_store_explicit(&conn->is_room_wanted, true, memory_order_relaxed);
	if (rc < 0)
		return rc;
	*ret_f = f;
	call->id = f.call_id;
	call_insert(conn, call);
	if (!(call->flags & MC_RPC_WAITED) && ((!conn->is_in_armed && !conn->ch.is_receiving) ||
					       call->deadline_ns < conn->timer_at_ns))
		mc_rpc_conn_kick(conn);
	return 0;
}

int mc_rpc_start(struct mc_rpc_conn *conn, struct mc_rpc_call *call)
{
	const bool is_held = call->flags & MC_RPC_MORE;
	const void *req = call->req;
	bool is_claimed = false;
	struct mc_frame f;
	int rc;

	if (mc_fork_is_child(conn->fork_gen))
		return -MC_E_FORKED;
	if (call->deadline_ns == 0)
		call->deadline_ns = MC_TIME_NEVER;
	call->deadline_node = (struct mc_heap_node){0};
	call->send_credit = call->recv_credit = MC_FRAME_CREDIT_START;
	call->is_send_over = call->is_recv_over = call->is_room_wanted = false;
	call->is_answered = false;
	mc_list_init(&call->wait_link);
	atomic_store_explicit(&call->phase, MC_RPC_PENDING, memory_order_relaxed);
	(void)pthread_mutex_lock(&conn->ch.lock);
	rc = start_locked(conn, call, &f, &is_claimed);
	(void)pthread_mutex_unlock(&conn->ch.lock);
	if (rc < 0)
		return rc;
	/* From here on the call may have ended and be gone. */
	if (is_claimed)
		mc_chan_send_claimed(&conn->ch, &f, req);
	if (!is_held)
		mc_rpc_conn_flush(conn);
	return 0;
}

void mc_rpc_flush(struct mc_rpc_conn *conn)
{
	if (!mc_fork_is_child(conn->fork_gen))
		mc_rpc_conn_flush(conn);
}

int mc_rpc_cancel(struct mc_rpc_conn *conn, uint64_t id)
{
	struct mc_rpc_call *call;
	bool was_there;

	if (mc_fork_is_child(conn->fork_gen))
		return -MC_E_FORKED;
	(void)pthread_mutex_lock(&conn->ch.lock);
	was_there = call_find(conn, id) != NULL;
	call = mc_rpc_call_abandon(conn, id, -MC_E_CANCELED);
	(void)pthread_mutex_unlock(&conn->ch.lock);
	if (!was_there)
		return -MC_E_STALE;
	if (call)
		mc_rpc_call_end(call, -MC_E_CANCELED, NULL);
	mc_rpc_conn_flush(conn);
	return 0;
}

/* ---- streams ---- */

/* Lock held. */
static int send_locked(struct mc_rpc_conn *conn, uint64_t id, const void *data, size_t len,
		       bool is_last)
{
	struct mc_rpc_call *call = call_find(conn, id);
	struct mc_frame f = {.type = MC_FRAME_CHUNK,
			     .flags = is_last ? MC_FRAME_LAST : 0,
			     .call_id = id,
			     .payload_len = (uint32_t)len};
	int rc;

	if (!call)
		return -MC_E_STALE;
	if (!(call->flags & MC_RPC_STREAM) || call->is_send_over)
		return -MC_E_INVAL;
	call->is_room_wanted = len > call->send_credit;
	if (call->is_room_wanted)
		return -MC_E_AGAIN;
	rc = mc_chan_put_stream(&conn->ch, &f, data);
	if (rc < 0)
		return rc;
	call->send_credit -= (uint32_t)len;
	call->is_send_over = is_last;
	return 0;
}

int mc_rpc_call_send(struct mc_rpc_conn *conn, uint64_t id, const void *data, size_t len,
		     bool is_last)
{
	int rc;

	if (mc_fork_is_child(conn->fork_gen))
		return -MC_E_FORKED;
	if (len > MC_FRAME_CREDIT_START)
		return -MC_E_TOO_BIG;
	(void)pthread_mutex_lock(&conn->ch.lock);
	rc = send_locked(conn, id, data, len, is_last);
	(void)pthread_mutex_unlock(&conn->ch.lock);
	if (rc == 0)
		mc_rpc_conn_flush(conn);
	return rc;
}

int mc_rpc_call_credit(struct mc_rpc_conn *conn, uint64_t id, uint32_t bytes)
{
	struct mc_frame f = {.type = MC_FRAME_CREDIT, .call_id = id, .status = (int32_t)bytes};
	struct mc_rpc_call *call;

	if (mc_fork_is_child(conn->fork_gen))
		return -MC_E_FORKED;
	mc_assert(bytes > 0 && bytes <= MC_FRAME_CREDIT_MAX);
	(void)pthread_mutex_lock(&conn->ch.lock);
	call = call_find(conn, id);
	if (call) {
		mc_assert(call->recv_credit <= MC_FRAME_CREDIT_MAX - bytes);
		call->recv_credit += bytes;
		mc_chan_put_short(&conn->ch, &f);
	}
	(void)pthread_mutex_unlock(&conn->ch.lock);
	if (!call)
		return -MC_E_STALE;
	mc_rpc_conn_flush(conn);
	return 0;
}

/* ---- frames ---- */

static int on_hello(struct mc_rpc_conn *conn, const struct mc_rpc_msg *msg)
{
	struct mc_frame_hello h;
	bool is_room_told;
	int rc = mc_frame_hello_decode(msg->data, msg->len, &h);

	if (rc < 0)
		return rc;
	(void)pthread_mutex_lock(&conn->ch.lock);
	conn->calls_limit = mc_min(conn->opts.calls_max, h.calls_max);
	conn->frame_limit = h.frame_max;
	is_room_told = mc_rpc_conn_room(conn);
	(void)pthread_mutex_unlock(&conn->ch.lock);
	if (conn->opts.on_up)
		conn->opts.on_up(conn->opts.user);
	if (is_room_told)
		conn->opts.on_room(conn->opts.user);
	return 0;
}

static int on_reply(struct mc_rpc_conn *conn, const struct mc_frame *f,
		    const struct mc_rpc_msg *msg)
{
	struct mc_rpc_call *call;
	bool is_room_told = false;
	int rc = 0;

	(void)pthread_mutex_lock(&conn->ch.lock);
	call = call_find(conn, f->call_id);
	if (call)
		call_remove(conn, call);
	else if (conn->nabandoned > 0)
		conn->nabandoned--;
	else
		rc = -MC_E_PROTO; /* answers a call that never was */
	if (rc == 0)
		is_room_told = mc_rpc_conn_room(conn);
	(void)pthread_mutex_unlock(&conn->ch.lock);
	if (call)
		mc_rpc_call_end(call, f->status, msg);
	if (is_room_told)
		conn->opts.on_room(conn->opts.user);
	return rc;
}

/* Account for a CHUNK or CREDIT. @return 1: tell the owner; 0: do not; -MC_E_PROTO */
static int stream_apply(struct mc_rpc_call *call, const struct mc_frame *f)
{
	bool is_told;

	if (!(call->flags & MC_RPC_STREAM))
		return -MC_E_PROTO;
	if (f->type == MC_FRAME_CHUNK) {
		if (call->is_recv_over || f->payload_len > call->recv_credit)
			return -MC_E_PROTO;
		call->recv_credit -= f->payload_len;
		call->is_recv_over = f->flags & MC_FRAME_LAST;
		return call->on_chunk != NULL;
	}
	if ((uint32_t)f->status > MC_FRAME_CREDIT_MAX - call->send_credit)
		return -MC_E_PROTO;
	call->send_credit += (uint32_t)f->status;
	is_told = call->is_room_wanted && call->on_room;
	call->is_room_wanted = false;
	return is_told;
}

/*
 * CHUNK and CREDIT: a callback of a call that stays in flight. Meanwhile it is pinned: another
 * thread that wants to end it leaves that to us.
 */
static int on_stream(struct mc_rpc_conn *conn, const struct mc_frame *f,
		     const struct mc_rpc_msg *msg)
{
	struct mc_rpc_call *call;
	int rc = 0;

	(void)pthread_mutex_lock(&conn->ch.lock);
	call = call_find(conn, f->call_id);
	if (call)
		rc = stream_apply(call, f);
	if (rc == 1) {
		conn->pinned = call;
		conn->pinned_rc = 0;
	}
	(void)pthread_mutex_unlock(&conn->ch.lock);
	if (rc != 1)
		return rc;

	if (f->type == MC_FRAME_CHUNK)
		call->on_chunk(call, msg->data, msg->len, f->flags & MC_FRAME_LAST);
	else
		call->on_room(call);

	(void)pthread_mutex_lock(&conn->ch.lock);
	conn->pinned = NULL;
	rc = conn->pinned_rc;
	if (rc < 0)
		call = mc_rpc_call_abandon(conn, f->call_id, rc);
	(void)pthread_mutex_unlock(&conn->ch.lock);
	if (rc < 0 && call) {
		mc_rpc_call_end(call, rc, NULL);
		mc_rpc_conn_flush(conn);
	}
	return 0;
}

int mc_rpc_conn_frame(struct mc_chan *ch, const struct mc_frame *f, struct mc_rpc_msg *msg)
{
	struct mc_rpc_conn *conn = mc_container_of(ch, struct mc_rpc_conn, ch);

	switch (f->type) {
	case MC_FRAME_HELLO:
		return on_hello(conn, msg);
	case MC_FRAME_REPLY:
		return on_reply(conn, f, msg);
	case MC_FRAME_CHUNK:
	case MC_FRAME_CREDIT:
		return on_stream(conn, f, msg);
	case MC_FRAME_GOODBYE:
		return f->status < 0 ? f->status : -MC_E_CLOSED;
	default: /* only a client says these */
		return -MC_E_PROTO;
	}
}
