/*
 * net_probe.c: is a rank's process dead? Its host is asked by calling the hub's port: "refused" is
 * the kernel's word that nobody listens there any more, and so is an answer of somebody else, or of
 * the same process that the group is not open any more. A connection without an answer is a slow
 * process: it is waited for. No connection at all for a while is a silent host, which proves
 * nothing. One that answers though our connections to it broke is as good as silent.
 */
#include <errno.h>
#include <string.h>

#include "base/clock.h"
#include "coll/net.h"

#define AGAIN_NS (20 * MC_NS_PER_MS)

struct mc_coll_probe {
	struct mc_coll_wire *wire;
	struct mc_watch conn;
	struct mc_timer timer; /* silent, or call again */
	uint64_t number;
	uint64_t until_ns; /* silent from then on */
	bool is_up;
	uint8_t bytes[MC_COLL_REPLY_LEN];
	size_t have;
};

static struct mc_loop *loop_of(const struct mc_coll_probe *b)
{
	return b->wire->p->coll->hub->loop;
}

static void hang_up(struct mc_coll_probe *b)
{
	if (b->conn.fd >= 0)
		mc_loop_unwatch(loop_of(b), &b->conn);
	mc_fd_close(&b->conn.fd);
	b->is_up = false;
	b->have = 0;
}

void mc_coll_probe_stop(struct mc_coll_wire *wire)
{
	struct mc_coll_probe *b = wire->probe;

	if (!b)
		return;
	mc_loop_timer_cancel(loop_of(b), &b->timer);
	hang_up(b);
	wire->probe = NULL;
	mc_free(b);
}

void mc_coll_fate_set(struct mc_coll_peer *p, enum mc_coll_fate fate)
{
	mc_coll_ctl_drain(p);
	/* release: whoever sees it has what came before */
	atomic_store_explicit(&p->wire->fate, (int)fate, memory_order_release);
	mc_coll_net_kick(p->coll);
	mc_coll_stir(p->coll);
}

static void verdict(struct mc_coll_probe *b, enum mc_coll_fate fate)
{
	struct mc_coll_wire *wire = b->wire;
	uint64_t number = b->number;

	mc_coll_probe_stop(wire);
	if (fate == MC_COLL_LIVES &&
	    atomic_load_explicit(&wire->is_link_down, memory_order_acquire))
		fate = MC_COLL_SILENT;
	if (fate != MC_COLL_LIVES) {
		mc_coll_fate_set(wire->p, fate);
		return;
	}
	atomic_store_explicit(&wire->lived, number, memory_order_release);
	mc_coll_stir(wire->p->coll);
}

static void dial(struct mc_coll_probe *b);

static void again(struct mc_coll_probe *b)
{
	hang_up(b);
	(void)mc_loop_timer_set(loop_of(b), &b->timer, mc_loop_now(loop_of(b)) + AGAIN_NS);
}

static void on_time(struct mc_timer *t)
{
	struct mc_coll_probe *b = mc_container_of(t, struct mc_coll_probe, timer);

	if (mc_loop_now(loop_of(b)) >= b->until_ns)
		verdict(b, MC_COLL_SILENT);
	else if (b->conn.fd < 0)
		dial(b);
	else
		(void)mc_loop_timer_set(loop_of(b), t, b->until_ns);
}

/* It is up: who are you? */
static void ask(struct mc_coll_probe *b)
{
	struct mc_coll_peer *p = b->wire->p;
	struct mc_coll_hello h = {
	    .kind = MC_COLL_CONN_PING, .slot = p->coll->rank, .to_slot = p->slot, .to_inc = p->inc};
	uint8_t bytes[MC_COLL_HELLO_LEN];
	struct mc_wr w = mc_wr_make(bytes, sizeof(bytes));
	struct mc_addr at;

	b->is_up = true;
	/* Its kernel answers: from here on it is slow, not silent. */
	mc_loop_timer_cancel(loop_of(b), &b->timer);
	if (mc_coll_address_net(b->wire->address, &at, h.hub, NULL) < 0)
		return;
	(void)mc_strlcpy(h.group, sizeof(h.group), p->coll->name);
	mc_coll_hello_write(&w, &h);
	/* The first bytes of the connection: they fit, or it is gone, which is seen below. */
	(void)send(b->conn.fd, bytes, sizeof(bytes), MSG_NOSIGNAL);
	if (mc_loop_rewatch(loop_of(b), &b->conn, EPOLLIN) < 0)
		again(b);
}

static void on_answer(struct mc_coll_probe *b)
{
	struct mc_coll_reply reply;
	int rc = mc_coll_reply_read(b->bytes, &reply);

	if (rc < 0) /* a stranger at its port */
		verdict(b, MC_COLL_DEAD);
	else
		verdict(b, reply.rc == 0 ? MC_COLL_LIVES : MC_COLL_DEAD);
}

static void on_conn(struct mc_watch *w, uint32_t events)
{
	struct mc_coll_probe *b = mc_container_of(w, struct mc_coll_probe, conn);
	ssize_t n;
	int rc;

	(void)events;
	if (!b->is_up) {
		rc = mc_sock_connect_result(w->fd);
		if (rc == 0)
			ask(b);
		else if (rc == -MC_E_REFUSED)
			verdict(b, MC_COLL_DEAD);
		else
			again(b);
		return;
	}
	n = recv(w->fd, b->bytes + b->have, sizeof(b->bytes) - b->have, 0);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	/* Ended without an answer: it dies just now, and the next call will tell. */
	if (n <= 0) {
		again(b);
		return;
	}
	b->have += (size_t)n;
	if (b->have == sizeof(b->bytes))
		on_answer(b);
}

static void dial(struct mc_coll_probe *b)
{
	char hub[MC_COLL_HUB_ID_MAX];
	struct mc_addr to;
	int rc = mc_coll_address_net(b->wire->address, &to, hub, NULL);

	if (rc == 0)
		rc = mc_sock_connect(&to, NULL, &b->conn.fd);
	if (rc == -MC_E_REFUSED) {
		verdict(b, MC_COLL_DEAD);
		return;
	}
	if (rc == 0) {
		b->conn.events = EPOLLOUT;
		b->conn.on_event = on_conn;
		rc = mc_loop_watch(loop_of(b), &b->conn);
		if (rc < 0)
			mc_fd_close(&b->conn.fd);
	}
	if (rc < 0)
		again(b);
	else
		(void)mc_loop_timer_set(loop_of(b), &b->timer, b->until_ns);
}

void mc_coll_probe(struct mc_coll_peer *p)
{
	struct mc_coll_probe *b;

	if (p->wire->probe)
		return;
	b = mc_calloc(1, sizeof(*b));
	if (!b) /* asked again at the next look */
		return;
	p->wire->probe = b;
	b->wire = p->wire;
	b->number = ++p->wire->nprobes;
	b->conn.fd = -1;
	b->timer.on_time = on_time;
	b->until_ns = mc_loop_now(p->coll->hub->loop) + p->coll->net->silent_ns;
	dial(b);
}

uint64_t mc_coll_probe_anew(struct mc_coll_peer *p)
{
	uint64_t number = p->wire->nprobes + 1;

	mc_coll_probe_stop(p->wire);
	mc_coll_probe(p);
	if (!p->wire->probe) /* no memory: at the next look */
		mc_coll_net_late(p->coll, MC_COLL_BIT(p->slot));
	return number;
}
