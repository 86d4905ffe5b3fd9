/*
 * group.c: a group's life: its memory, meeting the others, leaving, and what it says of itself.
 */
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/rand.h"
#include "base/str.h"
#include "base/sync.h"
#include "coll/net.h"
#include "coll/shmem.h"

#define TIMEOUT_NS (30 * 60 * MC_NS_PER_S)
#define ASK_NS MC_NS_PER_S /* a founder that has not come is asked so often */
#define SCRATCH_MAX (64ull << 20)
#define SCRATCH_LIMIT (1ull << 30) /* what the steps of a word can count */

/* ---- peers ---- */

static void on_death(struct mc_watch *w, uint32_t events)
{
	struct mc_coll_peer *p = mc_container_of(w, struct mc_coll_peer, pid);

	(void)events;
	mc_loop_unwatch(p->coll->hub->loop, w);
	p->is_watched = false;
	/* Before another incarnation can have the slot. */
	mc_coll_forget_sleepers(p->coll->page, p->slot);
	/* release: pairs with the acquire in mc_coll_peer_is_gone() */
	atomic_store_explicit(&p->is_dead, true, memory_order_release);
	mc_coll_stir(p->coll);
}

void mc_coll_peer_free(struct mc_coll_peer *p)
{
	if (!p)
		return;
	mc_coll_shmem_unmap(p->page, MC_COLL_PAGE_LEN);
	mc_coll_shmem_unmap(p->rings, MC_COLL_RINGS_LEN);
	mc_coll_shmem_unmap(p->area, p->area_len);
	mc_fd_close(&p->fd);
	mc_fd_close(&p->pid.fd);
	mc_coll_wire_free(p->wire);
	mc_free(p);
}

static int peer_map(struct mc_coll *g, uint32_t slot, uint64_t inc, int page_fd,
		    struct mc_coll_peer **ret)
{
	struct mc_coll_peer *p = mc_calloc(1, sizeof(*p));
	void *at;
	int rc;

	if (!p)
		return -MC_E_NOMEM;
	*p = (struct mc_coll_peer){.coll = g, .slot = slot, .inc = inc, .fd = -1};
	p->pid.fd = -1;
	rc = mc_coll_shmem_map(page_fd, 0, MC_COLL_PAGE_LEN, &at);
	if (rc < 0)
		goto fail;
	p->page = at;
	rc = mc_coll_shmem_map(page_fd, MC_COLL_PAGE_LEN, MC_COLL_RINGS_LEN, &at);
	if (rc < 0)
		goto fail;
	p->rings = at;
	rc = -MC_E_PROTO;
	if (p->page->magic == MC_COLL_MAGIC && p->page->inc == inc && p->page->slot == slot &&
	    p->page->ranks_max == g->ranks_max) {
		*ret = p;
		return 0;
	}
fail:
	mc_coll_peer_free(p);
	return rc;
}

static int board_take(struct mc_coll *g, int *board_fd)
{
	struct mc_coll_board *b;
	void *at;
	int rc;

	if (*board_fd < 0 || g->board_fd >= 0)
		return 0;
	rc = mc_coll_shmem_map(*board_fd, 0, MC_COLL_BOARD_LEN, &at);
	if (rc < 0)
		return rc;
	b = at;
	if (b->magic != MC_COLL_MAGIC || b->ranks_max != g->ranks_max) {
		mc_coll_shmem_unmap(at, MC_COLL_BOARD_LEN);
		return -MC_E_PROTO;
	}
	g->board_fd = *board_fd;
	*board_fd = -1;
	/* release: the mapping, for threads that use the board */
	atomic_store_explicit(&g->board, b, memory_order_release);
	return 0;
}

bool mc_coll_peer_is_lost(const struct mc_coll_peer *p)
{
	return mc_coll_peer_is_gone(p) ||
	       (p->wire &&
		atomic_load_explicit(&p->wire->fate, memory_order_acquire) != MC_COLL_LIVES);
}

