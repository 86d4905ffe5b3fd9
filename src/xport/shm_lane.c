/*
 * shm_lane.c: the copies. A lane has a seat in the peer's control page; between entering and
 * leaving it the regions it has checked cannot go.
 *
 * Slices are worked off in groups: fragments in mapped memory are copied at once, the others are
 * collected and moved by one process_vm_* call, which costs 0.5 us less per further fragment than
 * calls of their own. A group is small enough that whoever unregisters never waits long.
 */
#include <errno.h>
#include <string.h>
#include <sys/uio.h>

#include "base/fork.h"
#include "base/log.h"
#include "xport/copy.h"
#include "xport/shm_priv.h"
#include "xport/synclane.h"

#define GROUP_BYTES ((uint64_t)4 << 20)
#define VECS_MAX MC_SLICE_FRAGS_MAX

/* A fragment that waits for process_vm_*: where its status goes. */
struct vec_home {
	uint32_t slice, frag;
};

struct shm_lane {
	struct mc_sync_lane sync;
	struct mc_shm_peer *peer;
	uint32_t seat;
	/* The group at work. */
	enum mc_op op;
	enum mc_copy_hint hint;
	struct mc_slice **slices;
	uint32_t nvecs;
	struct iovec local[VECS_MAX], remote[VECS_MAX];
	struct vec_home home[VECS_MAX];
};

static struct shm_lane *lane_of(struct mc_xlane *lane)
{
	return mc_container_of(lane, struct shm_lane, sync.lane);
}

/* ---- checks, inside the seat ---- */

static int range_check(struct mc_shm_peer *p, const struct mc_remote_region *rr, uint64_t raddr,
		       uint64_t len, enum mc_right right)
{
	uint64_t off = raddr - rr->addr;
	int rc;

	rc = mc_shm_page_check(p->page, rr->id, rr->gen, right);
	if (rc < 0)
		return rc;
	if (len == 0 || raddr < rr->addr || off >= rr->len || len > rr->len - off)
		return -MC_E_RANGE;
	if (rr->kind != MC_MEM_HOST && rr->kind != MC_MEM_MEMFD)
		return -MC_E_UNSUPPORTED;
	return 0;
}

static int slice_check(struct mc_shm_peer *p, struct mc_slice *s)
{
	enum mc_right right = s->op == MC_OP_READ ? MC_RIGHT_READ : MC_RIGHT_WRITE;
	const struct mc_frag *f;
	int rc;

	s->bad_frag = 0;
	s->moved = 0;
	if (s->nfrags > MC_SLICE_FRAGS_MAX)
		return -MC_E_TOO_BIG;
	for (uint32_t i = 0; i < s->nfrags; i++) {
		f = &s->frags[i];
		rc = range_check(p, f->rr, f->raddr, f->len, right);
		if (rc < 0) {
			s->bad_frag = i;
			return rc;
		}
	}
	if (!s->signal.rr)
		return 0;
	if (s->signal.raddr % sizeof(uint64_t) != 0)
		return -MC_E_INVAL;
	return range_check(p, s->signal.rr, s->signal.raddr, sizeof(uint64_t), MC_RIGHT_WRITE);
}

/* ---- through a mapping ---- */

/* The mapped address of a checked range, pinned. @return 0; < 0: not this way */
static int map_range(struct mc_shm_peer *p, const struct mc_remote_region *rr, uint64_t raddr,
		     uint64_t len, uint8_t **ret_at)
{
	uint64_t off;

	if (rr->kind != MC_MEM_MEMFD ||
	    __builtin_add_overflow(rr->arena_off, raddr - rr->addr, &off))
		return -MC_E_UNAVAILABLE;
	return mc_shm_map_pin(p, rr->arena, off, len, ret_at);
}

/* @param off  of the fragment in its slice */
static void copy_frag(const struct shm_lane *l, struct mc_slice *s, uint64_t off, void *dst,
		      const void *src, size_t len)
{
	if (s->tap)
		s->tap->copy(s, off, dst, src, len);
	else
		mc_copy(dst, src, len, l->hint);
}

static int copy_mapped(struct shm_lane *l, struct mc_slice *s, const struct mc_frag *f,
		       uint64_t off)
{
	uint8_t *at;
	int rc;

	rc = map_range(l->peer, f->rr, f->raddr, f->len, &at);
	if (rc < 0)
		return rc;
	if (s->op == MC_OP_READ) {
		copy_frag(l, s, off, f->local, at, f->len);
	} else {
		if (f->len >= MC_SHM_WARM_LEN)
			mc_shm_map_warm(l->peer, f->rr->arena, at, f->len);
		copy_frag(l, s, off, at, f->local, f->len);
	}
	mc_shm_map_unpin(l->peer, f->rr->arena);
	mc_sync_lane_moved(&l->sync, s, f->len);
	return 0;
}

