/*
 * region_test.c: boundaries of pinning, counting of registrations, and unregistration raced against
 * access.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/err.h"
#include "base/mem.h"
#include "xport/region.h"

#define RW (MC_RIGHT_READ | MC_RIGHT_WRITE)

static struct mc_region_table *table;
static int64_t live_before;

static int table_setup(void **state)
{
	(void)state;
	live_before = mc_mem_live();
	return mc_region_table_open(&table);
}

static int table_teardown(void **state)
{
	(void)state;
	mc_region_table_close(table);
	return mc_mem_live() == live_before ? 0 : -1;
}

static int add(uint64_t addr, uint64_t len, uint32_t rights, struct mc_region_info *info)
{
	struct mc_region_desc desc = {.addr = addr, .len = len, .rights = rights};
	memcpy(desc.location, "cpu:0", sizeof("cpu:0"));
	return mc_region_add(table, &desc, info);
}

static int pin(const struct mc_region_info *info, uint64_t off, uint64_t len, enum mc_right right)
{
	void *ptr = NULL;
	int rc = mc_region_pin(table, info->id, info->gen, off, len, right, &ptr);

	if (rc == 0) {
		assert_ptr_equal(ptr, (void *)(uintptr_t)(info->desc.addr + off));
		mc_region_unpin(table, info->id);
	}
	return rc;
}

static void pin_gives_every_byte_inside_and_none_outside(void **state)
{
	static const uint64_t edge[] = {0,
					1,
					4095,
					4096,
					4097,
					UINT32_MAX,
					INT64_MAX,
					(uint64_t)INT64_MAX + 1,
					UINT64_MAX - 4096,
					UINT64_MAX - 4095,
					UINT64_MAX - 1,
					UINT64_MAX};
	static const uint64_t base[] = {0x10000, 0, UINT64_MAX - 4096};
	struct mc_region_info info;
	uint32_t id;
	bool fits;

	for (size_t b = 0; b < MC_ARRAY_LEN(base); b++) {
		assert_int_equal(add(base[b], 4096, RW, &info), 0);
		for (size_t i = 0; i < MC_ARRAY_LEN(edge); i++) {
			for (size_t j = 0; j < MC_ARRAY_LEN(edge); j++) {
				fits = edge[j] > 0 && edge[i] <= 4096 && edge[j] <= 4096 - edge[i];
				assert_int_equal(pin(&info, edge[i], edge[j], MC_RIGHT_READ),
						 fits ? 0 : -MC_E_RANGE);
				if (edge[i] > UINT64_MAX - base[b])
					continue;
				assert_int_equal(mc_region_pin_addr(table, base[b] + edge[i],
								    edge[j], MC_RIGHT_READ, &id),
						 fits ? 0 : -MC_E_RANGE);
				if (fits)
					mc_region_unpin(table, id);
			}
		}
		assert_int_equal(pin(&info, 0, 4096, MC_RIGHT_WRITE), 0);
		assert_int_equal(mc_region_pin_addr(table, base[b] - 1, 2, MC_RIGHT_READ, &id),
				 -MC_E_RANGE);
		assert_int_equal(mc_region_del(table, base[b]), 0);
	}
	(void)state;
}

static void add_refuses_what_is_no_range(void **state)
{
	struct mc_region_info info;
	struct mc_region_desc endless = {.addr = 4096, .len = 4096, .rights = RW};
	struct mc_region_desc odd_kind = {
	    .addr = 4096, .len = 4096, .rights = RW, .kind = MC_MEM_KIND_COUNT};

	memset(endless.location, 'x', sizeof(endless.location));
	assert_int_equal(add(4096, 0, RW, &info), -MC_E_INVAL);
	assert_int_equal(add(UINT64_MAX, 1, RW, &info), -MC_E_INVAL);
	assert_int_equal(add(1, UINT64_MAX, RW, &info), -MC_E_INVAL);
	assert_int_equal(add(4096, 4096, 4, &info), -MC_E_INVAL);
	assert_int_equal(mc_region_add(table, &endless, &info), -MC_E_INVAL);
	assert_int_equal(mc_region_add(table, &odd_kind, &info), -MC_E_INVAL);
	assert_int_equal(mc_region_count(table), 0);
	(void)state;
}

static void pin_needs_the_right_that_was_given(void **state)
{
	struct mc_region_info ro, wo, none;
	uint32_t id;

	assert_int_equal(add(0x10000, 4096, MC_RIGHT_READ, &ro), 0);
	assert_int_equal(add(0x20000, 4096, MC_RIGHT_WRITE, &wo), 0);
	assert_int_equal(add(0x30000, 4096, 0, &none), 0);
	assert_int_equal(pin(&ro, 0, 8, MC_RIGHT_READ), 0);
	assert_int_equal(pin(&ro, 0, 8, MC_RIGHT_WRITE), -MC_E_PERM);
	assert_int_equal(pin(&wo, 0, 8, MC_RIGHT_WRITE), 0);
	assert_int_equal(pin(&wo, 0, 8, MC_RIGHT_READ), -MC_E_PERM);
	assert_int_equal(pin(&none, 0, 8, MC_RIGHT_READ), -MC_E_PERM);
	assert_int_equal(mc_region_pin_addr(table, 0x10000, 8, MC_RIGHT_WRITE, &id), -MC_E_PERM);
	(void)state;
}

static void pin_refuses_ids_and_generations_it_did_not_give(void **state)
{
	struct mc_region_info info, again, bad;

	assert_int_equal(add(0x10000, 4096, RW, &info), 0);
	assert_int_not_equal(info.gen, 0);
	for (int delta = -2; delta <= 2; delta++) {
		bad = info;
		bad.gen += (uint32_t)delta;
		assert_int_equal(pin(&bad, 0, 8, MC_RIGHT_READ), delta ? -MC_E_STALE : 0);
	}
	bad = info;
	for (uint32_t i = 1; i < 22; i++) {
		bad.id = info.id + (1u << i) - 1;
		assert_int_equal(pin(&bad, 0, 8, MC_RIGHT_READ), -MC_E_STALE);
	}
	bad.id = UINT32_MAX;
	assert_int_equal(pin(&bad, 0, 8, MC_RIGHT_READ), -MC_E_STALE);
	assert_int_equal(mc_region_del(table, 0x10000), 0);
	assert_int_equal(pin(&info, 0, 8, MC_RIGHT_READ), -MC_E_STALE);
	assert_int_equal(add(0x10000, 4096, RW, &again), 0);
	assert_true(again.id != info.id || again.gen != info.gen);
	assert_int_equal(pin(&info, 0, 8, MC_RIGHT_READ), -MC_E_STALE);
	assert_int_equal(pin(&again, 0, 8, MC_RIGHT_READ), 0);
	(void)state;
}

static void the_same_range_again_is_counted(void **state)
{
	struct mc_region_info first, second;
	uint64_t version;

	assert_int_equal(add(0x10000, 4096, RW, &first), 0);
	version = mc_region_version(table);
	assert_int_equal(add(0x10000, 4096, RW, &second), 0);
	assert_int_equal(second.id, first.id);
	assert_int_equal(second.gen, first.gen);
	assert_int_equal(second.refs, 2);
	assert_int_equal(mc_region_version(table), version);
	assert_int_equal(add(0x10000, 4096, MC_RIGHT_READ, &second), -MC_E_INVAL);
	assert_int_equal(mc_region_del(table, 0x10000), 0);
	assert_int_equal(pin(&first, 0, 8, MC_RIGHT_READ), 0);
	assert_int_equal(mc_region_del(table, 0x10000), 0);
	assert_int_equal(pin(&first, 0, 8, MC_RIGHT_READ), -MC_E_STALE);
	assert_int_equal(mc_region_del(table, 0x10000), -MC_E_NOENT);
	assert_int_equal(mc_region_del(table, UINT64_MAX), -MC_E_NOENT);
	assert_true(mc_region_version(table) > version);
	(void)state;
}

static void overlapping_ranges_are_found_newest_first(void **state)
{
	struct mc_region_info wide, mid, ro, found;
	uint32_t id;

	assert_int_equal(add(0x10000, 0x10000, RW, &wide), 0);
	assert_int_equal(add(0x12000, 0x2000, RW, &mid), 0);
	assert_int_equal(add(0x10000, 0x4000, MC_RIGHT_READ, &ro), 0);
	assert_int_equal(mc_region_find(table, 0x12000, 0x1000, &found), 0);
	assert_int_equal(found.id, ro.id);
	assert_int_equal(mc_region_find(table, 0x12000, 0x2001, &found), 0);
	assert_int_equal(found.id, wide.id);
	assert_int_equal(mc_region_find(table, 0x12000, 0x10000, &found), -MC_E_RANGE);
	assert_int_equal(mc_region_find(table, 0x12000, 0, &found), -MC_E_RANGE);
	assert_int_equal(mc_region_pin_addr(table, 0x12000, 8, MC_RIGHT_WRITE, &id), 0);
	assert_int_equal(id, mid.id); /* the newest that grants the right */
	mc_region_unpin(table, id);
	assert_int_equal(mc_region_del(table, 0x10000), 0); /* the latest that begins there */
	assert_int_equal(pin(&ro, 0, 1, MC_RIGHT_READ), -MC_E_STALE);
	assert_int_equal(pin(&wide, 0, 1, MC_RIGHT_READ), 0);
	assert_int_equal(mc_region_del(table, 0x11000), -MC_E_NOENT);
	(void)state;
}

