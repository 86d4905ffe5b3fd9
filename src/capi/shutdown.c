/*
 * shutdown.c: a signal handler may only write to a pipe; a thread reads it, closes the engines, and
 * ends the process with 128 + the signal's number.
 */
#include "capi/shutdown.h"

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>
#include <errno.h>
#include <fcntl.h>

#include "base/err.h"
#include "capi/handle.h"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* guards what follows; leaf lock */
static transfer_engine_t enabled[MC_CAPI_ENGINES_MAX];
static size_t n_enabled;
static int wake_fd[2] = {-1, -1}; /* written by the handler, read by the thread */

static void engines_close(void)
{
	transfer_engine_t engine = NULL;

	for (;;) {
		pthread_mutex_lock(&lock);
		engine = n_enabled > 0 ? enabled[--n_enabled] : NULL;
		pthread_mutex_unlock(&lock);
		if (!engine)
			return;
		mc_capi_engine_del(engine); /* destroyed by the program already: no harm */
	}
}

static void on_signal(int signo)
{
	int saved = errno;
	unsigned char byte = (unsigned char)signo;
	ssize_t n = write(wake_fd[1], &byte, 1);

	(void)n; /* a full pipe has told the thread already */
	errno = saved;
}

static void *watch(void *arg)
{
	unsigned char signo;
	ssize_t n;

	(void)arg;
	do
		n = read(wake_fd[0], &signo, 1);
	while (n < 0 && errno == EINTR);
	if (n != 1)
		return NULL;
	engines_close();
	_exit(128 + signo);
}

/* Caller holds the lock. */
static int watch_start(void)
{
	struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
	sigset_t all, old;
	pthread_t thread;
	int rc;

	if (pipe2(wake_fd, O_CLOEXEC) < 0)
		return -MC_E_LIMIT;
	(void)fcntl(wake_fd[1], F_SETFL, O_NONBLOCK);
	sigfillset(&all);
	(void)pthread_sigmask(SIG_BLOCK, &all, &old); /* the thread takes no signal itself */
	rc = pthread_create(&thread, NULL, watch, NULL);
	(void)pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (rc != 0) {
		(void)close(wake_fd[0]);
		(void)close(wake_fd[1]);
		wake_fd[0] = wake_fd[1] = -1;
		return -MC_E_LIMIT;
	}
	(void)pthread_detach(thread);
	sigemptyset(&action.sa_mask);
	(void)sigaction(SIGINT, &action, NULL);
	(void)sigaction(SIGTERM, &action, NULL);
	(void)atexit(engines_close); /* full: signals still work */
	return 0;
}

int mc_capi_shutdown_add(transfer_engine_t engine)
{
	int rc = 0;

	pthread_mutex_lock(&lock);
	for (size_t i = 0; i < n_enabled; i++)
		if (enabled[i] == engine)
			goto out;
	if (n_enabled == MC_CAPI_ENGINES_MAX)
		rc = -MC_E_LIMIT;
	else if (wake_fd[0] < 0)
		rc = watch_start();
	if (rc == 0)
		enabled[n_enabled++] = engine;
out:
	pthread_mutex_unlock(&lock);
	return rc;
}
