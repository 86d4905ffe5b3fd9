/*
 * shm_heap_test.c: the allocator of memory that peers can map.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/mem.h"
#include "base/rand.h"
#include "xport/shm_heap.h"

#define MIB ((size_t)1 << 20)

static struct mc_shm_heap *heap;
static int64_t live_before;

static int heap_setup(void **state)
{
	(void)state;
	live_before = mc_mem_live();
	return mc_shm_heap_open(&heap);
}

static int heap_teardown(void **state)
{
	(void)state;
	mc_shm_heap_close(heap);
	return mc_mem_live() == live_before ? 0 : -1;
}

static uint8_t *take(size_t len)
{
	void *p = NULL;

	assert_int_equal(mc_shm_heap_alloc(heap, len, &p), 0);
	assert_int_equal((uintptr_t)p % 4096, 0);
	return p;
}

static void blocks_do_not_overlap_and_are_usable_to_the_last_byte(void **state)
{
	enum { N = 200 };
	struct {
		uint8_t *p;
		size_t len;
	} b[N] = {0};
	struct mc_rand r;
	size_t i;

	mc_rand_seed(&r, 42);
	print_message("seed 42\n");
	for (int round = 0; round < 5000; round++) {
		i = mc_rand_below(&r, N);
		if (b[i].p) {
			assert_int_equal(b[i].p[0], (uint8_t)i);
			assert_int_equal(b[i].p[b[i].len - 1], (uint8_t)i);
			assert_int_equal(mc_shm_heap_free(heap, b[i].p), 0);
			b[i].p = NULL;
			continue;
		}
		b[i].len = 1 + mc_rand_below(&r, (uint64_t)1 << mc_rand_below(&r, 23));
		b[i].p = take(b[i].len);
		b[i].p[0] = b[i].p[b[i].len - 1] = (uint8_t)i;
	}
	for (i = 0; i < N; i++) {
		if (b[i].p)
			assert_int_equal(mc_shm_heap_free(heap, b[i].p), 0);
	}
	(void)state;
}

static void freed_neighbours_join_again(void **state)
{
	uint8_t *p[64], *all;
	uint32_t arena, again;
	uint64_t off;

	for (int i = 0; i < 64; i++)
		p[i] = take(MIB); /* all of the first arena */
	assert_true(mc_shm_heap_where(heap, (uintptr_t)p[63], MIB, &arena, &off));
	assert_int_equal(arena, 0);
	for (int i = 0; i < 64; i += 2)
		assert_int_equal(mc_shm_heap_free(heap, p[i]), 0);
	for (int i = 1; i < 64; i += 2)
		assert_int_equal(mc_shm_heap_free(heap, p[i]), 0);
	all = take(64 * MIB);
	assert_true(mc_shm_heap_where(heap, (uintptr_t)all, 64 * MIB, &again, &off));
	assert_int_equal(again, arena);
	assert_int_equal(off, 0);
	(void)state;
}

static void a_large_freed_block_comes_back_zeroed(void **state)
{
	uint8_t *p = take(2 * MIB);

	memset(p, 0xff, 2 * MIB);
	assert_int_equal(mc_shm_heap_free(heap, p), 0);
	assert_ptr_equal(take(2 * MIB), p);
	for (size_t i = 0; i < 2 * MIB; i += 511)
		assert_int_equal(p[i], 0);
	(void)state;
}

static void free_of_what_is_no_block_is_refused(void **state)
{
	uint8_t *p = take(10000), *whole = take((size_t)3 << 30);
	int on_stack = 0;

	assert_int_equal(mc_shm_heap_free(heap, NULL), -MC_E_NOENT);
	assert_int_equal(mc_shm_heap_free(heap, &on_stack), -MC_E_NOENT);
	assert_int_equal(mc_shm_heap_free(heap, p + 1), -MC_E_NOENT);
	assert_int_equal(mc_shm_heap_free(heap, p + 4096), -MC_E_NOENT);
	assert_int_equal(mc_shm_heap_free(heap, p + 16384), -MC_E_NOENT); /* a free block */
	assert_int_equal(mc_shm_heap_free(heap, whole + 4096), -MC_E_NOENT);
	assert_int_equal(mc_shm_heap_free(heap, p), 0);
	assert_int_equal(mc_shm_heap_free(heap, p), -MC_E_NOENT);
	assert_int_equal(mc_shm_heap_free(heap, whole), 0);
	assert_int_equal(mc_shm_heap_free(heap, whole), -MC_E_NOENT);
	(void)state;
}

