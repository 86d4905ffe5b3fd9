/*
 * conf.h: the engine's settings, read from the environment once when an engine opens. Names are
 * upstream's where it has one.
 */
#ifndef MC_ENGINE_CONF_H
#define MC_ENGINE_CONF_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

#define MC_NONCE_BYTES 16u
#define MC_WORKERS_MAX 16u

struct mc_conf {
	bool is_tcp_only;	    /* MC_FORCE_TCP */
	bool is_hca_forced;	    /* MC_FORCE_HCA */
	bool is_shm_off;	    /* MC_NO_SHM */
	int64_t transfer_timeout_s; /* MC_TRANSFER_TIMEOUT */
	int64_t loops;		    /* MC_NUM_TCP_IO_THREADS; 0: by the machine */
	int64_t lanes;		    /* MC_TCP_LANES_PER_PEER: of bulk transfers, on one rail */
	uint64_t slice_bytes;	    /* MC_SLICE_SIZE; 0: by the size of the transfer */
	int64_t tries;		    /* MC_RETRY_CNT */
	int64_t rdma_idle_s;	    /* MC_RDMA_IDLE; 0: never */
	int64_t classic_proto;	    /* MC_TCP_PROTO: 1 forces upstream's version 1 frames */
	int64_t metrics_port;	    /* MC_METRICS_PORT */
	bool is_metric_logged;	    /* MC_TE_METRIC */
	int64_t metric_interval_s;  /* MC_TE_METRIC_INTERVAL_SECONDS */
};

/** Never fails: wrong values are logged and their defaults stay. */
void mc_conf_load(struct mc_conf *conf);

#endif
