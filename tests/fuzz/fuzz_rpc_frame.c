/*
 * fuzz_rpc_frame.c: bytes of a hostile peer, through the sockets' receive of a server and of a
 * client.
 *
 * The first byte chooses who is attacked and how the bytes are cut. Everything runs over the
 * simulated network, so the path is the one that the socket loop takes: event, receive, parse,
 * handler. The target aborts when a call does not end exactly once, or memory is left.
 */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "base/err.h"
#include "base/mem.h"
#include "rpc/rpc.h"
#include "sim/sim_net.h"

#define CALLS 4

struct world {
	struct sim sim;
	struct mc_loop *loop;
	struct mc_addr at;
	struct mc_rpc_call calls[CALLS];
	unsigned ends;
};

static void echo(struct mc_rpc_req *req, const struct mc_rpc_msg *msg, void *user)
{
	(void)user;
	(void)mc_rpc_reply(req, 0, msg->data, msg->len, NULL, 0);
}

static void on_chunk(struct mc_rpc_req *req, const void *data, size_t len, bool is_last)
{
	(void)mc_rpc_req_send(req, data, len, is_last);
	if (is_last)
		(void)mc_rpc_reply(req, 0, NULL, 0, NULL, 0);
}

static void on_cancel(struct mc_rpc_req *req)
{
	(void)mc_rpc_reply(req, -MC_E_CANCELED, NULL, 0, NULL, 0);
}

static void stream(struct mc_rpc_req *req, const struct mc_rpc_msg *msg, void *user)
{
	(void)msg;
	(void)user;
	req->on_chunk = on_chunk;
	req->on_cancel = on_cancel;
}

/* What the hostile end does: sends its bytes, reads and drops what comes. */
static void attack(struct world *w, struct mc_net_sock *sock, const uint8_t *data, size_t len)
{
	unsigned idle = 0;

	while (idle < 2) {
		struct iovec iov = {.iov_base = (void *)data, .iov_len = len};
		uint8_t drop[4096];
		unsigned nfds;
		ssize_t n = len ? w->sim.net.send(sock, &iov, 1, NULL, 0) : 0, got;

		if (n > 0) {
			data += n;
			len -= (size_t)n;
		}
		got = w->sim.net.recv(sock, drop, sizeof(drop), NULL, &nfds);
		idle = n > 0 || got > 0 ? 0 : idle + 1;
		while (sim_step(&w->sim, w->sim.now_ns))
			;
	}
}

static void attack_server(struct world *w, const uint8_t *data, size_t len)
{
	static const struct mc_rpc_method methods[] = {{1, "echo", echo, NULL},
						       {2, "stream", stream, NULL}};
	const struct mc_rpc_server_opts opts = {
	    .methods = methods, .nmethods = 2, .frame_max = 100000, .queue_max = 50000};
	struct mc_rpc_server *server;
	struct mc_net_sock *sock;
	int rc = mc_rpc_server_open(&w->sim.env, w->loop, &opts, &server);

	mc_assert(rc == 0);
	rc = mc_rpc_server_listen(server, &w->at, NULL);
	mc_assert(rc == 0);
	rc = w->sim.net.connect(&w->sim.net, &w->at, NULL, &sock);
	mc_assert(rc == 0);
	attack(w, sock, data, len);
	w->sim.net.close(sock);
	sim_run(&w->sim, w->sim.now_ns + 1000000);
	mc_rpc_server_close(server);
}

static void on_end(struct mc_rpc_call *call, int rc, const struct mc_rpc_msg *reply)
{
	struct world *w = call->user;

	mc_assert(rc <= 0 && (reply->len == 0 || reply->data[reply->len - 1] <= 255));
	w->ends++;
}

static void attack_client(struct world *w, const uint8_t *data, size_t len)
{
	struct mc_net_sock *listener, *sock;
	struct mc_rpc_conn *conn;
	struct mc_addr peer;
	unsigned started = 0;
	int rc = w->sim.net.listen(&w->sim.net, &w->at, 1, &listener, NULL);

	mc_assert(rc == 0);
	rc = mc_rpc_conn_open(&w->sim.env, w->loop, &w->at, NULL, &conn);
	mc_assert(rc == 0);
	for (int i = 0; i < CALLS; i++) {
		w->calls[i] = (struct mc_rpc_call){
		    .method = 1, .flags = i & 1 ? MC_RPC_STREAM : 0, .on_end = on_end, .user = w};
		rc = mc_rpc_start(conn, &w->calls[i]);
		mc_assert(rc == 0);
		started++;
	}
	sim_run(&w->sim, w->sim.now_ns + 10);
	rc = w->sim.net.accept(listener, &sock, &peer);
	mc_assert(rc == 0);
	attack(w, sock, data, len);
	mc_rpc_conn_close(conn);
	mc_assert(w->ends == started);
	w->sim.net.close(sock);
	w->sim.net.close(listener);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	static const uint32_t chunks[] = {3, 41, 1000, 1 << 20};
	static struct world w; /* with one loop for all runs */
	struct sim_conf conf = {.window = 1 << 20};
	int64_t live;
	int rc;

	if (len == 0)
		return 0;
	conf.chunk_max = chunks[data[0] >> 1 & 3];
	sim_init(&w.sim, 1, &conf);
	w.ends = 0;
	rc = w.loop ? 0 : mc_loop_open("fuzz", &w.sim.clk, &w.loop);
	mc_assert(rc == 0);
	live = mc_mem_live();
	sim_add_loop(&w.sim, w.loop);
	rc = mc_addr_parse("127.0.0.1:1", 0, &w.at);
	mc_assert(rc == 0);
	if (data[0] & 1)
		attack_client(&w, data + 1, len - 1);
	else
		attack_server(&w, data + 1, len - 1);
	(void)mc_loop_step(w.loop, 0); /* frees what a task was left for */
	sim_fini(&w.sim);
	mc_assert(mc_mem_live() == live);
	return 0;
}
