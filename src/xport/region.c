/*
 * region.c: slots in chunks that never move, found by id without a lock, and an interval tree for
 * addresses.
 *
 * A slot's whole life is one 64-bit word {generation:32, alive:1, waiting:1, pins:30}. A pin adds
 * one and looks at what was there before: only if that was alive and of the wanted generation may
 * it look at the rest of the slot, and its pin then keeps the rest from changing. Pins by stale ids
 * come and go on a slot that is dead or has been reused; they are undone at once, and therefore a
 * generation is changed by arithmetic on the word, never by a store.
 */
#include "xport/region.h"

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/err.h"
#include "base/itree.h"
#include "base/mem.h"
#include "base/sync.h"

#define CHUNK_SLOTS 256u
#define CHUNKS_MAX (MC_REGIONS_MAX / CHUNK_SLOTS)
#define ID_NONE UINT32_MAX

#define STATE_PINS ((1ull << 30) - 1)
#define STATE_WAITING (1ull << 30)
#define STATE_ALIVE (1ull << 31)
#define STATE_GEN_SHIFT 32

#define SPINS_MAX 256
#define SLEEP_NS_MIN (2 * MC_NS_PER_US)
#define SLEEP_NS_MAX MC_NS_PER_MS

struct region {
	/* Hot: what a pin touches. All but `state` is constant while alive or pinned. */
	_Atomic uint64_t state;
	uint64_t addr, len;
	uint32_t rights, id;
	/* Cold, under the table's lock. */
	struct mc_inode node;
	uint64_t order; /* when it was first registered; the newest of several wins */
	uint32_t refs, next_free;
	struct mc_region_desc desc;
} __attribute__((aligned(MC_CACHELINE)));

struct mc_region_table {
	_Atomic(struct region *) chunks[CHUNKS_MAX]; /* set once, freed by close only */
	_Atomic uint64_t version;
	_Atomic size_t count;
	pthread_mutex_t lock; /* guards everything below and the slots' cold part; a leaf but for
				 listeners' own */
	struct mc_itree tree;
	struct mc_region_listener *listeners, **listeners_end;
	uint64_t order_next;
	uint32_t slots_used, free_first;
};

static uint32_t state_gen(uint64_t state)
{
	return (uint32_t)(state >> STATE_GEN_SHIFT);
}

/* The half of the word that changes with pins, for futex(2). */
static _Atomic uint32_t *state_low(struct region *r)
{
	return (_Atomic uint32_t *)&r->state + (__BYTE_ORDER__ == __ORDER_BIG_ENDIAN__);
}

static struct region *region_at(struct mc_region_table *t, uint32_t id)
{
	struct region *chunk;

	if (id >= MC_REGIONS_MAX)
		return NULL;
	/* acquire: pairs with the release in slot_take() */
	chunk = atomic_load_explicit(&t->chunks[id / CHUNK_SLOTS], memory_order_acquire);
	return chunk ? &chunk[id % CHUNK_SLOTS] : NULL;
}

static struct region *region_of(const struct mc_inode *node)
{
	return mc_container_of(node, struct region, node);
}

static void region_tell(struct region *r, struct mc_region_info *ret_info)
{
	ret_info->desc = r->desc;
	ret_info->id = r->id;
	ret_info->gen = state_gen(atomic_load_explicit(&r->state, memory_order_relaxed));
	ret_info->refs = r->refs;
}

/* Is [off, off + len) inside a range of region_len bytes, and not empty? */
static bool is_inside(uint64_t off, uint64_t len, uint64_t region_len)
{
	return len > 0 && off < region_len && len <= region_len - off;
}

int mc_region_table_open(struct mc_region_table **ret_table)
{
	struct mc_region_table *t = mc_calloc(1, sizeof(*t));

	if (!t)
		return -MC_E_NOMEM;
	if (pthread_mutex_init(&t->lock, NULL) != 0) {
		mc_free(t);
		return -MC_E_LIMIT;
	}
	t->free_first = ID_NONE;
	t->listeners_end = &t->listeners;
	*ret_table = t;
	return 0;
}

void mc_region_table_close(struct mc_region_table *t)
{
	if (!t)
		return;
	for (size_t i = 0; i < CHUNKS_MAX; i++)
		mc_free(atomic_load_explicit(&t->chunks[i], memory_order_relaxed));
	pthread_mutex_destroy(&t->lock);
	mc_free(t);
}

void mc_region_table_listen(struct mc_region_table *t, struct mc_region_listener *l)
{
	pthread_mutex_lock(&t->lock);
	mc_assert(t->slots_used == 0);
	l->next = NULL;
	*t->listeners_end = l;
	t->listeners_end = &l->next;
	pthread_mutex_unlock(&t->lock);
}

