/*
 * verbs_fake_cq.c: completion queues of bounded size, and the channels that tell of them.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "verbs_fake_priv.h"

static struct ibv_comp_channel *v_create_comp_channel(struct ibv_context *ctx)
{
	struct fake_channel *ch = NULL;
	int err;

	pthread_mutex_lock(&fab.lock);
	err = fake_enter(VERBS_FAKE_CREATE_COMP_CHANNEL, ctx);
	if (err)
		goto out;
	ch = fake_alloc(1, sizeof(*ch));
	err = fake_events_open(&ch->events);
	if (err) {
		free(ch);
		ch = NULL;
		goto out;
	}
	ch->ibv.context = ctx;
	ch->ibv.fd = ch->events.fd;
	((struct fake_ctx *)ctx)->nchannels++;
	fab.live.channels++;
out:
	pthread_mutex_unlock(&fab.lock);
	errno = err;
	return ch ? &ch->ibv : NULL;
}

static int v_destroy_comp_channel(struct ibv_comp_channel *ibv)
{
	struct fake_channel *ch = (struct fake_channel *)ibv;
	bool is_kept;
	int err;

	pthread_mutex_lock(&fab.lock);
	err = fake_enter_destroy(VERBS_FAKE_DESTROY_COMP_CHANNEL, &is_kept);
	if (!is_kept && ch->ncqs > 0) {
		err = EBUSY;
		is_kept = true;
	}
	if (!is_kept) {
		((struct fake_ctx *)ibv->context)->nchannels--;
		fab.live.channels--;
		fake_events_close(&ch->events);
		free(ch);
	}
	pthread_mutex_unlock(&fab.lock);
	return err;
}

static struct ibv_cq *v_create_cq(struct ibv_context *ctx, int cqe, void *cq_context,
				  struct ibv_comp_channel *channel, int comp_vector)
{
	struct fake_cq *cq = NULL;
	int err;

	pthread_mutex_lock(&fab.lock);
	err = fake_enter(VERBS_FAKE_CREATE_CQ, ctx);
	if (!err && (cqe < 1 || cqe > (int)fab.conf.max_cqe || comp_vector < 0 ||
		     comp_vector >= ctx->num_comp_vectors))
		err = EINVAL;
	if (!err) {
		cq = fake_alloc(1, sizeof(*cq));
		cq->cap = (unsigned)cqe;
		cq->ring = fake_alloc(cq->cap, sizeof(*cq->ring));
		cq->ibv.context = ctx;
		cq->ibv.channel = channel;
		cq->ibv.cq_context = cq_context;
		cq->ibv.cqe = cqe;
		mc_list_push_back(&fab.cqs, &cq->link);
		((struct fake_ctx *)ctx)->ncqs++;
		if (channel)
			((struct fake_channel *)channel)->ncqs++;
		fab.live.cqs++;
	}
	pthread_mutex_unlock(&fab.lock);
	errno = err;
	return cq ? &cq->ibv : NULL;
}

static int v_destroy_cq(struct ibv_cq *ibv)
{
	struct fake_channel *ch = (struct fake_channel *)ibv->channel;
	struct fake_cq *cq = (struct fake_cq *)ibv;
	bool is_kept;
	int err;

	pthread_mutex_lock(&fab.lock);
	err = fake_enter_destroy(VERBS_FAKE_DESTROY_CQ, &is_kept);
	if (!is_kept && cq->nqps > 0) {
		err = EBUSY;
		is_kept = true;
	}
	if (!is_kept) {
		struct fake_ctx *ctx = (struct fake_ctx *)ibv->context;

		fake_wait_acked(&cq->unacked, "destroy_cq");
		fake_events_purge(&ctx->async, cq);
		if (ch) {
			fake_events_purge(&ch->events, cq);
			ch->ncqs--;
		}
		mc_list_del(&cq->link);
		ctx->ncqs--;
		fab.live.cqs--;
		free(cq->ring);
		free(cq);
	}
	pthread_mutex_unlock(&fab.lock);
	return err;
}

static int v_get_cq_event(struct ibv_comp_channel *ibv, struct ibv_cq **ret_cq, void **ret_context)
{
	struct fake_channel *ch = (struct fake_channel *)ibv;
	struct fake_event e;
	struct fake_cq *cq;
	int err;

	pthread_mutex_lock(&fab.lock);
	err = fake_enter(VERBS_FAKE_GET_CQ_EVENT, NULL);
	pthread_mutex_unlock(&fab.lock);
	if (err) {
		errno = err;
		return -1;
	}
	if (fake_events_get(&ch->events, &e) < 0)
		return -1;
	cq = e.of;
	cq->unacked++;
	*ret_cq = &cq->ibv;
	*ret_context = cq->ibv.cq_context;
	pthread_mutex_unlock(&fab.lock);
	return 0;
}

static void v_ack_cq_events(struct ibv_cq *ibv, unsigned n)
{
	struct fake_cq *cq = (struct fake_cq *)ibv;

	pthread_mutex_lock(&fab.lock);
	mc_assert(n <= cq->unacked);
	cq->unacked -= n;
	pthread_cond_broadcast(&fab.acked);
	pthread_mutex_unlock(&fab.lock);
}

/* Too many completions: the queue is lost, and whoever used it. */
static void cq_lose(struct fake_cq *cq)
{
	struct ibv_async_event ev = {.event_type = IBV_EVENT_CQ_ERR, .element.cq = &cq->ibv};
	struct fake_qp *qp;

	cq->is_lost = true;
	fake_events_put(&((struct fake_ctx *)cq->ibv.context)->async, cq, &ev);
	mc_list_each (qp, &fab.qps, link) {
		if (qp->ibv.send_cq == &cq->ibv)
			fake_qp_break(qp);
	}
}

