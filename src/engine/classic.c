/*
 * classic.c: upstream's processes as peers of ours: their descriptor, and lanes that are introduced
 * to them.
 *
 * Upstream keeps one endpoint for each name "server@device" that shows up and uses it both ways.
 * Were our lanes introduced under our own name, they would take the place of the endpoint that the
 * peer made to reach us, and each side would end the other's queue pairs. So each lane has a name
 * of its own, "server/session.slot@device". The lowest free slot is taken, so the peer sees few
 * names.
 *
 * That is a fence, too: a peer that is shown new queue pairs under a name that it knows stops the
 * ones it had before it answers. So whoever must know that nothing of a broken lane lands any more
 * introduces another under the lane's name, from any port. The new queue pairs must have other
 * numbers than the old, or the peer would go on with those it has.
 */
#include "engine/classic.h"

#include <stdio.h>
#include <string.h>

#include "base/codec.h"
#include "base/log.h"
#include "base/mem.h"
#include "disco/connection.h"
#include "disco/segdesc.h"
#include "engine/rails.h"
#include "xport/rdma/rdma.h"

#define LEN_MAX (1ull << 47) /* a buffer's length that we believe */

/* What introducing needs to know of a peer with RDMA. Constant. */
struct mc_classic {
	char server[MC_NIC_PATH_MAX];
	unsigned ndevs;
	struct mc_ctl_port dev[MC_RDMA_PORTS_MAX]; /* in the order of its keys */
	char name[MC_RDMA_PORTS_MAX][MC_RDMA_NAME_MAX];
	uint32_t tag; /* of this incarnation of ours, in names */
	/* session.mu: what was introduced, by rail and slot */
	uint32_t busy[MC_RAILS_MAX];		      /* bit a slot: an introduction is under way */
	uint32_t gen[MC_RAILS_MAX][MC_LANES_MAX + 1]; /* introductions that were answered */
	uint32_t qpn[MC_RAILS_MAX][MC_LANES_MAX + 1]; /* the first of the last one */
};

/* ---- what it shows ---- */

static void key_of(const struct mc_segdesc_buffer *b, uint8_t ret_key[MC_XPORT_TOKEN_MAX])
{
	uint32_t rkey[MC_RDMA_PORTS_MAX] = {0};

	for (uint32_t i = 0; b->rkey && i < mc_min(b->nkeys, MC_RDMA_PORTS_MAX); i++)
		rkey[i] = b->rkey[i] <= UINT32_MAX ? (uint32_t)b->rkey[i] : 0;
	mc_rdma_key_put(ret_key, rkey);
}

static int learn(struct mc_session *s, const struct mc_segdesc *desc)
{
	const struct mc_remote_region *known;

	for (size_t i = 0; i < desc->nbuffers; i++) {
		const struct mc_segdesc_buffer *b = &desc->buffers[i];
		struct mc_remote_region r = {
		    .addr = b->addr, .len = b->len, .rights = MC_RIGHT_READ | MC_RIGHT_WRITE};
		int rc;

		if (b->len == 0 || b->len > LEN_MAX || b->addr > UINT64_MAX - b->len)
			continue;
		if (s->classic)
			key_of(b, r.key);
		rc = mc_session_learn(s, &r, &known);
		if (rc < 0)
			return rc;
	}
	return 0;
}

static int open_tcp(struct mc_session *s, const struct mc_segdesc *desc, struct mc_diag *diag)
{
	struct mc_rail *rail = &s->tcp.v[0];
	char text[MC_ADDR_TEXT_MAX];
	int rc = 0;

	rail->remote = s->ctl_addr;
	if (desc->tcp_data_host[0])
		rc = mc_addr_resolve(desc->tcp_data_host, desc->tcp_data_port, &rail->remote, diag);
	if (rc < 0)
		return rc;
	mc_addr_port_set(&rail->remote, desc->tcp_data_port);
	rail->stats = mc_stats_rail(s->eng, "tcp-classic", "any", s->peer->name);
	s->classic_proto = s->eng->conf.classic_proto == 1 ? 1 : (int)desc->tcp_proto_version;
	if (s->classic_proto < 1)
		s->classic_proto = 1;
	if (s->classic_proto == 1)
		mc_log_warn("peer does not confirm writes", "peer=%s frames=1 data=%s",
			    s->peer->name, mc_addr_format(&rail->remote, text));
	return learn(s, desc);
}

