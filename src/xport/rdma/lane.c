/*
 * lane.c: the life of a lane at its initiator: open, offer, connect or join, abort, close.
 *
 * Abort is the fence for local memory: queue pairs that are destroyed read and write nothing. What
 * the target may still apply it says by its verdicts; the token names the lane to the target.
 */
#include "xport/rdma/lane.h"

#include <errno.h>
#include <string.h>

#include "base/codec.h"
#include "base/fork.h"
#include "base/log.h"
#include "base/sync.h"

#define SETTLE_NS                                                                                  \
	(5 * MC_NS_PER_MS) /* for completions that are on their way when it is aborted             \
			    */
#define MSG_MAX (1u << 30) /* of one work request, whatever the port would take */
#define WORDS_ALIGN 4096u
#define DEREG_TRIES 3u

/* ---- open ---- */

/* How much of everything this device gives to one lane. */
static int room_plan(struct mc_rdma_lane *l)
{
	const struct mc_rdma_conf *conf = &l->dev->conf;
	const struct ibv_device_attr *attr = &l->hca->attr;
	uint32_t sges = (uint32_t)mc_min(conf->sges_max, (int64_t)attr->max_sge);
	uint64_t wrs = (uint64_t)mc_min(conf->wrs_max, (int64_t)attr->max_qp_wr);
	struct ibv_port_attr port = {.state = IBV_PORT_NOP};
	int rc;

	/* Upstream's processes want as many as they have; two unless told otherwise. */
	l->nqps = conf->qps ? mc_min((uint32_t)conf->qps, MC_RDMA_QPS_MAX) : l->peer_epoch ? 1 : 2;
	/* When a lane breaks, every request completes, signalled or not. */
	wrs = mc_min(wrs, (uint64_t)attr->max_cqe / l->nqps);
	if (wrs < 1)
		return -MC_E_LIMIT;
	l->wrs = (uint32_t)wrs;
	l->notes_mask = 1;
	while (l->notes_mask < l->wrs)
		l->notes_mask <<= 1;
	l->notes_mask--;
	l->write_sges = sges < 1 ? 1 : mc_min(sges, MC_RDMA_SGES_MAX);
	l->read_sges = l->write_sges;
	if (attr->max_sge_rd > 0)
		l->read_sges = mc_min(l->read_sges, (uint32_t)attr->max_sge_rd);
	l->inline_max = (uint32_t)conf->inline_max;
	rc = mc_rdma_port_ask(l->hca, &port);
	if (rc < 0)
		return rc;
	l->msg_max = port.max_msg_sz ? mc_min(port.max_msg_sz, MSG_MAX) : MSG_MAX;
	return 0;
}

/* Signals are sent from here when the device has no inline data. */
static int words_open(struct mc_rdma_lane *l)
{
	size_t len = MC_RDMA_DEPTH * sizeof(*l->words);

	if (l->inline_max >= sizeof(*l->words))
		return 0;
	l->words = mc_aligned_alloc(WORDS_ALIGN, WORDS_ALIGN);
	if (!l->words)
		return -MC_E_NOMEM;
	l->words_mr = l->dev->v->reg_mr(l->hca->pd, l->words, len, 0);
	return l->words_mr ? 0 : mc_rdma_errno(errno);
}

static void words_close(struct mc_rdma_lane *l)
{
	unsigned tries = 0;
	int rc;

	if (l->words_mr && !mc_fork_is_child(l->dev->fork_gen)) {
		do {
			rc = l->dev->v->dereg_mr(l->words_mr);
		} while (rc != 0 && mc_rdma_is_kept(rc) && ++tries < DEREG_TRIES);
		if (tries == DEREG_TRIES) {
			mc_log_error("RDMA object cannot be destroyed", "dev=%s what=memory",
				     l->hca->port.name);
			return; /* the device may still read it */
		}
	}
	mc_free(l->words);
}

static int queues_open(struct mc_rdma_lane *l)
{
	struct mc_rdma_qp_room room = {
	    .wrs = l->wrs, .sges = l->write_sges, .inline_max = l->inline_max};
	int rc = mc_rdma_cq_open(l->hca, l->nqps * l->wrs, true, &l->cq);

	for (uint32_t i = 0; i < l->nqps && rc == 0; i++) {
		l->sq[i].notes = mc_calloc(l->notes_mask + 1, sizeof(*l->sq[i].notes));
		if (!l->sq[i].notes)
			return -MC_E_NOMEM;
		rc = mc_rdma_qp_open(l->hca, l->cq.cq, &room, &l->sq[i].qp);
	}
	l->inline_max = room.inline_max;
	return rc;
}

