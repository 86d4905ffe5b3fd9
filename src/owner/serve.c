/*
 * serve.c: an owner's rpc, and who its grants belong to.
 *
 * A writer is a process, named by Writer, with all its connections; one that does not name itself
 * is its connection. A watch of the engine says when a named one is dead; its grants are given back
 * a little later. Those of a writer that is merely away wait for it, up to a limit.
 */
#include <string.h>

#include "base/log.h"
#include "owner/priv.h"
#include "wire/pb.h"

#define GRANTED_LEN 20u
#define COMPUTE_INLINE_MAX (1u << 20) /* bytes of one Seal call that the loop itself counts */

/* ---- writers ---- */

static struct mc_owriter *writer_new(struct mc_owner *o, uint64_t client)
{
	struct mc_owriter *w;

	if (o->nwriters >= MC_OWNER_WRITERS_MAX)
		return NULL;
	w = mc_calloc(1, sizeof(*w));
	if (!w)
		return NULL;
	w->client = client;
	mc_list_push_back(&o->writers, &w->link);
	o->nwriters++;
	return w;
}

static struct mc_owriter *writer_of_client(struct mc_owner *o, uint64_t client)
{
	struct mc_owriter *w;

	mc_list_each (w, &o->writers, link) {
		if (w->client == client)
			return w;
	}
	return NULL;
}

/* The writer of a connection; NULL without memory. */
static struct mc_owriter *writer_of(struct mc_owner *o, struct mc_rpc_peer *peer)
{
	struct mc_owriter *w = mc_rpc_peer_user(peer);

	if (w)
		return w;
	w = writer_new(o, 0);
	if (w) {
		w->nconns = 1;
		mc_rpc_peer_set_user(peer, w);
	}
	return w;
}

static void on_down(struct mc_rpc_peer *peer, int rc, void *user)
{
	struct mc_owner *o = user;
	struct mc_owriter *w = mc_rpc_peer_user(peer);

	(void)rc; /* whatever ended it */
	if (!w)
		return;
	mc_rpc_peer_set_user(peer, NULL);
	w->nconns--;
	w->away_ns = mc_clock_now(o->env->clk);
}

static void writer_revoke(struct mc_owner *o, struct mc_owriter *w)
{
	uint32_t id, next, n = 0;

	pthread_mutex_lock(&o->lock);
	for (id = w->grants.first; id != MC_OWNER_NIL; id = next) {
		next = o->pool.slots[id].next;
		if (o->pool.slots[id].state == MC_OSLOT_GRANTED) {
			mc_opool_release(&o->pool, id);
			n++;
		} else {
			o->pool.slots[id].is_doomed = true;
		}
	}
	pthread_mutex_unlock(&o->lock);
	if (n == 0)
		return;
	mc_counter_add(&o->count.orphans, n);
	mc_log_info("grants of a writer that is gone are given back",
		    "segment=%s grants=%u is_dead=%d", w->segment, n, w->dead_ns != 0);
	mc_owner_room(o);
}

static void writer_free(struct mc_owner *o, struct mc_owriter *w)
{
	if (w->watch) {
		/* Its end comes through the queue and finds nobody. */
		(void)mc_group_cancel(o->engine, w->watch);
	}
	(void)mc_segment_release(o->engine, w->peer); /* stale: somebody closed it */
	mc_list_del(&w->link);
	o->nwriters--;
	mc_free(w);
}

struct watch_job {
	struct mc_ojob job;
	struct mc_owriter *writer;
	struct mc_rpc_req *req; /* answered when it is watched; NULL: it is tried again */
	uint64_t client, id;
	int32_t peer;
	int rc;
	char segment[MC_OWNER_NAME_MAX];
};

static void watch_run(struct mc_ojob *job)
{
	struct watch_job *j = mc_container_of(job, struct watch_job, job);
	struct mc_diag diag = {0};
	int rc = mc_segment_open(job->owner->engine, j->segment, job->owner->watch_timeout_ns,
				 &diag, &j->peer);

	if (rc == 0)
		rc = mc_segment_watch(job->owner->engine, j->peer, job->owner->cq, j->client,
				      &j->id);
	if (rc < 0 && j->peer != MC_SEGMENT_LOCAL)
		(void)mc_segment_release(job->owner->engine, j->peer);
	if (rc < 0)
		j->peer = MC_SEGMENT_LOCAL;
	if (rc < 0 && j->req &&
	    rc != -MC_E_UNSUPPORTED) /* ourselves, or upstream's: the limit of time holds */
		mc_log_warn("a writer cannot be watched", "segment=%s cause=\"%s\"", j->segment,
			    rc < 0 && diag.text[0] ? diag.text : mc_err_text(rc));
	j->rc = rc;
}

