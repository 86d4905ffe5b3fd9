/*
 * lookup.c: where objects are, by the master's word. A master that recovers does not know yet what
 * it has; it is asked again until the deadline.
 */
#include "client/priv.h"

static void fail(struct mc_cli_look *look, int status)
{
	look->status = status;
	look->is_wanted = false;
}

/* @param asked_ns  before the master was asked: its lease begins no earlier */
static void place_set(struct mc_cli_op *op, struct mc_cli_look *look,
		      const struct mc_st_object *obj, uint64_t asked_ns)
{
	struct mc_cli_place *p = &look->place;

	*p =
	    (struct mc_cli_place){.gen = obj->gen,
				  .len = obj->len,
				  .until_ns = mc_time_after(asked_ns, obj->lease_ms * MC_NS_PER_MS),
				  .type = obj->type,
				  .tlv_len = obj->tlv_len,
				  .nreplicas = obj->nreplicas,
				  .is_kept = obj->flags & MC_ST_OBJECT_KEEP};
	memcpy(p->replicas, obj->replicas, obj->nreplicas * sizeof(p->replicas[0]));
	look->status = 0;
	look->is_wanted = false;
	look->is_fresh = true;
	if (obj->lease_ms > 0)
		mc_cli_cache_put(op->st->cache, &look->key, p);
}

/* All that are wanted, in calls. @return 0; -MC_E_NOMEM */
static int ask(struct mc_cli_op *op, struct mc_cli_look *const *looks, size_t n)
{
	struct mc_cli_call *c = NULL;

	for (size_t i = 0; i < n; i++) {
		struct mc_st_key key = {.len = looks[i]->key.len, .bytes = looks[i]->key.bytes};
		size_t len = sizeof(uint16_t) + key.len;
		struct mc_wr w;

		if (!looks[i]->is_wanted)
			continue;
		if (!c || !mc_cli_call_has_room(c, len))
			c = mc_cli_call_open(op, &op->st->master, MC_ST_LOOKUP);
		if (!c || mc_cli_call_add(c, len, (uint32_t)i, &w) < 0)
			return -MC_E_NOMEM;
		mc_st_key_encode(&w, &key);
		mc_cli_call_added(c, &w);
	}
	return 0;
}

/* @return the master is not ready for some */
static bool take(struct mc_cli_op *op, struct mc_cli_look *const *looks, struct mc_cli_call *c,
		 uint64_t asked_ns)
{
	struct mc_st_object obj = {0};
	bool is_early = false;
	struct mc_rd r;
	int rc = c->rc;

	if (rc == 0)
		rc = mc_cli_call_records(c, &r);
	for (uint32_t i = 0; i < c->n; i++) {
		struct mc_cli_look *look = looks[c->items[i]];

		if (rc == 0) {
			mc_st_object_decode(&r, &obj);
			if (r.is_bad || obj.len == 0 || obj.len > MC_SLOT_PAYLOAD_MAX)
				rc = obj.status != 0 && !r.is_bad ? 0 : -MC_E_PROTO;
		}
		if (rc < 0)
			fail(look, mc_cli_code_rpc(rc));
		else if (obj.status == MC_STORE_UNAVAILABLE_IN_CURRENT_STATUS)
			is_early = true; /* still wanted */
		else if (obj.status != 0)
			fail(look, obj.status);
		else
			place_set(op, look, &obj, asked_ns);
	}
	return is_early;
}

void mc_cli_lookup(struct mc_cli_op *op, struct mc_cli_look *const *looks, size_t n)
{
	size_t first = op->ncalls;
	uint64_t asked_ns;
	bool is_early;
	int rc;

	do {
		asked_ns = mc_now_ns();
		rc = ask(op, looks, n);
		is_early = false;
		if (rc == 0)
			mc_cli_calls_master(op, first);
		for (size_t i = first; rc == 0 && i < op->ncalls; i++)
			is_early |= take(op, looks, op->calls[i], asked_ns);
		op->ncalls = first;
	} while (is_early && mc_cli_backoff(op));
	for (size_t i = 0; i < n; i++)
		if (looks[i]->is_wanted)
			fail(looks[i], rc < 0 ? MC_STORE_INTERNAL_ERROR : MC_STORE_RPC_TIMEOUT);
}
