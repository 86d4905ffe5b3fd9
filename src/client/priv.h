/*
 * priv.h: what the files of the Store's client share.
 *
 * Every public call is an *op*: a deadline, an arena for what it computes, and the calls that it
 * makes. Ops come from a pool with their memory, so a warm store allocates nothing for a small
 * object. The caller's thread does all work itself: it starts calls to the master and to owners,
 * and waits for them and for the engine's transfers.
 *
 * An *end* is somebody who answers calls: the master, or an owner. Its *link* is the connection to
 * it as it is now; a lost one is replaced at the next use.
 *
 * Lock order: end.mu, view.mu; the others are taken alone.
 */
#ifndef MC_CLIENT_PRIV_H
#define MC_CLIENT_PRIV_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <mooncake/engine.h>
#include <mooncake/store.h>

#include "base/clock.h"
#include "base/codec.h"
#include "base/err.h"
#include "base/list.h"
#include "base/mem.h"
#include "io/env.h"
#include "meta/place.h"
#include "meta/slot.h"
#include "rpc/rpc.h"
#include "wire/store.h"

#define MC_CLI_OWNERS_MAX 4096u
#define MC_CLI_TEXT_MAX 256u
#define MC_CLI_CALL_RECORDS_MAX 2048u	 /* records of one call */
#define MC_CLI_CALL_BYTES_MAX (1u << 20) /* its bytes, but that one record always goes */
#define MC_CLI_OPS_KEPT 16u		 /* idle ops with their memory */
#define MC_CLI_OP_KEPT_BYTES (4u << 20)	 /* of an idle one */
#define MC_CLI_BACKOFF_MIN_NS (2 * MC_NS_PER_MS)
#define MC_CLI_BACKOFF_MAX_NS (200 * MC_NS_PER_MS)

/* ---- ends (conn.c) ---- */

struct mc_cli_link {
	struct mc_rpc_conn *rpc;
	_Atomic uint32_t refs; /* the end's and its users'; the last one closes it */
};

struct mc_cli_end {
	struct mc_store *st;
	bool is_master;
	pthread_mutex_t mu; /* guards the rest */
	char text[MC_CLI_TEXT_MAX];
	struct mc_cli_link *link; /* NULL: none yet, or lost */
	bool is_opening;	  /* one caller introduces us to the master; the others wait */
	_Atomic uint32_t seq;	  /* changes when that is over */
	uint64_t next_ns;	  /* not before this: the last try failed a moment ago */
	int last_rc;
};

/** One call of an op. Its memory stays with the op. */
struct mc_cli_call {
	struct mc_rpc_call rpc;
	struct mc_cli_end *end;
	void *user; /* whose end it is */
	struct mc_cli_link *link;
	uint8_t *req;
	size_t req_len, req_cap, count_at; /* count_at: where the records' count stands */
	uint8_t *reply;
	size_t reply_len, reply_cap;
	uint32_t *items; /* of which things of the op its records are */
	uint32_t n;
	size_t items_cap;
	uint64_t start_ns, end_ns; /* sent; when the answer came */
	int rc;
	bool is_started, is_over;
	uint32_t nsent; /* tries that were sent: the end may have done it, even if no answer came */
};

void mc_cli_end_init(struct mc_cli_end *end, struct mc_store *st, bool is_master);
void mc_cli_end_fini(struct mc_cli_end *end);
/** Where it is from now on. Another address drops the link. */
void mc_cli_end_set(struct mc_cli_end *end, const char *address);

/* ---- ops (op.c) ---- */

struct mc_cli_chunk {
	struct mc_cli_chunk *next;
	size_t cap, used;
	_Alignas(16) uint8_t bytes[];
};

struct mc_cli_op {
	struct mc_list link;
	struct mc_store *st;
	uint64_t start_ns, deadline_ns;
	struct mc_cli_chunk *chunks; /* newest first */
	struct mc_cli_call **calls;  /* the first ncalls are in use */
	size_t ncalls, ncalls_made, calls_cap;
	uint8_t *scratch; /* the engine's memory */
	size_t scratch_cap;
	uint64_t backoff_ns;
};

