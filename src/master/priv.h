/*
 * priv.h: what the files of the master share. Everything here is the index loop's but for what says
 * otherwise.
 *
 *   hello.c   clients: join, view, generations
 *   keys.c    what is there: exist, lookup, bad
 *   change.c  commit and remove, and those of them that wait for owners
 *   list.c    what goes over all objects, piece by piece: list, remove by pattern; segments
 *   frees.c   what owners have to free, tombstones, who waits for that
 *   marks.c   owners are told what is committed
 *   owner.c   the owners there are; suspect, away, back; the roster
 *   stream.c  what an owner and the master say to each other
 *   greet.c   how an owner's stream begins and ends
 *   copy.c    copies that owners are ordered to make; moves
 *   task.c    tasks of clients: copy, move
 *   drain.c   segments that are emptied
 *   repair.c  replicas that are missing are made again
 *   promote.c what is read from a disk and stays in memory
 */
#ifndef MC_MASTER_PRIV_H
#define MC_MASTER_PRIV_H

#include <mooncake/store.h>

#include "base/list.h"
#include "base/stats.h"
#include "base/str.h"
#include "master/master.h"
#include "master/state.h"
#include "master/tally.h"
#include "meta/index.h"
#include "rpc/rpc.h"
#include "wire/pb.h"
#include "wire/store.h"
#include "wire/store.pb-c.h"

#define MC_MST_OWNERS_MAX MC_STATE_OWNERS_MAX
#define MC_MST_TEXT_MAX MC_STATE_NAME_MAX /* names of owners, with NUL */
#define MC_MST_METHODS_MAX 32u
#define MC_MST_WAIT_BUCKETS 4096u /* to begin with; a power of two */
#define MC_MST_KILLED 262144u
#define MC_MST_VICTIMS_MAX 4096u /* of one look for room */
#define MC_MST_GEN_BITS 40u	 /* of a generation: its counter; above them its epoch */
#define MC_MST_EPOCH_MAX ((1ull << (64 - MC_MST_GEN_BITS)) - 2)

enum mc_mst_owner_state {
	MC_MST_ABSENT,	 /* of the roster; not seen in this life of the master, or dropped */
	MC_MST_SHAKING,	 /* its stream waits for the welcome */
	MC_MST_ANNOUNCE, /* says what it has */
	MC_MST_OK,
	MC_MST_SUSPECT, /* lost or silent; its replicas still stand in the index */
	MC_MST_OWNER_STATE_COUNT,
};

/** What an operator wants of a segment. */
enum mc_mst_drain_state {
	MC_MST_NO_DRAIN,
	MC_MST_DRAINING, /* no puts; what it has goes elsewhere */
	MC_MST_DRAINED,	 /* no puts, and nothing in its memory */
};

struct mc_mst_owner {
	struct mc_list link;	    /* mc_master.owners */
	struct mc_mst_owner *chain; /* of its bucket */
	struct mc_master *master;
	uint64_t id, incarnation;
	char segment[MC_MST_TEXT_MAX], address[MC_MST_TEXT_MAX], host[MC_MST_TEXT_MAX];
	char protocol[32];
	enum mc_mst_owner_state state;
	bool is_joined;	   /* the index has it, not as away */
	bool is_announced; /* in this life of the master, since the last welcome with from 0 */
	bool is_awaited;   /* the master recovers until it has announced */
	bool is_buried;	   /* frees of it became tombstones: it has to announce again */
	bool is_resuming;  /* the welcome will say where it left off */
	bool is_saving;	   /* `saved` is under way */
	bool must_save;	   /* once more after that */
	bool is_left;	   /* for good, while is_saving */
	struct mc_state_wait saved;
	struct mc_st_space space[MC_ST_KIND_COUNT];
	struct mc_st_space want[MC_ST_KIND_COUNT]; /* room not found yet: tried again at want_ms */
	uint64_t want_ms[MC_ST_KIND_COUNT];	   /* UINT64_MAX: nothing wanted */
	uint64_t starved_ms, tried_ms; /* room in memory: waits for the disk since; asked last */
	uint64_t promoted_ms;	       /* when the beat began in which were */
	uint32_t npromoted;
	uint64_t disk_capacity;
	uint64_t heard_ns, lost_ns; /* lost or silent since */
	uint64_t told_free;	    /* memory free as the view has it */
	uint64_t seen_s;	    /* wall clock */

