/*
 * file_test.c: files through the vtable, by io_uring and by threads, against a model in memory.
 */
#include "file_fixture.h"

#include <poll.h>

/* Counts what goes either way. */
static int count_ways(struct fault_disk *f, const struct fault_call *call, int res)
{
	(void)f;
	t.ops[(call->flags & MC_DISK_DIRECT) != 0]++;
	return res;
}

static void any_offset_length_and_address_moves_the_right_bytes(void **state)
{
	seed(0);
	use_faults(count_ways);
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

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(only_whole_units_with_fitting_memory_go_direct),
	    T(any_offset_length_and_address_moves_the_right_bytes),
	    T(the_same_on_a_file_system_in_memory),
	    T(a_write_past_the_end_makes_the_file_longer),
	    T(a_read_past_the_end_is_out_of_range),
	    T(empty_fragments_and_wrong_slices_end_like_others),
	    T(a_file_that_may_only_be_read_gives_that_right_alone),
	    T(paths_that_are_no_file_are_refused_by_name),
	    T(the_device_says_how_it_works),
	    T(an_armed_lane_wakes_its_owner_and_an_idle_one_does_not),
	    T(a_full_lane_takes_no_more_until_slices_are_polled),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
