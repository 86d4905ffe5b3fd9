/*
 * view.c: who is in the group, from which operation on.
 *
 * Who leaves by dying is read off the operations themselves: whoever's input was not complete in
 * operation s is not in s + 1, on every survivor. Who is made active or inactive is written to the
 * board's log, by one rank at a time, with the first operation it is true for. A rank that begins
 * an operation first says so (`entered`) and then looks at the gate; whoever makes a change first
 * takes the gate and then looks at what everyone has entered. So one of the two sees the other, and
 * the change names an operation that nobody has begun.
 */
#include "base/clock.h"
#include "base/sync.h"
#include "coll/net.h"

static bool is_known_gone(const struct mc_coll_peer *p)
{
	return !p || mc_coll_peer_is_gone(p);
}

/* The gate's holder has died or left: nobody will open it but us. Whoever is not known here lives.
 * A process that has only attached to the slot holds nothing. */
static bool is_holder_gone(struct mc_coll *g, uint32_t gate)
{
	const struct mc_coll_change *last = mc_coll_last_change(g);
	const struct mc_coll_peer *next;
	uint32_t slot = gate - 1;
	bool is_gone;

	if (slot >= g->ranks_max)
		return true;
	pthread_mutex_lock(&g->lock);
	next = g->next[slot];
	if (next && g->cur[slot] && (!last || last->inc[slot] != next->inc))
		next = NULL;
	is_gone = slot != g->rank && (g->cur[slot] || next) && is_known_gone(g->cur[slot]) &&
		  is_known_gone(next);
	pthread_mutex_unlock(&g->lock);
	return is_gone;
}

static void board_ring(struct mc_coll_board *b)
{
	atomic_fetch_add_explicit(&b->bell, 1, memory_order_release);
	mc_futex_wake_shared(&b->bell, UINT32_MAX >> 1);
}

static void gate_open(struct mc_coll_board *b)
{
	/* release: the log's new entry and count */
	atomic_store_explicit(&b->gate, 0, memory_order_release);
	board_ring(b);
}

/* Over hosts nobody tells of a holder whose host is silent: it is asked after. */
static uint64_t gate_look(const struct mc_coll *g, uint64_t deadline_ns)
{
	return g->net ? mc_min(deadline_ns, mc_now_ns() + MC_COLL_LATE_NS) : deadline_ns;
}

/* Sleep until the gate is open; one that was left behind is opened: its entry counts if the log's
 * count says so. */
static int gate_pass(struct mc_coll *g, struct mc_coll_board *b, uint64_t deadline_ns)
{
	int slept = 0;

	for (;;) {
		uint32_t bell = atomic_load_explicit(&b->bell, memory_order_acquire);
		uint32_t gate = atomic_load_explicit(&b->gate, memory_order_acquire);

		if (gate == 0)
			return 0;
		if (is_holder_gone(g, gate)) {
			if (atomic_compare_exchange_strong_explicit(
				&b->gate, &gate, 0, memory_order_acq_rel, memory_order_relaxed))
				board_ring(b);
			continue;
		}
		if (atomic_load_explicit(&g->is_aborted, memory_order_relaxed))
			return -MC_E_CANCELED;
		if (slept == -MC_E_TIMEDOUT)
			return slept;
		slept = mc_futex_wait_shared(&b->bell, bell, gate_look(g, deadline_ns));
		if (slept == -MC_E_TIMEDOUT && mc_now_ns() < deadline_ns) {
			mc_coll_net_late(g, MC_COLL_BIT(gate - 1));
			slept = 0;
		}
	}
}

/* Use the incarnations that the change names. */
static void take_peers(struct mc_coll *g, const struct mc_coll_change *c)
{
	struct mc_coll_peer *old[MC_COLL_RANKS_MAX];
	uint64_t renewed = 0;
	unsigned slot;

	pthread_mutex_lock(&g->lock);
	mc_coll_each(slot, c->active & ~MC_COLL_BIT(g->rank))
	{
		if (g->next[slot] && g->next[slot]->inc == c->inc[slot]) {
			old[slot] = g->cur[slot];
			g->cur[slot] = g->next[slot];
			g->next[slot] = NULL;
			renewed |= MC_COLL_BIT(slot);
		}
	}
	pthread_mutex_unlock(&g->lock);
	mc_coll_each(slot, renewed)
	{
		mc_coll_mail_renew(g, slot, c->inc[slot]);
		if (old[slot])
			mc_coll_peer_retire(old[slot]);
		g->crowd_of = 0; /* it may run on other cores */
	}
}

