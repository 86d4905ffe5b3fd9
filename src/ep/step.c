/*
 * step.c: words and slots: showing, waiting, and who is left out.
 *
 * A rank's word is written by the rank, which moves it on, and by whoever does without the rank,
 * who sets its lowest bit; both by compare-and-swap, so one of the two comes first for everybody. A
 * death changes nothing about that: the word of a dead rank is frozen, too, before it is believed.
 */
#include <mooncake/ep.h>
#include <string.h>

#include "base/clock.h"
#include "coll/shmem.h"
#include "ep/net.h"

int mc_ep_say_stale(const struct mc_coll *g, struct mc_diag *diag)
{
	mc_diag_set(diag,
		    "rank %u was left out by the others, which it kept waiting too long or which "
		    "met without it; all have to meet again",
		    g->rank);
	return -MC_E_STALE;
}

/* Why nothing goes on in this epoch. */
static int say(const struct mc_ep *ep, struct mc_diag *diag)
{
	uint64_t members = atomic_load_explicit(&ep->members, memory_order_relaxed);
	uint64_t pair = ep->net ? atomic_load_explicit(&ep->net->broken, memory_order_relaxed) : 0;

	if (members == 0) {
		mc_diag_set(diag,
			    "rank %u is in no meeting: there was none, or the last one failed; all "
			    "have to meet again",
			    ep->coll->rank);
		return -MC_E_STALE;
	}
	if (!pair)
		return mc_ep_say_stale(ep->coll, diag);
	mc_diag_set(
	    diag,
	    "ranks %u and %u have lost their connection, though both are alive: all have to "
	    "meet again",
	    (unsigned)__builtin_ctzll(pair), 63 - (unsigned)__builtin_clzll(pair));
	return -MC_E_STALE;
}

int mc_ep_enter(struct mc_ep *ep, uint64_t epoch)
{
	uint64_t v = atomic_load_explicit(&ep->page->word, memory_order_relaxed);

	do {
		if (mc_ep_epoch_of(v) >= epoch)
			return -MC_E_STALE;
	} while (
	    !atomic_compare_exchange_weak_explicit(&ep->page->word, &v, epoch << MC_EP_EPOCH_BITS,
						   memory_order_acq_rel, memory_order_relaxed));
	mc_coll_ring(ep->coll->page);
	return 0;
}

/* ---- waiting for one rank ---- */

struct look {
	const struct mc_ep *ep;
	const struct mc_coll_peer *p;
	const struct mc_ep_page *page;
	const _Atomic uint64_t *at; /* the word, or a done */
	uint64_t target;
	bool is_patient;
};

static int is_there(const void *what)
{
	const struct look *l = what;
	uint64_t word;

	/* acquire: what was shown, or read, before */
	if (atomic_load_explicit(l->at, memory_order_acquire) >= l->target) {
		word = atomic_load_explicit(&l->page->word, memory_order_relaxed);
		return mc_ep_epoch_of(word) > mc_ep_epoch_of(l->target) ? -MC_E_STALE
									: MC_COLL_THERE;
	}
	if (l->ep->net &&
	    (atomic_load_explicit(&l->ep->page->word, memory_order_acquire) & MC_EP_FROZEN))
		return -MC_E_STALE; /* nobody tells this rank anything */
	if (l->ep->net && mc_coll_peer_is_lost(l->p))
		return MC_COLL_GONE;
	if (l->ep->net && l->is_patient && mc_ep_link_is_cut(&l->ep->net->link[l->p->slot])) {
		mc_ep_net_break(l->ep->net, l->p->slot);
		return -MC_E_STALE;
	}
	word = atomic_load_explicit(&l->page->word, memory_order_acquire);
	if (mc_ep_epoch_of(word) != mc_ep_epoch_of(l->target))
		return mc_ep_epoch_of(word) > mc_ep_epoch_of(l->target) ? -MC_E_STALE : 0;
	return word & MC_EP_FROZEN ? MC_COLL_GONE : 0;
}

