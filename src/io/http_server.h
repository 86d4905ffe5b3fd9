/*
 * http_server.h: a small HTTP server for people and monitors, on a loop, through libmicrohttpd,
 * which is loaded when the first server is opened. GET only; bounded connections and time.
 */
#ifndef MC_IO_HTTP_SERVER_H
#define MC_IO_HTTP_SERVER_H

#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "io/loop.h"
#include "io/sock.h"

struct mc_http_server;

/** What to answer. */
struct mc_http_answer {
	int status;	  /* 200 … */
	const char *type; /* Content-Type, static text */
	char *body;	  /* mc_calloc and the like; becomes the server's */
	size_t len;
	void *conn; /* the server's: of the request that is answered */
};

/** Fill in the answer for GET `path` (without query). Called on the loop; should take milliseconds
 * at most. */
typedef void (*mc_http_handler)(void *user, const char *path, struct mc_http_answer *ret_answer);

/** The argument `name` (in any case) of the query of the request that is answered, decoded; ""
 * without a value; NULL without the argument, or with a NUL in it. For handlers; lives until the
 * handler returns. */
const char *mc_http_arg(const struct mc_http_answer *answer, const char *name);

/**
 * Listen on `at` and serve on `loop` until closed.
 * @return 0; -MC_E_UNAVAILABLE (no libmicrohttpd: the diag says why); -MC_E_ADDR_IN_USE;
 * -MC_E_ADDR; -MC_E_PERM; -MC_E_NOMEM; -MC_E_LIMIT. Any thread but the loop's.
 */
MC_MUST_CHECK int mc_http_server_open(struct mc_loop *loop, const struct mc_addr *at,
				      mc_http_handler handler, void *user,
				      struct mc_http_server **ret, struct mc_diag *diag);
/** NULL is allowed. Any thread but the loop's. */
void mc_http_server_close(struct mc_http_server *srv);
uint16_t mc_http_server_port(const struct mc_http_server *srv);

#endif
