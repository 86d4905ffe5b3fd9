/*
 * net_mail.c: messages to ranks of other hosts: a connection to each for nothing else, a stream of
 * heads (tag and length) and bytes. Whoever moves bytes (p2p_call.c) writes them from where they
 * are and reads them to where they belong; what nobody has asked for stays in the kernel.
 *
 * Of the threads that wait one sleeps on the connections, the others on the bell: when that one
 * ends its wait it rings, and another takes its place.
 */
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/sync.h"
#include "coll/p2p.h"

#define STEP (256u << 10) /* bytes one way before the other way's turn */

/* ---- moving bytes; under mail.lock ---- */

static void lost(struct mc_coll_wire *wire)
{
	if (!atomic_exchange_explicit(&wire->is_link_down, true, memory_order_acq_rel))
		mc_coll_net_kick(wire->p->coll);
}

bool mc_coll_net_mail_push(struct mc_coll *g, struct mc_coll_peer *p, struct mail *m)
{
	struct mc_coll_wire *wire = p->wire;
	uint8_t head[MC_COLL_MAIL_HEAD];
	struct mc_wr w = mc_wr_make(head, sizeof(head));
	struct iovec iov[2];
	struct msghdr msg = {.msg_iov = iov};
	uint64_t at = m->done > sizeof(head) ? m->done - sizeof(head) : 0;
	ssize_t n;

	if (wire->is_mail_tx_over)
		return false;
	mc_wr_u64(&w, m->tag);
	mc_wr_u64(&w, m->len);
	if (m->done < sizeof(head))
		iov[msg.msg_iovlen++] = (struct iovec){head + m->done, sizeof(head) - m->done};
	if (at < m->len)
		iov[msg.msg_iovlen++] =
		    (struct iovec){m->addr + at, mc_min(m->len - at, (uint64_t)STEP)};
	do {
		n = sendmsg(wire->mail_fd, &msg, MSG_NOSIGNAL);
	} while (n < 0 && errno == EINTR);
	if (n < 0 && errno == EFAULT)
		mc_coll_touch(iov[msg.msg_iovlen - 1].iov_base, iov[msg.msg_iovlen - 1].iov_len,
			      false);
	if (n < 0 && errno != EAGAIN && errno != EWOULDBLOCK) {
		wire->is_mail_tx_over = true;
		lost(wire);
	}
	if (n <= 0)
		return false;
	m->done += (uint64_t)n;
	if (m->done == sizeof(head) + m->len)
		mc_coll_mail_end(g, m, 0);
	return true;
}

/* Some bytes of the stream. @return how many; 0: none now, or never again */
static uint64_t take(struct mc_coll_wire *wire, uint8_t *to, uint64_t want, bool *is_dry)
{
	ssize_t n = mc_coll_rx_take(&wire->mail_rx, wire->mail_fd, to, want, is_dry);

	if (n == 0 || (n < 0 && errno != EAGAIN && errno != EWOULDBLOCK)) {
		wire->is_mail_rx_over = true;
		lost(wire);
	}
	return n > 0 ? (uint64_t)n : 0;
}

/* The next head. @return false: not all of it is there, or nobody wants the message */
static bool next_message(struct mc_coll *g, struct mc_coll_peer *p, struct inbox *in, bool *is_dry)
{
	struct mc_coll_wire *wire = p->wire;
	struct mc_rd r = mc_rd_make(wire->mail_head, MC_COLL_MAIL_HEAD);

	while (wire->mail_head_have < MC_COLL_MAIL_HEAD) {
		uint64_t n = take(wire, wire->mail_head + wire->mail_head_have,
				  MC_COLL_MAIL_HEAD - wire->mail_head_have, is_dry);

		if (n == 0)
			return false;
		wire->mail_head_have += (uint32_t)n;
	}
	in->head.tag = mc_rd_u64(&r);
	in->head.len = mc_rd_u64(&r);
	in->is_open = mc_coll_mail_begin(g, p->slot, in);
	return in->is_open;
}

