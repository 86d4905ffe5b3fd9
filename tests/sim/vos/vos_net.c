/*
 * vos_net.c: descriptors: TCP connections between the hosts of the simulated world, eventfds and
 * epoll sets.
 *
 * A connection is two queues of pieces, each with the time at which it arrives. Between hosts that
 * are cut off nothing arrives; when they are healed it does, or the connection breaks. When a
 * process dies its host's kernel ends its connections, in order after what it had sent, or with a
 * reset.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <unistd.h>

#include "base/err.h"
#include "base/mem.h"
#include "sim/vos/vos.h"
#include "sim/vos/vos_wrap.h"

#define FD_BASE 100000
#define FDS_MAX 4096u
#define WINDOW (256u << 10)  /* bytes under way in one direction */
#define ITEMS_MAX 64u	     /* of an epoll set */
#define NET_BASE 0x0a4d0000u /* 10.77.0.0 */
#define PORT_FIRST 30000u

enum kind {
	FREE,
	SOCKET, /* not yet anything */
	LISTENER,
	STREAM,
	EVENT,
	EPOLL,
};

struct piece {
	struct mc_list link;
	uint64_t due_ns;
	size_t len, at;
	uint8_t data[];
};

struct item {
	int fd;
	uint32_t events;
	bool is_edge_due;
	epoll_data_t data;
};

struct vfd {
	enum kind kind;
	struct vos_proc *proc;
	uint64_t life; /* of this number */
	uint16_t port;
	struct mc_list all; /* listeners */

	/* a listener */
	struct mc_list backlog; /* streams by `waiting` */

	/* a stream; not freed before its own end and the peer's */
	struct vfd *peer; /* NULL: it closed */
	struct mc_list waiting, pieces;
	size_t incoming;
	uint64_t last_due_ns, connect_due_ns, recv_timeout_ns, silence_ns;
	uint64_t fin_due_ns, reset_due_ns; /* NEVER: none */
	unsigned peer_host;
	uint16_t peer_port;
	bool is_refused, is_connecting, is_blocking, is_fin_sent;

	uint64_t counter;	      /* an eventfd */
	struct item items[ITEMS_MAX]; /* an epoll set */
	unsigned nitems, next_item;
};

struct vos_net_conf vos_net_conf;

static struct vfd *fds[FDS_MAX];
static unsigned nfds;
static uint64_t lives;
static uint16_t ports;
static uint64_t cut_since[VOS_HOSTS_MAX][VOS_HOSTS_MAX]; /* 0: they are not */

int __real_close(int fd);
ssize_t __real_read(int fd, void *buf, size_t len);
ssize_t __real_write(int fd, const void *data, size_t len);

static struct vfd *fd_get(int fd)
{
	unsigned i = (unsigned)(fd - FD_BASE);

	if (fd < FD_BASE || i >= nfds || !fds[i] || fds[i]->kind == FREE)
		vos_fail("descriptor %d is used, which nobody has open", fd);
	return fds[i];
}

static int fd_of(const struct vfd *f)
{
	for (unsigned i = 0; i < nfds; i++) {
		if (fds[i] == f)
			return (int)i + FD_BASE;
	}
	return -1;
}

static int fd_new(enum kind kind, struct vos_proc *proc, struct vfd **ret)
{
	struct vfd *f = vos_host_alloc(sizeof(*f));
	unsigned i = 0;

	while (i < nfds && fds[i])
		i++;
	if (i == FDS_MAX)
		vos_fail("too many descriptors");
	nfds = mc_max(nfds, i + 1);
	fds[i] = f;
	f->kind = kind;
	f->proc = proc;
	f->life = ++lives;
	f->fin_due_ns = f->reset_due_ns = MC_TIME_NEVER;
	mc_list_init(&f->backlog);
	mc_list_init(&f->waiting);
	mc_list_init(&f->pieces);
	if (ret)
		*ret = f;
	return (int)i + FD_BASE;
}

