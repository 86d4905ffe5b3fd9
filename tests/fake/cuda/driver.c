/*
 * driver.c: a libcuda.so.1 without a GPU: what src/ep asks of the driver, on the processor. Memory
 * of the "GPU" is a memfd that other processes map by its handle; kernels run when they are
 * launched, in the calling thread. Arguments are checked more strictly than by the driver, which
 * forgives what may hide a mistake of ours.
 */
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "kernels.h"

#define CALL __attribute__((visibility("default")))
#define ALLOCS_MAX 256
#define INVALID_VALUE 1
#define OUT_OF_MEMORY 2
#define NOT_INITIALIZED 3
#define INVALID_CONTEXT 201
#define NOT_FOUND 500
#define CONTEXT ((void *)0x5a)
#define MODULE ((void *)0x6b)
#define BUS "0000:00:1f.0"
#define DEPTH_MAX 8

struct handle {
	char bytes[64];
};

static struct alloc {
	void *at;
	size_t len;
	int fd;	      /* -1: of another process */
} allocs[ALLOCS_MAX]; /* under `lock` */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static bool is_ready;
static int retained;
static unsigned launches;
static _Thread_local int depth; /* contexts pushed */

int CALL cuInit(unsigned flags)
{
	is_ready = true;
	return flags ? INVALID_VALUE : 0;
}

int CALL cuGetErrorString(int rc, const char **ret)
{
	*ret = rc == OUT_OF_MEMORY ? "out of memory" : "invalid use of the fake driver";
	return 0;
}

int CALL cuDeviceGetCount(int *ret)
{
	*ret = 1;
	return is_ready ? 0 : NOT_INITIALIZED;
}

int CALL cuDeviceGet(int *ret, int ordinal)
{
	*ret = 0;
	return ordinal == 0 ? 0 : INVALID_VALUE;
}

int CALL cuDeviceGetByPCIBusId(int *ret, const char *bus)
{
	*ret = 0;
	return strcmp(bus, BUS) == 0 ? 0 : INVALID_VALUE;
}

int CALL cuDeviceGetPCIBusId(char *ret, int len, int device)
{
	return snprintf(ret, (size_t)len, "%s", BUS) < len && device == 0 ? 0 : INVALID_VALUE;
}

int CALL cuDeviceCanAccessPeer(int *ret, int device, int peer)
{
	*ret = device == peer;
	return 0;
}

int CALL cuDeviceGetP2PAttribute(int *ret, int attribute, int device, int peer)
{
	*ret = device == peer && attribute == 3;
	return 0;
}

/* ---- contexts, modules ---- */

int CALL cuDevicePrimaryCtxRetain(void **ret, int device)
{
	*ret = CONTEXT;
	pthread_mutex_lock(&lock);
	retained++;
	pthread_mutex_unlock(&lock);
	return device == 0 ? 0 : INVALID_VALUE;
}

int CALL cuDevicePrimaryCtxRelease_v2(int device)
{
	int had;

	pthread_mutex_lock(&lock);
	had = retained--;
	pthread_mutex_unlock(&lock);
	return had > 0 && device == 0 ? 0 : INVALID_VALUE;
}

int CALL cuCtxPushCurrent_v2(void *context)
{
	if (context != CONTEXT || depth == DEPTH_MAX)
		return INVALID_CONTEXT;
	depth++;
	return 0;
}

int CALL cuCtxPopCurrent_v2(void **ret)
{
	*ret = CONTEXT;
	return depth-- > 0 ? 0 : INVALID_CONTEXT;
}

int CALL cuModuleLoadDataEx(void **ret, const void *image, unsigned n, int *options, void **values)
{
	(void)options;
	(void)values;
	*ret = MODULE;
	return depth > 0 && image && n == 0 ? 0 : INVALID_CONTEXT;
}

int CALL cuModuleUnload(void *module)
{
	return depth > 0 && module == MODULE ? 0 : INVALID_CONTEXT;
}

int CALL cuModuleGetFunction(void **ret, void *module, const char *name)
{
	int kernel = fake_kernel_find(name);

	*ret = (void *)(intptr_t)(kernel + 1);
	return module == MODULE && kernel >= 0 ? 0 : NOT_FOUND;
}

int CALL cuLaunchKernel(void *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
			unsigned bz, unsigned shared, void *stream, void **args, void **extra)
{
	bool is_backwards;

	(void)stream;
	if (depth == 0)
		return INVALID_CONTEXT;
	if (gx == 0 || gx > 0x7fffffff || gy == 0 || gy > 65535 || gz != 1 || bx == 0 ||
	    bx * by * bz > 1024 || shared || extra)
		return INVALID_VALUE;
	is_backwards = __atomic_fetch_add(&launches, 1, __ATOMIC_RELAXED) & 1;
	fake_kernel_run((int)(intptr_t)f - 1, gx, gy, args[0], is_backwards);
	return 0;
}

/* ---- memory ---- */

static int keep(void *at, size_t len, int fd)
{
	int rc = OUT_OF_MEMORY;

	pthread_mutex_lock(&lock);
	for (unsigned i = 0; i < ALLOCS_MAX && rc; i++) {
		if (allocs[i].at)
			continue;
		allocs[i] = (struct alloc){at, len, fd};
		rc = 0;
	}
	pthread_mutex_unlock(&lock);
	return rc;
}

static int map(int fd, size_t len, uint64_t *ret, bool is_own)
{
	void *at = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	if (at == MAP_FAILED)
		return OUT_OF_MEMORY;
	*ret = (uint64_t)(uintptr_t)at;
	return keep(at, len, is_own ? fd : -1);
}

