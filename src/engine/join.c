/*
 * join.c: this process's entries in the metadata service: made when the engine opens, deleted when
 * it closes, and looked after meanwhile. A service that was restarted without its data is told
 * again; a name that another process has taken is left to it; RDMA ports that came up later, or got
 * another address, are told.
 */
#include <string.h>

#include "base/log.h"
#include "engine/priv.h"
#include "xport/rdma/rdma.h"

#define CALL_NS (10 * MC_NS_PER_S)
#define LEAVE_NS (2500 * MC_NS_PER_MS)

struct mc_join {
	struct mc_engine *eng;
	struct mc_meta_rpc rpc;
	uint64_t period_ns;	  /* 0: entries are not looked after */
	struct mc_timer timer;	  /* on the first loop */
	struct mc_worker_job job; /* under way, or not: one at a time */
	struct mc_task task;
	bool is_taken;	/* by another process; warned of */
	uint32_t ports; /* version of the RDMA ports that was told */
};

static uint32_t ports_now(const struct mc_engine *eng)
{
	return eng->rdma ? mc_rdma_ports_version(eng->rdma) : 0;
}

static bool is_over(const struct mc_join *j)
{
	return atomic_load_explicit(&j->eng->is_closing, memory_order_acquire);
}

static void arm(struct mc_task *task)
{
	struct mc_join *j = mc_container_of(task, struct mc_join, task);
	struct mc_loop *loop = j->eng->loops[0];

	if (!is_over(j))
		(void)mc_loop_timer_set(loop, &j->timer,
					mc_time_after(mc_loop_now(loop), j->period_ns));
}

static int tell_again(struct mc_join *j, struct mc_diag *diag)
{
	struct mc_engine *eng = j->eng;
	int rc = 0;

	pthread_mutex_lock(&eng->publish_mu);
	if (eng->is_joined)
		rc = mc_meta_rpc_put(eng->meta, eng->name, &j->rpc, mc_now_ns() + CALL_NS, diag);
	pthread_mutex_unlock(&eng->publish_mu);
	return rc < 0 ? rc : mc_mem_publish(eng, diag);
}

static void look(struct mc_worker_job *job)
{
	struct mc_join *j = mc_container_of(job, struct mc_join, job);
	struct mc_engine *eng = j->eng;
	struct mc_diag diag = {0};
	struct mc_meta_rpc now;
	int rc = is_over(j)
		     ? -MC_E_CLOSED
		     : mc_meta_rpc_get(eng->meta, eng->name, mc_now_ns() + CALL_NS, &now, &diag);

	if (rc == -MC_E_NOENT) {
		diag.text[0] = '\0';
		rc = tell_again(j, &diag);
		if (rc == 0)
			mc_log_warn("metadata service had forgotten this process: told again",
				    "segment=%s", eng->name);
	} else if (rc == 0) {
		bool is_ours = now.port == j->rpc.port && strcmp(now.host, j->rpc.host) == 0;

		if (!is_ours && !j->is_taken)
			mc_log_warn("another process has taken this segment's name",
				    "segment=%s host=%s port=%u", eng->name, now.host, now.port);
		j->is_taken = !is_ours;
		if (is_ours && j->ports != ports_now(eng)) {
			j->ports = ports_now(eng);
			rc = mc_mem_publish(eng, &diag);
		}
	}
	if (rc < 0 && diag.text[0])
		mc_log_debug("metadata service not looked at", "cause=\"%s\"", diag.text);
	j->task.run = arm;
	mc_loop_post(eng->loops[0], &j->task);
}

static void on_time(struct mc_timer *t)
{
	struct mc_join *j = mc_container_of(t, struct mc_join, timer);

	j->job.run = look;
	mc_work_post(j->eng, &j->job);
}

int mc_join(struct mc_engine *eng, const char *host, struct mc_diag *diag)
{
	struct mc_meta_conf conf;
	struct mc_join *j;
	int rc;

	if (!eng->meta)
		return 0;
	j = mc_calloc(1, sizeof(*j));
	if (!j)
		return -MC_E_NOMEM;
	eng->join = j; /* mc_leave() ends it */
	mc_meta_conf_load(&conf);
	j->eng = eng;
	j->period_ns = (uint64_t)conf.refresh_s * MC_NS_PER_S;
	j->timer.on_time = on_time;
	j->rpc.port = eng->port;
	j->ports = ports_now(eng);
	rc = mc_strlcpy(j->rpc.host, sizeof(j->rpc.host), host);
	if (rc == 0)
		rc = mc_meta_rpc_put(eng->meta, eng->name, &j->rpc, mc_now_ns() + CALL_NS, diag);
	if (rc < 0)
		return rc;
	eng->is_joined = true;
	rc = mc_mem_publish(eng, diag);
	if (rc == 0 && j->period_ns) {
		j->task.run = arm;
		mc_loop_post(eng->loops[0], &j->task);
	}
	return rc;
}

static void disarm(void *arg)
{
	struct mc_join *j = arg;

	mc_loop_timer_cancel(j->eng->loops[0], &j->timer);
}

void mc_leave(struct mc_engine *eng)
{
	uint64_t deadline_ns = mc_now_ns() + LEAVE_NS;
	struct mc_diag diag = {0};
	bool was_joined;

	if (!eng->join)
		return;
	mc_loop_call(eng->loops[0], disarm, eng->join);
	pthread_mutex_lock(&eng->publish_mu);
	was_joined = eng->is_joined;
	eng->is_joined = false; /* whoever publishes from here on does nothing */
	pthread_mutex_unlock(&eng->publish_mu);
	if (was_joined && !eng->join->is_taken &&
	    (mc_meta_segment_del(eng->meta, eng->name, deadline_ns, &diag) < 0 ||
	     mc_meta_rpc_del(eng->meta, eng->name, deadline_ns, &diag) < 0))
		mc_log_warn("metadata service still lists this process", "cause=\"%s\"", diag.text);
}

void mc_join_free(struct mc_engine *eng)
{
	mc_free(eng->join);
	eng->join = NULL;
}
