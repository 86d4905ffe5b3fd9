/*
 * cases_storm.c: lanes that drop, delay, reorder, corrupt and break, driven by the rules of xport.h
 * as the engine must obey them: what is UNSENT or was refused goes again at once, what is MAYBE
 * only after the target has retired the lane. In the end every slice has ended well and once, and
 * both memories are as if nothing had happened.
 *
 * The relay delivers bytes of lanes that are long gone. A later round writes other bytes to the
 * same places, so a late byte that got through would be seen.
 */
#include <stdio.h>

#include "conform.h"

#define NJOBS 60
#define STUCK_NS                                                                                   \
	(80 * MC_NS_PER_MS) /* then the lane is given up, as the engine's watchdog does            \
			     */

static struct job jobs[NJOBS];
static unsigned lanes_used, maybes, losses;

/* Slices of `jobs` from `posted` on that are still to be done, in a new order. */
static void give_up(struct mc_xlane *lane)
{
	uint8_t token[MC_XPORT_TOKEN_MAX];
	struct mc_list left, *node;
	struct order o = {.op = ORDER_RETIRE};
	bool is_maybe = false;
	size_t len;

	mc_list_init(&left);
	len = lane->ops->abort(lane, &left, token);
	while ((node = mc_list_pop_front(&left))) {
		struct mc_slice *s = mc_list_entry(node, struct mc_slice, link);

		is_maybe |= s->verdict == MC_SLICE_MAYBE;
		assert_int_equal(((struct job *)s->user)->ended, 2); /* posted */
		((struct job *)s->user)->ended = s->verdict == MC_SLICE_DONE && s->status == 0;
		losses++;
	}
	lane_close(lane);
	lanes_used++;
	if (!is_maybe)
		return;
	assert_true(len > 0);
	maybes++;
	o.a = len;
	memcpy(o.token, token, len);
	assert_int_equal(peer_order(&env.peer, o).rc, 0);
}

/* `ended`: 0 to do, 2 posted, 1 done. @return 0: all done; 1: the lane was given up */
static int storm_lane(struct mc_xlane *lane)
{
	uint64_t moved = 0, end_ns = mc_now_ns() + STUCK_NS;
	unsigned todo = NJOBS;

	for (unsigned i = 0; i < NJOBS; i++)
		todo -= jobs[i].ended == 1;
	while (todo > 0) {
		struct mc_slice *done[6];
		int rc = 0;

		for (unsigned i = 0; i < NJOBS && rc >= 0; i++) {
			struct mc_slice *s = &jobs[i].s;

			if (jobs[i].ended != 0)
				continue;
			rc = lane->ops->post(lane, &s, 1);
			if (rc <= 0)
				break;
			jobs[i].ended = 2;
		}
		if (rc >= 0)
			rc = lane->ops->poll(lane, 5 * MC_NS_PER_MS, done, 6);
		for (int i = 0; i < rc; i++) {
			struct job *j = done[i]->user;

			assert_int_equal(j->ended, 2);
			j->ended = done[i]->status == 0;
			todo -= j->ended;
			assert_true(done[i]->status == 0 || done[i]->status == -MC_E_CORRUPT);
		}
		if (rc > 0 || lane->ops->progress(lane) != moved)
			end_ns = mc_now_ns() + STUCK_NS;
		moved = lane->ops->progress(lane);
		if (rc < 0 || mc_now_ns() > end_ns) {
			give_up(lane);
			return 1;
		}
	}
	lane_close(lane);
	return 0;
}

static void storm_round(uint64_t len)
{
	uint64_t end_ns = mc_now_ns() + 60 * MC_NS_PER_S;

	for (unsigned i = 0; i < NJOBS; i++)
		job_make(&jobs[i], i % 3 ? MC_OP_WRITE : MC_OP_READ, PLACE_MAIN, i * (len + 200),
			 i * (len + 200), len, 1 + i % 20, 9);
	while (storm_lane(lane_open()) != 0)
		assert_true(mc_now_ns() < end_ns);
	for (unsigned i = 0; i < NJOBS; i++) {
		assert_int_equal(jobs[i].ended, 1);
		job_expect(&jobs[i]);
		job_free(&jobs[i]);
	}
	env_check();
}

static void a_storm_loses_doubles_and_delays_nothing(void **state)
{
	static const uint64_t lens[] = {60, 20000, 900, 60000};
	unsigned rounds = env.is_long ? 600 : 32;
	struct mc_fault_stats *st = mc_fault_dev_stats(env.side.dev);
	struct relay_stats rs;

	env_reset();
	for (unsigned i = 0; i < rounds; i++) {
		storm_round(lens[i % MC_ARRAY_LEN(lens)]);
		/* New bytes for the same places. */
		pattern_fill(env.local, LOCAL_LEN, 1000 + i);
		memcpy(env.local_shadow, env.local, LOCAL_LEN);
	}
	relay_stats(env.peer.relay, &rs);
	print_message("lanes %u, fenced %u, slices sent again %u, resets %u, late bytes %llu\n",
		      lanes_used, maybes, losses, rs.resets, (unsigned long long)rs.late_bytes);
	/* A quiet storm would prove nothing. */
	assert_true(lanes_used > 10 && maybes > 3 && losses > 10);
	assert_true(st->refused && st->idled && st->held && st->dropped && st->broken &&
		    st->corrupted);
	assert_true(rs.resets > 0);
	(void)state;
}

const struct conform_case cases_storm[] = {
    {"a storm loses, doubles and delays nothing", a_storm_loses_doubles_and_delays_nothing, T_LOSSY,
     0, 0},
    {0},
};
