/*
 * rdma_mem_test.c: memory of two engines with RDMA between them: what the HCAs refuse, ranges in
 * parts, memory that must not be written, ranges that come and go.
 */
#include <sys/mman.h>

#include "rdma_ends.h"

/* No device takes all of the memory in one piece. */
static int setup_parts(void **state)
{
	(void)state;
	return setup_on(&(struct verbs_fake_conf){.ndevs = 2, .max_mr_size = PART_BYTES}, 0, NULL);
}

static void memory_that_no_hca_knows_goes_over_tcp(void **state)
{
	uint8_t mine[4096];

	(void)state;
	memset(mine, 0x5a, sizeof(mine));
	assert_int_equal(move(MC_WRITE, mine, 4096, sizeof(mine), 0), 0);
	assert_memory_equal(mine, remote + 4096, sizeof(mine));
	assert_int_equal(rdma_bytes(), 0);
	assert_int_equal(tcp_bytes(), sizeof(mine));
}

static void memory_that_the_hca_refuses_goes_over_tcp(void **state)
{
	uint8_t *more = mc_aligned_alloc(4096, 65536);

	(void)state;
	assert_non_null(more);
	verbs_fake_fail(VERBS_FAKE_REG_MR, 0, ENOMEM);
	assert_int_equal(mc_mem_reg(a, more, 65536, NULL, 3), 0);
	assert_true(verbs_fake_fail_clear());
	memset(more, 0xa5, 65536);
	assert_int_equal(move(MC_WRITE, more, 0, 65536, 0), 0);
	assert_memory_equal(more, remote, 65536);
	assert_int_equal(rdma_bytes(), 0);
	assert_int_equal(mc_mem_unreg(a, more), 0);
	mc_free(more);
}

static void a_range_registered_twice_keeps_its_keys_until_the_last_end(void **state)
{
	struct mc_rdma_stats st;

	(void)state;
	assert_int_equal(mc_mem_reg(b, remote, BYTES, NULL, 3), 0);
	assert_int_equal(write_all(), 0);
	assert_int_equal(mc_mem_unreg(b, remote), 0);
	assert_int_equal(write_all(), 0);
	assert_memory_equal(local, remote, BYTES);
	assert_int_equal(tcp_bytes(), 0);
	assert_int_equal(mc_mem_unreg(b, remote), 0);
	assert_true(write_all() < 0);
	assert_int_equal(remote[0], 0);
	stats_of(b, &st);
	assert_in_range(st.accepted, 1, 1 + 5);
}

static void a_range_longer_than_a_device_takes_is_registered_in_parts(void **state)
{
	struct mc_region_info info;
	struct mc_rdma_stats st;

	(void)state;
	stats_of(b, &st);
	assert_int_equal(st.mrs, 2 * BYTES / PART_BYTES);
	assert_int_equal(write_all(), 0);
	assert_memory_equal(local, remote, BYTES);
	memset(local, 0, BYTES);
	assert_int_equal(move(MC_READ, local, 0, BYTES, 0), 0);
	assert_memory_equal(local, remote, BYTES);
	/* Borders that are not the same on both sides, in one slice. */
	assert_int_equal(move(MC_READ, local + PART_BYTES - 100, 2 * PART_BYTES - 5000, 10000, 0),
			 0);
	assert_memory_equal(local + PART_BYTES - 100, remote + 2 * PART_BYTES - 5000, 10000);
	assert_int_equal(rdma_bytes(), 2 * BYTES + 10000);
	assert_int_equal(tcp_bytes(), 0);
	/* Who names addresses may name any of them; a part is no registration of the user's. */
	assert_int_equal(mc_region_find(b->regions, (uintptr_t)remote, BYTES, &info), 0);
	assert_int_equal(mc_mem_unreg(b, remote + PART_BYTES), -MC_E_NOENT);
	assert_int_equal(mc_mem_unreg(b, remote), 0);
	assert_int_equal(mc_region_count(b->regions), 0);
	stats_of(b, &st);
	assert_int_equal(st.mrs, 0);
	memset(remote, 0, BYTES);
	assert_true(move(MC_WRITE, local, PART_BYTES + 4096, 4096, 0) < 0);
	assert_int_equal(remote[PART_BYTES + 4096], 0);
}

