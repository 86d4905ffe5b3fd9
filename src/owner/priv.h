/*
 * priv.h: an owner from inside.
 *
 *   pool.c    slots and where they lie; under the lock
 *   calls.c   grant, put, fetch; calls that wait for room
 *   seal.c    seal, drop, regen
 *   serve.c   the same over rpc; writers, and what becomes of their grants
 *   stream.c  the connection to the master and its notes
 *   notes.c   what is said to the master
 *   work.c    what may block: a thread of its own
 *   disk.c    records on the disk behind the pool
 *   due.c     which slots go to that disk, and when
 *   disk_work.c  what the thread does that has it
 *
 * One lock: pool and waiting calls. Nothing else is taken under it, and no bytes of payloads are
 * moved. Everything of serve.c, stream.c and notes.c belongs to the loop.
 */
#ifndef MC_OWNER_PRIV_H
#define MC_OWNER_PRIV_H

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>

#include "base/clock.h"
#include "base/hash.h"
#include "base/list.h"
#include "base/mem.h"
#include "base/str.h"
#include "base/stats.h"
#include "meta/extent.h"
#include "owner/owner.h"
#include "rpc/rpc.h"
#include "wire/store.pb-c.h"

#define MC_OWNER_WRITERS_MAX 4096u
#define MC_OWNER_CONNS_MAX 16384u
#define MC_OWNER_JOBS_MAX 1024u
#define MC_OWNER_ORDERS_MAX 64u
#define MC_OWNER_NAME_MAX 256u
#define MC_OWNER_DROPPED 4096u
#define MC_OWNER_HAS_FIX 32u /* fixed part of mc_st_has */
#define MC_OWNER_NIL 0u	     /* no slot; ids begin with 1 */

/* Between a writer's proven death and the reuse of what it had granted: what its kernel had sent
 * may still be moved from our sockets. */
#define MC_OWNER_LINGER_NS (2 * MC_NS_PER_S)

enum mc_oslot_state {
	MC_OSLOT_NONE,
	MC_OSLOT_GRANTED,
	MC_OSLOT_SEALING, /* somebody computes its CRCs, or copies its payload */
	MC_OSLOT_SEALED,
	MC_OSLOT_DEAD, /* header cleared, pinned */
	MC_OSLOT_COUNT,
};

struct mc_owriter;

/** A slot. Under the lock. */
struct mc_oslot {
	uint64_t gen, hash, len;
	uint64_t off;		   /* in the pool */
	uint64_t when_ns;	   /* sealed */
	uint64_t told;		   /* fetched: number of the note that says so; 0: not said yet */
	struct mc_owriter *writer; /* until sealed */
	uint8_t *texts;		   /* key and TLV, ours */
	uint32_t extent, pins;
	uint32_t prev, next; /* granted: its writer's; sealed: all, oldest first; none: unused */
	uint16_t key_len, tlv_len;
	uint8_t state;
	bool is_doomed;	   /* the master freed it before it was sealed */
	bool is_fetched;   /* from the disk, where it is still, too */
	bool is_writing;   /* the disk's thread pins it */
	bool is_owed;	   /* its free is acknowledged when no record of it is left */
	bool is_guest;	   /* fetched, and the master does not know: see mc_opool.guests */
	bool is_announced; /* a master may have taken it in: it alone frees it */
	bool is_copy;	   /* being made by an order */
	bool is_committed; /* a master has it in its index: see MC_ST_NOTE_COMMITTED */
	bool is_asked;	   /* the master wants it on the disk: in mc_odisk.asked */
	bool is_refused;   /* the disk had no room for it: it is not offered again */
};

/** A list of slots by their links. */
struct mc_oslots {
	uint32_t first, last;
};

struct mc_ofetch;

/** Slot ids by a number of the slot: open addressing, linear probing. */
struct mc_oindex {
	uint32_t *at;
	size_t len; /* power of two */
};