	/* the stream */
	struct mc_rpc_req *req; /* NULL: there is none */
	uint64_t welcome_epoch;
	uint64_t rx_number, tx_number; /* of the last note */
	uint8_t *rx;		       /* the beginning of a note */
	size_t rx_len, rx_cap;
	uint8_t *tx; /* [tx_at, tx_len): not sent yet */
	size_t tx_at, tx_len, tx_cap;
	struct mc_st_place *frees; /* not yet in a note */
	size_t nfrees, frees_cap;
	struct mc_list freeing_link; /* mc_master.freeing */
	struct mc_st_place *marks;   /* committed there, not yet in a note */
	size_t nmarks, marks_cap;
	struct mc_list marking_link; /* mc_master.marking */

	enum mc_mst_drain_state drain;
	struct mc_list copies_waiting; /* to here; see copy.c */
	struct mc_list orders;	       /* sent and not carried out, as far as is known */
	uint32_t norders;	       /* those that somebody waits for */
};

/** One kind of call. */
struct mc_mst_method {
	struct mc_master *master;
	const char *name;
	/** @return true: answered; false: it will be, by an operation (change.c) */
	bool (*handle)(struct mc_master *m, struct mc_rpc_req *req, const struct mc_rpc_msg *msg);
	struct mc_counter calls, failures, items, failed_items;
	struct mc_hist latency; /* ns */
};

/** Somebody who waits until nothing is pending of a key. */
struct mc_mst_wait {
	struct mc_mst_wait *next; /* in its bucket, oldest first */
	uint64_t key_hash;
	/** The wait is over; unlinked. May fill m->frees and wait again. */
	void (*wake)(struct mc_master *m, struct mc_mst_wait *w);
	void *owner; /* whose it is */
	uint32_t i;  /* place there */
};

/** Frees that become tombstones: durable, then mc_index_freed(). */
struct mc_mst_bury {
	struct mc_state_wait wait;
	bool is_running;
	struct mc_index_frees now, next;
	struct mc_index_frees held; /* written; a reader may still know the place */
};

struct mc_master {
	struct mc_env env;
	struct mc_loop *loop, *side;
	struct mc_master_conf conf;
	struct mc_rpc_server *server;
	struct mc_mst_method methods[MC_MST_METHODS_MAX];
	struct mc_tally tally;
	struct mc_addr at; /* where it serves first */
	struct mc_state *state;
	struct mc_index *index;
	_Atomic uint64_t epoch; /* written on the loop */
	uint64_t epoch_next;	/* once it is durable; below epoch: none */
	uint64_t gen_next;	/* counter within the epoch */
	uint64_t gen_floor;	/* below it nothing is published anew */
	uint64_t view_version;
	uint64_t start_ns;
	uint64_t away_until_ms; /* readers may know places at owners that went away */
	bool is_recovering;
	bool is_closing;
	int begin_rc; /* of opening */

	struct mc_list owners;
	struct mc_mst_owner *owner_buckets[256];
	uint32_t nowners;
	struct mc_timer tick;

	struct mc_index_frees frees; /* out of calls of the index, for mc_mst_frees_send() */
	struct mc_list freeing;	     /* owners with frees not yet in a note */
	struct mc_list marking;	     /* owners with marks not yet in a note */
	struct mc_task mark_task;
	bool is_mark_posted;
	struct mc_mst_bury bury;
	struct mc_mst_wait **waits; /* [nbuckets] */
	size_t nbuckets, nwaits;    /* as many buckets as waits, where there is memory for them */
	struct mc_mst_wait *woken;  /* to be looked at by mc_mst_frees_send() */
	struct mc_mst_wait **woken_end;
	struct mc_list walks; /* over all objects, see list.c */
	uint32_t nwalks;
	struct mc_list ops;	    /* not answered yet */
	struct mc_list leaving;	    /* owners, see stream.c */
	uint64_t *killed;	    /* generations freed as never committed; see change.c */
	uint64_t order_next;	    /* counter of orders within the epoch */
	struct mc_list copies_over; /* to be told to who ordered them; see copy.c */
	struct mc_mst_tasks *tasks;
	struct mc_mst_drains *drains;
	struct mc_mst_repair *repair;
	struct mc_mst_promotions *promotions;

