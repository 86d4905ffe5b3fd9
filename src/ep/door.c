/*
 * door.c: connections between the ranks of an epoch: who calls whom.
 *
 * The higher slot calls the lower one's own port, and says a key that it has from the meeting.
 */
#include <errno.h>
#include <linux/sockios.h>
#include <poll.h>
#include <string.h>
#include <sys/ioctl.h>

#include "base/clock.h"
#include "base/mem.h"
#include "base/rand.h"
#include "coll/net.h"
#include "ep/net.h"

#define PORT_MIN 12001
#define PORT_MAX 17000
#define BACKLOG 128
#define GUESTS_MAX 256u
#define DRAIN_NS (2 * MC_NS_PER_S)

struct guest {
	struct mc_list link;
	struct mc_ep_net *net;
	struct mc_watch conn;
	uint8_t bytes[MC_EP_HEAD_LEN];
	size_t have;
	struct mc_ep_frame_head hello;
	bool is_known;
};

static struct mc_loop *loop_of(const struct mc_ep_net *net)
{
	return net->ep->coll->hub->loop;
}

/* ---- calling and being called ---- */

static void call(struct mc_ep_link *l, const struct mc_ep_door *door)
{
	const struct mc_coll *g = l->net->ep->coll;
	struct mc_ep_frame_head hello = {.type = MC_EP_FRAME_HELLO,
					 .slot = g->rank,
					 .word = l->net->epoch,
					 .a = door->key[0],
					 .b = door->key[1],
					 .c = g->inc};
	struct mc_ep_out *out = mc_ep_net_out(&hello, NULL, NULL);
	int fd;

	if (!out || mc_sock_connect(&door->at, NULL, &fd) < 0) {
		mc_ep_net_out_free(out);
		mc_ep_link_lost(l);
		return;
	}
	/* Before all that waits. */
	mc_list_push_back(&l->outs, &out->link);
	mc_ep_link_use(l, fd, false);
}

static void guest_free(struct guest *at, bool is_closed)
{
	mc_loop_unwatch(loop_of(at->net), &at->conn);
	if (is_closed)
		mc_fd_close(&at->conn.fd);
	mc_list_del(&at->link);
	at->net->nguests--;
	mc_free(at);
}

/* @return false: its epoch has not begun here */
static bool seat(struct guest *at)
{
	struct mc_ep_net *net = at->net;
	const struct mc_ep_frame_head *h = &at->hello;
	struct mc_ep_link *l;
	int fd = at->conn.fd;
	bool is_good;

	if (h->word > net->epoch)
		return false;
	l = &net->link[h->slot];
	is_good = h->word == net->epoch && (net->members & MC_COLL_BIT(h->slot)) &&
		  h->slot > net->ep->coll->rank && l->conn.fd < 0 &&
		  net->ep->peer[h->slot].p->inc == h->c;
	guest_free(at, !is_good);
	if (is_good)
		mc_ep_link_use(l, fd, true);
	return true;
}

static void on_guest(struct mc_watch *w, uint32_t events)
{
	struct guest *at = mc_container_of(w, struct guest, conn);
	const struct mc_ep_net *net = at->net;
	ssize_t n;

	(void)events;
	n = recv(w->fd, at->bytes + at->have, sizeof(at->bytes) - at->have, 0);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n <= 0) {
		guest_free(at, true);
		return;
	}
	at->have += (size_t)n;
	if (at->have < sizeof(at->bytes))
		return;
	if (mc_ep_head_read(at->bytes, &at->hello) < 0 || at->hello.type != MC_EP_FRAME_HELLO ||
	    at->hello.a != net->key[0] || at->hello.b != net->key[1] ||
	    at->hello.slot >= MC_COLL_RANKS_MAX) {
		guest_free(at, true);
		return;
	}
	at->is_known = true;
	if (seat(at))
		return;
	/* What follows its hello waits in the socket. */
	if (mc_loop_rewatch(loop_of(net), w, 0) < 0)
		guest_free(at, true);
}

/* Full: whoever has not said who it is goes first. */
static void make_room(struct mc_ep_net *net)
{
	struct guest *at;

	mc_list_each (at, &net->guests, link) {
		if (net->nguests >= GUESTS_MAX && !at->is_known)
			guest_free(at, true);
	}
}

static void on_accept(struct mc_watch *w, uint32_t events)
{
	struct mc_ep_net *net = mc_container_of(w, struct mc_ep_net, listener);
	struct mc_addr from;
	struct guest *at;
	int fd;

	(void)events;
	while (mc_sock_accept(w->fd, &fd, &from) == 0) {
		make_room(net);
		at = net->nguests < GUESTS_MAX ? mc_calloc(1, sizeof(*at)) : NULL;
		if (!at) {
			mc_fd_close(&fd);
			continue;
		}
		(void)mc_sock_nodelay(fd);
		at->net = net;
		at->conn = (struct mc_watch){.fd = fd, .events = EPOLLIN, .on_event = on_guest};
		mc_list_push_back(&net->guests, &at->link);
		net->nguests++;
		if (mc_loop_watch(loop_of(net), &at->conn) < 0)
			guest_free(at, true);
	}
}

/* ---- epochs ---- */

static void part_on_loop(void *arg)
{
	struct mc_ep_net *net = arg;
	unsigned q;

	mc_coll_each(q, net->members) mc_ep_link_hang_up(&net->link[q]);
	pthread_mutex_lock(&net->lock);
	net->members = net->left = 0;
	atomic_store_explicit(&net->broken, 0, memory_order_relaxed);
	memset(net->deal, 0, sizeof(net->deal));
	pthread_mutex_unlock(&net->lock);
}

