/*
 * gpu_abi.h: what a half of a GPU is told: the one argument of all kernels (kernels_*.h), and the
 * memory that they share with the CPU. Plain C that CUDA's C++ understands, too.
 *
 * A rank's window is memory of its GPU that the other ranks' GPUs map: a page of words as in
 * priv.h, and four slots. Everything else is the rank's own. Kernels of a half run one behind the
 * other on the caller's stream; what one writes the next one sees.
 */
#ifndef MC_EP_GPU_ABI_H
#define MC_EP_GPU_ABI_H

#include "ep/shown.h"

#define MC_EPK_RANKS_MAX 64
#define MC_EPK_THREADS 256 /* of a block */
#define MC_EPK_PAGE_LEN 4096ull
#define MC_EPK_MAGIC 0x31554745434dull /* "MCEGU1" */

struct mc_epk_page {
	uint64_t magic, pad0[7];
	uint64_t word, pad1[7];
	uint64_t done[MC_EP_SLOTS];
	uint64_t tag[MC_EP_SLOTS];
};

/** The rank's own, one for each slot: what the kernels of a half tell each other. Zeroed when the
 * ranks meet. */
struct mc_epk_ctl {
	uint64_t shown, shown_word; /* who may read the slot; since which half. 0: nobody */
	uint64_t wanted, taken, lost;
	int32_t rc; /* 0; -enum mc_err: the kernels that follow do nothing */
	uint32_t who, what;
};

/** What came of a half, in memory of the host, one for each slot. */
struct mc_epk_note {
	uint64_t word; /* the half; written last */
	uint64_t taken, lost;
	int32_t rc;
	uint32_t who;	 /* a rank; of MC_EPK_BAD_ROUTE a token */
	uint32_t what;	 /* enum mc_epk_bad */
	uint32_t is_out; /* the own word is frozen: nothing more comes of this epoch */
	uint32_t pad[4];
};

enum mc_epk_bad {
	MC_EPK_BAD_NOTHING,
	MC_EPK_BAD_ROUTE,  /* a token goes to an expert that there is not, or to one twice */
	MC_EPK_BAD_RANGES, /* the caller's ranges do not fit the shape */
	MC_EPK_BAD_SPACE,  /* rows do not fit the slot */
	MC_EPK_BAD_CALL,   /* a rank is in another call */
	MC_EPK_BAD_SHOWN,  /* a rank shows what cannot be */
	MC_EPK_BAD_WAIT,   /* a rank has not come */
	MC_EPK_BAD_OUT,	   /* this rank was left out */
};

/** In memory of the host: what the CPU tells kernels that wait, and what they tell it. */
struct mc_epk_host {
	uint64_t gone; /* ranks whose death is proved */
	uint64_t stop; /* not 0: end with -MC_E_CANCELED */
	uint64_t pad[6];
	struct mc_epk_note note[MC_EP_SLOTS];
};

struct mc_epk_half {
	struct mc_ep_call call;
	uint32_t me, tokens, le, groups, slot;
	uint32_t align, is_packed, is_kept, is_lent, is_canceled;
	uint64_t room, word, members, mask;
	uint64_t timeout_ns, group_ns;
	/* in a slot; the same on all ranks */
	uint64_t span, first_at, token_at, rows_at;
	uint64_t row_bytes, scales_at, extra_at,
	    stride;			   /* of a row; of a combine row_bytes alone */
	uint64_t window[MC_EPK_RANKS_MAX]; /* 0: no member */

	struct mc_epk_host *host;
	struct mc_epk_ctl *ctl;
	/* the rank's own, of this slot */
	uint64_t *base, *start, *row; /* by own expert; by own expert; by expert */
	uint32_t *first;	      /* by expert, one more than there are: entries before it */
	uint32_t *route, *rank;	      /* by entry: its expert, its place among that one's */
	/* the caller's; 0 is written for whoever is left out; NULL: `mask` */
	int32_t *active;
	const int64_t *topk;
	/* dispatch */
	const uint8_t *rows, *extra;
	uint8_t *out_rows, *out_extra, *out_scales;
	int32_t *out_counts, *out_tokens;
	int64_t *out_ranges;
	/* combine */
	const uint16_t *made;
	const int64_t *ranges;
	const float *weights;
	uint16_t *sums;
};

/* Kernels, by their names in the module. A half's are launched in this order: begin, end. */
#define MC_EPK_TABLE(X)                                                                            \
	X(enter)       /* both begin: wanted ranks; nobody reads the slot any more */              \
	X(count)       /* a block for each expert: its entries of this rank, in order */           \
	X(scan)	       /* entries before each expert */                                            \
	X(show_same)   /* dispatch: rows into the slot as they are */                              \
	X(show_fp8)    /* as e4m3 */                                                               \
	X(show_pow2)   /* with scales that are powers of two */                                    \
	X(range)       /* combine: where the rows of each expert and source will be */             \
	X(give)	       /* combine: rows into the slot */                                           \
	X(publish)     /* the slot is written: the word moves on */                                \
	X(wait)	       /* both end: everybody's word */                                            \
	X(count_in)    /* dispatch: rows of each expert and source */                              \
	X(take_same)   /* rows to their experts */                                                 \
	X(take_fp8)    /* with scales */                                                           \
	X(take_packed) /* with scales as exponents */                                              \
	X(source)      /* combine: where the rows of each expert are */                            \
	X(add)	       /* the sums */                                                              \
	X(finish)      /* tags looked at, done said, the caller told */                            \
	X(poison)      /* what did not come about can not be taken for a result */                 \
	X(word)	       /* enter an epoch, or freeze the own word for good */

enum mc_epk {
#define MC_EPK_ENUM(name) MC_EPK_##name,
	MC_EPK_TABLE(MC_EPK_ENUM)
#undef MC_EPK_ENUM
	    MC_EPK_COUNT,
};

#endif
