/*
 * worker.c: a few threads for calls that block (fences, notifications of asynchronous groups).
 * Started when needed.
 */
#include <signal.h>

#include "base/log.h"
#include "engine/priv.h"

static void *work(void *arg)
{
	struct mc_engine *eng = arg;

	pthread_mutex_lock(&eng->work_mu);
	for (;;) {
		struct mc_list *n = mc_list_pop_front(&eng->work);

		if (n) {
			struct mc_worker_job *job = mc_list_entry(n, struct mc_worker_job, link);

			pthread_mutex_unlock(&eng->work_mu);
			job->run(job);
			pthread_mutex_lock(&eng->work_mu);
			continue;
		}
		if (eng->is_work_over)
			break;
		eng->nidle++;
		pthread_cond_wait(&eng->work_cond, &eng->work_mu);
		eng->nidle--;
	}
	pthread_mutex_unlock(&eng->work_mu);
	return NULL;
}

/* Under work_mu. */
static int start_worker(struct mc_engine *eng)
{
	sigset_t all, old;
	int rc;

	if (eng->nworkers == MC_WORKERS_MAX)
		return -MC_E_LIMIT;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	rc = pthread_create(&eng->workers[eng->nworkers], NULL, work, eng);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (rc != 0)
		return -MC_E_LIMIT;
	eng->nworkers++;
	return 0;
}

void mc_work_post(struct mc_engine *eng, struct mc_worker_job *job)
{
	int rc = 0;

	pthread_mutex_lock(&eng->work_mu);
	mc_list_push_back(&eng->work, &job->link);
	if (eng->nidle > 0)
		pthread_cond_signal(&eng->work_cond);
	else
		rc = start_worker(eng);
	if (rc < 0 && eng->nworkers == 0) {
		/* No thread can be had at all: the caller's has to do, though it is a loop. */
		mc_list_del(&job->link);
		pthread_mutex_unlock(&eng->work_mu);
		mc_log_warn("no worker thread: a loop blocks", "limit=%u", MC_WORKERS_MAX);
		job->run(job);
		return;
	}
	pthread_mutex_unlock(&eng->work_mu);
}

void mc_work_close(struct mc_engine *eng)
{
	pthread_mutex_lock(&eng->work_mu);
	eng->is_work_over = true;
	pthread_cond_broadcast(&eng->work_cond);
	pthread_mutex_unlock(&eng->work_mu);
	for (unsigned i = 0; i < eng->nworkers; i++)
		(void)pthread_join(eng->workers[i], NULL);
	eng->nworkers = 0;
}
