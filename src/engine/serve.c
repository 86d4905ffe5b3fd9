/*
 * serve.c: what peers ask of this process: descriptors and messages in upstream's frames, and our
 * control calls. Handlers run on the first loop and do not block; retiring a lane may, so a worker
 * does it.
 */
#include "base/log.h"
#include "control.pb-c.h"
#include "engine/classic.h"
#include "engine/ctl.h"
#include "engine/describe.h"
#include "engine/hca.h"
#include "engine/initiators.h"
#include "engine/routes.h"
#include "engine/stage.h"
#include "wire/control.h"
#include "wire/pb.h"

#define SMALL_BYTES 4096u

static int on_notify(void *user, const struct mc_hs_notify *n)
{
	int rc = mc_inbox_put(user, 0, n->name, n->name_len, n->msg, n->msg_len);

	return rc == -MC_E_EXIST ? 0 : rc;
}

static void on_adopt(void *user, int fd, const void *bytes, size_t len, const struct mc_addr *peer)
{
	struct mc_engine *eng = user;

	(void)peer;
	/* Not yet, or no longer: the data port opens before and closes after the control port. */
	if (!eng->rpc || mc_rpc_server_adopt(eng->rpc, fd, bytes, len) < 0)
		mc_fd_close(&fd);
}

/* A connection on its way from another loop to the first. */
struct adoption {
	struct mc_task task;
	struct mc_engine *eng;
	int fd;
	size_t len;
	uint8_t bytes[MC_TCP_ADOPT_BYTES];
};

static void adopt_run(struct mc_task *task)
{
	struct adoption *a = mc_container_of(task, struct adoption, task);

	on_adopt(a->eng, a->fd, a->bytes, a->len, NULL);
	mc_free(a);
}

int mc_serve_adopt(void *user, int fd, const void *bytes, size_t len)
{
	struct mc_engine *eng = user;
	struct adoption *a = len <= MC_TCP_ADOPT_BYTES ? mc_calloc(1, sizeof(*a)) : NULL;

	if (!a)
		return -MC_E_NOMEM;
	a->eng = eng;
	a->fd = fd;
	a->len = len;
	memcpy(a->bytes, bytes, len);
	a->task.run = adopt_run;
	mc_loop_post(eng->loops[0], &a->task);
	return 0;
}

/* ---- calls ---- */

/* Unpack into `mem`; on failure answers the call. */
static ProtobufCMessage *unpack(struct mc_rpc_req *req, const struct mc_rpc_msg *msg,
				const ProtobufCMessageDescriptor *type, uint8_t *mem, size_t cap)
{
	struct mc_pb_arena arena;
	ProtobufCMessage *m;
	int rc;

	mc_pb_arena_init(&arena, mem, cap);
	rc = mc_pb_unpack(&arena, type, msg->data, msg->len, &m);
	if (rc == 0)
		return m;
	(void)mc_rpc_reply(req, rc, NULL, 0, NULL, 0);
	return NULL;
}

static void reply_msg(struct mc_rpc_req *req, const ProtobufCMessage *m, uint8_t *buf, size_t cap)
{
	size_t len = 0;
	int rc = mc_pb_pack(m, buf, cap, &len);

	(void)mc_rpc_reply(req, rc, buf, rc == 0 ? len : 0, NULL, 0);
}

static void serve_hello(struct mc_rpc_req *req, const struct mc_rpc_msg *msg, void *user)
{
	_Alignas(16) uint8_t mem[SMALL_BYTES * 2];
	uint8_t buf[SMALL_BYTES];
	Mc__Ctl__Hello *m =
	    (Mc__Ctl__Hello *)unpack(req, msg, &mc__ctl__hello__descriptor, mem, sizeof(mem));
	size_t len = 0;
	int rc;

	if (!m)
		return;
	rc = m->version == MC_CTL_VERSION ? mc_ctl_hello_encode(user, buf, sizeof(buf), &len)
					  : -MC_E_VERSION;
	if (rc == 0)
		mc_initiators_hello(user, req->peer, m->epoch);
	(void)mc_rpc_reply(req, rc, buf, len, NULL, 0);
}

