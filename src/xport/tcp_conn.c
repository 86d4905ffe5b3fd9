/*
 * tcp_conn.c: the target's end of one TCP connection: takes requests in our frames, moves the
 * payload between the socket and the registered memory, answers in order.
 *
 * Every fragment is checked and pinned before a byte moves; the pins end with the answer. A request
 * that is refused is read to its end (the payload goes to scratch memory), so the connection stays
 * usable. Connections that are busy are polled for a learnt time before their loop sleeps.
 * Upstream's frames on the same port are tcp_classic_conn.c.
 */
#include "xport/tcp_conn.h"

#include <sys/epoll.h>
#include <sys/socket.h>

#include "base/log.h"

#define MSGS_PER_TURN 32u   /* requests of one connection before others get their turn */
#define STEPS_PER_TURN 128u /* and socket calls, about */
#define LOWAT_MAX (256u << 10)
#define LOWAT_MIN (64u << 10)
#define STALL_CHECK_NS (250 * MC_NS_PER_MS)
#define STALL_NS (1000 * MC_NS_PER_MS)
#define PEER_TIMEOUT_MS 60000u /* until the kernel gives up on a peer that vanished */

static void conn_close(struct mc_tcp_conn *c)
{
	struct mc_tcp_dev *dev = c->shard->dev;

	mc_tcp_conn_unpin(c);
	if (c->is_watched)
		mc_loop_unwatch(c->shard->loop, &c->watch);
	mc_fd_close(&c->fd);
	mc_list_del(&c->link);
	mc_list_del(&c->hot_link);
	mc_list_del(&c->again_link);
	mc_list_del(&c->fresh_link);
	if (c->mode == CONN_OURS)
		mc_tcp_dev_lane_end(dev, c);
	atomic_fetch_sub_explicit(&dev->nconns, 1, memory_order_relaxed);
	mc_free(c);
}

void mc_tcp_conn_unpin(struct mc_tcp_conn *c)
{
	while (c->npins > 0)
		mc_region_unpin(c->shard->dev->env.regions, c->pins[--c->npins]);
}

/* ---- requests ---- */

/* Answer a request whose payload is dealt with. */
static void answer(struct mc_tcp_conn *c, int status, uint32_t bad_frag)
{
	struct mc_tcp_reply p = {.status = status, .seq = c->req.seq, .bad_frag = bad_frag};

	if (status == 0 && c->req.op == MC_OP_READ)
		p.len = c->req.len;
	mc_tcp_reply_encode(c->txhead, &p);
	/* A read's payload stands in tx already, behind the room for the head. */
	c->tx.v[0] = (struct iovec){.iov_base = c->txhead, .iov_len = MC_TCP_REPLY_BYTES};
	if (c->tx.n == 0)
		c->tx.n = 1;
	c->tx.left += MC_TCP_REPLY_BYTES;
	c->is_acked_final |= status < 0;
	if (!c->is_acked_final)
		c->acked = c->req.seq;
	c->step = STEP_REPLY;
}

static int pin_frag(struct mc_tcp_conn *c, const struct mc_tcp_frag *f, uint64_t len,
		    enum mc_right right, void **ret_ptr)
{
	int rc = mc_region_pin(c->shard->dev->env.regions, f->region, f->gen, f->off, len, right,
			       ret_ptr);

	if (rc == 0)
		c->pins[c->npins++] = f->region;
	return rc;
}

/* Check and pin everything the request names; fill rx (write) or tx (read). @return 0 or the
 * refusal */
static int req_pin(struct mc_tcp_conn *c, struct mc_rd *rd, uint32_t *ret_bad)
{
	enum mc_right right = c->req.op == MC_OP_READ ? MC_RIGHT_READ : MC_RIGHT_WRITE;
	struct mc_iovq *q = c->req.op == MC_OP_READ ? &c->tx : &c->rx;
	struct mc_tcp_frag f;
	uint64_t sum = 0;
	void *ptr;
	int rc;

	for (uint32_t i = 0; i < c->req.nfrags; i++) {
		mc_tcp_frag_decode(rd, &f);
		*ret_bad = i;
		if (f.len == 0 || __builtin_add_overflow(sum, f.len, &sum) || sum > c->req.len)
			return -MC_E_INVAL;
		rc = pin_frag(c, &f, f.len, right, &ptr);
		if (rc < 0)
			return rc;
		mc_iovq_push(q, ptr, f.len);
	}
	if (sum != c->req.len)
		return -MC_E_INVAL;
	if (!c->req.has_signal)
		return 0;
	mc_tcp_frag_decode(rd, &f);
	*ret_bad = c->req.nfrags;
	rc = pin_frag(c, &f, sizeof(uint64_t), MC_RIGHT_WRITE, &ptr);
	if (rc < 0)
		return rc;
	if ((uintptr_t)ptr % sizeof(uint64_t) != 0)
		return -MC_E_INVAL;
	c->signal = ptr;
	c->signal_value = f.len;
	return 0;
}

