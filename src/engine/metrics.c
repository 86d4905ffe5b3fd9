/*
 * metrics.c: what the engine counts: bytes, operations, retries and errors by transport, rail and
 * peer; latencies by direction; what peers took from us.
 */
#include "engine/metrics.h"

#include <string.h>

#include "base/log.h"
#include "engine/priv.h"
#include "engine/routes.h"
#include "xport/rdma/rdma.h"

#define STATS_MAX 65536u
#define LINKS_MAX 1024u /* (transport, rail, peer) triples with counters of their own */
#define TEXT_MAX (64u << 20)

/* What the RDMA device counts by itself. */
static const struct rdma_row {
	const char *name, *help;
	size_t at; /* in struct mc_rdma_stats */
	bool is_64;
} rdma_rows[] = {
#define ROW64(field, name, help)                                                                   \
	{                                                                                          \
		name, help, offsetof(struct mc_rdma_stats, field), true                            \
	}
#define ROW32(field, name, help)                                                                   \
	{                                                                                          \
		name, help, offsetof(struct mc_rdma_stats, field), false                           \
	}
    ROW64(posts, "mc_rdma_posts", "Calls that posted work requests"),
    ROW64(wrs, "mc_rdma_work_requests", "Work requests posted"),
    ROW64(signaled, "mc_rdma_signaled", "Work requests that asked for a completion"),
    ROW64(polls, "mc_rdma_polls", "Calls that polled a completion queue"),
    ROW64(wcs, "mc_rdma_completions", "Completions polled"),
    ROW64(arms, "mc_rdma_arms", "Completion queues armed before a sleep"),
    ROW64(wakes, "mc_rdma_wakes", "Completion events"),
    ROW64(accepted, "mc_rdma_accepted", "Lanes of peers that were accepted"),
    ROW64(retired, "mc_rdma_retired", "Lanes of peers that were fenced"),
    ROW64(evicted, "mc_rdma_evicted", "Lanes of peers that made room for others"),
    ROW32(qps, "mc_rdma_queue_pairs", "Queue pairs alive"),
    ROW32(mrs, "mc_rdma_memory_regions", "Memory regions of all ports"),
    ROW32(lanes, "mc_rdma_lanes", "Lanes to peers"),
    ROW32(inbound, "mc_rdma_inbound", "Lanes of peers to us"),
#undef ROW64
#undef ROW32
};

struct mc_stats {
	struct mc_stat_reg *reg;
	pthread_mutex_t mu; /* guards links and naming; a leaf */
	struct mc_list links;
	unsigned nlinks;
	struct mc_rail_stats other; /* for links beyond the limit */
	struct mc_hist latency[MC_OP_COUNT];
	struct mc_counter groups[2]; /* succeeded, failed */
	struct mc_gauge served_bytes[MC_OP_COUNT], served_requests[MC_OP_COUNT], refused, conns,
	    regions;
	struct mc_gauge rdma[MC_ARRAY_LEN(rdma_rows)];
};

static const char *const op_name[MC_OP_COUNT] = {"read", "write"};

static int add(struct mc_engine *eng, const char *name, const char *help, enum mc_stat_kind kind,
	       const struct mc_stat_label *labels, size_t n, const void *numbers)
{
	struct mc_stat_desc d = {.name = name, .help = help, .kind = kind};

	if (kind == MC_STAT_HIST)
		d.scale = 1e-9;
	return mc_stat_add(eng->stats->reg, &d, labels, n, numbers, NULL);
}

static int link_name(struct mc_engine *eng, struct mc_rail_stats *l)
{
	struct mc_stat_label labels[] = {
	    {"transport", l->transport}, {"rail", l->rail}, {"peer", l->peer}, {"op", NULL}};
	int rc = 0;

	for (int op = 0; op < MC_OP_COUNT && rc == 0; op++) {
		labels[3].value = op_name[op];
		rc = add(eng, "mc_transfer_bytes_total", "Bytes moved by transfers of this process",
			 MC_STAT_COUNTER, labels, 4, &l->bytes[op]);
		if (rc == 0)
			rc = add(eng, "mc_transfer_slice_seconds",
				 "Time from posting a slice on a lane to its completion",
				 MC_STAT_HIST, labels, 4, &l->latency[op]);
		if (rc == 0)
			rc = add(eng, "mc_transfer_operations_total",
				 "Fragments moved by transfers of this process", MC_STAT_COUNTER,
				 labels, 4, &l->ops[op]);
	}
	if (rc == 0)
		rc = add(eng, "mc_transfer_lanes_broken_total", "Connections that broke",
			 MC_STAT_COUNTER, labels, 3, &l->broken);
	if (rc == 0)
		rc = add(eng, "mc_transfer_retries_total",
			 "Slices that were tried again after their connection broke",
			 MC_STAT_COUNTER, labels, 3, &l->retries);
	return rc;
}

