/*
 * verbs_fake.h: RDMA without hardware: a verbs table whose devices are a fabric inside this process
 * that really moves bytes and keeps the rules of the specification, so that what breaks a rule
 * fails a test here before it fails on a machine.
 *
 * Usage:
 *	const struct mc_verbs *v = verbs_fake_open(&(struct verbs_fake_conf){.ndevs = 2});
 *	… open devices with this table; both ends of a lane may be in this process …
 *	verbs_fake_live(&live); // all zero once everything is closed
 *	verbs_fake_close();
 *
 * Devices are "fake0", "fake1", …, all on one switch. Each port has GID 0 (fe80::, link-local) and
 * GID 1 (::ffff:10.77.<device>.<port>), its LID is 16 × (device + 1) + port.
 *
 * What is enforced, as a real HCA does:
 *  - Memory that must not be written is registered without local and remote write only (EFAULT).
 *  - Queue pairs: RESET, INIT, RTR, RTS, ERR with the masks that each step needs; numbers are never
 *    used twice. PSN, path MTU and queue pair number must match at both ends.
 *  - max_send_wr (ENOMEM), max_send_sge and max_inline_data (EINVAL) of what create_qp() granted. A
 *    slot of the send queue is free again once a completion of it, or of a later one, was polled.
 *  - Keys: local and remote ones differ, carry a generation, and are of one device and protection
 *    domain; bounds and rights are checked at both ends. A remote refusal ends both queue pairs.
 *  - Every request of a queue pair in error gives a completion, also an unsignalled one. A
 *    completion queue that overflows is lost, with all its queue pairs.
 *  - Descriptors are real: non-blocking with O_NONBLOCK, in poll(2) and epoll. Destroying what has
 *    events that were got and not acknowledged waits, and aborts the test after 5 s.
 *  - Destroying what others still use fails with EBUSY.
 *
 * Any thread: one lock around everything. The fabric is global: one test at a time.
 */
#ifndef TESTS_VERBS_FAKE_H
#define TESTS_VERBS_FAKE_H

#include <stdbool.h>
#include <stdint.h>

#include "xport/rdma/verbs.h"

#define VERBS_FAKE_DEVS_MAX 12u
#define VERBS_FAKE_PORTS_MAX 2u
#define VERBS_FAKE_GIDS 4u

/** 0 everywhere: the default in brackets. */
struct verbs_fake_conf {
	unsigned ndevs;		 /* [1] */
	unsigned nports;	 /* of each device [1] */
	bool is_infiniband;	 /* addressed by LID; else RoCE */
	unsigned max_qp;	 /* [1024], of a device */
	unsigned max_mr;	 /* [4096] */
	unsigned max_cqe;	 /* [65536] */
	unsigned max_qp_wr;	 /* [1024] */
	unsigned max_sge;	 /* [16] */
	unsigned max_inline;	 /* [0] */
	unsigned max_rd_atomic;	 /* [16] */
	uint64_t max_mr_size;	 /* [2^40] */
	uint64_t lock_bytes_max; /* registered bytes of all devices; more is ENOMEM [no limit] */
	uint64_t seed;		 /* of the order of delayed requests [1] */
};

/** Start the fabric. Closes one that is open. */
const struct mc_verbs *verbs_fake_open(const struct verbs_fake_conf *conf);
/** End it with all that is left. */
void verbs_fake_close(void);

/** Objects alive. Lists are device lists that were not freed. */
struct verbs_fake_live {
	unsigned lists, contexts, pds, mrs, channels, cqs, qps;
};
void verbs_fake_live(struct verbs_fake_live *ret);
/** Sum of the above. */
unsigned verbs_fake_live_all(void);

/* ---- failures ---- */

#define VERBS_FAKE_CALLS(X)                                                                        \
	X(GET_DEVICE_LIST)                                                                         \
	X(OPEN_DEVICE)                                                                             \
	X(CLOSE_DEVICE)                                                                            \
	X(QUERY_DEVICE)                                                                            \
	X(QUERY_PORT)                                                                              \
	X(QUERY_GID)                                                                               \
	X(ALLOC_PD)                                                                                \
	X(DEALLOC_PD)                                                                              \
	X(REG_MR)                                                                                  \
	X(DEREG_MR)                                                                                \
	X(CREATE_COMP_CHANNEL)                                                                     \
	X(DESTROY_COMP_CHANNEL)                                                                    \
	X(CREATE_CQ)                                                                               \
	X(DESTROY_CQ)                                                                              \
	X(GET_CQ_EVENT)                                                                            \
	X(CREATE_QP)                                                                               \
	X(MODIFY_QP)                                                                               \
	X(DESTROY_QP)                                                                              \
	X(GET_ASYNC_EVENT)                                                                         \
	X(FORK_INIT)                                                                               \
	X(POST_SEND)                                                                               \
	X(POLL_CQ)                                                                                 \
	X(REQ_NOTIFY_CQ)

