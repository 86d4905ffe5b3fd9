/*
 * task.c: copies and moves that clients ask for, one object each. A task is pending until there is
 * room among those under way; a copy is tried again, ever more slowly, while its target has no room
 * or is away for a moment. What a task came to is remembered for the latest of them. Tasks are this
 * life's of the master: their ids begin with the epoch, so that one of an earlier life is told to
 * be lost, not to be unknown.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/hash.h"
#include "base/log.h"
#include "master/priv.h"

#define TARGETS_MAX MC_ST_REPLICAS_MAX
#define AGAIN_MS 500u /* doubles with each try, up to */
#define AGAIN_MAX_MS 60000u
#define MESSAGE_MAX 128u
#define BUCKETS 4096u

enum task_state { /* upstream's TaskStatus */
		  TASK_PENDING,
		  TASK_PROCESSING,
		  TASK_FAILED,
		  TASK_SUCCESS,
};

struct task;

/* One target of a task. */
struct part {
	struct mc_mst_copy copy;
	struct task *task;
	bool is_under_way, is_done;
	uint32_t nretries;
};

struct task {
	struct mc_list link; /* mc_mst_tasks: open or finished */
	struct task *chain;
	uint64_t id_lo;
	bool is_move;
	enum task_state state;
	int32_t status; /* of the part that failed first */
	uint64_t created_ms, updated_ms;
	uint64_t since_ms;		/* pending, or under way; of the master's clock */
	uint64_t again_ms;		/* 0: nothing is to be tried again */
	bool has_timed_out;		/* it has failed; copies of it may be under way */
	char assigned[MC_MST_TEXT_MAX]; /* the first target */
	char message[MESSAGE_MAX];
	uint32_t nparts;
	struct part *parts; /* NULL when it has ended, as the key */
	uint8_t *key;
	uint16_t key_len;
};

struct mc_mst_tasks {
	struct mc_list open, finished;
	uint32_t npending, nprocessing, nfinished; /* open: pending or processing */
	uint64_t id_hi, next;
	struct task *buckets[BUCKETS];
};

static struct task **bucket_of(struct mc_mst_tasks *t, uint64_t id_lo)
{
	return &t->buckets[id_lo % BUCKETS];
}

static void task_free(struct mc_mst_tasks *all, struct task *t)
{
	struct task **at = bucket_of(all, t->id_lo);

	while (*at != t)
		at = &(*at)->chain;
	*at = t->chain;
	mc_list_del(&t->link);
	mc_free(t->parts);
	mc_free(t->key);
	mc_free(t);
}

static uint64_t wall_ms(void)
{
	return mc_wall_ns() / MC_NS_PER_MS;
}

static uint32_t *counter_of(struct mc_mst_tasks *all, enum task_state state)
{
	return state == TASK_PENDING ? &all->npending : &all->nprocessing;
}

static void task_end(struct mc_master *m, struct task *t)
{
	struct mc_mst_tasks *all = m->tasks;

	*counter_of(all, t->state) -= t->has_timed_out ? 0 : 1;
	t->state = t->status == 0 ? TASK_SUCCESS : TASK_FAILED;
	t->updated_ms = wall_ms();
	if (t->status != 0 && !t->has_timed_out)
		(void)snprintf(t->message, sizeof(t->message), "%s", mc_store_err_name(t->status));
	mc_free(t->parts);
	mc_free(t->key);
	t->parts = NULL;
	t->key = NULL;
	mc_list_del(&t->link);
	mc_list_push_back(&all->finished, &t->link);
	if (++all->nfinished > m->conf.tasks_finished_max) {
		all->nfinished--;
		task_free(all, mc_list_first(&all->finished, struct task, link));
	}
}

/* May it be otherwise a moment later? */
static bool is_passing(int32_t status)
{
	return status == MC_STORE_NO_AVAILABLE_HANDLE || status == MC_STORE_OBJECT_REPLICA_BUSY ||
	       status == MC_STORE_UNAVAILABLE_IN_CURRENT_STATUS ||
	       status == MC_STORE_TASK_PENDING_LIMIT_EXCEEDED || status == MC_STORE_TRANSFER_FAIL;
}

