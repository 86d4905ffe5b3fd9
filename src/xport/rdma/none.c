/*
 * none.c: the RDMA transport of a build without libibverbs' headers: its device does not open, so
 * nothing else is ever called.
 */
#include "xport/rdma/rdma.h"

int mc_rdma_dev_open(const struct mc_xdev_env *env, const struct mc_rdma_opts *opts,
		     struct mc_xdev **ret_dev, struct mc_diag *diag)
{
	(void)env;
	(void)opts;
	(void)ret_dev;
	mc_diag_set(diag, "RDMA is not available: built without libibverbs' headers (package "
			  "libibverbs-dev)");
	return -MC_E_UNAVAILABLE;
}

#define NEVER(type, name, ...)                                                                     \
	type name(__VA_ARGS__)                                                                     \
	{                                                                                          \
		mc_assert_fail("an RDMA device is open", __FILE__, __LINE__);                      \
	}

NEVER(unsigned, mc_rdma_ports, const struct mc_xdev *dev)
NEVER(void, mc_rdma_port_get, const struct mc_xdev *dev, unsigned port, struct mc_rdma_port *ret)
NEVER(bool, mc_rdma_port_is_up, const struct mc_xdev *dev, unsigned port)
NEVER(bool, mc_rdma_has_addr, const struct mc_xdev *dev)
NEVER(bool, mc_rdma_lane_is_over, const struct mc_xlane *lane)
NEVER(int, mc_rdma_port_find, const struct mc_xdev *dev, const char *name)
NEVER(uint32_t, mc_rdma_ports_version, const struct mc_xdev *dev)
NEVER(uint64_t, mc_rdma_retry_ns, const struct mc_xdev *dev)
NEVER(bool, mc_rdma_mem_is_read_only, struct mc_xdev *dev, uint64_t addr, uint64_t len)
NEVER(uint64_t, mc_rdma_range_max, const struct mc_xdev *dev)
NEVER(int, mc_rdma_mem_add, struct mc_xdev *dev, uint64_t addr, uint64_t len, unsigned rights,
      uint32_t ret_rkey[MC_RDMA_PORTS_MAX], struct mc_diag *diag)
NEVER(int, mc_rdma_mem_del, struct mc_xdev *dev, uint64_t addr, uint64_t len)
NEVER(int, mc_rdma_mem_keys, struct mc_xdev *dev, uint64_t addr, uint64_t len,
      uint32_t ret_rkey[MC_RDMA_PORTS_MAX], uint32_t ret_lkey[MC_RDMA_PORTS_MAX])
NEVER(void, mc_rdma_key_put, uint8_t key[MC_XPORT_TOKEN_MAX],
      const uint32_t rkey[MC_RDMA_PORTS_MAX])
NEVER(void, mc_rdma_lane_end, const struct mc_xlane *lane, struct mc_rdma_end *ret)
NEVER(int, mc_rdma_lane_join, struct mc_xlane *lane, const struct mc_rdma_end *peer)
NEVER(int, mc_rdma_accept_named, struct mc_xdev *dev, unsigned port, const char *who,
      const struct mc_rdma_end *peer, struct mc_rdma_end *ret_mine)
NEVER(void, mc_rdma_forget, struct mc_xdev *dev, uint64_t initiator_epoch)
NEVER(void, mc_rdma_forget_named, struct mc_xdev *dev, const char *who)
NEVER(void, mc_rdma_stats_get, const struct mc_xdev *dev, struct mc_rdma_stats *ret)
