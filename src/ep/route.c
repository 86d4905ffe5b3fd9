/*
 * route.c: a half's beginning: the shape, who is wanted, which entry of this rank is whose.
 *
 * An entry is one row for one expert. On both sides the entries of a source lie expert by expert
 * and then in the order of its tokens, so both can count them.
 */
#include <mooncake/ep.h>

#include "base/mem.h"
#include "ep/priv.h"

int mc_ep_check_shape(const struct mc_coll *g, const struct mc_ep_shape *s, struct mc_diag *diag)
{
	uint32_t slots = g->ranks_max;

	if (s->ranks == 0 || s->ranks > slots || g->rank >= s->ranks || s->experts == 0 ||
	    s->experts > MC_EP_EXPERTS_MAX || s->experts % s->ranks) {
		mc_diag_set(diag,
			    "%u experts on %u ranks, of which this is rank %u (at most %u ranks "
			    "and %u experts, as many on each)",
			    s->experts, s->ranks, g->rank, slots, MC_EP_EXPERTS_MAX);
		return -MC_E_INVAL;
	}
	if (s->hidden == 0 || s->hidden > MC_EP_HIDDEN_MAX || s->hidden % 16 || s->topk == 0 ||
	    s->topk > MC_EP_TOPK_MAX) {
		mc_diag_set(diag, "rows of %u elements (a multiple of 16), top-%u (1 to %d)",
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

int mc_ep_check_rows(const struct mc_ep_rows *in, struct mc_diag *diag)
{
	bool is_same = in->format == MC_EP_SAME;

	if ((unsigned)in->format >= MC_EP_FORMAT_COUNT || in->extra_bytes > MC_EP_EXTRA_MAX ||
	    in->elem_bytes == 0 || in->elem_bytes > 8 || (!is_same && in->elem_bytes != 2)) {
		mc_diag_set(diag, "format %d of elements of %u bytes with %u more (at most %u)",
			    in->format, in->elem_bytes, in->extra_bytes, MC_EP_EXTRA_MAX);
		return -MC_E_INVAL;
	}
	return 0;
}

static uint64_t wanted(const struct mc_ep *ep, uint32_t ranks, const int32_t *active)
{
	uint64_t slots = ranks == 64 ? UINT64_MAX : MC_COLL_BIT(ranks) - 1;
	uint64_t out = 0;

	if (!active)
		out = ~atomic_load_explicit(&ep->masked, memory_order_relaxed);
	for (uint32_t q = 0; active && q < ranks; q++)
		out |= (uint64_t)(active[q] != 0) << q;
	out &= slots & atomic_load_explicit(&ep->members, memory_order_relaxed);
	return out | MC_COLL_BIT(ep->coll->rank);
}

void mc_ep_half_drop(struct mc_ep_half *h)
{
	if (!h)
		return;
	mc_free(h->first);
	mc_free(h->place);
	mc_free(h->start);
	mc_free(h);
}

void mc_ep_half_free(struct mc_ep_half *h)
{
	if (h)
		(void)mc_ep_finish(h, 0, -MC_E_CANCELED, NULL);
}

int mc_ep_half_make(struct mc_ep *ep, const struct mc_ep_shape *s, struct mc_ep_call call,
		    const struct mc_ep_patience *patience, struct mc_diag *diag,
		    struct mc_ep_half **ret)
{
	struct mc_ep_half *h;
	int rc =
	    mc_fork_is_child(ep->fork_gen) ? -MC_E_FORKED : mc_ep_check_shape(ep->coll, s, diag);

	if (rc < 0)
		return rc;
	h = mc_calloc(1, sizeof(*h));
	if (!h)
		return -MC_E_NOMEM;
	call.ranks = s->ranks;
	call.experts = s->experts;
	call.hidden = s->hidden;
	call.topk = s->topk;
	call.tokens_max = s->tokens_max;
	*h = (struct mc_ep_half){.ep = ep,
				 .shape = *s,
				 .call = call,
				 .active = patience->active,
				 .timeout_ns = patience->timeout_ns,
				 .wanted = wanted(ep, s->ranks, patience->active),
				 .le = s->experts / s->ranks,
				 .room = (uint64_t)s->ranks * s->tokens_max};
	*ret = h;
	return 0;
}

static int check_entry(const struct mc_ep_shape *s, const int64_t *topk, uint64_t i,
		       struct mc_diag *diag)
{
	if (topk[i] < -1 || topk[i] >= (int64_t)s->experts) {
		mc_diag_set(diag, "token %llu goes to expert %lld of %u",
			    (unsigned long long)(i / s->topk), (long long)topk[i], s->experts);
		return -MC_E_INVAL;
	}
	for (uint64_t j = i - i % s->topk; j < i && topk[i] >= 0; j++) {
		if (topk[j] == topk[i]) {
			mc_diag_set(diag, "token %llu goes to expert %lld twice",
				    (unsigned long long)(i / s->topk), (long long)topk[i]);
			return -MC_E_INVAL;
		}
	}
	return 0;
}

int mc_ep_route(struct mc_ep_half *h, const int64_t *topk, struct mc_diag *diag)
{
	const struct mc_ep_shape *s = &h->shape;
	uint64_t n = (uint64_t)s->tokens * s->topk;
	uint32_t at = 0;
	int rc;

	h->first = mc_calloc((size_t)s->experts + 1, sizeof(*h->first));
	h->place = mc_calloc(n + 1, sizeof(*h->place));
	if (!h->first || !h->place)
		return -MC_E_NOMEM;
	/* A pass by expert would be experts × tokens: counted first, then numbered. */
	for (uint64_t i = 0; i < n; i++) {
		rc = check_entry(s, topk, i, diag);
		if (rc < 0)
			return rc;
		h->place[i] = MC_EP_NONE;
		if (topk[i] >= 0 && (h->wanted >> topk[i] / h->le & 1))
			h->first[topk[i]]++;
	}
	for (uint32_t e = 0; e <= s->experts; e++) {
		uint32_t here = h->first[e];

		h->first[e] = at;
		at += here;
	}
	for (uint64_t i = 0; i < n; i++)
		if (topk[i] >= 0 && (h->wanted >> topk[i] / h->le & 1))
			h->place[i] = h->first[topk[i]]++;
	/* Each has become the beginning of the next. */
	for (uint32_t e = s->experts; e > 0; e--)
		h->first[e] = h->first[e - 1];
	h->first[0] = 0;
	return 0;
}
