/*
 * net_data.c: what a rank shows, sent; what others show, put into their pages here. Frames in the
 * order in which the words grew:
 *
 *	ROUND  the call, its parts, and the bytes if they are few (as they stand in the page)
 *	CHUNK  bytes of the area
 *	WORD   nothing but progress
 *	BYE    this rank leaves; its word is final
 *
 * The operation's thread sends and receives by itself while it waits. It reads of everybody in
 * turn, so nobody's bytes stand in the way of another's. What does not fit into a socket stays
 *where it is (page and area are not used again before the others have read them) and goes later.
 */
#include <errno.h>
#include <linux/sockios.h>
#include <poll.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/clock.h"
#include "coll/net.h"
#include "coll/shmem.h"

#define FRAME_MAGIC 0x444e434du /* "MCND" */
#define HEAD_LEN 40u
#define LATE_MS 500		   /* without a sign of a rank, before the loop asks after it */
#define DRAIN_NS (2 * MC_NS_PER_S) /* for those who leave: of others that do not read */
#define READ_MAX (1u << 20)	   /* of one rank before the next one's turn */

enum frame { FRAME_ROUND = 1, FRAME_CHUNK, FRAME_WORD, FRAME_BYE };

struct head {
	uint32_t type;
	uint64_t word, at, len;
};

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
	mc_wr_u32(w, 0);
	mc_wr_u64(w, factor);
	mc_wr_u64(w, c->len);
	mc_wr_u64(w, c->count);
	for (uint32_t i = 0; c->nin > 1 && i < ranks_max; i++)
		mc_wr_u64(w, page->part_len[parity][i]);
	if (c->len <= MC_COLL_SMALL)
		mc_wr_bytes(w, page->small[parity], c->len);
}

int mc_coll_content_read(struct mc_coll_page *page, unsigned parity, const uint8_t *bytes,
			 uint64_t len, uint32_t ranks_max, uint64_t scratch_max)
{
	struct mc_rd r = mc_rd_make(bytes, len);
	struct mc_coll_call c = {0};
	uint64_t factor, parts[MC_COLL_RANKS_MAX] = {0};
	const uint8_t *small = NULL;

	c.kind = mc_rd_u8(&r);
	c.type = mc_rd_u8(&r);
	c.reduce = mc_rd_u8(&r);
	c.root = mc_rd_u8(&r);
	c.rounds = mc_rd_u32(&r);
	c.nin = mc_rd_u32(&r);
	(void)mc_rd_u32(&r);
	factor = mc_rd_u64(&r);
	c.len = mc_rd_u64(&r);
	c.count = mc_rd_u64(&r);
	memcpy(&c.factor, &factor, sizeof(factor));
	for (uint32_t i = 0; c.nin > 1 && i < ranks_max; i++)
		parts[i] = mc_rd_u64(&r);
	/* Parts are cut so that one rank's fit into the scratch, each rounded up to an element. */
	if (c.len > scratch_max + 16u * MC_COLL_RANKS_MAX)
		return -MC_E_PROTO;
	if (c.len <= MC_COLL_SMALL)
		small = mc_rd_bytes(&r, c.len);
	if (!mc_rd_is_done(&r))
		return -MC_E_PROTO;
	page->call[parity] = c;
	memcpy(page->part_len[parity], parts, sizeof(parts));
	if (small && c.len)
		memcpy(page->small[parity], small, c.len);
	return 0;
}

/* ---- sending ---- */

static void head_write(uint8_t to[HEAD_LEN], const struct head *h)
{
	struct mc_wr w = mc_wr_make(to, HEAD_LEN);

	mc_wr_u32(&w, FRAME_MAGIC);
	mc_wr_u32(&w, h->type);
	mc_wr_u64(&w, h->word);
	mc_wr_u64(&w, h->at);
	mc_wr_u64(&w, h->len);
	mc_wr_u64(&w, 0);
}

/* Nothing goes to it any more. */
static void tx_lost(struct mc_coll_wire *wire)
{
	struct mc_coll_out *out;

	mc_list_each (out, &wire->outs, link) {
		mc_list_del(&out->link);
		mc_free(out);
	}
	if (!atomic_exchange_explicit(&wire->is_link_down, true, memory_order_acq_rel))
		mc_coll_net_kick(wire->p->coll);
}