static int open_rdma(struct mc_session *s, const struct mc_segdesc *desc, struct mc_diag *diag)
{
	struct mc_classic *c;

	if (!s->eng->rdma) {
		mc_diag_set(diag, "peer offers RDMA only, and this engine has no RDMA device open: "
				  "initialize it with protocol \"rdma\"");
		return -MC_E_UNSUPPORTED;
	}
	s->classic = c = mc_calloc(1, sizeof(*c));
	if (!c)
		return -MC_E_NOMEM;
	if (mc_strlcpy(c->server, sizeof(c->server), desc->name) < 0) {
		mc_diag_set(diag, "peer's name is longer than %u bytes", MC_NIC_PATH_MAX - 1);
		return -MC_E_TOO_BIG;
	}
	for (size_t i = 0; i < mc_min(desc->ndevices, (size_t)MC_RDMA_PORTS_MAX); i++) {
		struct mc_ctl_port *p = &c->dev[c->ndevs];

		if (mc_strlcpy(c->name[i], sizeof(c->name[i]), desc->devices[i].name) < 0) {
			mc_diag_set(diag, "peer's device \"%.80s\" has too long a name",
				    desc->devices[i].name);
			return -MC_E_TOO_BIG;
		}
		(void)mc_strlcpy(p->name, sizeof(p->name), c->name[i]); /* cut: to pair by */
		/* One that cannot be read is told by the answer to our introduction. */
		if (mc_gid_parse(desc->devices[i].gid, p->gid) < 0)
			memset(p->gid, 0, sizeof(p->gid));
		p->lid = desc->devices[i].lid;
		p->flags = p->lid == 0 ? MC_CTL_PORT_ETHERNET : 0;
		c->ndevs++;
	}
	c->tag = (uint32_t)s->eng->epoch;
	mc_rails_rdma(s, c->dev, c->ndevs);
	s->tcp.n = 0;
	if (s->rdma.n == 0) {
		mc_diag_set(diag, "none of the peer's %u RDMA devices can be paired with one here",
			    c->ndevs);
		return -MC_E_UNREACHABLE;
	}
	return learn(s, desc);
}

int mc_classic_open(struct mc_session *s, const struct mc_segdesc *desc, struct mc_diag *diag)
{
	if (strcmp(desc->protocol, "rdma") == 0)
		return open_rdma(s, desc, diag);
	if (strcmp(desc->protocol, "tcp") == 0 && desc->tcp_data_port != 0)
		return open_tcp(s, desc, diag);
	mc_diag_set(diag,
		    "peer offers protocol \"%s\" only; upstream's peers are reached over tcp "
		    "and rdma",
		    desc->protocol);
	return -MC_E_UNSUPPORTED;
}

/* Is it another process under the same name? */
static bool is_another(const struct mc_session *s, const struct mc_segdesc *desc)
{
	const struct mc_classic *c = s->classic;

	if (!c)
		return desc->tcp_data_port != mc_addr_port(&s->tcp.v[0].remote);
	if (strcmp(desc->protocol, "rdma") != 0 || desc->ndevices < c->ndevs ||
	    strcmp(desc->name, c->server) != 0)
		return true;
	for (unsigned i = 0; i < c->ndevs; i++)
		if (strcmp(desc->devices[i].name, c->name[i]) != 0)
			return true;
	return false;
}

int mc_classic_refresh(struct mc_session *s, uint64_t addr, uint64_t deadline_ns,
		       const struct mc_remote_region **ret_region)
{
	struct mc_segdesc *desc;
	struct mc_inode *n;
	struct mc_addr at;
	int rc = mc_find_peer(s, deadline_ns, NULL, &at, &desc);

	if (rc < 0)
		return rc;
	rc = is_another(s, desc) ? -MC_E_PEER_RESTARTED : learn(s, desc);
	mc_segdesc_free(desc);
	if (rc < 0) {
		if (rc == -MC_E_PEER_RESTARTED)
			mc_session_gone(s);
		return rc;
	}
	pthread_mutex_lock(&s->mu);
	n = mc_itree_find(&s->regions, addr, 1);
	*ret_region = n ? &mc_container_of(n, struct mc_eregion, node)->r : NULL;
	pthread_mutex_unlock(&s->mu);
	return *ret_region ? 0 : -MC_E_RANGE;
}

/* ---- introducing queue pairs ---- */

/* What is shown to the peer: a lane, under a name. */
struct show {
	struct mc_session *s;
	struct mc_xlane *x;
	unsigned rail, slot;
	struct mc_rdma_end end;
};

