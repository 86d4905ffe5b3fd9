/*
 * conf.c: the settings of the RDMA transport: names as upstream's, its defaults but where they hide
 * failures (it retries for ever).
 */
#include "base/mem.h"
#include "base/opt.h"
#include "xport/rdma/priv.h"

#define CONF struct mc_rdma_conf

static const struct mc_opt rows[] = {
    /* The later row of a field wins. */
    MC_OPT_INT(CONF, gid_index, "NCCL_IB_GID_INDEX", "-1", -1, 255,
	       "RDMA: taken when `MC_GID_INDEX` is unset"),
    MC_OPT_INT(
	CONF, gid_index, "MC_GID_INDEX", "-1", -1, 255,
	"RDMA: which address of a port is used; -1: RoCE v2 and an address of its interface"),
    MC_OPT_INT(CONF, port_num, "MC_IB_PORT", "1", 1, 255, "RDMA: port of each device"),
    MC_OPT_INT(CONF, traffic_class, "MC_IB_TC", "-1", -1, 255,
	       "RDMA: traffic class of packets; -1: 0"),
    MC_OPT_INT(CONF, service_level, "MC_IB_SL", "-1", -1, 15,
	       "RDMA: service level of packets; -1: 0"),
    MC_OPT_INT(CONF, pkey_index, "MC_PKEY_INDEX", "0", 0, 65535,
	       "RDMA: place of the partition key (InfiniBand)"),
    MC_OPT_INT(CONF, mtu, "MC_MTU", "4096", 256, 4096,
	       "RDMA: bytes of a packet at most; the smallest of both ports and this is used"),
    MC_OPT_INT(CONF, wrs_max, "MC_MAX_WR", "256", 1, 32768,
	       "RDMA: requests under way on a queue pair"),
    MC_OPT_INT(CONF, sges_max, "MC_MAX_SGE", "4", 1, 64, "RDMA: pieces of memory of a request"),
    MC_OPT_INT(CONF, inline_max, "MC_MAX_INLINE", "64", 0, 1024,
	       "RDMA: bytes of a write that are sent within the request"),
    MC_OPT_INT(CONF, qps, "MC_NUM_QP_PER_EP", "0", 0, 8,
	       "RDMA: queue pairs of a connection; 0: one, and two towards upstream's processes"),
    MC_OPT_INT(CONF, inbound_max, "MC_MAX_EP_PER_CTX", "65536", 1, 65536,
	       "RDMA: connections that peers hold to one port, at most"),
    MC_OPT_INT(CONF, timeout, "MC_IB_TIMEOUT", "16", 1, 31,
	       "RDMA: wait for an acknowledgement, 4.096 us << this"),
    MC_OPT_INT(CONF, retry_cnt, "MC_IB_RETRY_CNT", "6", 0, 7,
	       "RDMA: times a packet is sent again before the path counts as broken"),
    MC_OPT_BOOL(
	CONF, is_relaxed_ordering, "MC_IB_PCI_RELAXED_ORDERING", "0",
	"RDMA: the device may write to memory out of order; a signal may then be seen before "
	"what it announces"),
};

void mc_rdma_conf_load(struct mc_rdma_conf *conf)
{
	(void)mc_opt_load_env(rows, MC_ARRAY_LEN(rows), conf, NULL); /* complaints are logged */
	while (conf->mtu & (conf->mtu - 1))
		conf->mtu &= conf->mtu - 1;
}
