/*
 * api_async_test.c: groups that are not waited for, and messages, by the native C API: ids that go
 * stale, completion queues, back-pressure, priorities, deadlines, cancel, closing with groups under
 * way.
 *
 * "api_async_test tcp" forbids shared memory, so that a stopped peer stops what goes to it;
 * "api_async_test shm" has it: there, what needs that has an initiator without shared memory at a
 * peer that has it.
 */
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>

#include "api_fix.h"

#define MANY 65536u /* groups that an engine has under way at most */

static bool is_tcp;

static uint64_t submit(struct mc_engine *eng, struct mc_group *g)
{
	uint64_t id = 0;

	assert_int_equal(mc_submit(eng, g, &id), 0);
	assert_true(id >= 1 && id <= INT64_MAX);
	return id;
}

static struct mc_cq *cq_open(struct mc_engine *eng, uint32_t depth)
{
	struct mc_cq *cq = NULL;

	assert_int_equal(mc_cq_open(eng, depth, &cq), 0);
	return cq;
}

/* ---- ids ---- */

static void all_stale(struct mc_engine *eng, uint64_t id)
{
	struct mc_status st;
	struct mc_diag diag;

	assert_int_equal(mc_group_status(eng, id, &st), -MC_E_STALE);
	assert_int_equal(mc_group_transfer_status(eng, id, 0, &st), -MC_E_STALE);
	assert_int_equal(mc_group_wait(eng, id, NS_PER_S, &st), -MC_E_STALE);
	assert_int_equal(mc_group_diag(eng, id, &diag), -MC_E_STALE);
	assert_int_equal(mc_group_cancel(eng, id), -MC_E_STALE);
	assert_int_equal(mc_group_free(eng, id), -MC_E_STALE);
}

static void an_id_is_stale_once_freed_and_never_a_crash(void **state)
{
	static uint8_t buf[2][4096];
	struct mc_transfer t[2];
	struct mc_status st;
	struct mc_diag diag;
	struct one o[2];
	struct world w;
	uint64_t id, next;

	(void)state;
	world_open(&w);
	fill(buf, sizeof(buf), 1);
	t[0] = *one(&o[0], MC_WRITE, w.seg, buf[0], w.peer.base, 4096, 0)->transfers;
	t[1] = *one(&o[1], MC_WRITE, w.seg, buf[1], w.peer.base + 4096, 4096, 0)->transfers;
	o[0].g.n = 2;
	o[0].g.transfers = t;
	id = submit(w.eng, &o[0].g);
	assert_int_equal(mc_group_wait(w.eng, id, 20 * NS_PER_S, &st), 0);
	assert_true(st.is_done && st.status == 0 && st.bytes == 8192);
	assert_int_equal(mc_group_status(w.eng, id, &st), 0);
	assert_true(st.is_done);
	assert_int_equal(mc_group_transfer_status(w.eng, id, 1, &st), 0);
	assert_true(st.is_done && st.status == 0 && st.bytes == 4096);
	assert_int_equal(mc_group_transfer_status(w.eng, id, 2, &st), -MC_E_INVAL);
	assert_int_equal(mc_group_cancel(w.eng, id), 0); /* too late, and no harm */
	assert_int_equal(mc_group_diag(w.eng, id, &diag), 0);
	assert_string_equal(diag.text, "");
	assert_int_equal(mc_group_free(w.eng, id), 0);
	all_stale(w.eng, id);
	next = submit(w.eng, &o[0].g); /* the slot may be the same, the id is not */
	assert_int_not_equal(next, id);
	all_stale(w.eng, id);
	assert_int_equal(mc_group_free(w.eng, next), 0); /* perhaps under way still */
	all_stale(w.eng, next);
	all_stale(w.eng, 0);
	all_stale(w.eng, UINT64_MAX);
	all_stale(w.eng, 1ull << 62);
	world_close(&w);
}

