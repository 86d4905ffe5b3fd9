/*
 * staged.c: slices whose memory no transport reaches, on one side or on both (hops.h). A slice is
 * cut into chunks of a buffer each. A chunk takes a buffer wherever its memory is staged: the
 * source's, which is then filled, and the destination's. An ordinary transfer moves the bytes
 * between what transports reach, over the best of them; then the destination's buffer is
 * committed.
 *
 * All of it blocks, so workers do it: a few for the engine, two at most for a session, so that one
 * chunk is at a disk while another is on the wire and a peer that stands still takes no more.
 *
 * No late writes: nothing but a commit changes a file, and a piece that was ended, by whatever
 * end, never commits. A chunk that fails ends its piece and waits for the answer; without one by
 * its group's deadline it ends as unfenced, and no chunk is written to that incarnation until the
 * piece is known to have ended. What may still land in the buffer itself is the target's to fence.
 */
#include "engine/staged.h"

#include <string.h>
#include <time.h>

#include "base/log.h"
#include "engine/ctl.h"
#include "engine/hops.h"
#include "engine/pump.h"
#include "engine/stage.h"

#define DRIVERS_MAX 6u
#define SESSION_CHUNKS 2u
#define CALL_NS                                                                                    \
	MC_NS_PER_S /* a call is repeated after so long, unless nobody wants it any more           \
		     */
#define PAUSE_MIN_NS MC_NS_PER_MS
#define PAUSE_MAX_NS (32 * MC_NS_PER_MS)
#define OWED_MAX 256u

/* A slice under way. */
struct run {
	struct mc_list link; /* mc_staged.runs while there is more to cut */
	struct mc_task back; /* to the pump's loop */
	struct mc_pump *pump;
	struct mc_eslice *es; /* its group lives until the slice has ended */
	uint32_t frag;	      /* where the next chunk begins */
	uint64_t at;
	unsigned nchunks; /* under way */
	int status;	  /* the first error */
	uint32_t bad_frag;
	struct mc_diag diag;
};

/* A piece at a peer whose end was not acknowledged. */
struct owed {
	uint64_t key; /* mc_session.fence_key; 0: free */
	uint64_t id;
	bool may_land; /* its commit was asked for; else it only holds a buffer */
};

struct driver {
	struct mc_worker_job job;
	struct mc_staged *all;
	bool is_busy;
};

struct mc_staged {
	pthread_mutex_t mu; /* a leaf; guards what follows, runs' cursors, mc_session.nstaged */
	struct mc_list runs;
	struct driver drivers[DRIVERS_MAX];
	struct mc_engine *eng;
	struct owed owed[OWED_MAX];
	_Atomic bool
	    is_owed_full; /* one that may land was forgotten: nothing staged is written any more */
	_Atomic uint64_t next_id;
};

/* One side of a chunk, where it is staged. */
struct piece {
	bool is_staged, is_called; /* at the peer, by calls */
	bool is_taken;		   /* or may be */
	bool may_land;		   /* its commit was asked for */
	struct mc_stage_want want;
	uint64_t addr; /* of its bytes, for the transfer; the memory itself where not staged */
};

struct chunk {
	struct run *run;
	struct mc_eslice *es;
	struct mc_frag f; /* a part of one of the slice's */
	uint32_t frag;
	struct piece here, there;
	const char *step; /* what is being done, for people */
	struct mc_diag diag;
};

static void pause_for(uint64_t *pause_ns)
{
	struct timespec ts = {.tv_nsec = (long)*pause_ns};

	(void)nanosleep(&ts, NULL);
	*pause_ns = mc_min(*pause_ns * 2, PAUSE_MAX_NS);
}

static int over(const struct mc_eslice *es)
{
	int rc = mc_eslice_unwanted(es);

	return rc == 0 && mc_now_ns() >= es->op->soft_ns ? -MC_E_TIMEDOUT : rc;
}

/* ---- pieces whose end is not known ---- */

static void owe(struct mc_staged *all, const struct owed *o)
{
	unsigned i = 0;

	pthread_mutex_lock(&all->mu);
	while (i < OWED_MAX && all->owed[i].key)
		i++;
	if (i < OWED_MAX)
		all->owed[i] = *o;
	else if (o->may_land)
		atomic_store_explicit(&all->is_owed_full, true, memory_order_relaxed);
	pthread_mutex_unlock(&all->mu);
}

