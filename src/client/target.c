/*
 * target.c: replicas of writes, each at an owner of its own. A round asks owners for all that is
 * still missing, all at once; what failed goes to another owner in the next one. Small objects go
 * with the question, the others when there is room for them.
 */
#include "base/crc.h"
#include "base/log.h"
#include "client/priv.h"
#include "owner/owner.h"

#define LATE_NS (300 * MC_NS_PER_MS)
#define NO_OWNER_NS (3 * MC_NS_PER_S) /* others may come */

static bool is_inline(const struct mc_cli_write *w)
{
	return w->ranges && w->len <= MC_ST_INLINE_MAX;
}

/* What a session's write is done with; others are sealed at once. */
static enum mc_cli_target_state goal(const struct mc_cli_write *w)
{
	return w->ranges ? MC_CLI_TARGET_SEALED : MC_CLI_TARGET_GRANTED;
}

static void target_fail(struct mc_cli_target *t, int status, bool is_lost)
{
	t->state = MC_CLI_TARGET_FAILED;
	/* The last call of one that had no room had little time: it is full all the same. */
	if (t->status != MC_STORE_UNAVAILABLE_IN_CURRENT_STATUS || status != MC_STORE_RPC_TIMEOUT)
		t->status = status;
	t->is_lost |= is_lost;
}

/* ---- whom to ask ---- */

/* The reason of a write without any replica. */
static int reason(const struct mc_cli_write *w)
{
	int status = MC_STORE_NO_AVAILABLE_HANDLE;

	for (unsigned t = 0; t < w->ntargets; t++)
		if (w->targets[t].status != MC_STORE_NO_AVAILABLE_HANDLE &&
		    w->targets[t].status != MC_STORE_UNAVAILABLE_IN_CURRENT_STATUS)
			status = w->targets[t].status;
	return status; /* an owner that had no room in time is full, too */
}

/* Nobody else is left to ask: those that gave no answer, once more. @return false: there is none */
static bool again(struct mc_cli_write *w)
{
	bool is_any = false;

	for (unsigned t = 0; t < w->ntargets; t++) {
		struct mc_cli_target *x = &w->targets[t];

		if (x->state == MC_CLI_TARGET_FAILED && !x->is_unfenced &&
		    (x->is_waiting || x->status != MC_STORE_NO_AVAILABLE_HANDLE) &&
		    x->status != MC_STORE_TENANT_QUOTA_EXCEEDED &&
		    x->status != MC_STORE_INVALID_PARAMS) {
			x->state = MC_CLI_TARGET_NEW;
			is_any = true;
		}
	}
	return is_any;
}

/* Room for other owners: forget those that have said no. */
static void compact(struct mc_cli_write *w)
{
	unsigned kept = 0;

	for (unsigned t = 0; t < w->ntargets; t++) {
		const struct mc_cli_target *x = &w->targets[t];

		if (x->state != MC_CLI_TARGET_FAILED || x->is_lost)
			w->targets[kept++] = *x;
	}
	w->ntargets = (uint8_t)kept;
}

/* Owners for the replicas that are missing. @return how many are to be asked */
static unsigned plan_one(struct mc_cli_op *op, struct mc_cli_write *w,
			 const struct mc_store_conf *conf, uint64_t until_ns, bool *wants_pause)
{
	struct mc_cli_owner *except[MC_CLI_TARGETS_MAX];
	unsigned have = mc_cli_write_count(w, goal(w)), fresh = 0;

	if (w->ntargets == MC_CLI_TARGETS_MAX)
		compact(w);
	for (unsigned t = 0; t < w->ntargets; t++)
		except[t] = w->targets[t].owner;
	while (have + fresh < w->wanted && w->ntargets < MC_CLI_TARGETS_MAX) {
		struct mc_cli_owner *o =
		    mc_cli_view_choose(op, w->info.slot_len, conf, except, w->ntargets);

		if (!o)
			break;
		except[w->ntargets] = o;
		w->targets[w->ntargets++] = (struct mc_cli_target){.owner = o};
		fresh++;
	}
	if (fresh > 0)
		return fresh;
	if (have > 0) { /* as many as can be */
		w->is_done = true;
		return 0;
	}
	*wants_pause = true;
	if (w->ntargets == 0) {
		if (mc_now_ns() > until_ns && !mc_cli_view_can_take(op->st, w->info.slot_len))
			w->status = MC_STORE_NO_AVAILABLE_HANDLE; /* larger than any pool */
		return 0;
	}
	if (again(w))
		return mc_cli_write_count(w, MC_CLI_TARGET_NEW);
	w->status = reason(w);
	return 0;
}

