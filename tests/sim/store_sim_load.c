/*
 * store_sim_load.c: see store_sim_load.h. Each operation is told to the ledger, which decides.
 */
#include "sim/store_sim_load.h"

#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "sim/vos/ledger.h"

struct sim_run sim_run;

/* ---- operations ---- */

static uint64_t stopped_of(const struct vos_proc *p)
{
	return p->stop_sum_ns + (p->is_stopped ? vos_now() - p->stopped_ns : 0);
}

static struct op *op_begin(struct sim_client *c, const char *what, uint32_t key)
{
	for (unsigned i = 0; i < OPS_MAX; i++) {
		struct op *op = &sim_run.ops[i];

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

void store_sim_ops_check(void)
{
	for (unsigned i = 0; i < OPS_MAX; i++) {
		if (sim_run.ops[i].is_open)
			op_check(&sim_run.ops[i]);
	}
}

struct mc_store_key store_sim_key(uint32_t key, char text[16])
{
	(void)snprintf(text, 16, "k%u", key);
	return (struct mc_store_key){text, strlen(text)};
}

static uint32_t len_pick(void)
{
	if (vos_pick(100) < sim_run.big_per_100)
		return (uint32_t)vos_between(256 * 1024 + 1, LEN_MAX);
	return (uint32_t)vos_between(LEDGER_LEN_MIN, sim_run.small_max);
}

static void write_check(const struct op *op, const struct ledger_op *w, int code)
{
	if (code == MC_STORE_NO_AVAILABLE_HANDLE && sim_run.calm_ns < op->start_ns)
		vos_fail("NO ROOM: %s of %u bytes is refused, and all may be evicted", op->text,
			 w->len);
}

static void write_end(struct op *op, struct ledger_op *w, int code)
{
	write_check(op, w, code);
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
	struct mc_store_item item = {store_sim_key(key, text), &part, 1};
	int32_t ret = MC_STORE_INTERNAL_ERROR;

	ledger_fill(w->id, buf, w->len);
	(void)!mc_store_put(c->store, &item, 1, &conf, is_upsert ? MC_STORE_UPSERT : 0, &ret);
	write_end(op, w, ret);
}

/* Two pieces, the later one first; given up now and then. */
static void do_session(struct sim_client *c, uint32_t key, uint8_t *buf)
{
	struct op *op = op_begin(c, "session", key);
	struct ledger_op *w =
	    ledger_begin(key, (uint32_t)vos_between(64, sim_run.small_max), false);
	struct mc_store_range r[2];
	char text[16];
	struct mc_store_key k = store_sim_key(key, text);
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

#define BATCH_MAX 5u
#define BATCH_LEN_MAX (LEN_MAX / BATCH_MAX)

/* A batch of keys in order, each the parent of the next. */
struct batch {
	uint32_t first, n;
	struct mc_store_item items[BATCH_MAX];
	struct mc_store_part parts[BATCH_MAX];
	struct mc_store_key keys[BATCH_MAX];
	char text[BATCH_MAX][16];
};

static void batch_make(struct batch *b, uint8_t *buf)
{
	b->n = (uint32_t)vos_between(2, mc_min(sim_run.nkeys, BATCH_MAX));
	b->first = (uint32_t)vos_pick(sim_run.nkeys - b->n + 1);
	for (uint32_t i = 0; i < b->n; i++) {
		b->parts[i] =
		    (struct mc_store_part){buf + (size_t)i * BATCH_LEN_MAX, BATCH_LEN_MAX};
		b->items[i] = (struct mc_store_item){store_sim_key(b->first + i, b->text[i]),
						     &b->parts[i], 1};
	}
}

static void do_put_batch(struct sim_client *c, uint8_t *buf)
{
	bool is_upsert = vos_one_in(3);
	int32_t ret[BATCH_MAX];
	struct ledger_op *w[BATCH_MAX];
	struct batch b;
	struct op *op;

	batch_make(&b, buf);
	op = op_begin(c, is_upsert ? "upsert from" : "put from", b.first);
	for (uint32_t i = 0; i < b.n; i++) {
		uint64_t most = mc_min(sim_run.small_max, BATCH_LEN_MAX);

		w[i] = ledger_begin(b.first + i, (uint32_t)vos_between(LEDGER_LEN_MIN, most),
				    is_upsert);
		ledger_fill(w[i]->id, buf + (size_t)i * BATCH_LEN_MAX, w[i]->len);
		b.parts[i].len = w[i]->len;
		ret[i] = MC_STORE_INTERNAL_ERROR;
	}
	(void)!mc_store_put(c->store, b.items, b.n, NULL, is_upsert ? MC_STORE_UPSERT : 0, ret);
	for (uint32_t i = 0; i < b.n; i++) {
		tell("%s: k%u of %u: %d", op->text, b.first + i, b.n, ret[i]);
		write_check(op, w[i], ret[i]);
		ledger_end(w[i], ret[i]);
	}
	op_end(op, ret[0]);
}

static void missed(const struct op *op, uint32_t key)
{
	ledger_missed(key, op->start_ns, sim_run.is_roomy && sim_run.calm_ns < op->start_ns);
}

int64_t store_sim_get(struct sim_client *c, uint32_t key, uint8_t *buf)
{
	struct op *op = op_begin(c, "get", key);
	struct mc_store_part part = {buf, LEN_MAX};
	char text[16];
	struct mc_store_item item = {store_sim_key(key, text), &part, 1};
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

static void do_get_batch(struct sim_client *c, uint8_t *buf)
{
	uint64_t start_ns = vos_now();
	int64_t ret[BATCH_MAX];
	struct batch b;
	struct op *op;

	batch_make(&b, buf);
	op = op_begin(c, "get from", b.first);
	for (uint32_t i = 0; i < b.n; i++)
		ret[i] = MC_STORE_INTERNAL_ERROR;
	(void)!mc_store_get(c->store, b.items, b.n, ret);
	for (uint32_t i = 0; i < b.n; i++) {
		const uint8_t *at = buf + (size_t)i * BATCH_LEN_MAX;

		tell("%s: k%u of %u: %lld", op->text, b.first + i, b.n, (long long)ret[i]);
		if (ret[i] >= (int64_t)LEDGER_LEN_MIN)
			ledger_read(b.first + i, start_ns, at, at, 0, (size_t)ret[i],
				    (uint64_t)ret[i]);
		else if (ret[i] >= 0)
			vos_fail("WRONG READ: %s gives %lld bytes", op->text, (long long)ret[i]);
		else if (ret[i] == MC_STORE_OBJECT_NOT_FOUND)
			missed(op, b.first + i);
	}
	op_end(op, ret[0]);
}

static void do_get_ranges(struct sim_client *c, uint32_t key, uint8_t *buf)
{
	struct op *op = op_begin(c, "ranges", key);
	uint64_t at = vos_between(LEDGER_LEN_MIN, sim_run.small_max);
	uint64_t len = vos_between(1, 2000), start_ns = vos_now();
	struct mc_store_range r[2] = {{0, buf, 8}, {at, buf + 64, len}};
	char text[16];
	struct mc_store_ranged ranged = {store_sim_key(key, text), r, 2};
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
	struct mc_store_key k = store_sim_key(key, text);
	int32_t ret = MC_STORE_INTERNAL_ERROR;

	(void)!mc_store_exist(c->store, &k, 1, &ret);
	if (ret == 0)
		missed(op, key);
	op_end(op, ret);
}

int store_sim_remove(struct sim_client *c, uint32_t key, bool is_forced)
{
	struct op *op = op_begin(c, "remove", key);
	struct ledger_op *r = ledger_begin(key, 0, false);
	char text[16];
	struct mc_store_key k = store_sim_key(key, text);
	int32_t ret = MC_STORE_INTERNAL_ERROR;

	(void)!mc_store_remove(c->store, &k, 1, is_forced, &ret);
	ledger_end(r, ret);
	op_end(op, ret);
	return ret;
}

static void nap(uint64_t ns)
{
	static const char nobody;

	(void)vos_wait(&nobody, vos_now() + ns);
}

/* ---- chains ---- */

static void chain_make(struct batch *b, unsigned client)
{
	*b = (struct batch){.n = BATCH_MAX};
	for (uint32_t i = 0; i < b->n; i++) {
		(void)snprintf(b->text[i], sizeof(b->text[i]), "c%u.%u", sim_run.chains[client], i);
		b->keys[i] = (struct mc_store_key){b->text[i], strlen(b->text[i])};
	}
}

static void chain_remove(struct sim_client *c, unsigned client)
{
	struct op *op = op_begin(c, "removal of chain", sim_run.chains[client]);
	int32_t ret[BATCH_MAX];
	struct batch b;

	chain_make(&b, client);
	(void)!mc_store_remove(c->store, b.keys, b.n, true, ret);
	sim_run.chains[client] = 0;
	op_end(op, ret[0]);
}

/*
 * One prefix: new keys that are only ever asked for together. Who needs room takes the deepest
 * first: of what is left none is missing before another. In one pool, and where nothing is lost.
 */
static void do_chain(struct sim_client *c, uint8_t *buf)
{
	int32_t put[BATCH_MAX] = {0}, there[BATCH_MAX] = {0};
	struct batch b;
	struct op *op;
	bool is_whole;

	sim_run.chains[c->index] = ++sim_run.nchains;
	chain_make(&b, c->index);
	memset(buf, 'c', BATCH_LEN_MAX);
	for (uint32_t i = 0; i < b.n; i++) {
		b.parts[i] = (struct mc_store_part){buf, vos_between(1000, BATCH_LEN_MAX)};
		b.items[i] = (struct mc_store_item){b.keys[i], &b.parts[i], 1};
	}
	op = op_begin(c, "chain", sim_run.nchains);
	is_whole = mc_store_put(c->store, b.items, b.n, NULL, 0, put) == 0;
	op_end(op, put[0]);
	nap(vos_pick(300 * MS));
	op = op_begin(c, "exist of chain", sim_run.chains[c->index]);
	(void)!mc_store_exist(c->store, b.keys, b.n, there);
	for (uint32_t i = 1; i < b.n && is_whole; i++)
		if (there[i] == 1 && there[i - 1] == 0)
			vos_fail("PARENT FIRST: %s is there, %s before it has left", b.text[i],
				 b.text[i - 1]);
	op_end(op, there[0]);
	chain_remove(c, c->index);
}

void store_sim_chains_remove(struct sim_client *c)
{
	for (unsigned i = 0; i < CLIENTS_MAX; i++)
		if (sim_run.chains[i])
			chain_remove(c, i);
}

/* ---- the load ---- */

static void *worker(void *arg)
{
	struct sim_client *c = arg;
	uint8_t *buf = malloc(LEN_MAX);

	mc_assert(buf);
	while (!sim_run.is_over && sim_run.ops_left > 0) {
		uint32_t key = (uint32_t)vos_pick(sim_run.nkeys);
		uint64_t what = vos_pick(100);

		sim_run.ops_left--;
		if (what < 10 && sim_run.is_quiet && cluster.nnodes == 1 &&
		    !sim_run.chains[c->index])
			do_chain(c, buf);
		else if (what < 30)
			do_put(c, key, buf);
		else if (what < 34)
			do_put_batch(c, buf);
		else if (what < 40)
			do_session(c, key, buf);
		else if (what < 44)
			do_get_batch(c, buf);
		else if (what < 72)
			(void)store_sim_get(c, key, buf);
		else if (what < 80)
			do_get_ranges(c, key, buf);
		else if (what < 86)
			do_exist(c, key);
		else
			(void)store_sim_remove(c, key, vos_one_in(2));
		nap(vos_pick(vos_one_in(10) ? 400 * MS : 30 * MS));
	}
	free(buf);
	sim_run.workers--;
	c->workers--;
	return NULL;
}

void *store_sim_work(void *client)
{
	struct sim_client *c = client;
	unsigned n = (unsigned)vos_between(1, 3);

	tell("client %u is there with %u workers", c->index, n);
	for (unsigned i = 0; i < n && !sim_run.is_over; i++) {
		sim_run.workers++;
		c->workers++;
		(void)vos_spawn(c->proc, worker, c);
	}
	return NULL;
}