/** @return 0; MC_STORE_INTERNAL_ERROR (fork, memory, closing) */
int mc_cli_op_begin(struct mc_store *st, struct mc_cli_op **ret_op);
void mc_cli_op_end(struct mc_cli_op *op);
void mc_cli_op_free(struct mc_cli_op *op);
/** Zeroed, lives as long as the op. NULL: no memory. */
void *mc_cli_alloc(struct mc_cli_op *op, size_t n, size_t size);
/** The engine's memory, at least `len` bytes; what was in it is gone. */
uint8_t *mc_cli_scratch(struct mc_cli_op *op, size_t len);
/** Sleep a little longer each time. @return false: the deadline has come */
bool mc_cli_backoff(struct mc_cli_op *op);
bool mc_cli_is_over(const struct mc_cli_op *op);
/** How long one peer may take while there may be others. */
uint64_t mc_cli_attempt_ns(const struct mc_cli_op *op);

struct mc_cli_key {
	const uint8_t *bytes; /* with its tenant */
	uint16_t len;
	uint64_t hash;
};
/** @return 0; MC_STORE_INVALID_PARAMS; MC_STORE_INTERNAL_ERROR (memory) */
int mc_cli_key_make(struct mc_cli_op *op, const struct mc_store_key *key, struct mc_cli_key *ret);
/** A C text as a key; NULL is none. */
struct mc_store_key mc_cli_key_text(const char *text);

/* ---- calls (call.c) ---- */

/** A call to an end, not started. Records are added to it. NULL: no memory. */
struct mc_cli_call *mc_cli_call_open(struct mc_cli_op *op, struct mc_cli_end *end, uint16_t method);
/** As above, with `head` before the count of the records. */
struct mc_cli_call *mc_cli_call_open_head(struct mc_cli_op *op, struct mc_cli_end *end,
					  uint16_t method, const void *head, size_t head_len);
/** The whole request. */
int mc_cli_call_set(struct mc_cli_call *c, const void *req, size_t len);
/** The last open one from `first` on to this end, or a new one where that has no room for a record
 * of `len` bytes. */
struct mc_cli_call *mc_cli_call_for(struct mc_cli_op *op, size_t first, struct mc_cli_end *end,
				    uint16_t method, size_t len);
/** May it take one more record of so many bytes? */
bool mc_cli_call_has_room(const struct mc_cli_call *c, size_t len);
/** Room for a record of thing `item`. @return 0; -MC_E_NOMEM. End with mc_cli_call_added(). */
int mc_cli_call_add(struct mc_cli_call *c, size_t len, uint32_t item, struct mc_wr *ret_w);
void mc_cli_call_added(struct mc_cli_call *c, const struct mc_wr *w);
/** Forget all calls of the op: their views are invalid. */
void mc_cli_calls_reset(struct mc_cli_op *op);
/** Start and end all calls from `first` on; each has its rc then. Not repeated. */
void mc_cli_calls_run(struct mc_cli_op *op, size_t first, uint64_t deadline_ns);
/** Once more those that ended without an answer. */
void mc_cli_calls_repeat(struct mc_cli_op *op, size_t first, uint64_t deadline_ns);
/** The same at the master: what it did not answer is asked again until the op's deadline. */
void mc_cli_calls_master(struct mc_cli_op *op, size_t first);
/** Reader over the records of a call that succeeded. @return 0; -MC_E_PROTO (other count) */
int mc_cli_call_records(struct mc_cli_call *c, struct mc_rd *ret_r);
struct mc_pb_arena;
/** One call of a protobuf message to the master. @return 0; -enum mc_err. The reply lives in the
 * op. */
int mc_cli_call_pb(struct mc_cli_op *op, uint16_t method, const void *msg, const void *type,
		   void **ret_reply);

/* ---- the view (view.c) ---- */

/** An owner as the master described it. Lives as long as the store. */
struct mc_cli_owner {
	uint64_t id;
	struct mc_cli_end end;
	/* under view.mu */
	uint64_t incarnation, capacity;
	bool takes_puts, is_there;
	int32_t segment; /* -1: not opened */
	char segment_name[MC_CLI_TEXT_MAX];
	_Atomic bool has_failed; /* it may be excluded; any thread */
};

struct mc_cli_view {
	pthread_mutex_t mu;
	struct mc_cli_owner **owners; /* in the order in which they came */
	size_t n, cap;
	uint64_t version, fetched_ns;
	bool is_recovering;    /* the master waits for owners */
	struct mc_place place; /* the same owners, for choices */
};

