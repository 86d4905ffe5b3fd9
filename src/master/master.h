/*
 * master.h: the master of a Store: which objects there are and where, which owners there are, who
 * leaves a full pool. Never on the path of data.
 *
 * All of it lives on one loop, so nothing is locked. What has to be durable (epoch, roster,
 * tombstones: state.h) is written on a second one, which also serves people and monitors. Clock,
 * network and disk are arguments; the two loops may be the same one.
 */
#ifndef MC_MASTER_MASTER_H
#define MC_MASTER_MASTER_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "io/env.h"

struct mc_master;

#define MC_MASTER_TTL_MS_MIN 100u

/** Times in milliseconds, ratios of an owner's memory. mc_master_conf_defaults() fills it. */
struct mc_master_conf {
	const char *state_dir;	/* must exist; NULL: nothing survives, not even the epoch */
	uint64_t client_ttl_ms; /* an owner that is silent for so long loses its replicas */
	uint64_t lease_ms;	/* of what a lookup names */
	uint64_t soft_pin_ms, soft_pin_max_ms;
	bool may_evict_soft_pins;
	double eviction_ratio; /* evicted at once above the watermark */
	double watermark;
	uint64_t repair_bytes_per_s; /* of replicas made again in the background; 0: no limit */
	/* What is read from a disk becomes a replica in memory when it is looked up often, else it
	 * stays there only until somebody wants its room. */
	bool promotion_on_hit;
	uint32_t promotion_threshold; /* lookups lately */
	uint32_t promotion_beat_max;  /* of one owner, in MC_ST_BEAT_MS */
	uint32_t promotion_queue_max; /* under way */
	/* Tasks of clients: remembered when they have ended; not begun; under way. */
	uint32_t tasks_finished_max, tasks_pending_max, tasks_processing_max;
	uint64_t task_pending_ms, task_processing_ms; /* then they have failed; 0: never */
	uint32_t task_retries_max;		      /* of one copy */
	bool has_tenants;			      /* quotas of tenants hold */
	/* Objects go to their owners' disks when they are about to leave memory, not at once. */
	bool offload_on_evict;
	uint32_t offload_queue_max; /* objects that an owner has to write at one time, about */
	double offload_cap_ratio;   /* share of those that one look for room asks for */
	bool offload_force_evict;   /* what is beyond that leaves memory all the same */
	uint32_t conns_max;	    /* 0: 16384 */
	uint64_t seed;		    /* of the index; 0: random */
};

void mc_master_conf_defaults(struct mc_master_conf *conf);

/**
 * @param loop  has the index; @param side  writes to the state directory; both outlive the master
 * @param conf  copied
 * @return 0; -MC_E_NOMEM; -MC_E_CORRUPT (state directory: the diag says which file); -MC_E_BUSY (of
 * another master). A state directory that cannot be used otherwise is a warning. Any thread but the
 * loops'.
 */
MC_MUST_CHECK int mc_master_open(const struct mc_env *env, struct mc_loop *loop,
				 struct mc_loop *side, const struct mc_master_conf *conf,
				 struct mc_diag *diag, struct mc_master **ret_master);
/** NULL is allowed. Any thread but the loops'. */
void mc_master_close(struct mc_master *master);
/** Serve clients and owners on this address too. @return as mc_rpc_server_listen() */
MC_MUST_CHECK int mc_master_listen(struct mc_master *master, const struct mc_addr *at,
				   struct mc_addr *ret_bound);
/** Any thread. */
uint64_t mc_master_epoch(const struct mc_master *master);

#endif
