/*
 * main.c: conform TRANSPORT [--long] [--seed N] [--case TEXT] runs the suite over one transport;
 * without arguments it lists them. CONFORM_LONG=1 is --long.
 */
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>

#include "conform.h"

#include "base/opt.h"

static bool fits(const struct conform_case *c, const struct transport *tr, uint32_t caps)
{
	if (((tr->flags & T_LOSSY) != 0) != ((c->needs & T_LOSSY) != 0))
		return false;
	return (tr->flags & c->needs) == c->needs && (tr->flags & c->not ) == 0 &&
	       (caps & c->caps) == c->caps;
}

/* A part of the sweep that does not run says why. */
static bool sweeps(const struct conform_case *c, const struct transport *tr)
{
	if (!tr->unfit[c->sweep])
		return true;
	print_message("%s: not for %s: %s\n", c->name, tr->name, tr->unfit[c->sweep]);
	return false;
}

static uint32_t lane_caps(void)
{
	struct mc_xlane *lane = lane_open();
	uint32_t caps = lane->ops->caps;

	lane_close(lane);
	return caps;
}

static int run(const struct transport *tr, uint64_t seed, bool is_long, const char *only)
{
	const struct conform_case *all[] = {cases_data, cases_refuse, cases_sweep, cases_life,
					    cases_storm};
	struct CMUnitTest tests[64];
	char name[64];
	size_t n = 0;
	uint32_t caps;
	int failed;

	if (shm_dir_make() < 0 || env_open(tr, seed, is_long) < 0) {
		fprintf(stderr, "%s: cannot be opened here\n", tr->name);
		return 1;
	}
	caps = lane_caps();
	for (size_t g = 0; g < MC_ARRAY_LEN(all); g++) {
		for (const struct conform_case *c = all[g]; c->name; c++) {
			if (!fits(c, tr, caps) || (only && !strstr(c->name, only)) ||
			    !sweeps(c, tr))
				continue;
			mc_assert(n < MC_ARRAY_LEN(tests));
			tests[n++] = (struct CMUnitTest){.name = c->name, .test_func = c->run};
		}
	}
	mc_rand_seed(&env.rand, seed);
	(void)snprintf(name, sizeof(name), "conform %s seed %llu", tr->name,
		       (unsigned long long)seed);
	failed = _cmocka_run_group_tests(name, tests, n, NULL, NULL);
	if (failed == 0)
		env_close();
	return failed;
}

/* The number that this program gave to itself. */
static int fd_of(const char *text)
{
	uint64_t fd = 0;

	return mc_opt_parse_u64(text, &fd) == 0 && fd <= INT_MAX ? (int)fd : -1;
}

int main(int argc, char **argv)
{
	const struct transport *tr = argc > 1 ? transport_find(argv[1]) : NULL;
	bool is_long = getenv("CONFORM_LONG") != NULL;
	const char *only = NULL;
	uint64_t seed = 1;
	int failed;

	if (argc == 4 && strcmp(argv[1], "--target") == 0 && transport_find(argv[2]))
		return target_main(transport_find(argv[2]), fd_of(argv[3]));
	if (argc == 4 && strcmp(argv[1], "--initiator") == 0)
		return initiator_main(argv[2], fd_of(argv[3]));
	for (int i = 2; i < argc && tr; i++) {
		if (strcmp(argv[i], "--long") == 0)
			is_long = true;
		else if (strcmp(argv[i], "--seed") == 0 && i + 1 < argc)
			seed = strtoull(argv[++i], NULL, 0);
		else if (strcmp(argv[i], "--case") == 0 && i + 1 < argc)
			only = argv[++i];
		else
			tr = NULL;
	}
	if (!tr) {
		fprintf(stderr, "usage: conform TRANSPORT [--long] [--seed N] [--case TEXT]\n");
		for (size_t i = 0; transport_at(i); i++)
			fprintf(stderr, "  %s\n", transport_at(i)->name);
		return 2;
	}
	failed = run(tr, seed, is_long, only);
	shm_dir_remove();
	return failed ? 1 : 0;
}
