/*
 * task_test.c: what the master has owners copy: tasks, drains, repairs; quotas that it keeps.
 */
#include "fixture.h"

#include "master/drain.h"
#include "meta/slot.h"

/* ---- tasks ---- */

static Mc__St__TaskReply *task_reply(struct fix *f, struct mc_pb_arena *arena, size_t len)
{
	ProtobufCMessage *ret;

	assert_int_equal(mc_pb_unpack(arena, &mc__st__task_reply__descriptor, f->buf, len, &ret),
			 0);
	return (Mc__St__TaskReply *)ret;
}

/* @param source  NULL: a copy */
static Mc__St__TaskReply *task_create(struct fix *f, struct mc_pb_arena *arena, const char *key,
				      const char *source, const char *target)
{
	Mc__St__TaskCreate m = MC__ST__TASK_CREATE__INIT;
	struct fix_key text = fix_key(key);
	char *targets[] = {(char *)target};
	uint8_t req[256];
	size_t len;

	m.is_move = source != NULL;
	m.source = (char *)(source ? source : "");
	m.key = (ProtobufCBinaryData){.data = text.bytes, .len = text.len};
	m.n_targets = 1;
	m.targets = targets;
	assert_int_equal(mc_pb_pack(&m.base, req, sizeof(req), &len), 0);
	assert_int_equal(fix_call(f, MC_ST_TASK_CREATE, req, len, &len), 0);
	return task_reply(f, arena, len);
}

static Mc__St__TaskReply *task_query(struct fix *f, struct mc_pb_arena *arena, uint64_t hi,
				     uint64_t lo)
{
	Mc__St__TaskQuery m = MC__ST__TASK_QUERY__INIT;
	uint8_t req[64];
	size_t len;

	m.id_hi = hi;
	m.id_lo = lo;
	assert_int_equal(mc_pb_pack(&m.base, req, sizeof(req), &len), 0);
	assert_int_equal(fix_call(f, MC_ST_TASK_QUERY, req, len, &len), 0);
	return task_reply(f, arena, len);
}

/* Wait until it is neither pending nor under way. */
static Mc__St__TaskReply *task_end(struct fix *f, struct mc_pb_arena *arena, uint64_t hi,
				   uint64_t lo)
{
	uint64_t end = mc_now_ns() + SOON_NS;
	Mc__St__TaskReply *r = task_query(f, arena, hi, lo);

	while (r->status == 0 && r->state < MC_STORE_TASK_FAILED) {
		assert_true(mc_now_ns() < end);
		(void)poll(NULL, 0, 2);
		r = task_query(f, arena, hi, lo);
	}
	return r;
}

struct order {
	uint64_t id, gen, addr;
	char segment[32];
};

static struct order expect_order(struct fix_owner *o)
{
	_Alignas(16) uint8_t mem[2048];
	struct fix_note n = fo_expect(o, MC_ST_NOTE_ORDER);
	struct mc_pb_arena arena;
	const Mc__St__Order *v;
	ProtobufCMessage *got;
	struct order ret;

	mc_pb_arena_init(&arena, mem, sizeof(mem));
	assert_int_equal(mc_pb_unpack(&arena, &mc__st__order__descriptor, n.data, n.len, &got), 0);
	v = (const Mc__St__Order *)got;
	assert_int_equal(v->what, 1);
	ret = (struct order){v->id, v->gen, v->addr, ""};
	(void)snprintf(ret.segment, sizeof(ret.segment), "%s", v->segment);
	return ret;
}

static void done(struct fix_owner *o, const struct order *order, uint64_t addr, int32_t status)
{
	Mc__St__OrderDone v = MC__ST__ORDER_DONE__INIT;
	uint8_t buf[64];
	size_t len;

	v.id = order->id;
	v.gen = order->gen;
	v.addr = addr;
	v.status = status;
	assert_int_equal(mc_pb_pack(&v.base, buf, sizeof(buf), &len), 0);
	fo_note(o, MC_ST_NOTE_DONE, buf, len);
}

struct scene {
	_Alignas(16) uint8_t mem[4096];
	struct mc_pb_arena arena;
	struct fix f;
	struct fix_owner a, b; /* 5 and 6 */
};

