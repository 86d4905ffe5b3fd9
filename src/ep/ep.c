/*
 * ep.c: halves of a step: gather the rows that go to each slot, exchange numbers, exchange rows,
 * put what came in place or add it up.
 *
 * An entry is one row for one expert. On both sides the entries between two slots lie expert by
 * expert and then in the order of the source's tokens, so numbers are all that must be said of
 * them; a dispatch says the token's number beside the row.
 */
#include <mooncake/ep.h>
#include <string.h>

#include "base/bf16.h"
#include "base/err.h"
#include "base/mem.h"

struct mc_ep_half {
	struct mc_coll *coll;
	struct mc_ep_shape shape;
	uint32_t le;		/* experts of a slot */
	uint64_t room, row;	/* rows of an expert; bytes of an entry */
	uint64_t masked;	/* bits of slots that the caller does without */
	uint32_t *sent;		/* by expert: entries that this rank routed to it */
	uint32_t *own, *theirs; /* ranks × le: entries shown to each slot, and shown by it */
	uint32_t *place;	/* by token and k: its entry among those of all experts; NONE */
	uint8_t *out, *in;
};

#define NONE UINT32_MAX

void mc_ep_half_free(struct mc_ep_half *h)
{
	if (!h)
		return;
	mc_free(h->sent);
	mc_free(h->own);
	mc_free(h->theirs);
	mc_free(h->place);
	mc_free(h->out);
	mc_free(h->in);
	mc_free(h);
}

static int check(const struct mc_ep_shape *s, struct mc_diag *diag)
{
	if (s->ranks == 0 || s->ranks > MC_COLL_RANKS_MAX || s->rank >= s->ranks ||
	    s->experts == 0 || s->experts > MC_EP_EXPERTS_MAX || s->experts % s->ranks) {
		mc_diag_set(diag, "rank %u of %u with %u experts in all", s->rank, s->ranks,
			    s->experts);
		return -MC_E_INVAL;
	}
	if (s->hidden == 0 || s->hidden > MC_EP_HIDDEN_MAX || s->hidden % 16 || s->topk == 0 ||
	    s->topk > MC_EP_TOPK_MAX) {
		mc_diag_set(diag, "rows of %u elements (a multiple of 16), top-%u (at most %d)",
			    s->hidden, s->topk, MC_EP_TOPK_MAX);
		return -MC_E_INVAL;
	}
	if (s->tokens > s->tokens_max || s->tokens_max > MC_EP_TOKENS_MAX) {
		mc_diag_set(diag, "%u tokens, room for %u (at most %u)", s->tokens, s->tokens_max,
			    MC_EP_TOKENS_MAX);
		return -MC_E_INVAL;
	}
	return 0;
}

/* Which entry is whose: by expert, then by token. */
static int route(struct mc_ep_half *h, const int64_t *topk, struct mc_diag *diag)
{
	const struct mc_ep_shape *s = &h->shape;
	uint64_t n = (uint64_t)s->tokens * s->topk;
	uint32_t at = 0;

	for (uint64_t i = 0; i < n; i++) {
		uint64_t first = i - i % s->topk;

		if (topk[i] < -1 || topk[i] >= (int64_t)s->experts) {
			mc_diag_set(diag, "token %llu goes to expert %lld of %u",
				    (unsigned long long)(i / s->topk), (long long)topk[i],
				    s->experts);
			return -MC_E_INVAL;
		}
		for (uint64_t j = first; j < i && topk[i] >= 0; j++) {
			if (topk[j] == topk[i]) {
				mc_diag_set(diag, "token %llu goes to expert %lld twice",
					    (unsigned long long)(i / s->topk), (long long)topk[i]);
				return -MC_E_INVAL;
			}
		}
		h->place[i] = NONE;
		if (topk[i] >= 0 && !(h->masked >> topk[i] / h->le & 1))
			h->sent[topk[i]]++;
	}
	/* A pass by expert would be experts × tokens: counted first, then numbered. */
	for (uint32_t e = 0; e < s->experts; e++) {
		h->theirs[e] = at;
		at += h->sent[e];
	}
	for (uint64_t i = 0; i < n; i++)
		if (topk[i] >= 0 && !(h->masked >> topk[i] / h->le & 1))
			h->place[i] = h->theirs[topk[i]]++;
	return 0;
}

