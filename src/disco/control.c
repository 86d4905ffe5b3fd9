/*
 * control.c: the control port's sockets: listener, connections, deadlines, bounds.
 *
 * A connection goes read -> write -> drain, with a wait before writing when the answer comes from
 * another thread. Draining (our write side is shut, we wait for the peer
 * to close) keeps the kernel from answering late bytes with a reset that would destroy the reply.
 * Connections that have not yet sent a whole head, and draining ones, stand in `idle` in order of
 * age: they are the ones that make room.
 */
#include "disco/control.h"

#include <errno.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/list.h"
#include "base/log.h"
#include "base/mem.h"
#include "disco/control_text.h"

#define CONNS_DEFAULT 4096u
#define BYTES_DEFAULT (256ull << 20)
#define STEP_NS_DEFAULT (5 * MC_NS_PER_S)
#define REPLY_NS_DEFAULT (60 * MC_NS_PER_S)
#define ACCEPTS_PER_EVENT 64
#define READ_PER_EVENT (256u << 10)	 /* so that one fast sender does not hold the loop */
#define FDS_BACKOFF (100 * MC_NS_PER_MS) /* out of descriptors: nothing to do but wait */
#define FIRST_BYTES 512u		 /* most requests fit; no heap for them */

enum conn_state { CONN_READ, CONN_WAIT, CONN_WRITE, CONN_DRAIN };

struct conn;

/* What remains of a request while its answer is made; outlives the connection. */
struct mc_control_call {
	struct mc_task task;
	struct mc_loop *loop;
	struct conn *conn;	      /* loop thread only; NULL: it has ended */
	struct mc_control_text *text; /* the answer */
};

/* Loop thread only. */
struct conn {
	struct mc_list link; /* all */
	struct mc_list idle; /* in ctl->idle, or alone */
	struct mc_control *ctl;
	struct mc_watch watch; /* owns the descriptor */
	struct mc_timer timer;
	struct mc_addr peer;
	enum conn_state state;
	uint8_t first[FIRST_BYTES];
	uint8_t *big;		     /* instead of first, when the frame is larger */
	size_t cap, len, need;	     /* of the request */
	struct mc_control_step step; /* the reply; step.text is ours */
	size_t sent;
	struct mc_control_call *call; /* while waiting */
};

struct mc_control {
	struct mc_control_conf conf;
	struct mc_hs_conf hs;
	struct mc_loop *loop;
	struct mc_watch listener;
	struct mc_timer backoff;
	struct mc_addr bound;
	struct mc_list conns, idle;
	bool is_listening; /* the listener is watched */
	bool is_started;
	int rc; /* of start_on_loop() */
	/* Written on the loop, read anywhere: relaxed. */
	_Atomic uint64_t accepted, adopted, replied, dropped, evicted, paused, bytes;
	_Atomic uint32_t nconns;
};

static void count(_Atomic uint64_t *what)
{
	atomic_fetch_add_explicit(what, 1, memory_order_relaxed);
}

static const uint8_t *conn_data(const struct conn *c)
{
	return c->big ? c->big : c->first;
}

/* Ends the connection; the descriptor too unless it was given away (watch.fd == -1). */
static void conn_end(struct conn *c)
{
	struct mc_control *ctl = c->ctl;

	mc_loop_timer_cancel(ctl->loop, &c->timer);
	if (c->watch.fd >= 0)
		mc_loop_unwatch(ctl->loop, &c->watch);
	mc_fd_close(&c->watch.fd);
	mc_list_del(&c->link);
	mc_list_del(&c->idle);
	if (c->big)
		atomic_fetch_sub_explicit(&ctl->bytes, c->cap, memory_order_relaxed);
	mc_free(c->big);
	if (c->call)
		c->call->conn = NULL;
	mc_control_text_put(c->step.text);
	mc_free(c);
	atomic_fetch_sub_explicit(&ctl->nconns, 1, memory_order_relaxed);
}

static void conn_drop(struct conn *c, const char *why)
{
	char peer[MC_ADDR_TEXT_MAX];

	count(&c->ctl->dropped);
	mc_log_info("control connection dropped", "peer=%s reason=\"%s\"",
		    mc_addr_format(&c->peer, peer), why);
	conn_end(c);
}

