/*
 * cuda_rank.h: a rank of layer.h whose halves run on a GPU: what it works with is copied there, and
 * what comes back is judged as if it had been computed here.
 */
#ifndef MC_TESTS_EP_CUDA_RANK_H
#define MC_TESTS_EP_CUDA_RANK_H

#include <mooncake/ep_cuda.h>

#include "layer.h"

struct gpu_rank {
	struct layer layer; /* `ep` is NULL */
	struct mc_ep_cuda *ep;
	uint64_t rows, topk, weights, extra, active; /* on the GPU */
	uint64_t made, sums;
	uint64_t lent; /* where the next combine finds what was made; 0: `made` */
	struct mc_ep_arrived got;
};

/** Is there a driver with a GPU? In a process of its own: contexts do not outlive fork(). Prints
 * why not. */
bool gpu_is_there(void);

/** On the GPU, before mc_ep_cuda_update(). @return 0; -MC_E_…, with the diag of r->layer */
int gpu_rank_open(struct gpu_rank *r, struct mc_coll *coll, const struct mc_ep_shape *shape,
		  uint32_t rank, enum mc_ep_format format, bool is_packed);
void gpu_rank_close(struct gpu_rank *r);

/** By slot: who takes part; written back by the ends. */
int gpu_dispatch_begin(struct gpu_rank *r, const struct tokens *t, const int32_t *active,
		       uint64_t timeout_ns, struct mc_ep_cuda_half **ret);
/** Waits; @return what mc_ep_cuda_result() says */
int gpu_dispatch_end(struct gpu_rank *r, struct mc_ep_cuda_half *h, int32_t *active);
/** layer_compute(), and what it made is on the GPU. @param is_lent  in memory for the next combine
 */
int gpu_compute(struct gpu_rank *r, bool is_lent);
/** Row `at` of an own expert, with FP8 and its scales, is what the processor makes of this one. */
bool gpu_row_is(const struct gpu_rank *r, uint32_t expert, uint64_t at, const uint16_t *row);
int gpu_combine_begin(struct gpu_rank *r, bool is_kept, const int32_t *active, uint64_t timeout_ns,
		      struct mc_ep_cuda_half **ret);
/** The sums are copied back whatever came of it. */
int gpu_combine_end(struct gpu_rank *r, struct mc_ep_cuda_half *h, int32_t *active);

#endif
