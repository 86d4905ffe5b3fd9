/*
 * frees.c: what owners have to free. A free goes to its owner when there is a stream; else, after
 * a while, it becomes a tombstone in the state directory. Either way mc_index_freed() ends it, and
 * wakes who waits for the key.
 */
#include "base/log.h"
#include "master/priv.h"

#define OWNER_FREES_MAX (1u << 22)

/* ---- who waits ---- */

static struct mc_mst_wait **bucket_of(struct mc_master *m, uint64_t key_hash)
{
	return &m->waits[key_hash & (m->nbuckets - 1)];
}

static void append(struct mc_master *m, struct mc_mst_wait *w)
{
	struct mc_mst_wait **at = bucket_of(m, w->key_hash);

	while (*at)
		at = &(*at)->next;
	w->next = NULL;
	*at = w;
}

/* A removal of everything has a wait for each key. Without memory the chains become longer. */
static void buckets_grow(struct mc_master *m)
{
	struct mc_mst_wait **old = m->waits, **more, *w;
	size_t n = m->nbuckets;

	more = mc_calloc(n * 2, sizeof(struct mc_mst_wait *));
	if (!more)
		return;
	m->waits = more;
	m->nbuckets = n * 2;
	for (size_t i = 0; i < n; i++)
		while ((w = old[i])) {
			old[i] = w->next;
			append(m, w);
		}
	mc_free(old);
}

void mc_mst_wait(struct mc_master *m, struct mc_mst_wait *w)
{
	if (m->nwaits >= m->nbuckets)
		buckets_grow(m);
	append(m, w);
	m->nwaits++;
}

/* To the end of those that run next. */
static void wake(struct mc_master *m, uint64_t key_hash)
{
	struct mc_mst_wait **at = bucket_of(m, key_hash);

	while (*at) {
		struct mc_mst_wait *w = *at;

		if (w->key_hash != key_hash) {
			at = &w->next;
			continue;
		}
		*at = w->next;
		w->next = NULL;
		*m->woken_end = w;
		m->woken_end = &w->next;
		m->nwaits--;
	}
}

void mc_mst_freed(struct mc_master *m, uint64_t owner, uint64_t addr, uint64_t gen)
{
	uint64_t key_hash;

	if (mc_index_freed(m->index, owner, addr, gen, &key_hash) == 1)
		wake(m, key_hash);
}

/* ---- tombstones ---- */

static void bury_start(struct mc_master *m);

/* Who cannot be reached from here may be read by others: a tombstone stands for its owner's answer
 * only when no reader can know the place any more. */
static void buried(struct mc_master *m, const struct mc_index_free *f)
{
	struct mc_index_frees *held = &m->bury.held;
	const struct mc_mst_owner *o = f->owner ? mc_mst_owner_find(m, f->owner) : NULL;
	uint64_t until_ms = f->owner ? f->until_ms : m->away_until_ms;

	if (o)
		until_ms = mc_min(until_ms, mc_mst_known_until_ms(m, o->lost_ns));
	if (until_ms <= mc_mst_now_ms(m))
		mc_mst_freed(m, f->owner, f->addr, f->gen);
	else if (mc_array_grow((void **)&held->v, &held->cap, held->n + 1, SIZE_MAX, sizeof(*f)) <
		 0)
		mc_log_error("no memory for what readers may know; its key waits for its owner",
			     "owner=%016llx", (unsigned long long)f->owner);
	else
		held->v[held->n++] = *f;
}

bool mc_mst_buried_tick(struct mc_master *m)
{
	struct mc_index_frees *held = &m->bury.held;
	size_t n = held->n;

	held->n = 0;
	for (size_t i = 0; i < n; i++) {
		const struct mc_index_free f = held->v[i];

		buried(m, &f);
	}
	return held->n > 0;
}

static void bury_done(struct mc_state_wait *w)
{
	struct mc_master *m = mc_container_of(w, struct mc_master, bury.wait);
	struct mc_mst_bury *b = &m->bury;

	b->is_running = false;
	for (size_t i = 0; i < b->now.n; i++)
		buried(m, &b->now.v[i]);
	b->now.n = 0;
	bury_start(m);
	mc_mst_frees_send(m);
}

static void bury_start(struct mc_master *m)
{
	struct mc_mst_bury *b = &m->bury;
	struct mc_index_frees frees = b->now;

	if (b->is_running || b->next.n == 0)
		return;
	b->now = b->next;
	b->next = frees;
	b->is_running = true;
	b->wait.on_done = bury_done;
	mc_state_wait(m->state, &b->wait);
}

/* All that is away comes back empty: there is no room for more tombstones. */
static void bury_all(struct mc_master *m)
{
	const struct mc_index_tomb all = {.gen = UINT64_MAX};

	mc_log_warn("too many objects were removed while owners are away: those come back empty",
		    "owners=%u", m->nowners);
	if (mc_index_entomb(m->index, &all) < 0)
		mc_log_error("no memory for tombstones", "owners=%u", m->nowners);
	mc_mst_tombs_save(m);
}