int mc_rdma_lane_open(struct mc_xdev *xdev, const struct mc_xpath *path, struct mc_xlane **ret_lane)
{
	struct mc_rdma_dev *dev = (struct mc_rdma_dev *)xdev;
	struct mc_rdma_hca *hca = &dev->hca[mc_min(path->local_port, MC_RDMA_PORTS_MAX - 1)];
	struct mc_rdma_lane *l;
	int rc;

	if (path->local_port >= dev->nhcas || path->remote_port >= MC_RDMA_PORTS_MAX)
		return -MC_E_INVAL;
	if (atomic_load_explicit(&hca->is_fatal, memory_order_relaxed))
		return -MC_E_DEVICE;
	if (!atomic_load_explicit(&hca->is_up, memory_order_relaxed))
		return -MC_E_LINK_DOWN;
	l = mc_calloc(1, sizeof(*l));
	if (!l)
		return -MC_E_NOMEM;
	l->x.ops = &mc_rdma_ops;
	l->dev = dev;
	l->hca = hca;
	l->id = atomic_fetch_add_explicit(&dev->next_lane, 1, memory_order_relaxed);
	l->peer_epoch = path->peer_epoch;
	l->remote_port = path->remote_port;
	l->psn = mc_rdma_psn();
	l->addr_gen = atomic_load_explicit(&hca->addr_gen, memory_order_relaxed);
	atomic_fetch_add_explicit(&dev->nlanes, 1, memory_order_relaxed);
	mc_list_init(&l->todo);
	mc_list_init(&l->flight);
	mc_list_init(&l->owing);
	mc_list_init(&l->spare);
	mc_list_init(&l->done);
	for (unsigned i = 0; i < MC_RDMA_DEPTH; i++)
		mc_list_push_back(&l->spare, &l->slots[i].link);
	rc = room_plan(l);
	if (rc == 0)
		rc = queues_open(l);
	if (rc == 0)
		rc = words_open(l);
	if (rc < 0)
		goto fail;
	*ret_lane = &l->x;
	return 0;
fail:
	mc_rdma_lane_close(&l->x);
	return rc;
}

/* ---- introduce ---- */

static void end_of(const struct mc_rdma_lane *l, uint32_t psn, struct mc_rdma_end *ret)
{
	mc_rdma_end_fill(l->hca, psn, ret);
	ret->nqps = l->nqps;
	for (uint32_t i = 0; i < l->nqps; i++)
		ret->qpn[i] = l->sq[i].qp.qp->qp_num;
}

int mc_rdma_lane_offer(const struct mc_xlane *x, uint8_t *buf, size_t cap)
{
	const struct mc_rdma_lane *l = (const struct mc_rdma_lane *)x;
	struct mc_rdma_offer o = {.lane = l->id,
				  .initiator_epoch = l->dev->env.epoch,
				  .target_epoch = l->peer_epoch,
				  .port = l->remote_port};

	mc_assert(cap >= MC_RDMA_OFFER_BYTES);
	if (l->failed < 0)
		return l->failed;
	end_of(l, l->psn, &o.end);
	return (int)mc_rdma_offer_encode(&o, buf);
}

static int join(struct mc_rdma_lane *l, const struct mc_rdma_end *peer, uint32_t psn)
{
	struct mc_rdma_qp_link link = mc_rdma_link(l->hca, peer, psn, l->is_named);

	if (l->failed < 0)
		return l->failed;
	if (peer->nqps != l->nqps)
		return -MC_E_PROTO;
	if (!mc_rdma_lane_has_addr(l)) /* the peer was told the old one */
		return -MC_E_LINK_DOWN;
	for (uint32_t i = 0; i < l->nqps; i++) {
		int rc;

		link.peer_qpn = peer->qpn[i];
		rc = mc_rdma_qp_connect(l->hca, &l->sq[i].qp, &link);
		if (rc < 0)
			return rc;
	}
	l->is_connected = true;
	return 0;
}

int mc_rdma_lane_connect(struct mc_xlane *x, const uint8_t *answer, size_t len)
{
	struct mc_rdma_lane *l = mc_rdma_lane_of(x);
	struct mc_rdma_offer o;
	int rc = mc_rdma_offer_decode(answer, len, &o);

	if (rc < 0)
		return rc;
	if (o.lane != l->id || o.initiator_epoch != l->dev->env.epoch)
		return -MC_E_PROTO;
	if (l->peer_epoch && o.target_epoch != l->peer_epoch)
		return -MC_E_PEER_RESTARTED;
	return join(l, &o.end, l->psn);
}

