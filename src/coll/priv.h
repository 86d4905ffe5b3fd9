/*
 * priv.h: what the files of coll share: hub, group, peers, the round that runs.
 */
#ifndef MC_COLL_PRIV_H
#define MC_COLL_PRIV_H

#include <pthread.h>
#include <stdatomic.h>

#include <mooncake/coll.h>

#include "base/err.h"
#include "base/fork.h"
#include "base/list.h"
#include "base/spin.h"
#include "coll/page.h"
#include "io/loop.h"
#include "rpc/rpc.h"
#include "xport/copy.h"

#define MC_COLL_BIT(slot) (1ull << (slot))
/** for each slot in mask, ascending */
#define mc_coll_each(slot, mask)                                                                   \
	for (uint64_t left_ = (mask);                                                              \
	     left_ != 0 && ((slot) = (unsigned)__builtin_ctzll(left_), 1); left_ &= left_ - 1)

/* ---- hub.c: one a process ---- */

#define MC_COLL_HOST_MAX 96
#define MC_COLL_ID_MAX 64

struct mc_coll_hub {
	struct mc_loop *loop;
	struct mc_rpc_server *server;
	uint64_t fork_gen;
	int pidfd;		     /* this process's own, for the others */
	char host[MC_COLL_HOST_MAX]; /* who has the same shares memory with us */
	char id[MC_COLL_ID_MAX];     /* of the hub, random: the name of its unix socket */
	struct mc_coll_port *port;   /* net_port.c: for ranks of other hosts */
	uint64_t silent_ns;
	char address[MC_COLL_ADDR_MAX + 1];

	/* the loop's */
	struct mc_list groups;
	struct mc_list held; /* struct held_attach: calls for groups that are not open yet */
	unsigned nheld;
};

/** One incarnation of another rank, as mapped here. */
struct mc_coll_peer {
	struct mc_coll *coll;
	struct mc_list link; /* in coll->peers */
	uint32_t slot;
	uint64_t inc;
	int fd;
	struct mc_coll_page *page;
	uint8_t *rings;
	_Atomic bool is_dead;
	struct mc_watch pid; /* the loop's; fd is its pidfd */
	bool is_watched;     /* the loop's */
	/* the operation's thread */
	uint8_t *area;
	uint64_t area_len;
	bool is_kept; /* under `lock`: somebody uses it for as long as the group lives */
	struct mc_coll_wire *wire; /* net.h: it is reached over sockets, which fill its page here */
};

/** Show the group to the other ranks, and answer those that already asked. Not on a loop. */
void mc_coll_hub_add(struct mc_coll_hub *hub, struct mc_coll *g);
/** No call for it is answered any more, no death of a peer watched. Not on a loop. */
void mc_coll_hub_del(struct mc_coll_hub *hub, struct mc_coll *g);
/** Are these ranks on one host? @return 0: no; 1; -MC_E_INVAL */
int mc_coll_hub_is_near(const struct mc_coll_hub *hub, const char *address, struct mc_diag *diag);
/** Ask the rank in `slot` at `address` for its page, give it ours, keep it in the group.
 * @return 0; -MC_E_TIMEDOUT; -MC_E_REFUSED (nobody there); … */
int mc_coll_hub_attach(struct mc_coll *g, uint32_t slot, const char *address, uint64_t deadline_ns,
		       struct mc_diag *diag);

/* ---- taste.c ---- */

#define MC_COLL_STREAM_MIN 4096u /* bytes for others that go past the cache (taste.c says why) */
#define MC_COLL_TASTES 10	 /* sizes: 128 KiB, 256 KiB, … */

/** How long rounds of one kind and size took, by enum mc_copy_hint. Zeroed is a valid start. */
struct mc_coll_taste {
	uint32_t count;
	uint64_t ns[MC_COPY_HINT_COUNT]; /* 0: not known */
};

/* ---- group.c ---- */

struct mc_coll {
	struct mc_coll_hub *hub;
	struct mc_list hub_link; /* the loop's */
	char name[MC_COLL_NAME_MAX + 1];
	uint32_t rank, ranks_max;
	bool is_joiner;
	uint64_t inc, fork_gen, timeout_ns, scratch_max;

	int fd;			   /* of this rank's memory */
	struct mc_coll_page *page; /* its own */
	uint8_t *rings;
	uint8_t *area; /* the operation's thread */
	uint64_t area_len;

	uint64_t side_next; /* of the memory beside the area (MC_COLL_SIDE_AT), under `lock` */

	_Atomic uint32_t bell; /* changes when a peer is attached or gone, or by abort */
	_Atomic bool is_aborted;

