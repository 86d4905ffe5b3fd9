/*
 * rdma_qp_test.c: the life of a queue pair: the table, the attributes, and failures on the way.
 */
#include <errno.h>

#include "rdma_peers.h"

static void the_table_allows_one_way_through_life(void **state)
{
	static const struct {
		enum mc_rdma_qp_state from;
		enum mc_rdma_qp_event event;
		enum mc_rdma_qp_state to;
	} allowed[] = {
	    {MC_RDMA_QP_GONE, MC_RDMA_QP_MAKE, MC_RDMA_QP_RESET},
	    {MC_RDMA_QP_RESET, MC_RDMA_QP_PREPARE, MC_RDMA_QP_INIT},
	    {MC_RDMA_QP_INIT, MC_RDMA_QP_RECEIVE, MC_RDMA_QP_RTR},
	    {MC_RDMA_QP_RTR, MC_RDMA_QP_SEND, MC_RDMA_QP_RTS},
	    {MC_RDMA_QP_INIT, MC_RDMA_QP_STOP, MC_RDMA_QP_ERR},
	    {MC_RDMA_QP_RTR, MC_RDMA_QP_STOP, MC_RDMA_QP_ERR},
	    {MC_RDMA_QP_RTS, MC_RDMA_QP_STOP, MC_RDMA_QP_ERR},
	    {MC_RDMA_QP_RESET, MC_RDMA_QP_DESTROY, MC_RDMA_QP_GONE},
	    {MC_RDMA_QP_INIT, MC_RDMA_QP_DESTROY, MC_RDMA_QP_GONE},
	    {MC_RDMA_QP_RTR, MC_RDMA_QP_DESTROY, MC_RDMA_QP_GONE},
	    {MC_RDMA_QP_RTS, MC_RDMA_QP_DESTROY, MC_RDMA_QP_GONE},
	    {MC_RDMA_QP_ERR, MC_RDMA_QP_DESTROY, MC_RDMA_QP_GONE},
	};

	for (int s = 0; s <= MC_RDMA_QP_STATE_COUNT; s++)
		for (int e = 0; e <= MC_RDMA_QP_EVENT_COUNT; e++) {
			int want = -MC_E_INVAL;

			for (size_t i = 0; i < MC_ARRAY_LEN(allowed); i++)
				if ((int)allowed[i].from == s && (int)allowed[i].event == e)
					want = (int)allowed[i].to;
			assert_int_equal(
			    mc_rdma_qp_next((enum mc_rdma_qp_state)s, (enum mc_rdma_qp_event)e),
			    want);
		}
	(void)state;
}

/* One queue pair at each side. */
struct two {
	struct mc_rdma_hca *ha, *hb;
	struct mc_rdma_cq ca, cb;
	struct mc_rdma_qp a, b;
	struct mc_rdma_end ea, eb;
};

static void two_open(struct two *t, const struct verbs_fake_conf *conf)
{
	struct mc_rdma_qp_room room = {.wrs = 4, .sges = 2, .inline_max = 64};

	assert_int_equal(rdma_peers_open(conf), 0);
	memset(t, 0, sizeof(*t));
	t->ha = &rdma_dev(&rp.a)->hca[0];
	t->hb = &rdma_dev(&rp.b)->hca[1];
	assert_int_equal(mc_rdma_cq_open(t->ha, 16, true, &t->ca), 0);
	assert_int_equal(mc_rdma_cq_open(t->hb, 16, false, &t->cb), 0);
	assert_int_equal(mc_rdma_qp_open(t->ha, t->ca.cq, &room, &t->a), 0);
	/* All that was asked for, or none. */
	assert_int_equal(room.inline_max, conf->max_inline >= 64 ? 64 : 0);
	assert_int_equal(mc_rdma_qp_open(t->hb, t->cb.cq, &room, &t->b), 0);
	mc_rdma_end_fill(t->ha, 0xfffffe, &t->ea);
	mc_rdma_end_fill(t->hb, 5, &t->eb);
}

