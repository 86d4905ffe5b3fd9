/*
 * gpu.h: the CUDA driver, used when it is there (libcuda.so.1 by dlopen), and the kernels that were
 * built in. Declared here as far as it is used: building needs nothing of CUDA's.
 *
 * Calls answer with the driver's CUresult; mc_gpu_fail() makes an error of ours of it.
 */
#ifndef MC_EP_GPU_H
#define MC_EP_GPU_H

#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "ep/gpu_abi.h"

#define MC_GPU_HANDLE_LEN 64 /* CUipcMemHandle */
#define MC_GPU_BUS_LEN 32

struct mc_gpu_handle {
	char bytes[MC_GPU_HANDLE_LEN];
};

struct mc_gpu_api {
	int (*init)(unsigned flags);
	int (*error_string)(int rc, const char **ret);
	int (*device_count)(int *ret);
	int (*device_get)(int *ret, int ordinal);
	int (*device_by_bus)(int *ret, const char *bus);
	int (*device_bus)(char *ret, int len, int device);
	int (*can_access_peer)(int *ret, int device, int peer);
	int (*p2p_attribute)(int *ret, int attribute, int device, int peer);
	int (*context_retain)(void **ret, int device);
	int (*context_release)(int device);
	int (*context_push)(void *context);
	int (*context_pop)(void **ret);
	int (*module_load)(void **ret, const void *image, unsigned noptions, int *options,
			   void **values);
	int (*module_unload)(void *module);
	int (*module_function)(void **ret, void *module, const char *name);
	int (*launch)(void *function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
		      unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared_bytes,
		      void *stream, void **args, void **extra);
	int (*alloc)(uint64_t *ret, size_t len);
	int (*free)(uint64_t at);
	int (*set)(uint64_t at, unsigned char value, size_t len, void *stream);
	int (*host_alloc)(void **ret, size_t len, unsigned flags);
	int (*host_device)(uint64_t *ret, void *host, unsigned flags);
	int (*host_free)(void *host);
	int (*ipc_get)(struct mc_gpu_handle *ret, uint64_t at);
	int (*ipc_open)(uint64_t *ret, struct mc_gpu_handle handle, unsigned flags);
	int (*ipc_close)(uint64_t at);
	int (*stream_create)(void **ret, unsigned flags);
	int (*stream_destroy)(void *stream);
	int (*stream_wait)(void *stream, void *event, unsigned flags);
	int (*stream_sync)(void *stream);
	int (*event_create)(void **ret, unsigned flags);
	int (*event_destroy)(void *event);
	int (*event_record)(void *event, void *stream);
	int (*event_sync)(void *event);
};

/** The driver, loaded and initialised once. @return 0; -MC_E_UNAVAILABLE: diag says why. Any
 * thread. */
int mc_gpu_api(const struct mc_gpu_api **ret, struct mc_diag *diag);

/** @param what  "memory of the window"
 * @return 0 if rc is 0; else -MC_E_NOMEM, -MC_E_DEVICE, with the driver's words in diag */
int mc_gpu_fail(const struct mc_gpu_api *api, int rc, const char *what, struct mc_diag *diag);

/** A GPU, with its primary context and the kernels in it. */
struct mc_gpu {
	const struct mc_gpu_api *api;
	int device;
	void *context, *module;
	void *kernel[MC_EPK_COUNT];
	char bus[MC_GPU_BUS_LEN]; /* PCI address */
};

/** @param ordinal  0 … @return 0; -MC_E_UNAVAILABLE; -MC_E_INVAL (no such GPU); -MC_E_DEVICE */
int mc_gpu_init(struct mc_gpu *gpu, int ordinal, struct mc_diag *diag);
/** Nothing of it is used any more. Of zeroed memory: nothing. */
void mc_gpu_fini(struct mc_gpu *gpu);
/** Its context for the calls of this thread, until mc_gpu_leave(). @return 0; -MC_E_DEVICE */
int mc_gpu_enter(const struct mc_gpu *gpu, struct mc_diag *diag);
void mc_gpu_leave(const struct mc_gpu *gpu);
/** Can it work in memory of the GPU at that address, atomics included? @return 0;
 * -MC_E_UNSUPPORTED: diag says why not */
int mc_gpu_reaches(const struct mc_gpu *gpu, const char *bus, struct mc_diag *diag);
/** Queue a kernel. In its context. @return 0; -MC_E_DEVICE */
int mc_gpu_launch(const struct mc_gpu *gpu, enum mc_epk kernel, uint64_t blocks_x,
		  unsigned blocks_y, const struct mc_epk_half *half, void *stream,
		  struct mc_diag *diag);

/* The kernels for several kinds of GPUs (a fat binary of nvcc); length 0: built without. */
extern const uint8_t mc_ep_fatbin[];
extern const uint64_t mc_ep_fatbin_len;

#endif
