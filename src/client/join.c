/*
 * join.c: what the master tells a process about itself: its epoch, and generations for writes.
 */
#include "base/log.h"
#include "client/link.h"
#include "wire/store.pb-c.h"
#include "wire/pb.h"

#define GENS_BLOCK 1024u
#define REPLY_MAX 4096u

/* A new block, unless another caller brought one that is newer. */
static void gens_keep(struct mc_store *st, uint64_t first, uint32_t n)
{
	pthread_mutex_lock(&st->gens_mu);
	if (n > 0 && first > st->gens_next && first >= st->gens_end) {
		st->gens_next = first;
		st->gens_end = first + n;
	}
	pthread_mutex_unlock(&st->gens_mu);
}

/* Everyone refuses a master of a life before one that was seen. */
static int epoch_check(struct mc_store *st, uint64_t epoch)
{
	uint64_t seen = atomic_load_explicit(&st->epoch, memory_order_relaxed);

	while (epoch > seen)
		if (atomic_compare_exchange_weak_explicit(
			&st->epoch, &seen, epoch, memory_order_relaxed, memory_order_relaxed)) {
			/* What leases the old one gave does not matter: reads check bytes. */
			if (seen)
				mc_log_info("another master", "address=%s epoch=%llu",
					    st->master.text, (unsigned long long)epoch);
			return 0;
		}
	if (epoch == seen)
		return 0;
	mc_log_warn("the master is older than one before it, and is not used",
		    "address=%s epoch=%llu seen=%llu", st->master.text, (unsigned long long)epoch,
		    (unsigned long long)seen);
	return -MC_E_STALE;
}

int mc_cli_join(struct mc_store *st, struct mc_rpc_conn *rpc, uint64_t deadline_ns)
{
	Mc__St__Join join = MC__ST__JOIN__INIT;
	_Alignas(16) uint8_t mem[REPLY_MAX];
	uint8_t req[MC_CLI_TEXT_MAX + 64], reply[REPLY_MAX / 4];
	struct mc_rpc_call call = {.method = MC_ST_JOIN,
				   .deadline_ns = deadline_ns,
				   .req = req,
				   .reply_buf = reply,
				   .reply_cap = sizeof(reply)};
	struct mc_pb_arena arena;
	ProtobufCMessage *msg;
	Mc__St__JoinReply *r;
	int rc;

	join.version = MC_ST_VERSION;
	join.client = st->client_id;
	join.name = (char *)mc_engine_name(st->eng);
	join.gens = GENS_BLOCK;
	rc = mc_pb_pack(&join.base, req, sizeof(req), &call.req_len);
	if (rc == 0)
		rc = mc_rpc_sync(rpc, &call);
	if (rc < 0)
		return rc;
	mc_pb_arena_init(&arena, mem, sizeof(mem));
	rc = mc_pb_unpack(&arena, &mc__st__join_reply__descriptor, reply, call.reply_len, &msg);
	if (rc < 0)
		return rc;
	r = (Mc__St__JoinReply *)msg;
	if (r->status != 0)
		return -MC_E_VERSION;
	rc = epoch_check(st, r->epoch);
	if (rc == 0)
		gens_keep(st, r->first_gen, r->ngens);
	return rc;
}

static void introduced(struct mc_rpc_call *call, int rc, const struct mc_rpc_msg *reply)
{
	(void)rc; /* an owner that did not hear it has lost the connection */
	(void)reply;
	mc_free(call);
}

int mc_cli_introduce(struct mc_store *st, struct mc_rpc_conn *rpc)
{
	Mc__St__Writer writer = MC__ST__WRITER__INIT;
	uint8_t req[MC_CLI_TEXT_MAX + 64];
	struct mc_rpc_call *call = mc_calloc(1, sizeof(*call));
	int rc;

	if (!call)
		return -MC_E_NOMEM;
	*call = (struct mc_rpc_call){.method = MC_ST_WRITER, .req = req, .on_end = introduced};
	writer.client = st->client_id;
	writer.segment = (char *)mc_engine_name(st->eng);
	rc = mc_pb_pack(&writer.base, req, sizeof(req), &call->req_len);
	if (rc == 0)
		rc = mc_rpc_start(rpc, call);
	if (rc < 0)
		mc_free(call);
	return rc;
}

/* Out of the block. @return how many */
static uint32_t gens_take(struct mc_store *st, uint32_t n, uint64_t *ret_gens)
{
	uint32_t got = 0;

	pthread_mutex_lock(&st->gens_mu);
	while (got < n && st->gens_next < st->gens_end)
		ret_gens[got++] = st->gens_next++;
	pthread_mutex_unlock(&st->gens_mu);
	return got;
}

int mc_cli_gens(struct mc_cli_op *op, uint32_t n, bool is_new, uint64_t *ret_gens)
{
	Mc__St__Gens msg = MC__ST__GENS__INIT;
	Mc__St__GensReply *reply;
	uint32_t got = is_new ? 0 : gens_take(op->st, n, ret_gens);
	void *any;
	int rc;

	while (got < n) {
		msg.n = mc_max(n - got, GENS_BLOCK);
		rc = mc_cli_call_pb(op, MC_ST_GENS, &msg, &mc__st__gens_reply__descriptor, &any);
		if (rc < 0)
			return rc;
		reply = any;
		if (reply->ngens == 0 || reply->first_gen == 0)
			return -MC_E_PROTO;
		while (got < n && reply->ngens > 0) {
			ret_gens[got++] = reply->first_gen++;
			reply->ngens--;
		}
		gens_keep(op->st, reply->first_gen, reply->ngens);
	}
	return 0;
}
