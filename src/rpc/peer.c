/*
 * peer.c: one connection at the server: frames in, requests, answers.
 */
#include "rpc/peer.h"

#include <string.h>

#include "base/fork.h"
#include "base/log.h"
#include "base/mem.h"

#define EVENTS_END (EPOLLRDHUP | EPOLLHUP | EPOLLERR)

static struct mc_rpc_req_priv *priv_of(struct mc_rpc_req *req)
{
	return mc_container_of(req, struct mc_rpc_req_priv, req);
}

static void stat_add(_Atomic uint64_t *n)
{
	atomic_fetch_add_explicit(n, 1, memory_order_relaxed);
}

/* ---- life ---- */

static void peer_free(struct mc_rpc_peer *peer)
{
	while (peer->free_reqs) {
		struct mc_rpc_req_priv *q = peer->free_reqs;

		peer->free_reqs = q->next;
		mc_free(q);
	}
	mc_chan_fini(&peer->ch);
	mc_free(peer->buckets);
	mc_free(peer);
}

/* Lock held; unlocks. */
static void peer_put_unlock(struct mc_rpc_peer *peer)
{
	bool is_last = --peer->refs == 0;

	(void)pthread_mutex_unlock(&peer->ch.lock);
	if (is_last)
		peer_free(peer);
}

/* Lock held. */
static void peer_kick(struct mc_rpc_peer *peer)
{
	if (peer->is_task_posted || peer->is_lost)
		return;
	peer->is_task_posted = true;
	peer->refs++;
	mc_loop_post(peer->loop, &peer->task);
}

void mc_rpc_peer_forked(struct mc_rpc_peer *peer)
{
	if (peer->ncalls == 0) /* else a handler has requests that point to it */
		peer_free(peer);
}

/* ---- requests in flight ---- */

static struct mc_rpc_req_priv **bucket_of(struct mc_rpc_peer *peer, uint64_t id)
{
	return &peer->buckets[(id ^ id >> 12) & (peer->nbuckets - 1)];
}

/* Lock held. */
static struct mc_rpc_req_priv *req_find(struct mc_rpc_peer *peer, uint64_t id)
{
	struct mc_rpc_req_priv *q = *bucket_of(peer, id);

	while (q && q->id != id)
		q = q->next;
	return q;
}

/* Lock held. NULL: out of memory. */
static struct mc_rpc_req_priv *req_new(struct mc_rpc_peer *peer, const struct mc_frame *f)
{
	struct mc_rpc_req_priv **bucket = bucket_of(peer, f->call_id), *q = peer->free_reqs;

	if (q) {
		peer->free_reqs = q->next;
		memset(q, 0, sizeof(*q));
	} else {
		q = mc_calloc(1, sizeof(*q));
		if (!q)
			return NULL;
	}
	q->id = f->call_id;
	q->next = *bucket;
	*bucket = q;
	q->send_credit = q->recv_credit = MC_FRAME_CREDIT_START;
	q->req.method = f->method;
	q->req.is_stream = f->flags & MC_FRAME_STREAM;
	q->req.peer = peer;
	q->req.deadline_ns = MC_TIME_NEVER;
	mc_list_push_back(&peer->live, &q->link);
	peer->ncalls++;
	if (q->req.is_stream)
		peer->nstreams++;
	peer->refs++;
	return q;
}

/* Lock held: out of flight. Its memory stays until req_release(). */
static void req_remove(struct mc_rpc_peer *peer, struct mc_rpc_req_priv *q)
{
	struct mc_rpc_req_priv **at = bucket_of(peer, q->id);

	while (*at != q)
		at = &(*at)->next;
	*at = q->next;
	mc_list_del(&q->link);
	peer->ncalls--;
	if (q->req.is_stream)
		peer->nstreams--;
}

/* Lock held; unlocks. Ends what was answered, unless a callback still runs. */
static void req_release_unlock(struct mc_rpc_peer *peer, struct mc_rpc_req_priv *q)
{
	if (q->is_pinned) {
		q->is_answered = true;
		(void)pthread_mutex_unlock(&peer->ch.lock);
		return;
	}
	q->next = peer->free_reqs;
	peer->free_reqs = q;
	peer_put_unlock(peer);
}