/* One that is owed to the peer's incarnation. @return false: there is none */
static bool owed_find(struct mc_staged *all, uint64_t key, struct owed *ret)
{
	unsigned i = 0;

	pthread_mutex_lock(&all->mu);
	while (i < OWED_MAX && all->owed[i].key != key)
		i++;
	if (i < OWED_MAX)
		*ret = all->owed[i];
	pthread_mutex_unlock(&all->mu);
	return i < OWED_MAX;
}

static void owed_clear(struct mc_staged *all, const struct owed *o)
{
	pthread_mutex_lock(&all->mu);
	for (unsigned i = 0; i < OWED_MAX; i++)
		if (all->owed[i].key == o->key && all->owed[i].id == o->id)
			all->owed[i].key = 0;
	pthread_mutex_unlock(&all->mu);
}

static bool is_gone(int rc)
{
	return rc == -MC_E_PEER_DEAD || rc == -MC_E_PEER_RESTARTED;
}

/* Worth asking again. */
static bool is_passing(int rc)
{
	return rc == -MC_E_AGAIN || rc == -MC_E_TIMEDOUT || mc_err_scope(rc) == MC_SCOPE_RAIL;
}

/* End a piece at the peer, however often that has to be said. @return 0: it has ended, or its
 * incarnation has; < 0: not known by then */
static int end_called(struct mc_session *s, uint64_t id, enum mc_ctl_unstage end, uint64_t until_ns)
{
	uint64_t pause_ns = PAUSE_MIN_NS;
	bool is_answered;

	for (;;) {
		uint64_t now_ns = mc_now_ns();
		int rc = -MC_E_TIMEDOUT;

		if (now_ns >= until_ns)
			return rc;
		rc = mc_ctl_unstage(s, id, end, mc_min(until_ns, now_ns + CALL_NS), &is_answered);
		if (is_answered || is_gone(rc))
			return 0;
		if (!is_passing(rc))
			return rc;
		pause_for(&pause_ns);
	}
}

/* What earlier chunks left must not come after this one. */
static int settle(struct mc_session *s, bool is_write, uint64_t until_ns)
{
	struct mc_staged *all = s->eng->staged;
	struct owed o;

	if (is_write && atomic_load_explicit(&all->is_owed_full, memory_order_relaxed))
		return -MC_E_UNFENCED;
	while (owed_find(all, s->fence_key, &o)) {
		if (end_called(s, o.id, MC_CTL_UNSTAGE_SPOIL, until_ns) < 0)
			return is_write && o.may_land ? -MC_E_UNFENCED : 0;
		owed_clear(all, &o);
	}
	return 0;
}

/* ---- one chunk ---- */

static int piece_call(struct chunk *c, struct piece *p, bool *ret_is_answered)
{
	struct mc_session *s = c->es->session;
	const struct mc_remote_region *known, *rr;
	struct mc_remote_region r;
	uint64_t until_ns = mc_min(c->es->op->soft_ns, mc_now_ns() + CALL_NS);
	int rc = mc_ctl_stage(s, &p->want, until_ns, &p->addr, &r, ret_is_answered);

	if (rc == 0)
		rc = mc_session_learn(s, &r, &known);
	if (rc < 0)
		return rc;
	/* Other buffers may have lain there before. */
	while ((rr = mc_session_region_known(s, p->addr, p->want.len)) && rr != known)
		mc_session_forget(s, rr);
	return 0;
}

static int piece_own(struct chunk *c, struct piece *p)
{
	struct mc_stage_piece got;
	int rc = mc_stage_begin(c->es->session->eng, &p->want, &got);

	if (rc == 0)
		p->addr = got.addr;
	return rc;
}

/* Until there is a buffer. */
static int piece_begin(struct chunk *c, struct piece *p)
{
	struct mc_session *s = c->es->session;
	uint64_t pause_ns = PAUSE_MIN_NS;
	int tries = 0, rc;

	if (!p->is_staged)
		return 0;
	p->is_taken = true;
	for (;;) {
		bool is_answered = true;

		rc = over(c->es);
		if (rc < 0)
			return rc;
		rc = p->is_called ? piece_call(c, p, &is_answered) : piece_own(c, p);
		if (is_answered ? rc != -MC_E_AGAIN : !is_passing(rc))
			break;
		/* A peer that is silent has until the deadline, as everywhere; a path that fails
		 * does not. */
		if (!is_answered && mc_err_scope(rc) == MC_SCOPE_RAIL &&
		    ++tries >= s->eng->conf.tries)
			break;
		pause_for(&pause_ns);
	}
	/* As pump.c: nothing leads there any more, so the next group looks for the peer anew. */
	if (p->is_called && rc < 0 && mc_err_scope(rc) != MC_SCOPE_OP &&
	    mc_err_scope(rc) != MC_SCOPE_LOCAL && rc != -MC_E_IO)
		mc_session_kill(s);
	return rc;
}

