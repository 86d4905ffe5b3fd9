/*
 * store.h: what clients, owners and the master of the Store say to each other over rpc. Pure.
 *
 * Hot messages are packed records, little-endian, without gaps, in the order of the struct's
 * members; a message is a u32 count and as many records, but where it says otherwise. Keys and TLVs
 * stand behind the fixed part of their record. The others are messages of store.proto.
 *
 * `status` of a record is 0 or one of MC_STORE_* (mooncake/store.h); of a whole call it is rpc's.
 * MC_STORE_UNAVAILABLE_IN_CURRENT_STATUS: the master recovers and does not know yet; whoever asks
 * tries again within its deadline.
 */
#ifndef MC_WIRE_STORE_H
#define MC_WIRE_STORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/codec.h"
#include "base/err.h"

#define MC_ST_VERSION 1
#define MC_ST_RECORDS_MAX 65536u /* in one message */
#define MC_ST_REPLICAS_MAX 8u
#define MC_ST_DUMMY_PORT 50052u			      /* a node's number where none is said */
#define MC_ST_DUMMY_SOCKET "@mooncake_client_%u.sock" /* where a node serves dummy clients */
#define MC_ST_MASTER_PORT 50051u		      /* where none is said */
#define MC_ST_INLINE_MAX (256u << 10) /* payload bytes that a Put may carry for one object */

/* Method numbers do not meet those of control.h. */
enum mc_st_method {
	/* client -> master */
	MC_ST_JOIN = 64, /* Join -> JoinReply */
	MC_ST_VIEW,	 /* View -> ViewReply */
	MC_ST_GENS,	 /* Gens -> GensReply */
	MC_ST_EXIST,	 /* keys -> mc_st_status */
	MC_ST_LOOKUP,	 /* keys -> mc_st_object; grants leases */
	MC_ST_COMMIT,	 /* mc_st_commit -> mc_st_committed */
	MC_ST_REMOVE, /* u32 enum mc_st_remove_flag, keys -> mc_st_status; answered when the owners
			 freed */
	MC_ST_REMOVE_LIKE, /* RemoveLike -> RemoveLikeReply */
	MC_ST_LIST,	   /* List -> ListReply */
	MC_ST_BAD,	   /* mc_st_bad -> mc_st_status: these replicas did not pass their check */
	MC_ST_SEGMENTS,	   /* Segments -> SegmentsReply */
	MC_ST_TASK_CREATE, /* TaskCreate -> TaskReply */
	MC_ST_TASK_QUERY,  /* TaskQuery -> TaskReply */
	MC_ST_CLEAR,	   /* Clear -> ClearReply: replicas of one segment */
	/* owner -> master */
	MC_ST_OWNER = 96, /* Owner, a stream of mc_st_note both ways; ends with the owner */
	/* client -> owner */
	MC_ST_PUT = 112, /* mc_st_grant with payload behind each record -> mc_st_granted */
	MC_ST_GRANT,	 /* mc_st_grant -> mc_st_granted */
	MC_ST_SEAL,	 /* mc_st_seal -> mc_st_status */
	MC_ST_DROP,	 /* mc_st_place -> mc_st_status: grants or seals given up by their writer;
			    address 0: whatever has the generation. What of it comes later is
			    refused with MC_STORE_REPLICA_IS_GONE. Announced slots stay:
			    MC_STORE_OBJECT_ALREADY_EXISTS */
	MC_ST_REGEN,	 /* mc_st_regen -> mc_st_status: a newer generation for a sealed slot */
	MC_ST_WRITER,	 /* Writer -> nothing: whose grants those of this connection are */
	MC_ST_FETCH,	 /* one mc_st_place of a disk replica -> mc_st_granted: it is in memory */
	/* dummy client -> node, over its Unix socket */
	MC_ST_DUMMY = 128, /* Dummy -> DummyReply; the connection stays */
};