static void conn_on_time(struct mc_timer *t)
{
	static const char *const why[] = {[CONN_READ] = "request did not come in time",
					  [CONN_WAIT] = "no answer was found in time",
					  [CONN_WRITE] = "reply was not taken in time"};
	struct conn *c = mc_container_of(t, struct conn, timer);

	if (c->state == CONN_DRAIN)
		conn_end(c); /* it has its reply */
	else
		conn_drop(c, why[c->state]);
}

static int conn_deadline(struct conn *c, uint64_t after_ns)
{
	struct mc_loop *loop = c->ctl->loop;

	return mc_loop_timer_set(loop, &c->timer, mc_time_after(mc_loop_now(loop), after_ns));
}

static void conn_drain(struct conn *c)
{
	c->state = CONN_DRAIN;
	count(&c->ctl->replied);
	(void)shutdown(c->watch.fd, SHUT_WR); /* fails only when the peer is gone already */
	mc_list_push_back(&c->ctl->idle, &c->idle);
	if (conn_deadline(c, c->ctl->conf.step_ns) < 0 ||
	    mc_loop_rewatch(c->ctl->loop, &c->watch, EPOLLIN) < 0)
		conn_end(c);
}

/* @return false when the connection is gone */
static bool conn_write(struct conn *c)
{
	const char *json;
	struct iovec iov[2];
	struct msghdr msg = {.msg_iov = iov};
	size_t len, at = c->sent;
	ssize_t n;

	mc_control_text_view(c->step.text, &json, &len);
	if (at < c->step.head_len) {
		iov[msg.msg_iovlen++] = (struct iovec){c->step.head + at, c->step.head_len - at};
		at = 0;
	} else {
		at -= c->step.head_len;
	}
	iov[msg.msg_iovlen++] = (struct iovec){(char *)json + at, len - at};
	n = sendmsg(c->watch.fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
	if (n < 0 && errno != EAGAIN && errno != EINTR) {
		conn_drop(c, mc_err_text(mc_err_from_errno(errno)));
		return false;
	}
	c->sent += n > 0 ? (size_t)n : 0;
	if (c->sent == c->step.head_len + len) {
		conn_drain(c);
		return false;
	}
	return true;
}

static void conn_reply(struct conn *c)
{
	c->state = CONN_WRITE;
	c->sent = 0;
	if (conn_deadline(c, c->ctl->conf.reply_ns) < 0 ||
	    (conn_write(c) && mc_loop_rewatch(c->ctl->loop, &c->watch, EPOLLOUT) < 0))
		conn_drop(c, mc_err_text(-MC_E_NOMEM));
}

static void call_run(struct mc_task *task)
{
	struct mc_control_call *call = mc_container_of(task, struct mc_control_call, task);
	struct conn *c = call->conn;

	if (c) {
		c->call = NULL;
		if (call->text) {
			mc_control_step_reply(&c->step, call->text);
			conn_reply(c);
		} else {
			conn_drop(c, "its request cannot be answered");
		}
	} else {
		mc_control_text_put(call->text);
	}
	mc_free(call);
}

void mc_control_answer(struct mc_control_call *call, struct mc_control_text *text)
{
	call->text = text;
	call->task.run = call_run;
	mc_loop_post(call->loop, &call->task);
}

/* The owner answers, maybe from another thread, maybe before this returns. */
static void conn_wait(struct conn *c)
{
	const struct mc_control_conf *conf = &c->ctl->conf;
	const struct mc_hs_frame *f = &c->step.frame;
	struct mc_control_call *call = mc_calloc(1, sizeof(*call));

	if (!call) {
		conn_drop(c, mc_err_text(-MC_E_NOMEM));
		return;
	}
	call->loop = c->ctl->loop;
	call->conn = c;
	c->state = CONN_WAIT;
	if (conn_deadline(c, conf->reply_ns) < 0 ||
	    mc_loop_rewatch(c->ctl->loop, &c->watch, 0) < 0 ||
	    conf->ops->later(conf->user, f->type, f->json, f->len, call) < 0) {
		mc_free(call);
		conn_drop(c, "its request cannot be answered");
		return;
	}
	c->call = call; /* the answer runs on this loop, later than this */
}

static void conn_adopt(struct conn *c)
{
	struct mc_control *ctl = c->ctl;
	int fd = c->watch.fd;

	mc_loop_unwatch(ctl->loop, &c->watch);
	c->watch.fd = -1;
	count(&ctl->adopted);
	ctl->conf.ops->adopt(ctl->conf.user, fd, conn_data(c), c->len, &c->peer);
	conn_end(c);
}

/* Room for more of the request; grows with what has come, not with what was announced. */
static int conn_room(struct conn *c)
{
	struct mc_control *ctl = c->ctl;
	size_t cap = mc_min(c->need, c->cap * 2), more = cap - (c->big ? c->cap : 0);
	uint8_t *big;

	if (c->len < c->cap)
		return 0;
	if (atomic_load_explicit(&ctl->bytes, memory_order_relaxed) + more > ctl->conf.bytes_max)
		return -MC_E_LIMIT;
	big = mc_realloc_array(c->big, cap, 1);
	if (!big)
		return -MC_E_NOMEM;
	if (!c->big)
		memcpy(big, c->first, c->len);
	atomic_fetch_add_explicit(&ctl->bytes, more, memory_order_relaxed);
	c->big = big;
	c->cap = cap;
	return 0;
}

/* Looks at what has come. @return true when more is to be read */
static bool conn_look(struct conn *c)
{
	struct mc_diag diag = {.text = ""};
	size_t had_need = c->need;
	int rc = 0;

	if (c->len < c->need && c->need > MC_HS_HEAD_BYTES)
		return true;
	mc_control_step(&c->ctl->conf, conn_data(c), c->len, &c->step, &diag);
	switch (c->step.act) {
	case MC_CONTROL_READ:
		c->need = c->step.need;
		if (had_need == MC_HS_HEAD_BYTES && c->need > MC_HS_HEAD_BYTES) {
			mc_list_del(&c->idle); /* it has said what it wants */
			rc = conn_deadline(c, c->ctl->conf.step_ns + (c->need >> 20) * MC_NS_PER_S);
		}
		if (rc == 0)
			return true;
		mc_diag_set(&diag, "%s", mc_err_text(rc));
		break;
	case MC_CONTROL_ADOPT:
		conn_adopt(c);
		return false;
	case MC_CONTROL_REPLY:
		mc_list_del(&c->idle);
		conn_reply(c);
		return false;
	case MC_CONTROL_LATER:
		mc_list_del(&c->idle);
		conn_wait(c);
		return false;
	case MC_CONTROL_DROP:
	case MC_CONTROL_ACT_COUNT:
		break;
	}
	conn_drop(c, diag.text);
	return false;
}

static void conn_read(struct conn *c)
{
	uint8_t *buf;
	size_t part, done = 0;
	ssize_t n;
	int rc;

	while (done < READ_PER_EVENT) {
		rc = conn_room(c);
		if (rc < 0) {
			conn_drop(c,
				  rc == -MC_E_NOMEM ? mc_err_text(rc) : "too many large requests");
			return;
		}
		buf = c->big ? c->big : c->first;
		part = mc_min(c->cap - c->len, READ_PER_EVENT - done);
		n = recv(c->watch.fd, buf + c->len, part, MSG_DONTWAIT);
		if (n < 0 && (errno == EAGAIN || errno == EINTR))
			return;
		if (n <= 0) {
			if (n == 0 && c->len == 0)
				conn_end(c); /* a port check, nothing to tell */
			else
				conn_drop(c, n == 0 ? "peer closed in the middle of a request"
						    : mc_err_text(mc_err_from_errno(errno)));
			return;
		}
		c->len += (size_t)n;
		done += (size_t)n;
		if (!conn_look(c))
			return;
	}
}

static void conn_discard(struct conn *c)
{
	ssize_t n = recv(c->watch.fd, c->first, sizeof(c->first), MSG_DONTWAIT);

	if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR))
		conn_end(c);
}

