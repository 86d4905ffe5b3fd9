/*
 * fuzz_reply.c: what a metadata service or a peer's control port answers, through the calls that
 * ask: libcurl's reply and its JSON (HTTP, etcd), hiredis' reply, the frames of the handshake.
 *
 * The first input byte says who is asked what, and whether the rest is the body of a well-formed
 * reply or all the bytes of one. A thread is the service: it takes a request, sends the bytes, ends
 * the connection. A call succeeds or fails by its deadline, and leaves no memory behind.
 */
#include <poll.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "disco/handshake.h"
#include "disco/meta.h"
#include "io/sock.h"

#define REPLY_MAX (64u << 10)
#define DEADLINE_NS (2 * MC_NS_PER_S)
#define IS_WHOLE 0x40u /* the input is all of the reply */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

enum ask {
	HTTP_GET,
	HTTP_PUT,
	HTTP_DEL,
	HTTP_RPC,
	ETCD_GET,
	ETCD_PUT,
	REDIS_GET,
	REDIS_PUT,
	HS_METADATA,
	HS_NOTIFY,
	HS_PROBE,
	ASK_COUNT,
};

static int listener = -1;
static char address[MC_ADDR_TEXT_MAX];
static struct mc_hs_conf hs;
static struct mc_meta_conf meta_conf;
static uint8_t reply[REPLY_MAX + 256]; /* the service's, while no call is under way */
static size_t reply_len;

static void serve_one(int fd)
{
	struct pollfd p = {.fd = fd, .events = POLLIN};
	static uint8_t sink[REPLY_MAX];

	if (poll(&p, 1, 1000) > 0 && recv(fd, sink, sizeof(sink), 0) > 0)
		(void)mc_sock_send_all(fd, reply, reply_len, mc_now_ns() + MC_NS_PER_S);
	(void)shutdown(fd, SHUT_WR);
	/* Until it has closed: an unread request would turn our reply into a reset. */
	while (poll(&p, 1, 1000) > 0 && recv(fd, sink, sizeof(sink), MSG_DONTWAIT) > 0)
		;
	(void)close(fd);
}

static void *service(void *arg)
{
	(void)arg;
	for (;;) {
		struct pollfd p = {.fd = listener, .events = POLLIN};
		int fd;

		(void)poll(&p, 1, -1);
		if (mc_sock_accept(listener, &fd, NULL) == 0)
			serve_one(fd);
	}
	return NULL;
}

static void setup(void)
{
	struct mc_addr at, bound;
	pthread_t t;

	mc_log_level_set(MC_LOG_ERROR);
	mc_assert(mc_addr_parse("127.0.0.1", 0, &at) == 0);
	mc_assert(mc_sock_listen_range(&at, 20000, 32000, 64, &listener, &bound) == 0);
	(void)mc_addr_format(&bound, address);
	mc_hs_conf_load(&hs);
	mc_meta_conf_load(&meta_conf);
	mc_assert(pthread_create(&t, NULL, service, NULL) == 0);
}

static void make_reply(unsigned ask, bool is_whole, const uint8_t *data, size_t len)
{
	size_t n = 0;

	len = mc_min(len, (size_t)REPLY_MAX);
	if (!is_whole && ask < REDIS_GET)
		n = (size_t)snprintf((char *)reply, 256,
				     "HTTP/1.1 200 OK\r\nContent-Length: %zu\r\n\r\n", len);
	else if (!is_whole && ask < HS_METADATA)
		n = (size_t)snprintf((char *)reply, 256, "$%zu\r\n", len);
	else if (!is_whole)
		n = mc_hs_head_put(reply,
				   ask == HS_METADATA ? MC_HS_METADATA
				   : ask == HS_NOTIFY ? MC_HS_NOTIFY
						      : MC_HS_PROBE,
				   false, len);
	if (len)
		memcpy(reply + n, data, len);
	reply_len = n + len;
	if (!is_whole && (ask == REDIS_GET || ask == REDIS_PUT)) {
		memcpy(reply + reply_len, "\r\n", 2);
		reply_len += 2;
	}
}

static void ask_service(unsigned ask, uint64_t deadline_ns)
{
	struct mc_meta_rpc rpc = {.host = "127.0.0.1", .port = 1};
	struct mc_diag diag = {.text = ""};
	struct mc_meta *meta;
	char conn[128], *json;
	size_t len;
	int rc;

	(void)snprintf(conn, sizeof(conn),
		       ask < ETCD_GET	 ? "http://%s/metadata"
		       : ask < REDIS_GET ? "etcd://%s"
					 : "redis://%s",
		       address);
	mc_assert(mc_meta_open(conn, &meta_conf, &meta, &diag) == 0);
	if (ask == HTTP_GET || ask == ETCD_GET || ask == REDIS_GET) {
		rc = mc_meta_segment_get(meta, "segment", deadline_ns, &json, &len, &diag);
		if (rc == 0) {
			mc_assert(json[len] == '\0');
			mc_free(json);
		}
	} else if (ask == HTTP_DEL) {
		rc = mc_meta_segment_del(meta, "segment", deadline_ns, &diag);
	} else if (ask == HTTP_RPC) {
		rc = mc_meta_rpc_get(meta, "server", deadline_ns, &rpc, &diag);
		mc_assert(rc < 0 || memchr(rpc.host, '\0', sizeof(rpc.host)));
	} else {
		rc = mc_meta_segment_put(meta, "segment", "{}", 2, deadline_ns, &diag);
	}
	mc_assert(rc <= 0);
	mc_meta_close(meta);
}

static void ask_peer(unsigned ask, uint64_t deadline_ns)
{
	struct mc_diag diag = {.text = ""};
	char *json;
	size_t len;
	int rc;

	if (ask == HS_METADATA) {
		rc = mc_handshake_metadata(&hs, address, "{}", deadline_ns, &json, &len, &diag);
		if (rc == 0) {
			mc_assert(json[len] == '\0');
			mc_free(json);
		}
	} else if (ask == HS_NOTIFY) {
		rc = mc_handshake_notify(&hs, address, "n", 1, "m", 1, deadline_ns, &diag);
	} else {
		rc = mc_handshake_probe(&hs, address, deadline_ns, &diag);
	}
	mc_assert(rc <= 0 && (rc == 0 || diag.text[0]));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	uint64_t deadline_ns = mc_now_ns() + DEADLINE_NS;
	int64_t live;
	unsigned ask;

	if (listener < 0)
		setup();
	if (len < 1)
		return 0;
	ask = (data[0] & 0x3fu) % ASK_COUNT;
	make_reply(ask, (data[0] & IS_WHOLE) != 0, data + 1, len - 1);
	live = mc_mem_live();
	if (ask < HS_METADATA)
		ask_service(ask, deadline_ns);
	else
		ask_peer(ask, deadline_ns);
	mc_assert(mc_mem_live() == live);
	return 0;
}