	pthread_mutex_t lock; /* guards diag, board's mapping, next[], peers; a leaf */
	struct mc_diag diag;
	int board_fd;
	struct mc_coll_board *_Atomic board;
	struct mc_coll_peer *next[MC_COLL_RANKS_MAX]; /* attached, not taken into use */
	struct mc_list peers;

	/* The operation's thread; run_lock is held while there is one. */
	pthread_mutex_t run_lock;
	struct mc_coll_peer *_Atomic cur[MC_COLL_RANKS_MAX]; /* changed by it, under `lock` */
	bool is_alone; /* a joiner that has not joined: operations have its own input only */
	uint64_t op;
	struct mc_coll_past now, before; /* the operation that runs, and the one before it */
	uint64_t area_seq, small_seq[2]; /* rounds that used them last */
	uint64_t area_ranks;		 /* who could read it in that round */
	uint64_t area_kept;		 /* bytes of the area that there is memory behind */
	uint64_t rest_seq;		 /* area_seq when the loop looked last */
	struct mc_timer rest;		 /* the loop's; set while there is an area, or remains */
	struct mc_list remains;		 /* the loop's: struct mc_coll_remains */
	struct mc_spin spin;
	struct mc_coll_taste tastes[MC_COLL_KIND_COUNT][MC_COLL_TASTES];
	uint64_t crowd_of;	 /* the ranks that is_crowded was found for */
	_Atomic bool is_crowded; /* more ranks than cores that they may use */
	int broken;		 /* why no operation can run any more */
	_Atomic uint64_t active;

	struct mc_coll_queue *queue; /* queue.c; NULL until the first asynchronous operation */
	struct mc_coll_mail *mail;   /* p2p.c */
	struct mc_coll_net *net;     /* net.h; NULL: all ranks are on this host */
	int widened;		     /* while it is opened: what became of `net` */
};

/** Take over descriptors that a rank sent: map, watch, put into next[]. On the loop.
 * @param board_fd  -1: none. All descriptors are taken (set to -1) on success.
 * @return 0; -MC_E_EXIST (a living process has the slot); -MC_E_PROTO; -MC_E_INVAL */
int mc_coll_peer_take(struct mc_coll *g, uint32_t slot, uint64_t inc, int *page_fd, int *pid_fd,
		      int *board_fd);
/** Into next[], known to the others; on the loop. @return 0; 1: this incarnation has it already;
 * -MC_E_EXIST */
int mc_coll_peer_seat(struct mc_coll *g, struct mc_coll_peer *p);
/** Could this incarnation be seated? @return as mc_coll_peer_seat() */
int mc_coll_seat_check(struct mc_coll *g, uint32_t slot, uint64_t inc);
/** It is gone, or its host said so though how far it got is not agreed on yet. */
bool mc_coll_peer_is_lost(const struct mc_coll_peer *p);
/** It was replaced: unmap and forget, unless somebody keeps it. Whoever reads cur[] under a lock
 * has had it since. Not on a loop, without a lock. */
void mc_coll_peer_retire(struct mc_coll_peer *p);
/** Unmap and forget. Not watched any more, used by nobody. */
void mc_coll_peer_free(struct mc_coll_peer *p);
/** Its word is final: the process is dead, or has left. Look at the word again after this. */
static inline bool mc_coll_peer_is_gone(const struct mc_coll_peer *p)
{
	/* acquire: pairs with the releases in on_death() and mc_coll_close() */
	return atomic_load_explicit(&p->is_dead, memory_order_acquire) ||
	       atomic_load_explicit(&p->page->state, memory_order_acquire) == MC_COLL_LEFT;
}
/** What went wrong, for mc_coll_last_error(). Not with the lock held. */
void mc_coll_say(struct mc_coll *g, const char *fmt, ...) MC_PRINTF(2, 3);
/** To the others this rank is as dead from here on. No operation runs. */
void mc_coll_leave(struct mc_coll *g);
/** Everyone of this process who waits in the group looks again. Any thread. */
void mc_coll_stir(struct mc_coll *g);

/* ---- queue.c ---- */

/** What runs in the background. Owned by two: whoever runs it until it has ended, and the caller.
 */
struct mc_coll_work {
	struct mc_list link;
	struct mc_coll_result result;
	_Atomic uint32_t is_done;
	_Atomic int nowners;
	struct mc_coll *mail_of; /* it is a message: who waits moves bytes; NULL: an operation */
};

/** It has ended as its result says: tell who waits, give up one share of it. */
void mc_coll_work_end(struct mc_coll_work *w);

struct mc_coll_queue;
/** End all that is queued. The worker ends; not from it. */
void mc_coll_queue_close(struct mc_coll *g);

