/*
 * log.c: logfmt lines to stderr, to a sink, and to a bounded file per process.
 *
 * A line is built on the stack and leaves by one write(2), so lines of several threads do not mix.
 * Control characters, which foreign names may hold, become '?'. The environment is read when the
 * library is loaded and again by mc_log_env_load().
 */
#include "base/log.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"

#define LOG_LINE_MAX 2048
#define LOG_PATH_MAX 512
#define LOG_SITE_LINES_PER_S 20
#define LOG_FILE_BYTES_MAX                                                                         \
	(64ll << 20) /* then the file becomes "<name>.1" and a new one begins                      \
		      */

_Atomic int mc_log_level_now = MC_LOG_WARN;

static struct {
	pthread_mutex_t
	    lock; /* guards all of this; innermost, nothing is called under it but files */
	void (*sink)(void *user, enum mc_log_level level, const char *line);
	void *user;
	int file_fd; /* -1: no file */
	int64_t file_bytes;
	char path[LOG_PATH_MAX];
} log_out = {.lock = PTHREAD_MUTEX_INITIALIZER, .file_fd = -1};

static const char *const log_level_names[] = {
    [MC_LOG_TRACE] = "trace", [MC_LOG_DEBUG] = "debug", [MC_LOG_INFO] = "info",
    [MC_LOG_WARN] = "warn",   [MC_LOG_ERROR] = "error", [MC_LOG_OFF] = "off",
};

void mc_log_level_set(enum mc_log_level level)
{
	atomic_store_explicit(&mc_log_level_now, (int)level, memory_order_relaxed);
}

int mc_log_level_parse(const char *text)
{
	for (int i = MC_LOG_TRACE; i <= MC_LOG_OFF; i++) {
		if (strcasecmp(text, log_level_names[i]) == 0)
			return i;
	}
	return strcasecmp(text, "warning") == 0 ? (int)MC_LOG_WARN : -1;
}

void mc_log_sink_set(void (*sink)(void *user, enum mc_log_level level, const char *line),
		     void *user)
{
	pthread_mutex_lock(&log_out.lock);
	log_out.sink = sink;
	log_out.user = user;
	pthread_mutex_unlock(&log_out.lock);
}

/* Caller holds the lock. On failure there is no file and stderr still gets every line. */
static void log_file_open(void)
{
	struct stat st;

	log_out.file_fd =
	    open(log_out.path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0640);
	log_out.file_bytes = 0;
	if (log_out.file_fd >= 0 && fstat(log_out.file_fd, &st) == 0)
		log_out.file_bytes = st.st_size;
}

/* Caller holds the lock. */
static void log_file_close(void)
{
	if (log_out.file_fd >= 0)
		(void)close(log_out.file_fd); /* nothing to do about a log's lost end */
	log_out.file_fd = -1;
}

/* Caller holds the lock. */
static void log_file_write(const char *line, size_t len)
{
	char old[LOG_PATH_MAX + 2];

	if (log_out.file_fd < 0)
		return;
	if (log_out.file_bytes + (int64_t)len > LOG_FILE_BYTES_MAX) {
		(void)snprintf(old, sizeof(old), "%s.1", log_out.path);
		log_file_close();
		if (rename(log_out.path, old) != 0)
			return; /* better no file than one without bound */
		log_file_open();
		if (log_out.file_fd < 0)
			return;
	}
	if (write(log_out.file_fd, line, len) > 0) /* a full disk must not stop the program */
		log_out.file_bytes += (int64_t)len;
}

int mc_log_env_load(void)
{
	const char *level_text = getenv("MC_LOG_LEVEL");
	const char *dir = getenv("MC_LOG_DIR");
	int level = MC_LOG_WARN;
	bool has_failed = false;

	if (level_text && level_text[0])
		level = mc_log_level_parse(level_text);
	mc_log_level_set(level < 0 ? MC_LOG_WARN : (enum mc_log_level)level);
	pthread_mutex_lock(&log_out.lock);
	log_file_close();
	if (dir && dir[0]) {
		int n = snprintf(log_out.path, sizeof(log_out.path), "%s/mooncake-%ld.log", dir,
				 (long)getpid());

		if (n > 0 && (size_t)n < sizeof(log_out.path))
			log_file_open();
		has_failed = log_out.file_fd < 0;
	}
	pthread_mutex_unlock(&log_out.lock);
	if (level < 0)
		mc_log_warn("MC_LOG_LEVEL is not a level, using WARNING",
			    "value=%.64s accepted=TRACE,DEBUG,INFO,WARNING,ERROR,OFF", level_text);
	if (has_failed)
		mc_log_warn("cannot write a log file in MC_LOG_DIR, using stderr only",
			    "dir=%.256s", dir);
	return level < 0 || has_failed ? -1 : 0;
}