/* @return how many targets are to be asked */
static size_t plan(struct mc_cli_op *op, struct mc_cli_write *writes, size_t n,
		   const struct mc_store_conf *conf, uint64_t until_ns, bool *wants_pause)
{
	size_t count = 0;

	for (size_t i = 0; i < n; i++) {
		struct mc_cli_write *w = &writes[i];

		if (w->status < 0 || w->is_done)
			continue;
		if (mc_cli_write_count(w, goal(w)) >= w->wanted)
			w->is_done = true;
		else
			count += plan_one(op, w, conf, until_ns, wants_pause);
	}
	return count;
}

/* ---- asking ---- */

static struct mc_st_grant grant_of(const struct mc_cli_write *w)
{
	return (struct mc_st_grant){.gen = w->gen,
				    .len = w->len,
				    .key_len = w->key.len,
				    .tlv_len = w->tlv_len,
				    .key = w->key.bytes,
				    .tlv = w->tlv};
}

/* The payload behind a Put's record, counted as it is copied: what somebody changes meanwhile is
 * what the CRC says. @return the CRC */
static uint32_t payload_add(struct mc_wr *wr, const struct mc_cli_write *w)
{
	uint32_t crc = 0;

	mc_assert(w->len <= (size_t)(wr->end - wr->at)); /* room was made for it */
	for (uint32_t i = 0; i < w->nranges; i++) {
		crc = mc_crc32c_copy(crc, wr->at, w->ranges[i].addr, w->ranges[i].len);
		wr->at += w->ranges[i].len;
	}
	return crc;
}

static int ask_one(struct mc_cli_op *op, size_t first, struct mc_cli_write *w, uint32_t item,
		   struct mc_cli_owner *o)
{
	struct mc_st_grant g = grant_of(w);
	size_t len = sizeof(g) + g.key_len + g.tlv_len + (is_inline(w) ? (size_t)w->len : 0);
	struct mc_cli_call *c =
	    mc_cli_call_for(op, first, &o->end, is_inline(w) ? MC_ST_PUT : MC_ST_GRANT, len);
	struct mc_wr wr, head;

	if (!c || mc_cli_call_add(c, len, item, &wr) < 0)
		return -MC_E_NOMEM;
	head = wr;
	mc_st_grant_encode(&wr, &g, false);
	if (is_inline(w)) {
		g.crc = payload_add(&wr, w);
		mc_st_grant_encode(&head, &g, false); /* again, with it */
	}
	mc_cli_call_added(c, &wr);
	return 0;
}

static void granted(struct mc_cli_target *t, const struct mc_st_granted *g, bool is_sealed)
{
	mc_cli_owner_good(t->owner);
	t->addr = g->addr;
	t->incarnation = g->incarnation;
	t->is_lost = false;
	t->status = 0;
	t->state = is_sealed ? MC_CLI_TARGET_SEALED : MC_CLI_TARGET_GRANTED;
}

/* The payload in one piece; it is small. NULL: no memory. */
static const uint8_t *payload_of(struct mc_cli_op *op, const struct mc_cli_write *w)
{
	uint8_t *bytes;
	size_t at = 0;

	if (w->nranges == 1)
		return w->ranges[0].addr;
	bytes = mc_cli_alloc(op, 1, w->len);
	for (uint32_t i = 0; bytes && i < w->nranges; i++) {
		memcpy(bytes + at, w->ranges[i].addr, w->ranges[i].len);
		at += w->ranges[i].len;
	}
	return bytes;
}

/*
 * The process's own pool, without rpc while there is room at once. Else it is asked as the others
 * are, in one call for all: those that wait have an order, and this thread other owners to ask.
 * @return false: so it is
 */
