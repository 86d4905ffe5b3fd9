/*
 * session.c: one incarnation of a peer: how it is found, what it is told, which of its ranges are
 * known.
 *
 * Opening: the name leads to a control address (by itself, or through the metadata service) and to
 * the peer's descriptor. A peer of our own kind is then greeted over rpc: epoch, nonce, rails,
 * shared memory. Any other is upstream's and its descriptor is all there is. A session ends with
 * its last reference; what it knew of the peer (regions) lives as long, so groups under way never
 * dangle.
 */
#include <string.h>
#include <time.h>

#include "base/log.h"
#include "base/sync.h"
#include "disco/segdesc.h"
#include "engine/classic.h"
#include "engine/ctl.h"
#include "engine/pump.h"
#include "engine/rails.h"
#include "xport/file.h"
#include "xport/shm.h"

#define SHM_ATTACH_NS (2 * MC_NS_PER_S)
#define REGIONS_MAX 1000000u
#define REGIONS_RENEW (REGIONS_MAX / 4 * 3)
#define LOOK_NS MC_NS_PER_S /* for a lost control connection before its session is used again */

void mc_session_ref(struct mc_session *s)
{
	atomic_fetch_add_explicit(&s->refs, 1, memory_order_relaxed);
}

static void regions_free(struct mc_session *s)
{
	struct mc_inode *n;
	struct mc_eregion *r;

	while ((n = mc_itree_first(&s->regions))) {
		mc_itree_del(&s->regions, n);
		mc_free(mc_container_of(n, struct mc_eregion, node));
	}
	mc_list_each (r, &s->stale, link)
		mc_free(r);
}

/* Everything that blocks or touches loops; runs on a worker, because the last reference may end on
 * a loop. */
static void session_free(struct mc_worker_job *job)
{
	struct mc_session *s = mc_container_of(job, struct mc_session, end_job);

	mc_session_pumps_close(s);
	mc_lane_drop_idle(s, MC_ROUTE_COUNT);
	mc_assert(mc_list_is_empty(&s->lanes));
	mc_ctlconn_free(s->ctl);
	mc_shm_peer_detach(s->shm);
	mc_file_seg_close(s->file);
	mc_free(s->classic);
	regions_free(s);
	/* A peer without incarnations cannot be fenced, and who comes next under its name may be
	 * another. */
	if (s->kind == MC_PEER_CLASSIC)
		mc_quarantine_forget(&s->eng->quarantine, s->fence_key);
	pthread_mutex_destroy(&s->mu);
	pthread_mutex_destroy(&s->ctl_mu);
	atomic_fetch_sub_explicit(&s->eng->sessions_live, 1, memory_order_release);
	mc_free(s);
}

void mc_session_put(struct mc_session *s)
{
	if (atomic_fetch_sub_explicit(&s->refs, 1, memory_order_acq_rel) != 1)
		return;
	s->end_job.run = session_free;
	mc_work_post(s->eng, &s->end_job);
}

void mc_session_kill(struct mc_session *s)
{
	atomic_store_explicit(&s->is_dead, true, memory_order_release);
}

void mc_session_gone(struct mc_session *s)
{
	atomic_store_explicit(&s->is_gone, true, memory_order_release);
	mc_quarantine_forget(&s->eng->quarantine, s->fence_key);
	mc_session_kill(s);
	mc_watch_gone(s->eng, s->fence_key);
}

static struct mc_session *session_new(struct mc_peer *peer, enum mc_peer_kind kind)
{
	struct mc_session *s = mc_calloc(1, sizeof(*s));

	if (!s)
		return NULL;
	s->eng = peer->eng;
	s->peer = peer;
	s->kind = kind;
	mc_rails_init(s);
	mc_session_wakes_init(s);
	s->ctl_bad_rail = -1;
	atomic_init(&s->refs, 1);
	pthread_mutex_init(&s->mu, NULL);
	pthread_mutex_init(&s->ctl_mu, NULL);
	mc_list_init(&s->lanes);
	mc_list_init(&s->stale);
	atomic_fetch_add_explicit(&s->eng->sessions_live, 1, memory_order_relaxed);
	return s;
}

