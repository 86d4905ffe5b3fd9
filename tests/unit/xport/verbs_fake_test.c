/*
 * verbs_fake_test.c: the fabric that the RDMA tests stand on keeps the rules that its header
 * promises, in raw verbs.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "verbs_fake.h"

#define BYTES 4096u
#define ALL (IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_WRITE)

struct end {
	struct ibv_context *ctx;
	struct ibv_pd *pd;
	struct ibv_comp_channel *channel;
	struct ibv_cq *cq;
	struct ibv_qp *qp;
	struct ibv_mr *mr;
	_Alignas(4096) uint8_t mem[BYTES];
};

struct pair {
	const struct mc_verbs *v;
	struct end a, b;
};
static struct pair pr;

static void end_open(struct end *e, unsigned dev, unsigned cqes)
{
	struct ibv_qp_init_attr init = {
	    .qp_type = IBV_QPT_RC,
	    .cap = {.max_send_wr = 8, .max_recv_wr = 1, .max_send_sge = 2, .max_recv_sge = 1},
	};
	struct ibv_qp_attr attr = {.qp_state = IBV_QPS_INIT, .port_num = 1, .qp_access_flags = ALL};
	struct ibv_device **list = pr.v->get_device_list(NULL);

	e->ctx = pr.v->open_device(list[1 - dev]); /* the list is backwards */
	pr.v->free_device_list(list);
	assert_non_null(e->ctx);
	e->pd = pr.v->alloc_pd(e->ctx);
	e->channel = pr.v->create_comp_channel(e->ctx);
	e->cq = pr.v->create_cq(e->ctx, (int)cqes, NULL, e->channel, 0);
	assert_non_null(e->cq);
	init.send_cq = init.recv_cq = e->cq;
	e->qp = pr.v->create_qp(e->pd, &init);
	assert_non_null(e->qp);
	assert_int_equal(
	    pr.v->modify_qp(e->qp, &attr,
			    IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS),
	    0);
	memset(e->mem, 0, sizeof(e->mem));
	e->mr = pr.v->reg_mr(e->pd, e->mem, sizeof(e->mem), ALL);
	assert_non_null(e->mr);
}

static void end_join(struct end *e, const struct end *peer, unsigned peer_dev)
{
	struct ibv_qp_attr attr = {
	    .qp_state = IBV_QPS_RTR,
	    .path_mtu = IBV_MTU_1024,
	    .dest_qp_num = peer->qp->qp_num,
	    .rq_psn = 7,
	    .ah_attr = {.is_global = 1, .port_num = 1, .grh = {.sgid_index = 1}},
	};

	verbs_fake_gid_get(peer_dev, 1, 1, attr.ah_attr.grh.dgid.raw);
	assert_int_equal(pr.v->modify_qp(e->qp, &attr,
					 IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU |
					     IBV_QP_DEST_QPN | IBV_QP_RQ_PSN |
					     IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER),
			 0);
	attr = (struct ibv_qp_attr){.qp_state = IBV_QPS_RTS, .sq_psn = 7, .retry_cnt = 6};
	assert_int_equal(pr.v->modify_qp(e->qp, &attr,
					 IBV_QP_STATE | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT |
					     IBV_QP_RNR_RETRY | IBV_QP_SQ_PSN |
					     IBV_QP_MAX_QP_RD_ATOMIC),
			 0);
}

static void pair_open(unsigned cqes)
{
	pr.v = verbs_fake_open(&(struct verbs_fake_conf){.ndevs = 2, .max_inline = 64});
	end_open(&pr.a, 0, cqes);
	end_open(&pr.b, 1, 64);
	end_join(&pr.a, &pr.b, 1);
	end_join(&pr.b, &pr.a, 0);
}

static void end_close(struct end *e)
{
	if (e->qp)
		assert_int_equal(pr.v->destroy_qp(e->qp), 0);
	if (e->mr)
		assert_int_equal(pr.v->dereg_mr(e->mr), 0);
	assert_int_equal(pr.v->destroy_cq(e->cq), 0);
	assert_int_equal(pr.v->destroy_comp_channel(e->channel), 0);
	assert_int_equal(pr.v->dealloc_pd(e->pd), 0);
	assert_int_equal(pr.v->close_device(e->ctx), 0);
	memset(e, 0, sizeof(*e));
}

