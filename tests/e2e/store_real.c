/*
 * store_real.c: see store_real.h.
 */
#include "store_real.h"

#include <setjmp.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>
#include <mooncake/engine.h>

#include "base/clock.h"
#include "base/mem.h"
#include "io/sock.h"

#define START_NS (10 * MC_NS_PER_S)

static const char *program;

void real_init(const char *master_program)
{
	program = master_program;
	(void)signal(SIGPIPE, SIG_IGN);
}

bool real_args(int argc, char **argv, bool *ret_is_long, uint64_t *seed, const char **ret_test)
{
	if (argc < 2) {
		(void)fprintf(stderr, "usage: %s MOONCAKE_MASTER [--long] [--seed=N] [TEST]\n",
			      argv[0]);
		return false;
	}
	real_init(argv[1]);
	for (int i = 2; i < argc; i++) {
		if (strcmp(argv[i], "--long") == 0)
			*ret_is_long = true;
		else if (strncmp(argv[i], "--seed=", 7) == 0)
			*seed = strtoull(argv[i] + 7, NULL, 10);
		else
			*ret_test = argv[i];
	}
	(void)printf("again: %s %s%s --seed=%llu %s\n", argv[0], argv[1],
		     *ret_is_long ? " --long" : "", (unsigned long long)*seed,
		     *ret_test ? *ret_test : "");
	(void)fflush(stdout);
	return true;
}

bool real_is_owner(int argc, char **argv, int *ret)
{
	struct mc_store_opts opts = {.size = sizeof(opts)};
	struct mc_store *st;
	struct mc_diag diag;
	char c;

	if (argc != 5 || strcmp(argv[1], "--owner") != 0)
		return false;
	opts.master = argv[2];
	opts.segment_bytes = strtoull(argv[3], NULL, 10);
	opts.name = argv[4];
	*ret = 1;
	if (mc_store_open(&opts, &diag, &st) < 0) {
		(void)fprintf(stderr, "owner: %s\n", diag.text);
		return true;
	}
	(void)printf("%s\n", mc_store_hostname(st));
	(void)fflush(stdout);
	while (read(STDIN_FILENO, &c, 1) > 0)
		;
	mc_store_close(st);
	*ret = 0;
	return true;
}

void real_spawn(struct real_proc *p, const char *path, char *const argv[], char *line, size_t cap)
{
	int in[2], out[2];
	size_t n = 0;

	assert_int_equal(pipe2(in, O_CLOEXEC), 0);
	assert_int_equal(pipe2(out, O_CLOEXEC), 0);
	p->pid = fork();
	assert_true(p->pid >= 0);
	if (p->pid == 0) {
		(void)prctl(PR_SET_PDEATHSIG, SIGKILL);
		(void)dup2(in[0], STDIN_FILENO);
		(void)dup2(out[1], STDOUT_FILENO);
		(void)execv(path, argv);
		_exit(127);
	}
	(void)close(in[0]);
	(void)close(out[1]);
	p->in = in[1];
	while (n + 1 < cap && read(out[0], line + n, 1) == 1 && line[n] != '\n')
		n++;
	line[n] = '\0';
	(void)close(out[0]);
	if (n == 0)
		fail_msg("%s does not start", path);
}

void real_reap(struct real_proc *p, int signo)
{
	int status;

	if (p->pid == 0)
		return;
	if (signo == 0)
		signo = p->signo;
	if (signo)
		(void)kill(p->pid, signo);
	(void)close(p->in);
	assert_int_equal(waitpid(p->pid, &status, 0), p->pid);
	p->pid = 0;
}

void real_master_start(struct real *c)
{
	char port[64], dir[128], lease[64], line[256], more[REAL_FLAGS_MAX][64];
	char *argv[6 + REAL_FLAGS_MAX + 1] = {"mooncake_master", port,	"--metrics_port=0",
					      "--client_ttl=3",	 lease, dir};

	(void)snprintf(port, sizeof(port), "--rpc_port=%s", strchr(c->master, ':') + 1);
	(void)snprintf(dir, sizeof(dir), "--state_dir=%s", c->dir);
	(void)snprintf(lease, sizeof(lease), "--default_kv_lease_ttl=%u", c->lease_ms);
	for (unsigned i = 0; i < REAL_FLAGS_MAX && c->flags[i]; i++) {
		(void)snprintf(more[i], sizeof(more[i]), "%s", c->flags[i]);
		argv[6 + i] = more[i];
	}
	real_spawn(&c->m, program, argv, line, sizeof(line));
}

void real_master_kill(struct real *c)
{
	real_reap(&c->m, SIGKILL);
}

unsigned real_owner_start(struct real *c, uint64_t bytes)
{
	unsigned i = c->nowners++;

	assert_true(i < REAL_OWNERS_MAX);
	real_owner_again(c, i, bytes);
	return i;
}

