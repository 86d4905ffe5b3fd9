/*
 * shm_serve.c: the target side of the rendezvous, on the device's loop. A peer asks and is answered
 * at once, so nobody waits for anybody else; what stays is a seat tag, its connection and its
 * pidfd.
 *
 * A client record lives until the peer's process is dead, or until it has left without keeping a
 * seat: only then can none of its copies be under way.
 */
#include <errno.h>
#include <fcntl.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/fork.h"
#include "base/log.h"
#include "xport/shm_priv.h"

#define CLIENTS_MAX 4096u
#define ACCEPTS_MAX 64 /* at one event */
#define REQUESTS_MAX 16

struct mc_shm_client {
	struct mc_list link; /* in dev.clients, under its lock */
	struct mc_shm_dev *d;
	uint32_t tag;
	pid_t process;
	bool is_known; /* has shown the nonce */
	/* fd -1: closed, or there never was one */
	struct mc_watch sock, pid;
};

static void watch_end(struct mc_shm_dev *d, struct mc_watch *w)
{
	if (w->fd < 0)
		return;
	mc_loop_unwatch(d->loop, w);
	mc_fd_close(&w->fd);
}

/* Nothing of it is under way any more. */
static void client_free(struct mc_shm_client *c)
{
	struct mc_shm_dev *d = c->d;

	pthread_mutex_lock(&d->lock);
	mc_list_del(&c->link);
	pthread_mutex_unlock(&d->lock);
	watch_end(d, &c->sock);
	watch_end(d, &c->pid);
	if (c->is_known && mc_shm_page_reclaim(d->page, c->tag) > 0)
		mc_log_debug("took back a dead peer's seats", "tag=%u", c->tag);
	atomic_fetch_sub_explicit(&d->nclients, 1, memory_order_relaxed);
	mc_free(c);
}

/* The connection ended. A process that still has seats may be copying: wait for its death, if that
 * can be seen. */
static void client_left(struct mc_shm_client *c)
{
	watch_end(c->d, &c->sock);
	if (c->pid.fd < 0 || !c->is_known || mc_shm_page_seats_of(c->d->page, c->tag) == 0)
		client_free(c);
}

static void on_client_death(struct mc_watch *w, uint32_t events)
{
	(void)events;
	client_free(mc_container_of(w, struct mc_shm_client, pid));
}

/* In a time that does not depend on where they differ. */
static bool is_nonce_equal(const uint8_t *a, const uint8_t *b)
{
	uint8_t diff = 0;

	for (int i = 0; i < MC_SHM_NONCE_LEN; i++)
		diff |= (uint8_t)(a[i] ^ b[i]);
	return diff == 0;
}

static int answer_hello(struct mc_shm_client *c, const struct mc_shm_msg *req)
{
	struct mc_shm_dev *d = c->d;
	struct mc_shm_msg ans = {
	    .type = MC_SHM_HELLO, .serial = req->serial, .epoch = d->env.epoch, .tag = c->tag};

	if (!is_nonce_equal(req->nonce, d->nonce))
		ans.status = req->epoch == d->env.epoch ? -MC_E_AUTH : -MC_E_PEER_RESTARTED;
	else if (req->epoch != d->env.epoch)
		ans.status = -MC_E_PEER_RESTARTED;
	if (ans.status < 0)
		return mc_shm_msg_send(c->sock.fd, &ans, -1);
	c->is_known = true;
	ans.addr = (uintptr_t)d->nonce;
	return mc_shm_msg_send(c->sock.fd, &ans, d->page_fd);
}

static int answer_arena(struct mc_shm_client *c, const struct mc_shm_msg *req)
{
	struct mc_shm_msg ans = {.type = MC_SHM_ARENA, .serial = req->serial, .arena = req->arena};
	int fd = -1, rc;

	ans.status = mc_shm_heap_fd(c->d->heap, req->arena, &fd, &ans.len);
	rc = mc_shm_msg_send(c->sock.fd, &ans, fd);
	mc_fd_close(&fd);
	return rc;
}

/* @return < 0: drop the client */
static int client_serve(struct mc_shm_client *c)
{
	struct mc_shm_msg req;
	int fd, rc;

	rc = mc_shm_msg_recv(c->sock.fd, &req, &fd);
	if (rc < 0)
		return rc;
	mc_fd_close(&fd); /* none is ever asked for */
	if (req.type == MC_SHM_HELLO && !c->is_known)
		rc = answer_hello(c, &req);
	else if (req.type == MC_SHM_ARENA && c->is_known)
		rc = answer_arena(c, &req);
	else
		rc = -MC_E_PROTO;
	/* A client takes each answer before it asks again: a full socket is one that does not. */
	return rc == -MC_E_AGAIN ? -MC_E_PROTO : rc;
}

static void on_client(struct mc_watch *w, uint32_t events)
{
	struct mc_shm_client *c = mc_container_of(w, struct mc_shm_client, sock);
	int rc = 0;

	(void)events;
	for (int i = 0; i < REQUESTS_MAX && rc == 0; i++)
		rc = client_serve(c);
	if (rc == 0 || rc == -MC_E_AGAIN)
		return;
	if (rc != -MC_E_RESET)
		mc_log_debug("dropped a shared-memory peer", "tag=%u cause=%s", c->tag,
			     mc_err_name(rc));
	client_left(c);
}

