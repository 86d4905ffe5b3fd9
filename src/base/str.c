/*
 * str.c: texts that grow to a limit.
 */
#include "base/str.h"

#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"

void mc_str_init(struct mc_str *str, size_t bytes_max)
{
	mc_assert(bytes_max < SIZE_MAX);
	*str = (struct mc_str){.max = bytes_max};
}

void mc_str_fini(struct mc_str *str)
{
	mc_free(str->text);
	mc_str_init(str, str->max);
}

void mc_str_reset(struct mc_str *str)
{
	str->len = 0;
	str->rc = 0;
	if (str->text)
		str->text[0] = '\0';
}

/* Room for `more` bytes and the NUL behind them. */
static int str_room(struct mc_str *str, size_t more)
{
	void *text = str->text;

	if (str->rc < 0)
		return str->rc;
	if (more > str->max - str->len)
		str->rc = -MC_E_TOO_BIG;
	else
		str->rc = mc_array_grow(&text, &str->cap, str->len + more + 1, str->max + 1, 1);
	str->text = text;
	return str->rc;
}

int mc_str_append(struct mc_str *str, const void *data, size_t len_bytes)
{
	int rc = str_room(str, len_bytes);

	if (rc < 0)
		return rc;
	if (len_bytes)
		memcpy(str->text + str->len, data, len_bytes);
	str->len += len_bytes;
	str->text[str->len] = '\0';
	return 0;
}

int mc_str_puts(struct mc_str *str, const char *text)
{
	return mc_str_append(str, text, strlen(text));
}

int mc_str_vappendf(struct mc_str *str, const char *fmt, va_list ap)
{
	va_list again;
	int len, rc;

	va_copy(again, ap);
	len = vsnprintf(NULL, 0, fmt, again);
	va_end(again);
	if (len < 0 && str->rc == 0)
		str->rc = -MC_E_INVAL;
	rc = len < 0 ? str->rc : str_room(str, (size_t)len);
	if (rc < 0)
		return rc;
	(void)vsnprintf(str->text + str->len, (size_t)len + 1, fmt, ap); /* length known */
	str->len += (size_t)len;
	return 0;
}

int mc_str_appendf(struct mc_str *str, const char *fmt, ...)
{
	va_list ap;
	int rc;

	va_start(ap, fmt);
	rc = mc_str_vappendf(str, fmt, ap);
	va_end(ap);
	return rc;
}

char *mc_str_take(struct mc_str *str)
{
	char *text;

	(void)mc_str_append(str, "", 0); /* an error is in rc; an empty text gets its NUL */
	text = str->text;
	if (str->rc < 0) {
		mc_str_fini(str);
		return NULL;
	}
	mc_str_init(str, str->max);
	return text;
}

int mc_strlcpy(char *dst, size_t cap, const char *src)
{
	size_t len;

	mc_assert(cap >= 1);
	len = strnlen(src, cap);
	if (len == cap) {
		memcpy(dst, src, cap - 1);
		dst[cap - 1] = '\0';
		return -MC_E_TOO_BIG;
	}
	memcpy(dst, src, len + 1);
	return 0;
}

int mc_str_split(const char *text, char sep, struct mc_view *parts, size_t parts_max)
{
	size_t n = 0;

	mc_assert(parts_max <= INT_MAX && sep);
	for (;;) {
		const char *end = strchrnul(text, sep);

		if (n == parts_max)
			return -MC_E_TOO_BIG;
		parts[n++] = (struct mc_view){.at = text, .len = (size_t)(end - text)};
		if (!*end)
			return (int)n;
		text = end + 1;
	}
}

static bool view_is_blank(char c)
{
	return c == ' ' || c == '\t';
}

struct mc_view mc_view_trim(struct mc_view view)
{
	while (view.len && view_is_blank(view.at[0])) {
		view.at++;
		view.len--;
	}
	while (view.len && view_is_blank(view.at[view.len - 1]))
		view.len--;
	return view;
}

bool mc_view_is(struct mc_view view, const char *text)
{
	return strlen(text) == view.len && memcmp(view.at, text, view.len) == 0;
}

int mc_view_copy(struct mc_view view, char *dst, size_t cap)
{
	mc_assert(cap >= 1);
	if (view.len >= cap) {
		dst[0] = '\0';
		return -MC_E_TOO_BIG;
	}
	memcpy(dst, view.at, view.len);
	dst[view.len] = '\0';
	return 0;
}

static bool is_digit(char c)
{
	return c >= '0' && c <= '9';
}

int mc_name_cmp(const char *a, const char *b)
{
	while (*a && *b) {
		if (is_digit(*a) && is_digit(*b)) {
			size_t la, lb;
			int diff;

			a += strspn(a, "0");
			b += strspn(b, "0");
			la = strspn(a, "0123456789");
			lb = strspn(b, "0123456789");
			if (la != lb)
				return la < lb ? -1 : 1;
			diff = memcmp(a, b, la);
			if (diff)
				return diff;
			a += la;
			b += lb;
			continue;
		}
		if (*a != *b)
			break;
		a++;
		b++;
	}
	return (unsigned char)*a - (unsigned char)*b;
}
