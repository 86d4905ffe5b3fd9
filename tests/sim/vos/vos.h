/*
 * vos.h: a virtual operating system for the object files that ship. Processes and threads of the
 * simulated world are coroutines of one real thread; the clock, chance, locks, sockets and memory
 * that they ask libc for are ours (the test program is linked with --wrap, see meson.build). All
 * order and all chance come from one seed, so a seed is a history.
 *
 * A thread runs until it waits for something; which one runs next is chance. When none can run, the
 * clock jumps to the next event. A process that is killed loses its threads, memory and
 * descriptors at once; a stopped one only does not run. Whoever is not a thread of a process (the
 * test's events) is the *host*: its memory is libc's, and it never waits.
 */
#ifndef TESTS_SIM_VOS_H
#define TESTS_SIM_VOS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/clock.h"
#include "base/list.h"
#include "base/rand.h"

#define VOS_PROCS_MAX 512u
#define VOS_HOSTS_MAX 16u /* addresses, each with one process at a time */

struct vos_proc {
	const char *name;
	unsigned index, host; /* 10.77.0.<host + 1> */
	bool is_dead, is_stopped;
	uint64_t end_ns;		  /* when it died */
	uint64_t stopped_ns, stop_sum_ns; /* since when; how long in all */
	struct vos_arena *arena;
};

struct vos_thread;

/** One world a process. @param seed  all chance of the world */
void vos_init(uint64_t seed);
uint64_t vos_now(void);
/** Let time pass while somebody works. @return the time before */
uint64_t vos_spend(uint64_t ns);
/** Chance: below n. */
uint64_t vos_pick(uint64_t n);
/** Once in so many. */
bool vos_one_in(uint64_t n);
/** Between two, both included. */
uint64_t vos_between(uint64_t low, uint64_t high);

struct vos_proc *vos_proc_new(const char *name, unsigned host);
/** Another thread of a process; of the host, or of itself. */
struct vos_thread *vos_spawn(struct vos_proc *proc, void *(*fn)(void *arg), void *arg);
/** Host only. */
void vos_kill(struct vos_proc *proc);
void vos_stop(struct vos_proc *proc);
void vos_cont(struct vos_proc *proc);
/** Who runs; NULL: the host. */
struct vos_proc *vos_self(void);

/** The host does it then. */
void vos_at(uint64_t at_ns, void (*fn)(void *arg), void *arg);
/** One thread runs, or one event happens, or the clock jumps. @return false: nothing is left */
bool vos_step(void);

/* ---- waiting, for what stands in for libc ---- */

/** Sleep until somebody wakes `key`. @return false: the deadline came */
bool vos_wait(const void *key, uint64_t deadline_ns);
void vos_wake(const void *key, unsigned n);
/** Let others run. */
void vos_yield(void);
/** Perhaps. At the points where threads see each other. */
void vos_shuffle(void);
struct vos_thread *vos_thread_self(void);
/** It has ended. */
bool vos_thread_is_over(const struct vos_thread *t);

/* ---- memory ---- */

/** The host's, whoever runs. Zeroed; never NULL. */
void *vos_host_alloc(size_t len);
void vos_host_free(void *ptr);
/** What is called between these two is the host's work (memory). */
void vos_host_enter(void);
void vos_host_leave(void);
/** Memory of a process. NULL: it has no more */
void *vos_proc_alloc(struct vos_proc *proc, size_t len, size_t align);
void vos_proc_free(struct vos_proc *proc, void *ptr);
/** For vos.c: memory of a new process, where its host's last one had it. */
struct vos_arena *vos_arena_get(unsigned host);

/* ---- network ---- */

struct vos_net_conf {
	uint64_t delay_min_ns, delay_max_ns; /* of a send */
	uint32_t slow_ppm;		     /* sends that take up to slow_max_ns */
	uint64_t slow_max_ns;
	uint32_t reset_ppm; /* sends with which the connection breaks */
};
extern struct vos_net_conf vos_net_conf;
/** Cut two hosts off from each other, or heal. Host only. */
void vos_net_cut(unsigned a, unsigned b, bool is_cut);
bool vos_net_is_cut(unsigned a, unsigned b);
/** All of a process's connections end; for vos_kill(). */
void vos_net_proc_end(struct vos_proc *proc);
/** An eventfd of libc's, for who stands in for the engine. */
int vos_eventfd(struct vos_proc *proc);
void vos_eventfd_set(int fd, uint64_t value);
void vos_eventfd_add(int fd, uint64_t n);

/** The world is not as it must be: says the seed and why, and ends this process. */
__attribute__((noreturn, format(printf, 1, 2))) void vos_fail(const char *fmt, ...);
extern void (*vos_fail_hook)(const char *text);

#endif
