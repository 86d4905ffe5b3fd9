/*
 * coll_misuse_test.c: ranks of one group that call different things. Every pair of operations, and
 * every way to differ in one: type, reduction, root, count; in the page, in the area, and in
 * several rounds; on one host and over hosts. Nobody waits for long, nobody gets a wrong result as
 * a right one, somebody is told who called what, and after at most one operation more that says so
 * again the group is as good as before.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/mem.h"
#include "call.h"
#include "coll/priv.h"

#define RANKS_MAX 3
#define CASES_MAX 400
#define SOON_NS (10 * MC_NS_PER_S)
#define SCRATCH 65536u

struct ask {
	enum mc_coll_kind kind;
	enum mc_coll_type type;
	enum mc_coll_reduce reduce;
	uint32_t root;
	uint64_t count;
};

/* What one rank does instead of the others' call. */
struct misuse {
	struct ask theirs, odd;
};

/* Shared: how the calls ended, by rank, and the operation after. */
static struct ended {
	int rc[CASES_MAX][RANKS_MAX], next[CASES_MAX][RANKS_MAX];
} * ended;

static struct misuse cases[CASES_MAX];
static unsigned ncases;
static uint32_t odd_rank;

static bool is_rooted(enum mc_coll_kind kind)
{
	return kind == MC_COLL_REDUCE || kind == MC_COLL_GATHER || kind == MC_COLL_BROADCAST ||
	       kind == MC_COLL_SCATTER;
}

static bool is_reduced(enum mc_coll_kind kind)
{
	return kind == MC_COLL_ALL_REDUCE || kind == MC_COLL_REDUCE ||
	       kind == MC_COLL_REDUCE_SCATTER;
}

static void add(struct ask theirs, struct ask odd)
{
	assert_true(ncases < CASES_MAX);
	cases[ncases++] = (struct misuse){theirs, odd};
}

/* All ways to differ from a call of `kind`. */
static void add_kind(enum mc_coll_kind kind, uint64_t count, uint32_t ranks)
{
	struct ask a = {kind, MC_COLL_F32, MC_COLL_SUM, 0, count}, b;

	for (unsigned other = 0; other < MC_COLL_KIND_COUNT; other++) {
		b = a;
		b.kind = (enum mc_coll_kind)other;
		if (b.kind != kind)
			add(a, b);
	}
	if (kind == MC_COLL_BARRIER)
		return;
	b = a;
	b.type = MC_COLL_I32; /* as many bytes */
	add(a, b);
	b.type = MC_COLL_F64;
	add(a, b);
	b = a;
	b.count = count / 2;
	add(a, b);
	b.count = count * 3;
	add(a, b);
	b.count = 0;
	add(a, b);
	b = a;
	b.reduce = MC_COLL_MAX;
	if (is_reduced(kind))
		add(a, b);
	b = a;
	for (b.root = 1; is_rooted(kind) && b.root < ranks; b.root++)
		add(a, b);
}

static int run_one(struct rank *r, const struct ask *a, uint64_t number, bool *ret_is_right)
{
	struct mc_coll_result res;
	struct call c = {.op.root = is_rooted(a->kind) ? a->root : 0};
	int rc;

	call_make_as(&c, r, number, a->kind, a->type, a->reduce, a->count);
	rc = mc_coll_run(r->coll, &c.op, &res);
	*ret_is_right = rc != 0 || call_is_right(&c, r, res.ranks);
	call_free(&c);
	return rc;
}

