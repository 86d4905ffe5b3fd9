/*
 * chan.c: see chan.h.
 */
#include "rpc/chan.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "base/mem.h"

#define IN_MIN (64u << 10)  /* the receive buffer when no large frame is under way */
#define KEEP_MAX (1u << 20) /* larger buffers are given back when they are empty */

static void marks_drop(struct mc_chan_marks *m)
{
	for (unsigned i = 0; i < m->n; i++) {
		while (m->mark[i].n > 0)
			mc_fd_close(&m->mark[i].fds[--m->mark[i].n]);
	}
	m->n = 0;
}

int mc_chan_init(struct mc_chan *ch, const struct mc_net *net, struct mc_net_sock *sock,
		 mc_chan_frame_fn *on_frame, size_t frame_max, size_t queue_max)
{
	(void)pthread_mutex_init(&ch->lock, NULL); /* cannot fail with default attributes */
	ch->net = net;
	ch->sock = sock;
	ch->on_frame = on_frame;
	ch->frame_max = frame_max;
	ch->queue_max = queue_max;
	ch->in = mc_calloc(1, IN_MIN);
	if (!ch->in)
		return -MC_E_NOMEM;
	ch->in_cap = IN_MIN;
	return 0;
}

void mc_chan_fini(struct mc_chan *ch)
{
	if (!ch->net)
		return;
	marks_drop(&ch->pending_marks);
	marks_drop(&ch->sending_marks);
	while (ch->nfds > 0)
		mc_fd_close(&ch->fds[--ch->nfds]);
	mc_free(ch->pending.data);
	mc_free(ch->sending.data);
	mc_free(ch->in);
	ch->net->close(ch->sock);
	(void)pthread_mutex_destroy(&ch->lock);
	ch->net = NULL;
}

void mc_chan_break(struct mc_chan *ch, int rc)
{
	if (ch->rc < 0)
		return;
	ch->rc = rc;
	ch->net->shutdown(ch->sock);
}

size_t mc_chan_queued(const struct mc_chan *ch)
{
	return ch->pending.len + ch->sending.len;
}

/* ---- sending ---- */

static int buf_reserve(struct mc_chan_buf *b, size_t more)
{
	size_t want, cap = b->cap ? b->cap : 4096;
	uint8_t *grown;

	if (__builtin_add_overflow(b->len, more, &want))
		return -MC_E_TOO_BIG;
	if (want <= b->cap)
		return 0;
	while (cap < want)
		cap *= 2;
	grown = mc_realloc_array(b->data, cap, 1);
	if (!grown)
		return -MC_E_NOMEM;
	b->data = grown;
	b->cap = cap;
	return 0;
}

/* Duplicates, so that the caller's descriptors stay its own. */
static int mark_put(struct mc_chan *ch, const int *fds, unsigned n)
{
	struct mc_chan_marks *m = &ch->pending_marks;
	struct mc_chan_mark *mark = &m->mark[m->n];

	if (n > MC_FRAME_FDS_MAX)
		return -MC_E_TOO_BIG;
	if (m->n == MC_ARRAY_LEN(m->mark))
		return -MC_E_AGAIN;
	mc_assert(fds || n == 0);
	mark->at = ch->pending.len;
	for (mark->n = 0; mark->n < n; mark->n++) {
		mark->fds[mark->n] = fcntl(fds[mark->n], F_DUPFD_CLOEXEC, 0);
		if (mark->fds[mark->n] < 0) {
			int rc = errno == EMFILE ? -MC_E_LIMIT : -MC_E_INVAL;

			while (mark->n > 0)
				mc_fd_close(&mark->fds[--mark->n]);
			return rc;
		}
	}
	m->n++;
	return 0;
}

static void put_header(struct mc_chan *ch, const struct mc_frame *f)
{
	mc_frame_encode(f, ch->pending.data + ch->pending.len);
	ch->pending.len += MC_FRAME_HEADER_LEN;
}

static int put(struct mc_chan *ch, const struct mc_frame *f, const void *payload, const int *fds)
{
	int rc = buf_reserve(&ch->pending, MC_FRAME_HEADER_LEN + (size_t)f->payload_len);

	if (rc < 0)
		return rc;
	if (f->nfds) {
		rc = mark_put(ch, fds, f->nfds);
		if (rc < 0)
			return rc;
	}
	put_header(ch, f);
	if (f->payload_len) {
		memcpy(ch->pending.data + ch->pending.len, payload, f->payload_len);
		ch->pending.len += f->payload_len;
	}
	return 0;
}