/* ---- regions ---- */

/* Under s->mu: remember a region; the known one when it is there already. */
static int region_add(struct mc_session *s, const struct mc_remote_region *r,
		      const struct mc_remote_region **ret)
{
	struct mc_inode *n = mc_itree_find_exact(&s->regions, r->addr, r->addr + r->len);
	struct mc_eregion *e = n ? mc_container_of(n, struct mc_eregion, node) : NULL;

	if (e && e->r.id == r->id && e->r.gen == r->gen &&
	    memcmp(e->r.key, r->key, sizeof(r->key)) == 0) {
		*ret = &e->r;
		return 0;
	}
	if (atomic_load_explicit(&s->nregions, memory_order_relaxed) >= REGIONS_MAX)
		return -MC_E_LIMIT;
	e = mc_calloc(1, sizeof(*e));
	if (!e)
		return -MC_E_NOMEM;
	if (n) { /* the range was registered anew: the old knowledge is stale */
		struct mc_eregion *old = mc_container_of(n, struct mc_eregion, node);

		mc_itree_del(&s->regions, n);
		mc_list_push_back(&s->stale, &old->link);
	}
	e->r = *r;
	mc_list_init(&e->link);
	mc_itree_insert(&s->regions, &e->node, r->addr, r->addr + r->len);
	atomic_fetch_add_explicit(&s->nregions, 1, memory_order_relaxed);
	*ret = &e->r;
	return 0;
}

void mc_session_forget(struct mc_session *s, const struct mc_remote_region *region)
{
	struct mc_eregion *e = mc_container_of(region, struct mc_eregion, r);

	pthread_mutex_lock(&s->mu);
	/* relaxed: who misses it is told by the peer */
	atomic_store_explicit(&e->is_stale, true, memory_order_relaxed);
	if (mc_list_is_empty(&e->link)) {
		mc_itree_del(&s->regions, &e->node);
		mc_list_push_back(&s->stale, &e->link);
	}
	pthread_mutex_unlock(&s->mu);
}

static const struct mc_remote_region *region_known(struct mc_session *s, uint64_t addr,
						   uint64_t len)
{
	struct mc_inode *n = mc_itree_find(&s->regions, addr, len);

	return n ? &mc_container_of(n, struct mc_eregion, node)->r : NULL;
}

/* Regions of this process itself come from the table at once. */
static int resolve_self(struct mc_session *s, uint64_t addr, uint64_t len,
			struct mc_remote_region *ret)
{
	struct mc_region_info info;
	int rc = mc_region_find(s->eng->regions, addr, len, &info);

	if (rc < 0)
		rc = mc_region_find(s->eng->regions, addr, 1, &info);
	if (rc < 0)
		return rc;
	*ret = (struct mc_remote_region){.addr = info.desc.addr,
					 .len = info.desc.len,
					 .id = info.id,
					 .gen = info.gen,
					 .rights = info.desc.rights,
					 .kind = info.desc.kind,
					 .arena = info.desc.arena,
					 .arena_off = info.desc.arena_off};
	return 0;
}

int mc_session_learn(struct mc_session *s, const struct mc_remote_region *r,
		     const struct mc_remote_region **ret)
{
	int rc;

	pthread_mutex_lock(&s->mu);
	rc = region_add(s, r, ret);
	pthread_mutex_unlock(&s->mu);
	return rc;
}

const struct mc_remote_region *mc_session_region_known(struct mc_session *s, uint64_t addr,
						       uint64_t len)
{
	const struct mc_remote_region *r;

	pthread_mutex_lock(&s->mu);
	r = region_known(s, addr, len);
	if (!r && s->kind == MC_PEER_CLASSIC)
		r = region_known(s, addr, 1);
	pthread_mutex_unlock(&s->mu);
	return r;
}

