/*
 * classic_rdma_test.c: RDMA with a peer that speaks as upstream's processes do: a descriptor of
 * protocol "rdma" without our object, Connection requests, nothing else. The peer is an engine of
 * ours behind a control port that leaves out what upstream does not have; bytes move over the
 * fabric of verbs_fake.h. So each test goes through both ends of ours.
 */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "disco/connection.h"
#include "disco/segdesc.h"
#include "engine/classic.h"
#include "engine/describe.h"
#include "verbs_fake.h"
#include "xport/rdma/rdma.h"

#define BYTES (2u << 20)
#define WAIT_NS (20 * MC_NS_PER_S)

/* The peer's control port as upstream has it. */
struct front {
	struct mc_loop *loop;
	struct mc_control *ctl;
	char name[MC_ADDR_TEXT_MAX];
	_Atomic int introductions;
	_Atomic bool is_refusing; /* with a reason */
	_Atomic bool is_silent;	  /* closes the connection */
};

static struct mc_engine *a, *b; /* initiator; target, behind the front */
static const struct mc_verbs *verbs;
static uint8_t *local, *remote;
static struct front front;
static int32_t seg;

/* ---- the front ---- */

static int on_metadata(void *user, const char *json, size_t len, struct mc_control_text **ret)
{
	char protocol[MC_SEGDESC_PROTOCOL_MAX], *text, *bare;
	struct mc_diag diag = {0};
	json_t *root;
	size_t n;

	/* Upstream's RDMA processes read descriptors of their own protocol only. */
	assert_true(mc_segdesc_protocol(json, len, "rdma", protocol));
	assert_string_equal(protocol, "rdma");
	assert_int_equal(mc_describe(b, true, 1 << 20, &text, &n, &diag), 0);
	root = json_loads(text, 0, NULL);
	mc_free(text);
	assert_int_equal(json_object_del(root, "mc"), 0);
	assert_int_equal(json_object_del(root, "tcp_data_port"), 0);
	text = json_dumps(root, JSON_COMPACT);
	json_decref(root);
	bare = mc_strdup(text);
	free(text); /* tidy-ok(banned): jansson's */
	return mc_control_text_open(bare, strlen(bare), ret);
}

static int on_later(void *user, enum mc_hs_type type, const char *json, size_t len,
		    struct mc_control_call *call)
{
	struct front *f = user;
	struct mc_connection c = {.local_nic = "x", .peer_nic = "y", .reason = "not today"};
	struct mc_control_text *text;
	char *reply;

	f->introductions++;
	if (f->is_silent)
		return -MC_E_CLOSED;
	if (!f->is_refusing)
		return mc_classic_serve(b, type, json, len, call);
	assert_int_equal(mc_connection_encode(&c, &reply, &len), 0);
	assert_int_equal(mc_control_text_open(reply, len, &text), 0);
	mc_control_answer(call, text);
	return 0;
}

static void front_open(struct front *f)
{
	static const struct mc_control_ops ops = {.metadata = on_metadata, .later = on_later};
	struct mc_control_conf conf = {
	    .hs = &b->hs, .ops = &ops, .user = f, .later = 1u << MC_HS_CONNECTION};
	struct mc_diag diag = {0};
	struct mc_addr addr;

	memset(f, 0, sizeof(*f));
	assert_int_equal(mc_addr_parse("127.0.0.1", 0, &conf.bind), 0);
	assert_int_equal(mc_loop_open("front", &mc_clock_real, &f->loop), 0);
	assert_int_equal(mc_loop_start(f->loop), 0);
	if (mc_control_open(f->loop, &conf, &f->ctl, &diag) < 0)
		fail_msg("%s", diag.text);
	assert_int_equal(mc_addr_parse("127.0.0.1", mc_control_port(f->ctl), &addr), 0);
	(void)mc_addr_format(&addr, f->name);
}

/* ---- the two ---- */

static struct mc_engine *engine(const char *protocol)
{
	struct mc_engine_opts opts = {
	    .size = sizeof(opts), .name = "127.0.0.1", .protocol = protocol};
	struct mc_diag diag = {0};
	struct mc_engine *eng;

