/*
 * net_port.c: the hub's door for ranks of other hosts: a TCP port. Whoever comes says hello first:
 * which hub it means (by the random name in the hub's address, so a stranger's port is found out),
 * which group, who it is, and what the connection is for. A peer is several connections that belong
 * together; those for a group that is not open here yet are held until it is.
 */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "coll/net.h"

#define HELLO_MAGIC 0x314e434du /* "MCN1" */
#define VERSION 3u
#define GUESTS_MAX 4096u
#define HELLO_NS (10 * MC_NS_PER_S)
#define PORT_MIN 12001
#define PORT_MAX 17000
#define BACKLOG 512
#define AGAIN_MS 5 /* until a rank is called again that has another one in our slot */

struct guest {
	struct mc_list link;
	struct mc_coll_hub *hub;
	struct mc_watch conn;
	struct mc_timer late;
	uint8_t bytes[MC_COLL_HELLO_LEN];
	size_t have;
	struct mc_coll_hello hello; /* when all of it is there */
	bool is_known;
};

/* ---- frames ---- */

static void text_write(struct mc_wr *w, const char *text, size_t cap)
{
	char buf[MC_COLL_ADDR_MAX + 1] = {0};

	(void)mc_strlcpy(buf, cap, text);
	mc_wr_bytes(w, buf, cap);
}

static bool text_read(struct mc_rd *r, char *to, size_t cap)
{
	const uint8_t *at = mc_rd_bytes(r, cap);

	if (!at || at[cap - 1] != '\0')
		return false;
	memcpy(to, at, cap);
	return true;
}

void mc_coll_hello_write(struct mc_wr *w, const struct mc_coll_hello *h)
{
	static const uint8_t zeroes[MC_COLL_HELLO_LEN];

	mc_wr_u32(w, HELLO_MAGIC);
	mc_wr_u32(w, VERSION);
	mc_wr_u32(w, h->kind);
	mc_wr_u32(w, h->slot);
	mc_wr_u32(w, h->to_slot);
	mc_wr_u32(w, h->ranks_max);
	mc_wr_u64(w, h->inc);
	mc_wr_u64(w, h->to_inc);
	mc_wr_u64(w, h->scratch_max);
	text_write(w, h->hub, sizeof(h->hub));
	text_write(w, h->group, sizeof(h->group));
	text_write(w, h->address, sizeof(h->address));
	mc_wr_bytes(w, zeroes, MC_COLL_HELLO_LEN - mc_wr_len(w));
}

int mc_coll_hello_read(const uint8_t *bytes, struct mc_coll_hello *ret)
{
	struct mc_rd r = mc_rd_make(bytes, MC_COLL_HELLO_LEN);

	if (mc_rd_u32(&r) != HELLO_MAGIC)
		return -MC_E_PROTO;
	if (mc_rd_u32(&r) != VERSION)
		return -MC_E_VERSION;
	ret->kind = mc_rd_u32(&r);
	ret->slot = mc_rd_u32(&r);
	ret->to_slot = mc_rd_u32(&r);
	ret->ranks_max = mc_rd_u32(&r);
	ret->inc = mc_rd_u64(&r);
	ret->to_inc = mc_rd_u64(&r);
	ret->scratch_max = mc_rd_u64(&r);
	if (!text_read(&r, ret->hub, sizeof(ret->hub)) ||
	    !text_read(&r, ret->group, sizeof(ret->group)) ||
	    !text_read(&r, ret->address, sizeof(ret->address)) || ret->slot >= MC_COLL_RANKS_MAX ||
	    ret->kind < MC_COLL_CONN_DATA || ret->kind > MC_COLL_CONN_PING)
		return -MC_E_PROTO;
	return 0;
}

static void reply_write(uint8_t bytes[MC_COLL_REPLY_LEN], const struct mc_coll_reply *a)
{
	struct mc_wr w = mc_wr_make(bytes, MC_COLL_REPLY_LEN);

	memset(bytes, 0, MC_COLL_REPLY_LEN);
	mc_wr_u32(&w, HELLO_MAGIC);
	mc_wr_u32(&w, (uint32_t)-a->rc);
	mc_wr_u32(&w, a->slot);
	mc_wr_u32(&w, 0);
	mc_wr_u64(&w, a->inc);
}

int mc_coll_reply_read(const uint8_t *bytes, struct mc_coll_reply *ret)
{
	struct mc_rd r = mc_rd_make(bytes, MC_COLL_REPLY_LEN);
	uint32_t rc;

	if (mc_rd_u32(&r) != HELLO_MAGIC)
		return -MC_E_PROTO;
	rc = mc_rd_u32(&r);
	ret->rc = rc < 4096 ? -(int)rc : -MC_E_PROTO;
	ret->slot = mc_rd_u32(&r);
	(void)mc_rd_u32(&r);
	ret->inc = mc_rd_u64(&r);
	return 0;
}

