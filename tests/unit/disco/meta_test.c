/*
 * meta_test.c: the metadata services as they really are: our HTTP server, Debian's etcd-server and
 * redis-server, started on free ports, killed and stopped in the middle.
 */
#include "disco/meta.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/mem.h"
#include "base/str.h"
#include "disco/base64.h"
#include "io/sock.h"

#define UP_NS (40 * MC_NS_PER_S)
#define ARGS_MAX 24

enum kind { KIND_HTTP, KIND_ETCD, KIND_REDIS, KIND_COUNT };

static const char *const kind_name[] = {"http", "etcd", "redis"};

struct service {
	enum kind kind;
	uint16_t port, peer_port;
	char dir[64];
	char conn[128];
	const char *password;
	pid_t pid;
};

static struct mc_meta_conf conf; /* as the environment of a user without settings has it */

static uint64_t in_ms(uint64_t ms)
{
	return mc_now_ns() + ms * MC_NS_PER_MS;
}

static uint16_t free_port(void)
{
	struct mc_addr host, bound;
	int fd;

	assert_int_equal(mc_addr_parse("127.0.0.1", 0, &host), 0);
	assert_int_equal(mc_sock_listen_range(&host, 20000, 29999, 1, &fd, &bound), 0);
	mc_fd_close(&fd);
	return mc_addr_port(&bound);
}

/* A file of the repository: __FILE__ is absolute, or relative to a folder above the test program.
 */
static bool source_path(const char *rest, char *ret, size_t cap)
{
	int root_len = (int)(strstr(__FILE__, "tests/unit/disco/") - __FILE__);
	char at[PATH_MAX / 2] = ".";
	ssize_t n = readlink("/proc/self/exe", at, sizeof(at) - 1);

	if (n > 0)
		at[n] = '\0';
	do {
		if (__FILE__[0] == '/')
			at[0] = '\0';
		n = snprintf(ret, cap, "%s%s%.*s%s", at, at[0] ? "/" : "", root_len, __FILE__,
			     rest);
		if (n > 0 && (size_t)n < cap && access(ret, R_OK) == 0)
			return true;
		*(strrchr(at, '/') ? strrchr(at, '/') : at) = '\0';
	} while (at[0]);
	return false;
}

static bool find_program(const char *const *paths, const char **ret)
{
	for (; *paths; paths++) {
		if (access(*paths, X_OK) == 0) {
			*ret = *paths;
			return true;
		}
	}
	return false;
}

static bool arguments(const struct service *s, const char **argv, char text[][128])
{
	static const char *const etcd[] = {"/usr/bin/etcd", "/usr/local/bin/etcd", NULL};
	static const char *const redis[] = {"/usr/bin/redis-server", "/usr/local/bin/redis-server",
					    NULL};
	static char script[2 * PATH_MAX];
	int n = 0;

	(void)snprintf(text[0], 128, "%u", s->port);
	(void)snprintf(text[1], 128, "http://127.0.0.1:%u", s->port);
	(void)snprintf(text[2], 128, "http://127.0.0.1:%u", s->peer_port);
	(void)snprintf(text[3], 128, "default=http://127.0.0.1:%u", s->peer_port);
	switch (s->kind) {
	case KIND_HTTP:
		if (!source_path("python/mooncake/http_metadata_server.py", script, sizeof(script)))
			return false;
		argv[n++] = "/usr/bin/env";
		argv[n++] = "python3";
		argv[n++] = script;
		argv[n++] = "--host";
		argv[n++] = "127.0.0.1";
		argv[n++] = "--port";
		argv[n++] = text[0];
		break;
	case KIND_ETCD:
		if (!find_program(etcd, &argv[n++]))
			return false;
		argv[n++] = "--data-dir";
		argv[n++] = s->dir;
		argv[n++] = "--listen-client-urls";
		argv[n++] = text[1];
		argv[n++] = "--advertise-client-urls";
		argv[n++] = text[1];
		argv[n++] = "--listen-peer-urls";
		argv[n++] = text[2];
		argv[n++] = "--initial-advertise-peer-urls";
		argv[n++] = text[2];
		argv[n++] = "--initial-cluster";
		argv[n++] = text[3];
		argv[n++] = "--unsafe-no-fsync=true";
		break;
	case KIND_REDIS:
		if (!find_program(redis, &argv[n++]))
			return false;
		argv[n++] = "--port";
		argv[n++] = text[0];
		argv[n++] = "--bind";
		argv[n++] = "127.0.0.1";
		argv[n++] = "--dir";
		argv[n++] = s->dir;
		argv[n++] = "--save";
		argv[n++] = "";
		argv[n++] = "--requirepass";
		argv[n++] = s->password ? s->password : "";
		break;
	case KIND_COUNT:
		return false;
	}
	argv[n] = NULL;
	return true;
}

