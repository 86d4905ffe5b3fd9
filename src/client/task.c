/*
 * task.c: replicas: tasks of the master that copy or move them, and those of a segment that are no
 * longer wanted.
 */
#include "base/str.h"
#include "client/priv.h"
#include "wire/store.pb-c.h"

#define CLEAR_BYTES (64u << 10) /* keys of one message */

/* ---- tasks ---- */

static int create(struct mc_store *st, const struct mc_store_key *key, Mc__St__TaskCreate *msg,
		  struct mc_store_task_id *ret_id)
{
	const Mc__St__TaskReply *reply;
	struct mc_cli_key made;
	struct mc_cli_op *op;
	void *any;
	int rc = mc_cli_op_begin(st, &op);

	if (rc < 0)
		return rc;
	rc = mc_cli_key_make(op, key, &made);
	if (rc == 0) {
		msg->key = (ProtobufCBinaryData){.data = (uint8_t *)made.bytes, .len = made.len};
		rc = mc_cli_call_pb(op, MC_ST_TASK_CREATE, msg, &mc__st__task_reply__descriptor,
				    &any);
		reply = any;
		rc = rc < 0 ? mc_cli_code_rpc(rc) : reply->status;
		if (rc == 0)
			*ret_id = (struct mc_store_task_id){reply->id_hi, reply->id_lo};
	}
	mc_cli_op_end(op);
	return rc;
}

int mc_store_copy(struct mc_store *store, const struct mc_store_key *key,
		  const char *const *targets, uint32_t ntargets, struct mc_store_task_id *ret_id)
{
	Mc__St__TaskCreate msg = MC__ST__TASK_CREATE__INIT;
	char *list[MC_STORE_REPLICAS_MAX];

	if (ntargets == 0 || ntargets > MC_STORE_REPLICAS_MAX)
		return MC_STORE_INVALID_PARAMS;
	for (uint32_t i = 0; i < ntargets; i++)
		list[i] = (char *)targets[i];
	msg.n_targets = ntargets;
	msg.targets = list;
	return create(store, key, &msg, ret_id);
}

int mc_store_move(struct mc_store *store, const struct mc_store_key *key, const char *source,
		  const char *target, struct mc_store_task_id *ret_id)
{
	Mc__St__TaskCreate msg = MC__ST__TASK_CREATE__INIT;
	char *list[] = {(char *)target};

	msg.is_move = true;
	msg.source = (char *)source;
	msg.n_targets = 1;
	msg.targets = list;
	return create(store, key, &msg, ret_id);
}

int mc_store_task(struct mc_store *store, struct mc_store_task_id id, struct mc_store_task *ret)
{
	Mc__St__TaskQuery msg = MC__ST__TASK_QUERY__INIT;
	const Mc__St__TaskReply *r;
	struct mc_cli_op *op;
	void *any;
	int rc = mc_cli_op_begin(store, &op);

	if (rc < 0)
		return rc;
	msg.id_hi = id.hi;
	msg.id_lo = id.lo;
	rc = mc_cli_call_pb(op, MC_ST_TASK_QUERY, &msg, &mc__st__task_reply__descriptor, &any);
	r = any;
	rc = rc < 0 ? mc_cli_code_rpc(rc) : r->status;
	if (rc == 0) {
		*ret = (struct mc_store_task){
		    .id = id,
		    .is_move = r->type != 0,
		    .state = r->state <= MC_STORE_TASK_SUCCESS ? r->state : MC_STORE_TASK_FAILED,
		    .created_ms = r->created_ms,
		    .updated_ms = r->updated_ms};
		(void)mc_strlcpy(ret->segment, sizeof(ret->segment), r->assigned);
		(void)mc_strlcpy(ret->message, sizeof(ret->message), r->message);
	}
	mc_cli_op_end(op);
	return rc;
}

/* ---- replicas of a segment ---- */

/* Of the keys from `first` on, as many as one message takes. @return how many */
static uint32_t page_make(struct mc_cli_op *op, const struct mc_store_key *keys, uint32_t n,
			  ProtobufCBinaryData *rows, int32_t *ret)
{
	struct mc_cli_key made;
	size_t bytes = 0;
	uint32_t i = 0;

	for (; i < n && bytes < CLEAR_BYTES; i++) {
		static uint8_t none[1];

		ret[i] = mc_cli_key_make(op, &keys[i], &made);
		/* One that cannot be is asked for as one that is not there. */
		rows[i] = (ProtobufCBinaryData){.data = none, .len = 1};
		if (ret[i] == 0)
			rows[i] =
			    (ProtobufCBinaryData){.data = (uint8_t *)made.bytes, .len = made.len};
		bytes += rows[i].len + 32; /* what the master makes of it */
		if (ret[i] == 0)
			mc_cli_cache_del(op->st->cache, &made);
	}
	return i;
}

static int page_ask(struct mc_cli_op *op, const char *segment, ProtobufCBinaryData *rows,
		    uint32_t n, int32_t *ret)
{
	Mc__St__Clear msg = MC__ST__CLEAR__INIT;
	const Mc__St__ClearReply *reply;
	void *any;
	int rc;

	msg.segment = (char *)segment;
	msg.keys = rows;
	msg.n_keys = n;
	rc = mc_cli_call_pb(op, MC_ST_CLEAR, &msg, &mc__st__clear_reply__descriptor, &any);
	if (rc < 0)
		return mc_cli_code_rpc(rc);
	reply = any;
	if (reply->n_statuses != n)
		return MC_STORE_RPC_FAIL;
	for (uint32_t i = 0; i < n; i++)
		ret[i] = ret[i] < 0 ? ret[i] : reply->statuses[i];
	return 0;
}

static int clear_all(struct mc_store *st, const struct mc_store_key *keys, uint32_t n,
		     const char *segment, int32_t *ret)
{
	ProtobufCBinaryData *rows;
	struct mc_cli_op *op;
	uint32_t at = 0;
	int rc = mc_cli_op_begin(st, &op);

	if (rc < 0)
		return rc;
	rows = mc_cli_alloc(op, n + 1, sizeof(*rows));
	rc = rows ? 0 : MC_STORE_INTERNAL_ERROR;
	while (rc == 0 && at < n) {
		uint32_t some = page_make(op, keys + at, n - at, rows, ret + at);

		rc = page_ask(op, segment, rows, some, ret + at);
		at += some;
	}
	mc_cli_op_end(op);
	return rc;
}

int mc_store_clear(struct mc_store *store, const struct mc_store_key *keys, uint32_t n,
		   const char *segment, int32_t *ret)
{
	int rc = n > MC_STORE_BATCH_MAX ? MC_STORE_INVALID_PARAMS : 0, first = 0;

	if (rc == 0 && (!segment || !segment[0]))
		return mc_store_remove(store, keys, n, false, ret);
	if (rc == 0)
		rc = clear_all(store, keys, n, segment, ret);
	for (uint32_t i = 0; i < n; i++) {
		int status = rc;

		if (rc == 0 && ret[i] == MC_STORE_OBJECT_REPLICA_BUSY) /* it is nowhere else */
			status = mc_store_remove(store, &keys[i], 1, false, &ret[i]);
		else if (rc == 0)
			status = ret[i];
		ret[i] = status;
		if (status < 0 && first == 0)
			first = status;
	}
	return first;
}
