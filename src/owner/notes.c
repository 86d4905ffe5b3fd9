/*
 * notes.c: what an owner says to its master, most urgent first. A note is made when it can be sent,
 * from what is true then, and kept until it is acknowledged, so that the same master gets it again
 * after a broken connection. Kept notes have a limit; beyond it the oldest are forgotten, and a
 * master that lacks them gets all slots announced.
 */
#include <string.h>

#include "owner/priv.h"
#include "wire/pb.h"

#define BODY_MAX (60u << 10) /* bytes of records of one note */
#define KEPT_MAX (4u << 20)  /* bytes of notes that are kept */
#define PLACE_LEN 16u

_Static_assert(MC_ST_NOTE_HEAD_LEN + BODY_MAX + MC_OWNER_HAS_FIX + MC_SLOT_KEY_MAX +
		       MC_SLOT_TLV_MAX <=
		   MC_FRAME_CREDIT_START,
	       "a note is sent in one piece");

static void note_free(struct mc_owner *o, struct mc_onote *n)
{
	struct mc_ostream *s = &o->stream;

	mc_assert(n);
	if (s->unsent == n)
		s->unsent = NULL;
	s->kept_bytes -= n->len;
	mc_gauge_add(&o->journal_bytes, -(int64_t)n->len);
	mc_gauge_add(&o->journal_notes, -1);
	mc_list_del(&n->link);
	mc_free(n);
}

/* @return false without memory: it is tried again later */
static bool note_add(struct mc_owner *o, uint8_t type, const void *body, size_t len)
{
	struct mc_ostream *s = &o->stream;
	struct mc_onote *n = mc_calloc(1, sizeof(*n) + MC_ST_NOTE_HEAD_LEN + len);
	struct mc_st_note_head head = {.len = (uint32_t)len, .type = type, .number = s->number + 1};

	if (!n)
		return false;
	s->number++;
	n->number = head.number;
	n->len = MC_ST_NOTE_HEAD_LEN + len;
	mc_st_note_head_encode(&head, n->bytes);
	if (len)
		memcpy(n->bytes + MC_ST_NOTE_HEAD_LEN, body, len);
	while (s->kept_bytes > KEPT_MAX)
		note_free(o, mc_list_first(&s->notes, struct mc_onote, link));
	mc_list_push_back(&s->notes, &n->link);
	s->kept_bytes += n->len;
	mc_gauge_add(&o->journal_bytes, (int64_t)n->len);
	mc_gauge_add(&o->journal_notes, 1);
	s->unsent = n;
	return true;
}

void mc_onotes_ack(struct mc_owner *o, uint64_t number)
{
	struct mc_ostream *s = &o->stream;
	struct mc_onote *n;

	if (number > s->number)
		number = s->number;
	while ((n = mc_list_first(&s->notes, struct mc_onote, link)) != NULL && n->number <= number)
		note_free(o, n);
	s->acked = number;
	if (s->has_all && number >= s->has_all)
		atomic_store(&s->is_adopted, true);
}

void mc_onotes_drop(struct mc_owner *o)
{
	struct mc_onote *n;

	while ((n = mc_list_first(&o->stream.notes, struct mc_onote, link)) != NULL)
		note_free(o, n);
	o->stream.unsent = NULL;
	o->stream.acked = 0;
}

void mc_onotes_announce(struct mc_owner *o)
{
	pthread_mutex_lock(&o->lock);
	o->pool.announce = o->pool.sealed.last;
	mc_oorders_over(o);
	pthread_mutex_unlock(&o->lock);
	mc_odisk_announce(o);
	o->stream.has_all = 0;
	o->stream.is_has_all_due = true;
}

