/*
 * kernels.cu: the kernels for GPUs. What is CUDA's own; the rest is in kernels_*.h.
 *
 * Memory that other GPUs write is read and written with system scope (PTX ISA, memory consistency
 * model); between GPUs that needs native atomics, which gpu.c asks for.
 */
#include <stdint.h>

#define MC_KERNEL(name)                                                                            \
	extern "C" __global__ void __launch_bounds__(MC_EPK_THREADS)                               \
	    mc_epk_##name(const __grid_constant__ struct mc_epk_half h)
#define MC_DEV static __device__ __forceinline__
#define MC_SHARED __shared__
#define MC_EACH(i, n) for (uint32_t i = threadIdx.x; i < (n); i += MC_EPK_THREADS)
#define MC_SYNC() __syncthreads()
#define MC_BLOCK_X blockIdx.x
#define MC_BLOCK_Y blockIdx.y
#define MC_BLOCKS_X gridDim.x
#define MC_BLOCKS_Y gridDim.y

MC_DEV uint64_t gpu_load(const uint64_t *at)
{
	uint64_t v;

	asm volatile("ld.acquire.sys.global.u64 %0, [%1];" : "=l"(v) : "l"(at) : "memory");
	return v;
}

MC_DEV void gpu_store(uint64_t *at, uint64_t v)
{
	asm volatile("st.release.sys.global.u64 [%0], %1;" : : "l"(at), "l"(v) : "memory");
}

MC_DEV uint64_t gpu_cas(uint64_t *at, uint64_t expected, uint64_t to)
{
	uint64_t seen;

	asm volatile("atom.acq_rel.sys.global.cas.b64 %0, [%1], %2, %3;"
		     : "=l"(seen)
		     : "l"(at), "l"(expected), "l"(to)
		     : "memory");
	return seen;
}

MC_DEV void gpu_fence(void)
{
	__threadfence_system();
}

MC_DEV uint64_t gpu_now_ns(void)
{
	uint64_t ns;

	asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(ns));
	return ns;
}

MC_DEV void gpu_nap(void)
{
	__nanosleep(100);
}

MC_DEV void gpu_or_shared(uint32_t *at, uint32_t bits)
{
	atomicOr(at, bits);
}

MC_DEV uint32_t gpu_ones(uint32_t bits)
{
	return (uint32_t)__popc(bits);
}

#include "ep/kernels_rows.h"
