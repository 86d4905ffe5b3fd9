/*
 * cuda.c: a rank's memory on a GPU, meeting the others, and who tells kernels that somebody died.
 */
#include "ep/cuda.h"

#include <string.h>

#include "base/clock.h"
#include "base/mem.h"
#include "base/sync.h"
#include "ep/priv.h"

#define SLOT_ALIGN (1ull << 21) /* pages of GPUs */
#define SLOT_MAX (1ull << 40)
#define CU_MEMHOSTALLOC_SHARED 3u /* PORTABLE, DEVICEMAP */
#define CU_STREAM_NON_BLOCKING 1u
#define CU_EVENT_DISABLE_TIMING 2u
#define CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS 1u

/* What ranks tell each other when they meet. */
struct meeting {
	uint64_t magic, inc, epoch, span;
	struct mc_gpu_handle window;
	char bus[MC_GPU_BUS_LEN];
};

int mc_ep_cuda_check(struct mc_diag *diag)
{
	const struct mc_gpu_api *api;

	return mc_gpu_api(&api, diag);
}

/* ---- deaths ---- */

static void tell_gone(struct mc_ep_cuda *ep)
{
	uint64_t gone = 0;

	/* Stored with the lock: what was true of an incarnation before is not told of the next. */
	pthread_mutex_lock(&ep->peers_lock);
	for (unsigned q = 0; q < MC_COLL_RANKS_MAX; q++)
		if (ep->peer[q].p && mc_coll_peer_is_gone(ep->peer[q].p))
			gone |= MC_COLL_BIT(q);
	__atomic_store_n(&ep->host->gone, gone, __ATOMIC_RELEASE);
	pthread_mutex_unlock(&ep->peers_lock);
}

static void *watch(void *arg)
{
	struct mc_ep_cuda *ep = arg;
	struct mc_coll *g = ep->coll;

	while (!atomic_load_explicit(&ep->is_closing, memory_order_acquire)) {
		uint32_t bell = atomic_load_explicit(&g->bell, memory_order_acquire);

		tell_gone(ep);
		if (atomic_load_explicit(&g->is_aborted, memory_order_relaxed))
			__atomic_store_n(&ep->host->stop, 1, __ATOMIC_RELEASE);
		if (!atomic_load_explicit(&ep->is_closing, memory_order_acquire))
			(void)!mc_futex_wait(&g->bell, bell, MC_TIME_NEVER);
	}
	return NULL;
}

/* ---- life ---- */

/* In the context. @param is_end  this rank never comes; else its word becomes `word` */
static int move_word(struct mc_ep_cuda *ep, uint64_t word, bool is_end, struct mc_diag *diag)
{
	struct mc_epk_half h = {.me = ep->coll->rank,
				.word = word,
				.is_canceled = is_end,
				.host = (void *)(uintptr_t)ep->host_at,
				.ctl = (void *)(uintptr_t)ep->ctl};
	int rc;

	h.window[h.me] = ep->window;
	rc = mc_gpu_launch(&ep->gpu, MC_EPK_word, 1, 1, &h, ep->stream, diag);
	if (rc == 0)
		rc = mc_gpu_fail(ep->gpu.api, ep->gpu.api->stream_sync(ep->stream),
				 "the kernel that enters an epoch", diag);
	return rc ? rc : __atomic_load_n(&ep->host->note[0].rc, __ATOMIC_ACQUIRE);
}

static void peer_forget(struct mc_ep_cuda *ep, struct mc_ep_cuda_peer *peer)
{
	if (peer->window)
		(void)ep->gpu.api->ipc_close(peer->window); /* it may be gone */
	pthread_mutex_lock(&ep->peers_lock);
	*peer = (struct mc_ep_cuda_peer){0};
	pthread_mutex_unlock(&ep->peers_lock);
}

static void free_memory(struct mc_ep_cuda *ep)
{
	const struct mc_gpu_api *api = ep->gpu.api;

	for (unsigned q = 0; q < MC_COLL_RANKS_MAX; q++)
		peer_forget(ep, &ep->peer[q]);
	/* All of it is ours and unused: nothing is to be done where the driver says no. */
	for (unsigned s = 0; s < MC_EP_SLOTS; s++) {
		if (ep->slot[s].event)
			(void)api->event_destroy(ep->slot[s].event);
		if (ep->slot[s].scratch)
			(void)api->free(ep->slot[s].scratch);
	}
	if (ep->stream)
		(void)api->stream_destroy(ep->stream);
	if (ep->ctl)
		(void)api->free(ep->ctl);
	if (ep->window)
		(void)api->free(ep->window);
	if (ep->host)
		(void)api->host_free(ep->host);
}