static void watch_end(struct mc_ojob *job)
{
	struct watch_job *j = mc_container_of(job, struct watch_job, job);

	j->writer->watch = j->id;
	j->writer->peer = j->peer;
	j->writer->is_refused = j->rc == -MC_E_REFUSED;
	j->writer->is_unwatchable = j->rc == -MC_E_UNSUPPORTED;
	j->writer->nrefs--;
	if (j->req)
		(void)mc_rpc_reply(j->req, 0, NULL, 0, NULL, 0); /* it may be gone */
	mc_free(j);
}

/* @return the request will be answered; else the limit of time holds alone */
static bool writer_watch(struct mc_owner *o, struct mc_owriter *w, struct mc_rpc_req *req)
{
	struct watch_job *j = mc_calloc(1, sizeof(*j));

	if (!j)
		return false;
	j->job = (struct mc_ojob){.run = watch_run, .end = watch_end};
	j->writer = w;
	j->req = req;
	j->client = w->client;
	j->peer = MC_SEGMENT_LOCAL;
	w->watch_ns = mc_clock_now(o->env->clk);
	memcpy(j->segment, w->segment, sizeof(j->segment));
	if (mc_owork_add(o, &j->job) < 0) {
		mc_free(j);
		return false;
	}
	w->nrefs++;
	return true;
}

/* It was silent when it was to be watched, or the watch ended and said nothing of it. */
static bool wants_watch(const struct mc_owriter *w)
{
	return w->segment[0] && !w->watch && !w->dead_ns && !w->is_refused && !w->is_unwatchable &&
	       w->nrefs == 0;
}

void mc_owriters_tick(struct mc_owner *o, uint64_t now_ns)
{
	struct mc_owriter *w;
	bool is_away, has_grants;

	mc_list_each (w, &o->writers, link) {
		is_away = w->nconns == 0 && w->nrefs == 0;
		if ((w->dead_ns && now_ns - w->dead_ns >= MC_OWNER_LINGER_NS) ||
		    (is_away && now_ns - w->away_ns >=
				    (w->is_refused ? MC_OWNER_LINGER_NS : o->grant_timeout_ns)))
			writer_revoke(o, w);
		pthread_mutex_lock(&o->lock);
		has_grants = w->grants.first != MC_OWNER_NIL;
		pthread_mutex_unlock(&o->lock);
		if (is_away && !has_grants)
			writer_free(o, w);
		else if (wants_watch(w) && now_ns - w->watch_ns >= o->watch_timeout_ns * 5 / 2)
			(void)writer_watch(o, w, NULL); /* without memory the next tick's */
	}
}

/* Watches that ended. */
static void on_cq(struct mc_watch *watch, uint32_t events)
{
	struct mc_owner *o = mc_container_of(watch, struct mc_owner, cq_watch);
	struct mc_completion end[16];
	struct mc_owriter *w;
	int n = mc_cq_wait(o->cq, end, MC_ARRAY_LEN(end), 0);

	(void)events;
	for (int i = 0; i < n; i++) {
		w = writer_of_client(o, end[i].user);
		if (!w)
			continue;
		w->watch = 0;
		if (end[i].status == -MC_E_PEER_DEAD)
			w->dead_ns = mc_clock_now(o->env->clk);
	}
}

/* ---- methods ---- */

