/*
 * tcp_dev.c: the TCP device: listeners, the table of lanes for retirement, life cycle.
 */
#include <sys/socket.h>

#include "base/log.h"
#include "base/rand.h"
#include "xport/tcp_conn.h"

#define ACCEPTS_PER_TURN 64u
#define BACKLOG 1024
#define ACCEPT_PAUSE_NS (100 * MC_NS_PER_MS) /* after descriptors ran out */

const struct mc_xport_ops mc_tcp_ops;

static struct mc_tcp_dev *dev_of(struct mc_xdev *x)
{
	return (struct mc_tcp_dev *)x;
}

/* ---- lanes, live and ended ---- */

/* Lock held. @return the entry, or NULL */
static const struct mc_tcp_retired *retired_find(const struct mc_tcp_dev *dev,
						 uint64_t initiator_epoch, uint64_t lane)
{
	for (unsigned i = 0; i < dev->retired_n; i++) {
		const struct mc_tcp_retired *r = &dev->retired[i];

		if (r->initiator_epoch == initiator_epoch && r->lane == lane)
			return r;
	}
	return NULL;
}

/* Lock held. */
static void retired_add(struct mc_tcp_dev *dev, uint64_t initiator_epoch, uint64_t lane,
			uint64_t acked)
{
	dev->retired[dev->retired_at] = (struct mc_tcp_retired){initiator_epoch, lane, acked};
	dev->retired_at = (dev->retired_at + 1) % MC_TCP_RETIRED_MAX;
	if (dev->retired_n < MC_TCP_RETIRED_MAX)
		dev->retired_n++;
}

/* Lock held. @return the connection, or NULL */
static struct mc_tcp_conn *live_find(struct mc_tcp_dev *dev, uint64_t initiator_epoch,
				     uint64_t lane)
{
	struct mc_tcp_conn *c;

	mc_list_each (c, &dev->lanes, lane_link)
		if (c->initiator_epoch == initiator_epoch && c->lane == lane)
			return c;
	return NULL;
}

int mc_tcp_dev_lane_begin(struct mc_tcp_dev *dev, struct mc_tcp_conn *c)
{
	int rc = -MC_E_STALE;

	pthread_mutex_lock(&dev->lock);
	if (!retired_find(dev, c->initiator_epoch, c->lane) &&
	    !live_find(dev, c->initiator_epoch, c->lane)) {
		mc_list_push_back(&dev->lanes, &c->lane_link);
		rc = 0;
	}
	pthread_mutex_unlock(&dev->lock);
	return rc;
}

void mc_tcp_dev_lane_end(struct mc_tcp_dev *dev, struct mc_tcp_conn *c)
{
	pthread_mutex_lock(&dev->lock);
	mc_list_del(&c->lane_link);
	/* Some after a refused one may be applied, too. */
	retired_add(dev, c->initiator_epoch, c->lane,
		    c->is_acked_final && c->seq > c->acked + 1 ? MC_ACKED_UNKNOWN : c->acked);
	pthread_mutex_unlock(&dev->lock);
}

/* Lock held. A lane that nobody has heard of is refused from now on. @return its shard when it is
 * live, else NULL and *ret_acked */
static struct mc_tcp_shard *lane_retire(struct mc_tcp_dev *dev, uint64_t initiator_epoch,
					uint64_t lane, uint64_t *ret_acked)
{
	const struct mc_tcp_retired *r = retired_find(dev, initiator_epoch, lane);
	struct mc_tcp_conn *c;

	if (r) {
		*ret_acked = r->acked;
		return NULL;
	}
	c = live_find(dev, initiator_epoch, lane);
	if (c)
		return c->shard;
	retired_add(dev, initiator_epoch, lane, 0);
	*ret_acked = 0;
	return NULL;
}

static int retire(struct mc_xdev *x, const uint8_t *token, size_t len, uint64_t *ret_acked)
{
	struct mc_tcp_dev *dev = dev_of(x);
	struct mc_rd rd = mc_rd_make(token, len);
	uint64_t epoch = mc_rd_u64(&rd);
	uint64_t lane = mc_rd_u64(&rd);
	struct mc_tcp_shard *shard;

	if (!mc_rd_is_done(&rd))
		return -MC_E_PROTO;
	/* Ending a live lane puts it among the retired, so the second look is the last; a third
	 * would take more than MC_TCP_RETIRED_MAX ends in between. */
	do {
		pthread_mutex_lock(&dev->lock);
		shard = lane_retire(dev, epoch, lane, ret_acked);
		pthread_mutex_unlock(&dev->lock);
		if (shard)
			mc_tcp_shard_end_lane(shard, epoch, lane);
	} while (shard);
	return 0;
}

/* ---- accepting ---- */

