/*
 * story.h: what each rank saw of each operation, in memory that all share: survivors must tell the
 * same story. And trials: operations in one of which somebody dies.
 */
#ifndef MC_TESTS_COLL_STORY_H
#define MC_TESTS_COLL_STORY_H

#include "call.h"

#define STORY_OPS 60 /* at most */
#define STORY_NONE UINT64_MAX

/** Before all tests of a program: memory for it; no core dumps. @return 0 */
int story_setup(void **state);
/** A new one: before the ranks are forked. */
void story_begin(void);
/** Operation i of this rank ended so. */
void story_tell(const struct rank *r, uint64_t i, const struct call *c, int rc,
		const struct mc_coll_result *res);
/**
 * All but the victims tell the same of all operations.
 * @param lethal  the operation of `kind` in which the victims died: they are in none after it, and
 * of a rooted one only the root knows who was in it. STORY_NONE: any
 */
void story_compare(uint32_t ranks, uint64_t victims, uint64_t nops, uint64_t lethal,
		   enum mc_coll_kind kind);

struct trial {
	uint32_t hosts, ranks;
	uint64_t victims;
	enum mc_coll_kind kind; /* of the operation that they die in */
	uint64_t count;		/* its elements, f32 */
	/* Called in a victim before that operation: from here on something kills it. */
	void (*arm)(const struct rank *r, const struct call *c);
};

/** Run it and compare. @return the victims that died; the others got through the operation and left
 */
uint64_t trial_run(const struct trial *t);

#endif
