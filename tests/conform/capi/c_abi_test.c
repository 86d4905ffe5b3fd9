/*
 * c_abi_test.c: upstream's C ABI as its clients use it, over the shipped libtransfer_engine.so.
 *
 * The sequences are those of NIXL's Mooncake plugin and of TensorRT-LLM's transfer agent. The peer
 * is this program again, as a process of its own ("c_abi_test peer"): it owns a buffer, and answers
 * one line on stdout for each line on stdin.
 */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "transfer_engine_c.h"

#define BUFFER_BYTES (4u << 20)
#define BLOCK 8192u
#define REQUESTS 64u
#define BATCH_CAPACITY 1024u /* what both clients ask for */
#define WAIT_S 30

extern char **environ;

static char buffer[BUFFER_BYTES];

static uint64_t now_ms(void)
{
	struct timespec ts;

	(void)clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

static uint64_t sum(const char *data, size_t len)
{
	uint64_t hash = 14695981039346656037ull; /* FNV-1a */

	for (size_t i = 0; i < len; i++)
		hash = (hash ^ (unsigned char)data[i]) * 1099511628211ull;
	return hash;
}

static void fill(char *data, size_t len, unsigned seed)
{
	for (size_t i = 0; i < len; i++)
		data[i] = (char)(i * 31 + i / 251 + seed);
}

/* Poll at a human pace: the clock decides, and it is far away. */
static void pause_briefly(void)
{
	(void)poll(NULL, 0, 1);
}

/* ---- the peer ---- */

static notify_msg_t *notifs_wait(transfer_engine_t engine, int *n)
{
	uint64_t end = now_ms() + WAIT_S * 1000;
	notify_msg_t *got;

	while (!(got = getNotifsFromEngine(engine, n)) && now_ms() < end)
		pause_briefly();
	return got;
}

static void peer_answer(transfer_engine_t engine, const char *line)
{
	notify_msg_t note = {"from-peer", "hello"}, *got;
	char name[256];
	int n;

	if (strcmp(line, "sum\n") == 0) {
		printf("%llx\n", (unsigned long long)sum(buffer, sizeof(buffer)));
	} else if (strcmp(line, "notifs\n") == 0) {
		got = notifs_wait(engine, &n);
		printf("%d %s|%s\n", n, n ? got[0].name : "", n ? got[0].msg : "");
		(void)freeNotifsMsgBuf(got, n);
	} else if (sscanf(line, "notify %255s", name) == 1) {
		segment_id_t segment = openSegment(engine, name);

		printf("%d\n",
		       segment < 0 ? segment : genNotifyInEngine(engine, (uint64_t)segment, note));
	}
	(void)fflush(stdout);
}

static int peer_main(void)
{
	transfer_engine_t engine = createTransferEngine("P2PHANDSHAKE", "127.0.0.1", "", 0, true);
	char line[512], address[64];

	fill(buffer, sizeof(buffer), 1);
	if (!engine || getLocalIpAndPort(engine, address, sizeof(address)) != 0 ||
	    registerLocalMemory(engine, buffer, sizeof(buffer), "*", 1) != 0)
		return 1;
	printf("%s %llu\n", address, (unsigned long long)(uintptr_t)buffer);
	(void)fflush(stdout);
	while (fgets(line, sizeof(line), stdin))
		peer_answer(engine, line);
	if (unregisterLocalMemory(engine, buffer) != 0)
		return 1;
	destroyTransferEngine(engine);
	return 0;
}

struct peer {
	pid_t pid;
	FILE *to, *from;
	char name[64];
	uint64_t addr;
};

static void peer_open(struct peer *peer)
{
	char *argv[] = {"c_abi_test", "peer", NULL};
	unsigned long long addr;
	posix_spawn_file_actions_t files;
	int in[2], out[2];
	char line[128];

	assert_int_equal(pipe2(in, O_CLOEXEC), 0);
	assert_int_equal(pipe2(out, O_CLOEXEC), 0);
	(void)posix_spawn_file_actions_init(&files);
	(void)posix_spawn_file_actions_adddup2(&files, in[0], 0);
	(void)posix_spawn_file_actions_adddup2(&files, out[1], 1);
	assert_int_equal(posix_spawn(&peer->pid, "/proc/self/exe", &files, NULL, argv, environ), 0);
	(void)posix_spawn_file_actions_destroy(&files);
	(void)close(in[0]);
	(void)close(out[1]);
	peer->to = fdopen(in[1], "w");
	peer->from = fdopen(out[0], "r");
	assert_non_null(fgets(line, sizeof(line), peer->from));
	assert_int_equal(sscanf(line, "%63s %llu", peer->name, &addr), 2);
	peer->addr = addr;
}

static void peer_ask(struct peer *peer, const char *question, char *answer, int len)
{
	(void)fprintf(peer->to, "%s\n", question);
	(void)fflush(peer->to);
	assert_non_null(fgets(answer, len, peer->from));
	answer[strcspn(answer, "\n")] = '\0';
}

static uint64_t peer_sum(struct peer *peer)
{
	char answer[64];

	peer_ask(peer, "sum", answer, sizeof(answer));
	return strtoull(answer, NULL, 16);
}

static void peer_close(struct peer *peer)
{
	int status;

	(void)fclose(peer->to);
	(void)fclose(peer->from);
	assert_int_equal(waitpid(peer->pid, &status, 0), peer->pid);
	assert_int_equal(status, 0);
}

/* ---- our end ---- */

struct fixture {
	struct peer peer;
	transfer_engine_t engine;
	segment_id_t segment;
};

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	assert_non_null(f);
	peer_open(&f->peer);
	f->engine = createTransferEngine("P2PHANDSHAKE", "127.0.0.1", "", 0, true);
	assert_non_null(f->engine);
	assert_int_equal(registerLocalMemory(f->engine, buffer, sizeof(buffer), "*", 1), 0);
	f->segment = openSegment(f->engine, f->peer.name);
	assert_true(f->segment > 0);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(unregisterLocalMemory(f->engine, buffer), 0);
	destroyTransferEngine(f->engine);
	peer_close(&f->peer);
	free(f);
	return 0;
}

