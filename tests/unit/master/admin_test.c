/*
 * admin_test.c: what a master says over HTTP of the objects that it serves.
 */
#include "fixture.h"

#include "io/http_client.h"
#include "master/admin.h"

#define REPLY_BYTES_MAX (1u << 20)
#define MANY 3000u /* several pieces of a walk */

struct site {
	struct fix f;
	struct fix_owner o;
	struct mc_http_client *client;
	struct mc_master_admin *admin;
	unsigned port;
};

/* A port below those that outgoing connections get. */
static void admin_open(struct site *s)
{
	struct mc_diag diag = {.text = ""};
	int rc = -MC_E_ADDR_IN_USE;
	struct mc_addr at;

	assert_int_equal(mc_addr_parse("127.0.0.1", 0, &at), 0);
	for (unsigned i = 0; rc == -MC_E_ADDR_IN_USE && i < 2000; i++) {
		s->port = 20000 + ((unsigned)getpid() * 13 + i) % 12000;
		mc_addr_port_set(&at, (uint16_t)s->port);
		rc = mc_master_admin_open(s->f.master, &at, &diag, &s->admin);
	}
	if (rc < 0)
		fail_msg("%s", diag.text);
}

static struct site *site_open_lease(uint64_t lease_ms)
{
	struct site *s = mc_calloc(1, sizeof(*s));
	struct mc_diag diag = {.text = ""};

	assert_non_null(s);
	fix_open(&s->f);
	s->f.conf.lease_ms = lease_ms;
	fix_start(&s->f);
	admin_open(s);
	fo_open(&s->o, &s->f, 5);
	assert_int_equal(mc_http_client_open(&s->client, &diag), 0);
	return s;
}

static struct site *site_open(void)
{
	return site_open_lease(0);
}

static void site_close(struct site *s)
{
	mc_http_client_close(s->client);
	mc_master_admin_close(s->admin);
	fix_close(&s->f);
	mc_free(s);
}

/* @return the body, which the caller frees */
static char *ask(struct site *s, const char *method, const char *path, int status)
{
	char url[MC_STORE_KEY_MAX + 128];
	struct mc_http_req req = {.method = method,
				  .url = url,
				  .connect_timeout_ms = 1000,
				  .deadline_ns = mc_now_ns() + SOON_NS,
				  .reply_bytes_max = REPLY_BYTES_MAX};
	struct mc_diag diag = {.text = ""};
	struct mc_http_reply reply;

	(void)snprintf(url, sizeof(url), "http://127.0.0.1:%u%s", s->port, path);
	if (mc_http_call(s->client, &req, &reply, &diag) < 0)
		fail_msg("%s: %s", path, diag.text);
	assert_int_equal(reply.status, status);
	return reply.body;
}

static char *get(struct site *s, const char *path, int status)
{
	return ask(s, "GET", path, status);
}

static void expect(struct site *s, const char *path, int status, const char *body)
{
	char *got = get(s, path, status);

	assert_string_equal(got, body);
	mc_free(got);
}

static void commit(struct site *s, const char *key, uint64_t gen, uint64_t addr, uint8_t kind)
{
	const struct fix_key text = fix_key(key);
	const struct mc_st_commit c = {.gen = gen,
				       .len = 100,
				       .key_len = text.len,
				       .nreplicas = 1,
				       .replicas = {{.owner = 5, .addr = addr, .kind = kind}},
				       .key = text.bytes};
	uint8_t req[512];
	struct mc_wr w = mc_wr_make(req, sizeof(req));
	size_t len;

	mc_wr_u32(&w, 1);
	mc_st_commit_encode(&w, &c);
	assert_int_equal(fix_call(&s->f, MC_ST_COMMIT, req, mc_wr_len(&w), &len), 0);
	assert_int_equal(fix_committed(s->f.buf, len).status, 0);
}