static void accept_watch(struct mc_tcp_dev *dev, uint32_t events)
{
	for (unsigned i = 0; i < dev->nlisteners; i++)
		(void)mc_loop_rewatch(dev->env.loops[0], &dev->listeners[i].watch, events);
}

static void accept_resume(struct mc_timer *t)
{
	accept_watch(mc_container_of(t, struct mc_tcp_dev, accept_timer), EPOLLIN);
}

/* The waiting connection stays where it is, and would be reported for ever. */
static void accept_pause(struct mc_tcp_dev *dev)
{
	struct mc_loop *loop = dev->env.loops[0];

	accept_watch(dev, 0);
	(void)mc_loop_timer_set(loop, &dev->accept_timer, mc_loop_now(loop) + ACCEPT_PAUSE_NS);
}

static void on_accept(struct mc_watch *w, uint32_t events)
{
	struct mc_tcp_listener *l = mc_container_of(w, struct mc_tcp_listener, watch);
	struct mc_tcp_dev *dev = l->dev;
	struct mc_addr peer;
	int fd, rc;

	(void)events;
	for (unsigned i = 0; i < ACCEPTS_PER_TURN; i++) {
		rc = mc_sock_accept(w->fd, &fd, &peer);
		if (rc == -MC_E_AGAIN)
			return;
		if (rc < 0) {
			mc_log_warn("accept failed", "port=%u cause=\"%s\"", dev->port,
				    mc_err_text(rc));
			accept_pause(dev);
			return;
		}
		if (atomic_fetch_add_explicit(&dev->nconns, 1, memory_order_relaxed) >=
			dev->conns_max ||
		    mc_tcp_conn_start(dev, fd) < 0) {
			atomic_fetch_sub_explicit(&dev->nconns, 1, memory_order_relaxed);
			mc_log_warn("connection refused: too many", "port=%u limit=%u", dev->port,
				    dev->conns_max);
			mc_fd_close(&fd);
		}
	}
}

/* ---- life ---- */

static int accept_region(struct mc_region_listener *l, const struct mc_region_info *info)
{
	(void)l;
	(void)info;
	return 0;
}

static void revoke(struct mc_region_listener *l, const struct mc_region_info *info)
{
	struct mc_tcp_dev *dev = mc_container_of(l, struct mc_tcp_dev, revoke);

	(void)info;
	atomic_fetch_add_explicit(&dev->nrevoking, 1, memory_order_relaxed);
	for (unsigned i = 0; i < dev->env.nloops; i++)
		mc_tcp_shard_revoked(&dev->shards[i]);
}

static bool quiet(struct mc_region_listener *l, const struct mc_region_info *info)
{
	struct mc_tcp_dev *dev = mc_container_of(l, struct mc_tcp_dev, revoke);

	(void)info;
	/* Every access of ours is a pin of the table, which it has waited for: asked once. */
	atomic_fetch_sub_explicit(&dev->nrevoking, 1, memory_order_relaxed);
	return true;
}

static void dev_stop(void *arg)
{
	struct mc_tcp_dev *dev = arg;

	mc_loop_timer_cancel(dev->env.loops[0], &dev->accept_timer);
	for (unsigned i = 0; i < dev->nlisteners; i++)
		if (dev->listeners[i].watch.fd >= 0)
			mc_loop_unwatch(dev->env.loops[0], &dev->listeners[i].watch);
}

static void dev_start(void *arg)
{
	struct mc_tcp_dev *dev = arg;

	for (unsigned i = 0; i < dev->nlisteners; i++)
		if (mc_loop_watch(dev->env.loops[0], &dev->listeners[i].watch) < 0)
			mc_log_error("cannot watch listener", "port=%u", dev->port);
}

static void dev_close(struct mc_xdev *x)
{
	struct mc_tcp_dev *dev = dev_of(x);

	if (!dev)
		return;
	atomic_store_explicit(&dev->is_closing, true, memory_order_relaxed);
	mc_region_table_unlisten(dev->env.regions, &dev->revoke);
	if (dev->shards) {
		mc_loop_call(dev->env.loops[0], dev_stop, dev);
		for (unsigned i = 0; i < dev->env.nloops; i++)
			mc_tcp_shard_drain(&dev->shards[i]);
	}
	for (unsigned i = 0; i < dev->nlisteners; i++)
		mc_fd_close(&dev->listeners[i].watch.fd);
	pthread_mutex_destroy(&dev->lock);
	mc_free(dev->shards);
	mc_free(dev->retired);
	mc_free(dev);
}

