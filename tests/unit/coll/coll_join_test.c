/*
 * coll_join_test.c: membership: replacements, new slots, holes, ranks that are sent away and come
 * back, while the others compute.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <dirent.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/sync.h"
#include "call.h"
#include "coll/priv.h"

#define JOIN_NS (30 * MC_NS_PER_S)

/* Compute until everyone has seen `want` in three operations: all see the same, so all stop after
 * the same one. */
static int until(struct rank *r, uint64_t want)
{
	uint64_t ranks;
	int rc, n = 0;

	while (n < 3) {
		rc = world_count_ranks(r, &ranks);
		if (rc < 0) {
			(void)fprintf(stderr, "rank %u on %u hosts: %d %s\n", r->rank, r->w->hosts,
				      rc, world_explain(r));
			return rc;
		}
		n = ranks == want ? n + 1 : 0;
		world_tick(r->w);
	}
	return 0;
}

/* ---- a replacement ---- */

static int survive_and_take_back(struct rank *r)
{
	uint64_t dropped = 1;

	if (r->rank == 2)
		(void)raise(SIGKILL);
	WORLD_CHECK(until(r, 3) == 0);
	/* Both ask for the same: it happens once. */
	while (!(mc_coll_ready(r->coll) & 4))
		WORLD_CHECK(mc_coll_gone(r->coll) == 4 || (mc_coll_ready(r->coll) & 4));
	WORLD_CHECK(mc_coll_activate(r->coll, 4, 0, JOIN_NS, &dropped) == 0 && dropped == 0);
	WORLD_CHECK(until(r, 7) == 0);
	WORLD_CHECK(mc_coll_epoch(r->coll) == 1 && mc_coll_active(r->coll) == 7);
	return 0;
}

static int come_and_compute(struct rank *r)
{
	uint64_t ranks;

	/* Alone, more often than the others have computed: nobody takes it for theirs. */
	for (int i = 0; i < 100; i++)
		WORLD_CHECK(world_count_ranks(r, &ranks) == 0 && ranks == 4);
	WORLD_CHECK(mc_coll_join(r->coll, JOIN_NS) == 0);
	WORLD_CHECK(until(r, 7) == 0);
	return 0;
}

static void replace(uint32_t hosts)
{
	struct world *w = world_make(1);
	pid_t pids[4];

	w->hosts = hosts;
	for (uint32_t i = 0; i < 3; i++)
		pids[i] = world_fork(w, i, 3, 3, 0, survive_and_take_back);
	assert_int_equal(world_reap(pids[2]), 1000 + SIGKILL);
	world_wait_ticks(w, 2);
	pids[3] = world_fork(w, 2, 0, 3, 0, come_and_compute);
	assert_int_equal(world_reap(pids[0]), 0);
	assert_int_equal(world_reap(pids[1]), 0);
	assert_int_equal(world_reap(pids[3]), 0);
	world_free(w);
}

static void a_replacement_takes_the_slot_of_a_dead_rank(void **state)
{
	(void)state;
	replace(0);
	replace(3);
}

/* ---- again and again, from everyone in turn ---- */

#define LIVES 12

static int endless(struct rank *r)
{
	uint64_t ranks;

	if (r->ranks == 0)
		WORLD_CHECK(mc_coll_join(r->coll, JOIN_NS) == 0);
	/* Whoever finds somebody ready takes them in. Until it is killed. */
	for (;;) {
		uint64_t ready = mc_coll_ready(r->coll) & ~mc_coll_active(r->coll);

		if (ready)
			WORLD_CHECK(mc_coll_activate(r->coll, ready, 0, JOIN_NS, NULL) == 0);
		WORLD_CHECK(world_count_ranks(r, &ranks) == 0);
		if (ranks == 0xf)
			world_tick(r->w);
	}
}

/* Everyone is in again, and has been for a while. */
static void wait_all_in(struct world *w)
{
	world_wait_ticks(w, atomic_load(&w->ticks) + 40);
}

static void replace_all(uint32_t hosts)
{
	struct world *w = world_make(2);
	pid_t pids[4];

	w->hosts = hosts;
	for (uint32_t i = 0; i < 4; i++)
		pids[i] = world_fork(w, i, 4, 4, 0, endless);
	for (uint32_t life = 0; life < LIVES; life++) {
		uint32_t v = life % 4;

		wait_all_in(w);
		(void)kill(pids[v], SIGKILL);
		assert_int_equal(world_reap(pids[v]), 1000 + SIGKILL);
		pids[v] = world_fork(w, v, 0, 4, 0, endless);
	}
	wait_all_in(w);
	for (uint32_t v = 0; v < 4; v++) {
		(void)kill(pids[v], SIGKILL);
		assert_int_equal(world_reap(pids[v]), 1000 + SIGKILL);
	}
	world_free(w);
}

