/*
 * list_test.c: intrusive list.
 */
#include "base/list.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

struct item {
	int n;
	struct mc_list node;
};

static void list_keeps_order_and_pops_from_the_front(void **state)
{
	struct item a = {.n = 1}, b = {.n = 2}, c = {.n = 3};
	struct item *it;
	struct mc_list head;
	int sum = 0;

	mc_list_init(&head);
	assert_true(mc_list_is_empty(&head));
	assert_null(mc_list_pop_front(&head));
	mc_list_push_back(&head, &b.node);
	mc_list_push_back(&head, &c.node);
	mc_list_push_front(&head, &a.node);
	assert_ptr_equal(mc_list_first(&head, struct item, node), &a);
	mc_list_each (it, &head, node) {
		sum = sum * 10 + it->n;
		mc_list_del(&it->node);
	}
	assert_int_equal(sum, 123);
	assert_true(mc_list_is_empty(&head));
	mc_list_del(&a.node);
	assert_null(mc_list_first(&head, struct item, node));
	(void)state;
}

static void list_splice_moves_all_to_the_end(void **state)
{
	struct item a = {.n = 1}, b = {.n = 2};
	struct mc_list to, from;

	mc_list_init(&to);
	mc_list_init(&from);
	mc_list_splice_back(&to, &from);
	assert_true(mc_list_is_empty(&to));
	mc_list_push_back(&to, &a.node);
	mc_list_push_back(&from, &b.node);
	mc_list_splice_back(&to, &from);
	assert_true(mc_list_is_empty(&from));
	assert_ptr_equal(mc_list_pop_front(&to), &a.node);
	assert_ptr_equal(mc_list_pop_front(&to), &b.node);
	assert_null(mc_list_pop_front(&to));
	(void)state;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(list_keeps_order_and_pops_from_the_front),
	    cmocka_unit_test(list_splice_moves_all_to_the_end),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
