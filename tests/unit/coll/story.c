/*
 * story.c: see story.h.
 */
#include "story.h"

#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/hash.h"
/* cmocka needs these before it */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#define LETHAL 3 /* the operation of a trial in which somebody dies */
#define OPS 6	 /* of a trial */

struct outcome {
	_Atomic uint64_t ranks, hash;
	_Atomic int rc;
	_Atomic int is_done;
};

static struct outcome (*outcomes)[STORY_OPS]; /* [rank][operation], shared */
static const struct trial *now;		      /* the forked ranks inherit it */

int story_setup(void **state)
{
	const struct rlimit no_core = {0, 0};

	(void)state;
	(void)setrlimit(RLIMIT_CORE, &no_core);
	outcomes = mmap(NULL, sizeof(*outcomes) * WORLD_MAX, PROT_READ | PROT_WRITE,
			MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	return outcomes == MAP_FAILED;
}

void story_begin(void)
{
	memset(outcomes, 0, sizeof(*outcomes) * WORLD_MAX);
}

void story_tell(const struct rank *r, uint64_t i, const struct call *c, int rc,
		const struct mc_coll_result *res)
{
	struct outcome *o = &outcomes[r->rank][i];
	uint64_t hash = 0;

	/* What is different on each rank anyway is compared with the oracle alone. */
	if (rc == 0 && c->op.kind == MC_COLL_ALL_REDUCE)
		hash = mc_hash64(c->out[0].addr, c->out[0].count * 4, 0);
	atomic_store(&o->ranks, res->ranks);
	atomic_store(&o->hash, hash);
	atomic_store(&o->rc, rc);
	atomic_store(&o->is_done, 1);
}

void story_compare(uint32_t ranks, uint64_t victims, uint64_t nops, uint64_t lethal,
		   enum mc_coll_kind kind)
{
	bool is_rooted = kind == MC_COLL_REDUCE || kind == MC_COLL_GATHER;
	uint32_t first = (uint32_t)__builtin_ctzll(~victims);

	for (uint32_t q = first; q < ranks; q++) {
		for (uint64_t i = 0; i < nops && !(victims >> q & 1); i++) {
			struct outcome *a = &outcomes[first][i], *b = &outcomes[q][i];

			assert_true(atomic_load(&b->is_done));
			if (is_rooted && i == lethal)
				continue;
			assert_int_equal(atomic_load(&a->rc), atomic_load(&b->rc));
			assert_int_equal(atomic_load(&a->ranks), atomic_load(&b->ranks));
			assert_int_equal(atomic_load(&a->hash), atomic_load(&b->hash));
			assert_true(i <= lethal || !(atomic_load(&b->ranks) & victims));
		}
	}
}

static int live_and_die(struct rank *r)
{
	bool is_victim = now->victims >> r->rank & 1;

	for (uint64_t i = 0; i < OPS; i++) {
		struct call c = {.is_in_place = i % 2 == 0};
		struct mc_coll_result res;
		int rc;

		call_make_as(&c, r, i, i == LETHAL ? now->kind : MC_COLL_ALL_REDUCE, MC_COLL_F32,
			     MC_COLL_SUM, i == LETHAL ? now->count : 1000);
		if (is_victim && i == LETHAL)
			now->arm(r, &c);
		rc = mc_coll_run(r->coll, &c.op, &res);
		if (is_victim && i == LETHAL) /* nothing has killed it */
			_exit(0);
		WORLD_CHECK(rc == 0 || rc == -MC_E_PEER_DEAD);
		WORLD_CHECK(rc < 0 || call_is_right(&c, r, res.ranks));
		story_tell(r, i, &c, rc, &res);
		call_free(&c);
	}
	return 0;
}

uint64_t trial_run(const struct trial *t)
{
	struct world *w = world_make(t->ranks * 100 + t->victims);
	pid_t pids[WORLD_MAX];
	uint64_t died = 0;

	w->hosts = t->hosts;
	now = t;
	story_begin();
	for (uint32_t i = 0; i < t->ranks; i++)
		pids[i] = world_fork(w, i, t->ranks, t->ranks, 0, live_and_die);
	for (uint32_t i = 0; i < t->ranks; i++) {
		int rc = world_reap(pids[i]);

		if (rc > 1000)
			died |= 1ull << i;
		assert_true(rc == 0 || (rc > 1000 && t->victims >> i & 1));
	}
	story_compare(t->ranks, t->victims, OPS, LETHAL, t->kind);
	world_free(w);
	return died;
}
