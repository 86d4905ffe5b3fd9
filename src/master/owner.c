/*
 * owner.c: the owners there are. One whose stream is lost, or that is silent, is suspect; after
 * client_ttl it is away: dropped from the index, kept in the roster, adopted when it comes back.
 *
 * A master that begins with a roster recovers: keys that it does not know may be with owners that
 * have not announced yet. That is over when all have, or after client_ttl.
 */
#include <string.h>

#include "base/log.h"
#include "master/priv.h"

#define TICK_BUSY_NS (100 * MC_NS_PER_MS)
#define TICK_NS (500 * MC_NS_PER_MS)
#define SILENT_NS (3ull * MC_ST_BEAT_MS * MC_NS_PER_MS)
#define BURY_NS (500 * MC_NS_PER_MS) /* an owner that reconnects does so within 100 ms */
#define STEP_BUDGET 4096u

static struct mc_mst_owner **bucket_of(struct mc_master *m, uint64_t id)
{
	return &m->owner_buckets[(id ^ id >> 32) % MC_ARRAY_LEN(m->owner_buckets)];
}

struct mc_mst_owner *mc_mst_owner_find(struct mc_master *m, uint64_t id)
{
	struct mc_mst_owner *o = *bucket_of(m, id);

	while (o && o->id != id)
		o = o->chain;
	return o;
}

static void tick_soon(struct mc_master *m, uint64_t in_ns)
{
	uint64_t at = mc_clock_now(m->env.clk) + in_ns;

	if (!m->tick.is_set || m->tick.node.key > at)
		(void)mc_loop_timer_set(m->loop, &m->tick, at); /* one timer */
}

struct mc_mst_owner *mc_mst_owner_add(struct mc_master *m, uint64_t id)
{
	struct mc_mst_owner **at = bucket_of(m, id), *o;

	if (m->nowners >= MC_MST_OWNERS_MAX)
		return NULL;
	o = mc_calloc(1, sizeof(*o));
	if (!o)
		return NULL;
	o->master = m;
	o->id = id;
	o->want_ms[MC_ST_MEMORY] = o->want_ms[MC_ST_DISK] = UINT64_MAX;
	mc_list_init(&o->freeing_link);
	mc_list_init(&o->marking_link);
	mc_list_init(&o->copies_waiting);
	mc_list_init(&o->orders);
	mc_list_push_back(&m->owners, &o->link);
	o->chain = *at;
	*at = o;
	m->nowners++;
	tick_soon(m, TICK_BUSY_NS);
	return o;
}

void mc_mst_view_changed(struct mc_master *m)
{
	m->view_version++;
}

/* ---- roster ---- */

/* Those that were set. @return NULL: no memory */
static struct mc_state_quota *quotas_take(const struct mc_master *m, size_t *ret_n)
{
	struct mc_state_quota *rows = NULL;
	struct mc_index_tenant t;
	size_t cursor = 0, cap = 0;

	*ret_n = 0;
	do {
		if (mc_array_grow((void **)&rows, &cap, *ret_n + 1, MC_STATE_QUOTAS_MAX + 1,
				  sizeof(*rows)) < 0) {
			mc_free(rows);
			return NULL;
		}
		if (!mc_index_tenant_next(m->index, &cursor, &t))
			return rows;
		if (!t.has_own_quota || t.name_len >= sizeof(rows->tenant))
			continue;
		rows[*ret_n] = (struct mc_state_quota){.bytes = t.quota, .tenant = "default"};
		if (t.name_len) {
			memcpy(rows[*ret_n].tenant, t.name, t.name_len);
			rows[*ret_n].tenant[t.name_len] = '\0';
		}
		++*ret_n;
	} while (*ret_n <= MC_STATE_QUOTAS_MAX);
	return rows;
}

int mc_mst_quota_set(struct mc_master *m, const char *tenant, const uint64_t *bytes)
{
	uint8_t name[1 + UINT8_MAX];
	size_t len;
	int rc;

	if (!mc_mst_tenant_put(tenant, name, &len))
		return -MC_E_INVAL;
	rc = mc_index_tenant_set(m->index, name + 1, (uint32_t)len - 1, bytes);
	if (rc == 0)
		mc_mst_roster_save(m);
	return rc;
}

