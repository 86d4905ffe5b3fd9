/*
 * net_view.c: changes of membership over hosts. Every rank has a board of its own; whoever makes a
 * change closes everybody's gate first (GATE), hears with the answers (STATE) what each has entered
 * and whom it knows, has all write the change down (CHANGE, WRITTEN), and then opens the gates
 * (OPEN). So nobody acts by a change that is not written down by all who live. Where its maker dies
 * on the way the others agree on its death first, and with that on the last change that anybody has
 * (net_agree.c); then the gates open by themselves.
 *
 * Two that bid at once find a gate closed, open theirs, and try again at different times.
 */
#include <string.h>

#include "base/clock.h"
#include "base/rand.h"
#include "base/sync.h"
#include "coll/net.h"

enum phase { PHASE_GATE, PHASE_CHANGE, PHASE_DONE };

/** One try to make a change. The loop's; the caller waits for `state`. */
struct mc_coll_bid {
	struct mc_coll *g;
	uint64_t id, add, drop;
	enum phase phase;
	uint64_t asked, answered; /* slots, in this phase */
	uint64_t was, dropped;
	uint64_t entered, inc[MC_COLL_RANKS_MAX];
	bool is_refused, is_orphan;
	_Atomic uint32_t state; /* 0: goes on; 1: over */
	int rc;			/* 0; 1: try again; an error */
	uint64_t seen[MC_COLL_RANKS_MAX];
	uint64_t known[MC_COLL_RANKS_MAX][MC_COLL_RANKS_MAX];
};

static struct mc_coll_board *board_of(struct mc_coll *g)
{
	return atomic_load_explicit(&g->board, memory_order_acquire);
}

static void gate_set(struct mc_coll *g, uint32_t holder)
{
	struct mc_coll_board *b = board_of(g);

	atomic_store_explicit(&b->gate, holder, memory_order_release);
	/* Closed, then looked: pairs with the fence in mc_coll_view_enter(). */
	atomic_thread_fence(memory_order_seq_cst);
	if (holder)
		return;
	atomic_fetch_add_explicit(&b->bell, 1, memory_order_release);
	mc_futex_wake_shared(&b->bell, UINT32_MAX >> 1);
}

/* Who has to tell of the dead is read off the last change: it stays until they have. */
static bool is_frozen(struct mc_coll *g)
{
	return atomic_load_explicit(&g->net->is_frozen, memory_order_acquire);
}

static uint32_t gate_holder(struct mc_coll *g)
{
	return atomic_load_explicit(&board_of(g)->gate, memory_order_acquire);
}

/* ---- the log ---- */

void mc_coll_view_last(struct mc_coll *g, struct mc_wr *w)
{
	const struct mc_coll_change *c = mc_coll_last_change(g);

	mc_wr_u64(w, atomic_load_explicit(&board_of(g)->count, memory_order_acquire));
	mc_wr_u64(w, c ? c->from_op : 0);
	mc_wr_u64(w, c ? c->active : 0);
	for (uint32_t s = 0; s < g->ranks_max; s++)
		mc_wr_u64(w, c ? c->inc[s] : 0);
}

bool mc_coll_view_adopt(struct mc_coll *g, struct mc_rd *r)
{
	struct mc_coll_board *b = board_of(g);
	uint64_t count = mc_rd_u64(r);
	struct mc_coll_change c = {0};

	c.from_op = mc_rd_u64(r);
	c.active = mc_rd_u64(r);
	for (uint32_t s = 0; s < g->ranks_max; s++)
		c.inc[s] = mc_rd_u64(r);
	if (r->is_bad)
		return false;
	if (count <= atomic_load_explicit(&b->count, memory_order_relaxed))
		return true;
	b->log[(count - 1) % MC_COLL_LOG] = c;
	/* release: the entry, before it counts */
	atomic_store_explicit(&b->count, count, memory_order_release);
	return true;
}

/* ---- bidding, on the loop ---- */

/* Whoever is added has the slot, also where nobody has computed since its owner died. */
static struct mc_coll_peer *peer_asked(const struct mc_coll_bid *bid, unsigned slot)
{
	struct mc_coll *g = bid->g;
	struct mc_coll_peer *next;

