/*
 * fuzz_topology.c: topology files and priority matrices. What is accepted survives a round trip
 * through its JSON.
 */
#include "disco/topo.h"

#include <string.h>

#include "base/mem.h"
#include "base/str.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	struct mc_topo *topo, *back;
	struct mc_diag diag = {.text = ""};
	char *json, *json_back;
	int rc = mc_topo_parse((const char *)data, len, &topo, &diag);

	if (rc < 0) {
		mc_assert(diag.text[0]);
		return 0;
	}
	for (size_t i = 0; i < topo->nlocations; i++) {
		mc_assert(topo->locations[i].npreferred <= topo->locations[i].ndevs);
		mc_assert(mc_topo_find(topo, topo->locations[i].name) == &topo->locations[i]);
		for (size_t k = 0; k < topo->locations[i].ndevs; k++)
			mc_assert(topo->locations[i].devs[k] < topo->nhcas);
	}
	for (size_t i = 1; i < topo->nhcas; i++) {
		int ab = mc_name_cmp(topo->hcas[i - 1].name, topo->hcas[i].name);
		int ba = mc_name_cmp(topo->hcas[i].name, topo->hcas[i - 1].name);

		mc_assert((ab < 0) == (ba > 0) && (ab == 0) == (ba == 0));
	}
	if (mc_topo_json(topo, &json) == 0) {
		rc = mc_topo_parse(json, strlen(json), &back, &diag);
		mc_assert(rc == 0);
		rc = mc_topo_json(back, &json_back);
		mc_assert(rc == 0 && strcmp(json, json_back) == 0);
		mc_free(json_back);
		mc_topo_free(back);
		mc_free(json);
	}
	mc_topo_free(topo);
	return 0;
}
