/*
 * wait.c: progress words: telling and waiting. A waiter polls for a moment, then sleeps on the
 * bell of the rank it waits for; whoever changes what waiters look at rings it if anybody sleeps.
 */
#include "base/sync.h"
#include "coll/priv.h"

#define LOOKS 100 /* before a clock is read: about a microsecond */

void mc_coll_ring(struct mc_coll_page *page)
{
	/* Before the look at `sleepers`: pairs with the fence in doze(). */
	atomic_thread_fence(memory_order_seq_cst);
	if (atomic_load_explicit(&page->sleepers, memory_order_relaxed) == 0)
		return;
	atomic_fetch_add_explicit(&page->bell, 1, memory_order_release);
	mc_futex_wake_shared(&page->bell, UINT32_MAX >> 1);
}

void mc_coll_post(struct mc_coll *g, uint64_t word)
{
	/* release: what was shown is there for whoever acquires the word */
	atomic_store_explicit(&g->page->word, word, memory_order_release);
	mc_coll_ring(g->page);
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
	if (board) {
		atomic_fetch_add_explicit(&board->bell, 1, memory_order_release);
		mc_futex_wake_shared(&board->bell, UINT32_MAX >> 1);
	}
	atomic_fetch_add_explicit(&g->page->mail_bell, 1, memory_order_release);
	mc_futex_wake_shared(&g->page->mail_bell, UINT32_MAX >> 1);
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

	/* It cannot be further on: its next large operation waits for us to end this one. */
	if (now >> 2 * MC_COLL_STEP_BITS != w->target >> 2 * MC_COLL_STEP_BITS)
		return 0;
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

static int look(void *user)
{
	const struct wait *w = user;
	int rc = w->is_there(w->what);

	if (rc)
		return rc;
	if (mc_coll_peer_is_gone(w->p)) {
		rc = w->is_there(w->what);
		return rc ? rc : MC_COLL_GONE;
	}
	return atomic_load_explicit(&w->g->is_aborted, memory_order_relaxed) ? -MC_E_CANCELED : 0;
}

static int doze(void *user)
{
	struct wait *w = user;
	struct mc_coll_page *page = w->p->page;
	int rc = 0, slept = 0;

	atomic_fetch_add_explicit(&page->sleepers, 1, memory_order_relaxed);
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
	atomic_fetch_sub_explicit(&page->sleepers, 1, memory_order_relaxed);
	return rc;
}

static int wait_for(struct wait *w, struct mc_spin *spin)
{
	int rc;

	for (int i = 0; i < LOOKS; i++) {
		rc = w->is_there(w->what);
		if (rc)
			return rc;
		mc_cpu_relax();
	}
	rc = look(w);
	return rc ? rc : mc_spin_wait(spin, look, doze, w);
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
	return wait_for(&w, &g->spin);
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

	return wait_for(&w, &g->spin);
}

int mc_coll_wait_on(struct mc_coll *g, struct mc_coll_peer *p, int (*is_there)(const void *what),
		    const void *what, struct mc_spin *spin, uint64_t deadline_ns)
{
	struct wait w = {
	    .g = g, .p = p, .deadline_ns = deadline_ns, .is_there = is_there, .what = what};

	return wait_for(&w, spin);
}
