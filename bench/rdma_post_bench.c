/*
 * rdma_post_bench.c: what one slice costs over RDMA before and after the device has it: the same
 * object files that ship, over the verbs fabric of tests/fake, so that instructions can be counted
 * where there is no HCA. The fabric moves the bytes in the caller's thread; whoever counts leaves
 * its instructions out (bench/rdma_post.py).
 *
 * A case runs its rounds and prints what they did: slices, verbs calls, completions, allocations.
 *
 *	rdma_post_bench CASE ROUNDS
 *
 *   lane-64k, lane-4k  the transport alone: 16 slices are posted in one call, then polled
 *   lane-gather        the same with slices of 16 scattered fragments of 4 KiB
 *   sync-*             mc_transfer_sync() of one range over one rail, or over eight
 *   sync-blocks        mc_transfer_sync() of 64 scattered blocks of 4 KiB
 *   submit-1m          mc_submit() and mc_group_wait() of 1 MiB
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/priv.h"
#include "verbs_fake.h"
#include "xport/rdma/lane.h"

#define BYTES (16u << 20)
#define BATCH 16u
#define BLOCKS 64u
#define BLOCK 4096u
#define RIGHTS (MC_RIGHT_READ | MC_RIGHT_WRITE)
#define ROUNDS_MAX 10000000u
#define WARM_ROUNDS 8u /* lanes are opened, arrays have grown */

struct bench_case {
	const char *name;
	unsigned ndevs;
	uint64_t len; /* of a slice (lane) or of a transfer */
	uint32_t nfrags;
	unsigned slices; /* of a round */
	int (*open)(const struct bench_case *c);
	int (*round)(const struct bench_case *c);
	const struct mc_xdev *(*dev)(void);
};

static uint8_t *local, *remote;
static const struct mc_verbs *verbs;

static void die(const char *what, int rc)
{
	(void)fprintf(stderr, "rdma_post_bench: %s: %s\n", what, mc_err_text(rc));
	exit(1);
}

/* ---- the transport alone ---- */

static struct {
	struct mc_loop *loop;
	struct mc_xdev *a, *b;
	struct mc_xlane *lane;
	struct mc_remote_region rr;
	struct mc_slice slices[BATCH];
	struct mc_frag frags[BATCH * BATCH];
} lanes;

static int side_open(uint64_t epoch, uint8_t *mem, struct mc_xdev **ret_dev,
		     uint32_t rkey[MC_RDMA_PORTS_MAX])
{
	static const uint8_t nonce[16];
	struct mc_rdma_opts opts = {.verbs = verbs, .sys_root = "/nonexistent"};
	struct mc_xdev_env env = {.loops = &lanes.loop,
				  .nloops = 1,
				  .clk = &mc_clock_real,
				  .epoch = epoch,
				  .nonce = nonce};
	struct mc_diag diag = {""};
	int rc = mc_rdma_dev_open(&env, &opts, ret_dev, &diag);

	return rc < 0 ? rc : mc_rdma_mem_add(*ret_dev, (uintptr_t)mem, BYTES, RIGHTS, rkey, &diag);
}

static int lane_open(void)
{
	struct mc_xpath path = {.local_port = 0, .remote_port = 0, .peer_epoch = 2};
	uint8_t offer[MC_RDMA_OFFER_BYTES], answer[MC_RDMA_OFFER_BYTES];
	int rc = lanes.a->ops->lane_open(lanes.a, &path, &lanes.lane), n;

	if (rc < 0)
		return rc;
	n = lanes.lane->ops->offer(lanes.lane, offer, sizeof(offer));
	if (n < 0)
		return n;
	n = lanes.b->ops->accept(lanes.b, 1, offer, (size_t)n, answer, sizeof(answer));
	return n < 0 ? n : lanes.lane->ops->connect(lanes.lane, answer, (size_t)n);
}

