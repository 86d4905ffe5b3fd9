/*
 * rdma_lane_test.c: the data path of a lane on the fake fabric: bytes, requests, completions,
 * credits, and what becomes of slices when something breaks.
 */
#include <poll.h>
#include <sys/mman.h>

#include "rdma_peers.h"

#define DEPTH 128u

static struct rdma_job jobs[2 * DEPTH];

static void stats(struct mc_rdma_stats *ret)
{
	mc_rdma_stats_get(rp.a.dev, ret);
}

static unsigned post_jobs(struct mc_xlane *lane, unsigned from, unsigned n)
{
	struct mc_slice *list[2 * DEPTH];
	int rc;

	for (unsigned i = 0; i < n; i++)
		list[i] = &jobs[from + i].s;
	rc = lane->ops->post(lane, list, n);
	assert_true(rc >= 0);
	return (unsigned)rc;
}

/* ---- bytes ---- */

/* Random fragments, some of them neighbours at the peer, here, or both. */
static void shape(struct rdma_job *j, enum mc_op op, uint64_t base, uint64_t room)
{
	uint32_t n = 1 + (uint32_t)mc_rand_below(&rp.rand, RDMA_FRAGS);
	uint64_t roff = base, loff = base;

	memset(j, 0, sizeof(*j));
	for (uint32_t i = 0; i < n; i++) {
		uint64_t len = 1 + mc_rand_below(&rp.rand, room / RDMA_FRAGS - 16);

		j->frags[i] = (struct mc_frag){.local = rp.a.mem + loff,
					       .raddr = rp.b.rr.addr + roff,
					       .len = len,
					       .rr = &rp.b.rr};
		roff += len + (mc_rand_below(&rp.rand, 3) == 0 ? 8 : 0);
		loff += len + (mc_rand_below(&rp.rand, 3) == 0 ? 8 : 0);
		j->s.len += len;
	}
	j->s.op = op;
	j->s.nfrags = n;
	j->s.frags = j->frags;
	j->s.user = j;
	mc_list_init(&j->s.link);
}

static void shadow(const struct rdma_job *j, uint8_t *here, uint8_t *there)
{
	for (uint32_t i = 0; i < j->s.nfrags; i++) {
		const struct mc_frag *f = &j->frags[i];
		uint8_t *h = here + (f->local - rp.a.mem);
		uint8_t *t = there + (f->raddr - rp.b.rr.addr);

		memcpy(j->s.op == MC_OP_WRITE ? t : h, j->s.op == MC_OP_WRITE ? h : t, f->len);
	}
}

static void random_fragments_move_exactly_their_bytes(void **state)
{
	static const struct {
		unsigned max_inline, qps, wrs, sges;
	} kinds[] = {{0, 1, 256, 4}, {64, 1, 16, 1}, {256, 2, 1, 16}, {0, 8, 3, 2}, {64, 2, 2, 4}};
	uint8_t *here = mc_calloc(1, RDMA_MEM_LEN), *there = mc_calloc(1, RDMA_MEM_LEN);

	for (size_t k = 0; k < MC_ARRAY_LEN(kinds); k++) {
		struct verbs_fake_conf conf = {.ndevs = 2, .max_inline = kinds[k].max_inline};
		struct mc_xlane *lane;

		assert_int_equal(rdma_peers_open(&conf), 0);
		rdma_dev(&rp.a)->conf.qps = kinds[k].qps;
		rdma_dev(&rp.a)->conf.wrs_max = kinds[k].wrs;
		rdma_dev(&rp.a)->conf.sges_max = kinds[k].sges;
		rdma_dev(&rp.a)->conf.inline_max = kinds[k].max_inline;
		memcpy(here, rp.a.mem, RDMA_MEM_LEN);
		memcpy(there, rp.b.mem, RDMA_MEM_LEN);
		lane = rdma_lane();
		for (unsigned round = 0; round < 40; round++) {
			unsigned n = 1 + (unsigned)mc_rand_below(&rp.rand, 40), taken = 0;
			uint64_t room = mc_rand_below(&rp.rand, 2) ? 1024 : RDMA_MEM_LEN / 64;

			for (unsigned i = 0; i < n; i++)
				shape(&jobs[i], i % 2 ? MC_OP_READ : MC_OP_WRITE, i * room, room);
			while (taken < n)
				taken += post_jobs(lane, taken, mc_min(n - taken, 1 + round));
			assert_int_equal(rdma_poll(lane, n), 0);
			for (unsigned i = 0; i < n; i++) {
				assert_int_equal(jobs[i].s.status, 0);
				assert_int_equal(jobs[i].s.moved, jobs[i].s.len);
				shadow(&jobs[i], here, there);
			}
			assert_memory_equal(here, rp.a.mem, RDMA_MEM_LEN);
			assert_memory_equal(there, rp.b.mem, RDMA_MEM_LEN);
		}
		lane->ops->lane_close(lane);
		rdma_peers_close();
	}
	mc_free(here);
	mc_free(there);
	(void)state;
}

