/*
 * shm_peers.h: two real processes for the tests of the shared-memory transport. The test program
 * starts itself again as `target` (serves memory, obeys orders over a socket) or as `writer`
 * (writes into the test's own memory without end).
 */
#ifndef TESTS_SHM_PEERS_H
#define TESTS_SHM_PEERS_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/mem.h"
#include "base/rand.h"
#include "xport/shm.h"

#define GUARD 4096u
#define MEM_LEN ((size_t)8 << 20) /* registered; with GUARD bytes on both sides that are not */
#define GUARD_BYTE 0xa5
#define MEMFD 0 /* index of a side's memory that the engine allocated */
#define FOREIGN 1
#define ROLE_CTL 3 /* descriptor on which a process in a role gets its orders */
#define WAIT_NS (20 * MC_NS_PER_S)

/* ---- one process's end ---- */

struct side {
	struct mc_region_table *regions;
	struct mc_xdev *dev;
	uint8_t nonce[16];
	uint64_t epoch;
	uint8_t *mem[2]; /* where the registered part begins */
	struct mc_remote_region rr[2];
};

static inline int side_reg(struct side *s, uint8_t *at, size_t len, struct mc_remote_region *ret_rr)
{
	struct mc_region_desc desc = {.addr = (uintptr_t)at, .len = len, .rights = 3};
	struct mc_region_info info;
	int rc;

	mc_shm_desc_fill(s->dev, &desc);
	rc = mc_region_add(s->regions, &desc, &info);
	if (rc == 0)
		*ret_rr = (struct mc_remote_region){.addr = desc.addr,
						    .len = len,
						    .id = info.id,
						    .gen = info.gen,
						    .rights = desc.rights,
						    .kind = info.desc.kind,
						    .arena = info.desc.arena,
						    .arena_off = info.desc.arena_off};
	return rc;
}

