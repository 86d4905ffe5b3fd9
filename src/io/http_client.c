/*
 * http_client.c: a pool of libcurl easy handles, each with its kept connections; a call takes one
 * or makes one, so calls do not wait for each other.
 */
#include "io/http_client.h"

#include <curl/curl.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"
#include "base/str.h"
#include "io/dl.h"

#define IDLE_MAX 4

struct curl_api {
	CURLcode (*global_init)(long flags);
	CURL *(*init)(void);
	void (*cleanup)(CURL *h);
	void (*reset)(CURL *h);
	CURLcode (*setopt)(CURL *h, CURLoption opt, ...);
	CURLcode (*perform)(CURL *h);
	CURLcode (*getinfo)(CURL *h, CURLINFO info, ...);
	const char *(*text)(CURLcode code);
	struct curl_slist *(*slist_append)(struct curl_slist *list, const char *text);
	void (*slist_free)(struct curl_slist *list);
};

static const struct mc_dl_sym curl_syms[] = {
    MC_DL_SYM(struct curl_api, global_init, "curl_global_init"),
    MC_DL_SYM(struct curl_api, init, "curl_easy_init"),
    MC_DL_SYM(struct curl_api, cleanup, "curl_easy_cleanup"),
    MC_DL_SYM(struct curl_api, reset, "curl_easy_reset"),
    MC_DL_SYM(struct curl_api, setopt, "curl_easy_setopt"),
    MC_DL_SYM(struct curl_api, perform, "curl_easy_perform"),
    MC_DL_SYM(struct curl_api, getinfo, "curl_easy_getinfo"),
    MC_DL_SYM(struct curl_api, text, "curl_easy_strerror"),
    MC_DL_SYM(struct curl_api, slist_append, "curl_slist_append"),
    MC_DL_SYM(struct curl_api, slist_free, "curl_slist_free_all"),
};

/* Loaded once for the process; constant after that. */
static struct {
	pthread_once_t once;
	struct curl_api api;
	int rc;
	struct mc_diag diag;
} curl_lib = {.once = PTHREAD_ONCE_INIT};

struct mc_http_client {
	pthread_mutex_t lock; /* guards idle and nidle; a leaf */
	CURL *idle[IDLE_MAX];
	int nidle;
};

static void load(void)
{
	static const char *const names[] = {"libcurl.so.4", "libcurl-gnutls.so.4", NULL};

	curl_lib.rc = mc_dl_load(names, curl_syms, MC_ARRAY_LEN(curl_syms), &curl_lib.api, NULL,
				 &curl_lib.diag);
	if (curl_lib.rc == 0 && curl_lib.api.global_init(CURL_GLOBAL_DEFAULT) != CURLE_OK) {
		mc_diag_set(&curl_lib.diag, "not available: libcurl does not start");
		curl_lib.rc = -MC_E_UNAVAILABLE;
	}
}

int mc_http_client_open(struct mc_http_client **ret, struct mc_diag *diag)
{
	struct mc_http_client *c;

	(void)pthread_once(&curl_lib.once, load); /* cannot fail with a static once */
	if (curl_lib.rc < 0) {
		mc_diag_set(diag, "HTTP client: %s", curl_lib.diag.text);
		return curl_lib.rc;
	}
	c = mc_calloc(1, sizeof(*c));
	if (!c)
		return -MC_E_NOMEM;
	(void)pthread_mutex_init(&c->lock, NULL); /* cannot fail with default attributes */
	*ret = c;
	return 0;
}

void mc_http_client_close(struct mc_http_client *c)
{
	if (!c)
		return;
	for (int i = 0; i < c->nidle; i++)
		curl_lib.api.cleanup(c->idle[i]);
	(void)pthread_mutex_destroy(&c->lock);
	mc_free(c);
}

static CURL *handle_take(struct mc_http_client *c, bool *ret_is_kept)
{
	CURL *h = NULL;

	pthread_mutex_lock(&c->lock);
	if (c->nidle)
		h = c->idle[--c->nidle];
	pthread_mutex_unlock(&c->lock);
	*ret_is_kept = h != NULL;
	return h ? h : curl_lib.api.init();
}

/* Kept connections survive a reset; a handle that failed is dropped with them. */
static void handle_give(struct mc_http_client *c, CURL *h, bool is_good)
{
	bool is_kept = false;

	curl_lib.api.reset(h);
	pthread_mutex_lock(&c->lock);
	if (is_good && c->nidle < IDLE_MAX) {
		c->idle[c->nidle++] = h;
		is_kept = true;
	}
	pthread_mutex_unlock(&c->lock);
	if (!is_kept)
		curl_lib.api.cleanup(h);
}

static size_t on_body(char *data, size_t size, size_t n, void *user)
{
	/* Fewer than came makes libcurl stop; the reason is in the text's rc. */
	return mc_str_append(user, data, size * n) < 0 ? 0 : size * n;
}

static int err_of(CURL *h, CURLcode code, const struct mc_str *text)
{
	long os = 0;

	switch (code) {
	case CURLE_URL_MALFORMAT:
	case CURLE_UNSUPPORTED_PROTOCOL:
		return -MC_E_INVAL;
	case CURLE_COULDNT_RESOLVE_HOST:
	case CURLE_COULDNT_RESOLVE_PROXY:
		return -MC_E_DNS;
	case CURLE_COULDNT_CONNECT:
		(void)curl_lib.api.getinfo(h, CURLINFO_OS_ERRNO, &os); /* stays 0 */
		return os ? mc_err_from_errno((int)os) : -MC_E_REFUSED;
	case CURLE_OPERATION_TIMEDOUT:
		return -MC_E_TIMEDOUT;
	case CURLE_SEND_ERROR:
	case CURLE_RECV_ERROR:
	case CURLE_GOT_NOTHING:
	case CURLE_PARTIAL_FILE:
		return -MC_E_RESET;
	case CURLE_SSL_CONNECT_ERROR:
	case CURLE_PEER_FAILED_VERIFICATION:
	case CURLE_SSL_CACERT_BADFILE:
		return -MC_E_AUTH;
	case CURLE_WRITE_ERROR:
		return text->rc < 0 ? text->rc : -MC_E_IO;
	case CURLE_OUT_OF_MEMORY:
		return -MC_E_NOMEM;
	default:
		return -MC_E_IO;
	}
}

