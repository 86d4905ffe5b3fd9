/*
 * list.c: what goes over all objects, a piece at a time so that other calls are answered between:
 * pages of keys in order, and removal by pattern. And the segments.
 */
#include <regex.h>
#include <string.h>

#include "base/hash.h"
#include "base/log.h"
#include "master/priv.h"

#define WALKS_MAX 64u	/* at one time */
#define BUDGET 1000u	/* objects of one piece */
#define PAGE_MAX 10000u /* keys of one page */
#define TENANT_MAX 255u
#define VICTIM_BYTES (8u << 20) /* keys that match in one piece */

struct walk {
	struct mc_list link; /* mc_master.walks */
	struct mc_master *m;
	struct mc_timer timer;		/* the next piece: now, after what waits */
	struct mc_rpc_req *req;		/* NULL: of `removal`, or nobody waits for it */
	struct mc_mst_removal *removal; /* NULL: as above */
	struct mc_mst_method *method;
	uint64_t start_ns;
	void (*step)(struct walk *w);
	/* list */
	struct mc_index_list *list;
	/* remove by pattern */
	regex_t regex;
	bool has_regex, is_over;
	int32_t status; /* once it is over */
	unsigned flags;
	uint8_t prefix[1 + TENANT_MAX];
	size_t prefix_len;
	uint64_t cursor, removed, nwaits;
	struct mc_str victims; /* u16 length and bytes of each key */
	uint32_t nvictims;
};

static void walk_free(struct walk *w)
{
	mc_loop_timer_cancel(w->m->loop, &w->timer);
	mc_list_del(&w->link);
	w->m->nwalks--;
	mc_index_list_close(w->list);
	if (w->has_regex)
		regfree(&w->regex);
	mc_str_fini(&w->victims);
	mc_free(w);
}

static void walk_end(struct walk *w)
{
	mc_hist_add(&w->method->latency, mc_clock_now(w->m->env.clk) - w->start_ns);
	walk_free(w);
}

/* The next piece. @return 0; -MC_E_LIMIT */
static int walk_on(struct walk *w)
{
	return mc_loop_timer_set(w->m->loop, &w->timer, mc_loop_now(w->m->loop));
}

static void on_time(struct mc_timer *t)
{
	struct walk *w = mc_container_of(t, struct walk, timer);
	struct mc_master *m = w->m;

	w->step(w);
	mc_mst_frees_send(m);
}

/* @return NULL: there are too many; told to the request */
static struct walk *walk_new(struct mc_master *m, struct mc_rpc_req *req, uint16_t method,
			     void (*step)(struct walk *w))
{
	struct walk *w = m->nwalks < WALKS_MAX ? mc_calloc(1, sizeof(*w)) : NULL;

	if (!w) {
		if (req)
			(void)mc_rpc_reply(req, -MC_E_BUSY, NULL, 0, NULL, 0);
		return NULL;
	}
	w->m = m;
	w->req = req;
	w->method = mc_mst_method(m, method);
	w->start_ns = mc_clock_now(m->env.clk);
	w->step = step;
	w->timer.on_time = on_time;
	mc_str_init(&w->victims, VICTIM_BYTES);
	mc_list_push_back(&m->walks, &w->link);
	m->nwalks++;
	return w;
}

bool mc_mst_tenant_put(const char *tenant, uint8_t *to, size_t *ret_len)
{
	size_t len = strcmp(tenant, "default") == 0 ? 0 : strlen(tenant);

	if (len > TENANT_MAX)
		return false;
	to[0] = (uint8_t)len;
	/* NOLINTNEXTLINE(bugprone-not-null-terminated-result): it has its length in front */
	memcpy(to + 1, tenant, len);
	*ret_len = 1 + len;
	return true;
}

/* ---- list ---- */

static void listed_fill(Mc__St__ListedObject *to, const struct mc_index_view *v)
{
	mc__st__listed_object__init(to);
	to->key = (ProtobufCBinaryData){.data = (uint8_t *)v->key.bytes, .len = v->key.len};
	to->len = v->object.len;
	to->lease_ms = v->object.lease_ms;
	to->hard_pinned = v->is_hard_pinned;
	to->soft_pinned = v->is_soft_pinned;
	for (unsigned i = 0; i < v->object.nreplicas; i++) {
		if (v->object.replicas[i].kind == MC_ST_DISK)
			to->disk_replicas++;
		else
			to->memory_replicas++;
	}
}

