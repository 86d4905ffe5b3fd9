/*
 * shown.h: what a rank shows: words and the beginnings of slots, for processors and GPUs alike.
 *
 * A word is epoch:24 | half:39 | frozen:1; epochs are counted by the ranks' meetings, so words of
 * different epochs differ, and an older one is smaller.
 */
#ifndef MC_EP_SHOWN_H
#define MC_EP_SHOWN_H

#include <stdint.h>

#include "base/both.h"

#define MC_EP_SLOTS 4
#define MC_EP_EPOCH_BITS 40 /* those below it */
#define MC_EP_FROZEN 1ull
#define MC_EP_NONE UINT32_MAX

enum mc_ep_kind { MC_EP_DISPATCH, MC_EP_COMBINE };

/** What all ranks of a half must agree on. */
struct mc_ep_call {
	uint32_t kind, format, elem_bytes, extra_bytes;
	uint32_t ranks, experts, hidden, topk, tokens_max;
};

/** At the beginning of a slot. Then, of a dispatch: experts + 1 numbers of entries before each
 * expert, the entries' tokens, rows; of a combine: struct mc_ep_range by expert and slot, rows. */
struct mc_ep_head {
	struct mc_ep_call call;
	uint32_t tokens;
};

struct mc_ep_range {
	uint64_t first, rows;
};

MC_BOTH uint64_t mc_ep_epoch_of(uint64_t word)
{
	return word >> MC_EP_EPOCH_BITS;
}

/** Halves of its epoch before this one. */
MC_BOTH uint64_t mc_ep_half_of(uint64_t word)
{
	return word >> 1 & ((1ull << (MC_EP_EPOCH_BITS - 1)) - 1);
}

MC_BOTH uint64_t mc_ep_align(uint64_t n, uint64_t to)
{
	return (n + to - 1) / to * to;
}

#endif
