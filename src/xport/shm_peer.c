/*
 * shm_peer.c: the initiator side of the rendezvous: becoming a peer, mapping its arenas on first
 * use, seeing its death.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/fork.h"
#include "base/log.h"
#include "base/str.h"
#include "xport/shm_priv.h"

#define ARENA_WAIT_NS MC_NS_PER_S  /* for the answer to one request */
#define ARENA_RETRY_NS MC_NS_PER_S /* after a failed one */
#define MAP_ID_SHIFT 32

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22 /* Linux 5.14 */
#endif

/* ---- arenas ---- */

static int sock_timeout(int sock, uint64_t wait_ns)
{
	/* A finite wait of at least 1 us, for the kernel's sake: 0 would be for ever. */
	uint64_t us = mc_min(wait_ns, 3600 * MC_NS_PER_S) / 1000;
	struct timeval tv = {.tv_sec = (time_t)(us / 1000000),
			     .tv_usec = (suseconds_t)(us % 1000000)};

	if (us == 0)
		return -MC_E_TIMEDOUT;
	if (setsockopt(sock, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof(tv)) < 0 ||
	    setsockopt(sock, SOL_SOCKET, SO_SNDTIMEO, &tv, sizeof(tv)) < 0)
		return mc_err_from_errno(errno);
	return 0;
}

static uint64_t time_left(uint64_t deadline_ns)
{
	uint64_t now = mc_now_ns();

	return deadline_ns > now ? deadline_ns - now : 0;
}

/* Send a request and take its answer; late ones of earlier requests are dropped. Lock held, or the
 * peer is not shared yet. */
static int peer_ask(struct mc_shm_peer *p, struct mc_shm_msg *req, uint64_t deadline_ns,
		    struct mc_shm_msg *ret_ans, int *ret_fd)
{
	int rc;

	req->serial = ++p->serial;
	rc = sock_timeout(p->sock, time_left(deadline_ns));
	if (rc == 0)
		rc = mc_shm_msg_send(p->sock, req, -1);
	while (rc == 0) {
		rc = sock_timeout(p->sock, time_left(deadline_ns));
		if (rc == 0)
			rc = mc_shm_msg_recv(p->sock, ret_ans, ret_fd);
		if (rc != 0)
			break;
		if (ret_ans->serial == req->serial && ret_ans->type == req->type)
			return 0;
		mc_fd_close(ret_fd);
	}
	return rc == -MC_E_AGAIN ? -MC_E_TIMEDOUT : rc;
}

static void map_end(struct mc_shm_map *m)
{
	if (m->base)
		munmap(m->base, m->len);
	mc_free(m->warm);
	m->base = NULL;
	m->warm = NULL;
}

/* Take the mapping of another arena away, unless it is in use. @return true when the place is empty
 */
static bool map_retire(struct mc_shm_map *m)
{
	uint64_t state = atomic_load_explicit(&m->state, memory_order_acquire);

	if ((state & MC_SHM_MAP_ALIVE) == 0)
		return true; /* pins are then attempts that come to nothing */
	/* acquire: pairs with the release in mc_shm_map_unpin() */
	if ((state & MC_SHM_MAP_PINS) != 0 ||
	    !atomic_compare_exchange_strong_explicit(&m->state, &state, 0, memory_order_acquire,
						     memory_order_relaxed))
		return false;
	map_end(m);
	return true;
}

static int arena_map(int fd, uint64_t len, uint8_t **ret_base)
{
	struct stat st;
	void *base;

	/* Without the seal the owner could shrink the file and so kill us. */
	if (len == 0 || fstat(fd, &st) < 0 || (uint64_t)st.st_size < len ||
	    (fcntl(fd, F_GET_SEALS) & F_SEAL_SHRINK) == 0)
		return -MC_E_PROTO;
	base = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
	if (base == MAP_FAILED)
		return mc_err_from_errno(errno);
	(void)madvise(base, len, MADV_DONTFORK); /* a child gets no use of it, and no harm */
	(void)madvise(base, len, MADV_HUGEPAGE);
	*ret_base = base;
	return 0;
}