void mc_region_table_unlisten(struct mc_region_table *t, struct mc_region_listener *l)
{
	struct mc_region_listener **at;

	pthread_mutex_lock(&t->lock);
	for (at = &t->listeners; *at && *at != l; at = &(*at)->next)
		;
	if (*at) {
		*at = l->next;
		if (t->listeners_end == &l->next)
			t->listeners_end = at;
	}
	pthread_mutex_unlock(&t->lock);
}

/* ---- add ---- */

/* A dead slot of its own for the caller, from the free list or never used before. Lock held. */
static int slot_take(struct mc_region_table *t, struct region **ret_region)
{
	struct region *chunk;
	uint32_t id = t->free_first;

	if (id != ID_NONE) {
		*ret_region = region_at(t, id);
		t->free_first = (*ret_region)->next_free;
		return 0;
	}
	id = t->slots_used;
	if (id >= MC_REGIONS_MAX)
		return -MC_E_LIMIT;
	if (id % CHUNK_SLOTS == 0 && !region_at(t, id)) {
		chunk = mc_aligned_alloc(MC_CACHELINE, CHUNK_SLOTS * sizeof(*chunk));
		if (!chunk)
			return -MC_E_NOMEM;
		for (uint32_t i = 0; i < CHUNK_SLOTS; i++)
			chunk[i].id = id + i;
		/* release: pairs with the acquire in region_at() */
		atomic_store_explicit(&t->chunks[id / CHUNK_SLOTS], chunk, memory_order_release);
	}
	t->slots_used++;
	*ret_region = region_at(t, id);
	return 0;
}

static void slot_give(struct mc_region_table *t, struct region *r)
{
	r->next_free = t->free_first;
	t->free_first = r->id;
}

/* The next generation, still dead. Generation 0 is left out: it means "none" on the wire. */
static void slot_renew(struct region *r)
{
	uint64_t step = 1ull << STATE_GEN_SHIFT;
	uint32_t gen = state_gen(atomic_load_explicit(&r->state, memory_order_relaxed));

	if (gen == UINT32_MAX)
		step *= 2;
	atomic_fetch_add_explicit(&r->state, step, memory_order_relaxed);
}

/* Ask the listeners in turn. @return 0, or the refusal of *ret_refused */
static int listeners_add(struct mc_region_table *t, const struct mc_region_info *info,
			 struct mc_region_listener **ret_refused)
{
	struct mc_region_listener *l;
	int rc;

	for (l = t->listeners; l; l = l->next) {
		rc = l->on_add(l, info);
		if (rc < 0) {
			*ret_refused = l;
			return rc;
		}
	}
	return 0;
}

static void listeners_revoke(struct mc_region_listener *first, struct mc_region_listener *end,
			     const struct mc_region_info *info)
{
	for (; first != end; first = first->next)
		first->on_revoke(first, info);
}

static void listeners_drain(struct mc_region_listener *first, struct mc_region_listener *end,
			    const struct mc_region_info *info)
{
	uint64_t sleep_ns;
	int spins;

	for (; first != end; first = first->next) {
		sleep_ns = SLEEP_NS_MIN;
		for (spins = 0; !first->is_quiet(first, info); spins++) {
			if (spins < SPINS_MAX) {
				mc_cpu_relax();
				continue;
			}
			nanosleep(&(struct timespec){.tv_nsec = (long)sleep_ns}, NULL);
			sleep_ns = mc_min(sleep_ns * 2, SLEEP_NS_MAX);
		}
	}
}

/* Lock held. On a listener's refusal the lock is left for the undoing and taken again. */
static int region_add_new(struct mc_region_table *t, const struct mc_region_desc *desc,
			  struct mc_region_info *ret_info)
{
	struct mc_region_listener *refused = NULL;
	struct region *r;
	int rc;

	rc = slot_take(t, &r);
	if (rc < 0)
		return rc;
	slot_renew(r);
	r->addr = desc->addr;
	r->len = desc->len;
	r->rights = desc->rights;
	r->refs = 1;
	r->order = t->order_next++;
	r->desc = *desc;
	region_tell(r, ret_info);
	rc = listeners_add(t, ret_info, &refused);
	if (rc < 0) {
		listeners_revoke(t->listeners, refused, ret_info);
		pthread_mutex_unlock(&t->lock);
		listeners_drain(t->listeners, refused, ret_info);
		pthread_mutex_lock(&t->lock);
		slot_give(t, r);
		return rc;
	}
	mc_itree_insert(&t->tree, &r->node, desc->addr, desc->addr + desc->len);
	/* release: whoever sees it alive sees the fields above */
	atomic_fetch_or_explicit(&r->state, STATE_ALIVE, memory_order_release);
	atomic_fetch_add_explicit(&t->count, 1, memory_order_relaxed);
	atomic_fetch_add_explicit(&t->version, 1, memory_order_release);
	return 0;
}

