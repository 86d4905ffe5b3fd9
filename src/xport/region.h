/*
 * region.h: the registered ranges of this process, as a transport's target side sees them.
 *
 * A region is one registered range: id (index) + generation + rights. A peer names {id, generation,
 * offset, length}; pinning checks all of it and keeps unregistration waiting until the access has
 * ended, so nothing is touched outside registered memory or after unregister returned. Ranges may
 * overlap; registering exactly the same range again is counted, not refused.
 *
 * Threads: pin/unpin from any thread without locks (one atomic add each); add/del/find take the
 * table's lock.
 */
#ifndef MC_XPORT_REGION_H
#define MC_XPORT_REGION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MC_REGIONS_MAX (1u << 20)
#define MC_LOCATION_MAX 64

enum mc_right {
	MC_RIGHT_READ = 1,  /* a peer may read */
	MC_RIGHT_WRITE = 2, /* a peer may write */
	/* The same, but not by a transport: the owner moves it through a buffer. What has these has
	 * none of the above, so that every pin of a transport is refused. */
	MC_RIGHT_STAGE_READ = 4,
	MC_RIGHT_STAGE_WRITE = 8,
	MC_RIGHT_UNLISTED = 16, /* such a buffer: no descriptor shows it */
};
#define MC_RIGHT_STAGE_SHIFT 2

enum mc_mem_kind {
	MC_MEM_HOST,
	MC_MEM_MEMFD, /* host memory that this engine allocated from a memfd: peers of the same user
			 may map it */
	MC_MEM_CUDA,
	MC_MEM_FILE,
	MC_MEM_KIND_COUNT,
};

struct mc_region_table;

/** What a region is; copied on add. */
struct mc_region_desc {
	uint64_t addr, len;
	uint32_t rights; /* enum mc_right bits */
	enum mc_mem_kind kind;
	uint32_t arena;	    /* MC_MEM_MEMFD: which memfd of this process (mc_shm arena index) */
	uint64_t arena_off; /* and where in it the range begins */
	char location[MC_LOCATION_MAX];
	bool is_read_only; /* memory that must not be written, whatever the rights */
	bool is_split;	   /* it is registered in parts as well, each a region of its own */
	bool is_part;	   /* of such a one: no registration of the user's begins here */
};

/** A region as told to others. gen is never 0. */
struct mc_region_info {
	struct mc_region_desc desc;
	uint32_t id, gen;
	uint32_t refs; /* times registered */
};

/**
 * Hears of regions coming (before any peer can see them) and going (after the last access). Used by
 * transports that keep their own keys or publish generations in shared memory. Called under the
 * table's lock: must not call back into the table.
 */
struct mc_region_listener {
	int (*on_add)(struct mc_region_listener *l,
		      const struct mc_region_info *info); /* < 0 refuses the registration */
	/** Stop new accesses by peers, then report when those under way have ended. Called before
	 * the table waits for its own pins. */
	void (*on_revoke)(struct mc_region_listener *l, const struct mc_region_info *info);
	/** True once no peer of this listener is in the range any more. Polled with back-off until
	 * true. No lock held. A refused on_add is undone by revoke + quiet at the listeners that
	 * had accepted it. */
	bool (*is_quiet)(struct mc_region_listener *l, const struct mc_region_info *info);
	struct mc_region_listener *next;
};

int mc_region_table_open(struct mc_region_table **ret_table);
void mc_region_table_close(struct mc_region_table *t);
/** Before the first add. The listener lives until unlisten or the table's close. */
void mc_region_table_listen(struct mc_region_table *t, struct mc_region_listener *l);
/** From now on the listener hears nothing, not even of regions that it heard coming. No del may be
 * under way. */
void mc_region_table_unlisten(struct mc_region_table *t, struct mc_region_listener *l);

/**
 * Add a range, or count one more registration of the very same range (addr, len).
 * @return 0; -MC_E_INVAL (length 0, wrap-around, rights or kind unknown or not of each other,
 * location without end, or the same range with other rights); -MC_E_LIMIT; -MC_E_NOMEM; a
 * listener's error
 */
int mc_region_add(struct mc_region_table *t, const struct mc_region_desc *desc,
		  struct mc_region_info *ret_info);
/**
 * End one registration of the range that begins at addr (the latest one, when several begin there;
 * parts do not count).
 * At the last one: no new access is granted from now on, and the call returns when those under way
 * have ended.
 * @return 0; -MC_E_NOENT (never or no longer registered)
 */
int mc_region_del(struct mc_region_table *t, uint64_t addr);
/** As mc_region_del(); says how long the range was, for those who keep keys of it. */
int mc_region_del_range(struct mc_region_table *t, uint64_t addr, uint64_t *ret_len);
/** The newest region that holds [addr, addr + len) whole; len >= 1. @return 0; -MC_E_RANGE */
int mc_region_find(struct mc_region_table *t, uint64_t addr, uint64_t len,
		   struct mc_region_info *ret_info);
/** Calls fn for each region in address order, under the lock. */
void mc_region_each(struct mc_region_table *t,
		    void (*fn)(void *user, const struct mc_region_info *info), void *user);
/** Bumped when a region comes or goes (not by counting one more registration); for caches of the
 * published descriptor. */
uint64_t mc_region_version(const struct mc_region_table *t);
/** End one registration of exactly this part. @return as mc_region_del() */
int mc_region_del_part(struct mc_region_table *t, uint64_t addr, uint64_t len);
size_t mc_region_count(const struct mc_region_table *t);

/**
 * Check a peer's access and keep the region alive until unpin.
 * @param right one enum mc_right; of several, one is enough
 * @param ret_ptr receives the address in this process
 * @return 0; -MC_E_STALE (unknown id, other generation, or being unregistered); -MC_E_RANGE
 * (also for len 0); -MC_E_PERM. Any thread, lock-free.
 */
int mc_region_pin(struct mc_region_table *t, uint32_t id, uint32_t gen, uint64_t off, uint64_t len,
		  enum mc_right right, void **ret_ptr);
void mc_region_unpin(struct mc_region_table *t, uint32_t id);
/** As pin, for peers that name absolute addresses (upstream's frames): the newest region that holds
 * the range and grants the right is looked up, under the table's lock, and its id returned for
 * unpin. */
int mc_region_pin_addr(struct mc_region_table *t, uint64_t addr, uint64_t len, enum mc_right right,
		       uint32_t *ret_id);

#endif
