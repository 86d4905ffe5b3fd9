/*
 * deal.c: who is in a half, over hosts.
 *
 * A rank does without another when the group holds that for dead or silent, when it says that it is
 * out, or when the caller's patience ends (patience.c): it freezes the word that it has of it, so
 * what it has of it stays what it is. What it does without (out) only grows within an epoch, and is
 * told, also to those in it; whoever hears of it does the same.
 *
 * A rank that has the bytes of all others but those it does without tells them that: out, and whose
 * bytes it has. When all that it does not do without have told the same out, and nobody can decide
 * anything else, the half is decided: in it is whose bytes all of them have. Nobody is in another
 * half's way: all of this happens on the loop, as soon as a half has begun, however late the caller
 * asks for its end.
 *
 * Nobody else can, when each of `out` is dead by its own host's word, or has said OUT; or when
 * those who told are more than half of who is wanted in the half, or half of it with its lowest
 * slot. So of two sides that cannot hear each other one goes on at most, and the halves of the
 * other end as those of a rank that was left out.
 *
 * A rank that hears that it is done without obeys, and says OUT to all, if those who say so are
 * enough as above, or if it has not begun the half, which is what being late means on one host. If
 * it has, and they are too few, the network is what is late, perhaps in one direction only: it does
 * without the one who says so, too, and tells it.
 *
 * What a rank has of the others cannot change any more once it has told (it has them, or has frozen
 * them), so a later decision, by those who live when more have died, is the same; unless one of the
 * dead was the only one that missed somebody, and then a rank that has decided before says so
 * (final), also when it leaves. Two sides that do without each other do not: whoever decided last
 * with the smaller one has ended that half by itself, and is told so by its next call.
 *
 * A lost connection to a rank that lives ends the epoch where callers wait for ever (net.h).
 */
#include <string.h>

#include "base/mem.h"
#include "base/sync.h"
#include "coll/net.h"
#include "ep/net.h"

static uint64_t self(const struct mc_ep_net *net)
{
	return MC_COLL_BIT(net->ep->coll->rank);
}

static bool is_own_frozen(const struct mc_ep *ep)
{
	return atomic_load_explicit(&ep->page->word, memory_order_acquire) & MC_EP_FROZEN;
}

/* Whoever waits for a half looks again. */
static void ring(const struct mc_ep_net *net)
{
	struct mc_coll *g = net->ep->coll;

	atomic_fetch_add_explicit(&g->bell, 1, memory_order_release);
	mc_futex_wake(&g->bell, UINT32_MAX >> 1);
}

/* And whoever waits for a rank. */
static void ring_all(const struct mc_ep_net *net)
{
	unsigned q;

	ring(net);
	mc_coll_each(q, net->members) mc_coll_ring(net->ep->peer[q].p->page);
}

/* Of these ranks: those that this one does without; those whose bytes of the half it has. */
static uint64_t out_of(const struct mc_ep_net *net, uint64_t ranks)
{
	uint64_t out = 0;
	unsigned q;

	mc_coll_each(q, ranks & net->members) out |=
	    mc_ep_is_frozen(net->ep, q) ? MC_COLL_BIT(q) : 0;
	return out;
}

static uint64_t here_of(const struct mc_ep_net *net, uint64_t ranks, uint64_t word)
{
	uint64_t here = ranks & self(net);
	unsigned q;

	mc_coll_each(q, ranks & net->members)
	{
		const struct mc_ep_page *page = net->ep->peer[q].page;

		/* acquire: its bytes */
		if (atomic_load_explicit(&page->word, memory_order_acquire) >= word)
			here |= MC_COLL_BIT(q);
	}
	return here;
}

/* Of two parts without a common rank one is, at most. */
static bool is_enough(uint64_t part, uint64_t whole)
{
	int has = 2 * __builtin_popcountll(part & whole), of = __builtin_popcountll(whole);

	return has > of || (has == of && part & whole & -whole);
}

/* Those of these ranks that might still decide something, for all this one knows. */
static uint64_t unsure_of(const struct mc_ep_net *net, uint64_t ranks)
{
	uint64_t unsure = ranks & ~net->left;
	unsigned q;

	mc_coll_each(q, unsure)
	{
		const struct mc_coll_peer *p = net->ep->peer[q].p;

		if (atomic_load_explicit(&p->page->state, memory_order_acquire) == MC_COLL_LEFT ||
		    atomic_load_explicit(&p->wire->fate, memory_order_acquire) == MC_COLL_DEAD)
			unsure &= ~MC_COLL_BIT(q);
	}
	return unsure;
}