static int misuse_all(struct rank *r)
{
	struct ask plain = {MC_COLL_ALL_REDUCE, MC_COLL_F64, MC_COLL_SUM, 0, 5};
	uint64_t all = (1ull << r->ranks) - 1, seen;
	bool is_right;

	for (unsigned i = 0; i < ncases; i++) {
		const struct misuse *m = &cases[i];
		uint64_t from_ns = mc_now_ns();

		ended->rc[i][r->rank] =
		    run_one(r, r->rank == odd_rank ? &m->odd : &m->theirs, i, &is_right);
		if (!is_right || mc_now_ns() - from_ns > SOON_NS || ended->rc[i][r->rank] < -1)
			(void)fprintf(stderr, "case %u rank %u: %d %s\n", i, r->rank,
				      ended->rc[i][r->rank], world_explain(r));
		WORLD_CHECK(is_right);
		WORLD_CHECK(mc_now_ns() - from_ns < SOON_NS);
		WORLD_CHECK(ended->rc[i][r->rank] == 0 || ended->rc[i][r->rank] == -MC_E_INVAL);
		if (ended->rc[i][r->rank] < 0)
			WORLD_CHECK(strstr(world_explain(r), "of group world: rank "));
		/* Nobody's call ends only because another one's next call has begun. */
		world_tick(r->w);
		world_wait_ticks(r->w, (i + 1) * r->ranks);
		ended->next[i][r->rank] = run_one(r, &plain, i, &is_right);
		WORLD_CHECK(is_right);
		WORLD_CHECK(world_count_ranks(r, &seen) == 0 && seen == all);
	}
	return 0;
}

static const char *kinds[] = {"barrier", "all_reduce", "reduce",  "reduce_scatter", "all_gather",
			      "gather",	 "broadcast",  "scatter", "all_to_all"};

static void print_case(unsigned i, uint32_t ranks)
{
	const struct ask *a[2] = {&cases[i].theirs, &cases[i].odd};

	for (int k = 0; k < 2; k++)
		(void)fprintf(stderr, "%s %s red %d root %u count %llu%s", kinds[a[k]->kind],
			      mc_coll_type_text(a[k]->type), a[k]->reduce, a[k]->root,
			      (unsigned long long)a[k]->count, k ? ":" : " / ");
	for (uint32_t q = 0; q < ranks; q++)
		(void)fprintf(stderr, " %d then %d", ended->rc[i][q], ended->next[i][q]);
	(void)fprintf(stderr, "\n");
}

/* Somebody was told, in the operation or the next one; and that ended the same on all ranks. */
static void check_all(uint32_t ranks)
{
	unsigned nbad = 0;

	for (unsigned i = 0; i < ncases; i++) {
		bool is_told = false, is_same = true;

		for (uint32_t q = 0; q < ranks; q++) {
			is_told |=
			    ended->rc[i][q] == -MC_E_INVAL || ended->next[i][q] == -MC_E_INVAL;
			is_same &= ended->next[i][q] == ended->next[i][0];
		}
		if (is_told && is_same)
			continue;
		nbad++;
		print_case(i, ranks);
	}
	assert_int_equal(nbad, 0);
}

static void misuse_on(uint32_t hosts, uint32_t ranks, uint32_t odd, uint64_t count)
{
	ended =
	    mmap(NULL, sizeof(*ended), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	assert_true(ended != MAP_FAILED);
	ncases = 0;
	odd_rank = odd;
	for (unsigned kind = 0; kind < MC_COLL_KIND_COUNT; kind++)
		add_kind((enum mc_coll_kind)kind, count, ranks);
	world_run_on(hosts, ranks, SCRATCH, misuse_all);
	check_all(ranks);
	(void)munmap(ended, sizeof(*ended));
}

static void misuse(uint64_t count)
{
	for (uint32_t ranks = 2; ranks <= RANKS_MAX; ranks++) {
		for (uint32_t odd = 0; odd < ranks; odd++) {
			misuse_on(0, ranks, odd, count);
			misuse_on(ranks, ranks, odd, count);
		}
	}
	misuse_on(2, 3, 1, count);
}

static void differing_small_calls_are_named(void **state)
{
	(void)state;
	misuse(4);
}

static void differing_large_calls_are_named(void **state)
{
	(void)state;
	misuse(5000);
}

static void differing_calls_of_several_rounds_are_named(void **state)
{
	(void)state;
	misuse(50000);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(differing_small_calls_are_named),
	    cmocka_unit_test(differing_large_calls_are_named),
	    cmocka_unit_test(differing_calls_of_several_rounds_are_named),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
