/*
 * fatbin.c: the kernels that nvcc made of kernels.cu, as they are. MC_EP_FATBIN is their file.
 */
#include "ep/gpu.h"
#include "fatbin_path.h"

__asm__(".section .rodata\n"
	".balign 64\n"
	".hidden mc_ep_fatbin\n"
	".global mc_ep_fatbin\n"
	"mc_ep_fatbin:\n"
	".incbin \"" MC_EP_FATBIN "\"\n"
	"mc_ep_fatbin_end:\n"
	".balign 8\n"
	".hidden mc_ep_fatbin_len\n"
	".global mc_ep_fatbin_len\n"
	"mc_ep_fatbin_len:\n"
	".quad mc_ep_fatbin_end - mc_ep_fatbin\n"
	".previous\n");
