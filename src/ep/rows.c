/*
 * rows.c: bf16 to e4m3 and weighted sums, in loops that compilers turn into vectors. Pure.
 */
#include "ep/rows.h"

#include "base/bf16.h"
#include "base/mem.h"
#include "base/widest.h"

#define BLOCK 512u /* elements of a sum that stay in the first-level cache */
#define E4M3_MAX 448.0f
#define AMAX_MIN 0x38d1b717u /* 1e-4f */

/* |f| <= 448, or NaN. */
static inline uint8_t e4m3(float f)
{
	uint32_t bits = mc_f32_bits(f), sign = bits >> 24 & 0x80, rest = bits & 0x7fffffff;
	/* Exponents from -6 on: round at bit 20, then shift the bias from 127 to 7. */
	uint32_t normal = ((rest + 0x7ffff + (rest >> 20 & 1)) >> 20) - (120u << 3);
	/* Below: the addition rounds at 2^-9. */
	uint32_t tiny = mc_f32_bits(mc_f32_of_bits(rest) + 16384.0f) - 0x46800000;
	/* Masks: compilers make a branch of the choice, and then no vectors. */
	uint32_t is_tiny = -(uint32_t)(rest < 0x3c800000), is_nan = -(uint32_t)(rest > 0x7f800000);
	uint32_t out = (tiny & is_tiny) | (normal & ~is_tiny);

	out = mc_min(out, 0x7eu) | (is_nan & 0x7f);
	return (uint8_t)(sign | out);
}

static MC_WIDEST uint32_t amax_of(const uint16_t *row, uint32_t n)
{
	uint16_t most = 0;

	/* Without the sign, bits order as the numbers do; a NaN is above all. */
	for (uint32_t i = 0; i < n; i++) {
		uint16_t a = row[i] & 0x7fff;

		most = a > most ? a : most;
	}
	return (uint32_t)most << 16;
}

static MC_WIDEST void scale_down(const uint16_t *row, uint32_t n, float by, uint8_t *out)
{
	for (uint32_t i = 0; i < n; i++)
		out[i] = e4m3(mc_bf16_load(row[i]) * by);
}

void mc_ep_quantize(const uint16_t *row, uint32_t hidden, bool is_pow2, uint8_t *out, float *scales)
{
	for (uint32_t at = 0, g = 0; at < hidden; at += MC_EP_GROUP, g++) {
		uint32_t n = mc_min(MC_EP_GROUP, hidden - at);
		float amax = mc_f32_of_bits(mc_max(amax_of(row + at, n), AMAX_MIN));
		float by = E4M3_MAX / amax;

		scales[g] = amax * (1.0f / E4M3_MAX);
		if (is_pow2) {
			uint32_t bits = mc_f32_bits(scales[g]);
			uint32_t exponent = (bits >> 23) + ((bits & 0x7fffff) != 0);

			exponent = mc_min(exponent, 254u); /* infinities, NaN */
			scales[g] = mc_f32_of_bits(exponent << 23);
			by = mc_f32_of_bits((254 - exponent) << 23);
		}
		scale_down(row + at, n, by, out + at);
	}
}

static MC_WIDEST void add_row(float *sum, const uint16_t *row, float weight, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++)
		sum[i] += weight * mc_bf16_load(row[i]);
}

static MC_WIDEST void round_sum(const float *sum, uint16_t *out, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++)
		out[i] = mc_bf16_store(sum[i]);
}

void mc_ep_add_up(const uint16_t *const *rows, const float *weights, uint32_t n, uint32_t hidden,
		  uint16_t *out)
{
	for (uint32_t at = 0; at < hidden; at += BLOCK) {
		uint32_t len = mc_min(BLOCK, hidden - at);
		float sum[BLOCK] = {0};

		for (uint32_t i = 0; i < n; i++)
			add_row(sum, rows[i] + at, weights[i], len);
		round_sum(sum, out + at, len);
	}
}
