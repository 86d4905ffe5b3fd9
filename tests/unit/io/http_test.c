/*
 * http_test.c: our HTTP client against our HTTP server.
 */
#include "io/http_server.h"

#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/mem.h"
#include "io/dl.h"
#include "io/http_client.h"

#define LARGE_BYTES (1u << 20)

struct fixture {
	struct mc_loop *loop;
	struct mc_http_server *server;
	struct mc_http_client *client;
	char base[64];
};

/* Says back the path; "/gone" has no answer, "/large" a large one, "/arg" that of `key`. */
static void echo(void *user, const char *path, struct mc_http_answer *ret)
{
	const char *arg = mc_http_arg(ret, "key");

	(void)user;
	if (strcmp(path, "/gone") == 0)
		return;
	ret->status = 200;
	if (strcmp(path, "/large") == 0) {
		ret->body = mc_calloc(LARGE_BYTES, 1);
		ret->len = LARGE_BYTES;
		memset(ret->body, 'x', ret->len);
		return;
	}
	if (strcmp(path, "/arg") == 0)
		path = arg ? arg : "(none)";
	ret->body = mc_strdup(path);
	ret->len = strlen(path);
}

static int set_up(void **state)
{
	struct fixture *f = mc_calloc(1, sizeof(*f));
	struct mc_diag diag = {.text = ""};
	struct mc_addr host, bound;
	int fd;

	assert_int_equal(mc_loop_open("http", &mc_clock_real, &f->loop), 0);
	assert_int_equal(mc_loop_start(f->loop), 0);
	/* A port below those that outgoing connections get. */
	assert_int_equal(mc_addr_parse("127.0.0.1", 0, &host), 0);
	assert_int_equal(mc_sock_listen_range(&host, 20000, 29999, 1, &fd, &bound), 0);
	mc_fd_close(&fd);
	if (mc_http_server_open(f->loop, &bound, echo, f, &f->server, &diag) < 0 ||
	    mc_http_client_open(&f->client, &diag) < 0) {
		print_error("%s\n", diag.text);
		return -1;
	}
	(void)snprintf(f->base, sizeof(f->base), "http://127.0.0.1:%u",
		       mc_http_server_port(f->server));
	*state = f;
	return 0;
}

static int tear_down(void **state)
{
	struct fixture *f = *state;

	mc_http_client_close(f->client);
	mc_http_server_close(f->server);
	mc_loop_close(f->loop);
	mc_free(f);
	return 0;
}

static int call(struct fixture *f, const char *method, const char *path, const char *body,
		struct mc_http_reply *ret, struct mc_diag *diag)
{
	char url[256];
	struct mc_http_req req = {.method = method,
				  .url = url,
				  .type = "text/plain",
				  .body = body,
				  .body_len = body ? strlen(body) : 0,
				  .connect_timeout_ms = 1000,
				  .deadline_ns = mc_now_ns() + 20 * MC_NS_PER_S,
				  .reply_bytes_max = 2 << 20};

	(void)snprintf(url, sizeof(url), "%s%s", f->base, path);
	return mc_http_call(f->client, &req, ret, diag);
}

static void server_answers_get_and_nothing_else(void **state)
{
	static const struct {
		const char *method, *path, *body;
		int status;
		const char *answer;
	} rows[] = {
	    {"GET", "/x", NULL, 200, "/x"},
	    {"GET", "/x?a=1&b", NULL, 200, "/x"},
	    {"GET", "/arg?a=1&key=m%2F%25%40x,y+z&key2=3", NULL, 200, "m/%@x,y z"},
	    {"GET", "/arg?key", NULL, 200, ""},
	    {"GET", "/arg?key=", NULL, 200, ""},
	    {"GET", "/arg?key=m%00x", NULL, 200, "(none)"},
	    {"GET", "/arg?ke=2&key2=1", NULL, 200, "(none)"},
	    {"GET", "/gone", NULL, 404, ""},
	    {"PUT", "/x", "body", 405, "only GET is served here\n"},
	    {"DELETE", "/x", NULL, 405, "only GET is served here\n"},
	    {"GET", "/y", NULL, 200, "/y"},
	};
	struct mc_http_reply reply;
	struct mc_diag diag = {.text = ""};

	for (size_t i = 0; i < MC_ARRAY_LEN(rows); i++) {
		if (call(*state, rows[i].method, rows[i].path, rows[i].body, &reply, &diag) < 0)
			fail_msg("row %zu: %s", i, diag.text);
		assert_int_equal(reply.status, rows[i].status);
		assert_string_equal(reply.body, rows[i].answer);
		mc_free(reply.body);
	}
}

