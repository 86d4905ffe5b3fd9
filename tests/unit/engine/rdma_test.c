/*
 * rdma_test.c: two real engines with RDMA between them, over the fabric of verbs_fake.h: rails,
 * lanes opened by a worker, keys, fallback to TCP and back, fences, peers that are gone.
 */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "engine/hca.h"
#include "engine/initiators.h"
#include "verbs_fake.h"

#define BYTES (4u << 20)
#define PART_BYTES (1u << 20)
#define SOON_NS (20 * MC_NS_PER_S) /* never needed but where something is broken */

static struct mc_engine *a, *b; /* initiator, target */
static const struct mc_verbs *verbs;
static uint8_t *local, *remote;
static int32_t seg;

static struct mc_engine *engine(const char *devices)
{
	struct mc_engine_opts opts = {
	    .size = sizeof(opts), .name = "127.0.0.1", .protocol = "rdma", .devices = devices};
	struct mc_diag diag = {0};
	struct mc_engine *eng;

	if (mc_engine_open_verbs(&opts, verbs, &diag, &eng) < 0)
		fail_msg("%s", diag.text);
	return eng;
}

static int setup_on(const struct verbs_fake_conf *conf, uint32_t down, const char *location)
{
	(void)setenv("MC_NO_SHM", "1", 1);
	(void)setenv("MC_NUM_TCP_IO_THREADS", "1", 1);
	verbs = verbs_fake_open(conf);
	for (unsigned i = 0; i < conf->ndevs; i++)
		if (down & 1u << i)
			verbs_fake_link(i, 1, VERBS_FAKE_DOWN);
	local = mc_aligned_alloc(4096, BYTES);
	remote = mc_aligned_alloc(4096, BYTES);
	assert_true(local && remote);
	a = engine(NULL);
	b = engine(NULL);
	assert_int_equal(mc_mem_reg(a, local, BYTES, location, 3), 0);
	assert_int_equal(mc_mem_reg(b, remote, BYTES, NULL, 3), 0);
	assert_int_equal(mc_segment_open(a, mc_engine_name(b), 0, NULL, &seg), 0);
	for (size_t i = 0; i < BYTES; i++)
		local[i] = (uint8_t)(i * 31 + i / 253);
	return 0;
}

static int setup_with(unsigned ndevs, const char *location)
{
	return setup_on(&(struct verbs_fake_conf){.ndevs = ndevs}, 0, location);
}

static int setup(void **state)
{
	(void)state;
	return setup_with(1, NULL);
}

static int setup_eight(void **state)
{
	(void)state;
	return setup_with(8, NULL);
}

/* Lanes that lie idle for a second are closed. */
static int setup_impatient(void **state)
{
	int rc;

	(void)state;
	(void)setenv("MC_RDMA_IDLE", "1", 1);
	rc = setup_with(1, NULL);
	(void)unsetenv("MC_RDMA_IDLE");
	return rc;
}

/* One of two ports is down when both engines open. */
static int setup_half(void **state)
{
	(void)state;
	return setup_on(&(struct verbs_fake_conf){.ndevs = 2}, 2, NULL);
}

/* All are. */
static int setup_dark(void **state)
{
	(void)state;
	return setup_on(&(struct verbs_fake_conf){.ndevs = 2}, 3, NULL);
}

/* No device takes all of the memory in one piece. */
static int setup_parts(void **state)
{
	(void)state;
	return setup_on(&(struct verbs_fake_conf){.ndevs = 2, .max_mr_size = PART_BYTES}, 0, NULL);
}

static int setup_infiniband(void **state)
{
	(void)state;
	return setup_on(&(struct verbs_fake_conf){.ndevs = 1, .is_infiniband = true}, 0, NULL);
}

static int setup_four(void **state)
{
	(void)state;
	return setup_with(4, NULL);
}

/* Two of four devices are close to the memory of node 0, which all of it is. */
#define TOPOLOGY                                                                                   \
	"{\"cpu:0\": [[\"fake1\", \"fake2\"], [\"fake0\", \"fake3\"]], "                           \
	"\"cpu:1\": [[\"fake0\", \"fake3\"], [\"fake1\", \"fake2\"]]}"

static int setup_places(void **state)
{
	char path[] = "/tmp/mc-topo-XXXXXX";
	int fd = mkstemp(path), rc;

	(void)state;
	assert_true(fd >= 0);
	assert_int_equal(write(fd, TOPOLOGY, strlen(TOPOLOGY)), strlen(TOPOLOGY));
	(void)close(fd);
	(void)setenv("MC_CUSTOM_TOPO_JSON", path, 1);
	rc = setup_with(4, "cpu:0");
	(void)unsetenv("MC_CUSTOM_TOPO_JSON");
	(void)unlink(path);
	return rc;
}

