/*
 * link.c: frames on the connection to a rank: out of slots and into them.
 *
 * Bytes of a slot go from there to the socket, and from the socket to the slot's image at the other
 * end.
 */
#include <errno.h>
#include <string.h>
#include <sys/uio.h>

#include "base/codec.h"
#include "base/mem.h"
#include "coll/net.h"
#include "ep/net.h"

#define MAGIC 0x5045434du /* "MCEP" */
#define PARTS_MAX (MC_EP_TOKENS_MAX + 1u)
#define PART_LEN 16u
#define IOV_MAX_HERE 64
#define TURN_BYTES (1u << 20) /* of one link, before the next one's turn */

static struct mc_loop *loop_of(const struct mc_ep_net *net)
{
	return net->ep->coll->hub->loop;
}

/* ---- frames ---- */

int mc_ep_parts_add(struct mc_ep_parts *parts, uint64_t at, uint64_t len)
{
	struct mc_ep_part *last = parts->n ? &parts->part[parts->n - 1] : NULL;
	int rc;

	if (last && last->at + last->len == at) {
		last->len += len;
		return 0;
	}
	rc = mc_array_grow((void **)&parts->part, &parts->cap, parts->n + 1, PARTS_MAX,
			   sizeof(*parts->part));
	if (rc == 0)
		parts->part[parts->n++] = (struct mc_ep_part){at, len};
	return rc;
}

static void head_write(struct mc_wr *w, const struct mc_ep_frame_head *h)
{
	mc_wr_u32(w, MAGIC);
	mc_wr_u32(w, h->type);
	mc_wr_u32(w, h->slot);
	mc_wr_u32(w, h->nparts);
	mc_wr_u64(w, h->word);
	mc_wr_u64(w, h->a);
	mc_wr_u64(w, h->b);
	mc_wr_u64(w, h->c);
	mc_wr_u64(w, 0);
	mc_wr_u64(w, 0);
}

int mc_ep_head_read(const uint8_t *bytes, struct mc_ep_frame_head *h)
{
	struct mc_rd r = mc_rd_make(bytes, MC_EP_HEAD_LEN);

	if (mc_rd_u32(&r) != MAGIC)
		return -MC_E_PROTO;
	h->type = mc_rd_u32(&r);
	h->slot = mc_rd_u32(&r);
	h->nparts = mc_rd_u32(&r);
	h->word = mc_rd_u64(&r);
	h->a = mc_rd_u64(&r);
	h->b = mc_rd_u64(&r);
	h->c = mc_rd_u64(&r);
	return 0;
}

struct mc_ep_out *mc_ep_net_out(const struct mc_ep_frame_head *head, const uint8_t *slot,
				struct mc_ep_parts *parts)
{
	uint32_t n = parts ? (uint32_t)parts->n : 0;
	uint64_t len = MC_EP_HEAD_LEN + (uint64_t)n * PART_LEN;
	struct mc_ep_out *out = mc_calloc(1, sizeof(*out) + len);
	struct mc_ep_frame_head h = *head;
	struct mc_wr w;

	if (!out)
		return NULL;
	h.nparts = n;
	w = mc_wr_make(out->text, len);
	head_write(&w, &h);
	for (uint32_t i = 0; i < n; i++) {
		mc_wr_u64(&w, parts->part[i].at);
		mc_wr_u64(&w, parts->part[i].len);
	}
	out->slot = head->slot;
	out->is_show = head->type == MC_EP_FRAME_SHOW;
	out->bytes = slot;
	out->text_len = len;
	out->nparts = n;
	if (parts) {
		out->part = parts->part;
		*parts = (struct mc_ep_parts){0};
	}
	return out;
}

void mc_ep_net_out_free(struct mc_ep_out *out)
{
	if (!out)
		return;
	mc_free(out->part);
	mc_free(out);
}

static void out_drop(struct mc_ep_net *net, struct mc_ep_out *out)
{
	mc_list_del(&out->link);
	if (out->is_show)
		atomic_fetch_sub_explicit(&net->unsent[out->slot], 1, memory_order_release);
	mc_ep_net_out_free(out);
}

void mc_ep_net_queue(struct mc_ep_net *net, unsigned q, struct mc_ep_out *out)
{
	if (out->is_show)
		atomic_fetch_add_explicit(&net->unsent[out->slot], 1, memory_order_relaxed);
	mc_list_push_back(&net->link[q].pending, &out->link);
}

