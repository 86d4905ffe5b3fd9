/*
 * dlog.h: objects on a disk that outlive power cuts: a log of checksummed, self-describing records
 * in append-only segment files, with an index in memory from key to place. The SSD tier of a node.
 *
 * One owner thread for all functions of a log, one that may block for a few milliseconds (making,
 * cutting and removing files; a checkpoint): not a loop. Reads and writes themselves run through
 * the disk's queue. What an operation names (key, tlv, iov and its memory) stays the caller's and
 * is left alone by it from the call to on_done().
 *
 * Promises:
 * - A put or delete that ended with 0 is durable: no crash and no power cut undoes it.
 * - One that ended with an error is not there and never comes back; -MC_E_UNFENCED alone says that
 *   it may (the disk did not even let the log take it back), and then the log is read-only.
 * - A get gives the bytes of one put of that very key, whole chunks checked, or an error. Of a
 * key's generations the highest durable one counts; a delete hides all up to its own.
 * - Group commit in the order of the log: operations end in the order in which they were placed.
 *
 * Source of the idea: log-structured file systems (M. Rosenblum, J. Ousterhout, 1992); index in
 * memory over append-only files, as in Bitcask (J. Sheehy, D. Smith, 2010).
 */
#ifndef MC_LOG_DLOG_H
#define MC_LOG_DLOG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "base/err.h"
#include "base/list.h"
#include "io/disk.h"

#define MC_DLOG_KEY_MAX 4096u
#define MC_DLOG_TLV_MAX 32768u
#define MC_DLOG_PAYLOAD_MAX (4ull << 30)
#define MC_DLOG_CHUNK 65536u /* bytes under one CRC */
#define MC_DLOG_SEGMENT_MIN (64u << 10)

struct mc_dlog;

/** Unique and ordered for each key: epoch first. {0, 0} is no generation. */
struct mc_dlog_gen {
	uint64_t epoch, counter;
};

struct mc_dlog_conf {
	const struct mc_disk *disk;
	const char *path;	/* the directory; made if it is not there, its parent must be */
	uint64_t quota_bytes;	/* of all segment files; 0: as much as the disk takes */
	uint64_t segment_bytes; /* of one file; 0: chosen from the quota, 64 MiB … 4 GiB */
	unsigned depth;		/* operations of the disk under way at once; 0: 64 */
	const char *no_uring;	/* as of mc_disk.aio_open() */
	bool no_direct;		/* through the page cache */
	bool no_checkpoint;	/* recover by a scan of all segments, as if there were none */
};

/** One operation; begun by a call, ended by on_done() once. */
struct mc_dlog_op {
	/* The caller's. */
	const void *key; /* 1 … MC_DLOG_KEY_MAX bytes */
	size_t key_len;
	/* put, del: of the record. get: {0, 0} for any, else this one or -MC_E_STALE. */
	struct mc_dlog_gen gen;
	const void *tlv; /* put: metadata that the log keeps and does not read */
	size_t tlv_len;
	/* put: the payload; aligned to 4 KiB it is written without a copy, from MC_DLOG_CHUNK up.
	 * get: where the bytes go; aligned to 4 KiB whole chunks are read without a copy. */
	const struct iovec *iov;
	unsigned niov;
	uint64_t off; /* get: of the first byte, in the payload; the range is what iov has room for
		       */
	/** In mc_dlog_reap(), _flush(), _step() or _close(); may begin operations, also this one,
	 * and nothing else. */
	void (*on_done)(struct mc_dlog_op *op, int rc);
	void *user;
	/* The log's. */
	struct mc_list link;
	void *state;
};

/** What is known of a live object without its payload. */
struct mc_dlog_info {
	struct mc_dlog_gen gen;
	uint64_t payload_len;
	uint32_t tlv_len;
};

/** A live record, for mc_dlog_list(). Views live until the call returns. */
struct mc_dlog_item {
	const void *key, *tlv;
	size_t key_len;
	struct mc_dlog_info info;
};

/** Where a listing goes on. Zeroed: at the start. */
struct mc_dlog_cursor {
	uint64_t segment, off;
};

struct mc_dlog_stats {
	uint64_t objects, tombstones, segments;
	uint64_t used_bytes;  /* of all segments */
	uint64_t live_bytes;  /* records of objects */
	uint64_t dead_bytes;  /* what compaction can give back */
	uint64_t quota_bytes; /* 0: none */
	uint64_t puts, deletes, gets, syncs, bytes_put, bytes_got;
	uint64_t compactions, moved_bytes, removed_segments, checkpoints;
	uint64_t reused_segments; /* made of the files of emptied ones */
	uint64_t bad_records;	 /* places where a record was expected and what was there was not */
	uint64_t bad_reads;	 /* gets that ended as -MC_E_CORRUPT */
	uint64_t write_failures; /* groups that were taken back */
	uint64_t index_bytes;	 /* memory */
	/* Of the last opening. */
	uint64_t scanned_bytes, from_checkpoint, torn_bytes, lost_objects;
	bool is_direct, is_read_only;
};