/* ---- readiness ---- */

static bool is_reset(const struct vfd *f)
{
	return f->is_refused || f->reset_due_ns <= vos_now();
}

static uint32_t ready(const struct vfd *f)
{
	const struct piece *first = mc_list_first(&f->pieces, struct piece, link);
	const uint64_t now = vos_now();
	uint32_t events = 0;

	if (f->kind == EVENT)
		return (f->counter ? EPOLLIN : 0) | EPOLLOUT;
	if (f->kind == LISTENER) {
		const struct vfd *c;

		mc_list_each (c, &f->backlog, waiting) {
			if (c->connect_due_ns <= now)
				return EPOLLIN;
		}
		return 0;
	}
	if (f->kind != STREAM || f->connect_due_ns > now)
		return 0;
	if (is_reset(f))
		return EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLHUP | EPOLLERR;
	if (first && first->due_ns <= now)
		events |= EPOLLIN;
	if (!first && f->fin_due_ns <= now)
		events |= EPOLLIN | EPOLLRDHUP;
	if (!f->peer || f->peer->incoming < WINDOW)
		events |= EPOLLOUT;
	return events;
}

/* Something is new at f: whoever waits for it looks again. */
static void changed(struct vfd *f)
{
	int fd = fd_of(f);

	vos_wake(f, UINT32_MAX);
	for (unsigned i = 0; i < nfds; i++) {
		struct vfd *e = fds[i];

		if (!e || e->kind != EPOLL)
			continue;
		for (unsigned k = 0; k < e->nitems; k++) {
			if (e->items[k].fd == fd) {
				e->items[k].is_edge_due = true;
				vos_wake(e, UINT32_MAX);
			}
		}
	}
}

struct later {
	struct vfd *fd;
	uint64_t life, since_ns;
};

static bool is_still(const struct later *l)
{
	for (unsigned i = 0; i < nfds; i++) {
		if (fds[i] == l->fd)
			return fds[i]->life == l->life;
	}
	return false;
}

static void on_change(void *arg)
{
	struct later *l = arg;

	if (is_still(l))
		changed(l->fd);
	vos_host_free(l);
}

static void change_at(struct vfd *f, uint64_t at_ns)
{
	struct later *l;

	if (at_ns == MC_TIME_NEVER)
		return;
	l = vos_host_alloc(sizeof(*l));
	*l = (struct later){f, f->life, 0};
	vos_at(at_ns, on_change, l);
}

/* When what leaves for `f` now arrives; NEVER: the hosts are cut off. */
static uint64_t due(const struct vfd *f, uint64_t not_before_ns)
{
	const struct vos_net_conf *c = &vos_net_conf;
	uint64_t at = vos_now() + vos_between(c->delay_min_ns, c->delay_max_ns);

	if (vos_net_is_cut(f->proc->host, f->peer_host))
		return MC_TIME_NEVER;
	if (vos_pick(1000000) < c->slow_ppm)
		at += vos_pick(c->slow_max_ns);
	return not_before_ns == MC_TIME_NEVER ? MC_TIME_NEVER : mc_max(at, not_before_ns);
}

static void reset_at(struct vfd *f, uint64_t at_ns)
{
	if (at_ns >= f->reset_due_ns)
		return;
	f->reset_due_ns = at_ns;
	change_at(f, at_ns);
}

/* ---- cuts ---- */

static struct vfd *listener_at(unsigned host, uint16_t port)
{
	for (unsigned i = 0; i < nfds; i++) {
		if (fds[i] && fds[i]->kind == LISTENER && fds[i]->port == port &&
		    fds[i]->proc->host == host)
			return fds[i];
	}
	return NULL;
}

bool vos_net_is_cut(unsigned a, unsigned b)
{
	return cut_since[a][b] != 0;
}

