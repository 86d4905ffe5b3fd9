/*
 * initiators.h: who has introduced itself on our control connections. What a peer left at an RDMA
 * device, or in staging buffers, is freed a while after its last connection was lost. Everything on
 * the first loop.
 */
#ifndef MC_ENGINE_INITIATORS_H
#define MC_ENGINE_INITIATORS_H

#include "engine/priv.h"

#define MC_INITIATORS_MAX 4096u

/** Any thread. @return 0; -MC_E_NOMEM */
int mc_initiators_open(struct mc_engine *eng);
/** No connection is left. Any thread but the loop. */
void mc_initiators_close(struct mc_engine *eng);
/** A connection shows the incarnation of its client. One that finds no room stays unknown. */
void mc_initiators_hello(struct mc_engine *eng, struct mc_rpc_peer *peer, uint64_t epoch);
/** The connection is lost. */
void mc_initiators_down(struct mc_engine *eng, struct mc_rpc_peer *peer);
/** The incarnation that the connection has shown; 0: none. */
uint64_t mc_initiators_epoch(const struct mc_rpc_peer *peer);
/** For tests: forget them after so long instead of 30 s. */
void mc_initiators_patience(struct mc_engine *eng, uint64_t ns);

#endif