	pthread_mutex_lock(&g->lock);
	next = bid->add & MC_COLL_BIT(slot) ? g->next[slot] : NULL;
	pthread_mutex_unlock(&g->lock);
	return next ? next : mc_coll_view_peer(g, slot);
}

static void send_to(const struct mc_coll_bid *bid, enum mc_coll_ctl type, const struct mc_wr *w)
{
	unsigned s;

	mc_coll_each(s, bid->asked)
	{
		struct mc_coll_peer *p = peer_asked(bid, s);

		if (p)
			mc_coll_ctl_send(p, type, w->start, mc_wr_len(w));
	}
}

static void bid_end(struct mc_coll_bid *bid, int rc)
{
	struct mc_coll *g = bid->g;
	uint8_t frame[8];
	struct mc_wr w = mc_wr_make(frame, sizeof(frame));

	mc_wr_u64(&w, bid->id);
	send_to(bid, MC_COLL_CTL_OPEN, &w);
	if (gate_holder(g) == g->rank + 1)
		gate_set(g, 0);
	g->net->bid = NULL;
	bid->phase = PHASE_DONE;
	if (bid->is_orphan) {
		mc_free(bid);
		return;
	}
	bid->rc = rc;
	atomic_store_explicit(&bid->state, 1, memory_order_release);
	mc_futex_wake(&bid->state, 1);
}

/* The processes that would be in. @return slots of them */
static uint64_t alive(struct mc_coll_bid *bid)
{
	struct mc_coll *g = bid->g;
	uint64_t out = 0;
	unsigned s;

	pthread_mutex_lock(&g->lock);
	mc_coll_each(s, (bid->was & ~bid->drop) | bid->add)
	{
		struct mc_coll_peer *p = g->cur[s];

		if (bid->add & MC_COLL_BIT(s) && g->next[s])
			p = g->next[s];
		bid->inc[s] = s == g->rank ? g->inc : p ? p->inc : 0;
		if (s == g->rank || (p && !mc_coll_peer_is_lost(p)))
			out |= MC_COLL_BIT(s);
	}
	pthread_mutex_unlock(&g->lock);
	return out;
}

static bool is_known_by_all(const struct mc_coll_bid *bid, uint64_t active, uint64_t count)
{
	unsigned a, s;

	mc_coll_each(a, active)
	{
		if (bid->was & MC_COLL_BIT(a) && count >= MC_COLL_LOG &&
		    bid->seen[a] < count - MC_COLL_LOG + 1)
			return false;
		for (s = 0; s < bid->g->ranks_max; s++)
			if (s != a && active & MC_COLL_BIT(s) && bid->known[a][s] != bid->inc[s])
				return false;
	}
	return true;
}

static bool has_new(const struct mc_coll_bid *bid, uint64_t active)
{
	const struct mc_coll_change *last = mc_coll_last_change(bid->g);
	unsigned s;

	mc_coll_each(s, bid->add & active & ~MC_COLL_BIT(bid->g->rank))
	{
		struct mc_coll_peer *cur = bid->g->cur[s];

		if (bid->inc[s] != (last ? last->inc[s] : 0) && (!cur || bid->inc[s] != cur->inc))
			return true;
	}
	return false;
}

