/*
 * gpu.c: the CUDA driver through dlopen. Symbols with _v2 are those that CUDA's own header has used
 * since version 4 under the plain names.
 */
#include "ep/gpu.h"

#include <pthread.h>
#include <stdbool.h>
#include <string.h>

#include "base/mem.h"
#include "io/dl.h"

#define CUDA_ERROR_OUT_OF_MEMORY 2
#define CU_DEVICE_P2P_ATTRIBUTE_NATIVE_ATOMIC_SUPPORTED 3

#define SYM(field, symbol) MC_DL_SYM(struct mc_gpu_api, field, symbol)

static const struct mc_dl_sym syms[] = {
    SYM(init, "cuInit"),
    SYM(error_string, "cuGetErrorString"),
    SYM(device_count, "cuDeviceGetCount"),
    SYM(device_get, "cuDeviceGet"),
    SYM(device_by_bus, "cuDeviceGetByPCIBusId"),
    SYM(device_bus, "cuDeviceGetPCIBusId"),
    SYM(can_access_peer, "cuDeviceCanAccessPeer"),
    SYM(p2p_attribute, "cuDeviceGetP2PAttribute"),
    SYM(context_retain, "cuDevicePrimaryCtxRetain"),
    SYM(context_release, "cuDevicePrimaryCtxRelease_v2"),
    SYM(context_push, "cuCtxPushCurrent_v2"),
    SYM(context_pop, "cuCtxPopCurrent_v2"),
    SYM(module_load, "cuModuleLoadDataEx"),
    SYM(module_unload, "cuModuleUnload"),
    SYM(module_function, "cuModuleGetFunction"),
    SYM(launch, "cuLaunchKernel"),
    SYM(alloc, "cuMemAlloc_v2"),
    SYM(free, "cuMemFree_v2"),
    SYM(set, "cuMemsetD8Async"),
    SYM(host_alloc, "cuMemHostAlloc"),
    SYM(host_device, "cuMemHostGetDevicePointer_v2"),
    SYM(host_free, "cuMemFreeHost"),
    SYM(ipc_get, "cuIpcGetMemHandle"),
    SYM(ipc_open, "cuIpcOpenMemHandle_v2"),
    SYM(ipc_close, "cuIpcCloseMemHandle"),
    SYM(stream_create, "cuStreamCreate"),
    SYM(stream_destroy, "cuStreamDestroy_v2"),
    SYM(stream_wait, "cuStreamWaitEvent"),
    SYM(stream_sync, "cuStreamSynchronize"),
    SYM(event_create, "cuEventCreate"),
    SYM(event_destroy, "cuEventDestroy_v2"),
    SYM(event_record, "cuEventRecord"),
    SYM(event_sync, "cuEventSynchronize"),
};

static struct mc_gpu_api loaded;
static struct mc_diag load_diag;
static int load_rc;
static pthread_once_t load_once = PTHREAD_ONCE_INIT; /* guards the three above */

static void load(void)
{
	static const char *const names[] = {"libcuda.so.1", NULL};
	int rc, count = 0;

	load_rc = mc_dl_load(names, syms, MC_ARRAY_LEN(syms), &loaded, NULL, &load_diag);
	if (load_rc < 0)
		return;
	rc = loaded.init(0);
	if (rc == 0)
		rc = loaded.device_count(&count);
	if (rc == 0 && count > 0)
		return;
	load_rc = -MC_E_UNAVAILABLE;
	if (rc == 0)
		mc_diag_set(&load_diag, "not available: the CUDA driver sees no GPU");
	else
		(void)mc_gpu_fail(&loaded, rc, "not available: the CUDA driver", &load_diag);
}

int mc_gpu_api(const struct mc_gpu_api **ret, struct mc_diag *diag)
{
	if (mc_ep_fatbin_len == 0) {
		mc_diag_set(diag, "not available: this library was built without nvcc and has no "
				  "kernels for GPUs");
		return -MC_E_UNAVAILABLE;
	}
	pthread_once(&load_once, load);
	if (load_rc < 0) {
		mc_diag_set(diag, "%s", load_diag.text);
		return load_rc;
	}
	*ret = &loaded;
	return 0;
}

int mc_gpu_fail(const struct mc_gpu_api *api, int rc, const char *what, struct mc_diag *diag)
{
	const char *why = NULL;

	if (rc == 0)
		return 0;
	if (api->error_string(rc, &why) != 0 || !why)
		why = "unknown error";
	mc_diag_set(diag, "%s: %s (CUDA's error %d)", what, why, rc);
	return rc == CUDA_ERROR_OUT_OF_MEMORY ? -MC_E_NOMEM : -MC_E_DEVICE;
}