/* Four queue pairs whose acknowledgements come one by one, in any order between them. */
static void acknowledgements_in_any_order_end_each_slice_once(void **state)
{
	struct verbs_fake_conf conf = {.ndevs = 2, .seed = 7};
	uint8_t *here = mc_calloc(1, RDMA_MEM_LEN), *there = mc_calloc(1, RDMA_MEM_LEN);
	struct mc_xlane *lane;

	assert_int_equal(rdma_peers_open(&conf), 0);
	rdma_dev(&rp.a)->conf.qps = 4;
	rdma_dev(&rp.a)->conf.wrs_max = 40;
	memcpy(here, rp.a.mem, RDMA_MEM_LEN);
	memcpy(there, rp.b.mem, RDMA_MEM_LEN);
	lane = rdma_lane();
	for (unsigned round = 0; round < 20; round++) {
		unsigned n = DEPTH, ended = 0;

		verbs_fake_hold(VERBS_FAKE_HOLD_ACKS);
		for (unsigned i = 0; i < n; i++) {
			shape(&jobs[i], i % 3 ? MC_OP_WRITE : MC_OP_READ, i * 8192, 8192);
			shadow(&jobs[i], here, there);
		}
		assert_int_equal(post_jobs(lane, 0, n), n);
		for (unsigned tries = 0; ended < n; tries++) {
			struct mc_slice *done[7];
			int rc;

			(void)verbs_fake_step(1 + (unsigned)mc_rand_below(&rp.rand, 3));
			rc = lane->ops->poll(lane, 0, done, 7);
			assert_true(rc >= 0 && tries < 100000);
			for (int i = 0; i < rc; i++) {
				assert_int_equal(((struct rdma_job *)done[i]->user)->ended++, 0);
				assert_int_equal(done[i]->status, 0);
			}
			ended += (unsigned)rc;
		}
		verbs_fake_hold(VERBS_FAKE_PROMPT);
		assert_memory_equal(here, rp.a.mem, RDMA_MEM_LEN);
		assert_memory_equal(there, rp.b.mem, RDMA_MEM_LEN);
	}
	lane->ops->lane_close(lane);
	rdma_peers_close();
	mc_free(here);
	mc_free(there);
	(void)state;
}

static void a_slice_above_the_longest_message_is_cut(void **state)
{
	struct verbs_fake_conf conf = {.ndevs = 2};
	struct mc_xlane *lane;
	struct mc_rdma_stats before, after;

	assert_int_equal(rdma_peers_open(&conf), 0);
	lane = rdma_lane();
	((struct mc_rdma_lane *)lane)->msg_max = 1000;
	stats(&before);
	assert_int_equal(rdma_run(lane, rdma_job(&jobs[0], MC_OP_WRITE, 8, 10001)), 0);
	stats(&after);
	assert_int_equal(after.wrs - before.wrs, 11);
	assert_true(rdma_same(8, 10001));
	assert_false(rdma_same(8, 10002));
	assert_int_equal(lane->ops->progress(lane), 10001);
	lane->ops->lane_close(lane);
	rdma_peers_close();
	(void)state;
}

/* ---- what it costs ---- */