void mc_mst_roster_save(struct mc_master *m)
{
	struct mc_state_owner *rows = mc_calloc(m->nowners + 1, sizeof(*rows));
	size_t n = 0, nquotas;
	struct mc_state_quota *quotas = quotas_take(m, &nquotas);
	struct mc_mst_owner *o;

	if (!rows || !quotas) {
		mc_log_error("no memory to write the roster", "owners=%u", m->nowners);
		mc_free(rows);
		mc_free(quotas);
		return;
	}
	mc_list_each (o, &m->owners, link) {
		rows[n].id = o->id;
		rows[n].incarnation = o->incarnation;
		rows[n].seen_s = o->seen_s;
		rows[n].is_away = o->state == MC_MST_ABSENT && !o->is_awaited;
		(void)mc_strlcpy(rows[n].segment, sizeof(rows[n].segment), o->segment);
		n++;
	}
	/* What goes wrong is told there. */
	(void)mc_state_save(m->state, mc_max(m->epoch_next, mc_master_epoch(m)), rows, n, quotas,
			    nquotas);
	mc_free(rows);
	mc_free(quotas);
}

void mc_mst_epoch_saved(struct mc_master *m)
{
	if (m->epoch_next <= mc_master_epoch(m))
		return;
	atomic_store_explicit(&m->epoch, m->epoch_next, memory_order_relaxed);
	m->gen_next = 1;
	mc_mst_floor_set(m);
	mc_mst_view_changed(m);
}

uint64_t mc_mst_known_until_ms(const struct mc_master *m, uint64_t lost_ns)
{
	return lost_ns / MC_NS_PER_MS + m->conf.lease_ms + 1;
}

static void away_until_set(struct mc_master *m, uint64_t lost_ns)
{
	m->away_until_ms = mc_max(m->away_until_ms, mc_mst_known_until_ms(m, lost_ns));
}

/* One that the master before gave up: it was lost so long after it was heard last. */
static uint64_t lost_before(const struct mc_master *m, const struct mc_state_owner *row)
{
	uint64_t now = mc_clock_now(m->env.clk), wall = mc_wall_ns();
	uint64_t lost = mc_time_after(row->seen_s * MC_NS_PER_S, MC_NS_PER_S + SILENT_NS + TICK_NS);

	return now - (wall > lost ? mc_min(now, wall - lost) : 0);
}

static int roster_add(struct mc_master *m, const struct mc_state_owner *row)
{
	struct mc_mst_owner *o = mc_mst_owner_add(m, row->id);

	if (!o || mc_index_owner_away(m->index, row->id) < 0)
		return -MC_E_NOMEM;
	o->incarnation = row->incarnation;
	o->seen_s = row->seen_s;
	o->is_awaited = !row->is_away;
	(void)mc_strlcpy(o->segment, sizeof(o->segment), row->segment);
	m->is_recovering |= o->is_awaited;
	if (row->is_away)
		away_until_set(m, lost_before(m, row));
	return 0;
}

static int quota_load(struct mc_master *m, const struct mc_state_quota *q)
{
	uint8_t name[1 + UINT8_MAX];
	size_t len;

	if (!mc_mst_tenant_put(q->tenant, name, &len))
		return 0; /* written by nobody */
	return mc_index_tenant_set(m->index, name + 1, (uint32_t)len - 1, &q->bytes);
}

int mc_mst_roster_load(struct mc_master *m, const struct mc_state_found *found)
{
	int rc = 0;

	for (size_t i = 0; i < found->nowners && rc == 0; i++)
		rc = roster_add(m, &found->owners[i]);
	for (size_t i = 0; i < found->nquotas && rc == 0; i++)
		rc = quota_load(m, &found->quotas[i]);
	for (size_t i = 0; i < found->ntombs && rc == 0; i++) {
		struct mc_index_tomb tomb = {found->tombs[i].owner, found->tombs[i].key_hash,
					     found->tombs[i].gen};

		rc = mc_index_entomb(m->index, &tomb);
		if (rc == -MC_E_LIMIT) {
			tomb = (struct mc_index_tomb){.gen = UINT64_MAX};
			rc = mc_index_entomb(m->index, &tomb);
		}
	}
	mc_index_set_recovering(m->index, m->is_recovering);
	return rc;
}

/* ---- recovering ---- */

