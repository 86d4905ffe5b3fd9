/*
 * file.h: a local file or block device as a segment: offsets instead of addresses, the kernel
 * instead of a peer.
 *
 * A slice is cut into operations of at most 1 MiB that run side by side: the page-aligned middle of
 * a fragment by O_DIRECT, what is left at both ends (and everything, where memory or file system do
 * not permit O_DIRECT) through the page cache. io_uring carries them, one ring a lane; where it is
 * forbidden, four threads do. A short operation is continued, never reported as a whole one.
 *
 * What a completed write means: the kernel has the data and every later read of this machine sees
 * it. It does not mean that it is durable; whoever needs that calls fdatasync(2). A write past the
 * end makes the file longer. A slice that failed or was aborted may have moved in part: the
 * bytes that it names, in the file or in memory, are then undefined, all others are untouched.
 *
 * Operations that the kernel does not give back, as for a device that is away, are waited for for
 * 20 ms by abort(). Then their slices are MAYBE, reads as well: the kernel may still write to their
 * memory. retire() of this device, asked with the token, says when that is over. While 8 lanes of
 * a file are in that state, no other one opens on it (-MC_E_STALLED).
 *
 * Ends of a slice besides 0: -MC_E_RANGE (a read past the end, an offset past 2^63 - 1),
 * -MC_E_PERM (a write to a segment opened read-only), -MC_E_NOSPACE (file system or quota full, end
 * of a device), -MC_E_TOO_BIG (file size limit), -MC_E_IO, -MC_E_UNSUPPORTED (a signal).
 *
 * Local transfers only: a file served to peers goes through the engine's staged slices
 * (engine/stage.h), which use lanes of this transport at the file's owner.
 */
#ifndef MC_XPORT_FILE_H
#define MC_XPORT_FILE_H

#include "xport/xport.h"

struct mc_file_seg;

/**
 * Open the transport to files. env->regions and env->loops are not used: the other end is a file.
 * io_uring is tried here; MC_FILE_NO_URING=1 forbids it. Fragments carry a file offset in `raddr`;
 * `rr` is not looked at.
 * @return 0; -MC_E_NOMEM
 */
MC_MUST_CHECK int mc_file_dev_open(const struct mc_xdev_env *env, struct mc_xdev **ret_dev);
/** "io_uring", or "threads" and why. Lives as long as the device. */
const char *mc_file_dev_describe(const struct mc_xdev *dev);

/**
 * Open a file as a segment; a lane takes it as path->peer_state.
 *
 * @param path  "/absolute/path" or "file:///absolute/path": a regular file or a block device that
 * exists. Opened for reading and writing, for reading alone where writing is not permitted.
 * @param diag  says what is wrong with which path; may be NULL
 * @param ret_seg  the caller's; ended by mc_file_seg_close(); lanes on it may be open
 * @return 0; -MC_E_INVAL (not absolute, or neither file nor block device); -MC_E_NOENT; -MC_E_PERM;
 * -MC_E_BUSY (replaced while it was opened); -MC_E_LIMIT; -MC_E_NOMEM; -MC_E_IO
 *
 * Blocks; not on a loop. A segment may be used by lanes of several threads at once.
 */
MC_MUST_CHECK int mc_file_seg_open(struct mc_xdev *dev, const char *path,
				   struct mc_file_seg **ret_seg, struct mc_diag *diag);
/** NULL is allowed. Its file closes with the last lane on it. */
void mc_file_seg_close(struct mc_file_seg *seg);
/** Bytes of the file or device now; 0 when the system cannot tell. Any thread. */
uint64_t mc_file_seg_size(const struct mc_file_seg *seg);
/** The same number for every name of one file; neither 0 nor UINT64_MAX. */
uint64_t mc_file_seg_id(const struct mc_file_seg *seg);
/** enum mc_right bits. */
uint32_t mc_file_seg_rights(const struct mc_file_seg *seg);

#endif