void mc_cli_view_init(struct mc_cli_view *view);
void mc_cli_view_fini(struct mc_cli_view *view);
/** Another cluster's: nobody is there until the master has said so. */
void mc_cli_view_reset(struct mc_cli_view *view);
/** Ask the master when the view is older than `age_ns`. @return 0; -enum mc_err */
int mc_cli_view_refresh(struct mc_cli_op *op, uint64_t age_ns);
/** Are all preferred segments in the view? */
bool mc_cli_view_knows(struct mc_store *st, const struct mc_store_conf *conf);
/** NULL when the view does not have it. */
struct mc_cli_owner *mc_cli_view_find(struct mc_store *st, uint64_t id);
/** The segment of an owner for the engine. @return 0; -enum mc_err */
int mc_cli_owner_segment(struct mc_cli_op *op, struct mc_cli_owner *o, int32_t *ret_segment);
/** It did not do what was asked: no puts for a while, reads elsewhere first. */
void mc_cli_owner_bad(struct mc_cli_owner *o, int rc);
bool mc_cli_owner_is_bad(struct mc_cli_owner *o);
/** It answered. */
void mc_cli_owner_good(struct mc_cli_owner *o);
/** It is this process's own: asked by calls of owner.h, without rpc. */
bool mc_cli_owner_is_own(const struct mc_cli_owner *o);
/** Its incarnation, as the view last had it. */
uint64_t mc_cli_owner_life(struct mc_cli_owner *o);
/** An owner for `len` bytes that is none of `except`. NULL: there is none. */
struct mc_cli_owner *mc_cli_view_choose(struct mc_cli_op *op, uint64_t len,
					const struct mc_store_conf *conf,
					struct mc_cli_owner *const *except, unsigned nexcept);
/** As the master said last: owners of its life before have not come yet. */
bool mc_cli_view_is_recovering(struct mc_store *st);
/** Is there any that takes puts, and so long a slot if it makes room? */
bool mc_cli_view_can_take(struct mc_store *st, uint64_t len);

/* ---- transfers (move.c) ---- */

/** One side of what is to be moved between this process and an owner. */
struct mc_cli_move {
	struct mc_cli_owner *owner;
	struct mc_transfer x; /* segment is filled in */
	uint64_t bytes;
	struct mc_cli_tally *tally; /* of the payload, counted as it passes; NULL: none */
	int rc;			    /* result */
};
/** Move all, those of one owner in one group. Each has its rc then. */
void mc_cli_moves_run(struct mc_cli_op *op, struct mc_cli_move *moves, size_t n,
		      uint64_t deadline_ns);

/* ---- CRCs of what passes (tally.c) ---- */

struct mc_cli_tally;

/** For a transfer whose bytes from payload_at on are the whole payload, in order. NULL: not worth
 * it, or no memory; that is no error. */
struct mc_cli_tally *mc_cli_tally_new(struct mc_cli_op *op, const struct mc_slot_info *info,
				      uint64_t payload_at);
/** n bytes of the transfer, from its byte `at` on. @param dst  copy them there in the same pass;
 * NULL: only count */
void mc_cli_tally_add(struct mc_cli_tally *y, uint64_t at, void *dst, const void *src, size_t n,
		      bool is_big);
/** What was counted does not count. */
void mc_cli_tally_void(struct mc_cli_tally *y);
/** mc_slot_chunk_crc() of a chunk that has passed whole. @return false: it has not (NULL: nothing
 * has) */
bool mc_cli_tally_crc(const struct mc_cli_tally *y, const struct mc_slot_info *info, uint32_t chunk,
		      uint32_t *ret);

/* ---- locations (cache.c) ---- */

struct mc_cli_place {
	uint64_t gen, len, until_ns;
	uint32_t type;
	uint16_t tlv_len;
	uint8_t nreplicas;
	bool is_kept; /* once it is fetched from a disk */
	struct mc_st_replica replicas[MC_ST_REPLICAS_MAX];
};

struct mc_cli_cache;
int mc_cli_cache_open(struct mc_cli_cache **ret_cache);
void mc_cli_cache_close(struct mc_cli_cache *cache);
/** @return true: *ret is good until its until_ns */
bool mc_cli_cache_get(struct mc_cli_cache *cache, const struct mc_cli_key *key, uint64_t now_ns,
		      struct mc_cli_place *ret);
