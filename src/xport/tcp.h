/*
 * tcp.h: the TCP transport. One data port serves our frames (tcp_wire.h) and upstream's
 * (tcp_classic.h); one device opens lanes of either kind. Payload goes by scatter/gather between
 * socket and memory, without a copy of ours in between.
 */
#ifndef MC_XPORT_TCP_H
#define MC_XPORT_TCP_H

#include "xport/xport.h"

#define MC_TCP_ADOPT_BYTES 4608u /* most bytes handed over */

struct mc_tcp_opts {
	struct mc_addr addrs[8]; /* addresses to listen on; all get the same port */
	unsigned naddrs;
	uint16_t port_min, port_max; /* the port is chosen here */
	unsigned conns_max;	     /* inbound connections at once; 0: 4096 */
	uint64_t hello_ns; /* an inbound connection's first message has to be whole by then; 0: 10 s
			    */
	/**
	 * Connections that begin with these 8 bytes are somebody else's: handed over with what was
	 * read. NULL: none. @return 0: fd is the callee's; < 0: it is closed. Any loop.
	 */
	const char *preface;
	int (*adopt)(void *user, int fd, const void *bytes, size_t len);
	void *adopt_user;
};

/** @return 0; -MC_E_ADDR; -MC_E_ADDR_IN_USE (no free port in the range); -MC_E_LIMIT; -MC_E_NOMEM
 */
MC_MUST_CHECK int mc_tcp_dev_open(const struct mc_xdev_env *env, const struct mc_tcp_opts *opts,
				  struct mc_xdev **ret_dev);
uint16_t mc_tcp_dev_port(const struct mc_xdev *dev);
/** Lanes that speak upstream's frames. @param proto 2 (writes are acknowledged) or 1 (they are
 * not). Same device. */
MC_MUST_CHECK int mc_tcp_classic_lane_open(struct mc_xdev *dev, const struct mc_xpath *path,
					   int proto, struct mc_xlane **ret_lane);

/** Bytes and requests served to peers, for metrics. */
struct mc_tcp_served {
	uint64_t bytes[MC_OP_COUNT];
	uint64_t requests[MC_OP_COUNT];
	uint64_t refused;
	uint64_t conns;
};
void mc_tcp_dev_served(const struct mc_xdev *x, struct mc_tcp_served *ret);

#endif
