/*
 * deal.c: who is in a half, over hosts.
 *
 * A rank does without another when that is dead, or its connection is, or when the caller's
 * patience ends: it freezes the word that it has of it, so what it has of it stays what it is. What
 * it does without (out) only grows within an epoch, and is told, and whoever hears of it does the
 * same.
 *
 * A rank that has the bytes of all others but those it does without tells them that: out, and whose
 * bytes it has. When all that it does not do without have told the same out, the half is decided:
 * in it is whose bytes all of them have. Nobody is in another half's way: all of this happens on
 * the loop, as soon as a half has begun, however late the caller asks for its end.
 *
 * What a rank has of the others cannot change any more once it has told (it has them, or has frozen
 * them), so a later decision, by those who live when more have died, is the same; unless one of the
 * dead was the only one that missed somebody, and then a rank that has decided before says so
 * (final), also when it leaves.
 *
 * Two that do without each other: the lower slot goes on, the higher is left out.
 */
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"
#include "base/sync.h"
#include "coll/net.h"
#include "ep/net.h"

#define ANSWER_NS (200 * MC_NS_PER_MS) /* for what others' loops tell by themselves */

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
	const struct mc_ep_frame_head h = {
	    .type = MC_EP_FRAME_TOLD, .slot = slot, .word = d->word, .a = out, .b = here};

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
	decide(net, d, ranks);
}

void mc_ep_deal_turn(struct mc_ep_net *net)
{
	for (unsigned s = 0; s < MC_EP_SLOTS; s++)
		turn(net, s);
}

/* ---- hearing; on the loop ---- */

static void leave_out_self(struct mc_ep_net *net)
{
	atomic_fetch_or_explicit(&net->ep->page->word, MC_EP_FROZEN, memory_order_acq_rel);
	ring(net);
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

static void on_told(struct mc_ep_net *net, unsigned q, const struct mc_ep_frame_head *h)
{
	struct mc_ep_deal *d = &net->deal[h->slot];
	bool is_ignored = mc_ep_is_frozen(net->ep, q);
	unsigned p;

	if (h->a & self(net)) {
		/* We do without it, too. */
		if (!is_ignored || q < net->ep->coll->rank)
			leave_out_self(net);
		return;
	}
	if (is_ignored)
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

static void on_final(struct mc_ep_net *net, const struct mc_ep_frame_head *h)
{
	struct mc_ep_deal *d = &net->deal[h->slot];

	if (d->word != h->word || d->decided == h->word)
		return;
	/* Whoever decided has heard that we have them. */
	if (h->a & ~here_of(net, d->wanted, d->word))
		leave_out_self(net);
	else
		decide(net, d, h->a);
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
		on_final(net, h);
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

/* ---- waiting for the decision ---- */

struct waiting {
	struct mc_ep_half *h;
	uint64_t patience_ns, group_ns; /* deadlines */
	uint64_t answer_ns;		/* of those who have not told, though all bytes are here */
	uint64_t late_ns;		/* then the group asks whether they are there */
	uint64_t out;			/* who was done without at the last look */
	bool is_patient;
};

/* @return 1: *ret_ranks; 0: not yet; an error */
static int look(const struct mc_ep_half *h, uint64_t *ret_ranks, uint64_t *ret_missing,
		uint64_t *ret_silent)
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

		*ret_missing = h->wanted & ~out & ~here_of(net, h->wanted, h->word);
		*ret_silent = 0;
		mc_coll_each(q, h->wanted & ~out & ~self(net))
		{
			uint64_t theirs, has;

			if (!told_of(net, q, h->word, &theirs, &has) || (theirs & h->wanted) != out)
				*ret_silent |= MC_COLL_BIT(q);
		}
	}
	pthread_mutex_unlock(&net->lock);
	return rc;
}

static bool give_up(struct mc_ep *ep, uint64_t ranks)
{
	unsigned q;

	mc_coll_each(q, ranks)(void) mc_ep_freeze(ep, q, UINT64_MAX);
	if (ranks)
		mc_ep_net_stir(ep->net);
	return ranks != 0;
}

/* Whom to do without now. @return true: look again */
static bool lose(struct waiting *w, uint64_t missing, uint64_t silent, uint64_t now_ns)
{
	struct mc_ep *ep = w->h->ep;
	uint64_t gone = 0, out = out_of(ep->net, w->h->wanted);
	unsigned q;

	mc_coll_each(q, missing | silent) gone |=
	    mc_coll_peer_is_lost(ep->peer[q].p) ? MC_COLL_BIT(q) : 0;
	if (give_up(ep, gone))
		return true;
	/* Each change gives the others time to tell again. */
	if (out != w->out) {
		w->out = out;
		w->answer_ns = mc_time_after(now_ns, mc_max(2 * w->h->timeout_ns, ANSWER_NS));
	}
	if (!w->is_patient && now_ns >= w->patience_ns && give_up(ep, missing))
		return true;
	if (!w->is_patient && !missing && now_ns >= w->answer_ns && give_up(ep, silent))
		return true;
	if (now_ns >= w->late_ns) {
		mc_coll_net_late(ep->coll, missing | silent);
		w->late_ns = mc_time_after(now_ns, MC_COLL_LATE_NS);
	}
	return false;
}

static int sleep_a_while(const struct waiting *w, uint32_t bell, uint64_t now_ns)
{
	struct mc_coll *g = w->h->ep->coll;
	uint64_t until_ns = w->late_ns;

	if (w->is_patient && now_ns >= w->group_ns)
		return -MC_E_TIMEDOUT;
	if (atomic_load_explicit(&g->is_aborted, memory_order_relaxed))
		return -MC_E_CANCELED;
	if (w->is_patient)
		until_ns = mc_min(until_ns, w->group_ns);
	else if (now_ns < w->patience_ns)
		until_ns = mc_min(until_ns, w->patience_ns);
	else if (now_ns < w->answer_ns)
		until_ns = mc_min(until_ns, w->answer_ns);
	(void)!mc_futex_wait(&g->bell, bell, until_ns);
	return 0;
}

int mc_ep_net_wait(struct mc_ep_half *h, uint64_t *ret_ranks, struct mc_diag *diag)
{
	struct mc_coll *g = h->ep->coll;
	uint64_t now_ns = mc_now_ns(), missing = 0, silent = 0;
	struct waiting w = {.h = h,
			    .patience_ns = mc_time_after(now_ns, h->timeout_ns),
			    .group_ns = mc_time_after(now_ns, g->timeout_ns),
			    .late_ns = mc_time_after(now_ns, MC_COLL_LATE_NS),
			    .out = out_of(h->ep->net, h->wanted)};
	int rc = 0;

	w.is_patient = w.patience_ns > w.group_ns;
	w.answer_ns = mc_time_after(w.patience_ns, mc_max(h->timeout_ns, ANSWER_NS));
	while (rc == 0) {
		uint32_t bell = atomic_load_explicit(&g->bell, memory_order_acquire);

		rc = look(h, ret_ranks, &missing, &silent);
		now_ns = mc_now_ns();
		if (rc == 0 && !lose(&w, missing, silent, now_ns))
			rc = sleep_a_while(&w, bell, now_ns);
	}
	if (rc > 0)
		return 0;
	if (rc == -MC_E_TIMEDOUT)
		mc_diag_set(diag, "ranks %llx (bits) have not come to a half of expert parallelism",
			    (unsigned long long)(missing | silent));
	return rc;
}
