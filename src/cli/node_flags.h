/*
 * node_flags.h: the command line of mooncake_client, with upstream's options.
 */
#ifndef MC_CLI_NODE_FLAGS_H
#define MC_CLI_NODE_FLAGS_H

#include "base/err.h"
#include "node/node.h"
#include "ssd/ssd.h"

struct mc_node_flags {
	/* as given */
	char host[256], master[256], metadata[512], protocol[32], devices[512], tenant[256];
	int64_t port;
	uint64_t segment_bytes, buffer_bytes;
	bool has_disk, has_ssd; /* two names for one */
	char disk_path[1024];
	struct mc_ssd_place disk;
	bool has_http;
	char http_host[256];
	int64_t http_port;
	/* what comes of it; views into the above */
	struct mc_node_conf conf;
};

/** @return 0; 1 (--help: printed); -MC_E_INVAL with a diag that names the option */
MC_MUST_CHECK int mc_node_flags_parse(int argc, char **argv, struct mc_node_flags *flags,
				      struct mc_diag *diag);

#endif