enum mc_st_kind {
	MC_ST_MEMORY,
	MC_ST_DISK,
	MC_ST_KIND_COUNT,
};

/* The place of every disk replica: an owner's disk has a generation once, and memory ends far below
 * it. */
#define MC_ST_DISK_ADDR (1ull << 63)
/** FETCH of it: what comes to memory is to stay there as a replica. */
#define MC_ST_DISK_KEEP (MC_ST_DISK_ADDR | 1)
/** COMMIT: an owner that was asked to seal and did not answer. It may have a slot of this
 * generation, which is no replica and is freed. */
#define MC_ST_LEFT_ADDR 0u

struct mc_st_key {
	uint16_t len; /* 1 … MC_SLOT_KEY_MAX */
	const uint8_t *bytes;
};

/** Where one image of an object is. 24 bytes */
struct mc_st_replica {
	uint64_t owner;
	uint64_t addr; /* of the slot, in the owner's segment; disk: MC_ST_DISK_ADDR */
	uint8_t kind;  /* enum mc_st_kind */
	uint8_t pad8;
	uint16_t pad16;
	uint32_t life; /* COMMIT, memory: low half of the incarnation that the owner granted with; a
			  place of another life is refused. 0: not said */
};

enum mc_st_object_flag {
	MC_ST_OBJECT_KEEP = 1, /* whoever fetches it from a disk asks for MC_ST_DISK_KEEP */
};

/** LOOKUP's answer for a key. What follows `status` is there only when that is 0; replicas, best
 * first, stand behind the fixed part. */
struct mc_st_object {
	int32_t status;
	uint32_t lease_ms;
	uint64_t gen, len;
	uint32_t type; /* upstream's ObjectDataType */
	uint16_t tlv_len;
	uint8_t nreplicas;
	uint8_t flags; /* enum mc_st_object_flag */
	struct mc_st_replica replicas[MC_ST_REPLICAS_MAX];
};

enum mc_st_remove_flag {
	MC_ST_REMOVE_FORCE = 1, /* whatever its leases */
};

enum mc_st_commit_flag {
	MC_ST_COMMIT_UPSERT = 1, /* replace what is there */
};

struct mc_st_commit {
	uint64_t gen, len;
	uint16_t key_len, tlv_len;
	uint8_t flags; /* enum mc_st_commit_flag */
	uint8_t nreplicas;
	uint16_t pad16;
	struct mc_st_replica replicas[MC_ST_REPLICAS_MAX];
	const uint8_t *key, *tlv; /* behind the replicas */
};

/** COMMIT's answer. An object that is there already with `gen` as committed is success. */
struct mc_st_committed {
	int32_t
	    status;   /* MC_STORE_OBJECT_ALREADY_EXISTS: a put came too late, its slots are freed;
			 MC_STORE_INVALID_VERSION: an upsert's generation is not above `gen`;
			 MC_STORE_REPLICA_IS_GONE: an owner has lost or freed its slot: put anew */
	uint64_t gen; /* of the object that is there now */
};

struct mc_st_bad {
	uint64_t gen;
	struct mc_st_replica replica;
	uint16_t key_len;
	const uint8_t *key;
};

/** PUT and GRANT: room for an object. */
struct mc_st_grant {
	uint64_t gen, len;
	uint16_t key_len, tlv_len;
	uint32_t crc; /* PUT: CRC32C of the payload, which the owner checks; 0: not said */
	const uint8_t *key, *tlv;
	const uint8_t *payload; /* PUT only: `len` bytes behind the TLV */
};

struct mc_st_granted {
	int32_t status;	      /* MC_STORE_NO_AVAILABLE_HANDLE: nothing may be evicted for it;
				 MC_STORE_UNAVAILABLE_IN_CURRENT_STATUS: no room by the call's
				 deadline, ask again; MC_STORE_CHECKSUM_MISMATCH: not what
				 `crc` says, ask again */
	uint64_t addr;	      /* of the slot; PUT: it is sealed */
	uint64_t incarnation; /* that CRCs are seeded with */
};