/* Whoever waits for a commit waits for its end as long as the group may; a piece that has none only
 * holds a buffer, which the target takes back when our connection is lost, too. */
static int piece_end(struct chunk *c, struct piece *p, enum mc_ctl_unstage end)
{
	struct mc_session *s = c->es->session;
	uint64_t soon_ns = mc_now_ns() + CALL_NS, until_ns = c->es->op->deadline_ns;

	if (!p->is_staged || !p->is_taken)
		return 0;
	p->is_taken = false;
	if (!p->is_called) {
		(void)mc_stage_end(s->eng, MC_STAGE_OURS, p->want.id, end);
		return 0;
	}
	/* A closing engine does not wait for peers that stand still, nor does a canceled group. */
	if (!p->may_land || mc_eslice_unwanted(c->es) < 0)
		until_ns = mc_min(until_ns, soon_ns);
	if (end_called(s, p->want.id, end, until_ns) == 0)
		return 0;
	owe(s->eng->staged, &(struct owed){s->fence_key, p->want.id, p->may_land});
	return p->may_land ? -MC_E_UNFENCED : 0;
}

/* The destination's bytes are all there. Once asked for, it may happen until the end is known. */
static int piece_commit(struct chunk *c, struct piece *p)
{
	struct mc_session *s = c->es->session;
	uint64_t pause_ns = PAUSE_MIN_NS;
	bool is_answered;
	int rc;

	if (!p->is_staged)
		return 0;
	if (!p->is_called) {
		p->is_taken = false;
		return mc_stage_end(s->eng, MC_STAGE_OURS, p->want.id, MC_CTL_UNSTAGE_COMMIT);
	}
	for (;;) {
		rc = over(c->es);
		if (rc < 0)
			return rc;
		rc =
		    mc_ctl_unstage(s, p->want.id, MC_CTL_UNSTAGE_COMMIT,
				   mc_min(c->es->op->soft_ns, mc_now_ns() + CALL_NS), &is_answered);
		if (is_answered || is_gone(rc)) {
			p->is_taken = false;
			return rc;
		}
		if (!is_passing(rc))
			return rc;
		pause_for(&pause_ns);
	}
}

static int chunk_steps(struct chunk *c)
{
	struct mc_eslice *es = c->es;
	bool is_read = es->s.op == MC_OP_READ;
	struct piece *from = is_read ? &c->there : &c->here;
	struct piece *to = is_read ? &c->here : &c->there;
	int rc = 0;

	c->step = "after a write that may still land";
	if (c->there.is_staged && c->there.is_called)
		rc = settle(es->session, !is_read, mc_min(es->op->soft_ns, mc_now_ns() + CALL_NS));
	if (rc < 0)
		return rc;
	c->step = is_read ? "reading into the target's buffer" : "reading into our buffer";
	rc = piece_begin(c, from);
	if (rc < 0)
		return rc;
	c->step = is_read ? "taking a buffer of ours" : "taking the target's buffer";
	rc = piece_begin(c, to);
	if (rc < 0)
		return rc;
	c->step = "between the buffers";
	rc = mc_transfer_within(es, es->s.op, c->here.addr, c->there.addr, c->f.len, &c->diag);
	if (rc < 0)
		return rc;
	c->step = is_read ? "writing from our buffer" : "writing from the target's buffer";
	return piece_commit(c, to);
}

/* Whatever has become of it, no buffer stays with it. */
static int chunk_clean(struct chunk *c, int rc)
{
	bool may_land = rc == -MC_E_UNFENCED;
	int end;

	(void)piece_end(c, &c->here, MC_CTL_UNSTAGE_DROP);
	end = piece_end(c, &c->there, may_land ? MC_CTL_UNSTAGE_SPOIL : MC_CTL_UNSTAGE_DROP);
	if (end < 0)
		return end;
	/* In a buffer only, that is not used again: the file is as it was. */
	if (may_land && c->there.is_staged)
		return over(c->es) < 0 ? over(c->es) : -MC_E_UNREACHABLE;
	return rc;
}