static void list_reply(struct walk *w)
{
	const struct mc_st_key *keys;
	uint32_t n = mc_index_list_keys(w->list, &keys);
	Mc__St__ListReply reply = MC__ST__LIST_REPLY__INIT;
	Mc__St__ListedObject *rows = mc_calloc(n + 1, sizeof(*rows));
	Mc__St__ListedObject **list = mc_calloc(n + 1, sizeof(Mc__St__ListedObject *));
	struct mc_index_request q;
	struct mc_index_view v;
	int rc = rows && list ? 0 : -MC_E_NOMEM;

	if (rc == 0 && n > 0)
		rc = mc_index_begin(w->m->index, &q, mc_mst_now_ms(w->m), keys, n);
	for (uint32_t i = 0; rc == 0 && i < n; i++) {
		if (mc_index_view(&q, i, &v) != 0)
			continue;
		listed_fill(&rows[reply.n_objects], &v);
		list[reply.n_objects] = &rows[reply.n_objects];
		reply.n_objects++;
	}
	if (rc == 0 && n > 0)
		mc_index_end(&q);
	reply.objects = list;
	reply.is_last = n == 0 || reply.n_objects == 0;
	if (rc == 0)
		mc_mst_reply_pb(w->m, w->req, &reply.base);
	else
		(void)mc_rpc_reply(w->req, rc, NULL, 0, NULL, 0);
	mc_free(rows);
	mc_free(list);
}

static void list_fail(struct walk *w, int rc)
{
	(void)mc_rpc_reply(w->req, rc, NULL, 0, NULL, 0);
	walk_end(w);
}

static void list_step(struct walk *w)
{
	int rc = mc_index_list_step(w->list, BUDGET);
	bool is_more = rc > 0;

	if (is_more)
		rc = walk_on(w);
	if (rc < 0) {
		list_fail(w, rc);
	} else if (!is_more) {
		list_reply(w);
		walk_end(w);
	}
}

bool mc_mst_list(struct mc_master *m, struct mc_rpc_req *req, const struct mc_rpc_msg *msg)
{
	uint8_t prefix[1 + TENANT_MAX + MC_STORE_KEY_MAX];
	struct mc_st_key key = {.bytes = prefix}, after;
	const Mc__St__List *said;
	struct walk *w;
	size_t len, at;
	int rc;

	said = (const Mc__St__List *)mc_mst_unpack(m, req, &mc__st__list__descriptor, msg);
	if (!said)
		return true;
	len = strlen(said->prefix);
	if (!mc_mst_tenant_put(said->tenant, prefix, &at) || at + len > MC_STORE_KEY_MAX ||
	    said->after.len > MC_STORE_KEY_MAX) {
		(void)mc_rpc_reply(req, -MC_E_INVAL, NULL, 0, NULL, 0);
		return true;
	}
	if (m->is_recovering) {
		(void)mc_rpc_reply(req, -MC_E_AGAIN, NULL, 0, NULL, 0);
		return true;
	}
	memcpy(prefix + at, said->prefix, len);
	key.len = (uint16_t)(at + len);
	after = (struct mc_st_key){(uint16_t)said->after.len, said->after.data};
	w = walk_new(m, req, MC_ST_LIST, list_step);
	if (!w)
		return true;
	rc = mc_index_list_open(m->index, &key, said->after.len ? &after : NULL,
				said->max && said->max < PAGE_MAX ? said->max : PAGE_MAX, &w->list);
	if (rc == 0)
		rc = walk_on(w);
	if (rc < 0)
		list_fail(w, rc);
	return false;
}

/* ---- removal by pattern ---- */

struct like_wait {
	struct mc_mst_wait wait;
	struct walk *w;
};

static void like_end(struct walk *w, int32_t status)
{
	Mc__St__RemoveLikeReply reply = MC__ST__REMOVE_LIKE_REPLY__INIT;

	struct mc_mst_removal *r = w->removal;

	reply.status = status;
	reply.removed = w->removed;
	mc_tally_call(&w->m->tally, w->has_regex ? MC_TALLY_REMOVE_REGEX : MC_TALLY_REMOVE_ALL, 1,
		      status != 0);
	if (w->req)
		mc_mst_reply_pb(w->m, w->req, &reply.base);
	walk_end(w);
	if (!r)
		return;
	r->walk = NULL;
	r->status = status;
	r->removed = reply.removed;
	r->on_done(r);
}

static void like_wake(struct mc_master *m, struct mc_mst_wait *wait)
{
	struct walk *w = wait->owner;

	(void)m;
	mc_free(mc_container_of(wait, struct like_wait, wait));
	if (--w->nwaits == 0 && w->is_over)
		like_end(w, w->status);
}