static void sixteen_slices_cost_one_doorbell_and_one_signalled_completion(void **state)
{
	struct verbs_fake_conf conf = {.ndevs = 2};
	struct mc_rdma_stats before, after;
	struct mc_xlane *lane;
	uint64_t calls;

	assert_int_equal(rdma_peers_open(&conf), 0);
	lane = rdma_lane();
	stats(&before);
	calls = mc_mem_calls();
	for (unsigned round = 0; round < 10; round++) {
		for (unsigned i = 0; i < 16; i++)
			rdma_job(&jobs[i], MC_OP_WRITE, i * 4096, 4096);
		assert_int_equal(post_jobs(lane, 0, 16), 16);
		assert_int_equal(rdma_poll(lane, 16), 0);
	}
	assert_int_equal(mc_mem_calls(), calls);
	stats(&after);
	assert_int_equal(after.posts - before.posts, 10);
	assert_int_equal(after.wrs - before.wrs, 160);
	assert_int_equal(after.signaled - before.signaled, 10);
	assert_int_equal(after.wcs - before.wcs, 10);
	assert_true(rdma_same(0, 16 * 4096));
	/* More than a group at once: one for each. */
	for (unsigned i = 0; i < 64; i++)
		rdma_job(&jobs[i], MC_OP_WRITE, i * 64, 64);
	assert_int_equal(post_jobs(lane, 0, 64), 64);
	assert_int_equal(rdma_poll(lane, 64), 0);
	stats(&before);
	assert_int_equal(before.posts - after.posts, 1);
	assert_int_equal(before.signaled - after.signaled, 4);
	lane->ops->lane_close(lane);
	rdma_peers_close();
	(void)state;
}

static void neighbours_at_the_peer_become_one_request(void **state)
{
	struct verbs_fake_conf conf = {.ndevs = 2};
	struct mc_rdma_stats before, after;
	struct mc_xlane *lane;
	struct mc_slice *s;

	assert_int_equal(rdma_peers_open(&conf), 0);
	lane = rdma_lane();
	s = rdma_job(&jobs[0], MC_OP_WRITE, 0, 100);
	for (unsigned i = 1; i < 9; i++) /* eight more, scattered here */
		jobs[0].frags[i] = (struct mc_frag){.local = rp.a.mem + 8192 + i * 500,
						    .raddr = rp.b.rr.addr + i * 100,
						    .len = 100,
						    .rr = &rp.b.rr};
	s->nfrags = 9;
	s->len = 900;
	stats(&before);
	assert_int_equal(rdma_run(lane, s), 0);
	stats(&after);
	assert_int_equal(after.wrs - before.wrs, 3); /* 4 + 4 + 1 pieces */
	for (unsigned i = 1; i < 9; i++)
		assert_memory_equal(rp.b.mem + i * 100, rp.a.mem + 8192 + i * 500, 100);
	lane->ops->lane_close(lane);
	rdma_peers_close();
	(void)state;
}

static void a_full_lane_takes_no_more_and_never_overruns_a_queue(void **state)
{
	struct verbs_fake_conf conf = {.ndevs = 2};
	struct mc_slice *one;
	struct mc_xlane *lane;

	for (unsigned wrs = 1; wrs <= 256; wrs *= 4) {
		assert_int_equal(rdma_peers_open(&conf), 0);
		rdma_dev(&rp.a)->conf.wrs_max = wrs;
		lane = rdma_lane();
		verbs_fake_hold(VERBS_FAKE_HOLD_ACKS);
		for (unsigned i = 0; i <= DEPTH; i++)
			rdma_job(&jobs[i], MC_OP_WRITE, i * 100, 90);
		assert_int_equal(post_jobs(lane, 0, DEPTH + 1), DEPTH);
		one = &jobs[DEPTH].s;
		assert_int_equal(lane->ops->post(lane, &one, 1), 0);
		verbs_fake_hold(VERBS_FAKE_PROMPT);
		assert_int_equal(rdma_poll(lane, DEPTH), 0);
		assert_int_equal(rdma_run(lane, one), 0);
		for (unsigned i = 0; i <= DEPTH; i++) {
			assert_int_equal(jobs[i].s.status, 0);
			assert_true(rdma_same(i * 100, 90));
		}
		lane->ops->lane_close(lane);
		rdma_peers_close();
	}
	(void)state;
}

