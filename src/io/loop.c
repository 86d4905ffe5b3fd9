/*
 * loop.c: epoll for descriptors, a heap for timers, one wake-up descriptor for everything else.
 *
 * The wake-up descriptor is an edge-triggered eventfd: each write is one event, so nobody reads it.
 * It is written only when the loop sleeps or is about to. Who wakes whom:
 *
 *   loop:     asleep = 1 (exchange)  ->  look at the queue  ->  sleep
 *   producer: push                   ->  asleep = 0 (exchange), write the eventfd if it was 1
 *
 * If the producer's exchange comes first, the loop's exchange reads from it and the look sees the
 * push; else the producer reads 1 and writes. A producer whose push finds another one waiting
 * leaves the wake-up to that one.
 */
#include "io/loop.h"

#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/err.h"
#include "base/fork.h"
#include "base/mem.h"
#include "io/sock.h"

#define EVENTS_BATCH 64
#define TASKS_BATCH 256 /* a round, so that tasks that post tasks starve no descriptor */
#define TIMERS_BATCH 256

struct mc_loop {
	const struct mc_clock *clk;
	int epoll_fd, wake_fd;
	uint64_t fork_gen;
	pthread_t thread;
	bool has_thread;
	char name[16];

	struct mc_mpsc tasks;
	_Atomic uint32_t asleep; /* see the file comment */
	_Atomic bool is_stopping;
	_Atomic(pthread_t) owner; /* the thread that drives; NOBODY: none yet */
	_Atomic uint64_t now_ns;  /* the owner's cached clock */

	/* the owner's */
	struct mc_heap timers;
	struct mc_idler *idlers, *idler_next;
	bool has_pwait2;
	struct epoll_event events[EVENTS_BATCH];
	int nevents, event_at;
};

#define NOBODY ((pthread_t)0) /* glibc's and musl's are addresses */

static void loop_now_update(struct mc_loop *loop)
{
	atomic_store_explicit(&loop->now_ns, mc_clock_now(loop->clk), memory_order_relaxed);
}

int mc_loop_open(const char *name, const struct mc_clock *clk, struct mc_loop **ret_loop)
{
	struct mc_loop *loop = mc_calloc(1, sizeof(*loop));
	struct epoll_event ev = {.events = EPOLLIN | EPOLLET, .data.ptr = NULL};
	int rc;

	if (!loop)
		return -MC_E_NOMEM;
	loop->clk = clk;
	loop->epoll_fd = loop->wake_fd = -1;
	loop->fork_gen = mc_fork_gen();
	loop->has_pwait2 = true;
	strncpy(loop->name, name, sizeof(loop->name) - 1);
	atomic_init(&loop->owner, pthread_self());
	mc_heap_init(&loop->timers, MC_LOOP_TIMERS_MAX);
	/* Address space only until used: setting a timer can then never run out of memory. */
	rc = mc_heap_reserve(&loop->timers, MC_LOOP_TIMERS_MAX);
	if (rc < 0)
		goto fail;
	loop->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	loop->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (loop->epoll_fd < 0 || loop->wake_fd < 0 ||
	    epoll_ctl(loop->epoll_fd, EPOLL_CTL_ADD, loop->wake_fd, &ev) != 0) {
		rc = errno == ENOMEM ? -MC_E_NOMEM : -MC_E_LIMIT;
		goto fail;
	}
	loop_now_update(loop);
	*ret_loop = loop;
	return 0;
fail:
	mc_loop_close(loop);
	return rc;
}

static void loop_wake(struct mc_loop *loop)
{
	const uint64_t one = 1;
	ssize_t n;

	/* acq_rel: pairs with the exchange in loop_wait() */
	if (!atomic_exchange_explicit(&loop->asleep, 0, memory_order_acq_rel))
		return;
	n = write(loop->wake_fd, &one, sizeof(one));
	mc_assert(n == sizeof(one)); /* the counter cannot fill in the life of a machine */
}

