/*
 * tether.c: a dummy client's connection to the node of its host. The node says how the cluster is
 * reached; all else a dummy does as every client does. A lost connection is made anew every 100 ms,
 * and what the node says then is taken over. All of it on the store's loop, but for whoever waits
 * for the first answer.
 */
#include "client/tether.h"

#include <stdio.h>
#include <unistd.h>

#include "base/log.h"
#include "base/str.h"
#include "base/sync.h"
#include "client/priv.h"
#include "wire/pb.h"
#include "wire/store.pb-c.h"

#define AGAIN_NS (100 * MC_NS_PER_MS)
#define ANSWER_NS (2 * MC_NS_PER_S)
#define REPLY_MAX 4096u
#define ARENA_MAX 8192u

struct mc_cli_tether {
	struct mc_store *st;
	struct mc_addr node;
	char socket[108];
	struct mc_rpc_conn *conn;
	struct mc_rpc_call call;
	struct mc_timer again;
	uint8_t req[MC_CLI_TEXT_MAX], reply[REPLY_MAX];
	struct mc_cli_setup setup; /* written before the first seq, and then by the loop alone */
	bool has_setup, is_closing;
	_Atomic uint32_t seq; /* counts answers, and why there was none */
	_Atomic int seen_rc;  /* of the last; 0: the node is there */
};

/* ---- on the loop ---- */

static void over(struct mc_cli_tether *t, int rc)
{
	if (t->is_closing)
		return;
	if (rc < 0 && t->has_setup && atomic_load(&t->seen_rc) == 0)
		mc_log_warn("the node of this dummy client is gone; it is tried again",
			    "socket=%s rc=%s", t->socket, mc_err_name(rc));
	atomic_store(&t->seen_rc, rc);
	atomic_fetch_add(&t->seq, 1);
	mc_futex_wake(&t->seq, UINT32_MAX >> 1);
	if (rc < 0)
		(void)mc_loop_timer_set(t->st->loop, &t->again,
					mc_time_after(mc_now_ns(), AGAIN_NS));
}

int mc_cli_setup_parse(const void *reply, size_t len, struct mc_cli_setup *ret)
{
	_Alignas(16) uint8_t mem[ARENA_MAX];
	struct mc_pb_arena arena;
	const Mc__St__DummyReply *r;
	ProtobufCMessage *msg;
	int rc;

	mc_pb_arena_init(&arena, mem, sizeof(mem));
	rc = mc_pb_unpack(&arena, &mc__st__dummy_reply__descriptor, reply, len, &msg);
	if (rc < 0)
		return rc;
	r = (const Mc__St__DummyReply *)msg;
	if (!r->master[0] || !r->host[0] || !r->segment[0])
		return -MC_E_PROTO;
	if (mc_strlcpy(ret->master, sizeof(ret->master), r->master) < 0 ||
	    mc_strlcpy(ret->metadata, sizeof(ret->metadata), r->metadata) < 0 ||
	    mc_strlcpy(ret->protocol, sizeof(ret->protocol), r->protocol) < 0 ||
	    mc_strlcpy(ret->devices, sizeof(ret->devices), r->devices) < 0 ||
	    mc_strlcpy(ret->tenant, sizeof(ret->tenant), r->tenant) < 0 ||
	    mc_strlcpy(ret->host, sizeof(ret->host), r->host) < 0 ||
	    mc_strlcpy(ret->segment, sizeof(ret->segment), r->segment) < 0)
		return -MC_E_PROTO;
	return 0;
}

/* The node, or another one in its place, says where the cluster is now. */
static void follow(struct mc_cli_tether *t, const struct mc_cli_setup *now)
{
	if (strcmp(t->setup.master, now->master) != 0) {
		mc_log_info("the node has another master, and this dummy client follows",
			    "old=%s new=%s", t->setup.master, now->master);
		mc_cli_follow(t->st, now->master);
	} else {
		mc_log_info("the node of this dummy client is back", "segment=%s", now->segment);
	}
	if (strcmp(t->setup.tenant, now->tenant) != 0)
		mc_log_warn("the node has another tenant; this dummy client keeps its own",
			    "own=%s node=%s", t->setup.tenant, now->tenant);
	(void)mc_strlcpy(t->setup.master, sizeof(t->setup.master), now->master);
	(void)mc_strlcpy(t->setup.segment, sizeof(t->setup.segment), now->segment);
}

static void on_end(struct mc_rpc_call *call, int rc, const struct mc_rpc_msg *reply)
{
	struct mc_cli_tether *t = call->user;
	struct mc_cli_setup now;

	(void)reply;
	if (rc == 0)
		rc = mc_cli_setup_parse(t->reply, call->reply_len, &now);
	if (rc == 0 && t->has_setup)
		follow(t, &now);
	if (rc == 0 && !t->has_setup) {
		t->setup = now;
		t->has_setup = true;
	}
	over(t, rc);
}

static void on_down(void *user, int rc)
{
	over(user, rc < 0 ? rc : -MC_E_CLOSED);
}

