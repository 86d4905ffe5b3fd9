/*
 * master_flags.h: the command line of mooncake_master: upstream's options, and --state_dir.
 */
#ifndef MC_CLI_MASTER_FLAGS_H
#define MC_CLI_MASTER_FLAGS_H

#include "base/err.h"
#include "master/master.h"

struct mc_master_flags {
	/* as given */
	int64_t rpc_port, port, metrics_port, metadata_port, repair_mib_per_s, offload_queue_max,
	    promotion_threshold, promotion_beat_max, promotion_queue_max, tasks_finished_max,
	    tasks_pending_max, tasks_processing_max, task_pending_s, task_processing_s,
	    task_retries_max;
	char rpc_address[256], metrics_host[256], metadata_host[256];
	char state_dir[1024], config_path[1024];
	char lease_ttl[32], soft_pin_ttl[32], soft_pin_max[32], client_ttl[32];
	bool may_evict_soft_pins, has_metadata, has_tenants, offload_on_evict, offload_force_evict,
	    promotion_on_hit;
	double eviction_ratio, watermark, offload_cap_ratio;
	/* what comes of it */
	struct mc_master_conf conf; /* without state_dir */
	uint16_t listen_port;
};

/** @return 0; 1 (--help: printed); -MC_E_INVAL with a diag that names the option */
MC_MUST_CHECK int mc_master_flags_parse(int argc, char **argv, struct mc_master_flags *flags,
					struct mc_diag *diag);

#endif
