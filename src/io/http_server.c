/*
 * http_server.c: libmicrohttpd in its external-epoll mode: its one descriptor is watched by our
 * loop, its timeouts are a timer of ours.
 */
#include "io/http_server.h"

#include <microhttpd.h>
#include <pthread.h>
#include <string.h>

#include "base/mem.h"
#include "io/dl.h"

#define CONNS_MAX 64
#define IDLE_TIMEOUT_S 10

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
	int listen_fd; /* the daemon's once it runs */
	uint16_t port;
	int rc; /* of starting on the loop */
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

	if (mhd.api.arg(answer->conn, MHD_GET_ARGUMENT_KIND, name, strlen(name), &value, &len) !=
	    MHD_YES)
		return NULL;
	if (!value)
		return "";
	return strlen(value) == len ? value : NULL; /* no text that ends early */
}

static enum MHD_Result on_request(void *cls, struct MHD_Connection *conn, const char *url,
				  const char *method, const char *version, const char *upload,
				  size_t *upload_len, void **con_cls)
{
	static const char refusal[] = "only GET is served here\n";
	struct mc_http_answer a = {.status = 404, .type = "text/plain", .conn = conn};
	struct mc_http_server *srv = cls;
	struct MHD_Response *r;
	enum MHD_Result rc;

	(void)version;
	(void)upload;
	(void)con_cls;
	if (*upload_len) { /* a body is read away, not kept */
		*upload_len = 0;
		return MHD_YES;
	}
	if (strcmp(method, "GET") == 0) {
		srv->handler(srv->user, url, &a);
		r = mhd.api.response(a.len, a.body ? a.body : "", MHD_RESPMEM_MUST_COPY);
		mc_free(a.body);
	} else {
		a.status = 405;
		r = mhd.api.response(sizeof(refusal) - 1, (void *)refusal, MHD_RESPMEM_PERSISTENT);
	}
	if (!r)
		return MHD_NO;
	(void)mhd.api.header(r, "Content-Type", a.type); /* without it the text still is one */
	rc = mhd.api.queue(conn, (unsigned)a.status, r);
	mhd.api.destroy(r);
	return rc;
}

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

	srv->daemon =
	    mhd.api.start(MHD_USE_EPOLL, 0, NULL, NULL, on_request, srv, MHD_OPTION_LISTEN_SOCKET,
			  srv->listen_fd, MHD_OPTION_CONNECTION_LIMIT, (unsigned)CONNS_MAX,
			  MHD_OPTION_CONNECTION_TIMEOUT, (unsigned)IDLE_TIMEOUT_S, MHD_OPTION_END);
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
	struct mc_http_server *srv = arg;

	if (!srv->daemon)
		return;
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
	srv->listen_fd = -1;
	rc = mc_sock_listen(at, CONNS_MAX, &srv->listen_fd, &bound);
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
