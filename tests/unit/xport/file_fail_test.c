/*
 * file_fail_test.c: what can go wrong under the file transport: short and failing operations, full
 * disks, sandboxes, lanes that are aborted and threads and processes that go away.
 */
#include "file_fixture.h"

#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

/* ---- results that the kernel gives seldom ---- */

static bool is_direct(const struct fault_call *call)
{
	return call->flags & MC_DISK_DIRECT;
}

static int cut_short(struct fault_disk *f, const struct fault_call *call, int res)
{
	(void)f;
	switch (mc_rand_below(&t.rand, 8)) {
	case 0:
		return -EINTR;
	case 1:
		return -ECANCELED;
	case 2:
		return is_direct(call) && mc_rand_below(&t.rand, 16) == 0 ? -EINVAL : res;
	case 3:
		return res; /* whole */
	default:
		return res > 1 ? 1 + (int)mc_rand_below(&t.rand, (uint64_t)res) : res;
	}
}

static void short_operations_are_continued(void **state)
{
	seed(0);
	use_faults(cut_short);
	sweep(30);
	(void)state;
}

#define SECOND_FRAG 16384u

static int fail_second_fragment(struct fault_disk *f, const struct fault_call *call, int res)
{
	(void)f;
	return call->off >= SECOND_FRAG && call->off < SECOND_FRAG + 3 * MIB ? -t.faults_left : res;
}

static int status_of_failure(int error)
{
	struct mc_slice *s = add_slice(MC_OP_WRITE);

	add_frag(s, t.local, 0, 8192);
	add_frag(s, t.local + 8192, SECOND_FRAG, 3 * MIB);
	add_frag(s, t.local, 8 * MIB, 100);
	t.faults_left = error;
	run_all();
	assert_int_equal(s->bad_frag, 1);
	return s->status;
}

static void errors_of_the_disk_have_codes_and_name_the_fragment(void **state)
{
	use_faults(fail_second_fragment);
	open_lane(t.path);
	assert_int_equal(status_of_failure(EIO), -MC_E_IO);
	assert_int_equal(status_of_failure(ENOSPC), -MC_E_NOSPACE);
	assert_int_equal(status_of_failure(EDQUOT), -MC_E_NOSPACE);
	assert_int_equal(status_of_failure(EFBIG), -MC_E_TOO_BIG);
	assert_int_equal(status_of_failure(ECANCELED), -MC_E_IO); /* for ever: not tried for ever */
	t.fault.after = cut_short;
	seed(1);
	assert_int_equal(run(MC_OP_READ, t.local, 0, 3 * MIB), 0); /* the lane still works */
	(void)state;
}

static int refuse_direct(struct fault_disk *f, const struct fault_call *call, int res)
{
	(void)f;
	t.faults_left -= is_direct(call);
	return is_direct(call) ? -EINVAL : res;
}

static void o_direct_refused_later_goes_through_the_cache(void **state)
{
	use_faults(refuse_direct);
	open_lane(t.path);
	assert_int_equal(run(MC_OP_READ, t.local, 0, MIB), 0);
	assert_memory_equal(t.local, t.image, MIB);
	t.faults_left = 0;
	assert_int_equal(run(MC_OP_READ, t.local, 0, MIB), 0);
	assert_int_equal(t.faults_left, 0); /* not tried again */
	(void)state;
}

