/*
 * store_kill_test.c: master, owners and clients of the Store are killed, or stopped and continued,
 * at random times under load; reads race with eviction, removal, segments that come and go, and
 * writers that wake up late. The ledger decides what is right.
 *
 * "store_kill_e2e MASTER [--long] [--seed=N] [TEST]": --long takes 200 of each and a million reads.
 */
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/mem.h"
#include "ledger.h"
#include "store_real.h"

#define MIB (1ull << 20)
#define KEYS 64u
#define OWNERS 2u
#define CHILDREN 2u
#define ACTORS 2u		    /* threads of this process */
#define WRITERS (ACTORS + CHILDREN) /* each has every WRITERS-th key */
#define ROUNDS_MAX 200u
#define BACK_NS (2 * MC_NS_PER_S)   /* until service is back */
#define SPACE_NS (30 * MC_NS_PER_S) /* until the space of the dead is */

static uint64_t seed;
static bool is_long;

enum whom {
	MASTER,
	OWNER,
	CLIENT,
};

struct world;
struct worker {
	struct world *w;
	struct ledger_actor actor;
	pthread_t thread;
};

struct world {
	struct real *c;
	struct ledger *l;
	char fd[16];
	uint64_t bytes; /* of each owner */
	struct mc_store *st[ACTORS], *probe;
	struct worker workers[ACTORS];
	struct real_proc children[CHILDREN];
	_Atomic bool is_over;
	struct mc_rand rand;
	uint64_t back_ns[ROUNDS_MAX];
	unsigned rounds;
};

static void nap(uint64_t ms)
{
	const struct timespec ts = {(time_t)(ms / 1000), (long)(ms % 1000) * 1000000};

	(void)nanosleep(&ts, NULL);
}

/* ---- load ---- */

/* main() of a client that may die any time: "--client MASTER FD FIRST SALT". */
static _Noreturn void client_main(char **argv)
{
	struct ledger *l = ledger_attach((int)strtol(argv[3], NULL, 10));
	struct mc_store_opts opts = {.size = sizeof(opts),
				     .name = "127.0.0.1",
				     .master = argv[2],
				     .timeout_ms = l->timeout_ms};
	struct ledger_actor a;
	struct mc_store *st;
	struct mc_diag diag;

	while (mc_store_open(&opts, &diag, &st) < 0)
		nap(50);
	ledger_actor_init(&a, l, st, (uint32_t)strtoul(argv[4], NULL, 10), WRITERS,
			  strtoull(argv[5], NULL, 10));
	a.may_stop = true;
	(void)printf("here\n");
	(void)fflush(stdout);
	for (;;)
		ledger_act(&a);
}

static void child_start(struct world *w, unsigned i)
{
	char first[16], salt[32], line[16];
	char *argv[] = {"client", "--client", w->c->master, w->fd, first, salt, NULL};

	(void)snprintf(first, sizeof(first), "%u", ACTORS + i);
	(void)snprintf(salt, sizeof(salt), "%llu", (unsigned long long)mc_rand_u64(&w->rand));
	real_spawn(&w->children[i], "/proc/self/exe", argv, line, sizeof(line));
}

static void child_kill(struct world *w, unsigned i)
{
	real_reap(&w->children[i], SIGKILL);
	ledger_writer_died(w->l, ACTORS + i, WRITERS);
}

static void *actor_main(void *arg)
{
	struct worker *me = arg;

	while (!atomic_load(&me->w->is_over))
		ledger_act(&me->actor);
	return NULL;
}

static struct world *world_open(uint64_t bytes, unsigned salt)
{
	struct world *w = mc_calloc(1, sizeof(*w));
	int fd;

	assert_non_null(w);
	w->bytes = bytes;
	w->l = ledger_open(seed + salt, KEYS, &fd);
	(void)snprintf(w->fd, sizeof(w->fd), "%d", fd);
	mc_rand_seed(&w->rand, seed + salt);
	w->c = real_open(OWNERS, bytes);
	w->probe = real_store(w->c, w->l->timeout_ms, 0);
	for (unsigned i = 0; i < ACTORS; i++) {
		/* The first one is an owner itself. */
		w->st[i] = real_store(w->c, w->l->timeout_ms, i ? 0 : w->bytes);
		w->workers[i].w = w;
		ledger_actor_init(&w->workers[i].actor, w->l, w->st[i], i, WRITERS, i);
	}
	for (unsigned i = 0; i < CHILDREN; i++)
		child_start(w, i);
	return w;
}

static void load_start(struct world *w)
{
	for (unsigned i = 0; i < ACTORS; i++)
		assert_int_equal(
		    pthread_create(&w->workers[i].thread, NULL, actor_main, &w->workers[i]), 0);
}

static void load_end(struct world *w)
{
	atomic_store(&w->is_over, true);
	for (unsigned i = 0; i < ACTORS; i++)
		(void)pthread_join(w->workers[i].thread, NULL);
	for (unsigned i = 0; i < CHILDREN; i++)
		child_kill(w, i);
}