/* Map an arena in its place, which is empty. Lock held. */
static int map_fill(struct mc_shm_peer *p, struct mc_shm_map *m, uint32_t arena)
{
	struct mc_shm_msg req = {.type = MC_SHM_ARENA, .arena = arena}, ans;
	uint64_t state;
	int fd, rc;

	rc = peer_ask(p, &req, mc_now_ns() + ARENA_WAIT_NS, &ans, &fd);
	if (rc < 0)
		return rc;
	if (ans.status == 0 && ans.arena == arena && fd >= 0)
		rc = arena_map(fd, ans.len, &m->base);
	else
		rc = ans.status < 0 && ans.status > -MC_E_COUNT ? ans.status : -MC_E_PROTO;
	mc_fd_close(&fd);
	if (rc < 0)
		return rc;
	m->len = ans.len;
	m->warm = mc_calloc(ans.len / MC_SHM_WARM_LEN / 64 + 1,
			    sizeof(*m->warm)); /* NULL: does without */
	/* release: whoever sees the id sees base and len. Pins of failing attempts are kept. */
	state = atomic_load_explicit(&m->state, memory_order_relaxed);
	while (!atomic_compare_exchange_weak_explicit(
	    &m->state, &state,
	    ((uint64_t)arena << MAP_ID_SHIFT) | MC_SHM_MAP_ALIVE | (state & MC_SHM_MAP_PINS),
	    memory_order_release, memory_order_relaxed))
		;
	return 0;
}

static bool map_is(uint64_t state, uint32_t arena)
{
	return (state & MC_SHM_MAP_ALIVE) != 0 && (uint32_t)(state >> MAP_ID_SHIFT) == arena;
}

/* First use of an arena. @return 0 when it is mapped now */
static int map_get(struct mc_shm_peer *p, struct mc_shm_map *m, uint32_t arena)
{
	int rc = 0;

	pthread_mutex_lock(&p->lock);
	if (!map_is(atomic_load_explicit(&m->state, memory_order_relaxed), arena)) {
		rc = -MC_E_UNAVAILABLE;
		if (mc_now_ns() >= m->retry_ns && map_retire(m)) {
			rc = map_fill(p, m, arena);
			m->retry_ns = rc < 0 ? mc_now_ns() + ARENA_RETRY_NS : 0;
		}
		if (rc < 0 && rc != -MC_E_UNAVAILABLE)
			mc_log_debug("could not map a peer's memory",
				     "peer=%s arena=%u cause=%s, not tried again for 1 s", p->name,
				     arena, mc_err_name(rc));
	}
	pthread_mutex_unlock(&p->lock);
	return rc;
}

int mc_shm_map_pin(struct mc_shm_peer *p, uint32_t arena, uint64_t off, uint64_t len,
		   uint8_t **ret_at)
{
	struct mc_shm_map *m = &p->maps[arena % MC_SHM_ARENAS_MAX];
	uint64_t state;

	for (int i = 0; i < 2; i++) {
		/* acquire: pairs with the release in map_fill() */
		state = atomic_fetch_add_explicit(&m->state, 1, memory_order_acquire);
		if (map_is(state, arena)) {
			if (off > m->len || len > m->len - off) {
				mc_shm_map_unpin(p, arena);
				return -MC_E_RANGE;
			}
			*ret_at = m->base + off;
			return 0;
		}
		mc_shm_map_unpin(p, arena);
		if (map_get(p, m, arena) < 0)
			break;
	}
	return -MC_E_UNAVAILABLE;
}

void mc_shm_map_warm(struct mc_shm_peer *p, uint32_t arena, uint8_t *at, uint64_t len)
{
	struct mc_shm_map *m = &p->maps[arena % MC_SHM_ARENAS_MAX];
	uint64_t first = (uint64_t)(at - m->base) / MC_SHM_WARM_LEN;
	uint64_t end = ((uint64_t)(at - m->base) + len) / MC_SHM_WARM_LEN;
	bool is_warm = true;
	uintptr_t start;

	if (!m->warm)
		return;
	for (uint64_t i = first; i < end && is_warm; i++)
		is_warm =
		    atomic_load_explicit(&m->warm[i / 64], memory_order_relaxed) >> (i % 64) & 1;
	if (is_warm)
		return;
	start = (uintptr_t)at & ~(uintptr_t)4095;
	/* Populating for reading makes writable entries in shared memory, too. Kernels before 5.14
	 * refuse: then they come one by one. */
	(void)madvise((void *)start, (uintptr_t)at + len - start, MADV_POPULATE_READ);
	for (uint64_t i = first; i < end; i++)
		atomic_fetch_or_explicit(&m->warm[i / 64], 1ull << (i % 64), memory_order_relaxed);
}

/* ---- death ---- */

static void peer_died(struct mc_shm_peer *p, const char *sign)
{
	if (!atomic_exchange(&p->is_dead, true))
		mc_log_debug("shared-memory peer is gone", "peer=%s sign=%s", p->name, sign);
	mc_loop_unwatch(p->d->loop, &p->sock_watch);
	if (p->pid_watch.fd >= 0)
		mc_loop_unwatch(p->d->loop, &p->pid_watch);
	p->is_watched = false;
}

