/*
 * tally.c: names for what a master counts.
 */
#include "master/tally.h"

#include <stdio.h>
#include <string.h>

#define NAME_MAX_BYTES 96u

static const struct {
	const char *name;
	bool has_batches;
} ops[MC_TALLY_OP_COUNT] = {
    [MC_TALLY_EXIST] = {"exist_key", true},
    [MC_TALLY_GET] = {"get_replica_list", true},
    [MC_TALLY_PUT_END] = {"put_end", true},
    [MC_TALLY_REMOVE] = {"remove", false},
    [MC_TALLY_REMOVE_REGEX] = {"remove_by_regex", false},
    [MC_TALLY_REMOVE_ALL] = {"remove_all", false},
    [MC_TALLY_MOUNT] = {"mount_segment", false},
    [MC_TALLY_REMOUNT] = {"remount_segment", false},
    [MC_TALLY_UNMOUNT] = {"unmount_segment", false},
};

void mc_tally_calls(struct mc_tally *t, enum mc_tally_op op, uint32_t n, uint32_t failed)
{
	mc_counter_add(&t->op[op].requests, n);
	if (failed)
		mc_counter_add(&t->op[op].failures, failed);
}

void mc_tally_call(struct mc_tally *t, enum mc_tally_op op, uint32_t n, uint32_t failed)
{
	if (n == 1 || !ops[op].has_batches) {
		mc_tally_calls(t, op, 1, failed ? 1 : 0);
		return;
	}
	mc_counter_add(&t->op[op].batches, 1);
	mc_counter_add(&t->op[op].items, n);
	if (failed == 0)
		return;
	mc_counter_add(failed == n ? &t->op[op].failed : &t->op[op].partial, 1);
	mc_counter_add(&t->op[op].failed_items, failed);
}

void mc_tally_get(struct mc_tally_gets *g, const struct mc_st_object *o)
{
	unsigned kind = MC_ST_DISK;

	g->n++;
	if (o->status != 0)
		return;
	for (unsigned i = 0; i < o->nreplicas; i++) {
		if (o->replicas[i].kind == MC_ST_MEMORY)
			kind = MC_ST_MEMORY;
	}
	g->hits[kind]++;
	g->bytes[kind] += o->len;
}

void mc_tally_gets(struct mc_tally *t, const struct mc_tally_gets *g)
{
	mc_counter_add(&t->gets, g->n);
	for (unsigned kind = 0; kind < MC_ST_KIND_COUNT; kind++) {
		if (g->hits[kind] == 0)
			continue;
		mc_counter_add(&t->valid_gets, g->hits[kind]);
		mc_counter_add(&t->hits[kind], g->hits[kind]);
		mc_counter_add(&t->hit_bytes[kind], g->bytes[kind]);
	}
}

static int add(struct mc_stat_reg *reg, const char *name, const char *help,
	       const struct mc_counter *c)
{
	const struct mc_stat_desc d = {.name = name, .help = help, .kind = MC_STAT_COUNTER};

	return mc_stat_add(reg, &d, NULL, 0, c, NULL);
}

static int ops_add(const struct mc_tally *t, struct mc_stat_reg *reg, unsigned op)
{
	const struct {
		const char *form, *help;
		const struct mc_counter *c;
	} rows[] = {
	    {"master_%s_requests_total", "calls of one key", &t->op[op].requests},
	    {"master_%s_failures_total", "of those, without success", &t->op[op].failures},
	    {"master_batch_%s_requests_total", "calls of many keys", &t->op[op].batches},
	    {"master_batch_%s_failures_total", "of those, all keys failed", &t->op[op].failed},
	    {"master_batch_%s_partial_successes_total", "some keys failed", &t->op[op].partial},
	    {"master_batch_%s_items_total", "keys of those calls", &t->op[op].items},
	    {"master_batch_%s_failed_items_total", "of those, failed", &t->op[op].failed_items},
	};
	size_t n = ops[op].has_batches ? MC_ARRAY_LEN(rows) : 2;
	char name[NAME_MAX_BYTES];
	int rc = 0;

	for (size_t i = 0; rc == 0 && i < n; i++) {
		const char *percent = strchr(rows[i].form, '%');

		(void)snprintf(name, sizeof(name), "%.*s%s%s", (int)(percent - rows[i].form),
			       rows[i].form, ops[op].name, percent + 2);
		rc = add(reg, name, rows[i].help, rows[i].c);
	}
	return rc;
}

