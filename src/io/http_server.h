/*
 * http_server.h: a small HTTP server for people and monitors, on a loop, through libmicrohttpd,
 * which is loaded when the first server is opened. Connections, time and memory are bounded.
 */
#ifndef MC_IO_HTTP_SERVER_H
#define MC_IO_HTTP_SERVER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "io/loop.h"
#include "io/sock.h"

struct mc_http_server;
struct mc_http_request; /* the server's */

/** Zeroed: for GET alone. */
struct mc_http_opts {
	size_t body_max;    /* of one request, at most 1 GiB: larger ones are answered 413. 0: GET
			       alone; other methods are answered 405 */
	size_t held_max;    /* bodies and answers at one time: what does not fit is answered 503,
			       but for an answer that is alone. 0: 1 GiB */
	unsigned conns_max; /* further ones wait. 0: 64 */
};

/** What to answer. */
struct mc_http_answer {
	int status;	  /* 200 … */
	const char *type; /* Content-Type, static text */
	char *body;	  /* mc_calloc and the like; becomes the server's */
	size_t len;
	struct mc_http_request *request; /* that is answered */
};

/** Fill in the answer for `path` (without query). Called on the loop; should take milliseconds at
 * most. */
typedef void (*mc_http_handler)(void *user, const char *path, struct mc_http_answer *ret_answer);

/** The argument `name` (in any case) of the query of the request that is answered, decoded; ""
 * without a value; NULL without the argument, or with a NUL in it. For handlers; lives until the
 * handler returns. */
const char *mc_http_arg(const struct mc_http_answer *answer, const char *name);
/** "GET" …: as mc_http_arg(). */
const char *mc_http_method(const struct mc_http_answer *answer);
/** As mc_http_arg(). */
bool mc_http_has_header(const struct mc_http_answer *answer, const char *name);
/** The request's body: as mc_http_arg(); NULL when it is empty. */
const void *mc_http_body(const struct mc_http_answer *answer, size_t *ret_len);

/** In a handler: what it fills in is no answer; that one comes with mc_http_finish(). */
struct mc_http_request *mc_http_defer(struct mc_http_answer *answer);
/** The answer, once, on the loop but in no handler, and not after the server was closed: whom it
 * left without an answer is told 503. The body becomes the server's. */
void mc_http_finish(struct mc_http_request *request, const struct mc_http_answer *answer);

/**
 * Listen on `at` and serve on `loop` until closed.
 * @return 0; -MC_E_UNAVAILABLE (no libmicrohttpd: the diag says why); -MC_E_ADDR_IN_USE;
 * -MC_E_ADDR; -MC_E_PERM; -MC_E_NOMEM; -MC_E_LIMIT. Any thread but the loop's.
 */
MC_MUST_CHECK int mc_http_server_open(struct mc_loop *loop, const struct mc_addr *at,
				      mc_http_handler handler, void *user,
				      struct mc_http_server **ret, struct mc_diag *diag);
/** As above, for more than GET. */
MC_MUST_CHECK int mc_http_server_open_opts(struct mc_loop *loop, const struct mc_addr *at,
					   const struct mc_http_opts *opts, mc_http_handler handler,
					   void *user, struct mc_http_server **ret,
					   struct mc_diag *diag);
/** NULL is allowed. Any thread but the loop's. */
void mc_http_server_close(struct mc_http_server *srv);
uint16_t mc_http_server_port(const struct mc_http_server *srv);

#endif