static bool can_send(const struct mc_coll_wire *wire)
{
	return wire->data_fd >= 0 && !mc_coll_peer_is_gone(wire->p) &&
	       !atomic_load_explicit(&wire->is_link_down, memory_order_acquire);
}

/* @return bytes the socket took, perhaps 0; < 0: it is lost */
static ssize_t push(int fd, const uint8_t *head, uint64_t head_len, const uint8_t *body,
		    uint64_t len, uint64_t sent)
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
		n = sendmsg(fd, &msg, MSG_NOSIGNAL);
	} while (n < 0 && errno == EINTR);
	return n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK) ? 0 : n;
}

static void flush(struct mc_coll_wire *wire)
{
	struct mc_coll_out *out;

	if (mc_list_is_empty(&wire->outs))
		return;
	if (!can_send(wire)) {
		tx_lost(wire);
		return;
	}
	while ((out = mc_list_first(&wire->outs, struct mc_coll_out, link)) != NULL) {
		ssize_t n =
		    push(wire->data_fd, out->head, out->head_len, out->body, out->len, out->sent);

		if (n < 0) {
			tx_lost(wire);
			return;
		}
		out->sent += (uint64_t)n;
		if (out->sent < out->len)
			return;
		mc_list_del(&out->link);
		mc_free(out);
	}
}

/* `head` is copied where it has to wait, `body` stays where it is. */
static void send_frame(struct mc_coll_wire *wire, const uint8_t *head, uint64_t head_len,
		       const uint8_t *body, uint64_t body_len)
{
	struct mc_coll_out *out;
	ssize_t n = 0;

	if (!can_send(wire))
		return;
	flush(wire);
	if (mc_list_is_empty(&wire->outs))
		n = push(wire->data_fd, head, head_len, body, head_len + body_len, 0);
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
	struct head h = {.type = FRAME_CHUNK, .word = word, .at = chunk * MC_COLL_CHUNK};
	uint8_t head[HEAD_LEN];

	h.len = mc_min((uint64_t)MC_COLL_CHUNK, c->len - h.at);
	clip(g, c, parity, wire->p->slot, &h.at, &h.len);
	if (h.len == 0)
		h.type = FRAME_WORD;
	head_write(head, &h);
	send_frame(wire, head, HEAD_LEN, g->area + h.at, h.len);
}

static uint64_t make_round(struct mc_coll *g, uint64_t word, unsigned parity, uint8_t *frame)
{
	const struct mc_coll_call *c = &g->page->call[parity];
	struct mc_wr w = mc_wr_make(frame + HEAD_LEN, MC_COLL_ROUND_MAX);
	struct head h = {.type = FRAME_ROUND, .word = word};

	/* Of a large one the bytes follow, and the word with them. */
	if (c->len > MC_COLL_SMALL)
		h.word = word & ~(uint64_t)MC_COLL_STEP_DONE;
	mc_coll_content_write(&w, g->page, parity, g->ranks_max);
	h.len = mc_wr_len(&w);
	head_write(frame, &h);
	return HEAD_LEN + h.len;
}

/* Of a rank that takes part in operations: the others do not read. */
static struct mc_coll_wire *wire_of(struct mc_coll *g, uint32_t slot)
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
	uint8_t frame[HEAD_LEN + MC_COLL_ROUND_MAX], head[HEAD_LEN];
	const struct head h = {.type = FRAME_WORD, .word = word};
	uint64_t len = is_first ? make_round(g, word, parity, frame) : 0;

	head_write(head, &h);
	for (uint32_t s = 0; s < g->ranks_max; s++) {
		struct mc_coll_wire *wire = wire_of(g, s);

		if (!wire)
			continue;
		if (is_first)
			send_frame(wire, frame, len, NULL, 0);
		if (is_large)
			send_chunk(g, wire, word, parity);
		else if (!is_first)
			send_frame(wire, head, HEAD_LEN, NULL, 0);
	}
}

/* ---- receiving ---- */

