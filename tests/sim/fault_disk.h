/*
 * fault_disk.h: a disk in front of another one, for tests. It numbers the calls; hooks make them
 * fail, come back short or show another result, and operations of queues can be held back.
 *
 * Hooks run in the thread that calls the disk, or owns the queue.
 */
#ifndef TESTS_SIM_FAULT_DISK_H
#define TESTS_SIM_FAULT_DISK_H

#include <stdatomic.h>

#include "io/disk.h"

enum fault_op {
	FAULT_OPEN,
	FAULT_READ,
	FAULT_WRITE,
	FAULT_SYNC,
	FAULT_TRUNCATE,
	FAULT_ALLOCATE,
	FAULT_STAT,
	FAULT_RENAME,
	FAULT_UNLINK,
	FAULT_SYNC_DIR,
	FAULT_MKDIR,
	FAULT_LIST,
	FAULT_LOCK,
	FAULT_AIO,   /* aio_open */
	FAULT_QUEUE, /* queue_open */
	FAULT_OP_COUNT,
};

struct fault_call {
	enum fault_op op;
	uint64_t nr;	/* 0, 1, … in the order of calls */
	uint32_t flags; /* that the file was opened with */
	uint64_t off;
	size_t len;
};

struct fault_disk {
	struct mc_disk disk; /* must be first */
	const struct mc_disk *inner;
	uint64_t calls; /* so far */
	/* This call fails and is not made, unless UINT64_MAX. */
	uint64_t fail_nr;
	int fail_errno;
	/* Operations of queues begin after so many reaps. */
	unsigned held_reaps;
	/* While set, operations of queues that were started meanwhile begin not, and nothing takes
	 * them back, as with a device that is away. Then they are made: late. */
	_Atomic bool is_away;
	_Atomic unsigned aios; /* open; 0: nothing of the disk is touched any more by their users */
	/** May make call->len of reads and writes smaller. NULL: nothing. @return 0: make the call;
	 * -errno: it fails and is not made */
	int (*before)(struct fault_disk *f, struct fault_call *call);
	/** Reads, writes and syncs that were made. NULL: res. @return what the caller sees */
	int (*after)(struct fault_disk *f, const struct fault_call *call, int res);
};

/** Without faults. `inner` stays the caller's. */
void fault_disk_init(struct fault_disk *f, const struct mc_disk *inner);

#endif
