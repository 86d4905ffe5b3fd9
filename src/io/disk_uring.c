/*
 * disk_uring.c: operations by io_uring, one ring a queue, the files that it is for registered.
 *
 * Every completion signals the queue's eventfd. The flag that would silence the eventfd while
 * nobody waits is not used: the kernel has no full barrier between storing the completion and
 * reading the flag, so a wake-up could be lost.
 */
#include "io/disk_priv.h"

#include <errno.h>
#include <liburing.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/mem.h"

#define NEEDED (IORING_FEAT_EXT_ARG | IORING_FEAT_NODROP) /* Linux 5.11 */

struct mc_disk_ring {
	struct io_uring io;
	struct mc_list flying; /* mc_disk_io.link: started, not yet reported */
};

static struct mc_disk_real_queue *queue_of(struct mc_disk_queue *queue)
{
	return (struct mc_disk_real_queue *)queue;
}

/* errno of a call that liburing made. Not ready and interrupted are no errors: the next call finds
 * the rest. */
static int io_error(int rc)
{
	if (rc >= 0 || rc == -EAGAIN || rc == -EBUSY || rc == -EINTR || rc == -ETIME)
		return 0;
	return mc_err_from_errno(-rc);
}

static int ring_init(struct io_uring *io, unsigned depth, const char **ret_step)
{
	int rc;

	*ret_step = "io_uring_setup";
	rc = io_uring_queue_init(depth, io, 0);
	if (rc < 0)
		return rc;
	if ((io->features & NEEDED) == NEEDED)
		return 0;
	*ret_step = "kernel before 5.11";
	io_uring_queue_exit(io);
	return -ENOSYS;
}

static int ring_register(struct mc_disk_real_queue *q, struct io_uring *io)
{
	int fds[MC_DISK_QUEUE_FILES_MAX], rc = 0;

	for (unsigned i = 0; i < q->conf.nfiles; i++)
		fds[i] = ((const struct mc_disk_real_file *)q->conf.files[i])->fd;
	if (q->conf.nfiles > 0)
		rc = io_uring_register_files(io, fds, q->conf.nfiles);
	return rc < 0 ? rc : io_uring_register_eventfd(io, q->conf.event_fd);
}

int mc_disk_uring_open(struct mc_disk_real_queue *q)
{
	struct mc_disk_ring *r = mc_calloc(1, sizeof(*r));
	const char *step;
	int rc;

	if (!r)
		return -MC_E_NOMEM;
	mc_list_init(&r->flying);
	rc = ring_init(&r->io, q->conf.depth, &step);
	if (rc < 0)
		goto out;
	rc = ring_register(q, &r->io);
	if (rc < 0) {
		io_uring_queue_exit(&r->io);
		goto out;
	}
	q->ring = r;
	return 0;
out:
	mc_free(r);
	return mc_err_from_errno(-rc);
}

static void ring_close(struct mc_disk_queue *queue)
{
	struct mc_disk_real_queue *q = queue_of(queue);

	io_uring_queue_exit(&q->ring->io);
	mc_free(q->ring);
	mc_free(q);
}

/* The place of a registered file, or -1. */
static int place_of(const struct mc_disk_real_queue *q, const struct mc_disk_file *file)
{
	for (unsigned i = 0; i < q->conf.nfiles; i++)
		if (q->conf.files[i] == file)
			return (int)i;
	return -1;
}

static void ring_start(struct mc_disk_queue *queue, struct mc_disk_io *op)
{
	struct mc_disk_real_queue *q = queue_of(queue);
	struct io_uring_sqe *sqe = io_uring_get_sqe(&q->ring->io);
	int place = place_of(q, op->file);
	int fd = place >= 0 ? place : ((const struct mc_disk_real_file *)op->file)->fd;

	mc_assert(sqe); /* as many as conf.depth */
	mc_assert(op->len <= MC_DISK_IO_MAX);
	if (op->op == MC_DISK_OP_READ)
		io_uring_prep_read(sqe, fd, op->mem, op->len, op->off);
	else if (op->op == MC_DISK_OP_WRITE)
		io_uring_prep_write(sqe, fd, op->mem, op->len, op->off);
	else
		io_uring_prep_fsync(sqe, fd, IORING_FSYNC_DATASYNC);
	if (place >= 0)
		io_uring_sqe_set_flags(sqe, IOSQE_FIXED_FILE);
	io_uring_sqe_set_data(sqe, op);
	q->under_way++;
	mc_list_push_back(&q->ring->flying, &op->link);
}

