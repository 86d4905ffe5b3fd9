/*
 * loop_test.c: events, timers, tasks and idlers of a loop, stepped by the test with a clock of its
 * own, and the wake-up protocol with a real thread.
 */
#include "io/loop.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/err.h"
#include "base/mem.h"

struct fake_clock {
	struct mc_clock clk;
	uint64_t now;
};

static uint64_t fake_now(const struct mc_clock *clk)
{
	return mc_container_of(clk, struct fake_clock, clk)->now;
}

static struct fake_clock fake = {.clk.now = fake_now};

static struct mc_loop *open_stepped(void)
{
	struct mc_loop *loop;

	fake.now = 1000;
	assert_int_equal(mc_loop_open("test", &fake.clk, &loop), 0);
	return loop;
}

struct counter {
	struct mc_task task;
	struct mc_timer timer;
	struct mc_watch watch;
	struct mc_idler idler;
	struct mc_loop *loop;
	struct counter *other;
	int ran;
	int *order, at;
	uint64_t wish_ns;
};

static void count_task(struct mc_task *t)
{
	mc_container_of(t, struct counter, task)->ran++;
}

static void loop_runs_tasks_in_post_order(void **state)
{
	struct mc_loop *loop = open_stepped();
	struct counter a = {.task.run = count_task};

	mc_loop_post(loop, &a.task);
	assert_int_equal(mc_loop_step(loop, 0), 1);
	assert_int_equal(a.ran, 1);
	assert_int_equal(mc_loop_step(loop, 0), 0);
	mc_loop_close(loop);
	(void)state;
}

static void loop_close_runs_queued_tasks(void **state)
{
	struct mc_loop *loop = open_stepped();
	struct counter a = {.task.run = count_task};

	mc_loop_post(loop, &a.task);
	mc_loop_close(loop);
	assert_int_equal(a.ran, 1);
	(void)state;
}

static void count_timer(struct mc_timer *t)
{
	struct counter *c = mc_container_of(t, struct counter, timer);

	c->ran++;
	if (c->order)
		c->at = (*c->order)++;
}

static void timers_fire_in_time_order_and_not_early(void **state)
{
	struct mc_loop *loop = open_stepped();
	int order = 0;
	struct counter late = {.timer.on_time = count_timer, .order = &order};
	struct counter soon = {.timer.on_time = count_timer, .order = &order};

	assert_int_equal(mc_loop_timer_set(loop, &late.timer, 3000), 0);
	assert_int_equal(mc_loop_timer_set(loop, &soon.timer, 2000), 0);
	assert_int_equal(mc_loop_next_ns(loop), 2000);
	(void)mc_loop_step(loop, 0);
	assert_int_equal(order, 0);
	fake.now = 1999;
	(void)mc_loop_step(loop, 0);
	assert_int_equal(order, 0);
	fake.now = 3000;
	(void)mc_loop_step(loop, 0);
	assert_int_equal(soon.at, 0);
	assert_int_equal(late.at, 1);
	assert_int_equal(order, 2);
	assert_int_equal(mc_loop_next_ns(loop), MC_TIME_NEVER);
	mc_loop_close(loop);
	(void)state;
}

static void timer_moves_and_cancels(void **state)
{
	struct mc_loop *loop = open_stepped();
	struct counter a = {.timer.on_time = count_timer};

	assert_int_equal(mc_loop_timer_set(loop, &a.timer, 1500), 0);
	assert_int_equal(mc_loop_timer_set(loop, &a.timer, 2500), 0);
	fake.now = 2000;
	(void)mc_loop_step(loop, 0);
	assert_int_equal(a.ran, 0);
	mc_loop_timer_cancel(loop, &a.timer);
	mc_loop_timer_cancel(loop, &a.timer);
	fake.now = 3000;
	(void)mc_loop_step(loop, 0);
	assert_int_equal(a.ran, 0);
	mc_loop_close(loop);
	(void)state;
}

static void count_event(struct mc_watch *w, uint32_t events)
{
	struct counter *c = mc_container_of(w, struct counter, watch);

	assert_true(events & EPOLLIN);
	c->ran++;
	if (c->other)
		mc_loop_unwatch(c->loop, &c->other->watch);
}