/* Those that a kind of memory may have. */
static uint32_t rights_of(enum mc_mem_kind kind)
{
	return kind == MC_MEM_FILE ? MC_RIGHT_STAGE_READ | MC_RIGHT_STAGE_WRITE
				   : MC_RIGHT_READ | MC_RIGHT_WRITE | MC_RIGHT_UNLISTED;
}

int mc_region_add(struct mc_region_table *t, const struct mc_region_desc *desc,
		  struct mc_region_info *ret_info)
{
	struct mc_region_info info;
	struct mc_inode *same;
	struct region *r;
	uint64_t end;
	int rc = 0;

	if (desc->len == 0 || __builtin_add_overflow(desc->addr, desc->len, &end) ||
	    (desc->rights & ~rights_of(desc->kind)) != 0 ||
	    (unsigned)desc->kind >= MC_MEM_KIND_COUNT ||
	    !memchr(desc->location, '\0', sizeof(desc->location)))
		return -MC_E_INVAL;
	pthread_mutex_lock(&t->lock);
	same = mc_itree_find_exact(&t->tree, desc->addr, end);
	if (same) {
		r = region_of(same);
		if (r->rights != desc->rights)
			rc = -MC_E_INVAL;
		else if (r->refs == UINT32_MAX)
			rc = -MC_E_LIMIT;
		else
			r->refs++;
		if (rc == 0)
			r->desc.is_part &= desc->is_part;
		region_tell(r, &info);
	} else {
		rc = region_add_new(t, desc, &info);
	}
	pthread_mutex_unlock(&t->lock);
	if (rc < 0)
		return rc;
	*ret_info = info;
	return 0;
}

/* ---- del ---- */

/* Wait until nobody pins a slot that is no longer alive. */
static void region_drain(struct region *r)
{
	uint64_t state;
	int rc;

	for (int i = 0; i < SPINS_MAX; i++) {
		/* acquire: pairs with the release in mc_region_unpin() */
		if ((atomic_load_explicit(&r->state, memory_order_acquire) & STATE_PINS) == 0)
			return;
		mc_cpu_relax();
	}
	state = atomic_fetch_or_explicit(&r->state, STATE_WAITING, memory_order_acquire);
	while ((state & STATE_PINS) != 0) {
		rc = mc_futex_wait(state_low(r), (uint32_t)(state | STATE_WAITING), MC_TIME_NEVER);
		mc_assert(rc == 0 ||
			  rc == -MC_E_AGAIN); /* woken or not: the word is looked at again */
		state = atomic_load_explicit(&r->state, memory_order_acquire);
	}
	atomic_fetch_and_explicit(&r->state, ~STATE_WAITING, memory_order_relaxed);
}

/* The newest registration that begins at addr, or NULL. Lock held. */
static struct region *region_find_start(struct mc_region_table *t, uint64_t addr)
{
	struct region *best = NULL;
	struct mc_inode *n;

	if (addr == UINT64_MAX)
		return NULL;
	for (n = mc_itree_overlap_first(&t->tree, addr, addr + 1); n;
	     n = mc_itree_overlap_next(n, addr, addr + 1)) {
		if (n->start == addr && !region_of(n)->desc.is_part &&
		    (!best || region_of(n)->order > best->order))
			best = region_of(n);
	}
	return best;
}

/* Lock held; it is left. */
static int region_end(struct mc_region_table *t, struct region *r)
{
	struct mc_region_listener *listeners;
	struct mc_region_info info;

	if (!r || --r->refs > 0) {
		pthread_mutex_unlock(&t->lock);
		return r ? 0 : -MC_E_NOENT;
	}
	mc_itree_del(&t->tree, &r->node);
	region_tell(r, &info);
	/* acq_rel: a pin before this is counted in the word, a pin after it finds the slot dead */
	atomic_fetch_and_explicit(&r->state, ~STATE_ALIVE, memory_order_acq_rel);
	atomic_fetch_sub_explicit(&t->count, 1, memory_order_relaxed);
	atomic_fetch_add_explicit(&t->version, 1, memory_order_release);
	listeners = t->listeners;
	listeners_revoke(listeners, NULL, &info);
	pthread_mutex_unlock(&t->lock);

	region_drain(r);
	listeners_drain(listeners, NULL, &info);

	pthread_mutex_lock(&t->lock);
	slot_give(t, r);
	pthread_mutex_unlock(&t->lock);
	return 0;
}

int mc_region_del(struct mc_region_table *t, uint64_t addr)
{
	uint64_t len;

	return mc_region_del_range(t, addr, &len);
}

int mc_region_del_range(struct mc_region_table *t, uint64_t addr, uint64_t *ret_len)
{
	struct region *r;

	pthread_mutex_lock(&t->lock);
	r = region_find_start(t, addr);
	if (r)
		*ret_len = r->len;
	return region_end(t, r);
}

