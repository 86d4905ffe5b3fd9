/*
 * batch.c: upstream's C ABI over engine.h: batches of transfers.
 *
 * Each submit is one group of the engine, so a batch is a list of groups with the numbers of their
 * transfers. A batch that its program frees while it is under way goes to a second list, where
 * later calls of allocateBatchID() pick up what has ended: programs free such batches once and
 * forget them.
 */
#include "capi/handle.h"

#include <string.h>

#include "base/err.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/upstream.h"

#define LEAVING_LOOKS_MAX 8 /* batches looked at by one allocateBatchID() */
#define WAIT_SLICE_NS 1000000000ull

/* Status functions answer with positive numbers. */
static int positive(int rc)
{
	return -mc_upstream_code(rc);
}

/* A group whose transfers are done may still wait for its message to arrive; that is no matter of
 * the batch any more. */
static bool group_is_moved(struct mc_engine *eng, const struct mc_capi_group *group)
{
	struct mc_status status;

	if (mc_group_status(eng, group->id, &status) < 0 || status.is_done)
		return true;
	for (uint32_t i = 0; i < group->n; i++)
		if (mc_group_transfer_status(eng, group->id, i, &status) == 0 && !status.is_done)
			return false;
	return true;
}

static bool batch_is_done(struct mc_engine *eng, const struct mc_capi_batch *batch)
{
	for (size_t i = 0; i < batch->n_groups; i++)
		if (!group_is_moved(eng, &batch->group[i]))
			return false;
	return true;
}

/* Caller holds the engine's lock. @return whether it was done and is gone */
static bool batch_try_end(struct mc_capi_engine *eng, struct mc_capi_batch *batch)
{
	bool is_done;

	if (pthread_mutex_trylock(&batch->lock) != 0)
		return false; /* someone submits to it */
	is_done = batch_is_done(eng->eng, batch);
	for (size_t i = 0; is_done && i < batch->n_groups; i++)
		(void)mc_group_free(eng->eng, batch->group[i].id); /* stale after a fork */
	pthread_mutex_unlock(&batch->lock);
	if (is_done)
		mc_capi_batch_del(batch);
	return is_done;
}

batch_id_t allocateBatchID(transfer_engine_t engine, size_t batch_size)
{
	struct mc_capi_engine *eng = mc_capi_engine_get(engine);
	struct mc_capi_batch *old;
	batch_id_t id = INVALID_BATCH;
	int looks = 0;

	if (!eng)
		return INVALID_BATCH;
	pthread_mutex_lock(&eng->lock);
	mc_list_each (old, &eng->leaving, link) {
		if (looks++ == LEAVING_LOOKS_MAX)
			break;
		(void)batch_try_end(eng, old);
	}
	pthread_mutex_unlock(&eng->lock);
	if (batch_size <= MC_GROUP_MAX)
		id = mc_capi_batch_add(eng, engine, (uint32_t)batch_size);
	else
		mc_log_error("batch is larger than the limit", "size=%zu max=%u", batch_size,
			     MC_GROUP_MAX);
	mc_capi_engine_put(engine);
	return id;
}

/* ---- submit ---- */

/* One transfer and its two ranges, as the engine reads them. */
struct entry {
	struct mc_iov local, remote;
};

/* Turn entries into transfers, in the batch's scratch memory. @return 0 or -MC_E_… */
static int batch_fill(struct mc_capi_batch *batch, const struct transfer_request *entries, size_t n,
		      struct mc_transfer **ret_transfers)
{
	struct mc_transfer *transfer;
	struct entry *entry;
	size_t want = n * (sizeof(*transfer) + sizeof(*entry));
	int rc = mc_array_grow(&batch->scratch, &batch->scratch_cap, want,
			       MC_GROUP_MAX * (sizeof(*transfer) + sizeof(*entry)), 1);

	if (rc < 0)
		return rc;
	transfer = batch->scratch;
	entry = (struct entry *)(void *)(transfer + n);
	for (size_t i = 0; i < n; i++) {
		const struct transfer_request *req = &entries[i];

		if (req->opcode != OPCODE_READ && req->opcode != OPCODE_WRITE)
			return -MC_E_INVAL;
		entry[i].local = (struct mc_iov){(uintptr_t)req->source, req->length};
		entry[i].remote = (struct mc_iov){req->target_offset, req->length};
		transfer[i] = (struct mc_transfer){
		    .op = req->opcode == OPCODE_READ ? MC_READ : MC_WRITE,
		    .segment = req->target_id,
		    .nlocal = 1,
		    .nremote = 1,
		    .local = &entry[i].local,
		    .remote = &entry[i].remote,
		};
	}
	*ret_transfers = transfer;
	return 0;
}

/* Wait for all earlier submits. @return whether all of them succeeded */
static bool batch_wait(struct mc_engine *eng, const struct mc_capi_batch *batch)
{
	bool is_good = true;

	for (size_t i = 0; i < batch->n_groups; i++) {
		struct mc_status status = {.status = 0};
		int rc;

		do
			rc = mc_group_wait(eng, batch->group[i].id, WAIT_SLICE_NS, &status);
		while (rc == -MC_E_TIMEDOUT); /* a group ends by its own deadline */
		is_good = is_good && rc == 0 && status.status == 0;
	}
	return is_good;
}