static int teardown(void **state)
{
	(void)state;
	mc_engine_close(a);
	mc_engine_close(b);
	assert_int_equal(verbs_fake_live_all(), 0);
	verbs_fake_close();
	mc_free(local);
	mc_free(remote);
	return 0;
}

/* ---- transfers and what they were carried by ---- */

static int move(uint8_t op, const uint8_t *from, uint64_t off, uint64_t len, uint64_t deadline_ns)
{
	struct mc_iov l = {(uintptr_t)from, len}, r = {(uintptr_t)remote + off, len};
	struct mc_transfer t = {
	    .op = op, .segment = seg, .nlocal = 1, .nremote = 1, .local = &l, .remote = &r};
	struct mc_group g = {.size = sizeof(g),
			     .n = 1,
			     .transfers = &t,
			     .deadline_ns = deadline_ns,
			     .priority = MC_PRIO_NORMAL};
	struct mc_diag diag = {0};
	int rc = mc_transfer_sync(a, &g, &diag);

	if (rc < 0)
		print_message("%s\n", diag.text);
	return rc;
}

static int write_all(void)
{
	memset(remote, 0, BYTES);
	return move(MC_WRITE, local, 0, BYTES, 0);
}

static uint64_t submit(uint8_t op, uint64_t off, uint64_t len)
{
	struct mc_iov l = {(uintptr_t)local + off, len}, r = {(uintptr_t)remote + off, len};
	struct mc_transfer t = {
	    .op = op, .segment = seg, .nlocal = 1, .nremote = 1, .local = &l, .remote = &r};
	struct mc_group g = {
	    .size = sizeof(g), .n = 1, .transfers = &t, .priority = MC_PRIO_NORMAL};
	uint64_t id;

	assert_int_equal(mc_submit(a, &g, &id), 0);
	return id;
}

static int result(uint64_t id)
{
	struct mc_status st;

	assert_int_equal(mc_group_wait(a, id, SOON_NS, &st), 0);
	assert_int_equal(mc_group_free(a, id), 0);
	return st.status;
}

static struct mc_session *session(void)
{
	return a->peers[seg]->session;
}

/* Bytes that one rail, or all of one transport, has moved. */
static uint64_t rail_bytes(const struct mc_rail *rail)
{
	return mc_counter_read(&rail->stats->bytes[MC_OP_READ]) +
	       mc_counter_read(&rail->stats->bytes[MC_OP_WRITE]);
}

static uint64_t rdma_bytes(void)
{
	uint64_t sum = 0;

	for (unsigned i = 0; i < session()->rdma.n; i++)
		sum += rail_bytes(&session()->rdma.v[i]);
	return sum;
}

static uint64_t tcp_bytes(void)
{
	return rail_bytes(&session()->tcp.v[0]);
}

static unsigned lanes_ready(void)
{
	struct mc_session *s = session();
	struct mc_elane *lane;
	unsigned n = 0;

	pthread_mutex_lock(&s->mu);
	mc_list_each (lane, &s->lanes, link)
		n += lane->route == MC_ROUTE_RDMA;
	pthread_mutex_unlock(&s->mu);
	return n;
}

static unsigned lanes_owned(void)
{
	struct mc_session *s = session();
	struct mc_elane *lane;
	unsigned n = 0;

	pthread_mutex_lock(&s->mu);
	mc_list_each (lane, &s->lanes, link)
		n += atomic_load(&lane->is_owned);
	pthread_mutex_unlock(&s->mu);
	return n;
}

static void stats_of(const struct mc_engine *eng, struct mc_rdma_stats *ret)
{
	mc_rdma_stats_get(eng->rdma, ret);
}

/* Until a condition holds that another thread brings about. */
#define EVENTUALLY(cond)                                                                           \
	do {                                                                                       \
		uint64_t until_ns_ = mc_now_ns() + SOON_NS;                                        \
		struct timespec ts_ = {.tv_nsec = 1000000};                                        \
                                                                                                   \
		while (!(cond) && mc_now_ns() < until_ns_)                                         \
			(void)nanosleep(&ts_, NULL); /* tidy-ok(sleep): nothing tells when */      \
		assert_true(cond);                                                                 \
	} while (0)

/* ---- tests ---- */

