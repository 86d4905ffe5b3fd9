/*
 * net.h: expert parallelism over hosts. Each rank keeps, of every other one, a page and slots like
 * its own (priv.h), which the other fills over a connection: of a slot it sends what this rank will
 * read. All of that is done on the hub's loop; halves begin and end as on one host.
 *
 * What one host has for nothing has to be agreed on: who is in a half (deal.c). Here a frozen word
 * means that this rank does without the other; what it tells the others.
 *
 * Connections are of one epoch: every meeting makes new ones. One that is lost proves nothing: the
 * group is asked (its probe). A rank that it holds for dead, or for silent, is done without; from
 * one that lives nothing comes any more, so it is late, and where callers wait for ever the epoch
 * is broken for all: nobody alive is left out, all have to meet again.
 */
#ifndef MC_EP_NET_H
#define MC_EP_NET_H

#include "ep/priv.h"
#include "io/sock.h"

#define MC_EP_HEAD_LEN 64u
#define MC_EP_RX_LEN 16384u

enum mc_ep_frame {
	MC_EP_FRAME_HELLO =
	    1,		  /* word: epoch; a, b: key of whoever is called; c: caller's incarnation */
	MC_EP_FRAME_SHOW, /* a table of parts and their bytes follow */
	MC_EP_FRAME_TOLD, /* a: who is done without; b: whose bytes are here; c: of whom */
	MC_EP_FRAME_FINAL,  /* a: who is in */
	MC_EP_FRAME_DONE,   /* the slot is not read any more */
	MC_EP_FRAME_OUT,    /* the sender is out of this epoch, and decides nothing any more */
	MC_EP_FRAME_BROKEN, /* a: two who live, and have no connection any more */
	MC_EP_FRAME_ASK,    /* a: number of the question whether anybody is heard */
	MC_EP_FRAME_ANSWER, /* a: that number */
};

struct mc_ep_frame_head {
	uint32_t type, slot; /* HELLO: of the caller; else one of MC_EP_SLOTS */
	uint64_t word, a, b, c;
	uint32_t nparts;
};

/** Bytes of a slot. */
struct mc_ep_part {
	uint64_t at, len;
};

struct mc_ep_parts {
	struct mc_ep_part *part;
	size_t n, cap;
};

/** A frame that waits to be sent. */
struct mc_ep_out {
	struct mc_list link;
	unsigned slot;
	bool is_show;
	const uint8_t *bytes;	 /* of the slot */
	struct mc_ep_part *part; /* owned */
	uint32_t nparts, at_part;
	uint64_t in_part; /* bytes of it that were sent */
	uint64_t text_len, text_sent;
	uint8_t text[]; /* head and table */
};

/** The connection to a rank. The loop's, but for `pending`. */
struct mc_ep_link {
	struct mc_ep_net *net;
	uint32_t slot;
	struct mc_watch conn; /* fd -1: there is none */
	bool is_watched, is_connected;
	_Atomic uint64_t asked; /* it was lost: the probe that was begun then; 0: it was not */
	uint32_t events;
	struct mc_list pending; /* under net->lock */
	struct mc_list outs;
	/* what comes */
	uint8_t rx[MC_EP_RX_LEN];
	uint32_t rx_at, rx_have;
	uint8_t head_bytes[MC_EP_HEAD_LEN];
	uint32_t head_have;
	struct mc_ep_frame_head head;
	struct mc_ep_part *part; /* of a SHOW; owned */
	uint64_t table_have;	 /* bytes of the table */
	uint32_t at_part;
	uint64_t in_part;
};

/** Who is in the half that has a slot. */
struct mc_ep_deal {
	uint64_t word, wanted; /* 0: not begun here */
	bool has_told;
	uint64_t told_out; /* what this rank told last */
	uint64_t decided;  /* the word of the half that `ranks` is of */
	uint64_t ranks;
	struct {
		uint64_t word, out, has;
	} told[MC_COLL_RANKS_MAX];
};

struct mc_ep_net {
	struct mc_ep *ep;
	uint64_t key[2]; /* callers know it from the meeting */
	struct mc_addr at;
	struct mc_watch listener;
	struct mc_list guests; /* the loop's: who has called and has no link yet */
	unsigned nguests;
	uint64_t epoch, members;		     /* the loop's, changed under `lock` */
	uint64_t left;				     /* under `lock`: who has said OUT */
	uint64_t nasks, answered[MC_COLL_RANKS_MAX]; /* under `lock`: questions; the last answers */
	_Atomic uint64_t broken;		     /* what BROKEN said; 0: nothing */
	struct mc_task task;
	_Atomic bool is_posted;
	_Atomic uint32_t unsent[MC_EP_SLOTS]; /* frames that have bytes of the slot */
	pthread_mutex_t lock;		      /* deals, pending; after ep->lock; a leaf */
	struct mc_ep_deal deal[MC_EP_SLOTS];
	struct mc_ep_link link[MC_COLL_RANKS_MAX];
};

