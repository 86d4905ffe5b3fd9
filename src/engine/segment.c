/*
 * segment.c: segment names and ids. A peer stays known under its id until the engine closes, so an
 * id costs no reference; what it leads to, the session, is counted.
 */
#include <string.h>

#include "base/fork.h"
#include "disco/segdesc.h"
#include "engine/ctl.h"
#include "engine/priv.h"

static uint64_t deadline_of(const struct mc_engine *eng, uint64_t timeout_ns)
{
	if (timeout_ns == 0)
		timeout_ns = (uint64_t)eng->conf.transfer_timeout_s * MC_NS_PER_S;
	return mc_time_after(mc_now_ns(), timeout_ns);
}

/* Under peers_mu. */
static int peer_new(struct mc_engine *eng, const char *name, struct mc_peer **ret_peer)
{
	struct mc_peer *p;
	int rc = mc_array_grow((void **)&eng->peers, &eng->peers_cap, eng->npeers + 1, MC_PEERS_MAX,
			       sizeof(*eng->peers));

	if (rc < 0)
		return rc == -MC_E_TOO_BIG ? -MC_E_LIMIT : rc;
	p = mc_calloc(1, sizeof(*p));
	if (!p)
		return -MC_E_NOMEM;
	p->eng = eng;
	p->name = mc_strdup(name);
	p->id = (int32_t)eng->npeers;
	rc = p->name ? mc_map_put(&eng->peers_by_name, name, p, NULL) : -MC_E_NOMEM;
	if (rc < 0) {
		mc_free(p->name);
		mc_free(p);
		return rc;
	}
	pthread_mutex_init(&p->mu, NULL);
	mc_pend_peer_init(p);
	eng->peers[eng->npeers++] = p;
	*ret_peer = p;
	return 0;
}

int mc_peers_open(struct mc_engine *eng)
{
	struct mc_peer *p;
	int rc;

	mc_map_init(&eng->peers_by_name, MC_PEERS_MAX);
	pthread_mutex_lock(&eng->peers_mu);
	rc = peer_new(eng, eng->name, &p);
	pthread_mutex_unlock(&eng->peers_mu);
	return rc;
}

/* The peer's session, with its reference. NULL: it has none. */
static struct mc_session *session_take(struct mc_peer *p)
{
	struct mc_session *s;

	pthread_mutex_lock(&p->mu);
	s = p->session;
	p->session = NULL;
	pthread_mutex_unlock(&p->mu);
	return s;
}

static void session_drop(struct mc_peer *p)
{
	struct mc_session *s = session_take(p);

	if (s) {
		atomic_store_explicit(&s->is_closed, true, memory_order_relaxed);
		mc_session_kill(s);
		mc_session_put(s);
	}
}

void mc_peers_close(struct mc_engine *eng)
{
	for (size_t i = 0; i < eng->npeers; i++)
		session_drop(eng->peers[i]);
	/* Sessions end on workers; their peers must outlive them. */
	while (atomic_load_explicit(&eng->sessions_live, memory_order_acquire) > 0) {
		struct timespec ts = {.tv_nsec = 200000};

		(void)nanosleep(&ts, NULL);
	}
	for (size_t i = 0; i < eng->npeers; i++) {
		pthread_mutex_destroy(&eng->peers[i]->mu);
		mc_free(eng->peers[i]->name);
		mc_free(eng->peers[i]);
	}
	mc_free(eng->peers);
	eng->peers = NULL;
	eng->npeers = 0;
	if (eng->peers_by_name.max > 0) /* else opening failed before it was made */
		mc_map_fini(&eng->peers_by_name);
}

int mc_peer_by_id(struct mc_engine *eng, int32_t id, struct mc_peer **ret_peer)
{
	int rc = -MC_E_STALE;

	pthread_mutex_lock(&eng->peers_mu);
	if (id >= 0 && (size_t)id < eng->npeers &&
	    !atomic_load_explicit(&eng->peers[id]->is_closed, memory_order_relaxed)) {
		*ret_peer = eng->peers[id];
		rc = 0;
	}
	pthread_mutex_unlock(&eng->peers_mu);
	return rc;
}

static int peer_by_name(struct mc_engine *eng, const char *name, struct mc_peer **ret_peer)
{
	int rc = 0;

	pthread_mutex_lock(&eng->peers_mu);
	*ret_peer = mc_map_get(&eng->peers_by_name, name);
	if (!*ret_peer)
		rc = peer_new(eng, name, ret_peer);
	pthread_mutex_unlock(&eng->peers_mu);
	return rc;
}

/* Upstream strips a leading slash of a name. */
static const char *clean_name(const char *name)
{
	return name && name[0] == '/' ? name + 1 : name;
}

