/*
 * cases_sweep.c: the edges of what is registered, all of them: every begin and every length that is
 * a limit of something, reads and writes, on every transport. What arithmetic without overflow says
 * is inside ends well; all else is refused and moves nothing.
 *
 * The place that is swept lies between pages that nobody may touch, where the transport does not
 * bring the memory itself. A row of transports.c runs each part, or says why it cannot apply.
 */
#include <stdio.h>

#include "conform.h"

#define BEGINS_MAX 32u
#define LANES_MAX 4u

/* What a sweep has seen. */
struct tally {
	unsigned done, refused;
};

static struct mc_xlane *lanes[LANES_MAX];
static unsigned nlanes, next_lane;

/* One lane for each rail, used in turn. */
static void lanes_open(void)
{
	nlanes = env.tr->rails ? env.tr->rails : 1;
	for (unsigned i = 0; i < nlanes; i++)
		lanes[i] = lane_open();
}

static void lanes_close(const char *what, const struct tally *t)
{
	for (unsigned i = 0; i < nlanes; i++)
		lane_close(lanes[i]);
	print_message("sweep: %s: %s: %u done, %u refused\n", env.tr->name, what, t->done,
		      t->refused);
	env_check();
}

#define USER_SPACE (1ull << 47)

static struct mc_xlane **lane_next(void)
{
	return &lanes[next_lane++ % nlanes];
}

static void job_one(struct job *j, enum mc_op op, const struct mc_remote_region *rr, uint64_t raddr,
		    uint64_t len)
{
	job_make(j, op, PLACE_EDGE, 0, 4096, 1, 1, 0);
	j->frags[0].rr = rr;
	j->frags[0].raddr = raddr;
	j->frags[0].len = j->s.len = len;
}

static void expect_done(enum mc_op op, enum place p, uint64_t off, uint64_t len, struct tally *t)
{
	struct mc_xlane **lane = lane_next();
	struct job j;

	job_make(&j, op, p, off, 4096 + mc_rand_below(&env.rand, 4096), len, 1, 0);
	assert_int_equal(job_drive(lane, &j), 0);
	lane_settle(*lane);
	job_expect(&j);
	job_check(&j, 4096);
	job_free(&j);
	t->done++;
}

/* Version 1 cannot say no: it hangs up. Behind a write, whose end is not told, a read finds out. */
static void expect_hang_up(struct job *refused)
{
	struct mc_xlane **lane = lane_next();
	uint8_t token[MC_XPORT_TOKEN_MAX];
	struct job jobs[2];
	unsigned maybe;

	jobs[0] = *refused;
	jobs[0].s.user = &jobs[0];
	job_make(&jobs[1], MC_OP_READ, PLACE_MAIN, 0, 100, 64, 1, 0);
	assert_int_equal(jobs_run(*lane, jobs, 2), -MC_E_RESET);
	assert_int_equal(lane_abort(*lane, jobs, 2, token, &maybe), 0);
	job_free(&jobs[1]);
	*lane = lane_open();
}

/* code 0: whichever word the transport has for no */
static void expect_refused(enum mc_op op, const struct mc_remote_region *rr, uint64_t raddr,
			   uint64_t len, int code, struct tally *t)
{
	struct job j;
	int rc;

	/* Local memory so near the end of the address space that the kernel refuses the length. */
	if ((uintptr_t)env.local < USER_SPACE && len < USER_SPACE &&
	    (uintptr_t)env.local + 4096 + len > USER_SPACE)
		return;
	job_one(&j, op, rr, raddr, len);
	t->refused++;
	if (env.tr->flags & T_MUTE) {
		expect_hang_up(&j);
		job_free(&j);
		return;
	}
	rc = job_drive(lane_next(), &j);
	if (code && env.tr->flags & T_GEN)
		assert_int_equal(rc, code);
	else
		assert_true(rc == -MC_E_RANGE || rc == -MC_E_INVAL || rc == -MC_E_PERM ||
			    rc == -MC_E_STALE);
	/* A file is read up to its end before that is found. */
	if (env.tr->flags & T_PLAIN && op == MC_OP_READ)
		memcpy(env.local_shadow + 4096, env.local + 4096,
		       mc_min(len, 2 * (uint64_t)SMALL_LEN));
	assert_true(memcmp(env.local, env.local_shadow, 3 * SMALL_LEN) == 0);
	job_free(&j);
}