/* A master with two owners; "k" is at the first one. @param conf  NULL: the defaults */
static void scene_open_with(struct scene *s, void (*conf)(struct mc_master_conf *conf))
{
	mc_pb_arena_init(&s->arena, s->mem, sizeof(s->mem));
	fix_open(&s->f);
	if (conf)
		conf(&s->f.conf);
	fix_start(&s->f);
	fo_open(&s->a, &s->f, 5);
	fo_open(&s->b, &s->f, 6);
	assert_int_equal(fix_commit(&s->f, "k", 11, 5, 4096, 0).status, 0);
}

static void scene_open(struct scene *s)
{
	scene_open_with(s, NULL);
}

static void scene_close(struct scene *s)
{
	fix_close(&s->f);
}

static void copy_is_ordered_and_makes_a_replica(void **state)
{
	struct order order;
	struct scene s;
	uint64_t hi, lo;
	const Mc__St__TaskReply *r;

	scene_open(&s);
	r = task_create(&s.f, &s.arena, "k", NULL, "host-6:1");
	assert_int_equal(r->status, 0);
	hi = r->id_hi;
	lo = r->id_lo;
	order = expect_order(&s.b);
	assert_int_equal(order.gen, 11);
	assert_int_equal(order.addr, 4096);
	assert_string_equal(order.segment, "host-5:1");
	assert_int_equal(task_query(&s.f, &s.arena, hi, lo)->state, MC_STORE_TASK_PROCESSING);
	done(&s.b, &order, 8192, 0);
	r = task_end(&s.f, &s.arena, hi, lo);
	assert_int_equal(r->state, MC_STORE_TASK_SUCCESS);
	assert_string_equal(r->assigned, "host-6:1");
	assert_int_equal(fix_find(&s.f, "k").nreplicas, 2);
	scene_close(&s);
	(void)state;
}

static void move_frees_the_source_when_the_target_has_it(void **state)
{
	struct mc_st_object obj;
	struct order order;
	struct scene s;
	const Mc__St__TaskReply *r;
	uint64_t hi, lo;

	scene_open(&s);
	r = task_create(&s.f, &s.arena, "k", "host-5:1", "host-6:1");
	assert_int_equal(r->status, 0);
	hi = r->id_hi;
	lo = r->id_lo;
	order = expect_order(&s.b);
	done(&s.b, &order, 8192, 0);
	fo_frees(&s.a, 4096, 11);
	assert_int_equal(task_end(&s.f, &s.arena, hi, lo)->state, MC_STORE_TASK_SUCCESS);
	assert_int_equal(fix_lookup(&s.f, "k", &obj), 0);
	assert_int_equal(obj.nreplicas, 1);
	assert_int_equal(obj.replicas[0].owner, 6);
	assert_int_equal(obj.replicas[0].addr, 8192);
	scene_close(&s);
	(void)state;
}

/* The drain of a segment and a task may want the same. */
static void moves_of_one_object_leave_each_others_copy(void **state)
{
	const Mc__St__TaskReply *r;
	struct fix_later later;
	struct order to_b, to_c;
	struct mc_st_object obj;
	struct fix_owner c;
	struct scene s;
	uint64_t hi, lo;

	scene_open(&s);
	fo_open(&c, &s.f, 7);
	(void)task_create(&s.f, &s.arena, "k", "host-5:1", "host-6:1");
	to_b = expect_order(&s.b);
	r = task_create(&s.f, &s.arena, "k", "host-5:1", "host-6:1");
	hi = r->id_hi;
	lo = r->id_lo;
	(void)task_create(&s.f, &s.arena, "k", "host-5:1", "host-7:1");
	to_c = expect_order(&c);
	done(&s.b, &to_b, 8192, 0);
	fo_frees(&s.a, 4096, 11);
	assert_int_equal(task_end(&s.f, &s.arena, hi, lo)->state, MC_STORE_TASK_FAILED);
	done(&c, &to_c, 4096, 0);
	do {
		assert_int_equal(fix_lookup(&s.f, "k", &obj), 0);
	} while (obj.nreplicas < 2);
	fix_remove_later(&s.f, &later, "k");
	fo_frees(&s.b, 8192, 11); /* it was told nothing since its one order */
	fo_frees(&c, 4096, 11);
	assert_int_equal(fix_removed(&s.f, &later), 0);
	scene_close(&s);
	(void)state;
}

