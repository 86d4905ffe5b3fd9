/*
 * change.c: commit and remove. What cannot be answered before owners have acknowledged frees
 * becomes an operation: it keeps the call, its message and the answers so far; each record that
 * waits runs again, or is done, when nothing is pending of its key any more.
 *
 * A put that comes too late waits, too: once it is told so its bytes are gone, and no later master
 * can take them for the object's.
 *
 * A slot that nobody committed is freed when its owner asks (Check), and its generation is
 * remembered, as that of an object that was removed: a commit that comes even later, or again, must
 * not publish bytes that are gone.
 */
#include <string.h>

#include "base/hash.h"
#include "base/log.h"
#include "master/priv.h"

struct mc_mst_op {
	struct mc_list link; /* mc_master.ops */
	struct mc_rpc_req *req;
	struct mc_mst_method *method;
	uint64_t start_ns;
	uint32_t n, nleft; /* records; those that wait */
	bool is_commit;
	uint8_t *msg;		      /* commit: a copy, the records of those that wait are in it */
	struct mc_st_committed *done; /* [n] */
	size_t *at;		      /* [n], commit: where records begin */
	struct mc_mst_wait waits[];   /* [n] */
};

/* ---- generations that will never be committed ---- */

static uint64_t *killed_at(const struct mc_master *m, uint64_t gen)
{
	return &m->killed[mc_hash64(&gen, sizeof(gen), 0) % MC_MST_KILLED];
}

void mc_mst_kill(struct mc_master *m, uint64_t gen)
{
	*killed_at(m, gen) = gen;
}

bool mc_mst_is_killed(const struct mc_master *m, uint64_t gen)
{
	return *killed_at(m, gen) == gen;
}

/* ---- one record ---- */

/*
 * Owners that are away, or have begun another life, do not have it any more, and come out of it.
 * @param ret_may_come  one that is left out, or has not told all it has, may announce it
 * @return some have it
 */
static bool replicas_check(struct mc_master *m, struct mc_st_commit *c, bool *ret_may_come)
{
	uint8_t n = 0;

	*ret_may_come = false;
	for (unsigned i = 0; i < c->nreplicas; i++) {
		const struct mc_st_replica *r = &c->replicas[i];
		const struct mc_mst_owner *o = mc_mst_owner_find(m, r->owner);

		if (!o ||
		    (r->kind == MC_ST_MEMORY && r->life && r->life != (uint32_t)o->incarnation))
			continue;
		*ret_may_come |= !o->is_announced;
		if (o->is_joined)
			c->replicas[n++] = *r;
	}
	c->nreplicas = n;
	return n > 0;
}

static bool is_at(const struct mc_st_replica *a, const struct mc_st_replica *b)
{
	return a->owner == b->owner && a->kind == b->kind && a->addr == b->addr;
}

static bool has_at(const struct mc_st_object *object, const struct mc_st_replica *r)
{
	for (unsigned i = 0; i < object->nreplicas; i++) {
		if (is_at(&object->replicas[i], r))
			return true;
	}
	return false;
}

/* A slot of it that is no replica: it is freed, or a later master would find it. */
static void left_out(struct mc_master *m, uint64_t key_hash, const struct mc_st_commit *c,
		     const struct mc_st_replica *r)
{
	const struct mc_index_free f = {.owner = r->owner,
					.addr = r->addr,
					.gen = c->gen,
					.key_hash = key_hash,
					.len = c->len,
					.kind = r->kind};

	if (!mc_mst_owner_find(m, r->owner)->is_announced)
		return; /* it will tell, and have it taken in */
	if (mc_index_free(m->index, &f, &m->frees) < 0)
		mc_log_error("no memory for a slot that is no replica", "owner=%016llx",
			     (unsigned long long)r->owner);
}

/*
 * A commit that is repeated, to this master or to its successor, publishes nothing that is not
 * there already: bytes that were freed meanwhile may be another's. What its owner still has it
 * announces.
 * @param is_again  those left out were told
 */
static void keep_published(struct mc_master *m, const struct mc_index_view *there,
			   struct mc_st_commit *c, bool is_again)
{
	uint8_t n = 0;

