/*
 * chan.h: frames over one stream connection, the part that both ends share. Private to src/rpc.
 *
 * Two seats, each held by at most one thread: the sender's and the receiver's. What is to be sent
 * is appended to `pending` under the lock by anybody; the holder of the sender's seat swaps it with
 * `sending` and sends that without the lock, until both are empty or the socket is full. So frames
 * that come close together leave in one system call, and nobody waits for a system call under a
 * lock.
 *
 * The first thing that goes wrong is kept in `rc`; then nothing is appended or sent any more, and
 * the socket is shut down, which brings the receiver to the end of the stream: the one place where
 * a connection is torn down.
 */
#ifndef MC_RPC_CHAN_H
#define MC_RPC_CHAN_H

#include <pthread.h>

#include "base/list.h"
#include "io/env.h"
#include "rpc/rpc.h"
#include "wire/frame.h"

#define MC_CHAN_FDS_MAX 32 /* descriptors waiting to be sent, and waiting for their frame */

/** Bytes that wait to be sent. */
struct mc_chan_buf {
	uint8_t *data;
	size_t len, cap;
};

/** Descriptors that leave with byte `at` of the buffer. */
struct mc_chan_mark {
	size_t at;
	int fds[MC_FRAME_FDS_MAX];
	unsigned n;
};

struct mc_chan_marks {
	struct mc_chan_mark mark[MC_CHAN_FDS_MAX / 4];
	unsigned n;
};

struct mc_chan;

/** A whole frame came. @return 0; 1: pause, handle no more until mc_chan_resume(); or an error that
 * ends the connection. Receiver's seat. */
typedef int mc_chan_frame_fn(struct mc_chan *ch, const struct mc_frame *f, struct mc_rpc_msg *msg);

struct mc_chan {
	const struct mc_net *net;
	struct mc_net_sock *sock;
	mc_chan_frame_fn *on_frame;
	size_t frame_max, queue_max;

	/* Guards the owner's state too (conn.c, server.c). Innermost: nothing is locked under it.
	 */
	pthread_mutex_t lock;
	int rc;
	struct mc_chan_buf pending;
	struct mc_chan_marks pending_marks;
	bool is_sending;   /* the sender's seat is taken */
	bool is_receiving; /* the receiver's seat is taken */
	bool is_blocked;   /* wait for "writable" before sending */
	bool is_connected;

	/* the sender's */
	struct mc_chan_buf sending;
	struct mc_chan_marks sending_marks;
	size_t sent;

	/* the receiver's */
	uint8_t *in;
	size_t in_at, in_len, in_cap;
	bool has_preface, has_hello, is_paused;
	int fds[MC_CHAN_FDS_MAX];
	unsigned nfds;
};

/** @param sock taken over, also on failure. @return 0; -MC_E_NOMEM */
int mc_chan_init(struct mc_chan *ch, const struct mc_net *net, struct mc_net_sock *sock,
		 mc_chan_frame_fn *on_frame, size_t frame_max, size_t queue_max);
/** Closes the socket. Both seats are free, and it is unwatched. Harmless on a zeroed one. */
void mc_chan_fini(struct mc_chan *ch);

/** Append a frame. Lock held. @return 0; -MC_E_AGAIN (queue full); -MC_E_NOMEM; -MC_E_LIMIT
 * (descriptors); -MC_E_UNSUPPORTED (descriptors over this socket); ch->rc */
int mc_chan_put(struct mc_chan *ch, const struct mc_frame *f, const void *payload, const int *fds);
/** As put, beyond the limit of the queue: a piece of a stream, which has its own limit, the credit.
 */
int mc_chan_put_stream(struct mc_chan *ch, const struct mc_frame *f, const void *payload);
/** As put, without payload and beyond the limit of the queue: what must get through. */
void mc_chan_put_short(struct mc_chan *ch, const struct mc_frame *f);
/** The two opening messages. Lock held or nobody else. */
int mc_chan_put_hello(struct mc_chan *ch, const struct mc_frame_hello *hello);
/** Take the sender's seat for one frame. Lock held. @return false: others send or wait, or the
 * socket is full: mc_chan_put() it */
bool mc_chan_claim(struct mc_chan *ch);
/**
 * Send a frame without descriptors from where it is, in front of what others put meanwhile, and
 * leave the seat that mc_chan_claim() took. What the socket does not take at once is copied; an
 * error breaks the connection. Lock not held; mc_chan_flush() follows.
 * @param payload  of f->payload_len >= 1 bytes; the caller's again after it
 */
void mc_chan_send_claimed(struct mc_chan *ch, const struct mc_frame *f, const void *payload);
/** Send what is pending unless somebody else does. Lock not held. @return true when the socket is
 * full: somebody has to watch for "writable" */
bool mc_chan_flush(struct mc_chan *ch);
/** The socket is writable: finishes the connection, sends. As mc_chan_flush(). */
bool mc_chan_writable(struct mc_chan *ch);
/** Keep the first error and shut the socket down. Lock held. */
void mc_chan_break(struct mc_chan *ch, int rc);
/** Bytes that wait. Lock held. */
size_t mc_chan_queued(const struct mc_chan *ch);

/** Take or leave the receiver's seat. Lock held. @return false: taken by another */
bool mc_chan_take(struct mc_chan *ch);
/**
 * Read once and handle the frames that are whole. Receiver's seat; lock not held.
 * @param wait_ns  sleep until then for something to come; 0: do not. Not on a loop.
 * @return bytes read, >= 1; -MC_E_AGAIN: nothing there; else the connection is over: why
 */
ssize_t mc_chan_recv(struct mc_chan *ch, uint64_t wait_ns);
/** Go on after a pause. @return as mc_chan_feed() */
int mc_chan_resume(struct mc_chan *ch);
/** Bytes that came before: the entry of the parser, which mc_chan_recv() uses as well. @return 0 or
 * why the connection is over */
int mc_chan_feed(struct mc_chan *ch, const void *data, size_t len);

#endif
