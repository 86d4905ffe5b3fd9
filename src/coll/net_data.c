/*
 * net_data.c: what others show, received into their pages here, and waiting for it.
 *
 * The operation's thread reads by itself while it waits, of everybody in turn, so that nobody's
 * bytes stand in the way of another's; and it sends what is left to be sent.
 */
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/clock.h"
#include "coll/net.h"
#include "coll/shmem.h"

#define TURNS_MAX 64 /* pieces of one rank before the next one's turn */

/* ---- content of a page ---- */

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
	c.before.kind = mc_rd_u8(&r);
	c.before.type = mc_rd_u8(&r);
	c.before.reduce = mc_rd_u8(&r);
	c.before.root = mc_rd_u8(&r);
	c.before.count = mc_rd_u64(&r);
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
	mc_coll_rest_arm(p->coll);
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

static void on_round(struct mc_coll_wire *wire, const struct mc_coll_head *h)
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
		wire->slot_seq[parity] = p->page->call[parity].seq = seq;
	}
	pthread_mutex_unlock(&g->net->lock);
	if (rc == 0 && p->page->call[parity].len > MC_COLL_SMALL) {
		wire->area_seq = seq;
		wire->is_near = h->at != 0;
		if (!wire->is_near)
			rc = area_room(p, p->page->call[parity].len);
		else if (atomic_load_explicit(&wire->near_fd, memory_order_acquire) < 0)
			rc = -MC_E_PROTO; /* nobody told it that its memory can be read here */
	}
	if (rc < 0)
		rx_lost(wire);
	else
		commit(wire, h->word);
}

/* Bytes [at, end) of what round `seq` shows come next. */
static void chunk_place(struct mc_coll_wire *wire, uint64_t seq, uint64_t at, uint64_t end)
{
	wire->is_body_direct =
	    wire->direct_seq != 0 && wire->direct_seq == seq && end <= wire->direct_len;
	wire->body = (wire->is_body_direct ? wire->direct_to : wire->p->area) + at;
	if (wire->is_body_direct && !wire->has_direct) {
		wire->has_direct = true;
		wire->direct_from = at;
	}
}

void mc_coll_net_expect(struct mc_coll_peer *p, uint64_t seq, uint8_t *to, uint64_t len)
{
	struct mc_coll_wire *wire = p->wire;

	wire->direct_seq = seq;
	wire->direct_to = to;
	wire->direct_len = len;
	wire->has_direct = false;
}

void mc_coll_net_expect_end(struct mc_coll_peer *p)
{
	struct mc_coll_wire *wire = p->wire;

	/* The rest of a chunk that nobody waits for any more must not land there. */
	if (wire->direct_seq && wire->is_body_direct && wire->head_have == MC_COLL_HEAD_LEN) {
		uint8_t *area = p->area + (wire->body - wire->direct_to);

		memcpy(area, wire->body, wire->body_have);
		wire->body = area;
	}
	wire->is_body_direct = false;
	wire->has_direct = false;
	wire->direct_seq = 0;
}

/* A head is complete: where do its bytes go? */
static int on_head(struct mc_coll_wire *wire, struct mc_coll_head *h)
{
	struct mc_rd r = mc_rd_make(wire->head, MC_COLL_HEAD_LEN);
	uint64_t end, seq;

	if (mc_rd_u32(&r) != MC_COLL_FRAME_MAGIC)
		return -MC_E_PROTO;
	h->type = mc_rd_u32(&r);
	h->word = mc_rd_u64(&r);
	h->at = mc_rd_u64(&r);
	h->len = mc_rd_u64(&r);
	switch (h->type) {
	case MC_COLL_FRAME_ROUND:
		wire->body = wire->round_buf;
		return h->len <= MC_COLL_ROUND_MAX ? 0 : -MC_E_PROTO;
	case MC_COLL_FRAME_CHUNK:
		seq = h->word >> MC_COLL_STEP_BITS;
		if (wire->area_seq != seq || h->len > MC_COLL_CHUNK ||
		    __builtin_add_overflow(h->at, h->len, &end) || end > wire->p->area_len)
			return -MC_E_PROTO;
		/* Chosen once, with the head. */
		if (wire->body_have == 0)
			chunk_place(wire, seq, h->at, end);
		return 0;
	case MC_COLL_FRAME_WORD:
	case MC_COLL_FRAME_BYE:
		return h->len == 0 ? 0 : -MC_E_PROTO;
	default:
		return -MC_E_PROTO;
	}
}