static void held_release(struct vfd *f)
{
	struct piece *p;
	uint64_t at = 0;

	mc_list_each (p, &f->pieces, link) {
		if (p->due_ns == MC_TIME_NEVER || p->due_ns > vos_now()) {
			p->due_ns = at = due(f, at);
			change_at(f, at);
		}
	}
	if (at)
		f->last_due_ns = at;
	if (f->last_due_ns == MC_TIME_NEVER)
		f->last_due_ns = 0;
	if (f->is_fin_sent && f->fin_due_ns == MC_TIME_NEVER) {
		f->fin_due_ns = due(f, f->last_due_ns);
		change_at(f, f->fin_due_ns);
	}
	if (f->connect_due_ns == MC_TIME_NEVER) {
		f->connect_due_ns = due(f, 0);
		change_at(f, f->connect_due_ns);
	}
}

/* The other end of a connection that nobody has accepted yet. */
static void accept_release(const struct vfd *f)
{
	struct vfd *l = listener_at(f->peer_host, f->peer_port);

	held_release(f->peer);
	f->peer->connect_due_ns = mc_min(f->peer->connect_due_ns, f->connect_due_ns);
	if (l)
		change_at(l, f->peer->connect_due_ns);
}

/* TCP_USER_TIMEOUT: it was silent for too long. */
static void on_silence(void *arg)
{
	struct later *l = arg;

	if (is_still(l) && cut_since[l->fd->proc->host][l->fd->peer_host] == l->since_ns)
		reset_at(l->fd, vos_now());
	vos_host_free(l);
}

static void cut_note(struct vfd *f, uint64_t since_ns)
{
	struct later *l;

	if (f->silence_ns == 0)
		return;
	l = vos_host_alloc(sizeof(*l));
	*l = (struct later){f, f->life, since_ns};
	vos_at(since_ns + f->silence_ns, on_silence, l);
}

void vos_net_cut(unsigned a, unsigned b, bool is_cut)
{
	uint64_t since_ns = is_cut ? vos_now() : 0;

	cut_since[a][b] = cut_since[b][a] = since_ns;
	for (unsigned i = 0; i < nfds; i++) {
		struct vfd *f = fds[i];

		if (!f || f->kind != STREAM ||
		    !((f->proc->host == a && f->peer_host == b) ||
		      (f->proc->host == b && f->peer_host == a)))
			continue;
		if (is_cut) {
			cut_note(f, since_ns);
			continue;
		}
		if (!f->peer || vos_one_in(3)) /* nobody is there any more, or a firewall forgot */
			reset_at(f, vos_now() + vos_pick(10 * MC_NS_PER_MS));
		held_release(f);
		if (f->peer && fd_of(f->peer) < 0)
			accept_release(f);
	}
}

/* ---- life ---- */

static void pieces_drop(struct vfd *f)
{
	struct mc_list *node;

	while ((node = mc_list_pop_front(&f->pieces)))
		vos_host_free(mc_list_entry(node, struct piece, link));
	f->incoming = 0;
}

static void fin_send(struct vfd *f)
{
	struct vfd *peer = f->peer;

	if (!peer || peer->is_fin_sent)
		return;
	peer->is_fin_sent = true;
	peer->fin_due_ns = due(peer, peer->last_due_ns);
	change_at(peer, peer->fin_due_ns);
}

static void fd_end(unsigned i, bool is_hard)
{
	struct vfd *f = fds[i], *c;

	for (unsigned k = 0; k < nfds; k++) { /* closing takes it out of epoll sets */
		struct vfd *e = fds[k];

		for (unsigned j = 0; e && e->kind == EPOLL && j < e->nitems; j++) {
			if (e->items[j].fd == (int)i + FD_BASE)
				e->items[j--] = e->items[--e->nitems];
		}
	}
	mc_list_each (c, &f->backlog, waiting) {
		mc_list_del(&c->waiting);
		if (c->peer) {
			c->peer->peer = NULL;
			reset_at(c->peer, due(c->peer, 0));
		}
		pieces_drop(c);
		vos_host_free(c);
	}
	if (f->peer && (is_hard || f->incoming))
		reset_at(f->peer, due(f->peer, f->peer->last_due_ns));
	else
		fin_send(f);
	if (f->peer)
		f->peer->peer = NULL;
	mc_list_del(&f->waiting);
	pieces_drop(f);
	fds[i] = NULL;
	vos_host_free(f);
}

