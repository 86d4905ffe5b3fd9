/*
 * owner.h: a pool of memory with the slots in it (docs/store.md), inside a node's program or a
 * client's process.
 *
 * It serves clients over rpc (Put, Grant, Seal, Drop, Regen, Writer of wire/store.h), the process
 * around it by the calls below, which do the same without rpc, and the master by one stream: it
 * announces what it has, acknowledges frees, tells its space, asks for room and carries out orders.
 * Peers read and write the pool through the engine.
 *
 * The pool's memory may be written by peers at any time, so nothing in it is believed: keys,
 * lengths and places stand in private memory, too.
 *
 * Threads: all functions from any thread, close once. Statuses are 0 or MC_STORE_* numbers.
 */
#ifndef MC_OWNER_OWNER_H
#define MC_OWNER_OWNER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <mooncake/engine.h>
#include <mooncake/store.h>

#include "base/err.h"
#include "io/env.h"
#include "meta/slot.h"
#include "wire/store.h"

struct mc_owner;

/** All zero is a valid default but for engine and master. Strings are not kept. */
struct mc_owner_opts {
	struct mc_engine *engine; /* outlives the owner */
	const struct mc_env *env; /* of rpc; NULL: mc_env_real */
	uint64_t bytes;		  /* of the pool */
	void *memory; /* for the pool, page-aligned; outlives the owner. NULL: the engine's */
	const char *location; /* of `memory`, as mc_mem_reg() takes it */
	const char *master;   /* "host:port" */
	const char *host;     /* for "on the same host"; NULL: the host of the engine's name */
	const char *protocol; /* told to clients; NULL: "tcp" */
	uint64_t id;	      /* 0: random */
	uint64_t epoch;	      /* highest of a master that was seen in an earlier life */
	uint32_t waiting_max; /* calls that wait for room; 0: 1024 */
	uint64_t waiting_bytes_max; /* of their messages; 0: 64 MiB */
	uint64_t grant_timeout_ms;  /* of a grant whose writer is away; 0: 600 s */
	uint64_t watch_ms;	 /* a writer's process answers in time, or is asked later; 0: 2 s */
	uint64_t disk_bytes;	 /* of a disk behind the pool, see below; 0: none */
	uint64_t check_after_ms; /* a slot is checked with the index then; 0: 25 s, so that what a
				  * dead writer left comes back within 30 */
};

/**
 * Open: pool, rpc and stream. Does not wait for the master, which may come later.
 * @return 0; -MC_E_INVAL (what it is stands in diag); -MC_E_DNS (master); -MC_E_NOMEM (pool);
 * -MC_E_ADDR; -MC_E_LIMIT; -MC_E_UNAVAILABLE
 */
MC_MUST_CHECK int mc_owner_open(const struct mc_owner_opts *opts, struct mc_diag *diag,
				struct mc_owner **ret);
/** It will be closed soon: no new grants and puts (MC_STORE_NO_AVAILABLE_HANDLE), no copies; the
 * master is told, so that clients go elsewhere. What is there is read until then. */
void mc_owner_retire(struct mc_owner *o);
/** Leaves the master for good (a second at most), ends calls that wait, frees the pool when no peer
 * touches it any more. Every pin has ended. NULL is allowed. */
void mc_owner_close(struct mc_owner *o);

uint64_t mc_owner_id(const struct mc_owner *o);
uint64_t mc_owner_incarnation(const struct mc_owner *o);
/** "ip:port" of its rpc. */
const char *mc_owner_address(const struct mc_owner *o);
/** Its master knows all it has. @return false also while there is no master */
bool mc_owner_is_adopted(struct mc_owner *o);

/* ---- what clients do over rpc, for the process around it ---- */

/**
 * Room for an object: the caller writes the payload at (void *)ret->addr + payload_off of its
 * layout, and seals. Waits for room. The same key and generation again gives the same slot.
 * @param g  payload is not looked at
 * @param deadline_ns  of mc_now_ns()
 * @return 0; MC_STORE_NO_AVAILABLE_HANDLE (the master says that nothing may be evicted, or it is
 * larger than the pool); MC_STORE_UNAVAILABLE_IN_CURRENT_STATUS (no room by the deadline: ask
 * again); MC_STORE_INVALID_PARAMS; MC_STORE_INTERNAL_ERROR (memory, closed)
 */
int32_t mc_owner_grant(struct mc_owner *o, const struct mc_st_grant *g, uint64_t deadline_ns,
		       struct mc_st_granted *ret);
/** Grant, copy g->payload with CRCs, seal. Repeating is harmless. @return as mc_owner_grant() */
int32_t mc_owner_put(struct mc_owner *o, const struct mc_st_grant *g, uint64_t deadline_ns,
		     struct mc_st_granted *ret);
/** Readable from now on. With MC_ST_SEAL_COMPUTE the caller's thread computes. @return 0 (also
 * again); MC_STORE_REPLICA_IS_GONE (no such grant); MC_STORE_INVALID_PARAMS (table);
 * MC_STORE_CHECKSUM_MISMATCH (not the bytes that were meant: the grant is given up) */