void mc_ep_net_stir(struct mc_ep_net *net)
{
	if (!atomic_exchange_explicit(&net->is_posted, true, memory_order_acq_rel))
		mc_loop_post(loop_of(net), &net->task);
}

/* ---- a link's end ---- */

static void drop_outs(struct mc_ep_link *l)
{
	struct mc_ep_out *out;

	pthread_mutex_lock(&l->net->lock);
	mc_list_splice_back(&l->outs, &l->pending);
	pthread_mutex_unlock(&l->net->lock);
	mc_list_each (out, &l->outs, link)
		out_drop(l->net, out);
}

void mc_ep_link_hang_up(struct mc_ep_link *l)
{
	if (l->is_watched)
		mc_loop_unwatch(loop_of(l->net), &l->conn);
	mc_fd_close(&l->conn.fd);
	l->is_watched = l->is_connected = false;
	drop_outs(l);
	atomic_store_explicit(&l->asked, 0, memory_order_relaxed);
	mc_free(l->part);
	l->part = NULL;
	l->rx_at = l->rx_have = l->head_have = 0;
}

void mc_ep_link_lost(struct mc_ep_link *l)
{
	struct mc_coll_peer *p = l->net->ep->peer[l->slot].p;

	mc_ep_link_hang_up(l);
	if (!mc_coll_peer_is_lost(p))
		atomic_store_explicit(&l->asked, mc_coll_probe_anew(p), memory_order_release);
	mc_coll_stir(p->coll);
}

bool mc_ep_link_is_cut(const struct mc_ep_link *l)
{
	const struct mc_coll_peer *p = l->net->ep->peer[l->slot].p;
	uint64_t asked = atomic_load_explicit(&l->asked, memory_order_acquire);

	return asked && atomic_load_explicit(&p->wire->lived, memory_order_acquire) >= asked;
}

/* ---- sending ---- */

static int fill(struct iovec *iov, const struct mc_ep_out *out)
{
	uint64_t skip = out->in_part;
	int n = 0;

	if (out->text_sent < out->text_len)
		iov[n++] = (struct iovec){(uint8_t *)out->text + out->text_sent,
					  out->text_len - out->text_sent}; /* only read */
	for (uint32_t i = out->at_part; i < out->nparts && n < IOV_MAX_HERE; i++, skip = 0)
		iov[n++] = (struct iovec){(uint8_t *)out->bytes + out->part[i].at + skip,
					  out->part[i].len - skip}; /* only read */
	return n;
}

/* @return true: all of it was sent */
static bool advance(struct mc_ep_out *out, uint64_t sent)
{
	uint64_t text = mc_min(sent, out->text_len - out->text_sent);

	out->text_sent += text;
	out->in_part += sent - text;
	while (out->at_part < out->nparts && out->in_part >= out->part[out->at_part].len)
		out->in_part -= out->part[out->at_part++].len;
	return out->text_sent == out->text_len && out->at_part == out->nparts;
}

static void rewatch(struct mc_ep_link *l)
{
	uint32_t events = EPOLLIN;

	if (!l->is_connected || !mc_list_is_empty(&l->outs))
		events |= EPOLLOUT;
	if (events == l->events)
		return;
	l->events = events;
	if (mc_loop_rewatch(loop_of(l->net), &l->conn, events) < 0)
		mc_ep_link_lost(l);
}

static void flush(struct mc_ep_link *l)
{
	struct mc_ep_out *out;

	while (l->is_connected && (out = mc_list_first(&l->outs, struct mc_ep_out, link)) != NULL) {
		struct iovec iov[IOV_MAX_HERE];
		struct msghdr msg = {.msg_iov = iov};
		ssize_t n;

		msg.msg_iovlen = (size_t)fill(iov, out);
		n = sendmsg(l->conn.fd, &msg, MSG_NOSIGNAL);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
			break;
		if (n < 0) {
			mc_ep_link_lost(l);
			return;
		}
		if (advance(out, (uint64_t)n))
			out_drop(l->net, out);
	}
	if (l->is_watched)
		rewatch(l);
}

void mc_ep_net_send(struct mc_ep_net *net, uint64_t ranks, const struct mc_ep_frame_head *head)
{
	unsigned q;

	mc_coll_each(q, ranks & net->members & ~MC_COLL_BIT(net->ep->coll->rank))
	{
		struct mc_ep_out *out = mc_ep_net_out(head, NULL, NULL);

		if (out)
			mc_ep_net_queue(net, q, out);
		else /* nothing comes of it any more: the others decide without this rank */
			(void)mc_ep_freeze(net->ep, q, UINT64_MAX);
	}
}

