/*
 * coll_p2p_test.c: messages between ranks: sizes around the ring's, tags out of order, whoever
 * sends, both directions at once, and senders that die.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>

#include "base/clock.h"
#include "base/mem.h"
#include "base/rand.h"
#include "coll/net.h"
#include "world.h"

#define WAIT_NS (30 * MC_NS_PER_S)
#define BIG (3 * MC_COLL_RING_LEN + 5)
#define HUGE_LEN (64u << 20) /* more than connections hold */

static const uint64_t lens[] = {0, 1, 15, 16, 17, MC_COLL_RING_LEN - 16, MC_COLL_RING_LEN, BIG};

static void fill(uint8_t *p, uint64_t len, uint64_t what)
{
	for (uint64_t i = 0; i < len; i++)
		p[i] = (uint8_t)(what * 31 + i * 7 + (i >> 8));
}

static bool is_filled(const uint8_t *p, uint64_t len, uint64_t what)
{
	for (uint64_t i = 0; i < len; i++)
		if (p[i] != (uint8_t)(what * 31 + i * 7 + (i >> 8)))
			return false;
	return true;
}

/* Everyone to everyone, all at once, in the background. */
static int storm(struct rank *r)
{
	enum { N = 8, PER = WORLD_MAX * N };
	struct mc_coll_work *works[2 * PER];
	uint8_t *mem[2 * PER];
	uint64_t what[2 * PER], len[2 * PER];
	unsigned n = 0;

	for (uint32_t q = 0; q < r->ranks; q++) {
		if (q == r->rank)
			continue;
		for (unsigned k = 0; k < N; k++) {
			/* Receives in the opposite order of the sends: tags decide. */
			unsigned tag = N - 1 - k;

			len[n] = lens[(tag + q + r->rank) % MC_ARRAY_LEN(lens)];
			mem[n] = mc_calloc(1, len[n] + 1);
			what[n] = q * 100 + r->rank * 10 + tag;
			WORLD_CHECK(mc_coll_irecv(r->coll, q, tag, mem[n], len[n], &works[n]) == 0);
			n++;
			len[n] = lens[(k + q + r->rank) % MC_ARRAY_LEN(lens)];
			mem[n] = mc_calloc(1, len[n] + 1);
			what[n] = UINT64_MAX;
			fill(mem[n], len[n], r->rank * 100 + q * 10 + k);
			WORLD_CHECK(mc_coll_isend(r->coll, q, k, mem[n], len[n], &works[n]) == 0);
			n++;
		}
	}
	for (unsigned i = 0; i < n; i++) {
		struct mc_coll_result res;

		WORLD_CHECK(mc_coll_work_wait(works[i], WAIT_NS, &res) == 0 && res.rc == 0);
		WORLD_CHECK(what[i] == UINT64_MAX || is_filled(mem[i], len[i], what[i]));
		mc_coll_work_free(works[i]);
		mc_free(mem[i]);
	}
	return 0;
}

static void everyone_sends_to_everyone_at_once(void **state)
{
	(void)state;
	world_run(2, 0, storm);
	world_run(4, 0, storm);
	world_run_on(2, 4, 0, storm);
}

static int ping_pong(struct rank *r)
{
	uint8_t *mem = mc_calloc(1, BIG);

	for (unsigned i = 0; i < 2000; i++) {
		uint64_t len = lens[i % MC_ARRAY_LEN(lens)];
		struct mc_coll_result res;

		if (r->rank == 0) {
			fill(mem, len, i);
			WORLD_CHECK(mc_coll_send(r->coll, 1, i, mem, len, NULL) == 0);
			memset(mem, 0, len);
		}
		WORLD_CHECK(mc_coll_recv(r->coll, 1 - r->rank, i, mem, len, &res) == 0);
		WORLD_CHECK(is_filled(mem, len, i) && res.ranks == 1ull << (1 - r->rank));
		if (r->rank == 1)
			WORLD_CHECK(mc_coll_send(r->coll, 0, i, mem, len, NULL) == 0);
	}
	mc_free(mem);
	return 0;
}

