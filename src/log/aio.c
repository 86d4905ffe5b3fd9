/*
 * aio.c: operations of the disk to their end. What comes back short goes on where it stopped, at a
 * block; no progress is an error, so a disk that gives bytes in driblets ends, too.
 */
#include "log/priv.h"

#include <errno.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fork.h"
#include "base/log.h"
#include "io/sock.h"

#define TRIES_MAX 3u /* of an operation that was interrupted */

static void end(struct mc_dlog_slot *slot, int rc)
{
	slot->log->nflying--;
	slot->on_end(slot, rc);
}

static void start_rest(struct mc_dlog_slot *slot)
{
	struct mc_dlog *log = slot->log;

	slot->io.mem = slot->mem ? slot->mem + slot->done : NULL; /* a sync has none */
	slot->io.len = slot->len - slot->done;
	slot->io.off = slot->off + slot->done;
	log->queue->ops->start(log->queue, &slot->io);
}

static void on_done(void *user, struct mc_disk_io *io, int res)
{
	struct mc_dlog_slot *slot = (struct mc_dlog_slot *)io;
	struct mc_dlog *log = user;
	uint32_t done;

	if ((res == -EINTR || res == -EAGAIN) && slot->tries++ < TRIES_MAX && !log->is_broken) {
		start_rest(slot);
		return;
	}
	if (res < 0) {
		end(slot, mc_err_from_errno(-res));
		return;
	}
	done = slot->done + (uint32_t)mc_min((uint32_t)res, slot->len - slot->done);
	if (io->op == MC_DISK_OP_SYNC || done == slot->len) {
		end(slot, 0);
		return;
	}
	done =
	    (uint32_t)(mc_rec_round(slot->off + done + 1, MC_REC_BLOCK) - MC_REC_BLOCK - slot->off);
	if (done <= slot->done || done > slot->len || log->is_broken) {
		end(slot, io->op == MC_DISK_OP_READ ? -MC_E_CORRUPT : -MC_E_NOSPACE);
		return;
	}
	slot->done = done;
	start_rest(slot);
}

int mc_dlog_aio_open(struct mc_dlog *log, const char *no_uring, unsigned depth)
{
	struct mc_disk_queue_conf conf = {.depth = depth, .on_done = on_done, .user = log};
	int rc;

	log->depth = depth;
	log->slots = mc_calloc(depth, sizeof(*log->slots));
	if (!log->slots)
		return -MC_E_NOMEM;
	for (unsigned i = 0; i < depth; i++) {
		log->slots[i].log = log;
		mc_list_push_back(&log->slots_free, &log->slots[i].io.link);
	}
	log->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (log->event_fd < 0)
		return mc_err_from_errno(errno);
	rc = log->disk->aio_open(log->disk, no_uring, &log->aio);
	if (rc < 0)
		return rc;
	conf.event_fd = log->event_fd;
	return log->aio->ops->queue_open(log->aio, &conf, &log->queue);
}

static void bufs_free(struct mc_dlog_bufs *b)
{
	while (b->nfree > 0)
		mc_free(b->free[--b->nfree]);
}

void mc_dlog_aio_close(struct mc_dlog *log)
{
	if (log->queue)
		log->queue->ops->close(log->queue);
	if (log->aio)
		log->aio->ops->close(log->aio);
	mc_fd_close(&log->event_fd);
	bufs_free(&log->smalls);
	bufs_free(&log->bounces);
	mc_free(log->slots);
}

static struct mc_dlog_bufs *bufs_of(struct mc_dlog *log, enum mc_dlog_buf buf)
{
	return buf == MC_DLOG_BUF_SMALL ? &log->smalls : &log->bounces;
}

static uint8_t *buf_get(struct mc_dlog *log, enum mc_dlog_buf buf)
{
	struct mc_dlog_bufs *b = bufs_of(log, buf);
	bool is_small = buf == MC_DLOG_BUF_SMALL;
	uint8_t *bytes;

	if (b->nfree > 0)
		return b->free[--b->nfree];
	if (b->made == (is_small ? MC_DLOG_SMALLS : MC_DLOG_BOUNCES))
		return NULL;
	bytes = mc_aligned_alloc(MC_REC_BLOCK, is_small ? MC_DLOG_SMALL : MC_DLOG_IO);
	b->made += bytes != NULL;
	return bytes;
}

struct mc_dlog_slot *mc_dlog_slot_get(struct mc_dlog *log, enum mc_dlog_buf buf)
{
	struct mc_dlog_slot *slot;
	uint8_t *bounce = NULL;
	struct mc_list *link;

	if (mc_list_is_empty(&log->slots_free))
		return NULL;
	if (buf != MC_DLOG_BUF_NONE) {
		bounce = buf_get(log, buf);
		if (!bounce)
			return NULL;
	}
	link = mc_list_pop_front(&log->slots_free);
	slot = (struct mc_dlog_slot *)mc_list_entry(link, struct mc_disk_io, link);
	slot->bounce = bounce;
	slot->buf = buf;
	return slot;
}

void mc_dlog_slot_put(struct mc_dlog_slot *slot)
{
	struct mc_dlog *log = slot->log;
	struct mc_dlog_bufs *b = bufs_of(log, slot->buf);

	if (slot->bounce)
		b->free[b->nfree++] = slot->bounce;
	slot->bounce = NULL;
	mc_list_push_back(&log->slots_free, &slot->io.link);
}

void mc_dlog_io_start(struct mc_dlog_slot *slot, enum mc_disk_op op, struct mc_disk_file *file,
		      void *mem, uint32_t len, uint64_t off)
{
	slot->io.op = op;
	slot->io.file = file;
	slot->mem = mem;
	slot->len = len;
	slot->off = off;
	slot->done = 0;
	slot->tries = 0;
	slot->log->nflying++;
	start_rest(slot);
}

void mc_dlog_aio_turn(struct mc_dlog *log, uint64_t block_ns)
{
	int rc;

	if (log->is_broken || log->nflying == 0)
		return;
	rc = log->queue->ops->reap(log->queue, block_ns);
	if (rc == 0)
		rc = log->queue->ops->flush(log->queue);
	if (rc == 0)
		return;
	log->is_broken = true;
	mc_dlog_set_read_only(log, "its queue of operations broke", rc);
	while (!log->queue->ops->drain(log->queue, MC_NS_PER_S))
		mc_log_error("operations of the disk do not end", "path=%s", log->path);
}
