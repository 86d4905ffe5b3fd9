/*
 * copy.c: non-temporal copy kernels, chosen at run time.
 *
 * Measured (Zen 4, cold 256 MiB pools, one thread): memcpy and rep movsb 8-10 GB/s; 64-byte and
 * 16-byte streaming stores alike 16-18 GB/s, from 4 KiB pieces up (13). With everything in the
 * cache memcpy is 1.5 times faster than streaming, hence the hint. Tried without gain and left out:
 * a 32-byte kernel, prefetching the source, two pages interleaved (11), two threads (22 for twice
 * the processor).
 */
#include "xport/copy.h"

#include <string.h>

/* Below this a piece is not worth aligning, whatever the transfer's size. */
#define PIECE_MIN 1024

#if defined(__x86_64__)

#include <immintrin.h>

/* dst is 64-byte aligned, len a multiple of 256. */
__attribute__((target("avx512f"))) static void stream_avx512(uint8_t *dst, const uint8_t *src,
							     size_t len)
{
	__m512i a, b, c, d;

	for (; len > 0; len -= 256, dst += 256, src += 256) {
		a = _mm512_loadu_si512(src);
		b = _mm512_loadu_si512(src + 64);
		c = _mm512_loadu_si512(src + 128);
		d = _mm512_loadu_si512(src + 192);
		_mm512_stream_si512((void *)dst, a);
		_mm512_stream_si512((void *)(dst + 64), b);
		_mm512_stream_si512((void *)(dst + 128), c);
		_mm512_stream_si512((void *)(dst + 192), d);
	}
}

/* As above; every x86-64 has SSE2. */
static void stream_sse2(uint8_t *dst, const uint8_t *src, size_t len)
{
	const __m128i *in = (const void *)src;
	__m128i *out = (void *)dst;
	__m128i a, b, c, d;

	for (; len > 0; len -= 64, out += 4, in += 4) {
		a = _mm_loadu_si128(in);
		b = _mm_loadu_si128(in + 1);
		c = _mm_loadu_si128(in + 2);
		d = _mm_loadu_si128(in + 3);
		_mm_stream_si128(out, a);
		_mm_stream_si128(out + 1, b);
		_mm_stream_si128(out + 2, c);
		_mm_stream_si128(out + 3, d);
	}
}

static void copy_stream(uint8_t *dst, const uint8_t *src, size_t len)
{
	size_t head = -(uintptr_t)dst & 63;
	size_t body = (len - head) & ~(size_t)255;

	memcpy(dst, src, head);
	if (__builtin_cpu_supports("avx512f"))
		stream_avx512(dst + head, src + head, body);
	else
		stream_sse2(dst + head, src + head, body);
	memcpy(dst + head + body, src + head + body, len - head - body);
	_mm_sfence();
}

void mc_copy_fence(void)
{
	_mm_sfence();
}

#else

/* Elsewhere libc knows best. */
static void copy_stream(uint8_t *dst, const uint8_t *src, size_t len)
{
	memcpy(dst, src, len);
}

void mc_copy_fence(void)
{
	__sync_synchronize(); /* unlike C11's fence, known to thread sanitizers */
}

#endif

void mc_copy(void *dst, const void *src, size_t len, enum mc_copy_hint hint)
{
	if (hint == MC_COPY_STREAM && len >= PIECE_MIN)
		copy_stream(dst, src, len);
	else
		memcpy(dst, src, len);
}