#define ABSENT(key)                                                                                \
	"\"" key "\":{\"ok\":false,\"error\":\"OBJECT_NOT_FOUND\",\"values\":null,"                \
	"\"disk_values\":null,\"local_disk_values\":null,\"nof_values\":null}"
#define PLACE(addr)                                                                                \
	"[{\"size_\":100,\"buffer_address_\":" addr                                                \
	",\"protocol_\":\"\",\"transport_endpoint_\":\"host-5:1\"}]"

static void object_is_told_with_the_places_of_its_replicas(void **state)
{
	struct site *s = site_open();

	expect(s, "/get_all_keys", 200, "");
	expect(s, "/query_key?key=m%2F%22@1", 404,
	       "{\"success\":false,\"error_code\":-704,\"error_message\":\"object not found\"}");
	commit(s, "m/\"@1", 11, 4096, MC_ST_MEMORY);
	expect(s, "/get_all_keys", 200, "m/\"@1\n");
	expect(s, "/query_key?key=m%2F%22@1", 200, "{\"success\":true,\"data\":" PLACE("4096") "}");
	commit(s, "d", 12, 512, MC_ST_DISK);
	expect(s, "/batch_query_keys?keys=m%2F%22@1,no,d", 200,
	       "{\"success\":true,\"data\":{\"m/\\u0022@1\":{\"ok\":true,\"error\":null,"
	       "\"values\":" PLACE("4096") ",\"disk_values\":null,\"local_disk_values\":null,"
					   "\"nof_values\":null}," ABSENT(
					       "no") ","
						     "\"d\":{\"ok\":true,\"error\":null,\"values\":"
						     "null,\"disk_values\":null,"
						     "\"local_disk_values\":" PLACE(
							 "512") ",\"nof_values\":null}}}");
	site_close(s);
	(void)state;
}

static void keys_that_cannot_be_are_absent(void **state)
{
	struct site *s = site_open();
	char path[MC_STORE_KEY_MAX + 64] = "/query_key?key=";
	size_t at = strlen(path);

	expect(s, "/batch_query_keys?keys=a,,b", 200,
	       "{\"success\":true,\"data\":{" ABSENT("a") "," ABSENT("") "," ABSENT("b") "}}");
	expect(s, "/batch_query_keys", 200, "{\"success\":true,\"data\":{}}");
	mc_free(get(s, "/query_key", 404));
	memset(path + at, 'x', MC_STORE_KEY_MAX); /* one too long */
	mc_free(get(s, path, 404));
	mc_free(get(s, "/nowhere", 404));
	site_close(s);
	(void)state;
}

