/*
 * drain.c: segments that are emptied, with a mover (mover.h). Passes repeat until one finds
 * nothing, for puts that were under way end at such a segment for a while. A drained segment stays
 * watched.
 */
#include "master/drain.h"

#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "master/mover.h"

#define JOBS_MAX 64u /* the latest are remembered */
#define PAUSE_NS (50 * MC_NS_PER_MS)
#define AWAY_NS (100 * MC_NS_PER_MS)
#define WATCH_NS MC_NS_PER_S
#define DISK_WAIT_MS 10000u
#define SETTLE_MS 2000u /* clients ask for a new view every second */

struct part {
	uint64_t owner, incarnation;
};

struct job {
	struct mc_list link;
	struct mc_mst_mover mover;
	struct mc_mst_job_id id;
	struct mc_mst_drain_want want;
	struct mc_mst_drain_view view;
	struct part parts[MC_DRAIN_SEGMENTS_MAX];
	size_t nparts;
	uint64_t begun_ms, moved_ms; /* moved_ms: something was moved or freed last */
	bool was_away;		     /* a segment was, in this pass: what failed is tried again */
};

struct mc_mst_drains {
	struct mc_list jobs; /* oldest first */
	uint32_t njobs;
	uint64_t next;
};

static bool is_open(const struct job *j)
{
	return j->view.state == MC_MST_JOB_CREATED || j->view.state == MC_MST_JOB_RUNNING;
}

/* NULL: it has gone, or lives another life. */
static struct mc_mst_owner *part_owner(const struct job *j, size_t i)
{
	struct mc_mst_owner *o = mc_mst_owner_find(j->mover.m, j->parts[i].owner);

	return o && o->incarnation == j->parts[i].incarnation && o->is_joined ? o : NULL;
}

static bool is_part(const struct job *j, uint64_t owner)
{
	for (size_t i = 0; i < j->nparts; i++) {
		if (j->parts[i].owner == owner)
			return true;
	}
	return false;
}

/* In memory and on the disks of the segments that are there. */
static uint64_t left_of(const struct job *j)
{
	struct mc_index_pool pool;
	uint64_t left = 0;

	for (size_t i = 0; i < j->nparts; i++) {
		if (!part_owner(j, i))
			continue;
		for (unsigned kind = 0; kind < MC_ST_KIND_COUNT; kind++) {
			mc_index_pool(j->mover.m->index, j->parts[i].owner, kind, &pool);
			left += pool.objects;
		}
	}
	return left;
}

static void mark(struct job *j, enum mc_mst_drain_state state)
{
	for (size_t i = 0; i < j->nparts; i++) {
		struct mc_mst_owner *o = part_owner(j, i);

		if (o)
			o->drain = state;
	}
	mc_mst_view_changed(j->mover.m);
}

static void touch(struct job *j)
{
	j->view.updated_ms = mc_wall_ns() / MC_NS_PER_MS;
}

static void end(struct job *j, enum mc_mst_job_state state, const char *why)
{
	j->view.state = state;
	touch(j);
	(void)mc_strlcpy(j->view.message, sizeof(j->view.message), why);
	mark(j, state == MC_MST_JOB_SUCCEEDED ? MC_MST_DRAINED : MC_MST_NO_DRAIN);
	mc_mst_mover_stop(&j->mover);
	mc_log_info("drain has ended", "segment=%s moved=%llu failed=%llu cause=\"%s\"",
		    j->want.segments[0], (unsigned long long)j->view.moved,
		    (unsigned long long)j->view.failed, why);
}

/* ---- what its mover asks ---- */

static struct job *job_of(struct mc_mst_mover *mv)
{
	return mc_container_of(mv, struct job, mover);
}

/* This owner's replica. NULL: it has none of this kind */
static const struct mc_st_replica *replica_at(const struct mc_st_object *o, uint64_t owner,
					      uint8_t kind)
{
	for (uint32_t i = 0; i < o->nreplicas; i++) {
		if (o->replicas[i].owner == owner && o->replicas[i].kind == kind)
			return &o->replicas[i];
	}
	return NULL;
}

/* What a segment has in memory moves first; a pass that finds what is on its disk alone follows. */
static void each(struct mc_mst_mover *mv, const struct mc_index_view *v)
{
	struct job *j = job_of(mv);

	for (uint32_t i = 0; i < v->object.nreplicas; i++) {
		const struct mc_st_replica *r = &v->object.replicas[i];

		if (is_part(j, r->owner) &&
		    (r->kind == MC_ST_MEMORY || !replica_at(&v->object, r->owner, MC_ST_MEMORY)))
			mc_mst_mover_add(mv, v, r->owner, true);
	}
}