/* ---- serving, on the loop ---- */

static void guest_free(struct guest *at)
{
	struct mc_loop *loop = at->hub->loop;

	mc_loop_timer_cancel(loop, &at->late);
	if (at->conn.on_event)
		mc_loop_unwatch(loop, &at->conn);
	mc_fd_close(&at->conn.fd);
	mc_list_del(&at->link);
	at->hub->port->nguests--;
	mc_free(at);
}

/* Answer; the connection is closed with it, unless its descriptor was taken over. */
static void answer(int fd, int rc, uint32_t slot, uint64_t inc)
{
	const struct mc_coll_reply a = {.rc = rc, .slot = slot, .inc = inc};
	uint8_t bytes[MC_COLL_REPLY_LEN];

	reply_write(bytes, &a);
	/* The first bytes on the connection: they fit, or it is gone and its owner will see. */
	(void)send(fd, bytes, sizeof(bytes), MSG_NOSIGNAL);
}

static int check(struct mc_coll *g, const struct mc_coll_hello *h)
{
	uint32_t asking;

	if (!g->net)
		return -MC_E_UNSUPPORTED;
	if (h->ranks_max != g->ranks_max || h->scratch_max != g->scratch_max ||
	    h->to_slot != g->rank || h->slot >= g->ranks_max || h->slot == g->rank || h->inc == 0)
		return -MC_E_INVAL;
	/* Both call each other: the call of the lower one counts. */
	asking = atomic_load_explicit(&g->net->asking, memory_order_acquire);
	if (asking == h->slot + 1 && g->rank < h->slot)
		return -MC_E_EXIST;
	if (mc_coll_seat_check(g, h->slot, h->inc) == 0)
		return 0;
	/* Whoever has the slot may be dead, and we the last to hear of it. */
	mc_coll_net_late(g, MC_COLL_BIT(h->slot));
	return -MC_E_EXIST;
}

/* Those that belong together, by kind - 1. @return false: one has not come yet */
static bool all_of(const struct guest *one, struct guest *ret[MC_COLL_CONNS])
{
	struct guest *at;
	unsigned n = 0;

	memset(ret, 0, MC_COLL_CONNS * sizeof(*ret));
	mc_list_each (at, &one->hub->port->guests, link) {
		if (!at->is_known || at->hello.kind > MC_COLL_CONNS ||
		    at->hello.slot != one->hello.slot || at->hello.inc != one->hello.inc ||
		    strcmp(at->hello.group, one->hello.group) != 0)
			continue;
		n += !ret[at->hello.kind - 1];
		ret[at->hello.kind - 1] = at; /* the last one, if it has called again */
	}
	return n == MC_COLL_CONNS;
}

static void refuse(struct guest *at, int rc)
{
	answer(at->conn.fd, rc, 0, 0);
	guest_free(at);
}

/* All connections of a rank are here, and the group is. */
static void let_in(struct mc_coll *g, struct guest *one)
{
	struct guest *all[MC_COLL_CONNS];
	int fds[MC_COLL_CONNS], rc = check(g, &one->hello);

	if (!all_of(one, all))
		return;
	for (int i = 0; i < MC_COLL_CONNS; i++) {
		mc_loop_unwatch(g->hub->loop, &all[i]->conn);
		all[i]->conn.on_event = NULL;
		fds[i] = all[i]->conn.fd;
		answer(fds[i], rc, g->rank, g->inc);
	}
	/* Whoever reads an answer and then finds the connection closed calls again. */
	if (rc == 0)
		(void)mc_coll_net_take(g, &one->hello, fds);
	for (int i = 0; i < MC_COLL_CONNS; i++) {
		all[i]->conn.fd = fds[i];
		guest_free(all[i]);
	}
}

static struct mc_coll *find(struct mc_coll_hub *hub, const char *name)
{
	struct mc_coll *g;

	mc_list_each (g, &hub->groups, hub_link) {
		if (strcmp(g->name, name) == 0)
			return g;
	}
	return NULL;
}

