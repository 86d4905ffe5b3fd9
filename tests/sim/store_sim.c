/*
 * store_sim.c: the faults and the end of one history; its load is store_sim_load.c.
 */
#include "sim/store_sim.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <mooncake/store.h>

#include "base/log.h"
#include "base/mem.h"
#include "base/spin.h"
#include "sim/store_sim_load.h"
#include "sim/vos/cluster.h"
#include "sim/vos/ledger.h"
#include "sim/vos/sim_engine.h"
#include "sim/vos/vos.h"

#define SETTLE_NS (6 * SEC)  /* after the last fault */
#define SPACE_NS (45 * SEC)  /* until all room is back */
#define WORLD_NS (400 * SEC) /* nothing takes so long */

const char *const store_sim_names[SIM_COUNT] = {
    "writes", "acknowledged", "unknown", "reads",    "misses",	      "removes", "kills",
    "stops",  "cuts",	      "pieces",	 "unfenced", "late landings", "seconds"};

bool store_sim_is_told;

/* ---- faults ---- */

static void fault_begin(void)
{
	sim_run.faults++;
	sim_run.calm_ns = MC_TIME_NEVER;
}

static void fault_end(void)
{
	sim_engine_moved();
	if (--sim_run.faults == 0)
		sim_run.calm_ns = vos_now() + cluster.ttl_ms * MS + 3 * SEC;
}

static void on_master_start(void *arg)
{
	(void)arg;
	if (!cluster.master->is_dead)
		return;
	tell("master starts");
	cluster_master_start();
}

static void master_kill(void)
{
	if (cluster.master->is_dead)
		return;
	tell("master is killed");
	sim_run.kills++;
	cluster_kill(cluster.master);
	if (vos_one_in(3)) {
		tell("its disk loses its power");
		sim_disk_cut(cluster.state);
	}
	if (sim_run.loses_state && vos_one_in(2)) {
		tell("its state is lost");
		cluster.state = sim_disk_new(16 << 20);
		ledger_state_lost();
		ledger_owner_lost();
	}
	vos_at(vos_now() + vos_pick(vos_one_in(4) ? 4 * SEC : 300 * MS), on_master_start, NULL);
}

static void on_node_start(void *arg)
{
	struct sim_node *n = arg;

	tell("node %u starts", n->index);
	cluster_node_start(n);
	fault_end();
}

static void node_kill(struct sim_node *n)
{
	if (n->proc->is_dead)
		return;
	tell("node %u is killed", n->index);
	sim_run.kills++;
	cluster_kill(n->proc);
	ledger_owner_lost();
	fault_begin(); /* where nobody is who has room there is none */
	vos_at(vos_now() + vos_pick(vos_one_in(3) ? 6 * SEC : 500 * MS), on_node_start, n);
}

static void on_client_start(void *arg)
{
	struct sim_client *c = arg;

	tell("client %u starts", c->index);
	cluster_client_start(c, store_sim_work);
}

static void client_kill(struct sim_client *c)
{
	if (c->proc->is_dead)
		return;
	tell("client %u is killed", c->index);
	sim_run.kills++;
	cluster_kill(c->proc);
	sim_run.workers -= c->workers;
	c->workers = 0;
	for (unsigned i = 0; i < OPS_MAX; i++) {
		if (sim_run.ops[i].is_open && sim_run.ops[i].client == c)
			sim_run.ops[i].is_open = false;
	}
	vos_at(vos_now() + vos_pick(SEC), on_client_start, c);
}

static struct vos_proc *any_proc(void)
{
	uint64_t i = vos_pick(1 + cluster.nnodes + cluster.nclients);

	if (i == 0)
		return cluster.master;
	return i <= cluster.nnodes ? cluster.nodes[i - 1].proc
				   : cluster.clients[i - 1 - cluster.nnodes].proc;
}

static void on_cont(void *arg)
{
	struct vos_proc *p = arg;

	if (p->is_stopped) {
		tell("%s of host %u goes on", p->name, p->host);
		vos_cont(p);
	}
	fault_end();
}

static void proc_stop(struct vos_proc *p)
{
	if (p->is_dead || p->is_stopped)
		return;
	tell("%s of host %u is stopped", p->name, p->host);
	sim_run.stops++;
	vos_stop(p);
	fault_begin();
	vos_at(vos_now() + vos_pick(vos_one_in(3) ? 8 * SEC : 500 * MS), on_cont, p);
}

