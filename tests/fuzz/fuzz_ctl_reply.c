/*
 * fuzz_ctl_reply.c: what a hostile peer answers to an engine's control calls: Hello, Resolve,
 * Retire, Connect, Notify, Probe, Stage, Unstage. Each goes through the function that the engine
 * calls, over a connection of the session to a server that is the peer.
 *
 * The first input byte chooses the call, the second the status of the reply (0: well), the rest is
 * its payload. Whatever it is, the call ends with 0 or an error, and what it says on success is
 * what callers rely on. The answer to an offer connects a lane of the fake fabric.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/rand.h"
#include "control.pb-c.h"
#include "engine/ctl.h"
#include "engine/stage.h"
#include "rpc/rpc.h"
#include "verbs_fake.h"
#include "wire/pb.h"

#define REPLY_MAX (1u << 18)
#define RANGES 3u
#define PEER_EPOCH 0x1122334455667788u
#define SOON_NS (10 * MC_NS_PER_S) /* never needed but where something is broken */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

static struct mc_engine *eng;
static struct mc_peer peer = {.name = "fuzz"};
static struct mc_session session;
static struct mc_rpc_conn *fresh; /* greets again and again */

/* ---- the peer ---- */

/* Constant while a call is under way; read by the peer's loop. */
static struct {
	const uint8_t *data;
	size_t len;
	int status;
	bool is_hello; /* also Hello is answered with it, not by the book */
} answer;

static void serve_hello(struct mc_rpc_req *req, const struct mc_rpc_msg *msg, void *user)
{
	Mc__Ctl__Hello m = MC__CTL__HELLO__INIT;
	uint8_t buf[256], nonce[MC_NONCE_BYTES] = {0};
	size_t len;

	(void)msg;
	(void)user;
	if (answer.is_hello) {
		(void)mc_rpc_reply(req, answer.status, answer.data, answer.len, NULL, 0);
		return;
	}
	m.version = MC_CTL_VERSION;
	m.epoch = PEER_EPOCH;
	m.nonce = (ProtobufCBinaryData){.data = nonce, .len = sizeof(nonce)};
	mc_assert(mc_pb_pack(&m.base, buf, sizeof(buf), &len) == 0);
	(void)mc_rpc_reply(req, 0, buf, len, NULL, 0);
}

static void serve_any(struct mc_rpc_req *req, const struct mc_rpc_msg *msg, void *user)
{
	(void)msg;
	(void)user;
	(void)mc_rpc_reply(req, answer.status, answer.data, answer.len, NULL, 0);
}

static void replace(uint8_t *buf, size_t len, uint8_t what, const uint8_t with[8])
{
	uint8_t mark[8];

	memset(mark, what, sizeof(mark));
	for (size_t i = 0; i + sizeof(mark) <= len; i++)
		if (memcmp(buf + i, mark, sizeof(mark)) == 0)
			memcpy(buf + i, with, sizeof(mark));
}

static void serve_connect(struct mc_rpc_req *req, const struct mc_rpc_msg *msg, void *user)
{
	_Alignas(16) uint8_t mem[MC_CTL_OFFER_MAX + 512];
	static uint8_t buf[REPLY_MAX];
	const Mc__Ctl__Connect *m;
	struct mc_pb_arena arena;
	ProtobufCMessage *base;

	(void)user;
	mc_pb_arena_init(&arena, mem, sizeof(mem));
	mc_assert(mc_pb_unpack(&arena, &mc__ctl__connect__descriptor, msg->data, msg->len, &base) ==
		  0);
	m = (const Mc__Ctl__Connect *)base;
	mc_assert(m->offer.len >= 24);
	if (answer.len)
		memcpy(buf, answer.data, answer.len);
	replace(buf, answer.len, 0xee, m->offer.data + 16);
	replace(buf, answer.len, 0xdd, m->offer.data + 8);
	(void)mc_rpc_reply(req, answer.status, buf, answer.len, NULL, 0);
}