void real_owner_again(struct real *c, unsigned i, uint64_t bytes)
{
	char size[32], host[16];
	char *argv[] = {"owner", "--owner", c->master, size, host, NULL};

	(void)snprintf(host, sizeof(host), "127.0.0.%u", c->has_hosts ? 2 + i : 1);
	(void)snprintf(size, sizeof(size), "%llu", (unsigned long long)bytes);
	real_spawn(&c->owners[i], "/proc/self/exe", argv, c->segments[i], sizeof(c->segments[i]));
}

unsigned real_node_start(struct real *c, const char *client_program, uint64_t bytes,
			 const char *dir, uint64_t quota)
{
	char size[64], master[64], path[256], limit[32], line[256];
	char *argv[] = {"mooncake_client",
			"--host=127.0.0.1",
			"--enable_offload=true",
			size,
			master,
			path,
			NULL};
	unsigned i = c->nowners++;

	assert_true(i < REAL_OWNERS_MAX);
	(void)snprintf(size, sizeof(size), "--global_segment_size=%llu", (unsigned long long)bytes);
	(void)snprintf(master, sizeof(master), "--master_server_address=%s", c->master);
	(void)snprintf(path, sizeof(path), "--ssd_offload_path=%s", dir);
	(void)snprintf(limit, sizeof(limit), "%llu", (unsigned long long)quota);
	assert_int_equal(setenv("MOONCAKE_OFFLOAD_TOTAL_SIZE_LIMIT_BYTES", limit, 1), 0);
	real_spawn(&c->owners[i], client_program, argv, line, sizeof(line));
	c->owners[i].signo = SIGTERM;
	return i;
}

void real_owner_kill(struct real *c, unsigned i)
{
	real_reap(&c->owners[i], SIGKILL);
}

void real_owner_end(struct real *c, unsigned i)
{
	int status;

	assert_int_equal(kill(c->owners[i].pid, SIGTERM), 0);
	assert_int_equal(waitpid(c->owners[i].pid, &status, 0), c->owners[i].pid);
	assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
	(void)close(c->owners[i].in);
	c->owners[i].pid = 0;
}

void real_stop(struct real_proc *p)
{
	int status;

	assert_int_equal(kill(p->pid, SIGSTOP), 0);
	assert_int_equal(waitpid(p->pid, &status, WUNTRACED), p->pid);
	assert_true(WIFSTOPPED(status));
}

void real_owner_stop(struct real *c, unsigned i)
{
	real_stop(&c->owners[i]);
}

struct real *real_open(unsigned nowners, uint64_t bytes)
{
	return real_open_leased(nowners, bytes, 300);
}

struct real *real_open_leased(unsigned nowners, uint64_t bytes, unsigned lease_ms)
{
	return real_open_with(nowners, bytes, lease_ms, NULL);
}

struct real *real_open_with(unsigned nowners, uint64_t bytes, unsigned lease_ms,
			    const char *const *flags)
{
	struct real *c = mc_calloc(1, sizeof(*c));
	struct mc_addr host, bound;
	int fd;

	assert_non_null(c);
	c->lease_ms = lease_ms;
	for (unsigned i = 0; flags && flags[i]; i++) {
		assert_true(i < REAL_FLAGS_MAX);
		c->flags[i] = flags[i];
	}
	(void)snprintf(c->dir, sizeof(c->dir), "/tmp/mc-store-XXXXXX");
	assert_non_null(mkdtemp(c->dir));
	/* A port that is free now: below those that the kernel gives to others meanwhile. */
	assert_int_equal(mc_addr_parse("127.0.0.1:0", 0, &host), 0);
	assert_int_equal(mc_sock_listen_range(&host, 20000, 30000, 1, &fd, &bound), 0);
	mc_fd_close(&fd);
	(void)snprintf(c->master, sizeof(c->master), "127.0.0.1:%u", mc_addr_port(&bound));
	real_master_start(c);
	for (unsigned i = 0; i < nowners; i++)
		(void)real_owner_start(c, bytes);
	return c;
}

void real_close(struct real *c)
{
	char path[512];

	for (unsigned i = 0; i < c->nowners; i++)
		real_reap(&c->owners[i], 0);
	real_reap(&c->m, SIGTERM);
	(void)snprintf(path, sizeof(path), "rm -rf '%s'", c->dir);
	assert_int_equal(system(path), 0);
	mc_free(c);
}

struct mc_store *real_store(struct real *c, uint32_t timeout_ms, uint64_t segment_bytes)
{
	struct mc_store_opts opts = {.size = sizeof(opts),
				     .name = "127.0.0.1",
				     .master = c->master,
				     .segment_bytes = segment_bytes,
				     .buffer_bytes = 256 << 20,
				     .timeout_ms = timeout_ms};
	struct mc_store *st;
	struct mc_diag diag;

	if (mc_store_open(&opts, &diag, &st) < 0)
		fail_msg("%s", diag.text);
	return st;
}

uint64_t real_used(struct mc_store *st)
{
	char *json = mc_store_segments_json(st), *at = json;
	uint64_t used = 0;

	if (!json)
		return UINT64_MAX;
	while ((at = strstr(at, "\"used\":"))) {
		at += strlen("\"used\":");
		used += strtoull(at, NULL, 10);
	}
	mc_text_free(json);
	return used;
}
