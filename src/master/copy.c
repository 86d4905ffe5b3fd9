/*
 * copy.c: copies that owners are ordered to make, from each other: for tasks, drains and repairs.
 *
 * A target has up to ORDERS_MAX orders at a time, the rest waits here. What it made counts from its
 * word on, and only if the index still has that generation; else it is freed like any slot that the
 * index does not know. So an order that is lost, repeated or late never makes a wrong replica.
 *
 * Nor may it bring back what was removed, with a later master: while an order may be carried out,
 * whoever has that generation go has the target free it, too, and waits for that. An order ends by
 * the target's word, or when the target has begun anew (it gives up what it had not done then).
 *
 * An owner has one order of a generation at a time: what ends one would end the other's copy.
 */
#include <string.h>

#include "base/hash.h"
#include "base/log.h"
#include "master/priv.h"
#include "meta/place.h"
#include "meta/slot.h"

#define ORDERS_MAX 16u /* of one owner; it hangs up at 64 */
#define ORDER_COPY 1u
#define ORDER_BYTES (MC_STORE_KEY_MAX + 2 * MC_MST_TEXT_MAX + 128u)
#define TARGETS_LOOK 8u /* owners looked at for one with room */

struct order {
	struct mc_list link; /* mc_mst_owner.orders */
	uint64_t id, gen, key_hash;
	struct mc_mst_copy *copy; /* NULL: nobody waits for it any more */
	bool is_freed;		  /* that generation: what is made is none */
};

struct mc_mst_owner *mc_mst_owner_named(struct mc_master *m, const char *segment)
{
	struct mc_mst_owner *o;

	mc_list_each (o, &m->owners, link) {
		if (o->is_joined && strcmp(o->segment, segment) == 0)
			return o;
	}
	return NULL;
}

/* ---- where to ---- */

uint64_t mc_mst_copy_room(const struct mc_master *m, const struct mc_mst_owner *o)
{
	const struct mc_st_space *s = &o->space[MC_ST_MEMORY];
	uint64_t most = (uint64_t)((double)s->capacity * m->conf.watermark);

	return most > s->used ? most - s->used : 0;
}

/* What goes there by way of memory lets only go what is on that disk, too. */
static uint64_t disk_room(const struct mc_mst_owner *o)
{
	const struct mc_st_space *s = &o->space[MC_ST_DISK];

	return s->capacity - s->used;
}

static bool is_wanted(const struct mc_mst_owner *o, char (*targets)[MC_MST_TEXT_MAX], size_t n)
{
	for (size_t i = 0; i < n; i++) {
		if (strcmp(o->segment, targets[i]) == 0)
			return true;
	}
	return n == 0;
}

int mc_mst_copy_targets(struct mc_master *m, struct mc_place *place,
			char (*targets)[MC_MST_TEXT_MAX], size_t ntargets)
{
	struct mc_place_owner *rows = mc_calloc(m->nowners + 1, sizeof(*rows));
	struct mc_mst_owner *o;
	size_t n = 0;
	int rc;

	if (!rows)
		return -MC_E_NOMEM;
	mc_list_each (o, &m->owners, link)
		rows[n++] = (struct mc_place_owner){.id = o->id,
						    .incarnation = o->incarnation,
						    .segment = o->segment,
						    .host = o->host,
						    .capacity = o->space[MC_ST_MEMORY].capacity,
						    .free = mc_mst_copy_room(m, o),
						    .takes_puts = mc_mst_owner_stays(o) &&
								  is_wanted(o, targets, ntargets)};
	rc = mc_place_view(place, mc_mst_now_ms(m), rows, n);
	mc_free(rows);
	return rc;
}

uint64_t mc_mst_copy_target(struct mc_master *m, struct mc_place *place,
			    const struct mc_st_object *object, uint16_t key_len)
{
	struct mc_slot_info info = {
	    .len = object->len, .key_len = key_len, .tlv_len = object->tlv_len};
	uint64_t holders[MC_ST_REPLICAS_MAX], targets[TARGETS_LOOK];
	struct mc_place_want want = {.holders = holders};
	uint32_t n;

	if (mc_slot_layout(&info) < 0)
		return 0;
	for (uint32_t i = 0; i < object->nreplicas; i++) {
		if (object->replicas[i].kind == MC_ST_MEMORY)
			holders[want.nholders++] = object->replicas[i].owner;
	}
	want.bytes = info.slot_len;
	n = mc_place_choose(place, mc_mst_now_ms(m), &want, TARGETS_LOOK, targets);
	/* The last of its choices are those that would have to evict. */
	for (uint32_t i = 0; i < n; i++) {
		const struct mc_mst_owner *o = mc_mst_owner_find(m, targets[i]);

		if (o && (mc_mst_copy_room(m, o) >= info.slot_len ||
			  (want.nholders == 0 && disk_room(o) >= info.slot_len)))
			return targets[i];
	}
	return 0;
}

/* ---- an order's life ---- */

static void over(struct mc_master *m, struct mc_mst_copy *c, int32_t status)
{
	mc_list_del(&c->link);
	c->status = status;
	mc_list_push_back(&m->copies_over, &c->link);
}

