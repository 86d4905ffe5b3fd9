/*
 * meta_redis.c: GET, SET and DEL through hiredis, loaded on first use.
 *
 * hiredis only speaks the protocol here: sockets are non-blocking and waited for with poll(), since
 * its own timeouts are per system call and a trickling server could stretch them. hiredis 0.14 and
 * 1.x differ in the layout of two structures; both are written down below, and the library's name
 * tells which one it is.
 */
#include <poll.h>
#include <pthread.h>
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"
#include "base/opt.h"
#include "disco/meta_ops.h"
#include "io/dl.h"
#include "io/sock.h"

#define IDLE_MAX 4
#define REDIS_ERR_BYTES 128
#define PORT_DEFAULT 6379

/* Types of replies that matter. */
enum reply_type {
	REPLY_STRING = 1,
	REPLY_NIL = 4,
	REPLY_ERROR = 6,
};

/* Starts of redisContext and redisReply as the two versions lay them out. */
struct context_v0 {
	int err;
	char errstr[REDIS_ERR_BYTES];
	int fd;
};
struct context_v1 {
	const void *funcs;
	int err;
	char errstr[REDIS_ERR_BYTES];
	int fd;
};
struct reply_v0 {
	int type;
	long long integer;
	size_t len;
	char *str;
};
struct reply_v1 {
	int type;
	long long integer;
	double dval;
	size_t len;
	char *str;
};

struct redis_api {
	void *(*connect)(const char *host, int port);
	void (*free)(void *ctx);
	int (*append)(void *ctx, int argc, const char **argv, const size_t *lens);
	int (*write)(void *ctx, int *ret_done);
	int (*read)(void *ctx);
	int (*reply)(void *ctx, void **ret_reply);
	void (*reply_free)(void *reply);
};

static const struct mc_dl_sym redis_syms[] = {
    MC_DL_SYM(struct redis_api, connect, "redisConnectNonBlock"),
    MC_DL_SYM(struct redis_api, free, "redisFree"),
    MC_DL_SYM(struct redis_api, append, "redisAppendCommandArgv"),
    MC_DL_SYM(struct redis_api, write, "redisBufferWrite"),
    MC_DL_SYM(struct redis_api, read, "redisBufferRead"),
    MC_DL_SYM(struct redis_api, reply, "redisGetReplyFromReader"),
    MC_DL_SYM(struct redis_api, reply_free, "freeReplyObject"),
};

/* Loaded once for the process; constant after that. */
static struct {
	pthread_once_t once;
	struct redis_api api;
	bool is_v0;
	int rc;
	struct mc_diag diag;
} lib = {.once = PTHREAD_ONCE_INIT};

struct redis_meta {
	struct mc_meta meta;
	char host[MC_META_HOST_MAX];
	uint16_t port;
	struct mc_meta_conf conf;
	pthread_mutex_t lock; /* guards idle and nidle; a leaf */
	void *idle[IDLE_MAX];
	int nidle;
};

static void load(void)
{
	static const char *const names[] = {"libhiredis.so.0.14", "libhiredis.so.1.1.0",
					    "libhiredis.so.1.0.0", "libhiredis.so.1", NULL};
	size_t which = 0;

	lib.rc =
	    mc_dl_load(names, redis_syms, MC_ARRAY_LEN(redis_syms), &lib.api, &which, &lib.diag);
	lib.is_v0 = which == 0;
}

static const char *context_error(void *ctx, int *ret_err, int *ret_fd)
{
	struct context_v0 *v0 = ctx;
	struct context_v1 *v1 = ctx;

	*ret_err = lib.is_v0 ? v0->err : v1->err;
	*ret_fd = lib.is_v0 ? v0->fd : v1->fd;
	return lib.is_v0 ? v0->errstr : v1->errstr;
}

struct reply {
	int type;
	const char *str;
	size_t len;
};

static struct reply reply_view(const void *raw)
{
	const struct reply_v0 *v0 = raw;
	const struct reply_v1 *v1 = raw;

	if (lib.is_v0)
		return (struct reply){v0->type, v0->str, v0->len};
	return (struct reply){v1->type, v1->str, v1->len};
}

static int complain(const struct redis_meta *r, int rc, const char *why, struct mc_diag *diag)
{
	mc_diag_set(diag, "redis://%s:%u: %.200s", r->host, r->port, why);
	return rc;
}

static int wait_for(struct redis_meta *r, void *ctx, short events, uint64_t deadline_ns,
		    struct mc_diag *diag)
{
	int err, fd, rc;

	(void)context_error(ctx, &err, &fd); /* for the descriptor */
	rc = mc_sock_wait(fd, events, deadline_ns);
	return rc < 0 ? complain(r, -MC_E_METADATA, mc_err_text(rc), diag) : 0;
}

