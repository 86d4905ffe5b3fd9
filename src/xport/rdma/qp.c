/*
 * qp.c: the life of a queue pair as a table of states and events.
 */
#include "xport/rdma/qp.h"

#include <errno.h>

#include "base/fork.h"
#include "base/log.h"
#include "base/rand.h"

#define PSN_MASK 0xffffffu
#define HOP_LIMIT 64
#define RNR_TIMER 12	/* 0.64 ms; nobody posts receives, so nobody waits for them */
#define READS_UNTOLD 16 /* what upstream's queue pairs serve */
#define DESTROY_TRIES 3u

static const struct {
	bool is_ok;
	enum mc_rdma_qp_state next;
} table[MC_RDMA_QP_STATE_COUNT][MC_RDMA_QP_EVENT_COUNT] = {
    [MC_RDMA_QP_GONE] = {[MC_RDMA_QP_MAKE] = {true, MC_RDMA_QP_RESET}},
    [MC_RDMA_QP_RESET] = {[MC_RDMA_QP_PREPARE] = {true, MC_RDMA_QP_INIT},
			  [MC_RDMA_QP_DESTROY] = {true, MC_RDMA_QP_GONE}},
    [MC_RDMA_QP_INIT] = {[MC_RDMA_QP_RECEIVE] = {true, MC_RDMA_QP_RTR},
			 [MC_RDMA_QP_STOP] = {true, MC_RDMA_QP_ERR},
			 [MC_RDMA_QP_DESTROY] = {true, MC_RDMA_QP_GONE}},
    [MC_RDMA_QP_RTR] = {[MC_RDMA_QP_SEND] = {true, MC_RDMA_QP_RTS},
			[MC_RDMA_QP_STOP] = {true, MC_RDMA_QP_ERR},
			[MC_RDMA_QP_DESTROY] = {true, MC_RDMA_QP_GONE}},
    [MC_RDMA_QP_RTS] = {[MC_RDMA_QP_STOP] = {true, MC_RDMA_QP_ERR},
			[MC_RDMA_QP_DESTROY] = {true, MC_RDMA_QP_GONE}},
    [MC_RDMA_QP_ERR] = {[MC_RDMA_QP_DESTROY] = {true, MC_RDMA_QP_GONE}},
};

int mc_rdma_qp_next(enum mc_rdma_qp_state state, enum mc_rdma_qp_event event)
{
	if (state >= MC_RDMA_QP_STATE_COUNT || event >= MC_RDMA_QP_EVENT_COUNT ||
	    !table[state][event].is_ok)
		return -MC_E_INVAL;
	return (int)table[state][event].next;
}

/* One modify_qp, if the table allows the event. */
static int modify(struct mc_rdma_hca *hca, struct mc_rdma_qp *qp, enum mc_rdma_qp_event event,
		  struct ibv_qp_attr *attr, int mask)
{
	int next = mc_rdma_qp_next(qp->state, event), rc;

	if (next < 0)
		return next;
	rc = hca->dev->v->modify_qp(qp->qp, attr, mask | IBV_QP_STATE);
	if (rc != 0)
		return mc_rdma_errno(rc > 0 ? rc : errno);
	qp->state = (enum mc_rdma_qp_state)next;
	return 0;
}

static int prepare(struct mc_rdma_hca *hca, struct mc_rdma_qp *qp)
{
	/* Without rights: whether the peer gets any is known when the peer is. */
	struct ibv_qp_attr attr = {.qp_state = IBV_QPS_INIT,
				   .pkey_index = (uint16_t)hca->dev->conf.pkey_index,
				   .port_num = hca->port.port_num};

	return modify(hca, qp, MC_RDMA_QP_PREPARE, &attr,
		      IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS);
}

