/*
 * p2p.c: messages from one rank to another: a ring of bytes in the sender's memory for each
 * receiver. A message is a head and its bytes, which flow through the ring while both ends copy.
 *
 * What is to be sent and received stands in two lists of the group; whoever waits moves everybody's
 * bytes, and a thread does so for what is in the background while nobody waits. A message that
 * nobody asked for yet, in front of one that somebody asks for, is set aside.
 */
#include <string.h>

#include "base/clock.h"
#include "base/sync.h"
#include "coll/net.h"

#define ASIDE_MAX (1ull << 30) /* bytes of messages set aside */
#define STEP (MC_COLL_RING_LEN / 4)
#define LOOKS 200      /* before a clock is read */
#define NAP_NS 500000u /* what has been left alone for so long, the thread takes over */

/* In front of a message's bytes; in the ring it is 16-byte aligned. */
struct head {
	uint64_t tag, len;
};

/* One send or receive. */
struct mail {
	struct mc_coll_work work;
	uint32_t peer;
	bool is_send;
	uint64_t tag, len;
	uint8_t *addr;
	uint64_t done; /* bytes; of a send the head counts, too */
};

/* A message that was set aside. */
struct aside {
	struct mc_list link;
	uint32_t from;
	struct head head;
	uint8_t bytes[];
};

/* What comes from one rank: between two messages, or in the middle of one. */
struct inbox {
	struct head head;
	bool is_open;	     /* a head was read; its bytes follow */
	bool is_broken;	     /* whoever took it is gone, or its sender is: no more comes */
	uint64_t at;	     /* bytes of it that were taken */
	struct mail *mail;   /* whom they are for */
	struct aside *aside; /* or where they are kept */
};

struct mc_coll_mail {
	pthread_mutex_t lock; /* guards the rest */
	struct mc_list sends, recvs, kept;
	struct inbox inbox[MC_COLL_RANKS_MAX];
	uint64_t kept_bytes;
	bool has_thread, is_closing;
	pthread_t thread;
	_Atomic uint32_t drivers;     /* calls that move bytes */
	_Atomic uint32_t worker_bell; /* the thread sleeps on it */
	_Atomic bool is_worker_asleep;
};

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

/* This rank has changed what `p` looks at. */
static void tell(struct mc_coll *g, struct mc_coll_peer *p)
{
	mc_coll_mail_bell(p->page);
	if (p->wire)
		mc_coll_net_kick(g);
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
	uint8_t *m = mem;

	if (is_in) {
		memcpy(ring + from, m, first);
		memcpy(ring, m + first, len - first);
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
	if (g->cur[slot])
		tell(g, g->cur[slot]);
}

bool mc_coll_mail_taken(struct mc_coll *g, const struct mc_coll_peer *p, uint64_t tail)
{
	struct mc_coll_ring *r = &g->page->ring[p->slot];
	bool is_good = true;

	pthread_mutex_lock(&g->mail->lock);
	if (atomic_load_explicit(&r->inc, memory_order_relaxed) == p->inc) {
		uint64_t head = atomic_load_explicit(&r->head, memory_order_relaxed);

		is_good =
		    tail <= head && tail >= atomic_load_explicit(&r->tail, memory_order_relaxed);
		if (is_good)
			atomic_store_explicit(&r->tail, tail, memory_order_release);
	}
	pthread_mutex_unlock(&g->mail->lock);
	mc_coll_mail_bell(g->page);
	return is_good;
}

/* ---- moving bytes; under mail.lock ---- */

static void end(struct mc_coll *g, struct mail *m, int rc)
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
	mc_coll_mail_bell(g->page);
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
		end(g, m, -MC_E_PEER_DEAD);
		return true;
	}
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
		tell(g, p);
		end(g, m, 0);
		return true;
	}
out:
	atomic_store_explicit(&r->head, head, memory_order_release);
	tell(g, p);
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

/* Somebody waits for another message of this rank than the one in front. */
static bool is_wanted(struct mc_coll_mail *m, uint32_t from)
{
	struct mail *it;

	mc_list_each (it, &m->recvs, work.link) {
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
	end(g, to, -MC_E_INVAL);
}

/* A head is there: who gets the bytes? @return false: nobody yet */
static bool begin_message(struct mc_coll *g, uint32_t from, struct inbox *in)
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
	else if (!is_wanted(m, from))
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
	end(g, to, 0);
	mc_free(a);
	return true;
}