static void one_at_a_time(struct mc_master_conf *conf)
{
	conf->tasks_processing_max = conf->tasks_pending_max = 1;
}

static void tasks_wait_for_each_other_and_are_refused(void **state)
{
	const Mc__St__TaskReply *r;
	struct order order;
	struct scene s;
	uint64_t hi, lo;

	scene_open_with(&s, one_at_a_time);
	for (unsigned i = 0; i < 2; i++) {
		const char *key = i == 0 ? "k1" : "k2";

		assert_int_equal(fix_commit(&s.f, key, 21 + i, 5, 65536 * (i + 1), 0).status, 0);
	}
	assert_int_equal(task_create(&s.f, &s.arena, "k", NULL, "host-6:1")->state,
			 MC_STORE_TASK_PROCESSING);
	order = expect_order(&s.b);
	assert_int_equal(order.gen, 11);
	r = task_create(&s.f, &s.arena, "k1", NULL, "host-6:1");
	assert_int_equal(r->status, 0);
	assert_int_equal(r->state, MC_STORE_TASK_PENDING);
	hi = r->id_hi;
	lo = r->id_lo;
	assert_int_equal(task_create(&s.f, &s.arena, "k2", NULL, "host-6:1")->status,
			 MC_STORE_TASK_PENDING_LIMIT_EXCEEDED);
	done(&s.b, &order, 8192, 0);
	order = expect_order(&s.b); /* its turn */
	assert_int_equal(order.gen, 21);
	assert_int_equal(task_create(&s.f, &s.arena, "k2", NULL, "host-6:1")->state,
			 MC_STORE_TASK_PENDING);
	done(&s.b, &order, 16384, 0);
	assert_int_equal(task_end(&s.f, &s.arena, hi, lo)->state, MC_STORE_TASK_SUCCESS);
	assert_int_equal(expect_order(&s.b).gen, 22);
	scene_close(&s);
	(void)state;
}

static void soon_too_late(struct mc_master_conf *conf)
{
	conf->tasks_processing_max = 1;
	conf->task_pending_ms = 100;
	conf->task_processing_ms = 300;
}

static void tasks_time_out(void **state)
{
	const Mc__St__TaskReply *r;
	uint64_t hi, lo, late;
	struct mc_st_object obj;
	struct order order;
	struct scene s;

	scene_open_with(&s, soon_too_late);
	r = task_create(&s.f, &s.arena, "k", NULL, "host-6:1");
	hi = r->id_hi;
	lo = r->id_lo;
	order = expect_order(&s.b);
	assert_int_equal(fix_commit(&s.f, "k1", 21, 5, 65536, 0).status, 0);
	late = task_create(&s.f, &s.arena, "k1", NULL, "host-6:1")->id_lo;
	r = task_end(&s.f, &s.arena, hi, late);
	assert_int_equal(r->state, MC_STORE_TASK_FAILED);
	assert_string_equal(r->message, "timed out while pending");
	r = task_end(&s.f, &s.arena, hi, lo);
	assert_int_equal(r->state, MC_STORE_TASK_FAILED);
	assert_string_equal(r->message, "timed out while processing");
	/* What it had begun comes to its end all the same. */
	done(&s.b, &order, 8192, 0);
	while (fix_lookup(&s.f, "k", &obj) == 0 && obj.nreplicas == 1)
		(void)poll(NULL, 0, 2);
	assert_string_equal(task_query(&s.f, &s.arena, hi, lo)->message,
			    "timed out while processing");
	/* Its place is free. */
	assert_int_equal(task_create(&s.f, &s.arena, "k1", NULL, "host-6:1")->state,
			 MC_STORE_TASK_PROCESSING);
	scene_close(&s);
	(void)state;
}

static void once_more(struct mc_master_conf *conf)
{
	conf->task_retries_max = 1;
	conf->tasks_finished_max = 1;
}