int32_t mc_owner_seal(struct mc_owner *o, const struct mc_st_seal *s);
/** Give up a grant, or what was sealed and never committed. Nobody may write there any more. With
 * address 0 whatever has the generation. It is the last word: a call of this generation that comes
 * later is refused with MC_STORE_REPLICA_IS_GONE (the last few thousand are remembered).
 * @return 0 (also when there is none); MC_STORE_OBJECT_ALREADY_EXISTS: it stays, a master has been
 * told of it and may have taken it in for the object, in place of an older one */
int32_t mc_owner_drop(struct mc_owner *o, const struct mc_st_place *p);
/** Another generation for a sealed slot. @return 0 (also again); MC_STORE_REPLICA_IS_GONE;
 * MC_STORE_INVALID_VERSION (not above) */
int32_t mc_owner_regen(struct mc_owner *o, const struct mc_st_regen *r);

/* ---- reading one's own slots ---- */

struct mc_owner_view {
	const uint8_t *image;	  /* table and payload are to be checked by the reader */
	struct mc_slot_info info; /* the owner's own word; its views, too, live until the unpin */
	uint32_t pin;
};
/** The slot of this place, its bytes kept where they are until mc_owner_unpin(). @return 0;
 * -MC_E_NOENT (another generation, freed, not sealed) */
MC_MUST_CHECK int mc_owner_pin(struct mc_owner *o, uint64_t addr, uint64_t gen,
			       struct mc_owner_view *ret);
void mc_owner_unpin(struct mc_owner *o, const struct mc_owner_view *view);

/* ---- a disk behind the pool ---- */

/*
 * What is sealed goes to the disk, too, and comes back when it is fetched. The process around the
 * owner has the disk, and one thread for it, which takes jobs and tells how they ended. An owner
 * with a disk says nothing to its master before mc_owner_start(): until then it learns what is on
 * the disk.
 */
enum mc_owner_disk_what {
	MC_OWNER_DISK_WRITE,
	MC_OWNER_DISK_READ,   /* `len` bytes to `payload` */
	MC_OWNER_DISK_DELETE, /* generations of this key up to this one */
	MC_OWNER_DISK_COUNT,
};
struct mc_owner_disk_job {
	enum mc_owner_disk_what what;
	uint64_t gen, len;
	const uint8_t *key, *tlv; /* as long as the job */
	uint16_t key_len, tlv_len;
	uint8_t *payload; /* aligned to a page from MC_SLOT_PAGED_MIN bytes on */
	/* the owner's */
	void *own;
	uint32_t slot;
};

/** A record that is there. Before mc_owner_start(). @return 0; -MC_E_INVAL; -MC_E_NOMEM */
MC_MUST_CHECK int mc_owner_disk_has(struct mc_owner *o, const struct mc_st_grant *g);
/** To the master from now on. Once, and only with a disk. */
void mc_owner_start(struct mc_owner *o);
/** Jobs; waits for the first until `until_ns` of mc_now_ns().
 * @param bytes_max  of all that is written, but one; 0: nothing is
 * @return how many; 0: its time is up, or mc_owner_disk_end() */
unsigned mc_owner_disk_take(struct mc_owner *o, struct mc_owner_disk_job *jobs, unsigned max,
			    uint64_t bytes_max, uint64_t until_ns);
/** Are the bytes to be written still those that were sealed? @return 0; -MC_E_CORRUPT */
MC_MUST_CHECK int mc_owner_disk_check(struct mc_owner *o, const struct mc_owner_disk_job *job);
/**
 * A job ended: 0, or why not. Jobs that were taken together end with the last one first.
 *
 * Written: 0 says durable; -MC_E_NOSPACE: tried again when the master has made room;
 * -MC_E_UNFENCED: it may be there; anything else: it is not and will not be. Read: 0 says that it
 * was checked. Deleted: 0 says durable, or that it was not there; else it is tried again.
 */
void mc_owner_disk_done(struct mc_owner *o, const struct mc_owner_disk_job *job, int rc);
/** What records may take, and take. @param capacity  0: nothing is written any more */
void mc_owner_disk_space(struct mc_owner *o, uint64_t capacity, uint64_t used);
/** Have what is sealed by now written without the usual wait for its commit. Blocks; once.
 * @return true: it is on the disk, or the disk has no room; false: not by `until_ns` of mc_now_ns()
 */
MC_MUST_CHECK bool mc_owner_disk_flush(struct mc_owner *o, uint64_t until_ns);
/** No job from now on. The thread has to end before mc_owner_close(). */
void mc_owner_disk_end(struct mc_owner *o);

/* ---- observation ---- */

struct mc_owner_stats {
	uint64_t capacity, used, largest;
	uint64_t guests; /* bytes, not among `used`: read from the disk, until room is wanted */
	uint64_t sealed, granted, waiting;				      /* now */
	uint64_t puts, grants, seals, frees, drops, refused, orphans, orders; /* so far */
	uint64_t bytes_put;
	uint64_t connects; /* to a master */
	uint64_t epoch;	   /* highest of a master so far */
	bool is_adopted;
	uint64_t disk_capacity, disk_used, disk_records;	       /* now */
	uint64_t disk_writes, disk_reads, disk_deletes, disk_failures; /* so far */
};
void mc_owner_stats(struct mc_owner *o, struct mc_owner_stats *ret);

#endif