static void ranks_die_and_are_replaced_in_every_slot_under_load(void **state)
{
	(void)state;
	replace_all(0);
	replace_all(2);
}

static unsigned open_fds(void)
{
	DIR *d = opendir("/proc/self/fd");
	unsigned n = 0;

	while (d && readdir(d))
		n++;
	if (d)
		(void)closedir(d);
	return n;
}

#define SUCCESSORS 20

/* Rank 2 is replaced again and again; what was of the one before is given back. */
static int see_successors(struct rank *r)
{
	unsigned first = 0;

	for (int i = 0; i < SUCCESSORS; i++) {
		WORLD_CHECK(until(r, 3) == 0);
		while (!(mc_coll_ready(r->coll) & 4))
			world_pause(MC_NS_PER_MS);
		WORLD_CHECK(mc_coll_activate(r->coll, 4, 0, JOIN_NS, NULL) == 0);
		WORLD_CHECK(until(r, 7) == 0);
		if (i == 0)
			first = open_fds();
	}
	WORLD_CHECK(open_fds() <= first + 4);
	return 0;
}

static int succeed_and_die(struct rank *r)
{
	WORLD_CHECK(mc_coll_join(r->coll, JOIN_NS) == 0);
	WORLD_CHECK(until(r, 7) == 0);
	(void)raise(SIGKILL);
	return 0;
}

static void what_dead_ranks_had_here_is_given_back(void **state)
{
	struct world *w = world_make(7);
	pid_t pids[2];

	(void)state;
	for (uint32_t i = 0; i < 2; i++)
		pids[i] = world_fork(w, i, 2, 3, 0, see_successors);
	world_wait_addresses(w, 2);
	for (int i = 0; i < SUCCESSORS; i++)
		assert_int_equal(world_reap(world_fork(w, 2, 0, 3, 0, succeed_and_die)),
				 1000 + SIGKILL);
	for (uint32_t i = 0; i < 2; i++)
		assert_int_equal(world_reap(pids[i]), 0);
	world_free(w);
}

/* ---- new slots, and ranks that are sent away ---- */

static int grow(struct rank *r)
{
	uint64_t dropped, ranks;
	int rc;

	/* Slot 3 stays a hole; slot 2 has nobody. */
	if (r->rank == 0) {
		while (!(mc_coll_ready(r->coll) & 16))
			(void)0;
		WORLD_CHECK(mc_coll_activate(r->coll, 16 | 4, 0, JOIN_NS, &dropped) == 0);
		WORLD_CHECK(dropped == 4);
	}
	rc = until(r, 19);
	/* Rank 1 is sent away, finds out, and comes back: perhaps in the last of these, when the
	 * others have ended it. */
	WORLD_CHECK(rc == 0 || (rc == -MC_E_STALE && r->rank == 1));
	if (r->rank == 0)
		WORLD_CHECK(mc_coll_activate(r->coll, 0, 2, JOIN_NS, NULL) == 0);
	if (r->rank != 1) {
		WORLD_CHECK(until(r, 17) == 0);
		if (r->rank == 0)
			WORLD_CHECK(mc_coll_activate(r->coll, 2, 0, JOIN_NS, NULL) == 0);
		return until(r, 19);
	}
	while (rc == 0)
		rc = world_count_ranks(r, &ranks);
	WORLD_CHECK(rc == -MC_E_STALE);
	WORLD_CHECK(mc_coll_join(r->coll, JOIN_NS) == 0);
	return until(r, 19);
}

static int grow_joiner(struct rank *r)
{
	WORLD_CHECK(mc_coll_join(r->coll, JOIN_NS) == 0);
	WORLD_CHECK(until(r, 19) == 0);
	WORLD_CHECK(until(r, 17) == 0);
	return until(r, 19);
}

static void grow_and_shrink(uint32_t hosts)
{
	struct world *w = world_make(3);
	pid_t pids[3];

	w->hosts = hosts;
	pids[0] = world_fork(w, 0, 2, 5, 0, grow);
	pids[1] = world_fork(w, 1, 2, 5, 0, grow);
	world_wait_addresses(w, 2);
	pids[2] = world_fork(w, 4, 0, 5, 0, grow_joiner);
	for (int i = 0; i < 3; i++)
		assert_int_equal(world_reap(pids[i]), 0);
	world_free(w);
}