/* A part is over, or will be tried again. */
static void part_settle(struct mc_master *m, struct part *p, int32_t status)
{
	struct task *t = p->task;

	p->is_under_way = false;
	/* A copy is there, or the move made its own in an earlier try. */
	if (status == MC_STORE_REPLICA_ALREADY_EXISTS && !t->is_move)
		status = 0;
	if (status == 0 || !is_passing(status) || t->has_timed_out ||
	    p->nretries >= m->conf.task_retries_max) {
		p->is_done = true;
		if (status != 0 && t->status == 0)
			t->status = status;
	} else {
		uint64_t pause = (uint64_t)AGAIN_MS << mc_min(p->nretries, 10u);

		p->nretries++;
		t->again_ms = mc_mst_now_ms(m) + mc_min(pause, (uint64_t)AGAIN_MAX_MS);
	}
}

/* @return all parts are over */
static bool is_over(const struct task *t)
{
	for (uint32_t i = 0; i < t->nparts; i++) {
		if (!t->parts[i].is_done)
			return false;
	}
	return true;
}

static void part_done(struct mc_master *m, struct mc_mst_copy *c, int32_t status)
{
	struct part *p = mc_container_of(c, struct part, copy);
	struct task *t = p->task;

	part_settle(m, p, status);
	if (is_over(t))
		task_end(m, t);
}

/* Start what is neither over nor under way. @return it has ended */
static bool task_start(struct mc_master *m, struct task *t)
{
	struct mc_mst_tasks *all = m->tasks;

	if (t->state == TASK_PENDING && all->nprocessing >= m->conf.tasks_processing_max) {
		t->again_ms = mc_mst_now_ms(m) + 1;
		return false;
	}
	if (t->state == TASK_PENDING) {
		all->npending--;
		all->nprocessing++;
		t->state = TASK_PROCESSING;
		t->since_ms = mc_mst_now_ms(m);
	}
	for (uint32_t i = 0; i < t->nparts; i++) {
		struct part *p = &t->parts[i];
		int32_t status;

		if (p->is_done || p->is_under_way)
			continue;
		p->is_under_way = true;
		status = mc_mst_copy_start(m, &p->copy);
		if (status != 0)
			part_settle(m, p, status);
	}
	if (!is_over(t))
		return false;
	task_end(m, t);
	return true;
}

static bool is_late(const struct mc_master *m, const struct task *t, uint64_t now)
{
	uint64_t most =
	    t->state == TASK_PENDING ? m->conf.task_pending_ms : m->conf.task_processing_ms;

	return most > 0 && !t->has_timed_out && now - t->since_ms >= most;
}

/* It has failed as of now; what is under way of it comes to its own end. */
static void time_out(struct mc_master *m, struct task *t)
{
	(void)snprintf(t->message, sizeof(t->message), "timed out while %s",
		       t->state == TASK_PENDING ? "pending" : "processing");
	*counter_of(m->tasks, t->state) -= 1;
	t->has_timed_out = true;
	t->state = TASK_FAILED;
	t->updated_ms = wall_ms();
	t->again_ms = 0;
	if (t->status == 0)
		t->status = MC_STORE_UNAVAILABLE_IN_CURRENT_STATUS;
	for (uint32_t i = 0; i < t->nparts; i++)
		t->parts[i].is_done |= !t->parts[i].is_under_way;
	if (is_over(t))
		task_end(m, t);
}

void mc_mst_tasks_tick(struct mc_master *m)
{
	uint64_t now = mc_mst_now_ms(m);
	struct task *t;

	mc_list_each (t, &m->tasks->open, link) {
		if (is_late(m, t, now)) {
			time_out(m, t);
			continue;
		}
		if (t->again_ms == 0 || t->again_ms > now)
			continue;
		t->again_ms = 0;
		(void)task_start(m, t);
	}
}

