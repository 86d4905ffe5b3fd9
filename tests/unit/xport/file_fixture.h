/*
 * file_fixture.h: a file, its model in memory and one lane on it, for the tests of the file
 * transport. Each test runs twice: by io_uring and by threads.
 */
#ifndef TESTS_FILE_FIXTURE_H
#define TESTS_FILE_FIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"
#include "base/rand.h"
#include "sim/fault_disk.h"
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
	struct fault_disk fault;
	struct mc_rand rand;
	int faults_left;
	unsigned ops[2]; /* seen: through the cache, direct */
	struct mc_slice slices[SLICES_MAX];
	struct mc_frag frags[SLICES_MAX][FRAGS_MAX];
	unsigned nslices;
} t;

/* ---- fixture ---- */

static inline void open_lane(const char *path)
{
	struct mc_diag diag = {.text = ""};
	struct mc_xpath xpath = {0};

	if (mc_file_seg_open(t.dev, path, &t.seg, &diag) < 0)
		fail_msg("%s", diag.text);
	xpath.peer_state = t.seg;
	assert_int_equal(t.dev->ops->lane_open(t.dev, &xpath, &t.lane), 0);
}

static inline void close_lane(void)
{
	if (t.lane)
		t.lane->ops->lane_close(t.lane);
	mc_file_seg_close(t.seg);
	t.lane = NULL;
	t.seg = NULL;
}

static inline void make_file(const char *base, size_t len)
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

static inline void remove_file(void)
{
	mc_fd_close(&t.fd);
	(void)unlink(t.path);
	(void)rmdir(t.dir);
}

static inline const char *disk_dir(void)
{
	const char *dir = getenv("TMPDIR");

	return dir && dir[0] && strlen(dir) < 40 ? dir : "/tmp";
}

static inline int open_dev(const struct mc_disk *disk)
{
	struct mc_xdev_env env = {.disk = disk};

	return mc_file_dev_open(&env, &t.dev);
}

/* From here on `after` sees what each operation gave. */
static inline void use_faults(int (*after)(struct fault_disk *f, const struct fault_call *call,
					   int res))
{
	t.dev->ops->dev_close(t.dev);
	fault_disk_init(&t.fault, &mc_disk_real);
	t.fault.after = after;
	assert_int_equal(open_dev(&t.fault.disk), 0);
}

static inline int setup(void **state)
{
	memset(&t, 0, sizeof(t));
	t.live_before = mc_mem_live();
	t.image = mc_aligned_alloc(4096, IMAGE);
	t.local = mc_aligned_alloc(4096, LOCAL);
	if (!t.image || !t.local || setenv("MC_FILE_NO_URING", *state, 1) != 0)
		return -1;
	if (open_dev(&mc_disk_real) < 0)
		return -1;
	make_file(disk_dir(), 3 * MIB + 777);
	return 0;
}

static inline int teardown(void **state)
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

static inline void seed(uint64_t fixed)
{
	const char *text = getenv("SEED");
	uint64_t s = text ? strtoull(text, NULL, 0) : mc_now_ns();

	s = fixed ? fixed : s;
	print_message("# seed %llu: SEED=… repeats it\n", (unsigned long long)s);
	mc_rand_seed(&t.rand, s);
}

/* ---- slices ---- */

static inline struct mc_slice *add_slice(enum mc_op op)
{
	struct mc_slice *s = &t.slices[t.nslices];

	assert_true(t.nslices < SLICES_MAX);
	*s = (struct mc_slice){
	    .op = op, .frags = t.frags[t.nslices], .status = 12345, .verdict = MC_SLICE_MAYBE};
	t.nslices++;
	return s;
}

static inline void add_frag(struct mc_slice *s, uint8_t *at, uint64_t off, uint64_t len)
{
	s->frags[s->nfrags++] = (struct mc_frag){at, off, len, &whole};
	s->len += len;
}

static inline void post_all(void)
{
	struct mc_slice *ptrs[SLICES_MAX];

	for (unsigned i = 0; i < t.nslices; i++)
		ptrs[i] = &t.slices[i];
	assert_int_equal(t.lane->ops->post(t.lane, ptrs, t.nslices), t.nslices);
}

static inline void wait_all(void)
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

static inline void run_all(void)
{
	uint64_t calls = mc_mem_calls();

	post_all();
	wait_all();
	assert_int_equal(mc_mem_calls(), calls); /* no allocation per transfer */
}

static inline int run(enum mc_op op, uint8_t *at, uint64_t off, uint64_t len)
{
	struct mc_slice *s = add_slice(op);

	add_frag(s, at, off, len);
	run_all();
	return s->status;
}

/* ---- the sweep ---- */

static inline void random_fill(uint8_t *at, size_t len)
{
	uint64_t word;

	for (size_t i = 0; i < len; i += sizeof(word)) {
		word = mc_rand_u64(&t.rand);
		memcpy(at + i, &word, mc_min(len - i, sizeof(word)));
	}
}

/* A length that is often on or near a boundary. */
static inline uint64_t random_len(uint64_t most)
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
static inline void add_neighbours(enum mc_op op, uint64_t off, uint64_t len, uint64_t skew)
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

static inline void sweep_round(uint64_t size)
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

static inline void file_equals_image(uint64_t size)
{
	struct stat st;

	assert_int_equal(pread(t.fd, t.local, size, 0), size);
	assert_memory_equal(t.local, t.image, size);
	assert_int_equal(fstat(t.fd, &st), 0);
	assert_int_equal(st.st_size, size);
	assert_int_equal(mc_file_seg_size(t.seg), size);
}

static inline void sweep(unsigned rounds)
{
	uint64_t size = IMAGE - 100;

	random_fill(t.image, size);
	assert_int_equal(pwrite(t.fd, t.image, size, 0), size);
	open_lane(t.path);
	for (unsigned i = 0; i < rounds; i++)
		sweep_round(size);
	file_equals_image(size);
}

/* clang-format off */
#define T(f) {#f "_by_io_uring", f, setup, teardown, by_uring}, \
	     {#f "_by_threads", f, setup, teardown, by_threads}
/* clang-format on */

#endif
