/*
 * pair_test.c: which RDMA ports are paired.
 */
#include "engine/pair.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

/* An IPv4 address as RoCE writes it. */
static struct mc_pair_port port(const char *name, uint8_t c, uint8_t d)
{
	return (struct mc_pair_port){
	    .name = name,
	    .gid = {[10] = 0xff, [11] = 0xff, [12] = 10, [14] = c, [15] = d},
	    .is_ethernet = true};
}

static void ports_of_the_same_name_are_paired_first(void **state)
{
	const struct mc_pair_port l[] = {port("mlx5_0", 0, 1), port("mlx5_1", 0, 2)};
	const struct mc_pair_port r[] = {port("mlx5_1", 0, 1), port("mlx5_0", 0, 3)};
	struct mc_pair p[8];

	assert_int_equal(mc_pair_ports(l, 2, r, 2, p, 8), 2);
	for (unsigned i = 0; i < 2; i++)
		assert_string_equal(l[p[i].local].name, r[p[i].remote].name);
	(void)state;
}

static void else_the_nearest_prefix_is_taken(void **state)
{
	const struct mc_pair_port l[] = {port("a0", 1, 1), port("a1", 2, 1)};
	const struct mc_pair_port r[] = {port("b0", 2, 2), port("b1", 1, 2)};
	struct mc_pair p[8];

	assert_int_equal(mc_pair_ports(l, 2, r, 2, p, 8), 2);
	for (unsigned i = 0; i < 2; i++)
		assert_int_equal(l[p[i].local].gid[14], r[p[i].remote].gid[14]);
	(void)state;
}

static void every_port_of_both_sides_is_used_and_no_pair_more_is_made(void **state)
{
	struct mc_pair_port l[8], r[8];
	struct mc_pair p[8];

	for (uint8_t i = 0; i < 8; i++) {
		l[i] = port("l", i, 1);
		r[i] = port("r", i, 2);
	}
	for (unsigned nl = 1; nl <= 8; nl++)
		for (unsigned nr = 1; nr <= 8; nr++) {
			unsigned used_l[8] = {0}, used_r[8] = {0};
			unsigned most = nl > nr ? nl : nr, least = nl < nr ? nl : nr;

			assert_int_equal(mc_pair_ports(l, nl, r, nr, p, 8), most);
			for (unsigned i = 0; i < most; i++) {
				used_l[p[i].local]++;
				used_r[p[i].remote]++;
			}
			for (unsigned i = 0; i < nl; i++)
				assert_in_range(used_l[i], 1, (most + least - 1) / least);
			for (unsigned i = 0; i < nr; i++)
				assert_in_range(used_r[i], 1, (most + least - 1) / least);
		}
	(void)state;
}

static void ethernet_and_infiniband_are_never_paired(void **state)
{
	struct mc_pair_port l[] = {port("x", 0, 1), port("y", 0, 2)};
	struct mc_pair_port r[] = {port("x", 0, 1), port("z", 9, 2)};
	struct mc_pair p[8];

	r[0].is_ethernet = false;
	/* x of the peer has no partner; both of ours go to z. */
	assert_int_equal(mc_pair_ports(l, 2, r, 2, p, 8), 2);
	assert_int_equal(p[0].remote, 1);
	assert_int_equal(p[1].remote, 1);
	assert_int_equal(mc_pair_ports(l, 2, r, 1, p, 8), 0);
	assert_int_equal(mc_pair_ports(l, 0, r, 2, p, 8), 0);
	(void)state;
}

static void ports_that_are_up_find_each_other_first(void **state)
{
	struct mc_pair_port l[] = {port("mlx5_0", 0, 1), port("mlx5_1", 0, 2)};
	struct mc_pair_port r[] = {port("mlx5_0", 0, 3), port("mlx5_1", 0, 4)};
	struct mc_pair p[8];

	l[0].is_down = r[1].is_down = true;
	assert_int_equal(mc_pair_ports(l, 2, r, 2, p, 8), 2);
	assert_int_equal(p[0].local, 1);
	assert_int_equal(p[0].remote, 0);
	assert_int_equal(p[1].local, 0);
	assert_int_equal(p[1].remote, 1);
	(void)state;
}

static void no_more_pairs_are_made_than_there_is_room_for(void **state)
{
	struct mc_pair_port l[8], r[8];
	struct mc_pair p[8];

	for (uint8_t i = 0; i < 8; i++) {
		l[i] = port("l", i, 1);
		r[i] = port("r", i, 2);
		l[i].is_ethernet = i != 0;
		r[i].is_ethernet = i == 0;
	}
	assert_int_equal(mc_pair_ports(l, 8, r, 8, p, 8), 8);
	(void)state;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(ports_of_the_same_name_are_paired_first),
	    cmocka_unit_test(else_the_nearest_prefix_is_taken),
	    cmocka_unit_test(every_port_of_both_sides_is_used_and_no_pair_more_is_made),
	    cmocka_unit_test(ethernet_and_infiniband_are_never_paired),
	    cmocka_unit_test(ports_that_are_up_find_each_other_first),
	    cmocka_unit_test(no_more_pairs_are_made_than_there_is_room_for),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
