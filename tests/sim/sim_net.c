/*
 * sim_net.c: connections as pairs of queues of pieces, each with the time at which it arrives.
 */
#include "sim/sim_net.h"

#include <poll.h>
#include <string.h>

#include "base/err.h"
#include "base/mem.h"

#define SPINS_MAX 1000000u /* rounds without time passing: somebody ignores an event */

struct piece {
	struct mc_list link;
	uint64_t due_ns;
	size_t len, at;
	uint8_t data[];
};

struct sim_sock {
	struct mc_net_sock sock;
	struct sim *sim;
	struct mc_list link; /* in sim->socks */
	bool is_closed;	     /* freed after the sweep */

	/* a listener */
	bool is_listener;
	struct mc_addr at;
	struct mc_list backlog; /* socks by accept_link */

	/* a connection */
	struct mc_list accept_link;
	struct sim_sock *peer; /* NULL: nobody, or closed */
	uint64_t connect_due_ns;
	bool is_refused;
	struct mc_list pieces; /* incoming */
	size_t incoming;
	uint64_t last_due_ns;
	bool has_fin, has_reset; /* the peer's end, when all pieces are read; no pieces any more */
	uint64_t fin_due_ns, reset_due_ns;

	bool is_watched;
	uint32_t events;
	struct mc_net_sink *sink;
};

static struct sim_sock *sock_of(const struct mc_net_sock *sock)
{
	return mc_container_of(sock, struct sim_sock, sock);
}

static struct sim *sim_of(const struct mc_net *net)
{
	return mc_container_of(net, struct sim, net);
}

static uint64_t sim_clk_now(const struct mc_clock *clk)
{
	return mc_container_of(clk, struct sim, clk)->now_ns;
}

static uint64_t due(struct sim *sim, uint64_t not_before_ns)
{
	const struct sim_conf *c = &sim->conf;
	uint64_t at = sim->now_ns + c->delay_min_ns +
		      mc_rand_below(&sim->rand, c->delay_max_ns - c->delay_min_ns + 1);

	return mc_max(at, not_before_ns);
}

static uint32_t ready(const struct sim_sock *s)
{
	const uint64_t now = s->sim->now_ns;
	const struct piece *first = mc_list_first(&s->pieces, struct piece, link);
	uint32_t events = 0;

	if (s->is_listener) {
		const struct sim_sock *c = mc_list_first(&s->backlog, struct sim_sock, accept_link);

		return c && c->connect_due_ns <= now ? EPOLLIN : 0;
	}
	if (s->connect_due_ns > now)
		return 0;
	if (s->is_refused || (s->has_reset && s->reset_due_ns <= now))
		return EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLHUP | EPOLLERR;
	if (first && first->due_ns <= now && first->len > first->at)
		events |= EPOLLIN;
	if (s->has_fin && s->fin_due_ns <= now && !(first && first->len == first->at))
		events |= EPOLLIN | EPOLLRDHUP; /* not when the stream was cut */
	if (!s->peer || s->peer->incoming < s->sim->conf.window)
		events |= EPOLLOUT;
	return events;
}

/* The next time at which ready() may change by itself. */
static uint64_t next_change(const struct sim_sock *s)
{
	const uint64_t now = s->sim->now_ns;
	const struct piece *first = mc_list_first(&s->pieces, struct piece, link);
	const struct sim_sock *c =
	    s->is_listener ? mc_list_first(&s->backlog, struct sim_sock, accept_link) : s;
	uint64_t at = MC_TIME_NEVER;

	if (c && c->connect_due_ns > now)
		at = c->connect_due_ns;
	if (first && first->due_ns > now)
		at = mc_min(at, first->due_ns);
	if (s->has_fin && s->fin_due_ns > now)
		at = mc_min(at, s->fin_due_ns);
	if (s->has_reset && s->reset_due_ns > now)
		at = mc_min(at, s->reset_due_ns);
	return at;
}

static void pieces_drop(struct sim_sock *s)
{
	struct mc_list *node;

	while ((node = mc_list_pop_front(&s->pieces)))
		mc_free(mc_list_entry(node, struct piece, link));
	s->incoming = 0;
}

static struct sim_sock *sock_new(struct sim *sim)
{
	struct sim_sock *s = mc_calloc(1, sizeof(*s));