void mc_ctl_region_tell(struct mc_engine *eng, const struct mc_region_info *info,
			struct mc_ctl_region *ret)
{
	*ret = (struct mc_ctl_region){.addr = info->desc.addr,
				      .len = info->desc.len,
				      .id = info->id,
				      .gen = info->gen,
				      .rights = info->desc.rights,
				      .kind = info->desc.kind,
				      .arena = info->desc.arena,
				      .arena_off = info->desc.arena_off};
	if (info->desc.kind != MC_MEM_FILE)
		mc_hca_keys(eng, &info->desc, ret->key);
}

static void region_find(struct mc_engine *eng, const struct mc_ctl_range *range,
			struct mc_ctl_region *ret)
{
	struct mc_region_info info;

	*ret = (struct mc_ctl_region){0};
	if (mc_hca_region_find(eng, range->addr, range->len, &info) == 0)
		mc_ctl_region_tell(eng, &info, ret);
}

static void serve_resolve(struct mc_rpc_req *req, const struct mc_rpc_msg *msg, void *user)
{
	size_t mem_cap = msg->len + 1024;
	uint8_t *mem = mc_aligned_alloc(16, mem_cap), *out = NULL, *buf = NULL;
	Mc__Ctl__ResolveReply reply = MC__CTL__RESOLVE_REPLY__INIT;
	Mc__Ctl__Resolve *m = NULL;
	struct mc_rd rd;
	struct mc_wr w;
	int n = -MC_E_NOMEM;

	if (mem) {
		m = (Mc__Ctl__Resolve *)unpack(req, msg, &mc__ctl__resolve__descriptor, mem,
					       mem_cap);
		if (!m)
			goto out;
		n = mc_ctl_count(m->records.len, MC_CTL_RANGE_LEN);
	}
	if (n > (int)MC_CTL_RESOLVE_MAX)
		n = -MC_E_TOO_BIG;
	if (n >= 0) {
		out = mc_calloc(1, (size_t)n * MC_CTL_REGION_LEN + 1);
		buf = mc_calloc(1, (size_t)n * MC_CTL_REGION_LEN + 64);
		if (!out || !buf)
			n = -MC_E_NOMEM;
	}
	if (n < 0) {
		(void)mc_rpc_reply(req, n, NULL, 0, NULL, 0);
		goto out;
	}
	rd = mc_rd_make(m->records.data, m->records.len);
	w = mc_wr_make(out, (size_t)n * MC_CTL_REGION_LEN);
	for (int i = 0; i < n; i++) {
		struct mc_ctl_range range;
		struct mc_ctl_region region;

		mc_ctl_range_decode(&rd, &range);
		region_find(user, &range, &region);
		mc_ctl_region_encode(&w, &region);
	}
	reply.records = (ProtobufCBinaryData){.data = out, .len = (size_t)n * MC_CTL_REGION_LEN};
	reply_msg(req, &reply.base, buf, (size_t)n * MC_CTL_REGION_LEN + 64);
out:
	mc_free(mem);
	mc_free(out);
	mc_free(buf);
}

struct retire_job {
	struct mc_worker_job job;
	struct mc_xdev *dev;
	struct mc_rpc_req *req;
	uint8_t token[MC_XPORT_TOKEN_MAX];
	size_t token_len;
};

static void retire_run(struct mc_worker_job *job)
{
	struct retire_job *j = mc_container_of(job, struct retire_job, job);
	Mc__Ctl__RetireReply reply = MC__CTL__RETIRE_REPLY__INIT;
	uint8_t buf[64];
	uint64_t acked = 0;

	reply.status = j->dev->ops->retire(j->dev, j->token, j->token_len, &acked);
	reply.acked = acked;
	reply_msg(j->req, &reply.base, buf, sizeof(buf));
	mc_free(j);
}