	if (mc_engine_open_verbs(&opts, verbs, &diag, &eng) < 0)
		fail_msg("%s", diag.text);
	return eng;
}

static int setup_with(unsigned ndevs)
{
	(void)setenv("MC_NUM_TCP_IO_THREADS", "1", 1);
	(void)unsetenv("MC_NUM_QP_PER_EP");
	verbs = verbs_fake_open(&(struct verbs_fake_conf){.ndevs = ndevs});
	local = mc_aligned_alloc(4096, BYTES);
	remote = mc_aligned_alloc(4096, BYTES);
	assert_true(local && remote);
	a = engine("rdma");
	b = engine("rdma");
	front_open(&front);
	assert_int_equal(mc_mem_reg(a, local, BYTES, NULL, 3), 0);
	assert_int_equal(mc_mem_reg(b, remote, BYTES, "cpu:0", 3), 0);
	for (size_t i = 0; i < BYTES; i++)
		local[i] = (uint8_t)(i * 31 + i / 253);
	memset(remote, 0, BYTES);
	return 0;
}

static int setup(void **state)
{
	(void)state;
	return setup_with(1);
}

static int setup_four(void **state)
{
	(void)state;
	return setup_with(4);
}

static int teardown(void **state)
{
	(void)state;
	mc_engine_close(a);
	mc_control_close(front.ctl);
	mc_engine_close(b); /* its workers answer through the loop */
	mc_loop_close(front.loop);
	assert_int_equal(verbs_fake_live_all(), 0);
	verbs_fake_close();
	mc_free(local);
	mc_free(remote);
	return 0;
}

static void open_segment(void)
{
	struct mc_diag diag = {0};

	if (mc_segment_open(a, front.name, 0, &diag, &seg) < 0)
		fail_msg("%s", diag.text);
}

static int move(uint8_t op, const uint8_t *from, uint64_t off, uint64_t len, uint64_t timeout_ns,
		struct mc_diag *diag)
{
	struct mc_iov l = {(uintptr_t)from, len}, r = {(uintptr_t)remote + off, len};
	struct mc_transfer t = {
	    .op = op, .segment = seg, .nlocal = 1, .nremote = 1, .local = &l, .remote = &r};
	struct mc_group g = {.size = sizeof(g),
			     .n = 1,
			     .transfers = &t,
			     .deadline_ns = mc_now_ns() + timeout_ns,
			     .priority = MC_PRIO_NORMAL};

	return mc_transfer_sync(a, &g, diag);
}

static void assert_moves(uint8_t op)
{
	struct mc_diag diag = {0};

	memset(op == MC_WRITE ? remote : local, 0, BYTES);
	for (size_t i = 0; i < BYTES; i++)
		(op == MC_WRITE ? local : remote)[i] = (uint8_t)(i * 7 + i / 251 + op);
	if (move(op, local, 0, BYTES, WAIT_NS, &diag) < 0)
		fail_msg("%s", diag.text);
	assert_memory_equal(local, remote, BYTES);
}

static struct mc_session *session(void)
{
	return a->peers[seg]->session;
}

static struct mc_rdma_stats stats_of(const struct mc_engine *eng)
{
	struct mc_rdma_stats st;

	mc_rdma_stats_get(eng->rdma, &st);
	return st;
}

/* ---- tests ---- */

static void bytes_go_both_ways_over_introduced_queue_pairs(void **state)
{
	open_segment();
	assert_int_equal(session()->kind, MC_PEER_CLASSIC);
	assert_moves(MC_WRITE);
	assert_moves(MC_READ);
	assert_int_equal(stats_of(b).inbound, front.introductions);
	assert_int_equal(stats_of(b).qps, 2 * front.introductions); /* as many as upstream has */
	(void)state;
}

