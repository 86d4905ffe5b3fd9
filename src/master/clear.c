/*
 * clear.c: replicas of one segment that a client wants freed.
 */
#include <string.h>

#include "master/priv.h"

/* @return 0 or MC_STORE_* */
static int32_t clear_one(struct mc_master *m, const char *segment, struct mc_index_request *q,
			 uint32_t i)
{
	struct mc_index_view v;
	uint32_t here = 0;
	int32_t status = mc_index_view(q, i, &v);

	if (status != 0)
		return status;
	if (v.object.lease_ms > 0)
		return MC_STORE_OBJECT_HAS_LEASE;
	for (uint32_t r = 0; r < v.object.nreplicas; r++) {
		const struct mc_mst_owner *o = mc_mst_owner_find(m, v.object.replicas[r].owner);

		if (o && strcmp(o->segment, segment) == 0)
			v.object.replicas[here++] = v.object.replicas[r];
	}
	if (here == 0)
		return MC_STORE_REPLICA_NOT_FOUND;
	if (here == v.object.nreplicas)
		return MC_STORE_OBJECT_REPLICA_BUSY; /* a removal waits for what it frees */
	for (uint32_t r = 0; r < here && status == 0; r++)
		status = mc_index_drop(q, i, v.object.gen, &v.object.replicas[r], MC_GONE_REMOVED,
				       &m->frees);
	return status;
}

bool mc_mst_clear(struct mc_master *m, struct mc_rpc_req *req, const struct mc_rpc_msg *msg)
{
	Mc__St__ClearReply reply = MC__ST__CLEAR_REPLY__INIT;
	const Mc__St__Clear *said;
	struct mc_index_request q;
	struct mc_st_key *keys;
	int32_t *statuses;
	uint32_t n;

	said = (const Mc__St__Clear *)mc_mst_unpack(m, req, &mc__st__clear__descriptor, msg);
	if (!said)
		return true;
	n = (uint32_t)said->n_keys;
	keys = mc_mst_keys(m, n + 1);
	statuses = mc_mst_rows(m, (size_t)n + 1, sizeof(*statuses));
	for (uint32_t i = 0; keys && i < n; i++) {
		if (said->keys[i].len == 0 || said->keys[i].len > MC_STORE_KEY_MAX)
			keys = NULL;
		else
			keys[i] =
			    (struct mc_st_key){(uint16_t)said->keys[i].len, said->keys[i].data};
	}
	if (!keys || !statuses ||
	    (n > 0 && mc_index_begin(m->index, &q, mc_mst_now_ms(m), keys, n) < 0)) {
		(void)mc_rpc_reply(req, keys ? -MC_E_NOMEM : -MC_E_INVAL, NULL, 0, NULL, 0);
		return true;
	}
	for (uint32_t i = 0; i < n; i++)
		statuses[i] = clear_one(m, said->segment, &q, i);
	if (n > 0)
		mc_index_end(&q);
	reply.n_statuses = n;
	reply.statuses = statuses;
	mc_mst_reply_pb(m, req, &reply.base);
	mc_mst_frees_send(m);
	return true;
}
