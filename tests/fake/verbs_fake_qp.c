/*
 * verbs_fake_qp.c: reliable connected queue pairs, and the wire between them.
 *
 * A request becomes a packet when it is posted: what it writes is copied then, as it may land after
 * its sender has gone. Packets of one queue pair go in order. An acknowledgement completes the
 * sender's oldest request, if that one still waits.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "verbs_fake_priv.h"

#define MSG_BYTES_MAX (1ull << 30)
#define TO_INIT (IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS)
#define TO_RTR                                                                                     \
	(IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN |            \
	 IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER)
#define TO_RTS                                                                                     \
	(IBV_QP_STATE | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY | IBV_QP_SQ_PSN |     \
	 IBV_QP_MAX_QP_RD_ATOMIC)

struct fake_qp *fake_qp_find(uint32_t qpn)
{
	struct fake_qp *qp;

	mc_list_each (qp, &fab.qps, link) {
		if (qp->ibv.qp_num == qpn)
			return qp;
	}
	return NULL;
}

enum ibv_qp_state verbs_fake_qp_state(uint32_t qpn)
{
	enum ibv_qp_state state;
	struct fake_qp *qp;

	pthread_mutex_lock(&fab.lock);
	qp = fake_qp_find(qpn);
	state = qp ? qp->ibv.state : IBV_QPS_UNKNOWN;
	pthread_mutex_unlock(&fab.lock);
	return state;
}

void fake_qp_free(struct fake_qp *qp)
{
	for (unsigned i = 0; qp->wqe && i < qp->cap.max_send_wr; i++)
		free(qp->wqe[i].sges);
	free(qp->wqe);
	free(qp);
}

static struct fake_wqe *wqe_of(struct fake_qp *qp, uint64_t number)
{
	return &qp->wqe[number % qp->cap.max_send_wr];
}

/* The oldest request ends. */
static void complete_first(struct fake_qp *qp, enum ibv_wc_status status)
{
	struct fake_wqe *w = wqe_of(qp, qp->done);
	struct ibv_wc wc = {
	    .wr_id = w->wr_id,
	    .status = status,
	    .opcode = w->opcode == IBV_WR_RDMA_READ ? IBV_WC_RDMA_READ : IBV_WC_RDMA_WRITE,
	    .byte_len = (uint32_t)w->len,
	    .qp_num = qp->ibv.qp_num,
	};

	qp->done++;
	if (w->is_signaled || status != IBV_WC_SUCCESS)
		fake_cq_push(qp->ibv.send_cq, &wc, qp->done);
}

void fake_qp_break(struct fake_qp *qp)
{
	if (qp->ibv.state == IBV_QPS_ERR)
		return;
	qp->ibv.state = IBV_QPS_ERR;
	while (qp->done < qp->posted)
		complete_first(qp, IBV_WC_WR_FLUSH_ERR);
}

static void fail_first(struct fake_qp *qp, enum ibv_wc_status status)
{
	complete_first(qp, status);
	fake_qp_break(qp);
}

static void qp_event(struct fake_qp *qp, enum ibv_event_type type)
{
	struct ibv_async_event ev = {.event_type = type, .element.qp = &qp->ibv};

	fake_events_put(&((struct fake_ctx *)qp->ibv.context)->async, qp, &ev);
}

/* ---- the wire ---- */

/* Port that has the address of the packet, and its device. */
static struct fake_port *port_find(const struct fake_packet *p, struct fake_dev **ret_dev)
{
	for (unsigned d = 0; d < fab.conf.ndevs; d++) {
		for (unsigned n = 1; n <= fab.conf.nports; n++) {
			struct fake_port *port = &fab.dev[d].port[n - 1];
			bool is_it =
			    fab.conf.is_infiniband && p->dlid == fab.dev[d].port[n - 1].lid;

			for (unsigned g = 0; !fab.conf.is_infiniband && g < VERBS_FAKE_GIDS; g++)
				is_it = is_it ||
					memcmp(port->gid[g].raw, p->dgid.raw, FAKE_GID_BYTES) == 0;
			*ret_dev = &fab.dev[d];
			if (is_it)
				return port;
		}
	}
	return NULL;
}

