/*
 * tcp_classic_conn.c: an inbound connection of an upstream peer: its requests, our checks. See
 * tcp_classic.h for the frames.
 *
 * Such a peer names absolute addresses, so a range is granted if some registered region holds it
 * whole at that moment; there is no generation to compare. A version 1 peer that is refused cannot
 * be told: its connection is closed.
 */
#include "xport/tcp_classic.h"
#include "xport/tcp_conn.h"

void mc_tcp_classic_answer(struct mc_tcp_conn *c)
{
	if (c->is_v2) {
		mc_classic_status_encode(c->txhead, c->refusal < 0 ? MC_CLASSIC_REFUSED : 0);
		c->tx.v[0] =
		    (struct iovec){.iov_base = c->txhead, .iov_len = MC_CLASSIC_STATUS_BYTES};
		if (c->tx.n == 0)
			c->tx.n = 1;
		c->tx.left += MC_CLASSIC_STATUS_BYTES;
	} else if (c->refusal < 0) {
		c->is_last = true;
	}
	c->step = STEP_REPLY;
	if (c->tx.left == 0 && !c->is_last)
		c->step = STEP_HEAD;
}

int mc_tcp_classic_head(struct mc_tcp_conn *c)
{
	struct mc_tcp_dev *dev = c->shard->dev;
	struct mc_classic_head h;
	uint32_t id;
	int rc = mc_tcp_conn_want(c, MC_CLASSIC_HEAD_BYTES);

	if (rc <= 0)
		return rc;
	rc = mc_classic_head_decode(c->buf + c->at, &h);
	if (rc < 0)
		return rc;
	c->at += MC_CLASSIC_HEAD_BYTES;
	mc_list_del(&c->fresh_link);
	c->req = (struct mc_tcp_req){.op = h.op, .nfrags = 1, .len = h.len};
	c->is_v2 = h.is_v2;
	c->signal = NULL;
	mc_iovq_reset(&c->rx);
	mc_iovq_reset(&c->tx);
	c->tx.v[0] = (struct iovec){c->txhead, 0}; /* the status's */
	c->tx.n = h.op == MC_OP_READ ? 1 : 0;
	c->refusal = 0;
	if (h.len > 0)
		c->refusal =
		    mc_region_pin_addr(dev->env.regions, h.addr, h.len,
				       h.op == MC_OP_READ ? MC_RIGHT_READ : MC_RIGHT_WRITE, &id);
	if (c->refusal == 0 && h.len > 0) {
		c->pins[c->npins++] = id;
		mc_iovq_push(h.op == MC_OP_READ ? &c->tx : &c->rx, (void *)(uintptr_t)h.addr,
			     h.len);
	}
	if (c->refusal < 0)
		atomic_fetch_add_explicit(&dev->refused, 1, memory_order_relaxed);
	else if (h.op == MC_OP_READ)
		atomic_fetch_add_explicit(&dev->bytes[h.op], h.len, memory_order_relaxed);
	atomic_fetch_add_explicit(&dev->requests[h.op], 1, memory_order_relaxed);
	if (h.op == MC_OP_READ)
		mc_tcp_classic_answer(c);
	else
		mc_tcp_conn_body(c);
	return 1;
}
