/*
 * net.c: what a group over hosts has besides its pages: its peers' connections, the ways to wake
 * the operation's thread and the loop, its end.
 */
#include "coll/net.h"

#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/clock.h"
#include "coll/shmem.h"

void mc_coll_net_wake(struct mc_coll *g)
{
	const uint64_t one = 1;

	/* Full: it wakes anyway. */
	if (write(g->net->wake_fd, &one, sizeof(one)) < 0)
		return;
}

void mc_coll_net_break(struct mc_coll *g, int rc)
{
	int none = 0;

	(void)atomic_compare_exchange_strong_explicit(&g->net->broken, &none, rc,
						      memory_order_acq_rel, memory_order_relaxed);
	mc_coll_stir(g);
}

/* ---- the loop's turn ---- */

/* Whoever is waited for too long, or whose connections broke, is asked for a sign of life. */
static void look_after(struct mc_coll *g, uint64_t late)
{
	struct mc_coll_peer *p;

	/* Whoever has to tell of the dead may be silent, too. */
	if (late && atomic_load_explicit(&g->net->is_frozen, memory_order_acquire))
		late = UINT64_MAX;
	mc_list_each (p, &g->peers, link) {
		struct mc_coll_wire *wire = p->wire;

		bool is_down;

		if (!wire ||
		    atomic_load_explicit(&wire->fate, memory_order_relaxed) != MC_COLL_LIVES)
			continue;
		is_down = atomic_load_explicit(&wire->is_link_down, memory_order_acquire);
		if (is_down && mc_coll_peer_is_gone(p)) /* it had said so */
			mc_coll_fate_set(p, MC_COLL_DEAD);
		else if (is_down || late & MC_COLL_BIT(p->slot))
			mc_coll_probe(p);
	}
}

static void on_kick(struct mc_task *t)
{
	struct mc_coll_net *net = mc_container_of(t, struct mc_coll_net, kick);

	if (net->is_stopped)
		return; /* and kicked for good */
	/* acquire: what was to be seen before the kick. Another kick comes for what is after. */
	(void)atomic_exchange_explicit(&net->is_kicked, false, memory_order_acq_rel);
	look_after(net->g, atomic_exchange_explicit(&net->late, 0, memory_order_acq_rel));
	mc_coll_agree_turn(net->g);
	mc_coll_view_turn(net->g);
}

void mc_coll_net_kick(struct mc_coll *g)
{
	if (!atomic_exchange_explicit(&g->net->is_kicked, true, memory_order_acq_rel))
		mc_loop_post(g->hub->loop, &g->net->kick);
}

void mc_coll_net_late(struct mc_coll *g, uint64_t slots)
{
	atomic_fetch_or_explicit(&g->net->late, slots, memory_order_relaxed);
	mc_coll_net_kick(g);
}

/* ---- peers ---- */

void mc_coll_wire_free(struct mc_coll_wire *wire)
{
	struct mc_coll_out *out;
	int near_fd;

	if (!wire)
		return;
	mc_list_each (out, &wire->outs, link)
		mc_coll_out_free(out);
	mc_fd_close(&wire->data_fd);
	mc_fd_close(&wire->ctl.fd);
	mc_fd_close(&wire->mail_fd);
	near_fd = atomic_load_explicit(&wire->near_fd, memory_order_relaxed);
	mc_fd_close(&near_fd);
	mc_coll_shmem_unmap(wire->near_page, MC_COLL_PAGE_LEN);
	mc_coll_shmem_unmap(wire->near_area, wire->near_len);
	mc_free(wire->round_buf);
	mc_free(wire->rx.bytes);
	mc_free(wire->mail_rx.bytes);
	mc_free(wire->ctl_body);
	mc_free(wire->told);
	mc_str_fini(&wire->ctl_out);
	mc_free(wire);
}

