/*
 * put.c: objects into the pool: room and bytes at owners, then one commit for all. What did not
 * become visible is given up before its code is returned.
 */
#include "client/priv.h"

#define ROUNDS_MAX 8u /* an owner lost its slot between seal and commit: anew */
#define DROP_NS (500 * MC_NS_PER_MS)

static int fail_all(int32_t *ret, uint32_t n, int code)
{
	for (uint32_t i = 0; i < n; i++)
		ret[i] = code;
	return code;
}

static uint64_t len_of(const struct mc_store_item *item)
{
	uint64_t len = 0;

	for (uint32_t i = 0; i < item->nparts; i++)
		if (__builtin_add_overflow(len, (uint64_t)item->parts[i].len, &len))
			return UINT64_MAX;
	return len;
}

static int write_open(struct mc_cli_op *op, const struct mc_store_item *item,
		      const struct mc_store_conf *conf, uint32_t index, unsigned flags,
		      struct mc_cli_write *w)
{
	int rc;

	if (item->nparts > MC_STORE_PARTS_MAX)
		return MC_STORE_INVALID_PARAMS;
	rc = mc_cli_write_make(op, &item->key, len_of(item), conf, index, w);
	if (rc == 0)
		rc = mc_cli_write_parts(op, item, w);
	w->is_upsert = (flags & MC_STORE_UPSERT) != 0;
	return rc;
}

static bool is_open(const struct mc_cli_write *w)
{
	return w->status == 0 && !w->is_committed;
}

/* Those that lost a slot begin anew, under a generation of their own. */
static void begin_anew(struct mc_cli_op *op, struct mc_cli_write *writes, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		struct mc_cli_write *w = &writes[i];
		int rc;

		if (!is_open(w))
			continue;
		mc_cli_drop(op, w, 1);
		w->ntargets = 0;
		rc = mc_cli_gens(op, 1, true, &w->gen);
		w->info.gen = w->gen;
		if (rc < 0)
			w->status = mc_cli_code_rpc(rc);
	}
}

void mc_cli_write_run(struct mc_cli_op *op, struct mc_cli_write *writes, size_t n,
		      const struct mc_store_conf *conf)
{
	uint64_t deadline_ns = op->deadline_ns, now_ns = mc_now_ns();
	size_t nopen = n;

	/* Time to take back what is not committed by then. */
	if (deadline_ns > now_ns)
		op->deadline_ns -= mc_min(DROP_NS, (deadline_ns - now_ns) / 8);
	for (unsigned i = 0; i < ROUNDS_MAX && nopen > 0; i++) {
		if (i > 0)
			begin_anew(op, writes, n);
		mc_cli_targets_run(op, writes, n, conf);
		mc_cli_commit(op, writes, n);
		nopen = 0;
		for (size_t j = 0; j < n; j++)
			nopen += is_open(&writes[j]);
	}
	for (size_t i = 0; i < n; i++)
		if (is_open(&writes[i]))
			writes[i].status = MC_STORE_REPLICA_IS_GONE;
	op->deadline_ns = deadline_ns;
	mc_cli_drop(op, writes, n);
}

int mc_store_put(struct mc_store *store, const struct mc_store_item *items, uint32_t n,
		 const struct mc_store_conf *conf, unsigned flags, int32_t *ret)
{
	struct mc_cli_write *writes;
	struct mc_cli_op *op;
	int rc = n <= MC_STORE_BATCH_MAX ? 0 : MC_STORE_INVALID_PARAMS;

	if (rc == 0)
		rc = mc_cli_op_begin(store, &op);
	if (rc < 0)
		return fail_all(ret, n, rc);
	writes = mc_cli_alloc(op, n, sizeof(*writes));
	if (!writes) {
		mc_cli_op_end(op);
		return fail_all(ret, n, MC_STORE_INTERNAL_ERROR);
	}
	for (uint32_t i = 0; i < n; i++)
		writes[i].status = write_open(op, &items[i], conf, i, flags, &writes[i]);
	rc = mc_cli_write_gens(op, writes, n);
	if (rc == 0)
		mc_cli_write_run(op, writes, n, conf);
	for (uint32_t i = 0; i < n; i++)
		ret[i] = writes[i].status < 0 || rc == 0 ? writes[i].status : rc;
	mc_cli_count_put(store->counts, op->start_ns, writes, n);
	mc_cli_op_end(op);
	for (uint32_t i = 0; i < n; i++)
		if (ret[i] < 0)
			return ret[i];
	return 0;
}
