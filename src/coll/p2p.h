/*
 * p2p.h: what the files of messages share: p2p.c moves bytes, p2p_call.c waits for it.
 */
#ifndef MC_COLL_P2P_H
#define MC_COLL_P2P_H

#include "coll/net.h"

/* In front of a message's bytes; in the ring it is 16-byte aligned. Over hosts it is
 * MC_COLL_MAIL_HEAD bytes. */
struct head {
	uint64_t tag, len;
};

/* One send or receive. */
struct mail {
	struct mc_coll_work work;
	uint32_t peer;
	bool is_send;
	uint64_t tag, len;
	uint8_t *addr;
	uint64_t done; /* bytes; of a send the head counts, too */
};

/* A message that was set aside. */
struct aside {
	struct mc_list link;
	uint32_t from;
	struct head head;
	uint8_t bytes[];
};

/* What comes from one rank: between two messages, or in the middle of one. */
struct inbox {
	struct head head;
	bool is_open;	     /* a head was read; its bytes follow */
	bool is_broken;	     /* whoever took it is gone, or its sender is: no more comes */
	uint64_t at;	     /* bytes of it that were taken */
	struct mail *mail;   /* whom they are for */
	struct aside *aside; /* or where they are kept */
};

struct mc_coll_mail {
	pthread_mutex_t lock; /* guards the rest */
	struct mc_list sends, recvs, kept;
	struct inbox inbox[MC_COLL_RANKS_MAX];
	uint64_t kept_bytes;
	uint64_t nposted; /* sends and receives that were called so far */
	bool has_thread, is_closing;
	pthread_t thread;
	_Atomic uint32_t drivers;     /* calls that move bytes */
	_Atomic uint32_t worker_bell; /* the thread sleeps on it */
	_Atomic bool is_worker_asleep;
};

/* ---- under mail.lock ---- */

/** It is over: out of its list, and told. */
void mc_coll_mail_end(struct mc_coll *g, struct mail *m, int rc);
/** Move what can be moved. @return true when something was */
bool mc_coll_mail_progress(struct mc_coll *g);
/** in->head was read: who gets the bytes? @return false: nobody yet */
bool mc_coll_mail_begin(struct mc_coll *g, uint32_t from, struct inbox *in);
/** All of them were taken. */
void mc_coll_mail_finish(struct mc_coll *g, uint32_t from, struct inbox *in);
/** Somebody waits for another message of this rank than the one in front. */
bool mc_coll_mail_is_wanted(struct mc_coll *g, uint32_t from);
/** A message that was set aside is what a new receive wants. @return true when there is one */
bool mc_coll_mail_take_kept(struct mc_coll *g, struct mail *to);

/* ---- net_mail.c: ranks of other hosts; under mail.lock ---- */

/** Send some of it. @return true when something moved */
bool mc_coll_net_mail_push(struct mc_coll *g, struct mc_coll_peer *p, struct mail *m);
/** Take what is there of a rank and wanted. @return true when something moved */
bool mc_coll_net_mail_pull(struct mc_coll *g, struct mc_coll_peer *p);

/* ---- not under it ---- */

/** Threads of this rank that wait for messages look again. */
void mc_coll_mail_ring_own(struct mc_coll *g);
/** Over hosts: move bytes until `w` has ended, without one until nothing is left. @return 0;
 * -MC_E_TIMEDOUT; -MC_E_CANCELED */
int mc_coll_net_mail_drive(struct mc_coll *g, struct mc_coll_work *w, uint64_t deadline_ns);

#endif
