/*
 * disk_test.c: an owner with a disk behind it. The test is the disk's thread and the master, so
 * that what one does while the other is at it happens every time.
 */
#include "owner_fix.h"

#include <sched.h>

#define POOL (8u << 20)
#define DISK (64u << 20)
#define LEN 100000u
#define SHORT_NS (300 * MC_NS_PER_MS)
#define WAIT_NS (20 * MC_NS_PER_S)

static uint8_t payload[LEN];

static struct mc_owner_opts with_disk(void)
{
	return (struct mc_owner_opts){.bytes = POOL, .disk_bytes = DISK};
}

static struct mc_owner_disk_job take(struct fix *f, enum mc_owner_disk_what what, uint64_t gen)
{
	struct mc_owner_disk_job job = {0};

	assert_int_equal(mc_owner_disk_take(f->o, &job, 1, 1, mc_now_ns() + FIX_SOON_NS), 1);
	assert_int_equal(job.what, what);
	assert_true(job.gen == gen);
	return job;
}

static void nothing_to_do(struct fix *f)
{
	struct mc_owner_disk_job job;

	assert_int_equal(mc_owner_disk_take(f->o, &job, 1, 1, mc_now_ns() + SHORT_NS), 0);
}

/* An object in memory, which is being written. */
static struct mc_owner_disk_job put(struct fix *f, const char *key, uint64_t gen,
				    struct mc_st_granted *ret)
{
	memset(payload, (int)gen, sizeof(payload));
	assert_int_equal(fix_put_one(f, key, gen, LEN, payload, ret), 0);
	return take(f, MC_OWNER_DISK_WRITE, gen);
}

/* The same on the disk, and the master knows. */
static void put_on_disk(struct fix *f, const char *key, uint64_t gen, struct mc_st_granted *ret)
{
	struct mc_owner_disk_job job = put(f, key, gen, ret);
	unsigned n = f->m->nhas;

	mc_owner_disk_done(f->o, &job, 0);
	fix_until(f->m, f->m->nhas == n + 1);
	assert_true(f->m->has[n].gen == gen && f->m->has[n].addr == MC_ST_DISK_ADDR);
}

static unsigned freed(struct fix *f)
{
	unsigned n;

	pthread_mutex_lock(&f->m->lock);
	n = f->m->nfreed;
	pthread_mutex_unlock(&f->m->lock);
	return n;
}

static void until_cleared(uint64_t addr)
{
	uint64_t end_ns = mc_now_ns() + WAIT_NS;

	while (fix_is_readable(addr)) {
		assert_true(mc_now_ns() < end_ns);
		(void)sched_yield();
	}
}

static void until_failed(struct mc_owner *o)
{
	uint64_t end_ns = mc_now_ns() + WAIT_NS;
	struct mc_owner_stats stats;

	for (mc_owner_stats(o, &stats); !stats.disk_failures; mc_owner_stats(o, &stats)) {
		assert_true(mc_now_ns() < end_ns);
		(void)sched_yield();
	}
}

static bool was_freed(struct fix *f, unsigned i, uint64_t addr, uint64_t gen)
{
	return f->m->freed[i].addr == addr && f->m->freed[i].gen == gen;
}