/* ---- through the kernel ---- */

static int vm_error(struct mc_shm_peer *p, int err)
{
	switch (err) {
	case ESRCH:
		atomic_store_explicit(&p->is_dead, true, memory_order_relaxed);
		return -MC_E_PEER_DEAD;
	case EPERM:
	case ENOSYS:
		atomic_store_explicit(&p->is_vm_ok, false, memory_order_relaxed);
		mc_log_debug("process_vm access was taken away", "peer=%s errno=%d", p->name, err);
		return -MC_E_UNAVAILABLE;
	default:
		/* EFAULT: one of the two ranges is not mapped memory any more. */
		return mc_err_from_errno(err);
	}
}

static ssize_t vm_call(struct shm_lane *l, uint32_t first)
{
	uint32_t n = l->nvecs - first;

	if (l->op == MC_OP_READ)
		return process_vm_readv(l->peer->pid, l->local + first, n, l->remote + first, n, 0);
	return process_vm_writev(l->peer->pid, l->local + first, n, l->remote + first, n, 0);
}

/* Book `bytes` against the vectors from `first` on. @return the first that is not done; it may be
 * partly done */
static uint32_t vecs_book(struct shm_lane *l, uint32_t first, size_t bytes)
{
	size_t part;

	for (; first < l->nvecs && bytes > 0; first++) {
		part = mc_min(bytes, l->local[first].iov_len);
		mc_sync_lane_moved(&l->sync, l->slices[l->home[first].slice], part);
		bytes -= part;
		if (part < l->local[first].iov_len) {
			l->local[first].iov_base = (uint8_t *)l->local[first].iov_base + part;
			l->remote[first].iov_base = (uint8_t *)l->remote[first].iov_base + part;
			l->local[first].iov_len -= part;
			l->remote[first].iov_len -= part;
			break;
		}
	}
	return first;
}

/* The slice of a vector fails, and with it its later vectors. @return the next slice's first vector
 */
static uint32_t vecs_fail(struct shm_lane *l, uint32_t first, int status)
{
	uint32_t slice = l->home[first].slice;

	l->slices[slice]->status = status;
	l->slices[slice]->bad_frag = l->home[first].frag;
	while (first < l->nvecs && l->home[first].slice == slice)
		first++;
	return first;
}

/* Move all collected vectors. Each round ends at least one vector or gets at least one byte
 * further. */
static void vecs_flush(struct shm_lane *l)
{
	uint32_t first = 0;
	ssize_t n;

	while (first < l->nvecs) {
		n = vm_call(l, first);
		if (n > 0)
			first = vecs_book(l, first, (size_t)n);
		else if (n == 0 || errno != EINTR)
			first = vecs_fail(l, first, n == 0 ? -MC_E_IO : vm_error(l->peer, errno));
	}
	l->nvecs = 0;
}

static void vec_add(struct shm_lane *l, uint32_t slice, uint32_t frag)
{
	const struct mc_frag *f = &l->slices[slice]->frags[frag];

	mc_assert(l->nvecs < VECS_MAX);
	l->local[l->nvecs] = (struct iovec){f->local, f->len};
	l->remote[l->nvecs] = (struct iovec){(void *)(uintptr_t)f->raddr, f->len}; /* the peer's */
	l->home[l->nvecs] = (struct vec_home){slice, frag};
	l->nvecs++;
}

/* ---- signal ---- */

static int signal_store(struct shm_lane *l, const struct mc_signal *sig)
{
	struct iovec local = {(void *)(uintptr_t)&sig->value, sizeof(sig->value)}; /* only read */
	struct iovec remote = {(void *)(uintptr_t)sig->raddr, sizeof(sig->value)}; /* the peer's */
	uint8_t *at;

	if (map_range(l->peer, sig->rr, sig->raddr, sizeof(sig->value), &at) == 0) {
		/* release: pairs with the acquire of whoever waits for the word in the peer */
		atomic_store_explicit((_Atomic uint64_t *)(void *)at, sig->value,
				      memory_order_release);
		mc_shm_map_unpin(l->peer, sig->rr->arena);
		return 0;
	}
	if (!atomic_load_explicit(&l->peer->is_vm_ok, memory_order_relaxed))
		return -MC_E_UNAVAILABLE;
	/* Data that went through a mapping must be there first, whatever order the kernel copies
	 * in. */
	mc_copy_fence();
	if (process_vm_writev(l->peer->pid, &local, 1, &remote, 1, 0) != sizeof(sig->value))
		return vm_error(l->peer, errno);
	return 0;
}

