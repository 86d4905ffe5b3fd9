/*
 * err.c: texts and scopes generated from the one table, errno mapping, diagnostics and assertion
 * failure.
 */
#include "base/err.h"

#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct err_row {
	const char *name;
	const char *text;
	enum mc_err_scope scope;
};

static const struct err_row err_rows[] = {
#define MC_ERR_ROW(name, num, scope, text) [num] = {#name, text, MC_SCOPE_##scope},
    MC_ERR_TABLE(MC_ERR_ROW)
#undef MC_ERR_ROW
};

/* NULL for a code that is not in the table, INT_MIN included. */
static const struct err_row *err_row(int code)
{
	unsigned int num = code < 0 ? 0u - (unsigned int)code : (unsigned int)code;

	if (num >= MC_E_COUNT || !err_rows[num].name)
		return NULL;
	return &err_rows[num];
}

const char *mc_err_text(int code)
{
	const struct err_row *row = err_row(code);

	return row ? row->text : "unknown error";
}

const char *mc_err_name(int code)
{
	const struct err_row *row = err_row(code);

	return row ? row->name : "UNKNOWN";
}

enum mc_err_scope mc_err_scope(int code)
{
	const struct err_row *row = err_row(code);

	return row ? row->scope : MC_SCOPE_OP;
}

/* One row for each errno that means more to us than "input/output error". */
static const struct {
	int from;
	enum mc_err to;
} errno_rows[] = {
    {EINVAL, MC_E_INVAL},
    {EBADF, MC_E_INVAL},
    {ENAMETOOLONG, MC_E_INVAL},
    {ENOTDIR, MC_E_INVAL},
    {EISDIR, MC_E_INVAL},
    {ENOMEM, MC_E_NOMEM},
    {EAGAIN, MC_E_AGAIN},
    {EINTR, MC_E_AGAIN},
    {ENOBUFS, MC_E_AGAIN},
    {EINPROGRESS, MC_E_AGAIN},
    {EALREADY, MC_E_AGAIN},
    {ETIMEDOUT, MC_E_TIMEDOUT},
    {ETIME, MC_E_TIMEDOUT},
    {ECANCELED, MC_E_CANCELED},
    {ENOENT, MC_E_NOENT},
    {ENXIO, MC_E_NOENT},
    {EEXIST, MC_E_EXIST},
    {EISCONN, MC_E_EXIST},
    {EFAULT, MC_E_RANGE},
    {EACCES, MC_E_PERM},
    {EPERM, MC_E_PERM},
    {EROFS, MC_E_PERM},
    {ESTALE, MC_E_STALE},
    {E2BIG, MC_E_TOO_BIG},
    {EMSGSIZE, MC_E_TOO_BIG},
    {EFBIG, MC_E_TOO_BIG},
    {EOVERFLOW, MC_E_TOO_BIG},
    {ENOTCONN, MC_E_CLOSED},
    {EOPNOTSUPP, MC_E_UNSUPPORTED},
    {EPROTONOSUPPORT, MC_E_UNSUPPORTED},
    {EAFNOSUPPORT, MC_E_UNSUPPORTED},
    {ENOPROTOOPT, MC_E_UNSUPPORTED},
    {ENOSYS, MC_E_UNAVAILABLE},
    {ECONNRESET, MC_E_RESET},
    {EPIPE, MC_E_RESET},
    {ECONNABORTED, MC_E_RESET},
    {EHOSTUNREACH, MC_E_UNREACHABLE},
    {ENETUNREACH, MC_E_UNREACHABLE},
    {EHOSTDOWN, MC_E_UNREACHABLE},
    {ECONNREFUSED, MC_E_REFUSED},
    {ENETDOWN, MC_E_LINK_DOWN},
    {ENODEV, MC_E_DEVICE},
    {ESRCH, MC_E_PEER_DEAD},
    {EPROTO, MC_E_PROTO},
    {EBADMSG, MC_E_PROTO},
    {EADDRINUSE, MC_E_ADDR_IN_USE},
    {EADDRNOTAVAIL, MC_E_ADDR},
    {EMFILE, MC_E_LIMIT},
    {ENFILE, MC_E_LIMIT},
    {ENOSPC, MC_E_NOSPACE},
    {EDQUOT, MC_E_NOSPACE},
    {EBUSY, MC_E_BUSY},
    {ETXTBSY, MC_E_BUSY},
};

enum mc_err mc_err_of_errno(int err)
{
	for (size_t i = 0; i < sizeof(errno_rows) / sizeof(errno_rows[0]); i++) {
		if (errno_rows[i].from == err)
			return errno_rows[i].to;
	}
	return MC_E_IO;
}

static void diag_vset(struct mc_diag *diag, const char *fmt, va_list ap)
{
	if (vsnprintf(diag->text, sizeof(diag->text), fmt, ap) < 0)
		diag->text[0] = '\0';
}

void mc_diag_set(struct mc_diag *diag, const char *fmt, ...)
{
	struct mc_diag fresh = {.text = ""};
	va_list ap;

	if (!diag)
		return;
	/* Through a copy: an argument may be the old text. */
	va_start(ap, fmt);
	diag_vset(&fresh, fmt, ap);
	va_end(ap);
	memcpy(diag->text, fresh.text, sizeof(diag->text));
}

void mc_diag_wrap(struct mc_diag *diag, const char *fmt, ...)
{
	struct mc_diag front = {.text = ""};
	size_t front_len, room;
	va_list ap;

	if (!diag)
		return;
	va_start(ap, fmt);
	diag_vset(&front, fmt, ap);
	va_end(ap);
	front_len = strlen(front.text);
	room = sizeof(front.text) - 1 - front_len;
	if (diag->text[0] && room > 2) {
		size_t old_len = strnlen(diag->text, sizeof(diag->text));

		memcpy(front.text + front_len, ": ", 2);
		room -= 2;
		if (old_len > room)
			old_len = room;
		memcpy(front.text + front_len + 2, diag->text, old_len);
		front.text[front_len + 2 + old_len] = '\0';
	}
	memcpy(diag->text, front.text, sizeof(diag->text));
}

_Noreturn void mc_assert_fail(const char *cond, const char *file, int line)
{
	char text[512];
	int n = snprintf(text, sizeof(text), "mooncake: broken invariant: %s (%s:%d)\n", cond, file,
			 line);

	/* By write(2): the log's lock may be held. */
	if (n > 0 &&
	    write(STDERR_FILENO, text, (size_t)n < sizeof(text) ? (size_t)n : sizeof(text) - 1) < 0)
		abort();
	abort();
}