static void what_is_sealed_is_written_told_and_deleted(void **state)
{
	struct mc_owner_disk_job job;
	struct mc_st_granted a;
	struct fix f;

	fix_open(&f, with_disk());
	job = put(&f, "a", 7, &a);
	assert_int_equal(job.key_len, 1);
	assert_int_equal(job.key[0], 'a');
	assert_int_equal(job.len, LEN);
	assert_memory_equal(job.payload, payload, LEN);
	assert_int_equal(mc_owner_disk_check(f.o, &job), 0);
	job.payload[LEN - 1] ^= 1;
	assert_int_equal(mc_owner_disk_check(f.o, &job), -MC_E_CORRUPT);
	job.payload[LEN - 1] ^= 1;
	assert_int_equal(f.m->notes[MC_ST_NOTE_MORE], 0);
	mc_owner_disk_done(f.o, &job, 0);
	fix_until(f.m, f.m->notes[MC_ST_NOTE_MORE] == 1);
	assert_true(f.m->has[0].gen == 7 && f.m->has[0].addr == MC_ST_DISK_ADDR);
	nothing_to_do(&f);
	fix_say_free(f.m, MC_ST_DISK_ADDR, 7);
	job = take(&f, MC_OWNER_DISK_DELETE, 7);
	assert_int_equal(job.key[0], 'a');
	assert_int_equal(freed(&f), 0);
	mc_owner_disk_done(f.o, &job, -MC_E_IO); /* then again */
	job = take(&f, MC_OWNER_DISK_DELETE, 7);
	assert_int_equal(freed(&f), 0);
	mc_owner_disk_done(f.o, &job, 0);
	fix_until(f.m, f.m->nfreed == 1);
	assert_true(was_freed(&f, 0, MC_ST_DISK_ADDR, 7));
	assert_true(fix_is_readable(a.addr));  /* its memory is another replica */
	fix_say_free(f.m, MC_ST_DISK_ADDR, 7); /* not there: said at once */
	fix_until(f.m, f.m->nfreed == 2);
	fix_close(&f);
	(void)state;
}

static void a_free_waits_for_a_record_that_nobody_knows(void **state)
{
	struct mc_owner_disk_job job;
	struct mc_st_granted a;
	struct fix f;

	fix_open(&f, with_disk());
	/* While it is written. */
	job = put(&f, "a", 1, &a);
	fix_say_free(f.m, a.addr, 1);
	until_cleared(a.addr);
	mc_owner_disk_done(f.o, &job, 0);
	job = take(&f, MC_OWNER_DISK_DELETE, 1);
	assert_int_equal(freed(&f), 0);
	mc_owner_disk_done(f.o, &job, 0);
	fix_until(f.m, f.m->nfreed == 1);
	assert_true(was_freed(&f, 0, a.addr, 1));
	assert_int_equal(f.m->notes[MC_ST_NOTE_MORE], 0);
	/* The write fails: there is nothing to wait for. */
	job = put(&f, "b", 2, &a);
	fix_say_free(f.m, a.addr, 2);
	until_cleared(a.addr);
	assert_int_equal(freed(&f), 1);
	mc_owner_disk_done(f.o, &job, -MC_E_IO);
	fix_until(f.m, f.m->nfreed == 2);
	assert_true(was_freed(&f, 1, a.addr, 2));
	/* Told, but the master has not said that it heard. */
	f.m->is_silent = true;
	put_on_disk(&f, "c", 3, &a);
	fix_say_free(f.m, a.addr, 3);
	job = take(&f, MC_OWNER_DISK_DELETE, 3);
	assert_int_equal(freed(&f), 2);
	mc_owner_disk_done(f.o, &job, 0);
	fix_until(f.m, f.m->nfreed == 3);
	/* Known: the record is the master's to free. */
	f.m->is_silent = false;
	put_on_disk(&f, "d", 4, &a);
	fix_say_free(f.m, a.addr, 4);
	fix_until(f.m, f.m->nfreed == 4);
	nothing_to_do(&f);
	fix_close(&f);
	(void)state;
}

struct fetcher {
	struct fix *f;
	struct mc_rpc_conn *conn;
	uint64_t gen;
	bool is_kept;
	struct mc_st_granted ret;
	pthread_t thread;
};