	for (unsigned i = 0; i < c->nreplicas; i++) {
		const struct mc_st_replica r = c->replicas[i];

		if (has_at(&there->object, &r))
			c->replicas[n++] = r;
		else if (!is_again)
			left_out(m, there->key_hash, c, &r);
	}
	c->nreplicas = n;
}

/* Of an earlier life of the master, or from before an owner went away. */
static bool is_below_floor(const struct mc_master *m, const struct mc_st_commit *c)
{
	return c->gen < m->gen_floor && c->gen >> MC_MST_GEN_BITS != 0; /* 0: of no master */
}

/*
 * A generation from before the floor that would be published anew: of an earlier life of the
 * master, which may have had its slots freed, or from before an owner went away, which may bring
 * back what is older, though its generation is higher. Its writer has its slots renamed by their
 * owners, and so learns which are there.
 */
static bool is_stale(const struct mc_master *m, const struct mc_st_commit *c,
		     const struct mc_index_view *there)
{
	return is_below_floor(m, c) && (!there || c->flags & MC_ST_COMMIT_UPSERT);
}

/*
 * An upsert of an earlier life that was only announced: what it replaces may be with an owner that
 * has not come yet, and of a higher generation.
 */
static bool is_late_upsert(const struct mc_master *m, const struct mc_st_commit *c,
			   const struct mc_index_view *there)
{
	return !there->is_committed && is_stale(m, c, there);
}

/* It is acknowledged. */
static void committed(struct mc_master *m, const struct mc_st_commit *c)
{
	for (unsigned i = 0; i < c->nreplicas; i++)
		if (c->replicas[i].kind == MC_ST_MEMORY)
			mc_mst_mark(mc_mst_owner_find(m, c->replicas[i].owner), c->replicas[i].addr,
				    c->gen);
	mc_hist_add(&m->tally.value_bytes, c->len);
}

/* Owners that were asked for a slot and gave no answer come out of it, to the end of `left`. */
static uint32_t left_take(struct mc_st_commit *c, uint64_t left[MC_ST_REPLICAS_MAX])
{
	uint32_t nleft = 0;
	uint8_t n = 0;

	for (unsigned i = 0; i < c->nreplicas; i++) {
		if (c->replicas[i].addr == MC_ST_LEFT_ADDR)
			left[nleft++] = c->replicas[i].owner;
		else
			c->replicas[n++] = c->replicas[i];
	}
	c->nreplicas = n;
	return nleft;
}

/* @param is_again  it has waited for its key. @return true: done; false: it waits */
static bool commit_places(struct mc_master *m, struct mc_index_request *q, uint32_t i,
			  struct mc_st_commit *c, bool is_again, struct mc_st_committed *ret)
{
	struct mc_index_view view;
	bool may_come;
	int rc;

	*ret = (struct mc_st_committed){0};
	if (mc_mst_is_killed(m, c->gen)) {
		ret->status = MC_STORE_REPLICA_IS_GONE;
		return true;
	}
	if (!replicas_check(m, c, &may_come)) {
		/* Its owner may yet announce it. Once it is refused nobody shall have it, unless it
		 * may have been published before its owner went. */
		may_come = m->is_recovering || (may_come && is_below_floor(m, c));
		ret->status =
		    may_come ? MC_STORE_UNAVAILABLE_IN_CURRENT_STATUS : MC_STORE_REPLICA_IS_GONE;
		if (!may_come)
			mc_mst_kill(m, c->gen);
		return true;
	}
	/* Who was first is known when all owners have announced. */
	rc = mc_index_view(q, i, &view);
	if (rc == MC_STORE_UNAVAILABLE_IN_CURRENT_STATUS) {
		ret->status = rc;
		return true;
	}
	if (rc == 0 && view.object.gen == c->gen && !is_late_upsert(m, c, &view)) {
		keep_published(m, &view, c, is_again);
		if (c->nreplicas == 0) { /* they have moved */
			ret->gen = c->gen;
			return !mc_index_is_pending(m->index, q->hashes[i]);
		}
	} else if (is_stale(m, c, rc == 0 ? &view : NULL)) {
		/* An owner that announces it late renames it, or has. What is published already
		 * had what it replaces freed. */
		if (!may_come && (rc != 0 || view.object.gen != c->gen))
			mc_mst_kill(m, c->gen);
		ret->status = MC_STORE_INVALID_VERSION;
		return true;
	}
	rc = mc_index_commit(q, i, c, &m->frees, &ret->gen);
	if (rc == MC_INDEX_WAIT)
		return false;
	if (rc == 0)
		committed(m, c);
	/* An owner that is away is not told to free it; one that announces it late renames it. */
	if (rc == MC_STORE_OBJECT_ALREADY_EXISTS || rc == MC_STORE_INVALID_VERSION)
		mc_mst_kill(m, c->gen);
	ret->status = rc == MC_STORE_INVALID_REPLICA ? MC_STORE_REPLICA_IS_GONE : rc;
	return rc != MC_STORE_OBJECT_ALREADY_EXISTS || !mc_index_is_pending(m->index, q->hashes[i]);
}

