/*
 * metrics.h: totals over all links, for the lines of MC_TE_METRIC.
 */
#ifndef MC_ENGINE_METRICS_H
#define MC_ENGINE_METRICS_H

#include "base/statreg.h"
#include "xport/xport.h"

struct mc_engine;

struct mc_metrics_sum {
	uint64_t bytes[MC_OP_COUNT];
	uint64_t groups, failed;
	double p50_us[MC_OP_COUNT]; /* of groups, since the engine opened */
};

/** Where parts of the process that stand on the engine name numbers of their own, for
 * mc_metrics_text(). They take them out again before it closes. */
struct mc_stat_reg *mc_metrics_reg(struct mc_engine *eng);
/** Any thread. */
void mc_metrics_sum(struct mc_engine *eng, struct mc_metrics_sum *ret);

#endif
