/*
 * store_sim.c: the load, the faults and the end of one history.
 */
#include "sim/store_sim.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <mooncake/store.h>

#include "base/log.h"
#include "base/mem.h"
#include "base/spin.h"
#include "sim/vos/cluster.h"
#include "sim/vos/ledger.h"
#include "sim/vos/sim_engine.h"
#include "sim/vos/vos.h"

#define MS MC_NS_PER_MS
#define SEC MC_NS_PER_S
#define LEN_MAX (320u << 10)
#define LATE_NS (300 * MS)   /* an operation may end so much after its deadline */
#define SETTLE_NS (6 * SEC)  /* after the last fault */
#define SPACE_NS (45 * SEC)  /* until all room is back */
#define WORLD_NS (400 * SEC) /* nothing takes so long */
#define OPS_MAX 64u

const char *const store_sim_names[SIM_COUNT] = {
    "writes", "acknowledged", "unknown", "reads",    "misses",	      "removes", "kills",
    "stops",  "cuts",	      "pieces",	 "unfenced", "late landings", "seconds"};

bool store_sim_is_told;

/* An operation under way. */
struct op {
	struct sim_client *client;
	uint64_t start_ns, stop_sum_ns;
	bool is_open;
	char text[64];
};

static struct {
	uint64_t seed;
	uint32_t nkeys, ops_left, workers; /* that work now */
	uint32_t small_max, big_per_100;
	bool is_roomy, has_node_kills, loses_state, is_over;
	unsigned faults;  /* stopped or cut off now */
	uint64_t calm_ns; /* all owners are known since then; NEVER: not now */
	uint64_t kills, stops, cuts;
	struct op ops[OPS_MAX];
	unsigned verified;
} run;

#define tell(...)                                                                                  \
	do {                                                                                       \
		if (store_sim_is_told) {                                                           \
			(void)fprintf(stderr, "%10.6f  ", (double)(vos_now() - 1000 * SEC) / 1e9); \
			(void)fprintf(stderr, __VA_ARGS__);                                        \
			(void)fprintf(stderr, "\n");                                               \
		}                                                                                  \
	} while (0)

/* ---- operations ---- */

static uint64_t stopped_of(const struct vos_proc *p)
{
	return p->stop_sum_ns + (p->is_stopped ? vos_now() - p->stopped_ns : 0);
}

static struct op *op_begin(struct sim_client *c, const char *what, uint32_t key)
{
	for (unsigned i = 0; i < OPS_MAX; i++) {
		struct op *op = &run.ops[i];

		if (op->is_open)
			continue;
		*op = (struct op){c, vos_now(), stopped_of(c->proc), true, ""};
		(void)snprintf(op->text, sizeof(op->text), "client %u %s k%u", c->index, what, key);
		tell("%s begins", op->text);
		return op;
	}
	vos_fail("too many operations at once");
}

static void op_check(const struct op *op)
{
	uint64_t took = vos_now() - op->start_ns - (stopped_of(op->client->proc) - op->stop_sum_ns);

	if (took > cluster.timeout_ms * MS + LATE_NS)
		vos_fail("LATE: %s has taken %.3f s of %.3f", op->text, (double)took / 1e9,
			 (double)cluster.timeout_ms / 1e3);
}

static void op_end(struct op *op, long long result)
{
	tell("%s: %lld after %.3f ms", op->text, result, (double)(vos_now() - op->start_ns) / 1e6);
	op_check(op);
	op->is_open = false;
}

static struct mc_store_key key_make(uint32_t key, char text[16])
{
	(void)snprintf(text, 16, "k%u", key);
	return (struct mc_store_key){text, strlen(text)};
}

static uint32_t len_pick(void)
{
	if (vos_pick(100) < run.big_per_100)
		return (uint32_t)vos_between(256 * 1024 + 1, LEN_MAX);
	return (uint32_t)vos_between(LEDGER_LEN_MIN, run.small_max);
}

static void write_end(struct op *op, struct ledger_op *w, int code)
{
	if (code == MC_STORE_NO_AVAILABLE_HANDLE && run.calm_ns < op->start_ns)
		vos_fail("NO ROOM: %s of %u bytes is refused, and all may be evicted", op->text,
			 w->len);
	ledger_end(w, code);
	op_end(op, code);
}