/* Lock held; unlocks. After a callback on the loop. */
static void req_unpin_unlock(struct mc_rpc_peer *peer, struct mc_rpc_req_priv *q)
{
	q->is_pinned = false;
	if (q->is_answered)
		req_release_unlock(peer, q);
	else
		(void)pthread_mutex_unlock(&peer->ch.lock);
}

/* Nobody wants its answer any more: tell the handler, once. Lock held; unlocks. */
static void req_kill_unlock(struct mc_rpc_peer *peer, struct mc_rpc_req_priv *q)
{
	bool is_told = !q->is_cancel_told && q->req.on_cancel;

	q->is_dead = true;
	q->is_cancel_told = true;
	if (!is_told) {
		(void)pthread_mutex_unlock(&peer->ch.lock);
		return;
	}
	q->is_pinned = true;
	(void)pthread_mutex_unlock(&peer->ch.lock);
	q->req.on_cancel(&q->req);
	(void)pthread_mutex_lock(&peer->ch.lock);
	req_unpin_unlock(peer, q);
}

/* ---- frames ---- */

static int on_hello(struct mc_rpc_peer *peer, const struct mc_rpc_msg *msg)
{
	struct mc_frame_hello h;
	int rc = mc_frame_hello_decode(msg->data, msg->len, &h);

	if (rc < 0)
		return rc;
	peer->is_up = true;
	mc_loop_timer_cancel(peer->loop, &peer->hello_timer);
	if (peer->server->opts.on_up)
		peer->server->opts.on_up(peer, peer->server->opts.user);
	return 0;
}

static const struct mc_rpc_method *method_find(const struct mc_rpc_server *server, uint16_t number)
{
	size_t lo = 0, hi = server->opts.nmethods;

	while (lo < hi) {
		size_t mid = (lo + hi) / 2;

		if (server->methods[mid].method == number)
			return &server->methods[mid];
		if (server->methods[mid].method < number)
			lo = mid + 1;
		else
			hi = mid;
	}
	return NULL;
}

/* Lock held. */
static void answer_short(struct mc_rpc_peer *peer, uint64_t id, int status)
{
	struct mc_frame f = {.type = MC_FRAME_REPLY, .call_id = id, .status = status};

	mc_chan_put_short(&peer->ch, &f);
}

static int on_request(struct mc_rpc_peer *peer, const struct mc_frame *f,
		      const struct mc_rpc_msg *msg)
{
	struct mc_rpc_server *server = peer->server;
	const struct mc_rpc_method *m = method_find(server, f->method);
	struct mc_rpc_req_priv *q = NULL;
	int rc = 0;

	stat_add(&server->stats.calls);
	(void)pthread_mutex_lock(&peer->ch.lock);
	if (req_find(peer, f->call_id))
		rc = -MC_E_PROTO;
	else if (!m)
		answer_short(peer, f->call_id, -MC_E_UNSUPPORTED);
	else if (peer->ncalls >= server->opts.calls_max ||
		 (f->flags & MC_FRAME_STREAM && peer->nstreams >= MC_RPC_STREAMS_MAX))
		answer_short(peer, f->call_id, -MC_E_AGAIN); /* no client of ours does that */
	else if (!(q = req_new(peer, f)))
		answer_short(peer, f->call_id, -MC_E_NOMEM);
	else
		q->is_pinned = true;
	(void)pthread_mutex_unlock(&peer->ch.lock);
	if (q) {
		uint64_t now_ns = f->deadline_ms || m->latency ? mc_clock_now(server->env.clk) : 0;

		q->latency = m->latency;
		q->start_ns = now_ns;
		if (f->deadline_ms)
			q->req.deadline_ns = now_ns + f->deadline_ms * MC_NS_PER_MS;
		m->handle(&q->req, msg, m->user);
		(void)pthread_mutex_lock(&peer->ch.lock);
		req_unpin_unlock(peer, q);
	}
	return rc;
}