static void bytes_go_both_ways_over_rdma(void **state)
{
	struct mc_rdma_stats st;
	char *text;

	(void)state;
	assert_int_equal(write_all(), 0);
	assert_memory_equal(local, remote, BYTES);
	memset(local, 0, BYTES);
	assert_int_equal(move(MC_READ, local, 0, BYTES, 0), 0);
	assert_memory_equal(local, remote, BYTES);
	assert_int_equal(rdma_bytes(), 2 * BYTES);
	assert_int_equal(tcp_bytes(), 0);
	assert_string_equal(session()->rdma.v[0].stats->rail, "fake0->fake0");
	stats_of(a, &st);
	/* Slices of 64 KiB, 16 of them with one call and one completion. */
	assert_true(st.posts <= 2 * BYTES / 65536 / 16 + 2);
	assert_true(st.signaled <= 2 * BYTES / 65536 / 16 + 2);
	text = mc_metrics_text(a);
	assert_non_null(text);
	assert_non_null(strstr(text, "rail=\"fake0->fake0\""));
	mc_text_free(text);
}

static void a_group_that_a_loop_drives_waits_for_its_lane(void **state)
{
	(void)state;
	memset(remote, 0, BYTES);
	assert_int_equal(result(submit(MC_WRITE, 0, BYTES)), 0);
	assert_memory_equal(local, remote, BYTES);
	assert_int_equal(rdma_bytes(), BYTES);
}

/* As if nobody had used them for long: the next claim looks at them first. */
static void lanes_age(void)
{
	struct mc_session *s = session();
	struct mc_elane *lane;

	pthread_mutex_lock(&s->mu);
	mc_list_each (lane, &s->lanes, link)
		lane->idle_since_ns = 0;
	pthread_mutex_unlock(&s->mu);
}

static void a_lane_that_lay_idle_is_used_again(void **state)
{
	struct mc_rdma_stats st;

	(void)state;
	for (unsigned i = 0; i < 10; i++) {
		assert_int_equal(result(submit(MC_WRITE, 0, BYTES)), 0);
		EVENTUALLY(lanes_owned() == 0);
		lanes_age();
		assert_int_equal(write_all(), 0);
		lanes_age();
	}
	stats_of(b, &st);
	assert_int_equal(st.accepted, 1);
	assert_int_equal(tcp_bytes(), 0);
}

static void a_lane_that_nobody_uses_is_closed_and_its_target_told(void **state)
{
	struct mc_rdma_stats st;

	(void)state;
	assert_int_equal(write_all(), 0);
	assert_int_equal(lanes_ready(), 1);
	/* Its last use is not older than that. */
	assert_int_equal(mc_lane_retire_idle(session(), MC_ROUTE_RDMA, mc_now_ns() - SOON_NS), 0);
	EVENTUALLY(lanes_ready() == 0);
	EVENTUALLY((stats_of(b, &st), st.inbound == 0));
	EVENTUALLY((stats_of(a, &st), st.lanes == 0 && st.qps == 0));
	assert_int_equal(session()->rdma.v[0].health.failures, 0);
	assert_int_equal(write_all(), 0);
	assert_memory_equal(local, remote, BYTES);
	assert_int_equal(rdma_bytes(), 2 * BYTES);
	assert_int_equal(tcp_bytes(), 0);
}

static void one_request_uses_all_rails(void **state)
{
	uint64_t id;

	(void)state;
	assert_int_equal(move(MC_WRITE, local, 0, 4096, 0), 0);
	assert_int_equal(session()->rdma.n, 4);
	EVENTUALLY(lanes_ready() == 4);
	verbs_fake_hold(VERBS_FAKE_HOLD_REQUESTS);
	id = submit(MC_WRITE, 0, BYTES);
	EVENTUALLY(verbs_fake_pending() >= BYTES / 65536);
	verbs_fake_hold(VERBS_FAKE_PROMPT);
	assert_int_equal(result(id), 0);
	assert_memory_equal(local, remote, BYTES);
	for (unsigned i = 0; i < 4; i++)
		assert_true(rail_bytes(&session()->rdma.v[i]) >= BYTES / 4);
	assert_int_equal(tcp_bytes(), 0);
}

/* However many rails share the work: each has sixteen slices at a time while there are as many. */
static void eight_rails_at_work_have_one_completion_for_sixteen_slices(void **state)
{
	const uint64_t len = 8ull * BYTES;
	struct mc_rdma_stats before, st;
	uint8_t *big = mc_aligned_alloc(4096, len), *there = mc_aligned_alloc(4096, len);
	uint8_t *far = remote;

	(void)state;
	assert_true(big && there);
	assert_int_equal(move(MC_WRITE, local, 0, 4096, 0), 0);
	EVENTUALLY(lanes_ready() == 8);
	assert_int_equal(mc_mem_reg(a, big, len, NULL, 3), 0);
	assert_int_equal(mc_mem_reg(b, there, len, NULL, 3), 0);
	stats_of(a, &before);
	remote = there;
	assert_int_equal(move(MC_WRITE, big, 0, len, 0), 0);
	remote = far;
	stats_of(a, &st);
	assert_true(st.signaled - before.signaled <= len / 65536 / 16 + 8);
	assert_int_equal(tcp_bytes(), 0);
	assert_int_equal(mc_mem_unreg(a, big), 0);
	assert_int_equal(mc_mem_unreg(b, there), 0);
	mc_free(big);
	mc_free(there);
}