static int32_t drop(struct mc_mst_mover *mv, const struct mc_mst_copy *c,
		    const struct mc_st_object *object, const struct mc_st_replica *mine)
{
	const struct mc_st_key key = {c->key_len, c->key};
	struct mc_index_request q;
	int32_t status;

	if (mc_index_begin(mv->m->index, &q, mc_mst_now_ms(mv->m), &key, 1) < 0)
		return MC_STORE_INTERNAL_ERROR;
	status = mc_index_drop(&q, 0, object->gen, mine, MC_GONE_REMOVED, &mv->m->frees);
	mc_index_end(&q);
	job_of(mv)->moved_ms = mc_mst_now_ms(mv->m);
	return status;
}

/* In memory there, it will be on the disk there, too. */
static bool goes_to_disk(const struct mc_master *m, const struct mc_mst_owner *o, uint64_t len)
{
	const struct mc_st_space *s = &o->space[MC_ST_DISK];

	return !m->conf.offload_on_evict && s->capacity - s->used >= len;
}

/* What is on the disk here is freed when it is as safe elsewhere, which may take a moment. */
static int32_t on_start(struct mc_mst_mover *mv, struct mc_mst_copy *c,
			const struct mc_st_object *object)
{
	const struct mc_st_replica *mine = replica_at(object, c->source, MC_ST_DISK);
	bool is_coming = false, is_there = false;
	int32_t status;

	if (!mine || replica_at(object, c->source, MC_ST_MEMORY))
		return 0;
	for (uint32_t i = 0; i < object->nreplicas; i++) {
		const struct mc_st_replica *r = &object->replicas[i];
		const struct mc_mst_owner *at = mc_mst_owner_find(mv->m, r->owner);

		if (!at || !mc_mst_owner_stays(at))
			continue;
		is_coming = true;
		is_there |= r->kind == MC_ST_DISK || !goes_to_disk(mv->m, at, object->len);
	}
	if (!is_coming)
		return 0;
	/* A disk that takes nothing holds up no drain for ever. */
	is_there |= mc_mst_now_ms(mv->m) - job_of(mv)->moved_ms >= DISK_WAIT_MS;
	status = is_there ? drop(mv, c, object, mine) : 0;
	return status == 0 ? MC_STORE_REPLICA_ALREADY_EXISTS : status;
}

/* It has no place elsewhere, but it is elsewhere already, or on the disk here, which is next: this
 * replica in memory goes. */
static int32_t no_room(struct mc_mst_mover *mv, struct mc_mst_copy *c,
		       const struct mc_st_object *object)
{
	const struct mc_st_replica *mine = replica_at(object, c->source, MC_ST_MEMORY);
	bool has_other = replica_at(object, c->source, MC_ST_DISK) != NULL;
	int32_t status;

	for (uint32_t i = 0; mine && i < object->nreplicas; i++) {
		const struct mc_st_replica *r = &object->replicas[i];
		const struct mc_mst_owner *at = mc_mst_owner_find(mv->m, r->owner);

		if (r->kind == MC_ST_MEMORY && r->owner != c->source)
			has_other |= at && mc_mst_owner_stays(at);
	}
	if (!mine || !has_other)
		return MC_STORE_NO_AVAILABLE_HANDLE;
	status = drop(mv, c, object, mine);
	return status == 0 && replica_at(object, c->source, MC_ST_DISK)
		   ? MC_STORE_REPLICA_ALREADY_EXISTS
		   : status;
}

static void on_one(struct mc_mst_mover *mv, uint64_t bytes, int32_t status)
{
	struct job *j = job_of(mv);

	touch(j);
	if (status == 0) {
		j->moved_ms = mc_mst_now_ms(mv->m);
		j->view.moved++;
		j->view.moved_bytes += bytes;
	} else {
		j->view.failed++;
	}
}

static void pass_begin(struct job *j)
{
	j->view.failed = 0;
	j->was_away = false;
	mc_mst_mover_pass(&j->mover);
}

/* A segment that has gone takes what it still had. */
static bool is_lost(struct job *j)
{
	char why[256];

	for (size_t i = 0; i < j->nparts; i++) {
		if (part_owner(j, i))
			continue;
		(void)snprintf(why, sizeof(why),
			       "segment %.100s has gone before it was empty; what it had alone is "
			       "away until it comes back",
			       j->view.segments[i]);
		end(j, MC_MST_JOB_FAILED, why);
		return true;
	}
	return false;
}

