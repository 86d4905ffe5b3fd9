/*
 * raw_http.h: bytes of a stranger on the port of an HTTP server, and an honest request after them.
 */
#ifndef MC_FUZZ_RAW_HTTP_H
#define MC_FUZZ_RAW_HTTP_H

#include <poll.h>
#include <stdint.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"
#include "io/sock.h"

#define RAW_HTTP_WAIT_NS (60 * MC_NS_PER_S) /* a virtual machine may stand still for long */

/* @param cut  sent first. @return the socket */
static inline int raw_http_say(const struct mc_addr *at, const uint8_t *data, size_t len,
			       size_t cut)
{
	uint64_t end_ns = mc_now_ns() + RAW_HTTP_WAIT_NS;
	int fd;

	mc_assert(mc_sock_connect(at, NULL, &fd) == 0);
	mc_assert(mc_sock_wait(fd, POLLOUT, end_ns) == 0);
	(void)mc_sock_nodelay(fd);
	/* Either may fail: the server hangs up on junk. */
	if (mc_sock_send_all(fd, data, cut, end_ns) == 0)
		(void)mc_sock_send_all(fd, data + cut, len - cut, end_ns);
	return fd;
}

/* The loop serves one after the other, so what came before has been dealt with. */
static inline void raw_http_be_served(const struct mc_addr *at)
{
	static const uint8_t honest[] = "GET / HTTP/1.0\r\n\r\n";
	int fd = raw_http_say(at, honest, sizeof(honest) - 1, 0);
	uint64_t end_ns = mc_now_ns() + RAW_HTTP_WAIT_NS;
	uint8_t answer[256];
	size_t got = 0;
	ssize_t n;

	do {
		mc_assert(mc_sock_wait(fd, POLLIN, end_ns) == 0); /* the driver has signals */
		n = recv(fd, answer, sizeof(answer), MSG_DONTWAIT);
		mc_assert(n >= 0);
		got += (size_t)n;
	} while (n > 0);
	mc_assert(got > 0);
	(void)close(fd);
}

#endif