/* Lanes of rails that are not used are not opened. */
static void ports_close_to_the_memory_are_taken_while_one_is_up(void **state)
{
	(void)state;
	assert_int_equal(write_all(), 0);
	EVENTUALLY(lanes_ready() == 2);
	assert_int_equal(write_all(), 0);
	assert_memory_equal(local, remote, BYTES);
	assert_int_equal(rail_bytes(&session()->rdma.v[1]) + rail_bytes(&session()->rdma.v[2]),
			 2 * BYTES);
	verbs_fake_link(1, 1, VERBS_FAKE_DOWN);
	verbs_fake_link(2, 1, VERBS_FAKE_DOWN);
	assert_int_equal(write_all(), 0);
	assert_memory_equal(local, remote, BYTES);
	assert_true(rail_bytes(&session()->rdma.v[0]) + rail_bytes(&session()->rdma.v[3]) > 0);
	assert_int_equal(tcp_bytes(), 0);
}

static void memory_that_no_hca_knows_goes_over_tcp(void **state)
{
	uint8_t mine[4096];

	(void)state;
	memset(mine, 0x5a, sizeof(mine));
	assert_int_equal(move(MC_WRITE, mine, 4096, sizeof(mine), 0), 0);
	assert_memory_equal(mine, remote + 4096, sizeof(mine));
	assert_int_equal(rdma_bytes(), 0);
	assert_int_equal(tcp_bytes(), sizeof(mine));
}

static void memory_that_the_hca_refuses_goes_over_tcp(void **state)
{
	uint8_t *more = mc_aligned_alloc(4096, 65536);

	(void)state;
	assert_non_null(more);
	verbs_fake_fail(VERBS_FAKE_REG_MR, 0, ENOMEM);
	assert_int_equal(mc_mem_reg(a, more, 65536, NULL, 3), 0);
	assert_true(verbs_fake_fail_clear());
	memset(more, 0xa5, 65536);
	assert_int_equal(move(MC_WRITE, more, 0, 65536, 0), 0);
	assert_memory_equal(more, remote, 65536);
	assert_int_equal(rdma_bytes(), 0);
	assert_int_equal(mc_mem_unreg(a, more), 0);
	mc_free(more);
}

static void a_range_registered_twice_keeps_its_keys_until_the_last_end(void **state)
{
	struct mc_rdma_stats st;

	(void)state;
	assert_int_equal(mc_mem_reg(b, remote, BYTES, NULL, 3), 0);
	assert_int_equal(write_all(), 0);
	assert_int_equal(mc_mem_unreg(b, remote), 0);
	assert_int_equal(write_all(), 0);
	assert_memory_equal(local, remote, BYTES);
	assert_int_equal(tcp_bytes(), 0);
	assert_int_equal(mc_mem_unreg(b, remote), 0);
	assert_true(write_all() < 0);
	assert_int_equal(remote[0], 0);
	stats_of(b, &st);
	assert_in_range(st.accepted, 1, 1 + 5);
}

static void a_range_longer_than_a_device_takes_is_registered_in_parts(void **state)
{
	struct mc_region_info info;
	struct mc_rdma_stats st;

	(void)state;
	stats_of(b, &st);
	assert_int_equal(st.mrs, 2 * BYTES / PART_BYTES);
	assert_int_equal(write_all(), 0);
	assert_memory_equal(local, remote, BYTES);
	memset(local, 0, BYTES);
	assert_int_equal(move(MC_READ, local, 0, BYTES, 0), 0);
	assert_memory_equal(local, remote, BYTES);
	/* Borders that are not the same on both sides, in one slice. */
	assert_int_equal(move(MC_READ, local + PART_BYTES - 100, 2 * PART_BYTES - 5000, 10000, 0),
			 0);
	assert_memory_equal(local + PART_BYTES - 100, remote + 2 * PART_BYTES - 5000, 10000);
	assert_int_equal(rdma_bytes(), 2 * BYTES + 10000);
	assert_int_equal(tcp_bytes(), 0);
	/* Who names addresses may name any of them; a part is no registration of the user's. */
	assert_int_equal(mc_region_find(b->regions, (uintptr_t)remote, BYTES, &info), 0);
	assert_int_equal(mc_mem_unreg(b, remote + PART_BYTES), -MC_E_NOENT);
	assert_int_equal(mc_mem_unreg(b, remote), 0);
	assert_int_equal(mc_region_count(b->regions), 0);
	stats_of(b, &st);
	assert_int_equal(st.mrs, 0);
	memset(remote, 0, BYTES);
	assert_true(move(MC_WRITE, local, PART_BYTES + 4096, 4096, 0) < 0);
	assert_int_equal(remote[PART_BYTES + 4096], 0);
}

