/*
 * fault.c: see fault.h. A fault lane owns an inner lane and lists of slices that it keeps from it
 * or from the caller. What a caller waits on is an epoll descriptor over the inner lane's own and
 * an eventfd that is readable while something is held back, so that held slices never wait for
 * network traffic.
 */
#include "fault.h"

#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/rand.h"

#define HELD_MAX 64u

struct fault_dev {
	struct mc_xdev base; /* must be first */
	struct mc_xport_ops ops;
	struct mc_xdev *inner;
	struct mc_fault_opts opts;
	_Atomic uint64_t nlanes;
	struct mc_fault_stats stats;
};

struct held {
	struct mc_slice *s;
	unsigned polls_left;
};

struct fault_lane {
	struct mc_xlane base; /* must be first */
	struct mc_xport_ops ops;
	struct fault_dev *dev;
	struct mc_xlane *inner;
	struct mc_rand rand;
	struct mc_list dropped; /* mc_slice.link */
	struct held held[HELD_MAX];
	unsigned nheld;
	bool is_broken;
	int failed; /* what poll() owes: it was met after slices had finished */
	int epoll_fd, event_fd, inner_fd;
	uint32_t inner_events;
	bool is_ready; /* event_fd is readable */
};

static struct fault_dev *dev_of(struct mc_xdev *x)
{
	return (struct fault_dev *)x;
}

static struct fault_lane *lane_of(struct mc_xlane *x)
{
	return (struct fault_lane *)x;
}

static bool happens(struct fault_lane *l, unsigned chance)
{
	return chance > 0 && mc_rand_below(&l->rand, 1000) < chance;
}

static void count(_Atomic uint64_t *n)
{
	atomic_fetch_add_explicit(n, 1, memory_order_relaxed);
}

/* ---- moving ---- */

static int fault_post(struct mc_xlane *x, struct mc_slice **slices, unsigned n)
{
	struct fault_lane *l = lane_of(x);
	unsigned taken = 0;
	int rc;

	if (l->is_broken || l->failed < 0)
		return l->is_broken ? -MC_E_CLOSED : l->failed;
	if (happens(l, l->dev->opts.refuse)) {
		count(&l->dev->stats.refused);
		n = (unsigned)mc_rand_below(&l->rand, n + 1);
	}
	for (; taken < n; taken++) {
		if (happens(l, l->dev->opts.drop)) {
			count(&l->dev->stats.dropped);
			mc_list_push_back(&l->dropped, &slices[taken]->link);
			continue;
		}
		rc = l->inner->ops->post(l->inner, &slices[taken], 1);
		if (rc < 0 && taken == 0)
			return rc;
		if (rc <= 0)
			break;
	}
	return (int)taken;
}

/* Keep a finished slice back, or give it out. @return given out */
static bool give(struct fault_lane *l, struct mc_slice *s)
{
	const struct mc_fault_opts *o = &l->dev->opts;

	if (s->status == 0 && happens(l, o->corrupt)) {
		count(&l->dev->stats.corrupted);
		s->status = -MC_E_CORRUPT;
	}
	if (l->nheld == HELD_MAX || !happens(l, o->hold))
		return true;
	count(&l->dev->stats.held);
	l->held[l->nheld++] =
	    (struct held){s, 1 + (unsigned)mc_rand_below(&l->rand, o->hold_polls + 1)};
	return false;
}

static unsigned held_release(struct fault_lane *l, struct mc_slice **ret_done, unsigned max)
{
	unsigned n = 0, kept = 0;

	for (unsigned i = 0; i < l->nheld; i++) {
		struct held *h = &l->held[i];

		if (h->polls_left > 0)
			h->polls_left--;
		if (h->polls_left == 0 && n < max)
			ret_done[n++] = h->s;
		else
			l->held[kept++] = *h;
	}
	l->nheld = kept;
	return n;
}

