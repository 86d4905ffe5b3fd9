/*
 * net_send.c: what a rank shows, sent: frames in the order in which its words grew.
 *
 *	ROUND  the call, its parts, and the bytes if they are few (as they stand in the page)
 *	CHUNK  bytes of the area, or of the caller's memory
 *	WORD   nothing but progress
 *	BYE    this rank leaves; its word is final
 *
 * What does not fit into a socket stays where it is (an area is not used again before the others
 * have read it, an operation does not end before the caller's memory is sent) and goes later.
 */
#include <errno.h>
#include <linux/sockios.h>
#include <poll.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/uio.h>

#include "base/clock.h"
#include "coll/net.h"

#define DRAIN_NS (2 * MC_NS_PER_S) /* for those who leave: of others that do not read */

/* ---- content of a page ---- */

void mc_coll_content_write(struct mc_wr *w, const struct mc_coll_page *page, unsigned parity,
			   uint32_t ranks_max)
{
	const struct mc_coll_call *c = &page->call[parity];
	uint64_t factor;

	memcpy(&factor, &c->factor, sizeof(factor));
	mc_wr_u8(w, c->kind);
	mc_wr_u8(w, c->type);
	mc_wr_u8(w, c->reduce);
	mc_wr_u8(w, c->root);
	mc_wr_u32(w, c->rounds);
	mc_wr_u32(w, c->nin);
	mc_wr_u8(w, c->before.kind);
	mc_wr_u8(w, c->before.type);
	mc_wr_u8(w, c->before.reduce);
	mc_wr_u8(w, c->before.root);
	mc_wr_u64(w, c->before.count);
	mc_wr_u64(w, factor);
	mc_wr_u64(w, c->len);
	mc_wr_u64(w, c->count);
	for (uint32_t i = 0; c->nin > 1 && i < ranks_max; i++)
		mc_wr_u64(w, page->part_len[parity][i]);
	if (c->len <= MC_COLL_SMALL)
		mc_wr_bytes(w, page->small[parity], c->len);
}

/* ---- sending ---- */

static void head_write(uint8_t to[MC_COLL_HEAD_LEN], const struct mc_coll_head *h)
{
	struct mc_wr w = mc_wr_make(to, MC_COLL_HEAD_LEN);

	mc_wr_u32(&w, MC_COLL_FRAME_MAGIC);
	mc_wr_u32(&w, h->type);
	mc_wr_u64(&w, h->word);
	mc_wr_u64(&w, h->at);
	mc_wr_u64(&w, h->len);
	mc_wr_u64(&w, 0);
}

void mc_coll_out_free(struct mc_coll_out *out)
{
	mc_free(out->own);
	mc_free(out);
}

/* Nothing goes to it any more. */
static void tx_lost(struct mc_coll_wire *wire)
{
	struct mc_coll_out *out;

	mc_list_each (out, &wire->outs, link) {
		mc_list_del(&out->link);
		mc_coll_out_free(out);
	}
	if (!atomic_exchange_explicit(&wire->is_link_down, true, memory_order_acq_rel))
		mc_coll_net_kick(wire->p->coll);
}

static bool can_send(const struct mc_coll_wire *wire)
{
	return wire->data_fd >= 0 && !mc_coll_peer_is_lost(wire->p) &&
	       !atomic_load_explicit(&wire->is_link_down, memory_order_acquire);
}

void mc_coll_touch(uint8_t *at, uint64_t len, bool is_write)
{
	_Atomic uint8_t *byte = (_Atomic uint8_t *)at; /* an access that is not optimized away */

	for (uint64_t i = 0; i < len; i++) {
		if (is_write)
			atomic_fetch_or(&byte[i], 0);
		else
			(void)atomic_load(&byte[i]);
	}
}

/* @return bytes the socket took, perhaps 0; < 0: it is lost */
static ssize_t push(int fd, const uint8_t *head, uint64_t head_len, const uint8_t *body,
		    uint64_t len, uint64_t sent, int flags)
{
	struct iovec iov[2];
	struct msghdr msg = {.msg_iov = iov};
	ssize_t n;

	if (sent < head_len)
		iov[msg.msg_iovlen++] =
		    (struct iovec){(uint8_t *)head + sent, head_len - sent}; /* only read */
	if (len > head_len) {
		uint64_t at = sent > head_len ? sent - head_len : 0;

		iov[msg.msg_iovlen++] =
		    (struct iovec){(uint8_t *)body + at, len - head_len - at}; /* only read */
	}
	do {
		n = sendmsg(fd, &msg, MSG_NOSIGNAL | flags);
	} while (n < 0 && errno == EINTR);
	if (n < 0 && errno == EFAULT)
		mc_coll_touch(iov[msg.msg_iovlen - 1].iov_base, iov[msg.msg_iovlen - 1].iov_len,
			      false);
	return n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK) ? 0 : n;
}

