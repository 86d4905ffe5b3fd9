/*
 * tcp_conn.h: an inbound connection, shared by the two frame formats (tcp_conn.c,
 * tcp_classic_conn.c). Loop thread only.
 */
#ifndef MC_XPORT_TCP_CONN_H
#define MC_XPORT_TCP_CONN_H

#include "xport/tcp_priv.h"

#define MC_TCP_SCRATCH_BYTES (16u << 10)

enum mc_tcp_conn_mode {
	CONN_NEW, /* which frames it speaks is not known yet */
	CONN_OURS,
	CONN_CLASSIC,
};

enum mc_tcp_conn_step {
	STEP_HEAD,  /* a request's head and fragments come into buf */
	STEP_BODY,  /* a write's payload comes into memory */
	STEP_REPLY, /* tx goes out */
};

struct mc_tcp_conn {
	struct mc_tcp_shard *shard; /* its loop owns everything below */
	int fd;
	struct mc_watch watch;
	bool is_watched;
	struct mc_task task;
	struct mc_list link, hot_link, again_link, fresh_link;
	struct mc_list lane_link; /* under dev->lock */
	enum mc_tcp_conn_mode mode;
	enum mc_tcp_conn_step step;
	uint64_t lane, initiator_epoch;
	uint64_t seq;	     /* of the latest request */
	uint64_t acked;	     /* all requests up to this one are applied */
	bool is_acked_final; /* one was refused: what comes after it is not in `acked` */
	uint64_t begun_ns;   /* accepted */
	uint64_t last_ns;    /* last byte moved */
	bool is_last;	     /* close once tx is out */
	/* the request under way */
	struct mc_tcp_req req;
	int refusal; /* 0 or why the request is refused */
	uint32_t bad_frag;
	uint64_t body_left;
	bool is_tail;	 /* rx ends with buf */
	bool is_drained; /* the last receive emptied the socket */
	size_t lowat;
	void *signal; /* pinned, or NULL */
	uint64_t signal_value;
	unsigned npins;
	uint32_t pins[MC_SLICE_FRAGS_MAX + 1];
	struct mc_iovq rx, tx;
	/* classic */
	bool is_v2;
	/* bytes [at, have) of buf are received and not yet used */
	size_t at, have;
	uint8_t txhead[MC_TCP_REPLY_BYTES];
	uint8_t buf[MC_TCP_REQ_MAX + MC_TCP_HELLO_BYTES];
	uint8_t scratch[MC_TCP_SCRATCH_BYTES];
};

void mc_tcp_conn_unpin(struct mc_tcp_conn *c);
/** Have at least `need` bytes of the stream in buf. @return 1 yes; 0 not yet; < 0 */
int mc_tcp_conn_want(struct mc_tcp_conn *c, size_t need);
/** req.len, refusal and rx say what payload comes: begin to receive it. */
void mc_tcp_conn_body(struct mc_tcp_conn *c);
/** Upstream's frames: the head step, and the answer after a write's payload. As step_head() and
 * answer(). */
int mc_tcp_classic_head(struct mc_tcp_conn *c);
void mc_tcp_classic_answer(struct mc_tcp_conn *c);

#endif
