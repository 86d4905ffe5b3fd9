/*
 * rpc.h: calls over one stream connection: pipelined, with deadlines, cancel, streams and passed
 * descriptors.
 *
 * Client. Any number of threads share a connection. Sending: whoever has something to send takes
 * the sender's seat, and sends what others queued meanwhile, too. Receiving: a thread in
 * mc_rpc_wait() borrows the receiver's seat and reads the socket itself, so an answer costs one
 * wake-up; while no thread waits the loop has the seat. Whoever has it completes everybody's calls:
 * callbacks run on any thread, must not block, and must not close the connection.
 *
 * Every started call ends exactly once: reply, deadline, cancel, loss of the connection, or close.
 *
 * Server. One loop; bounded in connections, calls, frame size and queued reply bytes. A handler
 * answers at once, or later from any thread. Full means that the server stops reading (replies) or
 * accepting (connections); our client keeps to the server's limit of calls by itself.
 *
 * After fork() the child's calls return -MC_E_FORKED; it may only close.
 */
#ifndef MC_RPC_RPC_H
#define MC_RPC_RPC_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/heap.h"
#include "base/list.h"
#include "base/stats.h"
#include "io/env.h"
#include "wire/frame.h"

struct mc_rpc_conn;
struct mc_rpc_server;
struct mc_rpc_peer;

#define MC_RPC_CALLS_MAX 4096	      /* in flight on one connection; default 1024 */
#define MC_RPC_CALLS_START 64	      /* until the server has said its limit; no server has less */
#define MC_RPC_STREAMS_MAX 64	      /* streams in flight on one connection */
#define MC_RPC_FRAME_MAX (64u << 20)  /* largest configurable payload; default 16 MiB */
#define MC_RPC_QUEUE_MAX (256u << 20) /* largest configurable send queue; default 32 MiB */

/** A payload that came. Views: valid during the callback only. */
struct mc_rpc_msg {
	const uint8_t *data;
	size_t len;
	int *fds; /* closed after the callback, but those that it replaced by -1 */
	unsigned nfds;
};

/* ---- client ---- */

enum mc_rpc_call_flag {
	MC_RPC_WAITED = 1, /* mc_rpc_wait() will be called; the call must live until it returns */
	MC_RPC_MORE = 2,   /* more calls follow at once: do not send before mc_rpc_flush() */
	MC_RPC_STREAM = 4, /* chunks in both directions until the reply */
};

/** One call, embedded in its owner, which keeps it until it ends. Zero what is not used. */
struct mc_rpc_call {
	/* set by the caller; `req` and `fds` are needed only during mc_rpc_start() */
	uint16_t method;
	uint8_t flags; /* enum mc_rpc_call_flag */
	const void *req;
	size_t req_len;
	const int *fds;	      /* passed as duplicates; unix sockets only */
	unsigned nfds;	      /* <= MC_FRAME_FDS_MAX */
	uint64_t deadline_ns; /* of the connection's clock; 0 and MC_TIME_NEVER: none */
	void *reply_buf;      /* where the reply's payload is copied to; may be NULL */
	size_t reply_cap;
	/**
	 * The end. Unless MC_RPC_WAITED the call is the owner's again from here, which may free it.
	 * @param rc     0; the handler's error; or what ended the call without an answer
	 *               (TIMEDOUT, CANCELED, CLOSED, TOO_BIG for reply_buf, a connection error)
	 * @param reply  what the handler answered, empty but not NULL without an answer
	 */
	void (*on_end)(struct mc_rpc_call *call, int rc, const struct mc_rpc_msg *reply);
	/** MC_RPC_STREAM: a piece came. Grant more with mc_rpc_call_credit() once it is used up. */
	void (*on_chunk)(struct mc_rpc_call *call, const void *data, size_t len, bool is_last);
	/** MC_RPC_STREAM: mc_rpc_call_send() may be tried again. */
	void (*on_room)(struct mc_rpc_call *call);
	void *user;

	/* results, valid at the end */
	uint64_t id; /* from start on; names the call for cancel, send and credit */
	int rc;
	bool is_answered; /* rc is the handler's word */
	size_t reply_len; /* of the payload, also when it did not fit */

	/* rpc's */
	struct mc_heap_node deadline_node;
	struct mc_list wait_link;
	_Atomic uint32_t phase;
	uint32_t send_credit, recv_credit;
	bool is_send_over, is_recv_over, is_room_wanted;
};

