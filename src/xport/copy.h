/*
 * copy.h: memory copies that choose between caching and streaming. Small copies go through the
 * cache, where the reader will find them; large ones are stored past it, which saves reading the
 * target's lines first.
 */
#ifndef MC_XPORT_COPY_H
#define MC_XPORT_COPY_H

#include <stddef.h>
#include <stdint.h>

enum mc_copy_hint {
	MC_COPY_CACHED, /* memcpy */
	MC_COPY_STREAM, /* non-temporal stores where the processor has them and the piece is worth
			   it */
	MC_COPY_HINT_COUNT,
};

/* From this many bytes in one go the data would only wash through the cache. */
#define MC_COPY_STREAM_MIN (256u << 10)

/** The hint for one piece of a transfer of total_bytes. */
static inline enum mc_copy_hint mc_copy_hint_of(uint64_t total_bytes)
{
	return total_bytes >= MC_COPY_STREAM_MIN ? MC_COPY_STREAM : MC_COPY_CACHED;
}

/**
 * Copy len bytes, any alignment; the ranges do not overlap. On return all stores are ordered before
 * later ones of this thread, streamed ones too, so that a release store may announce them. Any
 * thread.
 */
void mc_copy(void *dst, const void *src, size_t len, enum mc_copy_hint hint);

/** Order all stores before it, streamed ones too, before all stores after it, those of a system
 * call included. */
void mc_copy_fence(void);

#endif
