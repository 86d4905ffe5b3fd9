/*
 * xport.h: the contract between the engine and anything that moves bytes. Transports move; the
 * engine decides.
 *
 * Words. A *device* (mc_xdev) is this process's end of one transport: its listeners, its
 * registrations. A *path* names a local and a remote address. A *lane* (mc_xlane) is one connection
 * or queue-pair set on a path, used by one owner at a time: the engine guarantees that post, poll,
 * arm, abort and close of one lane never run concurrently. A *slice* (mc_slice) is the unit that is
 * posted, completed, retried and fenced: one direction, a list of fragments.
 *
 * What a transport must keep:
 *  - post() never blocks and never allocates; short counts are back-pressure.
 *  - Every posted slice comes back exactly once: from poll() as done, or from abort() as not done.
 *  - A slice reported with status 0 is visible at the target (MC_XCAP_VISIBLE) or, for a read,
 * complete in local memory.
 *  - After abort() the transport touches no local memory of the returned slices any more (reads are
 * fenced by that alone). The kernel may, where it moves the bytes itself (file): such reads are
 * returned with MC_SLICE_MAYBE, too.
 *  - A write that may still land at the target is returned with MC_SLICE_MAYBE until retirement is
 * confirmed.
 *
 * Retirement (the fence for writes): abort() gives a token; the engine carries it to the peer over
 * the control connection; the peer's transport makes sure that nothing of that lane lands any more
 * and answers how far it got. From then on every MAYBE slice may go elsewhere. When the peer's
 * incarnation is gone nothing of it lands either.
 */
#ifndef MC_XPORT_XPORT_H
#define MC_XPORT_XPORT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/clock.h"
#include "base/err.h"
#include "base/list.h"
#include "io/disk.h"
#include "io/loop.h"
#include "io/sock.h"
#include "xport/region.h"

#define MC_XPORT_TOKEN_MAX 32
#define MC_SLICE_FRAGS_MAX 512 /* fragments a slice */
#define MC_ACKED_UNKNOWN UINT64_MAX

enum mc_op {
	MC_OP_READ,
	MC_OP_WRITE,
	MC_OP_COUNT,
};

enum mc_xcap {
	MC_XCAP_VISIBLE = 1,	 /* completion of a write means visible at the target */
	MC_XCAP_ORDERED = 2,	 /* slices of a lane are placed in post order */
	MC_XCAP_SIGNAL = 4,	 /* slice.signal is honoured */
	MC_XCAP_SYNC = 8,	 /* post() does the whole copy in the calling thread (shm, self) */
	MC_XCAP_FENCE = 16,	 /* retirement is confirmed by the target */
	MC_XCAP_MULTI_FRAG = 32, /* more than one fragment a slice */
	MC_XCAP_OFFER = 64,	 /* lanes are introduced by the engine: offer, accept, connect */
};

/** A peer's region as this process resolved it. Owned by the engine's peer; constant while any
 * slice points to it. */
struct mc_remote_region {
	uint64_t addr, len;
	uint32_t id, gen; /* gen 0: the peer has no generations (upstream): only addresses count */
	uint32_t rights;
	enum mc_mem_kind kind;
	uint32_t arena; /* MC_MEM_MEMFD */
	uint64_t arena_off;
	uint8_t key[MC_XPORT_TOKEN_MAX]; /* opaque, per rail where the transport needs one */
};

struct mc_frag {
	uint8_t *local;
	uint64_t
	    raddr; /* absolute address at the peer (or file offset); offset = raddr - rr->addr */
	uint64_t len;
	const struct mc_remote_region *rr;
};

enum mc_slice_verdict {
	MC_SLICE_DONE,	 /* status says how it ended */
	MC_SLICE_UNSENT, /* nothing of it landed or will land: may go elsewhere at once */
	MC_SLICE_MAYBE,	 /* it may still land: fence first */
};

/** Eight bytes stored (release) at the peer after all fragments of the slice are visible. */
struct mc_signal {
	const struct mc_remote_region *rr; /* NULL: no signal */
	uint64_t raddr;			   /* 8-byte aligned */
	uint64_t value;
};

struct mc_slice;

/** Who looks at a slice's bytes as they pass through the lane's owner; see struct mc_tap. A
 * transport that does not say them is right, too. */
struct mc_slice_tap {
	/** In place of a copy of ours: bytes from `at` on, within one fragment. Leaves its stores
	 * ordered as mc_copy() does. */
	void (*copy)(struct mc_slice *s, uint64_t at, void *dst, const void *src, size_t n);
	/** Bytes from `at` on have come, or were taken by the kernel. */
	void (*passed)(struct mc_slice *s, uint64_t at, uint64_t n);
};

struct mc_slice {
	/* set by the engine before post */
	enum mc_op op;
	uint32_t nfrags; /* 1 … MC_SLICE_FRAGS_MAX; with MC_XCAP_OFFER also 0: a write that ends
			    when the peer's end has answered, and moves nothing */
	struct mc_frag *frags;
	uint64_t len; /* sum of the fragments */
	struct mc_signal signal;
	const struct mc_slice_tap *tap; /* NULL: nobody looks */
	/* the transport's while posted; the engine's again afterwards */
	struct mc_list link;
	uint64_t seq;	/* the transport's number on its lane */
	uint64_t moved; /* bytes moved so far, for progress watching */
	/* outcome */
	int status;
	uint32_t bad_frag; /* which fragment a refusal was about */
	enum mc_slice_verdict verdict;
	void *user; /* the engine's */
};

