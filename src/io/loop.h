/*
 * loop.h: one thread's event loop: file descriptors (epoll), timers (heap), tasks from other
 * threads (MPSC queue + eventfd).
 *
 * All callbacks run on the loop's thread, one at a time. Nothing here blocks; an idle loop has no
 * timer and sleeps in epoll_wait for ever. A loop may be driven by its own thread (mc_loop_start)
 * or by a caller (mc_loop_step), never by both; until it is driven, the thread that opened it
 * counts as the loop's. After fork() the child may only close it: post and call do nothing there.
 */
#ifndef MC_IO_LOOP_H
#define MC_IO_LOOP_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/epoll.h>

#include "base/clock.h"
#include "base/heap.h"
#include "base/ring.h"

#define MC_LOOP_TIMERS_MAX 65536

struct mc_loop;

/** A watched descriptor; embedded in its owner, which must call mc_loop_unwatch() before it dies.
 * Loop thread only. */
struct mc_watch {
	int fd;
	uint32_t events; /* EPOLLIN | …; level-triggered unless EPOLLET is given */
	void (*on_event)(struct mc_watch *w, uint32_t events);
};

/** A one-shot timer; embedded in its owner. Loop thread only. */
struct mc_timer {
	struct mc_heap_node node; /* key: absolute nanoseconds */
	bool is_set;
	void (*on_time)(struct mc_timer *t);
};

/** Work for the loop from any thread; embedded in its owner, not in two queues at once. */
struct mc_task {
	struct mc_mpsc_node node;
	void (*run)(struct mc_task *t);
};

/**
 * Called once a round, before the loop would sleep: a transport with hot connections polls them
 * here.
 *
 * @return nanoseconds the loop may go on polling instead of sleeping (0: sleep now). Loop thread.
 */
struct mc_idler {
	uint64_t (*poll)(struct mc_idler *id, uint64_t now_ns);
	struct mc_idler *next;
};

/**
 * @param name thread name, at most 15 bytes. @param clk outlives the loop; with another clock than
 * mc_clock_real the loop never sleeps in the kernel and can only be stepped
 * @return 0; -MC_E_NOMEM; -MC_E_LIMIT (descriptors)
 */
int mc_loop_open(const char *name, const struct mc_clock *clk, struct mc_loop **ret_loop);
/** Stops and joins the thread if there is one. Queued tasks have run. NULL is allowed. Not from the
 * loop itself. */
void mc_loop_close(struct mc_loop *loop);
/** Start the thread. Signals are blocked in it. @return 0; -MC_E_LIMIT; -MC_E_FORKED */
int mc_loop_start(struct mc_loop *loop);
/** One round, waiting at most until `until_ns` for something to do. For loops without a thread.
 * @return events, timers and tasks handled; -MC_E_FORKED */
int mc_loop_step(struct mc_loop *loop, uint64_t until_ns);
bool mc_loop_is_self(const struct mc_loop *loop);
/** The clock as read in this round. */
uint64_t mc_loop_now(const struct mc_loop *loop);
/** When the first timer is due, or MC_TIME_NEVER. Loop thread. */
uint64_t mc_loop_next_ns(const struct mc_loop *loop);

/** @return 0; -MC_E_LIMIT (watches of this user); -MC_E_NOMEM; -MC_E_INVAL or -MC_E_PERM for what
 * epoll cannot watch; -MC_E_FORKED. All functions down to idler_del: loop thread. */
int mc_loop_watch(struct mc_loop *loop, struct mc_watch *w);
/** Change w->events; no system call when they are the same. */
int mc_loop_rewatch(struct mc_loop *loop, struct mc_watch *w, uint32_t events);
/** Safe inside any callback, for any watch: events already fetched for it are dropped. */
void mc_loop_unwatch(struct mc_loop *loop, struct mc_watch *w);

/** Set or move. @return 0; -MC_E_LIMIT when MC_LOOP_TIMERS_MAX others are set (cannot happen to an
 * owner with a bounded number of timers) */
int mc_loop_timer_set(struct mc_loop *loop, struct mc_timer *t, uint64_t at_ns);
void mc_loop_timer_cancel(struct mc_loop *loop, struct mc_timer *t);
void mc_loop_idler_add(struct mc_loop *loop, struct mc_idler *id);
void mc_loop_idler_del(struct mc_loop *loop, struct mc_idler *id);

/** Queue a task; wakes the loop only if it sleeps. Any thread. The task may free itself in run().
 */
void mc_loop_post(struct mc_loop *loop, struct mc_task *t);
/** Run fn(arg) on the loop and wait for it; directly when called on the loop. Any thread. */
void mc_loop_call(struct mc_loop *loop, void (*fn)(void *arg), void *arg);

#endif