int mc_region_del_part(struct mc_region_table *t, uint64_t addr, uint64_t len)
{
	struct mc_inode *n;

	pthread_mutex_lock(&t->lock);
	n = mc_itree_find_exact(&t->tree, addr, addr + len);
	return region_end(t, n ? region_of(n) : NULL);
}

/* ---- look ---- */

/*
 * The newest region that holds [addr, addr + len) whole and has all of `rights`. Lock held.
 * @return 0; -MC_E_RANGE; -MC_E_PERM when only the rights are missing
 */
static int region_find_whole(struct mc_region_table *t, uint64_t addr, uint64_t len,
			     uint32_t rights, struct region **ret_region)
{
	struct region *best = NULL, *r;
	struct mc_inode *n;
	int rc = -MC_E_RANGE;
	uint64_t end;

	if (len == 0 || __builtin_add_overflow(addr, len, &end))
		return rc;
	for (n = mc_itree_overlap_first(&t->tree, addr, addr + 1); n;
	     n = mc_itree_overlap_next(n, addr, addr + 1)) {
		if (n->end < end)
			continue;
		r = region_of(n);
		if ((r->rights & rights) != rights)
			rc = -MC_E_PERM;
		else if (!best || r->order > best->order)
			best = r;
	}
	if (!best)
		return rc;
	*ret_region = best;
	return 0;
}

int mc_region_find(struct mc_region_table *t, uint64_t addr, uint64_t len,
		   struct mc_region_info *ret_info)
{
	struct region *r;
	int rc;

	pthread_mutex_lock(&t->lock);
	rc = region_find_whole(t, addr, len, 0, &r);
	if (rc == 0)
		region_tell(r, ret_info);
	pthread_mutex_unlock(&t->lock);
	return rc;
}

void mc_region_each(struct mc_region_table *t,
		    void (*fn)(void *user, const struct mc_region_info *info), void *user)
{
	struct mc_region_info info;
	struct mc_inode *n;

	pthread_mutex_lock(&t->lock);
	for (n = mc_itree_first(&t->tree); n; n = mc_itree_next(n)) {
		region_tell(region_of(n), &info);
		fn(user, &info);
	}
	pthread_mutex_unlock(&t->lock);
}

uint64_t mc_region_version(const struct mc_region_table *t)
{
	return atomic_load_explicit(&t->version, memory_order_acquire);
}

size_t mc_region_count(const struct mc_region_table *t)
{
	return atomic_load_explicit(&t->count, memory_order_relaxed);
}

/* ---- pin ---- */

static void region_unpin(struct region *r)
{
	/* release: pairs with the acquire in region_drain() */
	uint64_t old = atomic_fetch_sub_explicit(&r->state, 1, memory_order_release);

	/* The slot outlives this: chunks are freed by close only, and a wake-up too many is
	 * harmless. */
	if ((old & STATE_WAITING) != 0 && (old & STATE_PINS) == 1)
		mc_futex_wake(state_low(r), UINT32_MAX);
}

int mc_region_pin(struct mc_region_table *t, uint32_t id, uint32_t gen, uint64_t off, uint64_t len,
		  enum mc_right right, void **ret_ptr)
{
	struct region *r = region_at(t, id);
	uint64_t old;
	int rc = 0;

	if (!r)
		return -MC_E_STALE;
	/* acquire: pairs with the release that made the slot alive */
	old = atomic_fetch_add_explicit(&r->state, 1, memory_order_acquire);
	if ((old & STATE_ALIVE) == 0 || state_gen(old) != gen)
		rc = -MC_E_STALE;
	else if (!is_inside(off, len, r->len))
		rc = -MC_E_RANGE;
	else if ((r->rights & (uint32_t)right) == 0)
		rc = -MC_E_PERM;
	if (rc < 0) {
		region_unpin(r);
		return rc;
	}
	*ret_ptr =
	    (void *)(uintptr_t)(r->addr + off); /* an address of this process, kept as a number */
	return 0;
}

void mc_region_unpin(struct mc_region_table *t, uint32_t id)
{
	struct region *r = region_at(t, id);

	mc_assert(r);
	region_unpin(r);
}

int mc_region_pin_addr(struct mc_region_table *t, uint64_t addr, uint64_t len, enum mc_right right,
		       uint32_t *ret_id)
{
	struct region *r;
	int rc;

	pthread_mutex_lock(&t->lock);
	rc = region_find_whole(t, addr, len, (uint32_t)right, &r);
	if (rc == 0) {
		/* In the tree, so alive: del takes it out under the lock before it clears ALIVE. */
		atomic_fetch_add_explicit(&r->state, 1, memory_order_acquire);
		*ret_id = r->id;
	}
	pthread_mutex_unlock(&t->lock);
	return rc;
}