static int half_make(struct mc_coll *coll, const struct mc_ep_shape *s, const int64_t *topk,
		     const int32_t *active, struct mc_diag *diag, struct mc_ep_half **ret)
{
	struct mc_ep_half *h;
	int rc = check(s, diag);

	if (rc < 0)
		return rc;
	h = mc_calloc(1, sizeof(*h));
	if (!h)
		return -MC_E_NOMEM;
	*h = (struct mc_ep_half){.coll = coll,
				 .shape = *s,
				 .le = s->experts / s->ranks,
				 .room = (uint64_t)s->ranks * s->tokens_max};
	for (uint32_t q = 0; active && q < s->ranks; q++)
		h->masked |= (uint64_t)(active[q] == 0) << q;
	h->sent = mc_calloc(s->experts, sizeof(*h->sent));
	h->own = mc_calloc(s->experts, sizeof(*h->own));
	h->theirs = mc_calloc(s->experts, sizeof(*h->theirs));
	h->place = mc_calloc((size_t)s->tokens * s->topk + 1, sizeof(*h->place));
	if (!h->sent || !h->own || !h->theirs || !h->place)
		rc = -MC_E_NOMEM;
	if (rc == 0)
		rc = route(h, topk, diag);
	if (rc < 0)
		mc_ep_half_free(h);
	else
		*ret = h;
	return rc;
}

static uint64_t total(const uint32_t *n, uint32_t count)
{
	uint64_t sum = 0;

	for (uint32_t i = 0; i < count; i++)
		sum += n[i];
	return sum;
}

int mc_ep_dispatch_begin(struct mc_coll *coll, const struct mc_ep_shape *shape,
			 const uint16_t *rows, const int64_t *topk, const int32_t *active,
			 struct mc_diag *diag, struct mc_ep_half **ret_half)
{
	uint64_t bytes = (uint64_t)shape->hidden * sizeof(*rows);
	struct mc_ep_half *h;
	int rc = half_make(coll, shape, topk, active, diag, &h);

	if (rc < 0)
		return rc;
	h->row = bytes + sizeof(uint32_t);
	memcpy(h->own, h->sent, shape->experts * sizeof(*h->own));
	h->out = mc_calloc(total(h->own, shape->experts) + 1, h->row);
	if (!h->out) {
		mc_ep_half_free(h);
		return -MC_E_NOMEM;
	}
	for (uint64_t i = 0; i < (uint64_t)shape->tokens * shape->topk; i++) {
		uint32_t token = (uint32_t)(i / shape->topk);
		uint8_t *to = h->out + h->place[i] * h->row;

		if (h->place[i] == NONE)
			continue;
		memcpy(to, rows + (uint64_t)token * shape->hidden, bytes);
		memcpy(to + bytes, &token, sizeof(token));
	}
	*ret_half = h;
	return 0;
}

/* Parts of `n` elements of `size` bytes for each slot, one behind the other. */
static void parts_of(const struct mc_ep_half *h, uint8_t *at, const uint32_t *n, uint64_t size,
		     struct mc_coll_part *ret)
{
	for (uint32_t q = 0; q < h->shape.ranks; q++) {
		ret[q].addr = at;
		ret[q].count = total(n + (uint64_t)q * h->le, h->le) * size;
		at = at ? at + ret[q].count : NULL;
	}
}

static int exchange(struct mc_ep_half *h, struct mc_coll_part *in, struct mc_coll_part *out,
		    enum mc_coll_type type, struct mc_coll_result *ret)
{
	struct mc_coll_op op = {.kind = MC_COLL_ALL_TO_ALL,
				.type = type,
				.in = in,
				.out = out,
				.nin = h->shape.ranks,
				.nout = h->shape.ranks};

	return mc_coll_run(h->coll, &op, ret);
}

