/*
 * rdma_ends.h: two real engines with RDMA between them, over the fabric of verbs_fake.h, and what
 * tests of them share: transfers, and what they were carried by.
 */
#ifndef TESTS_RDMA_ENDS_H
#define TESTS_RDMA_ENDS_H

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

static inline struct mc_engine *engine(const char *devices)
{
	struct mc_engine_opts opts = {
	    .size = sizeof(opts), .name = "127.0.0.1", .protocol = "rdma", .devices = devices};
	struct mc_diag diag = {0};
	struct mc_engine *eng;

	if (mc_engine_open_verbs(&opts, verbs, &diag, &eng) < 0)
		fail_msg("%s", diag.text);
	return eng;
}

static inline int setup_on(const struct verbs_fake_conf *conf, uint32_t down, const char *location)
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

static inline int setup_with(unsigned ndevs, const char *location)
{
	return setup_on(&(struct verbs_fake_conf){.ndevs = ndevs}, 0, location);
}

static inline int setup(void **state)
{
	(void)state;
	return setup_with(1, NULL);
}

static inline int setup_eight(void **state)
{
	(void)state;
	return setup_with(8, NULL);
}

/* Lanes that lie idle for a second are closed. */
static inline int setup_impatient(void **state)
{
	int rc;

	(void)state;
	(void)setenv("MC_RDMA_IDLE", "1", 1);
	rc = setup_with(1, NULL);
	(void)unsetenv("MC_RDMA_IDLE");
	return rc;
}

/* One of two ports is down when both engines open. */
static inline int setup_half(void **state)
{
	(void)state;
	return setup_on(&(struct verbs_fake_conf){.ndevs = 2}, 2, NULL);
}

/* All are. */
static inline int setup_dark(void **state)
{
	(void)state;
	return setup_on(&(struct verbs_fake_conf){.ndevs = 2}, 3, NULL);
}

static inline int setup_infiniband(void **state)
{
	(void)state;
	return setup_on(&(struct verbs_fake_conf){.ndevs = 1, .is_infiniband = true}, 0, NULL);
}

static inline int setup_four(void **state)
{
	(void)state;
	return setup_with(4, NULL);
}

/* Two of four devices are close to the memory of node 0, which all of it is. */
#define TOPOLOGY                                                                                   \
	"{\"cpu:0\": [[\"fake1\", \"fake2\"], [\"fake0\", \"fake3\"]], "                           \
	"\"cpu:1\": [[\"fake0\", \"fake3\"], [\"fake1\", \"fake2\"]]}"

static inline int setup_places(void **state)
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

static inline int teardown(void **state)
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

static inline int move(uint8_t op, const uint8_t *from, uint64_t off, uint64_t len,
		       uint64_t deadline_ns)
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

static inline int write_all(void)
{
	memset(remote, 0, BYTES);
	return move(MC_WRITE, local, 0, BYTES, 0);
}

static inline uint64_t submit(uint8_t op, uint64_t off, uint64_t len)
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

static inline int result(uint64_t id)
{
	struct mc_status st;

	assert_int_equal(mc_group_wait(a, id, SOON_NS, &st), 0);
	assert_int_equal(mc_group_free(a, id), 0);
	return st.status;
}

static inline struct mc_session *session(void)
{
	return a->peers[seg]->session;
}

/* Bytes that one rail, or all of one transport, has moved. */
static inline uint64_t rail_bytes(const struct mc_rail *rail)
{
	return mc_counter_read(&rail->stats->bytes[MC_OP_READ]) +
	       mc_counter_read(&rail->stats->bytes[MC_OP_WRITE]);
}

static inline uint64_t rdma_bytes(void)
{
	uint64_t sum = 0;

	for (unsigned i = 0; i < session()->rdma.n; i++)
		sum += rail_bytes(&session()->rdma.v[i]);
	return sum;
}

static inline uint64_t tcp_bytes(void)
{
	return rail_bytes(&session()->tcp.v[0]);
}

static inline unsigned lanes_ready(void)
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

static inline unsigned lanes_owned(void)
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

static inline void stats_of(const struct mc_engine *eng, struct mc_rdma_stats *ret)
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

#endif