static void *fetch(void *arg)
{
	struct fetcher *x = arg;
	uint8_t buf[64], reply[64];
	struct mc_wr w = mc_wr_make(buf, sizeof(buf));
	struct mc_st_place place = {x->is_kept ? MC_ST_DISK_KEEP : MC_ST_DISK_ADDR, x->gen};
	struct mc_rd rd;

	mc_wr_u32(&w, 1);
	mc_st_place_encode(&w, &place);
	assert_int_equal(
	    fix_call(x->conn, MC_ST_FETCH, buf, mc_wr_len(&w), reply, sizeof(reply), FIX_SOON_NS),
	    0);
	rd = mc_rd_make(reply, sizeof(reply));
	assert_int_equal(mc_rd_u32(&rd), 1);
	mc_st_granted_decode(&rd, &x->ret);
	return NULL;
}

static void fetch_start(struct fix *f, struct fetcher *x, uint64_t gen, bool is_kept)
{
	*x = (struct fetcher){
	    .f = f, .conn = fix_connect(f->loop, f->o), .gen = gen, .is_kept = is_kept};
	assert_int_equal(pthread_create(&x->thread, NULL, fetch, x), 0);
}

static void fetch_begin(struct fix *f, struct fetcher *x, uint64_t gen)
{
	fetch_start(f, x, gen, false);
}

static int32_t fetch_end(struct fetcher *x)
{
	assert_int_equal(pthread_join(x->thread, NULL), 0);
	mc_rpc_conn_close(x->conn);
	return x->ret.status;
}

static void what_is_fetched_is_in_memory_again(void **state)
{
	struct mc_owner_disk_job job;
	struct mc_st_granted a;
	struct fetcher x[2];
	struct fix f;

	fix_open(&f, with_disk());
	put_on_disk(&f, "a", 5, &a);
	fix_say_free(f.m, a.addr, 5);
	fix_until(f.m, f.m->nfreed == 1);
	fetch_begin(&f, &x[0], 5);
	job = take(&f, MC_OWNER_DISK_READ, 5);
	fetch_start(&f, &x[1], 5, true);
	nothing_to_do(&f); /* one read for both */
	memset(job.payload, 5, LEN);
	mc_owner_disk_done(f.o, &job, 0);
	assert_int_equal(fetch_end(&x[0]), 0);
	assert_int_equal(fetch_end(&x[1]), 0);
	assert_true(x[0].ret.addr == x[1].ret.addr);
	assert_true(x[0].ret.incarnation == f.incarnation);
	fix_check(x[0].ret.addr, "a", 5, LEN, 5);
	fix_until(f.m, f.m->nhas == 2);
	assert_true(f.m->has[1].gen == 5 && f.m->has[1].addr == x[0].ret.addr);
	nothing_to_do(&f); /* it is on the disk */
	fetch_begin(&f, &x[0], 5);
	assert_int_equal(fetch_end(&x[0]), 0);
	/* The master knows both, and frees one. */
	fix_say_free(f.m, MC_ST_DISK_ADDR, 5);
	job = take(&f, MC_OWNER_DISK_DELETE, 5);
	mc_owner_disk_done(f.o, &job, 0);
	fix_until(f.m, f.m->nfreed == 2);
	assert_true(fix_is_readable(x[1].ret.addr));
	fix_close(&f);
	(void)state;
}

static struct mc_owner_stats stats_of(struct fix *f)
{
	struct mc_owner_stats s;

	mc_owner_stats(f->o, &s);
	return s;
}

/* In memory as a guest. */
static uint64_t visit(struct fix *f, uint64_t gen)
{
	struct mc_owner_disk_job job;
	struct fetcher x;

	fetch_begin(f, &x, gen);
	job = take(f, MC_OWNER_DISK_READ, gen);
	memset(job.payload, (int)gen, LEN);
	mc_owner_disk_done(f->o, &job, 0);
	assert_int_equal(fetch_end(&x), 0);
	return x.ret.addr;
}