static int request_make(const struct show *w, struct mc_connection *ret)
{
	const struct mc_classic *c = w->s->classic;
	struct mc_rdma_port port;
	int n;

	mc_rdma_port_get(w->s->eng->rdma, w->s->rdma.v[w->rail].local_port, &port);
	*ret = (struct mc_connection){.has_gid = true, .lid = w->end.lid, .nqps = w->end.nqps};
	memcpy(ret->gid, w->end.gid, sizeof(ret->gid));
	memcpy(ret->qpn, w->end.qpn, w->end.nqps * sizeof(ret->qpn[0]));
	/* No ready_ack: it would tell when the peer may send, and over these it never does. */
	n = snprintf(ret->local_nic, sizeof(ret->local_nic), "%s/%x.%llx.%u@%s", w->s->eng->name,
		     c->tag, (unsigned long long)w->s->fence_key, w->slot, port.name);
	if (n < 0 || n >= (int)sizeof(ret->local_nic))
		return -MC_E_TOO_BIG;
	return mc_nic_path_join(c->server, c->name[w->s->rdma.v[w->rail].remote_port],
				ret->peer_nic);
}

static int answer_judge(const char *peer, const struct mc_connection *req,
			const struct mc_connection *c)
{
	if (c->nqps != 0 && c->nqps != req->nqps) {
		mc_log_warn("peer has another number of queue pairs a connection",
			    "peer=%s its=%u ours=%u fix=\"MC_NUM_QP_PER_EP=%u\"", peer, c->nqps,
			    req->nqps, c->nqps);
		return -MC_E_UNSUPPORTED;
	}
	if (c->reason[0]) {
		mc_log_info("peer refuses queue pairs", "peer=%s device=%s reason=\"%s\"", peer,
			    req->peer_nic, c->reason);
		return -MC_E_UNREACHABLE;
	}
	if (c->nqps == 0 || strcmp(c->local_nic, req->peer_nic) != 0 ||
	    strcmp(c->peer_nic, req->local_nic) != 0) {
		mc_log_warn("peer answers an introduction with another's",
			    "peer=%s asked=%s answered=%s", peer, req->peer_nic, c->local_nic);
		return -MC_E_PROTO;
	}
	return 0;
}

static int ask(const struct show *w, uint64_t deadline_ns, struct mc_connection *ret)
{
	struct mc_session *s = w->s;
	struct mc_connection req = {0};
	struct mc_diag diag = {0};
	char *json = NULL, *reply, at[MC_ADDR_TEXT_MAX];
	size_t len;
	int rc = request_make(w, &req);

	if (rc == 0)
		rc = mc_connection_encode(&req, &json, &len);
	if (rc < 0)
		return rc;
	rc = mc_handshake_call(&s->eng->hs, mc_addr_format(&s->ctl_addr, at), MC_HS_CONNECTION,
			       json, deadline_ns, &reply, &len, &diag);
	mc_free(json);
	if (rc == 0) {
		rc = mc_connection_decode(reply, len, ret, &diag);
		mc_free(reply);
	}
	if (rc < 0) {
		mc_log_info("introduction failed", "peer=%s cause=\"%s\"", s->peer->name,
			    diag.text[0] ? diag.text : mc_err_text(rc));
		return rc;
	}
	return answer_judge(s->peer->name, &req, ret);
}

/* Under session.mu: may this lane be shown in the slot? */
static bool is_fit(const struct show *w, unsigned slot)
{
	const struct mc_classic *c = w->s->classic;

	return !(c->busy[w->rail] & 1u << slot) &&
	       (c->gen[w->rail][slot] == 0 || c->qpn[w->rail][slot] != w->end.qpn[0]);
}

/* The lowest slot that is fit and that no lane of this rail has. One is always left. */
static int slot_take(struct show *w)
{
	struct mc_session *s = w->s;
	struct mc_elane *other;
	uint32_t used = 0;
	int rc = -MC_E_LIMIT;

	pthread_mutex_lock(&s->mu);
	mc_list_each (other, &s->lanes, link)
		if (other->route == MC_ROUTE_RDMA && other->rail == w->rail)
			used |= 1u << other->slot;
	for (unsigned i = 0; i <= MC_LANES_MAX && rc < 0; i++) {
		if ((used & 1u << i) || !is_fit(w, i))
			continue;
		w->slot = i;
		s->classic->busy[w->rail] |= 1u << i;
		rc = 0;
	}
	pthread_mutex_unlock(&s->mu);
	return rc;
}

static uint32_t slot_give(const struct show *w, bool is_shown)
{
	struct mc_classic *c = w->s->classic;
	uint32_t gen;

	pthread_mutex_lock(&w->s->mu);
	c->busy[w->rail] &= ~(1u << w->slot);
	if (is_shown) {
		c->gen[w->rail][w->slot]++;
		c->qpn[w->rail][w->slot] = w->end.qpn[0];
	}
	gen = c->gen[w->rail][w->slot];
	pthread_mutex_unlock(&w->s->mu);
	return gen;
}

