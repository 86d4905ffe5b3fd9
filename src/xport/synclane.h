/*
 * synclane.h: what the lanes of transports that copy inside post() have in common: finished slices
 * wait in a list for poll(), and nothing is ever under way between two calls.
 */
#ifndef MC_XPORT_SYNCLANE_H
#define MC_XPORT_SYNCLANE_H

#include <stdatomic.h>

#include "xport/xport.h"

#define MC_SYNC_DEPTH 1024 /* finished slices that wait for poll() */

/** Begins each such lane's own struct. One owner, as every lane. */
struct mc_sync_lane {
	struct mc_xlane lane;
	struct mc_list done;
	unsigned ndone;
	uint64_t seq;
	_Atomic uint64_t moved; /* relaxed: written by the owner, read by the watchdog */
};

static inline struct mc_sync_lane *mc_sync_lane_of(struct mc_xlane *lane)
{
	return mc_container_of(lane, struct mc_sync_lane, lane);
}

static inline void mc_sync_lane_init(struct mc_sync_lane *l, const struct mc_xport_ops *ops)
{
	l->lane.ops = ops;
	mc_list_init(&l->done);
}

/** The slice is done with this status; bad_frag is the caller's to set before. */
static inline void mc_sync_lane_end(struct mc_sync_lane *l, struct mc_slice *s, int status)
{
	s->status = status;
	s->verdict = MC_SLICE_DONE;
	s->seq = ++l->seq;
	mc_list_push_back(&l->done, &s->link);
	l->ndone++;
}

static inline void mc_sync_lane_moved(struct mc_sync_lane *l, struct mc_slice *s, uint64_t bytes)
{
	s->moved += bytes;
	atomic_store_explicit(&l->moved,
			      atomic_load_explicit(&l->moved, memory_order_relaxed) + bytes,
			      memory_order_relaxed);
}

/* Operations of the vtable, as xport.h describes them. */
int mc_sync_lane_poll(struct mc_xlane *lane, uint64_t block_ns, struct mc_slice **ret_done,
		      unsigned max);
void mc_sync_lane_arm(struct mc_xlane *lane, struct mc_xarm *ret_arm);
uint64_t mc_sync_lane_progress(const struct mc_xlane *lane);
/** What is returned here was finished but not polled yet: verdict MC_SLICE_DONE with its status. No
 * token. */
size_t mc_sync_lane_abort(struct mc_xlane *lane, struct mc_list *ret_left,
			  uint8_t ret_token[MC_XPORT_TOKEN_MAX]);
/** Nothing ever lands after the initiator's post() returned: confirms at once. */
int mc_sync_dev_retire(struct mc_xdev *dev, const uint8_t *token, size_t token_len,
		       uint64_t *ret_acked);

#endif
