/*
 * topo_publish.c: the topology as a descriptor shows it to upstream's readers.
 *
 * Such a reader numbers the devices by itself: it walks the places of the matrix and counts devices
 * as they first appear, preferred ones first; the number is then the position in devices[] and
 * rkey[]. It keeps the places in a hash table that it fills in order of their names; libstdc++
 * walks such a table from the last to the first as long as no two places share a bucket (seen for
 * up to six nodes). So this is the order that devices are listed in. Where a reader walks otherwise
 * it still finds a device with its own keys, only maybe not the nearest one; our own readers go by
 * name.
 */
#include "disco/topo.h"

#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/mem.h"

#define ONLY_PLACE "cpu:0" /* when the topology knows of none of the devices */

static int by_name_down(const void *a, const void *b)
{
	const struct mc_topo_location *const *x = a, *const *y = b;

	return strcmp((*y)->name, (*x)->name);
}

static size_t position_of(const char *const *names, size_t n, const char *name)
{
	for (size_t i = 0; i < n; i++) {
		if (strcmp(names[i], name) == 0)
			return i;
	}
	return n;
}

static void take(uint16_t *order, size_t *n, size_t at)
{
	for (size_t i = 0; i < *n; i++) {
		if (order[i] == at)
			return;
	}
	order[(*n)++] = (uint16_t)at;
}

/* The place's devices from `from` to `to` that are published; also counts them in. */
static json_t *list_of(const struct mc_topo *t, const struct mc_topo_location *loc, uint16_t from,
		       uint16_t to, const char *const *names, size_t n, uint16_t *order,
		       size_t *ret_n)
{
	json_t *list = json_array();

	for (uint16_t i = from; i < to && list; i++) {
		const char *name = t->hcas[loc->devs[i]].name;
		size_t at = position_of(names, n, name);

		if (at == n)
			continue;
		take(order, ret_n, at);
		if (json_array_append_new(list, json_string(name)) < 0) {
			json_decref(list);
			return NULL;
		}
	}
	return list;
}

static int put_place(json_t *root, const char *name, json_t *pref, json_t *rest)
{
	json_t *both = pref && rest ? json_pack("[O, O]", pref, rest) : NULL;
	size_t n = json_array_size(pref) + json_array_size(rest);
	int rc = both ? 0 : -MC_E_NOMEM;

	json_decref(pref);
	json_decref(rest);
	if (rc == 0 && n > 0)
		return json_object_set_new(root, name, both) < 0 ? -MC_E_NOMEM : 0;
	json_decref(both);
	return rc;
}

static int put_places(json_t *root, const struct mc_topo *t, const char *const *names, size_t n,
		      uint16_t *order, size_t *ret_n)
{
	const struct mc_topo_location **locs = mc_calloc(t->nlocations + 1, sizeof(*locs));
	int rc = locs ? 0 : -MC_E_NOMEM;

	for (size_t i = 0; i < t->nlocations && rc == 0; i++)
		locs[i] = &t->locations[i];
	if (rc == 0)
		qsort(locs, t->nlocations, sizeof(*locs), by_name_down);
	for (size_t i = 0; i < t->nlocations && rc == 0; i++) {
		const struct mc_topo_location *l = locs[i];
		json_t *pref = list_of(t, l, 0, l->npreferred, names, n, order, ret_n);
		json_t *rest = list_of(t, l, l->npreferred, l->ndevs, names, n, order, ret_n);

		rc = put_place(root, l->name, pref, rest);
	}
	mc_free(locs);
	return rc;
}

static int put_only_place(json_t *root, const char *const *names, size_t n)
{
	json_t *list = json_array();

	for (size_t i = 0; i < n && list; i++) {
		if (json_array_append_new(list, json_string(names[i])) < 0) {
			json_decref(list);
			return -MC_E_NOMEM;
		}
	}
	return put_place(root, ONLY_PLACE, list, json_array());
}

int mc_topo_publish(const struct mc_topo *topo, const char *const *names, size_t n,
		    uint16_t *ret_order, char **ret_matrix)
{
	json_t *root = json_object();
	struct mc_str text;
	size_t known = 0;
	int rc = root ? 0 : -MC_E_NOMEM;

	mc_assert(n <= MC_TOPO_HCAS_MAX);
	if (rc == 0 && topo)
		rc = put_places(root, topo, names, n, ret_order, &known);
	if (rc == 0 && known == 0 && n > 0)
		rc = put_only_place(root, names, n);
	for (size_t i = 0; i < n; i++)
		take(ret_order, &known, i);
	mc_str_init(&text, MC_TOPO_BYTES_MAX);
	if (rc == 0)
		rc = mc_json_dump(root, &text);
	json_decref(root);
	if (rc == 0)
		*ret_matrix = mc_str_take(&text);
	mc_str_fini(&text);
	return rc;
}
