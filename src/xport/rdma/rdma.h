/*
 * rdma.h: the RDMA transport: reliable connected queue pairs over libibverbs, which is loaded at
 * run time, so that one build serves every machine.
 *
 * A device (mc_xdev) holds all HCA ports that this process may use, at most MC_RDMA_PORTS_MAX, in
 * the order of their names; a port's index is what paths and keys mean. A lane is a set of queue
 * pairs between one local and one remote port with a completion queue of its own; its owner alone
 * posts and polls. One-sided READ and WRITE only: the target's processor has no part in a transfer,
 * so the rights and the life of a range are the HCA's to enforce, by the keys of its memory
 * registrations.
 *
 * Lanes are introduced by the engine over the control connection (MC_XCAP_OFFER): open, offer,
 * [accept at the peer], connect. The target's queue pair is what the fence retires: once it is
 * destroyed nothing of the lane lands any more.
 *
 * A failed work request ends its queue pair, so a lane ends with its first failure. When poll() has
 * given all that is done it returns the cause. With a cause of scope OP (the target refused a key:
 * MC_E_STALE) the slice at fault was given back with it before, the path is in order, and what
 * abort() returns are innocents that go again on another lane.
 */
#ifndef MC_XPORT_RDMA_RDMA_H
#define MC_XPORT_RDMA_RDMA_H

#include <endian.h>
#include <string.h>

#include "xport/xport.h"

#define MC_RDMA_PORTS_MAX 8u
#define MC_RDMA_QPS_MAX 8u /* of one lane */
#define MC_RDMA_NAME_MAX 64u
#define MC_RDMA_OFFER_BYTES 128u /* an offer and an answer, both of this length at most */

struct mc_verbs;

struct mc_rdma_opts {
	const char *devices;  /* comma list of the devices that may be used; NULL or "": all */
	const char *sys_root; /* NULL: "/sys" */
	const struct mc_verbs *verbs; /* NULL: libibverbs; tests bring their own */
};

/** A local port. */
struct mc_rdma_port {
	/* constant while the device is open */
	char name[MC_RDMA_NAME_MAX]; /* of the device: "mlx5_0" */
	uint8_t port_num;	     /* from 1 */
	bool is_ethernet;	     /* RoCE: gid is what addresses */
	int numa;		     /* -1: unknown */
	/* as last seen */
	bool has_addr; /* it has one, or had */
	uint8_t gid[16];
	uint8_t gid_index;
	uint16_t lid;
	uint8_t mtu; /* enum ibv_mtu, active */
	uint32_t mbps;
};

/** One end of a lane, as the other end has to know it. */
struct mc_rdma_end {
	uint8_t gid[16];
	uint16_t lid;
	uint8_t mtu;	   /* enum ibv_mtu; 0: not told (upstream), use the local one */
	uint8_t rd_atomic; /* reads that it takes at once; 0: not told */
	uint32_t psn;
	uint32_t nqps; /* 1 … MC_RDMA_QPS_MAX */
	uint32_t qpn[MC_RDMA_QPS_MAX];
};

/**
 * Load libibverbs, open the ports that are listed. One that is down is of use once it comes up.
 *
 * @return 0 (when no port is up, diag says why); -MC_E_UNAVAILABLE (no library, no device, no
 * permission: diag says which and what to do); -MC_E_NOENT (the list names no device of this
 * machine: diag lists those that there are); -MC_E_LIMIT (memlock); -MC_E_NOMEM. Not on a loop.
 */
MC_MUST_CHECK int mc_rdma_dev_open(const struct mc_xdev_env *env, const struct mc_rdma_opts *opts,
				   struct mc_xdev **ret_dev, struct mc_diag *diag);
unsigned mc_rdma_ports(const struct mc_xdev *dev);
/** As it is now. Any thread. */
void mc_rdma_port_get(const struct mc_xdev *dev, unsigned port, struct mc_rdma_port *ret);
/** As the last asynchronous event said. Any thread, one load. */
bool mc_rdma_port_is_up(const struct mc_xdev *dev, unsigned port);
/** Index of the port of this device name; -1: none. */
int mc_rdma_port_find(const struct mc_xdev *dev, const char *name);
/** Has any port been up? */
bool mc_rdma_has_addr(const struct mc_xdev *dev);
/** Counts up with every change of a port's state or address. Any thread. */
uint32_t mc_rdma_ports_version(const struct mc_xdev *dev);
/** How long an HCA tries before it gives a packet up, as it was told to: its timeout, each time. */
uint64_t mc_rdma_retry_ns(const struct mc_xdev *dev);

