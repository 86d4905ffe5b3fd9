/*
 * link.h: connections to the master and to owners, by use.
 */
#ifndef MC_CLIENT_LINK_H
#define MC_CLIENT_LINK_H

#include "client/priv.h"

/**
 * A usable connection to an end, opened anew when it was lost. To the master it is introduced
 * (JOIN) before anybody has it; a master of an older life than one seen before is refused.
 * @return 0: end with mc_cli_link_put(); why there is none. Blocks at most until deadline_ns.
 */
int mc_cli_link_get(struct mc_cli_end *end, uint64_t deadline_ns, struct mc_cli_link **ret_link);
void mc_cli_link_put(struct mc_cli_link *link);
/** Introduce ourselves over a new connection (join.c). @return 0; -enum mc_err */
int mc_cli_join(struct mc_store *st, struct mc_rpc_conn *rpc, uint64_t deadline_ns);
/** Tell an owner whose grants those of this connection are; nobody waits for the answer. @return 0;
 * -enum mc_err */
int mc_cli_introduce(struct mc_store *st, struct mc_rpc_conn *rpc);

#endif