/* @return tasks run */
static unsigned loop_run_tasks(struct mc_loop *loop)
{
	unsigned n = 0;

	while (n < TASKS_BATCH) {
		struct mc_mpsc_node *node = mc_mpsc_pop(&loop->tasks);
		struct mc_task *t;

		if (!node)
			break;
		t = mc_container_of(node, struct mc_task, node);
		t->run(t);
		n++;
	}
	return n;
}

static unsigned loop_run_timers(struct mc_loop *loop)
{
	const uint64_t now = mc_loop_now(loop);
	unsigned n = 0;

	while (n < TIMERS_BATCH) {
		struct mc_heap_node *node = mc_heap_peek(&loop->timers);
		struct mc_timer *t;

		if (!node || node->key > now)
			break;
		(void)mc_heap_pop(&loop->timers);
		t = mc_container_of(node, struct mc_timer, node);
		t->is_set = false;
		t->on_time(t);
		n++;
	}
	return n;
}

/* @return nanoseconds that some idler wants to go on polling */
static uint64_t loop_run_idlers(struct mc_loop *loop)
{
	const uint64_t now = mc_loop_now(loop);
	uint64_t budget = 0;

	for (struct mc_idler *id = loop->idlers; id; id = loop->idler_next) {
		uint64_t wish;

		loop->idler_next = id->next; /* mc_loop_idler_del() moves it on */
		wish = id->poll(id, now);
		budget = mc_max(budget, wish);
	}
	loop->idler_next = NULL;
	return budget;
}

/* epoll_pwait2 where there is one: a timer is then not rounded up to the millisecond. */
static int loop_epoll(struct mc_loop *loop, uint64_t timeout_ns)
{
	const struct timespec ts = {.tv_sec = (time_t)(timeout_ns / MC_NS_PER_S),
				    .tv_nsec = (long)(timeout_ns % MC_NS_PER_S)};
	uint64_t ms;
	int n;

	if (timeout_ns != 0 && timeout_ns != MC_TIME_NEVER && loop->has_pwait2) {
		n = (int)syscall(SYS_epoll_pwait2, loop->epoll_fd, loop->events, EVENTS_BATCH, &ts,
				 NULL, 0);
		if (n >= 0 || errno == EINTR)
			return n;
		loop->has_pwait2 = false; /* an old kernel, or seccomp */
	}
	ms = timeout_ns / MC_NS_PER_MS + (timeout_ns % MC_NS_PER_MS != 0);
	return epoll_wait(loop->epoll_fd, loop->events, EVENTS_BATCH,
			  timeout_ns == MC_TIME_NEVER ? -1 : (int)mc_min(ms, 1000000000ull));
}

/* Fetch events; sleeps only when nothing else is to be done before `until_ns`. */
static void loop_wait(struct mc_loop *loop, uint64_t until_ns)
{
	const struct mc_heap_node *first = mc_heap_peek(&loop->timers);
	uint64_t now, timeout_ns = 0;
	int n;

	if (first)
		until_ns = mc_min(until_ns, first->key);
	now = until_ns ? mc_clock_now(loop->clk) : 0;
	/* Only real time passes while the kernel waits. */
	if (until_ns > now && loop->clk == &mc_clock_real) {
		timeout_ns = until_ns == MC_TIME_NEVER ? MC_TIME_NEVER : until_ns - now;
		/* acq_rel: pairs with the exchange in loop_wake() */
		(void)atomic_exchange_explicit(&loop->asleep, 1, memory_order_acq_rel);
		if (!mc_mpsc_is_empty(&loop->tasks) ||
		    atomic_load_explicit(&loop->is_stopping, memory_order_relaxed))
			timeout_ns = 0;
	}
	n = loop_epoll(loop, timeout_ns);
	if (timeout_ns)
		atomic_store_explicit(&loop->asleep, 0, memory_order_relaxed);
	mc_assert(n >= 0 || errno == EINTR);
	loop->nevents = n > 0 ? n : 0;
	loop_now_update(loop);
}

