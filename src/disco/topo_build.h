/*
 * topo_build.h: how the topology's own files put one together.
 */
#ifndef MC_DISCO_TOPO_BUILD_H
#define MC_DISCO_TOPO_BUILD_H

#include "disco/topo.h"

/** Empty, with room for MC_TOPO_HCAS_MAX devices and locations_max places; NULL without memory. */
struct mc_topo *mc_topo_build(size_t locations_max);
/** Index of the device of this name, added if new. @return 0; -MC_E_TOO_BIG */
int mc_topo_build_hca(struct mc_topo *t, const char *name, size_t *ret_at);

#endif
