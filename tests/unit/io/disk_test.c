/*
 * disk_test.c: the machine's files through the vtable, in place and by queues: io_uring and
 * threads.
 */
#include "io/disk.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/mem.h"
#include "io/sock.h"

#define DEPTH 8u
#define BLOCK 4096u
#define WAIT_NS (20 * MC_NS_PER_S)

static const struct mc_disk *const disk = &mc_disk_real;

static struct {
	char dir[64], path[96], other[96];
	struct mc_disk_file *file;
	struct mc_disk_aio *aio;
	struct mc_disk_queue *queue;
	int event_fd;
	int64_t live_before;
	uint8_t *mem;
	struct mc_disk_io ios[DEPTH];
	int res[DEPTH];
	unsigned done;
} t;

static int setup(void **state)
{
	const char *base = getenv("TMPDIR");

	(void)state;
	memset(&t, 0, sizeof(t));
	t.live_before = mc_mem_live();
	t.event_fd = -1;
	t.mem = mc_aligned_alloc(BLOCK, DEPTH * BLOCK);
	(void)snprintf(t.dir, sizeof(t.dir), "%s/mc-disk-XXXXXX",
		       base && base[0] && strlen(base) < 40 ? base : "/tmp");
	if (!t.mem || !mkdtemp(t.dir))
		return -1;
	(void)snprintf(t.path, sizeof(t.path), "%s/one", t.dir);
	(void)snprintf(t.other, sizeof(t.other), "%s/two", t.dir);
	return disk->open(disk, t.path, MC_DISK_READ | MC_DISK_WRITE | MC_DISK_CREATE, 0600,
			  &t.file);
}

static int teardown(void **state)
{
	(void)state;
	if (t.queue)
		t.queue->ops->close(t.queue);
	if (t.aio)
		t.aio->ops->close(t.aio);
	disk->close(t.file);
	mc_fd_close(&t.event_fd);
	(void)unlink(t.path);
	(void)unlink(t.other);
	(void)rmdir(t.dir);
	mc_free(t.mem);
	return mc_mem_live() == t.live_before ? 0 : -1;
}

/* ---- in place ---- */

static void bytes_come_back_and_ends_are_short(void **state)
{
	char buf[16] = "";

	assert_int_equal(disk->write(t.file, "mooncake", 8, 3), 8);
	assert_int_equal(disk->read(t.file, buf, sizeof(buf), 3), 8);
	assert_string_equal(buf, "mooncake");
	assert_int_equal(disk->read(t.file, buf, sizeof(buf), 11), 0);
	assert_int_equal(disk->read(t.file, buf, sizeof(buf), UINT64_MAX), -EINVAL);
	(void)state;
}

static void lengths_are_set_and_told(void **state)
{
	struct mc_disk_stat st;

	assert_int_equal(disk->truncate(t.file, 70000), 0);
	assert_int_equal(disk->stat(t.file, &st), 0);
	assert_int_equal(st.len_bytes, 70000);
	assert_true(st.is_regular && !st.is_block && st.ino != 0);
	assert_int_equal(disk->truncate(t.file, 5), 0);
	assert_int_equal(disk->stat(t.file, &st), 0);
	assert_int_equal(st.len_bytes, 5);
	assert_int_equal(disk->truncate(t.file, UINT64_MAX), -EFBIG);
	(void)state;
}

static void syncs_are_accepted_and_a_wrong_descriptor_is_not(void **state)
{
	assert_int_equal(disk->write(t.file, "x", 1, 0), 1);
	assert_int_equal(disk->sync(t.file, true), 0);
	assert_int_equal(disk->sync(t.file, false), 0);
	assert_int_equal(disk->sync_dir(disk, t.dir), 0);
	assert_int_equal(disk->sync_dir(disk, t.path), -ENOTDIR);
	(void)state;
}

static void open_flags_mean_what_they_say(void **state)
{
	uint32_t create = MC_DISK_WRITE | MC_DISK_CREATE;
	struct mc_disk_file *f;
	struct stat st;
	char buf[1];

	assert_int_equal(disk->open(disk, t.other, MC_DISK_READ, 0, &f), -ENOENT);
	assert_int_equal(disk->open(disk, t.other, create | MC_DISK_EXCL, 0640, &f), 0);
	assert_int_equal(disk->read(f, buf, 1, 0), -EBADF);
	assert_int_equal(stat(t.other, &st), 0);
	assert_int_equal(st.st_mode & 0137, 0);
	disk->close(f);
	assert_int_equal(disk->open(disk, t.other, create | MC_DISK_EXCL, 0640, &f), -EEXIST);
	assert_int_equal(disk->open(disk, t.other, MC_DISK_READ, 0, &f), 0);
	assert_int_equal(disk->write(f, "x", 1, 0), -EBADF);
	disk->close(f);
	assert_int_equal(disk->open(disk, t.dir, create, 0, &f), -EISDIR);
	(void)state;
}