static void bury(struct mc_master *m, const struct mc_index_free *f)
{
	struct mc_index_frees *next = &m->bury.next;
	const struct mc_index_tomb tomb = {f->owner, f->key_hash, f->gen};
	const struct mc_state_tomb row = {f->owner, f->key_hash, f->gen};

	if (mc_index_entomb(m->index, &tomb) < 0)
		bury_all(m);
	else if (mc_state_bury(m->state, &row) < 0)
		mc_mst_tombs_save(m);
	if (mc_array_grow((void **)&next->v, &next->cap, next->n + 1, SIZE_MAX, sizeof(*f)) < 0) {
		/* Whoever waits for it goes on waiting, until its deadline. */
		mc_log_error("no memory for a tombstone", "owner=%016llx",
			     (unsigned long long)f->owner);
		return;
	}
	next->v[next->n++] = *f;
	bury_start(m);
}

void mc_mst_tombs_save(struct mc_master *m)
{
	struct mc_state_tomb *rows = NULL;
	struct mc_index_tomb tomb;
	size_t cursor = 0, n = 0, cap = 0;

	while (mc_index_tomb_next(m->index, &cursor, &tomb)) {
		if (mc_array_grow((void **)&rows, &cap, n + 1, MC_STATE_TOMBS_MAX, sizeof(*rows)) <
		    0)
			break;
		rows[n++] = (struct mc_state_tomb){tomb.owner, tomb.key_hash, tomb.gen};
	}
	if (mc_state_bury_anew(m->state, rows, n) < 0)
		mc_log_error("no memory to write the tombstones", "n=%zu", n);
	mc_free(rows);
}

/* ---- to the owners ---- */

static void give(struct mc_mst_owner *o, const struct mc_index_free *f)
{
	if (mc_array_grow((void **)&o->frees, &o->frees_cap, o->nfrees + 1, OWNER_FREES_MAX,
			  sizeof(*o->frees)) < 0) {
		/* It is pending in the index, and goes with the next stream. */
		mc_mst_stream_end(o, -MC_E_NOMEM);
		return;
	}
	o->frees[o->nfrees++] = (struct mc_st_place){f->addr, f->gen};
	if (mc_list_is_empty(&o->freeing_link))
		mc_list_push_back(&o->master->freeing, &o->freeing_link);
}

static void send_one(struct mc_master *m, const struct mc_index_free *f)
{
	struct mc_mst_owner *o = f->owner ? mc_mst_owner_find(m, f->owner) : NULL;

	if (f->is_gone) /* its commit may be repeated; who has its bytes may announce them */
		mc_mst_kill(m, f->gen);
	if (!o || o->state == MC_MST_ABSENT || o->is_buried) {
		bury(m, f);
		return;
	}
	if (o->req && o->state != MC_MST_SHAKING)
		give(o, f);
	/* Else the welcome finds it pending, or the tick when the welcome takes too long. */
}

void mc_mst_frees_again(struct mc_master *m, struct mc_mst_owner *o, bool is_buried)
{
	struct mc_index_frees frees = {0};

	if (mc_index_pending(m->index, o->id, &frees) < 0)
		mc_log_error("no memory for what an owner has to free", "segment=%s", o->segment);
	for (size_t i = 0; i < frees.n; i++) {
		if (is_buried)
			bury(m, &frees.v[i]);
		else
			give(o, &frees.v[i]);
	}
	mc_index_frees_fini(&frees);
}

void mc_mst_frees_send(struct mc_master *m)
{
	struct mc_mst_owner *o;

	mc_mst_copies_end(m);
	while (m->woken || m->frees.n > 0) {
		struct mc_mst_wait *w = m->woken;

		for (size_t i = 0; i < m->frees.n; i++) {
			const struct mc_index_free f = m->frees.v[i];

			mc_mst_orders_free(m, &f);
			send_one(m, &f);
		}
		m->frees.n = 0;
		if (!w)
			continue;
		m->woken = w->next;
		if (!m->woken)
			m->woken_end = &m->woken;
		w->wake(m, w);
	}
	mc_list_each (o, &m->freeing, freeing_link) {
		mc_list_del(&o->freeing_link);
		if (!mc_mst_note_places(o, MC_ST_NOTE_FREE, o->frees, o->nfrees))
			mc_mst_stream_end(o, -MC_E_NOMEM); /* pending: with the next stream */
		o->nfrees = 0;
	}
}

void mc_mst_frees_init(struct mc_master *m)
{
	mc_list_init(&m->freeing);
	mc_list_init(&m->ops);
	mc_list_init(&m->leaving);
	mc_list_init(&m->walks);
	mc_list_init(&m->copies_over);
	m->woken_end = &m->woken;
	m->nbuckets = MC_MST_WAIT_BUCKETS;
	m->waits = mc_calloc(m->nbuckets, sizeof(struct mc_mst_wait *));
}

void mc_mst_frees_fini(struct mc_master *m)
{
	mc_index_frees_fini(&m->frees);
	mc_index_frees_fini(&m->bury.now);
	mc_index_frees_fini(&m->bury.next);
	mc_index_frees_fini(&m->bury.held);
	mc_free(m->waits);
}
