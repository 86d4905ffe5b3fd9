/*
 * p2p_call.c: sending and receiving. What is to be sent and received stands in two lists of the
 * group; whoever waits moves everybody's bytes, and a thread does so for what is in the background
 * while nobody waits.
 */
#include "base/clock.h"
#include "base/sync.h"
#include "coll/p2p.h"

#define LOOKS 200      /* before a clock is read */
#define NAP_NS 500000u /* what has been left alone for so long, the thread takes over */

/* ---- waiting ---- */

/* Move bytes until `w` has ended, sleeping on our own bell; without one until nothing is left. */
static int drive(struct mc_coll *g, struct mc_coll_work *w, uint64_t deadline_ns)
{
	struct mc_coll_mail *m = g->mail;
	int slept = 0, looks = 0;

	if (g->net)
		return mc_coll_net_mail_drive(g, w, deadline_ns);
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
		has_moved = mc_coll_mail_progress(g);
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
		mc_coll_mail_end(g, m, rc);
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
		mc_coll_mail_end(g, it, rc);
	mc_list_each (it, &m->recvs, work.link)
		mc_coll_mail_end(g, it, rc);
	pthread_mutex_unlock(&m->lock);
}

int mc_coll_mail_drive(struct mc_coll *g, struct mc_coll_work *w, uint64_t deadline_ns)
{
	struct mc_coll_mail *m = g->mail;
	int rc;

	if (deadline_ns == 0) {
		pthread_mutex_lock(&m->lock);
		(void)mc_coll_mail_progress(g);
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
	g->mail->nposted++;
	if (!is_send)
		(void)mc_coll_mail_take_kept(g, m);
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
	(void)mc_coll_mail_progress(g);
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
