/*
 * file_test.c: files through the vtable, by io_uring and by threads, against a model in memory.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"
#include "base/rand.h"
#include "xport/file_priv.h"

#define MIB (1u << 20)
#define IMAGE (6u * MIB)	    /* bytes of the model */
#define LOCAL (IMAGE + 64u * 1024u) /* and of memory, with room for wrong alignment */
#define SLICES_MAX 48u
#define FRAGS_MAX 4u
#define WAIT_NS (20 * MC_NS_PER_S) /* far above what any of this takes */

static const struct mc_remote_region whole = {.len = INT64_MAX, .rights = 3, .kind = MC_MEM_FILE};

/* Which way the tests of a row go. */
static char by_uring[] = "", by_threads[] = "1";

static struct {
	int64_t live_before;
	char dir[64], path[96];
	int fd; /* the test's own view of the file */
	struct mc_xdev *dev;
	struct mc_file_seg *seg;
	struct mc_xlane *lane;
	uint8_t *image, *local;
	struct mc_file_fault fault;
	struct mc_rand rand;
	int faults_left;
	unsigned ops[2]; /* seen: through the cache, direct */
	struct mc_slice slices[SLICES_MAX];
	struct mc_frag frags[SLICES_MAX][FRAGS_MAX];
	unsigned nslices;
} t;

/* ---- fixture ---- */

static void open_lane(const char *path)
{
	struct mc_diag diag = {.text = ""};
	struct mc_xpath xpath = {0};

	if (mc_file_seg_open(t.dev, path, &t.seg, &diag) < 0)
		fail_msg("%s", diag.text);
	xpath.peer_state = t.seg;
	assert_int_equal(t.dev->ops->lane_open(t.dev, &xpath, &t.lane), 0);
}

static void close_lane(void)
{
	if (t.lane)
		t.lane->ops->lane_close(t.lane);
	mc_file_seg_close(t.seg);
	t.lane = NULL;
	t.seg = NULL;
}