enum verbs_fake_call {
#define VERBS_FAKE_ENUM(name) VERBS_FAKE_##name,
	VERBS_FAKE_CALLS(VERBS_FAKE_ENUM)
#undef VERBS_FAKE_ENUM
	    VERBS_FAKE_ANY, /* in verbs_fake_fail(): whatever is called */
	VERBS_FAKE_CALL_COUNT,
};

/**
 * The `index`-th call of this verb from now on (0: the next) fails with `err`, once. Replaces what
 * was set before. Of the destroying verbs EIO means that the device is gone: the object goes too;
 * with any other code it stays.
 */
void verbs_fake_fail(enum verbs_fake_call call, unsigned index, int err);
/** This verb does not return, whoever calls it, until ANY is given: as a driver that waits for the
 * last packet of a queue pair. */
void verbs_fake_block(enum verbs_fake_call call);
/** No failure any more. @return true: the one that was set has happened */
bool verbs_fake_fail_clear(void);
/** Calls since the fabric was opened; VERBS_FAKE_ANY: of all. */
unsigned verbs_fake_calls(enum verbs_fake_call call);
/** The `index`-th request executed from now on ends with this status instead. */
void verbs_fake_fail_wr(unsigned index, enum ibv_wc_status status);

/* ---- the wire ---- */

enum verbs_fake_hold {
	VERBS_FAKE_PROMPT,	  /* post_send() moves the bytes and completes */
	VERBS_FAKE_HOLD_REQUESTS, /* what was sent is under way until verbs_fake_step(): it may land
				     after its sender is gone, while the target lives */
	VERBS_FAKE_HOLD_ACKS,	  /* bytes land at once; completions wait for verbs_fake_step() */
};
/** Back to PROMPT releases all that is held. */
void verbs_fake_hold(enum verbs_fake_hold hold);
/** Let `n` held requests go on: of one queue pair in order, between them in any order. @return how
 * many there were to let go */
unsigned verbs_fake_step(unsigned n);
/** Requests that are under way: held, or lost and not yet given up. */
unsigned verbs_fake_pending(void);

enum verbs_fake_link {
	VERBS_FAKE_UP,
	VERBS_FAKE_DOWN,     /* the port tells: PORT_ERR; requests end with RETRY_EXC at once */
	VERBS_FAKE_DROP,     /* silent: requests get nowhere and do not end */
	VERBS_FAKE_DROP_ACK, /* silent: requests land, and do not end */
};
/** Port from 1. Requests that were lost and not given up go on when both links are up again. */
void verbs_fake_link(unsigned dev, unsigned port, enum verbs_fake_link link);
/** What is lost is given up: RETRY_EXC. @return requests that ended */
unsigned verbs_fake_expire(void);
/** IBV_EVENT_DEVICE_FATAL; every verb but the destroying ones fails with EIO from now on. */
void verbs_fake_kill_dev(unsigned dev);
/** Another address at this place, all zero: none; IBV_EVENT_GID_CHANGE. */
void verbs_fake_gid_set(unsigned dev, unsigned port, unsigned index, const uint8_t gid[16]);
/** Another LID, as a subnet manager gives it; IBV_EVENT_LID_CHANGE. */
void verbs_fake_lid_set(unsigned dev, unsigned port, uint16_t lid);
void verbs_fake_gid_get(unsigned dev, unsigned port, unsigned index, uint8_t ret_gid[16]);
/** Queue an event of a port, or of the device (port 0), at each context that is open. */
void verbs_fake_event(unsigned dev, enum ibv_event_type type, unsigned port);
/** enum ibv_access_flags of the region with this local or remote key; 0: there is none. */
unsigned verbs_fake_mr_access(uint32_t key);
/** State of a queue pair of this number; IBV_QPS_UNKNOWN: there is none. */
enum ibv_qp_state verbs_fake_qp_state(uint32_t qpn);

#endif