/* ---- what is refused without harm ---- */

static void what_cannot_go_over_rdma_is_said_so_and_the_rest_goes(void **state)
{
	struct verbs_fake_conf conf = {.ndevs = 2};
	struct mc_remote_region keyless, read_only;
	uint8_t *strange = mc_calloc(1, 4096);
	struct mc_xlane *lane;

	assert_int_equal(rdma_peers_open(&conf), 0);
	lane = rdma_lane();
	keyless = read_only = rp.b.rr;
	memset(keyless.key, 0, sizeof(keyless.key));
	read_only.rights = MC_RIGHT_READ;
	for (unsigned i = 0; i < 8; i++)
		rdma_job(&jobs[i], MC_OP_WRITE, i * 4096, 1000);
	jobs[1].frags[0].local = strange;
	jobs[2].frags[0].rr = &keyless;
	jobs[3].frags[0].raddr += RDMA_MEM_LEN - 3 * 4096 - 999; /* one byte beyond */
	jobs[4].frags[0].rr = &read_only;
	jobs[5].frags[0].len = 0;
	jobs[6].s.signal =
	    (struct mc_signal){.rr = &rp.b.rr, .raddr = rp.b.rr.addr + 4, .value = 1};
	assert_int_equal(post_jobs(lane, 0, 8), 8);
	assert_int_equal(rdma_poll(lane, 8), 0);
	assert_int_equal(jobs[0].s.status, 0);
	assert_int_equal(jobs[1].s.status, -MC_E_UNSUPPORTED);
	assert_int_equal(jobs[2].s.status, -MC_E_UNSUPPORTED);
	assert_int_equal(jobs[3].s.status, -MC_E_RANGE);
	assert_int_equal(jobs[4].s.status, -MC_E_PERM);
	assert_int_equal(jobs[5].s.status, -MC_E_RANGE);
	assert_int_equal(jobs[6].s.status, -MC_E_INVAL);
	assert_int_equal(jobs[7].s.status, 0);
	assert_true(rdma_same(0, 1000) && rdma_same(7 * 4096ull, 1000));
	for (unsigned i = 1; i < 7; i++)
		assert_false(rdma_same(i * 4096ull, 1000));
	assert_int_equal(rdma_run(lane, rdma_job(&jobs[0], MC_OP_READ, 4096, 1000)), 0);
	lane->ops->lane_close(lane);
	rdma_peers_close();
	mc_free(strange);
	(void)state;
}

static void a_read_into_memory_that_must_not_be_written_costs_the_lane_nothing(void **state)
{
	struct verbs_fake_conf conf = {.ndevs = 2};
	uint8_t *ro = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uint32_t rkeys[MC_RDMA_PORTS_MAX];
	struct mc_xlane *lane;

	(void)state;
	assert_ptr_not_equal(ro, MAP_FAILED);
	assert_int_equal(rdma_peers_open(&conf), 0);
	assert_int_equal(mc_rdma_mem_add(rp.a.dev, (uintptr_t)ro, 4096, 3, rkeys, NULL), 0);
	lane = rdma_lane();
	for (unsigned i = 0; i < 2; i++) {
		rdma_job(&jobs[i], i ? MC_OP_WRITE : MC_OP_READ, 0, 4096);
		jobs[i].frags[0].local = ro;
	}
	assert_int_equal(post_jobs(lane, 0, 2), 2);
	assert_int_equal(rdma_poll(lane, 2), 0);
	assert_int_equal(jobs[0].s.status, -MC_E_PERM);
	assert_int_equal(jobs[1].s.status, 0);
	assert_memory_equal(rp.b.mem, ro, 4096);
	(void)rdma_lane_end_all(lane);
	assert_int_equal(mc_rdma_mem_del(rp.a.dev, (uintptr_t)ro, 4096), 0);
	rdma_peers_close();
	assert_int_equal(munmap(ro, 4096), 0);
}