static void make_file(const char *base, size_t len)
{
	(void)snprintf(t.dir, sizeof(t.dir), "%s/mc-file-XXXXXX", base);
	assert_non_null(mkdtemp(t.dir));
	assert_int_equal(chmod(t.dir, 0755), 0);
	(void)snprintf(t.path, sizeof(t.path), "%s/seg", t.dir);
	t.fd = open(t.path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
	assert_true(t.fd >= 0);
	for (size_t i = 0; i < len; i++)
		t.image[i] = (uint8_t)(i * 7 + (i >> 12));
	assert_int_equal(pwrite(t.fd, t.image, len, 0), len);
}

static void remove_file(void)
{
	mc_fd_close(&t.fd);
	(void)unlink(t.path);
	(void)rmdir(t.dir);
}

static const char *disk_dir(void)
{
	const char *dir = getenv("TMPDIR");

	return dir && dir[0] && strlen(dir) < 40 ? dir : "/tmp";
}

static int setup(void **state)
{
	struct mc_xdev_env env = {0};

	memset(&t, 0, sizeof(t));
	t.live_before = mc_mem_live();
	t.image = mc_aligned_alloc(4096, IMAGE);
	t.local = mc_aligned_alloc(4096, LOCAL);
	if (!t.image || !t.local || setenv("MC_FILE_NO_URING", *state, 1) != 0)
		return -1;
	if (mc_file_dev_open(&env, &t.dev) < 0)
		return -1;
	make_file(disk_dir(), 3 * MIB + 777);
	return 0;
}

static int teardown(void **state)
{
	uint8_t token[MC_XPORT_TOKEN_MAX];
	struct mc_list left;

	(void)state;
	mc_list_init(&left);
	if (t.lane) /* a test that failed left slices */
		(void)t.lane->ops->abort(t.lane, &left, token);
	close_lane();
	t.dev->ops->dev_close(t.dev);
	remove_file();
	mc_free(t.image);
	mc_free(t.local);
	return mc_mem_live() == t.live_before ? 0 : -1;
}

static void seed(uint64_t fixed)
{
	const char *text = getenv("SEED");
	uint64_t s = text ? strtoull(text, NULL, 0) : mc_now_ns();

	s = fixed ? fixed : s;
	print_message("# seed %llu: SEED=… repeats it\n", (unsigned long long)s);
	mc_rand_seed(&t.rand, s);
}

/* ---- slices ---- */

static struct mc_slice *add_slice(enum mc_op op)
{
	struct mc_slice *s = &t.slices[t.nslices];

	assert_true(t.nslices < SLICES_MAX);
	*s = (struct mc_slice){
	    .op = op, .frags = t.frags[t.nslices], .status = 12345, .verdict = MC_SLICE_MAYBE};
	t.nslices++;
	return s;
}

static void add_frag(struct mc_slice *s, uint8_t *at, uint64_t off, uint64_t len)
{
	s->frags[s->nfrags++] = (struct mc_frag){at, off, len, &whole};
	s->len += len;
}

static void post_all(void)
{
	struct mc_slice *ptrs[SLICES_MAX];

	for (unsigned i = 0; i < t.nslices; i++)
		ptrs[i] = &t.slices[i];
	assert_int_equal(t.lane->ops->post(t.lane, ptrs, t.nslices), t.nslices);
}

static void wait_all(void)
{
	uint64_t until_ns = mc_now_ns() + WAIT_NS;
	struct mc_slice *done[3];
	unsigned n = 0;
	int rc;

	while (n < t.nslices) {
		rc = t.lane->ops->poll(t.lane, MC_NS_PER_S, done, MC_ARRAY_LEN(done));
		assert_true(rc >= 0 && rc <= 3);
		for (int i = 0; i < rc; i++) {
			assert_int_equal(done[i]->verdict, MC_SLICE_DONE);
			if (done[i]->status == 0)
				assert_int_equal(done[i]->moved, done[i]->len);
		}
		n += (unsigned)rc;
		assert_true(mc_now_ns() < until_ns);
	}
	t.nslices = 0;
}

static void run_all(void)
{
	uint64_t calls = mc_mem_calls();

	post_all();
	wait_all();
	assert_int_equal(mc_mem_calls(), calls); /* no allocation per transfer */
}

static int run(enum mc_op op, uint8_t *at, uint64_t off, uint64_t len)
{
	struct mc_slice *s = add_slice(op);

	add_frag(s, at, off, len);
	run_all();
	return s->status;
}

/* ---- the sweep ---- */

static void random_fill(uint8_t *at, size_t len)
{
	uint64_t word;

	for (size_t i = 0; i < len; i += sizeof(word)) {
		word = mc_rand_u64(&t.rand);
		memcpy(at + i, &word, mc_min(len - i, sizeof(word)));
	}
}

/* A length that is often on or near a boundary. */
static uint64_t random_len(uint64_t most)
{
	uint64_t len = mc_rand_below(&t.rand, most) + 1;

	switch (mc_rand_below(&t.rand, 4)) {
	case 0:
		len = mc_rand_below(&t.rand, 9000) + 1;
		break;
	case 1:
		len = (len | 4095) + 1;
		break;
	case 2:
		len = (len | 511) + mc_rand_below(&t.rand, 3);
		break;
	default:
		break;
	}
	len = mc_max(1ull, len);
	return mc_min(len, most);
}

/* Cut [off, off + len) into neighbouring slices that run at once: their ends share pages. */
static void add_neighbours(enum mc_op op, uint64_t off, uint64_t len, uint64_t skew)
{
	uint64_t at = 0;

	while (at < len && t.nslices < SLICES_MAX) {
		struct mc_slice *s = add_slice(op);

		while (at < len && s->nfrags < FRAGS_MAX) {
			uint64_t n = random_len(mc_min(len - at, 1200000ull));

			if (t.nslices == SLICES_MAX && s->nfrags == FRAGS_MAX - 1)
				n = len - at;
			add_frag(s, t.local + skew + at, off + at, n);
			at += n;
		}
	}
}

static void sweep_round(uint64_t size)
{
	uint64_t off = mc_rand_below(&t.rand, size), len = random_len(size - off);
	bool is_write = mc_rand_below(&t.rand, 2) == 0;
	uint64_t skew = 0;

	/* Memory that permits O_DIRECT for this offset, or just any. */
	if (mc_rand_below(&t.rand, 3) > 0)
		skew = off % 4096;
	else
		skew = mc_rand_below(&t.rand, 8192);
	if (is_write)
		random_fill(t.local + skew, len);
	else
		memset(t.local, 0xa5, LOCAL);
	add_neighbours(is_write ? MC_OP_WRITE : MC_OP_READ, off, len, skew);
	run_all();
	for (unsigned i = 0; i < SLICES_MAX; i++)
		if (t.slices[i].nfrags > 0)
			assert_int_equal(t.slices[i].status, 0);
	memset(t.slices, 0, sizeof(t.slices));
	if (is_write)
		memcpy(t.image + off, t.local + skew, len);
	else
		assert_memory_equal(t.local + skew, t.image + off, len);
}

static void file_equals_image(uint64_t size)
{
	struct stat st;

	assert_int_equal(pread(t.fd, t.local, size, 0), size);
	assert_memory_equal(t.local, t.image, size);
	assert_int_equal(fstat(t.fd, &st), 0);
	assert_int_equal(st.st_size, size);
	assert_int_equal(mc_file_seg_size(t.seg), size);
}

/* Counts what goes either way. */
static int count_ways(struct mc_file_fault *f, const struct mc_file_part *p, int res)
{
	(void)f;
	t.ops[p->is_direct]++;
	return res;
}

static void sweep(unsigned rounds)
{
	uint64_t size = IMAGE - 100;

	random_fill(t.image, size);
	assert_int_equal(pwrite(t.fd, t.image, size, 0), size);
	open_lane(t.path);
	for (unsigned i = 0; i < rounds; i++)
		sweep_round(size);
	file_equals_image(size);
}

static void any_offset_length_and_address_moves_the_right_bytes(void **state)
{
	seed(0);
	t.fault.result = count_ways;
	mc_file_dev_fault(t.dev, &t.fault);
	sweep(60);
	assert_true(t.ops[false] > 20);
	if (t.seg->align.is_direct_ok)
		assert_true(t.ops[true] > 20);
	else
		print_message("# no O_DIRECT in %s\n", disk_dir());
	(void)state;
}

static void the_same_on_a_file_system_in_memory(void **state)
{
	seed(0);
	remove_file();
	if (access("/dev/shm", W_OK) != 0) {
		print_message("# skipped: no /dev/shm\n");
		make_file(disk_dir(), 0);
		skip();
	}
	make_file("/dev/shm", 0);
	sweep(30);
	(void)state;
}

/* ---- results that the kernel gives seldom ---- */

static int cut_short(struct mc_file_fault *f, const struct mc_file_part *p, int res)
{
	(void)f;
	switch (mc_rand_below(&t.rand, 8)) {
	case 0:
		return -EINTR;
	case 1:
		return -ECANCELED;
	case 2:
		return p->is_direct && mc_rand_below(&t.rand, 16) == 0 ? -EINVAL : res;
	case 3:
		return res; /* whole */
	default:
		return res > 1 ? 1 + (int)mc_rand_below(&t.rand, (uint64_t)res) : res;
	}
}

static void short_operations_are_continued(void **state)
{
	seed(0);
	t.fault.result = cut_short;
	mc_file_dev_fault(t.dev, &t.fault);
	sweep(30);
	(void)state;
}

static int fail_second_fragment(struct mc_file_fault *f, const struct mc_file_part *p, int res)
{
	(void)f;
	return p->frag == 1 ? -t.faults_left : res;
}

static int status_of_failure(int error)
{
	struct mc_slice *s = add_slice(MC_OP_WRITE);

	add_frag(s, t.local, 0, 8192);
	add_frag(s, t.local + 8192, 16384, 3 * MIB);
	add_frag(s, t.local, 8 * MIB, 100);
	t.faults_left = error;
	run_all();
	assert_int_equal(s->bad_frag, 1);
	return s->status;
}

static void errors_of_the_disk_have_codes_and_name_the_fragment(void **state)
{
	t.fault.result = fail_second_fragment;
	mc_file_dev_fault(t.dev, &t.fault);
	open_lane(t.path);
	assert_int_equal(status_of_failure(EIO), -MC_E_IO);
	assert_int_equal(status_of_failure(ENOSPC), -MC_E_NOSPACE);
	assert_int_equal(status_of_failure(EDQUOT), -MC_E_NOSPACE);
	assert_int_equal(status_of_failure(EFBIG), -MC_E_TOO_BIG);
	assert_int_equal(status_of_failure(ECANCELED), -MC_E_IO); /* for ever: not tried for ever */
	t.fault.result = cut_short;
	seed(1);
	assert_int_equal(run(MC_OP_READ, t.local, 0, 3 * MIB), 0); /* the lane still works */
	(void)state;
}

static int refuse_direct(struct mc_file_fault *f, const struct mc_file_part *p, int res)
{
	(void)f;
	t.faults_left -= p->is_direct;
	return p->is_direct ? -EINVAL : res;
}

static void o_direct_refused_later_goes_through_the_cache(void **state)
{
	t.fault.result = refuse_direct;
	mc_file_dev_fault(t.dev, &t.fault);
	open_lane(t.path);
	assert_int_equal(run(MC_OP_READ, t.local, 0, MIB), 0);
	assert_memory_equal(t.local, t.image, MIB);
	t.faults_left = 0;
	assert_int_equal(run(MC_OP_READ, t.local, 0, MIB), 0);
	assert_int_equal(t.faults_left, 0); /* not tried again */
	(void)state;
}

static void a_full_file_system_is_an_error_and_what_fitted_is_there(void **state)
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
	assert_int_equal(run(MC_OP_WRITE, t.local, 0, 2 * MIB), -MC_E_NOSPACE);
	assert_int_equal(run(MC_OP_WRITE, t.image, 0, 4096), 0);
	assert_int_equal(run(MC_OP_READ, t.local, 0, 4096), 0);
	assert_memory_equal(t.local, t.image, 4096);
	close_lane();
	mc_fd_close(&t.fd);
	assert_int_equal(umount2(t.dir, MNT_DETACH), 0);
	(void)state;
}

