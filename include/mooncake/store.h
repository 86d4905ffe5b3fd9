/*
 * store.h: the Store's native API: objects of bytes under keys, in a pool of memory and disks that
 * many processes share.
 *
 * A *store* is a process's connection to a cluster: a master (index), owners (memory, disk) and
 * this process, which may own memory itself (opts.segment_bytes). Objects are written once; the
 * first writer of a key wins, unless it is an upsert. A read gives the bytes of one acknowledged
 * write of that key, checked end to end, or a code.
 *
 * Codes: 0, a count, or an upstream number of MC_STORE_*. Batches give one code for each key.
 * Every call ends by opts.timeout_ms. Memory that is read or written by peers should be registered
 * (mc_store_register()); what is not moves over TCP.
 *
 * Threads: every function may be called from any thread, mc_store_close() once. After fork() calls
 * of the child return MC_STORE_INTERNAL_ERROR.
 */
#ifndef MOONCAKE_STORE_H
#define MOONCAKE_STORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <mooncake/err.h>

#ifdef __cplusplus
extern "C" {
#endif

struct mc_engine;
struct mc_store;

/* X(name, number): upstream's, part of the ABI. */
#define MC_STORE_ERR_TABLE(X)                                                                      \
	X(OK, 0)                                                                                   \
	X(INTERNAL_ERROR, -1)                                                                      \
	X(BUFFER_OVERFLOW, -10)                                                                    \
	X(SHARD_INDEX_OUT_OF_RANGE, -100)                                                          \
	X(SEGMENT_NOT_FOUND, -101)                                                                 \
	X(SEGMENT_ALREADY_EXISTS, -102)                                                            \
	X(CLIENT_NOT_FOUND, -103)                                                                  \
	X(NO_AVAILABLE_HANDLE, -200)                                                               \
	X(INVALID_VERSION, -300)                                                                   \
	X(INVALID_KEY, -400)                                                                       \
	X(WRITE_FAIL, -500)                                                                        \
	X(INVALID_PARAMS, -600)                                                                    \
	X(ILLEGAL_CLIENT, -601)                                                                    \
	X(INVALID_WRITE, -700)                                                                     \
	X(INVALID_READ, -701)                                                                      \
	X(INVALID_REPLICA, -702)                                                                   \
	X(REPLICA_IS_NOT_READY, -703)                                                              \
	X(OBJECT_NOT_FOUND, -704)                                                                  \
	X(OBJECT_ALREADY_EXISTS, -705)                                                             \
	X(OBJECT_HAS_LEASE, -706)                                                                  \
	X(LEASE_EXPIRED, -707)                                                                     \
	X(OBJECT_HAS_REPLICATION_TASK, -708)                                                       \
	X(OBJECT_NO_REPLICATION_TASK, -709)                                                        \
	X(REPLICA_NOT_FOUND, -710)                                                                 \
	X(REPLICA_ALREADY_EXISTS, -711)                                                            \
	X(REPLICA_IS_GONE, -712)                                                                   \
	X(REPLICA_NOT_IN_LOCAL_MEMORY, -713)                                                       \
	X(OBJECT_REPLICA_BUSY, -714)                                                               \
	X(TRANSFER_FAIL, -800)                                                                     \
	X(CHECKSUM_MISMATCH, -801)                                                                 \
	X(RPC_FAIL, -900)                                                                          \
	X(RPC_TIMEOUT, -901)                                                                       \
	X(UNAVAILABLE_IN_CURRENT_STATUS, -1010)                                                    \
	X(UNAVAILABLE_IN_CURRENT_MODE, -1011)                                                      \
	X(NOT_SUPPORTED, -1012)                                                                    \
	X(FILE_READ_FAIL, -1102)                                                                   \
	X(FILE_WRITE_FAIL, -1103)                                                                  \
	X(TASK_NOT_FOUND, -1400)                                                                   \
	X(TASK_PENDING_LIMIT_EXCEEDED, -1401)                                                      \
	X(JOB_NOT_FOUND, -1402)                                                                    \
	X(TENANT_QUOTA_EXCEEDED, -1700)

enum mc_store_err {
#define MC_STORE_ERR_ENUM(name, num) MC_STORE_##name = num,
	MC_STORE_ERR_TABLE(MC_STORE_ERR_ENUM)
#undef MC_STORE_ERR_ENUM
};

/** Upstream's name of a code ("OBJECT_NOT_FOUND"); "UNKNOWN" for an unknown one. */
MC_API const char *mc_store_err_name(int code);

#define MC_STORE_KEY_MAX 4096u	  /* bytes of tenant and key, and one */
#define MC_STORE_BATCH_MAX 65536u /* keys of one call */
#define MC_STORE_PARTS_MAX 65536u /* pieces of one object */

/* ---- life ---- */

/** All zero is a valid default but for `master`. Strings are not kept. */
struct mc_store_opts {
	uint32_t size;	  /* sizeof(struct mc_store_opts): lets the struct grow */
	const char *name; /* as mc_engine_opts.name */
	const char *metadata, *protocol, *devices; /* as mc_engine_opts */
	const char *master;			   /* "host:port"; NULL: 127.0.0.1:50051 */
	const char *tenant;			   /* NULL, "default": the default one */
	uint64_t segment_bytes;	  /* memory that this process gives to the pool; 0: none */
	uint64_t buffer_bytes;	  /* what mc_store_alloc() may give in all */
	uint32_t timeout_ms;	  /* of each call; 0: MC_RPC_TIMEOUT_MS, 30 s */
	struct mc_engine *engine; /* to use; NULL: one of its own */
	/* "host:port" of the node (mooncake_client) of this host, or the "@name" of its socket: a
	 * *dummy* client, which is told master, metadata, protocol, devices and tenant by it; those
	 * above are not looked at. NULL: no dummy */
	const char *node;
	/* Directory of a disk behind segment_bytes, as a node's: one process has it at a time, what
	 * is there comes back with the next. "": MOONCAKE_OFFLOAD_FILE_STORAGE_PATH. NULL: none */
	const char *disk_path;
	/* Abstract Unix socket, "@name" or "name", where this process tells dummy clients of its
	 * host what it was opened with, as a node does at "@mooncake_client_<port>.sock". NULL:
	 * none */
	const char *dummy_socket;
};

/**
 * Connect. Fails within seconds, and says in diag what is wrong and what to do.
 * @return 0; MC_STORE_INVALID_PARAMS; MC_STORE_RPC_FAIL (no master, or no node, there);
 * MC_STORE_INTERNAL_ERROR
 */
MC_API MC_MUST_CHECK int mc_store_open(const struct mc_store_opts *opts, struct mc_diag *diag,
				       struct mc_store **ret_store);
/** Calls under way end; the process's own segment leaves the pool with its objects. What is not
 * yet on its disk goes there, for 5 s at most. NULL is allowed. */
MC_API void mc_store_close(struct mc_store *store);
/** "host:port" of this process's segment. Lives as long as the store. */
MC_API const char *mc_store_hostname(const struct mc_store *store);
MC_API struct mc_engine *mc_store_engine(struct mc_store *store);
/** @return 0 healthy; 2 the master does not answer, or a dummy's node is gone */
MC_API int mc_store_health(struct mc_store *store);

/* ---- memory ---- */

/** @return 0; MC_STORE_INVALID_PARAMS (the very same range again, or not memory) */
MC_API MC_MUST_CHECK int mc_store_register(struct mc_store *store, void *addr, size_t len);
/** @return 0; MC_STORE_INVALID_PARAMS (unknown) */
MC_API int mc_store_unregister(struct mc_store *store, void *addr);
/** Registered memory out of opts.buffer_bytes, page-aligned. NULL when there is none left. */
MC_API void *mc_store_alloc(struct mc_store *store, size_t len);
MC_API int mc_store_free(struct mc_store *store, void *addr);

/* ---- memory for the pool that comes and goes ---- */

struct mc_store_segment_id {
	uint64_t hi, lo; /* of the owner and its life */
};

/** Strings are not kept. */
struct mc_store_mount {
	uint32_t size;	      /* sizeof(struct mc_store_mount): lets the struct grow */
	uint64_t bytes;	      /* 1 MiB or more */
	const char *path;     /* a file that is mapped, its bytes are lost; NULL: memory */
	uint64_t offset;      /* in the file, of a page */
	const char *protocol; /* told to others; NULL: "tcp" */
	const char *location; /* as mc_mem_reg() takes it, with a path; NULL: "*" */
};
/**
 * Give memory to the pool, beside opts.segment_bytes, as an owner of its own.
 * @return 0; MC_STORE_INVALID_PARAMS, MC_STORE_RPC_FAIL (the master does not take it in),
 * MC_STORE_INTERNAL_ERROR: diag says why
 */
MC_API MC_MUST_CHECK int mc_store_mount(struct mc_store *store, const struct mc_store_mount *mount,
					struct mc_diag *diag, struct mc_store_segment_id *ret_id);
/**
 * Take it back, with its objects. For `grace_ms` before that they are still read, but nothing new
 * is put there; the call does not wait for it.
 * @param is_file  it has a path
 * @return 0; MC_STORE_SEGMENT_NOT_FOUND (no such one of that kind is mounted, or it is leaving)
 */
MC_API MC_MUST_CHECK int mc_store_unmount(struct mc_store *store,
					  const struct mc_store_segment_id *id, bool is_file,
					  uint64_t grace_ms);

/* ---- objects ---- */

struct mc_store_part {
	void *addr;
	size_t len;
};

struct mc_store_key {
	const void *bytes; /* the user's key; the store adds its tenant */
	size_t len;
};

enum mc_store_soft_pin {
	MC_STORE_SOFT_PIN_PRESERVE,
	MC_STORE_SOFT_PIN_ENABLE,
	MC_STORE_SOFT_PIN_DISABLE,
};

/** How an object is kept. All zero: one replica anywhere, no pin. */
struct mc_store_conf {
	uint32_t size;	   /* sizeof(struct mc_store_conf) */
	uint32_t replicas; /* 0: 1 */
	uint32_t type;	   /* upstream's ObjectDataType */
	uint8_t soft_pin;  /* enum mc_store_soft_pin */
	bool is_hard_pinned;
	bool wants_same_host;	     /* on this host, if it can be */
	uint64_t soft_pin_ttl_ms;    /* 0: the master's default */
	const char *const *segments; /* preferred, in order */
	uint32_t nsegments;
	const char *const *groups; /* one for each key of the call, or NULL */
};

/** One object of a call: its bytes lie in these parts, in order. */
struct mc_store_item {
	struct mc_store_key key;
	const struct mc_store_part *parts;
	uint32_t nparts;
};

enum mc_store_put_flag {
	MC_STORE_UPSERT = 1, /* replace what is there */
};

/**
 * Write objects.
 * @param conf  of all of them; NULL: default
 * @param ret   [n]: 0 (also when another was first); MC_STORE_INVALID_PARAMS (empty key or value);
 *              MC_STORE_NO_AVAILABLE_HANDLE (nothing may be evicted);
 *              MC_STORE_TENANT_QUOTA_EXCEEDED; MC_STORE_TRANSFER_FAIL; MC_STORE_RPC_FAIL and
 *              MC_STORE_RPC_TIMEOUT: not known, it may be or become visible (whole); with any other
 *              code it never does
 * @return 0 when all are 0, else the first other code
 */
MC_API MC_MUST_CHECK int mc_store_put(struct mc_store *store, const struct mc_store_item *items,
				      uint32_t n, const struct mc_store_conf *conf, unsigned flags,
				      int32_t *ret);
/**
 * Read whole objects into parts, which may be longer than the object, not shorter.
 * @param ret  [n]: bytes; MC_STORE_OBJECT_NOT_FOUND; MC_STORE_INVALID_PARAMS (parts too short);
 *             MC_STORE_CHECKSUM_MISMATCH (no replica passed), …
 */
MC_API MC_MUST_CHECK int mc_store_get(struct mc_store *store, const struct mc_store_item *items,
				      uint32_t n, int64_t *ret);

/** A piece of an object. */
struct mc_store_range {
	uint64_t offset;
	void *addr;
	size_t len;
};
struct mc_store_ranged {
	struct mc_store_key key;
	const struct mc_store_range *ranges;
	uint32_t nranges;
};
/** Read pieces. @param ret [n]: bytes of all pieces of that key; MC_STORE_INVALID_PARAMS (beyond
 * the object); as mc_store_get() */
MC_API MC_MUST_CHECK int mc_store_get_ranges(struct mc_store *store,
					     const struct mc_store_ranged *items, uint32_t n,
					     int64_t *ret);

/** How big are they: what a reader has to make room for. The answers are kept for the reads that
 * follow. @param ret [n]: bytes; MC_STORE_OBJECT_NOT_FOUND */
MC_API MC_MUST_CHECK int mc_store_size(struct mc_store *store, const struct mc_store_key *keys,
				       uint32_t n, int64_t *ret);
/** @param ret [n]: 1; 0; < 0 */
MC_API MC_MUST_CHECK int mc_store_exist(struct mc_store *store, const struct mc_store_key *keys,
					uint32_t n, int32_t *ret);
/** @param ret [n]: 0; MC_STORE_OBJECT_NOT_FOUND; MC_STORE_OBJECT_HAS_LEASE (unless force) */
MC_API MC_MUST_CHECK int mc_store_remove(struct mc_store *store, const struct mc_store_key *keys,
					 uint32_t n, bool force, int32_t *ret);
/** Those whose key matches a POSIX extended regular expression; NULL: all of the tenant. @return
 * how many; MC_STORE_INVALID_PARAMS (it does not compile) */
MC_API int64_t mc_store_remove_like(struct mc_store *store, const char *regex, bool force);

/* ---- sessions: objects that are written or read piece by piece ---- */

/** Room for n objects of these lengths. @param ret [n]: 0, or as mc_store_put() */
MC_API MC_MUST_CHECK int mc_store_put_begin(struct mc_store *store, const struct mc_store_key *keys,
					    const uint64_t *lens, uint32_t n,
					    const struct mc_store_conf *conf, int32_t *ret);
/** Write pieces into objects begun. @param ret [n]: bytes; MC_STORE_OBJECT_NOT_FOUND (not begun) */
MC_API MC_MUST_CHECK int mc_store_put_ranges(struct mc_store *store,
					     const struct mc_store_ranged *items, uint32_t n,
					     int64_t *ret);
/** Visible from now on (what was never written reads as zeros), or given up. */
MC_API MC_MUST_CHECK int mc_store_put_end(struct mc_store *store, const struct mc_store_key *keys,
					  uint32_t n, bool is_revoked, int32_t *ret);

/* ---- observation ---- */

enum mc_store_kind {
	MC_STORE_MEMORY,
	MC_STORE_DISK,
};

struct mc_store_replica {
	uint64_t addr, len;
	uint8_t kind; /* enum mc_store_kind */
	char segment[128];
};
#define MC_STORE_REPLICAS_MAX 8u

/* ---- replicas ---- */

struct mc_store_task_id {
	uint64_t hi, lo;
};

enum mc_store_task_state { /* upstream's TaskStatus */
			   MC_STORE_TASK_PENDING,
			   MC_STORE_TASK_PROCESSING,
			   MC_STORE_TASK_FAILED,
			   MC_STORE_TASK_SUCCESS,
};

struct mc_store_task {
	struct mc_store_task_id id;
	bool is_move; /* else a copy */
	enum mc_store_task_state state;
	uint64_t created_ms, updated_ms; /* of the Unix epoch */
	char segment[128];		 /* that does it: the first target */
	char message[128];		 /* why it failed */
};

/**
 * Have an object copied to other segments, each of which gets a replica; the master orders it, and
 * tries again while a segment has no room or is away.
 * @return 0; MC_STORE_INVALID_PARAMS (no target, one that is not there, or has it already);
 * MC_STORE_OBJECT_NOT_FOUND; MC_STORE_TASK_PENDING_LIMIT_EXCEEDED; MC_STORE_RPC_*
 */
MC_API MC_MUST_CHECK int mc_store_copy(struct mc_store *store, const struct mc_store_key *key,
				       const char *const *targets, uint32_t ntargets,
				       struct mc_store_task_id *ret_id);
/** Its replica of `source` is made at `target` instead. @return as mc_store_copy();
 * MC_STORE_REPLICA_NOT_FOUND (the source has none) */
MC_API MC_MUST_CHECK int mc_store_move(struct mc_store *store, const struct mc_store_key *key,
				       const char *source, const char *target,
				       struct mc_store_task_id *ret_id);
/** A task of a master that was restarted has failed, and its message says so.
 * @return 0; MC_STORE_TASK_NOT_FOUND; MC_STORE_RPC_* */
MC_API MC_MUST_CHECK int mc_store_task(struct mc_store *store, struct mc_store_task_id id,
				       struct mc_store_task *ret);
/** Free what these objects have in one segment; NULL, "": all of it, as mc_store_remove() without
 * force. @param ret [n]: 0; MC_STORE_OBJECT_NOT_FOUND; MC_STORE_REPLICA_NOT_FOUND;
 * MC_STORE_OBJECT_HAS_LEASE */
MC_API MC_MUST_CHECK int mc_store_clear(struct mc_store *store, const struct mc_store_key *keys,
					uint32_t n, const char *segment, int32_t *ret);

/** @return how many of ret_replicas; MC_STORE_OBJECT_NOT_FOUND */
MC_API MC_MUST_CHECK int
mc_store_replicas(struct mc_store *store, const struct mc_store_key *key,
		  struct mc_store_replica ret_replicas[MC_STORE_REPLICAS_MAX]);

/** Listed objects, in the order of their keys. For each one `each` is called until it gives false.
 * @return how many; < 0 */
MC_API int64_t mc_store_list(struct mc_store *store, const char *prefix,
			     bool (*each)(void *user, const void *key, size_t key_len, uint64_t len,
					  unsigned memory_replicas, unsigned disk_replicas),
			     void *user);
/** How many objects owners were asked to bring back from their disks. */
MC_API uint64_t mc_store_fetches(const struct mc_store *store);
/** The cluster's owners as JSON text, as the master's /get_segments_detail. mc_text_free(). */
MC_API char *mc_store_segments_json(struct mc_store *store);

#ifdef __cplusplus
}
#endif

#endif