static void a_failed_group_says_peer_and_cause(void **state)
{
	uint8_t buf[64] = {0};
	struct mc_status st;
	struct mc_diag diag;
	struct one o;
	struct world w;
	uint64_t id;

	(void)state;
	world_open(&w);
	id = submit(w.eng, one(&o, MC_WRITE, w.seg, buf, w.peer.readonly, 64, 0));
	assert_int_equal(mc_group_wait(w.eng, id, 20 * NS_PER_S, &st), 0);
	assert_true(st.is_done && st.status == -MC_E_PERM && st.bytes == 0);
	assert_int_equal(mc_group_transfer_status(w.eng, id, 0, &st), 0);
	assert_true(st.is_done && st.status == -MC_E_PERM);
	assert_int_equal(mc_group_diag(w.eng, id, &diag), 0);
	assert_non_null(strstr(diag.text, w.peer.name));
	assert_non_null(strstr(diag.text, mc_err_text(MC_E_PERM)));
	assert_int_equal(mc_group_free(w.eng, id), 0);
	world_close(&w);
}

static void groups_that_nobody_frees_are_back_pressure(void **state)
{
	struct mc_group g = {.size = sizeof(g), .priority = MC_PRIO_NORMAL};
	uint64_t *id = calloc(MANY + 1, sizeof(*id)), more;
	struct mc_engine *eng = engine_open();
	unsigned n = 0;
	int rc = 0;

	(void)state;
	assert_non_null(id);
	while (n <= MANY && (rc = mc_submit(eng, &g, &id[n])) == 0)
		n++;
	assert_int_equal(rc, -MC_E_AGAIN);
	assert_int_equal(n, MANY);
	for (unsigned i = 0; i < n; i++) {
		struct mc_status st;

		assert_int_equal(mc_group_wait(eng, id[i], 20 * NS_PER_S, &st), 0);
		assert_int_equal(mc_group_free(eng, id[i]), 0);
	}
	rc = -MC_E_AGAIN;
	for (unsigned i = 0; i < 2000 && rc == -MC_E_AGAIN; i++) {
		rc = mc_submit(eng, &g, &more);
		if (rc == -MC_E_AGAIN)
			nap(NS_PER_MS); /* the last of them is being let go of */
	}
	assert_int_equal(rc, 0);
	free(id);
	mc_engine_close(eng);
}

/* ---- completion queues ---- */

static void a_queue_holds_as_many_as_its_depth(void **state)
{
	uint8_t buf[64] = {0};
	struct mc_engine *other = engine_open();
	struct mc_completion done[8];
	struct mc_cq *cq, *foreign, *bad = NULL;
	struct world w;
	struct one o;
	uint64_t id = 99;
	int n;

	(void)state;
	world_open(&w);
	assert_int_equal(mc_cq_open(w.eng, 0, &bad), -MC_E_INVAL);
	assert_int_equal(mc_cq_open(w.eng, 65537, &bad), -MC_E_INVAL);
	assert_null(bad);
	mc_cq_close(NULL);
	mc_cq_close(cq_open(w.eng, 65536));
	cq = cq_open(w.eng, 2);
	foreign = cq_open(other, 2);
	(void)one(&o, MC_WRITE, w.seg, buf, w.peer.base, 64, 0);
	o.g.cq = foreign;
	assert_int_equal(mc_submit(w.eng, &o.g, &id), -MC_E_INVAL);
	o.g.cq = cq;
	o.g.user = 1;
	(void)submit(w.eng, &o.g);
	o.g.user = 2;
	(void)submit(w.eng, &o.g);
	o.g.user = 3;
	assert_int_equal(mc_submit(w.eng, &o.g, &id), -MC_E_AGAIN);
	assert_int_equal(id, 99);
	assert_int_equal(mc_cq_wait(cq, done, 1, 20 * NS_PER_S), 1); /* room for one again */
	(void)submit(w.eng, &o.g);
	assert_int_equal(mc_submit(w.eng, &o.g, &id), -MC_E_AGAIN);
	for (n = 1; n < 3;)
		n += mc_cq_wait(cq, done + n, 8 - (uint32_t)n, 20 * NS_PER_S);
	assert_int_equal(n, 3);
	assert_int_equal(done[0].user + done[1].user + done[2].user, 6);
	/* What is refused takes no room. */
	o.t.op = 9;
	for (unsigned i = 0; i < 5; i++)
		assert_int_equal(mc_submit(w.eng, &o.g, &id), -MC_E_INVAL);
	o.t.op = MC_WRITE;
	all_stale(w.eng, submit(w.eng, &o.g) + 1);
	assert_int_equal(mc_cq_wait(cq, done, 8, 20 * NS_PER_S), 1);
	mc_cq_close(cq);
	mc_cq_close(foreign);
	mc_engine_close(other);
	world_close(&w);
}

