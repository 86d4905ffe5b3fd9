/*
 * api_watch_test.c: a watch of a peer ends once, when the peer's process is gone and not before, by
 * the native C API, with shared memory ("shm") and without ("tcp"). A peer that restarts under its
 * name: engine_kill_test.c.
 */
#include <dirent.h>
#include <fcntl.h>
#include <sys/resource.h>
#include <unistd.h>

#include "api_fix.h"
#include "rundir.h"
#include "sanitized.h"

#define SOON_NS (3 * NS_PER_S)

static uint64_t watch(struct world *w, struct mc_cq *cq, uint64_t user)
{
	uint64_t id = 0;

	assert_int_equal(mc_segment_watch(w->eng, w->seg, cq, user, &id), 0);
	return id;
}

static int end_of(struct world *w, uint64_t id, uint64_t most_ns)
{
	struct mc_status st = {0};
	struct mc_diag diag;

	assert_int_equal(mc_group_wait(w->eng, id, most_ns, &st), 0);
	assert_true(st.is_done);
	assert_int_equal(mc_group_diag(w->eng, id, &diag), 0);
	assert_non_null(strstr(diag.text, w->peer.name));
	assert_int_equal(mc_group_free(w->eng, id), 0);
	return st.status;
}

static bool is_under_way(struct world *w, uint64_t id)
{
	struct mc_status st = {0};

	assert_int_equal(mc_group_status(w->eng, id, &st), 0);
	return !st.is_done;
}

static void a_killed_peer_ends_its_watches_once(void **state)
{
	static uint8_t buf[4096];
	struct mc_completion done[4];
	struct mc_cq *cq;
	struct world w;
	uint64_t id;

	(void)state;
	for (unsigned is_used = 0; is_used < 2; is_used++) {
		world_open(&w);
		assert_int_equal(mc_cq_open(w.eng, 4, &cq), 0);
		if (is_used) /* lanes are open, too */
			assert_int_equal(move(w.eng, MC_WRITE, w.seg, buf, w.peer.base, 4096), 0);
		id = watch(&w, NULL, 0);
		(void)watch(&w, cq, 31);
		(void)watch(&w, cq, 32);
		assert_int_equal(mc_cq_wait(cq, done, 4, NS_PER_S / 5), 0);
		assert_true(is_under_way(&w, id));
		peer_kill(&w.peer);
		assert_int_equal(end_of(&w, id, SOON_NS), -MC_E_PEER_DEAD);
		for (unsigned n = 0, sum = 0; n < 2;) {
			int got = mc_cq_wait(cq, done, 1, SOON_NS);

			assert_int_equal(got, 1);
			assert_int_equal(done[0].status, -MC_E_PEER_DEAD);
			sum += (unsigned)done[0].user;
			if (++n == 2)
				assert_int_equal(sum, 63);
		}
		assert_int_equal(mc_cq_wait(cq, done, 4, NS_PER_S / 5), 0);
		mc_cq_close(cq);
		mc_engine_close(w.eng);
	}
}

static void a_peer_that_closes_in_order_ends_its_watch(void **state)
{
	struct world w;
	uint64_t id;

	(void)state;
	world_open(&w);
	id = watch(&w, NULL, 0);
	peer_close(&w.peer);
	assert_int_equal(end_of(&w, id, SOON_NS), -MC_E_PEER_DEAD);
	mc_engine_close(w.eng);
}

/* It is silent only: calls of ours time out, and their connection is given up. */
static void a_stopped_peer_is_not_dead(void **state)
{
	static uint8_t buf[4096];
	struct world w;
	struct one o;
	uint64_t id;

	(void)state;
	world_open(&w);
	id = watch(&w, NULL, 0);
	peer_stop(&w.peer);
	assert_true(mc_transfer_sync(w.eng,
				     one(&o, MC_READ, w.seg, buf, w.peer.base, 4096, NS_PER_S),
				     NULL) < 0);
	nap(4 * NS_PER_S);
	assert_true(is_under_way(&w, id));
	peer_go(&w.peer);
	assert_int_equal(move(w.eng, MC_READ, w.seg, buf, w.peer.base, 4096), 0);
	assert_true(is_under_way(&w, id));
	peer_stop(&w.peer);
	peer_kill(&w.peer);
	assert_int_equal(end_of(&w, id, 20 * NS_PER_S), -MC_E_PEER_DEAD);
	mc_engine_close(w.eng);
}

static void a_watch_can_be_ended(void **state)
{
	struct mc_completion done;
	struct mc_cq *cq;
	struct world w;
	uint64_t id[3], at;

	(void)state;
	world_open(&w);
	assert_int_equal(mc_cq_open(w.eng, 1, &cq), 0);
	id[0] = watch(&w, NULL, 0);
	id[1] = watch(&w, cq, 9);
	assert_int_equal(mc_segment_watch(w.eng, w.seg, cq, 0, &id[2]), -MC_E_AGAIN);
	assert_int_equal(mc_group_cancel(w.eng, id[0]), 0);
	assert_int_equal(end_of(&w, id[0], SOON_NS), -MC_E_CANCELED);
	assert_int_equal(mc_group_cancel(w.eng, id[1]), 0);
	assert_int_equal(mc_cq_wait(cq, &done, 1, SOON_NS), 1);
	assert_int_equal(done.status, -MC_E_CANCELED);
	assert_int_equal(done.user, 9);
	assert_int_equal(mc_group_cancel(w.eng, id[1]), -MC_E_STALE);
	(void)watch(&w, cq, 9);
	at = now_ns();
	mc_cq_close(cq); /* waits for what is under way on it */
	assert_true(now_ns() - at < SOON_NS);
	id[0] = watch(&w, NULL, 0);
	assert_int_equal(mc_segment_close(w.eng, w.seg), 0);
	assert_int_equal(end_of(&w, id[0], SOON_NS), -MC_E_CLOSED);
	assert_int_equal(mc_segment_watch(w.eng, w.seg, NULL, 0, &id[0]), -MC_E_STALE);
	assert_int_equal(mc_segment_open(w.eng, w.peer.name, 0, NULL, &w.seg), 0);
	(void)watch(&w, NULL, 0);
	at = now_ns();
	mc_engine_close(w.eng);
	assert_true(now_ns() - at < SOON_NS);
	peer_close(&w.peer);
}