/** Under the lock. */
struct mc_opool {
	uint8_t *base;
	uint64_t incarnation;
	struct mc_extent *extent;
	struct mc_oslot *slots;
	size_t cap, nslots; /* ever used, slot 0 among them */
	size_t slots_max;
	uint32_t unused;
	size_t live;
	struct mc_oindex by_off, by_gen;
	struct mc_oslots sealed;
	struct mc_oslots guests; /* sealed, too: they make room for others; oldest first */
	uint64_t guest_bytes;
	uint32_t announce; /* next to announce, newest first; NIL: all are */
	uint32_t check;	   /* oldest that was not yet checked with the index */
	uint32_t offload;  /* oldest that was not yet offered for the disk */
	uint64_t nsealed, ngranted;
	uint64_t dropped[MC_OWNER_DROPPED]; /* generations, by their hash: the last one of each */
};

/** A process that is granted slots. The loop's, but for `grants`, which is under the lock. */
struct mc_owriter {
	struct mc_list link; /* mc_owner.writers */
	struct mc_oslots grants;
	uint64_t client;	/* 0: it did not say */
	uint64_t watch;		/* id of its watch, 0: none */
	uint64_t watch_ns;	/* when one was begun */
	uint64_t away_ns;	/* its last connection was lost then */
	uint64_t dead_ns;	/* proven then; 0: not */
	uint32_t nconns, nrefs; /* connections; calls and jobs under way */
	int32_t peer;		/* `segment` at the engine; MC_SEGMENT_LOCAL: not opened */
	bool is_refused;     /* nobody listened there: dead, if its connections have ended, too */
	bool is_unwatchable; /* ourselves, or upstream's */
	char segment[MC_OWNER_NAME_MAX];
};

/** A call that waits for room: over rpc (req), or of this process. In mc_owner.waiting. */
struct mc_owait {
	struct mc_list link;
	uint64_t deadline_ns;
	uint64_t need; /* bytes of all its slots to come */
	/* over rpc: the loop's */
	struct mc_rpc_req *req;
	struct mc_owriter *writer;
	bool has_payload, is_fetch;
	bool is_kept;		 /* what is fetched becomes a replica */
	struct mc_ofetch *fetch; /* the read that it waits for when there is room */
	uint32_t n, done;
	uint32_t ngranted; /* of those done: its writer does not know of them yet */
	uint8_t *msg;	   /* what is left of the message, ours */
	size_t msg_len;
	struct mc_rd rd;
	struct mc_wr reply;
	uint8_t *reply_buf;
	/* of this process: on its caller's stack, under the lock */
	const struct mc_st_grant *grant;
	int32_t status;
	uint32_t slot;
	bool is_old;
	_Atomic uint32_t is_over;
};

/** Work that may block; run() on the work thread, then end() on the loop. */
struct mc_ojob {
	struct mc_task task;
	struct mc_list link;
	struct mc_owner *owner;
	void (*run)(struct mc_ojob *job);
	void (*end)(struct mc_ojob *job); /* frees it */
	bool must_run;			  /* also when the owner closes */
};

/** A note on its way to the master, kept until it is acknowledged. */
struct mc_onote {
	struct mc_list link;
	uint64_t number;
	size_t len;
	uint8_t bytes[];
};

struct mc_odone { /* an order that ended */
	uint64_t id, addr, gen;
	int32_t status;
};

enum mc_orec_state {
	MC_OREC_LIVE,
	MC_OREC_DELETE, /* to be deleted */
	MC_OREC_DELETING,
	MC_OREC_GONE, /* to be acknowledged */
	MC_OREC_COUNT,
};

/** An object on the disk. Under the lock. */
struct mc_orec {
	struct mc_list link; /* of mc_odisk: live, deletes, gone */
	struct mc_orec *chain;
	uint64_t gen, len;
	uint64_t told;	    /* number of the note that says that it is there; 0: not said yet */
	uint64_t slot_addr; /* the free of this slot is acknowledged with its end; 0: none */
	uint32_t nreads;
	uint16_t key_len, tlv_len;
	uint8_t state;
	bool is_freed; /* by the master, which waits for it */
	uint8_t texts[];
};

/** An object on its way from the disk into a slot. */
struct mc_ofetch {
	struct mc_list link; /* of mc_odisk: fetches, ended; under the lock */
	struct mc_orec *rec;
	uint32_t slot;
	bool is_taken;
	bool is_kept; /* the master is told that it is in memory */
	int32_t status;
	struct mc_list waiters; /* mc_owait.link; the loop's */
};

/** A replica that the master is to be told of. */
struct mc_omore {
	uint64_t gen;
	uint8_t kind;
};

