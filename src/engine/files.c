/*
 * files.c: see files.h. A file's range is moved over lanes of the file transport, which knows
 * O_DIRECT and io_uring; a few stay open with the file, because opening one is dearer than using
 * it.
 */
#include "engine/files.h"

#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"
#include "xport/file.h"

#define IDLE_LANES_MAX 4u
#define POLL_NS (50 * MC_NS_PER_MS)

struct mc_file_mem {
	struct mc_list link; /* mc_engine.files, under files_mu */
	uint64_t addr, len, map_len;
	uint64_t at; /* in the file */
	struct mc_file_seg *seg;
	struct mc_xlane *idle[IDLE_LANES_MAX]; /* under files_mu, as nidle */
	unsigned nidle;
};

int mc_files_dev(struct mc_engine *eng, struct mc_xdev **ret_dev)
{
	int rc = 0;

	pthread_mutex_lock(&eng->publish_mu);
	if (!eng->file) {
		struct mc_xdev_env env = mc_engine_xdev_env(eng);

		rc = mc_file_dev_open(&env, &eng->file);
	}
	*ret_dev = eng->file;
	pthread_mutex_unlock(&eng->publish_mu);
	return rc;
}

bool mc_files_any(const struct mc_engine *eng)
{
	return atomic_load_explicit(&eng->nfiles, memory_order_relaxed) > 0;
}

/* ---- registration ---- */

static void file_free(struct mc_file_mem *f)
{
	while (f->nidle > 0) {
		struct mc_xlane *lane = f->idle[--f->nidle];

		lane->ops->lane_close(lane);
	}
	mc_file_seg_close(f->seg);
	if (f->addr)
		(void)munmap((void *)(uintptr_t)f->addr, f->map_len);
	mc_free(f);
}

