/*
 * disk.c: records on the disk behind the pool: which there are, what the master is told of them,
 * and what becomes of those that are freed.
 *
 * Nothing that the master freed may be found on the disk by a later life. So a free is acknowledged
 * when no record is left that the master does not know of: one that is being written, or was and is
 * not yet told (is_known()), is deleted before its slot's free is acknowledged. The same the other
 * way round: a slot that was fetched and is not yet told goes with its record.
 */
#include <string.h>

#include "base/rand.h"
#include "owner/priv.h"

#define BUCKETS_MIN 1024u
#define MORE_MAX (1u << 26)

/* ---- records ---- */

static struct mc_orec **bucket_of(struct mc_odisk *d, uint64_t gen)
{
	uint64_t state = gen;

	return &d->buckets[mc_splitmix64(&state) & (d->nbuckets - 1)];
}

struct mc_orec *mc_orec_find(struct mc_odisk *d, uint64_t gen)
{
	struct mc_orec *rec = *bucket_of(d, gen);

	while (rec && rec->gen != gen)
		rec = rec->chain;
	return rec;
}

/* Without memory the chains get longer. */
static void buckets_grow(struct mc_odisk *d)
{
	size_t len = d->nbuckets, n = 2 * len;
	struct mc_orec **old = d->buckets;
	struct mc_orec **new = d->nrecs < len ? NULL : mc_calloc(n, sizeof(*new));

	if (!new)
		return;
	d->buckets = new;
	d->nbuckets = n;
	for (size_t i = 0; i < len; i++) {
		struct mc_orec *rec, *next;

		for (rec = old[i]; rec; rec = next) {
			struct mc_orec **at = bucket_of(d, rec->gen);

			next = rec->chain;
			rec->chain = *at;
			*at = rec;
		}
	}
	mc_free(old);
}

void mc_orec_add(struct mc_odisk *d, struct mc_orec *rec)
{
	struct mc_orec **at;

	buckets_grow(d);
	at = bucket_of(d, rec->gen);
	rec->chain = *at;
	*at = rec;
	d->nrecs++;
}

void mc_orec_del(struct mc_odisk *d, struct mc_orec *rec)
{
	struct mc_orec **at = bucket_of(d, rec->gen);

	while (*at != rec)
		at = &(*at)->chain;
	*at = rec->chain;
	d->nrecs--;
}

struct mc_orec *mc_orec_new(uint64_t gen, uint64_t len, const uint8_t *key, uint16_t key_len,
			    const uint8_t *tlv, uint16_t tlv_len)
{
	struct mc_orec *rec = mc_calloc(1, sizeof(*rec) + key_len + tlv_len);

	if (!rec)
		return NULL;
	rec->gen = gen;
	rec->len = len;
	rec->key_len = key_len;
	rec->tlv_len = tlv_len;
	memcpy(rec->texts, key, key_len);
	if (tlv_len)
		memcpy(rec->texts + key_len, tlv, tlv_len);
	mc_list_init(&rec->link);
	return rec;
}

/* The master has it in its index, or has told us by now to free it. Loop. */
static bool is_known(const struct mc_owner *o, uint64_t told)
{
	return told > 0 && told <= o->stream.acked;
}

void mc_orec_doom(struct mc_owner *o, struct mc_orec *rec)
{
	struct mc_odisk *d = &o->disk;

	if (d->announce == rec)
		d->announce = rec->link.prev == &d->live
				  ? NULL
				  : mc_list_entry(rec->link.prev, struct mc_orec, link);
	mc_list_del(&rec->link);
	rec->state = MC_OREC_DELETE;
	mc_list_push_back(&d->deletes, &rec->link);
	mc_odisk_wake(o);
}

/* ---- frees ---- */

bool mc_odisk_slot_freed(struct mc_owner *o, uint32_t id, bool is_freed)
{
	struct mc_oslot *s = &o->pool.slots[id];
	struct mc_orec *rec;

	if (!o->disk.is_there)
		return false;
	if (s->is_writing) {
		s->is_owed = is_freed;
		return is_freed;
	}
	rec = s->state == MC_OSLOT_SEALED ? mc_orec_find(&o->disk, s->gen) : NULL;
	if (!rec || rec->state != MC_OREC_LIVE || is_known(o, rec->told))
		return false;
	if (is_freed)
		rec->slot_addr = mc_opool_addr(&o->pool, id);
	mc_orec_doom(o, rec);
	return is_freed;
}