enum mc_st_seal_flag {
	MC_ST_SEAL_COMPUTE = 1, /* the owner computes the CRCs */
};

struct mc_st_seal {
	uint64_t addr, gen;
	uint32_t nchunks; /* words behind the record: the table's; with COMPUTE 0, or 1: the
			     CRC32C of the payload, which the owner checks (0: not said) */
	uint32_t flags;	  /* enum mc_st_seal_flag */
	const uint8_t *table;
};

struct mc_st_place {
	uint64_t addr, gen;
};

struct mc_st_regen {
	uint64_t addr, gen, new_gen;
};

/*
 * The owner's stream: notes of a fixed head of 16 bytes (u32 length of what follows, u8 type, u8 0,
 * u16 0, u64 number: counts from 1 in each direction) and records up to its end, without a count.
 * A note may be cut by pieces of the stream.
 *
 * The master begins with WELCOME, which may take a while; the owner sends nothing before it. An
 * owner has something to say at least once in MC_ST_BEAT_MS, a SPACE if nothing else. One that is
 * silent for three of them is suspect, for client_ttl dropped. It leaves for good by the last piece
 * of its direction; the master then answers the call.
 */
#define MC_ST_BEAT_MS 1000u
enum mc_st_note {
	/* owner -> master */
	MC_ST_NOTE_HAS = 1, /* mc_st_has: slots that are sealed; hot first */
	MC_ST_NOTE_HAS_ALL, /* that was all */
	MC_ST_NOTE_CHECK, /* mc_st_has: sealed a while ago; what the index does not know is freed */
	MC_ST_NOTE_FREED, /* mc_st_place */
	MC_ST_NOTE_SPACE, /* mc_st_space */
	MC_ST_NOTE_WANT,  /* mc_st_space, `want` bytes of it: room is needed */
	MC_ST_NOTE_DONE,  /* OrderDone of store.proto */
	MC_ST_NOTE_MORE,  /* mc_st_has: another replica of what is committed; what the index does
			     not know is freed */
	MC_ST_NOTE_DUE,	  /* mc_st_has of slots that are to go to the disk: OFFLOAD names those of
			     them that are committed */
	/* master -> owner */
	MC_ST_NOTE_ACK = 64,  /* u64: the owner's notes up to this number are in the index */
	MC_ST_NOTE_FREE,      /* mc_st_place */
	MC_ST_NOTE_ORDER,     /* Order of store.proto: copy, offload, promote */
	MC_ST_NOTE_NO_ROOM,   /* mc_st_space: nothing may be evicted for what was wanted, of all
				 that the owner has told and that was committed */
	MC_ST_NOTE_WELCOME,   /* mc_st_welcome: first note of a stream */
	MC_ST_NOTE_OFFLOAD,   /* mc_st_place of slots: to be written to the disk now */
	MC_ST_NOTE_COMMITTED, /* mc_st_place of slots that are in the index: the owner says it
				 to later masters */
};
#define MC_ST_NOTE_HEAD_LEN 16u
#define MC_ST_NOTE_MAX (1u << 20) /* bytes of one note with its head */

enum mc_st_welcome_flag {
	MC_ST_OFFLOAD_ASKED = 1, /* only what OFFLOAD names goes to the disk, else all does */
};

struct mc_st_welcome {
	uint64_t epoch; /* of the master; below one that the owner has seen: it hangs up */
	uint64_t from;	/* owner's notes from this number on are missing; 0: it announces all that
			   it has, and counts from 1 again */
	uint32_t flags; /* enum mc_st_welcome_flag */
};

enum mc_st_has_flag {
	MC_ST_HAS_COMMITTED = 1, /* a master said so */
};

struct mc_st_has {
	uint64_t gen, len, addr;
	uint16_t key_len, tlv_len;
	uint8_t kind;  /* enum mc_st_kind */
	uint8_t flags; /* enum mc_st_has_flag */
	uint16_t pad16;
	const uint8_t *key, *tlv;
};