static void signal_store(struct mc_tcp_conn *c)
{
	/* release: whoever sees the signal sees the payload */
	if (c->signal && c->refusal == 0)
		atomic_store_explicit((_Atomic uint64_t *)c->signal, c->signal_value,
				      memory_order_release);
	c->signal = NULL;
}

/* A write's payload is in place. */
static void body_done(struct mc_tcp_conn *c)
{
	struct mc_tcp_dev *dev = c->shard->dev;

	signal_store(c);
	if (c->refusal == 0)
		atomic_fetch_add_explicit(&dev->bytes[MC_OP_WRITE], c->req.len,
					  memory_order_relaxed);
	mc_tcp_conn_unpin(c);
	mc_iovq_reset(&c->tx);
	if (c->mode == CONN_CLASSIC)
		mc_tcp_classic_answer(c);
	else
		answer(c, c->refusal, c->bad_frag);
}

/* Bytes of the payload came with the head: put them in place. */
static void body_prefix(struct mc_tcp_conn *c)
{
	size_t n = mc_min(c->have - c->at, c->body_left);

	if (c->refusal == 0) {
		size_t left = n;

		while (left > 0) {
			struct iovec *v = &c->rx.v[c->rx.at];
			size_t k = mc_min(left, v->iov_len);

			memcpy(v->iov_base, c->buf + c->at, k);
			mc_iovq_eat(&c->rx, k);
			c->at += k;
			left -= k;
		}
	} else {
		c->at += n;
	}
	c->body_left -= n;
}

void mc_tcp_conn_body(struct mc_tcp_conn *c)
{
	c->body_left = c->req.len;
	c->step = STEP_BODY;
	body_prefix(c);
	if (c->body_left == 0)
		body_done(c);
}

/* A whole request (without payload) stands in buf. @return 0 or < 0: broken protocol */
static int req_begin(struct mc_tcp_conn *c)
{
	struct mc_tcp_dev *dev = c->shard->dev;
	struct mc_rd rd = mc_rd_make(c->buf + c->at + MC_TCP_REQ_BYTES,
				     mc_tcp_req_bytes(&c->req) - MC_TCP_REQ_BYTES);

	if (c->req.seq <= c->seq)
		return -MC_E_PROTO;
	c->seq = c->req.seq;
	c->signal = NULL;
	mc_iovq_reset(&c->tx);
	mc_iovq_reset(&c->rx);
	if (c->req.op == MC_OP_READ) {
		c->tx.v[0] = (struct iovec){c->txhead, 0}; /* the head's, filled by answer() */
		c->tx.n = 1;
	}
	c->refusal = req_pin(c, &rd, &c->bad_frag);
	c->at += mc_tcp_req_bytes(&c->req);
	if (c->refusal < 0) {
		mc_tcp_conn_unpin(c);
		mc_iovq_reset(&c->rx);
		mc_iovq_reset(&c->tx);
		atomic_fetch_add_explicit(&dev->refused, 1, memory_order_relaxed);
	}
	atomic_fetch_add_explicit(&dev->requests[c->req.op], 1, memory_order_relaxed);
	if (c->req.op == MC_OP_READ) {
		if (c->refusal == 0)
			atomic_fetch_add_explicit(&dev->bytes[MC_OP_READ], c->req.len,
						  memory_order_relaxed);
		answer(c, c->refusal, c->bad_frag);
		return 0;
	}
	mc_tcp_conn_body(c);
	return 0;
}

