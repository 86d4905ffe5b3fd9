/*
 * sim_net.h: a network in memory under a virtual clock, for the object files that ship.
 *
 * One thread runs everything: loops are stepped, bytes arrive when their time has come, and when
 * nobody has anything to do the clock jumps to the next event. All chance comes from one seed.
 */
#ifndef MC_TESTS_SIM_NET_H
#define MC_TESTS_SIM_NET_H

#include "base/list.h"
#include "base/rand.h"
#include "io/env.h"

#define SIM_LOOPS_MAX 8

struct sim_conf {
	uint64_t delay_min_ns, delay_max_ns; /* of a send */
	uint32_t chunk_max;		     /* bytes one send takes or one receive gives, >= 1 */
	uint32_t window;		     /* bytes under way in one direction */
	uint32_t resets_ppm; /* sends in a million that reset the connection, somewhere within */
};

struct sim {
	struct mc_clock clk;
	struct mc_net net;
	struct mc_env env;
	struct sim_conf conf;
	struct mc_rand rand;
	uint64_t now_ns;
	struct mc_list socks;
	struct mc_loop *loops[SIM_LOOPS_MAX];
	unsigned nloops;
	bool is_sweeping;
	uint64_t resets, rounds_at_now;
};

void sim_init(struct sim *sim, uint64_t seed, const struct sim_conf *conf);
/** All sockets are closed. */
void sim_fini(struct sim *sim);
void sim_add_loop(struct sim *sim, struct mc_loop *loop);
/** Do what can be done now, or let time pass until the next event, at most to `until_ns`. @return
 * false: nothing is left to happen before then */
bool sim_step(struct sim *sim, uint64_t until_ns);
/** Steps until nothing happens any more or it is `until_ns`. */
void sim_run(struct sim *sim, uint64_t until_ns);
/** Reset every connection now. */
void sim_reset_all(struct sim *sim);

#endif
