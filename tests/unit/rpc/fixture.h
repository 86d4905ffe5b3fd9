/*
 * fixture.h: a server with a few methods on its own loop thread, and clients of it, over real
 * sockets.
 */
#ifndef MC_TESTS_RPC_FIXTURE_H
#define MC_TESTS_RPC_FIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/list.h"
#include "base/mem.h"
#include "rpc/rpc.h"

#define SOON_NS (10 * MC_NS_PER_S) /* far above what anything here takes */

enum fix_method {
	FIX_ECHO = 1, /* answers what it got */
	FIX_HOLD,     /* kept until FIX_RELEASE */
	FIX_RELEASE,  /* answers everything held, newest first, then itself */
	FIX_FAIL,     /* -MC_E_NOSPACE */
	FIX_FD,	      /* sends its descriptor back */
	FIX_BIG,      /* a u32: answers so many bytes */
	FIX_STREAM,   /* sends every chunk back, ends after the last */
};

#define FIX_HELD_MAX 4096

struct fix {
	struct mc_loop *server_loop, *client_loop;
	struct mc_rpc_server *server;
	struct mc_addr at;
	/* the server loop's */
	struct mc_rpc_req *held[FIX_HELD_MAX];
	unsigned nheld;
	_Atomic unsigned cancels, ups, downs;
	struct mc_rpc_peer *last_peer;
	struct mc_hist hold_ns; /* latency of FIX_HOLD */
};

static inline void fix_echo(struct mc_rpc_req *req, const struct mc_rpc_msg *msg, void *user)
{
	(void)user;
	(void)mc_rpc_reply(req, 0, msg->data, msg->len, NULL, 0);
}

static inline void fix_on_cancel(struct mc_rpc_req *req)
{
	struct fix *f = req->user;

	atomic_fetch_add(&f->cancels, 1);
}

static inline void fix_hold(struct mc_rpc_req *req, const struct mc_rpc_msg *msg, void *user)
{
	struct fix *f = user;

	(void)msg;
	assert_true(f->nheld < FIX_HELD_MAX);
	req->user = f;
	req->on_cancel = fix_on_cancel;
	f->held[f->nheld++] = req;
}

static inline void fix_release(struct mc_rpc_req *req, const struct mc_rpc_msg *msg, void *user)
{
	struct fix *f = user;

	(void)msg;
	while (f->nheld > 0)
		(void)mc_rpc_reply(f->held[--f->nheld], 0, "held", 4, NULL, 0);
	(void)mc_rpc_reply(req, 0, NULL, 0, NULL, 0);
}

static inline void fix_fail(struct mc_rpc_req *req, const struct mc_rpc_msg *msg, void *user)
{
	(void)msg;
	(void)user;
	(void)mc_rpc_reply(req, -MC_E_NOSPACE, "why", 3, NULL, 0);
}

static inline void fix_fd(struct mc_rpc_req *req, const struct mc_rpc_msg *msg, void *user)
{
	(void)user;
	(void)mc_rpc_reply(req, 0, NULL, 0, msg->fds, msg->nfds);
}

static inline void fix_big(struct mc_rpc_req *req, const struct mc_rpc_msg *msg, void *user)
{
	uint32_t len = 0;
	uint8_t *data;

	(void)user;
	memcpy(&len, msg->data, mc_min(msg->len, sizeof(len)));
	data = mc_calloc(1, len);
	memset(data, 'b', len);
	(void)mc_rpc_reply(req, 0, data, len, NULL, 0);
	mc_free(data);
}

static inline void fix_on_chunk(struct mc_rpc_req *req, const void *data, size_t len, bool is_last)
{
	int rc = mc_rpc_req_send(req, data, len, is_last);

	if (len)
		(void)mc_rpc_req_credit(req, (uint32_t)len);
	if (rc < 0 || is_last)
		(void)mc_rpc_reply(req, rc, "end", 3, NULL, 0);
}

static inline void fix_stream_cancel(struct mc_rpc_req *req)
{
	(void)mc_rpc_reply(req, -MC_E_CANCELED, NULL, 0, NULL, 0);
}

static inline void fix_stream(struct mc_rpc_req *req, const struct mc_rpc_msg *msg, void *user)
{
	(void)msg;
	req->user = user;
	req->on_chunk = fix_on_chunk;
	req->on_cancel = fix_stream_cancel;
	if (!req->is_stream)
		(void)mc_rpc_reply(req, -MC_E_INVAL, NULL, 0, NULL, 0);
}

static inline void fix_on_up(struct mc_rpc_peer *peer, void *user)
{
	struct fix *f = user;

	f->last_peer = peer;
	atomic_fetch_add(&f->ups, 1);
}

