/*
 * view.c: the owners as the master last described them, and what this process found out about them
 * itself: one that failed is left alone for a while.
 */
#include "base/log.h"
#include "base/rand.h"
#include "base/str.h"
#include "client/priv.h"
#include "wire/store.pb-c.h"

#define SEGMENT_OPEN_NS (3 * MC_NS_PER_S)

void mc_cli_view_init(struct mc_cli_view *view)
{
	pthread_mutex_init(&view->mu, NULL);
	view->rand = mc_now_ns();
}

void mc_cli_view_fini(struct mc_cli_view *view)
{
	for (size_t i = 0; i < view->n; i++) {
		mc_cli_end_fini(&view->owners[i]->end);
		mc_free(view->owners[i]);
	}
	mc_free(view->owners);
	pthread_mutex_destroy(&view->mu);
}

/* Under mu. */
static struct mc_cli_owner *find(struct mc_cli_view *view, uint64_t id)
{
	for (size_t i = 0; i < view->n; i++)
		if (view->owners[i]->id == id)
			return view->owners[i];
	return NULL;
}

struct mc_cli_owner *mc_cli_view_find(struct mc_store *st, uint64_t id)
{
	struct mc_cli_owner *o;

	pthread_mutex_lock(&st->view.mu);
	o = find(&st->view, id);
	pthread_mutex_unlock(&st->view.mu);
	return o;
}

/* Under mu. NULL: no memory, or too many. */
static struct mc_cli_owner *add(struct mc_store *st, uint64_t id)
{
	struct mc_cli_view *view = &st->view;
	struct mc_cli_owner *o = find(view, id);
	void *owners = view->owners;

	if (o)
		return o;
	if (mc_array_grow(&owners, &view->cap, view->n + 1, MC_CLI_OWNERS_MAX,
			  sizeof(*view->owners)) < 0)
		return NULL;
	view->owners = owners;
	o = mc_calloc(1, sizeof(*o));
	if (!o)
		return NULL;
	o->id = id;
	o->segment = -1;
	mc_cli_end_init(&o->end, st, false);
	view->owners[view->n++] = o;
	return o;
}

/* Under mu. */
static void describe(struct mc_cli_owner *o, const Mc__St__ViewOwner *v)
{
	if (o->incarnation != v->incarnation || strcmp(o->segment_name, v->segment) != 0) {
		o->segment = -1; /* the engine knows whether its name means somebody else now */
		o->bad_until_ns = 0;
	}
	o->incarnation = v->incarnation;
	o->capacity = v->capacity;
	o->free_bytes = v->free;
	o->takes_puts = v->takes_puts;
	o->is_there = true;
	(void)mc_strlcpy(o->segment_name, sizeof(o->segment_name), v->segment);
	(void)mc_strlcpy(o->host, sizeof(o->host), v->host);
}

/* @param known  what the master was told that we have: then it says nothing more */
static void adopt(struct mc_store *st, const Mc__St__ViewReply *reply, uint64_t known)
{
	struct mc_cli_view *view = &st->view;

	pthread_mutex_lock(&view->mu);
	if (reply->version == known && view->version != known) { /* it was reset meanwhile */
		pthread_mutex_unlock(&view->mu);
		return;
	}
	view->fetched_ns = mc_now_ns();
	if (reply->version == view->version) {
		pthread_mutex_unlock(&view->mu);
		return;
	}
	view->version = reply->version;
	for (size_t i = 0; i < view->n; i++)
		view->owners[i]->is_there = view->owners[i]->takes_puts = false;
	pthread_mutex_unlock(&view->mu);
	for (size_t i = 0; i < reply->n_owners; i++) {
		const Mc__St__ViewOwner *v = reply->owners[i];
		struct mc_cli_owner *o;

		pthread_mutex_lock(&view->mu);
		o = add(st, v->id);
		if (o)
			describe(o, v);
		pthread_mutex_unlock(&view->mu);
		if (o)
			mc_cli_end_set(&o->end, v->address);
		else
			mc_log_warn("no room for an owner", "segment=%s", v->segment);
	}
}