/* A segment whose owner is not heard of for a moment: whether it comes back is seen soon. */
static bool is_away(struct job *j)
{
	for (size_t i = 0; i < j->nparts; i++) {
		const struct mc_mst_owner *o = part_owner(j, i);

		if (!o || o->state != MC_MST_OK)
			return true;
	}
	return false;
}

/* Of one that has ended: whatever comes late to a drained segment moves, too. */
static bool may_watch(struct job *j)
{
	if (j->view.state != MC_MST_JOB_SUCCEEDED)
		return false;
	if (left_of(j) == 0) {
		mc_mst_mover_go(&j->mover, WATCH_NS);
		return false;
	}
	pass_begin(j);
	j->view.state = MC_MST_JOB_RUNNING;
	(void)mc_strlcpy(j->view.message, sizeof(j->view.message), "late puts are moved");
	return true;
}

static bool may_go(struct mc_mst_mover *mv)
{
	struct job *j = job_of(mv);

	if (!is_open(j) && !may_watch(j))
		return false;
	j->view.state = MC_MST_JOB_RUNNING;
	if (is_lost(j))
		return false;
	if (is_away(j)) {
		j->was_away = true;
		mc_mst_mover_go(mv, AWAY_NS);
		return false;
	}
	return true;
}

static void on_pass(struct mc_mst_mover *mv)
{
	struct job *j = job_of(mv);
	bool is_settled = mc_mst_now_ms(mv->m) - j->begun_ms >= SETTLE_MS;
	char why[256];

	if (mv->failed > 0 && !j->was_away) {
		(void)snprintf(why, sizeof(why),
			       "%llu objects remain: there is no room for them elsewhere, or they "
			       "could not be copied",
			       (unsigned long long)mv->failed);
		end(j, MC_MST_JOB_FAILED, why);
		return;
	}
	if (mv->found > 0 || !is_settled || j->was_away) {
		pass_begin(j);
		mc_mst_mover_go(mv, PAUSE_NS);
		return;
	}
	end(j, MC_MST_JOB_SUCCEEDED, "Drain job finished successfully");
	mc_mst_mover_go(mv, WATCH_NS);
}

/* ---- from outside ---- */

static struct job *job_find(struct mc_master *m, struct mc_mst_job_id id)
{
	struct job *j;

	mc_list_each (j, &m->drains->jobs, link) {
		if (j->id.hi == id.hi && j->id.lo == id.lo)
			return j;
	}
	return NULL;
}

static void job_free(struct job *j)
{
	j->mover.m->drains->njobs--;
	mc_mst_mover_fini(&j->mover);
	mc_list_del(&j->link);
	mc_free(j);
}

static bool is_named(char (*names)[MC_MST_TEXT_MAX], size_t n, const char *name)
{
	for (size_t i = 0; i < n; i++) {
		if (strcmp(names[i], name) == 0)
			return true;
	}
	return false;
}

static int32_t targets_check(struct mc_master *m, struct mc_mst_drain_want *w)
{
	for (size_t i = 0; i < w->ntargets; i++) {
		const struct mc_mst_owner *o = mc_mst_owner_named(m, w->targets[i]);

		if (!o)
			return MC_STORE_SEGMENT_NOT_FOUND;
		if (o->drain != MC_MST_NO_DRAIN ||
		    is_named(w->segments, w->nsegments, w->targets[i]))
			return MC_STORE_INVALID_PARAMS;
	}
	return 0;
}

/* The owners of the job. @return 0 or MC_STORE_* */
static int32_t parts_find(struct mc_master *m, struct job *j)
{
	struct mc_mst_drain_want *w = &j->want;
	struct mc_mst_owner *o;

	for (size_t i = 0; i < w->nsegments; i++) {
		if (!mc_mst_owner_named(m, w->segments[i]))
			return MC_STORE_SEGMENT_NOT_FOUND;
	}
	mc_list_each (o, &m->owners, link) {
		if (!o->is_joined || !is_named(w->segments, w->nsegments, o->segment))
			continue;
		if (o->drain != MC_MST_NO_DRAIN || o->state != MC_MST_OK)
			return MC_STORE_UNAVAILABLE_IN_CURRENT_STATUS;
		if (j->nparts == MC_DRAIN_SEGMENTS_MAX)
			return MC_STORE_INVALID_PARAMS;
		(void)mc_strlcpy(j->view.segments[j->nparts], MC_MST_TEXT_MAX, o->segment);
		j->parts[j->nparts++] = (struct part){o->id, o->incarnation};
	}
	j->view.nsegments = j->nparts;
	return targets_check(m, w);
}

