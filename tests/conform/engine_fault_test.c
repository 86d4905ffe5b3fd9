/*
 * engine_fault_test.c: two engines, and between them everything that can go wrong on a path: lanes
 * that drop, reorder and break (fault.h), through a relay that cuts, delays and resets the stream
 * and delivers bytes of lanes that are long gone (relay.h).
 *
 * Every group ends by its deadline; one that ends well has moved exactly its bytes; and whatever
 * its end, nothing of it lands afterwards, unless the end was MC_E_UNFENCED.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/rand.h"
#include "engine/priv.h"
#include "fault.h"
#include "relay.h"

#define CELLS 64u /* independent pieces of both memories */
#define CELL_BYTES (128u << 10)
#define BYTES (CELLS * CELL_BYTES)
#define GROUP 24u
#define DEADLINE_NS (4 * MC_NS_PER_S)
#define LATE_NS MC_NS_PER_S
#define BEAT_NS (10 * MC_NS_PER_MS)

static struct mc_engine *a, *b; /* initiator, target */
static struct mc_xdev *fault;
static struct relay *relay;
static struct mc_addr via;
static uint8_t *local, *remote, *shadow, *local_shadow;
static int32_t seg;
static struct mc_rand rnd;
static unsigned rounds = 60, ended_well, ended_badly, unfenced;

/* A busy virtual machine may stand still for seconds: how long it did is measured, by a thread that
 * wants to run every 10 ms, and only that is added to what the contract says. */
static _Atomic uint64_t stood_ns; /* in all */
static _Atomic bool is_over;
static pthread_t heart;

static void *beat(void *arg)
{
	(void)arg;
	while (!atomic_load(&is_over)) {
		uint64_t at = mc_now_ns(), took_ns;

		(void)nanosleep(&(struct timespec){.tv_nsec = BEAT_NS}, NULL);
		took_ns = mc_now_ns() - at;
		if (took_ns > 2 * BEAT_NS)
			atomic_fetch_add(&stood_ns, took_ns - BEAT_NS);
	}
	return NULL;
}

static void nothing(void *arg)
{
	(void)arg;
}

static void nap(uint64_t ns)
{
	(void)nanosleep(&(struct timespec){.tv_nsec = (long)ns}, NULL);
}

/* What the target's loops wrote is seen. */
static void settle(void)
{
	for (unsigned i = 0; i < b->nloops; i++)
		mc_loop_call(b->loops[i], nothing, NULL);
}

static void fill(uint8_t *at, size_t len)
{
	for (size_t i = 0; i < len; i += 8) {
		uint64_t v = mc_rand_u64(&rnd);

		memcpy(at + i, &v, 8);
	}
}

static int setup(void **state)
{
	struct mc_engine_opts opts = {.size = sizeof(opts), .name = "127.0.0.1"};
	struct relay_opts ro = {.seed = 21,
				.tiny = 40,
				.piece_max = 30000,
				.reset_bytes = 4u << 20,
				.delay_ns = MC_NS_PER_MS / 2,
				.buffer_bytes = 8u << 20};
	struct mc_fault_opts fo = {.seed = 22,
				   .refuse = 200,
				   .idle = 100,
				   .hold = 200,
				   .hold_polls = 4,
				   .drop = 2,
				   .lane_break = 5,
				   .is_inner_kept = true,
				   .via = &via};
	struct mc_addr to;

	(void)state;
	assert_int_equal(pthread_create(&heart, NULL, beat, NULL), 0);
	(void)setenv("MC_FORCE_TCP", "1", 1);
	mc_rand_seed(&rnd, 20);
	local = mc_aligned_alloc(4096, BYTES);
	remote = mc_aligned_alloc(4096, BYTES);
	shadow = mc_aligned_alloc(4096, BYTES);
	local_shadow = mc_aligned_alloc(4096, BYTES);
	assert_true(local && remote && shadow && local_shadow);
	assert_int_equal(mc_engine_open(&opts, NULL, &a), 0);
	assert_int_equal(mc_engine_open(&opts, NULL, &b), 0);
	assert_int_equal(mc_addr_parse("127.0.0.1", mc_tcp_dev_port(b->tcp), &to), 0);
	assert_int_equal(relay_open(&to, &ro, &relay), 0);
	via = *relay_addr(relay);
	assert_int_equal(mc_fault_dev_open(a->tcp, &fo, &fault), 0);
	a->lanes_from = fault;
	assert_int_equal(mc_mem_reg(b, remote, BYTES, NULL, 3), 0);
	assert_int_equal(mc_segment_open(a, mc_engine_name(b), 0, NULL, &seg), 0);
	fill(remote, BYTES);
	memcpy(shadow, remote, BYTES);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	atomic_store(&is_over, true);
	assert_int_equal(pthread_join(heart, NULL), 0);
	mc_engine_close(a);
	fault->ops->dev_close(fault);
	relay_close(relay);
	mc_engine_close(b);
	mc_free(local);
	mc_free(remote);
	mc_free(shadow);
	mc_free(local_shadow);
	return 0;
}

