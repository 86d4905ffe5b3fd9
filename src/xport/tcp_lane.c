/*
 * tcp_lane.c: the initiator's end of one TCP connection that speaks our frames.
 *
 * The hello goes out together with the first request, so opening costs no round trip of its own.
 * Slices wait in `txq` until they have left whole, then in `ackq`, in order, until their reply. A
 * write counts as MAYBE from the first byte that the kernel took. Only the owner calls in here
 * (xport.h), so there is no lock and no atomic.
 */
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/time.h>

#include "base/codec.h"
#include "xport/tcp_priv.h"

#define DEPTH_MAX 64u
#define RECV_BLOCK_MS 20u		 /* longest stay in one blocking receive */
#define RECV_BLOCK_MIN_BYTES (96u << 10) /* below this polling the socket is cheaper */

/* What somebody looks at as it passes is moved in pieces: they are in the cache then, and the other
 * end works meanwhile. Pieces of half that size cost a slice of 1 MiB more than they give, larger
 * ones do not overlap. A little more than half a slice, so that two are enough for one with a head.
 */
#define SHOWN_PIECE ((512u << 10) + 4096)

enum lane_state {
	LANE_CONNECTING,
	LANE_OPEN,
	LANE_BROKEN,
};

struct tcp_lane {
	struct mc_xlane base; /* must be first */
	struct mc_tcp_dev *dev;
	int fd;
	enum lane_state state;
	bool is_welcome; /* the target has answered the hello */
	int failed;	 /* what poll() owes: it was met after slices had finished */
	uint64_t id, seq;
	_Atomic uint64_t progress; /* relaxed: written by the owner, read by the watchdog */
	uint64_t peer_epoch;
	unsigned depth;	      /* slices in txq and ackq */
	struct mc_list txq;   /* not sent whole; the first may be under way */
	struct mc_list ackq;  /* sent, reply outstanding, oldest first */
	struct mc_slice *txs; /* the slice that tx holds, or NULL */
	bool is_tx_begun;     /* the kernel has taken at least one byte of txs */
	struct mc_iovq tx;
	struct mc_iovq rx;
	struct mc_slice *rxs; /* the read whose payload rx receives, or NULL: rx receives a head */
	bool is_rx_direct;    /* rx holds head and payload of the only outstanding read */
	bool is_rx_ready;     /* rx is loaded */
	struct mc_spin spin;
	uint8_t txhead[MC_TCP_HELLO_BYTES + MC_TCP_REQ_MAX];
	size_t hello_len; /* bytes of the hello still in front of txhead's request */
	uint8_t rxhead[MC_TCP_REPLY_BYTES];
};

static struct tcp_lane *lane_of(struct mc_xlane *x)
{
	return (struct tcp_lane *)x;
}

static void moved(struct tcp_lane *l, ssize_t n)
{
	atomic_store_explicit(
	    &l->progress, atomic_load_explicit(&l->progress, memory_order_relaxed) + (uint64_t)n,
	    memory_order_relaxed);
}

static int broken(struct tcp_lane *l, int rc)
{
	l->state = LANE_BROKEN;
	return rc;
}

int mc_tcp_lane_open(struct mc_xdev *xdev, const struct mc_xpath *path, struct mc_xlane **ret_lane)
{
	struct mc_tcp_dev *dev = (struct mc_tcp_dev *)xdev;
	struct timeval tv = {.tv_usec = RECV_BLOCK_MS * 1000};
	struct mc_tcp_hello hello = {.initiator_epoch = dev->env.epoch,
				     .target_epoch = path->peer_epoch};
	struct tcp_lane *l = mc_calloc(1, sizeof(*l));
	int rc;

	if (!l)
		return -MC_E_NOMEM;
	l->base.ops = &mc_tcp_ops;
	l->dev = dev;
	l->fd = -1;
	mc_list_init(&l->txq);
	mc_list_init(&l->ackq);
	l->id = atomic_fetch_add_explicit(&dev->next_lane, 1, memory_order_relaxed);
	l->peer_epoch = path->peer_epoch;
	rc = mc_sock_connect(&path->remote, path->local.len ? &path->local : NULL, &l->fd);
	if (rc < 0)
		goto fail;
	(void)mc_sock_nodelay(l->fd);
	/* Blocking receives are bounded by this; every other call passes MSG_DONTWAIT. */
	(void)setsockopt(l->fd, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof(tv));
	hello.lane = l->id;
	memcpy(hello.nonce, path->nonce, sizeof(hello.nonce));
	mc_tcp_hello_encode(l->txhead, &hello);
	l->hello_len = MC_TCP_HELLO_BYTES;
	*ret_lane = &l->base;
	return 0;
fail:
	mc_tcp_lane_close(&l->base);
	return rc;
}

