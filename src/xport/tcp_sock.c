/*
 * tcp_sock.c: the socket calls of the TCP transport.
 */
#include <errno.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <time.h>

#include "xport/tcp_priv.h"

/* The front of a queue as a message; its last range may be shorter there. */
struct front {
	struct msghdr m;
	struct iovec *last;
	size_t cut;
};

static void front_take(struct front *f, struct mc_iovq *q, size_t max)
{
	unsigned i = q->at;

	*f = (struct front){.m = {.msg_iov = &q->v[i], .msg_iovlen = q->n - i}};
	if (q->left <= max)
		return;
	while (max > q->v[i].iov_len)
		max -= q->v[i++].iov_len;
	f->last = &q->v[i];
	f->cut = f->last->iov_len - max;
	f->last->iov_len = max;
	f->m.msg_iovlen = i + 1 - q->at;
}

/* n bytes of it are done; n <= 0: none are. @return n, or what errno says of it */
static ssize_t front_done(struct front *f, struct mc_iovq *q, ssize_t n)
{
	if (f->cut)
		f->last->iov_len += f->cut;
	if (n < 0)
		return errno == EAGAIN || errno == EWOULDBLOCK ? 0 : mc_err_from_errno(errno);
	mc_iovq_eat(q, (size_t)n);
	return n;
}

ssize_t mc_tcp_send(int fd, struct mc_iovq *q, size_t max)
{
	struct front f;
	ssize_t n;

	front_take(&f, q, max);
	do {
		n = sendmsg(fd, &f.m, MSG_DONTWAIT | MSG_NOSIGNAL);
	} while (n < 0 && errno == EINTR);
	return front_done(&f, q, n);
}

static ssize_t receive(int fd, struct mc_iovq *q, int flags, size_t max)
{
	struct front f;
	ssize_t n;

	front_take(&f, q, max);
	do {
		n = recvmsg(fd, &f.m, flags);
	} while (n < 0 && errno == EINTR);
	if (n == 0) {
		(void)front_done(&f, q, 0);
		return -MC_E_RESET;
	}
	return front_done(&f, q, n);
}

ssize_t mc_tcp_recv(int fd, struct mc_iovq *q, size_t max)
{
	return receive(fd, q, MSG_DONTWAIT, max);
}

ssize_t mc_tcp_recv_block(int fd, struct mc_iovq *q, bool is_all, size_t max)
{
	return receive(fd, q, is_all ? MSG_WAITALL : 0, max);
}

int mc_tcp_wait(int fd, short events, uint64_t block_ns)
{
	struct pollfd p = {.fd = fd, .events = events};
	struct timespec ts = {.tv_sec = (time_t)(block_ns / MC_NS_PER_S),
			      .tv_nsec = (long)(block_ns % MC_NS_PER_S)};
	int n = ppoll(&p, 1, &ts, NULL);

	return n > 0 ? p.revents : 0;
}

void mc_tcp_lowat(int fd, size_t bytes)
{
	int v = (int)bytes;

	/* A hint: without it the receiver only wakes more often. */
	(void)setsockopt(fd, SOL_SOCKET, SO_RCVLOWAT, &v, sizeof(v));
}

uint64_t mc_tcp_passed(int fd)
{
	struct tcp_info info = {0};
	socklen_t len = sizeof(info);

	return getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &len) == 0
		   ? info.tcpi_bytes_acked + info.tcpi_bytes_received
		   : 0;
}
