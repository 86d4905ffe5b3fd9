/*
 * p2p.c: messages from one rank to another: a ring of bytes in the sender's memory for each
 * receiver. A message is a head and its bytes, which flow through the ring while both ends copy.
 * One that nobody asked for yet, in front of one that somebody asks for, is set aside.
 */
#include "coll/p2p.h"

#include <string.h>

#include "base/sync.h"

#define ASIDE_MAX (1ull << 30) /* bytes of messages set aside */
#define STEP (MC_COLL_RING_LEN / 4)

/* ---- rings ---- */

void mc_coll_mail_bell(struct mc_coll_page *page)
{
	/* Before the look at the sleepers: pairs with the fence in doze(). */
	atomic_thread_fence(memory_order_seq_cst);
	if (atomic_load_explicit(&page->mail_sleepers, memory_order_relaxed) == 0)
		return;
	atomic_fetch_add_explicit(&page->mail_bell, 1, memory_order_release);
	mc_futex_wake_shared(&page->mail_bell, UINT32_MAX >> 1);
}

void mc_coll_mail_ring_own(struct mc_coll *g)
{
	mc_coll_mail_bell(g->page);
	if (g->net)
		mc_coll_net_mail_wake(g);
}

/* No message comes of it any more, and none goes to it. Over hosts messages have a way of their
 * own: what is known of operations does not count. */
static bool is_over(const struct mc_coll_peer *p)
{
	return p->wire ? atomic_load_explicit(&p->wire->fate, memory_order_acquire) != MC_COLL_LIVES
		       : mc_coll_peer_is_gone(p);
}

/* Bytes [at, at + len) of a ring, counted for ever, in or out. */
static void ring_copy(uint8_t *ring, uint64_t at, void *mem, uint64_t len, bool is_in)
{
	uint64_t from = at % MC_COLL_RING_LEN, first = mc_min(len, MC_COLL_RING_LEN - from);
	enum mc_copy_hint hint = len < MC_COLL_STREAM_MIN ? MC_COPY_CACHED : MC_COPY_STREAM;
	uint8_t *m = mem;

	if (is_in) {
		mc_copy(ring + from, m, first, hint);
		mc_copy(ring, m + first, len - first, hint);
	} else {
		memcpy(m, ring + from, first);
		memcpy(m + first, ring, len - first);
	}
}

/* Heads begin at multiples of their size. */
static uint64_t padded(uint64_t len)
{
	return (len + sizeof(struct head) - 1) & ~(sizeof(struct head) - 1ull);
}

void mc_coll_mail_renew(struct mc_coll *g, uint32_t slot, uint64_t inc)
{
	struct mc_coll_ring *r = &g->page->ring[slot];
	struct mc_coll_mail *m = g->mail;

	pthread_mutex_lock(&m->lock);
	mc_free(m->inbox[slot].aside);
	m->inbox[slot] = (struct inbox){0};
	atomic_store_explicit(&r->head, 0, memory_order_relaxed);
	atomic_store_explicit(&r->tail, 0, memory_order_relaxed);
	/* release: an empty ring, before it is for somebody */
	atomic_store_explicit(&r->inc, inc, memory_order_release);
	pthread_mutex_unlock(&m->lock);
	if (g->net)
		mc_coll_mail_ring_own(g);
	else if (g->cur[slot])
		mc_coll_mail_bell(g->cur[slot]->page);
}

/* ---- moving bytes; under mail.lock ---- */

void mc_coll_mail_end(struct mc_coll *g, struct mail *m, int rc)
{
	mc_list_del(&m->work.link);
	for (uint32_t s = 0; rc < 0 && s < g->ranks_max; s++) {
		struct inbox *in = &g->mail->inbox[s];

		if (in->mail == m)
			*in = (struct inbox){.is_broken = true};
	}
	m->work.result = (struct mc_coll_result){
	    .rc = rc, .ranks = rc == 0 && !m->is_send ? MC_COLL_BIT(m->peer) : 0};
	mc_coll_work_end(&m->work);
	/* A thread of ours may sleep that drives this one. */
	mc_coll_mail_ring_own(g);
}

