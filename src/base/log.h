/*
 * log.h: one line per event on stderr, logfmt: time level message key=value. Five levels;
 * MC_LOG_LEVEL chooses (TRACE DEBUG INFO WARNING ERROR; default WARNING), MC_LOG_DIR adds a file
 * per process. Rate-limited per call site: after 20 lines in a second a site is silent for the rest
 * of it and then says how many it dropped.
 *
 * Usage: mc_log_warn("rail down", "dev=%s port=%u", dev, port). The message is fixed lower-case
 * text.
 */
#ifndef MC_BASE_LOG_H
#define MC_BASE_LOG_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

enum mc_log_level {
	MC_LOG_TRACE,
	MC_LOG_DEBUG,
	MC_LOG_INFO,
	MC_LOG_WARN,
	MC_LOG_ERROR,
	MC_LOG_OFF,
	MC_LOG_LEVEL_COUNT,
};

struct mc_log_site {
	_Atomic uint64_t window_s; /* the second that `lines` counts */
	_Atomic uint32_t lines;
	_Atomic uint32_t dropped;
};

extern _Atomic int mc_log_level_now;

void mc_log_level_set(enum mc_log_level level);
/** Level of a name in any case ("warning" and "warn" are the same), or -1. */
int mc_log_level_parse(const char *text);
/**
 * Read MC_LOG_LEVEL and MC_LOG_DIR again (done once when the library is loaded). The file is
 * <dir>/mooncake-<pid>.log, at most 64 MiB plus one older "<file>.1"; a forked child goes on in its
 * parent's file.
 * @return 0, or -1 when a value could not be used, which has then been logged
 */
int mc_log_env_load(void);
/**
 * Redirect whole lines (tests, language faces); NULL restores stderr. `line` has no newline. A call
 * that is under way in another thread may still end after this returns. The sink may log.
 */
void mc_log_sink_set(void (*sink)(void *user, enum mc_log_level level, const char *line),
		     void *user);
void mc_log_write(struct mc_log_site *site, enum mc_log_level level, const char *msg,
		  const char *fmt, ...) __attribute__((format(printf, 4, 5)));

#define mc_log_at(level, msg, ...)                                                                 \
	do {                                                                                       \
		static struct mc_log_site mc_site_;                                                \
		if ((level) >= atomic_load_explicit(&mc_log_level_now, memory_order_relaxed))      \
			mc_log_write(&mc_site_, (level), (msg), __VA_ARGS__);                      \
	} while (0)
#define mc_log_error(msg, ...) mc_log_at(MC_LOG_ERROR, msg, __VA_ARGS__)
#define mc_log_warn(msg, ...) mc_log_at(MC_LOG_WARN, msg, __VA_ARGS__)
#define mc_log_info(msg, ...) mc_log_at(MC_LOG_INFO, msg, __VA_ARGS__)
#define mc_log_debug(msg, ...) mc_log_at(MC_LOG_DEBUG, msg, __VA_ARGS__)

#endif