void mc_ep_cuda_close(struct mc_ep_cuda *ep)
{
	struct mc_diag diag;

	if (!ep)
		return;
	if (mc_fork_is_child(ep->fork_gen))
		return; /* CUDA does not work there: all of it is the parent's */
	atomic_store_explicit(&ep->is_closing, true, memory_order_release);
	if (ep->host)
		__atomic_store_n(&ep->host->stop, 1, __ATOMIC_RELEASE);
	if (ep->has_watcher) {
		mc_coll_stir(ep->coll);
		pthread_join(ep->watcher, NULL);
	}
	if (ep->gpu.context && mc_gpu_enter(&ep->gpu, &diag) == 0) {
		/* Kernels that wait have been told to stop; a GPU that failed has nothing left. */
		(void)mc_ep_cuda_settle(ep, &diag);
		if (ep->stream && ep->host)
			(void)move_word(ep, 0, true, &diag);
		free_memory(ep);
		mc_gpu_leave(&ep->gpu);
	}
	mc_gpu_fini(&ep->gpu);
	pthread_mutex_destroy(&ep->lock);
	pthread_mutex_destroy(&ep->peers_lock);
	mc_free(ep);
}

/* In the context. */
static int make_memory(struct mc_ep_cuda *ep, struct mc_diag *diag)
{
	const struct mc_gpu_api *api = ep->gpu.api;
	uint64_t len = MC_EPK_PAGE_LEN + MC_EP_SLOTS * ep->span;
	void *host = NULL;
	int rc;

	rc = api->stream_create(&ep->stream, CU_STREAM_NON_BLOCKING);
	for (unsigned s = 0; s < MC_EP_SLOTS && rc == 0; s++)
		rc = api->event_create(&ep->slot[s].event, CU_EVENT_DISABLE_TIMING);
	if (rc == 0)
		rc = api->alloc(&ep->window, mc_ep_align(len, SLOT_ALIGN));
	if (rc == 0)
		rc = api->alloc(&ep->ctl, MC_EP_SLOTS * sizeof(struct mc_epk_ctl));
	if (rc == 0)
		rc = api->host_alloc(&host, sizeof(*ep->host), CU_MEMHOSTALLOC_SHARED);
	if (rc == 0) {
		memset(host, 0, sizeof(*ep->host));
		ep->host = host;
		rc = api->host_device(&ep->host_at, host, 0);
	}
	if (rc == 0)
		rc = api->set(ep->window, 0, MC_EPK_PAGE_LEN, ep->stream);
	if (rc == 0)
		rc = api->stream_sync(ep->stream);
	return mc_gpu_fail(api, rc, "memory of expert parallelism on a GPU", diag);
}

int mc_ep_cuda_open(struct mc_coll *g, int device, uint64_t slot_bytes, struct mc_diag *diag,
		    struct mc_ep_cuda **ret)
{
	struct mc_ep_cuda *ep;
	int rc;

	if (mc_fork_is_child(g->fork_gen))
		return -MC_E_FORKED;
	if (g->net) {
		mc_diag_set(diag, "group %s goes over hosts; GPUs read each other's memory on one",
			    g->name);
		return -MC_E_UNSUPPORTED;
	}
	if (slot_bytes == 0 || slot_bytes > SLOT_MAX) {
		mc_diag_set(diag, "slots of %llu bytes (1 to 2^40)",
			    (unsigned long long)slot_bytes);
		return -MC_E_INVAL;
	}
	ep = mc_calloc(1, sizeof(*ep));
	if (!ep)
		return -MC_E_NOMEM;
	ep->coll = g;
	ep->fork_gen = g->fork_gen;
	ep->span = mc_ep_align(slot_bytes, MC_EPK_PAGE_LEN);
	ep->last_slot[0] = ep->last_slot[1] = -1;
	pthread_mutex_init(&ep->lock, NULL);
	pthread_mutex_init(&ep->peers_lock, NULL);
	rc = mc_gpu_init(&ep->gpu, device, diag);
	if (rc == 0)
		rc = mc_gpu_enter(&ep->gpu, diag);
	if (rc < 0)
		goto fail;
	rc = make_memory(ep, diag);
	mc_gpu_leave(&ep->gpu);
	if (rc == 0 && pthread_create(&ep->watcher, NULL, watch, ep) != 0)
		rc = -MC_E_LIMIT;
	if (rc < 0)
		goto fail;
	ep->has_watcher = true;
	*ret = ep;
	return 0;
fail:
	mc_ep_cuda_close(ep);
	return rc;
}

