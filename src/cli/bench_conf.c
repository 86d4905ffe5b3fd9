/*
 * bench_conf.c: options of transfer_engine_bench.
 */
#include "cli/bench_conf.h"

#include <string.h>

#include "base/mem.h"
#include "base/opt.h"

#define THREADS_MAX 1024

static const char *const modes[] = {"initiator", "target", NULL};
static const char *const operations[] = {"read", "write", NULL};
static const char *const protocols[] = {"rdma", "tcp", "shm", NULL};
static const char *const backends[] = {"classic", NULL};

/* A letter's case counts: GB and Gb are bytes and bits. */
static const struct {
	const char *name;
	double bytes;
} units[] = {
    {"GB", 1e9}, {"GiB", 1073741824.0}, {"Gb", 1e9 / 8}, {"Gib", 1073741824.0 / 8},
    {"MB", 1e6}, {"MiB", 1048576.0},	{"Mb", 1e6 / 8}, {"Mib", 1048576.0 / 8},
    {"KB", 1e3}, {"KiB", 1024.0},	{"Kb", 1e3 / 8}, {"Kib", 1024.0 / 8},
};

#define CONF struct mc_bench_conf
const struct mc_opt mc_bench_opts[] = {
    MC_OPT_ENUM(CONF, mode, "mode", "initiator", modes, "which end this is"),
    MC_OPT_STR(CONF, metadata_server, "metadata_server", "P2PHANDSHAKE",
	       "P2PHANDSHAKE, http://…, etcd://…, redis://…"),
    MC_OPT_STR(CONF, local_server_name, "local_server_name", "",
	       "address or name that peers open; none: an address of this host"),
    MC_OPT_STR(CONF, segment_id, "segment_id", "", "initiator: name that the target printed"),
    MC_OPT_ENUM(CONF, operation, "operation", "read", operations, "direction"),
    MC_OPT_ENUM(CONF, protocol, "protocol", "rdma", protocols, "rdma is TCP where there is no HCA"),
    MC_OPT_STR(CONF, device_name, "device_name", "", "devices or addresses, a comma list"),
    MC_OPT_STR(CONF, nic_priority_matrix, "nic_priority_matrix", "", "not in this build"),
    MC_OPT_BOOL(CONF, auto_discovery, "auto_discovery", "0", "devices are always discovered"),
    MC_OPT_SIZE(CONF, buffer_size, "buffer_size", "1gb", 1, INT64_MAX, "bytes of either end"),
    MC_OPT_INT(CONF, batch_size, "batch_size", "128", 1, 65536, "blocks a batch"),
    MC_OPT_SIZE(CONF, block_size, "block_size", "65536", 1, INT64_MAX, "bytes a block"),
    MC_OPT_INT(CONF, duration, "duration", "10", 1, 1000000, "seconds"),
    MC_OPT_INT(CONF, threads, "threads", "12", 1, THREADS_MAX, "threads, one batch each at a time"),
    MC_OPT_STR(CONF, report_unit, "report_unit", "GB", "GB GiB Gb Gib MB MiB Mb Mib KB KiB Kb Kib"),
    MC_OPT_INT(CONF, report_precision, "report_precision", "2", 0, 9, "digits"),
    MC_OPT_ENUM(CONF, backend, "backend", "classic", backends, "engine"),
    MC_OPT_BOOL(CONF, use_vram, "use_vram", "0", "memory of a GPU: not in this build"),
    MC_OPT_BOOL(CONF, init_mem, "init_mem", "1", "write to all memory before the start"),
    MC_OPT_INT(CONF, gpu_id, "gpu_id", "0", -1, 1024, "with use_vram"),
    MC_OPT_BOOL(CONF, is_verifying, "verify", "0",
		"write patterns, read them back and compare; both ways count"),
    MC_OPT_BOOL(CONF, is_json, "json", "0", "the result as one JSON object"),
};
const size_t mc_bench_opts_count = MC_ARRAY_LEN(mc_bench_opts);

static size_t unit_index(const struct mc_bench_conf *conf)
{
	size_t i = 0;

	while (i < MC_ARRAY_LEN(units) && strcmp(units[i].name, conf->report_unit) != 0)
		i++;
	return i;
}

double mc_bench_unit_bytes(const struct mc_bench_conf *conf)
{
	return units[unit_index(conf)].bytes;
}

const char *mc_bench_protocol_name(const struct mc_bench_conf *conf)
{
	return protocols[conf->protocol];
}

int mc_bench_conf_check(const struct mc_bench_conf *conf, struct mc_diag *diag)
{
	bool is_initiator = conf->mode == MC_BENCH_INITIATOR;
	uint64_t batch, all;

	if (conf->use_vram)
		mc_diag_set(diag, "--use_vram: this build moves host memory only");
	else if (conf->nic_priority_matrix[0])
		mc_diag_set(diag, "--nic_priority_matrix: not in this build; rails are chosen by "
				  "what they deliver");
	else if (unit_index(conf) == MC_ARRAY_LEN(units))
		mc_diag_set(diag, "--report_unit: '%s' is no unit; --help names them",
			    conf->report_unit);
	else if (is_initiator && !conf->segment_id[0])
		mc_diag_set(diag, "--segment_id: the initiator needs the name that the target "
				  "printed");
	else if (is_initiator &&
		 (__builtin_mul_overflow(conf->block_size, (uint64_t)conf->batch_size, &batch) ||
		  __builtin_mul_overflow(batch, (uint64_t)conf->threads, &all) ||
		  all > conf->buffer_size / (conf->is_verifying ? 2 : 1)))
		mc_diag_set(diag,
			    "--buffer_size: %llu bytes are less than block_size x batch_size x "
			    "threads%s",
			    (unsigned long long)conf->buffer_size,
			    conf->is_verifying ? " x 2 (--verify)" : "");
	else
		return 0;
	return -MC_E_INVAL;
}
