/*
 * nomem_shim.c: malloc and its kin of a whole test program, libraries included, which resolve them
 * to these: every call is counted, and one, or all from one on, can be made to fail.
 */
#include "nomem_shim.h"

#include <errno.h>
#include <stdatomic.h>
#include <stddef.h>

/* Libraries bind to what the program exports. */
#define SHIM __attribute__((visibility("default")))

/* glibc's own, which it exports for this. */
void *__libc_malloc(size_t len);		 /* NOLINT */
void *__libc_calloc(size_t n, size_t len);	 /* NOLINT */
void *__libc_realloc(void *p, size_t len);	 /* NOLINT */
void *__libc_memalign(size_t align, size_t len); /* NOLINT */
void __libc_free(void *p);			 /* NOLINT */

/* All relaxed: they guard nothing. */
static _Atomic int64_t calls, live, from = INT64_MAX;
static _Atomic bool is_once, is_armed;

void nomem_arm(int64_t at, bool is_only)
{
	is_once = is_only;
	calls = 0;
	from = at;
	is_armed = true;
}

int64_t nomem_disarm(void)
{
	is_armed = false;
	from = INT64_MAX;
	return calls;
}

int64_t nomem_live(void)
{
	return live;
}

static bool is_denied(void)
{
	int64_t n;

	if (!atomic_load_explicit(&is_armed, memory_order_relaxed))
		return false;
	n = atomic_fetch_add_explicit(&calls, 1, memory_order_relaxed);
	if (is_once ? n != from : n < from)
		return false;
	errno = ENOMEM;
	return true;
}

static void *counted(void *p)
{
	if (p)
		atomic_fetch_add_explicit(&live, 1, memory_order_relaxed);
	return p;
}

SHIM void *malloc(size_t len)
{
	return is_denied() ? NULL : counted(__libc_malloc(len));
}

SHIM void *calloc(size_t n, size_t len)
{
	return is_denied() ? NULL : counted(__libc_calloc(n, len));
}

SHIM void *realloc(void *p, size_t len)
{
	void *q;

	if (p && len == 0) {
		free(p);
		return NULL;
	}
	if (is_denied())
		return NULL;
	q = __libc_realloc(p, len);
	return p ? q : counted(q);
}

SHIM void *memalign(size_t align, size_t len)
{
	return is_denied() ? NULL : counted(__libc_memalign(align, len));
}

SHIM void *aligned_alloc(size_t align, size_t len)
{
	return memalign(align, len);
}

SHIM int posix_memalign(void **ret, size_t align, size_t len)
{
	void *p = memalign(align, len);

	if (!p)
		return ENOMEM;
	*ret = p;
	return 0;
}

SHIM void free(void *p)
{
	if (p)
		atomic_fetch_sub_explicit(&live, 1, memory_order_relaxed);
	__libc_free(p);
}
