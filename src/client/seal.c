/*
 * seal.c: what owners are told of slots that were written: seal them, drop them, give them a newer
 * generation.
 */
#include "client/priv.h"
#include "owner/owner.h"

#define DROP_WAIT_NS MC_NS_PER_S /* for one that may take longer there is the background */
#define TRIES 2u /* a seal whose answer was lost with its connection may be repeated */

/* Handle of a target in a call. */
static uint32_t item_of(size_t i, unsigned t)
{
	return (uint32_t)(i * MC_CLI_TARGETS_MAX + t);
}

static struct mc_cli_target *target_of(struct mc_cli_write *writes, uint32_t item)
{
	return &writes[item / MC_CLI_TARGETS_MAX].targets[item % MC_CLI_TARGETS_MAX];
}

/* Run all calls; what lost its connection once more. */
static void run_twice(struct mc_cli_op *op, size_t first, uint64_t deadline_ns)
{
	mc_cli_calls_run(op, first, deadline_ns);
	for (unsigned i = 1; i < TRIES; i++)
		mc_cli_calls_repeat(op, first, deadline_ns);
}

/* What an owner does not seal, or rename, may have been sealed before, and show. */
static void status_take(struct mc_cli_target *t, int32_t status, enum mc_cli_target_state ok)
{
	t->state = (uint8_t)(status ? MC_CLI_TARGET_FAILED : ok);
	if (!status)
		return;
	t->status = status;
	t->is_lost |= t->was_sealed;
}

/* One status for each record, into the targets' word `ok` or FAILED. */
static void statuses(struct mc_cli_write *writes, struct mc_cli_call *c,
		     enum mc_cli_target_state ok)
{
	struct mc_rd r;
	int rc = c->rc;

	if (rc == 0)
		rc = mc_cli_call_records(c, &r);
	for (uint32_t i = 0; i < c->n; i++) {
		struct mc_cli_target *t = target_of(writes, c->items[i]);
		int32_t status = 0;

		if (rc == 0) {
			status = (int32_t)mc_rd_u32(&r);
			if (r.is_bad)
				rc = -MC_E_PROTO;
		}
		if (rc < 0) {
			t->state = MC_CLI_TARGET_FAILED;
			t->status = mc_cli_code_rpc(rc);
			t->is_lost = true;
			t->was_sealed |= c->nsent > 0;
		} else {
			status_take(t, status, ok);
		}
	}
	if (rc < 0 && !c->rpc.is_answered && c->n > 0)
		mc_cli_owner_bad(target_of(writes, c->items[0])->owner, rc);
}

/* ---- seal ---- */

static uint32_t *table_make(struct mc_cli_op *op, const struct mc_cli_write *w,
			    const struct mc_cli_target *t)
{
	uint32_t *table = mc_cli_alloc(op, w->info.nchunks, sizeof(*table)), range = 0;
	struct mc_slot_info info = w->info;

	if (!table)
		return NULL;
	info.incarnation = t->incarnation;
	for (uint32_t i = 0; i < info.nchunks; i++) {
		uint32_t crc;

		if (!mc_cli_tally_crc(t->tally, &info, i, &crc))
			crc = mc_cli_chunk_crc(&info, w->ranges, &range, i);
		table[i] = htole32(crc);
	}
	return table;
}

static int seal_add(struct mc_cli_op *op, size_t first, struct mc_cli_write *w, uint32_t item,
		    struct mc_cli_target *t)
{
	struct mc_st_seal s = {.addr = t->addr, .gen = w->gen};
	uint32_t crc = htole32(w->crc);
	struct mc_cli_call *c;
	struct mc_wr wr;
	size_t len;