void mc_rdma_lane_end(const struct mc_xlane *x, struct mc_rdma_end *ret)
{
	/* Upstream's handshake has no place for a sequence number: all begin at 0. */
	end_of((const struct mc_rdma_lane *)x, 0, ret);
}

int mc_rdma_lane_join(struct mc_xlane *x, const struct mc_rdma_end *peer)
{
	struct mc_rdma_lane *l = mc_rdma_lane_of(x);

	if (!mc_rdma_end_is_ok(peer))
		return -MC_E_PROTO;
	l->is_named = true;
	return join(l, peer, 0);
}

bool mc_rdma_lane_is_over(const struct mc_xlane *x)
{
	const struct mc_rdma_lane *l = (const struct mc_rdma_lane *)x;

	return !mc_rdma_port_is_up(&l->dev->x, l->hca->index) || !mc_rdma_lane_has_addr(l);
}

/* ---- end ---- */

static void queues_close(struct mc_rdma_lane *l)
{
	bool is_gone = true;

	for (uint32_t i = 0; i < l->nqps; i++)
		is_gone &= mc_rdma_qp_close(l->hca, &l->sq[i].qp) == 0;
	if (is_gone)
		mc_rdma_cq_close(l->hca, &l->cq);
}

/* Completions that are there or on their way: what has succeeded is known to be done. */
static void settle(struct mc_rdma_lane *l)
{
	uint64_t end_ns = mc_now_ns() + SETTLE_NS;
	uint32_t left = 1;

	(void)mc_rdma_lane_drain(l);
	if (l->failed == 0)
		l->failed = -MC_E_CLOSED; /* what is flushed from here on is nobody's fault */
	for (uint32_t i = 0; i < l->nqps; i++)
		if (l->is_connected)
			(void)mc_rdma_qp_stop(l->hca, &l->sq[i].qp);
	while (left > 0 && mc_now_ns() < end_ns) {
		left = 0;
		for (uint32_t i = 0; i < l->nqps; i++)
			left += l->sq[i].head - l->sq[i].tail;
		if (mc_rdma_lane_drain(l) == 0 && left > 0)
			mc_cpu_relax();
	}
}

static void leave(struct mc_list *slots, struct mc_list *ret_left)
{
	struct mc_rdma_slot *slot;

	mc_list_each (slot, slots, link) {
		struct mc_slice *s = slot->s;
		bool lands = (s->op == MC_OP_WRITE && slot->sent > 0) || slot->is_signaled;

		s->verdict = lands ? MC_SLICE_MAYBE : MC_SLICE_UNSENT;
		slot->s = NULL;
		mc_list_push_back(ret_left, &s->link);
	}
	mc_list_init(slots);
}

size_t mc_rdma_lane_abort(struct mc_xlane *x, struct mc_list *ret_left, uint8_t *ret_token)
{
	struct mc_rdma_lane *l = mc_rdma_lane_of(x);
	struct mc_wr w = mc_wr_make(ret_token, MC_XPORT_TOKEN_MAX);

	if (!l->cq.cq)
		return 0;
	if (!mc_fork_is_child(l->dev->fork_gen)) /* else the queues are the parent's */
		settle(l);
	l->is_connected = false;
	queues_close(l);
	mc_list_splice_back(ret_left, &l->done);
	leave(&l->flight, ret_left);
	leave(&l->owing, ret_left);
	leave(&l->todo, ret_left);
	l->depth = 0;
	l->failed = -MC_E_CLOSED;
	if (l->is_named)
		return 0;
	mc_wr_u64(&w, l->dev->env.epoch);
	mc_wr_u64(&w, l->id);
	return mc_wr_len(&w);
}

void mc_rdma_lane_close(struct mc_xlane *x)
{
	struct mc_rdma_lane *l = mc_rdma_lane_of(x);

	if (!l)
		return;
	queues_close(l);
	words_close(l);
	for (uint32_t i = 0; i < MC_RDMA_QPS_MAX; i++)
		mc_free(l->sq[i].notes);
	atomic_fetch_sub_explicit(&l->dev->nlanes, 1, memory_order_relaxed);
	mc_free(l);
}