static void pair_close(void)
{
	end_close(&pr.a);
	end_close(&pr.b);
	assert_int_equal(verbs_fake_live_all(), 0);
	verbs_fake_close();
}

/* One request of `len` bytes from the beginning of a to the beginning of b, or back. */
static int post(enum ibv_wr_opcode op, uint32_t len, unsigned flags)
{
	struct ibv_sge sge = {
	    .addr = (uintptr_t)pr.a.mem, .length = len, .lkey = pr.a.mr ? pr.a.mr->lkey : 0};
	struct ibv_send_wr *bad, wr = {
				     .wr_id = 5,
				     .sg_list = &sge,
				     .num_sge = 1,
				     .opcode = op,
				     .send_flags = flags,
				     .wr.rdma = {.remote_addr = (uintptr_t)pr.b.mem,
						 .rkey = pr.b.mr ? pr.b.mr->rkey : 0},
				 };

	return ibv_post_send(pr.a.qp, &wr, &bad);
}

static void expect(enum ibv_wc_status status)
{
	struct ibv_wc wc;

	assert_int_equal(ibv_poll_cq(pr.a.cq, 1, &wc), 1);
	assert_int_equal(wc.status, status);
	assert_int_equal(wc.wr_id, 5);
}

static void expect_none(void)
{
	struct ibv_wc wc;

	assert_int_equal(ibv_poll_cq(pr.a.cq, 1, &wc), 0);
}

static void bytes_are_written_and_read(void **state)
{
	(void)state;
	pair_open(64);
	memset(pr.a.mem, 0x5a, BYTES);
	assert_int_equal(post(IBV_WR_RDMA_WRITE, BYTES, IBV_SEND_SIGNALED), 0);
	expect(IBV_WC_SUCCESS);
	assert_memory_equal(pr.a.mem, pr.b.mem, BYTES);
	memset(pr.b.mem, 0xa5, BYTES);
	assert_int_equal(post(IBV_WR_RDMA_READ, BYTES, IBV_SEND_SIGNALED), 0);
	expect(IBV_WC_SUCCESS);
	assert_memory_equal(pr.a.mem, pr.b.mem, BYTES);
	pair_close();
}

static void unsignalled_requests_take_slots_until_a_later_completion_is_polled(void **state)
{
	(void)state;
	pair_open(64);
	for (int i = 0; i < 7; i++)
		assert_int_equal(post(IBV_WR_RDMA_WRITE, 1, 0), 0);
	expect_none();
	assert_int_equal(post(IBV_WR_RDMA_WRITE, 1, IBV_SEND_SIGNALED), 0);
	assert_int_equal(post(IBV_WR_RDMA_WRITE, 1, 0), ENOMEM);
	expect(IBV_WC_SUCCESS);
	assert_int_equal(post(IBV_WR_RDMA_WRITE, 1, 0), 0);
	assert_int_equal(post(IBV_WR_RDMA_WRITE, 65, IBV_SEND_INLINE), EINVAL);
	pair_close();
}

static void key_that_is_gone_is_refused_and_ends_both_queue_pairs(void **state)
{
	uint32_t a = 0, b = 0;

	(void)state;
	pair_open(64);
	a = pr.a.qp->qp_num;
	b = pr.b.qp->qp_num;
	assert_int_equal(pr.v->dereg_mr(pr.b.mr), 0);
	pr.b.mr = NULL;
	assert_int_equal(post(IBV_WR_RDMA_WRITE, 8, 0), 0);
	expect(IBV_WC_REM_ACCESS_ERR);
	assert_int_equal(verbs_fake_qp_state(a), IBV_QPS_ERR);
	assert_int_equal(verbs_fake_qp_state(b), IBV_QPS_ERR);
	assert_int_equal(post(IBV_WR_RDMA_WRITE, 8, 0), 0);
	expect(IBV_WC_WR_FLUSH_ERR);
	pair_close();
}