static void a_full_file_system_is_an_error_and_what_was_there_stays(void **state)
{
	if (unshare(CLONE_NEWNS) != 0 || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 ||
	    mount("mc-file", t.dir, "tmpfs", 0, "size=1m") != 0) {
		print_message("# skipped: cannot mount (%s)\n", strerror(errno));
		skip();
	}
	mc_fd_close(&t.fd);
	t.fd = open(t.path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
	assert_true(t.fd >= 0);
	open_lane(t.path);
	assert_int_equal(run(MC_OP_WRITE, t.image, 0, 500000), 0);
	assert_int_equal(run(MC_OP_WRITE, t.local, 500000, 2 * MIB), -MC_E_NOSPACE);
	assert_int_equal(run(MC_OP_READ, t.local, 0, 500000), 0);
	assert_memory_equal(t.local, t.image, 500000);
	close_lane();
	mc_fd_close(&t.fd);
	assert_int_equal(umount2(t.dir, MNT_DETACH), 0);
	(void)state;
}

/* ---- ends of lanes, threads and processes ---- */

static void abort_in_flight(enum mc_op op)
{
	uint8_t token[MC_XPORT_TOKEN_MAX];
	struct mc_list left, *node;
	struct mc_slice *s, *done;
	uint64_t until_ns, acked;
	size_t token_len;
	unsigned n = 0;

	open_lane(t.path);
	t.nslices = 0;
	for (unsigned i = 0; i < SLICES_MAX; i++) {
		s = add_slice(op);
		add_frag(s, t.local + i * 65536, i * 65536, 65536);
		add_frag(s, t.local + 4 * MIB + i * 8192, 3 * MIB, 777);
	}
	post_all();
	mc_list_init(&left);
	token_len = t.lane->ops->abort(t.lane, &left, token);
	until_ns = mc_now_ns() + WAIT_NS;
	while (token_len > 0 && /* a disk that was slow */
	       t.dev->ops->retire(t.dev, token, token_len, &acked) == -MC_E_AGAIN)
		assert_true(mc_now_ns() < until_ns);
	memset(t.local, 0x3c, LOCAL); /* from here on it is ours */
	for (node = mc_list_pop_front(&left); node; node = mc_list_pop_front(&left), n++) {
		s = mc_list_entry(node, struct mc_slice, link);
		assert_true(s->verdict == (token_len > 0 ? MC_SLICE_MAYBE : MC_SLICE_UNSENT) ||
			    s->verdict == MC_SLICE_UNSENT ||
			    (s->verdict == MC_SLICE_DONE && s->status == 0 && s->moved == s->len));
	}
	assert_int_equal(n, t.nslices);
	assert_int_equal(t.lane->ops->poll(t.lane, 0, &done, 1), -MC_E_CLOSED);
	s = &t.slices[0];
	assert_int_equal(t.lane->ops->post(t.lane, &s, 1), -MC_E_CLOSED);
	t.nslices = 0;
	close_lane();
}

static void nothing_lands_after_abort(void **state)
{
	struct stat st;

	for (int i = 0; i < 10; i++) {
		abort_in_flight(MC_OP_READ);
		/* Another lane's work passes through the same queues behind what may be left. */
		open_lane(t.path);
		assert_int_equal(run(MC_OP_READ, t.image, 0, 3 * MIB), 0);
		close_lane();
		for (size_t k = 0; k < LOCAL; k++)
			assert_int_equal(t.local[k], 0x3c);
	}
	memset(t.local, 0, LOCAL);
	for (int i = 0; i < 10; i++) {
		abort_in_flight(MC_OP_WRITE);
		memset(t.image, 0x77, 3 * MIB + 777);
		assert_int_equal(pwrite(t.fd, t.image, 3 * MIB + 777, 0), 3 * MIB + 777);
		open_lane(t.path);
		assert_int_equal(run(MC_OP_READ, t.local, 0, 3 * MIB + 777), 0);
		close_lane();
		assert_memory_equal(t.local, t.image, 3 * MIB + 777);
	}
	assert_int_equal(fstat(t.fd, &st), 0);
	(void)state;
}

static void *post_and_leave(void *arg)
{
	post_all();
	return arg;
}

static void slices_outlive_the_thread_that_posted_them(void **state)
{
	pthread_t thread;

	open_lane(t.path);
	for (int i = 0; i < 4; i++) {
		memset(t.local, 0, LOCAL);
		for (unsigned k = 0; k < 40; k++)
			add_frag(add_slice(MC_OP_READ), t.local + k * 65536, k * 65536, 65536);
		assert_int_equal(pthread_create(&thread, NULL, post_and_leave, NULL), 0);
		assert_int_equal(pthread_join(thread, NULL), 0);
		wait_all();
		for (unsigned k = 0; k < 40; k++)
			assert_int_equal(t.slices[k].status, 0);
		assert_memory_equal(t.local, t.image, 40 * 65536);
	}
	(void)state;
}

/* What a child sees of its parent's lane: 0, or the step that went wrong. */
static int child_steps(void)
{
	struct mc_slice *s = &t.slices[0];
	uint8_t token[MC_XPORT_TOKEN_MAX];
	struct mc_xpath path = {.peer_state = t.seg};
	struct mc_xlane *lane;
	struct mc_list left;

	if (t.lane->ops->post(t.lane, &s, 1) != -MC_E_FORKED)
		return 1;
	if (t.lane->ops->poll(t.lane, 0, &s, 1) != -MC_E_FORKED)
		return 2;
	if (t.dev->ops->lane_open(t.dev, &path, &lane) != -MC_E_FORKED)
		return 3;
	mc_list_init(&left);
	(void)t.lane->ops->abort(t.lane, &left, token);
	if (mc_list_is_empty(&left))
		return 4;
	close_lane();
	t.dev->ops->dev_close(t.dev);
	return 0;
}

/* From here on this process's calls of `nr` fail. */
static bool forbid(uint32_t nr, uint32_t error)
{
	struct sock_filter code[] = {
	    BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
	    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, nr, 0, 1),
	    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | error),
	    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog prog = {.len = MC_ARRAY_LEN(code), .filter = code};

	return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
	       prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog) == 0;
}

static int child_open(const char *want)
{
	struct mc_xpath path = {0};

	if (open_dev(&mc_disk_real) < 0)
		return 1;
	if (strncmp(mc_file_dev_describe(t.dev), want, strlen(want)) != 0)
		return 2;
	if (mc_file_seg_open(t.dev, t.path, &t.seg, NULL) < 0)
		return 3;
	path.peer_state = t.seg;
	return t.dev->ops->lane_open(t.dev, &path, &t.lane) < 0 ? 4 : 0;
}