static int hello(struct mc_tcp_conn *c)
{
	struct mc_tcp_dev *dev = c->shard->dev;
	struct mc_tcp_welcome m = {.target_epoch = dev->env.epoch};
	struct mc_tcp_hello h = {0};
	uint8_t diff = 0;
	int rc = mc_tcp_hello_decode(c->buf + c->at, &h);

	if (rc == -MC_E_PROTO)
		return rc;
	m.status = rc;
	c->lane = h.lane;
	c->initiator_epoch = h.initiator_epoch;
	if (rc == 0) {
		/* constant time: says nothing about how much of the nonce was right */
		for (unsigned i = 0; i < MC_TCP_NONCE_BYTES; i++)
			diff |= (uint8_t)(h.nonce[i] ^ dev->env.nonce[i]);
		if (h.target_epoch != 0 && h.target_epoch != dev->env.epoch)
			m.status = -MC_E_PEER_RESTARTED;
		else if (diff != 0)
			m.status = -MC_E_AUTH;
		else
			m.status = mc_tcp_dev_lane_begin(dev, c);
	}
	c->at += MC_TCP_HELLO_BYTES;
	mc_tcp_welcome_encode(c->txhead, &m);
	mc_iovq_reset(&c->tx);
	mc_iovq_push(&c->tx, c->txhead, MC_TCP_WELCOME_BYTES);
	c->step = STEP_REPLY;
	c->is_last = m.status < 0;
	if (m.status == 0) {
		c->mode = CONN_OURS;
		mc_list_del(&c->fresh_link);
	}
	return 0;
}

/* ---- moving ---- */

int mc_tcp_conn_want(struct mc_tcp_conn *c, size_t need)
{
	while (c->have - c->at < need) {
		ssize_t n;

		if (c->at > 0) {
			memmove(c->buf, c->buf + c->at, c->have - c->at);
			c->have -= c->at;
			c->at = 0;
		}
		mc_iovq_reset(&c->rx);
		mc_iovq_push(&c->rx, c->buf + c->have,
			     mc_max(need, (size_t)MC_TCP_RXBUF_BYTES) - c->have);
		n = mc_tcp_recv(c->fd, &c->rx, SIZE_MAX);
		if (n <= 0)
			return (int)n;
		c->is_drained = c->rx.left > 0;
		c->have += (size_t)n;
		c->last_ns = mc_now_ns();
	}
	return 1;
}

/* A control connection: its server takes the descriptor, this object ends. */
static int hand_over(struct mc_tcp_conn *c)
{
	struct mc_tcp_dev *dev = c->shard->dev;

	mc_loop_unwatch(c->shard->loop, &c->watch);
	c->is_watched = false;
	if (dev->adopt(dev->adopt_user, c->fd, c->buf, c->have) == 0)
		c->fd = -1;
	return -MC_E_CLOSED;
}

/* @return 1: go on; 0: wait for more; < 0 */
static int step_head(struct mc_tcp_conn *c)
{
	int rc;

	if (c->mode == CONN_NEW) {
		rc = mc_tcp_conn_want(c, 8);
		if (rc <= 0)
			return rc;
		if (c->shard->dev->preface && memcmp(c->buf, c->shard->dev->preface, 8) == 0)
			return hand_over(c);
		if (memcmp(c->buf + c->at, MC_TCP_MAGIC_TEXT, 8) != 0) {
			c->mode = CONN_CLASSIC;
			return 1;
		}
		rc = mc_tcp_conn_want(c, MC_TCP_HELLO_BYTES);
		if (rc <= 0)
			return rc;
		rc = hello(c);
		return rc < 0 ? rc : 1;
	}
	rc = mc_tcp_conn_want(c, MC_TCP_REQ_BYTES);
	if (rc <= 0)
		return rc;
	rc = mc_tcp_req_decode(c->buf + c->at, &c->req);
	if (rc < 0)
		return rc;
	rc = mc_tcp_conn_want(c, mc_tcp_req_bytes(&c->req));
	if (rc <= 0)
		return rc;
	rc = req_begin(c);
	return rc < 0 ? rc : 1;
}

/* Sleep until much of the payload has come, but never for more than is still to come. */
static void body_lowat(struct mc_tcp_conn *c)
{
	size_t want = mc_min(c->body_left, (uint64_t)LOWAT_MAX);

	if (want < LOWAT_MIN)
		want = 1;
	if (c->lowat == want)
		return;
	c->lowat = want;
	mc_tcp_lowat(c->fd, want);
}

