/*
 * move.c: transfers of an op, one group for each owner, so that one owner's trouble is not another
 * one's. With one group the caller's thread drives it itself; more of them go side by side.
 */
#include "base/crc.h"
#include "client/priv.h"

#define GROUP_MAX 4096u /* transfers of one group */

struct group {
	struct mc_cli_owner *owner;
	struct mc_transfer *x;
	struct mc_cli_move **moves;
	uint32_t n;
	uint64_t id; /* 0: not under way */
	int32_t segment;
	int rc;
};

static uint64_t left_ns(uint64_t deadline_ns)
{
	uint64_t now_ns = mc_now_ns();

	return now_ns < deadline_ns ? deadline_ns - now_ns : 1;
}

static struct mc_group engine_group(const struct mc_transfer *x, uint32_t n, uint64_t deadline_ns)
{
	return (struct mc_group){.size = sizeof(struct mc_group),
				 .n = n,
				 .transfers = x,
				 .deadline_ns = left_ns(deadline_ns),
				 .priority = MC_PRIO_NORMAL};
}

static int sync_run(struct mc_store *st, const struct mc_transfer *x, uint32_t n,
		    uint64_t deadline_ns)
{
	struct mc_group g = engine_group(x, n, deadline_ns);

	return mc_transfer_sync(st->eng, &g, NULL);
}

/* ---- counting what passes ---- */

struct counted {
	struct mc_cli_move **moves;
	bool is_big; /* the group: its bytes would only wash through the cache */
};

static void on_copy(void *user, uint32_t transfer, uint64_t at, void *dst, const void *src,
		    size_t n)
{
	const struct counted *c = user;
	struct mc_cli_tally *y = c->moves[transfer]->tally;

	if (y)
		mc_cli_tally_add(y, at, dst, src, n, c->is_big);
	else
		memcpy(dst, src, n);
}

static void on_passed(void *user, uint32_t transfer, uint64_t at, const void *bytes, size_t n)
{
	const struct counted *c = user;
	struct mc_cli_tally *y = c->moves[transfer]->tally;

	if (y)
		mc_cli_tally_add(y, at, NULL, bytes, n, false);
}

static void on_again(void *user, uint32_t transfer)
{
	const struct counted *c = user;

	if (c->moves[transfer]->tally)
		mc_cli_tally_void(c->moves[transfer]->tally);
}

/* Its transfers, one after the other, with their bytes counted where somebody wants that. */
static int group_sync(struct mc_store *st, struct group *g, uint64_t deadline_ns)
{
	struct mc_group eg = engine_group(g->x, g->n, deadline_ns);
	struct counted counted = {.moves = g->moves};
	struct mc_tap tap = {&counted, on_copy, on_passed, on_again};
	uint64_t bytes = 0;

	for (uint32_t i = 0; i < g->n; i++) {
		if (g->moves[i]->tally)
			eg.tap = &tap;
		for (uint32_t k = 0; k < g->x[i].nremote; k++)
			bytes += g->x[i].remote[k].len;
	}
	counted.is_big = bytes >= MC_CRC_STREAM_MIN;
	return mc_transfer_sync(st->eng, &eg, NULL);
}

/* ---- groups ---- */

static void group_start(struct mc_store *st, struct group *g, uint64_t deadline_ns)
{
	struct mc_group eg = engine_group(g->x, g->n, deadline_ns);

	g->rc = mc_submit(st->eng, &eg, &g->id);
	if (g->rc == 0)
		return;
	g->id = 0;
	if (g->rc == -MC_E_AGAIN) /* too many under way: this one in turn */
		g->rc = sync_run(st, g->x, g->n, deadline_ns);
}

static void group_wait(struct mc_store *st, struct group *g)
{
	struct mc_status status = {0};

	if (g->id == 0)
		return;
	g->rc = mc_group_wait(st->eng, g->id, MC_TIME_NEVER, &status); /* ends by its deadline */
	if (g->rc == 0)
		g->rc = status.status;
	(void)mc_group_free(st->eng, g->id);
}

