/*
 * control.h: the control port of a process. One listener on a loop serves upstream's control
 * messages to any number of peers at once and hands connections of our own protocol over.
 *
 * Which protocol a connection speaks is seen in its first eight bytes. Every connection has a
 * deadline for each step, so a stalled peer costs one entry of a bounded table and nobody's time;
 * when the table is full the oldest connection that has not yet asked for anything makes room.
 */
#ifndef MC_DISCO_CONTROL_H
#define MC_DISCO_CONTROL_H

#include "disco/handshake.h"
#include "io/loop.h"
#include "io/sock.h"

#define MC_CONTROL_HOST_MAX 256u
#define MC_CONTROL_PREFACE_MAX 8u

/* ---- where to listen ---- */

struct mc_control_place {
	char host[MC_CONTROL_HOST_MAX]; /* what peers are told; an IPv6 address without brackets */
	struct mc_addr bind;		/* port 0: one of the range */
	char name_host[MC_CONTROL_HOST_MAX]; /* the name's, when it has no port; else "" */
};

/**
 * Decide address and port from the name that the user gave the process.
 *
 * Without a metadata service (P2P) peers are told the name's host and the port that was found. With
 * one, or without a name, they are told MC_TCP_BIND_ADDRESS, else the name's host if it is a local
 * numeric address, else the first interface's address; with MC_LEGACY_RPC_PORT_BINDING, the name's
 * host and port.
 * Bound is the advertised address alone. For a host that is no address of this machine, or a name
 * other than "localhost" that resolves to loopback, MC_TCP_BIND_ADDRESS says what to bind; it may
 * then be 0.0.0.0 or ::. Without it the first is an error, the second binds loopback and warns.
 *
 * @param name  "host", "host:port", "[v6]:port", or "" for none
 * @return 0; -MC_E_INVAL (diag names the value); -MC_E_ADDR when the name or MC_TCP_BIND_ADDRESS is
 * not local; -MC_E_DNS when the name does not resolve.
 * May block for DNS.
 */
MC_MUST_CHECK int mc_control_place(const struct mc_hs_conf *conf, const char *name, bool is_p2p,
				   struct mc_control_place *ret, struct mc_diag *diag);
/** "host:port", with brackets around an IPv6 host. @return 0; -MC_E_TOO_BIG */
MC_MUST_CHECK int mc_control_name(const char *host, uint16_t port, char *buf, size_t cap);

/* ---- replies ---- */

/** JSON that many connections may be sending at once. Immutable, counted, any thread. */
struct mc_control_text;
/** Takes over json (from mc_calloc and the like). @return 0; -MC_E_NOMEM (json is freed) */
MC_MUST_CHECK int mc_control_text_open(char *json, size_t len, struct mc_control_text **ret);
struct mc_control_text *mc_control_text_get(struct mc_control_text *text);
void mc_control_text_put(struct mc_control_text *text); /* NULL is allowed */

/** A request that is answered later, maybe by another thread. */
struct mc_control_call;
/**
 * Answer it; `call` is gone after this. Any thread, exactly once, while the port's loop lives; the
 * port itself or the connection may be closed meanwhile.
 * @param text  a reference that this takes over; NULL: close the connection without a reply
 */
void mc_control_answer(struct mc_control_call *call, struct mc_control_text *text);

/** What the owner of the port does; called on the loop, must not block. */
struct mc_control_ops {
	/**
	 * A peer sends its descriptor and wants ours.
	 * @param ret_text  a reference for the caller
	 * @return 0; else the connection is closed without a reply
	 */
	int (*metadata)(void *user, const char *peer_json, size_t len,
			struct mc_control_text **ret_text);
	/** @return 0 taken; -MC_E_AGAIN inbox is full (the peer is told) */
	int (*notify)(void *user, const struct mc_hs_notify *n);
	/** A connection of our own protocol: fd and the bytes read so far (at least the preface)
	 * are the callee's; the bytes only during the call. */
	void (*adopt)(void *user, int fd, const void *bytes, size_t len,
		      const struct mc_addr *peer);
	/**
	 * A request of a type in conf.later. The JSON lives during the call only.
	 * @return 0: mc_control_answer() follows; else the connection is closed without a reply and
	 * `call` is not touched again
	 */
	int (*later)(void *user, enum mc_hs_type type, const char *json, size_t len,
		     struct mc_control_call *call);
};

struct mc_control_conf {
	const struct mc_hs_conf *hs; /* copied */
	struct mc_addr bind;	     /* port 0: one of the range in hs */
	const struct mc_control_ops *ops;
	void *user;
	uint8_t preface[MC_CONTROL_PREFACE_MAX]; /* first bytes of our own protocol */
	uint8_t preface_len;			 /* 1 … 8; 0: adopt nothing */
	uint32_t later;	    /* 1 << enum mc_hs_type: requests that ops->later answers */
	uint32_t conns_max; /* 0: 4096 */
	uint64_t bytes_max; /* requests being received, all together; 0: 256 MiB */
	uint64_t step_ns;   /* deadline of header and body each; 0: 5 s, body + 1 s per MiB */
	uint64_t reply_ns; /* deadline of an answer that comes later, and of sending any; 0: 60 s */
};

/* ---- the protocol without sockets ---- */

enum mc_control_act {
	MC_CONTROL_READ,  /* `need` bytes in all before the next look */
	MC_CONTROL_ADOPT, /* our own protocol */
	MC_CONTROL_REPLY, /* head and text are to be sent */
	MC_CONTROL_LATER, /* ops->later is to be called with `frame`, a view of the data */
	MC_CONTROL_DROP,  /* close; diag says why */
	MC_CONTROL_ACT_COUNT,
};
struct mc_control_step {
	enum mc_control_act act;
	size_t need;
	uint8_t head[MC_HS_HEAD_BYTES];
	size_t head_len;
	struct mc_control_text *text; /* a reference for the caller */
	struct mc_hs_frame frame;     /* of a whole request */
};
/**
 * What to do with a connection whose first `len` bytes are `data`; calls the ops when a request is
 * whole. The socket loop and the fuzzer enter here.
 */
void mc_control_step(const struct mc_control_conf *conf, const void *data, size_t len,
		     struct mc_control_step *ret, struct mc_diag *diag);
/** The answer has come: what to send. Takes the reference over. */
void mc_control_step_reply(struct mc_control_step *step, struct mc_control_text *text);

/* ---- the server ---- */

struct mc_control;

/**
 * Listen and serve on `loop` until closed. Any thread.
 * @return 0; -MC_E_ADDR_IN_USE; -MC_E_ADDR; -MC_E_PERM; -MC_E_LIMIT; -MC_E_NOMEM; diag names
 * address and range
 */
MC_MUST_CHECK int mc_control_open(struct mc_loop *loop, const struct mc_control_conf *conf,
				  struct mc_control **ret, struct mc_diag *diag);
/** Closes the listener and every connection not handed over. NULL is allowed. Any thread but only
 * while the loop runs or from the loop. */
void mc_control_close(struct mc_control *ctl);
uint16_t mc_control_port(const struct mc_control *ctl);

struct mc_control_stats {
	uint64_t accepted, adopted, replied, dropped, evicted;
	uint64_t paused; /* times that nothing could be accepted for a while */
	uint32_t conns;	 /* open now */
	uint64_t bytes;	 /* of requests being received */
};
/** Any thread. */
void mc_control_stats_get(struct mc_control *ctl, struct mc_control_stats *ret);

#endif