/* All gates are closed, everyone has said what it knows. */
static void write_down(struct mc_coll_bid *bid)
{
	struct mc_coll *g = bid->g;
	const struct mc_coll_change *last = mc_coll_last_change(g);
	uint64_t count = atomic_load_explicit(&board_of(g)->count, memory_order_relaxed);
	uint64_t now = alive(bid), from;
	uint8_t frame[32 + 8 * MC_COLL_RANKS_MAX];
	struct mc_wr w = mc_wr_make(frame, sizeof(frame));
	struct mc_rd own;

	bid->dropped = bid->add & ~now;
	if (now == bid->was && !has_new(bid, now)) {
		bid_end(bid, 0);
		return;
	}
	if (!is_known_by_all(bid, now, count)) {
		bid_end(bid, 1);
		return;
	}
	from = bid->entered + 1;
	if (last)
		from = mc_max(from, last->from_op);
	mc_wr_u64(&w, bid->id);
	mc_wr_u64(&w, count + 1);
	mc_wr_u64(&w, from);
	mc_wr_u64(&w, now);
	for (uint32_t s = 0; s < g->ranks_max; s++)
		mc_wr_u64(&w, now & MC_COLL_BIT(s) ? bid->inc[s] : 0);
	own = mc_rd_make(frame + 8, mc_wr_len(&w) - 8);
	(void)mc_coll_view_adopt(g, &own);
	bid->phase = PHASE_CHANGE;
	bid->answered = 0;
	send_to(bid, MC_COLL_CTL_CHANGE, &w);
}

/* Whoever cannot answer any more need not. */
static void forget_lost(struct mc_coll_bid *bid)
{
	unsigned s;

	mc_coll_each(s, bid->asked & ~bid->answered)
	{
		struct mc_coll_peer *p = peer_asked(bid, s);

		if (!p || mc_coll_peer_is_gone(p)) {
			bid->asked &= ~MC_COLL_BIT(s);
			bid->is_refused |= bid->phase == PHASE_GATE;
		} else if (mc_coll_peer_is_lost(p)) {
			mc_coll_agree_need(p);
		}
	}
}

/* What was told with the dead is written down by now. */
static void pay(struct mc_coll *g)
{
	struct mc_coll_peer *p = mc_coll_view_peer(g, g->net->owed_slot);
	uint8_t frame[8];
	struct mc_wr w = mc_wr_make(frame, sizeof(frame));

	g->net->owed = 0;
	mc_wr_u64(&w, g->net->owed_id);
	if (p && p->wire && !mc_coll_peer_is_gone(p))
		mc_coll_ctl_send(p, MC_COLL_CTL_WRITTEN, frame, sizeof(frame));
}

void mc_coll_view_turn(struct mc_coll *g)
{
	struct mc_coll_bid *bid = g->net->bid;

	if (g->net->owed && !is_frozen(g))
		pay(g);
	if (!bid)
		return;
	forget_lost(bid);
	if (bid->asked & ~bid->answered)
		return;
	if (bid->phase == PHASE_CHANGE)
		bid_end(bid, 0);
	else if (bid->is_refused || is_frozen(g))
		bid_end(bid, 1);
	else
		write_down(bid);
}

/* Slots of those whose last word is agreed on: operations do without them already, or will. */
static uint64_t gone(struct mc_coll *g)
{
	uint64_t out = 0;

	for (uint32_t s = 0; s < g->ranks_max; s++) {
		struct mc_coll_peer *p = s == g->rank ? NULL : mc_coll_view_peer(g, s);

		if (s != g->rank && (!p || mc_coll_peer_is_gone(p)))
			out |= MC_COLL_BIT(s);
	}
	return out;
}

static void bid_begin(void *arg)
{
	struct mc_coll_bid *bid = arg;
	struct mc_coll *g = bid->g;
	uint8_t frame[8];
	struct mc_wr w = mc_wr_make(frame, sizeof(frame));

	bid->was = mc_coll_active(g);
	bid->rc = 1;
	if (!(bid->was & MC_COLL_BIT(g->rank)))
		bid->rc = -MC_E_STALE;
	if (bid->rc < 0 || g->net->bid || gate_holder(g) != 0 || is_frozen(g)) {
		bid->phase = PHASE_DONE;
		atomic_store_explicit(&bid->state, 1, memory_order_release);
		return;
	}
	g->net->bid = bid;
	bid->id = ++g->net->nbids;
	gate_set(g, g->rank + 1);
	bid->entered = atomic_load_explicit(&g->page->entered, memory_order_acquire);
	bid->seen[g->rank] = atomic_load_explicit(&g->page->log_seen, memory_order_acquire);
	for (uint32_t s = 0; s < g->ranks_max; s++)
		bid->known[g->rank][s] =
		    atomic_load_explicit(&g->page->known[s], memory_order_acquire);
	bid->asked = (bid->was & ~gone(g)) | (bid->add & alive(bid));
	bid->asked &= ~MC_COLL_BIT(g->rank);
	mc_wr_u64(&w, bid->id);
	send_to(bid, MC_COLL_CTL_GATE, &w);
	mc_coll_view_turn(g);
}

