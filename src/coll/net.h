/*
 * net.h: groups over hosts. Each rank keeps, of every other one, a page of its own (struct
 * mc_coll_page) that the other fills over a connection: what a rank shows in its page it also
 * sends. So operations run as on one host; only the waiting reads sockets (net_send.c, net_data.c).
 *
 * What one host has for nothing has to be agreed on here: how far a dead rank got. Deaths are
 * proved by the host they happened on (net_probe.c); whoever misses something of a dead rank tells
 * all others what it has of it, they do the same, and when everyone has told for the same dead all
 * decide the same (net_agree.c). Changes of membership are two rounds of messages (net_view.c).
 *
 * Three connections to each rank: `data`, which the operation's thread drives, `ctl`, the loop's,
 * for everything that must not wait behind data, and `mail` for messages, which whoever waits for
 * one drives (net_mail.c). Of a rank of the same host everything comes that way, too, but for the
 * bytes of large rounds: they are read in its memory, as on one host.
 */
#ifndef MC_COLL_NET_H
#define MC_COLL_NET_H

#include "base/clock.h"
#include "base/codec.h"
#include "base/str.h"
#include "coll/priv.h"

#define MC_COLL_HUB_ID_MAX 64
#define MC_COLL_CTL_MAX (4u << 20)	  /* bytes of a control frame */
#define MC_COLL_OUT_MAX (64u << 20)	  /* bytes of control frames that wait */
#define MC_COLL_LATE_NS (MC_NS_PER_S / 2) /* without a sign of a rank, before it is asked after */
#define MC_COLL_RX_LEN 16384u
#define MC_COLL_HELLO_LEN 512u
#define MC_COLL_REPLY_LEN 64u

/* What a connection is for; in its first bytes. */
enum mc_coll_conn {
	MC_COLL_CONN_DATA = 1,
	MC_COLL_CONN_CTL,
	MC_COLL_CONN_MAIL,
	MC_COLL_CONN_PING,
};
#define MC_COLL_CONNS 3 /* that make a peer: the first ones */

/** The first bytes of a connection. */
struct mc_coll_hello {
	uint32_t kind; /* enum mc_coll_conn */
	uint32_t slot, to_slot, ranks_max;
	uint64_t inc, to_inc, scratch_max;
	char hub[MC_COLL_HUB_ID_MAX]; /* who is called: its hub's random name */
	char group[MC_COLL_NAME_MAX + 1];
	char address[MC_COLL_ADDR_MAX + 1]; /* of the caller's hub */
};

struct mc_coll_reply {
	int rc;
	uint32_t slot;
	uint64_t inc;
};

/* ---- net_port.c: the hub's door for other hosts ---- */

struct mc_coll_port {
	struct mc_coll_hub *hub;
	struct mc_watch listener; /* the loop's */
	struct mc_addr at;
	struct mc_list guests; /* the loop's: connections that were not given to a group yet */
	unsigned nguests;
};

int mc_coll_port_open(struct mc_coll_hub *hub, const char *ip, struct mc_diag *diag);
/** On the hub's loop, or after its end. */
void mc_coll_port_close(struct mc_coll_hub *hub);
/** On the loop: who waited for this group is let in. */
void mc_coll_port_admit(struct mc_coll_hub *hub, struct mc_coll *g);
void mc_coll_hello_write(struct mc_wr *w, const struct mc_coll_hello *h);
/** @return 0; -MC_E_PROTO; -MC_E_VERSION */
int mc_coll_hello_read(const uint8_t *bytes, struct mc_coll_hello *ret);
int mc_coll_reply_read(const uint8_t *bytes, struct mc_coll_reply *ret);
/** Socket address and hub id of a hub's address. @return 0; -MC_E_INVAL */
int mc_coll_address_net(const char *address, struct mc_addr *ret_at,
			char ret_hub[MC_COLL_HUB_ID_MAX], struct mc_diag *diag);
/** All connections to the rank in `slot`, introduced; then the peer, in the group. Blocks. */
int mc_coll_net_attach(struct mc_coll *g, uint32_t slot, const char *address, uint64_t deadline_ns,
		       struct mc_diag *diag);
/** Is somebody there? @return 0; -MC_E_REFUSED, -MC_E_TIMEDOUT, … Blocks. */
int mc_coll_net_ask(const char *address, uint64_t deadline_ns);

/* ---- one peer ---- */

/** A frame that did not fit into the socket. */
struct mc_coll_out {
	struct mc_list link;
	uint64_t len, sent; /* of head and body together */
	uint64_t head_len;
	const uint8_t *body; /* of the rank's own area, or the caller's memory, or `own` */
	uint8_t *own;
	uint8_t head[];
};