static bool say_freed(struct mc_owner *o)
{
	struct mc_ostream *s = &o->stream;
	uint8_t body[BODY_MAX / 4];
	struct mc_wr w = mc_wr_make(body, sizeof(body));
	size_t n = mc_min(s->nfreed, sizeof(body) / PLACE_LEN);

	for (size_t i = 0; i < n; i++)
		mc_st_place_encode(&w, &s->freed[i]);
	if (!note_add(o, MC_ST_NOTE_FREED, body, mc_wr_len(&w)))
		return false;
	memmove(s->freed, s->freed + n, (s->nfreed - n) * sizeof(*s->freed));
	s->nfreed -= n;
	return true;
}

static bool say_done(struct mc_owner *o)
{
	struct mc_ostream *s = &o->stream;
	Mc__St__OrderDone v = MC__ST__ORDER_DONE__INIT;
	uint8_t body[128];
	size_t len;

	v.id = s->done[0].id;
	v.status = s->done[0].status;
	v.addr = s->done[0].addr;
	v.gen = s->done[0].gen;
	if (mc_pb_pack(&v.base, body, sizeof(body), &len) < 0 ||
	    !note_add(o, MC_ST_NOTE_DONE, body, len))
		return false;
	s->ndone--;
	s->norders--;
	memmove(s->done, s->done + 1, s->ndone * sizeof(s->done[0]));
	return true;
}

static bool say_disk(struct mc_owner *o, uint8_t type, uint64_t want)
{
	struct mc_odisk *d = &o->disk;
	struct mc_st_space v = {.kind = MC_ST_DISK, .want = want};
	uint8_t body[64];
	struct mc_wr w = mc_wr_make(body, sizeof(body));

	pthread_mutex_lock(&o->lock);
	v.capacity = d->capacity;
	v.used = d->used;
	v.largest = d->capacity - d->used;
	pthread_mutex_unlock(&o->lock);
	mc_st_space_encode(&w, &v);
	if (!note_add(o, type, body, mc_wr_len(&w)))
		return false;
	d->said_capacity = v.capacity;
	d->said_used = v.used;
	d->is_space_due = false;
	return true;
}

/* A write has no room. */
static bool say_disk_want(struct mc_owner *o)
{
	uint64_t want;

	o->disk.is_want_due = false;
	pthread_mutex_lock(&o->lock);
	want = o->disk.want;
	o->disk.want = 0;
	pthread_mutex_unlock(&o->lock);
	return say_disk(o, MC_ST_NOTE_WANT, want);
}

/* Replicas that were made since the announcement. */
static bool say_more(struct mc_owner *o)
{
	uint8_t body[BODY_MAX];
	struct mc_wr w;
	size_t n, len;

	do {
		w = mc_wr_make(body, sizeof(body));
		n = mc_odisk_say_more(o, &w, sizeof(body));
		len = mc_wr_len(&w);
		if (n == 0 || (len > 0 && !note_add(o, MC_ST_NOTE_MORE, body, len)))
			return false;
		mc_odisk_said_more(o, n, o->stream.number);
	} while (len == 0); /* all of those were gone */
	return true;
}

static bool say_space(struct mc_owner *o, uint8_t type, uint64_t want)
{
	struct mc_st_space v = {.kind = MC_ST_MEMORY, .want = want};
	uint8_t body[64];
	struct mc_wr w = mc_wr_make(body, sizeof(body));

	pthread_mutex_lock(&o->lock);
	v.capacity = mc_extent_capacity(o->pool.extent);
	v.used = mc_opool_used(&o->pool);
	v.largest = mc_extent_largest(o->pool.extent);
	v.flags = o->is_retiring ? MC_ST_SPACE_RETIRING : 0;
	pthread_mutex_unlock(&o->lock);
	mc_st_space_encode(&w, &v);
	if (!note_add(o, type, body, mc_wr_len(&w)))
		return false;
	o->stream.space_ns = mc_clock_now(o->env->clk);
	o->stream.space_used = v.used;
	o->stream.is_space_due = false;
	return true;
}

static size_t has_len(const struct mc_opool *p, uint32_t id)
{
	return MC_OWNER_HAS_FIX + (size_t)p->slots[id].key_len + p->slots[id].tlv_len;
}

