/*
 * priv.h: what the files of the disk log share.
 *
 *   dlog.c     the public functions, opening and closing, directory and its lock
 *   aio.c      operations of the disk to their end: short ones go on, buffers, slots
 *   seg.c      segment files: make, find, remove; what is live in them
 *   put.c      puts and deletes up to where they wait; the bytes of a record
 *   write.c    their places, groups, sync, taking back what failed
 *   read.c     gets
 *   scan.c     walking a segment record by record (blocks)
 *   foot.c     what a sealed segment says of its records at its end (blocks)
 *   recover.c  opening: checkpoint or scan, and the torn end
 *   ckpt.c     the checkpoint file
 *   compact.c  moving what lives out of a segment; removing it
 *
 * Everything belongs to the log's owner thread.
 */
#ifndef MC_LOG_PRIV_H
#define MC_LOG_PRIV_H

#include "log/dlog.h"
#include "log/index.h"
#include "log/rec.h"

#define MC_DLOG_IO (1u << 20) /* most bytes of one operation of the disk */
#define MC_DLOG_BOUNCES 16u   /* buffers of MC_DLOG_IO */
#define MC_DLOG_SMALLS 64u    /* buffers of MC_DLOG_SMALL */
/* A record with less than a chunk of payload and what else is in its blocks. */
#define MC_DLOG_SMALL (MC_DLOG_CHUNK + MC_DLOG_TLV_MAX + MC_DLOG_KEY_MAX + 2 * MC_REC_BLOCK)
#define MC_DLOG_SEGMENTS_MAX 65536u /* files */
#define MC_DLOG_PATH_MAX 4096u	    /* of a file's name */
#define MC_DLOG_IOV_MAX 1024u	    /* of one operation */
#define MC_DLOG_GROUP (1u << 20)    /* of records that share a write */
#define MC_DLOG_JOIN (160u << 10)   /* longer ones don't */
#define MC_DLOG_BUFS 8u		    /* of MC_DLOG_GROUP that are kept */
#define MC_DLOG_EXTEND (32u << 20)  /* a segment gets blocks in pieces of this, at most */
#define MC_DLOG_DEPTH_DEFAULT 64u

struct mc_dlog_seg {
	uint32_t id;
	struct mc_disk_file *file;
	uint64_t tail;	     /* records end here; the active one's: the next begins here */
	uint64_t durable;    /* all before is; sealed: = tail */
	uint64_t room;	     /* the file's length: zeros behind the tail of the active one */
	uint64_t live_bytes; /* of objects that the index points to */
	uint64_t tomb_bytes; /* of tombstones that it points to and that hide older records */
	uint64_t idle_bytes; /* of those that hide nothing */
	uint64_t foot_bytes; /* of its footer; 0: none, or not known */
	unsigned refs;	     /* gets under way */
	unsigned failures;   /* passes of compaction that did not empty it */
	bool is_direct;
	bool is_footless; /* sealed, and has no footer that is good */
	bool is_gone;	  /* holds nothing any more; removed with the next checkpoint */
	bool is_reused;	  /* its file was another segment's before */
	bool is_doubtful; /* parts could not be read: never removed, no tombstone dropped */
};

/** What an operation of the disk has of its own. */
enum mc_dlog_buf {
	MC_DLOG_BUF_NONE,
	MC_DLOG_BUF_SMALL, /* MC_DLOG_SMALL bytes */
	MC_DLOG_BUF_IO,	   /* MC_DLOG_IO bytes */
};

/** Buffers of one size that are used again. */
struct mc_dlog_bufs {
	uint8_t *free[MC_DLOG_SMALLS];
	unsigned nfree, made;
};

/** One operation of the disk. */
struct mc_dlog_slot {
	struct mc_disk_io io; /* must be first */
	struct mc_dlog *log;
	/** All of it is done, or rc < 0. */
	void (*on_end)(struct mc_dlog_slot *slot, int rc);
	void *owner;
	uint8_t *bounce; /* of `buf`; given back with the slot */
	enum mc_dlog_buf buf;
	uint64_t at;	/* the owner's */
	uint32_t count; /* the owner's */
	/* aio.c's */
	uint8_t *mem;
	uint64_t off;
	uint32_t len, done;
	unsigned tries;
};