static bool may_decide(const struct mc_ep_net *net, uint64_t wanted, uint64_t out)
{
	return is_enough(wanted & ~out, wanted) || unsure_of(net, out) == 0;
}

/* ---- deciding; on the loop, under the lock ---- */

/* Where ranks call different things a half has different slots. */
static bool told_of(const struct mc_ep_net *net, unsigned q, uint64_t word, uint64_t *ret_out,
		    uint64_t *ret_has)
{
	for (unsigned s = 0; s < MC_EP_SLOTS; s++) {
		const struct mc_ep_deal *d = &net->deal[s];

		if (d->told[q].word == word) {
			*ret_out = d->told[q].out;
			*ret_has = d->told[q].has;
			return true;
		}
	}
	return false;
}

static void decide(struct mc_ep_net *net, struct mc_ep_deal *d, uint64_t ranks)
{
	d->decided = d->word;
	d->ranks = ranks;
	ring(net);
}

static void tell(struct mc_ep_net *net, unsigned slot, uint64_t out, uint64_t here)
{
	struct mc_ep_deal *d = &net->deal[slot];
	const struct mc_ep_frame_head h = {.type = MC_EP_FRAME_TOLD,
					   .slot = slot,
					   .word = d->word,
					   .a = out,
					   .b = here,
					   .c = d->wanted};

	if (d->has_told && d->told_out == out)
		return;
	d->has_told = true;
	d->told_out = out;
	/* Also those that are done without: so that they know. */
	mc_ep_net_send(net, d->wanted, &h);
}

static void turn(struct mc_ep_net *net, unsigned slot)
{
	struct mc_ep_deal *d = &net->deal[slot];
	uint64_t out, here, ranks;
	unsigned q;

	if (d->word == 0 || d->decided == d->word || is_own_frozen(net->ep))
		return;
	out = out_of(net, d->wanted);
	here = here_of(net, d->wanted, d->word);
	if (d->wanted & ~(out | here))
		return;
	tell(net, slot, out, here);
	ranks = here;
	mc_coll_each(q, d->wanted & ~out & ~self(net))
	{
		uint64_t theirs, has;

		if (!told_of(net, q, d->word, &theirs, &has) || (theirs & d->wanted) != out)
			return;
		ranks &= has;
	}
	if (may_decide(net, d->wanted, out))
		decide(net, d, ranks);
}

void mc_ep_deal_turn(struct mc_ep_net *net)
{
	for (unsigned s = 0; s < MC_EP_SLOTS; s++)
		turn(net, s);
}

/* ---- hearing; on the loop ---- */

static void send_all(struct mc_ep_net *net, enum mc_ep_frame type, uint64_t a)
{
	const struct mc_ep_frame_head h = {
	    .type = type, .word = net->epoch << MC_EP_EPOCH_BITS, .a = a};

	mc_ep_net_send(net, net->members, &h);
}

static bool freeze_self(struct mc_ep_net *net)
{
	return !(
	    atomic_fetch_or_explicit(&net->ep->page->word, MC_EP_FROZEN, memory_order_acq_rel) &
	    MC_EP_FROZEN);
}

void mc_ep_deal_leave(struct mc_ep_net *net)
{
	if (freeze_self(net))
		send_all(net, MC_EP_FRAME_OUT, 0);
	ring_all(net);
}

static void on_broken(struct mc_ep_net *net, uint64_t pair)
{
	if (freeze_self(net)) {
		atomic_store_explicit(&net->broken, pair, memory_order_relaxed);
		send_all(net, MC_EP_FRAME_BROKEN, pair);
	}
	ring_all(net);
}

void mc_ep_net_break(struct mc_ep_net *net, unsigned q)
{
	pthread_mutex_lock(&net->lock);
	on_broken(net, self(net) | MC_COLL_BIT(q));
	pthread_mutex_unlock(&net->lock);
	mc_ep_net_stir(net);
}

static void on_show(struct mc_ep_net *net, unsigned q, const struct mc_ep_frame_head *h)
{
	struct mc_ep_page *page = net->ep->peer[q].page;
	uint64_t v = atomic_load_explicit(&page->word, memory_order_relaxed);

	atomic_store_explicit(&page->tag[h->slot], h->word, memory_order_relaxed);
	do {
		if ((mc_ep_epoch_of(v) == net->epoch && (v & MC_EP_FROZEN)) || v >= h->word)
			return;
		/* release: the slot */
	} while (!atomic_compare_exchange_weak_explicit(
	    &page->word, &v, h->word, memory_order_release, memory_order_relaxed));
}