static void slots_are_added_left_empty_sent_away_and_taken_back(void **state)
{
	(void)state;
	grow_and_shrink(0);
	grow_and_shrink(5);
}

/* ---- stopped is not dead ---- */

static int patient(struct rank *r)
{
	return until(r, 3);
}

static void stop_one(uint32_t hosts)
{
	struct world *w = world_make(4);
	pid_t pids[2];
	uint32_t ticks;

	w->hosts = hosts;
	for (uint32_t i = 0; i < 2; i++)
		pids[i] = world_fork(w, i, 2, 2, 0, patient);
	world_wait_ticks(w, 1);
	(void)kill(pids[1], SIGSTOP);
	ticks = atomic_load(&w->ticks);
	(void)!mc_futex_wait_shared(&w->ticks, ticks, mc_now_ns() + 200 * MC_NS_PER_MS);
	(void)kill(pids[1], SIGCONT);
	assert_int_equal(world_reap(pids[0]), 0);
	assert_int_equal(world_reap(pids[1]), 0);
	world_free(w);
}

static void a_stopped_rank_is_waited_for(void **state)
{
	(void)state;
	stop_one(0);
	stop_one(2);
}

/* ---- an old incarnation ---- */

enum { NOTE_WRITE, NOTE_ENOUGH };

/* Leaves, lives on, and overwrites all that it ever showed, while its successor is in its slot. */
static int leave_and_write(struct rank *r)
{
	struct mc_coll_page *page = r->coll->page;
	uint64_t n = 0;

	mc_coll_abort(r->coll);
	while (!atomic_load(&r->w->note[NOTE_WRITE]))
		world_pause(MC_NS_PER_MS);
	while (!atomic_load(&r->w->note[NOTE_ENOUGH])) {
		atomic_store(&page->word, ++n << 32);
		atomic_store(&page->shares, n << 32);
		memset(page->call, (int)n, sizeof(page->call));
		memset(page->small, (int)n, sizeof(page->small));
	}
	return 0;
}

static int outlive_and_count(struct rank *r)
{
	uint64_t ranks;

	WORLD_CHECK(until(r, 7) == 0);
	if (r->rank == 2)
		return leave_and_write(r);
	WORLD_CHECK(until(r, 3) == 0);
	while (!(mc_coll_ready(r->coll) & 4))
		world_pause(MC_NS_PER_MS);
	WORLD_CHECK(mc_coll_activate(r->coll, 4, 0, JOIN_NS, NULL) == 0);
	WORLD_CHECK(until(r, 7) == 0);
	atomic_store(&r->w->note[NOTE_WRITE], 1);
	for (int i = 0; i < 500; i++)
		WORLD_CHECK(world_count_ranks(r, &ranks) == 0 && ranks == 7);
	atomic_store(&r->w->note[NOTE_ENOUGH], 1);
	return 0;
}

static int succeed_and_count(struct rank *r)
{
	uint64_t ranks;

	WORLD_CHECK(mc_coll_join(r->coll, JOIN_NS) == 0);
	WORLD_CHECK(until(r, 7) == 0);
	for (int i = 0; i < 500; i++)
		WORLD_CHECK(world_count_ranks(r, &ranks) == 0 && ranks == 7);
	return 0;
}

static void an_old_incarnation_that_still_writes_is_read_by_nobody(void **state)
{
	struct world *w = world_make(6);
	pid_t pids[4];

	(void)state;
	for (uint32_t i = 0; i < 3; i++)
		pids[i] = world_fork(w, i, 3, 3, 0, outlive_and_count);
	world_wait_ticks(w, 9 + 2 * 3); /* the old one has left */
	pids[3] = world_fork(w, 2, 0, 3, 0, succeed_and_count);
	for (int i = 0; i < 4; i++)
		assert_int_equal(world_reap(pids[i]), 0);
	world_free(w);
}

/* ---- a founder that never comes ---- */

static int never(struct rank *r)
{
	(void)r;
	return 9; /* not opened */
}