void vos_net_proc_end(struct vos_proc *proc)
{
	for (unsigned i = 0; i < nfds; i++) {
		if (fds[i] && fds[i]->proc == proc)
			fd_end(i, vos_one_in(2));
	}
}

int __wrap_close(int fd)
{
	if (fd < FD_BASE)
		return __real_close(fd);
	(void)fd_get(fd);
	fd_end((unsigned)(fd - FD_BASE), false);
	return 0;
}

/* ---- sockets ---- */

static void addr_set(struct sockaddr *addr, socklen_t *len, unsigned host, uint16_t port)
{
	struct sockaddr_in in = {.sin_family = AF_INET,
				 .sin_port = htons(port),
				 .sin_addr.s_addr = htonl(NET_BASE + host + 1)};

	memcpy(addr, &in, mc_min(*len, (socklen_t)sizeof(in)));
	*len = sizeof(in);
}

static unsigned host_of(const struct sockaddr *addr, uint16_t *ret_port)
{
	struct sockaddr_in in;

	memcpy(&in, addr, sizeof(in));
	*ret_port = ntohs(in.sin_port);
	return ntohl(in.sin_addr.s_addr) - NET_BASE - 1;
}

int __wrap_socket(int family, int type, int protocol)
{
	(void)type;
	(void)protocol;
	if (family != AF_INET)
		vos_fail("a socket of family %d is not simulated", family);
	return fd_new(SOCKET, vos_self(), NULL);
}

int __wrap_bind(int fd, const struct sockaddr *addr, socklen_t len)
{
	struct vfd *f = fd_get(fd);
	uint16_t port;

	(void)len;
	(void)host_of(addr, &port);
	f->port = port ? port : (uint16_t)(PORT_FIRST + ports++ % 30000);
	for (unsigned i = 0; i < nfds; i++) {
		if (fds[i] && fds[i]->kind == LISTENER && fds[i]->port == f->port &&
		    fds[i]->proc->host == f->proc->host) {
			errno = EADDRINUSE;
			return -1;
		}
	}
	return 0;
}

int __wrap_listen(int fd, int backlog)
{
	(void)backlog;
	fd_get(fd)->kind = LISTENER;
	return 0;
}

int __wrap_accept4(int fd, struct sockaddr *addr, socklen_t *len, int flags)
{
	struct vfd *l = fd_get(fd), *c;

	(void)flags;
	mc_list_each (c, &l->backlog, waiting) {
		unsigned i = 0;

		if (c->connect_due_ns > vos_now())
			continue;
		mc_list_del(&c->waiting);
		while (i < nfds && fds[i])
			i++;
		mc_assert(i < FDS_MAX);
		nfds = mc_max(nfds, i + 1);
		fds[i] = c;
		if (addr)
			addr_set(addr, len, c->peer_host, c->peer_port);
		return (int)i + FD_BASE;
	}
	errno = EAGAIN;
	return -1;
}