int mc_chan_put(struct mc_chan *ch, const struct mc_frame *f, const void *payload, const int *fds)
{
	const size_t queued = mc_chan_queued(ch);

	if (ch->rc < 0)
		return ch->rc;
	/* One frame always fits, however long. */
	if (queued > 0 && queued + MC_FRAME_HEADER_LEN + f->payload_len > ch->queue_max)
		return -MC_E_AGAIN;
	return put(ch, f, payload, fds);
}

int mc_chan_put_stream(struct mc_chan *ch, const struct mc_frame *f, const void *payload)
{
	return ch->rc < 0 ? ch->rc : put(ch, f, payload, NULL);
}

void mc_chan_put_short(struct mc_chan *ch, const struct mc_frame *f)
{
	int rc;

	mc_assert(f->payload_len == 0 && f->nfds == 0);
	if (ch->rc < 0)
		return;
	rc = buf_reserve(&ch->pending, MC_FRAME_HEADER_LEN);
	if (rc < 0) /* the peer would wait for ever for what it was not told */
		mc_chan_break(ch, rc);
	else
		put_header(ch, f);
}

int mc_chan_put_hello(struct mc_chan *ch, const struct mc_frame_hello *hello)
{
	struct mc_frame f = {.type = MC_FRAME_HELLO, .payload_len = MC_FRAME_HELLO_LEN};
	uint8_t payload[MC_FRAME_HELLO_LEN];
	int rc = buf_reserve(&ch->pending, MC_FRAME_PREFACE_LEN);

	if (rc < 0)
		return rc;
	memcpy(ch->pending.data + ch->pending.len, MC_FRAME_PREFACE, MC_FRAME_PREFACE_LEN);
	ch->pending.len += MC_FRAME_PREFACE_LEN;
	mc_frame_hello_encode(hello, payload);
	return mc_chan_put(ch, &f, payload, NULL);
}

/* Seat and lock held: everything pending becomes `sending`, which is empty. */
static bool sending_refill(struct mc_chan *ch)
{
	struct mc_chan_buf empty = ch->sending;

	if (ch->rc < 0 || ch->is_blocked || ch->pending.len == 0)
		return false;
	if (empty.cap > KEEP_MAX) {
		mc_free(empty.data);
		empty = (struct mc_chan_buf){0};
	}
	ch->sending = ch->pending;
	ch->pending = empty;
	if (ch->pending_marks.n) {
		ch->sending_marks = ch->pending_marks;
		ch->pending_marks.n = 0;
	}
	ch->sent = 0;
	return true;
}

/* Seat held: one system call. Bytes up to the next mark only, so that its descriptors go with
 * theirs. */
static int sending_step(struct mc_chan *ch)
{
	struct mc_chan_marks *m = &ch->sending_marks;
	struct mc_chan_mark *mark = m->n ? &m->mark[0] : NULL;
	bool with_fds = mark && mark->at == ch->sent;
	size_t end = ch->sending.len;
	struct iovec iov;
	ssize_t n;

	if (with_fds && m->n > 1)
		end = m->mark[1].at;
	else if (mark && !with_fds)
		end = mark->at;
	iov = (struct iovec){.iov_base = ch->sending.data + ch->sent, .iov_len = end - ch->sent};
	n = ch->net->send(ch->sock, &iov, 1, with_fds ? mark->fds : NULL, with_fds ? mark->n : 0);
	if (n < 0)
		return (int)n;
	ch->sent += (size_t)n;
	if (with_fds) {
		while (mark->n > 0)
			mc_fd_close(&mark->fds[--mark->n]);
		m->n--;
		memmove(&m->mark[0], &m->mark[1], m->n * sizeof(m->mark[0]));
	}
	return 0;
}

bool mc_chan_flush(struct mc_chan *ch)
{
	bool is_blocked;
	int rc = 0;

	(void)pthread_mutex_lock(&ch->lock);
	if (!ch->is_sending) {
		ch->is_sending = true;
		while (ch->rc == 0 && !ch->is_blocked &&
		       (ch->sent < ch->sending.len || sending_refill(ch))) {
			(void)pthread_mutex_unlock(&ch->lock);
			rc = sending_step(ch);
			(void)pthread_mutex_lock(&ch->lock);
			if (ch->sent == ch->sending.len)
				ch->sent = ch->sending.len = 0;
			if (rc == -MC_E_AGAIN)
				ch->is_blocked = true;
			else if (rc < 0)
				mc_chan_break(ch, rc);
		}
		ch->is_sending = false;
	}
	is_blocked = ch->is_blocked && ch->rc == 0;
	(void)pthread_mutex_unlock(&ch->lock);
	return is_blocked;
}

bool mc_chan_claim(struct mc_chan *ch)
{
	if (ch->rc < 0 || ch->is_sending || ch->is_blocked || mc_chan_queued(ch) > 0)
		return false;
	ch->is_sending = true;
	return true;
}

