/*
 * shmem.c: memfd with a seal against shrinking (memfd_create(2), fcntl(2) F_SEAL_SHRINK).
 */
#include "coll/shmem.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "io/sock.h"

/* Space that is missing is memory here. */
static int mem_err(int err)
{
	return err == ENOSPC ? -MC_E_NOMEM : mc_err_from_errno(err);
}

int mc_coll_shmem_make(const char *name, uint64_t len, int *ret_fd)
{
	int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
	int rc;

	if (fd < 0)
		return errno == ENOSYS ? -MC_E_UNAVAILABLE : mc_err_from_errno(errno);
	if (ftruncate(fd, (off_t)len) < 0 || fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK) < 0) {
		rc = mem_err(errno);
		mc_fd_close(&fd);
		return rc;
	}
	*ret_fd = fd;
	return 0;
}

int mc_coll_shmem_grow(int fd, uint64_t from, uint64_t len)
{
	int rc;

	do {
		rc = fallocate(fd, 0, (off_t)from, (off_t)(len - from));
	} while (rc < 0 && errno == EINTR);
	return rc < 0 ? mem_err(errno) : 0;
}

int mc_coll_shmem_stretch(int fd, uint64_t len)
{
	struct stat st;

	if (fstat(fd, &st) < 0)
		return mem_err(errno);
	return (uint64_t)st.st_size >= len || ftruncate(fd, (off_t)len) == 0 ? 0 : mem_err(errno);
}

void mc_coll_shmem_drop(int fd, uint64_t from, uint64_t len)
{
	/* What is not given back is used again by the next large operation. */
	(void)fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)from,
			(off_t)(len - from));
}

int mc_coll_shmem_map(int fd, uint64_t at, uint64_t len, void **ret_at)
{
	int seals = fcntl(fd, F_GET_SEALS);
	struct stat st;
	void *p;

	if (seals < 0 || (seals & F_SEAL_SHRINK) == 0 || (seals & F_SEAL_WRITE) != 0 ||
	    fstat(fd, &st) < 0 || st.st_size < 0 || at > (uint64_t)st.st_size ||
	    len > (uint64_t)st.st_size - at)
		return -MC_E_PROTO;
	p = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, (off_t)at);
	if (p == MAP_FAILED)
		return mem_err(errno);
	*ret_at = p;
	return 0;
}

void mc_coll_shmem_unmap(void *at, uint64_t len)
{
	if (at)
		(void)munmap(at, len);
}
