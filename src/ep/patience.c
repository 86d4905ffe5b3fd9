/*
 * patience.c: the caller of a half, over hosts, waits until the loop has decided who is in it
 * (deal.c), and says whom to do without: who is dead, who is silent, who is too late.
 *
 * Who hears nothing must not take out those who hear each other. So, before it does without a rank
 * whose death nobody has proved, it asks all: those who answer, with itself, have to be enough to
 * go on. If they are not, it is the one that is left out, and says so.
 */
#include "base/clock.h"
#include "base/sync.h"
#include "coll/net.h"
#include "ep/net.h"

#define ANSWER_NS (200 * MC_NS_PER_MS) /* for what others' loops tell by themselves */

struct waiting {
	struct mc_ep_half *h;
	uint64_t patience_ns, group_ns; /* deadlines */
	uint64_t answer_ns;		/* of those who have not told, though all bytes are here */
	uint64_t late_ns;		/* then the group asks whether they are there */
	uint64_t stuck_ns;		/* deadline of those who may decide otherwise; 0: none do */
	uint64_t ask, ask_ns; /* number of the question and deadline of answers; 0: none */
	uint64_t out;	      /* who was done without at the last look */
	struct mc_ep_look look;
	bool is_patient;
};

static uint64_t twice(uint64_t ns)
{
	return ns > UINT64_MAX / 2 ? UINT64_MAX : 2 * ns;
}

/* How long others may take for what is not their callers' matter. */
static uint64_t answer_time(const struct waiting *w)
{
	return w->is_patient ? w->h->ep->coll->net->silent_ns
			     : mc_max(twice(w->h->timeout_ns), ANSWER_NS);
}

static void leave(const struct waiting *w)
{
	struct mc_ep_net *net = w->h->ep->net;

	pthread_mutex_lock(&net->lock);
	if (net->deal[w->h->slot].decided != w->h->word)
		mc_ep_deal_leave(net);
	pthread_mutex_unlock(&net->lock);
	mc_ep_net_stir(net);
}

static bool give_up(struct waiting *w, uint64_t ranks)
{
	struct mc_ep *ep = w->h->ep;
	unsigned q;

	mc_coll_each(q, ranks)(void) mc_ep_freeze(ep, q, UINT64_MAX);
	if (ranks)
		mc_ep_net_stir(ep->net);
	return ranks != 0;
}

/* Do without them, if that is not this rank's own fault. @return true: look again */
static bool accuse(struct waiting *w, uint64_t ranks, uint64_t now_ns)
{
	struct mc_ep_net *net = w->h->ep->net;
	uint64_t unsure = mc_ep_deal_unsure(net, ranks);

	if (give_up(w, ranks & ~unsure))
		return true;
	if (!unsure) {
		w->ask = 0;
		return false;
	}
	if (!w->ask) {
		w->ask = mc_ep_deal_ask(w->h);
		w->ask_ns = mc_time_after(now_ns, answer_time(w));
	}
	if (mc_ep_deal_is_heard(w->h, w->ask)) {
		w->ask = 0;
		return give_up(w, unsure);
	}
	if (now_ns < w->ask_ns)
		return false;
	leave(w);
	return true;
}

/* Whom the group holds for dead or silent. */
static uint64_t gone_of(const struct waiting *w)
{
	uint64_t gone = 0;
	unsigned q;

	mc_coll_each(q, w->look.missing | w->look.silent)
	{
		if (mc_coll_peer_is_lost(w->h->ep->peer[q].p))
			gone |= MC_COLL_BIT(q);
	}
	return gone;
}

/* A connection to a rank that lives. @return true: look again */
static bool lose_connection(const struct waiting *w)
{
	struct mc_ep *ep = w->h->ep;
	unsigned q;

	mc_coll_each(q, w->look.missing | w->look.silent)
	{
		if (mc_ep_link_is_cut(&ep->net->link[q]) && !mc_coll_peer_is_lost(ep->peer[q].p)) {
			mc_ep_net_break(ep->net, q);
			return true;
		}
	}
	return false;
}

/* All have told, and it is not enough. @return true: look again */
static bool lose_self(struct waiting *w, uint64_t now_ns)
{
	bool is_told = !w->look.missing && !w->look.silent;

	/* One of those who are out may be dead by now: nobody else tells the loop. */
	if (is_told)
		mc_ep_net_stir(w->h->ep->net);
	if (!is_told || !w->look.unsure) {
		w->stuck_ns = 0;
		return false;
	}
	if (!w->stuck_ns)
		w->stuck_ns = mc_time_after(now_ns, answer_time(w));
	if (now_ns < w->stuck_ns)
		return false;
	leave(w);
	return true;
}

