/*
 * shutdown.h: leave the metadata service when a signal or exit() ends the process.
 */
#ifndef MC_CAPI_SHUTDOWN_H
#define MC_CAPI_SHUTDOWN_H

#include <mooncake/transfer_engine_c.h>

/**
 * From now on the engine is closed before SIGINT, SIGTERM or exit() end the process. The first call
 * takes over the two signals' handlers and starts a thread.
 * @return 0; -MC_E_LIMIT (more than MC_CAPI_ENGINES_MAX, or no pipe or thread)
 */
int mc_capi_shutdown_add(transfer_engine_t engine);

#endif
