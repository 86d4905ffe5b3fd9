/*
 * ctlconn.c: a session's control connection. Every data port takes control connections, so one that
 * hangs on a lost rail is replaced over another; what is under way on it ends or is asked again
 * there (all calls may be repeated: notifications carry an id).
 */
#include "base/log.h"
#include "base/sync.h"
#include "engine/ctl.h"
#include "engine/rails.h"

#define USER_TIMEOUT_MS 5000u
#define CONNECT_NS (150 * MC_NS_PER_MS) /* one address, while there are others */
#define ATTEMPT_NS (200 * MC_NS_PER_MS) /* first wait for an answer, while there are others */
#define TRIES_MAX 16u
#define OFFERED_NS (20 * MC_NS_PER_S) /* less than the peer keeps what nobody seems to use */

struct mc_ctl_conn {
	struct mc_rpc_conn *rpc;
	unsigned users;
	int rail;    /* its index; -1: the control address, which is on no rail */
	bool is_out; /* replaced: the last user closes it */
};

static void on_down(void *user, int rc)
{
	struct mc_session *s = user;

	atomic_store_explicit(&s->ctl_lost_ns, mc_now_ns(), memory_order_relaxed);
	/* release: pairs with the acquire in is_usable() */
	atomic_store_explicit(&s->is_ctl_lost, true, memory_order_release);
	mc_log_debug("control connection lost", "peer=%s cause=\"%s\"", s->peer->name,
		     mc_err_text(rc));
	mc_watch_lost(s);
}

void mc_ctlconn_free(struct mc_ctl_conn *c)
{
	if (!c)
		return;
	mc_rpc_conn_close(c->rpc);
	mc_free(c);
}

static int connect_to(struct mc_session *s, const struct mc_addr *to, int rail,
		      uint64_t deadline_ns, struct mc_ctl_conn **ret_conn,
		      struct mc_ctl_peer *ret_hello)
{
	struct mc_rpc_conn_opts opts = {
	    .user_timeout_ms = USER_TIMEOUT_MS, .on_down = on_down, .user = s};
	struct mc_ctl_conn *c = mc_calloc(1, sizeof(*c));
	int rc;

	if (!c)
		return -MC_E_NOMEM;
	c->rail = rail;
	if (rail >= 0 && s->tcp.v[rail].local.len)
		opts.from = &s->tcp.v[rail].local;
	rc = mc_rpc_conn_open(&mc_env_real, s->eng->loops[0], to, &opts, &c->rpc);
	if (rc == 0)
		rc = mc_ctl_hello(s->eng, c->rpc, deadline_ns, ret_hello);
	if (rc < 0) {
		mc_ctlconn_free(c);
		return rc;
	}
	*ret_conn = c;
	return 0;
}

int mc_ctlconn_open(struct mc_session *s, uint64_t deadline_ns, struct mc_ctl_peer *ret_hello)
{
	return connect_to(s, &s->ctl_addr, -1, deadline_ns, &s->ctl, ret_hello);
}

/* An address to try. */
struct way {
	const struct mc_addr *to;
	int rail;
};

/* The control port first, then the rails, the data port beside it before others; what is not up, or
 * was bad a moment ago, last. Needs room for tcp.n + 1. */
static unsigned ways(struct mc_session *s, struct way *ret)
{
	int home = mc_rails_to(s, &s->ctl_addr);
	uint32_t up = mc_rails_up(s, MC_ROUTE_TCP);
	unsigned n = 0;

	if (s->ctl_bad_rail >= 0)
		up &= ~(1u << s->ctl_bad_rail);
	for (int pass = 0; pass < 2; pass++) {
		bool is_up = home < 0 || (up & (1u << home));

		if (is_up == (pass == 0))
			ret[n++] = (struct way){&s->ctl_addr, home};
		if (is_up && pass == 0 && home >= 0)
			ret[n++] = (struct way){&s->tcp.v[home].remote, home};
		for (int i = 0; i < (int)s->tcp.n; i++)
			if (!!(up & (1u << i)) == (pass == 0) && (i != home || pass == 1))
				ret[n++] = (struct way){&s->tcp.v[i].remote, i};
	}
	return n;
}

/* Ports of the peer's that refused. */
struct refusals {
	bool has_control;
	unsigned ndata;
};