static void reply_larger_than_its_limit_is_refused(void **state)
{
	struct fixture *f = *state;
	struct mc_http_reply reply;
	struct mc_diag diag = {.text = ""};
	char url[128];
	struct mc_http_req req = {.method = "GET",
				  .url = url,
				  .connect_timeout_ms = 1000,
				  .deadline_ns = mc_now_ns() + 20 * MC_NS_PER_S,
				  .reply_bytes_max = LARGE_BYTES - 1};

	(void)snprintf(url, sizeof(url), "%s/large", f->base);
	assert_int_equal(mc_http_call(f->client, &req, &reply, &diag), -MC_E_TOO_BIG);
	req.reply_bytes_max++;
	assert_int_equal(mc_http_call(f->client, &req, &reply, &diag), 0);
	assert_int_equal(reply.len, LARGE_BYTES);
	mc_free(reply.body);
}

static void *ask_often(void *arg)
{
	struct mc_http_reply reply;
	intptr_t failed = 0;

	for (int i = 0; i < 50; i++) {
		if (call(arg, "GET", "/x", NULL, &reply, NULL) < 0)
			failed++;
		else
			mc_free(reply.body);
	}
	return (void *)failed;
}

static void threads_share_a_client(void **state)
{
	pthread_t threads[8];
	void *failed;

	for (int i = 0; i < 8; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, ask_often, *state), 0);
	for (int i = 0; i < 8; i++) {
		pthread_join(threads[i], &failed);
		assert_null(failed);
	}
}

static void client_names_what_it_could_not_reach(void **state)
{
	static const struct {
		const char *url;
		int rc;
	} rows[] = {
	    {"ftp://127.0.0.1/", -MC_E_INVAL},
	    {"http://no.such.host.invalid/", -MC_E_DNS},
	    {"http://127.0.0.1:1/", -MC_E_REFUSED},
	    {"http://[::1", -MC_E_INVAL},
	};
	struct fixture *f = *state;
	struct mc_http_reply reply;
	struct mc_diag diag;

	for (size_t i = 0; i < MC_ARRAY_LEN(rows); i++) {
		struct mc_http_req req = {.method = "GET",
					  .url = rows[i].url,
					  .connect_timeout_ms = 1000,
					  .deadline_ns = mc_now_ns() + 20 * MC_NS_PER_S};

		assert_int_equal(mc_http_call(f->client, &req, &reply, &diag), rows[i].rc);
		if (!strstr(diag.text, rows[i].url))
			fail_msg("%s", diag.text);
	}
}

static void client_ends_at_its_deadline(void **state)
{
	struct fixture *f = *state;
	struct mc_addr host, bound;
	char url[64], text[MC_ADDR_TEXT_MAX];
	struct mc_http_req req = {.method = "GET", .url = url, .connect_timeout_ms = 1000};
	struct mc_http_reply reply;
	struct mc_diag diag;
	int fd;

	assert_int_equal(mc_addr_parse("127.0.0.1", 0, &host), 0);
	assert_int_equal(mc_sock_listen_range(&host, 20000, 29999, 1, &fd, &bound), 0);
	(void)snprintf(url, sizeof(url), "http://%s/", mc_addr_format(&bound, text));
	req.deadline_ns = mc_now_ns() + 20 * MC_NS_PER_MS;
	assert_int_equal(mc_http_call(f->client, &req, &reply, &diag), -MC_E_TIMEDOUT);
	mc_fd_close(&fd);
}

/* ---- more than GET ---- */

#define BODY_MAX 1000u
#define HELD_MAX 4000u

/* Says back method and body; "/late": when the test says so. */
struct poster {
	struct fixture *f;
	struct mc_http_server *server;
	char base[64];
	struct mc_http_request *late; /* the loop's */
	_Atomic bool is_late;
	bool is_bare; /* it has no body */
	struct mc_task finish;
};

