/*
 * self.c: post() pins every region that a slice names, copies, and unpins. All pins are taken
 * before the first byte moves, so a slice that is refused has changed nothing.
 */
#include "xport/self.h"

#include <string.h>

#include "xport/copy.h"
#include "xport/synclane.h"

struct self_dev {
	struct mc_xdev dev;
	struct mc_region_table *regions;
};

struct self_lane {
	struct mc_sync_lane sync;
	struct mc_region_table *regions;
	uint8_t *at[MC_SLICE_FRAGS_MAX]; /* the pinned memory of each fragment */
};

static int pin_range(struct self_lane *l, const struct mc_remote_region *rr, uint64_t raddr,
		     uint64_t len, enum mc_right right, uint8_t **ret_at)
{
	void *ptr;
	int rc;

	if (rr->kind != MC_MEM_HOST && rr->kind != MC_MEM_MEMFD)
		return -MC_E_UNSUPPORTED;
	if (raddr < rr->addr)
		return -MC_E_RANGE;
	rc = mc_region_pin(l->regions, rr->id, rr->gen, raddr - rr->addr, len, right, &ptr);
	if (rc == 0)
		*ret_at = ptr;
	return rc;
}

static void unpin_frags(struct self_lane *l, const struct mc_slice *s, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++)
		mc_region_unpin(l->regions, s->frags[i].rr->id);
}

/* @return 0, or the refusal of s->bad_frag with nothing pinned */
static int pin_frags(struct self_lane *l, struct mc_slice *s)
{
	enum mc_right right = s->op == MC_OP_READ ? MC_RIGHT_READ : MC_RIGHT_WRITE;
	const struct mc_frag *f;
	int rc;

	for (uint32_t i = 0; i < s->nfrags; i++) {
		f = &s->frags[i];
		rc = pin_range(l, f->rr, f->raddr, f->len, right, &l->at[i]);
		if (rc < 0) {
			unpin_frags(l, s, i);
			s->bad_frag = i;
			return rc;
		}
	}
	return 0;
}

static void copy_frag(void *dst, const void *src, size_t len, enum mc_copy_hint hint)
{
	uintptr_t d = (uintptr_t)dst, s = (uintptr_t)src;

	/* A transfer within one's own segment may overlap itself. */
	if (d - s < len || s - d < len)
		memmove(dst, src, len);
	else
		mc_copy(dst, src, len, hint);
}

static int signal_store(struct self_lane *l, const struct mc_signal *sig)
{
	uint8_t *at;
	int rc;

	if (sig->raddr % sizeof(uint64_t) != 0)
		return -MC_E_INVAL;
	rc = pin_range(l, sig->rr, sig->raddr, sizeof(uint64_t), MC_RIGHT_WRITE, &at);
	if (rc < 0)
		return rc;
	/* release: pairs with the acquire of whoever waits for the word */
	atomic_store_explicit((_Atomic uint64_t *)(void *)at, sig->value, memory_order_release);
	mc_region_unpin(l->regions, sig->rr->id);
	return 0;
}

static int run_slice(struct self_lane *l, struct mc_slice *s, enum mc_copy_hint hint)
{
	const struct mc_frag *f;
	int rc;

	s->bad_frag = 0;
	s->moved = 0;
	if (s->nfrags > MC_SLICE_FRAGS_MAX)
		return -MC_E_TOO_BIG;
	rc = pin_frags(l, s);
	if (rc < 0)
		return rc;
	for (uint32_t i = 0; i < s->nfrags; i++) {
		f = &s->frags[i];
		if (s->op == MC_OP_READ)
			copy_frag(f->local, l->at[i], f->len, hint);
		else
			copy_frag(l->at[i], f->local, f->len, hint);
		mc_sync_lane_moved(&l->sync, s, f->len);
	}
	unpin_frags(l, s, s->nfrags);
	return s->signal.rr ? signal_store(l, &s->signal) : 0;
}

static int self_post(struct mc_xlane *lane, struct mc_slice **slices, unsigned n)
{
	struct self_lane *l = mc_container_of(lane, struct self_lane, sync.lane);
	uint64_t total = 0;
	unsigned i;

	n = mc_min(n, MC_SYNC_DEPTH - l->sync.ndone);
	for (i = 0; i < n; i++)
		total += slices[i]->len;
	for (i = 0; i < n; i++)
		mc_sync_lane_end(&l->sync, slices[i],
				 run_slice(l, slices[i], mc_copy_hint_of(total)));
	return (int)n;
}

static int self_lane_open(struct mc_xdev *dev, const struct mc_xpath *path,
			  struct mc_xlane **ret_lane)
{
	struct self_lane *l = mc_calloc(1, sizeof(*l));

	(void)path;
	if (!l)
		return -MC_E_NOMEM;
	mc_sync_lane_init(&l->sync, dev->ops);
	l->regions = mc_container_of(dev, struct self_dev, dev)->regions;
	*ret_lane = &l->sync.lane;
	return 0;
}

static void self_lane_close(struct mc_xlane *lane)
{
	mc_free(mc_container_of(lane, struct self_lane, sync.lane));
}

static void self_dev_close(struct mc_xdev *dev)
{
	mc_free(mc_container_of(dev, struct self_dev, dev));
}

static const struct mc_xport_ops self_ops = {
    .name = "self",
    .caps = MC_XCAP_VISIBLE | MC_XCAP_ORDERED | MC_XCAP_SIGNAL | MC_XCAP_SYNC | MC_XCAP_MULTI_FRAG,
    .frags_max = MC_SLICE_FRAGS_MAX,
    .len_max = UINT64_MAX,
    .depth_max = MC_SYNC_DEPTH,
    .dev_close = self_dev_close,
    .lane_open = self_lane_open,
    .post = self_post,
    .poll = mc_sync_lane_poll,
    .arm = mc_sync_lane_arm,
    .progress = mc_sync_lane_progress,
    .abort = mc_sync_lane_abort,
    .retire = mc_sync_dev_retire,
    .lane_close = self_lane_close,
};

int mc_self_dev_open(const struct mc_xdev_env *env, struct mc_xdev **ret_dev)
{
	struct self_dev *d = mc_calloc(1, sizeof(*d));

	if (!d)
		return -MC_E_NOMEM;
	d->dev.ops = &self_ops;
	d->regions = env->regions;
	*ret_dev = &d->dev;
	return 0;
}