/* Where accesses of len bytes begin: around both ends of [lo, hi), and of the address space. */
static unsigned begins(uint64_t lo, uint64_t hi, uint64_t len, uint64_t *ret)
{
	const uint64_t all[] = {
	    0,
	    1,
	    lo - len,
	    lo - len + 1,
	    lo - 4096,
	    lo - 1,
	    lo,
	    lo + 1,
	    lo + 4095,
	    lo + 4096,
	    hi - len - 1,
	    hi - len,
	    hi - len + 1,
	    hi - 4096,
	    hi - 1,
	    hi,
	    hi + 1,
	    hi + 4095,
	    hi + 4096,
	    1ull << 47,
	    1ull << 63,
	    UINT64_MAX - len,
	    0 - len,
	    UINT64_MAX - 1,
	    UINT64_MAX,
	};

	mc_assert(MC_ARRAY_LEN(all) <= BEGINS_MAX);
	memcpy(ret, all, sizeof(all));
	return MC_ARRAY_LEN(all);
}

/*
 * A file has no registered ranges: what is inside it may be touched, a write makes it longer, and a
 * read moves what there is before it finds the end, which has to fit here.
 */
static bool is_elsewhere(enum mc_op op, uint64_t at, uint64_t len, uint64_t hi)
{
	__uint128_t end = (__uint128_t)at + len;

	if (!(env.tr->flags & T_PLAIN))
		return false;
	if (op == MC_OP_WRITE)
		return end <= INT64_MAX;
	return end <= hi || (at < hi && len > 2 * SMALL_LEN);
}

/* Every begin and length of PLACE_EDGE, of which `whole` bytes are registered. */
static void sweep_bounds(uint64_t whole, const struct mc_remote_region *rr, struct tally *t)
{
	const uint64_t lo = env.rr[PLACE_EDGE].addr, hi = lo + whole;
	const uint64_t lens[] = {1,	     2,		 8,	     4095,	 4096,
				 4097,	     whole - 1,	 whole,	     whole + 1,	 whole + 4096,
				 1ull << 30, 1ull << 32, 1ull << 62, 0 - lo - 1, 0 - lo,
				 INT64_MAX,  UINT64_MAX};
	uint64_t at[BEGINS_MAX];

	for (size_t i = 0; i < MC_ARRAY_LEN(lens); i++) {
		uint64_t len = lens[i];
		unsigned n = begins(lo, hi, len, at);

		/* What a slice may be; and a write's bytes must exist here. */
		if (len > lanes[0]->ops->len_max)
			continue;
		for (unsigned k = 0; k < n * MC_OP_COUNT; k++) {
			enum mc_op op = k % MC_OP_COUNT;
			uint64_t b = at[k / MC_OP_COUNT];

			if (op == MC_OP_WRITE && len > LOCAL_LEN / 2)
				continue;
			if (b >= lo && b < hi && len <= hi - b)
				expect_done(op, PLACE_EDGE, env.rr_off[PLACE_EDGE] + (b - lo), len,
					    t);
			else if (!is_elsewhere(op, b, len, hi))
				expect_refused(op, rr, b, len, -MC_E_RANGE, t);
		}
	}
}

static void nothing_beyond_either_end_is_touched(void **state)
{
	struct mc_remote_region wide = env.rr[PLACE_EDGE];
	struct tally t = {0};

	env_reset();
	lanes_open();
	sweep_bounds(EDGE_LEN, &env.rr[PLACE_EDGE], &t);
	/* The initiator believes in more than there is: the target's side alone says no. */
	wide.addr -= 8192;
	wide.len += 16384;
	if (env.tr->flags & (T_ADDR | T_KEY))
		sweep_bounds(EDGE_LEN, &wide, &t);
	lanes_close("bounds", &t);
	(void)state;
}

