/*
 * rows_test.c: e4m3 against a search for the nearest of its values, scales against their formula,
 * sums against one element at a time.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <math.h>
#include <string.h>

#include "base/bf16.h"
#include "base/mem.h"
#include "base/rand.h"
#include "ep/rows.h"

static double value_of(unsigned code)
{
	unsigned exponent = code >> 3 & 15, mantissa = code & 7;

	return exponent ? ldexp(8 + mantissa, (int)exponent - 10) : ldexp(mantissa, -9);
}

/* The nearest of all; of two that are as near, the even one. */
static unsigned nearest(double magnitude)
{
	unsigned best = 0;

	for (unsigned code = 1; code <= 0x7e; code++) {
		double a = fabs(value_of(code) - magnitude), b = fabs(value_of(best) - magnitude);

		if (a < b || (a == b && code % 2 == 0))
			best = code;
	}
	return best;
}

static void check_group(const uint16_t *row, uint32_t n, bool is_pow2, const uint8_t *out,
			float scale)
{
	float amax = 1e-4f, by, want;

	for (uint32_t i = 0; i < n; i++)
		amax = fmaxf(amax, fabsf(mc_bf16_load(row[i])));
	want = amax * (1.0f / 448.0f);
	by = 448.0f / amax;
	if (is_pow2) {
		want = (float)exp2(ceil(log2((double)want)));
		by = 1 / want;
	}
	assert_true(memcmp(&want, &scale, sizeof(want)) == 0);
	for (uint32_t i = 0; i < n; i++) {
		float x = mc_bf16_load(row[i]) * by;

		assert_int_equal(out[i], nearest(fabs((double)x)) | (signbit(x) ? 0x80 : 0));
	}
}

static void rows_become_the_nearest_e4m3(void **state)
{
	enum { HIDDEN = 128 * 3 + 16 };
	uint16_t row[HIDDEN];
	uint8_t out[HIDDEN];
	float scales[4];
	struct mc_rand rng;

	(void)state;
	mc_rand_seed(&rng, 3);
	for (unsigned round = 0; round < 300; round++) {
		float size = ldexpf(1, (int)mc_rand_below(&rng, 40) - 30);

		for (unsigned i = 0; i < HIDDEN; i++)
			row[i] = mc_bf16_store(((float)mc_rand_below(&rng, 2001) - 1000) * size *
					       (round % 3 ? 1 : 0.001f));
		mc_ep_quantize(row, HIDDEN, round & 1, out, scales);
		for (unsigned g = 0; g < 4; g++)
			check_group(row + 128 * g, g < 3 ? 128 : 16, round & 1, out + 128 * g,
				    scales[g]);
	}
}

static void zeroes_infinities_and_nan_stay_what_they_are(void **state)
{
	uint16_t row[16] = {0, 0x8000, 0x3f80};
	uint8_t out[16];
	float scale;

	(void)state;
	mc_ep_quantize(row, 16, false, out, &scale);
	assert_true(out[0] == 0 && out[1] == 0x80 && out[2] == 0x7e);
	row[3] = 0x7fc0;
	mc_ep_quantize(row, 16, false, out, &scale);
	assert_true(isnan(scale) && (out[3] & 0x7f) == 0x7f);
	row[3] = 0xff80; /* -inf × 0 */
	mc_ep_quantize(row, 16, true, out, &scale);
	assert_true((out[3] & 0x7f) == 0x7f && out[0] == 0);
}

static void sums_are_taken_in_order_and_rounded_once(void **state)
{
	enum { HIDDEN = 512 + 48, ROWS = 9 };
	static uint16_t row[ROWS][HIDDEN], out[HIDDEN];
	const uint16_t *rows[ROWS];
	float weights[ROWS];
	struct mc_rand rng;

	(void)state;
	mc_rand_seed(&rng, 4);
	for (unsigned n = 0; n <= ROWS; n++) {
		for (unsigned k = 0; k < n; k++) {
			rows[k] = row[k];
			weights[k] = (float)mc_rand_below(&rng, 1000) / 999.0f;
			for (unsigned i = 0; i < HIDDEN; i++)
				row[k][i] =
				    mc_bf16_store((float)mc_rand_below(&rng, 4000) / 99.0f - 20);
		}
		mc_ep_add_up(rows, weights, n, HIDDEN, out);
		for (unsigned i = 0; i < HIDDEN; i++) {
			float sum = 0;

			for (unsigned k = 0; k < n; k++)
				sum += weights[k] * mc_bf16_load(row[k][i]);
			assert_int_equal(out[i], mc_bf16_store(sum));
		}
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(rows_become_the_nearest_e4m3),
	    cmocka_unit_test(zeroes_infinities_and_nan_stay_what_they_are),
	    cmocka_unit_test(sums_are_taken_in_order_and_rounded_once),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
