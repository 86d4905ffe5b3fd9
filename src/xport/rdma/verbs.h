/*
 * verbs.h: the symbols of libibverbs that this transport calls, behind a table: the real one is
 * filled by dlopen, so that the build runs where no such library is; tests pass one of their own.
 * What libibverbs inlines (post_send, poll_cq, req_notify_cq) goes through the context and needs no
 * symbol.
 *
 * Source of the approach: NCCL's ibvsymbols; UCX links the library instead.
 */
#ifndef MC_XPORT_RDMA_VERBS_H
#define MC_XPORT_RDMA_VERBS_H

#include <infiniband/verbs.h>

#include "base/err.h"

/* Each as libibverbs(7) says; int functions return 0 or errno, or -1 with errno. */
struct mc_verbs {
	struct ibv_device **(*get_device_list)(int *num);
	void (*free_device_list)(struct ibv_device **list);
	const char *(*get_device_name)(struct ibv_device *device);
	struct ibv_context *(*open_device)(struct ibv_device *device);
	int (*close_device)(struct ibv_context *context);
	int (*query_device)(struct ibv_context *context, struct ibv_device_attr *attr);
	int (*query_port)(struct ibv_context *context, uint8_t port, struct ibv_port_attr *attr);
	int (*query_gid)(struct ibv_context *context, uint8_t port, int index, union ibv_gid *gid);
	struct ibv_pd *(*alloc_pd)(struct ibv_context *context);
	int (*dealloc_pd)(struct ibv_pd *pd);
	struct ibv_mr *(*reg_mr)(struct ibv_pd *pd, void *addr, size_t length, int access);
	/** With IBV_ACCESS_OPTIONAL_RANGE flags; NULL: the library is too old. */
	struct ibv_mr *(*reg_mr_iova2)(struct ibv_pd *pd, void *addr, size_t length, uint64_t iova,
				       unsigned access);
	int (*dereg_mr)(struct ibv_mr *mr);
	struct ibv_comp_channel *(*create_comp_channel)(struct ibv_context *context);
	int (*destroy_comp_channel)(struct ibv_comp_channel *channel);
	struct ibv_cq *(*create_cq)(struct ibv_context *context, int cqe, void *cq_context,
				    struct ibv_comp_channel *channel, int comp_vector);
	int (*destroy_cq)(struct ibv_cq *cq);
	int (*get_cq_event)(struct ibv_comp_channel *channel, struct ibv_cq **cq,
			    void **cq_context);
	void (*ack_cq_events)(struct ibv_cq *cq, unsigned nevents);
	struct ibv_qp *(*create_qp)(struct ibv_pd *pd, struct ibv_qp_init_attr *attr);
	int (*modify_qp)(struct ibv_qp *qp, struct ibv_qp_attr *attr, int mask);
	int (*destroy_qp)(struct ibv_qp *qp);
	int (*get_async_event)(struct ibv_context *context, struct ibv_async_event *event);
	void (*ack_async_event)(struct ibv_async_event *event);
	int (*fork_init)(void);
};

/** Load libibverbs once for the process. @return 0; -MC_E_UNAVAILABLE (diag: what is missing and
 * which package brings it). Any thread. */
MC_MUST_CHECK int mc_verbs_load(const struct mc_verbs **ret_verbs, struct mc_diag *diag);

#endif