/* Decide what can be decided, and send. */
void mc_ep_net_look(struct mc_ep_net *net)
{
	unsigned q;

	pthread_mutex_lock(&net->lock);
	mc_ep_deal_turn(net);
	mc_coll_each(q, net->members)
	    mc_list_splice_back(&net->link[q].outs, &net->link[q].pending);
	pthread_mutex_unlock(&net->lock);
	mc_coll_each(q, net->members)
	{
		/* Nobody will call any more. */
		if (net->link[q].conn.fd < 0 && mc_ep_is_frozen(net->ep, q))
			drop_outs(&net->link[q]);
		else
			flush(&net->link[q]);
	}
}

void mc_ep_net_turn(struct mc_task *t)
{
	struct mc_ep_net *net = mc_container_of(t, struct mc_ep_net, task);

	/* acquire: what was to be seen before */
	(void)atomic_exchange_explicit(&net->is_posted, false, memory_order_acq_rel);
	mc_ep_net_look(net);
}

/* ---- receiving ---- */

static uint8_t *image(const struct mc_ep_link *l)
{
	return mc_ep_slot_at(l->net->ep->peer[l->slot].memory, l->head.slot);
}

static int check_table(struct mc_ep_link *l)
{
	for (uint32_t i = 0; i < l->head.nparts; i++) {
		struct mc_ep_part *p = &l->part[i];

		p->at = le64toh(p->at);
		p->len = le64toh(p->len);
		if (p->at > MC_EP_SPAN || p->len > MC_EP_SPAN - p->at)
			return -MC_E_PROTO;
	}
	return 0;
}

static int on_head(struct mc_ep_link *l)
{
	struct mc_ep_frame_head *h = &l->head;

	if (mc_ep_head_read(l->head_bytes, h) < 0 || h->slot >= MC_EP_SLOTS ||
	    h->type <= MC_EP_FRAME_HELLO || h->type > MC_EP_FRAME_ANSWER ||
	    mc_ep_epoch_of(h->word) != l->net->epoch ||
	    h->nparts > (h->type == MC_EP_FRAME_SHOW ? PARTS_MAX : 0))
		return -MC_E_PROTO;
	l->table_have = l->in_part = 0;
	l->at_part = 0;
	if (h->type != MC_EP_FRAME_SHOW)
		return 0;
	l->part = mc_calloc(h->nparts + 1u, sizeof(*l->part));
	/* Whoever still reads the slot finds out. */
	atomic_store_explicit(&l->net->ep->peer[l->slot].page->tag[h->slot], 0,
			      memory_order_relaxed);
	atomic_thread_fence(memory_order_release);
	return l->part ? 0 : -MC_E_NOMEM;
}

static void frame_ends(struct mc_ep_link *l)
{
	mc_free(l->part);
	l->part = NULL;
	l->head_have = 0;
	mc_ep_deal_heard(l->net, l->slot, &l->head);
	mc_ep_net_stir(l->net);
}

static void skip_full(struct mc_ep_link *l)
{
	while (l->at_part < l->head.nparts && l->in_part == l->part[l->at_part].len) {
		l->at_part++;
		l->in_part = 0;
	}
}

/* Where the next bytes of the stream go. */
static int room(struct mc_ep_link *l, struct iovec *iov)
{
	uint64_t table = (uint64_t)l->head.nparts * PART_LEN, skip;
	int n = 0;

	if (l->head_have < MC_EP_HEAD_LEN) {
		iov[0] =
		    (struct iovec){l->head_bytes + l->head_have, MC_EP_HEAD_LEN - l->head_have};
		return 1;
	}
	if (l->table_have < table) {
		iov[0] = (struct iovec){(uint8_t *)l->part + l->table_have, table - l->table_have};
		return 1;
	}
	skip = l->in_part;
	for (uint32_t i = l->at_part; i < l->head.nparts && n < IOV_MAX_HERE; i++, skip = 0)
		iov[n++] = (struct iovec){image(l) + l->part[i].at + skip, l->part[i].len - skip};
	return n;
}