/* What each side is. */
static void chunk_sides(struct chunk *c)
{
	struct mc_session *s = c->es->session;
	uint64_t local = (uintptr_t)c->f.local;
	struct mc_region_info info = {.desc = {.kind = MC_MEM_HOST}};
	bool is_read = c->es->s.op == MC_OP_READ;
	enum mc_hops hops;

	if (mc_region_find(s->eng->regions, local, 1, &info) < 0)
		info.desc.kind = MC_MEM_HOST;
	hops =
	    mc_hops_choose(info.desc.kind, s->kind == MC_PEER_FILE ? MC_MEM_HOST : c->f.rr->kind);
	c->here = (struct piece){.is_staged = hops & MC_HOPS_HERE, .addr = local};
	c->there = (struct piece){.is_staged = hops & MC_HOPS_THERE, .addr = c->f.raddr};
	c->there.is_called = s->kind != MC_PEER_SELF;
	c->here.want = (struct mc_stage_want){.op = is_read ? MC_OP_WRITE : MC_OP_READ,
					      .region = info.id,
					      .gen = info.gen,
					      .off = local - info.desc.addr,
					      .len = c->f.len};
	c->there.want = (struct mc_stage_want){.op = c->es->s.op,
					       .region = c->f.rr->id,
					       .gen = c->f.rr->gen,
					       .off = c->f.raddr - c->f.rr->addr,
					       .len = c->f.len};
	/* relaxed: only unique */
	c->here.want.id =
	    atomic_fetch_add_explicit(&s->eng->staged->next_id, 2, memory_order_relaxed);
	c->there.want.id = c->here.want.id + 1;
}

/* The range was registered anew, it may be: ask, once. */
static bool look_again(struct chunk *c)
{
	struct mc_session *s = c->es->session;
	const struct mc_remote_region *rr;

	if (!c->there.is_staged || s->kind == MC_PEER_FILE)
		return false;
	mc_session_forget(s, c->f.rr);
	if (mc_session_region(s, c->f.raddr, c->f.len, c->es->op->soft_ns, &rr) < 0 ||
	    c->f.len > rr->len - (c->f.raddr - rr->addr))
		return false;
	c->f.rr = rr;
	return true;
}

static int chunk_do(struct chunk *c)
{
	bool is_again = false;
	int rc;

	do {
		chunk_sides(c);
		rc = chunk_clean(c, chunk_steps(c));
		is_again = !is_again && rc == -MC_E_STALE && look_again(c);
	} while (is_again);
	return rc;
}

/* ---- runs ---- */

/* The next chunk ends where the region's next MiB begins, so that a file's blocks stay whole. Under
 * mu. */
static void cut(struct run *r, struct chunk *c)
{
	const struct mc_frag *f = &r->es->s.frags[r->frag];
	uint64_t room;

	room = MC_STAGE_BYTES - (f->raddr + r->at - f->rr->addr) % MC_STAGE_BYTES;
	*c = (struct chunk){.run = r, .es = r->es, .frag = r->frag, .f = *f};
	c->f.local += r->at;
	c->f.raddr += r->at;
	c->f.len = mc_min(f->len - r->at, room);
	r->at += c->f.len;
	if (r->at == f->len) { /* a fragment is never empty */
		r->frag++;
		r->at = 0;
	}
	r->nchunks++;
	r->es->session->nstaged++;
}

static void back(struct mc_task *task)
{
	struct run *r = mc_container_of(task, struct run, back);
	struct mc_eslice *es = r->es;
	struct mc_pump *p = r->pump;
	struct mc_session *s = p->session;
	uint64_t now_ns = mc_now_ns();

	p->nfencing--;
	if (r->status == 0) {
		es->op->end_ns = now_ns;
		mc_counter_add(&es->stats->bytes[es->s.op], es->s.len);
		mc_counter_add(&es->stats->ops[es->s.op], es->s.nfrags);
		mc_hist_add(&es->stats->latency[es->s.op], now_ns - es->posted_ns);
	} else if (!es->op->has_diag) {
		es->op->has_diag = true;
		es->op->diag = r->diag;
	}
	es->s.bad_frag = r->bad_frag;
	mc_gop_slice_end(es, r->status, mc_route_name(MC_ROUTE_STAGED));
	mc_free(r);
	mc_async_kick(p);
	mc_session_put(s);
}

/* Outside of mu: nothing of it is under way. */
static void run_end(struct run *r)
{
	r->back.run = back;
	mc_loop_post(r->pump->loop, &r->back);
}

