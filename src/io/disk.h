/*
 * disk.h: files and block devices as an argument of those who use them. What ships runs on
 * mc_disk_real; tests give the same object files a disk that fails, is slow or loses its power.
 *
 * A file is read and written in place, or through a *queue*: operations that are started together
 * and end in any order. Queues of one *aio* share what carries them: io_uring, or a few threads
 * where io_uring is forbidden.
 *
 * Operations on files answer as the system calls whose names they have: bytes or 0, else -errno,
 * because what to do about it depends on the errno (EINVAL of O_DIRECT, EROFS of an open). Whoever
 * calls gives mc_err_from_errno() to those above. Functions of aio and queues answer as all of
 * ours, -enum mc_err.
 */
#ifndef MC_IO_DISK_H
#define MC_IO_DISK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/err.h"
#include "base/list.h"

#define MC_DISK_IO_MAX (1u << 30)  /* bytes of one operation */
#define MC_DISK_DEPTH_MAX 4096u	   /* operations under way in one queue */
#define MC_DISK_TEXT_MAX 160u	   /* of mc_disk_aio.text */
#define MC_DISK_QUEUE_FILES_MAX 4u /* that a queue prepares for */

struct mc_disk;

/** An open file. Implementations embed it. Any thread; ended after the last operation on it. */
struct mc_disk_file {
	const struct mc_disk *disk;
};

enum mc_disk_flag {
	MC_DISK_READ = 1,
	MC_DISK_WRITE = 2,
	MC_DISK_CREATE = 4,  /* a regular file, if nothing is there */
	MC_DISK_EXCL = 8,    /* with CREATE: -EEXIST if something is there */
	MC_DISK_DIRECT = 16, /* past the page cache */
	MC_DISK_RANDOM = 32, /* nothing is read ahead */
};

struct mc_disk_stat {
	uint64_t len_bytes; /* of a block device too */
	uint64_t dev, ino;  /* equal for two files: the same object */
	bool is_regular, is_block;
	uint32_t block; /* size the file system likes best */
	/* What MC_DISK_DIRECT needs of addresses and of offsets and lengths; 0: not on this file.
	 */
	bool is_direct_known;
	uint32_t direct_mem, direct_off;
};

enum mc_disk_op {
	MC_DISK_OP_READ,
	MC_DISK_OP_WRITE,
	MC_DISK_OP_SYNC, /* as fdatasync(); covers what had ended when it was started */
	MC_DISK_OP_COUNT,
};

struct mc_disk_queue;

/** One operation of a queue; the caller's memory, left alone by it from start() to on_done(). */
struct mc_disk_io {
	struct mc_list link; /* the caller's again while nothing is under way */
	struct mc_disk_file *file;
	void *mem;
	uint64_t off;
	uint32_t len;
	enum mc_disk_op op;
	/* the queue's */
	struct mc_disk_queue *queue;
	int res;
};

struct mc_disk_queue_conf {
	unsigned depth; /* 1 … MC_DISK_DEPTH_MAX: operations under way at once */
	int event_fd;	/* an eventfd of the caller: 1 is added for each operation that ends */
	/* Files that most operations are on; others are possible. */
	struct mc_disk_file *files[MC_DISK_QUEUE_FILES_MAX];
	unsigned nfiles;
	/** Ended with bytes or -errno: in reap() or drain(). May start() again, also the same,
	 * but not from drain(). */
	void (*on_done)(void *user, struct mc_disk_io *io, int res);
	void *user;
};

