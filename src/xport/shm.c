/*
 * shm.c: the shared-memory device: opening and closing, and telling peers of regions through the
 * control page.
 */
#include "xport/shm.h"

#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "base/fork.h"
#include "base/log.h"
#include "base/sync.h"
#include "xport/shm_priv.h"
#include "xport/synclane.h"

#define HUGE_LEN ((uint64_t)2 << 20)
#define CLOSE_WAIT_NS (5 * MC_NS_PER_S)
#define WAIT_LOG_NS MC_NS_PER_S
#define WAIT_GAP_NS (500 * MC_NS_PER_MS) /* who waits looks more often */

/* ---- regions ---- */

static struct mc_shm_dev *dev_of_listener(struct mc_region_listener *l)
{
	return mc_container_of(l, struct mc_shm_dev, listener);
}

/* process_vm_* is twice as fast on huge pages; where they come by request only, request them. */
static void thp_ask(const struct mc_region_desc *desc)
{
	uint64_t start = (desc->addr + HUGE_LEN - 1) & ~(HUGE_LEN - 1);
	uint64_t end = (desc->addr + desc->len) & ~(HUGE_LEN - 1);

	if (start < desc->addr || end <= start)
		return;
	/* A wish: what cannot have huge pages stays as it is. */
	(void)madvise((void *)(uintptr_t)start, end - start, MADV_HUGEPAGE);
}

static int on_add(struct mc_region_listener *l, const struct mc_region_info *info)
{
	struct mc_shm_dev *d = dev_of_listener(l);

	if (mc_fork_is_child(d->fork_gen))
		return -MC_E_FORKED;
	if (info->desc.kind == MC_MEM_HOST && d->is_thp_wanted)
		thp_ask(&info->desc);
	d->ids_used = mc_max(d->ids_used, info->id + 1);
	mc_shm_page_publish(d->page, info->id, info->gen, info->desc.rights);
	return 0;
}

static void on_revoke(struct mc_region_listener *l, const struct mc_region_info *info)
{
	struct mc_shm_dev *d = dev_of_listener(l);

	if (mc_fork_is_child(d->fork_gen))
		return;
	d->era++;
	/* Not in the page, where a peer could change it. */
	atomic_store_explicit(&d->eras[info->id], d->era, memory_order_relaxed);
	mc_shm_page_revoke(d->page, info->id, d->era);
}

/* A process that was stopped in the middle of a copy is waited for, however long: its next
 * instruction would write to memory that its owner believes to have back. Whoever waits shall know
 * for whom. */
static void wait_log(struct mc_shm_dev *d, pid_t pid)
{
	uint64_t now_ns = mc_now_ns(), since_ns = atomic_load(&d->waits_since_ns);

	if (now_ns - atomic_exchange(&d->waits_seen_ns, now_ns) > WAIT_GAP_NS)
		atomic_store(&d->waits_since_ns, now_ns); /* another wait */
	else if (now_ns - since_ns >= WAIT_LOG_NS &&
		 atomic_compare_exchange_strong(&d->waits_since_ns, &since_ns, now_ns))
		mc_log_warn("unregistering waits for a peer's copy: is it stopped?", "pid=%d",
			    (int)pid);
}

static bool era_is_quiet(struct mc_shm_dev *d, uint64_t era)
{
	pid_t pid = 0;
	uint32_t tag;

	if (atomic_load_explicit(&d->nclients, memory_order_acquire) == 0)
		return true;
	if (mc_shm_page_is_quiet(d->page, era, &tag))
		return true;
	if (mc_shm_serve_reap(d, tag, &pid))
		return mc_shm_page_is_quiet(d->page, era, &tag);
	wait_log(d, pid);
	return false;
}

static bool is_quiet(struct mc_region_listener *l, const struct mc_region_info *info)
{
	struct mc_shm_dev *d = dev_of_listener(l);

	if (mc_fork_is_child(d->fork_gen))
		return true;
	return era_is_quiet(d, atomic_load_explicit(&d->eras[info->id], memory_order_relaxed));
}

static bool is_thp_by_request(void)
{
	char text[64] = "";
	FILE *f = fopen("/sys/kernel/mm/transparent_hugepage/enabled", "re");

	if (!f)
		return false;
	if (!fgets(text, sizeof(text), f))
		text[0] = '\0';
	(void)fclose(f);
	return strstr(text, "[madvise]") != NULL;
}

/* ---- life ---- */

/* No peer may touch anything any more; wait for those that do. */
static void dev_revoke_all(struct mc_shm_dev *d)
{
	uint64_t give_up = mc_now_ns() + CLOSE_WAIT_NS;

	atomic_store_explicit(&d->page->epoch, 0, memory_order_release);
	for (uint32_t id = 0; id < d->ids_used; id++)
		mc_shm_page_revoke(d->page, id, d->era + 1);
	d->era++;
	while (!era_is_quiet(d, d->era)) {
		if (mc_now_ns() > give_up) {
			mc_log_warn("closed while a peer is copying", "path=%s", d->path);
			return;
		}
		nanosleep(&(struct timespec){.tv_nsec = (long)(100 * MC_NS_PER_US)}, NULL);
	}
}