static int fault_poll(struct mc_xlane *x, uint64_t block_ns, struct mc_slice **ret_done,
		      unsigned max)
{
	struct fault_lane *l = lane_of(x);
	struct mc_slice *got[16];
	unsigned n;
	int rc;

	if (l->is_broken || l->failed < 0)
		return l->is_broken ? -MC_E_CLOSED : l->failed;
	if (happens(l, l->dev->opts.lane_break)) {
		count(&l->dev->stats.broken);
		l->is_broken = true;
		return -MC_E_RESET;
	}
	n = held_release(l, ret_done, max);
	if (happens(l, l->dev->opts.idle)) {
		count(&l->dev->stats.idled);
		return (int)n;
	}
	if (n == max)
		return (int)n;
	rc = l->inner->ops->poll(l->inner, n || l->nheld ? 0 : block_ns, got,
				 mc_min(max - n, (unsigned)MC_ARRAY_LEN(got)));
	if (rc < 0) {
		l->failed = rc;
		return n ? (int)n : rc;
	}
	for (int i = 0; i < rc; i++)
		if (give(l, got[i]))
			ret_done[n++] = got[i];
	return (int)n;
}

/* ---- waiting ---- */

static void watch_inner(struct fault_lane *l, const struct mc_xarm *arm)
{
	struct epoll_event ev = {.events = (uint32_t)arm->events, .data.fd = arm->fd};

	if (arm->fd == l->inner_fd && ev.events == l->inner_events)
		return;
	if (l->inner_fd >= 0)
		(void)epoll_ctl(l->epoll_fd, EPOLL_CTL_DEL, l->inner_fd, NULL); /* may be closed */
	l->inner_fd = arm->fd;
	l->inner_events = ev.events;
	if (arm->fd >= 0)
		mc_assert(epoll_ctl(l->epoll_fd, EPOLL_CTL_ADD, arm->fd, &ev) == 0);
}

static void fault_arm(struct mc_xlane *x, struct mc_xarm *ret_arm)
{
	struct fault_lane *l = lane_of(x);
	bool is_ready = l->nheld > 0 || l->is_broken || l->failed < 0;
	struct mc_xarm inner = {.fd = -1};
	uint64_t one = 1;

	l->inner->ops->arm(l->inner, &inner);
	watch_inner(l, &inner);
	if (is_ready && !l->is_ready)
		mc_assert(write(l->event_fd, &one, sizeof(one)) == sizeof(one));
	if (!is_ready && l->is_ready)
		mc_assert(read(l->event_fd, &one, sizeof(one)) == sizeof(one));
	l->is_ready = is_ready;
	ret_arm->fd = inner.fd < 0 && !is_ready ? -1 : l->epoll_fd;
	ret_arm->events = EPOLLIN;
	ret_arm->is_block_ok = inner.is_block_ok;
	ret_arm->is_ready = is_ready || inner.is_ready;
}

static uint64_t fault_progress(const struct mc_xlane *x)
{
	const struct fault_lane *l = (const struct fault_lane *)x;

	return l->inner->ops->progress(l->inner);
}

/* ---- the end ---- */

static size_t fault_abort(struct mc_xlane *x, struct mc_list *ret_left,
			  uint8_t ret_token[MC_XPORT_TOKEN_MAX])
{
	struct fault_lane *l = lane_of(x);
	size_t token_len = l->inner->ops->abort(l->inner, ret_left, ret_token);
	struct mc_slice *s;

	l->is_broken = true;
	/* What had finished and was not told yet: a network would have lost the answer. A lane that
	 * has nothing to retire gives no token, and then nobody may be in doubt. */
	for (unsigned i = 0; i < l->nheld; i++) {
		s = l->held[i].s;
		if (s->op == MC_OP_READ)
			s->verdict = MC_SLICE_UNSENT;
		else
			s->verdict = token_len > 0 ? MC_SLICE_MAYBE : MC_SLICE_DONE;
		mc_list_init(&s->link);
		mc_list_push_back(ret_left, &s->link);
	}
	l->nheld = 0;
	mc_list_each (s, &l->dropped, link)
		s->verdict = MC_SLICE_UNSENT;
	mc_list_splice_back(ret_left, &l->dropped);
	return token_len;
}

static int fault_retire(struct mc_xdev *x, const uint8_t *token, size_t token_len,
			uint64_t *ret_acked)
{
	struct fault_dev *d = dev_of(x);

	return d->inner->ops->retire(d->inner, token, token_len, ret_acked);
}

static void fault_lane_close(struct mc_xlane *x)
{
	struct fault_lane *l = lane_of(x);

	if (!l)
		return;
	if (l->inner)
		l->inner->ops->lane_close(l->inner);
	mc_fd_close(&l->epoll_fd);
	mc_fd_close(&l->event_fd);
	mc_free(l);
}