/* Where the sender wants the bytes of a read; only lengths that were checked when it was posted. */
static bool scatter(struct fake_qp *qp, const struct fake_wqe *w, const uint8_t *from)
{
	for (unsigned i = 0; i < w->nsges; i++) {
		const struct ibv_sge *s = &w->sges[i];
		struct fake_mr *mr =
		    fake_mr_find(fake_dev_of(qp->ibv.context), qp->ibv.pd, s->lkey, false);
		uint64_t at = (uintptr_t)(mr ? mr->ibv.addr : NULL);

		if (!mr || !(mr->access & IBV_ACCESS_LOCAL_WRITE) || s->addr < at ||
		    s->length > mr->ibv.length || s->addr - at > mr->ibv.length - s->length)
			return false;
		memcpy((void *)(uintptr_t)s->addr, from, s->length);
		from += s->length;
	}
	return true;
}

/* The target's part. @return what the sender is told */
static enum ibv_wc_status land(const struct fake_packet *p, struct fake_dev *dev,
			       struct fake_qp *to, struct fake_qp *from)
{
	unsigned right = p->is_write ? IBV_ACCESS_REMOTE_WRITE : IBV_ACCESS_REMOTE_READ;
	struct fake_mr *mr = fake_mr_find(dev, to->ibv.pd, p->rkey, true);
	uint64_t at = (uintptr_t)(mr ? mr->ibv.addr : NULL);

	if (to->attr.path_mtu != p->mtu)
		return IBV_WC_REM_INV_REQ_ERR;
	if (p->len == 0)
		return IBV_WC_SUCCESS;
	if (!(to->attr.qp_access_flags & right) || !mr || !(mr->access & right) || p->raddr < at ||
	    p->len > mr->ibv.length || p->raddr - at > mr->ibv.length - p->len) {
		qp_event(to, IBV_EVENT_QP_ACCESS_ERR);
		fake_qp_break(to);
		return IBV_WC_REM_ACCESS_ERR;
	}
	if (p->is_write)
		memcpy((void *)(uintptr_t)p->raddr, p->data, p->len);
	else if (from && !scatter(from, wqe_of(from, p->number), (void *)(uintptr_t)p->raddr))
		return IBV_WC_LOC_PROT_ERR;
	return IBV_WC_SUCCESS;
}

static bool is_lossy(enum verbs_fake_link link)
{
	return link == VERBS_FAKE_DROP || link == VERBS_FAKE_DROP_ACK;
}

/* The sender, if this request of it still waits. */
static struct fake_qp *sender_of(const struct fake_packet *p)
{
	struct fake_qp *qp = fake_qp_find(p->from_qpn);

	return qp && qp->ibv.state == IBV_QPS_RTS && qp->done == p->number ? qp : NULL;
}

static void packet_end(struct fake_packet *p)
{
	mc_list_del(&p->link);
	free(p->data);
	free(p);
}

/*
 * One packet goes as far as it can. It ends, or waits as lost. What was lost goes on only for a
 * sender that still waits: it is the sender who sends again.
 */
static void packet_go(struct fake_packet *p)
{
	struct fake_qp *from = sender_of(p), *to = fake_qp_find(p->to_qpn);
	struct fake_port *src = &p->from->port[p->from_port - 1], *dst;
	enum ibv_wc_status status = IBV_WC_RETRY_EXC_ERR;
	struct fake_dev *dev;

	if (!from && (p->is_lost || p->is_landed)) {
		packet_end(p);
		return;
	}
	dst = port_find(p, &dev);
	if (p->wrong) {
		status = p->wrong;
		goto out;
	}
	if (src->link == VERBS_FAKE_DOWN || !dst || dst->link == VERBS_FAKE_DOWN)
		goto out;
	if (src->link == VERBS_FAKE_DROP || dst->link == VERBS_FAKE_DROP) {
		p->is_lost = true;
		return;
	}
	if (!p->is_landed) {
		if (!to || fake_dev_of(to->ibv.context) != dev ||
		    (to->ibv.state != IBV_QPS_RTR && to->ibv.state != IBV_QPS_RTS) ||
		    to->attr.dest_qp_num != p->from_qpn || to->attr.rq_psn != p->psn)
			goto out;
		status = land(p, dev, to, from);
		p->is_landed = status == IBV_WC_SUCCESS;
		if (fab.hold == VERBS_FAKE_HOLD_ACKS && p->is_landed)
			return;
	}
	if (p->is_landed && (is_lossy(src->link) || is_lossy(dst->link))) {
		p->is_lost = true;
		return;
	}
	if (p->is_landed)
		status = IBV_WC_SUCCESS;
out:
	if (from && status == IBV_WC_SUCCESS)
		complete_first(from, status);
	else if (from)
		fail_first(from, status);
	packet_end(p);
}