void mc_coll_wire_flush(struct mc_coll_wire *wire)
{
	struct mc_coll_out *out;

	if (mc_list_is_empty(&wire->outs))
		return;
	if (!can_send(wire)) {
		tx_lost(wire);
		return;
	}
	while ((out = mc_list_first(&wire->outs, struct mc_coll_out, link)) != NULL) {
		ssize_t n = push(wire->data_fd, out->head, out->head_len, out->body, out->len,
				 out->sent, 0);

		if (n < 0) {
			tx_lost(wire);
			return;
		}
		out->sent += (uint64_t)n;
		if (out->sent < out->len)
			return;
		mc_list_del(&out->link);
		mc_coll_out_free(out);
	}
}

/* `head` is copied where it has to wait, `body` stays where it is. MSG_MORE: another follows. */
static void send_frame(struct mc_coll_wire *wire, const uint8_t *head, uint64_t head_len,
		       const uint8_t *body, uint64_t body_len, int flags)
{
	struct mc_coll_out *out;
	ssize_t n = 0;

	if (!can_send(wire))
		return;
	mc_coll_wire_flush(wire);
	if (mc_list_is_empty(&wire->outs))
		n = push(wire->data_fd, head, head_len, body, head_len + body_len, 0, flags);
	if (n < 0) {
		tx_lost(wire);
		return;
	}
	if ((uint64_t)n == head_len + body_len)
		return;
	out = mc_calloc(1, sizeof(*out) + head_len);
	if (!out) { /* a hole in the stream would be worse */
		tx_lost(wire);
		return;
	}
	memcpy(out->head, head, head_len);
	out->head_len = head_len;
	out->body = body;
	out->len = head_len + body_len;
	out->sent = (uint64_t)n;
	mc_list_push_back(&wire->outs, &out->link);
}

/* Of bytes [at, at + len) of the area: what the rank in `slot` needs of them. */
static void clip(const struct mc_coll *g, const struct mc_coll_call *c, unsigned parity,
		 unsigned slot, uint64_t *at, uint64_t *len)
{
	uint64_t from = 0, to, end = *at + *len;

	if (c->kind == MC_COLL_GATHER || c->kind == MC_COLL_REDUCE) {
		*len = slot == c->root ? *len : 0;
		return;
	}
	if (c->nin <= 1)
		return;
	for (unsigned q = 0; q < slot; q++)
		from += g->page->part_len[parity][q];
	to = from + g->page->part_len[parity][slot];
	from = mc_max(from, *at);
	to = mc_min(to, end);
	*at = from;
	*len = from < to ? to - from : 0;
}

static void send_chunk(struct mc_coll *g, struct mc_coll_wire *wire, uint64_t word, unsigned parity)
{
	const struct mc_coll_call *c = &g->page->call[parity];
	uint64_t chunk = (word & MC_COLL_STEP_DONE) - 2;
	struct mc_coll_head h = {
	    .type = MC_COLL_FRAME_CHUNK, .word = word, .at = chunk * MC_COLL_CHUNK};
	const uint8_t *base = g->net->tx_base ? g->net->tx_base : g->area;
	uint8_t head[MC_COLL_HEAD_LEN];

	h.len = mc_min((uint64_t)MC_COLL_CHUNK, c->len - h.at);
	clip(g, c, parity, wire->p->slot, &h.at, &h.len);
	if (wire->is_tx_near)
		h.len = 0;
	if (h.len == 0)
		h = (struct mc_coll_head){.type = MC_COLL_FRAME_WORD, .word = word};
	head_write(head, &h);
	send_frame(wire, head, MC_COLL_HEAD_LEN, base + h.at, h.len, 0);
}

static uint64_t make_round(struct mc_coll *g, uint64_t word, unsigned parity, bool is_near,
			   uint8_t *frame)
{
	const struct mc_coll_call *c = &g->page->call[parity];
	struct mc_wr w = mc_wr_make(frame + MC_COLL_HEAD_LEN, MC_COLL_ROUND_MAX);
	struct mc_coll_head h = {.type = MC_COLL_FRAME_ROUND, .word = word, .at = is_near};

	/* Of a large one the bytes follow, and the word with them. */
	if (c->len > MC_COLL_SMALL)
		h.word = word & ~(uint64_t)MC_COLL_STEP_DONE;
	mc_coll_content_write(&w, g->page, parity, g->ranks_max);
	h.len = mc_wr_len(&w);
	head_write(frame, &h);
	return MC_COLL_HEAD_LEN + h.len;
}

struct mc_coll_wire *mc_coll_wire_of(struct mc_coll *g, uint32_t slot)
{
	uint64_t active = atomic_load_explicit(&g->active, memory_order_relaxed);
	struct mc_coll_peer *p =
	    slot != g->rank && active & MC_COLL_BIT(slot) ? g->cur[slot] : NULL;

	return p ? p->wire : NULL;
}

