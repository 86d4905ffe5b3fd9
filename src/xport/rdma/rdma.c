/*
 * rdma.c: the device: opening, closing, what it tells of its ports, and its table of functions.
 */
#include "xport/rdma/rdma.h"

#include <string.h>

#include "base/log.h"
#include "xport/rdma/lane.h"

static void dev_close(struct mc_xdev *x)
{
	struct mc_rdma_dev *dev = (struct mc_rdma_dev *)x;

	if (!dev)
		return;
	mc_assert(atomic_load_explicit(&dev->nlanes, memory_order_relaxed) == 0);
	mc_rdma_inbound_close(dev);
	mc_rdma_mrs_close(dev);
	mc_rdma_hcas_close(dev);
	mc_free(dev);
}

int mc_rdma_dev_open(const struct mc_xdev_env *env, const struct mc_rdma_opts *opts,
		     struct mc_xdev **ret_dev, struct mc_diag *diag)
{
	struct mc_rdma_dev *dev = mc_aligned_alloc(MC_CACHELINE, sizeof(*dev));
	int rc;

	mc_assert(env->nloops > 0);
	if (!dev)
		return -MC_E_NOMEM;
	dev->x.ops = &mc_rdma_ops;
	dev->env = *env;
	atomic_init(&dev->next_lane, 1);
	mc_rdma_conf_load(&dev->conf);
	dev->v = opts->verbs;
	rc = dev->v ? 0 : mc_verbs_load(&dev->v, diag);
	if (rc == 0)
		rc = mc_rdma_hcas_open(dev, opts, diag);
	if (rc == 0)
		rc = mc_rdma_mrs_open(dev);
	if (rc == 0)
		rc = mc_rdma_inbound_open(dev);
	if (rc < 0)
		goto fail;
	*ret_dev = &dev->x;
	return 0;
fail:
	dev_close(&dev->x);
	return rc;
}

/* ---- ports ---- */

static const struct mc_rdma_hca *hca_of(const struct mc_xdev *x, unsigned port)
{
	const struct mc_rdma_dev *dev = (const struct mc_rdma_dev *)x;

	mc_assert(port < dev->nhcas);
	return &dev->hca[port];
}

unsigned mc_rdma_ports(const struct mc_xdev *x)
{
	return ((const struct mc_rdma_dev *)x)->nhcas;
}

void mc_rdma_port_get(const struct mc_xdev *x, unsigned port, struct mc_rdma_port *ret)
{
	/* Only its lock is not constant. */
	*ret = mc_rdma_port_now((struct mc_rdma_hca *)hca_of(x, port));
}

bool mc_rdma_has_addr(const struct mc_xdev *x)
{
	struct mc_rdma_port port;

	for (unsigned i = 0; i < mc_rdma_ports(x); i++) {
		mc_rdma_port_get(x, i, &port);
		if (port.has_addr)
			return true;
	}
	return false;
}

bool mc_rdma_port_is_up(const struct mc_xdev *x, unsigned port)
{
	const struct mc_rdma_hca *hca = hca_of(x, port);

	return atomic_load_explicit(&hca->is_up, memory_order_relaxed) &&
	       !atomic_load_explicit(&hca->is_fatal, memory_order_relaxed);
}

int mc_rdma_port_find(const struct mc_xdev *x, const char *name)
{
	for (unsigned i = 0; i < mc_rdma_ports(x); i++)
		if (strcmp(hca_of(x, i)->port.name, name) == 0)
			return (int)i;
	return -1;
}

uint32_t mc_rdma_ports_version(const struct mc_xdev *x)
{
	/* acquire: pairs with the release of the event that changed a port */
	return atomic_load_explicit(&((const struct mc_rdma_dev *)x)->ports_version,
				    memory_order_acquire);
}

uint64_t mc_rdma_retry_ns(const struct mc_xdev *x)
{
	const struct mc_rdma_conf *conf = &((const struct mc_rdma_dev *)x)->conf;

	return (4096ull << conf->timeout) * ((uint64_t)conf->retry_cnt + 1);
}

/* ---- counters ---- */

void mc_rdma_stats_get(const struct mc_xdev *x, struct mc_rdma_stats *ret)
{
	const struct mc_rdma_dev *dev = (const struct mc_rdma_dev *)x;
	const struct mc_rdma_counters *c = &dev->count;

	*ret = (struct mc_rdma_stats){
	    .posts = mc_counter_read(&c->posts),
	    .wrs = mc_counter_read(&c->wrs),
	    .signaled = mc_counter_read(&c->signaled),
	    .polls = mc_counter_read(&c->polls),
	    .wcs = mc_counter_read(&c->wcs),
	    .arms = mc_counter_read(&c->arms),
	    .wakes = mc_counter_read(&c->wakes),
	    .accepted = mc_counter_read(&c->accepted),
	    .retired = mc_counter_read(&c->retired),
	    .evicted = mc_counter_read(&c->evicted),
	    .qps = atomic_load_explicit(&dev->nqps, memory_order_relaxed),
	    .mrs = mc_rdma_mrs_count(dev),
	    .lanes = atomic_load_explicit(&dev->nlanes, memory_order_relaxed),
	    .inbound = atomic_load_explicit(&dev->ninbound, memory_order_relaxed),
	};
}

const struct mc_xport_ops mc_rdma_ops = {
    .name = "rdma",
    .caps = MC_XCAP_VISIBLE | MC_XCAP_SIGNAL | MC_XCAP_FENCE | MC_XCAP_MULTI_FRAG | MC_XCAP_OFFER,
    .frags_max = MC_SLICE_FRAGS_MAX,
    .len_max = 1ull << 32,
    .depth_max = MC_RDMA_DEPTH,
    .dev_close = dev_close,
    .lane_open = mc_rdma_lane_open,
    .post = mc_rdma_lane_post,
    .poll = mc_rdma_lane_poll,
    .arm = mc_rdma_lane_arm,
    .progress = mc_rdma_lane_progress,
    .abort = mc_rdma_lane_abort,
    .retire = mc_rdma_retire,
    .lane_close = mc_rdma_lane_close,
    .offer = mc_rdma_lane_offer,
    .accept = mc_rdma_accept,
    .connect = mc_rdma_lane_connect,
};