/* An earlier packet of the same sender waits. */
static bool is_behind(const struct fake_packet *p)
{
	struct fake_packet *q;

	mc_list_each (q, &fab.wire, link) {
		if (q == p)
			return false;
		if (q->from_qpn == p->from_qpn)
			return true;
	}
	return false;
}

void fake_wire_run(void)
{
	struct fake_packet *p;

	if (fab.hold == VERBS_FAKE_HOLD_REQUESTS)
		return;
	mc_list_each (p, &fab.wire, link) {
		if (!is_behind(p) && !(p->is_landed && fab.hold == VERBS_FAKE_HOLD_ACKS))
			packet_go(p);
	}
}

unsigned verbs_fake_pending(void)
{
	struct fake_packet *p;
	unsigned n = 0;

	pthread_mutex_lock(&fab.lock);
	mc_list_each (p, &fab.wire, link)
		n++;
	pthread_mutex_unlock(&fab.lock);
	return n;
}

/* One of those that may go on, by chance. */
static struct fake_packet *pick(void)
{
	struct fake_packet *p, *found = NULL;
	unsigned n = 0;

	mc_list_each (p, &fab.wire, link) {
		if (p->is_lost || is_behind(p))
			continue;
		fab.rand = fab.rand * 6364136223846793005ull + 1442695040888963407ull;
		if ((fab.rand >> 33) % ++n == 0)
			found = p;
	}
	return found;
}

static unsigned step(unsigned n)
{
	enum verbs_fake_hold hold = fab.hold;
	struct fake_packet *p;
	unsigned i;

	fab.hold = VERBS_FAKE_PROMPT;
	for (i = 0; i < n && (p = pick()); i++)
		packet_go(p);
	fab.hold = hold;
	return i;
}

unsigned verbs_fake_step(unsigned n)
{
	pthread_mutex_lock(&fab.lock);
	n = step(n);
	pthread_mutex_unlock(&fab.lock);
	return n;
}

void verbs_fake_hold(enum verbs_fake_hold hold)
{
	pthread_mutex_lock(&fab.lock);
	fab.hold = hold;
	if (hold == VERBS_FAKE_PROMPT)
		(void)step(UINT32_MAX); /* all there are */
	pthread_mutex_unlock(&fab.lock);
}

unsigned verbs_fake_expire(void)
{
	struct fake_packet *p;
	struct fake_qp *from;
	unsigned n = 0;

	pthread_mutex_lock(&fab.lock);
	mc_list_each (p, &fab.wire, link) {
		if (!p->is_lost)
			continue;
		from = sender_of(p);
		if (from) {
			fail_first(from, IBV_WC_RETRY_EXC_ERR);
			n++;
		}
		packet_end(p);
	}
	pthread_mutex_unlock(&fab.lock);
	return n;
}

/* ---- posting ---- */

/* Copy what a write sends. @return false: a key or range is wrong */
static bool gather(struct fake_qp *qp, const struct ibv_send_wr *wr, uint8_t *to)
{
	for (int i = 0; i < wr->num_sge; i++) {
		const struct ibv_sge *s = &wr->sg_list[i];
		struct fake_mr *mr =
		    fake_mr_find(fake_dev_of(qp->ibv.context), qp->ibv.pd, s->lkey, false);
		uint64_t at = (uintptr_t)(mr ? mr->ibv.addr : NULL);

		if (!(wr->send_flags & IBV_SEND_INLINE) &&
		    (!mr || s->addr < at || s->length > mr->ibv.length ||
		     s->addr - at > mr->ibv.length - s->length))
			return false;
		memcpy(to, (const void *)(uintptr_t)s->addr, s->length);
		to += s->length;
	}
	return true;
}

