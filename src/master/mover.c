/*
 * mover.c: see mover.h.
 */
#include "master/mover.h"

#include <string.h>

#include "base/log.h"

#define BUDGET 1000u	/* objects of one piece of the walk */
#define QUEUE_MAX 1024u /* found, not copied yet */
#define TRIES 3u
#define AGAIN_MS 500u
#define STEP_NS (50 * MC_NS_PER_MS)
#define PLACE_MS 250u /* how old the targets may be */

/* An object to be copied. */
struct item {
	struct mc_mst_copy copy;
	struct mc_list link; /* ready or active */
	struct mc_mst_mover *mover;
	uint32_t tries;
	uint64_t at_ms; /* not before */
	uint8_t key[];
};

void mc_mst_mover_go(struct mc_mst_mover *mv, uint64_t in_ns)
{
	/* One timer, whose place in the heap is there. */
	(void)mc_loop_timer_set(mv->m->loop, &mv->timer, mc_loop_now(mv->m->loop) + in_ns);
}

static void items_drop(struct mc_list *list)
{
	struct mc_list *link;

	while ((link = mc_list_pop_front(list)) != NULL)
		mc_free(mc_list_entry(link, struct item, link));
}

void mc_mst_mover_stop(struct mc_mst_mover *mv)
{
	items_drop(&mv->ready);
	mv->nready = 0;
	mv->is_walked = true;
}

void mc_mst_mover_pass(struct mc_mst_mover *mv)
{
	mv->cursor = mv->found = mv->failed = 0;
	mv->is_walked = false;
}

/* ---- one object ---- */

static void ready_add(struct item *it)
{
	mc_list_push_back(&it->mover->ready, &it->link);
	it->mover->nready++;
}

static void item_done(struct mc_master *m, struct mc_mst_copy *c, int32_t status);

void mc_mst_mover_add(struct mc_mst_mover *mv, const struct mc_index_view *v, uint64_t source,
		      bool is_move)
{
	struct item *it = mc_calloc(1, sizeof(*it) + v->key.len);

	mv->found++;
	if (!it) {
		mv->failed++;
		return;
	}
	memcpy(it->key, v->key.bytes, v->key.len);
	it->mover = mv;
	it->copy = (struct mc_mst_copy){.key = it->key,
					.key_len = v->key.len,
					.is_move = is_move,
					.keeps_disk = true,
					.source = source,
					.on_done = item_done};
	ready_add(it);
}

/* @param bytes  that were copied */
static void item_end(struct item *it, uint64_t bytes, int32_t status)
{
	struct mc_mst_mover *mv = it->mover;
	bool has_gone = status == MC_STORE_OBJECT_NOT_FOUND ||
			status == MC_STORE_REPLICA_NOT_FOUND ||
			status == MC_STORE_REPLICA_ALREADY_EXISTS;

	if (status != 0 && !has_gone && ++it->tries < TRIES) {
		it->at_ms = mc_mst_now_ms(mv->m) + AGAIN_MS;
		ready_add(it);
		return;
	}
	mc_free(it);
	if (has_gone)
		return;
	mv->failed += status != 0;
	mv->on_one(mv, bytes, status);
}

static void item_done(struct mc_master *m, struct mc_mst_copy *c, int32_t status)
{
	struct item *it = mc_container_of(c, struct item, copy);
	struct mc_mst_mover *mv = it->mover;

	(void)m;
	mc_list_del(&it->link);
	mv->nactive--;
	item_end(it, c->len, status);
	mc_mst_mover_go(mv, 0);
}

