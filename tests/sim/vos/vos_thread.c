/*
 * vos_thread.c: what stands in for libc's threads, locks and clocks. A lock's state lies in the
 * memory that libc has for its own, so initialisers with zeros hold. The host takes no part in it:
 * nobody else runs while it does, and what it locks is free or a fault of the test.
 */
#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "base/err.h"
#include "base/mem.h"
#include "sim/vos/vos.h"
#include "sim/vos/vos_wrap.h"

/* The clock itself costs time, so that whoever polls it gets on. */
#define CLOCK_COST_NS 30

struct lock {
	const void *owner;
};
_Static_assert(sizeof(struct lock) <= sizeof(pthread_mutex_t), "a lock lies in a mutex");

struct semaphore {
	uint32_t value;
};

static char host_is_owner;

static uint64_t ns_of(const struct timespec *ts)
{
	return (uint64_t)ts->tv_sec * MC_NS_PER_S + (uint64_t)ts->tv_nsec;
}

static const void *who(void)
{
	return vos_thread_self() ? (const void *)vos_thread_self() : &host_is_owner;
}

/* ---- clocks and chance ---- */

int __wrap_clock_gettime(clockid_t id, struct timespec *ts)
{
	uint64_t now = vos_spend(CLOCK_COST_NS);

	(void)id; /* all run from the same start; nobody compares them */
	*ts = (struct timespec){.tv_sec = (time_t)(now / MC_NS_PER_S),
				.tv_nsec = (long)(now % MC_NS_PER_S)};
	return 0;
}

int __wrap_nanosleep(const struct timespec *ts, struct timespec *left)
{
	static const char nobody;

	(void)left;
	(void)vos_wait(&nobody, vos_now() + ns_of(ts));
	return 0;
}

ssize_t __wrap_getrandom(void *buf, size_t len, unsigned flags)
{
	uint8_t *at = buf;

	(void)flags;
	for (size_t i = 0; i < len; i++)
		at[i] = (uint8_t)vos_pick(256);
	return (ssize_t)len;
}

/* ---- threads ---- */

int __wrap_pthread_create(pthread_t *ret, const pthread_attr_t *attr, void *(*fn)(void *arg),
			  void *arg)
{
	(void)attr;
	*ret = (pthread_t)vos_spawn(vos_self(), fn, arg);
	return 0;
}

int __wrap_pthread_join(pthread_t thread, void **ret)
{
	const struct vos_thread *t = (const struct vos_thread *)thread;

	while (!vos_thread_is_over(t))
		(void)vos_wait(t, MC_TIME_NEVER);
	if (ret)
		*ret = NULL;
	return 0;
}

pthread_t __wrap_pthread_self(void)
{
	return (pthread_t)who();
}

int __wrap_pthread_setname_np(pthread_t thread, const char *name)
{
	(void)thread;
	(void)name;
	return 0;
}

int __wrap_pthread_sigmask(int how, const sigset_t *set, sigset_t *old)
{
	(void)how;
	(void)set;
	if (old)
		memset(old, 0, sizeof(*old));
	return 0;
}

/* ---- locks ---- */

int __wrap_pthread_mutex_init(pthread_mutex_t *mu, const pthread_mutexattr_t *attr)
{
	(void)attr;
	memset(mu, 0, sizeof(*mu));
	return 0;
}

int __wrap_pthread_mutex_destroy(pthread_mutex_t *mu)
{
	if (((struct lock *)mu)->owner)
		vos_fail("a mutex is destroyed while somebody holds it");
	return 0;
}

int __wrap_pthread_mutex_lock(pthread_mutex_t *mu)
{
	struct lock *l = (struct lock *)mu;

	vos_shuffle();
	if (l->owner == who())
		vos_fail("a thread takes a mutex that it has");
	while (l->owner)
		(void)vos_wait(l, MC_TIME_NEVER);
	l->owner = who();
	return 0;
}

int __wrap_pthread_mutex_unlock(pthread_mutex_t *mu)
{
	struct lock *l = (struct lock *)mu;

	if (l->owner != who())
		vos_fail("a thread gives back a mutex that it does not have");
	l->owner = NULL;
	vos_wake(l, 1);
	vos_shuffle();
	return 0;
}

