/*
 * keys.c: what is there: exist, lookup, bad.
 */
#include "master/priv.h"

#define KEY_FIX 2u     /* bytes of a key's record without the key */
#define OBJECT_FIX 32u /* of a lookup's answer without replicas */
#define REPLICA_LEN 24u

int mc_mst_keys_decode(struct mc_master *m, struct mc_rd *r)
{
	int n = mc_st_count_decode(r);
	struct mc_st_key *keys;

	if (n < 0)
		return n;
	if ((size_t)n > mc_rd_left(r) / (KEY_FIX + 1))
		return -MC_E_PROTO;
	keys = mc_mst_keys(m, (uint32_t)n);
	if (!keys)
		return -MC_E_NOMEM;
	for (int i = 0; i < n; i++)
		mc_st_key_decode(r, &keys[i]);
	return mc_rd_is_done(r) ? n : -MC_E_PROTO;
}

/* An index call's outcome as a status of the wire. */
static int32_t status_of(int rc)
{
	return rc == MC_INDEX_WAIT ? MC_STORE_UNAVAILABLE_IN_CURRENT_STATUS : rc;
}

static void fail(struct mc_rpc_req *req, int rc)
{
	(void)mc_rpc_reply(req, rc, NULL, 0, NULL, 0);
}

static void count(struct mc_mst_method *c, uint32_t n, uint32_t failed)
{
	mc_counter_add(&c->items, n);
	if (failed)
		mc_counter_add(&c->failed_items, failed);
}

/* Keys of a whole message, and the request at the index begun. @return how many; 0: answered */
static uint32_t begin(struct mc_master *m, struct mc_rpc_req *req, const struct mc_rpc_msg *msg,
		      struct mc_index_request *q)
{
	struct mc_rd r = mc_rd_make(msg->data, msg->len);
	int n = mc_mst_keys_decode(m, &r), rc = n;

	if (n > 0)
		rc = mc_index_begin(m->index, q, mc_mst_now_ms(m), m->keys, (uint32_t)n);
	if (rc < 0 || n == 0) {
		uint8_t none[4] = {0};

		(void)mc_rpc_reply(req, rc < 0 ? rc : 0, none, rc < 0 ? 0 : 4, NULL, 0);
		return 0;
	}
	return (uint32_t)n;
}

bool mc_mst_exist(struct mc_master *m, struct mc_rpc_req *req, const struct mc_rpc_msg *msg)
{
	struct mc_index_request q;
	uint32_t n = begin(m, req, msg, &q), failed = 0, unknown = 0;
	size_t len = 4 + (size_t)n * 4;
	struct mc_wr w;
	uint8_t *buf;

	if (n == 0)
		return true;
	buf = mc_mst_buf(m, len);
	if (!buf) {
		mc_index_end(&q);
		fail(req, -MC_E_NOMEM);
		return true;
	}
	w = mc_wr_make(buf, len);
	mc_wr_u32(&w, n);
	for (uint32_t i = 0; i < n; i++) {
		int32_t status = status_of(mc_index_exist(&q, i, 0));

		failed += status != 0;
		unknown += status != 0 && status != MC_STORE_OBJECT_NOT_FOUND;
		mc_wr_u32(&w, (uint32_t)status);
	}
	mc_index_end(&q);
	mc_tally_call(&m->tally, MC_TALLY_EXIST, n, unknown);
	count(mc_mst_method(m, MC_ST_EXIST), n, failed);
	(void)mc_rpc_reply(req, 0, buf, mc_wr_len(&w), NULL, 0);
	return true;
}

/* Lives of owners, so that a reader knows whose seals it reads. A place at one that is not heard is
 * not to be remembered: it could not be told of a removal. */
static void lives_fill(struct mc_master *m, struct mc_st_object *o)
{
	for (unsigned i = 0; i < o->nreplicas; i++) {
		const struct mc_mst_owner *owner = mc_mst_owner_find(m, o->replicas[i].owner);

		if (owner && o->replicas[i].kind == MC_ST_MEMORY)
			o->replicas[i].life = (uint32_t)owner->incarnation;
		if (!owner || (owner->state != MC_MST_OK && owner->state != MC_MST_ANNOUNCE))
			o->lease_ms = 0;
	}
}

