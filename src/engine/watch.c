/*
 * watch.c: telling users when a peer's incarnation is gone. A watch is a group without transfers in
 * a list of the engine; whoever takes it out of the list ends it.
 *
 * A session's control connection is open as long as the session is, so a process that dies tells it
 * by itself, and nothing is sent or looked at before. A lost connection proves nothing: a worker
 * makes it anew, which finds the process, another one in its place, or nobody (ctlconn.c says what
 * of that is proof). As long as it is none of them, it tries again.
 */
#include "base/fork.h"
#include "base/log.h"
#include "engine/ctl.h"
#include "xport/shm.h"

#define TRY_NS (2 * MC_NS_PER_S)
#define PAUSE_MIN_NS (50 * MC_NS_PER_MS)
#define PAUSE_MAX_NS (16 * MC_NS_PER_S)
#define TICK_NS MC_NS_PER_S /* of a pause: a closing engine waits no longer */

struct mc_peer_watch {
	struct mc_list link;
	struct mc_gop *op;	    /* the driver's reference */
	struct mc_session *session; /* one reference */
};

/* ---- looking ---- */

static bool is_wanted(struct mc_session *s)
{
	return atomic_load(&s->nwatches) > 0 &&
	       !atomic_load_explicit(&s->is_gone, memory_order_acquire) &&
	       !atomic_load_explicit(&s->eng->is_closing, memory_order_relaxed);
}

/* The pause is over, or nobody wants to know any more; else the rest of it. */
static void look_tick(struct mc_timer *timer)
{
	struct mc_session *s = mc_container_of(timer, struct mc_session, look_timer);
	uint64_t now_ns = mc_now_ns(), at_ns = mc_min(s->look_at_ns, now_ns + TICK_NS);

	/* Without room for a timer it is looked at once. */
	if (now_ns >= s->look_at_ns || !is_wanted(s) ||
	    mc_loop_timer_set(s->eng->loops[0], timer, at_ns) < 0)
		mc_work_post(s->eng, &s->look_job);
}

static void look_later(struct mc_task *task)
{
	struct mc_session *s = mc_container_of(task, struct mc_session, look_task);

	/* A slow host gets more patience, not more connections. */
	s->look_at_ns = mc_time_after(mc_now_ns(), s->look_pause_ns);
	s->look_pause_ns = mc_min(s->look_pause_ns * 2, PAUSE_MAX_NS);
	s->look_timer.on_time = look_tick;
	look_tick(&s->look_timer);
}

/* @return false: once more, later */
static bool look_once(struct mc_session *s)
{
	struct mc_ctl_conn *conn;
	int rc;

	if (!is_wanted(s))
		return true;
	if (s->shm && mc_shm_peer_is_dead(s->shm)) {
		mc_session_gone(s);
		return true;
	}
	rc = mc_ctlconn_get(s, mc_time_after(mc_now_ns(), TRY_NS), &conn);
	if (rc == 0)
		mc_ctlconn_put(s, conn, false);
	return rc == 0;
}

static void look(struct mc_worker_job *job)
{
	struct mc_session *s = mc_container_of(job, struct mc_session, look_job);

	if (!look_once(s) && is_wanted(s)) {
		s->look_task.run = look_later;
		mc_loop_post(s->eng->loops[0], &s->look_task);
		return;
	}
	/* seq_cst: a loss that came before this store found somebody looking, and is seen here */
	atomic_store(&s->is_looking, false);
	if (atomic_load(&s->is_ctl_lost) && is_wanted(s))
		mc_watch_lost(s);
	mc_session_put(s);
}

void mc_watch_lost(struct mc_session *s)
{
	if (!is_wanted(s) || atomic_exchange(&s->is_looking, true))
		return;
	mc_session_ref(s);
	s->look_pause_ns = PAUSE_MIN_NS;
	s->look_job.run = look;
	mc_work_post(s->eng, &s->look_job);
}

/* ---- ending ---- */

static void end(struct mc_peer_watch *w, int status)
{
	struct mc_gop *op = w->op;

	op->status = status;
	op->has_diag = true;
	mc_diag_set(&op->diag, "watch of segment %s: %s", w->session->peer->name,
		    mc_err_text(status));
	atomic_fetch_sub(&w->session->nwatches, 1);
	mc_session_put(w->session);
	mc_free(w);
	mc_gop_finish(op);
}

/* What a watch is chosen by; zero: not by that. */
struct which {
	uint64_t fence_key;
	const struct mc_peer *peer;
	const struct mc_cq *cq;
	const struct mc_gop *op;
};

static bool is_chosen(const struct mc_peer_watch *w, const struct which *by)
{
	return (!by->fence_key || w->session->fence_key == by->fence_key) &&
	       (!by->peer || w->session->peer == by->peer) && (!by->cq || w->op->cq == by->cq) &&
	       (!by->op || w->op == by->op);
}