static void peer_open(struct mc_addr *ret_at)
{
	struct mc_rpc_method methods[MC_CTL_METHOD_COUNT - 1];
	struct mc_rpc_server_opts opts = {.methods = methods, .nmethods = MC_ARRAY_LEN(methods)};
	struct mc_rpc_server *server;
	struct mc_loop *loop;
	uint64_t unique;
	char name[64];

	for (unsigned i = 0; i < opts.nmethods; i++)
		methods[i] = (struct mc_rpc_method){(uint16_t)(i + 1), "fuzz", serve_any, NULL};
	methods[MC_CTL_HELLO - 1].handle = serve_hello;
	methods[MC_CTL_CONNECT - 1].handle = serve_connect;
	mc_assert(mc_rand_bytes(&unique, sizeof(unique)) == 0);
	(void)snprintf(name, sizeof(name), "@mc-fuzz-ctl-%llx", (unsigned long long)unique);
	mc_assert(mc_addr_unix(name, ret_at) == 0);
	mc_assert(mc_loop_open("fuzz", &mc_clock_real, &loop) == 0 && mc_loop_start(loop) == 0);
	mc_assert(mc_rpc_server_open(&mc_env_real, loop, &opts, &server) == 0);
	mc_assert(mc_rpc_server_listen(server, ret_at, NULL) == 0);
}

/* ---- ours ---- */

static void setup(void)
{
	struct mc_engine_opts opts = {
	    .size = sizeof(opts), .name = "127.0.0.1", .protocol = "rdma"};
	struct mc_diag diag = {""};

	mc_log_level_set(MC_LOG_ERROR);
	mc_assert(setenv("MC_NO_SHM", "1", 1) == 0);
	mc_assert(mc_engine_open_verbs(&opts,
				       verbs_fake_open(&(struct verbs_fake_conf){.ndevs = 1}),
				       &diag, &eng) == 0);
	peer.eng = eng;
	session = (struct mc_session){.eng = eng,
				      .peer = &peer,
				      .kind = MC_PEER_OURS,
				      .epoch = PEER_EPOCH,
				      .fence_key = PEER_EPOCH,
				      .ctl_bad_rail = -1};
	atomic_init(&session.refs, 1);
	pthread_mutex_init(&session.mu, NULL);
	pthread_mutex_init(&session.ctl_mu, NULL);
	mc_list_init(&session.lanes);
	mc_list_init(&session.stale);
	peer_open(&session.ctl_addr);
}

static uint64_t by_ns(void)
{
	return mc_now_ns() + SOON_NS;
}

static bool is_text(const char *text, size_t cap)
{
	return memchr(text, '\0', cap) != NULL;
}

static int ask_hello(void)
{
	struct mc_ctl_peer p;
	int rc = fresh ? mc_rpc_conn_status(fresh) : -MC_E_CLOSED;

	if (rc < 0) {
		mc_rpc_conn_close(fresh);
		fresh = NULL;
		mc_assert(mc_rpc_conn_open(&mc_env_real, eng->loops[0], &session.ctl_addr, NULL,
					   &fresh) == 0);
	}
	answer.is_hello = true;
	rc = mc_ctl_hello(eng, fresh, by_ns(), &p);
	answer.is_hello = false;
	if (rc < 0)
		return rc;
	mc_assert(p.epoch != 0 && p.nrails <= MC_RAILS_MAX && p.nports <= MC_RDMA_PORTS_MAX);
	mc_assert(is_text(p.segment, sizeof(p.segment)) && is_text(p.boot_id, sizeof(p.boot_id)));
	mc_assert(is_text(p.shm_socket, sizeof(p.shm_socket)));
	for (unsigned i = 0; i < p.nrails; i++)
		mc_assert(is_text(p.rails[i], sizeof(p.rails[i])));
	for (unsigned i = 0; i < p.nports; i++)
		mc_assert(is_text(p.ports[i].name, sizeof(p.ports[i].name)));
	return 0;
}

static int ask_resolve(void)
{
	static const struct mc_iov ranges[RANGES] = {{4096, 100}, {1 << 20, 4096}, {1ull << 40, 1}};
	struct mc_remote_region got[RANGES];
	int rc = mc_ctl_resolve(&session, ranges, RANGES, by_ns(), got);

	for (unsigned i = 0; rc == 0 && i < RANGES; i++)
		if (got[i].gen != 0) {
			mc_assert(got[i].addr <= ranges[i].addr &&
				  ranges[i].addr - got[i].addr < got[i].len);
			mc_assert(got[i].len <= UINT64_MAX - got[i].addr &&
				  (unsigned)got[i].kind < MC_MEM_KIND_COUNT);
		}
	return rc;
}

