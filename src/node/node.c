/*
 * node.c: engine, owner, disk, HTTP and dummy clients of a node. The last two have a loop of their
 * own, so that no scrape delays the owner's calls.
 */
#include "node/node.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include <mooncake/engine.h>

#include "base/log.h"
#include "base/mem.h"
#include "base/str.h"
#include "io/http_server.h"
#include "owner/dummies.h"
#include "owner/owner.h"
#include "ssd/ssd.h"

#define TEXT_MAX (4u << 20)

struct mc_node {
	struct mc_engine *engine;
	struct mc_owner *owner;
	struct mc_ssd *ssd;   /* NULL: none */
	struct mc_loop *side; /* of the next two */
	struct mc_http_server *http;
	struct mc_dummies *dummies; /* NULL: none are served */
};

static void metric(struct mc_str *out, const char *name, const char *type, const char *help,
		   uint64_t value)
{
	(void)mc_str_appendf(out, "# HELP %s %s\n# TYPE %s %s\n%s %" PRIu64 "\n", name, help, name,
			     type, name, value); /* errors stick */
}

static void disk_metrics(struct mc_node *node, const struct mc_owner_stats *s, struct mc_str *out)
{
	struct mc_ssd_stats d;

	mc_ssd_stats(node->ssd, &d);
	metric(out, "mc_disk_capacity_bytes", "gauge", "Room for objects.", s->disk_capacity);
	metric(out, "mc_disk_live_bytes", "gauge", "Records of objects.", d.live_bytes);
	metric(out, "mc_disk_file_bytes", "gauge", "All segment files.", d.segment_bytes);
	metric(out, "mc_disk_quota_bytes", "gauge", "What they may take.", d.quota_bytes);
	metric(out, "mc_disk_objects", "gauge", "Objects on the disk.", s->disk_records);
	metric(out, "mc_disk_guest_bytes", "gauge",
	       "Memory that holds what was read from the disk, until somebody wants room.",
	       s->guests);
	metric(out, "mc_disk_read_only", "gauge", "The log takes nothing more.", d.is_read_only);
	metric(out, "mc_disk_writes_total", "counter", "Objects written.", s->disk_writes);
	metric(out, "mc_disk_reads_total", "counter", "Objects brought back.", s->disk_reads);
	metric(out, "mc_disk_deletes_total", "counter", "Objects deleted.", s->disk_deletes);
	metric(out, "mc_disk_failures_total", "counter", "Objects that stayed in memory alone.",
	       s->disk_failures);
	metric(out, "mc_disk_bad_reads_total", "counter", "Reads that failed their check.",
	       d.bad_reads);
	metric(out, "mc_disk_bad_records_total", "counter", "Damaged places in the log.",
	       d.bad_records);
	metric(out, "mc_disk_compactions_total", "counter", "Segments compacted.", d.compactions);
}

static void dummy_metrics(struct mc_node *node, struct mc_str *out)
{
	struct mc_dummies_stats d;

	mc_dummies_stats(node->dummies, &d);
	metric(out, "mc_node_dummies", "gauge", "Dummy clients that are there.", d.now);
	metric(out, "mc_node_dummies_total", "counter", "Dummy clients that came.", d.total);
	metric(out, "mc_node_dummies_refused_total", "counter",
	       "Calls on their socket that were refused.", d.refused);
}

