/*
 * cuda.h: what the files of expert parallelism on GPUs share: a rank's windows, and what the CPU
 * keeps of slots. The rest is in the kernels' hands (gpu_abi.h).
 */
#ifndef MC_EP_CUDA_H
#define MC_EP_CUDA_H

#include <mooncake/ep_cuda.h>
#include <pthread.h>
#include <stdatomic.h>

#include "coll/priv.h"
#include "ep/gpu.h"

struct mc_ep_cuda {
	struct mc_coll *coll;
	uint64_t fork_gen;
	struct mc_gpu gpu;
	uint64_t window, ctl, span; /* on the GPU; bytes of a slot */
	struct mc_epk_host *host;   /* pinned */
	uint64_t host_at;	    /* the GPU's address of it */
	void *stream;		    /* for meeting, and the end */
	_Atomic uint64_t members;

	pthread_mutex_t lock; /* guards the rest, but for peers; before peers_lock */
	uint64_t masked;
	uint64_t epoch, half, count[2];
	bool is_out;		       /* left out, until all meet again */
	int error;		       /* of a half that ended, not told yet; 0 */
	struct mc_diag diag;	       /* its text */
	struct mc_coll_result last[2]; /* by kind: the half that was ended last, once harvested */
	int last_slot[2];	       /* -1: none in this epoch */
	struct mc_ep_cuda_slot {
		uint64_t scratch, scratch_len; /* on the GPU */
		void *event;		       /* behind what was queued last */
		uint64_t seen;		       /* word of the note that was harvested */
		bool is_used, is_open, is_lent;
	} slot[MC_EP_SLOTS];

	pthread_mutex_t peers_lock; /* a leaf */
	struct mc_ep_cuda_peer {
		struct mc_coll_peer *p; /* NULL: no member */
		struct mc_gpu_handle handle;
		uint64_t window;
	} peer[MC_COLL_RANKS_MAX];

	pthread_t watcher; /* tells kernels of deaths */
	bool has_watcher;
	_Atomic bool is_closing;
};

/** Take up what halves have noted since. The lock is held. */
void mc_ep_cuda_harvest(struct mc_ep_cuda *ep);
/** Forget the halves of before. The lock is held, nothing is queued. */
void mc_ep_cuda_slots_reset(struct mc_ep_cuda *ep);
/** Wait for all that is queued. The lock is held, in the context. @return 0; -MC_E_DEVICE */
int mc_ep_cuda_settle(struct mc_ep_cuda *ep, struct mc_diag *diag);

#endif
