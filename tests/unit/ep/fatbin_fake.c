/*
 * fatbin_fake.c: in place of the kernels of nvcc, for a driver that has its own.
 */
#include "ep/gpu.h"

const uint8_t mc_ep_fatbin[] = {1};
const uint64_t mc_ep_fatbin_len = sizeof(mc_ep_fatbin);
