/*
 * env.c: the initiator's side of the suite: the peer process, shadows, slices.
 */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/hash.h"
#include "conform.h"
#include "xport/tcp.h"

#define GUARD_BYTES 4096u

struct env env;

void sched_yield_some(void)
{
	(void)nanosleep(&(struct timespec){.tv_nsec = 200000}, NULL);
}

/* ---- the peer ---- */

/* Starts this program again as a target. */
static void process_start(struct peer *p, const struct transport *tr)
{
	struct timeval tv = {.tv_sec = 60};
	char num[16];
	int fds[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds), 0);
	(void)snprintf(num, sizeof(num), "%d", fds[1]);
	p->pid = fork();
	assert_true(p->pid >= 0);
	if (p->pid == 0) {
		(void)prctl(PR_SET_PDEATHSIG, SIGKILL); /* even when it is stopped */
		(void)fcntl(fds[1], F_SETFD, 0);
		execl("/proc/self/exe", "conform", "--target", tr->name, num, (char *)NULL);
		_exit(127);
	}
	assert_int_equal(close(fds[1]), 0);
	p->ctl = fds[0];
	assert_int_equal(setsockopt(p->ctl, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof(tv)), 0);
	assert_int_equal(recv(p->ctl, &p->hello, sizeof(p->hello), 0), sizeof(p->hello));
}

struct peer peer_start(const struct transport *tr)
{
	struct peer p = {.ctl = -1};

	if (tr->flags & T_REMOTE)
		process_start(&p, tr);
	else
		assert_int_equal(target_open(tr, &p.local, &p.hello), 0);
	return p;
}

int peer_attach(struct peer *p)
{
	struct mc_addr to;
	int rc = 0;

	if (env.tr->attach)
		rc = env.tr->attach(&env.side, &p->hello, &p->state);
	if (rc == 0 && env.tr->relay.seed) {
		assert_int_equal(mc_addr_parse("127.0.0.1", p->hello.port, &to), 0);
		rc = relay_open(&to, &env.tr->relay, &p->relay);
	}
	return rc;
}

void peer_detach(struct peer *p)
{
	if (p->state)
		env.tr->detach(p->state);
	p->state = NULL;
	relay_close(p->relay);
	p->relay = NULL;
}

struct reply peer_order(struct peer *p, struct order o)
{
	struct reply r = {0};

	if (p->local) {
		target_obey(p->local, &o, &r);
		return r;
	}
	if (p->is_owed && !p->has_come) {
		assert_int_equal(recv(p->ctl, &p->owed, sizeof(p->owed), 0), sizeof(p->owed));
		p->has_come = true;
	}
	assert_int_equal(send(p->ctl, &o, sizeof(o), MSG_NOSIGNAL), sizeof(o));
	assert_int_equal(recv(p->ctl, &r, sizeof(r), 0), sizeof(r));
	return r;
}

void peer_order_begin(struct peer *p, struct order o)
{
	assert_false(p->is_owed);
	p->is_owed = true;
	p->has_come = p->local != NULL;
	if (p->local)
		target_obey(p->local, &o, &p->owed);
	else
		assert_int_equal(send(p->ctl, &o, sizeof(o), MSG_NOSIGNAL), sizeof(o));
}

struct reply peer_order_end(struct peer *p)
{
	if (!p->has_come)
		assert_int_equal(recv(p->ctl, &p->owed, sizeof(p->owed), 0), sizeof(p->owed));
	p->is_owed = p->has_come = false;
	return p->owed;
}

void peer_kill(struct peer *p, int sig)
{
	int status;

	assert_int_equal(kill(p->pid, sig), 0);
	assert_int_equal(waitpid(p->pid, &status, 0), p->pid);
	assert_int_equal(close(p->ctl), 0);
	p->pid = 0;
	p->ctl = -1;
}