static void like_each(void *user, const struct mc_index_view *v)
{
	struct walk *w = user;
	regmatch_t all;
	uint8_t len[2];

	if (v->key.len < w->prefix_len || memcmp(v->key.bytes, w->prefix, w->prefix_len) != 0)
		return;
	all.rm_so = 0;
	all.rm_eo = (regoff_t)(v->key.len - w->prefix_len);
	if (w->has_regex && regexec(&w->regex, (const char *)v->key.bytes + w->prefix_len, 1, &all,
				    REG_STARTEND) != 0)
		return;
	memcpy(len, &v->key.len, sizeof(len));
	if (mc_str_append(&w->victims, len, sizeof(len)) == 0 &&
	    mc_str_append(&w->victims, v->key.bytes, v->key.len) == 0)
		w->nvictims++;
}

/* It is removed when nothing is pending of it. @return false: out of memory */
static bool like_wait(struct walk *w, uint64_t key_hash)
{
	struct like_wait *l;

	if (!mc_index_is_pending(w->m->index, key_hash))
		return true;
	l = mc_calloc(1, sizeof(*l));
	if (!l)
		return false;
	l->wait = (struct mc_mst_wait){.key_hash = key_hash, .wake = like_wake, .owner = w};
	w->nwaits++;
	mc_mst_wait(w->m, &l->wait);
	return true;
}

static int like_remove(struct walk *w)
{
	struct mc_rd r = mc_rd_make(w->victims.text, w->victims.len);
	struct mc_st_key *keys = mc_mst_keys(w->m, w->nvictims);
	struct mc_index_request q;
	int rc;

	if (!keys || w->victims.rc < 0)
		return -MC_E_NOMEM;
	for (uint32_t i = 0; i < w->nvictims; i++) {
		memcpy(&keys[i].len, mc_rd_bytes(&r, 2), 2);
		keys[i].bytes = mc_rd_bytes(&r, keys[i].len);
	}
	rc = mc_index_begin(w->m->index, &q, mc_mst_now_ms(w->m), keys, w->nvictims);
	if (rc < 0)
		return rc;
	for (uint32_t i = 0; rc == 0 && i < w->nvictims; i++) {
		if (mc_index_remove(&q, i, w->flags, &w->m->frees) != 0)
			continue;
		w->removed++;
		if (!like_wait(w, q.hashes[i]))
			rc = -MC_E_NOMEM;
	}
	mc_index_end(&q);
	return rc;
}

static void like_step(struct walk *w)
{
	bool is_more;
	int rc = 0;

	mc_str_reset(&w->victims);
	w->nvictims = 0;
	is_more = mc_index_walk(w->m->index, mc_mst_now_ms(w->m), &w->cursor, BUDGET, like_each, w);
	if (w->nvictims > 0)
		rc = like_remove(w);
	if (rc == 0 && is_more)
		rc = walk_on(w);
	if (rc < 0)
		mc_log_error("removal by pattern stopped", "error=%s", mc_err_name(rc));
	if (rc == 0 && is_more)
		return;
	w->is_over = true;
	w->status = rc < 0 ? MC_STORE_INTERNAL_ERROR : 0;
	if (w->nwaits == 0)
		like_end(w, w->status);
}

/* Begin, in any case to the end. */
static void like_begin(struct walk *w)
{
	if (w->m->is_recovering)
		like_end(w, MC_STORE_UNAVAILABLE_IN_CURRENT_STATUS);
	else if (walk_on(w) < 0)
		like_end(w, MC_STORE_INTERNAL_ERROR);
}

int mc_mst_removal_start(struct mc_master *m, struct mc_mst_removal *r, const char *tenant,
			 bool is_forced)
{
	uint8_t prefix[1 + TENANT_MAX];
	struct walk *w;
	size_t len;

	if (!mc_mst_tenant_put(tenant, prefix, &len))
		return -MC_E_INVAL;
	w = walk_new(m, NULL, MC_ST_REMOVE_LIKE, like_step);
	if (!w)
		return -MC_E_BUSY;
	memcpy(w->prefix, prefix, len);
	w->prefix_len = len;
	w->flags = is_forced ? MC_INDEX_FORCE : 0;
	w->removal = r;
	r->walk = w;
	like_begin(w);
	return 0;
}

void mc_mst_removal_leave(struct mc_mst_removal *r)
{
	struct walk *w = r->walk;

	if (w)
		w->removal = NULL;
	r->walk = NULL;
}