static unsigned loop_dispatch(struct mc_loop *loop)
{
	unsigned handled = 0;

	for (loop->event_at = 0; loop->event_at < loop->nevents; loop->event_at++) {
		const struct epoll_event *ev = &loop->events[loop->event_at];
		struct mc_watch *w = ev->data.ptr;

		if (!w) /* the wake-up, or unwatched by a callback of this batch */
			continue;
		w->on_event(w, ev->events);
		handled++;
	}
	loop->nevents = 0;
	return handled;
}

static unsigned loop_round(struct mc_loop *loop, uint64_t until_ns)
{
	unsigned handled;

	loop_now_update(loop);
	handled = loop_run_tasks(loop);
	handled += loop_run_timers(loop);
	if (loop->idlers && loop_run_idlers(loop) > 0)
		until_ns = 0;
	if (handled || !mc_mpsc_is_empty(&loop->tasks))
		until_ns = 0;
	loop_wait(loop, until_ns);
	return handled + loop_dispatch(loop);
}

int mc_loop_step(struct mc_loop *loop, uint64_t until_ns)
{
	mc_assert(!loop->has_thread);
	if (mc_fork_is_child(loop->fork_gen))
		return -MC_E_FORKED;
	atomic_store_explicit(&loop->owner, pthread_self(), memory_order_relaxed);
	return (int)loop_round(loop, until_ns);
}

static void *loop_main(void *arg)
{
	struct mc_loop *loop = arg;

	atomic_store_explicit(&loop->owner, pthread_self(), memory_order_relaxed);
	while (!atomic_load_explicit(&loop->is_stopping, memory_order_acquire))
		(void)loop_round(loop, MC_TIME_NEVER);
	return NULL;
}

int mc_loop_start(struct mc_loop *loop)
{
	sigset_t all, old;
	int rc;

	mc_assert(!loop->has_thread && loop->clk == &mc_clock_real);
	if (mc_fork_is_child(loop->fork_gen))
		return -MC_E_FORKED;
	/* From here on nobody is the loop's thread until that thread says so itself. */
	atomic_store_explicit(&loop->owner, NOBODY, memory_order_relaxed);
	(void)sigfillset(&all);
	(void)pthread_sigmask(SIG_BLOCK, &all, &old);
	rc = pthread_create(&loop->thread, NULL, loop_main, loop);
	(void)pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (rc != 0) {
		atomic_store_explicit(&loop->owner, pthread_self(), memory_order_relaxed);
		return -MC_E_LIMIT;
	}
	loop->has_thread = true;
	(void)pthread_setname_np(loop->thread, loop->name); /* a nameless thread works as well */
	return 0;
}

void mc_loop_close(struct mc_loop *loop)
{
	bool is_ours;

	if (!loop)
		return;
	is_ours = !mc_fork_is_child(loop->fork_gen);
	if (is_ours && loop->has_thread) {
		mc_assert(!mc_loop_is_self(loop));
		atomic_store_explicit(&loop->is_stopping, true, memory_order_release);
		loop_wake(loop);
		(void)pthread_join(loop->thread, NULL);
		loop->has_thread = false;
	}
	if (is_ours) {
		atomic_store_explicit(&loop->owner, pthread_self(), memory_order_relaxed);
		while (loop_run_tasks(loop) > 0)
			;
	}
	mc_fd_close(&loop->wake_fd);
	mc_fd_close(&loop->epoll_fd);
	mc_heap_fini(&loop->timers);
	mc_free(loop);
}

bool mc_loop_is_self(const struct mc_loop *loop)
{
	return pthread_equal(atomic_load_explicit(&loop->owner, memory_order_relaxed),
			     pthread_self()) != 0;
}

uint64_t mc_loop_now(const struct mc_loop *loop)
{
	return atomic_load_explicit(&loop->now_ns, memory_order_relaxed);
}