static int ring_flush(struct mc_disk_queue *queue)
{
	struct io_uring *io = &queue_of(queue)->ring->io;

	return io_uring_sq_ready(io) == 0 ? 0 : io_error(io_uring_submit(io));
}

static void report(struct mc_disk_real_queue *q)
{
	struct io_uring *io = &q->ring->io;
	struct io_uring_cqe *cqe;

	while (io_uring_peek_cqe(io, &cqe) == 0) {
		struct mc_disk_io *op = io_uring_cqe_get_data(cqe);
		int res = cqe->res;

		io_uring_cqe_seen(io, cqe);
		mc_list_del(&op->link);
		mc_disk_queue_done(q, op, res);
	}
}

static int ring_reap(struct mc_disk_queue *queue, uint64_t block_ns)
{
	struct mc_disk_real_queue *q = queue_of(queue);
	struct io_uring *io = &q->ring->io;
	struct io_uring_cqe *cqe;
	struct __kernel_timespec ts;
	int rc = 0;

	if (block_ns > 0 && io_uring_cq_ready(io) == 0) {
		block_ns = mc_min(block_ns, MC_DISK_WAIT_MAX_S * MC_NS_PER_S);
		ts.tv_sec = (int64_t)(block_ns / MC_NS_PER_S);
		ts.tv_nsec = (long long)(block_ns % MC_NS_PER_S);
		rc = io_error(io_uring_submit_and_wait_timeout(io, &cqe, 1, &ts, NULL));
	}
	report(q);
	return rc;
}

static bool ring_is_ready(struct mc_disk_queue *queue)
{
	const struct io_uring *io = &queue_of(queue)->ring->io;

	return io_uring_cq_ready(io) > 0 || io_uring_sq_ready(io) > 0;
}

/*
 * What waits in the kernel is cancelled; what the device has is waited for. Operations that the
 * kernel never took are reported as cancelled, which makes this end even where a sandbox now
 * forbids io_uring_enter: completions appear without it.
 */
static bool ring_drain(struct mc_disk_queue *queue, uint64_t wait_ns)
{
	struct mc_disk_real_queue *q = queue_of(queue);
	struct io_uring *io = &q->ring->io;
	struct io_uring_sync_cancel_reg all = {.flags = IORING_ASYNC_CANCEL_ALL |
							IORING_ASYNC_CANCEL_ANY};
	uint64_t now_ns = mc_now_ns(), until_ns = mc_time_after(now_ns, wait_ns);
	struct io_uring_cqe *cqe;
	struct mc_disk_io *op;

	report(q);
	if (q->under_way > io_uring_sq_ready(io))
		(void)io_uring_register_sync_cancel(io, &all); /* kernels before 6.0: only waits */
	report(q);
	for (; q->under_way > io_uring_sq_ready(io); now_ns = mc_now_ns()) {
		long nap_ns = (long)mc_min(until_ns - now_ns, (uint64_t)MC_DISK_DRAIN_NS);
		struct __kernel_timespec ts = {.tv_nsec = nap_ns};

		if (now_ns >= until_ns)
			return false;
		if (io_error(io_uring_wait_cqe_timeout(io, &cqe, &ts)) < 0)
			(void)nanosleep(&(struct timespec){.tv_nsec = nap_ns}, NULL);
		report(q);
	}
	mc_list_each (op, &q->ring->flying, link) {
		mc_list_del(&op->link);
		mc_disk_queue_done(q, op, -ECANCELED);
	}
	return true;
}

static const struct {
	int error;
	const char *hint;
} hints[] = {
    {EPERM, " (kernel.io_uring_disabled, or a seccomp filter)"},
    {ENOSYS, " (seccomp filter, or a kernel without it)"},
    {ENOMEM, " (RLIMIT_MEMLOCK)"},
};

bool mc_disk_uring_probe(char *ret_why, size_t cap)
{
	const char *step, *hint = "";
	struct io_uring io;
	int rc = ring_init(&io, 1, &step);

	if (rc == 0) {
		io_uring_queue_exit(&io);
		return true;
	}
	for (size_t i = 0; i < MC_ARRAY_LEN(hints); i++)
		if (hints[i].error == -rc)
			hint = hints[i].hint;
	(void)snprintf(ret_why, cap, "%s: %s%s", step, strerror(-rc), hint);
	return false;
}

const struct mc_disk_queue_ops mc_disk_uring_ops = {
    .close = ring_close,
    .start = ring_start,
    .flush = ring_flush,
    .reap = ring_reap,
    .is_ready = ring_is_ready,
    .drain = ring_drain,
};