int mc_ep_freeze(struct mc_ep *ep, unsigned q, uint64_t target)
{
	struct mc_ep_page *page = ep->peer[q].page;
	uint64_t v = atomic_load_explicit(&page->word, memory_order_acquire), to;

	do {
		if (mc_ep_epoch_of(v) > ep->epoch)
			return -MC_E_STALE;
		if (mc_ep_epoch_of(v) == ep->epoch && v >= target)
			return MC_COLL_THERE;
		if (mc_ep_epoch_of(v) == ep->epoch && (v & MC_EP_FROZEN))
			return MC_COLL_GONE;
		to = (mc_ep_epoch_of(v) == ep->epoch ? v : ep->epoch << MC_EP_EPOCH_BITS) |
		     MC_EP_FROZEN;
	} while (!atomic_compare_exchange_weak_explicit(&page->word, &v, to, memory_order_acq_rel,
							memory_order_acquire));
	/* Others who wait for the same word see it at once. */
	mc_coll_ring(ep->peer[q].p->page);
	return MC_COLL_GONE;
}

struct limits {
	uint64_t patience_ns, group_ns; /* deadlines */
};

static struct limits limits_of(const struct mc_ep_half *h)
{
	uint64_t now = mc_now_ns();

	return (struct limits){mc_time_after(now, h->timeout_ns),
			       mc_time_after(now, h->ep->coll->timeout_ns)};
}

/* @param shown  what it must have shown not to be frozen; UINT64_MAX: nothing helps.
 * @return MC_COLL_THERE, _GONE; an error */
static int wait_rank(struct mc_ep_half *h, unsigned q, struct look *look, uint64_t shown,
		     const struct limits *lim, struct mc_spin *spin, struct mc_diag *diag)
{
	struct mc_ep *ep = h->ep;
	bool is_patient = mc_ep_is_patient(h, lim->patience_ns, lim->group_ns);
	int rc;

	look->is_patient = is_patient;
	rc = mc_coll_wait_on(ep->coll, ep->peer[q].p, is_there, look, spin,
			     is_patient ? lim->group_ns : lim->patience_ns);

	if (rc == MC_COLL_GONE || (rc == -MC_E_TIMEDOUT && !is_patient)) {
		rc = ep->net ? mc_ep_net_may_lose(h, q) : 0;
		rc = rc < 0 ? rc : mc_ep_freeze(ep, q, shown);
	}
	if (rc == MC_COLL_GONE)
		atomic_fetch_or_explicit(&ep->masked, MC_COLL_BIT(q), memory_order_relaxed);
	if (rc == -MC_E_STALE)
		return say(ep, diag);
	if (rc == -MC_E_TIMEDOUT)
		mc_diag_set(diag, "rank %u has not come to half %llu of expert parallelism", q,
			    (unsigned long long)(mc_ep_half_of(h->word)));
	return rc;
}

/* ---- begin ---- */

/* Nobody reads what was shown in the slot before. */
static int wait_unused(struct mc_ep_half *h, struct mc_diag *diag)
{
	struct mc_ep *ep = h->ep;
	struct mc_ep_slot *slot = &ep->slot[h->slot];
	struct limits lim = limits_of(h);
	unsigned q;

	/* Whom the caller does without now is not waited for: it may find its bytes gone. */
	mc_coll_each(q, slot->ranks & h->wanted & ~MC_COLL_BIT(ep->coll->rank))
	{
		struct mc_ep_page *page = ep->peer[q].page;
		struct look look = {ep,		ep->peer[q].p, page, &page->done[h->slot],
				    slot->word, false};
		int rc = wait_rank(h, q, &look, UINT64_MAX, &lim, &ep->spin, diag);

		if (rc < 0)
			return rc;
	}
	slot->ranks = 0;
	if (ep->net)
		mc_ep_net_forget(h);
	return 0;
}

static int need(struct mc_ep_half *h, uint64_t len, struct mc_diag *diag)
{
	struct mc_ep *ep = h->ep;
	struct mc_ep_slot *slot = &ep->slot[h->slot];
	uint64_t at = ep->side_at + MC_EP_PAGE_LEN + h->slot * MC_EP_SPAN;
	int rc;

	if (len > MC_EP_SPAN) {
		mc_diag_set(diag, "a half would show %llu bytes, at most %llu",
			    (unsigned long long)len, (unsigned long long)MC_EP_SPAN);
		return -MC_E_TOO_BIG;
	}
	if (len <= slot->kept)
		return 0;
	len = mc_min(mc_ep_align(len + len / 8, 1u << 16), MC_EP_SPAN);
	/* Memory that is missing is told here, not when it is written to. */
	rc = mc_coll_shmem_grow(ep->coll->fd, at + slot->kept, at + len);
	if (rc == 0)
		slot->kept = len;
	return rc;
}

