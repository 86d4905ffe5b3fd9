/*
 * master_flags.c: options of mooncake_master.
 */
#include "cli/master_flags.h"

#include <string.h>

#include "cli/args.h"
#include "base/mem.h"

#define FLAGS struct mc_master_flags
#define PORT_DEFAULT 50051

static const struct mc_opt table[] = {
    MC_OPT_STR(
	FLAGS, config_path, "config_path", "",
	"file with these options, YAML (\"key: value\" lines) or JSON; what the command line "
	"says wins"),
    MC_OPT_INT(FLAGS, rpc_port, "rpc_port", "0", 0, 65535, "port of clients and owners; 0: 50051"),
    MC_OPT_INT(FLAGS, port, "port", "0", 0, 65535, "the same"),
    MC_OPT_STR(FLAGS, rpc_address, "rpc_address", "0.0.0.0", "address to listen on"),
    MC_OPT_STR(FLAGS, state_dir, "state_dir", "",
	       "directory of epoch, roster and tombstones; none: mooncake/master-PORT under "
	       "$XDG_STATE_HOME, /var/lib or ~/.local/state; \"-\": keep nothing"),
    MC_OPT_INT(FLAGS, metrics_port, "metrics_port", "9003", 0, 65535,
	       "port of metrics and administration; 0: none"),
    MC_OPT_STR(FLAGS, metrics_host, "metrics_host", "0.0.0.0", "its address"),
    MC_OPT_BOOL(FLAGS, has_metadata, "enable_http_metadata_server", "0",
		"serve /metadata to engines, as mooncake_http_metadata_server does"),
    MC_OPT_INT(FLAGS, metadata_port, "http_metadata_server_port", "8080", 0, 65535,
	       "port of /metadata; 0: any"),
    MC_OPT_STR(FLAGS, metadata_host, "http_metadata_server_host", "0.0.0.0", "its address"),
    MC_OPT_STR(FLAGS, lease_ttl, "default_kv_lease_ttl", "10000",
	       "lease of what was looked up: milliseconds, or with ms s m h"),
    MC_OPT_STR(FLAGS, soft_pin_ttl, "default_kv_soft_pin_ttl", "1800000",
	       "length of a soft pin that does not say: as above"),
    MC_OPT_STR(FLAGS, soft_pin_max, "max_kv_soft_pin_ttl", "86400000",
	       "length of the longest soft pin: as above"),
    MC_OPT_BOOL(FLAGS, may_evict_soft_pins, "allow_evict_soft_pinned_objects", "1",
		"when nothing else may be evicted"),
    MC_OPT_DOUBLE(FLAGS, eviction_ratio, "eviction_ratio", "0.05", 0.0, 1.0,
		  "share of an owner's memory that is evicted ahead at once"),
    MC_OPT_DOUBLE(FLAGS, watermark, "eviction_high_watermark_ratio", "0.9", 0.0, 1.0,
		  "share in use above which it is"),
    MC_OPT_BOOL(FLAGS, has_tenants, "enable_multi_tenants", "0",
		"quotas of tenants hold: see PUT /api/v1/tenant_quotas"),
    MC_OPT_BOOL(FLAGS, offload_on_evict, "offload_on_evict", "0",
		"objects go to their node's disk when they are about to leave its memory, not at "
		"once"),
    MC_OPT_INT(FLAGS, offload_queue_max, "offloading_queue_limit", "50000", 1, 10000000,
	       "objects that may wait for a node's disk then"),
    MC_OPT_DOUBLE(FLAGS, offload_cap_ratio, "offload_cap_ratio", "0.5", 0.0, 1.0,
		  "share of them that one look for room asks for (4096 at most)"),
    MC_OPT_BOOL(FLAGS, offload_force_evict, "offload_force_evict", "0",
		"what is beyond that share leaves memory without having been on the disk"),
    MC_OPT_INT(FLAGS, tasks_finished_max, "max_total_finished_tasks", "10000", 1, 10000000,
	       "copy and move tasks that are remembered when they have ended"),
    MC_OPT_INT(FLAGS, tasks_pending_max, "max_total_pending_tasks", "10000", 1, 10000000,
	       "tasks that wait to begin: more are refused"),
    MC_OPT_INT(FLAGS, tasks_processing_max, "max_total_processing_tasks", "10000", 1, 10000000,
	       "tasks under way: more wait"),
    MC_OPT_INT(FLAGS, task_pending_s, "pending_task_timeout_sec", "300", 0, 31536000,
	       "a task that waits so long has failed; 0: never"),
    MC_OPT_INT(FLAGS, task_processing_s, "processing_task_timeout_sec", "300", 0, 31536000,
	       "a task under way for so long has failed; 0: never"),
    MC_OPT_INT(FLAGS, task_retries_max, "max_retry_attempts", "10", 0, 1000000,
	       "a copy that has no room, or whose owner is away, is tried again so often"),
    MC_OPT_BOOL(FLAGS, promotion_on_hit, "promotion_on_hit", "0",
		"what is often read from a disk becomes a replica in memory, else it only uses "
		"memory that nobody else wants"),
    MC_OPT_INT(FLAGS, promotion_threshold, "promotion_admission_threshold", "2", 1, 255,
	       "lookups lately that make it often; 1: the first"),
    MC_OPT_INT(FLAGS, promotion_beat_max, "promotion_max_per_heartbeat", "1", 1, 1000000,
	       "such objects of one node each second"),
    MC_OPT_INT(FLAGS, promotion_queue_max, "promotion_queue_limit", "50000", 1, 10000000,
	       "such objects on their way to memory"),
    MC_OPT_INT(
	FLAGS, repair_mib_per_s, "repair_mib_per_second", "256", 0, 1000000,
	"replicas that an owner's end took away are made again so fast, all owners together; "
	"0: no limit"),
    MC_OPT_STR(FLAGS, client_ttl, "client_ttl", "10",
	       "an owner that is silent for so long loses its replicas: seconds, or with ms s m h"),
    MC_OPT_STR(FLAGS, client_ttl, "client_live_ttl_sec", "10", "the same, as files spell it"),
};