static void a_range_in_parts_is_undone_when_one_of_them_fails(void **state)
{
	size_t n = mc_region_count(b->regions);
	uint8_t *more = mc_aligned_alloc(4096, 2 * PART_BYTES + 4096);
	struct verbs_fake_live before, after;

	(void)state;
	assert_non_null(more);
	verbs_fake_live(&before);
	/* The second part of it, with other rights. */
	assert_int_equal(mc_mem_reg(b, more + PART_BYTES, PART_BYTES, NULL, 1), 0);
	assert_int_equal(mc_mem_reg(b, more, 2 * PART_BYTES + 4096, NULL, 3), -MC_E_INVAL);
	assert_int_equal(mc_region_count(b->regions), n + 1);
	assert_int_equal(mc_mem_unreg(b, more + PART_BYTES), 0);
	verbs_fake_live(&after);
	assert_int_equal(after.mrs, before.mrs);
	mc_free(more);
}

static void read_only_memory_is_the_source_of_writes_and_of_peers_reads(void **state)
{
	uint8_t *ro = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uint64_t before;

	(void)state;
	assert_ptr_not_equal(ro, MAP_FAILED);
	memset(ro, 0x3c, 65536);
	assert_int_equal(mprotect(ro, 65536, PROT_READ), 0);
	assert_int_equal(mc_mem_reg(a, ro, 65536, NULL, 3), 0);
	assert_int_equal(move(MC_WRITE, ro, 0, 65536, 0), 0);
	assert_memory_equal(ro, remote, 65536);
	assert_int_equal(rdma_bytes(), 65536);
	assert_int_equal(move(MC_READ, ro, 0, 65536, 0), -MC_E_PERM);
	assert_int_equal(ro[7], 0x3c);
	assert_int_equal(mc_mem_unreg(a, ro), 0);
	/* At the peer: it may be read, a write is refused here already. */
	assert_int_equal(mc_mem_reg(b, ro, 65536, NULL, 3), 0);
	assert_int_equal(mc_mem_reg(b, ro, 65536, NULL, 3), 0); /* the very same once more */
	before = rdma_bytes();
	{
		uint8_t *old = remote;

		remote = ro;
		assert_int_equal(move(MC_READ, local, 0, 65536, 0), 0);
		assert_memory_equal(local, ro, 65536);
		assert_int_equal(rdma_bytes() - before, 65536);
		assert_int_equal(move(MC_WRITE, local + 65536, 0, 65536, 0), -MC_E_PERM);
		remote = old;
	}
	assert_int_equal(tcp_bytes(), 0);
	assert_int_equal(mc_mem_unreg(b, ro), 0);
	assert_int_equal(mc_mem_unreg(b, ro), 0);
	assert_int_equal(munmap(ro, 65536), 0);
}

static void memory_of_the_engine_has_keys(void **state)
{
	uint8_t *mine = mc_mem_alloc(a, 65536);

	(void)state;
	assert_non_null(mine);
	memset(mine, 0x77, 65536);
	assert_int_equal(move(MC_WRITE, mine, 0, 65536, 0), 0);
	assert_memory_equal(mine, remote, 65536);
	assert_int_equal(rdma_bytes(), 65536);
	assert_int_equal(mc_mem_free(a, mine), 0);
}

static void a_range_registered_anew_is_asked_for_again(void **state)
{
	struct mc_rdma_stats st;

	(void)state;
	assert_int_equal(write_all(), 0);
	assert_int_equal(mc_mem_unreg(b, remote), 0);
	assert_int_equal(mc_mem_reg(b, remote, BYTES, NULL, 3), 0);
	assert_int_equal(write_all(), 0);
	assert_memory_equal(local, remote, BYTES);
	/* What had been posted with the first slice shared its fate, not what waited. */
	stats_of(b, &st);
	assert_in_range(st.accepted, 2, 1 + 5);
	/* Nobody's fault: the rail is as good as before. */
	assert_int_equal(session()->rdma.v[0].health.failures, 0);
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
	    T(memory_that_no_hca_knows_goes_over_tcp),
	    T(memory_that_the_hca_refuses_goes_over_tcp),
	    T(a_range_registered_twice_keeps_its_keys_until_the_last_end),
	    cmocka_unit_test_setup_teardown(
		a_range_longer_than_a_device_takes_is_registered_in_parts, setup_parts, teardown),
	    cmocka_unit_test_setup_teardown(a_range_in_parts_is_undone_when_one_of_them_fails,
					    setup_parts, teardown),
	    T(read_only_memory_is_the_source_of_writes_and_of_peers_reads),
	    T(memory_of_the_engine_has_keys),
	    T(a_range_registered_anew_is_asked_for_again),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