bool mc_mst_lookup(struct mc_master *m, struct mc_rpc_req *req, const struct mc_rpc_msg *msg)
{
	struct mc_tally_gets gets = {0};
	struct mc_index_request q;
	uint32_t n = begin(m, req, msg, &q), failed = 0;
	size_t len = 4;
	struct mc_wr w;

	if (n == 0)
		return true;
	for (uint32_t i = 0; i < n; i++) {
		size_t most = OBJECT_FIX + MC_ST_REPLICAS_MAX * REPLICA_LEN;
		struct mc_st_object o = {0};
		int rc;

		if (!mc_mst_buf(m, len + most)) {
			mc_index_end(&q);
			fail(req, -MC_E_NOMEM);
			return true;
		}
		rc = mc_index_lookup(&q, i, 0, &o);
		o.status = status_of(rc);
		failed += o.status != 0;
		mc_tally_get(&gets, &o);
		lives_fill(m, &o);
		if (rc == 0)
			mc_mst_promote_hit(m, q.hashes[i], &o);
		w = mc_wr_make(m->buf + len, most);
		mc_st_object_encode(&w, &o);
		mc_assert(!w.is_bad);
		len += mc_wr_len(&w);
	}
	mc_index_end(&q);
	w = mc_wr_make(m->buf, 4);
	mc_wr_u32(&w, n);
	count(mc_mst_method(m, MC_ST_LOOKUP), n, failed);
	mc_tally_call(&m->tally, MC_TALLY_GET, n, failed);
	mc_tally_gets(&m->tally, &gets);
	(void)mc_rpc_reply(req, 0, m->buf, len, NULL, 0);
	return true;
}

/* @return status */
static int32_t bad_one(struct mc_master *m, const struct mc_st_bad *b)
{
	const struct mc_st_key key = {b->key_len, b->key};
	const struct mc_mst_owner *o = mc_mst_owner_find(m, b->replica.owner);
	struct mc_index_request q;
	int rc;

	/* Said of another life of the owner: that replica is gone anyway. */
	if (b->replica.kind == MC_ST_MEMORY && b->replica.life && o &&
	    b->replica.life != (uint32_t)o->incarnation)
		return MC_STORE_REPLICA_NOT_FOUND;
	if (mc_index_begin(m->index, &q, mc_mst_now_ms(m), &key, 1) < 0)
		return MC_STORE_INTERNAL_ERROR;
	rc = mc_index_drop(&q, 0, b->gen, &b->replica, MC_GONE_DAMAGED, &m->frees);
	mc_mst_promote_bad(m, b->gen);
	mc_index_end(&q);
	return rc;
}

bool mc_mst_bad(struct mc_master *m, struct mc_rpc_req *req, const struct mc_rpc_msg *msg)
{
	struct mc_rd r = mc_rd_make(msg->data, msg->len);
	int n = mc_st_count_decode(&r);
	uint32_t failed = 0;
	struct mc_st_bad b;
	struct mc_wr w;
	uint8_t *buf;

	if (n >= 0 && (size_t)n > mc_rd_left(&r))
		n = -MC_E_PROTO;
	buf = n < 0 ? NULL : mc_mst_buf(m, 4 + (size_t)n * 4);
	if (!buf) {
		fail(req, n < 0 ? n : -MC_E_NOMEM);
		return true;
	}
	w = mc_wr_make(buf, 4 + (size_t)n * 4);
	mc_wr_u32(&w, (uint32_t)n);
	for (int i = 0; i < n; i++) {
		int32_t status;

		mc_st_bad_decode(&r, &b);
		if (r.is_bad)
			break;
		status = bad_one(m, &b);
		failed += status != 0;
		mc_wr_u32(&w, (uint32_t)status);
	}
	count(mc_mst_method(m, MC_ST_BAD), (uint32_t)n, failed);
	if (mc_rd_is_done(&r))
		(void)mc_rpc_reply(req, 0, buf, mc_wr_len(&w), NULL, 0);
	else
		fail(req, -MC_E_PROTO);
	mc_mst_frees_send(m);
	return true;
}
