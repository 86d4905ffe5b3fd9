/*
 * file_uring.c: operations by io_uring, one ring a lane, both descriptors of the segment
 * registered.
 *
 * Every completion signals the lane's eventfd; arm() takes stale signals back. The flag that would
 * silence the eventfd while nobody waits is not used: the kernel has no full barrier between
 * storing the completion and reading the flag, so a wake-up could be lost.
 */
#include "xport/file_priv.h"

#include <errno.h>
#include <liburing.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/log.h"

#define NEEDED (IORING_FEAT_EXT_ARG | IORING_FEAT_NODROP) /* Linux 5.11 */
#define FILE_PLAIN 0					  /* places of the registered descriptors */
#define FILE_DIRECT 1
#define WAIT_MAX_S 3600u

struct mc_file_ring {
	struct io_uring io;
};

/* errno of a call that liburing made. Not ready and interrupted are no errors: the next call finds
 * the rest. */
static int io_error(int rc)
{
	if (rc >= 0 || rc == -EAGAIN || rc == -EBUSY || rc == -EINTR || rc == -ETIME)
		return 0;
	return mc_err_from_errno(-rc);
}

static int ring_init(struct io_uring *io, const char **ret_step)
{
	int rc;

	*ret_step = "io_uring_setup";
	rc = io_uring_queue_init(MC_FILE_PARTS, io, 0);
	if (rc < 0)
		return rc;
	if ((io->features & NEEDED) == NEEDED)
		return 0;
	*ret_step = "kernel before 5.11";
	io_uring_queue_exit(io);
	return -ENOSYS;
}

static void ring_close(struct mc_file_lane *l)
{
	if (!l->ring)
		return;
	io_uring_queue_exit(&l->ring->io);
	mc_free(l->ring);
	l->ring = NULL;
}

static int ring_open(struct mc_file_lane *l)
{
	int fds[] = {l->seg->fd, l->seg->direct_fd}; /* -1 leaves the place empty */
	struct mc_file_ring *r = mc_calloc(1, sizeof(*r));
	const char *step;
	int rc;

	if (!r)
		return -MC_E_NOMEM;
	rc = ring_init(&r->io, &step);
	if (rc < 0) {
		mc_free(r);
		return mc_err_from_errno(-rc);
	}
	l->ring = r;
	rc = io_uring_register_files(&r->io, fds, 2);
	if (rc == 0)
		rc = io_uring_register_eventfd(&r->io, l->event_fd);
	return rc < 0 ? mc_err_from_errno(-rc) : 0; /* the caller closes */
}

static void ring_start(struct mc_file_lane *l, struct mc_file_part *p)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&l->ring->io);
	int place = p->is_direct ? FILE_DIRECT : FILE_PLAIN;

	mc_assert(sqe); /* as many as parts */
	if (p->op == MC_OP_READ)
		io_uring_prep_read(sqe, place, p->mem, p->op_len, p->off);
	else
		io_uring_prep_write(sqe, place, p->mem, p->op_len, p->off);
	io_uring_sqe_set_flags(sqe, IOSQE_FIXED_FILE);
	io_uring_sqe_set_data(sqe, p);
}

static int ring_flush(struct mc_file_lane *l)
{
	if (io_uring_sq_ready(&l->ring->io) == 0)
		return 0;
	return io_error(io_uring_submit(&l->ring->io));
}

static void report(struct mc_file_lane *l)
{
	struct io_uring_cqe *cqe;

	while (io_uring_peek_cqe(&l->ring->io, &cqe) == 0) {
		struct mc_file_part *p = io_uring_cqe_get_data(cqe);
		int res = cqe->res;

		io_uring_cqe_seen(&l->ring->io, cqe);
		mc_file_part_done(l, p, res);
	}
}

static int ring_reap(struct mc_file_lane *l, uint64_t block_ns)
{
	struct io_uring *io = &l->ring->io;
	struct io_uring_cqe *cqe;
	struct __kernel_timespec ts;
	int rc = 0;

	if (block_ns > 0 && io_uring_cq_ready(io) == 0) {
		block_ns = mc_min(block_ns, WAIT_MAX_S * MC_NS_PER_S);
		ts.tv_sec = (int64_t)(block_ns / MC_NS_PER_S);
		ts.tv_nsec = (long long)(block_ns % MC_NS_PER_S);
		rc = io_error(io_uring_submit_and_wait_timeout(io, &cqe, 1, &ts, NULL));
	}
	report(l);
	return rc;
}

static bool ring_is_ready(struct mc_file_lane *l)
{
	return io_uring_cq_ready(&l->ring->io) > 0 || io_uring_sq_ready(&l->ring->io) > 0;
}

/*
 * What waits in the kernel is cancelled; what the device has, is waited for. Parts that the kernel
 * never took are only forgotten, which makes this end even where a sandbox now forbids
 * io_uring_enter: completions appear without it.
 */
static void ring_drain(struct mc_file_lane *l)
{
	struct io_uring *io = &l->ring->io;
	struct io_uring_sync_cancel_reg all = {.flags = IORING_ASYNC_CANCEL_ALL |
							IORING_ASYNC_CANCEL_ANY};
	struct __kernel_timespec ts = {.tv_nsec = MC_FILE_DRAIN_NS};
	const struct timespec nap = {.tv_nsec = MC_FILE_DRAIN_NS};
	struct io_uring_cqe *cqe;

	report(l);
	if (l->nparts > io_uring_sq_ready(io))
		(void)io_uring_register_sync_cancel(io, &all); /* kernels before 6.0: only waits */
	report(l);
	while (l->nparts > io_uring_sq_ready(io)) {
		if (io_error(io_uring_wait_cqe_timeout(io, &cqe, &ts)) < 0)
			(void)nanosleep(&nap, NULL);
		report(l);
	}
	l->nparts = 0;
}

static const struct {
	int error;
	const char *hint;
} hints[] = {
    {EPERM, " (kernel.io_uring_disabled, or a seccomp filter)"},
    {ENOSYS, " (seccomp filter, or a kernel without it)"},
    {ENOMEM, " (RLIMIT_MEMLOCK)"},
};

bool mc_file_uring_probe(char ret_why[MC_FILE_TEXT_MAX])
{
	const char *step, *hint = "";
	struct io_uring io;
	int rc = ring_init(&io, &step);

	if (rc == 0) {
		io_uring_queue_exit(&io);
		return true;
	}
	for (size_t i = 0; i < MC_ARRAY_LEN(hints); i++)
		if (hints[i].error == -rc)
			hint = hints[i].hint;
	(void)snprintf(ret_why, MC_FILE_TEXT_MAX, "%s: %s%s", step, strerror(-rc), hint);
	return false;
}

const struct mc_file_backend mc_file_uring = {
    .open = ring_open,
    .close = ring_close,
    .start = ring_start,
    .flush = ring_flush,
    .reap = ring_reap,
    .is_ready = ring_is_ready,
    .drain = ring_drain,
};
