/*
 * kernels.h: the kernels of src/ep as functions of the processor.
 */
#ifndef MC_TESTS_FAKE_CUDA_KERNELS_H
#define MC_TESTS_FAKE_CUDA_KERNELS_H

#include <stdbool.h>
#include <stdint.h>

/** By its name in the module. @return -1: there is none */
int fake_kernel_find(const char *name);
/** @param arg  its one argument @param is_backwards  the last block and thread first */
void fake_kernel_run(int kernel, uint32_t blocks_x, uint32_t blocks_y, const void *arg,
		     bool is_backwards);

#endif
