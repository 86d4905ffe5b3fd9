/*
 * world.h: processes that are ranks of a group, for tests: forked, each with a hub of its own,
 * their addresses in memory that all share.
 */
#ifndef MC_TESTS_COLL_WORLD_H
#define MC_TESTS_COLL_WORLD_H

#include <mooncake/coll.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/types.h>

#define WORLD_MAX 16
#define WORLD_NOTES 64

/** Shared by all processes of a test. */
struct world {
	char addr[WORLD_MAX][MC_COLL_ADDR_MAX + 1];
	_Atomic uint32_t has_addr[WORLD_MAX];
	_Atomic uint64_t note[WORLD_NOTES]; /* the test's own */
	_Atomic uint32_t ticks;		    /* operations that ended, of all ranks */
	uint64_t seed;
	uint32_t hosts; /* rank i is on host i % hosts, which share nothing but loopback; 0: one */
};

/** A rank in its process. */
struct rank {
	struct world *w;
	uint32_t rank, ranks;
	struct mc_coll_hub *hub;
	struct mc_coll *coll;
};

struct world *world_make(uint64_t seed);
void world_free(struct world *w);
/** Fork a process that opens the group "world" as `rank` of `ranks` founders (0: a joiner of a
 * group with room for `ranks_max`), runs fn, closes, and exits with what fn returned. */
pid_t world_fork(struct world *w, uint32_t rank, uint32_t ranks, uint32_t ranks_max,
		 uint64_t scratch_max, int (*fn)(struct rank *r));
/** Fork a process that says where its hub is, and dies. */
pid_t world_fork_dead(struct world *w, uint32_t rank);
/** One all_reduce of what every rank knows of itself: the sum tells who was in it. @return 0; its
 * error; -MC_E_CORRUPT (the sum is not what the result says) */
int world_count_ranks(struct rank *r, uint64_t *ret_ranks);
/** Until the hubs of that many ranks can be reached. */
void world_wait_addresses(struct world *w, uint32_t ranks);
/** One operation more has ended. */
void world_tick(struct world *w);
/** Wait until that many have. */
void world_wait_ticks(struct world *w, uint32_t ticks);
/** Let that much time pass: for what the hub's loop does by its clock. */
void world_pause(uint64_t ns);
/** Wait for it. @return its exit status; 1000 + signal */
int world_reap(pid_t pid);
/** `ranks` founders run fn; all must exit with 0. */
void world_run(uint32_t ranks, uint64_t scratch_max, int (*fn)(struct rank *r));
/** The same, spread over hosts. */
void world_run_on(uint32_t hosts, uint32_t ranks, uint64_t scratch_max, int (*fn)(struct rank *r));

/** What the group's last failed call had to say. Static memory. */
const char *world_explain(struct rank *r);

/** Fail the rank's process with a line that says where. */
#define WORLD_CHECK(cond)                                                                          \
	do {                                                                                       \
		if (!(cond))                                                                       \
			return world_fail(#cond, __FILE__, __LINE__);                              \
	} while (0)
int world_fail(const char *what, const char *file, int line);

#endif
