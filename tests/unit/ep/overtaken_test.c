/*
 * overtaken_test.c: a rank takes what its source goes on writing, as one does that was left out
 * without knowing it yet. It may fail, or get nonsense that the tag gives away; it writes nothing
 * but the result.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <string.h>
#include <sys/mman.h>

#include "../coll/world.h"
#include "base/mem.h"
#include "ep/priv.h"

#define ROUNDS 64u
#define EXPERTS 64u  /* of a rank */
#define HIDDEN 2048u /* so much that the source writes in between */
#define TOKENS 512u
#define FEW 8u /* of the source, all for the last expert of the taker */
#define ROWS (2u * TOKENS)
#define PAGE 4096u

/* What fits the result, and then nothing. */
static uint8_t *guarded(size_t len)
{
	uint8_t *at = mmap(NULL, len + PAGE, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	assert_true(at != MAP_FAILED && len % PAGE == 0);
	assert_int_equal(mprotect(at + len, PAGE, PROT_NONE), 0);
	return at;
}

struct side {
	struct mc_ep *ep;
	struct mc_ep_shape shape;
	struct mc_ep_rows rows;
	struct mc_ep_arrived got;
	int64_t topk[TOKENS];
	int32_t counts[EXPERTS];
	int64_t ranges[2 * EXPERTS];
	struct mc_diag diag;
};

static void side_init(struct side *s, uint32_t rank)
{
	size_t bytes = (size_t)HIDDEN * sizeof(uint16_t);

	s->shape = (struct mc_ep_shape){.ranks = 2,
					.experts = 2 * EXPERTS,
					.hidden = HIDDEN,
					.topk = 1,
					.tokens_max = TOKENS,
					.tokens = rank == 0 ? TOKENS : FEW,
					.align = 1};
	for (uint32_t t = 0; t < TOKENS; t++)
		s->topk[t] = rank == 0 ? t % (EXPERTS - 1) : EXPERTS - 1;
	s->rows = (struct mc_ep_rows){
	    .format = MC_EP_SAME, .elem_bytes = 2, .rows = guarded(TOKENS * bytes)};
	s->got = (struct mc_ep_arrived){
	    .rows = guarded(ROWS * bytes), .counts = s->counts, .ranges = s->ranges};
}

static int begin(struct side *s, struct mc_ep_half **ret)
{
	const struct mc_ep_patience patience = {NULL, MC_EP_NEVER};

	return mc_ep_dispatch_begin(s->ep, &s->shape, &s->rows, s->topk, &patience, &s->diag, ret);
}

/* The source: how many of its rows are for the taker's last expert changes all the time. */
static int write_on(struct rank *r, struct side *s, struct mc_ep_half *h, uint64_t round)
{
	_Atomic uint32_t *first = (void *)(mc_ep_slot_at(s->ep->memory, h->slot) +
					   mc_ep_align(sizeof(struct mc_ep_head), 64));

	WORLD_CHECK(first[EXPERTS - 1] == 0 && first[EXPERTS] == FEW);
	while (atomic_load(&r->w->note[0]) <= round) {
		for (unsigned i = 0; i < 100; i++)
			atomic_store(&first[EXPERTS], i % 2 ? FEW : ROWS * 100);
	}
	return 0;
}

static int run(struct rank *r, struct side *s)
{
	for (uint64_t round = 0; round < ROUNDS; round++) {
		struct mc_ep_half *h;
		int rc;

		WORLD_CHECK(begin(s, &h) == 0);
		if (r->rank == 1) {
			WORLD_CHECK(write_on(r, s, h, round) == 0);
			WORLD_CHECK(mc_ep_dispatch_end(h, &s->got, &s->diag, NULL) == 0);
			continue;
		}
		rc = mc_ep_dispatch_end(h, &s->got, &s->diag, NULL);
		WORLD_CHECK(rc == 0 || (rc == -MC_E_INVAL && strstr(s->diag.text, "entries")));
		if (rc == 0)
			WORLD_CHECK(s->counts[EXPERTS - 1] == FEW);
		atomic_store(&r->w->note[0], round + 1);
	}
	return 0;
}

static int take_or_write(struct rank *r)
{
	static struct side s;
	int rc;

	side_init(&s, r->rank);
	WORLD_CHECK(mc_ep_open(r->coll, &s.diag, &s.ep) == 0);
	WORLD_CHECK(mc_ep_update(s.ep, &s.diag) == 0);
	rc = run(r, &s);
	mc_ep_close(s.ep);
	return rc;
}

static void a_source_that_goes_on_writing_makes_nobody_write_behind_the_result(void **state)
{
	(void)state;
	world_run(2, 0, take_or_write);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(a_source_that_goes_on_writing_makes_nobody_write_behind_the_result),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
