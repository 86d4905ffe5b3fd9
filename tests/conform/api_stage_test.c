/*
 * api_stage_test.c: files registered as memory, by the native C API: a process offers a file, this
 * one reads and writes it by address, over TCP ("tcp"), shared memory ("shm"), or real RDMA devices
 * ("rdma", of the devices in API_DEVICES).
 */
#include <fcntl.h>
#include <inttypes.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "api_fix.h"

#define SPAN (8u * MIB + 777u) /* of the file that is offered */
#define AT 4321u	       /* where in the file it begins */
#define FILE_BYTES (AT + SPAN + 999u)
#define SOON_NS (3 * NS_PER_S)

static char file_path[128], own_path[128];
static const char *transport; /* that must carry the bytes; NULL: of this machine's choice */

/* Offers the file's range, and memory; each line of its input ends a registration. */
static int file_peer_main(void)
{
	struct mc_engine *eng = engine_open();
	uint8_t *mem = eng ? mc_mem_alloc(eng, MIB) : NULL;
	void *file, *readonly;
	char line[16];

	if (!mem || mc_mem_reg_file(eng, getenv("STAGE_FILE"), AT, SPAN, RIGHTS, &file) < 0 ||
	    mc_mem_reg_file(eng, getenv("STAGE_FILE"), 0, FILE_BYTES, MC_MEM_REMOTE_READ,
			    &readonly) < 0)
		return 1;
	(void)printf("%s %" PRIu64 " %" PRIu64 "\n%" PRIu64 "\n", mc_engine_name(eng),
		     (uint64_t)(uintptr_t)file, (uint64_t)(uintptr_t)readonly,
		     (uint64_t)(uintptr_t)mem);
	(void)fflush(stdout);
	if (fgets(line, sizeof(line), stdin)) {
		if (mc_mem_unreg(eng, file) < 0)
			return 1;
		(void)printf("ended\n");
		(void)fflush(stdout);
		while (getchar() != EOF)
			;
	} else if (mc_mem_unreg(eng, file) < 0) {
		return 1;
	}
	if (mc_mem_free(eng, file) != -MC_E_NOENT)
		return 1;
	mc_engine_close(eng);
	return 0;
}

static uint64_t peer_mem(struct world *w)
{
	char line[64];

	assert_non_null(fgets(line, sizeof(line), w->peer.out));
	return strtoull(line, NULL, 10);
}

static void file_make(const char *path, size_t len, unsigned seed)
{
	uint8_t *bytes = malloc(len);
	FILE *f = fopen(path, "w");

	assert_true(bytes && f);
	fill(bytes, len, seed);
	assert_int_equal(fwrite(bytes, 1, len, f), len);
	assert_int_equal(fclose(f), 0);
	free(bytes);
}

static uint8_t *file_read(const char *path, size_t len)
{
	uint8_t *bytes = malloc(len);
	FILE *f = fopen(path, "r");

	assert_true(bytes && f);
	assert_int_equal(fread(bytes, 1, len, f), len);
	assert_int_equal(fclose(f), 0);
	return bytes;
}

static void a_file_is_read_and_written_by_address(void **state)
{
	uint8_t *want = malloc(FILE_BYTES), *buf = malloc(SPAN), *got;
	unsigned seed = 20261122, len, off;
	uint64_t moved = 0;
	struct world w;

	(void)state;
	(void)printf("seed %u\n", seed);
	file_make(file_path, FILE_BYTES, 1);
	fill(want, FILE_BYTES, 1);
	world_open(&w);
	assert_int_equal(mc_mem_reg(w.eng, buf, SPAN, NULL, 0), 0);
	/* Around pages, buffers and the ends, then anywhere. */
	for (unsigned i = 0; i < 60; i++) {
		static const unsigned lens[] = {1, 511, 4096, MIB - 1, MIB, MIB + 1, SPAN};

		len = i < 14 ? lens[i / 2] : 1 + (unsigned)rand_r(&seed) % (3 * MIB);
		off = i < 14 ? 0 : (unsigned)rand_r(&seed) % (SPAN - len);
		if (i == 12)
			off = SPAN - len;
		moved += len;
		if (i % 2) {
			fill(buf, len, i);
			assert_int_equal(move(w.eng, MC_WRITE, w.seg, buf, w.peer.base + off, len),
					 0);
			memcpy(want + AT + off, buf, len);
		} else {
			memset(buf, 0, len);
			assert_int_equal(move(w.eng, MC_READ, w.seg, buf, w.peer.base + off, len),
					 0);
			assert_memory_equal(buf, want + AT + off, len);
		}
	}
	got = file_read(file_path, FILE_BYTES);
	assert_memory_equal(got, want, FILE_BYTES);
	/* The first ones may have gone another way, before there was a lane. */
	if (transport)
		assert_true(moved_by(w.eng, transport) > moved / 2);
	assert_int_equal(mc_mem_unreg(w.eng, buf), 0);
	world_close(&w);
	free(got);
	free(want);
	free(buf);
}

