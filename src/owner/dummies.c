/*
 * dummies.c: one call, answered with the same bytes to whoever may ask. A connection that has been
 * answered is a dummy until it ends.
 */
#include "owner/dummies.h"

#include <stdatomic.h>
#include <sys/socket.h>
#include <unistd.h>

#include <mooncake/engine.h>

#include "base/log.h"
#include "base/mem.h"
#include "io/env.h"
#include "rpc/rpc.h"
#include "wire/pb.h"
#include "wire/store.h"
#include "wire/store.pb-c.h"

#define CONNS_MAX 1024u
#define FRAME_MAX 4096u
#define REPLY_MAX 4096u
#define NAME_MAX_BYTES 255u
#define MASTER_MAX 512u

struct mc_dummies {
	struct mc_rpc_server *server;
	uint8_t reply[REPLY_MAX];
	size_t reply_len;
	_Atomic uint64_t now, total, refused; /* written on the loop */
};

/* Only processes of the node's user, and root's, may map its memory. */
static int peer_check(struct mc_rpc_peer *peer)
{
	struct ucred cred;
	socklen_t len = sizeof(cred);

	if (getsockopt(mc_rpc_peer_fd(peer), SOL_SOCKET, SO_PEERCRED, &cred, &len) < 0)
		return -MC_E_AUTH;
	return cred.uid == geteuid() || cred.uid == 0 ? 0 : -MC_E_AUTH;
}

static int dummy_check(struct mc_rpc_req *req, const struct mc_rpc_msg *msg)
{
	_Alignas(16) uint8_t buf[2 * FRAME_MAX];
	struct mc_pb_arena arena;
	ProtobufCMessage *got;
	const Mc__St__Dummy *v;
	int rc;

	mc_pb_arena_init(&arena, buf, sizeof(buf));
	rc = mc_pb_unpack(&arena, &mc__st__dummy__descriptor, msg->data, msg->len, &got);
	if (rc < 0)
		return rc;
	v = (const Mc__St__Dummy *)got;
	if (v->version != MC_ST_VERSION)
		return -MC_E_VERSION;
	if (v->client == 0 || strlen(v->name) > NAME_MAX_BYTES)
		return -MC_E_INVAL;
	rc = peer_check(req->peer);
	if (rc == 0)
		mc_log_info("a dummy client came", "name=%s client=%016llx", v->name,
			    (unsigned long long)v->client);
	return rc;
}

static void on_dummy(struct mc_rpc_req *req, const struct mc_rpc_msg *msg, void *user)
{
	struct mc_dummies *d = user;
	int rc = dummy_check(req, msg);

	if (rc < 0) {
		/* Counted, and said once: whoever sends such a thing may send many. */
		if (atomic_fetch_add(&d->refused, 1) == 0)
			mc_log_warn("a dummy client was refused", "rc=%s", mc_err_name(rc));
		(void)mc_rpc_reply(req, rc, NULL, 0, NULL, 0);
		return;
	}
	if (!mc_rpc_peer_user(req->peer)) {
		mc_rpc_peer_set_user(req->peer, d);
		atomic_fetch_add(&d->now, 1);
		atomic_fetch_add(&d->total, 1);
	}
	(void)mc_rpc_reply(req, 0, d->reply, d->reply_len, NULL, 0);
}

static void on_down(struct mc_rpc_peer *peer, int rc, void *user)
{
	struct mc_dummies *d = user;

	(void)rc; /* closed or killed: the same */
	if (!mc_rpc_peer_user(peer))
		return;
	atomic_fetch_sub(&d->now, 1);
	mc_log_info("a dummy client is gone", "left=%llu",
		    (unsigned long long)atomic_load(&d->now));
}

/* For packing, which only reads. */
static char *told(const char *text)
{
	return (char *)(uintptr_t)(text ? text : "");
}

static int reply_make(struct mc_dummies *d, const struct mc_dummies_conf *c)
{
	Mc__St__DummyReply r = MC__ST__DUMMY_REPLY__INIT;
	char master[MASTER_MAX], host[MC_ADDR_TEXT_MAX] = "";
	struct mc_addr at;
	int rc = mc_addr_text_full(c->master, MC_ST_MASTER_PORT, master, sizeof(master));

	if (rc == 0)
		rc = mc_addr_parse(mc_engine_address(c->engine), 0, &at);
	if (rc < 0)
		return rc;
	(void)mc_addr_format_host(&at, host);
	r.master = master;
	r.host = host;
	r.metadata = told(c->metadata);
	r.protocol = told(c->protocol);
	r.devices = told(c->devices);
	r.tenant = told(c->tenant);
	r.segment = told(mc_engine_name(c->engine));
	return mc_pb_pack(&r.base, d->reply, sizeof(d->reply), &d->reply_len);
}

int mc_dummies_open(struct mc_loop *loop, const struct mc_dummies_conf *conf, struct mc_diag *diag,
		    struct mc_dummies **ret)
{
	struct mc_dummies *d = mc_calloc(1, sizeof(*d));
	const struct mc_rpc_method method = {MC_ST_DUMMY, "dummy", on_dummy, d};
	const struct mc_rpc_server_opts opts = {.conns_max = CONNS_MAX,
						.frame_max = FRAME_MAX,
						.methods = &method,
						.nmethods = 1,
						.on_down = on_down,
						.user = d};
	struct mc_addr at;
	int rc;

	if (!d)
		return -MC_E_NOMEM;
	rc = reply_make(d, conf);
	if (rc == 0)
		rc = conf->socket[0] == '@' ? mc_addr_unix(conf->socket, &at) : -MC_E_INVAL;
	if (rc == 0)
		rc = mc_rpc_server_open(&mc_env_real, loop, &opts, &d->server);
	if (rc == 0)
		rc = mc_rpc_server_listen(d->server, &at, NULL);
	if (rc < 0) {
		mc_diag_set(diag, "socket %s for dummy clients: %s", conf->socket, mc_err_text(rc));
		mc_dummies_close(d);
		return rc;
	}
	*ret = d;
	return 0;
}

void mc_dummies_close(struct mc_dummies *d)
{
	if (!d)
		return;
	mc_rpc_server_close(d->server);
	mc_free(d);
}

void mc_dummies_stats(struct mc_dummies *d, struct mc_dummies_stats *ret)
{
	ret->now = atomic_load(&d->now);
	ret->total = atomic_load(&d->total);
	ret->refused = atomic_load(&d->refused);
}