/* Push what fits. @return true when something moved */
static bool push(struct mc_coll *g, struct mail *m)
{
	struct mc_coll_peer *p = g->cur[m->peer];
	struct mc_coll_ring *r = &g->page->ring[m->peer];
	uint8_t *ring = g->rings + (uint64_t)m->peer * MC_COLL_RING_LEN;
	uint64_t head = atomic_load_explicit(&r->head, memory_order_relaxed);
	/* acquire: the receiver has copied what is below */
	uint64_t tail = atomic_load_explicit(&r->tail, memory_order_acquire);
	uint64_t room = MC_COLL_RING_LEN - (head - tail), n;
	struct head h = {.tag = m->tag, .len = m->len};
	bool has_moved = false;

	if (!p || is_over(p)) {
		mc_coll_mail_end(g, m, -MC_E_PEER_DEAD);
		return true;
	}
	if (p->wire)
		return mc_coll_net_mail_push(g, p, m);
	if (head - tail > MC_COLL_RING_LEN) /* the receiver broke its word */
		return false;
	if (m->done == 0) {
		if (room < sizeof(h))
			return false;
		ring_copy(ring, head, &h, sizeof(h), true);
		m->done = sizeof(h);
		head += sizeof(h);
		room -= sizeof(h);
		has_moved = true;
	}
	n = mc_min(m->len - (m->done - sizeof(h)), room);
	n = mc_min(n, (uint64_t)STEP);
	if (n > 0) {
		ring_copy(ring, head, m->addr + m->done - sizeof(h), n, true);
		m->done += n;
		head += n;
		has_moved = true;
	}
	if (!has_moved && m->done < m->len + sizeof(h))
		return false;
	if (m->done == m->len + sizeof(h)) {
		uint64_t pad = padded(m->len) - m->len;

		if (MC_COLL_RING_LEN - (head - tail) < pad)
			goto out;
		head += pad;
		/* release: the bytes, before their count */
		atomic_store_explicit(&r->head, head, memory_order_release);
		mc_coll_mail_bell(p->page);
		mc_coll_mail_end(g, m, 0);
		return true;
	}
out:
	atomic_store_explicit(&r->head, head, memory_order_release);
	mc_coll_mail_bell(p->page);
	return has_moved;
}

/* The first receive that wants this message. */
static struct mail *match(struct mc_coll_mail *m, uint32_t from, uint64_t tag)
{
	struct mail *it;

	mc_list_each (it, &m->recvs, work.link) {
		if ((it->peer == from || it->peer == MC_COLL_ANY) && it->tag == tag &&
		    it->done == 0)
			return it;
	}
	return NULL;
}

bool mc_coll_mail_is_wanted(struct mc_coll *g, uint32_t from)
{
	struct mail *it;

	mc_list_each (it, &g->mail->recvs, work.link) {
		if ((it->peer == from || it->peer == MC_COLL_ANY) && it->done == 0)
			return true;
	}
	return false;
}

static void wrong_length(struct mc_coll *g, struct mail *to, uint32_t from, uint64_t len)
{
	mc_coll_say(g, "rank %u sent %llu bytes with tag %llu, rank %u takes %llu", from,
		    (unsigned long long)len, (unsigned long long)to->tag, g->rank,
		    (unsigned long long)to->len);
	mc_coll_mail_end(g, to, -MC_E_INVAL);
}

bool mc_coll_mail_begin(struct mc_coll *g, uint32_t from, struct inbox *in)
{
	struct mc_coll_mail *m = g->mail;
	struct mail *to = match(m, from, in->head.tag);

	if (to && to->len == in->head.len) {
		to->peer = from;
		to->done = 1; /* taken: no other message is for it */
		in->mail = to;
		return true;
	}
	if (to)
		wrong_length(g, to, from, in->head.len);
	else if (!mc_coll_mail_is_wanted(g, from))
		return false;
	if (in->head.len > ASIDE_MAX - m->kept_bytes)
		return false;
	in->aside = mc_calloc(1, sizeof(*in->aside) + in->head.len);
	if (!in->aside)
		return false;
	in->aside->from = from;
	in->aside->head = in->head;
	m->kept_bytes += in->head.len;
	return true;
}

/* A message that was set aside, not in a list, is what `to` wants. @return false: it has another
 * length, and stays */
static bool deliver(struct mc_coll *g, struct aside *a, struct mail *to)
{
	if (to->len != a->head.len) {
		wrong_length(g, to, a->from, a->head.len);
		return false;
	}
	g->mail->kept_bytes -= a->head.len;
	to->peer = a->from;
	if (to->len)
		memcpy(to->addr, a->bytes, to->len);
	mc_coll_mail_end(g, to, 0);
	mc_free(a);
	return true;
}

void mc_coll_mail_finish(struct mc_coll *g, uint32_t from, struct inbox *in)
{
	struct mail *to = in->mail;
	struct aside *a = in->aside;

	*in = (struct inbox){0};
	if (to) {
		mc_coll_mail_end(g, to, 0);
		return;
	}
	/* Somebody may have asked for it meanwhile. */
	to = match(g->mail, from, a->head.tag);
	if (!to || !deliver(g, a, to))
		mc_list_push_back(&g->mail->kept, &a->link);
}

