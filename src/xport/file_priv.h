/*
 * file_priv.h: what the files of the file transport share: device, segment, lane.
 *
 * A slice on a lane is a *work*; it is cut into *parts*, ranges of which one operation at a time is
 * under way. The lane (file.c) owns both and decides; a queue of the disk (io/disk.h) only runs
 * operations and reports each.
 */
#ifndef MC_XPORT_FILE_PRIV_H
#define MC_XPORT_FILE_PRIV_H

#include <pthread.h>
#include <stdatomic.h>

#include "io/disk.h"
#include "xport/file.h"

#define MC_FILE_DEPTH 64u		     /* slices on a lane */
#define MC_FILE_PARTS 64u		     /* parts under way on a lane */
#define MC_FILE_CHUNK (1u << 20)	     /* bytes of an operation */
#define MC_FILE_TRIES_MAX 16u		     /* of one operation that the kernel interrupted */
#define MC_FILE_ABORT_NS (20 * MC_NS_PER_MS) /* abort() waits for its operations */
#define MC_FILE_LINGER_MAX 8u /* lingering lanes of a file; then no other one opens */

/** What O_DIRECT needs here. All powers of two. */
struct mc_file_align {
	bool is_direct_ok;
	uint32_t unit; /* of file offset and length: whole pages, so that no page is reached both
			  ways at once */
	uint32_t mem;  /* of addresses */
};

/** Constant after open, but for the file behind it and `refs`. */
struct mc_file_seg {
	_Atomic unsigned refs; /* the opener, lanes */
	uint64_t id;	       /* equal for two segments: the same file; neither 0 nor UINT64_MAX */
	const struct mc_disk *disk;
	struct mc_disk_file *plain;  /* through the page cache */
	struct mc_disk_file *direct; /* O_DIRECT, or NULL */
	uint32_t rights;
	struct mc_file_align align;
};

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
	/* the operation under way, at the front of what is left of the range; io.link also:
	 * lane.spare
	 */
	struct mc_disk_io io;
	struct mc_file_work *work;
	uint32_t frag;
	uint32_t len;	/* what is left of the range */
	unsigned tries; /* of the operation, for nothing */
	bool is_direct;
};

/** One owner, as every lane; the atomic is read by the watchdog. */
struct mc_file_lane {
	struct mc_xlane base; /* must be first */
	struct mc_file_dev *dev;
	struct mc_file_seg *seg;
	struct mc_disk_queue *queue;
	int event_fd;
	bool is_broken;	  /* aborted, or the queue failed */
	bool is_aborting; /* nothing is started any more */
	bool is_kept;	  /* aborted with operations under way: what they end means nothing, and the
			     queue is the device's (file_linger.c) */
	bool is_direct_refused; /* the file system took O_DIRECT at open and refused it later */
	unsigned depth;		/* slices posted and not returned */
	unsigned nparts;	/* under way */
	uint64_t seq;
	struct mc_list pending, flying, rest; /* mc_file_work.link */
	struct mc_list done;		      /* mc_slice.link */
	struct mc_list spare;		      /* mc_file_part.io.link */
	_Atomic uint64_t moved; /* relaxed: written by the owner, read by the watchdog */
	struct mc_file_work works[MC_FILE_DEPTH];
	struct mc_file_part parts[MC_FILE_PARTS];
	/* dev->mu; of lanes that are kept */
	struct mc_list link; /* dev->lingering */
	uint64_t id;	     /* never used again in this device: the retirement token */
	bool is_lingering;   /* its operations are under way */
	bool is_closed;	     /* by its owner */
};

struct mc_file_dev {
	struct mc_xdev base; /* must be first */
	uint64_t fork_gen;
	const struct mc_disk *disk;
	struct mc_disk_aio *aio;
	/* Guards what follows. A leaf, but for the queues' own. */
	pthread_mutex_t mu;
	pthread_cond_t news;	  /* the device closes, or the thread is gone */
	struct mc_list lingering; /* mc_file_lane.link */
	uint64_t last_id;
	bool has_thread;
	bool is_left; /* closed: the thread frees it */
};

/**
 * Length of the operation at the front of [off, off + len), at most MC_FILE_CHUNK; len >= 1. Pure.
 * @param ret_is_direct  O_DIRECT may carry it
 */
uint32_t mc_file_cut(const struct mc_file_align *al, uint64_t off, uintptr_t mem, uint64_t len,
		     bool *ret_is_direct);

/** NULL is allowed. Frees the queue, which has nothing under way, and what the lane holds. */
void mc_file_lane_free(struct mc_file_lane *l);

/* ---- file_linger.c ---- */

void mc_file_dev_init(struct mc_file_dev *dev);
/** The vtable's. Returns at once also while lanes linger. */
void mc_file_dev_close(struct mc_xdev *dev);
/** The vtable's: whether the operations of a kept lane have ended. */
int mc_file_dev_retire(struct mc_xdev *dev, const uint8_t *token, size_t token_len,
		       uint64_t *ret_acked);
/** The lane's queue could not be drained: it is the device's. @return length of the token */
size_t mc_file_linger(struct mc_file_lane *l, uint8_t *ret_token);
/** The owner is through with a kept lane. @return true: it is the owner's to free */
bool mc_file_linger_close(struct mc_file_lane *l);
/** Whether the kernel keeps so much of a file that no other lane should meet the same. */
bool mc_file_linger_is_full(struct mc_file_dev *dev, const struct mc_file_seg *seg);

#endif