static void watch_reports_readable_until_unwatched(void **state)
{
	struct mc_loop *loop = open_stepped();
	int p[2];
	struct counter a = {.watch.on_event = count_event, .watch.events = EPOLLIN};

	assert_int_equal(pipe(p), 0);
	a.watch.fd = p[0];
	assert_int_equal(mc_loop_watch(loop, &a.watch), 0);
	assert_int_equal(mc_loop_step(loop, 0), 0);
	assert_int_equal(write(p[1], "x", 1), 1);
	assert_int_equal(mc_loop_step(loop, 0), 1);
	assert_int_equal(mc_loop_rewatch(loop, &a.watch, 0), 0);
	assert_int_equal(mc_loop_step(loop, 0), 0);
	assert_int_equal(mc_loop_rewatch(loop, &a.watch, EPOLLIN), 0);
	assert_int_equal(mc_loop_step(loop, 0), 1);
	mc_loop_unwatch(loop, &a.watch);
	assert_int_equal(mc_loop_step(loop, 0), 0);
	assert_int_equal(a.ran, 2);
	(void)close(p[0]);
	(void)close(p[1]);
	mc_loop_close(loop);
	(void)state;
}

static void unwatch_in_a_callback_drops_events_already_fetched(void **state)
{
	struct mc_loop *loop = open_stepped();
	int p[2];
	struct counter a = {.watch.on_event = count_event, .watch.events = EPOLLIN};
	struct counter b = a;

	assert_int_equal(pipe(p), 0);
	a.watch.fd = p[0];
	b.watch.fd = dup(p[0]);
	a.loop = b.loop = loop;
	a.other = &b;
	b.other = &a;
	assert_int_equal(mc_loop_watch(loop, &a.watch), 0);
	assert_int_equal(mc_loop_watch(loop, &b.watch), 0);
	assert_int_equal(write(p[1], "x", 1), 1);
	(void)mc_loop_step(loop, 0);
	assert_int_equal(a.ran + b.ran, 1);
	(void)close(b.watch.fd);
	(void)close(p[0]);
	(void)close(p[1]);
	mc_loop_close(loop);
	(void)state;
}

static void watch_of_a_plain_file_is_refused(void **state)
{
	struct mc_loop *loop = open_stepped();
	FILE *f = tmpfile();
	struct counter a = {.watch.on_event = count_event, .watch.events = EPOLLIN};

	a.watch.fd = fileno(f);
	assert_int_equal(mc_loop_watch(loop, &a.watch), -MC_E_PERM);
	(void)fclose(f);
	mc_loop_close(loop);
	(void)state;
}

static uint64_t count_idle(struct mc_idler *id, uint64_t now_ns)
{
	struct counter *c = mc_container_of(id, struct counter, idler);

	(void)now_ns;
	c->ran++;
	if (c->other)
		mc_loop_idler_del(c->loop, &c->other->idler);
	return c->wish_ns;
}

static void idlers_run_before_sleep_and_may_delete_each_other(void **state)
{
	struct mc_loop *loop = open_stepped();
	struct counter a = {.idler.poll = count_idle, .loop = loop};
	struct counter b = {.idler.poll = count_idle, .loop = loop, .other = &a};

	mc_loop_idler_add(loop, &a.idler);
	mc_loop_idler_add(loop, &b.idler); /* asked first, deletes the next */
	(void)mc_loop_step(loop, 0);
	(void)mc_loop_step(loop, 0);
	assert_int_equal(a.ran, 0);
	assert_int_equal(b.ran, 2);
	b.other = &b;
	(void)mc_loop_step(loop, 0);
	(void)mc_loop_step(loop, 0);
	assert_int_equal(b.ran, 3);
	mc_loop_close(loop);
	(void)state;
}

static void idler_wish_keeps_a_real_loop_from_sleeping(void **state)
{
	struct mc_loop *loop;
	struct counter a = {.idler.poll = count_idle, .wish_ns = 1000};

	assert_int_equal(mc_loop_open("test", &mc_clock_real, &loop), 0);
	mc_loop_idler_add(loop, &a.idler);
	assert_int_equal(mc_loop_step(loop, MC_TIME_NEVER), 0); /* would never return if it slept */
	assert_int_equal(a.ran, 1);
	mc_loop_idler_del(loop, &a.idler);
	mc_loop_close(loop);
	(void)state;
}

static void real_timer_wakes_a_sleeping_loop(void **state)
{
	struct mc_loop *loop;
	struct counter a = {.timer.on_time = count_timer};
	uint64_t at = mc_now_ns() + 200 * MC_NS_PER_US;

	assert_int_equal(mc_loop_open("test", &mc_clock_real, &loop), 0);
	assert_int_equal(mc_loop_timer_set(loop, &a.timer, at), 0);
	while (!a.ran)
		(void)mc_loop_step(loop, MC_TIME_NEVER);
	assert_true(mc_now_ns() >= at);
	mc_loop_close(loop);
	(void)state;
}

#define POSTERS 3
#define POSTS 20000

struct poster {
	struct mc_loop *loop;
	struct mc_task tasks[POSTS];
	pthread_t thread;
};

