/*
 * self.h: transfers to one's own segment: a copy in the calling thread, under the same checks as a
 * peer's access.
 */
#ifndef MC_XPORT_SELF_H
#define MC_XPORT_SELF_H

#include "xport/xport.h"

/**
 * Open the transport of this process to itself. Its lanes ignore the path; remote regions are those
 * of env->regions.
 * @return 0; -MC_E_NOMEM
 */
MC_MUST_CHECK int mc_self_dev_open(const struct mc_xdev_env *env, struct mc_xdev **ret_dev);

#endif