static void nothing_is_taken_before_the_lane_is_connected(void **state)
{
	struct verbs_fake_conf conf = {.ndevs = 2};
	struct mc_xlane *lane;
	struct mc_slice *done;

	assert_int_equal(rdma_peers_open(&conf), 0);
	assert_int_equal(rdma_lane_new(&lane), 0);
	rdma_job(&jobs[0], MC_OP_WRITE, 0, 10);
	assert_int_equal(post_jobs(lane, 0, 1), 0);
	assert_int_equal(lane->ops->poll(lane, 1000, &done, 1), 0);
	assert_int_equal(rdma_lane_introduce(lane), 0);
	assert_int_equal(rdma_run(lane, &jobs[0].s), 0);
	lane->ops->lane_close(lane);
	rdma_peers_close();
	(void)state;
}

static void a_slice_without_fragments_is_a_round_trip_that_moves_nothing(void **state)
{
	struct verbs_fake_conf conf = {.ndevs = 2};
	struct mc_slice empty = {.op = MC_OP_WRITE}, *list[] = {&empty}, *done;
	uint8_t token[MC_XPORT_TOKEN_MAX];
	struct mc_xlane *lane;
	struct mc_list left;

	assert_int_equal(rdma_peers_open(&conf), 0);
	lane = rdma_lane();
	verbs_fake_hold(VERBS_FAKE_HOLD_ACKS);
	assert_int_equal(lane->ops->post(lane, list, 1), 1);
	assert_int_equal(lane->ops->poll(lane, 0, &done, 1), 0);
	assert_int_equal(verbs_fake_step(1), 1);
	assert_int_equal(lane->ops->poll(lane, 0, &done, 1), 1);
	assert_ptr_equal(done, &empty);
	assert_int_equal(empty.status, 0);
	assert_int_equal(empty.moved, 0);
	verbs_fake_hold(VERBS_FAKE_PROMPT);
	/* Lost in silence it does not end, and given up it is not done. */
	verbs_fake_link(1, 1, VERBS_FAKE_DROP);
	assert_int_equal(lane->ops->post(lane, list, 1), 1);
	assert_int_equal(lane->ops->poll(lane, MC_NS_PER_MS, &done, 1), 0);
	assert_int_equal(verbs_fake_expire(), 1);
	assert_int_equal(lane->ops->poll(lane, 0, &done, 1), -MC_E_UNREACHABLE);
	mc_list_init(&left);
	assert_true(lane->ops->abort(lane, &left, token) > 0);
	assert_ptr_equal(mc_list_pop_front(&left), &empty.link);
	assert_int_not_equal(empty.verdict, MC_SLICE_DONE);
	lane->ops->lane_close(lane);
	rdma_peers_close();
	(void)state;
}

/* ---- signals ---- */

static void a_signal_follows_its_data_even_when_acknowledgements_are_late(void **state)
{
	uint64_t word;

	for (unsigned max_inline = 0; max_inline <= 64; max_inline += 64) {
		struct verbs_fake_conf conf = {.ndevs = 2, .max_inline = max_inline};
		struct mc_xlane *lane;
		struct mc_slice *s, *done;

		assert_int_equal(rdma_peers_open(&conf), 0);
		lane = rdma_lane();
		s = rdma_job(&jobs[0], MC_OP_WRITE, 4096, 5000);
		s->signal = (struct mc_signal){
		    .rr = &rp.b.rr, .raddr = rp.b.rr.addr + 64, .value = 0x1122334455667788};
		memset(rp.b.mem + 64, 0, 8);
		verbs_fake_hold(VERBS_FAKE_HOLD_ACKS);
		assert_int_equal(post_jobs(lane, 0, 1), 1);
		assert_int_equal(lane->ops->poll(lane, 0, &done, 1), 0);
		memcpy(&word, rp.b.mem + 64, 8);
		assert_int_equal(word, 0); /* the data has landed; nobody has said so */
		assert_true(rdma_same(4096, 5000));
		(void)verbs_fake_step(1);
		assert_int_equal(lane->ops->poll(lane, 0, &done, 1), 0);
		memcpy(&word, rp.b.mem + 64, 8);
		assert_true(word == 0x1122334455667788);
		verbs_fake_hold(VERBS_FAKE_PROMPT);
		assert_int_equal(rdma_poll(lane, 1), 0);
		assert_int_equal(s->status, 0);
		lane->ops->lane_close(lane);
		rdma_peers_close();
	}
	(void)state;
}

