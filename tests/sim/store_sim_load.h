/*
 * store_sim_load.h: what the clients of a history do, and what the history knows of it.
 */
#ifndef TESTS_SIM_STORE_SIM_LOAD_H
#define TESTS_SIM_STORE_SIM_LOAD_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include <mooncake/store.h>

#include "sim/store_sim.h"
#include "sim/vos/cluster.h"
#include "sim/vos/vos.h"

#define MS MC_NS_PER_MS
#define SEC MC_NS_PER_S
#define LEN_MAX (320u << 10)
#define LATE_NS (300 * MS) /* an operation may end so much after its deadline */
#define OPS_MAX 64u

/** An operation under way. */
struct op {
	struct sim_client *client;
	uint64_t start_ns, stop_sum_ns;
	bool is_open;
	char text[64];
};

/** The history that runs. */
struct sim_run {
	uint64_t seed;
	uint32_t nkeys, ops_left, workers; /* that work now */
	uint32_t small_max, big_per_100;
	bool is_roomy, loses_state, is_over;
	bool is_quiet, is_far; /* nothing happens but the load; but cuts while bytes are written */
	uint32_t chains[CLIENTS_MAX], nchains; /* under way, 0: none; so far */
	unsigned faults;		       /* stopped or cut off now */
	uint64_t calm_ns;		       /* all owners are known since then; NEVER: not now */
	uint64_t kills, stops, cuts;
	struct op ops[OPS_MAX];
	unsigned verified;
};
extern struct sim_run sim_run;

#define tell(...)                                                                                  \
	do {                                                                                       \
		if (store_sim_is_told) {                                                           \
			(void)fprintf(stderr, "%10.6f  ", (double)(vos_now() - 1000 * SEC) / 1e9); \
			(void)fprintf(stderr, __VA_ARGS__);                                        \
			(void)fprintf(stderr, "\n");                                               \
		}                                                                                  \
	} while (0)

/** None under way has passed its deadline. */
void store_sim_ops_check(void);
struct mc_store_key store_sim_key(uint32_t key, char text[16]);
/** @return the code, or bytes */
int64_t store_sim_get(struct sim_client *c, uint32_t key, uint8_t *buf);
int store_sim_remove(struct sim_client *c, uint32_t key, bool is_forced);
/** What chains have left. */
void store_sim_chains_remove(struct sim_client *c);
/** A new client's threads begin. */
void *store_sim_work(void *client);

#endif