int __wrap_connect(int fd, const struct sockaddr *addr, socklen_t len)
{
	struct vfd *a = fd_get(fd), *b, *l;
	int other;

	(void)len;
	a->kind = STREAM;
	a->is_connecting = true;
	a->peer_host = host_of(addr, &a->peer_port);
	if (!a->port)
		a->port = (uint16_t)(PORT_FIRST + ports++ % 30000);
	if (a->peer_host >= VOS_HOSTS_MAX) {
		errno = EHOSTUNREACH;
		return -1;
	}
	l = listener_at(a->peer_host, a->peer_port);
	a->connect_due_ns = due(a, 0);
	a->is_refused = !l;
	change_at(a, a->connect_due_ns);
	if (l) {
		other = fd_new(STREAM, l->proc, &b);
		fds[other - FD_BASE] = NULL; /* it gets its number when it is accepted */
		b->port = l->port;
		b->peer_host = a->proc->host;
		b->peer_port = a->port;
		b->connect_due_ns = a->connect_due_ns;
		a->peer = b;
		b->peer = a;
		mc_list_push_back(&l->backlog, &b->waiting);
		change_at(l, b->connect_due_ns);
	}
	errno = EINPROGRESS;
	return -1;
}

int __wrap_getsockname(int fd, struct sockaddr *addr, socklen_t *len)
{
	const struct vfd *f = fd_get(fd);

	addr_set(addr, len, f->proc->host, f->port);
	return 0;
}

int __wrap_getpeername(int fd, struct sockaddr *addr, socklen_t *len)
{
	const struct vfd *f = fd_get(fd);

	addr_set(addr, len, f->peer_host, f->peer_port);
	return 0;
}

int __wrap_setsockopt(int fd, int level, int name, const void *value, socklen_t len)
{
	struct vfd *f = fd_get(fd);
	struct timeval tv;

	if (level == SOL_SOCKET && name == SO_RCVTIMEO) {
		mc_assert(len == sizeof(tv));
		memcpy(&tv, value, sizeof(tv));
		f->recv_timeout_ns =
		    (uint64_t)tv.tv_sec * MC_NS_PER_S + (uint64_t)tv.tv_usec * MC_NS_PER_US;
	}
	if (level == IPPROTO_TCP && name == TCP_USER_TIMEOUT) {
		unsigned ms;

		mc_assert(len == sizeof(ms));
		memcpy(&ms, value, sizeof(ms));
		f->silence_ns = ms * MC_NS_PER_MS;
	}
	return 0;
}

int __wrap_getsockopt(int fd, int level, int name, void *value, socklen_t *len)
{
	const struct vfd *f = fd_get(fd);
	int err = f->is_refused ? ECONNREFUSED : is_reset(f) ? ECONNRESET : 0;

	if (level != SOL_SOCKET || name != SO_ERROR)
		vos_fail("socket option %d/%d is not simulated", level, name);
	memcpy(value, &err, sizeof(err));
	*len = sizeof(err);
	return 0;
}

static ssize_t fail(int err)
{
	errno = err;
	return -1;
}

ssize_t __wrap_sendmsg(int fd, const struct msghdr *msg, int flags)
{
	struct vfd *f = fd_get(fd), *peer = f->peer;
	size_t len = 0, at = 0, room;
	struct piece *p;

	(void)flags;
	vos_shuffle();
	f = fd_get(fd);
	peer = f->peer;
	if (f->kind != STREAM || f->connect_due_ns > vos_now())
		return fail(EAGAIN);
	if (is_reset(f))
		return fail(ECONNRESET);
	if (!peer && !vos_net_is_cut(f->proc->host, f->peer_host))
		return fail(EPIPE);
	for (size_t i = 0; i < msg->msg_iovlen; i++)
		len += msg->msg_iov[i].iov_len;
	if (!peer)
		return (ssize_t)len; /* nobody says that it does not arrive */
	room = peer->incoming < WINDOW ? WINDOW - peer->incoming : 0;
	if (room == 0)
		return fail(EAGAIN);
	len = mc_min(len, room);
	if (len > 1 && vos_one_in(16))
		len = (size_t)vos_between(1, len);
	p = vos_host_alloc(sizeof(*p) + len);
	p->len = len;
	for (size_t i = 0; at < len; i++) {
		size_t part = mc_min(msg->msg_iov[i].iov_len, len - at);

		memcpy(p->data + at, msg->msg_iov[i].iov_base, part);
		at += part;
	}
	peer->incoming += len;
	p->due_ns = peer->last_due_ns = due(peer, peer->last_due_ns);
	mc_list_push_back(&peer->pieces, &p->link);
	change_at(peer, p->due_ns);
	if (vos_pick(1000000) < vos_net_conf.reset_ppm) {
		p->len = (size_t)vos_between(1, len); /* the rest is lost */
		peer->incoming -= len - p->len;
		reset_at(peer, p->due_ns == MC_TIME_NEVER ? MC_TIME_NEVER : p->due_ns + 1);
		reset_at(f, due(f, 0));
	}
	return (ssize_t)len;
}