	if (!s)
		return NULL;
	s->sock.net = &sim->net;
	s->sim = sim;
	mc_list_init(&s->backlog);
	mc_list_init(&s->accept_link);
	mc_list_init(&s->pieces);
	mc_list_push_back(&sim->socks, &s->link);
	return s;
}

static void sock_free(struct sim_sock *s)
{
	pieces_drop(s);
	mc_list_del(&s->accept_link);
	mc_list_del(&s->link);
	mc_free(s);
}

/* ---- the vtable ---- */

static int sim_connect(const struct mc_net *net, const struct mc_addr *to,
		       const struct mc_addr *from, struct mc_net_sock **ret_sock)
{
	struct sim *sim = sim_of(net);
	struct sim_sock *listener = NULL, *it, *a = sock_new(sim), *b;

	(void)from;
	if (!a)
		return -MC_E_NOMEM;
	a->connect_due_ns = due(sim, 0);
	mc_list_each (it, &sim->socks, link) {
		if (it->is_listener && !it->is_closed && mc_addr_is_equal(&it->at, to))
			listener = it;
	}
	a->is_refused = !listener;
	if (listener) {
		b = sock_new(sim);
		if (!b) {
			sock_free(a);
			return -MC_E_NOMEM;
		}
		b->connect_due_ns = a->connect_due_ns;
		a->peer = b;
		b->peer = a;
		mc_list_push_back(&listener->backlog, &b->accept_link);
	}
	*ret_sock = &a->sock;
	return 0;
}

static int sim_connect_result(struct mc_net_sock *sock)
{
	const struct sim_sock *s = sock_of(sock);

	if (s->is_refused)
		return -MC_E_REFUSED;
	return s->has_reset && s->reset_due_ns <= s->sim->now_ns ? -MC_E_RESET : 0;
}

static int sim_listen(const struct mc_net *net, const struct mc_addr *at, int backlog,
		      struct mc_net_sock **ret_sock, struct mc_addr *ret_bound)
{
	struct sim_sock *s = sock_new(sim_of(net));

	(void)backlog;
	if (!s)
		return -MC_E_NOMEM;
	s->is_listener = true;
	s->at = *at;
	if (ret_bound)
		*ret_bound = *at;
	*ret_sock = &s->sock;
	return 0;
}

static int sim_accept(struct mc_net_sock *listener, struct mc_net_sock **ret_sock,
		      struct mc_addr *ret_peer)
{
	struct sim_sock *l = sock_of(listener);

	if (!(ready(l) & EPOLLIN))
		return -MC_E_AGAIN;
	*ret_sock =
	    &mc_list_entry(mc_list_pop_front(&l->backlog), struct sim_sock, accept_link)->sock;
	*ret_peer = l->at;
	return 0;
}

static int sim_adopt(const struct mc_net *net, int fd, struct mc_net_sock **ret_sock)
{
	(void)net;
	(void)fd;
	(void)ret_sock;
	return -MC_E_UNSUPPORTED;
}

static void reset_at(struct sim_sock *s, uint64_t at_ns)
{
	if (s->has_reset && s->reset_due_ns <= at_ns)
		return;
	s->has_reset = true;
	s->reset_due_ns = at_ns;
}

static ssize_t sim_send(struct mc_net_sock *sock, const struct iovec *iov, int n, const int *fds,
			unsigned nfds)
{
	struct sim_sock *s = sock_of(sock), *peer = s->peer;
	struct sim *sim = s->sim;
	uint32_t events = ready(s);
	size_t len = mc_min(iov->iov_len, (size_t)sim->conf.chunk_max);
	struct piece *p;

	(void)n;
	(void)fds;
	if (nfds)
		return -MC_E_UNSUPPORTED;
	if (events & EPOLLERR || (events && !peer))
		return -MC_E_RESET;
	if (!(events & EPOLLOUT))
		return -MC_E_AGAIN;
	len = mc_min(len, sim->conf.window - peer->incoming);
	p = mc_calloc(1, sizeof(*p) + len);
	if (!p)
		return -MC_E_RESET;
	memcpy(p->data, iov->iov_base, len);
	p->len = peer->has_reset ? 0 : len; /* nothing arrives behind the cut */
	p->due_ns = peer->last_due_ns = due(sim, peer->last_due_ns);
	mc_list_push_back(&peer->pieces, &p->link);
	peer->incoming += len;
	if (mc_rand_below(&sim->rand, 1000000) < sim->conf.resets_ppm) {
		p->len -= mc_rand_below(&sim->rand, p->len + 1);
		sim->resets++;
		reset_at(peer, p->due_ns + 1);
		reset_at(s, due(sim, p->due_ns + 1));
	}
	return (ssize_t)len;
}