/* The lane connects, or ends. */
static int ask_connect(void)
{
	struct mc_xdev *dev = eng->rdma;
	struct mc_xpath path = {.peer_epoch = PEER_EPOCH, .peer_name = "fuzz"};
	uint8_t offer[MC_CTL_OFFER_MAX], ans[MC_CTL_OFFER_MAX], token[MC_XPORT_TOKEN_MAX];
	struct mc_xlane *lane;
	struct mc_list left;
	int rc = dev->ops->lane_open(dev, &path, &lane);

	mc_assert(rc == 0);
	rc = lane->ops->offer(lane, offer, sizeof(offer));
	mc_assert(rc > 0);
	rc = mc_ctl_connect(&session, "rdma", offer, (size_t)rc, by_ns(), ans);
	if (rc >= 0) {
		mc_assert(rc > 0 && (size_t)rc <= sizeof(ans));
		rc = lane->ops->connect(lane, ans, (size_t)rc);
	}
	mc_list_init(&left);
	(void)lane->ops->abort(lane, &left, token);
	mc_assert(mc_list_is_empty(&left));
	lane->ops->lane_close(lane);
	return rc;
}

static int ask_stage(void)
{
	struct mc_stage_want want = {
	    .id = 1, .op = MC_OP_READ, .region = 1, .gen = 1, .len = MC_STAGE_BYTES};
	struct mc_remote_region r;
	bool is_answered;
	uint64_t addr;
	int rc = mc_ctl_stage(&session, &want, by_ns(), &addr, &r, &is_answered);

	if (rc < 0)
		return rc;
	mc_assert(is_answered && r.gen != 0 && r.addr <= addr);
	mc_assert(r.len <= UINT64_MAX - r.addr && addr - r.addr <= r.len &&
		  want.len <= r.len - (addr - r.addr));
	mc_assert(r.kind == MC_MEM_HOST || r.kind == MC_MEM_MEMFD);
	return 0;
}

static int ask(unsigned method)
{
	static const uint8_t token[MC_XPORT_TOKEN_MAX];
	uint64_t number;
	bool is_answered;
	int rc;

	switch ((enum mc_ctl_method)method) {
	case MC_CTL_HELLO:
		return ask_hello();
	case MC_CTL_RESOLVE:
		return ask_resolve();
	case MC_CTL_RETIRE:
		return mc_ctl_retire(&session, "tcp", token, sizeof(token), by_ns(), &number);
	case MC_CTL_NOTIFY:
		return mc_ctl_notify(&session, 1, "name", 4, "msg", 3, by_ns());
	case MC_CTL_PROBE:
		return mc_ctl_probe(&session, by_ns(), &number);
	case MC_CTL_CONNECT:
		return ask_connect();
	case MC_CTL_STAGE:
		return ask_stage();
	case MC_CTL_UNSTAGE:
		rc = mc_ctl_unstage(&session, 1, MC_CTL_UNSTAGE_DROP, by_ns(), &is_answered);
		mc_assert(rc < 0 || is_answered);
		return rc;
	case MC_CTL_METHOD_COUNT:
		break;
	}
	return -MC_E_UNSUPPORTED;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	uint64_t from_ns = mc_now_ns();
	struct mc_rdma_stats st;
	int rc;

	if (!eng)
		setup();
	if (len < 2)
		return 0;
	answer.data = data + 2;
	answer.len = mc_min(len - 2, (size_t)REPLY_MAX);
	answer.status = -(int)(data[1] % MC_E_COUNT);
	rc = ask(data[0] % MC_CTL_METHOD_COUNT);
	mc_assert(rc <= 0 && rc > -MC_E_COUNT);
	mc_assert(mc_now_ns() - from_ns < SOON_NS); /* it was answered */
	mc_rdma_stats_get(eng->rdma, &st);
	mc_assert(st.lanes == 0 && st.qps == 0);
	return 0;
}
