/*
 * log_test.c: levels, rate limit, sink, file.
 */
#include "base/log.h"

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/mem.h"

struct capture {
	int lines;
	enum mc_log_level level;
	char last[4096];
};

static void capture_line(void *user, enum mc_log_level level, const char *line)
{
	struct capture *cap = user;

	cap->lines++;
	cap->level = level;
	(void)snprintf(cap->last, sizeof(cap->last), "%s", line);
}

static void log_writes_logfmt_to_the_sink(void **state)
{
	struct capture cap = {0};

	mc_log_sink_set(capture_line, &cap);
	mc_log_warn("rail down", "dev=%s port=%u", "mlx5_0", 1u);
	mc_log_sink_set(NULL, NULL);
	assert_int_equal(cap.lines, 1);
	assert_int_equal(cap.level, MC_LOG_WARN);
	assert_memory_equal(cap.last, "time=2", 6);
	assert_non_null(strstr(cap.last, "level=warn "));
	assert_non_null(strstr(cap.last, "msg=\"rail down\" dev=mlx5_0 port=1"));
	(void)state;
}

static void log_drops_lines_below_its_level(void **state)
{
	struct capture cap = {0};

	mc_log_sink_set(capture_line, &cap);
	mc_log_level_set(MC_LOG_ERROR);
	mc_log_warn("unseen", "x=%d", 1);
	mc_log_level_set(MC_LOG_DEBUG);
	mc_log_debug("seen", "x=%d", 1);
	mc_log_level_set(MC_LOG_OFF);
	mc_log_error("unseen", "x=%d", 1);
	mc_log_level_set(MC_LOG_WARN);
	mc_log_sink_set(NULL, NULL);
	assert_int_equal(cap.lines, 1);
	(void)state;
}

static void log_replaces_control_characters(void **state)
{
	struct capture cap = {0};

	mc_log_sink_set(capture_line, &cap);
	mc_log_warn("foreign name", "name=%s", "a\nlevel=error\x1b[2J");
	mc_log_sink_set(NULL, NULL);
	assert_non_null(strstr(cap.last, "name=a?level=error?[2J"));
	(void)state;
}

static void log_cuts_a_long_line(void **state)
{
	struct capture cap = {0};
	char longer[8000];

	memset(longer, 'x', sizeof(longer) - 1);
	longer[sizeof(longer) - 1] = '\0';
	mc_log_sink_set(capture_line, &cap);
	mc_log_warn("long", "text=%s", longer);
	mc_log_sink_set(NULL, NULL);
	assert_int_equal(cap.lines, 1);
	assert_in_range(strlen(cap.last), 1000, 2048);
	(void)state;
}

static void log_site_is_silent_after_its_quota_and_reports_the_loss(void **state)
{
	struct capture cap = {0};
	struct mc_log_site site = {0};

	mc_log_sink_set(capture_line, &cap);
	for (int i = 0; i < 1000; i++)
		mc_log_write(&site, MC_LOG_WARN, "flood", "i=%d", i);
	assert_in_range(cap.lines, 20,
			60); /* 60: the second may have turned, twice on a slow day */
	atomic_store(&site.window_s, 0);
	mc_log_write(&site, MC_LOG_WARN, "flood", "i=%d", -1);
	mc_log_sink_set(NULL, NULL);
	assert_non_null(strstr(cap.last, "i=-1 dropped=9"));
	(void)state;
}

static void log_level_names_are_upstreams(void **state)
{
	assert_int_equal(mc_log_level_parse("TRACE"), MC_LOG_TRACE);
	assert_int_equal(mc_log_level_parse("WARNING"), MC_LOG_WARN);
	assert_int_equal(mc_log_level_parse("warn"), MC_LOG_WARN);
	assert_int_equal(mc_log_level_parse("Error"), MC_LOG_ERROR);
	assert_int_equal(mc_log_level_parse("off"), MC_LOG_OFF);
	assert_int_equal(mc_log_level_parse(""), -1);
	assert_int_equal(mc_log_level_parse("loud"), -1);
	(void)state;
}

