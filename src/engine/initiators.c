/*
 * initiators.c: see initiators.h. A record lives from the first hello of an incarnation until
 * PATIENCE after its last connection went; then a worker ends its RDMA lanes and takes its staging
 * buffers. A peer that only lost its connection for that long gets errors that its engine repairs.
 */
#include "engine/initiators.h"

#include "base/log.h"
#include "engine/stage.h"
#include "xport/rdma/rdma.h"

#define PATIENCE_NS (30 * MC_NS_PER_S)

struct initiator {
	struct mc_list link;
	struct mc_worker_job job; /* once it is in no list any more */
	struct mc_engine *eng;
	uint64_t epoch;
	unsigned conns;
	uint64_t lost_ns; /* of its last connection */
};

struct mc_initiators {
	struct mc_engine *eng;
	struct mc_list list;
	unsigned n;
	struct mc_timer timer;
	uint64_t patience_ns;
};

static void forget_run(struct mc_worker_job *job)
{
	struct initiator *in = mc_container_of(job, struct initiator, job);

	mc_log_info("what a lost peer left here ends", "epoch=%llu", (unsigned long long)in->epoch);
	if (in->eng->rdma)
		mc_rdma_forget(in->eng->rdma, in->epoch);
	mc_stage_forget(in->eng, in->epoch);
	mc_free(in);
}

static void on_time(struct mc_timer *t)
{
	struct mc_initiators *all = mc_container_of(t, struct mc_initiators, timer);
	struct mc_loop *loop = all->eng->loops[0];
	uint64_t now_ns = mc_loop_now(loop), next_ns = MC_TIME_NEVER;
	struct initiator *in;

	mc_list_each (in, &all->list, link) {
		uint64_t due_ns = mc_time_after(in->lost_ns, all->patience_ns);

		if (in->conns > 0)
			continue;
		if (due_ns > now_ns) {
			next_ns = mc_min(next_ns, due_ns);
			continue;
		}
		mc_list_del(&in->link);
		all->n--;
		in->job.run = forget_run;
		mc_work_post(all->eng, &in->job);
	}
	if (next_ns != MC_TIME_NEVER)
		(void)mc_loop_timer_set(loop, &all->timer, next_ns);
}

int mc_initiators_open(struct mc_engine *eng)
{
	struct mc_initiators *all = mc_calloc(1, sizeof(*all));

	if (!all)
		return -MC_E_NOMEM;
	all->eng = eng;
	all->patience_ns = PATIENCE_NS;
	all->timer.on_time = on_time;
	mc_list_init(&all->list);
	eng->initiators = all;
	return 0;
}

static void cancel(void *arg)
{
	struct mc_initiators *all = arg;

	if (all->timer.is_set)
		mc_loop_timer_cancel(all->eng->loops[0], &all->timer);
}

void mc_initiators_close(struct mc_engine *eng)
{
	struct mc_initiators *all = eng->initiators;
	struct initiator *in;

	if (!all)
		return;
	mc_loop_call(eng->loops[0], cancel, all);
	mc_list_each (in, &all->list, link)
		mc_free(in);
	mc_free(all);
	eng->initiators = NULL;
}

void mc_initiators_hello(struct mc_engine *eng, struct mc_rpc_peer *peer, uint64_t epoch)
{
	struct mc_initiators *all = eng->initiators;
	struct initiator *in, *found = NULL;

	if (!all || epoch == 0 || mc_rpc_peer_user(peer))
		return;
	mc_list_each (in, &all->list, link)
		if (in->epoch == epoch)
			found = in;
	if (!found) {
		found = all->n < MC_INITIATORS_MAX ? mc_calloc(1, sizeof(*found)) : NULL;
		if (!found)
			return;
		found->eng = eng;
		found->epoch = epoch;
		mc_list_push_back(&all->list, &found->link);
		all->n++;
	}
	found->conns++;
	mc_rpc_peer_set_user(peer, found);
}

void mc_initiators_down(struct mc_engine *eng, struct mc_rpc_peer *peer)
{
	struct mc_initiators *all = eng->initiators;
	struct initiator *in = mc_rpc_peer_user(peer);

	if (!in)
		return;
	mc_rpc_peer_set_user(peer, NULL);
	if (--in->conns > 0)
		return;
	in->lost_ns = mc_loop_now(eng->loops[0]);
	if (!all->timer.is_set)
		(void)mc_loop_timer_set(eng->loops[0], &all->timer,
					mc_time_after(in->lost_ns, all->patience_ns));
}

uint64_t mc_initiators_epoch(const struct mc_rpc_peer *peer)
{
	const struct initiator *in = mc_rpc_peer_user(peer);

	return in ? in->epoch : 0;
}

void mc_initiators_patience(struct mc_engine *eng, uint64_t ns)
{
	eng->initiators->patience_ns = ns;
}
