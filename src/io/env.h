/*
 * env.h: the outside world as an argument: clock, network and disk. What ships runs on mc_env_real;
 * the simulator gives the same object files a virtual clock, a network and a disk in memory.
 *
 * A network makes listeners and stream connections. All calls return at once, but wait(). One
 * thread at a time may send on a connection and one may receive, at the same time; watching is for
 * the loop's thread.
 */
#ifndef MC_IO_ENV_H
#define MC_IO_ENV_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "base/clock.h"
#include "io/disk.h"
#include "io/loop.h"
#include "io/sock.h"

#define MC_NET_FDS_MAX 8 /* descriptors with one send */

struct mc_net;

/** A connection or a listener. Implementations embed it. */
struct mc_net_sock {
	const struct mc_net *net;
};

/** Who is told that a connection or listener is ready; events as of epoll. */
struct mc_net_sink {
	void (*on_ready)(struct mc_net_sink *sink, uint32_t events);
};

struct mc_net {
	/** Polling instead of waiting makes sense: time passes by itself. */
	bool can_spin;

	/** Start a connection from `from` (NULL: any). @return as mc_sock_connect() */
	int (*connect)(const struct mc_net *net, const struct mc_addr *to,
		       const struct mc_addr *from, struct mc_net_sock **ret_sock);
	/** Outcome once it is writable. @return 0 or the error */
	int (*connect_result)(struct mc_net_sock *sock);
	int (*listen)(const struct mc_net *net, const struct mc_addr *at, int backlog,
		      struct mc_net_sock **ret_sock, struct mc_addr *ret_bound);
	/** @return 0; -MC_E_AGAIN; -MC_E_LIMIT (descriptors or memory: back off); -MC_E_IO */
	int (*accept)(struct mc_net_sock *listener, struct mc_net_sock **ret_sock,
		      struct mc_addr *ret_peer);
	/** Take over a connected descriptor (it stays the caller's on error). @return 0;
	 * -MC_E_NOMEM; -MC_E_UNSUPPORTED where connections have none */
	int (*adopt)(const struct mc_net *net, int fd, struct mc_net_sock **ret_sock);

	/**
	 * @param fds  descriptors to pass with the first byte (unix sockets); they stay the
	 * caller's
	 * @return bytes taken, >= 1; -MC_E_AGAIN; -MC_E_RESET; -MC_E_UNSUPPORTED (fds elsewhere)
	 */
	ssize_t (*send)(struct mc_net_sock *sock, const struct iovec *iov, int n, const int *fds,
			unsigned nfds);
	/**
	 * @param fds  room for MC_NET_FDS_MAX; what comes is CLOEXEC and the caller's
	 * @return bytes; 0 at the end of the stream; -MC_E_AGAIN; -MC_E_RESET; -MC_E_LIMIT when
	 * passed descriptors were lost for lack of room
	 */
	ssize_t (*recv)(struct mc_net_sock *sock, void *buf, size_t len, int *fds,
			unsigned *ret_nfds);
	/** As recv, and sleeps until something comes or it is `deadline_ns`; may also return
	 * -MC_E_AGAIN earlier. One system call less than wait and recv. Not on a loop. */
	ssize_t (*recv_wait)(struct mc_net_sock *sock, void *buf, size_t len, int *fds,
			     unsigned *ret_nfds, uint64_t deadline_ns);
	/** Both ends learn that it is over; wakes wait(). Any thread. */
	void (*shutdown)(struct mc_net_sock *sock);
	/** Unwatched before, except in the child of a fork(), whose loop is the parent's. */
	void (*close)(struct mc_net_sock *sock);

	/** Tell `sink` of these events (level-triggered) until unwatched. Loop thread. */
	int (*watch)(struct mc_net_sock *sock, struct mc_loop *loop, uint32_t events,
		     struct mc_net_sink *sink);
	int (*rewatch)(struct mc_net_sock *sock, uint32_t events);
	void (*unwatch)(struct mc_net_sock *sock);
	/** Sleep until one of `events` (of poll), an error, or `deadline_ns`. @return 0;
	 * -MC_E_TIMEDOUT. Any thread, not on a loop. */
	int (*wait)(struct mc_net_sock *sock, short events, uint64_t deadline_ns);
	/** The descriptor, or -1. For questions about the peer (credentials), not for I/O. */
	int (*fd)(const struct mc_net_sock *sock);
	/** TCP_NODELAY and, unless 0, mc_sock_user_timeout(). Once, before the first recv_wait().
	 */
	int (*tune)(struct mc_net_sock *sock, uint32_t user_timeout_ms);
};

struct mc_env {
	const struct mc_clock *clk;
	const struct mc_net *net;
	const struct mc_disk *disk; /* NULL where nothing uses it */
};

/** TCP and unix sockets of the kernel. */
extern const struct mc_net mc_net_real;
extern const struct mc_env mc_env_real;

#endif