/* Room for one more to be remembered. @return false: all are under way */
static bool jobs_trim(struct mc_master *m)
{
	struct job *j;

	if (m->drains->njobs < JOBS_MAX)
		return true;
	mc_list_each (j, &m->drains->jobs, link) {
		if (!is_open(j) && j->mover.nactive == 0) {
			job_free(j);
			return true;
		}
	}
	return false;
}

static struct job *job_new(struct mc_master *m, const struct mc_mst_drain_want *want)
{
	struct job *j = mc_calloc(1, sizeof(*j));

	if (!j)
		return NULL;
	j->want = *want;
	j->mover = (struct mc_mst_mover){.m = m,
					 .copies = want->copies,
					 .targets = j->want.targets,
					 .ntargets = want->ntargets,
					 .each = each,
					 .may_go = may_go,
					 .on_start = on_start,
					 .on_no_room = no_room,
					 .on_one = on_one,
					 .on_pass = on_pass};
	j->id = (struct mc_mst_job_id){mc_mst_id_hi(m), ++m->drains->next};
	j->begun_ms = j->moved_ms = mc_mst_now_ms(m);
	j->view.state = MC_MST_JOB_CREATED;
	j->view.created_ms = mc_wall_ns() / MC_NS_PER_MS;
	touch(j);
	(void)mc_strlcpy(j->view.message, sizeof(j->view.message), "Drain job running");
	return j;
}

int32_t mc_mst_drain_start(struct mc_master *m, const struct mc_mst_drain_want *want,
			   struct mc_mst_job_id *ret_id)
{
	struct job *j;
	int32_t status;

	if (want->nsegments == 0 || want->nsegments > MC_DRAIN_SEGMENTS_MAX ||
	    want->ntargets > MC_DRAIN_SEGMENTS_MAX || want->copies == 0 ||
	    want->copies > MC_DRAIN_COPIES_MAX)
		return MC_STORE_INVALID_PARAMS;
	if (m->is_recovering)
		return MC_STORE_UNAVAILABLE_IN_CURRENT_STATUS;
	if (!jobs_trim(m))
		return MC_STORE_TASK_PENDING_LIMIT_EXCEEDED;
	j = job_new(m, want);
	if (!j)
		return MC_STORE_INTERNAL_ERROR;
	status = parts_find(m, j);
	if (status != 0) {
		mc_free(j);
		return status;
	}
	mc_mst_mover_init(&j->mover, j->id.hi ^ j->id.lo);
	mc_list_push_back(&m->drains->jobs, &j->link);
	m->drains->njobs++;
	mark(j, MC_MST_DRAINING);
	pass_begin(j);
	mc_mst_mover_go(&j->mover, 0);
	*ret_id = j->id;
	return 0;
}

int32_t mc_mst_drain_view(struct mc_master *m, struct mc_mst_job_id id,
			  struct mc_mst_drain_view *ret)
{
	const struct job *j = job_find(m, id);

	if (!j)
		return MC_STORE_JOB_NOT_FOUND;
	*ret = j->view;
	ret->active = j->mover.nactive;
	ret->blocked = j->mover.nready;
	ret->left = left_of(j);
	return 0;
}

int32_t mc_mst_drain_cancel(struct mc_master *m, struct mc_mst_job_id id)
{
	struct job *j = job_find(m, id);

	if (!j)
		return MC_STORE_JOB_NOT_FOUND;
	if (!is_open(j))
		return MC_STORE_UNAVAILABLE_IN_CURRENT_STATUS;
	end(j, MC_MST_JOB_CANCELED, "Drain job canceled");
	return 0;
}

int mc_mst_drains_open(struct mc_master *m)
{
	m->drains = mc_calloc(1, sizeof(*m->drains));
	if (!m->drains)
		return -MC_E_NOMEM;
	mc_list_init(&m->drains->jobs);
	return 0;
}

void mc_mst_drains_close(struct mc_master *m)
{
	struct job *j;

	if (!m->drains)
		return;
	mc_list_each (j, &m->drains->jobs, link)
		job_free(j);
	mc_free(m->drains);
	m->drains = NULL;
}
