/*
 * tcp_classic_lane.c: the initiator's end of a connection to an upstream peer, in its frames
 * (tcp_classic.h).
 *
 * Each fragment is a request of its own; all of a slice's requests are pipelined. In version 2 a
 * write is done when its status has come. There is no fence: a write whose connection broke stays
 * MAYBE, and the engine ends it as unfenced. In version 1 writes are never answered: one is done
 * when the kernel has taken it. Only the owner calls in here.
 */
#include <poll.h>
#include <sys/socket.h>

#include "xport/tcp_classic.h"
#include "xport/tcp_priv.h"

#define FRAGS_MAX 256u
#define DEPTH_MAX 8u

static const struct mc_xport_ops classic_ops;

struct classic_lane {
	struct mc_xlane base; /* must be first */
	int fd;
	bool is_open, is_broken, is_v2;
	int failed; /* what poll() owes: it was met after slices had finished */
	uint64_t seq;
	_Atomic uint64_t progress; /* relaxed: written by the owner, read by the watchdog */
	unsigned depth;
	struct mc_list txq, ackq; /* as in tcp_lane.c */
	struct mc_slice *txs;
	bool is_tx_begun;
	struct mc_iovq tx, rx;
	uint32_t rx_frag;   /* fragment of the oldest slice that comes next */
	bool is_rx_payload; /* rx begins with payload, the next status follows it */
	bool is_rx_ready;
	uint8_t heads[FRAGS_MAX * MC_CLASSIC_HEAD_BYTES];
	uint8_t status[MC_CLASSIC_STATUS_BYTES];
};

static struct classic_lane *lane_of(struct mc_xlane *x)
{
	return (struct classic_lane *)x;
}

static void lane_close(struct mc_xlane *x)
{
	struct classic_lane *l = lane_of(x);

	if (!l)
		return;
	mc_fd_close(&l->fd);
	mc_free(l);
}

int mc_tcp_classic_lane_open(struct mc_xdev *dev, const struct mc_xpath *path, int proto,
			     struct mc_xlane **ret_lane)
{
	struct classic_lane *l = mc_calloc(1, sizeof(*l));
	int rc;

	(void)dev;
	if (!l)
		return -MC_E_NOMEM;
	l->base.ops = &classic_ops;
	l->fd = -1;
	l->is_v2 = proto >= 2;
	mc_list_init(&l->txq);
	mc_list_init(&l->ackq);
	rc = mc_sock_connect(&path->remote, path->local.len ? &path->local : NULL, &l->fd);
	if (rc < 0)
		goto fail;
	(void)mc_sock_nodelay(l->fd);
	*ret_lane = &l->base;
	return 0;
fail:
	lane_close(&l->base);
	return rc;
}

static void tx_load(struct classic_lane *l, struct mc_slice *s)
{
	mc_iovq_reset(&l->tx);
	for (uint32_t i = 0; i < s->nfrags; i++) {
		uint8_t *head = l->heads + i * MC_CLASSIC_HEAD_BYTES;
		struct mc_wr w = mc_wr_make(head, MC_CLASSIC_HEAD_BYTES);

		mc_classic_head_encode(&w, &(struct mc_classic_head){.len = s->frags[i].len,
								     .addr = s->frags[i].raddr,
								     .op = s->op,
								     .is_v2 = l->is_v2});
		mc_iovq_push(&l->tx, head, MC_CLASSIC_HEAD_BYTES);
		if (s->op == MC_OP_WRITE)
			mc_iovq_push(&l->tx, s->frags[i].local, s->frags[i].len);
	}
	l->txs = s;
	l->is_tx_begun = false;
}

static struct mc_slice *finish(struct classic_lane *l, struct mc_slice *s, int status)
{
	mc_list_del(&s->link);
	l->depth--;
	s->status = status;
	s->verdict = MC_SLICE_DONE;
	if (status == 0)
		s->moved = s->len;
	return s;
}