struct mc_rail_stats *mc_stats_rail(struct mc_engine *eng, const char *transport, const char *rail,
				    const char *peer)
{
	struct mc_stats *st = eng->stats;
	struct mc_rail_stats *l, *found = NULL;

	pthread_mutex_lock(&st->mu);
	mc_list_each (l, &st->links, link)
		if (strcmp(l->transport, transport) == 0 && strcmp(l->rail, rail) == 0 &&
		    strcmp(l->peer, peer) == 0)
			found = l;
	if (!found && st->nlinks < LINKS_MAX)
		found = mc_aligned_alloc(MC_CACHELINE, sizeof(*found));
	else if (found)
		goto out;
	if (!found) {
		found = &st->other;
		goto out;
	}
	(void)mc_strlcpy(found->transport, sizeof(found->transport), transport);
	(void)mc_strlcpy(found->rail, sizeof(found->rail), rail);
	(void)mc_strlcpy(found->peer, sizeof(found->peer), peer);
	mc_list_push_back(&st->links, &found->link);
	st->nlinks++;
	if (link_name(eng, found) < 0)
		mc_log_warn("metrics are incomplete", "peer=%s transport=%s", peer, transport);
out:
	pthread_mutex_unlock(&st->mu);
	return found;
}

void mc_stats_done(struct mc_gop *op)
{
	struct mc_stats *st = op->eng->stats;

	mc_counter_add(&st->groups[op->status < 0], 1);
	if (op->status == 0 && op->nslices > 0)
		mc_hist_add(&st->latency[op->op], op->end_ns - op->begin_ns);
}

/* NULL: no memory, or no room for its name. */
static struct mc_counter *error_counter(struct mc_engine *eng, struct mc_rail_stats *l, int code)
{
	struct mc_stat_label labels[] = {{"transport", l->transport},
					 {"rail", l->rail},
					 {"peer", l->peer},
					 {"cause", mc_err_name(code)}};
	/* acquire: pairs with the release below */
	struct mc_counter *c = atomic_load_explicit(&l->errors[-code], memory_order_acquire);

	if (c)
		return c;
	pthread_mutex_lock(&eng->stats->mu);
	c = atomic_load_explicit(&l->errors[-code], memory_order_relaxed);
	if (!c)
		c = mc_aligned_alloc(MC_CACHELINE, sizeof(*c));
	if (c && !atomic_load_explicit(&l->errors[-code], memory_order_relaxed)) {
		if (add(eng, "mc_transfer_errors_total", "Slices that failed, by cause",
			MC_STAT_COUNTER, labels, 4, c) < 0)
			mc_log_debug("metrics are incomplete", "cause=%s", mc_err_name(code));
		/* release: whoever adds to it finds it zeroed */
		atomic_store_explicit(&l->errors[-code], c, memory_order_release);
	}
	pthread_mutex_unlock(&eng->stats->mu);
	return c;
}

void mc_stats_error(struct mc_engine *eng, const struct mc_eslice *es, int code)
{
	struct mc_rail_stats *l = es->stats;
	struct mc_counter *c;

	if (code >= 0 || code <= -MC_E_COUNT)
		return;
	if (!l) /* it has not been on any */
		l = mc_stats_rail(eng, mc_route_name(es->route), "none", es->session->peer->name);
	c = error_counter(eng, l, code);
	if (c)
		mc_counter_add(c, 1);
}

static int name_all(struct mc_engine *eng)
{
	struct mc_stats *st = eng->stats;
	int rc = 0;

	for (int op = 0; op < MC_OP_COUNT && rc == 0; op++) {
		struct mc_stat_label l = {"op", op_name[op]};

		rc = add(eng, "mc_transfer_seconds", "Time from submission to the end of a group",
			 MC_STAT_HIST, &l, 1, &st->latency[op]);
		if (rc == 0)
			rc = add(eng, "mc_served_bytes",
				 "Bytes that peers moved through our TCP port", MC_STAT_GAUGE, &l,
				 1, &st->served_bytes[op]);
		if (rc == 0)
			rc = add(eng, "mc_served_requests", "Requests of peers on our TCP port",
				 MC_STAT_GAUGE, &l, 1, &st->served_requests[op]);
	}
	for (int i = 0; i < 2 && rc == 0; i++) {
		struct mc_stat_label l = {"result", i ? "failed" : "succeeded"};

		rc = add(eng, "mc_transfer_groups_total", "Groups that ended", MC_STAT_COUNTER, &l,
			 1, &st->groups[i]);
	}
	if (rc == 0)
		rc = add(eng, "mc_served_refused", "Requests of peers that were refused",
			 MC_STAT_GAUGE, NULL, 0, &st->refused);
	if (rc == 0)
		rc = add(eng, "mc_served_connections", "Connections on our TCP port", MC_STAT_GAUGE,
			 NULL, 0, &st->conns);
	if (rc == 0)
		rc = add(eng, "mc_memory_regions", "Registered ranges", MC_STAT_GAUGE, NULL, 0,
			 &st->regions);
	return rc;
}