/* A page of slots that are there, newest first. @return false: there is none left, or no memory for
 * the note (`*ret_is_all` tells) */
static bool say_has(struct mc_owner *o, bool *ret_is_all)
{
	struct mc_opool *p = &o->pool;
	uint8_t body[BODY_MAX];
	struct mc_wr w = mc_wr_make(body, sizeof(body));

	pthread_mutex_lock(&o->lock);
	while (p->announce != MC_OWNER_NIL && mc_wr_len(&w) + has_len(p, p->announce) <= BODY_MAX) {
		mc_oslot_encode(p, p->announce, &w);
		p->slots[p->announce].is_announced = true;
		p->announce = p->slots[p->announce].prev;
	}
	if (p->announce == MC_OWNER_NIL)
		mc_odisk_say_has(o, &w, BODY_MAX, o->stream.number + 1);
	pthread_mutex_unlock(&o->lock);
	*ret_is_all = mc_wr_len(&w) == 0;
	if (*ret_is_all)
		return false;
	if (note_add(o, MC_ST_NOTE_HAS, body, mc_wr_len(&w)))
		return true;
	mc_onotes_announce(o); /* all of it again */
	return false;
}

/* Slots that were sealed a while ago and are not known as committed: those that never were come
 * back as frees, the others as COMMITTED. */
static bool say_check(struct mc_owner *o)
{
	struct mc_opool *p = &o->pool;
	uint64_t now = mc_clock_now(o->env->clk);
	uint8_t body[BODY_MAX];
	struct mc_wr w = mc_wr_make(body, sizeof(body));

	pthread_mutex_lock(&o->lock);
	while (p->check != MC_OWNER_NIL && now - p->slots[p->check].when_ns >= o->check_after_ns &&
	       mc_wr_len(&w) + has_len(p, p->check) <= BODY_MAX) {
		if (!p->slots[p->check].is_committed)
			mc_oslot_encode(p, p->check, &w);
		p->check = p->slots[p->check].next;
	}
	pthread_mutex_unlock(&o->lock);
	if (mc_wr_len(&w) == 0)
		return false;
	/* Without memory for the note those slots are announced to the next master at the latest.
	 */
	return note_add(o, MC_ST_NOTE_CHECK, body, mc_wr_len(&w));
}

/* Slots that are to go to the disk, if they are committed. */
static bool say_due(struct mc_owner *o)
{
	uint8_t body[BODY_MAX];
	struct mc_wr w = mc_wr_make(body, sizeof(body));

	if (!o->disk.is_there)
		return false;
	mc_odisk_say_due(o, &w, sizeof(body));
	/* Without memory for the note they are offered again. */
	return mc_wr_len(&w) > 0 && note_add(o, MC_ST_NOTE_DUE, body, mc_wr_len(&w));
}

bool mc_onote_next(struct mc_owner *o)
{
	struct mc_ostream *s = &o->stream;
	bool is_all;

	/* A free that a life before this one did not answer guards what the disk brings back: it is
	 * answered when all of that is announced. */
	if (s->nfreed && !(s->is_has_all_due && o->disk.is_there))
		return say_freed(o);
	if (s->ndone)
		return say_done(o);
	if (s->is_want_due) {
		s->is_want_due = false;
		return say_space(o, MC_ST_NOTE_WANT, s->wanted);
	}
	if (s->is_space_due)
		return say_space(o, MC_ST_NOTE_SPACE, 0);
	if (o->disk.is_want_due)
		return say_disk_want(o);
	if (o->disk.is_space_due)
		return say_disk(o, MC_ST_NOTE_SPACE, 0);
	if (s->is_has_all_due) {
		if (say_has(o, &is_all))
			return true;
		if (!is_all || !note_add(o, MC_ST_NOTE_HAS_ALL, NULL, 0))
			return false;
		s->is_has_all_due = false;
		s->has_all = s->number;
		return true;
	}
	return say_more(o) || say_due(o) || say_check(o);
}
