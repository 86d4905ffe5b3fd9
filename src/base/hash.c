/*
 * hash.c: XXH3 from libxxhash, inlined; a dense map with linear probing and deletion by backward
 * shift (Knuth, TAOCP 3, 6.4 R), so that no tombstones pile up.
 */
#include "base/hash.h"

#include <stdatomic.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "base/mem.h"
#include "base/rand.h"

#define MAP_INDEX_LEN_MIN 16

uint64_t mc_hash64(const void *data, size_t len_bytes, uint64_t seed)
{
	return XXH3_64bits_withSeed(data, len_bytes, seed);
}

/* One secret for the process, so that a stranger's keys do not collide on purpose. */
static uint64_t map_seed(void)
{
	static _Atomic uint64_t seed;
	uint64_t now = atomic_load_explicit(&seed, memory_order_relaxed);
	uint64_t fresh;

	if (now)
		return now;
	if (mc_rand_bytes(&fresh, sizeof(fresh)) < 0)
		fresh =
		    0; /* without a kernel source maps still work, only not against an adversary */
	fresh |= 1;
	if (atomic_compare_exchange_strong_explicit(&seed, &now, fresh, memory_order_relaxed,
						    memory_order_relaxed))
		return fresh;
	return now;
}

void mc_map_init(struct mc_map *map, size_t max)
{
	mc_assert(max >= 1 && max <= 1u << 30);
	*map = (struct mc_map){.max = max, .seed = map_seed()};
}

void mc_map_fini(struct mc_map *map)
{
	for (size_t i = 0; i < map->len; i++)
		mc_free(map->entries[i].key);
	mc_free(map->entries);
	mc_free(map->index);
	mc_map_init(map, map->max);
}

/* Place in the index of the key, or of the hole where it would go. The index is never full. */
static size_t map_find(const struct mc_map *map, const char *key, uint64_t hash)
{
	size_t mask = map->index_len - 1;
	size_t at = hash & mask;

	for (; map->index[at]; at = (at + 1) & mask) {
		const struct mc_map_entry *e = &map->entries[map->index[at] - 1];

		if (e->hash == hash && strcmp(e->key, key) == 0)
			break;
	}
	return at;
}

void *mc_map_get(const struct mc_map *map, const char *key)
{
	uint32_t entry;

	if (!map->len)
		return NULL;
	entry = map->index[map_find(map, key, mc_hash64(key, strlen(key), map->seed))];
	return entry ? map->entries[entry - 1].val : NULL;
}

/* Make room for one more entry. */
static int map_grow(struct mc_map *map)
{
	void *entries = map->entries;
	uint32_t *index;
	size_t len;
	int rc;

	if (map->len >= map->max)
		return -MC_E_LIMIT;
	rc = mc_array_grow(&entries, &map->cap, map->len + 1, map->max, sizeof(*map->entries));
	if (rc < 0)
		return rc;
	map->entries = entries;
	if ((map->len + 1) * 4 <= map->index_len * 3)
		return 0;
	len = map->index_len ? map->index_len * 2 : MAP_INDEX_LEN_MIN;
	index = mc_calloc(len, sizeof(*index));
	if (!index)
		return -MC_E_NOMEM;
	for (size_t i = 0; i < map->len; i++) {
		size_t at = map->entries[i].hash & (len - 1);

		while (index[at])
			at = (at + 1) & (len - 1);
		index[at] = (uint32_t)i + 1;
	}
	mc_free(map->index);
	map->index = index;
	map->index_len = len;
	return 0;
}

int mc_map_put(struct mc_map *map, const char *key, void *val, void **ret_old)
{
	uint64_t hash = mc_hash64(key, strlen(key), map->seed);
	struct mc_map_entry *e;
	size_t at;
	char *copy;
	int rc;

	mc_assert(val);
	if (map->len && map->index[at = map_find(map, key, hash)]) {
		e = &map->entries[map->index[at] - 1];
		if (ret_old)
			*ret_old = e->val;
		e->val = val;
		return 1;
	}
	rc = map_grow(map);
	if (rc < 0)
		return rc;
	copy = mc_strdup(key);
	if (!copy)
		return -MC_E_NOMEM;
	at = map_find(map, key, hash);
	map->entries[map->len] = (struct mc_map_entry){.hash = hash, .key = copy, .val = val};
	map->index[at] = (uint32_t)++map->len;
	if (ret_old)
		*ret_old = NULL;
	return 0;
}

/* Close the hole at `hole` so that no probe sequence is cut. */
static void map_shift(struct mc_map *map, size_t hole)
{
	size_t mask = map->index_len - 1;

	for (size_t at = (hole + 1) & mask; map->index[at]; at = (at + 1) & mask) {
		size_t home = map->entries[map->index[at] - 1].hash & mask;

		/* Movable unless its home lies cyclically in (hole, at]. */
		if (((at - home) & mask) >= ((at - hole) & mask)) {
			map->index[hole] = map->index[at];
			hole = at;
		}
	}
	map->index[hole] = 0;
}

void *mc_map_del(struct mc_map *map, const char *key)
{
	struct mc_map_entry *e, *last;
	size_t at;
	void *val;

	if (!map->len)
		return NULL;
	at = map_find(map, key, mc_hash64(key, strlen(key), map->seed));
	if (!map->index[at])
		return NULL;
	e = &map->entries[map->index[at] - 1];
	last = &map->entries[map->len - 1];
	val = e->val;
	map_shift(map, at);
	mc_free(e->key);
	if (e != last) {
		map->index[map_find(map, last->key, last->hash)] = (uint32_t)(e - map->entries) + 1;
		*e = *last;
	}
	map->len--;
	return val;
}

bool mc_map_each(const struct mc_map *map, size_t *cursor, const char **ret_key, void **ret_val)
{
	if (*cursor >= map->len)
		return false;
	*ret_key = map->entries[*cursor].key;
	*ret_val = map->entries[*cursor].val;
	++*cursor;
	return true;
}
