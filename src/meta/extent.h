/*
 * extent.h: which bytes of a pool are free. Pure.
 *
 * Best fit, lowest address first among equals: the free ranges are in a treap by length and place
 * (Seidel and Aragon, 1996), all ranges in a list by place, so that neighbours join again. O(log n)
 * each. Ranges that begin at multiples of 4096 are cut from the high end of what is free, others
 * from the low end: small ones stay beside small ones. All bookkeeping is beside the pool, 40 bytes
 * for each range.
 *
 * One owner.
 */
#ifndef MC_META_EXTENT_H
#define MC_META_EXTENT_H

#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

struct mc_extent;

#define MC_EXTENT_UNIT 64u	       /* places and lengths are multiples of it */
#define MC_EXTENT_LEN_MAX (1ull << 50) /* of a pool */
#define MC_EXTENT_ALIGN_MAX 4096u      /* largest of a range */
#define MC_EXTENTS_MAX (1u << 30)      /* allocated ranges at one time */

/**
 * @param len  of the pool, rounded down to MC_EXTENT_UNIT; 0 … MC_EXTENT_LEN_MAX
 * @param extents_max  most allocated ranges, 1 … MC_EXTENTS_MAX
 * @return 0; -MC_E_NOMEM; -MC_E_INVAL
 */
MC_MUST_CHECK int mc_extent_open(uint64_t len, uint32_t extents_max, struct mc_extent **ret);
/** NULL is allowed. */
void mc_extent_close(struct mc_extent *e);
/**
 * Take a range.
 * @param len    rounded up to MC_EXTENT_UNIT; not 0
 * @param align  power of two, MC_EXTENT_UNIT … MC_EXTENT_ALIGN_MAX
 * @param ret_id  names it for mc_extent_free(); never 0
 * @return 0; -MC_E_NOSPACE (also when what is free lies badly); -MC_E_LIMIT; -MC_E_NOMEM
 */
MC_MUST_CHECK int mc_extent_alloc(struct mc_extent *e, uint64_t len, uint32_t align,
				  uint64_t *ret_off, uint32_t *ret_id);
/** Give a range back; the id is that of one that is taken. */
void mc_extent_free(struct mc_extent *e, uint32_t id);

uint64_t mc_extent_capacity(const struct mc_extent *e);
uint64_t mc_extent_used(const struct mc_extent *e);
/** Length of the largest free range. */
uint64_t mc_extent_largest(const struct mc_extent *e);

#endif
