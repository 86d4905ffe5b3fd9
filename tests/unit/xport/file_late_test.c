/*
 * file_late_test.c: lanes of the file transport on a device that is away: it keeps what it was
 * given, nothing takes that back, and it is made when the device returns.
 */
#include "file_fixture.h"

#include <sched.h>
#include <sys/wait.h>

#define SHORT_NS (2 * MC_NS_PER_S) /* of calls that wait 20 ms, on a busy machine */

static uint8_t token[MC_XPORT_TOKEN_MAX];
static size_t token_len;

/* A lane whose one slice the device keeps, aborted. */
static void abort_kept(enum mc_op op, uint8_t *mem)
{
	uint64_t begin_ns = mc_now_ns();
	struct mc_list left;

	open_lane(t.path);
	t.nslices = 0;
	add_frag(add_slice(op), mem, 0, MIB);
	atomic_store(&t.fault.is_away, true);
	post_all();
	mc_list_init(&left);
	token_len = t.lane->ops->abort(t.lane, &left, token);
	assert_true(mc_now_ns() - begin_ns < SHORT_NS);
	assert_true(token_len > 0 && token_len <= MC_XPORT_TOKEN_MAX);
	assert_ptr_equal(mc_list_pop_front(&left), &t.slices[0].link);
	assert_true(mc_list_is_empty(&left));
	assert_int_equal(t.slices[0].verdict, MC_SLICE_MAYBE);
	memset(&t.slices[0], 0xee, sizeof(t.slices[0])); /* the engine's again */
	t.nslices = 0;
}

static int retire(void)
{
	uint64_t acked;

	return t.dev->ops->retire(t.dev, token, token_len, &acked);
}

static void come_back(void)
{
	uint64_t until_ns = mc_now_ns() + WAIT_NS;
	int rc;

	assert_int_equal(retire(), -MC_E_AGAIN);
	atomic_store(&t.fault.is_away, false);
	while ((rc = retire()) == -MC_E_AGAIN)
		assert_true(mc_now_ns() < until_ns);
	assert_int_equal(rc, 0);
}

static void a_write_that_is_kept_is_in_doubt_until_it_has_landed(void **state)
{
	use_faults(NULL);
	memset(t.local, 0x11, MIB);
	abort_kept(MC_OP_WRITE, t.local);
	close_lane(); /* file and queue stay */
	come_back();
	memset(t.local, 0x22, 2 * MIB); /* nothing is taken from it any more */
	assert_int_equal(pread(t.fd, t.local + MIB, MIB, 0), MIB);
	for (size_t i = 0; i < MIB; i++)
		assert_int_equal(t.local[MIB + i], 0x11);
	open_lane(t.path);
	assert_int_equal(run(MC_OP_WRITE, t.image, 0, MIB), 0);
	(void)state;
}

static void a_read_that_is_kept_is_in_doubt_until_it_has_landed(void **state)
{
	use_faults(NULL);
	memset(t.local, 0x11, MIB);
	abort_kept(MC_OP_READ, t.local);
	come_back();  /* the lane is still open */
	close_lane(); /* and goes with its owner */
	assert_memory_equal(t.local, t.image, MIB);
	(void)state;
}

static void lanes_that_linger_are_bounded(void **state)
{
	struct mc_xpath path = {0};
	struct mc_xlane *lane;

	use_faults(NULL);
	for (unsigned i = 0; i < MC_FILE_LINGER_MAX; i++) {
		abort_kept(MC_OP_WRITE, t.image);
		close_lane();
	}
	assert_int_equal(mc_file_seg_open(t.dev, t.path, &t.seg, NULL), 0);
	path.peer_state = t.seg;
	assert_int_equal(t.dev->ops->lane_open(t.dev, &path, &lane), -MC_E_STALLED);
	come_back();
	assert_int_equal(t.dev->ops->lane_open(t.dev, &path, &t.lane), 0);
	(void)state;
}

static void a_closed_device_is_freed_after_its_last_operation(void **state)
{
	uint64_t begin_ns, until_ns = mc_now_ns() + WAIT_NS;
	int64_t live;

	use_faults(NULL);
	t.dev->ops->dev_close(t.dev);
	live = mc_mem_live();
	assert_int_equal(open_dev(&t.fault.disk), 0);
	memset(t.local, 0x33, MIB);
	abort_kept(MC_OP_WRITE, t.local);
	close_lane();
	begin_ns = mc_now_ns();
	t.dev->ops->dev_close(t.dev);
	assert_true(mc_now_ns() - begin_ns < SHORT_NS);
	assert_true(mc_mem_live() > live);
	atomic_store(&t.fault.is_away, false);
	while (atomic_load(&t.fault.aios) > 0 || mc_mem_live() != live) {
		assert_true(mc_now_ns() < until_ns);
		(void)sched_yield();
	}
	assert_int_equal(pread(t.fd, t.image, MIB, 0), MIB);
	assert_memory_equal(t.image, t.local, MIB);
	assert_int_equal(open_dev(&mc_disk_real), 0); /* of the teardown */
	(void)state;
}

static void a_forked_child_can_close_what_lingers(void **state)
{
	int status;
	pid_t pid;

	use_faults(NULL);
	abort_kept(MC_OP_READ, t.local);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		if (retire() != -MC_E_FORKED)
			_exit(1);
		close_lane();
		t.dev->ops->dev_close(t.dev);
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
	close_lane();
	come_back();
	assert_memory_equal(t.local, t.image, MIB);
	(void)state;
}

/* clang-format off */
#define T(f) {#f "_by_io_uring", f, setup, teardown, by_uring}, \
	     {#f "_by_threads", f, setup, teardown, by_threads}
/* clang-format on */

int main(void)
{
	const struct CMUnitTest tests[] = {
	    T(a_write_that_is_kept_is_in_doubt_until_it_has_landed),
	    T(a_read_that_is_kept_is_in_doubt_until_it_has_landed),
	    T(lanes_that_linger_are_bounded),
	    T(a_closed_device_is_freed_after_its_last_operation),
	    T(a_forked_child_can_close_what_lingers),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