static void tasks_are_tried_again_so_often(void **state)
{
	const Mc__St__TaskReply *r;
	struct order order;
	uint64_t hi, lo;
	struct scene s;

	scene_open_with(&s, once_more);
	r = task_create(&s.f, &s.arena, "k", NULL, "host-6:1");
	hi = r->id_hi;
	lo = r->id_lo;
	for (unsigned i = 0; i < 2; i++) {
		order = expect_order(&s.b);
		assert_int_equal(task_query(&s.f, &s.arena, hi, lo)->state,
				 MC_STORE_TASK_PROCESSING);
		done(&s.b, &order, 0, MC_STORE_NO_AVAILABLE_HANDLE);
	}
	r = task_end(&s.f, &s.arena, hi, lo);
	assert_int_equal(r->state, MC_STORE_TASK_FAILED);
	assert_string_equal(r->message, "NO_AVAILABLE_HANDLE");
	/* One is remembered: the latest. */
	r = task_create(&s.f, &s.arena, "k", NULL, "host-6:1");
	order = expect_order(&s.b);
	done(&s.b, &order, 8192, 0);
	assert_int_equal(task_end(&s.f, &s.arena, hi, r->id_lo)->state, MC_STORE_TASK_SUCCESS);
	assert_int_equal(task_query(&s.f, &s.arena, hi, lo)->status, MC_STORE_TASK_NOT_FOUND);
	scene_close(&s);
	(void)state;
}

static void copy_of_what_was_replaced_meanwhile_is_freed(void **state)
{
	struct fix_later later;
	struct mc_st_object obj;
	struct order order;
	struct scene s;
	const Mc__St__TaskReply *r;
	uint64_t hi, lo;

	scene_open(&s);
	r = task_create(&s.f, &s.arena, "k", NULL, "host-6:1");
	hi = r->id_hi;
	lo = r->id_lo;
	order = expect_order(&s.b);
	fix_commit_later(&s.f, &later, "k", 12, 5, 16384, MC_ST_COMMIT_UPSERT);
	fo_frees(&s.a, 4096, 11);
	fo_expect_free(&s.b, 0, 11); /* wherever it is, or would be */
	done(&s.b, &order, 8192, 0); /* said before that came */
	fo_freed(&s.b, 0, 11);
	assert_int_equal(fix_committed_later(&s.f, &later).status, 0);
	order = expect_order(&s.b); /* of what is there now */
	assert_int_equal(order.gen, 12);
	assert_int_equal(fix_lookup(&s.f, "k", &obj), 0);
	assert_int_equal(obj.gen, 12);
	assert_int_equal(obj.nreplicas, 1);
	done(&s.b, &order, 12288, 0);
	r = task_end(&s.f, &s.arena, hi, lo);
	assert_int_equal(r->state, MC_STORE_TASK_SUCCESS);
	scene_close(&s);
	(void)state;
}

/* Its order's stream broke: whether there is a copy nobody knows, and it must not come back. */
static void removal_waits_for_a_copy_that_may_be(void **state)
{
	struct fix_later later;
	struct scene s;

	scene_open(&s);
	(void)task_create(&s.f, &s.arena, "k", NULL, "host-6:1");
	(void)expect_order(&s.b);
	fo_stop(&s.b);
	fo_start(&s.b);
	assert_int_not_equal(fo_welcomed(&s.b), 0); /* it goes on where it was */
	(void)expect_order(&s.b);
	fix_remove_later(&s.f, &later, "k");
	fo_frees(&s.a, 4096, 11);
	fo_expect_free(&s.b, 0, 11); /* for both orders */
	fo_freed(&s.b, 0, 11);
	assert_int_equal(fix_removed(&s.f, &later), 0);
	scene_close(&s);
	(void)state;
}