static void fault_dev_close(struct mc_xdev *x)
{
	struct fault_dev *d = dev_of(x);

	if (!d->opts.is_inner_kept)
		d->inner->ops->dev_close(d->inner);
	mc_free(d);
}

/* ---- the beginning ---- */

/* The inner's numbers, our functions. */
static void ops_fill(struct mc_xport_ops *ops, const struct mc_xport_ops *inner);

int mc_fault_lane_wrap(struct mc_xdev *x, struct mc_xlane *inner, struct mc_xlane **ret_lane)
{
	struct fault_dev *d = dev_of(x);
	struct fault_lane *l = mc_calloc(1, sizeof(*l));
	struct epoll_event ev = {.events = EPOLLIN};

	if (!l) {
		inner->ops->lane_close(inner);
		return -MC_E_NOMEM;
	}
	ops_fill(&l->ops, inner->ops);
	l->base.ops = &l->ops;
	l->dev = d;
	l->inner = inner;
	l->inner_fd = -1;
	mc_list_init(&l->dropped);
	mc_rand_seed(&l->rand,
		     d->opts.seed + atomic_fetch_add_explicit(&d->nlanes, 1, memory_order_relaxed));
	l->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	l->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (l->epoll_fd < 0 || l->event_fd < 0 ||
	    epoll_ctl(l->epoll_fd, EPOLL_CTL_ADD, l->event_fd, &ev) != 0) {
		fault_lane_close(&l->base);
		return -MC_E_LIMIT;
	}
	*ret_lane = &l->base;
	return 0;
}

static int fault_lane_open(struct mc_xdev *x, const struct mc_xpath *path,
			   struct mc_xlane **ret_lane)
{
	struct fault_dev *d = dev_of(x);
	struct mc_xpath p = *path;
	struct mc_xlane *inner;
	int rc;

	if (d->opts.via)
		p.remote = *d->opts.via;
	rc = d->inner->ops->lane_open(d->inner, &p, &inner);
	return rc < 0 ? rc : mc_fault_lane_wrap(x, inner, ret_lane);
}

static int fault_offer(const struct mc_xlane *x, uint8_t *buf, size_t cap)
{
	const struct fault_lane *l = (const struct fault_lane *)x;

	return l->inner->ops->offer(l->inner, buf, cap);
}

static int fault_accept(struct mc_xdev *x, uint64_t initiator_epoch, const uint8_t *offer,
			size_t len, uint8_t *answer, size_t cap)
{
	struct fault_dev *d = dev_of(x);

	return d->inner->ops->accept(d->inner, initiator_epoch, offer, len, answer, cap);
}

static int fault_connect(struct mc_xlane *x, const uint8_t *answer, size_t len)
{
	struct fault_lane *l = lane_of(x);

	return l->inner->ops->connect(l->inner, answer, len);
}

static void ops_fill(struct mc_xport_ops *ops, const struct mc_xport_ops *inner)
{
	*ops = *inner;
	ops->name = "fault";
	/* Slices that the inner one finished within post() may be held back here. */
	ops->caps &= ~(uint32_t)MC_XCAP_SYNC;
	ops->dev_close = fault_dev_close;
	ops->lane_open = fault_lane_open;
	ops->post = fault_post;
	ops->poll = fault_poll;
	ops->arm = fault_arm;
	ops->progress = fault_progress;
	ops->abort = fault_abort;
	ops->retire = fault_retire;
	ops->lane_close = fault_lane_close;
	ops->offer = inner->offer ? fault_offer : NULL;
	ops->accept = inner->accept ? fault_accept : NULL;
	ops->connect = inner->connect ? fault_connect : NULL;
}

int mc_fault_dev_open(struct mc_xdev *inner, const struct mc_fault_opts *opts,
		      struct mc_xdev **ret_dev)
{
	struct fault_dev *d = mc_calloc(1, sizeof(*d));

	mc_assert(opts->seed != 0);
	if (!d)
		return -MC_E_NOMEM;
	ops_fill(&d->ops, inner->ops);
	d->base.ops = &d->ops;
	d->inner = inner;
	d->opts = *opts;
	*ret_dev = &d->base;
	return 0;
}

struct mc_xdev *mc_fault_dev_inner(struct mc_xdev *x)
{
	return dev_of(x)->inner;
}

struct mc_fault_stats *mc_fault_dev_stats(struct mc_xdev *x)
{
	return &dev_of(x)->stats;
}
