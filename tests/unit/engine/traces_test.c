/*
 * traces_test.c: the policies for lanes and for polling, over what real transfers and waits took
 * (traces/README.md): what they cost against the best choice that never changes, and that they keep
 * what they promise.
 *
 * A line of a trace tells what one choice gave at one time, its neighbours what the others did. So
 * a replay asks the policy and gives it the neighbour that its choice names.
 */
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/mem.h"
#include "base/spin.h"
#include "engine/climb.h"

#define LINES_MAX 2048u
#define LANES_MAX 4u
#define CORES 2 /* of the machine that was recorded */

struct line {
	uint64_t v[4];
};

static struct line lines[LINES_MAX];

static unsigned trace_read(const char *name)
{
	char path[512], text[128];
	unsigned n = 0;
	FILE *f;

	assert_true(snprintf(path, sizeof(path), "%s/%s", MC_TRACES, name) < (int)sizeof(path));
	f = fopen(path, "re");
	if (!f)
		fail_msg("cannot open %s", path);
	while (fgets(text, sizeof(text), f)) {
		unsigned long long v[4];

		if (text[0] == '#')
			continue;
		assert_int_equal(sscanf(text, "%llu %llu %llu %llu", v, v + 1, v + 2, v + 3), 4);
		assert_true(n < LINES_MAX);
		for (unsigned i = 0; i < 4; i++)
			lines[n].v[i] = v[i];
		n++;
	}
	(void)fclose(f);
	assert_true(n > 100);
	return n;
}

/* ---- lanes: lines of at_us, bytes, took_us, width; three widths each time ---- */

struct widths {
	unsigned used[MC_CLIMB_WIDTHS];
	uint64_t took_us, fixed_us[MC_CLIMB_WIDTHS]; /* the policy's, and each width's alone */
};

/* Goes on with what `c` has learnt. */
static struct widths bulk_replay(struct mc_climb *c, unsigned from, unsigned to)
{
	struct widths w = {0};

	for (unsigned i = from; i < to; i++) {
		const struct line *now = &lines[(size_t)i * MC_CLIMB_WIDTHS];
		unsigned width = mc_climb_width(c, LANES_MAX);

		for (unsigned k = 0; k < MC_CLIMB_WIDTHS; k++) {
			assert_int_equal(now[k].v[3], k);
			w.fixed_us[k] += now[k].v[2];
		}
		mc_climb_note(c, width, now[width].v[1], now[width].v[2] * 1000);
		w.used[width]++;
		w.took_us += now[width].v[2];
	}
	return w;
}

/* What a policy must try costs this much at most. */
#define TRIES_COST 1.05

static void where_a_core_limits_no_lane_is_added(void **state)
{
	unsigned n = trace_read("bulk_one_core.txt") / MC_CLIMB_WIDTHS;
	struct mc_climb c = {0};
	struct widths w = bulk_replay(&c, 0, n);

	(void)state;
	for (unsigned k = 1; k < MC_CLIMB_WIDTHS; k++) /* the trace itself */
		assert_true(w.fixed_us[k] > w.fixed_us[0]);
	assert_true(w.used[1] + w.used[2] <= 2 * MC_CLIMB_LEARN + n / MC_CLIMB_EVERY + 1);
	assert_true((double)w.took_us <= (double)w.fixed_us[0] * TRIES_COST);
}

#define SHARED_US 6000000u  /* bulk_limited.txt: its connections share a limit by then */
#define LIMITED_US 5000000u /* and have one each until then, at least */
#define SETTLING 25u	    /* transfers until what was learnt before is forgotten */

static unsigned turn_at(unsigned n, uint64_t at_us)
{
	unsigned turn = 0;

	while (turn < n && lines[(size_t)turn * MC_CLIMB_WIDTHS].v[0] < at_us)
		turn++;
	return turn;
}

static void lanes_are_added_while_goodput_rises_and_dropped_when_it_does_not(void **state)
{
	unsigned n = trace_read("bulk_limited.txt") / MC_CLIMB_WIDTHS;
	unsigned limited = turn_at(n, LIMITED_US), shared = turn_at(n, SHARED_US) + SETTLING;
	struct widths before, after;
	struct mc_climb c = {0};

	(void)state;
	before = bulk_replay(&c, 0, limited);
	/* The trace itself: two lanes are far better than one, four no better than two. */
	assert_true(before.fixed_us[1] * 3 < before.fixed_us[0] * 2);
	assert_true((double)before.fixed_us[2] > (double)before.fixed_us[1] * MC_CLIMB_MARGIN);
	assert_true(before.used[0] <= MC_CLIMB_LEARN + limited / MC_CLIMB_EVERY + 1);
	assert_true(before.used[2] <= MC_CLIMB_LEARN + limited / MC_CLIMB_EVERY + 1);

	(void)bulk_replay(&c, limited, shared);
	after = bulk_replay(&c, shared, n);
	for (unsigned k = 1; k < MC_CLIMB_WIDTHS; k++) /* the trace itself */
		assert_true((double)after.fixed_us[k] >
			    (double)after.fixed_us[0] * MC_CLIMB_MARGIN);
	/* Noise of more than the margin lets another be believed better for a while. */
	assert_true(after.used[0] > (n - shared) / 2);
}