static void shm_dev_close(struct mc_xdev *dev)
{
	struct mc_shm_dev *d = mc_shm_dev_of(dev);
	bool is_child = mc_fork_is_child(d->fork_gen);

	if (d->path[0] && !is_child)
		(void)unlink(d->path); /* gone already is as good */
	if (d->page && !is_child)
		dev_revoke_all(d);
	mc_shm_serve_stop(d);
	if (d->is_listening && !is_child)
		mc_region_table_unlisten(d->env.regions, &d->listener);
	mc_shm_heap_close(d->heap);
	if (!is_child)
		mc_shm_page_unmap(d->page);
	mc_fd_close(&d->page_fd);
	mc_loop_close(d->loop);
	pthread_mutex_destroy(&d->lock);
	mc_free(d->eras);
	mc_free(d);
}

static const struct mc_xport_ops shm_ops = {
    .name = "shm",
    .caps = MC_XCAP_VISIBLE | MC_XCAP_ORDERED | MC_XCAP_SIGNAL | MC_XCAP_SYNC | MC_XCAP_MULTI_FRAG,
    .frags_max = MC_SLICE_FRAGS_MAX,
    .len_max = (uint64_t)1 << 30, /* so that unregistering never waits long for one slice */
    .depth_max = MC_SYNC_DEPTH,
    .dev_close = shm_dev_close,
    .lane_open = mc_shm_lane_open,
    .post = mc_shm_lane_post,
    .poll = mc_sync_lane_poll,
    .arm = mc_sync_lane_arm,
    .progress = mc_sync_lane_progress,
    .abort = mc_sync_lane_abort,
    .retire = mc_sync_dev_retire,
    .lane_close = mc_shm_lane_close,
};

static void dev_init(struct mc_shm_dev *d, const struct mc_xdev_env *env,
		     const struct mc_shm_opts *opts)
{
	d->dev.ops = &shm_ops;
	d->env = *env;
	if (opts)
		d->opts = *opts;
	memcpy(d->nonce, env->nonce, sizeof(d->nonce));
	d->page_fd = d->listen.fd = d->spare_fd = -1;
	d->fork_gen = mc_fork_gen();
	d->era = 1;
	d->is_thp_wanted = is_thp_by_request();
	d->listener.on_add = on_add;
	d->listener.on_revoke = on_revoke;
	d->listener.is_quiet = is_quiet;
	mc_list_init(&d->clients);
}

int mc_shm_dev_open(const struct mc_xdev_env *env, const struct mc_shm_opts *opts,
		    struct mc_xdev **ret_dev, struct mc_diag *diag)
{
	struct mc_shm_dev *d;
	int rc;

	mc_assert(env->epoch != 0);
	d = mc_calloc(1, sizeof(*d));
	if (!d)
		return -MC_E_NOMEM;
	dev_init(d, env, opts);
	if (pthread_mutex_init(&d->lock, NULL) != 0) {
		mc_free(d);
		return -MC_E_LIMIT;
	}
	rc = -MC_E_NOMEM;
	d->eras = mc_calloc(MC_REGIONS_MAX, sizeof(*d->eras)); /* sparse: pages come with use */
	if (!d->eras)
		goto fail;
	rc = mc_loop_open("mc-shm", env->clk, &d->loop);
	if (rc == 0)
		rc = mc_loop_start(d->loop);
	if (rc < 0)
		goto fail;
	rc = mc_shm_heap_open(&d->heap);
	if (rc < 0)
		goto fail;
	rc = mc_shm_page_open(env->epoch, &d->page, &d->page_fd, diag);
	if (rc < 0) {
		mc_diag_wrap(diag, "control page");
		goto fail;
	}
	rc = mc_shm_path_listen(d->opts.dir, d->path, &d->listen.fd, diag);
	if (rc < 0) {
		d->path[0] = '\0';
		goto fail;
	}
	mc_region_table_listen(env->regions, &d->listener);
	d->is_listening = true;
	rc = mc_shm_serve_start(d);
	if (rc < 0)
		goto fail;
	*ret_dev = &d->dev;
	return 0;
fail:
	if (diag && !diag->text[0])
		mc_diag_set(diag, "%s", mc_err_text(rc));
	mc_diag_wrap(diag, "shared-memory transport");
	shm_dev_close(&d->dev);
	return rc;
}

const char *mc_shm_dev_socket_path(const struct mc_xdev *dev)
{
	return mc_shm_dev_of(dev)->path;
}

/* ---- memory ---- */

int mc_shm_alloc(struct mc_xdev *dev, size_t len, void **ret_ptr)
{
	return mc_shm_heap_alloc(mc_shm_dev_of(dev)->heap, len, ret_ptr);
}

int mc_shm_free(struct mc_xdev *dev, void *ptr)
{
	return mc_shm_heap_free(mc_shm_dev_of(dev)->heap, ptr);
}

void mc_shm_desc_fill(struct mc_xdev *dev, struct mc_region_desc *desc)
{
	if (desc->kind == MC_MEM_HOST &&
	    mc_shm_heap_where(mc_shm_dev_of(dev)->heap, desc->addr, desc->len, &desc->arena,
			      &desc->arena_off))
		desc->kind = MC_MEM_MEMFD;
}
