/*
 * api_pend_test.c: mc_submit() does not wait for a peer that has to be asked first, by the native C
 * API: the peer stands still, goes on, dies; the group is canceled, closed, or out of time
 * meanwhile.
 *
 * What the peer has to be asked for is a range that no group named before, which it is asked for on
 * its control connection, with shared memory ("shm") and without ("tcp").
 */
#include "api_fix.h"

#define AT_ONCE_NS                                                                                 \
	(NS_PER_S / 4)	       /* the tries of a peer that stands still take a second and more     \
				*/
#define SOON_NS (5 * NS_PER_S) /* no deadline of a test is as near */
#define FAR_NS (60 * NS_PER_S)

/* Submit what the stopped peer has to be asked for; the request's own memory is gone afterwards. */
static uint64_t ask(struct world *w, unsigned op, void *buf, uint64_t deadline_ns, struct mc_cq *cq)
{
	uint64_t at = now_ns(), id = 0;
	struct one o;

	(void)one(&o, op, w->seg, buf, w->peer.base, MIB, deadline_ns);
	o.g.cq = cq;
	o.g.user = 5;
	assert_int_equal(mc_submit(w->eng, &o.g, &id), 0);
	assert_true(now_ns() - at < AT_ONCE_NS);
	memset(&o, 0xff, sizeof(o));
	return id;
}

static void world_stopped(struct world *w)
{
	world_open(w);
	peer_stop(&w->peer);
}

static int end_of(struct world *w, uint64_t id, uint64_t most_ns)
{
	uint64_t at = now_ns();
	struct mc_status st, t;
	struct mc_diag diag;

	assert_int_equal(mc_group_wait(w->eng, id, FAR_NS, &st), 0);
	assert_true(now_ns() - at < most_ns);
	assert_true(st.is_done);
	assert_int_equal(mc_group_transfer_status(w->eng, id, 0, &t), 0);
	assert_true(t.is_done);
	assert_int_equal(t.status, st.status);
	if (st.status < 0) {
		assert_int_equal(mc_group_diag(w->eng, id, &diag), 0);
		assert_non_null(strstr(diag.text, w->peer.name));
	}
	assert_int_equal(mc_group_free(w->eng, id), 0);
	return st.status;
}

static void a_group_ends_by_its_deadline(void **state)
{
	static uint8_t buf[MIB];
	struct mc_status st;
	struct world w;
	uint64_t id;

	(void)state;
	world_stopped(&w);
	id = ask(&w, MC_READ, buf, 2 * NS_PER_S, NULL);
	assert_int_equal(mc_group_status(w.eng, id, &st), 0);
	assert_false(st.is_done);
	assert_int_equal(end_of(&w, id, 2 * NS_PER_S + LATE_NS), -MC_E_TIMEDOUT);
	id = ask(&w, MC_WRITE, buf, 2 * NS_PER_S, NULL);
	/* Nothing of it was sent: it may not be "unfenced". */
	assert_int_equal(end_of(&w, id, 2 * NS_PER_S + LATE_NS), -MC_E_TIMEDOUT);
	world_close(&w);
}

static void a_group_goes_on_when_the_peer_does(void **state)
{
	static uint8_t src[MIB], dst[MIB];
	struct world w;
	uint64_t id;

	(void)state;
	world_stopped(&w);
	fill(src, sizeof(src), 4);
	id = ask(&w, MC_WRITE, src, FAR_NS, NULL);
	nap(NS_PER_S / 10);
	peer_go(&w.peer);
	assert_int_equal(end_of(&w, id, 20 * NS_PER_S), 0);
	assert_int_equal(move(w.eng, MC_READ, w.seg, dst, w.peer.base, MIB), 0);
	assert_true(is_filled(dst, MIB, 4));
	world_close(&w);
}

static void many_groups_wait_and_all_end_well(void **state)
{
	enum { N = 300 };
	static uint8_t src[N], dst[N];
	struct mc_completion done[N];
	struct mc_cq *cq;
	struct world w;
	unsigned seen = 0;
	uint64_t id;

	(void)state;
	world_stopped(&w);
	fill(src, sizeof(src), 6);
	assert_int_equal(mc_cq_open(w.eng, N, &cq), 0);
	for (unsigned i = 0; i < N; i++) {
		struct one o;

		(void)one(&o, MC_WRITE, w.seg, src + i, w.peer.base + i, 1, FAR_NS);
		o.g.cq = cq;
		assert_int_equal(mc_submit(w.eng, &o.g, &id), 0);
	}
	assert_int_equal(mc_cq_wait(cq, done, N, NS_PER_S / 10), 0);
	peer_go(&w.peer);
	while (seen < N) {
		int n = mc_cq_wait(cq, done, N, 20 * NS_PER_S);

		assert_true(n > 0);
		for (int i = 0; i < n; i++)
			assert_int_equal(done[i].status, 0);
		seen += (unsigned)n;
	}
	assert_int_equal(mc_cq_wait(cq, done, N, NS_PER_S / 20), 0); /* one each */
	assert_int_equal(move(w.eng, MC_READ, w.seg, dst, w.peer.base, N), 0);
	assert_true(is_filled(dst, N, 6));
	mc_cq_close(cq);
	world_close(&w);
}

