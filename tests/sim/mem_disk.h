/*
 * mem_disk.h: a disk in memory that can lose its power. It keeps what is durable apart from what a
 * reader sees: writes, truncations and changes of the directory become durable by sync() and
 * sync_dir() alone; a cut drops the others, or keeps some of them.
 *
 * One directory, MEM_DISK_DIR. What a cut may keep: of a write that was not synced any of its
 * sectors, each by itself; of the directory the first so many of its changes, as a journal would.
 * Direct reads and writes must be aligned to sectors. Any thread.
 */
#ifndef TESTS_SIM_MEM_DISK_H
#define TESTS_SIM_MEM_DISK_H

#include "base/rand.h"
#include "io/disk.h"

#define MEM_DISK_DIR "/disk"
#define MEM_DISK_SECTOR 512u

struct mem_disk;

/** @param space_bytes  what all files may hold together; more is -ENOSPC */
struct mem_disk *mem_disk_open(uint64_t space_bytes);
/** After the last file and aio. */
void mem_disk_close(struct mem_disk *d);
const struct mc_disk *mem_disk_ops(struct mem_disk *d);

/**
 * The power fails and comes back: what was not durable is gone, or partly there. Files that are
 * open answer -EIO from now on.
 * @param rand  what of it stays; NULL: nothing
 */
void mem_disk_cut(struct mem_disk *d, struct mc_rand *rand);

#endif
