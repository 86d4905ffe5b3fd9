/*
 * dummies.h: what a node, or a client that serves as one, tells the dummy clients of its host, on
 * an abstract Unix socket: how the cluster is reached. A dummy is a client of its own after that
 * (docs/store.md); its connection stays, so that each learns when the other is gone.
 */
#ifndef MC_OWNER_DUMMIES_H
#define MC_OWNER_DUMMIES_H

#include <stdint.h>

#include "base/err.h"
#include "io/loop.h"

struct mc_dummies;

struct mc_engine;

/** Dummies reach the cluster so, and from the engine's address. Nothing is kept. */
struct mc_dummies_conf {
	const char *socket; /* "@name": as MC_ST_DUMMY_SOCKET, where dummies name a port */
	struct mc_engine *engine;
	const char *master;				    /* "host:port" */
	const char *metadata, *protocol, *devices, *tenant; /* NULL: none is told */
};

/**
 * Serve on `loop`, which outlives it.
 * @return 0; -MC_E_ADDR_IN_USE (another process has that name); -MC_E_INVAL (texts are too long, or
 * the socket is none); -MC_E_NOMEM; -MC_E_LIMIT
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