/* ---- ends of files, rights, arguments ---- */

static void a_write_past_the_end_makes_the_file_longer(void **state)
{
	uint64_t size = 3 * MIB + 777;

	open_lane(t.path);
	seed(0);
	random_fill(t.image + size, IMAGE - size);
	for (uint64_t n; size < IMAGE; size += n) {
		n = mc_min(random_len(MIB), IMAGE - size);
		assert_int_equal(run(MC_OP_WRITE, t.image + size, size, n), 0);
		assert_int_equal(mc_file_seg_size(t.seg), size + n);
	}
	file_equals_image(IMAGE);
	(void)state;
}

static void a_read_past_the_end_is_out_of_range(void **state)
{
	uint64_t size = 3 * MIB + 777;

	open_lane(t.path);
	assert_int_equal(run(MC_OP_READ, t.local, 0, size), 0);
	assert_memory_equal(t.local, t.image, size);
	assert_int_equal(run(MC_OP_READ, t.local, 0, size + 1), -MC_E_RANGE);
	assert_int_equal(run(MC_OP_READ, t.local, 0, 5 * MIB), -MC_E_RANGE);
	assert_int_equal(run(MC_OP_READ, t.local, size, 1), -MC_E_RANGE);
	assert_int_equal(run(MC_OP_READ, t.local, 4 * MIB, MIB), -MC_E_RANGE);
	assert_int_equal(run(MC_OP_READ, t.local, UINT64_MAX, 2), -MC_E_RANGE);
	assert_int_equal(run(MC_OP_WRITE, t.local, INT64_MAX, 1), -MC_E_RANGE);
	assert_int_equal(run(MC_OP_READ, t.local, size + 9, 0), 0); /* nothing is always there */
	assert_int_equal(mc_file_seg_size(t.seg), size);
	(void)state;
}