	/* scratch of one call */
	uint8_t *buf; /* for answers; grows */
	size_t buf_cap;
	struct mc_st_key *keys;
	size_t keys_cap;
	uint8_t *rows; /* of whatever the call needs */
	size_t rows_cap;
	void *arena_mem; /* of `arena` */
	struct mc_pb_arena arena;
};

/* ---- master.c ---- */

uint64_t mc_mst_now_ms(const struct mc_master *m);
/** Room for an answer of `len` bytes, until the next call of it. NULL: out of memory. */
uint8_t *mc_mst_buf(struct mc_master *m, size_t len);
/** Room for n keys, until the next call of it. NULL: out of memory. */
struct mc_st_key *mc_mst_keys(struct mc_master *m, uint32_t n);
/** As mc_mst_buf(), for records of the call. */
void *mc_mst_rows(struct mc_master *m, size_t n, size_t size);
/** Answer with a message of store.proto. */
void mc_mst_reply_pb(struct mc_master *m, struct mc_rpc_req *req, const ProtobufCMessage *msg);
/** Decode a message of store.proto; lives until the next one. Else the request is answered with an
 * error, and NULL. */
ProtobufCMessage *mc_mst_unpack(struct mc_master *m, struct mc_rpc_req *req,
				const ProtobufCMessageDescriptor *type,
				const struct mc_rpc_msg *msg);
/** A call as in answering, by its number. */
struct mc_mst_method *mc_mst_method(struct mc_master *m, uint16_t number);

/* ---- calls: as mc_mst_method.handle ---- */

/** What is published anew from now on has a generation that was not given out before. */
void mc_mst_floor_set(struct mc_master *m);
bool mc_mst_join(struct mc_master *m, struct mc_rpc_req *req, const struct mc_rpc_msg *msg);
bool mc_mst_view(struct mc_master *m, struct mc_rpc_req *req, const struct mc_rpc_msg *msg);
bool mc_mst_gens(struct mc_master *m, struct mc_rpc_req *req, const struct mc_rpc_msg *msg);
bool mc_mst_exist(struct mc_master *m, struct mc_rpc_req *req, const struct mc_rpc_msg *msg);
bool mc_mst_lookup(struct mc_master *m, struct mc_rpc_req *req, const struct mc_rpc_msg *msg);
bool mc_mst_bad(struct mc_master *m, struct mc_rpc_req *req, const struct mc_rpc_msg *msg);
bool mc_mst_commit(struct mc_master *m, struct mc_rpc_req *req, const struct mc_rpc_msg *msg);
bool mc_mst_remove(struct mc_master *m, struct mc_rpc_req *req, const struct mc_rpc_msg *msg);
bool mc_mst_list(struct mc_master *m, struct mc_rpc_req *req, const struct mc_rpc_msg *msg);
bool mc_mst_remove_like(struct mc_master *m, struct mc_rpc_req *req, const struct mc_rpc_msg *msg);
bool mc_mst_segments(struct mc_master *m, struct mc_rpc_req *req, const struct mc_rpc_msg *msg);
bool mc_mst_stream(struct mc_master *m, struct mc_rpc_req *req, const struct mc_rpc_msg *msg);

/* ---- keys.c ---- */

/** Keys of a message of `r`, in m->keys. @return how many; < 0: not such a message */
int mc_mst_keys_decode(struct mc_master *m, struct mc_rd *r);

/* ---- change.c ---- */

/** At the end of the master: nobody is told. */
void mc_mst_ops_drop(struct mc_master *m);
/** This generation was freed, or refused: it never is committed any more, nor adopted. */
void mc_mst_kill(struct mc_master *m, uint64_t gen);
bool mc_mst_is_killed(const struct mc_master *m, uint64_t gen);

