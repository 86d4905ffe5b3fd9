/*
 * describe.h: this process's descriptor for others.
 *
 * An upstream process has one protocol and reads only descriptors of that one. So with RDMA there
 * are two of ours: who asks over the control port gets the one of its own protocol; the metadata
 * service holds the one with RDMA. Our own peers take from either what they need: address and
 * incarnation.
 */
#ifndef MC_ENGINE_DESCRIBE_H
#define MC_ENGINE_DESCRIBE_H

#include "engine/priv.h"

/** There is a port that upstream's processes can be told of: one that is up, or was. */
bool mc_describe_has_rdma(const struct mc_engine *eng);
/**
 * Our descriptor as JSON (mc_free).
 * @param is_rdma  with devices and keys; mc_describe_has_rdma(). Ranges with keys cannot be
 * joined: those that do not fit bytes_max are left out, and that is said once.
 */
int mc_describe(struct mc_engine *eng, bool is_rdma, size_t bytes_max, char **ret_json,
		size_t *ret_len, struct mc_diag *diag);
/** mc_control_ops.metadata; first loop. */
int mc_describe_answer(void *eng, const char *peer_json, size_t len,
		       struct mc_control_text **ret_text);
/** Forget the texts that were kept. Nobody asks any more. */
void mc_describe_drop(struct mc_engine *eng);

#endif
