/*
 * net_mail.c: messages to ranks of other hosts. The rings of p2p.c are as on one host: a rank's own
 * one for each receiver, and of each sender a copy here. The loop carries bytes from the one to the
 * other, and how much was taken back.
 */
#include <string.h>

#include "coll/net.h"

/* What the ring to this rank has that was not sent. On the loop. */
static void carry(struct mc_coll *g, struct mc_coll_peer *p)
{
	struct mc_coll_ring *r = &g->page->ring[p->slot];
	const uint8_t *ring = g->rings + (uint64_t)p->slot * MC_COLL_RING_LEN;
	uint8_t frame[8 + MC_COLL_RING_LEN];
	uint64_t head, from, len, first;
	struct mc_wr w;

	if (atomic_load_explicit(&r->inc, memory_order_acquire) != p->inc)
		return;
	/* acquire: the bytes below it */
	head = atomic_load_explicit(&r->head, memory_order_acquire);
	len = head - p->wire->ring_sent;
	if (len == 0 || len > MC_COLL_RING_LEN)
		return;
	from = p->wire->ring_sent % MC_COLL_RING_LEN;
	first = mc_min(len, MC_COLL_RING_LEN - from);
	w = mc_wr_make(frame, sizeof(frame));
	mc_wr_u64(&w, p->wire->ring_sent);
	mc_wr_bytes(&w, ring + from, first);
	mc_wr_bytes(&w, ring, len - first);
	p->wire->ring_sent = head;
	mc_coll_ctl_send(p, MC_COLL_CTL_RING, frame, mc_wr_len(&w));
}

/* Tell how much of its ring was taken. */
static void thank(struct mc_coll *g, struct mc_coll_peer *p)
{
	uint64_t tail = atomic_load_explicit(&p->page->ring[g->rank].tail, memory_order_acquire);
	uint8_t frame[8];
	struct mc_wr w = mc_wr_make(frame, sizeof(frame));

	if (tail == p->wire->ring_tail)
		return;
	p->wire->ring_tail = tail;
	mc_wr_u64(&w, tail);
	mc_coll_ctl_send(p, MC_COLL_CTL_TAIL, frame, sizeof(frame));
}

void mc_coll_net_mail_turn(struct mc_coll *g)
{
	for (uint32_t s = 0; s < g->ranks_max; s++) {
		struct mc_coll_peer *p = s == g->rank ? NULL : g->cur[s];

		if (!p || !p->wire || !p->wire->is_ctl_watched)
			continue;
		carry(g, p);
		thank(g, p);
	}
}

/* @return false: it broke the protocol */
static bool on_ring(struct mc_coll *g, struct mc_coll_peer *p, struct mc_rd *r)
{
	struct mc_coll_ring *ring = &p->page->ring[g->rank];
	uint8_t *bytes = p->rings + (uint64_t)g->rank * MC_COLL_RING_LEN;
	uint64_t at = mc_rd_u64(r), len = mc_rd_left(r), from, first;
	uint64_t head = atomic_load_explicit(&ring->head, memory_order_relaxed);
	/* acquire: taken, before it is overwritten */
	uint64_t tail = atomic_load_explicit(&ring->tail, memory_order_acquire);
	const uint8_t *src = mc_rd_bytes(r, len);

	if (r->is_bad || at != head || len > MC_COLL_RING_LEN - (head - tail))
		return false;
	from = head % MC_COLL_RING_LEN;
	first = mc_min(len, MC_COLL_RING_LEN - from);
	memcpy(bytes + from, src, first);
	memcpy(bytes, src + first, len - first);
	/* It comes on a connection to this incarnation only. */
	atomic_store_explicit(&ring->inc, g->inc, memory_order_release);
	/* release: the bytes, before their count */
	atomic_store_explicit(&ring->head, head + len, memory_order_release);
	mc_coll_mail_bell(g->page);
	return true;
}

void mc_coll_net_mail_frame(struct mc_coll_peer *p, enum mc_coll_ctl type, const uint8_t *bytes,
			    size_t len)
{
	struct mc_coll *g = p->coll;
	struct mc_rd r = mc_rd_make(bytes, len);
	bool is_good;

	if (type == MC_COLL_CTL_RING) {
		is_good = on_ring(g, p, &r);
	} else {
		uint64_t tail = mc_rd_u64(&r);

		is_good = mc_rd_is_done(&r) && mc_coll_mail_taken(g, p, tail);
	}
	if (!is_good)
		mc_coll_ctl_lost(p);
}

bool mc_coll_net_mail_is_sent(struct mc_coll *g, const struct mc_coll_peer *p)
{
	const struct mc_coll_ring *r = &g->page->ring[p->slot];

	return atomic_load_explicit(&r->inc, memory_order_acquire) != p->inc ||
	       atomic_load_explicit(&r->head, memory_order_acquire) == p->wire->ring_sent;
}