static int sandboxed_before(void)
{
	struct mc_slice *s = add_slice(MC_OP_READ), *done = NULL;
	int rc = 0;

	if (!forbid(SYS_io_uring_setup, EPERM))
		return -1;
	if (child_open("threads: io_uring_setup: Operation not permitted") != 0)
		return 1;
	add_frag(s, t.local, 0, 3 * MIB);
	if (t.lane->ops->post(t.lane, &s, 1) != 1)
		return 2;
	while (rc == 0)
		rc = t.lane->ops->poll(t.lane, MC_NS_PER_S, &done, 1);
	return rc == 1 && s->status == 0 && memcmp(t.local, t.image, 3 * MIB) == 0 ? 0 : 3;
}

/* The rings are there when the sandbox closes: the lane breaks, and abort() still ends. */
static int sandboxed_later(void)
{
	struct mc_slice *s = add_slice(MC_OP_READ), *done = NULL;
	uint8_t token[MC_XPORT_TOKEN_MAX];
	struct mc_list left;

	if (child_open("io_uring") != 0 || !forbid(SYS_io_uring_enter, EPERM))
		return -1;
	add_frag(s, t.local, 0, 3 * MIB);
	if (t.lane->ops->post(t.lane, &s, 1) != 1)
		return 2;
	if (t.lane->ops->poll(t.lane, MC_NS_PER_S, &done, 1) != -MC_E_PERM)
		return 3;
	mc_list_init(&left);
	(void)t.lane->ops->abort(t.lane, &left, token);
	close_lane();
	return !mc_list_is_empty(&left) && s->verdict == MC_SLICE_UNSENT ? 0 : 4;
}

static void run_child(int (*steps)(void))
{
	int status;
	pid_t pid = fork();

	assert_true(pid >= 0);
	if (pid == 0)
		_exit(steps());
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	if (WEXITSTATUS(status) == 255) {
		print_message("# skipped: no io_uring here, or no seccomp\n");
		skip();
	}
	assert_int_equal(WEXITSTATUS(status), 0);
}

static void a_forked_child_is_told_so_and_can_close(void **state)
{
	open_lane(t.path);
	add_frag(add_slice(MC_OP_READ), t.local, 0, 3 * MIB);
	post_all();
	run_child(child_steps);
	wait_all();
	assert_int_equal(t.slices[0].status, 0);
	assert_memory_equal(t.local, t.image, 3 * MIB);
	(void)state;
}

static void where_io_uring_is_forbidden_threads_do_it(void **state)
{
	run_child(sandboxed_before);
	(void)state;
}

static void a_lane_whose_ring_is_forbidden_later_breaks_and_ends(void **state)
{
	run_child(sandboxed_later);
	(void)state;
}

static void lack_of_memory_or_descriptors_fails_the_opening_only(void **state)
{
	struct mc_xdev_env env = {.disk = &mc_disk_real};
	struct mc_file_seg *seg;
	struct mc_xdev *dev;
	struct mc_xlane *lane;
	struct mc_xpath path;

	mc_mem_fail_after(0);
	assert_int_equal(mc_file_dev_open(&env, &dev), -MC_E_NOMEM);
	assert_int_equal(mc_file_seg_open(t.dev, t.path, &seg, NULL), -MC_E_NOMEM);
	mc_mem_fail_after(-1);
	open_lane(t.path);
	path.peer_state = t.seg;
	mc_mem_fail_after(0);
	assert_int_equal(t.dev->ops->lane_open(t.dev, &path, &lane), -MC_E_NOMEM);
	mc_mem_fail_after(-1);
	if (strcmp(mc_file_dev_describe(t.dev), "io_uring") == 0) {
		/* The lane is there, the ring is not: threads do it. */
		t.lane->ops->lane_close(t.lane);
		mc_mem_fail_after(2); /* lane, queue */
		assert_int_equal(t.dev->ops->lane_open(t.dev, &path, &t.lane), 0);
		mc_mem_fail_after(-1);
		assert_int_equal(run(MC_OP_READ, t.local, 0, 3 * MIB), 0);
	}
	(void)state;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    T(short_operations_are_continued),
	    T(errors_of_the_disk_have_codes_and_name_the_fragment),
	    T(o_direct_refused_later_goes_through_the_cache),
	    T(nothing_lands_after_abort),
	    T(slices_outlive_the_thread_that_posted_them),
	    T(a_forked_child_is_told_so_and_can_close),
	    T(lack_of_memory_or_descriptors_fails_the_opening_only),
	    {"where_io_uring_is_forbidden_threads_do_it", where_io_uring_is_forbidden_threads_do_it,
	     setup, teardown, by_uring},
	    {"a_lane_whose_ring_is_forbidden_later_breaks_and_ends",
	     a_lane_whose_ring_is_forbidden_later_breaks_and_ends, setup, teardown, by_uring},
	    T(a_full_file_system_is_an_error_and_what_was_there_stays),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