/* Account for a CHUNK or CREDIT. @return 1: tell the handler; 0: do not; -MC_E_PROTO */
static int stream_apply(struct mc_rpc_req_priv *q, const struct mc_frame *f)
{
	bool is_told;

	if (!q->req.is_stream)
		return -MC_E_PROTO;
	if (f->type == MC_FRAME_CHUNK) {
		if (q->is_recv_over || f->payload_len > q->recv_credit)
			return -MC_E_PROTO;
		q->recv_credit -= f->payload_len;
		q->is_recv_over = f->flags & MC_FRAME_LAST;
		return q->req.on_chunk && !q->is_dead;
	}
	if ((uint32_t)f->status > MC_FRAME_CREDIT_MAX - q->send_credit)
		return -MC_E_PROTO;
	q->send_credit += (uint32_t)f->status;
	is_told = q->is_room_wanted && q->req.on_room && !q->is_dead;
	q->is_room_wanted = false;
	return is_told;
}

static int on_stream(struct mc_rpc_peer *peer, const struct mc_frame *f,
		     const struct mc_rpc_msg *msg)
{
	struct mc_rpc_req_priv *q;
	int rc = 0;

	(void)pthread_mutex_lock(&peer->ch.lock);
	q = req_find(peer, f->call_id);
	if (q) /* else answered already */
		rc = stream_apply(q, f);
	if (rc == 1)
		q->is_pinned = true;
	(void)pthread_mutex_unlock(&peer->ch.lock);
	if (rc != 1)
		return rc;
	if (f->type == MC_FRAME_CHUNK)
		q->req.on_chunk(&q->req, msg->data, msg->len, f->flags & MC_FRAME_LAST);
	else
		q->req.on_room(&q->req);
	(void)pthread_mutex_lock(&peer->ch.lock);
	req_unpin_unlock(peer, q);
	return 0;
}

static void on_cancel(struct mc_rpc_peer *peer, const struct mc_frame *f)
{
	struct mc_rpc_req_priv *q;

	(void)pthread_mutex_lock(&peer->ch.lock);
	q = req_find(peer, f->call_id);
	if (q)
		req_kill_unlock(peer, q);
	else /* answered already */
		(void)pthread_mutex_unlock(&peer->ch.lock);
}

/* Too much waits to be sent: read on when half of it is gone. */
static bool is_full(struct mc_rpc_peer *peer)
{
	bool is;

	(void)pthread_mutex_lock(&peer->ch.lock);
	is = mc_chan_queued(&peer->ch) > peer->ch.queue_max / 2;
	(void)pthread_mutex_unlock(&peer->ch.lock);
	return is;
}

static int peer_frame(struct mc_chan *ch, const struct mc_frame *f, struct mc_rpc_msg *msg)
{
	struct mc_rpc_peer *peer = mc_container_of(ch, struct mc_rpc_peer, ch);
	int rc;

	switch (f->type) {
	case MC_FRAME_HELLO:
		return on_hello(peer, msg);
	case MC_FRAME_REQUEST:
		rc = on_request(peer, f, msg);
		return rc < 0 ? rc : is_full(peer);
	case MC_FRAME_CHUNK:
	case MC_FRAME_CREDIT:
		return on_stream(peer, f, msg);
	case MC_FRAME_CANCEL:
		on_cancel(peer, f);
		return 0;
	case MC_FRAME_GOODBYE:
		return -MC_E_CLOSED;
	default: /* only a server says these */
		return -MC_E_PROTO;
	}
}

/* ---- the loop ---- */

static void peer_unwatch(struct mc_rpc_peer *peer)
{
	if (peer->is_watched)
		peer->ch.net->unwatch(peer->ch.sock);
	peer->is_watched = false;
}

/* Tell every handler. Each round takes one that was not told; a callback may answer others. */
static void kill_all(struct mc_rpc_peer *peer)
{
	for (;;) {
		struct mc_rpc_req_priv *q, *found = NULL;

		(void)pthread_mutex_lock(&peer->ch.lock);
		mc_list_each (q, &peer->live, link) {
			if (!q->is_dead || !q->is_cancel_told) {
				found = q;
				break;
			}
		}
		if (!found) {
			(void)pthread_mutex_unlock(&peer->ch.lock);
			return;
		}
		req_kill_unlock(peer, found);
	}
}

