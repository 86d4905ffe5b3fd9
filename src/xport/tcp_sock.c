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

static struct msghdr msg_of(struct mc_iovq *q)
{
	return (struct msghdr){.msg_iov = &q->v[q->at], .msg_iovlen = q->n - q->at};
}

ssize_t mc_tcp_send(int fd, struct mc_iovq *q)
{
	struct msghdr m = msg_of(q);
	ssize_t n;

	do {
		n = sendmsg(fd, &m, MSG_DONTWAIT | MSG_NOSIGNAL);
	} while (n < 0 && errno == EINTR);
	if (n < 0)
		return errno == EAGAIN || errno == EWOULDBLOCK ? 0 : mc_err_from_errno(errno);
	mc_iovq_eat(q, (size_t)n);
	return n;
}

static ssize_t receive(int fd, struct mc_iovq *q, int flags)
{
	struct msghdr m = msg_of(q);
	ssize_t n;

	do {
		n = recvmsg(fd, &m, flags);
	} while (n < 0 && errno == EINTR);
	if (n == 0)
		return -MC_E_RESET;
	if (n < 0)
		return errno == EAGAIN || errno == EWOULDBLOCK ? 0 : mc_err_from_errno(errno);
	mc_iovq_eat(q, (size_t)n);
	return n;
}

ssize_t mc_tcp_recv(int fd, struct mc_iovq *q)
{
	return receive(fd, q, MSG_DONTWAIT);
}

ssize_t mc_tcp_recv_block(int fd, struct mc_iovq *q, bool is_all)
{
	return receive(fd, q, is_all ? MSG_WAITALL : 0);
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