/* `n` blocks from `first` on, each to or from its own place in the peer. */
static void requests_make(struct fixture *f, transfer_request_t *req, size_t first, size_t n,
			  int op)
{
	for (size_t i = 0; i < n; i++) {
		size_t at = (first + i) * BLOCK;

		req[i] = (transfer_request_t){
		    .opcode = op,
		    .source = buffer + at,
		    .target_id = f->segment,
		    .target_offset = f->peer.addr + at,
		    .length = BLOCK,
		};
	}
}

/* As NIXL's checkXfer: waiting and pending go on, failed is an error, everything else is success.
 */
static bool batch_is_good(transfer_engine_t engine, batch_id_t batch, size_t n)
{
	uint64_t end = now_ms() + WAIT_S * 1000;

	for (size_t i = 0; i < n; i++) {
		transfer_status_t status;

		do {
			assert_true(now_ms() < end);
			assert_int_equal(getTransferStatus(engine, batch, i, &status), 0);
			if (status.status <= STATUS_PENDING)
				pause_briefly();
		} while (status.status == STATUS_WAITING || status.status == STATUS_PENDING);
		if (status.status == STATUS_FAILED)
			return false;
		assert_int_equal(status.status, STATUS_COMPLETED);
	}
	return true;
}

static void nixl_posts_the_same_handle_again_and_again(void **state)
{
	struct fixture *f = *state;
	transfer_request_t *req = calloc(BUFFER_BYTES / BLOCK, sizeof(*req));
	size_t n = BUFFER_BYTES / BLOCK;

	assert_non_null(req);
	for (unsigned round = 0; round < 5; round++) {
		batch_id_t batch = allocateBatchID(f->engine, BATCH_CAPACITY);
		bool is_write = round % 2 == 0;

		assert_true(batch != INVALID_BATCH && batch != 0 && batch < 1ull << 63);
		fill(buffer, sizeof(buffer), 10 + round);
		requests_make(f, req, 0, n, is_write ? OPCODE_WRITE : OPCODE_READ);
		assert_int_equal(submitTransfer(f->engine, batch, req, n), 0);
		memset(req, 0xff, n * sizeof(*req)); /* not kept after the call */
		assert_true(batch_is_good(f->engine, batch, n));
		assert_int_equal(freeBatchID(f->engine, batch), 0);
		assert_true(sum(buffer, sizeof(buffer)) == peer_sum(&f->peer));
	}
	free(req);
}