static void two_close(struct two *t)
{
	assert_int_equal(mc_rdma_qp_close(t->ha, &t->a), 0);
	assert_int_equal(mc_rdma_qp_close(t->hb, &t->b), 0);
	assert_int_equal(mc_rdma_qp_close(t->hb, &t->b), 0); /* GONE stays GONE */
	mc_rdma_cq_close(t->ha, &t->ca);
	mc_rdma_cq_close(t->hb, &t->cb);
	rdma_peers_close();
}

static int two_connect(struct two *t)
{
	struct mc_rdma_qp_link a = mc_rdma_link(t->ha, &t->eb, t->ea.psn, false);
	struct mc_rdma_qp_link b = mc_rdma_link(t->hb, &t->ea, t->eb.psn, true);
	int rc;

	a.peer_qpn = t->b.qp->qp_num;
	b.peer_qpn = t->a.qp->qp_num;
	rc = mc_rdma_qp_connect(t->hb, &t->b, &b);
	return rc < 0 ? rc : mc_rdma_qp_connect(t->ha, &t->a, &a);
}

static int write_word(struct two *t, struct ibv_qp *qp, bool is_back)
{
	struct rdma_side *from = is_back ? &rp.b : &rp.a, *to = is_back ? &rp.a : &rp.b;
	struct mc_rdma_mr_hit hit = {0};
	uint32_t lkey = 0;
	struct ibv_sge sge = {.addr = (uintptr_t)from->mem, .length = 8};
	struct ibv_send_wr *bad,
	    wr = {.sg_list = &sge,
		  .num_sge = 1,
		  .opcode = IBV_WR_RDMA_WRITE,
		  .send_flags = IBV_SEND_SIGNALED,
		  .wr.rdma = {to->rr.addr, mc_rdma_key_get(to->rr.key, is_back ? 0 : 1)}};
	struct ibv_wc wc;

	assert_int_equal(
	    mc_rdma_lkey(rdma_dev(from), is_back ? 1 : 0, (uintptr_t)from->mem, 8, &hit, &lkey), 0);
	sge.lkey = lkey;
	assert_int_equal(ibv_post_send(qp, &wr, &bad), 0);
	assert_int_equal(ibv_poll_cq(is_back ? t->cb.cq : t->ca.cq, 1, &wc), 1);
	return (int)wc.status;
}

static void both_link_layers_connect_and_move_bytes(void **state)
{
	for (unsigned is_ib = 0; is_ib < 2; is_ib++) {
		struct verbs_fake_conf conf = {.ndevs = 2, .is_infiniband = is_ib};
		struct two t;

		two_open(&t, &conf);
		assert_int_equal(two_connect(&t), 0);
		assert_int_equal(t.a.state, MC_RDMA_QP_RTS);
		assert_int_equal(verbs_fake_qp_state(t.b.qp->qp_num), IBV_QPS_RTS);
		assert_int_equal(write_word(&t, t.a.qp, false), IBV_WC_SUCCESS);
		assert_memory_equal(rp.a.mem, rp.b.mem, 8);
		two_close(&t);
	}
	(void)state;
}

/* The initiator opened itself to nobody. */
static void the_target_cannot_write_back_through_the_initiators_queue_pair(void **state)
{
	struct verbs_fake_conf conf = {.ndevs = 2, .max_inline = 64};
	struct two t;

	two_open(&t, &conf);
	assert_int_equal(two_connect(&t), 0);
	assert_int_equal(write_word(&t, t.b.qp, true), IBV_WC_REM_ACCESS_ERR);
	two_close(&t);
	(void)state;
}