static void empty_fragments_and_wrong_slices_end_like_others(void **state)
{
	struct mc_slice *s;

	open_lane(t.path);
	s = add_slice(MC_OP_READ);
	add_frag(s, t.local, 0, 0);
	add_frag(s, t.local, 100, 5000);
	add_frag(s, t.local, 0, 0);
	run_all();
	assert_int_equal(s->status, 0);
	assert_memory_equal(t.local, t.image + 100, 5000);
	s = add_slice(MC_OP_WRITE);
	add_frag(s, t.local, 0, 8);
	s->signal.rr = &whole;
	run_all();
	assert_int_equal(s->status, -MC_E_UNSUPPORTED);
	(void)state;
}

static void a_file_that_may_only_be_read_gives_that_right_alone(void **state)
{
	assert_int_equal(chmod(t.path, 0444), 0);
	if (geteuid() == 0)
		assert_int_equal(seteuid(65534), 0); /* root may write anything */
	open_lane(t.path);
	if (getuid() == 0)
		assert_int_equal(seteuid(0), 0);
	assert_int_equal(mc_file_seg_rights(t.seg), MC_RIGHT_READ);
	assert_int_equal(run(MC_OP_READ, t.local, 5, 2 * MIB), 0);
	assert_memory_equal(t.local, t.image + 5, 2 * MIB);
	assert_int_equal(run(MC_OP_WRITE, t.local, 0, 1), -MC_E_PERM);
	(void)state;
}

