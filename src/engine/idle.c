/*
 * idle.c: RDMA lanes that nobody has used for long are closed, and their targets told: queue pairs
 * are few on some devices, and a process that once spoke with a thousand peers should not hold a
 * thousand. The next transfer introduces a lane anew.
 *
 * A timer of the first loop looks four times in that time, once a second at most; a worker does the
 * closing, for the verbs block.
 */
#include "base/log.h"
#include "engine/priv.h"

#define PERIOD_MIN_NS MC_NS_PER_S

struct mc_idle {
	struct mc_engine *eng;
	uint64_t idle_ns, period_ns;
	struct mc_timer timer;	  /* on the first loop */
	struct mc_worker_job job; /* under way, or not: one at a time */
	struct mc_task task;
	pthread_mutex_t mu; /* held while peers are walked; > peers_mu */
};

static bool is_over(const struct mc_idle *i)
{
	return atomic_load(&i->eng->is_closing);
}

static struct mc_peer *peer_at(struct mc_engine *eng, size_t at)
{
	struct mc_peer *peer;

	pthread_mutex_lock(&eng->peers_mu);
	peer = at < eng->npeers ? eng->peers[at] : NULL;
	pthread_mutex_unlock(&eng->peers_mu);
	return peer;
}

/* Worker thread, or a test. */
static void look(struct mc_idle *i, uint64_t before_ns)
{
	struct mc_peer *peer;

	pthread_mutex_lock(&i->mu);
	for (size_t at = 0; !is_over(i) && (peer = peer_at(i->eng, at)); at++) {
		struct mc_session *s = mc_session_now(peer);
		unsigned n;

		if (!s)
			continue;
		n = mc_lane_retire_idle(s, MC_ROUTE_RDMA, before_ns);
		if (n > 0)
			mc_log_debug("idle lanes closed", "peer=%s lanes=%u", peer->name, n);
		mc_session_put(s);
	}
	pthread_mutex_unlock(&i->mu);
}

static void arm(struct mc_task *task)
{
	struct mc_idle *i = mc_container_of(task, struct mc_idle, task);
	struct mc_loop *loop = i->eng->loops[0];

	if (!is_over(i))
		(void)mc_loop_timer_set(loop, &i->timer,
					mc_time_after(mc_loop_now(loop), i->period_ns));
}

static void run(struct mc_worker_job *job)
{
	struct mc_idle *i = mc_container_of(job, struct mc_idle, job);
	uint64_t now_ns = mc_now_ns();

	look(i, now_ns > i->idle_ns ? now_ns - i->idle_ns : 0);
	mc_loop_post(i->eng->loops[0], &i->task);
}

static void on_time(struct mc_timer *t)
{
	struct mc_idle *i = mc_container_of(t, struct mc_idle, timer);

	mc_work_post(i->eng, &i->job);
}

int mc_idle_open(struct mc_engine *eng)
{
	struct mc_idle *i;

	if (!eng->rdma || eng->conf.rdma_idle_s == 0)
		return 0;
	i = mc_calloc(1, sizeof(*i));
	if (!i)
		return -MC_E_NOMEM;
	i->eng = eng;
	i->idle_ns = (uint64_t)eng->conf.rdma_idle_s * MC_NS_PER_S;
	i->period_ns = mc_max(i->idle_ns / 4, PERIOD_MIN_NS);
	i->timer.on_time = on_time;
	i->job.run = run;
	i->task.run = arm;
	pthread_mutex_init(&i->mu, NULL);
	eng->idle = i;
	mc_loop_post(eng->loops[0], &i->task);
	return 0;
}

static void disarm(void *arg)
{
	struct mc_idle *i = arg;

	mc_loop_timer_cancel(i->eng->loops[0], &i->timer);
}

void mc_idle_stop(struct mc_engine *eng)
{
	if (!eng->idle)
		return;
	mc_loop_call(eng->loops[0], disarm, eng->idle);
	/* One that is walking the peers is through with them; one that comes sees that it is over.
	 */
	pthread_mutex_lock(&eng->idle->mu);
	pthread_mutex_unlock(&eng->idle->mu);
}

void mc_idle_free(struct mc_engine *eng)
{
	if (!eng->idle)
		return;
	(void)pthread_mutex_destroy(&eng->idle->mu); /* nobody holds it */
	mc_free(eng->idle);
	eng->idle = NULL;
}
