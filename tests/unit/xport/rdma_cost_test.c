/*
 * rdma_cost_test.c: what a slice over RDMA may cost in steady state: no lock, no allocation, one
 * doorbell and one signalled completion for sixteen. Locks are counted by standing in for
 * pthread_mutex_lock() at link time; the fabric's own lock, which no device has, does not count.
 */
#include "rdma_peers.h"

#include <pthread.h>

#define BATCH 16u
#define BATCHES 64u

static _Thread_local pthread_mutex_t *last_lock;
static _Thread_local const pthread_mutex_t *fabric_lock;
static _Thread_local unsigned locks;

int __real_pthread_mutex_lock(pthread_mutex_t *mu);
int __wrap_pthread_mutex_lock(pthread_mutex_t *mu);
int __wrap_pthread_mutex_lock(pthread_mutex_t *mu)
{
	last_lock = mu;
	locks += mu != fabric_lock;
	return __real_pthread_mutex_lock(mu);
}

static struct rdma_job jobs[BATCH];

static void batch_run(struct mc_xlane *lane, enum mc_op op, uint64_t len)
{
	struct mc_slice *batch[BATCH];

	for (unsigned i = 0; i < BATCH; i++)
		batch[i] = rdma_job(&jobs[i], op, i * len, len);
	assert_int_equal(lane->ops->post(lane, batch, BATCH), BATCH);
	assert_int_equal(rdma_poll(lane, BATCH), 0);
}

static void check_cost(enum mc_op op, uint64_t len)
{
	struct mc_xlane *lane = rdma_lane();
	struct mc_rdma_stats from, to;
	uint64_t calls;

	(void)verbs_fake_pending();
	fabric_lock = last_lock;
	batch_run(lane, op, len); /* finds its keys under the lock */
	assert_true(locks > 0);
	mc_rdma_stats_get(rp.a.dev, &from);
	calls = mc_mem_calls();
	locks = 0;
	for (unsigned i = 0; i < BATCHES; i++)
		batch_run(lane, op, len);
	assert_int_equal(locks, 0);
	assert_int_equal(mc_mem_calls() - calls, 0);
	mc_rdma_stats_get(rp.a.dev, &to);
	assert_int_equal(to.wrs - from.wrs, BATCHES * BATCH);
	assert_int_equal(to.posts - from.posts, BATCHES);
	assert_int_equal(to.signaled - from.signaled, BATCHES);
	assert_int_equal(to.wcs - from.wcs, BATCHES);
	assert_true(rdma_same(0, BATCH * len));
	(void)rdma_lane_end_all(lane);
}

static int setup(void **state)
{
	(void)state;
	return rdma_peers_open(&(struct verbs_fake_conf){.ndevs = 2});
}

static int teardown(void **state)
{
	(void)state;
	rdma_peers_close();
	return 0;
}

static void written_slices_of_64_kib_take_no_lock_and_a_sixteenth_of_a_completion(void **state)
{
	(void)state;
	check_cost(MC_OP_WRITE, 64u << 10);
}

static void small_reads_take_no_lock_and_a_sixteenth_of_a_completion(void **state)
{
	(void)state;
	check_cost(MC_OP_READ, 4u << 10);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test_setup_teardown(
		written_slices_of_64_kib_take_no_lock_and_a_sixteenth_of_a_completion, setup,
		teardown),
	    cmocka_unit_test_setup_teardown(
		small_reads_take_no_lock_and_a_sixteenth_of_a_completion, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
