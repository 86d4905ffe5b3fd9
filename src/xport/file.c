/*
 * file.c: the lanes of the file transport: slices are cut into parts in post order, each part is
 * one operation at a time until its range is done, and a slice ends with its last part.
 *
 * Parts of a slice run side by side and in any order, as do slices. An operation that came back
 * short is continued where it stopped, by whichever way suits the new offset.
 */
#include "xport/file.h"

#include <errno.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/fork.h"
#include "base/log.h"
#include "base/opt.h"
#include "xport/file_priv.h"

struct file_conf {
	bool is_uring_off;
};

static const struct mc_opt conf_rows[] = {
    MC_OPT_BOOL(struct file_conf, is_uring_off, "MC_FILE_NO_URING", "0",
		"files are read and written by threads, not by io_uring"),
};

static struct mc_file_lane *lane_of(struct mc_xlane *x)
{
	return (struct mc_file_lane *)x;
}

static struct mc_file_dev *dev_of(struct mc_xdev *x)
{
	return (struct mc_file_dev *)x;
}

static bool is_childs(const struct mc_file_lane *l)
{
	return mc_fork_is_child(l->dev->fork_gen);
}

static void event_set(struct mc_file_lane *l)
{
	uint64_t one = 1;

	/* It can only fail when 2^64 - 2 signals wait, and then the descriptor is readable. */
	while (write(l->event_fd, &one, sizeof(one)) < 0 && errno == EINTR)
		;
}

static void event_clear(struct mc_file_lane *l)
{
	uint64_t count;

	while (read(l->event_fd, &count, sizeof(count)) < 0 && errno == EINTR)
		; /* EAGAIN: it was not set */
}

/* ---- works and parts ---- */

static void slice_end(struct mc_file_lane *l, struct mc_slice *s, int status)
{
	s->status = status;
	s->verdict = MC_SLICE_DONE;
	mc_list_push_back(&l->done, &s->link);
}

/* Nothing more is cut from it and nothing is under way. */
static void work_end(struct mc_file_lane *l, struct mc_file_work *w)
{
	w->s->bad_frag = w->bad_frag;
	slice_end(l, w->s, w->status);
	mc_list_del(&w->link);
	mc_list_push_back(&l->rest, &w->link);
}

/* Nothing more is cut from it. */
static void work_close(struct mc_file_lane *l, struct mc_file_work *w)
{
	mc_list_del(&w->link);
	mc_list_push_back(&l->flying, &w->link);
}

static void work_fail(struct mc_file_lane *l, struct mc_file_work *w, uint32_t frag, int rc)
{
	if (w->status == 0) {
		w->status = rc;
		w->bad_frag = frag;
	}
	work_close(l, w);
}

/* Skip what is used up. @return false: the whole slice is cut */
static bool work_has_more(struct mc_file_work *w)
{
	while (w->frag < w->s->nfrags && w->at == w->s->frags[w->frag].len) {
		w->frag++;
		w->at = 0;
	}
	return w->frag < w->s->nfrags;
}

static uint32_t cut(const struct mc_file_lane *l, uint64_t off, const uint8_t *mem, uint64_t len,
		    bool *ret_is_direct)
{
	struct mc_file_align al = l->seg->align;

	al.is_direct_ok = al.is_direct_ok && !l->is_direct_refused;
	return mc_file_cut(&al, off, (uintptr_t)mem, len, ret_is_direct);
}

static void part_start(struct mc_file_lane *l, struct mc_file_part *p)
{
	p->io.len = cut(l, p->io.off, p->io.mem, p->len, &p->is_direct);
	p->io.file = p->is_direct ? l->seg->direct : l->seg->plain;
	l->queue->ops->start(l->queue, &p->io);
}

/* Give the kernel as many parts as it may have. */
static void issue(struct mc_file_lane *l)
{
	struct mc_file_work *w;
	const struct mc_frag *f;
	struct mc_file_part *p;
	bool is_direct;

	while (!mc_list_is_empty(&l->spare)) {
		w = mc_list_first(&l->pending, struct mc_file_work, link);
		if (!w)
			return;
		f = &w->s->frags[w->frag];
		p = mc_list_entry(mc_list_pop_front(&l->spare), struct mc_file_part, io.link);
		p->work = w;
		p->frag = w->frag;
		p->io.op = w->s->op == MC_OP_READ ? MC_DISK_OP_READ : MC_DISK_OP_WRITE;
		p->io.off = f->raddr + w->at;
		p->io.mem = f->local + w->at;
		p->len = cut(l, p->io.off, p->io.mem, f->len - w->at, &is_direct);
		p->tries = 0;
		w->at += p->len;
		w->nparts++;
		l->nparts++;
		if (!work_has_more(w))
			work_close(l, w);
		part_start(l, p);
	}
}