/* ---- one GPU ---- */

static int load_kernels(struct mc_gpu *gpu, struct mc_diag *diag)
{
#define KERNEL_NAME(name) "mc_epk_" #name,
	static const char *const names[] = {MC_EPK_TABLE(KERNEL_NAME)};
#undef KERNEL_NAME
	const struct mc_gpu_api *api = gpu->api;
	int rc = api->module_load(&gpu->module, mc_ep_fatbin, 0, NULL, NULL);

	if (rc)
		return mc_gpu_fail(api, rc, "kernels for this GPU", diag);
	for (unsigned i = 0; i < MC_EPK_COUNT && rc == 0; i++) {
		rc = api->module_function(&gpu->kernel[i], gpu->module, names[i]);
		if (rc)
			return mc_gpu_fail(api, rc, names[i], diag);
	}
	return 0;
}

int mc_gpu_init(struct mc_gpu *gpu, int ordinal, struct mc_diag *diag)
{
	struct mc_gpu made = {0};
	int rc = mc_gpu_api(&made.api, diag), count = 0;

	if (rc < 0)
		return rc;
	rc = made.api->device_count(&count);
	if (rc == 0 && (ordinal < 0 || ordinal >= count)) {
		mc_diag_set(diag, "GPU %d of %d", ordinal, count);
		return -MC_E_INVAL;
	}
	if (rc == 0)
		rc = made.api->device_get(&made.device, ordinal);
	if (rc == 0)
		rc = made.api->device_bus(made.bus, sizeof(made.bus), made.device);
	if (rc == 0)
		rc = made.api->context_retain(&made.context, made.device);
	if (rc)
		return mc_gpu_fail(made.api, rc, "context of a GPU", diag);
	rc = mc_gpu_enter(&made, diag);
	if (rc == 0) {
		rc = load_kernels(&made, diag);
		mc_gpu_leave(&made);
	}
	if (rc < 0)
		mc_gpu_fini(&made);
	else
		*gpu = made;
	return rc;
}

void mc_gpu_fini(struct mc_gpu *gpu)
{
	struct mc_diag diag;

	if (!gpu->context)
		return;
	if (gpu->module && mc_gpu_enter(gpu, &diag) == 0) {
		(void)gpu->api->module_unload(gpu->module); /* nothing is to be done about it */
		mc_gpu_leave(gpu);
	}
	(void)gpu->api->context_release(gpu->device);
	*gpu = (struct mc_gpu){0};
}

int mc_gpu_enter(const struct mc_gpu *gpu, struct mc_diag *diag)
{
	return mc_gpu_fail(gpu->api, gpu->api->context_push(gpu->context), "context of a GPU",
			   diag);
}

void mc_gpu_leave(const struct mc_gpu *gpu)
{
	void *popped;

	(void)gpu->api->context_pop(&popped); /* what was pushed is there */
}

int mc_gpu_reaches(const struct mc_gpu *gpu, const char *bus, struct mc_diag *diag)
{
	const struct mc_gpu_api *api = gpu->api;
	int peer, can = 0, rc;

	if (strcmp(bus, gpu->bus) == 0)
		return 0;
	if (api->device_by_bus(&peer, bus) != 0) {
		mc_diag_set(diag, "GPU %s is not to be seen from here (CUDA_VISIBLE_DEVICES)", bus);
		return -MC_E_UNSUPPORTED;
	}
	rc = api->can_access_peer(&can, gpu->device, peer);
	if (rc == 0 && can)
		rc = api->p2p_attribute(&can, CU_DEVICE_P2P_ATTRIBUTE_NATIVE_ATOMIC_SUPPORTED,
					gpu->device, peer);
	if (rc == 0 && can)
		return 0;
	mc_diag_set(diag, "GPU %s cannot work in memory of %s, atomics included (NVLink can)",
		    gpu->bus, bus);
	return -MC_E_UNSUPPORTED;
}

int mc_gpu_launch(const struct mc_gpu *gpu, enum mc_epk kernel, uint64_t blocks_x,
		  unsigned blocks_y, const struct mc_epk_half *half, void *stream,
		  struct mc_diag *diag)
{
	struct mc_epk_half arg = *half;
	void *args[] = {&arg};
	int rc;

	if (blocks_x == 0)
		return 0;
	rc = gpu->api->launch(gpu->kernel[kernel], (unsigned)blocks_x, blocks_y, 1, MC_EPK_THREADS,
			      1, 1, 0, stream, args, NULL);
	return mc_gpu_fail(gpu->api, rc, "queueing a kernel", diag);
}
