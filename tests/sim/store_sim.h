/*
 * store_sim.h: one history of the simulated Store (store_sim_test.c says what must hold).
 */
#ifndef TESTS_SIM_STORE_SIM_H
#define TESTS_SIM_STORE_SIM_H

#include <stdbool.h>
#include <stdint.h>

/* What a history counts. */
enum sim_count {
	SIM_WRITES,
	SIM_ACKED,
	SIM_UNKNOWN,
	SIM_READS,
	SIM_MISSES,
	SIM_REMOVES,
	SIM_KILLS,
	SIM_STOPS,
	SIM_CUTS,
	SIM_PIECES,
	SIM_UNFENCED,
	SIM_LATE,
	SIM_SECONDS,
	SIM_COUNT,
};
extern const char *const store_sim_names[SIM_COUNT];

/** Tell each operation and fault on stderr. */
extern bool store_sim_is_told;

/** Run it; ends the process with a text when something does not hold. One a process. */
void store_sim_run(uint64_t seed, uint64_t sums[SIM_COUNT]);

#endif