int mc_classic_introduce(struct mc_elane *lane, uint64_t deadline_ns)
{
	struct show w = {.s = lane->session, .x = lane->x, .rail = lane->rail};
	const struct mc_ctl_port *dev = &w.s->classic->dev[lane->rails->v[lane->rail].remote_port];
	struct mc_rdma_end end = {0};
	struct mc_connection c = {0};
	int rc;

	mc_rdma_lane_end(lane->x, &w.end);
	rc = slot_take(&w);
	if (rc < 0)
		return rc;
	rc = ask(&w, deadline_ns, &c);
	lane->slot = w.slot;
	lane->slot_gen = slot_give(&w, rc == 0);
	if (rc < 0)
		return rc;
	end.lid = c.lid;
	end.nqps = c.nqps;
	memcpy(end.gid, c.has_gid ? c.gid : dev->gid, sizeof(end.gid));
	for (uint32_t i = 0; i < mc_min(c.nqps, MC_RDMA_QPS_MAX); i++)
		end.qpn[i] = c.qpn[i];
	return mc_rdma_lane_join(lane->x, &end);
}

/* ---- the fence ---- */

size_t mc_classic_token(const struct mc_elane *lane, uint8_t ret_token[MC_XPORT_TOKEN_MAX])
{
	struct mc_wr w = mc_wr_make(ret_token, MC_XPORT_TOKEN_MAX);

	mc_wr_u64(&w, lane->session->fence_key);
	mc_wr_u32(&w, lane->rail);
	mc_wr_u32(&w, lane->slot);
	mc_wr_u32(&w, lane->slot_gen);
	return mc_wr_len(&w);
}

/* @return 1: another has been shown under the name meanwhile; 0: it is ours to show; < 0: not now
 */
static int slot_retake(struct show *w, uint32_t gen)
{
	struct mc_classic *c = w->s->classic;
	int rc = 0;

	pthread_mutex_lock(&w->s->mu);
	if (c->gen[w->rail][w->slot] != gen)
		rc = 1;
	else if (!is_fit(w, w->slot))
		rc = -MC_E_AGAIN;
	else
		c->busy[w->rail] |= 1u << w->slot;
	pthread_mutex_unlock(&w->s->mu);
	return rc;
}

/* With queue pairs that will never be connected at our end. */
static int show_from(struct show *w, unsigned local_port, uint32_t gen, uint64_t deadline_ns)
{
	struct mc_xdev *dev = w->s->eng->rdma;
	struct mc_xpath path = {.local_port = local_port,
				.remote_port = w->s->rdma.v[w->rail].remote_port,
				.peer_name = w->s->peer->name};
	uint8_t token[MC_XPORT_TOKEN_MAX];
	struct mc_connection c = {0};
	struct mc_list none;
	int rc = dev->ops->lane_open(dev, &path, &w->x);

	if (rc < 0)
		return rc;
	mc_list_init(&none);
	mc_rdma_lane_end(w->x, &w->end);
	rc = slot_retake(w, gen);
	if (rc == 0) {
		rc = ask(w, deadline_ns, &c);
		(void)slot_give(w, rc == 0);
	}
	(void)dev->ops->abort(w->x, &none, token); /* nothing was posted */
	dev->ops->lane_close(w->x);
	return rc > 0 ? 0 : rc;
}

int mc_classic_fence(struct mc_session *s, const uint8_t *token, size_t len, uint64_t deadline_ns)
{
	struct mc_rd r = mc_rd_make(token, len);
	uint64_t key = mc_rd_u64(&r);
	struct show w = {.s = s, .rail = mc_rd_u32(&r), .slot = mc_rd_u32(&r)};
	uint32_t gen = mc_rd_u32(&r);
	int rc = -MC_E_UNREACHABLE;

	mc_assert(mc_rd_is_done(&r) && w.rail < s->rdma.n && w.slot <= MC_LANES_MAX);
	if (key != s->fence_key)
		return -MC_E_STALE;
	for (unsigned i = 0; i < mc_rdma_ports(s->eng->rdma) && rc < 0 && rc != -MC_E_REFUSED; i++)
		if (mc_rdma_port_is_up(s->eng->rdma, i))
			rc = show_from(&w, i, gen, deadline_ns);
	/* Its port refuses: nobody listens there any more, and with the process went its queue
	 * pairs. */
	return rc == -MC_E_REFUSED ? -MC_E_PEER_DEAD : rc;
}