/* That much of it has come. @return < 0: the protocol is broken */
static int came(struct mc_ep_link *l, uint64_t n)
{
	uint64_t table = (uint64_t)l->head.nparts * PART_LEN;
	int rc = 0;

	if (l->head_have < MC_EP_HEAD_LEN) {
		l->head_have += (uint32_t)n;
		if (l->head_have < MC_EP_HEAD_LEN)
			return 0;
		rc = on_head(l);
		table = (uint64_t)l->head.nparts * PART_LEN;
	} else if (l->table_have < table) {
		l->table_have += n;
		if (l->table_have == table)
			rc = check_table(l);
	} else {
		for (uint64_t take; n > 0; n -= take) {
			skip_full(l);
			take = mc_min(n, l->part[l->at_part].len - l->in_part);
			l->in_part += take;
		}
	}
	if (rc < 0 || l->table_have < table)
		return rc;
	skip_full(l);
	if (l->at_part == l->head.nparts)
		frame_ends(l);
	return 0;
}

/* Small pieces by way of the buffer, so that a frame costs one call. @return as recvmsg() */
static ssize_t take(struct mc_ep_link *l)
{
	struct iovec iov[IOV_MAX_HERE + 1];
	struct msghdr msg = {.msg_iov = iov};
	int n = room(l, iov);
	uint64_t len = 0;
	ssize_t got;

	for (int i = 0; i < n; i++)
		len += iov[i].iov_len;
	if (l->rx_at < l->rx_have) {
		got = (ssize_t)mc_min((uint64_t)(l->rx_have - l->rx_at), (uint64_t)iov[0].iov_len);
		memcpy(iov[0].iov_base, l->rx + l->rx_at, (size_t)got);
		l->rx_at += (uint32_t)got;
		return got;
	}
	/* What is behind it is the beginning of the next. */
	iov[n] = (struct iovec){l->rx, MC_EP_RX_LEN};
	msg.msg_iovlen = (size_t)n + 1;
	got = recvmsg(l->conn.fd, &msg, 0);
	if (got <= 0 || (uint64_t)got <= len)
		return got;
	l->rx_at = 0;
	l->rx_have = (uint32_t)((uint64_t)got - len);
	return (ssize_t)len;
}

static void pull(struct mc_ep_link *l)
{
	uint64_t got = 0;

	while (l->conn.fd >= 0 && (got < TURN_BYTES || l->rx_at < l->rx_have)) {
		ssize_t n = take(l);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
			return;
		if (n <= 0 || came(l, (uint64_t)n) < 0) {
			mc_ep_link_lost(l);
			return;
		}
		got += (uint64_t)n;
	}
}

static void on_conn(struct mc_watch *w, uint32_t events)
{
	struct mc_ep_link *l = mc_container_of(w, struct mc_ep_link, conn);

	if (!l->is_connected) {
		if (mc_sock_connect_result(w->fd) < 0) {
			mc_ep_link_lost(l);
			return;
		}
		l->is_connected = true;
		(void)mc_sock_nodelay(w->fd);
	}
	if (events & (EPOLLIN | EPOLLHUP | EPOLLERR))
		pull(l);
	if (l->conn.fd >= 0)
		flush(l);
}

void mc_ep_link_use(struct mc_ep_link *l, int fd, bool is_connected)
{
	l->events = is_connected ? EPOLLIN : EPOLLIN | EPOLLOUT;
	l->conn = (struct mc_watch){.fd = fd, .events = l->events, .on_event = on_conn};
	l->is_connected = is_connected;
	l->is_watched = mc_loop_watch(loop_of(l->net), &l->conn) == 0;
	if (!l->is_watched)
		mc_ep_link_lost(l);
}

static void forget_on_loop(void *arg)
{
	const struct mc_ep_half *h = arg;
	struct mc_ep_net *net = h->ep->net;
	unsigned q;

	mc_ep_net_look(net); /* what is pending is among what is sent */
	mc_coll_each(q, net->members)
	{
		struct mc_ep_out *out;
		bool is_owed = false;

		mc_list_each (out, &net->link[q].outs, link)
			is_owed |= out->is_show && out->slot == h->slot;
		if (is_owed) {
			mc_ep_link_hang_up(&net->link[q]);
			(void)mc_ep_freeze(net->ep, q, UINT64_MAX);
		}
	}
}

void mc_ep_net_forget(struct mc_ep_half *h)
{
	struct mc_ep *ep = h->ep;

	/* acquire: pairs with out_drop() */
	if (atomic_load_explicit(&ep->net->unsent[h->slot], memory_order_acquire) != 0)
		mc_loop_call(ep->coll->hub->loop, forget_on_loop, h);
}
