/*
 * kernel.c: element by element, slot by slot. The order is fixed, so whoever computes a result gets
 * the same bits. Pure.
 *
 * Two sources are added in one pass. Of more, blocks of BLOCK elements stay in the first-level
 * cache while one source after the other is added. f16 and bf16 are widened to f32 there and
 * rounded once (to nearest, ties to even) at the end.
 */
#include <math.h>
#include <string.h>

#include "base/bf16.h"
#include "base/widest.h"
#include "coll/priv.h"

#define BLOCK 512u

/* Half precision by integer arithmetic (IEEE 754-2019, binary16), as nobody promises F16C. */
static inline float f16_load(uint16_t h)
{
	uint32_t sign = (uint32_t)(h & 0x8000) << 16, rest = h & 0x7fff;
	float magnitude = mc_f32_of_bits(rest << 13) * 0x1p112f; /* also right for subnormals */

	if (rest >= 0x7c00)
		return mc_f32_of_bits(sign | 0x7f800000 | rest << 13);
	return mc_f32_of_bits(sign | mc_f32_bits(magnitude));
}

static inline uint16_t f16_store(float f)
{
	uint32_t bits = mc_f32_bits(f), sign = bits >> 16 & 0x8000, rest = bits & 0x7fffffff;
	uint32_t normal, tiny;

	if (rest > 0x7f800000)
		return (uint16_t)(sign | 0x7e00 | (rest >> 13 & 0x3ff));
	if (rest >= 0x477ff000) /* 65520 rounds to infinity */
		return (uint16_t)(sign | 0x7c00);
	normal = (rest + 0xfff + (rest >> 13 & 1) - 0x38000000) >> 13;
	/* Subnormal: the addition rounds at the right place. */
	tiny = mc_f32_bits(mc_f32_of_bits(rest) + 0.5f) - 0x3f000000;
	return (uint16_t)(sign | (rest < 0x38800000 ? tiny : normal));
}

#define SAME(x) (x)
#define OP_SUM(a, b) ((a) + (b))
#define OP_PROD(a, b) ((a) * (b))
#define OP_MIN(a, b) ((a) < (b) ? (a) : (b))
#define OP_MAX(a, b) ((a) > (b) ? (a) : (b))
/* A NaN is not equal to itself, and wins on either side. */
#define OP_FMIN(a, b) ((a) < (b) || (a) != (a) ? (a) : (b))
#define OP_FMAX(a, b) ((a) > (b) || (a) != (a) ? (a) : (b))
#define OP_BAND(a, b) ((a) & (b))
#define OP_BOR(a, b) ((a) | (b))
#define OP_BXOR(a, b) ((a) ^ (b))
#define OP_AND(a, b) ((a) && (b))
#define OP_OR(a, b) ((a) || (b))
#define OP_NE(a, b) (!(a) != !(b))

/* Of elements [0, n), n <= BLOCK. `mem`: type in memory; `acc`: type that is computed with. */
#define KERNEL(name, mem, acc, load, store, op)                                                    \
	static MC_WIDEST void name(void *out, const uint8_t *const *src, unsigned nsrc,            \
				   uint64_t at, unsigned n, const double *factors)                 \
	{                                                                                          \
		const mem *first = (const mem *)src[0] + at, *second;                              \
		mem *to = (mem *)out + at;                                                         \
		acc sum[BLOCK];                                                                    \
                                                                                                   \
		(void)factors;                                                                     \
		if (nsrc == 2) {                                                                   \
			second = (const mem *)src[1] + at;                                         \
			MC_NO_ALIAS for (unsigned i = 0; i < n; i++) to[i] =                       \
			    (mem)store((acc)op((acc)load(first[i]), (acc)load(second[i])));        \
			return;                                                                    \
		}                                                                                  \
		for (unsigned i = 0; i < n; i++)                                                   \
			sum[i] = (acc)load(first[i]);                                              \
		for (unsigned k = 1; k < nsrc; k++) {                                              \
			const mem *next = (const mem *)src[k] + at;                                \
                                                                                                   \
			for (unsigned i = 0; i < n; i++)                                           \
				sum[i] = (acc)op(sum[i], (acc)load(next[i]));                      \
		}                                                                                  \
		for (unsigned i = 0; i < n; i++)                                                   \
			to[i] = (mem)store(sum[i]);                                                \
	}