/* Caller holds the batch's lock. @return 0 or -MC_E_… */
static int batch_submit(struct mc_engine *eng, struct mc_capi_batch *batch,
			const struct transfer_request *entries, size_t n,
			const struct mc_notify *notify)
{
	struct mc_group group = {
	    .size = sizeof(group),
	    .n = (uint32_t)n,
	    .priority = MC_PRIO_NORMAL,
	};
	struct mc_transfer *transfers = NULL;
	void *array = batch->group;
	uint64_t id;
	int rc;

	rc = mc_array_grow(&array, &batch->groups_cap, batch->n_groups + 1, MC_GROUP_MAX + 1,
			   sizeof(*batch->group));
	batch->group = array;
	if (rc == 0)
		rc = batch_fill(batch, entries, n, &transfers);
	if (rc < 0)
		return rc;
	group.transfers = transfers;
	if (notify && batch_wait(eng, batch))
		group.notify = notify;
	else if (notify)
		mc_log_warn("message is dropped", "why=\"a transfer of its batch failed\"");
	rc = mc_submit(eng, &group, &id);
	if (rc < 0)
		return rc;
	batch->group[batch->n_groups++] =
	    (struct mc_capi_group){.id = id, .first = batch->n_tasks, .n = (uint32_t)n};
	batch->n_tasks += (uint32_t)n;
	return 0;
}

static int submit(transfer_engine_t engine, batch_id_t batch_id,
		  const struct transfer_request *entries, size_t count,
		  const struct mc_notify *notify)
{
	struct mc_capi_engine *eng = mc_capi_engine_get(engine);
	struct mc_capi_batch *batch;
	int rc;

	if (!eng)
		return positive(-MC_E_STALE);
	batch = mc_capi_batch_get(engine, batch_id);
	if (!batch) {
		mc_capi_engine_put(engine);
		return positive(-MC_E_STALE);
	}
	pthread_mutex_lock(&batch->lock);
	if ((count > 0 && !entries) || (count == 0 && notify))
		rc = -MC_E_INVAL;
	else if (count > batch->capacity - batch->n_tasks)
		rc = -MC_E_AGAIN;
	else
		rc = count ? batch_submit(eng->eng, batch, entries, count, notify) : 0;
	pthread_mutex_unlock(&batch->lock);
	if (rc < 0)
		mc_log_error("transfers are not submitted", "n=%zu why=\"%s\"", count,
			     mc_err_text(rc));
	mc_capi_batch_put(batch_id);
	mc_capi_engine_put(engine);
	return positive(rc);
}

int submitTransfer(transfer_engine_t engine, batch_id_t batch_id, struct transfer_request *entries,
		   size_t count)
{
	return submit(engine, batch_id, entries, count, NULL);
}

int submitTransferWithNotify(transfer_engine_t engine, batch_id_t batch_id,
			     struct transfer_request *entries, size_t count,
			     notify_msg_t notify_msg)
{
	struct mc_notify notify = {.name = notify_msg.name, .msg = notify_msg.msg};

	if (!notify_msg.name || !notify_msg.msg)
		return positive(-MC_E_INVAL);
	notify.name_len = (uint32_t)strnlen(notify_msg.name, MC_NOTIFY_MAX + 1);
	notify.msg_len = (uint32_t)strnlen(notify_msg.msg, MC_NOTIFY_MAX + 1);
	return submit(engine, batch_id, entries, count, &notify);
}

/* ---- status ---- */

static int task_status(struct mc_engine *eng, const struct mc_capi_batch *batch, size_t task,
		       struct transfer_status *ret)
{
	struct mc_status status;
	size_t i = 0;
	int rc;

	if (task >= batch->n_tasks)
		return -MC_E_INVAL;
	while (task >= batch->group[i].first + batch->group[i].n)
		i++;
	rc = mc_group_transfer_status(eng, batch->group[i].id,
				      (uint32_t)task - batch->group[i].first, &status);
	if (rc < 0)
		return rc;
	ret->transferred_bytes = status.bytes;
	if (!status.is_done)
		ret->status = STATUS_PENDING;
	else
		ret->status = status.status == 0 ? STATUS_COMPLETED : STATUS_FAILED;
	return 0;
}

int getTransferStatus(transfer_engine_t engine, batch_id_t batch_id, size_t task_id,
		      struct transfer_status *status)
{
	struct mc_capi_engine *eng = status ? mc_capi_engine_get(engine) : NULL;
	struct mc_capi_batch *batch;
	int rc = -MC_E_STALE;

	if (!eng)
		return positive(rc);
	batch = mc_capi_batch_get(engine, batch_id);
	if (batch) {
		pthread_mutex_lock(&batch->lock);
		rc = task_status(eng->eng, batch, task_id, status);
		pthread_mutex_unlock(&batch->lock);
		mc_capi_batch_put(batch_id);
	}
	mc_capi_engine_put(engine);
	return positive(rc);
}

int freeBatchID(transfer_engine_t engine, batch_id_t batch_id)
{
	struct mc_capi_engine *eng = mc_capi_engine_get(engine);
	struct mc_capi_batch *batch;
	int rc = -MC_E_STALE;

	if (!eng)
		return positive(rc);
	pthread_mutex_lock(&eng->lock); /* two frees at once: the second finds nothing */
	batch = mc_capi_batch_get(engine, batch_id);
	if (batch) {
		rc = 0;
		if (!batch_try_end(eng, batch)) {
			mc_list_del(&batch->link);
			mc_list_push_back(&eng->leaving, &batch->link);
			rc = -MC_E_BUSY;
		}
		mc_capi_batch_put(batch_id);
	}
	pthread_mutex_unlock(&eng->lock);
	mc_capi_engine_put(engine);
	return positive(rc);
}