static void a_queues_descriptor_is_readable_while_something_waits(void **state)
{
	uint8_t buf[64] = {0};
	struct mc_completion done[4];
	struct pollfd p;
	struct mc_cq *cq;
	struct world w;
	struct one o;
	uint64_t at, id;

	(void)state;
	world_open(&w);
	cq = cq_open(w.eng, 4);
	p = (struct pollfd){.fd = mc_cq_fd(cq), .events = POLLIN};
	assert_int_equal(poll(&p, 1, 0), 0);
	assert_int_equal(mc_cq_wait(cq, done, 4, 0), 0);
	at = now_ns();
	assert_int_equal(mc_cq_wait(cq, done, 4, 50 * NS_PER_MS), 0);
	assert_true(now_ns() - at >= 50 * NS_PER_MS);
	for (unsigned round = 0; round < 3; round++) {
		(void)one(&o, MC_WRITE, w.seg, buf, w.peer.base, 64, 0);
		o.g.cq = cq;
		id = submit(w.eng, &o.g);
		(void)submit(w.eng, &o.g);
		assert_int_equal(poll(&p, 1, 20000), 1);
		assert_int_equal(mc_cq_wait(cq, done, 1, 20 * NS_PER_S), 1);
		assert_int_equal(poll(&p, 1, 20000), 1); /* the second, now or soon */
		assert_int_equal(mc_cq_wait(cq, done, 4, 20 * NS_PER_S), 1);
		assert_int_equal(done[0].status, 0);
		assert_int_equal(done[0].bytes, 64);
		assert_int_equal(poll(&p, 1, 0), 0);
		all_stale(w.eng, id); /* it ended by itself */
	}
	mc_cq_close(cq);
	world_close(&w);
}

#define THREADS 4u
#define ROUNDS 100u
#define SLOT 4096u

struct crowd {
	struct world w;
	struct mc_cq *cq;
	_Atomic unsigned next, taken;
	_Atomic unsigned char seen[THREADS * ROUNDS];
	_Atomic unsigned wrong;
};

static void *submitter(void *arg)
{
	struct crowd *c = arg;
	unsigned me = atomic_fetch_add(&c->next, 1);
	uint8_t *bytes = calloc(ROUNDS, SLOT);

	for (unsigned i = 0; bytes && i < ROUNDS; i++) {
		unsigned slot = me * ROUNDS + i;
		struct one o;
		uint64_t id;
		int rc;

		fill(bytes + i * SLOT, SLOT, slot);
		(void)one(&o, MC_WRITE, c->w.seg, bytes + i * SLOT,
			  c->w.peer.base + (uint64_t)slot * SLOT, SLOT, 0);
		o.g.cq = c->cq;
		o.g.user = slot;
		while ((rc = mc_submit(c->w.eng, &o.g, &id)) == -MC_E_AGAIN)
			nap(NS_PER_MS / 4);
		c->wrong += rc != 0;
	}
	/* The memory stays until all of it has gone. */
	while (atomic_load(&c->taken) < THREADS * ROUNDS && !c->wrong)
		nap(NS_PER_MS);
	free(bytes);
	return NULL;
}

static void *taker(void *arg)
{
	struct crowd *c = arg;
	struct mc_completion done[8];

	while (atomic_load(&c->taken) < THREADS * ROUNDS && !c->wrong) {
		int n = mc_cq_wait(c->cq, done, 8, 20 * NS_PER_MS);

		for (int i = 0; i < n; i++) {
			c->wrong += done[i].status != 0 || done[i].bytes != SLOT;
			c->wrong += atomic_exchange(&c->seen[done[i].user], 1) != 0;
		}
		atomic_fetch_add(&c->taken, (unsigned)n);
	}
	return NULL;
}