void mc_cli_view_reset(struct mc_cli_view *view)
{
	pthread_mutex_lock(&view->mu);
	view->version = view->fetched_ns = 0;
	for (size_t i = 0; i < view->n; i++)
		view->owners[i]->is_there = view->owners[i]->takes_puts = false;
	pthread_mutex_unlock(&view->mu);
}

int mc_cli_view_refresh(struct mc_cli_op *op, uint64_t age_ns)
{
	Mc__St__View msg = MC__ST__VIEW__INIT;
	struct mc_cli_view *view = &op->st->view;
	uint64_t fetched_ns;
	void *reply;
	int rc;

	pthread_mutex_lock(&view->mu);
	msg.known = view->version;
	fetched_ns = view->fetched_ns;
	pthread_mutex_unlock(&view->mu);
	if (fetched_ns && mc_now_ns() - fetched_ns < age_ns)
		return 0;
	rc = mc_cli_call_pb(op, MC_ST_VIEW, &msg, &mc__st__view_reply__descriptor, &reply);
	if (rc == 0)
		adopt(op->st, reply, msg.known);
	return rc;
}

int mc_cli_owner_segment(struct mc_cli_op *op, struct mc_cli_owner *o, int32_t *ret_segment)
{
	struct mc_cli_view *view = &op->st->view;
	char name[MC_CLI_TEXT_MAX];
	int32_t segment;
	uint64_t now_ns = mc_now_ns(), timeout_ns;
	int rc;

	if (mc_cli_owner_is_own(o)) {
		*ret_segment = MC_SEGMENT_LOCAL;
		return 0;
	}
	pthread_mutex_lock(&view->mu);
	segment = o->segment;
	(void)mc_strlcpy(name, sizeof(name), o->segment_name);
	pthread_mutex_unlock(&view->mu);
	if (segment >= 0) {
		*ret_segment = segment;
		return 0;
	}
	if (now_ns >= op->deadline_ns)
		return -MC_E_TIMEDOUT;
	timeout_ns = mc_min(op->deadline_ns - now_ns, SEGMENT_OPEN_NS);
	rc = mc_segment_open(op->st->eng, name, timeout_ns, NULL, &segment);
	if (rc < 0) {
		mc_cli_owner_bad(o, rc);
		return rc;
	}
	pthread_mutex_lock(&view->mu);
	if (strcmp(name, o->segment_name) == 0)
		o->segment = segment;
	pthread_mutex_unlock(&view->mu);
	*ret_segment = segment;
	return 0;
}

void mc_cli_owner_bad(struct mc_cli_owner *o, int rc)
{
	struct mc_cli_view *view = &o->end.st->view;

	if (mc_err_scope(rc) == MC_SCOPE_LOCAL || rc == -MC_E_INVAL || rc == -MC_E_CLOSED)
		return; /* nothing of the owner's */
	mc_log_info("owner is left alone for a while", "segment=%s cause=\"%s\"", o->segment_name,
		    mc_err_text(rc));
	pthread_mutex_lock(&view->mu);
	o->bad_until_ns = mc_time_after(mc_now_ns(), MC_CLI_BAD_OWNER_NS);
	view->fetched_ns = 0; /* what does the master think of it? */
	pthread_mutex_unlock(&view->mu);
}

bool mc_cli_owner_is_bad(struct mc_cli_owner *o)
{
	struct mc_cli_view *view = &o->end.st->view;
	bool is_bad;

	pthread_mutex_lock(&view->mu);
	is_bad = !o->is_there || mc_now_ns() < o->bad_until_ns;
	pthread_mutex_unlock(&view->mu);
	return is_bad;
}

bool mc_cli_owner_is_own(const struct mc_cli_owner *o)
{
	const struct mc_store *st = o->end.st;

	return st->owner && o->id == st->owner_id;
}

