/*
 * http_server.c: libmicrohttpd in its external-epoll mode: its one descriptor is watched by our
 * loop, its timeouts are a timer of ours.
 */
#include "io/http_server.h"

#include <microhttpd.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "base/list.h"
#include "base/mem.h"
#include "base/opt.h"
#include "base/str.h"
#include "io/dl.h"

#define CONNS_MAX 64u
#define HELD_MAX ((size_t)1 << 30)
#define BODY_MAX ((size_t)1 << 30)
#define IDLE_TIMEOUT_S 10
#define ERROR_MAX_BYTES 80u
#define CLOSING_RUNS 8u

struct mhd_api {
	struct MHD_Daemon *(*start)(unsigned flags, uint16_t port, MHD_AcceptPolicyCallback apc,
				    void *apc_cls, MHD_AccessHandlerCallback dh, void *dh_cls, ...);
	void (*stop)(struct MHD_Daemon *d);
	const union MHD_DaemonInfo *(*info)(struct MHD_Daemon *d, enum MHD_DaemonInfoType t, ...);
	enum MHD_Result (*run)(struct MHD_Daemon *d);
	enum MHD_Result (*timeout)(struct MHD_Daemon *d, MHD_UNSIGNED_LONG_LONG *ms);
	struct MHD_Response *(*response)(size_t n, void *data, enum MHD_ResponseMemoryMode mode);
	enum MHD_Result (*header)(struct MHD_Response *r, const char *name, const char *value);
	enum MHD_Result (*queue)(struct MHD_Connection *c, unsigned status, struct MHD_Response *r);
	void (*destroy)(struct MHD_Response *r);
	void (*suspend)(struct MHD_Connection *c);
	void (*resume)(struct MHD_Connection *c);
	enum MHD_Result (*arg)(struct MHD_Connection *c, enum MHD_ValueKind kind, const char *key,
			       size_t key_len, const char **value, size_t *value_len);
};

static const struct mc_dl_sym mhd_syms[] = {
    MC_DL_SYM(struct mhd_api, start, "MHD_start_daemon"),
    MC_DL_SYM(struct mhd_api, stop, "MHD_stop_daemon"),
    MC_DL_SYM(struct mhd_api, info, "MHD_get_daemon_info"),
    MC_DL_SYM(struct mhd_api, run, "MHD_run"),
    MC_DL_SYM(struct mhd_api, timeout, "MHD_get_timeout"),
    MC_DL_SYM(struct mhd_api, response, "MHD_create_response_from_buffer"),
    MC_DL_SYM(struct mhd_api, header, "MHD_add_response_header"),
    MC_DL_SYM(struct mhd_api, queue, "MHD_queue_response"),
    MC_DL_SYM(struct mhd_api, destroy, "MHD_destroy_response"),
    MC_DL_SYM(struct mhd_api, suspend, "MHD_suspend_connection"),
    MC_DL_SYM(struct mhd_api, resume, "MHD_resume_connection"),
    MC_DL_SYM(struct mhd_api, arg, "MHD_lookup_connection_value_n"),
};

/* Loaded once for the process; constant after that. */
static struct {
	pthread_once_t once;
	struct mhd_api api;
	int rc;
	struct mc_diag diag;
} mhd = {.once = PTHREAD_ONCE_INIT};

struct mc_http_server {
	struct mc_loop *loop;
	struct MHD_Daemon *daemon;
	struct mc_watch watch;
	struct mc_timer timer;
	mc_http_handler handler;
	void *user;
	struct mc_http_opts opts; /* without zeros but for body_max */
	struct mc_list requests;
	size_t held;   /* by requests */
	int listen_fd; /* the daemon's once it runs */
	uint16_t port;
	int rc; /* of starting on the loop */
	bool is_closing;
};

/* From its head until its answer is sent, or its connection is lost. */
struct mc_http_request {
	struct mc_list link; /* mc_http_server.requests */
	struct mc_http_server *srv;
	struct MHD_Connection *conn;
	const char *method; /* the library's, in a handler */
	char *body;
	size_t body_len, body_cap;
	size_t held;   /* of mc_http_server.held */
	int refusal;   /* 0, or the status: no handler is asked */
	bool is_asked; /* the handler was */
	bool is_late;  /* the answer comes with mc_http_finish() */
	bool is_suspended;
	struct mc_http_answer answer; /* unless it is late */
};

