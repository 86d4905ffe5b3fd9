/*
 * drain.h: jobs that empty segments: no new puts go there, what is in their memory moves to other
 * owners. The index loop's.
 */
#ifndef MC_MASTER_DRAIN_H
#define MC_MASTER_DRAIN_H

#include "master/priv.h"

#define MC_DRAIN_SEGMENTS_MAX 64u
#define MC_DRAIN_COPIES 4u /* at one time, unless the job says */
#define MC_DRAIN_COPIES_MAX 64u

enum mc_mst_job_state { /* upstream's JobStatus */
			MC_MST_JOB_CREATED = 1,
			MC_MST_JOB_RUNNING,
			MC_MST_JOB_SUCCEEDED,
			MC_MST_JOB_FAILED,
			MC_MST_JOB_CANCELED,
};

struct mc_mst_job_id {
	uint64_t hi, lo;
};

struct mc_mst_drain_want {
	char segments[MC_DRAIN_SEGMENTS_MAX][MC_MST_TEXT_MAX],
	    targets[MC_DRAIN_SEGMENTS_MAX][MC_MST_TEXT_MAX];
	size_t nsegments, ntargets; /* no targets: all owners that take puts */
	uint32_t copies;	    /* at one time: 1 … MC_DRAIN_COPIES_MAX */
};

struct mc_mst_drain_view {
	enum mc_mst_job_state state;
	uint64_t created_ms, updated_ms; /* wall clock */
	uint64_t moved, moved_bytes, failed, active;
	uint64_t blocked; /* tried again later */
	uint64_t left;	  /* replicas of these segments, in memory and on disk */
	char segments[MC_DRAIN_SEGMENTS_MAX][MC_MST_TEXT_MAX];
	size_t nsegments;
	char message[256];
};

/**
 * @return 0; MC_STORE_SEGMENT_NOT_FOUND; MC_STORE_INVALID_PARAMS (none, too many, a target that is
 * drained or not there); MC_STORE_UNAVAILABLE_IN_CURRENT_STATUS (drained already, or the master
 * recovers); MC_STORE_TASK_PENDING_LIMIT_EXCEEDED; MC_STORE_INTERNAL_ERROR
 */
MC_MUST_CHECK int32_t mc_mst_drain_start(struct mc_master *m, const struct mc_mst_drain_want *want,
					 struct mc_mst_job_id *ret_id);
/** @return 0; MC_STORE_JOB_NOT_FOUND */
MC_MUST_CHECK int32_t mc_mst_drain_view(struct mc_master *m, struct mc_mst_job_id id,
					struct mc_mst_drain_view *ret);
/** What was moved stays there; the segments take puts again. @return 0; MC_STORE_JOB_NOT_FOUND;
 * MC_STORE_UNAVAILABLE_IN_CURRENT_STATUS (it has ended) */
MC_MUST_CHECK int32_t mc_mst_drain_cancel(struct mc_master *m, struct mc_mst_job_id id);
MC_MUST_CHECK int mc_mst_drains_open(struct mc_master *m);
void mc_mst_drains_close(struct mc_master *m);

#endif
