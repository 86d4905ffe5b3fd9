/*
 * index_list.c: pages in the order of keys: a walk over the whole index that keeps the first `max`
 * keys in a heap, the last of them on top; see index.h.
 */
#include <string.h>

#include "meta/index_priv.h"

#define PLACE_MAX 1024u

struct mc_index_list {
	struct mc_index *ix;
	struct mc_st_key prefix, after; /* bytes are the list's */
	uint64_t cursor;
	struct mc_st_key *keys; /* heap; in order when the page is complete */
	size_t n, cap, max;
};

static int order_of(const struct mc_st_key *a, const struct mc_st_key *b)
{
	int c = memcmp(a->bytes, b->bytes, mc_min(a->len, b->len));

	return c ? c : (int)a->len - (int)b->len;
}

static int key_copy(const struct mc_st_key *key, struct mc_st_key *ret)
{
	uint8_t *bytes = mc_calloc(1, key->len + 1u);

	if (!bytes)
		return -MC_E_NOMEM;
	memcpy(bytes, key->bytes, key->len);
	*ret = (struct mc_st_key){.len = key->len, .bytes = bytes};
	return 0;
}

static void key_fini(struct mc_st_key *key)
{
	mc_free((void *)(uintptr_t)key->bytes); /* key_copy()'s */
}

static void sift_down(struct mc_st_key *v, size_t n, size_t i)
{
	for (;;) {
		size_t kid = 2 * i + 1;
		struct mc_st_key swap = v[i];

		if (kid + 1 < n && order_of(&v[kid + 1], &v[kid]) > 0)
			kid++;
		if (kid >= n || order_of(&v[kid], &v[i]) <= 0)
			return;
		v[i] = v[kid];
		v[kid] = swap;
		i = kid;
	}
}

static int heap_push(struct mc_index_list *l, const struct mc_st_key *key)
{
	void *array = l->keys;
	size_t i = l->n;
	struct mc_st_key v;

	if (mc_array_grow(&array, &l->cap, l->n + 1, l->max, sizeof(*l->keys)) < 0)
		return -MC_E_NOMEM;
	l->keys = array;
	if (key_copy(key, &v) < 0)
		return -MC_E_NOMEM;
	l->n++;
	for (; i && order_of(&v, &l->keys[(i - 1) / 2]) > 0; i = (i - 1) / 2)
		l->keys[i] = l->keys[(i - 1) / 2];
	l->keys[i] = v;
	return 0;
}

static int take(struct mc_index_list *l, const struct mc_st_key *key)
{
	struct mc_st_key v;

	if (key->len < l->prefix.len || memcmp(key->bytes, l->prefix.bytes, l->prefix.len) != 0)
		return 0;
	if (l->after.bytes && order_of(key, &l->after) <= 0)
		return 0;
	if (l->n < l->max)
		return heap_push(l, key);
	if (order_of(key, &l->keys[0]) >= 0)
		return 0;
	if (key_copy(key, &v) < 0)
		return -MC_E_NOMEM;
	key_fini(&l->keys[0]);
	l->keys[0] = v;
	sift_down(l->keys, l->n, 0);
	return 0;
}

int mc_index_list_open(struct mc_index *ix, const struct mc_st_key *prefix,
		       const struct mc_st_key *after, uint32_t max, struct mc_index_list **ret)
{
	struct mc_index_list *l = mc_calloc(1, sizeof(*l));

	mc_assert(max >= 1);
	if (!l)
		return -MC_E_NOMEM;
	l->ix = ix;
	l->max = max;
	if (key_copy(prefix, &l->prefix) < 0 || (after && key_copy(after, &l->after) < 0)) {
		mc_index_list_close(l);
		return -MC_E_NOMEM;
	}
	*ret = l;
	return 0;
}

void mc_index_list_close(struct mc_index_list *l)
{
	if (!l)
		return;
	for (size_t i = 0; i < l->n; i++)
		key_fini(&l->keys[i]);
	mc_free(l->keys);
	key_fini(&l->prefix);
	key_fini(&l->after);
	mc_free(l);
}

/* The heap becomes the page. */
static void page_order(struct mc_index_list *l)
{
	for (size_t n = l->n; n > 1; n--) {
		struct mc_st_key last = l->keys[0];

		l->keys[0] = l->keys[n - 1];
		l->keys[n - 1] = last;
		sift_down(l->keys, n - 1, 0);
	}
}

int mc_index_list_step(struct mc_index_list *l, uint32_t budget)
{
	uint32_t some[PLACE_MAX];

	if (l->cursor >> 32)
		return 0;
	for (;;) {
		uint32_t n = mc_ltab_walk(&l->ix->objects, &l->cursor, some, MC_ARRAY_LEN(some));

		mc_assert(n <= MC_ARRAY_LEN(some));
		for (uint32_t i = 0; i < n; i++) {
			struct object *o = object_at(l->ix, some[i]);
			struct mc_st_key key = {.len = o->key_len, .bytes = mc_ix_object_key(o)};

			if (take(l, &key) < 0)
				return -MC_E_NOMEM;
		}
		if (l->cursor >> 32)
			break;
		if (budget <= n + 1)
			return 1;
		budget -= n + 1;
	}
	page_order(l);
	return 0;
}

uint32_t mc_index_list_keys(struct mc_index_list *l, const struct mc_st_key **ret_keys)
{
	*ret_keys = l->keys;
	return (uint32_t)l->n;
}