/* ---- p2p.c, p2p_call.c ---- */

struct mc_coll_mail;
int mc_coll_mail_open(struct mc_coll *g);
/** Move messages until `w` has ended. @return 0; -MC_E_TIMEDOUT; -MC_E_CANCELED. Any thread. */
int mc_coll_mail_drive(struct mc_coll *g, struct mc_coll_work *w, uint64_t deadline_ns);
/** End what waits. Its thread ends; not from it. */
void mc_coll_mail_close(struct mc_coll *g);
/** After that, when the loop does not know the group any more. */
void mc_coll_mail_free(struct mc_coll *g);
/** Whoever waits for messages of this rank's, or for room for them, looks again. */
void mc_coll_mail_bell(struct mc_coll_page *page);
/** `slot` has a new incarnation: what was on its way to the old one is dropped. Not with `lock`
 * held.
 */
void mc_coll_mail_renew(struct mc_coll *g, uint32_t slot, uint64_t inc);

/* ---- op.c ---- */

/** Run it now; run_lock is held. */
int mc_coll_execute(struct mc_coll *g, const struct mc_coll_op *op, struct mc_coll_result *ret);

/* ---- wait.c ---- */

enum { MC_COLL_THERE = 1, MC_COLL_GONE, MC_COLL_AGAIN };

/** Wake who sleeps until this rank shows something: after the store. */
void mc_coll_ring(struct mc_coll_page *page);
/** `slot` died, perhaps asleep on our bell: nobody of it is there any more. */
void mc_coll_forget_sleepers(struct mc_coll_page *page, uint32_t slot);
/** Find out whether these ranks have a core each. The operation's thread. */
void mc_coll_count_cores(struct mc_coll *g, uint64_t ranks);
/** Store `word` (release) and wake who sleeps on it. */
void mc_coll_post(struct mc_coll *g, uint64_t word);
void mc_coll_post_shares(struct mc_coll *g, uint64_t shares);
/**
 * Wait until the word of `slot` is at least `target`.
 * @return MC_COLL_THERE; MC_COLL_GONE (its word is final and below); -MC_E_TIMEDOUT; -MC_E_CANCELED
 */
int mc_coll_wait_word(struct mc_coll *g, unsigned slot, uint64_t target, uint64_t deadline_ns);
/**
 * Wait until `slot` has reduced its shares up to `chunks` of operation `seq`, for exactly the ranks
 * of `mask`.
 * @return as above; MC_COLL_AGAIN: it has found one of `mask` gone and begun again
 */
int mc_coll_wait_share(struct mc_coll *g, unsigned slot, uint64_t seq, uint32_t chunks,
		       uint64_t mask, uint64_t deadline_ns);

/**
 * Wait for something that `p` rings for and that its death ends.
 * @param is_there  0: not yet; what it gives else is the answer. Does not wait
 * @return that; MC_COLL_GONE; -MC_E_TIMEDOUT; -MC_E_CANCELED. Any thread; `spin` is the caller's
 */
int mc_coll_wait_on(struct mc_coll *g, struct mc_coll_peer *p, int (*is_there)(const void *what),
		    const void *what, struct mc_spin *spin, uint64_t deadline_ns);

/* ---- rest.c ---- */

/** What a user of the group's memory leaves behind while others still read it. */
struct mc_coll_remains {
	struct mc_list link;
	struct mc_coll *coll;
	bool (*is_unread)(const struct mc_coll_remains *r);
	void (*end)(struct mc_coll_remains *r); /* once: when unread, or with the group */
};

/** There is an area: give it back once it has not been used for a while. The operation's thread. */
void mc_coll_rest_arm(struct mc_coll *g);
/** Look now and then, and end it when it is unread. Not on a loop. */
void mc_coll_rest_leave(struct mc_coll_remains *r);
/** Not any more. Not on a loop; before the group's memory is unmapped. */
void mc_coll_rest_stop(struct mc_coll *g);

/* ---- view.c ---- */

/** Begin operation g->op + 1: wait out a change that is being made, take those that are true from
 * it on. @return 0; -MC_E_STALE (this rank is not active in it); -MC_E_TIMEDOUT; -MC_E_CANCELED */
int mc_coll_view_enter(struct mc_coll *g, uint64_t deadline_ns);
void mc_coll_view_lose(struct mc_coll *g, uint64_t gone);
/** A change that operations here have not got to yet sends this rank away: the others do not wait
 * for it any more, and what they show next may be where it still reads. After these reads. */
bool mc_coll_view_is_out(struct mc_coll *g);
/** The first operation that this rank takes part in, as far as the log reaches back (else 0);
 * UINT64_MAX: it is in none. */