static void a_guest_makes_room_for_others(void **state)
{
	struct mc_owner_view view;
	struct mc_st_granted a;
	struct fetcher x;
	struct fix f;
	uint64_t at;

	fix_open(&f, with_disk());
	put_on_disk(&f, "a", 500, &a);
	put_on_disk(&f, "b", 501, &a);
	fix_say_free(f.m, a.addr, 501);
	fix_until(f.m, f.m->nfreed == 1);
	at = visit(&f, 501);
	fix_check(at, "b", 501, LEN, 501 & 0xff);
	nothing_to_do(&f);
	assert_int_equal(f.m->nhas, 2); /* the master is told nothing */
	assert_true(stats_of(&f).guests > LEN);
	assert_true(stats_of(&f).used < 2 * LEN);
	fetch_begin(&f, &x, 501); /* it is still there */
	assert_int_equal(fetch_end(&x), 0);
	assert_true(x.ret.addr == at);
	assert_int_equal(mc_owner_pin(f.o, at, 501, &view), 0);
	mc_owner_unpin(f.o, &view);
	/* There is room for all of these once it has gone. */
	for (uint64_t gen = 1; stats_of(&f).guests > 0; gen++) {
		assert_true(gen <= POOL / LEN);
		assert_int_equal(fix_put_one(&f, "k", gen, LEN, payload, &a), 0);
	}
	assert_int_equal(mc_owner_pin(f.o, at, 501, &view), -MC_E_NOENT);
	fix_close(&f);
	(void)state;
}

static void a_guest_that_is_kept_is_told(void **state)
{
	struct mc_owner_disk_job job;
	struct mc_st_granted a;
	struct fetcher x;
	struct fix f;
	uint64_t at;

	fix_open(&f, with_disk());
	put_on_disk(&f, "a", 5, &a);
	fix_say_free(f.m, a.addr, 5);
	fix_until(f.m, f.m->nfreed == 1);
	at = visit(&f, 5);
	nothing_to_do(&f);
	assert_int_equal(f.m->nhas, 1);
	fetch_start(&f, &x, 5, true);
	assert_int_equal(fetch_end(&x), 0);
	fix_until(f.m, f.m->nhas == 2);
	assert_true(x.ret.addr == at && f.m->has[1].addr == at && f.m->has[1].gen == 5);
	assert_int_equal(stats_of(&f).guests, 0);
	assert_true(stats_of(&f).used > LEN);
	/* A guest goes with its record. */
	put_on_disk(&f, "b", 6, &a);
	fix_say_free(f.m, a.addr, 6);
	fix_until(f.m, f.m->nfreed == 2);
	at = visit(&f, 6);
	fix_say_free(f.m, MC_ST_DISK_ADDR, 6);
	job = take(&f, MC_OWNER_DISK_DELETE, 6);
	assert_false(fix_is_readable(at));
	mc_owner_disk_done(f.o, &job, 0);
	fix_until(f.m, f.m->nfreed == 3);
	assert_int_equal(stats_of(&f).guests, 0);
	fix_close(&f);
	(void)state;
}

static void what_is_removed_while_it_is_fetched_is_gone(void **state)
{
	struct mc_owner_disk_job job;
	struct mc_st_granted a;
	struct fetcher x;
	struct fix f;

	fix_open(&f, with_disk());
	put_on_disk(&f, "a", 5, &a);
	fix_say_free(f.m, a.addr, 5);
	fix_until(f.m, f.m->nfreed == 1);
	fetch_begin(&f, &x, 5);
	job = take(&f, MC_OWNER_DISK_READ, 5);
	fix_say_free(f.m, MC_ST_DISK_ADDR, 5);
	nothing_to_do(&f); /* its key is being read */
	memset(job.payload, 5, LEN);
	mc_owner_disk_done(f.o, &job, 0);
	assert_int_equal(fetch_end(&x), MC_STORE_REPLICA_IS_GONE);
	job = take(&f, MC_OWNER_DISK_DELETE, 5);
	mc_owner_disk_done(f.o, &job, 0);
	fix_until(f.m, f.m->nfreed == 2);
	assert_int_equal(f.m->nhas, 1);
	fix_close(&f);
	(void)state;
}

