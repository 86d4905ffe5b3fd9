/*
 * meta.c: choosing the service, upstream's keys and values.
 *
 * mooncake/[cluster/]ram/<segment>         the descriptor; a name with '/' goes without "ram/"
 * mooncake/[cluster/]rpc_meta/<server>     {"ip_or_host_name": …, "rpc_port": …}
 */
#include "disco/meta.h"

#include <string.h>

#include "base/clock.h"
#include "base/json.h"
#include "base/mem.h"
#include "base/opt.h"
#include "disco/meta_ops.h"

#define CALL_NS (3 * MC_NS_PER_S)
#define KEY_MAX 4096u

static const struct mc_opt conf_rows[] = {
    MC_OPT_STR(struct mc_meta_conf, cluster, "MC_METADATA_CLUSTER_ID", "",
	       "part of every key in the metadata service"),
    MC_OPT_STR(struct mc_meta_conf, redis_username, "MC_REDIS_USERNAME", "", "Redis user"),
    MC_OPT_STR(struct mc_meta_conf, redis_password, "MC_REDIS_PASSWORD", "", "Redis password"),
    MC_OPT_INT(struct mc_meta_conf, redis_db, "MC_REDIS_DB_INDEX", "0", 0, 255, "Redis database"),
    MC_OPT_INT(struct mc_meta_conf, refresh_s, "MC_METADATA_REFRESH", "10", 0, 86400,
	       "seconds between looks whether the service still lists this process; 0: never"),
};

void mc_meta_conf_load(struct mc_meta_conf *conf)
{
	(void)mc_opt_load_env(conf_rows, MC_ARRAY_LEN(conf_rows), conf, NULL); /* logs by itself */
}

bool mc_meta_is_p2p(const char *conn)
{
	return strcmp(conn, "P2PHANDSHAKE") == 0;
}

static int open_service(const char *conn, const struct mc_meta_conf *conf, struct mc_meta **ret,
			struct mc_diag *diag)
{
	const char *scheme_end = strstr(conn, "://");

	if (strncmp(conn, "http://", 7) == 0 || strncmp(conn, "https://", 8) == 0)
		return mc_meta_http_open(conn, ret, diag);
	if (strncmp(conn, "redis://", 8) == 0)
		return mc_meta_redis_open(conn + 8, conf, ret, diag);
	if (strncmp(conn, "etcd://", 7) == 0)
		return mc_meta_etcd_open(conn + 7, ret, diag);
	if (!scheme_end && conn[0])
		return mc_meta_etcd_open(conn, ret, diag);
	mc_diag_set(diag,
		    "\"%.200s\" is neither P2PHANDSHAKE nor http://, https://, etcd:// or redis://",
		    conn);
	return -MC_E_INVAL;
}

int mc_meta_open(const char *conn, const struct mc_meta_conf *conf, struct mc_meta **ret,
		 struct mc_diag *diag)
{
	size_t len = strlen(conf->cluster);
	struct mc_str prefix;
	struct mc_meta *meta;
	int rc = open_service(conn, conf, &meta, diag);

	if (rc < 0) {
		mc_diag_wrap(diag, "metadata service");
		return rc;
	}
	mc_str_init(&prefix, sizeof(meta->prefix) - 1);
	mc_str_appendf(&prefix, "mooncake/%s%s", conf->cluster,
		       len && conf->cluster[len - 1] != '/' ? "/" : "");
	rc = prefix.rc;
	if (rc == 0)
		memcpy(meta->prefix, prefix.text, prefix.len + 1);
	mc_str_fini(&prefix);
	if (rc < 0) {
		mc_meta_close(meta);
		return rc;
	}
	*ret = meta;
	return 0;
}

void mc_meta_close(struct mc_meta *meta)
{
	if (meta)
		meta->ops->close(meta);
}

static int key_of(const struct mc_meta *meta, const char *kind, const char *name, char **ret,
		  struct mc_diag *diag)
{
	if (!name[0] || strlen(name) > KEY_MAX) {
		mc_diag_set(diag, "name of a %s has %zu bytes, not 1 to %u", kind, strlen(name),
			    KEY_MAX);
		return -MC_E_INVAL;
	}
	*ret = mc_asprintf("%s%s%s%s", meta->prefix, kind, kind[0] ? "/" : "", name);
	return *ret ? 0 : -MC_E_NOMEM;
}

static int segment_key(const struct mc_meta *meta, const char *segment, char **ret,
		       struct mc_diag *diag)
{
	return key_of(meta, strchr(segment, '/') ? "" : "ram", segment, ret, diag);
}

static uint64_t cap(uint64_t deadline_ns)
{
	uint64_t own = mc_time_after(mc_now_ns(), CALL_NS);

	return mc_min(own, deadline_ns);
}

static int key_get(struct mc_meta *meta, const char *key, uint64_t deadline_ns, char **ret,
		   size_t *ret_len, struct mc_diag *diag)
{
	int rc = meta->ops->get(meta, key, cap(deadline_ns), ret, ret_len, diag);

	if (rc == -MC_E_NOENT)
		mc_diag_set(diag, "not found");
	if (rc < 0)
		mc_diag_wrap(diag, "metadata get \"%.100s\"", key);
	return rc;
}