int mc_session_region(struct mc_session *s, uint64_t addr, uint64_t len, uint64_t deadline_ns,
		      const struct mc_remote_region **ret_region)
{
	struct mc_iov range = {addr, len};
	struct mc_remote_region r = {0};
	int rc;

	*ret_region = mc_session_region_known(s, addr, len);
	if (*ret_region)
		return 0;
	if (s->kind == MC_PEER_SELF)
		rc = resolve_self(s, addr, len, &r);
	else if (s->kind == MC_PEER_OURS)
		rc = mc_ctl_resolve(s, &range, 1, deadline_ns, &r);
	else if (s->kind == MC_PEER_CLASSIC)
		rc = mc_classic_refresh(s, addr, deadline_ns, ret_region);
	else
		rc = -MC_E_RANGE;
	if (rc < 0 || s->kind == MC_PEER_CLASSIC)
		return rc;
	return r.gen == 0 ? -MC_E_RANGE : mc_session_learn(s, &r, ret_region);
}

int mc_session_resolve(struct mc_session *s, const struct mc_iov *ranges, size_t n,
		       uint64_t deadline_ns)
{
	struct mc_iov ask[MC_CTL_RESOLVE_MAX];
	struct mc_remote_region *got;
	const struct mc_remote_region *r;
	size_t i = 0;
	int rc = 0;

	while (i < n && rc == 0) {
		size_t k = 0;

		pthread_mutex_lock(&s->mu);
		for (; i < n && k < MC_CTL_RESOLVE_MAX; i++)
			if (ranges[i].len && !region_known(s, ranges[i].addr, ranges[i].len))
				ask[k++] = ranges[i];
		pthread_mutex_unlock(&s->mu);
		if (k == 0)
			break;
		got = mc_calloc(k, sizeof(*got));
		if (!got)
			return -MC_E_NOMEM;
		rc = mc_ctl_resolve(s, ask, k, deadline_ns, got);
		for (size_t j = 0; j < k && rc == 0; j++)
			if (got[j].gen != 0)
				rc = mc_session_learn(s, &got[j], &r);
		mc_free(got);
	}
	return rc;
}

/* ---- opening ---- */

static void try_shm(struct mc_session *s, const struct mc_ctl_peer *hello, uint64_t deadline_ns)
{
	struct mc_shm_peer_id id = {
	    .path = hello->shm_socket, .nonce = s->nonce, .epoch = s->epoch, .name = s->peer->name};
	struct mc_diag diag = {0};
	int rc;

	if (!s->eng->shm || s->eng->conf.is_tcp_only || !hello->shm_socket[0])
		return;
	/* Where one of us has no /proc, the socket tells: its name is not found by chance. */
	if (hello->boot_id[0] && s->eng->boot_id[0] &&
	    strcmp(hello->boot_id, s->eng->boot_id) != 0) {
		mc_log_debug("no shared memory: another host", "peer=%s", s->peer->name);
		return;
	}
	rc = mc_shm_peer_attach(s->eng->shm, &id, mc_min(deadline_ns, mc_now_ns() + SHM_ATTACH_NS),
				&s->shm, &diag);
	if (rc < 0)
		mc_log_debug("no shared memory", "peer=%s cause=\"%s\" detail=\"%s\"",
			     s->peer->name, mc_err_text(rc), diag.text);
}