static void a_fetch_that_fails_says_why(void **state)
{
	const struct {
		int rc;
		int32_t status;
	} ends[] = {{-MC_E_CORRUPT, MC_STORE_CHECKSUM_MISMATCH},
		    {-MC_E_NOENT, MC_STORE_REPLICA_NOT_FOUND},
		    {-MC_E_IO, MC_STORE_TRANSFER_FAIL}};
	struct mc_owner_disk_job job;
	struct mc_owner_stats stats;
	struct mc_st_granted a;
	struct fetcher x;
	struct fix f;

	fix_open(&f, with_disk());
	put_on_disk(&f, "a", 5, &a);
	fix_say_free(f.m, a.addr, 5);
	fix_until(f.m, f.m->nfreed == 1);
	for (unsigned i = 0; i < MC_ARRAY_LEN(ends); i++) {
		fetch_begin(&f, &x, 5);
		job = take(&f, MC_OWNER_DISK_READ, 5);
		mc_owner_disk_done(f.o, &job, ends[i].rc);
		assert_int_equal(fetch_end(&x), ends[i].status);
	}
	fetch_begin(&f, &x, 6);
	assert_int_equal(fetch_end(&x), MC_STORE_REPLICA_NOT_FOUND);
	mc_owner_stats(f.o, &stats);
	assert_int_equal(stats.used, 0);
	/* One that nobody reads any more. */
	fetch_begin(&f, &x, 5);
	(void)take(&f, MC_OWNER_DISK_READ, 5);
	fix_say_free(f.m, MC_ST_DISK_ADDR, 99);
	fix_until(f.m, f.m->nfreed == 2);
	mc_owner_disk_end(f.o);
	mc_owner_close(f.o);
	f.o = NULL;
	(void)pthread_join(x.thread, NULL);
	assert_true(x.ret.status < 0);
	mc_rpc_conn_close(x.conn);
	fix_close(&f);
	(void)state;
}

static void say_no_room_on_disk(struct fix *f)
{
	const struct mc_st_space v = {.kind = MC_ST_DISK};
	uint8_t body[64];
	struct mc_wr w = mc_wr_make(body, sizeof(body));

	mc_st_space_encode(&w, &v);
	pthread_mutex_lock(&f->m->lock);
	fix_say(f->m, MC_ST_NOTE_NO_ROOM, body, mc_wr_len(&w));
	pthread_mutex_unlock(&f->m->lock);
}

static void a_full_disk_asks_for_room(void **state)
{
	struct mc_owner_disk_job job;
	struct mc_st_granted a;
	struct fix f;

	fix_open(&f, with_disk());
	job = put(&f, "a", 1, &a);
	mc_owner_disk_done(f.o, &job, -MC_E_NOSPACE);
	fix_until(f.m, f.m->want.kind == MC_ST_DISK && f.m->want.want >= LEN);
	job = take(&f, MC_OWNER_DISK_WRITE, 1); /* once more */
	mc_owner_disk_done(f.o, &job, -MC_E_NOSPACE);
	fix_until(f.m, f.m->notes[MC_ST_NOTE_WANT] == 2);
	say_no_room_on_disk(&f);
	until_failed(f.o);
	nothing_to_do(&f);
	assert_true(fix_is_readable(a.addr));
	mc_owner_disk_space(f.o, 0, 0); /* the disk is broken */
	assert_int_equal(fix_put_one(&f, "b", 2, LEN, payload, &a), 0);
	nothing_to_do(&f);
	fix_close(&f);
	(void)state;
}