static inline int side_open(struct side *s, const char *dir, bool is_vm_off)
{
	struct mc_shm_opts opts = {.dir = dir, .is_vm_off = is_vm_off};
	struct mc_xdev_env env = {.clk = &mc_clock_real};
	struct mc_diag diag = {""};
	void *p;
	int rc;

	if (mc_rand_bytes(s->nonce, sizeof(s->nonce)) < 0 ||
	    mc_rand_bytes(&s->epoch, sizeof(s->epoch)) < 0 || mc_region_table_open(&s->regions) < 0)
		return -1;
	s->epoch |= 1;
	env.regions = s->regions;
	env.epoch = s->epoch;
	env.nonce = s->nonce;
	rc = mc_shm_dev_open(&env, &opts, &s->dev, &diag);
	if (rc < 0) {
		print_error("%s\n", diag.text);
		return rc;
	}
	if (mc_shm_alloc(s->dev, MEM_LEN + 2 * GUARD, &p) < 0)
		return -1;
	s->mem[MEMFD] = p;
	s->mem[FOREIGN] = mmap(NULL, MEM_LEN + 2 * GUARD, PROT_READ | PROT_WRITE,
			       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	for (int i = 0; i < 2; i++) {
		memset(s->mem[i], GUARD_BYTE, MEM_LEN + 2 * GUARD);
		s->mem[i] += GUARD;
		if (side_reg(s, s->mem[i], MEM_LEN, &s->rr[i]) < 0)
			return -1;
	}
	return 0;
}

static inline void side_close(struct side *s)
{
	for (int i = 0; i < 2; i++)
		(void)mc_region_del(s->regions, (uintptr_t)s->mem[i]); /* may be gone already */
	munmap(s->mem[FOREIGN] - GUARD, MEM_LEN + 2 * GUARD);
	s->dev->ops->dev_close(s->dev);
	mc_region_table_close(s->regions);
}

static inline int side_attach(struct side *s, const char *path, const uint8_t *nonce,
			      uint64_t epoch, uint64_t wait_ns, struct mc_shm_peer **ret_peer)
{
	struct mc_shm_peer_id id = {path, nonce, epoch, "peer"};
	struct mc_diag diag = {""};
	int rc = mc_shm_peer_attach(s->dev, &id, mc_now_ns() + wait_ns, ret_peer, &diag);

	if (rc < 0 && rc != -MC_E_FORKED)
		assert_non_null(strstr(diag.text, path));
	return rc;
}

static inline int side_lane(struct side *s, struct mc_shm_peer *peer, struct mc_xlane **ret_lane)
{
	struct mc_xpath path = {.peer_state = peer};

	return s->dev->ops->lane_open(s->dev, &path, ret_lane);
}

static inline unsigned guards_changed(const struct side *s, int i)
{
	unsigned n = 0;

	for (size_t k = 0; k < GUARD; k++)
		n += (s->mem[i][-1 - (ptrdiff_t)k] != GUARD_BYTE) +
		     (s->mem[i][MEM_LEN + k] != GUARD_BYTE);
	return n;
}

/* ---- slices ---- */

/* Post one slice and take it back. @return its status, or the error of post */
static inline int slice_run(struct mc_xlane *lane, struct mc_slice *s)
{
	struct mc_slice *done = NULL;
	int rc;

	s->len = 0;
	for (uint32_t i = 0; i < s->nfrags; i++)
		s->len += s->frags[i].len;
	rc = lane->ops->post(lane, &s, 1);
	if (rc < 0)
		return rc;
	if (rc != 1 || lane->ops->poll(lane, 0, &done, 1) != 1 || done != s ||
	    s->verdict != MC_SLICE_DONE)
		return -12345;
	return s->status;
}

static inline int frag_run(struct mc_xlane *lane, enum mc_op op, void *local,
			   const struct mc_remote_region *rr, uint64_t raddr, uint64_t len)
{
	struct mc_frag f = {local, raddr, len, rr};
	struct mc_slice s = {.op = op, .nfrags = 1, .frags = &f};

	return slice_run(lane, &s);
}

/* ---- the other process ---- */

struct hello {
	char path[MC_SHM_PATH_MAX];
	uint8_t nonce[16];
	uint64_t epoch;
	struct mc_remote_region rr[2];
};

enum order_op {
	ORDER_DEL,     /* unregister memory i */
	ORDER_ADD,     /* register it again */
	ORDER_FILL,    /* with byte a */
	ORDER_PATTERN, /* byte k is pattern(k) */
	ORDER_COUNT,   /* bytes that are not a */
	ORDER_GUARDS,  /* guard bytes that changed */
	ORDER_WORD,    /* at offset a */
	ORDER_ALLOC,   /* register a bytes of new memory of the engine's */
	ORDER_UNMAP,   /* the second half of the foreign memory, behind the engine's back */
	ORDER_QUIT,
};

struct order {
	enum order_op op;
	int i;
	uint64_t a;
};

struct reply {
	int rc;
	uint64_t val;
	struct mc_remote_region rr;
};

static inline uint8_t pattern(size_t k)
{
	return (uint8_t)(k * 7 + (k >> 9) + (k >> 17));
}

static inline void hello_of(struct side *s, struct hello *h)
{
	memset(h, 0, sizeof(*h));
	strncpy(h->path, mc_shm_dev_socket_path(s->dev), sizeof(h->path) - 1);
	memcpy(h->nonce, s->nonce, sizeof(h->nonce));
	h->epoch = s->epoch;
	memcpy(h->rr, s->rr, sizeof(h->rr));
}

static inline void obey(struct side *s, const struct order *o, struct reply *r)
{
	uint8_t *mem = s->mem[o->i];
	void *p;

	switch (o->op) {
	case ORDER_DEL:
		r->rc = mc_region_del(s->regions, (uintptr_t)mem);
		break;
	case ORDER_ADD:
		r->rc = side_reg(s, mem, MEM_LEN, &r->rr);
		break;
	case ORDER_FILL:
		memset(mem, (int)o->a, MEM_LEN);
		break;
	case ORDER_PATTERN:
		for (size_t k = 0; k < MEM_LEN; k++)
			mem[k] = pattern(k);
		break;
	case ORDER_COUNT:
		for (size_t k = 0; k < MEM_LEN; k++)
			r->val += mem[k] != (uint8_t)o->a;
		break;
	case ORDER_GUARDS:
		r->val = guards_changed(s, o->i);
		break;
	case ORDER_WORD:
		r->val = atomic_load_explicit((_Atomic uint64_t *)(void *)(mem + o->a),
					      memory_order_acquire);
		break;
	case ORDER_ALLOC:
		r->rc = mc_shm_alloc(s->dev, o->a, &p);
		if (r->rc == 0)
			r->rc = side_reg(s, p, o->a, &r->rr);
		break;
	case ORDER_UNMAP:
		r->rc = munmap(s->mem[FOREIGN] + MEM_LEN / 2, MEM_LEN / 2);
		break;
	case ORDER_QUIT:
		break;
	}
}

static inline int role_target(const char *dir, int ctl)
{
	struct side s = {0};
	struct hello h;
	struct order o = {0};
	struct reply r;

	if (side_open(&s, dir, false) < 0)
		return 1;
	hello_of(&s, &h);
	if (send(ctl, &h, sizeof(h), MSG_NOSIGNAL) != sizeof(h))
		return 1;
	while (o.op != ORDER_QUIT && recv(ctl, &o, sizeof(o), 0) == sizeof(o)) {
		memset(&r, 0, sizeof(r));
		obey(&s, &o, &r);
		if (o.op == ORDER_QUIT)
			side_close(&s);
		if (send(ctl, &r, sizeof(r), MSG_NOSIGNAL) != sizeof(r))
			return 1;
	}
	return 0;
}

/* Gets a hello and the memory to write into, says when it has begun, and writes 0xee until it is
 * refused. */
static inline int role_writer(const char *dir, int ctl)
{
	struct side s = {0};
	struct mc_shm_peer *peer;
	struct mc_xlane *lane;
	struct reply r = {0};
	struct hello h;
	int i;

	if (recv(ctl, &h, sizeof(h), 0) != sizeof(h) || recv(ctl, &i, sizeof(i), 0) != sizeof(i) ||
	    side_open(&s, dir, false) < 0)
		return 1;
	memset(s.mem[FOREIGN], 0xee, MEM_LEN);
	r.rc = side_attach(&s, h.path, h.nonce, h.epoch, WAIT_NS, &peer);
	if (r.rc == 0)
		r.rc = side_lane(&s, peer, &lane);
	while (r.rc == 0) {
		r.rc = frag_run(lane, MC_OP_WRITE, s.mem[FOREIGN], &h.rr[i], h.rr[i].addr, MEM_LEN);
		if (r.val++ == 0 && send(ctl, &r, sizeof(r), MSG_NOSIGNAL) != sizeof(r))
			return 1;
	}
	(void)send(ctl, &r, sizeof(r), MSG_NOSIGNAL); /* the test may not listen any more */
	lane->ops->lane_close(lane);
	mc_shm_peer_detach(peer);
	side_close(&s);
	return 0;
}

struct proc {
	pid_t pid;
	int ctl;
	struct hello hello;
};

/* Starts this program again in a role. */
static inline struct proc proc_start(const char *role, const char *dir)
{
	struct timeval tv = {.tv_sec = 60};
	struct proc p = {0};
	int fds[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds), 0);
	p.pid = fork();
	assert_true(p.pid >= 0);
	if (p.pid == 0) {
		if (dup2(fds[1], ROLE_CTL) == ROLE_CTL && fcntl(ROLE_CTL, F_SETFD, 0) == 0)
			execl("/proc/self/exe", "shm-test", role, dir, (char *)NULL);
		_exit(127);
	}
	assert_int_equal(close(fds[1]), 0);
	p.ctl = fds[0];
	assert_int_equal(setsockopt(p.ctl, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof(tv)), 0);
	return p;
}

