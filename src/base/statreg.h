/*
 * statreg.h: names for statistics, and their Prometheus text (exposition format 0.0.4).
 *
 * A metric's name, help and labels are fixed when it is added; the numbers stay the caller's
 * (stats.h). Adding, deleting and rendering take the registry's lock; recording never does.
 */
#ifndef MC_BASE_STATREG_H
#define MC_BASE_STATREG_H

#include <stddef.h>

#include "base/err.h"
#include "base/stats.h"
#include "base/str.h"

struct mc_stat_reg;
struct mc_stat; /* one metric in a registry */

enum mc_stat_kind {
	MC_STAT_COUNTER, /* struct mc_counter */
	MC_STAT_GAUGE,	 /* struct mc_gauge */
	MC_STAT_HIST,	 /* struct mc_hist */
	MC_STAT_KIND_COUNT,
};

struct mc_stat_label {
	const char *key, *value;
};

struct mc_stat_desc {
	const char
	    *name; /* [a-zA-Z_:][a-zA-Z0-9_:]*; counters end in _total, histograms in their unit */
	const char *help; /* the same for all metrics of the name */
	enum mc_stat_kind kind;
	double scale; /* printed = number × scale; 1e-9 for nanoseconds as seconds; 0 means 1 */
	/* Histograms print one bucket for each power of two in 2^le_first … 2^le_last; both 0: 2^10
	 * … 2^36. */
	unsigned int le_first, le_last;
};

/** @param stats_max most metrics at one time. @return 0; -MC_E_NOMEM */
MC_MUST_CHECK int mc_stat_reg_open(size_t stats_max, struct mc_stat_reg **ret_reg);
/** Deletes what is left. NULL is allowed. */
void mc_stat_reg_close(struct mc_stat_reg *reg);
/**
 * Add a metric. Names, help and label texts are copied.
 *
 * @param numbers   a zeroed or used struct of the kind; must outlive the metric
 * @param ret_stat  for mc_stat_del(); may be NULL when the metric lives as long as the registry
 * @return 0; -MC_E_INVAL for a bad name or another kind than the others of that name; -MC_E_EXIST
 * for equal name and labels; -MC_E_LIMIT; -MC_E_NOMEM
 */
MC_MUST_CHECK int mc_stat_add(struct mc_stat_reg *reg, const struct mc_stat_desc *desc,
			      const struct mc_stat_label *labels, size_t labels_len,
			      const void *numbers, struct mc_stat **ret_stat);
/** The numbers are not read any more once this returns. NULL is allowed. */
void mc_stat_del(struct mc_stat_reg *reg, struct mc_stat *stat);
/** Append all metrics, sorted by name and labels. @return 0; -MC_E_TOO_BIG; -MC_E_NOMEM */
MC_MUST_CHECK int mc_stat_render(struct mc_stat_reg *reg, struct mc_str *out);

#endif
