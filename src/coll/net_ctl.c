/*
 * net_ctl.c: control frames between two ranks, on the loops of both: a head (what, how long) and a
 * body that somebody else understands. Queued in memory up to a limit; a connection that is lost
 * makes the loop ask whether its other end is alive.
 */
#include <errno.h>
#include <string.h>

#include "coll/net.h"

#define CTL_MAGIC 0x434e434du /* "MCNC" */
#define HEAD_LEN 16u

void mc_coll_ctl_lost(struct mc_coll_peer *p)
{
	mc_coll_ctl_stop(p);
	if (!atomic_exchange_explicit(&p->wire->is_link_down, true, memory_order_acq_rel))
		mc_coll_net_kick(p->coll);
}

static void flush(struct mc_coll_peer *p)
{
	struct mc_coll_wire *wire = p->wire;
	struct mc_str *out = &wire->ctl_out;
	bool is_empty;

	while (wire->ctl_sent < out->len) {
		ssize_t n = send(wire->ctl.fd, out->text + wire->ctl_sent,
				 out->len - wire->ctl_sent, MSG_NOSIGNAL);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
			break;
		if (n < 0) {
			mc_coll_ctl_lost(p);
			return;
		}
		wire->ctl_sent += (uint64_t)n;
	}
	is_empty = wire->ctl_sent == out->len;
	if (is_empty) {
		mc_str_reset(out);
		wire->ctl_sent = 0;
	}
	if (mc_loop_rewatch(p->coll->hub->loop, &wire->ctl,
			    EPOLLIN | (is_empty ? 0u : (uint32_t)EPOLLOUT)) < 0)
		mc_coll_ctl_lost(p);
}

void mc_coll_ctl_send(struct mc_coll_peer *p, enum mc_coll_ctl type, const void *data, size_t len)
{
	struct mc_coll_wire *wire = p->wire;
	uint8_t head[HEAD_LEN];
	struct mc_wr w = mc_wr_make(head, sizeof(head));

	if (!wire->is_ctl_watched)
		return;
	mc_wr_u32(&w, CTL_MAGIC);
	mc_wr_u32(&w, (uint32_t)type);
	mc_wr_u64(&w, len);
	(void)mc_str_append(&wire->ctl_out, head, sizeof(head));
	/* An error stays: the connection ends, as something is missing from it. */
	if (mc_str_append(&wire->ctl_out, data, len) < 0)
		mc_coll_ctl_lost(p);
	else
		flush(p);
}

static void dispatch(struct mc_coll_peer *p, uint32_t type, const uint8_t *bytes, size_t len)
{
	switch (type) {
	case MC_COLL_CTL_TOLD:
		mc_coll_agree_told(p, bytes, len);
		break;
	case MC_COLL_CTL_GATE:
	case MC_COLL_CTL_STATE:
	case MC_COLL_CTL_CHANGE:
	case MC_COLL_CTL_WRITTEN:
	case MC_COLL_CTL_OPEN:
		mc_coll_view_frame(p, (enum mc_coll_ctl)type, bytes, len);
		break;
	case MC_COLL_CTL_LENT:
		atomic_store_explicit(&p->wire->is_lent, true, memory_order_release);
		break;
	default:
		mc_coll_ctl_lost(p);
	}
}

/* @return bytes read; 0: no more now, or the end */
static size_t take(struct mc_coll_peer *p, uint8_t *to, uint64_t len)
{
	ssize_t n;

	do {
		n = recv(p->wire->ctl.fd, to, len, 0);
	} while (n < 0 && errno == EINTR);
	if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
		return 0;
	if (n <= 0)
		mc_coll_ctl_lost(p);
	return n <= 0 ? 0 : (size_t)n;
}

/* @return false: wait for more, or it is lost */
static bool read_head(struct mc_coll_peer *p, uint32_t *ret_type, uint64_t *ret_len)
{
	struct mc_coll_wire *wire = p->wire;
	struct mc_rd r = mc_rd_make(wire->ctl_head, HEAD_LEN);

	while (wire->ctl_head_have < HEAD_LEN) {
		size_t n =
		    take(p, wire->ctl_head + wire->ctl_head_have, HEAD_LEN - wire->ctl_head_have);

		if (n == 0)
			return false;
		wire->ctl_head_have += (uint32_t)n;
	}
	if (mc_rd_u32(&r) != CTL_MAGIC) {
		mc_coll_ctl_lost(p);
		return false;
	}
	*ret_type = mc_rd_u32(&r);
	*ret_len = mc_rd_u64(&r);
	if (*ret_len <= MC_COLL_CTL_MAX && !wire->ctl_body)
		wire->ctl_body = mc_calloc(1, *ret_len + 1);
	if (!wire->ctl_body)
		mc_coll_ctl_lost(p);
	return wire->ctl_body != NULL;
}

static void on_ctl(struct mc_watch *w, uint32_t events)
{
	struct mc_coll_wire *wire = mc_container_of(w, struct mc_coll_wire, ctl);
	struct mc_coll_peer *p = wire->p;
	uint32_t type;
	uint64_t len;

	if (events & EPOLLOUT)
		flush(p);
	while (wire->is_ctl_watched && read_head(p, &type, &len)) {
		uint8_t *body;

		while (wire->is_ctl_watched && wire->ctl_body_have < len) {
			size_t n = take(p, wire->ctl_body + wire->ctl_body_have,
					len - wire->ctl_body_have);

			if (n == 0)
				return;
			wire->ctl_body_have += n;
		}
		body = wire->ctl_body;
		wire->ctl_body = NULL;
		wire->ctl_head_have = 0;
		wire->ctl_body_have = 0;
		dispatch(p, type, body, len);
		mc_free(body);
	}
}

void mc_coll_ctl_start(struct mc_coll_peer *p)
{
	struct mc_coll_wire *wire = p->wire;

	wire->ctl.events = EPOLLIN;
	wire->ctl.on_event = on_ctl;
	wire->is_ctl_watched = mc_loop_watch(p->coll->hub->loop, &wire->ctl) == 0;
	if (!wire->is_ctl_watched)
		mc_coll_ctl_lost(p);
}

void mc_coll_ctl_stop(struct mc_coll_peer *p)
{
	if (p->wire->is_ctl_watched)
		mc_loop_unwatch(p->coll->hub->loop, &p->wire->ctl);
	p->wire->is_ctl_watched = false;
}

void mc_coll_ctl_drain(struct mc_coll_peer *p)
{
	if (p->wire->is_ctl_watched)
		on_ctl(&p->wire->ctl, EPOLLIN);
}