static void local_key_of_another_range_is_refused(void **state)
{
	(void)state;
	pair_open(64);
	assert_int_equal(pr.v->dereg_mr(pr.a.mr), 0);
	pr.a.mr = pr.v->reg_mr(pr.a.pd, pr.a.mem + 8, 8, ALL);
	assert_int_equal(post(IBV_WR_RDMA_READ, 8, 0), 0);
	expect(IBV_WC_LOC_PROT_ERR);
	pair_close();
}

static void held_write_lands_after_its_sender_is_gone_but_not_after_its_target(void **state)
{
	(void)state;
	for (int round = 0; round < 2; round++) {
		struct end *first = round ? &pr.b : &pr.a;

		pair_open(64);
		pr.a.mem[0] = 9;
		verbs_fake_hold(VERBS_FAKE_HOLD_REQUESTS);
		assert_int_equal(post(IBV_WR_RDMA_WRITE, 1, IBV_SEND_SIGNALED), 0);
		assert_int_equal(verbs_fake_pending(), 1);
		assert_int_equal(pr.v->destroy_qp(first->qp), 0);
		first->qp = NULL;
		assert_int_equal(verbs_fake_step(5), 1);
		assert_int_equal(pr.b.mem[0], round ? 0 : 9);
		if (round)
			expect(IBV_WC_RETRY_EXC_ERR);
		pair_close();
	}
}

static void held_acknowledgement_leaves_bytes_without_completion(void **state)
{
	(void)state;
	pair_open(64);
	pr.a.mem[0] = 9;
	verbs_fake_hold(VERBS_FAKE_HOLD_ACKS);
	assert_int_equal(post(IBV_WR_RDMA_WRITE, 1, IBV_SEND_SIGNALED), 0);
	assert_int_equal(pr.b.mem[0], 9);
	expect_none();
	assert_int_equal(verbs_fake_step(1), 1);
	expect(IBV_WC_SUCCESS);
	pair_close();
}

static void dropped_link_is_silent_until_it_is_repaired_or_given_up(void **state)
{
	(void)state;
	pair_open(64);
	pr.a.mem[0] = 9;
	verbs_fake_link(1, 1, VERBS_FAKE_DROP);
	assert_int_equal(post(IBV_WR_RDMA_WRITE, 1, IBV_SEND_SIGNALED), 0);
	expect_none();
	assert_int_equal(pr.b.mem[0], 0);
	verbs_fake_link(1, 1, VERBS_FAKE_UP);
	expect(IBV_WC_SUCCESS);
	assert_int_equal(pr.b.mem[0], 9);
	pr.a.mem[0] = 10;
	verbs_fake_link(1, 1, VERBS_FAKE_DROP_ACK);
	assert_int_equal(post(IBV_WR_RDMA_WRITE, 1, 0), 0);
	assert_int_equal(pr.b.mem[0], 10);
	assert_int_equal(verbs_fake_expire(), 1);
	expect(IBV_WC_RETRY_EXC_ERR);
	pair_close();
}

static void link_that_goes_down_tells_and_ends_requests(void **state)
{
	struct ibv_async_event ev;

	(void)state;
	pair_open(64);
	verbs_fake_link(1, 1, VERBS_FAKE_DOWN);
	assert_int_equal(pr.v->get_async_event(pr.b.ctx, &ev), 0);
	assert_int_equal(ev.event_type, IBV_EVENT_PORT_ERR);
	assert_int_equal(ev.element.port_num, 1);
	pr.v->ack_async_event(&ev);
	assert_int_equal(fcntl(pr.b.ctx->async_fd, F_SETFL, O_NONBLOCK), 0);
	assert_int_equal(pr.v->get_async_event(pr.b.ctx, &ev), -1);
	assert_int_equal(errno, EAGAIN);
	assert_int_equal(post(IBV_WR_RDMA_WRITE, 1, 0), 0);
	expect(IBV_WC_RETRY_EXC_ERR);
	pair_close();
}