/* Under the lock. */
static int seat_check(struct mc_coll *g, uint32_t slot, uint64_t inc)
{
	struct mc_coll_peer *next = g->next[slot], *cur = g->cur[slot];

	if ((cur && cur->inc == inc) || (next && next->inc == inc))
		return 1;
	return (cur && !mc_coll_peer_is_lost(cur)) || (next && !mc_coll_peer_is_lost(next))
		   ? -MC_E_EXIST
		   : 0;
}

int mc_coll_seat_check(struct mc_coll *g, uint32_t slot, uint64_t inc)
{
	int rc;

	pthread_mutex_lock(&g->lock);
	rc = seat_check(g, slot, inc);
	pthread_mutex_unlock(&g->lock);
	return rc;
}

/* It is in no list any more. On the loop. */
static void peer_drop(struct mc_coll_peer *p)
{
	if (p->is_watched)
		mc_loop_unwatch(p->coll->hub->loop, &p->pid);
	mc_coll_peer_free(p);
}

static void retire_on_loop(void *arg)
{
	struct mc_coll_peer *p = arg;
	struct mc_coll *g = p->coll;
	bool is_ours;

	pthread_mutex_lock(&g->lock);
	is_ours = !p->wire && !p->is_kept;
	if (is_ours)
		mc_list_del(&p->link);
	pthread_mutex_unlock(&g->lock);
	if (is_ours)
		peer_drop(p);
}

void mc_coll_peer_retire(struct mc_coll_peer *p)
{
	mc_loop_call(p->coll->hub->loop, retire_on_loop, p);
}

int mc_coll_peer_seat(struct mc_coll *g, struct mc_coll_peer *p)
{
	struct mc_coll_peer *old = NULL;
	int rc;

	pthread_mutex_lock(&g->lock);
	rc = seat_check(g, p->slot, p->inc);
	if (rc == 0) {
		/* One that died before it was taken into use; over hosts it goes with the group. */
		old = g->next[p->slot];
		if (old && old->wire)
			old = NULL;
		if (old)
			mc_list_del(&old->link);
		g->next[p->slot] = p;
		mc_list_push_back(&g->peers, &p->link);
	}
	pthread_mutex_unlock(&g->lock);
	if (old)
		peer_drop(old);
	if (rc == 0) {
		/* release: whoever activates the slot has seen that we know it */
		atomic_store_explicit(&g->page->known[p->slot], p->inc, memory_order_release);
		mc_coll_stir(g);
	}
	return rc;
}

int mc_coll_peer_take(struct mc_coll *g, uint32_t slot, uint64_t inc, int *page_fd, int *pid_fd,
		      int *board_fd)
{
	struct mc_coll_peer *p;
	int rc;

	if (slot >= g->ranks_max || slot == g->rank || inc == 0)
		return -MC_E_INVAL;
	rc = board_take(g, board_fd);
	if (rc < 0)
		return rc;
	rc = peer_map(g, slot, inc, *page_fd, &p);
	if (rc < 0)
		return rc;
	p->fd = *page_fd;
	p->pid.fd = *pid_fd;
	rc = mc_coll_peer_seat(g, p);
	if (rc != 0) {
		p->fd = p->pid.fd = -1;
		mc_coll_peer_free(p);
		return rc > 0 ? 0 : rc;
	}
	p->pid = (struct mc_watch){.fd = *pid_fd, .events = EPOLLIN, .on_event = on_death};
	*page_fd = *pid_fd = -1;
	rc = mc_loop_watch(g->hub->loop, &p->pid);
	p->is_watched = rc == 0;
	if (rc < 0) /* nobody would tell of its death: it counts as one */
		atomic_store_explicit(&p->is_dead, true, memory_order_release);
	return rc;
}

/* ---- open ---- */