void mc_cli_cache_put(struct mc_cli_cache *cache, const struct mc_cli_key *key,
		      const struct mc_cli_place *place);
void mc_cli_cache_del(struct mc_cli_cache *cache, const struct mc_cli_key *key);
void mc_cli_cache_clear(struct mc_cli_cache *cache);

/* ---- lookups and reads (lookup.c, read.c, fetch.c) ---- */

/** One object that is asked for. */
struct mc_cli_look {
	struct mc_cli_key key;
	struct mc_cli_place place;
	int32_t status; /* 0: place is valid; MC_STORE_* */
	bool is_wanted; /* in: ask for this one */
	bool is_fresh;	/* the master's word of this op, not the cache's */
};
/** LOOKUP of all that are wanted. Waits within the deadline for a master that recovers. */
void mc_cli_lookup(struct mc_cli_op *op, struct mc_cli_look *const *looks, size_t n);

enum mc_cli_read_outcome {
	MC_CLI_READ_OK,
	MC_CLI_READ_STAMP,  /* right, if the header still stands */
	MC_CLI_READ_FAILED, /* not transferred */
	MC_CLI_READ_STALE,  /* another slot, or none */
	MC_CLI_READ_BAD,    /* the slot, but not its bytes */
};

/** One object to read. */
struct mc_cli_read {
	struct mc_cli_look look;
	/* Where its bytes go once the length is known; false: look.status says why not. */
	const struct mc_store_range *ranges;
	uint32_t nranges;
	uint32_t index; /* the caller's */
	int64_t result; /* in: 0, or < 0: not to be read. Out: bytes, or MC_STORE_* */
	/* read.c's */
	struct mc_slot_info info;
	const uint8_t *head; /* [0, head_len) of the slot */
	size_t head_len;
	struct mc_cli_owner *owner;
	uint8_t replica, tried; /* the one that is read; bits of those that were */
	uint8_t looks, outcome;
	bool is_done, is_placed;
	struct mc_cli_move *move;
	struct mc_cli_tally *tally; /* of the replica that is read */
};
/**
 * Read all that have result 0.
 * @param fit  gives ranges for an object whose length is known now. @return 0 or the object's
 *             MC_STORE_*
 */
void mc_cli_read_run(struct mc_cli_op *op, struct mc_cli_read *reads, size_t n,
		     int (*fit)(struct mc_cli_op *op, struct mc_cli_read *r, void *user),
		     void *user);
/** Tell the master of replicas that were not what it said. */
void mc_cli_read_report(struct mc_cli_op *op, struct mc_cli_read *const *bad, size_t n);
/**
 * Those whose replica is on a disk: their owners bring it to memory, and that is the replica then.
 * @param open  those that are left stay, in order. @param some  room for n. @return how many
 */
size_t mc_cli_fetch(struct mc_cli_op *op, struct mc_cli_read **open, size_t n,
		    struct mc_cli_read **some);
/** A slot of this process's own owner. @return 0; -MC_E_NOENT; -MC_E_CORRUPT */
int mc_cli_local_read(struct mc_cli_op *op, struct mc_cli_read *r);
/** Check the chunks that the ranges cover. @return 0; -MC_E_CORRUPT; 1: some were not covered
 * whole, and only the stamp vouches for them */
int mc_cli_read_check(const struct mc_cli_read *r);
/** CRC of chunk `chunk`, whose bytes lie in touching ranges. @param i  range to look from; moves on
 */
uint32_t mc_cli_chunk_crc(const struct mc_slot_info *info, const struct mc_store_range *ranges,
			  uint32_t *i, uint32_t chunk);

/* ---- writes (put.c, target.c, seal.c) ---- */

enum mc_cli_target_state {
	MC_CLI_TARGET_NEW,
	MC_CLI_TARGET_ASKED,
	MC_CLI_TARGET_GRANTED,
	MC_CLI_TARGET_WRITTEN,
	MC_CLI_TARGET_SEALED,
	MC_CLI_TARGET_FAILED,
};