static void serve_retire(struct mc_rpc_req *req, const struct mc_rpc_msg *msg, void *user)
{
	_Alignas(16) uint8_t mem[1024];
	Mc__Ctl__Retire *m =
	    (Mc__Ctl__Retire *)unpack(req, msg, &mc__ctl__retire__descriptor, mem, sizeof(mem));
	struct mc_xdev *dev = m ? mc_route_dev(user, m->transport) : NULL;
	struct retire_job *j;

	if (!m)
		return;
	if (!dev || m->token.len == 0 || m->token.len > MC_XPORT_TOKEN_MAX) {
		(void)mc_rpc_reply(req, -MC_E_INVAL, NULL, 0, NULL, 0);
		return;
	}
	j = mc_calloc(1, sizeof(*j));
	if (!j) {
		(void)mc_rpc_reply(req, -MC_E_NOMEM, NULL, 0, NULL, 0);
		return;
	}
	j->job.run = retire_run;
	j->dev = dev;
	j->req = req;
	j->token_len = m->token.len;
	memcpy(j->token, m->token.data, m->token.len);
	mc_work_post(user, &j->job);
}

struct connect_job {
	struct mc_worker_job job;
	struct mc_xdev *dev;
	struct mc_rpc_req *req;
	uint64_t epoch;
	uint8_t offer[MC_CTL_OFFER_MAX];
	size_t offer_len;
};

static void connect_run(struct mc_worker_job *job)
{
	struct connect_job *j = mc_container_of(job, struct connect_job, job);
	Mc__Ctl__ConnectReply reply = MC__CTL__CONNECT_REPLY__INIT;
	uint8_t answer[MC_CTL_OFFER_MAX], buf[MC_CTL_OFFER_MAX + 64];
	int rc =
	    j->dev->ops->accept(j->dev, j->epoch, j->offer, j->offer_len, answer, sizeof(answer));

	reply.status = rc < 0 ? rc : 0;
	reply.answer = (ProtobufCBinaryData){.data = answer, .len = rc < 0 ? 0 : (size_t)rc};
	reply_msg(j->req, &reply.base, buf, sizeof(buf));
	mc_free(j);
}

static void serve_connect(struct mc_rpc_req *req, const struct mc_rpc_msg *msg, void *user)
{
	_Alignas(16) uint8_t mem[MC_CTL_OFFER_MAX + 512];
	Mc__Ctl__Connect *m =
	    (Mc__Ctl__Connect *)unpack(req, msg, &mc__ctl__connect__descriptor, mem, sizeof(mem));
	struct mc_xdev *dev = m ? mc_route_dev(user, m->transport) : NULL;
	uint64_t epoch = mc_initiators_epoch(req->peer);
	struct connect_job *j = NULL;
	int rc = 0;

	if (!m)
		return;
	if (!dev || !(dev->ops->caps & MC_XCAP_OFFER))
		rc = -MC_E_UNSUPPORTED;
	else if (m->offer.len == 0 || m->offer.len > MC_CTL_OFFER_MAX)
		rc = -MC_E_INVAL;
	else if (epoch == 0) /* no hello, or no room to remember it */
		rc = -MC_E_LIMIT;
	if (rc == 0)
		j = mc_calloc(1, sizeof(*j));
	if (!j) {
		(void)mc_rpc_reply(req, rc < 0 ? rc : -MC_E_NOMEM, NULL, 0, NULL, 0);
		return;
	}
	j->job.run = connect_run;
	j->dev = dev;
	j->req = req;
	j->epoch = epoch;
	j->offer_len = m->offer.len;
	memcpy(j->offer, m->offer.data, m->offer.len);
	mc_work_post(user, &j->job);
}

