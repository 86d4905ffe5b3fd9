/*
 * nomem_test.c: nomem_test http SERVER… [--long]: engines that find each other through a metadata
 * service (its command line, {} for the port) while memory runs out at any call of
 * malloc, the libraries' own included: opening, closing, publishing, finding a peer of ours and one
 * that speaks upstream's frames, messages.
 *
 * Each index fails alone, then with all calls after it. A call ends well or with a code, what it
 * took is given back, and the next call with memory works. By default about STEPS indexes of each
 * flow are tried and the last, --long or NOMEM_LONG=1 tries all.
 */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/log.h"
#include "disco/meta.h"
#include "engine/priv.h"
#include "nomem_shim.h"

#define BYTES 65536u
#define STEPS 24
#define WAIT_NS (20 * MC_NS_PER_S)
#define OP_NS (2 * MC_NS_PER_S)
#define NAME_OURS "peer-b"
#define NAME_CLASSIC                                                                               \
	"peer-c" /* the same engine, known to the service as upstream describes one                \
		  */

static struct {
	const char *kind, **server; /* with {} for the port */
	char url[64];
	uint16_t port;
	bool is_long;
	struct mc_engine *a, *b;
	uint8_t *local, *remote;
} env;

/* Arms, runs, disarms. */
static int64_t fail_at;
static bool is_only;
static int64_t calls;

static void nap(void)
{
	(void)nanosleep(&(struct timespec){.tv_nsec = 2000000}, NULL);
}

static void begin(void)
{
	nomem_arm(fail_at, is_only);
}

static void end(void)
{
	calls = nomem_disarm();
}

static int open_named(const char *name, struct mc_engine **ret)
{
	struct mc_engine_opts opts = {.size = sizeof(opts), .name = name, .metadata = env.url};
	struct mc_diag diag = {.text = ""};

	return mc_engine_open(&opts, &diag, ret);
}

/* ---- what memory runs out in ---- */

static int opening(void)
{
	struct mc_engine *eng = NULL;
	int rc;

	begin();
	rc = open_named("peer-d", &eng);
	end();
	if (rc == 0)
		mc_engine_close(eng);
	return rc;
}

static int closing(void)
{
	struct mc_engine *eng = NULL;

	assert_int_equal(open_named("peer-d", &eng), 0);
	assert_int_equal(mc_mem_reg(eng, env.local, BYTES, NULL, 3), 0);
	begin();
	mc_engine_close(eng);
	end();
	return 0;
}

static int publishing(void)
{
	uint8_t *half = env.local + BYTES / 2;
	int rc;

	begin();
	rc = mc_mem_reg(env.a, env.local, BYTES / 2, NULL, 3);
	end();
	if (rc < 0)
		return rc;
	assert_int_equal(mc_mem_reg(env.a, half, BYTES / 2, NULL, 3), 0);
	assert_int_equal(mc_mem_unreg(env.a, half), 0);
	assert_int_equal(mc_mem_unreg(env.a, env.local), 0);
	return 0;
}

static int write_to(int32_t seg)
{
	struct mc_iov l = {(uintptr_t)env.local, BYTES}, r = {(uintptr_t)env.remote, BYTES};
	struct mc_transfer t = {
	    .op = MC_WRITE, .segment = seg, .nlocal = 1, .nremote = 1, .local = &l, .remote = &r};
	struct mc_group g = {
	    .size = sizeof(g), .n = 1, .transfers = &t, .deadline_ns = OP_NS, .priority = 1};
	int rc = mc_transfer_sync(env.a, &g, NULL);

	if (rc == 0)
		assert_memory_equal(env.local, env.remote, BYTES);
	return rc;
}

/* The session goes, so that the peer is looked up and asked anew. */
static int find(const char *name)
{
	int32_t seg;
	int rc;

	env.local[0]++;
	begin();
	rc = mc_segment_open(env.a, name, OP_NS, NULL, &seg);
	if (rc == 0)
		rc = write_to(seg);
	end();
	if (mc_segment_open(env.a, name, OP_NS, NULL, &seg) == 0)
		assert_int_equal(mc_segment_close(env.a, seg), 0);
	return rc;
}

