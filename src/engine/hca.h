/*
 * hca.h: what the engine does with the RDMA device as a whole: open it, register memory with it,
 * know which of its ports are close to which memory.
 */
#ifndef MC_ENGINE_HCA_H
#define MC_ENGINE_HCA_H

#include "engine/priv.h"
#include "xport/rdma/rdma.h"

/**
 * Open the device if it is wanted: protocol "rdma", or MC_FORCE_HCA.
 * @param devices  the engine's device list; addresses in it do not count
 * @param verbs    NULL: libibverbs
 * @return 0 (also where there is no HCA: TCP is used, with one warning); -MC_E_NOENT (the list
 * names no HCA of this machine); -MC_E_UNAVAILABLE (MC_FORCE_HCA); -MC_E_NOMEM
 */
int mc_hca_open(struct mc_engine *eng, const char *protocol, const char *devices,
		const struct mc_verbs *verbs, struct mc_diag *diag);
/** Every lane is closed, no peer is served. */
void mc_hca_close(struct mc_engine *eng);

/** Before the range can be seen by peers. One that the HCAs refuse goes over TCP; that is said
 * once. Blocks. @return the HCAs found that it must not be written */
bool mc_hca_mem_add(struct mc_engine *eng, uint64_t addr, uint64_t len, unsigned rights);
/** After it cannot be seen any more: once for each add. Blocks. */
void mc_hca_mem_del(struct mc_engine *eng, uint64_t addr, uint64_t len);
/** Keys of a region for peers; zeros: none. Any thread. */
void mc_hca_keys(struct mc_engine *eng, const struct mc_region_desc *desc,
		 uint8_t ret_key[MC_XPORT_TOKEN_MAX]);
/**
 * Replace "*" by the place where the range lies, if it lies in one and that makes a difference.
 * After mc_hca_mem_add(), which has touched it.
 */
void mc_hca_locate(const struct mc_engine *eng, struct mc_region_desc *desc);
/** Ports that are close to memory of this location: bit a port, all where nothing is known. */
uint32_t mc_hca_near(const struct mc_engine *eng, const char *location);

/** The longest range that all HCAs take; longer ones are registered in parts. */
uint64_t mc_hca_range_max(const struct mc_engine *eng);
/** As mc_region_find(); of what no region holds whole, or is registered in parts, the region or
 * part that the range begins in. */
int mc_hca_region_find(struct mc_engine *eng, uint64_t addr, uint64_t len,
		       struct mc_region_info *ret_info);

#endif