/*
 * What may be left of it at owners that its writer did not hear is freed, or a later master would
 * find it there when the object has gone. Who removes or replaces the object waits for that.
 */
static bool commit_one(struct mc_master *m, struct mc_index_request *q, uint32_t i,
		       struct mc_st_commit *c, struct mc_st_committed *ret)
{
	uint64_t left[MC_ST_REPLICAS_MAX];
	uint32_t nleft = left_take(c, left);
	bool was_in = ret->gen == c->gen; /* it waits, and they were told */
	bool is_done = commit_places(m, q, i, c, was_in, ret);
	bool is_in = is_done || ret->gen == c->gen;

	if ((ret->status == 0 && is_in && !was_in) || ret->status == MC_STORE_OBJECT_ALREADY_EXISTS)
		mc_index_left(q, i, c->gen, left, nleft, &m->frees);
	return is_done;
}

static void record_decode(const uint8_t *msg, size_t len, size_t at, struct mc_st_commit *c)
{
	struct mc_rd r = mc_rd_make(msg + at, len - at);

	mc_st_commit_decode(&r, c); /* was checked before */
}

/* ---- operations ---- */

static void op_free(struct mc_mst_op *op)
{
	mc_list_del(&op->link);
	mc_free(op->msg);
	mc_free(op->done);
	mc_free(op->at);
	mc_free(op);
}

static void answer(struct mc_master *m, struct mc_rpc_req *req, struct mc_mst_method *method,
		   const struct mc_st_committed *done, uint32_t n, bool is_commit)
{
	size_t len = 4 + (size_t)n * (is_commit ? 12 : 4);
	uint8_t *buf = mc_mst_buf(m, len);
	struct mc_wr w = mc_wr_make(buf, buf ? len : 0);
	uint32_t failed = 0;

	mc_wr_u32(&w, n);
	for (uint32_t i = 0; i < n; i++) {
		failed += done[i].status != 0;
		if (is_commit)
			mc_st_committed_encode(&w, &done[i]);
		else
			mc_wr_u32(&w, (uint32_t)done[i].status);
	}
	mc_counter_add(&method->items, n);
	if (failed)
		mc_counter_add(&method->failed_items, failed);
	if (is_commit)
		mc_tally_call(&m->tally, MC_TALLY_PUT_END, n, failed);
	else
		mc_tally_calls(&m->tally, MC_TALLY_REMOVE, n, failed);
	(void)mc_rpc_reply(req, w.is_bad ? -MC_E_NOMEM : 0, buf, mc_wr_len(&w), NULL, 0);
}

static void op_done(struct mc_master *m, struct mc_mst_op *op)
{
	answer(m, op->req, op->method, op->done, op->n, op->is_commit);
	mc_hist_add(&op->method->latency, mc_clock_now(m->env.clk) - op->start_ns);
	op_free(op);
}

void mc_mst_ops_drop(struct mc_master *m)
{
	struct mc_mst_op *op;

	mc_list_each (op, &m->ops, link) {
		(void)mc_rpc_reply(op->req, -MC_E_CLOSED, NULL, 0, NULL, 0);
		op_free(op);
	}
}

/* It was committed, and went again while its answer waited: its bytes are gone, too. */
static bool is_over(struct mc_index_request *q, uint64_t gen, const struct mc_st_committed *done)
{
	struct mc_index_view view;

	return done->status == 0 && done->gen == gen &&
	       (mc_index_view(q, 0, &view) != 0 || view.object.gen != gen);
}

