/*
 * ledger.h: what a read of the Store may give, kept outside of it in memory that processes share:
 * it outlives those that are killed.
 *
 * Each key has one writer, which counts its versions. Bytes and length are a function of (seed,
 * key, version), and the first eight bytes name key and version: a wrong byte tells whose it is. A
 * read may be a miss or an error; or, whole, a version that was not replaced or removed with
 * success before the read began.
 */
#ifndef MC_TEST_LEDGER_H
#define MC_TEST_LEDGER_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include <mooncake/store.h>

#include "base/rand.h"

#define LEDGER_KEYS_MAX 256u
#define LEDGER_LEN_MAX (768u << 10)
#define LEDGER_BATCH 8u

/* Written by the key's writer, read by all. */
struct ledger_key {
	_Atomic uint32_t begun;	 /* versions so far */
	_Atomic uint32_t low;	 /* of these, none below may be read */
	_Atomic uint32_t unsure; /* but from this one on: the first since the last acknowledged put
				    whose outcome is not known; 0: none */
	_Atomic bool is_there;	 /* acknowledged, and nobody asked for its removal since */
};

struct ledger {
	uint64_t seed;
	uint32_t nkeys;
	uint32_t large_in;   /* one version in so many is above 20 KiB */
	uint32_t timeout_ms; /* of each call */
	_Atomic uint64_t puts, failed, removes, reads, hits, errors;
	_Atomic uint64_t wrong; /* reads of other bytes than the ledger allows */
	_Atomic uint64_t late;	/* calls that did not end by their deadline and 2 s */
	_Atomic uint64_t slowest_ms;
	struct ledger_key keys[LEDGER_KEYS_MAX];
};

/** Every 8 bytes depend on seed and place. */
void ledger_fill(uint8_t *p, size_t len, uint64_t seed);
bool ledger_is_filled(const uint8_t *p, size_t len, uint64_t seed);

/** @param ret_fd  inherited by programs that are started from now on */
struct ledger *ledger_open(uint64_t seed, uint32_t nkeys, int *ret_fd);
struct ledger *ledger_attach(int fd);
void ledger_close(struct ledger *l);

/* One thread that uses the Store, and the keys that it alone writes: first, first + step, … */
struct ledger_actor {
	struct ledger *l;
	struct mc_store *st;
	struct mc_rand rand;
	uint32_t first, step;
	uint32_t reads_in; /* of so many calls all but one read */
	uint32_t pause_us; /* between calls */
	bool may_stop;	   /* somebody stops this process: its clock says nothing */
	uint8_t *buf;	   /* LEDGER_BATCH objects */
};

void ledger_actor_init(struct ledger_actor *a, struct ledger *l, struct mc_store *st,
		       uint32_t first, uint32_t step, uint64_t salt);
void ledger_actor_fini(struct ledger_actor *a);
/** One call: a batch of reads of anybody's keys, or a put, a session, a removal of its own. */
void ledger_act(struct ledger_actor *a);
/** Its writer is gone: what it had begun may or may not come. */
void ledger_writer_died(struct ledger *l, uint32_t first, uint32_t step);
/** Nobody writes: read each key. @return how many of those that are there were not found */
uint32_t ledger_audit(struct ledger_actor *a);

#endif