static void part_moved(struct mc_file_lane *l, struct mc_file_part *p, uint32_t bytes)
{
	p->io.off += bytes;
	p->io.mem = (uint8_t *)p->io.mem + bytes;
	p->len -= bytes;
	p->tries = 0;
	p->work->s->moved += bytes;
	atomic_store_explicit(&l->moved,
			      atomic_load_explicit(&l->moved, memory_order_relaxed) + bytes,
			      memory_order_relaxed);
}

/* What a result means for the part. @return 1: go on; 0: its range is done; < 0: it failed */
static int part_judge(struct mc_file_lane *l, struct mc_file_part *p, int res)
{
	mc_assert(res <= 0 || (uint32_t)res <= p->io.len);
	if (res > 0) {
		part_moved(l, p, (uint32_t)res);
		return p->len > 0;
	}
	if (res == 0 && p->io.op == MC_DISK_OP_READ)
		return -MC_E_RANGE; /* the end of the file */
	if (res == -EINVAL && p->is_direct) {
		/* The file system promised O_DIRECT at open, but not for this. */
		l->is_direct_refused = true;
		return 1;
	}
	/* ECANCELED: the thread that had posted it ended; the kernel ends its operations with it.
	 */
	if (res == 0 || res == -EINTR || res == -EAGAIN || res == -ECANCELED)
		return ++p->tries < MC_FILE_TRIES_MAX ? 1 : -MC_E_IO;
	return mc_err_from_errno(-res);
}

/* The operation of a started part ended: continues it, or ends it. */
static void part_done(void *user, struct mc_disk_io *io, int res)
{
	struct mc_file_lane *l = user;
	struct mc_file_part *p = mc_container_of(io, struct mc_file_part, io);
	struct mc_file_work *w = p->work;
	int rc;

	if (l->is_kept) { /* its slice is not the lane's any more */
		l->nparts--;
		return;
	}
	rc = part_judge(l, p, res);
	if (rc > 0 && w->status == 0 && !l->is_aborting) {
		part_start(l, p);
		return;
	}
	l->nparts--;
	w->nparts--;
	mc_list_push_back(&l->spare, &p->io.link);
	if (rc < 0 && !l->is_aborting)
		work_fail(l, w, p->frag, rc);
	/* Otherwise there is more to cut, or abort() returns it. */
	if (w->nparts == 0 && (w->status < 0 || w->s->moved == w->s->len))
		work_end(l, w);
}

/* ---- operations of the vtable ---- */

/* What is wrong with a slice before anything moves. @return 0 or < 0 with s->bad_frag set */
static int slice_check(const struct mc_file_lane *l, struct mc_slice *s)
{
	enum mc_right right = s->op == MC_OP_READ ? MC_RIGHT_READ : MC_RIGHT_WRITE;
	uint64_t end, len = 0;

	s->bad_frag = 0;
	if (s->nfrags > MC_SLICE_FRAGS_MAX)
		return -MC_E_TOO_BIG;
	if (s->signal.rr)
		return -MC_E_UNSUPPORTED;
	if (!(l->seg->rights & right))
		return -MC_E_PERM;
	for (uint32_t i = 0; i < s->nfrags; i++) {
		s->bad_frag = i;
		if (__builtin_add_overflow(s->frags[i].raddr, s->frags[i].len, &end) ||
		    end > INT64_MAX)
			return -MC_E_RANGE;
		len += s->frags[i].len;
	}
	mc_assert(len == s->len);
	s->bad_frag = 0;
	return 0;
}