static void many_threads_share_a_queue(void **state)
{
	pthread_t thread[THREADS + 2];
	struct crowd *c = calloc(1, sizeof(*c));

	(void)state;
	assert_non_null(c);
	world_open(&c->w);
	c->cq = cq_open(c->w.eng, 16);
	for (unsigned i = 0; i < THREADS + 2; i++)
		assert_int_equal(pthread_create(&thread[i], NULL, i < 2 ? taker : submitter, c), 0);
	for (unsigned i = 0; i < THREADS + 2; i++)
		(void)pthread_join(thread[i], NULL);
	assert_int_equal(c->wrong, 0);
	for (unsigned i = 0; i < THREADS * ROUNDS; i++)
		assert_true(
		    is_filled_at(c->w.eng, c->w.seg, c->w.peer.base + (uint64_t)i * SLOT, SLOT, i));
	mc_cq_close(c->cq);
	world_close(&c->w);
	free(c);
}

/* ---- order and time ---- */

#define BULK 64u

static void a_small_urgent_group_passes_queued_bulk(void **state)
{
	uint8_t *bulk = calloc(BULK, MIB), small[64] = {0};
	struct mc_completion done[BULK + 1];
	unsigned n = 0, at = 0;
	struct mc_cq *cq;
	struct world w;
	struct one o;

	(void)state;
	/* One connection: over several, what comes first is also a matter of which is fast. */
	assert_int_equal(setenv("MC_TCP_LANES_PER_PEER", "1", 1), 0);
	world_open_tcp(&w);
	assert_int_equal(unsetenv("MC_TCP_LANES_PER_PEER"), 0);
	assert_non_null(bulk);
	cq = cq_open(w.eng, BULK + 1);
	assert_int_equal(move(w.eng, MC_READ, w.seg, bulk, w.peer.base, MIB), 0);
	/* Nothing is taken from the wire until all are in line. */
	peer_stop(&w.peer);
	for (unsigned i = 0; i < BULK; i++) {
		(void)one(&o, MC_READ, w.seg, bulk + i * MIB, w.peer.base, MIB, 30 * NS_PER_S);
		o.g.priority = MC_PRIO_LOW;
		o.g.cq = cq;
		(void)submit(w.eng, &o.g);
	}
	(void)one(&o, MC_READ, w.seg, small, w.peer.base + 2 * MIB, 64, 30 * NS_PER_S);
	o.g.priority = MC_PRIO_HIGH;
	o.g.cq = cq;
	o.g.user = 1;
	(void)submit(w.eng, &o.g);
	/* Nothing ends while the peer stands still; meanwhile the loop takes all of them. */
	assert_int_equal(mc_cq_wait(cq, done, 1, 200 * NS_PER_MS), 0);
	peer_go(&w.peer);
	while (n <= BULK) {
		int got = mc_cq_wait(cq, done + n, BULK + 1 - n, 20 * NS_PER_S);

		assert_true(got > 0);
		n += (unsigned)got;
	}
	for (unsigned i = 0; i < n; i++) {
		assert_int_equal(done[i].status, 0);
		if (done[i].user == 1)
			at = i;
	}
	/* Only what was on its way already comes first: 4 MiB. */
	if (at > 8)
		fail_msg("the urgent group came as number %u of %u", at + 1, n);
	mc_cq_close(cq);
	world_close(&w);
	free(bulk);
}

static void a_stopped_peer_ends_a_group_by_its_deadline_with_peer_and_cause(void **state)
{
	uint8_t *buf = calloc(1, MIB);
	struct mc_status st;
	struct mc_diag diag;
	struct world w;
	struct one o;
	uint64_t id, at;

	(void)state;
	world_open_tcp(&w);
	assert_int_equal(move(w.eng, MC_WRITE, w.seg, buf, w.peer.base, MIB), 0);
	peer_stop(&w.peer);
	for (unsigned op = MC_READ; op <= MC_WRITE; op++) {
		at = now_ns();
		id = submit(w.eng, one(&o, op, w.seg, buf, w.peer.base, MIB, NS_PER_S));
		assert_int_equal(mc_group_wait(w.eng, id, 10 * NS_PER_MS, &st), -MC_E_TIMEDOUT);
		assert_false(st.is_done);
		assert_int_equal(mc_group_wait(w.eng, id, 10 * NS_PER_S, &st), 0);
		assert_true(now_ns() - at < NS_PER_S + LATE_NS);
		assert_true(st.is_done);
		assert_true(st.status == -MC_E_TIMEDOUT ||
			    (op == MC_WRITE && st.status == -MC_E_UNFENCED));
		assert_int_equal(mc_group_diag(w.eng, id, &diag), 0);
		assert_non_null(strstr(diag.text, w.peer.name));
		assert_non_null(strstr(diag.text, mc_err_text(st.status)));
		assert_int_equal(mc_group_free(w.eng, id), 0);
	}
	at = now_ns();
	assert_true(mc_transfer_sync(w.eng,
				     one(&o, MC_READ, w.seg, buf, w.peer.base, MIB, NS_PER_S),
				     &diag) < 0);
	assert_true(now_ns() - at < NS_PER_S + LATE_NS);
	assert_non_null(strstr(diag.text, w.peer.name));
	peer_go(&w.peer);
	assert_int_equal(move(w.eng, MC_WRITE, w.seg, buf, w.peer.base, MIB), 0);
	world_close(&w);
	free(buf);
}