/* Runs in the child. */
static void become(const char *const *argv, pid_t parent)
{
	int null = open("/dev/null", O_RDWR);

	(void)prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent)
		_exit(1);
	(void)dup2(null, 0);
	(void)dup2(null, 1);
	(void)dup2(null, 2);
	(void)execv(argv[0], (char *const *)argv);
	_exit(127);
}

/* A call that answers, also "not found", shows that the service is up. */
static void wait_until_up(const struct service *s)
{
	uint64_t limit = mc_now_ns() + UP_NS;
	struct mc_meta_conf mine = conf;
	struct mc_diag diag;
	struct mc_meta *meta;
	struct mc_meta_rpc rpc;
	int rc;

	if (s->password)
		(void)mc_strlcpy(mine.redis_password, sizeof(mine.redis_password), s->password);
	assert_int_equal(mc_meta_open(s->conn, &mine, &meta, &diag), 0);
	do {
		(void)poll(NULL, 0, 20);
		rc = mc_meta_rpc_get(meta, "nobody", in_ms(500), &rpc, &diag);
	} while (rc != -MC_E_NOENT && mc_now_ns() < limit);
	mc_meta_close(meta);
	if (rc != -MC_E_NOENT)
		fail_msg("%s did not start: %s", s->conn, diag.text);
}

static bool service_run(struct service *s)
{
	const char *argv[ARGS_MAX];
	char text[4][128];
	pid_t parent = getpid();

	if (!arguments(s, argv, text)) {
		print_message("%s server is not installed\n", kind_name[s->kind]);
		return false;
	}
	s->pid = fork();
	assert_true(s->pid >= 0);
	if (s->pid == 0)
		become(argv, parent);
	wait_until_up(s);
	return true;
}

static void service_kill(struct service *s)
{
	if (s->pid <= 0)
		return;
	(void)kill(s->pid, SIGKILL);
	(void)waitpid(s->pid, NULL, 0);
	s->pid = 0;
}

/* Returns once every thread stands still: kill() alone does not wait for that. */
static void service_stop(const struct service *s)
{
	int status;

	assert_int_equal(kill(s->pid, SIGSTOP), 0);
	assert_int_equal(waitpid(s->pid, &status, WUNTRACED), s->pid);
	assert_true(WIFSTOPPED(status));
}

static bool service_start(struct service *s, enum kind kind)
{
	static const char *const scheme[] = {"http", "etcd", "redis"};

	s->kind = kind;
	s->port = free_port();
	s->peer_port = free_port();
	(void)snprintf(s->dir, sizeof(s->dir), "/tmp/mc-meta-test-XXXXXX");
	assert_non_null(mkdtemp(s->dir));
	(void)snprintf(s->conn, sizeof(s->conn), "%s://127.0.0.1:%u%s", scheme[kind], s->port,
		       kind == KIND_HTTP ? "/metadata" : "");
	return service_run(s);
}

