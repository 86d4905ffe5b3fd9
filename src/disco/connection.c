/*
 * connection.c: Connection messages to and from JSON, names of devices, GIDs as text.
 */
#include "disco/connection.h"

#include <stdio.h>
#include <string.h>

#include "base/json.h"
#include "base/mem.h"

static int hex_value(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

int mc_gid_parse(const char *text, uint8_t ret[16])
{
	uint8_t gid[16];

	for (size_t i = 0; i < sizeof(gid); i++, text += 3) {
		int high = hex_value(text[0]), low = high < 0 ? -1 : hex_value(text[1]);

		if (low < 0 || text[2] != (i + 1 < sizeof(gid) ? ':' : '\0'))
			return -MC_E_PROTO;
		gid[i] = (uint8_t)(high << 4 | low);
	}
	memcpy(ret, gid, sizeof(gid));
	return 0;
}

const char *mc_gid_format(const uint8_t gid[16], char buf[MC_GID_TEXT_MAX])
{
	for (size_t i = 0; i < 16; i++)
		(void)snprintf(buf + i * 3, 4, i < 15 ? "%02x:" : "%02x", gid[i]);
	return buf;
}

int mc_nic_path_split(const char *path, struct mc_view *ret_server, struct mc_view *ret_device)
{
	const char *at = strrchr(path, '@');

	if (!at || at == path || !at[1])
		return -MC_E_PROTO;
	*ret_server = (struct mc_view){path, (size_t)(at - path)};
	*ret_device = (struct mc_view){at + 1, strlen(at + 1)};
	return 0;
}

int mc_nic_path_join(const char *server, const char *device, char ret[MC_NIC_PATH_MAX])
{
	int n = snprintf(ret, MC_NIC_PATH_MAX, "%s@%s", server, device);

	return n < 0 || n >= (int)MC_NIC_PATH_MAX ? -MC_E_TOO_BIG : 0;
}

/* ---- decoding ---- */

static int take_path(const json_t *root, const char *key, char ret[MC_NIC_PATH_MAX],
		     struct mc_diag *diag)
{
	const char *text;
	int rc = mc_json_get_str(root, key, &text, diag);

	if (rc == 0 && mc_strlcpy(ret, MC_NIC_PATH_MAX, text) < 0) {
		mc_diag_set(diag, "\"%s\" is longer than %u bytes", key, MC_NIC_PATH_MAX - 1);
		rc = -MC_E_TOO_BIG;
	}
	return rc;
}

static int take_address(const json_t *root, struct mc_connection *c, struct mc_diag *diag)
{
	uint64_t lid = 0;
	const char *gid = "";
	int rc = 0;

	if (mc_json_has(root, "local_lid"))
		rc = mc_json_get_u64(root, "local_lid", UINT16_MAX, &lid, diag);
	if (rc == 0 && mc_json_has(root, "local_gid"))
		rc = mc_json_get_str(root, "local_gid", &gid, diag);
	if (rc < 0)
		return rc;
	c->lid = (uint16_t)lid;
	c->has_gid = gid[0] != '\0';
	if (c->has_gid && mc_gid_parse(gid, c->gid) < 0) {
		mc_diag_set(diag, "\"local_gid\" \"%.64s\" is not 16 bytes \"aa:bb:…\"", gid);
		return -MC_E_PROTO;
	}
	return 0;
}

/* A refusal may come without any: null or no member. */
static int take_qps(const json_t *root, struct mc_connection *c, struct mc_diag *diag)
{
	json_t *arr;
	int rc;

	if (!mc_json_has(root, "qp_num"))
		return 0;
	rc = mc_json_get_array(root, "qp_num", MC_CONNECTION_QPS_MAX, &arr, diag);
	if (rc < 0)
		return rc;
	for (size_t i = 0; i < json_array_size(arr); i++) {
		const json_t *v = json_array_get(arr, i);

		/* A queue pair's number has 24 bits. */
		if (!json_is_integer(v) || json_integer_value(v) < 0 ||
		    json_integer_value(v) > 0xffffff) {
			mc_diag_set(diag, "\"qp_num\"[%zu] is no number of a queue pair", i);
			return -MC_E_PROTO;
		}
		c->qpn[c->nqps++] = (uint32_t)json_integer_value(v);
	}
	return 0;
}

static int decode_root(const json_t *root, struct mc_connection *c, struct mc_diag *diag)
{
	const char *reason = "";
	int rc;

	if ((rc = take_path(root, "local_nic_path", c->local_nic, diag)) < 0 ||
	    (rc = take_path(root, "peer_nic_path", c->peer_nic, diag)) < 0 ||
	    (rc = take_address(root, c, diag)) < 0 || (rc = take_qps(root, c, diag)) < 0)
		return rc;
	c->has_ready_ack = json_object_get(root, "ready_ack") != NULL;
	c->is_ready = json_is_true(json_object_get(root, "ready_ack"));
	if (mc_json_has(root, "reply_msg"))
		rc = mc_json_get_str(root, "reply_msg", &reason, diag);
	if (rc == 0)
		(void)mc_strlcpy(c->reason, sizeof(c->reason), reason); /* cut: it is for people */
	return rc;
}

int mc_connection_decode(const char *json, size_t len, struct mc_connection *ret,
			 struct mc_diag *diag)
{
	static const struct mc_json_limits limits = {.bytes_max = MC_CONNECTION_BYTES_MAX,
						     .depth_max = 8};
	struct mc_connection c = {0};
	json_t *root;
	int rc = mc_json_parse(json, len, &limits, &root, diag);

	if (rc == 0) {
		rc = decode_root(root, &c, diag);
		json_decref(root);
	}
	if (rc < 0) {
		mc_diag_wrap(diag, "connection message");
		return rc;
	}
	*ret = c;
	return 0;
}

/* ---- encoding ---- */

static json_t *qps_of(const struct mc_connection *c)
{
	json_t *arr = json_array();

	for (uint32_t i = 0; i < c->nqps && arr; i++) {
		if (json_array_append_new(arr, json_integer(c->qpn[i])) < 0) {
			json_decref(arr);
			arr = NULL;
		}
	}
	return arr;
}

static bool is_text(const char *text)
{
	json_t *v = json_string(text);

	json_decref(v);
	return v != NULL;
}

int mc_connection_encode(const struct mc_connection *c, char **ret_json, size_t *ret_len)
{
	char gid[MC_GID_TEXT_MAX] = "";
	struct mc_str text;
	json_t *root;
	int rc = -MC_E_NOMEM;

	mc_assert(c->nqps <= MC_CONNECTION_QPS_MAX);
	if (!is_text(c->local_nic) || !is_text(c->peer_nic) || !is_text(c->reason))
		return -MC_E_INVAL;
	if (c->has_gid)
		(void)mc_gid_format(c->gid, gid);
	/* "o" takes the array over, also when packing fails; without an array it fails. */
	root = json_pack("{s:s, s:i, s:s, s:s, s:s, s:o, s:s}", "local_gid", gid, "local_lid",
			 c->lid, "local_nic_path", c->local_nic, "payload", "", "peer_nic_path",
			 c->peer_nic, "qp_num", qps_of(c), "reply_msg", c->reason);
	mc_str_init(&text, MC_CONNECTION_BYTES_MAX);
	if (root && (!c->has_ready_ack ||
		     json_object_set_new(root, "ready_ack", json_boolean(c->is_ready)) == 0))
		rc = mc_json_dump(root, &text);
	json_decref(root);
	if (rc == 0) {
		*ret_len = text.len;
		*ret_json = mc_str_take(&text);
	}
	mc_str_fini(&text);
	return rc;
}
