/*
 * view.c: the owners as the master last described them, and what this process found out about them
 * itself: one that failed is left alone for a while. Which one gets the next object says place.h.
 */
#include "base/log.h"
#include "base/str.h"
#include "client/priv.h"
#include "wire/store.pb-c.h"

#define SEGMENT_OPEN_NS (3 * MC_NS_PER_S)

void mc_cli_view_init(struct mc_cli_view *view)
{
	pthread_mutex_init(&view->mu, NULL);
	mc_place_init(&view->place, mc_now_ns());
}

void mc_cli_view_fini(struct mc_cli_view *view)
{
	for (size_t i = 0; i < view->n; i++) {
		mc_cli_end_fini(&view->owners[i]->end);
		mc_free(view->owners[i]);
	}
	mc_free(view->owners);
	mc_place_fini(&view->place);
	pthread_mutex_destroy(&view->mu);
}

static uint64_t now_ms(void)
{
	return mc_now_ns() / MC_NS_PER_MS;
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
	if (o->incarnation != v->incarnation || strcmp(o->segment_name, v->segment) != 0)
		o->segment = -1; /* the engine knows whether its name means somebody else now */
	o->incarnation = v->incarnation;
	o->capacity = v->capacity;
	o->takes_puts = v->takes_puts;
	o->is_there = true;
	(void)mc_strlcpy(o->segment_name, sizeof(o->segment_name), v->segment);
}

/* Those of the reply that are known by now, for choices. */
static void place(struct mc_cli_view *view, const Mc__St__ViewReply *reply)
{
	struct mc_place_owner *rows = mc_calloc(reply->n_owners + 1, sizeof(*rows));
	size_t n = 0;
	int rc;

	if (!rows)
		return; /* choices are of the view before */
	pthread_mutex_lock(&view->mu);
	for (size_t i = 0; i < reply->n_owners; i++) {
		const Mc__St__ViewOwner *v = reply->owners[i];

		if (find(view, v->id))
			rows[n++] = (struct mc_place_owner){.id = v->id,
							    .incarnation = v->incarnation,
							    .segment = v->segment,
							    .host = v->host,
							    .capacity = v->capacity,
							    .free = v->free,
							    .takes_puts = v->takes_puts};
	}
	rc = mc_place_view(&view->place, now_ms(), rows, n);
	pthread_mutex_unlock(&view->mu);
	if (rc < 0)
		mc_log_warn("puts go by an older view", "cause=\"%s\"", mc_err_text(rc));
	mc_free(rows);
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
	view->is_recovering = reply->recovering;
	if (reply->version == view->version) {
		mc_place_settle(&view->place);
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
	place(view, reply);
}

void mc_cli_view_reset(struct mc_cli_view *view)
{
	pthread_mutex_lock(&view->mu);
	view->version = view->fetched_ns = 0;
	for (size_t i = 0; i < view->n; i++)
		view->owners[i]->is_there = view->owners[i]->takes_puts = false;
	mc_place_fini(&view->place);
	mc_place_init(&view->place, mc_now_ns());
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
	mc_place_exclude(&view->place, now_ms(), o->id);
	atomic_store_explicit(&o->has_failed, true, memory_order_relaxed);
	view->fetched_ns = 0; /* what does the master think of it? */
	pthread_mutex_unlock(&view->mu);
}

bool mc_cli_owner_is_bad(struct mc_cli_owner *o)
{
	struct mc_cli_view *view = &o->end.st->view;
	bool is_bad;

	pthread_mutex_lock(&view->mu);
	is_bad = !o->is_there || mc_place_is_excluded(&view->place, now_ms(), o->id);
	pthread_mutex_unlock(&view->mu);
	return is_bad;
}

void mc_cli_owner_good(struct mc_cli_owner *o)
{
	struct mc_cli_view *view = &o->end.st->view;

	/* Relaxed: who misses it here takes it back with the next answer. */
	if (!atomic_load_explicit(&o->has_failed, memory_order_relaxed))
		return;
	pthread_mutex_lock(&view->mu);
	atomic_store_explicit(&o->has_failed, false, memory_order_relaxed);
	mc_place_include(&view->place, o->id);
	pthread_mutex_unlock(&view->mu);
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

bool mc_cli_view_is_recovering(struct mc_store *st)
{
	bool is_recovering;

	pthread_mutex_lock(&st->view.mu);
	is_recovering = st->view.is_recovering;
	pthread_mutex_unlock(&st->view.mu);
	return is_recovering;
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

struct mc_cli_owner *mc_cli_view_choose(struct mc_cli_op *op, uint64_t len,
					const struct mc_store_conf *conf,
					struct mc_cli_owner *const *except, unsigned nexcept)
{
	struct mc_store *st = op->st;
	uint64_t holders[MC_CLI_TARGETS_MAX], id;
	struct mc_place_want want = {.bytes = len, .holders = holders, .nholders = nexcept};
	struct mc_cli_owner *o = NULL;

	mc_assert(nexcept <= MC_CLI_TARGETS_MAX);
	for (unsigned i = 0; i < nexcept; i++)
		holders[i] = except[i]->id;
	if (conf) {
		want.preferred = conf->segments;
		want.npreferred = conf->nsegments;
		want.host = conf->wants_same_host && st->host[0] ? st->host : NULL;
	}
	pthread_mutex_lock(&st->view.mu);
	if (mc_place_choose(&st->view.place, now_ms(), &want, 1, &id) == 1)
		o = find(&st->view, id);
	pthread_mutex_unlock(&st->view.mu);
	return o;
}