static void end_message(struct mc_coll *g, uint32_t from, struct inbox *in)
{
	struct mail *to = in->mail;
	struct aside *a = in->aside;

	*in = (struct inbox){0};
	if (to) {
		end(g, to, 0);
		return;
	}
	/* Somebody may have asked for it meanwhile. */
	to = match(g->mail, from, a->head.tag);
	if (!to || !deliver(g, a, to))
		mc_list_push_back(&g->mail->kept, &a->link);
}

/* Take what is there of a rank. @return true when something moved */
static bool pull(struct mc_coll *g, uint32_t from)
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
		if (!begin_message(g, from, in))
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
		tell(g, p);
		end_message(g, from, in);
		return true;
	}
	if (tail == atomic_load_explicit(&r->tail, memory_order_relaxed))
		return false;
	atomic_store_explicit(&r->tail, tail, memory_order_release);
	tell(g, p);
	return true;
}

/* A message that was set aside is what a new receive wants. */
static bool take_kept(struct mc_coll *g, struct mail *to)
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

/* Move what can be moved. @return true when something was */
static bool progress(struct mc_coll *g)
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
		end(g, it, -MC_E_PEER_DEAD);
		has_moved = true;
	}
	return has_moved;
}

/* ---- waiting ---- */

/* Move bytes until `w` has ended, sleeping on our own bell; without one until nothing is left. */
static int drive(struct mc_coll *g, struct mc_coll_work *w, uint64_t deadline_ns)
{
	struct mc_coll_mail *m = g->mail;
	int slept = 0, looks = 0;

	for (;;) {
		uint32_t bell;
		bool has_moved, is_idle;

		if (w && atomic_load_explicit(&w->is_done, memory_order_acquire))
			return 0;
		/* Counted before looking: pairs with the fence in mc_coll_mail_bell(). */
		if (looks >= LOOKS) {
			atomic_fetch_add_explicit(&g->page->mail_sleepers, 1, memory_order_relaxed);
			atomic_thread_fence(memory_order_seq_cst);
		}
		bell = atomic_load_explicit(&g->page->mail_bell, memory_order_acquire);
		pthread_mutex_lock(&m->lock);
		has_moved = progress(g);
		is_idle = mc_list_is_empty(&m->sends) && mc_list_is_empty(&m->recvs);
		is_idle = !w && (is_idle || m->is_closing);
		pthread_mutex_unlock(&m->lock);
		if (is_idle) {
			if (looks >= LOOKS)
				atomic_fetch_sub_explicit(&g->page->mail_sleepers, 1,
							  memory_order_relaxed);
			return 0;
		}
		if (looks < LOOKS) {
			looks = has_moved ? 0 : looks + 1;
			mc_cpu_relax();
			continue;
		}
		if (atomic_load_explicit(&g->is_aborted, memory_order_acquire))
			slept = -MC_E_CANCELED;
		if (!has_moved && slept == 0 &&
		    !(w && atomic_load_explicit(&w->is_done, memory_order_acquire)))
			slept = mc_futex_wait_shared(&g->page->mail_bell, bell, deadline_ns);
		atomic_fetch_sub_explicit(&g->page->mail_sleepers, 1, memory_order_relaxed);
		if (slept < 0 && slept != -MC_E_AGAIN)
			return slept;
		slept = 0;
		looks = 0;
	}
}

/* One that is not waited for any more. */
static void withdraw(struct mc_coll *g, struct mail *m, int rc)
{
	pthread_mutex_lock(&g->mail->lock);
	if (!atomic_load_explicit(&m->work.is_done, memory_order_acquire)) {
		/* A message of which a part has moved cannot be taken back. */
		if (m->done > 0)
			atomic_store_explicit(&g->is_aborted, true, memory_order_release);
		end(g, m, rc);
	}
	pthread_mutex_unlock(&g->mail->lock);
}