ssize_t __wrap_send(int fd, const void *data, size_t len, int flags)
{
	struct iovec iov = {(void *)data, len};
	struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};

	return __wrap_sendmsg(fd, &msg, flags);
}

static ssize_t take(struct vfd *f, uint8_t *buf, size_t len)
{
	struct piece *p;
	size_t done = 0, part;

	if (f->connect_due_ns > vos_now())
		return fail(EAGAIN);
	if (is_reset(f))
		return fail(ECONNRESET);
	while (done < len && (p = mc_list_first(&f->pieces, struct piece, link)) != NULL &&
	       p->due_ns <= vos_now()) {
		part = mc_min(len - done, p->len - p->at);
		memcpy(buf + done, p->data + p->at, part);
		p->at += part;
		done += part;
		if (p->at == p->len) {
			mc_list_del(&p->link);
			vos_host_free(p);
		}
		if (vos_one_in(8))
			break;
	}
	if (done == 0)
		return mc_list_is_empty(&f->pieces) && f->fin_due_ns <= vos_now() ? 0
										  : fail(EAGAIN);
	f->incoming -= done;
	if (f->peer)
		changed(f->peer);
	return (ssize_t)done;
}

ssize_t __wrap_recv(int fd, void *buf, size_t len, int flags)
{
	struct vfd *f = fd_get(fd);
	uint64_t until = vos_now() + f->recv_timeout_ns;
	ssize_t n;

	vos_shuffle();
	for (;;) {
		f = fd_get(fd);
		n = take(f, buf, len);
		if (n >= 0 || errno != EAGAIN || flags & MSG_DONTWAIT || !f->is_blocking)
			return n;
		if (!vos_wait(f, f->recv_timeout_ns ? until : MC_TIME_NEVER))
			return fail(EAGAIN);
	}
}

int __wrap_shutdown(int fd, int how)
{
	struct vfd *f = fd_get(fd);

	(void)how;
	fin_send(f);
	pieces_drop(f);
	f->is_fin_sent = true;
	f->fin_due_ns = vos_now();
	changed(f);
	return 0;
}

int __wrap_fcntl64(int fd, int cmd, ...)
{
	if (cmd == F_SETFL)
		fd_get(fd)->is_blocking = true;
	return 0;
}

/* ---- eventfds ---- */

int vos_eventfd(struct vos_proc *proc)
{
	return fd_new(EVENT, proc, NULL);
}

int __wrap_eventfd(unsigned value, int flags)
{
	(void)flags;
	mc_assert(value == 0);
	return vos_eventfd(vos_self());
}

void vos_eventfd_set(int fd, uint64_t value)
{
	struct vfd *f = fd_get(fd);

	f->counter = value;
	if (value)
		changed(f);
}

void vos_eventfd_add(int fd, uint64_t n)
{
	struct vfd *f = fd_get(fd);

	f->counter += n;
	changed(f);
}

ssize_t __wrap_write(int fd, const void *data, size_t len)
{
	uint64_t n;

	if (fd < FD_BASE)
		return __real_write(fd, data, len);
	mc_assert(fd_get(fd)->kind == EVENT && len == sizeof(n));
	memcpy(&n, data, sizeof(n));
	vos_eventfd_add(fd, n);
	return sizeof(n);
}

