/*
 * file_late_test.c: an engine with a file on a device that is away for a while: transfers end by
 * their deadline, what may still land is named and kept clear, and closing does not wait for it.
 */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/priv.h"
#include "sim/fault_disk.h"
#include "xport/file.h"

#define BYTES 65536u
#define TIME_NS (400 * MC_NS_PER_MS) /* of a transfer */
#define SHORT_NS (5 * MC_NS_PER_S)   /* of what takes a second, on a busy machine */
#define WAIT_NS (20 * MC_NS_PER_S)

static char by_uring[] = "", by_threads[] = "1";

static struct fault_disk fault;
static struct mc_engine *eng;
static struct mc_diag diag;
static int64_t live_before;
static char path[64];
static int fd;
static int32_t seg;
static _Alignas(4096) uint8_t mem[BYTES], other[BYTES];

static int setup(void **state)
{
	const struct mc_engine_opts opts = {.size = sizeof(opts), .name = "127.0.0.1"};
	struct mc_xdev_env env;
	char name[80];

	live_before = mc_mem_live();
	(void)snprintf(path, sizeof(path), "/var/tmp/mc-late-XXXXXX");
	fd = mkstemp(path);
	memset(mem, 1, BYTES);
	if (fd < 0 || write(fd, mem, BYTES) != BYTES || setenv("MC_FILE_NO_URING", *state, 1) != 0)
		return -1;
	if (mc_engine_open(&opts, &diag, &eng) < 0)
		return -1;
	fault_disk_init(&fault, &mc_disk_real);
	env = mc_engine_xdev_env(eng);
	env.disk = &fault.disk;
	(void)snprintf(name, sizeof(name), "file://%s", path);
	return mc_file_dev_open(&env, &eng->file) < 0 ||
		       mc_segment_open(eng, name, 0, &diag, &seg) < 0
		   ? -1
		   : 0;
}

static int teardown(void **state)
{
	uint64_t until_ns = mc_now_ns() + WAIT_NS;

	(void)state;
	mc_engine_close(eng);
	atomic_store(&fault.is_away, false);
	while ((atomic_load(&fault.aios) > 0 || mc_mem_live() != live_before) &&
	       mc_now_ns() < until_ns)
		(void)sched_yield();
	(void)close(fd);
	(void)unlink(path);
	return mc_mem_live() == live_before ? 0 : -1;
}

static int move(uint8_t op, uint8_t *at, uint64_t off, uint64_t time_ns)
{
	struct mc_iov l = {(uintptr_t)at, 4096}, r = {off, 4096};
	struct mc_transfer t = {
	    .op = op, .segment = seg, .nlocal = 1, .nremote = 1, .local = &l, .remote = &r};
	uint64_t begin_ns = mc_now_ns();
	struct mc_group g = {.size = sizeof(g),
			     .n = 1,
			     .transfers = &t,
			     .priority = MC_PRIO_NORMAL,
			     .deadline_ns = time_ns};
	int rc;

	diag.text[0] = '\0';
	rc = mc_transfer_sync(eng, &g, &diag);
	assert_true(mc_now_ns() - begin_ns < time_ns + SHORT_NS);
	return rc;
}

static void a_write_that_is_kept_ends_unfenced_and_bars_its_range(void **state)
{
	(void)state;
	atomic_store(&fault.is_away, true);
	memset(mem, 2, 4096);
	assert_int_equal(move(MC_WRITE, mem, 8192, TIME_NS), -MC_E_UNFENCED);
	assert_non_null(strstr(diag.text, path));
	assert_int_equal(move(MC_WRITE, other, 8192, TIME_NS), -MC_E_UNFENCED);
	assert_non_null(strstr(diag.text, "an earlier write"));
	atomic_store(&fault.is_away, false);
	memset(other, 3, 4096);
	assert_int_equal(move(MC_WRITE, other, 8192, WAIT_NS), 0);
	assert_int_equal(pread(fd, mem, 4096, 8192), 4096); /* the late one was before it */
	assert_memory_equal(mem, other, 4096);
	assert_int_equal(atomic_load(&eng->quarantine.n), 0);
}

static void a_read_that_is_kept_ends_unfenced_and_bars_its_memory(void **state)
{
	char text[32];

	(void)state;
	atomic_store(&fault.is_away, true);
	memset(mem, 2, BYTES);
	assert_int_equal(move(MC_READ, mem, 8192, TIME_NS), -MC_E_UNFENCED);
	(void)snprintf(text, sizeof(text), "memory at %p", (void *)mem);
	assert_non_null(strstr(diag.text, text));
	assert_int_equal(move(MC_READ, mem, 0, TIME_NS), -MC_E_UNFENCED);
	assert_non_null(strstr(diag.text, "an earlier read"));
	assert_int_equal(mem[0], 2);
	atomic_store(&fault.is_away, false);
	assert_int_equal(move(MC_READ, mem, 0, WAIT_NS), 0);
	assert_int_equal(mem[0], 1);
	assert_int_equal(atomic_load(&eng->quarantine.n), 0);
}

static void a_submitted_group_ends_by_its_deadline(void **state)
{
	struct mc_iov l = {(uintptr_t)mem, 4096}, r = {4096, 4096};
	struct mc_transfer t = {
	    .op = MC_WRITE, .segment = seg, .nlocal = 1, .nremote = 1, .local = &l, .remote = &r};
	struct mc_group g = {.size = sizeof(g),
			     .n = 1,
			     .transfers = &t,
			     .priority = MC_PRIO_NORMAL,
			     .deadline_ns = TIME_NS};
	struct mc_status st;
	uint64_t id;

	(void)state;
	atomic_store(&fault.is_away, true);
	assert_int_equal(mc_submit(eng, &g, &id), 0);
	assert_int_equal(mc_group_wait(eng, id, TIME_NS + SHORT_NS, &st), 0);
	assert_int_equal(st.status, -MC_E_UNFENCED);
	assert_int_equal(mc_group_free(eng, id), 0);
}

static void closing_does_not_wait_for_the_device(void **state)
{
	uint64_t begin_ns;

	(void)state;
	atomic_store(&fault.is_away, true);
	memset(mem, 4, 4096);
	assert_int_equal(move(MC_WRITE, mem, 0, TIME_NS), -MC_E_UNFENCED);
	begin_ns = mc_now_ns();
	mc_engine_close(eng);
	eng = NULL;
	assert_true(mc_now_ns() - begin_ns < SHORT_NS);
	assert_true(mc_mem_live() > live_before); /* the teardown sees it go */
}

/* clang-format off */
#define T(f) {#f "_by_io_uring", f, setup, teardown, by_uring}, \
	     {#f "_by_threads", f, setup, teardown, by_threads}
/* clang-format on */

int main(void)
{
	const struct CMUnitTest tests[] = {
	    T(a_write_that_is_kept_ends_unfenced_and_bars_its_range),
	    T(a_read_that_is_kept_ends_unfenced_and_bars_its_memory),
	    T(a_submitted_group_ends_by_its_deadline),
	    T(closing_does_not_wait_for_the_device),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