static bool has_begun(const struct mc_ep_net *net, uint64_t word)
{
	bool has = false;

	for (unsigned s = 0; s < MC_EP_SLOTS; s++)
		has |= net->deal[s].word >= word;
	return has;
}

/* `q` does without this rank. */
static void on_left_out(struct mc_ep_net *net, unsigned q, const struct mc_ep_frame_head *h)
{
	bool is_ignored = mc_ep_is_frozen(net->ep, q);
	struct mc_ep_frame_head answer = *h;

	/* Who is with both of us decides, but they should not both go. */
	if (is_ignored && q > net->ep->coll->rank && is_enough(h->c & ~out_of(net, h->c), h->c))
		return;
	if (is_enough(h->c & ~h->a, h->c) || (!is_ignored && !has_begun(net, h->word))) {
		mc_ep_deal_leave(net);
		return;
	}
	if (is_ignored) /* it has been told */
		return;
	(void)mc_ep_freeze(net->ep, q, UINT64_MAX);
	answer.a = out_of(net, net->members);
	answer.b = 0;
	mc_ep_net_send(net, MC_COLL_BIT(q), &answer);
	ring(net);
}

static void on_told(struct mc_ep_net *net, unsigned q, const struct mc_ep_frame_head *h)
{
	struct mc_ep_deal *d = &net->deal[h->slot];
	unsigned p;

	if (h->a & self(net)) {
		on_left_out(net, q, h);
		return;
	}
	if (mc_ep_is_frozen(net->ep, q))
		return;
	mc_coll_each(p, h->a & net->members)(void) mc_ep_freeze(net->ep, p, UINT64_MAX);
	d->told[q].word = h->word;
	d->told[q].out = h->a;
	d->told[q].has = h->b;
	if (d->decided == h->word && (h->a & d->wanted) != d->told_out) {
		const struct mc_ep_frame_head final = {
		    .type = MC_EP_FRAME_FINAL, .slot = h->slot, .word = h->word, .a = d->ranks};

		mc_ep_net_send(net, MC_COLL_BIT(q), &final);
	}
}

static void on_final(struct mc_ep_net *net, unsigned q, const struct mc_ep_frame_head *h)
{
	struct mc_ep_deal *d = &net->deal[h->slot];

	/* Others may have decided by what this one told, when it did without `q`. */
	if (d->word != h->word || d->decided == h->word || mc_ep_is_frozen(net->ep, q) ||
	    is_own_frozen(net->ep))
		return;
	/* Whoever decided has heard that we have them. */
	if (h->a & ~here_of(net, d->wanted, d->word))
		mc_ep_deal_leave(net);
	else
		decide(net, d, h->a);
}

static void on_out(struct mc_ep_net *net, unsigned q)
{
	net->left |= MC_COLL_BIT(q);
	(void)mc_ep_freeze(net->ep, q, UINT64_MAX);
	ring(net);
}

static void on_ask(struct mc_ep_net *net, unsigned q, const struct mc_ep_frame_head *h)
{
	struct mc_ep_frame_head answer = *h;

	answer.type = MC_EP_FRAME_ANSWER;
	mc_ep_net_send(net, MC_COLL_BIT(q), &answer);
}

static void on_done(struct mc_ep_net *net, unsigned q, const struct mc_ep_frame_head *h)
{
	/* release: nothing, but is_there() acquires it */
	atomic_store_explicit(&net->ep->peer[q].page->done[h->slot], h->word, memory_order_release);
	mc_coll_ring(net->ep->peer[q].p->page);
}

void mc_ep_deal_heard(struct mc_ep_net *net, unsigned q, const struct mc_ep_frame_head *h)
{
	pthread_mutex_lock(&net->lock);
	switch (h->type) {
	case MC_EP_FRAME_SHOW:
		on_show(net, q, h);
		break;
	case MC_EP_FRAME_TOLD:
		on_told(net, q, h);
		break;
	case MC_EP_FRAME_FINAL:
		on_final(net, q, h);
		break;
	case MC_EP_FRAME_OUT:
		on_out(net, q);
		break;
	case MC_EP_FRAME_BROKEN:
		if (!mc_ep_is_frozen(net->ep, q))
			on_broken(net, h->a);
		break;
	case MC_EP_FRAME_ASK:
		on_ask(net, q, h);
		break;
	case MC_EP_FRAME_ANSWER:
		net->answered[q] = h->a;
		ring(net);
		break;
	default:
		on_done(net, q, h);
	}
	pthread_mutex_unlock(&net->lock);
}

/* ---- halves ---- */