/* Receive payload of a write; what follows it goes to buf. */
static int step_body(struct mc_tcp_conn *c)
{
	ssize_t n;

	if (c->refusal < 0) {
		mc_iovq_reset(&c->rx);
		mc_iovq_push(&c->rx, c->scratch, mc_min(c->body_left, sizeof(c->scratch)));
		n = mc_tcp_recv(c->fd, &c->rx, SIZE_MAX);
		if (n <= 0)
			return (int)n;
		c->body_left -= (uint64_t)n;
	} else {
		size_t tail;

		/* The next head comes along in the same call. */
		if (!c->is_tail) {
			mc_assert(c->at == c->have);
			c->at = c->have = 0;
			mc_iovq_push(&c->rx, c->buf, MC_TCP_RXBUF_BYTES);
			c->is_tail = true;
		}
		n = mc_tcp_recv(c->fd, &c->rx, SIZE_MAX);
		if (n == 0)
			body_lowat(c);
		if (n <= 0)
			return (int)n;
		c->is_drained = c->rx.left > 0;
		tail = mc_min((size_t)MC_TCP_RXBUF_BYTES, c->rx.left);
		c->body_left = c->rx.left - tail;
		if (c->body_left == 0)
			c->have = MC_TCP_RXBUF_BYTES - tail;
	}
	c->last_ns = mc_now_ns();
	if (c->body_left > 0)
		return 1;
	c->is_tail = false;
	body_lowat(c);
	body_done(c);
	return 1;
}

static int step_reply(struct mc_tcp_conn *c)
{
	if (c->tx.left > 0) { /* else there is nothing to say before the end */
		ssize_t n = mc_tcp_send(c->fd, &c->tx, SIZE_MAX);

		if (n <= 0)
			return (int)n;
		c->last_ns = mc_now_ns();
		if (c->tx.left > 0)
			return 1;
	}
	signal_store(c); /* of a read: its memory has been read */
	mc_tcp_conn_unpin(c);
	if (c->is_last)
		return -MC_E_CLOSED;
	c->step = STEP_HEAD;
	return 1;
}

/* Do what can be done now. @return requests answered; < 0: the connection is over */
static int pump(struct mc_tcp_conn *c)
{
	unsigned answered = 0, steps = 0;
	int rc;

	do {
		if (c->step == STEP_HEAD)
			rc = c->mode == CONN_CLASSIC ? mc_tcp_classic_head(c) : step_head(c);
		else if (c->step == STEP_BODY)
			rc = step_body(c);
		else
			rc = step_reply(c);
		if (rc < 0)
			return rc;
		if (rc > 0 && c->step == STEP_HEAD) {
			answered++;
			/* The socket gave less than was asked for: another look would find nothing.
			 */
			if (c->at == c->have && c->is_drained)
				rc = 0;
		}
	} while (rc > 0 && answered < MSGS_PER_TURN && ++steps < STEPS_PER_TURN);
	mc_loop_rewatch(c->shard->loop, &c->watch,
			c->tx.left > 0 && c->step == STEP_REPLY ? EPOLLOUT : EPOLLIN);
	if (rc > 0 && mc_list_is_empty(&c->again_link)) {
		mc_list_push_back(&c->shard->again, &c->again_link);
		(void)mc_loop_timer_set(c->shard->loop, &c->shard->again_timer, 0);
	}
	return (int)answered;
}

/* The next turn of those whose last one ended early. */
static void pump_again(struct mc_timer *t)
{
	struct mc_tcp_shard *sh = mc_container_of(t, struct mc_tcp_shard, again_timer);
	struct mc_list now, *node;

	mc_list_init(&now);
	mc_list_splice_back(&now, &sh->again);
	while ((node = mc_list_pop_front(&now))) {
		struct mc_tcp_conn *c = mc_list_entry(node, struct mc_tcp_conn, again_link);

		if (pump(c) < 0)
			conn_close(c);
	}
}

/* The next request is waited for: decide how. */
static void settled(struct mc_tcp_conn *c)
{
	struct mc_tcp_shard *sh = c->shard;

	sh->idle_since_ns = sh->polled_ns = mc_now_ns();
	sh->budget_ns = mc_spin_budget(&sh->spin, sh->idle_since_ns);
	sh->has_polled = false;
	if (mc_list_is_empty(&c->hot_link))
		mc_list_push_back(&sh->hot, &c->hot_link);
}

/* A request came that was waited for. */
static void unsettled(struct mc_tcp_shard *sh, uint64_t now_ns)
{
	if (sh->idle_since_ns)
		mc_spin_note(&sh->spin, now_ns, now_ns - sh->idle_since_ns, sh->has_polled);
	sh->idle_since_ns = 0;
}

/* @return as pump(); the connection is gone when < 0 */
static int serve(struct mc_tcp_conn *c)
{
	int rc = pump(c);

	if (rc < 0)
		conn_close(c);
	else if (rc > 0 && c->step == STEP_HEAD)
		settled(c);
	return rc;
}