static void put_or_grant(struct mc_owner *o, struct mc_rpc_req *req, const struct mc_rpc_msg *msg,
			 bool has_payload)
{
	struct mc_rd rd = mc_rd_make(msg->data, msg->len), records;
	struct mc_owait *w = NULL;
	struct mc_owriter *writer = writer_of(o, req->peer);
	struct mc_slot_info info;
	struct mc_st_grant g;
	uint64_t need = 0;
	int n = mc_st_count_decode(&rd);

	if (n < 0 || !writer) {
		(void)mc_rpc_reply(req, n < 0 ? n : -MC_E_LIMIT, NULL, 0, NULL, 0);
		return;
	}
	records = rd;
	for (int i = 0; i < n && !rd.is_bad; i++) {
		mc_st_grant_decode(&rd, &g, has_payload);
		info =
		    (struct mc_slot_info){.key_len = g.key_len, .tlv_len = g.tlv_len, .len = g.len};
		if (!rd.is_bad && mc_slot_layout(&info) == 0)
			need += info.slot_len;
	}
	if (mc_rd_is_done(&rd))
		w = mc_calloc(1, sizeof(*w));
	if (w)
		w->reply_buf = mc_calloc(1, 4 + (size_t)n * GRANTED_LEN);
	if (!w || !w->reply_buf) {
		mc_free(w);
		(void)mc_rpc_reply(req, mc_rd_is_done(&rd) ? -MC_E_NOMEM : -MC_E_PROTO, NULL, 0,
				   NULL, 0);
		return;
	}
	w->reply = mc_wr_make(w->reply_buf, 4 + (size_t)n * GRANTED_LEN);
	mc_wr_u32(&w->reply, (uint32_t)n);
	w->req = req;
	w->writer = writer;
	writer->nrefs++;
	w->has_payload = has_payload;
	w->n = (uint32_t)n;
	w->rd = records;
	w->need = need;
	mc_owait_start(o, w);
}

static void on_put(struct mc_rpc_req *req, const struct mc_rpc_msg *msg, void *user)
{
	put_or_grant(user, req, msg, true);
}

static void on_grant(struct mc_rpc_req *req, const struct mc_rpc_msg *msg, void *user)
{
	put_or_grant(user, req, msg, false);
}

/* Statuses of a call under way. */
struct answer {
	struct mc_ojob job;
	struct mc_rpc_req *req;
	uint32_t n, ncompute;
	struct compute {
		uint32_t index, slot, crc;
	} * compute;
	int32_t status[];
};

static struct answer *answer_new(struct mc_rpc_req *req, int n)
{
	struct answer *a = mc_calloc(1, sizeof(*a) + (size_t)n * sizeof(a->status[0]));

	if (a) {
		a->req = req;
		a->n = (uint32_t)n;
	}
	return a;
}

/* @param rc  < 0: of the call */
static void answer_send(struct answer *a, int rc)
{
	size_t cap = 4 + (size_t)a->n * 4;
	uint8_t *buf = mc_calloc(1, cap);
	struct mc_wr w = mc_wr_make(buf, buf ? cap : 0);

	mc_wr_u32(&w, a->n);
	for (uint32_t i = 0; i < a->n; i++)
		mc_wr_u32(&w, (uint32_t)a->status[i]);
	if (rc == 0 && !buf)
		rc = -MC_E_NOMEM;
	(void)mc_rpc_reply(a->req, rc, rc == 0 ? buf : NULL, rc == 0 ? mc_wr_len(&w) : 0, NULL, 0);
	mc_free(buf);
	mc_free(a->compute);
	mc_free(a);
}

/* An answer for the records of this message; NULL: it was refused. */
static struct answer *answer_begin(struct mc_rpc_req *req, struct mc_rd *rd)
{
	int n = mc_st_count_decode(rd);
	struct answer *a = n < 0 ? NULL : answer_new(req, n);

	if (!a)
		(void)mc_rpc_reply(req, n < 0 ? n : -MC_E_NOMEM, NULL, 0, NULL, 0);
	return a;
}

static void compute_run(struct mc_ojob *job)
{
	struct answer *a = mc_container_of(job, struct answer, job);

	for (uint32_t i = 0; i < a->ncompute; i++)
		a->status[a->compute[i].index] =
		    mc_owner_fill(job->owner, a->compute[i].slot, NULL, a->compute[i].crc);
}

static void compute_end(struct mc_ojob *job)
{
	answer_send(mc_container_of(job, struct answer, job), 0);
}

static int32_t seal_one(struct mc_owner *o, struct answer *a, uint32_t index,
			const struct mc_st_seal *s)
{
	int32_t status;
	uint32_t id;

	if (!(s->flags & MC_ST_SEAL_COMPUTE))
		return mc_owner_seal_table(o, s);
	if (!a->compute)
		a->compute = mc_calloc(a->n, sizeof(*a->compute));
	if (!a->compute)
		return MC_STORE_INTERNAL_ERROR;
	status = mc_owner_seal_begin(o, s->addr, s->gen, &id);
	if (status > 0) {
		a->compute[a->ncompute++] =
		    (struct compute){.index = index, .slot = id, .crc = mc_st_seal_crc(s)};
		status = 0;
	}
	return status;
}

