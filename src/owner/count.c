/*
 * count.c: latencies of an owner's rpcs, in the registry of its engine.
 */
#include <inttypes.h>
#include <stdio.h>

#include "engine/metrics.h"
#include "owner/priv.h"

int mc_ocount_open(struct mc_owner *o, struct mc_rpc_method methods[MC_OWNER_METHODS])
{
	static const struct mc_stat_desc desc = {.name = "mc_owner_rpc_latency_seconds",
						 .help = "From a call of a client to its answer, "
							 "waits for room included.",
						 .kind = MC_STAT_HIST,
						 .scale = 1e-9};
	char id[17];
	int rc = 0;

	(void)snprintf(id, sizeof(id), "%016" PRIx64, o->id);
	for (unsigned i = 0; rc == 0 && i < MC_OWNER_METHODS; i++) {
		const struct mc_stat_label labels[] = {{"rpc", methods[i].name}, {"owner", id}};

		methods[i].latency = &o->latency[i];
		rc = mc_stat_add(mc_metrics_reg(o->engine), &desc, labels, MC_ARRAY_LEN(labels),
				 &o->latency[i], &o->stats[i]);
	}
	return rc;
}

void mc_ocount_close(struct mc_owner *o)
{
	for (unsigned i = 0; i < MC_OWNER_METHODS; i++) {
		mc_stat_del(mc_metrics_reg(o->engine), o->stats[i]);
		o->stats[i] = NULL;
	}
}
