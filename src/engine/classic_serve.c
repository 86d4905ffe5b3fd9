/*
 * classic_serve.c: upstream's processes that introduce their queue pairs to ours, by a Connection
 * request to the control port. Making queue pairs blocks, so a worker answers.
 *
 * Who introduces itself again under the same name ends what it had: it has restarted, or lost its
 * own. Nothing tells when such a peer is gone; the device's bound on accepted lanes makes room.
 */
#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "base/mem.h"
#include "disco/connection.h"
#include "engine/classic.h"
#include "xport/rdma/rdma.h"

struct serve_job {
	struct mc_worker_job job;
	struct mc_engine *eng;
	struct mc_control_call *call;
	size_t len;
	char json[];
};

#define REFUSE(c, ...) (void)snprintf((c)->reason, sizeof((c)->reason), __VA_ARGS__) /* cut */

/* Which of our ports is meant. @return -1: none, and the answer says why */
static int port_meant(const struct mc_engine *eng, const struct mc_connection *req,
		      struct mc_connection *answer)
{
	struct mc_view server, device;
	char name[MC_RDMA_NAME_MAX];
	int port;

	if (mc_nic_path_split(req->peer_nic, &server, &device) < 0) {
		REFUSE(answer, "\"%.100s\" is not server@device", req->peer_nic);
		return -1;
	}
	if (!mc_view_is(server, eng->name) && !mc_view_is(server, eng->address)) {
		REFUSE(answer, "this is %.100s, not %.*s", eng->name,
		       (int)mc_min(server.len, (size_t)100), server.at);
		return -1;
	}
	port =
	    mc_view_copy(device, name, sizeof(name)) == 0 ? mc_rdma_port_find(eng->rdma, name) : -1;
	if (port < 0)
		REFUSE(answer, "%.100s has no RDMA device %.*s", eng->name,
		       (int)mc_min(device.len, (size_t)64), device.at);
	return port;
}

static void accept_named(struct mc_engine *eng, unsigned port, const struct mc_connection *req,
			 struct mc_connection *answer)
{
	struct mc_rdma_end peer = {.lid = req->lid, .nqps = req->nqps}, mine;
	int rc;

	if (!req->has_gid || req->nqps == 0 || req->nqps > MC_RDMA_QPS_MAX) {
		REFUSE(answer, "%u queue pairs and %s GID: 1 to %u and one are needed", req->nqps,
		       req->has_gid ? "a" : "no", MC_RDMA_QPS_MAX);
		return;
	}
	memcpy(peer.gid, req->gid, sizeof(peer.gid));
	memcpy(peer.qpn, req->qpn, req->nqps * sizeof(peer.qpn[0]));
	rc = mc_rdma_accept_named(eng->rdma, port, req->local_nic, &peer, &mine);
	if (rc < 0) {
		REFUSE(answer, "%s", mc_err_text(rc));
		return;
	}
	answer->has_gid = true;
	memcpy(answer->gid, mine.gid, sizeof(answer->gid));
	answer->lid = mine.lid;
	answer->nqps = mine.nqps;
	memcpy(answer->qpn, mine.qpn, mine.nqps * sizeof(mine.qpn[0]));
}

/* A reason in the answer refuses. */
static void answer_make(struct mc_engine *eng, const struct mc_connection *req,
			struct mc_connection *ret)
{
	int port;

	*ret = (struct mc_connection){0};
	memcpy(ret->local_nic, req->peer_nic, sizeof(ret->local_nic));
	memcpy(ret->peer_nic, req->local_nic, sizeof(ret->peer_nic));
	port = port_meant(eng, req, ret);
	/* A third step, which our answers do not ask for: there is nothing left to do. */
	if (port >= 0 && !req->is_ready)
		accept_named(eng, (unsigned)port, req, ret);
	mc_log_debug("queue pairs introduced", "by=%s to=%s refused=\"%s\"", req->local_nic,
		     req->peer_nic, ret->reason);
}

static void serve_run(struct mc_worker_job *job)
{
	struct serve_job *j = mc_container_of(job, struct serve_job, job);
	struct mc_control_text *text = NULL;
	struct mc_connection req, answer;
	struct mc_diag diag = {0};
	char *json = NULL;
	size_t len = 0;
	int rc = mc_connection_decode(j->json, j->len, &req, &diag);

	if (rc == 0)
		answer_make(j->eng, &req, &answer);
	else {
		answer = (struct mc_connection){0};
		(void)mc_strlcpy(answer.reason, sizeof(answer.reason), diag.text); /* cut */
	}
	rc = mc_connection_encode(&answer, &json, &len);
	if (rc == 0)
		rc = mc_control_text_open(json, len, &text);
	if (rc < 0)
		text = NULL; /* the connection is closed without a reply */
	mc_control_answer(j->call, text);
	mc_free(j);
}

int mc_classic_serve(void *user, enum mc_hs_type type, const char *json, size_t len,
		     struct mc_control_call *call)
{
	struct mc_engine *eng = user;
	struct serve_job *j;

	mc_assert(type == MC_HS_CONNECTION);
	if (len > MC_CONNECTION_BYTES_MAX)
		return -MC_E_TOO_BIG;
	j = mc_calloc(1, sizeof(*j) + len);
	if (!j)
		return -MC_E_NOMEM;
	j->job.run = serve_run;
	j->eng = eng;
	j->call = call;
	j->len = len;
	memcpy(j->json, json, len);
	mc_work_post(eng, &j->job);
	return 0;
}
