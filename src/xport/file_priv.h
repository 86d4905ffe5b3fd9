/*
 * file_priv.h: what the files of the file transport share: device, segment, lane.
 *
 * A slice on a lane is a *work*; it is cut into *parts*, ranges of which one operation at a time is
 * under way. The lane (file.c) owns both and decides; a queue of the disk (io/disk.h) only runs
 * operations and reports each.
 */
#ifndef MC_XPORT_FILE_PRIV_H
#define MC_XPORT_FILE_PRIV_H

#include <stdatomic.h>

#include "io/disk.h"
#include "xport/file.h"

#define MC_FILE_DEPTH 64u	 /* slices on a lane */
#define MC_FILE_PARTS 64u	 /* parts under way on a lane */
#define MC_FILE_CHUNK (1u << 20) /* bytes of an operation */
#define MC_FILE_TRIES_MAX 16u	 /* of one operation that the kernel interrupted */

/** What O_DIRECT needs here. All powers of two. */
struct mc_file_align {
	bool is_direct_ok;
	uint32_t unit; /* of file offset and length: whole pages, so that no page is reached both
			  ways at once */
	uint32_t mem;  /* of addresses */
};

/** Constant after open, but for the file behind it. */
struct mc_file_seg {
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
	const struct mc_file_seg *seg;
	struct mc_disk_queue *queue;
	int event_fd;
	bool is_broken;		/* aborted, or the queue failed */
	bool is_aborting;	/* nothing is started any more */
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
};

struct mc_file_dev {
	struct mc_xdev base; /* must be first */
	uint64_t fork_gen;
	const struct mc_disk *disk;
	struct mc_disk_aio *aio;
};

/**
 * Length of the operation at the front of [off, off + len), at most MC_FILE_CHUNK; len >= 1. Pure.
 * @param ret_is_direct  O_DIRECT may carry it
 */
uint32_t mc_file_cut(const struct mc_file_align *al, uint64_t off, uintptr_t mem, uint64_t len,
		     bool *ret_is_direct);

#endif
