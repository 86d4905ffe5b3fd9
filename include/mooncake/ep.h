/*
 * ep.h: expert parallelism: tokens to the ranks of their experts, and back, between processes that
 * may die. Rows are bf16.
 *
 * A step is a dispatch and a combine over a group of coll.h. Expert e lives in slot
 * e / (experts / ranks). Each half is two operations of the group, all_to_all of numbers, then of
 * rows of uneven parts: so the deaths of a step are agreed like those of any operation, a rank's
 * tokens arrive at all survivors or at none, no old incarnation's bytes are read, and whoever joins
 * needs nothing of its own. The price are copies: rows are gathered, shown, taken and put in place.
 *
 * Order: inside an expert, rows lie source by source, in the order of the source's tokens.
 * A rank that is gone contributes no rows; what its experts would have added is left out of the
 * sum, without changing the other weights.
 *
 * Every active rank begins and ends the same halves in the same order, and changes of membership
 * lie between halves. A rank that is slow is waited for, up to the group's timeout.
 *
 * Threads: as operations of the group. A half belongs to the caller between begin and end.
 */
#ifndef MOONCAKE_EP_H
#define MOONCAKE_EP_H

#include <stdint.h>

#include <mooncake/coll.h>

#ifdef __cplusplus
extern "C" {
#endif

#define MC_EP_TOPK_MAX 32
#define MC_EP_EXPERTS_MAX (1u << 16)
#define MC_EP_TOKENS_MAX (1u << 20)
#define MC_EP_HIDDEN_MAX (1u << 20)

struct mc_ep_half;

/** All but `tokens` must be the same on all ranks. */
struct mc_ep_shape {
	uint32_t rank, ranks; /* slot of this process; slots of the group */
	uint32_t experts;     /* of all ranks; a multiple of `ranks` */
	uint32_t hidden;      /* elements of a row; a multiple of 16 */
	uint32_t topk;	      /* 1 … MC_EP_TOPK_MAX */
	uint32_t tokens_max;  /* of any rank */
	uint32_t tokens;      /* of this rank */
};

/**
 * Read the tokens that go to others, so that `rows` may change again.
 *
 * @param rows  tokens × hidden
 * @param topk  tokens × topk experts, all different in a token; -1: none
 * @param active  ranks, 0: nothing is sent to it or taken from it; NULL: all are active
 * @return 0; -MC_E_INVAL (the shape, or topk: diag); -MC_E_NOMEM
 */
MC_API MC_MUST_CHECK int mc_ep_dispatch_begin(struct mc_coll *coll, const struct mc_ep_shape *shape,
					      const uint16_t *rows, const int64_t *topk,
					      const int32_t *active, struct mc_diag *diag,
					      struct mc_ep_half **ret_half);

/** Where a dispatch puts what came; le = experts / ranks, room = ranks × tokens_max. */
struct mc_ep_arrived {
	uint16_t *rows;	 /* le × room × hidden */
	int32_t *counts; /* le: rows of each expert */
	int32_t *tokens; /* le × room: number of the token at its source */
	int64_t *ranges; /* le × ranks: first row << 32 | rows, of each source */
};

/**
 * Exchange. The half is used up, whatever comes of it.
 *
 * @param ret_result  `ranks` has the slots that both operations had; may be NULL
 * @return 0; -MC_E_INVAL (a rank sends what does not fit the shape); as mc_coll_run()
 */
MC_API MC_MUST_CHECK int mc_ep_dispatch_end(struct mc_ep_half *half,
					    const struct mc_ep_arrived *out,
					    struct mc_coll_result *ret_result);

/**
 * Read what the experts made of the rows, in the places that dispatch gave them, for its `ranges`.
 *
 * @param rows  le × room × hidden
 * @return as mc_ep_dispatch_begin(); -MC_E_INVAL also where ranges do not fit the shape
 */
MC_API MC_MUST_CHECK int mc_ep_combine_begin(struct mc_coll *coll, const struct mc_ep_shape *shape,
					     const uint16_t *rows, const int64_t *topk,
					     const int32_t *active, const int64_t *ranges,
					     struct mc_diag *diag, struct mc_ep_half **ret_half);
/**
 * Exchange, and add up: out[t] = the sum of weights[t][k] × row of topk[t][k], in f32 in the order
 * of k, rounded once to bf16. The half is used up.
 *
 * @param weights  tokens × topk
 * @param out  tokens × hidden
 * @return as mc_ep_dispatch_end()
 */
MC_API MC_MUST_CHECK int mc_ep_combine_end(struct mc_ep_half *half, const float *weights,
					   uint16_t *out, struct mc_coll_result *ret_result);

/** Give up a half that was not ended. NULL is allowed. */
MC_API void mc_ep_half_free(struct mc_ep_half *half);

#ifdef __cplusplus
}
#endif

#endif