static void *memory(uint64_t len)
{
	void *at = mmap(NULL, len, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return at == MAP_FAILED ? NULL : at;
}

/* The page that it will fill. */
static int peer_make(struct mc_coll *g, const struct mc_coll_hello *h, struct mc_coll_peer **ret)
{
	struct mc_coll_peer *p = mc_calloc(1, sizeof(*p));

	if (!p)
		return -MC_E_NOMEM;
	p->coll = g;
	p->slot = h->slot;
	p->inc = h->inc;
	p->fd = p->pid.fd = -1;
	p->page = memory(MC_COLL_PAGE_LEN);
	p->wire = mc_calloc(1, sizeof(*p->wire));
	if (p->wire) {
		mc_list_init(&p->wire->outs);
		mc_str_init(&p->wire->ctl_out, MC_COLL_OUT_MAX);
		p->wire->p = p;
		p->wire->data_fd = p->wire->ctl.fd = p->wire->mail_fd = -1;
		atomic_store_explicit(&p->wire->near_fd, -1, memory_order_relaxed);
		p->wire->round_buf = mc_calloc(1, MC_COLL_ROUND_MAX);
		p->wire->rx.bytes = mc_calloc(1, MC_COLL_RX_LEN);
		p->wire->mail_rx.bytes = mc_calloc(1, MC_COLL_RX_LEN);
		(void)mc_strlcpy(p->wire->address, sizeof(p->wire->address), h->address);
	}
	if (!p->page || !p->wire || !p->wire->round_buf || !p->wire->rx.bytes ||
	    !p->wire->mail_rx.bytes) {
		mc_coll_peer_free(p);
		return -MC_E_NOMEM;
	}
	p->page->magic = MC_COLL_MAGIC;
	p->page->inc = h->inc;
	p->page->slot = h->slot;
	p->page->ranks_max = g->ranks_max;
	*ret = p;
	return 0;
}

int mc_coll_net_take(struct mc_coll *g, const struct mc_coll_hello *h, int fds[MC_COLL_CONNS])
{
	struct mc_coll_peer *p;
	int rc = peer_make(g, h, &p);

	if (rc < 0)
		return rc;
	p->wire->data_fd = fds[MC_COLL_CONN_DATA - 1];
	p->wire->ctl.fd = fds[MC_COLL_CONN_CTL - 1];
	p->wire->mail_fd = fds[MC_COLL_CONN_MAIL - 1];
	rc = mc_coll_peer_seat(g, p);
	if (rc != 0) {
		p->wire->data_fd = p->wire->ctl.fd = p->wire->mail_fd = -1;
		mc_coll_peer_free(p);
		return rc > 0 ? 0 : rc;
	}
	for (int i = 0; i < MC_COLL_CONNS; i++)
		fds[i] = -1;
	mc_coll_ctl_start(p);
	return 0;
}

int mc_coll_net_lent(struct mc_coll *g, uint32_t slot, uint64_t inc, int *fd)
{
	struct mc_coll_page *page;
	struct mc_coll_peer *p, *found = NULL;
	void *at;
	int rc;

	mc_list_each (p, &g->peers, link)
		if (p->wire && p->slot == slot && p->inc == inc)
			found = p;
	if (!found)
		return -MC_E_NOENT;
	if (atomic_load_explicit(&found->wire->near_fd, memory_order_relaxed) >= 0)
		return -MC_E_EXIST;
	rc = mc_coll_shmem_map(*fd, 0, MC_COLL_PAGE_LEN, &at);
	if (rc < 0)
		return rc;
	page = at;
	if (page->magic != MC_COLL_MAGIC || page->inc != inc) {
		mc_coll_shmem_unmap(at, MC_COLL_PAGE_LEN);
		return -MC_E_PROTO;
	}
	found->wire->near_page = page;
	/* release: the page, for the operation's thread */
	atomic_store_explicit(&found->wire->near_fd, *fd, memory_order_release);
	*fd = -1;
	mc_coll_ctl_send(found, MC_COLL_CTL_LENT, NULL, 0);
	return 0;
}

/* ---- life ---- */

int mc_coll_net_open(struct mc_coll *g)
{
	struct mc_coll_net *net = mc_calloc(1, sizeof(*net));

	if (!net)
		return -MC_E_NOMEM;
	net->g = g;
	net->kick.run = on_kick;
	net->silent_ns = g->hub->silent_ns;
	pthread_mutex_init(&net->lock, NULL);
	net->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	net->mail_wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	g->net = net;
	return net->wake_fd < 0 || net->mail_wake_fd < 0 ? -MC_E_LIMIT : 0;
}

void mc_coll_net_stop(struct mc_coll *g)
{
	struct mc_coll_peer *p;

	g->net->is_stopped = true;
	atomic_store_explicit(&g->net->is_kicked, true, memory_order_release); /* no more of them */
	mc_coll_view_stop(g);
	mc_list_each (p, &g->peers, link) {
		if (!p->wire)
			continue;
		mc_coll_ctl_stop(p);
		mc_coll_probe_stop(p->wire);
	}
}

static void pass(void *arg)
{
	(void)arg;
}

void mc_coll_net_close(struct mc_coll *g)
{
	if (!g->net)
		return;
	mc_loop_call(g->hub->loop, pass, NULL); /* a kick that was on its way is over */
	mc_fd_close(&g->net->wake_fd);
	mc_fd_close(&g->net->mail_wake_fd);
	pthread_mutex_destroy(&g->net->lock);
	mc_free(g->net);
	g->net = NULL;
}
