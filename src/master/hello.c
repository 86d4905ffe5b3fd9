/*
 * hello.c: clients introduce themselves, get generations, and see the owners there are.
 */
#include "base/log.h"
#include "master/priv.h"

#define GENS_MAX (1u << 20) /* of one call */

/* A block of generations. */
static void gens_take(struct mc_master *m, uint32_t want, uint64_t *ret_first, uint32_t *ret_n)
{
	uint64_t left = (1ull << MC_MST_GEN_BITS) - m->gen_next;

	want = mc_min(want, GENS_MAX);
	*ret_n = (uint32_t)mc_min((uint64_t)want, left);
	*ret_first =
	    atomic_load_explicit(&m->epoch, memory_order_relaxed) << MC_MST_GEN_BITS | m->gen_next;
	m->gen_next += *ret_n;
}

void mc_mst_floor_set(struct mc_master *m)
{
	m->gen_floor = mc_master_epoch(m) << MC_MST_GEN_BITS | m->gen_next;
	mc_index_set_floor(m->index, m->gen_floor);
}

bool mc_mst_join(struct mc_master *m, struct mc_rpc_req *req, const struct mc_rpc_msg *msg)
{
	Mc__St__JoinReply reply = MC__ST__JOIN_REPLY__INIT;
	const Mc__St__Join *join =
	    (const Mc__St__Join *)mc_mst_unpack(m, req, &mc__st__join__descriptor, msg);

	if (!join)
		return true;
	if (join->version != MC_ST_VERSION) {
		mc_log_warn("client speaks another version", "version=%u ours=%u name=%s",
			    join->version, MC_ST_VERSION, join->name);
		(void)mc_rpc_reply(req, -MC_E_VERSION, NULL, 0, NULL, 0);
		return true;
	}
	reply.epoch = mc_master_epoch(m);
	gens_take(m, join->gens, &reply.first_gen, &reply.ngens);
	reply.master_version = (char *)MC_VERSION;
	mc_mst_reply_pb(m, req, &reply.base);
	return true;
}

bool mc_mst_gens(struct mc_master *m, struct mc_rpc_req *req, const struct mc_rpc_msg *msg)
{
	Mc__St__GensReply reply = MC__ST__GENS_REPLY__INIT;
	const Mc__St__Gens *gens =
	    (const Mc__St__Gens *)mc_mst_unpack(m, req, &mc__st__gens__descriptor, msg);

	if (!gens)
		return true;
	gens_take(m, gens->n, &reply.first_gen, &reply.ngens);
	mc_mst_reply_pb(m, req, &reply.base);
	return true;
}

static void view_owner(Mc__St__ViewOwner *to, const struct mc_mst_owner *o)
{
	const struct mc_st_space *s = &o->space[MC_ST_MEMORY];

	mc__st__view_owner__init(to);
	to->id = o->id;
	to->incarnation = o->incarnation;
	to->segment = (char *)o->segment;
	to->address = (char *)o->address;
	to->host = (char *)o->host;
	to->protocol = (char *)o->protocol;
	to->capacity = s->capacity;
	to->free = s->capacity - mc_min(s->used, s->capacity);
	to->takes_puts = mc_mst_owner_stays(o) && s->capacity > 0;
}

/* Owners that may be read from: all but the absent ones. */
bool mc_mst_view(struct mc_master *m, struct mc_rpc_req *req, const struct mc_rpc_msg *msg)
{
	Mc__St__ViewReply reply = MC__ST__VIEW_REPLY__INIT;
	const Mc__St__View *view =
	    (const Mc__St__View *)mc_mst_unpack(m, req, &mc__st__view__descriptor, msg);
	Mc__St__ViewOwner *owners = NULL, **list = NULL;
	struct mc_mst_owner *o;

	if (!view)
		return true;
	reply.version = m->view_version;
	reply.epoch = mc_master_epoch(m);
	reply.recovering = m->is_recovering;
	if (view->known != m->view_version && m->nowners > 0) {
		owners = mc_calloc(m->nowners, sizeof(*owners));
		list = mc_calloc(m->nowners, sizeof(Mc__St__ViewOwner *));
		if (!owners || !list) {
			(void)mc_rpc_reply(req, -MC_E_NOMEM, NULL, 0, NULL, 0);
			goto out;
		}
		mc_list_each (o, &m->owners, link) {
			if (o->state < MC_MST_ANNOUNCE)
				continue;
			view_owner(&owners[reply.n_owners], o);
			list[reply.n_owners] = &owners[reply.n_owners];
			reply.n_owners++;
		}
		reply.owners = list;
	}
	mc_mst_reply_pb(m, req, &reply.base);
out:
	mc_free(owners);
	mc_free(list);
	return true;
}
