/*
 * list.h: intrusive circular doubly linked list. O(1) everything. Not thread-safe. A node is in at
 * most one list.
 */
#ifndef MC_BASE_LIST_H
#define MC_BASE_LIST_H

#include <stdbool.h>
#include <stddef.h>

#include "base/mem.h"

struct mc_list {
	struct mc_list *next, *prev;
};

static inline void mc_list_init(struct mc_list *head)
{
	head->next = head->prev = head;
}

static inline bool mc_list_is_empty(const struct mc_list *head)
{
	return head->next == head;
}

static inline void mc_list_push_back(struct mc_list *head, struct mc_list *node)
{
	node->prev = head->prev;
	node->next = head;
	head->prev->next = node;
	head->prev = node;
}

static inline void mc_list_push_front(struct mc_list *head, struct mc_list *node)
{
	mc_list_push_back(head->next, node);
}

/** Unlinks and leaves the node as an empty list, so that a second call is harmless. */
static inline void mc_list_del(struct mc_list *node)
{
	node->prev->next = node->next;
	node->next->prev = node->prev;
	mc_list_init(node);
}

/** First node unlinked, or NULL. */
static inline struct mc_list *mc_list_pop_front(struct mc_list *head)
{
	struct mc_list *n = head->next;

	if (n == head)
		return NULL;
	mc_list_del(n);
	return n;
}

/** Moves all nodes of `from` to the end of `to`. */
static inline void mc_list_splice_back(struct mc_list *to, struct mc_list *from)
{
	if (mc_list_is_empty(from))
		return;
	from->next->prev = to->prev;
	to->prev->next = from->next;
	from->prev->next = to;
	to->prev = from->prev;
	mc_list_init(from);
}

#define mc_list_entry(node, type, member) mc_container_of(node, type, member)
#define mc_list_first(head, type, member)                                                          \
	(mc_list_is_empty(head) ? NULL : mc_list_entry((head)->next, type, member))
/* The body may unlink `it`. */
#define mc_list_each(it, head, member)                                                             \
	for (struct mc_list *mc_n_ = (head)->next, *mc_s_ = mc_n_->next;                           \
	     mc_n_ != (head) && ((it) = mc_list_entry(mc_n_, __typeof__(*(it)), member), 1);       \
	     mc_n_ = mc_s_, mc_s_ = mc_n_->next)

#endif
