/*
 * work.c: the thread for what may block: looking for a writer's process, CRCs of much memory,
 * copies of objects from other owners.
 */
#include <string.h>

#include "base/log.h"
#include "owner/priv.h"

#define COPY_NS (30 * MC_NS_PER_S)  /* of an order, room included */
#define FETCH_NS (10 * MC_NS_PER_S) /* of what it has to fetch from a disk before */

static void job_end(struct mc_task *t)
{
	struct mc_ojob *job = mc_container_of(t, struct mc_ojob, task);

	job->end(job);
}

static void *work_main(void *arg)
{
	struct mc_owner *o = arg;
	struct mc_list *link;
	struct mc_ojob *job;
	bool is_over;

	pthread_mutex_lock(&o->work_lock);
	for (;;) {
		while (mc_list_is_empty(&o->jobs) && !o->is_work_over)
			pthread_cond_wait(&o->work_cond, &o->work_lock);
		link = mc_list_pop_front(&o->jobs);
		if (!link)
			break;
		o->njobs--;
		is_over = o->is_work_over;
		pthread_mutex_unlock(&o->work_lock);
		job = mc_list_entry(link, struct mc_ojob, link);
		if (!is_over || job->must_run)
			job->run(job);
		mc_loop_post(o->loop, &job->task);
		pthread_mutex_lock(&o->work_lock);
	}
	pthread_mutex_unlock(&o->work_lock);
	return NULL;
}

int mc_owork_open(struct mc_owner *o)
{
	sigset_t all, old;
	int rc;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old); /* signals are the program's */
	rc = pthread_create(&o->work_thread, NULL, work_main, o);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (rc != 0)
		return -MC_E_LIMIT;
	o->has_work_thread = true;
	(void)pthread_setname_np(o->work_thread, "mc-owner-work");
	return 0;
}

void mc_owork_close(struct mc_owner *o)
{
	if (!o->has_work_thread)
		return;
	pthread_mutex_lock(&o->work_lock);
	o->is_work_over = true;
	pthread_cond_signal(&o->work_cond);
	pthread_mutex_unlock(&o->work_lock);
	pthread_join(o->work_thread, NULL);
	o->has_work_thread = false;
}

int mc_owork_add(struct mc_owner *o, struct mc_ojob *job)
{
	int rc = 0;

	job->owner = o;
	job->task.run = job_end;
	pthread_mutex_lock(&o->work_lock);
	if (o->njobs >= MC_OWNER_JOBS_MAX || o->is_work_over) {
		rc = -MC_E_AGAIN;
	} else {
		mc_list_push_back(&o->jobs, &job->link);
		o->njobs++;
		pthread_cond_signal(&o->work_cond);
	}
	pthread_mutex_unlock(&o->work_lock);
	return rc;
}

/* ---- orders to copy ---- */

struct copy_job {
	struct mc_ojob job;
	struct mc_odone done;
	struct mc_st_grant grant;
	uint64_t addr; /* of the source's slot */
	uint64_t life; /* mc_owner.orders_life when it came */
	char segment[MC_OWNER_NAME_MAX];
	char address[MC_OWNER_NAME_MAX]; /* "" or of the source, which has it on its disk */
	uint8_t texts[];		 /* key, and room for the TLV */
};

static int read_from(struct mc_owner *o, int32_t segment, uint64_t addr, uint64_t len, void *to)
{
	struct mc_iov local = {.addr = (uint64_t)(uintptr_t)to, .len = len};
	struct mc_iov remote = {.addr = addr, .len = len};
	struct mc_transfer t = {.op = MC_READ,
				.segment = segment,
				.nlocal = 1,
				.nremote = 1,
				.local = &local,
				.remote = &remote};
	struct mc_group group = {.size = sizeof(group),
				 .n = 1,
				 .transfers = &t,
				 .deadline_ns = COPY_NS,
				 .priority = MC_PRIO_LOW};

	return mc_transfer_sync(o->engine, &group, NULL);
}

static int32_t status_of(int rc)
{
	if (rc == -MC_E_CORRUPT)
		return MC_STORE_CHECKSUM_MISMATCH;
	if (rc == -MC_E_NOENT || rc == -MC_E_RANGE)
		return MC_STORE_REPLICA_NOT_FOUND;
	return rc == -MC_E_NOMEM ? MC_STORE_INTERNAL_ERROR : MC_STORE_TRANSFER_FAIL;
}

