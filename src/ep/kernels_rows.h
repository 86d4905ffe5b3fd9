/*
 * kernels_rows.h: routes and rows on GPUs, with the results of route.c, dispatch.c, combine.c and
 * rows.c bit by bit (but for the bits of NaNs). See kernels_step.h for how it is written.
 *
 * Rows are multiples of 16 elements, so whole vectors of 16 bytes (8 bf16); the last group of a row
 * that shares a scale may be shorter. Vectors of 16 threads are one group.
 */
#ifndef MC_EP_KERNELS_ROWS_H
#define MC_EP_KERNELS_ROWS_H

#include "ep/e4m3.h"
#include "ep/kernels_step.h"

#define MC_EPK_TILE 1024u /* entries that a block looks at together */
#define MC_EPK_LANES 16u  /* vectors of 8 elements that share a scale */

struct mc_epk_vec {
	uint32_t w[4];
} __attribute__((aligned(16)));

MC_DEV void copy_row(uint8_t *to, const uint8_t *from, uint64_t bytes)
{
	MC_EACH (i, bytes / sizeof(struct mc_epk_vec))
		((struct mc_epk_vec *)to)[i] = ((const struct mc_epk_vec *)from)[i];
}

MC_DEV void copy_bytes(uint8_t *to, const uint8_t *from, uint64_t bytes)
{
	MC_EACH (i, bytes)
		to[i] = from[i];
}

MC_DEV uint16_t half_word(const struct mc_epk_vec *v, uint32_t i)
{
	return (uint16_t)(v->w[i / 2] >> 16 * (i % 2));
}

/* ---- routes ---- */

/* Expert, or NONE: nothing is sent. */
MC_DEV uint32_t route_of(const struct mc_epk_half *h, uint64_t i)
{
	int64_t e = h->topk[i];

	return e >= 0 && e < (int64_t)h->call.experts && is_in(h->ctl->wanted, (uint32_t)e / h->le)
		   ? (uint32_t)e
		   : MC_EP_NONE;
}

MC_DEV void check_entry(const struct mc_epk_half *h, uint64_t i)
{
	int64_t e = h->topk[i];
	int is_twice = 0;

	for (uint64_t j = i - i % h->call.topk; j < i && e >= 0; j++)
		is_twice |= h->topk[j] == e;
	if (e < -1 || e >= (int64_t)h->call.experts || is_twice)
		fail(h, -MC_E_INVAL, MC_EPK_BAD_ROUTE, (uint32_t)(i / h->call.topk));
}

/* One block for each expert: it numbers its own entries, in order. */
MC_KERNEL(count)
{
	uint64_t n = (uint64_t)h.tokens * h.call.topk;
	uint32_t e = MC_BLOCK_X, base = 0, here;
	MC_SHARED uint32_t is_own[MC_EPK_TILE / 32];

	for (uint64_t at = 0; at < n; at += MC_EPK_TILE) {
		uint32_t len = (uint32_t)(n - at < MC_EPK_TILE ? n - at : MC_EPK_TILE);

		MC_EACH (w, MC_EPK_TILE / 32)
			is_own[w] = 0;
		MC_SYNC();
		MC_EACH (i, len) {
			uint32_t to = route_of(&h, at + i);

			if (to == e)
				gpu_or_shared(&is_own[i / 32], 1u << i % 32);
			if (e == 0) {
				h.route[at + i] = to;
				check_entry(&h, at + i);
			}
		}
		MC_SYNC();
		MC_EACH (i, len) {
			uint32_t before = base + gpu_ones(is_own[i / 32] & ((1u << i % 32) - 1));

			if (!(is_own[i / 32] >> i % 32 & 1))
				continue;
			for (uint32_t w = 0; w < i / 32; w++)
				before += gpu_ones(is_own[w]);
			h.rank[at + i] = before;
		}
		here = 0;
		for (uint32_t w = 0; w < MC_EPK_TILE / 32; w++)
			here += gpu_ones(is_own[w]);
		base += here;
		MC_SYNC();
	}
	MC_EACH (i, 1)
		h.first[e] = base;
}

