/*
 * handle.h: what transfer_engine_t and batch_id_t of upstream's C ABI stand for.
 *
 * Both are ids of process-wide tables (index + generation, see base/ids.h), an engine's in the
 * shape of a pointer: whatever a program passes in is looked up, never followed. The tables are the
 * one global state of this layer; the ABI has no other place for them.
 */
#ifndef MC_CAPI_HANDLE_H
#define MC_CAPI_HANDLE_H

#include <pthread.h>

#include <mooncake/engine.h>
#include <mooncake/transfer_engine_c.h>

#include "base/list.h"

#define MC_CAPI_ENGINES_MAX 4096
#define MC_CAPI_BATCHES_MAX (1u << 20)

struct mc_capi_engine {
	struct mc_engine *eng;
	pthread_mutex_t lock;	/* guards the lists; before a batch's lock, which is only tried */
	struct mc_list batches; /* struct mc_capi_batch.link */
	struct mc_list leaving; /* freed by the program while under way */
};

/** Submits of a batch, in order. */
struct mc_capi_group {
	uint64_t id;
	uint32_t first, n; /* its transfers, in the batch's numbering */
};

struct mc_capi_batch {
	uint64_t id;
	uint64_t engine_id;
	struct mc_list link;  /* under the engine's lock */
	pthread_mutex_t lock; /* guards what follows */
	uint32_t capacity, n_tasks;
	struct mc_capi_group *group; /* owned */
	size_t n_groups, groups_cap;
	void *scratch; /* owned; a submit's transfers and ranges */
	size_t scratch_cap;
};

/** Register an open engine; takes over its reference. @return NULL when out of memory or handles */
transfer_engine_t mc_capi_engine_add(struct mc_engine *eng);
/** Pinned engine of a handle, or NULL. End with mc_capi_engine_put(). Any thread. */
struct mc_capi_engine *mc_capi_engine_get(transfer_engine_t handle);
void mc_capi_engine_put(transfer_engine_t handle);
/** The handle is unknown from now on; the engine is closed once no call uses it. */
void mc_capi_engine_del(transfer_engine_t handle);

/** @return the id, INVALID_BATCH when out of memory or ids */
batch_id_t mc_capi_batch_add(struct mc_capi_engine *eng, transfer_engine_t handle,
			     uint32_t capacity);
/** Pinned batch of that engine, or NULL. End with mc_capi_batch_put(). Any thread. */
struct mc_capi_batch *mc_capi_batch_get(transfer_engine_t handle, batch_id_t id);
void mc_capi_batch_put(batch_id_t id);
/** Caller holds the engine's lock; the batch is off the engine's lists and its id unknown. */
void mc_capi_batch_del(struct mc_capi_batch *batch);

#endif