static int check_opts(const struct mc_coll_opts *o, struct mc_diag *diag)
{
	uint32_t max = o->ranks_max ? o->ranks_max : o->ranks;
	size_t len = o->name ? strlen(o->name) : 0;

	if (o->size != sizeof(*o) || len == 0 || len > MC_COLL_NAME_MAX) {
		mc_diag_set(diag, "a group's name has 1 to %d bytes", MC_COLL_NAME_MAX);
		return -MC_E_INVAL;
	}
	if (max == 0 || max > MC_COLL_RANKS_MAX || o->ranks > max || o->rank >= max ||
	    (o->ranks && o->rank >= o->ranks)) {
		mc_diag_set(diag, "rank %u of %u, room for %u (at most %d)", o->rank, o->ranks, max,
			    MC_COLL_RANKS_MAX);
		return -MC_E_INVAL;
	}
	if (o->scratch_max > SCRATCH_LIMIT) {
		mc_diag_set(diag, "a scratch of %llu bytes is above %llu",
			    (unsigned long long)o->scratch_max, SCRATCH_LIMIT);
		return -MC_E_INVAL;
	}
	return 0;
}

static int memory_make(struct mc_coll *g)
{
	void *at;
	int rc = mc_coll_shmem_make("mooncake-coll", MC_COLL_AREA_AT, &g->fd);

	if (rc < 0)
		return rc;
	rc = mc_coll_shmem_map(g->fd, 0, MC_COLL_PAGE_LEN, &at);
	if (rc < 0)
		return rc;
	g->page = at;
	g->page->magic = MC_COLL_MAGIC;
	g->page->inc = g->inc;
	g->page->slot = g->rank;
	g->page->ranks_max = g->ranks_max;
	/* Where that fails no core is known, and ranks count as if each had its own. */
	(void)sched_getaffinity(0, sizeof(g->page->cpus), (cpu_set_t *)(void *)g->page->cpus);
	rc = mc_coll_shmem_map(g->fd, MC_COLL_PAGE_LEN, MC_COLL_RINGS_LEN, &at);
	if (rc < 0)
		return rc;
	g->rings = at;
	return 0;
}

static int board_make(struct mc_coll *g)
{
	struct mc_coll_board *b;
	void *at;
	int rc = mc_coll_shmem_make("mooncake-coll-board", MC_COLL_BOARD_LEN, &g->board_fd);

	if (rc < 0)
		return rc;
	rc = mc_coll_shmem_map(g->board_fd, 0, MC_COLL_BOARD_LEN, &at);
	if (rc < 0)
		return rc;
	b = at;
	b->ranks_max = g->ranks_max;
	b->magic = MC_COLL_MAGIC;
	atomic_store_explicit(&g->board, b, memory_order_release);
	return 0;
}

/* A joiner does not wait for those whose hosts are silent. */
static uint64_t ask_until(const struct mc_coll *g, uint64_t deadline_ns)
{
	return g->is_joiner && g->net ? mc_min(deadline_ns, mc_now_ns() + g->net->silent_ns)
				      : deadline_ns;
}

/* Founders ask those below, and are asked by those above. */
static int meet(struct mc_coll *g, const char *const *addrs, uint64_t deadline_ns,
		struct mc_diag *diag)
{
	uint32_t below = g->is_joiner ? g->ranks_max : g->rank;
	unsigned nmet = 0;
	int rc = 0;

	for (uint32_t s = 0; s < below; s++) {
		if (s == g->rank || !addrs || !addrs[s]) {
			if (!g->is_joiner && s != g->rank) {
				mc_diag_set(diag, "no address of rank %u", s);
				return -MC_E_INVAL;
			}
			continue;
		}
		rc = mc_coll_hub_attach(g, s, addrs[s], ask_until(g, deadline_ns), diag);
		/* A joiner takes whom it finds: the dead do not answer. */
		if (rc < 0 && (!g->is_joiner || rc == -MC_E_UNSUPPORTED))
			return rc;
		nmet += rc == 0;
	}
	if (g->is_joiner && nmet == 0) {
		if (rc == 0)
			mc_diag_set(diag, "no address of another rank");
		return rc < 0 ? rc : -MC_E_INVAL;
	}
	return 0;
}