static ssize_t sim_recv(struct mc_net_sock *sock, void *buf, size_t len, int *fds,
			unsigned *ret_nfds)
{
	struct sim_sock *s = sock_of(sock);
	struct piece *p = mc_list_first(&s->pieces, struct piece, link);
	const uint64_t now = s->sim->now_ns;

	(void)fds;
	*ret_nfds = 0;
	if (s->is_refused || (s->has_reset && s->reset_due_ns <= now))
		return s->connect_due_ns <= now ? -MC_E_RESET : -MC_E_AGAIN;
	if (!p)
		return s->has_fin && s->fin_due_ns <= now ? 0 : -MC_E_AGAIN;
	if (p->due_ns > now)
		return -MC_E_AGAIN;
	len = mc_min(len, (size_t)s->sim->conf.chunk_max);
	len = mc_min(len, p->len - p->at);
	if (len == 0)
		return -MC_E_AGAIN; /* cut: the reset follows */
	memcpy(buf, p->data + p->at, len);
	p->at += len;
	s->incoming -= len;
	if (p->at == p->len) {
		mc_list_del(&p->link);
		mc_free(p);
	}
	return (ssize_t)len;
}

static void fin_send(struct sim_sock *s)
{
	struct sim_sock *peer = s->peer;

	if (!peer || peer->has_fin)
		return;
	peer->has_fin = true;
	peer->fin_due_ns = due(s->sim, peer->last_due_ns);
}

static void sim_shutdown(struct mc_net_sock *sock)
{
	struct sim_sock *s = sock_of(sock);

	fin_send(s);
	pieces_drop(s);
	s->has_fin = true;
	s->fin_due_ns = s->sim->now_ns;
}

static void sim_close(struct mc_net_sock *sock)
{
	struct sim_sock *s = sock_of(sock), *c;

	mc_assert(!s->is_watched && !s->is_closed);
	fin_send(s);
	if (s->peer)
		s->peer->peer = NULL;
	mc_list_each (c, &s->backlog, accept_link) {
		mc_list_del(&c->accept_link);
		if (c->peer) {
			reset_at(c->peer, s->sim->now_ns);
			c->peer->peer = NULL;
		}
		c->is_closed = true;
	}
	s->is_closed = true;
}

static int sim_watch(struct mc_net_sock *sock, struct mc_loop *loop, uint32_t events,
		     struct mc_net_sink *sink)
{
	struct sim_sock *s = sock_of(sock);

	(void)loop;
	mc_assert(!s->is_watched);
	s->is_watched = true;
	s->events = events;
	s->sink = sink;
	return 0;
}

static int sim_rewatch(struct mc_net_sock *sock, uint32_t events)
{
	sock_of(sock)->events = events;
	return 0;
}

static void sim_unwatch(struct mc_net_sock *sock)
{
	sock_of(sock)->is_watched = false;
}

static int sim_wait(struct mc_net_sock *sock, short events, uint64_t deadline_ns)
{
	struct sim_sock *s = sock_of(sock);
	uint32_t mask = EPOLLERR | EPOLLHUP;

	mask |= events & POLLIN ? EPOLLIN : 0;
	mask |= events & POLLOUT ? EPOLLOUT : 0;
	while (!(ready(s) & mask)) {
		if (s->sim->now_ns >= deadline_ns)
			return -MC_E_TIMEDOUT;
		if (!sim_step(s->sim, deadline_ns))
			mc_assert(s->sim->now_ns >= deadline_ns); /* else: waits for ever */
	}
	return 0;
}

static ssize_t sim_recv_wait(struct mc_net_sock *sock, void *buf, size_t len, int *fds,
			     unsigned *ret_nfds, uint64_t deadline_ns)
{
	*ret_nfds = 0;
	if (sim_wait(sock, POLLIN, deadline_ns) < 0)
		return -MC_E_AGAIN;
	return sim_recv(sock, buf, len, fds, ret_nfds);
}

