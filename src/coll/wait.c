/*
 * wait.c: progress words: telling and waiting. A waiter polls for a moment, then sleeps on the
 * bell of the rank it waits for; whoever changes what waiters look at rings it if anybody sleeps.
 * With more ranks than cores it yields the core while it polls: to those it waits for, perhaps.
 */
#include <sched.h>

#include "base/clock.h"
#include "base/sync.h"
#include "coll/net.h"

#define LOOKS 64	 /* before a clock is read: about a microsecond */
#define ALONE_NS 20000u	 /* polled for with the core kept, where every rank has its own */
#define POLL_NS 100000u	 /* polled for, at most: some times what a wake-up costs */
#define FUTILE_EVERY 16u /* waits between two that poll, where polling has not been enough */

void mc_coll_ring(struct mc_coll_page *page)
{
	uint32_t nwords = (page->ranks_max + 7) / 8;
	uint64_t any = 0;

	/* Before the look at `sleepers`: pairs with the fence in doze(). */
	atomic_thread_fence(memory_order_seq_cst);
	for (uint32_t i = 0; i < nwords && i < MC_COLL_RANKS_MAX / 8; i++)
		any |= atomic_load_explicit(&page->sleepers[i], memory_order_relaxed);
	if (any == 0)
		return;
	atomic_fetch_add_explicit(&page->bell, 1, memory_order_release);
	mc_futex_wake_shared(&page->bell, UINT32_MAX >> 1);
}

void mc_coll_forget_sleepers(struct mc_coll_page *page, uint32_t slot)
{
	atomic_fetch_and_explicit(&page->sleepers[slot / 8], ~(0xffull << slot % 8 * 8),
				  memory_order_relaxed);
}

void mc_coll_count_cores(struct mc_coll *g, uint64_t ranks)
{
	uint64_t all[MC_COLL_CPU_WORDS] = {0};
	unsigned nranks = 0, ncores = 0, q;

	mc_coll_each(q, ranks)
	{
		const struct mc_coll_page *page = g->page;
		uint64_t any = 0;

		if (q != g->rank)
			page = g->cur[q] ? g->cur[q]->page : NULL;
		for (int i = 0; page && i < MC_COLL_CPU_WORDS; i++) {
			any |= page->cpus[i];
			all[i] |= page->cpus[i];
		}
		nranks += any != 0; /* 0: of another host */
	}
	for (int i = 0; i < MC_COLL_CPU_WORDS; i++)
		ncores += (unsigned)__builtin_popcountll(all[i]);
	atomic_store_explicit(&g->is_crowded, nranks > ncores, memory_order_relaxed);
}

void mc_coll_post(struct mc_coll *g, uint64_t word)
{
	/* release: what was shown is there for whoever acquires the word */
	atomic_store_explicit(&g->page->word, word, memory_order_release);
	mc_coll_ring(g->page);
	if (g->net)
		mc_coll_net_post(g, word);
}

void mc_coll_post_shares(struct mc_coll *g, uint64_t shares)
{
	atomic_store_explicit(&g->page->shares, shares, memory_order_release);
	mc_coll_ring(g->page);
}

void mc_coll_stir(struct mc_coll *g)
{
	struct mc_coll_board *board = atomic_load_explicit(&g->board, memory_order_acquire);
	struct mc_coll_peer *p;

	atomic_fetch_add_explicit(&g->bell, 1, memory_order_release);
	mc_futex_wake(&g->bell, UINT32_MAX >> 1);
	if (g->net)
		mc_coll_net_wake(g);
	if (board) {
		atomic_fetch_add_explicit(&board->bell, 1, memory_order_release);
		mc_futex_wake_shared(&board->bell, UINT32_MAX >> 1);
	}
	atomic_fetch_add_explicit(&g->page->mail_bell, 1, memory_order_release);
	mc_futex_wake_shared(&g->page->mail_bell, UINT32_MAX >> 1);
	if (g->net)
		mc_coll_net_mail_wake(g);
	pthread_mutex_lock(&g->lock);
	mc_list_each (p, &g->peers, link) {
		atomic_fetch_add_explicit(&p->page->bell, 1, memory_order_release);
		mc_futex_wake_shared(&p->page->bell, UINT32_MAX >> 1);
	}
	pthread_mutex_unlock(&g->lock);
}

/* What is waited for, of whom. */
struct wait {
	struct mc_coll *g;
	struct mc_coll_peer *p;
	uint64_t deadline_ns;
	int (*is_there)(const void *what); /* not 0: the answer */
	const void *what;
	/* `what` of a word; or of shares, if `mask` is not 0 */
	uint64_t target;
	uint64_t mask;
};

/* Shares of the same operation, for the same ranks, far enough. @return THERE; AGAIN: it has found
 * somebody gone that we count; 0 */
static int look_shares(const void *what)
{
	const struct wait *w = what;
	struct mc_coll_page *page = w->p->page;
	uint64_t now = atomic_load_explicit(&page->shares, memory_order_acquire);
	uint64_t mask;

	/* It cannot be further on: its next large operation waits for us to end this one, unless
	 * we were sent away. */
	if (now >> 2 * MC_COLL_STEP_BITS != w->target >> 2 * MC_COLL_STEP_BITS)
		return now > w->target && mc_coll_view_is_out(w->g) ? -MC_E_STALE : 0;
	mask = atomic_load_explicit(&page->shares_mask[now >> MC_COLL_STEP_BITS & 1],
				    memory_order_relaxed);
	/* The mask of this restart, if no other has begun meanwhile. */
	atomic_thread_fence(memory_order_acquire);
	if (atomic_load_explicit(&page->shares, memory_order_relaxed) >> MC_COLL_STEP_BITS !=
	    now >> MC_COLL_STEP_BITS)
		return 0;
	if (w->mask & ~mask)
		return MC_COLL_AGAIN;
	return mask == w->mask && (now & MC_COLL_STEP_DONE) >= (w->target & MC_COLL_STEP_DONE)
		   ? MC_COLL_THERE
		   : 0;
}