/* ---- calls ---- */

uint64_t mc_mst_id_hi(const struct mc_master *m)
{
	return m->tasks->id_hi;
}

bool mc_mst_id_was(const struct mc_master *m, uint64_t id_hi)
{
	return id_hi > 0 && (uint32_t)id_hi == 0 && id_hi < m->tasks->id_hi;
}

static void reply_fill(struct mc_master *m, const struct task *t, Mc__St__TaskReply *r)
{
	r->id_hi = m->tasks->id_hi;
	r->id_lo = t->id_lo;
	r->type = t->is_move;
	r->state = t->state;
	r->created_ms = t->created_ms;
	r->updated_ms = t->updated_ms;
	r->assigned = (char *)t->assigned;
	r->message = (char *)t->message;
}

/* Owners by their names. @return 0; MC_STORE_INVALID_PARAMS */
static int32_t parts_fill(struct mc_master *m, struct task *t, const Mc__St__TaskCreate *said)
{
	const struct mc_mst_owner *source = NULL;

	if (said->n_targets == 0 || said->n_targets > TARGETS_MAX ||
	    (said->is_move && said->n_targets != 1))
		return MC_STORE_INVALID_PARAMS;
	if (said->is_move) {
		source = mc_mst_owner_named(m, said->source);
		if (!source)
			return MC_STORE_INVALID_PARAMS;
	}
	t->parts = mc_calloc(said->n_targets, sizeof(*t->parts));
	if (!t->parts)
		return MC_STORE_INTERNAL_ERROR;
	for (size_t i = 0; i < said->n_targets; i++) {
		const struct mc_mst_owner *o = mc_mst_owner_named(m, said->targets[i]);

		if (!o || o == source || o->drain != MC_MST_NO_DRAIN)
			return MC_STORE_INVALID_PARAMS;
		for (size_t j = 0; j < i; j++) {
			if (t->parts[j].copy.target == o->id)
				return MC_STORE_INVALID_PARAMS;
		}
		if (i == 0)
			(void)mc_strlcpy(t->assigned, sizeof(t->assigned), o->segment);
		t->parts[i] = (struct part){.task = t,
					    .copy = {.key = t->key,
						     .key_len = t->key_len,
						     .is_move = said->is_move,
						     .source = source ? source->id : 0,
						     .target = o->id,
						     .on_done = part_done}};
	}
	t->nparts = (uint32_t)said->n_targets;
	return 0;
}

/* The object as tasks see it. @return 0; MC_STORE_* */
static int32_t object_check(struct mc_master *m, const struct task *t)
{
	const struct mc_st_key key = {t->key_len, t->key};
	struct mc_index_request q;
	struct mc_index_view v;
	bool is_at_source = !t->is_move;
	int32_t status;

	if (mc_index_begin(m->index, &q, mc_mst_now_ms(m), &key, 1) < 0)
		return MC_STORE_INTERNAL_ERROR;
	status = mc_index_view(&q, 0, &v);
	mc_index_end(&q);
	for (uint32_t r = 0; status == 0 && r < v.object.nreplicas; r++) {
		bool is_memory = v.object.replicas[r].kind == MC_ST_MEMORY;

		is_at_source |= v.object.replicas[r].owner == t->parts[0].copy.source;
		for (uint32_t i = 0; i < t->nparts; i++) {
			if (is_memory && v.object.replicas[r].owner == t->parts[i].copy.target)
				status = MC_STORE_INVALID_PARAMS; /* as upstream says it */
		}
	}
	return status == 0 && !is_at_source ? MC_STORE_REPLICA_NOT_FOUND : status;
}