static void a_range_in_parts_is_undone_when_one_of_them_fails(void **state)
{
	size_t n = mc_region_count(b->regions);
	uint8_t *more = mc_aligned_alloc(4096, 2 * PART_BYTES + 4096);
	struct verbs_fake_live before, after;

	(void)state;
	assert_non_null(more);
	verbs_fake_live(&before);
	/* The second part of it, with other rights. */
	assert_int_equal(mc_mem_reg(b, more + PART_BYTES, PART_BYTES, NULL, 1), 0);
	assert_int_equal(mc_mem_reg(b, more, 2 * PART_BYTES + 4096, NULL, 3), -MC_E_INVAL);
	assert_int_equal(mc_region_count(b->regions), n + 1);
	assert_int_equal(mc_mem_unreg(b, more + PART_BYTES), 0);
	verbs_fake_live(&after);
	assert_int_equal(after.mrs, before.mrs);
	mc_free(more);
}

static void read_only_memory_is_the_source_of_writes_and_of_peers_reads(void **state)
{
	uint8_t *ro = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uint64_t before;

	(void)state;
	assert_ptr_not_equal(ro, MAP_FAILED);
	memset(ro, 0x3c, 65536);
	assert_int_equal(mprotect(ro, 65536, PROT_READ), 0);
	assert_int_equal(mc_mem_reg(a, ro, 65536, NULL, 3), 0);
	assert_int_equal(move(MC_WRITE, ro, 0, 65536, 0), 0);
	assert_memory_equal(ro, remote, 65536);
	assert_int_equal(rdma_bytes(), 65536);
	assert_int_equal(move(MC_READ, ro, 0, 65536, 0), -MC_E_PERM);
	assert_int_equal(ro[7], 0x3c);
	assert_int_equal(mc_mem_unreg(a, ro), 0);
	/* At the peer: it may be read, a write is refused here already. */
	assert_int_equal(mc_mem_reg(b, ro, 65536, NULL, 3), 0);
	assert_int_equal(mc_mem_reg(b, ro, 65536, NULL, 3), 0); /* the very same once more */
	before = rdma_bytes();
	{
		uint8_t *old = remote;

		remote = ro;
		assert_int_equal(move(MC_READ, local, 0, 65536, 0), 0);
		assert_memory_equal(local, ro, 65536);
		assert_int_equal(rdma_bytes() - before, 65536);
		assert_int_equal(move(MC_WRITE, local + 65536, 0, 65536, 0), -MC_E_PERM);
		remote = old;
	}
	assert_int_equal(tcp_bytes(), 0);
	assert_int_equal(mc_mem_unreg(b, ro), 0);
	assert_int_equal(mc_mem_unreg(b, ro), 0);
	assert_int_equal(munmap(ro, 65536), 0);
}

static void memory_of_the_engine_has_keys(void **state)
{
	uint8_t *mine = mc_mem_alloc(a, 65536);

	(void)state;
	assert_non_null(mine);
	memset(mine, 0x77, 65536);
	assert_int_equal(move(MC_WRITE, mine, 0, 65536, 0), 0);
	assert_memory_equal(mine, remote, 65536);
	assert_int_equal(rdma_bytes(), 65536);
	assert_int_equal(mc_mem_free(a, mine), 0);
}

static void a_range_registered_anew_is_asked_for_again(void **state)
{
	struct mc_rdma_stats st;

	(void)state;
	assert_int_equal(write_all(), 0);
	assert_int_equal(mc_mem_unreg(b, remote), 0);
	assert_int_equal(mc_mem_reg(b, remote, BYTES, NULL, 3), 0);
	assert_int_equal(write_all(), 0);
	assert_memory_equal(local, remote, BYTES);
	/* What had been posted with the first slice shared its fate, not what waited. */
	stats_of(b, &st);
	assert_in_range(st.accepted, 2, 1 + 5);
	/* Nobody's fault: the rail is as good as before. */
	assert_int_equal(session()->rdma.v[0].health.failures, 0);
}

static void a_lane_that_cannot_be_opened_leaves_tcp(void **state)
{
	uint64_t before;

	(void)state;
	verbs_fake_fail(VERBS_FAKE_CREATE_QP, 0, ENOMEM);
	assert_int_equal(write_all(), 0);
	assert_true(verbs_fake_fail_clear());
	assert_memory_equal(local, remote, BYTES);
	assert_true(tcp_bytes() > 0);
	before = rdma_bytes();
	/* It is tried again by and by. */
	EVENTUALLY(move(MC_WRITE, local, 0, 4096, 0) == 0 && rdma_bytes() > before);
}

