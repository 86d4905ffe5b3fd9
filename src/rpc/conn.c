/*
 * conn.c: the client's connection: its life, and what its loop does for it.
 *
 * The loop always watches for the end of the connection and, while the socket is full, for room. It
 * watches for input only while calls without a waiter are in flight: a caller that waits reads by
 * itself, and telling the loop as well would cost a second wake-up for each answer.
 */
#include "rpc/conn.h"

#include "base/fork.h"
#include "base/mem.h"
#include "base/sync.h"

#define CALLS_DEFAULT 1024u
#define FRAME_DEFAULT (16u << 20)
#define QUEUE_DEFAULT (32u << 20)
#define EVENTS_END (EPOLLRDHUP | EPOLLHUP | EPOLLERR)

void mc_rpc_conn_kick(struct mc_rpc_conn *conn)
{
	if (conn->is_task_posted || conn->is_closing)
		return;
	conn->is_task_posted = true;
	mc_loop_post(conn->loop, &conn->task);
}

ssize_t mc_rpc_conn_progress(struct mc_rpc_conn *conn, uint64_t wait_ns)
{
	ssize_t n = mc_chan_recv(&conn->ch, wait_ns);

	if (n < 0 && n != -MC_E_AGAIN)
		mc_rpc_conn_lost(conn, (int)n);
	return n;
}

void mc_rpc_conn_offer(struct mc_rpc_conn *conn)
{
	if (!mc_rpc_conn_wake(&conn->waiters) && !mc_rpc_conn_wake(&conn->room_waiters) &&
	    (((conn->ncalls_async > 0 || !conn->ch.has_hello) && !conn->is_in_armed) ||
	     (conn->is_hup && !conn->is_lost)))
		mc_rpc_conn_kick(conn);
}

void mc_rpc_conn_leave(struct mc_rpc_conn *conn)
{
	(void)pthread_mutex_lock(&conn->ch.lock);
	conn->ch.is_receiving = false;
	mc_rpc_conn_offer(conn);
	(void)pthread_mutex_unlock(&conn->ch.lock);
}

void mc_rpc_conn_flush(struct mc_rpc_conn *conn)
{
	bool is_blocked = mc_chan_flush(&conn->ch);
	bool is_room_told = false;

	if (!is_blocked && !atomic_load_explicit(&conn->is_room_wanted, memory_order_relaxed))
		return;
	(void)pthread_mutex_lock(&conn->ch.lock);
	if (is_blocked)
		mc_rpc_conn_kick(conn);
	is_room_told = mc_rpc_conn_room(conn);
	(void)pthread_mutex_unlock(&conn->ch.lock);
	if (is_room_told)
		conn->opts.on_room(conn->opts.user);
}

/* ---- the loop ---- */

/* What the loop has to watch for. Lock held; the answer is also noted as armed. */
static uint32_t events_wanted(struct mc_rpc_conn *conn)
{
	uint32_t events = EPOLLRDHUP;

	conn->is_in_armed =
	    !conn->ch.is_receiving && (conn->ncalls_async > 0 || !conn->ch.has_hello);
	if (conn->is_in_armed)
		events |= EPOLLIN;
	if (conn->ch.is_blocked)
		events |= EPOLLOUT;
	return events;
}

static void conn_unwatch(struct mc_rpc_conn *conn)
{
	if (conn->is_watched)
		conn->ch.net->unwatch(conn->ch.sock);
	conn->is_watched = false;
}

/* The loop cannot watch any more: from now on the connection is only read to its end. */
static void conn_hup(struct mc_rpc_conn *conn, int rc)
{
	conn_unwatch(conn);
	(void)pthread_mutex_lock(&conn->ch.lock);
	conn->is_hup = true;
	conn->is_in_armed = false;
	if (rc < 0)
		mc_chan_break(&conn->ch, rc);
	if (!conn->ch.is_receiving && !conn->is_lost)
		mc_rpc_conn_kick(conn);
	(void)pthread_mutex_unlock(&conn->ch.lock);
}

