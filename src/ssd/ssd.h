/*
 * ssd.h: the SSD tier of a node, or of a client with a segment: a disk log (log/dlog.h) behind an
 * owner, and the one thread that has it.
 *
 * The log also keeps the owner's id, so that the master knows it again.
 */
#ifndef MC_SSD_SSD_H
#define MC_SSD_SSD_H

#include <stdint.h>

#include "base/err.h"
#include "owner/owner.h"

struct mc_ssd;

struct mc_ssd_place {
	char path[1024];
	uint64_t bytes; /* of all its files; 0: nine tenths of what is free */
};
/** Where the disk is to be. @param path  ""; else instead of MOONCAKE_OFFLOAD_FILE_STORAGE_PATH
 * @return 0; -MC_E_INVAL with a diag that names the variable */
MC_MUST_CHECK int mc_ssd_place(const char *path, struct mc_ssd_place *ret, struct mc_diag *diag);

struct mc_ssd_stats {
	uint64_t live_bytes, segment_bytes, quota_bytes; /* of segments: all files */
	uint64_t bad_records, bad_reads, compactions;
	bool is_read_only;
};

/**
 * Open the directory, or make it, and find what is in it.
 * @param quota  bytes of all files; 0, or more than the file system has: nine tenths of that
 * @return 0; < 0 with a diag: codes of mc_dlog_open(), -MC_E_INVAL (a quota below 64 MiB)
 */
MC_MUST_CHECK int mc_ssd_open(const char *path, uint64_t quota, struct mc_diag *diag,
			      struct mc_ssd **ret);
/** For mc_owner_opts. */
uint64_t mc_ssd_owner_id(const struct mc_ssd *ssd);
uint64_t mc_ssd_capacity(const struct mc_ssd *ssd);
/** Highest epoch of what is there. */
uint64_t mc_ssd_epoch(const struct mc_ssd *ssd);
/** Tell the owner, which has not started, what is there; from now on work for it. @return 0;
 * -MC_E_NOMEM; -MC_E_LIMIT; -MC_E_IO */
MC_MUST_CHECK int mc_ssd_start(struct mc_ssd *ssd, struct mc_owner *owner);
/** What is sealed goes to the disk, for at most 5 s; then no work for the owner any more. Before
 * the owner closes. NULL is allowed. */
void mc_ssd_stop(struct mc_ssd *ssd);
/** NULL is allowed. */
void mc_ssd_close(struct mc_ssd *ssd);
/** As of at most a second ago. */
void mc_ssd_stats(struct mc_ssd *ssd, struct mc_ssd_stats *ret);

#endif