/* A port that refuses is one that nobody listens on, or a firewall that says so. The process is
 * gone when none of two is listened on: a rule for one port says nothing of the other. */
static bool is_proof(const struct mc_session *s, const struct refusals *r)
{
	return r->has_control ? r->ndata > 0 || s->tcp.n == 0 : r->ndata > 1;
}

/* By the one caller that is_ctl_opening makes it the task of. */
static int reconnect(struct mc_session *s, uint64_t deadline_ns, struct mc_ctl_conn **ret_conn)
{
	struct way w[2 * (MC_RAILS_MAX + 1)];
	unsigned n = ways(s, w);
	int home = mc_rails_to(s, &s->ctl_addr);
	struct refusals refused = {0};
	struct mc_ctl_peer hello = {0};
	struct mc_ctl_conn *c;
	int rc = -MC_E_TIMEDOUT;

	for (unsigned i = 0; i < n; i++) {
		bool is_control = w[i].to == &s->ctl_addr;
		uint64_t now_ns = mc_now_ns();

		/* What loses the one loses the other: beside it is looked for a second word. */
		if (!is_control && w[i].rail == home && !refused.has_control && s->tcp.n > 1)
			continue;
		if (now_ns >= deadline_ns)
			break;
		rc = connect_to(s, w[i].to, w[i].rail,
				s->tcp.n > 1 ? mc_min(deadline_ns, now_ns + CONNECT_NS)
					     : deadline_ns,
				&c, &hello);
		if (rc == -MC_E_REFUSED) {
			refused.has_control |= is_control;
			refused.ndata += !is_control;
			if (is_proof(s, &refused))
				return -MC_E_PEER_DEAD;
		}
		if (rc < 0)
			continue;
		if (hello.epoch == s->epoch) {
			*ret_conn = c;
			return 0;
		}
		mc_ctlconn_free(c);
		return -MC_E_PEER_RESTARTED;
	}
	/* One word is none: neither dead nor refused, which would be taken for dead. */
	return rc == -MC_E_REFUSED ? -MC_E_UNREACHABLE : rc;
}

/* Does it hang on a rail that is lost, while another is not? Under ctl_mu. */
static bool is_stranded(struct mc_session *s, const struct mc_ctl_conn *c)
{
	int rail = c->rail >= 0 ? c->rail : mc_rails_to(s, &s->ctl_addr);
	uint32_t up;

	if (s->tcp.n < 2 || rail < 0)
		return false;
	up = mc_rails_up(s, MC_ROUTE_TCP);
	return up != 0 && !(up & (1u << rail));
}

/* Under ctl_mu, which is let go while another caller connects: none waits longer than it has time.
 */
static int turn_wait(struct mc_session *s, uint64_t deadline_ns)
{
	while (s->is_ctl_opening) {
		uint32_t seq = atomic_load_explicit(&s->ctl_seq, memory_order_relaxed);
		int rc;

		pthread_mutex_unlock(&s->ctl_mu);
		rc = mc_futex_wait(&s->ctl_seq, seq, deadline_ns);
		pthread_mutex_lock(&s->ctl_mu);
		if (rc == -MC_E_TIMEDOUT && s->is_ctl_opening)
			return rc;
		if (atomic_load_explicit(&s->is_gone, memory_order_acquire))
			return -MC_E_PEER_DEAD;
	}
	return 0;
}

/* A peer without any connection of ours may have ended our RDMA lanes. */
static void lanes_review(struct mc_session *s)
{
	uint64_t lost_ns = atomic_load_explicit(&s->ctl_lost_ns, memory_order_relaxed);

	atomic_store_explicit(&s->ctl_lost_ns, 0, memory_order_relaxed);
	if (s->rdma.n > 0 && lost_ns && mc_now_ns() >= mc_time_after(lost_ns, OFFERED_NS))
		mc_lane_drop_idle(s, MC_ROUTE_RDMA);
}

