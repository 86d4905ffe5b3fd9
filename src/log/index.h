/*
 * index.h: which record holds the newest of each key: a table in memory, 48 bytes an entry and at
 * most 11 of the table that finds it. Pure: no I/O, no clock.
 *
 * A key is its 96-bit hash here; whoever reads the record compares the key itself. Deleted keys
 * stay as tombstones while an older record of them may be on the disk: `nolder` counts, for each
 * key, the records on the disk that the entry does not point to.
 *
 * Entries lie in pages that never move, in the order of their making; a table of 32-bit numbers
 * with linear probing finds them. One owner.
 */
#ifndef MC_LOG_INDEX_H
#define MC_LOG_INDEX_H

#include <stdbool.h>

#include "base/mem.h"
#include "log/rec.h"

#define MC_INDEX_OLDER_MAX UINT16_MAX /* it sticks there: a tombstone that is never dropped */
#define MC_INDEX_MAX (1u << 30)	      /* entries */

struct mc_index_entry {
	uint64_t hash;
	struct mc_dlog_gen gen;
	uint64_t payload_len : 40;
	uint64_t nolder : 16;
	uint64_t kind : 8; /* enum mc_rec_kind; 0: free */
	uint32_t check;
	uint32_t segment;
	uint32_t place; /* off / MC_REC_ALIGN */
	uint16_t key_len, tlv_len;
};

struct mc_index {
	struct mc_index_entry **pages;
	size_t npages, pages_cap;
	uint32_t used;	    /* entries of pages that were ever taken */
	uint32_t free_head; /* number + 1 of a free entry, chained by `place`; 0: none */
	uint32_t count;	    /* entries in use */
	uint32_t *table;    /* number + 1, or 0 */
	size_t table_len;   /* a power of two, at most 3/4 full; 0: nothing yet */
};

void mc_index_init(struct mc_index *ix);
void mc_index_fini(struct mc_index *ix);
/** NULL: unknown. Valid until it is deleted. */
struct mc_index_entry *mc_index_find(const struct mc_index *ix, uint64_t hash, uint32_t check);
/** Make sure that n more entries can be added. @return 0; -MC_E_NOMEM; -MC_E_LIMIT */
MC_MUST_CHECK int mc_index_reserve(struct mc_index *ix, uint32_t n);
/** A new entry, zero but for hash, check and a kind. @return NULL: no memory, or MC_INDEX_MAX are
 * in */
struct mc_index_entry *mc_index_add(struct mc_index *ix, uint64_t hash, uint32_t check);
void mc_index_del(struct mc_index *ix, struct mc_index_entry *e);
/** Entries one after the other; NULL at the end. Start with *cursor = 0. */
struct mc_index_entry *mc_index_each(const struct mc_index *ix, uint32_t *cursor);
uint64_t mc_index_bytes(const struct mc_index *ix);

static inline uint64_t mc_index_off(const struct mc_index_entry *e)
{
	return (uint64_t)e->place * MC_REC_ALIGN;
}

static inline struct mc_rec_layout mc_index_layout(const struct mc_index_entry *e)
{
	return mc_rec_layout(e->key_len, e->tlv_len, e->payload_len);
}

static inline void mc_index_older_add(struct mc_index_entry *e, int n)
{
	if (e->nolder == MC_INDEX_OLDER_MAX)
		return;
	mc_assert(n > 0 || e->nolder > 0);
	e->nolder = (uint16_t)(e->nolder + n);
}

#endif