static uint64_t missing(struct mc_coll *g, uint32_t founders)
{
	uint64_t out = 0;

	pthread_mutex_lock(&g->lock);
	for (uint32_t s = 0; s < founders; s++)
		if (s != g->rank && !g->next[s])
			out |= MC_COLL_BIT(s);
	pthread_mutex_unlock(&g->lock);
	return out;
}

/* Over hosts the others call; here they are asked only whether they are there. */
static int ask_after(struct mc_coll *g, uint32_t slot, const char *const *addrs,
		     struct mc_diag *diag)
{
	uint64_t until_ns = mc_now_ns() + ASK_NS;

	if (!addrs || !addrs[slot])
		return 0;
	if (!g->net)
		return mc_coll_hub_attach(g, slot, addrs[slot], until_ns, diag);
	mc_diag_set(diag, "rank %u of group %s at %s", slot, g->name, addrs[slot]);
	return mc_coll_net_ask(addrs[slot], until_ns);
}

/*
 * Wait for the founders above. One that takes its time is asked, too: where nobody listens any more
 * it will never come.
 */
static int wait_founders(struct mc_coll *g, uint32_t founders, const char *const *addrs,
			 uint64_t deadline_ns, struct mc_diag *diag)
{
	uint64_t who;
	int rc = 0;

	while ((who = missing(g, founders)) != 0) {
		uint32_t bell = atomic_load_explicit(&g->bell, memory_order_acquire);
		uint64_t soon_ns = mc_min(deadline_ns, mc_now_ns() + ASK_NS);
		unsigned s = (unsigned)__builtin_ctzll(who);

		if (missing(g, founders) != 0)
			rc = mc_futex_wait(&g->bell, bell, soon_ns);
		if (rc != -MC_E_TIMEDOUT)
			continue;
		if (mc_now_ns() >= deadline_ns) {
			mc_diag_set(diag, "group %s: rank %u did not come", g->name, s);
			return rc;
		}
		rc = ask_after(g, s, addrs, diag);
		if (rc == -MC_E_REFUSED || rc == -MC_E_RESET)
			return -MC_E_PEER_DEAD;
	}
	return 0;
}

/* All founders are here: the first view. */
static int found(struct mc_coll *g, uint32_t founders, const char *const *addrs,
		 uint64_t deadline_ns, struct mc_diag *diag)
{
	int rc;

	if (founders == 0) {
		g->is_alone = true;
		atomic_store_explicit(&g->active, MC_COLL_BIT(g->rank), memory_order_relaxed);
		return 0;
	}
	rc = wait_founders(g, founders, addrs, deadline_ns, diag);
	if (rc < 0)
		return rc;
	pthread_mutex_lock(&g->lock);
	for (uint32_t s = 0; s < founders; s++) {
		g->cur[s] = g->next[s];
		g->next[s] = NULL;
	}
	pthread_mutex_unlock(&g->lock);
	for (uint32_t s = 0; s < founders; s++)
		if (s != g->rank)
			mc_coll_mail_renew(g, s, g->cur[s]->inc);
	atomic_store_explicit(&g->active, founders == 64 ? UINT64_MAX : MC_COLL_BIT(founders) - 1,
			      memory_order_relaxed);
	if (g->net)
		mc_coll_net_kick(g);
	return 0;
}

/* @return 1: some are on other hosts; 0; -MC_E_INVAL */
static int is_wide(struct mc_coll *g, const char *const *addrs, struct mc_diag *diag)
{
	int rc = 1;

	for (uint32_t s = 0; addrs && s < g->ranks_max && rc > 0; s++)
		if (s != g->rank && addrs[s])
			rc = mc_coll_hub_is_near(g->hub, addrs[s], diag);
	return rc < 0 ? rc : !rc;
}

static void net_open(void *arg)
{
	struct mc_coll *g = arg;

	g->widened = mc_coll_net_open(g);
}

/* On the loop, which may look at it. */
static int widen(struct mc_coll *g)
{
	mc_loop_call(g->hub->loop, net_open, g);
	return g->widened < 0 ? g->widened : board_make(g);
}

