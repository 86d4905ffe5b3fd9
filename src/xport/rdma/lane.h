/*
 * lane.h: a lane of the RDMA transport, shared by lane.c (its life) and flow.c (posting and
 * completing). Everything in it is its owner's alone, so there is no lock; only `progress` is read
 * by others.
 *
 * A slice that is taken gets a slot. Its fragments become work requests, as the room in the send
 * queues allows; each request leaves a note of its slot in the ring of its queue pair. Requests of
 * a queue pair complete in order, so one signalled completion tells of all before it, and a failed
 * one of which slice it was.
 */
#ifndef MC_XPORT_RDMA_LANE_H
#define MC_XPORT_RDMA_LANE_H

#include "base/spin.h"
#include "xport/rdma/qp.h"

#define MC_RDMA_DEPTH 128u   /* slices of a lane */
#define MC_RDMA_CHAIN 64u    /* work requests of one doorbell, at most */
#define MC_RDMA_SGES_MAX 16u /* of a work request */
#define MC_RDMA_GROUP 16u    /* slices for one signalled completion, at most */
#define MC_RDMA_HITS 4u	     /* local ranges that are found without a lock */

/** A slice that was taken and has not ended. */
struct mc_rdma_slot {
	struct mc_list link; /* in todo, flight, owing or spare */
	struct mc_slice *s;  /* NULL: ended; requests of a broken lane may still name it */
	uint64_t off;	     /* in the fragment `frag`: what comes next */
	uint32_t frag;
	uint32_t wrs;  /* posted and not completed */
	uint32_t sent; /* posted since it was taken */
	bool is_inline;
	bool is_posted;	  /* all data */
	bool is_signaled; /* slice.signal is posted */
	int status;	  /* met while posting; the slice ends with it */
};

struct mc_rdma_note {
	uint32_t len; /* bytes of data */
	uint16_t slot;
	uint16_t frag; /* the first of the request */
};

struct mc_rdma_sq {
	struct mc_rdma_qp qp;
	uint32_t head, tail;	    /* posted and completed so far, modulo 2^32 */
	uint32_t since;		    /* requests since the last signalled one */
	uint32_t slices;	    /* and slices */
	struct mc_rdma_note *notes; /* notes_mask + 1 of them */
};

/** Requests that are built and not posted: all of the queue pair `at`. */
struct mc_rdma_chain {
	unsigned n, nsges;
	struct ibv_send_wr wr[MC_RDMA_CHAIN];
	struct ibv_sge sge[MC_RDMA_CHAIN * MC_RDMA_SGES_MAX];
};

struct mc_rdma_lane {
	struct mc_xlane x; /* first */
	struct mc_rdma_dev *dev;
	struct mc_rdma_hca *hca;
	uint64_t id, peer_epoch;
	unsigned remote_port;
	uint32_t psn;
	uint32_t addr_gen; /* of the port, when it was opened */
	bool is_named;	   /* connected to upstream's: no epochs, no fence */
	bool is_connected; /* post() takes slices */
	int failed;	   /* broken: what poll() says when nothing is left to give */

	struct mc_rdma_cq cq;
	uint32_t nqps, at; /* `at`: the queue pair that is being posted to */
	bool is_turn;	   /* the next slice goes to the emptiest queue pair */
	struct mc_rdma_sq sq[MC_RDMA_QPS_MAX];
	uint32_t wrs, notes_mask; /* room of a send queue; it is never overrun */
	uint32_t write_sges, read_sges, inline_max, msg_max;

	uint64_t seq;
	unsigned depth;	       /* slices taken and not given back */
	struct mc_list todo;   /* slots with data to post, oldest first */
	struct mc_list flight; /* all posted */
	struct mc_list owing;  /* data completed, signal to post */
	struct mc_list spare;
	struct mc_list done;	   /* slices to give back, by mc_slice.link */
	_Atomic uint64_t progress; /* relaxed: written by the owner, read by the watchdog */
	uint64_t polls;		   /* since they were last counted */
	struct mc_spin spin;
	struct mc_rdma_mr_hit hits[MC_RDMA_HITS];
	struct mc_rdma_slot slots[MC_RDMA_DEPTH];
	uint64_t *words; /* of signals, where the device has no inline data; one a slot */
	struct ibv_mr *words_mr;
	struct mc_rdma_chain chain;
};

static inline struct mc_rdma_lane *mc_rdma_lane_of(struct mc_xlane *x)
{
	return (struct mc_rdma_lane *)x;
}

/** Its port has the address that the lane was made with. */
static inline bool mc_rdma_lane_has_addr(const struct mc_rdma_lane *l)
{
	return atomic_load_explicit(&l->hca->addr_gen, memory_order_relaxed) == l->addr_gen;
}

/* ---- lane.c ---- */
int mc_rdma_lane_open(struct mc_xdev *dev, const struct mc_xpath *path, struct mc_xlane **ret_lane);
void mc_rdma_lane_close(struct mc_xlane *lane);
size_t mc_rdma_lane_abort(struct mc_xlane *lane, struct mc_list *ret_left, uint8_t *ret_token);
int mc_rdma_lane_offer(const struct mc_xlane *lane, uint8_t *buf, size_t cap);
int mc_rdma_lane_connect(struct mc_xlane *lane, const uint8_t *answer, size_t len);

/* ---- flow.c ---- */
int mc_rdma_lane_post(struct mc_xlane *lane, struct mc_slice **slices, unsigned n);
int mc_rdma_lane_poll(struct mc_xlane *lane, uint64_t block_ns, struct mc_slice **ret_done,
		      unsigned max);
void mc_rdma_lane_arm(struct mc_xlane *lane, struct mc_xarm *ret_arm);
uint64_t mc_rdma_lane_progress(const struct mc_xlane *lane);
/** Take what has completed. @return completions */
unsigned mc_rdma_lane_drain(struct mc_rdma_lane *l);

extern const struct mc_xport_ops mc_rdma_ops;

#endif