/** A slot that the master was asked about. */
struct mc_odue {
	uint64_t gen, again_ns;
};

/** The disk behind the pool. Under the lock. */
struct mc_odisk {
	bool is_there, is_over;
	bool is_idle; /* the disk's thread sleeps */
	pthread_cond_t cond;
	struct mc_orec **buckets;
	size_t nbuckets, nrecs;
	struct mc_list live, deletes, gone; /* oldest first */
	struct mc_list fetches, ended;
	struct mc_orec *announce; /* next to announce, newest first; NULL: all are */
	struct mc_omore *more;
	size_t nmore, more_cap;
	uint64_t capacity, used, want;
	bool is_lazy;	     /* nothing is offered to the master: it asks by itself */
	struct mc_odue *due; /* offered, [due_at, ndue), oldest first */
	size_t due_at, ndue, due_cap;
	uint64_t *asked; /* generations, [asked_at, nasked) */
	size_t asked_at, nasked, asked_cap;
	uint64_t write_ns, delete_ns; /* not before */
	uint64_t flush_ns;	      /* what was sealed up to then is written at once */
	bool is_flushed;
	pthread_cond_t flush_cond;
	struct mc_task task;
	bool is_posted;
	uint64_t said_capacity, said_used; /* the loop's */
	bool is_space_due, is_want_due;	   /* the loop's */
};

enum mc_ostream_state {
	MC_OSTREAM_DOWN,
	MC_OSTREAM_ASKED, /* connected or connecting; no welcome yet */
	MC_OSTREAM_UP,
	MC_OSTREAM_COUNT,
};

/** The loop's, but for what is atomic. */
struct mc_ostream {
	struct mc_rpc_conn *conn;
	struct mc_rpc_call call;
	uint8_t state;
	bool is_leaving;
	_Atomic uint32_t is_left;
	struct mc_timer again;
	struct mc_addr master;
	uint8_t *in; /* a note that is not whole yet */
	size_t in_len, in_cap;
	uint32_t credit_owed;
	uint64_t in_number;
	/* ours, in order; `unsent` is the first that was not sent, or NULL */
	struct mc_list notes;
	struct mc_onote *unsent;
	size_t kept_bytes;
	uint64_t number, acked, has_all;
	bool is_has_all_due, is_space_due, is_want_due;
	uint64_t space_ns, space_used, want_ns, wanted;
	struct mc_st_place *freed;
	size_t nfreed, freed_cap;
	struct mc_odone done[MC_OWNER_ORDERS_MAX];
	unsigned ndone, norders;
	_Atomic uint64_t epoch;
	_Atomic bool is_adopted;
};

#define MC_OWNER_METHODS 7u

struct mc_owner_counters {
	struct mc_counter puts, grants, seals, frees, drops, refused, orphans, orders, bytes_put,
	    connects, disk_writes, disk_reads, disk_deletes, disk_failures;
};

struct mc_owner {
	struct mc_engine *engine;
	const struct mc_env *env;
	struct mc_loop *loop;
	struct mc_rpc_server *server;
	uint64_t id, bytes;
	uint64_t grant_timeout_ns, check_after_ns, watch_timeout_ns;
	uint32_t waiting_max;
	uint64_t waiting_bytes_max;
	char address[MC_ADDR_TEXT_MAX], host[MC_OWNER_NAME_MAX], protocol[32];

	pthread_mutex_t lock; /* pool, waiting, nwaiting, waiting_bytes, is_closing, is_retiring */
	struct mc_opool pool;
	struct mc_list waiting;	   /* oldest first */
	_Atomic uint32_t nwaiting; /* changes under the lock */
	uint64_t waiting_bytes;
	bool is_closing, is_retiring;
	bool is_given; /* the pool's memory is not the engine's */

	struct mc_timer tick;
	struct mc_task room_task;
	_Atomic bool is_room_posted;
	struct mc_ostream stream;
	struct mc_odisk disk;
	struct mc_list writers;
	uint32_t nwriters;
	struct mc_owriter self; /* grants of this process */
	uint64_t orders_life;	/* changes when the orders of before are over; under the lock */
	struct mc_cq *cq;	/* watches of writers */
	struct mc_watch cq_watch;
	bool is_cq_watched;