	if (w->ranges) {
		uint32_t *table = table_make(op, w, t);

		if (!table)
			return -MC_E_NOMEM;
		s.table = (const uint8_t *)table;
		s.nchunks = w->info.nchunks;
	} else {
		s.flags = MC_ST_SEAL_COMPUTE;
		s.table = (const uint8_t *)&crc;
		s.nchunks = 1;
	}
	if (mc_cli_owner_is_own(t->owner)) {
		status_take(t, mc_owner_seal(op->st->owner, &s), MC_CLI_TARGET_SEALED);
		t->is_lost = t->state == MC_CLI_TARGET_FAILED; /* its grant may be left */
		return 0;
	}
	len = sizeof(s) + (size_t)s.nchunks * sizeof(uint32_t);
	c = mc_cli_call_for(op, first, &t->owner->end, MC_ST_SEAL, len);
	if (!c || mc_cli_call_add(c, len, item, &wr) < 0)
		return -MC_E_NOMEM;
	mc_st_seal_encode(&wr, &s);
	mc_cli_call_added(c, &wr);
	return 0;
}

void mc_cli_seal(struct mc_cli_op *op, struct mc_cli_write *writes, size_t n)
{
	size_t first = op->ncalls;

	for (size_t i = 0; i < n; i++)
		for (unsigned t = 0; t < writes[i].ntargets; t++) {
			struct mc_cli_target *x = &writes[i].targets[t];

			if (x->state != MC_CLI_TARGET_WRITTEN)
				continue;
			if (seal_add(op, first, &writes[i], item_of(i, t), x) < 0) {
				x->state = MC_CLI_TARGET_FAILED;
				x->status = MC_STORE_INTERNAL_ERROR;
				x->is_lost = true;
			}
		}
	run_twice(op, first, mc_cli_attempt_ns(op));
	for (size_t i = first; i < op->ncalls; i++)
		statuses(writes, op->calls[i], MC_CLI_TARGET_SEALED);
	op->ncalls = first;
}

/* ---- drop ---- */

/* Something of it may stand there for nothing. */
static bool is_left(const struct mc_cli_write *w, const struct mc_cli_target *t)
{
	if (t->is_unfenced)
		return false;
	switch (t->state) {
	case MC_CLI_TARGET_FAILED:
		return t->is_lost;
	case MC_CLI_TARGET_GRANTED:
	case MC_CLI_TARGET_WRITTEN:
		return w->status < 0;
	case MC_CLI_TARGET_SEALED:
		return w->status < 0 && !w->is_unsure; /* else it may be visible already */
	default:
		return false;
	}
}

static void drop_done(struct mc_cli_target *t)
{
	t->state = MC_CLI_TARGET_FAILED;
	t->is_lost = false;
}

/* An owner without memory for the question is asked later, too. */
static void drop_add(struct mc_cli_op *op, size_t first, uint32_t item,
		     const struct mc_cli_target *t, const struct mc_st_place *p)
{
	struct mc_cli_call *c = mc_cli_call_for(op, first, &t->owner->end, MC_ST_DROP, sizeof(*p));
	struct mc_wr wr;

	if (!c || mc_cli_call_add(c, sizeof(*p), item, &wr) < 0)
		return;
	mc_st_place_encode(&wr, p);
	mc_cli_call_added(c, &wr);
}

/* Of one that was lost the address is not known, or not sure. */
static struct mc_st_place place_of(const struct mc_cli_write *w, const struct mc_cli_target *t)
{
	return (struct mc_st_place){.addr = t->state == MC_CLI_TARGET_FAILED ? 0 : t->addr,
				    .gen = w->gen};
}

/* @return it may be there, for readers, too */
static bool drop_one(struct mc_store *st, const struct mc_cli_target *t,
		     const struct mc_st_place *p)
{
	if (mc_cli_owner_is_own(t->owner))
		return mc_owner_drop(st->owner, p) != 0;
	mc_cli_drops_add(st->drops, t->owner, p);
	return t->was_sealed || t->state == MC_CLI_TARGET_SEALED;
}

/* Here, or in the background when it was not heard: then the caller cannot be sure. */
static void drop_later(struct mc_cli_op *op, struct mc_cli_write *w, struct mc_cli_target *t)
{
	struct mc_st_place p = place_of(w, t);

	w->may_show |= drop_one(op->st, t, &p);
	if (t->state == MC_CLI_TARGET_FAILED && w->old_gen) {
		p.gen = w->old_gen;
		w->may_show |= drop_one(op->st, t, &p);
	}
	drop_done(t);
}