/* Reads the source's head, which has to be that of the object ordered. */
static int copy_head(struct copy_job *j, int32_t segment, uint8_t *head, size_t len,
		     struct mc_slot_info *ret)
{
	const struct mc_st_grant *g = &j->grant;
	int rc = read_from(j->job.owner, segment, j->addr, len, head);

	if (rc == 0)
		rc = mc_slot_decode(head, len, ret, NULL);
	if (rc < 0)
		return rc;
	if (ret->gen != g->gen || ret->len != g->len || ret->key_len != g->key_len ||
	    ret->tlv_len != g->tlv_len || memcmp(ret->key, g->key, g->key_len) != 0)
		return -MC_E_NOENT;
	return 0;
}

/* The payload, checked with the source's table. @param table  receives ours */
static int copy_payload(struct copy_job *j, int32_t segment, const uint8_t *head,
			const struct mc_slot_info *from, uint32_t id, uint32_t *table)
{
	struct mc_owner *o = j->job.owner;
	struct mc_slot_info info;
	uint8_t *to;
	int rc;

	pthread_mutex_lock(&o->lock);
	mc_opool_info(&o->pool, id, &info);
	to = o->pool.base + o->pool.slots[id].off + info.payload_off;
	pthread_mutex_unlock(&o->lock);
	rc = from->len ? read_from(o, segment, j->addr + from->payload_off, from->len, to) : 0;
	for (uint32_t i = 0; rc == 0 && i < from->nchunks; i++, to += MC_SLOT_CHUNK) {
		uint32_t len = mc_slot_chunk_len(from, i);

		table[i] = mc_slot_chunk_crc(&info, i, to, len);
		if (mc_slot_chunk_crc(from, i, to, len) != mc_slot_table(head, from, i))
			rc = -MC_E_CORRUPT;
	}
	return rc;
}

static int32_t copy_here(struct copy_job *j, int32_t segment, uint8_t *head, size_t head_len,
			 uint32_t *table)
{
	struct mc_owner *o = j->job.owner;
	struct mc_slot_info from = {0};
	bool is_old;
	uint32_t id;
	int32_t status;
	int rc = copy_head(j, segment, head, head_len, &from);

	if (rc < 0)
		return status_of(rc);
	j->grant.tlv = from.tlv;
	status = mc_owner_begin(o, &j->grant, mc_now_ns() + COPY_NS, &id, &is_old);
	if (status < 0)
		return status;
	pthread_mutex_lock(&o->lock);
	j->done.addr = mc_opool_addr(&o->pool, id);
	if (!is_old) {
		o->pool.slots[id].is_copy = true;
		o->pool.slots[id].is_doomed |= j->life != o->orders_life;
	}
	if (is_old && o->pool.slots[id].state != MC_OSLOT_SEALED)
		status = MC_STORE_OBJECT_REPLICA_BUSY; /* somebody else is at it */
	pthread_mutex_unlock(&o->lock);
	if (is_old)
		return status;
	rc = copy_payload(j, segment, head, &from, id, table);
	if (rc < 0) {
		(void)mc_owner_finish(o, id, NULL);
		return status_of(rc);
	}
	return mc_owner_finish(o, id, table);
}

/* The source brings it to its memory. */
static int32_t fetch(struct copy_job *j)
{
	const struct mc_rpc_conn_opts opts = {.user_timeout_ms = FETCH_NS / MC_NS_PER_MS};
	const struct mc_st_place place = {j->addr, j->grant.gen};
	struct mc_owner *o = j->job.owner;
	uint8_t req[4 + 16], reply[64];
	struct mc_wr w = mc_wr_make(req, sizeof(req));
	struct mc_rpc_call call = {.method = MC_ST_FETCH,
				   .req = req,
				   .deadline_ns = mc_now_ns() + FETCH_NS,
				   .reply_buf = reply,
				   .reply_cap = sizeof(reply)};
	struct mc_rpc_conn *conn = NULL;
	struct mc_st_granted g;
	struct mc_addr at;
	struct mc_rd rd;
	int rc = mc_addr_parse(j->address, 0, &at);

	mc_wr_u32(&w, 1);
	mc_st_place_encode(&w, &place);
	call.req_len = mc_wr_len(&w);
	if (rc == 0)
		rc = mc_rpc_conn_open(o->env, o->loop, &at, &opts, &conn);
	if (rc == 0)
		rc = mc_rpc_sync(conn, &call);
	mc_rpc_conn_close(conn);
	if (rc < 0)
		return MC_STORE_TRANSFER_FAIL;
	rd = mc_rd_make(reply, mc_min(call.reply_len, sizeof(reply)));
	if (mc_st_count_decode(&rd) != 1)
		return MC_STORE_TRANSFER_FAIL;
	mc_st_granted_decode(&rd, &g);
	if (rd.is_bad)
		return MC_STORE_TRANSFER_FAIL;
	j->addr = g.addr;
	return g.status;
}