/* Whom to do without now. @return true: look again */
static bool lose(struct waiting *w, uint64_t now_ns)
{
	const struct mc_ep_look *l = &w->look;
	uint64_t suspects = gone_of(w);

	if (w->is_patient && lose_connection(w))
		return true;
	/* Each change gives the others time to tell again. */
	if (l->out != w->out) {
		w->out = l->out;
		w->ask = 0;
		w->answer_ns = mc_time_after(now_ns, mc_max(twice(w->h->timeout_ns), ANSWER_NS));
	}
	if (!w->is_patient && now_ns >= w->patience_ns)
		suspects |= l->missing;
	if (!w->is_patient && !l->missing && now_ns >= w->answer_ns)
		suspects |= l->silent;
	if (accuse(w, suspects, now_ns) || lose_self(w, now_ns))
		return true;
	if (now_ns >= w->late_ns) {
		mc_coll_net_late(w->h->ep->coll, l->missing | l->silent | l->unsure);
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
	if (w->stuck_ns)
		until_ns = mc_min(until_ns, w->stuck_ns);
	if (w->ask)
		until_ns = mc_min(until_ns, w->ask_ns);
	(void)!mc_futex_wait(&g->bell, bell, until_ns);
	return 0;
}

static struct waiting waiting_make(struct mc_ep_half *h, uint64_t now_ns)
{
	struct mc_coll *g = h->ep->coll;
	struct waiting w = {.h = h,
			    .patience_ns = mc_time_after(now_ns, h->timeout_ns),
			    .group_ns = mc_time_after(now_ns, g->timeout_ns),
			    .late_ns = mc_time_after(now_ns, MC_COLL_LATE_NS)};

	w.is_patient = mc_ep_is_patient(h, w.patience_ns, w.group_ns);
	w.answer_ns = mc_time_after(w.patience_ns, mc_max(h->timeout_ns, ANSWER_NS));
	return w;
}

int mc_ep_net_may_lose(struct mc_ep_half *h, unsigned q)
{
	struct mc_ep_net *net = h->ep->net;
	struct mc_coll *g = h->ep->coll;
	uint64_t now_ns = mc_now_ns();
	struct waiting w = waiting_make(h, now_ns);

	while (!mc_ep_is_frozen(h->ep, q) && mc_ep_deal_unsure(net, MC_COLL_BIT(q))) {
		uint32_t bell = atomic_load_explicit(&g->bell, memory_order_acquire);

		if (!w.ask) {
			w.ask = mc_ep_deal_ask(h);
			w.ask_ns = mc_time_after(now_ns, answer_time(&w));
		}
		if (mc_ep_deal_is_heard(h, w.ask))
			break;
		now_ns = mc_now_ns();
		if (now_ns >= w.ask_ns)
			leave(&w);
		if (atomic_load_explicit(&h->ep->page->word, memory_order_acquire) & MC_EP_FROZEN)
			return -MC_E_STALE;
		if (atomic_load_explicit(&g->is_aborted, memory_order_relaxed))
			return -MC_E_CANCELED;
		(void)!mc_futex_wait(&g->bell, bell, w.ask_ns);
	}
	return 0;
}

int mc_ep_net_wait(struct mc_ep_half *h, uint64_t *ret_ranks, struct mc_diag *diag)
{
	struct mc_coll *g = h->ep->coll;
	uint64_t now_ns = mc_now_ns();
	struct waiting w = waiting_make(h, now_ns);
	int rc = 0;

	while (rc == 0) {
		uint32_t bell = atomic_load_explicit(&g->bell, memory_order_acquire);

		rc = mc_ep_deal_look(h, &w.look, ret_ranks);
		now_ns = mc_now_ns();
		if (rc == 0 && !lose(&w, now_ns))
			rc = sleep_a_while(&w, bell, now_ns);
	}
	if (rc > 0)
		return 0;
	if (rc == -MC_E_TIMEDOUT)
		mc_diag_set(diag, "ranks %llx (bits) have not come to a half of expert parallelism",
			    (unsigned long long)(w.look.missing | w.look.silent | w.look.unsure));
	return rc;
}