static void post_back(void *user, const char *path, struct mc_http_answer *ret)
{
	struct poster *p = user;
	size_t len;
	const char *body = mc_http_body(ret, &len);

	if (strcmp(path, "/late") == 0) {
		p->late = mc_http_defer(ret);
		p->is_late = true;
		return;
	}
	ret->status = 200;
	ret->body = mc_asprintf("%s %.*s%s", mc_http_method(ret), (int)len, body ? body : "",
				mc_http_has_header(ret, "Transfer-Encoding") ? " in chunks" : "");
	ret->len = strlen(ret->body);
}

static void finish(struct mc_task *t)
{
	struct poster *p = mc_container_of(t, struct poster, finish);
	const struct mc_http_answer a = {
	    .status = 202, .type = "text/plain", .body = mc_strdup("at last"), .len = 7};

	mc_http_finish(p->late, &a);
}

static struct poster *poster_open(struct fixture *f)
{
	static const struct mc_http_opts opts = {.body_max = BODY_MAX, .held_max = HELD_MAX};
	struct poster *p = mc_calloc(1, sizeof(*p));
	struct mc_diag diag = {.text = ""};
	struct mc_addr host, bound;
	int fd;

	p->f = f;
	p->finish.run = finish;
	assert_int_equal(mc_addr_parse("127.0.0.1", 0, &host), 0);
	assert_int_equal(mc_sock_listen_range(&host, 20000, 29999, 1, &fd, &bound), 0);
	mc_fd_close(&fd);
	if (mc_http_server_open_opts(f->loop, &bound, &opts, post_back, p, &p->server, &diag) < 0)
		fail_msg("%s", diag.text);
	(void)snprintf(p->base, sizeof(p->base), "http://127.0.0.1:%u",
		       mc_http_server_port(p->server));
	return p;
}

static void poster_close(struct poster *p)
{
	mc_http_server_close(p->server);
	mc_free(p);
}

static int post(struct poster *p, const char *method, const char *path, const void *body,
		size_t len, char *ret_text, size_t cap)
{
	char url[256];
	struct mc_http_req req = {.method = method,
				  .url = url,
				  .type = "text/plain",
				  .body = body,
				  .body_len = len,
				  .connect_timeout_ms = 1000,
				  .deadline_ns = mc_now_ns() + 20 * MC_NS_PER_S,
				  .reply_bytes_max = 1 << 20};
	struct mc_http_reply reply;
	struct mc_diag diag;

	(void)snprintf(url, sizeof(url), "%s%s", p->base, path);
	if (mc_http_call(p->f->client, &req, &reply, &diag) < 0)
		return -1;
	(void)snprintf(ret_text, cap, "%s", reply.body);
	mc_free(reply.body);
	return reply.status;
}

static void server_takes_bodies_up_to_its_limit(void **state)
{
	struct poster *p = poster_open(*state);
	char body[BODY_MAX + 1], text[BODY_MAX + 64], want[BODY_MAX + 64];

	memset(body, 'b', sizeof(body));
	assert_int_equal(post(p, "PUT", "/x", "abc", 3, text, sizeof(text)), 200);
	assert_string_equal(text, "PUT abc");
	assert_int_equal(post(p, "DELETE", "/x", NULL, 0, text, sizeof(text)), 200);
	assert_string_equal(text, "DELETE ");
	assert_int_equal(post(p, "POST", "/x", body, BODY_MAX, text, sizeof(text)), 200);
	(void)snprintf(want, sizeof(want), "POST %.*s", (int)BODY_MAX, body);
	assert_string_equal(text, want);
	assert_int_equal(post(p, "POST", "/x", body, BODY_MAX + 1, text, sizeof(text)), 413);
	assert_string_equal(text, "the body has more than 1000 bytes\n");
	assert_int_equal(post(p, "GET", "/x", NULL, 0, text, sizeof(text)), 200);
	assert_string_equal(text, "GET ");
	poster_close(p);
}

