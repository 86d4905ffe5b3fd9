/*
 * file_priv.h: what the files of the file transport share: device, segment, lane, and the two ways
 * to have operations done.
 *
 * A slice on a lane is a *work*; it is cut into *parts*, ranges of which one operation at a time is
 * under way. The lane (file.c) owns both and decides; a backend (file_uring.c, file_pool.c) only
 * runs operations and reports each through mc_file_part_done().
 */
#ifndef MC_XPORT_FILE_PRIV_H
#define MC_XPORT_FILE_PRIV_H

#include <pthread.h>
#include <stdatomic.h>

#include "xport/file.h"

#define MC_FILE_DEPTH 64u	   /* slices on a lane */
#define MC_FILE_PARTS 64u	   /* parts under way on a lane */
#define MC_FILE_CHUNK (1u << 20)   /* bytes of an operation */
#define MC_FILE_POOL_THREADS 4u	   /* of a device without io_uring */
#define MC_FILE_TEXT_MAX 160u	   /* of mc_file_dev_describe() */
#define MC_FILE_TRIES_MAX 16u	   /* of one operation that the kernel interrupted */
#define MC_FILE_DRAIN_NS 10000000u /* between two looks while abort() waits */

/** What O_DIRECT needs here. All powers of two. */
struct mc_file_align {
	bool is_direct_ok;
	uint32_t unit; /* of file offset and length: whole pages, so that no page is reached both
			  ways at once */
	uint32_t mem;  /* of addresses */
};

/** Constant after open, but for the file behind it. */
struct mc_file_seg {
	int fd;	       /* through the page cache */
	int direct_fd; /* O_DIRECT, or -1 */
	uint32_t rights;
	struct mc_file_align align;
};

struct mc_file_lane;

struct mc_file_work {
	struct mc_list link; /* lane.pending while not wholly cut, then lane.flying; else lane.rest
			      */
	struct mc_slice *s;
	uint32_t frag; /* where the next part begins */
	uint64_t at;
	unsigned nparts; /* under way */
	int status;	 /* the first error */
	uint32_t bad_frag;
};

struct mc_file_part {
	struct mc_list link; /* lane.spare, or a list of the backend */
	struct mc_file_lane *lane;
	struct mc_file_work *work;
	uint32_t frag;
	/* what is left of the range */
	uint64_t off;
	uint8_t *mem;
	uint32_t len;
	unsigned tries; /* of the operation, for nothing */
	/* the operation under way */
	enum mc_op op;
	bool is_direct;
	uint32_t op_len;
	int res; /* the pool's: bytes, or -errno */
};

/** How operations get done. Called by the lane's owner. */
struct mc_file_backend {
	/** @return 0 or < 0; close() follows either way */
	int (*open)(struct mc_file_lane *l);
	void (*close)(struct mc_file_lane *l);
	/** Take the part's operation; runs after the next flush() or reap(). At most MC_FILE_PARTS.
	 */
	void (*start)(struct mc_file_lane *l, struct mc_file_part *p);
	/** Never waits. @return 0; < 0: the lane is broken */
	int (*flush)(struct mc_file_lane *l);
	/** Report what has ended, after waiting at most block_ns for the first. @return 0; < 0: the
	 * lane is broken */
	int (*reap)(struct mc_file_lane *l, uint64_t block_ns);
	/** True when reap() and flush() have something to do. l->event_fd becomes readable after
	 * the next. */
	bool (*is_ready)(struct mc_file_lane *l);
	/** Cancel what can be, wait for the rest, report what has ended. From then on neither the
	 * kernel nor a thread touches memory of the lane's slices. */
	void (*drain)(struct mc_file_lane *l);
};

extern const struct mc_file_backend mc_file_uring;
extern const struct mc_file_backend mc_file_threads;

/** One owner, as every lane; the atomic is read by the watchdog, `pool` by the threads. */
struct mc_file_lane {
	struct mc_xlane base; /* must be first */
	struct mc_file_dev *dev;
	const struct mc_file_seg *seg;
	const struct mc_file_backend *be;
	int event_fd;
	bool is_broken;		/* aborted, or the backend failed */
	bool is_aborting;	/* nothing is started any more */
	bool is_direct_refused; /* the file system took O_DIRECT at open and refused it later */
	unsigned depth;		/* slices posted and not returned */
	unsigned nparts;	/* under way */
	uint64_t seq;
	struct mc_list pending, flying, rest; /* mc_file_work.link */
	struct mc_list done;		      /* mc_slice.link */
	struct mc_list spare;		      /* mc_file_part.link */
	_Atomic uint64_t moved; /* relaxed: written by the owner, read by the watchdog */
	struct mc_file_ring *ring;
	struct {
		struct mc_list batch;	 /* the owner's: started, not yet given to the threads */
		struct mc_list finished; /* mc_file_pool.lock */
		unsigned running;	 /* mc_file_pool.lock */
	} pool;
	struct mc_file_work works[MC_FILE_DEPTH];
	struct mc_file_part parts[MC_FILE_PARTS];
};

/** Threads that do pread and pwrite, started with the first lane that needs them. */
struct mc_file_pool {
	/* Guards everything here and `finished`, `running` of the lanes. Leaf lock. */
	pthread_mutex_t lock;
	pthread_cond_t more;  /* the queue has something, or is_stopping */
	pthread_cond_t quiet; /* some lane's `running` fell to 0 */
	struct mc_list queue; /* mc_file_part.link */
	pthread_t threads[MC_FILE_POOL_THREADS];
	unsigned nthreads;
	bool is_stopping;
};

/** For tests: sees the result of each operation (bytes or -errno) and gives the one to believe:
 * fewer bytes, an error. */
struct mc_file_fault {
	int (*result)(struct mc_file_fault *f, const struct mc_file_part *p, int res);
};

struct mc_file_dev {
	struct mc_xdev base; /* must be first */
	uint64_t fork_gen;
	const struct mc_file_backend *be;
	struct mc_file_pool pool;
	struct mc_file_fault *fault; /* NULL but in tests */
	char text[MC_FILE_TEXT_MAX];
};

/* ---- file_seg.c ---- */

/**
 * Length of the operation at the front of [off, off + len), at most MC_FILE_CHUNK; len >= 1. Pure.
 * @param ret_is_direct  O_DIRECT may carry it
 */
uint32_t mc_file_cut(const struct mc_file_align *al, uint64_t off, uintptr_t mem, uint64_t len,
		     bool *ret_is_direct);

/* ---- file.c ---- */

/** The operation of a started part ended: bytes or -errno. Continues it, or ends it. */
void mc_file_part_done(struct mc_file_lane *l, struct mc_file_part *p, int res);
/** Before the first lane. */
void mc_file_dev_fault(struct mc_xdev *dev, struct mc_file_fault *fault);
/** Take back what made event_fd readable. */
void mc_file_event_clear(struct mc_file_lane *l);
void mc_file_event_set(struct mc_file_lane *l);

/* ---- file_uring.c ---- */

/** Whether this process may use io_uring. @param ret_why  else receives why not */
bool mc_file_uring_probe(char ret_why[MC_FILE_TEXT_MAX]);

/* ---- file_pool.c ---- */

void mc_file_pool_init(struct mc_file_pool *pool);
/** @param has_threads  false in a forked child: they are the parent's */
void mc_file_pool_fini(struct mc_file_pool *pool, bool has_threads);

#endif