/* Take what is there of a rank. @return true when something moved */
static bool pull_ring(struct mc_coll *g, uint32_t from)
{
	struct mc_coll_peer *p = g->cur[from];
	struct inbox *in = &g->mail->inbox[from];
	struct mc_coll_ring *r = &p->page->ring[g->rank];
	uint8_t *ring = p->rings + (uint64_t)g->rank * MC_COLL_RING_LEN;
	uint64_t tail = atomic_load_explicit(&r->tail, memory_order_relaxed), head, n;
	uint8_t *to;

	/* acquire: an empty ring that is for us; then the bytes below head */
	if (in->is_broken || atomic_load_explicit(&r->inc, memory_order_acquire) != g->inc)
		return false;
	head = atomic_load_explicit(&r->head, memory_order_acquire);
	if (head - tail > MC_COLL_RING_LEN)
		return false;
	if (!in->is_open) {
		if (head - tail < sizeof(in->head))
			return false;
		ring_copy(ring, tail, &in->head, sizeof(in->head), false);
		if (!mc_coll_mail_begin(g, from, in))
			return false;
		in->is_open = true;
		tail += sizeof(in->head);
	}
	n = mc_min(in->head.len - in->at, head - tail);
	n = mc_min(n, (uint64_t)STEP);
	to = in->mail ? in->mail->addr : in->aside->bytes;
	if (n > 0)
		ring_copy(ring, tail, to + in->at, n, false);
	in->at += n;
	tail += n;
	if (in->at == in->head.len && head - tail >= padded(in->head.len) - in->head.len) {
		tail += padded(in->head.len) - in->head.len;
		/* release: copied, before it is overwritten */
		atomic_store_explicit(&r->tail, tail, memory_order_release);
		mc_coll_mail_bell(p->page);
		mc_coll_mail_finish(g, from, in);
		return true;
	}
	if (tail == atomic_load_explicit(&r->tail, memory_order_relaxed))
		return false;
	atomic_store_explicit(&r->tail, tail, memory_order_release);
	mc_coll_mail_bell(p->page);
	return true;
}

bool mc_coll_mail_take_kept(struct mc_coll *g, struct mail *to)
{
	struct aside *a;

	mc_list_each (a, &g->mail->kept, link) {
		if ((to->peer != MC_COLL_ANY && to->peer != a->from) || to->tag != a->head.tag)
			continue;
		mc_list_del(&a->link);
		if (!deliver(g, a, to))
			mc_list_push_front(&g->mail->kept, &a->link);
		return true;
	}
	return false;
}

/* Nobody is left who could send what this one waits for. */
static bool is_hopeless(struct mc_coll *g, const struct mail *m)
{
	for (uint32_t s = 0; s < g->ranks_max; s++) {
		if (s == g->rank || (m->peer != MC_COLL_ANY && m->peer != s))
			continue;
		if (g->cur[s] && !is_over(g->cur[s]))
			return false;
	}
	return true;
}

static bool pull(struct mc_coll *g, uint32_t from)
{
	struct mc_coll_peer *p = g->cur[from];

	if (!p->wire)
		return pull_ring(g, from);
	/* A look at a connection is a call: only where something is to be had. */
	return (g->mail->inbox[from].is_open || mc_coll_mail_is_wanted(g, from)) &&
	       mc_coll_net_mail_pull(g, p);
}

static bool pull_all(struct mc_coll *g)
{
	bool has_moved = false;

	if (mc_list_is_empty(&g->mail->recvs))
		return false;
	for (uint32_t s = 0; s < g->ranks_max; s++)
		if (s != g->rank && g->cur[s])
			has_moved |= pull(g, s);
	return has_moved;
}

bool mc_coll_mail_progress(struct mc_coll *g)
{
	struct mc_coll_mail *m = g->mail;
	uint64_t pushed = 0;
	bool has_moved = false;
	struct mail *it;

	/* To each rank one after the other. */
	mc_list_each (it, &m->sends, work.link) {
		if (pushed & MC_COLL_BIT(it->peer))
			continue;
		pushed |= MC_COLL_BIT(it->peer);
		has_moved |= push(g, it);
	}
	has_moved |= pull_all(g);
	if (has_moved)
		return true;
	mc_list_each (it, &m->recvs, work.link) {
		if (!is_hopeless(g, it))
			continue;
		/* Dead, then looked: what it sent is there, or never will be. */
		if (pull_all(g))
			return true;
		mc_coll_mail_end(g, it, -MC_E_PEER_DEAD);
		has_moved = true;
	}
	return has_moved;
}