char *mc_node_metrics(struct mc_node *node)
{
	struct mc_owner_stats s;
	struct mc_str out;
	char *engine = mc_metrics_text(node->engine);

	mc_owner_stats(node->owner, &s);
	mc_str_init(&out, TEXT_MAX);
	if (engine)
		(void)mc_str_puts(&out, engine);
	mc_text_free(engine);
	metric(&out, "mc_owner_capacity_bytes", "gauge", "Memory of the pool.", s.capacity);
	metric(&out, "mc_owner_used_bytes", "gauge", "Memory of slots.", s.used);
	metric(&out, "mc_owner_largest_free_bytes", "gauge", "Largest free range.", s.largest);
	metric(&out, "mc_owner_slots", "gauge", "Sealed slots.", s.sealed);
	metric(&out, "mc_owner_grants", "gauge", "Granted slots that are not sealed.", s.granted);
	metric(&out, "mc_owner_waiting", "gauge", "Calls that wait for room.", s.waiting);
	metric(&out, "mc_owner_adopted", "gauge", "The master knows all slots.", s.is_adopted);
	metric(&out, "mc_owner_master_epoch", "gauge", "Highest epoch of a master.", s.epoch);
	metric(&out, "mc_owner_puts_total", "counter", "Objects put inline.", s.puts);
	metric(&out, "mc_owner_put_bytes_total", "counter", "Their bytes.", s.bytes_put);
	metric(&out, "mc_owner_grants_total", "counter", "Slots granted.", s.grants);
	metric(&out, "mc_owner_seals_total", "counter", "Slots sealed.", s.seals);
	metric(&out, "mc_owner_frees_total", "counter", "Slots freed by the master.", s.frees);
	metric(&out, "mc_owner_drops_total", "counter", "Slots given up by writers.", s.drops);
	metric(&out, "mc_owner_refused_total", "counter", "Puts and grants refused.", s.refused);
	metric(&out, "mc_owner_orphans_total", "counter", "Grants of writers that were gone.",
	       s.orphans);
	metric(&out, "mc_owner_orders_total", "counter", "Orders of the master.", s.orders);
	metric(&out, "mc_owner_connects_total", "counter", "Times a master welcomed it.",
	       s.connects);
	if (node->ssd)
		disk_metrics(node, &s, &out);
	if (node->dummies)
		dummy_metrics(node, &out);
	return mc_str_take(&out);
}

static char *summary(struct mc_node *node)
{
	struct mc_owner_stats s;

	mc_owner_stats(node->owner, &s);
	return mc_asprintf("objects %" PRIu64 ", memory %" PRIu64 " of %" PRIu64
			   " bytes, waiting %" PRIu64 ", disk %" PRIu64 " of %" PRIu64
			   " bytes, %s\n",
			   s.sealed, s.used, s.capacity, s.waiting, s.disk_used, s.disk_capacity,
			   s.is_adopted ? "known to a master" : "not known to a master");
}

static void on_get(void *user, const char *path, struct mc_http_answer *ret)
{
	struct mc_node *node = user;

	ret->type = "text/plain; charset=utf-8";
	if (strcmp(path, "/metrics") == 0) {
		ret->body = mc_node_metrics(node);
		ret->type = "text/plain; version=0.0.4; charset=utf-8";
		ret->status = 200;
	} else if (strcmp(path, "/health") == 0) {
		bool is_adopted = mc_owner_is_adopted(node->owner);

		ret->body = mc_strdup(is_adopted ? "{\"status\":\"healthy\",\"code\":0}\n"
						 : "{\"status\":\"unhealthy\",\"code\":1,"
						   "\"reason\":\"no master knows this node\"}\n");
		ret->type = "application/json";
		ret->status = is_adopted ? 200 : 503;
	} else if (strcmp(path, "/metrics/summary") == 0) {
		ret->body = summary(node);
		ret->status = 200;
	} else {
		ret->body = mc_strdup("there are /metrics, /metrics/summary and /health here\n");
		ret->status = 404;
	}
	if (!ret->body)
		ret->status = 500;
	ret->len = ret->body ? strlen(ret->body) : 0;
}

static int http_open(struct mc_node *node, const struct mc_node_conf *conf, struct mc_diag *diag)
{
	struct mc_addr at;
	int rc = mc_addr_resolve(conf->http_host, conf->http_port, &at, diag);

	if (rc == 0)
		rc = mc_http_server_open(node->side, &at, on_get, node, &node->http, diag);
	if (rc < 0)
		mc_diag_wrap(diag, "HTTP at %s, port %u", conf->http_host, conf->http_port);
	return rc;
}