static void moved(struct classic_lane *l, ssize_t n)
{
	atomic_store_explicit(
	    &l->progress, atomic_load_explicit(&l->progress, memory_order_relaxed) + (uint64_t)n,
	    memory_order_relaxed);
}

/* @return slices finished by sending alone (version 1 writes), or < 0 */
static int tx_pump(struct classic_lane *l, struct mc_slice **ret_done, unsigned max)
{
	unsigned done = 0;

	while (done < max) {
		ssize_t n;

		if (!l->txs) {
			struct mc_slice *s = mc_list_first(&l->txq, struct mc_slice, link);

			if (!s)
				break;
			tx_load(l, s);
		}
		n = mc_tcp_send(l->fd, &l->tx, SIZE_MAX);
		if (n < 0)
			return done ? (int)done : (int)n; /* met again by the next send */
		if (n == 0)
			break;
		l->is_tx_begun = true;
		moved(l, n);
		if (l->tx.left > 0)
			continue;
		mc_list_del(&l->txs->link);
		if (!l->is_v2 && l->txs->op == MC_OP_WRITE)
			ret_done[done++] = finish(l, l->txs, 0);
		else
			mc_list_push_back(&l->ackq, &l->txs->link);
		l->txs = NULL;
	}
	return (int)done;
}

static void rx_load(struct classic_lane *l, struct mc_slice *s)
{
	const struct mc_frag *f = &s->frags[l->rx_frag];
	bool is_payload = l->is_rx_payload || !l->is_v2;

	mc_iovq_reset(&l->rx);
	if (is_payload)
		mc_iovq_push(&l->rx, f->local, f->len);
	/* With the payload comes the status of the fragment after it; behind the slice's last one
	 * stands another slice's. */
	if (l->is_v2 && (!is_payload || l->rx_frag + 1 < s->nfrags))
		mc_iovq_push(&l->rx, l->status, MC_CLASSIC_STATUS_BYTES);
	l->is_rx_payload = is_payload;
	l->is_rx_ready = true;
}

/* rx is full. @return 1: the slice is done (its status is set); 0; < 0 */
static int rx_step(struct classic_lane *l, struct mc_slice *s)
{
	bool has_status = l->is_v2 && (!l->is_rx_payload || l->rx_frag + 1 < s->nfrags);
	int rc = 0;

	if (l->is_rx_payload)
		l->rx_frag++;
	if (has_status) {
		rc = mc_classic_status_decode(l->status);
		if (rc == -MC_E_PROTO)
			return rc;
	}
	l->is_rx_ready = false;
	l->is_rx_payload = false;
	if (rc < 0 && s->status == 0) {
		s->status = rc;
		s->bad_frag = l->rx_frag;
	}
	if (s->op == MC_OP_READ && has_status && rc == 0)
		l->is_rx_payload = true;
	else if (has_status)
		l->rx_frag++; /* a write's, or a refused read without payload */
	return l->rx_frag == s->nfrags ? 1 : 0;
}

static int rx_pump(struct classic_lane *l, struct mc_slice **ret_done, unsigned max)
{
	unsigned done = 0;
	int rc = 0;

	while (done < max) {
		struct mc_slice *s = mc_list_first(&l->ackq, struct mc_slice, link);
		ssize_t n;

		if (!s)
			break;
		if (!l->is_rx_ready)
			rx_load(l, s);
		n = mc_tcp_recv(l->fd, &l->rx, SIZE_MAX);
		rc = n < 0 ? (int)n : 0;
		if (n <= 0)
			break;
		moved(l, n);
		if (l->rx.left > 0)
			continue;
		rc = rx_step(l, s);
		if (rc < 0)
			break;
		if (rc > 0) {
			l->rx_frag = 0;
			ret_done[done++] = finish(l, s, s->status);
		}
	}
	if (rc >= 0)
		return (int)done;
	l->failed = rc;
	return done ? (int)done : rc;
}