void mc_tcp_lane_close(struct mc_xlane *x)
{
	struct tcp_lane *l = lane_of(x);

	if (!l)
		return;
	mc_fd_close(&l->fd);
	mc_free(l);
}

/* Encode the request of s into tx: head, fragments, signal, payload of a write. */
static void tx_load(struct tcp_lane *l, struct mc_slice *s)
{
	struct mc_wr w = mc_wr_make(l->txhead + MC_TCP_HELLO_BYTES, MC_TCP_REQ_MAX);
	struct mc_tcp_req q = {.op = s->op,
			       .has_signal = s->signal.rr != NULL,
			       .nfrags = s->nfrags,
			       .seq = s->seq,
			       .len = s->len};

	mc_tcp_req_encode(&w, &q);
	for (uint32_t i = 0; i < s->nfrags; i++) {
		const struct mc_frag *f = &s->frags[i];

		mc_tcp_frag_encode(&w, &(struct mc_tcp_frag){.region = f->rr->id,
							     .gen = f->rr->gen,
							     .off = f->raddr - f->rr->addr,
							     .len = f->len});
	}
	if (q.has_signal)
		mc_tcp_frag_encode(
		    &w, &(struct mc_tcp_frag){.region = s->signal.rr->id,
					      .gen = s->signal.rr->gen,
					      .off = s->signal.raddr - s->signal.rr->addr,
					      .len = s->signal.value});
	mc_assert(!w.is_bad);
	mc_iovq_reset(&l->tx);
	mc_iovq_push(&l->tx, l->txhead + MC_TCP_HELLO_BYTES - l->hello_len,
		     l->hello_len + mc_wr_len(&w));
	l->hello_len = 0;
	if (s->op == MC_OP_WRITE)
		for (uint32_t i = 0; i < s->nfrags; i++)
			mc_iovq_push(&l->tx, s->frags[i].local, s->frags[i].len);
	l->txs = s;
	l->is_tx_begun = false;
}

static size_t piece_of(const struct mc_slice *s)
{
	return s && s->tap ? SHOWN_PIECE : SIZE_MAX;
}

/* Payload of txs was taken: of `before` bytes in tx there are l->tx.left now. */
static void tx_show(struct tcp_lane *l, size_t before)
{
	struct mc_slice *s = l->txs;
	uint64_t had = mc_min((uint64_t)before, s->len), has = mc_min((uint64_t)l->tx.left, s->len);

	if (s->tap && s->op == MC_OP_WRITE && has < had)
		s->tap->passed(s, s->len - had, had - has);
}

/* Send until done or the socket is full. @return 0 or < 0 */
static int tx_pump(struct tcp_lane *l)
{
	for (;;) {
		size_t before;
		ssize_t n;

		if (!l->txs) {
			struct mc_slice *s = mc_list_first(&l->txq, struct mc_slice, link);

			if (!s)
				return 0;
			tx_load(l, s);
		}
		before = l->tx.left;
		n = mc_tcp_send(l->fd, &l->tx, piece_of(l->txs));
		if (n < 0)
			return (int)n;
		if (n == 0)
			return 0;
		l->is_tx_begun = true;
		moved(l, n);
		tx_show(l, before);
		if (l->tx.left > 0)
			continue;
		mc_list_del(&l->txs->link);
		mc_list_push_back(&l->ackq, &l->txs->link);
		l->txs = NULL;
	}
}

/* Say what comes next from the target. Only with a single read outstanding its payload may be
 * received together with the head: after a refusal nothing would follow, so nothing else can land
 * in its memory. */