/* Takes over the socket, also on error. */
static int client_add(struct mc_shm_dev *d, int sock, pid_t pid)
{
	struct mc_shm_client *c = mc_calloc(1, sizeof(*c));
	int rc;

	if (!c) {
		mc_fd_close(&sock);
		return -MC_E_NOMEM;
	}
	c->d = d;
	c->process = pid;
	c->sock = (struct mc_watch){.fd = sock, .events = EPOLLIN, .on_event = on_client};
	c->pid = (struct mc_watch){
	    .fd = mc_shm_pidfd_of(sock, pid), .events = EPOLLIN, .on_event = on_client_death};
	rc = mc_loop_watch(d->loop, &c->sock);
	if (rc == 0 && c->pid.fd >= 0) {
		rc = mc_loop_watch(d->loop, &c->pid);
		if (rc < 0)
			mc_loop_unwatch(d->loop, &c->sock);
	}
	if (rc < 0) {
		mc_fd_close(&c->sock.fd);
		mc_fd_close(&c->pid.fd);
		mc_free(c);
		return rc;
	}
	d->tag_next = d->tag_next == UINT32_MAX ? 1 : d->tag_next + 1;
	c->tag = d->tag_next;
	atomic_fetch_add_explicit(&d->nclients, 1, memory_order_relaxed);
	pthread_mutex_lock(&d->lock);
	mc_list_push_back(&d->clients, &c->link);
	pthread_mutex_unlock(&d->lock);
	return 0;
}

/* Accept and close, so that a full descriptor table does not make the loop spin on a socket that
 * stays readable. */
static void refuse_one(struct mc_shm_dev *d)
{
	int sock;

	mc_fd_close(&d->spare_fd);
	sock = accept4(d->listen.fd, NULL, NULL, SOCK_CLOEXEC);
	mc_fd_close(&sock);
	d->spare_fd = fcntl(d->listen.fd, F_DUPFD_CLOEXEC, 0);
	mc_log_warn("refused a shared-memory peer", "cause=%s", "no free descriptor");
}

static void on_listen(struct mc_watch *w, uint32_t events)
{
	struct mc_shm_dev *d = mc_container_of(w, struct mc_shm_dev, listen);
	struct ucred cred = {0};
	socklen_t len;
	int sock, rc;

	(void)events;
	for (int i = 0; i < ACCEPTS_MAX; i++) {
		sock = accept4(w->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
		if (sock < 0) {
			if (errno == EMFILE || errno == ENFILE)
				refuse_one(d);
			return;
		}
		len = sizeof(cred);
		rc = getsockopt(sock, SOL_SOCKET, SO_PEERCRED, &cred, &len) < 0
			 ? mc_err_from_errno(errno)
			 : 0;
		if (rc == 0 && cred.uid != geteuid())
			rc = -MC_E_AUTH;
		else if (rc == 0 &&
			 atomic_load_explicit(&d->nclients, memory_order_relaxed) >= CLIENTS_MAX)
			rc = -MC_E_LIMIT;
		if (rc < 0)
			mc_fd_close(&sock);
		else
			rc = client_add(d, sock, cred.pid);
		if (rc < 0)
			mc_log_debug("refused a shared-memory peer", "uid=%u pid=%d cause=%s",
				     (unsigned)cred.uid, (int)cred.pid, mc_err_name(rc));
	}
}

struct serve_call {
	struct mc_shm_dev *d;
	int rc;
};

static void serve_start(void *arg)
{
	struct serve_call *call = arg;

	call->rc = mc_loop_watch(call->d->loop, &call->d->listen);
}

int mc_shm_serve_start(struct mc_shm_dev *d)
{
	struct serve_call call = {.d = d, .rc = -MC_E_FORKED};

	d->listen.events = EPOLLIN;
	d->listen.on_event = on_listen;
	d->spare_fd = fcntl(d->listen.fd, F_DUPFD_CLOEXEC, 0);
	mc_loop_call(d->loop, serve_start, &call);
	if (call.rc < 0)
		mc_fd_close(&d->listen.fd); /* not watched: stop has nothing to undo */
	return call.rc;
}

static void serve_stop(void *arg)
{
	struct mc_shm_dev *d = arg;
	struct mc_shm_client *c;

	watch_end(d, &d->listen);
	while ((c = mc_list_first(&d->clients, struct mc_shm_client, link)))
		client_free(c);
}

/* In a forked child: the loop, the page and the lock are the parent's. */
static void serve_drop(struct mc_shm_dev *d)
{
	struct mc_shm_client *c;

	mc_list_each (c, &d->clients, link) {
		mc_fd_close(&c->sock.fd);
		mc_fd_close(&c->pid.fd);
		mc_free(c);
	}
	mc_fd_close(&d->listen.fd);
}

void mc_shm_serve_stop(struct mc_shm_dev *d)
{
	if (mc_fork_is_child(d->fork_gen))
		serve_drop(d);
	else if (d->listen.fd >= 0)
		mc_loop_call(d->loop, serve_stop, d);
	mc_fd_close(&d->spare_fd);
}

bool mc_shm_serve_reap(struct mc_shm_dev *d, uint32_t tag, pid_t *ret_pid)
{
	struct mc_shm_client *c;
	bool is_dead = true; /* an unknown tag is one whose record is gone */

	pthread_mutex_lock(&d->lock);
	mc_list_each (c, &d->clients, link) {
		if (c->tag != tag)
			continue;
		is_dead = mc_shm_pidfd_is_dead(c->pid.fd);
		*ret_pid = c->process;
	}
	if (is_dead)
		(void)mc_shm_page_reclaim(d->page, tag); /* how many does not matter */
	pthread_mutex_unlock(&d->lock);
	return is_dead;
}