static void length_0_is_refused(void **state)
{
	struct tally t = {0};
	uint64_t at[BEGINS_MAX];
	unsigned n = begins(env.rr[PLACE_EDGE].addr, env.rr[PLACE_EDGE].addr + EDGE_LEN, 0, at);

	env_reset();
	lanes_open();
	for (unsigned k = 0; k < n * MC_OP_COUNT; k++)
		expect_refused(k % MC_OP_COUNT, &env.rr[PLACE_EDGE], at[k / MC_OP_COUNT], 0, 0, &t);
	lanes_close("length 0", &t);
	(void)state;
}

/* Accesses that would be in order, were it not for `rr`. */
static void refuse_inside(enum mc_op op, const struct mc_remote_region *rr, uint64_t len, int code,
			  struct tally *t)
{
	const uint64_t some[][2] = {{0, 1}, {len - 1, 1}, {4095, 2}, {len / 2, 4096}, {0, len}};

	for (size_t i = 0; i < MC_ARRAY_LEN(some); i++)
		expect_refused(op, rr, rr->addr + some[i][0], some[i][1], code, t);
}

static void the_wrong_right_is_refused(void **state)
{
	struct tally t = {0};

	env_reset();
	lanes_open();
	for (int i = 0; i < 3; i++) {
		refuse_inside(MC_OP_WRITE, &env.rr[PLACE_RO], place_len(PLACE_RO), -MC_E_PERM, &t);
		refuse_inside(MC_OP_READ, &env.rr[PLACE_WO], place_len(PLACE_WO), -MC_E_PERM, &t);
		expect_done(MC_OP_READ, PLACE_RO, 0, place_len(PLACE_RO), &t);
		expect_done(MC_OP_WRITE, PLACE_WO, 0, place_len(PLACE_WO), &t);
	}
	lanes_close("wrong right", &t);
	(void)state;
}

/* PLACE_EDGE, or a part of it, is registered anew. */
static void edge_add(uint64_t off, uint64_t len)
{
	struct reply r = order(.op = ORDER_ADD, .i = PLACE_EDGE, .a = off, .b = len);

	assert_int_equal(r.rc, 0);
	env.rr[PLACE_EDGE] = r.rr;
	env.rr_off[PLACE_EDGE] = off;
}

static void what_is_unregistered_is_refused(void **state)
{
	struct mc_remote_region old = env.rr[PLACE_EDGE];
	struct tally t = {0};

	env_reset();
	lanes_open();
	expect_done(MC_OP_WRITE, PLACE_EDGE, 0, EDGE_LEN, &t);
	assert_int_equal(order(.op = ORDER_DEL, .i = PLACE_EDGE).rc, 0);
	assert_int_equal(order(.op = ORDER_FILL, .i = PLACE_EDGE, .a = 99).rc, 0);
	pattern_fill(env.shadow[PLACE_EDGE], EDGE_LEN, 99);
	for (int op = 0; op < MC_OP_COUNT; op++)
		refuse_inside((enum mc_op)op, &old, EDGE_LEN, -MC_E_STALE, &t);
	env_check_range(PLACE_EDGE, 0, EDGE_LEN);
	/* Its pages are nobody's now: an access would not find its way back. */
	assert_int_equal(order(.op = ORDER_HIDE, .i = PLACE_EDGE).rc, 0);
	for (int op = 0; op < MC_OP_COUNT; op++)
		refuse_inside((enum mc_op)op, &old, EDGE_LEN, -MC_E_STALE, &t);
	assert_int_equal(order(.op = ORDER_SHOW, .i = PLACE_EDGE).rc, 0);
	edge_add(0, 0);
	expect_done(MC_OP_READ, PLACE_EDGE, 0, EDGE_LEN, &t);
	lanes_close("freed", &t);
	(void)state;
}

