/*
 * mem.c: libc's heap behind counters and one fault switch.
 *
 * The counters are relaxed and shared: an allocation is a cold path by rule, so their cache line
 * does not matter.
 */
#include "base/mem.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"

static _Atomic uint64_t mem_calls;
static _Atomic int64_t mem_live;
static _Atomic int64_t mem_fail_in = -1; /* calls left before the first failing one; -1: off */

/* Counts the call. @return false when this call has to fail */
static bool mem_admit(void)
{
	int64_t left;

	atomic_fetch_add_explicit(&mem_calls, 1, memory_order_relaxed);
	left = atomic_load_explicit(&mem_fail_in, memory_order_relaxed);
	if (left < 0)
		return true;
	while (left > 0) {
		if (atomic_compare_exchange_weak_explicit(
			&mem_fail_in, &left, left - 1, memory_order_relaxed, memory_order_relaxed))
			return true;
	}
	return left < 0;
}

static void *mem_note(void *ptr)
{
	if (ptr)
		atomic_fetch_add_explicit(&mem_live, 1, memory_order_relaxed);
	return ptr;
}

void *mc_calloc(size_t count, size_t size)
{
	size_t len;

	if (!mem_admit() || __builtin_mul_overflow(count, size, &len))
		return NULL;
	return mem_note(calloc(1, len ? len : 1));
}

void *mc_realloc_array(void *ptr, size_t count, size_t size)
{
	size_t len;
	void *grown;

	if (!mem_admit() || __builtin_mul_overflow(count, size, &len))
		return NULL;
	grown = realloc(ptr, len ? len : 1);
	return ptr ? grown : mem_note(grown);
}

void *mc_aligned_alloc(size_t align, size_t len_bytes)
{
	void *ptr = NULL;

	mc_assert(align >= sizeof(void *) && (align & (align - 1)) == 0);
	if (!mem_admit() || posix_memalign(&ptr, align, len_bytes ? len_bytes : 1) != 0)
		return NULL;
	memset(ptr, 0, len_bytes);
	return mem_note(ptr);
}

void mc_free(void *ptr)
{
	if (!ptr)
		return;
	atomic_fetch_sub_explicit(&mem_live, 1, memory_order_relaxed);
	free(ptr);
}

char *mc_strdup(const char *text)
{
	size_t len = strlen(text) + 1;
	char *copy = mc_calloc(len, 1);

	if (copy)
		memcpy(copy, text, len);
	return copy;
}

char *mc_asprintf(const char *fmt, ...)
{
	char *text = NULL;
	va_list ap, again;
	int len;

	va_start(ap, fmt);
	va_copy(again, ap);
	len = vsnprintf(NULL, 0, fmt, ap);
	if (len >= 0)
		text = mc_calloc((size_t)len + 1, 1);
	if (text && vsnprintf(text, (size_t)len + 1, fmt, again) != len) {
		mc_free(text);
		text = NULL;
	}
	va_end(again);
	va_end(ap);
	return text;
}

int mc_array_grow(void **array, size_t *cap, size_t want, size_t max, size_t elem_size)
{
	size_t least = mc_min((size_t)8, max);
	size_t next;
	void *grown;

	if (want <= *cap)
		return 0;
	if (want > max)
		return -MC_E_TOO_BIG;
	next = *cap > max / 2 ? max : *cap * 2;
	next = mc_max(next, least);
	next = mc_max(next, want);
	grown = mc_realloc_array(*array, next, elem_size);
	if (!grown)
		return -MC_E_NOMEM;
	*array = grown;
	*cap = next;
	return 0;
}

uint64_t mc_mem_calls(void)
{
	return atomic_load_explicit(&mem_calls, memory_order_relaxed);
}

int64_t mc_mem_live(void)
{
	return atomic_load_explicit(&mem_live, memory_order_relaxed);
}

void mc_mem_fail_after(int64_t calls)
{
	atomic_store_explicit(&mem_fail_in, calls < 0 ? -1 : calls, memory_order_relaxed);
}