bool mc_odisk_free(struct mc_owner *o, uint64_t gen)
{
	struct mc_orec *rec;
	uint32_t id;

	if (!o->disk.is_there)
		return false;
	id = mc_opool_of_gen(&o->pool, gen);
	if (id != MC_OWNER_NIL && o->pool.slots[id].is_fetched &&
	    o->pool.slots[id].state != MC_OSLOT_DEAD && !is_known(o, o->pool.slots[id].told) &&
	    mc_opool_kill(&o->pool, id))
		mc_owner_room(o);
	rec = mc_orec_find(&o->disk, gen);
	if (!rec)
		return false;
	rec->is_freed = true;
	if (rec->state == MC_OREC_LIVE)
		mc_orec_doom(o, rec);
	return true;
}

/* ---- what the master is told ---- */

void mc_odisk_more(struct mc_odisk *d, uint64_t gen, uint8_t kind)
{
	void *more = d->more;

	/* Without memory the next master hears of it. */
	if (mc_array_grow(&more, &d->more_cap, d->nmore + 1, MORE_MAX, sizeof(*d->more)) < 0)
		return;
	d->more = more;
	d->more[d->nmore++] = (struct mc_omore){gen, kind};
}

static void rec_encode(const struct mc_orec *rec, struct mc_wr *w)
{
	const struct mc_st_has v = {.gen = rec->gen,
				    .len = rec->len,
				    .addr = MC_ST_DISK_ADDR,
				    .key_len = rec->key_len,
				    .tlv_len = rec->tlv_len,
				    .kind = MC_ST_DISK,
				    .key = rec->texts,
				    .tlv = rec->texts + rec->key_len};

	mc_st_has_encode(w, &v);
}

void mc_oslot_encode(const struct mc_opool *p, uint32_t id, struct mc_wr *w)
{
	const struct mc_oslot *s = &p->slots[id];
	const struct mc_st_has v = {.gen = s->gen,
				    .len = s->len,
				    .addr = mc_opool_addr(p, id),
				    .key_len = s->key_len,
				    .tlv_len = s->tlv_len,
				    .kind = MC_ST_MEMORY,
				    .flags = s->is_committed ? MC_ST_HAS_COMMITTED : 0,
				    .key = s->texts,
				    .tlv = s->texts + s->key_len};

	mc_st_has_encode(w, &v);
}

void mc_odisk_announce(struct mc_owner *o)
{
	struct mc_odisk *d = &o->disk;
	struct mc_orec *rec;

	if (!d->is_there)
		return;
	pthread_mutex_lock(&o->lock);
	d->announce =
	    mc_list_is_empty(&d->live) ? NULL : mc_list_entry(d->live.prev, struct mc_orec, link);
	d->nmore = 0;
	mc_list_each (rec, &d->live, link)
		rec->told = 0;
	for (uint32_t id = o->pool.sealed.first; id != MC_OWNER_NIL; id = o->pool.slots[id].next)
		o->pool.slots[id].told = 0;
	pthread_mutex_unlock(&o->lock);
}

void mc_odisk_say_has(struct mc_owner *o, struct mc_wr *w, size_t max, uint64_t number)
{
	struct mc_odisk *d = &o->disk;
	struct mc_list *prev;

	while (d->announce &&
	       mc_wr_len(w) + MC_OWNER_HAS_FIX + d->announce->key_len + d->announce->tlv_len <=
		   max) {
		rec_encode(d->announce, w);
		d->announce->told = number;
		prev = d->announce->link.prev;
		d->announce = prev == &d->live ? NULL : mc_list_entry(prev, struct mc_orec, link);
	}
}

/* What an entry stands for, if it is still there and not told. */
static struct mc_orec *more_rec(struct mc_owner *o, const struct mc_omore *m)
{
	struct mc_orec *rec = m->kind == MC_ST_DISK ? mc_orec_find(&o->disk, m->gen) : NULL;