void mc_rpc_peer_lose(struct mc_rpc_peer *peer, int rc)
{
	struct mc_rpc_server *server = peer->server;
	struct mc_frame bye = {.type = MC_FRAME_GOODBYE, .status = rc};

	if (!server) /* a callback of ours has led here again */
		return;
	peer_unwatch(peer);
	mc_loop_timer_cancel(peer->loop, &peer->hello_timer);
	if (rc == -MC_E_PROTO || rc == -MC_E_TOO_BIG || rc == -MC_E_VERSION || rc == -MC_E_AUTH) {
		stat_add(&server->stats.bad_frames);
		mc_log_debug("rpc peer broke the protocol", "error=%s", mc_err_name(rc));
	}
	/* Say why, as far as it goes without waiting. */
	(void)pthread_mutex_lock(&peer->ch.lock);
	mc_chan_put_short(&peer->ch, &bye);
	(void)pthread_mutex_unlock(&peer->ch.lock);
	(void)mc_chan_flush(&peer->ch);
	(void)pthread_mutex_lock(&peer->ch.lock);
	peer->is_lost = true;
	mc_chan_break(&peer->ch, rc);
	(void)pthread_mutex_unlock(&peer->ch.lock);
	peer->server = NULL;
	kill_all(peer);
	if (peer->is_up && server->opts.on_down)
		server->opts.on_down(peer, rc, server->opts.user);
	mc_list_del(&peer->link);
	stat_add(&server->stats.lost);
	atomic_fetch_sub_explicit(&server->stats.conns, 1, memory_order_relaxed);
	mc_rpc_server_resume(server);
	(void)pthread_mutex_lock(&peer->ch.lock);
	peer_put_unlock(peer);
}

/* Watch for what we can take or give now. */
static void peer_rewatch(struct mc_rpc_peer *peer)
{
	uint32_t events = EPOLLRDHUP;
	int rc;

	(void)pthread_mutex_lock(&peer->ch.lock);
	if (peer->ch.is_blocked)
		events |= EPOLLOUT;
	(void)pthread_mutex_unlock(&peer->ch.lock);
	if (!peer->ch.is_paused)
		events |= EPOLLIN;
	if (peer->is_watched)
		rc = peer->ch.net->rewatch(peer->ch.sock, events);
	else
		rc = peer->ch.net->watch(peer->ch.sock, peer->loop, events, &peer->sink);
	if (rc < 0) {
		mc_rpc_peer_lose(peer, rc);
		return;
	}
	peer->is_watched = true;
	peer->is_watched_plain = events == (EPOLLRDHUP | EPOLLIN);
}

/* Send what the batch has answered, and go on reading once there is room again. The peer may be
 * gone then. */
static void peer_settle(struct mc_rpc_peer *peer)
{
	bool is_blocked = mc_chan_flush(&peer->ch);
	int rc = 0;

	while (peer->ch.is_paused && !is_full(peer) && rc == 0) {
		peer->is_in_batch = true;
		rc = mc_chan_resume(&peer->ch);
		peer->is_in_batch = false;
		is_blocked = mc_chan_flush(&peer->ch);
	}
	if (rc < 0)
		mc_rpc_peer_lose(peer, rc);
	else if (is_blocked || peer->ch.is_paused || !peer->is_watched_plain)
		peer_rewatch(peer);
}

static void peer_readable(struct mc_rpc_peer *peer)
{
	ssize_t n;

	mc_rpc_server_busy(peer->server);
	peer->is_in_batch = true;
	n = mc_chan_recv(&peer->ch, 0);
	peer->is_in_batch = false;
	if (n < 0 && n != -MC_E_AGAIN)
		mc_rpc_peer_lose(peer, (int)n);
	else
		peer_settle(peer);
}

static void peer_on_ready(struct mc_net_sink *sink, uint32_t events)
{
	struct mc_rpc_peer *peer = mc_container_of(sink, struct mc_rpc_peer, sink);

	if (events & EPOLLOUT) {
		(void)mc_chan_writable(&peer->ch);
		peer_settle(peer);
	} else if (events & EPOLLIN) {
		peer_readable(peer);
	} else if (events & EVENTS_END) {
		/* Paused: there may be more to read, but nobody is left to be answered. */
		mc_rpc_peer_lose(peer, -MC_E_RESET);
	}
}

static void peer_run(struct mc_task *t)
{
	struct mc_rpc_peer *peer = mc_container_of(t, struct mc_rpc_peer, task);

	(void)pthread_mutex_lock(&peer->ch.lock);
	peer->is_task_posted = false;
	(void)pthread_mutex_unlock(&peer->ch.lock);
	if (peer->server)
		peer_settle(peer);
	(void)pthread_mutex_lock(&peer->ch.lock);
	peer_put_unlock(peer);
}