static void a_port_that_goes_down_costs_no_error(void **state)
{
	struct mc_rdma_stats st;
	struct mc_elane *lane;
	uint64_t before;

	(void)state;
	assert_int_equal(write_all(), 0);
	before = tcp_bytes();
	mc_list_each (lane, &session()->lanes, link)
		lane->idle_since_ns = 0; /* it is looked at before it is used again */
	verbs_fake_link(0, 1, VERBS_FAKE_DOWN);
	assert_int_equal(write_all(), 0);
	assert_memory_equal(local, remote, BYTES);
	assert_int_equal(tcp_bytes() - before, BYTES);
	verbs_fake_link(0, 1, VERBS_FAKE_UP);
	before = rdma_bytes();
	EVENTUALLY(move(MC_WRITE, local, 0, 4096, 0) == 0 && rdma_bytes() > before);
	EVENTUALLY((stats_of(b, &st), st.inbound == 1)); /* nothing is left of the old one */
}

static void one_rail_of_four_that_goes_down_is_left_to_the_others(void **state)
{
	uint64_t lost, id;

	(void)state;
	assert_int_equal(write_all(), 0);
	memset(remote, 0, BYTES);
	verbs_fake_hold(VERBS_FAKE_HOLD_REQUESTS);
	id = submit(MC_WRITE, 0, BYTES);
	EVENTUALLY(verbs_fake_pending() > 8);
	verbs_fake_link(1, 1, VERBS_FAKE_DOWN);
	verbs_fake_hold(VERBS_FAKE_PROMPT);
	assert_int_equal(result(id), 0);
	assert_memory_equal(local, remote, BYTES);
	assert_int_equal(tcp_bytes(), 0);
	lost = rail_bytes(&session()->rdma.v[1]);
	assert_int_equal(write_all(), 0);
	assert_int_equal(rail_bytes(&session()->rdma.v[1]), lost);
	verbs_fake_link(1, 1, VERBS_FAKE_UP);
	EVENTUALLY(write_all() == 0 && rail_bytes(&session()->rdma.v[1]) > lost);
}

static void a_port_that_was_down_at_first_becomes_a_rail(void **state)
{
	struct mc_rail *late;

	(void)state;
	assert_int_equal(write_all(), 0);
	assert_memory_equal(local, remote, BYTES);
	assert_int_equal(session()->rdma.n, 2);
	late = &session()->rdma.v[1];
	assert_string_equal(late->stats->rail, "fake1->fake1");
	assert_int_equal(rail_bytes(late), 0);
	verbs_fake_link(1, 1, VERBS_FAKE_UP);
	EVENTUALLY(write_all() == 0 && rail_bytes(late) > 0);
	assert_memory_equal(local, remote, BYTES);
	assert_int_equal(tcp_bytes(), 0);
}

static void rdma_begins_when_the_first_port_comes_up(void **state)
{
	(void)state;
	assert_int_equal(write_all(), 0);
	assert_int_equal(rdma_bytes(), 0);
	verbs_fake_link(0, 1, VERBS_FAKE_UP);
	verbs_fake_link(1, 1, VERBS_FAKE_UP);
	EVENTUALLY(write_all() == 0 && rdma_bytes() > 0);
	assert_memory_equal(local, remote, BYTES);
}

/* Both ends are this device's: the lane that lies idle knows an address that is no more. */
static void an_address_that_moves_costs_no_error(void **state)
{
	static const uint8_t none[16];
	struct mc_rdma_stats st;
	uint64_t before;
	uint8_t gid[16];

	(void)state;
	assert_int_equal(write_all(), 0);
	verbs_fake_gid_get(0, 1, 1, gid);
	gid[15] ^= 0x40;
	verbs_fake_gid_set(0, 1, 3, gid);
	verbs_fake_gid_set(0, 1, 1, none);
	EVENTUALLY(mc_rdma_port_is_up(a->rdma, 0) && mc_rdma_port_is_up(b->rdma, 0));
	lanes_age();
	assert_int_equal(write_all(), 0);
	assert_memory_equal(local, remote, BYTES);
	before = rdma_bytes();
	EVENTUALLY(write_all() == 0 && rdma_bytes() >= before + BYTES);
	EVENTUALLY((stats_of(b, &st), st.inbound == 1));
}

static void a_lid_that_changes_costs_no_error(void **state)
{
	uint64_t before;

	(void)state;
	assert_int_equal(write_all(), 0);
	verbs_fake_lid_set(0, 1, 99);
	assert_int_equal(write_all(), 0);
	assert_memory_equal(local, remote, BYTES);
	before = rdma_bytes();
	EVENTUALLY(write_all() == 0 && rdma_bytes() >= before + BYTES);
}

struct writing {
	pthread_t thread;
	int rc;
};