static void conn_rewatch(struct mc_rpc_conn *conn)
{
	uint32_t events;
	int rc;

	(void)pthread_mutex_lock(&conn->ch.lock);
	events = events_wanted(conn);
	(void)pthread_mutex_unlock(&conn->ch.lock);
	if (conn->is_watched)
		rc = conn->ch.net->rewatch(conn->ch.sock, events);
	else
		rc = conn->ch.net->watch(conn->ch.sock, conn->loop, events, &conn->sink);
	if (rc < 0)
		conn_hup(conn, rc);
	else
		conn->is_watched = true;
}

static void timer_update(struct mc_rpc_conn *conn)
{
	const struct mc_heap_node *first;
	uint64_t at;

	(void)pthread_mutex_lock(&conn->ch.lock);
	first = mc_heap_peek(&conn->deadlines);
	/* A timer that is early is left alone: mostly the call before this one has just ended. */
	at = first ? mc_min(first->key, conn->timer_at_ns) : MC_TIME_NEVER;
	if (first || !conn->timer.is_set)
		conn->timer_at_ns = at;
	(void)pthread_mutex_unlock(&conn->ch.lock);
	if (first && mc_loop_timer_set(conn->loop, &conn->timer, at) < 0)
		conn_hup(conn, -MC_E_LIMIT);
}

static void conn_on_time(struct mc_timer *t)
{
	struct mc_rpc_conn *conn = mc_container_of(t, struct mc_rpc_conn, timer);
	const uint64_t now = mc_loop_now(conn->loop);

	(void)pthread_mutex_lock(&conn->ch.lock);
	conn->timer_at_ns = MC_TIME_NEVER;
	for (;;) {
		struct mc_heap_node *first = mc_heap_peek(&conn->deadlines);
		struct mc_rpc_call *call;

		if (!first || first->key > now)
			break;
		call = mc_container_of(first, struct mc_rpc_call, deadline_node);
		mc_heap_del(&conn->deadlines, first);
		call = mc_rpc_call_abandon(conn, call->id, -MC_E_TIMEDOUT);
		if (!call)
			continue;
		(void)pthread_mutex_unlock(&conn->ch.lock);
		mc_rpc_call_end(call, -MC_E_TIMEDOUT, NULL);
		(void)pthread_mutex_lock(&conn->ch.lock);
	}
	(void)pthread_mutex_unlock(&conn->ch.lock);
	mc_rpc_conn_flush(conn);
	timer_update(conn);
}

/* Input, or the end: read unless a caller does. */
static void conn_readable(struct mc_rpc_conn *conn, bool is_end)
{
	bool is_ours;

	(void)pthread_mutex_lock(&conn->ch.lock);
	is_ours = mc_chan_take(&conn->ch);
	(void)pthread_mutex_unlock(&conn->ch.lock);
	if (!is_ours) {
		if (is_end) /* would be told again and again; who has the seat will see it, too */
			conn_hup(conn, 0);
		else
			conn_rewatch(conn);
		return;
	}
	while (mc_rpc_conn_progress(conn, 0) > 0 && is_end)
		;
	mc_rpc_conn_leave(conn);
	mc_rpc_conn_flush(conn);
}

static void conn_on_ready(struct mc_net_sink *sink, uint32_t events)
{
	struct mc_rpc_conn *conn = mc_container_of(sink, struct mc_rpc_conn, sink);

	if (events & (EPOLLOUT | EPOLLERR | EPOLLHUP)) {
		(void)mc_chan_writable(&conn->ch);
		conn_rewatch(conn);
		mc_rpc_conn_flush(conn); /* tells who waits for room */
	}
	if (conn->is_watched && events & (EPOLLIN | EVENTS_END))
		conn_readable(conn, events & EVENTS_END);
}

