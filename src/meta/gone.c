/*
 * gone.c: latest departures, in sets; see gone.h.
 */
#include "meta/gone.h"

#include "base/mem.h"

#define WAYS 8u
#define SETS (MC_GONE_MAX / WAYS)

struct mc_gone_table {
	uint64_t forgotten_ms; /* of the latest that had to go */
	struct mc_gone sets[SETS][WAYS];
};

int mc_gone_open(struct mc_gone_table **ret)
{
	struct mc_gone_table *t = mc_calloc(1, sizeof(*t));

	if (!t)
		return -MC_E_NOMEM;
	*ret = t;
	return 0;
}

void mc_gone_close(struct mc_gone_table *t)
{
	mc_free(t);
}

void mc_gone_add(struct mc_gone_table *t, const struct mc_gone *g)
{
	struct mc_gone *set = t->sets[g->key_hash % SETS], *at = &set[0];

	for (unsigned i = 0; i < WAYS; i++) {
		if (set[i].key_hash == g->key_hash || set[i].key_hash == 0) {
			at = &set[i];
			break;
		}
		if (set[i].at_ms < at->at_ms)
			at = &set[i];
	}
	if (at->key_hash != 0 && at->key_hash != g->key_hash)
		t->forgotten_ms = mc_max(t->forgotten_ms, at->at_ms);
	*at = *g;
}

bool mc_gone_find(const struct mc_gone_table *t, uint64_t key_hash, struct mc_gone *ret)
{
	const struct mc_gone *set = t->sets[key_hash % SETS];

	for (unsigned i = 0; i < WAYS; i++) {
		if (set[i].key_hash != key_hash || key_hash == 0)
			continue;
		*ret = set[i];
		return true;
	}
	return false;
}

uint64_t mc_gone_since_ms(const struct mc_gone_table *t)
{
	return t->forgotten_ms;
}

const char *mc_gone_why_text(unsigned why)
{
	static const char *const texts[MC_GONE_WHY_COUNT] = {"evicted", "over_quota", "removed",
							     "lost", "damaged"};

	mc_assert(why < MC_GONE_WHY_COUNT);
	return texts[why];
}
