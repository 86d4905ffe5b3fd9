/*
 * ep.h: expert parallelism: tokens to the ranks of their experts, and back, between processes that
 * may die or be late.
 *
 * A step is a dispatch and a combine over the ranks of a group of coll.h, beside the group's own
 * operations. Expert e lives in slot e / (experts / ranks). Each half begins by showing (in memory
 * that the others map; over hosts they have images of it) and ends by taking: a rank writes only
 * its own memory, so what a late or dead one writes is never in anybody's way. A dispatch shows a
 * token once, however many experts it goes to, and whoever has these takes it to its place; a
 * combine reads the peers' rows straight into the sum.
 *
 * Who is in a half is one fact for everybody: each rank has a word with the last half that it has
 * shown, and whoever does without a rank (it died, left, or is later than the caller allows)
 * freezes that word first. A rank whose word is frozen is told so by its next call, and is out of
 * all later halves until mc_ep_update(). A rank that is left out contributes no rows; what its
 * experts would have added is missing from the sums, and the other weights stay as they are.
 *
 * Over hosts ranks tell each other whom they do without. A half is decided without a rank when its
 * host has proved its death, when it has said that it is out, or when those who go on are more than
 * half of the half's ranks, or half of them with the lowest slot; all others' calls fail as those
 * of a rank that was left out, but for one half at most, which may have ended. A connection that is
 * lost to a rank that the group holds for alive makes it late; where it is waited for with
 * MC_EP_NEVER nobody is left out, but the calls of all ranks fail until they meet again.
 *
 * Order: inside an expert rows lie source by source, in the order of the source's tokens.
 *
 * All ranks begin the same halves in the same order. Two dispatches and two combines may be under
 * way. Threads: any; a half belongs to the caller between begin and end, and nothing of a struct
 * mc_ep may run while it is updated or closed.
 */
#ifndef MOONCAKE_EP_H
#define MOONCAKE_EP_H

#include <stdbool.h>
#include <stdint.h>

#include <mooncake/coll.h>