void fake_cq_push(struct ibv_cq *ibv, const struct ibv_wc *wc, uint64_t sq_upto)
{
	struct fake_cq *cq = (struct fake_cq *)ibv;
	struct fake_cqe *e;

	if (cq->is_lost)
		return;
	if (cq->n == cq->cap) {
		cq_lose(cq);
		return;
	}
	e = &cq->ring[(cq->head + cq->n++) % cq->cap];
	e->wc = *wc;
	e->sq_upto = sq_upto;
	if (cq->is_armed && ibv->channel) {
		cq->is_armed = false;
		fake_events_put(&((struct fake_channel *)ibv->channel)->events, cq, NULL);
	}
}

int fake_poll_cq(struct ibv_cq *ibv, int n, struct ibv_wc *wc)
{
	struct fake_cq *cq = (struct fake_cq *)ibv;
	struct fake_qp *qp;
	int got = 0, err;

	pthread_mutex_lock(&fab.lock);
	err = fake_enter(VERBS_FAKE_POLL_CQ, NULL);
	if (err || cq->is_lost) {
		pthread_mutex_unlock(&fab.lock);
		errno = err ? err : EIO;
		return -1;
	}
	for (; got < n && cq->n > 0; got++) {
		struct fake_cqe *e = &cq->ring[cq->head];

		wc[got] = e->wc;
		cq->head = (cq->head + 1) % cq->cap;
		cq->n--;
		qp = fake_qp_find(e->wc.qp_num);
		if (qp && qp->freed < e->sq_upto)
			qp->freed = e->sq_upto;
		/* As the specification says for a completion with error: only these are sure. */
		if (e->wc.status != IBV_WC_SUCCESS) {
			wc[got].opcode = (enum ibv_wc_opcode)0xee;
			wc[got].byte_len = 0xeeeeeeee;
		}
	}
	pthread_mutex_unlock(&fab.lock);
	return got;
}

int fake_req_notify_cq(struct ibv_cq *ibv, int solicited_only)
{
	struct fake_cq *cq = (struct fake_cq *)ibv;
	int err;

	pthread_mutex_lock(&fab.lock);
	err = fake_enter(VERBS_FAKE_REQ_NOTIFY_CQ, ibv->context);
	if (!err)
		cq->is_armed = !solicited_only;
	pthread_mutex_unlock(&fab.lock);
	return err;
}

void fake_cq_verbs(struct mc_verbs *v)
{
	v->create_comp_channel = v_create_comp_channel;
	v->destroy_comp_channel = v_destroy_comp_channel;
	v->create_cq = v_create_cq;
	v->destroy_cq = v_destroy_cq;
	v->get_cq_event = v_get_cq_event;
	v->ack_cq_events = v_ack_cq_events;
}
