/*
 * group_test.c: groups and their engines when memory runs out at any point, when requests are
 * malformed, and when what they name is gone. Two engines in one process.
 */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/ctl.h"
#include "engine/priv.h"

#define BYTES (1u << 20)
#define SWEEP_MAX 4000

static struct mc_engine *open_one(void)
{
	struct mc_engine_opts opts = {.size = sizeof(opts), .name = "127.0.0.1"};
	struct mc_engine *eng = NULL;

	assert_int_equal(mc_engine_open(&opts, NULL, &eng), 0);
	return eng;
}

struct pair {
	struct mc_engine *a, *b;
	uint8_t *local, *remote;
	int32_t seg;
};

static void pair_open(struct pair *p)
{
	p->a = open_one();
	p->b = open_one();
	p->local = mc_aligned_alloc(4096, BYTES);
	p->remote = mc_aligned_alloc(4096, BYTES);
	assert_true(p->local && p->remote);
	memset(p->local, 7, BYTES);
	assert_int_equal(mc_mem_reg(p->b, p->remote, BYTES, NULL, 3), 0);
	assert_int_equal(mc_segment_open(p->a, mc_engine_name(p->b), 0, NULL, &p->seg), 0);
}

static void pair_close(struct pair *p)
{
	mc_engine_close(p->a);
	mc_engine_close(p->b);
	mc_free(p->local);
	mc_free(p->remote);
}

static int write_to(struct pair *p, int32_t seg, uint64_t len, uint64_t deadline_ns,
		    const struct mc_notify *notify)
{
	struct mc_iov l = {(uintptr_t)p->local, len}, r = {(uintptr_t)p->remote, len};
	struct mc_transfer t = {
	    .op = MC_WRITE, .segment = seg, .nlocal = 1, .nremote = 1, .local = &l, .remote = &r};
	struct mc_group g = {.size = sizeof(g),
			     .n = 1,
			     .transfers = &t,
			     .deadline_ns = deadline_ns,
			     .notify = notify,
			     .priority = MC_PRIO_NORMAL};

	return mc_transfer_sync(p->a, &g, NULL);
}

static void memory_that_runs_out_while_an_engine_opens_is_an_error_and_no_leak(void **state)
{
	struct mc_engine_opts opts = {.size = sizeof(opts), .name = "127.0.0.1"};
	int64_t live;
	int rc = -1, n;

	(void)state;
	mc_engine_close(open_one()); /* what is made once in a process is made */
	live = mc_mem_live();
	for (n = 0; n < SWEEP_MAX; n++) {
		struct mc_engine *eng = NULL;
		struct mc_diag diag = {.text = ""};

		mc_mem_fail_after(n);
		rc = mc_engine_open(&opts, &diag, &eng);
		mc_mem_fail_after(-1);
		if (rc == 0)
			mc_engine_close(eng);
		else
			assert_true(diag.text[0] || n == 0);
		assert_int_equal(mc_mem_live(), live);
		if (rc == 0 && n > 100)
			break;
	}
	assert_int_equal(rc, 0);
}

static void memory_that_runs_out_in_a_transfer_is_an_error_and_no_leak(void **state)
{
	const struct mc_notify notify = {.name = "n", .name_len = 1, .msg = "m", .msg_len = 1};
	int64_t live = mc_mem_live();
	unsigned good = 0;
	struct pair p;

	(void)state;
	pair_open(&p);
	for (int n = 0; n < 60; n++) {
		int32_t seg = -1;
		int rc;

		assert_int_equal(mc_segment_close(p.a, p.seg),
				 0); /* sessions open anew each time */
		mc_mem_fail_after(n);
		rc = mc_segment_open(p.a, mc_engine_name(p.b), MC_NS_PER_S, NULL, &seg);
		if (rc == 0)
			rc = write_to(&p, seg, BYTES, MC_NS_PER_S, n % 2 ? &notify : NULL);
		mc_mem_fail_after(-1);
		good += rc == 0;
		assert_int_equal(mc_segment_open(p.a, mc_engine_name(p.b), 0, NULL, &p.seg), 0);
		assert_int_equal(write_to(&p, p.seg, BYTES, 0, NULL), 0);
	}
	pair_close(&p);
	assert_int_equal(mc_mem_live(), live);
	(void)good;
}

