/*
 * hash.h: 64-bit hashing and a map from strings to pointers.
 *
 * The map keeps its entries dense and in a table of indices beside them, so iteration is fast and
 * its order depends only on the calls made, never on the hash seed (which is random per process):
 * simulations stay repeatable.
 */
#ifndef MC_BASE_HASH_H
#define MC_BASE_HASH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

/** XXH3 64 bits: the same on every machine for the same seed. Not for adversaries who know the
 * seed. */
uint64_t mc_hash64(const void *data, size_t len_bytes, uint64_t seed);

struct mc_map_entry {
	uint64_t hash;
	char *key; /* the map's copy */
	void *val; /* the caller's */
};

/** One owner or a lock of the caller's. At most `max` entries. */
struct mc_map {
	struct mc_map_entry *entries;
	uint32_t *index; /* entry + 1, or 0; index_len is a power of two, at most 3/4 full */
	size_t len, cap, index_len, max;
	uint64_t seed;
};

/** @param max most entries, 1 … 2^30 */
void mc_map_init(struct mc_map *map, size_t max);
/** Frees the map, not the values; then empty as after init. */
void mc_map_fini(struct mc_map *map);
/** NULL when the key is unknown. */
void *mc_map_get(const struct mc_map *map, const char *key);
/**
 * Set key to val (not NULL). The key is copied.
 * @param ret_old  receives the value that was replaced, else NULL; may be NULL
 * @return 0 new; 1 replaced; -MC_E_LIMIT when `max` are in; -MC_E_NOMEM
 */
MC_MUST_CHECK int mc_map_put(struct mc_map *map, const char *key, void *val, void **ret_old);
/** Removes the key. @return its value, or NULL when it was not there */
void *mc_map_del(struct mc_map *map, const char *key);
/**
 * Iterate: start with *cursor = 0; false at the end. The entry just given may be deleted if *cursor
 * is then decremented; no other change meanwhile. `ret_key` lives as long as the entry.
 */
bool mc_map_each(const struct mc_map *map, size_t *cursor, const char **ret_key, void **ret_val);

#endif
