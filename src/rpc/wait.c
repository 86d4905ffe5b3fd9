/*
 * wait.c: callers that drive the connection while they wait.
 *
 * One waiter has the receiver's seat and reads the socket; the others sleep on the phase of their
 * call. Who leaves the seat makes one of them take over. The reader polls for as long as it has
 * learnt to be worth it (spin.h), then sleeps in the kernel on the socket itself.
 */
#include <poll.h>

#include "base/fork.h"
#include "base/mem.h"
#include "base/sync.h"
#include "rpc/conn.h"

static uint32_t phase_of(struct mc_rpc_call *call)
{
	/* acquire: pairs with the release in mc_rpc_call_end(); the results are visible */
	return atomic_load_explicit(&call->phase, memory_order_acquire);
}

/* The deadline has come: end our own call, unless another just does. */
static void give_up(struct mc_rpc_conn *conn, struct mc_rpc_call *call)
{
	struct mc_rpc_call *ours;

	(void)pthread_mutex_lock(&conn->ch.lock);
	ours = mc_rpc_call_abandon(conn, call->id, -MC_E_TIMEDOUT);
	(void)pthread_mutex_unlock(&conn->ch.lock);
	if (!ours)
		return;
	mc_rpc_call_end(call, -MC_E_TIMEDOUT, NULL);
	mc_rpc_conn_flush(conn);
}

struct drive {
	struct mc_rpc_conn *conn;
	uint64_t start_ns, last_ns;
	uint32_t budget_ns; /* polling left when the wait began; 0: no more */
	bool has_seat;	    /* one of the process's polling seats */
	bool has_polled;
};

static void drive_begin(struct drive *d, struct mc_rpc_conn *conn)
{
	*d = (struct drive){.conn = conn, .start_ns = mc_clock_now(conn->env.clk)};
	d->last_ns = d->start_ns;
	if (conn->env.net->can_spin)
		d->budget_ns = mc_spin_budget(&conn->spin, d->start_ns);
	if (d->budget_ns) {
		d->has_seat = d->has_polled = mc_spin_enter(d->start_ns);
		if (!d->has_seat)
			d->budget_ns = 0;
	}
}

static void drive_stop_spinning(struct drive *d)
{
	d->budget_ns = 0;
	if (d->has_seat)
		mc_spin_leave();
	d->has_seat = false;
}

static void drive_end(struct drive *d)
{
	const uint64_t now = mc_clock_now(d->conn->env.clk);

	drive_stop_spinning(d);
	if (d->conn->env.net->can_spin)
		mc_spin_note(&d->conn->spin, now, now - d->start_ns, d->has_polled);
}

/* The socket is full: wait for room as well. */
static int drive_blocked(struct mc_rpc_conn *conn, uint64_t deadline_ns)
{
	bool is_blocked;
	int rc;

	(void)pthread_mutex_lock(&conn->ch.lock);
	is_blocked = conn->ch.is_blocked;
	(void)pthread_mutex_unlock(&conn->ch.lock);
	if (!is_blocked)
		return 0;
	rc = conn->env.net->wait(conn->ch.sock, POLLIN | POLLOUT, deadline_ns);
	if (rc == 0)
		(void)mc_chan_writable(&conn->ch);
	return 1;
}

/* Receive once: polling, or asleep when polling is over. @return as mc_rpc_conn_progress();
 * -MC_E_TIMEDOUT after the deadline */
static ssize_t drive_step(struct drive *d, uint64_t deadline_ns)
{
	struct mc_rpc_conn *conn = d->conn;
	uint64_t now, wait_ns = 0;
	ssize_t n;

	if (!d->budget_ns && !drive_blocked(conn, deadline_ns))
		wait_ns = deadline_ns;
	n = mc_rpc_conn_progress(conn, wait_ns);
	if (n != -MC_E_AGAIN)
		return n;
	now = mc_clock_now(conn->env.clk);
	if (now >= deadline_ns)
		return -MC_E_TIMEDOUT;
	if (d->budget_ns && (now - d->start_ns >= d->budget_ns ||
			     !mc_spin_gap_ok(&conn->spin, now, now - d->last_ns)))
		drive_stop_spinning(d);
	d->last_ns = now;
	if (d->budget_ns)
		mc_cpu_relax();
	return n;
}

/* With the receiver's seat, until `call` is done or its deadline has come. */
static void drive(struct mc_rpc_conn *conn, struct mc_rpc_call *call)
{
	struct drive d;
	ssize_t n;

	drive_begin(&d, conn);
	do {
		n = drive_step(&d, call->deadline_ns);
		if (n == -MC_E_TIMEDOUT)
			give_up(conn, call);
		/* Lost: all calls have ended, or another thread ends this one. */
	} while ((n > 0 || n == -MC_E_AGAIN) && phase_of(call) != MC_RPC_DONE);
	drive_end(&d);
}

/*
 * Take the receiver's seat, or sleep in `waiters` until the call is done, the seat is offered, or
 * the deadline.
 * @return 1: the seat is ours; 0: look again; -MC_E_TIMEDOUT
 */