/* Stop the peer when its range is known: submitting then asks it nothing. */
static void stop_warm(struct world *w, void *buf)
{
	assert_int_equal(move(w->eng, MC_READ, w->seg, buf, w->peer.base, MIB), 0);
	peer_stop(&w->peer);
}

static void a_canceled_group_ends_early(void **state)
{
	uint8_t *buf = calloc(1, MIB);
	struct mc_status st;
	struct world w;
	struct one o;
	uint64_t id, at;

	(void)state;
	world_open(&w);
	if (is_tcp)
		stop_warm(&w, buf);
	at = now_ns();
	id = submit(w.eng, one(&o, MC_READ, w.seg, buf, w.peer.base, MIB, 30 * NS_PER_S));
	assert_int_equal(mc_group_cancel(w.eng, id), 0);
	assert_int_equal(mc_group_wait(w.eng, id, 20 * NS_PER_S, &st), 0);
	assert_true(now_ns() - at < 10 * NS_PER_S);
	assert_true(st.is_done);
	if (is_tcp)
		assert_int_equal(st.status, -MC_E_CANCELED);
	else
		assert_true(st.status == 0 || st.status == -MC_E_CANCELED);
	assert_int_equal(mc_group_free(w.eng, id), 0);
	peer_go(&w.peer);
	assert_int_equal(move(w.eng, MC_READ, w.seg, buf, w.peer.base, MIB), 0);
	world_close(&w);
	free(buf);
}

static void closing_a_queue_cancels_what_is_under_way_on_it(void **state)
{
	uint8_t *buf = calloc(8, MIB);
	struct mc_cq *cq;
	struct world w;
	struct one o;
	uint64_t at;

	(void)state;
	world_open(&w);
	cq = cq_open(w.eng, 8);
	if (is_tcp)
		stop_warm(&w, buf);
	for (unsigned i = 0; i < 8; i++) {
		(void)one(&o, MC_READ, w.seg, buf + i * MIB, w.peer.base, MIB, 30 * NS_PER_S);
		o.g.cq = cq;
		(void)submit(w.eng, &o.g);
	}
	at = now_ns();
	mc_cq_close(cq);
	assert_true(now_ns() - at < 10 * NS_PER_S);
	memset(buf, 0xab, 8u * MIB); /* nothing of them lands any more */
	peer_go(&w.peer);
	assert_int_equal(mc_segment_probe(w.eng, w.peer.name, 10 * NS_PER_S, NULL), 0);
	for (size_t i = 0; i < 8u * MIB; i += 509)
		assert_int_equal(buf[i], 0xab);
	world_close(&w);
	free(buf);
}

static void closing_a_segment_ends_its_groups_as_closed(void **state)
{
	uint8_t *buf = calloc(1, MIB);
	struct mc_status st;
	struct mc_diag diag;
	struct world w;
	struct one o;
	uint64_t id, at;

	(void)state;
	world_open_tcp(&w);
	stop_warm(&w, buf);
	at = now_ns();
	id = submit(w.eng, one(&o, MC_READ, w.seg, buf, w.peer.base, MIB, 30 * NS_PER_S));
	assert_int_equal(mc_segment_close(w.eng, w.seg), 0);
	assert_int_equal(mc_group_wait(w.eng, id, 20 * NS_PER_S, &st), 0);
	assert_true(now_ns() - at < 10 * NS_PER_S);
	assert_int_equal(st.status, -MC_E_CLOSED);
	assert_int_equal(mc_group_diag(w.eng, id, &diag), 0);
	assert_non_null(strstr(diag.text, w.peer.name));
	assert_int_equal(mc_group_free(w.eng, id), 0);
	assert_int_equal(mc_submit(w.eng, &o.g, &id), -MC_E_STALE);
	peer_go(&w.peer);
	assert_int_equal(mc_segment_open(w.eng, w.peer.name, 0, &diag, &w.seg), 0);
	assert_int_equal(move(w.eng, MC_READ, w.seg, buf, w.peer.base, MIB), 0);
	world_close(&w);
	free(buf);
}