/* ---- polling: lines of at_ns, waited_ns, has_polled, runnable; each way in turn ---- */

#define BEGIN_NS 1000000000u /* of a trace: later than the last look at the machine */

static int load_fd = -1;

static int machine_open(void **state)
{
	static char path[64];

	(void)state;
	load_fd = memfd_create("loadavg", MFD_CLOEXEC);
	assert_true(load_fd >= 0);
	(void)snprintf(path, sizeof(path), "/proc/self/fd/%d", load_fd);
	mc_spin_machine(CORES, path);
	return 0;
}

static int machine_close(void **state)
{
	(void)state;
	mc_spin_machine(0, NULL);
	(void)close(load_fd);
	return 0;
}

static void machine_says(uint64_t runnable)
{
	char text[64];
	int n = snprintf(text, sizeof(text), "1.00 1.00 1.00 %llu/300 4242\n",
			 (unsigned long long)runnable);

	assert_int_equal(pwrite(load_fd, text, (size_t)n, 0), n);
	assert_int_equal(ftruncate(load_fd, n), 0);
}

struct waits {
	unsigned n, polled, polled_crowded, crowded;
	uint64_t took_ns, polling_ns, sleeping_ns; /* the policy's, and each way's alone */
	uint64_t last_polled_ns;
};

static struct waits waits_replay(unsigned n)
{
	const struct line *p = NULL;
	struct mc_spin spin = {0};
	struct waits w = {0};

	for (unsigned i = 0; i + 1 < n; i += 2) {
		const struct line *s = &lines[i + 1];
		uint64_t now_ns = BEGIN_NS + lines[i].v[0], took_ns = s->v[1];
		uint32_t budget_ns;
		bool polls;

		assert_int_equal(s->v[2], 0);
		if (lines[i].v[2])
			p = &lines[i]; /* none while polling was refused: then the last one */
		assert_non_null(p);
		machine_says(lines[i].v[3]);
		budget_ns = mc_spin_budget(&spin, now_ns);
		assert_true(budget_ns <= MC_SPIN_BUSY_MAX_NS);
		polls = budget_ns > 0 && mc_spin_enter(now_ns);
		if (polls) {
			mc_spin_leave();
			took_ns = p->v[1] <= budget_ns ? p->v[1] : mc_max(p->v[1], s->v[1]);
			w.last_polled_ns = lines[i].v[0];
		}
		mc_spin_note(&spin, now_ns + took_ns, took_ns, polls);
		w.n++;
		w.polled += polls;
		w.crowded += lines[i].v[3] > CORES;
		w.polled_crowded += polls && lines[i].v[3] > CORES;
		w.took_ns += took_ns;
		w.polling_ns += p->v[1];
		w.sleeping_ns += s->v[1];
	}
	return w;
}

static void waits_that_are_shorter_when_polled_for_are(void **state)
{
	struct waits w = waits_replay(trace_read("wait_idle.txt"));

	(void)state;
	assert_true(w.polling_ns * 2 < w.sleeping_ns); /* the trace itself */
	assert_int_equal(w.crowded, 0);
	assert_true(w.polled >= w.n / 10 * 9);
	assert_true(w.took_ns * 2 < w.sleeping_ns);
	assert_true((double)w.took_ns < (double)w.polling_ns * 1.25); /* it tries to sleep, too */
}

#define LOAD_ENDS_NS 3500000000u

static void nobody_polls_while_more_threads_are_runnable_than_cores(void **state)
{
	unsigned n = trace_read("wait_crowded.txt");
	struct waits w = waits_replay(n);

	(void)state;
	assert_in_range(w.crowded, w.n / 4, w.n / 4 * 3); /* the trace itself */
	assert_int_equal(w.polled_crowded, 0);
	assert_true(w.polled > (w.n - w.crowded) / 2);
	assert_true(w.last_polled_ns > LOAD_ENDS_NS); /* and afterwards again */
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(where_a_core_limits_no_lane_is_added),
	    cmocka_unit_test(lanes_are_added_while_goodput_rises_and_dropped_when_it_does_not),
	    cmocka_unit_test_setup_teardown(waits_that_are_shorter_when_polled_for_are,
					    machine_open, machine_close),
	    cmocka_unit_test_setup_teardown(nobody_polls_while_more_threads_are_runnable_than_cores,
					    machine_open, machine_close),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