static void a_step_out_of_turn_calls_no_verb(void **state)
{
	struct verbs_fake_conf conf = {.ndevs = 2};
	unsigned calls;
	struct two t;

	two_open(&t, &conf);
	assert_int_equal(two_connect(&t), 0);
	calls = verbs_fake_calls(VERBS_FAKE_MODIFY_QP);
	assert_int_equal(two_connect(&t), -MC_E_INVAL);
	assert_int_equal(verbs_fake_calls(VERBS_FAKE_MODIFY_QP), calls);
	assert_int_equal(mc_rdma_qp_stop(t.ha, &t.a), 0);
	assert_int_equal(mc_rdma_qp_stop(t.ha, &t.a), 0); /* once is enough */
	assert_int_equal(verbs_fake_calls(VERBS_FAKE_MODIFY_QP), calls + 1);
	two_close(&t);
	(void)state;
}

static void the_smaller_packet_size_is_used_by_both(void **state)
{
	struct verbs_fake_conf conf = {.ndevs = 2};
	struct two t;

	two_open(&t, &conf);
	t.ha->port.mtu = IBV_MTU_4096;
	rdma_dev(&rp.a)->conf.mtu = 4096;
	assert_int_equal(mc_rdma_mtu(t.ha, 0), IBV_MTU_4096);
	assert_int_equal(mc_rdma_mtu(t.ha, IBV_MTU_1024), IBV_MTU_1024);
	rdma_dev(&rp.a)->conf.mtu = 512;
	assert_int_equal(mc_rdma_mtu(t.ha, IBV_MTU_1024), IBV_MTU_512);
	rdma_dev(&rp.a)->conf.mtu = 256;
	assert_int_equal(mc_rdma_mtu(t.ha, 0), IBV_MTU_256);
	rdma_dev(&rp.a)->conf.mtu = 4096;
	t.ha->port.mtu = IBV_MTU_1024;
	assert_int_equal(mc_rdma_mtu(t.ha, IBV_MTU_4096), IBV_MTU_1024);
	two_close(&t);
	(void)state;
}

static void reads_under_way_are_what_both_ends_can(void **state)
{
	struct verbs_fake_conf conf = {.ndevs = 2};
	struct mc_rdma_qp_link link;
	struct two t;

	two_open(&t, &conf);
	t.ha->attr.max_qp_init_rd_atom = 8;
	t.ha->attr.max_qp_rd_atom = 200;
	t.eb.rd_atomic = 4;
	link = mc_rdma_link(t.ha, &t.eb, 0, false);
	assert_true(link.reads_out == 4 && link.reads_in == 16);
	t.eb.rd_atomic = 0; /* upstream does not say */
	link = mc_rdma_link(t.ha, &t.eb, 0, false);
	assert_int_equal(link.reads_out, 8);
	t.ha->attr.max_qp_init_rd_atom = 0; /* a device that says nothing */
	assert_int_equal(mc_rdma_link(t.ha, &t.eb, 0, false).reads_out, 1);
	two_close(&t);
	(void)state;
}

static void a_queue_pair_that_would_not_go_is_tried_again_and_then_said(void **state)
{
	struct verbs_fake_conf conf = {.ndevs = 2};
	struct two t;

	two_open(&t, &conf);
	verbs_fake_fail(VERBS_FAKE_DESTROY_QP, 0, EBUSY);
	assert_int_equal(mc_rdma_qp_close(t.ha, &t.a), 0);
	assert_true(verbs_fake_fail_clear());
	two_close(&t);
	(void)state;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(the_table_allows_one_way_through_life),
	    cmocka_unit_test(both_link_layers_connect_and_move_bytes),
	    cmocka_unit_test(the_target_cannot_write_back_through_the_initiators_queue_pair),
	    cmocka_unit_test(a_step_out_of_turn_calls_no_verb),
	    cmocka_unit_test(the_smaller_packet_size_is_used_by_both),
	    cmocka_unit_test(reads_under_way_are_what_both_ends_can),
	    cmocka_unit_test(a_queue_pair_that_would_not_go_is_tried_again_and_then_said),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
