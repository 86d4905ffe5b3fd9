/*
 * tcp_priv.h: what the files of the TCP transport share: device, lane socket helpers.
 */
#ifndef MC_XPORT_TCP_PRIV_H
#define MC_XPORT_TCP_PRIV_H

#include <pthread.h>
#include <stdatomic.h>

#include "base/spin.h"
#include "xport/iovq.h"
#include "xport/tcp.h"
#include "xport/tcp_wire.h"

#define MC_TCP_LISTENERS_MAX 8
#define MC_TCP_RETIRED_MAX 4096 /* lanes remembered after their end */
#define MC_TCP_CONNS_DEFAULT 4096
#define MC_TCP_HELLO_NS_DEFAULT (10 * MC_NS_PER_S)
#define MC_TCP_RXBUF_BYTES MC_TCP_ADOPT_BYTES /* head of a request; a 4 KiB write fits whole */

struct mc_tcp_conn;
struct mc_tcp_dev;

/* A lane that ended or was retired: how far it got. Refused when it connects again. */
struct mc_tcp_retired {
	uint64_t initiator_epoch, lane;
	uint64_t acked;
};

struct mc_tcp_listener {
	struct mc_watch watch; /* on loops[0] */
	struct mc_tcp_dev *dev;
};

/* One loop's share of the inbound connections. Touched on that loop only, but for `hot` counters.
 */
struct mc_tcp_shard {
	struct mc_tcp_dev *dev;
	struct mc_loop *loop;
	struct mc_idler idler;
	struct mc_list conns; /* mc_tcp_conn.link */
	struct mc_list fresh; /* mc_tcp_conn.fresh_link, oldest first: no whole message came yet */
	struct mc_timer fresh_timer; /* runs while there are any */
	struct mc_list hot;	     /* connections worth polling before sleeping */
	struct mc_list again; /* turn is over, but their buffer holds more: no event will say so */
	struct mc_timer again_timer;
	bool is_spinning; /* holds a polling seat */
	struct mc_timer
	    stall_timer; /* runs while a region is being unregistered and peers are in requests */
	struct mc_task revoke_task;
	_Atomic bool is_revoke_posted;
	struct mc_spin spin;
	bool has_polled; /* in the wait that goes on */
	uint32_t budget_ns;
	uint64_t idle_since_ns; /* begin of that wait; 0: none */
	uint64_t polled_ns;
};

struct mc_tcp_dev {
	struct mc_xdev base; /* must be first */
	struct mc_xdev_env env;
	struct mc_tcp_listener listeners[MC_TCP_LISTENERS_MAX];
	unsigned nlisteners;
	uint16_t port;
	unsigned conns_max;
	uint64_t hello_ns;
	const char *preface; /* see struct mc_tcp_opts */
	int (*adopt)(void *user, int fd, const void *bytes, size_t len);
	void *adopt_user;
	struct mc_tcp_shard *shards;  /* env.nloops of them */
	struct mc_timer accept_timer; /* on loops[0]: runs while out of descriptors */
	_Atomic unsigned next_shard;
	_Atomic unsigned nconns;
	_Atomic bool is_closing;
	_Atomic uint64_t next_lane;
	struct mc_region_listener revoke;
	_Atomic unsigned nrevoking; /* regions whose last accesses are waited for */

	/* Guards the table of live and retired lanes: a lane goes from one to the other in one
	 * step. Leaf lock. */
	pthread_mutex_t lock;
	struct mc_list lanes; /* mc_tcp_conn.lane_link */
	struct mc_tcp_retired *retired;
	unsigned retired_n, retired_at;

	_Atomic uint64_t bytes[MC_OP_COUNT], requests[MC_OP_COUNT], refused;
};

extern const struct mc_xport_ops mc_tcp_ops;

/* tcp_conn.c: one inbound connection. Created by the acceptor, lives on its shard's loop. */
int mc_tcp_conn_start(struct mc_tcp_dev *dev, int fd);
void mc_tcp_shard_init(struct mc_tcp_shard *shard, struct mc_tcp_dev *dev, struct mc_loop *loop);
/* Any thread: a region is going; connections that hold it and do not move for a second are closed.
 */
void mc_tcp_shard_revoked(struct mc_tcp_shard *shard);
/* Any thread but the loop: close every connection of the shard. */
void mc_tcp_shard_drain(struct mc_tcp_shard *shard);
/* Any thread but the loop: close the shard's connection of this lane, if it is still there. */
void mc_tcp_shard_end_lane(struct mc_tcp_shard *shard, uint64_t initiator_epoch, uint64_t lane);

/* tcp_dev.c */
/** The connection shows its lane. @return 0; -MC_E_STALE: it was retired, or is another's */
int mc_tcp_dev_lane_begin(struct mc_tcp_dev *dev, struct mc_tcp_conn *c);
/** The connection is closed: nothing of the lane lands any more. */
void mc_tcp_dev_lane_end(struct mc_tcp_dev *dev, struct mc_tcp_conn *c);

/* tcp_lane.c */
int mc_tcp_lane_open(struct mc_xdev *dev, const struct mc_xpath *path, struct mc_xlane **ret_lane);
int mc_tcp_lane_post(struct mc_xlane *x, struct mc_slice **slices, unsigned n);
int mc_tcp_lane_poll(struct mc_xlane *x, uint64_t block_ns, struct mc_slice **ret_done,
		     unsigned max);
void mc_tcp_lane_arm(struct mc_xlane *x, struct mc_xarm *ret_arm);
uint64_t mc_tcp_lane_progress(const struct mc_xlane *x);
size_t mc_tcp_lane_abort(struct mc_xlane *x, struct mc_list *ret_left, uint8_t *ret_token);
void mc_tcp_lane_close(struct mc_xlane *x);

/* tcp_sock.c: socket calls with our error codes. All non-blocking unless they say so. */
/** At most `max` bytes (> 0) of q, as all of these. @return bytes; 0: would block; < 0 error. */
ssize_t mc_tcp_send(int fd, struct mc_iovq *q, size_t max);
/** As recvmsg into q, which is eaten. @return bytes; 0: would block; -MC_E_RESET at end of stream
 */
ssize_t mc_tcp_recv(int fd, struct mc_iovq *q, size_t max);
/** Blocks until something came, with is_all until q (or max) is full, or the socket's receive
 * timeout. */
ssize_t mc_tcp_recv_block(int fd, struct mc_iovq *q, bool is_all, size_t max);
/** Wait in the kernel. @return revents, 0: time is up */
int mc_tcp_wait(int fd, short events, uint64_t block_ns);
/** Bytes that the two kernels have passed on: acknowledged by the peer's, or received by ours, read
 * or not. 0 when this kernel does not tell. */
uint64_t mc_tcp_passed(int fd);
/** Wake the receiver only for at least `bytes`. */
void mc_tcp_lowat(int fd, size_t bytes);

#endif