/* ---- list.c ---- */

/** What is put there stays: it is there, and neither drained nor unmounted. */
static inline bool mc_mst_owner_stays(const struct mc_mst_owner *o)
{
	return o->state == MC_MST_OK && o->drain == MC_MST_NO_DRAIN &&
	       !(o->space[MC_ST_MEMORY].flags & MC_ST_SPACE_RETIRING);
}
/** As segments are shown: "ok", "suspect", "announcing", "joining", "away", "draining", "drained",
 * "unmounting". */
const char *mc_mst_owner_state_text(const struct mc_mst_owner *o);
/** The tenant ("default": none) as keys begin with it: at most 256 bytes. @return false: too long
 */
bool mc_mst_tenant_put(const char *tenant, uint8_t *to, size_t *ret_len);
/** At the end of the master: nobody is told. */
void mc_mst_walks_drop(struct mc_master *m);

/** Removal of all that a tenant has, for who is no client. The asker's memory until it is over. */
struct mc_mst_removal {
	void (*on_done)(struct mc_mst_removal *r);
	struct walk *walk; /* while it is under way */
	int32_t status;	   /* 0 or MC_STORE_*; with `removed`, at the end */
	uint64_t removed;
};
/** @return 0: on_done() is called, maybe at once; -MC_E_INVAL (tenant); -MC_E_BUSY */
MC_MUST_CHECK int mc_mst_removal_start(struct mc_master *m, struct mc_mst_removal *r,
				       const char *tenant, bool is_forced);
/** Nobody waits for it any more; it goes on. */
void mc_mst_removal_leave(struct mc_mst_removal *r);

/* ---- frees.c ---- */

/** What calls of the index have left in m->frees goes to owners, or becomes tombstones; those who
 * are woken run. At the end of whatever may have freed. */
void mc_mst_frees_send(struct mc_master *m);
/** All that is pending of an owner goes to it once more, or becomes tombstones. */
void mc_mst_frees_again(struct mc_master *m, struct mc_mst_owner *o, bool is_buried);
/** An owner has freed it. mc_mst_frees_send() is to follow. */
void mc_mst_freed(struct mc_master *m, uint64_t owner, uint64_t addr, uint64_t gen);
/** Tombstones of places that readers knew: those whose time is up. @return there are more.
 * mc_mst_frees_send() is to follow. */
bool mc_mst_buried_tick(struct mc_master *m);
/** Wait for a key of which something is pending. The caller's memory until it is woken. */
void mc_mst_wait(struct mc_master *m, struct mc_mst_wait *w);
void mc_mst_frees_init(struct mc_master *m);
void mc_mst_frees_fini(struct mc_master *m);
/** Write the tombstones anew. */
void mc_mst_tombs_save(struct mc_master *m);

/* ---- marks.c ---- */

/** This slot of its is committed: it is told soon, if it has a stream. */
void mc_mst_mark(struct mc_mst_owner *o, uint64_t addr, uint64_t gen);
void mc_mst_marks_init(struct mc_master *m);

/* ---- admin_keys.c ---- */

struct mc_http_answer;
/** A page about objects, on the side loop. @return HTTP status; 0: there is no such page */
int mc_mst_keys_page(struct mc_master *m, const char *path, struct mc_http_answer *answer,
		     struct mc_str *out);

/* ---- owner.c ---- */

struct mc_mst_owner *mc_mst_owner_find(struct mc_master *m, uint64_t id);
/** NULL: too many, or out of memory. */
struct mc_mst_owner *mc_mst_owner_add(struct mc_master *m, uint64_t id);
/** Out of the roster; what is pending of it is done. The object ends, maybe later. */
void mc_mst_owner_forget(struct mc_master *m, struct mc_mst_owner *o);
/** Its stream is over. */
void mc_mst_owner_lost(struct mc_master *m, struct mc_mst_owner *o);
/** It has told all it has. */
void mc_mst_owner_announced(struct mc_master *m, struct mc_mst_owner *o);
/** It is heard of. */
void mc_mst_owner_heard(struct mc_master *m, struct mc_mst_owner *o);
/** Places of an owner that was lost then are known to readers until that time: they were told none
 * to remember after it was lost (keys.c), and remember them for a lease. */