static void do_put(struct sim_client *c, uint32_t key, uint8_t *buf)
{
	bool is_upsert = vos_one_in(3);
	struct op *op = op_begin(c, is_upsert ? "upsert" : "put", key);
	struct ledger_op *w = ledger_begin(key, len_pick(), is_upsert);
	struct mc_store_conf conf = {.size = sizeof(conf), .replicas = vos_one_in(4) ? 2 : 1};
	struct mc_store_part part = {buf, w->len};
	char text[16];
	struct mc_store_item item = {key_make(key, text), &part, 1};
	int32_t ret = MC_STORE_INTERNAL_ERROR;

	ledger_fill(w->id, buf, w->len);
	(void)!mc_store_put(c->store, &item, 1, &conf, is_upsert ? MC_STORE_UPSERT : 0, &ret);
	write_end(op, w, ret);
}

/* Two pieces, the later one first; given up now and then. */
static void do_session(struct sim_client *c, uint32_t key, uint8_t *buf)
{
	struct op *op = op_begin(c, "session", key);
	struct ledger_op *w = ledger_begin(key, (uint32_t)vos_between(64, run.small_max), false);
	struct mc_store_range r[2];
	char text[16];
	struct mc_store_key k = key_make(key, text);
	struct mc_store_ranged ranged = {k, r, 2};
	uint64_t len = w->len, cut = vos_pick(len - 1) + 1;
	bool is_revoked = vos_one_in(8);
	int32_t ret = MC_STORE_INTERNAL_ERROR;
	int64_t moved = 0;

	ledger_fill(w->id, buf, w->len);
	r[0] = (struct mc_store_range){cut, buf + cut, len - cut};
	r[1] = (struct mc_store_range){0, buf, cut};
	(void)!mc_store_put_begin(c->store, &k, &len, 1, NULL, &ret);
	tell("%s begun: %d", op->text, ret);
	if (ret == 0) {
		(void)!mc_store_put_ranges(c->store, &ranged, 1, &moved);
		is_revoked |= moved != (int64_t)len;
		op->start_ns = vos_now(); /* each call has its own deadline */
		op->stop_sum_ns = stopped_of(c->proc);
		(void)!mc_store_put_end(c->store, &k, 1, is_revoked, &ret);
		if (is_revoked)
			ret = MC_STORE_INVALID_WRITE;
	}
	write_end(op, w, ret);
}

static void missed(const struct op *op, uint32_t key)
{
	ledger_missed(key, op->start_ns, run.is_roomy && run.calm_ns < op->start_ns);
}

/* @return the code, or bytes */
static int64_t do_get(struct sim_client *c, uint32_t key, uint8_t *buf)
{
	struct op *op = op_begin(c, "get", key);
	struct mc_store_part part = {buf, LEN_MAX};
	char text[16];
	struct mc_store_item item = {key_make(key, text), &part, 1};
	uint64_t start_ns = vos_now();
	int64_t ret = MC_STORE_INTERNAL_ERROR;

	(void)!mc_store_get(c->store, &item, 1, &ret);
	if (ret >= (int64_t)LEDGER_LEN_MIN)
		ledger_read(key, start_ns, buf, buf, 0, (size_t)ret, (uint64_t)ret);
	else if (ret >= 0)
		vos_fail("WRONG READ: %s gives %lld bytes", op->text, (long long)ret);
	else if (ret == MC_STORE_OBJECT_NOT_FOUND)
		missed(op, key);
	op_end(op, ret);
	return ret;
}

static void do_get_ranges(struct sim_client *c, uint32_t key, uint8_t *buf)
{
	struct op *op = op_begin(c, "ranges", key);
	uint64_t at = vos_between(LEDGER_LEN_MIN, run.small_max);
	uint64_t len = vos_between(1, 2000), start_ns = vos_now();
	struct mc_store_range r[2] = {{0, buf, 8}, {at, buf + 64, len}};
	char text[16];
	struct mc_store_ranged ranged = {key_make(key, text), r, 2};
	int64_t ret = MC_STORE_INTERNAL_ERROR;

	(void)!mc_store_get_ranges(c->store, &ranged, 1, &ret);
	if (ret == (int64_t)len + 8)
		ledger_read(key, start_ns, buf, buf + 64, at, len, 0);
	else if (ret >= 0)
		vos_fail("WRONG READ: %s gives %lld bytes", op->text, (long long)ret);
	else if (ret == MC_STORE_OBJECT_NOT_FOUND)
		missed(op, key);
	op_end(op, ret);
}

static void do_exist(struct sim_client *c, uint32_t key)
{
	struct op *op = op_begin(c, "exist", key);
	char text[16];
	struct mc_store_key k = key_make(key, text);
	int32_t ret = MC_STORE_INTERNAL_ERROR;

	(void)!mc_store_exist(c->store, &k, 1, &ret);
	if (ret == 0)
		missed(op, key);
	op_end(op, ret);
}