static void conn_on_event(struct mc_watch *w, uint32_t events)
{
	struct conn *c = mc_container_of(w, struct conn, watch);

	switch (c->state) {
	case CONN_READ:
		conn_read(c);
		break;
	case CONN_WAIT:
		conn_end(c); /* only that the peer is gone wakes a connection that waits */
		break;
	case CONN_WRITE:
		(void)conn_write(c); /* gone or not, there is nothing left to do with it */
		break;
	case CONN_DRAIN:
		conn_discard(c);
		break;
	}
}

/* Makes room for one more. @return false when every connection is at work */
static bool evict(struct mc_control *ctl)
{
	struct conn *c = mc_list_first(&ctl->idle, struct conn, idle);

	if (!c)
		return false;
	count(&ctl->evicted);
	conn_end(c);
	return true;
}

static void conn_start(struct mc_control *ctl, int fd, const struct mc_addr *peer)
{
	struct conn *c = mc_calloc(1, sizeof(*c));

	if (!c) {
		mc_fd_close(&fd);
		return;
	}
	c->ctl = ctl;
	c->peer = *peer;
	c->cap = FIRST_BYTES;
	c->need = MC_HS_HEAD_BYTES;
	c->watch = (struct mc_watch){.fd = fd, .events = EPOLLIN, .on_event = conn_on_event};
	c->timer.on_time = conn_on_time;
	mc_list_init(&c->idle);
	mc_list_push_back(&ctl->conns, &c->link);
	mc_list_push_back(&ctl->idle, &c->idle);
	atomic_fetch_add_explicit(&ctl->nconns, 1, memory_order_relaxed);
	count(&ctl->accepted);
	(void)mc_sock_nodelay(fd); /* only latency depends on it */
	if (mc_loop_watch(ctl->loop, &c->watch) < 0) {
		mc_fd_close(&c->watch.fd);
		conn_end(c);
	} else if (conn_deadline(c, ctl->conf.step_ns) < 0) {
		conn_end(c);
	}
}

