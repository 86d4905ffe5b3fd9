/*
 * ids.h: generational handle table. An id that leaves C is index + generation, so a stale or
 * foreign id is an error, never a crash.
 *
 * ids are in [1, 2^63 - 1]: bits 0-23 index + 1, bits 24-62 generation. Lookup pins the object for
 * the caller, so that freeing in one thread cannot pull it from under another; the last unpin after
 * mc_ids_del() runs the destructor.
 */
#ifndef MC_BASE_IDS_H
#define MC_BASE_IDS_H

#include <stddef.h>
#include <stdint.h>

struct mc_ids;

/** @param max most live ids, 1 … 2^24 - 1; @param fini called without locks once an object is
 * deleted and unpinned (may be NULL). */
int mc_ids_open(size_t max, void (*fini)(void *obj), struct mc_ids **ret_ids);
/** Deletes all; every pin must have ended. */
void mc_ids_close(struct mc_ids *ids);
/** @return 0; -MC_E_LIMIT when `max` are live; -MC_E_NOMEM. Any thread. */
int mc_ids_add(struct mc_ids *ids, void *obj, uint64_t *ret_id);
/** Pinned object or NULL for an unknown, stale or deleted id. End with mc_ids_put(). Any thread. */
void *mc_ids_get(struct mc_ids *ids, uint64_t id);
void mc_ids_put(struct mc_ids *ids, uint64_t id);
/** From now on the id is unknown. @return 0 or -MC_E_STALE. The caller may hold a pin. */
int mc_ids_del(struct mc_ids *ids, uint64_t id);

#endif
