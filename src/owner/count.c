/*
 * count.c: latencies of an owner's rpcs and how far its journal is behind, in the registry of its
 * engine.
 */
#include <inttypes.h>
#include <stdio.h>

#include "engine/metrics.h"
#include "owner/priv.h"

int mc_ocount_open(struct mc_owner *o, struct mc_rpc_method methods[MC_OWNER_METHODS])
{
	static const struct mc_stat_desc latency = {.name = "mc_owner_rpc_latency_seconds",
						    .help = "From a call of a client to its "
							    "answer, waits for room included.",
						    .kind = MC_STAT_HIST,
						    .scale = 1e-9};
	static const struct mc_stat_desc journal[] = {
	    {.name = "mc_owner_journal_notes",
	     .help = "Notes to the master that it has not acknowledged.",
	     .kind = MC_STAT_GAUGE},
	    {.name = "mc_owner_journal_bytes", .help = "Their bytes.", .kind = MC_STAT_GAUGE},
	};
	const struct mc_gauge *const gauges[] = {&o->journal_notes, &o->journal_bytes};
	struct mc_stat_reg *reg = mc_metrics_reg(o->engine);
	struct mc_stat **at = o->stats;
	char id[17];
	int rc = 0;

	/* A process may have several owners. */
	(void)snprintf(id, sizeof(id), "%016" PRIx64, o->id);
	for (unsigned i = 0; rc == 0 && i < MC_OWNER_METHODS; i++) {
		const struct mc_stat_label labels[] = {{"rpc", methods[i].name}, {"owner", id}};

		methods[i].latency = &o->latency[i];
		rc = mc_stat_add(reg, &latency, labels, MC_ARRAY_LEN(labels), &o->latency[i], at++);
	}
	for (unsigned i = 0; rc == 0 && i < MC_ARRAY_LEN(journal); i++) {
		const struct mc_stat_label label = {"owner", id};

		rc = mc_stat_add(reg, &journal[i], &label, 1, gauges[i], at++);
	}
	return rc;
}

void mc_ocount_close(struct mc_owner *o)
{
	for (unsigned i = 0; i < MC_ARRAY_LEN(o->stats); i++) {
		mc_stat_del(mc_metrics_reg(o->engine), o->stats[i]);
		o->stats[i] = NULL;
	}
}