/* A master that is told all that is here does not know that more would come. */
void mc_oorders_over(struct mc_owner *o)
{
	struct mc_opool *p = &o->pool;

	o->orders_life++;
	for (uint32_t id = o->self.grants.first; id != MC_OWNER_NIL; id = p->slots[id].next)
		p->slots[id].is_doomed |= p->slots[id].is_copy;
}

static void copy_run(struct mc_ojob *job)
{
	struct copy_job *j = mc_container_of(job, struct copy_job, job);
	struct mc_slot_info info = {
	    .key_len = j->grant.key_len, .tlv_len = j->grant.tlv_len, .len = j->grant.len};
	uint32_t *table = NULL;
	uint8_t *head = NULL;
	int32_t segment;
	int rc = mc_slot_layout(&info);

	j->done.status = rc < 0 ? MC_STORE_INVALID_PARAMS : j->address[0] ? fetch(j) : 0;
	if (j->done.status != 0)
		return;
	head = mc_calloc(1, mc_slot_head_len(&info));
	table = mc_calloc((size_t)info.nchunks + 1, sizeof(*table));
	rc = head && table ? 0 : -MC_E_NOMEM;
	if (rc == 0)
		rc = mc_segment_open(job->owner->engine, j->segment, 0, NULL, &segment);
	j->done.status =
	    rc < 0 ? status_of(rc) : copy_here(j, segment, head, mc_slot_head_len(&info), table);
	mc_free(table);
	mc_free(head);
}

static void copy_end(struct mc_ojob *job)
{
	struct copy_job *j = mc_container_of(job, struct copy_job, job);

	mc_ostream_done(job->owner, &j->done);
	mc_free(j);
}

int mc_oorder_copy(struct mc_owner *o, const Mc__St__Order *order)
{
	struct copy_job *j;

	if (order->key.len == 0 || order->key.len > MC_SLOT_KEY_MAX ||
	    order->tlv_len > MC_SLOT_TLV_MAX || strlen(order->segment) >= MC_OWNER_NAME_MAX ||
	    strlen(order->address) >= MC_OWNER_NAME_MAX ||
	    (order->addr == MC_ST_DISK_ADDR) != (order->address[0] != 0))
		return -MC_E_INVAL;
	j = mc_calloc(1, sizeof(*j) + order->key.len);
	if (!j)
		return -MC_E_NOMEM;
	memcpy(j->texts, order->key.data, order->key.len);
	(void)mc_strlcpy(j->segment, sizeof(j->segment), order->segment);
	(void)mc_strlcpy(j->address, sizeof(j->address), order->address);
	j->grant = (struct mc_st_grant){.gen = order->gen,
					.len = order->len,
					.key = j->texts,
					.key_len = (uint16_t)order->key.len,
					.tlv_len = (uint16_t)order->tlv_len};
	j->addr = order->addr;
	j->life = o->orders_life; /* changes on the loop */
	pthread_mutex_lock(&o->lock);
	mc_opool_undrop(&o->pool, order->gen); /* a free before this order was not about it */
	pthread_mutex_unlock(&o->lock);
	j->done = (struct mc_odone){
	    .id = order->id, .gen = order->gen, .status = MC_STORE_UNAVAILABLE_IN_CURRENT_STATUS};
	j->job = (struct mc_ojob){.run = copy_run, .end = copy_end};
	if (mc_owork_add(o, &j->job) < 0) {
		mc_free(j);
		return -MC_E_AGAIN;
	}
	return 0;
}