void mc_coll_out_free(struct mc_coll_out *out);

enum mc_coll_fate {
	MC_COLL_LIVES = 0,
	MC_COLL_SILENT, /* its host does not answer */
	MC_COLL_DEAD,	/* its host says so */
};

/** What one rank told of a dead one. Or what this rank has of it. */
struct mc_coll_word_of {
	uint32_t slot;
	uint64_t inc, word;
	uint64_t since; /* the first operation that the teller was in */
	bool is_proved, is_final, is_complete;
	uint64_t slot_seq[2];
	const uint8_t *bytes[2]; /* encoded call, parts and small bytes; view of the frame */
	uint64_t len[2];
};

#define MC_COLL_TOLD_MAX 256u

/** A stream that is read in large pieces: bytes [at, have) of MC_COLL_RX_LEN are not used yet. */
struct mc_coll_rx {
	uint8_t *bytes;
	uint32_t at, have;
};

#define MC_COLL_MAIL_HEAD 16u

/** A rank reached over sockets. */
struct mc_coll_wire {
	struct mc_coll_peer *p;
	char address[MC_COLL_ADDR_MAX + 1];
	_Atomic int fate;	   /* enum mc_coll_fate, by net_probe.c */
	_Atomic uint64_t lived;	   /* the last probe that the process has answered */
	_Atomic bool is_link_down; /* a connection is lost; the process may live */

	/* the operation's thread */
	int data_fd;
	bool is_data_over;   /* nothing more comes */
	struct mc_list outs; /* struct mc_coll_out */
	uint8_t head[64];    /* of the frame that comes */
	uint32_t head_have;
	uint8_t *body; /* ROUND: collected; else where the bytes go */
	uint64_t body_len, body_have;
	uint8_t *round_buf;
	/* Where bytes of a round belong (mc_coll_net_expect()); direct_seq is 0 when nowhere. */
	uint64_t direct_seq, direct_len;
	uint8_t *direct_to;
	bool is_body_direct, has_direct; /* the chunk that comes; some: from direct_from on */
	uint64_t direct_from;
	struct mc_coll_rx rx;
	uint64_t area_seq; /* the round whose bytes are in the peer's area here */
	uint64_t rest_seq; /* that, when the loop looked last; under run_lock */
	bool is_near;	   /* they are not: they are read where they were shown */
	bool is_tx_near;   /* the round that is sent goes that way */
	uint8_t *near_area;
	uint64_t near_len;

	/* A rank of this host: its memory. Set by the loop, once; its frames come later. */
	_Atomic int near_fd;
	struct mc_coll_page *near_page; /* no more of it is read than area_seq */
	_Atomic bool is_lent;		/* it has ours */

	/* under net->lock */
	bool is_cut; /* its word here does not change but by agreement */
	bool is_decided;
	uint64_t slot_seq[2];
	uint8_t *told; /* the last thing it told of the dead; owned */
	uint64_t told_len;
	bool is_unheard; /* it told while this rank was outside */

	/* the loop's */
	struct mc_watch ctl;
	bool is_ctl_watched;
	uint8_t ctl_head[16];
	uint32_t ctl_head_have;
	uint8_t *ctl_body;
	uint64_t ctl_body_have;
	struct mc_str ctl_out;
	uint64_t ctl_sent;
	struct mc_coll_probe *probe;
	uint64_t nprobes;

	/* net_mail.c, under mail.lock */
	int mail_fd;
	bool is_mail_tx_over, is_mail_rx_over;
	struct mc_coll_rx mail_rx;
	uint8_t mail_head[MC_COLL_MAIL_HEAD]; /* of the message that comes */
	uint32_t mail_head_have;
};

struct mc_coll_net {
	struct mc_coll *g;
	int wake_fd;		  /* eventfd: the operation's thread looks again */
	int mail_wake_fd;	  /* the same for whoever sleeps on the connections of messages */
	struct mc_spin mail_spin; /* of whoever has set is_mail_driven */
	_Atomic bool is_mail_driven;
	_Atomic bool has_mail_sleeper; /* set under mail.lock */
	uint64_t mail_slept_for;       /* mail.nposted when it looked; under mail.lock */
	_Atomic uint32_t asking;       /* slot + 1 that this rank calls just now */
	_Atomic int broken;	       /* why nothing can run any more */
	_Atomic bool is_frozen; /* dead were told of and not agreed on; changed under `lock` */
	/* The operation's thread: what a large round shows; NULL: the area. */
	const uint8_t *tx_base;
	struct mc_coll_bid *bid; /* the loop's: a change that this rank makes */
	uint64_t nbids;
	uint64_t owed_id; /* the loop's: a change that could not be written down yet, and whose */
	uint32_t owed_slot, owed;
	struct mc_task kick; /* tell, probe: on the loop */
	_Atomic bool is_kicked, is_telling;
	_Atomic uint64_t late; /* slots that the operation's thread waits for too long */
	bool is_stopped;       /* the loop's */
	uint64_t silent_ns;
	pthread_mutex_t lock; /* words of peers that are cut, told[]; after g->lock */
};

