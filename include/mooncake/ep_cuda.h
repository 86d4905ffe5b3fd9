/*
 * ep_cuda.h: expert parallelism on memory of GPUs: the halves of ep.h as kernels on the caller's
 * streams, with the same order, sums and scales.
 *
 * Ranks are of one host, and every GPU reads the memory of the others (CUDA IPC). What a rank shows
 * lies in its GPU's memory, and so do the words: nothing of a half waits for a processor. Who is in
 * a half is decided as in ep.h, by the word of each rank, once for everybody; what a processor adds
 * is the proof of a death. Time-outs count from where the kernel that waits begins.
 *
 * Calls return when their kernels are queued. What goes wrong in these is told by the next call, or
 * by mc_ep_cuda_result(); of a half that went wrong counts are 0, sums are NaN. A rank whose begin
 * goes wrong in a kernel (experts that there are not) is out until all meet again, like one that is
 * late. Kernels that wait keep one block busy.
 *
 * Unlike there, a slot has a fixed size; the bits of NaNs may differ. No CUDA graphs: halves are
 * numbered when they are queued. Threads and lifetimes as in ep.h.
 */
#ifndef MOONCAKE_EP_CUDA_H
#define MOONCAKE_EP_CUDA_H

#include <mooncake/ep.h>

#ifdef __cplusplus
extern "C" {
#endif

struct mc_ep_cuda;
struct mc_ep_cuda_half;

/** What there is to run on. @return 0; -MC_E_UNAVAILABLE (built without kernels, no driver, no
 * GPU: diag). Any thread. */
MC_API MC_MUST_CHECK int mc_ep_cuda_check(struct mc_diag *diag);

/** Bytes of a slot that are enough for dispatches and combines of that shape. */
MC_API uint64_t mc_ep_cuda_slot_bytes(const struct mc_ep_shape *shape, uint32_t elem_bytes,
				      uint32_t extra_bytes);

/**
 * This rank's memory on a GPU: four slots. The GPU's primary context is used, as torch does.
 *
 * @param device  ordinal of the driver, 0 …
 * @param slot_bytes  1 … 2^40; the same on all ranks
 * @return 0; -MC_E_UNAVAILABLE; -MC_E_UNSUPPORTED (the group goes over hosts); -MC_E_NOMEM;
 * -MC_E_DEVICE; -MC_E_INVAL; -MC_E_FORKED
 */
MC_API MC_MUST_CHECK int mc_ep_cuda_open(struct mc_coll *coll, int device, uint64_t slot_bytes,
					 struct mc_diag *diag, struct mc_ep_cuda **ret);
/** Waits for what is queued. NULL is allowed. */
MC_API void mc_ep_cuda_close(struct mc_ep_cuda *ep);
/** As mc_ep_update(). Waits for what is queued. @return as there; -MC_E_UNSUPPORTED (a GPU cannot
 * reach another's memory, or slots differ: diag); -MC_E_DEVICE */
MC_API MC_MUST_CHECK int mc_ep_cuda_update(struct mc_ep_cuda *ep, struct mc_diag *diag);
/** As in ep.h; who was left out is known when the half has run. */
MC_API uint64_t mc_ep_cuda_members(const struct mc_ep_cuda *ep);
MC_API uint64_t mc_ep_cuda_masked(struct mc_ep_cuda *ep);
MC_API void mc_ep_cuda_mask(struct mc_ep_cuda *ep, uint64_t slots, bool is_masked);

/**
 * As in ep.h, with addresses of the GPU for everything but structs; rows at multiples of 16 bytes.
 * `stream` is a CUstream; NULL: the default one.
 *
 * A half begins and ends on streams that the caller has put in order, and what it is given (of
 * begin: patience->active, and of combine with is_kept `rows`) stays as it is until it has ended.
 *
 * @return 0; as in ep.h; what went wrong in an earlier half; -MC_E_TOO_BIG (the slot); -MC_E_DEVICE
 */
MC_API MC_MUST_CHECK int
mc_ep_cuda_dispatch_begin(struct mc_ep_cuda *ep, const struct mc_ep_shape *shape,
			  const struct mc_ep_rows *rows, const int64_t *topk,
			  const struct mc_ep_patience *patience, void *stream, struct mc_diag *diag,
			  struct mc_ep_cuda_half **ret_half);
MC_API MC_MUST_CHECK int mc_ep_cuda_dispatch_end(struct mc_ep_cuda_half *half,
						 const struct mc_ep_arrived *out, void *stream,
						 struct mc_diag *diag);
MC_API MC_MUST_CHECK int mc_ep_cuda_combine_rows(struct mc_ep_cuda *ep,
						 const struct mc_ep_shape *shape,
						 const struct mc_ep_patience *patience,
						 void *stream, struct mc_diag *diag,
						 uint16_t **ret_rows);
MC_API MC_MUST_CHECK int
mc_ep_cuda_combine_begin(struct mc_ep_cuda *ep, const struct mc_ep_shape *shape,
			 const uint16_t *rows, bool is_kept, const int64_t *topk,
			 const int64_t *ranges, const struct mc_ep_patience *patience, void *stream,
			 struct mc_diag *diag, struct mc_ep_cuda_half **ret_half);
MC_API MC_MUST_CHECK int mc_ep_cuda_combine_end(struct mc_ep_cuda_half *half, const float *weights,
						uint16_t *out, void *stream, struct mc_diag *diag);
/** Give up a half that was not ended. NULL is allowed. */
MC_API void mc_ep_cuda_half_free(struct mc_ep_cuda_half *half);

/**
 * Wait for the last half of a kind that was ended, and say what came of it.
 *
 * @param is_combine  of which kind
 * @param ret_result  may be NULL
 * @return 0; what went wrong: as in ep.h. Errors are told once, but -MC_E_STALE of that half until
 * all meet again.
 */
MC_API MC_MUST_CHECK int mc_ep_cuda_result(struct mc_ep_cuda *ep, bool is_combine,
					   struct mc_diag *diag, struct mc_coll_result *ret_result);

#ifdef __cplusplus
}
#endif

#endif