	return rec && rec->state == MC_OREC_LIVE && rec->told == 0 ? rec : NULL;
}

static uint32_t more_slot(struct mc_owner *o, const struct mc_omore *m)
{
	uint32_t id = m->kind == MC_ST_MEMORY ? mc_opool_of_gen(&o->pool, m->gen) : MC_OWNER_NIL;
	const struct mc_oslot *s = &o->pool.slots[id];

	return id != MC_OWNER_NIL && s->state == MC_OSLOT_SEALED && s->told == 0 ? id
										 : MC_OWNER_NIL;
}

size_t mc_odisk_say_more(struct mc_owner *o, struct mc_wr *w, size_t max)
{
	struct mc_odisk *d = &o->disk;
	size_t n = 0;

	pthread_mutex_lock(&o->lock);
	for (; n < d->nmore; n++) {
		const struct mc_orec *rec = more_rec(o, &d->more[n]);
		uint32_t id = more_slot(o, &d->more[n]);
		size_t len = MC_OWNER_HAS_FIX;

		if (rec)
			len += (size_t)rec->key_len + rec->tlv_len;
		else if (id != MC_OWNER_NIL)
			len += (size_t)o->pool.slots[id].key_len + o->pool.slots[id].tlv_len;
		if (mc_wr_len(w) + len > max)
			break;
		if (rec)
			rec_encode(rec, w);
		else if (id != MC_OWNER_NIL)
			mc_oslot_encode(&o->pool, id, w);
	}
	pthread_mutex_unlock(&o->lock);
	return n;
}

void mc_odisk_said_more(struct mc_owner *o, size_t n, uint64_t number)
{
	struct mc_odisk *d = &o->disk;

	pthread_mutex_lock(&o->lock);
	for (size_t i = 0; i < n; i++) {
		struct mc_orec *rec = more_rec(o, &d->more[i]);
		uint32_t id = more_slot(o, &d->more[i]);

		if (rec)
			rec->told = number;
		if (id != MC_OWNER_NIL)
			o->pool.slots[id].told = number;
	}
	d->nmore -= n;
	memmove(d->more, d->more + n, d->nmore * sizeof(*d->more));
	pthread_mutex_unlock(&o->lock);
}

/* ---- the process around it ---- */

void mc_odisk_wake(struct mc_owner *o)
{
	if (o->disk.is_idle)
		pthread_cond_signal(&o->disk.cond);
}

void mc_owner_disk_space(struct mc_owner *o, uint64_t capacity, uint64_t used)
{
	pthread_mutex_lock(&o->lock);
	o->disk.capacity = capacity;
	o->disk.used = mc_min(used, capacity);
	pthread_mutex_unlock(&o->lock);
}

int mc_owner_disk_has(struct mc_owner *o, const struct mc_st_grant *g)
{
	struct mc_odisk *d = &o->disk;
	struct mc_slot_info info = {.len = g->len, .key_len = g->key_len, .tlv_len = g->tlv_len};
	struct mc_orec *rec;

	mc_assert(d->is_there);
	if (g->gen == 0 || g->len == 0 || mc_slot_layout(&info) < 0 || mc_orec_find(d, g->gen))
		return -MC_E_INVAL;
	rec = mc_orec_new(g->gen, g->len, g->key, g->key_len, g->tlv, g->tlv_len);
	if (!rec)
		return -MC_E_NOMEM;
	pthread_mutex_lock(&o->lock);
	mc_orec_add(d, rec);
	mc_list_push_back(&d->live, &rec->link);
	pthread_mutex_unlock(&o->lock);
	return 0;
}