int mc_ctlconn_get(struct mc_session *s, uint64_t deadline_ns, struct mc_ctl_conn **ret_conn)
{
	struct mc_ctl_conn *old = NULL, *fresh = NULL;
	int rc;

	if (atomic_load_explicit(&s->is_gone, memory_order_acquire))
		return -MC_E_PEER_DEAD;
	pthread_mutex_lock(&s->ctl_mu);
	rc = turn_wait(s, deadline_ns);
	if (rc < 0) {
		pthread_mutex_unlock(&s->ctl_mu);
		return rc;
	}
	atomic_store_explicit(&s->is_ctl_lost, false, memory_order_relaxed);
	if (s->ctl && (mc_rpc_conn_status(s->ctl->rpc) < 0 || is_stranded(s, s->ctl))) {
		s->ctl->is_out = true;
		old = s->ctl->users == 0 ? s->ctl : NULL;
		s->ctl = NULL;
	}
	if (!s->ctl) {
		s->is_ctl_opening = true;
		pthread_mutex_unlock(&s->ctl_mu);
		rc = reconnect(s, deadline_ns, &fresh);
		if (rc == 0)
			lanes_review(s);
		if (rc < 0)
			atomic_store_explicit(&s->is_ctl_lost, true, memory_order_relaxed);
		if (rc == -MC_E_PEER_DEAD || rc == -MC_E_PEER_RESTARTED)
			mc_session_gone(s);
		pthread_mutex_lock(&s->ctl_mu);
		s->ctl = fresh;
		s->is_ctl_opening = false;
		atomic_fetch_add_explicit(&s->ctl_seq, 1, memory_order_relaxed);
		mc_futex_wake(&s->ctl_seq, UINT32_MAX);
	}
	if (rc == 0) {
		s->ctl->users++;
		*ret_conn = s->ctl;
	}
	pthread_mutex_unlock(&s->ctl_mu);
	mc_ctlconn_free(old);
	return rc;
}

void mc_ctlconn_put(struct mc_session *s, struct mc_ctl_conn *c, bool is_bad)
{
	bool is_over, is_none;

	pthread_mutex_lock(&s->ctl_mu);
	/* A connection that gave no answer in time may hang on a dead link: the next call makes
	 * another. */
	if (is_bad && s->ctl == c) {
		s->ctl = NULL;
		c->is_out = true;
		atomic_store_explicit(&s->ctl_lost_ns, mc_now_ns(), memory_order_relaxed);
		s->ctl_bad_rail = c->rail >= 0 ? c->rail : mc_rails_to(s, &s->ctl_addr);
	} else if (!is_bad) {
		s->ctl_bad_rail = -1;
	}
	is_over = --c->users == 0 && c->is_out;
	is_none = !s->ctl;
	pthread_mutex_unlock(&s->ctl_mu);
	if (is_none) /* nothing would tell of the peer's end */
		mc_watch_lost(s);
	if (is_over)
		mc_ctlconn_free(c);
}

int mc_session_call(struct mc_session *s, uint16_t method, const void *req, size_t req_len,
		    uint64_t deadline_ns, void *reply, size_t reply_cap, size_t *ret_len)
{
	uint64_t attempt_ns = ATTEMPT_NS;
	struct mc_ctl_conn *c;
	int rc = -MC_E_UNSUPPORTED;

	if (s->kind != MC_PEER_OURS)
		return rc;
	for (unsigned i = 0; i < TRIES_MAX; i++) {
		struct mc_rpc_call call = {.method = method,
					   .req = req,
					   .req_len = req_len,
					   .deadline_ns = deadline_ns,
					   .reply_buf = reply,
					   .reply_cap = reply_cap};
		bool is_late;

		rc = mc_ctlconn_get(s, deadline_ns, &c);
		if (rc != 0)
			return rc;
		/* Silence may be the rail's: with others, ask again there, with more patience. */
		if (s->tcp.n > 1 && i + 1 < TRIES_MAX)
			call.deadline_ns =
			    mc_min(deadline_ns, mc_time_after(mc_now_ns(), attempt_ns));
		attempt_ns *= 2;
		rc = mc_rpc_sync(c->rpc, &call);
		*ret_len = call.reply_len;
		mc_ctlconn_put(s, c, rc < 0 && !call.is_answered);
		if (rc == 0 || call.is_answered)
			return rc;
		is_late = rc == -MC_E_TIMEDOUT && mc_now_ns() < deadline_ns;
		/* Alone, once more on a fresh connection if the old one was dead. */
		if (!is_late && (mc_err_scope(rc) != MC_SCOPE_RAIL || i >= s->tcp.n))
			return rc;
	}
	return rc;
}