/* ---- waiting ---- */

static void the_descriptor_wakes_and_what_came_before_it_is_said(void **state)
{
	struct verbs_fake_conf conf = {.ndevs = 2};
	struct mc_slice *done;
	struct mc_xlane *lane;
	struct mc_xarm arm;
	struct pollfd p;

	assert_int_equal(rdma_peers_open(&conf), 0);
	lane = rdma_lane();
	for (unsigned round = 0; round < 200; round++) { /* more events than one batch of acks */
		rdma_job(&jobs[0], round % 2 ? MC_OP_READ : MC_OP_WRITE, 0, 100);
		verbs_fake_hold(VERBS_FAKE_HOLD_ACKS);
		assert_int_equal(post_jobs(lane, 0, 1), 1);
		lane->ops->arm(lane, &arm);
		assert_true(arm.is_block_ok && !arm.is_ready && arm.fd >= 0);
		p = (struct pollfd){.fd = arm.fd, .events = arm.events};
		assert_int_equal(poll(&p, 1, 0), 0);
		(void)verbs_fake_step(1);
		assert_int_equal(poll(&p, 1, 1000), 1);
		assert_int_equal(lane->ops->poll(lane, 0, &done, 1), 1);
		assert_int_equal(poll(&p, 1, 0), 0); /* or a loop would turn for ever */
		verbs_fake_hold(VERBS_FAKE_PROMPT);
		jobs[0].ended = 0;
		assert_int_equal(post_jobs(lane, 0, 1), 1);
		lane->ops->arm(lane, &arm);
		assert_true(arm.is_ready);
		assert_int_equal(lane->ops->poll(lane, 20 * MC_NS_PER_MS, &done, 1), 1);
		(void)lane->ops->poll(lane, 0, &done, 1);
	}
	lane->ops->lane_close(lane);
	rdma_peers_close();
	(void)state;
}

static void a_blocking_poll_ends_by_itself(void **state)
{
	struct verbs_fake_conf conf = {.ndevs = 2};
	struct mc_slice *done;
	struct mc_xlane *lane;

	assert_int_equal(rdma_peers_open(&conf), 0);
	lane = rdma_lane();
	verbs_fake_hold(VERBS_FAKE_HOLD_ACKS);
	rdma_job(&jobs[0], MC_OP_WRITE, 0, 100);
	assert_int_equal(post_jobs(lane, 0, 1), 1);
	assert_int_equal(lane->ops->poll(lane, MC_NS_PER_MS, &done, 1), 0);
	verbs_fake_hold(VERBS_FAKE_PROMPT);
	assert_int_equal(lane->ops->poll(lane, MC_NS_PER_MS, &done, 1), 1);
	lane->ops->lane_close(lane);
	rdma_peers_close();
	(void)state;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(random_fragments_move_exactly_their_bytes),
	    cmocka_unit_test(acknowledgements_in_any_order_end_each_slice_once),
	    cmocka_unit_test(a_slice_above_the_longest_message_is_cut),
	    cmocka_unit_test(sixteen_slices_cost_one_doorbell_and_one_signalled_completion),
	    cmocka_unit_test(neighbours_at_the_peer_become_one_request),
	    cmocka_unit_test(a_full_lane_takes_no_more_and_never_overruns_a_queue),
	    cmocka_unit_test(what_cannot_go_over_rdma_is_said_so_and_the_rest_goes),
	    cmocka_unit_test(a_read_into_memory_that_must_not_be_written_costs_the_lane_nothing),
	    cmocka_unit_test(nothing_is_taken_before_the_lane_is_connected),
	    cmocka_unit_test(a_slice_without_fragments_is_a_round_trip_that_moves_nothing),
	    cmocka_unit_test(a_signal_follows_its_data_even_when_acknowledgements_are_late),
	    cmocka_unit_test(the_descriptor_wakes_and_what_came_before_it_is_said),
	    cmocka_unit_test(a_blocking_poll_ends_by_itself),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
