/*
 * vos.c: processes, threads, and the order in which they run.
 */
#include "sim/vos/vos.h"

#include <errno.h>
#include <stdarg.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include "base/err.h"
#include "base/mem.h"

#define STACK_BYTES (512u << 10)
#define THREADS_MAX 1024u
#define START_NS (1000 * MC_NS_PER_S)
#define SLOW_ONE_IN 300 /* a thread that becomes ready is not run at once */
#define SLOW_MAX_NS (3 * MC_NS_PER_MS)
#define SHUFFLE_ONE_IN 24

enum state {
	READY,
	WAITING,
	PARKED, /* ready, but its process is stopped or it is slow */
	OVER,
};

struct vos_thread {
	ucontext_t ctx;
	void *stack;
	struct vos_proc *proc;
	void *(*fn)(void *arg);
	void *arg;
	enum state state;
	const void *key;
	uint64_t turn; /* counts its waits: a timer of an earlier one is void */
	bool is_timed_out;
};

struct event {
	uint64_t at_ns, seq;
	void (*fn)(void *arg);
	void *arg;
};

struct timer {
	struct vos_thread *thread;
	uint64_t turn;
};

static struct {
	uint64_t now_ns, seq;
	struct mc_rand rand;
	struct vos_proc procs[VOS_PROCS_MAX];
	unsigned nprocs;
	struct vos_thread *threads[THREADS_MAX]; /* all that live */
	unsigned nthreads;
	struct vos_thread *ready[THREADS_MAX];
	unsigned nready;
	struct event *events; /* a heap */
	size_t nevents, cap;
	struct vos_thread *current;
	ucontext_t host;
	void *stacks[THREADS_MAX];
	unsigned nstacks;
} os;

void (*vos_fail_hook)(const char *text);

void vos_fail(const char *fmt, ...)
{
	char text[2048];
	va_list ap;

	va_start(ap, fmt);
	(void)vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	if (vos_fail_hook)
		vos_fail_hook(text);
	(void)fprintf(stderr, "%s\n", text);
	_exit(3);
}

void vos_init(uint64_t seed)
{
	memset(&os, 0, sizeof(os));
	os.now_ns = START_NS;
	mc_rand_seed(&os.rand, seed);
}

uint64_t vos_now(void)
{
	return os.now_ns;
}

uint64_t vos_spend(uint64_t ns)
{
	os.now_ns += ns;
	return os.now_ns - ns;
}

uint64_t vos_pick(uint64_t n)
{
	return mc_rand_below(&os.rand, n);
}

bool vos_one_in(uint64_t n)
{
	return vos_pick(n) == 0;
}

uint64_t vos_between(uint64_t low, uint64_t high)
{
	return low + vos_pick(high - low + 1);
}

struct vos_proc *vos_self(void)
{
	return os.current ? os.current->proc : NULL;
}

struct vos_thread *vos_thread_self(void)
{
	return os.current;
}

bool vos_thread_is_over(const struct vos_thread *t)
{
	return t->state == OVER;
}

/* ---- events ---- */

static bool is_before(const struct event *a, const struct event *b)
{
	return a->at_ns != b->at_ns ? a->at_ns < b->at_ns : a->seq < b->seq;
}

void vos_at(uint64_t at_ns, void (*fn)(void *arg), void *arg)
{
	struct event e = {at_ns, os.seq++, fn, arg};
	size_t i = os.nevents++;

	if (os.nevents > os.cap) {
		struct event *grown = vos_host_alloc((os.cap * 2 + 256) * sizeof(*grown));

		if (os.events)
			memcpy(grown, os.events, os.cap * sizeof(*grown));
		vos_host_free(os.events);
		os.events = grown;
		os.cap = os.cap * 2 + 256;
	}
	for (; i > 0 && is_before(&e, &os.events[(i - 1) / 2]); i = (i - 1) / 2)
		os.events[i] = os.events[(i - 1) / 2];
	os.events[i] = e;
}

static struct event event_pop(void)
{
	struct event first = os.events[0], last = os.events[--os.nevents];
	size_t i = 0, child;

	while ((child = 2 * i + 1) < os.nevents) {
		if (child + 1 < os.nevents && is_before(&os.events[child + 1], &os.events[child]))
			child++;
		if (!is_before(&os.events[child], &last))
			break;
		os.events[i] = os.events[child];
		i = child;
	}
	os.events[i] = last;
	return first;
}

/* ---- threads ---- */

static void ready_add(struct vos_thread *t)
{
	t->state = READY;
	mc_assert(os.nready < THREADS_MAX);
	os.ready[os.nready++] = t;
}

static void ready_late(void *arg)
{
	struct timer *late = arg;
	struct vos_thread *t = late->thread;

	if (t->state == PARKED && t->turn == late->turn && !t->proc->is_stopped)
		ready_add(t);
	vos_host_free(late);
}

static struct timer *timer_of(struct vos_thread *t)
{
	struct timer *timer = vos_host_alloc(sizeof(*timer));

	*timer = (struct timer){t, t->turn};
	return timer;
}

static void make_ready(struct vos_thread *t)
{
	t->turn++;
	t->key = NULL;
	t->state = PARKED;
	if (t->proc->is_stopped)
		return;
	if (vos_one_in(SLOW_ONE_IN))
		vos_at(os.now_ns + vos_between(1, SLOW_MAX_NS), ready_late, timer_of(t));
	else
		ready_add(t);
}

static void to_host(void)
{
	struct vos_thread *t = os.current;
	int saved = errno; /* each thread has its own */

	os.current = NULL;
	swapcontext(&t->ctx, &os.host);
	errno = saved;
}

