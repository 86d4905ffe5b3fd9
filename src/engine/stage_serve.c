/*
 * stage_serve.c: the calls Stage and Unstage. Workers do them, a few at a time: disks are slow, and
 * fences need workers, too.
 */
#include "control.pb-c.h"
#include "engine/ctl.h"
#include "engine/initiators.h"
#include "engine/stage.h"
#include "rpc/rpc.h"
#include "wire/pb.h"

struct stage_job {
	struct mc_worker_job job;
	struct mc_engine *eng;
	struct mc_rpc_req *req;
	struct mc_stage_want want;
	enum mc_ctl_unstage end;
};

static void reply_msg(struct mc_rpc_req *req, const ProtobufCMessage *m)
{
	uint8_t buf[MC_CTL_REGION_LEN + 64];
	size_t len = 0;
	int rc = mc_pb_pack(m, buf, sizeof(buf), &len);

	(void)mc_rpc_reply(req, rc, buf, rc == 0 ? len : 0, NULL, 0);
}

static void job_end(struct stage_job *j)
{
	atomic_fetch_sub_explicit(&j->eng->nstage_jobs, 1, memory_order_relaxed);
	mc_free(j);
}

static void begin_run(struct mc_worker_job *job)
{
	struct stage_job *j = mc_container_of(job, struct stage_job, job);
	Mc__Ctl__StageReply reply = MC__CTL__STAGE_REPLY__INIT;
	struct mc_stage_piece piece;
	struct mc_ctl_region region;
	uint8_t record[MC_CTL_REGION_LEN];
	struct mc_wr w = mc_wr_make(record, sizeof(record));

	reply.status = mc_stage_begin(j->eng, &j->want, &piece);
	if (reply.status == 0) {
		mc_ctl_region_tell(j->eng, &piece.buf, &region);
		mc_ctl_region_encode(&w, &region);
		reply.addr = piece.addr;
		reply.region = (ProtobufCBinaryData){.data = record, .len = mc_wr_len(&w)};
	}
	reply_msg(j->req, &reply.base);
	job_end(j);
}

static void end_run(struct mc_worker_job *job)
{
	struct stage_job *j = mc_container_of(job, struct stage_job, job);
	Mc__Ctl__UnstageReply reply = MC__CTL__UNSTAGE_REPLY__INIT;

	reply.status = mc_stage_end(j->eng, j->want.owner, j->want.id, j->end);
	reply_msg(j->req, &reply.base);
	job_end(j);
}

/* A job for what the message asked for; < 0: it was not, and the call is answered. */
static void job_start(struct mc_engine *eng, struct mc_rpc_req *req, int rc,
		      const struct mc_stage_want *want, enum mc_ctl_unstage end,
		      void (*run)(struct mc_worker_job *job))
{
	struct stage_job *j = NULL;

	if (rc == 0 && want->owner == 0) /* no hello, or no room to remember it */
		rc = -MC_E_LIMIT;
	if (rc == 0) {
		j = mc_calloc(1, sizeof(*j));
		rc = j ? 0 : -MC_E_NOMEM;
	}
	if (rc == 0 && atomic_fetch_add_explicit(&eng->nstage_jobs, 1, memory_order_relaxed) >=
			   MC_STAGE_JOBS) {
		atomic_fetch_sub_explicit(&eng->nstage_jobs, 1, memory_order_relaxed);
		rc = -MC_E_AGAIN;
	}
	if (rc < 0) {
		mc_free(j);
		(void)mc_rpc_reply(req, rc, NULL, 0, NULL, 0);
		return;
	}
	*j = (struct stage_job){
	    .job = {.run = run}, .eng = eng, .req = req, .want = *want, .end = end};
	mc_work_post(eng, &j->job);
}

void mc_stage_serve_begin(struct mc_rpc_req *req, const struct mc_rpc_msg *msg, void *user)
{
	_Alignas(16) uint8_t mem[512];
	struct mc_stage_want want = {.owner = mc_initiators_epoch(req->peer)};
	struct mc_pb_arena arena;
	ProtobufCMessage *base;
	int rc;

	mc_pb_arena_init(&arena, mem, sizeof(mem));
	rc = mc_pb_unpack(&arena, &mc__ctl__stage__descriptor, msg->data, msg->len, &base);
	if (rc == 0) {
		const Mc__Ctl__Stage *m = (const Mc__Ctl__Stage *)base;

		want.id = m->id;
		want.op = (enum mc_op)m->op;
		want.region = m->region;
		want.gen = m->gen;
		want.off = m->offset;
		want.len = m->len;
		if (m->op >= MC_OP_COUNT)
			rc = -MC_E_INVAL;
	}
	job_start(user, req, rc, &want, MC_CTL_UNSTAGE_DROP, begin_run);
}

void mc_stage_serve_end(struct mc_rpc_req *req, const struct mc_rpc_msg *msg, void *user)
{
	_Alignas(16) uint8_t mem[512];
	struct mc_stage_want want = {.owner = mc_initiators_epoch(req->peer)};
	enum mc_ctl_unstage end = MC_CTL_UNSTAGE_DROP;
	struct mc_pb_arena arena;
	ProtobufCMessage *base;
	int rc;

	mc_pb_arena_init(&arena, mem, sizeof(mem));
	rc = mc_pb_unpack(&arena, &mc__ctl__unstage__descriptor, msg->data, msg->len, &base);
	if (rc == 0) {
		const Mc__Ctl__Unstage *m = (const Mc__Ctl__Unstage *)base;

		want.id = m->id;
		end = (enum mc_ctl_unstage)m->end;
		if (m->end >= MC_CTL_UNSTAGE_COUNT)
			rc = -MC_E_INVAL;
	}
	job_start(user, req, rc, &want, end, end_run);
}