static void all_devices_are_used(void **state)
{
	unsigned used = 0;

	open_segment();
	assert_int_equal(session()->rdma.n, 4);
	/* Lanes come one after the other, from workers; the first transfers may be through before.
	 */
	for (uint64_t end = mc_now_ns() + WAIT_NS; used != 4 && mc_now_ns() < end;) {
		assert_moves(MC_WRITE);
		used = 0;
		for (unsigned i = 0; i < 4; i++)
			used +=
			    mc_counter_read(&session()->rdma.v[i].stats->bytes[MC_OP_WRITE]) > 0;
	}
	assert_int_equal(used, 4);
	(void)state;
}

static void memory_registered_anew_is_looked_up_again(void **state)
{
	open_segment();
	assert_moves(MC_WRITE);
	assert_int_equal(mc_mem_unreg(b, remote), 0);
	assert_int_equal(mc_mem_reg(b, remote, BYTES, "cpu:0", 3), 0); /* other keys */
	assert_moves(MC_WRITE);
	assert_moves(MC_READ);
	(void)state;
}

static void broken_lane_is_introduced_again_under_its_name(void **state)
{
	char who[MC_NIC_PATH_MAX];
	struct mc_rdma_port port;
	uint64_t before;

	open_segment();
	assert_moves(MC_WRITE);
	before = stats_of(b).accepted;
	mc_rdma_forget_named(b->rdma, "nobody@there");
	assert_true(stats_of(b).inbound > 0);
	mc_rdma_port_get(a->rdma, 0, &port);
	for (unsigned slot = 0; slot < 2; slot++) {
		(void)snprintf(who, sizeof(who), "%s/%x.%llx.%u@%s", a->name, (uint32_t)a->epoch,
			       (unsigned long long)session()->fence_key, slot, port.name);
		mc_rdma_forget_named(b->rdma, who); /* as a peer that restarts does */
	}
	assert_int_equal(stats_of(b).inbound, 0);
	assert_moves(MC_WRITE);
	assert_true(stats_of(b).accepted > before);
	(void)state;
}

static void refusal_ends_a_transfer_with_a_code_and_in_time(void **state)
{
	struct mc_diag diag = {0};
	int rc;

	open_segment();
	front.is_refusing = true;
	rc = move(MC_WRITE, local, 0, 4096, WAIT_NS, &diag);
	assert_int_equal(rc, -MC_E_UNREACHABLE);
	assert_non_null(strstr(diag.text, front.name));
	assert_in_range(front.introductions, 2, 9); /* MC_RETRY_CNT tries, with pauses */
	front.is_refusing = false;
	assert_moves(MC_WRITE);
	front.is_silent = true;
	assert_moves(MC_READ); /* its lane is there */
	(void)state;
}

static void other_number_of_queue_pairs_is_told(void **state)
{
	struct mc_connection req = {.local_nic = "p@q", .has_gid = true, .nqps = 200}, c;
	struct mc_diag diag = {0};
	struct mc_rdma_port port;
	char *json, *reply;
	size_t len;

	mc_rdma_port_get(b->rdma, 0, &port);
	assert_int_equal(mc_nic_path_join(b->name, port.name, req.peer_nic), 0);
	for (int i = 0; i < 4; i++) {
		static const char *const want[] = {"200 queue pairs", "has no RDMA device",
						   "this is", "server@device"};

		assert_int_equal(mc_connection_encode(&req, &json, &len), 0);
		assert_int_equal(mc_handshake_call(&a->hs, b->address, MC_HS_CONNECTION, json,
						   mc_now_ns() + WAIT_NS, &reply, &len, &diag),
				 0);
		assert_int_equal(mc_connection_decode(reply, len, &c, &diag), 0);
		if (!strstr(c.reason, want[i]))
			fail_msg("\"%s\" does not say %s", c.reason, want[i]);
		assert_string_equal(c.peer_nic, "p@q");
		mc_free(json);
		mc_free(reply);
		req.nqps = 1;
		if (i == 0)
			assert_int_equal(mc_nic_path_join(b->name, "mlx9_9", req.peer_nic), 0);
		else
			(void)mc_strlcpy(req.peer_nic, sizeof(req.peer_nic),
					 i == 1 ? "other:1@fake0" : "nothing");
	}
	assert_int_equal(stats_of(b).inbound, 0);
	(void)state;
}

