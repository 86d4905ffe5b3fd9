/*
 * handshake.c: frames and bodies of the control port, pure, and its settings.
 */
#include "disco/handshake.h"

#include <stdlib.h>
#include <string.h>

#include "base/codec.h"
#include "base/json.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/opt.h"

#define PORT_MIN_DEFAULT 15000
#define PORT_MAX_DEFAULT 17000
/* Linux hands these out to outgoing connections, so a listener may find any of them taken. */
#define EPHEMERAL_MIN 32768
#define EPHEMERAL_MAX 60999

static const struct mc_opt conf_rows[] = {
    MC_OPT_INT(struct mc_hs_conf, port_default, "MC_HANDSHAKE_PORT", "12001", 1, 65535,
	       "control port of a name that has none"),
    MC_OPT_INT(struct mc_hs_conf, backlog, "MC_HANDSHAKE_LISTEN_BACKLOG", "128", 1, 65535,
	       "connections that may wait for accept"),
    MC_OPT_INT(struct mc_hs_conf, connect_timeout_s, "MC_HANDSHAKE_CONNECT_TIMEOUT", "5", 1, 3600,
	       "seconds for connecting to a control port"),
    MC_OPT_INT(struct mc_hs_conf, bytes_max, "MC_HANDSHAKE_MAX_LENGTH", "1048576", 1 << 20,
	       128 << 20, "bytes of a control message"),
    MC_OPT_INT(struct mc_hs_conf, port_min, "MC_MIN_RPC_PORT", "15000", 1024, 65535,
	       "first port tried for control and data"),
    MC_OPT_INT(struct mc_hs_conf, port_max, "MC_MAX_RPC_PORT", "17000", 1024, 65535,
	       "last port tried for control and data"),
    MC_OPT_BOOL(struct mc_hs_conf, is_legacy_port, "MC_LEGACY_RPC_PORT_BINDING", "0",
		"with a metadata service: bind the port of the server name"),
    MC_OPT_BOOL(struct mc_hs_conf, is_ipv6, "MC_USE_IPV6", "0", "prefer IPv6 addresses"),
    MC_OPT_STR(
	struct mc_hs_conf, bind_address, "MC_TCP_BIND_ADDRESS", "",
	"address advertised to peers, or listened on for a name that is not of this machine"),
};

/* Upstream once misspelt the names of the range and still takes them. */
static void load_misspelt(struct mc_hs_conf *conf)
{
	static const char *const names[][2] = {{"MC_MIN_RPC_PORT", "MC_MIN_PRC_PORT"},
					       {"MC_MAX_RPC_PORT", "MC_MAX_PRC_PORT"}};
	struct mc_diag diag;

	for (size_t i = 0; i < MC_ARRAY_LEN(names); i++) {
		const char *text = getenv(names[i][1]);

		if (!text || !text[0] || getenv(names[i][0]))
			continue;
		if (mc_opt_set(mc_opt_find(conf_rows, MC_ARRAY_LEN(conf_rows), names[i][0]), conf,
			       text, &diag) < 0)
			mc_log_warn("option has a wrong value", "name=%s value=%s", names[i][1],
				    text);
	}
}

static bool is_ephemeral(int64_t port)
{
	return port >= EPHEMERAL_MIN && port <= EPHEMERAL_MAX;
}

void mc_hs_conf_load(struct mc_hs_conf *conf)
{
	(void)mc_opt_load_env(conf_rows, MC_ARRAY_LEN(conf_rows), conf, NULL); /* logs by itself */
	load_misspelt(conf);
	if (conf->port_min <= conf->port_max && !is_ephemeral(conf->port_min) &&
	    !is_ephemeral(conf->port_max))
		return;
	mc_log_warn("port range is not usable, taking the default",
		    "MC_MIN_RPC_PORT=%lld MC_MAX_RPC_PORT=%lld reason=%s",
		    (long long)conf->port_min, (long long)conf->port_max,
		    conf->port_min > conf->port_max ? "empty" : "inside 32768-60999");
	conf->port_min = PORT_MIN_DEFAULT;
	conf->port_max = PORT_MAX_DEFAULT;
}