static void log_environment_sets_level_and_file(void **state)
{
	char dir[] = "/tmp/mc-log-test-XXXXXX";
	struct capture cap = {0};
	char path[256], text[512] = "";
	FILE *file;

	assert_non_null(mkdtemp(dir));
	assert_int_equal(setenv("MC_LOG_LEVEL", "info", 1), 0);
	assert_int_equal(setenv("MC_LOG_DIR", dir, 1), 0);
	mc_log_sink_set(capture_line, &cap);
	assert_int_equal(mc_log_env_load(), 0);
	mc_log_info("to the file", "k=%d", 3);
	assert_int_equal(unsetenv("MC_LOG_LEVEL"), 0);
	assert_int_equal(unsetenv("MC_LOG_DIR"), 0);
	assert_int_equal(mc_log_env_load(), 0);
	mc_log_info("below", "k=%d", 4);
	mc_log_sink_set(NULL, NULL);
	assert_int_equal(cap.lines, 1);
	(void)snprintf(path, sizeof(path), "%s/mooncake-%ld.log", dir, (long)getpid());
	file = fopen(path, "r");
	assert_non_null(file);
	assert_non_null(fgets(text, sizeof(text), file));
	assert_int_equal(fclose(file), 0);
	text[strlen(text) - 1] = '\0';
	assert_string_equal(text, cap.last);
	assert_int_equal(unlink(path), 0);
	assert_int_equal(rmdir(dir), 0);
	(void)state;
}

static void log_file_turns_over_at_its_limit(void **state)
{
	char dir[] = "/tmp/mc-log-test-XXXXXX";
	struct capture cap = {0};
	char path[256], old[260];
	struct stat st;
	int fd;

	assert_non_null(mkdtemp(dir));
	(void)snprintf(path, sizeof(path), "%s/mooncake-%ld.log", dir, (long)getpid());
	(void)snprintf(old, sizeof(old), "%s.1", path);
	fd = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
	assert_int_not_equal(fd, -1);
	assert_int_equal(ftruncate(fd, (64 << 20) - 10), 0);
	assert_int_equal(close(fd), 0);
	assert_int_equal(setenv("MC_LOG_DIR", dir, 1), 0);
	mc_log_sink_set(capture_line, &cap);
	assert_int_equal(mc_log_env_load(), 0);
	mc_log_warn("one too many", "k=%d", 3);
	assert_int_equal(unsetenv("MC_LOG_DIR"), 0);
	assert_int_equal(mc_log_env_load(), 0);
	mc_log_sink_set(NULL, NULL);
	assert_int_equal(stat(old, &st), 0);
	assert_int_equal(st.st_size, (64 << 20) - 10);
	assert_int_equal(stat(path, &st), 0);
	assert_int_equal(st.st_size, strlen(cap.last) + 1);
	assert_int_equal(unlink(path), 0);
	assert_int_equal(unlink(old), 0);
	assert_int_equal(rmdir(dir), 0);
	(void)state;
}

static void log_warns_of_a_wrong_environment_and_goes_on(void **state)
{
	struct capture cap = {0};

	assert_int_equal(setenv("MC_LOG_LEVEL", "loud", 1), 0);
	mc_log_sink_set(capture_line, &cap);
	assert_int_equal(mc_log_env_load(), -1);
	assert_non_null(strstr(cap.last, "value=loud"));
	assert_int_equal(unsetenv("MC_LOG_LEVEL"), 0);
	assert_int_equal(setenv("MC_LOG_DIR", "/nonexistent/mc", 1), 0);
	assert_int_equal(mc_log_env_load(), -1);
	assert_non_null(strstr(cap.last, "dir=/nonexistent/mc"));
	mc_log_sink_set(NULL, NULL);
	assert_int_equal(unsetenv("MC_LOG_DIR"), 0);
	assert_int_equal(mc_log_env_load(), 0);
	assert_int_equal(atomic_load(&mc_log_level_now), MC_LOG_WARN);
	(void)state;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(log_writes_logfmt_to_the_sink),
	    cmocka_unit_test(log_drops_lines_below_its_level),
	    cmocka_unit_test(log_replaces_control_characters),
	    cmocka_unit_test(log_cuts_a_long_line),
	    cmocka_unit_test(log_site_is_silent_after_its_quota_and_reports_the_loss),
	    cmocka_unit_test(log_level_names_are_upstreams),
	    cmocka_unit_test(log_environment_sets_level_and_file),
	    cmocka_unit_test(log_file_turns_over_at_its_limit),
	    cmocka_unit_test(log_warns_of_a_wrong_environment_and_goes_on),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