static void load(void)
{
	static const char *const names[] = {"libmicrohttpd.so.12", NULL};

	mhd.rc = mc_dl_load(names, mhd_syms, MC_ARRAY_LEN(mhd_syms), &mhd.api, NULL, &mhd.diag);
}

const char *mc_http_arg(const struct mc_http_answer *answer, const char *name)
{
	const char *value = NULL;
	size_t len;

	if (mhd.api.arg(answer->request->conn, MHD_GET_ARGUMENT_KIND, name, strlen(name), &value,
			&len) != MHD_YES)
		return NULL;
	if (!value)
		return "";
	return strlen(value) == len ? value : NULL; /* no text that ends early */
}

const char *mc_http_method(const struct mc_http_answer *answer)
{
	return answer->request->method;
}

bool mc_http_has_header(const struct mc_http_answer *answer, const char *name)
{
	const char *value;
	size_t len;

	return mhd.api.arg(answer->request->conn, MHD_HEADER_KIND, name, strlen(name), &value,
			   &len) == MHD_YES;
}

const void *mc_http_body(const struct mc_http_answer *answer, size_t *ret_len)
{
	*ret_len = answer->request->body_len;
	return answer->request->body;
}

struct mc_http_request *mc_http_defer(struct mc_http_answer *answer)
{
	answer->request->is_late = true;
	return answer->request;
}

void mc_http_finish(struct mc_http_request *request, const struct mc_http_answer *answer)
{
	mc_assert(request->is_late);
	request->is_late = false;
	request->answer = *answer;
	request->answer.request = request;
	if (request->is_suspended) {
		request->is_suspended = false;
		mhd.api.resume(request->conn);
		/* Whoever polls for the library has to run it after that (microhttpd.h); its own
		 * signal does not suffice for a request without a body, as a test showed. */
		(void)mc_loop_timer_set(request->srv->loop, &request->srv->timer,
					mc_loop_now(request->srv->loop));
	}
}

/* ---- one request ---- */

/* Memory for it. @return false: there is too much */
static bool hold(struct mc_http_request *r, size_t len)
{
	struct mc_http_server *srv = r->srv;

	if (len > srv->opts.held_max || srv->held > srv->opts.held_max - len)
		return false;
	srv->held += len;
	r->held += len;
	return true;
}

static void body_drop(struct mc_http_request *r)
{
	r->srv->held -= r->held;
	r->held = 0;
	mc_free(r->body);
	r->body = NULL;
	r->body_len = r->body_cap = 0;
}

static void body_add(struct mc_http_request *r, const char *data, size_t len)
{
	if (r->refusal || r->srv->opts.body_max == 0)
		return; /* read away */
	if (len > r->srv->opts.body_max - r->body_len)
		r->refusal = MHD_HTTP_CONTENT_TOO_LARGE;
	else if (!hold(r, len) || mc_array_grow((void **)&r->body, &r->body_cap, r->body_len + len,
						r->srv->opts.body_max, 1) < 0)
		r->refusal = MHD_HTTP_SERVICE_UNAVAILABLE;
	if (r->refusal) {
		body_drop(r);
		return;
	}
	memcpy(r->body + r->body_len, data, len);
	r->body_len += len;
}

static enum MHD_Result send_text(struct mc_http_request *r, int status, const char *type,
				 const void *text, size_t len)
{
	struct MHD_Response *response =
	    mhd.api.response(len, (void *)text, MHD_RESPMEM_MUST_COPY); /* it only reads */
	enum MHD_Result rc;

	if (!response)
		return MHD_NO;
	(void)mhd.api.header(response, "Content-Type", type); /* without it the text still is one */
	rc = mhd.api.queue(r->conn, (unsigned)status, response);
	mhd.api.destroy(response);
	return rc;
}

static enum MHD_Result refuse(struct mc_http_request *r, int status)
{
	char text[ERROR_MAX_BYTES];

	switch (status) {
	case MHD_HTTP_METHOD_NOT_ALLOWED:
		(void)mc_strlcpy(text, sizeof(text), "only GET is served here\n");
		break;
	case MHD_HTTP_CONTENT_TOO_LARGE:
		(void)snprintf(text, sizeof(text), "the body has more than %zu bytes\n",
			       r->srv->opts.body_max);
		break;
	default:
		(void)mc_strlcpy(text, sizeof(text), "too much at one time; ask again later\n");
		break;
	}
	return send_text(r, status, "text/plain", text, strlen(text));
}