int mc_stats_open(struct mc_engine *eng)
{
	struct mc_stats *st = mc_aligned_alloc(MC_CACHELINE, sizeof(*st));
	int rc;

	if (!st)
		return -MC_E_NOMEM;
	pthread_mutex_init(&st->mu, NULL);
	mc_list_init(&st->links);
	memcpy(st->other.transport, "other", sizeof("other"));
	memcpy(st->other.rail, "other", sizeof("other"));
	memcpy(st->other.peer, "other", sizeof("other"));
	eng->stats = st;
	rc = mc_stat_reg_open(STATS_MAX, &st->reg);
	return rc < 0 ? rc : name_all(eng);
}

int mc_stats_rdma(struct mc_engine *eng)
{
	int rc = 0;

	for (size_t i = 0; i < MC_ARRAY_LEN(rdma_rows) && rc == 0; i++)
		rc = add(eng, rdma_rows[i].name, rdma_rows[i].help, MC_STAT_GAUGE, NULL, 0,
			 &eng->stats->rdma[i]);
	return rc;
}

static void rdma_read(struct mc_engine *eng)
{
	struct mc_rdma_stats now;

	mc_rdma_stats_get(eng->rdma, &now);
	for (size_t i = 0; i < MC_ARRAY_LEN(rdma_rows); i++) {
		const void *at = (const uint8_t *)&now + rdma_rows[i].at;
		uint64_t v = rdma_rows[i].is_64 ? *(const uint64_t *)at : *(const uint32_t *)at;

		mc_gauge_set(&eng->stats->rdma[i], (int64_t)v);
	}
}

static void errors_free(struct mc_rail_stats *l)
{
	for (size_t i = 0; i < MC_E_COUNT; i++)
		mc_free(atomic_load_explicit(&l->errors[i], memory_order_relaxed));
}

void mc_stats_close(struct mc_engine *eng)
{
	struct mc_stats *st = eng->stats;
	struct mc_rail_stats *l;

	if (!st)
		return;
	mc_stat_reg_close(st->reg);
	errors_free(&st->other);
	mc_list_each (l, &st->links, link) {
		errors_free(l);
		mc_free(l);
	}
	pthread_mutex_destroy(&st->mu);
	mc_free(st);
	eng->stats = NULL;
}

struct mc_stat_reg *mc_metrics_reg(struct mc_engine *eng)
{
	return eng->stats->reg;
}

void mc_metrics_sum(struct mc_engine *eng, struct mc_metrics_sum *ret)
{
	struct mc_stats *st = eng->stats;
	struct mc_rail_stats *l;

	*ret = (struct mc_metrics_sum){.failed = mc_counter_read(&st->groups[1])};
	ret->groups = mc_counter_read(&st->groups[0]) + ret->failed;
	pthread_mutex_lock(&st->mu);
	for (int op = 0; op < MC_OP_COUNT; op++) {
		mc_list_each (l, &st->links, link)
			/* What is staged has gone over a transport, too. */
			if (strcmp(l->transport, mc_route_name(MC_ROUTE_STAGED)) != 0)
				ret->bytes[op] += mc_counter_read(&l->bytes[op]);
		ret->p50_us[op] = (double)mc_hist_quantile(&st->latency[op], 0.5) / 1e3;
	}
	pthread_mutex_unlock(&st->mu);
}

char *mc_metrics_text(struct mc_engine *eng)
{
	struct mc_stats *st = eng->stats;
	struct mc_tcp_served served;
	struct mc_str out;

	if (mc_engine_is_forked(eng))
		return NULL;
	mc_tcp_dev_served(eng->tcp, &served);
	for (int op = 0; op < MC_OP_COUNT; op++) {
		mc_gauge_set(&st->served_bytes[op], (int64_t)served.bytes[op]);
		mc_gauge_set(&st->served_requests[op], (int64_t)served.requests[op]);
	}
	mc_gauge_set(&st->refused, (int64_t)served.refused);
	mc_gauge_set(&st->conns, (int64_t)served.conns);
	mc_gauge_set(&st->regions, (int64_t)mc_region_count(eng->regions));
	if (eng->rdma)
		rdma_read(eng);
	mc_str_init(&out, TEXT_MAX);
	if (mc_stat_render(st->reg, &out) < 0) {
		mc_str_fini(&out);
		return NULL;
	}
	return mc_str_take(&out);
}

void mc_text_free(char *text)
{
	mc_free(text);
}
