/*
 * vos_mem.c: each process's heap is a range of addresses of its own, so that all of it goes when
 * the process does, and addresses are the same in each run of a seed. Blocks have sizes of powers
 * of two, with a header in front; freed ones are overwritten, so that a use after it is seen.
 */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "base/err.h"
#include "base/mem.h"
#include "sim/vos/vos.h"

#define ARENAS_AT 0x200000000000ull
#define ARENA_BYTES (1ull << 30)
#define CLASSES 31u
#define CLASS_MIN 5u /* 32 bytes, header and all */
#define BLOCK_MAGIC 0x51bb10cu
#define POISON_MAX 512u

struct block {
	uint32_t magic, class;
	struct block *next; /* while free; else: where the block begins */
};

struct vos_arena {
	uint8_t *base;
	size_t used; /* beyond it is all zeros */
	struct block *free[CLASSES];
};

static struct vos_arena arenas[VOS_HOSTS_MAX];
static int host_depth;

void *__real_malloc(size_t len);
void *__real_calloc(size_t n, size_t len);
void *__real_realloc(void *ptr, size_t len);
void __real_free(void *ptr);
int __real_posix_memalign(void **ret, size_t align, size_t len);
void *__wrap_malloc(size_t len);
void *__wrap_calloc(size_t n, size_t len);
void *__wrap_realloc(void *ptr, size_t len);
void __wrap_free(void *ptr);
int __wrap_posix_memalign(void **ret, size_t align, size_t len);
char *__wrap_strdup(const char *text);

void *vos_host_alloc(size_t len)
{
	void *p = __real_calloc(1, len);

	mc_assert(p);
	return p;
}

void vos_host_free(void *ptr)
{
	__real_free(ptr);
}

void vos_host_enter(void)
{
	host_depth++;
}

void vos_host_leave(void)
{
	host_depth--;
}

struct vos_arena *vos_arena_get(unsigned host)
{
	struct vos_arena *a = &arenas[host];

	if (!a->base) {
		a->base =
		    mmap((void *)(uintptr_t)(ARENAS_AT + host * 2 * ARENA_BYTES), ARENA_BYTES,
			 PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
		mc_assert(a->base != MAP_FAILED);
	}
	/* What the process before had is given back: zeros for nothing where nobody looks. */
	mc_assert(madvise(a->base, a->used, MADV_DONTNEED) == 0);
	a->used = 0;
	memset(a->free, 0, sizeof(a->free));
	return a;
}

static struct block *block_of(void *ptr)
{
	struct block *b = (struct block *)ptr - 1;

	mc_assert(b->magic == BLOCK_MAGIC); /* else: freed twice, or overrun */
	return b;
}

/* @param ret_is_new  it is all zeros */
static void *take(struct vos_arena *a, size_t len, size_t align, bool *ret_is_new)
{
	size_t whole = len + sizeof(struct block) + (align > 16 ? align : 0);
	unsigned class = CLASS_MIN;
	uint8_t *start, *p;
	struct block *b;

	while (class < CLASSES && ((size_t)1 << class) < whole)
		class ++;
	if (class == CLASSES)
		return NULL;
	*ret_is_new = false;
	if (a->free[class]) {
		start = (uint8_t *)a->free[class]->next;
		b = a->free[class];
		memcpy(&a->free[class], start + 16, sizeof(b));
	} else {
		if (a->used + ((size_t)1 << class) > ARENA_BYTES)
			return NULL;
		start = a->base + a->used;
		*ret_is_new = true;
		a->used += (size_t)1 << class;
	}
	p = start + sizeof(*b);
	if (align > 16)
		p = (uint8_t *)(((uintptr_t)p + align - 1) / align * align);
	b = (struct block *)p - 1;
	*b = (struct block){BLOCK_MAGIC, class, (struct block *)start};
	return p;
}

static struct vos_arena *arena_of(const void *ptr)
{
	uintptr_t at = (uintptr_t)ptr - ARENAS_AT;

	return (uintptr_t)ptr >= ARENAS_AT && at / (2 * ARENA_BYTES) < VOS_HOSTS_MAX
		   ? &arenas[at / (2 * ARENA_BYTES)]
		   : NULL;
}

static void give(struct vos_arena *a, void *ptr)
{
	struct block *b = block_of(ptr), *first;
	uint8_t *start = (uint8_t *)b->next;
	unsigned class = b->class;
	size_t len = ((size_t)1 << class) - (size_t)((uint8_t *)ptr - start);

	memset(ptr, 0xdb, mc_min(len, (size_t)POISON_MAX));
	b->magic = 0;
	first = (struct block *)start;
	memcpy(start + 16, &a->free[class], sizeof(first));
	first->next = (struct block *)start;
	a->free[class] = first;
}

void *vos_proc_alloc(struct vos_proc *proc, size_t len, size_t align)
{
	bool is_new;
	void *p = take(proc->arena, len, align, &is_new);

	if (p && !is_new)
		memset(p, 0, len);
	return p;
}

void vos_proc_free(struct vos_proc *proc, void *ptr)
{
	give(proc->arena, ptr);
}

static struct vos_arena *here(void)
{
	return host_depth == 0 && vos_self() ? vos_self()->arena : NULL;
}

void *__wrap_malloc(size_t len)
{
	bool is_new;

	return here() ? take(here(), len, 16, &is_new) : __real_malloc(len);
}

void *__wrap_calloc(size_t n, size_t len)
{
	bool is_new;
	void *p;

	if (!here())
		return __real_calloc(n, len);
	if (__builtin_mul_overflow(n, len, &len))
		return NULL;
	p = take(here(), len, 16, &is_new);
	if (p && !is_new)
		memset(p, 0, len);
	return p;
}

void *__wrap_realloc(void *ptr, size_t len)
{
	struct vos_arena *a = arena_of(ptr);
	struct block *b;
	size_t had;
	bool is_new;
	void *p;

	if (!ptr)
		return __wrap_malloc(len);
	if (!a)
		return __real_realloc(ptr, len);
	b = block_of(ptr);
	had = ((size_t)1 << b->class) - (size_t)((uint8_t *)ptr - (uint8_t *)b->next);
	if (len <= had)
		return ptr;
	p = take(a, len, 16, &is_new);
	if (!p)
		return NULL;
	memcpy(p, ptr, had);
	give(a, ptr);
	return p;
}

void __wrap_free(void *ptr)
{
	struct vos_arena *a = arena_of(ptr);

	if (a)
		give(a, ptr);
	else
		__real_free(ptr);
}

int __wrap_posix_memalign(void **ret, size_t align, size_t len)
{
	bool is_new;

	if (!here())
		return __real_posix_memalign(ret, align, len);
	*ret = take(here(), len, align, &is_new);
	return *ret ? 0 : ENOMEM;
}

char *__wrap_strdup(const char *text)
{
	size_t len = strlen(text) + 1;
	char *copy = __wrap_malloc(len);

	if (copy)
		memcpy(copy, text, len);
	return copy;
}