static CURLcode set_up(CURL *h, const struct mc_http_req *req, struct mc_str *text,
		       struct curl_slist *headers, long timeout_ms)
{
	const struct curl_api *api = &curl_lib.api;
	CURLcode rc = CURLE_OK;

#define SET(opt, value)                                                                            \
	do {                                                                                       \
		if (rc == CURLE_OK)                                                                \
			rc = api->setopt(h, opt, value);                                           \
	} while (0)
	SET(CURLOPT_NOSIGNAL, 1L);
	SET(CURLOPT_URL, req->url);
	SET(CURLOPT_CUSTOMREQUEST, req->method);
	SET(CURLOPT_TIMEOUT_MS, timeout_ms);
	SET(CURLOPT_CONNECTTIMEOUT_MS, mc_min((long)req->connect_timeout_ms, timeout_ms));
	SET(CURLOPT_WRITEFUNCTION, on_body);
	SET(CURLOPT_WRITEDATA, text);
	SET(CURLOPT_HTTPHEADER, headers);
	if (req->body) {
		SET(CURLOPT_POSTFIELDS, req->body);
		SET(CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)req->body_len);
	}
#undef SET
	return rc;
}

/* "Expect:" off: the servers we talk to answer at once, and waiting for a 100 costs a second. */
static struct curl_slist *headers_of(const struct mc_http_req *req)
{
	struct curl_slist *list = curl_lib.api.slist_append(NULL, "Expect:"), *more;
	char line[128];
	int n;

	if (!list || !req->type)
		return list;
	n = snprintf(line, sizeof(line), "Content-Type: %s", req->type);
	mc_assert(n > 0 && (size_t)n < sizeof(line));
	more = curl_lib.api.slist_append(list, line);
	if (!more)
		curl_lib.api.slist_free(list);
	return more;
}

static int perform(CURL *h, const struct mc_http_req *req, struct mc_str *text, int *ret_status,
		   struct mc_diag *diag)
{
	uint64_t now = mc_now_ns();
	struct curl_slist *headers = headers_of(req);
	CURLcode code;
	long status = 0, timeout_ms;
	int rc;

	if (!headers)
		return -MC_E_NOMEM;
	timeout_ms = req->deadline_ns > now
			 ? (long)mc_min((req->deadline_ns - now) / MC_NS_PER_MS + 1, 3600000ull)
			 : 1;
	code = set_up(h, req, text, headers, timeout_ms);
	if (code == CURLE_OK)
		code = curl_lib.api.perform(h);
	if (code == CURLE_OK)
		code = curl_lib.api.getinfo(h, CURLINFO_RESPONSE_CODE, &status);
	rc = code == CURLE_OK ? 0 : err_of(h, code, text);
	if (code != CURLE_OK)
		mc_diag_set(diag, "%s %.300s: %s (%s)", req->method, req->url,
			    curl_lib.api.text(code), mc_err_text(rc));
	curl_lib.api.slist_free(headers);
	*ret_status = (int)status;
	return rc;
}

/* Every request of ours may be made twice: a connection that was kept and is over by now, which
 * only its use shows, costs one more try on a new one. */
static int call(struct mc_http_client *c, const struct mc_http_req *req, struct mc_str *text,
		int *ret_status, struct mc_diag *diag)
{
	bool is_kept;
	CURL *h = handle_take(c, &is_kept);
	int rc;

	if (!h)
		return -MC_E_NOMEM;
	rc = perform(h, req, text, ret_status, diag);
	if (rc == -MC_E_RESET && is_kept) {
		handle_give(c, h, false);
		h = curl_lib.api.init();
		if (!h)
			return -MC_E_NOMEM;
		mc_str_fini(text);
		mc_str_init(text, req->reply_bytes_max);
		rc = perform(h, req, text, ret_status, diag);
	}
	handle_give(c, h, rc == 0);
	return rc;
}

int mc_http_call(struct mc_http_client *c, const struct mc_http_req *req, struct mc_http_reply *ret,
		 struct mc_diag *diag)
{
	struct mc_str text;
	int rc, status;

	if (strncmp(req->url, "http://", 7) != 0 && strncmp(req->url, "https://", 8) != 0) {
		mc_diag_set(diag, "\"%.300s\" is no http:// or https:// URL", req->url);
		return -MC_E_INVAL;
	}
	mc_str_init(&text, req->reply_bytes_max);
	rc = call(c, req, &text, &status, diag);
	if (rc == 0) {
		ret->status = status;
		ret->len = text.len;
		ret->body = mc_str_take(&text);
		rc = ret->body ? 0 : -MC_E_NOMEM;
	}
	mc_str_fini(&text);
	return rc;
}

int mc_http_quote(struct mc_str *out, const char *text)
{
	static const char plain[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
				    "0123456789-._~";

	for (; *text; text++) {
		if (strchr(plain, *text))
			mc_str_append(out, text, 1);
		else
			mc_str_appendf(out, "%%%02X", (unsigned char)*text);
	}
	return out->rc;
}
