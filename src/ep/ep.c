/*
 * ep.c: a rank's memory for halves, and meeting the others.
 */
#include <mooncake/ep.h>

#include <string.h>
#include <sys/mman.h>

#include "base/mem.h"
#include "coll/shmem.h"
#include "ep/net.h"

/* What ranks tell each other when they meet. */
struct meeting {
	uint64_t magic, inc, side_at, epoch;
	uint64_t key[2]; /* over hosts */
	char door[MC_ADDR_TEXT_MAX];
};

static void peer_forget(struct mc_ep_peer *peer)
{
	mc_coll_shmem_unmap(peer->memory, MC_EP_REGION);
	*peer = (struct mc_ep_peer){0};
}

/* Nobody who is alive still reads the slot. */
static bool is_unread(const struct mc_ep *ep, unsigned s)
{
	const struct mc_ep_slot *slot = &ep->slot[s];
	unsigned q;

	mc_coll_each(q, slot->ranks & ~MC_COLL_BIT(ep->coll->rank))
	{
		const struct mc_ep_peer *peer = &ep->peer[q];

		if (!mc_coll_peer_is_gone(peer->p) &&
		    atomic_load_explicit(&peer->page->done[s], memory_order_acquire) < slot->word)
			return false;
	}
	return true;
}

static bool is_all_unread(const struct mc_coll_remains *r)
{
	const struct mc_ep *ep = mc_container_of(r, struct mc_ep, remains);

	for (unsigned s = 0; s < MC_EP_SLOTS; s++)
		if (ep->slot[s].kept && !is_unread(ep, s))
			return false;
	return true;
}

/* @param is_given_back  nobody reads it; else it goes when the last mapping of it does */
static void ep_free(struct mc_ep *ep, bool is_given_back)
{
	struct mc_coll *g = ep->coll;

	for (unsigned s = 0; s < MC_EP_SLOTS; s++) {
		uint64_t at = ep->side_at + MC_EP_PAGE_LEN + s * MC_EP_SPAN;

		if (is_given_back && ep->slot[s].kept)
			mc_coll_shmem_drop(g->fd, at, at + ep->slot[s].kept);
	}
	for (unsigned q = 0; q < MC_COLL_RANKS_MAX; q++)
		peer_forget(&ep->peer[q]);
	mc_coll_shmem_unmap(ep->memory, MC_EP_REGION);
	pthread_mutex_destroy(&ep->lock);
	mc_free(ep);
}

static void remains_end(struct mc_coll_remains *r)
{
	ep_free(mc_container_of(r, struct mc_ep, remains), is_all_unread(r));
}

void mc_ep_close(struct mc_ep *ep)
{
	if (!ep)
		return;
	if (mc_fork_is_child(ep->fork_gen)) {
		ep_free(ep, false);
		return;
	}
	if (ep->net) {
		mc_ep_net_close(ep);
		/* The others have images of it. */
		for (unsigned s = 0; s < MC_EP_SLOTS; s++)
			ep->slot[s].ranks = 0;
	}
	if (ep->memory) {
		/* To the others this rank is as one that never comes, and reads nothing. */
		atomic_fetch_or_explicit(&ep->page->word, MC_EP_FROZEN, memory_order_acq_rel);
		for (unsigned s = 0; s < MC_EP_SLOTS; s++)
			atomic_store_explicit(&ep->page->done[s], UINT64_MAX, memory_order_release);
		mc_coll_ring(ep->coll->page);
		if (!is_all_unread(&ep->remains)) {
			mc_coll_rest_leave(&ep->remains);
			return;
		}
	}
	ep_free(ep, true);
}