static void sizes_that_cannot_be_are_refused(void **state)
{
	void *p = NULL;

	assert_int_equal(mc_shm_heap_alloc(heap, 0, &p), -MC_E_INVAL);
	assert_int_equal(mc_shm_heap_alloc(heap, SIZE_MAX, &p), -MC_E_NOMEM);
	assert_true(mc_shm_heap_alloc(heap, (size_t)1 << 62, &p) <
		    0); /* the system decides which */
	assert_null(p);
	(void)state;
}

static void an_arenas_descriptor_shows_the_same_bytes_and_cannot_shrink(void **state)
{
	uint8_t *p = take(100000), *map;
	uint64_t off, len;
	uint32_t arena;
	struct stat st;
	int fd;

	assert_true(mc_shm_heap_where(heap, (uintptr_t)p + 5, 100, &arena, &off));
	assert_int_equal(mc_shm_heap_fd(heap, arena, &fd, &len), 0);
	assert_int_equal(fstat(fd, &st), 0);
	assert_int_equal(st.st_size, len);
	map = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	assert_ptr_not_equal(map, MAP_FAILED);
	memcpy(p + 5, "hello", 5);
	assert_memory_equal(map + off, "hello", 5);
	assert_int_equal(ftruncate(fd, 0), -1);
	assert_int_equal(munmap(map, len), 0);
	assert_int_equal(close(fd), 0);
	assert_false(mc_shm_heap_where(heap, (uintptr_t)p - off, len + 1, &arena, &off));
	assert_false(mc_shm_heap_where(heap, UINT64_MAX, 2, &arena, &off));
	assert_int_equal(mc_shm_heap_fd(heap, arena + 1, &fd, &len), -MC_E_STALE);
	(void)state;
}

static void an_arenas_id_is_not_used_twice(void **state)
{
	uint32_t first, second;
	uint64_t off, len;
	uint8_t *p;
	int fd;

	p = take((size_t)3 << 30);
	assert_true(mc_shm_heap_where(heap, (uintptr_t)p, 1, &first, &off));
	assert_int_equal(mc_shm_heap_free(heap, p), 0);
	p = take((size_t)3 << 30);
	assert_true(mc_shm_heap_where(heap, (uintptr_t)p, 1, &second, &off));
	assert_int_equal(second, first + MC_SHM_ARENAS_MAX);
	assert_int_equal(mc_shm_heap_fd(heap, first, &fd, &len), -MC_E_STALE);
	(void)state;
}

static void without_memory_or_descriptors_alloc_says_so(void **state)
{
	struct rlimit old, low;
	void *p = NULL;
	int fd;

	for (int i = 0; i < 4; i++) {
		mc_mem_fail_after(i);
		assert_int_equal(mc_shm_heap_alloc(heap, MIB, &p), -MC_E_NOMEM);
		mc_mem_fail_after(-1);
	}
	assert_int_equal(getrlimit(RLIMIT_NOFILE, &old), 0);
	fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
	low = (struct rlimit){(rlim_t)fd, old.rlim_max};
	assert_int_equal(close(fd), 0);
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &low), 0);
	assert_int_equal(mc_shm_heap_alloc(heap, MIB, &p), -MC_E_LIMIT);
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &old), 0);
	assert_int_equal(mc_shm_heap_alloc(heap, MIB, &p), 0);
	(void)state;
}

static void a_forked_child_is_refused(void **state)
{
	void *p;
	int status;
	pid_t pid;

	(void)take(4096);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		status = mc_shm_heap_alloc(heap, 1, &p) == -MC_E_FORKED &&
			 mc_shm_heap_free(heap, &pid) == -MC_E_FORKED;
		mc_shm_heap_close(heap);
		_exit(status ? 0 : 1);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	(void)take(4096);
	(void)state;
}

#define T(f) cmocka_unit_test_setup_teardown(f, heap_setup, heap_teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
	    T(blocks_do_not_overlap_and_are_usable_to_the_last_byte),
	    T(freed_neighbours_join_again),
	    T(a_large_freed_block_comes_back_zeroed),
	    T(free_of_what_is_no_block_is_refused),
	    T(sizes_that_cannot_be_are_refused),
	    T(an_arenas_descriptor_shows_the_same_bytes_and_cannot_shrink),
	    T(an_arenas_id_is_not_used_twice),
	    T(without_memory_or_descriptors_alloc_says_so),
	    T(a_forked_child_is_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