/* Take what is true for operation `op`. */
static void take_changes(struct mc_coll *g, struct mc_coll_board *b, uint64_t op)
{
	/* acquire: pairs with the release in publish() */
	uint64_t count = atomic_load_explicit(&b->count, memory_order_acquire);

	uint64_t seen = atomic_load_explicit(&g->page->log_seen, memory_order_relaxed);

	while (seen < count) {
		const struct mc_coll_change *c = &b->log[seen % MC_COLL_LOG];

		if (c->from_op > op)
			break;
		take_peers(g, c);
		atomic_store_explicit(&g->active, c->active, memory_order_relaxed);
		/* release: whoever reuses the entry has seen that we are through with it */
		atomic_store_explicit(&g->page->log_seen, ++seen, memory_order_release);
	}
}

int mc_coll_view_enter(struct mc_coll *g, uint64_t deadline_ns)
{
	struct mc_coll_board *b = atomic_load_explicit(&g->board, memory_order_acquire);
	uint64_t op = g->op + 1;
	int rc;

	/* Its words stay below those of the group's first operation, which others wait for. */
	if (g->is_alone)
		return 0;
	atomic_store_explicit(&g->page->entered, op, memory_order_relaxed);
	/* Entered, then looked: pairs with the fence in mc_coll_activate(). */
	atomic_thread_fence(memory_order_seq_cst);
	if (atomic_load_explicit(&b->gate, memory_order_acquire) != 0) {
		rc = gate_pass(g, b, deadline_ns);
		if (rc < 0)
			return rc;
	}
	take_changes(g, b, op);
	if (!(atomic_load_explicit(&g->active, memory_order_relaxed) & MC_COLL_BIT(g->rank)))
		return -MC_E_STALE;
	g->op = op;
	return 0;
}

void mc_coll_view_lose(struct mc_coll *g, uint64_t gone)
{
	atomic_fetch_and_explicit(&g->active, ~gone, memory_order_relaxed);
}

bool mc_coll_view_is_out(struct mc_coll *g)
{
	struct mc_coll_board *b = atomic_load_explicit(&g->board, memory_order_acquire);
	uint64_t seen = atomic_load_explicit(&g->page->log_seen, memory_order_relaxed), count;

	if (!b || g->is_alone)
		return false;
	/* Whoever showed something else had taken the change before. */
	atomic_thread_fence(memory_order_acquire);
	count = atomic_load_explicit(&b->count, memory_order_acquire);
	if (count > seen + MC_COLL_LOG)
		return true;
	for (; seen < count; seen++) {
		if (b->log[seen % MC_COLL_LOG].inc[g->rank] != g->inc)
			return true;
	}
	return false;
}

/* ---- changes ---- */

static int gate_take(struct mc_coll *g, struct mc_coll_board *b, uint64_t deadline_ns)
{
	uint32_t open = 0;
	int rc;

	while (!atomic_compare_exchange_strong_explicit(
	    &b->gate, &open, g->rank + 1, memory_order_acq_rel, memory_order_relaxed)) {
		rc = gate_pass(g, b, deadline_ns);
		if (rc < 0)
			return rc;
		open = 0;
	}
	return 0;
}

/* Everyone who will be active knows everyone else's memory, and whoever was has room for another
 * entry of the log. */
static bool is_known_by_all(struct mc_coll *g, struct mc_coll_board *b, uint64_t active,
			    const uint64_t *inc)
{
	uint64_t count = atomic_load_explicit(&b->count, memory_order_relaxed);
	unsigned a, s;

	mc_coll_each(a, active)
	{
		bool is_new = g->next[a] && inc[a] == g->next[a]->inc;
		struct mc_coll_page *page = a == g->rank ? g->page
					    : is_new	 ? g->next[a]->page
							 : g->cur[a]->page;

		if (!is_new && count >= MC_COLL_LOG &&
		    atomic_load_explicit(&page->log_seen, memory_order_acquire) <
			count - MC_COLL_LOG + 1)
			return false;
		for (s = 0; s < g->ranks_max; s++)
			if (s != a && (active & MC_COLL_BIT(s)) &&
			    atomic_load_explicit(&page->known[s], memory_order_acquire) != inc[s])
				return false;
	}
	return true;
}

/* The incarnations that would be active, under the lock. @return those of `want` that are alive */
static uint64_t alive(struct mc_coll *g, uint64_t active, uint64_t add, uint64_t inc[])
{
	uint64_t out = 0;

	for (unsigned s = 0; s < g->ranks_max; s++) {
		struct mc_coll_peer *p = g->cur[s];

		if (!((active | add) & MC_COLL_BIT(s)))
			continue;
		if (s == g->rank) {
			inc[s] = g->inc;
			out |= MC_COLL_BIT(s);
			continue;
		}
		if ((add & MC_COLL_BIT(s)) && g->next[s])
			p = g->next[s];
		if (!p || mc_coll_peer_is_gone(p))
			continue;
		inc[s] = p->inc;
		out |= MC_COLL_BIT(s);
	}
	return out;
}