static void on_sock(struct mc_watch *w, uint32_t events)
{
	if ((events & (EPOLLHUP | EPOLLRDHUP | EPOLLERR)) != 0)
		peer_died(mc_container_of(w, struct mc_shm_peer, sock_watch), "connection");
}

static void on_pid(struct mc_watch *w, uint32_t events)
{
	(void)events;
	peer_died(mc_container_of(w, struct mc_shm_peer, pid_watch), "process");
}

struct watch_call {
	struct mc_shm_peer *p;
	int rc;
};

static void peer_watch(void *arg)
{
	struct watch_call *call = arg;
	struct mc_shm_peer *p = call->p;

	/* Not EPOLLIN: answers are read by whoever asked. */
	p->sock_watch = (struct mc_watch){.fd = p->sock, .events = EPOLLRDHUP, .on_event = on_sock};
	p->pid_watch.events = EPOLLIN;
	p->pid_watch.on_event = on_pid;
	call->rc = mc_loop_watch(p->d->loop, &p->sock_watch);
	if (call->rc == 0 && p->pid_watch.fd >= 0) {
		call->rc = mc_loop_watch(p->d->loop, &p->pid_watch);
		if (call->rc < 0)
			mc_loop_unwatch(p->d->loop, &p->sock_watch);
	}
	p->is_watched = call->rc == 0;
}

static void peer_unwatch(void *arg)
{
	struct mc_shm_peer *p = arg;

	if (!p->is_watched)
		return;
	mc_loop_unwatch(p->d->loop, &p->sock_watch);
	if (p->pid_watch.fd >= 0)
		mc_loop_unwatch(p->d->loop, &p->pid_watch);
	p->is_watched = false;
}

/* ---- attach ---- */

static int peer_connect(struct mc_shm_peer *p, const char *path, uint64_t deadline_ns)
{
	struct sockaddr_un sun = {.sun_family = AF_UNIX};
	int rc;

	if (mc_strlcpy(sun.sun_path, sizeof(sun.sun_path), path) < 0 || !path[0])
		return -MC_E_INVAL;
	p->sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (p->sock < 0)
		return mc_err_from_errno(errno);
	rc = sock_timeout(p->sock, time_left(deadline_ns));
	if (rc < 0)
		return rc;
	if (connect(p->sock, (const struct sockaddr *)&sun, sizeof(sun)) == 0)
		return 0;
	switch (errno) {
	case ENOENT:
	case ENOTDIR:
		return -MC_E_UNREACHABLE;
	case ECONNREFUSED:
		return -MC_E_REFUSED;
	case EAGAIN: /* its queue stayed full */
	case EINPROGRESS:
		return -MC_E_TIMEDOUT;
	case EPROTOTYPE:
		return -MC_E_PROTO;
	default:
		return mc_err_from_errno(errno);
	}
}

/* The kernel's word for who listens there. */
static int peer_identify(struct mc_shm_peer *p)
{
	struct ucred cred;
	socklen_t len = sizeof(cred);

	if (getsockopt(p->sock, SOL_SOCKET, SO_PEERCRED, &cred, &len) < 0)
		return mc_err_from_errno(errno);
	if (cred.uid != geteuid())
		return -MC_E_AUTH;
	p->pid = cred.pid;
	p->pid_watch.fd = mc_shm_pidfd_of(p->sock, cred.pid);
	return 0;
}

static int peer_hello(struct mc_shm_peer *p, const struct mc_shm_peer_id *id, uint64_t deadline_ns,
		      uint64_t *ret_probe)
{
	struct mc_shm_msg req = {.type = MC_SHM_HELLO, .epoch = id->epoch}, ans = {0};
	int fd = -1, rc;

	memcpy(req.nonce, id->nonce, sizeof(req.nonce));
	rc = peer_ask(p, &req, deadline_ns, &ans, &fd);
	if (rc < 0)
		return rc;
	if (ans.status < 0 && ans.status > -MC_E_COUNT)
		rc = ans.status;
	else if (ans.epoch != id->epoch)
		rc = -MC_E_PEER_RESTARTED;
	else if (ans.status != 0 || fd < 0 || ans.tag == 0)
		rc = -MC_E_PROTO;
	else
		rc = mc_shm_page_map(fd, id->epoch, &p->page);
	mc_fd_close(&fd);
	if (rc < 0)
		return rc;
	p->tag = ans.tag;
	p->epoch = id->epoch;
	*ret_probe = ans.addr;
	return 0;
}