static void *write_main(void *arg)
{
	((struct writing *)arg)->rc = move(MC_WRITE, local, 0, BYTES, 0);
	return NULL;
}

/* A driver keeps a queue pair until its last packet is gone, which may take a second. */
static void others_go_on_while_the_lane_of_a_lost_rail_ends(void **state)
{
	struct writing w = {.rc = 1};
	uint64_t before[4];

	(void)state;
	assert_int_equal(move(MC_WRITE, local, 0, 4096, 0), 0);
	EVENTUALLY(lanes_ready() == 4); /* no rate is known yet: all get the same */
	for (unsigned i = 0; i < 4; i++)
		before[i] = rail_bytes(&session()->rdma.v[i]);
	memset(remote, 0, BYTES);
	verbs_fake_hold(VERBS_FAKE_HOLD_REQUESTS);
	assert_int_equal(pthread_create(&w.thread, NULL, write_main, &w), 0);
	EVENTUALLY(verbs_fake_pending() == BYTES / 65536);
	verbs_fake_block(VERBS_FAKE_DESTROY_QP);
	verbs_fake_link(1, 1, VERBS_FAKE_DOWN);
	EVENTUALLY(mc_counter_read(&session()->rdma.v[1].stats->broken) > 0);
	verbs_fake_hold(VERBS_FAKE_PROMPT);
	for (unsigned i = 0; i < 4; i++)
		if (i != 1)
			EVENTUALLY(rail_bytes(&session()->rdma.v[i]) >= before[i] + BYTES / 8);
	verbs_fake_block(VERBS_FAKE_ANY);
	assert_int_equal(pthread_join(w.thread, NULL), 0);
	assert_int_equal(w.rc, 0);
	assert_memory_equal(local, remote, BYTES);
	assert_int_equal(tcp_bytes(), 0);
}

/* Nor does a lane that was lost while it lay idle cost its next user anything. */
static void an_idle_lane_that_was_lost_ends_without_its_next_user(void **state)
{
	(void)state;
	assert_int_equal(write_all(), 0);
	EVENTUALLY(write_all() == 0 && lanes_ready() == 4);
	lanes_age();
	verbs_fake_block(VERBS_FAKE_DESTROY_QP);
	verbs_fake_link(1, 1, VERBS_FAKE_DOWN);
	EVENTUALLY(!mc_rdma_port_is_up(a->rdma, 1));
	assert_int_equal(write_all(), 0);
	assert_memory_equal(local, remote, BYTES);
	verbs_fake_block(VERBS_FAKE_ANY);
	assert_int_equal(tcp_bytes(), 0);
}

static unsigned probes_of(struct mc_rail *rail)
{
	unsigned n;

	pthread_mutex_lock(&rail->session->mu);
	n = rail->health.probes;
	pthread_mutex_unlock(&rail->session->mu);
	return n;
}

/* Its port stays up and its lanes connect, for introductions go another way. */
static void a_rail_that_loses_all_in_silence_gets_no_slice_until_bytes_cross_it(void **state)
{
	struct mc_rail *rail;
	uint64_t moved, retries, id;

	(void)state;
	assert_int_equal(write_all(), 0);
	rail = &session()->rdma.v[1];
	EVENTUALLY(write_all() == 0 && rail_bytes(rail) > 0); /* its lane is there */
	memset(remote, 0, BYTES);
	verbs_fake_link(1, 1, VERBS_FAKE_DROP);
	id = submit(MC_WRITE, 0, BYTES);
	EVENTUALLY(verbs_fake_pending() > 0);
	(void)verbs_fake_expire(); /* the HCA gives up */
	assert_int_equal(result(id), 0);
	assert_memory_equal(local, remote, BYTES);
	assert_int_equal(tcp_bytes(), 0);
	moved = rail_bytes(rail);
	retries = mc_counter_read(&rail->stats->retries);
	assert_true(retries > 0);
	EVENTUALLY((verbs_fake_expire(), write_all()) == 0 && probes_of(rail) > 2);
	assert_memory_equal(local, remote, BYTES);
	assert_int_equal(mc_counter_read(&rail->stats->retries), retries);
	assert_int_equal(rail_bytes(rail), moved);
	verbs_fake_link(1, 1, VERBS_FAKE_UP);
	EVENTUALLY(write_all() == 0 && rail_bytes(rail) > moved);
}

/* The bytes have landed, the acknowledgements are lost: nobody can know. */
static void writes_whose_outcome_is_unknown_are_fenced_before_they_go_elsewhere(void **state)
{
	struct mc_rdma_stats st;
	uint64_t id;

	(void)state;
	assert_int_equal(write_all(), 0);
	memset(remote, 0, BYTES);
	verbs_fake_link(0, 1, VERBS_FAKE_DROP_ACK);
	id = submit(MC_WRITE, 0, BYTES);
	EVENTUALLY(verbs_fake_pending() > 0);
	(void)verbs_fake_expire(); /* the HCA gives up */
	assert_int_equal(result(id), 0);
	assert_memory_equal(local, remote, BYTES);
	assert_true(tcp_bytes() > 0);
	stats_of(b, &st);
	assert_true(st.retired > 0);
	assert_int_equal(atomic_load(&a->quarantine.n), 0);
}

