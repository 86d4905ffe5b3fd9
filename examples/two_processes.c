/*
 * two_processes.c: the native API. One process offers memory, the other reads and writes it.
 *
 *   export PKG_CONFIG_PATH=$(python -m mooncake.config --pkgconfig)
 *   cc two_processes.c -o two_processes $(pkg-config --cflags --libs mooncake)
 *   ./two_processes target 127.0.0.1                       # prints NAME ADDRESS, then waits
 *   ./two_processes initiator 127.0.0.1 NAME ADDRESS       # in another terminal
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <mooncake/engine.h>

#define LENGTH (1u << 20)
#define TRIES 6000 /* of 10 ms: a minute */

static int failed(const char *what, int rc, const struct mc_diag *diag)
{
	fprintf(stderr, "%s: %s (%s)\n", what, diag->text[0] ? diag->text : mc_err_text(rc),
		mc_err_name(rc));
	return 1;
}

/* An engine at `host`, and memory of it that peers may read and write. */
static struct mc_engine *open_engine(const char *host, void **ret_mem)
{
	struct mc_engine_opts opts = {.size = sizeof(opts), .name = host};
	struct mc_diag diag = {{0}};
	struct mc_engine *eng;
	int rc = mc_engine_open(&opts, &diag, &eng);

	if (rc < 0) {
		(void)failed("open", rc, &diag);
		return NULL;
	}
	*ret_mem = mc_mem_alloc(eng, LENGTH); /* or your own memory, after mc_mem_reg() */
	if (!*ret_mem) {
		fprintf(stderr, "no memory\n");
		mc_engine_close(eng);
		return NULL;
	}
	return eng;
}

/* The message comes after the bytes are visible here. */
static int wait_message(struct mc_engine *eng)
{
	struct timespec pause = {.tv_nsec = 10000000};
	struct mc_notice *notices = NULL;
	int n = 0;

	for (int i = 0; i < TRIES && n == 0; i++) {
		n = mc_notices_take(eng, &notices);
		if (n == 0)
			(void)nanosleep(&pause, NULL);
	}
	if (n <= 0) {
		fprintf(stderr, "nobody came\n");
		return 1;
	}
	printf("message \"%s\": \"%s\"; ", notices[0].name, notices[0].msg);
	mc_notices_free(notices, n);
	return 0;
}

static int target(const char *host)
{
	void *mem;
	struct mc_engine *eng = open_engine(host, &mem);
	int rc;

	if (!eng)
		return 1;
	snprintf(mem, LENGTH, "written by the target");
	printf("%s %" PRIu64 "\n", mc_engine_name(eng), (uint64_t)(uintptr_t)mem);
	fflush(stdout);
	rc = wait_message(eng);
	if (rc == 0)
		printf("memory: \"%s\"\n", (const char *)mem);
	mc_engine_close(eng);
	return rc;
}

/* One transfer of all the memory, and the wait for it. */
static int move(struct mc_engine *eng, int32_t segment, enum mc_transfer_op op, void *mem,
		uint64_t address, const struct mc_notify *notify)
{
	struct mc_iov local = {(uintptr_t)mem, LENGTH}, remote = {address, LENGTH};
	struct mc_transfer t = {.op = op,
				.segment = segment,
				.nlocal = 1,
				.nremote = 1,
				.local = &local,
				.remote = &remote};
	struct mc_group group = {.size = sizeof(group),
				 .n = 1,
				 .transfers = &t,
				 .priority = MC_PRIO_NORMAL,
				 .notify = notify};
	struct mc_diag diag = {{0}};
	int rc = mc_transfer_sync(eng, &group, &diag);

	return rc < 0 ? failed(op == MC_READ ? "read" : "write", rc, &diag) : 0;
}

static int initiator(const char *host, const char *name, uint64_t address)
{
	struct mc_notify note = {.name = "example", .name_len = 7, .msg = "done", .msg_len = 4};
	struct mc_diag diag = {{0}};
	struct mc_engine *eng;
	int32_t segment;
	void *mem;
	int rc;

	eng = open_engine(host, &mem);
	if (!eng)
		return 1;
	rc = mc_segment_open(eng, name, 0, &diag, &segment);
	if (rc < 0) {
		rc = failed("segment", rc, &diag);
		goto out;
	}
	rc = move(eng, segment, MC_READ, mem, address, NULL);
	if (rc != 0)
		goto out;
	printf("read %u bytes of %s: \"%s\"\n", LENGTH, name, (const char *)mem);
	snprintf(mem, LENGTH, "written by the initiator");
	rc = move(eng, segment, MC_WRITE, mem, address, &note);
	if (rc == 0)
		printf("wrote %u bytes to %s\n", LENGTH, name);
out:
	mc_engine_close(eng);
	return rc;
}

int main(int argc, char **argv)
{
	if (argc == 3 && strcmp(argv[1], "target") == 0)
		return target(argv[2]);
	if (argc == 5 && strcmp(argv[1], "initiator") == 0)
		return initiator(argv[2], argv[3], strtoull(argv[4], NULL, 10));
	fprintf(stderr, "usage: two_processes target HOST | initiator HOST NAME ADDRESS\n");
	return 2;
}
