/*
 * engine_signal_test.c: a signal is seen after all bytes of its transfer, and once: within one
 * process ("self"), over shared memory ("shm"), over one connection ("tcp"), over several addresses
 * ("rails"), in upstream's frames, which know no signals ("classic"), and over lanes that drop,
 * reorder and break on a path that loses and resets ("fault").
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "engine/priv.h"
#include "fault.h"
#include "relay.h"

#define BYTES (12u << 20)
#define FLAGS 512u
#define WAIT_NS (20 * MC_NS_PER_S)

static const char *mode;
static struct mc_engine *a, *b; /* initiator, target; the same for "self" */
static struct mc_xdev *fault;
static struct relay *relay;
static struct mc_addr via;
static uint8_t *local, *remote, *readonly;
static _Atomic uint64_t *flags[2]; /* memory of the target's engine; of its program */
static int32_t seg;

static bool is_mode(const char *name)
{
	return strcmp(mode, name) == 0;
}

static struct mc_engine *open_one(void)
{
	struct mc_engine_opts opts = {.size = sizeof(opts),
				      .name = "127.0.0.1",
				      .devices = is_mode("rails") ? "127.0.0.2,127.0.0.3" : NULL};
	struct mc_engine *eng = NULL;

	assert_int_equal(mc_engine_open(&opts, NULL, &eng), 0);
	return eng;
}

static void fault_between(void)
{
	struct relay_opts ro = {.seed = 5,
				.tiny = 20,
				.piece_max = 60000,
				.reset_bytes = 6u << 20,
				.delay_ns = MC_NS_PER_MS / 4,
				.buffer_bytes = 8u << 20};
	struct mc_fault_opts fo = {.seed = 6,
				   .refuse = 100,
				   .hold = 200,
				   .hold_polls = 4,
				   .lane_break = 20,
				   .is_inner_kept = true,
				   .via = &via};
	struct mc_addr to;

	assert_int_equal(mc_addr_parse("127.0.0.1", mc_tcp_dev_port(b->tcp), &to), 0);
	assert_int_equal(relay_open(&to, &ro, &relay), 0);
	via = *relay_addr(relay);
	assert_int_equal(mc_fault_dev_open(a->tcp, &fo, &fault), 0);
	a->lanes_from = fault;
}

/* From here on we know no more of the target than of one that speaks upstream's frames alone. */
static void speak_classic(void)
{
	struct mc_session *s;
	struct mc_peer *peer;

	assert_int_equal(mc_peer_by_id(a, seg, &peer), 0);
	s = mc_session_now(peer);
	assert_non_null(s);
	s->kind = MC_PEER_CLASSIC;
	s->classic_proto = 2;
	mc_session_put(s);
}

static int setup(void **state)
{
	(void)state;
	a = open_one();
	b = is_mode("self") ? a : open_one();
	local = mc_aligned_alloc(4096, BYTES);
	readonly = mc_aligned_alloc(4096, 4096);
	remote = mc_mem_alloc(b, BYTES);
	flags[0] = mc_mem_alloc(b, FLAGS * sizeof(uint64_t));
	flags[1] = mc_aligned_alloc(4096, FLAGS * sizeof(uint64_t));
	assert_true(local && readonly && remote && flags[0] && flags[1]);
	for (unsigned i = 0; i < FLAGS; i++)
		flags[0][i] = flags[1][i] = 0;
	assert_int_equal(mc_mem_reg(b, readonly, 4096, NULL, MC_MEM_REMOTE_READ), 0);
	assert_int_equal(mc_mem_reg(b, (void *)flags[1], FLAGS * sizeof(uint64_t), NULL, 3), 0);
	if (is_mode("fault"))
		fault_between();
	seg = MC_SEGMENT_LOCAL;
	if (b != a)
		assert_int_equal(mc_segment_open(a, mc_engine_name(b), 0, NULL, &seg), 0);
	if (is_mode("classic"))
		speak_classic();
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	assert_int_equal(mc_mem_free(b, remote), 0);
	assert_int_equal(mc_mem_free(b, (void *)flags[0]), 0);
	mc_engine_close(a);
	if (fault)
		fault->ops->dev_close(fault);
	relay_close(relay);
	if (b != a)
		mc_engine_close(b);
	mc_free(local);
	mc_free(readonly);
	mc_free((void *)flags[1]);
	return 0;
}

/* ---- a transfer with a signal ---- */