struct mc_xdev; /* each transport's own struct begins with: const struct mc_xport_ops *ops; */
struct mc_xlane;

/** What every transport is given when its device opens. */
struct mc_xdev_env {
	struct mc_loop **loops; /* the engine's loops; inbound work is spread over them */
	unsigned nloops;
	struct mc_region_table *regions;
	const struct mc_clock *clk;
	const struct mc_disk *disk; /* of the file transport alone */
	uint64_t epoch;		    /* incarnation of this process's segment, never 0 */
	const uint8_t *nonce;	    /* 16 bytes: a lane's hello must show it (told to peers over the
				       control connection) */
};

struct mc_xpath {
	struct mc_addr local, remote;	  /* local.len 0: let the system choose */
	unsigned local_port, remote_port; /* of transports with ports of their own (rdma): indexes
					     at each end */
	uint64_t peer_epoch; /* the hello must find this incarnation, else -MC_E_PEER_RESTARTED */
	uint8_t nonce[16];
	const char *peer_name; /* for messages; outlives the lane */
	void *peer_state; /* the transport's own per-peer state, e.g. an attached shared-memory seat
			   */
};

/** How to wait for a lane: poll(2) these. fd -1: nothing to wait for (only a posted slice makes
 * progress). */
struct mc_xarm {
	int fd;
	short events;
	bool is_block_ok; /* the owner may call poll() with block_ns instead of polling the fd */
	bool is_ready;	  /* there is something to poll for already: do not sleep */
};

struct mc_xport_ops {
	const char *name;
	uint32_t caps;	    /* enum mc_xcap */
	uint32_t frags_max; /* a slice, <= MC_SLICE_FRAGS_MAX */
	uint64_t len_max;   /* bytes a slice */
	uint32_t depth_max; /* slices posted on one lane at once */

	/** Stop accepting, end inbound work, free. Not on a loop. */
	void (*dev_close)(struct mc_xdev *dev);

	/** Begin a lane; may return before it is connected (poll() goes on). @return 0; errors of
	 * RAIL or PEER scope */
	int (*lane_open)(struct mc_xdev *dev, const struct mc_xpath *path,
			 struct mc_xlane **ret_lane);
	/** Take up to n slices, in order. @return how many were taken (0: full), or < 0: the lane
	 * is broken, none was taken */
	int (*post)(struct mc_xlane *lane, struct mc_slice **slices, unsigned n);
	/**
	 * Make progress. Waits at most block_ns inside the kernel when arm() said is_block_ok, else
	 * returns at once.
	 * @return slices written to ret_done (<= max; 0 is normal), or < 0: the lane is broken,
	 * call abort()
	 */
	int (*poll)(struct mc_xlane *lane, uint64_t block_ns, struct mc_slice **ret_done,
		    unsigned max);
	void (*arm)(struct mc_xlane *lane, struct mc_xarm *ret_arm);
	/** Cumulative bytes the lane has moved either way: the engine's watchdog compares two
	 * calls. */
	uint64_t (*progress)(const struct mc_xlane *lane);
	/**
	 * Break the lane: returns every posted slice through ret_left (list of mc_slice.link) with
	 * its verdict, UNSENT or MAYBE (or DONE with its status, when it was done but not polled).
	 * @param ret_token receives the retirement token (length returned; 0: nothing is MAYBE or
	 * the transport cannot fence). With MC_XCAP_OFFER it is there also when nothing is MAYBE:
	 * retiring the lane is how the target's end of it is freed before its bound forces it.
	 */
	size_t (*abort)(struct mc_xlane *lane, struct mc_list *ret_left,
			uint8_t ret_token[MC_XPORT_TOKEN_MAX]);
	/**
	 * Target side of the fence: from the return on nothing of that lane lands. Any thread but a
	 * loop.
	 * @param ret_acked slices of the lane up to this seq are applied and visible, later ones
	 * are not; MC_ACKED_UNKNOWN: it cannot be said which are
	 * @return 0 (also for a lane never heard of: it is refused from now on); -MC_E_AGAIN while
	 * an access is still under way
	 */
	int (*retire)(struct mc_xdev *dev, const uint8_t *token, size_t token_len,
		      uint64_t *ret_acked);
	/** Ends an aborted or idle lane. After it `lane` is gone. */
	void (*lane_close)(struct mc_xlane *lane);

	/*
	 * With MC_XCAP_OFFER, else NULL. The engine carries the bytes to the peer and its answer
	 * back. Until connect() has returned 0 post() takes nothing. None of them on a loop.
	 */
	/** What the peer must know of this lane. @return length, at most cap */
	int (*offer)(const struct mc_xlane *lane, uint8_t *buf, size_t cap);
	/** Target side: an initiator whose control connection showed `initiator_epoch` offers a
	 * lane.
	 * @return length of the answer; -MC_E_PROTO; -MC_E_VERSION; -MC_E_STALE (retired already);
	 * -MC_E_PEER_RESTARTED (meant for another incarnation); -MC_E_NOENT (port); -MC_E_LIMIT;
	 * -MC_E_LINK_DOWN, -MC_E_DEVICE (that port) */
	int (*accept)(struct mc_xdev *dev, uint64_t initiator_epoch, const uint8_t *offer,
		      size_t len, uint8_t *answer, size_t cap);
	/** @return 0; -MC_E_PROTO; errors of RAIL scope: abort and close it */
	int (*connect)(struct mc_xlane *lane, const uint8_t *answer, size_t len);
};

struct mc_xdev {
	const struct mc_xport_ops *ops;
};

struct mc_xlane {
	const struct mc_xport_ops *ops;
};

#endif
