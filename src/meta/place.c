/*
 * place.c: see place.h. A choice is by rank first (preferred, same host, rest; those that seem full
 * behind all others), then by weight.
 */
#include "meta/place.h"

#include <string.h>

#include "base/mem.h"

#define SAMPLES 6u     /* of is_free_first, for each owner wanted */
#define STEPS_MAX 4u   /* exclusion doubles as often */
#define SLOW_SHARE 16u /* a new owner begins with 1/16 of its weight */

struct mc_place_node {
	struct mc_place_owner o; /* texts are the node's */
	uint64_t placed;	 /* since the view */
	uint64_t new_ms;	 /* seen first; 0: with the first view */
	uint64_t excluded_ms;	 /* until then */
	uint8_t failures;
};

void mc_place_init(struct mc_place *p, uint64_t seed)
{
	*p = (struct mc_place){0};
	mc_rand_seed(&p->rand, seed);
}

static void nodes_free(struct mc_place_node *v, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		mc_free((void *)(uintptr_t)v[i].o.segment); /* copies of mc_place_view() */
		mc_free((void *)(uintptr_t)v[i].o.host);
	}
	mc_free(v);
}

void mc_place_fini(struct mc_place *p)
{
	nodes_free(p->v, p->n);
	p->v = NULL;
	p->n = 0;
}

static struct mc_place_node *node_find(struct mc_place *p, uint64_t id)
{
	size_t lo = 0, hi = p->n;

	while (lo < hi) {
		size_t mid = lo + (hi - lo) / 2;

		if (p->v[mid].o.id < id)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo < p->n && p->v[lo].o.id == id ? &p->v[lo] : NULL;
}

static int node_fill(struct mc_place *p, uint64_t now_ms, const struct mc_place_owner *o,
		     struct mc_place_node *ret)
{
	const struct mc_place_node *was = node_find(p, o->id);

	*ret = (struct mc_place_node){.o = *o};
	if (p->has_view)
		ret->new_ms = mc_max(now_ms, 1ul);
	if (was && was->o.incarnation == o->incarnation) {
		ret->new_ms = was->new_ms;
		ret->excluded_ms = was->excluded_ms;
		ret->failures = was->failures;
	}
	ret->o.segment = mc_strdup(o->segment ? o->segment : "");
	ret->o.host = mc_strdup(o->host ? o->host : "");
	return ret->o.segment && ret->o.host ? 0 : -MC_E_NOMEM;
}

/* By id. Few move: a view comes in the order of the one before. */
static void nodes_sort(struct mc_place_node *v, size_t n)
{
	for (size_t gap = n / 2; gap; gap /= 2) {
		for (size_t i = gap; i < n; i++) {
			struct mc_place_node x = v[i];
			size_t j = i;

			for (; j >= gap && v[j - gap].o.id > x.o.id; j -= gap)
				v[j] = v[j - gap];
			v[j] = x;
		}
	}
}

int mc_place_view(struct mc_place *p, uint64_t now_ms, const struct mc_place_owner *owners,
		  size_t n)
{
	struct mc_place_node *v;

	if (n > MC_PLACE_OWNERS_MAX)
		return -MC_E_TOO_BIG;
	v = mc_calloc(n + !n, sizeof(*v));
	if (!v)
		return -MC_E_NOMEM;
	for (size_t i = 0; i < n; i++) {
		if (node_fill(p, now_ms, &owners[i], &v[i]) < 0) {
			nodes_free(v, i + 1);
			return -MC_E_NOMEM;
		}
	}
	nodes_sort(v, n);
	nodes_free(p->v, p->n);
	p->v = v;
	p->n = n;
	p->has_view = true;
	return 0;
}

void mc_place_settle(struct mc_place *p)
{
	for (size_t i = 0; i < p->n; i++)
		p->v[i].placed = 0;
}

/* ---- choosing ---- */

static uint64_t left_of(const struct mc_place_node *n)
{
	return n->o.free > n->placed ? n->o.free - n->placed : 0;
}

/* Free bytes, and something for a full one: it may be asked to evict. */
static uint64_t weight_of(const struct mc_place_node *n, uint64_t now_ms)
{
	uint64_t w = left_of(n) / 1024 + 1, age_ms = now_ms - n->new_ms;

	if (!n->new_ms || age_ms >= MC_PLACE_SLOW_START_MS)
		return w;
	return w / SLOW_SHARE + w / MC_PLACE_SLOW_START_MS * age_ms + 1;
}

static bool is_preferred(const struct mc_place_node *n, const struct mc_place_want *want,
			 uint32_t *ret_at)
{
	for (*ret_at = 0; *ret_at < want->npreferred; ++*ret_at)
		if (want->preferred[*ret_at] && strcmp(n->o.segment, want->preferred[*ret_at]) == 0)
			return true;
	return false;
}

/* Lower is better; UINT32_MAX: not at all. */
static uint32_t rank_of(const struct mc_place_node *n, const struct mc_place_want *want,
			uint64_t now_ms, bool takes_excluded)
{
	uint32_t at;

	if (!n->o.takes_puts || n->o.capacity < want->bytes ||
	    (!takes_excluded && n->excluded_ms > now_ms))
		return UINT32_MAX;
	for (uint32_t i = 0; i < want->nholders; i++)
		if (want->holders[i] == n->o.id)
			return UINT32_MAX;
	if (is_preferred(n, want, &at))
		return at;
	at = want->host && strcmp(n->o.host, want->host) == 0 ? want->npreferred
							      : want->npreferred + 1;
	return left_of(n) >= want->bytes ? at : at + want->npreferred + 2;
}

static bool is_among(const uint64_t *ids, uint32_t n, uint64_t id)
{
	for (uint32_t i = 0; i < n; i++)
		if (ids[i] == id)
			return true;
	return false;
}

struct choice {
	const struct mc_place_want *want;
	uint64_t now_ms;
	bool takes_excluded;
	const uint64_t *taken;
	uint32_t ntaken;
};

static uint32_t rank_left(const struct mc_place_node *n, const struct choice *c)
{
	if (is_among(c->taken, c->ntaken, n->o.id))
		return UINT32_MAX;
	return rank_of(n, c->want, c->now_ms, c->takes_excluded);
}

static struct mc_place_node *by_weight(struct mc_place *p, const struct choice *c, uint32_t rank,
				       uint64_t sum)
{
	uint64_t at = mc_rand_below(&p->rand, sum);

	for (size_t i = 0; i < p->n; i++) {
		uint64_t w;

		if (rank_left(&p->v[i], c) != rank)
			continue;
		w = weight_of(&p->v[i], c->now_ms);
		if (at < w)
			return &p->v[i];
		at -= w;
	}
	return NULL; /* not reached: `sum` is of the same owners */
}

/* The next owner: of the best rank there is, by weight. */
static struct mc_place_node *choose_one(struct mc_place *p, const struct choice *c)
{
	uint32_t rank = UINT32_MAX;
	uint64_t sum = 0;
	struct mc_place_node *best = NULL;