bool mc_coll_net_mail_pull(struct mc_coll *g, struct mc_coll_peer *p)
{
	struct mc_coll_wire *wire = p->wire;
	struct inbox *in = &g->mail->inbox[p->slot];
	uint64_t moved = 0;
	bool is_dry = false;

	while (!in->is_broken && moved < STEP) {
		uint64_t n, left;

		if (!in->is_open && !next_message(g, p, in, &is_dry))
			break;
		left = in->head.len - in->at;
		n = left ? take(wire, (in->mail ? in->mail->addr : in->aside->bytes) + in->at,
				mc_min(left, (uint64_t)STEP), &is_dry)
			 : 0;
		in->at += n;
		moved += n;
		if (in->at == in->head.len) {
			wire->mail_head_have = 0;
			moved++;
			mc_coll_mail_finish(g, p->slot, in);
		} else if (n == 0) {
			break;
		}
	}
	return moved > 0;
}

/* ---- sleeping ---- */

void mc_coll_net_mail_wake(struct mc_coll *g)
{
	const uint64_t one = 1;

	/* The bell has changed before: pairs with the fence in sleep_until(). */
	atomic_thread_fence(memory_order_seq_cst);
	if (!atomic_load_explicit(&g->net->has_mail_sleeper, memory_order_relaxed))
		return;
	/* Full: it wakes anyway. */
	if (write(g->net->mail_wake_fd, &one, sizeof(one)) < 0)
		return;
}

/* What this slot's connection is waited for. Under mail.lock. */
static short events_of(struct mc_coll *g, uint32_t slot, const struct mc_coll_wire *wire)
{
	const struct inbox *in = &g->mail->inbox[slot];
	bool is_head = wire->mail_head_have < MC_COLL_MAIL_HEAD;
	struct mail *it;
	short events = 0;

	/* One in front that nobody wants is not looked at before somebody asks for something. */
	if (!wire->is_mail_rx_over && !in->is_broken &&
	    (in->is_open || (is_head && mc_coll_mail_is_wanted(g, slot))))
		events |= POLLIN;
	mc_list_each (it, &g->mail->sends, work.link) {
		if (it->peer == slot && !wire->is_mail_tx_over)
			events |= POLLOUT;
	}
	return events;
}

static nfds_t poll_set(struct mc_coll *g, struct pollfd *fds, uint64_t *ret_slots)
{
	nfds_t n = 0;

	*ret_slots = 0;
	fds[n++] = (struct pollfd){.fd = g->net->mail_wake_fd, .events = POLLIN};
	for (uint32_t s = 0; s < g->ranks_max; s++) {
		struct mc_coll_peer *p = s == g->rank ? NULL : g->cur[s];
		short events = p && p->wire ? events_of(g, s, p->wire) : 0;

		if (!events)
			continue;
		*ret_slots |= MC_COLL_BIT(s);
		fds[n++] = (struct pollfd){.fd = p->wire->mail_fd, .events = events};
	}
	return n;
}

/* Until a connection can be read or written that is waited for, or `bell` is not the bell any more.
 * @return 0 (perhaps too early); -MC_E_TIMEDOUT; -MC_E_AGAIN */