/** A put or delete: from its call to its end. */
struct mc_dlog_put {
	struct mc_list link;	/* mc_dlog.waiting, then mc_dlog_group.puts */
	struct mc_dlog_op *op;	/* the caller's, or `copy` */
	struct mc_dlog_op copy; /* of compaction, whose buffer `held` is */
	uint8_t *held;
	struct mc_rec rec;
	struct mc_rec_layout layout;
};

/** Records that are next to each other, written and made durable together. */
struct mc_dlog_group {
	struct mc_list link; /* mc_dlog.groups, in the order of the log */
	struct mc_list puts;
	uint64_t off, len; /* in the active segment */
	uint8_t *buf;	   /* its first buf_len bytes: small records, or all but the payload */
	uint32_t buf_len;
	struct mc_dlog_put *big; /* whose payload follows; NULL: small records */
	uint64_t next;		 /* of [0, len) what is given to the disk next */
	unsigned nios;
	bool is_open; /* small records may join */
};

/** What the active segment's footer will be. */
struct mc_dlog_foot {
	uint8_t *bytes;
	size_t len, cap, n; /* n: records */
	bool is_whole;	    /* all records of the segment are in it */
};

struct mc_dlog {
	const struct mc_disk *disk;
	char *path;
	uint64_t fork_gen, log_id, quota, segment_bytes;
	struct mc_disk_file *lock_file;
	struct mc_disk_aio *aio;
	struct mc_disk_queue *queue;
	int event_fd;
	bool no_direct;
	uint32_t mem_align; /* of memory that the disk takes; 1: any */
	struct mc_index index;
	struct mc_dlog_seg **segs; /* by id */
	size_t nsegs, segs_cap;
	struct mc_dlog_seg *active; /* of segs; NULL: made with the next put */
	uint32_t next_id;
	struct mc_dlog_seg *spare; /* a file of an emptied one, for the next; NULL: none */
	bool wants_room;	   /* the disk was full */
	/* aio.c */
	struct mc_dlog_slot *slots;
	struct mc_list slots_free; /* mc_dlog_slot.io.link */
	unsigned depth, nflying;
	struct mc_dlog_bufs smalls, bounces;
	bool is_broken; /* the queue is */
	/* write.c */
	struct mc_list waiting; /* mc_dlog_put.link, not placed */
	struct mc_list groups;
	unsigned nputs;			 /* waiting or in groups */
	unsigned nwrites;		 /* operations of the disk */
	struct mc_dlog_group *sync_upto; /* a sync is under way for groups up to this one */
	int fail_rc;			 /* < 0: groups fail once nothing of them is under way */
	bool is_sync_failure;
	bool is_read_only, is_closing;
	char why[160];
	struct mc_list puts_spare, groups_spare;
	uint8_t *bufs[MC_DLOG_BUFS]; /* of groups, free ones */
	unsigned nbufs;
	bool no_extend; /* the file system can't */
	struct mc_dlog_foot foot;
	/* read.c */
	struct mc_list reads; /* mc_dlog_read.link: all under way */
	unsigned nreads;
	/* compact.c */
	struct mc_dlog_compact *compact; /* NULL: none under way */
	unsigned ngone;
	bool is_counted;		 /* nolder of the index is exact or too high */
	bool is_in_turn;		 /* in mc_dlog_reap(): callbacks run */
	uint64_t ckpt_bytes, since_ckpt; /* its size; appended since */
	bool is_dirty;			 /* something changed since the checkpoint */
	struct mc_dlog_stats stats;
};

/* ---- dlog.c ---- */

/** "<directory>/<name>" with a number put in. @return 0; -MC_E_TOO_BIG */
MC_MUST_CHECK int mc_dlog_path(const struct mc_dlog *log, const char *name, uint32_t id,
			       char *ret_path);
void mc_dlog_hash(const struct mc_dlog *log, const void *key, size_t len, uint64_t *ret_hash,
		  uint32_t *ret_check);
/** No more puts from now on. */
void mc_dlog_set_read_only(struct mc_dlog *log, const char *why, int rc);

/* ---- aio.c ---- */

MC_MUST_CHECK int mc_dlog_aio_open(struct mc_dlog *log, const char *no_uring, unsigned depth);
/** Nothing is under way, or this is the child of a fork(). */
void mc_dlog_aio_close(struct mc_dlog *log);
/** @return NULL: all of them, or of such buffers, are busy */
struct mc_dlog_slot *mc_dlog_slot_get(struct mc_dlog *log, enum mc_dlog_buf buf);
void mc_dlog_slot_put(struct mc_dlog_slot *slot);
void mc_dlog_io_start(struct mc_dlog_slot *slot, enum mc_disk_op op, struct mc_disk_file *file,
		      void *mem, uint32_t len, uint64_t off);
