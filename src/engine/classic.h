/*
 * classic.h: upstream's processes as peers: what their descriptor says, and queue pairs introduced
 * over their control port, in both directions. They have no control connection and no incarnation
 * number; lanes over RDMA have a fence all the same, see classic.c.
 */
#ifndef MC_ENGINE_CLASSIC_H
#define MC_ENGINE_CLASSIC_H

#include "engine/priv.h"

struct mc_segdesc;

/** A session with such a peer, from its descriptor: TCP or RDMA, whichever it offers. */
int mc_classic_open(struct mc_session *s, const struct mc_segdesc *desc, struct mc_diag *diag);
/** An address that its last descriptor did not show, or not with this key: ask once more. Blocks.
 */
int mc_classic_refresh(struct mc_session *s, uint64_t addr, uint64_t deadline_ns,
		       const struct mc_remote_region **ret_region);
/**
 * Introduce a lane that is open: our queue pairs go to the peer, its own come back. Blocks.
 *
 * @return 0; -MC_E_UNSUPPORTED (another number of queue pairs); -MC_E_UNREACHABLE (the peer
 * refuses); -MC_E_PROTO; errors of the connection
 */
int mc_classic_introduce(struct mc_elane *lane, uint64_t deadline_ns);

/** What the fence of such a lane has to know. @return its length */
size_t mc_classic_token(const struct mc_elane *lane, uint8_t ret_token[MC_XPORT_TOKEN_MAX]);
/**
 * See that nothing of the lane lands any more. Blocks.
 * @return 0; -MC_E_PEER_DEAD; else it is not known, and to be asked again
 */
int mc_classic_fence(struct mc_session *s, const uint8_t *token, size_t len, uint64_t deadline_ns);

/** mc_control_ops.later: such a peer introduces its queue pairs. */
int mc_classic_serve(void *eng, enum mc_hs_type type, const char *json, size_t len,
		     struct mc_control_call *call);

#endif