static int look_word(const void *what)
{
	const struct wait *w = what;

	return atomic_load_explicit(&w->p->page->word, memory_order_acquire) >= w->target
		   ? MC_COLL_THERE
		   : 0;
}

static int look(const struct wait *w)
{
	int rc = w->is_there(w->what);

	if (rc)
		return rc;
	if (mc_coll_peer_is_gone(w->p)) {
		rc = w->is_there(w->what);
		return rc ? rc : MC_COLL_GONE;
	}
	return atomic_load_explicit(&w->g->is_aborted, memory_order_relaxed) ? -MC_E_CANCELED : 0;
}

static int doze(struct wait *w)
{
	struct mc_coll_page *page = w->p->page;
	_Atomic uint64_t *sleepers = &page->sleepers[w->g->rank / 8];
	uint64_t one = 1ull << w->g->rank % 8 * 8;
	int rc = 0, slept = 0;

	atomic_fetch_add_explicit(sleepers, one, memory_order_relaxed);
	/* Counted before looking: pairs with the fence in mc_coll_ring(). */
	atomic_thread_fence(memory_order_seq_cst);
	while (rc == 0) {
		uint32_t bell = atomic_load_explicit(&page->bell, memory_order_acquire);

		rc = look(w);
		if (rc == 0 && slept == -MC_E_TIMEDOUT)
			rc = -MC_E_TIMEDOUT;
		if (rc == 0)
			slept = mc_futex_wait_shared(&page->bell, bell, w->deadline_ns);
	}
	atomic_fetch_sub_explicit(sleepers, one, memory_order_relaxed);
	return rc;
}

/* Does polling pay? Not after several waits in a row that it was too short for. */
static bool may_poll(struct mc_spin *spin)
{
	if (spin->polled_ns < POLL_NS || ++spin->since >= FUTILE_EVERY) {
		spin->since = 0;
		return true;
	}
	return false;
}

/* Poll, and let others have the core: at once where it is theirs, too, else after a while. */
static int poll(struct wait *w, struct mc_spin *spin)
{
	bool is_crowded = atomic_load_explicit(&w->g->is_crowded, memory_order_relaxed);
	uint64_t from_ns = mc_now_ns(), yield_ns = is_crowded ? 0 : ALONE_NS, past_ns;
	int rc = 0;

	do {
		for (int i = 0; i < (is_crowded ? 1 : LOOKS / 4); i++) {
			rc = w->is_there(w->what);
			if (rc)
				break;
			mc_cpu_relax();
		}
		if (rc == 0)
			rc = look(w);
		past_ns = mc_now_ns() - from_ns;
		if (rc == 0 && past_ns >= yield_ns)
			(void)sched_yield();
	} while (rc == 0 && past_ns < POLL_NS);
	/* However long the rest takes, it was too short by that much at least. */
	mc_spin_note(spin, 0, rc ? past_ns : 2 * POLL_NS, true);
	return rc;
}

static int wait_for(struct wait *w, struct mc_spin *spin)
{
	int rc = 0;

	if (!atomic_load_explicit(&w->g->is_crowded, memory_order_relaxed)) {
		for (int i = 0; i < LOOKS; i++) {
			rc = w->is_there(w->what);
			if (rc)
				return rc;
			mc_cpu_relax();
		}
	}
	rc = look(w);
	if (rc == 0 && may_poll(spin))
		rc = poll(w, spin);
	return rc ? rc : doze(w);
}

/* Whoever gives up says whom it waited for. */
static int told(struct mc_coll *g, unsigned slot, int rc)
{
	if (rc == -MC_E_TIMEDOUT)
		mc_coll_say(g,
			    "operation %llu of group %s: rank %u is late, it is at operation %llu",
			    (unsigned long long)g->op, g->name, slot,
			    (unsigned long long)(atomic_load_explicit(&g->cur[slot]->page->word,
								      memory_order_relaxed) >>
						 (MC_COLL_STEP_BITS + MC_COLL_ROUND_BITS)));
	return rc;
}

int mc_coll_wait_word(struct mc_coll *g, unsigned slot, uint64_t target, uint64_t deadline_ns)
{
	struct wait w = {.g = g,
			 .p = g->cur[slot],
			 .deadline_ns = deadline_ns,
			 .is_there = look_word,
			 .what = &w,
			 .target = target};

	if (!w.p) /* never attached, or lost before it was taken into use */
		return MC_COLL_GONE;
	return told(g, slot,
		    g->net ? mc_coll_net_wait(g, w.p, target, deadline_ns)
			   : wait_for(&w, &g->spin));
}

int mc_coll_wait_share(struct mc_coll *g, unsigned slot, uint64_t seq, uint32_t chunks,
		       uint64_t mask, uint64_t deadline_ns)
{
	struct wait w = {.g = g,
			 .p = g->cur[slot],
			 .deadline_ns = deadline_ns,
			 .is_there = look_shares,
			 .what = &w,
			 .target = mc_coll_share(seq, 0, chunks),
			 .mask = mask};

	return told(g, slot, wait_for(&w, &g->spin));
}

int mc_coll_wait_on(struct mc_coll *g, struct mc_coll_peer *p, int (*is_there)(const void *what),
		    const void *what, struct mc_spin *spin, uint64_t deadline_ns)
{
	struct wait w = {
	    .g = g, .p = p, .deadline_ns = deadline_ns, .is_there = is_there, .what = what};

	return wait_for(&w, spin);
}