	pthread_t work_thread;
	bool has_work_thread;
	pthread_mutex_t work_lock; /* jobs, is_work_over */
	pthread_cond_t work_cond;
	struct mc_list jobs;
	uint32_t njobs;
	bool is_work_over;
	struct mc_owner_counters count;
	struct mc_hist latency[MC_OWNER_METHODS];     /* of its rpcs, ns */
	struct mc_gauge journal_notes, journal_bytes; /* that the master has not acknowledged */
	struct mc_stat *stats[MC_OWNER_METHODS + 2];  /* their names in the engine's registry */
};

/* ---- count.c ---- */
/** A histogram for each method, the journal's gauges: named with the owner's id.
 * @return as mc_stat_add(); then mc_ocount_close() all the same */
int mc_ocount_open(struct mc_owner *o, struct mc_rpc_method methods[MC_OWNER_METHODS]);
void mc_ocount_close(struct mc_owner *o);

/* ---- pool.c: under the lock ---- */
int mc_opool_init(struct mc_opool *p, uint8_t *base, uint64_t bytes, uint64_t incarnation);
void mc_opool_fini(struct mc_opool *p);
/** @return slot id or MC_OWNER_NIL */
uint32_t mc_opool_at(const struct mc_opool *p, uint64_t addr, uint64_t gen);
uint32_t mc_opool_of_gen(const struct mc_opool *p, uint64_t gen);
/** @return 0; -MC_E_NOSPACE; -MC_E_NOMEM; -MC_E_LIMIT */
int mc_opool_take(struct mc_opool *p, const struct mc_st_grant *g, const struct mc_slot_info *info,
		  struct mc_owriter *writer, uint32_t *ret_id);
/** A grant goes over to another writer. */
void mc_opool_give(struct mc_opool *p, uint32_t id, struct mc_owriter *writer);
/** The slot is no more; its bytes are free. Not pinned. */
void mc_opool_release(struct mc_opool *p, uint32_t id);
/** No slot is readable any more: their places will mean other bytes. */
void mc_opool_clear(struct mc_opool *p);
/** Into the list of sealed ones. */
void mc_opool_sealed(struct mc_opool *p, uint32_t id, uint64_t now_ns);
/** A guest is asked for again: the last to go of them; @param is_kept  no guest any more. */
void mc_opool_guest(struct mc_opool *p, uint32_t id, bool is_kept, uint64_t now_ns);
/** The oldest guest goes, but none that came a moment ago. @return false: there is none */
bool mc_opool_reclaim(struct mc_opool *p, uint64_t now_ns);
/** When mc_opool_reclaim() will find one. MC_TIME_NEVER: there is none */
uint64_t mc_opool_reclaim_ns(const struct mc_opool *p);
/** Without guests. */
uint64_t mc_opool_used(const struct mc_opool *p);
/** Header cleared, its bytes free as soon as nobody pins them. A slot that is not sealed is doomed.
 * @return bytes became free */
bool mc_opool_kill(struct mc_opool *p, uint32_t id);
/** A generation was given up by its writer: what of it is still on its way comes too late. */
void mc_opool_drop(struct mc_opool *p, uint64_t gen);
/** It is wanted after all. */
void mc_opool_undrop(struct mc_opool *p, uint64_t gen);
bool mc_opool_is_dropped(const struct mc_opool *p, uint64_t gen);
void mc_opool_regen(struct mc_opool *p, uint32_t id, uint64_t gen);
/** What slot.h says of it. Views into the private texts. */
void mc_opool_info(const struct mc_opool *p, uint32_t id, struct mc_slot_info *ret);
static inline uint64_t mc_opool_addr(const struct mc_opool *p, uint32_t id)
{
	return (uint64_t)(uintptr_t)p->base + p->slots[id].off;
}

/* ---- calls.c ---- */
/** A slot in state SEALING, for this process: its payload is being made here. As
 * mc_owner_grant(). `*ret_is_old`: it is sealed already */
int32_t mc_owner_begin(struct mc_owner *o, const struct mc_st_grant *g, uint64_t deadline_ns,
		       uint32_t *ret_id, bool *ret_is_old);
