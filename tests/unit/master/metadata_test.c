/*
 * metadata_test.c: /metadata of a master, over our HTTP client.
 */
#include "fixture.h"

#include "io/http_client.h"
#include "master/metadata.h"

#define REPLY_BYTES_MAX (MC_METADATA_VALUE_MAX + 1)

struct site {
	struct mc_loop *loop;
	struct mc_metadata *md;
	struct mc_http_client *client;
};

/* On a port below those that outgoing connections get. */
static struct site *site_open(uint64_t bytes_max)
{
	struct site *s = mc_calloc(1, sizeof(*s));
	struct mc_diag diag = {.text = ""};
	int rc = -MC_E_ADDR_IN_USE;
	struct mc_addr at;

	assert_non_null(s);
	assert_int_equal(mc_loop_open("side", mc_env_real.clk, &s->loop), 0);
	assert_int_equal(mc_loop_start(s->loop), 0);
	assert_int_equal(mc_addr_parse("127.0.0.1", 0, &at), 0);
	for (unsigned i = 0; rc == -MC_E_ADDR_IN_USE && i < 2000; i++) {
		mc_addr_port_set(&at, (uint16_t)(20000 + ((unsigned)getpid() * 11 + i) % 12000));
		rc = mc_metadata_open(s->loop, &at, bytes_max, &diag, &s->md);
	}
	if (rc < 0 || mc_http_client_open(&s->client, &diag) < 0)
		fail_msg("%s", diag.text);
	return s;
}

static void site_close(struct site *s)
{
	mc_http_client_close(s->client);
	mc_metadata_close(s->md);
	mc_loop_close(s->loop);
	mc_free(s);
}

static struct mc_http_reply ask(struct site *s, const char *method, const char *path,
				const void *body, size_t len)
{
	char url[8192];
	struct mc_http_req req = {.method = method,
				  .url = url,
				  .type = body ? "application/json" : NULL,
				  .body = body,
				  .body_len = len,
				  .connect_timeout_ms = 1000,
				  .deadline_ns = mc_now_ns() + SOON_NS,
				  .reply_bytes_max = REPLY_BYTES_MAX};
	struct mc_diag diag = {.text = ""};
	struct mc_http_reply reply;

	(void)snprintf(url, sizeof(url), "http://127.0.0.1:%u%s", mc_metadata_port(s->md), path);
	if (mc_http_call(s->client, &req, &reply, &diag) < 0)
		fail_msg("%s %s: %s", method, path, diag.text);
	return reply;
}

static void expect(struct site *s, const char *method, const char *path, const char *body,
		   int status, const char *answer)
{
	struct mc_http_reply reply = ask(s, method, path, body, body ? strlen(body) : 0);

	if (reply.status != status || strcmp(reply.body, answer) != 0)
		fail_msg("%s %s: %d '%s'", method, path, reply.status, reply.body);
	mc_free(reply.body);
}