static void memory_that_runs_out_in_a_submit_is_an_error_and_no_leak(void **state)
{
	const struct mc_notify notify = {.name = "n", .name_len = 1, .msg = "m", .msg_len = 1};
	int64_t live = mc_mem_live();
	struct mc_status st;
	struct mc_iov l, r;
	struct mc_transfer t = {
	    .op = MC_WRITE, .nlocal = 1, .nremote = 1, .local = &l, .remote = &r};
	struct mc_group g = {.size = sizeof(g), .n = 1, .transfers = &t, .priority = 1};
	unsigned refused = 0, failed = 0;
	struct pair p;

	(void)state;
	pair_open(&p);
	for (int n = 0; n < 80; n++) {
		uint64_t id;
		int rc;

		/* Another incarnation of the session each time: the peer has to be asked. */
		assert_int_equal(mc_segment_close(p.a, p.seg), 0);
		assert_int_equal(mc_segment_open(p.a, mc_engine_name(p.b), 0, NULL, &t.segment), 0);
		l = (struct mc_iov){(uintptr_t)p.local, BYTES};
		r = (struct mc_iov){(uintptr_t)p.remote, BYTES};
		g.notify = n % 2 ? &notify : NULL;
		g.deadline_ns = 20 * MC_NS_PER_S;
		mc_mem_fail_after(n);
		rc = mc_submit(p.a, &g, &id);
		l = r = (struct mc_iov){0, 0};
		if (rc == 0)
			assert_int_equal(mc_group_wait(p.a, id, 30 * MC_NS_PER_S, &st), 0);
		mc_mem_fail_after(-1);
		refused += rc < 0;
		failed += rc == 0 && st.status < 0;
		if (rc == 0)
			assert_int_equal(mc_group_free(p.a, id), 0);
	}
	assert_true(refused > 0 && failed > 0 && refused + failed < 80);
	pair_close(&p);
	assert_int_equal(mc_mem_live(), live);
}

static void memory_that_runs_out_in_registration_registers_nothing(void **state)
{
	struct mc_engine *eng = open_one();
	static uint8_t mem[4][4096];
	const struct mc_mem all[4] = {
	    {mem[0], 4096}, {mem[1], 4096}, {mem[2], 4096}, {mem[3], 4096}};

	(void)state;
	for (int n = 0; n < 20; n++) {
		int rc;

		mc_mem_fail_after(n);
		rc = mc_mem_reg_batch(eng, all, 4, NULL, 3);
		mc_mem_fail_after(-1);
		assert_int_equal(mc_region_count(eng->regions), rc == 0 ? 4 : 0);
		for (int i = 0; i < 4 && rc == 0; i++)
			assert_int_equal(mc_mem_unreg(eng, mem[i]), 0);
	}
	mc_engine_close(eng);
}

static void malformed_groups_are_refused_by_name(void **state)
{
	struct mc_diag diag;
	struct pair p;
	struct mc_iov l, r;
	struct mc_transfer t = {
	    .op = MC_WRITE, .nlocal = 1, .nremote = 1, .local = &l, .remote = &r};
	struct mc_group g = {.size = sizeof(g), .n = 1, .transfers = &t, .priority = 1};

	(void)state;
	pair_open(&p);
	t.segment = p.seg;
	l = (struct mc_iov){(uintptr_t)p.local, 64};
	r = (struct mc_iov){(uintptr_t)p.remote, 63};
	assert_int_equal(mc_transfer_sync(p.a, &g, &diag), -MC_E_INVAL);
	r = (struct mc_iov){UINT64_MAX - 10, 64};
	assert_int_equal(mc_transfer_sync(p.a, &g, &diag), -MC_E_INVAL);
	r = (struct mc_iov){(uintptr_t)p.remote + BYTES - 32, 64};
	assert_int_equal(mc_transfer_sync(p.a, &g, &diag), -MC_E_RANGE);
	assert_non_null(strstr(diag.text, mc_engine_name(p.b)));
	r.addr = (uintptr_t)p.remote;
	l.addr = 0;
	assert_int_equal(mc_transfer_sync(p.a, &g, &diag), -MC_E_INVAL);
	l.addr = (uintptr_t)p.local;
	t.segment = 999;
	assert_int_equal(mc_transfer_sync(p.a, &g, &diag), -MC_E_STALE);
	t.segment = p.seg;
	g.priority = MC_PRIO_COUNT;
	assert_int_equal(mc_transfer_sync(p.a, &g, &diag), -MC_E_INVAL);
	g.priority = 1;
	g.deadline_ns = UINT64_MAX; /* for ever is a deadline, too */
	assert_int_equal(mc_transfer_sync(p.a, &g, &diag), 0);
	g.n = 0;
	assert_int_equal(mc_transfer_sync(p.a, &g, &diag), 0);
	pair_close(&p);
}