/* The edges are those of the last registration. */
static void what_is_registered_anew_has_new_edges(void **state)
{
	static const uint64_t parts[][2] = {
	    {4096, EDGE_LEN - 8192}, {1, EDGE_LEN - 2}, {0, EDGE_LEN / 2}};
	struct tally t = {0};

	env_reset();
	lanes_open();
	for (size_t i = 0; i < MC_ARRAY_LEN(parts); i++) {
		assert_int_equal(order(.op = ORDER_DEL, .i = PLACE_EDGE).rc, 0);
		edge_add(parts[i][0], parts[i][1]);
		sweep_bounds(parts[i][1], &env.rr[PLACE_EDGE], &t);
		env_check_range(PLACE_EDGE, 0, EDGE_LEN);
	}
	assert_int_equal(order(.op = ORDER_DEL, .i = PLACE_EDGE).rc, 0);
	edge_add(0, 0);
	lanes_close("registered anew", &t);
	(void)state;
}

static void a_stale_generation_is_refused(void **state)
{
	struct mc_remote_region old = env.rr[PLACE_EDGE], lie;
	struct tally t = {0};

	env_reset();
	lanes_open();
	assert_int_equal(order(.op = ORDER_DEL, .i = PLACE_EDGE).rc, 0);
	edge_add(0, 0);
	for (int op = 0; op < MC_OP_COUNT; op++) {
		const uint32_t gens[] = {old.gen, 0, env.rr[PLACE_EDGE].gen - 1,
					 env.rr[PLACE_EDGE].gen + 1, UINT32_MAX};
		const uint32_t ids[] = {old.id + 5000, MC_REGIONS_MAX - 1, MC_REGIONS_MAX,
					INT32_MAX, UINT32_MAX};

		for (size_t i = 0; i < MC_ARRAY_LEN(gens); i++) {
			lie = env.rr[PLACE_EDGE];
			lie.gen = gens[i];
			refuse_inside((enum mc_op)op, &lie, EDGE_LEN, -MC_E_STALE, &t);
		}
		for (size_t i = 0; i < MC_ARRAY_LEN(ids); i++) {
			lie = env.rr[PLACE_EDGE];
			lie.id = ids[i];
			refuse_inside((enum mc_op)op, &lie, EDGE_LEN, -MC_E_STALE, &t);
		}
		expect_done((enum mc_op)op, PLACE_EDGE, 0, EDGE_LEN, &t);
	}
	lanes_close("stale generation", &t);
	(void)state;
}

static void a_stale_key_is_refused(void **state)
{
	struct mc_remote_region old = env.rr[PLACE_EDGE], lie;
	struct tally t = {0};

	env_reset();
	lanes_open();
	assert_int_equal(order(.op = ORDER_DEL, .i = PLACE_EDGE).rc, 0);
	edge_add(0, 0);
	for (int op = 0; op < MC_OP_COUNT; op++) {
		refuse_inside((enum mc_op)op, &old, EDGE_LEN, -MC_E_STALE, &t);
		for (unsigned bit = 0; bit < 32; bit += 5) {
			lie = env.rr[PLACE_EDGE];
			for (size_t i = 0; i < sizeof(lie.key); i += 4) /* of each port */
				lie.key[i + bit / 8] ^= (uint8_t)(1u << bit % 8);
			refuse_inside((enum mc_op)op, &lie, EDGE_LEN, -MC_E_STALE, &t);
		}
		expect_done((enum mc_op)op, PLACE_EDGE, 0, EDGE_LEN, &t);
	}
	lanes_close("stale key", &t);
	(void)state;
}

const struct conform_case cases_sweep[] = {
    {"sweep: nothing beyond either end is touched", nothing_beyond_either_end_is_touched,
     .sweep = SWEEP_BOUNDS},
    {"sweep: length 0 is refused", length_0_is_refused, .sweep = SWEEP_ZERO},
    {"sweep: the wrong right is refused", the_wrong_right_is_refused, .sweep = SWEEP_RIGHT},
    {"sweep: what is unregistered is refused", what_is_unregistered_is_refused,
     .sweep = SWEEP_FREED},
    {"sweep: what is registered anew has new edges", what_is_registered_anew_has_new_edges,
     .sweep = SWEEP_AGAIN},
    {"sweep: a stale generation is refused", a_stale_generation_is_refused,
     .sweep = SWEEP_GENERATION},
    {"sweep: a stale key is refused", a_stale_key_is_refused, .sweep = SWEEP_KEY},
    {0},
};
