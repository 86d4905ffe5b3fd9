/*
 * detour.h: each TCP connection that libmooncake.so opens in this process goes through a relay
 * (tests/conform/relay.h): one for each place that it wants to go to. connect(2) is this program's.
 */
#ifndef MC_TEST_DETOUR_H
#define MC_TEST_DETOUR_H

#include <stdbool.h>

#include "../conform/relay.h"

/** From now on, for new connections. Those of an earlier detour end. */
void detour_begin(const struct relay_opts *opts);
/** Connections go where they want to go again; the relays and what they hold are gone. */
void detour_end(void);
/** Nothing passes to that host (NULL: to any) any more, or all does again. */
void detour_pause(const char *host, bool is_paused);
void detour_stats(struct relay_stats *ret);

#endif
