/*
 * store_net_test.c: the Store when the network does what networks do: it delays, cuts into pieces,
 * resets, flips bits, and is silent for a while, between a client and everybody, between a client
 * and one of them, or between owners and master. Each call ends by its deadline; no wrong bytes.
 *
 * "store_net_e2e MASTER [--long] [--seed=N] [TEST]"
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/mem.h"
#include "detour.h"
#include "ledger.h"
#include "store_real.h"

#define MIB (1ull << 20)
#define KEYS 64u
#define TIMEOUT_MS 3000u
#define HEALED_NS (3 * MC_NS_PER_S)

static uint64_t seed;
static bool is_long;

struct world {
	struct real *c;
	struct ledger *l;
	int fd;
	struct mc_store *st;
	struct ledger_actor actor;
	struct relay *owners; /* between them and the master */
};

static void nap(uint64_t ms)
{
	const struct timespec ts = {(time_t)(ms / 1000), (long)(ms % 1000) * 1000000};

	(void)nanosleep(&ts, NULL);
}

/* Its first words may be what the network spoils. */
static struct mc_store *store_open(const char *master)
{
	struct mc_store_opts opts = {
	    .size = sizeof(opts), .name = "127.0.0.1", .master = master, .timeout_ms = TIMEOUT_MS};
	struct mc_store *st;
	struct mc_diag diag;

	for (int i = 0; i < 10; i++)
		if (mc_store_open(&opts, &diag, &st) == 0)
			return st;
	fail_msg("%s", diag.text);
	return NULL;
}

static void world_open(struct world *w, const struct relay_opts *opts, uint64_t salt)
{
	const struct relay_opts plain = {.seed = seed};
	struct mc_addr master;
	char at[sizeof(w->c->master)];

	*w = (struct world){.c = real_open(0, 0)};
	memcpy(at, w->c->master, sizeof(at));
	assert_int_equal(mc_addr_parse(at, 0, &master), 0);
	assert_int_equal(relay_open(&master, &plain, &w->owners), 0);
	(void)mc_addr_format(relay_addr(w->owners), w->c->master);
	w->c->has_hosts = true;
	for (unsigned i = 0; i < 2; i++)
		(void)real_owner_start(w->c, 32 * MIB);
	memcpy(w->c->master, at, sizeof(at));
	w->l = ledger_open(seed + salt, KEYS, &w->fd);
	w->l->timeout_ms = TIMEOUT_MS;
	detour_begin(opts);
	w->st = store_open(w->c->master);
	ledger_actor_init(&w->actor, w->l, w->st, 0, 1, salt);
	w->actor.pause_us = 0;
}

static void world_close(struct world *w)
{
	ledger_actor_fini(&w->actor);
	mc_store_close(w->st);
	detour_end();
	relay_close(w->owners);
	real_close(w->c);
	(void)close(w->fd);
	ledger_close(w->l);
}

static void is_right(struct world *w, const char *what)
{
	struct ledger *l = w->l;
	struct relay_stats rs;

	detour_stats(&rs);
	print_message("%s: %llu reads (%llu hits, %llu errors), %llu puts, %llu others; %u "
		      "connections, %u resets, %u flips; wrong %llu, late %llu, slowest call %llu "
		      "ms of %u\n",
		      what, (unsigned long long)l->reads, (unsigned long long)l->hits,
		      (unsigned long long)l->errors, (unsigned long long)l->puts,
		      (unsigned long long)l->failed, rs.conns, rs.resets, rs.flips,
		      (unsigned long long)l->wrong, (unsigned long long)l->late,
		      (unsigned long long)l->slowest_ms, TIMEOUT_MS);
	assert_int_equal(l->wrong, 0);
	assert_int_equal(l->late, 0);
}

static void act_for(struct world *w, uint64_t ns)
{
	uint64_t until_ns = mc_now_ns() + ns;

	while (mc_now_ns() < until_ns)
		ledger_act(&w->actor);
}

/* Until a put succeeds. */
static uint64_t healed_ns(struct world *w)
{
	uint64_t begin_ns = mc_now_ns(), puts = w->l->puts;

	while (w->l->puts == puts && mc_now_ns() - begin_ns < 2 * HEALED_NS)
		ledger_act(&w->actor);
	return mc_now_ns() - begin_ns;
}

/* ---- noise ---- */

static void noise(const struct relay_opts *opts, const char *what)
{
	struct relay_stats rs;
	struct world w;

	world_open(&w, opts, 1);
	act_for(&w, (is_long ? 60 : 4) * MC_NS_PER_S);
	detour_stats(&rs);
	is_right(&w, what);
	assert_true(w.l->puts > 0);
	assert_true(!opts->reset_bytes || rs.resets > 0);
	assert_true(!opts->flip_bytes || rs.flips > 0);
	world_close(&w);
}

static void pieces_that_come_late(void **state)
{
	const struct relay_opts opts = {
	    .seed = seed, .tiny = 64, .piece_max = 30000, .delay_ns = 2 * MC_NS_PER_MS};

	noise(&opts, "pieces");
	(void)state;
}

static void long_delays(void **state)
{
	const struct relay_opts opts = {.seed = seed, .delay_ns = 300 * MC_NS_PER_MS};

	noise(&opts, "delays");
	(void)state;
}