static void take(struct mc_file_lane *l, struct mc_slice *s)
{
	struct mc_file_work *w;
	int rc = slice_check(l, s);

	s->seq = ++l->seq;
	s->moved = 0;
	l->depth++;
	if (rc < 0 || s->len == 0) {
		slice_end(l, s, rc);
		return;
	}
	/* There is one: a work is in use only while its slice is not returned. */
	w = mc_list_entry(mc_list_pop_front(&l->rest), struct mc_file_work, link);
	w->s = s;
	w->frag = w->bad_frag = 0;
	w->at = 0;
	w->nparts = 0;
	w->status = 0;
	mc_list_push_back(&l->pending, &w->link);
	(void)work_has_more(w); /* true, as s->len > 0 */
}

static int file_post(struct mc_xlane *x, struct mc_slice **slices, unsigned n)
{
	struct mc_file_lane *l = lane_of(x);
	unsigned i;

	if (is_childs(l))
		return -MC_E_FORKED;
	if (l->is_broken)
		return -MC_E_CLOSED;
	n = mc_min(n, MC_FILE_DEPTH - l->depth);
	for (i = 0; i < n; i++)
		take(l, slices[i]);
	issue(l);
	(void)l->queue->ops->flush(l->queue); /* an error stays: poll() meets it again */
	return (int)n;
}

static unsigned collect(struct mc_file_lane *l, struct mc_slice **ret_done, unsigned max)
{
	struct mc_list *node;
	unsigned n = 0;

	while (n < max && (node = mc_list_pop_front(&l->done)))
		ret_done[n++] = mc_list_entry(node, struct mc_slice, link);
	l->depth -= n;
	return n;
}

/* Reports, then starts what there is room for now. */
static int turn(struct mc_file_lane *l, uint64_t block_ns)
{
	int rc = l->queue->ops->reap(l->queue, block_ns);

	if (rc < 0)
		return rc;
	issue(l);
	return l->queue->ops->flush(l->queue);
}

static int file_poll(struct mc_xlane *x, uint64_t block_ns, struct mc_slice **ret_done,
		     unsigned max)
{
	struct mc_file_lane *l = lane_of(x);
	int rc;

	if (is_childs(l))
		return -MC_E_FORKED;
	if (l->is_broken)
		return -MC_E_CLOSED;
	rc = turn(l, 0);
	if (rc == 0 && block_ns > 0 && l->nparts > 0 && mc_list_is_empty(&l->done))
		rc = turn(l, block_ns);
	if (rc < 0 && mc_list_is_empty(&l->done)) {
		l->is_broken = true;
		return rc;
	}
	return (int)collect(l, ret_done, max);
}

static void file_arm(struct mc_xlane *x, struct mc_xarm *ret_arm)
{
	struct mc_file_lane *l = lane_of(x);

	*ret_arm = (struct mc_xarm){.fd = l->event_fd, .events = POLLIN, .is_block_ok = true};
	if (is_childs(l))
		return;
	/* Signals of what was already taken go; what ends from here on, or has ended and waits,
	 * makes it readable again. The order matters: a backend stores first and signals then. */
	event_clear(l);
	if (!mc_list_is_empty(&l->done) || (!l->is_broken && l->queue->ops->is_ready(l->queue)))
		event_set(l);
}

static uint64_t file_progress(const struct mc_xlane *x)
{
	const struct mc_file_lane *l = (const struct mc_file_lane *)x;

	return atomic_load_explicit(&l->moved, memory_order_relaxed);
}

static void give_back(struct mc_file_lane *l, struct mc_list *works, struct mc_list *ret_left)
{
	struct mc_file_work *w;

	mc_list_each (w, works, link) {
		w->s->verdict = l->is_kept && w->nparts > 0 ? MC_SLICE_MAYBE : MC_SLICE_UNSENT;
		mc_list_push_back(ret_left, &w->s->link);
		mc_list_del(&w->link);
		mc_list_push_back(&l->rest, &w->link);
	}
}

static size_t file_abort(struct mc_xlane *x, struct mc_list *ret_left, uint8_t *ret_token)
{
	struct mc_file_lane *l = lane_of(x);

	l->is_broken = l->is_aborting = true;
	/* Nothing lands any more once nothing is under way: no fence needed, then. */
	if (!is_childs(l))
		l->is_kept = !l->queue->ops->drain(l->queue, MC_FILE_ABORT_NS);
	mc_list_splice_back(ret_left, &l->done);
	give_back(l, &l->flying, ret_left);
	give_back(l, &l->pending, ret_left);
	l->depth = 0;
	return l->is_kept ? mc_file_linger(l, ret_token) : 0;
}