/** One owner at a time. */
struct mc_disk_queue_ops {
	/** Idle or drained before; in the child of a fork() in any state. */
	void (*close)(struct mc_disk_queue *queue);
	/** Take an operation; it runs after the next flush() or reap(). At most conf.depth. */
	void (*start)(struct mc_disk_queue *queue, struct mc_disk_io *io);
	/** Never waits. @return 0; < 0: the queue is broken, drain it */
	int (*flush)(struct mc_disk_queue *queue);
	/** Report what has ended, after waiting at most block_ns for the first. @return as flush()
	 */
	int (*reap)(struct mc_disk_queue *queue, uint64_t block_ns);
	/** True when reap() or flush() have something to do. conf.event_fd tells of the next. */
	bool (*is_ready)(struct mc_disk_queue *queue);
	/**
	 * Cancel what can be (-ECANCELED), wait at most wait_ns for the rest, report what has
	 * ended. Only drain() and, once it gave true, close() may follow. Any thread, one at a
	 * time.
	 * @return true: all is reported, and nothing touches memory of its operations any more
	 */
	bool (*drain)(struct mc_disk_queue *queue, uint64_t wait_ns);
};

struct mc_disk_queue {
	const struct mc_disk_queue_ops *ops;
};

struct mc_disk_aio;

struct mc_disk_aio_ops {
	/** After its last queue. */
	void (*close)(struct mc_disk_aio *aio);
	/** @return 0; -MC_E_NOMEM; -MC_E_LIMIT (threads) */
	int (*queue_open)(struct mc_disk_aio *aio, const struct mc_disk_queue_conf *conf,
			  struct mc_disk_queue **ret_queue);
};

struct mc_disk_aio {
	const struct mc_disk_aio_ops *ops;
	char text[MC_DISK_TEXT_MAX]; /* "io_uring", or "threads: " and why; for people */
};

/** All functions may block, but for those of queues. Any thread. */
struct mc_disk {
	/**
	 * Never waits for the other end of a FIFO.
	 * @param flags  enum mc_disk_flag bits, with MC_DISK_READ or MC_DISK_WRITE
	 * @param mode   permissions of a new file
	 */
	int (*open)(const struct mc_disk *disk, const char *path, uint32_t flags, uint32_t mode,
		    struct mc_disk_file **ret_file);
	void (*close)(struct mc_disk_file *file);
	/** @return bytes, fewer than len before the end of the file too; 0 at the end */
	ssize_t (*read)(struct mc_disk_file *file, void *buf, size_t len, uint64_t off);
	/** @return bytes, maybe fewer than len */
	ssize_t (*write)(struct mc_disk_file *file, const void *buf, size_t len, uint64_t off);
	/** On return what was written before is durable. @param is_data_only  as fdatasync():
	 * the length is durable, times are not */
	int (*sync)(struct mc_disk_file *file, bool is_data_only);
	int (*truncate)(struct mc_disk_file *file, uint64_t len);
	/** Blocks for [off, off + len) of a file that ends at `off`; they read as zeros, and it is
	 * longer by them. Writes there are faster than those that make it longer themselves.
	 * @return 0; -EOPNOTSUPP: not on this file; -ENOSPC and others: it may be longer, too */
	int (*allocate)(struct mc_disk_file *file, uint64_t off, uint64_t len);
	int (*stat)(const struct mc_disk_file *file, struct mc_disk_stat *ret_stat);
	/** Replaces `to`. */
	int (*rename)(const struct mc_disk *disk, const char *from, const char *to);
	int (*unlink)(const struct mc_disk *disk, const char *path);
	/** -EEXIST if something is there. */
	int (*mkdir)(const struct mc_disk *disk, const char *path, uint32_t mode);
	/** Tell each name in a directory, but "." and "..", in any order. @param each  changes
	 * nothing in it */
	int (*list)(const struct mc_disk *disk, const char *path,
		    void (*each)(void *user, const char *name), void *user);
	/** Take the file for this opening of it alone, or give it back; closing gives it back, too.
	 * @return 0; -EWOULDBLOCK: another one has it */
	int (*lock)(struct mc_disk_file *file, bool is_taken);
	/** Makes creations, renames and removals in a directory durable. */
	int (*sync_dir)(const struct mc_disk *disk, const char *path);
	/** @param no_uring  NULL, or why not io_uring (for aio.text). @return 0; -MC_E_NOMEM */
	int (*aio_open)(const struct mc_disk *disk, const char *no_uring,
			struct mc_disk_aio **ret_aio);
};

/** The machine's file systems. */
extern const struct mc_disk mc_disk_real;

#endif