uint64_t mc_coll_view_since(struct mc_coll *g);
/** The last that was written down; NULL: none yet. */
const struct mc_coll_change *mc_coll_last_change(struct mc_coll *g);

/* ---- round.c: what one rank shows to all, once ---- */

#define MC_COLL_CHUNK (256u << 10)
#define MC_COLL_AHEAD_NET 8u /* chunks that are on their way while one is reduced */

/** A round that runs; on the stack of the operation's thread. */
struct mc_coll_round {
	struct mc_coll *g;
	const struct mc_coll_op *op;
	uint32_t esize;
	uint64_t first, elems; /* of each part: elements [first, first + elems), cut at its end */
	uint64_t deadline_ns;
	uint64_t seq, active; /* operation and round; who is in the group in it */
	unsigned parity;
	bool has_read_area;	/* another rank shows one, and has to know when that is over */
	uint64_t ranks;		/* whose input counts: active, less those found gone */
	uint8_t *base;		/* where this rank's bytes are shown */
	bool is_direct;		/* that is where the caller has them: they are only sent */
	enum mc_copy_hint hint; /* how they are stored there */
	uint64_t from_ns;	/* when that began, if it is to be learnt from */
	uint64_t len;		/* how many */
	uint32_t nchunks, npublished;
	uint32_t part; /* publish: the part that is being copied, and how far */
	uint64_t part_at;
	uint32_t rounds; /* of the whole operation, as far as known */
	bool is_refused; /* somebody's call is another one: there is nothing to go on with */
};

/** Before a further round: whoever only gives has not looked yet whether all called the same.
 * @return 0; as mc_coll_round_wait() */
int mc_coll_round_check(struct mc_coll_round *r);
/** Announce the call. @return 0; as mc_coll_view_enter(); -MC_E_NOMEM */
int mc_coll_round_begin(struct mc_coll_round *r);
/** Copy the next chunk to where the others see it, and tell them. */
void mc_coll_round_publish(struct mc_coll_round *r);
/** All that is left. */
void mc_coll_round_publish_all(struct mc_coll_round *r);
/**
 * Wait until `slot` has shown its chunks up to `chunks` (all, if it has fewer).
 * @return MC_COLL_THERE; MC_COLL_GONE: what it showed is not all of its input, nobody uses it;
 * -MC_E_INVAL (it does something else: mc_coll_say() was told what); as mc_coll_wait_word()
 */
int mc_coll_round_wait(struct mc_coll_round *r, unsigned slot, uint32_t chunks);
/** At the end of an operation: what was read was shown in it. @return 0; -MC_E_STALE: this rank was
 * sent away meanwhile, and the others have gone on */
int mc_coll_round_verify(const struct mc_coll_round *r);
/** Bytes of a slot, after it has shown them. NULL: -MC_E_NOMEM. */
const uint8_t *mc_coll_round_bytes(struct mc_coll_round *r, unsigned slot);
/** Bytes of a part in this round, and its memory. */
uint64_t mc_coll_round_part(const struct mc_coll_round *r, const struct mc_coll_part *part,
			    uint8_t **ret_at);
void mc_coll_round_end(struct mc_coll_round *r);
/**
 * Over hosts, before the end of a round in which somebody shows much: everyone who lives has all of
 * it, so that a death cannot take it from anyone.
 * @return 0; MC_COLL_AGAIN: somebody's input does not count, look again who; an error
 */
int mc_coll_round_confirm(struct mc_coll_round *r);

/* ---- taste.c ---- */

/** Decide how the bytes of a round are stored. */
void mc_coll_taste_begin(struct mc_coll_round *r);
/** It is over, and nobody was lost. */
void mc_coll_taste_end(struct mc_coll_round *r);

/* ---- the operations: from begin to end of a round. @return 0; an error, the same on all ---- */

int mc_coll_reduce_round(struct mc_coll_round *r); /* sum.c: all_reduce, reduce, reduce_scatter */
int mc_coll_move_round(struct mc_coll_round *r);   /* move.c: the others */

/* ---- kernel.c ---- */

/** out[i] = src[0][i] ∘ src[1][i] ∘ …; factors: of PREMUL_SUM, one a source. Pure. */
void mc_coll_kernel(enum mc_coll_type type, enum mc_coll_reduce reduce, void *out,
		    const uint8_t *const *src, const double *factors, unsigned nsrc,
		    uint64_t count);
bool mc_coll_kernel_has(enum mc_coll_type type, enum mc_coll_reduce reduce);
uint32_t mc_coll_type_bytes(enum mc_coll_type type);
const char *mc_coll_type_text(enum mc_coll_type type);

#endif