/** A replica that is being made. */
struct mc_cli_target {
	struct mc_cli_owner *owner;
	uint64_t addr, incarnation;
	uint8_t state;	  /* enum mc_cli_target_state */
	bool is_lost;	  /* failed without the owner's word: it may have something of it */
	bool is_waiting;  /* it had no room until the call's time was up: there may be some yet */
	bool is_unfenced; /* our bytes may still land there: not ours to give back */
	bool was_sealed;  /* it was asked to put or to seal, and may have done so */
	int status;	  /* MC_STORE_* of a failed one */
	struct mc_cli_tally *tally; /* of what was written there */
};

#define MC_CLI_TARGETS_MAX 16u /* owners that are remembered for one object */

struct mc_cli_write {
	struct mc_cli_key key;
	const uint8_t *tlv;
	uint16_t tlv_len;
	const struct mc_store_range *ranges; /* NULL: a session's, which writes by itself */
	uint32_t nranges;
	uint64_t len, gen;
	uint64_t old_gen; /* before the last regen, which an owner may not have heard of; 0: none */
	struct mc_slot_info info;
	uint32_t crc; /* of a session's bytes, which owners check; 0: not known */
	uint8_t wanted, ntargets;
	bool is_upsert, is_done, is_committed;
	bool is_unsure; /* the master was asked to commit it, and may have done so */
	bool may_show;	/* an owner may have a sealed slot that it was not heard to drop */
	struct mc_cli_target targets[MC_CLI_TARGETS_MAX];
	int32_t status;
};

/** Key, TLV, generation, layout of a write. @return 0; MC_STORE_* */
int mc_cli_write_make(struct mc_cli_op *op, const struct mc_store_key *key, uint64_t len,
		      const struct mc_store_conf *conf, uint32_t index, struct mc_cli_write *ret);
/** Where its bytes are. @return 0; MC_STORE_INTERNAL_ERROR */
int mc_cli_write_parts(struct mc_cli_op *op, const struct mc_store_item *item,
		       struct mc_cli_write *w);
/** Generations for all writes whose status is 0. @return 0; MC_STORE_* */
int mc_cli_write_gens(struct mc_cli_op *op, struct mc_cli_write *writes, size_t n);
/** n generations. @return 0; -enum mc_err */
int mc_cli_gens(struct mc_cli_op *op, uint32_t n, bool is_new, uint64_t *ret_gens);
/** Find room for every write that has none, and, with parts, put the bytes there and seal them. */
void mc_cli_targets_run(struct mc_cli_op *op, struct mc_cli_write *writes, size_t n,
			const struct mc_store_conf *conf);
/** Seal what was written: with CRCs over ranges; without ranges the owner computes them, and checks
 * the bytes with `crc`. */
void mc_cli_seal(struct mc_cli_op *op, struct mc_cli_write *writes, size_t n);
/** Make sealed writes visible. */
void mc_cli_commit(struct mc_cli_op *op, struct mc_cli_write *writes, size_t n);
/** Newer generations for sealed writes; 0: not for this one. */
void mc_cli_regen(struct mc_cli_op *op, struct mc_cli_write *writes, size_t n,
		  const uint64_t *new_gens);
/** Room, bytes, seal, commit, and what is left over taken back. */
void mc_cli_write_run(struct mc_cli_op *op, struct mc_cli_write *writes, size_t n,
		      const struct mc_store_conf *conf);
/**
 * Give up what writes may have left at owners: of a failed one while the caller waits, of another
 * one in the background. What a failed one may leave all the same, because no answer came, makes
 * its status MC_STORE_RPC_FAIL or MC_STORE_RPC_TIMEOUT; with any other one it never shows.
 */
void mc_cli_drop(struct mc_cli_op *op, struct mc_cli_write *writes, size_t n);
unsigned mc_cli_write_count(const struct mc_cli_write *w, enum mc_cli_target_state state);

/* ---- what owners did not hear yet (drops.c) ---- */

struct mc_cli_drops;
int mc_cli_drops_open(struct mc_store *st, struct mc_cli_drops **ret);
/** DROP until the owner has acknowledged it, or has begun another life. Any thread. */
void mc_cli_drops_add(struct mc_cli_drops *d, struct mc_cli_owner *o, const struct mc_st_place *p);
/** One last try; what is added later is forgotten. NULL is allowed. */
void mc_cli_drops_stop(struct mc_cli_drops *d);
/** After the stop, when nobody adds any more. */
void mc_cli_drops_close(struct mc_cli_drops *d);