static void conn_down(struct mc_rpc_conn *conn)
{
	bool is_told = conn->is_down_told;

	conn_unwatch(conn);
	mc_loop_timer_cancel(conn->loop, &conn->timer);
	conn->is_down_told = true;
	if (!is_told && conn->opts.on_down)
		conn->opts.on_down(conn->opts.user, conn->ch.rc); /* conn may be gone */
}

static void conn_free(struct mc_rpc_conn *conn)
{
	mc_chan_fini(&conn->ch);
	mc_heap_fini(&conn->deadlines);
	mc_free(conn->slots);
	mc_free(conn);
}

static void conn_run(struct mc_task *t)
{
	struct mc_rpc_conn *conn = mc_container_of(t, struct mc_rpc_conn, task);
	bool is_freed, is_closing, is_lost, is_hup;

	(void)pthread_mutex_lock(&conn->ch.lock);
	conn->is_task_posted = false;
	is_freed = conn->is_freed_by_task;
	is_closing = conn->is_closing;
	is_lost = conn->is_lost;
	is_hup = conn->is_hup;
	(void)pthread_mutex_unlock(&conn->ch.lock);
	if (is_freed) {
		conn_free(conn);
	} else if (is_closing) {
		return;
	} else if (is_lost) {
		conn_down(conn);
	} else if (is_hup) {
		conn_readable(conn, true);
	} else {
		conn_rewatch(conn);
		timer_update(conn);
	}
}

/* ---- life ---- */

static uint32_t or_default(uint32_t value, uint32_t preset, uint32_t max)
{
	return value ? mc_min(value, max) : preset;
}

static int conn_init(struct mc_rpc_conn *conn, struct mc_net_sock *sock)
{
	const struct mc_rpc_conn_opts *o = &conn->opts;
	struct mc_frame_hello hello = {.frame_max = o->frame_max, .calls_max = o->calls_max};
	int rc = mc_chan_init(&conn->ch, conn->env.net, sock, mc_rpc_conn_frame, o->frame_max,
			      o->queue_max);

	if (rc < 0)
		return rc;
	conn->slots = mc_calloc(o->calls_max, sizeof(*conn->slots));
	if (!conn->slots)
		return -MC_E_NOMEM;
	for (uint32_t i = 0; i < o->calls_max; i++)
		conn->slots[i] = (struct mc_rpc_slot){.gen = 1, .next_free = i + 1};
	rc = mc_heap_reserve(&conn->deadlines, o->calls_max);
	if (rc < 0)
		return rc;
	rc = conn->env.net->tune(sock, o->user_timeout_ms);
	if (rc < 0)
		return rc;
	conn->ch.is_blocked = true; /* until it is connected, that is writable */
	return mc_chan_put_hello(&conn->ch, &hello);
}

int mc_rpc_conn_open(const struct mc_env *env, struct mc_loop *loop, const struct mc_addr *to,
		     const struct mc_rpc_conn_opts *opts, struct mc_rpc_conn **ret_conn)
{
	struct mc_rpc_conn *conn = mc_calloc(1, sizeof(*conn));
	struct mc_net_sock *sock;
	int rc;

	if (!conn)
		return -MC_E_NOMEM;
	if (opts)
		conn->opts = *opts;
	conn->opts.calls_max = or_default(conn->opts.calls_max, CALLS_DEFAULT, MC_RPC_CALLS_MAX);
	conn->opts.frame_max = or_default(conn->opts.frame_max, FRAME_DEFAULT, MC_RPC_FRAME_MAX);
	conn->opts.queue_max = or_default(conn->opts.queue_max, QUEUE_DEFAULT, MC_RPC_QUEUE_MAX);
	conn->env = *env;
	conn->loop = loop;
	conn->fork_gen = mc_fork_gen();
	conn->calls_limit = mc_min(conn->opts.calls_max, (uint32_t)MC_RPC_CALLS_START);
	conn->frame_limit = conn->opts.frame_max;
	conn->timer_at_ns = MC_TIME_NEVER;
	conn->task.run = conn_run;
	conn->timer.on_time = conn_on_time;
	conn->sink.on_ready = conn_on_ready;
	mc_list_init(&conn->waiters);
	mc_list_init(&conn->room_waiters);
	mc_heap_init(&conn->deadlines, conn->opts.calls_max);
	rc = env->net->connect(env->net, to, conn->opts.from, &sock);
	conn->opts.from = NULL;
	if (rc == 0)
		rc = conn_init(conn, sock);
	if (rc < 0) {
		conn_free(conn);
		return rc;
	}
	(void)pthread_mutex_lock(&conn->ch.lock);
	mc_rpc_conn_kick(conn);
	(void)pthread_mutex_unlock(&conn->ch.lock);
	*ret_conn = conn;
	return 0;
}