#ifdef __cplusplus
extern "C" {
#endif

#define MC_EP_TOPK_MAX 32
#define MC_EP_EXPERTS_MAX (1u << 16)
#define MC_EP_TOKENS_MAX (1u << 20)
#define MC_EP_HIDDEN_MAX (1u << 20)
#define MC_EP_EXTRA_MAX (1u << 16)
#define MC_EP_GROUP 128u /* elements that share a scale */

struct mc_ep;
struct mc_ep_half;

/* ---- life ---- */

/** This rank's memory for halves, beside the group's, which must live longer. Nobody is a member
 * until mc_ep_update(). @return 0; -MC_E_NOMEM; -MC_E_FORKED */
MC_API MC_MUST_CHECK int mc_ep_open(struct mc_coll *coll, struct mc_diag *diag, struct mc_ep **ret);
/** No half is under way. NULL is allowed. */
MC_API void mc_ep_close(struct mc_ep *ep);
/**
 * Meet: an operation of the group, which all its active ranks have to call. Whoever is in it is a
 * member from here on, no word is frozen, nobody is masked; halves that had begun are void. When it
 * fails there are no members, and halves fail with -MC_E_STALE, until a meeting succeeds. One that
 * fails here may have succeeded for others: to them this rank is one that is left out (over hosts
 * one that is late).
 *
 * @return 0; -MC_E_BUSY (a half is being ended in another thread: nothing has changed);
 * -MC_E_INVAL (a rank does something else); -MC_E_STALE (frozen meanwhile: once more);
 * -MC_E_NOMEM; as mc_coll_run()
 */
MC_API MC_MUST_CHECK int mc_ep_update(struct mc_ep *ep, struct mc_diag *diag);
/** Bits of the members' slots. */
MC_API uint64_t mc_ep_members(const struct mc_ep *ep);
/** Bits of the slots that halves do without where the caller says nothing else: those that were
 * left out since the last update, and those set here. Any thread. */
MC_API uint64_t mc_ep_masked(const struct mc_ep *ep);
MC_API void mc_ep_mask(struct mc_ep *ep, uint64_t slots, bool is_masked);

/* ---- halves ---- */

/** All but `tokens` must be the same on all ranks. */
struct mc_ep_shape {
	uint32_t ranks;	     /* slots 0 … ranks - 1 have experts */
	uint32_t experts;    /* of all ranks; a multiple of `ranks` */
	uint32_t hidden;     /* elements of a row; a multiple of 16 */
	uint32_t topk;	     /* 1 … MC_EP_TOPK_MAX */
	uint32_t tokens_max; /* of any rank */
	uint32_t tokens;     /* of this rank */
	/* In what arrives, expert i of a rank begins at row i × ranks × tokens_max; or, if this is
	 * not 0, behind expert i - 1, at a multiple of it. */
	uint32_t align;
};

/** Who takes part, and how long they are waited for. */
struct mc_ep_patience {
	/* ranks: 0: nothing is sent to the slot or taken from it; 0 is written for whoever is left
	 * out. NULL: what mc_ep_masked() says. The same on all ranks. */
	int32_t *active;
	/* Who has not come so long after the call is left out; MC_EP_NEVER: nobody alive is, and
	 * after the group's timeout the half ends with -MC_E_TIMEDOUT. */
	uint64_t timeout_ns;
};
#define MC_EP_NEVER UINT64_MAX

enum mc_ep_format {
	MC_EP_SAME,	/* rows arrive as they are */
	MC_EP_FP8,	/* bf16 becomes e4m3 × scale: scale = max(|group|, 1e-4) / 448 */
	MC_EP_FP8_POW2, /* the same, scale rounded up to a power of two */
	MC_EP_FORMAT_COUNT,
};

/** What a dispatch sends. */
struct mc_ep_rows {
	enum mc_ep_format format;
	uint32_t elem_bytes; /* MC_EP_SAME: of an element, 1 … 8; else 2 */
	uint32_t extra_bytes;
	const void *rows;  /* tokens × hidden elements */
	const void *extra; /* tokens × extra_bytes that go with them; NULL */
};

/**
 * Show the tokens that go to others; `rows` may change again.
 *
 * @param topk  tokens × topk experts, all different in a token; -1: none
 * @return 0; -MC_E_INVAL (the shape, or topk: diag); -MC_E_NOMEM; -MC_E_TOO_BIG; -MC_E_BUSY (two
 * are under way); -MC_E_STALE (this rank's word is frozen, or it is no member: mc_ep_update());
 * -MC_E_TIMEDOUT; -MC_E_CANCELED
 */
MC_API MC_MUST_CHECK int mc_ep_dispatch_begin(struct mc_ep *ep, const struct mc_ep_shape *shape,
					      const struct mc_ep_rows *rows, const int64_t *topk,
					      const struct mc_ep_patience *patience,
					      struct mc_diag *diag, struct mc_ep_half **ret_half);

/** Where a dispatch puts what came; le = experts / ranks, room = ranks × tokens_max. Rows: le ×
 * room, or with shape.align at most room × min(topk, le) + le × (align - 1), rows between experts
 * are not written. */
struct mc_ep_arrived {
	void *rows; /* rows × hidden elements (FP8: bytes) */
	/* FP8, without shape.align: le × groups × room scales; with `is_packed` (MC_EP_FP8_POW2)
	 * le × (groups / 4) × room words of four exponents of f32. groups = hidden / 128, rounded
	 * up, and so is groups / 4. */
	void *scales;
	void *extra;	 /* rows × extra_bytes; NULL: not wanted */
	int32_t *counts; /* le: rows of each expert */
	int32_t *tokens; /* rows: number of the token at its source; NULL: not wanted */
	int64_t *ranges; /* le × ranks: first row of the expert << 32 | rows, of each source */
	bool is_packed;
};

/**
 * Take. The half is used up, whatever comes of it.
 *
 * @param ret_result  `ranks` has the slots whose tokens came, `failed` those that were left out;
 * may be NULL
 * @return 0; -MC_E_INVAL (a rank does something else: diag); -MC_E_STALE (the others have gone on
 * without this rank); -MC_E_TIMEDOUT; -MC_E_CANCELED
 */
MC_API MC_MUST_CHECK int mc_ep_dispatch_end(struct mc_ep_half *half,
					    const struct mc_ep_arrived *out, struct mc_diag *diag,
					    struct mc_coll_result *ret_result);

/**
 * Memory of the next combine, for experts that write what they make straight to where the others
 * read it; without shape.align. It is the caller's until that combine begins, and mapped as long as
 * `ep` is open.
 * @return 0; as mc_ep_dispatch_begin()
 */
MC_API MC_MUST_CHECK int mc_ep_combine_rows(struct mc_ep *ep, const struct mc_ep_shape *shape,
					    const struct mc_ep_patience *patience,
					    struct mc_diag *diag, uint16_t **ret_rows);
/**
 * Show what the experts made of the rows, in the places that dispatch gave them, for its `ranges`.
 *
 * @param rows  bf16, as they arrived; what mc_ep_combine_rows() gave is not copied
 * @param is_kept  the rows will not change before the end: those of this rank's own tokens are not
 * copied either
 * @return as mc_ep_dispatch_begin(); -MC_E_INVAL also where ranges do not fit the shape
 */
MC_API MC_MUST_CHECK int mc_ep_combine_begin(struct mc_ep *ep, const struct mc_ep_shape *shape,
					     const uint16_t *rows, bool is_kept,
					     const int64_t *topk, const int64_t *ranges,
					     const struct mc_ep_patience *patience,
					     struct mc_diag *diag, struct mc_ep_half **ret_half);
/**
 * Add up: out[t] = the sum of weights[t][k] × row of topk[t][k], in f32 in the order of k, rounded
 * once to bf16. The half is used up.
 *
 * @param weights  tokens × topk; NULL: all are 1
 * @param out  tokens × hidden
 * @return as mc_ep_dispatch_end()
 */
MC_API MC_MUST_CHECK int mc_ep_combine_end(struct mc_ep_half *half, const float *weights,
					   uint16_t *out, struct mc_diag *diag,
					   struct mc_coll_result *ret_result);

/** Give up a half that was not ended: the others do not wait for its end. NULL is allowed. */
MC_API void mc_ep_half_free(struct mc_ep_half *half);

#ifdef __cplusplus
}
#endif

#endif