/* Everything that has not ended ends so. */
static void end_all(struct mc_coll *g, int rc)
{
	struct mc_coll_mail *m = g->mail;
	struct mail *it;

	pthread_mutex_lock(&m->lock);
	mc_list_each (it, &m->sends, work.link)
		end(g, it, rc);
	mc_list_each (it, &m->recvs, work.link)
		end(g, it, rc);
	pthread_mutex_unlock(&m->lock);
}

int mc_coll_mail_drive(struct mc_coll *g, struct mc_coll_work *w, uint64_t deadline_ns)
{
	struct mc_coll_mail *m = g->mail;
	int rc;

	if (deadline_ns == 0) {
		pthread_mutex_lock(&m->lock);
		(void)progress(g);
		pthread_mutex_unlock(&m->lock);
		return atomic_load_explicit(&w->is_done, memory_order_acquire) ? 0 : -MC_E_TIMEDOUT;
	}
	/* relaxed: a hint for the thread, no more */
	atomic_fetch_add_explicit(&m->drivers, 1, memory_order_relaxed);
	rc = drive(g, w, deadline_ns);
	atomic_fetch_sub_explicit(&m->drivers, 1, memory_order_relaxed);
	if (rc == -MC_E_CANCELED)
		withdraw(g, mc_container_of(w, struct mail, work), rc);
	return rc;
}

/* Sleeps while there is nothing, naps while others see to it. */
static void *worker(void *arg)
{
	struct mc_coll *g = arg;
	struct mc_coll_mail *m = g->mail;
	bool is_idle, is_closing, has_napped = false;

	for (;;) {
		uint32_t bell = atomic_load_explicit(&m->worker_bell, memory_order_acquire);

		/* Before the look, which is under the lock that start() posts under. */
		atomic_store_explicit(&m->is_worker_asleep, true, memory_order_relaxed);
		pthread_mutex_lock(&m->lock);
		is_idle = mc_list_is_empty(&m->sends) && mc_list_is_empty(&m->recvs);
		is_closing = m->is_closing;
		pthread_mutex_unlock(&m->lock);
		if (is_closing)
			return NULL;
		if (is_idle) {
			has_napped = false;
			(void)!mc_futex_wait(&m->worker_bell, bell, MC_TIME_NEVER);
			continue;
		}
		atomic_store_explicit(&m->is_worker_asleep, false, memory_order_relaxed);
		if (has_napped && atomic_load_explicit(&m->drivers, memory_order_relaxed) == 0 &&
		    drive(g, NULL, MC_TIME_NEVER) == -MC_E_CANCELED)
			end_all(g, -MC_E_CANCELED);
		(void)!mc_futex_wait(&m->worker_bell, bell, mc_now_ns() + NAP_NS);
		has_napped = true;
	}
}

static void worker_wake(struct mc_coll_mail *m)
{
	atomic_fetch_add_explicit(&m->worker_bell, 1, memory_order_release);
	mc_futex_wake(&m->worker_bell, 1);
}

/* ---- calls ---- */

static int post(struct mc_coll *g, bool is_send, uint32_t peer, uint64_t tag, void *addr,
		uint64_t len, struct mail **ret)
{
	struct mail *m;

	if (mc_fork_is_child(g->fork_gen))
		return -MC_E_FORKED;
	if (!(peer == MC_COLL_ANY && !is_send) && (peer >= g->ranks_max || peer == g->rank)) {
		mc_coll_say(g, "no message to or from rank %u in a group of %u, of rank %u", peer,
			    g->ranks_max, g->rank);
		return -MC_E_INVAL;
	}
	if (len && !addr)
		return -MC_E_INVAL;
	m = mc_calloc(1, sizeof(*m));
	if (!m)
		return -MC_E_NOMEM;
	m->is_send = is_send;
	m->peer = peer;
	m->tag = tag;
	m->addr = addr;
	m->len = len;
	m->work.mail_of = g;
	atomic_store_explicit(&m->work.nowners, 2, memory_order_relaxed);
	pthread_mutex_lock(&g->mail->lock);
	mc_list_push_back(is_send ? &g->mail->sends : &g->mail->recvs, &m->work.link);
	if (!is_send)
		(void)take_kept(g, m);
	pthread_mutex_unlock(&g->mail->lock);
	*ret = m;
	return 0;
}

