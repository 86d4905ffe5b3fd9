/*
 * cluster.c: what the programs' main functions do, in simulated processes.
 */
#include "sim/vos/cluster.h"

#include <inttypes.h>
#include <string.h>

#include <mooncake/engine.h>
#include <mooncake/store.h>

#include "base/mem.h"
#include "io/env.h"
#include "master/master.h"
#include "node/node.h"
#include "sim/vos/sim_disk.h"
#include "sim/vos/sim_engine.h"

#define MASTER_AT "10.77.0.1:50051"

struct cluster cluster;

static void sleep_for_ever(void)
{
	static const char nobody;

	for (;;)
		(void)vos_wait(&nobody, MC_TIME_NEVER);
}

static void open_or_fail(int rc, const struct mc_diag *diag, const char *what)
{
	if (rc < 0)
		vos_fail("%s does not open: %s (%s)", what, diag->text, mc_err_text(rc));
}

static void *master_main(void *arg)
{
	struct mc_env env = mc_env_real;
	struct mc_master_conf conf;
	struct mc_diag diag = {.text = ""};
	struct mc_loop *loop, *side;
	struct mc_master *master;
	struct mc_addr at;
	int rc;

	(void)arg;
	env.disk = sim_disk_ops(cluster.state);
	mc_master_conf_defaults(&conf);
	conf.state_dir = MEM_DISK_DIR;
	conf.client_ttl_ms = cluster.ttl_ms;
	conf.lease_ms = cluster.lease_ms;
	conf.seed = 1 + vos_pick(UINT32_MAX);
	rc = mc_loop_open("master", env.clk, &loop);
	if (rc == 0)
		rc = mc_loop_open("master-side", env.clk, &side);
	if (rc == 0)
		rc = mc_loop_start(loop);
	if (rc == 0)
		rc = mc_loop_start(side);
	open_or_fail(rc, &diag, "loop");
	open_or_fail(mc_master_open(&env, loop, side, &conf, &diag, &master), &diag, "master");
	open_or_fail(mc_addr_resolve(MASTER_AT, 0, &at, &diag), &diag, "address");
	open_or_fail(mc_master_listen(master, &at, &at), &diag, "master's port");
	sleep_for_ever();
	return NULL;
}

void cluster_master_start(void)
{
	cluster.master = vos_proc_new("master", MASTER_HOST);
	sim_disk_give(cluster.master, cluster.state);
	(void)vos_spawn(cluster.master, master_main, NULL);
}

static void *node_main(void *arg)
{
	struct sim_node *n = arg;
	struct mc_diag diag = {.text = ""};
	struct mc_node_conf conf = {.protocol = "tcp", .master = MASTER_AT};
	struct mc_node *node;
	char name[64];

	(void)snprintf(name, sizeof(name), "10.77.0.%u:7000", NODE_HOST + n->index + 1);
	conf.name = name;
	conf.segment_bytes = n->bytes;
	if (n->disk)
		conf.disk_path = MEM_DISK_DIR;
	open_or_fail(mc_node_open(&conf, &diag, &node), &diag, "node");
	n->node = node;
	sleep_for_ever();
	return NULL;
}

void cluster_node_start(struct sim_node *n)
{
	n->node = NULL;
	n->proc = vos_proc_new("node", NODE_HOST + n->index);
	sim_disk_give(n->proc, n->disk);
	(void)vos_spawn(n->proc, node_main, n);
}

struct start {
	struct sim_client *client;
	void *(*work)(void *client);
};

static void *client_main(void *arg)
{
	struct start s = *(struct start *)arg;
	struct mc_store_opts opts = {.size = sizeof(opts), .protocol = "tcp", .master = MASTER_AT};
	struct mc_diag diag = {.text = ""};
	struct mc_store *store;
	char name[64];

	vos_host_free(arg);
	(void)snprintf(name, sizeof(name), "10.77.0.%u:7000", CLIENT_HOST + s.client->index + 1);
	opts.name = name;
	opts.timeout_ms = (uint32_t)cluster.timeout_ms;
	while (mc_store_open(&opts, &diag, &store) < 0)
		; /* within seconds; the master may be away for longer */
	s.client->store = store;
	(void)s.work(s.client);
	sleep_for_ever();
	return NULL;
}

void cluster_client_start(struct sim_client *c, void *(*work)(void *client))
{
	struct start *s = vos_host_alloc(sizeof(*s));

	*s = (struct start){c, work};
	c->store = NULL;
	c->proc = vos_proc_new("client", CLIENT_HOST + c->index);
	(void)vos_spawn(c->proc, client_main, s);
}

void cluster_kill(struct vos_proc *proc)
{
	vos_kill(proc);
	sim_engine_proc_end(proc);
	sim_disk_proc_end(proc);
}

struct question {
	struct sim_node *node;
	uint64_t used;
	bool is_answered;
};

static void *ask_used(void *arg)
{
	static const char what[] = "\nmc_owner_used_bytes ";
	struct question *q = arg;
	char *text = mc_node_metrics(q->node->node), *at = text ? strstr(text, what) : NULL;

	if (text && getenv("MC_SIM_METRICS"))
		(void)fprintf(stderr, "%s\n", text);
	if (at)
		q->used = strtoull(at + sizeof(what) - 1, NULL, 10);
	q->is_answered = at != NULL;
	mc_text_free(text);
	return NULL;
}

bool cluster_node_used(struct sim_node *n, uint64_t *ret_bytes)
{
	struct question q = {.node = n};
	struct vos_thread *t = vos_spawn(n->proc, ask_used, &q);

	while (!vos_thread_is_over(t) && vos_step())
		;
	*ret_bytes = q.used;
	return q.is_answered;
}