static void lose_founder(uint32_t hosts)
{
	struct world *w = world_make(5);
	uint64_t from_ns = mc_now_ns();
	pid_t pids[2];

	w->hosts = hosts;
	pids[1] = world_fork_dead(w, 1);
	assert_int_equal(world_reap(pids[1]), 1000 + SIGKILL);
	pids[0] = world_fork(w, 0, 2, 2, 0, never);
	assert_int_equal(world_reap(pids[0]), 3);
	assert_true(mc_now_ns() - from_ns < 20 * MC_NS_PER_S);
	world_free(w);
}

static void a_founder_that_dies_before_it_has_come_is_named_soon(void **state)
{
	(void)state;
	lose_founder(0);
	lose_founder(2);
}

/* ---- nothing is left behind ---- */

static int again_and_again(struct rank *r)
{
	unsigned before = open_fds();
	const char *addrs[2] = {r->w->addr[0], r->w->addr[1]};

	for (int i = 0; i < 500; i++) {
		char name[32];
		struct mc_coll_opts opts = {.size = sizeof(opts),
					    .name = name,
					    .rank = r->rank,
					    .ranks = 2,
					    .timeout_ns = JOIN_NS};
		struct rank other = *r;
		struct mc_diag diag = {0};
		uint64_t ranks;
		int rc;

		(void)snprintf(name, sizeof(name), "group %d", i);
		rc = mc_coll_open(r->hub, &opts, addrs, &diag, &other.coll);
		if (rc < 0)
			(void)fprintf(stderr, "rank %u, %s: %d %s\n", r->rank, name, rc, diag.text);
		WORLD_CHECK(rc == 0);
		WORLD_CHECK(world_count_ranks(&other, &ranks) == 0 && ranks == 3);
		mc_coll_close(other.coll);
	}
	/* What the loop's connections hold goes when it comes round. */
	WORLD_CHECK(open_fds() <= before + 4);
	return 0;
}

static void a_thousand_groups_leave_no_descriptor_and_no_name(void **state)
{
	(void)state;
	world_run(2, 0, again_and_again);
	world_run_on(2, 2, 0, again_and_again);
}

/* ---- hosts ---- */

static int wait_for_the_end(struct rank *r)
{
	while (!atomic_load(&r->w->note[0]))
		world_pause(MC_NS_PER_MS);
	return 0;
}

static void a_group_of_one_host_refuses_who_comes_from_another(void **state)
{
	struct mc_coll_hub_opts ho = {.size = sizeof(ho), .host = "elsewhere", .ip = "127.0.0.1"};
	struct mc_coll_opts opts = {.size = sizeof(opts),
				    .name = "world",
				    .rank = 2,
				    .ranks_max = 3,
				    .timeout_ns = JOIN_NS};
	struct world *w = world_make(1);
	const char *addrs[3] = {w->addr[0], w->addr[1], NULL};
	struct mc_coll *coll = NULL;
	struct mc_coll_hub *hub;
	struct mc_diag diag = {0};
	pid_t pids[2];

	(void)state;
	for (uint32_t i = 0; i < 2; i++)
		pids[i] = world_fork(w, i, 2, 3, 0, wait_for_the_end);
	world_wait_addresses(w, 2);
	assert_int_equal(mc_coll_hub_open(&ho, &diag, &hub), 0);
	assert_int_equal(mc_coll_open(hub, &opts, addrs, &diag, &coll), -MC_E_UNSUPPORTED);
	assert_null(coll);
	/* Whoever has opened the group first. */
	assert_true(strstr(diag.text, "rank 0") || strstr(diag.text, "rank 1"));
	mc_coll_hub_close(hub);
	atomic_store(&w->note[0], 1);
	for (uint32_t i = 0; i < 2; i++)
		assert_int_equal(world_reap(pids[i]), 0);
	world_free(w);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(a_replacement_takes_the_slot_of_a_dead_rank),
	    cmocka_unit_test(ranks_die_and_are_replaced_in_every_slot_under_load),
	    cmocka_unit_test(what_dead_ranks_had_here_is_given_back),
	    cmocka_unit_test(slots_are_added_left_empty_sent_away_and_taken_back),
	    cmocka_unit_test(a_stopped_rank_is_waited_for),
	    cmocka_unit_test(an_old_incarnation_that_still_writes_is_read_by_nobody),
	    cmocka_unit_test(a_founder_that_dies_before_it_has_come_is_named_soon),
	    cmocka_unit_test(a_thousand_groups_leave_no_descriptor_and_no_name),
	    cmocka_unit_test(a_group_of_one_host_refuses_who_comes_from_another),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
