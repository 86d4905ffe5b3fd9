/*
 * rdma_check.c: RDMA WRITE by plain verbs over PAIRS pairs of the guest's devices, rxe0 to
 * rxe<PAIRS> and so on, in one process: what guest-run promises, tested without anything of ours.
 *
 *   rdma_check PAIRS SECONDS [down|drop]
 *
 * The last word is what guest-nic does to NIC 0 at half time. Prints MiB/s of each pair and its
 * first failed completion. Ends with 0 when all pairs stayed well, or, with a third argument, when
 * exactly the first one ended with "retry exceeded".
 */
#include <infiniband/verbs.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define PAIRS_MAX 16u
#define SIZE 65536u
#define DEPTH 4u
#define GID_INDEX 1 /* RoCE v2 over IPv4 */
#define RETRIES 3   /* rxe takes 7 for "for ever" */
#define TIMEOUT 16  /* 4.096 us << 16: 268 ms */

struct end {
	struct ibv_context *ctx;
	struct ibv_cq *cq;
	struct ibv_qp *qp;
	struct ibv_mr *mr;
	union ibv_gid gid;
	char *buf;
};

struct pair {
	struct end from, to;
	uint64_t done;
	enum ibv_wc_status failed;
};

static struct pair pairs[PAIRS_MAX];

static void need(int is_ok, const char *what)
{
	if (is_ok)
		return;
	perror(what);
	exit(1);
}

