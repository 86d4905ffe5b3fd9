/*
 * peer.h: one connection at the server, shared by server.c (listening, life) and peer.c (frames,
 * requests). Private to src/rpc.
 *
 * A peer lives as long as the loop or a request needs it: `refs` counts the server, each request,
 * and a posted task. Its socket is read by the loop only.
 */
#ifndef MC_RPC_PEER_H
#define MC_RPC_PEER_H

#include "base/spin.h"
#include "rpc/chan.h"

/** What stands behind a struct mc_rpc_req. Members below `id` are under the peer's lock. */
struct mc_rpc_req_priv {
	struct mc_rpc_req req;
	uint64_t id;
	struct mc_rpc_req_priv *next; /* of its bucket, or free */
	struct mc_list link;	      /* in peer->live */
	uint32_t send_credit, recv_credit;
	struct mc_hist *latency; /* NULL: not measured */
	uint64_t start_ns;
	bool is_dead;	     /* nobody wants the answer */
	bool is_cancel_told; /* on_cancel was or is not to be called */
	bool is_send_over, is_recv_over, is_room_wanted;
	bool is_pinned;	  /* a callback runs on the loop */
	bool is_answered; /* only the pin keeps it */
};

struct mc_rpc_peer {
	struct mc_chan ch;
	struct mc_rpc_server *server; /* NULL once lost */
	struct mc_loop *loop;
	struct mc_addr addr;
	uint64_t fork_gen;

	/* under ch.lock */
	uint32_t refs;
	struct mc_rpc_req_priv **buckets; /* calls in flight by id */
	uint32_t nbuckets;
	struct mc_list live;
	struct mc_rpc_req_priv *free_reqs;
	uint32_t ncalls, nstreams;
	bool is_task_posted, is_lost;

	/* the loop's */
	struct mc_list link; /* in the server's list */
	struct mc_task task;
	struct mc_timer hello_timer;
	struct mc_net_sink sink;
	void *user;
	bool is_watched, is_watched_plain; /* plain: for input only, the normal case */
	bool is_up;
	bool is_in_batch; /* answers are sent when the whole batch is handled */
};

struct mc_rpc_listener {
	struct mc_net_sink sink;
	struct mc_net_sock *sock;
	struct mc_rpc_server *server;
	bool is_watched;
	struct mc_rpc_listener *next;
};

/** The loop's, but for `stats`. */
struct mc_rpc_server {
	struct mc_env env;
	struct mc_loop *loop;
	struct mc_rpc_server_opts opts;
	struct mc_rpc_method *methods; /* opts.nmethods, by number */
	uint64_t fork_gen;
	struct mc_list peers;
	struct mc_rpc_listener *listeners;
	struct mc_timer accept_timer; /* back-off after running out of descriptors */
	struct mc_idler idler;
	struct mc_spin spin;
	uint64_t idle_since_ns; /* 0: busy */
	uint64_t polled_ns;
	uint32_t spin_budget_ns;
	bool has_spin_seat, has_polled, is_closing;
	struct {
		_Atomic uint64_t accepted, refused, lost, calls, bad_frames;
		_Atomic uint32_t conns;
	} stats;
};

/** Serve a new connection. Takes `sock` over, also on failure. @return 0; -MC_E_NOMEM; -MC_E_LIMIT
 */
int mc_rpc_peer_add(struct mc_rpc_server *server, struct mc_net_sock *sock,
		    const struct mc_addr *addr, const void *first_bytes, size_t n);
/** Lose it: tells the server's owner and all handlers. Loop thread. The peer may be gone then. */
void mc_rpc_peer_lose(struct mc_rpc_peer *peer, int rc);
/** Frees everything of a peer of the parent process. */
void mc_rpc_peer_forked(struct mc_rpc_peer *peer);
/** A connection has ended: there may be room for another one. */
void mc_rpc_server_resume(struct mc_rpc_server *server);
/** Input came: the loop was not idle for nothing. */
void mc_rpc_server_busy(struct mc_rpc_server *server);

#endif