/* Nothing comes of it any more: the peer broke the protocol, or the connection did. */
static void rx_lost(struct mc_coll_wire *wire)
{
	wire->is_data_over = true;
	if (!atomic_exchange_explicit(&wire->is_link_down, true, memory_order_acq_rel))
		mc_coll_net_kick(wire->p->coll);
}

static int area_room(struct mc_coll_peer *p, uint64_t len)
{
	uint64_t want = MC_COLL_AREA_MIN;
	void *at;

	if (p->area_len >= len)
		return 0;
	while (want < len)
		want *= 2;
	at = mmap(NULL, want, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (at == MAP_FAILED)
		return -MC_E_NOMEM;
	mc_coll_shmem_unmap(p->area, p->area_len);
	p->area = at;
	p->area_len = want;
	return 0;
}

/* The word grows, unless the rank's words are being agreed on. */
static void commit(struct mc_coll_wire *wire, uint64_t word)
{
	struct mc_coll_net *net = wire->p->coll->net;

	pthread_mutex_lock(&net->lock);
	if (!wire->is_cut &&
	    word > atomic_load_explicit(&wire->p->page->word, memory_order_relaxed))
		atomic_store_explicit(&wire->p->page->word, word, memory_order_release);
	pthread_mutex_unlock(&net->lock);
}

static void on_round(struct mc_coll_wire *wire, const struct head *h)
{
	struct mc_coll_peer *p = wire->p;
	struct mc_coll *g = p->coll;
	uint64_t seq = h->word >> MC_COLL_STEP_BITS;
	unsigned parity = mc_coll_parity(seq);
	int rc = 0;

	pthread_mutex_lock(&g->net->lock);
	if (!wire->is_cut) {
		rc = mc_coll_content_read(p->page, parity, wire->round_buf, h->len, g->ranks_max,
					  g->scratch_max);
		wire->slot_seq[parity] = seq;
	}
	pthread_mutex_unlock(&g->net->lock);
	if (rc == 0 && p->page->call[parity].len > MC_COLL_SMALL) {
		wire->area_seq = seq;
		rc = area_room(p, p->page->call[parity].len);
	}
	if (rc < 0)
		rx_lost(wire);
	else
		commit(wire, h->word);
}

/* A head is complete: where do its bytes go? */
static int on_head(struct mc_coll_wire *wire, struct head *h)
{
	struct mc_rd r = mc_rd_make(wire->head, HEAD_LEN);
	uint64_t end;

	if (mc_rd_u32(&r) != FRAME_MAGIC)
		return -MC_E_PROTO;
	h->type = mc_rd_u32(&r);
	h->word = mc_rd_u64(&r);
	h->at = mc_rd_u64(&r);
	h->len = mc_rd_u64(&r);
	switch (h->type) {
	case FRAME_ROUND:
		wire->body = wire->round_buf;
		return h->len <= MC_COLL_ROUND_MAX ? 0 : -MC_E_PROTO;
	case FRAME_CHUNK:
		if (wire->area_seq != h->word >> MC_COLL_STEP_BITS || h->len > MC_COLL_CHUNK ||
		    __builtin_add_overflow(h->at, h->len, &end) || end > wire->p->area_len)
			return -MC_E_PROTO;
		wire->body = wire->p->area + h->at;
		return 0;
	case FRAME_WORD:
	case FRAME_BYE:
		return h->len == 0 ? 0 : -MC_E_PROTO;
	default:
		return -MC_E_PROTO;
	}
}

static void on_frame(struct mc_coll_wire *wire, const struct head *h)
{
	struct mc_coll_peer *p = wire->p;

	if (h->type == FRAME_ROUND) {
		on_round(wire, h);
		return;
	}
	if (h->type != FRAME_BYE) {
		commit(wire, h->word);
		return;
	}
	wire->is_data_over = true;
	pthread_mutex_lock(&p->coll->net->lock);
	/* release: the last word, before it counts as final */
	if (!wire->is_cut)
		atomic_store_explicit(&p->page->state, MC_COLL_LEFT, memory_order_release);
	pthread_mutex_unlock(&p->coll->net->lock);
	mc_coll_stir(p->coll);
}

/* Read what is there of one rank. @return true when something came */
static bool pull(struct mc_coll_wire *wire)
{
	uint64_t total = 0;
	struct head h;

	while (!wire->is_data_over && total < READ_MAX) {
		bool is_head = wire->head_have < HEAD_LEN;
		uint8_t *to = is_head ? wire->head + wire->head_have : wire->body + wire->body_have;
		uint64_t want =
		    is_head ? HEAD_LEN - wire->head_have : wire->body_len - wire->body_have;
		ssize_t n = want ? recv(wire->data_fd, to, want, 0) : 0;

		if (want && n <= 0) {
			if (n < 0 && errno == EINTR)
				continue;
			if (n == 0 || (errno != EAGAIN && errno != EWOULDBLOCK))
				rx_lost(wire);
			return total > 0 || wire->is_data_over;
		}
		total += (uint64_t)n;
		if (is_head) {
			wire->head_have += (uint32_t)n;
			if (wire->head_have < HEAD_LEN)
				continue;
			wire->body_len = wire->body_have = 0;
		} else {
			wire->body_have += (uint64_t)n;
		}
		if (on_head(wire, &h) < 0) {
			rx_lost(wire);
			return true;
		}
		wire->body_len = h.len;
		if (wire->body_have < wire->body_len)
			continue;
		wire->head_have = 0;
		on_frame(wire, &h);
	}
	return total > 0;
}

/* ---- waiting ---- */

struct wait {
	struct mc_coll *g;
	struct mc_coll_peer *p; /* NULL: for all that is to be sent, or to be agreed on */
	uint64_t target, deadline_ns;
	bool (*is_over)(struct mc_coll *g);
};

static int look_only(const struct wait *w)
{
	struct mc_coll *g = w->g;
	int rc = atomic_load_explicit(&g->net->broken, memory_order_acquire);

	if (!w->p && w->is_over(g))
		return MC_COLL_THERE;
	if (w->p) {
		bool is_gone = mc_coll_peer_is_gone(w->p);

		if (atomic_load_explicit(&w->p->page->word, memory_order_acquire) >= w->target)
			return MC_COLL_THERE;
		if (is_gone)
			return MC_COLL_GONE;
	}
	if (rc)
		return rc;
	return atomic_load_explicit(&g->is_aborted, memory_order_relaxed) ? -MC_E_CANCELED : 0;
}

/* Dead, and all it sent was read: what is missing has to be agreed on. */
static void need(const struct wait *w)
{
	struct mc_coll_wire *wire = w->p ? w->p->wire : NULL;

	if (!wire || atomic_load_explicit(&wire->fate, memory_order_acquire) == MC_COLL_LIVES)
		return;
	if (!wire->is_data_over && pull(wire))
		return;
	mc_coll_agree_need(w->p);
}

static int look(void *user)
{
	struct wait *w = user;
	int rc = look_only(w);

	if (rc)
		return rc;
	if (w->p)
		flush(w->p->wire);
	if (w->p && !w->p->wire->is_data_over)
		(void)pull(w->p->wire);
	rc = look_only(w);
	if (rc == 0)
		need(w);
	return rc;
}

/* Everyone's connection; who is in a poll entry stands in slots[]. */
static nfds_t poll_set(struct mc_coll *g, struct pollfd *fds, uint32_t *slots)
{
	nfds_t n = 0;

	fds[n++] = (struct pollfd){.fd = g->net->wake_fd, .events = POLLIN};
	for (uint32_t s = 0; s < g->ranks_max; s++) {
		struct mc_coll_wire *wire = wire_of(g, s);
		short events = 0;

		if (!wire || wire->data_fd < 0)
			continue;
		flush(wire);
		if (!wire->is_data_over)
			events |= POLLIN;
		if (!mc_list_is_empty(&wire->outs))
			events |= POLLOUT;
		if (!events)
			continue;
		slots[n] = s;
		fds[n++] = (struct pollfd){.fd = wire->data_fd, .events = events};
	}
	return n;
}

static int sleep_a_while(const struct wait *w)
{
	struct mc_coll *g = w->g;
	struct pollfd fds[MC_COLL_RANKS_MAX + 1];
	uint32_t slots[MC_COLL_RANKS_MAX + 1];
	uint64_t now_ns = mc_now_ns(), seen;
	nfds_t nfds = poll_set(g, fds, slots);
	int n, ms = LATE_MS;

	if (now_ns >= w->deadline_ns)
		return -MC_E_TIMEDOUT;
	if ((w->deadline_ns - now_ns) / MC_NS_PER_MS < (uint64_t)ms)
		ms = (int)((w->deadline_ns - now_ns) / MC_NS_PER_MS) + 1;
	n = poll(fds, nfds, ms);
	if (n == 0 && w->p) {
		atomic_fetch_or_explicit(&g->net->late, MC_COLL_BIT(w->p->slot),
					 memory_order_relaxed);
		mc_coll_net_kick(g);
	}
	if (n <= 0)
		return 0;
	if (fds[0].revents && read(g->net->wake_fd, &seen, sizeof(seen)) < 0)
		return 0;
	for (nfds_t i = 1; i < nfds; i++) {
		struct mc_coll_wire *wire = wire_of(g, slots[i]);

		if (!fds[i].revents || !wire)
			continue;
		if (!wire->is_data_over)
			(void)pull(wire);
		flush(wire);
	}
	return 0;
}

static int doze(void *user)
{
	struct wait *w = user;
	int rc = 0;

	while (rc == 0) {
		rc = look(w);
		if (rc == 0)
			rc = sleep_a_while(w);
	}
	return rc;
}

static int wait_for(struct wait *w)
{
	int rc = look(w);

	return rc ? rc : mc_spin_wait(&w->g->spin, look, doze, w);
}

int mc_coll_net_wait(struct mc_coll *g, struct mc_coll_peer *p, uint64_t target,
		     uint64_t deadline_ns)
{
	struct wait w = {.g = g, .p = p, .target = target, .deadline_ns = deadline_ns};

	return wait_for(&w);
}

static bool is_flushed(struct mc_coll *g)
{
	for (uint32_t s = 0; s < g->ranks_max; s++) {
		struct mc_coll_wire *wire = wire_of(g, s);

		if (!wire)
			continue;
		flush(wire);
		if (!mc_list_is_empty(&wire->outs))
			return false;
	}
	return true;
}

int mc_coll_net_flush(struct mc_coll *g, uint64_t deadline_ns)
{
	struct wait w = {.g = g, .deadline_ns = deadline_ns, .is_over = is_flushed};
	int rc = wait_for(&w);

	return rc < 0 ? rc : 0;
}

static bool is_settled(struct mc_coll *g)
{
	return !atomic_load_explicit(&g->net->is_frozen, memory_order_acquire);
}

int mc_coll_net_settle(struct mc_coll *g, uint64_t deadline_ns)
{
	struct wait w = {.g = g, .deadline_ns = deadline_ns, .is_over = is_settled};
	int rc = wait_for(&w);

	return rc < 0 ? rc : 0;
}

void mc_coll_net_leave(struct mc_coll *g)
{
	const struct head h = {.type = FRAME_BYE};
	uint8_t head[HEAD_LEN];

	head_write(head, &h);
	for (uint32_t s = 0; s < g->ranks_max; s++) {
		struct mc_coll_wire *wire = wire_of(g, s);

		if (wire)
			send_frame(wire, head, HEAD_LEN, NULL, 0);
	}
}

/* Its kernel has all bytes: nothing that we do takes them away again. */
static bool is_acked(struct mc_coll_wire *wire)
{
	uint8_t waste[4096];
	int left = 0;

	flush(wire);
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
	mc_coll_net_mail_turn(o->g);
	mc_list_each (p, &o->g->peers, link) {
		if (!p->wire || !p->wire->is_ctl_watched)
			continue;
		if (!mc_coll_net_mail_is_sent(o->g, p) || p->wire->ctl_out.len ||
		    (ioctl(p->wire->ctl.fd, SIOCOUTQ, &left) == 0 && left))
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
		struct mc_coll_wire *wire = wire_of(g, s);
		struct pollfd fd = {.fd = wire ? wire->data_fd : -1, .events = POLLIN};

		/* No event tells of an acknowledgement. */
		while (wire && wire->data_fd >= 0 && !is_acked(wire) && mc_now_ns() < until_ns)
			(void)poll(&fd, 1, 1);
	}
}