static void count_in_order(void *user, const struct mc_region_info *info)
{
	uint64_t *last = user;

	assert_true(info->desc.addr > *last);
	assert_string_equal(info->desc.location, "cpu:0");
	*last = info->desc.addr;
}

static void ten_thousand_regions_are_added_found_and_listed(void **state)
{
	enum { N = 10000 };
	struct mc_region_info info;
	uint64_t last = 0;

	for (uint64_t i = 0; i < N; i++)
		assert_int_equal(add(0x100000 + (i * 7919 % N) * 0x10000, 0x8000, RW, &info), 0);
	assert_int_equal(mc_region_count(table), N);
	for (uint64_t i = 0; i < N; i++) {
		assert_int_equal(mc_region_find(table, 0x100000 + i * 0x10000 + 1, 0x7fff, &info),
				 0);
		assert_int_equal(mc_region_find(table, 0x100000 + i * 0x10000 + 1, 0x8000, &info),
				 -MC_E_RANGE);
	}
	mc_region_each(table, count_in_order, &last);
	for (uint64_t i = 0; i < N; i++)
		assert_int_equal(mc_region_del(table, 0x100000 + i * 0x10000), 0);
	assert_int_equal(mc_region_count(table), 0);
	(void)state;
}

static void add_without_memory_fails_and_leaves_the_table_as_it_was(void **state)
{
	struct mc_region_info info;

	mc_mem_fail_after(0);
	assert_int_equal(add(0x10000, 4096, RW, &info), -MC_E_NOMEM);
	mc_mem_fail_after(-1);
	assert_int_equal(mc_region_count(table), 0);
	assert_int_equal(add(0x10000, 4096, RW, &info), 0);
	(void)state;
}