uint64_t mc_cli_owner_life(struct mc_cli_owner *o)
{
	struct mc_cli_view *view = &o->end.st->view;
	uint64_t life;

	pthread_mutex_lock(&view->mu);
	life = o->incarnation;
	pthread_mutex_unlock(&view->mu);
	return life;
}

bool mc_cli_view_can_take(struct mc_store *st, uint64_t len)
{
	bool has = false;

	pthread_mutex_lock(&st->view.mu);
	for (size_t i = 0; i < st->view.n; i++)
		has |= st->view.owners[i]->is_there && st->view.owners[i]->takes_puts &&
		       st->view.owners[i]->capacity >= len;
	pthread_mutex_unlock(&st->view.mu);
	return has;
}

/* ---- choice ---- */

static bool may_take(const struct mc_cli_owner *o, uint64_t len, struct mc_cli_owner *const * not,
		     unsigned nnot)
{
	if (!o->is_there || !o->takes_puts || o->capacity < len)
		return false;
	for (unsigned i = 0; i < nnot; i++)
		if (not [i] == o)
			return false;
	return true;
}

/* How much it is wanted: a preferred segment (the earlier the more), this host, any. */
static unsigned rank(const struct mc_store *st, const struct mc_cli_owner *o,
		     const struct mc_store_conf *conf)
{
	if (!conf)
		return 0;
	for (uint32_t i = 0; i < conf->nsegments; i++)
		if (conf->segments[i] && strcmp(conf->segments[i], o->segment_name) == 0)
			return 2 + conf->nsegments - i;
	return conf->wants_same_host && o->host[0] && strcmp(st->host, o->host) == 0 ? 1 : 0;
}

bool mc_cli_view_knows(struct mc_store *st, const struct mc_store_conf *conf)
{
	bool is_known = true;

	pthread_mutex_lock(&st->view.mu);
	for (uint32_t s = 0; conf && s < conf->nsegments && is_known; s++) {
		is_known = !conf->segments[s];
		for (size_t i = 0; i < st->view.n && !is_known; i++)
			is_known = st->view.owners[i]->is_there &&
				   strcmp(conf->segments[s], st->view.owners[i]->segment_name) == 0;
	}
	pthread_mutex_unlock(&st->view.mu);
	return is_known;
}

/* Best rank; among equals by chance, weighted by free bytes (one pass, reservoir). Under mu. */
static struct mc_cli_owner *choose(struct mc_store *st, uint64_t len,
				   const struct mc_store_conf *conf,
				   struct mc_cli_owner *const * not, unsigned nnot, bool with_bad)
{
	struct mc_cli_view *view = &st->view;
	uint64_t now_ns = mc_now_ns();
	struct mc_cli_owner *best = NULL;
	unsigned best_rank = 0;
	double weights = 0;

	for (size_t i = 0; i < view->n; i++) {
		struct mc_cli_owner *o = view->owners[i];
		unsigned r;
		double w;

		if (!may_take(o, len, not, nnot) || (!with_bad && now_ns < o->bad_until_ns))
			continue;
		r = rank(st, o, conf);
		if (best && r < best_rank)
			continue;
		/* A full one still evicts: it counts a little. */
		w = (double)o->free_bytes + (double)o->capacity / 16;
		weights = r > best_rank || !best ? w : weights + w;
		if (!best || r > best_rank ||
		    (double)(mc_splitmix64(&view->rand) >> 11) * 0x1p-53 * weights < w)
			best = o;
		best_rank = mc_max(r, best_rank);
	}
	if (best)
		best->free_bytes -= mc_min(best->free_bytes, len);
	return best;
}

struct mc_cli_owner *mc_cli_view_choose(struct mc_cli_op *op, uint64_t len,
					const struct mc_store_conf *conf,
					struct mc_cli_owner *const * not, unsigned nnot)
{
	struct mc_store *st = op->st;
	struct mc_cli_owner *o;

	pthread_mutex_lock(&st->view.mu);
	o = choose(st, len, conf, not, nnot, false);
	if (!o)
		o = choose(st, len, conf, not, nnot, true);
	pthread_mutex_unlock(&st->view.mu);
	return o;
}
