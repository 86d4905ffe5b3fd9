/*
 * oracle.c: see oracle.h.
 */
#include "oracle.h"

#include <math.h>
#include <string.h>

#include "base/rand.h"

double oracle_value(uint64_t seed, uint64_t op, unsigned rank, unsigned part, uint64_t i)
{
	uint64_t state =
	    seed ^ op * 0x9e3779b97f4a7c15ull ^ (uint64_t)rank << 40 ^ (uint64_t)part << 32 ^ i;

	return (double)(mc_splitmix64(&state) % 5);
}

double oracle_factor(unsigned rank)
{
	return rank % 3 + 0.5;
}

/* Of values that are 0 or normal there, and not negative. */
static uint16_t half_of(double v)
{
	int e = v > 0 ? ilogb(v) : 0;

	return v > 0 ? (uint16_t)((e + 15) * 1024 + lrint((ldexp(v, -e) - 1) * 1024)) : 0;
}

static double half_to(uint16_t bits)
{
	return bits ? ldexp(1 + (bits & 1023) / 1024.0, (bits >> 10) - 15) : 0;
}

static uint16_t bf16_of(double v)
{
	float f = (float)v;
	uint32_t bits;

	memcpy(&bits, &f, sizeof(bits));
	return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static double bf16_to(uint16_t h)
{
	uint32_t bits = (uint32_t)h << 16;
	float f;

	memcpy(&f, &bits, sizeof(f));
	return f;
}

void oracle_store(enum mc_coll_type type, void *p, uint64_t i, double v)
{
	switch (type) {
	case MC_COLL_BYTE:
	case MC_COLL_U8:
	case MC_COLL_I8:
		((uint8_t *)p)[i] = (uint8_t)(uint64_t)v;
		break;
	case MC_COLL_BOOL:
		((uint8_t *)p)[i] = v > 1;
		break;
	case MC_COLL_U16:
	case MC_COLL_I16:
		((uint16_t *)p)[i] = (uint16_t)(uint64_t)v;
		break;
	case MC_COLL_U32:
	case MC_COLL_I32:
		((uint32_t *)p)[i] = (uint32_t)(uint64_t)v;
		break;
	case MC_COLL_U64:
	case MC_COLL_I64:
		((uint64_t *)p)[i] = (uint64_t)v;
		break;
	case MC_COLL_F16:
		((uint16_t *)p)[i] = half_of(v);
		break;
	case MC_COLL_BF16:
		((uint16_t *)p)[i] = bf16_of(v);
		break;
	case MC_COLL_F32:
		((float *)p)[i] = (float)v;
		break;
	case MC_COLL_F64:
		((double *)p)[i] = v;
		break;
	case MC_COLL_C64:
		((float *)p)[2 * i] = (float)v;
		((float *)p)[2 * i + 1] = 0;
		break;
	default:
		((double *)p)[2 * i] = v;
		((double *)p)[2 * i + 1] = 0;
	}
}

double oracle_load(enum mc_coll_type type, const void *p, uint64_t i)
{
	switch (type) {
	case MC_COLL_BYTE:
	case MC_COLL_U8:
	case MC_COLL_I8:
	case MC_COLL_BOOL:
		return ((const uint8_t *)p)[i];
	case MC_COLL_U16:
	case MC_COLL_I16:
		return ((const uint16_t *)p)[i];
	case MC_COLL_U32:
	case MC_COLL_I32:
		return ((const uint32_t *)p)[i];
	case MC_COLL_U64:
	case MC_COLL_I64:
		return (double)((const uint64_t *)p)[i];
	case MC_COLL_F16:
		return half_to(((const uint16_t *)p)[i]);
	case MC_COLL_BF16:
		return bf16_to(((const uint16_t *)p)[i]);
	case MC_COLL_F32:
		return ((const float *)p)[i];
	case MC_COLL_F64:
		return ((const double *)p)[i];
	case MC_COLL_C64:
		return ((const float *)p)[2 * i];
	default:
		return ((const double *)p)[2 * i];
	}
}

static double combine(enum mc_coll_type type, enum mc_coll_reduce reduce, double a, double b)
{
	bool is_bool = type == MC_COLL_BOOL;

	switch (reduce) {
	case MC_COLL_SUM:
		return is_bool ? a > 0 || b > 0 : a + b;
	case MC_COLL_PROD:
		return is_bool ? a > 0 && b > 0 : a * b;
	case MC_COLL_MIN:
		return a < b ? a : b;
	case MC_COLL_MAX:
		return a > b ? a : b;
	case MC_COLL_BAND:
		return (double)((uint64_t)a & (uint64_t)b);
	case MC_COLL_BOR:
		return (double)((uint64_t)a | (uint64_t)b);
	case MC_COLL_BXOR:
		return (double)((uint64_t)a ^ (uint64_t)b);
	default:
		return a + b;
	}
}

/* As it is in memory. */
static double stored(enum mc_coll_type type, double v)
{
	uint8_t p[16];

	if (type == MC_COLL_BOOL)
		return v;
	oracle_store(type, p, 0, v);
	return oracle_load(type, p, 0);
}

double oracle_reduce(enum mc_coll_type type, enum mc_coll_reduce reduce, uint64_t seed, uint64_t op,
		     uint64_t mask, unsigned part, uint64_t i)
{
	double sum = 0;
	unsigned n = 0;

	for (unsigned r = 0; r < MC_COLL_RANKS_MAX; r++) {
		double v;

		if (!(mask & 1ull << r))
			continue;
		v = oracle_value(seed, op, r, part, i);
		if (type == MC_COLL_BOOL)
			v = v > 1;
		if (reduce == MC_COLL_PREMUL_SUM)
			v *= oracle_factor(r);
		sum = n++ == 0 ? v : combine(type, reduce, sum, v);
	}
	return stored(type, reduce == MC_COLL_AVG ? sum / n : sum);
}