static int finding(void)
{
	return find(NAME_OURS);
}

static int finding_classic(void)
{
	return find(NAME_CLASSIC);
}

static int message(const char *name)
{
	const struct mc_notify notify = {.name = "n", .name_len = 1, .msg = "m", .msg_len = 1};
	struct mc_notice *notices;
	int32_t seg;
	int rc, n;

	assert_int_equal(mc_segment_open(env.a, name, OP_NS, NULL, &seg), 0);
	begin();
	rc = mc_notify_send(env.a, seg, &notify, OP_NS);
	end();
	n = mc_notices_take(env.b, &notices);
	if (n > 0)
		mc_notices_free(notices, n);
	/* A message may have come whose confirmation did not. */
	assert_true(rc < 0 ? n == 0 || n == 1 : n == 1);
	return rc;
}

static int sending(void)
{
	return message(NAME_OURS);
}

static int sending_classic(void)
{
	return message(NAME_CLASSIC);
}

/* ---- the sweep ---- */

/* Loops and workers give back a little later. */
static int64_t settled(int64_t wanted)
{
	uint64_t end_ns = mc_now_ns() + MC_NS_PER_S / 2;

	while (nomem_live() > wanted && mc_now_ns() < end_ns)
		nap();
	return nomem_live();
}

/* What a library keeps for the next time it keeps once: only what grows each time is lost. */
static int run_at(int (*flow)(void), int64_t at, const char *what)
{
	int64_t before, after;
	int rc, turn = 0;

	do {
		before = nomem_live();
		fail_at = at;
		rc = flow();
		if (rc > 0 || rc <= -MC_E_COUNT)
			fail_msg("%s, call %lld: %d is no code", what, (long long)at, rc);
		after = settled(before);
	} while (after > before && ++turn < 5);
	if (turn == 5)
		fail_msg("%s, call %lld: %lld blocks are lost each time", what, (long long)at,
			 (long long)(after - before));
	return rc;
}

static void sweep(const char *what, int (*flow)(void))
{
	int64_t all, step, tried = 0, failed = 0;

	for (int i = 0; i < 3; i++) /* caches fill */
		assert_int_equal(run_at(flow, INT64_MAX - 1, what), 0);
	all = calls;
	step = env.is_long || all < STEPS ? 1 : all / STEPS;
	for (int mode = 0; mode < 2; mode++) {
		is_only = mode == 0;
		for (int64_t at = mode * (step / 2); at < all; at += step) {
			failed += run_at(flow, at, what) < 0;
			tried++;
		}
		/* The last one leaves the most behind it. */
		failed += run_at(flow, all - 1, what) < 0;
		tried++;
	}
	for (int i = 0; i < 2; i++) /* as if nothing had been */
		assert_int_equal(run_at(flow, INT64_MAX - 1, what), 0);
	print_message("%s: %s: %lld calls, %lld runs, %lld with a code\n", env.kind, what,
		      (long long)all, (long long)tried, (long long)failed);
	assert_true(failed > 0 || flow == closing);
}

