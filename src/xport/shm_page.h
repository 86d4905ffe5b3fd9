/*
 * shm_page.h: the control page, a memfd that an engine shares with the peers on its host. It says
 * which regions exist in which generation, and it is where a peer shows that it is copying, so that
 * unregistering can wait for it.
 *
 * The protocol is Dekker's, by epochs (Fraser, 2004): the initiator stores the era into its seat,
 * then reads the region's word; the owner clears the word, then raises the era, then reads the
 * seats. Either the initiator sees the cleared word, or the owner sees a seat of an older era and
 * waits for it. Only accesses that began before the revocation are waited for.
 *
 * A peer may scribble on the page. Whoever uses it therefore takes no index, length or address from
 * it, only words to compare: scribbling breaks the protocol between processes of one user, never
 * this process's own memory.
 */
#ifndef MC_XPORT_SHM_PAGE_H
#define MC_XPORT_SHM_PAGE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "base/mem.h"
#include "xport/region.h"

#define MC_SHM_PAGE_MAGIC 0x6d637031u /* "mcp1" */
#define MC_SHM_PAGE_VERSION 1u
#define MC_SHM_SEATS 4096u

struct mc_shm_seat {
	/* The era in which the access under way began, 0: none. Written by the seat's lane only. */
	_Alignas(MC_CACHELINE) _Atomic uint64_t busy;
};

/* Sparse: only what is used has pages. */
struct mc_shm_page {
	uint32_t magic, version, seats, words;
	_Atomic uint64_t epoch; /* the owner's incarnation; 0 once it is closed */
	_Atomic uint64_t era;	/* >= 1, raised by each revocation */
	uint8_t pad[4096 - 32];
	_Atomic uint32_t owner[MC_SHM_SEATS]; /* tag of the peer whose lane has the seat, 0: free */
	struct mc_shm_seat seat[MC_SHM_SEATS];
	_Atomic uint64_t word[MC_REGIONS_MAX]; /* generation << 32 | rights; 0: no such region */
};

/* ---- owner ---- */

/** A new page in a sealed memfd. @param diag may be NULL; says what was refused
 * @return 0; -MC_E_NOMEM; -MC_E_LIMIT; … */
MC_MUST_CHECK int mc_shm_page_open(uint64_t epoch, struct mc_shm_page **ret_page, int *ret_fd,
				   struct mc_diag *diag);
/** Ends both sides' mapping. NULL is allowed. Not in a forked child, which does not have it. */
void mc_shm_page_unmap(struct mc_shm_page *page);
/** Let peers see a region. id < MC_REGIONS_MAX. */
void mc_shm_page_publish(struct mc_shm_page *page, uint32_t id, uint32_t gen, uint32_t rights);
/** Let nobody start an access to the region any more. `era` is the owner's own count, one more than
 * in the last call. */
void mc_shm_page_revoke(struct mc_shm_page *page, uint32_t id, uint64_t era);
/**
 * Have all accesses that began before the revocation that raised the era to `era` ended?
 * @param ret_tag receives the owner of a seat that is still busy
 */
bool mc_shm_page_is_quiet(struct mc_shm_page *page, uint64_t era, uint32_t *ret_tag);
/** Free the seats of a dead or leaving peer. @return how many it had */
unsigned mc_shm_page_reclaim(struct mc_shm_page *page, uint32_t tag);
/** How many seats a peer has. */
unsigned mc_shm_page_seats_of(struct mc_shm_page *page, uint32_t tag);

/* ---- peer ---- */

/** Map and check somebody's page. @return 0; -MC_E_PROTO; -MC_E_VERSION; -MC_E_PEER_RESTARTED;
 * -MC_E_NOMEM; … */
MC_MUST_CHECK int mc_shm_page_map(int fd, uint64_t epoch, struct mc_shm_page **ret_page);
/** Take a free seat. @return 0; -MC_E_LIMIT */
MC_MUST_CHECK int mc_shm_seat_claim(struct mc_shm_page *page, uint32_t tag, uint32_t *ret_seat);
void mc_shm_seat_release(struct mc_shm_page *page, uint32_t seat);

/** Begin an access; the words read after this stay true until exit. */
static inline void mc_shm_seat_enter(struct mc_shm_page *page, uint32_t seat)
{
	uint64_t era = atomic_load_explicit(&page->era, memory_order_acquire);

	/* seq_cst: comes before the loads in mc_shm_page_check(); Dekker's partner is the owner's
	 * revoke + is_quiet */
	atomic_exchange_explicit(&page->seat[seat].busy, era, memory_order_seq_cst);
}

/** End it; all stores of the access come before. */
static inline void mc_shm_seat_exit(struct mc_shm_page *page, uint32_t seat)
{
	/* release: pairs with the acquire in mc_shm_page_is_quiet() */
	atomic_store_explicit(&page->seat[seat].busy, 0, memory_order_release);
}

/** Is the region there, in this generation, with this right? Between enter and exit. @return 0;
 * -MC_E_STALE; -MC_E_PERM */
static inline int mc_shm_page_check(struct mc_shm_page *page, uint32_t id, uint32_t gen,
				    uint32_t right)
{
	uint64_t word;

	if (id >= MC_REGIONS_MAX)
		return -MC_E_STALE;
	word = atomic_load_explicit(&page->word[id], memory_order_seq_cst);
	if (word == 0 || (uint32_t)(word >> 32) != gen)
		return -MC_E_STALE;
	return ((uint32_t)word & right) == right ? 0 : -MC_E_PERM;
}

#endif