static inline struct proc target_start(const char *dir)
{
	struct proc p = proc_start("target", dir);

	assert_int_equal(recv(p.ctl, &p.hello, sizeof(p.hello), 0), sizeof(p.hello));
	return p;
}

static inline struct reply order(struct proc *p, enum order_op op, int i, uint64_t a)
{
	struct order o = {op, i, a};
	struct reply r = {0};

	assert_int_equal(send(p->ctl, &o, sizeof(o), MSG_NOSIGNAL), sizeof(o));
	assert_int_equal(recv(p->ctl, &r, sizeof(r), 0), sizeof(r));
	return r;
}

static inline struct proc writer_start(const char *dir, struct side *target, int i)
{
	struct proc p = proc_start("writer", dir);
	struct hello h;
	struct reply r;

	hello_of(target, &h);
	assert_int_equal(send(p.ctl, &h, sizeof(h), MSG_NOSIGNAL), sizeof(h));
	assert_int_equal(send(p.ctl, &i, sizeof(i), MSG_NOSIGNAL), sizeof(i));
	assert_int_equal(recv(p.ctl, &r, sizeof(r), 0), sizeof(r));
	assert_int_equal(r.rc, 0);
	return p;
}

static inline void proc_kill(struct proc *p)
{
	int status;

	assert_int_equal(kill(p->pid, SIGKILL), 0);
	assert_int_equal(waitpid(p->pid, &status, 0), p->pid);
	assert_int_equal(close(p->ctl), 0);
}