static int sim_fd(const struct mc_net_sock *sock)
{
	(void)sock;
	return -1;
}

static int sim_tune(struct mc_net_sock *sock, uint32_t user_timeout_ms)
{
	(void)sock;
	(void)user_timeout_ms;
	return 0;
}

/* ---- the world ---- */

void sim_init(struct sim *sim, uint64_t seed, const struct sim_conf *conf)
{
	*sim = (struct sim){
	    .clk = {.now = sim_clk_now},
	    .net = {.connect = sim_connect,
		    .connect_result = sim_connect_result,
		    .listen = sim_listen,
		    .accept = sim_accept,
		    .adopt = sim_adopt,
		    .send = sim_send,
		    .recv = sim_recv,
		    .recv_wait = sim_recv_wait,
		    .shutdown = sim_shutdown,
		    .close = sim_close,
		    .watch = sim_watch,
		    .rewatch = sim_rewatch,
		    .unwatch = sim_unwatch,
		    .wait = sim_wait,
		    .fd = sim_fd,
		    .tune = sim_tune},
	    .conf = *conf,
	    .now_ns = MC_NS_PER_S,
	};
	sim->env = (struct mc_env){.clk = &sim->clk, .net = &sim->net};
	mc_rand_seed(&sim->rand, seed);
	mc_list_init(&sim->socks);
}

static void bury(struct sim *sim)
{
	struct sim_sock *s;

	mc_list_each (s, &sim->socks, link) {
		if (s->is_closed)
			sock_free(s);
	}
}

void sim_fini(struct sim *sim)
{
	bury(sim);
	mc_assert(mc_list_is_empty(&sim->socks));
}

void sim_add_loop(struct sim *sim, struct mc_loop *loop)
{
	mc_assert(sim->nloops < SIM_LOOPS_MAX);
	sim->loops[sim->nloops++] = loop;
}

/* Tell the watchers. @return true: somebody was told */
static bool sweep(struct sim *sim)
{
	bool was_sweeping = sim->is_sweeping, is_told = false;
	struct sim_sock *s;

	sim->is_sweeping = true;
	/* Nothing is freed while anybody sweeps, so the next one stays valid. */
	mc_list_each (s, &sim->socks, link) {
		uint32_t events = ready(s) & (s->events | EPOLLERR | EPOLLHUP);

		if (!s->is_watched || s->is_closed || !events)
			continue;
		s->sink->on_ready(s->sink, events);
		is_told = true;
	}
	sim->is_sweeping = was_sweeping;
	if (!was_sweeping)
		bury(sim);
	return is_told;
}

bool sim_step(struct sim *sim, uint64_t until_ns)
{
	uint64_t next = MC_TIME_NEVER;
	struct sim_sock *s;
	bool is_busy = false;

	for (unsigned i = 0; i < sim->nloops; i++)
		is_busy |= mc_loop_step(sim->loops[i], 0) > 0;
	is_busy |= sweep(sim);
	if (is_busy) {
		mc_assert(++sim->rounds_at_now < SPINS_MAX);
		return true;
	}
	mc_list_each (s, &sim->socks, link) {
		uint64_t at = s->is_closed ? MC_TIME_NEVER : next_change(s);

		next = mc_min(next, at);
	}
	for (unsigned i = 0; i < sim->nloops; i++) {
		uint64_t at = mc_loop_next_ns(sim->loops[i]);

		next = mc_min(next, at);
	}
	sim->rounds_at_now = 0;
	if (next > until_ns) {
		if (until_ns != MC_TIME_NEVER)
			sim->now_ns = mc_max(sim->now_ns, until_ns);
		return false;
	}
	sim->now_ns = mc_max(sim->now_ns, next);
	return true;
}

void sim_run(struct sim *sim, uint64_t until_ns)
{
	while (sim->now_ns < until_ns && sim_step(sim, until_ns))
		;
}

void sim_reset_all(struct sim *sim)
{
	struct sim_sock *s;

	mc_list_each (s, &sim->socks, link) {
		if (!s->is_listener && !s->is_closed)
			reset_at(s, sim->now_ns);
	}
}