static uint64_t compute_bytes(struct mc_owner *o, const struct answer *a)
{
	uint64_t sum = 0;

	pthread_mutex_lock(&o->lock);
	for (uint32_t i = 0; i < a->ncompute; i++)
		sum += o->pool.slots[a->compute[i].slot].len;
	pthread_mutex_unlock(&o->lock);
	return sum;
}

static void on_seal(struct mc_rpc_req *req, const struct mc_rpc_msg *msg, void *user)
{
	struct mc_owner *o = user;
	struct mc_rd rd = mc_rd_make(msg->data, msg->len);
	struct answer *a = answer_begin(req, &rd);
	struct mc_st_seal s;

	if (!a)
		return;
	a->job =
	    (struct mc_ojob){.owner = o, .run = compute_run, .end = compute_end, .must_run = true};
	for (uint32_t i = 0; i < a->n; i++) {
		mc_st_seal_decode(&rd, &s);
		if (rd.is_bad)
			break;
		a->status[i] = seal_one(o, a, i, &s);
	}
	if (compute_bytes(o, a) > COMPUTE_INLINE_MAX && !rd.is_bad && mc_owork_add(o, &a->job) == 0)
		return;
	compute_run(&a->job);
	answer_send(a, mc_rd_is_done(&rd) ? 0 : -MC_E_PROTO);
}

static void on_drop(struct mc_rpc_req *req, const struct mc_rpc_msg *msg, void *user)
{
	struct mc_rd rd = mc_rd_make(msg->data, msg->len);
	struct answer *a = answer_begin(req, &rd);
	struct mc_st_place p;

	if (!a)
		return;
	for (uint32_t i = 0; i < a->n; i++) {
		mc_st_place_decode(&rd, &p);
		if (rd.is_bad)
			break;
		a->status[i] = mc_owner_drop(user, &p);
	}
	answer_send(a, mc_rd_is_done(&rd) ? 0 : -MC_E_PROTO);
}

static void on_regen(struct mc_rpc_req *req, const struct mc_rpc_msg *msg, void *user)
{
	struct mc_rd rd = mc_rd_make(msg->data, msg->len);
	struct answer *a = answer_begin(req, &rd);
	struct mc_st_regen r;

	if (!a)
		return;
	for (uint32_t i = 0; i < a->n; i++) {
		mc_st_regen_decode(&rd, &r);
		if (rd.is_bad)
			break;
		a->status[i] = mc_owner_regen(user, &r);
	}
	answer_send(a, mc_rd_is_done(&rd) ? 0 : -MC_E_PROTO);
}

static void on_fetch(struct mc_rpc_req *req, const struct mc_rpc_msg *msg, void *user)
{
	struct mc_rd rd = mc_rd_make(msg->data, msg->len);
	int n = mc_st_count_decode(&rd);
	struct mc_st_place p = {0};

	if (n == 1)
		mc_st_place_decode(&rd, &p);
	if (n != 1 || !mc_rd_is_done(&rd) ||
	    (p.addr != MC_ST_DISK_ADDR && p.addr != MC_ST_DISK_KEEP))
		(void)mc_rpc_reply(req, -MC_E_PROTO, NULL, 0, NULL, 0);
	else
		mc_odisk_fetch(user, req, p.gen, p.addr == MC_ST_DISK_KEEP);
}

/* @return 1: the request will be answered; 0; < 0 */
static int writer_join(struct mc_owner *o, struct mc_rpc_req *req, uint64_t client,
		       const char *segment)
{
	struct mc_owriter *w = writer_of_client(o, client);
	struct mc_owriter *old = mc_rpc_peer_user(req->peer);

	if (old)
		return old->client == client ? 0 : -MC_E_INVAL; /* it has written already */
	if (!w)
		w = writer_new(o, client);
	if (!w)
		return -MC_E_LIMIT;
	w->nconns++;
	mc_rpc_peer_set_user(req->peer, w);
	if (segment[0] && !w->segment[0]) {
		(void)mc_strlcpy(w->segment, sizeof(w->segment), segment);
		return writer_watch(o, w, req) ? 1 : 0;
	}
	return 0;
}