static void names_are_replaced_and_removed(void **state)
{
	struct mc_disk_file *f;
	char buf[4] = "";

	assert_int_equal(disk->write(t.file, "new", 3, 0), 3);
	assert_int_equal(disk->rename(disk, t.path, t.other), 0);
	assert_int_equal(disk->rename(disk, t.path, t.other), -ENOENT);
	assert_int_equal(disk->open(disk, t.other, MC_DISK_READ, 0, &f), 0);
	assert_int_equal(disk->read(f, buf, 3, 0), 3);
	assert_string_equal(buf, "new");
	disk->close(f);
	assert_int_equal(disk->unlink(disk, t.other), 0);
	assert_int_equal(disk->unlink(disk, t.other), -ENOENT);
	(void)state;
}

/* ---- queues ---- */

static void on_done(void *user, struct mc_disk_io *io, int res)
{
	assert_ptr_equal(user, &t);
	t.res[io - t.ios] = res;
	t.done++;
}

static void open_queue(void **state, bool has_file)
{
	struct mc_disk_queue_conf conf = {.depth = DEPTH, .on_done = on_done, .user = &t};

	assert_int_equal(disk->aio_open(disk, *state, &t.aio), 0);
	t.event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	assert_true(t.event_fd >= 0);
	conf.event_fd = t.event_fd;
	conf.files[0] = t.file;
	conf.nfiles = has_file;
	assert_int_equal(t.aio->ops->queue_open(t.aio, &conf, &t.queue), 0);
}

static void start(unsigned at, enum mc_disk_op op, struct mc_disk_file *file)
{
	t.ios[at] = (struct mc_disk_io){.file = file,
					.mem = t.mem + at * BLOCK,
					.off = at * BLOCK,
					.len = op == MC_DISK_OP_SYNC ? 0 : BLOCK,
					.op = op};
	t.res[at] = 12345;
	t.queue->ops->start(t.queue, &t.ios[at]);
}

static void reap_until(unsigned n)
{
	uint64_t until_ns = mc_now_ns() + WAIT_NS;

	while (t.done < n) {
		assert_int_equal(t.queue->ops->reap(t.queue, MC_NS_PER_S), 0);
		assert_true(mc_now_ns() < until_ns);
	}
	t.done = 0;
}

static void write_all(struct mc_disk_file *file)
{
	for (unsigned i = 0; i < DEPTH; i++) {
		memset(t.mem + i * BLOCK, (int)('a' + i), BLOCK);
		start(i, MC_DISK_OP_WRITE, file);
	}
	assert_int_equal(t.queue->ops->flush(t.queue), 0);
	reap_until(DEPTH);
	for (unsigned i = 0; i < DEPTH; i++)
		assert_int_equal(t.res[i], BLOCK);
}

static void a_full_queue_writes_syncs_and_reads(void **state)
{
	open_queue(state, true);
	write_all(t.file);
	start(0, MC_DISK_OP_SYNC, t.file);
	reap_until(1);
	assert_int_equal(t.res[0], 0);
	memset(t.mem, 0, DEPTH * BLOCK);
	for (unsigned i = 0; i < DEPTH; i++)
		start(i, MC_DISK_OP_READ, t.file);
	reap_until(DEPTH);
	for (unsigned i = 0; i < DEPTH * BLOCK; i++)
		assert_int_equal(t.mem[i], 'a' + i / BLOCK);
	assert_false(t.queue->ops->is_ready(t.queue));
}

static void files_that_the_queue_was_not_told_of_work_too(void **state)
{
	struct mc_disk_file *f;
	char byte;

	open_queue(state, true);
	assert_int_equal(disk->open(disk, t.other, MC_DISK_WRITE | MC_DISK_CREATE, 0600, &f), 0);
	write_all(f);
	start(0, MC_DISK_OP_READ, f);
	reap_until(1);
	assert_int_equal(t.res[0], -EBADF);
	disk->close(f);
	assert_int_equal(disk->read(t.file, &byte, 1, 0), 0);
}

static void ends_signal_the_eventfd(void **state)
{
	uint64_t count = 0;

	open_queue(state, false);
	assert_int_equal(read(t.event_fd, &count, sizeof(count)), -1);
	write_all(t.file);
	start(0, MC_DISK_OP_READ, t.file);
	assert_int_equal(t.queue->ops->flush(t.queue), 0);
	reap_until(1);
	start(0, MC_DISK_OP_READ, t.file);
	assert_int_equal(t.queue->ops->flush(t.queue), 0);
	for (uint64_t until_ns = mc_now_ns() + WAIT_NS; !t.queue->ops->is_ready(t.queue);)
		assert_true(mc_now_ns() < until_ns);
	assert_int_equal(read(t.event_fd, &count, sizeof(count)), sizeof(count));
	assert_true(count >= 1);
	reap_until(1);
}

