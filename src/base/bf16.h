/*
 * bf16.h: bfloat16, the upper half of an f32.
 */
#ifndef MC_BASE_BF16_H
#define MC_BASE_BF16_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "base/both.h"

MC_BOTH float mc_f32_of_bits(uint32_t bits)
{
	float f;

	memcpy(&f, &bits, sizeof(f));
	return f;
}

MC_BOTH uint32_t mc_f32_bits(float f)
{
	uint32_t bits;

	memcpy(&bits, &f, sizeof(bits));
	return bits;
}

MC_BOTH float mc_bf16_load(uint16_t h)
{
	return mc_f32_of_bits((uint32_t)h << 16);
}

/** To nearest, ties to even; a NaN stays one. */
MC_BOTH uint16_t mc_bf16_store(float f)
{
	uint32_t bits = mc_f32_bits(f);
	uint32_t round = 0x7fff + (bits >> 16 & 1);
	bool is_nan = (bits & 0x7fffffff) > 0x7f800000;

	return (uint16_t)(is_nan ? (bits >> 16 | 0x40) : (bits + round) >> 16);
}

#endif
