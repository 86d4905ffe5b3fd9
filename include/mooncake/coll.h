/*
 * coll.h: collectives between processes that may die: groups, operations, membership.
 *
 * A *group* has slots 0 … size_max - 1; a *rank* is a process in a slot. Ranks that are *active*
 * take part in operations. Every active rank starts the same operations in the same order; the
 * operations of a group run one after the other in that order. A rank that dies leaves the group:
 * survivors prove its death first, agree on what it still took part in, and go on. Results are
 * bit-equal on all survivors: an operation has the input of a rank on all of them or on none.
 * Slow is not dead: a stopped process is waited for until the operation's deadline.
 *
 * A *hub* is what a process shares among its groups: a socket that others reach it at, and a thread
 * that watches for deaths. Ranks find each other by the hubs' addresses, a line of text each, which
 * the caller exchanges by any means (torch's store, a file, MPI).
 *
 * On one host a group lives in shared memory; one whose founders are on several hosts goes over TCP
 * between all of its ranks. There a death that its own host proves is left out everywhere; a host
 * that does not answer at all for MC_COLL_SILENT seconds is left out by those who are more than
 * half, and the others get -MC_E_PEER_DEAD from then on.
 *
 * Threads: operations of one group from one thread at a time (asynchronous ones are queued in call
 * order); messages, different groups and everything else from any thread. After fork() the child's
 * calls return -MC_E_FORKED; it may only close.
 */
#ifndef MOONCAKE_COLL_H
#define MOONCAKE_COLL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <mooncake/err.h>