static void a_queue_of_another_engine_is_refused(void **state)
{
	struct mc_group g = {.size = sizeof(g), .priority = 1};
	struct pair p;
	uint64_t id;

	(void)state;
	pair_open(&p);
	assert_int_equal(mc_cq_open(p.b, 4, &g.cq), 0);
	assert_int_equal(mc_submit(p.a, &g, &id), -MC_E_INVAL);
	mc_cq_close(g.cq);
	pair_close(&p);
}

static void a_region_registered_anew_is_found_again_by_loops_too(void **state)
{
	struct mc_iov l, r;
	struct mc_transfer t = {
	    .op = MC_WRITE, .nlocal = 1, .nremote = 1, .local = &l, .remote = &r};
	struct mc_group g = {.size = sizeof(g), .n = 1, .transfers = &t, .priority = 1};
	struct mc_status st;
	struct pair p;
	uint64_t id;

	(void)state;
	pair_open(&p);
	t.segment = p.seg;
	l = (struct mc_iov){(uintptr_t)p.local, BYTES};
	r = (struct mc_iov){(uintptr_t)p.remote, BYTES};
	for (int i = 0; i < 4; i++) {
		assert_int_equal(mc_submit(p.a, &g, &id), 0);
		assert_int_equal(mc_group_wait(p.a, id, 20 * MC_NS_PER_S, &st), 0);
		assert_int_equal(st.status, 0);
		assert_int_equal(mc_group_free(p.a, id), 0);
		assert_int_equal(mc_transfer_sync(p.a, &g, NULL), 0);
		assert_int_equal(mc_mem_unreg(p.b, p.remote), 0);
		assert_int_equal(mc_mem_reg(p.b, p.remote, BYTES, NULL, 3), 0);
	}
	pair_close(&p);
}

static void a_group_on_several_segments_ends_once_all_have(void **state)
{
	struct pair p, q;
	struct mc_iov l[2], r[2];
	struct mc_transfer t[2] = {
	    {.op = MC_WRITE, .nlocal = 1, .nremote = 1, .local = &l[0], .remote = &r[0]},
	    {.op = MC_READ, .nlocal = 1, .nremote = 1, .local = &l[1], .remote = &r[1]}};
	struct mc_group g = {.size = sizeof(g), .n = 2, .transfers = t, .priority = 1};

	(void)state;
	pair_open(&p);
	pair_open(&q);
	memset(q.remote, 9, BYTES);
	t[0].segment = p.seg;
	assert_int_equal(mc_segment_open(p.a, mc_engine_name(q.b), 0, NULL, &t[1].segment), 0);
	l[0] = (struct mc_iov){(uintptr_t)p.local, BYTES / 2};
	l[1] = (struct mc_iov){(uintptr_t)p.local + BYTES / 2, BYTES / 2};
	r[0] = (struct mc_iov){(uintptr_t)p.remote, BYTES / 2};
	r[1] = (struct mc_iov){(uintptr_t)q.remote, BYTES / 2};
	for (int i = 0; i < 20; i++)
		assert_int_equal(mc_transfer_sync(p.a, &g, NULL), 0);
	assert_memory_equal(p.local, p.remote, BYTES / 2);
	assert_memory_equal(p.local + BYTES / 2, q.remote, BYTES / 2);
	pair_close(&p);
	pair_close(&q);
}

static void memory_that_its_user_registered_and_unregistered_is_freed_all_the_same(void **state)
{
	struct mc_engine *eng = open_one();
	void *mem = mc_mem_alloc(eng, 65536);

	(void)state;
	assert_non_null(mem);
	assert_int_equal(mc_mem_reg(eng, mem, 65536, NULL, 3), 0);
	assert_int_equal(mc_mem_free(eng, mem), 0);
	assert_int_equal(mc_region_count(eng->regions), 0);
	mem = mc_mem_alloc(eng, 65536);
	assert_int_equal(mc_mem_unreg(eng, mem), 0);
	assert_int_equal(mc_mem_free(eng, mem), 0);
	assert_int_equal(mc_mem_free(eng, mem), -MC_E_NOENT);
	mc_engine_close(eng);
}