/* @return true when the site may write; *ret_dropped then says how many lines it lost before */
static bool log_site_admit(struct mc_log_site *site, uint64_t now_s, uint32_t *ret_dropped)
{
	uint64_t seen = atomic_load_explicit(&site->window_s, memory_order_relaxed);

	*ret_dropped = 0;
	/* Relaxed all over: a race costs a line more or less, never correctness. */
	if (seen != now_s &&
	    atomic_compare_exchange_strong_explicit(&site->window_s, &seen, now_s,
						    memory_order_relaxed, memory_order_relaxed)) {
		atomic_store_explicit(&site->lines, 0, memory_order_relaxed);
		*ret_dropped = atomic_exchange_explicit(&site->dropped, 0, memory_order_relaxed);
	}
	if (atomic_fetch_add_explicit(&site->lines, 1, memory_order_relaxed) < LOG_SITE_LINES_PER_S)
		return true;
	atomic_fetch_add_explicit(&site->dropped, 1 + *ret_dropped, memory_order_relaxed);
	return false;
}

static size_t log_advance(size_t at, int n)
{
	if (n < 0)
		return at;
	return mc_min(at + (size_t)n, (size_t)LOG_LINE_MAX - 1);
}

static void log_emit(enum mc_log_level level, char *line, size_t len)
{
	void (*sink)(void *, enum mc_log_level, const char *);
	void *user;

	for (size_t i = 0; i < len; i++) {
		if ((unsigned char)line[i] < 0x20 || line[i] == 0x7f)
			line[i] = '?';
	}
	pthread_mutex_lock(&log_out.lock);
	sink = log_out.sink;
	user = log_out.user;
	line[len] = '\n';
	log_file_write(line, len + 1);
	pthread_mutex_unlock(&log_out.lock);
	if (sink) {
		line[len] = '\0';
		sink(user, level, line);
	} else if (write(STDERR_FILENO, line, len + 1) < 0) {
		return; /* stderr is closed: there is nobody to tell */
	}
}

void mc_log_write(struct mc_log_site *site, enum mc_log_level level, const char *msg,
		  const char *fmt, ...)
{
	uint64_t wall = mc_wall_ns();
	time_t sec = (time_t)(wall / MC_NS_PER_S);
	char line[LOG_LINE_MAX + 1];
	uint32_t dropped;
	size_t len = 0;
	struct tm tm;
	va_list ap;

	if (!log_site_admit(site, mc_now_ns() / MC_NS_PER_S + 1, &dropped))
		return;
	(void)gmtime_r(&sec, &tm);
	len = strftime(line, LOG_LINE_MAX, "time=%Y-%m-%dT%H:%M:%S", &tm);
	len = log_advance(len, snprintf(line + len, LOG_LINE_MAX - len,
					".%06lluZ level=%s pid=%ld msg=\"%s\" ",
					(unsigned long long)(wall % MC_NS_PER_S / MC_NS_PER_US),
					log_level_names[level], (long)getpid(), msg));
	va_start(ap, fmt);
	len = log_advance(len, vsnprintf(line + len, LOG_LINE_MAX - len, fmt, ap));
	va_end(ap);
	if (dropped)
		len = log_advance(len,
				  snprintf(line + len, LOG_LINE_MAX - len, " dropped=%u", dropped));
	log_emit(level, line, len);
}

static void log_fork_lock(void)
{
	pthread_mutex_lock(&log_out.lock);
}

static void log_fork_unlock(void)
{
	pthread_mutex_unlock(&log_out.lock);
}

/* A child may log: the lock is never left held by a thread that did not survive fork(). */
__attribute__((constructor)) static void log_start(void)
{
	(void)pthread_atfork(log_fork_lock, log_fork_unlock, log_fork_unlock);
	(void)mc_log_env_load(); /* a bad value has been logged */
}
