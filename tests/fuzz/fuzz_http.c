/*
 * fuzz_http.c: bytes of a stranger on the port of our HTTP server (http_server.c), through
 * libmicrohttpd to the handler, over a socket, as one piece or in two.
 *
 * Whatever the bytes were, an honest request beside them and after them is answered, and no memory
 * of ours is left behind.
 */
#include <stdint.h>
#include <string.h>

#include "base/log.h"
#include "base/mem.h"
#include "io/http_server.h"
#include "raw_http.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

static struct mc_http_server *server;
static struct mc_loop *loop;
static struct mc_addr at;

/* Path and query come from the stranger: say one back, so that each byte of it is read. */
static void handler(void *user, const char *path, struct mc_http_answer *ret)
{
	const char *arg = mc_http_arg(ret, "keys");

	(void)user;
	path = arg ? arg : path;
	ret->status = path[0] == '/' ? 200 : 404;
	ret->type = "text/plain";
	ret->body = mc_strdup(path);
	ret->len = ret->body ? strlen(ret->body) : 0;
}

static void setup(void)
{
	struct mc_diag diag = {.text = ""};
	struct mc_addr any;

	mc_log_level_set(MC_LOG_ERROR);
	mc_assert(mc_loop_open("fuzz", &mc_clock_real, &loop) == 0 && mc_loop_start(loop) == 0);
	mc_assert(mc_addr_parse("127.0.0.1", 0, &any) == 0);
	mc_assert(mc_http_server_open(loop, &any, handler, NULL, &server, &diag) == 0);
	mc_assert(mc_addr_parse("127.0.0.1", mc_http_server_port(server), &at) == 0);
}

/* On the loop: a stranger's further requests may still be served there, but none is half-way. */
static void count(void *ret_live)
{
	*(int64_t *)ret_live = mc_mem_live();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	int64_t before, after;
	int fd;

	if (!server)
		setup();
	if (len < 1)
		return 0;
	mc_loop_call(loop, count, &before);
	fd = raw_http_say(&at, data + 1, len - 1, mc_min((size_t)data[0], len - 1));
	raw_http_be_served(&at);
	(void)close(fd);
	raw_http_be_served(&at);
	mc_loop_call(loop, count, &after);
	mc_assert(after == before);
	return 0;
}
