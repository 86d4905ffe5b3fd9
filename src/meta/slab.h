/*
 * slab.h: records of any size up to MC_SLAB_MAX behind 32-bit handles. Pure.
 *
 * Chunks of 64 KiB hold records of one size (a multiple of 8), so a record costs its bytes and
 * nothing else, and links between records are half as long as pointers. Records never move. Empty
 * chunks are given back. Source: J. Bonwick, The Slab Allocator, 1994. One owner.
 */
#ifndef MC_META_SLAB_H
#define MC_META_SLAB_H

#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

#define MC_SLAB_CHUNK (64u << 10)
#define MC_SLAB_UNITS (MC_SLAB_CHUNK / 8)
#define MC_SLAB_MAX 8192u
#define MC_SLAB_FINE 512u /* up to here classes are 8 bytes apart, then MC_SLAB_COARSE */
#define MC_SLAB_COARSE 64u
#define MC_SLAB_CLASSES                                                                            \
	(MC_SLAB_FINE / 8 + (MC_SLAB_MAX - MC_SLAB_FINE) / MC_SLAB_COARSE + 1) /* class 0: none */

/** Zeroed: empty. */
struct mc_slab {
	uint8_t **chunk; /* by handle / MC_SLAB_UNITS; NULL: free */
	size_t nchunks, cap;
	uint32_t free_chunk;		   /* a NULL in `chunk` may be at or behind this */
	uint32_t partial[MC_SLAB_CLASSES]; /* chunk + 1 with room, first of a list */
	size_t live_chunks;
};

/** All records are gone. */
void mc_slab_fini(struct mc_slab *s);
/** Zeroed. @param len  1 … MC_SLAB_MAX. @return handle; 0: no memory */
uint32_t mc_slab_alloc(struct mc_slab *s, size_t len);
/** 0 is allowed. */
void mc_slab_free(struct mc_slab *s, uint32_t handle);
/** Bytes of memory. */
size_t mc_slab_bytes(const struct mc_slab *s);

/** Record of a handle that is not 0. Aligned to 8. */
static inline void *mc_slab_at(const struct mc_slab *s, uint32_t handle)
{
	return s->chunk[handle / MC_SLAB_UNITS] + (size_t)(handle % MC_SLAB_UNITS) * 8;
}

#endif