static void a_drained_queue_has_reported_all(void **state)
{
	open_queue(state, true);
	for (unsigned i = 0; i < DEPTH; i++) {
		start(i, MC_DISK_OP_WRITE, t.file);
		if (i == DEPTH / 2)
			assert_int_equal(t.queue->ops->flush(t.queue), 0);
	}
	assert_true(t.queue->ops->drain(t.queue, WAIT_NS));
	assert_int_equal(t.done, DEPTH);
	for (unsigned i = 0; i < DEPTH; i++)
		assert_true(t.res[i] == BLOCK || t.res[i] == -ECANCELED);
	assert_int_equal(t.res[DEPTH - 1], -ECANCELED); /* never flushed */
}

/* A file whose reads last until they are let go: no thread can be called back from there. */
static struct {
	struct mc_disk disk;
	pthread_mutex_t mu;
	pthread_cond_t news;
	unsigned inside;
	bool is_open;
} gate = {.mu = PTHREAD_MUTEX_INITIALIZER, .news = PTHREAD_COND_INITIALIZER};

static ssize_t gate_read(struct mc_disk_file *file, void *buf, size_t len, uint64_t off)
{
	(void)pthread_mutex_lock(&gate.mu);
	gate.inside++;
	(void)pthread_cond_broadcast(&gate.news);
	while (!gate.is_open)
		(void)pthread_cond_wait(&gate.news, &gate.mu);
	(void)pthread_mutex_unlock(&gate.mu);
	return disk->read(file, buf, len, off);
}

static void draining_waits_no_longer_than_it_may(void **state)
{
	uint64_t begin_ns;

	open_queue(state, true);
	write_all(t.file);
	gate.disk = *disk;
	gate.disk.read = gate_read;
	t.file->disk = &gate.disk;
	for (unsigned i = 0; i < DEPTH; i++)
		start(i, MC_DISK_OP_READ, t.file);
	assert_int_equal(t.queue->ops->flush(t.queue), 0);
	(void)pthread_mutex_lock(&gate.mu);
	while (gate.inside == 0)
		(void)pthread_cond_wait(&gate.news, &gate.mu);
	(void)pthread_mutex_unlock(&gate.mu);
	begin_ns = mc_now_ns();
	assert_false(t.queue->ops->drain(t.queue, 30 * MC_NS_PER_MS));
	assert_true(mc_now_ns() - begin_ns >= 30 * MC_NS_PER_MS);
	assert_in_range(t.done, 1, DEPTH - 1); /* those that no thread had begun */
	assert_false(t.queue->ops->drain(t.queue, 0));
	(void)pthread_mutex_lock(&gate.mu);
	gate.is_open = true;
	(void)pthread_cond_broadcast(&gate.news);
	(void)pthread_mutex_unlock(&gate.mu);
	assert_true(t.queue->ops->drain(t.queue, WAIT_NS));
	assert_int_equal(t.done, DEPTH);
	t.file->disk = disk;
}

static void the_aio_says_how_it_works(void **state)
{
	open_queue(state, false);
	if (*state)
		assert_string_equal(t.aio->text, "threads: this test wants threads");
	else
		assert_true(strcmp(t.aio->text, "io_uring") == 0 ||
			    strncmp(t.aio->text, "threads: ", 9) == 0);
}

static char threads[] = "this test wants threads";

/* clang-format off */
#define Q(f) {#f "_by_io_uring", f, setup, teardown, NULL}, \
	     {#f "_by_threads", f, setup, teardown, threads}
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
/* clang-format on */

int main(void)
{
	const struct CMUnitTest tests[] = {
	    {"draining_waits_no_longer_than_it_may_by_threads",
	     draining_waits_no_longer_than_it_may, setup, teardown, threads},
	    T(bytes_come_back_and_ends_are_short),
	    T(lengths_are_set_and_told),
	    T(syncs_are_accepted_and_a_wrong_descriptor_is_not),
	    T(open_flags_mean_what_they_say),
	    T(names_are_replaced_and_removed),
	    Q(a_full_queue_writes_syncs_and_reads),
	    Q(files_that_the_queue_was_not_told_of_work_too),
	    Q(ends_signal_the_eventfd),
	    Q(a_drained_queue_has_reported_all),
	    Q(the_aio_says_how_it_works),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
