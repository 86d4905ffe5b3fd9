/*
 * greet.c: how an owner's stream begins, and how it ends: who it is, what has to be durable before
 * it is welcome, and that it leaves.
 */
#include <string.h>

#include "base/log.h"
#include "master/priv.h"

/* An owner that leaves: its call is answered when no later master waits for it. */
struct leaving {
	struct mc_list link; /* mc_master.leaving */
	struct mc_state_wait saved;
	struct mc_rpc_req *req;
};

static void left(struct mc_state_wait *w)
{
	struct leaving *l = mc_container_of(w, struct leaving, saved);

	mc_list_del(&l->link);
	(void)mc_rpc_reply(l->req, 0, NULL, 0, NULL, 0);
	mc_free(l);
}

void mc_mst_owner_leaves(struct mc_mst_owner *o)
{
	struct leaving *l = mc_calloc(1, sizeof(*l));
	struct mc_rpc_req *req = o->req;
	struct mc_master *m = o->master;

	mc_tally_call(&m->tally, MC_TALLY_UNMOUNT, 1, 0);
	o->req = NULL;
	req->user = NULL;
	/* What it has on a disk comes back with its next life. */
	if (o->disk_capacity > 0)
		mc_mst_owner_away(m, o);
	else
		mc_mst_owner_forget(m, o);
	if (!l) {
		(void)mc_rpc_reply(req, 0, NULL, 0, NULL, 0);
		return;
	}
	l->req = req;
	l->saved.on_done = left;
	mc_list_push_back(&m->leaving, &l->link);
	mc_state_wait(m->state, &l->saved);
}

void mc_mst_leaving_drop(struct mc_master *m)
{
	struct leaving *l;

	mc_list_each (l, &m->leaving, link) {
		(void)mc_rpc_reply(l->req, -MC_E_CLOSED, NULL, 0, NULL, 0);
		mc_free(l);
	}
}

static void on_room(struct mc_rpc_req *req)
{
	struct mc_mst_owner *o = req->user;

	if (o && o->req == req)
		mc_mst_stream_pump(o);
}

static void on_cancel(struct mc_rpc_req *req)
{
	struct mc_mst_owner *o = req->user;

	if (o && o->req == req)
		mc_mst_stream_end(o, -MC_E_CANCELED);
}

/* ---- life ---- */

void mc_mst_welcome(struct mc_mst_owner *o)
{
	struct mc_master *m = o->master;
	struct mc_st_welcome v = {.epoch = mc_master_epoch(m),
				  .flags = m->conf.offload_on_evict ? MC_ST_OFFLOAD_ASKED : 0};
	uint8_t buf[32];
	struct mc_wr w = mc_wr_make(buf, sizeof(buf));

	if (mc_index_owner_join(m->index, o->id) < 0) {
		mc_log_error("no memory for an owner", "segment=%s", o->segment);
		mc_mst_stream_end(o, -MC_E_NOMEM);
		return;
	}
	mc_index_owner_disk(m->index, o->id, o->space[MC_ST_DISK].capacity > 0);
	o->is_joined = true;
	o->welcome_epoch = v.epoch;
	if (o->is_resuming) {
		v.from = o->rx_number + 1;
	} else {
		mc_mst_orders_over(o);
		o->rx_number = 0;
		o->is_announced = false;
		o->is_buried = false;
	}
	o->state = o->is_announced ? MC_MST_OK : MC_MST_ANNOUNCE;
	o->heard_ns = mc_clock_now(m->env.clk);
	mc_st_welcome_encode(&w, &v);
	mc_mst_note(o, MC_ST_NOTE_WELCOME, buf, mc_wr_len(&w));
	mc_mst_frees_again(m, o, false);
	mc_mst_view_changed(m);
	mc_mst_frees_send(m);
}

static void save(struct mc_mst_owner *o);

static void saved(struct mc_state_wait *w)
{
	struct mc_mst_owner *o = mc_container_of(w, struct mc_mst_owner, saved);

	o->is_saving = false;
	if (o->is_left) {
		mc_mst_owner_free(o);
		return;
	}
	if (o->must_save) {
		save(o);
		return;
	}
	mc_mst_epoch_saved(o->master);
	if (o->req && o->state == MC_MST_SHAKING)
		mc_mst_welcome(o);
}

/* The roster with it becomes durable. */
static void save(struct mc_mst_owner *o)
{
	o->must_save = o->is_saving; /* what is being written is not the last word */
	if (o->is_saving)
		return;
	o->is_saving = true;
	o->saved.on_done = saved;
	mc_mst_roster_save(o->master);
	mc_state_wait(o->master->state, &o->saved);
}