enum mc_st_space_flag {
	MC_ST_SPACE_RETIRING = 1, /* will leave soon: takes no puts any more */
};

struct mc_st_space {
	uint64_t capacity, used, largest, want;
	uint8_t kind;  /* enum mc_st_kind */
	uint8_t flags; /* enum mc_st_space_flag */
	uint16_t pad16;
	uint32_t pad32;
};

/* One record each. A reader that finds lengths out of bounds turns bad (base/codec.h); views live
 * as long as the input. */
void mc_st_key_encode(struct mc_wr *w, const struct mc_st_key *v);
void mc_st_key_decode(struct mc_rd *r, struct mc_st_key *ret);
void mc_st_object_encode(struct mc_wr *w, const struct mc_st_object *v);
void mc_st_object_decode(struct mc_rd *r, struct mc_st_object *ret);
void mc_st_commit_encode(struct mc_wr *w, const struct mc_st_commit *v);
void mc_st_commit_decode(struct mc_rd *r, struct mc_st_commit *ret);
void mc_st_committed_encode(struct mc_wr *w, const struct mc_st_committed *v);
void mc_st_committed_decode(struct mc_rd *r, struct mc_st_committed *ret);
void mc_st_bad_encode(struct mc_wr *w, const struct mc_st_bad *v);
void mc_st_bad_decode(struct mc_rd *r, struct mc_st_bad *ret);
/** @param has_payload  PUT's form */
void mc_st_grant_encode(struct mc_wr *w, const struct mc_st_grant *v, bool has_payload);
void mc_st_grant_decode(struct mc_rd *r, struct mc_st_grant *ret, bool has_payload);
void mc_st_granted_encode(struct mc_wr *w, const struct mc_st_granted *v);
void mc_st_granted_decode(struct mc_rd *r, struct mc_st_granted *ret);
void mc_st_seal_encode(struct mc_wr *w, const struct mc_st_seal *v);
void mc_st_seal_decode(struct mc_rd *r, struct mc_st_seal *ret);
/** What COMPUTE is to be checked with. 0: not said */
uint32_t mc_st_seal_crc(const struct mc_st_seal *v);
void mc_st_place_encode(struct mc_wr *w, const struct mc_st_place *v);
void mc_st_place_decode(struct mc_rd *r, struct mc_st_place *ret);
void mc_st_regen_encode(struct mc_wr *w, const struct mc_st_regen *v);
void mc_st_regen_decode(struct mc_rd *r, struct mc_st_regen *ret);
void mc_st_has_encode(struct mc_wr *w, const struct mc_st_has *v);
void mc_st_has_decode(struct mc_rd *r, struct mc_st_has *ret);
void mc_st_welcome_encode(struct mc_wr *w, const struct mc_st_welcome *v);
void mc_st_welcome_decode(struct mc_rd *r, struct mc_st_welcome *ret);
void mc_st_space_encode(struct mc_wr *w, const struct mc_st_space *v);
void mc_st_space_decode(struct mc_rd *r, struct mc_st_space *ret);

/** The count at the front of a message. @return count; -MC_E_PROTO; -MC_E_TOO_BIG */
MC_MUST_CHECK int mc_st_count_decode(struct mc_rd *r);

struct mc_st_note_head {
	uint32_t len; /* bytes that follow the head */
	uint8_t type; /* enum mc_st_note */
	uint64_t number;
};
void mc_st_note_head_encode(const struct mc_st_note_head *v, uint8_t buf[MC_ST_NOTE_HEAD_LEN]);
/** @return 0; -MC_E_PROTO; -MC_E_TOO_BIG */
MC_MUST_CHECK int mc_st_note_head_decode(const uint8_t buf[MC_ST_NOTE_HEAD_LEN],
					 struct mc_st_note_head *ret);

#endif