static int promotions_add(const struct mc_tally *t, struct mc_stat_reg *reg)
{
	static const struct mc_stat_desc open = {.name = "master_promotion_in_flight",
						 .help = "admitted, not in memory yet",
						 .kind = MC_STAT_GAUGE};
	static const struct {
		const char *name, *help;
	} rows[MC_TALLY_PROMOTION_COUNT] = {
	    [MC_TALLY_PROMOTION_ADMITTED] = {"master_promotion_admitted_total",
					     "objects that are to stay in memory when they are "
					     "read from a disk"},
	    [MC_TALLY_PROMOTION_COMPLETED] = {"master_promotion_completed_total",
					      "of those, are there"},
	    [MC_TALLY_PROMOTION_EXPIRED] = {"master_promotion_expired_total",
					    "nobody read it within a minute"},
	    [MC_TALLY_PROMOTION_FAILED] = {"master_promotion_failed_total",
					   "what was read is damaged"},
	    [MC_TALLY_PROMOTION_CANCELLED] = {"master_promotion_cancelled_total",
					      "removed meanwhile"},
	    [MC_TALLY_PROMOTION_FREQUENCY] = {"master_promotion_rejected_frequency_total",
					      "not looked up often enough"},
	    [MC_TALLY_PROMOTION_WATERMARK] = {"master_promotion_rejected_watermark_total",
					      "its owner's memory is too full"},
	    [MC_TALLY_PROMOTION_CAP] = {"master_promotion_rejected_cap_total", "too many at once"},
	};
	int rc = mc_stat_add(reg, &open, NULL, 0, &t->promotions_open, NULL);

	for (size_t i = 0; rc == 0 && i < MC_ARRAY_LEN(rows); i++)
		rc = add(reg, rows[i].name, rows[i].help, &t->promotions[i]);
	return rc < 0 ? rc
		      : add(reg, "master_promotion_completed_bytes_total",
			    "bytes of those that are in memory", &t->promoted_bytes);
}

int mc_tally_add(const struct mc_tally *t, struct mc_stat_reg *reg)
{
	static const struct mc_stat_desc sizes = {.name = "master_value_size_bytes",
						  .help = "sizes of objects that were put",
						  .kind = MC_STAT_HIST,
						  .le_first = 12,
						  .le_last = 26};
	const struct {
		const char *name, *help;
		const struct mc_counter *c;
	} rows[] = {
	    {"total_get_nums_", "keys looked up", &t->gets},
	    {"valid_get_nums_", "of those, found", &t->valid_gets},
	    {"mem_cache_hit_nums_", "keys found in memory", &t->hits[MC_ST_MEMORY]},
	    {"mem_cache_hit_bytes_total", "bytes of those", &t->hit_bytes[MC_ST_MEMORY]},
	    {"file_cache_hit_nums_", "keys found on disk only", &t->hits[MC_ST_DISK]},
	    {"file_cache_hit_bytes_total", "bytes of those", &t->hit_bytes[MC_ST_DISK]},
	    {"master_attempted_evictions_total", "looks for objects to evict", &t->evictions_tried},
	    {"master_successful_evictions_total", "of those, something went", &t->evictions_done},
	};
	int rc = mc_stat_add(reg, &sizes, NULL, 0, &t->value_bytes, NULL);

	if (rc == 0)
		rc = promotions_add(t, reg);

	for (unsigned op = 0; rc == 0 && op < MC_TALLY_OP_COUNT; op++)
		rc = ops_add(t, reg, op);
	for (size_t i = 0; rc == 0 && i < MC_ARRAY_LEN(rows); i++)
		rc = add(reg, rows[i].name, rows[i].help, rows[i].c);
	return rc;
}
