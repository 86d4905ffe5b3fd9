/*
 * api_fix.c: the peer's process, and transfers said shortly.
 */
#include "api_fix.h"

#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

uint64_t now_ns(void)
{
	struct timespec ts;

	(void)clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * NS_PER_S + (uint64_t)ts.tv_nsec;
}

void nap(uint64_t ns)
{
	struct timespec ts = {.tv_sec = (time_t)(ns / NS_PER_S), .tv_nsec = (long)(ns % NS_PER_S)};

	(void)nanosleep(&ts, NULL);
}

static uint8_t byte_at(size_t i, unsigned seed)
{
	return (uint8_t)((i * 2654435761u >> 11) + i + seed * 101u);
}

void fill(void *buf, size_t len, unsigned seed)
{
	uint8_t *at = buf;

	for (size_t i = 0; i < len; i++)
		at[i] = byte_at(i, seed);
}

bool is_filled(const void *buf, size_t len, unsigned seed)
{
	const uint8_t *at = buf;

	for (size_t i = 0; i < len; i++)
		if (at[i] != byte_at(i, seed))
			return false;
	return true;
}

struct mc_engine *engine_open(void)
{
	struct mc_engine_opts opts = {.size = sizeof(opts),
				      .name = "127.0.0.1",
				      .protocol = getenv("API_PROTOCOL"),
				      .devices = getenv("API_DEVICES")};
	struct mc_diag diag = {.text = ""};
	struct mc_engine *eng = NULL;

	if (mc_engine_open(&opts, &diag, &eng) < 0)
		(void)fprintf(stderr, "%s\n", diag.text);
	return eng;
}

/* ---- the peer ---- */

int peer_main(void)
{
	static _Alignas(4096) uint8_t readonly[READONLY_BYTES];
	struct mc_engine *eng = engine_open();
	uint8_t *mem = eng ? mc_mem_alloc(eng, REGION_BYTES) : NULL;

	fill(readonly, sizeof(readonly), 9);
	if (!mem || mc_mem_reg(eng, readonly, sizeof(readonly), "cpu:0", MC_MEM_REMOTE_READ) < 0)
		return 1;
	(void)printf("%s %" PRIu64 " %" PRIu64 "\n", mc_engine_name(eng), (uint64_t)(uintptr_t)mem,
		     (uint64_t)(uintptr_t)readonly);
	(void)fflush(stdout);
	while (getchar() != EOF)
		;
	if (mc_mem_unreg(eng, readonly) < 0 || mc_mem_free(eng, mem) < 0)
		return 1;
	mc_engine_close(eng);
	return 0;
}

void peer_open(struct peer *peer)
{
	int in[2], out[2];
	char line[160];

	assert_int_equal(pipe2(in, O_CLOEXEC), 0);
	assert_int_equal(pipe2(out, O_CLOEXEC), 0);
	peer->pid = fork();
	assert_true(peer->pid >= 0);
	if (peer->pid == 0) {
		(void)prctl(PR_SET_PDEATHSIG, SIGKILL);
		(void)dup2(in[0], STDIN_FILENO);
		(void)dup2(out[1], STDOUT_FILENO);
		(void)execl("/proc/self/exe", "peer", "peer", (char *)NULL);
		_exit(127);
	}
	(void)close(in[0]);
	(void)close(out[1]);
	peer->in = fdopen(in[1], "w");
	peer->out = fdopen(out[0], "r");
	assert_true(peer->in && peer->out);
	assert_non_null(fgets(line, sizeof(line), peer->out));
	assert_int_equal(
	    sscanf(line, "%63s %" SCNu64 " %" SCNu64, peer->name, &peer->base, &peer->readonly), 3);
}

void peer_close(struct peer *peer)
{
	int status = -1;

	(void)kill(peer->pid, SIGCONT);
	(void)fclose(peer->in);
	assert_int_equal(waitpid(peer->pid, &status, 0), peer->pid);
	(void)fclose(peer->out);
	assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

void peer_kill(struct peer *peer)
{
	assert_int_equal(kill(peer->pid, SIGKILL), 0);
	assert_int_equal(waitpid(peer->pid, NULL, 0), peer->pid);
	(void)fclose(peer->in);
	(void)fclose(peer->out);
}

void peer_stop(struct peer *peer)
{
	int status;

	assert_int_equal(kill(peer->pid, SIGSTOP), 0);
	assert_int_equal(waitpid(peer->pid, &status, WUNTRACED), peer->pid);
	assert_true(WIFSTOPPED(status));
}

void peer_go(struct peer *peer)
{
	assert_int_equal(kill(peer->pid, SIGCONT), 0);
}

void world_open(struct world *w)
{
	struct mc_diag diag = {.text = ""};

	peer_open(&w->peer);
	w->eng = engine_open();
	assert_non_null(w->eng);
	assert_int_equal(mc_segment_open(w->eng, w->peer.name, 0, &diag, &w->seg), 0);
}

void world_open_tcp(struct world *w)
{
	bool was_set = getenv("MC_FORCE_TCP") != NULL;
	struct mc_diag diag = {.text = ""};

	peer_open(&w->peer);
	assert_int_equal(setenv("MC_FORCE_TCP", "1", 1), 0);
	w->eng = engine_open();
	if (!was_set)
		assert_int_equal(unsetenv("MC_FORCE_TCP"), 0);
	assert_non_null(w->eng);
	assert_int_equal(mc_segment_open(w->eng, w->peer.name, 0, &diag, &w->seg), 0);
}

void world_close(struct world *w)
{
	mc_engine_close(w->eng);
	peer_close(&w->peer);
}

uint64_t moved_by(struct mc_engine *eng, const char *transport)
{
	char *text = mc_metrics_text(eng), *line, *rest = NULL, label[64];
	uint64_t sum = 0;

	assert_non_null(text);
	(void)snprintf(label, sizeof(label), "transport=\"%s\"", transport);
	for (line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest))
		if (strncmp(line, "mc_transfer_bytes_total{", 24) == 0 && strstr(line, label))
			sum += strtoull(strrchr(line, ' ') + 1, NULL, 10);
	mc_text_free(text);
	return sum;
}

/* ---- transfers ---- */

struct mc_group *one(struct one *o, unsigned op, int32_t seg, void *local, uint64_t remote,
		     uint64_t len, uint64_t deadline_ns)
{
	o->local = (struct mc_iov){(uintptr_t)local, len};
	o->remote = (struct mc_iov){remote, len};
	o->t = (struct mc_transfer){.op = (uint8_t)op,
				    .segment = seg,
				    .nlocal = 1,
				    .nremote = 1,
				    .local = &o->local,
				    .remote = &o->remote};
	o->g = (struct mc_group){.size = sizeof(o->g),
				 .n = 1,
				 .transfers = &o->t,
				 .deadline_ns = deadline_ns,
				 .priority = MC_PRIO_NORMAL};
	return &o->g;
}

int move(struct mc_engine *eng, unsigned op, int32_t seg, void *local, uint64_t remote,
	 uint64_t len)
{
	struct one o;

	return mc_transfer_sync(eng, one(&o, op, seg, local, remote, len, 0), NULL);
}

bool is_filled_at(struct mc_engine *eng, int32_t seg, uint64_t remote, size_t len, unsigned seed)
{
	uint8_t *got = calloc(1, len);
	bool is_it =
	    got && move(eng, MC_READ, seg, got, remote, len) == 0 && is_filled(got, len, seed);

	free(got);
	return is_it;
}