static void messages_of_every_size_go_back_and_forth(void **state)
{
	(void)state;
	world_run(2, 0, ping_pong);
	world_run_on(2, 2, 0, ping_pong);
}

static int any_source(struct rank *r)
{
	uint32_t x = r->rank;
	uint64_t seen = 0;

	if (r->rank > 0)
		return mc_coll_send(r->coll, 0, 5, &x, sizeof(x), NULL);
	for (uint32_t i = 1; i < r->ranks; i++) {
		struct mc_coll_result res;

		WORLD_CHECK(mc_coll_recv(r->coll, MC_COLL_ANY, 5, &x, sizeof(x), &res) == 0);
		WORLD_CHECK(res.ranks == 1ull << x && !(seen & res.ranks));
		seen |= res.ranks;
	}
	return 0;
}

static void a_receive_from_anyone_says_who_it_was(void **state)
{
	(void)state;
	world_run(5, 0, any_source);
	world_run_on(5, 5, 0, any_source);
}

/* Of what it sends to rank 0, not taken. */
static uint64_t bytes_here(const struct mc_coll_peer *p)
{
	int n = 0;

	if (!p->wire)
		return atomic_load(&p->page->ring[0].head);
	return ioctl(p->wire->mail_fd, FIONREAD, &n) < 0 ? 0 : (uint64_t)n;
}

/* Rank 1 sends a message whole, and dies with a part of the next one sent. */
static int die_sending(struct rank *r)
{
	static uint8_t mem[HUGE_LEN];
	struct mc_coll_work *work;

	if (r->rank == 1) {
		fill(mem, 100, 1);
		WORLD_CHECK(mc_coll_send(r->coll, 0, 1, mem, 100, NULL) == 0);
		WORLD_CHECK(mc_coll_isend(r->coll, 0, 2, mem, HUGE_LEN, &work) == 0);
		while (atomic_load(&r->w->note[0]) == 0)
			(void)0;
		(void)raise(SIGKILL);
	}
	/* As far as it gets, is here. */
	while (bytes_here(r->coll->cur[1]) < MC_COLL_RING_LEN)
		(void)0;
	atomic_store(&r->w->note[0], 1);
	while (!(mc_coll_gone(r->coll) & 2))
		(void)0;
	WORLD_CHECK(mc_coll_recv(r->coll, 1, 2, mem, HUGE_LEN, NULL) == -MC_E_PEER_DEAD);
	/* What it sent whole is there; the one in front of it was not to be had. */
	WORLD_CHECK(mc_coll_recv(r->coll, 1, 1, mem, 100, NULL) == 0 && is_filled(mem, 100, 1));
	WORLD_CHECK(mc_coll_send(r->coll, 1, 1, mem, 1, NULL) == -MC_E_PEER_DEAD);
	WORLD_CHECK(mc_coll_recv(r->coll, MC_COLL_ANY, 1, mem, 1, NULL) == -MC_E_PEER_DEAD);
	return 0;
}

static void sender_dies(uint32_t hosts)
{
	struct world *w = world_make(1);
	pid_t pids[2];

	w->hosts = hosts;
	for (uint32_t i = 0; i < 2; i++)
		pids[i] = world_fork(w, i, 2, 2, 0, die_sending);
	assert_int_equal(world_reap(pids[1]), 1000 + SIGKILL);
	assert_int_equal(world_reap(pids[0]), 0);
	world_free(w);
}

static void what_a_dead_rank_sent_whole_is_received_and_the_rest_is_an_error(void **state)
{
	(void)state;
	sender_dies(0);
	sender_dies(2);
}