/* Lock held: what the socket did not take waits as what was pending would. */
static int direct_keep(struct mc_chan *ch, const struct iovec *iov, unsigned n)
{
	for (unsigned i = 0; i < n; i++) {
		if (iov[i].iov_len == 0)
			continue;
		if (buf_reserve(&ch->sending, iov[i].iov_len) < 0)
			return -MC_E_NOMEM;
		memcpy(ch->sending.data + ch->sending.len, iov[i].iov_base, iov[i].iov_len);
		ch->sending.len += iov[i].iov_len;
	}
	return 0;
}

void mc_chan_send_claimed(struct mc_chan *ch, const struct mc_frame *f, const void *payload)
{
	uint8_t header[MC_FRAME_HEADER_LEN];
	struct iovec iov[2] = {
	    {.iov_base = header, .iov_len = sizeof(header)},
	    {.iov_base = (void *)payload, .iov_len = f->payload_len}, /* only read */
	};
	ssize_t n = 0;

	mc_frame_encode(f, header);
	do {
		for (unsigned i = 0; i < MC_ARRAY_LEN(iov) && n > 0; i++) {
			size_t took = mc_min((size_t)n, iov[i].iov_len);

			iov[i].iov_base = (uint8_t *)iov[i].iov_base + took;
			iov[i].iov_len -= took;
			n -= (ssize_t)took;
		}
		if (iov[1].iov_len == 0)
			break;
		n = ch->net->send(ch->sock, iov, MC_ARRAY_LEN(iov), NULL, 0);
	} while (n >= 0);
	(void)pthread_mutex_lock(&ch->lock);
	if (n == -MC_E_AGAIN)
		n = direct_keep(ch, iov, MC_ARRAY_LEN(iov));
	if (n < 0) /* a part of a frame is out: nothing can follow it */
		mc_chan_break(ch, (int)n);
	ch->is_sending = false;
	(void)pthread_mutex_unlock(&ch->lock);
}

bool mc_chan_writable(struct mc_chan *ch)
{
	int rc = 0;

	(void)pthread_mutex_lock(&ch->lock);
	if (!ch->is_connected && ch->rc == 0) {
		rc = ch->net->connect_result(ch->sock);
		if (rc < 0)
			mc_chan_break(ch, rc);
		else
			ch->is_connected = true;
	}
	if (!ch->is_sending) /* else its holder has just seen more than we know */
		ch->is_blocked = false;
	(void)pthread_mutex_unlock(&ch->lock);
	return mc_chan_flush(ch);
}

/* ---- receiving ---- */

bool mc_chan_take(struct mc_chan *ch)
{
	if (ch->is_receiving)
		return false;
	ch->is_receiving = true;
	return true;
}

static int check_preface(struct mc_chan *ch)
{
	const size_t n = mc_min(ch->in_len - ch->in_at, (size_t)MC_FRAME_PREFACE_LEN);

	/* Byte 5 is the version of the whole conversation. */
	if (n >= 6 && memcmp(ch->in + ch->in_at, MC_FRAME_PREFACE, 5) == 0 &&
	    ch->in[ch->in_at + 5] != (uint8_t)MC_FRAME_PREFACE[5])
		return -MC_E_VERSION;
	if (memcmp(ch->in + ch->in_at, MC_FRAME_PREFACE, n) != 0)
		return -MC_E_PROTO;
	if (n == MC_FRAME_PREFACE_LEN) {
		ch->has_preface = true;
		ch->in_at += n;
	}
	return 0;
}

static void fds_close(int *fds, unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		mc_fd_close(&fds[i]);
}

/* Header and payload are in the buffer. */
static int one_frame(struct mc_chan *ch, const struct mc_frame *f)
{
	struct mc_rpc_msg msg = {.data = ch->in + ch->in_at + MC_FRAME_HEADER_LEN,
				 .len = f->payload_len,
				 .nfds = f->nfds};
	int fds[MC_FRAME_FDS_MAX];
	int rc;

	if (f->nfds > ch->nfds)
		return -MC_E_PROTO;
	memcpy(fds, ch->fds, f->nfds * sizeof(int));
	ch->nfds -= f->nfds;
	memmove(ch->fds, ch->fds + f->nfds, ch->nfds * sizeof(int));
	msg.fds = fds;
	ch->in_at += MC_FRAME_HEADER_LEN + f->payload_len;
	if (!ch->has_hello && f->type != MC_FRAME_HELLO && f->type != MC_FRAME_GOODBYE)
		rc = -MC_E_PROTO;
	else if (ch->has_hello && f->type == MC_FRAME_HELLO)
		rc = -MC_E_PROTO;
	else
		rc = ch->on_frame(ch, f, &msg);
	if (f->type == MC_FRAME_HELLO)
		ch->has_hello = true;
	fds_close(fds, f->nfds);
	return rc;
}