/* Numbers of entries become sums of those before. One block. */
MC_KERNEL(scan)
{
	uint32_t per = (h.call.experts + MC_EPK_THREADS - 1) / MC_EPK_THREADS;
	MC_SHARED uint32_t part[MC_EPK_THREADS + 1];

	MC_EACH (t, MC_EPK_THREADS) {
		uint32_t sum = 0;

		for (uint32_t e = t * per; e < (t + 1) * per && e < h.call.experts; e++)
			sum += h.first[e];
		part[t + 1] = sum;
	}
	MC_SYNC();
	MC_EACH (i, 1) {
		part[0] = 0;
		for (uint32_t t = 0; t < MC_EPK_THREADS; t++)
			part[t + 1] += part[t];
		h.first[h.call.experts] = part[MC_EPK_THREADS];
	}
	MC_SYNC();
	MC_EACH (t, MC_EPK_THREADS) {
		uint32_t at = part[t];

		for (uint32_t e = t * per; e < (t + 1) * per && e < h.call.experts; e++) {
			uint32_t here = h.first[e];

			h.first[e] = at;
			at += here;
		}
	}
}

/* ---- dispatch: showing ---- */

MC_DEV void quantize_row(const uint8_t *row, uint32_t hidden, int is_pow2, uint8_t *out,
			 float *scales)
{
	MC_SHARED uint32_t amax[MC_EPK_THREADS];
	const struct mc_epk_vec *in = (const struct mc_epk_vec *)row;
	uint32_t nvecs = hidden / 8;

	for (uint32_t at = 0; at < nvecs; at += MC_EPK_THREADS) {
		uint32_t n = nvecs - at < MC_EPK_THREADS ? nvecs - at : MC_EPK_THREADS;

		MC_EACH (i, n) {
			struct mc_epk_vec v = in[at + i];
			uint32_t most = 0;

			/* Without the sign, bits order as the numbers do; a NaN is above all. */
			for (uint32_t k = 0; k < 8; k++) {
				uint32_t a = half_word(&v, k) & 0x7fffu;

				most = a > most ? a : most;
			}
			amax[i] = most;
		}
		MC_SYNC();
		MC_EACH (i, n) {
			struct mc_epk_vec v = in[at + i];
			uint32_t from = i / MC_EPK_LANES * MC_EPK_LANES, most = 0;
			uint32_t to = from + MC_EPK_LANES < n ? from + MC_EPK_LANES : n;
			uint32_t code[2] = {0, 0};
			float by, scale;

			for (uint32_t k = from; k < to; k++)
				most = amax[k] > most ? amax[k] : most;
			scale = mc_e4m3_scale(most << 16, is_pow2 != 0, &by);
			for (uint32_t k = 0; k < 8; k++)
				code[k / 4] |=
				    (uint32_t)mc_e4m3_of(mc_bf16_load(half_word(&v, k)) * by)
				    << 8 * (k % 4);
			((uint32_t *)out)[2 * (at + i)] = code[0];
			((uint32_t *)out)[2 * (at + i) + 1] = code[1];
			if (i == from)
				scales[(at + i) / MC_EPK_LANES] = scale;
		}
		MC_SYNC();
	}
}

/* @param format  known when it is compiled */
MC_DEV void show_rows(const struct mc_epk_half *h, uint32_t format)
{
	uint8_t *slot = slot_of(h, h->me);
	uint32_t *token = (uint32_t *)(slot + h->token_at);

	if (h->ctl->rc)
		return;
	for (uint32_t t = MC_BLOCK_X; t < h->tokens; t += MC_BLOCKS_X) {
		const uint8_t *row = h->rows + (uint64_t)t * h->call.hidden * h->call.elem_bytes;
		uint8_t *to = slot + h->rows_at + t * h->stride;
		int is_sent = 0;

		for (uint32_t k = 0; k < h->call.topk; k++)
			is_sent |= h->route[(uint64_t)t * h->call.topk + k] != MC_EP_NONE;
		if (!is_sent)
			continue;
		MC_EACH (k, h->call.topk) {
			uint64_t i = (uint64_t)t * h->call.topk + k;

			if (h->route[i] != MC_EP_NONE)
				token[h->first[h->route[i]] + h->rank[i]] = t;
		}
		if (format == 0)
			copy_row(to, row, h->row_bytes);
		else
			quantize_row(row, h->call.hidden, format == 2, to,
				     (float *)(to + h->scales_at));
		copy_bytes(to + h->extra_at, h->extra + (uint64_t)t * h->call.extra_bytes,
			   h->call.extra_bytes);
	}
}

