/*
 * fetch.c: objects that are on a disk only. Their owners read, check and seal them into memory, all
 * at once; what comes of it is read like any other.
 */
#include "client/priv.h"

static uint8_t outcome_of(int32_t status)
{
	switch (status) {
	case MC_STORE_REPLICA_NOT_FOUND:
	case MC_STORE_REPLICA_IS_GONE:
		return MC_CLI_READ_STALE;
	case MC_STORE_CHECKSUM_MISMATCH:
		return MC_CLI_READ_BAD;
	default:
		return MC_CLI_READ_FAILED; /* no room, or no answer: it may be there */
	}
}

static bool is_on_disk(const struct mc_cli_read *r)
{
	return r->look.place.replicas[r->replica].kind == MC_ST_DISK;
}

/* A call of its own: one that waits for room holds up no other. @return -MC_E_NOMEM */
static int ask(struct mc_cli_op *op, const struct mc_cli_read *r, uint32_t item)
{
	const struct mc_st_place place = {r->look.place.is_kept ? MC_ST_DISK_KEEP : MC_ST_DISK_ADDR,
					  r->look.place.gen};
	struct mc_cli_call *c = mc_cli_call_open(op, &r->owner->end, MC_ST_FETCH);
	struct mc_wr w;

	if (!c || mc_cli_call_add(c, sizeof(place), item, &w) < 0)
		return -MC_E_NOMEM;
	mc_st_place_encode(&w, &place);
	mc_cli_call_added(c, &w);
	atomic_fetch_add_explicit(&op->st->nfetched, 1, memory_order_relaxed);
	return 0;
}

static void answer(struct mc_cli_op *op, struct mc_cli_read *r, struct mc_cli_call *c)
{
	struct mc_st_replica *replica = &r->look.place.replicas[r->replica];
	struct mc_st_granted g = {.status = MC_STORE_RPC_FAIL};
	struct mc_rd rd;
	int rc = c->rc;

	if (rc == 0)
		rc = mc_cli_call_records(c, &rd);
	if (rc == 0) {
		mc_st_granted_decode(&rd, &g);
		rc = rd.is_bad ? -MC_E_PROTO : 0;
	}
	if (rc < 0 && !c->rpc.is_answered)
		mc_cli_owner_bad(r->owner, rc);
	if (rc < 0 || g.status != 0) {
		r->outcome = outcome_of(rc < 0 ? MC_STORE_RPC_FAIL : g.status);
		return;
	}
	r->outcome = MC_CLI_READ_OK;
	replica->addr = g.addr;
	replica->kind = MC_ST_MEMORY;
	replica->life = (uint32_t)g.incarnation;
	mc_cli_cache_put(op->st->cache, &r->look.key, &r->look.place);
}

size_t mc_cli_fetch(struct mc_cli_op *op, struct mc_cli_read **open, size_t n,
		    struct mc_cli_read **some)
{
	size_t first = op->ncalls, left = 0, nbad = 0;

	for (size_t i = 0; i < n; i++) {
		open[i]->outcome = MC_CLI_READ_OK;
		if (is_on_disk(open[i]) && ask(op, open[i], (uint32_t)i) < 0)
			open[i]->outcome = MC_CLI_READ_FAILED;
	}
	mc_cli_calls_run(op, first, mc_cli_attempt_ns(op));
	for (size_t i = first; i < op->ncalls; i++)
		if (op->calls[i]->n > 0)
			answer(op, open[op->calls[i]->items[0]], op->calls[i]);
	op->ncalls = first;
	for (size_t i = 0; i < n; i++) {
		if (open[i]->outcome == MC_CLI_READ_OK)
			open[left++] = open[i];
		else if (open[i]->look.is_fresh && open[i]->outcome != MC_CLI_READ_FAILED)
			some[nbad++] = open[i];
	}
	if (nbad > 0)
		mc_cli_read_report(op, some, nbad);
	return left;
}