/* Where it is read: in memory, else on a disk. @return NULL: nowhere that can be read */
static const struct mc_st_replica *source_of(struct mc_master *m, const struct mc_mst_copy *c,
					     const struct mc_st_object *object, uint8_t kind)
{
	const struct mc_st_replica *found = NULL;

	for (uint32_t i = 0; i < object->nreplicas; i++) {
		const struct mc_st_replica *r = &object->replicas[i];
		const struct mc_mst_owner *o = mc_mst_owner_find(m, r->owner);

		if (r->kind != kind || !o || !o->is_joined || (c->source && c->source != r->owner))
			continue;
		if (!found || o->state == MC_MST_OK)
			found = r;
		if (o->state == MC_MST_OK)
			break;
	}
	return found || kind == MC_ST_DISK ? found : source_of(m, c, object, MC_ST_DISK);
}

static bool has_at(const struct mc_st_object *object, uint64_t owner)
{
	for (uint32_t i = 0; i < object->nreplicas; i++) {
		if (object->replicas[i].kind == MC_ST_MEMORY && object->replicas[i].owner == owner)
			return true;
	}
	return false;
}

static bool is_ordered(const struct mc_mst_owner *target, uint64_t gen)
{
	const struct order *order;

	mc_list_each (order, &target->orders, link) {
		if (order->copy && order->gen == gen)
			return true;
	}
	return false;
}

static void order_send(struct mc_mst_owner *target, struct mc_mst_copy *c,
		       const struct mc_st_object *object, const struct mc_st_replica *from)
{
	struct mc_master *m = target->master;
	struct order *order = mc_calloc(1, sizeof(*order));
	Mc__St__Order v = MC__ST__ORDER__INIT;
	uint8_t buf[ORDER_BYTES];
	size_t len;

	c->gen = object->gen;
	c->len = object->len;
	c->source = from->owner;
	c->addr = from->addr;
	c->kind = from->kind;
	v.id = mc_master_epoch(m) << MC_MST_GEN_BITS | ++m->order_next;
	v.what = ORDER_COPY;
	v.key = (ProtobufCBinaryData){.data = (uint8_t *)c->key, .len = c->key_len};
	v.gen = object->gen;
	v.len = object->len;
	v.tlv_len = object->tlv_len;
	v.segment = mc_mst_owner_find(m, from->owner)->segment;
	v.addr = from->addr;
	if (from->kind == MC_ST_DISK)
		v.address = mc_mst_owner_find(m, from->owner)->address;
	if (!order || mc_pb_pack(&v.base, buf, sizeof(buf), &len) < 0) {
		over(m, c, order ? MC_STORE_INVALID_PARAMS : MC_STORE_INTERNAL_ERROR);
		mc_free(order);
		return;
	}
	mc_list_del(&c->link);
	*order = (struct order){
	    .id = v.id, .gen = c->gen, .key_hash = mc_hash64(c->key, c->key_len, 0), .copy = c};
	mc_list_push_back(&target->orders, &order->link);
	target->norders++;
	mc_mst_note(target, MC_ST_NOTE_ORDER, buf, len);
}

/* @return 0; MC_STORE_*: it cannot be done */
static int32_t look(struct mc_master *m, struct mc_mst_copy *c, struct mc_index_view *ret,
		    const struct mc_st_replica **ret_from)
{
	const struct mc_st_key key = {c->key_len, c->key};
	struct mc_index_request q;
	int32_t status;

	if (mc_index_begin(m->index, &q, mc_mst_now_ms(m), &key, 1) < 0)
		return MC_STORE_INTERNAL_ERROR;
	status = mc_index_view(&q, 0, ret);
	mc_index_end(&q);
	if (status != 0)
		return status;
	*ret_from = source_of(m, c, &ret->object, MC_ST_MEMORY);
	if (!*ret_from)
		return MC_STORE_REPLICA_NOT_FOUND;
	return has_at(&ret->object, c->target) ? MC_STORE_REPLICA_ALREADY_EXISTS : 0;
}

void mc_mst_copies_pump(struct mc_mst_owner *target)
{
	struct mc_mst_copy *c;

	mc_list_each (c, &target->copies_waiting, link) {
		const struct mc_st_replica *from;
		struct mc_index_view v;
		int32_t status;

		if (!target->req || target->state != MC_MST_OK || target->norders >= ORDERS_MAX)
			return;
		status = look(target->master, c, &v, &from);
		if (status != 0)
			over(target->master, c, status);
		else if (!is_ordered(target, v.object.gen))
			order_send(target, c, &v.object, from);
	}
}

int32_t mc_mst_copy_start(struct mc_master *m, struct mc_mst_copy *c)
{
	struct mc_mst_owner *target = mc_mst_owner_find(m, c->target);
	const struct mc_st_replica *from;
	struct mc_index_view v;
	int32_t status;

	if (!target || !target->is_joined)
		return MC_STORE_SEGMENT_NOT_FOUND;
	if (!target->req || target->state != MC_MST_OK)
		return MC_STORE_UNAVAILABLE_IN_CURRENT_STATUS;
	status = look(m, c, &v, &from);
	if (status != 0)
		return status;
	c->status = 0;
	mc_list_push_back(&target->copies_waiting, &c->link);
	mc_mst_copies_pump(target);
	return 0;
}