struct one {
	struct mc_iov l, r;
	struct mc_transfer t;
	struct mc_put_signal sig;
	struct mc_group g;
};

static struct mc_group *one(struct one *o, uint8_t op, uint64_t len, _Atomic uint64_t *flag,
			    uint64_t value)
{
	*o = (struct one){.l = {(uintptr_t)local, len},
			  .r = {(uintptr_t)remote, len},
			  .t = {.op = op,
				.segment = seg,
				.nlocal = 1,
				.nremote = 1,
				.local = &o->l,
				.remote = &o->r},
			  .sig = {.addr = (uintptr_t)flag, .value = value},
			  .g = {.size = sizeof(o->g),
				.n = 1,
				.transfers = &o->t,
				.priority = MC_PRIO_NORMAL,
				.deadline_ns = WAIT_NS,
				.signals = &o->sig,
				.nsignals = 1}};
	return &o->g;
}

static int run(const struct mc_group *g, bool is_async, uint64_t *ret_bytes)
{
	struct mc_status st;
	uint64_t id;
	int rc;

	if (!is_async)
		return mc_transfer_sync(a, g, NULL);
	rc = mc_submit(a, g, &id);
	if (rc < 0)
		return rc;
	assert_int_equal(mc_group_wait(a, id, 2 * WAIT_NS, &st), 0);
	assert_int_equal(mc_group_free(a, id), 0);
	*ret_bytes = st.bytes;
	return st.status;
}

/* The target's program: it looks at the bytes in the moment it sees the signal. */
struct looker {
	pthread_t thread;
	_Atomic uint64_t *flag;
	uint64_t value, len;
	bool is_good, is_seen;
};

static void *look(void *arg)
{
	struct looker *k = arg;
	uint64_t end_ns = mc_now_ns() + WAIT_NS;

	while (atomic_load_explicit(k->flag, memory_order_acquire) != k->value) {
		if (mc_now_ns() > end_ns)
			return NULL;
		sched_yield();
	}
	k->is_good = memcmp(remote, local, k->len) == 0;
	k->is_seen = true;
	return NULL;
}

static void fill(uint8_t *at, uint64_t len, unsigned seed)
{
	for (uint64_t i = 0; i < len; i++)
		at[i] = (uint8_t)(i * 7 + i / 251 + seed);
}

static void a_signal_is_seen_after_all_bytes_of_its_transfer(void **state)
{
	static const uint64_t lens[] = {
	    1, 64, 65, 4096, 100000, (1u << 20) + 3, 5u << 20, (11u << 20) + 1};

	(void)state;
	for (unsigned i = 0; i < 4 * MC_ARRAY_LEN(lens); i++) {
		uint64_t len = lens[i / 4], bytes = len;
		struct looker k = {.flag = &flags[i % 2][i], .value = 1000 + i, .len = len};
		struct one o;

		fill(local, len, i);
		assert_int_equal(pthread_create(&k.thread, NULL, look, &k), 0);
		assert_int_equal(run(one(&o, MC_WRITE, len, k.flag, k.value), i & 2, &bytes), 0);
		/* Its end means that the signal is there, too, and it counts for no bytes. */
		assert_int_equal(atomic_load(k.flag), k.value);
		assert_int_equal(bytes, len);
		assert_int_equal(pthread_join(k.thread, NULL), 0);
		assert_true(k.is_seen && k.is_good);
		assert_int_equal(flags[i % 2][i + 1], 0);
	}
}

static void a_read_signals_that_it_has_read(void **state)
{
	(void)state;
	for (unsigned i = 0; i < 8; i++) {
		_Atomic uint64_t *flag = &flags[i % 2][100 + i];
		uint64_t len = i < 4 ? 300 : 7u << 20, bytes = len;
		struct one o;

		fill(remote, len, i);
		memset(local, 0, len);
		assert_int_equal(run(one(&o, MC_READ, len, flag, 7), i & 2, &bytes), 0);
		assert_int_equal(bytes, len);
		assert_memory_equal(local, remote, len);
		/* Over a network the last bytes leave the target just before the signal is stored.
		 */
		for (uint64_t end_ns = mc_now_ns() + WAIT_NS;
		     atomic_load(flag) != 7 && mc_now_ns() < end_ns;)
			sched_yield();
		assert_int_equal(atomic_load(flag), 7);
	}
}