static void recovered(struct mc_master *m)
{
	struct mc_mst_owner *o;

	if (!m->is_recovering)
		return;
	mc_list_each (o, &m->owners, link) {
		if (o->is_awaited)
			return;
	}
	m->is_recovering = false;
	mc_index_set_recovering(m->index, false);
	mc_log_info("recovered", "owners=%u ms=%llu", m->nowners,
		    (unsigned long long)((mc_clock_now(m->env.clk) - m->start_ns) / MC_NS_PER_MS));
}

static void recover_tick(struct mc_master *m, uint64_t now)
{
	struct mc_mst_owner *o;

	if (!m->is_recovering || now - m->start_ns < m->conf.client_ttl_ms * MC_NS_PER_MS)
		return;
	mc_list_each (o, &m->owners, link) {
		if (o->is_awaited && o->state != MC_MST_ANNOUNCE) {
			o->is_awaited = false;
			away_until_set(m, m->start_ns);
			mc_log_warn("owner has not come back", "segment=%s id=%016llx", o->segment,
				    (unsigned long long)o->id);
		}
	}
	mc_mst_roster_save(m);
	recovered(m);
}

void mc_mst_owner_announced(struct mc_master *m, struct mc_mst_owner *o)
{
	o->is_announced = true;
	o->is_awaited = false;
	if (o->state == MC_MST_ANNOUNCE)
		o->state = MC_MST_OK;
	mc_index_owner_announced(m->index, o->id);
	mc_mst_tombs_save(m);
	mc_mst_view_changed(m);
	mc_mst_repair_wanted(m);
	recovered(m);
}

/* ---- coming and going ---- */

void mc_mst_owner_free(struct mc_mst_owner *o)
{
	mc_mst_orders_over(o);
	mc_free(o->rx);
	mc_free(o->tx);
	mc_free(o->frees);
	mc_free(o->marks);
	mc_free(o);
}

static void owner_unlink(struct mc_master *m, struct mc_mst_owner *o)
{
	struct mc_mst_owner **at = bucket_of(m, o->id);

	mc_mst_copies_lost(o);
	while (*at != o)
		at = &(*at)->chain;
	*at = o->chain;
	mc_list_del(&o->link);
	mc_list_del(&o->freeing_link);
	mc_list_del(&o->marking_link);
	m->nowners--;
	if (o->is_saving)
		o->is_left = true;
	else
		mc_mst_owner_free(o);
}

void mc_mst_owner_forget(struct mc_master *m, struct mc_mst_owner *o)
{
	struct mc_index_frees frees = {0};

	mc_log_info("owner has left", "segment=%s id=%016llx", o->segment,
		    (unsigned long long)o->id);
	if (mc_index_pending(m->index, o->id, &frees) < 0)
		mc_log_error("no memory for what an owner had to free", "segment=%s", o->segment);
	mc_index_owner_forget(m->index, o->id);
	for (size_t i = 0; i < frees.n; i++)
		mc_mst_freed(m, o->id, frees.v[i].addr, frees.v[i].gen);
	mc_index_frees_fini(&frees);
	owner_unlink(m, o);
	mc_mst_repair_wanted(m);
	mc_mst_roster_save(m);
	mc_mst_view_changed(m);
	recovered(m);
	mc_mst_frees_send(m);
}

void mc_mst_owner_lost(struct mc_master *m, struct mc_mst_owner *o)
{
	o->req = NULL;
	o->tx_at = o->tx_len = o->rx_len = 0;
	o->nfrees = 0; /* pending in the index */
	o->nmarks = 0;
	o->want_ms[MC_ST_MEMORY] = o->want_ms[MC_ST_DISK] = UINT64_MAX;
	if (m->is_closing)
		return;
	mc_mst_copies_lost(o);
	if (o->state != MC_MST_SUSPECT)
		o->lost_ns = mc_clock_now(m->env.clk);
	o->state = o->is_joined ? MC_MST_SUSPECT : MC_MST_ABSENT;
	if (o->is_joined)
		mc_index_owner_suspect(m->index, o->id);
	mc_mst_view_changed(m);
	tick_soon(m, TICK_BUSY_NS);
	mc_log_info("owner is lost", "segment=%s id=%016llx", o->segment,
		    (unsigned long long)o->id);
}