int mc_ep_take_slot(struct mc_ep_half *h, uint64_t len, struct mc_diag *diag)
{
	struct mc_ep *ep = h->ep;
	enum mc_ep_kind kind = h->call.kind;
	struct mc_ep_slot *slot;
	int rc;

	if (!(atomic_load_explicit(&ep->members, memory_order_relaxed) &
	      MC_COLL_BIT(ep->coll->rank)) ||
	    (atomic_load_explicit(&ep->page->word, memory_order_relaxed) & MC_EP_FROZEN))
		return say(ep, diag);
	h->slot = 2 * kind + (ep->count[kind] & 1);
	h->word = ep->epoch << MC_EP_EPOCH_BITS | (ep->half + 1) << 1;
	slot = &ep->slot[h->slot];
	if (atomic_load_explicit(&slot->is_open, memory_order_acquire)) {
		mc_diag_set(diag, "two %s are under way: end one first",
			    kind == MC_EP_DISPATCH ? "dispatches" : "combines");
		return -MC_E_BUSY;
	}
	rc = wait_unused(h, diag);
	if (rc == 0)
		rc = need(h, len, diag);
	if (rc < 0)
		return rc;
	/* Before the first byte is: pairs with the fence in mc_ep_check_tags(). */
	atomic_store_explicit(&ep->page->tag[h->slot], 0, memory_order_relaxed);
	atomic_thread_fence(memory_order_release);
	return 0;
}

int mc_ep_show(struct mc_ep_half *h, struct mc_diag *diag)
{
	struct mc_ep *ep = h->ep;
	struct mc_ep_slot *slot = &ep->slot[h->slot];
	uint64_t v = atomic_load_explicit(&ep->page->word, memory_order_relaxed);
	int rc = ep->net && !(v & MC_EP_FROZEN) ? mc_ep_net_show(h) : 0;

	if (rc < 0)
		return rc;
	atomic_store_explicit(&ep->page->tag[h->slot], h->word, memory_order_relaxed);
	do {
		if (v & MC_EP_FROZEN)
			return say(ep, diag);
		/* release: the slot */
	} while (!atomic_compare_exchange_weak_explicit(
	    &ep->page->word, &v, h->word, memory_order_release, memory_order_relaxed));
	mc_coll_ring(ep->coll->page);
	slot->word = h->word;
	slot->ranks = h->wanted;
	slot->is_lent = false;
	atomic_store_explicit(&slot->is_open, true, memory_order_relaxed);
	ep->half++;
	ep->count[h->call.kind]++;
	return 0;
}

/* ---- end ---- */

static int differ(const struct mc_ep_half *h, unsigned q, const struct mc_ep_call *theirs,
		  struct mc_diag *diag)
{
	const struct mc_ep_call *c[2] = {&h->call, theirs};

	mc_diag_set(diag,
		    "rank %u is in a %s of %u experts on %u ranks, rows of %u, top-%u, %u tokens, "
		    "format %u; rank %u in a %s of %u on %u, rows of %u, top-%u, %u tokens, format "
		    "%u",
		    h->ep->coll->rank, c[0]->kind ? "combine" : "dispatch", c[0]->experts,
		    c[0]->ranks, c[0]->hidden, c[0]->topk, c[0]->tokens_max, c[0]->format, q,
		    c[1]->kind ? "combine" : "dispatch", c[1]->experts, c[1]->ranks, c[1]->hidden,
		    c[1]->topk, c[1]->tokens_max, c[1]->format);
	return -MC_E_INVAL;
}