static void remove_tree(const char *path)
{
	char child[PATH_MAX];
	struct dirent *d;
	DIR *dir = opendir(path);

	while (dir && (d = readdir(dir))) {
		if (strcmp(d->d_name, ".") == 0 || strcmp(d->d_name, "..") == 0)
			continue;
		(void)snprintf(child, sizeof(child), "%s/%s", path, d->d_name);
		if (unlink(child) < 0)
			remove_tree(child);
	}
	if (dir)
		closedir(dir);
	(void)rmdir(path);
}

static void service_end(struct service *s)
{
	service_kill(s);
	remove_tree(s->dir);
}

static struct mc_meta *meta_of(const struct service *s)
{
	struct mc_meta *meta = NULL;
	struct mc_diag diag = {.text = ""};

	if (mc_meta_open(s->conn, &conf, &meta, &diag) < 0)
		fail_msg("%s", diag.text);
	return meta;
}

static void put_text(struct mc_meta *meta, const char *name, const char *text)
{
	struct mc_diag diag = {.text = ""};

	if (mc_meta_segment_put(meta, name, text, strlen(text), in_ms(5000), &diag) < 0)
		fail_msg("%s", diag.text);
}

static void assert_text(struct mc_meta *meta, const char *name, const char *want)
{
	struct mc_diag diag = {.text = ""};
	char *got;
	size_t len;

	if (mc_meta_segment_get(meta, name, in_ms(5000), &got, &len, &diag) < 0)
		fail_msg("%s", diag.text);
	assert_int_equal(len, strlen(want));
	assert_string_equal(got, want);
	mc_free(got);
}

static void values_round_trip(struct service *s)
{
	static const char *const names[] = {"127.0.0.1:15001", "[fd00::1]:5", "a/b",
					    "sp ace&key=%41+", "gr\xc3\xbc\xc3\x9f"};
	struct mc_meta *meta = meta_of(s);
	size_t len = 1 << 20, got_len;
	char *big = mc_calloc(len + 1, 1), *got;
	struct mc_diag diag;

	memset(big, 'x', len);
	for (size_t i = 0; i < MC_ARRAY_LEN(names); i++)
		put_text(meta, names[i], names[i]);
	for (size_t i = 0; i < MC_ARRAY_LEN(names); i++) {
		assert_text(meta, names[i], names[i]);
		assert_int_equal(mc_meta_segment_del(meta, names[i], in_ms(5000), &diag), 0);
		assert_int_equal(
		    mc_meta_segment_get(meta, names[i], in_ms(5000), &got, &got_len, &diag),
		    -MC_E_NOENT);
		assert_non_null(strstr(diag.text, names[i]));
		assert_int_equal(mc_meta_segment_del(meta, names[i], in_ms(5000), &diag), 0);
	}
	put_text(meta, "n", "1");
	put_text(meta, "n", big);
	assert_text(meta, "n", big);
	put_text(meta, "n", "");
	assert_text(meta, "n", "");
	mc_free(big);
	mc_meta_close(meta);
}

static void server_entries_replace_their_predecessors(struct service *s)
{
	struct mc_meta *meta = meta_of(s);
	struct mc_meta_rpc a = {.host = "10.0.0.1", .port = 15001}, got;
	struct mc_diag diag = {.text = ""};

	assert_int_equal(mc_meta_rpc_put(meta, "node:1", &a, in_ms(5000), &diag), 0);
	a.port = 15002;
	assert_int_equal(mc_meta_rpc_put(meta, "node:1", &a, in_ms(5000), &diag), 0);
	assert_int_equal(mc_meta_rpc_get(meta, "node:1", in_ms(5000), &got, &diag), 0);
	assert_string_equal(got.host, "10.0.0.1");
	assert_int_equal(got.port, 15002);
	assert_int_equal(mc_meta_rpc_del(meta, "node:1", in_ms(5000), &diag), 0);
	assert_int_equal(mc_meta_rpc_get(meta, "node:1", in_ms(5000), &got, &diag), -MC_E_NOENT);
	mc_meta_close(meta);
}