static _Atomic int posted_ran;
static int posted_plain; /* only the loop's thread writes it */

static void posted_run(struct mc_task *t)
{
	(void)t;
	posted_plain++;
	atomic_fetch_add(&posted_ran, 1);
}

static void nothing(void *arg)
{
	(void)arg;
}

static void *poster_main(void *arg)
{
	struct poster *p = arg;

	for (int i = 0; i < POSTS; i++) {
		p->tasks[i].run = posted_run;
		mc_loop_post(p->loop, &p->tasks[i]);
		if (i % 512 == 0) /* let the loop fall asleep between bursts */
			mc_loop_call(p->loop, nothing, NULL);
	}
	return NULL;
}

static void posts_of_many_threads_all_run_and_wake_the_sleeper(void **state)
{
	struct mc_loop *loop;
	struct poster *p = mc_calloc(POSTERS, sizeof(*p));

	atomic_store(&posted_ran, 0);
	posted_plain = 0;
	assert_int_equal(mc_loop_open("test", &mc_clock_real, &loop), 0);
	assert_int_equal(mc_loop_start(loop), 0);
	for (int i = 0; i < POSTERS; i++) {
		p[i].loop = loop;
		assert_int_equal(pthread_create(&p[i].thread, NULL, poster_main, &p[i]), 0);
	}
	for (int i = 0; i < POSTERS; i++)
		assert_int_equal(pthread_join(p[i].thread, NULL), 0);
	mc_loop_close(loop);
	assert_int_equal(atomic_load(&posted_ran), POSTERS * POSTS);
	assert_int_equal(posted_plain, POSTERS * POSTS);
	mc_free(p);
	(void)state;
}

struct who {
	struct mc_loop *loop;
	bool is_self;
};

static void ask_self(void *arg)
{
	struct who *w = arg;

	w->is_self = mc_loop_is_self(w->loop);
}

static void call_runs_on_the_loop_and_waits(void **state)
{
	struct who w = {0};

	assert_int_equal(mc_loop_open("test", &mc_clock_real, &w.loop), 0);
	assert_true(mc_loop_is_self(w.loop)); /* nobody drives it: the opener's */
	assert_int_equal(mc_loop_start(w.loop), 0);
	assert_false(mc_loop_is_self(w.loop));
	mc_loop_call(w.loop, ask_self, &w);
	assert_true(w.is_self);
	mc_loop_close(w.loop);
	(void)state;
}

static void child_of_fork_can_only_close_the_loop(void **state)
{
	struct mc_loop *loop;
	struct counter a = {.task.run = count_task};
	int status = -1;
	pid_t pid;

	assert_int_equal(mc_loop_open("test", &mc_clock_real, &loop), 0);
	assert_int_equal(mc_loop_start(loop), 0);
	pid = fork();
	if (pid == 0) {
		mc_loop_post(loop, &a.task);
		mc_loop_call(loop, ask_self, NULL);
		mc_loop_close(loop);
		_exit(a.ran);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	mc_loop_close(loop);
	(void)state;
}

static void open_without_memory_fails_cleanly(void **state)
{
	int64_t live = mc_mem_live();
	struct mc_loop *loop;
	int rc = -1;

	for (int i = 0; rc < 0; i++) {
		mc_mem_fail_after(i);
		rc = mc_loop_open("test", &mc_clock_real, &loop);
		mc_mem_fail_after(-1);
		if (rc < 0)
			assert_int_equal(rc, -MC_E_NOMEM);
	}
	mc_loop_close(loop);
	assert_int_equal(mc_mem_live(), live);
	(void)state;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(loop_runs_tasks_in_post_order),
	    cmocka_unit_test(loop_close_runs_queued_tasks),
	    cmocka_unit_test(timers_fire_in_time_order_and_not_early),
	    cmocka_unit_test(timer_moves_and_cancels),
	    cmocka_unit_test(watch_reports_readable_until_unwatched),
	    cmocka_unit_test(unwatch_in_a_callback_drops_events_already_fetched),
	    cmocka_unit_test(watch_of_a_plain_file_is_refused),
	    cmocka_unit_test(idlers_run_before_sleep_and_may_delete_each_other),
	    cmocka_unit_test(idler_wish_keeps_a_real_loop_from_sleeping),
	    cmocka_unit_test(real_timer_wakes_a_sleeping_loop),
	    cmocka_unit_test(posts_of_many_threads_all_run_and_wake_the_sleeper),
	    cmocka_unit_test(call_runs_on_the_loop_and_waits),
	    cmocka_unit_test(child_of_fork_can_only_close_the_loop),
	    cmocka_unit_test(open_without_memory_fails_cleanly),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