struct mc_rpc_conn_opts {
	uint32_t calls_max;	    /* 0: default, as below */
	uint32_t frame_max;	    /* payload bytes of one frame that we accept */
	uint32_t queue_max;	    /* bytes waiting to be sent */
	uint32_t user_timeout_ms;   /* see mc_sock_user_timeout(); 0: the system's */
	const struct mc_addr *from; /* NULL: any; used during open only */
	void (*on_up)(void *user);  /* the server's hello came. May be NULL. */
	/** Lost (not closed by us): once, on the loop, after the end of all calls. May close the
	 * connection. May be NULL. */
	void (*on_down)(void *user, int rc);
	void (*on_room)(void *user); /* a start that returned -MC_E_AGAIN would succeed now */
	void *user;
};

/**
 * Connect. Returns before the connection is up; calls may be started at once and are sent when it
 * is.
 *
 * @param loop  drives the connection when no caller does; outlives it
 * @param opts  copied; NULL: defaults
 * @return 0; -MC_E_NOMEM; an error of the connection that is known at once. Any thread.
 */
int mc_rpc_conn_open(const struct mc_env *env, struct mc_loop *loop, const struct mc_addr *to,
		     const struct mc_rpc_conn_opts *opts, struct mc_rpc_conn **ret_conn);
/** Ends all calls with -MC_E_CLOSED, returns when no thread is in the connection any more. NULL is
 * allowed. Any thread; not from a callback of the connection. */
void mc_rpc_conn_close(struct mc_rpc_conn *conn);
/** 0 while usable, else why it is lost. Any thread. */
int mc_rpc_conn_status(struct mc_rpc_conn *conn);

/**
 * Start a call.
 * @return 0: it ends later, through on_end and mc_rpc_wait(), possibly before this returns;
 * -MC_E_AGAIN (calls in flight or send queue full, see on_room); -MC_E_TOO_BIG (payload above what
 * the server takes); -MC_E_FORKED; why the connection is lost. Not 0: nothing was sent or called.
 * Any thread; never blocks.
 */
MC_MUST_CHECK int mc_rpc_start(struct mc_rpc_conn *conn, struct mc_rpc_call *call);
/** Send what MC_RPC_MORE held back. Any thread. */
void mc_rpc_flush(struct mc_rpc_conn *conn);
/** Wait for the end of a started MC_RPC_WAITED call, doing the connection's work meanwhile.
 * @return call->rc. Any thread but a loop's. */
int mc_rpc_wait(struct mc_rpc_conn *conn, struct mc_rpc_call *call);
/** Start (waiting for room if there is none) and wait. Sets MC_RPC_WAITED. @return call->rc */
int mc_rpc_sync(struct mc_rpc_conn *conn, struct mc_rpc_call *call);
/** End a call now with -MC_E_CANCELED and tell the server. @return 0; -MC_E_STALE: it has ended.
 * Any thread. */
int mc_rpc_cancel(struct mc_rpc_conn *conn, uint64_t id);

/** Send a piece of a stream. @return 0; -MC_E_AGAIN (no credit or queue full: on_room follows);
 * -MC_E_STALE (ended); -MC_E_INVAL (after the last piece); -MC_E_TOO_BIG (above
 * MC_FRAME_CREDIT_START, which is also the first credit). Any thread. */
int mc_rpc_call_send(struct mc_rpc_conn *conn, uint64_t id, const void *data, size_t len,
		     bool is_last);
/** Let the server send `bytes` more. @return 0; -MC_E_STALE */
int mc_rpc_call_credit(struct mc_rpc_conn *conn, uint64_t id, uint32_t bytes);

/* ---- server ---- */

/**
 * A call at the server. The handler answers each exactly once with mc_rpc_reply(), also when the
 * client is gone. Until then the object lives.
 */
struct mc_rpc_req {
	uint16_t method;
	bool is_stream;
	uint64_t deadline_ns;	  /* of the server's clock; MC_TIME_NEVER: none */
	struct mc_rpc_peer *peer; /* lives as long as the request */
	void *user;		  /* the handler's */
	/** Set by the handler of a stream before it returns; called on the loop. */
	void (*on_chunk)(struct mc_rpc_req *req, const void *data, size_t len, bool is_last);
	void (*on_room)(struct mc_rpc_req *req);
	/** The client cancelled or is gone: the answer will be dropped. Called at most once, on the
	 * loop; the handler may answer in it. May be NULL. */
	void (*on_cancel)(struct mc_rpc_req *req);
};