/* ---- groups ---- */

/* Copy or collect the fragments of a checked slice. @return 0, or why one cannot be reached either
 * way */
static int slice_run(struct shm_lane *l, uint32_t i)
{
	struct mc_slice *s = l->slices[i];
	uint32_t nvecs_before = l->nvecs;
	uint64_t off = 0;

	for (uint32_t k = 0; k < s->nfrags; off += s->frags[k++].len) {
		if (s->frags[k].rr->kind == MC_MEM_MEMFD &&
		    copy_mapped(l, s, &s->frags[k], off) == 0)
			continue;
		if (!atomic_load_explicit(&l->peer->is_vm_ok, memory_order_relaxed)) {
			s->bad_frag = k;
			l->nvecs = nvecs_before;
			return -MC_E_UNAVAILABLE;
		}
		vec_add(l, i, k);
	}
	return 0;
}

/* Does slice i still fit into a group that holds `bytes` already? */
static bool group_takes(const struct shm_lane *l, const struct mc_slice *s, uint64_t bytes)
{
	return s->op == l->op && bytes < GROUP_BYTES && s->nfrags <= VECS_MAX - l->nvecs;
}

/* Work off slices from `first` on as one group. @return the first slice of the next */
static uint32_t group_run(struct shm_lane *l, uint32_t first, uint32_t n)
{
	struct mc_shm_peer *p = l->peer;
	struct mc_slice *s;
	uint64_t bytes = 0;
	uint32_t i = first, k;
	bool is_last = false;

	l->op = l->slices[first]->op;
	mc_shm_seat_enter(p->page, l->seat);
	do {
		s = l->slices[i];
		s->status = slice_check(p, s);
		if (s->status == 0)
			s->status = slice_run(l, i);
		bytes += s->len;
		is_last = s->signal.rr !=
			  NULL; /* which comes after all data: only the last may have one */
		i++;
	} while (i < n && !is_last && group_takes(l, l->slices[i], bytes));
	if (l->nvecs > 0)
		vecs_flush(l);
	if (is_last && s->status == 0)
		s->status = signal_store(l, &s->signal);
	mc_shm_seat_exit(p->page, l->seat);
	for (k = first; k < i; k++)
		mc_sync_lane_end(&l->sync, l->slices[k], l->slices[k]->status);
	return i;
}

int mc_shm_lane_post(struct mc_xlane *lane, struct mc_slice **slices, unsigned n)
{
	struct shm_lane *l = lane_of(lane);
	uint64_t total = 0;
	uint32_t i;

	if (mc_shm_peer_is_dead(l->peer))
		return mc_fork_is_child(l->peer->fork_gen) ? -MC_E_FORKED : -MC_E_PEER_DEAD;
	n = mc_min(n, MC_SYNC_DEPTH - l->sync.ndone);
	for (i = 0; i < n; i++)
		total += slices[i]->len;
	l->hint = mc_copy_hint_of(total);
	l->slices = slices;
	for (i = 0; i < n;)
		i = group_run(l, i, n);
	return (int)n;
}

/* ---- life ---- */

int mc_shm_lane_open(struct mc_xdev *dev, const struct mc_xpath *path, struct mc_xlane **ret_lane)
{
	struct mc_shm_peer *p = path->peer_state;
	struct shm_lane *l;
	int rc;

	mc_assert(&p->d->dev == dev);
	if (mc_fork_is_child(p->fork_gen))
		return -MC_E_FORKED;
	if (mc_shm_peer_is_dead(p))
		return -MC_E_PEER_DEAD;
	l = mc_calloc(1, sizeof(*l));
	if (!l)
		return -MC_E_NOMEM;
	mc_sync_lane_init(&l->sync, dev->ops);
	l->peer = p;
	rc = mc_shm_seat_claim(p->page, p->tag, &l->seat);
	if (rc < 0) {
		mc_free(l);
		return rc;
	}
	atomic_fetch_add_explicit(&p->nlanes, 1, memory_order_relaxed);
	*ret_lane = &l->sync.lane;
	return 0;
}

void mc_shm_lane_close(struct mc_xlane *lane)
{
	struct shm_lane *l = lane_of(lane);

	if (!mc_fork_is_child(l->peer->fork_gen)) {
		mc_shm_seat_release(l->peer->page, l->seat);
		atomic_fetch_sub_explicit(&l->peer->nlanes, 1, memory_order_relaxed);
	}
	mc_free(l);
}