static void on_event(struct mc_watch *w, uint32_t events)
{
	struct mc_tcp_conn *c = mc_container_of(w, struct mc_tcp_conn, watch);

	(void)events;
	if (c->step == STEP_HEAD)
		unsettled(c->shard, mc_now_ns());
	(void)serve(c);
}

/* ---- polling before sleep ---- */

static uint64_t cool(struct mc_tcp_shard *sh)
{
	while (mc_list_pop_front(&sh->hot))
		;
	if (sh->is_spinning)
		mc_spin_leave();
	sh->is_spinning = false;
	return 0;
}

static uint64_t idle_poll(struct mc_idler *id, uint64_t now_ns)
{
	struct mc_tcp_shard *sh = mc_container_of(id, struct mc_tcp_shard, idler);
	struct mc_tcp_conn *c;

	if (mc_list_is_empty(&sh->hot))
		return 0;
	now_ns = mc_now_ns();
	if (sh->idle_since_ns == 0 || now_ns - sh->idle_since_ns >= sh->budget_ns ||
	    !mc_spin_gap_ok(&sh->spin, now_ns, now_ns - sh->polled_ns))
		return cool(sh);
	/* Several peers that wait for answers need the cores themselves. */
	if (sh->hot.next != sh->hot.prev)
		return cool(sh);
	if (!sh->is_spinning)
		sh->is_spinning = mc_spin_enter(now_ns);
	if (!sh->is_spinning)
		return cool(sh);
	sh->has_polled = true;
	sh->polled_ns = now_ns;
	mc_list_each (c, &sh->hot, hot_link) {
		uint64_t since_ns = sh->idle_since_ns;

		/* Payload under way comes in larger pieces when it is waited for. */
		if (c->step == STEP_HEAD && serve(c) > 0 && since_ns) {
			mc_spin_note(&sh->spin, now_ns, now_ns - since_ns, true);
			break;
		}
	}
	return sh->budget_ns ? sh->budget_ns : 1;
}

/* ---- life ---- */

static void stall_check(struct mc_timer *t)
{
	struct mc_tcp_shard *sh = mc_container_of(t, struct mc_tcp_shard, stall_timer);
	uint64_t now_ns = mc_now_ns();
	bool is_busy = false;
	struct mc_tcp_conn *c;

	if (atomic_load_explicit(&sh->dev->nrevoking, memory_order_relaxed) == 0)
		return;
	mc_list_each (c, &sh->conns, link) {
		if (c->npins == 0)
			continue;
		if (now_ns - c->last_ns > STALL_NS)
			conn_close(c);
		else
			is_busy = true;
	}
	if (is_busy)
		mc_loop_timer_set(sh->loop, t, mc_loop_now(sh->loop) + STALL_CHECK_NS);
}

/* Who does not say who he is in time makes room for others. What came while this process stood
 * still was in time. */
static void fresh_check(struct mc_timer *t)
{
	struct mc_tcp_shard *sh = mc_container_of(t, struct mc_tcp_shard, fresh_timer);
	uint64_t now_ns = mc_now_ns(), end_ns;
	struct mc_tcp_conn *c;

	while ((c = mc_list_first(&sh->fresh, struct mc_tcp_conn, fresh_link))) {
		end_ns = mc_time_after(c->begun_ns, sh->dev->hello_ns);
		if (now_ns < end_ns) {
			(void)mc_loop_timer_set(sh->loop, t, end_ns);
			return;
		}
		if (serve(c) < 0 || mc_list_first(&sh->fresh, struct mc_tcp_conn, fresh_link) != c)
			continue;
		mc_log_info("data connection dropped", "port=%u reason=\"no whole hello in time\"",
			    sh->dev->port);
		conn_close(c);
	}
}

static void revoked(struct mc_task *task)
{
	struct mc_tcp_shard *sh = mc_container_of(task, struct mc_tcp_shard, revoke_task);

	/* release: pairs with the acquire in mc_tcp_shard_revoked(), which posts the task again */
	atomic_store_explicit(&sh->is_revoke_posted, false, memory_order_release);
	if (!sh->stall_timer.is_set)
		mc_loop_timer_set(sh->loop, &sh->stall_timer,
				  mc_loop_now(sh->loop) + STALL_CHECK_NS);
}