/* Both operations. On success h->in has what came, h->theirs how much of each slot and expert. */
static int swap(struct mc_ep_half *h, struct mc_coll_result *ret)
{
	struct mc_coll_part in[MC_COLL_RANKS_MAX], out[MC_COLL_RANKS_MAX];
	struct mc_coll_result first;
	int rc, kept = 0;

	for (uint32_t q = 0; q < h->shape.ranks; q++) {
		in[q] = (struct mc_coll_part){h->own + (uint64_t)q * h->le, h->le};
		out[q] = (struct mc_coll_part){h->theirs + (uint64_t)q * h->le, h->le};
	}
	/* Numbers and bytes are of different types: whoever is at the other half is named. */
	rc = exchange(h, in, out, MC_COLL_U32, &first);
	if (rc < 0)
		return rc;
	for (uint32_t i = 0; i < h->shape.experts; i++)
		if (h->theirs[i] > h->shape.tokens_max)
			kept = -MC_E_INVAL;
	h->in = kept ? NULL : mc_calloc(total(h->theirs, h->shape.experts) + 1, h->row);
	if (!kept && !h->in)
		kept = -MC_E_NOMEM;
	/* The others are in the second operation: without room it is run for them, and refused. */
	if (kept)
		memset(h->theirs, 0, h->shape.experts * sizeof(*h->theirs));
	parts_of(h, h->out, h->own, h->row, in);
	parts_of(h, h->in, h->theirs, h->row, out);
	rc = exchange(h, in, out, MC_COLL_BYTE, ret);
	ret->ranks &= first.ranks;
	ret->failed |= first.failed;
	return kept ? kept : rc;
}

/* Rows of one source for one expert. */
static void put_rows(const struct mc_ep_half *h, const struct mc_ep_arrived *out, uint64_t slot,
		     const uint8_t *from, uint32_t n)
{
	uint64_t bytes = (uint64_t)h->shape.hidden * sizeof(uint16_t);

	for (uint32_t i = 0; i < n; i++, from += h->row) {
		memcpy(out->rows + (slot + i) * h->shape.hidden, from, bytes);
		memcpy(&out->tokens[slot + i], from + bytes, sizeof(int32_t));
	}
}

int mc_ep_dispatch_end(struct mc_ep_half *h, const struct mc_ep_arrived *out,
		       struct mc_coll_result *ret_result)
{
	struct mc_coll_result result = {0};
	const uint8_t *from;
	int rc = swap(h, &result);

	if (ret_result)
		*ret_result = result;
	if (rc < 0) {
		mc_ep_half_free(h);
		return rc;
	}
	from = h->in;
	memset(out->counts, 0, h->le * sizeof(*out->counts));
	for (uint32_t q = 0; q < h->shape.ranks; q++) {
		bool is_taken = (result.ranks & ~h->masked) >> q & 1;

		for (uint32_t e = 0; e < h->le; e++) {
			uint32_t came = h->theirs[(uint64_t)q * h->le + e];
			uint32_t n = is_taken ? came : 0;

			put_rows(h, out, e * h->room + (uint32_t)out->counts[e], from, n);
			out->ranges[(uint64_t)e * h->shape.ranks + q] =
			    (int64_t)out->counts[e] << 32 | n;
			out->counts[e] += (int32_t)n;
			from += came * h->row;
		}
	}
	mc_ep_half_free(h);
	return 0;
}

int mc_ep_combine_begin(struct mc_coll *coll, const struct mc_ep_shape *shape, const uint16_t *rows,
			const int64_t *topk, const int32_t *active, const int64_t *ranges,
			struct mc_diag *diag, struct mc_ep_half **ret_half)
{
	struct mc_ep_half *h;
	uint8_t *to;
	int rc = half_make(coll, shape, topk, active, diag, &h);