/* What the library refuses at once. */
static int post_check(const struct fake_qp *qp, const struct ibv_send_wr *wr)
{
	bool is_inline = wr->send_flags & IBV_SEND_INLINE;
	uint64_t len = 0;

	if (qp->ibv.state != IBV_QPS_RTS && qp->ibv.state != IBV_QPS_ERR)
		return EINVAL;
	if (wr->opcode != IBV_WR_RDMA_READ && wr->opcode != IBV_WR_RDMA_WRITE)
		return EINVAL;
	if (wr->num_sge < 0 || (unsigned)wr->num_sge > qp->cap.max_send_sge)
		return EINVAL;
	if (qp->posted - qp->freed >= qp->cap.max_send_wr)
		return ENOMEM;
	for (int i = 0; i < wr->num_sge; i++)
		len += wr->sg_list[i].length;
	if (is_inline && (wr->opcode != IBV_WR_RDMA_WRITE || len > qp->cap.max_inline_data))
		return EINVAL;
	return 0;
}

/* What the device finds wrong when it takes up the request. */
static enum ibv_wc_status launch_check(struct fake_qp *qp, const struct ibv_send_wr *wr,
				       const struct fake_wqe *w, uint8_t *data)
{
	enum ibv_wc_status status = IBV_WC_SUCCESS;

	if (w->len > MSG_BYTES_MAX)
		status = IBV_WC_LOC_LEN_ERR;
	else if (data && !gather(qp, wr, data))
		status = IBV_WC_LOC_PROT_ERR;
	if (fab.fail_wr_in >= 0 && fab.fail_wr_in-- == 0)
		status = fab.fail_wr_status;
	return status;
}

static void post_one(struct fake_qp *qp, const struct ibv_send_wr *wr)
{
	struct fake_wqe *w = wqe_of(qp, qp->posted);
	struct fake_packet *p;

	w->wr_id = wr->wr_id;
	w->opcode = wr->opcode;
	w->is_signaled = qp->is_sig_all || (wr->send_flags & IBV_SEND_SIGNALED);
	w->nsges = (unsigned)wr->num_sge;
	memcpy(w->sges, wr->sg_list, w->nsges * sizeof(*w->sges));
	w->len = 0;
	for (unsigned i = 0; i < w->nsges; i++)
		w->len += w->sges[i].length;
	qp->posted++;
	if (qp->ibv.state == IBV_QPS_ERR) {
		complete_first(qp, IBV_WC_WR_FLUSH_ERR);
		return;
	}
	p = fake_alloc(1, sizeof(*p));
	*p = (struct fake_packet){
	    .from = fake_dev_of(qp->ibv.context),
	    .from_port = qp->attr.port_num,
	    .from_qpn = qp->ibv.qp_num,
	    .to_qpn = qp->attr.dest_qp_num,
	    .number = qp->posted - 1,
	    .dgid = qp->attr.ah_attr.grh.dgid,
	    .dlid = qp->attr.ah_attr.dlid,
	    .psn = qp->attr.sq_psn,
	    .mtu = qp->attr.path_mtu,
	    .is_write = w->opcode == IBV_WR_RDMA_WRITE,
	    .raddr = wr->wr.rdma.remote_addr,
	    .len = w->len,
	    .rkey = wr->wr.rdma.rkey,
	};
	if (p->is_write && p->len <= MSG_BYTES_MAX)
		p->data = fake_alloc(1, p->len);
	p->wrong = launch_check(qp, wr, w, p->data);
	mc_list_push_back(&fab.wire, &p->link);
}

int fake_post_send(struct ibv_qp *ibv, struct ibv_send_wr *wr, struct ibv_send_wr **bad_wr)
{
	struct fake_qp *qp = (struct fake_qp *)ibv;
	int err;

	pthread_mutex_lock(&fab.lock);
	err = fake_enter(VERBS_FAKE_POST_SEND, NULL);
	for (; wr && !err; wr = err ? wr : wr->next) {
		err = post_check(qp, wr);
		if (!err)
			post_one(qp, wr);
	}
	if (err)
		*bad_wr = wr;
	fake_wire_run();
	pthread_mutex_unlock(&fab.lock);
	return err;
}

