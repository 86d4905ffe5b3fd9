/*
 * engine.h: the Transfer Engine's native API.
 *
 * An engine is one process's *segment*: the ranges of memory it has registered, reachable by peers
 * under the segment's name. A *transfer* moves bytes between local memory and a segment (another
 * process's, a file's, or one's own), one-sided: the peer's program takes no part. Transfers are
 * submitted in *groups*; a group has one completion. Every group ends exactly once, by its
 * deadline, with success or a code whose diagnosis names peer and cause; after that nothing of it
 * lands any more. The one exception has its own code, MC_E_UNFENCED: a write whose fence the target
 * did not acknowledge in time, or an operation on a file, also a read, that the kernel keeps.
 *
 * Ids that leave the library (segments, groups) carry a generation: a stale one is an error, never
 * a crash. After fork() every object is dead in the child: calls return -MC_E_FORKED.
 *
 * Threads: every function may be called from any thread unless it says otherwise. Strings are not
 * kept.
 */
#ifndef MOONCAKE_ENGINE_H
#define MOONCAKE_ENGINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <mooncake/err.h>

#ifdef __cplusplus
extern "C" {
#endif

struct mc_engine;
struct mc_cq;

/* ---- life ---- */

/** All zero is a valid default (P2P metadata, TCP and shared memory). */
struct mc_engine_opts {
	uint32_t size;	  /* sizeof(struct mc_engine_opts): lets the struct grow */
	const char *name; /* "host", "host:port", "[v6]:port"; NULL or "": first address of an UP
			     interface */
	const char *metadata; /* "P2PHANDSHAKE" (default), "http://h:p/metadata", "etcd://h:p",
				 "redis://h:p"; bare: etcd */
	const char *protocol; /* "tcp" (default), "rdma" (TCP with a warning where there is no HCA),
				 "shm", … */
	const char
	    *devices; /* comma list: HCA filter, or local addresses to use as further rails */
	uint16_t metrics_port; /* serve /metrics there on loopback; 0: MC_METRICS_PORT or none */
	bool is_one_of_many;   /* with a metadata service a name without a port gets the control
				  port's, as with P2P: several processes of a host have one each */
};

/**
 * Open an engine: bind its ports, join the metadata service, become reachable.
 * @param diag may be NULL; on error says what is wrong and what to do
 * @return 0; -MC_E_INVAL; -MC_E_UNSUPPORTED (protocol); -MC_E_ADDR (name or devices has an address
 * that is not of this machine), -MC_E_DNS (name does not resolve), neither of them for a name where
 * MC_TCP_BIND_ADDRESS says what to listen on; -MC_E_ADDR_IN_USE; -MC_E_METADATA; -MC_E_NOMEM;
 * -MC_E_LIMIT. Nothing is left behind on error. Blocks for DNS and metadata round trips (seconds at
 * most).
 */
MC_API MC_MUST_CHECK int mc_engine_open(const struct mc_engine_opts *opts, struct mc_diag *diag,
					struct mc_engine **ret_engine);
/** One more reference, for a second module that shares the engine. */
MC_API struct mc_engine *mc_engine_ref(struct mc_engine *eng);
/**
 * Drop a reference; the last one ends every group (-MC_E_CLOSED), leaves the metadata service and
 * frees all. A completion queue holds a reference until it is closed. NULL is allowed.
 */
MC_API void mc_engine_close(struct mc_engine *eng);
/** Segment name that peers open: "ip:port" with P2P metadata, else opts.name (is_one_of_many).
 * Lives as long as the engine. */
MC_API const char *mc_engine_name(const struct mc_engine *eng);
/** "ip:port" of the control port. */
MC_API const char *mc_engine_address(const struct mc_engine *eng);
MC_API uint16_t mc_engine_port(const struct mc_engine *eng);
MC_API const char *mc_version(void);

/* ---- memory ---- */

enum mc_mem_right {
	MC_MEM_REMOTE_READ = 1,
	MC_MEM_REMOTE_WRITE = 2,
};

struct mc_mem {
	void *addr;
	size_t len;
};

/**
 * Let peers touch [addr, addr + len). The memory stays the caller's and must outlive the
 * registration.
 * @param location "*", "cpu:N", "cuda:N"; NULL is "*"
 * @param rights enum mc_mem_right bits
 * @return 0 (the very same range again is counted, not refused; overlaps are fine); -MC_E_INVAL;
 * -MC_E_LIMIT; -MC_E_NOMEM; -MC_E_METADATA (not registered then)
 */
MC_API MC_MUST_CHECK int mc_mem_reg(struct mc_engine *eng, void *addr, size_t len,
				    const char *location, unsigned rights);
/**
 * Let peers read and write [offset, offset + len) of a file or block device as if it were memory:
 * by addresses that nothing else in this process has, and that it must not touch itself. Transfers
 * take them on either side. Bytes go through buffers of 1 MiB at the file's owner, written when all
 * of theirs have come; a completed write has reached the kernel, not the medium (as for "file://").
 * @param path    "/absolute/path" or "file:///absolute/path", there already
 * @param offset  need not be aligned; with len below 2^63. The file may be shorter: reads past its
 *                end fail with -MC_E_RANGE, writes make it longer
 * @param rights  enum mc_mem_right bits, one at least
 * @param ret_addr  ends with mc_mem_unreg()
 * @return 0; -MC_E_INVAL; -MC_E_NOENT; -MC_E_PERM (also to write what is read-only); -MC_E_BUSY;
 * -MC_E_LIMIT; -MC_E_NOMEM; -MC_E_IO; -MC_E_FORKED. Blocks. The log says what is wrong with which
 * path. Upstream's peers are not told of it.
 */
MC_API MC_MUST_CHECK int mc_mem_reg_file(struct mc_engine *eng, const char *path, uint64_t offset,
					 uint64_t len, unsigned rights, void **ret_addr);
/** All or none; one update of the metadata service for the whole batch. */
MC_API MC_MUST_CHECK int mc_mem_reg_batch(struct mc_engine *eng, const struct mc_mem *mem, size_t n,
					  const char *location, unsigned rights);
/** End the registration that begins at addr; returns when no peer touches it any more. @return 0;
 * -MC_E_NOENT */
MC_API int mc_mem_unreg(struct mc_engine *eng, void *addr);
/** Ends all that are there; the first error is returned. */
MC_API int mc_mem_unreg_batch(struct mc_engine *eng, void *const *addr, size_t n);
/**
 * Memory from the engine, registered with both rights: peers on this host copy from it without a
 * system call.
 * @return address (64-byte aligned; page-aligned from one page up), or NULL
 */
MC_API void *mc_mem_alloc(struct mc_engine *eng, size_t len);
/** @return 0; -MC_E_NOENT when addr is not from mc_mem_alloc() */
MC_API int mc_mem_free(struct mc_engine *eng, void *addr);
/** Address of the first registered range of a segment, 0 when it has none. */
MC_API MC_MUST_CHECK int mc_segment_first_addr(struct mc_engine *eng, int32_t segment,
					       uint64_t *ret_addr);

/* ---- segments ---- */

#define MC_SEGMENT_LOCAL 0 /* the engine's own */

/**
 * Find a segment by name; cached by name, so the same name gives the same id. "file:///path" opens
 * a local file.
 * @param timeout_ns 0: the engine's default
 * @return 0; -MC_E_INVAL; -MC_E_DNS; -MC_E_NOENT; -MC_E_REFUSED; -MC_E_UNREACHABLE; -MC_E_TIMEDOUT;
 * -MC_E_METADATA; …
 */
MC_API MC_MUST_CHECK int mc_segment_open(struct mc_engine *eng, const char *name,
					 uint64_t timeout_ns, struct mc_diag *diag,
					 int32_t *ret_segment);
/** Forget a segment: connections are closed, groups under way end with -MC_E_CLOSED. @return 0;
 * -MC_E_STALE */
MC_API int mc_segment_close(struct mc_engine *eng, int32_t segment);
/** Let go of what the process holds of a peer (connections, mappings) as soon as nothing under way
 * needs it. The id stays good: its next use finds the peer anew. @return 0; -MC_E_STALE;
 * -MC_E_FORKED */
MC_API int mc_segment_release(struct mc_engine *eng, int32_t segment);
/**
 * Be told when the segment's process, as it is now, is gone: dead, or replaced by another under its
 * name. The watch is a group of its own without transfers: it ends once, with -MC_E_PEER_DEAD when
 * that is proven (docs/failure-model.md says by what; silence alone is no proof), -MC_E_CANCELED
 * (mc_group_cancel(); the cq is closed), -MC_E_CLOSED (the segment or the engine is closed). It has
 * no deadline, and costs nothing while the peer lives.
 * @param cq where it ends; NULL: it is watched through its id
 * @param ret_id cancel it before mc_group_free(). With a cq it ends by itself at its completion.
 * @return 0; -MC_E_STALE (segment); -MC_E_UNSUPPORTED (our own segment, a file, an upstream peer);
 * -MC_E_AGAIN (the cq is full); -MC_E_CLOSED; -MC_E_NOMEM; -MC_E_FORKED; where the process has to
 * be found anew, for which it blocks: mc_segment_open()'s codes
 */
MC_API MC_MUST_CHECK int mc_segment_watch(struct mc_engine *eng, int32_t segment, struct mc_cq *cq,
					  uint64_t user, uint64_t *ret_id);
/** Ask the peer's process for a sign of life. timeout_ns 0: five seconds. @return 0; why not:
 * mc_segment_open()'s codes; -MC_E_UNSUPPORTED (a file has no process) */
MC_API MC_MUST_CHECK int mc_segment_probe(struct mc_engine *eng, const char *name,
					  uint64_t timeout_ns, struct mc_diag *diag);

/* ---- transfers ---- */

enum mc_transfer_op {
	MC_READ = 0,  /* segment -> local */
	MC_WRITE = 1, /* local -> segment */
};

enum mc_priority {
	MC_PRIO_HIGH,
	MC_PRIO_NORMAL,
	MC_PRIO_LOW,
	MC_PRIO_COUNT,
};

#define MC_IOV_MAX 65536u   /* ranges a transfer, either side */
#define MC_GROUP_MAX 65536u /* transfers a group */

struct mc_iov {
	uint64_t addr; /* local: pointer; remote: the peer's absolute address (a file: offset) */
	uint64_t len;
};

/**
 * One transfer: the local ranges, in order, from or to the remote ranges, in order. Both sides sum
 * up to the same length; they may be cut differently. Length 0 is a transfer that succeeds.
 */
struct mc_transfer {
	uint8_t op; /* enum mc_transfer_op */
	int32_t segment;
	uint32_t nlocal, nremote;
	const struct mc_iov *local,
	    *remote; /* read during submit only; the memory they name until completion */
};

/** A message for the peer's program, sent once, after all transfers of the group are visible at
 * their target. */
struct mc_notify {
	const void *name, *msg;	    /* bytes, zeros allowed */
	uint32_t name_len, msg_len; /* <= MC_NOTIFY_MAX together */
};
#define MC_NOTIFY_MAX 65536u

/**
 * Eight bytes stored at the segment of a transfer once all bytes of that transfer are visible there
 * (a read: have been read), whatever ways they took: who sees the value there with acquire order
 * sees the bytes. Stored once, or not at all where the transfer fails before. Towards an upstream
 * peer it is a plain write of 8 bytes after the others.
 */
struct mc_put_signal {
	uint64_t addr;	   /* of the segment, 8-byte aligned, with the right to write */
	uint64_t value;	   /* as this machine stores it */
	uint32_t transfer; /* index in its group; one signal each, and it has bytes */
};

/**
 * Sees the bytes of a group while they pass through the caller's thread and lie in its cache, so
 * that a checksum needs no pass of its own. Not all of them: what moves without that thread (RDMA,
 * files, process_vm) is not shown. Of one transfer pieces may come in any order. The functions must
 * not call the engine.
 */
struct mc_tap {
	void *user;
	/** Copy n bytes of the transfer, from its byte `at` on, in the engine's place. On return
	 * all stores are ordered before later ones. */
	void (*copy)(void *user, uint32_t transfer, uint64_t at, void *dst, const void *src,
		     size_t n);
	/** n bytes of the transfer, from its byte `at` on, have come to, or have gone from, the
	 * local memory `bytes`. */
	void (*passed)(void *user, uint32_t transfer, uint64_t at, const void *bytes, size_t n);
	/** What was shown of the transfer so far counts no more: some of it is moved again. */
	void (*again)(void *user, uint32_t transfer);
};

struct mc_group {
	uint32_t size; /* sizeof(struct mc_group): lets the struct grow */
	uint32_t n;
	const struct mc_transfer *transfers;
	uint64_t deadline_ns;		     /* from now; 0: MC_TRANSFER_TIMEOUT */
	uint8_t priority;		     /* enum mc_priority; 0 is high: set it */
	const struct mc_notify *notify;	     /* to the segment of transfers[0]; NULL: none */
	struct mc_cq *cq;		     /* NULL: the group is watched through its id */
	uint64_t user;			     /* comes back in the completion */
	const struct mc_put_signal *signals; /* read during submit only */
	uint32_t nsignals;		     /* <= n */
	const struct mc_tap *tap; /* mc_transfer_sync() only, which calls it until it returns;
				     NULL: none */
};

/** How a group, or one transfer of it, stands. */
struct mc_status {
	int status; /* 0 success, < 0 how it failed; valid when is_done */
	bool is_done;
	uint64_t bytes; /* moved so far */
};

/**
 * Move and wait; the calling thread does the work itself where it can (one wake-up each way).
 * @return 0 when every transfer succeeded; else the first error. diag (may be NULL) names peer and
 * cause.
 */
MC_API MC_MUST_CHECK int mc_transfer_sync(struct mc_engine *eng, const struct mc_group *group,
					  struct mc_diag *diag);
/**
 * Start a group, whole or not at all, and return: it never waits for a peer. Where the peer must be
 * asked first (about ranges that no group named before, or because its process has to be found
 * anew) the request is copied, and what comes of it, -MC_E_RANGE for instance, is the completion's.
 * Such a group may begin after one that was submitted later.
 * @param ret_id in [1, 2^63 - 1]; end it with mc_group_free(). With a cq it ends by itself at its
 * completion.
 * @return 0; -MC_E_INVAL; -MC_E_STALE (segment); -MC_E_RANGE (not our own registered memory);
 * -MC_E_TOO_BIG; -MC_E_AGAIN (too many under way, or waiting in the cq: back-pressure);
 * -MC_E_CLOSED (the cq is being closed); -MC_E_NOMEM; -MC_E_FORKED
 */
MC_API MC_MUST_CHECK int mc_submit(struct mc_engine *eng, const struct mc_group *group,
				   uint64_t *ret_id);
/** Never blocks. @return 0; -MC_E_STALE */
MC_API int mc_group_status(struct mc_engine *eng, uint64_t id, struct mc_status *ret_status);
/** Status of transfer `index` alone. @return 0; -MC_E_STALE; -MC_E_INVAL */
MC_API int mc_group_transfer_status(struct mc_engine *eng, uint64_t id, uint32_t index,
				    struct mc_status *ret_status);
/** Wait until done. @return 0 when done (see ret_status); -MC_E_TIMEDOUT; -MC_E_STALE */
MC_API int mc_group_wait(struct mc_engine *eng, uint64_t id, uint64_t timeout_ns,
			 struct mc_status *ret_status);
/** Text for a person of how a failed group failed. @return 0; -MC_E_STALE */
MC_API int mc_group_diag(struct mc_engine *eng, uint64_t id, struct mc_diag *ret_diag);
/** Ask it to end early with -MC_E_CANCELED (it may still succeed). @return 0; -MC_E_STALE */
MC_API int mc_group_cancel(struct mc_engine *eng, uint64_t id);
/** Forget the id. A group still under way goes on, is then forgotten. @return 0; -MC_E_STALE */
MC_API int mc_group_free(struct mc_engine *eng, uint64_t id);

/* ---- completion queues ---- */

struct mc_completion {
	uint64_t user;
	uint64_t bytes;
	int status;
};

/** @param depth most groups under way on it, 1 … 65536 */
MC_API MC_MUST_CHECK int mc_cq_open(struct mc_engine *eng, uint32_t depth, struct mc_cq **ret_cq);
/** Groups under way are canceled and waited for; completions not taken are lost. */
MC_API void mc_cq_close(struct mc_cq *cq);
/** Take up to max completions; waits at most timeout_ns for the first. @return how many;
 * -MC_E_FORKED */
MC_API int mc_cq_wait(struct mc_cq *cq, struct mc_completion *ret, uint32_t max,
		      uint64_t timeout_ns);
/** eventfd, readable while completions are waiting: poll it, do not read it. Owned by the queue.
 * @return -MC_E_FORKED in a child */
MC_API int mc_cq_fd(struct mc_cq *cq);

/* ---- notifications ---- */

/** Send a message now, outside of any group. Waits for the peer to have it. @return 0;
 * -MC_E_INVAL; -MC_E_STALE (segment); -MC_E_TOO_BIG; -MC_E_AGAIN (its inbox is full);
 * -MC_E_UNSUPPORTED (a file); … */
MC_API MC_MUST_CHECK int mc_notify_send(struct mc_engine *eng, int32_t segment,
					const struct mc_notify *notify, uint64_t timeout_ns);
struct mc_notice {
	char *name, *msg; /* zero-terminated copies; lengths count without that zero */
	uint32_t name_len, msg_len;
};
/** Take all messages that have come. @return how many; *ret ends with mc_notices_free() (NULL when
 * 0); -MC_E_NOMEM */
MC_API int mc_notices_take(struct mc_engine *eng, struct mc_notice **ret_notices);
MC_API void mc_notices_free(struct mc_notice *notices, int n);

/* ---- observation ---- */

/** Prometheus text of all metrics. Free with mc_text_free(). NULL when out of memory, or forked. */
MC_API char *mc_metrics_text(struct mc_engine *eng);
/** Upstream's topology JSON of this machine ({"cpu:0": [[preferred], [other]]}); devices: filter or
 * NULL. */
MC_API char *mc_topology_json(const char *devices);
MC_API void mc_text_free(char *text);

#ifdef __cplusplus
}
#endif

#endif