static void tensorrt_llm_sends_and_polls_messages(void **state)
{
	struct fixture *f = *state;
	transfer_request_t req[REQUESTS];
	notify_msg_t note = {"agent-A", "c3luYw=="}, *got;
	batch_id_t batch = allocateBatchID(f->engine, BATCH_CAPACITY);
	char answer[256], question[128], address[64];
	int n = -1;

	assert_null(getNotifsFromEngine(f->engine, &n));
	assert_int_equal(n, 0);
	assert_int_equal(freeNotifsMsgBuf(NULL, 0), 0);
	fill(buffer, sizeof(buffer), 20);
	requests_make(f, req, 0, REQUESTS, OPCODE_WRITE);
	assert_int_equal(submitTransferWithNotify(f->engine, batch, req, REQUESTS, note), 0);
	/* Nobody asks for a status: the message goes by itself. */
	peer_ask(&f->peer, "notifs", answer, sizeof(answer));
	assert_string_equal(answer, "1 agent-A|c3luYw==");
	assert_true(batch_is_good(f->engine, batch, REQUESTS));
	assert_int_equal(freeBatchID(f->engine, batch), 0);
	assert_int_equal(getLocalIpAndPort(f->engine, address, sizeof(address)), 0);
	(void)snprintf(question, sizeof(question), "notify %s", address);
	peer_ask(&f->peer, question, answer, sizeof(answer));
	assert_string_equal(answer, "0");
	got = notifs_wait(f->engine, &n);
	assert_int_equal(n, 1);
	assert_string_equal(got[0].name, "from-peer");
	assert_string_equal(got[0].msg, "hello");
	assert_int_equal(freeNotifsMsgBuf(got, n), 0);
}

static void submits_of_one_batch_are_numbered_on_and_told_together(void **state)
{
	struct fixture *f = *state;
	transfer_request_t req[REQUESTS];
	notify_msg_t note = {"whole", "batch"};
	batch_id_t batch = allocateBatchID(f->engine, 3 * REQUESTS);
	transfer_status_t status;
	char answer[256];

	fill(buffer, sizeof(buffer), 1); /* the rest is as the peer made it */
	fill(buffer, 3 * REQUESTS * BLOCK, 30);
	for (unsigned i = 0; i < 3; i++) {
		requests_make(f, req, i * REQUESTS, REQUESTS, OPCODE_WRITE);
		if (i < 2)
			assert_int_equal(submitTransfer(f->engine, batch, req, REQUESTS), 0);
		else
			assert_int_equal(
			    submitTransferWithNotify(f->engine, batch, req, REQUESTS, note), 0);
	}
	peer_ask(&f->peer, "notifs", answer, sizeof(answer));
	assert_string_equal(answer, "1 whole|batch");
	assert_true(peer_sum(&f->peer) == sum(buffer, sizeof(buffer)));
	assert_true(batch_is_good(f->engine, batch, 3 * REQUESTS));
	assert_int_not_equal(getTransferStatus(f->engine, batch, 3 * REQUESTS, &status), 0);
	assert_int_equal(submitTransfer(f->engine, batch, req, 1), 2);
	assert_int_equal(freeBatchID(f->engine, batch), 0);
}

static void failed_transfer_says_failed_and_its_batch_can_be_freed(void **state)
{
	struct fixture *f = *state;
	transfer_request_t req[2];
	notify_msg_t note = {"never", ""}, next = {"next", "a\0b"};
	batch_id_t batch = allocateBatchID(f->engine, 4);
	char answer[256];
	int rc;

	requests_make(f, req, 0, 2, OPCODE_WRITE);
	req[1].target_offset = f->peer.addr + BUFFER_BYTES - 1; /* one byte of it is theirs */
	/* Refused at once where the peer's ranges are known, else by the peer. */
	rc = submitTransferWithNotify(f->engine, batch, req, 2, note);
	assert_true(rc == 0 || rc == 3);
	assert_false(rc == 0 && batch_is_good(f->engine, batch, 2));
	assert_int_equal(freeBatchID(f->engine, batch), 0);
	assert_int_equal(genNotifyInEngine(f->engine, (uint64_t)f->segment, next), 0);
	peer_ask(&f->peer, "notifs", answer, sizeof(answer));
	assert_string_equal(answer, "1 next|a"); /* a C string ends at its zero */
}

static void batch_freed_under_way_goes_by_itself(void **state)
{
	struct fixture *f = *state;
	transfer_request_t req[REQUESTS];
	batch_id_t batch;
	int rc;

	requests_make(f, req, 0, REQUESTS, OPCODE_WRITE);
	for (int i = 0; i < 200; i++) {
		batch = allocateBatchID(f->engine, REQUESTS);
		assert_true(batch != INVALID_BATCH);
		assert_int_equal(submitTransfer(f->engine, batch, req, REQUESTS), 0);
		rc = freeBatchID(f->engine, batch);
		assert_true(rc == 0 || rc == 4);
	}
	while ((rc = freeBatchID(f->engine, batch)) == 4)
		pause_briefly();
	assert_true(rc == 0 || rc == 1);
	assert_int_equal(freeBatchID(f->engine, batch), 1);
}

