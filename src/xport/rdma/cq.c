/*
 * cq.c: completion queues and their events. Events are acknowledged in batches, because each
 * acknowledgement takes a lock of the library (ibv_ack_cq_events(3)).
 */
#include <errno.h>
#include <fcntl.h>

#include "base/fork.h"
#include "base/log.h"
#include "xport/rdma/qp.h"

#define ACK_BATCH 64u
#define DESTROY_TRIES 3u

int mc_rdma_cq_open(struct mc_rdma_hca *hca, uint32_t entries, bool has_channel,
		    struct mc_rdma_cq *ret_cq)
{
	const struct mc_verbs *v = hca->dev->v;
	int nvectors = mc_max(hca->ctx->num_comp_vectors, 1), rc;
	struct mc_rdma_cq cq = {.channel = NULL};

	if (has_channel) {
		cq.channel = v->create_comp_channel(hca->ctx);
		if (!cq.channel)
			return mc_rdma_errno(errno);
		rc = fcntl(cq.channel->fd, F_GETFL);
		if (rc < 0 || fcntl(cq.channel->fd, F_SETFL, rc | O_NONBLOCK) < 0) {
			rc = mc_err_from_errno(errno);
			goto fail;
		}
	}
	/* Interrupts of many lanes are spread over the device's vectors. */
	cq.cq = v->create_cq(hca->ctx, (int)entries, NULL, cq.channel,
			     (int)(atomic_load_explicit(&hca->dev->nlanes, memory_order_relaxed) %
				   (unsigned)nvectors));
	if (!cq.cq) {
		rc = mc_rdma_errno(errno);
		goto fail;
	}
	*ret_cq = cq;
	return 0;
fail:
	mc_rdma_cq_close(hca, &cq);
	return rc;
}

static void kept(const struct mc_rdma_hca *hca, const char *what)
{
	mc_log_error("RDMA object cannot be destroyed", "dev=%s what=%s errno=%d", hca->port.name,
		     what, errno);
}

static void cq_destroy(const struct mc_rdma_hca *hca, struct ibv_cq *cq)
{
	unsigned tries = 0;
	int rc;

	do {
		rc = hca->dev->v->destroy_cq(cq);
	} while (rc != 0 && mc_rdma_is_kept(rc) && ++tries < DESTROY_TRIES);
	if (rc != 0 && mc_rdma_is_kept(rc))
		kept(hca, "completion queue");
}

static void channel_destroy(const struct mc_rdma_hca *hca, struct ibv_comp_channel *channel)
{
	unsigned tries = 0;
	int rc;

	do {
		rc = hca->dev->v->destroy_comp_channel(channel);
	} while (rc != 0 && mc_rdma_is_kept(rc) && ++tries < DESTROY_TRIES);
	if (rc != 0 && mc_rdma_is_kept(rc))
		kept(hca, "completion channel");
}

void mc_rdma_cq_close(struct mc_rdma_hca *hca, struct mc_rdma_cq *cq)
{
	if (mc_fork_is_child(hca->dev->fork_gen))
		*cq = (struct mc_rdma_cq){.cq = NULL}; /* the parent's */
	if (cq->cq) {
		/* One that was not taken would make destroy_cq() wait for ever. */
		(void)mc_rdma_cq_event(hca, cq);
		if (cq->unacked)
			hca->dev->v->ack_cq_events(cq->cq, cq->unacked);
		cq_destroy(hca, cq->cq);
	}
	if (cq->channel)
		channel_destroy(hca, cq->channel);
	*cq = (struct mc_rdma_cq){.cq = NULL};
}

int mc_rdma_cq_arm(struct mc_rdma_cq *cq)
{
	if (cq->is_armed)
		return 0;
	if (ibv_req_notify_cq(cq->cq, 0) != 0)
		return -MC_E_DEVICE;
	cq->is_armed = true;
	return 0;
}

int mc_rdma_cq_event(struct mc_rdma_hca *hca, struct mc_rdma_cq *cq)
{
	struct ibv_cq *of;
	void *user;

	if (!cq->is_armed)
		return 0;
	if (hca->dev->v->get_cq_event(cq->channel, &of, &user) != 0)
		return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR ? 0 : -MC_E_DEVICE;
	cq->is_armed = false;
	if (++cq->unacked == ACK_BATCH) {
		hca->dev->v->ack_cq_events(cq->cq, cq->unacked);
		cq->unacked = 0;
	}
	return 1;
}