/* ---- memory (mr.c) ---- */

/**
 * Register [addr, addr + len) at every port, large ranges in parallel; the very same range again is
 * counted. A port that refuses has key 0, and that is no error while another has taken the range.
 * Memory that must not be written is taken without the right; see mc_rdma_mem_is_read_only().
 *
 * @param rights    enum mc_right bits; 0: local use only
 * @param ret_rkey  remote keys by port, 0: none
 * @return 0; -MC_E_LIMIT (memlock, or the devices' number of regions; diag says which);
 * -MC_E_NOMEM; -MC_E_UNSUPPORTED (no port can register this memory); -MC_E_INVAL (the very same
 * range is there with other rights); -MC_E_FORKED. Blocks, milliseconds per GiB; not on a loop.
 */
MC_MUST_CHECK int mc_rdma_mem_add(struct mc_xdev *dev, uint64_t addr, uint64_t len, unsigned rights,
				  uint32_t ret_rkey[MC_RDMA_PORTS_MAX], struct mc_diag *diag);
/** Is exactly this range memory that must not be written? */
bool mc_rdma_mem_is_read_only(struct mc_xdev *dev, uint64_t addr, uint64_t len);
/** The longest range that every port takes. */
uint64_t mc_rdma_range_max(const struct mc_xdev *dev);
/** End one registration of exactly this range. After the last one no HCA touches it. @return 0;
 * -MC_E_NOENT; -MC_E_FORKED. Not on a loop. */
int mc_rdma_mem_del(struct mc_xdev *dev, uint64_t addr, uint64_t len);
/** The keys that the last mc_rdma_mem_add() of exactly this range gave. @return 0; -MC_E_NOENT */
int mc_rdma_mem_keys(struct mc_xdev *dev, uint64_t addr, uint64_t len,
		     uint32_t ret_rkey[MC_RDMA_PORTS_MAX], uint32_t ret_lkey[MC_RDMA_PORTS_MAX]);
/** Keys as mc_remote_region.key and back: little-endian by port. */
void mc_rdma_key_put(uint8_t key[MC_XPORT_TOKEN_MAX], const uint32_t rkey[MC_RDMA_PORTS_MAX]);
static inline uint32_t mc_rdma_key_get(const uint8_t key[MC_XPORT_TOKEN_MAX], unsigned port)
{
	uint32_t rkey;

	if (port >= MC_RDMA_PORTS_MAX)
		return 0;
	memcpy(&rkey, key + (size_t)port * sizeof(rkey), sizeof(rkey));
	return le32toh(rkey);
}

/* ---- peers that are introduced in another way: upstream's (classic handshake) ---- */

/** Our end of a lane that is open and not yet connected. */
void mc_rdma_lane_end(const struct mc_xlane *lane, struct mc_rdma_end *ret);
/** Connect it to this end. @return 0; -MC_E_PROTO (numbers that cannot be); -MC_E_UNREACHABLE
 * (address). Not on a loop. */
MC_MUST_CHECK int mc_rdma_lane_join(struct mc_xlane *lane, const struct mc_rdma_end *peer);
/**
 * Target side: queue pairs for an initiator that names itself by `who` ("server@nic"); an earlier
 * set of the same `who` and port ends. Bounded: the least recently accepted ones make room.
 * @return 0; -MC_E_NOENT (no such port); -MC_E_PROTO; -MC_E_UNREACHABLE; -MC_E_LIMIT. Not on a
 * loop.
 */
MC_MUST_CHECK int mc_rdma_accept_named(struct mc_xdev *dev, unsigned port, const char *who,
				       const struct mc_rdma_end *peer,
				       struct mc_rdma_end *ret_mine);
/** End what was accepted from this incarnation, or name: it is gone for good. Not on a loop. */
void mc_rdma_forget(struct mc_xdev *dev, uint64_t initiator_epoch);
void mc_rdma_forget_named(struct mc_xdev *dev, const char *who);

/** Its port is down, or has got another address: nothing will ever cross this lane. Any thread. */
bool mc_rdma_lane_is_over(const struct mc_xlane *lane);

/** For metrics and tests; each only grows, but for the numbers of live objects. */
struct mc_rdma_stats {
	uint64_t posts, wrs, signaled, polls, wcs; /* verbs calls and what they carried */
	uint64_t arms, wakes;
	uint64_t accepted, retired, evicted;
	uint32_t qps, mrs, lanes, inbound; /* alive now */
};
void mc_rdma_stats_get(const struct mc_xdev *dev, struct mc_rdma_stats *ret);

#endif