/* Say this to the server. @return the status it answers with */
static int say(struct poster *p, const char *head, size_t body_len)
{
	char body[512], answer[4096];
	struct mc_addr at;
	size_t got = 0;
	ssize_t n;
	int fd, status = -1;

	memset(body, 'x', sizeof(body));
	assert_int_equal(mc_addr_parse("127.0.0.1", mc_http_server_port(p->server), &at), 0);
	fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	assert_true(fd >= 0);
	assert_int_equal(connect(fd, &at.sa, at.len), 0);
	assert_int_equal(send(fd, head, strlen(head), MSG_NOSIGNAL), strlen(head));
	for (size_t at_body = 0; at_body < body_len; at_body += sizeof(body)) {
		if (send(fd, body, mc_min(sizeof(body), body_len - at_body), MSG_NOSIGNAL) < 0)
			break; /* it has heard enough */
	}
	if (strstr(head, "chunked"))
		(void)send(fd, "\r\n0\r\n\r\n", 7, MSG_NOSIGNAL);
	while (got < sizeof(answer) - 1 && status < 0) {
		n = recv(fd, answer + got, sizeof(answer) - 1 - got, 0);
		if (n <= 0)
			break;
		got += (size_t)n;
		answer[got] = '\0';
		if (sscanf(answer, "HTTP/1.1 %d", &status) != 1)
			status = -1;
	}
	mc_fd_close(&fd);
	return status;
}

static void body_of_unknown_length_is_bounded_too(void **state)
{
	static const char head[] =
	    "POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
	struct poster *p = poster_open(*state);
	char text[256];

	(void)snprintf(text, sizeof(text), "%s%x\r\n", head, BODY_MAX);
	assert_int_equal(say(p, text, BODY_MAX), 200);
	(void)snprintf(text, sizeof(text), "%s%x\r\n", head, 100 * BODY_MAX);
	assert_int_equal(say(p, text, 100 * BODY_MAX), 413);
	(void)snprintf(text, sizeof(text), "%s%x\r\n", head, 10u);
	assert_int_equal(say(p, text, 10), 200);
	poster_close(p);
}

/* A request whose body is there but for its end. @return its connection */
static int hold(struct poster *p)
{
	char head[128], body[BODY_MAX];
	struct mc_addr at;
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	assert_true(fd >= 0);
	memset(body, 'b', sizeof(body));
	(void)snprintf(head, sizeof(head),
		       "POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n",
		       BODY_MAX);
	assert_int_equal(mc_addr_parse("127.0.0.1", mc_http_server_port(p->server), &at), 0);
	assert_int_equal(connect(fd, &at.sa, at.len), 0);
	assert_int_equal(send(fd, head, strlen(head), MSG_NOSIGNAL), strlen(head));
	assert_int_equal(send(fd, body, BODY_MAX, MSG_NOSIGNAL), BODY_MAX);
	return fd;
}

static void what_is_held_at_one_time_is_bounded(void **state)
{
	struct poster *p = poster_open(*state);
	char body[BODY_MAX], text[BODY_MAX + 64];
	int fds[HELD_MAX / BODY_MAX], status = 200;

	memset(body, 'b', sizeof(body));
	/* Once more when the question came before the last of them, and had the room itself. */
	for (unsigned i = 0; status != 503; i++) {
		assert_true(i < 1000);
		for (size_t k = 0; k < MC_ARRAY_LEN(fds); k++)
			fds[k] = hold(p);
		(void)poll(NULL, 0, 5);
		status = post(p, "POST", "/x", body, BODY_MAX, text, sizeof(text));
		for (size_t k = 0; k < MC_ARRAY_LEN(fds); k++)
			mc_fd_close(&fds[k]);
	}
	while (post(p, "POST", "/x", body, BODY_MAX, text, sizeof(text)) != 200)
		(void)poll(NULL, 0, 2); /* until those that left are gone */
	poster_close(p);
}

static void *ask_late(void *arg)
{
	struct poster *p = arg;
	char text[64];

	return (void *)(intptr_t)post(p, "POST", "/late", p->is_bare ? NULL : "x", !p->is_bare,
				      text, sizeof(text));
}