static void wrong_arguments_are_errors(void **state)
{
	struct fixture *f = *state;
	batch_id_t batch = allocateBatchID(f->engine, 2);
	notify_msg_t none = {NULL, NULL};
	transfer_request_t req[1];
	transfer_status_t status;
	char small[3];

	requests_make(f, req, 0, 1, 2);
	assert_int_equal(submitTransfer(f->engine, batch, req, 1), 1);
	requests_make(f, req, 0, 1, OPCODE_READ);
	assert_int_equal(submitTransfer(f->engine, batch, NULL, 1), 1);
	assert_int_equal(submitTransferWithNotify(f->engine, batch, req, 1, none), 1);
	assert_int_equal(submitTransfer(f->engine, batch, req, 0), 0);
	req[0].target_id = 12345;
	assert_int_equal(submitTransfer(f->engine, batch, req, 1), 1);
	assert_int_equal(getTransferStatus(f->engine, batch, 0, &status), 1);
	assert_int_equal(getTransferStatus(f->engine, batch, 0, NULL), 1);
	assert_int_equal(freeBatchID(f->engine, batch), 0);
	assert_true(allocateBatchID(f->engine, SIZE_MAX) == INVALID_BATCH);
	assert_int_equal(openSegment(f->engine, ""), -1);
	assert_int_equal(openSegment(f->engine, NULL), -1);
	assert_int_equal(openSegment(f->engine, "127.0.0.1:1"), -1);
	assert_true(genNotifyInEngine(f->engine, UINT64_MAX, (notify_msg_t){"a", "b"}) < 0);
	assert_true(genNotifyInEngine(f->engine, 0, none) < 0);
	assert_true(getLocalIpAndPort(f->engine, small, sizeof(small)) < 0);
	assert_true(registerLocalMemory(f->engine, buffer, 0, "*", 1) < 0);
	assert_true(unregisterLocalMemory(f->engine, small) < 0);
	assert_null(installTransport(f->engine, "carrier-pigeon", NULL));
	assert_null(createTransferEngine("gopher://127.0.0.1:1", "127.0.0.1", "", 0, 1));
}

/* Every function, with a handle that is none. */
static void all_refuse(transfer_engine_t engine)
{
	transfer_request_t req = {.opcode = OPCODE_READ};
	notify_msg_t note = {"a", "b"};
	nic_load_stat_t load;
	transfer_status_t status;
	buffer_entry_t entry = {buffer, sizeof(buffer)};
	void *addr = buffer;
	size_t count = 1;
	char text[64];
	int n;

	assert_int_equal(openSegment(engine, "127.0.0.1:15000"), -1);
	assert_int_equal(openSegmentNoCache(engine, "127.0.0.1:15000"), -1);
	assert_true(closeSegment(engine, 1) < 0 && removeLocalSegment(engine, "x") < 0);
	assert_true(registerLocalMemory(engine, buffer, 1, "*", 1) < 0);
	assert_true(unregisterLocalMemory(engine, buffer) < 0);
	assert_true(registerLocalMemoryBatch(engine, &entry, 1, "*") < 0);
	assert_true(unregisterLocalMemoryBatch(engine, &addr, 1) < 0);
	assert_true(allocateBatchID(engine, 1) == INVALID_BATCH);
	assert_true(submitTransfer(engine, 1, &req, 1) > 0);
	assert_true(submitTransferWithNotify(engine, 1, &req, 1, note) > 0);
	assert_true(getTransferStatus(engine, 1, 0, &status) > 0);
	assert_true(freeBatchID(engine, 1) > 0);
	assert_null(getNotifsFromEngine(engine, &n));
	assert_true(genNotifyInEngine(engine, 1, note) < 0);
	assert_true(getNicLoadStats(engine, &load, &count) < 0);
	assert_true(showLinks(engine, text, sizeof(text), 1) < 0);
	assert_true(discoverTopology(engine) < 0 && syncSegmentCache(engine) < 0);
	assert_true(getLocalIpAndPort(engine, text, sizeof(text)) < 0);
	assert_true(uninstallTransport(engine, "tcp") < 0);
	assert_null(installTransport(engine, "tcp", NULL));
	assert_true(enableGracefulShutdown(engine) < 0);
	destroyTransferEngine(engine);
}