static void each_transfer_of_a_group_has_its_own(void **state)
{
	enum { N = 200 };
	static struct mc_iov l[N], r[N];
	static struct mc_transfer t[N];
	static struct mc_put_signal sig[N];
	unsigned nsig = 0;
	uint64_t at = 0, bytes;
	struct mc_group g = {
	    .size = sizeof(g), .n = N, .transfers = t, .priority = 1, .signals = sig};

	(void)state;
	for (unsigned i = 0; i < N; i++) {
		uint64_t len = i % 50 == 49 ? 1500000 : (i % 7 == 6 ? 0 : 40 + i * 11);

		l[i] = (struct mc_iov){(uintptr_t)local + at, len};
		r[i] = (struct mc_iov){(uintptr_t)remote + at, len};
		at += len;
		t[i] = (struct mc_transfer){MC_WRITE, seg, 1, 1, &l[i], &r[i]};
		if (len && i % 3)
			sig[nsig++] =
			    (struct mc_put_signal){(uintptr_t)&flags[i % 2][i + 200], i, i};
	}
	assert_true(at <= BYTES && nsig > 100);
	g.nsignals = nsig;
	for (unsigned round = 0; round < 4; round++) {
		fill(local, at, round + 90);
		for (unsigned i = 0; i < N; i++)
			flags[i % 2][i + 200] = 0;
		assert_int_equal(run(&g, round % 2, &bytes), 0);
		assert_memory_equal(local, remote, at);
		for (unsigned i = 0; i < N; i++)
			assert_int_equal(flags[i % 2][i + 200], l[i].len && i % 3 ? i : 0);
	}
}

static void a_transfer_that_fails_signals_nothing(void **state)
{
	struct mc_iov r[2];
	struct one o;
	uint64_t bytes;

	(void)state;
	for (unsigned i = 0; i < 4; i++) {
		struct mc_group *g = one(&o, MC_WRITE, (3u << 20) + 100, &flags[i % 2][450], 9);

		/* The first part goes through, the last is refused, or the other way round. */
		r[0] =
		    (struct mc_iov){(uintptr_t)(i & 1 ? remote : readonly), i & 1 ? 3u << 20 : 100};
		r[1] =
		    (struct mc_iov){(uintptr_t)(i & 1 ? readonly : remote), i & 1 ? 100 : 3u << 20};
		o.t.nremote = 2;
		o.t.remote = r;
		assert_int_equal(run(g, i & 2, &bytes), -MC_E_PERM);
		assert_int_equal(flags[i % 2][450], 0);
	}
	/* Nor does it write where nobody may. */
	fill(local, 64, 1);
	memset(readonly, 0, 4096);
	assert_int_equal(run(one(&o, MC_WRITE, 64, (void *)readonly, 9), false, &bytes),
			 -MC_E_PERM);
	assert_int_equal(*(uint64_t *)readonly, 0);
}

static void a_flag_that_was_registered_anew_is_found_again(void **state)
{
	uint64_t bytes;
	struct one o;

	(void)state;
	for (unsigned i = 0; i < 4; i++) {
		assert_int_equal(
		    run(one(&o, MC_WRITE, 3u << 20, &flags[1][460], i + 1), i & 1, &bytes), 0);
		assert_int_equal(flags[1][460], i + 1);
		assert_int_equal(mc_mem_unreg(b, (void *)flags[1]), 0);
		assert_int_equal(mc_mem_reg(b, (void *)flags[1], FLAGS * sizeof(uint64_t), NULL, 3),
				 0);
	}
}