/* ---- meeting ---- */

/* @param all  by rank, ranks_max of them */
static int gather(struct mc_ep_cuda *ep, void *own, void *all, uint64_t len, uint64_t *ret_ranks,
		  struct mc_diag *diag)
{
	struct mc_coll *g = ep->coll;
	struct mc_coll_part in = {own, len}, out[MC_COLL_RANKS_MAX];
	struct mc_coll_op op = {.kind = MC_COLL_ALL_GATHER,
				.type = MC_COLL_BYTE,
				.in = &in,
				.nin = 1,
				.out = out,
				.nout = g->ranks_max};
	struct mc_coll_result result;
	int rc;

	for (unsigned q = 0; q < g->ranks_max; q++)
		out[q] = (struct mc_coll_part){(uint8_t *)all + q * len, len};
	rc = mc_coll_run(g, &op, &result);
	*ret_ranks = result.ranks;
	if (rc < 0)
		mc_coll_last_error(g, diag);
	return rc;
}

static int check_meeting(struct mc_ep_cuda *ep, unsigned q, const struct meeting *m,
			 struct mc_diag *diag)
{
	struct mc_diag why = {.text = ""};
	int rc;

	if (m->magic != MC_EPK_MAGIC || !memchr(m->bus, 0, sizeof(m->bus))) {
		mc_diag_set(diag, "rank %u does not meet for expert parallelism on GPUs", q);
		return -MC_E_INVAL;
	}
	if (m->span != ep->span) {
		mc_diag_set(diag, "slots of rank %u have %llu bytes, here they have %llu", q,
			    (unsigned long long)m->span, (unsigned long long)ep->span);
		return -MC_E_UNSUPPORTED;
	}
	rc = mc_gpu_reaches(&ep->gpu, m->bus, &why);
	if (rc < 0)
		mc_diag_set(diag, "rank %u: %s", q, why.text);
	return rc;
}

static int peer_take(struct mc_ep_cuda *ep, unsigned q, const struct meeting *m,
		     struct mc_diag *diag)
{
	struct mc_ep_cuda_peer *peer = &ep->peer[q];
	struct mc_coll *g = ep->coll;
	struct mc_coll_peer *p;
	uint64_t at;
	int rc;

	pthread_mutex_lock(&g->lock);
	p = atomic_load_explicit(&g->cur[q], memory_order_relaxed);
	if (p)
		p->is_kept = true;
	pthread_mutex_unlock(&g->lock);
	if (!p || p->inc != m->inc) {
		mc_diag_set(diag, "rank %u has changed again", q);
		return -MC_E_STALE;
	}
	if (peer->p == p && memcmp(&peer->handle, &m->window, sizeof(m->window)) == 0)
		return 0;
	peer_forget(ep, peer);
	rc = ep->gpu.api->ipc_open(&at, m->window, CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS);
	if (rc)
		return mc_gpu_fail(ep->gpu.api, rc, "memory of another rank's GPU", diag);
	pthread_mutex_lock(&ep->peers_lock);
	*peer = (struct mc_ep_cuda_peer){.p = p, .handle = m->window, .window = at};
	pthread_mutex_unlock(&ep->peers_lock);
	return 0;
}

static int take_all(struct mc_ep_cuda *ep, const struct meeting *all, uint64_t ranks,
		    struct mc_diag *diag)
{
	int rc = 0;

	for (unsigned q = 0; q < MC_COLL_RANKS_MAX && rc == 0; q++) {
		if (q == ep->coll->rank)
			continue;
		if (!(ranks & MC_COLL_BIT(q))) {
			peer_forget(ep, &ep->peer[q]);
			continue;
		}
		rc = check_meeting(ep, q, &all[q], diag);
		if (rc == 0)
			rc = peer_take(ep, q, &all[q], diag);
	}
	return rc;
}