static int open_code(const char *path, const char *word)
{
	struct mc_diag diag = {.text = ""};
	struct mc_file_seg *seg;
	int rc = mc_file_seg_open(t.dev, path, &seg, &diag);

	assert_true(rc < 0);
	assert_non_null(strstr(diag.text, word));
	return rc;
}

static void paths_that_are_no_file_are_refused_by_name(void **state)
{
	char fifo[112], url[112];

	assert_int_equal(open_code("seg", "\"seg\""), -MC_E_INVAL);
	assert_int_equal(open_code("file://seg", "\"seg\""), -MC_E_INVAL);
	assert_int_equal(open_code("", "absolute"), -MC_E_INVAL);
	assert_int_equal(open_code("/nowhere/seg", "/nowhere/seg"), -MC_E_NOENT);
	assert_int_equal(open_code(t.dir, t.dir), -MC_E_INVAL);
	assert_int_equal(open_code("/dev/null", "/dev/null"), -MC_E_INVAL);
	(void)snprintf(fifo, sizeof(fifo), "%s/fifo", t.dir);
	assert_int_equal(mkfifo(fifo, 0600), 0);
	assert_int_equal(open_code(fifo, "fifo"), -MC_E_INVAL);
	assert_int_equal(unlink(fifo), 0);
	(void)snprintf(url, sizeof(url), "file://%s", t.path);
	open_lane(url);
	assert_int_equal(mc_file_seg_rights(t.seg), MC_RIGHT_READ | MC_RIGHT_WRITE);
	assert_int_equal(fcntl(t.seg->fd, F_GETFD), FD_CLOEXEC);
	(void)state;
}

