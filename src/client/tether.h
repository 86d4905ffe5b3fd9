/*
 * tether.h: a dummy client asks the node of its host how the cluster is reached.
 */
#ifndef MC_CLIENT_TETHER_H
#define MC_CLIENT_TETHER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

#define MC_CLI_SETUP_TEXT_MAX 512u

/** A DummyReply. */
struct mc_cli_setup {
	char master[MC_CLI_SETUP_TEXT_MAX], metadata[MC_CLI_SETUP_TEXT_MAX], protocol[32],
	    devices[MC_CLI_SETUP_TEXT_MAX], tenant[256], host[256], segment[256];
};
/** @return 0; -MC_E_PROTO (not one, without a master, host or segment, or texts that are too long);
 * -MC_E_NOMEM */
MC_MUST_CHECK int mc_cli_setup_parse(const void *reply, size_t len, struct mc_cli_setup *ret);

struct mc_store;
struct mc_cli_tether;

/**
 * Connect, and wait for the node's word.
 * @param ret  also set when it fails, unless it stays as it was: close it
 * @return 0; -MC_E_INVAL (node is no address, or not of this host); -MC_E_DNS; what its socket, or
 * the node, answered last until `until_ns`
 */
MC_MUST_CHECK int mc_cli_tether_open(struct mc_store *st, const char *node, uint64_t until_ns,
				     struct mc_diag *diag, struct mc_cli_tether **ret);
/** Before the store's loop. NULL is allowed. */
void mc_cli_tether_close(struct mc_cli_tether *t);
/** The node is there. Any thread. */
bool mc_cli_tether_is_up(struct mc_cli_tether *t);
/** What it said first. For the opener. */
const struct mc_cli_setup *mc_cli_tether_setup(const struct mc_cli_tether *t);

#endif