static void item_start(struct mc_mst_mover *mv, struct item *it)
{
	const struct mc_st_key key = {it->copy.key_len, it->copy.key};
	uint64_t source = it->copy.source;
	struct mc_index_request q;
	struct mc_index_view v;
	int32_t status = MC_STORE_INTERNAL_ERROR;

	if (mc_index_begin(mv->m->index, &q, mc_mst_now_ms(mv->m), &key, 1) == 0) {
		status = mc_index_view(&q, 0, &v);
		mc_index_end(&q);
	}
	if (status == 0 && mv->on_start)
		status = mv->on_start(mv, &it->copy, &v.object);
	if (status != 0) {
		item_end(it, 0, status);
		return;
	}
	it->copy.target = mc_mst_copy_target(mv->m, &mv->place, &v.object, it->copy.key_len);
	if (!it->copy.target) {
		status = MC_STORE_NO_AVAILABLE_HANDLE;
		if (mv->on_no_room)
			status = mv->on_no_room(mv, &it->copy, &v.object);
		item_end(it, 0, status);
		return;
	}
	status = mc_mst_copy_start(mv->m, &it->copy);
	if (status != 0) {
		it->copy.source = source;
		item_end(it, 0, status);
		return;
	}
	mv->tokens -= (int64_t)v.object.len;
	mc_list_push_back(&mv->active, &it->link);
	mv->nactive++;
}

/* ---- steps ---- */

static void targets_look(struct mc_mst_mover *mv, uint64_t now)
{
	if (mv->place.has_view && now - mv->place_ms < PLACE_MS)
		return;
	mv->place_ms = now;
	if (mc_mst_copy_targets(mv->m, &mv->place, mv->targets, mv->ntargets) < 0)
		mc_log_error("no memory for the targets of copies", "owners=%u", mv->m->nowners);
}

/* Bytes that may be copied now: a second's at most are saved up. */
static bool has_tokens(struct mc_mst_mover *mv, uint64_t now)
{
	uint64_t ms = mc_min(now - mv->tokens_ms, 1000ul);

	mv->tokens_ms = now;
	if (mv->bytes_per_s == 0)
		return true;
	mv->tokens =
	    mc_min(mv->tokens + (int64_t)(mv->bytes_per_s / 1000 * ms), (int64_t)mv->bytes_per_s);
	return mv->tokens > 0;
}

static void items_start(struct mc_mst_mover *mv)
{
	uint64_t now = mc_mst_now_ms(mv->m);

	targets_look(mv, now);
	for (uint32_t n = mv->nready; n > 0 && mv->nactive < mv->copies && has_tokens(mv, now);
	     n--) {
		struct item *it = mc_list_first(&mv->ready, struct item, link);

		mc_list_del(&it->link);
		mv->nready--;
		if (it->at_ms > now)
			ready_add(it);
		else
			item_start(mv, it);
	}
}

static void walk_each(void *user, const struct mc_index_view *v)
{
	struct mc_mst_mover *mv = user;

	mv->each(mv, v);
}

static void step(struct mc_mst_mover *mv)
{
	bool may_walk;

	if (!mv->may_go(mv))
		return;
	may_walk = !mv->is_walked && mv->nready < QUEUE_MAX;
	if (may_walk)
		mv->is_walked = !mc_index_walk(mv->m->index, mc_mst_now_ms(mv->m), &mv->cursor,
					       BUDGET, walk_each, mv);
	items_start(mv);
	if (mv->is_walked && mv->nready == 0 && mv->nactive == 0)
		mv->on_pass(mv);
	else
		mc_mst_mover_go(mv, may_walk && !mv->is_walked ? 0 : STEP_NS);
}

static void on_time(struct mc_timer *t)
{
	struct mc_mst_mover *mv = mc_container_of(t, struct mc_mst_mover, timer);
	struct mc_master *m = mv->m;

	step(mv);
	mc_mst_frees_send(m);
}

void mc_mst_mover_init(struct mc_mst_mover *mv, uint64_t seed)
{
	mc_list_init(&mv->ready);
	mc_list_init(&mv->active);
	mc_place_init(&mv->place, seed);
	mv->timer.on_time = on_time;
	mv->tokens_ms = mc_mst_now_ms(mv->m);
	mv->is_walked = true;
}

void mc_mst_mover_fini(struct mc_mst_mover *mv)
{
	mc_loop_timer_cancel(mv->m->loop, &mv->timer);
	items_drop(&mv->ready);
	items_drop(&mv->active);
	mc_place_fini(&mv->place);
}
