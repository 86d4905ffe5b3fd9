/*
 * page.h: what a rank shows to the others of its host: memory of its own that they map.
 *
 * Each life of a rank has its own memory, so an old incarnation that still writes is read by
 * nobody. A page begins with `word`, the progress of the rank through the operations of the group
 * and their rounds, which only grows, and is frozen by its death. What the rank has shown up to a
 * step was stored before that step. All decisions about who takes part in what are read off frozen
 * words, so survivors need no vote.
 *
 * The memory behind a descriptor: struct mc_coll_page, MC_COLL_RINGS_LEN of rings (p2p.c), then the
 * area that large operations use, which grows on demand; far behind it what users of the group show
 * beside its operations (ep).
 */
#ifndef MC_COLL_PAGE_H
#define MC_COLL_PAGE_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include <mooncake/coll.h>

#include "base/mem.h"

#define MC_COLL_MAGIC 0x314c4c4f43434dull /* "MCCOLL1" */
/* A word is operation:40 | round:10 | step:14. */
#define MC_COLL_ROUND_BITS 10
#define MC_COLL_STEP_BITS 14
#define MC_COLL_ROUNDS_MAX (1u << MC_COLL_ROUND_BITS)
#define MC_COLL_STEP_DONE ((1u << MC_COLL_STEP_BITS) - 1)
#define MC_COLL_STEP_HAVE                                                                          \
	(MC_COLL_STEP_DONE - 1) /* has all it wants of the others (over hosts)                     \
				 */
#define MC_COLL_SMALL 8192u	/* bytes that an operation shows in the page itself */
#define MC_COLL_RING_LEN 65536u /* bytes from one rank to another; a power of two */
#define MC_COLL_RINGS_LEN ((uint64_t)MC_COLL_RING_LEN * MC_COLL_RANKS_MAX)
#define MC_COLL_AREA_MIN (1u << 20)
#define MC_COLL_CPU_WORDS 16

enum mc_coll_state {
	MC_COLL_ATTACHED = 0, /* may become active */
	MC_COLL_LEFT,	      /* its word is as final as a dead rank's */
};

/** An operation that is over, as far as ranks have to have called the same. */
struct mc_coll_past {
	uint8_t kind, type, reduce, root; /* kind: or one of those below */
	uint64_t count;
};

#define MC_COLL_REFUSED 0xfeu /* it ended with -MC_E_INVAL here */
#define MC_COLL_UNKNOWN 0xffu /* this rank was not in it: it joined after it */

/** What a rank does in an operation; compared between ranks. */
struct mc_coll_call {
	uint8_t kind, type, reduce, root;
	uint32_t rounds; /* of this operation as far as this rank's own parts tell */
	uint32_t nin;
	double factor;
	uint64_t seq;	/* the round: one that a rank has not shown is one that it will not show */
	uint64_t len;	/* bytes shown in it */
	uint64_t count; /* elements of a part where all are equal, else UINT64_MAX */
	struct mc_coll_past
	    before; /* the operation before: who only gave in it has seen nobody's */
};

/** Ring of messages to one other rank: bytes [tail, head), both counted for ever. */
struct mc_coll_ring {
	_Alignas(MC_CACHELINE) _Atomic uint64_t head; /* the sender's */
	_Atomic uint64_t inc;			      /* the receiver it is for; 0: for none yet */
	_Alignas(MC_CACHELINE) _Atomic uint64_t tail; /* the receiver's */
};

struct mc_coll_page {
	/* written before the descriptor is shown */
	uint64_t magic;
	uint64_t inc; /* incarnation: random, never 0 */
	uint32_t slot, ranks_max;
	uint64_t cpus[MC_COLL_CPU_WORDS]; /* bits of those it may run on */

	_Alignas(MC_CACHELINE) _Atomic uint64_t word;

	/* Whoever waits for `word` counts itself in the byte of its slot, reads `bell`, looks again
	 * and sleeps on it. What a rank that died asleep has left there, the owner takes away. */
	_Alignas(MC_CACHELINE) _Atomic uint64_t sleepers[MC_COLL_RANKS_MAX / 8];
	_Alignas(MC_CACHELINE) _Atomic uint32_t bell;

	/* Reduced shares (mc_coll_share()), of the ranks in the mask of that restart's parity. */
	_Alignas(MC_CACHELINE) _Atomic uint64_t shares;
	_Atomic uint64_t shares_mask[2];

	_Alignas(MC_CACHELINE) _Atomic uint64_t entered; /* the operation it is in, or was last */
	_Atomic uint64_t log_seen;			 /* entries of the board's log it knows */
	_Atomic uint32_t state;				 /* enum mc_coll_state */
	_Atomic uint64_t area_len;
	_Atomic uint64_t area_seq; /* the round whose bytes are in the area */

	/* by the parity of operation + round */
	_Alignas(MC_CACHELINE) struct mc_coll_call call[2];
	uint64_t part_len[2][MC_COLL_RANKS_MAX]; /* bytes of this round for each slot */

	_Atomic uint64_t known[MC_COLL_RANKS_MAX]; /* incarnations of the others that it mapped */

	/* Whoever waits for messages, or for room for them, sleeps on its own bell. */
	_Alignas(MC_CACHELINE) _Atomic uint32_t mail_sleepers;
	_Atomic uint32_t mail_bell;
	_Alignas(MC_CACHELINE) struct mc_coll_ring ring[MC_COLL_RANKS_MAX]; /* by receiver */
	_Alignas(MC_CACHELINE) uint8_t small[2][MC_COLL_SMALL];
};

#define MC_COLL_PAGE_LEN ((sizeof(struct mc_coll_page) + 4095) & ~4095ull)
#define MC_COLL_AREA_AT (MC_COLL_PAGE_LEN + MC_COLL_RINGS_LEN)
#define MC_COLL_SIDE_AT (1ull << 40) /* nothing is behind it until it is written to */

/** The membership of the group, written by whoever has the gate. */
struct mc_coll_change {
	uint64_t from_op; /* the first operation it is true for */
	uint64_t active;
	uint64_t inc[MC_COLL_RANKS_MAX]; /* of the active slots */
};

#define MC_COLL_LOG 16 /* changes that a slow rank may lag behind */

struct mc_coll_board {
	uint64_t magic;
	uint32_t ranks_max;
	/* slot + 1 of whoever is making a change; an operation does not begin while it is held */
	_Alignas(MC_CACHELINE) _Atomic uint32_t gate;
	_Atomic uint32_t bell;			       /* changes of gate and count */
	_Alignas(MC_CACHELINE) _Atomic uint64_t count; /* of changes, from the first */
	struct mc_coll_change log[MC_COLL_LOG];
};

#define MC_COLL_BOARD_LEN ((sizeof(struct mc_coll_board) + 4095) & ~4095ull)

/** @param seq operation << MC_COLL_ROUND_BITS | round */
static inline uint64_t mc_coll_word(uint64_t seq, uint32_t step)
{
	return seq << MC_COLL_STEP_BITS | step;
}

/** Which of two places a round uses in a page. */
static inline unsigned mc_coll_parity(uint64_t seq)
{
	return (seq >> MC_COLL_ROUND_BITS ^ seq) & 1;
}

/** How far a rank has reduced its shares: sequence (its low bits) | restart:14 | chunks:14. */
static inline uint64_t mc_coll_share(uint64_t seq, uint32_t restart, uint32_t chunks)
{
	return seq << 2 * MC_COLL_STEP_BITS | (uint64_t)restart << MC_COLL_STEP_BITS | chunks;
}

#endif