void mc_file_lane_free(struct mc_file_lane *l)
{
	if (!l)
		return;
	mc_assert(l->nparts == 0 || is_childs(l));
	if (l->queue)
		l->queue->ops->close(l->queue);
	mc_fd_close(&l->event_fd);
	mc_file_seg_close(l->seg);
	mc_free(l);
}

static void file_lane_close(struct mc_xlane *x)
{
	struct mc_file_lane *l = lane_of(x);

	if (!l->is_kept || is_childs(l) || mc_file_linger_close(l))
		mc_file_lane_free(l);
}

static int queue_open(struct mc_file_lane *l)
{
	struct mc_disk_queue_conf conf = {
	    .depth = MC_FILE_PARTS, .event_fd = l->event_fd, .on_done = part_done, .user = l};

	conf.files[conf.nfiles++] = l->seg->plain;
	if (l->seg->direct)
		conf.files[conf.nfiles++] = l->seg->direct;
	return l->dev->aio->ops->queue_open(l->dev->aio, &conf, &l->queue);
}

static int file_lane_open(struct mc_xdev *x, const struct mc_xpath *path,
			  struct mc_xlane **ret_lane)
{
	struct mc_file_dev *dev = dev_of(x);
	struct mc_file_lane *l;
	int rc;

	mc_assert(path->peer_state);
	if (mc_fork_is_child(dev->fork_gen))
		return -MC_E_FORKED;
	if (mc_file_linger_is_full(dev, path->peer_state))
		return -MC_E_STALLED;
	l = mc_calloc(1, sizeof(*l));
	if (!l)
		return -MC_E_NOMEM;
	l->base.ops = x->ops;
	l->dev = dev;
	l->seg = path->peer_state;
	/* relaxed: whoever opens a lane holds the segment */
	atomic_fetch_add_explicit(&l->seg->refs, 1, memory_order_relaxed);
	mc_list_init(&l->pending);
	mc_list_init(&l->flying);
	mc_list_init(&l->rest);
	mc_list_init(&l->done);
	mc_list_init(&l->spare);
	for (unsigned i = 0; i < MC_FILE_DEPTH; i++)
		mc_list_push_back(&l->rest, &l->works[i].link);
	for (unsigned i = 0; i < MC_FILE_PARTS; i++)
		mc_list_push_back(&l->spare, &l->parts[i].io.link);
	l->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	rc = l->event_fd < 0 ? mc_err_from_errno(errno) : queue_open(l);
	if (rc < 0)
		goto fail;
	*ret_lane = &l->base;
	return 0;
fail:
	mc_file_lane_free(l);
	return rc;
}

static const struct mc_xport_ops file_ops = {
    .name = "file",
    .caps = MC_XCAP_VISIBLE | MC_XCAP_MULTI_FRAG,
    .frags_max = MC_SLICE_FRAGS_MAX,
    .len_max = INT64_MAX,
    .depth_max = MC_FILE_DEPTH,
    .dev_close = mc_file_dev_close,
    .lane_open = file_lane_open,
    .post = file_post,
    .poll = file_poll,
    .arm = file_arm,
    .progress = file_progress,
    .abort = file_abort,
    .retire = mc_file_dev_retire,
    .lane_close = file_lane_close,
};

int mc_file_dev_open(const struct mc_xdev_env *env, struct mc_xdev **ret_dev)
{
	struct file_conf conf;
	struct mc_file_dev *dev;
	int rc;

	mc_assert(env->disk);
	dev = mc_calloc(1, sizeof(*dev));
	if (!dev)
		return -MC_E_NOMEM;
	dev->base.ops = &file_ops;
	dev->disk = env->disk;
	mc_file_dev_init(dev);
	(void)mc_opt_load_env(conf_rows, MC_ARRAY_LEN(conf_rows), &conf, NULL); /* logs by itself */
	rc = dev->disk->aio_open(dev->disk, conf.is_uring_off ? "MC_FILE_NO_URING is set" : NULL,
				 &dev->aio);
	if (rc < 0)
		goto fail;
	mc_log_debug("file transport", "by=\"%s\"", dev->aio->text);
	*ret_dev = &dev->base;
	return 0;
fail:
	mc_file_dev_close(&dev->base);
	return rc;
}

const char *mc_file_dev_describe(const struct mc_xdev *dev)
{
	return ((const struct mc_file_dev *)dev)->aio->text;
}