/* ---- listeners ---- */

struct ear {
	struct mc_region_listener l;
	int refuse, added, revoked, asked, asks_until_quiet;
};

static int ear_add(struct mc_region_listener *l, const struct mc_region_info *info)
{
	struct ear *e = mc_container_of(l, struct ear, l);

	assert_int_not_equal(info->gen, 0);
	e->added++;
	return e->refuse;
}

static void ear_revoke(struct mc_region_listener *l, const struct mc_region_info *info)
{
	mc_container_of(l, struct ear, l)->revoked++;
	(void)info;
}

static bool ear_quiet(struct mc_region_listener *l, const struct mc_region_info *info)
{
	struct ear *e = mc_container_of(l, struct ear, l);

	(void)info;
	return ++e->asked >= e->asks_until_quiet;
}

static struct ear ear_of(int refuse, int asks)
{
	return (struct ear){
	    .l = {.on_add = ear_add, .on_revoke = ear_revoke, .is_quiet = ear_quiet},
	    .refuse = refuse,
	    .asks_until_quiet = asks};
}

static void listeners_hear_of_the_first_add_and_the_last_del_only(void **state)
{
	struct ear e = ear_of(0, 300);
	struct mc_region_info info;

	mc_region_table_listen(table, &e.l);
	assert_int_equal(add(0x10000, 4096, RW, &info), 0);
	assert_int_equal(add(0x10000, 4096, RW, &info), 0);
	assert_int_equal(mc_region_del(table, 0x10000), 0);
	assert_int_equal(e.added, 1);
	assert_int_equal(e.revoked, 0);
	assert_int_equal(mc_region_del(table, 0x10000), 0);
	assert_int_equal(e.revoked, 1);
	assert_int_equal(e.asked, 300);
	mc_region_table_unlisten(table, &e.l);
	assert_int_equal(add(0x10000, 4096, RW, &info), 0);
	assert_int_equal(e.added, 1);
	(void)state;
}

