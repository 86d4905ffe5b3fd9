/*
 * priv.h: what the files of the RDMA transport share.
 *
 *   verbs.c    libibverbs by dlopen            gid.c     which address of a port is used (pure)
 *   hca.c      ports: open, events, close      port.c    what is known of a port
 *   mr.c       memory registrations
 *   qp.c       queue pairs as a state table    cause.c   completion status -> code (pure)
 *   cq.c       completion queues, events       offer.c   bytes of offers and answers (pure)
 *   lane.c     initiator: life of a lane       flow.c    initiator: post and poll
 *   inbound.c  target: accept, retire, bounds  rdma.c    the vtable, opening and closing
 *
 * Threads: ports and memory any thread, under their own locks; a lane its owner; inbound any thread
 * but a loop.
 */
#ifndef MC_XPORT_RDMA_PRIV_H
#define MC_XPORT_RDMA_PRIV_H

#include <pthread.h>
#include <stdatomic.h>

#include "base/stats.h"
#include "xport/rdma/rdma.h"
#include "xport/rdma/verbs.h"

/** Settings, from the environment once a device; upstream's names and defaults where it has them.
 */
struct mc_rdma_conf {
	int64_t gid_index;     /* MC_GID_INDEX, NCCL_IB_GID_INDEX; -1: chosen */
	int64_t port_num;      /* MC_IB_PORT */
	int64_t traffic_class; /* MC_IB_TC; -1: not set */
	int64_t service_level; /* MC_IB_SL */
	int64_t pkey_index;    /* MC_PKEY_INDEX */
	int64_t mtu;	       /* MC_MTU: bytes, the most; a power of two */
	int64_t wrs_max;       /* MC_MAX_WR */
	int64_t sges_max;      /* MC_MAX_SGE */
	int64_t inline_max;    /* MC_MAX_INLINE */
	int64_t qps; /* MC_NUM_QP_PER_EP: of a lane; 0: one, and upstream's two towards its peers */
	int64_t inbound_max;	  /* MC_MAX_EP_PER_CTX: accepted lanes of one port */
	int64_t timeout;	  /* MC_IB_TIMEOUT: 4.096 us << it */
	int64_t retry_cnt;	  /* MC_IB_RETRY_CNT */
	bool is_relaxed_ordering; /* MC_IB_PCI_RELAXED_ORDERING */
};
void mc_rdma_conf_load(struct mc_rdma_conf *conf);

struct mc_rdma_inbound;
struct mc_rdma_mrs;

/** A port of an opened HCA. */
struct mc_rdma_hca {
	struct mc_rdma_dev *dev;
	unsigned index;
	struct mc_rdma_port port; /* what may change of it is guarded by port_mu */
	pthread_mutex_t port_mu;  /* a leaf; held in no call */
	bool has_port_mu;
	struct ibv_context *ctx;
	struct ibv_pd *pd;
	struct ibv_device_attr attr;
	_Atomic bool is_up;
	_Atomic bool is_fatal; /* IBV_EVENT_DEVICE_FATAL: nothing of it works again */
	/* Counts the port's addresses: what was connected from an earlier one is over. */
	_Atomic uint32_t addr_gen;
	unsigned ngids;		     /* places in its table of addresses */
	bool is_link_up, is_addr_ok; /* first loop only; both: up */
	bool is_addr_best;	     /* and this: no better address can come */
	struct mc_watch async;	     /* on the first loop */
};

/** What mc_rdma_stats_get() tells; an entry is added to once a doorbell or a batch, not a slice. */
struct mc_rdma_counters {
	struct mc_counter posts, wrs, signaled, polls, wcs, arms, wakes, accepted, retired, evicted;
};

struct mc_rdma_dev {
	struct mc_xdev x; /* first */
	const struct mc_verbs *v;
	uint64_t fork_gen; /* of the opening: a forked child frees memory and calls no verb, as the
			      objects are its parent's */
	struct mc_rdma_conf conf;
	struct mc_xdev_env env;
	char *sys_root; /* "/sys" */
	struct mc_rdma_hca hca[MC_RDMA_PORTS_MAX];
	unsigned nhcas;
	_Atomic uint32_t ports_version;
	struct mc_rdma_mrs *mrs;
	_Atomic uint32_t mrs_version; /* never 0; another one when a range has gone */
	struct mc_rdma_inbound *inbound;
	_Atomic uint64_t next_lane;
	_Atomic uint32_t nqps, nlanes, ninbound; /* alive */
	struct mc_rdma_counters count;
};

/* ---- hca.c ---- */
/** Open the ports that may be used; `dev` has v, conf and env. @return as mc_rdma_dev_open(), also
 * what diag says with 0; what is open is left for mc_rdma_hcas_close() */
int mc_rdma_hcas_open(struct mc_rdma_dev *dev, const struct mc_rdma_opts *opts,
		      struct mc_diag *diag);
/** Nothing of the ports may be left: no memory, queue pair or lane. Not on a loop. */
void mc_rdma_hcas_close(struct mc_rdma_dev *dev);

/* ---- port.c ---- */
/**
 * Fill h->port from verbs and sysfs; h has dev, ctx and attr. h->is_link_up and h->is_addr_ok say
 * what there is of it; where one is missing, diag says why.
 * @return 0; -MC_E_UNAVAILABLE (there is no such port, or not the address that was asked for)
 */