static void what_a_dead_peer_left_is_freed_after_a_while(void **state)
{
	struct mc_rdma_stats st;

	(void)state;
	assert_int_equal(write_all(), 0);
	stats_of(b, &st);
	assert_true(st.inbound > 0);
	mc_initiators_patience(b, 50 * MC_NS_PER_MS);
	assert_int_equal(mc_segment_close(a, seg), 0);
	EVENTUALLY((stats_of(b, &st), st.inbound == 0));
	/* A new session works as the first did. */
	assert_int_equal(mc_segment_open(a, mc_engine_name(b), 0, NULL, &seg), 0);
	assert_int_equal(write_all(), 0);
	assert_memory_equal(local, remote, BYTES);
	assert_int_equal(rdma_bytes(), 2 * BYTES);
}

static void a_device_list_is_held_to(void **state)
{
	struct mc_engine_opts opts = {.size = sizeof(opts),
				      .name = "127.0.0.1",
				      .protocol = "rdma",
				      .devices = "127.0.0.1, nosuch"};
	struct mc_engine *eng;
	struct mc_diag diag;

	(void)state;
	assert_int_equal(mc_engine_open_verbs(&opts, verbs, &diag, &eng), -MC_E_NOENT);
	assert_non_null(strstr(diag.text, "nosuch"));
	assert_non_null(strstr(diag.text, "fake0"));
	eng = engine("127.0.0.1,fake2");
	assert_int_equal(mc_rdma_ports(eng->rdma), 1);
	mc_engine_close(eng);
	opts.protocol = "tcp";
	assert_int_equal(mc_engine_open_verbs(&opts, verbs, &diag, &eng), 0);
	assert_null(eng->rdma);
	mc_engine_close(eng);
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
#define T4(name) cmocka_unit_test_setup_teardown(name, setup_four, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
	    T(bytes_go_both_ways_over_rdma),
	    T(a_group_that_a_loop_drives_waits_for_its_lane),
	    T(a_lane_that_lay_idle_is_used_again),
	    cmocka_unit_test_setup_teardown(a_lane_that_nobody_uses_is_closed_and_its_target_told,
					    setup_impatient, teardown),
	    T4(one_request_uses_all_rails),
	    cmocka_unit_test_setup_teardown(
		eight_rails_at_work_have_one_completion_for_sixteen_slices, setup_eight, teardown),
	    cmocka_unit_test_setup_teardown(ports_close_to_the_memory_are_taken_while_one_is_up,
					    setup_places, teardown),
	    T(memory_that_no_hca_knows_goes_over_tcp),
	    T(memory_that_the_hca_refuses_goes_over_tcp),
	    T(a_range_registered_twice_keeps_its_keys_until_the_last_end),
	    cmocka_unit_test_setup_teardown(
		a_range_longer_than_a_device_takes_is_registered_in_parts, setup_parts, teardown),
	    cmocka_unit_test_setup_teardown(a_range_in_parts_is_undone_when_one_of_them_fails,
					    setup_parts, teardown),
	    T(read_only_memory_is_the_source_of_writes_and_of_peers_reads),
	    T(memory_of_the_engine_has_keys),
	    T(a_range_registered_anew_is_asked_for_again),
	    T(a_lane_that_cannot_be_opened_leaves_tcp),
	    T(a_port_that_goes_down_costs_no_error),
	    T4(one_rail_of_four_that_goes_down_is_left_to_the_others),
	    cmocka_unit_test_setup_teardown(a_port_that_was_down_at_first_becomes_a_rail,
					    setup_half, teardown),
	    cmocka_unit_test_setup_teardown(rdma_begins_when_the_first_port_comes_up, setup_dark,
					    teardown),
	    T(an_address_that_moves_costs_no_error),
	    cmocka_unit_test_setup_teardown(a_lid_that_changes_costs_no_error, setup_infiniband,
					    teardown),
	    T4(others_go_on_while_the_lane_of_a_lost_rail_ends),
	    T4(an_idle_lane_that_was_lost_ends_without_its_next_user),
	    T4(a_rail_that_loses_all_in_silence_gets_no_slice_until_bytes_cross_it),
	    T(writes_whose_outcome_is_unknown_are_fenced_before_they_go_elsewhere),
	    T(what_a_dead_peer_left_is_freed_after_a_while),
	    T4(a_device_list_is_held_to),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