static void a_canceled_group_ends_at_once(void **state)
{
	static uint8_t buf[MIB];
	struct world w;
	uint64_t id;

	(void)state;
	world_stopped(&w);
	id = ask(&w, MC_READ, buf, FAR_NS, NULL);
	assert_int_equal(mc_group_cancel(w.eng, id), 0);
	assert_int_equal(end_of(&w, id, NS_PER_S / 2), -MC_E_CANCELED);
	peer_go(&w.peer);
	assert_int_equal(move(w.eng, MC_READ, w.seg, buf, w.peer.base, MIB), 0);
	world_close(&w);
}

static void a_closed_segment_ends_its_group_at_once(void **state)
{
	static uint8_t buf[MIB];
	struct world w;
	uint64_t id;

	(void)state;
	world_stopped(&w);
	id = ask(&w, MC_WRITE, buf, FAR_NS, NULL);
	assert_int_equal(mc_segment_close(w.eng, w.seg), 0);
	assert_int_equal(end_of(&w, id, NS_PER_S / 2), -MC_E_CLOSED);
	world_close(&w);
}

static void a_closed_queue_waits_for_nobody(void **state)
{
	static uint8_t buf[MIB];
	struct mc_cq *cq;
	struct world w;
	uint64_t at;

	(void)state;
	world_stopped(&w);
	assert_int_equal(mc_cq_open(w.eng, 8, &cq), 0);
	for (unsigned i = 0; i < 8; i++)
		(void)ask(&w, MC_READ, buf, FAR_NS, cq);
	at = now_ns();
	mc_cq_close(cq);
	assert_true(now_ns() - at < NS_PER_S);
	peer_go(&w.peer);
	assert_int_equal(move(w.eng, MC_READ, w.seg, buf, w.peer.base, MIB), 0);
	world_close(&w);
}

static void a_closed_engine_ends_its_groups_and_soon_itself(void **state)
{
	static uint8_t buf[MIB];
	struct world w;
	uint64_t at;

	(void)state;
	world_stopped(&w);
	for (unsigned i = 0; i < 8; i++)
		(void)ask(&w, i % 2, buf, FAR_NS, NULL);
	at = now_ns();
	mc_engine_close(w.eng);
	assert_true(now_ns() - at < SOON_NS);
	peer_close(&w.peer);
}

static void a_peer_that_dies_ends_its_groups(void **state)
{
	static uint8_t buf[MIB];
	struct world w;
	uint64_t id[4];

	(void)state;
	world_stopped(&w);
	for (unsigned i = 0; i < 4; i++)
		id[i] = ask(&w, i % 2, buf, FAR_NS, NULL);
	peer_kill(&w.peer);
	for (unsigned i = 0; i < 4; i++)
		assert_true(end_of(&w, id[i], SOON_NS) < 0);
	/* Its process is looked for anew each time, and not waited for. */
	id[0] = ask(&w, MC_READ, buf, FAR_NS, NULL);
	assert_true(end_of(&w, id[0], SOON_NS) < 0);
	mc_engine_close(w.eng);
}

static void other_peers_are_served_meanwhile(void **state)
{
	enum { STOPPED = 40 };
	static uint8_t src[4096], dst[4096];
	struct mc_engine *other = engine_open();
	uint64_t id[STOPPED];
	struct world w;
	struct one o;
	int32_t seg;

	(void)state;
	world_stopped(&w);
	for (unsigned i = 0; i < STOPPED; i++)
		id[i] = ask(&w, MC_READ, src, FAR_NS, NULL);
	assert_int_equal(mc_segment_open(w.eng, mc_engine_name(other), 0, NULL, &seg), 0);
	for (unsigned i = 0; i < 8; i++) {
		uint64_t at = now_ns(), mine;
		struct mc_status st;

		fill(src, sizeof(src), i);
		assert_int_equal(mc_mem_reg(other, dst, sizeof(dst), NULL, RIGHTS), 0);
		(void)one(&o, MC_WRITE, seg, src, (uintptr_t)dst, sizeof(src), FAR_NS);
		assert_int_equal(mc_submit(w.eng, &o.g, &mine), 0);
		assert_int_equal(mc_group_wait(w.eng, mine, FAR_NS, &st), 0);
		assert_int_equal(st.status, 0);
		assert_true(now_ns() - at < NS_PER_S);
		assert_true(is_filled(dst, sizeof(dst), i));
		assert_int_equal(mc_group_free(w.eng, mine), 0);
		assert_int_equal(mc_mem_unreg(other, dst), 0);
	}
	for (unsigned i = 0; i < STOPPED; i++) {
		assert_int_equal(mc_group_cancel(w.eng, id[i]), 0);
		assert_int_equal(end_of(&w, id[i], SOON_NS), -MC_E_CANCELED);
	}
	world_close(&w);
	mc_engine_close(other);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(a_group_ends_by_its_deadline),
	    cmocka_unit_test(a_group_goes_on_when_the_peer_does),
	    cmocka_unit_test(many_groups_wait_and_all_end_well),
	    cmocka_unit_test(a_canceled_group_ends_at_once),
	    cmocka_unit_test(a_closed_segment_ends_its_group_at_once),
	    cmocka_unit_test(a_closed_queue_waits_for_nobody),
	    cmocka_unit_test(a_closed_engine_ends_its_groups_and_soon_itself),
	    cmocka_unit_test(a_peer_that_dies_ends_its_groups),
	    cmocka_unit_test(other_peers_are_served_meanwhile),
	};

	if (argc > 1 && strcmp(argv[1], "peer") == 0)
		return peer_main();
	if (argc > 1 && strcmp(argv[1], "tcp") == 0)
		(void)setenv("MC_FORCE_TCP", "1", 1);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
