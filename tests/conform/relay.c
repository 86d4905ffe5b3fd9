/*
 * relay.c: one thread, poll(2), two rings a connection. Simple, not fast.
 */
#include "relay.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"
#include "base/rand.h"

#define CONNS_MAX 256u
#define TICK_MS 1

/* Bytes on their way in one direction. */
struct pipe_dir {
	uint8_t *buf;
	size_t cap, head, len;
	uint64_t sent, ready_ns;
	uint64_t flip_in; /* bytes that come before the one with another bit */
	bool is_eof;	  /* no more comes in */
	bool is_shut;	  /* told to the other side */
};

struct conn {
	int fd[2];		/* 0: who connected; 1: where it wanted to go */
	struct pipe_dir dir[2]; /* [i]: from fd[i] to fd[1 - i] */
	uint64_t reset_at;	/* bytes of dir[0]; 0: never */
};

struct relay {
	struct mc_addr to, addr;
	struct relay_opts opts;
	struct mc_rand rand;
	int listen_fd, wake_fd;
	pthread_t thread;
	bool has_thread;
	_Atomic bool is_closing, is_paused;
	struct conn *conns[CONNS_MAX];
	pthread_mutex_t lock; /* guards stats */
	struct relay_stats stats;
};

static void conn_free(struct conn *c)
{
	for (int i = 0; i < 2; i++) {
		mc_fd_close(&c->fd[i]);
		mc_free(c->dir[i].buf);
	}
	mc_free(c);
}

static void conn_accept(struct relay *r)
{
	struct conn *c;
	unsigned slot = 0;

	while (slot < CONNS_MAX && r->conns[slot])
		slot++;
	if (slot == CONNS_MAX)
		return;
	c = mc_calloc(1, sizeof(*c));
	if (!c)
		return;
	c->fd[0] = c->fd[1] = -1;
	for (int i = 0; i < 2; i++) {
		c->dir[i].cap = r->opts.buffer_bytes ? r->opts.buffer_bytes : 256u << 10;
		c->dir[i].buf = mc_calloc(1, c->dir[i].cap);
		if (r->opts.flip_bytes)
			c->dir[i].flip_in = mc_rand_below(&r->rand, r->opts.flip_bytes);
	}
	if (!c->dir[0].buf || !c->dir[1].buf || mc_sock_accept(r->listen_fd, &c->fd[0], NULL) < 0 ||
	    (!r->is_paused && mc_sock_connect(&r->to, NULL, &c->fd[1]) < 0)) {
		conn_free(c);
		return;
	}
	(void)mc_sock_nodelay(c->fd[0]);
	if (c->fd[1] >= 0)
		(void)mc_sock_nodelay(c->fd[1]);
	if (r->opts.reset_bytes)
		c->reset_at = 1 + mc_rand_below(&r->rand, r->opts.reset_bytes);
	r->conns[slot] = c;
	pthread_mutex_lock(&r->lock);
	r->stats.conns++;
	r->stats.open++;
	pthread_mutex_unlock(&r->lock);
}

static void flip(struct relay *r, struct pipe_dir *d, uint8_t *p, size_t n)
{
	size_t at = 0;
	unsigned flips = 0;

	while (n - at > d->flip_in) {
		at += (size_t)d->flip_in;
		p[at++] ^= (uint8_t)(1u << mc_rand_below(&r->rand, 8));
		d->flip_in = mc_rand_below(&r->rand, r->opts.flip_bytes);
		flips++;
	}
	d->flip_in -= n - at;
	pthread_mutex_lock(&r->lock);
	r->stats.flips += flips;
	pthread_mutex_unlock(&r->lock);
}

/* Take what has come. */
static void dir_in(struct relay *r, struct pipe_dir *d, int fd)
{
	size_t tail = (d->head + d->len) % d->cap;
	size_t room = mc_min(d->cap - d->len, d->cap - tail);
	ssize_t n;

	if (d->is_eof || room == 0)
		return;
	n = recv(fd, d->buf + tail, room, MSG_DONTWAIT);
	if (n > 0 && r->opts.flip_bytes)
		flip(r, d, d->buf + tail, (size_t)n);
	if (n > 0)
		d->len += (size_t)n;
	else if (n == 0 || (errno != EAGAIN && errno != EINTR))
		d->is_eof = true; /* whatever came before still goes out */
}

static size_t piece(struct relay *r, const struct pipe_dir *d)
{
	size_t max = r->opts.piece_max ? r->opts.piece_max : 64u << 10, n;

	if (d->sent < r->opts.tiny)
		max = 7;
	n = 1 + (size_t)mc_rand_below(&r->rand, max);
	n = mc_min(n, d->len);
	return mc_min(n, d->cap - d->head);
}

/* Deliver one piece. @return it went out; false: nothing to do now */
static bool dir_out(struct relay *r, struct pipe_dir *d, int fd, uint64_t now_ns)
{
	ssize_t n;

	if (d->is_shut || fd < 0)
		return false;
	if (d->len == 0) {
		if (d->is_eof) {
			(void)shutdown(fd, SHUT_WR); /* it may be gone */
			d->is_shut = true;
		}
		return false;
	}
	if (now_ns < d->ready_ns)
		return false;
	n = send(fd, d->buf + d->head, piece(r, d), MSG_DONTWAIT | MSG_NOSIGNAL);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return false;
	if (n < 0) {
		d->is_shut = d->is_eof = true;
		d->len = 0;
		return false;
	}
	d->head = (d->head + (size_t)n) % d->cap;
	d->len -= (size_t)n;
	d->sent += (size_t)n;
	if (r->opts.delay_ns)
		d->ready_ns = now_ns + mc_rand_below(&r->rand, r->opts.delay_ns);
	pthread_mutex_lock(&r->lock);
	r->stats.bytes += (size_t)n;
	if (d->is_eof)
		r->stats.late_bytes += (size_t)n;
	pthread_mutex_unlock(&r->lock);
	return true;
}

