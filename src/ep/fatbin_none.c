/*
 * fatbin_none.c: built where there was no nvcc: no kernels for GPUs.
 */
#include "ep/gpu.h"

const uint8_t mc_ep_fatbin[] = {0};
const uint64_t mc_ep_fatbin_len = 0;
