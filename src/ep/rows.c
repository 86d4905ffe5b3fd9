/*
 * rows.c: bf16 to e4m3 and weighted sums, in loops that compilers turn into vectors. Pure.
 */
#include "ep/rows.h"

#include "base/mem.h"
#include "base/widest.h"
#include "ep/e4m3.h"

#define BLOCK 512u /* elements of a sum that stay in the first-level cache */
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
		out[i] = mc_e4m3_of(mc_bf16_load(row[i]) * by);
}

void mc_ep_quantize(const uint16_t *row, uint32_t hidden, bool is_pow2, uint8_t *out, float *scales)
{
	for (uint32_t at = 0, g = 0; at < hidden; at += MC_EP_GROUP, g++) {
		uint32_t n = mc_min(MC_EP_GROUP, hidden - at);
		float by;

		scales[g] = mc_e4m3_scale(amax_of(row + at, n), is_pow2, &by);
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