static int open_ours(struct mc_session *s, uint64_t deadline_ns, struct mc_diag *diag)
{
	struct mc_ctl_peer hello;
	char text[MC_ADDR_TEXT_MAX];
	int rc = mc_ctlconn_open(s, deadline_ns, &hello);

	if (rc < 0) {
		mc_diag_set(diag, "control connection to %s: %s",
			    mc_addr_format(&s->ctl_addr, text), mc_err_text(rc));
		return rc;
	}
	s->epoch = s->fence_key = hello.epoch;
	memcpy(s->nonce, hello.nonce, sizeof(s->nonce));
	if (hello.epoch == s->eng->epoch && !s->eng->conf.is_tcp_only) {
		s->kind = MC_PEER_SELF;
		return 0;
	}
	rc = mc_rails_set(s, &hello);
	if (rc < 0) {
		mc_diag_set(diag, "%s names no usable data address", s->peer->name);
		return rc;
	}
	try_shm(s, &hello, deadline_ns);
	return 0;
}

static int session_open(struct mc_peer *peer, uint64_t deadline_ns, struct mc_diag *diag,
			struct mc_session **ret)
{
	struct mc_engine *eng = peer->eng;
	bool is_self = peer->id == MC_SEGMENT_LOCAL;
	struct mc_session *s = session_new(peer, is_self ? MC_PEER_SELF : MC_PEER_OURS);
	struct mc_segdesc *desc = NULL;
	int rc = 0;

	if (!s)
		return -MC_E_NOMEM;
	if (is_self && eng->conf.is_tcp_only) {
		s->kind = MC_PEER_OURS;
		rc = mc_addr_parse(eng->address, 0, &s->ctl_addr);
		if (rc == 0)
			rc = open_ours(s, deadline_ns, diag);
	} else if (strncmp(peer->name, MC_FILE_SCHEME, strlen(MC_FILE_SCHEME)) == 0) {
		rc = mc_session_open_file(s, diag);
	} else if (!is_self) {
		rc = mc_find_peer(s, deadline_ns, diag, &s->ctl_addr, &desc);
		if (rc == 0 && desc->ext.version > 0) {
			rc = open_ours(s, deadline_ns, diag);
		} else if (rc == 0) {
			s->kind = MC_PEER_CLASSIC;
			s->fence_key =
			    atomic_fetch_add_explicit(&eng->next_key, 1, memory_order_relaxed);
			rc = mc_classic_open(s, desc, diag);
		}
	}
	mc_segdesc_free(desc);
	if (rc < 0) {
		mc_diag_wrap(diag, "segment %s", peer->name);
		mc_session_put(s);
		return rc;
	}
	mc_log_info("session open", "peer=%s kind=%d rails=%u rdma_rails=%u shm=%d", peer->name,
		    (int)s->kind, s->tcp.n, s->rdma.n, s->shm != NULL);
	*ret = s;
	return 0;
}

/* Never blocks. */
static bool is_alive(struct mc_session *s)
{
	if (atomic_load_explicit(&s->is_dead, memory_order_acquire))
		return false;
	/* What was learnt of regions that are no more is kept as long as the session. */
	if (atomic_load_explicit(&s->nregions, memory_order_relaxed) >= REGIONS_RENEW)
		return false;
	return !s->shm || !mc_shm_peer_is_dead(s->shm);
}

/* Still the one to use? A lost control connection may mean that the process is another one by now.
 */
static bool is_usable(struct mc_session *s, uint64_t deadline_ns)
{
	struct mc_ctl_conn *conn;

	if (atomic_load_explicit(&s->is_dead, memory_order_acquire))
		return false;
	if (atomic_load_explicit(&s->is_ctl_lost, memory_order_acquire) &&
	    mc_ctlconn_get(s, deadline_ns, &conn) == 0)
		mc_ctlconn_put(s, conn, false);
	return is_alive(s);
}

/* Under peer->mu, which is let go while waiting. @return 0: it is our turn; -MC_E_TIMEDOUT */
static int turn_wait(struct mc_peer *peer, uint64_t deadline_ns)
{
	while (peer->is_opening) {
		uint32_t seq = atomic_load_explicit(&peer->open_seq, memory_order_relaxed);
		int rc;

		pthread_mutex_unlock(&peer->mu);
		rc = mc_futex_wait(&peer->open_seq, seq, deadline_ns);
		pthread_mutex_lock(&peer->mu);
		if (rc == -MC_E_TIMEDOUT && peer->is_opening)
			return rc;
	}
	return 0;
}