static bool ask_own(struct mc_cli_op *op, const struct mc_cli_write *w, struct mc_cli_target *t)
{
	struct mc_st_grant g = grant_of(w);
	struct mc_st_granted ret;
	int32_t status;

	if (is_inline(w)) {
		g.payload = payload_of(op, w);
		status =
		    g.payload ? mc_owner_put(op->st->owner, &g, 0, &ret) : MC_STORE_INTERNAL_ERROR;
	} else {
		status = mc_owner_grant(op->st->owner, &g, 0, &ret);
	}
	if (status == MC_STORE_UNAVAILABLE_IN_CURRENT_STATUS)
		return false;
	if (status == 0)
		granted(t, &ret, is_inline(w));
	else
		target_fail(t, status, false);
	return true;
}

/* An owner says that nothing may be evicted as soon as it knows; else it waits for room for as long
 * as the call may last. */
static bool is_late(const struct mc_cli_call *c)
{
	return mc_time_after(c->end_ns, LATE_NS) >= c->rpc.deadline_ns;
}

static void answers(struct mc_cli_write *writes, struct mc_cli_call *c)
{
	struct mc_st_granted g = {0};
	struct mc_rd r;
	int rc = c->rc;

	if (rc == 0)
		rc = mc_cli_call_records(c, &r);
	for (uint32_t i = 0; i < c->n; i++) {
		struct mc_cli_write *w = &writes[c->items[i] / MC_CLI_TARGETS_MAX];
		struct mc_cli_target *t = &w->targets[c->items[i] % MC_CLI_TARGETS_MAX];

		if (rc == 0) {
			mc_st_granted_decode(&r, &g);
			if (r.is_bad)
				rc = -MC_E_PROTO;
		}
		if (rc < 0) {
			target_fail(t, mc_cli_code_rpc(rc), c->nsent > 0);
			t->was_sealed |= c->nsent > 0 && c->rpc.method == MC_ST_PUT;
		} else if (g.status != 0) {
			target_fail(t, g.status, false);
			t->is_waiting = is_late(c);
		} else {
			granted(t, &g, c->rpc.method == MC_ST_PUT);
		}
	}
	if (rc < 0 && !c->rpc.is_answered && c->n > 0)
		mc_cli_owner_bad(writes[c->items[0] / MC_CLI_TARGETS_MAX]
				     .targets[c->items[0] % MC_CLI_TARGETS_MAX]
				     .owner,
				 rc);
}

static void ask(struct mc_cli_op *op, struct mc_cli_write *writes, size_t n)
{
	size_t first = op->ncalls;

	for (size_t i = 0; i < n; i++)
		for (unsigned t = 0; t < writes[i].ntargets; t++) {
			struct mc_cli_target *x = &writes[i].targets[t];

			if (x->state != MC_CLI_TARGET_NEW)
				continue;
			x->state = MC_CLI_TARGET_ASKED;
			if (mc_cli_owner_is_own(x->owner) && ask_own(op, &writes[i], x))
				continue;
			if (ask_one(op, first, &writes[i], (uint32_t)(i * MC_CLI_TARGETS_MAX + t),
				    x->owner) < 0)
				target_fail(x, MC_STORE_INTERNAL_ERROR, false);
		}
	mc_cli_calls_run(op, first, mc_cli_attempt_ns(op));
	for (size_t i = first; i < op->ncalls; i++)
		answers(writes, op->calls[i]);
	op->ncalls = first;
}

/* ---- bytes ---- */

static int move_make(struct mc_cli_op *op, const struct mc_cli_write *w, struct mc_cli_target *t,
		     struct mc_cli_move *m)
{
	struct mc_iov *local = mc_cli_alloc(op, w->nranges + 1, sizeof(*local));

	if (!local)
		return -MC_E_NOMEM;
	for (uint32_t i = 0; i < w->nranges; i++)
		local[i] = (struct mc_iov){(uintptr_t)w->ranges[i].addr, w->ranges[i].len};
	local[w->nranges] = (struct mc_iov){t->addr + w->info.payload_off, w->len};
	t->tally = mc_cli_tally_new(op, &w->info, 0);
	*m = (struct mc_cli_move){.owner = t->owner,
				  .tally = t->tally,
				  .x = {.op = MC_WRITE,
					.nlocal = w->nranges,
					.nremote = 1,
					.local = local,
					.remote = &local[w->nranges]}};
	return 0;
}