static void a_refusal_is_undone_at_the_listeners_that_had_accepted(void **state)
{
	struct ear a = ear_of(0, 1), b = ear_of(-MC_E_DEVICE, 1), c = ear_of(0, 1);
	struct mc_region_info info;

	mc_region_table_listen(table, &a.l);
	mc_region_table_listen(table, &b.l);
	mc_region_table_listen(table, &c.l);
	assert_int_equal(add(0x10000, 4096, RW, &info), -MC_E_DEVICE);
	assert_int_equal(a.revoked, 1);
	assert_int_equal(a.asked, 1);
	assert_int_equal(b.revoked, 0);
	assert_int_equal(c.added, 0);
	assert_int_equal(mc_region_count(table), 0);
	assert_int_equal(mc_region_find(table, 0x10000, 1, &info), -MC_E_RANGE);
	mc_region_table_unlisten(table, &b.l);
	assert_int_equal(add(0x10000, 4096, RW, &info), 0);
	assert_int_equal(c.added, 1);
	(void)state;
}

/* ---- races ---- */

enum { RACERS = 4, ROUNDS = 300 };

struct race {
	struct mc_region_info info; /* of the current round, guarded by seq */
	_Atomic uint64_t id_gen;    /* gen << 32 | id, 0: none */
	_Atomic bool is_over;
	_Atomic uint64_t hits, misses;
};

/* Writes into pinned memory until told to stop. A pin that outlives del faults on the guard page.
 */
static void *race_access(void *arg)
{
	struct race *r = arg;
	uint64_t ig;
	void *ptr;
	int rc;

	while (!atomic_load(&r->is_over)) {
		ig = atomic_load(&r->id_gen);
		rc = mc_region_pin(table, (uint32_t)ig, (uint32_t)(ig >> 32), 64, 64,
				   MC_RIGHT_WRITE, &ptr);
		if (rc == 0) {
			atomic_fetch_add_explicit((_Atomic uint64_t *)ptr, 1, memory_order_relaxed);
			mc_region_unpin(table, (uint32_t)ig);
			atomic_fetch_add(&r->hits, 1);
		} else {
			assert_int_equal(rc, -MC_E_STALE);
			atomic_fetch_add(&r->misses, 1);
			(void)sched_yield(); /* lets the deleting thread run on a small machine */
		}
	}
	return NULL;
}

static void del_waits_for_pins_so_that_memory_can_go_at_once(void **state)
{
	struct race r = {0};
	pthread_t th[RACERS];
	uint64_t hits;
	uint8_t *mem;

	for (int i = 0; i < RACERS; i++)
		assert_int_equal(pthread_create(&th[i], NULL, race_access, &r), 0);
	for (int i = 0; i < ROUNDS; i++) {
		mem = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		assert_ptr_not_equal(mem, MAP_FAILED);
		assert_int_equal(add((uint64_t)(uintptr_t)mem, 4096, RW, &r.info), 0);
		hits = atomic_load(&r.hits);
		atomic_store(&r.id_gen, (uint64_t)r.info.gen << 32 | r.info.id);
		while (atomic_load(&r.hits) == hits)
			(void)sched_yield(); /* until an access has hit this round's region */
		assert_int_equal(mc_region_del(table, (uint64_t)(uintptr_t)mem), 0);
		assert_int_equal(mprotect(mem, 4096, PROT_NONE), 0);
		assert_int_equal(munmap(mem, 4096), 0);
	}
	atomic_store(&r.is_over, true);
	for (int i = 0; i < RACERS; i++)
		assert_int_equal(pthread_join(th[i], NULL), 0);
	assert_true(atomic_load(&r.hits) >= ROUNDS);
	assert_int_equal(mc_region_count(table), 0);
	(void)state;
}