uint64_t mc_mst_known_until_ms(const struct mc_master *m, uint64_t lost_ns);
/** It is away, dropped from the index, until it comes back. */
void mc_mst_owner_away(struct mc_master *m, struct mc_mst_owner *o);
void mc_mst_owner_free(struct mc_mst_owner *o);
void mc_mst_roster_save(struct mc_master *m);
/** Quota of a tenant, kept in the state directory. @param bytes  NULL: none any more. @return 0;
 * -MC_E_INVAL; -MC_E_LIMIT; -MC_E_NOMEM */
MC_MUST_CHECK int mc_mst_quota_set(struct mc_master *m, const char *tenant, const uint64_t *bytes);
/** What the last mc_mst_roster_save() wrote is durable, the next epoch, too. */
void mc_mst_epoch_saved(struct mc_master *m);
/** Owners of the last life, and its tombstones. @return 0; -MC_E_NOMEM */
int mc_mst_roster_load(struct mc_master *m, const struct mc_state_found *found);
void mc_mst_owners_init(struct mc_master *m);
void mc_mst_owners_fini(struct mc_master *m);
void mc_mst_view_changed(struct mc_master *m);

/* ---- copy.c ---- */

/** An object that an owner copies from another one. The asker's memory until on_done(). */
struct mc_mst_copy {
	/* asked for */
	const uint8_t *key; /* the asker's, as long as the copy is under way */
	uint16_t key_len;
	bool is_move;	 /* the source's replica is freed when the target has one */
	bool keeps_disk; /* but not one on its disk: the asker frees that */
	uint64_t source; /* owner; 0: any that has it */
	uint64_t target;
	/** Once, from mc_mst_copies_end(). `status`: 0 or MC_STORE_*. May start it again. */
	void (*on_done)(struct mc_master *m, struct mc_mst_copy *c, int32_t status);
	/* copy.c's */
	struct mc_list link;
	uint64_t gen, len, addr;
	int32_t status;
	uint8_t kind; /* of the source's replica: its memory's if it has both */
};

/**
 * Order it, now or when the target has less to do.
 * @return 0: on_done() is called, later; MC_STORE_OBJECT_NOT_FOUND; MC_STORE_REPLICA_NOT_FOUND (the
 * source has none); MC_STORE_REPLICA_ALREADY_EXISTS (the target has one);
 * MC_STORE_SEGMENT_NOT_FOUND (the target is not there); MC_STORE_UNAVAILABLE_IN_CURRENT_STATUS
 */
MC_MUST_CHECK int32_t mc_mst_copy_start(struct mc_master *m, struct mc_mst_copy *c);
/** An owner carried out an order. */
void mc_mst_copy_done(struct mc_mst_owner *o, uint64_t id, uint64_t gen, uint64_t addr,
		      int32_t status);
/** Its stream is over: what it was ordered is not known, and may be ordered again. */
void mc_mst_copies_lost(struct mc_mst_owner *o);
/** It has begun anew: no order of before is carried out any more. */
void mc_mst_orders_over(struct mc_mst_owner *o);
/** A generation goes: copies of it that are under way have to be freed, too, before its key goes
 * on: appended to m->frees. */
void mc_mst_orders_free(struct mc_master *m, const struct mc_index_free *f);
/** Orders that wait for others to end go out. */
void mc_mst_copies_pump(struct mc_mst_owner *o);
/** Tell those whose copies have ended. */
void mc_mst_copies_end(struct mc_master *m);
/** An owner by its segment's name, that is there. NULL: none */
struct mc_mst_owner *mc_mst_owner_named(struct mc_master *m, const char *segment);

