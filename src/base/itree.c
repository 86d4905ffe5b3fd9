/*
 * itree.c: AVL tree (Adelson-Velsky and Landis 1962) by start, augmented with the largest end of
 * each subtree (Cormen et al., "Introduction to Algorithms", interval trees).
 *
 * Invariants: start is non-decreasing in order; heights of siblings differ by at most one; end_max
 * is exact.
 */
#include "base/itree.h"

#include "base/err.h"
#include "base/mem.h"

static int inode_height(const struct mc_inode *n)
{
	return n ? n->height : 0;
}

/* Recompute what depends on the children. */
static void inode_update(struct mc_inode *n)
{
	uint64_t end_max = n->end;

	if (n->left)
		end_max = mc_max(end_max, n->left->end_max);
	if (n->right)
		end_max = mc_max(end_max, n->right->end_max);
	n->end_max = end_max;
	n->height = 1 + mc_max(inode_height(n->left), inode_height(n->right));
}

/* Put `to` where `from` hangs; the children of both stay as they are. */
static void itree_replace(struct mc_itree *tree, struct mc_inode *from, struct mc_inode *to)
{
	struct mc_inode *parent = from->parent;

	if (!parent)
		tree->root = to;
	else if (parent->left == from)
		parent->left = to;
	else
		parent->right = to;
	if (to)
		to->parent = parent;
}

/* The right child takes n's place. @return it */
static struct mc_inode *itree_rotate_left(struct mc_itree *tree, struct mc_inode *n)
{
	struct mc_inode *up = n->right;

	itree_replace(tree, n, up);
	n->right = up->left;
	if (n->right)
		n->right->parent = n;
	up->left = n;
	n->parent = up;
	inode_update(n);
	inode_update(up);
	return up;
}

static struct mc_inode *itree_rotate_right(struct mc_itree *tree, struct mc_inode *n)
{
	struct mc_inode *up = n->left;

	itree_replace(tree, n, up);
	n->left = up->right;
	if (n->left)
		n->left->parent = n;
	up->right = n;
	n->parent = up;
	inode_update(n);
	inode_update(up);
	return up;
}

/* Restore the invariants from n up to the root; stops where nothing changed any more. */
static void itree_fix(struct mc_itree *tree, struct mc_inode *n)
{
	while (n) {
		int height = n->height;
		uint64_t end_max = n->end_max;
		int lean;

		inode_update(n);
		lean = inode_height(n->left) - inode_height(n->right);
		if (lean > 1) {
			if (inode_height(n->left->left) < inode_height(n->left->right))
				(void)itree_rotate_left(tree, n->left);
			n = itree_rotate_right(tree, n);
		} else if (lean < -1) {
			if (inode_height(n->right->right) < inode_height(n->right->left))
				(void)itree_rotate_right(tree, n->right);
			n = itree_rotate_left(tree, n);
		}
		if (n->height == height && n->end_max == end_max)
			return;
		n = n->parent;
	}
}

void mc_itree_insert(struct mc_itree *tree, struct mc_inode *node, uint64_t start, uint64_t end)
{
	struct mc_inode **link = &tree->root;
	struct mc_inode *parent = NULL;

	mc_assert(start < end);
	while (*link) {
		parent = *link;
		link = start < parent->start ? &parent->left : &parent->right;
	}
	*node = (struct mc_inode){
	    .start = start, .end = end, .end_max = end, .parent = parent, .height = 1};
	*link = node;
	tree->len++;
	itree_fix(tree, parent);
}

void mc_itree_del(struct mc_itree *tree, struct mc_inode *node)
{
	struct mc_inode *from = node->parent; /* lowest place whose subtree changes */
	struct mc_inode *next = NULL;

	if (!node->left || !node->right) {
		itree_replace(tree, node, node->left ? node->left : node->right);
	} else {
		next = mc_itree_next(node); /* in the right subtree, without a left child */
		from = next;
		if (next->parent != node) {
			from = next->parent;
			itree_replace(tree, next, next->right);
			next->right = node->right;
			next->right->parent = next;
		}
		itree_replace(tree, node, next);
		next->left = node->left;
		next->left->parent = next;
		/* As if it had been here: itree_fix() compares with what stood here before. */
		next->height = node->height;
		next->end_max = node->end_max;
	}
	tree->len--;
	node->left = node->right = node->parent = NULL;
	itree_fix(tree, from);
	if (next)
		itree_fix(tree, next); /* the walk from below may have stopped under it */
}

struct mc_inode *mc_itree_find(const struct mc_itree *tree, uint64_t at, uint64_t len)
{
	struct mc_inode *n = tree->root;
	uint64_t end;

	if (!len || __builtin_add_overflow(at, len, &end))
		return NULL;
	while (n && n->end_max >= end) {
		if (n->start > at) {
			n = n->left;
			continue;
		}
		if (n->end >= end)
			return n;
		/* All of the left subtree starts early enough, so a reach there is an answer. */
		n = n->left && n->left->end_max >= end ? n->left : n->right;
	}
	return NULL;
}

/* First member in order that starts at `start` or after it. */
static struct mc_inode *itree_from(const struct mc_itree *tree, uint64_t start)
{
	struct mc_inode *n = tree->root;
	struct mc_inode *best = NULL;

	while (n) {
		if (n->start >= start) {
			best = n;
			n = n->left;
		} else {
			n = n->right;
		}
	}
	return best;
}

struct mc_inode *mc_itree_find_exact(const struct mc_itree *tree, uint64_t start, uint64_t end)
{
	struct mc_inode *n = itree_from(tree, start);

	while (n && n->start == start && n->end != end)
		n = mc_itree_next(n);
	return n && n->start == start ? n : NULL;
}

/* First member of the subtree that overlaps [start, end), or NULL. */
static struct mc_inode *inode_overlap(struct mc_inode *n, uint64_t start, uint64_t end)
{
	while (n && n->end_max > start) {
		if (n->left && n->left->end_max > start) {
			/* The left one that reaches past `start` overlaps, or all after it start
			 * too late. */
			n = n->left;
			continue;
		}
		if (n->start >= end)
			return NULL;
		if (n->end > start)
			return n;
		n = n->right;
	}
	return NULL;
}

struct mc_inode *mc_itree_overlap_first(const struct mc_itree *tree, uint64_t start, uint64_t end)
{
	return start < end ? inode_overlap(tree->root, start, end) : NULL;
}

struct mc_inode *mc_itree_overlap_next(struct mc_inode *node, uint64_t start, uint64_t end)
{
	struct mc_inode *found = inode_overlap(node->right, start, end);

	while (!found) {
		struct mc_inode *child = node;

		node = node->parent;
		if (!node)
			return NULL;
		if (node->right == child)
			continue;
		if (node->start >= end)
			return NULL;
		if (node->end > start)
			return node;
		found = inode_overlap(node->right, start, end);
	}
	return found;
}

struct mc_inode *mc_itree_first(const struct mc_itree *tree)
{
	struct mc_inode *n = tree->root;

	while (n && n->left)
		n = n->left;
	return n;
}

struct mc_inode *mc_itree_next(const struct mc_inode *node)
{
	struct mc_inode *n = node->right;

	if (n) {
		while (n->left)
			n = n->left;
		return n;
	}
	for (n = node->parent; n && n->right == node; n = n->parent)
		node = n;
	return n;
}