static void peer_on_time(struct mc_timer *t)
{
	mc_rpc_peer_lose(mc_container_of(t, struct mc_rpc_peer, hello_timer), -MC_E_TIMEDOUT);
}

static int peer_init(struct mc_rpc_peer *peer, struct mc_net_sock *sock)
{
	const struct mc_rpc_server_opts *o = &peer->server->opts;
	struct mc_frame_hello hello = {.frame_max = o->frame_max, .calls_max = o->calls_max};
	int rc = mc_chan_init(&peer->ch, peer->server->env.net, sock, peer_frame, o->frame_max,
			      o->queue_max);

	if (rc < 0)
		return rc;
	peer->ch.is_connected = true;
	for (peer->nbuckets = 64; peer->nbuckets < o->calls_max;)
		peer->nbuckets *= 2;
	peer->buckets = mc_calloc(peer->nbuckets, sizeof(struct mc_rpc_req_priv *));
	if (!peer->buckets)
		return -MC_E_NOMEM;
	/* Best effort: a socket that is over already says so when it is read. */
	(void)peer->ch.net->tune(sock, o->user_timeout_ms);
	return mc_chan_put_hello(&peer->ch, &hello);
}

int mc_rpc_peer_add(struct mc_rpc_server *server, struct mc_net_sock *sock,
		    const struct mc_addr *addr, const void *first_bytes, size_t n)
{
	struct mc_rpc_peer *peer = mc_calloc(1, sizeof(*peer));
	int rc;

	if (!peer) {
		server->env.net->close(sock);
		return -MC_E_NOMEM;
	}
	peer->server = server;
	peer->loop = server->loop;
	peer->addr = *addr;
	peer->fork_gen = server->fork_gen;
	peer->refs = 1;
	peer->task.run = peer_run;
	peer->sink.on_ready = peer_on_ready;
	peer->hello_timer.on_time = peer_on_time;
	mc_list_init(&peer->live);
	rc = peer_init(peer, sock);
	if (rc == 0)
		rc = mc_loop_timer_set(server->loop, &peer->hello_timer,
				       mc_clock_now(server->env.clk) +
					   server->opts.hello_ms * MC_NS_PER_MS);
	if (rc < 0) {
		peer_free(peer);
		return rc;
	}
	mc_list_push_back(&server->peers, &peer->link);
	stat_add(&server->stats.accepted);
	atomic_fetch_add_explicit(&server->stats.conns, 1, memory_order_relaxed);
	peer->is_in_batch = true;
	rc = mc_chan_feed(&peer->ch, first_bytes, n);
	peer->is_in_batch = false;
	if (rc < 0)
		mc_rpc_peer_lose(peer, rc);
	else
		peer_settle(peer);
	return 0;
}

/* ---- answers ---- */

/* Lock held. @return 0, or what the client was told instead */
static int reply_put(struct mc_rpc_peer *peer, uint64_t id, int status, const void *data,
		     size_t len, const int *fds, unsigned nfds)
{
	struct mc_frame f = {.type = MC_FRAME_REPLY,
			     .call_id = id,
			     .status = status,
			     .payload_len = (uint32_t)len,
			     .nfds = (uint16_t)nfds};
	int rc;

	if (len > MC_RPC_FRAME_MAX || nfds > MC_FRAME_FDS_MAX)
		rc = -MC_E_TOO_BIG;
	else
		rc = mc_chan_put(&peer->ch, &f, data, fds);
	if (rc < 0)
		answer_short(peer, id, rc);
	return rc;
}