/* Nobody begins where one of them could not. */
static int agree(struct mc_ep_cuda *ep, int rc, uint64_t ranks, struct mc_diag *diag)
{
	int32_t own = rc, all[MC_COLL_RANKS_MAX];
	uint64_t there;
	unsigned q;
	struct mc_diag none;
	int gathered = gather(ep, &own, all, sizeof(own), &there, rc < 0 ? &none : diag);

	if (rc < 0 || gathered < 0)
		return rc < 0 ? rc : gathered;
	mc_coll_each(q, ranks & there)
	{
		if (all[q] < 0) {
			mc_diag_set(diag, "rank %u cannot take part (%s)", q, mc_err_text(all[q]));
			return all[q];
		}
	}
	return 0;
}

/* In the context. */
static int begin_anew(struct mc_ep_cuda *ep, uint64_t epoch, uint64_t ranks, struct mc_diag *diag)
{
	const struct mc_gpu_api *api = ep->gpu.api;
	int rc = mc_gpu_fail(
	    api, api->set(ep->ctl, 0, MC_EP_SLOTS * sizeof(struct mc_epk_ctl), ep->stream),
	    "memory of a GPU", diag);

	if (rc < 0)
		return rc;
	mc_ep_cuda_slots_reset(ep);
	ep->epoch = epoch;
	atomic_store_explicit(&ep->members, ranks, memory_order_relaxed);
	rc = move_word(ep, epoch << MC_EP_EPOCH_BITS, false, diag);
	if (rc == -MC_E_STALE)
		mc_diag_set(diag, "rank %u was too late for the others", ep->coll->rank);
	ep->is_out = rc < 0;
	tell_gone(ep);
	return rc;
}

/* In the context, with the lock. */
static int meet(struct mc_ep_cuda *ep, struct mc_diag *diag)
{
	struct meeting own = {
	    .magic = MC_EPK_MAGIC, .inc = ep->coll->inc, .epoch = ep->epoch, .span = ep->span};
	struct meeting all[MC_COLL_RANKS_MAX];
	uint64_t ranks, epoch = 0;
	unsigned q;
	int rc;

	memcpy(own.bus, ep->gpu.bus, sizeof(own.bus));
	rc = mc_gpu_fail(ep->gpu.api, ep->gpu.api->ipc_get(&own.window, ep->window),
			 "a handle for other ranks", diag);
	if (rc == 0)
		rc = mc_ep_cuda_settle(ep, diag);
	if (rc < 0)
		return rc;
	rc = gather(ep, &own, all, sizeof(own), &ranks, diag);
	if (rc < 0)
		return rc;
	mc_coll_each(q, ranks) epoch = mc_max(epoch, all[q].epoch);
	rc = agree(ep, take_all(ep, all, ranks, diag), ranks, diag);
	return rc < 0 ? rc : begin_anew(ep, epoch + 1, ranks, diag);
}

int mc_ep_cuda_update(struct mc_ep_cuda *ep, struct mc_diag *diag)
{
	int rc;

	if (mc_fork_is_child(ep->fork_gen))
		return -MC_E_FORKED;
	pthread_mutex_lock(&ep->lock);
	rc = mc_gpu_enter(&ep->gpu, diag);
	if (rc == 0) {
		rc = meet(ep, diag);
		mc_gpu_leave(&ep->gpu);
	}
	pthread_mutex_unlock(&ep->lock);
	return rc;
}

/* ---- masks ---- */

uint64_t mc_ep_cuda_members(const struct mc_ep_cuda *ep)
{
	return atomic_load_explicit(&ep->members, memory_order_relaxed);
}

uint64_t mc_ep_cuda_masked(struct mc_ep_cuda *ep)
{
	uint64_t masked;

	pthread_mutex_lock(&ep->lock);
	mc_ep_cuda_harvest(ep);
	masked = ep->masked;
	pthread_mutex_unlock(&ep->lock);
	return masked;
}

void mc_ep_cuda_mask(struct mc_ep_cuda *ep, uint64_t slots, bool is_masked)
{
	pthread_mutex_lock(&ep->lock);
	mc_ep_cuda_harvest(ep);
	ep->masked = is_masked ? ep->masked | slots : ep->masked & ~slots;
	pthread_mutex_unlock(&ep->lock);
}