static void world_close(struct world *w)
{
	for (unsigned i = 0; i < ACTORS; i++) {
		ledger_actor_fini(&w->workers[i].actor);
		mc_store_close(w->st[i]);
	}
	mc_store_close(w->probe);
	real_close(w->c);
	(void)close((int)strtol(w->fd, NULL, 10));
	ledger_close(w->l);
	mc_free(w);
}

/* ---- what is measured ---- */

/* Until somebody else's put and get of it succeed. */
static uint64_t service_back_ns(struct world *w)
{
	uint8_t in[64] = {1}, out[64];
	struct mc_store_part put = {in, sizeof(in)}, get = {out, sizeof(out)};
	struct mc_store_key key = {"probe", 5};
	struct mc_store_item item = {key, &put, 1};
	uint64_t begin_ns = mc_now_ns();
	int32_t ret = 1;
	int64_t got = -1;

	for (unsigned i = 0; i < 1000; i++) {
		item.parts = &put;
		if (mc_store_put(w->probe, &item, 1, NULL, MC_STORE_UPSERT, &ret) == 0) {
			item.parts = &get;
			if (mc_store_get(w->probe, &item, 1, &got) == 0 && got == sizeof(in))
				return mc_now_ns() - begin_ns;
		}
		nap(5);
	}
	fail_msg("no service: put %d, get %lld", ret, (long long)got);
	return 0;
}

static int ascending(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return (x > y) - (x < y);
}

static void told(struct world *w, const char *what)
{
	struct ledger *l = w->l;
	unsigned n = w->rounds;

	print_message("%s: %u times; %llu reads (%llu hits, %llu errors), %llu puts, %llu others, "
		      "%llu removes; wrong %llu, late %llu, slowest call %llu ms\n",
		      what, n, (unsigned long long)l->reads, (unsigned long long)l->hits,
		      (unsigned long long)l->errors, (unsigned long long)l->puts,
		      (unsigned long long)l->failed, (unsigned long long)l->removes,
		      (unsigned long long)l->wrong, (unsigned long long)l->late,
		      (unsigned long long)l->slowest_ms);
	if (n == 0)
		return;
	qsort(w->back_ns, n, sizeof(w->back_ns[0]), ascending);
	print_message("service back after %llu ms (median), %llu (99 of 100), %llu (worst)\n",
		      (unsigned long long)(w->back_ns[n / 2] / MC_NS_PER_MS),
		      (unsigned long long)(w->back_ns[(n - 1) * 99 / 100] / MC_NS_PER_MS),
		      (unsigned long long)(w->back_ns[n - 1] / MC_NS_PER_MS));
}

/* All is removed, again and again: what writers left may turn up late. */
static void space_comes_back(struct world *w)
{
	uint64_t begin_ns = mc_now_ns(), used = 0;

	while (mc_now_ns() - begin_ns < SPACE_NS) {
		(void)mc_store_remove_like(w->probe, NULL, true);
		used = real_used(w->probe);
		if (used == 0) {
			print_message(
			    "all space back after %llu ms\n",
			    (unsigned long long)((mc_now_ns() - begin_ns) / MC_NS_PER_MS));
			return;
		}
		nap(100);
	}
	fail_msg("%llu bytes do not come back", (unsigned long long)used);
}

static void is_right(struct world *w, const char *what)
{
	told(w, what);
	assert_true(w->l->reads > 20 * w->rounds && w->l->hits > 0 && w->l->puts > w->rounds);
	assert_int_equal(w->l->wrong, 0);
	assert_int_equal(w->l->late, 0);
}

/* ---- kills ---- */

static void kill_once(struct world *w, enum whom whom)
{
	unsigned i = (unsigned)mc_rand_below(&w->rand, OWNERS);
	uint64_t away_ms = mc_rand_below(&w->rand, 200), begin_ns;

	switch (whom) {
	case MASTER:
		real_master_kill(w->c);
		nap(away_ms);
		begin_ns = mc_now_ns();
		real_master_start(w->c);
		break;
	case OWNER:
		real_owner_kill(w->c, i);
		begin_ns = mc_now_ns();
		nap(away_ms);
		real_owner_again(w->c, i, w->bytes);
		break;
	default:
		child_kill(w, i);
		begin_ns = mc_now_ns();
		child_start(w, i);
	}
	(void)service_back_ns(w);
	w->back_ns[w->rounds++] = mc_now_ns() - begin_ns;
}

static void kills(enum whom whom, const char *what)
{
	struct world *w = world_open(64 * MIB, whom);
	unsigned rounds = is_long ? ROUNDS_MAX : 10;
	uint32_t lost;

	load_start(w);
	while (w->rounds < rounds) {
		nap(20 + mc_rand_below(&w->rand, 300));
		kill_once(w, whom);
	}
	load_end(w);
	lost = ledger_audit(&w->workers[1].actor);
	is_right(w, what);
	print_message("%u acknowledged objects not found\n", lost);
	if (whom != OWNER)
		assert_int_equal(lost, 0);
	assert_true(w->back_ns[(rounds - 1) * 9 / 10] <= BACK_NS);
	space_comes_back(w);
	world_close(w);
}