/* On return it has stopped, all its threads. */
void peer_stop(struct peer *p)
{
	int status;

	assert_int_equal(kill(p->pid, SIGSTOP), 0);
	assert_int_equal(waitpid(p->pid, &status, WUNTRACED), p->pid);
	assert_true(WIFSTOPPED(status));
}

void peer_continue(struct peer *p)
{
	assert_int_equal(kill(p->pid, SIGCONT), 0);
}

void peer_quit(struct peer *p)
{
	int status = -1;

	if (p->local) {
		target_close(p->local);
		p->local = NULL;
		return;
	}
	if (p->pid == 0)
		return;
	(void)peer_order(p, (struct order){.op = ORDER_QUIT});
	assert_int_equal(waitpid(p->pid, &status, 0), p->pid);
	assert_int_equal(status, 0);
	assert_int_equal(close(p->ctl), 0);
	p->pid = 0;
}

/* ---- open and close ---- */

static uint8_t *guarded(size_t len)
{
	size_t whole = (len + 4095) / 4096 * 4096 + 2 * GUARD_BYTES;
	uint8_t *m = mmap(NULL, whole, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	assert_ptr_not_equal(m, MAP_FAILED);
	assert_int_equal(mprotect(m, GUARD_BYTES, PROT_NONE), 0);
	assert_int_equal(mprotect(m + whole - GUARD_BYTES, GUARD_BYTES, PROT_NONE), 0);
	return m + GUARD_BYTES;
}

static void guarded_free(uint8_t *at, size_t len)
{
	size_t whole = (len + 4095) / 4096 * 4096 + 2 * GUARD_BYTES;

	assert_int_equal(munmap(at - GUARD_BYTES, whole), 0);
}

int local_reg(void)
{
	uint8_t none[MC_XPORT_TOKEN_MAX];

	return env.tr->mem_reg ? env.tr->mem_reg(&env.side, env.local, LOCAL_LEN, 0, none) : 0;
}

int env_open(const struct transport *tr, uint64_t seed, bool is_long)
{
	int rc;

	memset(&env, 0, sizeof(env));
	env.tr = tr;
	env.seed = seed;
	env.is_long = is_long;
	env.local = guarded(LOCAL_LEN);
	env.local_shadow = guarded(LOCAL_LEN);
	for (int p = 0; p < PLACE_COUNT; p++)
		env.shadow[p] = guarded(place_len((enum place)p));
	env.peer = peer_start(tr);
	memcpy(env.rr, env.peer.hello.rr, sizeof(env.rr));
	if (env.peer.local) {
		env.side = *target_side(env.peer.local); /* one process, one segment */
	} else {
		rc = side_open(&env.side, tr);
		if (rc < 0)
			return rc;
	}
	rc = local_reg();
	return rc < 0 ? rc : peer_attach(&env.peer);
}

void env_close(void)
{
	peer_detach(&env.peer);
	if (env.tr->mem_unreg)
		env.tr->mem_unreg(&env.side, env.local, LOCAL_LEN);
	if (!env.peer.local)
		side_close(&env.side);
	peer_quit(&env.peer);
	guarded_free(env.local, LOCAL_LEN);
	guarded_free(env.local_shadow, LOCAL_LEN);
	for (int p = 0; p < PLACE_COUNT; p++)
		guarded_free(env.shadow[p], place_len((enum place)p));
}

/* ---- lanes ---- */

/* The target is asked to accept the lane. */
static int introduce(struct peer *p, struct mc_xlane *lane)
{
	struct order o = {.op = ORDER_ACCEPT, .b = env.side.epoch};
	int n = lane->ops->offer(lane, o.offer, sizeof(o.offer));
	struct reply r;

	if (n < 0)
		return n;
	o.a = (uint64_t)n;
	r = peer_order(p, o);
	return r.rc < 0 ? r.rc : lane->ops->connect(lane, r.answer, (size_t)r.rc);
}

int lane_open_to(struct peer *p, struct lie lie, struct mc_xlane **ret_lane)
{
	struct mc_xpath path = {.peer_epoch = p->hello.epoch ^ lie.epoch,
				.peer_name = "target",
				.peer_state = p->state};
	static unsigned next_rail;
	char addr[24];
	int rc;

	memcpy(path.nonce, p->hello.nonce, sizeof(path.nonce));
	path.nonce[7] ^= (uint8_t)lie.nonce;
	if (p->hello.port) {
		(void)snprintf(addr, sizeof(addr), "127.0.0.%u",
			       env.tr->rails ? 1 + next_rail++ % env.tr->rails : 1);
		assert_int_equal(mc_addr_parse(addr, p->hello.port, &path.remote), 0);
		if (p->relay)
			path.remote = *relay_addr(p->relay);
	}
	if (env.tr->ports)
		path.remote_port = env.tr->ports(&env.side) - 1;
	if (!env.tr->classic) {
		rc = env.side.dev->ops->lane_open(env.side.dev, &path, ret_lane);
		return rc < 0 || !(*ret_lane)->ops->offer ? rc : introduce(p, *ret_lane);
	}
	rc = mc_tcp_classic_lane_open(env.side.inner, &path, env.tr->classic, ret_lane);
	if (rc == 0 && env.tr->fault.seed)
		rc = mc_fault_lane_wrap(env.side.dev, *ret_lane, ret_lane);
	return rc;
}

struct mc_xlane *lane_open(void)
{
	struct mc_xlane *lane = NULL;

	assert_int_equal(lane_open_to(&env.peer, (struct lie){0}, &lane), 0);
	return lane;
}

/* The target's end of an introduced lane goes when it is retired. */
static void retire_end(const uint8_t *token, size_t len)
{
	struct order o = {.op = ORDER_RETIRE, .a = len};

	memcpy(o.token, token, len);
	assert_int_equal(peer_order(&env.peer, o).rc, 0);
}

void lane_close(struct mc_xlane *lane)
{
	uint8_t token[MC_XPORT_TOKEN_MAX];
	struct mc_list left;
	size_t len;

	mc_list_init(&left);
	if (lane->ops->caps & MC_XCAP_OFFER) {
		len = lane->ops->abort(lane, &left, token);
		assert_true(mc_list_is_empty(&left));
		retire_end(token, len);
	}
	lane->ops->lane_close(lane);
}

/* ---- memory against its shadow ---- */

void env_reset(void)
{
	uint64_t seed = mc_rand_u64(&env.rand) >> 32;

	for (int p = 0; p < PLACE_COUNT; p++) {
		assert_int_equal(order(.op = ORDER_FILL, .i = p, .a = seed + (unsigned)p).rc, 0);
		pattern_fill(env.shadow[p], place_len((enum place)p), seed + (unsigned)p);
	}
	pattern_fill(env.local, LOCAL_LEN, seed + 100);
	memcpy(env.local_shadow, env.local, LOCAL_LEN);
}

void env_check_range(enum place p, uint64_t off, uint64_t len)
{
	struct reply r = order(.op = ORDER_DIGEST, .i = (int)p, .a = off, .b = len);

	assert_int_equal(r.val, mc_hash64(env.shadow[p] + off, len, 0));
}

void env_check(void)
{
	for (int p = 0; p < PLACE_COUNT; p++)
		env_check_range((enum place)p, 0, place_len((enum place)p));
	assert_int_equal(order(.op = ORDER_GUARDS).val, 0);
	assert_true(memcmp(env.local, env.local_shadow, LOCAL_LEN) == 0);
}

/* ---- slices ---- */

void job_make(struct job *j, enum mc_op op, enum place p, uint64_t roff, uint64_t loff,
	      uint64_t len, uint32_t nfrags, unsigned gap)
{
	uint64_t left = len;

	assert_true(len >= nfrags && nfrags >= 1);
	memset(j, 0, sizeof(*j));
	j->frags = mc_calloc(nfrags, sizeof(*j->frags));
	assert_non_null(j->frags);
	j->place = p;
	j->rlo = roff;
	j->llo = loff;
	for (uint32_t i = 0; i < nfrags; i++) {
		uint64_t spare = left - (nfrags - i - 1); /* one byte each for the others */
		uint64_t n = mc_min(spare, 1 + mc_rand_below(&env.rand, 2 * left / (nfrags - i)));

		if (i + 1 == nfrags)
			n = left;
		j->frags[i] = (struct mc_frag){.local = env.local + loff,
					       .raddr = env.rr[p].addr + roff - env.rr_off[p],
					       .len = n,
					       .rr = &env.rr[p]};
		left -= n;
		roff += n;
		loff += n;
		j->rhi = roff;
		j->lhi = loff;
		if (gap) {
			roff += mc_rand_below(&env.rand, gap);
			loff += mc_rand_below(&env.rand, gap);
		}
	}
	assert_true(j->rhi <= place_len(p) && j->lhi <= LOCAL_LEN);
	j->s = (struct mc_slice){.op = op, .nfrags = nfrags, .frags = j->frags, .len = len};
	j->s.user = j;
}

void job_free(struct job *j)
{
	mc_free(j->frags);
	j->frags = NULL;
}

void job_expect(const struct job *j)
{
	for (uint32_t i = 0; i < j->s.nfrags; i++) {
		const struct mc_frag *f = &j->s.frags[i];
		uint8_t *there =
		    env.shadow[j->place] + env.rr_off[j->place] + (f->raddr - f->rr->addr);
		uint8_t *here = env.local_shadow + (f->local - env.local);

		if (j->s.op == MC_OP_WRITE)
			memcpy(there, f->local, f->len);
		else
			memcpy(here, there, f->len);
	}
	if (j->s.signal.rr)
		memcpy(env.shadow[j->place] + (j->s.signal.raddr - j->s.signal.rr->addr),
		       &j->s.signal.value, sizeof(j->s.signal.value));
}

void job_check(const struct job *j, uint64_t margin)
{
	uint64_t lo = j->rlo > margin ? j->rlo - margin : 0;
	uint64_t hi = mc_min(j->rhi + margin, (uint64_t)place_len(j->place));
	uint64_t llo = j->llo > margin ? j->llo - margin : 0;
	uint64_t lhi = mc_min(j->lhi + margin, (uint64_t)LOCAL_LEN);

	if (j->s.op == MC_OP_WRITE)
		env_check_range(j->place, lo, hi - lo);
	assert_true(memcmp(env.local + llo, env.local_shadow + llo, lhi - llo) == 0);
}

static void jobs_done(struct mc_slice **done, int n)
{
	for (int i = 0; i < n; i++) {
		struct job *j = done[i]->user;

		assert_int_equal(j->ended, 0);
		assert_int_equal(done[i]->verdict, MC_SLICE_DONE);
		j->ended++;
		if (done[i]->status == 0)
			assert_int_equal(done[i]->moved, done[i]->len);
	}
}

int jobs_run(struct mc_xlane *lane, struct job *jobs, unsigned n)
{
	uint64_t end_ns = mc_now_ns() + WAIT_NS, moved = lane->ops->progress(lane);
	unsigned posted = 0, ended = 0;

	while (ended < n) {
		struct mc_slice *batch[7], *done[5];
		unsigned nb = 0;
		int rc = 0;

		while (nb < MC_ARRAY_LEN(batch) && posted + nb < n) {
			batch[nb] = &jobs[posted + nb].s;
			nb++;
		}
		if (nb > 0)
			rc = lane->ops->post(lane, batch, nb);
		if (rc < 0)
			return rc;
		assert_true((unsigned)rc <= nb);
		posted += (unsigned)rc;
		rc = lane->ops->poll(lane, (unsigned)rc < nb || posted == n ? BLOCK_NS : 0, done,
				     MC_ARRAY_LEN(done));
		if (rc < 0)
			return rc;
		assert_true((unsigned)rc <= MC_ARRAY_LEN(done));
		jobs_done(done, rc);
		ended += (unsigned)rc;
		if (lane->ops->progress(lane) != moved || rc > 0)
			end_ns = mc_now_ns() + WAIT_NS;
		moved = lane->ops->progress(lane);
		assert_true(mc_now_ns() < end_ns);
	}
	return 0;
}

int job_run(struct mc_xlane *lane, struct job *j)
{
	int rc = jobs_run(lane, j, 1);

	return rc < 0 ? rc : j->s.status;
}

/* The lane broke with this: if it was a refusal, the others go again, one after the other. */
static int drive_on(struct mc_xlane **lane, struct job *jobs, unsigned n, int rc)
{
	while (rc < 0) {
		uint8_t token[MC_XPORT_TOKEN_MAX];
		struct mc_list left, *node;
		size_t len;

		if (!(env.tr->flags & T_KEY) || mc_err_scope(rc) != MC_SCOPE_OP)
			return rc;
		mc_list_init(&left);
		len = (*lane)->ops->abort(*lane, &left, token);
		while ((node = mc_list_pop_front(&left))) {
			struct mc_slice *s = mc_list_entry(node, struct mc_slice, link);

			((struct job *)s->user)->ended += s->verdict == MC_SLICE_DONE;
		}
		retire_end(token, len);
		(*lane)->ops->lane_close(*lane);
		*lane = lane_open();
		rc = 0;
		for (unsigned i = 0; i < n && rc == 0; i++)
			if (jobs[i].ended == 0)
				rc = jobs_run(*lane, &jobs[i], 1);
	}
	return rc;
}

int jobs_drive(struct mc_xlane **lane, struct job *jobs, unsigned n)
{
	return drive_on(lane, jobs, n, jobs_run(*lane, jobs, n));
}

int job_drive(struct mc_xlane **lane, struct job *j)
{
	int rc = jobs_drive(lane, j, 1);

	return rc < 0 ? rc : j->s.status;
}

size_t lane_abort(struct mc_xlane *lane, struct job *jobs, unsigned n, uint8_t *ret_token,
		  unsigned *ret_maybe)
{
	struct mc_list left, *node;
	size_t len;

	mc_list_init(&left);
	*ret_maybe = 0;
	len = lane->ops->abort(lane, &left, ret_token);
	assert_true(len <= MC_XPORT_TOKEN_MAX);
	while ((node = mc_list_pop_front(&left))) {
		struct mc_slice *s = mc_list_entry(node, struct mc_slice, link);
		struct job *j = s->user;

		assert_true(j >= jobs && j < jobs + n);
		assert_int_equal(j->ended, 0);
		j->ended++;
		if (s->verdict == MC_SLICE_MAYBE) {
			assert_int_equal(s->op, MC_OP_WRITE);
			++*ret_maybe;
		}
	}
	if (*ret_maybe == 0 && lane->ops->caps & MC_XCAP_OFFER) {
		if (env.peer.pid || env.peer.local)
			retire_end(ret_token, len);
		len = 0;
	} else if (*ret_maybe == 0) {
		assert_int_equal(len, 0);
	} else if (lane->ops->caps & MC_XCAP_FENCE) {
		assert_true(len > 0);
	}
	lane->ops->lane_close(lane);
	return len;
}

void lane_settle(struct mc_xlane *lane)
{
	struct job j;

	if (!(env.tr->flags & T_MUTE))
		return;
	job_make(&j, MC_OP_READ, PLACE_RO, 0, LOCAL_LEN - 1, 1, 1, 0);
	assert_int_equal(job_run(lane, &j), 0);
	job_expect(&j);
	job_free(&j);
}
