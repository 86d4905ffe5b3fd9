/*
 * fixture.h: a master on its own threads with a state directory, clients of it, and owners that do
 * what the test says, over real sockets.
 */
#ifndef MC_TESTS_MASTER_FIXTURE_H
#define MC_TESTS_MASTER_FIXTURE_H

#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include <mooncake/store.h>

#include "base/clock.h"
#include "base/hash.h"
#include "base/mem.h"
#include "master/master.h"
#include "rpc/rpc.h"
#include "wire/pb.h"
#include "wire/store.h"
#include "wire/store.pb-c.h"

#define SOON_NS (10 * MC_NS_PER_S) /* far above what anything here takes */
#define FIX_NOTES_MAX 256u
#define FIX_BUF (1u << 20)
#define FIX_OWNERS_MAX 8u

struct fix_owner;

struct fix {
	struct mc_loop *loop, *side, *client_loop;
	struct mc_master *master;
	struct mc_master_conf conf;
	struct mc_rpc_conn *conn;
	struct mc_addr at;
	char dir[64];
	uint8_t *buf;
	struct fix_owner *owners[FIX_OWNERS_MAX]; /* fix_close() closes them */
	unsigned nowners;
};

/* ---- life ---- */

/** A directory, the defaults in f->conf but for leases of 0 ms; no master yet. */
void fix_open(struct fix *f);
/** The master, and f->conn to it. */
void fix_start(struct fix *f);
/** Both, as most tests begin. */
void fix_run(struct fix *f);
/** With an owner that has nothing: 5; with two: 5 and 6. */
void fix_run_one(struct fix *f, struct fix_owner *o);
void fix_run_two(struct fix *f, struct fix_owner *a, struct fix_owner *b);
/** The master is killed and comes again; its owners' streams break and stay so. */
void fix_restart(struct fix *f);
/** Everything goes, owners and directory as well. */
void fix_close(struct fix *f);

/* ---- a client ---- */

/** @return the call's status; the answer is in f->buf */
int fix_call(struct fix *f, uint16_t method, const void *req, size_t len, size_t *ret_len);

/* A user's key of the default tenant. */
struct fix_key {
	uint8_t bytes[64];
	uint16_t len;
};

struct fix_key fix_key(const char *text);
/** @return the status of the key; *ret is what is known of it */
int32_t fix_exist(struct fix *f, const char *key);
int32_t fix_lookup(struct fix *f, const char *key, struct mc_st_object *ret);
/** What the master says of an object that is there. */
struct mc_st_object fix_find(struct fix *f, const char *key);
Mc__St__JoinReply *fix_join(struct fix *f, struct mc_pb_arena *arena, uint32_t gens);
/** Commit one replica of 100 bytes. */
struct mc_st_committed fix_commit(struct fix *f, const char *key, uint64_t gen, uint64_t owner,
				  uint64_t addr, uint8_t flags);
/** What the master answered to a commit of one. */
struct mc_st_committed fix_committed(const void *data, size_t len);

/* A call whose answer is waited for later. */
struct fix_later {
	struct mc_rpc_call call;
	uint8_t req[512], reply[256];
};

/** Its message, of `len` bytes, is in l->req. */
void fix_later_start(struct fix *f, struct fix_later *l, uint16_t method, size_t len);
void fix_commit_later(struct fix *f, struct fix_later *l, const char *key, uint64_t gen,
		      uint64_t owner, uint64_t addr, uint8_t flags);
void fix_remove_later(struct fix *f, struct fix_later *l, const char *key);
int32_t fix_removed(struct fix *f, struct fix_later *l);
struct mc_st_committed fix_committed_later(struct fix *f, struct fix_later *l);

/* ---- an owner ---- */

struct fix_note {
	uint8_t type;
	size_t len;
	uint8_t data[512];
};

struct fix_owner {
	struct fix *f;
	struct mc_rpc_conn *conn;
	struct mc_rpc_call call;
	uint8_t req[512];
	pthread_mutex_t lock; /* guards what follows */
	pthread_cond_t cond;
	uint8_t rx[65536];
	size_t rx_len;
	struct fix_note notes[FIX_NOTES_MAX];
	unsigned nnotes, ntaken;
	bool is_over;
	int rc;
	/* the test's */
	uint64_t id, incarnation, epoch, number, disk;
};

/** The next note, which is of this type; that something was committed is passed over. */
struct fix_note fo_expect(struct fix_owner *o, uint8_t type);
/** The stream's end. @return why */
int fo_end(struct fix_owner *o);
/** Say something: as it is, a slot (of 100 bytes), space of 1000 bytes, a free. */
void fo_note(struct fix_owner *o, uint8_t type, const void *data, size_t len);
void fo_has_as(struct fix_owner *o, uint8_t type, const char *key, uint64_t gen, uint64_t addr,
	       uint8_t flags);
void fo_has(struct fix_owner *o, uint8_t type, const char *key, uint64_t gen, uint64_t addr);
void fo_space(struct fix_owner *o, uint8_t type, uint64_t used, uint64_t want);
void fo_freed(struct fix_owner *o, uint64_t addr, uint64_t gen);
/** A note of this one slot comes, and no other before it. */
void fo_expect_place(struct fix_owner *o, uint8_t type, uint64_t addr, uint64_t gen);
void fo_expect_free(struct fix_owner *o, uint64_t addr, uint64_t gen);
/** It is told to free this slot first of all, and does. */
void fo_frees(struct fix_owner *o, uint64_t addr, uint64_t gen);
/** fo_init(), fo_start(): it connects and says who it is, o->epoch and o->incarnation included. */
void fo_init(struct fix_owner *o, struct fix *f, uint64_t id);
void fo_start(struct fix_owner *o);
/** @return from which of its notes on the master wants to hear */
uint64_t fo_welcomed(struct fix_owner *o);
/** The connection breaks. */
void fo_stop(struct fix_owner *o);
/** It comes, and is to announce all it has. */
void fo_start_anew(struct fix_owner *o);
/** A new owner that has nothing. */
void fo_open(struct fix_owner *o, struct fix *f, uint64_t id);

/* ---- both ---- */

/** It is removed from its only owner, which is told so first of all. */
void fix_remove(struct fix *f, const char *key, struct fix_owner *o, uint64_t addr, uint64_t gen);
/** Ask again until the answer is there: what an owner said takes its way. */
void fix_until(struct fix *f, const char *key, int32_t status);

#endif
