/*
 * rpc_sim_test.c: rpc over the simulated network: random calls, streams, cancels, deadlines and
 * losses. What must hold in every history:
 *
 *  - each started call ends exactly once, by its deadline, also when the connection is reset within
 *    a frame or closed;
 *  - an answer with success is the answer to that very call;
 *  - nothing is left allocated.
 *
 * MC_SIM_SEED replays one history, MC_SIM_RUNS says how many.
 */
#include "unit/rpc/fixture.h"

#include <stdlib.h>

#include "sim/sim_net.h"

#define OPS 80
#define PAYLOAD_MAX 5000
#define RUNS_DEFAULT 200

struct sim_call {
	struct mc_rpc_call call;
	struct world *world;
	uint8_t req[PAYLOAD_MAX], reply[PAYLOAD_MAX];
	size_t req_len;
	uint32_t total, to_send; /* of a stream */
	uint64_t seen;		 /* stream bytes that came back */
	bool is_started;
	unsigned ends;
};

struct world {
	struct sim sim;
	struct fix fix;
	struct mc_rand rand;
	struct mc_rpc_conn *conn;
	struct sim_call *calls[OPS];
	unsigned ncalls, downs;
	uint64_t seed;
};

static uint64_t pick(struct world *w, uint64_t n)
{
	return mc_rand_below(&w->rand, n);
}