static int open_group(struct mc_coll *g, const struct mc_coll_opts *opts, const char *const *addrs,
		      struct mc_diag *diag)
{
	uint64_t timeout_ns = opts->open_timeout_ns ? opts->open_timeout_ns : g->timeout_ns;
	uint64_t deadline_ns = mc_time_after(mc_now_ns(), timeout_ns);
	int rc = mc_rand_bytes(&g->inc, sizeof(g->inc));

	g->inc |= 1;
	if (rc == 0)
		rc = memory_make(g);
	if (rc == 0)
		rc = is_wide(g, addrs, diag);
	if (rc > 0)
		rc = mc_coll_net_open(g);
	/* Over hosts everyone has a board, and they are told the same. */
	if (rc == 0 && (g->net || (!g->is_joiner && g->rank == 0)))
		rc = board_make(g);
	if (rc < 0) {
		if (rc != -MC_E_INVAL)
			mc_diag_set(diag, "shared memory of group %s: %s", g->name,
				    mc_err_text(rc));
		return rc;
	}
	mc_coll_hub_add(g->hub, g);
	rc = meet(g, addrs, deadline_ns, diag);
	if (rc == -MC_E_UNSUPPORTED && !g->net) {
		/* All who are left are near, but the group goes over hosts. */
		rc = widen(g);
		if (rc == 0)
			rc = meet(g, addrs, deadline_ns, diag);
	}
	if (rc == 0)
		rc = found(g, opts->ranks, addrs, deadline_ns, diag);
	if (rc == 0 && g->board_fd < 0) {
		mc_diag_set(diag, "group %s: nobody who answered is in it", g->name);
		rc = -MC_E_PEER_DEAD;
	}
	return rc;
}

int mc_coll_open(struct mc_coll_hub *hub, const struct mc_coll_opts *opts, const char *const *addrs,
		 struct mc_diag *diag, struct mc_coll **ret_coll)
{
	struct mc_coll *g;
	int rc = check_opts(opts, diag);

	if (rc < 0)
		return rc;
	if (mc_fork_is_child(hub->fork_gen))
		return -MC_E_FORKED;
	g = mc_aligned_alloc(MC_CACHELINE, sizeof(*g));
	if (!g)
		return -MC_E_NOMEM;
	g->hub = hub;
	g->rank = opts->rank;
	g->ranks_max = opts->ranks_max ? opts->ranks_max : opts->ranks;
	g->is_joiner = opts->ranks == 0;
	g->fork_gen = hub->fork_gen;
	g->timeout_ns = opts->timeout_ns ? opts->timeout_ns : TIMEOUT_NS;
	g->scratch_max = opts->scratch_max ? opts->scratch_max : SCRATCH_MAX;
	g->fd = g->board_fd = -1;
	(void)mc_strlcpy(g->name, sizeof(g->name), opts->name);
	mc_list_init(&g->peers);
	mc_list_init(&g->hub_link);
	mc_list_init(&g->remains);
	pthread_mutex_init(&g->lock, NULL);
	pthread_mutex_init(&g->run_lock, NULL);
	rc = mc_coll_mail_open(g);
	if (rc == 0)
		rc = open_group(g, opts, addrs, diag);
	if (rc < 0) {
		mc_coll_close(g);
		return rc;
	}
	*ret_coll = g;
	return 0;
}

/* ---- close ---- */

void mc_coll_leave(struct mc_coll *g)
{
	if (!g->page)
		return;
	if (g->net)
		mc_coll_net_leave(g);
	/* release: the last word, before it counts as final */
	atomic_store_explicit(&g->page->state, MC_COLL_LEFT, memory_order_release);
	atomic_fetch_add_explicit(&g->page->bell, 1, memory_order_release);
	mc_futex_wake_shared(&g->page->bell, UINT32_MAX >> 1);
}