/* One group over cells of its own. */
struct flight {
	struct mc_transfer t[GROUP];
	struct mc_iov l[GROUP], r[GROUP];
	unsigned cell[GROUP];
	unsigned n;
	uint64_t id, begin_ns, stood_ns;
};

static void flight_make(struct flight *f, unsigned first_cell, unsigned n)
{
	memset(f, 0, sizeof(*f));
	f->n = n;
	for (unsigned i = 0; i < n; i++) {
		unsigned cell = first_cell + i;
		uint64_t off = cell * CELL_BYTES + mc_rand_below(&rnd, 1000);
		uint64_t len = 1 + mc_rand_below(&rnd, mc_rand_below(&rnd, 4) ? 5000 : 120000);

		f->cell[i] = cell;
		f->l[i] = (struct mc_iov){(uintptr_t)local + off, len};
		f->r[i] = (struct mc_iov){(uintptr_t)remote + off, len};
		f->t[i] = (struct mc_transfer){.op = mc_rand_below(&rnd, 3) ? MC_WRITE : MC_READ,
					       .segment = seg,
					       .nlocal = 1,
					       .nremote = 1,
					       .local = &f->l[i],
					       .remote = &f->r[i]};
	}
}

static struct mc_group group_of(const struct flight *f)
{
	return (struct mc_group){.size = sizeof(struct mc_group),
				 .n = f->n,
				 .transfers = f->t,
				 .deadline_ns = DEADLINE_NS,
				 .priority = MC_PRIO_NORMAL};
}

static void flight_begin(struct flight *f)
{
	f->begin_ns = mc_now_ns();
	f->stood_ns = atomic_load(&stood_ns);
}

/* The group is over: both memories are what its end says. */
static void flight_check(const struct flight *f, int status, const char *text)
{
	uint64_t took_ns = mc_now_ns() - f->begin_ns;

	nap(2 * BEAT_NS); /* the heart has beaten since */
	assert_true(took_ns < DEADLINE_NS + LATE_NS + atomic_load(&stood_ns) - f->stood_ns);
	settle();
	if (status < 0) {
		ended_badly++;
		unfenced += status == -MC_E_UNFENCED;
		print_message("ended as %s: %s\n", mc_err_name(status), text);
	} else {
		ended_well++;
	}
	for (unsigned i = 0; i < f->n; i++) {
		size_t off = (size_t)f->cell[i] * CELL_BYTES;
		size_t at = (size_t)(f->l[i].addr - (uintptr_t)local), len = (size_t)f->l[i].len;

		if (status < 0) { /* parts may be there: what is there now must stay */
			memcpy(shadow + at, remote + at, len);
			memcpy(local_shadow + at, local + at, len);
		} else if (f->t[i].op == MC_WRITE) {
			memcpy(shadow + at, local + at, len);
		} else {
			memcpy(local_shadow + at, shadow + at, len);
		}
		assert_memory_equal(remote + off, shadow + off, CELL_BYTES);
		assert_memory_equal(local + off, local_shadow + off, CELL_BYTES);
	}
}

/* All of both memories; after an unfenced end the target's is nobody's to promise. */
static void memories_check(void)
{
	settle();
	if (unfenced == 0)
		assert_memory_equal(remote, shadow, BYTES);
	assert_memory_equal(local, local_shadow, BYTES);
}

/* What the tap of a group was shown, and of each byte how often since it began anew. */
static struct shown {
	uint8_t bytes[GROUP][CELL_BYTES], times[GROUP][CELL_BYTES];
} shown;
static uint64_t bytes_shown;
static unsigned begun_anew, wrongly_shown;

/* Within the engine a failed assertion would not come back. */
static void on_copy(void *user, uint32_t t, uint64_t at, void *dst, const void *src, size_t n)
{
	(void)user, (void)t, (void)at, (void)dst, (void)src, (void)n;
	wrongly_shown++; /* TCP copies nothing in memory */
}