#define hold_true(w, cond)                                                                         \
	do {                                                                                       \
		if (!(cond))                                                                       \
			fail_msg("seed %llu: %s", (unsigned long long)(w)->seed, #cond);           \
	} while (0)

static void on_end(struct mc_rpc_call *call, int rc, const struct mc_rpc_msg *reply)
{
	struct sim_call *c = mc_container_of(call, struct sim_call, call);
	struct world *w = c->world;

	c->ends++;
	hold_true(w, c->is_started || call->flags & MC_RPC_WAITED);
	hold_true(w, w->sim.now_ns <= call->deadline_ns);
	if (rc == -MC_E_TIMEDOUT)
		hold_true(w, w->sim.now_ns == call->deadline_ns);
	if (rc != 0)
		return;
	if (call->method == FIX_ECHO) {
		hold_true(w, reply->len == c->req_len);
		hold_true(w, memcmp(reply->data, c->req, c->req_len) == 0);
	} else if (call->method == FIX_STREAM) {
		hold_true(w, c->to_send == 0 && c->seen == c->total);
	}
}

static void stream_push(struct sim_call *c)
{
	static const uint8_t zeros[10000];
	int rc = 0;

	while (c->to_send > 0 && rc == 0) {
		uint32_t n = mc_min(c->to_send, 1 + (uint32_t)pick(c->world, sizeof(zeros)));

		rc = mc_rpc_call_send(c->world->conn, c->call.id, zeros, n, n == c->to_send);
		if (rc == 0)
			c->to_send -= n;
	}
}

static void on_room(struct mc_rpc_call *call)
{
	stream_push(mc_container_of(call, struct sim_call, call));
}

static void on_chunk(struct mc_rpc_call *call, const void *data, size_t len, bool is_last)
{
	struct sim_call *c = mc_container_of(call, struct sim_call, call);

	(void)data;
	(void)is_last;
	c->seen += len;
	if (pick(c->world, 200) == 0)
		(void)mc_rpc_cancel(c->world->conn, call->id);
	(void)mc_rpc_call_credit(c->world->conn, call->id, (uint32_t)len);
}

static struct sim_call *call_new(struct world *w, uint16_t method)
{
	struct sim_call *c = mc_calloc(1, sizeof(*c));

	c->world = w;
	c->req_len = 1 + pick(w, pick(w, 4) ? 100 : PAYLOAD_MAX);
	for (size_t i = 0; i < c->req_len; i++)
		c->req[i] = (uint8_t)mc_rand_u64(&w->rand);
	c->call = (struct mc_rpc_call){
	    .method = method,
	    .req = c->req,
	    .req_len = c->req_len,
	    .on_end = on_end,
	    .reply_buf = c->reply,
	    .reply_cap = sizeof(c->reply),
	};
	if (pick(w, 3))
		c->call.deadline_ns =
		    w->sim.now_ns + 1 + pick(w, pick(w, 2) ? 2000000 : 5000000000);
	w->calls[w->ncalls++] = c;
	return c;
}

static void op_start(struct world *w, uint16_t method)
{
	struct sim_call *c = call_new(w, method);
	int rc;

	c->call.flags = pick(w, 3) ? 0 : MC_RPC_MORE;
	if (method == FIX_STREAM) {
		c->call.flags |= MC_RPC_STREAM;
		c->call.on_chunk = on_chunk;
		c->call.on_room = on_room;
		c->total = (uint32_t)c->req_len * (w->sim.conf.chunk_max < 1000 ? 3 : 100);
		c->to_send = c->total;
	}
	c->is_started = true;
	rc = mc_rpc_start(w->conn, &c->call);
	c->is_started = rc == 0;
	if (rc == 0 && method == FIX_STREAM)
		stream_push(c);
}

static void op_sync(struct world *w)
{
	struct sim_call *c = call_new(w, FIX_ECHO);
	int rc;

	if (!c->call.deadline_ns)
		c->call.deadline_ns = w->sim.now_ns + 1000 * MC_NS_PER_S;
	rc = mc_rpc_sync(w->conn, &c->call);
	c->is_started = c->ends > 0; /* else it never began */
	hold_true(w, c->ends > 0 || rc < 0);
	if (rc == 0)
		hold_true(w, memcmp(c->reply, c->req, c->req_len) == 0);
}

static void op_any(struct world *w)
{
	switch (pick(w, 12)) {
	case 0:
	case 1:
	case 2:
	case 3:
		op_start(w, FIX_ECHO);
		break;
	case 4:
		op_start(w, FIX_HOLD);
		break;
	case 5:
		op_start(w, FIX_RELEASE);
		break;
	case 6:
		op_start(w, FIX_STREAM);
		break;
	case 7:
	case 8:
		op_sync(w);
		break;
	case 9:
		if (w->ncalls)
			(void)mc_rpc_cancel(w->conn, w->calls[pick(w, w->ncalls)]->call.id);
		break;
	case 10:
		mc_rpc_flush(w->conn);
		break;
	default:
		sim_run(&w->sim, w->sim.now_ns + pick(w, 20000000));
		break;
	}
}

static void on_down(void *user, int rc)
{
	struct world *w = user;

	hold_true(w, rc < 0);
	w->downs++;
}

static struct sim_conf conf_of(struct world *w)
{
	static const uint32_t chunks[] = {1, 7, 1000, 1 << 20}, windows[] = {64, 4096, 1 << 18};
	static const uint32_t resets[] = {0, 0, 500, 20000};
	struct sim_conf c = {.delay_min_ns = pick(w, 1000),
			     .chunk_max = chunks[pick(w, 4)],
			     .window = windows[pick(w, 3)],
			     .resets_ppm = resets[pick(w, 4)]};

	c.delay_max_ns = c.delay_min_ns + pick(w, pick(w, 2) ? 1000 : 3000000);
	return c;
}

static void one_connection(struct world *w)
{
	struct mc_rpc_conn_opts opts = {.on_down = on_down, .user = w};
	unsigned nops = 1 + (unsigned)pick(w, OPS);

	if (pick(w, 2))
		opts.calls_max = 1 + (uint32_t)pick(w, 8);
	w->ncalls = w->downs = 0;
	w->conn = fix_connect(&w->fix, &w->sim.env, &opts);
	while (nops-- > 0)
		op_any(w);
	if (pick(w, 8) == 0)
		sim_reset_all(&w->sim);
	if (pick(w, 2)) {
		mc_rpc_flush(w->conn);
		sim_run(&w->sim, w->sim.now_ns + 2000 * MC_NS_PER_S);
		for (unsigned i = 0; i < w->ncalls; i++)
			hold_true(w, w->calls[i]->ends == 1 || !w->calls[i]->is_started ||
					 w->calls[i]->call.deadline_ns == MC_TIME_NEVER);
		hold_true(w, (mc_rpc_conn_status(w->conn) < 0) == (w->downs == 1));
	}
	mc_rpc_conn_close(w->conn);
	hold_true(w, w->downs <= 1);
	for (unsigned i = 0; i < w->ncalls; i++) {
		hold_true(w, w->calls[i]->ends == w->calls[i]->is_started);
		mc_free(w->calls[i]);
	}
}

static void run_seed(uint64_t seed)
{
	int64_t live = mc_mem_live();
	struct world *w = mc_calloc(1, sizeof(*w));
	struct sim_conf conf;

	w->seed = seed;
	mc_rand_seed(&w->rand, seed);
	conf = conf_of(w);
	sim_init(&w->sim, seed + 1, &conf);
	fix_open(&w->fix, &w->sim.env, (struct mc_rpc_server_opts){.queue_max = 10000});
	sim_add_loop(&w->sim, w->fix.server_loop);
	sim_add_loop(&w->sim, w->fix.client_loop);
	assert_int_equal(mc_addr_parse("127.0.0.1:1", 0, &w->fix.at), 0);
	assert_int_equal(mc_rpc_server_listen(w->fix.server, &w->fix.at, NULL), 0);
	for (uint64_t n = 1 + pick(w, 3); n > 0; n--)
		one_connection(w);
	sim_run(&w->sim, w->sim.now_ns + pick(w, 1000000000));
	fix_close(&w->fix);
	w->sim.nloops = 0;
	sim_fini(&w->sim);
	mc_free(w);
	if (mc_mem_live() != live)
		fail_msg("seed %llu: memory is left", (unsigned long long)seed);
}

static void every_call_ends_once_by_its_deadline_with_its_own_answer(void **state)
{
	const char *one = getenv("MC_SIM_SEED"), *runs = getenv("MC_SIM_RUNS");
	uint64_t n = runs ? strtoull(runs, NULL, 10) : RUNS_DEFAULT;

	if (one) {
		run_seed(strtoull(one, NULL, 10));
		return;
	}
	for (uint64_t seed = 1; seed <= n; seed++)
		run_seed(seed);
	(void)state;
}

static void one_byte_reads_and_writes_carry_calls(void **state)
{
	struct world *w = mc_calloc(1, sizeof(*w));
	const struct sim_conf conf = {.chunk_max = 1, .window = 16};
	char reply[64];

	sim_init(&w->sim, 1, &conf);
	fix_open(&w->fix, &w->sim.env, (struct mc_rpc_server_opts){0});
	sim_add_loop(&w->sim, w->fix.server_loop);
	sim_add_loop(&w->sim, w->fix.client_loop);
	assert_int_equal(mc_addr_parse("127.0.0.1:1", 0, &w->fix.at), 0);
	assert_int_equal(mc_rpc_server_listen(w->fix.server, &w->fix.at, NULL), 0);
	w->conn = fix_connect(&w->fix, &w->sim.env, NULL);
	for (int i = 0; i < 20; i++) {
		assert_int_equal(fix_call(w->conn, MC_TIME_NEVER, FIX_ECHO, "byte by byte", 12,
					  reply, sizeof(reply), NULL),
				 0);
		assert_memory_equal(reply, "byte by byte", 12);
	}
	mc_rpc_conn_close(w->conn);
	fix_close(&w->fix);
	w->sim.nloops = 0;
	sim_fini(&w->sim);
	mc_free(w);
	(void)state;
}

static void silent_connection_is_dropped_after_the_hello_time(void **state)
{
	struct world *w = mc_calloc(1, sizeof(*w));
	const struct sim_conf conf = {.chunk_max = 100, .window = 1000};
	struct mc_rpc_server_stats stats;
	struct mc_net_sock *sock;

	sim_init(&w->sim, 1, &conf);
	fix_open(&w->fix, &w->sim.env, (struct mc_rpc_server_opts){.hello_ms = 500});
	sim_add_loop(&w->sim, w->fix.server_loop);
	assert_int_equal(mc_addr_parse("127.0.0.1:1", 0, &w->fix.at), 0);
	assert_int_equal(mc_rpc_server_listen(w->fix.server, &w->fix.at, NULL), 0);
	assert_int_equal(w->sim.net.connect(&w->sim.net, &w->fix.at, NULL, &sock), 0);
	sim_run(&w->sim, w->sim.now_ns + 400 * MC_NS_PER_MS);
	mc_rpc_server_stats(w->fix.server, &stats);
	assert_int_equal(stats.conns, 1);
	sim_run(&w->sim, w->sim.now_ns + 200 * MC_NS_PER_MS);
	mc_rpc_server_stats(w->fix.server, &stats);
	assert_int_equal(stats.conns, 0);
	assert_int_equal(stats.lost, 1);
	w->sim.net.close(sock);
	fix_close(&w->fix);
	w->sim.nloops = 0;
	sim_fini(&w->sim);
	mc_free(w);
	(void)state;
}

/* With the n-th allocation failing, and all after it. @return the call's result */
static int call_without_memory(int64_t n)
{
	struct world *w = mc_calloc(1, sizeof(*w));
	const struct sim_conf conf = {.chunk_max = 1000, .window = 100000};
	struct sim_call *c;
	int rc;

	mc_rand_seed(&w->rand, 1);
	sim_init(&w->sim, 1, &conf);
	fix_open(&w->fix, &w->sim.env, (struct mc_rpc_server_opts){0});
	sim_add_loop(&w->sim, w->fix.server_loop);
	sim_add_loop(&w->sim, w->fix.client_loop);
	assert_int_equal(mc_addr_parse("127.0.0.1:1", 0, &w->fix.at), 0);
	assert_int_equal(mc_rpc_server_listen(w->fix.server, &w->fix.at, NULL), 0);
	c = call_new(w, FIX_ECHO);
	c->call.deadline_ns = w->sim.now_ns + 20 * MC_NS_PER_S;
	mc_mem_fail_after(n);
	rc = mc_rpc_conn_open(&w->sim.env, w->fix.client_loop, &w->fix.at, NULL, &w->conn);
	if (rc == 0) {
		rc = mc_rpc_sync(w->conn, &c->call);
		mc_rpc_conn_close(w->conn);
		hold_true(w, c->ends <= 1 && (rc == 0) <= c->ends);
	}
	mc_mem_fail_after(-1);
	fix_close(&w->fix);
	w->sim.nloops = 0;
	sim_fini(&w->sim);
	mc_free(c);
	mc_free(w);
	return rc;
}

static void out_of_memory_at_any_point_is_an_error_without_a_leak(void **state)
{
	int64_t live = mc_mem_live();
	int rc = -1;

	for (int64_t n = 0; rc < 0; n++) {
		rc = call_without_memory(n);
		assert_int_equal(mc_mem_live(), live);
		assert_in_range(n, 0, 200);
	}
	(void)state;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(one_byte_reads_and_writes_carry_calls),
	    cmocka_unit_test(out_of_memory_at_any_point_is_an_error_without_a_leak),
	    cmocka_unit_test(silent_connection_is_dropped_after_the_hello_time),
	    cmocka_unit_test(every_call_ends_once_by_its_deadline_with_its_own_answer),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