/**
 * Open the directory, or make it, and find again what is in it.
 *
 * @param ret_diag  says why not; NULL is allowed
 * @return 0; -MC_E_BUSY: another process (named) has it open; -MC_E_VERSION: another format;
 * -MC_E_INVAL: a bad conf, or a directory with files of others; -MC_E_CORRUPT; -MC_E_NOMEM;
 * -MC_E_IO and others of the disk
 *
 * Blocks as long as recovery takes.
 */
MC_MUST_CHECK int mc_dlog_open(const struct mc_dlog_conf *conf, struct mc_dlog **ret_log,
			       struct mc_diag *ret_diag);
/**
 * Wait for what is under way (operations that wait for room end as -MC_E_CLOSED), write a
 * checkpoint, release the directory. NULL is allowed. In the child of a fork() nothing is touched
 * but memory.
 */
void mc_dlog_close(struct mc_dlog *log);

/**
 * Store an object: key, gen, tlv, iov. Ends with 0 once it is durable.
 *
 * @return 0, and on_done() will come with: 0; -MC_E_STALE: this or a higher generation is there or
 * was deleted; -MC_E_NOSPACE: quota or disk; -MC_E_IO; -MC_E_UNFENCED (above); -MC_E_CLOSED.
 * < 0, and it will not: -MC_E_INVAL, -MC_E_TOO_BIG; -MC_E_STALE, -MC_E_NOSPACE known at once;
 * -MC_E_NOMEM; -MC_E_PERM: the log is read-only (mc_dlog_why())
 */
MC_MUST_CHECK int mc_dlog_put(struct mc_dlog *log, struct mc_dlog_op *op);
/**
 * Delete what is there of a key up to generation gen. Works beyond the quota.
 *
 * @return as mc_dlog_put(); -MC_E_NOENT: nothing of that key is there; -MC_E_STALE: a higher
 * generation is there
 */
MC_MUST_CHECK int mc_dlog_del(struct mc_dlog *log, struct mc_dlog_op *op);
/**
 * Read bytes [off, off + room of iov) of an object's payload.
 *
 * @return 0, and on_done() will come with: 0; -MC_E_CORRUPT: what the disk gave is not what was
 * put; -MC_E_IO. < 0, and it will not: -MC_E_NOENT; -MC_E_STALE; -MC_E_INVAL (beyond its end, or no
 * bytes); -MC_E_NOMEM. After an error iov's memory may hold anything.
 */
MC_MUST_CHECK int mc_dlog_get(struct mc_dlog *log, struct mc_dlog_op *op);
/** From the index alone: by a 96-bit hash, not by the key's bytes. @return 0; -MC_E_NOENT */
MC_MUST_CHECK int mc_dlog_stat(const struct mc_dlog *log, const void *key, size_t key_len,
			       struct mc_dlog_info *ret_info);

/** Give the disk what has been begun since; small puts since the last flush share a write. Never
 * waits for the disk but to make a segment. */
void mc_dlog_flush(struct mc_dlog *log);
/** Flush, wait at most block_ns for something to end, report it. @return operations under way */
unsigned mc_dlog_reap(struct mc_dlog *log, uint64_t block_ns);
/** Readable when mc_dlog_reap() has something to do (EPOLLIN; level-triggered). */
int mc_dlog_event_fd(const struct mc_dlog *log);

/**
 * One piece of housekeeping: compaction, removal of segments, a checkpoint when one is due.
 *
 * @param bytes  most bytes of segments to read now; what lives of them is written through the
 * queue, so operations of others go on in between
 * @return 1: call again, there is more; 0: nothing to do for now; < 0: an error, logged (the log
 * stays as it was)
 */
int mc_dlog_step(struct mc_dlog *log, uint64_t bytes);
/** Write a checkpoint now. @return 0; < 0: the old one stays */
int mc_dlog_checkpoint(struct mc_dlog *log);

/**
 * Live objects in the order of the log, each at least once (twice if compaction moves it
 * meanwhile).
 *
 * @param bytes   most bytes of segments to read now
 * @param each    called for each
 * @return 1: call again with the same cursor; 0: that was all; < 0: the disk failed
 */
int mc_dlog_list(struct mc_dlog *log, struct mc_dlog_cursor *cursor, uint64_t bytes,
		 void (*each)(void *user, const struct mc_dlog_item *item), void *user);

void mc_dlog_stats(const struct mc_dlog *log, struct mc_dlog_stats *ret_stats);
/** Why the log is read-only; "" if it is not. */
const char *mc_dlog_why(const struct mc_dlog *log);

#endif