static void clusters_do_not_see_each_other(struct service *s)
{
	struct mc_meta_conf other = conf;
	struct mc_meta *a = meta_of(s), *b;
	struct mc_diag diag;
	char *got;
	size_t len;

	(void)mc_strlcpy(other.cluster, sizeof(other.cluster), "c1");
	assert_int_equal(mc_meta_open(s->conn, &other, &b, &diag), 0);
	put_text(b, "only-c1", "x");
	assert_int_equal(mc_meta_segment_get(a, "only-c1", in_ms(5000), &got, &len, &diag),
			 -MC_E_NOENT);
	assert_text(a, "c1/ram/only-c1", "x");
	mc_meta_close(a);
	mc_meta_close(b);
}

/* Fails, in time, saying where. */
static void assert_down(struct mc_meta *meta, const struct service *s, uint64_t limit_ms)
{
	struct mc_diag diag = {.text = ""};
	uint64_t start = mc_now_ns();
	char port[16], *got;
	size_t len;

	(void)snprintf(port, sizeof(port), "%u", s->port);
	assert_int_equal(mc_meta_segment_get(meta, "n", in_ms(limit_ms), &got, &len, &diag),
			 -MC_E_METADATA);
	assert_true(mc_now_ns() - start < (limit_ms + 5000) * MC_NS_PER_MS);
	if (!strstr(diag.text, port) || !strstr(diag.text, "mooncake/ram/n"))
		fail_msg("%s", diag.text);
}

static void killed_service_is_an_error_and_works_again_when_it_is_back(struct service *s)
{
	struct mc_meta *meta = meta_of(s);

	put_text(meta, "n", "before");
	service_kill(s);
	assert_down(meta, s, 3000);
	assert_true(service_run(s));
	put_text(meta, "n", "after");
	assert_text(meta, "n", "after");
	mc_meta_close(meta);
}

static void stopped_service_ends_the_call_at_its_deadline(struct service *s)
{
	struct mc_meta *meta = meta_of(s);

	put_text(meta, "n", "x");
	service_stop(s);
	assert_down(meta, s, 200);
	assert_int_equal(kill(s->pid, SIGCONT), 0);
	assert_text(meta, "n", "x");
	mc_meta_close(meta);
}

static void check_service(enum kind kind)
{
	struct service s = {.pid = 0};
	bool is_there = service_start(&s, kind);

	if (is_there) {
		values_round_trip(&s);
		server_entries_replace_their_predecessors(&s);
		clusters_do_not_see_each_other(&s);
		stopped_service_ends_the_call_at_its_deadline(&s);
		killed_service_is_an_error_and_works_again_when_it_is_back(&s);
	}
	service_end(&s);
	if (!is_there)
		skip();
}

static void http_service_serves_dies_and_comes_back(void **state)
{
	check_service(KIND_HTTP);
	(void)state;
}

static void etcd_serves_dies_and_comes_back(void **state)
{
	check_service(KIND_ETCD);
	(void)state;
}

static void redis_serves_dies_and_comes_back(void **state)
{
	check_service(KIND_REDIS);
	(void)state;
}

static void etcd_call_goes_on_to_the_next_endpoint(void **state)
{
	struct service a = {.pid = 0}, b = {.pid = 0};
	struct mc_diag diag = {.text = ""};
	struct mc_meta *meta;
	char conn[128];

	if (!service_start(&a, KIND_ETCD)) {
		service_end(&a);
		skip();
	}
	assert_true(service_start(&b, KIND_ETCD));
	(void)snprintf(conn, sizeof(conn), "127.0.0.1:%u, 127.0.0.1:%u", a.port, b.port);
	assert_int_equal(mc_meta_open(conn, &conf, &meta, &diag), 0);
	put_text(meta, "n", "in a");
	service_stop(&a);
	put_text(meta, "n", "in b");
	service_kill(&a);
	assert_text(meta, "n", "in b");
	service_kill(&b);
	assert_down(meta, &a, 2000);
	mc_meta_close(meta);
	service_end(&a);
	service_end(&b);
	(void)state;
}