static void on_hello(struct guest *at)
{
	struct mc_coll_hub *hub = at->hub;
	struct mc_coll *g;
	int rc = mc_coll_hello_read(at->bytes, &at->hello);

	if (rc < 0 || strcmp(at->hello.hub, hub->id) != 0) {
		refuse(at, rc < 0 ? rc : -MC_E_AUTH);
		return;
	}
	at->is_known = true;
	g = find(hub, at->hello.group);
	if (at->hello.kind == MC_COLL_CONN_PING) {
		bool is_here = at->hello.to_inc == 0 || (g && g->inc == at->hello.to_inc);

		refuse(at, is_here ? 0 : -MC_E_NOENT);
		return;
	}
	/* One that waits is late by nobody's fault; it goes when its connection does. */
	mc_loop_timer_cancel(hub->loop, &at->late);
	if (g)
		let_in(g, at);
}

static void on_guest(struct mc_watch *w, uint32_t events)
{
	struct guest *at = mc_container_of(w, struct guest, conn);
	ssize_t n = 1;

	(void)events;
	while (at->have < sizeof(at->bytes)) {
		n = recv(w->fd, at->bytes + at->have, sizeof(at->bytes) - at->have, 0);
		if (n <= 0)
			break;
		at->have += (size_t)n;
	}
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n <= 0 || at->is_known) /* gone, or it talks before it is answered */
		guest_free(at);
	else
		on_hello(at);
}

static void on_late(struct mc_timer *t)
{
	guest_free(mc_container_of(t, struct guest, late));
}

static void on_accept(struct mc_watch *w, uint32_t events)
{
	struct mc_coll_port *port = mc_container_of(w, struct mc_coll_port, listener);
	struct mc_coll_hub *hub = port->hub;
	struct mc_addr from;
	struct guest *at;
	int fd;

	(void)events;
	while (port->nguests < GUESTS_MAX && mc_sock_accept(w->fd, &fd, &from) == 0) {
		at = mc_calloc(1, sizeof(*at));
		if (!at) {
			mc_fd_close(&fd);
			return;
		}
		(void)mc_sock_nodelay(fd);
		at->hub = hub;
		at->conn = (struct mc_watch){.fd = fd, .events = EPOLLIN, .on_event = on_guest};
		at->late.on_time = on_late;
		mc_list_push_back(&port->guests, &at->link);
		port->nguests++;
		if (mc_loop_watch(hub->loop, &at->conn) < 0) {
			at->conn.on_event = NULL;
			guest_free(at);
			continue;
		}
		(void)mc_loop_timer_set(hub->loop, &at->late, mc_loop_now(hub->loop) + HELLO_NS);
	}
}

void mc_coll_port_admit(struct mc_coll_hub *hub, struct mc_coll *g)
{
	struct guest *at, *all[MC_COLL_CONNS];
	bool is_again = true;

	/* Letting one in ends another that this walk may stand on. */
	while (is_again) {
		is_again = false;
		mc_list_each (at, &hub->port->guests, link) {
			if (!at->is_known || strcmp(at->hello.group, g->name) != 0 ||
			    !all_of(at, all))
				continue;
			let_in(g, at);
			is_again = true;
			break;
		}
	}
}

/* ---- life ---- */

int mc_coll_port_open(struct mc_coll_hub *hub, const char *ip, struct mc_diag *diag)
{
	struct mc_coll_port *port = mc_calloc(1, sizeof(*port));
	struct mc_addr host;
	int rc;

	if (!port)
		return -MC_E_NOMEM;
	hub->port = port;
	port->hub = hub;
	port->listener.fd = -1;
	mc_list_init(&port->guests);
	rc = ip[0] ? mc_addr_parse(ip, 0, &host) : mc_addr_default(AF_INET, &host);
	if (rc == 0)
		rc = mc_sock_listen_range(&host, PORT_MIN, PORT_MAX, BACKLOG, &port->listener.fd,
					  &port->at);
	if (rc < 0) {
		mc_diag_set(diag, "a port for ranks of other hosts at \"%s\": %s", ip,
			    mc_err_text(rc));
		return rc;
	}
	port->listener.events = EPOLLIN;
	port->listener.on_event = on_accept;
	return mc_loop_watch(hub->loop, &port->listener);
}

void mc_coll_port_close(struct mc_coll_hub *hub)
{
	struct guest *at;

	if (!hub->port)
		return;
	mc_list_each (at, &hub->port->guests, link)
		guest_free(at);
	if (hub->port->listener.on_event)
		mc_loop_unwatch(hub->loop, &hub->port->listener);
	mc_fd_close(&hub->port->listener.fd);
	mc_free(hub->port);
	hub->port = NULL;
}

/* ---- calling ---- */

