/*
 * worker.c: a few threads for calls that block (fences, notifications of asynchronous groups). The
 * first is there from the start, so that a job always has somewhere to run; the others are started
 * when needed.
 */
#include <signal.h>

#include "engine/priv.h"

static void *work(void *arg)
{
	struct mc_engine *eng = arg;

	pthread_mutex_lock(&eng->work_mu);
	for (;;) {
		struct mc_list *n = mc_list_pop_front(&eng->work);

		if (n) {
			struct mc_worker_job *job = mc_list_entry(n, struct mc_worker_job, link);

			eng->nwork--;
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

int mc_work_open(struct mc_engine *eng)
{
	int rc;

	pthread_mutex_lock(&eng->work_mu);
	rc = start_worker(eng);
	pthread_mutex_unlock(&eng->work_mu);
	return rc;
}

void mc_work_post(struct mc_engine *eng, struct mc_worker_job *job)
{
	pthread_mutex_lock(&eng->work_mu);
	mc_assert(eng->nworkers > 0 && !eng->is_work_over);
	mc_list_push_back(&eng->work, &job->link);
	eng->nwork++;
	pthread_cond_signal(&eng->work_cond);
	/* A job may block for long: each gets a thread of its own while there are any to be had.
	 * One that cannot be started leaves the job to those that are. */
	if (eng->nwork > eng->nidle)
		(void)start_worker(eng);
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