#define TEST(flow)                                                                                 \
	static void memory_that_runs_out_while_##flow(void **state)                                \
	{                                                                                          \
		(void)state;                                                                       \
		sweep(#flow, flow);                                                                \
	}
TEST(opening)
TEST(closing)
TEST(publishing)
TEST(finding)
TEST(finding_classic)
TEST(sending)
TEST(sending_classic)

/* ---- the service ---- */

static pid_t service_start(void)
{
	struct mc_addr host, bound;
	char port[8];
	pid_t pid, parent = getpid();
	int fd = -1;

	assert_int_equal(mc_addr_parse("127.0.0.1", 0, &host), 0);
	assert_int_equal(mc_sock_listen_range(&host, 20000, 29999, 1, &fd, &bound), 0);
	mc_fd_close(&fd);
	env.port = mc_addr_port(&bound);
	(void)snprintf(port, sizeof(port), "%u", env.port);
	for (unsigned i = 0; env.server[i]; i++)
		if (strcmp(env.server[i], "{}") == 0)
			env.server[i] = strdup(port);
	(void)snprintf(env.url, sizeof(env.url), "%s://127.0.0.1:%u%s", env.kind, env.port,
		       strcmp(env.kind, "http") == 0 ? "/metadata" : "");
	pid = fork();
	if (pid == 0) {
		(void)prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (getppid() == parent)
			(void)execvp(env.server[0], (char *const *)env.server);
		_exit(127);
	}
	return pid;
}

/* The peer's descriptor once more, without what says that it is one of ours. */
static void describe_classic(void)
{
	struct mc_meta_rpc rpc = {.host = "127.0.0.1", .port = mc_engine_port(env.b)};
	uint64_t end_ns = mc_now_ns() + WAIT_NS;
	struct mc_meta_conf conf;
	struct mc_meta *meta;
	char *json, *at;
	size_t len;

	mc_meta_conf_load(&conf);
	assert_int_equal(mc_meta_open(env.url, &conf, &meta, NULL), 0);
	assert_int_equal(mc_meta_segment_get(meta, NAME_OURS, end_ns, &json, &len, NULL), 0);
	at = strstr(json, "\"mc\":");
	assert_non_null(at);
	memcpy(at, "\"xx\":", 5);
	while ((at = strstr(json, NAME_OURS)))
		memcpy(at, NAME_CLASSIC, strlen(NAME_CLASSIC));
	assert_int_equal(mc_meta_segment_put(meta, NAME_CLASSIC, json, len, end_ns, NULL), 0);
	assert_int_equal(mc_meta_rpc_put(meta, NAME_CLASSIC, &rpc, end_ns, NULL), 0);
	mc_free(json);
	mc_meta_close(meta);
}

static void setup(void)
{
	uint64_t end_ns = mc_now_ns() + WAIT_NS;

	mc_log_level_set(MC_LOG_OFF);
	assert_int_equal(setenv("MC_TCP_BIND_ADDRESS", "127.0.0.1", 1), 0);
	while (open_named("peer-a", &env.a) < 0) { /* the service has to start */
		assert_true(mc_now_ns() < end_ns);
		nap();
	}
	assert_int_equal(open_named(NAME_OURS, &env.b), 0);
	env.local = mc_aligned_alloc(4096, BYTES);
	env.remote = mc_aligned_alloc(4096, BYTES);
	assert_true(env.local && env.remote);
	assert_int_equal(mc_mem_reg(env.b, env.remote, BYTES, NULL, 3), 0);
	describe_classic();
}

static int group_setup(void **state)
{
	(void)state;
	setup();
	return 0;
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(memory_that_runs_out_while_opening),
	    cmocka_unit_test(memory_that_runs_out_while_closing),
	    cmocka_unit_test(memory_that_runs_out_while_publishing),
	    cmocka_unit_test(memory_that_runs_out_while_finding),
	    cmocka_unit_test(memory_that_runs_out_while_finding_classic),
	    cmocka_unit_test(memory_that_runs_out_while_sending),
	    cmocka_unit_test(memory_that_runs_out_while_sending_classic),
	};
	int failed;
	pid_t pid;

	if (argc < 3) {
		(void)fprintf(stderr, "usage: nomem_test http COMMAND [ARG | {}]... "
				      "[--long]\n");
		return 2;
	}
	env.is_long = getenv("NOMEM_LONG") != NULL || strcmp(argv[argc - 1], "--long") == 0;
	if (strcmp(argv[argc - 1], "--long") == 0)
		argv[argc - 1] = NULL;
	env.kind = argv[1];
	env.server = (const char **)argv + 2;
	pid = service_start();
	failed = cmocka_run_group_tests_name(env.kind, tests, group_setup, NULL);
	if (failed == 0) {
		mc_engine_close(env.a);
		mc_engine_close(env.b);
		mc_free(env.local);
		mc_free(env.remote);
	}
	(void)kill(pid, SIGKILL);
	(void)waitpid(pid, NULL, 0);
	return failed;
}