static int outs_make(struct mc_ep_half *h, struct mc_ep_out **outs)
{
	struct mc_ep *ep = h->ep;
	const struct mc_ep_frame_head head = {
	    .type = MC_EP_FRAME_SHOW, .slot = h->slot, .word = h->word};
	const uint8_t *slot = mc_ep_slot_at(ep->memory, h->slot);
	unsigned q;

	mc_coll_each(q, h->wanted & ~self(ep->net))
	{
		struct mc_ep_parts parts = {0};
		int rc = h->parts(h, q, &parts);

		outs[q] = rc < 0 ? NULL : mc_ep_net_out(&head, slot, &parts);
		mc_free(parts.part);
		if (!outs[q])
			return -MC_E_NOMEM;
	}
	return 0;
}

int mc_ep_net_show(struct mc_ep_half *h)
{
	struct mc_ep_out *outs[MC_COLL_RANKS_MAX] = {0};
	struct mc_ep_net *net = h->ep->net;
	struct mc_ep_deal *d = &net->deal[h->slot];
	int rc = outs_make(h, outs);
	unsigned q;

	if (rc < 0) {
		for (q = 0; q < MC_COLL_RANKS_MAX; q++)
			mc_ep_net_out_free(outs[q]);
		return rc;
	}
	pthread_mutex_lock(&net->lock);
	d->word = h->word;
	d->wanted = h->wanted;
	d->has_told = false;
	mc_coll_each(q, h->wanted & ~self(net)) mc_ep_net_queue(net, q, outs[q]);
	pthread_mutex_unlock(&net->lock);
	mc_ep_net_stir(net);
	return 0;
}

void mc_ep_net_done(struct mc_ep_half *h)
{
	struct mc_ep_net *net = h->ep->net;
	const struct mc_ep_frame_head head = {
	    .type = MC_EP_FRAME_DONE, .slot = h->slot, .word = h->word};

	pthread_mutex_lock(&net->lock);
	mc_ep_net_send(net, h->wanted, &head);
	pthread_mutex_unlock(&net->lock);
	mc_ep_net_stir(net);
}

/* ---- for whoever waits for the decision ---- */

int mc_ep_deal_look(const struct mc_ep_half *h, struct mc_ep_look *ret, uint64_t *ret_ranks)
{
	struct mc_ep *ep = h->ep;
	struct mc_ep_net *net = ep->net;
	const struct mc_ep_deal *d = &net->deal[h->slot];
	int rc = 0;
	unsigned q;

	pthread_mutex_lock(&net->lock);
	if (d->decided == h->word) {
		*ret_ranks = d->ranks;
		rc = 1;
	} else if (is_own_frozen(ep) || d->word != h->word) {
		rc = -MC_E_STALE;
	} else {
		uint64_t out = out_of(net, h->wanted);

		ret->out = out;
		ret->missing = h->wanted & ~out & ~here_of(net, h->wanted, h->word);
		ret->silent = 0;
		mc_coll_each(q, h->wanted & ~out & ~self(net))
		{
			uint64_t theirs, has;

			if (!told_of(net, q, h->word, &theirs, &has) || (theirs & h->wanted) != out)
				ret->silent |= MC_COLL_BIT(q);
		}
		ret->unsure = may_decide(net, h->wanted, out) ? 0 : unsure_of(net, out);
	}
	pthread_mutex_unlock(&net->lock);
	return rc;
}

uint64_t mc_ep_deal_unsure(struct mc_ep_net *net, uint64_t ranks)
{
	uint64_t unsure;

	pthread_mutex_lock(&net->lock);
	unsure = unsure_of(net, ranks);
	pthread_mutex_unlock(&net->lock);
	return unsure;
}

uint64_t mc_ep_deal_ask(const struct mc_ep_half *h)
{
	struct mc_ep_net *net = h->ep->net;
	uint64_t number;

	pthread_mutex_lock(&net->lock);
	number = ++net->nasks;
	send_all(net, MC_EP_FRAME_ASK, number);
	pthread_mutex_unlock(&net->lock);
	mc_ep_net_stir(net);
	return number;
}

bool mc_ep_deal_is_heard(const struct mc_ep_half *h, uint64_t ask)
{
	struct mc_ep_net *net = h->ep->net;
	uint64_t heard = self(net);
	bool is_enough_heard;
	unsigned q;

	pthread_mutex_lock(&net->lock);
	mc_coll_each(q, h->wanted & ~out_of(net, h->wanted) & ~heard)
	{
		if (net->answered[q] >= ask)
			heard |= MC_COLL_BIT(q);
	}
	is_enough_heard = may_decide(net, h->wanted, h->wanted & ~heard);
	pthread_mutex_unlock(&net->lock);
	return is_enough_heard;
}