/* One command and its reply, to be freed by the library. */
static int command(struct redis_meta *r, void *ctx, int argc, const char **argv, const size_t *lens,
		   uint64_t deadline_ns, void **ret, struct mc_diag *diag)
{
	int done = 0, err, fd, rc = 0;
	void *reply = NULL;

	if (lib.api.append(ctx, argc, argv, lens) != 0)
		return -MC_E_NOMEM;
	while (rc == 0 && !done) {
		rc = wait_for(r, ctx, POLLOUT, deadline_ns, diag);
		if (rc == 0 && lib.api.write(ctx, &done) != 0)
			rc = complain(r, -MC_E_METADATA, context_error(ctx, &err, &fd), diag);
	}
	while (rc == 0 && !reply) {
		rc = wait_for(r, ctx, POLLIN, deadline_ns, diag);
		if (rc == 0 && (lib.api.read(ctx) != 0 || lib.api.reply(ctx, &reply) != 0))
			rc = complain(r, -MC_E_METADATA, context_error(ctx, &err, &fd), diag);
	}
	if (rc < 0)
		return rc;
	if (reply_view(reply).type == REPLY_ERROR) {
		(void)complain(r, 0, reply_view(reply).str, diag);
		lib.api.reply_free(reply);
		return -MC_E_METADATA;
	}
	*ret = reply;
	return 0;
}

/* A command whose reply says no more than that it went well. */
static int command_text(struct redis_meta *r, void *ctx, int argc, const char **argv,
			uint64_t deadline_ns, struct mc_diag *diag)
{
	void *reply;
	size_t lens[3];
	int rc;

	for (int i = 0; i < argc; i++)
		lens[i] = strlen(argv[i]);
	rc = command(r, ctx, argc, argv, lens, deadline_ns, &reply, diag);
	if (rc == 0)
		lib.api.reply_free(reply);
	return rc;
}

static int greet(struct redis_meta *r, void *ctx, uint64_t deadline_ns, struct mc_diag *diag)
{
	const struct mc_meta_conf *c = &r->conf;
	const char *auth[3] = {"AUTH", c->redis_username, c->redis_password};
	const char *select[2] = {"SELECT", NULL};
	char *db;
	int rc = 0;

	if (!c->redis_username[0])
		auth[1] = c->redis_password;
	if (c->redis_password[0])
		rc = command_text(r, ctx, c->redis_username[0] ? 3 : 2, auth, deadline_ns, diag);
	if (rc < 0 || c->redis_db == 0)
		return rc;
	db = mc_asprintf("%lld", (long long)c->redis_db);
	select[1] = db;
	rc = db ? command_text(r, ctx, 2, select, deadline_ns, diag) : -MC_E_NOMEM;
	mc_free(db);
	return rc;
}

static int dial(struct redis_meta *r, uint64_t deadline_ns, void **ret, struct mc_diag *diag)
{
	uint64_t limit = mc_time_after(mc_now_ns(), MC_META_CONNECT_MS * MC_NS_PER_MS);
	const char *text;
	int err, fd, rc;
	void *ctx = lib.api.connect(r->host, r->port);

	if (!ctx)
		return -MC_E_NOMEM;
	text = context_error(ctx, &err, &fd);
	if (err)
		rc = complain(r, -MC_E_METADATA, text, diag);
	else
		rc = wait_for(r, ctx, POLLOUT, mc_min(limit, deadline_ns), diag);
	if (rc == 0) {
		rc = mc_sock_connect_result(fd);
		if (rc < 0)
			rc = complain(r, -MC_E_METADATA, mc_err_text(rc), diag);
	}
	if (rc == 0)
		rc = greet(r, ctx, deadline_ns, diag);
	if (rc < 0) {
		lib.api.free(ctx);
		return rc;
	}
	*ret = ctx;
	return 0;
}

static void *idle_take(struct redis_meta *r)
{
	void *ctx = NULL;

	pthread_mutex_lock(&r->lock);
	if (r->nidle)
		ctx = r->idle[--r->nidle];
	pthread_mutex_unlock(&r->lock);
	return ctx;
}

static void idle_give(struct redis_meta *r, void *ctx)
{
	pthread_mutex_lock(&r->lock);
	if (r->nidle < IDLE_MAX) {
		r->idle[r->nidle++] = ctx;
		ctx = NULL;
	}
	pthread_mutex_unlock(&r->lock);
	if (ctx)
		lib.api.free(ctx);
}

