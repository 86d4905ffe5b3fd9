/*
 * commit.c: sealed slots become visible, all of a call in one message. The first put of a key wins;
 * an upsert that came with too low a generation gets a newer one and tries again.
 */
#include "client/priv.h"

static bool is_ready(const struct mc_cli_write *w)
{
	return w->status == 0 && !w->is_committed &&
	       mc_cli_write_count(w, MC_CLI_TARGET_SEALED) > 0;
}

/* It may have sealed it, and its answer was lost: should we die before it is told to drop it, the
 * master knows. */
static bool is_left(const struct mc_cli_target *t)
{
	return t->state == MC_CLI_TARGET_FAILED && t->is_lost && t->was_sealed &&
	       !mc_cli_owner_is_own(t->owner);
}

static void replica_add(struct mc_st_commit *m, const struct mc_cli_target *t, uint64_t addr)
{
	if (m->nreplicas < MC_ST_REPLICAS_MAX)
		m->replicas[m->nreplicas++] =
		    (struct mc_st_replica){.owner = t->owner->id,
					   .addr = addr,
					   .kind = MC_ST_MEMORY,
					   .life = (uint32_t)t->incarnation};
}

static int add(struct mc_cli_op *op, struct mc_cli_write *w, uint32_t item, struct mc_cli_call **c)
{
	struct mc_st_commit m = {.gen = w->gen,
				 .len = w->len,
				 .key_len = w->key.len,
				 .tlv_len = w->tlv_len,
				 .flags = w->is_upsert ? MC_ST_COMMIT_UPSERT : 0,
				 .key = w->key.bytes,
				 .tlv = w->tlv};
	size_t len = sizeof(m) + m.key_len + m.tlv_len;
	struct mc_wr wr;

	for (unsigned t = 0; t < w->ntargets; t++)
		if (w->targets[t].state == MC_CLI_TARGET_SEALED)
			replica_add(&m, &w->targets[t], w->targets[t].addr);
	for (unsigned t = 0; t < w->ntargets; t++)
		if (is_left(&w->targets[t]))
			replica_add(&m, &w->targets[t], MC_ST_LEFT_ADDR);
	if (!*c || !mc_cli_call_has_room(*c, len))
		*c = mc_cli_call_open(op, &op->st->master, MC_ST_COMMIT);
	if (!*c || mc_cli_call_add(*c, len, item, &wr) < 0)
		return -MC_E_NOMEM;
	mc_st_commit_encode(&wr, &m);
	mc_cli_call_added(*c, &wr);
	return 0;
}

/* An owner does not have its slot any more: the others are given up with it, and it is put anew. */
static void start_over(struct mc_cli_write *w)
{
	for (unsigned t = 0; t < w->ntargets; t++)
		if (w->targets[t].state == MC_CLI_TARGET_SEALED) {
			w->targets[t].state = MC_CLI_TARGET_FAILED;
			w->targets[t].status = MC_STORE_REPLICA_IS_GONE;
			w->targets[t].is_lost = w->targets[t].was_sealed = true;
		}
	w->is_done = false;
}

/* @return the master asks for patience */
static bool take(struct mc_cli_op *op, struct mc_cli_write *writes, struct mc_cli_call *c,
		 uint64_t *stale)
{
	struct mc_st_committed m = {0};
	bool is_early = false;
	struct mc_rd r;
	int rc = c->rc;

	if (rc == 0)
		rc = mc_cli_call_records(c, &r);
	for (uint32_t i = 0; i < c->n; i++) {
		struct mc_cli_write *w = &writes[c->items[i]];

		if (rc == 0) {
			mc_st_committed_decode(&r, &m);
			if (r.is_bad)
				rc = -MC_E_PROTO;
		}
		if (rc < 0) {
			w->status = mc_cli_code_rpc(rc);
			w->is_unsure |= c->nsent > 0;
			continue;
		}
		mc_cli_cache_del(op->st->cache, &w->key);
		/* A master that asks for patience may yet take it in when its owner announces it.
		 */
		w->is_unsure = m.status == MC_STORE_UNAVAILABLE_IN_CURRENT_STATUS;
		if (m.status == 0 || (m.status == MC_STORE_OBJECT_ALREADY_EXISTS && !w->is_upsert))
			w->is_committed = true;
		else if (m.status == MC_STORE_UNAVAILABLE_IN_CURRENT_STATUS)
			is_early = true;
		else if (m.status == MC_STORE_INVALID_VERSION)
			stale[c->items[i]] = mc_max(m.gen, 1ull);
		else if (m.status == MC_STORE_REPLICA_IS_GONE)
			start_over(w);
		else
			w->status = m.status;
	}
	return is_early;
}

/* Newer generations for those that were stale. */
static void renew(struct mc_cli_op *op, struct mc_cli_write *writes, size_t n, uint64_t *stale)
{
	uint32_t count = 0, next = 0;
	uint64_t *gens;
	int rc;

	for (size_t i = 0; i < n; i++)
		count += stale[i] != 0;
	if (count == 0)
		return;
	gens = mc_cli_alloc(op, count, sizeof(*gens));
	rc = gens ? mc_cli_gens(op, count, true, gens) : -MC_E_NOMEM;
	for (size_t i = 0; i < n; i++) {
		if (!stale[i])
			continue;
		if (rc < 0)
			writes[i].status = mc_cli_code_rpc(rc);
		stale[i] = rc < 0 ? 0 : gens[next++];
	}
	mc_cli_regen(op, writes, n, stale);
	for (size_t i = 0; i < n; i++) {
		if (stale[i] && mc_cli_write_count(&writes[i], MC_CLI_TARGET_SEALED) == 0)
			writes[i].is_done = false; /* put anew */
		stale[i] = 0;
	}
}

/* One message for all that are sealed. @return some are to be asked for again, after a pause */
static bool round_run(struct mc_cli_op *op, struct mc_cli_write *writes, size_t n, uint64_t *stale)
{
	size_t first = op->ncalls;
	struct mc_cli_call *c = NULL;
	bool is_early = false;

	for (size_t i = 0; i < n; i++)
		if (is_ready(&writes[i]) && add(op, &writes[i], (uint32_t)i, &c) < 0)
			writes[i].status = MC_STORE_INTERNAL_ERROR;
	mc_cli_calls_master(op, first);
	for (size_t i = first; i < op->ncalls; i++)
		is_early |= take(op, writes, op->calls[i], stale);
	op->ncalls = first;
	renew(op, writes, n, stale);
	return is_early;
}

void mc_cli_commit(struct mc_cli_op *op, struct mc_cli_write *writes, size_t n)
{
	uint64_t *stale = mc_cli_alloc(op, n, sizeof(*stale));
	bool is_early, is_any;

	do {
		is_early = stale && round_run(op, writes, n, stale);
		is_any = false;
		for (size_t i = 0; i < n; i++)
			is_any |= stale && is_ready(&writes[i]);
	} while (is_any && (is_early ? mc_cli_backoff(op) : !mc_cli_is_over(op)));
	for (size_t i = 0; i < n; i++)
		if (is_ready(&writes[i]))
			writes[i].status = stale ? MC_STORE_RPC_TIMEOUT : MC_STORE_INTERNAL_ERROR;
}
