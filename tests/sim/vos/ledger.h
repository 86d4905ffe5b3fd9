/*
 * ledger.h: what a Store was asked for and what it answered, kept outside of it, and what follows
 * from that for each read. Every write has an id of its own, and its bytes tell the id.
 */
#ifndef TESTS_SIM_LEDGER_H
#define TESTS_SIM_LEDGER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define LEDGER_KEYS_MAX 64u
#define LEDGER_LEN_MIN 8u

enum ledger_state {
	LEDGER_OPEN,	/* under way, or its process died: it may be or become visible */
	LEDGER_DONE,	/* acknowledged */
	LEDGER_UNKNOWN, /* it may be or become visible */
	LEDGER_FAILED,	/* it never is */
};

struct ledger_op {
	struct ledger_op *next; /* of its key, later ones first */
	uint64_t id, start_ns, end_ns;
	uint32_t len, key;
	enum ledger_state state;
	bool is_remove, is_upsert;
	int code;
};

void ledger_init(void);
/** A write or a removal begins. @param len 0: a removal */
struct ledger_op *ledger_begin(uint32_t key, uint32_t len, bool is_upsert);
/** It ended with a code of mc_store_put() or mc_store_remove(). */
void ledger_end(struct ledger_op *op, int code);

/** The bytes of a write. */
void ledger_fill(uint64_t id, uint8_t *buf, size_t len);
/**
 * A read of `key` that began then gave these bytes. Ends the run when that can't be.
 * @param at, part  where in the object, and how long; its first 8 bytes are in `head`
 */
void ledger_read(uint32_t key, uint64_t start_ns, const uint8_t *head, const uint8_t *bytes,
		 size_t at, size_t part, uint64_t len);
/** A read that began then found nothing. @param has_room  nothing may have been evicted */
void ledger_missed(uint32_t key, uint64_t start_ns, bool has_room);
/** What acknowledged writes were kept by may be gone, up to now. */
void ledger_owner_lost(void);
/** What was said about removals to now is void: the master lost its state. */
void ledger_state_lost(void);

struct ledger_stats {
	uint64_t writes, acked, unknown, failed, removes, reads, misses, must_have;
};
extern struct ledger_stats ledger_stats;

#endif