static void a_file_is_the_local_side_too(void **state)
{
	uint8_t *got;
	struct world w;
	uint64_t mem;
	void *own;

	(void)state;
	file_make(file_path, FILE_BYTES, 1);
	file_make(own_path, 3 * MIB, 2);
	world_open(&w);
	mem = peer_mem(&w);
	assert_int_equal(mc_mem_reg_file(w.eng, own_path, 5, 2 * MIB, RIGHTS, &own), 0);
	/* To the peer's memory and back to another place. */
	assert_int_equal(move(w.eng, MC_WRITE, w.seg, (uint8_t *)own + 3, mem, MIB), 0);
	assert_int_equal(move(w.eng, MC_READ, w.seg, (uint8_t *)own + MIB - 7, mem, MIB), 0);
	got = file_read(own_path, 3 * MIB);
	assert_memory_equal(got + 5 + MIB - 7, got + 8, 1000);
	free(got);
	/* File to file. */
	assert_int_equal(
	    move(w.eng, MC_WRITE, w.seg, (uint8_t *)own + 11, w.peer.base + 77, 2 * MIB - 11), 0);
	got = file_read(file_path, FILE_BYTES);
	{
		uint8_t *mine = file_read(own_path, 3 * MIB);

		assert_memory_equal(got + AT + 77, mine + 16, 2 * MIB - 11);
		free(mine);
	}
	free(got);
	/* Within this process. */
	{
		static uint8_t buf[100000], back[100000];

		fill(buf, sizeof(buf), 8);
		assert_int_equal(move(w.eng, MC_WRITE, MC_SEGMENT_LOCAL, buf,
				      (uintptr_t)own + 12345, sizeof(buf)),
				 0);
		assert_int_equal(move(w.eng, MC_READ, MC_SEGMENT_LOCAL, back,
				      (uintptr_t)own + 12345, sizeof(back)),
				 0);
		assert_memory_equal(back, buf, sizeof(buf));
	}
	assert_int_equal(mc_mem_unreg(w.eng, own), 0);
	assert_int_equal(mc_mem_unreg(w.eng, own), -MC_E_NOENT);
	world_close(&w);
}

static void signals_and_messages_come_after_the_file(void **state)
{
	static uint8_t buf[2 * MIB + 5];
	const struct mc_notify notify = {.name = "n", .msg = "m", .name_len = 1, .msg_len = 1};
	struct mc_put_signal sig = {.value = 0x1122334455667788};
	struct world w;
	struct one o;
	uint64_t word = 0;
	uint8_t *got;

	(void)state;
	file_make(file_path, FILE_BYTES, 1);
	world_open(&w);
	sig.addr = peer_mem(&w) + 64;
	fill(buf, sizeof(buf), 6);
	(void)one(&o, MC_WRITE, w.seg, buf, w.peer.base + 9, sizeof(buf), 0);
	o.g.signals = &sig;
	o.g.nsignals = 1;
	o.g.notify = &notify;
	assert_int_equal(mc_transfer_sync(w.eng, &o.g, NULL), 0);
	got = file_read(file_path, FILE_BYTES);
	assert_memory_equal(got + AT + 9, buf, sizeof(buf));
	free(got);
	assert_int_equal(move(w.eng, MC_READ, w.seg, &word, sig.addr, 8), 0);
	assert_int_equal(word, sig.value);
	world_close(&w);
}

