/*
 * cache.c: locations by key hash, four to a set, no longer than their lease. A place is used for
 * data only, and what is read there is checked against the full key, so neither an old place nor
 * two keys of one hash do harm.
 */
#include "client/priv.h"

#define SETS 4096u
#define WAYS 4u
#define LOCKS 64u

struct entry {
	uint64_t hash;
	struct mc_cli_place place; /* until_ns 0: none */
};

struct mc_cli_cache {
	struct {
		_Alignas(MC_CACHELINE) pthread_mutex_t mu; /* guards each LOCKS-th set */
	} locks[LOCKS];
	struct entry (*sets)[WAYS];
};

int mc_cli_cache_open(struct mc_cli_cache **ret_cache)
{
	struct mc_cli_cache *c = mc_aligned_alloc(MC_CACHELINE, sizeof(*c));

	if (!c)
		return -MC_E_NOMEM;
	for (unsigned i = 0; i < LOCKS; i++)
		pthread_mutex_init(&c->locks[i].mu, NULL);
	c->sets = mc_calloc(SETS, sizeof(*c->sets));
	if (!c->sets) {
		mc_cli_cache_close(c);
		return -MC_E_NOMEM;
	}
	*ret_cache = c;
	return 0;
}

void mc_cli_cache_close(struct mc_cli_cache *cache)
{
	if (!cache)
		return;
	for (unsigned i = 0; i < LOCKS; i++)
		pthread_mutex_destroy(&cache->locks[i].mu);
	mc_free(cache->sets);
	mc_free(cache);
}

static struct entry *set_lock(struct mc_cli_cache *cache, const struct mc_cli_key *key)
{
	uint64_t set = key->hash % SETS;

	pthread_mutex_lock(&cache->locks[set % LOCKS].mu);
	return cache->sets[set];
}

static void set_unlock(struct mc_cli_cache *cache, const struct mc_cli_key *key)
{
	pthread_mutex_unlock(&cache->locks[key->hash % SETS % LOCKS].mu);
}

bool mc_cli_cache_get(struct mc_cli_cache *cache, const struct mc_cli_key *key, uint64_t now_ns,
		      struct mc_cli_place *ret)
{
	struct entry *set = set_lock(cache, key);
	bool is_found = false;

	for (unsigned i = 0; i < WAYS && !is_found; i++) {
		is_found = set[i].hash == key->hash && set[i].place.until_ns > now_ns;
		if (is_found)
			*ret = set[i].place;
	}
	set_unlock(cache, key);
	return is_found;
}

void mc_cli_cache_put(struct mc_cli_cache *cache, const struct mc_cli_key *key,
		      const struct mc_cli_place *place)
{
	struct entry *set = set_lock(cache, key), *to = &set[0];

	for (unsigned i = 0; i < WAYS; i++) {
		if (set[i].hash == key->hash) {
			to = &set[i];
			break;
		}
		if (set[i].place.until_ns < to->place.until_ns)
			to = &set[i];
	}
	*to = (struct entry){.hash = key->hash, .place = *place};
	set_unlock(cache, key);
}

void mc_cli_cache_del(struct mc_cli_cache *cache, const struct mc_cli_key *key)
{
	struct entry *set = set_lock(cache, key);

	for (unsigned i = 0; i < WAYS; i++)
		if (set[i].hash == key->hash)
			set[i].place.until_ns = 0;
	set_unlock(cache, key);
}

void mc_cli_cache_clear(struct mc_cli_cache *cache)
{
	for (uint64_t i = 0; i < SETS; i++) {
		struct mc_cli_key key = {.hash = i};
		struct entry *set = set_lock(cache, &key);

		for (unsigned j = 0; j < WAYS; j++)
			set[j].place.until_ns = 0;
		set_unlock(cache, &key);
	}
}