static void on_heal(void *arg)
{
	unsigned a = (unsigned)(uintptr_t)arg / 256, b = (unsigned)(uintptr_t)arg % 256;

	tell("hosts %u and %u are healed", a, b);
	vos_net_cut(a, b, false);
	fault_end();
}

static void hosts_cut(unsigned a, unsigned b)
{
	if (a == b || vos_net_is_cut(a, b))
		return;
	tell("hosts %u and %u are cut off from each other", a, b);
	sim_run.cuts++;
	vos_net_cut(a, b, true);
	fault_begin();
	vos_at(vos_now() + (sim_run.is_far ? vos_between(2 * SEC, 6 * SEC)
					   : vos_pick(vos_one_in(3) ? 12 * SEC : SEC)),
	       on_heal, (void *)(uintptr_t)(a * 256 + b));
}

/* While bytes of a write are under way: who sends them dies, or nobody can ask who gets them. */
static void on_write_fault(void *arg)
{
	unsigned from = (unsigned)(uintptr_t)arg / 256, to = (unsigned)(uintptr_t)arg % 256;
	uint64_t what = sim_run.is_far ? 2 : vos_pick(3);

	if (sim_run.is_over)
		return;
	if (what == 0 && from >= CLIENT_HOST)
		client_kill(&cluster.clients[from - CLIENT_HOST]);
	else if (what == 1 && to >= NODE_HOST && to < CLIENT_HOST)
		proc_stop(cluster.nodes[to - NODE_HOST].proc);
	else
		hosts_cut(from, to);
}

static void on_write(unsigned from, unsigned to)
{
	vos_at(vos_now() + vos_pick(sim_engine_conf.delay_max_ns), on_write_fault,
	       (void *)(uintptr_t)(from * 256 + to));
}

struct faults {
	uint64_t every_ns;
	uint32_t master, node, client, stop, cut; /* chances, of their sum */
};
static struct faults faults;

static void on_fault(void *arg)
{
	uint64_t sum = faults.master + faults.node + faults.client + faults.stop + faults.cut, i;

	(void)arg;
	if (sim_run.is_over || sum == 0)
		return;
	i = vos_pick(sum);
	if (i < faults.master)
		master_kill();
	else if ((i -= faults.master) < faults.node)
		node_kill(&cluster.nodes[vos_pick(cluster.nnodes)]);
	else if ((i -= faults.node) < faults.client)
		client_kill(&cluster.clients[vos_pick(cluster.nclients)]);
	else if ((i -= faults.client) < faults.stop)
		proc_stop(any_proc());
	else
		hosts_cut(any_proc()->host, any_proc()->host);
	vos_at(vos_now() + vos_pick(faults.every_ns), on_fault, NULL);
}

/* ---- the end ---- */

static void world_run_until(uint64_t at_ns)
{
	while (vos_now() < at_ns && vos_step())
		;
}

/* No two listed objects share bytes of one segment. */
static void overlap_check(struct sim_client *c)
{
	struct mc_store_replica all[LEDGER_KEYS_MAX * 2], r[MC_STORE_REPLICAS_MAX];
	uint32_t of[LEDGER_KEYS_MAX * 2];
	unsigned n = 0;
	char text[16];

	for (uint32_t k = 0; k < sim_run.nkeys; k++) {
		struct mc_store_key key = store_sim_key(k, text);
		int count = mc_store_replicas(c->store, &key, r);

		for (int i = 0; i < count; i++) {
			if (r[i].kind != MC_STORE_MEMORY || n == MC_ARRAY_LEN(all))
				continue;
			for (unsigned j = 0; j < n; j++) {
				if (strcmp(all[j].segment, r[i].segment) == 0 &&
				    all[j].addr < r[i].addr + r[i].len &&
				    r[i].addr < all[j].addr + all[j].len)
					vos_fail("OVERLAP: k%u [%#llx, +%llu) and k%u [%#llx, "
						 "+%llu) in %s",
						 of[j], (unsigned long long)all[j].addr,
						 (unsigned long long)all[j].len, k,
						 (unsigned long long)r[i].addr,
						 (unsigned long long)r[i].len, r[i].segment);
			}
			of[n] = k;
			all[n++] = r[i];
		}
	}
}

