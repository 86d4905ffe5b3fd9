/*
 * nomem_shim.h: memory that runs out, for all code of a process: ours, the C library's, that of
 * jansson, protobuf-c, libcurl, hiredis and whatever else it has loaded. Not under a sanitizer,
 * which has an allocator of its own.
 */
#ifndef TESTS_CONFORM_NOMEM_SHIM_H
#define TESTS_CONFORM_NOMEM_SHIM_H

#include <malloc.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>

/** From now on the `at`-th call (0: the next), or with !is_only all from it on, fail, in any
 * thread. */
void nomem_arm(int64_t at, bool is_only);
/** @return calls since it was armed */
int64_t nomem_disarm(void);
/** Blocks that are not freed. */
int64_t nomem_live(void);

#endif