static int32_t task_make(struct mc_master *m, const Mc__St__TaskCreate *said, struct task **ret)
{
	struct mc_mst_tasks *all = m->tasks;
	struct task *t, **at;
	int32_t status;

	if (said->key.len == 0 || said->key.len > MC_STORE_KEY_MAX)
		return MC_STORE_INVALID_PARAMS;
	if (m->is_recovering)
		return MC_STORE_UNAVAILABLE_IN_CURRENT_STATUS;
	if (all->npending >= m->conf.tasks_pending_max)
		return MC_STORE_TASK_PENDING_LIMIT_EXCEEDED;
	t = mc_calloc(1, sizeof(*t));
	if (!t)
		return MC_STORE_INTERNAL_ERROR;
	t->is_move = said->is_move;
	t->key = mc_calloc(1, said->key.len);
	status = t->key ? 0 : MC_STORE_INTERNAL_ERROR;
	if (status == 0) {
		memcpy(t->key, said->key.data, said->key.len);
		t->key_len = (uint16_t)said->key.len;
		status = parts_fill(m, t, said);
	}
	if (status == 0)
		status = object_check(m, t);
	if (status != 0) {
		mc_free(t->parts);
		mc_free(t->key);
		mc_free(t);
		return status;
	}
	t->created_ms = t->updated_ms = wall_ms();
	t->since_ms = mc_mst_now_ms(m);
	t->id_lo = ++all->next;
	at = bucket_of(all, t->id_lo);
	t->chain = *at;
	*at = t;
	mc_list_push_back(&all->open, &t->link);
	all->npending++;
	*ret = t;
	return 0;
}

bool mc_mst_task_create(struct mc_master *m, struct mc_rpc_req *req, const struct mc_rpc_msg *msg)
{
	Mc__St__TaskReply reply = MC__ST__TASK_REPLY__INIT;
	const Mc__St__TaskCreate *said;
	struct task *t;

	said = (const Mc__St__TaskCreate *)mc_mst_unpack(m, req, &mc__st__task_create__descriptor,
							 msg);
	if (!said)
		return true;
	reply.status = task_make(m, said, &t);
	if (reply.status == 0) {
		(void)task_start(m, t);
		reply_fill(m, t, &reply);
	}
	mc_mst_reply_pb(m, req, &reply.base);
	return true;
}

bool mc_mst_task_query(struct mc_master *m, struct mc_rpc_req *req, const struct mc_rpc_msg *msg)
{
	Mc__St__TaskReply reply = MC__ST__TASK_REPLY__INIT;
	const Mc__St__TaskQuery *said;
	struct task *t;

	said =
	    (const Mc__St__TaskQuery *)mc_mst_unpack(m, req, &mc__st__task_query__descriptor, msg);
	if (!said)
		return true;
	t = said->id_hi == m->tasks->id_hi ? *bucket_of(m->tasks, said->id_lo) : NULL;
	while (t && t->id_lo != said->id_lo)
		t = t->chain;
	if (t) {
		reply_fill(m, t, &reply);
	} else if (mc_mst_id_was(m, said->id_hi)) {
		reply.id_hi = said->id_hi;
		reply.id_lo = said->id_lo;
		reply.state = TASK_FAILED;
		reply.message = (char *)"lost: the master was restarted; look where the object is";
	} else {
		reply.status = MC_STORE_TASK_NOT_FOUND;
	}
	mc_mst_reply_pb(m, req, &reply.base);
	return true;
}

int mc_mst_tasks_open(struct mc_master *m)
{
	m->tasks = mc_calloc(1, sizeof(*m->tasks));
	if (!m->tasks)
		return -MC_E_NOMEM;
	m->tasks->id_hi = mc_master_epoch(m) << 32;
	mc_list_init(&m->tasks->open);
	mc_list_init(&m->tasks->finished);
	return 0;
}

void mc_mst_tasks_close(struct mc_master *m)
{
	struct task *t;

	if (!m->tasks)
		return;
	mc_list_each (t, &m->tasks->open, link)
		task_free(m->tasks, t);
	mc_list_each (t, &m->tasks->finished, link)
		task_free(m->tasks, t);
	mc_free(m->tasks);
	m->tasks = NULL;
}