/** Answer a call whose records are all served, or leave it to the fetch that it waits for. Loop. */
void mc_owait_answer(struct mc_owait *w);
/** Serve a rpc call as far as there is room; takes w over. Loop. */
void mc_owait_start(struct mc_owner *o, struct mc_owait *w);
/** Bytes became free (any thread), or a waiting call was added. */
void mc_owner_room(struct mc_owner *o);
/** Serve those that wait, end those whose time is up. Loop.
 * @param is_hopeless  end all that do not fit now
 * @return when the next one's time is up */
uint64_t mc_owner_serve_waiting(struct mc_owner *o, bool is_hopeless);
/** The master has found nothing to evict. Is nobody writing what it will find later: grants, but
 * for those of calls that wait themselves, and slots that may be about to be committed? */
bool mc_owner_is_hopeless(struct mc_owner *o);
/** Bytes that are missing. */
uint64_t mc_owner_need(struct mc_owner *o);
void mc_owait_free(struct mc_owait *w);

/* ---- seal.c ---- */
/** End of mc_owner_begin(): @param table NULL gives the slot up. @return 0;
 * MC_STORE_REPLICA_IS_GONE */
int32_t mc_owner_finish(struct mc_owner *o, uint32_t id, const uint32_t *table);
/** A slot to compute for: into state SEALING. @return 1 compute; 0 sealed already; < 0 status */
int32_t mc_owner_seal_begin(struct mc_owner *o, uint64_t addr, uint64_t gen, uint32_t *ret_id);
/** CRCs of a payload, copied from `from` unless it is there already (NULL), and finish.
 * @param crc  the writer's, of all bytes; 0: nobody said. @return as mc_owner_finish();
 * MC_STORE_CHECKSUM_MISMATCH; MC_STORE_INTERNAL_ERROR: the slot is given up */
int32_t mc_owner_fill(struct mc_owner *o, uint32_t id, const uint8_t *from, uint32_t crc);
/** Seal with a table. */
int32_t mc_owner_seal_table(struct mc_owner *o, const struct mc_st_seal *s);

/* ---- serve.c ---- */
int mc_oserve_open(struct mc_owner *o, struct mc_diag *diag);
/** No call comes any more, nobody is watched. */
void mc_oserve_close(struct mc_owner *o);
/** Grants of those who are dead or away. Loop. */
void mc_owriters_tick(struct mc_owner *o, uint64_t now_ns);

/* ---- stream.c: loop ---- */
/** Before the loop runs. */
void mc_ostream_init(struct mc_owner *o);
/** Connect, from now on for ever. */
void mc_ostream_connect(struct mc_owner *o);
/** Tell the master that the owner goes, if there is one; is_left when it knows. */
void mc_ostream_leave(struct mc_owner *o);
/** Not on the loop, which has ended. */
void mc_ostream_fini(struct mc_owner *o);
/** Room is missing: ask the master, now and then again. */
void mc_ostream_want(struct mc_owner *o);
/** Everything periodic. */
void mc_ostream_tick(struct mc_owner *o, uint64_t now_ns);
/** Say what is to be said. */
void mc_ostream_pump(struct mc_owner *o);
/** An order ended. */
void mc_ostream_done(struct mc_owner *o, const struct mc_odone *done);

/* ---- notes.c: loop ---- */
/** The next note, appended to notes. @return false when there is nothing to say */
bool mc_onote_next(struct mc_owner *o);
/** Drop what is acknowledged. */
void mc_onotes_ack(struct mc_owner *o, uint64_t number);
void mc_onotes_drop(struct mc_owner *o);
/** A copy of everything is to be announced. */
void mc_onotes_announce(struct mc_owner *o);

/** A free is carried out. @return false: no memory, the stream is over */
bool mc_ostream_freed(struct mc_owner *o, const struct mc_st_place *p);

/* ---- disk.c ---- */
int mc_odisk_init(struct mc_owner *o, uint64_t bytes);
/** Loop: whoever waits for it is told that it is over. */
void mc_odisk_close(struct mc_owner *o);
void mc_odisk_fini(struct mc_owner *o);
/** Under the lock: there may be work for the disk's thread. */
void mc_odisk_wake(struct mc_owner *o);
struct mc_orec *mc_orec_find(struct mc_odisk *d, uint64_t gen);
void mc_orec_add(struct mc_odisk *d, struct mc_orec *rec);
void mc_orec_del(struct mc_odisk *d, struct mc_orec *rec);
/** In no list. NULL: no memory */
struct mc_orec *mc_orec_new(uint64_t gen, uint64_t len, const uint8_t *key, uint16_t key_len,
			    const uint8_t *tlv, uint16_t tlv_len);