/** Give the disk what was started and report what has ended. */
void mc_dlog_aio_turn(struct mc_dlog *log, uint64_t block_ns);

/* ---- seg.c ---- */

struct mc_dlog_seg *mc_dlog_seg_find(const struct mc_dlog *log, uint32_t id);
/** A new active segment; its name is durable. */
MC_MUST_CHECK int mc_dlog_seg_make(struct mc_dlog *log);
/** An old one. */
MC_MUST_CHECK int mc_dlog_seg_adopt(struct mc_dlog *log, uint32_t id, struct mc_dlog_seg **ret_seg);
/** Ids of all segment files of the directory, ascending; the caller's. */
MC_MUST_CHECK int mc_dlog_seg_ids(struct mc_dlog *log, uint32_t **ret_ids, size_t *ret_n);
/** The active one gets blocks up to `end` and beyond, if the disk has them. */
void mc_dlog_seg_extend(struct mc_dlog *log, struct mc_dlog_seg *seg, uint64_t end);
/** Nothing more comes into the active one; all of it is durable. */
void mc_dlog_seg_seal(struct mc_dlog *log);
/** That of an earlier life goes. */
void mc_dlog_spare_unlink(struct mc_dlog *log);
/** The spare file is removed, if there is one. */
void mc_dlog_spare_drop(struct mc_dlog *log);
/** Remove the file, or keep it as the spare; the segment is forgotten, or once the last get of it
 * has ended. */
int mc_dlog_seg_remove(struct mc_dlog *log, struct mc_dlog_seg *seg);
/** Remove the file of a segment that is not known. */
MC_MUST_CHECK int mc_dlog_seg_unlink(struct mc_dlog *log, uint32_t id);
void mc_dlog_seg_unref(struct mc_dlog *log, struct mc_dlog_seg *seg);
void mc_dlog_segs_close(struct mc_dlog *log);
uint64_t mc_dlog_used(const struct mc_dlog *log);
bool mc_dlog_has_doubt(const struct mc_dlog *log);
/**
 * A record is in the log: the index learns of it.
 * @return 0: it counts; -MC_E_STALE: a newer one does; -MC_E_NOMEM
 */
MC_MUST_CHECK int mc_dlog_apply(struct mc_dlog *log, struct mc_dlog_seg *seg,
				const struct mc_rec *rec);
/** The entry points to no record any more, or to another one from now on. */
void mc_dlog_unaccount(struct mc_dlog *log, const struct mc_index_entry *e);
void mc_dlog_account(struct mc_dlog *log, const struct mc_index_entry *e);
/** So many more records of the key that the entry does not point to. */
void mc_dlog_older_add(struct mc_dlog *log, struct mc_index_entry *e, int n);

/* ---- put.c ---- */

void mc_dlog_put_end(struct mc_dlog *log, struct mc_dlog_put *p, int rc);
/** Of the records that are placed only copies and tombstones may use the last segment's worth. */
bool mc_dlog_is_over_quota(const struct mc_dlog *log, uint64_t len);
/** Where byte `at` of the payload lies, and how much is there in one piece. */
const uint8_t *mc_dlog_payload_at(const struct mc_dlog_put *p, uint64_t at, uint64_t *ret_len);
void mc_dlog_gather(const struct mc_dlog_put *p, uint64_t at, uint8_t *to, uint64_t len);
/** All before the payload, or the whole record. Its place is known. */
void mc_dlog_encode(struct mc_dlog_put *p, uint8_t *to, bool has_payload);
/** Takes its own copy of a record: compaction. `held` (aligned, the record as on the disk) becomes
 * the log's. @return as mc_dlog_put() */
MC_MUST_CHECK int mc_dlog_put_copy(struct mc_dlog *log, const struct mc_rec *rec, uint8_t *held);

/* ---- write.c ---- */

/** Place what waits and give it to the disk. */
void mc_dlog_write_pump(struct mc_dlog *log);
/** End what waits with this. */
void mc_dlog_write_refuse(struct mc_dlog *log, int rc);
void mc_dlog_write_fini(struct mc_dlog *log);

/* ---- read.c ---- */