struct mc_rpc_method {
	uint16_t method;
	const char *name; /* for logs and metrics */
	/** Called on the server's loop; must not block. `msg` is valid during the call. */
	void (*handle)(struct mc_rpc_req *req, const struct mc_rpc_msg *msg, void *user);
	void *user;
	/** Nanoseconds from a call to its answer are added to it; NULL: not measured. Outlives the
	 * server's requests. */
	struct mc_hist *latency;
};

struct mc_rpc_server_opts {
	uint32_t conns_max; /* 0: 1024 */
	uint32_t calls_max; /* in flight on one connection, >= MC_RPC_CALLS_START; 0: 1024 */
	uint32_t frame_max; /* 0: 16 MiB */
	uint32_t queue_max; /* reply bytes waiting on one connection; 0: 32 MiB */
	uint32_t hello_ms;  /* a connection must have said hello by then; 0: 10 s */
	uint32_t user_timeout_ms;
	const struct mc_rpc_method *methods; /* copied */
	unsigned nmethods;
	void (*on_up)(struct mc_rpc_peer *peer, void *user); /* on the loop */
	void (*on_down)(struct mc_rpc_peer *peer, int rc, void *user);
	void *user;
};

/** @return 0; -MC_E_NOMEM; -MC_E_INVAL (a method twice, or bad limits). Any thread. */
int mc_rpc_server_open(const struct mc_env *env, struct mc_loop *loop,
		       const struct mc_rpc_server_opts *opts, struct mc_rpc_server **ret_server);
/** Stop listening and lose all connections; no handler is called from then on. Requests not yet
 * answered stay valid until they are. Any thread but in a handler. */
void mc_rpc_server_close(struct mc_rpc_server *server);
/** Accept connections on this address too. @return 0; as mc_sock_listen(). Any thread. */
int mc_rpc_server_listen(struct mc_rpc_server *server, const struct mc_addr *at,
			 struct mc_addr *ret_bound);
/**
 * Serve a connection that somebody else accepted, after reading `n` bytes of it (the control port
 * sniffs). Takes the descriptor over on success.
 * @return 0; -MC_E_LIMIT (connections); -MC_E_NOMEM. Loop thread.
 */
int mc_rpc_server_adopt(struct mc_rpc_server *server, int fd, const void *first_bytes, size_t n);

/**
 * Answer. `req` is gone after it.
 * @param status  0 or -enum mc_err for the caller
 * @param fds     passed as duplicates; unix sockets only
 * @return 0; else the answer could not be sent and, where possible, an error was instead:
 * -MC_E_CLOSED (client gone), -MC_E_CANCELED, -MC_E_TOO_BIG, -MC_E_NOMEM. Any thread.
 */
int mc_rpc_reply(struct mc_rpc_req *req, int status, const void *data, size_t len, const int *fds,
		 unsigned nfds);
/** As mc_rpc_call_send(); -MC_E_CANCELED when nobody wants it any more. */
int mc_rpc_req_send(struct mc_rpc_req *req, const void *data, size_t len, bool is_last);
int mc_rpc_req_credit(struct mc_rpc_req *req, uint32_t bytes);
/** Nobody waits for the answer any more (cancelled or gone). Any thread. */
bool mc_rpc_req_is_dead(struct mc_rpc_req *req);

/** For the server's owner: what it knows of this client. Loop thread. */
void mc_rpc_peer_set_user(struct mc_rpc_peer *peer, void *user);
void *mc_rpc_peer_user(const struct mc_rpc_peer *peer);
/** The connection's descriptor for questions (credentials), -1 without one or when it is lost. Loop
 * thread. */
int mc_rpc_peer_fd(const struct mc_rpc_peer *peer);
const struct mc_addr *mc_rpc_peer_addr(const struct mc_rpc_peer *peer);

struct mc_rpc_server_stats {
	uint64_t accepted, refused, lost, calls, bad_frames;
	uint32_t conns;
};
void mc_rpc_server_stats(struct mc_rpc_server *server, struct mc_rpc_server_stats *ret_stats);

#endif