static int run(struct mc_coll *g, bool is_send, uint32_t peer, uint64_t tag, void *addr,
	       uint64_t len, struct mc_coll_result *ret_result)
{
	struct mc_coll_result result;
	struct mail *m;
	int rc = post(g, is_send, peer, tag, addr, len, &m);

	if (rc < 0)
		return rc;
	rc = mc_coll_mail_drive(g, &m->work, mc_time_after(mc_now_ns(), g->timeout_ns));
	if (rc < 0)
		withdraw(g, m, rc);
	result = m->work.result;
	mc_coll_work_free(&m->work);
	if (ret_result)
		*ret_result = result;
	return result.rc;
}

static int start(struct mc_coll *g, bool is_send, uint32_t peer, uint64_t tag, void *addr,
		 uint64_t len, struct mc_coll_work **ret_work)
{
	struct mc_coll_mail *mail = g->mail;
	struct mail *m;
	int rc = 0;

	pthread_mutex_lock(&mail->lock);
	if (!mail->has_thread)
		rc = pthread_create(&mail->thread, NULL, worker, g) == 0 ? 0 : -MC_E_LIMIT;
	mail->has_thread = mail->has_thread || rc == 0;
	pthread_mutex_unlock(&mail->lock);
	if (rc == 0)
		rc = post(g, is_send, peer, tag, addr, len, &m);
	if (rc < 0)
		return rc;
	*ret_work = &m->work;
	/* What can be done at once; the rest is of whoever waits, or of the thread. */
	pthread_mutex_lock(&mail->lock);
	(void)progress(g);
	pthread_mutex_unlock(&mail->lock);
	if (!atomic_load_explicit(&m->work.is_done, memory_order_acquire) &&
	    atomic_exchange_explicit(&mail->is_worker_asleep, false, memory_order_relaxed))
		worker_wake(mail);
	return 0;
}

int mc_coll_send(struct mc_coll *g, uint32_t peer, uint64_t tag, const void *addr, uint64_t len,
		 struct mc_coll_result *ret_result)
{
	return run(g, true, peer, tag, (void *)addr, len, ret_result); /* only read */
}

int mc_coll_recv(struct mc_coll *g, uint32_t peer, uint64_t tag, void *addr, uint64_t len,
		 struct mc_coll_result *ret_result)
{
	return run(g, false, peer, tag, addr, len, ret_result);
}

int mc_coll_isend(struct mc_coll *g, uint32_t peer, uint64_t tag, const void *addr, uint64_t len,
		  struct mc_coll_work **ret_work)
{
	return start(g, true, peer, tag, (void *)addr, len, ret_work); /* only read */
}

int mc_coll_irecv(struct mc_coll *g, uint32_t peer, uint64_t tag, void *addr, uint64_t len,
		  struct mc_coll_work **ret_work)
{
	return start(g, false, peer, tag, addr, len, ret_work);
}

/* ---- life ---- */

int mc_coll_mail_open(struct mc_coll *g)
{
	g->mail = mc_calloc(1, sizeof(*g->mail));
	if (!g->mail)
		return -MC_E_NOMEM;
	pthread_mutex_init(&g->mail->lock, NULL);
	mc_list_init(&g->mail->sends);
	mc_list_init(&g->mail->recvs);
	mc_list_init(&g->mail->kept);
	return 0;
}

void mc_coll_mail_close(struct mc_coll *g)
{
	struct mc_coll_mail *m = g->mail;

	if (!m)
		return;
	pthread_mutex_lock(&m->lock);
	m->is_closing = true;
	pthread_mutex_unlock(&m->lock);
	if (m->has_thread) {
		worker_wake(m);
		mc_coll_stir(g);
		(void)pthread_join(m->thread, NULL);
	}
	end_all(g, -MC_E_CLOSED);
}

void mc_coll_mail_free(struct mc_coll *g)
{
	struct mc_coll_mail *m = g->mail;
	struct aside *a;

	if (!m)
		return;
	mc_list_each (a, &m->kept, link)
		mc_free(a);
	for (uint32_t s = 0; s < MC_COLL_RANKS_MAX; s++)
		mc_free(m->inbox[s].aside);
	pthread_mutex_destroy(&m->lock);
	mc_free(m);
	g->mail = NULL;
}
