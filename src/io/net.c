/*
 * net.c: the kernel's sockets behind the vtable of env.h.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/err.h"
#include "base/mem.h"
#include "io/env.h"

struct real_sock {
	struct mc_net_sock sock;
	struct mc_watch watch; /* watch.fd is the descriptor; the rest is the loop's thread's */
	struct mc_loop *loop;  /* NULL: not watched */
	struct mc_net_sink *sink;
	bool is_unix;
	/* the receiver's */
	bool is_blocking; /* recv() sleeps unless told not to; everything else here says so */
	uint64_t recv_timeout_ns;
};

#define RECV_TIMEOUT_MIN_NS (20 * MC_NS_PER_MS)

static struct real_sock *real_of(const struct mc_net_sock *sock)
{
	return mc_container_of(sock, struct real_sock, sock);
}

/* Takes fd over, also on failure. */
static int real_wrap(int fd, bool is_unix, struct mc_net_sock **ret_sock)
{
	struct real_sock *s = mc_calloc(1, sizeof(*s));

	if (!s) {
		mc_fd_close(&fd);
		return -MC_E_NOMEM;
	}
	s->sock.net = &mc_net_real;
	s->watch.fd = fd;
	s->is_unix = is_unix;
	*ret_sock = &s->sock;
	return 0;
}

static int real_connect(const struct mc_net *net, const struct mc_addr *to,
			const struct mc_addr *from, struct mc_net_sock **ret_sock)
{
	int fd, rc = mc_sock_connect(to, from, &fd);

	if (rc < 0)
		return rc;
	return real_wrap(fd, to->sa.sa_family == AF_UNIX, ret_sock);
}

static int real_connect_result(struct mc_net_sock *sock)
{
	return mc_sock_connect_result(real_of(sock)->watch.fd);
}

static int real_listen(const struct mc_net *net, const struct mc_addr *at, int backlog,
		       struct mc_net_sock **ret_sock, struct mc_addr *ret_bound)
{
	int fd, rc = mc_sock_listen(at, backlog, &fd, ret_bound);

	if (rc < 0)
		return rc;
	return real_wrap(fd, at->sa.sa_family == AF_UNIX, ret_sock);
}

static int real_accept(struct mc_net_sock *listener, struct mc_net_sock **ret_sock,
		       struct mc_addr *ret_peer)
{
	const struct real_sock *l = real_of(listener);
	int fd, rc = mc_sock_accept(l->watch.fd, &fd, ret_peer);

	if (rc < 0)
		return rc;
	rc = real_wrap(fd, l->is_unix, ret_sock);
	return rc < 0 ? -MC_E_LIMIT : 0;
}

static int real_adopt(const struct mc_net *net, int fd, struct mc_net_sock **ret_sock)
{
	struct mc_addr own = {.len = sizeof(own.ss)};
	struct real_sock *s;

	if (getsockname(fd, &own.sa, &own.len) != 0)
		return mc_err_from_errno(errno);
	s = mc_calloc(1, sizeof(*s));
	if (!s)
		return -MC_E_NOMEM;
	s->sock.net = net;
	s->watch.fd = fd;
	s->is_unix = own.sa.sa_family == AF_UNIX;
	*ret_sock = &s->sock;
	return 0;
}

static int io_err(int err)
{
	if (err == EAGAIN || err == EINTR)
		return -MC_E_AGAIN;
	/* Silence for too long (TCP_USER_TIMEOUT): the path, not the operation. */
	return err == ETIMEDOUT ? -MC_E_UNREACHABLE : mc_err_from_errno(err);
}

