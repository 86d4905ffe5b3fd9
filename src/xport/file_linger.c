/*
 * file_linger.c: lanes that were given up while the kernel kept operations of theirs, as it does
 * for a device that is away. Nothing can take such an operation back: the lane stays, with its
 * queue, its descriptors and its file, until the last one has ended, and retire() says whether it
 * has.
 *
 * Whoever comes by looks (sweep()): retire(), a lane that opens, and a thread that runs while there
 * are such lanes. Where the device closes first, that thread frees it after the last lane.
 */
#include <signal.h>
#include <string.h>

#include "base/fork.h"
#include "base/log.h"
#include "xport/file_priv.h"

#define LOOK_NS (100 * MC_NS_PER_MS) /* between two looks of the thread */

void mc_file_dev_init(struct mc_file_dev *dev)
{
	dev->fork_gen = mc_fork_gen();
	(void)pthread_mutex_init(&dev->mu, NULL); /* without attributes neither can fail */
	(void)pthread_cond_init(&dev->news, NULL);
	mc_list_init(&dev->lingering);
}

static void dev_free(struct mc_file_dev *dev)
{
	if (dev->aio)
		dev->aio->ops->close(dev->aio);
	/* In a forked child they may be held by a thread that is not here. */
	if (!mc_fork_is_child(dev->fork_gen)) {
		(void)pthread_cond_destroy(&dev->news);
		(void)pthread_mutex_destroy(&dev->mu);
	}
	mc_free(dev);
}

/* Under dev->mu. What has ended and is closed goes to ret_ended. */
static void sweep(struct mc_file_dev *dev, struct mc_list *ret_ended)
{
	struct mc_file_lane *l;

	mc_list_each (l, &dev->lingering, link) {
		if (!l->queue->ops->drain(l->queue, 0))
			continue;
		mc_list_del(&l->link);
		l->is_lingering = false;
		mc_log_info("file operations ended at last", "lane=%llu",
			    (unsigned long long)l->id);
		if (l->is_closed)
			mc_list_push_back(ret_ended, &l->link);
	}
}

static void free_all(struct mc_list *ended)
{
	struct mc_file_lane *l;

	mc_list_each (l, ended, link) {
		mc_list_del(&l->link);
		mc_file_lane_free(l);
	}
}

static void *linger_main(void *arg)
{
	struct mc_file_dev *dev = arg;
	struct mc_list ended;
	bool is_last;

	mc_list_init(&ended);
	(void)pthread_mutex_lock(&dev->mu);
	for (;;) {
		uint64_t until_ns = mc_now_ns() + LOOK_NS;
		const struct timespec until = {.tv_sec = (time_t)(until_ns / MC_NS_PER_S),
					       .tv_nsec = (long)(until_ns % MC_NS_PER_S)};

		sweep(dev, &ended);
		if (!mc_list_is_empty(&ended)) {
			(void)pthread_mutex_unlock(&dev->mu);
			free_all(&ended);
			(void)pthread_mutex_lock(&dev->mu);
		}
		if (mc_list_is_empty(&dev->lingering))
			break;
		(void)pthread_cond_clockwait(&dev->news, &dev->mu, CLOCK_MONOTONIC, &until);
	}
	dev->has_thread = false;
	is_last = dev->is_left;
	(void)pthread_cond_broadcast(&dev->news);
	(void)pthread_mutex_unlock(&dev->mu);
	if (is_last)
		dev_free(dev);
	return NULL;
}

/* Under dev->mu. Without a thread, retire() and lane_open() look, and dev_close() tries again. */
static void thread_start(struct mc_file_dev *dev)
{
	sigset_t all, old;
	pthread_t thread;

	if (dev->has_thread)
		return;
	(void)sigfillset(&all); /* signals are the program's */
	(void)pthread_sigmask(SIG_BLOCK, &all, &old);
	dev->has_thread = pthread_create(&thread, NULL, linger_main, dev) == 0;
	if (dev->has_thread) {
		(void)pthread_setname_np(thread, "mc-file-late");
		(void)pthread_detach(thread);
	}
	(void)pthread_sigmask(SIG_SETMASK, &old, NULL);
}

size_t mc_file_linger(struct mc_file_lane *l, uint8_t *ret_token)
{
	struct mc_file_dev *dev = l->dev;
	size_t len = sizeof(l->id);

	(void)pthread_mutex_lock(&dev->mu);
	l->id = ++dev->last_id;
	l->is_lingering = true;
	mc_list_push_back(&dev->lingering, &l->link);
	thread_start(dev);
	(void)pthread_mutex_unlock(&dev->mu);
	mc_log_warn("the kernel keeps operations on a file", "lane=%llu operations=%u",
		    (unsigned long long)l->id, l->nparts);
	memcpy(ret_token, &l->id, len);
	return len;
}

bool mc_file_linger_close(struct mc_file_lane *l)
{
	bool is_lingering;

	(void)pthread_mutex_lock(&l->dev->mu);
	is_lingering = l->is_lingering;
	l->is_closed = true;
	(void)pthread_mutex_unlock(&l->dev->mu);
	return !is_lingering;
}

bool mc_file_linger_is_full(struct mc_file_dev *dev, const struct mc_file_seg *seg)
{
	struct mc_file_lane *l;
	struct mc_list ended;
	unsigned n = 0;

	mc_list_init(&ended);
	(void)pthread_mutex_lock(&dev->mu);
	sweep(dev, &ended);
	mc_list_each (l, &dev->lingering, link)
		n += l->seg->id == seg->id;
	(void)pthread_mutex_unlock(&dev->mu);
	free_all(&ended);
	return n >= MC_FILE_LINGER_MAX;
}

int mc_file_dev_retire(struct mc_xdev *x, const uint8_t *token, size_t token_len,
		       uint64_t *ret_acked)
{
	struct mc_file_dev *dev = (struct mc_file_dev *)x;
	struct mc_file_lane *l;
	struct mc_list ended;
	uint64_t id;
	int rc = 0;

	*ret_acked = MC_ACKED_UNKNOWN;
	if (mc_fork_is_child(dev->fork_gen))
		return -MC_E_FORKED;
	if (token_len != sizeof(id))
		return -MC_E_PROTO;
	memcpy(&id, token, sizeof(id));
	mc_list_init(&ended);
	(void)pthread_mutex_lock(&dev->mu);
	sweep(dev, &ended);
	mc_list_each (l, &dev->lingering, link)
		if (l->id == id)
			rc = -MC_E_AGAIN;
	(void)pthread_mutex_unlock(&dev->mu);
	free_all(&ended);
	return rc;
}

void mc_file_dev_close(struct mc_xdev *x)
{
	struct mc_file_dev *dev = (struct mc_file_dev *)x;
	bool is_left;

	if (mc_fork_is_child(dev->fork_gen)) {
		dev_free(dev); /* the list may be half changed: what is on it stays */
		return;
	}
	(void)pthread_mutex_lock(&dev->mu);
	if (!mc_list_is_empty(&dev->lingering))
		thread_start(dev);
	(void)pthread_cond_broadcast(&dev->news);
	while (dev->has_thread && mc_list_is_empty(&dev->lingering))
		(void)pthread_cond_wait(&dev->news, &dev->mu);
	is_left = dev->is_left = !mc_list_is_empty(&dev->lingering);
	if (is_left)
		mc_log_warn("closed while the kernel keeps operations on files", "freed=%s",
			    dev->has_thread ? "later" : "never: no thread");
	(void)pthread_mutex_unlock(&dev->mu);
	if (!is_left)
		dev_free(dev);
}