/* ---- sessions, memory ---- */

struct mc_cli_sessions;
int mc_cli_sessions_open(struct mc_cli_sessions **ret);
void mc_cli_sessions_close(struct mc_cli_sessions *s);
struct mc_cli_memory;
int mc_cli_memory_open(struct mc_engine *eng, uint64_t bytes_max, struct mc_cli_memory **ret);
void mc_cli_memory_close(struct mc_cli_memory *m);

/* ---- memory that comes and goes (mount.c) ---- */

struct mc_cli_mounts;
int mc_cli_mounts_open(struct mc_cli_mounts **ret);
/** All of it leaves the pool. NULL is allowed. */
void mc_cli_mounts_close(struct mc_cli_mounts *m);

/* ---- the store ---- */

struct mc_owner;
struct mc_cli_tether;

struct mc_store {
	struct mc_engine *eng;
	struct mc_loop *loop; /* drives connections while no caller does */
	uint64_t fork_gen, client_id;
	uint32_t timeout_ms;
	uint8_t tenant[MC_CLI_TEXT_MAX]; /* length and bytes: what keys begin with */
	size_t tenant_len;
	struct mc_cli_end master;
	struct mc_cli_view view;
	struct mc_cli_cache *cache;
	struct mc_cli_sessions *sessions;
	struct mc_cli_drops *drops;
	struct mc_cli_memory *memory;
	struct mc_cli_counts *counts;
	struct mc_owner *owner; /* of this process; NULL: none */
	struct mc_ssd *ssd;	/* behind it; NULL: none */
	uint64_t owner_id;
	struct mc_cli_mounts *mounts;
	_Atomic uint64_t nfetched;
	struct mc_cli_tether *tether; /* of a dummy; NULL: none */
	struct mc_dummies *dummies;   /* that it serves; NULL: none */
	char host[MC_CLI_TEXT_MAX];

	pthread_mutex_t gens_mu; /* guards the block of generations */
	uint64_t gens_next, gens_end;
	_Atomic uint64_t epoch; /* highest of a master */

	pthread_mutex_t ops_mu; /* guards these */
	struct mc_list ops_idle;
	unsigned nops_idle;
	bool is_closing;
	_Atomic uint32_t nusers; /* ops under way */
};

/** Another cluster from now on: what is known of the old one is forgotten. */
void mc_cli_follow(struct mc_store *st, const char *master);
/** The master to use; NULL, "": the default one. @return 0; MC_STORE_INVALID_PARAMS */
int mc_cli_master_set(struct mc_store *st, const char *master, struct mc_diag *diag);
/** A first word with it, within seconds: one that just starts is waited for. @return 0;
 * MC_STORE_RPC_FAIL, …: diag says what is wrong there */
int mc_cli_master_meet(struct mc_store *st, struct mc_diag *diag);
struct mc_diag;
/** Whoever is told that an owner is there may put into it. @return 0; MC_STORE_RPC_FAIL with a diag
 */
int mc_cli_adopt_await(struct mc_store *st, struct mc_owner *owner, struct mc_diag *diag);
bool mc_cli_is_closing(struct mc_store *st);

/* ---- numbers for monitors (count.c) ---- */

/** st->counts, named in the engine's registry. @return 0; -MC_E_NOMEM; -MC_E_LIMIT */
int mc_cli_counts_open(struct mc_store *st);
/** After the last call, before the engine. NULL is allowed. */
void mc_cli_counts_close(struct mc_cli_counts *c);
/** A public call that began then has ended. Any thread. */
void mc_cli_count_get(struct mc_cli_counts *c, uint64_t start_ns, const int64_t *results,
		      uint32_t n);
void mc_cli_count_put(struct mc_cli_counts *c, uint64_t start_ns, const struct mc_cli_write *writes,
		      uint32_t n);
void mc_cli_count_rpc(struct mc_cli_counts *c, uint16_t method, uint64_t ns);

/* ---- codes (codes.c) ---- */

/** MC_STORE_* of an error of a call; of the engine. */
int mc_cli_code_rpc(int rc);
int mc_cli_code_move(int rc);

#endif
