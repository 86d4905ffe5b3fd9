/*
 * disk_priv.h: what the files of mc_disk_real share: a queue is carried by a ring of its own
 * (disk_uring.c) or by the threads of its aio (disk_pool.c); disk.c chooses.
 */
#ifndef MC_IO_DISK_PRIV_H
#define MC_IO_DISK_PRIV_H

#include <pthread.h>

#include "io/disk.h"

#define MC_DISK_POOL_THREADS 4u	   /* of an aio without io_uring */
#define MC_DISK_WAIT_MAX_S 3600u   /* of one wait */
#define MC_DISK_DRAIN_NS 10000000u /* longest time between two looks while drain() waits */

struct mc_disk_real_file {
	struct mc_disk_file base; /* must be first */
	int fd;
};

/** Threads that do one operation at a time, started with the first queue that needs them. */
struct mc_disk_pool {
	/* Guards everything here and `finished`, `running` of the queues. Leaf lock. */
	pthread_mutex_t lock;
	pthread_cond_t more;   /* `queued` has something, or is_stopping */
	pthread_cond_t quiet;  /* some queue's `running` fell to 0 */
	struct mc_list queued; /* mc_disk_io.link */
	pthread_t threads[MC_DISK_POOL_THREADS];
	unsigned nthreads;
	bool is_stopping;
};

struct mc_disk_real_aio {
	struct mc_disk_aio base; /* must be first */
	uint64_t fork_gen;
	bool has_uring;
	struct mc_disk_pool pool;
};

struct mc_disk_ring;

struct mc_disk_real_queue {
	struct mc_disk_queue base; /* must be first */
	struct mc_disk_real_aio *aio;
	struct mc_disk_queue_conf conf;
	unsigned under_way;	   /* started and not reported */
	struct mc_disk_ring *ring; /* NULL: threads carry it */
	/* of the threads */
	struct mc_list batch;	 /* the owner's: started, not yet given to them */
	struct mc_list finished; /* mc_disk_pool.lock */
	unsigned running;	 /* mc_disk_pool.lock */
};

/** Ends an operation in the owner's thread. */
void mc_disk_queue_done(struct mc_disk_real_queue *q, struct mc_disk_io *io, int res);

/* ---- disk_uring.c ---- */

/** Whether this process may use io_uring. @param ret_why  else receives why not */
bool mc_disk_uring_probe(char *ret_why, size_t cap);
/** Give the queue a ring. @return 0; < 0, and the queue is as it was */
int mc_disk_uring_open(struct mc_disk_real_queue *q);
extern const struct mc_disk_queue_ops mc_disk_uring_ops;

/* ---- disk_pool.c ---- */

void mc_disk_pool_init(struct mc_disk_pool *pool);
/** @param has_threads  false in a forked child: they are the parent's */
void mc_disk_pool_fini(struct mc_disk_pool *pool, bool has_threads);
/** @return 0; -MC_E_LIMIT: not one thread */
int mc_disk_pool_start(struct mc_disk_pool *pool);
extern const struct mc_disk_queue_ops mc_disk_pool_ops;

#endif
