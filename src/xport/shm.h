/*
 * shm.h: transfers between processes of one user on one host, without the peer's processor taking
 * part: through a mapping of memory that the peer's engine allocated, else through
 * process_vm_readv/writev.
 *
 * A device has a thread of its own, which sleeps but for peers that come, go and ask for arenas. It
 * listens on a Unix socket in a directory of its user's alone. A peer that connects is told from
 * others by the kernel (same uid) and by the nonce it shows, and then gets the control page
 * (shm_page.h) and, one by one, the arenas it needs. The death of either side is seen through a
 * pidfd, or through the connection where there is none.
 */
#ifndef MC_XPORT_SHM_H
#define MC_XPORT_SHM_H

#include "xport/xport.h"

#define MC_SHM_PATH_MAX 108 /* what sockaddr_un takes, with the zero */

/** All zero is the default. */
struct mc_shm_opts {
	const char *dir; /* for the socket, must be or become 0700 and ours; NULL:
			    $XDG_RUNTIME_DIR/mooncake, else /tmp/mooncake-<uid> */
	bool is_vm_off;	 /* never use process_vm_*, as if the system forbade it */
};

/**
 * Open the target and initiator side: socket, control page, allocator. Listens to env->regions, so
 * before the first region is added.
 * @param diag may be NULL; says what is missing
 * @return 0; -MC_E_UNAVAILABLE (no directory, no memfd); -MC_E_NOMEM; -MC_E_LIMIT. Not on a loop.
 *
 * dev_close (xport.h): regions must have been deleted or are revoked now; memory from
 * mc_shm_alloc() is gone after it.
 */
MC_MUST_CHECK int mc_shm_dev_open(const struct mc_xdev_env *env, const struct mc_shm_opts *opts,
				  struct mc_xdev **ret_dev, struct mc_diag *diag);
/** What peers attach to; lives as long as the device. */
const char *mc_shm_dev_socket_path(const struct mc_xdev *dev);

/** Page-aligned memory that peers can map. Not yet registered. @return 0; -MC_E_INVAL; -MC_E_NOMEM;
 * -MC_E_LIMIT; -MC_E_FORKED. Any thread. */
MC_MUST_CHECK int mc_shm_alloc(struct mc_xdev *dev, size_t len, void **ret_ptr);
/** The range must not be registered any more. @return 0; -MC_E_NOENT when ptr is not the start of a
 * live block. */
int mc_shm_free(struct mc_xdev *dev, void *ptr);
/** Fill kind, arena and arena_off of a region that is to be added, when it lies in memory from
 * mc_shm_alloc(); else leave it. */
void mc_shm_desc_fill(struct mc_xdev *dev, struct mc_region_desc *desc);

struct mc_shm_peer;

/** What the peer told over the control connection. */
struct mc_shm_peer_id {
	const char *path;     /* of its socket */
	const uint8_t *nonce; /* 16 bytes */
	uint64_t epoch;	      /* its incarnation */
	const char *name;     /* for logs; copied */
};

/**
 * Become a peer of a process on this host. Blocks, at most until the deadline; not on a loop.
 * @param diag may be NULL; why not
 * @return 0; -MC_E_UNREACHABLE (no such socket here: another host or mount namespace),
 * -MC_E_REFUSED (nobody listens); -MC_E_AUTH (other user or nonce); -MC_E_PEER_RESTARTED;
 * -MC_E_VERSION; -MC_E_PROTO; -MC_E_TIMEDOUT; -MC_E_LIMIT; -MC_E_NOMEM; -MC_E_PERM
 */
MC_MUST_CHECK int mc_shm_peer_attach(struct mc_xdev *dev, const struct mc_shm_peer_id *id,
				     uint64_t deadline_ns, struct mc_shm_peer **ret_peer,
				     struct mc_diag *diag);
/** All lanes on it must be closed. Before the device closes. Not on a loop. NULL is allowed. */
void mc_shm_peer_detach(struct mc_shm_peer *peer);
/** Its process is gone, or it closed its engine. Lanes on it then say -MC_E_PEER_DEAD. Any thread.
 */
bool mc_shm_peer_is_dead(const struct mc_shm_peer *peer);
/** Could a slice reach this region now? False means another transport has to: foreign memory where
 * process_vm_* is not allowed, or a kind that is neither host nor memfd. Any thread. */
bool mc_shm_peer_can(const struct mc_shm_peer *peer, const struct mc_remote_region *rr);

#endif
