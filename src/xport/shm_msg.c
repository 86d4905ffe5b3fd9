/*
 * shm_msg.c: the rendezvous messages and the identity of whoever sent them.
 */
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "xport/shm_priv.h"

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77 /* Linux 6.5 */
#endif

int mc_shm_msg_send(int sock, const struct mc_shm_msg *msg, int fd)
{
	struct mc_shm_msg copy = *msg;
	struct iovec iov = {&copy, sizeof(copy)};
	_Alignas(struct cmsghdr) char ctl[CMSG_SPACE(sizeof(int))] = {0};
	struct msghdr hdr = {.msg_iov = &iov, .msg_iovlen = 1};
	struct cmsghdr *c;
	ssize_t n;

	copy.magic = MC_SHM_MSG_MAGIC;
	copy.version = MC_SHM_MSG_VERSION;
	if (fd >= 0) {
		hdr.msg_control = ctl;
		hdr.msg_controllen = sizeof(ctl);
		c = CMSG_FIRSTHDR(&hdr);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(c), &fd, sizeof(fd));
	}
	do {
		n = sendmsg(sock, &hdr, MSG_NOSIGNAL);
	} while (n < 0 && errno == EINTR);
	if (n < 0)
		return errno == EPIPE ? -MC_E_RESET : mc_err_from_errno(errno);
	return n == (ssize_t)sizeof(copy) ? 0 : -MC_E_IO;
}

/* The descriptor of a received message, or -1. */
static int ctl_fd(struct msghdr *hdr)
{
	struct cmsghdr *c;
	int fd = -1;

	for (c = CMSG_FIRSTHDR(hdr); c; c = CMSG_NXTHDR(hdr, c)) {
		if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS &&
		    c->cmsg_len == CMSG_LEN(sizeof(int)))
			memcpy(&fd, CMSG_DATA(c), sizeof(fd));
	}
	return fd;
}

int mc_shm_msg_recv(int sock, struct mc_shm_msg *ret_msg, int *ret_fd)
{
	struct mc_shm_msg msg;
	struct iovec iov = {&msg, sizeof(msg)};
	_Alignas(struct cmsghdr) char ctl[CMSG_SPACE(sizeof(int))];
	struct msghdr hdr = {
	    .msg_iov = &iov,
	    .msg_iovlen = 1,
	    .msg_control = ctl,
	    /* LEN, not SPACE: no room for a second descriptor, which the kernel then drops */
	    .msg_controllen = CMSG_LEN(sizeof(int))};
	ssize_t n;
	int fd, rc = 0;

	do {
		n = recvmsg(sock, &hdr, MSG_CMSG_CLOEXEC);
	} while (n < 0 && errno == EINTR);
	if (n < 0)
		return mc_err_from_errno(errno);
	if (n == 0)
		return -MC_E_RESET;
	fd = ctl_fd(&hdr);
	if (n != (ssize_t)sizeof(msg) || (hdr.msg_flags & MSG_TRUNC) != 0 ||
	    msg.magic != MC_SHM_MSG_MAGIC)
		rc = -MC_E_PROTO;
	else if (msg.version != MC_SHM_MSG_VERSION)
		rc = -MC_E_VERSION;
	else if ((hdr.msg_flags & MSG_CTRUNC) != 0)
		rc = -MC_E_LIMIT;
	if (rc < 0) {
		mc_fd_close(&fd);
		return rc;
	}
	*ret_msg = msg;
	*ret_fd = fd;
	return 0;
}

int mc_shm_pidfd_of(int sock, pid_t pid)
{
	socklen_t len = sizeof(int);
	int fd = -1;

	/* The first cannot name a reused pid, and works across pid namespaces. */
	if (getsockopt(sock, SOL_SOCKET, SO_PEERPIDFD, &fd, &len) == 0)
		return fd;
	return pid > 0 ? (int)syscall(SYS_pidfd_open, pid, 0) : -1;
}

bool mc_shm_pidfd_is_dead(int pidfd)
{
	struct pollfd p = {.fd = pidfd, .events = POLLIN};

	return pidfd >= 0 && poll(&p, 1, 0) > 0;
}