/* @return false: the connection is over */
static bool conn_step(struct relay *r, struct conn *c, uint64_t now_ns)
{
	struct linger linger = {.l_onoff = 1};
	bool is_paused = r->is_paused;

	for (int i = 0; i < 2; i++)
		if (c->fd[i] >= 0)
			dir_in(r, &c->dir[i], c->fd[i]);
	if (is_paused)
		return true;
	if (c->fd[1] < 0) {
		if (mc_sock_connect(&r->to, NULL, &c->fd[1]) < 0)
			return false;
		(void)mc_sock_nodelay(c->fd[1]);
		return true;
	}
	for (int i = 0; i < 2; i++)
		for (int k = 0; k < 64 && dir_out(r, &c->dir[i], c->fd[1 - i], now_ns); k++)
			;
	if (c->reset_at && c->dir[0].sent + c->dir[1].sent >= c->reset_at) {
		for (int i = 0; i < 2; i++)
			(void)setsockopt(c->fd[i], SOL_SOCKET, SO_LINGER, &linger, sizeof(linger));
		pthread_mutex_lock(&r->lock);
		r->stats.resets++;
		pthread_mutex_unlock(&r->lock);
		return false;
	}
	return !(c->dir[0].is_shut && c->dir[1].is_shut);
}

/* What to wait for. */
static unsigned conns_poll(struct relay *r, struct pollfd *fds, bool *ret_is_timed)
{
	unsigned n = 0;

	fds[n++] = (struct pollfd){.fd = r->listen_fd, .events = POLLIN};
	fds[n++] = (struct pollfd){.fd = r->wake_fd, .events = POLLIN};
	for (unsigned i = 0; i < CONNS_MAX; i++) {
		struct conn *c = r->conns[i];

		for (int k = 0; c && k < 2; k++) {
			const struct pipe_dir *in = &c->dir[k], *out = &c->dir[1 - k];
			short ev = 0;

			if (!in->is_eof && in->len < in->cap)
				ev |= POLLIN;
			if (out->len > 0 && !out->is_shut && !r->is_paused) {
				if (r->opts.delay_ns)
					*ret_is_timed = true;
				else
					ev |= POLLOUT;
			}
			if (c->fd[k] < 0 || (out->is_eof && !out->is_shut))
				*ret_is_timed = true;
			if (c->fd[k] >= 0 && ev)
				fds[n++] = (struct pollfd){.fd = c->fd[k], .events = ev};
		}
	}
	return n;
}

static void *relay_main(void *arg)
{
	struct relay *r = arg;
	struct pollfd fds[2 + 2 * CONNS_MAX];

	while (!atomic_load_explicit(&r->is_closing, memory_order_acquire)) {
		bool is_timed = false;
		unsigned n = conns_poll(r, fds, &is_timed);
		uint64_t drop;

		(void)poll(fds, n, is_timed ? TICK_MS : -1);
		if (fds[1].revents)
			(void)!read(r->wake_fd, &drop, sizeof(drop));
		if (fds[0].revents)
			conn_accept(r);
		for (unsigned i = 0; i < CONNS_MAX; i++) {
			if (!r->conns[i] || conn_step(r, r->conns[i], mc_now_ns()))
				continue;
			conn_free(r->conns[i]);
			r->conns[i] = NULL;
			pthread_mutex_lock(&r->lock);
			r->stats.open--;
			pthread_mutex_unlock(&r->lock);
		}
	}
	return NULL;
}

int relay_open(const struct mc_addr *to, const struct relay_opts *opts, struct relay **ret_relay)
{
	struct relay *r = mc_calloc(1, sizeof(*r));
	struct mc_addr any = *to;
	int rc;

	if (!r)
		return -MC_E_NOMEM;
	r->to = *to;
	r->opts = *opts;
	r->listen_fd = -1;
	mc_rand_seed(&r->rand, opts->seed);
	pthread_mutex_init(&r->lock, NULL);
	r->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	rc = mc_sock_listen_range(&any, 20000, 32000, 64, &r->listen_fd, &r->addr);
	if (rc == 0 && (r->wake_fd < 0 || pthread_create(&r->thread, NULL, relay_main, r) != 0))
		rc = -MC_E_LIMIT;
	if (rc < 0) {
		relay_close(r);
		return rc;
	}
	r->has_thread = true;
	*ret_relay = r;
	return 0;
}

static void relay_wake(struct relay *r)
{
	uint64_t one = 1;

	mc_assert(write(r->wake_fd, &one, sizeof(one)) == sizeof(one));
}

void relay_close(struct relay *r)
{
	if (!r)
		return;
	if (r->has_thread) {
		atomic_store_explicit(&r->is_closing, true, memory_order_release);
		relay_wake(r);
		pthread_join(r->thread, NULL);
	}
	for (unsigned i = 0; i < CONNS_MAX; i++)
		if (r->conns[i])
			conn_free(r->conns[i]);
	mc_fd_close(&r->listen_fd);
	mc_fd_close(&r->wake_fd);
	pthread_mutex_destroy(&r->lock);
	mc_free(r);
}

const struct mc_addr *relay_addr(const struct relay *r)
{
	return &r->addr;
}

void relay_pause(struct relay *r, bool is_paused)
{
	atomic_store_explicit(&r->is_paused, is_paused, memory_order_release);
	relay_wake(r);
}

void relay_stats(struct relay *r, struct relay_stats *ret)
{
	pthread_mutex_lock(&r->lock);
	*ret = r->stats;
	pthread_mutex_unlock(&r->lock);
}