static void closing_an_engine_with_groups_under_way_is_bounded(void **state)
{
	uint8_t *buf = calloc(8, MIB);
	struct world w;
	struct one o;
	uint64_t at;

	(void)state;
	world_open(&w);
	if (is_tcp)
		stop_warm(&w, buf);
	for (unsigned i = 0; i < 8; i++)
		(void)submit(w.eng, one(&o, i % 2, w.seg, buf + i * MIB, w.peer.base + i * MIB, MIB,
					30 * NS_PER_S));
	at = now_ns();
	mc_engine_close(w.eng);
	assert_true(now_ns() - at < 10 * NS_PER_S);
	peer_close(&w.peer);
	free(buf);
}

/* ---- messages ---- */

static struct mc_notice *notices_wait(struct mc_engine *eng, int *ret_n)
{
	uint64_t end = now_ns() + 20 * NS_PER_S;
	struct mc_notice *got = NULL;

	while ((*ret_n = mc_notices_take(eng, &got)) == 0 && now_ns() < end)
		nap(NS_PER_MS);
	return got;
}

static void a_message_arrives_as_it_was_sent_and_after_its_groups_bytes(void **state)
{
	static uint8_t mem[4096];
	const char name[] = "a\0b", msg[] = "\0\0tail\0";
	struct mc_notify n = {name, msg, sizeof(name), sizeof(msg)};
	struct mc_engine *a = engine_open(), *b = engine_open();
	struct mc_notice *got = (void *)&n;
	uint8_t src[4096];
	struct mc_status st;
	struct one o;
	int32_t seg;
	uint64_t id;
	int count;

	(void)state;
	assert_int_equal(mc_mem_reg(b, mem, sizeof(mem), NULL, RIGHTS), 0);
	assert_int_equal(mc_segment_open(a, mc_engine_name(b), 0, NULL, &seg), 0);
	assert_int_equal(mc_notices_take(b, &got), 0);
	assert_null(got);
	mc_notices_free(NULL, 0);
	assert_int_equal(mc_notify_send(a, seg, &n, 0), 0);
	count = mc_notices_take(b, &got); /* sent means that the peer has it */
	assert_int_equal(count, 1);
	assert_int_equal(got[0].name_len, sizeof(name));
	assert_memory_equal(got[0].name, name, sizeof(name));
	assert_int_equal(got[0].msg_len, sizeof(msg));
	assert_memory_equal(got[0].msg, msg, sizeof(msg));
	assert_int_equal(got[0].msg[sizeof(msg)], 0);
	mc_notices_free(got, count);

	fill(src, sizeof(src), 5);
	(void)one(&o, MC_WRITE, seg, src, (uintptr_t)mem, sizeof(src), 0);
	o.g.notify = &n;
	id = submit(a, &o.g);
	got = notices_wait(b, &count);
	assert_int_equal(count, 1);
	assert_true(is_filled(mem, sizeof(mem), 5));
	mc_notices_free(got, count);
	assert_int_equal(mc_group_wait(a, id, 20 * NS_PER_S, &st), 0);
	assert_int_equal(st.status, 0);
	assert_int_equal(mc_group_free(a, id), 0);
	/* Empty, and to oneself. */
	n = (struct mc_notify){0};
	assert_int_equal(mc_notify_send(a, MC_SEGMENT_LOCAL, &n, 0), 0);
	assert_int_equal(mc_notices_take(a, &got), 1);
	assert_int_equal(got[0].name_len + got[0].msg_len, 0);
	assert_string_equal(got[0].name, "");
	mc_notices_free(got, 1);
	mc_engine_close(a);
	mc_engine_close(b);
}