bool mc_owner_disk_flush(struct mc_owner *o, uint64_t until_ns)
{
	const struct timespec ts = {.tv_sec = (time_t)(until_ns / MC_NS_PER_S),
				    .tv_nsec = (long)(until_ns % MC_NS_PER_S)};
	struct mc_odisk *d = &o->disk;
	bool is_flushed;
	int rc = 0;

	pthread_mutex_lock(&o->lock);
	d->flush_ns = mc_clock_now(o->env->clk);
	d->is_flushed = false;
	o->pool.offload = o->pool.sealed.first; /* whatever the master said of them */
	mc_odisk_wake(o);
	while (!d->is_flushed && rc == 0)
		rc = pthread_cond_timedwait(&d->flush_cond, &o->lock, &ts);
	is_flushed = d->is_flushed;
	pthread_mutex_unlock(&o->lock);
	return is_flushed;
}

void mc_owner_disk_end(struct mc_owner *o)
{
	pthread_mutex_lock(&o->lock);
	o->disk.is_over = true;
	mc_odisk_wake(o);
	pthread_mutex_unlock(&o->lock);
}

/* ---- on the loop: what has ended ---- */

static void on_task(struct mc_task *t)
{
	struct mc_owner *o = mc_container_of(t, struct mc_owner, disk.task);
	struct mc_odisk *d = &o->disk;
	struct mc_list gone, fetches, *link;

	mc_list_init(&gone);
	mc_list_init(&fetches);
	pthread_mutex_lock(&o->lock);
	d->is_posted = false;
	while ((link = mc_list_pop_front(&d->gone)) != NULL)
		mc_list_push_back(&gone, link);
	while ((link = mc_list_pop_front(&d->ended)) != NULL)
		mc_list_push_back(&fetches, link);
	d->is_want_due |= d->want > 0;
	pthread_mutex_unlock(&o->lock);
	while ((link = mc_list_pop_front(&gone)) != NULL) {
		struct mc_orec *rec = mc_list_entry(link, struct mc_orec, link);
		const struct mc_st_place disk = {MC_ST_DISK_ADDR, rec->gen};
		const struct mc_st_place slot = {rec->slot_addr, rec->gen};

		if (rec->is_freed)
			(void)mc_ostream_freed(o, &disk); /* else it is asked for again */
		if (rec->slot_addr)
			(void)mc_ostream_freed(o, &slot);
		mc_free(rec);
	}
	while ((link = mc_list_pop_front(&fetches)) != NULL)
		mc_ofetch_end(o, mc_list_entry(link, struct mc_ofetch, link));
	mc_ostream_pump(o);
}

int mc_odisk_init(struct mc_owner *o, uint64_t bytes)
{
	struct mc_odisk *d = &o->disk;
	pthread_condattr_t attr;

	mc_list_init(&d->live);
	mc_list_init(&d->deletes);
	mc_list_init(&d->gone);
	mc_list_init(&d->fetches);
	mc_list_init(&d->ended);
	d->task.run = on_task;
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&d->cond, &attr);
	pthread_cond_init(&d->flush_cond, &attr);
	pthread_condattr_destroy(&attr);
	if (bytes == 0)
		return 0;
	d->buckets = mc_calloc(BUCKETS_MIN, sizeof(*d->buckets));
	if (!d->buckets)
		return -MC_E_NOMEM;
	d->nbuckets = BUCKETS_MIN;
	d->capacity = bytes;
	d->is_there = true;
	return 0;
}

/* The thread has ended: what it has not taken nobody will. */
void mc_odisk_close(struct mc_owner *o)
{
	struct mc_ofetch *f;

	if (!o->disk.is_there)
		return;
	mc_owner_disk_end(o);
	while ((f = mc_list_first(&o->disk.fetches, struct mc_ofetch, link)) != NULL)
		mc_ofetch_read(o, f, -MC_E_CLOSED);
	on_task(&o->disk.task);
}

static void drop_all(struct mc_list *list)
{
	struct mc_list *link;

	while ((link = mc_list_pop_front(list)) != NULL)
		mc_free(mc_list_entry(link, struct mc_orec, link));
}

void mc_odisk_fini(struct mc_owner *o)
{
	struct mc_odisk *d = &o->disk;

	drop_all(&d->live);
	drop_all(&d->deletes);
	drop_all(&d->gone);
	mc_free(d->buckets);
	mc_free(d->more);
	mc_free(d->asked);
	mc_free(d->due);
	pthread_cond_destroy(&d->cond);
	pthread_cond_destroy(&d->flush_cond);
}
