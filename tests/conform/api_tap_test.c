/*
 * api_tap_test.c: a caller who wants to see the bytes of a transfer is shown each once, over TCP
 * ("tcp") as they pass, through shared memory ("shm") to be copied. What is moved again is
 * engine_fault_test.c's.
 */
#include "api_fix.h"

#define SHOWN_BYTES (5u * MIB + 12345)
#define SHOWN_CUT (3u * MIB + 77)

struct shown {
	uint8_t *bytes; /* both transfers, one after the other */
	uint8_t *times;
	unsigned ncopies, npassed, nagain;
};

static void shown_add(struct shown *s, uint32_t t, uint64_t at, const void *bytes, size_t n)
{
	assert_true(t < 3 && t != 1); /* that one moves nothing */
	at += t ? SHOWN_CUT : 0;
	assert_true(at + n <= SHOWN_BYTES);
	memcpy(s->bytes + at, bytes, n);
	for (size_t i = 0; i < n; i++)
		s->times[at + i]++;
}

static void on_copy(void *user, uint32_t t, uint64_t at, void *dst, const void *src, size_t n)
{
	struct shown *s = user;

	memcpy(dst, src, n);
	shown_add(s, t, at, dst, n);
	s->ncopies++;
}

static void on_passed(void *user, uint32_t t, uint64_t at, const void *bytes, size_t n)
{
	struct shown *s = user;

	shown_add(s, t, at, bytes, n);
	s->npassed++;
}

static void on_again(void *user, uint32_t t)
{
	struct shown *s = user;

	(void)t;
	s->nagain++;
}

/* Two transfers with one of nothing between them. */
static void show(struct world *w, unsigned op, uint8_t *local, struct shown *s)
{
	struct mc_iov l[2] = {{(uintptr_t)local, SHOWN_CUT},
			      {(uintptr_t)local + SHOWN_CUT, SHOWN_BYTES - SHOWN_CUT}};
	struct mc_iov r[2] = {{w->peer.base, SHOWN_CUT},
			      {w->peer.base + SHOWN_CUT, SHOWN_BYTES - SHOWN_CUT}};
	struct mc_transfer t[3] = {{(uint8_t)op, w->seg, 1, 1, &l[0], &r[0]},
				   {(uint8_t)op, w->seg, 0, 0, NULL, NULL},
				   {(uint8_t)op, w->seg, 1, 1, &l[1], &r[1]}};
	struct mc_tap tap = {s, on_copy, on_passed, on_again};
	struct mc_group g = {
	    .size = sizeof(g), .n = 3, .transfers = t, .priority = MC_PRIO_NORMAL, .tap = &tap};

	memset(s->times, 0, SHOWN_BYTES);
	s->ncopies = s->npassed = s->nagain = 0;
	assert_int_equal(mc_transfer_sync(w->eng, &g, NULL), 0);
	assert_int_equal(s->nagain, 0);
	for (size_t i = 0; i < SHOWN_BYTES; i++)
		assert_int_equal(s->times[i], 1);
	assert_memory_equal(s->bytes, local, SHOWN_BYTES);
}

static void every_byte_that_passes_is_shown_once(void **state)
{
	struct world w;
	bool is_tcp = getenv("MC_FORCE_TCP") != NULL;
	uint8_t *local = malloc(SHOWN_BYTES);
	struct shown s = {.bytes = malloc(SHOWN_BYTES), .times = malloc(SHOWN_BYTES)};

	(void)state;
	assert_true(local && s.bytes && s.times);
	world_open(&w);
	fill(local, SHOWN_BYTES, 5);
	show(&w, MC_WRITE, local, &s);
	assert_true(is_tcp ? s.npassed > 5 && s.ncopies == 0 : s.ncopies > 1 && s.npassed == 0);
	memset(local, 0, SHOWN_BYTES);
	show(&w, MC_READ, local, &s);
	assert_true(is_tcp ? s.npassed > 5 && s.ncopies == 0 : s.ncopies > 1 && s.npassed == 0);
	assert_true(is_filled(local, SHOWN_BYTES, 5));
	world_close(&w);
	free(local);
	free(s.bytes);
	free(s.times);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(every_byte_that_passes_is_shown_once),
	};

	if (argc > 1 && strcmp(argv[1], "peer") == 0)
		return peer_main();
	if (argc > 1 && strcmp(argv[1], "tcp") == 0)
		(void)setenv("MC_FORCE_TCP", "1", 1);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