int mc_rpc_reply(struct mc_rpc_req *req, int status, const void *data, size_t len, const int *fds,
		 unsigned nfds)
{
	struct mc_rpc_req_priv *q = priv_of(req);
	struct mc_rpc_peer *peer = req->peer;
	bool is_batch = false;
	int rc;

	if (mc_fork_is_child(peer->fork_gen))
		return -MC_E_FORKED;
	mc_assert(status <= 0);
	(void)pthread_mutex_lock(&peer->ch.lock);
	req_remove(peer, q);
	if (peer->is_lost) {
		rc = -MC_E_CLOSED;
	} else if (q->is_dead) {
		answer_short(peer, q->id, -MC_E_CANCELED);
		rc = -MC_E_CANCELED;
	} else {
		rc = reply_put(peer, q->id, status, data, len, fds, nfds);
	}
	if (!peer->is_lost)
		is_batch = mc_loop_is_self(peer->loop) && peer->is_in_batch;
	if (!peer->is_lost && q->latency)
		mc_hist_add(q->latency, mc_clock_now(peer->server->env.clk) - q->start_ns);
	if (!is_batch && rc != -MC_E_CLOSED) {
		bool is_blocked;

		(void)pthread_mutex_unlock(&peer->ch.lock);
		is_blocked = mc_chan_flush(&peer->ch);
		(void)pthread_mutex_lock(&peer->ch.lock);
		if (is_blocked)
			peer_kick(peer);
	}
	req_release_unlock(peer, q);
	return rc;
}

int mc_rpc_req_send(struct mc_rpc_req *req, const void *data, size_t len, bool is_last)
{
	struct mc_rpc_req_priv *q = priv_of(req);
	struct mc_rpc_peer *peer = req->peer;
	struct mc_frame f = {.type = MC_FRAME_CHUNK,
			     .flags = is_last ? MC_FRAME_LAST : 0,
			     .call_id = q->id,
			     .payload_len = (uint32_t)len};
	int rc = 0;

	if (mc_fork_is_child(peer->fork_gen))
		return -MC_E_FORKED;
	if (len > MC_FRAME_CREDIT_START)
		return -MC_E_TOO_BIG;
	(void)pthread_mutex_lock(&peer->ch.lock);
	q->is_room_wanted = len > q->send_credit;
	if (q->is_dead || peer->is_lost)
		rc = -MC_E_CANCELED;
	else if (!req->is_stream || q->is_send_over)
		rc = -MC_E_INVAL;
	else if (q->is_room_wanted)
		rc = -MC_E_AGAIN;
	else
		rc = mc_chan_put_stream(&peer->ch, &f, data);
	if (rc == 0) {
		q->send_credit -= (uint32_t)len;
		q->is_send_over = is_last;
		peer_kick(peer); /* the loop sends, several at once when they come fast */
	}
	(void)pthread_mutex_unlock(&peer->ch.lock);
	return rc;
}

int mc_rpc_req_credit(struct mc_rpc_req *req, uint32_t bytes)
{
	struct mc_rpc_req_priv *q = priv_of(req);
	struct mc_rpc_peer *peer = req->peer;
	struct mc_frame f = {.type = MC_FRAME_CREDIT, .call_id = q->id, .status = (int32_t)bytes};
	int rc = 0;

	if (mc_fork_is_child(peer->fork_gen))
		return -MC_E_FORKED;
	mc_assert(bytes > 0 && bytes <= MC_FRAME_CREDIT_MAX);
	(void)pthread_mutex_lock(&peer->ch.lock);
	if (q->is_dead || peer->is_lost) {
		rc = -MC_E_CANCELED;
	} else {
		mc_assert(q->recv_credit <= MC_FRAME_CREDIT_MAX - bytes);
		q->recv_credit += bytes;
		mc_chan_put_short(&peer->ch, &f);
		peer_kick(peer);
	}
	(void)pthread_mutex_unlock(&peer->ch.lock);
	return rc;
}

bool mc_rpc_req_is_dead(struct mc_rpc_req *req)
{
	struct mc_rpc_peer *peer = req->peer;
	bool is;

	if (mc_fork_is_child(peer->fork_gen))
		return true;
	(void)pthread_mutex_lock(&peer->ch.lock);
	is = priv_of(req)->is_dead || peer->is_lost;
	(void)pthread_mutex_unlock(&peer->ch.lock);
	return is;
}

void mc_rpc_peer_set_user(struct mc_rpc_peer *peer, void *user)
{
	peer->user = user;
}

void *mc_rpc_peer_user(const struct mc_rpc_peer *peer)
{
	return peer->user;
}

int mc_rpc_peer_fd(const struct mc_rpc_peer *peer)
{
	return peer->server ? peer->ch.net->fd(peer->ch.sock) : -1;
}

const struct mc_addr *mc_rpc_peer_addr(const struct mc_rpc_peer *peer)
{
	return &peer->addr;
}