struct slow_pin {
	struct mc_region_info info;
	_Atomic int step;
};

static void *slow_del(void *arg)
{
	struct slow_pin *s = arg;

	assert_int_equal(mc_region_del(table, s->info.desc.addr), 0);
	atomic_store(&s->step, 2);
	return NULL;
}

static void del_sleeps_until_a_long_access_ends(void **state)
{
	struct slow_pin s = {0};
	struct mc_region_info again;
	pthread_t th;
	void *ptr;

	assert_int_equal(add(0x10000, 4096, RW, &s.info), 0);
	assert_int_equal(mc_region_pin(table, s.info.id, s.info.gen, 0, 1, MC_RIGHT_READ, &ptr), 0);
	assert_int_equal(pthread_create(&th, NULL, slow_del, &s), 0);
	while (mc_region_count(table) > 0)
		(void)sched_yield(); /* until del has begun */
	for (int i = 0; i < 1000; i++)
		(void)
		    sched_yield(); /* long enough that it sleeps; any other timing is as correct */
	assert_int_equal(pin(&s.info, 0, 1, MC_RIGHT_READ), -MC_E_STALE);
	assert_int_equal(add(0x10000, 4096, RW, &again), 0); /* not the slot that is still in use */
	assert_int_not_equal(again.id, s.info.id);
	assert_int_equal(atomic_load(&s.step), 0);
	mc_region_unpin(table, s.info.id);
	assert_int_equal(pthread_join(th, NULL), 0);
	assert_int_equal(atomic_load(&s.step), 2);
	(void)state;
}

#define T(f) cmocka_unit_test_setup_teardown(f, table_setup, table_teardown)

static void part_is_found_and_is_no_registration_of_its_own(void **state)
{
	struct mc_region_desc whole = {
	    .addr = 0x10000, .len = 0x3000, .rights = 3, .location = "*", .is_split = true};
	struct mc_region_desc part = {
	    .addr = 0x10000, .len = 0x1000, .rights = 3, .location = "*", .is_part = true};
	struct mc_region_table *t;
	struct mc_region_info info;
	uint64_t len;

	(void)state;
	assert_int_equal(mc_region_table_open(&t), 0);
	assert_int_equal(mc_region_add(t, &whole, &info), 0);
	assert_int_equal(mc_region_add(t, &part, &info), 0);
	assert_int_equal(mc_region_find(t, 0x10000, 0x1000, &info), 0);
	assert_true(info.desc.is_part);
	assert_int_equal(mc_region_find(t, 0x10000, 0x1001, &info), 0);
	assert_true(info.desc.is_split);
	assert_int_equal(mc_region_del_range(t, 0x10000, &len), 0);
	assert_int_equal(len, 0x3000);
	assert_int_equal(mc_region_del(t, 0x10000), -MC_E_NOENT);
	/* The user registers the very same range: it is his as well. */
	part.is_part = false;
	assert_int_equal(mc_region_add(t, &part, &info), 0);
	assert_int_equal(mc_region_del_part(t, 0x10000, 0x1000), 0);
	assert_int_equal(mc_region_del_part(t, 0x10000, 0x2000), -MC_E_NOENT);
	assert_int_equal(mc_region_del(t, 0x10000), 0);
	assert_int_equal(mc_region_count(t), 0);
	mc_region_table_close(t);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    T(pin_gives_every_byte_inside_and_none_outside),
	    T(add_refuses_what_is_no_range),
	    T(pin_needs_the_right_that_was_given),
	    T(pin_refuses_ids_and_generations_it_did_not_give),
	    T(the_same_range_again_is_counted),
	    T(overlapping_ranges_are_found_newest_first),
	    T(ten_thousand_regions_are_added_found_and_listed),
	    T(add_without_memory_fails_and_leaves_the_table_as_it_was),
	    T(listeners_hear_of_the_first_add_and_the_last_del_only),
	    T(a_refusal_is_undone_at_the_listeners_that_had_accepted),
	    T(del_waits_for_pins_so_that_memory_can_go_at_once),
	    T(del_sleeps_until_a_long_access_ends),
	    cmocka_unit_test(part_is_found_and_is_no_registration_of_its_own),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