void mc_coll_abort(struct mc_coll *g)
{
	atomic_store_explicit(&g->is_aborted, true, memory_order_release);
	mc_coll_stir(g);
	/* Whoever runs an operation stops at its next wait; no word comes after the last one. */
	pthread_mutex_lock(&g->run_lock);
	mc_coll_leave(g);
	pthread_mutex_unlock(&g->run_lock);
}

void mc_coll_close(struct mc_coll *g)
{
	struct mc_coll_peer *p;

	if (!g)
		return;
	if (!mc_fork_is_child(g->fork_gen)) {
		mc_coll_queue_close(g);
		mc_coll_mail_close(g);
		mc_coll_leave(g);
		if (g->net)
			mc_coll_net_drain(g);
		mc_coll_rest_stop(g);
		mc_coll_hub_del(g->hub, g);
		mc_coll_mail_free(g);
	}
	mc_list_each (p, &g->peers, link)
		mc_coll_peer_free(p);
	mc_coll_net_close(g);
	mc_coll_shmem_unmap(atomic_load_explicit(&g->board, memory_order_relaxed),
			    MC_COLL_BOARD_LEN);
	mc_coll_shmem_unmap(g->page, MC_COLL_PAGE_LEN);
	mc_coll_shmem_unmap(g->rings, MC_COLL_RINGS_LEN);
	mc_coll_shmem_unmap(g->area, g->area_len);
	mc_fd_close(&g->fd);
	mc_fd_close(&g->board_fd);
	pthread_mutex_destroy(&g->lock);
	pthread_mutex_destroy(&g->run_lock);
	mc_free(g);
}

/* ---- what it says of itself ---- */

uint64_t mc_coll_active(struct mc_coll *g)
{
	struct mc_coll_board *b = atomic_load_explicit(&g->board, memory_order_acquire);
	uint64_t count = b ? atomic_load_explicit(&b->count, memory_order_acquire) : 0;

	/* No board yet: the loop asks while the group is being opened. */
	if (b && count > atomic_load_explicit(&g->page->log_seen, memory_order_acquire))
		return b->log[(count - 1) % MC_COLL_LOG].active;
	return atomic_load_explicit(&g->active, memory_order_relaxed);
}

static uint64_t slots_where(struct mc_coll *g, bool (*is)(const struct mc_coll *g, uint32_t slot))
{
	uint64_t out = 0;

	pthread_mutex_lock(&g->lock);
	for (uint32_t s = 0; s < g->ranks_max; s++)
		if (s != g->rank && is(g, s))
			out |= MC_COLL_BIT(s);
	pthread_mutex_unlock(&g->lock);
	return out;
}

static bool is_ready(const struct mc_coll *g, uint32_t slot)
{
	const struct mc_coll_peer *p = g->next[slot] ? g->next[slot] : g->cur[slot];

	return p && !mc_coll_peer_is_lost(p);
}

static bool is_gone(const struct mc_coll *g, uint32_t slot)
{
	return g->cur[slot] && mc_coll_peer_is_lost(g->cur[slot]) && !is_ready(g, slot);
}

uint64_t mc_coll_ready(struct mc_coll *g)
{
	return slots_where(g, is_ready);
}

uint64_t mc_coll_gone(struct mc_coll *g)
{
	return slots_where(g, is_gone);
}

uint64_t mc_coll_epoch(struct mc_coll *g)
{
	return atomic_load_explicit(&g->page->log_seen, memory_order_acquire);
}

void mc_coll_say(struct mc_coll *g, const char *fmt, ...)
{
	char text[sizeof(g->diag.text)];
	va_list ap;

	va_start(ap, fmt);
	(void)vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	pthread_mutex_lock(&g->lock);
	mc_diag_set(&g->diag, "%s", text);
	pthread_mutex_unlock(&g->lock);
}

void mc_coll_last_error(struct mc_coll *g, struct mc_diag *ret_diag)
{
	pthread_mutex_lock(&g->lock);
	*ret_diag = g->diag;
	pthread_mutex_unlock(&g->lock);
}