	if (rc < 0)
		return rc;
	h->row = (uint64_t)shape->hidden * sizeof(*rows);
	for (uint32_t i = 0; i < shape->experts && rc == 0; i++) {
		int64_t range = ranges[i]; /* of expert i / ranks, source i % ranks */
		uint64_t first = (uint64_t)range >> 32, n = (uint32_t)range;

		if (n > shape->tokens_max || first + n > h->room) {
			mc_diag_set(diag, "range %u has %llu rows from %llu", i,
				    (unsigned long long)n, (unsigned long long)first);
			rc = -MC_E_INVAL;
		}
		if (!(h->masked >> i % shape->ranks & 1))
			h->own[(uint64_t)(i % shape->ranks) * h->le + i / shape->ranks] =
			    (uint32_t)n;
	}
	if (rc == 0) {
		h->out = mc_calloc(total(h->own, shape->experts) + 1, h->row);
		rc = h->out ? 0 : -MC_E_NOMEM;
	}
	if (rc < 0) {
		mc_ep_half_free(h);
		return rc;
	}
	to = h->out;
	for (uint32_t i = 0; i < shape->experts; i++) {
		uint32_t q = i / h->le, e = i % h->le;
		uint64_t slot = (uint64_t)ranges[(uint64_t)e * shape->ranks + q] >> 32;

		memcpy(to, rows + (e * h->room + slot) * shape->hidden, h->own[i] * h->row);
		to += h->own[i] * h->row;
	}
	*ret_half = h;
	return 0;
}

/* Where the rows of each expert begin in h->in; NONE: it has no part in the sum. */
static int starts_of(struct mc_ep_half *h, uint64_t ranks, uint32_t *start)
{
	uint32_t at = 0;

	for (uint32_t i = 0; i < h->shape.experts; i++) {
		bool is_there = (ranks & ~h->masked) >> i / h->le & 1;

		start[i] = is_there && h->theirs[i] ? at : NONE;
		/* All that was sent, or nothing: it had not taken our tokens. */
		if (start[i] != NONE && h->theirs[i] != h->sent[i])
			return -MC_E_INVAL;
		at += h->theirs[i];
	}
	return 0;
}

static void add_up(const struct mc_ep_half *h, const uint32_t *start, const float *weights,
		   float *sum, uint16_t *out)
{
	const struct mc_ep_shape *s = &h->shape;

	for (uint32_t t = 0; t < s->tokens; t++, out += s->hidden) {
		memset(sum, 0, s->hidden * sizeof(*sum));
		for (uint32_t k = 0; k < s->topk; k++) {
			uint64_t i = (uint64_t)t * s->topk + k;
			const uint16_t *row;

			if (h->place[i] == NONE || start[h->place[i]] == NONE)
				continue;
			row = (const uint16_t *)(const void *)(h->in + start[h->place[i]] * h->row);
			for (uint32_t c = 0; c < s->hidden; c++)
				sum[c] += weights[i] * mc_bf16_load(row[c]);
		}
		for (uint32_t c = 0; c < s->hidden; c++)
			out[c] = mc_bf16_store(sum[c]);
	}
}

/* By entry, where its row is in h->in. */
static int rows_of(struct mc_ep_half *h, uint64_t ranks, uint32_t *start, uint32_t *row)
{
	uint64_t n = 0;
	int rc = starts_of(h, ranks, start);

	for (uint32_t e = 0; e < h->shape.experts && rc == 0; e++)
		for (uint32_t i = 0; i < h->sent[e]; i++)
			row[n++] = start[e] == NONE ? NONE : start[e] + i;
	return rc;
}

int mc_ep_combine_end(struct mc_ep_half *h, const float *weights, uint16_t *out,
		      struct mc_coll_result *ret_result)
{
	struct mc_coll_result result = {0};
	int rc = swap(h, &result);
	/* After the exchange, which the others are in. */
	uint32_t *start = mc_calloc(h->shape.experts, sizeof(*start));
	uint32_t *row = mc_calloc(total(h->sent, h->shape.experts) + 1, sizeof(*row));
	float *sum = mc_calloc(h->shape.hidden, sizeof(*sum));

	if (rc == 0 && (!start || !row || !sum))
		rc = -MC_E_NOMEM;
	if (rc == 0)
		rc = rows_of(h, result.ranks, start, row);
	if (rc == 0)
		add_up(h, row, weights, sum, out);
	if (ret_result)
		*ret_result = result;
	mc_free(start);
	mc_free(row);
	mc_free(sum);
	mc_ep_half_free(h);
	return rc;
}
