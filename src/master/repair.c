/*
 * repair.c: replicas that are missing are made again, in the background. When an owner is dropped
 * or one comes, a mover (mover.h) walks over the index; an object with fewer replicas in memory
 * than its writer asked for is copied from a survivor to an owner that has none. Rate-limited
 * (conf.repair_bytes_per_s): requests come first.
 */
#include "base/log.h"
#include "master/mover.h"

#define COPIES 4u     /* at one time */
#define WAIT_MS 1000u /* an owner that reconnects is back by then; others may follow the first */

struct mc_mst_repair {
	struct mc_mst_mover mover;
	struct mc_mst_repair_stats stats;
	uint64_t wanted_ms; /* a pass is to begin then; UINT64_MAX: none */
	bool is_again;	    /* after this pass */
};

static struct mc_mst_repair *repair_of(struct mc_mst_mover *mv)
{
	return mc_container_of(mv, struct mc_mst_repair, mover);
}

/* Replicas in memory of owners that stay. */
static uint32_t well(struct mc_master *m, const struct mc_st_object *o)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < o->nreplicas; i++) {
		const struct mc_mst_owner *at = mc_mst_owner_find(m, o->replicas[i].owner);

		n += o->replicas[i].kind == MC_ST_MEMORY && at && at->is_joined;
	}
	return n;
}

static void each(struct mc_mst_mover *mv, const struct mc_index_view *v)
{
	uint32_t n = well(mv->m, &v->object), want = mc_min(v->wanted, (uint8_t)MC_ST_REPLICAS_MAX);

	/* One at a time: the pass after this one looks again. */
	if (n > 0 && n < want)
		mc_mst_mover_add(mv, v, 0, false);
}

static bool may_go(struct mc_mst_mover *mv)
{
	(void)mv;
	return true;
}

/* It is looked at again when an owner comes. */
static int32_t no_room(struct mc_mst_mover *mv, struct mc_mst_copy *c,
		       const struct mc_st_object *object)
{
	(void)c;
	(void)object;
	repair_of(mv)->stats.failed++;
	return MC_STORE_REPLICA_NOT_FOUND; /* nothing more to do about it */
}

static void on_one(struct mc_mst_mover *mv, uint64_t bytes, int32_t status)
{
	struct mc_mst_repair *r = repair_of(mv);

	if (status == 0) {
		r->stats.made++;
		r->stats.bytes += bytes;
		r->is_again = true;
	} else {
		r->stats.failed++;
	}
}

static void on_pass(struct mc_mst_mover *mv)
{
	struct mc_mst_repair *r = repair_of(mv);

	r->stats.is_running = false;
	if (r->is_again)
		r->wanted_ms = mc_mst_now_ms(mv->m);
	else if (mv->found > 0)
		mc_log_info("replicas are missing that no owner takes", "objects=%llu",
			    (unsigned long long)mv->found);
	r->is_again = false;
}

void mc_mst_repair_wanted(struct mc_master *m)
{
	struct mc_mst_repair *r = m->repair;

	r->is_again = r->stats.is_running;
	if (!r->is_again)
		r->wanted_ms = mc_mst_now_ms(m) + WAIT_MS;
}

void mc_mst_repair_tick(struct mc_master *m)
{
	struct mc_mst_repair *r = m->repair;

	if (r->stats.is_running || r->wanted_ms > mc_mst_now_ms(m) || m->is_recovering)
		return;
	r->wanted_ms = UINT64_MAX;
	r->stats.is_running = true;
	mc_mst_mover_pass(&r->mover);
	mc_mst_mover_go(&r->mover, 0);
}

void mc_mst_repair_stats(const struct mc_master *m, struct mc_mst_repair_stats *ret)
{
	*ret = m->repair->stats;
}

int mc_mst_repair_open(struct mc_master *m)
{
	struct mc_mst_repair *r = mc_calloc(1, sizeof(*r));

	if (!r)
		return -MC_E_NOMEM;
	r->wanted_ms = UINT64_MAX;
	r->mover = (struct mc_mst_mover){.m = m,
					 .copies = COPIES,
					 .bytes_per_s = m->conf.repair_bytes_per_s,
					 .each = each,
					 .may_go = may_go,
					 .on_no_room = no_room,
					 .on_one = on_one,
					 .on_pass = on_pass};
	m->repair = r;
	mc_mst_mover_init(&r->mover, m->start_ns);
	return 0;
}

void mc_mst_repair_close(struct mc_master *m)
{
	if (!m->repair)
		return;
	mc_mst_mover_fini(&m->repair->mover);
	mc_free(m->repair);
	m->repair = NULL;
}