/* Handle what is whole. @param ret_need bytes that the frame under way has in all, or 0 */
static int parse(struct mc_chan *ch, size_t *ret_need)
{
	struct mc_frame f;
	int rc;

	*ret_need = 0;
	if (!ch->has_preface) {
		rc = check_preface(ch);
		if (rc < 0 || !ch->has_preface)
			return rc;
	}
	while (ch->in_len - ch->in_at >= MC_FRAME_HEADER_LEN) {
		rc = mc_frame_decode(ch->in + ch->in_at, &f);
		if (rc < 0)
			return rc;
		if (f.payload_len > ch->frame_max)
			return -MC_E_TOO_BIG;
		*ret_need = MC_FRAME_HEADER_LEN + f.payload_len;
		if (ch->in_len - ch->in_at < *ret_need)
			return 0;
		rc = one_frame(ch, &f);
		if (rc < 0)
			return rc;
		*ret_need = 0;
		ch->is_paused = rc > 0;
		if (ch->is_paused)
			return 0;
	}
	/* Descriptors belong to a frame that has begun. */
	return ch->nfds > 0 && ch->in_at == ch->in_len ? -MC_E_PROTO : 0;
}

/*
 * Make room for the rest of a frame: move it to the front, and grow by doubling as its bytes come,
 * so that a large length alone takes no memory.
 */
static int in_room(struct mc_chan *ch, size_t need)
{
	size_t have = ch->in_len - ch->in_at, cap;
	uint8_t *grown;

	if (have == 0) {
		ch->in_at = ch->in_len = 0;
		if (ch->in_cap > KEEP_MAX && need == 0) {
			grown = mc_realloc_array(ch->in, IN_MIN, 1);
			if (grown) {
				ch->in = grown;
				ch->in_cap = IN_MIN;
			}
		}
		return 0;
	}
	if (need <= ch->in_cap - ch->in_at && ch->in_len < ch->in_cap)
		return 0;
	memmove(ch->in, ch->in + ch->in_at, have);
	ch->in_at = 0;
	ch->in_len = have;
	if (ch->in_len < ch->in_cap)
		return 0;
	cap = mc_min(ch->in_cap * 2, MC_FRAME_HEADER_LEN + ch->frame_max);
	grown = mc_realloc_array(ch->in, cap, 1);
	if (!grown)
		return -MC_E_NOMEM;
	ch->in = grown;
	ch->in_cap = cap;
	return 0;
}

static int fds_add(struct mc_chan *ch, int *fds, unsigned n)
{
	if (ch->nfds + n > MC_CHAN_FDS_MAX) {
		fds_close(fds, n);
		return -MC_E_PROTO;
	}
	memcpy(ch->fds + ch->nfds, fds, n * sizeof(int));
	ch->nfds += n;
	return 0;
}

static int in_done(struct mc_chan *ch, size_t n)
{
	size_t need;
	int rc;

	ch->in_len += n;
	rc = ch->is_paused ? 0 : parse(ch, &need);
	if (rc < 0 || ch->is_paused)
		return rc;
	return in_room(ch, need);
}

ssize_t mc_chan_recv(struct mc_chan *ch, uint64_t wait_ns)
{
	uint8_t *at = ch->in + ch->in_len;
	const size_t room = ch->in_cap - ch->in_len;
	int fds[MC_NET_FDS_MAX];
	unsigned nfds = 0;
	ssize_t n;
	int rc;

	if (wait_ns)
		n = ch->net->recv_wait(ch->sock, at, room, fds, &nfds, wait_ns);
	else
		n = ch->net->recv(ch->sock, at, room, fds, &nfds);
	if (n == 0)
		return -MC_E_RESET;
	if (n < 0)
		return n;
	rc = fds_add(ch, fds, nfds);
	if (rc == 0)
		rc = in_done(ch, (size_t)n);
	return rc < 0 ? rc : n;
}

int mc_chan_resume(struct mc_chan *ch)
{
	ch->is_paused = false;
	return in_done(ch, 0);
}

int mc_chan_feed(struct mc_chan *ch, const void *data, size_t len)
{
	const uint8_t *at = data;

	/* A pause leaves no room to read into: the caller resumes first. */
	while (len > 0 && ch->in_len < ch->in_cap) {
		size_t n = mc_min(len, ch->in_cap - ch->in_len);
		int rc;

		memcpy(ch->in + ch->in_len, at, n);
		rc = in_done(ch, n);
		if (rc < 0)
			return rc;
		at += n;
		len -= n;
	}
	return len == 0 ? 0 : -MC_E_TOO_BIG;
}