static void attach(void *arg)
{
	struct mc_cli_tether *t = arg;
	const struct mc_rpc_conn_opts opts = {.on_down = on_down, .user = t};
	size_t req_len = t->call.req_len;
	int rc;

	mc_rpc_conn_close(t->conn); /* its call has ended */
	t->conn = NULL;
	t->call = (struct mc_rpc_call){.method = MC_ST_DUMMY,
				       .req = t->req,
				       .req_len = req_len,
				       .deadline_ns = mc_time_after(mc_now_ns(), ANSWER_NS),
				       .reply_buf = t->reply,
				       .reply_cap = sizeof(t->reply),
				       .on_end = on_end,
				       .user = t};
	rc = mc_rpc_conn_open(&mc_env_real, t->st->loop, &t->node, &opts, &t->conn);
	if (rc == 0)
		rc = mc_rpc_start(t->conn, &t->call);
	if (rc < 0)
		over(t, rc);
}

static void on_again(struct mc_timer *timer)
{
	attach(mc_container_of(timer, struct mc_cli_tether, again));
}

static void stop(void *arg)
{
	struct mc_cli_tether *t = arg;

	t->is_closing = true;
	mc_loop_timer_cancel(t->st->loop, &t->again);
}

/* ---- the opener's thread ---- */

/* "host:port" names the node's socket by its port; "@name" is one. */
static int node_set(struct mc_cli_tether *t, const char *node, struct mc_diag *diag)
{
	struct mc_addr at;
	int rc;

	if (node[0] == '@') {
		rc = mc_strlcpy(t->socket, sizeof(t->socket), node);
		if (rc == 0)
			rc = mc_addr_unix(t->socket, &t->node);
		if (rc == 0)
			return 0;
		mc_diag_set(diag, "server_address \"%s\" is no name of a socket", node);
		return -MC_E_INVAL;
	}
	rc = mc_addr_resolve(node, MC_ST_DUMMY_PORT, &at, diag);
	if (rc < 0)
		return rc;
	if (!mc_addr_is_local(&at) && !mc_addr_is_any(&at)) {
		mc_diag_set(diag,
			    "server_address \"%s\" is not of this host: a dummy client's node "
			    "(mooncake_client) runs beside it",
			    node);
		return -MC_E_INVAL;
	}
	(void)snprintf(t->socket, sizeof(t->socket), MC_ST_DUMMY_SOCKET, mc_addr_port(&at));
	return mc_addr_unix(t->socket, &t->node);
}

static int req_make(struct mc_cli_tether *t)
{
	Mc__St__Dummy msg = MC__ST__DUMMY__INIT;
	char name[32];

	(void)snprintf(name, sizeof(name), "pid %ld", (long)getpid());
	msg.version = MC_ST_VERSION;
	msg.client = t->st->client_id;
	msg.name = name;
	return mc_pb_pack(&msg.base, t->req, sizeof(t->req), &t->call.req_len);
}

/* The node may just start: what it says, or why it says nothing, within until_ns. */
static int first_wait(struct mc_cli_tether *t, uint64_t until_ns)
{
	for (;;) {
		uint32_t seq = atomic_load(&t->seq);
		int rc = seq ? atomic_load(&t->seen_rc) : -MC_E_TIMEDOUT;

		if (rc == 0)
			return 0;
		/* Its own word, which will be the same the next time. */
		if (rc == -MC_E_AUTH || rc == -MC_E_VERSION || rc == -MC_E_PROTO)
			return rc;
		if (mc_futex_wait(&t->seq, seq, until_ns) == -MC_E_TIMEDOUT)
			return rc;
	}
}

int mc_cli_tether_open(struct mc_store *st, const char *node, uint64_t until_ns,
		       struct mc_diag *diag, struct mc_cli_tether **ret)
{
	struct mc_cli_tether *t = mc_calloc(1, sizeof(*t));
	int rc;

	if (!t)
		return -MC_E_NOMEM;
	t->st = st;
	t->again.on_time = on_again;
	rc = node_set(t, node, diag);
	if (rc == 0)
		rc = req_make(t);
	if (rc < 0) {
		mc_free(t);
		return rc;
	}
	*ret = t;
	mc_loop_call(st->loop, attach, t);
	rc = first_wait(t, until_ns);
	if (rc < 0)
		mc_diag_set(diag,
			    "node at %s, socket %s: %s. Does mooncake_client run on this host, as "
			    "this user, with that --port?",
			    node, t->socket, mc_err_text(rc));
	return rc;
}

void mc_cli_tether_close(struct mc_cli_tether *t)
{
	if (!t)
		return;
	mc_loop_call(t->st->loop, stop, t);
	mc_rpc_conn_close(t->conn);
	mc_free(t);
}

bool mc_cli_tether_is_up(struct mc_cli_tether *t)
{
	return atomic_load(&t->seen_rc) == 0;
}

const struct mc_cli_setup *mc_cli_tether_setup(const struct mc_cli_tether *t)
{
	return &t->setup;
}
