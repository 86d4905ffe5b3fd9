/*
 * synclane.c: the vtable operations that are the same wherever post() does all the work.
 */
#include "xport/synclane.h"

int mc_sync_lane_poll(struct mc_xlane *lane, uint64_t block_ns, struct mc_slice **ret_done,
		      unsigned max)
{
	struct mc_sync_lane *l = mc_sync_lane_of(lane);
	struct mc_list *node;
	unsigned n = 0;

	(void)block_ns; /* never anything to wait for */
	while (n < max && (node = mc_list_pop_front(&l->done)))
		ret_done[n++] = mc_list_entry(node, struct mc_slice, link);
	l->ndone -= n;
	return (int)n;
}

void mc_sync_lane_arm(struct mc_xlane *lane, struct mc_xarm *ret_arm)
{
	(void)lane;
	*ret_arm = (struct mc_xarm){.fd = -1};
}

uint64_t mc_sync_lane_progress(const struct mc_xlane *lane)
{
	const struct mc_sync_lane *l = mc_container_of(lane, const struct mc_sync_lane, lane);

	return atomic_load_explicit(&l->moved, memory_order_relaxed);
}

size_t mc_sync_lane_abort(struct mc_xlane *lane, struct mc_list *ret_left,
			  uint8_t ret_token[MC_XPORT_TOKEN_MAX])
{
	struct mc_sync_lane *l = mc_sync_lane_of(lane);

	(void)ret_token;
	mc_list_splice_back(ret_left, &l->done);
	l->ndone = 0;
	return 0;
}

int mc_sync_dev_retire(struct mc_xdev *dev, const uint8_t *token, size_t token_len,
		       uint64_t *ret_acked)
{
	(void)dev;
	(void)token;
	(void)token_len;
	*ret_acked = UINT64_MAX;
	return 0;
}
