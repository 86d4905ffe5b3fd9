/*
 * shm_heap.c: binary buddies (Knowlton, CACM 1965) with free lists of page indices.
 *
 * Arenas grow fourfold from 64 MiB to 4 GiB, so a process needs a handful of descriptors; a request
 * larger than half the largest gets an arena to itself, which goes when it is freed. When the
 * system refuses the size that was planned, one just large enough for the request is tried.
 */
#include "xport/shm_heap.h"

#include <fcntl.h>
#include <errno.h>
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/fork.h"
#include "base/itree.h"
#include "base/mem.h"
#include "io/sock.h"

#define PAGE_SHIFT 12
#define PAGE_LEN ((size_t)1 << PAGE_SHIFT)
#define ARENA_MIN ((size_t)64 << 20)
#define ARENA_MAX ((size_t)4 << 30)
#define PUNCH_MIN ((size_t)1 << 20) /* freed blocks from this size give their pages back */
#define ORDERS_MAX 21		    /* of a shared arena: 4 KiB << 20 is 4 GiB */
#define NONE UINT32_MAX

/* What a page is. Only a block's first page carries its order. */
enum page_state {
	PAGE_INNER,
	PAGE_FREE = 0x40, /* | order */
	PAGE_USED = 0x80, /* | order */
	PAGE_ORDER = 0x3f,
};

struct arena {
	struct mc_inode node; /* address range in heap.tree */
	uint8_t *base;
	size_t len;
	int fd;
	uint32_t id;
	bool is_whole;	/* one block; the arrays below are not there */
	uint8_t *state; /* enum page_state of each page */
	uint32_t *next, *prev;
	uint32_t free_first[ORDERS_MAX];
};

struct mc_shm_heap {
	pthread_mutex_t lock; /* guards everything; a leaf */
	struct arena *arenas[MC_SHM_ARENAS_MAX];
	uint32_t gens[MC_SHM_ARENAS_MAX]; /* of the index's next arena */
	struct mc_itree tree;
	size_t arena_len_next;
	uint64_t fork_gen;
};

/* ---- buddies of one arena ---- */

static unsigned order_of(size_t len)
{
	size_t pages = (len + PAGE_LEN - 1) >> PAGE_SHIFT;
	unsigned order = 0;

	while (((size_t)1 << order) < pages)
		order++;
	return order;
}

static void list_push(struct arena *a, uint32_t page, unsigned order)
{
	uint32_t first = a->free_first[order];

	a->state[page] = (uint8_t)(PAGE_FREE | order);
	a->next[page] = first;
	a->prev[page] = NONE;
	if (first != NONE)
		a->prev[first] = page;
	a->free_first[order] = page;
}

static void list_del(struct arena *a, uint32_t page, unsigned order)
{
	uint32_t next = a->next[page], prev = a->prev[page];

	if (next != NONE)
		a->prev[next] = prev;
	if (prev != NONE)
		a->next[prev] = next;
	else
		a->free_first[order] = next;
	a->state[page] = PAGE_INNER;
}

/* @return the first page of a block, or NONE */
static uint32_t buddy_take(struct arena *a, unsigned order)
{
	unsigned at = order;
	uint32_t page;

	while (at < ORDERS_MAX && a->free_first[at] == NONE)
		at++;
	if (at >= ORDERS_MAX)
		return NONE;
	page = a->free_first[at];
	list_del(a, page, at);
	while (at > order) {
		at--;
		list_push(a, page + (1u << at), at);
	}
	a->state[page] = (uint8_t)(PAGE_USED | order);
	return page;
}

static void buddy_give(struct arena *a, uint32_t page, unsigned order)
{
	size_t pages = a->len >> PAGE_SHIFT;
	uint32_t buddy;

	a->state[page] = PAGE_INNER;
	for (; order + 1 < ORDERS_MAX; order++) {
		buddy = page ^ (1u << order);
		if (buddy >= pages || a->state[buddy] != (PAGE_FREE | order))
			break;
		list_del(a, buddy, order);
		page &= buddy;
	}
	list_push(a, page, order);
}

/* ---- arenas ---- */

