/*
 * offer.c: lanes that both ends must make (MC_XCAP_OFFER): ours is opened, what the peer has to
 * know of it goes over the control connection, its answer connects the two. That blocks, so a
 * worker does it, one opening a rail at a time; the lane then lies idle in the session and whoever
 * waits is woken. The introduction says nothing about the rail itself, which may lose everything
 * and still be up: so a lane carries slices only after a round trip of its own. For a rail that was
 * lost the same is the probe.
 */
#include "base/log.h"
#include "engine/classic.h"
#include "engine/ctl.h"
#include "engine/pump.h"
#include "engine/rails.h"
#include "engine/routes.h"

#define OPEN_NS (2 * MC_NS_PER_S)
#define PROVE_NS (2 * MC_NS_PER_S)
#define PROVE_STEP_NS (50 * MC_NS_PER_MS)
#define RETIRE_NS (2 * MC_NS_PER_S)

/* A round trip over the lane. Should it fail, abort() gives `empty` back. */
static int prove(struct mc_elane *lane, struct mc_slice *empty)
{
	uint64_t end_ns = mc_time_after(mc_now_ns(), PROVE_NS);
	struct mc_slice *done;
	int rc = lane->x->ops->post(lane->x, &empty, 1);

	while (rc >= 0) {
		rc = lane->x->ops->poll(lane->x, PROVE_STEP_NS, &done, 1);
		if (rc > 0)
			return empty->status;
		if (rc == 0 && atomic_load(&lane->session->eng->is_closing))
			rc = -MC_E_CLOSED;
		if (rc == 0 && mc_now_ns() >= end_ns)
			rc = -MC_E_UNREACHABLE;
	}
	return rc;
}

/* Worker thread. */
static int lane_open(struct mc_rail *rail, struct mc_elane **ret_lane)
{
	struct mc_slice empty = {.op = MC_OP_WRITE};
	uint8_t offer[MC_CTL_OFFER_MAX], answer[MC_CTL_OFFER_MAX], token[MC_XPORT_TOKEN_MAX];
	struct mc_session *s = rail->session;
	struct mc_list none;
	struct mc_elane *lane;
	int rc = mc_lane_new(s, rail->route, rail->index, &lane);

	if (rc < 0)
		return rc;
	if (s->classic)
		rc = mc_classic_introduce(lane, mc_time_after(mc_now_ns(), OPEN_NS));
	else
		rc = lane->x->ops->offer(lane->x, offer, sizeof(offer));
	if (rc >= 0 && !s->classic)
		rc = mc_ctl_connect(s, mc_route_name(rail->route), offer, (size_t)rc,
				    mc_time_after(mc_now_ns(), OPEN_NS), answer);
	if (rc >= 0 && !s->classic)
		rc = lane->x->ops->connect(lane->x, answer, (size_t)rc);
	if (rc >= 0)
		rc = prove(lane, &empty);
	if (rc < 0) {
		struct mc_fence_token t = {.route = rail->route};

		mc_list_init(&none);
		t.len = lane->x->ops->abort(lane->x, &none, token);
		memcpy(t.bytes, token, t.len);
		mc_lane_free(lane);
		mc_offer_retire(s, &t);
		return rc;
	}
	*ret_lane = lane;
	return 0;
}

/* No rail's fault, and none will do better. */
static bool is_final(int rc)
{
	return rc == -MC_E_UNSUPPORTED || rc == -MC_E_VERSION || rc == -MC_E_PROTO;
}

/* Under session.mu. */
static void outcome(struct mc_rail *rail, int rc, uint64_t now_ns)
{
	struct mc_session *s = rail->session;

	rail->is_opening = false;
	rail->open_rc = rc < 0 ? rc : 0;
	if (rail->health.state == MC_RAIL_PROBING)
		mc_rail_probed(&rail->health, rc == 0, now_ns);
	else if (rc < 0 && !is_final(rc))
		mc_rail_failed(&rail->health, now_ns);
	if (rc == -MC_E_LINK_DOWN && !mc_rails_is_link_down(rail))
		mc_rail_hold(&rail->health, now_ns);
	if (is_final(rc))
		atomic_store_explicit(&s->is_rdma_off, true, memory_order_relaxed);
}