static void what_is_wrong_is_said(void **state)
{
	static uint8_t buf[2 * MIB];
	struct mc_diag diag = {.text = ""};
	struct world w;
	struct one o;
	void *at;

	(void)state;
	file_make(file_path, FILE_BYTES, 1);
	world_open(&w);
	/* No right, or no such range. */
	assert_int_equal(move(w.eng, MC_WRITE, w.seg, buf, w.peer.readonly, 8), -MC_E_PERM);
	assert_int_equal(move(w.eng, MC_READ, w.seg, buf, w.peer.base + SPAN - 4, 8), -MC_E_RANGE);
	/* Shorter than it was: an error that names it, and what is left is served. */
	assert_int_equal(truncate(file_path, MIB), 0);
	assert_int_equal(mc_transfer_sync(w.eng,
					  one(&o, MC_READ, w.seg, buf, w.peer.base + MIB, 4096, 0),
					  &diag),
			 -MC_E_RANGE);
	assert_non_null(strstr(diag.text, w.peer.name));
	assert_non_null(strstr(diag.text, "staged"));
	assert_int_equal(move(w.eng, MC_READ, w.seg, buf, w.peer.base, 4096), 0);
	/* Over. */
	(void)fputs("end\n", w.peer.in);
	(void)fflush(w.peer.in);
	(void)peer_mem(&w);
	assert_non_null(fgets((char *)buf, 64, w.peer.out));
	assert_string_equal((char *)buf, "ended\n");
	assert_int_equal(move(w.eng, MC_READ, w.seg, buf, w.peer.base, 4096), -MC_E_STALE);
	/* Registering. */
	assert_int_equal(mc_mem_reg_file(w.eng, "/no/such/file", 0, 1, RIGHTS, &at), -MC_E_NOENT);
	assert_int_equal(mc_mem_reg_file(w.eng, file_path, 0, 0, RIGHTS, &at), -MC_E_INVAL);
	assert_int_equal(mc_mem_reg_file(w.eng, file_path, 0, 1, 0, &at), -MC_E_INVAL);
	assert_int_equal(mc_mem_reg_file(w.eng, file_path, INT64_MAX, 1, RIGHTS, &at), -MC_E_INVAL);
	world_close(&w);
}

static void a_peer_killed_in_a_transfer_ends_it(void **state)
{
	uint8_t *buf = malloc(SPAN);

	(void)state;
	assert_non_null(buf);
	for (unsigned i = 0; i < 6; i++) {
		struct mc_status st = {0};
		struct mc_diag diag;
		struct world w;
		struct one o;
		uint64_t id, begin_ns;

		file_make(file_path, FILE_BYTES, 1);
		world_open(&w);
		fill(buf, SPAN, 3);
		assert_int_equal(move(w.eng, MC_READ, w.seg, buf, w.peer.base, MIB), 0);
		fill(buf, SPAN, 3);
		assert_int_equal(mc_submit(w.eng,
					   one(&o, i % 2 ? MC_READ : MC_WRITE, w.seg, buf,
					       w.peer.base, SPAN, 20 * NS_PER_S),
					   &id),
				 0);
		nap(i * NS_PER_MS);
		begin_ns = now_ns();
		peer_kill(&w.peer);
		assert_int_equal(mc_group_wait(w.eng, id, 10 * NS_PER_S, &st), 0);
		assert_true(st.is_done);
		assert_true(now_ns() - begin_ns < SOON_NS);
		assert_int_equal(mc_group_diag(w.eng, id, &diag), 0);
		if (st.status < 0)
			assert_non_null(strstr(diag.text, w.peer.name));
		else
			(void)printf("round %u was through before the kill\n", i);
		assert_int_equal(mc_group_free(w.eng, id), 0);
		mc_engine_close(w.eng);
	}
	free(buf);
}

