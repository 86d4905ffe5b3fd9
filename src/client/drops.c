/*
 * drops.c: what owners still have to be told: that a write is given up. An owner that did not hear
 * it may have a sealed slot that nobody committed, and a master that restarts would adopt it. So a
 * thread of its own, started by the first such case, says it again until the owner has acknowledged
 * it, or has begun another life. The list has a limit; beyond it, and when this process ends, the
 * owner's own check with the index is left.
 */
#include <signal.h>

#include "base/log.h"
#include "base/sync.h"
#include "client/priv.h"

#define DROPS_MAX 4096u
#define TRY_NS MC_NS_PER_S
#define LAST_TRY_NS (500 * MC_NS_PER_MS) /* when the store closes */
#define PAUSE_MIN_NS (100 * MC_NS_PER_MS)
#define PAUSE_MAX_NS (5 * MC_NS_PER_S)

struct drop {
	struct mc_cli_owner *owner;
	uint64_t life; /* its incarnation */
	struct mc_st_place place;
};

struct mc_cli_drops {
	struct mc_store *st;
	pthread_mutex_t mu; /* guards these */
	struct drop *list;
	size_t n, cap;
	pthread_t thread;
	bool has_thread, is_closing, is_full_told;
	_Atomic uint32_t seq; /* changes when the thread is to look again */
};

int mc_cli_drops_open(struct mc_store *st, struct mc_cli_drops **ret)
{
	struct mc_cli_drops *d = mc_calloc(1, sizeof(*d));

	if (!d)
		return -MC_E_NOMEM;
	d->st = st;
	pthread_mutex_init(&d->mu, NULL);
	*ret = d;
	return 0;
}

/* One call for each owner. @param ret_done  [n] */
static void tell(struct mc_cli_op *op, const struct drop *list, size_t n, uint8_t *ret_done)
{
	size_t first = op->ncalls;

	for (size_t i = 0; i < n; i++) {
		struct mc_cli_call *c;
		struct mc_wr w;

		ret_done[i] = mc_cli_owner_life(list[i].owner) != list[i].life;
		if (ret_done[i])
			continue;
		c = mc_cli_call_for(op, first, &list[i].owner->end, MC_ST_DROP,
				    sizeof(list[i].place));
		if (!c || mc_cli_call_add(c, sizeof(list[i].place), (uint32_t)i, &w) < 0)
			break; /* the next round */
		mc_st_place_encode(&w, &list[i].place);
		mc_cli_call_added(c, &w);
	}
	mc_cli_calls_run(op, first, op->deadline_ns);
	for (size_t i = first; i < op->ncalls; i++) {
		const struct mc_cli_call *c = op->calls[i];

		for (uint32_t k = 0; c->rc == 0 && k < c->n; k++)
			ret_done[c->items[k]] = 1;
	}
	op->ncalls = first;
}

/* Those that were added meanwhile stand behind the first n. @return how many are left */
static size_t forget(struct mc_cli_drops *d, const uint8_t *is_done, size_t n)
{
	size_t kept = 0;

	pthread_mutex_lock(&d->mu);
	for (size_t i = 0; i < d->n; i++)
		if (i >= n || !is_done[i])
			d->list[kept++] = d->list[i];
	d->n = kept;
	pthread_mutex_unlock(&d->mu);
	return kept;
}

/* @return how many are left */
static size_t round_run(struct mc_cli_drops *d, uint64_t try_ns)
{
	struct mc_cli_op *op;
	struct drop *list;
	uint8_t *is_done;
	size_t n, left;

	pthread_mutex_lock(&d->mu);
	left = n = d->n;
	pthread_mutex_unlock(&d->mu);
	if (n == 0 || mc_cli_op_begin(d->st, &op) < 0)
		return n;
	op->deadline_ns = mc_time_after(mc_now_ns(), try_ns);
	list = mc_cli_alloc(op, n, sizeof(*list));
	is_done = mc_cli_alloc(op, n, 1);
	if (list && is_done) {
		pthread_mutex_lock(&d->mu);
		memcpy(list, d->list, n * sizeof(*list));
		pthread_mutex_unlock(&d->mu);
		tell(op, list, n, is_done);
		left = forget(d, is_done, n);
	}
	if (left > 0) /* are they still who they were? */
		(void)mc_cli_view_refresh(op, PAUSE_MAX_NS);
	mc_cli_op_end(op);
	return left;
}

static void *run(void *arg)
{
	uint64_t pause_ns = PAUSE_MIN_NS, until_ns;
	struct mc_cli_drops *d = arg;
	bool is_closing;
	uint32_t seq;
	size_t left;

	for (;;) {
		seq = atomic_load(&d->seq);
		pthread_mutex_lock(&d->mu);
		is_closing = d->is_closing;
		pthread_mutex_unlock(&d->mu);
		left = round_run(d, is_closing ? LAST_TRY_NS : TRY_NS);
		if (is_closing)
			return NULL;
		until_ns = left > 0 ? mc_time_after(mc_now_ns(), pause_ns) : MC_TIME_NEVER;
		pause_ns = left > 0 ? mc_min(pause_ns * 2, PAUSE_MAX_NS) : PAUSE_MIN_NS;
		(void)!mc_futex_wait(&d->seq, seq, until_ns); /* whatever ended it: look again */
	}
}

/* Under mu. @return false: the limit, or no memory */
static bool thread_start(struct mc_cli_drops *d)
{
	sigset_t all, old;

	if (d->has_thread)
		return true;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old); /* signals are the program's */
	d->has_thread = pthread_create(&d->thread, NULL, run, d) == 0;
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (d->has_thread)
		(void)pthread_setname_np(d->thread, "mc-store-drop");
	return d->has_thread;
}

static void wake(struct mc_cli_drops *d)
{
	atomic_fetch_add(&d->seq, 1);
	mc_futex_wake(&d->seq, 1);
}

void mc_cli_drops_add(struct mc_cli_drops *d, struct mc_cli_owner *o, const struct mc_st_place *p)
{
	struct drop drop = {.owner = o, .life = mc_cli_owner_life(o), .place = *p};
	void *list;
	bool is_kept, is_told;

	pthread_mutex_lock(&d->mu);
	list = d->list;
	is_kept = !d->is_closing && thread_start(d) &&
		  mc_array_grow(&list, &d->cap, d->n + 1, DROPS_MAX, sizeof(*d->list)) == 0;
	d->list = list;
	if (is_kept)
		d->list[d->n++] = drop;
	is_told = is_kept || d->is_closing || d->is_full_told;
	d->is_full_told |= !is_kept;
	pthread_mutex_unlock(&d->mu);
	if (is_kept)
		wake(d);
	else if (!is_told)
		mc_log_warn("too many writes to take back: their owners find them by themselves",
			    "segment=%s", o->segment_name);
}

void mc_cli_drops_stop(struct mc_cli_drops *d)
{
	bool has_thread;

	if (!d)
		return;
	pthread_mutex_lock(&d->mu);
	d->is_closing = true;
	has_thread = d->has_thread;
	d->has_thread = false;
	pthread_mutex_unlock(&d->mu);
	wake(d);
	if (has_thread)
		(void)pthread_join(d->thread, NULL);
}

void mc_cli_drops_close(struct mc_cli_drops *d)
{
	if (!d)
		return;
	mc_assert(!d->has_thread);
	pthread_mutex_destroy(&d->mu);
	mc_free(d->list);
	mc_free(d);
}
