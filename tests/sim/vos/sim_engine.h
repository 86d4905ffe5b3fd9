/*
 * sim_engine.h: the engine's public API over the simulated world: one-sided copies in pieces that
 * arrive in any order and at any time before their group ends, and no other promise than
 * mooncake/engine.h gives.
 */
#ifndef TESTS_SIM_SIM_ENGINE_H
#define TESTS_SIM_SIM_ENGINE_H

#include <stdbool.h>
#include <stdint.h>

struct vos_proc;

struct sim_engine_conf {
	uint64_t delay_min_ns, delay_max_ns; /* of a piece */
	uint32_t piece_max;		     /* bytes */
	uint32_t late_ppm;		     /* pieces that take up to late_max_ns */
	uint64_t late_max_ns;
	bool is_one_sided; /* a stopped process's memory is read and written all the same */
	uint32_t tell_ppm; /* groups of writes that are told of as they start, by their hosts */
	void (*on_write)(unsigned from, unsigned to);
};
extern struct sim_engine_conf sim_engine_conf;

/** A process is gone: its engines with it. After vos_kill(). */
void sim_engine_proc_end(struct vos_proc *proc);
/** Hosts are healed, or a process goes on: what waited arrives. */
void sim_engine_moved(void);

struct sim_engine_stats {
	uint64_t groups, pieces, torn, late_landings, unfenced;
};
extern struct sim_engine_stats sim_engine_stats;

#endif