static void *verify(void *client)
{
	struct sim_client *c = client;
	uint8_t *buf = malloc(LEN_MAX);
	int64_t got;

	mc_assert(buf);
	tell("all is read again");
	overlap_check(c);
	for (uint32_t k = 0; k < sim_run.nkeys; k++) {
		got = store_sim_get(c, k, buf);
		if (got < 0 && got != MC_STORE_OBJECT_NOT_FOUND)
			vos_fail("NOT SERVED: k%u gives %lld when all is well again", k,
				 (long long)got);
	}
	tell("all is removed");
	for (uint32_t k = 0; k < sim_run.nkeys; k++) {
		int code = store_sim_remove(c, k, true);

		if (code != 0 && code != MC_STORE_OBJECT_NOT_FOUND)
			vos_fail("NOT SERVED: removal of k%u gives %d when all is well again", k,
				 code);
	}
	store_sim_chains_remove(c);
	for (uint32_t k = 0; k < sim_run.nkeys; k++)
		(void)store_sim_get(c, k, buf);
	free(buf);
	sim_run.verified = 1;
	return NULL;
}

static void space_check(void)
{
	uint64_t used, until = vos_now() + SPACE_NS;

	for (unsigned i = 0; i < cluster.nnodes; i++) {
		for (;;) {
			if (!cluster_node_used(&cluster.nodes[i], &used))
				vos_fail("NOT SERVED: node %u has no metrics", i);
			if (used == 0)
				break;
			if (vos_now() > until)
				vos_fail("SPACE LOST: %llu bytes of node %u",
					 (unsigned long long)used, i);
			world_run_until(vos_now() + SEC);
		}
	}
}

/* All is healed and started; the old clients die, a new one looks at what there is. */
static void finish(void)
{
	struct sim_client *c = &cluster.clients[0];
	uint64_t until = vos_now() + 60 * SEC;

	sim_run.is_over = true;
	while (sim_run.faults > 0 || cluster.master->is_dead)
		mc_assert(vos_step() && vos_now() < until);
	for (unsigned i = 0; i < cluster.nnodes; i++)
		while (cluster.nodes[i].proc->is_dead || !cluster.nodes[i].node)
			mc_assert(vos_step() && vos_now() < until);
	world_run_until(vos_now() + cluster.timeout_ms * MS + LATE_NS);
	store_sim_ops_check();
	for (unsigned i = 0; i < cluster.nclients; i++)
		cluster_kill(cluster.clients[i].proc);
	memset(sim_run.ops, 0, sizeof(sim_run.ops));
	world_run_until(vos_now() + cluster.ttl_ms * MS + SETTLE_NS);
	cluster_client_start(c, verify);
	until = vos_now() + 120 * SEC;
	while (!sim_run.verified) {
		if (!vos_step() || vos_now() > until)
			vos_fail("NOT SERVED: a client finds no way");
	}
	space_check();
}

/* ---- the world ---- */

static void on_fail(const char *text)
{
	(void)fprintf(stderr, "seed %llu at %.6f: ", (unsigned long long)sim_run.seed,
		      (double)(vos_now() - 1000 * SEC) / 1e9);
	(void)text;
}

static void on_log(void *user, enum mc_log_level level, const char *line)
{
	const char *text = strstr(line, "msg=");

	(void)user;
	(void)level;
	tell("  host %u: %s", vos_self() ? vos_self()->host : 99, text ? text : line);
}

/* Nothing happens but the load. */
static void quiet_pick(void)
{
	faults = (struct faults){.every_ns = SEC};
	sim_engine_conf.tell_ppm = 0;
	cluster.nnodes = 1 + (unsigned)vos_pick(2);
	sim_run.is_roomy = vos_one_in(3);
}

/* Nothing but cuts that outlast a write, whose bytes nobody can fence, and may find another object
 * where they land. */
static void far_pick(void)
{
	faults = (struct faults){.every_ns = SEC};
	sim_engine_conf.tell_ppm = 100000;
	sim_engine_conf.late_ppm = 0;
	cluster.nnodes = 1;
	cluster.nclients = 2;
	cluster.timeout_ms = 4000;
	sim_run.nkeys = (uint32_t)vos_between(3, 6);
	sim_run.big_per_100 = 70;
	sim_run.is_quiet = false;
	sim_run.is_roomy = true;
}