static int sleep_until(struct mc_coll *g, uint32_t bell, uint64_t deadline_ns)
{
	struct pollfd fds[MC_COLL_RANKS_MAX + 1];
	uint64_t now_ns = mc_now_ns(), slots, seen, late_ns = now_ns + MC_COLL_LATE_NS;
	bool is_late = late_ns < deadline_ns, is_new;
	nfds_t nfds;
	int n = 1;

	if (now_ns >= deadline_ns)
		return -MC_E_TIMEDOUT;
	pthread_mutex_lock(&g->mail->lock);
	is_new = g->net->mail_slept_for != g->mail->nposted;
	if (atomic_load_explicit(&g->net->has_mail_sleeper, memory_order_relaxed)) {
		pthread_mutex_unlock(&g->mail->lock);
		if (is_new) /* it does not wait for all that this thread needs */
			mc_coll_net_mail_wake(g);
		return mc_futex_wait_shared(&g->page->mail_bell, bell, deadline_ns);
	}
	atomic_store_explicit(&g->net->has_mail_sleeper, true, memory_order_relaxed);
	g->net->mail_slept_for = g->mail->nposted;
	nfds = poll_set(g, fds, &slots);
	pthread_mutex_unlock(&g->mail->lock);
	/* Said, then looked: pairs with the fence in mc_coll_net_mail_wake(). */
	atomic_thread_fence(memory_order_seq_cst);
	if (atomic_load_explicit(&g->page->mail_bell, memory_order_acquire) == bell)
		n = poll(fds, nfds,
			 (int)((mc_min(late_ns, deadline_ns) - now_ns) / MC_NS_PER_MS) + 1);
	atomic_store_explicit(&g->net->has_mail_sleeper, false, memory_order_relaxed);
	if (n > 0 && read(g->net->mail_wake_fd, &seen, sizeof(seen)) < 0)
		return 0;
	/* Whoever is waited for too long may be on a silent host. */
	if (n == 0 && is_late && slots)
		mc_coll_net_late(g, slots);
	return 0;
}

/* ---- driving ---- */

struct drive {
	struct mc_coll *g;
	struct mc_coll_work *w; /* NULL: until nothing is left */
	uint64_t deadline_ns;
	bool has_moved;
};

enum { OVER = 1 };

static int look(void *user)
{
	struct drive *d = user;
	struct mc_coll_mail *m = d->g->mail;
	bool is_idle;

	if (d->w && atomic_load_explicit(&d->w->is_done, memory_order_acquire))
		return OVER;
	pthread_mutex_lock(&m->lock);
	d->has_moved = mc_coll_mail_progress(d->g);
	is_idle = (mc_list_is_empty(&m->sends) && mc_list_is_empty(&m->recvs)) || m->is_closing;
	pthread_mutex_unlock(&m->lock);
	if (d->w ? atomic_load_explicit(&d->w->is_done, memory_order_acquire) : is_idle)
		return OVER;
	return atomic_load_explicit(&d->g->is_aborted, memory_order_acquire) ? -MC_E_CANCELED : 0;
}

static int doze(void *user)
{
	struct drive *d = user;
	_Atomic uint32_t *sleepers = &d->g->page->mail_sleepers;
	int rc = 0;

	while (rc == 0) {
		uint32_t bell;

		/* Counted before looking: pairs with the fence in mc_coll_mail_bell(). */
		atomic_fetch_add_explicit(sleepers, 1, memory_order_relaxed);
		atomic_thread_fence(memory_order_seq_cst);
		bell = atomic_load_explicit(&d->g->page->mail_bell, memory_order_acquire);
		rc = look(d);
		if (rc == 0 && !d->has_moved)
			rc = sleep_until(d->g, bell, d->deadline_ns);
		if (rc == -MC_E_AGAIN)
			rc = 0;
		atomic_fetch_sub_explicit(sleepers, 1, memory_order_relaxed);
	}
	return rc;
}

int mc_coll_net_mail_drive(struct mc_coll *g, struct mc_coll_work *w, uint64_t deadline_ns)
{
	struct drive d = {.g = g, .w = w, .deadline_ns = deadline_ns};
	struct mc_spin none = {0};
	/* One thread learns how long it takes. */
	bool is_first =
	    !atomic_exchange_explicit(&g->net->is_mail_driven, true, memory_order_acquire);
	int rc;

	do {
		rc = look(&d);
	} while (rc == 0 && d.has_moved);
	if (rc == 0)
		rc = mc_spin_wait(is_first ? &g->net->mail_spin : &none, look, doze, &d);
	if (is_first)
		atomic_store_explicit(&g->net->is_mail_driven, false, memory_order_release);
	/* Another one sleeps on the connections from here on. */
	mc_coll_mail_ring_own(g);
	return rc == OVER ? 0 : rc;
}