static void thread_main(void)
{
	struct vos_thread *t = os.current;

	(void)t->fn(t->arg);
	t->state = OVER;
	vos_wake(t, UINT32_MAX);
	to_host();
}

struct vos_thread *vos_spawn(struct vos_proc *proc, void *(*fn)(void *arg), void *arg)
{
	struct vos_thread *t = vos_host_alloc(sizeof(*t));

	mc_assert(os.nthreads < THREADS_MAX);
	t->proc = proc;
	t->fn = fn;
	t->arg = arg;
	if (os.nstacks > 0)
		t->stack = os.stacks[--os.nstacks];
	else
		t->stack = mmap(NULL, STACK_BYTES, PROT_READ | PROT_WRITE,
				MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	mc_assert(t->stack != MAP_FAILED);
	(void)getcontext(&t->ctx);
	t->ctx.uc_stack.ss_sp = t->stack;
	t->ctx.uc_stack.ss_size = STACK_BYTES;
	makecontext(&t->ctx, thread_main, 0);
	os.threads[os.nthreads++] = t;
	make_ready(t);
	return t;
}

/* Its struct stays: somebody may join it later. */
static void thread_bury(struct vos_thread *t)
{
	t->state = OVER;
	os.stacks[os.nstacks++] = t->stack;
	t->stack = NULL;
	for (unsigned i = 0; i < os.nthreads; i++) {
		if (os.threads[i] == t)
			os.threads[i] = os.threads[--os.nthreads];
	}
	for (unsigned i = 0; i < os.nready; i++) {
		if (os.ready[i] == t)
			os.ready[i--] = os.ready[--os.nready];
	}
}

static void on_deadline(void *arg)
{
	struct timer *timer = arg;
	struct vos_thread *t = timer->thread;

	if (t->state == WAITING && t->turn == timer->turn) {
		t->is_timed_out = true;
		make_ready(t);
	}
	vos_host_free(timer);
}

bool vos_wait(const void *key, uint64_t deadline_ns)
{
	struct vos_thread *t = os.current;

	mc_assert(t);
	t->key = key;
	t->is_timed_out = false;
	if (deadline_ns <= os.now_ns) {
		t->is_timed_out = true;
		make_ready(t);
	} else {
		t->state = WAITING;
		if (deadline_ns != MC_TIME_NEVER)
			vos_at(deadline_ns, on_deadline, timer_of(t));
	}
	to_host();
	return !t->is_timed_out;
}

void vos_wake(const void *key, unsigned n)
{
	unsigned first = os.nthreads ? (unsigned)vos_pick(os.nthreads) : 0;

	for (unsigned i = 0; i < os.nthreads && n > 0; i++) {
		struct vos_thread *t = os.threads[(first + i) % os.nthreads];

		if (t->state != WAITING || t->key != key)
			continue;
		make_ready(t);
		n--;
	}
}

void vos_yield(void)
{
	if (!os.current)
		return;
	make_ready(os.current);
	to_host();
}

void vos_shuffle(void)
{
	if (os.current && vos_one_in(SHUFFLE_ONE_IN))
		vos_yield();
}

/* ---- processes ---- */

struct vos_proc *vos_proc_new(const char *name, unsigned host)
{
	struct vos_proc *p = &os.procs[os.nprocs];

	if (os.nprocs == VOS_PROCS_MAX)
		vos_fail("the simulator has too many processes");
	for (unsigned i = 0; i < os.nprocs; i++)
		mc_assert(os.procs[i].is_dead || os.procs[i].host != host);
	*p = (struct vos_proc){.name = name, .index = os.nprocs++, .host = host};
	p->arena = vos_arena_get(host);
	return p;
}

void vos_kill(struct vos_proc *proc)
{
	mc_assert(!os.current);
	if (proc->is_dead)
		return;
	for (unsigned i = os.nthreads; i > 0; i--) {
		if (os.threads[i - 1]->proc == proc)
			thread_bury(os.threads[i - 1]);
	}
	vos_cont(proc);
	proc->is_dead = true;
	proc->end_ns = os.now_ns;
	vos_net_proc_end(proc);
}

void vos_stop(struct vos_proc *proc)
{
	if (proc->is_dead || proc->is_stopped)
		return;
	proc->is_stopped = true;
	proc->stopped_ns = os.now_ns;
	for (unsigned i = 0; i < os.nready; i++) {
		if (os.ready[i]->proc == proc) {
			os.ready[i]->state = PARKED;
			os.ready[i--] = os.ready[--os.nready];
		}
	}
}

void vos_cont(struct vos_proc *proc)
{
	if (!proc->is_stopped)
		return;
	proc->is_stopped = false;
	proc->stop_sum_ns += os.now_ns - proc->stopped_ns;
	for (unsigned i = 0; i < os.nthreads; i++) {
		if (os.threads[i]->proc == proc && os.threads[i]->state == PARKED) {
			os.threads[i]->turn++; /* void its timer, if it was slow */
			ready_add(os.threads[i]);
		}
	}
}

static void run(struct vos_thread *t)
{
	os.current = t;
	swapcontext(&os.host, &t->ctx);
	os.current = NULL;
	if (t->state == OVER)
		thread_bury(t);
}

bool vos_step(void)
{
	unsigned i;

	if (os.nevents > 0 && (os.events[0].at_ns <= os.now_ns || os.nready == 0)) {
		struct event e = event_pop();

		os.now_ns = mc_max(os.now_ns, e.at_ns);
		e.fn(e.arg);
		return true;
	}
	if (os.nready == 0)
		return false;
	i = (unsigned)vos_pick(os.nready);
	os.now_ns += vos_between(50, 1500);
	{
		struct vos_thread *t = os.ready[i];

		os.ready[i] = os.ready[--os.nready];
		run(t);
	}
	return true;
}