MC_KERNEL(show_same)
{
	show_rows(&h, 0);
}

MC_KERNEL(show_fp8)
{
	show_rows(&h, 1);
}

MC_KERNEL(show_pow2)
{
	show_rows(&h, 2);
}

/* ---- dispatch: taking ---- */

/* Entries of own expert `e` that rank q shows. @return 0: what cannot be */
MC_DEV int entries_of(const struct mc_epk_half *h, uint32_t q, uint32_t e, uint32_t *ret_from,
		      uint32_t *ret_to)
{
	const uint8_t *slot = slot_of(h, q);
	const uint32_t *first = (const uint32_t *)(slot + h->first_at) + (uint64_t)h->me * h->le;
	uint32_t tokens = ((const struct mc_ep_head *)slot)->tokens;

	*ret_from = first[e];
	*ret_to = first[e + 1];
	return *ret_from <= *ret_to && *ret_to <= (uint64_t)tokens * h->call.topk &&
	       *ret_to - *ret_from <= tokens && tokens <= h->call.tokens_max;
}

/* One block. */
MC_KERNEL(count_in)
{
	struct mc_epk_ctl *ctl = h.ctl;

	MC_EACH (e, h.le) {
		uint32_t at = 0;

		for (uint32_t q = 0; q < h.call.ranks; q++) {
			uint32_t from = 0, to = 0;

			if (ctl->rc == 0 && is_in(ctl->taken, q) &&
			    !entries_of(&h, q, e, &from, &to)) {
				fail(&h, -MC_E_INVAL, MC_EPK_BAD_SHOWN, q);
				to = from;
			}
			h.out_ranges[(uint64_t)e * h.call.ranks + q] =
			    (int64_t)((uint64_t)at << 32 | (to - from));
			at += to - from;
		}
		h.out_counts[e] = (int32_t)at;
		h.base[e] = e * h.room;
	}
	MC_SYNC();
	MC_EACH (i, h.align ? 1u : 0u) {
		uint64_t base = 0;

		for (uint32_t e = 0; e < h.le; e++) {
			base = mc_ep_align(base, h.align);
			h.base[e] = base;
			base += (uint64_t)h.out_counts[e];
		}
	}
}

MC_DEV void put_scales(const struct mc_epk_half *h, int is_packed, uint32_t e, uint64_t at,
		       const float *from)
{
	uint64_t nwords = is_packed ? (h->groups + 3) / 4 : h->groups;

	MC_EACH (g, nwords) {
		uint32_t *to =
		    (uint32_t *)h->out_scales + ((uint64_t)e * nwords + g) * h->room + at;
		uint32_t word = 0;

		for (uint32_t k = 0; is_packed && k < 4 && 4 * g + k < h->groups; k++)
			word |= (mc_f32_bits(from[4 * g + k]) >> 23 & 0xff) << 8 * k;
		*to = is_packed ? word : mc_f32_bits(from[g]);
	}
}

/* Blocks: x: by own expert and source; y: they share the rows of these. */
MC_DEV void take_rows(const struct mc_epk_half *h, int has_scales, int is_packed)
{
	uint32_t e = MC_BLOCK_X / h->call.ranks, q = MC_BLOCK_X % h->call.ranks, from, to;
	const uint8_t *slot = slot_of(h, q);
	const uint32_t *token = (const uint32_t *)(slot + h->token_at);
	uint64_t first, n;

	if (h->ctl->rc || !is_in(h->ctl->taken, q) || !entries_of(h, q, e, &from, &to))
		return;
	/* Counted once: what is read again may have changed, if we were overtaken. */
	first = (uint64_t)h->out_ranges[MC_BLOCK_X] >> 32;
	n = (uint32_t)h->out_ranges[MC_BLOCK_X];
	n = n < to - from ? n : to - from;
	for (uint64_t i = MC_BLOCK_Y; i < n; i += MC_BLOCKS_Y) {
		uint32_t t = token[from + i];
		uint64_t place = h->base[e] + first + i;
		const uint8_t *row = slot + h->rows_at + t * h->stride;

		if (t >= h->call.tokens_max) {
			fail(h, -MC_E_INVAL, MC_EPK_BAD_SHOWN, q);
			return;
		}
		copy_row(h->out_rows + place * h->row_bytes, row, h->row_bytes);
		MC_EACH (one, h->out_tokens ? 1u : 0u)
			h->out_tokens[place] = (int32_t)t;
		if (has_scales && h->out_scales)
			put_scales(h, is_packed, e, first + i, (const float *)(row + h->scales_at));
		if (h->out_extra)
			copy_bytes(h->out_extra + place * h->call.extra_bytes, row + h->extra_at,
				   h->call.extra_bytes);
	}
}

