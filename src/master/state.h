/*
 * state.h: what a master has to know in its next life: its epoch, its roster of owners,
 * quotas, and the tombstones of objects that were removed while an owner was away. Two files in one
 * directory.
 *
 *   state       text, replaced as a whole: epoch, one line for each owner and for each quota of a
 *               tenant, a hash of all before it
 *   tombstones  records of 32 bytes (owner, key hash, generation, hash of these), appended
 *
 * Files are written on the side loop, one job at a time; what is asked for meanwhile goes into the
 * next. A directory that cannot be written is told once, and the master goes on without.
 */
#ifndef MC_MASTER_STATE_H
#define MC_MASTER_STATE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "base/list.h"
#include "io/env.h"

#define MC_STATE_OWNERS_MAX 4096u
#define MC_STATE_TOMBS_MAX (1u << 20)
#define MC_STATE_NAME_MAX 128u /* with NUL */
#define MC_STATE_QUOTAS_MAX 4096u
#define MC_STATE_TENANT_MAX 256u /* with NUL */

struct mc_state;

struct mc_state_owner {
	uint64_t id, incarnation;
	uint64_t seen_s; /* wall clock, when it was last there */
	bool is_away;	 /* nobody waits for it any more */
	char segment[MC_STATE_NAME_MAX];
};

/** See mc_index_tomb in meta/index.h. */
struct mc_state_tomb {
	uint64_t owner, key_hash, gen;
};

/** Of a tenant: printable, "default" is the default one. */
struct mc_state_quota {
	uint64_t bytes;
	char tenant[MC_STATE_TENANT_MAX];
};

/** What was found. Arrays end with mc_state_found_fini(). */
struct mc_state_found {
	bool is_there; /* else the rest is 0 */
	uint64_t epoch;
	struct mc_state_owner *owners;
	struct mc_state_tomb *tombs;
	struct mc_state_quota *quotas;
	size_t nowners, ntombs, nquotas;
};
void mc_state_found_fini(struct mc_state_found *found);

/** Somebody who waits until all that was asked for before is durable (or cannot be). */
struct mc_state_wait {
	struct mc_list link;
	void (*on_done)(struct mc_state_wait *w);
};

/**
 * Read the directory, and make the epoch after the one found durable. Blocks.
 * @param dir  NULL: nothing is kept
 * @return 0; -MC_E_NOMEM. Files that are damaged count as missing from there on, and are told.
 */
MC_MUST_CHECK int mc_state_open(const struct mc_env *env, struct mc_loop *loop,
				struct mc_loop *side, const char *dir, struct mc_state **ret_state,
				struct mc_state_found *ret_found);
/** Writes under way end later: `side` must end before `loop`. NULL is allowed. Nobody who waits is
 * told any more. */
void mc_state_close(struct mc_state *s);

/* Loop thread. */
/** Replace the state file. @return 0; -MC_E_NOMEM (nothing is written, and told) */
int mc_state_save(struct mc_state *s, uint64_t epoch, const struct mc_state_owner *owners, size_t n,
		  const struct mc_state_quota *quotas, size_t nquotas);
/** Append a tombstone. @return 0; -MC_E_NOMEM */
int mc_state_bury(struct mc_state *s, const struct mc_state_tomb *tomb);
/** Replace all tombstones. @return 0; -MC_E_NOMEM */
int mc_state_bury_anew(struct mc_state *s, const struct mc_state_tomb *tombs, size_t n);
/** on_done comes from the loop, never from within this call, when nothing is being written too. */
void mc_state_wait(struct mc_state *s, struct mc_state_wait *w);

#endif