/* All addresses on one port: the first chooses, the others follow or the next port is tried. */
static int listen_all(struct mc_tcp_dev *dev, const struct mc_tcp_opts *opts)
{
	unsigned tries = 32;
	int rc;

retry: /* at most `tries` ports */
	for (unsigned i = 0; i < opts->naddrs; i++) {
		struct mc_tcp_listener *l = &dev->listeners[i];
		struct mc_addr a = opts->addrs[i], bound;

		l->dev = dev;
		l->watch.events = EPOLLIN;
		l->watch.on_event = on_accept;
		if (i == 0) {
			rc = mc_sock_listen_range(&a, opts->port_min, opts->port_max, BACKLOG,
						  &l->watch.fd, &bound);
			dev->port = rc == 0 ? mc_addr_port(&bound) : 0;
		} else {
			mc_addr_port_set(&a, dev->port);
			rc = mc_sock_listen(&a, BACKLOG, &l->watch.fd, &bound);
		}
		if (rc == 0)
			continue;
		for (unsigned k = 0; k < i; k++)
			mc_fd_close(&dev->listeners[k].watch.fd);
		if (rc == -MC_E_ADDR_IN_USE && i > 0 && --tries > 0)
			goto retry;
		return rc;
	}
	dev->nlisteners = opts->naddrs;
	return 0;
}

int mc_tcp_dev_open(const struct mc_xdev_env *env, const struct mc_tcp_opts *opts,
		    struct mc_xdev **ret_dev)
{
	struct mc_tcp_dev *dev = mc_calloc(1, sizeof(*dev));
	int rc;

	mc_assert(opts->naddrs >= 1 && opts->naddrs <= MC_TCP_LISTENERS_MAX && env->nloops > 0);
	if (!dev)
		return -MC_E_NOMEM;
	dev->base.ops = &mc_tcp_ops;
	dev->env = *env;
	dev->conns_max = opts->conns_max ? opts->conns_max : MC_TCP_CONNS_DEFAULT;
	dev->hello_ns = opts->hello_ns ? opts->hello_ns : MC_TCP_HELLO_NS_DEFAULT;
	dev->preface = opts->preface;
	dev->adopt = opts->adopt;
	dev->adopt_user = opts->adopt_user;
	pthread_mutex_init(&dev->lock, NULL);
	mc_list_init(&dev->lanes);
	atomic_init(&dev->next_lane, 1);
	for (unsigned i = 0; i < MC_TCP_LISTENERS_MAX; i++)
		dev->listeners[i].watch.fd = -1;
	dev->retired = mc_calloc(MC_TCP_RETIRED_MAX, sizeof(*dev->retired));
	rc = dev->retired ? listen_all(dev, opts) : -MC_E_NOMEM;
	if (rc < 0)
		goto fail;
	dev->shards = mc_calloc(env->nloops, sizeof(*dev->shards));
	rc = -MC_E_NOMEM;
	if (!dev->shards)
		goto fail;
	for (unsigned i = 0; i < env->nloops; i++)
		mc_tcp_shard_init(&dev->shards[i], dev, env->loops[i]);
	dev->accept_timer.on_time = accept_resume;
	dev->revoke.on_add = accept_region;
	dev->revoke.on_revoke = revoke;
	dev->revoke.is_quiet = quiet;
	mc_region_table_listen(env->regions, &dev->revoke);
	mc_loop_call(env->loops[0], dev_start, dev);
	*ret_dev = &dev->base;
	return 0;
fail:
	dev_close(&dev->base);
	return rc;
}

uint16_t mc_tcp_dev_port(const struct mc_xdev *dev)
{
	return ((const struct mc_tcp_dev *)dev)->port;
}

void mc_tcp_dev_served(const struct mc_xdev *x, struct mc_tcp_served *ret)
{
	const struct mc_tcp_dev *dev = (const struct mc_tcp_dev *)x;

	for (int op = 0; op < MC_OP_COUNT; op++) {
		ret->bytes[op] = atomic_load_explicit(&dev->bytes[op], memory_order_relaxed);
		ret->requests[op] = atomic_load_explicit(&dev->requests[op], memory_order_relaxed);
	}
	ret->refused = atomic_load_explicit(&dev->refused, memory_order_relaxed);
	ret->conns = atomic_load_explicit(&dev->nconns, memory_order_relaxed);
}

const struct mc_xport_ops mc_tcp_ops = {
    .name = "tcp",
    .caps = MC_XCAP_VISIBLE | MC_XCAP_ORDERED | MC_XCAP_SIGNAL | MC_XCAP_FENCE | MC_XCAP_MULTI_FRAG,
    .frags_max = MC_SLICE_FRAGS_MAX,
    .len_max = 1ull << 32,
    .depth_max = 64,
    .dev_close = dev_close,
    .lane_open = mc_tcp_lane_open,
    .post = mc_tcp_lane_post,
    .poll = mc_tcp_lane_poll,
    .arm = mc_tcp_lane_arm,
    .progress = mc_tcp_lane_progress,
    .abort = mc_tcp_lane_abort,
    .retire = retire,
    .lane_close = mc_tcp_lane_close,
};