/* What is larger than all that may be held passes alone. */
static enum MHD_Result send_answer(struct mc_http_request *r)
{
	struct mc_http_answer *a = &r->answer;
	enum MHD_Result rc;

	body_drop(r);
	if (!hold(r, a->len) && r->srv->held > 0) {
		rc = refuse(r, MHD_HTTP_SERVICE_UNAVAILABLE);
	} else {
		if (r->held == 0) {
			r->held = a->len;
			r->srv->held += a->len;
		}
		rc = send_text(r, a->status, a->type, a->body ? a->body : "", a->len);
	}
	mc_free(a->body);
	a->body = NULL;
	return rc;
}

/* Its head came. */
static enum MHD_Result begin(struct mc_http_server *srv, struct MHD_Connection *conn,
			     const char *method, void **con_cls)
{
	struct mc_http_request *r = mc_calloc(1, sizeof(*r));
	const char *text = NULL;
	uint64_t len;
	size_t n;

	if (!r)
		return MHD_NO;
	r->srv = srv;
	r->conn = conn;
	mc_list_push_back(&srv->requests, &r->link);
	*con_cls = r;
	if (srv->opts.body_max == 0)
		return strcmp(method, "GET") == 0 ? MHD_YES
						  : refuse(r, MHD_HTTP_METHOD_NOT_ALLOWED);
	/* Whoever says how long its body is need not send it in vain. */
	if (mhd.api.arg(conn, MHD_HEADER_KIND, "Content-Length", strlen("Content-Length"), &text,
			&n) == MHD_YES &&
	    text && mc_opt_parse_u64(text, &len) == 0 && len > srv->opts.body_max)
		return refuse(r, MHD_HTTP_CONTENT_TOO_LARGE);
	return MHD_YES;
}

static enum MHD_Result on_request(void *cls, struct MHD_Connection *conn, const char *url,
				  const char *method, const char *version, const char *upload,
				  size_t *upload_len, void **con_cls)
{
	struct mc_http_request *r = *con_cls;
	struct mc_http_server *srv = cls;

	(void)version;
	if (!r)
		return begin(srv, conn, method, con_cls);
	if (*upload_len) {
		body_add(r, upload, *upload_len);
		*upload_len = 0;
		return MHD_YES;
	}
	if (r->refusal || (srv->is_closing && !r->is_asked))
		return refuse(r, r->refusal ? r->refusal : MHD_HTTP_SERVICE_UNAVAILABLE);
	if (!r->is_asked) {
		r->is_asked = true;
		r->method = method;
		r->answer = (struct mc_http_answer){
		    .status = MHD_HTTP_NOT_FOUND, .type = "text/plain", .request = r};
		srv->handler(srv->user, url, &r->answer);
	}
	if (!r->is_late)
		return send_answer(r);
	if (!r->is_suspended)
		mhd.api.suspend(conn);
	r->is_suspended = true;
	return MHD_YES;
}

static void on_completed(void *cls, struct MHD_Connection *conn, void **con_cls,
			 enum MHD_RequestTerminationCode code)
{
	struct mc_http_request *r = *con_cls;

	(void)cls;
	(void)conn;
	(void)code;
	if (!r)
		return;
	*con_cls = NULL;
	body_drop(r);
	mc_list_del(&r->link);
	mc_free(r->answer.body);
	mc_free(r);
}

/* ---- on the loop ---- */

static void run(struct mc_http_server *srv)
{
	MHD_UNSIGNED_LONG_LONG ms;

	(void)mhd.api.run(srv->daemon);
	mc_loop_timer_cancel(srv->loop, &srv->timer);
	if (mhd.api.timeout(srv->daemon, &ms) == MHD_YES)
		mc_loop_timer_set(srv->loop, &srv->timer,
				  mc_time_after(mc_loop_now(srv->loop), ms * MC_NS_PER_MS));
}

static void on_event(struct mc_watch *w, uint32_t events)
{
	(void)events;
	run(mc_container_of(w, struct mc_http_server, watch));
}

static void on_time(struct mc_timer *t)
{
	run(mc_container_of(t, struct mc_http_server, timer));
}

