/*
 * server.c: the server: listening, its connections, its life.
 */
#include <stdlib.h>
#include <string.h>

#include "base/fork.h"
#include "base/log.h"
#include "base/mem.h"
#include "rpc/peer.h"

#define CONNS_DEFAULT 1024u
#define CALLS_DEFAULT 1024u
#define FRAME_DEFAULT (16u << 20)
#define QUEUE_DEFAULT (32u << 20)
#define HELLO_MS_DEFAULT 10000u
#define BACKLOG 1024
#define ACCEPT_BATCH 64
#define ACCEPT_PAUSE_NS (100 * MC_NS_PER_MS) /* after running out of descriptors */

/* ---- polling ---- */

void mc_rpc_server_busy(struct mc_rpc_server *server)
{
	if (server->idle_since_ns)
		mc_spin_note(&server->spin, mc_loop_now(server->loop),
			     mc_loop_now(server->loop) - server->idle_since_ns, server->has_polled);
	server->idle_since_ns = 0;
}

/* Go on polling for a while after the last input, for as long as that pays. */
static uint64_t server_poll(struct mc_idler *id, uint64_t now_ns)
{
	struct mc_rpc_server *server = mc_container_of(id, struct mc_rpc_server, idler);
	uint64_t idle_ns;

	if (!server->idle_since_ns) {
		server->idle_since_ns = now_ns;
		server->spin_budget_ns = mc_spin_budget(&server->spin, now_ns);
		if (server->spin_budget_ns && !server->has_spin_seat)
			server->has_spin_seat = mc_spin_enter(now_ns);
		server->has_polled = server->spin_budget_ns && server->has_spin_seat;
		server->polled_ns = now_ns;
	}
	idle_ns = now_ns - server->idle_since_ns;
	if (server->has_spin_seat && idle_ns < server->spin_budget_ns &&
	    mc_spin_gap_ok(&server->spin, now_ns, now_ns - server->polled_ns)) {
		server->polled_ns = now_ns;
		return server->spin_budget_ns - idle_ns;
	}
	if (server->has_spin_seat)
		mc_spin_leave();
	server->has_spin_seat = false;
	return 0;
}

/* ---- listening ---- */

static void listener_unwatch(struct mc_rpc_listener *l)
{
	if (l->is_watched)
		l->sock->net->unwatch(l->sock);
	l->is_watched = false;
}

static bool has_room(const struct mc_rpc_server *server)
{
	return atomic_load_explicit(&server->stats.conns, memory_order_relaxed) <
	       server->opts.conns_max;
}

static void accept_pause(struct mc_rpc_server *server, bool is_timed)
{
	for (struct mc_rpc_listener *l = server->listeners; l; l = l->next)
		listener_unwatch(l);
	if (is_timed)
		(void)mc_loop_timer_set(server->loop, &server->accept_timer,
					mc_loop_now(server->loop) + ACCEPT_PAUSE_NS);
}

void mc_rpc_server_resume(struct mc_rpc_server *server)
{
	int rc = 0;

	if (!has_room(server) || server->accept_timer.is_set || server->is_closing)
		return;
	for (struct mc_rpc_listener *l = server->listeners; l && rc == 0; l = l->next) {
		if (l->is_watched)
			continue;
		rc = l->sock->net->watch(l->sock, server->loop, EPOLLIN, &l->sink);
		l->is_watched = rc == 0;
	}
	if (rc < 0) {
		mc_log_warn("rpc listener cannot be watched", "error=%s", mc_err_name(rc));
		accept_pause(server, true);
	}
}

static void accept_on_time(struct mc_timer *t)
{
	mc_rpc_server_resume(mc_container_of(t, struct mc_rpc_server, accept_timer));
}

