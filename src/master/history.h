/*
 * history.h: a master's last hour: one sample every five seconds in a ring of fixed size, for the
 * status page. One owner.
 *
 * A sample has levels as they are and counters as they stand, so that whoever reads two samples has
 * the rate between them whatever was missed; latencies are those of the interval alone.
 */
#ifndef MC_MASTER_HISTORY_H
#define MC_MASTER_HISTORY_H

#include <stdint.h>

#include "base/err.h"
#include "base/stats.h"
#include "base/str.h"

#define MC_HISTORY_EVERY_S 5u
#define MC_HISTORY_SAMPLES 720u /* an hour */

/** What a sample says, in this order, names as in the JSON. */
#define MC_HISTORY_COLUMNS(X)                                                                      \
	X(at_ms) /* wall clock */                                                                  \
	X(keys)	 /* levels from here */                                                            \
	X(used_bytes)                                                                              \
	X(capacity_bytes)                                                                          \
	X(disk_used_bytes)                                                                         \
	X(disk_capacity_bytes)                                                                     \
	X(owners)                                                                                  \
	X(gets) /* counters from here */                                                           \
	X(memory_hits)                                                                             \
	X(disk_hits)                                                                               \
	X(hit_bytes)                                                                               \
	X(puts)                                                                                    \
	X(put_bytes)                                                                               \
	X(removes)                                                                                 \
	X(evicted)                                                                                 \
	X(evicted_bytes)                                                                           \
	X(calls)                                                                                   \
	X(lookup_p50_ns) /* of the interval from here */                                           \
	X(lookup_p99_ns)                                                                           \
	X(commit_p50_ns)                                                                           \
	X(commit_p99_ns)

struct mc_history_sample {
#define MC_HISTORY_FIELD(name) uint64_t name;
	MC_HISTORY_COLUMNS(MC_HISTORY_FIELD)
#undef MC_HISTORY_FIELD
};

struct mc_history;

/** @return 0; -MC_E_NOMEM */
MC_MUST_CHECK int mc_history_open(struct mc_history **ret);
/** NULL is allowed. */
void mc_history_close(struct mc_history *h);
/** Add a sample, instead of the oldest when there are MC_HISTORY_SAMPLES.
 * @param s  its latencies are filled in here, from `lookup` and `commit` and what they were the
 * last time */
void mc_history_add(struct mc_history *h, struct mc_history_sample *s, const struct mc_hist *lookup,
		    const struct mc_hist *commit);
/** Append {"every_s":5,"columns":["at_ms",…],"samples":[[…],…]}, oldest first, of those later than
 * `after_ms` (wall clock). Errors stick in out. */
void mc_history_json(const struct mc_history *h, uint64_t after_ms, struct mc_str *out);

#endif
