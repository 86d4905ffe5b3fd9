/*
 * topo.c: the topology as a value: JSON both ways, lookup, and the choice of protocol. Pure.
 */
#include "disco/topo.h"

#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/mem.h"
#include "disco/topo_build.h"

bool mc_topo_is_listed(const char *list, const char *name)
{
	bool is_empty = true;
	struct mc_view part;
	const char *end;

	for (; list && *list; list = *end ? end + 1 : end) {
		end = list + strcspn(list, ",");
		part = mc_view_trim((struct mc_view){.at = list, .len = (size_t)(end - list)});
		if (mc_view_is(part, name))
			return true;
		is_empty = is_empty && part.len == 0;
	}
	return is_empty;
}

int mc_topo_build_hca(struct mc_topo *t, const char *name, size_t *ret_at)
{
	for (size_t i = 0; i < t->nhcas; i++) {
		if (strcmp(t->hcas[i].name, name) == 0) {
			*ret_at = i;
			return 0;
		}
	}
	if (t->nhcas == MC_TOPO_HCAS_MAX)
		return -MC_E_TOO_BIG;
	if (mc_strlcpy(t->hcas[t->nhcas].name, MC_TOPO_NAME_MAX, name) < 0)
		return -MC_E_TOO_BIG;
	t->hcas[t->nhcas].numa = -1;
	*ret_at = t->nhcas++;
	return 0;
}

struct mc_topo *mc_topo_build(size_t locations_max)
{
	struct mc_topo *t = mc_calloc(1, sizeof(*t));

	if (!t)
		return NULL;
	t->hcas = mc_calloc(MC_TOPO_HCAS_MAX, sizeof(*t->hcas));
	t->locations = mc_calloc(locations_max, sizeof(*t->locations));
	if (t->hcas && t->locations)
		return t;
	mc_topo_free(t);
	return NULL;
}

void mc_topo_free(struct mc_topo *topo)
{
	if (!topo)
		return;
	for (size_t i = 0; topo->locations && i < topo->nlocations; i++)
		mc_free(topo->locations[i].devs);
	mc_free(topo->locations);
	mc_free(topo->hcas);
	mc_free(topo);
}

/* Appends the names of one list to the place; one that is there already is left out. */
static int parse_list(struct mc_topo *t, struct mc_topo_location *loc, const json_t *list,
		      struct mc_diag *diag)
{
	size_t at;
	int rc;

	for (size_t i = 0; i < json_array_size(list); i++) {
		const json_t *v = json_array_get(list, i);
		bool is_known = false;

		if (!json_is_string(v) || !json_string_length(v)) {
			mc_diag_set(diag, "\"%s\": a device is not a name", loc->name);
			return -MC_E_PROTO;
		}
		rc = mc_topo_build_hca(t, json_string_value(v), &at);
		if (rc < 0) {
			mc_diag_set(
			    diag, "\"%s\": more than %u devices, or the name \"%.80s\" is too long",
			    loc->name, MC_TOPO_HCAS_MAX, json_string_value(v));
			return rc;
		}
		for (uint16_t k = 0; k < loc->ndevs; k++)
			is_known = is_known || loc->devs[k] == at;
		if (!is_known)
			loc->devs[loc->ndevs++] = (uint16_t)at;
	}
	return 0;
}

static int parse_location(struct mc_topo *t, const char *name, const json_t *lists,
			  struct mc_diag *diag)
{
	struct mc_topo_location *loc = &t->locations[t->nlocations];
	int rc;

	if (!name[0] || mc_strlcpy(loc->name, sizeof(loc->name), name) < 0) {
		mc_diag_set(diag, "\"%.80s\" is no place: 1 to %u bytes", name,
			    MC_TOPO_NAME_MAX - 1);
		return -MC_E_PROTO;
	}
	if (json_array_size(lists) != 2 || !json_is_array(json_array_get(lists, 0)) ||
	    !json_is_array(json_array_get(lists, 1))) {
		mc_diag_set(diag, "\"%s\" is not [[preferred devices], [available devices]]", name);
		return -MC_E_PROTO;
	}
	loc->devs = mc_calloc(MC_TOPO_HCAS_MAX, sizeof(*loc->devs));
	if (!loc->devs)
		return -MC_E_NOMEM;
	t->nlocations++;
	rc = parse_list(t, loc, json_array_get(lists, 0), diag);
	loc->npreferred = loc->ndevs;
	return rc < 0 ? rc : parse_list(t, loc, json_array_get(lists, 1), diag);
}