static void rx_load(struct tcp_lane *l)
{
	struct mc_slice *s = mc_list_first(&l->ackq, struct mc_slice, link);

	mc_iovq_reset(&l->rx);
	l->is_rx_direct = false;
	if (!l->is_welcome) {
		mc_iovq_push(&l->rx, l->rxhead, MC_TCP_WELCOME_BYTES);
	} else {
		mc_iovq_push(&l->rx, l->rxhead, MC_TCP_REPLY_BYTES);
		if (s && s->op == MC_OP_READ && l->depth == 1) {
			for (uint32_t i = 0; i < s->nfrags; i++)
				mc_iovq_push(&l->rx, s->frags[i].local, s->frags[i].len);
			l->is_rx_direct = true;
		}
	}
	l->rxs = NULL;
	l->is_rx_ready = true;
}

static int rx_welcome(struct tcp_lane *l)
{
	struct mc_tcp_welcome m;
	int rc = mc_tcp_welcome_decode(l->rxhead, &m);

	if (rc < 0)
		return rc;
	if (m.status < 0)
		return m.status;
	if (l->peer_epoch && m.target_epoch != l->peer_epoch)
		return -MC_E_PEER_RESTARTED;
	l->is_welcome = true;
	l->is_rx_ready = false;
	return 0;
}

static struct mc_slice *finish(struct tcp_lane *l, struct mc_slice *s, int status)
{
	mc_list_del(&s->link);
	l->depth--;
	l->is_rx_ready = l->is_rx_direct = false;
	l->rxs = NULL;
	s->status = status;
	s->verdict = MC_SLICE_DONE;
	if (status == 0)
		s->moved = s->len;
	return s;
}

/* A reply's head is there. @return 1: *ret_done is finished; 0: its payload follows; < 0 */
static int rx_reply(struct tcp_lane *l, struct mc_slice **ret_done)
{
	struct mc_slice *s = mc_list_first(&l->ackq, struct mc_slice, link);
	struct mc_tcp_reply p;
	int rc = mc_tcp_reply_decode(l->rxhead, &p);

	if (rc < 0)
		return rc;
	if (!s || p.seq != s->seq)
		return -MC_E_PROTO;
	if (p.status < 0 || s->op == MC_OP_WRITE) {
		if (p.len != 0)
			return -MC_E_PROTO;
		s->bad_frag = p.bad_frag;
		*ret_done = finish(l, s, p.status);
		return 1;
	}
	if (p.len != s->len)
		return -MC_E_PROTO;
	l->rxs = s;
	if (!l->is_rx_direct) {
		for (uint32_t i = 0; i < s->nfrags; i++)
			mc_iovq_push(&l->rx, s->frags[i].local, s->frags[i].len);
	}
	s->moved = s->len - l->rx.left;
	if (s->tap && s->moved > 0)
		s->tap->passed(s, 0, s->moved);
	if (l->rx.left > 0)
		return 0;
	*ret_done = finish(l, s, 0); /* everything came with the head */
	return 1;
}

/* Bytes of the head that rx still waits for. */
static size_t rx_head_left(const struct tcp_lane *l)
{
	const struct mc_slice *s = mc_list_first(&l->ackq, struct mc_slice, link);

	if (!l->is_rx_direct)
		return l->rx.left;
	return l->rx.left > s->len ? (size_t)(l->rx.left - s->len) : 0;
}

/* n bytes came into rx. @return 1: *ret_done is finished; 0: more is to come; < 0 */
static int rx_step(struct tcp_lane *l, size_t n, struct mc_slice **ret_done)
{
	if (l->rxs) {
		if (l->rxs->tap)
			l->rxs->tap->passed(l->rxs, l->rxs->moved, n);
		l->rxs->moved += n;
		if (l->rx.left > 0)
			return 0;
		*ret_done = finish(l, l->rxs, 0);
		return 1;
	}
	if (rx_head_left(l) > 0)
		return 0;
	return l->is_welcome ? rx_reply(l, ret_done) : rx_welcome(l);
}