static void the_device_says_how_it_works(void **state)
{
	const char *text = mc_file_dev_describe(t.dev);

	if (*state == by_threads) {
		assert_string_equal(text, "threads: MC_FILE_NO_URING is set");
		return;
	}
	if (strncmp(text, "threads", 7) == 0) {
		print_message("# skipped: %s\n", text);
		skip();
	}
	assert_string_equal(text, "io_uring");
}

/* ---- waiting, limits, ends of lanes ---- */

static bool is_readable(void)
{
	struct mc_xarm arm;
	struct pollfd p;

	t.lane->ops->arm(t.lane, &arm);
	assert_true(arm.fd >= 0);
	p = (struct pollfd){.fd = arm.fd, .events = arm.events};
	return poll(&p, 1, 0) == 1;
}

static void an_armed_lane_wakes_its_owner_and_an_idle_one_does_not(void **state)
{
	struct mc_slice *done[2];
	struct mc_xarm arm;
	struct pollfd p;
	int n = 0;

	open_lane(t.path);
	assert_false(is_readable());
	add_frag(add_slice(MC_OP_READ), t.local, 0, 2 * MIB);
	add_frag(add_slice(MC_OP_READ), t.local + 2 * MIB, UINT64_MAX, 1);
	post_all();
	while (n < 2) {
		t.lane->ops->arm(t.lane, &arm);
		p = (struct pollfd){.fd = arm.fd, .events = arm.events};
		assert_int_equal(poll(&p, 1, 20000), 1);
		n += t.lane->ops->poll(t.lane, 0, done, 1);
	}
	assert_int_equal(n, 2);
	assert_false(is_readable());
	assert_int_equal(t.lane->ops->progress(t.lane), 2 * MIB);
	(void)state;
}

static void a_full_lane_takes_no_more_until_slices_are_polled(void **state)
{
	static struct mc_slice slices[100];
	static struct mc_slice *ptrs[100];
	static struct mc_frag frags[100];
	struct mc_slice *done[100];
	int n = 0;

	open_lane(t.path);
	for (int i = 0; i < 100; i++) {
		frags[i] = (struct mc_frag){t.local + i * 8192, 0, 8192, &whole};
		slices[i] = (struct mc_slice){
		    .op = MC_OP_READ, .nfrags = 1, .frags = &frags[i], .len = 8192};
		ptrs[i] = &slices[i];
	}
	assert_int_equal(t.lane->ops->post(t.lane, ptrs, 100), t.lane->ops->depth_max);
	assert_int_equal(t.lane->ops->post(t.lane, ptrs + 64, 36), 0);
	while (n < 64)
		n += t.lane->ops->poll(t.lane, MC_NS_PER_S, done, 100);
	assert_int_equal(t.lane->ops->post(t.lane, ptrs + 64, 36), 36);
	while (n < 100)
		n += t.lane->ops->poll(t.lane, MC_NS_PER_S, done, 100);
	assert_int_equal(n, 100);
	for (int i = 0; i < 100; i++)
		assert_int_equal(slices[i].status, 0);
	(void)state;
}

static void abort_in_flight(enum mc_op op)
{
	uint8_t token[MC_XPORT_TOKEN_MAX];
	struct mc_list left, *node;
	struct mc_slice *s, *done;
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
	assert_int_equal(t.lane->ops->abort(t.lane, &left, token), 0);
	memset(t.local, 0x3c, LOCAL); /* from here on it is ours */
	for (node = mc_list_pop_front(&left); node; node = mc_list_pop_front(&left), n++) {
		s = mc_list_entry(node, struct mc_slice, link);
		assert_true(s->verdict == MC_SLICE_UNSENT ||
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

static void a_forked_child_is_told_so_and_can_close(void **state)
{
	int status;
	pid_t pid;

	open_lane(t.path);
	add_frag(add_slice(MC_OP_READ), t.local, 0, 3 * MIB);
	post_all();
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0)
		_exit(child_steps());
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 0);
	wait_all();
	assert_int_equal(t.slices[0].status, 0);
	assert_memory_equal(t.local, t.image, 3 * MIB);
	(void)state;
}

static void lack_of_memory_or_descriptors_fails_the_opening_only(void **state)
{
	struct mc_xdev_env env = {0};
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
		mc_mem_fail_after(1);
		assert_int_equal(t.dev->ops->lane_open(t.dev, &path, &t.lane), 0);
		mc_mem_fail_after(-1);
		assert_int_equal(run(MC_OP_READ, t.local, 0, 3 * MIB), 0);
	}
	(void)state;
}