static void listener_on_ready(struct mc_net_sink *sink, uint32_t events)
{
	struct mc_rpc_listener *l = mc_container_of(sink, struct mc_rpc_listener, sink);
	struct mc_rpc_server *server = l->server;
	struct mc_net_sock *sock;
	struct mc_addr peer;
	int rc = 0;

	(void)events;
	for (int i = 0; i < ACCEPT_BATCH && rc == 0; i++) {
		if (!has_room(server)) {
			accept_pause(server, false); /* the rest waits in the backlog */
			return;
		}
		rc = l->sock->net->accept(l->sock, &sock, &peer);
		if (rc == 0)
			rc = mc_rpc_peer_add(server, sock, &peer, NULL, 0);
	}
	if (rc < 0 && rc != -MC_E_AGAIN) {
		atomic_fetch_add_explicit(&server->stats.refused, 1, memory_order_relaxed);
		mc_log_warn("rpc server cannot accept, pausing", "error=%s", mc_err_name(rc));
		accept_pause(server, true);
	}
}

struct listen_call {
	struct mc_rpc_server *server;
	const struct mc_addr *at;
	struct mc_addr *ret_bound;
	int rc;
};

static void server_listen(void *arg)
{
	struct listen_call *c = arg;
	const struct mc_net *net = c->server->env.net;
	struct mc_rpc_listener *l = mc_calloc(1, sizeof(*l));

	c->rc = -MC_E_NOMEM;
	if (!l)
		return;
	l->server = c->server;
	l->sink.on_ready = listener_on_ready;
	c->rc = net->listen(net, c->at, BACKLOG, &l->sock, c->ret_bound);
	if (c->rc < 0) {
		mc_free(l);
		return;
	}
	l->next = c->server->listeners;
	c->server->listeners = l;
	mc_rpc_server_resume(c->server);
}

int mc_rpc_server_listen(struct mc_rpc_server *server, const struct mc_addr *at,
			 struct mc_addr *ret_bound)
{
	struct listen_call c = {.server = server, .at = at, .ret_bound = ret_bound};

	if (mc_fork_is_child(server->fork_gen))
		return -MC_E_FORKED;
	mc_loop_call(server->loop, server_listen, &c);
	return c.rc;
}

int mc_rpc_server_adopt(struct mc_rpc_server *server, int fd, const void *first_bytes, size_t n)
{
	struct mc_addr peer = {.len = sizeof(peer.ss)};
	struct mc_net_sock *sock;
	int rc;

	if (mc_fork_is_child(server->fork_gen))
		return -MC_E_FORKED;
	mc_assert(mc_loop_is_self(server->loop));
	if (!has_room(server)) {
		atomic_fetch_add_explicit(&server->stats.refused, 1, memory_order_relaxed);
		return -MC_E_LIMIT;
	}
	if (getpeername(fd, &peer.sa, &peer.len) != 0)
		peer.len = 0; /* gone already: reading will say so */
	rc = server->env.net->adopt(server->env.net, fd, &sock);
	if (rc < 0)
		return rc;
	rc = mc_rpc_peer_add(server, sock, &peer, first_bytes, n);
	/* The descriptor is closed either way: the caller must not do it again. */
	if (rc < 0)
		mc_log_warn("rpc connection dropped", "error=%s", mc_err_name(rc));
	return 0;
}

/* ---- life ---- */

static int method_order(const void *a, const void *b)
{
	const struct mc_rpc_method *x = a, *y = b;

	return (x->method > y->method) - (x->method < y->method);
}