static void what_is_not_asked_for_is_not_written(void **state)
{
	struct mc_owner_disk_job job;
	struct mc_st_granted a, b;
	struct fix f;

	fix_welcome_flags = MC_ST_OFFLOAD_ASKED;
	fix_open(&f, with_disk());
	memset(payload, 1, sizeof(payload));
	assert_int_equal(fix_put_one(&f, "a", 1, LEN, payload, &a), 0);
	assert_int_equal(fix_put_one(&f, "b", 2, LEN, payload, &b), 0);
	nothing_to_do(&f);
	fix_say_place(f.m, MC_ST_NOTE_OFFLOAD, b.addr, 2);
	fix_say_place(f.m, MC_ST_NOTE_OFFLOAD, b.addr, 2); /* once is enough */
	fix_say_place(f.m, MC_ST_NOTE_OFFLOAD, a.addr, 2); /* not there */
	job = take(&f, MC_OWNER_DISK_WRITE, 2);
	mc_owner_disk_done(f.o, &job, -MC_E_NOSPACE);
	fix_until(f.m, f.m->want.kind == MC_ST_DISK && f.m->want.want >= LEN);
	job = take(&f, MC_OWNER_DISK_WRITE, 2); /* once more */
	mc_owner_disk_done(f.o, &job, 0);
	fix_until(f.m, f.m->nhas == 1);
	assert_true(f.m->has[0].gen == 2 && f.m->has[0].addr == MC_ST_DISK_ADDR);
	nothing_to_do(&f);
	/* Of two that are asked for the one that has gone is left out. */
	assert_int_equal(fix_put_one(&f, "c", 3, LEN, payload, &b), 0);
	fix_say_free(f.m, a.addr, 1);
	fix_say_place(f.m, MC_ST_NOTE_OFFLOAD, a.addr, 1);
	fix_say_place(f.m, MC_ST_NOTE_OFFLOAD, b.addr, 3);
	job = take(&f, MC_OWNER_DISK_WRITE, 3);
	mc_owner_disk_done(f.o, &job, -MC_E_NOSPACE);
	say_no_room_on_disk(&f); /* it stays in memory alone until it is asked for again */
	until_failed(f.o);
	nothing_to_do(&f);
	fix_say_place(f.m, MC_ST_NOTE_OFFLOAD, b.addr, 3);
	job = take(&f, MC_OWNER_DISK_WRITE, 3);
	mc_owner_disk_done(f.o, &job, 0);
	fix_until(f.m, f.m->nhas == 2);
	fix_close(&f);
	fix_welcome_flags = 0;
	(void)state;
}

/* The log takes a generation that was deleted never again, so nothing is written too early. */
static void what_is_committed_late_is_written_then(void **state)
{
	struct mc_owner_disk_job job;
	struct mc_st_granted a;
	struct mc_st_regen r;
	struct fix f;

	fix_open(&f, with_disk());
	f.m->is_uncommitted = true;
	memset(payload, 1, sizeof(payload));
	assert_int_equal(fix_put_one(&f, "a", 1, LEN, payload, &a), 0);
	fix_until(f.m, f.m->notes[MC_ST_NOTE_DUE] >= 3);
	nothing_to_do(&f);
	f.m->is_uncommitted = false;
	job = take(&f, MC_OWNER_DISK_WRITE, 1);
	mc_owner_disk_done(f.o, &job, 0);
	fix_until(f.m, f.m->nhas == 1);
	assert_true(f.m->has[0].gen == 1 && f.m->has[0].addr == MC_ST_DISK_ADDR);
	/* Under another name meanwhile. */
	f.m->is_uncommitted = true;
	assert_int_equal(fix_put_one(&f, "b", 2, LEN, payload, &a), 0);
	pthread_mutex_lock(&f.m->lock);
	f.m->notes[MC_ST_NOTE_DUE] = 0;
	pthread_mutex_unlock(&f.m->lock);
	fix_until(f.m, f.m->notes[MC_ST_NOTE_DUE] >= 1);
	r = (struct mc_st_regen){a.addr, 2, 3};
	assert_int_equal(mc_owner_regen(f.o, &r), 0);
	f.m->is_uncommitted = false;
	job = take(&f, MC_OWNER_DISK_WRITE, 3);
	assert_int_equal(mc_owner_disk_check(f.o, &job), 0);
	mc_owner_disk_done(f.o, &job, 0);
	fix_until(f.m, f.m->nhas == 2);
	nothing_to_do(&f);
	fix_close(&f);
	(void)state;
}