static ssize_t real_send(struct mc_net_sock *sock, const struct iovec *iov, int n, const int *fds,
			 unsigned nfds)
{
	union {
		struct cmsghdr head;
		char space[CMSG_SPACE(sizeof(int) * MC_NET_FDS_MAX)];
	} control;
	struct msghdr m = {.msg_iov = (struct iovec *)iov, .msg_iovlen = (size_t)n};
	ssize_t sent;

	if (nfds == 0 && n == 1) { /* the cheaper call */
		sent = send(real_of(sock)->watch.fd, iov->iov_base, iov->iov_len,
			    MSG_NOSIGNAL | MSG_DONTWAIT);
		return sent < 0 ? io_err(errno) : sent;
	}
	if (nfds) {
		if (!real_of(sock)->is_unix || nfds > MC_NET_FDS_MAX)
			return -MC_E_UNSUPPORTED;
		memset(&control, 0, sizeof(control));
		control.head.cmsg_level = SOL_SOCKET;
		control.head.cmsg_type = SCM_RIGHTS;
		control.head.cmsg_len = CMSG_LEN(sizeof(int) * nfds);
		memcpy(CMSG_DATA(&control.head), fds, sizeof(int) * nfds);
		m.msg_control = &control;
		m.msg_controllen = CMSG_SPACE(sizeof(int) * nfds);
	}
	sent = sendmsg(real_of(sock)->watch.fd, &m, MSG_NOSIGNAL | MSG_DONTWAIT);
	return sent < 0 ? io_err(errno) : sent;
}

/* Descriptors out of the control data; all are closed when some were lost. */
static int take_fds(struct msghdr *m, int *fds, unsigned *ret_nfds)
{
	unsigned n = 0;

	for (struct cmsghdr *c = CMSG_FIRSTHDR(m); c; c = CMSG_NXTHDR(m, c)) {
		size_t count;

		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		for (size_t i = 0; i < count; i++) {
			int fd;

			memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(fd));
			if (n < MC_NET_FDS_MAX)
				fds[n++] = fd;
			else
				mc_fd_close(&fd);
		}
	}
	if (m->msg_flags & MSG_CTRUNC) {
		while (n > 0)
			mc_fd_close(&fds[--n]);
		return -MC_E_LIMIT;
	}
	*ret_nfds = n;
	return 0;
}

static ssize_t receive(const struct real_sock *s, void *buf, size_t len, int *fds,
		       unsigned *ret_nfds, int flags)
{
	union {
		struct cmsghdr head;
		char space[CMSG_SPACE(sizeof(int) * MC_NET_FDS_MAX)];
	} control;
	struct iovec iov = {.iov_base = buf, .iov_len = len};
	struct msghdr m = {.msg_iov = &iov,
			   .msg_iovlen = 1,
			   .msg_control = &control,
			   .msg_controllen = sizeof(control)};
	ssize_t n;
	int rc;

	*ret_nfds = 0;
	if (!s->is_unix) {
		n = recv(s->watch.fd, buf, len, flags);
		return n < 0 ? io_err(errno) : n;
	}
	n = recvmsg(s->watch.fd, &m, flags | MSG_CMSG_CLOEXEC);
	if (n < 0)
		return io_err(errno);
	rc = take_fds(&m, fds, ret_nfds);
	return rc < 0 ? rc : n;
}

static ssize_t real_recv(struct mc_net_sock *sock, void *buf, size_t len, int *fds,
			 unsigned *ret_nfds)
{
	return receive(real_of(sock), buf, len, fds, ret_nfds, MSG_DONTWAIT);
}

/*
 * Sleep in recv() itself. Its timeout is an option of the socket; it is set in steps, so that calls
 * with the same patience set it once.
 */
static int recv_timeout(struct real_sock *s, uint64_t left_ns)
{
	uint64_t step_ns = MC_NS_PER_S;
	struct timeval tv;

	while (step_ns > left_ns)
		step_ns /= 10;
	if (step_ns == s->recv_timeout_ns)
		return 0;
	tv = (struct timeval){.tv_sec = (time_t)(step_ns / MC_NS_PER_S),
			      .tv_usec = (suseconds_t)(step_ns % MC_NS_PER_S / MC_NS_PER_US)};
	if (setsockopt(s->watch.fd, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof(tv)) != 0)
		return mc_err_from_errno(errno);
	s->recv_timeout_ns = step_ns;
	return 0;
}