static inline void fix_on_down(struct mc_rpc_peer *peer, int rc, void *user)
{
	struct fix *f = user;

	(void)peer;
	assert_true(rc < 0);
	atomic_fetch_add(&f->downs, 1);
}

/** @param env of both ends; the loops are started unless its clock is not the real one */
static inline void fix_open(struct fix *f, const struct mc_env *env, struct mc_rpc_server_opts opts)
{
	const struct mc_rpc_method methods[] = {
	    {FIX_STREAM, "stream", fix_stream, f},
	    {FIX_ECHO, "echo", fix_echo, f},
	    {FIX_HOLD, "hold", fix_hold, f, &f->hold_ns},
	    {FIX_RELEASE, "release", fix_release, f},
	    {FIX_FAIL, "fail", fix_fail, f},
	    {FIX_FD, "fd", fix_fd, f},
	    {FIX_BIG, "big", fix_big, f},
	};

	memset(f, 0, sizeof(*f));
	opts.methods = methods;
	opts.nmethods = MC_ARRAY_LEN(methods);
	opts.on_up = fix_on_up;
	opts.on_down = fix_on_down;
	opts.user = f;
	assert_int_equal(mc_loop_open("server", env->clk, &f->server_loop), 0);
	assert_int_equal(mc_loop_open("client", env->clk, &f->client_loop), 0);
	if (env->clk == &mc_clock_real) {
		assert_int_equal(mc_loop_start(f->server_loop), 0);
		assert_int_equal(mc_loop_start(f->client_loop), 0);
	}
	assert_int_equal(mc_rpc_server_open(env, f->server_loop, &opts, &f->server), 0);
}

static inline void fix_listen_unix(struct fix *f)
{
	static _Atomic unsigned serial;
	char name[64];

	(void)snprintf(name, sizeof(name), "@mc-rpc-test-%d-%u", (int)getpid(),
		       atomic_fetch_add(&serial, 1));
	assert_int_equal(mc_addr_unix(name, &f->at), 0);
	assert_int_equal(mc_rpc_server_listen(f->server, &f->at, NULL), 0);
}

static inline void fix_listen_tcp(struct fix *f)
{
	struct mc_addr at;
	int rc = -MC_E_ADDR_IN_USE;

	for (unsigned i = 0; rc == -MC_E_ADDR_IN_USE && i < 2000; i++) {
		char text[MC_ADDR_TEXT_MAX];

		(void)snprintf(text, sizeof(text), "127.0.0.1:%u",
			       20000 + ((unsigned)getpid() * 7 + i) % 12000);
		assert_int_equal(mc_addr_parse(text, 0, &at), 0);
		rc = mc_rpc_server_listen(f->server, &at, &f->at);
	}
	assert_int_equal(rc, 0);
}

static inline void fix_release_all(void *arg)
{
	struct fix *f = arg;

	while (f->nheld > 0)
		(void)mc_rpc_reply(f->held[--f->nheld], 0, NULL, 0, NULL, 0);
}

static inline void fix_close(struct fix *f)
{
	mc_loop_call(f->server_loop, fix_release_all, f);
	mc_rpc_server_close(f->server);
	mc_loop_close(f->client_loop);
	mc_loop_close(f->server_loop);
}

static inline struct mc_rpc_conn *fix_connect(struct fix *f, const struct mc_env *env,
					      const struct mc_rpc_conn_opts *opts)
{
	struct mc_rpc_conn *conn;

	assert_int_equal(mc_rpc_conn_open(env, f->client_loop, &f->at, opts, &conn), 0);
	return conn;
}

/** A server that listens and a connection to it, over the kernel's sockets. Options may be NULL. */
static inline struct mc_rpc_conn *fix_pair(struct fix *f, void (*listen)(struct fix *f),
					   const struct mc_rpc_server_opts *server,
					   const struct mc_rpc_conn_opts *client)
{
	fix_open(f, &mc_env_real, server ? *server : (struct mc_rpc_server_opts){0});
	listen(f);
	return fix_connect(f, &mc_env_real, client);
}

static inline void fix_pair_close(struct fix *f, struct mc_rpc_conn *conn)
{
	mc_rpc_conn_close(conn);
	fix_close(f);
}

/** One synchronous call by `deadline_ns`. */
static inline int fix_call(struct mc_rpc_conn *conn, uint64_t deadline_ns, uint16_t method,
			   const void *req, size_t req_len, void *reply, size_t reply_cap,
			   size_t *ret_len)
{
	struct mc_rpc_call call = {.method = method,
				   .req = req,
				   .req_len = req_len,
				   .deadline_ns = deadline_ns,
				   .reply_buf = reply,
				   .reply_cap = reply_cap};
	int rc = mc_rpc_sync(conn, &call);

	if (ret_len)
		*ret_len = call.reply_len;
	return rc;
}

#endif