uint64_t mc_loop_next_ns(const struct mc_loop *loop)
{
	const struct mc_heap_node *first = mc_heap_peek(&loop->timers);

	return first ? first->key : MC_TIME_NEVER;
}

static int loop_ctl(struct mc_loop *loop, int op, struct mc_watch *w)
{
	struct epoll_event ev = {.events = w->events, .data.ptr = w};

	if (mc_fork_is_child(loop->fork_gen)) /* the epoll set is the parent's: leave it alone */
		return -MC_E_FORKED;
	if (epoll_ctl(loop->epoll_fd, op, w->fd, &ev) == 0)
		return 0;
	return errno == ENOSPC ? -MC_E_LIMIT : mc_err_from_errno(errno);
}

int mc_loop_watch(struct mc_loop *loop, struct mc_watch *w)
{
	return loop_ctl(loop, EPOLL_CTL_ADD, w);
}

int mc_loop_rewatch(struct mc_loop *loop, struct mc_watch *w, uint32_t events)
{
	if (w->events == events)
		return 0;
	w->events = events;
	return loop_ctl(loop, EPOLL_CTL_MOD, w);
}

void mc_loop_unwatch(struct mc_loop *loop, struct mc_watch *w)
{
	(void)loop_ctl(loop, EPOLL_CTL_DEL, w); /* fails only for a descriptor that is not in */
	for (int i = loop->event_at; i < loop->nevents; i++) {
		if (loop->events[i].data.ptr == w)
			loop->events[i].data.ptr = NULL;
	}
}

int mc_loop_timer_set(struct mc_loop *loop, struct mc_timer *t, uint64_t at_ns)
{
	if (t->is_set) {
		mc_heap_move(&loop->timers, &t->node, at_ns);
		return 0;
	}
	if (mc_heap_push(&loop->timers, &t->node, at_ns) < 0)
		return -MC_E_LIMIT;
	t->is_set = true;
	return 0;
}

void mc_loop_timer_cancel(struct mc_loop *loop, struct mc_timer *t)
{
	if (!t->is_set)
		return;
	mc_heap_del(&loop->timers, &t->node);
	t->is_set = false;
}

void mc_loop_idler_add(struct mc_loop *loop, struct mc_idler *id)
{
	id->next = loop->idlers;
	loop->idlers = id;
}

void mc_loop_idler_del(struct mc_loop *loop, struct mc_idler *id)
{
	struct mc_idler **at = &loop->idlers;

	while (*at && *at != id)
		at = &(*at)->next;
	if (!*at)
		return;
	*at = id->next;
	if (loop->idler_next == id)
		loop->idler_next = id->next;
}

void mc_loop_post(struct mc_loop *loop, struct mc_task *t)
{
	if (mc_fork_is_child(loop->fork_gen))
		return;
	if (mc_mpsc_push(&loop->tasks, &t->node))
		loop_wake(loop);
}

struct loop_call {
	struct mc_task task;
	void (*fn)(void *arg);
	void *arg;
	sem_t done;
};

static void loop_call_run(struct mc_task *t)
{
	struct loop_call *call = mc_container_of(t, struct loop_call, task);

	call->fn(call->arg);
	(void)sem_post(&call->done); /* cannot fail: initialised, far below its maximum */
}

void mc_loop_call(struct mc_loop *loop, void (*fn)(void *arg), void *arg)
{
	struct loop_call call = {.task.run = loop_call_run, .fn = fn, .arg = arg};

	if (mc_fork_is_child(loop->fork_gen))
		return;
	if (mc_loop_is_self(loop)) {
		fn(arg);
		return;
	}
	(void)sem_init(&call.done, 0, 0); /* cannot fail for a value of 0 */
	mc_loop_post(loop, &call.task);
	while (sem_wait(&call.done) != 0)
		; /* a signal */
	(void)sem_destroy(&call.done);
}
