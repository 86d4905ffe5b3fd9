/*
 * shm_heap.h: memory that peers of the same user can map: buddy-managed arenas of sealed memfds.
 *
 * Blocks are powers of two of pages; what rounding adds is address space only, since pages come
 * when first touched and go back when a large block is freed. All bookkeeping is private memory: a
 * peer can scribble on data, never on this. Nothing of it is usable in a forked child, where the
 * arenas are not mapped.
 */
#ifndef MC_XPORT_SHM_HEAP_H
#define MC_XPORT_SHM_HEAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

/* Arenas at one time; an arena's id is index + MC_SHM_ARENAS_MAX × generation, so an id is not used
 * twice. */
#define MC_SHM_ARENAS_MAX 1024u

struct mc_shm_heap;

MC_MUST_CHECK int mc_shm_heap_open(struct mc_shm_heap **ret_heap);
/** Frees all blocks with it. NULL is allowed. */
void mc_shm_heap_close(struct mc_shm_heap *h);

/**
 * Memory of at least len bytes, page-aligned, readable and writable. Content of a fresh block is
 * zero, of a reused one of less than 1 MiB whatever it was.
 * @return 0; -MC_E_INVAL (len 0); -MC_E_NOMEM; -MC_E_LIMIT (descriptors or arenas). Any thread.
 */
MC_MUST_CHECK int mc_shm_heap_alloc(struct mc_shm_heap *h, size_t len, void **ret_ptr);
/** @return 0; -MC_E_NOENT when ptr is not the start of a live block. Any thread. */
int mc_shm_heap_free(struct mc_shm_heap *h, void *ptr);

/** Where [addr, addr + len) lies. @return false when it is not inside one arena. Any thread. */
bool mc_shm_heap_where(struct mc_shm_heap *h, uint64_t addr, uint64_t len, uint32_t *ret_arena,
		       uint64_t *ret_off);
/** A descriptor of an arena, for SCM_RIGHTS; the caller closes it. @return 0; -MC_E_STALE;
 * -MC_E_LIMIT. Any thread. */
MC_MUST_CHECK int mc_shm_heap_fd(struct mc_shm_heap *h, uint32_t arena, int *ret_fd,
				 uint64_t *ret_len);

#endif
