/*
 * crc.h: CRC32C (Castagnoli; RFC 3720, B.4), alone and in one pass with a copy.
 *
 * A CRC goes on where another ended: mc_crc32c(mc_crc32c(0, a, n), b, m) is that of a and b in a
 * row. Whatever the first argument is, two different strings of one length keep different CRCs
 * different as CRC does: it may be a seed. All functions: any thread, any alignment.
 */
#ifndef MC_BASE_CRC_H
#define MC_BASE_CRC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef MC_WITHOUT_CHECKSUMS
#define MC_CRC_IS_ON false /* each CRC is 0, and copies are only that */
#else
#define MC_CRC_IS_ON true
#endif

/** CRC of n bytes after those that gave `crc`; 0 to begin. */
uint32_t mc_crc32c(uint32_t crc, const void *data, size_t n);
/**
 * Copy n bytes and give the CRC of what was copied: the source is read once, so that also what
 * somebody changes meanwhile is what the CRC says. The ranges do not overlap. From
 * MC_CRC_STREAM_MIN bytes up it is mc_crc32c_stream().
 */
uint32_t mc_crc32c_copy(uint32_t crc, void *dst, const void *src, size_t n);
/** The same, past the cache where the processor can: for a piece of something large. All stores are
 * ordered before later ones of this thread. */
uint32_t mc_crc32c_stream(uint32_t crc, void *dst, const void *src, size_t n);

#define MC_CRC_STREAM_MIN (256u << 10)

/**
 * What `crc` becomes over n bytes, apart from what these bytes add:
 * mc_crc32c(a, data, n) == mc_crc32c(0, data, n) ^ mc_crc32c_skip(a, n). So a seed may be known
 * later than the bytes.
 */
uint32_t mc_crc32c_skip(uint32_t crc, uint64_t n);

/* ---- for tests: each way of the above ---- */

enum mc_crc_way {	       /* best first */
		  MC_CRC_WIDE, /* 64 bytes at once */
		  MC_CRC_HALF, /* 32 bytes */
		  MC_CRC_FAST,
		  MC_CRC_TABLE,
};
enum mc_crc_what {
	MC_CRC_READ,
	MC_CRC_COPY,
	MC_CRC_STREAM,
};
/** This way, or the next one that this processor has and that is any good for so few bytes. */
uint32_t mc_crc32c_by(enum mc_crc_way way, enum mc_crc_what what, uint32_t crc, void *dst,
		      const void *src, size_t n);
/** The way without special instructions. */
uint32_t mc_crc32c_table(uint32_t crc, const void *data, size_t n);

#endif