void mc_tcp_shard_revoked(struct mc_tcp_shard *sh)
{
	if (atomic_load_explicit(&sh->dev->nconns, memory_order_relaxed) == 0)
		return;
	/* acquire: the loop is through with the task's node */
	if (!atomic_exchange_explicit(&sh->is_revoke_posted, true, memory_order_acquire))
		mc_loop_post(sh->loop, &sh->revoke_task);
}

static void shard_begin(void *arg)
{
	struct mc_tcp_shard *sh = arg;

	mc_loop_idler_add(sh->loop, &sh->idler);
}

void mc_tcp_shard_init(struct mc_tcp_shard *sh, struct mc_tcp_dev *dev, struct mc_loop *loop)
{
	sh->dev = dev;
	sh->loop = loop;
	mc_list_init(&sh->conns);
	mc_list_init(&sh->hot);
	mc_list_init(&sh->again);
	mc_list_init(&sh->fresh);
	sh->fresh_timer.on_time = fresh_check;
	sh->again_timer.on_time = pump_again;
	sh->idler.poll = idle_poll;
	sh->stall_timer.on_time = stall_check;
	sh->revoke_task.run = revoked;
	mc_loop_call(loop, shard_begin, sh);
}

static void shard_drain(void *arg)
{
	struct mc_tcp_shard *sh = arg;
	struct mc_tcp_conn *c;

	(void)cool(sh);
	mc_loop_timer_cancel(sh->loop, &sh->stall_timer);
	mc_loop_timer_cancel(sh->loop, &sh->again_timer);
	mc_loop_timer_cancel(sh->loop, &sh->fresh_timer);
	mc_loop_idler_del(sh->loop, &sh->idler);
	mc_list_each (c, &sh->conns, link)
		conn_close(c);
}

void mc_tcp_shard_drain(struct mc_tcp_shard *sh)
{
	mc_loop_call(sh->loop, shard_drain, sh);
}

static void conn_begin(struct mc_task *task)
{
	struct mc_tcp_conn *c = mc_container_of(task, struct mc_tcp_conn, task);
	struct mc_tcp_shard *sh = c->shard;

	mc_list_push_back(&sh->conns, &c->link);
	mc_list_push_back(&sh->fresh, &c->fresh_link);
	if (!sh->fresh_timer.is_set)
		(void)mc_loop_timer_set(sh->loop, &sh->fresh_timer,
					mc_time_after(mc_loop_now(sh->loop), sh->dev->hello_ns));
	c->watch = (struct mc_watch){.fd = c->fd, .events = EPOLLIN, .on_event = on_event};
	if (atomic_load_explicit(&sh->dev->is_closing, memory_order_relaxed) ||
	    mc_loop_watch(sh->loop, &c->watch) < 0)
		conn_close(c);
	else
		c->is_watched = true;
}

int mc_tcp_conn_start(struct mc_tcp_dev *dev, int fd)
{
	unsigned i = atomic_fetch_add_explicit(&dev->next_shard, 1, memory_order_relaxed);
	struct mc_tcp_conn *c = mc_calloc(1, sizeof(*c));

	if (!c)
		return -MC_E_NOMEM;
	c->shard = &dev->shards[i % dev->env.nloops];
	c->fd = fd;
	c->watch.fd = fd;
	c->begun_ns = c->last_ns = mc_now_ns();
	mc_list_init(&c->link);
	mc_list_init(&c->fresh_link);
	mc_list_init(&c->hot_link);
	mc_list_init(&c->again_link);
	mc_list_init(&c->lane_link);
	c->lowat = 1;
	(void)mc_sock_nodelay(fd);
	(void)mc_sock_user_timeout(fd, PEER_TIMEOUT_MS); /* a hint, as the line above */
	c->task.run = conn_begin;
	mc_loop_post(c->shard->loop, &c->task);
	return 0;
}

/* ---- retirement ---- */

struct retire_call {
	struct mc_tcp_shard *shard;
	uint64_t initiator_epoch, lane;
};

static void retire_on_loop(void *arg)
{
	struct retire_call *call = arg;
	struct mc_tcp_conn *c;

	mc_list_each (c, &call->shard->conns, link)
		if (c->mode == CONN_OURS && c->initiator_epoch == call->initiator_epoch &&
		    c->lane == call->lane)
			conn_close(c);
}

void mc_tcp_shard_end_lane(struct mc_tcp_shard *sh, uint64_t initiator_epoch, uint64_t lane)
{
	struct retire_call call = {.shard = sh, .initiator_epoch = initiator_epoch, .lane = lane};

	mc_loop_call(sh->loop, retire_on_loop, &call);
}