static void peer_of_protocol_tcp_is_shown_no_devices(void **state)
{
	static const char *const asks[] = {"{\"protocol\":\"tcp\"}", "{\"protocol\":\"rdma\"}",
					   "null"};
	struct mc_diag diag = {0};
	struct mc_segdesc *d;
	char *reply;
	size_t len;

	for (size_t i = 0; i < MC_ARRAY_LEN(asks); i++) {
		bool is_rdma = i == 1;

		assert_int_equal(mc_handshake_metadata(&a->hs, b->address, asks[i],
						       mc_now_ns() + WAIT_NS, &reply, &len, &diag),
				 0);
		assert_int_equal(mc_segdesc_decode(reply, len, &d, &diag), 0);
		mc_free(reply);
		assert_string_equal(d->protocol, is_rdma ? "rdma" : "tcp");
		assert_int_equal(d->ndevices, is_rdma ? 4 : 0);
		assert_int_equal(d->buffers[0].nkeys, is_rdma ? 4 : 0);
		assert_int_equal(d->priority_matrix[0] != '\0', is_rdma);
		assert_true(d->tcp_data_port > 0);
		if (is_rdma)
			assert_string_equal(d->buffers[0].name, "cpu:0");
		mc_segdesc_free(d);
	}
	(void)state;
}

static void many_ranges_with_keys_are_told_as_far_as_they_fit(void **state)
{
	enum { N = 600, ROOM = 32768 };
	struct mc_diag diag = {0};
	struct mc_segdesc *d;
	char *json;
	size_t len;

	assert_int_equal(mc_mem_unreg(b, remote), 0);
	for (size_t i = 0; i < N; i++)
		assert_int_equal(mc_mem_reg(b, remote + i * 2048, 1024, "cpu:0", 3), 0);
	assert_int_equal(mc_describe(b, true, ROOM, &json, &len, &diag), 0);
	assert_in_range(len, ROOM - 200, ROOM - 1);
	assert_int_equal(mc_segdesc_decode(json, len, &d, &diag), 0);
	assert_in_range(d->nbuffers, 100, N - 1);
	assert_int_equal(d->buffers[d->nbuffers - 1].nkeys, 1);
	mc_segdesc_free(d);
	mc_free(json);
	assert_int_equal(mc_describe(b, false, ROOM, &json, &len, &diag), 0); /* joined instead */
	mc_free(json);
	for (size_t i = 0; i < N; i++)
		assert_int_equal(mc_mem_unreg(b, remote + i * 2048), 0);
	(void)state;
}

static void what_rdma_alone_cannot_do_is_said(void **state)
{
	static uint8_t foreign[4096];
	struct mc_diag diag = {0};
	struct mc_engine *rdma = a;

	open_segment();
	assert_int_equal(move(MC_WRITE, foreign, 0, sizeof(foreign), WAIT_NS, &diag),
			 -MC_E_UNSUPPORTED);
	assert_non_null(strstr(diag.text, "register the local memory"));
	a = engine("tcp");
	assert_true(mc_segment_open(a, mc_engine_name(b), 0, &diag, &seg) ==
		    0); /* ours: over TCP */
	front.is_silent = true;
	mc_engine_close(a);
	a = rdma;
	(void)state;
}

int main(void)
{
#define ROW(f, with) cmocka_unit_test_setup_teardown(f, with, teardown)
	const struct CMUnitTest tests[] = {
	    ROW(bytes_go_both_ways_over_introduced_queue_pairs, setup),
	    ROW(all_devices_are_used, setup_four),
	    ROW(memory_registered_anew_is_looked_up_again, setup),
	    ROW(broken_lane_is_introduced_again_under_its_name, setup),
	    ROW(refusal_ends_a_transfer_with_a_code_and_in_time, setup),
	    ROW(other_number_of_queue_pairs_is_told, setup),
	    ROW(peer_of_protocol_tcp_is_shown_no_devices, setup_four),
	    ROW(many_ranges_with_keys_are_told_as_far_as_they_fit, setup),
	    ROW(what_rdma_alone_cannot_do_is_said, setup),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
