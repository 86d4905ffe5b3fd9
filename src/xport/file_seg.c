/*
 * file_seg.c: opening files as segments, and how a range is cut into operations.
 *
 * Operations by O_DIRECT and through the page cache run at the same time, so they never share a
 * page: a direct write drops the pages it covers and would lose what the other way has just put
 * there. The buffered descriptor reads without read-ahead for the same reason: pages outside the
 * range asked for must not come back into the cache behind a direct write.
 */
#include "xport/file_priv.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"

#define UNIT_MAX 65536u /* larger block sizes are a hint about speed, not the cache's unit */

uint32_t mc_file_cut(const struct mc_file_align *al, uint64_t off, uintptr_t mem, uint64_t len,
		     bool *ret_is_direct)
{
	uint64_t most = mc_min(len, (uint64_t)MC_FILE_CHUNK);
	uint64_t head = (0 - off) & (al->unit - 1);

	*ret_is_direct = false;
	if (!al->is_direct_ok || ((mem + head) & (al->mem - 1)) != 0 || len < head + al->unit)
		return (uint32_t)most;
	if (head > 0)
		return (uint32_t)head;
	*ret_is_direct = true;
	return (uint32_t)(most & ~(uint64_t)(al->unit - 1));
}

static bool is_pow2(uint32_t n)
{
	return n > 0 && (n & (n - 1)) == 0;
}

/* What O_DIRECT needs on this file: the kernel says (since 6.1), or a page for everything. */
static void align_learn(int fd, struct mc_file_align *ret)
{
	uint32_t page = (uint32_t)sysconf(_SC_PAGESIZE);
	struct statx stx;

	*ret = (struct mc_file_align){.is_direct_ok = true, .unit = page, .mem = page};
	if (statx(fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS | STATX_DIOALIGN, &stx) != 0)
		return;
	if (is_pow2(stx.stx_blksize) && stx.stx_blksize <= UNIT_MAX)
		ret->unit = mc_max(ret->unit, stx.stx_blksize);
	if (!(stx.stx_mask & STATX_DIOALIGN))
		return;
	if (!is_pow2(stx.stx_dio_mem_align) || !is_pow2(stx.stx_dio_offset_align) ||
	    stx.stx_dio_offset_align > MC_FILE_CHUNK) {
		ret->is_direct_ok = false; /* 0 means: not on this file */
		return;
	}
	ret->unit = mc_max(ret->unit, stx.stx_dio_offset_align);
	ret->mem = stx.stx_dio_mem_align;
}

/* O_NONBLOCK: a FIFO without a writer would keep us here. Taken off again, as io_uring would pass
 * it on to reads of files. */
static int open_plain(const char *path, struct mc_file_seg *seg)
{
	static const int flags = O_CLOEXEC | O_NOCTTY | O_NONBLOCK;

	seg->rights = MC_RIGHT_READ | MC_RIGHT_WRITE;
	seg->fd = open(path, O_RDWR | flags);
	if (seg->fd < 0 &&
	    (errno == EACCES || errno == EPERM || errno == EROFS || errno == ETXTBSY)) {
		seg->rights = MC_RIGHT_READ;
		seg->fd = open(path, O_RDONLY | flags);
	}
	return seg->fd < 0 ? mc_err_from_errno(errno) : 0;
}

/* Open the second descriptor, of the same file. A file system that refuses is no error. */
static int open_direct(const char *path, const struct stat *st, struct mc_file_seg *seg)
{
	int mode = seg->rights & MC_RIGHT_WRITE ? O_RDWR : O_RDONLY;
	struct stat again;

	align_learn(seg->fd, &seg->align);
	if (!seg->align.is_direct_ok)
		return 0;
	seg->direct_fd = open(path, mode | O_DIRECT | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
	if (seg->direct_fd < 0) {
		if (errno == EMFILE || errno == ENFILE || errno == ENOMEM)
			return mc_err_from_errno(errno);
		mc_log_debug("no O_DIRECT", "path=%s cause=\"%s\"", path, strerror(errno));
		seg->align.is_direct_ok = false;
		return 0;
	}
	if (fstat(seg->direct_fd, &again) != 0)
		return mc_err_from_errno(errno);
	return again.st_dev == st->st_dev && again.st_ino == st->st_ino ? 0 : -MC_E_BUSY;
}

static int blocking(int fd)
{
	int flags = fcntl(fd, F_GETFL);

	if (flags < 0 || fcntl(fd, F_SETFL, flags & ~O_NONBLOCK) < 0)
		return mc_err_from_errno(errno);
	return 0;
}

static int open_both(const char *path, struct mc_file_seg *seg, struct mc_diag *diag)
{
	struct stat st;
	int rc = open_plain(path, seg);

	if (rc < 0) {
		mc_diag_set(diag, "open %s: %s", path, mc_err_text(rc));
		return rc;
	}
	if (fstat(seg->fd, &st) != 0)
		return mc_err_from_errno(errno);
	if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode)) {
		mc_diag_set(diag, "%s is neither a file nor a block device", path);
		return -MC_E_INVAL;
	}
	rc = open_direct(path, &st, seg);
	if (rc == 0)
		rc = blocking(seg->fd);
	if (rc == 0 && seg->direct_fd >= 0)
		rc = blocking(seg->direct_fd);
	if (rc < 0) {
		mc_diag_set(diag, "open %s: %s", path,
			    rc == -MC_E_BUSY ? "it was replaced meanwhile" : mc_err_text(rc));
		return rc;
	}
	(void)posix_fadvise(seg->fd, 0, 0, POSIX_FADV_RANDOM); /* see above; advice only */
	return 0;
}

int mc_file_seg_open(struct mc_xdev *dev, const char *path, struct mc_file_seg **ret_seg,
		     struct mc_diag *diag)
{
	static const char scheme[] = "file://";
	struct mc_file_seg *seg;
	int rc;

	(void)dev;
	if (strncmp(path, scheme, sizeof(scheme) - 1) == 0)
		path += sizeof(scheme) - 1;
	if (path[0] != '/') {
		mc_diag_set(diag, "\"%s\" is not an absolute path", path);
		return -MC_E_INVAL;
	}
	seg = mc_calloc(1, sizeof(*seg));
	if (!seg)
		return -MC_E_NOMEM;
	seg->fd = seg->direct_fd = -1;
	rc = open_both(path, seg, diag);
	if (rc < 0)
		goto fail;
	mc_log_debug("file segment", "path=%s rights=%u direct=%d unit=%u mem=%u", path,
		     seg->rights, seg->align.is_direct_ok, seg->align.unit, seg->align.mem);
	*ret_seg = seg;
	return 0;
fail:
	mc_file_seg_close(seg);
	return rc;
}

void mc_file_seg_close(struct mc_file_seg *seg)
{
	if (!seg)
		return;
	mc_fd_close(&seg->fd);
	mc_fd_close(&seg->direct_fd);
	mc_free(seg);
}

uint64_t mc_file_seg_size(const struct mc_file_seg *seg)
{
	/* For a block device fstat says 0. Nobody uses the descriptor's position. */
	off_t end = lseek(seg->fd, 0, SEEK_END);

	return end < 0 ? 0 : (uint64_t)end;
}

uint32_t mc_file_seg_rights(const struct mc_file_seg *seg)
{
	return seg->rights;
}