static void what_has_no_incarnation_is_not_watched(void **state)
{
	struct mc_engine *eng = engine_open();
	uint64_t id;
	int32_t seg;

	(void)state;
	assert_int_equal(mc_segment_watch(eng, 7, NULL, 0, &id), -MC_E_STALE);
	if (!getenv("MC_FORCE_TCP")) /* else it is a peer like any other */
		assert_int_equal(mc_segment_watch(eng, MC_SEGMENT_LOCAL, NULL, 0, &id),
				 -MC_E_UNSUPPORTED);
	assert_int_equal(mc_segment_open(eng, "file:///proc/self/exe", 0, NULL, &seg), 0);
	assert_int_equal(mc_segment_watch(eng, seg, NULL, 0, &id), -MC_E_UNSUPPORTED);
	mc_engine_close(eng);
}

/* A second without a wake-up; the engine may have things to put away before. */
static unsigned nfds(void)
{
	DIR *dir = opendir("/proc/self/fd");
	unsigned n = 0;

	assert_non_null(dir);
	while (readdir(dir))
		n++;
	(void)closedir(dir);
	return n;
}

/* Sessions end on a worker. */
static bool fds_come_to(unsigned most)
{
	for (unsigned i = 0; i < 500 && nfds() > most; i++)
		nap(NS_PER_S / 100);
	return nfds() <= most;
}

static void a_released_peer_costs_nothing_and_is_found_again(void **state)
{
	static uint8_t buf[4096];
	struct world w;
	unsigned idle;
	uint64_t id;

	(void)state;
	world_open(&w);
	assert_int_equal(mc_segment_release(w.eng, w.seg), 0);
	nap(NS_PER_S / 2);
	idle = nfds();
	for (unsigned i = 0; i < 20; i++) {
		assert_int_equal(move(w.eng, MC_WRITE, w.seg, buf, w.peer.base, 4096), 0);
		assert_true(nfds() > idle);
		assert_int_equal(mc_segment_release(w.eng, w.seg), 0);
		assert_true(fds_come_to(idle));
	}
	/* What is under way keeps what it needs. */
	id = watch(&w, NULL, 0);
	assert_int_equal(mc_segment_release(w.eng, w.seg), 0);
	assert_true(is_under_way(&w, id));
	peer_kill(&w.peer);
	assert_int_equal(end_of(&w, id, SOON_NS), -MC_E_PEER_DEAD);
	assert_true(fds_come_to(idle));
	assert_int_equal(mc_segment_release(w.eng, 77), -MC_E_STALE);
	assert_int_equal(mc_segment_release(w.eng, MC_SEGMENT_LOCAL), 0);
	mc_engine_close(w.eng);
}

static void a_watch_of_a_living_peer_costs_nothing(void **state)
{
	struct rusage before, after;
	bool is_quiet = false;
	struct world w;
	uint64_t id;

	(void)state;
	world_open(&w);
	id = watch(&w, NULL, 0);
	for (unsigned i = 0; i < 10 && !is_quiet; i++) {
		assert_int_equal(getrusage(RUSAGE_SELF, &before), 0);
		nap(NS_PER_S);
		assert_int_equal(getrusage(RUSAGE_SELF, &after), 0);
		is_quiet = after.ru_nvcsw - before.ru_nvcsw <= 1; /* our own sleep */
	}
	assert_true(is_quiet || IS_SANITIZED); /* TSan has a thread that wakes up */
	assert_true(is_under_way(&w, id));
	world_close(&w);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(a_killed_peer_ends_its_watches_once),
	    cmocka_unit_test(a_peer_that_closes_in_order_ends_its_watch),
	    cmocka_unit_test(a_stopped_peer_is_not_dead),
	    cmocka_unit_test(a_watch_can_be_ended),
	    cmocka_unit_test(what_has_no_incarnation_is_not_watched),
	    cmocka_unit_test(a_released_peer_costs_nothing_and_is_found_again),
	    cmocka_unit_test(a_watch_of_a_living_peer_costs_nothing),
	};

	char dir[] = "/tmp/mc-watch-XXXXXX";
	int failed;

	if (argc > 1 && strcmp(argv[1], "peer") == 0)
		return peer_main();
	if (argc > 1 && strcmp(argv[1], "tcp") == 0)
		(void)setenv("MC_FORCE_TCP", "1", 1);
	rundir_open(dir);
	failed = cmocka_run_group_tests(tests, NULL, NULL);
	rundir_close(dir);
	return failed;
}
