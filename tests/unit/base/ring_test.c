/*
 * ring_test.c: both queues, alone and under producers.
 */
#include "base/ring.h"

#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/mem.h"

#define PRODUCERS 3
#define ITEMS 20000

static void ring_is_first_in_first_out_and_bounded(void **state)
{
	struct mc_ring *ring;
	char items[5];

	assert_int_equal(mc_ring_open(4, &ring), 0);
	assert_true(mc_ring_is_empty(ring));
	assert_null(mc_ring_pop(ring));
	for (int round = 0; round < 3; round++) {
		for (size_t i = 0; i < 4; i++)
			assert_int_equal(mc_ring_push(ring, &items[i]), 0);
		assert_int_equal(mc_ring_push(ring, &items[4]), -MC_E_AGAIN);
		assert_false(mc_ring_is_empty(ring));
		for (size_t i = 0; i < 4; i++)
			assert_ptr_equal(mc_ring_pop(ring), &items[i]);
		assert_null(mc_ring_pop(ring));
	}
	mc_ring_close(ring);
	mc_ring_close(NULL);
	(void)state;
}

static void ring_open_survives_every_failing_allocation(void **state)
{
	int64_t live = mc_mem_live();
	struct mc_ring *ring;
	int rc = -1;

	for (int64_t n = 0; rc < 0; n++) {
		mc_mem_fail_after(n);
		rc = mc_ring_open(8, &ring);
		mc_mem_fail_after(-1);
		assert_true(rc == 0 || rc == -MC_E_NOMEM);
	}
	mc_ring_close(ring);
	assert_int_equal(mc_mem_live(), live);
	(void)state;
}

struct item {
	struct mc_mpsc_node node;
	size_t producer, nr;
};

struct producer {
	pthread_t thread;
	struct mc_ring *ring;
	struct mc_mpsc *queue;
	struct item *items;
};

static void *ring_producer(void *arg)
{
	struct producer *p = arg;

	for (size_t i = 0; i < ITEMS; i++) {
		while (mc_ring_push(p->ring, &p->items[i]) < 0)
			sched_yield();
	}
	return NULL;
}

static void *mpsc_producer(void *arg)
{
	struct producer *p = arg;

	for (size_t i = 0; i < ITEMS; i++)
		(void)mc_mpsc_push(p->queue, &p->items[i].node);
	return NULL;
}

static void producers_start(struct producer *p, void *(*run)(void *arg), struct mc_ring *ring,
			    struct mc_mpsc *queue)
{
	for (size_t i = 0; i < PRODUCERS; i++) {
		p[i] = (struct producer){.ring = ring, .queue = queue};
		p[i].items = mc_calloc(ITEMS, sizeof(struct item));
		assert_non_null(p[i].items);
		for (size_t nr = 0; nr < ITEMS; nr++) {
			p[i].items[nr].producer = i;
			p[i].items[nr].nr = nr;
		}
		assert_int_equal(pthread_create(&p[i].thread, NULL, run, &p[i]), 0);
	}
}

static void producers_stop(struct producer *p)
{
	for (size_t i = 0; i < PRODUCERS; i++) {
		assert_int_equal(pthread_join(p[i].thread, NULL), 0);
		mc_free(p[i].items);
	}
}

static void ring_loses_and_reorders_nothing_of_a_producer(void **state)
{
	struct producer p[PRODUCERS];
	size_t next[PRODUCERS] = {0};
	struct mc_ring *ring;
	size_t got = 0;

	assert_int_equal(mc_ring_open(64, &ring), 0);
	producers_start(p, ring_producer, ring, NULL);
	while (got < PRODUCERS * ITEMS) {
		struct item *item = mc_ring_pop(ring);

		if (!item) {
			sched_yield();
			continue;
		}
		assert_int_equal(item->nr, next[item->producer]++);
		got++;
	}
	assert_null(mc_ring_pop(ring));
	producers_stop(p);
	mc_ring_close(ring);
	(void)state;
}

static void mpsc_tells_when_a_wake_up_is_due(void **state)
{
	struct mc_mpsc queue = {0};
	struct item items[3];

	assert_true(mc_mpsc_is_empty(&queue));
	assert_null(mc_mpsc_pop(&queue));
	assert_true(mc_mpsc_push(&queue, &items[0].node));
	assert_false(mc_mpsc_push(&queue, &items[1].node));
	assert_false(mc_mpsc_is_empty(&queue));
	assert_ptr_equal(mc_mpsc_pop(&queue), &items[0].node);
	assert_true(mc_mpsc_push(&queue, &items[2].node));
	assert_ptr_equal(mc_mpsc_pop(&queue), &items[1].node);
	assert_ptr_equal(mc_mpsc_pop(&queue), &items[2].node);
	assert_null(mc_mpsc_pop(&queue));
	assert_true(mc_mpsc_is_empty(&queue));
	(void)state;
}

static void mpsc_loses_and_reorders_nothing_of_a_producer(void **state)
{
	struct mc_mpsc queue = {0};
	struct producer p[PRODUCERS];
	size_t next[PRODUCERS] = {0};
	size_t got = 0;

	producers_start(p, mpsc_producer, NULL, &queue);
	while (got < PRODUCERS * ITEMS) {
		struct mc_mpsc_node *node = mc_mpsc_pop(&queue);
		struct item *item;

		if (!node) {
			sched_yield();
			continue;
		}
		item = mc_container_of(node, struct item, node);
		assert_int_equal(item->nr, next[item->producer]++);
		got++;
	}
	assert_null(mc_mpsc_pop(&queue));
	producers_stop(p);
	(void)state;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(ring_is_first_in_first_out_and_bounded),
	    cmocka_unit_test(ring_open_survives_every_failing_allocation),
	    cmocka_unit_test(ring_loses_and_reorders_nothing_of_a_producer),
	    cmocka_unit_test(mpsc_tells_when_a_wake_up_is_due),
	    cmocka_unit_test(mpsc_loses_and_reorders_nothing_of_a_producer),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