static void copy_is_ordered_again_after_a_passing_failure(void **state)
{
	struct order order;
	struct scene s;
	const Mc__St__TaskReply *r;
	uint64_t hi, lo;

	scene_open(&s);
	r = task_create(&s.f, &s.arena, "k", NULL, "host-6:1");
	hi = r->id_hi;
	lo = r->id_lo;
	order = expect_order(&s.b);
	done(&s.b, &order, 0, MC_STORE_NO_AVAILABLE_HANDLE);
	order = expect_order(&s.b);
	fo_stop(&s.b); /* and its stream breaks: whether it made one is not known */
	fo_start(&s.b);
	assert_int_not_equal(fo_welcomed(&s.b), 0);
	order = expect_order(&s.b);
	done(&s.b, &order, 8192, 0);
	assert_int_equal(task_end(&s.f, &s.arena, hi, lo)->state, MC_STORE_TASK_SUCCESS);
	scene_close(&s);
	(void)state;
}

static void tasks_that_cannot_be_are_refused(void **state)
{
	struct scene s;

	scene_open(&s);
	assert_int_equal(task_create(&s.f, &s.arena, "k", NULL, "nobody:1")->status,
			 MC_STORE_INVALID_PARAMS);
	assert_int_equal(task_create(&s.f, &s.arena, "k", NULL, "host-5:1")->status,
			 MC_STORE_INVALID_PARAMS); /* it is there */
	assert_int_equal(task_create(&s.f, &s.arena, "k", "host-5:1", "host-5:1")->status,
			 MC_STORE_INVALID_PARAMS);
	assert_int_equal(task_create(&s.f, &s.arena, "k", "host-6:1", "host-5:1")->status,
			 MC_STORE_INVALID_PARAMS);
	assert_int_equal(task_create(&s.f, &s.arena, "none", NULL, "host-6:1")->status,
			 MC_STORE_OBJECT_NOT_FOUND);
	assert_int_equal(task_query(&s.f, &s.arena, 1, 2)->status, MC_STORE_TASK_NOT_FOUND);
	scene_close(&s);
	(void)state;
}

static void task_of_a_master_before_is_told_to_be_lost(void **state)
{
	struct scene s;
	const Mc__St__TaskReply *r;
	uint64_t hi, lo;

	scene_open(&s);
	r = task_create(&s.f, &s.arena, "k", NULL, "host-6:1");
	hi = r->id_hi;
	lo = r->id_lo;
	(void)expect_order(&s.b);
	fix_restart(&s.f);
	r = task_query(&s.f, &s.arena, hi, lo);
	assert_int_equal(r->status, 0);
	assert_int_equal(r->state, MC_STORE_TASK_FAILED);
	assert_non_null(strstr(r->message, "restarted"));
	scene_close(&s);
	(void)state;
}

/* ---- drains ---- */

struct drain {
	struct fix *f;
	struct mc_mst_drain_want want;
	struct mc_mst_drain_view view;
	struct mc_mst_job_id id;
	int32_t status;
};

static void drain_on_start(void *arg)
{
	struct drain *d = arg;

	d->status = mc_mst_drain_start(d->f->master, &d->want, &d->id);
}

static void drain_on_view(void *arg)
{
	struct drain *d = arg;

	d->status = mc_mst_drain_view(d->f->master, d->id, &d->view);
}

static int32_t drain_start(struct drain *d, struct fix *f, const char *segment)
{
	memset(d, 0, sizeof(*d));
	d->f = f;
	d->want.copies = 2;
	d->want.nsegments = 1;
	(void)snprintf(d->want.segments[0], sizeof(d->want.segments[0]), "%s", segment);
	mc_loop_call(f->loop, drain_on_start, d);
	return d->status;
}

static void drain_end(struct drain *d)
{
	uint64_t end = mc_now_ns() + SOON_NS;

	do {
		assert_true(mc_now_ns() < end);
		(void)poll(NULL, 0, 5);
		mc_loop_call(d->f->loop, drain_on_view, d);
		assert_int_equal(d->status, 0);
	} while (d->view.state < MC_MST_JOB_SUCCEEDED);
}