static double now_s(void)
{
	struct timespec t;

	(void)clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void end_open(struct end *e, unsigned number)
{
	struct ibv_device **list = ibv_get_device_list(NULL);
	struct ibv_qp_init_attr attr = {
	    .qp_type = IBV_QPT_RC,
	    .cap = {.max_send_wr = DEPTH, .max_recv_wr = 1, .max_send_sge = 1, .max_recv_sge = 1}};
	struct ibv_pd *pd;
	char name[16];

	need(list != NULL, "ibv_get_device_list");
	(void)snprintf(name, sizeof(name), "rxe%u", number);
	for (struct ibv_device **d = list; *d && !e->ctx; d++)
		if (strcmp(ibv_get_device_name(*d), name) == 0)
			e->ctx = ibv_open_device(*d);
	ibv_free_device_list(list);
	need(e->ctx != NULL, name);
	pd = ibv_alloc_pd(e->ctx);
	need(pd != NULL, "ibv_alloc_pd");
	e->cq = ibv_create_cq(e->ctx, 4 * DEPTH, NULL, NULL, 0);
	need(e->cq != NULL, "ibv_create_cq");
	e->buf = aligned_alloc(4096, SIZE);
	need(e->buf != NULL, "aligned_alloc");
	memset(e->buf, (int)number + 1, SIZE);
	e->mr = ibv_reg_mr(pd, e->buf, SIZE, IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE);
	need(e->mr != NULL, "ibv_reg_mr");
	attr.send_cq = attr.recv_cq = e->cq;
	e->qp = ibv_create_qp(pd, &attr);
	need(e->qp != NULL, "ibv_create_qp");
	need(ibv_query_gid(e->ctx, 1, GID_INDEX, &e->gid) == 0, "ibv_query_gid");
}

static void end_join(struct end *e, const struct end *peer)
{
	struct ibv_qp_attr init = {
	    .qp_state = IBV_QPS_INIT, .port_num = 1, .qp_access_flags = IBV_ACCESS_REMOTE_WRITE};
	struct ibv_qp_attr rtr = {
	    .qp_state = IBV_QPS_RTR,
	    .path_mtu = IBV_MTU_4096,
	    .dest_qp_num = peer->qp->qp_num,
	    .max_dest_rd_atomic = 1,
	    .min_rnr_timer = 12,
	    .ah_attr = {.is_global = 1,
			.port_num = 1,
			.grh = {.dgid = peer->gid, .sgid_index = GID_INDEX, .hop_limit = 64}}};
	struct ibv_qp_attr rts = {.qp_state = IBV_QPS_RTS,
				  .timeout = TIMEOUT,
				  .retry_cnt = RETRIES,
				  .rnr_retry = 7,
				  .max_rd_atomic = 1};

	need(ibv_modify_qp(e->qp, &init,
			   IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS) ==
		 0,
	     "INIT");
	need(ibv_modify_qp(e->qp, &rtr,
			   IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN |
			       IBV_QP_RQ_PSN | IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER) ==
		 0,
	     "RTR");
	need(ibv_modify_qp(e->qp, &rts,
			   IBV_QP_STATE | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY |
			       IBV_QP_SQ_PSN | IBV_QP_MAX_QP_RD_ATOMIC) == 0,
	     "RTS");
}

static void post(struct pair *p)
{
	struct ibv_sge sge = {
	    .addr = (uintptr_t)p->from.buf, .length = SIZE, .lkey = p->from.mr->lkey};
	struct ibv_send_wr wr = {
	    .sg_list = &sge,
	    .num_sge = 1,
	    .opcode = IBV_WR_RDMA_WRITE,
	    .send_flags = IBV_SEND_SIGNALED,
	    .wr.rdma = {.remote_addr = (uintptr_t)p->to.buf, .rkey = p->to.mr->rkey}};
	struct ibv_send_wr *bad;

	need(ibv_post_send(p->from.qp, &wr, &bad) == 0, "ibv_post_send");
}

static void poll_once(struct pair *p, unsigned number, double since_s)
{
	struct ibv_wc wc;

	if (p->failed || ibv_poll_cq(p->from.cq, 1, &wc) < 1)
		return;
	if (wc.status == IBV_WC_SUCCESS) {
		p->done++;
		post(p);
		return;
	}
	p->failed = wc.status;
	printf("pair %u: %s after %.2f s\n", number, ibv_wc_status_str(wc.status),
	       now_s() - since_s);
}

static void spoil(const char *how)
{
	char command[64];

	(void)snprintf(command, sizeof(command), "guest-nic 0 %s", how);
	need(system(command) == 0, command);
}

static int report(unsigned n, double secs, int is_spoilt)
{
	double sum = 0;
	int bad = 0;

	for (unsigned i = 0; i < n; i++) {
		double rate = (double)pairs[i].done * SIZE / 1048576 / secs;
		enum ibv_wc_status want =
		    is_spoilt && i == 0 ? IBV_WC_RETRY_EXC_ERR : IBV_WC_SUCCESS;

		printf("pair %u: %.2f MiB/s\n", i, rate);
		sum += rate;
		bad |= pairs[i].failed != want;
		bad |= memcmp(pairs[i].from.buf, pairs[i].to.buf, SIZE) != 0;
	}
	printf("sum of %u: %.2f MiB/s\n", n, sum);
	return bad;
}

int main(int argc, char **argv)
{
	unsigned n = argc > 1 ? (unsigned)strtoul(argv[1], NULL, 10) : 0;
	double secs = argc > 2 ? strtod(argv[2], NULL) : 0, start, since;
	const char *how = argc > 3 ? argv[3] : NULL;
	int is_spoilt = 0;

	if (n < 1 || n > PAIRS_MAX || !(secs > 0)) {
		fprintf(stderr, "usage: rdma_check PAIRS SECONDS [down|drop]\n");
		return 2;
	}
	for (unsigned i = 0; i < n; i++) {
		end_open(&pairs[i].from, i);
		end_open(&pairs[i].to, i + n);
		end_join(&pairs[i].from, &pairs[i].to);
		end_join(&pairs[i].to, &pairs[i].from);
		for (unsigned k = 0; k < DEPTH; k++)
			post(&pairs[i]);
	}
	start = since = now_s();
	while (now_s() < start + secs) {
		if (how && !is_spoilt && now_s() > start + secs / 2) {
			spoil(how);
			is_spoilt = 1;
			since = now_s();
		}
		for (unsigned i = 0; i < n; i++)
			poll_once(&pairs[i], i, since);
	}
	return report(n, now_s() - start, how != NULL);
}