/* They reach the cluster as the node does, from the same address. */
static int dummies_open(struct mc_node *node, const struct mc_node_conf *conf, struct mc_diag *diag)
{
	char name[64];
	const struct mc_dummies_conf c = {.socket = name,
					  .engine = node->engine,
					  .master = conf->master,
					  .metadata = conf->metadata,
					  .protocol = conf->protocol,
					  .devices = conf->devices,
					  .tenant = conf->tenant};
	int rc;

	(void)snprintf(name, sizeof(name), MC_ST_DUMMY_SOCKET, conf->dummy_port);
	rc = mc_dummies_open(node->side, &c, diag, &node->dummies);
	if (rc != -MC_E_ADDR_IN_USE)
		return rc;
	mc_log_warn("another process of this host serves dummy clients under this number; this one "
		    "serves none",
		    "port=%u hint=--port", conf->dummy_port);
	return 0;
}

static int side_open(struct mc_node *node, const struct mc_node_conf *conf, struct mc_diag *diag)
{
	int rc = mc_loop_open("mc-node-side", mc_env_real.clk, &node->side);

	if (rc == 0)
		rc = mc_loop_start(node->side);
	if (rc == 0 && conf->has_http)
		rc = http_open(node, conf, diag);
	if (rc == 0 && conf->dummy_port)
		rc = dummies_open(node, conf, diag);
	return rc;
}

static int owner_open(struct mc_node *node, const struct mc_node_conf *conf, struct mc_diag *diag)
{
	struct mc_owner_opts opts = {.engine = node->engine,
				     .bytes = conf->segment_bytes,
				     .master = conf->master,
				     .protocol = conf->protocol};
	int rc = 0;

	if (conf->disk_path)
		rc = mc_ssd_open(conf->disk_path, conf->disk_bytes, diag, &node->ssd);
	if (rc < 0)
		return rc;
	if (node->ssd) {
		opts.id = mc_ssd_owner_id(node->ssd);
		opts.epoch = mc_ssd_epoch(node->ssd);
		opts.disk_bytes = mc_ssd_capacity(node->ssd);
	}
	rc = mc_owner_open(&opts, diag, &node->owner);
	if (rc < 0 || !node->ssd)
		return rc;
	rc = mc_ssd_start(node->ssd, node->owner);
	if (rc < 0)
		mc_diag_set(diag, "SSD directory %s: %s", conf->disk_path, mc_err_text(rc));
	else
		mc_owner_start(node->owner);
	return rc;
}

int mc_node_open(const struct mc_node_conf *conf, struct mc_diag *diag, struct mc_node **ret)
{
	struct mc_node *node = mc_calloc(1, sizeof(*node));
	const struct mc_engine_opts engine = {.size = sizeof(engine),
					      .name = conf->name,
					      .metadata = conf->metadata,
					      .protocol = conf->protocol,
					      .devices = conf->devices,
					      .is_one_of_many = true};
	int rc;

	if (!node)
		return -MC_E_NOMEM;
	rc = mc_engine_open(&engine, diag, &node->engine);
	if (rc < 0)
		goto fail;
	rc = owner_open(node, conf, diag);
	if (rc < 0)
		goto fail;
	if (conf->has_http || conf->dummy_port)
		rc = side_open(node, conf, diag);
	if (rc < 0)
		goto fail;
	*ret = node;
	return 0;
fail:
	mc_node_close(node);
	return rc;
}

void mc_node_close(struct mc_node *node)
{
	if (!node)
		return;
	mc_http_server_close(node->http);
	mc_dummies_close(node->dummies);
	mc_loop_close(node->side);
	mc_ssd_stop(node->ssd);
	mc_owner_close(node->owner);
	mc_ssd_close(node->ssd);
	mc_engine_close(node->engine);
	mc_free(node);
}

const char *mc_node_segment(const struct mc_node *node)
{
	return mc_engine_name(node->engine);
}

const char *mc_node_address(const struct mc_node *node)
{
	return mc_owner_address(node->owner);
}

uint16_t mc_node_http_port(const struct mc_node *node)
{
	return node->http ? mc_http_server_port(node->http) : 0;
}

bool mc_node_is_adopted(struct mc_node *node)
{
	return mc_owner_is_adopted(node->owner);
}