/* ---- door.c ---- */

int mc_ep_net_open(struct mc_ep *ep, struct mc_diag *diag);
/** What was sent arrives, or a moment passes. */
void mc_ep_net_close(struct mc_ep *ep);
/** No connection, no half any more. Not on a loop. */
void mc_ep_net_part(struct mc_ep *ep);
/** Where a member is called. */
struct mc_ep_door {
	uint64_t key[2];
	struct mc_addr at;
};
/** Connections to all members, for ep->epoch. Not on a loop. */
void mc_ep_net_meet(struct mc_ep *ep, uint64_t members, const struct mc_ep_door *doors);

/* ---- link.c ---- */

/** The loop looks at everything again. Any thread. */
void mc_ep_net_stir(struct mc_ep_net *net);
/** That: decide what can be decided, and send. On the loop. */
void mc_ep_net_look(struct mc_ep_net *net);
void mc_ep_net_turn(struct mc_task *t);
/** The link has this socket. On the loop. */
void mc_ep_link_use(struct mc_ep_link *l, int fd, bool is_connected);
/** Nothing is sent or received any more. On the loop. */
void mc_ep_link_hang_up(struct mc_ep_link *l);
/** Its end, or that of the protocol: the group is asked after the other. On the loop. */
void mc_ep_link_lost(struct mc_ep_link *l);
/** It was lost, though the other lives. Any thread. */
bool mc_ep_link_is_cut(const struct mc_ep_link *l);
/** @param bytes  MC_EP_HEAD_LEN. @return 0; -MC_E_PROTO */
int mc_ep_head_read(const uint8_t *bytes, struct mc_ep_frame_head *h);
/** Of ranks that nobody waits for: give up what they were not sent of this slot. */
void mc_ep_net_forget(struct mc_ep_half *h);
/** Queue; the loop sends it at its next turn. Under net->lock. */
void mc_ep_net_queue(struct mc_ep_net *net, unsigned q, struct mc_ep_out *out);
/** A frame without parts to all of `ranks`; one that there is no memory for costs the connection.
 * Under net->lock. */
void mc_ep_net_send(struct mc_ep_net *net, uint64_t ranks, const struct mc_ep_frame_head *head);
/** @return NULL: no memory. Takes the parts. */
struct mc_ep_out *mc_ep_net_out(const struct mc_ep_frame_head *head, const uint8_t *slot,
				struct mc_ep_parts *parts);
void mc_ep_net_out_free(struct mc_ep_out *out);
/** @return 0; -MC_E_NOMEM */
int mc_ep_parts_add(struct mc_ep_parts *parts, uint64_t at, uint64_t len);

/* ---- deal.c ---- */

/** What came of `q`. On the loop. */
void mc_ep_deal_heard(struct mc_ep_net *net, unsigned q, const struct mc_ep_frame_head *head);
/** All that can be told or decided. On the loop, under net->lock. */
void mc_ep_deal_turn(struct mc_ep_net *net);
/** The half is shown: send it. @return 0; -MC_E_NOMEM, before anybody has it */
int mc_ep_net_show(struct mc_ep_half *h);
/** This rank is out of the epoch, and says so. Under net->lock. */
void mc_ep_deal_leave(struct mc_ep_net *net);
/** There is no connection to `q`, which lives: all have to meet again. Any thread. */
void mc_ep_net_break(struct mc_ep_net *net, unsigned q);
/** This rank does not read the slot any more. */
void mc_ep_net_done(struct mc_ep_half *h);

/** Of the ranks of a half that is not decided. */
struct mc_ep_look {
	uint64_t out;	  /* are done without here */
	uint64_t missing; /* have bytes that are not here */
	uint64_t silent;  /* have not told the same as this one */
	uint64_t unsure;  /* of `out`: might decide otherwise, and those who are left are too few */
};

/** Any thread, as all that follows. @return 1: *ret_ranks is decided; 0: *ret; -MC_E_STALE: it will
 * not be */
int mc_ep_deal_look(const struct mc_ep_half *h, struct mc_ep_look *ret, uint64_t *ret_ranks);
/** Those of them that nobody has proved to be dead, and that have not said OUT. */
uint64_t mc_ep_deal_unsure(struct mc_ep_net *net, uint64_t ranks);
/** Ask everybody for a sign. @return the number of the question */
uint64_t mc_ep_deal_ask(const struct mc_ep_half *h);
/** Those who have answered it are enough to go on with. */
bool mc_ep_deal_is_heard(const struct mc_ep_half *h, uint64_t ask);

/* ---- patience.c ---- */

/** As mc_ep_wait_all(). */
int mc_ep_net_wait(struct mc_ep_half *h, uint64_t *ret_taken, struct mc_diag *diag);
/** Before the half does without `q`: this rank hears enough of the others. @return 0; -MC_E_STALE:
 * it does not, and is out; -MC_E_CANCELED */
int mc_ep_net_may_lose(struct mc_ep_half *h, unsigned q);

#endif
