/*
 * handshake_client.c: one blocking request to a peer's control port. For threads that may wait:
 * opening a segment, sending a notification to an upstream peer, a probe.
 */
#include "disco/handshake.h"

#include <poll.h>
#include <string.h>

#include "base/clock.h"
#include "base/json.h"
#include "base/mem.h"
#include "io/sock.h"

#define GROW_BYTES 65536u

static int connect_to(const struct mc_hs_conf *conf, const char *peer, uint64_t deadline_ns,
		      int *ret_fd, struct mc_diag *diag)
{
	uint64_t limit = mc_time_after(mc_now_ns(), conf->connect_timeout_s * MC_NS_PER_S);
	struct mc_addr addr;
	int fd = -1, rc;

	rc = mc_addr_resolve(peer, (uint16_t)conf->port_default, &addr, diag);
	if (rc < 0)
		return rc;
	rc = mc_sock_connect(&addr, NULL, &fd);
	if (rc == 0)
		rc = mc_sock_wait(fd, POLLOUT, mc_min(limit, deadline_ns));
	if (rc == 0)
		rc = mc_sock_connect_result(fd);
	if (rc < 0) {
		mc_diag_set(diag, "connect: %s", mc_err_text(rc));
		mc_fd_close(&fd);
		return rc;
	}
	(void)mc_sock_nodelay(fd); /* only latency depends on it */
	*ret_fd = fd;
	return 0;
}

static int send_request(int fd, enum mc_hs_type type, const char *json, uint64_t deadline_ns)
{
	uint8_t head[MC_HS_HEAD_BYTES];
	size_t len = strlen(json), head_len = mc_hs_head_put(head, type, false, len);
	int rc = mc_sock_send_all(fd, head, head_len, deadline_ns);

	return rc < 0 ? rc : mc_sock_send_all(fd, json, len, deadline_ns);
}

/* Memory grows with what has come, so that a length alone costs nothing. */
static int recv_body(int fd, size_t len, uint64_t deadline_ns, char **ret)
{
	size_t cap = 0, have = 0, part;
	void *body = NULL;
	int rc = 0;

	while (rc == 0 && have < len) {
		part = mc_max(have, (size_t)GROW_BYTES);
		part = mc_min(len - have, part);
		rc = mc_array_grow(&body, &cap, have + part + 1, (size_t)MC_HS_REPLY_MAX + 1, 1);
		if (rc == 0)
			rc = mc_sock_recv_all(fd, (char *)body + have, part, deadline_ns);
		have += part;
	}
	if (rc == 0 && !body)
		rc = mc_array_grow(&body, &cap, 1, 1, 1);
	if (rc < 0) {
		mc_free(body);
		return rc;
	}
	((char *)body)[len] = '\0';
	*ret = body;
	return 0;
}

static int recv_reply(int fd, enum mc_hs_type type, uint64_t deadline_ns, char **ret_json,
		      size_t *ret_len, struct mc_diag *diag)
{
	uint8_t head[MC_HS_HEAD_BYTES];
	struct mc_hs_frame frame;
	size_t need;
	int rc = mc_sock_recv_all(fd, head, sizeof(head), deadline_ns);

	if (rc < 0)
		return rc;
	rc = mc_hs_frame_parse(head, sizeof(head), MC_HS_REPLY_MAX, &frame, &need);
	if (rc < 0) {
		mc_diag_set(diag, "reply has a wrong length");
		return rc;
	}
	if (head[8] != (uint8_t)type) {
		mc_diag_set(diag, "reply to a request of type %d has type %u", (int)type, head[8]);
		return -MC_E_PROTO;
	}
	rc = recv_body(fd, need - sizeof(head), deadline_ns, ret_json);
	if (rc == 0)
		*ret_len = need - sizeof(head);
	return rc;
}

int mc_handshake_call(const struct mc_hs_conf *conf, const char *peer, enum mc_hs_type type,
		      const char *json, uint64_t deadline_ns, char **ret_json, size_t *ret_len,
		      struct mc_diag *diag)
{
	struct mc_diag why = {.text = ""};
	int fd = -1, rc;

	rc = connect_to(conf, peer, deadline_ns, &fd, &why);
	if (rc == 0)
		rc = send_request(fd, type, json, deadline_ns);
	if (rc == 0)
		rc = recv_reply(fd, type, deadline_ns, ret_json, ret_len, &why);
	mc_fd_close(&fd);
	if (rc == 0)
		return 0;
	if (!why.text[0])
		mc_diag_set(&why, "%s", mc_err_text(rc));
	mc_diag_set(diag, "control port of \"%.256s\": %.200s", peer, why.text);
	return rc;
}

int mc_handshake_metadata(const struct mc_hs_conf *conf, const char *peer, const char *mine_json,
			  uint64_t deadline_ns, char **ret_json, size_t *ret_len,
			  struct mc_diag *diag)
{
	return mc_handshake_call(conf, peer, MC_HS_METADATA, mine_json, deadline_ns, ret_json,
				 ret_len, diag);
}

/* A reply of which only one member counts. */
static int judge_reply(const char *json, size_t len, const char *key, const char *want,
		       struct mc_diag *diag)
{
	static const struct mc_json_limits limits = {.bytes_max = 65536, .depth_max = 8};
	const char *text;
	json_t *root;
	int rc = mc_json_parse(json, len, &limits, &root, diag);

	if (rc < 0)
		return rc;
	rc = mc_json_get_str(root, key, &text, diag);
	if (rc == 0 && strcmp(text, want) != 0) {
		mc_diag_set(diag, "\"%s\" is \"%.100s\"", key, text);
		rc = -MC_E_AGAIN;
	}
	json_decref(root);
	return rc;
}

int mc_handshake_notify(const struct mc_hs_conf *conf, const char *peer, const void *name,
			size_t name_len, const void *msg, size_t msg_len, uint64_t deadline_ns,
			struct mc_diag *diag)
{
	char *json, *reply = NULL;
	size_t len = 0;
	int rc = mc_hs_notify_encode(name, name_len, msg, msg_len, &json, diag);

	if (rc < 0)
		return rc;
	rc = mc_handshake_call(conf, peer, MC_HS_NOTIFY, json, deadline_ns, &reply, &len, diag);
	mc_free(json);
	if (rc < 0)
		return rc;
	rc = judge_reply(reply, len, "notify_msg", "success", diag);
	mc_free(reply);
	if (rc < 0)
		mc_diag_wrap(diag, "notification to \"%.256s\"", peer);
	return rc;
}

int mc_handshake_probe(const struct mc_hs_conf *conf, const char *peer, uint64_t deadline_ns,
		       struct mc_diag *diag)
{
	char *reply = NULL;
	size_t len = 0;
	int rc;

	rc = mc_handshake_call(conf, peer, MC_HS_PROBE, "{}", deadline_ns, &reply, &len, diag);
	if (rc < 0)
		return rc;
	rc = judge_reply(reply, len, "status", "success", diag);
	mc_free(reply);
	if (rc < 0)
		mc_diag_wrap(diag, "probe of \"%.256s\"", peer);
	return rc;
}
