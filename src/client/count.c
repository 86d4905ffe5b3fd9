/*
 * count.c: what a client counts, under upstream's names, in the registry of its engine: operations
 * of its callers and calls over rpc. Recording takes no lock and allocates nothing.
 */
#include <inttypes.h>
#include <stdio.h>

#include "client/priv.h"
#include "engine/metrics.h"

#define STATS_MAX 64u

enum op { GET, BATCH_GET, PUT, BATCH_PUT, OP_COUNT };

static const struct {
	const char *name, *help;
} ops[OP_COUNT] = {
    [GET] = {"mooncake_transfer_get_latency", "microseconds of a get of one object"},
    [BATCH_GET] = {"mooncake_transfer_batch_get_latency", "microseconds of a get of many"},
    [PUT] = {"mooncake_transfer_put_latency", "microseconds of a put of one object"},
    [BATCH_PUT] = {"mooncake_transfer_batch_put_latency", "microseconds of a put of many"},
};

static const struct {
	uint16_t method;
	const char *name;
} rpcs[] = {
    {MC_ST_JOIN, "join"},     {MC_ST_VIEW, "view"},	{MC_ST_GENS, "gens"},
    {MC_ST_EXIST, "exist"},   {MC_ST_LOOKUP, "lookup"}, {MC_ST_COMMIT, "commit"},
    {MC_ST_REMOVE, "remove"}, {MC_ST_BAD, "bad"},	{MC_ST_PUT, "put"},
    {MC_ST_GRANT, "grant"},   {MC_ST_SEAL, "seal"},	{MC_ST_DROP, "drop"},
    {MC_ST_REGEN, "regen"},   {MC_ST_FETCH, "fetch"},
};

#define RPCS MC_ARRAY_LEN(rpcs)

struct mc_cli_counts {
	struct mc_counter read_bytes, write_bytes;
	struct mc_counter failed[2]; /* objects: gets, puts */
	struct mc_hist ops[OP_COUNT];
	struct mc_hist rpcs[RPCS];
	struct mc_counter calls[RPCS];
	struct mc_stat_reg *reg;
	struct mc_stat *stats[STATS_MAX]; /* taken out before the numbers end */
	unsigned nstats;
};

static int add(struct mc_cli_counts *c, const char *client, const struct mc_stat_desc *d,
	       const char *label, const char *value, const void *numbers)
{
	const struct mc_stat_label labels[] = {
	    {"client_mode", "real"}, {"client", client}, {label, value}};
	int rc;

	mc_assert(c->nstats < STATS_MAX);
	rc = mc_stat_add(c->reg, d, labels, label ? 3 : 2, numbers, &c->stats[c->nstats]);
	c->nstats += rc == 0;
	return rc;
}

static int add_all(struct mc_cli_counts *c, const char *client)
{
	static const struct mc_stat_desc
	    read = {.name = "mooncake_transfer_read_bytes", .help = "bytes of objects got"},
	    written = {.name = "mooncake_transfer_write_bytes", .help = "bytes of objects put"},
	    failed = {.name = "mooncake_transfer_failed_objects_total",
		      .help = "objects that were not got (missing ones apart) or not put"},
	    rpc = {.name = "mooncake_client_rpc_latency",
		   .help = "microseconds of calls to master and owners",
		   .kind = MC_STAT_HIST,
		   .scale = 1e-3},
	    calls = {.name = "mooncake_client_rpc_count", .help = "those calls"};
	int rc = add(c, client, &read, NULL, NULL, &c->read_bytes);

	if (rc == 0)
		rc = add(c, client, &written, NULL, NULL, &c->write_bytes);
	for (unsigned i = 0; rc == 0 && i < MC_ARRAY_LEN(c->failed); i++)
		rc = add(c, client, &failed, "op", i ? "put" : "get", &c->failed[i]);
	for (unsigned i = 0; rc == 0 && i < OP_COUNT; i++) {
		const struct mc_stat_desc d = {
		    .name = ops[i].name, .help = ops[i].help, .kind = MC_STAT_HIST, .scale = 1e-3};

		rc = add(c, client, &d, NULL, NULL, &c->ops[i]);
	}
	for (unsigned i = 0; rc == 0 && i < RPCS; i++)
		rc = add(c, client, &rpc, "rpc", rpcs[i].name, &c->rpcs[i]);
	for (unsigned i = 0; rc == 0 && i < RPCS; i++)
		rc = add(c, client, &calls, "rpc", rpcs[i].name, &c->calls[i]);
	return rc;
}

int mc_cli_counts_open(struct mc_store *st)
{
	struct mc_cli_counts *c = mc_aligned_alloc(MC_CACHELINE, sizeof(*c));
	char client[17];

	if (!c)
		return -MC_E_NOMEM;
	(void)snprintf(client, sizeof(client), "%016" PRIx64, st->client_id);
	c->reg = mc_metrics_reg(st->eng);
	st->counts = c; /* what is named already is taken out at the end */
	return add_all(c, client);
}

void mc_cli_counts_close(struct mc_cli_counts *c)
{
	if (!c)
		return;
	for (unsigned i = 0; i < c->nstats; i++)
		mc_stat_del(c->reg, c->stats[i]);
	mc_free(c);
}

void mc_cli_count_get(struct mc_cli_counts *c, uint64_t start_ns, const int64_t *results,
		      uint32_t n)
{
	uint64_t bytes = 0, failed = 0;

	for (uint32_t i = 0; i < n; i++) {
		if (results[i] >= 0)
			bytes += (uint64_t)results[i];
		else
			failed += results[i] != MC_STORE_OBJECT_NOT_FOUND;
	}
	mc_hist_add(&c->ops[n == 1 ? GET : BATCH_GET], mc_now_ns() - start_ns);
	mc_counter_add(&c->read_bytes, bytes);
	if (failed)
		mc_counter_add(&c->failed[0], failed);
}

void mc_cli_count_put(struct mc_cli_counts *c, uint64_t start_ns, const struct mc_cli_write *writes,
		      uint32_t n)
{
	uint64_t bytes = 0, failed = 0;

	for (uint32_t i = 0; i < n; i++) {
		if (writes[i].status == 0)
			bytes += writes[i].len;
		else
			failed++;
	}
	mc_hist_add(&c->ops[n == 1 ? PUT : BATCH_PUT], mc_now_ns() - start_ns);
	mc_counter_add(&c->write_bytes, bytes);
	if (failed)
		mc_counter_add(&c->failed[1], failed);
}

void mc_cli_count_rpc(struct mc_cli_counts *c, uint16_t method, uint64_t ns)
{
	for (unsigned i = 0; i < RPCS; i++) {
		if (rpcs[i].method == method) {
			mc_hist_add(&c->rpcs[i], ns);
			mc_counter_add(&c->calls[i], 1);
			return;
		}
	}
}
