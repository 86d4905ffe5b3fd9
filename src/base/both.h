/*
 * both.h: functions of headers that are compiled for the processor and for GPUs: written in what C
 * and CUDA's C++ have in common.
 */
#ifndef MC_BASE_BOTH_H
#define MC_BASE_BOTH_H

#ifdef __CUDACC__
#define MC_BOTH static __host__ __device__ __forceinline__
#else
#define MC_BOTH static inline
#endif

#endif