static void a_stopped_peer_has_the_deadline_and_a_cancel(void **state)
{
	static uint8_t buf[2 * MIB];
	struct mc_status st = {0};
	uint64_t id, begin_ns;
	struct world w;
	struct one o;
	uint8_t *before, *after;

	(void)state;
	file_make(file_path, FILE_BYTES, 1);
	world_open(&w);
	assert_int_equal(move(w.eng, MC_READ, w.seg, buf, w.peer.base, sizeof(buf)), 0);
	before = file_read(file_path, FILE_BYTES);
	fill(buf, sizeof(buf), 5);
	peer_stop(&w.peer);
	begin_ns = now_ns();
	assert_int_equal(
	    mc_transfer_sync(
		w.eng, one(&o, MC_WRITE, w.seg, buf, w.peer.base, sizeof(buf), 2 * NS_PER_S), NULL),
	    -MC_E_TIMEDOUT);
	assert_true(now_ns() - begin_ns < 2 * NS_PER_S + LATE_NS);
	assert_int_equal(
	    mc_submit(w.eng, one(&o, MC_WRITE, w.seg, buf, w.peer.base, sizeof(buf), 60 * NS_PER_S),
		      &id),
	    0);
	nap(NS_PER_S / 10);
	assert_int_equal(mc_group_cancel(w.eng, id), 0);
	assert_int_equal(mc_group_wait(w.eng, id, SOON_NS, &st), 0);
	assert_int_equal(st.status, -MC_E_CANCELED);
	assert_int_equal(mc_group_free(w.eng, id), 0);
	peer_go(&w.peer);
	/* Served again, and nothing of those two comes now. */
	assert_int_equal(move(w.eng, MC_READ, w.seg, buf, w.peer.base + MIB, MIB), 0);
	after = file_read(file_path, FILE_BYTES);
	assert_memory_equal(after, before, FILE_BYTES);
	world_close(&w);
	free(before);
	free(after);
}

static void many_groups_at_once_all_end(void **state)
{
	enum { N = 48 };
	static uint8_t buf[N][150001];
	struct mc_completion done[N];
	struct mc_cq *cq;
	struct world w;
	struct one o;
	uint64_t id;
	int n = 0;

	(void)state;
	file_make(file_path, FILE_BYTES, 1);
	world_open(&w);
	assert_int_equal(mc_cq_open(w.eng, N, &cq), 0);
	for (unsigned i = 0; i < N; i++) {
		fill(buf[i], sizeof(buf[i]), i);
		(void)one(&o, MC_WRITE, w.seg, buf[i], w.peer.base + i * sizeof(buf[i]),
			  sizeof(buf[i]), 0);
		o.g.cq = cq;
		assert_int_equal(mc_submit(w.eng, &o.g, &id), 0);
	}
	while (n < N) {
		int got = mc_cq_wait(cq, done, N, 20 * NS_PER_S);

		assert_true(got > 0);
		for (int i = 0; i < got; i++)
			assert_int_equal(done[i].status, 0);
		n += got;
	}
	for (unsigned i = 0; i < N; i++)
		assert_true(is_filled_at(w.eng, w.seg, w.peer.base + i * sizeof(buf[i]),
					 sizeof(buf[i]), i));
	mc_cq_close(cq);
	world_close(&w);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(a_file_is_read_and_written_by_address),
	    cmocka_unit_test(a_file_is_the_local_side_too),
	    cmocka_unit_test(signals_and_messages_come_after_the_file),
	    cmocka_unit_test(what_is_wrong_is_said),
	    cmocka_unit_test(a_peer_killed_in_a_transfer_ends_it),
	    cmocka_unit_test(a_stopped_peer_has_the_deadline_and_a_cancel),
	    cmocka_unit_test(many_groups_at_once_all_end),
	};
	char dir[] = "/var/tmp/mc-stage-XXXXXX";
	int failed;

	if (argc > 1 && strcmp(argv[1], "peer") == 0)
		return file_peer_main();
	if (argc > 1 && strcmp(argv[1], "tcp") == 0)
		(void)setenv("MC_FORCE_TCP", "1", 1);
	if (argc > 1)
		transport = argv[1];
	if (argc > 1 && strcmp(argv[1], "rdma") == 0) {
		(void)setenv("API_PROTOCOL", "rdma", 1);
		(void)setenv("MC_NO_SHM", "1", 1);
	}
	/* On a disk, where O_DIRECT is. */
	if (!mkdtemp(dir))
		return 1;
	(void)snprintf(file_path, sizeof(file_path), "%s/file", dir);
	(void)snprintf(own_path, sizeof(own_path), "%s/own", dir);
	(void)setenv("STAGE_FILE", file_path, 1);
	failed = cmocka_run_group_tests(tests, NULL, NULL);
	(void)unlink(file_path);
	(void)unlink(own_path);
	(void)rmdir(dir);
	return failed;
}