static int do_remove(struct sim_client *c, uint32_t key, bool is_forced)
{
	struct op *op = op_begin(c, "remove", key);
	struct ledger_op *r = ledger_begin(key, 0, false);
	char text[16];
	struct mc_store_key k = key_make(key, text);
	int32_t ret = MC_STORE_INTERNAL_ERROR;

	(void)!mc_store_remove(c->store, &k, 1, is_forced, &ret);
	ledger_end(r, ret);
	op_end(op, ret);
	return ret;
}

/* ---- the load ---- */

static void nap(uint64_t ns)
{
	static const char nobody;

	(void)vos_wait(&nobody, vos_now() + ns);
}

static void *worker(void *arg)
{
	struct sim_client *c = arg;
	uint8_t *buf = malloc(LEN_MAX);

	mc_assert(buf);
	while (!run.is_over && run.ops_left > 0) {
		uint32_t key = (uint32_t)vos_pick(run.nkeys);
		uint64_t what = vos_pick(100);

		run.ops_left--;
		if (what < 34)
			do_put(c, key, buf);
		else if (what < 40)
			do_session(c, key, buf);
		else if (what < 72)
			(void)do_get(c, key, buf);
		else if (what < 80)
			do_get_ranges(c, key, buf);
		else if (what < 86)
			do_exist(c, key);
		else
			(void)do_remove(c, key, vos_one_in(2));
		nap(vos_pick(vos_one_in(10) ? 400 * MS : 30 * MS));
	}
	free(buf);
	run.workers--;
	c->workers--;
	return NULL;
}

static void *work(void *client)
{
	struct sim_client *c = client;
	unsigned n = (unsigned)vos_between(1, 3);

	tell("client %u is there with %u workers", c->index, n);
	for (unsigned i = 0; i < n && !run.is_over; i++) {
		run.workers++;
		c->workers++;
		(void)vos_spawn(c->proc, worker, c);
	}
	return NULL;
}

/* ---- faults ---- */

static void fault_begin(void)
{
	run.faults++;
	run.calm_ns = MC_TIME_NEVER;
}