static void bid_leave(void *arg)
{
	struct mc_coll_bid *bid = arg;

	if (bid->phase == PHASE_GATE)
		bid_end(bid, 1);
	else if (bid->phase == PHASE_CHANGE)
		bid->is_orphan = true; /* it has begun to be true */
}

void mc_coll_view_stop(struct mc_coll *g)
{
	struct mc_coll_bid *bid = g->net->bid;

	if (bid)
		bid_end(bid, -MC_E_CLOSED);
}

/* ---- being asked, on the loop ---- */

static void answer_gate(struct mc_coll *g, struct mc_coll_peer *p, uint64_t id)
{
	uint32_t holder = gate_holder(g);
	uint8_t frame[40 + 8 * MC_COLL_RANKS_MAX];
	struct mc_wr w = mc_wr_make(frame, sizeof(frame));
	bool is_free = (holder == 0 || holder == p->slot + 1) && !is_frozen(g);

	if (is_free)
		gate_set(g, p->slot + 1);
	mc_wr_u64(&w, id);
	mc_wr_u64(&w, is_free);
	mc_wr_u64(&w, atomic_load_explicit(&g->page->entered, memory_order_acquire));
	mc_wr_u64(&w, atomic_load_explicit(&board_of(g)->count, memory_order_acquire));
	mc_wr_u64(&w, atomic_load_explicit(&g->page->log_seen, memory_order_acquire));
	for (uint32_t s = 0; s < g->ranks_max; s++)
		mc_wr_u64(&w, atomic_load_explicit(&g->page->known[s], memory_order_acquire));
	mc_coll_ctl_send(p, MC_COLL_CTL_STATE, frame, mc_wr_len(&w));
}

static bool on_state(struct mc_coll_bid *bid, struct mc_coll_peer *p, struct mc_rd *r)
{
	bool is_free = mc_rd_u64(r) != 0;
	uint64_t entered = mc_rd_u64(r), count = mc_rd_u64(r);
	/* What a joiner has computed alone does not count. */
	bool is_member = bid->was & MC_COLL_BIT(p->slot) && mc_coll_view_peer(bid->g, p->slot) == p;

	bid->seen[p->slot] = mc_rd_u64(r);
	for (uint32_t s = 0; s < bid->g->ranks_max; s++)
		bid->known[p->slot][s] = mc_rd_u64(r);
	if (!mc_rd_is_done(r))
		return false;
	bid->is_refused |= !is_free;
	if (is_member) {
		bid->entered = mc_max(bid->entered, entered);
		/* Somebody is about to tell us of a change that we have not heard of. */
		bid->is_refused |=
		    count > atomic_load_explicit(&board_of(bid->g)->count, memory_order_relaxed);
	}
	return true;
}

/* An answer to what this rank bids for. @return false: it broke the protocol */
static bool on_answer(struct mc_coll_peer *p, enum mc_coll_ctl type, uint64_t id, struct mc_rd *r)
{
	struct mc_coll_bid *bid = p->coll->net->bid;
	enum phase phase = type == MC_COLL_CTL_STATE ? PHASE_GATE : PHASE_CHANGE;

	if (!bid || bid->id != id || bid->phase != phase || !(bid->asked & MC_COLL_BIT(p->slot)) ||
	    peer_asked(bid, p->slot) != p)
		return true; /* of an older one */
	if (type == MC_COLL_CTL_STATE && !on_state(bid, p, r))
		return false;
	bid->answered |= MC_COLL_BIT(p->slot);
	mc_coll_view_turn(p->coll);
	return true;
}

