/*
 * routes.c: which transport carries what, and how its lanes are opened.
 */
#include "engine/routes.h"

#include <string.h>

#include "engine/hops.h"
#include "engine/rails.h"
#include "xport/rdma/rdma.h"
#include "xport/shm.h"

#define SLICE_SMALL (256u << 10)
#define SLICE_LARGE (1u << 20)
#define SLICE_RDMA (64u << 10) /* as upstream: several NICs share a request evenly */
#define SLICE_COPY (8u << 20)  /* a copying transport: only cancel and deadline look in between */

const char *mc_route_name(enum mc_route route)
{
	static const char *const names[MC_ROUTE_COUNT] = {"self", "shm",  "file",
							  "tcp",  "rdma", "staged"};

	return route < MC_ROUTE_COUNT ? names[route] : "none";
}

/* Rails whose far end has a key for the memory, if one of them is up. */
static uint32_t rails_with_key(struct mc_session *s, const struct mc_remote_region *rr)
{
	struct mc_rails_view v;
	uint32_t rails = 0;

	if (s->rdma.n == 0 || atomic_load_explicit(&s->is_rdma_off, memory_order_relaxed))
		return 0;
	for (unsigned i = 0; i < s->rdma.n; i++)
		if (mc_rdma_key_get(rr->key, s->rdma.v[i].remote_port) != 0)
			rails |= 1u << i;
	if (rails == 0)
		return 0;
	mc_rails_look(s, MC_ROUTE_RDMA, mc_now_ns(), &v);
	return v.usable & rails ? rails : 0;
}

enum mc_route mc_route_choose(struct mc_session *s, const struct mc_remote_region *rr,
			      uint32_t *ret_rails)
{
	*ret_rails = 0;
	if (s->kind == MC_PEER_FILE)
		return MC_ROUTE_FILE;
	if (mc_hops_choose(MC_MEM_HOST, rr->kind) != MC_HOPS_DIRECT)
		return MC_ROUTE_STAGED;
	if (s->kind == MC_PEER_SELF)
		return MC_ROUTE_SELF;
	if (s->shm && mc_shm_peer_can(s->shm, rr))
		return MC_ROUTE_SHM;
	*ret_rails = rails_with_key(s, rr);
	return *ret_rails ? MC_ROUTE_RDMA : MC_ROUTE_TCP;
}

enum mc_route mc_route_fallback(const struct mc_session *s, enum mc_route route)
{
	if (s->kind != MC_PEER_OURS || (route != MC_ROUTE_SHM && route != MC_ROUTE_RDMA))
		return MC_ROUTE_COUNT;
	return MC_ROUTE_TCP;
}

static const struct mc_xdev *dev_of(const struct mc_session *s, enum mc_route route)
{
	switch (route) {
	case MC_ROUTE_SELF:
		return s->eng->self;
	case MC_ROUTE_SHM:
		return s->eng->shm;
	case MC_ROUTE_FILE:
		return s->eng->file;
	case MC_ROUTE_RDMA:
		return s->eng->rdma;
	default:
		return s->eng->lanes_from ? s->eng->lanes_from : s->eng->tcp;
	}
}

bool mc_route_has_signal(const struct mc_session *s, enum mc_route route)
{
	return route != MC_ROUTE_STAGED && s->kind != MC_PEER_CLASSIC &&
	       (dev_of(s, route)->ops->caps & MC_XCAP_SIGNAL) != 0;
}

bool mc_route_is_offered(const struct mc_session *s, enum mc_route route)
{
	return dev_of(s, route)->ops->caps & MC_XCAP_OFFER;
}

struct mc_xdev *mc_route_dev(struct mc_engine *eng, const char *name)
{
	if (strcmp(name, mc_route_name(MC_ROUTE_TCP)) == 0)
		return eng->tcp;
	return strcmp(name, mc_route_name(MC_ROUTE_RDMA)) == 0 ? eng->rdma : NULL;
}

uint32_t mc_route_frags_max(const struct mc_session *s, enum mc_route route)
{
	uint32_t most =
	    route == MC_ROUTE_STAGED ? MC_SLICE_FRAGS_MAX : dev_of(s, route)->ops->frags_max;

	/* Upstream's frames name one range each; its own lane says how many go out together. */
	return s->kind == MC_PEER_CLASSIC ? mc_min(most, 64u) : most;
}

uint64_t mc_route_slice_bytes(const struct mc_session *s, enum mc_route route, uint64_t total)
{
	uint64_t set = s->eng->conf.slice_bytes;

	if (route != MC_ROUTE_TCP && route != MC_ROUTE_RDMA)
		return SLICE_COPY;
	if (set)
		return set;
	if (route == MC_ROUTE_RDMA)
		return SLICE_RDMA;
	/* Several rails share a transfer evenly only in pieces; one rail wants few, large ones. */
	if (s->tcp.n > 1)
		return total / (s->tcp.n * 8) < SLICE_SMALL ? SLICE_SMALL / 2 : SLICE_SMALL;
	return SLICE_LARGE;
}

int mc_route_lane_open(struct mc_session *s, enum mc_route route, unsigned rail,
		       struct mc_xlane **ret_lane)
{
	struct mc_xdev *dev = (struct mc_xdev *)dev_of(s, route);
	struct mc_xpath path = {.peer_epoch = s->epoch, .peer_name = s->peer->name};

	memcpy(path.nonce, s->nonce, sizeof(path.nonce));
	if (route == MC_ROUTE_SHM)
		path.peer_state = s->shm;
	else if (route == MC_ROUTE_FILE)
		path.peer_state = s->file;
	else if (route == MC_ROUTE_RDMA) {
		path.local_port = s->rdma.v[rail].local_port;
		path.remote_port = s->rdma.v[rail].remote_port;
	} else if (route == MC_ROUTE_TCP) {
		path.local = s->tcp.v[rail].local;
		path.remote = s->tcp.v[rail].remote;
		if (s->kind == MC_PEER_CLASSIC)
			return mc_tcp_classic_lane_open(dev, &path, s->classic_proto, ret_lane);
	}
	return dev->ops->lane_open(dev, &path, ret_lane);
}