MC_KERNEL(take_same)
{
	take_rows(&h, 0, 0);
}

MC_KERNEL(take_fp8)
{
	take_rows(&h, 1, 0);
}

MC_KERNEL(take_packed)
{
	take_rows(&h, 1, 1);
}

/* ---- combine: showing ---- */

MC_DEV int is_copied(const struct mc_epk_half *h, uint32_t q)
{
	return is_in(h->ctl->wanted, q) && !(h->is_kept && q == h->me) && !h->is_lent;
}

/* Where the caller's rows of each own expert begin. */
MC_DEV void find_bases(const struct mc_epk_half *h)
{
	MC_EACH (e, h->le) {
		uint64_t n = 0;

		for (uint32_t q = 0; q < h->call.ranks; q++)
			n += (uint32_t)h->ranges[(uint64_t)e * h->call.ranks + q];
		h->base[e] = h->align ? n : e * h->room;
	}
	MC_SYNC();
	MC_EACH (i, h->align ? 1u : 0u) {
		uint64_t base = 0;

		for (uint32_t e = 0; e < h->le; e++) {
			uint64_t n = h->base[e];

			base = mc_ep_align(base, h->align);
			h->base[e] = base;
			base += n;
		}
	}
	MC_SYNC();
}

/* The first row in the slot of each range; one block. */
MC_KERNEL(range)
{
	uint32_t n = h.call.experts, per = (n + MC_EPK_THREADS - 1) / MC_EPK_THREADS;
	struct mc_ep_range *out = (struct mc_ep_range *)(slot_of(&h, h.me) + h.first_at);
	MC_SHARED uint64_t part[MC_EPK_THREADS + 1];

	if (h.ctl->rc)
		return;
	find_bases(&h);
	MC_EACH (t, MC_EPK_THREADS) {
		uint64_t sum = 0;

		for (uint32_t i = t * per; i < (t + 1) * per && i < n; i++) {
			uint64_t first = (uint64_t)h.ranges[i] >> 32;
			uint32_t rows = (uint32_t)h.ranges[i];

			if (rows > h.call.tokens_max || first + rows > h.room)
				fail(&h, -MC_E_INVAL, MC_EPK_BAD_RANGES, i);
			sum += is_copied(&h, i % h.call.ranks) ? rows : 0;
		}
		part[t + 1] = sum;
	}
	MC_SYNC();
	MC_EACH (i, 1) {
		part[0] = 0;
		for (uint32_t t = 0; t < MC_EPK_THREADS; t++)
			part[t + 1] += part[t];
		if (h.rows_at + part[MC_EPK_THREADS] * h.row_bytes > h.span)
			fail(&h, -MC_E_TOO_BIG, MC_EPK_BAD_SPACE, h.me);
	}
	MC_SYNC();
	MC_EACH (t, MC_EPK_THREADS) {
		uint64_t at = part[t];

		for (uint32_t i = t * per; i < (t + 1) * per && i < n; i++) {
			uint32_t e = i / h.call.ranks, q = i % h.call.ranks;
			uint64_t from = h.base[e] + ((uint64_t)h.ranges[i] >> 32);

			out[i].first = h.is_lent ? from : at;
			out[i].rows = (uint32_t)h.ranges[i];
			if (q == h.me)
				h.start[e] = h.is_lent || h.is_kept ? from : at;
			at += is_copied(&h, q) ? out[i].rows : 0;
		}
	}
}

/* Blocks as in take_rows(). */
MC_KERNEL(give)
{
	uint32_t e = MC_BLOCK_X / h.call.ranks, q = MC_BLOCK_X % h.call.ranks;
	uint8_t *slot = slot_of(&h, h.me);
	const struct mc_ep_range *range = (const struct mc_ep_range *)(slot + h.first_at);
	uint64_t from;

	if (h.ctl->rc || !is_copied(&h, q))
		return;
	from = h.base[e] + ((uint64_t)h.ranges[MC_BLOCK_X] >> 32);
	for (uint64_t i = MC_BLOCK_Y; i < range[MC_BLOCK_X].rows; i += MC_BLOCKS_Y)
		copy_row(slot + h.rows_at + (range[MC_BLOCK_X].first + i) * h.row_bytes,
			 (const uint8_t *)h.made + (from + i) * h.row_bytes, h.row_bytes);
}