static void kills_of_the_master(void **state)
{
	kills(MASTER, "kill -9 of the master");
	(void)state;
}

static void kills_of_owners(void **state)
{
	kills(OWNER, "kill -9 of owners");
	(void)state;
}

static void kills_of_clients(void **state)
{
	kills(CLIENT, "kill -9 of clients");
	(void)state;
}

/* ---- stops ---- */

static void stops(enum whom whom, const char *what)
{
	struct world *w = world_open(64 * MIB, 10 + whom);
	unsigned rounds = is_long ? ROUNDS_MAX : 6;
	uint32_t lost;

	load_start(w);
	while (w->rounds < rounds) {
		unsigned i = (unsigned)mc_rand_below(&w->rand, OWNERS);
		struct real_proc *p = whom == MASTER  ? &w->c->m
				      : whom == OWNER ? &w->c->owners[i]
						      : &w->children[i];
		uint64_t begin_ns;

		nap(20 + mc_rand_below(&w->rand, 300));
		real_stop(p);
		/* Now and then for longer than its word holds: client_ttl is 3 s. */
		nap(mc_rand_below(&w->rand, 10) ? mc_rand_below(&w->rand, 1500) : 4000);
		assert_int_equal(kill(p->pid, SIGCONT), 0);
		begin_ns = mc_now_ns();
		(void)service_back_ns(w);
		w->back_ns[w->rounds++] = mc_now_ns() - begin_ns;
	}
	load_end(w);
	lost = ledger_audit(&w->workers[1].actor);
	is_right(w, what);
	assert_int_equal(lost, 0);
	assert_true(w->back_ns[(rounds - 1) * 9 / 10] <= BACK_NS);
	space_comes_back(w);
	world_close(w);
}

static void stops_of_the_master(void **state)
{
	stops(MASTER, "SIGSTOP of the master");
	(void)state;
}

static void stops_of_owners(void **state)
{
	stops(OWNER, "SIGSTOP of owners");
	(void)state;
}

static void stops_of_clients(void **state)
{
	stops(CLIENT, "SIGSTOP of clients");
	(void)state;
}

/* ---- races ---- */

static void *remount_main(void *arg)
{
	struct world *w = arg;
	const struct mc_store_mount mount = {.size = sizeof(mount), .bytes = 4 * MIB};
	struct mc_store_segment_id id;
	struct mc_diag diag;
	uint64_t state = seed;

	while (!atomic_load(&w->is_over)) {
		if (mc_store_mount(w->st[1], &mount, &diag, &id) == 0) {
			nap(mc_splitmix64(&state) % 300);
			(void)!mc_store_unmount(w->st[1], &id, false, mc_splitmix64(&state) % 50);
		}
		nap(20);
	}
	return NULL;
}

/* Pools that hold a fifth of what is put; a writer that sleeps in the middle of what it does. */
static void reads_race_with_all_that_frees(void **state)
{
	uint64_t wanted = is_long ? 1000000 : 20000, begin_ns = mc_now_ns();
	struct world *w = world_open(4 * MIB, 20);
	pthread_t remount;

	for (unsigned i = 0; i < ACTORS; i++) {
		w->workers[i].actor.pause_us = 0;
		w->workers[i].actor.reads_in = 4;
	}
	load_start(w);
	assert_int_equal(pthread_create(&remount, NULL, remount_main, w), 0);
	while (atomic_load(&w->l->reads) < wanted) {
		struct real_proc *p = &w->children[mc_rand_below(&w->rand, CHILDREN)];

		real_stop(p);
		nap(mc_rand_below(&w->rand, 10) ? mc_rand_below(&w->rand, 400) : 2500);
		assert_int_equal(kill(p->pid, SIGCONT), 0);
		nap(mc_rand_below(&w->rand, 100));
		if (mc_now_ns() - begin_ns > (is_long ? 3600 : 150) * MC_NS_PER_S)
			break;
	}
	load_end(w);
	(void)pthread_join(remount, NULL);
	(void)ledger_audit(&w->workers[0].actor);
	is_right(w, "races");
	assert_true(w->l->reads >= wanted);
	assert_true(w->l->hits > wanted / 10 && w->l->hits < w->l->reads);
	world_close(w);
	(void)state;
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(kills_of_the_master),
	    cmocka_unit_test(kills_of_owners),
	    cmocka_unit_test(kills_of_clients),
	    cmocka_unit_test(stops_of_the_master),
	    cmocka_unit_test(stops_of_owners),
	    cmocka_unit_test(stops_of_clients),
	    cmocka_unit_test(reads_race_with_all_that_frees),
	};
	const char *only = NULL;
	int ret;

	if (real_is_owner(argc, argv, &ret))
		return ret;
	if (argc == 6 && strcmp(argv[1], "--client") == 0)
		client_main(argv);
	seed = mc_now_ns() % 1000000;
	if (!real_args(argc, argv, &is_long, &seed, &only))
		return 2;
	if (only)
		cmocka_set_test_filter(only);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
