/*
 * node_flags.c: options of mooncake_client.
 */
#include "cli/node_flags.h"

#include <string.h>

#include "base/mem.h"
#include "cli/args.h"

#define FLAGS struct mc_node_flags
#define SEGMENT_MIN (1 << 20)

static const struct mc_opt table[] = {
    MC_OPT_STR(FLAGS, host, "host", "0.0.0.0",
	       "address of this host for peers, ip or ip:port; 0.0.0.0: the first of an interface "
	       "that is up"),
    MC_OPT_STR(FLAGS, master, "master_server_address", "127.0.0.1:50051", "host:port"),
    MC_OPT_INT(
	FLAGS, port, "port", "50052", 0, 65535,
	"number in the name of the Unix socket where this host's dummy clients ask; 0: none"),
    MC_OPT_STR(FLAGS, tenant, "tenant_id", "default", "tenant of the dummy clients"),
    MC_OPT_STR(FLAGS, metadata, "metadata_server", "P2PHANDSHAKE",
	       "where the engine's peers are found: P2PHANDSHAKE, http://, etcd://, redis://"),
    MC_OPT_STR(FLAGS, protocol, "protocol", "tcp", "tcp, rdma"),
    MC_OPT_STR(FLAGS, devices, "device_names", "", "HCAs or addresses to use, with commas"),
    MC_OPT_SIZE(FLAGS, segment_bytes, "global_segment_size", "4GB", SEGMENT_MIN, INT64_MAX,
		"memory for the pool, as 512MB, 4GB"),
    MC_OPT_SIZE(FLAGS, buffer_bytes, "local_buffer_size", "0", 0, INT64_MAX,
		"taken for upstream's sake: a node needs no buffers"),
    MC_OPT_BOOL(FLAGS, has_disk, "enable_offload", "0",
		"keep a copy of every object on a disk: MOONCAKE_OFFLOAD_FILE_STORAGE_PATH"),
    MC_OPT_BOOL(FLAGS, has_ssd, "enable_ssd_offload", "0", "the same"),
    MC_OPT_STR(FLAGS, disk_path, "ssd_offload_path", "",
	       "directory of the disk, instead of MOONCAKE_OFFLOAD_FILE_STORAGE_PATH"),
    MC_OPT_BOOL(FLAGS, has_http, "enable_http_server", "0", "serve /health and /metrics"),
    MC_OPT_STR(FLAGS, http_host, "http_host", "0.0.0.0", "their address"),
    MC_OPT_INT(FLAGS, http_port, "http_port", "9300", 0, 65535, "their port; 0: any"),
};

/* Options of upstream's that nothing here needs, or that are refused. */
static const struct mc_args_other others[] = {
    {"threads", false, NULL},
    {"start_offload_rpc_server", true, NULL},
    {"use_mmap_arena_allocator", true, NULL},
    {"mmap_arena_pool_size", false, NULL},
    {NULL, false, NULL},
};

/* @return 0; -MC_E_INVAL */
static int disk_parse(struct mc_node_flags *flags, struct mc_diag *diag)
{
	int rc;

	if (!flags->has_disk && !flags->has_ssd)
		return 0;
	rc = mc_ssd_place(flags->disk_path, &flags->disk, diag);
	flags->conf.disk_path = flags->disk.path;
	flags->conf.disk_bytes = flags->disk.bytes;
	return rc;
}

int mc_node_flags_parse(int argc, char **argv, struct mc_node_flags *flags, struct mc_diag *diag)
{
	int rc = mc_args_parse(table, MC_ARRAY_LEN(table), others, argc, argv, flags, diag);
	bool is_any;

	if (rc > 0)
		mc_args_help(table, MC_ARRAY_LEN(table),
			     "usage: mooncake_client [--master_server_address HOST:PORT] "
			     "[--global_segment_size SIZE]");
	if (rc != 0)
		return rc;
	if (!flags->master[0]) {
		mc_diag_set(diag, "option '--master_server_address' is empty: give host:port");
		return -MC_E_INVAL;
	}
	is_any = strcmp(flags->host, "0.0.0.0") == 0 || strncmp(flags->host, "0.0.0.0:", 8) == 0;
	flags->conf = (struct mc_node_conf){.name = is_any ? NULL : flags->host,
					    .metadata = flags->metadata,
					    .protocol = flags->protocol,
					    .devices = flags->devices[0] ? flags->devices : NULL,
					    .master = flags->master,
					    .tenant = flags->tenant,
					    .dummy_port = (uint16_t)flags->port,
					    .segment_bytes = flags->segment_bytes,
					    .has_http = flags->has_http,
					    .http_host = flags->http_host,
					    .http_port = (uint16_t)flags->http_port};
	return disk_parse(flags, diag);
}