static void listen_pause(struct mc_control *ctl)
{
	uint64_t at = mc_time_after(mc_loop_now(ctl->loop), FDS_BACKOFF);

	if (mc_loop_timer_set(ctl->loop, &ctl->backoff, at) < 0)
		return; /* try again with the next event */
	mc_loop_unwatch(ctl->loop, &ctl->listener);
	ctl->is_listening = false;
	count(&ctl->paused);
}

static void listen_on_time(struct mc_timer *t)
{
	struct mc_control *ctl = mc_container_of(t, struct mc_control, backoff);

	if (mc_loop_watch(ctl->loop, &ctl->listener) == 0)
		ctl->is_listening = true;
	else
		/* The timer has just left the heap, so there is room for it. */
		(void)mc_loop_timer_set(ctl->loop, t,
					mc_time_after(mc_loop_now(ctl->loop), FDS_BACKOFF));
}

static void listen_on_event(struct mc_watch *w, uint32_t events)
{
	struct mc_control *ctl = mc_container_of(w, struct mc_control, listener);
	struct mc_addr peer;
	int fd, rc;

	for (int i = 0; i < ACCEPTS_PER_EVENT; i++) {
		if (atomic_load_explicit(&ctl->nconns, memory_order_relaxed) >=
			ctl->conf.conns_max &&
		    !evict(ctl)) {
			listen_pause(ctl);
			return;
		}
		rc = mc_sock_accept(ctl->listener.fd, &fd, &peer);
		if (rc == -MC_E_LIMIT) {
			mc_log_warn("control port cannot accept: no descriptors left", "conns=%u",
				    atomic_load_explicit(&ctl->nconns, memory_order_relaxed));
			if (!evict(ctl))
				listen_pause(ctl);
			return;
		}
		if (rc == -MC_E_AGAIN)
			return;
		if (rc == 0)
			conn_start(ctl, fd, &peer);
	}
}

static void start_on_loop(void *arg)
{
	struct mc_control *ctl = arg;

	ctl->rc = mc_loop_watch(ctl->loop, &ctl->listener);
	ctl->is_listening = ctl->rc == 0;
}

static void stop_on_loop(void *arg)
{
	struct mc_control *ctl = arg;
	struct conn *c;

	if (ctl->is_listening)
		mc_loop_unwatch(ctl->loop, &ctl->listener);
	mc_loop_timer_cancel(ctl->loop, &ctl->backoff);
	while ((c = mc_list_first(&ctl->conns, struct conn, link)))
		conn_end(c);
}