static void drained_segment_is_empty_and_stays_so(void **state)
{
	struct order order;
	struct drain d;
	struct scene s;

	scene_open(&s);
	assert_int_equal(drain_start(&d, &s.f, "nobody:1"), MC_STORE_SEGMENT_NOT_FOUND);
	assert_int_equal(drain_start(&d, &s.f, "host-5:1"), 0);
	order = expect_order(&s.b);
	done(&s.b, &order, 8192, 0);
	fo_frees(&s.a, 4096, 11);
	/* A put that began before. */
	assert_int_equal(fix_commit(&s.f, "late", 12, 5, 4096, 0).status, 0);
	order = expect_order(&s.b);
	assert_int_equal(order.gen, 12);
	done(&s.b, &order, 12288, 0);
	fo_frees(&s.a, 4096, 12);
	drain_end(&d);
	assert_int_equal(d.view.state, MC_MST_JOB_SUCCEEDED);
	assert_int_equal(d.view.moved, 2);
	assert_int_equal(d.view.moved_bytes, 200);
	assert_int_equal(d.view.left, 0);
	/* One that came even later. */
	assert_int_equal(fix_commit(&s.f, "later", 13, 5, 4096, 0).status, 0);
	order = expect_order(&s.b);
	assert_int_equal(order.gen, 13);
	scene_close(&s);
	(void)state;
}

static void drain_without_room_fails_and_evicts_nothing(void **state)
{
	struct mc_st_object obj;
	struct drain d;
	struct scene s;

	scene_open(&s);
	fo_space(&s.b, MC_ST_NOTE_SPACE, 890, 0); /* just below its watermark */
	assert_int_equal(fix_commit(&s.f, "other", 12, 6, 4096, 0).status, 0);
	assert_int_equal(drain_start(&d, &s.f, "host-5:1"), 0);
	drain_end(&d);
	assert_int_equal(d.view.state, MC_MST_JOB_FAILED);
	assert_int_equal(d.view.failed, 1);
	assert_int_equal(d.view.left, 1);
	assert_non_null(strstr(d.view.message, "1 objects remain"));
	assert_int_equal(fix_lookup(&s.f, "k", &obj), 0);
	assert_int_equal(fix_lookup(&s.f, "other", &obj), 0);
	scene_close(&s);
	(void)state;
}

static void drain_of_a_segment_that_dies_says_so(void **state)
{
	struct drain d;
	struct scene s;

	mc_pb_arena_init(&s.arena, s.mem, sizeof(s.mem));
	fix_open(&s.f);
	s.f.conf.client_ttl_ms = 200;
	fix_start(&s.f);
	fo_open(&s.a, &s.f, 5);
	fo_open(&s.b, &s.f, 6);
	assert_int_equal(fix_commit(&s.f, "k", 11, 5, 4096, 0).status, 0);
	assert_int_equal(drain_start(&d, &s.f, "host-5:1"), 0);
	(void)expect_order(&s.b); /* and never ends */
	fo_stop(&s.a);
	drain_end(&d);
	assert_int_equal(d.view.state, MC_MST_JOB_FAILED);
	assert_non_null(strstr(d.view.message, "host-5:1 has gone"));
	scene_close(&s);
	(void)state;
}

/* ---- repairs ---- */

static void commit_two(struct fix *f, const char *key, uint64_t gen)
{
	const struct fix_key text = fix_key(key);
	uint8_t tlv[16], req[512];
	struct mc_wr t = mc_wr_make(tlv, sizeof(tlv)), w = mc_wr_make(req, sizeof(req));
	struct mc_st_commit c = {
	    .gen = gen,
	    .len = 100,
	    .key_len = text.len,
	    .nreplicas = 2,
	    .replicas = {{.owner = 5, .addr = 4096}, {.owner = 6, .addr = 4096}},
	    .key = text.bytes,
	    .tlv = tlv};
	size_t len;

	mc_wr_u8(&t, MC_SLOT_TLV_WANTED);
	mc_wr_u8(&t, 0);
	mc_wr_u16(&t, 4);
	mc_wr_u32(&t, 2);
	c.tlv_len = (uint16_t)mc_wr_len(&t);
	mc_wr_u32(&w, 1);
	mc_st_commit_encode(&w, &c);
	assert_int_equal(fix_call(f, MC_ST_COMMIT, req, mc_wr_len(&w), &len), 0);
	assert_int_equal(fix_committed(f->buf, len).status, 0);
}

