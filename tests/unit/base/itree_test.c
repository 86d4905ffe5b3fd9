/*
 * itree_test.c: containment, overlap, order, invariants, the tree against an array.
 */
#include "base/itree.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/mem.h"
#include "base/rand.h"

#define NODES 150

static void itree_finds_only_full_containment(void **state)
{
	struct mc_itree tree = {0};
	struct mc_inode a, b;

	mc_itree_insert(&tree, &a, 100, 200);
	mc_itree_insert(&tree, &b, 200, 300);
	assert_ptr_equal(mc_itree_find(&tree, 100, 100), &a);
	assert_ptr_equal(mc_itree_find(&tree, 199, 1), &a);
	assert_ptr_equal(mc_itree_find(&tree, 200, 1), &b);
	assert_null(mc_itree_find(&tree, 99, 1));
	assert_null(mc_itree_find(&tree, 100, 101));
	assert_null(mc_itree_find(&tree, 150, 100));
	assert_null(mc_itree_find(&tree, 300, 1));
	assert_null(mc_itree_find(&tree, 150, 0));
	assert_null(mc_itree_find(&tree, 150, UINT64_MAX));
	assert_null(mc_itree_find(&tree, UINT64_MAX, 1));
	(void)state;
}

static void itree_holds_the_extremes(void **state)
{
	struct mc_itree tree = {0};
	struct mc_inode all, one;

	mc_itree_insert(&tree, &one, UINT64_MAX - 1, UINT64_MAX);
	mc_itree_insert(&tree, &all, 0, UINT64_MAX);
	assert_ptr_equal(mc_itree_find(&tree, 0, UINT64_MAX), &all);
	assert_non_null(mc_itree_find(&tree, UINT64_MAX - 1, 1));
	assert_ptr_equal(mc_itree_find_exact(&tree, UINT64_MAX - 1, UINT64_MAX), &one);
	assert_null(mc_itree_find_exact(&tree, 0, 1));
	(void)state;
}

static void itree_keeps_equal_ranges_in_order(void **state)
{
	struct mc_itree tree = {0};
	struct mc_inode nodes[20];
	struct mc_inode *it;

	for (size_t i = 0; i < 20; i++)
		mc_itree_insert(&tree, &nodes[i], 10, 20 + i % 2);
	it = mc_itree_first(&tree);
	for (size_t i = 0; i < 20; i++, it = mc_itree_next(it))
		assert_ptr_equal(it, &nodes[i]);
	assert_null(it);
	assert_ptr_equal(mc_itree_find_exact(&tree, 10, 21), &nodes[1]);
	for (size_t i = 0; i < 20; i++)
		mc_itree_del(&tree, &nodes[i]);
	assert_null(tree.root);
	(void)state;
}

/* Checks the invariants. @return height */
static int check_subtree(const struct mc_inode *n, const struct mc_inode *parent, size_t *len)
{
	uint64_t end_max;
	int left, right;

	if (!n)
		return 0;
	++*len;
	assert_ptr_equal(n->parent, parent);
	left = check_subtree(n->left, n, len);
	right = check_subtree(n->right, n, len);
	assert_in_range(left - right + 1, 0, 2);
	assert_int_equal(n->height, 1 + mc_max(left, right));
	end_max = n->end;
	if (n->left) {
		assert_true(n->left->start <= n->start);
		end_max = mc_max(end_max, n->left->end_max);
	}
	if (n->right) {
		assert_true(n->right->start >= n->start);
		end_max = mc_max(end_max, n->right->end_max);
	}
	assert_true(n->end_max == end_max);
	return n->height;
}

struct model {
	struct mc_itree tree;
	struct mc_inode nodes[NODES];
	bool is_in[NODES];
};

static void check_queries(struct model *m, uint64_t start, uint64_t len)
{
	const struct mc_inode *found = mc_itree_find(&m->tree, start, len);
	struct mc_inode *it = mc_itree_overlap_first(&m->tree, start, start + len);
	size_t contains = 0;
	size_t overlaps = 0;

	for (size_t i = 0; i < NODES; i++) {
		const struct mc_inode *n = &m->nodes[i];

		if (!m->is_in[i])
			continue;
		contains += n->start <= start && n->end >= start + len;
		overlaps += n->start < start + len && n->end > start;
	}
	assert_int_equal(!found, !contains);
	assert_true(!found || (found->start <= start && found->end >= start + len));
	for (; it; it = mc_itree_overlap_next(it, start, start + len)) {
		assert_true(it->start < start + len && it->end > start);
		overlaps--;
	}
	assert_int_equal(overlaps, 0);
}

static void itree_agrees_with_an_array(void **state)
{
	static struct model m;
	struct mc_rand r;

	mc_rand_seed(&r, 23);
	for (int turn = 0; turn < 20000; turn++) {
		size_t i = mc_rand_below(&r, NODES);
		size_t len = 0;

		if (m.is_in[i]) {
			mc_itree_del(&m.tree, &m.nodes[i]);
		} else {
			uint64_t start = mc_rand_below(&r, 1000);
			uint64_t size = 1 + mc_rand_below(&r, turn % 3 ? 20 : 400);

			mc_itree_insert(&m.tree, &m.nodes[i], start, start + size);
		}
		m.is_in[i] = !m.is_in[i];
		check_queries(&m, mc_rand_below(&r, 1100), 1 + mc_rand_below(&r, 60));
		if (turn % 16)
			continue;
		(void)check_subtree(m.tree.root, NULL, &len);
		assert_int_equal(len, m.tree.len);
	}
	(void)state;
}

static void itree_stays_flat_for_sorted_input(void **state)
{
	struct mc_inode *nodes = mc_calloc(10000, sizeof(*nodes));
	struct mc_itree tree = {0};
	size_t len = 0;

	assert_non_null(nodes);
	for (size_t i = 0; i < 10000; i++)
		mc_itree_insert(&tree, &nodes[i], i * 4096, i * 4096 + 4096);
	assert_true(check_subtree(tree.root, NULL, &len) <= 19);
	assert_int_equal(len, 10000);
	assert_ptr_equal(mc_itree_find(&tree, 5000 * 4096 + 1, 4095), &nodes[5000]);
	mc_free(nodes);
	(void)state;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(itree_finds_only_full_containment),
	    cmocka_unit_test(itree_holds_the_extremes),
	    cmocka_unit_test(itree_keeps_equal_ranges_in_order),
	    cmocka_unit_test(itree_agrees_with_an_array),
	    cmocka_unit_test(itree_stays_flat_for_sorted_input),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
