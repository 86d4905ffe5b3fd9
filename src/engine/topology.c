/*
 * topology.c: what this machine has, for people and for upstream's JSON.
 */
#include "base/log.h"
#include "disco/topo.h"
#include "engine/priv.h"

char *mc_topology_json(const char *devices)
{
	struct mc_topo_conf conf = {.devices = devices};
	struct mc_diag diag = {0};
	struct mc_topo *topo;
	char *json = NULL;

	if (mc_topo_discover(&conf, &topo, &diag) < 0) {
		mc_log_warn("no topology", "cause=\"%s\"", diag.text);
		return NULL;
	}
	if (mc_topo_json(topo, &json) < 0)
		json = NULL;
	mc_topo_free(topo);
	return json;
}
