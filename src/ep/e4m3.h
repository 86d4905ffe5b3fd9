/*
 * e4m3.h: 8-bit floating point (OCP, 2023; no infinities, 448 is the largest) and its scales, for
 * the loops of rows.c and for kernels of GPUs, which must give the same bits. Multiplications are
 * never joined with additions (-ffp-contract=off, -fmad=false). Pure.
 */
#ifndef MC_EP_E4M3_H
#define MC_EP_E4M3_H

#include "base/bf16.h"

#define MC_E4M3_MAX 448.0f
#define MC_E4M3_AMAX_MIN 0x38d1b717u /* 1e-4f */

/** To nearest, ties to even. |f| <= 448, or NaN. */
MC_BOTH uint8_t mc_e4m3_of(float f)
{
	uint32_t bits = mc_f32_bits(f), sign = bits >> 24 & 0x80, rest = bits & 0x7fffffff;
	/* Exponents from -6 on: round at bit 20, then shift the bias from 127 to 7. */
	uint32_t normal = ((rest + 0x7ffff + (rest >> 20 & 1)) >> 20) - (120u << 3);
	/* Below: the addition rounds at 2^-9. */
	uint32_t tiny = mc_f32_bits(mc_f32_of_bits(rest) + 16384.0f) - 0x46800000;
	/* Masks: compilers make a branch of the choice, and then no vectors. */
	uint32_t is_tiny = -(uint32_t)(rest < 0x3c800000), is_nan = -(uint32_t)(rest > 0x7f800000);
	uint32_t out = (tiny & is_tiny) | (normal & ~is_tiny);

	out = (out < 0x7eu ? out : 0x7eu) | (is_nan & 0x7f);
	return (uint8_t)(sign | out);
}

/**
 * Of a group whose largest element has these bits, sign aside.
 * @param ret_by  what elements are multiplied by
 * @return the scale
 */
MC_BOTH float mc_e4m3_scale(uint32_t amax_bits, bool is_pow2, float *ret_by)
{
	float amax = mc_f32_of_bits(amax_bits > MC_E4M3_AMAX_MIN ? amax_bits : MC_E4M3_AMAX_MIN);
	float scale = amax * (1.0f / MC_E4M3_MAX);
	uint32_t bits, exponent;

	if (!is_pow2) {
		*ret_by = MC_E4M3_MAX / amax;
		return scale;
	}
	bits = mc_f32_bits(scale);
	exponent = (bits >> 23) + ((bits & 0x7fffff) != 0);
	exponent = exponent < 254u ? exponent : 254u; /* infinities, NaN */
	*ret_by = mc_f32_of_bits((254 - exponent) << 23);
	return mc_f32_of_bits(exponent << 23);
}

#endif
