/*
 * conf.c: the table of the engine's settings.
 */
#include "engine/conf.h"

#include "base/mem.h"
#include "base/opt.h"

static const struct mc_opt rows[] = {
    MC_OPT_BOOL(struct mc_conf, is_tcp_only, "MC_FORCE_TCP", "0",
		"TCP only, also between processes of one host"),
    MC_OPT_BOOL(struct mc_conf, is_hca_forced, "MC_FORCE_HCA", "0",
		"use RDMA whatever the protocol; an error where there is none"),
    MC_OPT_BOOL(struct mc_conf, is_shm_off, "MC_NO_SHM", "0",
		"no shared memory between processes of one host"),
    MC_OPT_INT(struct mc_conf, transfer_timeout_s, "MC_TRANSFER_TIMEOUT", "30", 5, 86400,
	       "seconds until a transfer without a deadline of its own ends"),
    MC_OPT_INT(struct mc_conf, loops, "MC_NUM_TCP_IO_THREADS", "0", 0, 4,
	       "event loop threads; 0: two, or one on a single core"),
    MC_OPT_INT(struct mc_conf, lanes, "MC_TCP_LANES_PER_PEER", "4", 1, 16,
	       "most connections that one bulk transfer uses on one rail"),
    MC_OPT_SIZE(struct mc_conf, slice_bytes, "MC_SLICE_SIZE", "0", 0, 1ll << 30,
		"bytes of a slice; 0: 64 KiB over RDMA, else chosen by the size of the transfer"),
    MC_OPT_INT(struct mc_conf, tries, "MC_RETRY_CNT", "9", 1, 128,
	       "tries of a slice in all, on any rail"),
    MC_OPT_INT(struct mc_conf, rdma_idle_s, "MC_RDMA_IDLE", "60", 0, 86400,
	       "RDMA: seconds until a connection of ours that nobody uses is closed; 0: never"),
    MC_OPT_INT(struct mc_conf, classic_proto, "MC_TCP_PROTO", "2", 1, 2,
	       "version of upstream's TCP frames spoken to upstream peers; version 1 does not "
	       "confirm writes"),
    MC_OPT_INT(struct mc_conf, metrics_port, "MC_METRICS_PORT", "0", 0, 65535,
	       "serve Prometheus metrics on this loopback port; 0: off"),
    MC_OPT_BOOL(struct mc_conf, is_metric_logged, "MC_TE_METRIC", "0",
		"log a line with rates and latencies every interval"),
    MC_OPT_INT(struct mc_conf, metric_interval_s, "MC_TE_METRIC_INTERVAL_SECONDS", "5", 1, 3600,
	       "seconds between two such lines"),
};

void mc_conf_load(struct mc_conf *conf)
{
	(void)mc_opt_load_env(rows, MC_ARRAY_LEN(rows), conf, NULL); /* complaints are logged */
	if (conf->slice_bytes && conf->slice_bytes < 65536)
		conf->slice_bytes = 65536;
}
