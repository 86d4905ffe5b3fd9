/*
 * qp.h: a reliable connected queue pair and its life, and completion queues:
 *
 *   RESET -> INIT -> RTR -> RTS -> ERR -> GONE
 *
 * What may follow what stands in one table (qp.c); a step that is not in it is refused before any
 * verb is called. Each step is one verb with the attributes that ibv_modify_qp(3) demands for it.
 *
 * Threads: one at a time for each queue pair.
 */
#ifndef MC_XPORT_RDMA_QP_H
#define MC_XPORT_RDMA_QP_H

#include "xport/rdma/priv.h"

enum mc_rdma_qp_state {
	MC_RDMA_QP_GONE, /* there is none: before it was made, after it was destroyed */
	MC_RDMA_QP_RESET,
	MC_RDMA_QP_INIT,
	MC_RDMA_QP_RTR, /* ready to receive */
	MC_RDMA_QP_RTS, /* and to send */
	MC_RDMA_QP_ERR, /* what was posted is flushed, what arrives is refused */
	MC_RDMA_QP_STATE_COUNT,
};

enum mc_rdma_qp_event {
	MC_RDMA_QP_MAKE,
	MC_RDMA_QP_PREPARE, /* bind to port and partition */
	MC_RDMA_QP_RECEIVE, /* the other end is known */
	MC_RDMA_QP_SEND,
	MC_RDMA_QP_STOP,
	MC_RDMA_QP_DESTROY,
	MC_RDMA_QP_EVENT_COUNT,
};

/** Room that is asked for; after it is made, what was given. */
struct mc_rdma_qp_room {
	uint32_t wrs, sges, inline_max;
};

struct mc_rdma_qp {
	struct ibv_qp *qp; /* NULL when GONE */
	enum mc_rdma_qp_state state;
};

/** What connecting needs to know. */
struct mc_rdma_qp_link {
	const struct mc_rdma_end *peer;
	uint32_t peer_qpn;
	uint32_t psn;	    /* of what we send */
	uint8_t mtu;	    /* enum ibv_mtu */
	uint8_t reads_out;  /* reads that we have under way at the peer */
	uint8_t reads_in;   /* reads of the peer that we serve at once */
	bool is_peer_right; /* the peer may read and write our registered memory through it */
};

/** Where the event leads from this state; < 0: it is not allowed there (-MC_E_INVAL). Pure. */
int mc_rdma_qp_next(enum mc_rdma_qp_state state, enum mc_rdma_qp_event event);

/**
 * GONE -> RESET -> INIT on a completion queue, which serves both directions.
 * @param room  in: wanted; out: given
 * @return 0; -MC_E_LIMIT, -MC_E_NOMEM (of the device, too); -MC_E_DEVICE. On failure it is GONE.
 */
MC_MUST_CHECK int mc_rdma_qp_open(struct mc_rdma_hca *hca, struct ibv_cq *cq,
				  struct mc_rdma_qp_room *room, struct mc_rdma_qp *ret_qp);
/** INIT -> RTR -> RTS. @return 0; -MC_E_UNREACHABLE; -MC_E_DEVICE; -MC_E_INVAL (state) */
MC_MUST_CHECK int mc_rdma_qp_connect(struct mc_rdma_hca *hca, struct mc_rdma_qp *qp,
				     const struct mc_rdma_qp_link *link);
/** Any state but GONE -> ERR; nothing is sent or accepted any more. @return 0; -MC_E_DEVICE */
int mc_rdma_qp_stop(struct mc_rdma_hca *hca, struct mc_rdma_qp *qp);
/**
 * Any state -> GONE: from the return on the device touches no memory for it.
 * @return 0; -MC_E_BUSY: the device would not let go of it, it still exists
 */
int mc_rdma_qp_close(struct mc_rdma_hca *hca, struct mc_rdma_qp *qp);

/** Numbers of our end of a lane on this port, without queue pairs. */
void mc_rdma_end_fill(struct mc_rdma_hca *hca, uint32_t psn, struct mc_rdma_end *ret);
/** Packet size for both ends: the smaller of ours and what the peer told, 0: it did not. */
uint8_t mc_rdma_mtu(struct mc_rdma_hca *hca, uint8_t peer_mtu);
/** What connecting to this end takes, but for the number of the queue pair. */
struct mc_rdma_qp_link mc_rdma_link(struct mc_rdma_hca *hca, const struct mc_rdma_end *peer,
				    uint32_t psn, bool is_peer_right);
/** A random number of 24 bits. */
uint32_t mc_rdma_psn(void);

/**
 * Destroying failed with rc (errno, or -1 and errno): is the object still there? With EIO the
 * device is gone, and what the library keeps of the object may be, too: it is not touched again.
 */
bool mc_rdma_is_kept(int rc);

/* ---- completion queues (cq.c) ---- */

struct mc_rdma_cq {
	struct ibv_cq *cq;
	struct ibv_comp_channel *channel; /* NULL: nobody waits for it */
	unsigned unacked;		  /* events taken */
	bool is_armed;			  /* asked for an event that has not been taken */
};

/** @param has_channel  with a descriptor to wait for, which does not block. @return 0;
 * -MC_E_LIMIT; -MC_E_NOMEM; -MC_E_DEVICE. On failure there is none. */
MC_MUST_CHECK int mc_rdma_cq_open(struct mc_rdma_hca *hca, uint32_t entries, bool has_channel,
				  struct mc_rdma_cq *ret_cq);
/** Queue pairs first. */
void mc_rdma_cq_close(struct mc_rdma_hca *hca, struct mc_rdma_cq *cq);
/** From now on the next completion makes the descriptor readable; look into the queue once more
 * before sleeping. @return 0; -MC_E_DEVICE */
int mc_rdma_cq_arm(struct mc_rdma_cq *cq);
/** Take the event if it is there. @return 1; 0; -MC_E_DEVICE */
int mc_rdma_cq_event(struct mc_rdma_hca *hca, struct mc_rdma_cq *cq);

#endif
