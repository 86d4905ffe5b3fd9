/*
 * admin.h: a master over HTTP, for people and monitors: /health, /metrics, /metrics/summary,
 * /get_all_segments, /query_segment, /get_segments_detail, /get_all_keys, /query_key,
 * /batch_query_keys, /role, /ha_status, /leader, POST /api/v1/remove_all, as upstream's master
 * names them.
 */
#ifndef MC_MASTER_ADMIN_H
#define MC_MASTER_ADMIN_H

#include "io/sock.h"
#include "master/master.h"

struct mc_master_admin;

/** Serve on the master's side loop until closed. @return as mc_http_server_open() */
MC_MUST_CHECK int mc_master_admin_open(struct mc_master *master, const struct mc_addr *at,
				       struct mc_diag *diag, struct mc_master_admin **ret_admin);
/** Before the master. NULL is allowed. */
void mc_master_admin_close(struct mc_master_admin *admin);
uint16_t mc_master_admin_port(const struct mc_master_admin *admin);

#endif
