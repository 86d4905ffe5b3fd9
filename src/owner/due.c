/*
 * due.c: which slots go to the disk, and when.
 *
 * What is on a disk outlives its owner, and the log takes a generation that was deleted never
 * again; so only what is committed goes there. A slot that was sealed a moment ago is offered to
 * the master (DUE), which asks for it (OFFLOAD) when the index has it; else it is offered again,
 * until its commit comes, or the check that frees it. A master that wants only what is about to
 * leave memory asks by itself. An owner that ends writes all that it has.
 */
#include <string.h>

#include "owner/priv.h"

#define DUE_AFTER_NS (200 * MC_NS_PER_MS) /* sealed: what lives shorter never meets the disk */
#define DUE_SOON_NS (20 * MC_NS_PER_MS)	  /* somebody waits for room */
#define DUE_AGAIN_NS (200 * MC_NS_PER_MS)
#define DUE_PAUSE_NS (10 * MC_NS_PER_MS)
#define DUE_MAX (1u << 26)
#define DUE_TRIM 1024u

void mc_odisk_policy(struct mc_owner *o, bool is_lazy)
{
	pthread_mutex_lock(&o->lock);
	o->disk.is_lazy = is_lazy;
	pthread_mutex_unlock(&o->lock);
}

/* ---- what is asked for ---- */

/* @return false: no memory */
static bool ask(struct mc_odisk *d, struct mc_oslot *s)
{
	void *asked = d->asked;

	if (mc_array_grow(&asked, &d->asked_cap, d->nasked + 1, DUE_MAX, sizeof(*d->asked)) < 0)
		return false;
	d->asked = asked;
	d->asked[d->nasked++] = s->gen;
	s->is_asked = true;
	return true;
}

void mc_odisk_ask(struct mc_owner *o, const struct mc_st_place *p)
{
	struct mc_oslot *s;
	uint32_t id;

	if (!o->disk.is_there)
		return;
	pthread_mutex_lock(&o->lock);
	id = mc_opool_at(&o->pool, p->addr, p->gen);
	s = id != MC_OWNER_NIL ? &o->pool.slots[id] : NULL;
	/* Without memory it is offered, or asked for, again. */
	if (s && s->state == MC_OSLOT_SEALED && !s->is_asked && ask(&o->disk, s))
		mc_odisk_wake(o);
	pthread_mutex_unlock(&o->lock);
}

static void asked_skip(struct mc_owner *o)
{
	struct mc_odisk *d = &o->disk;
	uint32_t id = mc_opool_of_gen(&o->pool, d->asked[d->asked_at++]);

	if (id != MC_OWNER_NIL)
		o->pool.slots[id].is_asked = false;
}

static void refuse(struct mc_owner *o, uint64_t gen)
{
	uint32_t id = mc_opool_of_gen(&o->pool, gen);

	if (id != MC_OWNER_NIL)
		o->pool.slots[id].is_refused = true;
}

void mc_odisk_no_room(struct mc_owner *o)
{
	struct mc_odisk *d = &o->disk;

	pthread_mutex_lock(&o->lock);
	if (d->write_ns > 0 && d->asked_at < d->nasked) {
		/* It stays in memory alone. */
		refuse(o, d->asked[d->asked_at]);
		asked_skip(o);
		d->write_ns = 0;
		mc_counter_add(&o->count.disk_failures, 1);
		mc_odisk_wake(o);
	}
	pthread_mutex_unlock(&o->lock);
}

uint32_t mc_odisk_next_write(struct mc_owner *o)
{
	const struct mc_opool *p = &o->pool;
	struct mc_odisk *d = &o->disk;

	while (d->asked_at < d->nasked) {
		uint32_t id = mc_opool_of_gen(p, d->asked[d->asked_at]);

		if (id != MC_OWNER_NIL && p->slots[id].state == MC_OSLOT_SEALED)
			return id;
		asked_skip(o);
	}
	d->asked_at = d->nasked = 0;
	/* The last words of an owner that ends. */
	return p->offload != MC_OWNER_NIL && p->slots[p->offload].when_ns <= d->flush_ns
		   ? p->offload
		   : MC_OWNER_NIL;
}

void mc_odisk_take_write(struct mc_owner *o)
{
	if (o->disk.asked_at < o->disk.nasked)
		asked_skip(o);
	else
		o->pool.offload = o->pool.slots[o->pool.offload].next;
}