/* With the gate held. The last operation that anybody who is or will be in has begun. */
static uint64_t last_entered(struct mc_coll *g, uint64_t slots)
{
	uint64_t last = atomic_load_explicit(&g->page->entered, memory_order_acquire);
	unsigned s;

	mc_coll_each(s, slots & ~MC_COLL_BIT(g->rank))
	{
		if (g->cur[s])
			last = mc_max(last, atomic_load_explicit(&g->cur[s]->page->entered,
								 memory_order_acquire));
	}
	return last;
}

static void publish(struct mc_coll *g, struct mc_coll_board *b, uint64_t active, uint64_t was,
		    const uint64_t *inc)
{
	uint64_t count = atomic_load_explicit(&b->count, memory_order_relaxed);
	struct mc_coll_change *c = &b->log[count % MC_COLL_LOG];
	uint64_t from = last_entered(g, was) + 1;

	if (count > 0)
		from = mc_max(from, b->log[(count - 1) % MC_COLL_LOG].from_op);
	c->from_op = from;
	c->active = active;
	for (unsigned s = 0; s < g->ranks_max; s++)
		c->inc[s] = active & MC_COLL_BIT(s) ? inc[s] : 0;
	/* release: the entry, before it counts */
	atomic_store_explicit(&b->count, count + 1, memory_order_release);
}

/* Some slot of `add` gets another incarnation than the last change gave it. */
static bool has_new(struct mc_coll *g, struct mc_coll_board *b, uint64_t add, const uint64_t *inc)
{
	uint64_t count = atomic_load_explicit(&b->count, memory_order_relaxed);
	unsigned s;

	mc_coll_each(s, add & ~MC_COLL_BIT(g->rank))
	{
		uint64_t last = count ? b->log[(count - 1) % MC_COLL_LOG].inc[s] : 0;

		if (inc[s] != last && (!g->cur[s] || inc[s] != g->cur[s]->inc))
			return true;
	}
	return false;
}

/* Who is active after the last change that was written, though operations have not got there. */
static uint64_t latest(struct mc_coll *g, struct mc_coll_board *b)
{
	uint64_t count = atomic_load_explicit(&b->count, memory_order_acquire);
	uint64_t active = atomic_load_explicit(&g->active, memory_order_relaxed);

	return count > atomic_load_explicit(&g->page->log_seen, memory_order_acquire)
		   ? b->log[(count - 1) % MC_COLL_LOG].active
		   : active;
}

/* One try, with the gate held. @return true when there is nothing more to do */
static bool try_change(struct mc_coll *g, struct mc_coll_board *b, uint64_t add, uint64_t drop,
		       uint64_t *ret_dropped)
{
	uint64_t inc[MC_COLL_RANKS_MAX] = {0};
	uint64_t was = latest(g, b), now;
	bool is_done = true;

	pthread_mutex_lock(&g->lock);
	now = alive(g, was & ~drop, add, inc);
	*ret_dropped = add & ~now;
	if (now != was || has_new(g, b, add & now, inc))
		is_done = is_known_by_all(g, b, now, inc);
	else
		now = 0;
	if (is_done && now)
		publish(g, b, now, was, inc);
	pthread_mutex_unlock(&g->lock);
	return is_done;
}

int mc_coll_activate(struct mc_coll *g, uint64_t add, uint64_t drop, uint64_t timeout_ns,
		     uint64_t *ret_dropped)
{
	struct mc_coll_board *b = atomic_load_explicit(&g->board, memory_order_acquire);
	uint64_t deadline_ns = mc_time_after(mc_now_ns(), timeout_ns), dropped = 0;
	uint64_t slots = g->ranks_max == 64 ? UINT64_MAX : MC_COLL_BIT(g->ranks_max) - 1;
	bool is_done = false;
	int rc = 0;

	if (((add | drop) & ~slots) || (add & drop) || !(add | drop))
		return -MC_E_INVAL;
	if (mc_fork_is_child(g->fork_gen))
		return -MC_E_FORKED;
	if (g->net) {
		rc = mc_coll_net_activate(g, add, drop, deadline_ns, &dropped);
		is_done = true;
	}
	while (!is_done) {
		uint32_t bell = atomic_load_explicit(&g->bell, memory_order_acquire);

		rc = gate_take(g, b, deadline_ns);
		if (rc < 0)
			return rc;
		/* Taken, then looked: pairs with the fence in mc_coll_view_enter(). */
		atomic_thread_fence(memory_order_seq_cst);
		if (latest(g, b) & MC_COLL_BIT(g->rank))
			is_done = try_change(g, b, add, drop, &dropped);
		else
			rc = -MC_E_STALE;
		gate_open(b);
		if (rc < 0)
			return rc;
		if (!is_done && mc_now_ns() >= deadline_ns)
			return -MC_E_TIMEDOUT;
		/* What the others know they say by a store; there is no bell for it. */
		if (!is_done && mc_futex_wait(&g->bell, bell,
					      mc_min(deadline_ns, mc_now_ns() + MC_NS_PER_MS)) < 0)
			continue;
	}
	if (rc == 0 && ret_dropped)
		*ret_dropped = dropped;
	return rc < 0 ? rc : 0;
}