static void answer_may_come_later_and_others_do_not_wait(void **state)
{
	struct poster *p = poster_open(*state);
	pthread_t thread;
	char text[64];
	void *status;

	for (unsigned i = 0; i < 2; i++) {
		p->is_late = false;
		p->is_bare = i == 1;
		assert_int_equal(pthread_create(&thread, NULL, ask_late, p), 0);
		while (!p->is_late)
			(void)poll(NULL, 0, 1);
		assert_int_equal(post(p, "PUT", "/x", "abc", 3, text, sizeof(text)), 200);
		mc_loop_post(p->f->loop, &p->finish);
		assert_int_equal(pthread_join(thread, &status), 0);
		assert_int_equal((intptr_t)status, 202);
	}
	poster_close(p);
}

static void server_that_closes_leaves_no_answer_out(void **state)
{
	struct poster *p = poster_open(*state);
	pthread_t thread;
	void *status;

	assert_int_equal(pthread_create(&thread, NULL, ask_late, p), 0);
	while (!p->is_late)
		(void)poll(NULL, 0, 1);
	mc_http_server_close(p->server);
	assert_int_equal(pthread_join(thread, &status), 0);
	assert_int_equal((intptr_t)status, 503);
	mc_free(p);
}

static void server_names_a_port_that_is_taken(void **state)
{
	struct fixture *f = *state;
	struct mc_http_server *second;
	struct mc_addr at;
	struct mc_diag diag;

	assert_int_equal(mc_addr_parse("127.0.0.1", mc_http_server_port(f->server), &at), 0);
	assert_int_equal(mc_http_server_open(f->loop, &at, echo, f, &second, &diag),
			 -MC_E_ADDR_IN_USE);
	assert_non_null(strstr(diag.text, "127.0.0.1"));
}

static void missing_library_or_symbol_is_named(void **state)
{
	static const char *const none[] = {"libmc-no-such.so.9", NULL};
	static const char *const libc[] = {"libmc-no-such.so.9", "libc.so.6", NULL};
	const struct mc_dl_sym syms[] = {{"strlen", 0}, {"mc_no_such_symbol", sizeof(void *)}};
	void *table[2] = {NULL, NULL};
	struct mc_diag diag;
	size_t which = 9;

	assert_int_equal(mc_dl_load(none, syms, 1, table, NULL, &diag), -MC_E_UNAVAILABLE);
	assert_non_null(strstr(diag.text, "libmc-no-such.so.9"));
	assert_int_equal(mc_dl_load(libc, syms, 2, table, NULL, &diag), -MC_E_UNAVAILABLE);
	assert_non_null(strstr(diag.text, "mc_no_such_symbol"));
	assert_int_equal(mc_dl_load(libc, syms, 1, table, &which, &diag), 0);
	assert_int_equal(which, 1);
	assert_non_null(table[0]);
	(void)state;
}

static void quoting_keeps_only_what_rfc_3986_leaves_alone(void **state)
{
	struct mc_str out;

	mc_str_init(&out, 100);
	assert_int_equal(mc_http_quote(&out, "a-Z_0.~/:&= %\xc3\xbc"), 0);
	assert_string_equal(mc_str_text(&out), "a-Z_0.~%2F%3A%26%3D%20%25%C3%BC");
	mc_str_fini(&out);
	(void)state;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(server_answers_get_and_nothing_else),
	    cmocka_unit_test(reply_larger_than_its_limit_is_refused),
	    cmocka_unit_test(threads_share_a_client),
	    cmocka_unit_test(client_names_what_it_could_not_reach),
	    cmocka_unit_test(client_ends_at_its_deadline),
	    cmocka_unit_test(server_takes_bodies_up_to_its_limit),
	    cmocka_unit_test(body_of_unknown_length_is_bounded_too),
	    cmocka_unit_test(what_is_held_at_one_time_is_bounded),
	    cmocka_unit_test(answer_may_come_later_and_others_do_not_wait),
	    cmocka_unit_test(server_that_closes_leaves_no_answer_out),
	    cmocka_unit_test(server_names_a_port_that_is_taken),
	    cmocka_unit_test(missing_library_or_symbol_is_named),
	    cmocka_unit_test(quoting_keeps_only_what_rfc_3986_leaves_alone),
	};

	return cmocka_run_group_tests(tests, set_up, tear_down);
}