static void resets(void **state)
{
	const struct relay_opts opts = {.seed = seed, .reset_bytes = 2 << 20};

	noise(&opts, "resets");
	(void)state;
}

static void flipped_bits(void **state)
{
	const struct relay_opts opts = {.seed = seed, .flip_bytes = 400000};

	noise(&opts, "flips");
	(void)state;
}

/* ---- silence ---- */

static void rounds_of_silence(struct world *w, const char *host, bool of_owners, const char *what)
{
	unsigned rounds = is_long ? 20 : 3;
	uint64_t worst_ns = 0;

	for (unsigned i = 0; i < rounds; i++) {
		uint64_t ns;

		act_for(w, 300 * MC_NS_PER_MS);
		if (of_owners)
			relay_pause(w->owners, true);
		else
			detour_pause(host, true);
		act_for(w, (1 + mc_rand_below(&w->actor.rand, 3)) * MC_NS_PER_S);
		if (of_owners)
			relay_pause(w->owners, false);
		else
			detour_pause(host, false);
		ns = healed_ns(w);
		worst_ns = mc_max(worst_ns, ns);
	}
	is_right(w, what);
	print_message("healed after %llu ms at most, %u times\n",
		      (unsigned long long)(worst_ns / MC_NS_PER_MS), rounds);
	assert_true(worst_ns <= HEALED_NS);
}

static void silence(const char *host, bool of_owners, const char *what)
{
	const struct relay_opts opts = {.seed = seed};
	struct world w;

	world_open(&w, &opts, 2);
	rounds_of_silence(&w, host, of_owners, what);
	world_close(&w);
}

static void a_client_hears_nobody(void **state)
{
	silence(NULL, false, "client | all");
	(void)state;
}

static void a_client_does_not_hear_the_master(void **state)
{
	silence("127.0.0.1", false, "client | master");
	(void)state;
}

static void a_client_does_not_hear_one_owner(void **state)
{
	silence("127.0.0.2", false, "client | owner");
	(void)state;
}

static void owners_do_not_hear_the_master(void **state)
{
	silence(NULL, true, "owners | master");
	(void)state;
}

/* ---- the dead ---- */

static int64_t get_ms(struct mc_store *st, const char *key, uint64_t *ret_ms)
{
	static uint8_t buf[4096];
	struct mc_store_part part = {buf, sizeof(buf)};
	struct mc_store_item item = {{key, strlen(key)}, &part, 1};
	uint64_t begin_ns = mc_now_ns();
	int64_t got = -1;

	(void)!mc_store_get(st, &item, 1, &got);
	*ret_ms = (mc_now_ns() - begin_ns) / MC_NS_PER_MS;
	return got;
}

/* Of two replicas one is at somebody who died, or who is silent: the other one is read soon. */
static void the_other_replica_is_read_soon(void **state)
{
	const struct relay_opts opts = {.seed = seed};
	struct mc_store_conf conf = {.size = sizeof(conf), .replicas = 2};
	uint8_t buf[4096];
	struct mc_store_part part = {buf, sizeof(buf)};
	struct mc_store_item item = {{"twice", 5}, &part, 1};
	struct mc_store_replica replicas[MC_STORE_REPLICAS_MAX];
	uint64_t ms, worst_ms = 0;
	struct world w;
	int32_t ret;

	ledger_fill(buf, sizeof(buf), 1);
	for (int is_silent = 0; is_silent < 2; is_silent++) {
		world_open(&w, &opts, 3);
		do {
			assert_int_equal(mc_store_put(w.st, &item, 1, &conf, MC_STORE_UPSERT, &ret),
					 0);
			nap(20);
		} while (mc_store_replicas(w.st, &item.key, replicas) != 2);
		assert_int_equal(get_ms(w.st, "twice", &ms), sizeof(buf));
		if (is_silent)
			detour_pause("127.0.0.2", true);
		else
			real_owner_kill(w.c, 0);
		for (int i = 0; i < 5; i++) {
			assert_int_equal(get_ms(w.st, "twice", &ms), sizeof(buf));
			worst_ms = mc_max(worst_ms, ms);
		}
		print_message("%s: read after %llu ms at most\n", is_silent ? "silent" : "dead",
			      (unsigned long long)worst_ms);
		assert_true(worst_ms <= (is_silent ? 3000 : 1000));
		world_close(&w);
	}
	(void)state;
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(pieces_that_come_late),
	    cmocka_unit_test(long_delays),
	    cmocka_unit_test(resets),
	    cmocka_unit_test(flipped_bits),
	    cmocka_unit_test(a_client_hears_nobody),
	    cmocka_unit_test(a_client_does_not_hear_the_master),
	    cmocka_unit_test(a_client_does_not_hear_one_owner),
	    cmocka_unit_test(owners_do_not_hear_the_master),
	    cmocka_unit_test(the_other_replica_is_read_soon),
	};
	const char *only = NULL;
	int ret;

	if (real_is_owner(argc, argv, &ret))
		return ret;
	seed = mc_now_ns() % 1000000;
	if (!real_args(argc, argv, &is_long, &seed, &only))
		return 2;
	/* All bytes go over TCP, so all go through the relays. */
	(void)setenv("MC_NO_SHM", "1", 1);
	if (only)
		cmocka_set_test_filter(only);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