static void handles_that_are_none_are_errors(void **state)
{
	transfer_engine_t old = createTransferEngine("P2PHANDSHAKE", "127.0.0.1", "", 0, 1);
	transfer_engine_t fresh;
	batch_id_t batch;

	(void)state;
	assert_non_null(old);
	batch = allocateBatchID(old, 1);
	destroyTransferEngine(old);
	fresh = createTransferEngine("P2PHANDSHAKE", "127.0.0.1", "", 0, 1);
	assert_int_equal(freeBatchID(fresh, batch), 1); /* another engine's, and gone */
	all_refuse(NULL);
	all_refuse(old);
	all_refuse((transfer_engine_t)buffer); /* an address, as a wild pointer is */
	all_refuse((transfer_engine_t)UINTPTR_MAX);
	destroyTransferEngine(fresh);
}

static void memory_in_batches_and_observation_work(void **state)
{
	struct fixture *f = *state;
	static char more[3][4096];
	buffer_entry_t entries[3] = {{more[0], 4096}, {more[1], 4096}, {more[2], 4096}};
	void *addrs[3] = {more[0], more[1], more[2]};
	char text[65536];
	size_t count = 4;

	assert_int_equal(registerLocalMemoryBatch(f->engine, entries, 3, "cpu:0"), 0);
	assert_int_equal(unregisterLocalMemoryBatch(f->engine, addrs, 3), 0);
	assert_true(unregisterLocalMemoryBatch(f->engine, addrs, 3) < 0);
	assert_int_equal(getNicLoadStats(f->engine, NULL, &count), 0);
	assert_int_equal(count, 0);
	assert_int_equal(showLinks(f->engine, text, sizeof(text), 1), 0);
	assert_non_null(strstr(text, "\"local_nics\""));
	assert_int_equal(showLinks(f->engine, text, sizeof(text), 0), 0);
	assert_int_equal(openSegment(f->engine, f->peer.name), f->segment);
	assert_int_equal(openSegmentNoCache(f->engine, f->peer.name), f->segment);
	assert_int_equal(closeSegment(f->engine, f->segment), 0);
	assert_non_null(installTransport(f->engine, "tcp", NULL));
	assert_int_equal(warmupEfaSegment(f->engine, f->peer.name), 0);
}

static void graceful_shutdown_ends_the_process_by_its_signal(void **state)
{
	char *argv[] = {"c_abi_test", "shutdown", NULL};
	int status, ready[2];
	char byte;
	pid_t pid;
	posix_spawn_file_actions_t files;

	(void)state;
	assert_int_equal(pipe2(ready, O_CLOEXEC), 0);
	(void)posix_spawn_file_actions_init(&files);
	(void)posix_spawn_file_actions_adddup2(&files, ready[1], 1);
	assert_int_equal(posix_spawn(&pid, "/proc/self/exe", &files, NULL, argv, environ), 0);
	(void)posix_spawn_file_actions_destroy(&files);
	(void)close(ready[1]);
	assert_int_equal(read(ready[0], &byte, 1), 1);
	assert_int_equal(kill(pid, SIGTERM), 0);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 128 + SIGTERM);
	(void)close(ready[0]);
}

static int shutdown_main(void)
{
	transfer_engine_t engine = createTransferEngine("P2PHANDSHAKE", "127.0.0.1", "", 0, 1);

	if (!engine || enableGracefulShutdown(engine) != 0 || write(1, "r", 1) != 1)
		return 1;
	for (;;)
		(void)pause();
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test_setup_teardown(nixl_posts_the_same_handle_again_and_again, setup,
					    teardown),
	    cmocka_unit_test_setup_teardown(tensorrt_llm_sends_and_polls_messages, setup, teardown),
	    cmocka_unit_test_setup_teardown(submits_of_one_batch_are_numbered_on_and_told_together,
					    setup, teardown),
	    cmocka_unit_test_setup_teardown(failed_transfer_says_failed_and_its_batch_can_be_freed,
					    setup, teardown),
	    cmocka_unit_test_setup_teardown(batch_freed_under_way_goes_by_itself, setup, teardown),
	    cmocka_unit_test_setup_teardown(wrong_arguments_are_errors, setup, teardown),
	    cmocka_unit_test(handles_that_are_none_are_errors),
	    cmocka_unit_test_setup_teardown(memory_in_batches_and_observation_work, setup,
					    teardown),
	    cmocka_unit_test(graceful_shutdown_ends_the_process_by_its_signal),
	};

	(void)setenv("MC_TRANSFER_TIMEOUT", "10", 1);
	if (argc == 2 && strcmp(argv[1], "peer") == 0)
		return peer_main();
	if (argc == 2 && strcmp(argv[1], "shutdown") == 0)
		return shutdown_main();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