/* @return its exit status */
static inline int proc_wait(struct proc *p)
{
	int status = -1;

	assert_int_equal(waitpid(p->pid, &status, 0), p->pid);
	assert_int_equal(close(p->ctl), 0);
	return status;
}

/* ---- fixture: a directory and this process's side ---- */

static struct side me;
static char test_dir[64];
static int64_t live_before;
static int fds_before;

static inline int fds_open(void)
{
	DIR *d = opendir("/proc/self/fd");
	int n = 0;

	while (d && readdir(d))
		n++;
	closedir(d);
	return n;
}

static inline int peers_setup(void **state)
{
	(void)state;
	live_before = mc_mem_live();
	fds_before = fds_open();
	(void)snprintf(test_dir, sizeof(test_dir), "/tmp/mc-shm-test-XXXXXX");
	if (!mkdtemp(test_dir))
		return -1;
	memset(&me, 0, sizeof(me));
	return side_open(&me, test_dir, false);
}

static inline int peers_teardown(void **state)
{
	(void)state;
	if (me.dev)
		side_close(&me);
	if (mc_mem_live() != live_before || fds_open() != fds_before) {
		print_error("left behind: %ld allocations, %d descriptors\n",
			    (long)(mc_mem_live() - live_before), fds_open() - fds_before);
		return -1;
	}
	if (rmdir(test_dir) != 0) {
		/* A killed process leaves its socket; the next engine in the directory removes it.
		 */
		struct side next = {0};

		if (side_open(&next, test_dir, false) < 0)
			return -1;
		side_close(&next);
		if (rmdir(test_dir) != 0)
			return -1;
	}
	return 0;
}

/* Gives others the processor for a while; nothing may depend on how long it is. */
static inline void dawdle(int turns)
{
	while (turns-- > 0)
		(void)sched_yield();
}

/* Waits for a condition that another thread or process brings about; fails after WAIT_NS. */
#define wait_until(cond)                                                                           \
	do {                                                                                       \
		uint64_t end_ = mc_now_ns() + WAIT_NS;                                             \
		while (!(cond)) {                                                                  \
			assert_true(mc_now_ns() < end_);                                           \
			(void)sched_yield();                                                       \
		}                                                                                  \
	} while (0)

#define T(f) cmocka_unit_test_setup_teardown(f, peers_setup, peers_teardown)

/* @return an exit status when this process was started in a role, else -1 */
static inline int role_main(int argc, char **argv)
{
	if (argc < 3)
		return -1;
	if (strcmp(argv[1], "target") == 0)
		return role_target(argv[2], ROLE_CTL);
	if (strcmp(argv[1], "writer") == 0)
		return role_writer(argv[2], ROLE_CTL);
	return 1;
}

#endif