static void on_writer(struct mc_rpc_req *req, const struct mc_rpc_msg *msg, void *user)
{
	_Alignas(16) uint8_t buf[2048];
	struct mc_pb_arena arena;
	ProtobufCMessage *got;
	const Mc__St__Writer *v;
	int rc;

	mc_pb_arena_init(&arena, buf, sizeof(buf));
	rc = mc_pb_unpack(&arena, &mc__st__writer__descriptor, msg->data, msg->len, &got);
	if (rc == 0) {
		v = (const Mc__St__Writer *)got;
		if (v->client == 0 || strlen(v->segment) >= MC_OWNER_NAME_MAX)
			rc = -MC_E_INVAL;
		else
			rc = writer_join(user, req, v->client, v->segment);
	}
	if (rc <= 0)
		(void)mc_rpc_reply(req, rc, NULL, 0, NULL, 0);
}

/* ---- life ---- */

/* The engine's address is where peers find this host; they find us there, too. */
static int serve_listen(struct mc_owner *o, struct mc_diag *diag)
{
	const char *text = mc_engine_address(o->engine);
	struct mc_addr at, bound;
	char name[MC_ADDR_TEXT_MAX];
	uint16_t port;
	int rc = mc_addr_parse(text, 0, &at);

	if (rc == 0) {
		mc_addr_port_set(&at, 0);
		rc = mc_rpc_server_listen(o->server, &at, &bound);
	}
	if (rc < 0) {
		mc_diag_set(diag, "cannot listen at the engine's address %s: %s", text,
			    mc_err_text(rc));
		return rc;
	}
	port = mc_addr_port(&bound);
	mc_addr_port_set(&at, port);
	(void)mc_strlcpy(o->address, sizeof(o->address), mc_addr_format(&at, name));
	return 0;
}

struct watch_call {
	struct mc_owner *owner;
	int rc;
};

static void cq_watch(void *arg)
{
	struct watch_call *call = arg;
	struct mc_owner *o = call->owner;

	o->cq_watch =
	    (struct mc_watch){.fd = mc_cq_fd(o->cq), .events = EPOLLIN, .on_event = on_cq};
	call->rc = mc_loop_watch(o->loop, &o->cq_watch);
	o->is_cq_watched = call->rc == 0;
}

static void serve_stop(void *arg)
{
	struct mc_owner *o = arg;
	struct mc_owriter *w;

	if (o->is_cq_watched)
		mc_loop_unwatch(o->loop, &o->cq_watch);
	o->is_cq_watched = false;
	mc_list_each (w, &o->writers, link)
		writer_free(o, w);
}

int mc_oserve_open(struct mc_owner *o, struct mc_diag *diag)
{
	struct mc_rpc_method methods[MC_OWNER_METHODS] = {
	    {MC_ST_PUT, "put", on_put, o},	 {MC_ST_GRANT, "grant", on_grant, o},
	    {MC_ST_SEAL, "seal", on_seal, o},	 {MC_ST_DROP, "drop", on_drop, o},
	    {MC_ST_REGEN, "regen", on_regen, o}, {MC_ST_WRITER, "writer", on_writer, o},
	    {MC_ST_FETCH, "fetch", on_fetch, o},
	};
	const struct mc_rpc_server_opts opts = {.conns_max = MC_OWNER_CONNS_MAX,
						.methods = methods,
						.nmethods = MC_ARRAY_LEN(methods),
						.on_down = on_down,
						.user = o};
	struct watch_call call = {.owner = o};
	int rc = mc_ocount_open(o, methods);

	if (rc < 0) {
		mc_diag_set(diag, "metrics: %s", mc_err_text(rc));
		return rc;
	}
	rc = mc_cq_open(o->engine, MC_OWNER_WRITERS_MAX, &o->cq);
	if (rc < 0) {
		mc_diag_set(diag, "completion queue: %s", mc_err_text(rc));
		return rc;
	}
	mc_loop_call(o->loop, cq_watch, &call);
	rc = call.rc;
	if (rc == 0)
		rc = mc_rpc_server_open(o->env, o->loop, &opts, &o->server);
	if (rc < 0) {
		mc_diag_set(diag, "rpc server: %s", mc_err_text(rc));
		return rc;
	}
	return serve_listen(o, diag);
}

void mc_oserve_close(struct mc_owner *o)
{
	mc_rpc_server_close(o->server);
	o->server = NULL;
	if (o->loop)
		mc_loop_call(o->loop, serve_stop, o);
	mc_cq_close(o->cq);
	o->cq = NULL;
	mc_ocount_close(o);
}
