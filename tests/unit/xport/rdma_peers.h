/*
 * rdma_peers.h: two processes' RDMA devices in one, on the fake fabric: an initiator and a target,
 * each with memory of its own that the other knows, and lanes between them.
 */
#ifndef TESTS_RDMA_PEERS_H
#define TESTS_RDMA_PEERS_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "base/mem.h"
#include "base/rand.h"
#include "verbs_fake.h"
#include "xport/rdma/lane.h"

#define RDMA_MEM_LEN (1u << 20)
#define RDMA_POLLS 1000u

struct rdma_side {
	struct mc_xdev *dev;
	uint64_t epoch;
	uint8_t *mem;
	struct mc_remote_region rr; /* as the other side knows it */
};

static struct {
	struct mc_loop *loop;
	struct rdma_side a, b; /* initiator, target */
	struct mc_rand rand;
	int64_t live_before;
} rp;

static inline struct mc_rdma_dev *rdma_dev(struct rdma_side *s)
{
	return (struct mc_rdma_dev *)s->dev;
}

static inline int rdma_side_open(struct rdma_side *s, const struct mc_verbs *v, uint64_t epoch)
{
	static const uint8_t nonce[16];
	struct mc_rdma_opts opts = {.verbs = v, .sys_root = "/nonexistent"};
	struct mc_xdev_env env = {
	    .loops = &rp.loop, .nloops = 1, .clk = &mc_clock_real, .epoch = epoch, .nonce = nonce};
	struct mc_diag diag = {""};
	uint32_t rkeys[MC_RDMA_PORTS_MAX];
	int rc;

	s->epoch = epoch;
	rc = mc_rdma_dev_open(&env, &opts, &s->dev, &diag);
	if (rc < 0) {
		s->dev = NULL;
		return rc;
	}
	rc = mc_rdma_mem_add(s->dev, (uintptr_t)s->mem, RDMA_MEM_LEN,
			     MC_RIGHT_READ | MC_RIGHT_WRITE, rkeys, &diag);
	if (rc < 0)
		return rc;
	s->rr = (struct mc_remote_region){.addr = (uintptr_t)s->mem,
					  .len = RDMA_MEM_LEN,
					  .gen = 1,
					  .rights = MC_RIGHT_READ | MC_RIGHT_WRITE};
	mc_rdma_key_put(s->rr.key, rkeys);
	return 0;
}

static inline void rdma_side_close(struct rdma_side *s)
{
	if (s->dev) {
		(void)mc_rdma_mem_del(s->dev, (uintptr_t)s->mem, RDMA_MEM_LEN);
		s->dev->ops->dev_close(s->dev);
	}
	s->dev = NULL;
}

static inline void rdma_fill(struct rdma_side *s)
{
	for (size_t i = 0; i < RDMA_MEM_LEN; i += 8) {
		uint64_t v = mc_rand_u64(&rp.rand);

		memcpy(s->mem + i, &v, 8);
	}
}

/** The fabric and both sides. */
static inline int rdma_peers_open(const struct verbs_fake_conf *conf)
{
	const struct mc_verbs *v = verbs_fake_open(conf);
	int rc;

	mc_rand_seed(&rp.rand, 1);
	rp.live_before = mc_mem_live();
	rp.a.mem = mc_aligned_alloc(4096, RDMA_MEM_LEN);
	rp.b.mem = mc_aligned_alloc(4096, RDMA_MEM_LEN);
	assert_true(rp.a.mem && rp.b.mem);
	rdma_fill(&rp.a);
	rdma_fill(&rp.b);
	assert_int_equal(mc_loop_open("rdma", &mc_clock_real, &rp.loop), 0);
	assert_int_equal(mc_loop_start(rp.loop), 0);
	rc = rdma_side_open(&rp.a, v, 0xa11ce);
	return rc < 0 ? rc : rdma_side_open(&rp.b, v, 0xb0b);
}

/** Nothing may be left. */
static inline void rdma_peers_close(void)
{
	rdma_side_close(&rp.a);
	rdma_side_close(&rp.b);
	mc_loop_close(rp.loop);
	assert_int_equal(verbs_fake_live_all(), 0);
	verbs_fake_close();
	mc_free(rp.a.mem);
	mc_free(rp.b.mem);
	assert_int_equal(mc_mem_live(), rp.live_before);
}

/* ---- lanes ---- */