static void replica_of_a_dropped_owner_is_made_again_elsewhere(void **state)
{
	uint64_t end = mc_now_ns() + SOON_NS;
	struct mc_st_object obj;
	struct fix_owner c;
	struct order order;
	struct scene s;

	mc_pb_arena_init(&s.arena, s.mem, sizeof(s.mem));
	fix_open(&s.f);
	s.f.conf.client_ttl_ms = 4000; /* above the silence of owners that say nothing more */
	fix_start(&s.f);
	fo_open(&s.a, &s.f, 5);
	fo_open(&s.b, &s.f, 6);
	fo_open(&c, &s.f, 7);
	commit_two(&s.f, "k", 11);
	fo_stop(&s.b);
	do {
		fo_space(&s.a, MC_ST_NOTE_SPACE, 100, 0);
		fo_space(&c, MC_ST_NOTE_SPACE, 100, 0);
		(void)poll(NULL, 0, 100);
		assert_true(mc_now_ns() < end);
		pthread_mutex_lock(&c.lock);
		order.id = c.nnotes > c.ntaken;
		pthread_mutex_unlock(&c.lock);
	} while (!order.id);
	order = expect_order(&c);
	assert_string_equal(order.segment, "host-5:1");
	done(&c, &order, 8192, 0);
	do {
		assert_int_equal(fix_lookup(&s.f, "k", &obj), 0);
		assert_true(mc_now_ns() < end);
		(void)poll(NULL, 0, 5);
	} while (obj.nreplicas < 2);
	assert_int_equal(obj.replicas[0].owner + obj.replicas[1].owner, 5 + 7);
	scene_close(&s);
	(void)state;
}

/* ---- quotas ---- */

struct quota {
	struct fix *f;
	uint64_t bytes;
	int rc;
};

static void quota_on_set(void *arg)
{
	struct quota *q = arg;

	q->rc = mc_mst_quota_set(q->f->master, "default", &q->bytes);
}

static void quota_evicts_of_its_tenant_and_outlives_the_master(void **state)
{
	struct quota q;
	struct scene s;

	mc_pb_arena_init(&s.arena, s.mem, sizeof(s.mem));
	fix_open(&s.f);
	s.f.conf.has_tenants = true;
	fix_start(&s.f);
	q = (struct quota){&s.f, 150, 0};
	mc_loop_call(s.f.loop, quota_on_set, &q);
	assert_int_equal(q.rc, 0);
	fix_restart(&s.f);
	fo_open(&s.a, &s.f, 5);
	fo_open(&s.b, &s.f, 6);
	assert_int_equal(fix_commit(&s.f, "one", 11, 5, 4096, 0).status, 0);
	assert_int_equal(fix_commit(&s.f, "two", 12, 5, 8192, 0).status, 0);
	fo_expect_free(&s.a, 4096, 11); /* 200 bytes are more than the quota */
	assert_int_equal(fix_exist(&s.f, "one"), MC_STORE_OBJECT_NOT_FOUND);
	assert_int_equal(fix_exist(&s.f, "two"), 0);
	scene_close(&s);
	(void)state;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(copy_is_ordered_and_makes_a_replica),
	    cmocka_unit_test(move_frees_the_source_when_the_target_has_it),
	    cmocka_unit_test(moves_of_one_object_leave_each_others_copy),
	    cmocka_unit_test(tasks_wait_for_each_other_and_are_refused),
	    cmocka_unit_test(tasks_time_out),
	    cmocka_unit_test(tasks_are_tried_again_so_often),
	    cmocka_unit_test(copy_of_what_was_replaced_meanwhile_is_freed),
	    cmocka_unit_test(removal_waits_for_a_copy_that_may_be),
	    cmocka_unit_test(copy_is_ordered_again_after_a_passing_failure),
	    cmocka_unit_test(tasks_that_cannot_be_are_refused),
	    cmocka_unit_test(task_of_a_master_before_is_told_to_be_lost),
	    cmocka_unit_test(drained_segment_is_empty_and_stays_so),
	    cmocka_unit_test(drain_without_room_fails_and_evicts_nothing),
	    cmocka_unit_test(drain_of_a_segment_that_dies_says_so),
	    cmocka_unit_test(replica_of_a_dropped_owner_is_made_again_elsewhere),
	    cmocka_unit_test(quota_evicts_of_its_tenant_and_outlives_the_master),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