static void on_frame(struct mc_coll_wire *wire, const struct mc_coll_head *h)
{
	struct mc_coll_peer *p = wire->p;

	if (h->type == MC_COLL_FRAME_ROUND) {
		on_round(wire, h);
		return;
	}
	if (h->type != MC_COLL_FRAME_BYE) {
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

ssize_t mc_coll_rx_take(struct mc_coll_rx *rx, int fd, uint8_t *to, uint64_t want, bool *is_dry)
{
	bool is_direct = want >= MC_COLL_RX_LEN;
	uint64_t room = is_direct ? want : MC_COLL_RX_LEN;
	ssize_t n;

	if (rx->at == rx->have) {
		if (*is_dry) {
			errno = EAGAIN;
			return -1;
		}
		do {
			n = recv(fd, is_direct ? to : rx->bytes, room, 0);
		} while (n < 0 && errno == EINTR);
		if (n < 0 && errno == EFAULT)
			mc_coll_touch(to, want, true);
		if (n <= 0)
			return n;
		*is_dry = (uint64_t)n < room;
		if (is_direct)
			return n;
		rx->at = 0;
		rx->have = (uint32_t)n;
	}
	n = (ssize_t)mc_min(want, (uint64_t)(rx->have - rx->at));
	memcpy(to, rx->bytes + rx->at, (size_t)n);
	rx->at += (uint32_t)n;
	return n;
}

/* @return false: nothing now, or never again */
static bool pull_some(struct mc_coll_wire *wire, bool *is_dry)
{
	bool is_head = wire->head_have < MC_COLL_HEAD_LEN;
	uint8_t *to = is_head ? wire->head + wire->head_have : wire->body + wire->body_have;
	uint64_t want =
	    is_head ? MC_COLL_HEAD_LEN - wire->head_have : wire->body_len - wire->body_have;
	ssize_t n = mc_coll_rx_take(&wire->rx, wire->data_fd, to, want, is_dry);
	struct mc_coll_head h;

	if (n <= 0) {
		if (n == 0 || (errno != EAGAIN && errno != EWOULDBLOCK))
			rx_lost(wire);
		return false;
	}
	if (is_head) {
		wire->head_have += (uint32_t)n;
		if (wire->head_have < MC_COLL_HEAD_LEN)
			return true;
		wire->body_have = 0;
	} else {
		wire->body_have += (uint64_t)n;
	}
	if (on_head(wire, &h) < 0) {
		rx_lost(wire);
		return false;
	}
	wire->body_len = h.len;
	if (wire->body_have == wire->body_len) {
		wire->head_have = 0;
		on_frame(wire, &h);
	}
	return true;
}

/* Read what is there of one rank. @return true when something came, or its end */
static bool pull(struct mc_coll_wire *wire)
{
	uint32_t turns = 0;
	bool is_dry = false;

	/* What stands in the buffer must not wait for the socket. */
	while (!wire->is_data_over && (turns < TURNS_MAX || wire->rx.at < wire->rx.have) &&
	       pull_some(wire, &is_dry))
		turns++;
	return turns > 0 || wire->is_data_over;
}

/* ---- memory that is given back ---- */

/* All of the round that used it last has come, and is over here. */
static bool is_unused(const struct mc_coll_peer *p)
{
	uint64_t seq = p->wire->area_seq, word = atomic_load(&p->page->word);
	uint64_t len = p->page->call[mc_coll_parity(seq)].len;
	uint64_t all = 1 + (len + MC_COLL_CHUNK - 1) / MC_COLL_CHUNK;

	if (mc_coll_peer_is_gone(p))
		return true;
	return seq >> MC_COLL_ROUND_BITS <= p->coll->op &&
	       (word >> MC_COLL_STEP_BITS > seq || word >= mc_coll_word(seq, (uint32_t)all));
}

bool mc_coll_net_rest(struct mc_coll *g)
{
	struct mc_coll_peer *p;
	bool is_done = true;

	/* What the others said since this rank's last operation: nobody else reads it. */
	for (uint32_t s = 0; s < g->ranks_max; s++) {
		struct mc_coll_wire *wire = mc_coll_wire_of(g, s);

		if (wire && wire->data_fd >= 0 && !wire->is_data_over)
			(void)pull(wire);
	}
	mc_list_each (p, &g->peers, link) {
		if (!p->wire || !p->area)
			continue;
		if (p->wire->rest_seq == p->wire->area_seq && is_unused(p)) {
			mc_coll_shmem_unmap(p->area, p->area_len);
			p->area = NULL;
			p->area_len = 0;
		} else {
			is_done = false;
		}
		p->wire->rest_seq = p->wire->area_seq;
	}
	return is_done;
}

/* ---- waiting ---- */

struct wait {
	struct mc_coll *g;
	struct mc_coll_peer *p; /* NULL: for all that is to be sent, or to be agreed on */
	uint64_t target, deadline_ns;
	uint64_t late_ns; /* from then on whoever is waited for is asked after; 0: not waited yet */
	bool (*is_over)(struct mc_coll *g);
};

static int look_only(const struct wait *w)
{
	struct mc_coll *g = w->g;
	int rc = atomic_load_explicit(&g->net->broken, memory_order_acquire);

	if (!w->p && w->is_over && w->is_over(g))
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
		mc_coll_wire_flush(w->p->wire);
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
		struct mc_coll_wire *wire = mc_coll_wire_of(g, s);
		short events = 0;

		if (!wire || wire->data_fd < 0)
			continue;
		mc_coll_wire_flush(wire);
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

/* Whoever is waited for too long may be on a silent host. */
static void look_at_clock(struct wait *w, uint64_t now_ns)
{
	struct mc_coll *g = w->g;

	if (w->late_ns && now_ns >= w->late_ns)
		mc_coll_net_late(g, w->p ? MC_COLL_BIT(w->p->slot) : mc_coll_active(g));
	if (now_ns >= w->late_ns)
		w->late_ns = now_ns + MC_COLL_LATE_NS;
}

static int sleep_a_while(struct wait *w)
{
	struct mc_coll *g = w->g;
	struct pollfd fds[MC_COLL_RANKS_MAX + 1];
	uint32_t slots[MC_COLL_RANKS_MAX + 1];
	uint64_t now_ns = mc_now_ns(), seen;
	nfds_t nfds = poll_set(g, fds, slots);
	int n, ms = (int)(MC_COLL_LATE_NS / MC_NS_PER_MS);

	if (now_ns >= w->deadline_ns)
		return -MC_E_TIMEDOUT;
	look_at_clock(w, now_ns);
	if ((w->deadline_ns - now_ns) / MC_NS_PER_MS < (uint64_t)ms)
		ms = (int)((w->deadline_ns - now_ns) / MC_NS_PER_MS) + 1;
	n = poll(fds, nfds, ms);
	if (n <= 0)
		return 0;
	if (fds[0].revents && read(g->net->wake_fd, &seen, sizeof(seen)) < 0)
		return 0;
	for (nfds_t i = 1; i < nfds; i++) {
		struct mc_coll_wire *wire = mc_coll_wire_of(g, slots[i]);

		if (!fds[i].revents || !wire)
			continue;
		if (!wire->is_data_over)
			(void)pull(wire);
		mc_coll_wire_flush(wire);
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
		struct mc_coll_wire *wire = mc_coll_wire_of(g, s);

		if (!wire)
			continue;
		mc_coll_wire_flush(wire);
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