static void a_message_that_cannot_be_is_refused(void **state)
{
	struct mc_notify n = {"a", "b", 1, 1};
	uint8_t buf[64] = {0};
	struct world w;
	struct one o;
	uint64_t id;

	(void)state;
	world_open(&w);
	(void)one(&o, MC_WRITE, w.seg, buf, w.peer.base, 64, 0);
	o.g.notify = &n;
	assert_int_equal(mc_notify_send(w.eng, w.seg + 1, &n, 0), -MC_E_STALE);
	n.name_len = MC_NOTIFY_MAX;
	assert_int_equal(mc_notify_send(w.eng, w.seg, &n, 0), -MC_E_TOO_BIG);
	assert_int_equal(mc_transfer_sync(w.eng, &o.g, NULL), -MC_E_TOO_BIG);
	assert_int_equal(mc_submit(w.eng, &o.g, &id), -MC_E_TOO_BIG);
	n.name_len = n.msg_len = UINT32_MAX; /* their sum is small */
	assert_int_equal(mc_notify_send(w.eng, w.seg, &n, 0), -MC_E_TOO_BIG);
	n = (struct mc_notify){"a", NULL, 1, 1};
	assert_int_equal(mc_notify_send(w.eng, w.seg, &n, 0), -MC_E_INVAL);
	assert_int_equal(mc_transfer_sync(w.eng, &o.g, NULL), -MC_E_INVAL);
	n = (struct mc_notify){NULL, "b", 1, 1};
	assert_int_equal(mc_notify_send(w.eng, w.seg, &n, 0), -MC_E_INVAL);
	world_close(&w);
}

static void a_full_inbox_turns_messages_away_until_it_is_emptied(void **state)
{
	char *text = calloc(1, MC_NOTIFY_MAX);
	struct mc_notify n = {.msg = text, .msg_len = MC_NOTIFY_MAX};
	struct mc_engine *a = engine_open(), *b = engine_open();
	struct mc_notice *got;
	int32_t seg;
	int sent = 0, rc = 0, count;

	(void)state;
	assert_int_equal(mc_segment_open(a, mc_engine_name(b), 0, NULL, &seg), 0);
	while (sent < 5000 && (rc = mc_notify_send(a, seg, &n, 10 * NS_PER_S)) == 0)
		sent++;
	assert_int_equal(rc, -MC_E_AGAIN);
	assert_int_equal(sent, 1024); /* 64 MiB */
	count = mc_notices_take(b, &got);
	assert_int_equal(count, sent);
	assert_int_equal(got[sent - 1].msg_len, MC_NOTIFY_MAX);
	mc_notices_free(got, count);
	assert_int_equal(mc_notify_send(a, seg, &n, 0), 0);
	mc_engine_close(a);
	mc_engine_close(b);
	free(text);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(an_id_is_stale_once_freed_and_never_a_crash),
	    cmocka_unit_test(a_failed_group_says_peer_and_cause),
	    cmocka_unit_test(groups_that_nobody_frees_are_back_pressure),
	    cmocka_unit_test(a_queue_holds_as_many_as_its_depth),
	    cmocka_unit_test(a_queues_descriptor_is_readable_while_something_waits),
	    cmocka_unit_test(many_threads_share_a_queue),
	    cmocka_unit_test(a_small_urgent_group_passes_queued_bulk),
	    cmocka_unit_test(a_stopped_peer_ends_a_group_by_its_deadline_with_peer_and_cause),
	    cmocka_unit_test(a_canceled_group_ends_early),
	    cmocka_unit_test(closing_a_queue_cancels_what_is_under_way_on_it),
	    cmocka_unit_test(closing_a_segment_ends_its_groups_as_closed),
	    cmocka_unit_test(closing_an_engine_with_groups_under_way_is_bounded),
	    cmocka_unit_test(a_message_arrives_as_it_was_sent_and_after_its_groups_bytes),
	    cmocka_unit_test(a_message_that_cannot_be_is_refused),
	    cmocka_unit_test(a_full_inbox_turns_messages_away_until_it_is_emptied),
	};

	if (argc > 1 && strcmp(argv[1], "peer") == 0)
		return peer_main();
	is_tcp = argc > 1 && strcmp(argv[1], "tcp") == 0;
	if (is_tcp)
		(void)setenv("MC_FORCE_TCP", "1", 1);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