/* ---- the cut, which is pure ---- */

static void only_whole_units_with_fitting_memory_go_direct(void **state)
{
	static const struct mc_file_align al = {.is_direct_ok = true, .unit = 4096, .mem = 512};
	static const struct mc_file_align never = {.is_direct_ok = false, .unit = 4096, .mem = 512};
	static const struct {
		uint64_t off, mem, len;
		uint32_t want;
		bool is_direct;
	} rows[] = {
	    {0, 0, 4096, 4096, true},
	    {0, 512, 4097, 4096, true},
	    {0, 256, 4096, 4096, false},
	    {0, 0, 4095, 4095, false},
	    {1, 1, 4096 + 4095, 4095, false},	     /* a head, a unit */
	    {1, 1, 4096 + 4094, 4096 + 4094, false}, /* no whole unit inside */
	    {1, 0, 100000, 100000, false},	     /* after the head the memory would not fit */
	    {4095, 511, 5000000, 1, false},
	    {8192, 0, 5000000, MC_FILE_CHUNK, true},
	    {8192, 1, 5000000, MC_FILE_CHUNK, false},
	    {8192, 0, 1, 1, false},
	};
	bool is_direct;

	for (size_t i = 0; i < MC_ARRAY_LEN(rows); i++) {
		assert_int_equal(
		    mc_file_cut(&al, rows[i].off, rows[i].mem, rows[i].len, &is_direct),
		    rows[i].want);
		assert_int_equal(is_direct, rows[i].is_direct);
		assert_int_equal(
		    mc_file_cut(&never, rows[i].off, rows[i].mem, rows[i].len, &is_direct),
		    mc_min(rows[i].len, (uint64_t)MC_FILE_CHUNK));
		assert_false(is_direct);
	}
	(void)state;
}

/* clang-format off */
#define T(f) {#f "_by_io_uring", f, setup, teardown, by_uring}, \
	     {#f "_by_threads", f, setup, teardown, by_threads}
/* clang-format on */

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(only_whole_units_with_fitting_memory_go_direct),
	    T(any_offset_length_and_address_moves_the_right_bytes),
	    T(the_same_on_a_file_system_in_memory),
	    T(short_operations_are_continued),
	    T(errors_of_the_disk_have_codes_and_name_the_fragment),
	    T(o_direct_refused_later_goes_through_the_cache),
	    T(a_write_past_the_end_makes_the_file_longer),
	    T(a_read_past_the_end_is_out_of_range),
	    T(empty_fragments_and_wrong_slices_end_like_others),
	    T(a_file_that_may_only_be_read_gives_that_right_alone),
	    T(paths_that_are_no_file_are_refused_by_name),
	    T(the_device_says_how_it_works),
	    T(an_armed_lane_wakes_its_owner_and_an_idle_one_does_not),
	    T(a_full_lane_takes_no_more_until_slices_are_polled),
	    T(nothing_lands_after_abort),
	    T(slices_outlive_the_thread_that_posted_them),
	    T(a_forked_child_is_told_so_and_can_close),
	    T(lack_of_memory_or_descriptors_fails_the_opening_only),
	    T(a_full_file_system_is_an_error_and_what_fitted_is_there),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
