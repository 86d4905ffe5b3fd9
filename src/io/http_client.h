/*
 * http_client.h: blocking HTTP requests with a deadline, through libcurl, which is loaded when the
 * first client is opened. For threads that may wait; never on a loop.
 */
#ifndef MC_IO_HTTP_CLIENT_H
#define MC_IO_HTTP_CLIENT_H

#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "base/str.h"

struct mc_http_client;

struct mc_http_req {
	const char *method; /* "GET", "PUT", "POST", "DELETE" */
	const char *url;    /* http:// or https:// */
	const char *type;   /* Content-Type of the body; NULL: none */
	const void *body;
	size_t body_len;
	uint32_t connect_timeout_ms;
	uint64_t deadline_ns; /* mc_now_ns() time */
	size_t reply_bytes_max;
};

struct mc_http_reply {
	int status;
	char *body; /* NUL-terminated; ends with mc_free() */
	size_t len;
};

/** @return 0; -MC_E_UNAVAILABLE (no libcurl: the diag says why); -MC_E_NOMEM */
MC_MUST_CHECK int mc_http_client_open(struct mc_http_client **ret, struct mc_diag *diag);
/** No call may be under way. NULL is allowed. */
void mc_http_client_close(struct mc_http_client *c);
/**
 * One request. Connections are kept and used again. Redirects are not followed.
 * @return 0 with any status; -MC_E_INVAL (URL); -MC_E_DNS; -MC_E_REFUSED; -MC_E_UNREACHABLE;
 * -MC_E_TIMEDOUT; -MC_E_RESET; -MC_E_AUTH (TLS); -MC_E_TOO_BIG (reply); -MC_E_NOMEM; -MC_E_IO. The
 * diag names method, URL and cause. Any thread, several at once.
 */
MC_MUST_CHECK int mc_http_call(struct mc_http_client *c, const struct mc_http_req *req,
			       struct mc_http_reply *ret, struct mc_diag *diag);
/** Append `text` with everything but letters, digits and -._~ as %XX (RFC 3986). @return as
 * mc_str_append() */
int mc_http_quote(struct mc_str *out, const char *text);

#endif
