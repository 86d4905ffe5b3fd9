/*
 * conn.h: the client's end, shared by conn.c (life, loop), call.c (calls, frames) and wait.c
 * (callers that drive). Private to src/rpc.
 */
#ifndef MC_RPC_CONN_H
#define MC_RPC_CONN_H

#include "base/spin.h"
#include "rpc/chan.h"

#define MC_RPC_SLOT_BITS 12
#define MC_RPC_DRAINED (1u << 31)
_Static_assert(MC_RPC_CALLS_MAX == 1 << MC_RPC_SLOT_BITS, "a call id holds its slot");

/** Values of mc_rpc_call.phase. */
enum mc_rpc_phase {
	MC_RPC_PENDING,
	MC_RPC_ASLEEP,	 /* its waiter sleeps on the word */
	MC_RPC_TAKEOVER, /* its waiter is to take the receiver's seat */
	MC_RPC_DONE,
};

struct mc_rpc_slot {
	struct mc_rpc_call *call; /* NULL: free */
	uint64_t gen;		  /* of the id; raised when the call ends */
	uint32_t next_free;
};

struct mc_rpc_conn {
	struct mc_chan ch;
	struct mc_env env;
	struct mc_loop *loop;
	struct mc_rpc_conn_opts opts;
	uint64_t fork_gen;

	/* under ch.lock */
	struct mc_rpc_slot *slots;     /* opts.calls_max */
	uint32_t slot_free;	       /* first of the free list; calls_max: none */
	uint32_t ncalls, ncalls_async; /* in flight; of those without a waiter */
	uint32_t nabandoned;	       /* ended here, but the server has not answered yet */
	uint32_t nstreams;
	uint32_t calls_limit, frame_limit;
	struct mc_heap deadlines;    /* of calls without a waiter; room for all */
	uint64_t timer_at_ns;	     /* what the loop's timer is set to */
	struct mc_list waiters;	     /* calls whose waiter sleeps */
	struct mc_list room_waiters; /* calls of mc_rpc_sync() that could not start yet */
	struct mc_rpc_call *pinned;  /* a callback of it runs: end it afterwards, with pinned_rc */
	int pinned_rc;
	_Atomic bool is_room_wanted; /* somebody was refused; read without the lock as a hint */
	bool is_task_posted, is_closing, is_freed_by_task;
	bool is_in_armed; /* the loop will be told of input */
	bool is_hup;	  /* the loop saw the end and stopped watching */
	bool is_lost;	  /* all calls are ended */

	_Atomic uint32_t users; /* threads in mc_rpc_wait() and mc_rpc_sync(); and
				   MC_RPC_DRAINED, once somebody waits for their end */

	/* the receiver's */
	struct mc_spin spin;

	/* the loop's */
	struct mc_task task;
	struct mc_timer timer;
	struct mc_net_sink sink;
	bool is_watched, is_down_told;
};

/** Have conn's task run on the loop. Lock held. */
void mc_rpc_conn_kick(struct mc_rpc_conn *conn);
/** Receive once, sleeping until `wait_ns` unless 0. Receiver's seat. @return as mc_chan_recv(); on
 * an error all calls have ended */
ssize_t mc_rpc_conn_progress(struct mc_rpc_conn *conn, uint64_t wait_ns);
/** Nobody has the receiver's seat: offer it to a waiter, else to the loop. Lock held. */
void mc_rpc_conn_offer(struct mc_rpc_conn *conn);
/** Leave the receiver's seat and offer it. */
void mc_rpc_conn_leave(struct mc_rpc_conn *conn);
/** Wake who waits for room, if there is some. Lock held. @return true: call opts.on_room later */
MC_MUST_CHECK bool mc_rpc_conn_room(struct mc_rpc_conn *conn);
/** Wake the first call of a list of waiters. Lock held. @return false: nobody to wake */
bool mc_rpc_conn_wake(struct mc_list *waiters);
/** Send; the loop goes on when the socket is full. */
void mc_rpc_conn_flush(struct mc_rpc_conn *conn);

/** mc_chan's callback. */
int mc_rpc_conn_frame(struct mc_chan *ch, const struct mc_frame *f, struct mc_rpc_msg *msg);
/** Take a call out of flight, to be ended with rc, and tell the server that it need not answer.
 * Lock held. @return the call for mc_rpc_call_end(), or NULL: has ended or will, without you */
struct mc_rpc_call *mc_rpc_call_abandon(struct mc_rpc_conn *conn, uint64_t id, int rc);
/** Tell the owner. The call is out of flight; lock not held. `reply` NULL: no answer. */
void mc_rpc_call_end(struct mc_rpc_call *call, int rc, const struct mc_rpc_msg *reply);
/** End all calls: the connection is gone. Receiver's seat. */
void mc_rpc_conn_lost(struct mc_rpc_conn *conn, int rc);

#endif
