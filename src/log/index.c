/*
 * index.c: pages of entries and the table that finds them.
 */
#include "log/index.h"

#include <string.h>

#include "base/mem.h"

#define PAGE 1024u /* entries */
#define PAGES_MAX (MC_INDEX_MAX / PAGE)
#define TABLE_MIN 64u

_Static_assert(sizeof(struct mc_index_entry) == 48, "an entry is 48 bytes");

void mc_index_init(struct mc_index *ix)
{
	*ix = (struct mc_index){0};
}

void mc_index_fini(struct mc_index *ix)
{
	for (size_t i = 0; i < ix->npages; i++)
		mc_free(ix->pages[i]);
	mc_free(ix->pages);
	mc_free(ix->table);
	mc_index_init(ix);
}

static struct mc_index_entry *entry_at(const struct mc_index *ix, uint32_t number)
{
	return &ix->pages[number / PAGE][number % PAGE];
}

static size_t home_of(const struct mc_index *ix, uint64_t hash)
{
	return (size_t)(hash & (ix->table_len - 1));
}

/* Where in the table it is. */
static bool find_slot(const struct mc_index *ix, uint64_t hash, uint32_t check, size_t *ret_at)
{
	const struct mc_index_entry *e;

	if (ix->table_len == 0)
		return false;
	for (size_t at = home_of(ix, hash); ix->table[at]; at = (at + 1) & (ix->table_len - 1)) {
		e = entry_at(ix, ix->table[at] - 1);
		if (e->hash == hash && e->check == check) {
			*ret_at = at;
			return true;
		}
	}
	return false;
}

struct mc_index_entry *mc_index_find(const struct mc_index *ix, uint64_t hash, uint32_t check)
{
	size_t at;

	return find_slot(ix, hash, check, &at) ? entry_at(ix, ix->table[at] - 1) : NULL;
}

static void put_slot(uint32_t *table, size_t len, uint64_t hash, uint32_t number)
{
	size_t at = (size_t)(hash & (len - 1));

	while (table[at])
		at = (at + 1) & (len - 1);
	table[at] = number + 1;
}

static int grow_table(struct mc_index *ix)
{
	size_t len = ix->table_len ? 2 * ix->table_len : TABLE_MIN;
	uint32_t *table = mc_calloc(len, sizeof(*table));

	if (!table)
		return -MC_E_NOMEM;
	for (uint32_t i = 0; i < ix->used; i++)
		if (entry_at(ix, i)->kind)
			put_slot(table, len, entry_at(ix, i)->hash, i);
	mc_free(ix->table);
	ix->table = table;
	ix->table_len = len;
	return 0;
}

static int add_page(struct mc_index *ix)
{
	void *pages = ix->pages;
	int rc =
	    mc_array_grow(&pages, &ix->pages_cap, ix->npages + 1, PAGES_MAX, sizeof(*ix->pages));

	if (rc < 0)
		return rc;
	ix->pages = pages;
	ix->pages[ix->npages] = mc_calloc(PAGE, sizeof(struct mc_index_entry));
	if (!ix->pages[ix->npages])
		return -MC_E_NOMEM;
	ix->npages++;
	return 0;
}

int mc_index_reserve(struct mc_index *ix, uint32_t n)
{
	uint64_t want = (uint64_t)ix->count + n;
	int rc = 0;

	if (want > MC_INDEX_MAX)
		return -MC_E_LIMIT;
	while (rc == 0 && want > ix->table_len / 4 * 3)
		rc = grow_table(ix);
	while (rc == 0 && want > ix->npages * PAGE)
		rc = add_page(ix);
	return rc;
}

struct mc_index_entry *mc_index_add(struct mc_index *ix, uint64_t hash, uint32_t check)
{
	struct mc_index_entry *e;
	uint32_t number;

	if (mc_index_reserve(ix, 1) < 0)
		return NULL;
	number = ix->free_head ? ix->free_head - 1 : ix->used++;
	e = entry_at(ix, number);
	if (ix->free_head)
		ix->free_head = e->place;
	*e = (struct mc_index_entry){.hash = hash, .check = check, .kind = MC_REC_PUT};
	put_slot(ix->table, ix->table_len, hash, number);
	ix->count++;
	return e;
}

/* Take an item out of linear probing by moving back those behind it (Knuth 6.4, algorithm R). */
static void take_slot(struct mc_index *ix, size_t hole)
{
	size_t mask = ix->table_len - 1, home;

	for (size_t at = (hole + 1) & mask; ix->table[at]; at = (at + 1) & mask) {
		home = home_of(ix, entry_at(ix, ix->table[at] - 1)->hash);
		if (((at - home) & mask) < ((at - hole) & mask))
			continue;
		ix->table[hole] = ix->table[at];
		hole = at;
	}
	ix->table[hole] = 0;
}

void mc_index_del(struct mc_index *ix, struct mc_index_entry *e)
{
	uint32_t number;
	size_t at = 0;

	mc_assert(find_slot(ix, e->hash, e->check, &at));
	number = ix->table[at] - 1;
	mc_assert(entry_at(ix, number) == e);
	take_slot(ix, at);
	*e = (struct mc_index_entry){.place = ix->free_head};
	ix->free_head = number + 1;
	ix->count--;
}

struct mc_index_entry *mc_index_each(const struct mc_index *ix, uint32_t *cursor)
{
	while (*cursor < ix->used) {
		struct mc_index_entry *e = entry_at(ix, (*cursor)++);

		if (e->kind)
			return e;
	}
	return NULL;
}

uint64_t mc_index_bytes(const struct mc_index *ix)
{
	return ix->npages * PAGE * sizeof(struct mc_index_entry) +
	       ix->pages_cap * sizeof(*ix->pages) + ix->table_len * sizeof(*ix->table);
}