/* Look at, or replace, the session that peer->is_opening makes ours to care for; *ret has a
 * reference. */
static int session_renew(struct mc_peer *peer, uint64_t deadline_ns, struct mc_diag *diag,
			 struct mc_session *now, struct mc_session **ret)
{
	if (now && is_usable(now, mc_min(deadline_ns, mc_time_after(mc_now_ns(), LOOK_NS)))) {
		mc_session_ref(now);
		*ret = now;
		return 0;
	}
	if (now)
		mc_session_kill(now);
	return session_open(peer, deadline_ns, diag, ret);
}

/* The turn is over: `s`, which may be NULL, is the peer's session from now on. */
static int turn_end(struct mc_peer *peer, struct mc_session *s, struct mc_session **ret_old)
{
	int rc = 0;

	pthread_mutex_lock(&peer->mu);
	if (s && (atomic_load_explicit(&peer->is_closed, memory_order_relaxed) ||
		  atomic_load_explicit(&s->is_closed, memory_order_relaxed))) {
		rc = -MC_E_STALE;
	} else if (s && s != peer->session) {
		*ret_old = peer->session;
		peer->session = s;
		mc_session_ref(s);
	} else if (!s && peer->session &&
		   atomic_load_explicit(&peer->session->is_dead, memory_order_acquire)) {
		*ret_old = peer->session;
		peer->session = NULL;
	}
	peer->is_opening = false;
	atomic_fetch_add_explicit(&peer->open_seq, 1, memory_order_relaxed);
	pthread_mutex_unlock(&peer->mu);
	mc_futex_wake(&peer->open_seq, UINT32_MAX);
	return rc;
}

static bool needs_look(struct mc_session *s)
{
	return atomic_load_explicit(&s->is_ctl_lost, memory_order_acquire) || !is_alive(s);
}

struct mc_session *mc_session_now(struct mc_peer *peer)
{
	struct mc_session *s = NULL;

	pthread_mutex_lock(&peer->mu);
	if (!peer->is_opening && peer->session && !needs_look(peer->session) &&
	    !atomic_load_explicit(&peer->is_closed, memory_order_relaxed)) {
		s = peer->session;
		mc_session_ref(s);
	}
	pthread_mutex_unlock(&peer->mu);
	return s;
}

int mc_session_get(struct mc_peer *peer, uint64_t deadline_ns, struct mc_diag *diag,
		   struct mc_session **ret_session)
{
	struct mc_session *now = NULL, *s = NULL, *old = NULL;
	int rc;

	pthread_mutex_lock(&peer->mu);
	rc = turn_wait(peer, deadline_ns);
	if (rc == 0 && atomic_load_explicit(&peer->is_closed, memory_order_relaxed))
		rc = -MC_E_STALE;
	if (rc == 0) {
		now = peer->session;
		if (now)
			mc_session_ref(now);
		if (!now || needs_look(now))
			peer->is_opening = true;
		else
			s = now;
	}
	pthread_mutex_unlock(&peer->mu);
	if (rc < 0)
		mc_diag_set(diag, "segment %s: %s", peer->name, mc_err_text(rc));
	if (s || rc < 0) {
		*ret_session = s;
		return rc;
	}
	rc = session_renew(peer, deadline_ns, diag, now, &s);
	if (turn_end(peer, rc == 0 ? s : NULL, &old) < 0) {
		mc_assert(s); /* there is no turn without one that could be stale */
		mc_diag_set(diag, "segment %s was closed", peer->name);
		mc_session_put(s);
		rc = -MC_E_STALE;
	}
	if (now)
		mc_session_put(now);
	if (old)
		mc_session_put(old);
	if (rc == 0)
		*ret_session = s;
	return rc;
}
