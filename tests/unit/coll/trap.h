/*
 * trap.h: a process that dies at an exact place: just before its n-th store to a piece of memory,
 * by whatever instruction of whichever thread.
 */
#ifndef MC_TESTS_COLL_TRAP_H
#define MC_TESTS_COLL_TRAP_H

#include <stdbool.h>
#include <stdint.h>

/** Can this machine do it? It needs a processor that steps (x86-64). */
bool trap_is_possible(void);
/** From here on n stores to the 4 KiB at `page` succeed, and the next one is SIGKILL. Once in a
 * process, which is a test's child. */
void trap_set(void *page, uint64_t n);
/** Not any more. */
void trap_clear(void);

#endif
