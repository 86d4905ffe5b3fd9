/*
 * get.c: whole objects and pieces of them, into the user's memory.
 */
#include "client/priv.h"

/* The first code that is not success. */
static int sum_up(const int64_t *ret, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++)
		if (ret[i] < 0)
			return (int)ret[i];
	return 0;
}

static int fail_all(int64_t *ret, uint32_t n, int code)
{
	for (uint32_t i = 0; i < n; i++)
		ret[i] = code;
	return code;
}

static struct mc_cli_read *begin(struct mc_store *st, uint32_t n, struct mc_cli_op **ret_op,
				 int *rc)
{
	struct mc_cli_read *reads;

	if (n > MC_STORE_BATCH_MAX) {
		*rc = MC_STORE_INVALID_PARAMS;
		return NULL;
	}
	*rc = mc_cli_op_begin(st, ret_op);
	if (*rc < 0)
		return NULL;
	reads = mc_cli_alloc(*ret_op, n, sizeof(*reads));
	if (!reads) {
		mc_cli_op_end(*ret_op);
		*rc = MC_STORE_INTERNAL_ERROR;
	}
	return reads;
}

/* The `i`th read, of this key, to `npieces` places. */
static void read_open(struct mc_cli_op *op, const struct mc_store_key *key, uint32_t npieces,
		      uint32_t i, struct mc_cli_read *ret)
{
	ret->index = i;
	ret->result = mc_cli_key_make(op, key, &ret->look.key);
	if (npieces > MC_STORE_PARTS_MAX)
		ret->result = MC_STORE_INVALID_PARAMS;
}

static int end(struct mc_store *st, struct mc_cli_op *op, const struct mc_cli_read *reads,
	       uint32_t n, int64_t *ret)
{
	for (uint32_t i = 0; i < n; i++)
		ret[i] = reads[i].result;
	mc_cli_count_get(st->counts, op->start_ns, ret, n);
	mc_cli_op_end(op);
	return sum_up(ret, n);
}

/* The object's bytes over the parts, in order. */
static int fit_parts(struct mc_cli_op *op, struct mc_cli_read *r, void *user)
{
	const struct mc_store_item *items = user;
	const struct mc_store_item *item = &items[r->index];
	struct mc_store_range *ranges;
	uint64_t at = 0;
	uint32_t n = 0;

	ranges = mc_cli_alloc(op, item->nparts, sizeof(*ranges));
	if (!ranges)
		return MC_STORE_INTERNAL_ERROR;
	for (uint32_t i = 0; i < item->nparts && at < r->info.len; i++) {
		size_t len = (size_t)mc_min((uint64_t)item->parts[i].len, r->info.len - at);

		if (len == 0)
			continue;
		ranges[n++] = (struct mc_store_range){at, item->parts[i].addr, len};
		at += len;
	}
	if (at < r->info.len)
		return MC_STORE_INVALID_PARAMS;
	r->ranges = ranges;
	r->nranges = n;
	return 0;
}

int mc_store_get(struct mc_store *store, const struct mc_store_item *items, uint32_t n,
		 int64_t *ret)
{
	struct mc_cli_op *op;
	struct mc_cli_read *reads;
	int rc;

	reads = begin(store, n, &op, &rc);
	if (!reads)
		return fail_all(ret, n, rc);
	for (uint32_t i = 0; i < n; i++)
		read_open(op, &items[i].key, items[i].nparts, i, &reads[i]);
	mc_cli_read_run(op, reads, n, fit_parts, (void *)items);
	return end(store, op, reads, n, ret);
}

/* The user's ranges as they are. */
static int fit_ranges(struct mc_cli_op *op, struct mc_cli_read *r, void *user)
{
	(void)op;
	(void)user;
	for (uint32_t i = 0; i < r->nranges; i++)
		if (r->ranges[i].offset > r->info.len ||
		    r->ranges[i].len > r->info.len - r->ranges[i].offset)
			return MC_STORE_INVALID_PARAMS;
	return 0;
}

int mc_store_get_ranges(struct mc_store *store, const struct mc_store_ranged *items, uint32_t n,
			int64_t *ret)
{
	struct mc_cli_op *op;
	struct mc_cli_read *reads;
	int rc;

	reads = begin(store, n, &op, &rc);
	if (!reads)
		return fail_all(ret, n, rc);
	for (uint32_t i = 0; i < n; i++) {
		read_open(op, &items[i].key, items[i].nranges, i, &reads[i]);
		reads[i].ranges = items[i].ranges;
		reads[i].nranges = items[i].nranges;
	}
	mc_cli_read_run(op, reads, n, fit_ranges, NULL);
	return end(store, op, reads, n, ret);
}