static void arena_close(struct arena *a, bool is_child)
{
	if (!a)
		return;
	/* In a forked child the range was never mapped (MADV_DONTFORK) and may be something else by
	 * now. */
	if (a->base && !is_child) {
		/* Peers may keep the mapping for a while: take the pages away from under it. */
		(void)fallocate(a->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0,
				(off_t)a->len);
		munmap(a->base, a->len);
	}
	mc_fd_close(&a->fd);
	mc_free(a->state);
	mc_free(a->next);
	mc_free(a->prev);
	mc_free(a);
}

/* A sealed memfd of a->len bytes, mapped. */
static int arena_map(struct arena *a)
{
	void *p;

	a->fd = memfd_create("mooncake", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (a->fd < 0)
		return mc_err_from_errno(errno);
	if (ftruncate(a->fd, (off_t)a->len) < 0)
		return mc_err_from_errno(errno);
	/* A shrinking file would kill whoever has it mapped. */
	if (fcntl(a->fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0)
		return mc_err_from_errno(errno);
	p = mmap(NULL, a->len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, a->fd, 0);
	if (p == MAP_FAILED)
		return mc_err_from_errno(errno);
	a->base = p;
	if (madvise(p, a->len, MADV_DONTFORK) < 0)
		return mc_err_from_errno(errno);
	(void)madvise(p, a->len, MADV_HUGEPAGE); /* works where shmem huge pages are allowed */
	return 0;
}

static int arena_buddies_init(struct arena *a)
{
	size_t pages = a->len >> PAGE_SHIFT;

	a->state = mc_calloc(pages, sizeof(*a->state));
	a->next = mc_calloc(pages, sizeof(*a->next));
	a->prev = mc_calloc(pages, sizeof(*a->prev));
	if (!a->state || !a->next || !a->prev)
		return -MC_E_NOMEM;
	for (unsigned i = 0; i < ORDERS_MAX; i++)
		a->free_first[i] = NONE;
	list_push(a, 0, order_of(a->len));
	return 0;
}

/* Add an arena of len bytes. Lock held. */
static int arena_open(struct mc_shm_heap *h, size_t len, bool is_whole, struct arena **ret_arena)
{
	struct arena *a;
	uint32_t i;
	int rc;

	for (i = 0; i < MC_SHM_ARENAS_MAX && h->arenas[i]; i++)
		;
	if (i == MC_SHM_ARENAS_MAX)
		return -MC_E_LIMIT;
	a = mc_calloc(1, sizeof(*a));
	if (!a)
		return -MC_E_NOMEM;
	a->fd = -1;
	a->len = len;
	a->is_whole = is_whole;
	rc = arena_map(a);
	if (rc == 0 && !is_whole)
		rc = arena_buddies_init(a);
	if (rc < 0) {
		arena_close(a, false);
		return rc;
	}
	a->id = i + MC_SHM_ARENAS_MAX * h->gens[i]++;
	h->arenas[i] = a;
	mc_itree_insert(&h->tree, &a->node, (uintptr_t)a->base, (uintptr_t)a->base + a->len);
	*ret_arena = a;
	return 0;
}

static struct arena *arena_find(struct mc_shm_heap *h, uint64_t addr, uint64_t len)
{
	struct mc_inode *n = mc_itree_find(&h->tree, addr, len);

	return n ? mc_container_of(n, struct arena, node) : NULL;
}

/* ---- the heap ---- */

int mc_shm_heap_open(struct mc_shm_heap **ret_heap)
{
	struct mc_shm_heap *h = mc_calloc(1, sizeof(*h));

	if (!h)
		return -MC_E_NOMEM;
	if (pthread_mutex_init(&h->lock, NULL) != 0) {
		mc_free(h);
		return -MC_E_LIMIT;
	}
	h->arena_len_next = ARENA_MIN;
	h->fork_gen = mc_fork_gen();
	*ret_heap = h;
	return 0;
}

void mc_shm_heap_close(struct mc_shm_heap *h)
{
	if (!h)
		return;
	for (uint32_t i = 0; i < MC_SHM_ARENAS_MAX; i++)
		arena_close(h->arenas[i], mc_fork_is_child(h->fork_gen));
	pthread_mutex_destroy(&h->lock);
	mc_free(h);
}

/* Lock held. */
static int alloc_whole(struct mc_shm_heap *h, size_t len, void **ret_ptr)
{
	struct arena *a;
	int rc;

	rc = arena_open(h, (len + PAGE_LEN - 1) & ~(PAGE_LEN - 1), true, &a);
	if (rc == 0)
		*ret_ptr = a->base;
	return rc;
}

/* Lock held. */
static int alloc_shared(struct mc_shm_heap *h, size_t len, void **ret_ptr)
{
	unsigned order = order_of(len);
	struct arena *a;
	size_t want;
	uint32_t page;
	int rc;

	for (uint32_t i = 0; i < MC_SHM_ARENAS_MAX; i++) {
		a = h->arenas[i];
		page = a && !a->is_whole ? buddy_take(a, order) : NONE;
		if (page != NONE) {
			*ret_ptr = a->base + ((size_t)page << PAGE_SHIFT);
			return 0;
		}
	}
	want = mc_max(h->arena_len_next, PAGE_LEN << order);
	rc = arena_open(h, want, false, &a);
	if (rc < 0)
		return rc;
	h->arena_len_next = mc_min(want * 4, ARENA_MAX);
	*ret_ptr = a->base + ((size_t)buddy_take(a, order) << PAGE_SHIFT);
	return 0;
}

int mc_shm_heap_alloc(struct mc_shm_heap *h, size_t len, void **ret_ptr)
{
	int rc = -MC_E_NOMEM;

	if (len == 0)
		return -MC_E_INVAL;
	if (len > (size_t)INT64_MAX - PAGE_LEN)
		return -MC_E_NOMEM;
	if (mc_fork_is_child(h->fork_gen))
		return -MC_E_FORKED;
	pthread_mutex_lock(&h->lock);
	if (len <= ARENA_MAX / 2)
		rc = alloc_shared(h, len, ret_ptr);
	if (rc == -MC_E_NOMEM)
		rc = alloc_whole(h, len, ret_ptr);
	pthread_mutex_unlock(&h->lock);
	return rc;
}

/* Lock held. */
static int free_shared(struct arena *a, uint64_t off)
{
	uint32_t page = (uint32_t)(off >> PAGE_SHIFT);
	unsigned order;

	if (off % PAGE_LEN != 0 || (a->state[page] & PAGE_USED) == 0)
		return -MC_E_NOENT;
	order = a->state[page] & PAGE_ORDER;
	if (PAGE_LEN << order >= PUNCH_MIN) /* failing that the pages stay, which is no error */
		(void)fallocate(a->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)off,
				(off_t)(PAGE_LEN << order));
	buddy_give(a, page, order);
	return 0;
}

int mc_shm_heap_free(struct mc_shm_heap *h, void *ptr)
{
	struct arena *a, *dead = NULL;
	int rc = 0;

	if (mc_fork_is_child(h->fork_gen))
		return -MC_E_FORKED;
	pthread_mutex_lock(&h->lock);
	a = arena_find(h, (uintptr_t)ptr, 1);
	if (!a) {
		rc = -MC_E_NOENT;
	} else if (!a->is_whole) {
		rc = free_shared(a, (uint64_t)((uint8_t *)ptr - a->base));
	} else if (ptr != a->base) {
		rc = -MC_E_NOENT;
	} else {
		mc_itree_del(&h->tree, &a->node);
		h->arenas[a->id % MC_SHM_ARENAS_MAX] = NULL;
		dead = a;
	}
	pthread_mutex_unlock(&h->lock);
	arena_close(dead, false);
	return rc;
}

bool mc_shm_heap_where(struct mc_shm_heap *h, uint64_t addr, uint64_t len, uint32_t *ret_arena,
		       uint64_t *ret_off)
{
	struct arena *a;

	pthread_mutex_lock(&h->lock);
	a = arena_find(h, addr, len);
	if (a) {
		*ret_arena = a->id;
		*ret_off = addr - (uintptr_t)a->base;
	}
	pthread_mutex_unlock(&h->lock);
	return a != NULL;
}

int mc_shm_heap_fd(struct mc_shm_heap *h, uint32_t arena, int *ret_fd, uint64_t *ret_len)
{
	struct arena *a;
	int rc = -MC_E_STALE, fd;

	pthread_mutex_lock(&h->lock);
	a = h->arenas[arena % MC_SHM_ARENAS_MAX];
	if (a && a->id == arena) {
		fd = fcntl(a->fd, F_DUPFD_CLOEXEC, 0);
		rc = fd < 0 ? mc_err_from_errno(errno) : 0;
		if (rc == 0) {
			*ret_fd = fd;
			*ret_len = a->len;
		}
	}
	pthread_mutex_unlock(&h->lock);
	return rc;
}