/* Receive what is there. @return slices finished, or < 0 */
static int rx_pump(struct tcp_lane *l, struct mc_slice **ret_done, unsigned max, bool may_block)
{
	unsigned done = 0;
	int rc = 0;

	while (done < max && (!l->is_welcome || !mc_list_is_empty(&l->ackq))) {
		size_t piece;
		ssize_t n;

		if (!l->is_rx_ready)
			rx_load(l);
		piece = piece_of(mc_list_first(&l->ackq, struct mc_slice, link));
		n = may_block ? mc_tcp_recv_block(l->fd, &l->rx, l->rx.left >= RECV_BLOCK_MIN_BYTES,
						  piece)
			      : mc_tcp_recv(l->fd, &l->rx, piece);
		rc = n < 0 ? (int)n : 0;
		if (n <= 0)
			break;
		moved(l, n);
		may_block = false;
		rc = rx_step(l, (size_t)n, &ret_done[done]);
		if (rc < 0)
			break;
		done += (unsigned)rc;
	}
	if (rc >= 0)
		return (int)done;
	l->failed = rc;
	return done ? (int)done : rc;
}

/* A second request goes out: the payload of the first may no longer be received with its head. */
static void rx_undirect(struct tcp_lane *l)
{
	struct mc_slice *s = mc_list_first(&l->ackq, struct mc_slice, link);
	size_t head_left = (size_t)(l->rx.left - s->len);

	mc_iovq_reset(&l->rx);
	mc_iovq_push(&l->rx, l->rxhead + MC_TCP_REPLY_BYTES - head_left, head_left);
	l->is_rx_direct = false;
}

int mc_tcp_lane_post(struct mc_xlane *x, struct mc_slice **slices, unsigned n)
{
	struct tcp_lane *l = lane_of(x);
	unsigned taken = 0;

	if (l->state == LANE_BROKEN)
		return -MC_E_CLOSED;
	if (n > 0 && l->is_rx_ready && l->is_rx_direct && !l->rxs)
		rx_undirect(l);
	while (taken < n && l->depth < DEPTH_MAX) {
		struct mc_slice *s = slices[taken++];

		s->seq = ++l->seq;
		s->moved = 0;
		l->depth++;
		mc_list_push_back(&l->txq, &s->link);
	}
	if (l->state == LANE_OPEN)
		(void)tx_pump(l); /* an error stays in the socket: poll() meets it again */
	return (int)taken;
}

static int connect_pump(struct tcp_lane *l, uint64_t block_ns)
{
	int rc;

	if (mc_tcp_wait(l->fd, POLLOUT, block_ns) == 0)
		return 0;
	rc = mc_sock_connect_result(l->fd);
	if (rc < 0)
		return rc;
	/* Receives may now block when asked to; sends never do. */
	(void)fcntl(l->fd, F_SETFL, fcntl(l->fd, F_GETFL) & ~O_NONBLOCK);
	l->state = LANE_OPEN;
	return 0;
}

static int pump(struct tcp_lane *l, struct mc_slice **ret_done, unsigned max, bool may_block)
{
	int rc;

	if (!mc_list_is_empty(&l->txq)) {
		rc = tx_pump(l);
		if (rc < 0) {
			/* The target may have said why before it closed. */
			int why = rx_pump(l, ret_done, max, false);

			return why != 0 ? why : rc;
		}
		may_block = may_block && mc_list_is_empty(&l->txq);
	}
	return rx_pump(l, ret_done, max, may_block);
}

/* Much is still to move: sleep until there is much to do, polling would only do it in small pieces.
 */
static int wait_long(struct tcp_lane *l, uint64_t block_ns, struct mc_slice **ret_done,
		     unsigned max)
{
	if (mc_list_is_empty(&l->txq)) {
		if (block_ns >= RECV_BLOCK_MS * MC_NS_PER_MS)
			return pump(l, ret_done, max, true);
		(void)mc_tcp_wait(l->fd, POLLIN, block_ns);
	} else {
		(void)mc_tcp_wait(l->fd, POLLIN | POLLOUT, block_ns);
	}
	return pump(l, ret_done, max, false);
}

