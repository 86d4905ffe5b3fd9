/*
 * shm_page.c: creating, mapping and waiting on the control page.
 */
#include "xport/shm_page.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "io/sock.h"

#define SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)

static int page_mmap(int fd, struct mc_shm_page **ret_page)
{
	void *p = mmap(NULL, sizeof(struct mc_shm_page), PROT_READ | PROT_WRITE,
		       MAP_SHARED | MAP_NORESERVE, fd, 0);
	int rc;

	if (p == MAP_FAILED)
		return mc_err_from_errno(errno);
	if (madvise(p, sizeof(struct mc_shm_page), MADV_DONTFORK) < 0) {
		rc = mc_err_from_errno(errno);
		munmap(p, sizeof(struct mc_shm_page));
		return rc;
	}
	*ret_page = p;
	return 0;
}

int mc_shm_page_open(uint64_t epoch, struct mc_shm_page **ret_page, int *ret_fd,
		     struct mc_diag *diag)
{
	struct mc_shm_page *page = NULL;
	const char *step = "memfd_create";
	int fd, rc = 0;

	fd = memfd_create("mooncake-ctl", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (fd < 0) {
		rc = mc_err_from_errno(errno);
	} else if (ftruncate(fd, sizeof(*page)) < 0 || fcntl(fd, F_ADD_SEALS, SEALS) < 0) {
		step = "size and seals of a memfd";
		rc = mc_err_from_errno(errno);
	} else {
		step = "mapping a memfd";
		rc = page_mmap(fd, &page);
	}
	if (rc < 0) {
		mc_diag_set(diag, "%s: %s", step, mc_err_text(rc));
		mc_fd_close(&fd);
		return rc;
	}
	page->magic = MC_SHM_PAGE_MAGIC;
	page->version = MC_SHM_PAGE_VERSION;
	page->seats = MC_SHM_SEATS;
	page->words = MC_REGIONS_MAX;
	atomic_store_explicit(&page->era, 1, memory_order_relaxed);
	atomic_store_explicit(&page->epoch, epoch, memory_order_release);
	*ret_page = page;
	*ret_fd = fd;
	return 0;
}

void mc_shm_page_unmap(struct mc_shm_page *page)
{
	if (page)
		munmap(page, sizeof(*page));
}

void mc_shm_page_publish(struct mc_shm_page *page, uint32_t id, uint32_t gen, uint32_t rights)
{
	mc_assert(id < MC_REGIONS_MAX);
	atomic_store_explicit(&page->word[id], (uint64_t)gen << 32 | rights, memory_order_release);
}

void mc_shm_page_revoke(struct mc_shm_page *page, uint32_t id, uint64_t era)
{
	mc_assert(id < MC_REGIONS_MAX);
	atomic_store_explicit(&page->word[id], 0, memory_order_seq_cst);
	/* whoever reads the new era reads the cleared word, too */
	atomic_store_explicit(&page->era, era, memory_order_seq_cst);
}

bool mc_shm_page_is_quiet(struct mc_shm_page *page, uint64_t era, uint32_t *ret_tag)
{
	uint64_t busy;
	uint32_t tag;

	/* seq_cst throughout: the stores of mc_shm_page_revoke() come before these loads */
	for (uint32_t i = 0; i < MC_SHM_SEATS; i++) {
		tag = atomic_load_explicit(&page->owner[i], memory_order_seq_cst);
		if (tag == 0)
			continue;
		busy = atomic_load_explicit(&page->seat[i].busy, memory_order_seq_cst);
		if (busy != 0 && busy < era) {
			*ret_tag = tag;
			return false;
		}
	}
	return true;
}

unsigned mc_shm_page_reclaim(struct mc_shm_page *page, uint32_t tag)
{
	unsigned n = 0;

	for (uint32_t i = 0; i < MC_SHM_SEATS; i++) {
		if (atomic_load_explicit(&page->owner[i], memory_order_relaxed) != tag)
			continue;
		mc_shm_seat_release(page, i);
		n++;
	}
	return n;
}

unsigned mc_shm_page_seats_of(struct mc_shm_page *page, uint32_t tag)
{
	unsigned n = 0;

	for (uint32_t i = 0; i < MC_SHM_SEATS; i++)
		n += atomic_load_explicit(&page->owner[i], memory_order_relaxed) == tag;
	return n;
}

int mc_shm_page_map(int fd, uint64_t epoch, struct mc_shm_page **ret_page)
{
	struct mc_shm_page *page = NULL;
	struct stat st;
	int rc;

	/* Without the seal the owner could shrink the file and so kill us. */
	if (fstat(fd, &st) < 0 || st.st_size != (off_t)sizeof(*page) ||
	    (fcntl(fd, F_GET_SEALS) & F_SEAL_SHRINK) == 0)
		return -MC_E_PROTO;
	rc = page_mmap(fd, &page);
	if (rc < 0)
		return rc;
	if (page->magic != MC_SHM_PAGE_MAGIC)
		rc = -MC_E_PROTO;
	else if (page->version != MC_SHM_PAGE_VERSION || page->seats != MC_SHM_SEATS ||
		 page->words != MC_REGIONS_MAX)
		rc = -MC_E_VERSION;
	else if (atomic_load_explicit(&page->epoch, memory_order_acquire) != epoch)
		rc = -MC_E_PEER_RESTARTED;
	if (rc < 0) {
		mc_shm_page_unmap(page);
		return rc;
	}
	*ret_page = page;
	return 0;
}

int mc_shm_seat_claim(struct mc_shm_page *page, uint32_t tag, uint32_t *ret_seat)
{
	uint32_t none;

	for (uint32_t i = 0; i < MC_SHM_SEATS; i++) {
		none = 0;
		if (atomic_compare_exchange_strong(&page->owner[i], &none, tag)) {
			*ret_seat = i;
			return 0;
		}
	}
	return -MC_E_LIMIT;
}

void mc_shm_seat_release(struct mc_shm_page *page, uint32_t seat)
{
	mc_shm_seat_exit(page, seat);
	/* release: the next owner of the seat finds it idle */
	atomic_store_explicit(&page->owner[seat], 0, memory_order_release);
}