static int call(const struct mc_addr *to, const struct mc_coll_hello *h, uint64_t deadline_ns,
		int *ret_fd)
{
	uint8_t bytes[MC_COLL_HELLO_LEN];
	struct mc_wr w = mc_wr_make(bytes, sizeof(bytes));
	int fd, rc = mc_sock_connect(to, NULL, &fd);

	if (rc < 0)
		return rc;
	rc = mc_sock_wait(fd, POLLOUT, deadline_ns);
	if (rc == 0)
		rc = mc_sock_connect_result(fd);
	if (rc == 0)
		rc = mc_sock_nodelay(fd);
	mc_coll_hello_write(&w, h);
	if (rc == 0)
		rc = mc_sock_send_all(fd, bytes, sizeof(bytes), deadline_ns);
	if (rc < 0)
		mc_fd_close(&fd);
	else
		*ret_fd = fd;
	return rc;
}

static int hear(int fd, uint64_t deadline_ns, struct mc_coll_reply *ret)
{
	uint8_t bytes[MC_COLL_REPLY_LEN];
	int rc = mc_sock_recv_all(fd, bytes, sizeof(bytes), deadline_ns);

	if (rc == 0)
		rc = mc_coll_reply_read(bytes, ret);
	return rc < 0 ? rc : ret->rc;
}

struct taking {
	struct mc_coll *g;
	struct mc_coll_hello hello;
	int fds[MC_COLL_CONNS], rc;
};

static void take_on_loop(void *arg)
{
	struct taking *t = arg;

	t->rc = mc_coll_net_take(t->g, &t->hello, t->fds);
}

/* Call for each connection, and hear that all were let in. */
static int introduce(struct taking *t, const struct mc_addr *to, struct mc_coll_hello *h,
		     uint64_t deadline_ns)
{
	struct mc_coll_reply reply = {0};
	int rc = 0;

	for (uint32_t i = 0; i < MC_COLL_CONNS && rc == 0; i++) {
		h->kind = MC_COLL_CONN_DATA + i;
		rc = call(to, h, deadline_ns, &t->fds[i]);
	}
	t->hello.inc = 0;
	for (uint32_t i = 0; i < MC_COLL_CONNS && rc == 0; i++) {
		rc = hear(t->fds[i], deadline_ns, &reply);
		if (rc == 0 && (reply.slot != h->to_slot || reply.inc == 0 ||
				(i > 0 && reply.inc != t->hello.inc)))
			rc = -MC_E_PROTO;
		t->hello.inc = reply.inc;
	}
	if (rc < 0)
		return rc;
	t->hello.slot = h->to_slot;
	mc_loop_call(t->g->hub->loop, take_on_loop, t);
	return t->rc;
}

int mc_coll_net_attach(struct mc_coll *g, uint32_t slot, const char *address, uint64_t deadline_ns,
		       struct mc_diag *diag)
{
	struct mc_coll_hello h = {.slot = g->rank,
				  .to_slot = slot,
				  .ranks_max = g->ranks_max,
				  .inc = g->inc,
				  .scratch_max = g->scratch_max};
	struct taking t = {.g = g, .fds = {-1, -1, -1}};
	struct mc_addr to;
	int rc = mc_coll_address_net(address, &to, h.hub, diag);

	if (rc < 0)
		return rc;
	(void)mc_strlcpy(h.group, sizeof(h.group), g->name);
	(void)mc_strlcpy(h.address, sizeof(h.address), g->hub->address);
	(void)mc_strlcpy(t.hello.address, sizeof(t.hello.address), address);
	do {
		atomic_store_explicit(&g->net->asking, slot + 1, memory_order_release);
		rc = introduce(&t, &to, &h, deadline_ns);
		atomic_store_explicit(&g->net->asking, 0, memory_order_release);
		for (int i = 0; i < MC_COLL_CONNS; i++)
			mc_fd_close(&t.fds[i]);
		/* It has called us meanwhile; or does not know yet that who had our slot is dead.
		 */
		if (rc == -MC_E_EXIST && mc_coll_ready(g) & MC_COLL_BIT(slot))
			return 0;
	} while (rc == -MC_E_EXIST && mc_now_ns() < deadline_ns && poll(NULL, 0, AGAIN_MS) == 0);
	if (rc < 0)
		mc_diag_set(diag, "rank %u of group %s at %s: %s", slot, g->name, address,
			    mc_err_text(rc));
	return rc;
}

int mc_coll_net_ask(const char *address, uint64_t deadline_ns)
{
	struct mc_coll_hello h = {.kind = MC_COLL_CONN_PING};
	struct mc_coll_reply reply;
	struct mc_addr to;
	int fd = -1, rc = mc_coll_address_net(address, &to, h.hub, NULL);

	if (rc == 0)
		rc = call(&to, &h, deadline_ns, &fd);
	if (rc == 0)
		rc = hear(fd, deadline_ns, &reply);
	mc_fd_close(&fd);
	return rc;
}