int mc_rdma_port_load(struct mc_rdma_hca *h, struct mc_diag *diag);
/**
 * Its addresses may have changed: take the one to use now. Another one than before counts
 * h->addr_gen up. Reads tables of the kernel, no command goes to the device. On the first loop.
 * @return false: there is none
 */
bool mc_rdma_port_readdress(struct mc_rdma_hca *h);
/** Ask the device for the port, and take what may have changed: LID, MTU, rate. Not on a loop.
 * @return 0; errors of a verb */
MC_MUST_CHECK int mc_rdma_port_ask(struct mc_rdma_hca *h, struct ibv_port_attr *ret);
/** As it is now. Any thread. */
struct mc_rdma_port mc_rdma_port_now(struct mc_rdma_hca *h);

/* ---- gid.c (pure) ---- */
struct mc_rdma_gid {
	uint8_t raw[16];
	uint8_t index;
	bool is_v2;	   /* RoCE v2; false: v1 or InfiniBand */
	bool has_netdev;   /* its interface is in this network namespace and up */
	bool is_addr_ours; /* an IPv4-mapped or IPv6 address that the interface has */
};
/** No other would be chosen before this one. */
bool mc_rdma_gid_is_best(const struct mc_rdma_gid *g);
/**
 * The one to use: v2 before v1, an address of the interface before none, IPv4 before routable IPv6
 * before link-local; of equals the one in use, then the lowest index.
 * @param keep  position of the one in use; -1: there is none
 * @return position in gids; -1: none is usable
 */
int mc_rdma_gid_choose(const struct mc_rdma_gid *gids, unsigned n, int keep);

/* ---- mr.c ---- */
int mc_rdma_mrs_open(struct mc_rdma_dev *dev);
void mc_rdma_mrs_close(struct mc_rdma_dev *dev);
/** Registrations alive at all ports. */
uint32_t mc_rdma_mrs_count(const struct mc_rdma_dev *dev);
/** A lane's memory of the last range it found; zeroed: nothing. */
struct mc_rdma_mr_hit {
	uint64_t addr, len;
	uint32_t lkey;
	uint32_t version; /* of the set: another one makes the hit worthless */
	bool is_read_only;
};
/** The range that a hit does not know: under a lock. @return 0; -MC_E_NOENT (not registered there)
 */
int mc_rdma_lkey_find(struct mc_rdma_dev *dev, unsigned index, uint64_t addr, uint64_t len,
		      struct mc_rdma_mr_hit *hit);
/** Does it hold [addr, addr + len), and is it good still? */
static inline bool mc_rdma_lkey_hit(const struct mc_rdma_dev *dev, uint64_t addr, uint64_t len,
				    const struct mc_rdma_mr_hit *hit)
{
	/* acquire: pairs with the release in mc_rdma_mem_del(). */
	return hit->version == atomic_load_explicit(&dev->mrs_version, memory_order_acquire) &&
	       addr - hit->addr < hit->len && len <= hit->len - (addr - hit->addr);
}
/**
 * Local key for [addr, addr + len) at port `index`. A hit costs one load and two compares; a miss
 * takes a lock. @return 0; -MC_E_NOENT (not registered there)
 */
static inline int mc_rdma_lkey(struct mc_rdma_dev *dev, unsigned index, uint64_t addr, uint64_t len,
			       struct mc_rdma_mr_hit *hit, uint32_t *ret_lkey)
{
	if (!mc_rdma_lkey_hit(dev, addr, len, hit)) {
		int rc = mc_rdma_lkey_find(dev, index, addr, len, hit);

		if (rc < 0)
			return rc;
	}
	*ret_lkey = hit->lkey;
	return 0;
}

/* ---- cause.c (pure) ---- */
/** Code of a work completion that failed, and of errno of a verb. */
int mc_rdma_wc_error(enum ibv_wc_status status);
int mc_rdma_errno(int err);

/* ---- offer.c (pure) ---- */
struct mc_rdma_offer {
	uint64_t lane, initiator_epoch, target_epoch;
	uint32_t port; /* of the target; in an answer: unused */
	struct mc_rdma_end end;
};
/** Numbers that queue pairs can have; mtu and rd_atomic may be 0. */
bool mc_rdma_end_is_ok(const struct mc_rdma_end *e);
/** @return MC_RDMA_OFFER_BYTES at most; the layout stands in docs/protocol.md */
size_t mc_rdma_offer_encode(const struct mc_rdma_offer *o, uint8_t buf[MC_RDMA_OFFER_BYTES]);
/** @return 0; -MC_E_PROTO; -MC_E_VERSION */
int mc_rdma_offer_decode(const uint8_t *buf, size_t len, struct mc_rdma_offer *ret);

/* ---- inbound.c ---- */
int mc_rdma_inbound_open(struct mc_rdma_dev *dev);
void mc_rdma_inbound_close(struct mc_rdma_dev *dev);
int mc_rdma_accept(struct mc_xdev *dev, uint64_t initiator_epoch, const uint8_t *offer, size_t len,
		   uint8_t *answer, size_t cap);
int mc_rdma_retire(struct mc_xdev *dev, const uint8_t *token, size_t token_len,
		   uint64_t *ret_acked);

#endif