/* Commit the record again. @return true: done */
static bool op_retry(struct mc_master *m, struct mc_mst_op *op, uint32_t i)
{
	struct mc_index_request q;
	struct mc_st_commit c;
	struct mc_st_key key;
	bool is_done;

	if (!op->is_commit || op->done[i].status == MC_STORE_OBJECT_ALREADY_EXISTS)
		return true; /* it only waited for the frees */
	record_decode(op->msg, op->at[op->n], op->at[i], &c);
	key = (struct mc_st_key){c.key_len, c.key};
	if (mc_index_begin(m->index, &q, mc_mst_now_ms(m), &key, 1) < 0) {
		op->done[i].status = MC_STORE_INTERNAL_ERROR;
		return true;
	}
	is_done = is_over(&q, c.gen, &op->done[i]) || commit_one(m, &q, 0, &c, &op->done[i]);
	mc_index_end(&q);
	return is_done;
}

static void op_wake(struct mc_master *m, struct mc_mst_wait *w)
{
	struct mc_mst_op *op = w->owner;

	if (!op_retry(m, op, w->i)) {
		mc_mst_wait(m, w);
		return;
	}
	if (--op->nleft == 0)
		op_done(m, op);
}

/* The call goes on without its message. NULL: out of memory. */
static struct mc_mst_op *op_new(struct mc_master *m, struct mc_rpc_req *req, uint16_t method,
				const struct mc_st_committed *done, uint32_t n)
{
	struct mc_mst_op *op = mc_calloc(1, sizeof(*op) + n * sizeof(op->waits[0]));

	if (!op)
		return NULL;
	mc_list_init(&op->link);
	op->done = mc_calloc(n, sizeof(*op->done));
	if (!op->done) {
		op_free(op);
		return NULL;
	}
	memcpy(op->done, done, n * sizeof(*done));
	op->n = n;
	op->req = req;
	op->method = mc_mst_method(m, method);
	op->start_ns = mc_clock_now(m->env.clk);
	mc_list_push_back(&m->ops, &op->link);
	return op;
}

static void op_wait(struct mc_master *m, struct mc_mst_op *op, uint32_t i, uint64_t key_hash)
{
	op->waits[i] =
	    (struct mc_mst_wait){.key_hash = key_hash, .wake = op_wake, .owner = op, .i = i};
	op->nleft++;
	mc_mst_wait(m, &op->waits[i]);
}

static void fail(struct mc_rpc_req *req, int rc)
{
	(void)mc_rpc_reply(req, rc, NULL, 0, NULL, 0);
}

/* ---- commit ---- */

struct commit_row {
	size_t at;
	struct mc_st_committed done;
	bool is_waiting;
};

/* Check the whole message. Keys go to m->keys, the rest to m->rows. @return how many; < 0 */
static int commits_decode(struct mc_master *m, const struct mc_rpc_msg *msg)
{
	struct mc_rd r = mc_rd_make(msg->data, msg->len);
	int n = mc_st_count_decode(&r);
	struct commit_row *rows;
	struct mc_st_commit c;

	if (n < 0)
		return n;
	if ((size_t)n > mc_rd_left(&r) / 48) /* a record has more */
		return -MC_E_PROTO;
	rows = mc_mst_rows(m, (size_t)n + 1, sizeof(*rows));
	if (!rows || !mc_mst_keys(m, (uint32_t)n))
		return -MC_E_NOMEM;
	for (int i = 0; i < n; i++) {
		rows[i] = (struct commit_row){.at = msg->len - mc_rd_left(&r)};
		mc_st_commit_decode(&r, &c);
		if (c.gen == 0)
			r.is_bad = true;
		m->keys[i] = (struct mc_st_key){c.key_len, c.key};
	}
	return mc_rd_is_done(&r) ? n : -MC_E_PROTO;
}

/* Some wait: keep what is needed. @return false: out of memory */
static bool commit_defer(struct mc_master *m, struct mc_rpc_req *req, const struct mc_rpc_msg *msg,
			 const struct mc_st_committed *done, uint32_t n)
{
	const struct commit_row *rows = (const struct commit_row *)m->rows;
	struct mc_mst_op *op = op_new(m, req, MC_ST_COMMIT, done, n);

	if (!op)
		return false;
	op->is_commit = true;
	op->msg = mc_calloc(1, msg->len);
	op->at = mc_calloc((size_t)n + 1, sizeof(*op->at));
	if (!op->msg || !op->at) {
		op_free(op);
		return false;
	}
	memcpy(op->msg, msg->data, msg->len);
	op->at[n] = msg->len;
	for (uint32_t i = 0; i < n; i++) {
		op->at[i] = rows[i].at;
		if (rows[i].is_waiting)
			op_wait(m, op, i, mc_hash64(m->keys[i].bytes, m->keys[i].len, 0));
	}
	return true;
}

