/*
 * itree.h: ordered set of address ranges [start, end) that may overlap and repeat; finds in O(log
 * n) one that contains a given range. Intrusive, no allocation, pure. Not thread-safe.
 */
#ifndef MC_BASE_ITREE_H
#define MC_BASE_ITREE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/** A member; the payload is the struct around it (mc_container_of). Only mc_itree_* write it while
 * it is in a tree. */
struct mc_inode {
	uint64_t start, end;
	uint64_t end_max; /* largest end in the subtree */
	struct mc_inode *left, *right, *parent;
	int height;
};

/** Zeroed means empty. */
struct mc_itree {
	struct mc_inode *root;
	size_t len;
};

/** Insert node as [start, end), start < end. Equal ranges keep the order of insertion. */
void mc_itree_insert(struct mc_itree *tree, struct mc_inode *node, uint64_t start, uint64_t end);
/** Take out a member of this tree. */
void mc_itree_del(struct mc_itree *tree, struct mc_inode *node);

/** A member that contains all of [at, at + len), or NULL; NULL for len 0 and when at + len passes
 * 2^64 - 1. */
struct mc_inode *mc_itree_find(const struct mc_itree *tree, uint64_t at, uint64_t len);
/** A member that is exactly [start, end), or NULL. */
struct mc_inode *mc_itree_find_exact(const struct mc_itree *tree, uint64_t start, uint64_t end);

/** First member in order (by start) that shares a byte with [start, end), or NULL. */
struct mc_inode *mc_itree_overlap_first(const struct mc_itree *tree, uint64_t start, uint64_t end);
/** The next one after `node`. */
struct mc_inode *mc_itree_overlap_next(struct mc_inode *node, uint64_t start, uint64_t end);

/** First member in order of start, or NULL; and the next one. */
struct mc_inode *mc_itree_first(const struct mc_itree *tree);
struct mc_inode *mc_itree_next(const struct mc_inode *node);

#endif
