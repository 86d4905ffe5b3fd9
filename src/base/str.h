/*
 * str.h: a growing text with a size limit, bounded copies, and views from splitting. Errors of a
 * text stick, so a builder appends freely and looks at `rc` once at the end.
 */
#ifndef MC_BASE_STR_H
#define MC_BASE_STR_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>

#include "base/err.h"

/** One owner. text[len] is NUL whenever text is not NULL. */
struct mc_str {
	char *text; /* NULL until the first byte; mc_str_text() never is */
	size_t len, cap, max;
	int rc; /* 0, or the first error; nothing is appended after it */
};

/** @param bytes_max most bytes of text, without the NUL */
void mc_str_init(struct mc_str *str, size_t bytes_max);
void mc_str_fini(struct mc_str *str);
/** Empty again, without error, keeping the memory. */
void mc_str_reset(struct mc_str *str);
/** Appends all or nothing. @return 0; -MC_E_TOO_BIG; -MC_E_NOMEM; an earlier error */
int mc_str_append(struct mc_str *str, const void *data, size_t len_bytes);
int mc_str_puts(struct mc_str *str, const char *text);
int mc_str_appendf(struct mc_str *str, const char *fmt, ...) MC_PRINTF(2, 3);
int mc_str_vappendf(struct mc_str *str, const char *fmt, va_list ap);
/** The text, ended by mc_free(), NULL on an earlier error or without memory; the mc_str is then as
 * after init. */
char *mc_str_take(struct mc_str *str);

static inline const char *mc_str_text(const struct mc_str *str)
{
	return str->text ? str->text : "";
}

/** Copy with NUL, cut to cap - 1 bytes; cap >= 1. @return 0; -MC_E_TOO_BIG when it was cut */
int mc_strlcpy(char *dst, size_t cap, const char *src);

/** Order of names with numbers in them, by value: "mlx5_2" before "mlx5_10". As strcmp(). */
int mc_name_cmp(const char *a, const char *b);

/** Part of somebody else's text, not ended by NUL. */
struct mc_view {
	const char *at;
	size_t len;
};

/**
 * Views of the parts of `text` between separators; "a,,b" has an empty one, "" has one empty part.
 * @return number of parts; -MC_E_TOO_BIG when there are more than parts_max (the first ones are
 * filled in)
 */
MC_MUST_CHECK int mc_str_split(const char *text, char sep, struct mc_view *parts, size_t parts_max);
/** Without blanks and tabs at both ends. */
struct mc_view mc_view_trim(struct mc_view view);
bool mc_view_is(struct mc_view view, const char *text);
/** Copy with NUL. @return 0; -MC_E_TOO_BIG (dst is then empty) */
MC_MUST_CHECK int mc_view_copy(struct mc_view view, char *dst, size_t cap);

#endif