/* A kept connection may have died with its server: then once more on a new one. */
static int call(struct mc_meta *meta, int argc, const char **argv, const size_t *lens,
		uint64_t deadline_ns, void **ret, struct mc_diag *diag)
{
	struct redis_meta *r = mc_container_of(meta, struct redis_meta, meta);
	void *ctx;
	int rc;

	while ((ctx = idle_take(r))) {
		rc = command(r, ctx, argc, argv, lens, deadline_ns, ret, diag);
		if (rc == 0) {
			idle_give(r, ctx);
			return 0;
		}
		lib.api.free(ctx);
	}
	rc = dial(r, deadline_ns, &ctx, diag);
	if (rc < 0)
		return rc;
	rc = command(r, ctx, argc, argv, lens, deadline_ns, ret, diag);
	if (rc == 0)
		idle_give(r, ctx);
	else
		lib.api.free(ctx);
	return rc;
}

static int redis_get(struct mc_meta *meta, const char *key, uint64_t deadline_ns, char **ret,
		     size_t *ret_len, struct mc_diag *diag)
{
	const char *argv[] = {"GET", key};
	const size_t lens[] = {3, strlen(key)};
	struct reply reply;
	void *raw;
	char *copy = NULL;
	int rc = call(meta, 2, argv, lens, deadline_ns, &raw, diag);

	if (rc < 0)
		return rc;
	reply = reply_view(raw);
	if (reply.type == REPLY_NIL)
		rc = -MC_E_NOENT;
	else if (reply.type != REPLY_STRING)
		rc = -MC_E_PROTO;
	else if (reply.len > MC_META_VALUE_MAX)
		rc = -MC_E_TOO_BIG;
	else if (!(copy = mc_calloc(reply.len + 1, 1)))
		rc = -MC_E_NOMEM;
	if (rc == 0) {
		memcpy(copy, reply.str, reply.len);
		*ret = copy;
		*ret_len = reply.len;
	}
	lib.api.reply_free(raw);
	return rc;
}

static int redis_put(struct mc_meta *meta, const char *key, const char *val, size_t len,
		     uint64_t deadline_ns, struct mc_diag *diag)
{
	const char *argv[] = {"SET", key, val};
	const size_t lens[] = {3, strlen(key), len};
	void *raw;
	int rc = call(meta, 3, argv, lens, deadline_ns, &raw, diag);

	if (rc == 0)
		lib.api.reply_free(raw);
	return rc;
}

static int redis_del(struct mc_meta *meta, const char *key, uint64_t deadline_ns,
		     struct mc_diag *diag)
{
	const char *argv[] = {"DEL", key};
	const size_t lens[] = {3, strlen(key)};
	void *raw;
	int rc = call(meta, 2, argv, lens, deadline_ns, &raw, diag);

	if (rc == 0)
		lib.api.reply_free(raw);
	return rc;
}

static void redis_close(struct mc_meta *meta)
{
	struct redis_meta *r = mc_container_of(meta, struct redis_meta, meta);

	for (int i = 0; i < r->nidle; i++)
		lib.api.free(r->idle[i]);
	(void)pthread_mutex_destroy(&r->lock);
	mc_free(r);
}

static const struct mc_meta_ops redis_ops = {redis_get, redis_put, redis_del, redis_close};

/* "host", "host:port", "[v6]:port" */
static int address_set(struct redis_meta *r, const char *at, struct mc_diag *diag)
{
	const char *colon = strrchr(at, ':'), *host = at;
	size_t len = colon ? (size_t)(colon - at) : strlen(at);
	uint64_t port = PORT_DEFAULT;

	if (len >= 2 && host[0] == '[' && host[len - 1] == ']') {
		host++;
		len -= 2;
	}
	if (len == 0 || len >= sizeof(r->host) ||
	    (colon && (mc_opt_parse_u64(colon + 1, &port) < 0 || !port || port > UINT16_MAX))) {
		mc_diag_set(diag, "redis: \"%.200s\" is no host:port", at);
		return -MC_E_INVAL;
	}
	memcpy(r->host, host, len);
	r->port = (uint16_t)port;
	return 0;
}

int mc_meta_redis_open(const char *at, const struct mc_meta_conf *conf, struct mc_meta **ret,
		       struct mc_diag *diag)
{
	struct redis_meta *r;
	int rc;

	(void)pthread_once(&lib.once, load); /* cannot fail with a static once */
	if (lib.rc < 0) {
		mc_diag_set(diag, "redis: %s", lib.diag.text);
		return lib.rc;
	}
	r = mc_calloc(1, sizeof(*r));
	if (!r)
		return -MC_E_NOMEM;
	rc = address_set(r, at, diag);
	if (rc < 0) {
		mc_free(r);
		return rc;
	}
	r->meta.ops = &redis_ops;
	r->conf = *conf;
	(void)pthread_mutex_init(&r->lock, NULL); /* cannot fail with default attributes */
	*ret = &r->meta;
	return 0;
}