static bool on_change(struct mc_coll_peer *p, uint64_t id, struct mc_rd *r)
{
	struct mc_coll *g = p->coll;
	uint8_t frame[8];
	struct mc_wr w = mc_wr_make(frame, sizeof(frame));

	if (gate_holder(g) != p->slot + 1)
		return true; /* it was given up meanwhile */
	if (is_frozen(g)) {
		/* Its maker tells of it with the dead, or is among them. */
		g->net->owed = 1;
		g->net->owed_id = id;
		g->net->owed_slot = p->slot;
		return true;
	}
	if (!mc_coll_view_adopt(g, r) || !mc_rd_is_done(r))
		return false;
	mc_wr_u64(&w, id);
	mc_coll_ctl_send(p, MC_COLL_CTL_WRITTEN, frame, sizeof(frame));
	return true;
}

void mc_coll_view_frame(struct mc_coll_peer *p, enum mc_coll_ctl type, const uint8_t *bytes,
			size_t len)
{
	struct mc_rd r = mc_rd_make(bytes, len);
	uint64_t id = mc_rd_u64(&r);
	struct mc_coll *g = p->coll;
	bool is_good = !r.is_bad, is_cut;

	pthread_mutex_lock(&g->net->lock);
	is_cut = p->wire->is_cut;
	pthread_mutex_unlock(&g->net->lock);
	if (is_cut) /* what the dead say does not count */
		return;
	if (!is_good) {
		mc_coll_ctl_lost(p);
		return;
	}
	switch (type) {
	case MC_COLL_CTL_GATE:
		answer_gate(g, p, id);
		break;
	case MC_COLL_CTL_CHANGE:
		is_good = on_change(p, id, &r);
		break;
	case MC_COLL_CTL_OPEN:
		if (gate_holder(g) == p->slot + 1)
			gate_set(g, 0);
		mc_coll_stir(g);
		break;
	default:
		is_good = on_answer(p, type, id, &r);
	}
	if (!is_good)
		mc_coll_ctl_lost(p);
}

/* ---- asking for a change ---- */

/* @return 0; 1: try again; -MC_E_TIMEDOUT; -MC_E_STALE */
static int bid_once(struct mc_coll *g, uint64_t add, uint64_t drop, uint64_t deadline_ns,
		    uint64_t *ret_dropped)
{
	struct mc_coll_bid *bid = mc_calloc(1, sizeof(*bid));
	int rc = 0;

	if (!bid)
		return -MC_E_NOMEM;
	bid->g = g;
	bid->add = add;
	bid->drop = drop;
	mc_loop_call(g->hub->loop, bid_begin, bid);
	while (!atomic_load_explicit(&bid->state, memory_order_acquire) &&
	       mc_now_ns() < deadline_ns) {
		rc = mc_futex_wait(&bid->state, 0,
				   mc_min(deadline_ns, mc_now_ns() + MC_COLL_LATE_NS));
		if (rc == -MC_E_TIMEDOUT)
			mc_coll_net_late(g, mc_coll_active(g) | add);
	}
	mc_loop_call(g->hub->loop, bid_leave, bid);
	if (!atomic_load_explicit(&bid->state, memory_order_acquire))
		return -MC_E_TIMEDOUT; /* the loop frees it */
	rc = bid->rc;
	*ret_dropped = bid->dropped;
	mc_free(bid);
	return rc;
}

int mc_coll_net_activate(struct mc_coll *g, uint64_t add, uint64_t drop, uint64_t deadline_ns,
			 uint64_t *ret_dropped)
{
	struct mc_rand rng;
	int rc;

	mc_rand_seed(&rng, g->inc);
	while ((rc = bid_once(g, add, drop, deadline_ns, ret_dropped)) == 1) {
		uint32_t bell = atomic_load_explicit(&g->bell, memory_order_acquire);
		uint64_t now_ns = mc_now_ns();

		if (now_ns >= deadline_ns)
			return -MC_E_TIMEDOUT;
		/* Others may bid, too: not at the same time again. */
		(void)!mc_futex_wait(
		    &g->bell, bell,
		    mc_min(deadline_ns,
			   now_ns + MC_NS_PER_MS / 4 + mc_rand_below(&rng, 3 * MC_NS_PER_MS)));
	}
	return rc;
}