/* Read its nonce out of its memory: proves the permission, and that the pid means the right
 * process. */
static void peer_probe_vm(struct mc_shm_peer *p, const uint8_t *nonce, uint64_t addr)
{
	uint8_t seen[MC_SHM_NONCE_LEN];
	struct iovec local = {seen, sizeof(seen)};
	struct iovec remote = {(void *)(uintptr_t)addr, sizeof(seen)}; /* the peer's address */
	const char *cause = NULL;

	if (p->d->opts.is_vm_off)
		cause = "switched off";
	else if (p->pid <= 0)
		cause = "its process is not visible in this pid namespace";
	else if (process_vm_readv(p->pid, &local, 1, &remote, 1, 0) != (ssize_t)sizeof(seen))
		cause = errno == EPERM	  ? "no ptrace permission (yama, seccomp or capabilities)"
			: errno == ENOSYS ? "no process_vm_readv in this kernel or sandbox"
					  : "its memory cannot be read";
	else if (memcmp(seen, nonce, sizeof(seen)) != 0)
		cause = "its pid means another process here";
	if (cause)
		mc_log_debug("foreign memory of a peer is out of reach", "peer=%s pid=%d cause=%s",
			     p->name, (int)p->pid, cause);
	atomic_store_explicit(&p->is_vm_ok, !cause, memory_order_relaxed);
}

static int peer_join(struct mc_shm_peer *p, const struct mc_shm_peer_id *id, uint64_t deadline_ns)
{
	struct watch_call call = {.p = p, .rc = -MC_E_FORKED};
	uint64_t probe;
	int rc;

	rc = peer_connect(p, id->path, deadline_ns);
	if (rc < 0)
		return rc;
	rc = peer_identify(p);
	if (rc < 0)
		return rc;
	rc = peer_hello(p, id, deadline_ns, &probe);
	if (rc < 0)
		return rc;
	peer_probe_vm(p, id->nonce, probe);
	mc_loop_call(p->d->loop, peer_watch, &call);
	return call.rc;
}

int mc_shm_peer_attach(struct mc_xdev *dev, const struct mc_shm_peer_id *id, uint64_t deadline_ns,
		       struct mc_shm_peer **ret_peer, struct mc_diag *diag)
{
	struct mc_shm_dev *d = mc_shm_dev_of(dev);
	struct mc_shm_peer *p;
	int rc;

	if (mc_fork_is_child(d->fork_gen))
		return -MC_E_FORKED;
	p = mc_calloc(1, sizeof(*p));
	if (!p)
		return -MC_E_NOMEM;
	p->d = d;
	p->sock = p->pid_watch.fd = -1;
	p->fork_gen = d->fork_gen;
	(void)mc_strlcpy(p->name, sizeof(p->name), id->name); /* cut for logs */
	if (pthread_mutex_init(&p->lock, NULL) != 0) {
		mc_free(p);
		return -MC_E_LIMIT;
	}
	rc = peer_join(p, id, deadline_ns);
	if (rc < 0) {
		mc_diag_set(diag, "shared memory with %s (socket %s): %s", id->name, id->path,
			    mc_err_text(rc));
		mc_shm_peer_detach(p);
		return rc;
	}
	*ret_peer = p;
	return 0;
}

void mc_shm_peer_detach(struct mc_shm_peer *p)
{
	bool is_child;

	if (!p)
		return;
	is_child = mc_fork_is_child(p->fork_gen);
	if (!is_child) {
		mc_assert(atomic_load(&p->nlanes) == 0);
		mc_loop_call(p->d->loop, peer_unwatch, p);
		for (uint32_t i = 0; i < MC_SHM_ARENAS_MAX; i++)
			map_end(&p->maps[i]);
		mc_shm_page_unmap(p->page);
	}
	mc_fd_close(&p->sock);
	mc_fd_close(&p->pid_watch.fd);
	pthread_mutex_destroy(&p->lock);
	mc_free(p);
}

bool mc_shm_peer_is_dead(const struct mc_shm_peer *peer)
{
	return mc_fork_is_child(peer->fork_gen) || /* where the page is not mapped */
	       atomic_load_explicit(&peer->is_dead, memory_order_relaxed) ||
	       atomic_load_explicit(&peer->page->epoch, memory_order_relaxed) != peer->epoch;
}

bool mc_shm_peer_can(const struct mc_shm_peer *peer, const struct mc_remote_region *rr)
{
	if (rr->kind == MC_MEM_MEMFD)
		return true;
	return rr->kind == MC_MEM_HOST &&
	       atomic_load_explicit(&peer->is_vm_ok, memory_order_relaxed);
}