static int wrong_length(struct rank *r)
{
	uint8_t mem[32] = {0};

	if (r->rank == 0)
		return mc_coll_send(r->coll, 1, 7, mem, 20, NULL) < 0 ||
		       mc_coll_send(r->coll, 1, 7, mem, 32, NULL) < 0 ||
		       mc_coll_send(r->coll, 1, 8, mem, 5, NULL) < 0 ||
		       mc_coll_send(r->coll, 1, 9, mem, 6, NULL) < 0;
	WORLD_CHECK(mc_coll_recv(r->coll, 0, 7, mem, 32, NULL) == -MC_E_INVAL);
	WORLD_CHECK(strstr(world_explain(r), "sent 20 bytes with tag 7"));
	WORLD_CHECK(mc_coll_recv(r->coll, 0, 7, mem, 20, NULL) == 0);
	WORLD_CHECK(mc_coll_recv(r->coll, 0, 7, mem, 32, NULL) == 0);
	/* The same for one that was set aside, behind another tag. */
	WORLD_CHECK(mc_coll_recv(r->coll, 0, 9, mem, 6, NULL) == 0);
	WORLD_CHECK(mc_coll_recv(r->coll, 0, 8, mem, 6, NULL) == -MC_E_INVAL);
	WORLD_CHECK(mc_coll_recv(r->coll, 0, 8, mem, 5, NULL) == 0);
	WORLD_CHECK(mc_coll_send(r->coll, 1, 7, mem, 1, NULL) == -MC_E_INVAL);
	return 0;
}

static void a_message_of_another_length_is_refused_and_kept(void **state)
{
	(void)state;
	world_run(2, 0, wrong_length);
	world_run_on(2, 2, 0, wrong_length);
}

/* ---- two threads of a rank wait ---- */

static void *recv_from_1(void *arg)
{
	struct rank *r = arg;
	uint32_t x = 0;

	return mc_coll_recv(r->coll, 1, 1, &x, sizeof(x), NULL) == 0 && x == 1 ? NULL : r;
}

/* Tell rank 2 when both wait. */
static void *tell_when_both_sleep(void *arg)
{
	struct rank *r = arg;

	while (atomic_load(&r->coll->page->mail_sleepers) < 2)
		world_pause(MC_NS_PER_MS);
	world_tick(r->w);
	return NULL;
}

/* Rank 0 waits for rank 1 in one thread, then for rank 2 in another, which sends first. */
static int two_wait(struct rank *r)
{
	pthread_t one, two;
	uint32_t x = r->rank;
	void *failed;

	if (r->rank > 0) {
		world_wait_ticks(r->w, r->rank == 2 ? 1 : 2);
		return mc_coll_send(r->coll, 0, r->rank, &x, sizeof(x), NULL);
	}
	WORLD_CHECK(pthread_create(&one, NULL, recv_from_1, r) == 0);
	while (atomic_load(&r->coll->page->mail_sleepers) < 1)
		world_pause(MC_NS_PER_MS);
	WORLD_CHECK(pthread_create(&two, NULL, tell_when_both_sleep, r) == 0);
	WORLD_CHECK(mc_coll_recv(r->coll, 2, 2, &x, sizeof(x), NULL) == 0 && x == 2);
	(void)pthread_join(two, NULL);
	world_tick(r->w);
	(void)pthread_join(one, &failed);
	return failed != NULL;
}

static void a_thread_that_waits_second_may_be_served_first(void **state)
{
	(void)state;
	world_run(3, 0, two_wait);
	world_run_on(3, 3, 0, two_wait);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(everyone_sends_to_everyone_at_once),
	    cmocka_unit_test(messages_of_every_size_go_back_and_forth),
	    cmocka_unit_test(a_receive_from_anyone_says_who_it_was),
	    cmocka_unit_test(what_a_dead_rank_sent_whole_is_received_and_the_rest_is_an_error),
	    cmocka_unit_test(a_message_of_another_length_is_refused_and_kept),
	    cmocka_unit_test(a_thread_that_waits_second_may_be_served_first),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