/* ---- life ---- */

static struct ibv_qp *v_create_qp(struct ibv_pd *pd, struct ibv_qp_init_attr *attr)
{
	struct ibv_qp_cap *cap = &attr->cap;
	struct fake_qp *qp = NULL;
	int err;

	pthread_mutex_lock(&fab.lock);
	err = fake_enter(VERBS_FAKE_CREATE_QP, pd->context);
	if (!err &&
	    (attr->qp_type != IBV_QPT_RC || !attr->send_cq || !attr->recv_cq ||
	     cap->max_send_wr > fab.conf.max_qp_wr || cap->max_recv_wr > fab.conf.max_qp_wr ||
	     cap->max_send_sge > fab.conf.max_sge || cap->max_recv_sge > fab.conf.max_sge ||
	     cap->max_inline_data > fab.conf.max_inline))
		err = EINVAL;
	if (!err && fake_dev_of(pd->context)->nqps >= fab.conf.max_qp)
		err = ENOMEM;
	if (err)
		goto out;
	cap->max_send_wr = cap->max_send_wr ? cap->max_send_wr : 1;
	qp = fake_alloc(1, sizeof(*qp));
	qp->cap = *cap;
	qp->is_sig_all = attr->sq_sig_all;
	qp->wqe = fake_alloc(cap->max_send_wr, sizeof(*qp->wqe));
	for (unsigned i = 0; i < cap->max_send_wr; i++)
		qp->wqe[i].sges = fake_alloc(cap->max_send_sge, sizeof(struct ibv_sge));
	qp->ibv.context = pd->context;
	qp->ibv.qp_context = attr->qp_context;
	qp->ibv.pd = pd;
	qp->ibv.send_cq = attr->send_cq;
	qp->ibv.recv_cq = attr->recv_cq;
	qp->ibv.qp_type = IBV_QPT_RC;
	qp->ibv.state = IBV_QPS_RESET;
	qp->ibv.qp_num = fab.next_qpn++;
	mc_list_push_back(&fab.qps, &qp->link);
	((struct fake_cq *)attr->send_cq)->nqps++;
	((struct fake_cq *)attr->recv_cq)->nqps++;
	((struct fake_pd *)pd)->nqps++;
	fake_dev_of(pd->context)->nqps++;
	fab.live.qps++;
out:
	pthread_mutex_unlock(&fab.lock);
	errno = err;
	return qp ? &qp->ibv : NULL;
}

static int check_init(const struct ibv_qp_attr *a)
{
	return a->port_num < 1 || a->port_num > fab.conf.nports || a->pkey_index > 0 ? EINVAL : 0;
}

static int check_rtr(const struct ibv_qp_attr *a)
{
	if (a->path_mtu < IBV_MTU_256 || a->path_mtu > IBV_MTU_4096 || a->dest_qp_num > 0xffffff ||
	    a->rq_psn > 0xffffff || a->max_dest_rd_atomic > fab.conf.max_rd_atomic ||
	    a->min_rnr_timer > 31 || a->ah_attr.sl > 15 || a->ah_attr.port_num < 1 ||
	    a->ah_attr.port_num > fab.conf.nports)
		return EINVAL;
	if (!fab.conf.is_infiniband && !a->ah_attr.is_global)
		return EINVAL;
	if (a->ah_attr.is_global && a->ah_attr.grh.sgid_index >= VERBS_FAKE_GIDS)
		return EINVAL;
	return 0;
}

static int check_rts(const struct ibv_qp_attr *a)
{
	return a->timeout > 31 || a->retry_cnt > 7 || a->rnr_retry > 7 || a->sq_psn > 0xffffff ||
		       a->max_rd_atomic > fab.conf.max_rd_atomic
		   ? EINVAL
		   : 0;
}