static int lane_post(struct mc_xlane *x, struct mc_slice **slices, unsigned n)
{
	struct classic_lane *l = lane_of(x);
	unsigned taken = 0;

	if (l->is_broken)
		return -MC_E_CLOSED;
	while (taken < n && l->depth < DEPTH_MAX) {
		struct mc_slice *s = slices[taken++];

		mc_assert(s->nfrags <= FRAGS_MAX);
		s->seq = ++l->seq;
		s->moved = 0;
		s->status = 0;
		l->depth++;
		mc_list_push_back(&l->txq, &s->link);
	}
	return (int)taken;
}

static int pump(struct classic_lane *l, struct mc_slice **ret_done, unsigned max)
{
	int tx = tx_pump(l, ret_done, max), rx;

	if (tx < 0) {
		rx = rx_pump(l, ret_done, max); /* what the peer answered before it closed */
		return rx > 0 ? rx : tx;
	}
	rx = rx_pump(l, ret_done + tx, max - (unsigned)tx);
	return rx < 0 && tx == 0 ? rx : tx + mc_max(rx, 0);
}

static int connect_pump(struct classic_lane *l, uint64_t block_ns)
{
	int rc;

	if (mc_tcp_wait(l->fd, POLLOUT, block_ns) == 0)
		return 0;
	rc = mc_sock_connect_result(l->fd);
	l->is_open = rc == 0;
	return rc;
}

static int lane_poll(struct mc_xlane *x, uint64_t block_ns, struct mc_slice **ret_done,
		     unsigned max)
{
	struct classic_lane *l = lane_of(x);
	int rc = l->is_broken ? -MC_E_CLOSED : l->failed;

	if (rc == 0 && !l->is_open) {
		rc = connect_pump(l, block_ns);
		if (rc == 0 && !l->is_open)
			return 0;
	}
	if (rc == 0)
		rc = pump(l, ret_done, max);
	if (rc == 0 && block_ns > 0) {
		short events = (short)(POLLIN | (mc_list_is_empty(&l->txq) ? 0 : POLLOUT));

		(void)mc_tcp_wait(l->fd, events, block_ns);
		rc = pump(l, ret_done, max);
	}
	if (rc < 0)
		l->is_broken = true;
	return rc;
}

static void lane_arm(struct mc_xlane *x, struct mc_xarm *ret_arm)
{
	struct classic_lane *l = lane_of(x);

	*ret_arm = (struct mc_xarm){.fd = l->fd, .events = POLLIN, .is_block_ok = true};
	if (!l->is_open || !mc_list_is_empty(&l->txq))
		ret_arm->events |= POLLOUT;
}

static uint64_t lane_progress(const struct mc_xlane *x)
{
	return atomic_load_explicit(&((const struct classic_lane *)x)->progress,
				    memory_order_relaxed);
}

static size_t lane_abort(struct mc_xlane *x, struct mc_list *ret_left, uint8_t *ret_token)
{
	struct classic_lane *l = lane_of(x);
	struct mc_slice *s;

	(void)ret_token; /* no fence: MAYBE stays MAYBE */
	mc_fd_close(&l->fd);
	l->is_broken = true;
	mc_list_each (s, &l->ackq, link)
		s->verdict = s->op == MC_OP_WRITE ? MC_SLICE_MAYBE : MC_SLICE_UNSENT;
	mc_list_each (s, &l->txq, link)
		s->verdict = s == l->txs && l->is_tx_begun && s->op == MC_OP_WRITE
				 ? MC_SLICE_MAYBE
				 : MC_SLICE_UNSENT;
	mc_list_splice_back(ret_left, &l->ackq);
	mc_list_splice_back(ret_left, &l->txq);
	l->depth = 0;
	l->txs = NULL;
	return 0;
}

static const struct mc_xport_ops classic_ops = {
    .name = "tcp-classic",
    .caps = MC_XCAP_VISIBLE | MC_XCAP_MULTI_FRAG,
    .frags_max = FRAGS_MAX,
    .len_max = 1ull << 32,
    .depth_max = DEPTH_MAX,
    .post = lane_post,
    .poll = lane_poll,
    .arm = lane_arm,
    .progress = lane_progress,
    .abort = lane_abort,
    .lane_close = lane_close,
};