static void *flush(void *arg)
{
	struct fix *f = arg;

	return mc_owner_disk_flush(f->o, mc_now_ns() + FIX_SOON_NS) ? f : NULL;
}

static void an_owner_that_ends_writes_all_that_it_has(void **state)
{
	struct mc_owner_disk_job job;
	struct mc_st_granted a;
	pthread_t thread;
	struct fix f;
	void *ret;

	fix_open(&f, with_disk());
	f.m->is_uncommitted = true;
	memset(payload, 1, sizeof(payload));
	for (uint64_t gen = 1; gen <= 3; gen++)
		assert_int_equal(fix_put_one(&f, "k", gen, LEN, payload, &a), 0);
	fix_until(f.m, f.m->notes[MC_ST_NOTE_DUE] >= 2);
	assert_int_equal(pthread_create(&thread, NULL, flush, &f), 0);
	for (uint64_t gen = 1; gen <= 3; gen++) {
		job = take(&f, MC_OWNER_DISK_WRITE, gen);
		mc_owner_disk_done(f.o, &job, 0);
	}
	nothing_to_do(&f);
	assert_int_equal(pthread_join(thread, &ret), 0);
	assert_ptr_equal(ret, &f);
	fix_close(&f);
	(void)state;
}

enum { RECORDS = 3000 };

static void tell_records(struct mc_owner *o)
{
	char key[16];

	for (unsigned i = 0; i < RECORDS; i++) {
		(void)snprintf(key, sizeof(key), "k%u", i);
		const struct mc_st_grant g = fix_grant(key, i + 1, LEN, NULL);

		assert_int_equal(mc_owner_disk_has(o, &g), 0);
		assert_int_equal(mc_owner_disk_has(o, &g), -MC_E_INVAL);
	}
}

static void records_of_an_earlier_life_are_announced(void **state)
{
	struct mc_owner_disk_job job;
	struct fetcher x;
	struct fix f;

	fix_open_with(&f, with_disk(), tell_records);
	assert_int_equal(f.m->nhas, RECORDS);
	for (unsigned i = 0; i < RECORDS; i++) {
		assert_true(f.m->has[i].gen == RECORDS - i);
		assert_true(f.m->has[i].addr == MC_ST_DISK_ADDR);
	}
	fetch_begin(&f, &x, 17);
	job = take(&f, MC_OWNER_DISK_READ, 17);
	assert_memory_equal(job.key, "k16", 3);
	memset(job.payload, 1, LEN);
	mc_owner_disk_done(f.o, &job, 0);
	assert_int_equal(fetch_end(&x), 0);
	fix_check(x.ret.addr, "k16", 17, LEN, 1);
	fix_close(&f);
	(void)state;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(what_is_sealed_is_written_told_and_deleted),
	    cmocka_unit_test(a_free_waits_for_a_record_that_nobody_knows),
	    cmocka_unit_test(what_is_fetched_is_in_memory_again),
	    cmocka_unit_test(a_guest_makes_room_for_others),
	    cmocka_unit_test(a_guest_that_is_kept_is_told),
	    cmocka_unit_test(what_is_removed_while_it_is_fetched_is_gone),
	    cmocka_unit_test(a_fetch_that_fails_says_why),
	    cmocka_unit_test(a_full_disk_asks_for_room),
	    cmocka_unit_test(what_is_not_asked_for_is_not_written),
	    cmocka_unit_test(what_is_committed_late_is_written_then),
	    cmocka_unit_test(an_owner_that_ends_writes_all_that_it_has),
	    cmocka_unit_test(records_of_an_earlier_life_are_announced),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
