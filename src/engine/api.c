/*
 * api.c: asynchronous groups by id: submit, status, wait, cancel, free.
 */
#include "base/fork.h"
#include "engine/priv.h"

/* Ready to start, or to wait until the peer was asked (*ret_pend). */
static int prepare(struct mc_engine *eng, const struct mc_group *group, struct mc_gop *op,
		   struct mc_pend **ret_pend)
{
	struct mc_peer *peer;
	int rc = mc_gop_build(op, group, 0, NULL, &peer);

	if (rc > 0)
		rc = mc_pend_open(op, group, peer, ret_pend);
	if (rc < 0)
		return rc;
	rc = mc_ids_add(eng->groups, op, &op->id); /* the id's reference is the opener's */
	if (rc < 0)
		mc_pend_drop(*ret_pend);
	return rc == -MC_E_LIMIT ? -MC_E_AGAIN : rc;
}

int mc_submit(struct mc_engine *eng, const struct mc_group *group, uint64_t *ret_id)
{
	struct mc_pend *pend = NULL;
	struct mc_group g;
	struct mc_gop *op;
	int rc;

	if (mc_engine_is_forked(eng))
		return -MC_E_FORKED;
	mc_group_read(&g, group);
	if (g.cq) {
		rc = mc_cq_begin(g.cq, eng);
		if (rc < 0)
			return rc;
	}
	rc = mc_gop_open(eng, &g, NULL, &op);
	if (rc == 0) {
		rc = prepare(eng, &g, op, &pend);
		if (rc < 0)
			mc_gop_put(op);
	}
	if (rc < 0) {
		if (g.cq)
			mc_cq_undo(g.cq);
		return rc;
	}
	op->cq = g.cq;
	*ret_id = op->id;
	if (pend)
		mc_pend_start(pend);
	else
		mc_async_start(op);
	return 0;
}

static int get(struct mc_engine *eng, uint64_t id, struct mc_gop **ret_op)
{
	if (mc_engine_is_forked(eng))
		return -MC_E_FORKED;
	*ret_op = mc_ids_get(eng->groups, id);
	return *ret_op ? 0 : -MC_E_STALE;
}

static void status_of(const struct mc_gop *op, struct mc_status *ret)
{
	/* acquire: pairs with the release in mc_gop_finish() */
	ret->is_done = atomic_load_explicit(&op->state, memory_order_acquire) == MC_GOP_DONE;
	ret->status = ret->is_done ? op->status : 0;
	ret->bytes = atomic_load_explicit(&op->bytes, memory_order_relaxed);
}

int mc_group_status(struct mc_engine *eng, uint64_t id, struct mc_status *ret_status)
{
	struct mc_gop *op;
	int rc = get(eng, id, &op);

	if (rc < 0)
		return rc;
	status_of(op, ret_status);
	mc_ids_put(eng->groups, id);
	return 0;
}

int mc_group_transfer_status(struct mc_engine *eng, uint64_t id, uint32_t index,
			     struct mc_status *ret_status)
{
	struct mc_gop *op;
	int rc = get(eng, id, &op);

	if (rc < 0)
		return rc;
	if (index >= op->nt) {
		rc = -MC_E_INVAL;
	} else {
		struct mc_tstate *t = &op->t[index];

		ret_status->is_done = atomic_load_explicit(&t->is_done, memory_order_acquire);
		ret_status->status = atomic_load_explicit(&t->status, memory_order_relaxed);
		ret_status->bytes = ret_status->is_done && ret_status->status == 0 ? t->len : 0;
	}
	mc_ids_put(eng->groups, id);
	return rc;
}

int mc_group_wait(struct mc_engine *eng, uint64_t id, uint64_t timeout_ns,
		  struct mc_status *ret_status)
{
	struct mc_gop *op;
	int rc = get(eng, id, &op);

	if (rc < 0)
		return rc;
	rc = mc_gop_wait(op, mc_time_after(mc_now_ns(), timeout_ns));
	status_of(op, ret_status);
	mc_ids_put(eng->groups, id);
	return rc;
}

int mc_group_diag(struct mc_engine *eng, uint64_t id, struct mc_diag *ret_diag)
{
	struct mc_gop *op;
	int rc = get(eng, id, &op);

	if (rc < 0)
		return rc;
	ret_diag->text[0] = '\0';
	if (atomic_load_explicit(&op->state, memory_order_acquire) == MC_GOP_DONE && op->has_diag)
		*ret_diag = op->diag;
	mc_ids_put(eng->groups, id);
	return 0;
}

int mc_group_cancel(struct mc_engine *eng, uint64_t id)
{
	struct mc_gop *op;
	int rc = get(eng, id, &op);

	if (rc < 0)
		return rc;
	/* The pump sees it at its next tick. */
	atomic_store_explicit(&op->is_canceled, true, memory_order_relaxed);
	if (op->is_watch)
		mc_watch_canceled(op);
	mc_ids_put(eng->groups, id);
	return 0;
}

int mc_group_free(struct mc_engine *eng, uint64_t id)
{
	if (mc_engine_is_forked(eng))
		return -MC_E_FORKED;
	return mc_ids_del(eng->groups, id);
}