#ifdef __cplusplus
extern "C" {
#endif

#define MC_COLL_RANKS_MAX 64   /* slots of a group: ranks are bits of a uint64_t */
#define MC_COLL_NAME_MAX 127   /* bytes of a group's name */
#define MC_COLL_ADDR_MAX 255   /* bytes of a hub's address */
#define MC_COLL_OPS_MAX 65536u /* asynchronous operations that have not begun, of one group */

struct mc_coll_hub;
struct mc_coll;
struct mc_coll_work;

/* ---- hub ---- */

struct mc_coll_hub_opts {
	uint32_t size;	  /* sizeof(struct mc_coll_hub_opts): lets the struct grow */
	const char *host; /* another name of this host: only ranks with an equal one share memory.
			   * NULL: MC_COLL_HOST, else the machine's own */
	const char *ip;	  /* where ranks of other hosts reach this process. NULL: MC_COLL_IP, else
			   * the first interface's */
};

/** @param opts  may be NULL
 * @return 0; -MC_E_INVAL (named in diag); -MC_E_ADDR (ip is not of this machine); -MC_E_NOMEM;
 * -MC_E_LIMIT (descriptors, threads, ports); -MC_E_UNAVAILABLE. Any thread. */
MC_API MC_MUST_CHECK int mc_coll_hub_open(const struct mc_coll_hub_opts *opts, struct mc_diag *diag,
					  struct mc_coll_hub **ret_hub);
/** All its groups must be closed. NULL is allowed. */
MC_API void mc_coll_hub_close(struct mc_coll_hub *hub);
/** For the other ranks: one line of text, at most MC_COLL_ADDR_MAX bytes. Lives as long as the hub.
 */
MC_API const char *mc_coll_hub_address(const struct mc_coll_hub *hub);

/* ---- groups ---- */

struct mc_coll_opts {
	uint32_t size;	     /* sizeof(struct mc_coll_opts): lets the struct grow */
	const char *name;    /* 1 … MC_COLL_NAME_MAX bytes; the same on all ranks, and of no other
			      * group that any of them is in */
	uint32_t rank;	     /* slot of this process */
	uint32_t ranks;	     /* slots 0 … ranks - 1 are active from the start; the joiner: 0 */
	uint32_t ranks_max;  /* slots; 0: ranks */
	uint64_t timeout_ns; /* of opening, and of an operation; 0: 30 minutes */
	uint64_t scratch_max;	  /* bytes up to which an operation keeps all inputs; 0: 64 MiB */
	uint64_t open_timeout_ns; /* of opening, where it is another one; 0: timeout_ns */
};

/**
 * Meet the other founders: all must call it. A joiner (opts.ranks is 0) attaches to whoever of a
 * living group answers, and is alone (operations have its input only) until mc_coll_activate() of
 * another rank and its own mc_coll_join().
 *
 * @param addrs  ranks_max addresses of hubs by slot; NULL where there is none; its own is not read
 * @return 0; -MC_E_INVAL (named in diag); -MC_E_TIMEDOUT and -MC_E_PEER_DEAD name who is missing;
 * -MC_E_UNSUPPORTED (it is on another host than a group that stays on one); -MC_E_PERM (of another
 * user on this host); -MC_E_NOMEM; -MC_E_LIMIT
 */
MC_API MC_MUST_CHECK int mc_coll_open(struct mc_coll_hub *hub, const struct mc_coll_opts *opts,
				      const char *const *addrs, struct mc_diag *diag,
				      struct mc_coll **ret_coll);
/** Leave: the others go on without this rank, as if it had died after its last operation. Queued
 * operations end with -MC_E_CLOSED. Not while another thread is in a call of the group, or waits
 * for a message of it: mc_coll_abort() ends those. NULL is allowed. */
MC_API void mc_coll_close(struct mc_coll *coll);
/** End what runs and what is queued, and all later operations, with -MC_E_CANCELED. The others see
 * this rank as gone. Any thread. */
MC_API void mc_coll_abort(struct mc_coll *coll);

/* ---- operations ---- */

/* X(name, bytes, text) */
#define MC_COLL_TYPE_TABLE(X)                                                                      \
	X(BYTE, 1, "byte") /* any bytes: moved, not reduced */                                     \
	X(U8, 1, "uint8")                                                                          \
	X(I8, 1, "int8")                                                                           \
	X(U16, 2, "uint16")                                                                        \
	X(I16, 2, "int16")                                                                         \
	X(U32, 4, "uint32")                                                                        \
	X(I32, 4, "int32")                                                                         \
	X(U64, 8, "uint64")                                                                        \
	X(I64, 8, "int64")                                                                         \
	X(BOOL, 1, "bool")                                                                         \
	X(F16, 2, "float16")                                                                       \
	X(BF16, 2, "bfloat16")                                                                     \
	X(F32, 4, "float32")                                                                       \
	X(F64, 8, "float64")                                                                       \
	X(C64, 8, "complex64")                                                                     \
	X(C128, 16, "complex128")

enum mc_coll_type {
#define MC_COLL_TYPE_ENUM(name, bytes, text) MC_COLL_##name,
	MC_COLL_TYPE_TABLE(MC_COLL_TYPE_ENUM)
#undef MC_COLL_TYPE_ENUM
	    MC_COLL_TYPE_COUNT
};

/** f16 and bf16 are summed and multiplied in f32 and rounded once. Order: slot by slot. */
enum mc_coll_reduce {
	MC_COLL_SUM,
	MC_COLL_PROD,
	MC_COLL_MIN, /* a NaN wins */
	MC_COLL_MAX,
	MC_COLL_AVG,	    /* the sum by the number of ranks whose input is in it; not integers */
	MC_COLL_PREMUL_SUM, /* each rank's input times its `factor`; floating types */
	MC_COLL_BAND,	    /* integers and bool */
	MC_COLL_BOR,
	MC_COLL_BXOR,
	MC_COLL_REDUCE_COUNT,
};

enum mc_coll_kind {			    /* parts in; parts out */
		    MC_COLL_BARRIER,	    /* none */
		    MC_COLL_ALL_REDUCE,	    /* 1; 1, may be the same memory */
		    MC_COLL_REDUCE,	    /* 1; root: 1, may be the same */
		    MC_COLL_REDUCE_SCATTER, /* one for each slot; 1, may be the own one */
		    MC_COLL_ALL_GATHER,	    /* 1; one for each slot */
		    MC_COLL_GATHER,	    /* 1; root: one for each slot */
		    MC_COLL_BROADCAST,	    /* root: 1; 1 */
		    MC_COLL_SCATTER,	    /* root: one for each slot; 1 */
		    MC_COLL_ALL_TO_ALL,	    /* one for each slot; one for each slot */
		    MC_COLL_KIND_COUNT,
};

struct mc_coll_part {
	void *addr;	/* read only where it is an input */
	uint64_t count; /* elements */
};

/**
 * An operation. Kind, type, reduction, root and the counts that have to agree are compared between
 * the ranks; a difference is -MC_E_INVAL and names who asked for what, on all that wait for another
 * one in it. Who only gives (the root of a broadcast) has perhaps ended well: then the next
 * operation in which it waits is -MC_E_INVAL and says so, on all. After that the group goes on.
 * What should come from a slot that is not there is zeroes; a part for such a slot is not read.
 */
struct mc_coll_op {
	enum mc_coll_kind kind;
	enum mc_coll_type type;
	enum mc_coll_reduce reduce;
	uint32_t root; /* slot */
	double factor; /* MC_COLL_PREMUL_SUM */
	const struct mc_coll_part *in, *out;
	uint32_t nin, nout;
};

struct mc_coll_result {
	int rc;		 /* as mc_coll_run() */
	uint64_t seq;	 /* of the operation in its group, the same on all ranks */
	uint64_t ranks;	 /* bits of the slots whose input is in it */
	uint64_t failed; /* of the slots that were active and are not in it: dead, or they left */
};

/**
 * Run an operation to its end in the calling thread, after those that were started before it.
 * @param ret_result  may be NULL
 * @return 0: done, without the ranks of `failed` if there are such. -MC_E_PEER_DEAD: an input that
 * is needed is gone, on every survivor. -MC_E_TIMEDOUT (diag of mc_coll_last_error() names who is
 * late; the group is of no more use); -MC_E_CANCELED; -MC_E_INVAL; -MC_E_STALE (this rank is not
 * active); -MC_E_NOMEM (scratch)
 */
MC_API int mc_coll_run(struct mc_coll *coll, const struct mc_coll_op *op,
		       struct mc_coll_result *ret_result);
/** The same in the background, by a thread of the group. The parts' memory must stay until it has
 * ended; `op` and its arrays need not. @return 0; -MC_E_NOMEM; -MC_E_AGAIN (MC_COLL_OPS_MAX) */
MC_API MC_MUST_CHECK int mc_coll_start(struct mc_coll *coll, const struct mc_coll_op *op,
				       struct mc_coll_work **ret_work);
/** @return 0 it has ended, *ret_result says how; -MC_E_TIMEDOUT it goes on. Any thread. */
MC_API MC_MUST_CHECK int mc_coll_work_wait(struct mc_coll_work *work, uint64_t timeout_ns,
					   struct mc_coll_result *ret_result);
/** Ended or not; one that has not ended goes on. NULL is allowed. */
MC_API void mc_coll_work_free(struct mc_coll_work *work);
/** What the last failed call of this group had to say. Any thread. */
MC_API void mc_coll_last_error(struct mc_coll *coll, struct mc_diag *ret_diag);

/* ---- messages ---- */

#define MC_COLL_ANY UINT32_MAX /* a message of whoever sends one */

/**
 * Send bytes to one rank, or receive them: matched by rank and tag, in the order of the calls.
 * Messages do not wait for operations, nor these for them.
 *
 * @param peer  slot; mc_coll_recv(): MC_COLL_ANY too
 * @param ret_result  may be NULL; `ranks` has the bit of the sender
 * @return 0; -MC_E_PEER_DEAD; -MC_E_TIMEDOUT (the group's timeout; the message is withdrawn);
 * -MC_E_INVAL (no such rank, or the message has another length: mc_coll_last_error());
 * -MC_E_CANCELED; -MC_E_NOMEM. Any thread.
 */
MC_API int mc_coll_send(struct mc_coll *coll, uint32_t peer, uint64_t tag, const void *addr,
			uint64_t len, struct mc_coll_result *ret_result);
MC_API int mc_coll_recv(struct mc_coll *coll, uint32_t peer, uint64_t tag, void *addr, uint64_t len,
			struct mc_coll_result *ret_result);
/** The same in the background. @return 0; -MC_E_INVAL; -MC_E_NOMEM; -MC_E_LIMIT (threads) */
MC_API MC_MUST_CHECK int mc_coll_isend(struct mc_coll *coll, uint32_t peer, uint64_t tag,
				       const void *addr, uint64_t len,
				       struct mc_coll_work **ret_work);
MC_API MC_MUST_CHECK int mc_coll_irecv(struct mc_coll *coll, uint32_t peer, uint64_t tag,
				       void *addr, uint64_t len, struct mc_coll_work **ret_work);

/* ---- membership ---- */

/** Bits of the slots that were active in the last operation or are since the last activation. */
MC_API uint64_t mc_coll_active(struct mc_coll *coll);
/** Bits of the other slots whose process is attached and alive, active or not. */
MC_API uint64_t mc_coll_ready(struct mc_coll *coll);
/** Bits of the slots whose process is known to be dead or to have left. */
MC_API uint64_t mc_coll_gone(struct mc_coll *coll);
/** Counts the changes of membership by activation; the same on all ranks after the same operation.
 */
MC_API uint64_t mc_coll_epoch(struct mc_coll *coll);

/**
 * Make `add` active and `drop` inactive from an operation on that no rank has begun. One call of
 * any active rank is enough; the same from several ranks at once counts once.
 * @param ret_dropped  bits of `add` that died or never attached; may be NULL
 * @return 0 applied (perhaps without *ret_dropped); -MC_E_TIMEDOUT; -MC_E_STALE (not active
 * itself); -MC_E_INVAL
 */
MC_API MC_MUST_CHECK int mc_coll_activate(struct mc_coll *coll, uint64_t add, uint64_t drop,
					  uint64_t timeout_ns, uint64_t *ret_dropped);
/** For a joiner, or a rank that was made inactive: wait until it is active. @return 0;
 * -MC_E_TIMEDOUT; -MC_E_PEER_DEAD (nobody is left) */
MC_API MC_MUST_CHECK int mc_coll_join(struct mc_coll *coll, uint64_t timeout_ns);

#ifdef __cplusplus
}
#endif

#endif