void mc_ep_net_part(struct mc_ep *ep)
{
	mc_loop_call(ep->coll->hub->loop, part_on_loop, ep->net);
}

struct meeting {
	struct mc_ep_net *net;
	uint64_t members;
	const struct mc_ep_door *doors;
};

static void meet_on_loop(void *arg)
{
	const struct meeting *m = arg;
	struct mc_ep_net *net = m->net;
	struct guest *at;
	unsigned q;

	pthread_mutex_lock(&net->lock);
	net->epoch = net->ep->epoch;
	net->members = m->members & ~MC_COLL_BIT(net->ep->coll->rank);
	pthread_mutex_unlock(&net->lock);
	mc_coll_each(q, net->members & (MC_COLL_BIT(net->ep->coll->rank) - 1))
	    call(&net->link[q], &m->doors[q]);
	mc_list_each (at, &net->guests, link) {
		if (at->is_known)
			(void)seat(at);
	}
}

void mc_ep_net_meet(struct mc_ep *ep, uint64_t members, const struct mc_ep_door *doors)
{
	struct meeting m = {ep->net, members, doors};

	mc_loop_call(ep->coll->hub->loop, meet_on_loop, &m);
}

/* ---- life ---- */

static void listen_on_loop(void *arg)
{
	struct mc_ep_net *net = arg;

	net->listener.events = EPOLLIN;
	net->listener.on_event = on_accept;
	if (mc_loop_watch(loop_of(net), &net->listener) < 0)
		net->listener.on_event = NULL;
}

int mc_ep_net_open(struct mc_ep *ep, struct mc_diag *diag)
{
	struct mc_ep_net *net = mc_calloc(1, sizeof(*net));
	const struct mc_addr *host = &ep->coll->hub->port->at;
	int rc;

	if (!net)
		return -MC_E_NOMEM;
	ep->net = net;
	net->ep = ep;
	net->task.run = mc_ep_net_turn;
	net->listener.fd = -1;
	mc_list_init(&net->guests);
	pthread_mutex_init(&net->lock, NULL);
	for (unsigned q = 0; q < MC_COLL_RANKS_MAX; q++) {
		struct mc_ep_link *l = &net->link[q];

		l->net = net;
		l->slot = q;
		l->conn.fd = -1;
		mc_list_init(&l->pending);
		mc_list_init(&l->outs);
	}
	rc = mc_rand_bytes(net->key, sizeof(net->key));
	if (rc == 0)
		rc = mc_sock_listen_range(host, PORT_MIN, PORT_MAX, BACKLOG, &net->listener.fd,
					  &net->at);
	if (rc < 0) {
		mc_diag_set(diag, "a port for expert parallelism over hosts: %s", mc_err_text(rc));
		return rc;
	}
	mc_loop_call(loop_of(net), listen_on_loop, net);
	return net->listener.on_event ? 0 : -MC_E_LIMIT;
}

struct draining {
	struct mc_ep_net *net;
	bool is_empty;
};

/* The others' kernels have what was sent. */
static void look_at_outs(void *arg)
{
	struct draining *d = arg;
	unsigned q;

	d->is_empty = true;
	mc_ep_net_look(d->net);
	mc_coll_each(q, d->net->members)
	{
		const struct mc_ep_link *l = &d->net->link[q];
		int left = 0;

		if (l->conn.fd >= 0 && (!mc_list_is_empty(&l->outs) ||
					(ioctl(l->conn.fd, SIOCOUTQ, &left) == 0 && left)))
			d->is_empty = false;
	}
}

static void close_on_loop(void *arg)
{
	struct mc_ep_net *net = arg;
	struct guest *at;

	part_on_loop(net);
	mc_list_each (at, &net->guests, link)
		guest_free(at, true);
	if (net->listener.on_event)
		mc_loop_unwatch(loop_of(net), &net->listener);
	mc_fd_close(&net->listener.fd);
}

static void nothing(void *arg)
{
	(void)arg;
}

void mc_ep_net_close(struct mc_ep *ep)
{
	struct draining d = {.net = ep->net};
	uint64_t until_ns = mc_now_ns() + DRAIN_NS;

	if (!ep->net)
		return;
	if (!mc_fork_is_child(ep->fork_gen)) {
		pthread_mutex_lock(&ep->net->lock);
		for (unsigned s = 0; s < MC_EP_SLOTS; s++) {
			const struct mc_ep_deal *deal = &ep->net->deal[s];
			const struct mc_ep_frame_head final = {.type = MC_EP_FRAME_FINAL,
							       .slot = s,
							       .word = deal->decided,
							       .a = deal->ranks};

			if (deal->decided)
				mc_ep_net_send(ep->net, deal->wanted, &final);
		}
		mc_ep_deal_leave(ep->net);
		pthread_mutex_unlock(&ep->net->lock);
		/* No event tells of an acknowledgement. */
		while (mc_loop_call(loop_of(ep->net), look_at_outs, &d), !d.is_empty) {
			if (mc_now_ns() >= until_ns)
				break;
			(void)poll(NULL, 0, 1);
		}
		mc_loop_call(loop_of(ep->net), close_on_loop, ep->net);
		/* A turn that was on its way is over. */
		mc_loop_call(loop_of(ep->net), nothing, NULL);
	}
	pthread_mutex_destroy(&ep->net->lock);
	mc_free(ep->net);
	ep->net = NULL;
}
