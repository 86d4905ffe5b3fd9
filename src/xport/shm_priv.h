/*
 * shm_priv.h: what the files of the shared-memory transport share: device, messages, peer.
 */
#ifndef MC_XPORT_SHM_PRIV_H
#define MC_XPORT_SHM_PRIV_H

#include <pthread.h>
#include <stdatomic.h>

#include "xport/shm.h"
#include "xport/shm_heap.h"
#include "xport/shm_page.h"

#define MC_SHM_NONCE_LEN 16

/* ---- messages: one SEQPACKET each way, the same fixed struct; both ends are on one machine ----
 */

#define MC_SHM_MSG_MAGIC 0x6d63736du
#define MC_SHM_MSG_VERSION 1u

enum mc_shm_msg_type {
	MC_SHM_HELLO = 1, /* nonce, epoch -> status, epoch, tag, addr (of the nonce) + page fd */
	MC_SHM_ARENA,	  /* arena -> status, len + arena fd */
};

struct mc_shm_msg {
	uint32_t magic;
	uint16_t version, type;
	int32_t status; /* 0 or -enum mc_err */
	uint32_t tag;
	uint64_t epoch;
	uint64_t addr;
	uint64_t len;
	uint32_t arena;
	uint32_t serial; /* of the request; an answer repeats it */
	uint8_t nonce[MC_SHM_NONCE_LEN];
};

/** Send msg with fd (-1: none). @return 0; -MC_E_AGAIN; -MC_E_RESET; … */
int mc_shm_msg_send(int sock, const struct mc_shm_msg *msg, int fd);
/** Receive one and check its form. @param ret_fd receives a descriptor or -1
 * @return 0; -MC_E_AGAIN; -MC_E_RESET (end); -MC_E_PROTO; -MC_E_VERSION; -MC_E_LIMIT (no free
 * descriptor) */
int mc_shm_msg_recv(int sock, struct mc_shm_msg *ret_msg, int *ret_fd);
/** Of the process at the other end, or -1; the caller closes it. */
int mc_shm_pidfd_of(int sock, pid_t pid);
bool mc_shm_pidfd_is_dead(int pidfd);

/* ---- target side ---- */

struct mc_shm_client;

struct mc_shm_dev {
	struct mc_xdev dev;
	struct mc_xdev_env env;
	struct mc_shm_opts opts;
	struct mc_region_listener listener;
	struct mc_shm_heap *heap;
	struct mc_shm_page *page;
	int page_fd;
	uint64_t fork_gen;
	uint8_t nonce[MC_SHM_NONCE_LEN]; /* peers with ptrace permission read it as a probe */
	bool is_thp_wanted;		 /* huge pages come by madvise() only */
	bool is_listening;		 /* to env.regions */
	char path[MC_SHM_PATH_MAX];

	/*
	 * Serves peers, and watches for their death. Not one of the engine's loops: a lane asks for
	 * an arena in post(), and two engines whose loops wait for each other's answer would be
	 * stuck.
	 */
	struct mc_loop *loop;
	/* The loop's. */
	struct mc_watch listen;
	int spare_fd; /* given up for a moment to refuse a peer when descriptors run out */
	uint32_t tag_next;

	pthread_mutex_t lock;	/* guards `clients` and `nclients`; a leaf */
	struct mc_list clients; /* written on the loop only */
	_Atomic unsigned nclients;

	/* Under the region table's lock: the revocations so far, and the era in which each id was
	 * revoked. */
	uint64_t era;
	_Atomic uint64_t *eras;
	uint32_t ids_used;

	/* Any thread that waits for a peer's copy: since when, and when it looked last. */
	_Atomic uint64_t waits_since_ns, waits_seen_ns;
};

static inline struct mc_shm_dev *mc_shm_dev_of(const struct mc_xdev *dev)
{
	return mc_container_of(dev, struct mc_shm_dev, dev);
}

/** Begin and end serving peers on dev.loop (shm_serve.c). Not on a loop. */
int mc_shm_serve_start(struct mc_shm_dev *d);
void mc_shm_serve_stop(struct mc_shm_dev *d);
/** Free the seats of a client whose process is dead. @return true when it was; else *ret_pid is
 * its process, as seen from here. Any thread. */
bool mc_shm_serve_reap(struct mc_shm_dev *d, uint32_t tag, pid_t *ret_pid);
/** Choose and bind the socket's path (shm_path.c). */
int mc_shm_path_listen(const char *dir, char path[MC_SHM_PATH_MAX], int *ret_fd,
		       struct mc_diag *diag);

/* ---- initiator side ---- */

/* A mapped arena, in the place of its index. Pinned as regions are: {arena id:32, alive:1,
 * pins:31}. */
struct mc_shm_map {
	_Atomic uint64_t state;
	uint8_t *base;
	uint64_t len;
	_Atomic uint64_t *warm; /* a bit for each MC_SHM_WARM_LEN that has page table entries */
	uint64_t retry_ns;	/* peer.lock: not asked for again before */
};

#define MC_SHM_WARM_LEN (64u << 10)
#define MC_SHM_MAP_ALIVE (1ull << 31)
#define MC_SHM_MAP_PINS (MC_SHM_MAP_ALIVE - 1)

struct mc_shm_peer {
	struct mc_shm_dev *d;
	struct mc_shm_page *page;
	uint64_t epoch, fork_gen;
	uint32_t tag;
	pid_t pid; /* as seen from here; 0: in another pid namespace */
	_Atomic bool is_dead, is_vm_ok;
	_Atomic unsigned nlanes;
	struct mc_shm_map maps[MC_SHM_ARENAS_MAX];
	pthread_mutex_t
	    lock; /* one request at a time on `sock`, and the mapping of arenas; a leaf */
	int sock;
	uint32_t serial;
	struct mc_watch sock_watch, pid_watch; /* on the device's loop */
	bool is_watched;		       /* the loop's */
	char name[64];
};

/**
 * Pin an arena's mapping; asks the peer for it the first time, which takes a round trip.
 * @return 0; -MC_E_UNAVAILABLE; -MC_E_RANGE when [off, off + len) is not inside it
 */
int mc_shm_map_pin(struct mc_shm_peer *p, uint32_t arena, uint64_t off, uint64_t len,
		   uint8_t **ret_at);
/**
 * Before a large write to a pinned range: fill in its page table entries at once. One by one,
 * through faults, they cost three times as much, which is more than the copy.
 */
void mc_shm_map_warm(struct mc_shm_peer *p, uint32_t arena, uint8_t *at, uint64_t len);
static inline void mc_shm_map_unpin(struct mc_shm_peer *p, uint32_t arena)
{
	/* release: pairs with the acquire in map_retire() */
	atomic_fetch_sub_explicit(&p->maps[arena % MC_SHM_ARENAS_MAX].state, 1,
				  memory_order_release);
}

/* Lanes (shm_lane.c), for the vtable. */
int mc_shm_lane_open(struct mc_xdev *dev, const struct mc_xpath *path, struct mc_xlane **ret_lane);
int mc_shm_lane_post(struct mc_xlane *lane, struct mc_slice **slices, unsigned n);
void mc_shm_lane_close(struct mc_xlane *lane);

#endif
