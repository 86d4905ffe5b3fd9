/*
 * metadata.h: upstream's metadata service, GET, PUT and DELETE of /metadata?key=…, in the master's
 * process: what mooncake_http_metadata_server does as a program of its own. Values live in memory
 * only; engines write theirs again after a restart.
 */
#ifndef MC_MASTER_METADATA_H
#define MC_MASTER_METADATA_H

#include "io/loop.h"
#include "io/sock.h"

struct mc_metadata;

#define MC_METADATA_VALUE_MAX (16u << 20)
#define MC_METADATA_KEYS_MAX (1u << 20)

/**
 * Serve on the loop until closed.
 * @param bytes_max  all keys and values, about; then 507. 0: 1 GiB
 * @return as mc_http_server_open()
 */
MC_MUST_CHECK int mc_metadata_open(struct mc_loop *loop, const struct mc_addr *at,
				   uint64_t bytes_max, struct mc_diag *diag,
				   struct mc_metadata **ret);
/** NULL is allowed. Any thread but the loop's. */
void mc_metadata_close(struct mc_metadata *md);
uint16_t mc_metadata_port(const struct mc_metadata *md);

#endif