int mc_ep_open(struct mc_coll *g, struct mc_diag *diag, struct mc_ep **ret)
{
	struct mc_ep *ep;
	void *at;
	int rc;

	if (mc_fork_is_child(g->fork_gen))
		return -MC_E_FORKED;
	ep = mc_aligned_alloc(MC_CACHELINE, sizeof(*ep));
	if (!ep)
		return -MC_E_NOMEM;
	ep->coll = g;
	ep->fork_gen = g->fork_gen;
	ep->remains =
	    (struct mc_coll_remains){.coll = g, .is_unread = is_all_unread, .end = remains_end};
	pthread_mutex_init(&ep->lock, NULL);
	pthread_mutex_lock(&g->lock);
	ep->side_at = MC_COLL_SIDE_AT + g->side_next;
	g->side_next += MC_EP_REGION;
	pthread_mutex_unlock(&g->lock);
	rc = mc_coll_shmem_stretch(g->fd, ep->side_at + MC_EP_REGION);
	if (rc == 0)
		rc = mc_coll_shmem_grow(g->fd, ep->side_at, ep->side_at + MC_EP_PAGE_LEN);
	if (rc == 0)
		rc = mc_coll_shmem_map(g->fd, ep->side_at, MC_EP_REGION, &at);
	if (rc != 0) {
		mc_diag_set(diag, "shared memory of expert parallelism: %s", mc_err_text(rc));
		mc_ep_close(ep);
		return rc;
	}
	ep->memory = at;
	ep->page = at;
	ep->page->magic = MC_EP_MAGIC;
	rc = g->net ? mc_ep_net_open(ep, diag) : 0;
	if (rc < 0)
		mc_ep_close(ep);
	else
		*ret = ep;
	return rc;
}

/* ---- meeting ---- */

static int exchange(struct mc_ep *ep, struct meeting *all, uint64_t *ret_ranks)
{
	struct mc_coll *g = ep->coll;
	struct meeting own = {
	    .magic = MC_EP_MAGIC, .inc = g->inc, .side_at = ep->side_at, .epoch = ep->epoch};
	struct mc_coll_part in = {&own, sizeof(own)}, out[MC_COLL_RANKS_MAX];
	struct mc_coll_op op = {.kind = MC_COLL_ALL_GATHER,
				.type = MC_COLL_BYTE,
				.in = &in,
				.nin = 1,
				.out = out,
				.nout = g->ranks_max};
	struct mc_coll_result result;
	int rc;

	if (ep->net) {
		memcpy(own.key, ep->net->key, sizeof(own.key));
		(void)mc_addr_format(&ep->net->at, own.door);
	}
	for (unsigned q = 0; q < g->ranks_max; q++)
		out[q] = (struct mc_coll_part){&all[q], sizeof(all[q])};
	rc = mc_coll_run(g, &op, &result);
	*ret_ranks = result.ranks;
	return rc;
}