/* The same with each source times its factor (AVG: the sum times 1/n, after the last). */
#define SCALED(name, mem, acc, real, load, store)                                                  \
	static MC_WIDEST void name##_scaled(void *out, const uint8_t *const *src, unsigned nsrc,   \
					    uint64_t at, unsigned n, const double *factors)        \
	{                                                                                          \
		mem *to = (mem *)out + at;                                                         \
		acc sum[BLOCK];                                                                    \
                                                                                                   \
		for (unsigned k = 0; k < nsrc; k++) {                                              \
			const mem *next = (const mem *)src[k] + at;                                \
			real f = (real)factors[k];                                                 \
                                                                                                   \
			for (unsigned i = 0; i < n; i++)                                           \
				sum[i] = (k ? sum[i] : 0) + (acc)load(next[i]) * f;                \
		}                                                                                  \
		for (unsigned i = 0; i < n; i++)                                                   \
			to[i] = (mem)store(sum[i]);                                                \
	}                                                                                          \
	static MC_WIDEST void name##_avg(void *out, const uint8_t *const *src, unsigned nsrc,      \
					 uint64_t at, unsigned n, const double *factors)           \
	{                                                                                          \
		mem *to = (mem *)out + at;                                                         \
		acc sum[BLOCK];                                                                    \
		real by = (real)nsrc;                                                              \
                                                                                                   \
		(void)factors;                                                                     \
		if (nsrc == 2) {                                                                   \
			const mem *a = (const mem *)src[0] + at, *b = (const mem *)src[1] + at;    \
                                                                                                   \
			MC_NO_ALIAS for (unsigned i = 0; i < n; i++) to[i] =                       \
			    (mem)store((0 + (acc)load(a[i]) + (acc)load(b[i])) / by);              \
			return;                                                                    \
		}                                                                                  \
		for (unsigned k = 0; k < nsrc; k++) {                                              \
			const mem *next = (const mem *)src[k] + at;                                \
                                                                                                   \
			for (unsigned i = 0; i < n; i++)                                           \
				sum[i] = (k ? sum[i] : 0) + (acc)load(next[i]);                    \
		}                                                                                  \
		for (unsigned i = 0; i < n; i++)                                                   \
			to[i] = (mem)store(sum[i] / by);                                           \
	}