int __wrap_pthread_cond_init(pthread_cond_t *cond, const pthread_condattr_t *attr)
{
	(void)cond;
	(void)attr;
	return 0;
}

int __wrap_pthread_cond_destroy(pthread_cond_t *cond)
{
	(void)cond;
	return 0;
}

static int cond_wait(pthread_cond_t *cond, pthread_mutex_t *mu, uint64_t deadline_ns)
{
	struct lock *l = (struct lock *)mu;
	bool is_woken;

	mc_assert(l->owner == who());
	l->owner = NULL;
	vos_wake(l, 1);
	is_woken = vos_wait(cond, deadline_ns);
	while (l->owner)
		(void)vos_wait(l, MC_TIME_NEVER);
	l->owner = who();
	return is_woken ? 0 : ETIMEDOUT;
}

int __wrap_pthread_cond_wait(pthread_cond_t *cond, pthread_mutex_t *mu)
{
	/* Now and then it ends for nothing, as POSIX allows. */
	(void)cond_wait(cond, mu,
			vos_one_in(50) ? vos_now() + vos_pick(MC_NS_PER_MS) : MC_TIME_NEVER);
	return 0;
}

int __wrap_pthread_cond_timedwait(pthread_cond_t *cond, pthread_mutex_t *mu,
				  const struct timespec *until)
{
	return cond_wait(cond, mu, ns_of(until));
}

int __wrap_pthread_cond_clockwait(pthread_cond_t *cond, pthread_mutex_t *mu, clockid_t clock,
				  const struct timespec *until)
{
	(void)clock;
	return cond_wait(cond, mu, ns_of(until));
}

int __wrap_pthread_cond_signal(pthread_cond_t *cond)
{
	vos_wake(cond, 1);
	return 0;
}

int __wrap_pthread_cond_broadcast(pthread_cond_t *cond)
{
	vos_wake(cond, UINT32_MAX);
	return 0;
}

int __wrap_sem_init(sem_t *sem, int is_shared, unsigned value)
{
	(void)is_shared;
	((struct semaphore *)sem)->value = value;
	return 0;
}

int __wrap_sem_destroy(sem_t *sem)
{
	(void)sem;
	return 0;
}

int __wrap_sem_post(sem_t *sem)
{
	((struct semaphore *)sem)->value++;
	vos_wake(sem, 1);
	return 0;
}

int __wrap_sem_wait(sem_t *sem)
{
	struct semaphore *s = (struct semaphore *)sem;

	while (s->value == 0)
		(void)vos_wait(s, MC_TIME_NEVER);
	s->value--;
	return 0;
}

/* ---- the system calls without a name ---- */

static long futex(_Atomic uint32_t *word, int op, uint32_t value, const struct timespec *until)
{
	switch (op & FUTEX_CMD_MASK) {
	case FUTEX_WAIT_BITSET:
		vos_shuffle();
		if (atomic_load(word) != value) {
			errno = EAGAIN;
			return -1;
		}
		if (vos_wait(word, until ? ns_of(until) : MC_TIME_NEVER))
			return 0;
		errno = ETIMEDOUT;
		return -1;
	case FUTEX_WAKE:
		vos_wake(word, value);
		vos_shuffle();
		return 0;
	default:
		vos_fail("futex operation %d is not simulated", op);
	}
}

long __wrap_syscall(long number, ...)
{
	const struct timespec *ts;
	struct epoll_event *events;
	_Atomic uint32_t *word;
	uint32_t value;
	va_list ap;
	int a, b;

	va_start(ap, number);
	switch (number) {
	case SYS_futex:
		word = va_arg(ap, _Atomic uint32_t *);
		a = va_arg(ap, int);
		value = va_arg(ap, uint32_t);
		ts = va_arg(ap, const struct timespec *);
		va_end(ap);
		return futex(word, a, value, ts);
	case SYS_epoll_pwait2:
		a = va_arg(ap, int);
		events = va_arg(ap, struct epoll_event *);
		b = va_arg(ap, int);
		ts = va_arg(ap, const struct timespec *);
		va_end(ap);
		return vos_epoll_wait(a, events, b, ts ? vos_now() + ns_of(ts) : MC_TIME_NEVER);
	default:
		vos_fail("system call %ld is not simulated", number);
	}
}