int mc_topo_parse(const char *json, size_t len, struct mc_topo **ret, struct mc_diag *diag)
{
	static const struct mc_json_limits limits = {.bytes_max = MC_TOPO_BYTES_MAX,
						     .depth_max = 8};
	struct mc_topo *t = NULL;
	const char *name;
	json_t *root, *v;
	int rc = mc_json_parse(json, len, &limits, &root, diag);

	if (rc < 0) {
		mc_diag_wrap(diag, "topology");
		return rc;
	}
	if (!json_is_object(root) || json_object_size(root) > MC_TOPO_LOCATIONS_MAX) {
		mc_diag_set(diag, "topology: not an object of at most %u places",
			    MC_TOPO_LOCATIONS_MAX);
		rc = json_is_object(root) ? -MC_E_TOO_BIG : -MC_E_PROTO;
	} else if (!(t = mc_topo_build(json_object_size(root)))) {
		rc = -MC_E_NOMEM;
	} else {
		json_object_foreach(root, name, v)
		{
			rc = parse_location(t, name, v, diag);
			if (rc < 0)
				break;
		}
		if (rc < 0)
			mc_diag_wrap(diag, "topology");
	}
	json_decref(root);
	if (rc < 0) {
		mc_topo_free(t);
		return rc;
	}
	*ret = t;
	return 0;
}

/* References stolen: a failure of jansson shows as NULL somewhere, which the setters refuse. */
static json_t *list_of(const struct mc_topo *t, const uint16_t *devs, size_t n)
{
	json_t *list = json_array();

	for (size_t i = 0; i < n && list; i++) {
		if (json_array_append_new(list, json_string(t->hcas[devs[i]].name)) < 0) {
			json_decref(list);
			return NULL;
		}
	}
	return list;
}

static int put_location(json_t *root, const struct mc_topo *t, const struct mc_topo_location *loc)
{
	json_t *pref = list_of(t, loc->devs, loc->npreferred);
	json_t *rest = list_of(t, loc->devs + loc->npreferred, loc->ndevs - loc->npreferred);
	json_t *both = pref && rest ? json_pack("[O, O]", pref, rest) : NULL;

	json_decref(pref);
	json_decref(rest);
	return json_object_set_new(root, loc->name, both) < 0 ? -MC_E_NOMEM : 0;
}

int mc_topo_json(const struct mc_topo *topo, char **ret)
{
	json_t *root = json_object();
	struct mc_str text;
	int rc = root ? 0 : -MC_E_NOMEM;

	for (size_t i = 0; i < topo->nlocations && rc == 0; i++)
		rc = put_location(root, topo, &topo->locations[i]);
	mc_str_init(&text, MC_TOPO_BYTES_MAX * 8);
	if (rc == 0)
		rc = mc_json_dump(root, &text);
	json_decref(root);
	if (rc == 0) {
		*ret = mc_str_take(&text);
		rc = *ret ? 0 : -MC_E_NOMEM;
	}
	mc_str_fini(&text);
	return rc;
}

const struct mc_topo_location *mc_topo_find(const struct mc_topo *topo, const char *location)
{
	for (size_t i = 0; i < topo->nlocations; i++) {
		if (strcmp(topo->locations[i].name, location) == 0)
			return &topo->locations[i];
	}
	return NULL;
}

enum mc_topo_use mc_topo_choose(const char *protocol, size_t nhcas, bool is_tcp_forced,
				bool is_hca_forced, struct mc_diag *diag)
{
	bool is_rdma = strcmp(protocol, "rdma") == 0;

	if (!is_rdma && protocol[0] && strcmp(protocol, "tcp") != 0) {
		mc_diag_set(diag, "protocol \"%.64s\" is not supported: use \"tcp\" or \"rdma\"",
			    protocol);
		return MC_TOPO_USE_NONE;
	}
	if (is_tcp_forced)
		return MC_TOPO_USE_TCP;
	if (is_hca_forced && nhcas == 0) {
		mc_diag_set(diag, "MC_FORCE_HCA is set, but there is no usable RDMA device "
				  "(looked in /sys/class/infiniband)");
		return MC_TOPO_USE_NONE;
	}
	if (is_rdma && nhcas == 0) {
		mc_diag_set(diag,
			    "protocol \"rdma\", but there is no usable RDMA device: using TCP");
		return MC_TOPO_USE_TCP_INSTEAD;
	}
	if (protocol[0] && !is_rdma && !is_hca_forced)
		return MC_TOPO_USE_TCP;
	return nhcas ? MC_TOPO_USE_RDMA : MC_TOPO_USE_TCP;
}