int mc_coll_net_open(struct mc_coll *g);
/** On the loop: nothing of it runs any more. */
void mc_coll_net_stop(struct mc_coll *g);
void mc_coll_net_close(struct mc_coll *g);
/** A peer with its connections, by kind - 1; takes them over on success. On the loop. @return 0;
 * -MC_E_EXIST; -MC_E_NOMEM; … */
int mc_coll_net_take(struct mc_coll *g, const struct mc_coll_hello *h, int fds[MC_COLL_CONNS]);
void mc_coll_wire_free(struct mc_coll_wire *wire);
/** The memory of a rank of this host, taken over on success. On the loop. @return 0; -MC_E_NOENT;
 * -MC_E_EXIST; -MC_E_PROTO; -MC_E_NOMEM */
int mc_coll_net_lent(struct mc_coll *g, uint32_t slot, uint64_t inc, int *fd);
/** The operation's thread looks again. Any thread. */
void mc_coll_net_wake(struct mc_coll *g);
/** The loop looks after the group. Any thread. */
void mc_coll_net_kick(struct mc_coll *g);
/** These slots are waited for too long: the loop asks after them. Any thread. */
void mc_coll_net_late(struct mc_coll *g, uint64_t slots);
void mc_coll_net_break(struct mc_coll *g, int rc);

/* ---- net_send.c ---- */

#define MC_COLL_FRAME_MAGIC 0x444e434du /* "MCND" */
#define MC_COLL_HEAD_LEN 40u

enum mc_coll_frame {
	MC_COLL_FRAME_ROUND = 1,
	MC_COLL_FRAME_CHUNK,
	MC_COLL_FRAME_WORD,
	MC_COLL_FRAME_BYE,
};

struct mc_coll_head {
	uint32_t type; /* enum mc_coll_frame */
	uint64_t word;
	uint64_t at; /* CHUNK: where; ROUND: 1: the bytes are read where they are shown */
	uint64_t len;
};

/** The kernel could not use [at, at + len), which is the caller's (EFAULT): the process dies of it
 * here, as it would of a copy. Returns if all of it can be used after all. */
void mc_coll_touch(uint8_t *at, uint64_t len, bool is_write);
/** Of a rank that takes part in operations (the others do not read); else NULL. */
struct mc_coll_wire *mc_coll_wire_of(struct mc_coll *g, uint32_t slot);
/** Some rank of this host reads large rounds in this rank's area. */
bool mc_coll_net_has_near(struct mc_coll *g);
/** What still waits to be sent is copied: the caller's memory is the caller's again. */
void mc_coll_net_keep(struct mc_coll *g);
/** Send what waits, as far as it goes. */
void mc_coll_wire_flush(struct mc_coll_wire *wire);
/** The word of this rank has changed: send what is new with it. The operation's thread. */
void mc_coll_net_post(struct mc_coll *g, uint64_t word);
/** Tell the others that this rank leaves. No operation runs. */
void mc_coll_net_leave(struct mc_coll *g);
/** After that: until the others' kernels have what was sent, or a moment has passed. */
void mc_coll_net_drain(struct mc_coll *g);

/* ---- net_data.c ---- */

/** Next bytes of a stream: small ones by way of the buffer, so that a frame costs one call.
 * `is_dry`: the socket gave less than it could. @return as recv() */
ssize_t mc_coll_rx_take(struct mc_coll_rx *rx, int fd, uint8_t *to, uint64_t want, bool *is_dry);

/** As mc_coll_wait_word() for a peer that is reached over sockets. */
int mc_coll_net_wait(struct mc_coll *g, struct mc_coll_peer *p, uint64_t target,
		     uint64_t deadline_ns);
/** Bytes [0, len) of what `p` shows in round `seq` belong at `to`: what comes from here on is put
 * there, from wire->direct_from on if has_direct. Until mc_coll_net_expect_end(). The operation's
 * thread. */