void mc_odisk_put_back(struct mc_owner *o, uint32_t id)
{
	struct mc_oslot *s = &o->pool.slots[id];
	struct mc_odisk *d = &o->disk;

	if (s->is_asked)
		return;
	if (d->asked_at > 0) {
		d->asked[--d->asked_at] = s->gen;
		s->is_asked = true;
	} else if (!ask(d, s)) {
		mc_counter_add(&o->count.disk_failures, 1); /* no memory to remember it */
	}
}

/* ---- what is offered ---- */

bool mc_odisk_is_unwritten(struct mc_owner *o, uint32_t id)
{
	const struct mc_oslot *s = &o->pool.slots[id];

	return s->state == MC_OSLOT_SEALED && !s->is_fetched && !s->is_writing &&
	       !mc_orec_find(&o->disk, s->gen);
}

/* @return false: no memory */
static bool due_push(struct mc_odisk *d, uint64_t gen, uint64_t again_ns)
{
	void *due = d->due;

	if (d->due_at >= DUE_TRIM && d->due_at >= d->ndue / 2) {
		d->ndue -= d->due_at;
		memmove(d->due, d->due + d->due_at, d->ndue * sizeof(*d->due));
		d->due_at = 0;
	}
	if (mc_array_grow(&due, &d->due_cap, d->ndue + 1, DUE_MAX, sizeof(*d->due)) < 0)
		return false;
	d->due = due;
	d->due[d->ndue++] = (struct mc_odue){gen, again_ns};
	return true;
}

void mc_odisk_renamed(struct mc_owner *o, uint32_t id)
{
	struct mc_oslot *s = &o->pool.slots[id];

	s->is_asked = false; /* who asked named another generation */
	if (o->disk.is_there)
		(void)due_push(&o->disk, s->gen, 0); /* no memory: it stays in memory alone */
}

/* @return false: no room in the note, or no memory: later */
static bool offer(struct mc_owner *o, uint32_t id, uint64_t now, struct mc_wr *w, size_t max)
{
	const struct mc_oslot *s = &o->pool.slots[id];

	if (s->is_asked || s->is_refused || !mc_odisk_is_unwritten(o, id))
		return true; /* nothing more to do about it */
	if (mc_wr_len(w) + MC_OWNER_HAS_FIX + s->key_len + s->tlv_len > max ||
	    !due_push(&o->disk, s->gen, now + DUE_AGAIN_NS))
		return false;
	mc_oslot_encode(&o->pool, id, w);
	return true;
}

static uint64_t due_after(struct mc_owner *o)
{
	return atomic_load(&o->nwaiting) > 0 ? DUE_SOON_NS : DUE_AFTER_NS;
}

static bool does_offer(const struct mc_odisk *d)
{
	return d->is_there && !d->is_lazy && d->capacity > 0 && d->flush_ns == 0;
}

void mc_odisk_say_due(struct mc_owner *o, struct mc_wr *w, size_t max)
{
	uint64_t now = mc_clock_now(o->env->clk), after = due_after(o);
	struct mc_opool *p = &o->pool;
	struct mc_odisk *d = &o->disk;
	uint32_t id;

	pthread_mutex_lock(&o->lock);
	while (does_offer(d) && d->due_at < d->ndue && d->due[d->due_at].again_ns <= now) {
		id = mc_opool_of_gen(p, d->due[d->due_at].gen);
		if (id != MC_OWNER_NIL && !offer(o, id, now, w, max))
			break;
		d->due_at++; /* a push keeps it the first */
	}
	if (d->due_at == d->ndue)
		d->due_at = d->ndue = 0;
	while (does_offer(d) && (id = p->offload) != MC_OWNER_NIL &&
	       now - p->slots[id].when_ns >= after && offer(o, id, now, w, max))
		p->offload = p->slots[id].next;
	pthread_mutex_unlock(&o->lock);
}

uint64_t mc_odisk_due_ns(struct mc_owner *o)
{
	uint64_t next = MC_TIME_NEVER, after = due_after(o);
	const struct mc_opool *p = &o->pool;
	const struct mc_odisk *d = &o->disk;

	if (o->stream.state != MC_OSTREAM_UP)
		return MC_TIME_NEVER;
	pthread_mutex_lock(&o->lock);
	if (does_offer(d) && p->offload != MC_OWNER_NIL)
		next = p->slots[p->offload].when_ns + after;
	if (does_offer(d) && d->due_at < d->ndue)
		next = mc_min(next, d->due[d->due_at].again_ns);
	pthread_mutex_unlock(&o->lock);
	return mc_max(next, mc_clock_now(o->env->clk) + DUE_PAUSE_NS);
}
