/*
 * rows.h: what is computed with rows: bf16 to e4m3 with a scale a group, and weighted sums.
 */
#ifndef MC_EP_ROWS_H
#define MC_EP_ROWS_H

#include <stdbool.h>
#include <stdint.h>

#include <mooncake/ep.h>

/** Groups of a row. */
static inline uint32_t mc_ep_groups(uint32_t hidden)
{
	return (hidden + MC_EP_GROUP - 1) / MC_EP_GROUP;
}

/**
 * One row to e4m3 (OCP 8-bit floating point, 2023; no infinities, 448 is the largest): elements
 * times 448 / amax, to nearest, ties to even; scale amax / 448, amax at least 1e-4. A NaN makes its
 * group NaN.
 * @param is_pow2  scales are rounded up to powers of two
 */
void mc_ep_quantize(const uint16_t *row, uint32_t hidden, bool is_pow2, uint8_t *out,
		    float *scales);

/** out = the sum of weights[i] × rows[i] in that order, in f32, rounded once to bf16; zeroes of
 * n = 0. n <= MC_EP_TOPK_MAX. */
void mc_ep_add_up(const uint16_t *const *rows, const float *weights, uint32_t n, uint32_t hidden,
		  uint16_t *out);

#endif