void mc_coll_net_expect(struct mc_coll_peer *p, uint64_t seq, uint8_t *to, uint64_t len);
void mc_coll_net_expect_end(struct mc_coll_peer *p);
/** All that was shown is on its way. @return 0; -MC_E_TIMEDOUT; -MC_E_CANCELED */
int mc_coll_net_flush(struct mc_coll *g, uint64_t deadline_ns);
/** Read what stands in the connections; give memory back that peers' large rounds needed and no
 * round has used for a while. Under run_lock, on the loop. @return false: look again later */
bool mc_coll_net_rest(struct mc_coll *g);
/** Wait until nothing is being agreed on. */
int mc_coll_net_settle(struct mc_coll *g, uint64_t deadline_ns);

/* The small content of a page in one parity: call, parts, bytes. */
#define MC_COLL_ROUND_MAX (64u + 8u * MC_COLL_RANKS_MAX + MC_COLL_SMALL)
void mc_coll_content_write(struct mc_wr *w, const struct mc_coll_page *page, unsigned parity,
			   uint32_t ranks_max);
/** Checked, then into the page. @return 0; -MC_E_PROTO */
int mc_coll_content_read(struct mc_coll_page *page, unsigned parity, const uint8_t *bytes,
			 uint64_t len, uint32_t ranks_max, uint64_t scratch_max);

/* ---- net_ctl.c: control frames, on the loop ---- */

enum mc_coll_ctl {
	MC_COLL_CTL_TOLD = 1, /* net_agree.c */
	MC_COLL_CTL_GATE,     /* net_view.c: close the gate, and what do you know? */
	MC_COLL_CTL_STATE,    /* the answer */
	MC_COLL_CTL_CHANGE,   /* write this down */
	MC_COLL_CTL_WRITTEN,  /* the answer */
	MC_COLL_CTL_OPEN,     /* go on */
	MC_COLL_CTL_LENT,     /* your memory can be read here: large bytes need not be sent */
};

/** Queue and try to send. */
void mc_coll_ctl_send(struct mc_coll_peer *p, enum mc_coll_ctl type, const void *data, size_t len);
void mc_coll_ctl_start(struct mc_coll_peer *p);
void mc_coll_ctl_stop(struct mc_coll_peer *p);
/** It broke the protocol, or the connection did. */
void mc_coll_ctl_lost(struct mc_coll_peer *p);
/** Read what is still there: it is about to count as dead. */
void mc_coll_ctl_drain(struct mc_coll_peer *p);

/* ---- net_probe.c: is the process dead, or its host silent? On the loop ---- */

void mc_coll_probe(struct mc_coll_peer *p);
/** Ask once more: an answer to what was asked before proves nothing about now. @return its number:
 * wire->lived is not less once it was answered */
uint64_t mc_coll_probe_anew(struct mc_coll_peer *p);
void mc_coll_probe_stop(struct mc_coll_wire *wire);
/** That is known now: whoever waits for it looks again. */
void mc_coll_fate_set(struct mc_coll_peer *p, enum mc_coll_fate fate);

/* ---- net_agree.c ---- */

/** `p` has died and something of it is missing here. The operation's thread. */
void mc_coll_agree_need(struct mc_coll_peer *p);
/** On the loop. */
void mc_coll_agree_told(struct mc_coll_peer *p, const uint8_t *bytes, size_t len);
/** On the loop: tell what was asked for by need(), and look whether all have told. */
void mc_coll_agree_turn(struct mc_coll *g);

/** The process that has the slot, or will have by the last change; any of a slot that is in none.
 * On the loop. */
struct mc_coll_peer *mc_coll_view_peer(struct mc_coll *g, uint32_t slot);

/* ---- net_view.c ---- */

/** mc_coll_activate() over hosts. */
int mc_coll_net_activate(struct mc_coll *g, uint64_t add, uint64_t drop, uint64_t deadline_ns,
			 uint64_t *ret_dropped);
/* On the loop: */
void mc_coll_view_frame(struct mc_coll_peer *p, enum mc_coll_ctl type, const uint8_t *bytes,
			size_t len);
/** Look whether a change that this rank makes can go on. */
void mc_coll_view_turn(struct mc_coll *g);
void mc_coll_view_stop(struct mc_coll *g);
/** The last change, with its number. */
void mc_coll_view_last(struct mc_coll *g, struct mc_wr *w);
/** Write it down if it is newer. @return false: it is cut off */
bool mc_coll_view_adopt(struct mc_coll *g, struct mc_rd *r);

/* ---- net_mail.c; the rest of it is in p2p.h ---- */

/** Whoever sleeps on the connections of messages looks again. Any thread. */
void mc_coll_net_mail_wake(struct mc_coll *g);

#endif