int mc_hs_frame_parse(const void *data, size_t len, size_t bytes_max, struct mc_hs_frame *ret_frame,
		      size_t *ret_need)
{
	struct mc_rd r = mc_rd_make(data, len);
	uint64_t body = mc_rd_u64(&r);
	const uint8_t *type = mc_rd_bytes(&r, 1);

	*ret_need = MC_HS_HEAD_BYTES;
	if (len >= 8 && body == 0)
		return -MC_E_PROTO;
	if (len >= 8 && body > bytes_max)
		return -MC_E_TOO_BIG;
	if (len >= 8)
		*ret_need = 8 + (size_t)body;
	if (!type || len < *ret_need)
		return 0;
	*ret_frame = (struct mc_hs_frame){.json = (const char *)type, .len = (size_t)body};
	ret_frame->is_legacy = type[0] >= MC_HS_TYPE_COUNT;
	ret_frame->type = ret_frame->is_legacy ? MC_HS_CONNECTION : (enum mc_hs_type)type[0];
	if (!ret_frame->is_legacy) {
		ret_frame->json++;
		ret_frame->len--;
	}
	return 1;
}

size_t mc_hs_head_put(uint8_t head[MC_HS_HEAD_BYTES], enum mc_hs_type type, bool is_legacy,
		      size_t json_len)
{
	struct mc_wr w = mc_wr_make(head, MC_HS_HEAD_BYTES);

	mc_wr_u64(&w, json_len + (is_legacy ? 0 : 1));
	if (!is_legacy)
		mc_wr_u8(&w, (uint8_t)type);
	return mc_wr_len(&w);
}

/* Copies a text that may hold NULs. */
static int notify_part(const json_t *root, const char *key, char **ret, size_t *ret_len,
		       struct mc_diag *diag)
{
	const char *text;
	int rc = mc_json_get_str(root, key, &text, diag);

	if (rc < 0)
		return rc;
	*ret_len = json_string_length(json_object_get(root, key));
	*ret = mc_calloc(*ret_len + 1, 1);
	if (!*ret)
		return -MC_E_NOMEM;
	memcpy(*ret, text, *ret_len);
	return 0;
}

int mc_hs_notify_decode(const char *json, size_t len, struct mc_hs_notify *ret,
			struct mc_diag *diag)
{
	struct mc_hs_notify n = {0};
	json_error_t err;
	json_t *root;
	int rc;

	/* Not mc_json_parse(): a message may hold "\u0000". Its length and depth are bounded by the
	 * frame and by jansson. */
	root = json_loadb(json, len, JSON_ALLOW_NUL, &err);
	if (!root) {
		mc_diag_set(diag, "notification is not JSON: %s", err.text);
		return json_error_code(&err) == json_error_out_of_memory ? -MC_E_NOMEM
									 : -MC_E_PROTO;
	}
	rc = notify_part(root, "name", &n.name, &n.name_len, diag);
	if (rc == 0)
		rc = notify_part(root, "notify_msg", &n.msg, &n.msg_len, diag);
	json_decref(root);
	if (rc < 0) {
		mc_diag_wrap(diag, "notification");
		mc_hs_notify_fini(&n);
		return rc;
	}
	*ret = n;
	return 0;
}

void mc_hs_notify_fini(struct mc_hs_notify *n)
{
	mc_free(n->name);
	mc_free(n->msg);
	*n = (struct mc_hs_notify){0};
}

/* Text of an object that this takes over; NULL without memory. */
static char *dump_and_drop(json_t *root)
{
	struct mc_str text;

	mc_str_init(&text, MC_HS_REPLY_MAX);
	if (!root || mc_json_dump(root, &text) < 0) {
		json_decref(root);
		mc_str_fini(&text);
		return NULL;
	}
	json_decref(root);
	return mc_str_take(&text);
}

int mc_hs_notify_encode(const void *name, size_t name_len, const void *msg, size_t msg_len,
			char **ret_json, struct mc_diag *diag)
{
	json_t *n = json_stringn(name, name_len), *m = json_stringn(msg, msg_len);
	json_t *root = NULL;

	if (!n || !m) {
		mc_diag_set(diag, "%s of the notification is not UTF-8", n ? "text" : "name");
		json_decref(n);
		json_decref(m);
		return -MC_E_INVAL;
	}
	root = json_pack("{s:o, s:o}", "name", n, "notify_msg", m);
	*ret_json = dump_and_drop(root);
	return *ret_json ? 0 : -MC_E_NOMEM;
}

char *mc_hs_reject_encode(const char *reason)
{
	/* Every member that upstream's decoder of the reply looks at. */
	return dump_and_drop(json_pack("{s:s, s:i, s:s, s:s, s:s, s:[], s:s}", "local_gid", "",
				       "local_lid", 0, "local_nic_path", "", "payload", "",
				       "peer_nic_path", "", "qp_num", "reply_msg", reason));
}