static int seat_or_sleep(struct mc_rpc_conn *conn, struct mc_rpc_call *call,
			 struct mc_list *waiters)
{
	uint32_t phase = MC_RPC_PENDING;
	int rc = 0;

	(void)pthread_mutex_lock(&conn->ch.lock);
	if (mc_chan_take(&conn->ch)) {
		(void)pthread_mutex_unlock(&conn->ch.lock);
		return 1;
	}
	mc_list_push_back(waiters, &call->wait_link);
	(void)pthread_mutex_unlock(&conn->ch.lock);
	/* acq_rel: pairs with those in mc_rpc_conn_wake() and mc_rpc_call_end() */
	if (atomic_compare_exchange_strong_explicit(&call->phase, &phase, MC_RPC_ASLEEP,
						    memory_order_acq_rel, memory_order_acquire))
		rc = mc_futex_wait(&call->phase, MC_RPC_ASLEEP, call->deadline_ns);
	(void)pthread_mutex_lock(&conn->ch.lock);
	mc_list_del(&call->wait_link);
	phase = phase_of(call);
	/* The end may have come over an offer of the seat: pass that on. */
	if (phase == MC_RPC_DONE && !conn->ch.is_receiving)
		mc_rpc_conn_offer(conn);
	(void)pthread_mutex_unlock(&conn->ch.lock);
	while (phase == MC_RPC_ASLEEP || phase == MC_RPC_TAKEOVER) {
		if (atomic_compare_exchange_weak_explicit(&call->phase, &phase, MC_RPC_PENDING,
							  memory_order_acq_rel,
							  memory_order_acquire))
			break;
	}
	/* An offer of the seat goes first: nobody else was asked. */
	return phase == MC_RPC_TAKEOVER || phase == MC_RPC_DONE || rc != -MC_E_TIMEDOUT
		   ? 0
		   : -MC_E_TIMEDOUT;
}

static void user_enter(struct mc_rpc_conn *conn)
{
	atomic_fetch_add_explicit(&conn->users, 1, memory_order_relaxed);
}

static void user_leave(struct mc_rpc_conn *conn)
{
	/* release: pairs with the acquire in conn_drain(), which may free the connection then.
	 * Waking a word that is gone wakes nobody. Only who drains waits for it. */
	if (atomic_fetch_sub_explicit(&conn->users, 1, memory_order_release) ==
	    (MC_RPC_DRAINED | 1))
		mc_futex_wake(&conn->users, 1);
}

static void wait_done(struct mc_rpc_conn *conn, struct mc_rpc_call *call)
{
	while (phase_of(call) != MC_RPC_DONE) {
		int rc = seat_or_sleep(conn, call, &conn->waiters);

		if (rc == 1) {
			if (phase_of(call) != MC_RPC_DONE)
				drive(conn, call);
			mc_rpc_conn_leave(conn);
		} else if (rc < 0) {
			give_up(conn, call);
		}
	}
}

int mc_rpc_wait(struct mc_rpc_conn *conn, struct mc_rpc_call *call)
{
	if (mc_fork_is_child(conn->fork_gen))
		return -MC_E_FORKED;
	mc_assert(call->flags & MC_RPC_WAITED);
	user_enter(conn);
	wait_done(conn, call);
	user_leave(conn);
	return call->rc;
}

/* Start was refused for want of room: make some. @return 0: try again; -MC_E_TIMEDOUT */
static int wait_room(struct mc_rpc_conn *conn, struct mc_rpc_call *call)
{
	struct drive d;
	ssize_t n;
	int rc = seat_or_sleep(conn, call, &conn->room_waiters);

	if (rc != 1)
		return rc;
	drive_begin(&d, conn);
	do {
		n = drive_step(&d, call->deadline_ns);
	} while (n == -MC_E_AGAIN);
	drive_end(&d);
	mc_rpc_conn_leave(conn);
	return n == -MC_E_TIMEDOUT ? -MC_E_TIMEDOUT : 0;
}

/* Not started after all. The seat may have been offered to us meanwhile. */
static void sync_failed(struct mc_rpc_conn *conn, struct mc_rpc_call *call, int rc)
{
	call->rc = rc;
	(void)pthread_mutex_lock(&conn->ch.lock);
	if (!conn->ch.is_receiving)
		mc_rpc_conn_offer(conn);
	(void)pthread_mutex_unlock(&conn->ch.lock);
}

int mc_rpc_sync(struct mc_rpc_conn *conn, struct mc_rpc_call *call)
{
	int rc;

	if (mc_fork_is_child(conn->fork_gen))
		return -MC_E_FORKED;
	call->flags = (uint8_t)((call->flags | MC_RPC_WAITED) & ~MC_RPC_MORE);
	user_enter(conn);
	do {
		rc = mc_rpc_start(conn, call);
		if (rc != -MC_E_AGAIN)
			break;
		rc = wait_room(conn, call);
	} while (rc == 0);
	if (rc == 0)
		wait_done(conn, call);
	else
		sync_failed(conn, call, rc);
	user_leave(conn);
	return call->rc;
}