/** Room that copies may use: below the watermark, so that nothing is evicted for them. */
uint64_t mc_mst_copy_room(const struct mc_master *m, const struct mc_mst_owner *o);
struct mc_place;
/** The owners there are, as targets of copies. @param targets  names; with ntargets 0: all.
 * @return 0; < 0 */
MC_MUST_CHECK int mc_mst_copy_targets(struct mc_master *m, struct mc_place *place,
				      char (*targets)[MC_MST_TEXT_MAX], size_t ntargets);
/** A target for an object, which has room for it; of what is on disks alone, on its disk at least.
 * @return 0: none */
uint64_t mc_mst_copy_target(struct mc_master *m, struct mc_place *place,
			    const struct mc_st_object *object, uint16_t key_len);

/* ---- task.c ---- */

bool mc_mst_task_create(struct mc_master *m, struct mc_rpc_req *req, const struct mc_rpc_msg *msg);
bool mc_mst_task_query(struct mc_master *m, struct mc_rpc_req *req, const struct mc_rpc_msg *msg);
void mc_mst_tasks_tick(struct mc_master *m);
/** First half of the ids of tasks and jobs of this life, above those of lives before. */
uint64_t mc_mst_id_hi(const struct mc_master *m);
/** Of an earlier life? */
bool mc_mst_id_was(const struct mc_master *m, uint64_t id_hi);
MC_MUST_CHECK int mc_mst_tasks_open(struct mc_master *m);
void mc_mst_tasks_close(struct mc_master *m);

/* ---- clear.c ---- */

bool mc_mst_clear(struct mc_master *m, struct mc_rpc_req *req, const struct mc_rpc_msg *msg);

/* ---- repair.c ---- */

/** Replicas may have gone, or an owner has come that they could be made at. */
void mc_mst_repair_wanted(struct mc_master *m);
void mc_mst_repair_tick(struct mc_master *m);
MC_MUST_CHECK int mc_mst_repair_open(struct mc_master *m);
void mc_mst_repair_close(struct mc_master *m);
struct mc_mst_repair_stats {
	uint64_t made, bytes, failed; /* so far */
	bool is_running;
};
void mc_mst_repair_stats(const struct mc_master *m, struct mc_mst_repair_stats *ret);

/* ---- promote.c ---- */

/** A key was looked up: says in `o` whether who reads it from a disk is to keep it in memory. */
void mc_mst_promote_hit(struct mc_master *m, uint64_t key_hash, struct mc_st_object *o);
/** An owner has it in memory, too; is_taken: the index still had it. */
void mc_mst_promoted(struct mc_master *m, uint64_t gen, uint64_t len, bool is_taken);
/** What was read of it did not pass its check. */
void mc_mst_promote_bad(struct mc_master *m, uint64_t gen);
void mc_mst_promotions_tick(struct mc_master *m);
MC_MUST_CHECK int mc_mst_promotions_open(struct mc_master *m);
void mc_mst_promotions_close(struct mc_master *m);

/* ---- greet.c ---- */

/** Its direction of the stream is over: it leaves for good. The object may end. */
void mc_mst_owner_leaves(struct mc_mst_owner *o);

/* ---- stream.c ---- */

/** Queue a note to an owner with a stream. */
void mc_mst_note(struct mc_mst_owner *o, uint8_t type, const void *data, size_t len);
/** Places in as many notes as they need. @return false: no memory for them */
bool mc_mst_note_places(struct mc_mst_owner *o, uint8_t type, const struct mc_st_place *v,
			size_t n);
/** The roster is durable: welcome. */
void mc_mst_welcome(struct mc_mst_owner *o);
/** What came of its stream. */
void mc_mst_chunk(struct mc_rpc_req *req, const void *data, size_t len, bool is_last);
/** Its stream takes more. */
void mc_mst_stream_pump(struct mc_mst_owner *o);
/** End its stream with this answer. */
void mc_mst_stream_end(struct mc_mst_owner *o, int rc);
/** At the end of the master. */
void mc_mst_leaving_drop(struct mc_master *m);
/** Look for room again that was not found, and evict ahead. */
void mc_mst_room(struct mc_master *m, struct mc_mst_owner *o, unsigned kind);

#endif