/* A name of an owner: printable, and not too long. */
static bool text_take(const char *text, char *to, size_t cap)
{
	for (const char *at = text; *at; at++) {
		if (*at < ' ' || *at == 0x7f)
			return false;
	}
	return mc_strlcpy(to, cap, text) == 0;
}

/* What it says of itself. @return false: nonsense */
static bool owner_fill(struct mc_mst_owner *o, const Mc__St__Owner *said)
{
	if (!text_take(said->segment, o->segment, sizeof(o->segment)) ||
	    !text_take(said->address, o->address, sizeof(o->address)) ||
	    !text_take(said->host, o->host, sizeof(o->host)) ||
	    !text_take(said->protocol, o->protocol, sizeof(o->protocol)))
		return false;
	o->incarnation = said->incarnation;
	o->disk_capacity = said->disk_capacity;
	o->space[MC_ST_MEMORY] = (struct mc_st_space){.capacity = said->capacity};
	o->space[MC_ST_DISK] =
	    (struct mc_st_space){.capacity = said->disk_capacity, .kind = MC_ST_DISK};
	o->told_free = said->capacity;
	return true;
}

/* Begin a life of it, or go on with one. @return 0; < 0 */
static int owner_begin(struct mc_master *m, struct mc_mst_owner *o, const Mc__St__Owner *said)
{
	bool is_same = o->incarnation == said->incarnation;
	int rc = 0;

	o->is_resuming = is_same && o->is_joined && !o->is_buried && o->rx_number > 0 &&
			 said->epoch == o->welcome_epoch && said->acked <= o->rx_number;
	if (!is_same)
		o->drain = MC_MST_NO_DRAIN; /* of the life before */
	if (!is_same && o->is_joined)
		rc = mc_index_owner_drop(m->index, o->id, MC_ST_MEMORY);
	if (rc < 0)
		return rc;
	return owner_fill(o, said) ? 0 : -MC_E_INVAL;
}

/* Its epoch and ours. @return true: a new one has to be durable first */
static bool epoch_look(struct mc_master *m, const Mc__St__Owner *said, bool is_new)
{
	uint64_t epoch = mc_max(m->epoch_next, mc_master_epoch(m));

	/* An owner of our epoch that is not in the roster: that was another life's. */
	if (said->epoch < epoch || (said->epoch == epoch && !is_new))
		return false;
	mc_log_warn("an owner knows a later epoch than the state directory", "ours=%llu its=%llu",
		    (unsigned long long)epoch, (unsigned long long)said->epoch);
	m->epoch_next = said->epoch + 1;
	return true;
}

static int stream_begin(struct mc_master *m, struct mc_rpc_req *req, const Mc__St__Owner *said)
{
	struct mc_mst_owner *o;
	bool is_new, must_save;
	int rc;

	if (said->version != MC_ST_VERSION)
		return -MC_E_VERSION;
	if (said->id == 0 || said->incarnation == 0 || said->epoch >= MC_MST_EPOCH_MAX)
		return -MC_E_INVAL;
	o = mc_mst_owner_find(m, said->id);
	is_new = !o;
	if (!o)
		o = mc_mst_owner_add(m, said->id);
	if (!o)
		return -MC_E_LIMIT;
	if (o->req)
		mc_mst_stream_end(o, -MC_E_STALE); /* it came again before we knew */
	must_save = is_new || !o->is_joined || o->incarnation != said->incarnation;
	rc = owner_begin(m, o, said);
	if (rc < 0)
		return rc;
	must_save |= epoch_look(m, said, is_new);
	o->req = req;
	o->rx_len = o->tx_at = o->tx_len = 0;
	o->tx_number = 0;
	o->heard_ns = mc_clock_now(m->env.clk);
	o->seen_s = mc_wall_ns() / MC_NS_PER_S;
	o->state = MC_MST_SHAKING;
	req->user = o;
	req->on_chunk = mc_mst_chunk;
	req->on_room = on_room;
	req->on_cancel = on_cancel;
	mc_tally_call(&m->tally, is_new ? MC_TALLY_MOUNT : MC_TALLY_REMOUNT, 1, 0);
	if (must_save)
		save(o);
	else if (!o->is_saving)
		mc_mst_welcome(o);
	return 0;
}

bool mc_mst_stream(struct mc_master *m, struct mc_rpc_req *req, const struct mc_rpc_msg *msg)
{
	const Mc__St__Owner *said;
	int rc = -MC_E_INVAL;

	said = (const Mc__St__Owner *)mc_mst_unpack(m, req, &mc__st__owner__descriptor, msg);
	if (!said)
		return true;
	if (req->is_stream)
		rc = stream_begin(m, req, said);
	if (rc < 0) {
		mc_tally_call(&m->tally, MC_TALLY_MOUNT, 1, 1);
		(void)mc_rpc_reply(req, rc, NULL, 0, NULL, 0);
	}
	return true;
}