int mc_rdma_qp_open(struct mc_rdma_hca *hca, struct ibv_cq *cq, struct mc_rdma_qp_room *room,
		    struct mc_rdma_qp *ret_qp)
{
	struct ibv_qp_init_attr init = {.send_cq = cq,
					.recv_cq = cq,
					.cap = {.max_send_wr = room->wrs,
						.max_recv_wr = 1,
						.max_send_sge = room->sges,
						.max_recv_sge = 1,
						.max_inline_data = room->inline_max},
					.qp_type = IBV_QPT_RC};
	struct mc_rdma_qp qp = {.state = MC_RDMA_QP_GONE};
	int rc;

	qp.qp = hca->dev->v->create_qp(hca->pd, &init);
	/* Not every device knows inline data, and it says no more than "invalid". */
	if (!qp.qp && errno == EINVAL && room->inline_max > 0) {
		init.cap.max_inline_data = room->inline_max = 0;
		qp.qp = hca->dev->v->create_qp(hca->pd, &init);
	}
	if (!qp.qp)
		return mc_rdma_errno(errno);
	qp.state = MC_RDMA_QP_RESET;
	atomic_fetch_add_explicit(&hca->dev->nqps, 1, memory_order_relaxed);
	rc = prepare(hca, &qp);
	if (rc < 0) {
		(void)mc_rdma_qp_close(hca, &qp); /* it was never of use: nothing to wait for */
		return rc;
	}
	room->inline_max = mc_min(room->inline_max, init.cap.max_inline_data);
	*ret_qp = qp;
	return 0;
}

static struct ibv_ah_attr address(struct mc_rdma_hca *hca, const struct mc_rdma_end *peer)
{
	const struct mc_rdma_conf *conf = &hca->dev->conf;
	struct mc_rdma_port port = mc_rdma_port_now(hca);
	struct ibv_ah_attr ah = {.dlid = peer->lid,
				 .sl = conf->service_level < 0 ? 0 : (uint8_t)conf->service_level,
				 .port_num = port.port_num};

	if (!port.is_ethernet && peer->lid != 0)
		return ah;
	ah.is_global = 1;
	memcpy(ah.grh.dgid.raw, peer->gid, sizeof(peer->gid));
	ah.grh.sgid_index = port.gid_index;
	ah.grh.hop_limit = HOP_LIMIT;
	ah.grh.traffic_class = conf->traffic_class < 0 ? 0 : (uint8_t)conf->traffic_class;
	return ah;
}

int mc_rdma_qp_connect(struct mc_rdma_hca *hca, struct mc_rdma_qp *qp,
		       const struct mc_rdma_qp_link *link)
{
	struct ibv_qp_attr rtr = {.qp_state = IBV_QPS_RTR,
				  .path_mtu = (enum ibv_mtu)link->mtu,
				  .dest_qp_num = link->peer_qpn,
				  .rq_psn = link->peer->psn & PSN_MASK,
				  .max_dest_rd_atomic = link->reads_in,
				  .min_rnr_timer = RNR_TIMER,
				  .ah_attr = address(hca, link->peer)};
	struct ibv_qp_attr rts = {.qp_state = IBV_QPS_RTS,
				  .sq_psn = link->psn & PSN_MASK,
				  .timeout = (uint8_t)hca->dev->conf.timeout,
				  .retry_cnt = (uint8_t)hca->dev->conf.retry_cnt,
				  .rnr_retry = (uint8_t)hca->dev->conf.retry_cnt,
				  .max_rd_atomic = link->reads_out};
	int rc;

	if (link->is_peer_right)
		rtr.qp_access_flags = IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_WRITE;
	rc = modify(hca, qp, MC_RDMA_QP_RECEIVE, &rtr,
		    IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN |
			IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER | IBV_QP_ACCESS_FLAGS);
	if (rc < 0)
		return rc;
	return modify(hca, qp, MC_RDMA_QP_SEND, &rts,
		      IBV_QP_SQ_PSN | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY |
			  IBV_QP_MAX_QP_RD_ATOMIC);
}