static void every_key_is_told_once(void **state)
{
	struct site *s = site_open();
	unsigned char seen[MANY] = {0};
	char *body, *line, *rest;
	unsigned i, n = 0;

	for (i = 0; i < MANY; i++) {
		char key[32];

		(void)snprintf(key, sizeof(key), "key-%u", i);
		commit(s, key, i + 1, 4096ull * (i + 1), MC_ST_MEMORY);
	}
	body = get(s, "/get_all_keys", 200);
	for (line = strtok_r(body, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
		assert_int_equal(sscanf(line, "key-%u", &i), 1);
		assert_true(i < MANY && !seen[i]);
		seen[i] = 1;
		n++;
	}
	assert_int_equal(n, MANY);
	mc_free(body);
	site_close(s);
	(void)state;
}

/* Metrics have this line. */
static void has_line(const char *metrics, const char *line)
{
	char with_ends[256];

	(void)snprintf(with_ends, sizeof(with_ends), "\n%s\n", line);
	if (!strstr(metrics, with_ends))
		fail_msg("no line '%s' in:\n%s", line, metrics);
}

static void what_happens_is_counted_under_upstreams_names(void **state)
{
	static const char *const lines[] = {
	    "master_exist_key_requests_total 2",
	    "master_exist_key_failures_total 0", /* absent is an answer */
	    "master_batch_exist_key_requests_total 0",
	    "master_get_replica_list_requests_total 3",
	    "master_get_replica_list_failures_total 1",
	    "total_get_nums_ 3",
	    "valid_get_nums_ 2",
	    "mem_cache_hit_nums_ 1",
	    "mem_cache_hit_bytes_total 100",
	    "file_cache_hit_nums_ 1",
	    "file_cache_hit_bytes_total 100",
	    "mem_cache_nums_ 1",
	    "file_cache_nums_ 1",
	    "master_put_end_requests_total 2",
	    "master_mount_segment_requests_total 1",
	    "master_remount_segment_requests_total 0",
	    "master_attempted_evictions_total 0",
	    "master_value_size_bytes_count 2",
	    "segment_total_capacity_bytes{owner=\"0000000000000005\",segment=\"host-5:1\"} 1000",
	};
	struct site *s = site_open();
	struct mc_st_object found;
	char *body;

	commit(s, "m", 11, 4096, MC_ST_MEMORY);
	commit(s, "d", 12, 512, MC_ST_DISK);
	assert_int_equal(fix_exist(&s->f, "m"), 0);
	assert_int_equal(fix_exist(&s->f, "no"), MC_STORE_OBJECT_NOT_FOUND);
	assert_int_equal(fix_lookup(&s->f, "m", &found), 0);
	assert_int_equal(fix_lookup(&s->f, "d", &found), 0);
	assert_int_equal(fix_lookup(&s->f, "no", &found), MC_STORE_OBJECT_NOT_FOUND);
	body = get(s, "/metrics", 200);
	for (size_t i = 0; i < MC_ARRAY_LEN(lines); i++)
		has_line(body, lines[i]);
	mc_free(body);
	site_close(s);
	(void)state;
}

static void eviction_is_counted(void **state)
{
	static const char *const lines[] = {
	    "master_successful_evictions_total 1",
	    "master_evicted_key_count 1",
	    "master_evicted_size_bytes 100",
	};
	struct site *s = site_open();
	unsigned tried = 0;
	char *body, *at;

	fo_space(&s->o, MC_ST_NOTE_WANT, 1000, 50);
	(void)fo_expect(&s->o, MC_ST_NOTE_NO_ROOM);
	commit(s, "m", 11, 4096, MC_ST_MEMORY);
	fo_space(&s->o, MC_ST_NOTE_WANT, 1000, 50);
	fo_expect_free(&s->o, 4096, 11);
	body = get(s, "/metrics", 200);
	for (size_t i = 0; i < MC_ARRAY_LEN(lines); i++)
		has_line(body, lines[i]);
	at = strstr(body, "\nmaster_attempted_evictions_total ");
	assert_non_null(at);
	assert_int_equal(sscanf(at, "\nmaster_attempted_evictions_total %u", &tried), 1);
	assert_true(tried >= 2); /* the master looks by itself, too, while the pool is full */
	mc_free(body);
	site_close(s);
	(void)state;
}

/* ---- remove_all ---- */

/* Somebody who asks for it and waits. */
struct remover {
	struct site *s;
	const char *path;
	int status;
	char *body;
	pthread_t thread;
};

static void *remover_run(void *arg)
{
	struct remover *r = arg;

	r->body = ask(r->s, "POST", r->path, r->status);
	return NULL;
}

static void remover_start(struct remover *r, struct site *s, const char *path, int status)
{
	*r = (struct remover){.s = s, .path = path, .status = status};
	assert_int_equal(pthread_create(&r->thread, NULL, remover_run, r), 0);
}

static void remover_end(struct remover *r, const char *body)
{
	assert_int_equal(pthread_join(r->thread, NULL), 0);
	assert_string_equal(r->body, body);
	mc_free(r->body);
}

static void remove_all_is_done_when_owners_have_freed(void **state)
{
	struct site *s = site_open();
	struct remover r;
	char *body;

	commit(s, "a", 11, 4096, MC_ST_MEMORY);
	remover_start(&r, s, "/api/v1/remove_all", 200);
	fo_expect_free(&s->o, 4096, 11);
	expect(s, "/get_all_keys", 200, ""); /* it is gone, and nobody is held up */
	body = get(s, "/metrics", 200);
	has_line(body, "master_remove_all_requests_total 0"); /* under way */
	mc_free(body);
	fo_freed(&s->o, 4096, 11);
	remover_end(&r, "{\"success\":true,\"removed\":1}");
	body = get(s, "/metrics", 200);
	has_line(body, "master_remove_all_requests_total 1");
	mc_free(body);
	site_close(s);
	(void)state;
}

static void remove_all_leaves_what_readers_hold_unless_forced(void **state)
{
	struct site *s = site_open_lease(600000);
	struct mc_st_object found;
	struct remover r;

	commit(s, "held", 11, 4096, MC_ST_MEMORY);
	assert_int_equal(fix_lookup(&s->f, "held", &found), 0);
	remover_start(&r, s, "/api/v1/remove_all", 200);
	remover_end(&r, "{\"success\":true,\"removed\":0}");
	remover_start(&r, s, "/api/v1/remove_all?force=true&tenant_id=other", 200);
	remover_end(&r, "{\"success\":true,\"removed\":0}");
	expect(s, "/get_all_keys", 200, "held\n");
	remover_start(&r, s, "/api/v1/remove_all?force=true", 200);
	fo_expect_free(&s->o, 4096, 11);
	fo_freed(&s->o, 4096, 11);
	remover_end(&r, "{\"success\":true,\"removed\":1}");
	site_close(s);
	(void)state;
}

static void closing_does_not_wait_for_owners_that_free(void **state)
{
	struct site *s = site_open();
	struct remover r;

	commit(s, "a", 11, 4096, MC_ST_MEMORY);
	remover_start(&r, s, "/api/v1/remove_all", 503);
	fo_expect_free(&s->o, 4096, 11);
	mc_master_admin_close(s->admin);
	s->admin = NULL;
	remover_end(&r, "");
	fo_freed(&s->o, 4096, 11); /* nobody is there any more to be told */
	fix_until(&s->f, "a", MC_STORE_OBJECT_NOT_FOUND);
	site_close(s);
	(void)state;
}

static void pages_say_how_they_want_to_be_asked(void **state)
{
	char path[512] = "/api/v1/remove_all?tenant_id=";
	struct site *s = site_open();
	char *body = ask(s, "GET", "/api/v1/remove_all", 405);

	assert_string_equal(body, "/api/v1/remove_all is for POST\n");
	mc_free(body);
	body = ask(s, "POST", "/metrics", 405);
	assert_string_equal(body, "/metrics is for GET\n");
	mc_free(body);
	memset(path + strlen(path), 't', 256);
	body = ask(s, "POST", path, 400);
	assert_non_null(strstr(body, "tenant_id is too long"));
	mc_free(body);
	site_close(s);
	(void)state;
}

static void the_only_master_leads(void **state)
{
	struct site *s = site_open();
	char text[MC_ADDR_TEXT_MAX], line[256];
	char *body;

	expect(s, "/role", 200, "{\"role\": \"leader\"}\n");
	(void)snprintf(line, sizeof(line), "{\"leader_address\": \"%s\", \"view_version\": 1}\n",
		       mc_addr_format(&s->f.at, text));
	expect(s, "/leader", 200, line);
	body = get(s, "/ha_status", 200);
	assert_non_null(strstr(body, "\"ha_state\": \"standalone\", \"service_ready\": true"));
	mc_free(body);
	site_close(s);
	(void)state;
}

/* The answer has this text. */
static void says(struct site *s, const char *path, int status, const char *text)
{
	char *got = get(s, path, status);

	if (!strstr(got, text))
		fail_msg("%s: no '%s' in %s", path, text, got);
	mc_free(got);
}

static void object_page_says_where_it_is_or_why_it_is_not_there(void **state)
{
	struct site *s = site_open();
	struct remover r;

	says(s, "/api/v1/object?key=m", 200, "{\"state\":\"never_seen\",\"known_ms\":");
	says(s, "/api/v1/object", 400, "argument 'key'");
	commit(s, "m", 11, 4096, MC_ST_MEMORY);
	commit(s, "d", 12, 512, MC_ST_DISK);
	says(s, "/api/v1/object?key=m", 200,
	     "{\"state\":\"here\",\"bytes\":100,\"generation\":11,");
	says(s, "/api/v1/object?key=m", 200,
	     "\"replicas\":[{\"kind\":\"memory\",\"owner\":\"0000000000000005\","
	     "\"segment\":\"host-5:1\",\"owner_state\":\"ok\"}]");
	says(s, "/api/v1/object?key=d&tenant=default", 200, "\"kind\":\"disk\"");
	says(s, "/api/v1/object?key=m&tenant=other", 200, "\"never_seen\"");
	fo_space(&s->o, MC_ST_NOTE_WANT, 1000, 50);
	fo_expect_free(&s->o, 4096, 11);
	says(s, "/api/v1/object?key=m", 200, "{\"state\":\"evicted\",\"gone_ms\":");
	says(s, "/api/v1/object?key=m", 200, "\"waits_for_free\":true");
	fo_freed(&s->o, 4096, 11);
	remover_start(&r, s, "/api/v1/remove_all", 200);
	fo_expect_free(&s->o, 512, 12);
	fo_freed(&s->o, 512, 12);
	remover_end(&r, "{\"success\":true,\"removed\":1}");
	says(s, "/api/v1/object?key=d", 200, "{\"state\":\"removed\",\"gone_ms\":");
	says(s, "/api/v1/object?key=d", 200, "\"waits_for_free\":false");
	site_close(s);
	(void)state;
}

static void status_page_and_its_numbers_are_served(void **state)
{
	struct site *s = site_open();

	commit(s, "m", 11, 4096, MC_ST_MEMORY);
	says(s, "/", 200, "<title>Mooncake Store</title>");
	says(s, "/api/v1/nodes", 200, "\"state\":\"ok\",\"capacity\":1000,");
	/* One sample is taken when the server opens. */
	says(s, "/api/v1/history", 200, "{\"every_s\":5,\"columns\":[\"at_ms\",\"keys\",");
	says(s, "/api/v1/history", 200, "\"samples\":[[");
	says(s, "/api/v1/history?after=99999999999999", 200, "\"samples\":[]");
	says(s, "/api/v1/history?after=now", 400, "argument 'after'");
	says(s, "/metrics", 200, "\nmaster_owners_by_state{state=\"ok\"} 1\n");
	says(s, "/metrics", 200, "\nsegment_freeing_bytes{owner=\"0000000000000005\",");
	site_close(s);
	(void)state;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(object_is_told_with_the_places_of_its_replicas),
	    cmocka_unit_test(keys_that_cannot_be_are_absent),
	    cmocka_unit_test(every_key_is_told_once),
	    cmocka_unit_test(what_happens_is_counted_under_upstreams_names),
	    cmocka_unit_test(eviction_is_counted),
	    cmocka_unit_test(object_page_says_where_it_is_or_why_it_is_not_there),
	    cmocka_unit_test(status_page_and_its_numbers_are_served),
	    cmocka_unit_test(remove_all_is_done_when_owners_have_freed),
	    cmocka_unit_test(remove_all_leaves_what_readers_hold_unless_forced),
	    cmocka_unit_test(closing_does_not_wait_for_owners_that_free),
	    cmocka_unit_test(pages_say_how_they_want_to_be_asked),
	    cmocka_unit_test(the_only_master_leads),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