static void fault_end(void)
{
	sim_engine_moved();
	if (--run.faults == 0)
		run.calm_ns = vos_now() + cluster.ttl_ms * MS + 3 * SEC;
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
	run.kills++;
	cluster_kill(cluster.master);
	if (vos_one_in(3)) {
		tell("its disk loses its power");
		sim_disk_cut(cluster.state);
	}
	if (run.loses_state && vos_one_in(2)) {
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
	run.kills++;
	cluster_kill(n->proc);
	ledger_owner_lost();
	fault_begin(); /* where nobody is who has room there is none */
	vos_at(vos_now() + vos_pick(vos_one_in(3) ? 6 * SEC : 500 * MS), on_node_start, n);
}

static void on_client_start(void *arg)
{
	struct sim_client *c = arg;

	tell("client %u starts", c->index);
	cluster_client_start(c, work);
}

static void client_kill(struct sim_client *c)
{
	if (c->proc->is_dead)
		return;
	tell("client %u is killed", c->index);
	run.kills++;
	cluster_kill(c->proc);
	run.workers -= c->workers;
	c->workers = 0;
	for (unsigned i = 0; i < OPS_MAX; i++) {
		if (run.ops[i].is_open && run.ops[i].client == c)
			run.ops[i].is_open = false;
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
	run.stops++;
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
	run.cuts++;
	vos_net_cut(a, b, true);
	fault_begin();
	vos_at(vos_now() + vos_pick(vos_one_in(3) ? 12 * SEC : SEC), on_heal,
	       (void *)(uintptr_t)(a * 256 + b));
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
	if (run.is_over || sum == 0)
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

static void ops_check(void)
{
	for (unsigned i = 0; i < OPS_MAX; i++) {
		if (run.ops[i].is_open)
			op_check(&run.ops[i]);
	}
}

/* No two listed objects share bytes of one segment. */
static void overlap_check(struct sim_client *c)
{
	struct mc_store_replica all[LEDGER_KEYS_MAX * 2], r[MC_STORE_REPLICAS_MAX];
	uint32_t of[LEDGER_KEYS_MAX * 2];
	unsigned n = 0;
	char text[16];

	for (uint32_t k = 0; k < run.nkeys; k++) {
		struct mc_store_key key = key_make(k, text);
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
	for (uint32_t k = 0; k < run.nkeys; k++) {
		got = do_get(c, k, buf);
		if (got < 0 && got != MC_STORE_OBJECT_NOT_FOUND)
			vos_fail("NOT SERVED: k%u gives %lld when all is well again", k,
				 (long long)got);
	}
	tell("all is removed");
	for (uint32_t k = 0; k < run.nkeys; k++) {
		int code = do_remove(c, k, true);

		if (code != 0 && code != MC_STORE_OBJECT_NOT_FOUND)
			vos_fail("NOT SERVED: removal of k%u gives %d when all is well again", k,
				 code);
	}
	for (uint32_t k = 0; k < run.nkeys; k++)
		(void)do_get(c, k, buf);
	free(buf);
	run.verified = 1;
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

	run.is_over = true;
	while (run.faults > 0 || cluster.master->is_dead)
		mc_assert(vos_step() && vos_now() < until);
	for (unsigned i = 0; i < cluster.nnodes; i++)
		while (cluster.nodes[i].proc->is_dead || !cluster.nodes[i].node)
			mc_assert(vos_step() && vos_now() < until);
	world_run_until(vos_now() + cluster.timeout_ms * MS + LATE_NS);
	ops_check();
	for (unsigned i = 0; i < cluster.nclients; i++)
		cluster_kill(cluster.clients[i].proc);
	memset(run.ops, 0, sizeof(run.ops));
	world_run_until(vos_now() + cluster.ttl_ms * MS + SETTLE_NS);
	cluster_client_start(c, verify);
	until = vos_now() + 120 * SEC;
	while (!run.verified) {
		if (!vos_step() || vos_now() > until)
			vos_fail("NOT SERVED: a client finds no way");
	}
	space_check();
}

/* ---- the world ---- */

static void on_fail(const char *text)
{
	(void)fprintf(stderr, "seed %llu at %.6f: ", (unsigned long long)run.seed,
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

static void conf_pick(void)
{
	run.nkeys = (uint32_t)vos_between(3, 24);
	run.ops_left = (uint32_t)vos_between(40, 160);
	run.small_max = vos_one_in(2) ? 4000 : 100 * 1024;
	run.big_per_100 = (uint32_t)vos_pick(40);
	run.is_roomy = !vos_one_in(3);
	run.loses_state = vos_one_in(8);
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
						   .is_one_sided = vos_one_in(2)};
	sim_disk_slow_max_ns = vos_one_in(3) ? 20 * MS : 300000;
	faults = (struct faults){.every_ns = vos_between(200, 4000) * MS,
				 .master = (uint32_t)vos_pick(3),
				 .node = vos_one_in(3) ? (uint32_t)vos_pick(3) : 0,
				 .client = (uint32_t)vos_pick(3),
				 .stop = (uint32_t)vos_pick(3),
				 .cut = (uint32_t)vos_pick(3)};
}

static void world_start(void)
{
	cluster.state = sim_disk_new(16 << 20);
	cluster_master_start();
	for (unsigned i = 0; i < cluster.nnodes; i++) {
		cluster.nodes[i] = (struct sim_node){
		    .index = i,
		    .bytes = run.is_roomy ? 64u << 20 : (uint64_t)vos_between(700, 3000) << 10};
		cluster_node_start(&cluster.nodes[i]);
	}
	for (unsigned i = 0; i < cluster.nclients; i++) {
		cluster.clients[i] = (struct sim_client){.index = i};
		cluster_client_start(&cluster.clients[i], work);
	}
}

void store_sim_run(uint64_t seed, uint64_t sums[SIM_COUNT])
{
	uint64_t begin;

	memset(&run, 0, sizeof(run));
	run.seed = seed;
	vos_fail_hook = on_fail;
	vos_init(seed);
	ledger_init();
	mc_spin_machine(1, "/nonexistent");
	mc_log_level_set(MC_LOG_INFO); /* also where nobody reads it: a history is the same then */
	mc_log_sink_set(on_log, NULL);
	conf_pick();
	begin = vos_now();
	run.calm_ns = begin + 3 * SEC;
	world_start();
	vos_at(begin + vos_pick(2 * SEC), on_fault, NULL);
	while (run.ops_left > 0 || run.workers > 0) {
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
	sums[SIM_KILLS] = run.kills;
	sums[SIM_STOPS] = run.stops;
	sums[SIM_CUTS] = run.cuts;
	sums[SIM_PIECES] = sim_engine_stats.pieces;
	sums[SIM_UNFENCED] = sim_engine_stats.unfenced;
	sums[SIM_LATE] = sim_engine_stats.late_landings;
	sums[SIM_SECONDS] = (vos_now() - begin) / SEC;
}