static void conf_pick(void)
{
	sim_run.nkeys = (uint32_t)vos_between(3, 24);
	sim_run.ops_left = (uint32_t)vos_between(40, 160);
	sim_run.small_max = vos_one_in(2) ? 4000 : 100 * 1024;
	sim_run.big_per_100 = (uint32_t)vos_pick(40);
	sim_run.is_roomy = !vos_one_in(3);
	sim_run.loses_state = vos_one_in(8);
	cluster.ttl_ms = vos_between(1000, 4000);
	cluster.lease_ms = vos_one_in(2) ? 200 : 2000;
	cluster.timeout_ms = vos_between(4000, 12000);
	cluster.nnodes = (unsigned)vos_between(1, 3);
	cluster.nclients = (unsigned)vos_between(1, 3);
	vos_net_conf = (struct vos_net_conf){.delay_min_ns = 10000,
					     .delay_max_ns = vos_one_in(3) ? 5 * MS : 100000,
					     .slow_ppm = (uint32_t)vos_pick(3) * 5000,
					     .slow_max_ns = 300 * MS,
					     .reset_ppm = (uint32_t)vos_pick(3) * 2000};
	sim_engine_conf = (struct sim_engine_conf){.delay_min_ns = 5000,
						   .delay_max_ns = vos_one_in(3) ? 3 * MS : 60000,
						   .piece_max = vos_one_in(2) ? 2000 : 64 * 1024,
						   .late_ppm = (uint32_t)vos_pick(3) * 2000,
						   .late_max_ns = 300 * MS,
						   .is_one_sided = vos_one_in(2),
						   .tell_ppm = vos_one_in(4) ? 30000 : 0,
						   .on_write = on_write};
	sim_disk_slow_max_ns = vos_one_in(3) ? 20 * MS : 300000;
	faults = (struct faults){.every_ns = vos_between(200, 4000) * MS,
				 .master = (uint32_t)vos_pick(3),
				 .node = vos_one_in(3) ? (uint32_t)vos_pick(3) : 0,
				 .client = (uint32_t)vos_pick(3),
				 .stop = (uint32_t)vos_pick(3),
				 .cut = (uint32_t)vos_pick(3)};
	sim_run.is_quiet = vos_one_in(6);
	sim_run.is_far = sim_run.seed % 8 == 5;
	if (sim_run.is_far)
		far_pick();
	else if (sim_run.is_quiet)
		quiet_pick();
}

static void world_start(void)
{
	cluster.state = sim_disk_new(16 << 20);
	cluster_master_start();
	for (unsigned i = 0; i < cluster.nnodes; i++) {
		cluster.nodes[i] = (struct sim_node){
		    .index = i,
		    .bytes = sim_run.is_roomy ? 64u << 20 : (uint64_t)vos_between(700, 3000) << 10};
		cluster_node_start(&cluster.nodes[i]);
	}
	for (unsigned i = 0; i < cluster.nclients; i++) {
		cluster.clients[i] = (struct sim_client){.index = i};
		cluster_client_start(&cluster.clients[i], store_sim_work);
	}
}

void store_sim_run(uint64_t seed, uint64_t sums[SIM_COUNT])
{
	uint64_t begin;

	memset(&sim_run, 0, sizeof(sim_run));
	sim_run.seed = seed;
	vos_fail_hook = on_fail;
	vos_init(seed);
	ledger_init();
	mc_spin_machine(1, "/nonexistent");
	mc_log_level_set(MC_LOG_INFO); /* also where nobody reads it: a history is the same then */
	mc_log_sink_set(on_log, NULL);
	conf_pick();
	begin = vos_now();
	sim_run.calm_ns = begin + 3 * SEC;
	world_start();
	vos_at(begin + vos_pick(2 * SEC), on_fault, NULL);
	while (sim_run.ops_left > 0 || sim_run.workers > 0) {
		if (vos_now() - begin > WORLD_NS / 4)
			break; /* faults leave no time to work */
		if (!vos_step())
			vos_fail("STUCK: nobody has anything to do");
	}
	finish();
	sums[SIM_WRITES] = ledger_stats.writes;
	sums[SIM_ACKED] = ledger_stats.acked;
	sums[SIM_UNKNOWN] = ledger_stats.unknown;
	sums[SIM_READS] = ledger_stats.reads;
	sums[SIM_MISSES] = ledger_stats.misses;
	sums[SIM_REMOVES] = ledger_stats.removes;
	sums[SIM_KILLS] = sim_run.kills;
	sums[SIM_STOPS] = sim_run.stops;
	sums[SIM_CUTS] = sim_run.cuts;
	sums[SIM_PIECES] = sim_engine_stats.pieces;
	sums[SIM_UNFENCED] = sim_engine_stats.unfenced;
	sums[SIM_LATE] = sim_engine_stats.late_landings;
	sums[SIM_SECONDS] = (vos_now() - begin) / SEC;
}
