/*
 * mem.h: counted, fault-injectable allocation. Every heap allocation of the project goes through
 * here.
 *
 * Tests count allocations (none per transfer) and make the n-th one fail (mc_mem_fail_after).
 * Results end with mc_free().
 */
#ifndef MC_BASE_MEM_H
#define MC_BASE_MEM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/** Zeroed count × size bytes; NULL when out of memory or when the product overflows. Any thread. */
void *mc_calloc(size_t count, size_t size);
/** Like realloc(ptr, count × size) with overflow check; new bytes are not zeroed. */
void *mc_realloc_array(void *ptr, size_t count, size_t size);
/** Zeroed, aligned to `align` (power of two, >= sizeof(void *)). */
void *mc_aligned_alloc(size_t align, size_t len_bytes);
void mc_free(void *ptr);
char *mc_strdup(const char *text);
/** Allocating printf; NULL when out of memory. */
char *mc_asprintf(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/**
 * Grow *array (elements of elem_size) so that at least `want` fit; doubles, at most `max` elements.
 * @return 0; -MC_E_TOO_BIG when want > max; -MC_E_NOMEM (array untouched)
 */
int mc_array_grow(void **array, size_t *cap, size_t want, size_t max, size_t elem_size);

/** Calls of the allocating functions so far in this process. */
uint64_t mc_mem_calls(void);
/** Live allocations (calls minus frees). */
int64_t mc_mem_live(void);
/** Make the n-th allocating call from now (0 = the next) and all later ones fail until called with
 * -1. For tests. */
void mc_mem_fail_after(int64_t calls);

#define mc_container_of(ptr, type, member) ((type *)((char *)(ptr)-offsetof(type, member)))
#define MC_ARRAY_LEN(a) (sizeof(a) / sizeof((a)[0]))
#define MC_CACHELINE 64
#define mc_min(a, b)                                                                               \
	({                                                                                         \
		__typeof__(a) mc_a_ = (a);                                                         \
		__typeof__(b) mc_b_ = (b);                                                         \
		mc_a_ < mc_b_ ? mc_a_ : mc_b_;                                                     \
	})
#define mc_max(a, b)                                                                               \
	({                                                                                         \
		__typeof__(a) mc_a_ = (a);                                                         \
		__typeof__(b) mc_b_ = (b);                                                         \
		mc_a_ > mc_b_ ? mc_a_ : mc_b_;                                                     \
	})

#endif