void mc_mst_owner_heard(struct mc_master *m, struct mc_mst_owner *o)
{
	o->heard_ns = mc_clock_now(m->env.clk);
	o->seen_s = mc_wall_ns() / MC_NS_PER_S;
	if (o->state != MC_MST_SUSPECT || !o->req)
		return;
	if (o->is_buried || mc_index_owner_join(m->index, o->id) < 0) {
		mc_mst_stream_end(o, -MC_E_STALE); /* it comes again, and announces */
		return;
	}
	o->state = o->is_announced ? MC_MST_OK : MC_MST_ANNOUNCE;
	mc_mst_view_changed(m);
}

static void silent(struct mc_master *m, struct mc_mst_owner *o, uint64_t now)
{
	mc_log_warn("owner is silent", "segment=%s id=%016llx", o->segment,
		    (unsigned long long)o->id);
	o->state = MC_MST_SUSPECT;
	o->lost_ns = now;
	mc_index_owner_suspect(m->index, o->id);
	mc_mst_view_changed(m);
}

void mc_mst_owner_away(struct mc_master *m, struct mc_mst_owner *o)
{
	mc_log_warn("owner is away; what it has is not looked up until it comes back",
		    "segment=%s id=%016llx", o->segment, (unsigned long long)o->id);
	if (o->req)
		mc_mst_stream_end(o, -MC_E_TIMEDOUT);
	mc_mst_frees_again(m, o, true);
	if (mc_index_owner_away(m->index, o->id) < 0) {
		mc_log_error("no memory to drop an owner, later again", "segment=%s", o->segment);
		return;
	}
	away_until_set(m, o->lost_ns);
	mc_mst_floor_set(m);
	o->is_joined = false;
	o->is_announced = false;
	o->is_awaited = false;
	o->is_buried = true;
	o->state = MC_MST_ABSENT;
	mc_mst_roster_save(m);
	mc_mst_view_changed(m);
	mc_mst_repair_wanted(m);
	recovered(m);
}

/* ---- time ---- */

/* @return something will have to be done soon */
static bool owner_tick(struct mc_master *m, struct mc_mst_owner *o, uint64_t now)
{
	bool is_up = o->req && o->state != MC_MST_SHAKING;

	if (is_up && o->state != MC_MST_SUSPECT && now - o->heard_ns >= SILENT_NS)
		silent(m, o, now);
	for (unsigned kind = 0; is_up && kind < MC_ST_KIND_COUNT; kind++)
		mc_mst_room(m, o, kind);
	mc_mst_copies_pump(o);
	if (!o->is_joined || o->state == MC_MST_OK || o->state == MC_MST_ANNOUNCE)
		return o->want_ms[MC_ST_MEMORY] != UINT64_MAX ||
		       o->want_ms[MC_ST_DISK] != UINT64_MAX;
	if (!o->is_buried && now - o->lost_ns >= BURY_NS) {
		o->is_buried = true;
		mc_mst_frees_again(m, o, true);
	}
	if (now - o->heard_ns >= m->conf.client_ttl_ms * MC_NS_PER_MS)
		mc_mst_owner_away(m, o);
	return true;
}

static void on_tick(struct mc_timer *t)
{
	struct mc_master *m = mc_container_of(t, struct mc_master, tick);
	uint64_t now = mc_clock_now(m->env.clk);
	bool is_busy = m->is_recovering;
	struct mc_mst_owner *o;

	mc_list_each (o, &m->owners, link)
		is_busy |= owner_tick(m, o, now);
	recover_tick(m, now);
	mc_mst_tasks_tick(m);
	mc_mst_repair_tick(m);
	mc_mst_promotions_tick(m);
	is_busy |= mc_mst_buried_tick(m);
	is_busy |= mc_index_step(m->index, mc_mst_now_ms(m), STEP_BUDGET);
	mc_mst_frees_send(m);
	if (m->nowners > 0)
		tick_soon(m, is_busy ? TICK_BUSY_NS : TICK_NS);
}

void mc_mst_owners_init(struct mc_master *m)
{
	mc_list_init(&m->owners);
	m->tick.on_time = on_tick;
}

void mc_mst_owners_fini(struct mc_master *m)
{
	struct mc_list *node;

	mc_loop_timer_cancel(m->loop, &m->tick);
	while ((node = mc_list_pop_front(&m->owners)))
		mc_mst_owner_free(mc_list_entry(node, struct mc_mst_owner, link));
}
