/*
 * file_seg.c: opening files as segments, and how a range is cut into operations.
 *
 * Operations by O_DIRECT and through the page cache run at the same time, so they never share a
 * page: a direct write drops the pages it covers and would lose what the other way has just put
 * there. The buffered one reads without read-ahead for the same reason: pages outside the
 * range asked for must not come back into the cache behind a direct write.
 */
#include "xport/file_priv.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "base/hash.h"
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
static void align_learn(const struct mc_disk_stat *st, struct mc_file_align *ret)
{
	uint32_t page = (uint32_t)sysconf(_SC_PAGESIZE);

	*ret = (struct mc_file_align){.is_direct_ok = true, .unit = page, .mem = page};
	if (is_pow2(st->block) && st->block <= UNIT_MAX)
		ret->unit = mc_max(ret->unit, st->block);
	if (!st->is_direct_known)
		return;
	if (!is_pow2(st->direct_mem) || !is_pow2(st->direct_off) ||
	    st->direct_off > MC_FILE_CHUNK) {
		ret->is_direct_ok = false; /* 0 means: not on this file */
		return;
	}
	ret->unit = mc_max(ret->unit, st->direct_off);
	ret->mem = st->direct_mem;
}

static int open_plain(const char *path, struct mc_file_seg *seg)
{
	const struct mc_disk *disk = seg->disk;
	int rc;

	seg->rights = MC_RIGHT_READ | MC_RIGHT_WRITE;
	rc = disk->open(disk, path, MC_DISK_READ | MC_DISK_WRITE | MC_DISK_RANDOM, 0, &seg->plain);
	if (rc == -EACCES || rc == -EPERM || rc == -EROFS || rc == -ETXTBSY) {
		seg->rights = MC_RIGHT_READ;
		rc = disk->open(disk, path, MC_DISK_READ | MC_DISK_RANDOM, 0, &seg->plain);
	}
	return rc < 0 ? mc_err_from_errno(-rc) : 0;
}

/* Open it a second time, the same file. A file system that refuses O_DIRECT is no error. */
static int open_direct(const char *path, const struct mc_disk_stat *st, struct mc_file_seg *seg)
{
	uint32_t flags = MC_DISK_READ | MC_DISK_DIRECT;
	struct mc_disk_stat again;
	int rc;

	align_learn(st, &seg->align);
	if (!seg->align.is_direct_ok)
		return 0;
	flags |= seg->rights & MC_RIGHT_WRITE ? MC_DISK_WRITE : 0;
	rc = seg->disk->open(seg->disk, path, flags, 0, &seg->direct);
	if (rc == -EMFILE || rc == -ENFILE || rc == -ENOMEM)
		return mc_err_from_errno(-rc);
	if (rc < 0) {
		mc_log_debug("no O_DIRECT", "path=%s cause=\"%s\"", path, strerror(-rc));
		seg->align.is_direct_ok = false;
		return 0;
	}
	rc = seg->disk->stat(seg->direct, &again);
	if (rc < 0)
		return mc_err_from_errno(-rc);
	return again.dev == st->dev && again.ino == st->ino ? 0 : -MC_E_BUSY;
}

/* Any name of one file gives the same. The two ends of the range have other uses. */
static uint64_t id_of(const struct mc_disk_stat *st)
{
	const uint64_t place[] = {st->dev, st->ino};

	uint64_t id = mc_hash64(place, sizeof(place), 0);

	return id == 0 || id == UINT64_MAX ? 1 : id;
}

static int open_both(const char *path, struct mc_file_seg *seg, struct mc_diag *diag)
{
	struct mc_disk_stat st;
	int rc = open_plain(path, seg), err;

	if (rc == 0) {
		err = seg->disk->stat(seg->plain, &st);
		rc = err < 0 ? mc_err_from_errno(-err) : 0;
	}
	if (rc == 0 && !st.is_regular && !st.is_block) {
		mc_diag_set(diag, "%s is neither a file nor a block device", path);
		return -MC_E_INVAL;
	}
	if (rc == 0) {
		seg->id = id_of(&st);
		rc = open_direct(path, &st, seg);
	}
	if (rc < 0)
		mc_diag_set(diag, "open %s: %s", path,
			    rc == -MC_E_BUSY ? "it was replaced meanwhile" : mc_err_text(rc));
	return rc;
}

int mc_file_seg_open(struct mc_xdev *dev, const char *path, struct mc_file_seg **ret_seg,
		     struct mc_diag *diag)
{
	static const char scheme[] = "file://";
	struct mc_file_seg *seg;
	int rc;

	if (strncmp(path, scheme, sizeof(scheme) - 1) == 0)
		path += sizeof(scheme) - 1;
	if (path[0] != '/') {
		mc_diag_set(diag, "\"%s\" is not an absolute path", path);
		return -MC_E_INVAL;
	}
	seg = mc_calloc(1, sizeof(*seg));
	if (!seg)
		return -MC_E_NOMEM;
	atomic_init(&seg->refs, 1);
	seg->disk = ((const struct mc_file_dev *)dev)->disk;
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
	/* release: what others did with it comes before its end */
	if (!seg || atomic_fetch_sub_explicit(&seg->refs, 1, memory_order_acq_rel) != 1)
		return;
	if (seg->plain)
		seg->disk->close(seg->plain);
	if (seg->direct)
		seg->disk->close(seg->direct);
	mc_free(seg);
}

uint64_t mc_file_seg_size(const struct mc_file_seg *seg)
{
	struct mc_disk_stat st;

	return seg->disk->stat(seg->plain, &st) < 0 ? 0 : st.len_bytes;
}

uint64_t mc_file_seg_id(const struct mc_file_seg *seg)
{
	return seg->id;
}

uint32_t mc_file_seg_rights(const struct mc_file_seg *seg)
{
	return seg->rights;
}