static void armed_queue_wakes_its_channel_once(void **state)
{
	struct pollfd pfd = {.events = POLLIN};
	struct ibv_cq *cq;
	void *user;

	(void)state;
	pair_open(64);
	pfd.fd = pr.a.channel->fd;
	assert_int_equal(ibv_req_notify_cq(pr.a.cq, 0), 0);
	assert_int_equal(poll(&pfd, 1, 0), 0);
	assert_int_equal(post(IBV_WR_RDMA_WRITE, 1, IBV_SEND_SIGNALED), 0);
	assert_int_equal(post(IBV_WR_RDMA_WRITE, 1, IBV_SEND_SIGNALED), 0);
	assert_int_equal(poll(&pfd, 1, 0), 1);
	assert_int_equal(pr.v->get_cq_event(pr.a.channel, &cq, &user), 0);
	assert_ptr_equal(cq, pr.a.cq);
	pr.v->ack_cq_events(cq, 1);
	assert_int_equal(poll(&pfd, 1, 0), 0);
	pair_close();
}

static void queue_that_overflows_is_lost(void **state)
{
	struct ibv_wc wc;

	(void)state;
	pair_open(1);
	assert_int_equal(post(IBV_WR_RDMA_WRITE, 1, IBV_SEND_SIGNALED), 0);
	assert_int_equal(post(IBV_WR_RDMA_WRITE, 1, IBV_SEND_SIGNALED), 0);
	assert_int_equal(ibv_poll_cq(pr.a.cq, 1, &wc), -1);
	assert_int_equal(verbs_fake_qp_state(pr.a.qp->qp_num), IBV_QPS_ERR);
	pair_close();
}

static void call_that_is_told_to_fail_fails_once(void **state)
{
	(void)state;
	pair_open(64);
	verbs_fake_fail(VERBS_FAKE_POST_SEND, 1, ENOMEM);
	assert_int_equal(post(IBV_WR_RDMA_WRITE, 1, 0), 0);
	assert_int_equal(post(IBV_WR_RDMA_WRITE, 1, 0), ENOMEM);
	assert_true(verbs_fake_fail_clear());
	assert_int_equal(post(IBV_WR_RDMA_WRITE, 1, 0), 0);
	assert_false(verbs_fake_fail_clear());
	verbs_fake_fail_wr(0, IBV_WC_LOC_QP_OP_ERR);
	assert_int_equal(post(IBV_WR_RDMA_WRITE, 1, 0), 0);
	expect(IBV_WC_LOC_QP_OP_ERR);
	pair_close();
}

static void what_is_in_use_cannot_be_destroyed(void **state)
{
	(void)state;
	pair_open(64);
	assert_int_equal(pr.v->dealloc_pd(pr.a.pd), EBUSY);
	assert_int_equal(pr.v->destroy_cq(pr.a.cq), EBUSY);
	assert_int_equal(pr.v->destroy_comp_channel(pr.a.channel), EBUSY);
	assert_int_equal(pr.v->close_device(pr.a.ctx), EBUSY);
	pair_close();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(bytes_are_written_and_read),
	    cmocka_unit_test(unsignalled_requests_take_slots_until_a_later_completion_is_polled),
	    cmocka_unit_test(key_that_is_gone_is_refused_and_ends_both_queue_pairs),
	    cmocka_unit_test(local_key_of_another_range_is_refused),
	    cmocka_unit_test(held_write_lands_after_its_sender_is_gone_but_not_after_its_target),
	    cmocka_unit_test(held_acknowledgement_leaves_bytes_without_completion),
	    cmocka_unit_test(dropped_link_is_silent_until_it_is_repaired_or_given_up),
	    cmocka_unit_test(link_that_goes_down_tells_and_ends_requests),
	    cmocka_unit_test(armed_queue_wakes_its_channel_once),
	    cmocka_unit_test(queue_that_overflows_is_lost),
	    cmocka_unit_test(call_that_is_told_to_fail_fails_once),
	    cmocka_unit_test(what_is_in_use_cannot_be_destroyed),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