static void written(struct mc_cli_target *t, int rc)
{
	t->state = MC_CLI_TARGET_WRITTEN;
	if (rc == 0)
		return;
	t->is_unfenced = rc == -MC_E_UNFENCED;
	target_fail(t, mc_cli_code_move(rc), true);
}

static void transfer(struct mc_cli_op *op, struct mc_cli_write *writes, size_t n)
{
	struct mc_cli_target **targets;
	struct mc_cli_move *moves;
	size_t count = 0, at = 0;

	for (size_t i = 0; i < n; i++)
		if (writes[i].ranges)
			count += mc_cli_write_count(&writes[i], MC_CLI_TARGET_GRANTED);
	if (count == 0)
		return;
	moves = mc_cli_alloc(op, count, sizeof(*moves));
	targets = mc_cli_alloc(op, count, sizeof(struct mc_cli_target *));
	for (size_t i = 0; i < n; i++)
		for (unsigned t = 0; t < writes[i].ntargets; t++) {
			struct mc_cli_target *x = &writes[i].targets[t];

			if (x->state != MC_CLI_TARGET_GRANTED || !writes[i].ranges)
				continue;
			if (!moves || !targets || move_make(op, &writes[i], x, &moves[at]) < 0)
				target_fail(x, MC_STORE_INTERNAL_ERROR, true);
			else
				targets[at++] = x;
		}
	if (at > 0)
		mc_cli_moves_run(op, moves, at, op->deadline_ns);
	for (size_t i = 0; i < at; i++)
		written(targets[i], moves[i].rc);
}

/* ---- all of it ---- */

/* Its owners said neither yes nor no. */
static bool is_late_only(const struct mc_cli_write *w)
{
	for (unsigned t = 0; t < w->ntargets; t++)
		if (w->targets[t].status != MC_STORE_UNAVAILABLE_IN_CURRENT_STATUS)
			return false;
	return true;
}

/* @param none  why those without a target have none; and, when the master is away, those whose
 * owners had no room in time: it would have made some */
static void give_up(struct mc_cli_write *writes, size_t n, int none)
{
	for (size_t i = 0; i < n; i++) {
		struct mc_cli_write *w = &writes[i];

		if (w->status < 0 || w->is_done)
			continue;
		if (mc_cli_write_count(w, goal(w)) > 0)
			w->is_done = true;
		else
			w->status = w->ntargets > 0 && !is_late_only(w) ? reason(w) : none;
	}
}

void mc_cli_targets_run(struct mc_cli_op *op, struct mc_cli_write *writes, size_t n,
			const struct mc_store_conf *conf)
{
	int rc = mc_cli_view_refresh(op, mc_cli_view_knows(op->st, conf) ? MC_NS_PER_S : 0);
	uint64_t until_ns = mc_time_after(mc_now_ns(), NO_OWNER_NS), asked_ns;
	bool wants_pause;
	size_t asked;

	for (;;) {
		wants_pause = false;
		asked = plan(op, writes, n, conf, until_ns, &wants_pause);
		if (asked == 0 && !wants_pause)
			return;
		if (wants_pause) {
			if (!mc_cli_backoff(op))
				break;
			asked_ns = mc_now_ns();
			rc = mc_cli_view_refresh(op, 0);
			/* A master that is away says nothing about owners, nor does one that has
			 * just come: its answer's time is not time for owners to come. */
			if (rc == 0 && mc_cli_view_is_recovering(op->st))
				rc = -MC_E_TIMEDOUT;
			if (rc < 0)
				until_ns = mc_time_after(mc_now_ns(), NO_OWNER_NS);
			else
				until_ns = mc_time_after(until_ns, mc_now_ns() - asked_ns);
			if (rc == 0 && !mc_cli_view_can_take(op->st, 0) && mc_now_ns() > until_ns)
				break;
		}
		if (asked == 0)
			continue;
		ask(op, writes, n);
		transfer(op, writes, n);
		mc_cli_seal(op, writes, n);
		if (mc_cli_is_over(op))
			break;
	}
	give_up(writes, n, rc < 0 ? mc_cli_code_rpc(rc) : MC_STORE_NO_AVAILABLE_HANDLE);
}
