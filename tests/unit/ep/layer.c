/*
 * layer.c: a layer of experts across processes, against one process that computes the same.
 */
#include "layer.h"

#include <string.h>

#include "base/bf16.h"
#include "base/mem.h"
#include "base/rand.h"
#include "ep/rows.h"

struct tokens tokens_of(const struct mc_ep_shape *shape, uint32_t rank, uint64_t step)
{
	uint32_t tokens = rank == 1 && step % 2 == 1 ? 0 : shape->tokens_max - rank;
	uint64_t n = (uint64_t)tokens * shape->topk;
	struct tokens t = {mc_calloc((size_t)tokens * shape->hidden + 1, 2), mc_calloc(n + 1, 8),
			   mc_calloc(n + 1, 4), mc_calloc(tokens + 1, 4)};
	struct mc_rand rng;

	mc_rand_seed(&rng, step * 1000 + rank);
	for (uint64_t i = 0; i < (uint64_t)tokens * shape->hidden; i++)
		t.rows[i] = mc_bf16_store((float)mc_rand_below(&rng, 2000) / 500.0f - 2.0f);
	for (uint64_t i = 0; i < n; i++) {
		/* Different in a token: a walk from a random one. */
		t.topk[i] = i % shape->topk
				? (t.topk[i - i % shape->topk] + (int64_t)(i % shape->topk) * 3) %
				      shape->experts
				: (int64_t)mc_rand_below(&rng, shape->experts);
		t.weights[i] = (float)mc_rand_below(&rng, 1000) / 1000.0f;
	}
	for (uint64_t i = 0; i < n; i += 5)
		if (i % shape->topk)
			t.topk[i] = -1;
	for (uint32_t i = 0; i < tokens; i++)
		t.extra[i] = rank << 16 | i;
	return t;
}

void tokens_free(struct tokens *t)
{
	mc_free(t->rows);
	mc_free(t->topk);
	mc_free(t->weights);
	mc_free(t->extra);
}

static uint32_t tokens_count(const struct layer *l, uint32_t rank, uint64_t step)
{
	return rank == 1 && step % 2 == 1 ? 0 : l->shape.tokens_max - rank;
}

struct layer layer_of(struct mc_ep *ep, const struct mc_ep_shape *shape, uint32_t rank,
		      enum mc_ep_format format, bool is_packed)
{
	struct layer l = {.ep = ep, .shape = *shape, .format = format, .rank = rank};
	uint64_t n;

	l.le = shape->experts / shape->ranks;
	l.room = (uint64_t)shape->ranks * shape->tokens_max;
	l.groups = mc_ep_groups(shape->hidden);
	n = l.le * (l.room + shape->align);
	l.got = (struct mc_ep_arrived){.rows = mc_calloc(n * shape->hidden, 2),
				       .scales = mc_calloc(n * l.groups, 4),
				       .extra = mc_calloc(n, 4),
				       .counts = mc_calloc(l.le, 4),
				       .tokens = mc_calloc(n, 4),
				       .ranges = mc_calloc(shape->experts, 8),
				       .is_packed = is_packed};
	l.rows = mc_calloc(n * shape->hidden, 2);
	l.out = mc_calloc((size_t)shape->tokens_max * shape->hidden, 2);
	return l;
}

void layer_free(struct layer *l)
{
	mc_free(l->got.rows);
	mc_free(l->got.scales);
	mc_free(l->got.extra);
	mc_free(l->got.counts);
	mc_free(l->got.tokens);
	mc_free(l->got.ranges);
	mc_free(l->rows);
	mc_free(l->out);
}

/* ---- values ---- */

static float e4m3_value(uint8_t code)
{
	uint32_t exponent = code >> 3 & 15, mantissa = code & 7;
	float magnitude = exponent ? (float)(8 + mantissa) * mc_f32_of_bits((exponent + 117) << 23)
				   : (float)mantissa / 512.0f;

	return code & 0x80 ? -magnitude : magnitude;
}

/* What the expert gets of a row. */
static void received(const struct layer *l, const uint16_t *row, uint16_t *out)
{
	uint8_t codes[1024];
	float scales[8];

	if (l->format == MC_EP_SAME) {
		memcpy(out, row, l->shape.hidden * sizeof(*row));
		return;
	}
	mc_ep_quantize(row, l->shape.hidden, l->format == MC_EP_FP8_POW2, codes, scales);
	for (uint32_t i = 0; i < l->shape.hidden; i++)
		out[i] = mc_bf16_store(e4m3_value(codes[i]) * scales[i / MC_EP_GROUP]);
}

static uint16_t expert(uint64_t e, uint16_t x)
{
	return mc_bf16_store(mc_bf16_load(x) * (0.5f + (float)(e % 7)) - (float)e / 16.0f);
}

float layer_scale(const struct layer *l, uint32_t e, uint64_t at, uint32_t group)
{
	const uint32_t *words = l->got.scales;

	if (!l->got.is_packed)
		return (
		    (const float *)l->got.scales)[((uint64_t)e * l->groups + group) * l->room + at];
	return mc_f32_of_bits(
	    (words[((uint64_t)e * ((l->groups + 3) / 4) + group / 4) * l->room + at] >>
		 8 * (group % 4) &
	     0xff)
	    << 23);
}