static void start(void *arg)
{
	struct mc_http_server *srv = arg;
	const union MHD_DaemonInfo *info;

	srv->daemon = mhd.api.start(
	    MHD_USE_EPOLL | MHD_ALLOW_SUSPEND_RESUME, 0, NULL, NULL, on_request, srv,
	    MHD_OPTION_LISTEN_SOCKET, srv->listen_fd, MHD_OPTION_CONNECTION_LIMIT,
	    srv->opts.conns_max, MHD_OPTION_CONNECTION_TIMEOUT, (unsigned)IDLE_TIMEOUT_S,
	    MHD_OPTION_NOTIFY_COMPLETED, on_completed, NULL, MHD_OPTION_END);
	info = srv->daemon ? mhd.api.info(srv->daemon, MHD_DAEMON_INFO_EPOLL_FD) : NULL;
	if (!info) {
		srv->rc = -MC_E_LIMIT;
		return;
	}
	srv->listen_fd = -1;
	srv->watch =
	    (struct mc_watch){.fd = info->epoll_fd, .events = EPOLLIN, .on_event = on_event};
	srv->timer.on_time = on_time;
	srv->rc = mc_loop_watch(srv->loop, &srv->watch);
}

static void stop(void *arg)
{
	static const struct mc_http_answer closed = {.status = MHD_HTTP_SERVICE_UNAVAILABLE,
						     .type = "text/plain"};
	struct mc_http_server *srv = arg;
	struct mc_http_request *r;

	if (!srv->daemon)
		return;
	mc_list_each (r, &srv->requests, link) {
		if (r->is_suspended)
			mc_http_finish(r, &closed);
	}
	srv->is_closing = true;
	for (unsigned i = 0; i < CLOSING_RUNS && !mc_list_is_empty(&srv->requests); i++)
		(void)mhd.api.run(srv->daemon); /* what was resumed goes on */
	if (srv->rc == 0)
		mc_loop_unwatch(srv->loop, &srv->watch);
	mc_loop_timer_cancel(srv->loop, &srv->timer);
	mhd.api.stop(srv->daemon);
}

void mc_http_server_close(struct mc_http_server *srv)
{
	if (!srv)
		return;
	mc_loop_call(srv->loop, stop, srv);
	mc_fd_close(&srv->listen_fd);
	mc_free(srv);
}

int mc_http_server_open(struct mc_loop *loop, const struct mc_addr *at, mc_http_handler handler,
			void *user, struct mc_http_server **ret, struct mc_diag *diag)
{
	static const struct mc_http_opts get_alone;

	return mc_http_server_open_opts(loop, at, &get_alone, handler, user, ret, diag);
}

int mc_http_server_open_opts(struct mc_loop *loop, const struct mc_addr *at,
			     const struct mc_http_opts *opts, mc_http_handler handler, void *user,
			     struct mc_http_server **ret, struct mc_diag *diag)
{
	char text[MC_ADDR_TEXT_MAX];
	struct mc_http_server *srv;
	struct mc_addr bound;
	int rc;

	(void)pthread_once(&mhd.once, load); /* cannot fail with a static once */
	if (mhd.rc < 0) {
		mc_diag_set(diag, "HTTP server: %s", mhd.diag.text);
		return mhd.rc;
	}
	srv = mc_calloc(1, sizeof(*srv));
	if (!srv)
		return -MC_E_NOMEM;
	srv->loop = loop;
	srv->handler = handler;
	srv->user = user;
	srv->opts = *opts;
	srv->opts.body_max = mc_min(opts->body_max, BODY_MAX);
	srv->opts.held_max = opts->held_max ? opts->held_max : HELD_MAX;
	srv->opts.conns_max = opts->conns_max ? opts->conns_max : CONNS_MAX;
	mc_list_init(&srv->requests);
	srv->listen_fd = -1;
	rc = mc_sock_listen(at, (int)srv->opts.conns_max, &srv->listen_fd, &bound);
	if (rc < 0) {
		mc_diag_set(diag, "HTTP server on %s: %s", mc_addr_format(at, text),
			    mc_err_text(rc));
		goto fail;
	}
	srv->port = mc_addr_port(&bound);
	mc_loop_call(loop, start, srv);
	rc = srv->rc;
	if (rc < 0) {
		mc_diag_set(diag, "HTTP server on %s does not start", mc_addr_format(at, text));
		goto fail;
	}
	*ret = srv;
	return 0;
fail:
	mc_http_server_close(srv);
	return rc;
}

uint16_t mc_http_server_port(const struct mc_http_server *srv)
{
	return srv->port;
}