/* The step that is asked for: EINVAL when it is none, or lacks something. */
static int step_check(enum ibv_qp_state from, const struct ibv_qp_attr *a, int mask)
{
	enum ibv_qp_state to = a->qp_state;

	if (!(mask & IBV_QP_STATE))
		return EINVAL;
	if (to == IBV_QPS_RESET || to == IBV_QPS_ERR)
		return mask == IBV_QP_STATE ? 0 : EINVAL;
	if (to == IBV_QPS_INIT && (from == IBV_QPS_RESET || from == IBV_QPS_INIT))
		return mask == TO_INIT ? check_init(a) : EINVAL;
	if (to == IBV_QPS_RTR && from == IBV_QPS_INIT)
		return (mask & TO_RTR) == TO_RTR ? check_rtr(a) : EINVAL;
	if (to == IBV_QPS_RTS && from == IBV_QPS_RTR)
		return (mask & TO_RTS) == TO_RTS ? check_rts(a) : EINVAL;
	return EINVAL;
}

static void step_apply(struct fake_qp *qp, const struct ibv_qp_attr *a, int mask)
{
	struct ibv_qp_attr *own = &qp->attr;

	if (mask & IBV_QP_ACCESS_FLAGS) /* optional beyond INIT */
		own->qp_access_flags = a->qp_access_flags;
	switch (a->qp_state) {
	case IBV_QPS_INIT:
		own->port_num = a->port_num;
		break;
	case IBV_QPS_RTR:
		own->ah_attr = a->ah_attr;
		own->path_mtu = a->path_mtu;
		own->dest_qp_num = a->dest_qp_num;
		own->rq_psn = a->rq_psn;
		own->max_dest_rd_atomic = a->max_dest_rd_atomic;
		break;
	case IBV_QPS_RTS:
		own->sq_psn = a->sq_psn;
		own->timeout = a->timeout;
		own->retry_cnt = a->retry_cnt;
		own->max_rd_atomic = a->max_rd_atomic;
		break;
	case IBV_QPS_ERR:
		fake_qp_break(qp);
		break;
	default: /* reset: nothing is told of what was under way */
		qp->done = qp->freed = qp->posted;
		break;
	}
	qp->ibv.state = a->qp_state;
}

static int v_modify_qp(struct ibv_qp *ibv, struct ibv_qp_attr *attr, int mask)
{
	struct fake_qp *qp = (struct fake_qp *)ibv;
	int err;

	pthread_mutex_lock(&fab.lock);
	err = fake_enter(VERBS_FAKE_MODIFY_QP, ibv->context);
	if (!err)
		err = step_check(ibv->state, attr, mask);
	if (!err)
		step_apply(qp, attr, mask);
	pthread_mutex_unlock(&fab.lock);
	return err;
}

/* Completions of a queue pair go with it. */
static void cq_forget(struct ibv_cq *ibv, uint32_t qpn)
{
	struct fake_cq *cq = (struct fake_cq *)ibv;
	unsigned kept = 0;

	for (unsigned i = 0; i < cq->n; i++) {
		struct fake_cqe e = cq->ring[(cq->head + i) % cq->cap];

		if (e.wc.qp_num != qpn)
			cq->ring[(cq->head + kept++) % cq->cap] = e;
	}
	cq->n = kept;
	cq->nqps--;
}

static int v_destroy_qp(struct ibv_qp *ibv)
{
	struct fake_qp *qp = (struct fake_qp *)ibv;
	bool is_kept;
	int err;

	pthread_mutex_lock(&fab.lock);
	err = fake_enter_destroy(VERBS_FAKE_DESTROY_QP, &is_kept);
	if (!is_kept) {
		fake_wait_acked(&qp->unacked, "destroy_qp");
		fake_events_purge(&((struct fake_ctx *)ibv->context)->async, qp);
		mc_list_del(&qp->link);
		cq_forget(ibv->send_cq, ibv->qp_num);
		cq_forget(ibv->recv_cq, ibv->qp_num);
		((struct fake_pd *)ibv->pd)->nqps--;
		fake_dev_of(ibv->context)->nqps--;
		fab.live.qps--;
		fake_qp_free(qp);
	}
	pthread_mutex_unlock(&fab.lock);
	return err;
}

void fake_qp_verbs(struct mc_verbs *v)
{
	v->create_qp = v_create_qp;
	v->modify_qp = v_modify_qp;
	v->destroy_qp = v_destroy_qp;
}