static int lanes_open(const struct bench_case *c)
{
	uint32_t rkey[MC_RDMA_PORTS_MAX];
	uint64_t off = 0;
	int rc = mc_loop_open("rdma", &mc_clock_real, &lanes.loop);

	rc = rc < 0 ? rc : mc_loop_start(lanes.loop);
	rc = rc < 0 ? rc : side_open(1, local, &lanes.a, rkey);
	rc = rc < 0 ? rc : side_open(2, remote, &lanes.b, rkey);
	rc = rc < 0 ? rc : lane_open();
	if (rc < 0)
		return rc;
	lanes.rr = (struct mc_remote_region){
	    .addr = (uintptr_t)remote, .len = BYTES, .gen = 1, .rights = RIGHTS};
	mc_rdma_key_put(lanes.rr.key, rkey);
	for (unsigned i = 0; i < BATCH; i++) {
		struct mc_slice *s = &lanes.slices[i];

		*s = (struct mc_slice){.op = MC_OP_WRITE,
				       .nfrags = c->nfrags,
				       .frags = &lanes.frags[(size_t)i * BATCH],
				       .len = c->len};
		mc_list_init(&s->link);
		for (uint32_t k = 0; k < c->nfrags; k++) {
			s->frags[k] = (struct mc_frag){.local = local + off,
						       .raddr = (uintptr_t)remote + off,
						       .len = c->len / c->nfrags,
						       .rr = &lanes.rr};
			/* With a gap, or they would be one piece. */
			off += c->nfrags == 1 ? c->len : 2 * c->len / c->nfrags;
		}
	}
	return 0;
}

static int lanes_round(const struct bench_case *c)
{
	struct mc_slice *batch[BATCH], *done[BATCH];
	unsigned ended = 0;
	int rc;

	(void)c;
	for (unsigned i = 0; i < BATCH; i++)
		batch[i] = &lanes.slices[i];
	rc = lanes.lane->ops->post(lanes.lane, batch, BATCH);
	if (rc != (int)BATCH)
		return rc < 0 ? rc : -MC_E_AGAIN;
	while (ended < BATCH) {
		rc = lanes.lane->ops->poll(lanes.lane, 0, done, BATCH);
		if (rc < 0)
			return rc;
		for (int i = 0; i < rc; i++)
			if (done[i]->status < 0)
				return done[i]->status;
		ended += (unsigned)rc;
	}
	return 0;
}

static const struct mc_xdev *lanes_dev(void)
{
	return lanes.a;
}

/* ---- the engine ---- */

static struct {
	struct mc_engine *a, *b;
	int32_t seg;
	struct mc_iov l[BLOCKS], r[BLOCKS];
	struct mc_transfer t[BLOCKS];
	struct mc_group g;
} eng;

static int engine_open(struct mc_engine **ret_eng, uint8_t *mem)
{
	struct mc_engine_opts opts = {
	    .size = sizeof(opts), .name = "127.0.0.1", .protocol = "rdma"};
	struct mc_diag diag = {""};
	int rc = mc_engine_open_verbs(&opts, verbs, &diag, ret_eng);

	return rc < 0 ? rc : mc_mem_reg(*ret_eng, mem, BYTES, NULL, RIGHTS);
}

static int engines_open(const struct bench_case *c)
{
	bool is_blocks = c->nfrags > 1;
	int rc = engine_open(&eng.a, local);

	rc = rc < 0 ? rc : engine_open(&eng.b, remote);
	rc = rc < 0 ? rc : mc_segment_open(eng.a, mc_engine_name(eng.b), 0, NULL, &eng.seg);
	if (rc < 0)
		return rc;
	eng.g = (struct mc_group){
	    .size = sizeof(eng.g), .n = c->nfrags, .transfers = eng.t, .priority = MC_PRIO_NORMAL};
	for (uint32_t i = 0; i < c->nfrags; i++) {
		uint64_t off = is_blocks ? (uint64_t)i * 2 * BLOCK : 0;

		eng.l[i] = (struct mc_iov){(uintptr_t)local + off, c->len / c->nfrags};
		eng.r[i] = (struct mc_iov){(uintptr_t)remote + off, c->len / c->nfrags};
		eng.t[i] = (struct mc_transfer){.op = MC_WRITE,
						.segment = eng.seg,
						.nlocal = 1,
						.nremote = 1,
						.local = &eng.l[i],
						.remote = &eng.r[i]};
	}
	return 0;
}

static int sync_round(const struct bench_case *c)
{
	struct mc_diag diag = {""};

	(void)c;
	return mc_transfer_sync(eng.a, &eng.g, &diag);
}

static int submit_round(const struct bench_case *c)
{
	struct mc_status st;
	uint64_t id;
	int rc = mc_submit(eng.a, &eng.g, &id);

	(void)c;
	rc = rc < 0 ? rc : mc_group_wait(eng.a, id, 10 * MC_NS_PER_S, &st);
	if (rc < 0)
		return rc;
	rc = mc_group_free(eng.a, id);
	return rc < 0 ? rc : st.status;
}

static const struct mc_xdev *engines_dev(void)
{
	return eng.a->rdma;
}

/* ---- running ---- */