void mc_coll_net_post(struct mc_coll *g, uint64_t word)
{
	uint64_t seq = word >> MC_COLL_STEP_BITS;
	uint32_t step = word & MC_COLL_STEP_DONE;
	unsigned parity = mc_coll_parity(seq);
	bool is_content = step > 0 && step < MC_COLL_STEP_HAVE;
	bool is_large = is_content && g->page->call[parity].len > MC_COLL_SMALL;
	bool is_first = is_content && (step == 1 || step == 2);
	uint8_t frame[MC_COLL_HEAD_LEN + MC_COLL_ROUND_MAX], head[MC_COLL_HEAD_LEN];
	const struct mc_coll_head h = {.type = MC_COLL_FRAME_WORD, .word = word};

	head_write(head, &h);
	for (uint32_t s = 0; s < g->ranks_max; s++) {
		struct mc_coll_wire *wire = mc_coll_wire_of(g, s);

		if (!wire)
			continue;
		if (is_first) {
			uint64_t len;

			wire->is_tx_near =
			    is_large && !g->net->tx_base &&
			    atomic_load_explicit(&wire->is_lent, memory_order_acquire);
			len = make_round(g, word, parity, wire->is_tx_near, frame);
			send_frame(wire, frame, len, NULL, 0, is_large ? MSG_MORE : 0);
		}
		if (is_large)
			send_chunk(g, wire, word, parity);
		else if (!is_first)
			send_frame(wire, head, MC_COLL_HEAD_LEN, NULL, 0, 0);
	}
}

bool mc_coll_net_has_near(struct mc_coll *g)
{
	for (uint32_t s = 0; s < g->ranks_max; s++) {
		struct mc_coll_wire *wire = mc_coll_wire_of(g, s);

		if (wire && atomic_load_explicit(&wire->is_lent, memory_order_acquire))
			return true;
	}
	return false;
}

/* @return false: no memory for it */
static bool own(struct mc_coll_out *out)
{
	uint64_t len = out->len - out->head_len;

	if (len == 0 || out->own)
		return true;
	out->own = mc_calloc(1, len);
	if (!out->own)
		return false;
	memcpy(out->own, out->body, len);
	out->body = out->own;
	return true;
}

void mc_coll_net_keep(struct mc_coll *g)
{
	for (uint32_t s = 0; s < g->ranks_max; s++) {
		struct mc_coll_wire *wire = mc_coll_wire_of(g, s);
		struct mc_coll_out *out;
		bool is_kept = true;

		if (!wire)
			continue;
		mc_list_each (out, &wire->outs, link)
			is_kept = is_kept && own(out);
		if (!is_kept)
			tx_lost(wire);
	}
}

/* ---- leaving ---- */

void mc_coll_net_leave(struct mc_coll *g)
{
	const struct mc_coll_head h = {.type = MC_COLL_FRAME_BYE};
	uint8_t head[MC_COLL_HEAD_LEN];

	head_write(head, &h);
	for (uint32_t s = 0; s < g->ranks_max; s++) {
		struct mc_coll_wire *wire = mc_coll_wire_of(g, s);

		if (wire)
			send_frame(wire, head, MC_COLL_HEAD_LEN, NULL, 0, 0);
	}
}

/* Its kernel has all bytes: nothing that we do takes them away again. */
static bool is_acked(struct mc_coll_wire *wire)
{
	uint8_t waste[4096];
	int left = 0;

	mc_coll_wire_flush(wire);
	while (recv(wire->data_fd, waste, sizeof(waste), 0) > 0)
		;
	return !can_send(wire) || (mc_list_is_empty(&wire->outs) &&
				   (ioctl(wire->data_fd, SIOCOUTQ, &left) < 0 || left == 0));
}

struct left_over {
	struct mc_coll *g;
	bool is_none;
};

static void look_at_mail(void *arg)
{
	struct left_over *o = arg;
	struct mc_coll_peer *p;
	int left = 0;

	o->is_none = true;
	mc_list_each (p, &o->g->peers, link) {
		if (!p->wire || !p->wire->is_ctl_watched)
			continue;
		if (p->wire->ctl_out.len ||
		    (ioctl(p->wire->ctl.fd, SIOCOUTQ, &left) == 0 && left) ||
		    (ioctl(p->wire->mail_fd, SIOCOUTQ, &left) == 0 && left))
			o->is_none = false;
	}
}

void mc_coll_net_drain(struct mc_coll *g)
{
	uint64_t until_ns = mc_now_ns() + DRAIN_NS;
	struct left_over mail = {.g = g};

	while (mc_loop_call(g->hub->loop, look_at_mail, &mail), !mail.is_none) {
		if (mc_now_ns() >= until_ns)
			break;
		(void)poll(NULL, 0, 1);
	}

	for (uint32_t s = 0; s < g->ranks_max; s++) {
		struct mc_coll_wire *wire = mc_coll_wire_of(g, s);
		struct pollfd fd = {.fd = wire ? wire->data_fd : -1, .events = POLLIN};

		/* No event tells of an acknowledgement. */
		while (wire && wire->data_fd >= 0 && !is_acked(wire) && mc_now_ns() < until_ns)
			(void)poll(&fd, 1, 1);
	}
}