static int check_head(const struct mc_ep_half *h, unsigned q, struct mc_diag *diag)
{
	const void *at = mc_ep_slot_at(h->ep->peer[q].memory, h->slot);
	struct mc_ep_head head = *(const struct mc_ep_head *)at;

	if (memcmp(&head.call, &h->call, sizeof(head.call)) != 0)
		return differ(h, q, &head.call, diag);
	if (head.tokens > h->shape.tokens_max) {
		mc_diag_set(diag, "rank %u shows %u tokens, room is for %u", q, head.tokens,
			    h->shape.tokens_max);
		return -MC_E_INVAL;
	}
	return 0;
}

/* On one host: what is shown is in memory, and so is who has not. */
static int wait_near(struct mc_ep_half *h, uint64_t *ret_taken, struct mc_diag *diag)
{
	struct mc_ep *ep = h->ep;
	uint64_t taken = MC_COLL_BIT(ep->coll->rank);
	struct limits lim = limits_of(h);
	unsigned q;

	mc_coll_each(q, h->wanted & ~taken)
	{
		struct mc_ep_page *page = ep->peer[q].page;
		struct look look = {ep, ep->peer[q].p, page, &page->word, h->word, false};
		int rc = wait_rank(h, q, &look, h->word, &lim, &ep->slot[h->slot].spin, diag);

		if (rc < 0)
			return rc;
		if (rc == MC_COLL_THERE)
			taken |= MC_COLL_BIT(q);
	}
	*ret_taken = taken;
	return 0;
}

static int wait_far(struct mc_ep_half *h, uint64_t *ret_taken, struct mc_diag *diag)
{
	struct mc_ep *ep = h->ep;
	int rc = mc_ep_net_wait(h, ret_taken, diag);

	if (rc == 0)
		atomic_fetch_or_explicit(&ep->masked, h->wanted & ~*ret_taken,
					 memory_order_relaxed);
	return rc == -MC_E_STALE ? say(ep, diag) : rc;
}

int mc_ep_wait_all(struct mc_ep_half *h, uint64_t *ret_taken, struct mc_diag *diag)
{
	struct mc_ep *ep = h->ep;
	uint64_t taken = 0;
	unsigned q;
	int rc;

	if (mc_ep_epoch_of(h->word) != ep->epoch)
		return say(ep, diag);
	rc = ep->net ? wait_far(h, &taken, diag) : wait_near(h, &taken, diag);
	if (rc < 0)
		return rc;
	*ret_taken = taken;
	mc_coll_each(q, taken & ~MC_COLL_BIT(ep->coll->rank))
	{
		int head = check_head(h, q, diag);

		rc = head < 0 ? head : rc;
	}
	return rc;
}

int mc_ep_check_tags(struct mc_ep_half *h, uint64_t taken, struct mc_diag *diag)
{
	struct mc_ep *ep = h->ep;
	unsigned q;

	/* After the last byte was read: pairs with the fence in mc_ep_take_slot(). */
	atomic_thread_fence(memory_order_acquire);
	mc_coll_each(q, taken & ~MC_COLL_BIT(ep->coll->rank))
	{
		if (atomic_load_explicit(&ep->peer[q].page->tag[h->slot], memory_order_relaxed) !=
		    h->word)
			return say(ep, diag);
	}
	return 0;
}

int mc_ep_finish(struct mc_ep_half *h, uint64_t taken, int rc, struct mc_coll_result *ret_result)
{
	struct mc_ep *ep = h->ep;
	uint64_t lost = h->wanted & ~taken;

	for (uint32_t q = 0; rc == 0 && h->active && q < h->shape.ranks; q++)
		if (!(taken >> q & 1))
			h->active[q] = 0;
	if (ret_result)
		*ret_result = (struct mc_coll_result){.rc = rc,
						      .seq = mc_ep_half_of(h->word),
						      .ranks = rc == 0 ? taken : 0,
						      .failed = rc == 0 ? lost : 0};
	if (mc_ep_epoch_of(h->word) == ep->epoch) {
		/* release: this rank has read what it wanted */
		atomic_store_explicit(&ep->page->done[h->slot], h->word, memory_order_release);
		mc_coll_ring(ep->coll->page);
		if (ep->net)
			mc_ep_net_done(h);
		atomic_store_explicit(&ep->slot[h->slot].is_open, false, memory_order_release);
	}
	mc_ep_half_drop(h);
	return rc;
}