static int server_check(struct mc_rpc_server *server)
{
	struct mc_rpc_server_opts *o = &server->opts;

	o->conns_max = o->conns_max ? o->conns_max : CONNS_DEFAULT;
	o->calls_max = o->calls_max ? o->calls_max : CALLS_DEFAULT;
	o->frame_max = o->frame_max ? o->frame_max : FRAME_DEFAULT;
	o->queue_max = o->queue_max ? o->queue_max : QUEUE_DEFAULT;
	o->hello_ms = o->hello_ms ? o->hello_ms : HELLO_MS_DEFAULT;
	if (o->calls_max < MC_RPC_CALLS_START || o->calls_max > MC_RPC_CALLS_MAX ||
	    o->frame_max > MC_RPC_FRAME_MAX || o->queue_max > MC_RPC_QUEUE_MAX)
		return -MC_E_INVAL;
	server->methods = mc_calloc(o->nmethods, sizeof(*server->methods));
	if (!server->methods)
		return -MC_E_NOMEM;
	if (o->nmethods)
		memcpy(server->methods, o->methods, o->nmethods * sizeof(*server->methods));
	qsort(server->methods, o->nmethods, sizeof(*server->methods), method_order);
	for (unsigned i = 1; i < o->nmethods; i++) {
		if (server->methods[i].method == server->methods[i - 1].method)
			return -MC_E_INVAL;
	}
	return 0;
}

static void server_attach(void *arg)
{
	struct mc_rpc_server *server = arg;

	mc_loop_idler_add(server->loop, &server->idler);
}

static void server_free(struct mc_rpc_server *server)
{
	while (server->listeners) {
		struct mc_rpc_listener *l = server->listeners;

		server->listeners = l->next;
		l->is_watched = false;
		l->sock->net->close(l->sock);
		mc_free(l);
	}
	mc_free(server->methods);
	mc_free(server);
}

int mc_rpc_server_open(const struct mc_env *env, struct mc_loop *loop,
		       const struct mc_rpc_server_opts *opts, struct mc_rpc_server **ret_server)
{
	struct mc_rpc_server *server = mc_calloc(1, sizeof(*server));
	int rc;

	if (!server)
		return -MC_E_NOMEM;
	server->env = *env;
	server->loop = loop;
	server->opts = *opts;
	server->fork_gen = mc_fork_gen();
	server->accept_timer.on_time = accept_on_time;
	server->idler.poll = server_poll;
	mc_list_init(&server->peers);
	rc = server_check(server);
	if (rc < 0) {
		server_free(server);
		return rc;
	}
	server->opts.methods = server->methods;
	if (env->net->can_spin)
		mc_loop_call(loop, server_attach, server);
	*ret_server = server;
	return 0;
}

static void server_detach(void *arg)
{
	struct mc_rpc_server *server = arg;

	server->is_closing = true;
	mc_loop_timer_cancel(server->loop, &server->accept_timer);
	mc_loop_idler_del(server->loop, &server->idler);
	if (server->has_spin_seat)
		mc_spin_leave();
	for (struct mc_rpc_listener *l = server->listeners; l; l = l->next)
		listener_unwatch(l);
	while (!mc_list_is_empty(&server->peers))
		mc_rpc_peer_lose(mc_list_entry(server->peers.next, struct mc_rpc_peer, link),
				 -MC_E_CLOSED);
}

void mc_rpc_server_close(struct mc_rpc_server *server)
{
	if (!server)
		return;
	if (mc_fork_is_child(server->fork_gen)) {
		struct mc_list *node;

		while ((node = mc_list_pop_front(&server->peers)))
			mc_rpc_peer_forked(mc_list_entry(node, struct mc_rpc_peer, link));
	} else {
		mc_loop_call(server->loop, server_detach, server);
	}
	server_free(server);
}

void mc_rpc_server_stats(struct mc_rpc_server *server, struct mc_rpc_server_stats *ret_stats)
{
	*ret_stats = (struct mc_rpc_server_stats){
	    .accepted = atomic_load_explicit(&server->stats.accepted, memory_order_relaxed),
	    .refused = atomic_load_explicit(&server->stats.refused, memory_order_relaxed),
	    .lost = atomic_load_explicit(&server->stats.lost, memory_order_relaxed),
	    .calls = atomic_load_explicit(&server->stats.calls, memory_order_relaxed),
	    .bad_frames = atomic_load_explicit(&server->stats.bad_frames, memory_order_relaxed),
	    .conns = atomic_load_explicit(&server->stats.conns, memory_order_relaxed),
	};
}
