/*
 * promote.c: which objects come back to memory for good when they are read from a disk.
 *
 * A reader of what is on a disk alone asks its owner to fetch it. Mostly the owner keeps what it
 * fetched as a guest, until somebody wants its room; here it is decided whether the reader asks for
 * more: an object that was looked up often enough lately becomes a replica like others, within
 * limits for its owner and for all. The lookup's answer carries the word, the owner's MORE ends it.
 */
#include "base/rand.h"
#include "master/priv.h"
#include "meta/sketch.h"

#define BUCKETS 1024u
#define EXPIRE_MS 60000u /* whoever was told to keep it did not fetch it */

/* An object that a reader was told to keep. */
struct promotion {
	struct mc_list link; /* oldest first */
	struct promotion *chain;
	uint64_t gen, until_ms;
};

struct mc_mst_promotions {
	struct mc_sketch sketch;
	struct mc_list list;
	uint32_t n;
	struct promotion *buckets[BUCKETS];
};

static struct promotion **find(struct mc_mst_promotions *p, uint64_t gen)
{
	uint64_t state = gen;
	struct promotion **at = &p->buckets[mc_splitmix64(&state) % BUCKETS];

	while (*at && (*at)->gen != gen)
		at = &(*at)->chain;
	return at;
}

static void end(struct mc_master *m, struct promotion **at, enum mc_tally_promotion how)
{
	struct promotion *x = *at;

	mc_assert(x); /* it was found there */
	*at = x->chain;
	mc_list_del(&x->link);
	mc_free(x);
	m->promotions->n--;
	mc_gauge_add(&m->tally.promotions_open, -1);
	mc_counter_add(&m->tally.promotions[how], 1);
}

/* On disks alone, and one of those owners is there. NULL: not so */
static struct mc_mst_owner *owner_of(struct mc_master *m, const struct mc_st_object *o)
{
	struct mc_mst_owner *owner = NULL;

	for (unsigned i = 0; i < o->nreplicas; i++) {
		if (o->replicas[i].kind == MC_ST_MEMORY)
			return NULL;
		if (!owner)
			owner = mc_mst_owner_find(m, o->replicas[i].owner);
	}
	return owner;
}

/* Its share of this beat. */
static bool has_turn(struct mc_master *m, struct mc_mst_owner *o, uint64_t now)
{
	if (now - o->promoted_ms >= MC_ST_BEAT_MS) {
		o->promoted_ms = now;
		o->npromoted = 0;
	}
	return o->npromoted < m->conf.promotion_beat_max;
}

static void admit(struct mc_master *m, struct mc_mst_owner *owner, struct mc_st_object *o,
		  uint64_t now)
{
	struct mc_mst_promotions *p = m->promotions;
	struct promotion *x = mc_calloc(1, sizeof(*x)), **at = find(p, o->gen);

	if (!x)
		return;
	x->gen = o->gen;
	x->until_ms = now + EXPIRE_MS;
	x->chain = *at;
	*at = x;
	mc_list_push_back(&p->list, &x->link);
	p->n++;
	owner->npromoted++;
	o->flags |= MC_ST_OBJECT_KEEP;
	mc_gauge_add(&m->tally.promotions_open, 1);
	mc_counter_add(&m->tally.promotions[MC_TALLY_PROMOTION_ADMITTED], 1);
}

void mc_mst_promote_hit(struct mc_master *m, uint64_t key_hash, struct mc_st_object *o)
{
	struct mc_mst_promotions *p = m->promotions;
	struct mc_mst_owner *owner = m->conf.promotion_on_hit ? owner_of(m, o) : NULL;
	uint64_t now = mc_mst_now_ms(m);
	enum mc_tally_promotion why;

	if (!owner)
		return;
	if (*find(p, o->gen)) {
		o->flags |= MC_ST_OBJECT_KEEP; /* whoever is first */
		return;
	}
	if (mc_sketch_add(&p->sketch, key_hash) < m->conf.promotion_threshold)
		why = MC_TALLY_PROMOTION_FREQUENCY;
	else if (mc_mst_copy_room(m, owner) < o->len)
		why = MC_TALLY_PROMOTION_WATERMARK;
	else if (p->n >= m->conf.promotion_queue_max || !has_turn(m, owner, now))
		why = MC_TALLY_PROMOTION_CAP;
	else {
		admit(m, owner, o, now);
		return;
	}
	mc_counter_add(&m->tally.promotions[why], 1);
}

void mc_mst_promoted(struct mc_master *m, uint64_t gen, uint64_t len, bool is_taken)
{
	struct promotion **at = find(m->promotions, gen);

	if (!*at)
		return;
	if (is_taken)
		mc_counter_add(&m->tally.promoted_bytes, len);
	end(m, at, is_taken ? MC_TALLY_PROMOTION_COMPLETED : MC_TALLY_PROMOTION_CANCELLED);
}

void mc_mst_promote_bad(struct mc_master *m, uint64_t gen)
{
	struct promotion **at = find(m->promotions, gen);

	if (*at)
		end(m, at, MC_TALLY_PROMOTION_FAILED);
}

void mc_mst_promotions_tick(struct mc_master *m)
{
	struct mc_mst_promotions *p = m->promotions;
	uint64_t now = mc_mst_now_ms(m);
	struct promotion *x;

	while ((x = mc_list_first(&p->list, struct promotion, link)) != NULL && x->until_ms <= now)
		end(m, find(p, x->gen), MC_TALLY_PROMOTION_EXPIRED);
}

int mc_mst_promotions_open(struct mc_master *m)
{
	m->promotions = mc_calloc(1, sizeof(*m->promotions));
	if (!m->promotions)
		return -MC_E_NOMEM;
	mc_list_init(&m->promotions->list);
	return 0;
}

void mc_mst_promotions_close(struct mc_master *m)
{
	struct promotion *x;

	if (!m->promotions)
		return;
	mc_list_each (x, &m->promotions->list, link)
		mc_free(x);
	mc_free(m->promotions);
	m->promotions = NULL;
}