static void chunk_fail(struct chunk *c, int rc)
{
	struct run *r = c->run;

	r->status = rc;
	r->bad_frag = c->frag;
	mc_diag_set(&r->diag, "%s of %llu bytes at 0x%llx, peer %s, transport staged, %s: %s",
		    c->es->s.op == MC_OP_WRITE ? "write" : "read", (unsigned long long)c->f.len,
		    (unsigned long long)c->f.raddr, c->es->session->peer->name, c->step,
		    c->diag.text[0] ? c->diag.text : mc_err_text(rc));
}

/* A chunk of the run that has waited longest, of the highest priority. Under mu. */
static bool next(struct mc_staged *all, struct chunk *c)
{
	struct run *r, *best = NULL;

	mc_list_each (r, &all->runs, link)
		if (r->es->session->nstaged < SESSION_CHUNKS &&
		    (!best || r->es->op->prio < best->es->op->prio))
			best = r;
	if (!best)
		return false;
	mc_list_del(&best->link);
	cut(best, c);
	if (best->frag < best->es->s.nfrags)
		mc_list_push_back(&all->runs, &best->link);
	return true;
}

/* Under mu. @return true: it is over */
static bool chunk_done(struct chunk *c, int rc)
{
	struct run *r = c->run;

	r->es->session->nstaged--;
	r->nchunks--;
	if (rc < 0 && r->status == 0) {
		chunk_fail(c, rc);
		mc_list_del(&r->link);
	}
	return r->nchunks == 0 && mc_list_is_empty(&r->link);
}

static void drive(struct mc_worker_job *job)
{
	struct driver *d = mc_container_of(job, struct driver, job);
	struct mc_staged *all = d->all;
	struct chunk c;

	pthread_mutex_lock(&all->mu);
	while (next(all, &c)) {
		bool is_over;
		int rc;

		pthread_mutex_unlock(&all->mu);
		rc = chunk_do(&c);
		pthread_mutex_lock(&all->mu);
		is_over = chunk_done(&c, rc);
		if (!is_over)
			continue;
		pthread_mutex_unlock(&all->mu);
		run_end(c.run);
		pthread_mutex_lock(&all->mu);
	}
	d->is_busy = false;
	pthread_mutex_unlock(&all->mu);
}

/* Two may be wanted for what came. */
static void drivers_wake(struct mc_staged *all)
{
	for (unsigned i = 0, n = 0; i < DRIVERS_MAX && n < SESSION_CHUNKS; i++) {
		struct driver *d = &all->drivers[i];
		bool is_mine;

		pthread_mutex_lock(&all->mu);
		is_mine = !d->is_busy;
		d->is_busy = true;
		pthread_mutex_unlock(&all->mu);
		if (!is_mine)
			continue;
		mc_work_post(all->eng, &d->job);
		n++;
	}
}

void mc_staged_start(struct mc_pump *p, struct mc_eslice *es)
{
	struct mc_session *s = p->session;
	struct mc_staged *all = s->eng->staged;
	struct run *r;

	mc_assert(p->loop); /* a synchronous caller leaves such groups to a loop */
	es->stats = mc_stats_rail(s->eng, mc_route_name(MC_ROUTE_STAGED), "local", s->peer->name);
	r = mc_calloc(1, sizeof(*r));
	if (!r) {
		mc_gop_slice_end(es, -MC_E_NOMEM, mc_route_name(MC_ROUTE_STAGED));
		return;
	}
	mc_list_init(&r->link);
	r->pump = p;
	r->es = es;
	es->posted_ns = mc_now_ns();
	p->nfencing++;
	mc_session_ref(s);
	pthread_mutex_lock(&all->mu);
	mc_list_push_back(&all->runs, &r->link);
	pthread_mutex_unlock(&all->mu);
	drivers_wake(all);
}

int mc_staged_open(struct mc_engine *eng)
{
	struct mc_staged *all = mc_calloc(1, sizeof(*all));

	if (!all)
		return -MC_E_NOMEM;
	all->eng = eng;
	mc_list_init(&all->runs);
	pthread_mutex_init(&all->mu, NULL);
	for (unsigned i = 0; i < DRIVERS_MAX; i++) {
		all->drivers[i].job.run = drive;
		all->drivers[i].all = all;
	}
	eng->staged = all;
	return 0;
}

void mc_staged_close(struct mc_engine *eng)
{
	struct mc_staged *all = eng->staged;

	if (!all)
		return;
	pthread_mutex_destroy(&all->mu);
	mc_free(all);
	eng->staged = NULL;
}