#define NOT_HA "there is one master, and a restart of it loses nothing; start it again instead"
#define NOT_SNAPSHOT "a restart loses nothing without snapshots; see --state_dir"
#define NOT_QUOTA_FILE                                                                             \
	"quotas are set over HTTP (PUT /api/v1/tenant_quotas), and kept in --state_dir"
#define NOT_HERE "not in this build; leave it out"

/* Options of upstream's that nothing here needs, or that are refused. */
static const struct mc_args_other others[] = {
    {"enable_metric_reporting", true, NULL},
    {"rpc_thread_num", false, NULL},
    {"max_threads", false, NULL},
    {"rpc_interface", false, "give the interface's address as --rpc_address"},
    {"rpc_conn_timeout_seconds", false, NULL},
    {"rpc_enable_tcp_no_delay", true, NULL},
    {"enable_metadata_cleanup_on_timeout", true, NULL},
    {"put_start_discard_timeout_sec", false, NULL},
    {"put_start_release_timeout_sec", false, NULL},
    {"allocation_strategy", false, NULL},
    {"memory_allocator", false, NULL},
    {"use_mmap_arena_allocator", true, NULL},
    {"mmap_arena_pool_size", false, NULL},
    {"tenant_quota_connector_type", false, NULL},
    {"tenant_quota_connector_uri", false, NOT_QUOTA_FILE},
    {"enable_ha", true, NOT_HA},
    {"ha_backend_type", false, NOT_HA},
    {"ha_backend_connstring", false, NOT_HA},
    {"etcd_endpoints", false, NOT_HA},
    {"cluster_id", false, NULL},
    {"pod_name", false, NULL},
    {"pod_namespace", false, NULL},
    {"enable_oplog", true, NOT_HA},
    {"oplog_poll_interval_ms", false, NULL},
    {"oplog_batch_max_entries", false, NULL},
    {"batch_oplog_retry_timeout_sec", false, NULL},
    {"enable_snapshot", true, NOT_SNAPSHOT},
    {"enable_snapshot_restore", true, NOT_SNAPSHOT},
    {"snapshot_interval_seconds", false, NULL},
    {"snapshot_child_timeout_seconds", false, NULL},
    {"snapshot_retention_count", false, NULL},
    {"snapshot_object_store_type", false, NULL},
    {"snapshot_catalog_store_type", false, NULL},
    {"snapshot_catalog_store_connstring", false, NULL},
    {"snapshot_backup_dir", false, NOT_SNAPSHOT},
    {"enable_offload", true, NULL},
    {"quota_bytes", false, NULL},
    {"enable_disk_eviction", true, NULL},
    {"root_fs_dir", false, "a directory shared by all is not in this build; give nodes a disk"},
    {"global_file_segment_size", false, NULL},
    {"dynamic_replication_mode", false, NULL},
    {"dynamic_replication_heat_window_seconds", false, NULL},
    {"dynamic_replication_admission_qps_threshold", false, NULL},
    {"dynamic_replication_max_memory_replicas", false, NULL},
    {"nof_eviction_ratio", false, NULL},
    {"nof_eviction_high_watermark_ratio", false, NULL},
    {"nof_heartbeat_interval_sec", false, NULL},
    {"nof_heartbeat_probe_timeout_ms", false, NULL},
    {"nof_heartbeat_failures_threshold", false, NULL},
    {"enable_cxl", true, NOT_HERE},
    {"cxl_path", false, NOT_HERE},
    {"cxl_size", false, NULL},
    {"enable_kv_events", true, NOT_HERE},
    {"kv_events_bind_endpoint", false, NOT_HERE},
    {"kv_events_backend_id", false, NULL},
    {"kv_events_emit_legacy_compat", true, NULL},
    {"kv_events_emit_object_key", true, NULL},
    {"kv_events_queue_capacity", false, NULL},
    {NULL, false, NULL},
};