struct waiting {
	struct tcp_lane *lane;
	uint64_t block_ns;
	struct mc_slice **ret_done;
	unsigned max;
};

static int wait_look(void *user)
{
	struct waiting *w = user;

	return pump(w->lane, w->ret_done, w->max, false);
}

static int wait_sleep(void *user)
{
	struct waiting *w = user;

	return wait_long(w->lane, w->block_ns, w->ret_done, w->max);
}

/* Nothing was ready: poll a little where that pays, then sleep. */
static int wait_pump(struct tcp_lane *l, uint64_t block_ns, struct mc_slice **ret_done,
		     unsigned max)
{
	struct waiting w = {l, block_ns, ret_done, max};

	if (!mc_list_is_empty(&l->txq) || (l->is_rx_ready && l->rx.left >= RECV_BLOCK_MIN_BYTES))
		return wait_sleep(&w);
	return mc_spin_wait(&l->spin, wait_look, wait_sleep, &w);
}

int mc_tcp_lane_poll(struct mc_xlane *x, uint64_t block_ns, struct mc_slice **ret_done,
		     unsigned max)
{
	struct tcp_lane *l = lane_of(x);
	int rc;

	if (l->state == LANE_BROKEN)
		return -MC_E_CLOSED;
	if (l->failed < 0)
		return broken(l, l->failed);
	if (l->state == LANE_CONNECTING) {
		rc = connect_pump(l, block_ns);
		if (rc < 0)
			return broken(l, rc);
		if (l->state == LANE_CONNECTING)
			return 0;
	}
	rc = pump(l, ret_done, max, false);
	if (rc == 0 && block_ns > 0)
		rc = wait_pump(l, block_ns, ret_done, max);
	return rc < 0 ? broken(l, rc) : rc;
}

void mc_tcp_lane_arm(struct mc_xlane *x, struct mc_xarm *ret_arm)
{
	struct tcp_lane *l = lane_of(x);

	*ret_arm = (struct mc_xarm){.fd = l->fd, .events = POLLIN, .is_block_ok = true};
	if (l->state == LANE_CONNECTING || !mc_list_is_empty(&l->txq))
		ret_arm->events |= POLLOUT;
}

/* What the kernels have passed on counts, too: a slow link drains a full socket buffer for longer
 * than the watchdog waits, and what has come may wait for us. */
uint64_t mc_tcp_lane_progress(const struct mc_xlane *x)
{
	const struct tcp_lane *l = (const struct tcp_lane *)x;

	return atomic_load_explicit(&l->progress, memory_order_relaxed) + mc_tcp_passed(l->fd);
}

/* Does it change anything at the target? */
static bool lands(const struct mc_slice *s)
{
	return s->op == MC_OP_WRITE || s->signal.rr;
}

size_t mc_tcp_lane_abort(struct mc_xlane *x, struct mc_list *ret_left, uint8_t *ret_token)
{
	struct tcp_lane *l = lane_of(x);
	struct mc_wr w = mc_wr_make(ret_token, MC_XPORT_TOKEN_MAX);
	bool is_maybe = false;
	struct mc_slice *s;

	/* From here on no byte reaches local memory: only this thread received, and it stops. */
	mc_fd_close(&l->fd);
	l->state = LANE_BROKEN;
	mc_list_each (s, &l->ackq, link) {
		s->verdict = lands(s) ? MC_SLICE_MAYBE : MC_SLICE_UNSENT;
		is_maybe |= s->verdict == MC_SLICE_MAYBE;
	}
	mc_list_each (s, &l->txq, link) {
		bool is_begun = s == l->txs && l->is_tx_begun && lands(s);

		s->verdict = is_begun ? MC_SLICE_MAYBE : MC_SLICE_UNSENT;
		is_maybe |= is_begun;
	}
	mc_list_splice_back(ret_left, &l->ackq);
	mc_list_splice_back(ret_left, &l->txq);
	l->depth = 0;
	l->txs = l->rxs = NULL;
	if (!is_maybe)
		return 0;
	mc_wr_u64(&w, l->dev->env.epoch);
	mc_wr_u64(&w, l->id);
	return mc_wr_len(&w);
}