static void serve_notify(struct mc_rpc_req *req, const struct mc_rpc_msg *msg, void *user)
{
	size_t mem_cap = msg->len + 1024;
	Mc__Ctl__NotifyReply reply = MC__CTL__NOTIFY_REPLY__INIT;
	uint8_t *mem, buf[64];
	Mc__Ctl__Notify *m;
	int rc;

	if (msg->len > MC_NOTIFY_MAX + 1024u) {
		(void)mc_rpc_reply(req, -MC_E_TOO_BIG, NULL, 0, NULL, 0);
		return;
	}
	mem = mc_aligned_alloc(16, mem_cap);
	if (!mem) {
		(void)mc_rpc_reply(req, -MC_E_NOMEM, NULL, 0, NULL, 0);
		return;
	}
	m = (Mc__Ctl__Notify *)unpack(req, msg, &mc__ctl__notify__descriptor, mem, mem_cap);
	if (m) {
		rc = mc_inbox_put(user, m->id, m->name.data, m->name.len, m->msg.data, m->msg.len);
		reply.status = rc == -MC_E_EXIST ? 0 : rc;
		reply_msg(req, &reply.base, buf, sizeof(buf));
	}
	mc_free(mem);
}

static void serve_probe(struct mc_rpc_req *req, const struct mc_rpc_msg *msg, void *user)
{
	Mc__Ctl__ProbeReply reply = MC__CTL__PROBE_REPLY__INIT;
	struct mc_engine *eng = user;
	uint8_t buf[64];

	(void)msg;
	reply.epoch = eng->epoch;
	reply_msg(req, &reply.base, buf, sizeof(buf));
}

/* ---- life ---- */

static void on_down(struct mc_rpc_peer *peer, int rc, void *user)
{
	(void)rc;
	mc_initiators_down(user, peer);
}

static const struct mc_control_ops control_ops = {
    .metadata = mc_describe_answer,
    .notify = on_notify,
    .adopt = on_adopt,
    .later = mc_classic_serve,
};

/* eng->rpc is the first loop's. */
struct rpc_swap {
	struct mc_engine *eng;
	struct mc_rpc_server *rpc;
};

static void rpc_swap(void *arg)
{
	struct rpc_swap *s = arg;
	struct mc_rpc_server *old = s->eng->rpc;

	s->eng->rpc = s->rpc;
	s->rpc = old;
}

int mc_serve_open(struct mc_engine *eng, const struct mc_addr *bind, struct mc_diag *diag)
{
	const struct mc_rpc_method methods[] = {
	    {MC_CTL_HELLO, "hello", serve_hello, eng},
	    {MC_CTL_RESOLVE, "resolve", serve_resolve, eng},
	    {MC_CTL_RETIRE, "retire", serve_retire, eng},
	    {MC_CTL_NOTIFY, "notify", serve_notify, eng},
	    {MC_CTL_PROBE, "probe", serve_probe, eng},
	    {MC_CTL_CONNECT, "connect", serve_connect, eng},
	    {MC_CTL_STAGE, "stage", mc_stage_serve_begin, eng},
	    {MC_CTL_UNSTAGE, "unstage", mc_stage_serve_end, eng},
	};
	struct mc_rpc_server_opts opts = {
	    .methods = methods, .nmethods = MC_ARRAY_LEN(methods), .on_down = on_down, .user = eng};
	struct mc_control_conf conf = {.hs = &eng->hs,
				       .bind = *bind,
				       .ops = &control_ops,
				       .user = eng,
				       .preface_len = MC_FRAME_PREFACE_LEN,
				       .later = eng->rdma ? 1u << MC_HS_CONNECTION : 0};
	struct rpc_swap swap = {.eng = eng};
	int rc = mc_rpc_server_open(&mc_env_real, eng->loops[0], &opts, &swap.rpc);

	if (rc < 0)
		return rc;
	mc_loop_call(eng->loops[0], rpc_swap, &swap);
	memcpy(conf.preface, MC_FRAME_PREFACE, MC_FRAME_PREFACE_LEN);
	rc = mc_control_open(eng->loops[0], &conf, &eng->control, diag);
	if (rc < 0)
		return rc;
	eng->port = mc_control_port(eng->control);
	return 0;
}

void mc_serve_close(struct mc_engine *eng)
{
	struct rpc_swap swap = {.eng = eng};

	mc_control_close(eng->control);
	if (eng->nloops > 0)
		mc_loop_call(eng->loops[0], rpc_swap, &swap);
	mc_rpc_server_close(swap.rpc);
	mc_describe_drop(eng);
	eng->control = NULL;
}