static void it_answers_as_upstreams_does(void **state)
{
	static const struct {
		const char *method, *path, *body;
		int status;
		const char *answer;
	} rows[] = {
	    {"GET", "/metadata?key=mooncake/ram/a", NULL, 404, "metadata not found"},
	    {"DELETE", "/metadata?key=mooncake/ram/a", NULL, 404, "metadata not found"},
	    {"PUT", "/metadata?key=mooncake%2Fram%2Fa", "{\"a\":1}", 200, "metadata updated"},
	    {"GET", "/metadata?key=mooncake/ram/a", NULL, 200, "{\"a\":1}"},
	    {"GET", "/metadata?key=+mooncake/ram/a%20", NULL, 200, "{\"a\":1}"},
	    {"PUT", "/metadata?key=mooncake/ram/a", "{}", 200, "metadata updated"},
	    {"GET", "/metadata?key=mooncake/ram/a", NULL, 200, "{}"},
	    {"PUT", "/metadata?key=empty", "", 200, "metadata updated"},
	    {"GET", "/metadata?key=empty", NULL, 200, ""},
	    {"DELETE", "/metadata?key=mooncake/ram/a", NULL, 200, "metadata deleted"},
	    {"GET", "/metadata?key=mooncake/ram/a", NULL, 404, "metadata not found"},
	    /* Who is there first keeps its name. */
	    {"PUT", "/metadata?key=mooncake/rpc_meta/a", "1", 200, "metadata updated"},
	    {"PUT", "/metadata?key=mooncake/rpc_meta/a", "2", 400,
	     "Duplicate rpc_meta key not allowed"},
	    {"GET", "/metadata?key=mooncake/rpc_meta/a", NULL, 200, "1"},
	    {"DELETE", "/metadata?key=mooncake/rpc_meta/a", NULL, 200, "metadata deleted"},
	    {"PUT", "/metadata?key=mooncake/rpc_meta/a", "2", 200, "metadata updated"},
	    {"GET", "/metadata", NULL, 400, "metadata key is required"},
	    {"GET", "/metadata?key=+", NULL, 400, "metadata key is required"},
	    {"GET", "/metadata?key=a%00b", NULL, 400, "metadata key is required"},
	    {"POST", "/metadata?key=a", "x", 405, "Method not allowed"},
	    {"GET", "/elsewhere?key=a", NULL, 404, "404: Not Found"},
	};
	struct site *s = site_open(0);

	for (size_t i = 0; i < MC_ARRAY_LEN(rows); i++)
		expect(s, rows[i].method, rows[i].path, rows[i].body, rows[i].status,
		       rows[i].answer);
	site_close(s);
	(void)state;
}

static void largest_value_comes_back_and_a_larger_one_is_refused(void **state)
{
	struct site *s = site_open(0);
	char *value = mc_calloc(MC_METADATA_VALUE_MAX + 1, 1);
	struct mc_http_reply reply;

	assert_non_null(value);
	for (size_t i = 0; i <= MC_METADATA_VALUE_MAX; i++)
		value[i] = (char)(i * 7 + i / 251);
	reply = ask(s, "PUT", "/metadata?key=a", value, MC_METADATA_VALUE_MAX);
	assert_int_equal(reply.status, 200);
	mc_free(reply.body);
	reply = ask(s, "GET", "/metadata?key=a", NULL, 0);
	assert_int_equal(reply.status, 200);
	assert_int_equal(reply.len, MC_METADATA_VALUE_MAX);
	assert_memory_equal(reply.body, value, reply.len);
	mc_free(reply.body);
	reply = ask(s, "PUT", "/metadata?key=b", value, MC_METADATA_VALUE_MAX + 1);
	assert_int_equal(reply.status, 413);
	mc_free(reply.body);
	expect(s, "GET", "/metadata?key=b", NULL, 404, "metadata not found");
	mc_free(value);
	site_close(s);
	(void)state;
}

static void key_that_is_too_long_is_refused(void **state)
{
	char path[4096 + 64] = "/metadata?key=";
	struct site *s = site_open(0);

	memset(path + strlen(path), 'k', 4096);
	expect(s, "PUT", path, "x", 400, "metadata key is too long");
	path[strlen(path) - 1] = '\0';
	expect(s, "PUT", path, "x", 200, "metadata updated");
	site_close(s);
	(void)state;
}

static void full_store_says_so_until_something_goes(void **state)
{
	struct site *s = site_open(3000);
	char value[1001];

	memset(value, 'v', sizeof(value) - 1);
	value[sizeof(value) - 1] = '\0';
	expect(s, "PUT", "/metadata?key=a", value, 200, "metadata updated");
	expect(s, "PUT", "/metadata?key=b", value, 200, "metadata updated");
	expect(s, "PUT", "/metadata?key=c", value, 507, "metadata store is full");
	expect(s, "GET", "/metadata?key=c", NULL, 404, "metadata not found");
	expect(s, "PUT", "/metadata?key=b", value, 200,
	       "metadata updated"); /* no more than before */
	expect(s, "DELETE", "/metadata?key=a", NULL, 200, "metadata deleted");
	expect(s, "PUT", "/metadata?key=c", value, 200, "metadata updated");
	site_close(s);
	(void)state;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(it_answers_as_upstreams_does),
	    cmocka_unit_test(largest_value_comes_back_and_a_larger_one_is_refused),
	    cmocka_unit_test(key_that_is_too_long_is_refused),
	    cmocka_unit_test(full_store_says_so_until_something_goes),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