/* Of a process's own, or of another's. */
static int forget(uint64_t at, bool is_own)
{
	int rc = INVALID_VALUE;

	pthread_mutex_lock(&lock);
	for (unsigned i = 0; i < ALLOCS_MAX && rc; i++) {
		struct alloc *a = &allocs[i];

		if (!a->at || (uint64_t)(uintptr_t)a->at != at || (a->fd >= 0) != is_own)
			continue;
		(void)munmap(a->at, a->len);
		if (a->fd >= 0)
			(void)close(a->fd);
		*a = (struct alloc){0};
		rc = 0;
	}
	pthread_mutex_unlock(&lock);
	return depth > 0 ? rc : INVALID_CONTEXT;
}

int CALL cuMemAlloc_v2(uint64_t *ret, size_t len)
{
	int fd;

	if (depth == 0)
		return INVALID_CONTEXT;
	if (len == 0)
		return INVALID_VALUE;
	fd = memfd_create("fake gpu", MFD_CLOEXEC);
	if (fd < 0 || ftruncate(fd, (off_t)len) != 0)
		return OUT_OF_MEMORY;
	return map(fd, len, ret, true);
}

int CALL cuMemFree_v2(uint64_t at)
{
	return forget(at, true);
}

int CALL cuMemsetD8Async(uint64_t at, unsigned char value, size_t len, void *stream)
{
	(void)stream;
	memset((void *)(uintptr_t)at, value, len);
	return 0;
}

int CALL cuMemcpyHtoD_v2(uint64_t to, const void *from, size_t len)
{
	memcpy((void *)(uintptr_t)to, from, len);
	return depth > 0 ? 0 : INVALID_CONTEXT;
}

int CALL cuMemcpyDtoH_v2(void *to, uint64_t from, size_t len)
{
	memcpy(to, (const void *)(uintptr_t)from, len);
	return depth > 0 ? 0 : INVALID_CONTEXT;
}

int CALL cuMemHostAlloc(void **ret, size_t len, unsigned flags)
{
	if (depth == 0 || !(flags & 2))
		return INVALID_VALUE; /* it is asked for the GPU's address of it */
	return posix_memalign(ret, 4096, len) == 0 ? 0 : OUT_OF_MEMORY;
}

int CALL cuMemHostGetDevicePointer_v2(uint64_t *ret, void *host, unsigned flags)
{
	*ret = (uint64_t)(uintptr_t)host;
	return flags ? INVALID_VALUE : 0;
}

int CALL cuMemFreeHost(void *host)
{
	free(host);
	return depth > 0 ? 0 : INVALID_CONTEXT;
}

int CALL cuIpcGetMemHandle(struct handle *ret, uint64_t at)
{
	int rc = INVALID_VALUE;

	pthread_mutex_lock(&lock);
	for (unsigned i = 0; i < ALLOCS_MAX && rc; i++) {
		if ((uint64_t)(uintptr_t)allocs[i].at != at || allocs[i].fd < 0)
			continue;
		memset(ret, 0, sizeof(*ret));
		(void)snprintf(ret->bytes, sizeof(ret->bytes), "%d %d %zu", (int)getpid(),
			       allocs[i].fd, allocs[i].len);
		rc = 0;
	}
	pthread_mutex_unlock(&lock);
	return rc;
}

int CALL cuIpcOpenMemHandle_v2(uint64_t *ret, struct handle handle, unsigned flags)
{
	char path[64];
	int pid, of, fd, rc;
	size_t len;

	handle.bytes[sizeof(handle.bytes) - 1] = 0;
	if (depth == 0 || flags != 1 || sscanf(handle.bytes, "%d %d %zu", &pid, &of, &len) != 3 ||
	    pid == getpid()) /* the driver does not open a process's own */
		return INVALID_VALUE;
	(void)snprintf(path, sizeof(path), "/proc/%d/fd/%d", pid, of);
	fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		return INVALID_VALUE;
	rc = map(fd, len, ret, false);
	(void)close(fd);
	return rc;
}

int CALL cuIpcCloseMemHandle(uint64_t at)
{
	return forget(at, false);
}

/* ---- streams and events: what was queued has run ---- */

static int make(void **ret)
{
	*ret = malloc(1);
	return depth > 0 && *ret ? 0 : INVALID_CONTEXT;
}

static int end(void *object)
{
	free(object);
	return depth > 0 && object ? 0 : INVALID_CONTEXT;
}

int CALL cuStreamCreate(void **ret, unsigned flags)
{
	(void)flags;
	return make(ret);
}

int CALL cuStreamDestroy_v2(void *stream)
{
	return end(stream);
}

int CALL cuStreamWaitEvent(void *stream, void *event, unsigned flags)
{
	(void)stream;
	return event && flags == 0 && depth > 0 ? 0 : INVALID_VALUE;
}

int CALL cuStreamSynchronize(void *stream)
{
	(void)stream;
	return depth > 0 ? 0 : INVALID_CONTEXT;
}

int CALL cuEventCreate(void **ret, unsigned flags)
{
	(void)flags;
	return make(ret);
}

int CALL cuEventDestroy_v2(void *event)
{
	return end(event);
}

int CALL cuEventRecord(void *event, void *stream)
{
	(void)stream;
	return event && depth > 0 ? 0 : INVALID_VALUE;
}

int CALL cuEventSynchronize(void *event)
{
	return event && depth > 0 ? 0 : INVALID_VALUE;
}