int mc_rdma_qp_stop(struct mc_rdma_hca *hca, struct mc_rdma_qp *qp)
{
	struct ibv_qp_attr attr = {.qp_state = IBV_QPS_ERR};

	if (qp->state == MC_RDMA_QP_ERR || mc_fork_is_child(hca->dev->fork_gen))
		return 0;
	return modify(hca, qp, MC_RDMA_QP_STOP, &attr, 0);
}

bool mc_rdma_is_kept(int rc)
{
	return (rc > 0 ? rc : errno) != EIO;
}

int mc_rdma_qp_close(struct mc_rdma_hca *hca, struct mc_rdma_qp *qp)
{
	unsigned tries = 0;
	int rc;

	if (qp->state == MC_RDMA_QP_GONE)
		return 0;
	do {
		rc = mc_fork_is_child(hca->dev->fork_gen) ? 0 : hca->dev->v->destroy_qp(qp->qp);
	} while (rc != 0 && mc_rdma_is_kept(rc) && ++tries < DESTROY_TRIES);
	if (tries == DESTROY_TRIES) {
		mc_log_error("queue pair cannot be destroyed", "dev=%s qp=%u errno=%d",
			     hca->port.name, qp->qp->qp_num, rc > 0 ? rc : errno);
		return -MC_E_BUSY;
	}
	qp->qp = NULL;
	qp->state = MC_RDMA_QP_GONE;
	atomic_fetch_sub_explicit(&hca->dev->nqps, 1, memory_order_relaxed);
	return 0;
}

/* ---- numbers that both ends agree on ---- */

static uint8_t least(uint8_t a, uint8_t b)
{
	return a < b ? a : b;
}

/* The largest size that is not above the setting. */
static uint8_t mtu_of(int64_t bytes)
{
	uint8_t mtu = IBV_MTU_256;

	while (mtu < IBV_MTU_4096 && (256ll << mtu) <= bytes)
		mtu++;
	return mtu;
}

uint8_t mc_rdma_mtu(struct mc_rdma_hca *hca, uint8_t peer_mtu)
{
	uint8_t mtu = least(mc_rdma_port_now(hca).mtu, mtu_of(hca->dev->conf.mtu));

	return peer_mtu == 0 ? mtu : least(mtu, peer_mtu);
}

uint32_t mc_rdma_psn(void)
{
	uint32_t psn = 0;

	/* Without random bytes a lane begins at 0, as upstream's do: no more than a convention. */
	if (mc_rand_bytes(&psn, sizeof(psn)) < 0)
		psn = 0;
	return psn & PSN_MASK;
}

static uint8_t reads(int of_device)
{
	return of_device < 1 ? 1 : (uint8_t)mc_min(of_device, READS_UNTOLD);
}

void mc_rdma_end_fill(struct mc_rdma_hca *hca, uint32_t psn, struct mc_rdma_end *ret)
{
	struct mc_rdma_port port = mc_rdma_port_now(hca);

	*ret = (struct mc_rdma_end){.lid = port.lid,
				    .mtu = mc_rdma_mtu(hca, 0),
				    .rd_atomic = reads(hca->attr.max_qp_rd_atom),
				    .psn = psn};
	memcpy(ret->gid, port.gid, sizeof(ret->gid));
}

struct mc_rdma_qp_link mc_rdma_link(struct mc_rdma_hca *hca, const struct mc_rdma_end *peer,
				    uint32_t psn, bool is_peer_right)
{
	uint8_t there = peer->rd_atomic ? peer->rd_atomic : READS_UNTOLD;

	return (struct mc_rdma_qp_link){.peer = peer,
					.psn = psn,
					.mtu = mc_rdma_mtu(hca, peer->mtu),
					.reads_out =
					    least(reads(hca->attr.max_qp_init_rd_atom), there),
					.reads_in = reads(hca->attr.max_qp_rd_atom),
					.is_peer_right = is_peer_right};
}