static void redis_password_and_database_are_used(void **state)
{
	struct service s = {.pid = 0, .password = "se cret"};
	struct mc_meta_conf mine = conf;
	struct mc_diag diag = {.text = ""};
	struct mc_meta *meta;
	char *got;
	size_t len;

	if (!service_start(&s, KIND_REDIS)) {
		service_end(&s);
		skip();
	}
	meta = meta_of(&s);
	assert_int_equal(mc_meta_segment_get(meta, "n", in_ms(5000), &got, &len, &diag),
			 -MC_E_METADATA);
	assert_non_null(strstr(diag.text, "NOAUTH"));
	mc_meta_close(meta);
	(void)mc_strlcpy(mine.redis_username, sizeof(mine.redis_username), "default");
	(void)mc_strlcpy(mine.redis_password, sizeof(mine.redis_password), "se cret");
	mine.redis_db = 3;
	assert_int_equal(mc_meta_open(s.conn, &mine, &meta, &diag), 0);
	put_text(meta, "n", "in 3");
	mc_meta_close(meta);
	mine.redis_db = 0;
	assert_int_equal(mc_meta_open(s.conn, &mine, &meta, &diag), 0);
	assert_int_equal(mc_meta_segment_get(meta, "n", in_ms(5000), &got, &len, &diag),
			 -MC_E_NOENT);
	mc_meta_close(meta);
	service_end(&s);
	(void)state;
}

static void connection_string_that_means_nothing_is_refused(void **state)
{
	static const char *const rows[] = {"",	      "ftp://x", "redis://", "redis://h:port",
					   "etcd://", "a:1,,b:2"};
	struct mc_diag diag;
	struct mc_meta *meta;

	for (size_t i = 0; i < MC_ARRAY_LEN(rows); i++) {
		diag.text[0] = '\0';
		assert_int_equal(mc_meta_open(rows[i], &conf, &meta, &diag), -MC_E_INVAL);
		assert_true(diag.text[0]);
	}
	assert_true(mc_meta_is_p2p("P2PHANDSHAKE"));
	assert_false(mc_meta_is_p2p("127.0.0.1:2379"));
	(void)state;
}

static void base64_is_rfc_4648(void **state)
{
	static const char *const rows[][2] = {
	    {"", ""},	     {"f", "Zg=="},	   {"fo", "Zm8="},
	    {"foo", "Zm9v"}, {"foob", "Zm9vYg=="}, {"foobar", "Zm9vYmFy"}};
	static const char *const wrong[] = {"Z", "Zg=", "Zg===", "Z*==", "=Zg=", "Zg==Zg=="};
	struct mc_str text;
	size_t len;
	char *got;

	for (size_t i = 0; i < MC_ARRAY_LEN(rows); i++) {
		mc_str_init(&text, 100);
		mc_base64_encode(&text, rows[i][0], strlen(rows[i][0]));
		assert_string_equal(mc_str_text(&text), rows[i][1]);
		mc_str_fini(&text);
		assert_int_equal(mc_base64_decode(rows[i][1], strlen(rows[i][1]), &got, &len), 0);
		assert_string_equal(got, rows[i][0]);
		assert_int_equal(len, strlen(rows[i][0]));
		mc_free(got);
	}
	for (size_t i = 0; i < MC_ARRAY_LEN(wrong); i++)
		assert_int_equal(mc_base64_decode(wrong[i], strlen(wrong[i]), &got, &len),
				 -MC_E_INVAL);
	(void)state;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(connection_string_that_means_nothing_is_refused),
	    cmocka_unit_test(base64_is_rfc_4648),
	    cmocka_unit_test(http_service_serves_dies_and_comes_back),
	    cmocka_unit_test(redis_serves_dies_and_comes_back),
	    cmocka_unit_test(redis_password_and_database_are_used),
	    cmocka_unit_test(etcd_serves_dies_and_comes_back),
	    cmocka_unit_test(etcd_call_goes_on_to_the_next_endpoint),
	};

	mc_meta_conf_load(&conf);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