/* The new replica is the index's; of a move the old one is freed. @return 0 or MC_STORE_* */
static int32_t replica_take(struct mc_mst_owner *target, const struct mc_mst_copy *c, uint64_t addr)
{
	struct mc_master *m = target->master;
	const struct mc_st_key key = {c->key_len, c->key};
	const struct mc_st_has has = {.gen = c->gen,
				      .len = c->len,
				      .addr = addr,
				      .key_len = c->key_len,
				      .kind = MC_ST_MEMORY,
				      .key = c->key};
	const struct mc_st_replica old = {.owner = c->source, .addr = c->addr, .kind = c->kind};
	struct mc_index_request q;
	int rc;

	if (mc_index_begin(m->index, &q, mc_mst_now_ms(m), &key, 1) < 0)
		return MC_STORE_INTERNAL_ERROR;
	rc = mc_index_more(&q, 0, target->id, &has, &m->frees);
	if (rc == 0)
		mc_mst_mark(target, addr, c->gen);
	/* Gone already is as good: it was evicted, or found damaged. */
	if (rc == 0 && c->is_move)
		mc_index_unwritten(&q, 0); /* at the target */
	if (rc == 0 && c->is_move && !(c->kind == MC_ST_DISK && c->keeps_disk))
		(void)mc_index_drop(&q, 0, c->gen, &old, MC_GONE_REMOVED, &m->frees);
	mc_index_end(&q);
	return rc == 1 ? MC_STORE_OBJECT_NOT_FOUND : rc;
}

/* What an owner has of it, or will have: at `addr`, or wherever. */
static void order_free(struct mc_mst_owner *o, const struct order *order, uint64_t addr)
{
	const struct mc_index_free f = {.owner = o->id,
					.addr = addr,
					.gen = order->gen,
					.key_hash = order->key_hash,
					.kind = MC_ST_MEMORY};

	if (mc_index_free(o->master->index, &f, &o->master->frees) < 0)
		mc_log_error("no memory to take a copy back", "segment=%s", o->segment);
}

static void orders_free(struct mc_mst_owner *o, uint64_t gen)
{
	struct order *order;

	mc_list_each (order, &o->orders, link) {
		if (order->gen != gen || order->is_freed)
			continue;
		order->is_freed = true;
		order_free(o, order, 0);
	}
}

void mc_mst_orders_free(struct mc_master *m, const struct mc_index_free *f)
{
	struct mc_mst_owner *o;

	if (!f->is_gone && f->owner != 0)
		return; /* one replica of several, or one that never was */
	mc_list_each (o, &m->owners, link)
		orders_free(o, f->gen);
}

static void order_end(struct mc_mst_owner *o, struct order *order, uint64_t gen, uint64_t addr,
		      int32_t status)
{
	struct mc_mst_copy *c = order->copy;

	mc_list_del(&order->link);
	o->norders -= c != NULL;
	if (status == 0 && order->is_freed)
		status = MC_STORE_UNAVAILABLE_IN_CURRENT_STATUS; /* and what is there now? */
	else if (status == 0 && !c)
		order_free(o, order, addr);
	else if (status == 0 && gen == c->gen)
		status = replica_take(o, c, addr);
	else if (status >= 0)
		status = MC_STORE_INTERNAL_ERROR;
	if (c)
		over(o->master, c, status);
	mc_free(order);
}

void mc_mst_copy_done(struct mc_mst_owner *o, uint64_t id, uint64_t gen, uint64_t addr,
		      int32_t status)
{
	struct order *order;

	mc_list_each (order, &o->orders, link) {
		if (order->id == id) {
			order_end(o, order, gen, addr, status);
			break;
		}
	}
	mc_mst_copies_pump(o); /* else: an order of a master before */
}

void mc_mst_copies_lost(struct mc_mst_owner *o)
{
	struct mc_mst_copy *c;
	struct order *order;

	mc_list_each (order, &o->orders, link) {
		if (order->copy)
			over(o->master, order->copy, MC_STORE_UNAVAILABLE_IN_CURRENT_STATUS);
		order->copy = NULL;
	}
	mc_list_each (c, &o->copies_waiting, link)
		over(o->master, c, MC_STORE_UNAVAILABLE_IN_CURRENT_STATUS);
	o->norders = 0;
}

void mc_mst_orders_over(struct mc_mst_owner *o)
{
	struct order *order;

	mc_list_each (order, &o->orders, link) {
		mc_list_del(&order->link);
		mc_free(order);
	}
}

void mc_mst_copies_end(struct mc_master *m)
{
	struct mc_list *link;

	while ((link = mc_list_pop_front(&m->copies_over)) != NULL) {
		struct mc_mst_copy *c = mc_list_entry(link, struct mc_mst_copy, link);

		c->on_done(m, c, c->status);
	}
}