static void open_run(struct mc_worker_job *job)
{
	struct mc_rail *rail = mc_container_of(job, struct mc_rail, open_job);
	struct mc_session *s = rail->session;
	struct mc_elane *lane = NULL;
	int rc = atomic_load(&s->eng->is_closing) ? -MC_E_CLOSED : lane_open(rail, &lane);

	if (rc == 0) {
		lane->idle_since_ns = mc_now_ns();
		atomic_store_explicit(&lane->is_owned, false, memory_order_relaxed);
		mc_lane_join(lane);
	}
	pthread_mutex_lock(&s->mu);
	outcome(rail, rc, mc_now_ns());
	pthread_mutex_unlock(&s->mu);
	mc_log_debug("lane offered", "peer=%s rail=%s outcome=\"%s\"", s->peer->name,
		     rail->stats->rail, mc_err_text(rc));
	if (is_final(rc))
		mc_log_info("no RDMA with this peer", "peer=%s cause=\"%s\"", s->peer->name,
			    mc_err_text(rc));
	mc_session_wake(s);
	mc_session_put(s);
}

static void begin(struct mc_rail *rail)
{
	rail->open_job.run = open_run;
	mc_session_ref(rail->session);
	mc_work_post(rail->session->eng, &rail->open_job);
}

int mc_offer(struct mc_rail *rail)
{
	struct mc_session *s = rail->session;
	bool is_ours;
	int rc = 0;

	if (atomic_load_explicit(&s->is_rdma_off, memory_order_relaxed))
		return -MC_E_UNSUPPORTED;
	pthread_mutex_lock(&s->mu);
	/* Where there is no other route a failure costs a try, and so the pause before the next. */
	if (rail->open_rc < 0 && mc_route_fallback(s, rail->route) == MC_ROUTE_COUNT)
		rc = rail->open_rc;
	rail->open_rc = 0;
	is_ours = rc == 0 && !rail->is_opening;
	rail->is_opening |= is_ours;
	pthread_mutex_unlock(&s->mu);
	if (rc < 0)
		return rc;
	if (is_ours)
		begin(rail);
	return -MC_E_AGAIN;
}

void mc_offer_probe(struct mc_rail *rail)
{
	struct mc_session *s = rail->session;
	bool is_ours;

	pthread_mutex_lock(&s->mu);
	is_ours = !rail->is_opening; /* else that one tells */
	rail->is_opening = true;
	pthread_mutex_unlock(&s->mu);
	if (is_ours)
		begin(rail);
}

/* ---- retiring ---- */

struct retire_job {
	struct mc_worker_job job;
	struct mc_session *session;
	struct mc_fence_token token;
};

static void retire_run(struct mc_worker_job *job)
{
	struct retire_job *j = mc_container_of(job, struct retire_job, job);
	struct mc_session *s = j->session;
	uint64_t acked;

	/* Not answered: the peer ends it by itself, some time after we are gone. */
	if (!atomic_load(&s->eng->is_closing))
		(void)mc_ctl_retire(s, mc_route_name(j->token.route), j->token.bytes, j->token.len,
				    mc_time_after(mc_now_ns(), RETIRE_NS), &acked);
	mc_free(j);
	mc_session_put(s);
}

void mc_offer_retire(struct mc_session *s, const struct mc_fence_token *token)
{
	struct retire_job *j;

	if (token->len == 0 || s->kind != MC_PEER_OURS)
		return;
	j = mc_calloc(1, sizeof(*j));
	if (!j) /* as above */
		return;
	j->job.run = retire_run;
	j->session = s;
	j->token = *token;
	mc_session_ref(s);
	mc_work_post(s->eng, &j->job);
}
