/*
 * shmem.h: memory that others map by descriptor: it never shrinks under them, and has no name that
 * could be left behind.
 */
#ifndef MC_COLL_SHMEM_H
#define MC_COLL_SHMEM_H

#include <stdint.h>

#include "base/err.h"

/** Make `len` zeroed bytes. @return 0; -MC_E_NOMEM; -MC_E_LIMIT; -MC_E_UNAVAILABLE. Any thread. */
int mc_coll_shmem_make(const char *name, uint64_t len, int *ret_fd);
/** Make it longer, with its memory reserved. @return 0; -MC_E_NOMEM */
int mc_coll_shmem_grow(int fd, uint64_t from, uint64_t len);
/** Make it longer, with no memory behind what is new. @return 0; -MC_E_NOMEM */
int mc_coll_shmem_stretch(int fd, uint64_t len);
/** Give the memory of [from, len) back; it reads as zeroes. */
void mc_coll_shmem_drop(int fd, uint64_t from, uint64_t len);
/**
 * Map [at, at + len) for reading and writing, after checking that the descriptor is such memory and
 * long enough: a stranger's could be cut under us.
 * @return 0; -MC_E_PROTO (another kind of file, or too short); -MC_E_NOMEM
 */
int mc_coll_shmem_map(int fd, uint64_t at, uint64_t len, void **ret_at);
void mc_coll_shmem_unmap(void *at, uint64_t len);

#endif