/* What it will send of its page and slots. */
static int image_make(void **ret_at)
{
	void *at = mmap(NULL, MC_EP_REGION, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (at == MAP_FAILED)
		return -MC_E_NOMEM;
	*ret_at = at;
	return 0;
}

static int peer_take(struct mc_ep *ep, unsigned q, const struct meeting *m, struct mc_diag *diag)
{
	struct mc_ep_peer *peer = &ep->peer[q];
	struct mc_coll *g = ep->coll;
	struct mc_coll_peer *p;
	void *at;
	int rc;

	pthread_mutex_lock(&g->lock);
	p = atomic_load_explicit(&g->cur[q], memory_order_relaxed);
	if (p)
		p->is_kept = true; /* its words tell how far it got, also when it is gone */
	pthread_mutex_unlock(&g->lock);
	if (!p || p->inc != m->inc) {
		mc_diag_set(diag, "rank %u has changed again", q);
		return -MC_E_STALE;
	}
	if (peer->p == p && peer->side_at == m->side_at)
		return 0;
	peer_forget(peer);
	rc = ep->net ? image_make(&at) : mc_coll_shmem_map(p->fd, m->side_at, MC_EP_REGION, &at);
	if (rc < 0) {
		mc_diag_set(diag, "memory of rank %u: %s", q, mc_err_text(rc));
		return rc;
	}
	*peer = (struct mc_ep_peer){.p = p, .side_at = m->side_at, .memory = at, .page = at};
	return 0;
}

static int meet_over_hosts(struct mc_ep *ep, const struct meeting *all, uint64_t ranks,
			   struct mc_diag *diag)
{
	struct mc_ep_door doors[MC_COLL_RANKS_MAX];
	unsigned q;

	mc_coll_each(q, ranks & ~MC_COLL_BIT(ep->coll->rank))
	{
		char door[MC_ADDR_TEXT_MAX];

		memcpy(doors[q].key, all[q].key, sizeof(doors[q].key));
		memcpy(door, all[q].door, sizeof(door));
		door[sizeof(door) - 1] = 0;
		if (mc_addr_parse(door, 0, &doors[q].at) < 0) {
			mc_diag_set(diag, "rank %u is called at \"%s\"", q, door);
			return -MC_E_INVAL;
		}
	}
	mc_ep_net_meet(ep, ranks, doors);
	return 0;
}

/* In the new epoch nothing of before counts. */
static int begin_anew(struct mc_ep *ep, const struct meeting *all, uint64_t ranks,
		      struct mc_diag *diag)
{
	uint64_t epoch = 0;
	unsigned q;
	int rc;

	mc_coll_each(q, ranks)
	{
		if (all[q].magic != MC_EP_MAGIC) {
			mc_diag_set(diag, "rank %u does not meet for expert parallelism", q);
			return -MC_E_INVAL;
		}
		epoch = mc_max(epoch, all[q].epoch);
	}
	if (ep->net)
		mc_ep_net_part(ep);
	ep->epoch = epoch + 1; /* also if this rank has no part in it */
	for (q = 0; q < MC_COLL_RANKS_MAX; q++) {
		bool is_member = q != ep->coll->rank && (ranks & MC_COLL_BIT(q));

		rc = is_member ? peer_take(ep, q, &all[q], diag) : 0;
		if (rc < 0)
			return rc;
		if (!is_member)
			peer_forget(&ep->peer[q]);
	}
	for (unsigned s = 0; s < MC_EP_SLOTS; s++)
		ep->slot[s] = (struct mc_ep_slot){.kept = ep->slot[s].kept};
	ep->half = ep->count[0] = ep->count[1] = 0;
	atomic_store_explicit(&ep->masked, 0, memory_order_relaxed);
	atomic_store_explicit(&ep->members, ranks, memory_order_relaxed);
	rc = mc_ep_enter(ep, ep->epoch);
	if (rc < 0)
		mc_diag_set(diag, "rank %u was too late for the others", ep->coll->rank);
	return rc == 0 && ep->net ? meet_over_hosts(ep, all, ranks, diag) : rc;
}

/* The others may be in a new epoch, and some may not: this rank is in none until all meet again. */
static void be_in_none(struct mc_ep *ep, uint64_t last_epoch)
{
	if (ep->net)
		mc_ep_net_part(ep);
	/* Halves that had begun are void. */
	if (ep->epoch == last_epoch)
		ep->epoch++;
	for (unsigned s = 0; s < MC_EP_SLOTS; s++)
		ep->slot[s] = (struct mc_ep_slot){.kept = ep->slot[s].kept};
	atomic_store_explicit(&ep->masked, 0, memory_order_relaxed);
	atomic_store_explicit(&ep->members, 0, memory_order_relaxed);
	/* Whoever takes it for a member does not wait for it. */
	(void)mc_ep_enter(ep, ep->epoch);
	atomic_fetch_or_explicit(&ep->page->word, MC_EP_FROZEN, memory_order_acq_rel);
	mc_coll_ring(ep->coll->page);
}

int mc_ep_update(struct mc_ep *ep, struct mc_diag *diag)
{
	struct meeting all[MC_COLL_RANKS_MAX] = {0};
	uint64_t ranks, last_epoch;
	int rc;

	if (mc_fork_is_child(ep->fork_gen))
		return -MC_E_FORKED;
	pthread_mutex_lock(&ep->lock);
	last_epoch = ep->epoch;
	if (atomic_load_explicit(&ep->ninside, memory_order_acquire) != 0) {
		mc_diag_set(diag, "a half is being ended in another thread");
		rc = -MC_E_BUSY;
	} else {
		rc = exchange(ep, all, &ranks);
		if (rc < 0)
			mc_coll_last_error(ep->coll, diag);
		else
			rc = begin_anew(ep, all, ranks, diag);
		if (rc < 0)
			be_in_none(ep, last_epoch);
	}
	pthread_mutex_unlock(&ep->lock);
	return rc;
}

/* ---- masks ---- */

uint64_t mc_ep_members(const struct mc_ep *ep)
{
	return atomic_load_explicit(&ep->members, memory_order_relaxed);
}

uint64_t mc_ep_masked(const struct mc_ep *ep)
{
	return atomic_load_explicit(&ep->masked, memory_order_relaxed);
}

void mc_ep_mask(struct mc_ep *ep, uint64_t slots, bool is_masked)
{
	if (is_masked)
		atomic_fetch_or_explicit(&ep->masked, slots, memory_order_relaxed);
	else
		atomic_fetch_and_explicit(&ep->masked, ~slots, memory_order_relaxed);
}
