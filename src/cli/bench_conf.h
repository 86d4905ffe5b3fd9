/*
 * bench_conf.h: options of transfer_engine_bench. Names are upstream's, and more.
 */
#ifndef MC_CLI_BENCH_CONF_H
#define MC_CLI_BENCH_CONF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "base/opt.h"

enum mc_bench_mode {
	MC_BENCH_INITIATOR,
	MC_BENCH_TARGET,
};

enum mc_bench_op {
	MC_BENCH_READ,
	MC_BENCH_WRITE,
};

struct mc_bench_conf {
	int mode, operation; /* enum mc_bench_mode, mc_bench_op */
	int protocol, backend;
	char metadata_server[512], local_server_name[256], segment_id[256], device_name[1024];
	char nic_priority_matrix[512], report_unit[8];
	uint64_t buffer_size, block_size;
	int64_t batch_size, duration, threads, report_precision, gpu_id;
	bool auto_discovery, use_vram, init_mem, is_verifying, is_json;
};

extern const struct mc_opt mc_bench_opts[];
extern const size_t mc_bench_opts_count;

/** Bytes of one report_unit a second. */
double mc_bench_unit_bytes(const struct mc_bench_conf *conf);
const char *mc_bench_protocol_name(const struct mc_bench_conf *conf);
/** What the table cannot say: combinations, and what this build does not have. @return 0;
 * -MC_E_INVAL with a diag */
int mc_bench_conf_check(const struct mc_bench_conf *conf, struct mc_diag *diag);

#endif