bool mc_mst_remove_like(struct mc_master *m, struct mc_rpc_req *req, const struct mc_rpc_msg *msg)
{
	const Mc__St__RemoveLike *said;
	struct walk *w;

	said = (const Mc__St__RemoveLike *)mc_mst_unpack(m, req, &mc__st__remove_like__descriptor,
							 msg);
	if (!said)
		return true;
	w = walk_new(m, req, MC_ST_REMOVE_LIKE, like_step);
	if (!w)
		return true;
	w->flags = said->force ? MC_INDEX_FORCE : 0;
	if (!mc_mst_tenant_put(said->tenant, w->prefix, &w->prefix_len)) {
		like_end(w, MC_STORE_INVALID_PARAMS);
		return false;
	}
	if (said->regex[0]) {
		if (regcomp(&w->regex, said->regex, REG_EXTENDED) != 0) {
			like_end(w, MC_STORE_INVALID_PARAMS);
			return false;
		}
		w->has_regex = true;
	}
	like_begin(w);
	return false;
}

/* Those of a bucket that are a walk's. */
static void like_waits_drop(struct mc_mst_wait **at)
{
	while (*at) {
		struct mc_mst_wait *wait = *at;

		if (wait->wake != like_wake) {
			at = &wait->next;
			continue;
		}
		*at = wait->next;
		mc_free(mc_container_of(wait, struct like_wait, wait));
	}
}

void mc_mst_walks_drop(struct mc_master *m)
{
	struct walk *w;

	for (size_t i = 0; m->waits && i < m->nbuckets; i++)
		like_waits_drop(&m->waits[i]);
	mc_list_each (w, &m->walks, link) {
		mc_assert(!w->removal); /* whose asker has left before */
		if (w->req)
			(void)mc_rpc_reply(w->req, -MC_E_CLOSED, NULL, 0, NULL, 0);
		walk_free(w);
	}
}

/* ---- segments ---- */

const char *mc_mst_owner_state_text(const struct mc_mst_owner *o)
{
	switch (o->state) {
	case MC_MST_OK:
		if (o->drain != MC_MST_NO_DRAIN)
			return o->drain == MC_MST_DRAINED ? "drained" : "draining";
		if (o->space[MC_ST_MEMORY].flags & MC_ST_SPACE_RETIRING)
			return "unmounting";
		return "ok";
	case MC_MST_SUSPECT:
		return "suspect";
	case MC_MST_ABSENT:
		return "away";
	case MC_MST_SHAKING:
		return "joining";
	default:
		return "announcing";
	}
}

static void segment_fill(struct mc_master *m, Mc__St__Segment *to, const struct mc_mst_owner *o)
{
	struct mc_index_pool memory, disk;

	mc_index_pool(m->index, o->id, MC_ST_MEMORY, &memory);
	mc_index_pool(m->index, o->id, MC_ST_DISK, &disk);
	mc__st__segment__init(to);
	to->owner = o->id;
	to->name = (char *)o->segment;
	to->host = (char *)o->host;
	to->state = (char *)mc_mst_owner_state_text(o);
	to->capacity = o->space[MC_ST_MEMORY].capacity;
	to->used = o->space[MC_ST_MEMORY].used;
	to->disk_capacity = o->space[MC_ST_DISK].capacity;
	to->disk_used = o->space[MC_ST_DISK].used;
	to->objects = memory.objects + disk.objects;
}

bool mc_mst_segments(struct mc_master *m, struct mc_rpc_req *req, const struct mc_rpc_msg *msg)
{
	Mc__St__SegmentsReply reply = MC__ST__SEGMENTS_REPLY__INIT;
	Mc__St__Segment *rows = mc_calloc(m->nowners + 1, sizeof(*rows));
	Mc__St__Segment **list = mc_calloc(m->nowners + 1, sizeof(Mc__St__Segment *));
	struct mc_mst_owner *o;

	(void)msg;
	if (rows && list) {
		mc_list_each (o, &m->owners, link) {
			if (!o->is_joined)
				continue;
			segment_fill(m, &rows[reply.n_segments], o);
			list[reply.n_segments] = &rows[reply.n_segments];
			reply.n_segments++;
		}
		reply.segments = list;
		mc_mst_reply_pb(m, req, &reply.base);
	} else {
		(void)mc_rpc_reply(req, -MC_E_NOMEM, NULL, 0, NULL, 0);
	}
	mc_free(rows);
	mc_free(list);
	return true;
}