/* A range that the owner does not have fails its whole group: ask one by one. */
static void group_end(struct mc_store *st, struct group *g, uint64_t deadline_ns)
{
	bool is_one_by_one = g->rc < 0 && g->n > 1 && g->segment >= 0 &&
			     mc_err_scope(g->rc) == MC_SCOPE_OP && g->rc != -MC_E_TIMEDOUT &&
			     g->rc != -MC_E_CANCELED;

	for (uint32_t i = 0; i < g->n; i++) {
		if (is_one_by_one && g->moves[i]->tally)
			mc_cli_tally_void(g->moves[i]->tally);
		g->moves[i]->rc = is_one_by_one ? sync_run(st, &g->x[i], 1, deadline_ns) : g->rc;
	}
	if (!is_one_by_one && g->rc < 0 && g->segment >= 0)
		mc_cli_owner_bad(g->owner, g->rc);
	else if (g->rc == 0)
		mc_cli_owner_good(g->owner);
}

/* The next group: those of the first owner that are in none yet. @return 0; 1: there is none */
static int group_next(struct mc_cli_op *op, struct mc_cli_move *moves, size_t n, uint8_t *is_taken,
		      struct group *ret)
{
	struct mc_cli_owner *owner = NULL;
	uint32_t count = 0;

	for (size_t i = 0; i < n && count < GROUP_MAX; i++) {
		if (is_taken[i] || (owner && moves[i].owner != owner))
			continue;
		owner = moves[i].owner;
		count++;
	}
	if (count == 0)
		return 1;
	*ret = (struct group){.owner = owner,
			      .segment = -1, /* not opened */
			      .x = mc_cli_alloc(op, count, sizeof(*ret->x)),
			      .moves = mc_cli_alloc(op, count, sizeof(struct mc_cli_move *))};
	if (!ret->x || !ret->moves)
		return -MC_E_NOMEM;
	ret->rc = mc_cli_owner_segment(op, owner, &ret->segment);
	for (size_t i = 0; i < n && ret->n < count; i++) {
		if (is_taken[i] || moves[i].owner != owner)
			continue;
		is_taken[i] = 1;
		ret->x[ret->n] = moves[i].x;
		ret->x[ret->n].segment = ret->segment;
		ret->moves[ret->n++] = &moves[i];
	}
	return 0;
}

static void fail_all(struct mc_cli_move *moves, size_t n, int rc)
{
	for (size_t i = 0; i < n; i++)
		moves[i].rc = rc;
}

void mc_cli_moves_run(struct mc_cli_op *op, struct mc_cli_move *moves, size_t n,
		      uint64_t deadline_ns)
{
	size_t ngroups = 0, cap = 0;
	struct group *groups = NULL, *more;
	uint8_t *is_taken = mc_cli_alloc(op, n, 1);
	int rc = is_taken ? 0 : -MC_E_NOMEM;

	while (rc == 0) {
		if (ngroups == cap) {
			more = mc_cli_alloc(op, cap * 2 + 4, sizeof(*groups));
			if (!more) {
				rc = -MC_E_NOMEM;
				break;
			}
			if (ngroups)
				memcpy(more, groups, ngroups * sizeof(*groups));
			groups = more;
			cap = cap * 2 + 4;
		}
		rc = group_next(op, moves, n, is_taken, &groups[ngroups]);
		ngroups += rc == 0;
	}
	if (rc < 0) {
		fail_all(moves, n, rc);
		return;
	}
	for (size_t i = 0; i < ngroups; i++)
		if (groups[i].rc == 0 && ngroups == 1)
			groups[i].rc = group_sync(op->st, &groups[i], deadline_ns);
		else if (groups[i].rc == 0)
			group_start(op->st, &groups[i], deadline_ns);
	for (size_t i = 0; i < ngroups; i++) {
		group_wait(op->st, &groups[i]);
		group_end(op->st, &groups[i], deadline_ns);
	}
}