	for (size_t i = 0; i < p->n; i++) {
		uint32_t r = rank_left(&p->v[i], c);

		if (r == UINT32_MAX || r > rank)
			continue;
		if (r < rank)
			sum = 0;
		rank = r;
		sum += weight_of(&p->v[i], c->now_ms);
	}
	if (rank == UINT32_MAX)
		return NULL;
	for (unsigned i = 0; i < (c->want->is_free_first ? SAMPLES : 1); i++) {
		struct mc_place_node *n = by_weight(p, c, rank, sum);

		if (!best || left_of(n) > left_of(best))
			best = n;
	}
	return best;
}

uint32_t mc_place_choose(struct mc_place *p, uint64_t now_ms, const struct mc_place_want *want,
			 uint32_t n, uint64_t *ret_owners)
{
	struct choice c = {.want = want, .now_ms = now_ms, .taken = ret_owners};

	while (c.ntaken < n) {
		struct mc_place_node *node = choose_one(p, &c);

		if (!node && !c.takes_excluded && c.ntaken == 0) {
			c.takes_excluded = true;
			continue;
		}
		if (!node)
			break;
		node->placed += want->bytes;
		ret_owners[c.ntaken++] = node->o.id;
	}
	return c.ntaken;
}

void mc_place_exclude(struct mc_place *p, uint64_t now_ms, uint64_t owner)
{
	struct mc_place_node *n = node_find(p, owner);

	if (!n)
		return;
	n->excluded_ms = now_ms + ((uint64_t)MC_PLACE_EXCLUDED_MS << n->failures);
	if (n->failures < STEPS_MAX)
		n->failures++;
}

bool mc_place_is_excluded(struct mc_place *p, uint64_t now_ms, uint64_t owner)
{
	const struct mc_place_node *n = node_find(p, owner);

	return n && n->excluded_ms > now_ms;
}

void mc_place_include(struct mc_place *p, uint64_t owner)
{
	struct mc_place_node *n = node_find(p, owner);

	if (!n)
		return;
	n->excluded_ms = 0;
	n->failures = 0;
}