static uint64_t base_of(const struct layer *l, uint32_t expert)
{
	uint64_t base = 0;

	if (!l->shape.align)
		return expert * l->room;
	for (uint32_t e = 0; e <= expert; e++) {
		base = (base + l->shape.align - 1) / l->shape.align * l->shape.align;
		if (e < expert)
			base += (uint64_t)l->got.counts[e];
	}
	return base;
}

/* One row that came, as bf16. */
static void decode(const struct layer *l, uint32_t e, uint64_t at, uint16_t *out)
{
	uint64_t first = (base_of(l, e) + at) * l->shape.hidden;

	for (uint32_t i = 0; i < l->shape.hidden; i++)
		out[i] = l->format == MC_EP_SAME
			     ? ((const uint16_t *)l->got.rows)[first + i]
			     : mc_bf16_store(e4m3_value(((const uint8_t *)l->got.rows)[first + i]) *
					     layer_scale(l, e, at, i / MC_EP_GROUP));
}

/* ---- halves ---- */

int layer_dispatch_begin(struct layer *l, const struct tokens *t,
			 const struct mc_ep_patience *patience, struct mc_ep_half **ret)
{
	struct mc_ep_rows rows = {.format = l->format,
				  .elem_bytes = 2,
				  .extra_bytes = 4,
				  .rows = t->rows,
				  .extra = t->extra};

	return mc_ep_dispatch_begin(l->ep, &l->shape, &rows, t->topk, patience, &l->diag, ret);
}

int layer_dispatch_end(struct layer *l, struct mc_ep_half *h)
{
	struct mc_coll_result result;
	int rc = mc_ep_dispatch_end(h, &l->got, &l->diag, &result);

	l->there = result.ranks;
	return rc;
}

void layer_compute(struct layer *l)
{
	for (uint32_t e = 0; e < l->le; e++)
		for (uint64_t at = 0; at < (uint64_t)l->got.counts[e]; at++) {
			uint16_t *row = l->rows + (base_of(l, e) + at) * l->shape.hidden;

			decode(l, e, at, row);
			for (uint32_t i = 0; i < l->shape.hidden; i++)
				row[i] = expert((uint64_t)l->rank * l->le + e, row[i]);
		}
}

int layer_combine_begin(struct layer *l, const struct tokens *t, bool is_kept,
			const struct mc_ep_patience *patience, struct mc_ep_half **ret)
{
	return mc_ep_combine_begin(l->ep, &l->shape, l->rows, is_kept, t->topk, l->got.ranges,
				   patience, &l->diag, ret);
}

int layer_combine_end(struct layer *l, const struct tokens *t, struct mc_ep_half *h)
{
	struct mc_coll_result result;
	int rc = mc_ep_combine_end(h, t->weights, l->out, &l->diag, &result);

	l->back = result.ranks;
	return rc;
}

/* ---- the same in one process ---- */

static bool is_row(const struct layer *l, uint32_t e, uint64_t at, const struct tokens *t,
		   uint64_t token)
{
	uint16_t want[1024], got[1024];
	uint64_t place = base_of(l, e) + at;

	received(l, t->rows + token * l->shape.hidden, want);
	decode(l, e, at, got);
	return l->got.tokens[place] == (int32_t)token &&
	       ((const uint32_t *)l->got.extra)[place] == t->extra[token] &&
	       memcmp(want, got, l->shape.hidden * 2) == 0;
}

bool layer_has_arrived(const struct layer *l, uint64_t step)
{
	const struct mc_ep_shape *s = &l->shape;
	uint32_t at[64] = {0};
	bool ok = true;

	for (uint32_t q = 0; q < s->ranks; q++) {
		struct tokens t = tokens_of(s, q, step);
		uint64_t n = (uint64_t)tokens_count(l, q, step) * s->topk;

		for (uint32_t e = 0; e < l->le; e++) {
			int64_t range = l->got.ranges[(uint64_t)e * s->ranks + q];
			uint32_t came = 0;

			for (uint64_t i = 0; (l->there >> q & 1) && i < n; i++)
				if (t.topk[i] == (int64_t)l->rank * l->le + e)
					ok = ok && is_row(l, e, at[e] + came++, &t, i / s->topk);
			ok = ok && range == ((int64_t)at[e] << 32 | came);
			at[e] += came;
		}
		tokens_free(&t);
	}
	for (uint32_t e = 0; e < l->le; e++)
		ok = ok && at[e] == (uint32_t)l->got.counts[e];
	return ok;
}

bool layer_is_right(const struct layer *l, const struct tokens *t)
{
	const struct mc_ep_shape *s = &l->shape;

	for (uint64_t token = 0; token < s->tokens; token++) {
		uint16_t row[1024];

		received(l, t->rows + token * s->hidden, row);
		for (uint32_t c = 0; c < s->hidden; c++) {
			float sum = 0;

			for (uint32_t k = 0; k < s->topk; k++) {
				int64_t e = t->topk[token * s->topk + k];

				if (e >= 0 && (l->there & l->back) >> e / l->le & 1)
					sum += t->weights[token * s->topk + k] *
					       mc_bf16_load(expert((uint64_t)e, row[c]));
			}
			if (l->out[token * s->hidden + c] != mc_bf16_store(sum))
				return false;
		}
	}
	return true;
}