static inline int rdma_lane_new(struct mc_xlane **ret_lane)
{
	struct mc_xpath path = {
	    .local_port = 0, .remote_port = 1, .peer_epoch = rp.b.epoch, .peer_name = "b"};

	return rp.a.dev->ops->lane_open(rp.a.dev, &path, ret_lane);
}

/** Offer, accept, connect. */
static inline int rdma_lane_introduce(struct mc_xlane *lane)
{
	uint8_t offer[MC_RDMA_OFFER_BYTES], answer[MC_RDMA_OFFER_BYTES];
	int n = lane->ops->offer(lane, offer, sizeof(offer));

	if (n < 0)
		return n;
	n = rp.b.dev->ops->accept(rp.b.dev, rp.a.epoch, offer, (size_t)n, answer, sizeof(answer));
	return n < 0 ? n : lane->ops->connect(lane, answer, (size_t)n);
}

static inline struct mc_xlane *rdma_lane(void)
{
	struct mc_xlane *lane = NULL;

	assert_int_equal(rdma_lane_new(&lane), 0);
	assert_int_equal(rdma_lane_introduce(lane), 0);
	return lane;
}

struct rdma_left {
	size_t token_len;
	uint8_t token[MC_XPORT_TOKEN_MAX];
	unsigned done, unsent, maybe;
};

/** Abort and close. */
static inline struct rdma_left rdma_lane_end_all(struct mc_xlane *lane)
{
	struct rdma_left l = {0};
	struct mc_list left, *node;

	mc_list_init(&left);
	l.token_len = lane->ops->abort(lane, &left, l.token);
	while ((node = mc_list_pop_front(&left))) {
		enum mc_slice_verdict v = mc_list_entry(node, struct mc_slice, link)->verdict;

		l.done += v == MC_SLICE_DONE;
		l.unsent += v == MC_SLICE_UNSENT;
		l.maybe += v == MC_SLICE_MAYBE;
	}
	lane->ops->lane_close(lane);
	return l;
}

static inline int rdma_retire(const struct rdma_left *l)
{
	uint64_t acked = 1;
	int rc = rp.b.dev->ops->retire(rp.b.dev, l->token, l->token_len, &acked);

	if (rc == 0)
		assert_true(acked == MC_ACKED_UNKNOWN); /* its processor took no part */
	return rc;
}

/* ---- slices ---- */

#define RDMA_FRAGS 32u

struct rdma_job {
	struct mc_slice s;
	struct mc_frag frags[RDMA_FRAGS];
	unsigned ended;
};

/** One fragment between the same offsets of both memories. */
static inline struct mc_slice *rdma_job(struct rdma_job *j, enum mc_op op, uint64_t off,
					uint64_t len)
{
	memset(j, 0, sizeof(*j));
	j->frags[0] = (struct mc_frag){
	    .local = rp.a.mem + off, .raddr = rp.b.rr.addr + off, .len = len, .rr = &rp.b.rr};
	j->s = (struct mc_slice){.op = op, .nfrags = 1, .frags = j->frags, .len = len, .user = j};
	mc_list_init(&j->s.link);
	return &j->s;
}

/** Poll until `n` slices have ended. @return 0, or the lane's error */
static inline int rdma_poll(struct mc_xlane *lane, unsigned n)
{
	struct mc_slice *done[8];

	for (unsigned tries = 0; n > 0; tries++) {
		int rc = lane->ops->poll(lane, 0, done, MC_ARRAY_LEN(done));

		if (rc < 0)
			return rc;
		assert_true((unsigned)rc <= n && tries < RDMA_POLLS);
		for (int i = 0; i < rc; i++) {
			assert_int_equal(((struct rdma_job *)done[i]->user)->ended++, 0);
			assert_int_equal(done[i]->verdict, MC_SLICE_DONE);
		}
		n -= (unsigned)rc;
	}
	return 0;
}

/** Post one and wait for it. @return its status, or the lane's error */
static inline int rdma_run(struct mc_xlane *lane, struct mc_slice *s)
{
	int rc = lane->ops->post(lane, &s, 1);

	if (rc < 0)
		return rc;
	assert_int_equal(rc, 1);
	rc = rdma_poll(lane, 1);
	return rc < 0 ? rc : s->status;
}

/** Both memories agree in a range. */
static inline bool rdma_same(uint64_t off, uint64_t len)
{
	return memcmp(rp.a.mem + off, rp.b.mem + off, len) == 0;
}

#endif