ssize_t __wrap_read(int fd, void *buf, size_t len)
{
	struct vfd *f;

	if (fd < FD_BASE)
		return __real_read(fd, buf, len);
	f = fd_get(fd);
	mc_assert(f->kind == EVENT && len == sizeof(f->counter));
	if (f->counter == 0)
		return fail(EAGAIN);
	memcpy(buf, &f->counter, sizeof(f->counter));
	f->counter = 0;
	return sizeof(f->counter);
}

/* ---- epoll ---- */

int __wrap_epoll_create1(int flags)
{
	(void)flags;
	return fd_new(EPOLL, vos_self(), NULL);
}

int __wrap_epoll_ctl(int fd, int op, int target, struct epoll_event *ev)
{
	struct vfd *e = fd_get(fd);
	unsigned i = 0;

	(void)fd_get(target);
	while (i < e->nitems && e->items[i].fd != target)
		i++;
	if (i == e->nitems && op != EPOLL_CTL_ADD)
		return (int)fail(ENOENT);
	if (op == EPOLL_CTL_DEL) {
		e->items[i] = e->items[--e->nitems];
		return 0;
	}
	if (i == e->nitems) {
		if (e->nitems == ITEMS_MAX)
			vos_fail("an epoll set of more than %u descriptors", ITEMS_MAX);
		e->nitems++;
	}
	e->items[i] = (struct item){target, ev->events, true, ev->data};
	vos_wake(e, UINT32_MAX);
	return 0;
}

static int collect(struct vfd *e, struct epoll_event *events, int max)
{
	int n = 0;

	e->next_item = e->nitems ? (unsigned)vos_pick(e->nitems) : 0;
	for (unsigned k = 0; k < e->nitems && n < max; k++) {
		struct item *it = &e->items[(e->next_item + k) % e->nitems];
		uint32_t now = ready(fd_get(it->fd)) & (it->events | EPOLLERR | EPOLLHUP);

		if (!now || (it->events & EPOLLET && !it->is_edge_due))
			continue;
		it->is_edge_due = false;
		events[n++] = (struct epoll_event){.events = now, .data = it->data};
	}
	return n;
}

int vos_epoll_wait(int fd, struct epoll_event *events, int max, uint64_t deadline_ns)
{
	int n;

	vos_shuffle();
	for (;;) {
		struct vfd *e = fd_get(fd);

		n = collect(e, events, max);
		if (n > 0 || deadline_ns <= vos_now())
			return n;
		if (!vos_wait(e, deadline_ns))
			return collect(fd_get(fd), events, max);
	}
}

int __wrap_epoll_wait(int fd, struct epoll_event *events, int max, int timeout_ms)
{
	return vos_epoll_wait(fd, events, max,
			      timeout_ms < 0 ? MC_TIME_NEVER
					     : vos_now() + (uint64_t)timeout_ms * MC_NS_PER_MS);
}

int __wrap_ppoll(struct pollfd *p, nfds_t n, const struct timespec *ts, const sigset_t *mask)
{
	uint64_t until = ts ? vos_now() + (uint64_t)ts->tv_sec * MC_NS_PER_S + (uint64_t)ts->tv_nsec
			    : MC_TIME_NEVER;
	uint32_t want = EPOLLERR | EPOLLHUP, now;
	struct vfd *f;

	(void)mask;
	mc_assert(n == 1);
	want |= p->events & POLLIN ? EPOLLIN : 0;
	want |= p->events & POLLOUT ? EPOLLOUT : 0;
	for (;;) {
		f = fd_get(p->fd);
		now = ready(f) & want;
		p->revents = (short)((now & EPOLLIN ? POLLIN : 0) | (now & EPOLLOUT ? POLLOUT : 0) |
				     (now & EPOLLERR ? POLLERR : 0));
		if (now)
			return 1;
		if (vos_now() >= until || !vos_wait(f, until))
			return 0;
	}
}
