/*
 * dummies.h: what a node tells the dummy clients of its host, on an abstract Unix socket
 * "@mooncake_client_<port>.sock": how the cluster is reached. A dummy is a client of its own after
 * that (docs/store.md); its connection stays, so that each learns when the other is gone.
 */
#ifndef MC_NODE_DUMMIES_H
#define MC_NODE_DUMMIES_H

#include <stdint.h>

#include "base/err.h"
#include "io/loop.h"

struct mc_dummies;

/** All texts of a DummyReply; not kept. */
struct mc_dummies_conf {
	uint16_t port; /* in the socket's name */
	const char *master, *metadata, *protocol, *devices, *tenant, *host, *segment;
};

/**
 * Serve on `loop`, which outlives it.
 * @return 0; -MC_E_ADDR_IN_USE (another process has that name); -MC_E_INVAL (texts are too long);
 * -MC_E_NOMEM; -MC_E_LIMIT
 */
MC_MUST_CHECK int mc_dummies_open(struct mc_loop *loop, const struct mc_dummies_conf *conf,
				  struct mc_diag *diag, struct mc_dummies **ret);
/** NULL is allowed. */
void mc_dummies_close(struct mc_dummies *d);

struct mc_dummies_stats {
	uint64_t now, total, refused;
};
/** Any thread. */
void mc_dummies_stats(struct mc_dummies *d, struct mc_dummies_stats *ret);

#endif