/* Addresses that are nobody else's. */
static int reserve(struct mc_file_mem *f)
{
	uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
	void *at;

	if (__builtin_add_overflow(f->len, page - 1, &f->map_len))
		return -MC_E_INVAL;
	f->map_len &= ~(page - 1);
	at = mmap(NULL, f->map_len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (at == MAP_FAILED)
		return -MC_E_NOMEM;
	f->addr = (uintptr_t)at;
	return 0;
}

static int file_open(struct mc_engine *eng, const char *path, unsigned rights,
		     struct mc_file_mem *f)
{
	struct mc_diag diag = {.text = ""};
	struct mc_xdev *dev;
	int rc = mc_files_dev(eng, &dev);

	if (rc == 0)
		rc = mc_file_seg_open(dev, path, &f->seg, &diag);
	if (rc == 0 && (rights & MC_MEM_REMOTE_WRITE) &&
	    !(mc_file_seg_rights(f->seg) & MC_RIGHT_WRITE)) {
		mc_diag_set(&diag, "%s cannot be written", path);
		rc = -MC_E_PERM;
	}
	if (rc < 0)
		mc_log_warn("file not registered", "cause=\"%s\"",
			    diag.text[0] ? diag.text : mc_err_text(rc));
	return rc;
}

/* In the list first: a peer may name the region as soon as it is there. */
static int file_show(struct mc_engine *eng, struct mc_file_mem *f, unsigned rights)
{
	struct mc_region_desc d = {.addr = f->addr,
				   .len = f->len,
				   .kind = MC_MEM_FILE,
				   .rights = rights << MC_RIGHT_STAGE_SHIFT,
				   .location = "*"};
	struct mc_region_info info;
	int rc;

	pthread_mutex_lock(&eng->files_mu);
	mc_list_push_back(&eng->files, &f->link);
	pthread_mutex_unlock(&eng->files_mu);
	atomic_fetch_add_explicit(&eng->nfiles, 1, memory_order_relaxed);
	rc = mc_region_add(eng->regions, &d, &info);
	if (rc == 0)
		return 0;
	pthread_mutex_lock(&eng->files_mu);
	mc_list_del(&f->link);
	pthread_mutex_unlock(&eng->files_mu);
	atomic_fetch_sub_explicit(&eng->nfiles, 1, memory_order_relaxed);
	return rc;
}

int mc_mem_reg_file(struct mc_engine *eng, const char *path, uint64_t offset, uint64_t len,
		    unsigned rights, void **ret_addr)
{
	struct mc_file_mem *f;
	uint64_t end;
	int rc;

	if (mc_engine_is_forked(eng))
		return -MC_E_FORKED;
	if (!path || !ret_addr || len == 0 || rights == 0 ||
	    (rights & ~(unsigned)(MC_MEM_REMOTE_READ | MC_MEM_REMOTE_WRITE)) ||
	    __builtin_add_overflow(offset, len, &end) || end > INT64_MAX)
		return -MC_E_INVAL;
	f = mc_calloc(1, sizeof(*f));
	if (!f)
		return -MC_E_NOMEM;
	mc_list_init(&f->link);
	f->at = offset;
	f->len = len;
	rc = file_open(eng, path, rights, f);
	if (rc == 0)
		rc = reserve(f);
	if (rc == 0)
		rc = file_show(eng, f, rights);
	if (rc < 0) {
		file_free(f);
		return rc;
	}
	*ret_addr = (void *)(uintptr_t)f->addr;
	return 0;
}

/* Under files_mu. */
static struct mc_file_mem *file_find(struct mc_engine *eng, uint64_t addr)
{
	struct mc_file_mem *f;

	mc_list_each (f, &eng->files, link)
		if (f->addr == addr)
			return f;
	return NULL;
}

void mc_files_drop(struct mc_engine *eng, uint64_t addr, uint64_t len)
{
	struct mc_file_mem *f;

	if (!mc_files_any(eng))
		return;
	pthread_mutex_lock(&eng->files_mu);
	f = file_find(eng, addr);
	if (f && f->len == len)
		mc_list_del(&f->link);
	else
		f = NULL; /* other memory of the same beginning */
	pthread_mutex_unlock(&eng->files_mu);
	if (!f)
		return;
	atomic_fetch_sub_explicit(&eng->nfiles, 1, memory_order_relaxed);
	file_free(f);
}

/* ---- use ---- */

int mc_files_pin(struct mc_engine *eng, uint32_t region, uint32_t gen, uint64_t off, uint64_t len,
		 uint32_t right, struct mc_file_mem **ret_file)
{
	struct mc_file_mem *f;
	void *at;
	int rc = mc_region_pin(eng->regions, region, gen, off, len, (enum mc_right)right, &at);

	if (rc < 0)
		return rc;
	pthread_mutex_lock(&eng->files_mu);
	f = file_find(eng, (uintptr_t)at - off);
	pthread_mutex_unlock(&eng->files_mu);
	mc_assert(f); /* such rights are files' alone */
	*ret_file = f;
	return 0;
}

void mc_files_unpin(struct mc_engine *eng, uint32_t region)
{
	mc_region_unpin(eng->regions, region);
}

uint64_t mc_files_at(const struct mc_file_mem *f, uint64_t off)
{
	return f->at + off;
}

static int lane_take(struct mc_engine *eng, struct mc_file_mem *f, struct mc_xlane **ret_lane)
{
	struct mc_xpath path = {.peer_name = "file", .peer_state = f->seg};

	pthread_mutex_lock(&eng->files_mu);
	*ret_lane = f->nidle > 0 ? f->idle[--f->nidle] : NULL;
	pthread_mutex_unlock(&eng->files_mu);
	return *ret_lane ? 0 : eng->file->ops->lane_open(eng->file, &path, ret_lane);
}

static void lane_give(struct mc_engine *eng, struct mc_file_mem *f, struct mc_xlane *lane)
{
	pthread_mutex_lock(&eng->files_mu);
	if (f->nidle < IDLE_LANES_MAX) {
		f->idle[f->nidle++] = lane;
		lane = NULL;
	}
	pthread_mutex_unlock(&eng->files_mu);
	if (lane)
		lane->ops->lane_close(lane);
}

/* @return 0: s->status says how it ended; < 0: the lane is broken, and nothing is under way */
static int slice_move(struct mc_xdev *dev, struct mc_xlane *lane, struct mc_slice *s)
{
	struct mc_slice *done = NULL;
	struct mc_list left;
	uint8_t token[MC_XPORT_TOKEN_MAX];
	uint64_t acked;
	size_t len;
	int rc = lane->ops->post(lane, &s, 1);

	if (rc < 0)
		return rc;
	mc_assert(rc == 1); /* nothing else is on it */
	do {
		rc = lane->ops->poll(lane, POLL_NS, &done, 1);
	} while (rc == 0);
	if (rc > 0)
		return 0;
	mc_list_init(&left);
	len = lane->ops->abort(lane, &left, token);
	/* What the kernel keeps is about the buffer, or the file: neither is anybody else's yet. */
	while (len > 0 && dev->ops->retire(dev, token, len, &acked) == -MC_E_AGAIN)
		(void)nanosleep(&(struct timespec){.tv_nsec = POLL_NS}, NULL);
	return rc;
}

int mc_files_move(struct mc_engine *eng, struct mc_file_mem *f, enum mc_op op, uint64_t off,
		  void *mem, uint64_t len)
{
	struct mc_frag frag = {.local = mem, .raddr = f->at + off, .len = len};
	struct mc_slice s = {.op = op, .nfrags = 1, .frags = &frag, .len = len};
	struct mc_xlane *lane;
	int rc = lane_take(eng, f, &lane);

	if (rc < 0)
		return rc;
	mc_list_init(&s.link);
	rc = slice_move(eng->file, lane, &s);
	if (rc < 0) {
		lane->ops->lane_close(lane);
		return rc;
	}
	lane_give(eng, f, lane);
	return s.status;
}
