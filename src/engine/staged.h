/*
 * staged.h: slices of several hops, at their initiator.
 */
#ifndef MC_ENGINE_STAGED_H
#define MC_ENGINE_STAGED_H

#include "engine/priv.h"

int mc_staged_open(struct mc_engine *eng);
/** After the workers have ended. */
void mc_staged_close(struct mc_engine *eng);
/** Workers move the slice; the pump, a loop's, gets it back done. */
void mc_staged_start(struct mc_pump *p, struct mc_eslice *es);

#endif