bool mc_mst_commit(struct mc_master *m, struct mc_rpc_req *req, const struct mc_rpc_msg *msg)
{
	int n = commits_decode(m, msg), rc = n;
	struct commit_row *rows = (struct commit_row *)m->rows;
	struct mc_st_committed *done = NULL;
	struct mc_index_request q;
	struct mc_st_commit c;
	bool is_answered = true, has_waits = false;

	if (n > 0)
		rc = mc_index_begin(m->index, &q, mc_mst_now_ms(m), m->keys, (uint32_t)n);
	if (rc < 0) {
		fail(req, rc);
		return true;
	}
	done = mc_calloc((size_t)n + 1, sizeof(*done));
	for (uint32_t i = 0; done && i < (uint32_t)n; i++) {
		record_decode(msg->data, msg->len, rows[i].at, &c);
		rows[i].is_waiting = !commit_one(m, &q, i, &c, &done[i]);
		has_waits |= rows[i].is_waiting;
	}
	if (n > 0)
		mc_index_end(&q);
	if (done && has_waits)
		is_answered = !commit_defer(m, req, msg, done, (uint32_t)n);
	if (is_answered && (!done || has_waits))
		fail(req, -MC_E_NOMEM); /* asked again it finds what it did */
	else if (is_answered)
		answer(m, req, mc_mst_method(m, MC_ST_COMMIT), done, (uint32_t)n, true);
	mc_free(done);
	mc_mst_frees_send(m);
	return is_answered;
}

/* ---- remove ---- */

/* Keys are removed; rows say who waits. @return some do */
static bool remove_all(struct mc_master *m, struct mc_index_request *q, uint32_t n, unsigned flags,
		       struct mc_st_committed *done)
{
	bool has_waits = false;

	for (uint32_t i = 0; i < n; i++) {
		done[i] =
		    (struct mc_st_committed){.status = mc_index_remove(q, i, flags, &m->frees)};
		/* gen is not told by a remove: here it marks those that wait. */
		done[i].gen = done[i].status == 0 && mc_index_is_pending(m->index, q->hashes[i]);
		has_waits |= done[i].gen != 0;
	}
	return has_waits;
}

bool mc_mst_remove(struct mc_master *m, struct mc_rpc_req *req, const struct mc_rpc_msg *msg)
{
	struct mc_rd r = mc_rd_make(msg->data, msg->len);
	uint32_t flags = mc_rd_u32(&r);
	int n = mc_mst_keys_decode(m, &r), rc = n;
	struct mc_st_committed *done;
	struct mc_index_request q;
	struct mc_mst_op *op = NULL;
	bool has_waits = false;

	done = n < 0 ? NULL : mc_mst_rows(m, (size_t)n + 1, sizeof(*done));
	if (n >= 0 && !done)
		rc = -MC_E_NOMEM;
	if (rc > 0)
		rc = mc_index_begin(m->index, &q, mc_mst_now_ms(m), m->keys, (uint32_t)n);
	if (rc < 0) {
		fail(req, rc);
		return true;
	}
	if (n > 0) {
		has_waits = remove_all(m, &q, (uint32_t)n,
				       flags & MC_ST_REMOVE_FORCE ? MC_INDEX_FORCE : 0, done);
		mc_index_end(&q);
	}
	if (has_waits)
		op = op_new(m, req, MC_ST_REMOVE, done, (uint32_t)n);
	for (uint32_t i = 0; op && i < (uint32_t)n; i++) {
		if (done[i].gen)
			op_wait(m, op, i, mc_hash64(m->keys[i].bytes, m->keys[i].len, 0));
	}
	if (has_waits && !op)
		fail(req, -MC_E_NOMEM);
	else if (!op)
		answer(m, req, mc_mst_method(m, MC_ST_REMOVE), done, (uint32_t)n, false);
	mc_mst_frees_send(m);
	return op == NULL;
}