static ssize_t real_recv_wait(struct mc_net_sock *sock, void *buf, size_t len, int *fds,
			      unsigned *ret_nfds, uint64_t deadline_ns)
{
	struct real_sock *s = real_of(sock);
	uint64_t now = deadline_ns == MC_TIME_NEVER ? 0 : mc_now_ns();
	uint64_t left_ns = deadline_ns > now ? deadline_ns - now : 0;

	/* Below a jiffy or two the option is too coarse. */
	if (left_ns >= RECV_TIMEOUT_MIN_NS && s->is_blocking && recv_timeout(s, left_ns) == 0)
		return receive(s, buf, len, fds, ret_nfds, 0);
	if (mc_sock_wait(s->watch.fd, POLLIN, deadline_ns) < 0)
		return -MC_E_AGAIN;
	return receive(s, buf, len, fds, ret_nfds, MSG_DONTWAIT);
}

static void real_shutdown(struct mc_net_sock *sock)
{
	(void)shutdown(real_of(sock)->watch.fd, SHUT_RDWR); /* already over: as well */
}

static void real_unwatch(struct mc_net_sock *sock)
{
	struct real_sock *s = real_of(sock);

	if (s->loop)
		mc_loop_unwatch(s->loop, &s->watch);
	s->loop = NULL;
}

static void real_close(struct mc_net_sock *sock)
{
	struct real_sock *s = real_of(sock);

	mc_fd_close(&s->watch.fd);
	mc_free(s);
}

static void real_on_event(struct mc_watch *w, uint32_t events)
{
	struct real_sock *s = mc_container_of(w, struct real_sock, watch);

	s->sink->on_ready(s->sink, events);
}

static int real_watch(struct mc_net_sock *sock, struct mc_loop *loop, uint32_t events,
		      struct mc_net_sink *sink)
{
	struct real_sock *s = real_of(sock);
	int rc;

	mc_assert(!s->loop);
	s->sink = sink;
	s->watch.events = events;
	s->watch.on_event = real_on_event;
	rc = mc_loop_watch(loop, &s->watch);
	if (rc < 0)
		return rc;
	s->loop = loop;
	return 0;
}

static int real_rewatch(struct mc_net_sock *sock, uint32_t events)
{
	struct real_sock *s = real_of(sock);

	return s->loop ? mc_loop_rewatch(s->loop, &s->watch, events) : -MC_E_INVAL;
}

static int real_wait(struct mc_net_sock *sock, short events, uint64_t deadline_ns)
{
	return mc_sock_wait(real_of(sock)->watch.fd, events, deadline_ns);
}

static int real_fd(const struct mc_net_sock *sock)
{
	return real_of(sock)->watch.fd;
}

static int real_tune(struct mc_net_sock *sock, uint32_t user_timeout_ms)
{
	struct real_sock *s = real_of(sock);
	int rc = mc_sock_nodelay(s->watch.fd);

	s->is_blocking = fcntl(s->watch.fd, F_SETFL, 0) == 0; /* for recv_wait; else it polls */

	if (rc < 0 || user_timeout_ms == 0)
		return rc;
	return mc_sock_user_timeout(s->watch.fd, user_timeout_ms);
}

const struct mc_net mc_net_real = {
    .can_spin = true,
    .connect = real_connect,
    .connect_result = real_connect_result,
    .listen = real_listen,
    .accept = real_accept,
    .adopt = real_adopt,
    .send = real_send,
    .recv = real_recv,
    .recv_wait = real_recv_wait,
    .shutdown = real_shutdown,
    .close = real_close,
    .watch = real_watch,
    .rewatch = real_rewatch,
    .unwatch = real_unwatch,
    .wait = real_wait,
    .fd = real_fd,
    .tune = real_tune,
};

const struct mc_env mc_env_real = {
    .clk = &mc_clock_real, .net = &mc_net_real, .disk = &mc_disk_real};