int mc_rpc_conn_status(struct mc_rpc_conn *conn)
{
	int rc;

	if (mc_fork_is_child(conn->fork_gen))
		return -MC_E_FORKED;
	(void)pthread_mutex_lock(&conn->ch.lock);
	rc = conn->ch.rc;
	(void)pthread_mutex_unlock(&conn->ch.lock);
	return rc;
}

/* On the loop: after this it does not touch the connection, except to free it. */
static void conn_detach(void *arg)
{
	struct mc_rpc_conn *conn = arg;

	conn_unwatch(conn);
	mc_loop_timer_cancel(conn->loop, &conn->timer);
}

/* Whoever is in the connection is woken by the shutdown and ends all calls; else we do. */
static void conn_drain(struct mc_rpc_conn *conn)
{
	bool is_ours, is_lost;
	uint32_t users;

	(void)atomic_fetch_or_explicit(&conn->users, MC_RPC_DRAINED, memory_order_relaxed);
	do {
		(void)pthread_mutex_lock(&conn->ch.lock);
		is_lost = conn->is_lost;
		is_ours = !is_lost && mc_chan_take(&conn->ch);
		(void)pthread_mutex_unlock(&conn->ch.lock);
		if (is_ours) {
			mc_rpc_conn_lost(conn, -MC_E_CLOSED);
			mc_rpc_conn_leave(conn);
		}
		/* acquire: pairs with the release when a user leaves */
		users = atomic_load_explicit(&conn->users, memory_order_acquire);
		if (users != MC_RPC_DRAINED &&
		    mc_futex_wait(&conn->users, users, MC_TIME_NEVER) < 0)
			continue; /* a signal */
	} while (users != MC_RPC_DRAINED || (!is_lost && !is_ours));
}

void mc_rpc_conn_close(struct mc_rpc_conn *conn)
{
	struct mc_frame bye = {.type = MC_FRAME_GOODBYE};
	bool is_task_left;

	if (!conn)
		return;
	if (mc_fork_is_child(conn->fork_gen)) {
		conn_free(conn);
		return;
	}
	(void)pthread_mutex_lock(&conn->ch.lock);
	mc_chan_put_short(&conn->ch, &bye);
	(void)pthread_mutex_unlock(&conn->ch.lock);
	(void)mc_chan_flush(&conn->ch); /* as far as it goes without waiting */
	(void)pthread_mutex_lock(&conn->ch.lock);
	conn->is_closing = true;
	mc_chan_break(&conn->ch, -MC_E_CLOSED);
	(void)pthread_mutex_unlock(&conn->ch.lock);
	mc_loop_call(conn->loop, conn_detach, conn);
	conn_drain(conn);
	(void)pthread_mutex_lock(&conn->ch.lock);
	/* Only when we are on the loop: else the call above came after the task. */
	is_task_left = conn->is_task_posted;
	conn->is_freed_by_task = is_task_left;
	(void)pthread_mutex_unlock(&conn->ch.lock);
	if (!is_task_left)
		conn_free(conn);
}