/* "10s", "500ms", "5m", "1h", or a number of `unit_ms`. */
static int duration_parse(const char *name, const char *text, uint64_t unit_ms, uint64_t min_ms,
			  uint64_t *ret_ms, struct mc_diag *diag)
{
	static const struct {
		const char *suffix;
		uint64_t ms;
	} units[] = {{"ms", 1}, {"s", 1000}, {"m", 60000}, {"h", 3600000}};
	size_t digits = strspn(text, "0123456789");
	char number[32];
	uint64_t n;

	if (text[digits])
		unit_ms = 0; /* unless it is one of these */
	for (size_t i = 0; i < MC_ARRAY_LEN(units); i++) {
		if (strcmp(text + digits, units[i].suffix) == 0)
			unit_ms = units[i].ms;
	}
	(void)mc_strlcpy(number, mc_min(digits + 1, sizeof(number)), text);
	if (unit_ms == 0 || mc_opt_parse_u64(number, &n) < 0 ||
	    __builtin_mul_overflow(n, unit_ms, ret_ms) || *ret_ms < min_ms ||
	    *ret_ms > 1000ull * 86400 * 365) {
		mc_diag_set(
		    diag,
		    "option '--%s': '%s' is no length of time (a number, maybe with ms, s, m "
		    "or h, at least %llu ms)",
		    name, text, (unsigned long long)min_ms);
		return -MC_E_INVAL;
	}
	return 0;
}

static int flags_check(struct mc_master_flags *f, struct mc_diag *diag)
{
	struct mc_master_conf *c = &f->conf;
	int rc;

	mc_master_conf_defaults(c);
	c->may_evict_soft_pins = f->may_evict_soft_pins;
	c->eviction_ratio = f->eviction_ratio;
	c->watermark = f->watermark;
	c->has_tenants = f->has_tenants;
	c->offload_on_evict = f->offload_on_evict;
	c->offload_queue_max = (uint32_t)f->offload_queue_max;
	c->offload_cap_ratio = f->offload_cap_ratio;
	c->offload_force_evict = f->offload_force_evict;
	c->tasks_finished_max = (uint32_t)f->tasks_finished_max;
	c->tasks_pending_max = (uint32_t)f->tasks_pending_max;
	c->tasks_processing_max = (uint32_t)f->tasks_processing_max;
	c->task_pending_ms = (uint64_t)f->task_pending_s * 1000;
	c->task_processing_ms = (uint64_t)f->task_processing_s * 1000;
	c->task_retries_max = (uint32_t)f->task_retries_max;
	c->promotion_on_hit = f->promotion_on_hit;
	c->promotion_threshold = (uint32_t)f->promotion_threshold;
	c->promotion_beat_max = (uint32_t)f->promotion_beat_max;
	c->promotion_queue_max = (uint32_t)f->promotion_queue_max;
	c->repair_bytes_per_s = (uint64_t)f->repair_mib_per_s << 20;
	if (f->rpc_port && f->port && f->rpc_port != f->port) {
		mc_diag_set(diag, "options '--rpc_port' and '--port' are the same thing, and say "
				  "different ports");
		return -MC_E_INVAL;
	}
	f->listen_port = (uint16_t)(f->rpc_port ? f->rpc_port : f->port ? f->port : PORT_DEFAULT);
	rc = duration_parse("default_kv_lease_ttl", f->lease_ttl, 1, 0, &c->lease_ms, diag);
	if (rc == 0)
		rc = duration_parse("default_kv_soft_pin_ttl", f->soft_pin_ttl, 1, 0,
				    &c->soft_pin_ms, diag);
	if (rc == 0)
		rc = duration_parse("max_kv_soft_pin_ttl", f->soft_pin_max, 1, 0,
				    &c->soft_pin_max_ms, diag);
	if (rc == 0)
		rc = duration_parse("client_ttl", f->client_ttl, 1000, MC_MASTER_TTL_MS_MIN,
				    &c->client_ttl_ms, diag);
	return rc;
}

int mc_master_flags_parse(int argc, char **argv, struct mc_master_flags *flags,
			  struct mc_diag *diag)
{
	int rc = mc_args_parse_file(table, MC_ARRAY_LEN(table), others, "config_path", argc, argv,
				    flags, diag);

	if (rc > 0)
		mc_args_help(table, MC_ARRAY_LEN(table),
			     "usage: mooncake_master [--rpc_port PORT]");
	return rc == 0 ? flags_check(flags, diag) : rc;
}
