/*
 * hops.h: does a transport reach both memories of a transfer? Pure. What it does not reach, a file
 * or a device's memory, is staged: its owner moves it between that memory and a bounce buffer, and
 * the transport moves the buffer (staged.c, stage.c).
 */
#ifndef MC_ENGINE_HOPS_H
#define MC_ENGINE_HOPS_H

#include <stdbool.h>

#include "xport/region.h"

enum mc_hops {
	MC_HOPS_DIRECT = 0,
	MC_HOPS_HERE = 1,  /* through a buffer of ours */
	MC_HOPS_THERE = 2, /* through a buffer of the peer's */
	MC_HOPS_BOTH = MC_HOPS_HERE | MC_HOPS_THERE,
	MC_HOPS_COUNT,
};

/** Its owner alone moves it. */
static inline bool mc_hops_is_staged(enum mc_mem_kind kind)
{
	return kind == MC_MEM_CUDA || kind == MC_MEM_FILE;
}

static inline enum mc_hops mc_hops_choose(enum mc_mem_kind local, enum mc_mem_kind remote)
{
	return (enum mc_hops)((mc_hops_is_staged(local) ? MC_HOPS_HERE : 0) |
			      (mc_hops_is_staged(remote) ? MC_HOPS_THERE : 0));
}

#endif