static int key_put(struct mc_meta *meta, const char *key, const char *val, size_t len,
		   uint64_t deadline_ns, struct mc_diag *diag)
{
	int rc = meta->ops->put(meta, key, val, len, cap(deadline_ns), diag);

	if (rc < 0)
		mc_diag_wrap(diag, "metadata put \"%.100s\"", key);
	return rc;
}

static int key_del(struct mc_meta *meta, const char *key, uint64_t deadline_ns,
		   struct mc_diag *diag)
{
	int rc = meta->ops->del(meta, key, cap(deadline_ns), diag);

	if (rc == -MC_E_NOENT)
		return 0;
	if (rc < 0)
		mc_diag_wrap(diag, "metadata delete \"%.100s\"", key);
	return rc;
}

int mc_meta_segment_get(struct mc_meta *meta, const char *segment, uint64_t deadline_ns,
			char **ret_json, size_t *ret_len, struct mc_diag *diag)
{
	char *key;
	int rc = segment_key(meta, segment, &key, diag);

	if (rc < 0)
		return rc;
	rc = key_get(meta, key, deadline_ns, ret_json, ret_len, diag);
	mc_free(key);
	return rc;
}

int mc_meta_segment_put(struct mc_meta *meta, const char *segment, const char *json, size_t len,
			uint64_t deadline_ns, struct mc_diag *diag)
{
	char *key;
	int rc = segment_key(meta, segment, &key, diag);

	if (rc < 0)
		return rc;
	rc = key_put(meta, key, json, len, deadline_ns, diag);
	mc_free(key);
	return rc;
}

int mc_meta_segment_del(struct mc_meta *meta, const char *segment, uint64_t deadline_ns,
			struct mc_diag *diag)
{
	char *key;
	int rc = segment_key(meta, segment, &key, diag);

	if (rc < 0)
		return rc;
	rc = key_del(meta, key, deadline_ns, diag);
	mc_free(key);
	return rc;
}

static int rpc_decode(const char *json, size_t len, struct mc_meta_rpc *ret, struct mc_diag *diag)
{
	static const struct mc_json_limits limits = {.bytes_max = 65536, .depth_max = 8};
	struct mc_meta_rpc rpc;
	const char *host;
	uint64_t port;
	json_t *root;
	int rc = mc_json_parse(json, len, &limits, &root, diag);

	if (rc < 0)
		return rc;
	rc = mc_json_get_str(root, "ip_or_host_name", &host, diag);
	if (rc == 0)
		rc = mc_json_get_u64(root, "rpc_port", UINT16_MAX, &port, diag);
	if (rc == 0 && (!host[0] || !port || mc_strlcpy(rpc.host, sizeof(rpc.host), host) < 0)) {
		mc_diag_set(diag, "\"%.100s\" port %llu is no address", host,
			    (unsigned long long)port);
		rc = -MC_E_PROTO;
	}
	json_decref(root);
	if (rc < 0)
		return rc;
	rpc.port = (uint16_t)port;
	*ret = rpc;
	return 0;
}

int mc_meta_rpc_get(struct mc_meta *meta, const char *server, uint64_t deadline_ns,
		    struct mc_meta_rpc *ret, struct mc_diag *diag)
{
	char *key, *json;
	size_t len;
	int rc = key_of(meta, "rpc_meta", server, &key, diag);

	if (rc < 0)
		return rc;
	rc = key_get(meta, key, deadline_ns, &json, &len, diag);
	if (rc == 0) {
		rc = rpc_decode(json, len, ret, diag);
		if (rc < 0)
			mc_diag_wrap(diag, "metadata \"%.100s\"", key);
		mc_free(json);
	}
	mc_free(key);
	return rc;
}

int mc_meta_rpc_put(struct mc_meta *meta, const char *server, const struct mc_meta_rpc *rpc,
		    uint64_t deadline_ns, struct mc_diag *diag)
{
	json_t *root;
	struct mc_str text;
	char *key;
	int rc = key_of(meta, "rpc_meta", server, &key, diag);

	if (rc < 0)
		return rc;
	mc_str_init(&text, 4096);
	root = json_pack("{s:s, s:i}", "ip_or_host_name", rpc->host, "rpc_port", (int)rpc->port);
	rc = root ? mc_json_dump(root, &text) : -MC_E_NOMEM;
	json_decref(root);
	if (rc == 0)
		rc = key_put(meta, key, text.text, text.len, deadline_ns, diag);
	if (rc == -MC_E_EXIST) {
		/* Upstream's server never replaces such a key, so a process that was killed would
		 * keep its successor out. */
		rc = key_del(meta, key, deadline_ns, diag);
		if (rc == 0)
			rc = key_put(meta, key, text.text, text.len, deadline_ns, diag);
	}
	mc_str_fini(&text);
	mc_free(key);
	return rc;
}

int mc_meta_rpc_del(struct mc_meta *meta, const char *server, uint64_t deadline_ns,
		    struct mc_diag *diag)
{
	char *key;
	int rc = key_of(meta, "rpc_meta", server, &key, diag);

	if (rc < 0)
		return rc;
	rc = key_del(meta, key, deadline_ns, diag);
	mc_free(key);
	return rc;
}