/* While the caller waits: what an owner acknowledged is not lost any more. */
static void drop_now(struct mc_cli_op *op, struct mc_cli_write *writes, size_t n)
{
	size_t first = op->ncalls;
	bool has_old;

	for (size_t i = 0; i < n; i++)
		for (unsigned t = 0; t < writes[i].ntargets && writes[i].status < 0; t++) {
			struct mc_cli_target *x = &writes[i].targets[t];
			struct mc_st_place p = place_of(&writes[i], x);

			if (!is_left(&writes[i], x) || mc_cli_owner_is_own(x->owner))
				continue;
			has_old = x->state == MC_CLI_TARGET_FAILED && writes[i].old_gen;
			drop_add(op, first, item_of(i, t), x, &p);
			p.gen = writes[i].old_gen;
			if (has_old)
				drop_add(op, first, item_of(i, t), x, &p);
		}
	run_twice(op, first, mc_min(op->deadline_ns, mc_time_after(mc_now_ns(), DROP_WAIT_NS)));
	for (size_t i = first; i < op->ncalls; i++) {
		struct mc_cli_call *c = op->calls[i];
		struct mc_rd r;

		if (c->rc < 0 || mc_cli_call_records(c, &r) < 0)
			continue; /* in the background */
		for (uint32_t k = 0; k < c->n; k++) {
			writes[c->items[k] / MC_CLI_TARGETS_MAX].may_show |= mc_rd_u32(&r) != 0;
			drop_done(target_of(writes, c->items[k]));
		}
	}
	op->ncalls = first;
}

void mc_cli_drop(struct mc_cli_op *op, struct mc_cli_write *writes, size_t n)
{
	drop_now(op, writes, n);
	for (size_t i = 0; i < n; i++) {
		struct mc_cli_write *w = &writes[i];

		for (unsigned t = 0; t < w->ntargets; t++)
			if (is_left(w, &w->targets[t]))
				drop_later(op, w, &w->targets[t]);
		if (w->status < 0 && (w->is_unsure || w->may_show) &&
		    w->status != MC_STORE_RPC_FAIL)
			w->status = MC_STORE_RPC_TIMEOUT;
	}
}

/* ---- a newer generation ---- */

void mc_cli_regen(struct mc_cli_op *op, struct mc_cli_write *writes, size_t n,
		  const uint64_t *new_gens)
{
	size_t first = op->ncalls;

	for (size_t i = 0; i < n; i++)
		for (unsigned t = 0; t < writes[i].ntargets && new_gens[i]; t++) {
			struct mc_cli_target *x = &writes[i].targets[t];
			struct mc_st_regen g = {
			    .addr = x->addr, .gen = writes[i].gen, .new_gen = new_gens[i]};
			struct mc_cli_call *c;
			struct mc_wr wr;

			if (x->state != MC_CLI_TARGET_SEALED)
				continue;
			x->was_sealed = true;
			if (mc_cli_owner_is_own(x->owner)) {
				status_take(x, mc_owner_regen(op->st->owner, &g),
					    MC_CLI_TARGET_SEALED);
				continue;
			}
			c = mc_cli_call_for(op, first, &x->owner->end, MC_ST_REGEN, sizeof(g));
			if (!c || mc_cli_call_add(c, sizeof(g), item_of(i, t), &wr) < 0) {
				x->state = MC_CLI_TARGET_FAILED;
				x->status = MC_STORE_INTERNAL_ERROR;
				x->is_lost = true;
				continue;
			}
			mc_st_regen_encode(&wr, &g);
			mc_cli_call_added(c, &wr);
		}
	run_twice(op, first, mc_cli_attempt_ns(op));
	for (size_t i = first; i < op->ncalls; i++)
		statuses(writes, op->calls[i], MC_CLI_TARGET_SEALED);
	op->ncalls = first;
	for (size_t i = 0; i < n; i++)
		if (new_gens[i]) {
			writes[i].old_gen = writes[i].gen;
			writes[i].gen = writes[i].info.gen = new_gens[i];
		}
}
