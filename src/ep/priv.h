/*
 * priv.h: what the files of ep share: the memory that a rank shows, and a half that is under way.
 *
 * Beside its group's memory a rank shows a page of words and four slots, two for dispatches and two
 * for combines, which take turns. A word is epoch:24 | half:39 | frozen:1; epochs are counted by
 * mc_ep_update(), so words of different epochs differ, and an older one is smaller. What a half
 * shows is in its slot before the rank's word says so, and stays until everyone has said that it is
 * done with it. Whoever reads a slot looks at its tag afterwards: a reader that was left out may
 * have been overtaken.
 */
#ifndef MC_EP_PRIV_H
#define MC_EP_PRIV_H

#include <pthread.h>
#include <stdatomic.h>

#include <mooncake/ep.h>

#include "coll/priv.h"
#include "ep/shown.h"

#define MC_EP_MAGIC 0x31505043434dull /* "MCCEP1" */
#define MC_EP_SPAN (1ull << 33) /* bytes that a slot may have; memory is behind what was needed */
#define MC_EP_PAGE_LEN 4096ull
#define MC_EP_REGION (1ull << 36) /* page and slots */

struct mc_ep_page {
	uint64_t magic;
	_Alignas(MC_CACHELINE) _Atomic uint64_t word;
	/* Of others' bytes: this rank reads no half up to this one in the slot any more. */
	_Alignas(MC_CACHELINE) _Atomic uint64_t done[MC_EP_SLOTS];
	_Atomic uint64_t tag[MC_EP_SLOTS]; /* whose bytes are in this rank's slot */
};

struct mc_ep {
	struct mc_coll *coll;
	struct mc_coll_remains remains; /* closed, and still read */
	struct mc_ep_net *net;		/* net.h; NULL: all ranks are on this host */
	uint64_t fork_gen, side_at;
	uint8_t *memory; /* MC_EP_REGION, mapped once */
	struct mc_ep_page *page;
	_Atomic uint64_t members, masked;
	_Atomic uint32_t ninside; /* halves that are being ended */

	pthread_mutex_t lock; /* one begins at a time; guards the rest, but for ends of halves */
	uint64_t epoch, half, count[2];
	struct mc_spin spin;
	struct mc_ep_peer {
		struct mc_coll_peer *p; /* NULL: no member */
		uint64_t side_at;
		uint8_t *memory;
		struct mc_ep_page *page;
	} peer[MC_COLL_RANKS_MAX];
	struct mc_ep_slot {
		uint64_t word;	/* of the half that used it last; 0: none in this epoch */
		uint64_t ranks; /* who may read it */
		uint64_t kept;	/* bytes with memory behind */
		bool is_lent;	/* mc_ep_combine_rows() */
		_Atomic bool is_open;
		struct mc_spin spin; /* of the half that ends */
	} slot[MC_EP_SLOTS];
};

struct mc_ep_parts;

struct mc_ep_half {
	struct mc_ep *ep;
	/* Over hosts: what of the slot the rank `q` will read. @return 0; -MC_E_NOMEM */
	int (*parts)(const struct mc_ep_half *h, unsigned q, struct mc_ep_parts *ret);
	struct mc_ep_shape shape;
	struct mc_ep_call call;
	int32_t *active;
	uint64_t timeout_ns;
	unsigned slot;
	uint64_t word;	 /* of this half */
	uint64_t wanted; /* bits of slots, this rank's included */
	uint32_t le;	 /* experts of a slot */
	uint64_t room;	 /* rows of an expert */
	/* of this rank's tokens; all NULL until routed */
	uint32_t *first; /* by expert, one more than there are: entries before it */
	uint32_t *place; /* by token and k: its entry; MC_EP_NONE */
	/* combine */
	const uint16_t *own; /* rows for this rank that were not copied; NULL */
	uint64_t *start;     /* by own expert: first row for this rank */
};

static inline uint8_t *mc_ep_slot_at(uint8_t *memory, unsigned slot)
{
	return memory + MC_EP_PAGE_LEN + slot * MC_EP_SPAN;
}

/** Nobody alive is left out: the group's deadline comes first, or the caller waits for ever. */
static inline bool mc_ep_is_patient(const struct mc_ep_half *h, uint64_t patience_ns,
				    uint64_t group_ns)
{
	return h->timeout_ns == MC_EP_NEVER || patience_ns > group_ns;
}

/** This rank does without `q` in this epoch. */
static inline bool mc_ep_is_frozen(const struct mc_ep *ep, unsigned q)
{
	uint64_t word = atomic_load_explicit(&ep->peer[q].page->word, memory_order_acquire);

	return mc_ep_epoch_of(word) == ep->epoch && (word & MC_EP_FROZEN);
}

/* ---- step.c ---- */

/** @return -MC_E_STALE: this rank was left out */
int mc_ep_say_stale(const struct mc_coll *g, struct mc_diag *diag);

/** Decide (over hosts: for this rank) whether `q` has shown `target`; UINT64_MAX: it goes no
 * further. @return MC_COLL_THERE, _GONE; -MC_E_STALE */
int mc_ep_freeze(struct mc_ep *ep, unsigned q, uint64_t target);

/** This rank is in the epoch: its word is that of no half. @return 0; -MC_E_STALE */
int mc_ep_enter(struct mc_ep *ep, uint64_t epoch);
/** Make `h` the next half of its kind, with `len` bytes of its slot to write to; the lock is held.
 * @return 0; as mc_ep_dispatch_begin() */
int mc_ep_take_slot(struct mc_ep_half *h, uint64_t len, struct mc_diag *diag);
/** The slot is written. The lock is held. @return 0; -MC_E_STALE */
int mc_ep_show(struct mc_ep_half *h, struct mc_diag *diag);
/** Wait for everybody's slot. @return 0, *ret_taken has who has shown it; as mc_ep_dispatch_end()
 */
int mc_ep_wait_all(struct mc_ep_half *h, uint64_t *ret_taken, struct mc_diag *diag);
/** What was read of `taken` was theirs. @return 0; -MC_E_STALE */
int mc_ep_check_tags(struct mc_ep_half *h, uint64_t taken, struct mc_diag *diag);
/** Tell the others and the caller; the half is gone. @return rc */
int mc_ep_finish(struct mc_ep_half *h, uint64_t taken, int rc, struct mc_coll_result *ret_result);

/* ---- route.c ---- */

/** @return 0; -MC_E_INVAL */
int mc_ep_check_shape(const struct mc_coll *g, const struct mc_ep_shape *s, struct mc_diag *diag);
/** @return 0; -MC_E_INVAL */
int mc_ep_check_rows(const struct mc_ep_rows *in, struct mc_diag *diag);
/** A half with its call and who is wanted in it. @return 0; -MC_E_INVAL; -MC_E_NOMEM */
int mc_ep_half_make(struct mc_ep *ep, const struct mc_ep_shape *s, struct mc_ep_call call,
		    const struct mc_ep_patience *patience, struct mc_diag *diag,
		    struct mc_ep_half **ret_half);
/** Fill in first and place. @return as above */
int mc_ep_route(struct mc_ep_half *h, const int64_t *topk, struct mc_diag *diag);
/** Not begun, or finished. */
void mc_ep_half_drop(struct mc_ep_half *h);

#endif