int mc_segment_open(struct mc_engine *eng, const char *name, uint64_t timeout_ns,
		    struct mc_diag *diag, int32_t *ret_segment)
{
	struct mc_session *s;
	struct mc_peer *p;
	int rc;

	if (mc_engine_is_forked(eng))
		return -MC_E_FORKED;
	name = clean_name(name);
	if (!name || !name[0] || strlen(name) >= MC_CTL_TEXT_MAX) {
		mc_diag_set(diag, "segment name is empty or longer than %u bytes",
			    MC_CTL_TEXT_MAX - 1);
		return -MC_E_INVAL;
	}
	rc = peer_by_name(eng, name, &p);
	if (rc < 0) {
		mc_diag_set(diag, "segment %s: %s", name, mc_err_text(rc));
		return rc;
	}
	atomic_store_explicit(&p->is_closed, false, memory_order_relaxed);
	rc = mc_session_get(p, deadline_of(eng, timeout_ns), diag, &s);
	if (rc < 0)
		return rc;
	mc_session_put(s);
	*ret_segment = p->id;
	return 0;
}

/* @return 1; 0 (it is this engine itself); -MC_E_FORKED; as mc_peer_by_id() */
static int other_by_id(struct mc_engine *eng, int32_t segment, struct mc_peer **ret_peer)
{
	int rc;

	if (mc_engine_is_forked(eng))
		return -MC_E_FORKED;
	if (segment == MC_SEGMENT_LOCAL)
		return 0;
	rc = mc_peer_by_id(eng, segment, ret_peer);
	return rc < 0 ? rc : 1;
}

int mc_segment_close(struct mc_engine *eng, int32_t segment)
{
	struct mc_peer *p;
	int rc;

	rc = other_by_id(eng, segment, &p);
	if (rc <= 0)
		return rc;
	atomic_store_explicit(&p->is_closed, true, memory_order_relaxed);
	atomic_fetch_add_explicit(&p->nclosed, 1, memory_order_relaxed);
	session_drop(p);
	mc_watch_closed(eng, p);
	return 0;
}

int mc_segment_release(struct mc_engine *eng, int32_t segment)
{
	struct mc_session *s;
	struct mc_peer *p;
	int rc;

	rc = other_by_id(eng, segment, &p);
	if (rc <= 0)
		return rc;
	s = session_take(p);
	if (s)
		mc_session_put(s);
	return 0;
}

int mc_segment_probe(struct mc_engine *eng, const char *name, uint64_t timeout_ns,
		     struct mc_diag *diag)
{
	uint64_t deadline_ns;
	struct mc_meta_rpc rpc;
	char address[MC_META_HOST_MAX + 16];
	int rc;

	if (mc_engine_is_forked(eng))
		return -MC_E_FORKED;
	name = clean_name(name);
	if (!name || !name[0] || strlen(name) >= MC_CTL_TEXT_MAX) {
		mc_diag_set(diag, "segment name is empty or too long");
		return -MC_E_INVAL;
	}
	if (strncmp(name, MC_FILE_SCHEME, strlen(MC_FILE_SCHEME)) == 0) {
		mc_diag_set(diag, "%s: a file has no process to ask", name);
		return -MC_E_UNSUPPORTED;
	}
	deadline_ns = deadline_of(eng, timeout_ns ? timeout_ns : 5 * MC_NS_PER_S);
	if (eng->meta) {
		rc = mc_meta_rpc_get(eng->meta, name, deadline_ns, &rpc, diag);
		if (rc == 0)
			rc = mc_control_name(rpc.host, rpc.port, address, sizeof(address));
		if (rc < 0)
			return rc;
		name = address;
	}
	return mc_handshake_probe(&eng->hs, name, deadline_ns, diag);
}

int mc_segment_first_addr(struct mc_engine *eng, int32_t segment, uint64_t *ret_addr)
{
	struct mc_segdesc *desc;
	struct mc_session *s;
	struct mc_addr at;
	struct mc_peer *p;
	int rc;

	if (mc_engine_is_forked(eng))
		return -MC_E_FORKED;
	rc = mc_peer_by_id(eng, segment, &p);
	if (rc < 0)
		return rc;
	rc = mc_session_get(p, deadline_of(eng, 0), NULL, &s);
	if (rc < 0)
		return rc;
	if (segment == MC_SEGMENT_LOCAL) {
		rc = mc_mem_first(eng, ret_addr);
	} else if (s->kind == MC_PEER_FILE) {
		*ret_addr = 0;
	} else {
		rc = mc_find_peer(s, deadline_of(eng, 0), NULL, &at, &desc);
		if (rc == 0) {
			*ret_addr = desc->nbuffers ? desc->buffers[0].addr : 0;
			mc_segdesc_free(desc);
		}
	}
	mc_session_put(s);
	return rc;
}