/* ---- is the peer dead? ---- */

static void a_control_port_that_refuses_is_no_death_while_the_data_port_answers(void **state)
{
	struct mc_session *s;
	struct mc_ctl_conn *c;
	struct mc_peer *peer;
	struct pair p;

	(void)state;
	assert_int_equal(setenv("MC_FORCE_TCP", "1", 1), 0);
	pair_open(&p);
	assert_int_equal(unsetenv("MC_FORCE_TCP"), 0);
	assert_int_equal(mc_peer_by_id(p.a, p.seg, &peer), 0);
	assert_int_equal(mc_session_get(peer, mc_now_ns() + MC_NS_PER_S, NULL, &s), 0);
	/* As a firewall would that rejects one port of a living process. */
	mc_control_close(p.b->control);
	p.b->control = NULL;
	for (int i = 0; i < 2; i++) {
		assert_int_equal(mc_ctlconn_get(s, mc_now_ns() + 5 * MC_NS_PER_S, &c), 0);
		mc_ctlconn_put(s, c, true); /* the next one has to connect */
	}
	assert_false(atomic_load(&s->is_gone));
	assert_int_equal(write_to(&p, p.seg, BYTES, 0, NULL), 0);
	mc_engine_close(p.b);
	p.b = NULL;
	/* The write may have left a connection whose end is not known yet. */
	if (mc_ctlconn_get(s, mc_now_ns() + 5 * MC_NS_PER_S, &c) == 0)
		mc_ctlconn_put(s, c, true);
	assert_int_equal(mc_ctlconn_get(s, mc_now_ns() + 5 * MC_NS_PER_S, &c), -MC_E_PEER_DEAD);
	assert_true(atomic_load(&s->is_gone));
	mc_session_put(s);
	pair_close(&p);
}

static void an_error_is_counted_by_transport_rail_peer_and_cause(void **state)
{
	char *text, *line, want[160];
	struct pair p;

	(void)state;
	assert_int_equal(setenv("MC_FORCE_TCP", "1", 1), 0);
	pair_open(&p);
	assert_int_equal(unsetenv("MC_FORCE_TCP"), 0);
	assert_int_equal(write_to(&p, p.seg, BYTES, 0, NULL), 0);
	text = mc_metrics_text(p.a);
	assert_null(strstr(text, "mc_transfer_errors_total{"));
	mc_text_free(text);
	assert_int_equal(mc_mem_unreg(p.b, p.remote), 0);
	assert_true(write_to(&p, p.seg, BYTES, 0, NULL) < 0);
	text = mc_metrics_text(p.a);
	line = strstr(text, "mc_transfer_errors_total{");
	assert_non_null(line);
	*strchr(line, '\n') = '\0';
	(void)snprintf(want, sizeof(want), "peer=\"%s\",cause=\"", mc_engine_name(p.b));
	assert_non_null(strstr(line, "transport=\"tcp\",rail=\"any\""));
	assert_non_null(strstr(line, want));
	assert_string_equal(strrchr(line, ' '), " 1");
	mc_text_free(text);
	pair_close(&p);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(malformed_groups_are_refused_by_name),
	    cmocka_unit_test(a_queue_of_another_engine_is_refused),
	    cmocka_unit_test(a_region_registered_anew_is_found_again_by_loops_too),
	    cmocka_unit_test(a_group_on_several_segments_ends_once_all_have),
	    cmocka_unit_test(
		memory_that_its_user_registered_and_unregistered_is_freed_all_the_same),
	    cmocka_unit_test(memory_that_runs_out_in_registration_registers_nothing),
	    cmocka_unit_test(memory_that_runs_out_in_a_submit_is_an_error_and_no_leak),
	    cmocka_unit_test(memory_that_runs_out_in_a_transfer_is_an_error_and_no_leak),
	    cmocka_unit_test(memory_that_runs_out_while_an_engine_opens_is_an_error_and_no_leak),
	    cmocka_unit_test(an_error_is_counted_by_transport_rail_peer_and_cause),
	    cmocka_unit_test(a_control_port_that_refuses_is_no_death_while_the_data_port_answers),
	};

	/* As the conformance suites: "tcp" leaves shared memory out. */
	if (argc > 1 && strcmp(argv[1], "tcp") == 0)
		(void)setenv("MC_FORCE_TCP", "1", 1);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