static int listen_at(struct mc_control *ctl, struct mc_diag *diag)
{
	char text[MC_ADDR_TEXT_MAX];
	int rc, backlog = (int)ctl->hs.backlog;

	if (mc_addr_port(&ctl->conf.bind)) {
		rc = mc_sock_listen(&ctl->conf.bind, backlog, &ctl->listener.fd, &ctl->bound);
		if (rc < 0)
			mc_diag_set(diag, "listen on %s: %s", mc_addr_format(&ctl->conf.bind, text),
				    mc_err_text(rc));
		return rc;
	}
	rc = mc_sock_listen_range(&ctl->conf.bind, (uint16_t)ctl->hs.port_min,
				  (uint16_t)ctl->hs.port_max, backlog, &ctl->listener.fd,
				  &ctl->bound);
	if (rc < 0)
		mc_diag_set(diag,
			    "listen on %s, ports %lld to %lld (MC_MIN_RPC_PORT, "
			    "MC_MAX_RPC_PORT): %s",
			    mc_addr_format_host(&ctl->conf.bind, text), (long long)ctl->hs.port_min,
			    (long long)ctl->hs.port_max, mc_err_text(rc));
	return rc;
}

int mc_control_open(struct mc_loop *loop, const struct mc_control_conf *conf,
		    struct mc_control **ret, struct mc_diag *diag)
{
	struct mc_control *ctl = mc_calloc(1, sizeof(*ctl));
	int rc;

	if (!ctl)
		return -MC_E_NOMEM;
	mc_assert(conf->preface_len <= MC_CONTROL_PREFACE_MAX);
	ctl->conf = *conf;
	ctl->hs = *conf->hs;
	ctl->conf.hs = &ctl->hs;
	ctl->conf.conns_max = conf->conns_max ? conf->conns_max : CONNS_DEFAULT;
	ctl->conf.bytes_max = conf->bytes_max ? conf->bytes_max : BYTES_DEFAULT;
	ctl->conf.step_ns = conf->step_ns ? conf->step_ns : STEP_NS_DEFAULT;
	ctl->conf.reply_ns = conf->reply_ns ? conf->reply_ns : REPLY_NS_DEFAULT;
	ctl->loop = loop;
	ctl->listener = (struct mc_watch){.fd = -1, .events = EPOLLIN, .on_event = listen_on_event};
	ctl->backoff.on_time = listen_on_time;
	mc_list_init(&ctl->conns);
	mc_list_init(&ctl->idle);
	rc = listen_at(ctl, diag);
	if (rc < 0)
		goto fail;
	mc_loop_call(loop, start_on_loop, ctl);
	rc = ctl->rc;
	if (rc < 0)
		goto fail;
	ctl->is_started = true;
	*ret = ctl;
	return 0;
fail:
	mc_control_close(ctl);
	return rc;
}

void mc_control_close(struct mc_control *ctl)
{
	if (!ctl)
		return;
	if (ctl->is_started)
		mc_loop_call(ctl->loop, stop_on_loop, ctl);
	mc_fd_close(&ctl->listener.fd);
	mc_free(ctl);
}

uint16_t mc_control_port(const struct mc_control *ctl)
{
	return mc_addr_port(&ctl->bound);
}

void mc_control_stats_get(struct mc_control *ctl, struct mc_control_stats *ret)
{
	*ret = (struct mc_control_stats){
	    .accepted = atomic_load_explicit(&ctl->accepted, memory_order_relaxed),
	    .adopted = atomic_load_explicit(&ctl->adopted, memory_order_relaxed),
	    .replied = atomic_load_explicit(&ctl->replied, memory_order_relaxed),
	    .dropped = atomic_load_explicit(&ctl->dropped, memory_order_relaxed),
	    .evicted = atomic_load_explicit(&ctl->evicted, memory_order_relaxed),
	    .paused = atomic_load_explicit(&ctl->paused, memory_order_relaxed),
	    .conns = atomic_load_explicit(&ctl->nconns, memory_order_relaxed),
	    .bytes = atomic_load_explicit(&ctl->bytes, memory_order_relaxed),
	};
}
