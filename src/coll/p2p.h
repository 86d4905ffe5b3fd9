/*
 * p2p.h: what the files of messages share: p2p.c moves bytes, p2p_call.c waits for it.
 */
#ifndef MC_COLL_P2P_H
#define MC_COLL_P2P_H

#include "coll/net.h"

/* In front of a message's bytes; in the ring it is 16-byte aligned. */
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
/** A message that was set aside is what a new receive wants. @return true when there is one */
bool mc_coll_mail_take_kept(struct mc_coll *g, struct mail *to);

#endif