static void end_all(struct mc_engine *eng, const struct which *by, int status)
{
	struct mc_peer_watch *w;
	struct mc_list chosen;

	mc_list_init(&chosen);
	pthread_mutex_lock(&eng->watch_mu);
	mc_list_each (w, &eng->watches, link) {
		if (!is_chosen(w, by))
			continue;
		mc_list_del(&w->link);
		mc_list_push_back(&chosen, &w->link);
	}
	pthread_mutex_unlock(&eng->watch_mu);
	mc_list_each (w, &chosen, link) {
		mc_list_del(&w->link);
		end(w, status);
	}
}

void mc_watch_gone(struct mc_engine *eng, uint64_t fence_key)
{
	end_all(eng, &(struct which){.fence_key = fence_key}, -MC_E_PEER_DEAD);
}

void mc_watch_closed(struct mc_engine *eng, const struct mc_peer *peer)
{
	end_all(eng, &(struct which){.peer = peer}, -MC_E_CLOSED);
}

void mc_watch_cq_closed(struct mc_engine *eng, const struct mc_cq *cq)
{
	end_all(eng, &(struct which){.cq = cq}, -MC_E_CANCELED);
}

void mc_watch_canceled(struct mc_gop *op)
{
	end_all(op->eng, &(struct which){.op = op}, -MC_E_CANCELED);
}

/* ---- beginning ---- */

/* The group of a watch, and its id. */
static int watch_open(struct mc_engine *eng, struct mc_cq *cq, uint64_t user,
		      struct mc_peer_watch **ret)
{
	const struct mc_group g = {
	    .size = sizeof(g), .priority = MC_PRIO_NORMAL, .deadline_ns = UINT64_MAX, .user = user};
	struct mc_peer_watch *w = mc_calloc(1, sizeof(*w));
	int rc;

	if (!w)
		return -MC_E_NOMEM;
	mc_list_init(&w->link);
	rc = mc_gop_open(eng, &g, NULL, &w->op);
	if (rc == 0) {
		rc = mc_ids_add(eng->groups, w->op, &w->op->id);
		if (rc < 0)
			mc_gop_put(w->op);
	}
	if (rc < 0) {
		mc_free(w);
		return rc == -MC_E_LIMIT ? -MC_E_AGAIN : rc;
	}
	w->op->is_watch = true;
	w->op->cq = cq;
	w->op->loop = eng->loops[0]; /* no caller drives it: its end is waited for */
	mc_gop_ref(w->op);	     /* the driver's, ended by mc_gop_finish() */
	*ret = w;
	return 0;
}

/* From here on whoever finds it ends it. */
static void watch_begin(struct mc_engine *eng, struct mc_peer_watch *w, struct mc_session *s,
			uint32_t nclosed)
{
	struct mc_gop *op = w->op;
	struct mc_cq *cq = op->cq;

	w->session = s;
	mc_session_ref(s);
	mc_gop_ref(op);
	atomic_fetch_add(&s->nwatches, 1);
	pthread_mutex_lock(&eng->watch_mu);
	mc_list_push_back(&eng->watches, &w->link);
	pthread_mutex_unlock(&eng->watch_mu);
	/* What happened before it was there to be found. */
	if (atomic_load(&eng->is_closing) ||
	    atomic_load_explicit(&s->peer->nclosed, memory_order_relaxed) != nclosed)
		end_all(eng, &(struct which){.op = op}, -MC_E_CLOSED);
	else if (atomic_load_explicit(&s->is_gone, memory_order_acquire))
		end_all(eng, &(struct which){.op = op}, -MC_E_PEER_DEAD);
	else if (cq && mc_cq_is_closing(cq))
		end_all(eng, &(struct which){.op = op}, -MC_E_CANCELED);
	else if (atomic_load(&s->is_ctl_lost))
		mc_watch_lost(s);
	mc_gop_put(op);
}

int mc_segment_watch(struct mc_engine *eng, int32_t segment, struct mc_cq *cq, uint64_t user,
		     uint64_t *ret_id)
{
	struct mc_peer_watch *w;
	struct mc_session *s;
	struct mc_peer *peer;
	uint32_t nclosed;
	int rc;

	if (mc_engine_is_forked(eng))
		return -MC_E_FORKED;
	rc = mc_peer_by_id(eng, segment, &peer);
	if (rc < 0)
		return rc;
	nclosed = atomic_load_explicit(&peer->nclosed, memory_order_relaxed);
	rc = mc_session_get(
	    peer, mc_time_after(mc_now_ns(), (uint64_t)eng->conf.transfer_timeout_s * MC_NS_PER_S),
	    NULL, &s);
	if (rc < 0)
		return rc;
	rc = s->kind == MC_PEER_OURS ? 0 : -MC_E_UNSUPPORTED;
	if (rc == 0 && cq)
		rc = mc_cq_begin(cq, eng);
	if (rc == 0) {
		rc = watch_open(eng, cq, user, &w);
		if (rc < 0 && cq)
			mc_cq_undo(cq);
	}
	if (rc == 0) {
		*ret_id = w->op->id;
		watch_begin(eng, w, s, nclosed);
	}
	mc_session_put(s);
	return rc;
}