#define LANE lanes_open, lanes_round, lanes_dev
#define SYNC engines_open, sync_round, engines_dev
#define SUBMIT engines_open, submit_round, engines_dev

static const struct bench_case cases[] = {
    {"lane-64k", 1, 64u << 10, 1, BATCH, LANE},
    {"lane-4k", 1, BLOCK, 1, BATCH, LANE},
    {"lane-gather", 1, 64u << 10, BATCH, BATCH, LANE},
    {"sync-4k", 1, BLOCK, 1, 1, SYNC},
    {"sync-1m", 1, 1u << 20, 1, 16, SYNC},
    {"sync-4m", 1, 4u << 20, 1, 64, SYNC},
    {"sync-4m-8rails", 8, 4u << 20, 1, 64, SYNC},
    {"sync-blocks", 1, BLOCKS *BLOCK, BLOCKS, 4, SYNC},
    {"submit-1m", 1, 1u << 20, 1, 16, SUBMIT},
};

static const struct bench_case *case_find(const char *name)
{
	for (size_t i = 0; i < MC_ARRAY_LEN(cases); i++)
		if (strcmp(cases[i].name, name) == 0)
			return &cases[i];
	return NULL;
}

static void rounds_run(const struct bench_case *c, unsigned rounds)
{
	for (unsigned i = 0; i < rounds; i++) {
		int rc = c->round(c);

		if (rc < 0)
			die(c->name, rc);
	}
}

/* As far as the first transfers can tell: of the engine, a worker opens the lanes. */
static void warm(const struct bench_case *c)
{
	const struct timespec pause = {.tv_nsec = 2 * (long)MC_NS_PER_MS};
	struct mc_rdma_stats st;

	for (unsigned i = 0; i < 1000; i++) {
		rounds_run(c, 1);
		mc_rdma_stats_get(c->dev(), &st);
		if (st.lanes >= c->ndevs)
			break;
		(void)nanosleep(&pause, NULL);
	}
	rounds_run(c, WARM_ROUNDS);
}

int main(int argc, char **argv)
{
	const struct bench_case *c = argc == 3 ? case_find(argv[1]) : NULL;
	unsigned long rounds = argc == 3 ? strtoul(argv[2], NULL, 10) : 0;
	struct mc_rdma_stats from, to;
	uint64_t calls, ns;
	int rc;

	if (!c || rounds < 1 || rounds > ROUNDS_MAX) {
		(void)fprintf(stderr,
			      "usage: rdma_post_bench CASE ROUNDS, ROUNDS 1 to %u, CASE one of",
			      ROUNDS_MAX);
		for (size_t i = 0; i < MC_ARRAY_LEN(cases); i++)
			(void)fprintf(stderr, " %s", cases[i].name);
		(void)fprintf(stderr, "\n");
		return 2;
	}
	(void)setenv("MC_NO_SHM", "1", 1);
	(void)setenv("MC_NUM_TCP_IO_THREADS", "1", 1);
	verbs = verbs_fake_open(&(struct verbs_fake_conf){.ndevs = c->ndevs});
	local = mc_aligned_alloc(4096, BYTES);
	remote = mc_aligned_alloc(4096, BYTES);
	if (!local || !remote)
		die("memory", -MC_E_NOMEM);
	rc = c->open(c);
	if (rc < 0)
		die(c->name, rc);
	warm(c);
	mc_rdma_stats_get(c->dev(), &from);
	calls = mc_mem_calls();
	ns = mc_now_ns();
	rounds_run(c, (unsigned)rounds);
	ns = mc_now_ns() - ns;
	calls = mc_mem_calls() - calls;
	mc_rdma_stats_get(c->dev(), &to);
	(void)printf(
	    "{\"case\": \"%s\", \"rounds\": %lu, \"slices\": %lu, \"bytes\": %llu, "
	    "\"posts\": %llu, \"requests\": %llu, \"signalled\": %llu, "
	    "\"polls\": %llu, \"completions\": %llu, \"allocations\": %llu, "
	    "\"ns\": %llu}\n",
	    c->name, rounds, rounds * c->slices,
	    (unsigned long long)(rounds * (c->dev == lanes_dev ? BATCH : 1) * c->len),
	    (unsigned long long)(to.posts - from.posts), (unsigned long long)(to.wrs - from.wrs),
	    (unsigned long long)(to.signaled - from.signaled),
	    (unsigned long long)(to.polls - from.polls), (unsigned long long)(to.wcs - from.wcs),
	    (unsigned long long)calls, (unsigned long long)ns);
	return 0; /* engines and the fabric end with the process */
}