/* ---- combine: adding up ---- */

/* By expert: where its rows for this rank are; 0: it adds nothing. One block. */
MC_KERNEL(source)
{
	if (h.ctl->rc)
		return;
	MC_EACH (e, h.call.experts) {
		uint32_t q = e / h.le, sent = h.first[e + 1] - h.first[e];
		struct mc_ep_range r;
		const uint8_t *slot;

		h.row[e] = 0;
		if (!is_in(h.ctl->taken, q) || sent == 0)
			continue;
		slot = slot_of(&h, q);
		r = ((const struct mc_ep_range
			  *)(slot + h.first_at))[(uint64_t)(e % h.le) * h.call.ranks + h.me];
		if (r.rows == 0)
			continue; /* it had not taken our tokens */
		if (r.rows != sent || r.first > (h.span - h.rows_at) / h.row_bytes - r.rows)
			fail(&h, -MC_E_INVAL, MC_EPK_BAD_SHOWN, q);
		else if (q == h.me && h.is_kept && !h.is_lent)
			h.row[e] = (uint64_t)(uintptr_t)h.made + h.start[e % h.le] * h.row_bytes;
		else
			h.row[e] = (uint64_t)(uintptr_t)slot + h.rows_at + r.first * h.row_bytes;
	}
}

MC_DEV void add_vec(const struct mc_epk_half *h, const uint64_t *row, const float *weight,
		    uint64_t token, uint64_t i)
{
	float sum[8] = {0, 0, 0, 0, 0, 0, 0, 0};
	struct mc_epk_vec out = {{0, 0, 0, 0}};

	for (uint32_t k = 0; k < h->call.topk; k++) {
		struct mc_epk_vec v;

		if (!row[k])
			continue;
		v = ((const struct mc_epk_vec *)(uintptr_t)row[k])[i];
		for (uint32_t c = 0; c < 8; c++)
			sum[c] += weight[k] * mc_bf16_load(half_word(&v, c));
	}
	for (uint32_t c = 0; c < 8; c++)
		out.w[c / 2] |= (uint32_t)mc_bf16_store(sum[c]) << 16 * (c % 2);
	((struct mc_epk_vec *)(h->sums + token * h->call.hidden))[i] = out;
}

MC_KERNEL(add)
{
	MC_SHARED uint64_t row[32];
	MC_SHARED float weight[32];

	if (h.ctl->rc)
		return;
	for (uint64_t t = MC_BLOCK_X; t < h.tokens; t += MC_BLOCKS_X) {
		MC_EACH (k, h.call.topk) {
			uint64_t i = t * h.call.topk + k;
			uint32_t e = h.route[i];

			row[k] =
			    e == MC_EP_NONE || !h.row[e] ? 0 : h.row[e] + h.rank[i] * h.row_bytes;
			weight[k] = h.weights ? h.weights[i] : 1.0f;
		}
		MC_SYNC();
		MC_EACH (i, h.call.hidden / 8)
			add_vec(&h, row, weight, t, i);
		MC_SYNC();
	}
}

/* After an error nothing counts, and sums are no numbers. */
MC_KERNEL(poison)
{
	struct mc_epk_vec nan = {{0x7fc07fc0, 0x7fc07fc0, 0x7fc07fc0, 0x7fc07fc0}};

	if (h.ctl->rc == 0)
		return;
	if (h.call.kind == MC_EP_COMBINE) {
		for (uint64_t t = MC_BLOCK_X; t < h.tokens; t += MC_BLOCKS_X)
			MC_EACH (i, h.call.hidden / 8)
				((struct mc_epk_vec *)(h.sums + t * h.call.hidden))[i] = nan;
		return;
	}
	for (uint32_t e = MC_BLOCK_X; e < h.le; e += MC_BLOCKS_X) {
		MC_EACH (q, h.call.ranks)
			h.out_ranges[(uint64_t)e * h.call.ranks + q] = 0;
		MC_EACH (i, 1)
			h.out_counts[e] = 0;
	}
}

#endif