static void on_passed(void *user, uint32_t t, uint64_t at, const void *bytes, size_t n)
{
	const struct flight *f = user;

	if (t >= f->n || at >= f->l[t].len || n > f->l[t].len - at ||
	    (uintptr_t)bytes != f->l[t].addr + at) {
		wrongly_shown++;
		return;
	}
	memcpy(&shown.bytes[t][at], bytes, n);
	for (size_t i = 0; i < n; i++)
		wrongly_shown += ++shown.times[t][at + i] != 1;
}

static void on_again(void *user, uint32_t t)
{
	(void)user;
	memset(shown.times[t], 0, CELL_BYTES);
	begun_anew++;
}

/* What counts of it is what is there in the end. */
static void shown_check(const struct flight *f)
{
	for (unsigned t = 0; t < f->n; t++)
		for (size_t i = 0; i < f->l[t].len; i++) {
			if (!shown.times[t][i])
				continue;
			bytes_shown++;
			assert_int_equal(shown.bytes[t][i], ((uint8_t *)f->l[t].addr)[i]);
		}
}

static void waited_for(struct flight *f)
{
	struct mc_tap tap = {f, on_copy, on_passed, on_again};
	struct mc_group g = group_of(f);
	struct mc_diag diag = {""};
	int rc;

	memset(shown.times, 0, sizeof(shown.times));
	g.tap = &tap;
	flight_begin(f);
	rc = mc_transfer_sync(a, &g, &diag);
	flight_check(f, rc, diag.text);
	assert_int_equal(wrongly_shown, 0);
	if (rc == 0)
		shown_check(f);
}

static void submitted(struct flight *flights, unsigned n)
{
	for (unsigned i = 0; i < n; i++) {
		struct mc_group g = group_of(&flights[i]);

		flight_begin(&flights[i]);
		assert_int_equal(mc_submit(a, &g, &flights[i].id), 0);
	}
	for (unsigned i = 0; i < n; i++) {
		struct mc_diag diag = {""};
		struct mc_status st;

		assert_int_equal(mc_group_wait(a, flights[i].id, 10 * DEADLINE_NS, &st), 0);
		(void)mc_group_diag(a, flights[i].id, &diag);
		assert_int_equal(mc_group_free(a, flights[i].id), 0);
		flight_check(&flights[i], st.status, diag.text);
	}
}

static void a_storm_ends_every_group_and_nothing_lands_late(void **state)
{
	struct mc_fault_stats *st = mc_fault_dev_stats(fault);
	static struct flight flights[3];
	uint64_t end_ns = mc_now_ns() + 10 * MC_NS_PER_S;
	struct relay_stats rs;

	(void)state;
	for (unsigned i = 0; i < rounds; i++) {
		fill(local, BYTES); /* other bytes than any before */
		memcpy(local_shadow, local, BYTES);
		if (i % 2) {
			flight_make(&flights[0], (unsigned)mc_rand_below(&rnd, CELLS - GROUP),
				    GROUP);
			waited_for(&flights[0]);
		} else {
			for (unsigned k = 0; k < 3; k++)
				flight_make(&flights[k], k * 20,
					    1 + (unsigned)mc_rand_below(&rnd, 20));
			submitted(flights, 3);
		}
		memories_check();
	}
	mc_segment_close(a, seg);
	do { /* until the relay has delivered what it will */
		relay_stats(relay, &rs);
		nap(MC_NS_PER_MS);
	} while (rs.open > 0 && mc_now_ns() < end_ns);
	memories_check();
	print_message(
	    "groups: %u well, %u not (%u unfenced); lanes broken %llu, slices dropped %llu, "
	    "resets %u, late bytes %llu\n",
	    ended_well, ended_badly, unfenced, (unsigned long long)st->broken,
	    (unsigned long long)st->dropped, rs.resets, (unsigned long long)rs.late_bytes);
	assert_true(st->broken > 0 && st->dropped > 0 && st->held > 0 && rs.resets > 0);
	assert_true(ended_well > 9 * ended_badly);
	assert_true(bytes_shown > 0 && begun_anew > 0);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test_setup_teardown(a_storm_ends_every_group_and_nothing_lands_late, setup,
					    teardown),
	};

	if ((argc > 1 && strcmp(argv[1], "--long") == 0) || getenv("CONFORM_LONG"))
		rounds = 2000;
	return cmocka_run_group_tests(tests, NULL, NULL);
}