void mc_dlog_read_pump(struct mc_dlog *log);
void mc_dlog_read_fini(struct mc_dlog *log);
/** Is this the record that the entry means, whole before its payload? @param head  from its first
 * byte on, layout->payload_off bytes. @return 0; -MC_E_CORRUPT */
MC_MUST_CHECK int mc_dlog_check_record(const struct mc_dlog *log, const struct mc_index_entry *e,
				       const uint8_t *head, struct mc_rec *ret_rec);
/** Is a chunk what was put? */
bool mc_dlog_is_chunk(const struct mc_rec *rec, const uint8_t *head, uint32_t chunk,
		      const uint8_t *bytes);

/* ---- scan.c ---- */

struct mc_dlog_scan {
	struct mc_dlog *log;
	struct mc_dlog_seg *seg;
	uint64_t at, end; /* the next record; where to stop */
	uint64_t bad, unreadable;
	uint64_t bad_before; /* of those, before the last record */
	bool is_in_bad;	     /* the bytes before `at` were no record */
	bool has_old;	     /* the file had another segment's bytes before */
	uint64_t last_end;   /* of the last record */
	uint8_t *buf;	     /* mc_dlog_scan_view()'s */
	uint64_t buf_off;
	uint32_t buf_len;
};

MC_MUST_CHECK int mc_dlog_scan_init(struct mc_dlog_scan *s, struct mc_dlog *log,
				    struct mc_dlog_seg *seg, uint64_t from, uint64_t end);
void mc_dlog_scan_fini(struct mc_dlog_scan *s);
/**
 * The next record whose header is good and that ends before the end. s->at is then behind it.
 * @param ret_head  layout.payload_off bytes, until the next call; not checked beyond the header
 * @return 1; 0: no more (or `until` is reached); < 0
 */
int mc_dlog_scan_next(struct mc_dlog_scan *s, uint64_t until, struct mc_rec *ret_rec,
		      const uint8_t **ret_head);
/** Bytes of the segment, until the next call. len <= MC_DLOG_IO. NULL: it ends before. */
const uint8_t *mc_dlog_scan_view(struct mc_dlog_scan *s, uint64_t off, uint32_t len);
/** Places where a record was expected and something else was, but for what is behind the last
 * record and another segment's. */
uint64_t mc_dlog_scan_bad(const struct mc_dlog_scan *s);
/** Is all of a record what was put? Overwrites the view. @return 1; 0; < 0 */
int mc_dlog_scan_is_whole(struct mc_dlog_scan *s, const struct mc_rec *rec);

/* ---- foot.c ---- */

/** The active segment is empty. */
void mc_dlog_foot_begin(struct mc_dlog *log);
/** It will have none. */
void mc_dlog_foot_drop(struct mc_dlog *log);
/** A record of the active segment is durable; in their order. */
void mc_dlog_foot_add(struct mc_dlog *log, const struct mc_dlog_put *p);
/** To the end of the segment, if it is worth it and the disk takes it. */
void mc_dlog_foot_write(struct mc_dlog *log, struct mc_dlog_seg *seg);
/** @param texts  key and TLV. @return 0; < 0: no more */
typedef int mc_dlog_foot_fn(void *user, struct mc_dlog *log, struct mc_dlog_seg *seg,
			    const struct mc_rec *rec, const uint8_t *texts);
/**
 * Each record of a sealed segment, in their order, by its footer.
 * @return 1; 0: there is none that is good, and nothing was told; < 0: each()'s
 */
int mc_dlog_foot_each(struct mc_dlog *log, struct mc_dlog_seg *seg, mc_dlog_foot_fn *each,
		      void *user);

/* ---- recover.c ---- */

MC_MUST_CHECK int mc_dlog_recover(struct mc_dlog *log, bool no_checkpoint,
				  struct mc_diag *ret_diag);

/* ---- ckpt.c ---- */

/** Segments and index of the checkpoint. @return 1; 0: there is none that is good (the log is as it
 * was); < 0 */
MC_MUST_CHECK int mc_dlog_ckpt_load(struct mc_dlog *log, uint32_t *ret_last_id);
MC_MUST_CHECK int mc_dlog_ckpt_save(struct mc_dlog *log);

/* ---- compact.c ---- */

/** Drop what is under way of it. */
void mc_dlog_compact_abort(struct mc_dlog *log);
/** A copy that it asked for has ended. */
void mc_dlog_compact_copied(struct mc_dlog *log, int rc);

#endif