static void malformed_signals_are_refused_by_name(void **state)
{
	struct mc_put_signal two[2];
	struct mc_diag diag;
	struct one o;

	(void)state;
#define BAD(code, change)                                                                          \
	do {                                                                                       \
		(void)one(&o, MC_WRITE, 64, &flags[0][470], 1);                                    \
		change;                                                                            \
		diag.text[0] = '\0';                                                               \
		assert_int_equal(mc_transfer_sync(a, &o.g, &diag), -(code));                       \
		assert_non_null(strstr(diag.text, "signal"));                                      \
		assert_int_equal(flags[0][470], 0);                                                \
	} while (0)
	BAD(MC_E_INVAL, o.sig.addr += 4);
	BAD(MC_E_INVAL, o.sig.transfer = 1);
	BAD(MC_E_INVAL, o.l.len = o.r.len = 0);
	BAD(MC_E_INVAL, o.g.signals = NULL);
	BAD(MC_E_INVAL, o.g.nsignals = 2);
	BAD(MC_E_RANGE, o.sig.addr = 4096);
	/* Two for one transfer, in a group that has two. */
	(void)one(&o, MC_WRITE, 64, &flags[0][470], 1);
	two[0] = two[1] = o.sig;
	{
		struct mc_transfer t[2] = {o.t, o.t};

		o.g.n = o.g.nsignals = 2;
		o.g.transfers = t;
		o.g.signals = two;
		assert_int_equal(mc_transfer_sync(a, &o.g, &diag), -MC_E_INVAL);
	}
#undef BAD
	/* A program from before there were signals. */
	(void)one(&o, MC_WRITE, 64, &flags[0][470], 1);
	o.g.size = offsetof(struct mc_group, signals);
	assert_int_equal(mc_transfer_sync(a, &o.g, NULL), 0);
	assert_int_equal(flags[0][470], 0);
}

/* A program that takes each signal away as soon as it sees it. */
struct taker {
	pthread_t thread;
	_Atomic bool is_over;
	unsigned seen[FLAGS];
};

static void *take(void *arg)
{
	struct taker *k = arg;

	while (!atomic_load(&k->is_over)) {
		for (unsigned i = 0; i < FLAGS; i++)
			if (atomic_exchange(&flags[1][i], 0) != 0)
				k->seen[i]++;
		sched_yield();
	}
	return NULL;
}

static void a_signal_is_stored_once_whatever_breaks(void **state)
{
	static struct taker k;
	static bool is_well[FLAGS];
	unsigned well = 0, badly = 0;

	(void)state;
	if (!fault) {
		print_message("skipped: nothing breaks here\n");
		skip();
	}
	for (unsigned i = 0; i < FLAGS; i++)
		flags[1][i] = 0;
	assert_int_equal(pthread_create(&k.thread, NULL, take, &k), 0);
	for (unsigned i = 0; i < FLAGS; i++) {
		uint64_t bytes, end_ns;
		struct one o;
		int rc =
		    run(one(&o, MC_WRITE, i % 4 ? 2000 : 1500000, &flags[1][i], 1), i & 1, &bytes);

		end_ns = mc_now_ns() + MC_NS_PER_S;
		while (rc == 0 && atomic_load(&flags[1][i]) != 0 && mc_now_ns() < end_ns)
			sched_yield();
		well += rc == 0;
		badly += rc < 0;
		is_well[i] = rc == 0;
	}
	atomic_store(&k.is_over, true);
	assert_int_equal(pthread_join(k.thread, NULL), 0);
	for (unsigned i = 0; i < FLAGS; i++) {
		unsigned n = k.seen[i] + (flags[1][i] != 0);

		assert_true(is_well[i] ? n == 1 : n <= 1);
	}
	print_message("groups: %u well, %u not; lanes broken %llu\n", well, badly,
		      (unsigned long long)mc_fault_dev_stats(fault)->broken);
	assert_true(mc_fault_dev_stats(fault)->broken > 5);
	assert_true(well > 9 * badly);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(a_signal_is_seen_after_all_bytes_of_its_transfer),
	    cmocka_unit_test(a_read_signals_that_it_has_read),
	    cmocka_unit_test(each_transfer_of_a_group_has_its_own),
	    cmocka_unit_test(a_transfer_that_fails_signals_nothing),
	    cmocka_unit_test(a_flag_that_was_registered_anew_is_found_again),
	    cmocka_unit_test(malformed_signals_are_refused_by_name),
	};
	const struct CMUnitTest classic[] = {
	    cmocka_unit_test(a_signal_is_seen_after_all_bytes_of_its_transfer),
	    cmocka_unit_test(a_read_signals_that_it_has_read),
	    cmocka_unit_test(each_transfer_of_a_group_has_its_own),
	};
	const struct CMUnitTest storm[] = {
	    cmocka_unit_test(a_signal_is_stored_once_whatever_breaks),
	};

	mode = argc > 1 ? argv[1] : "shm";
	if (!is_mode("self") && !is_mode("shm"))
		(void)setenv("MC_FORCE_TCP", "1", 1);
	if (is_mode("classic"))
		return cmocka_run_group_tests(classic, setup, teardown);
	return is_mode("fault") ? cmocka_run_group_tests(storm, setup, teardown)
				: cmocka_run_group_tests(tests, setup, teardown);
}