/** A live one is to be deleted. */
void mc_orec_doom(struct mc_owner *o, struct mc_orec *rec);
/** The master is to be told of a replica that was made. */
void mc_odisk_more(struct mc_odisk *d, uint64_t gen, uint8_t kind);
/** A record's place is freed by the master. Loop, under the lock.
 * @return true: acknowledged when it is done; false: at once */
bool mc_odisk_free(struct mc_owner *o, uint64_t gen);
/** A slot is freed, by the master or its writer. Loop, under the lock, before the slot is killed.
 * @param is_freed  by the master. @return as above */
bool mc_odisk_slot_freed(struct mc_owner *o, uint32_t id, bool is_freed);
/** Answer FETCH. Loop. */
void mc_odisk_fetch(struct mc_owner *o, struct mc_rpc_req *req, uint64_t gen, bool is_kept);
/** The bytes are in the slot; rc < 0: they are not. Any thread. */
void mc_ofetch_read(struct mc_owner *o, struct mc_ofetch *f, int rc);
/** Answer who waits for it. Loop. */
void mc_ofetch_end(struct mc_owner *o, struct mc_ofetch *f);
/** A call that fetches has a slot. Under the lock. @return a status */
int32_t mc_odisk_begin(struct mc_owner *o, struct mc_owait *w, uint32_t id, bool is_old);
/** Everything is to be announced. Loop. */
void mc_odisk_announce(struct mc_owner *o);
/** Records from the cursor of the announcement on, as mc_st_has. Under the lock. */
void mc_odisk_say_has(struct mc_owner *o, struct mc_wr *w, size_t max, uint64_t number);
/** Replicas that were made since, as mc_st_has. Loop. @return how many entries of `more` it
 * covers */
size_t mc_odisk_say_more(struct mc_owner *o, struct mc_wr *w, size_t max);
/** They are in the note of this number. Loop. */
void mc_odisk_said_more(struct mc_owner *o, size_t n, uint64_t number);
/** A slot as mc_st_has. Under the lock. */
void mc_oslot_encode(const struct mc_opool *p, uint32_t id, struct mc_wr *w);

/* ---- due.c ---- */
/** What its master wants: @param is_lazy  it asks by itself for what is to go to the disk. Loop. */
void mc_odisk_policy(struct mc_owner *o, bool is_lazy);
/** OFFLOAD: a slot is to be written to the disk. Loop. */
void mc_odisk_ask(struct mc_owner *o, const struct mc_st_place *p);
/** NO_ROOM on the disk. Loop. */
void mc_odisk_no_room(struct mc_owner *o);
/** It is in memory alone, and nobody is writing it. Under the lock. */
bool mc_odisk_is_unwritten(struct mc_owner *o, uint32_t id);
/** A slot has another generation. Under the lock. */
void mc_odisk_renamed(struct mc_owner *o, uint32_t id);
/** Slots to offer, as mc_st_has. Loop. */
void mc_odisk_say_due(struct mc_owner *o, struct mc_wr *w, size_t max);
/** When there will be some. MC_TIME_NEVER: nobody knows. Loop. */
uint64_t mc_odisk_due_ns(struct mc_owner *o);
/** The slot to be written next; take_write() takes it. Under the lock. @return MC_OWNER_NIL: none
 */
uint32_t mc_odisk_next_write(struct mc_owner *o);
void mc_odisk_take_write(struct mc_owner *o);
/** One that was taken had no room: it is the next. Under the lock. */
void mc_odisk_put_back(struct mc_owner *o, uint32_t id);

/* ---- work.c ---- */
int mc_owork_open(struct mc_owner *o);
/** Jobs under way end; the others are ended without having run. */
void mc_owork_close(struct mc_owner *o);
/** @return 0; -MC_E_AGAIN (too many; job->end was not called). Loop. */
int mc_owork_add(struct mc_owner *o, struct mc_ojob *job);
/** Copy an object here. Loop. @return 0; < 0: not started */
int mc_oorder_copy(struct mc_owner *o, const Mc__St__Order *order);
/** Copies that are not made by now will not be. Loop, under the lock. */
void mc_oorders_over(struct mc_owner *o);

#endif