/* Integers wrap: they are computed without sign, in which that is defined. */
#define INTEGER(name, mem, wrap)                                                                   \
	KERNEL(name##_sum, mem, wrap, SAME, SAME, OP_SUM)                                          \
	KERNEL(name##_prod, mem, wrap, SAME, SAME, OP_PROD)                                        \
	KERNEL(name##_min, mem, mem, SAME, SAME, OP_MIN)                                           \
	KERNEL(name##_max, mem, mem, SAME, SAME, OP_MAX)                                           \
	KERNEL(name##_band, mem, mem, SAME, SAME, OP_BAND)                                         \
	KERNEL(name##_bor, mem, mem, SAME, SAME, OP_BOR)                                           \
	KERNEL(name##_bxor, mem, mem, SAME, SAME, OP_BXOR)

#define FLOATING(name, mem, acc, load, store)                                                      \
	KERNEL(name##_sum, mem, acc, load, store, OP_SUM)                                          \
	KERNEL(name##_prod, mem, acc, load, store, OP_PROD)                                        \
	KERNEL(name##_min, mem, acc, load, store, OP_FMIN)                                         \
	KERNEL(name##_max, mem, acc, load, store, OP_FMAX)                                         \
	SCALED(name, mem, acc, acc, load, store)

#define COMPLEX(name, real)                                                                        \
	KERNEL(name##_sum, _Complex real, _Complex real, SAME, SAME, OP_SUM)                       \
	KERNEL(name##_prod, _Complex real, _Complex real, SAME, SAME, OP_PROD)                     \
	SCALED(name, _Complex real, _Complex real, real, SAME, SAME)

INTEGER(u8, uint8_t, uint32_t)
INTEGER(i8, int8_t, uint32_t)
INTEGER(u16, uint16_t, uint32_t)
INTEGER(i16, int16_t, uint32_t)
INTEGER(u32, uint32_t, uint32_t)
INTEGER(i32, int32_t, uint32_t)
INTEGER(u64, uint64_t, uint64_t)
INTEGER(i64, int64_t, uint64_t)
KERNEL(bool_or, uint8_t, uint8_t, SAME, !!, OP_OR)
KERNEL(bool_and, uint8_t, uint8_t, SAME, !!, OP_AND)
KERNEL(bool_ne, uint8_t, uint8_t, SAME, !!, OP_NE)
/* The bytes are of that type, and each call has a source and an element: the tools take both counts
 * for 0. NOLINTBEGIN(clang-analyzer-core.*) */
FLOATING(f16, uint16_t, float, f16_load, f16_store)
FLOATING(bf16, uint16_t, float, mc_bf16_load, mc_bf16_store)
/* cppcheck-suppress [invalidPointerCast, uninitvar] */
FLOATING(f32, float, float, SAME, SAME)
/* cppcheck-suppress [invalidPointerCast, uninitvar] */
FLOATING(f64, double, double, SAME, SAME)
/* cppcheck-suppress [invalidPointerCast, uninitvar] */
COMPLEX(c64, float)
/* cppcheck-suppress [invalidPointerCast, uninitvar] */
COMPLEX(c128, double)
/* NOLINTEND(clang-analyzer-core.*) */

typedef void (*kernel_fn)(void *out, const uint8_t *const *src, unsigned nsrc, uint64_t at,
			  unsigned n, const double *factors);

#define INTEGER_ROW(name)                                                                          \
	{                                                                                          \
		[MC_COLL_SUM] = name##_sum, [MC_COLL_PROD] = name##_prod,                          \
		[MC_COLL_MIN] = name##_min, [MC_COLL_MAX] = name##_max,                            \
		[MC_COLL_BAND] = name##_band, [MC_COLL_BOR] = name##_bor,                          \
		[MC_COLL_BXOR] = name##_bxor,                                                      \
	}
#define FLOATING_ROW(name)                                                                         \
	{                                                                                          \
		[MC_COLL_SUM] = name##_sum, [MC_COLL_PROD] = name##_prod,                          \
		[MC_COLL_MIN] = name##_min, [MC_COLL_MAX] = name##_max,                            \
		[MC_COLL_AVG] = name##_avg, [MC_COLL_PREMUL_SUM] = name##_scaled,                  \
	}
#define COMPLEX_ROW(name)                                                                          \
	{                                                                                          \
		[MC_COLL_SUM] = name##_sum, [MC_COLL_PROD] = name##_prod,                          \
		[MC_COLL_AVG] = name##_avg, [MC_COLL_PREMUL_SUM] = name##_scaled,                  \
	}

static const kernel_fn kernels[MC_COLL_TYPE_COUNT][MC_COLL_REDUCE_COUNT] = {
    [MC_COLL_U8] = INTEGER_ROW(u8),
    [MC_COLL_I8] = INTEGER_ROW(i8),
    [MC_COLL_U16] = INTEGER_ROW(u16),
    [MC_COLL_I16] = INTEGER_ROW(i16),
    [MC_COLL_U32] = INTEGER_ROW(u32),
    [MC_COLL_I32] = INTEGER_ROW(i32),
    [MC_COLL_U64] = INTEGER_ROW(u64),
    [MC_COLL_I64] = INTEGER_ROW(i64),
    [MC_COLL_BOOL] = {[MC_COLL_SUM] = bool_or,
		      [MC_COLL_PROD] = bool_and,
		      [MC_COLL_MIN] = bool_and,
		      [MC_COLL_MAX] = bool_or,
		      [MC_COLL_BAND] = bool_and,
		      [MC_COLL_BOR] = bool_or,
		      [MC_COLL_BXOR] = bool_ne},
    [MC_COLL_F16] = FLOATING_ROW(f16),
    [MC_COLL_BF16] = FLOATING_ROW(bf16),
    [MC_COLL_F32] = FLOATING_ROW(f32),
    [MC_COLL_F64] = FLOATING_ROW(f64),
    [MC_COLL_C64] = COMPLEX_ROW(c64),
    [MC_COLL_C128] = COMPLEX_ROW(c128),
};

bool mc_coll_kernel_has(enum mc_coll_type type, enum mc_coll_reduce reduce)
{
	return type < MC_COLL_TYPE_COUNT && reduce < MC_COLL_REDUCE_COUNT && kernels[type][reduce];
}

void mc_coll_kernel(enum mc_coll_type type, enum mc_coll_reduce reduce, void *out,
		    const uint8_t *const *src, const double *factors, unsigned nsrc, uint64_t count)
{
	kernel_fn run = kernels[type][reduce];

	for (uint64_t at = 0; at < count; at += BLOCK)
		run(out, src, nsrc, at, (unsigned)mc_min((uint64_t)BLOCK, count - at), factors);
}

static const struct {
	uint32_t bytes;
	const char *text;
} types[] = {
#define TYPE_ROW(name, bytes, text) {bytes, text},
    MC_COLL_TYPE_TABLE(TYPE_ROW)
#undef TYPE_ROW
};

uint32_t mc_coll_type_bytes(enum mc_coll_type type)
{
	return types[type].bytes;
}

const char *mc_coll_type_text(enum mc_coll_type type)
{
	return types[type].text;
}