const struct mc_coll_change *mc_coll_last_change(struct mc_coll *g)
{
	struct mc_coll_board *b = atomic_load_explicit(&g->board, memory_order_acquire);
	uint64_t count = b ? atomic_load_explicit(&b->count, memory_order_acquire) : 0;

	/* No board yet: the loop asks while the group is being opened. */
	return count ? &b->log[(count - 1) % MC_COLL_LOG] : NULL;
}

/* ---- joining ---- */

/* The first change of those since which this incarnation is active, if it is. */
static const struct mc_coll_change *own_change(struct mc_coll *g, struct mc_coll_board *b,
					       uint64_t *ret_index)
{
	uint64_t count = atomic_load_explicit(&b->count, memory_order_acquire);
	const struct mc_coll_change *c = NULL;

	for (uint64_t i = count; i > 0 && i + MC_COLL_LOG > count; i--) {
		const struct mc_coll_change *at = &b->log[(i - 1) % MC_COLL_LOG];

		if (at->inc[g->rank] != g->inc)
			break;
		c = at;
		*ret_index = i - 1;
	}
	return c;
}

uint64_t mc_coll_view_since(struct mc_coll *g)
{
	struct mc_coll_board *b = atomic_load_explicit(&g->board, memory_order_acquire);
	const struct mc_coll_change *c;
	uint64_t index = 0, count = atomic_load_explicit(&b->count, memory_order_acquire);
	bool is_first;

	if (count == 0)
		return g->is_joiner ? UINT64_MAX : 0;
	c = own_change(g, b, &index);
	if (!c)
		return UINT64_MAX;
	/* The one before, if there is one that is still written down, was without this rank. */
	is_first = index == 0 ? g->is_joiner : index + MC_COLL_LOG > count;
	return is_first ? c->from_op : 0;
}

/* Begin as if the operation before had been ours, too. */
static void begin_at(struct mc_coll *g, const struct mc_coll_change *c, uint64_t index)
{
	pthread_mutex_lock(&g->run_lock);
	take_peers(g, c);
	g->op = c->from_op - 1;
	/* Who was in the group before may still be read by the others, and waits as ever. */
	if (g->is_alone)
		g->small_seq[0] = g->small_seq[1] = g->area_seq = 0;
	g->is_alone = false;
	g->before = (struct mc_coll_past){.kind = MC_COLL_UNKNOWN};
	atomic_store_explicit(&g->active, c->active, memory_order_relaxed);
	atomic_store_explicit(&g->page->entered, g->op, memory_order_relaxed);
	atomic_store_explicit(&g->page->log_seen, index + 1, memory_order_release);
	mc_coll_post(g, mc_coll_word(c->from_op << MC_COLL_ROUND_BITS, 0));
	pthread_mutex_unlock(&g->run_lock);
}

int mc_coll_join(struct mc_coll *g, uint64_t timeout_ns)
{
	struct mc_coll_board *b = atomic_load_explicit(&g->board, memory_order_acquire);
	uint64_t deadline_ns = mc_time_after(mc_now_ns(), timeout_ns), index;
	int slept = 0;

	if (mc_fork_is_child(g->fork_gen))
		return -MC_E_FORKED;
	for (;;) {
		uint32_t bell = atomic_load_explicit(&b->bell, memory_order_acquire);
		const struct mc_coll_change *c = own_change(g, b, &index);

		if (!g->is_alone && mc_coll_active(g) &
					atomic_load_explicit(&g->active, memory_order_relaxed) &
					MC_COLL_BIT(g->rank))
			return 0;
		if (c) {
			/* Whoever wrote it may have died with the gate. */
			int rc = gate_pass(g, b, deadline_ns);

			if (rc == 0)
				begin_at(g, c, index);
			return rc;
		}
		if (atomic_load_explicit(&g->is_aborted, memory_order_relaxed))
			return -MC_E_CANCELED;
		if (mc_coll_ready(g) == 0)
			return -MC_E_PEER_DEAD;
		if (slept == -MC_E_TIMEDOUT)
			return slept;
		slept = mc_futex_wait_shared(&b->bell, bell, deadline_ns);
	}
}
