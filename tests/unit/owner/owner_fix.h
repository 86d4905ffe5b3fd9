/*
 * owner_fix.h: an owner on a real engine, a master's end of its stream, and a client of its rpc,
 * all over loopback. The master's end does what the test tells it and keeps what it was told.
 */
#ifndef MC_TESTS_OWNER_FIX_H
#define MC_TESTS_OWNER_FIX_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/hash.h"
#include "owner/owner.h"
#include "owner/priv.h"
#include "wire/pb.h"

#define FIX_SOON_NS (20 * MC_NS_PER_S) /* far above what anything here takes */
#define FIX_HAS_MAX 4096u

struct fix_has {
	uint64_t gen, addr, len;
	char key[64];
	uint8_t flags;
};

/** A master's end. */
struct fix_master {
	struct mc_loop *loop;
	struct mc_rpc_server *server;
	struct mc_addr at;
	pthread_mutex_t lock; /* all below */
	pthread_cond_t cond;
	struct mc_rpc_req *req; /* the stream */
	uint64_t epoch, from;	/* said in the welcome */
	uint64_t number, told_epoch, told_acked;
	bool is_silent;	     /* acknowledges nothing */
	bool is_uncommitted; /* what it is offered for a disk */
	uint8_t in[2u << 20];
	size_t in_len;
	struct fix_has has[FIX_HAS_MAX];
	unsigned nhas, nchecks, nstreams, nends;
	unsigned notes[256]; /* by type */
	struct mc_st_place freed[256];
	unsigned nfreed;
	struct mc_st_space space, want;
	struct mc_odone done;
	uint64_t last_number;
};

/** Wait for something under m->lock. */
#define fix_until(m, cond_)                                                                        \
	do {                                                                                       \
		struct timespec end_;                                                              \
		int rc_ = 0;                                                                       \
                                                                                                   \
		(void)clock_gettime(CLOCK_REALTIME, &end_);                                        \
		end_.tv_sec += 20;                                                                 \
		pthread_mutex_lock(&(m)->lock);                                                    \
		while (!(cond_) && rc_ == 0)                                                       \
			rc_ = pthread_cond_timedwait(&(m)->cond, &(m)->lock, &end_);               \
		if (!(cond_))                                                                      \
			fail_msg("never: %s", #cond_);                                             \
		pthread_mutex_unlock(&(m)->lock);                                                  \
	} while (0)

/** Under the lock. */
static inline void fix_say(struct fix_master *m, uint8_t type, const void *body, size_t len)
{
	uint8_t buf[4096];
	struct mc_st_note_head head = {.len = (uint32_t)len, .type = type, .number = ++m->number};

	assert_true(len + MC_ST_NOTE_HEAD_LEN <= sizeof(buf));
	mc_st_note_head_encode(&head, buf);
	if (len)
		memcpy(buf + MC_ST_NOTE_HEAD_LEN, body, len);
	if (m->req) /* in two pieces: a note may be cut anywhere */
		(void)mc_rpc_req_send(m->req, buf, 7, false);
	if (m->req)
		(void)mc_rpc_req_send(m->req, buf + 7, MC_ST_NOTE_HEAD_LEN + len - 7, false);
}

/** Under the lock. */
static inline void fix_say_no_room(struct fix_master *m)
{
	const struct mc_st_space v = {.kind = MC_ST_MEMORY};
	uint8_t body[64];
	struct mc_wr w = mc_wr_make(body, sizeof(body));

	mc_st_space_encode(&w, &v);
	fix_say(m, MC_ST_NOTE_NO_ROOM, body, mc_wr_len(&w));
}

static inline void fix_say_place(struct fix_master *m, uint8_t type, uint64_t addr, uint64_t gen)
{
	const struct mc_st_place p = {.addr = addr, .gen = gen};
	uint8_t body[16];
	struct mc_wr w = mc_wr_make(body, sizeof(body));

	mc_st_place_encode(&w, &p);
	pthread_mutex_lock(&m->lock);
	fix_say(m, type, body, sizeof(body));
	pthread_mutex_unlock(&m->lock);
}

static inline void fix_say_free(struct fix_master *m, uint64_t addr, uint64_t gen)
{
	fix_say_place(m, MC_ST_NOTE_FREE, addr, gen);
}

static inline void fix_note_has(struct fix_master *m, struct mc_rd *rd, bool is_check)
{
	struct mc_st_has v;

	while (mc_rd_left(rd) > 0 && m->nhas < FIX_HAS_MAX) {
		struct fix_has *h = &m->has[m->nhas];

		mc_st_has_decode(rd, &v);
		assert_false(rd->is_bad);
		if (is_check) {
			m->nchecks++;
			continue;
		}
		*h = (struct fix_has){.gen = v.gen, .addr = v.addr, .len = v.len, .flags = v.flags};
		memcpy(h->key, v.key, mc_min((size_t)v.key_len, sizeof(h->key) - 1));
		m->nhas++;
	}
}

/* What is offered is committed. */
static inline void fix_note_due(struct fix_master *m, struct mc_rd *rd)
{
	struct mc_st_has v;

	while (mc_rd_left(rd) > 0) {
		uint8_t body[16];
		struct mc_wr w = mc_wr_make(body, sizeof(body));

		mc_st_has_decode(rd, &v);
		assert_false(rd->is_bad);
		mc_st_place_encode(&w, &(struct mc_st_place){v.addr, v.gen});
		if (!m->is_uncommitted)
			fix_say(m, MC_ST_NOTE_OFFLOAD, body, sizeof(body));
	}
}

static inline void fix_note_done(struct fix_master *m, struct mc_rd *rd)
{
	_Alignas(16) uint8_t buf[512];
	struct mc_pb_arena arena;
	ProtobufCMessage *got;
	const Mc__St__OrderDone *v;
	size_t len = mc_rd_left(rd);

	mc_pb_arena_init(&arena, buf, sizeof(buf));
	assert_int_equal(
	    mc_pb_unpack(&arena, &mc__st__order_done__descriptor, mc_rd_bytes(rd, len), len, &got),
	    0);
	v = (const Mc__St__OrderDone *)got;
	m->done =
	    (struct mc_odone){.id = v->id, .status = v->status, .addr = v->addr, .gen = v->gen};
}

static inline void fix_note(struct fix_master *m, const struct mc_st_note_head *head,
			    const uint8_t *data)
{
	struct mc_rd rd = mc_rd_make(data, head->len);
	uint8_t ack[8];
	struct mc_wr w = mc_wr_make(ack, sizeof(ack));

	m->notes[head->type]++;
	m->last_number = head->number;
	if (head->type == MC_ST_NOTE_HAS || head->type == MC_ST_NOTE_CHECK ||
	    head->type == MC_ST_NOTE_MORE)
		fix_note_has(m, &rd, head->type == MC_ST_NOTE_CHECK);
	else if (head->type == MC_ST_NOTE_DUE)
		fix_note_due(m, &rd);
	else if (head->type == MC_ST_NOTE_SPACE)
		mc_st_space_decode(&rd, &m->space);
	else if (head->type == MC_ST_NOTE_WANT)
		mc_st_space_decode(&rd, &m->want);
	else if (head->type == MC_ST_NOTE_DONE)
		fix_note_done(m, &rd);
	while (head->type == MC_ST_NOTE_FREED && mc_rd_left(&rd) > 0 && m->nfreed < 256)
		mc_st_place_decode(&rd, &m->freed[m->nfreed++]);
	assert_false(rd.is_bad);
	mc_wr_u64(&w, head->number);
	if (!m->is_silent)
		fix_say(m, MC_ST_NOTE_ACK, ack, sizeof(ack));
}

static inline void fix_on_chunk(struct mc_rpc_req *req, const void *data, size_t len, bool is_last)
{
	struct fix_master *m = req->user;
	struct mc_st_note_head head;
	size_t used = 0;

	pthread_mutex_lock(&m->lock);
	assert_true(m->in_len + len <= sizeof(m->in));
	if (len)
		memcpy(m->in + m->in_len, data, len);
	m->in_len += len;
	while (m->in_len - used >= MC_ST_NOTE_HEAD_LEN) {
		assert_int_equal(mc_st_note_head_decode(m->in + used, &head), 0);
		if (m->in_len - used < MC_ST_NOTE_HEAD_LEN + head.len)
			break;
		fix_note(m, &head, m->in + used + MC_ST_NOTE_HEAD_LEN);
		used += MC_ST_NOTE_HEAD_LEN + head.len;
	}
	memmove(m->in, m->in + used, m->in_len - used);
	m->in_len -= used;
	if (len)
		(void)mc_rpc_req_credit(req, (uint32_t)len);
	if (is_last) {
		m->nends++;
		m->req = NULL;
		(void)mc_rpc_reply(req, 0, NULL, 0, NULL, 0);
	}
	pthread_cond_broadcast(&m->cond);
	pthread_mutex_unlock(&m->lock);
}

static uint32_t fix_welcome_flags; /* of masters to come */

static inline void fix_on_cancel(struct mc_rpc_req *req)
{
	struct fix_master *m = req->user;

	pthread_mutex_lock(&m->lock);
	if (m->req == req)
		m->req = NULL;
	pthread_mutex_unlock(&m->lock);
	(void)mc_rpc_reply(req, -MC_E_CANCELED, NULL, 0, NULL, 0);
}

static inline void fix_on_owner(struct mc_rpc_req *req, const struct mc_rpc_msg *msg, void *user)
{
	struct fix_master *m = user;
	_Alignas(16) uint8_t buf[4096];
	struct mc_pb_arena arena;
	ProtobufCMessage *got;
	const Mc__St__Owner *v;
	uint8_t body[32];
	struct mc_wr w = mc_wr_make(body, sizeof(body));

	mc_pb_arena_init(&arena, buf, sizeof(buf));
	assert_int_equal(
	    mc_pb_unpack(&arena, &mc__st__owner__descriptor, msg->data, msg->len, &got), 0);
	v = (const Mc__St__Owner *)got;
	req->user = m;
	req->on_chunk = fix_on_chunk;
	req->on_cancel = fix_on_cancel;
	pthread_mutex_lock(&m->lock);
	m->req = req;
	m->in_len = 0;
	m->number = 0;
	m->nstreams++;
	m->told_epoch = v->epoch;
	m->told_acked = v->acked;
	mc_st_welcome_encode(&w, &(struct mc_st_welcome){.epoch = m->epoch,
							 .from = m->from,
							 .flags = fix_welcome_flags});
	fix_say(m, MC_ST_NOTE_WELCOME, body, mc_wr_len(&w));
	pthread_cond_broadcast(&m->cond);
	pthread_mutex_unlock(&m->lock);
}

/** @param at  port 0: any */
static inline void fix_master_open(struct fix_master *m, const struct mc_addr *at, uint64_t epoch,
				   uint64_t from)
{
	const struct mc_rpc_method method = {MC_ST_OWNER, "owner", fix_on_owner, m};
	const struct mc_rpc_server_opts opts = {.methods = &method, .nmethods = 1};
	int rc = -MC_E_ADDR_IN_USE;

	memset(m, 0, sizeof(*m));
	m->epoch = epoch;
	m->from = from;
	pthread_mutex_init(&m->lock, NULL);
	pthread_cond_init(&m->cond, NULL);
	assert_int_equal(mc_loop_open("master", &mc_clock_real, &m->loop), 0);
	assert_int_equal(mc_loop_start(m->loop), 0);
	assert_int_equal(mc_rpc_server_open(&mc_env_real, m->loop, &opts, &m->server), 0);
	for (unsigned i = 0; rc == -MC_E_ADDR_IN_USE && i < 2000; i++) {
		struct mc_addr any;
		char text[MC_ADDR_TEXT_MAX];

		(void)snprintf(text, sizeof(text), "127.0.0.1:%u",
			       20000 + ((unsigned)getpid() * 7 + i) % 12000);
		assert_int_equal(mc_addr_parse(text, 0, &any), 0);
		rc = mc_rpc_server_listen(m->server, at ? at : &any, &m->at);
	}
	assert_int_equal(rc, 0);
}

static inline void fix_master_close(struct fix_master *m)
{
	struct mc_rpc_req *req;

	mc_rpc_server_close(m->server);
	pthread_mutex_lock(&m->lock);
	req = m->req;
	m->req = NULL;
	pthread_mutex_unlock(&m->lock);
	if (req)
		(void)mc_rpc_reply(req, -MC_E_CLOSED, NULL, 0, NULL, 0);
	mc_loop_close(m->loop);
	pthread_cond_destroy(&m->cond);
	pthread_mutex_destroy(&m->lock);
}

struct fix {
	struct fix_master *m;
	struct mc_engine *eng;
	struct mc_owner *o;
	struct mc_loop *loop; /* the client's */
	struct mc_rpc_conn *conn;
	uint64_t incarnation;
};

static inline struct mc_engine *fix_engine(void)
{
	const struct mc_engine_opts opts = {.size = sizeof(opts), .name = "127.0.0.1"};
	struct mc_engine *eng;
	struct mc_diag diag = {0};

	if (mc_engine_open(&opts, &diag, &eng) < 0)
		fail_msg("%s", diag.text);
	return eng;
}

static inline struct mc_owner *fix_owner(struct mc_engine *eng, const struct mc_addr *master,
					 struct mc_owner_opts opts)
{
	char text[MC_ADDR_TEXT_MAX];
	struct mc_diag diag = {0};
	struct mc_owner *o;

	opts.engine = eng;
	opts.master = mc_addr_format(master, text);
	if (mc_owner_open(&opts, &diag, &o) < 0)
		fail_msg("%s", diag.text);
	return o;
}

static inline struct mc_rpc_conn *fix_connect(struct mc_loop *loop, struct mc_owner *o)
{
	struct mc_rpc_conn *conn;
	struct mc_addr at;

	assert_int_equal(mc_addr_parse(mc_owner_address(o), 0, &at), 0);
	assert_int_equal(mc_rpc_conn_open(&mc_env_real, loop, &at, NULL, &conn), 0);
	return conn;
}

/** An owner that a master of epoch 1 has adopted, and a client of it.
 * @param before  with a disk: before it speaks to the master */
static inline void fix_open_with(struct fix *f, struct mc_owner_opts opts,
				 void (*before)(struct mc_owner *o))
{
	memset(f, 0, sizeof(*f));
	f->m = mc_calloc(1, sizeof(*f->m));
	assert_non_null(f->m);
	fix_master_open(f->m, NULL, 1, 0);
	f->eng = fix_engine();
	f->o = fix_owner(f->eng, &f->m->at, opts);
	f->incarnation = mc_owner_incarnation(f->o);
	if (before)
		before(f->o);
	if (opts.disk_bytes)
		mc_owner_start(f->o);
	assert_int_equal(mc_loop_open("client", &mc_clock_real, &f->loop), 0);
	assert_int_equal(mc_loop_start(f->loop), 0);
	f->conn = fix_connect(f->loop, f->o);
	fix_until(f->m, f->m->notes[MC_ST_NOTE_HAS_ALL] == 1);
}

static inline void fix_open(struct fix *f, struct mc_owner_opts opts)
{
	fix_open_with(f, opts, NULL);
}

static inline void fix_close(struct fix *f)
{
	mc_rpc_conn_close(f->conn);
	mc_owner_close(f->o);
	mc_loop_close(f->loop);
	mc_engine_close(f->eng);
	fix_master_close(f->m);
	mc_free(f->m);
}

static inline int fix_call(struct mc_rpc_conn *conn, uint16_t method, const void *req, size_t len,
			   void *reply, size_t cap, uint64_t timeout_ns)
{
	struct mc_rpc_call call = {.method = method,
				   .req = req,
				   .req_len = len,
				   .deadline_ns = mc_now_ns() + timeout_ns,
				   .reply_buf = reply,
				   .reply_cap = cap};

	return mc_rpc_sync(conn, &call);
}

/** An object; the key is `key`, its payload made of `fill`. */
static inline struct mc_st_grant fix_grant(const char *key, uint64_t gen, uint64_t len,
					   const void *payload)
{
	return (struct mc_st_grant){.gen = gen,
				    .len = len,
				    .key_len = (uint16_t)strlen(key),
				    .key = (const uint8_t *)key,
				    .payload = payload};
}

/** PUT or GRANT of n objects. @return rpc's code */
static inline int fix_put(struct mc_rpc_conn *conn, const struct mc_st_grant *g, unsigned n,
			  bool has_payload, uint64_t timeout_ns, struct mc_st_granted *ret)
{
	size_t cap = 64;
	uint8_t *buf, reply[4096];
	struct mc_wr w;
	struct mc_rd rd;
	int rc;

	for (unsigned i = 0; i < n; i++)
		cap += 64 + g[i].key_len + g[i].tlv_len + (has_payload ? g[i].len : 0);
	buf = mc_calloc(1, cap);
	assert_non_null(buf);
	w = mc_wr_make(buf, cap);
	mc_wr_u32(&w, n);
	for (unsigned i = 0; i < n; i++)
		mc_st_grant_encode(&w, &g[i], has_payload);
	assert_false(w.is_bad);
	rc = fix_call(conn, has_payload ? MC_ST_PUT : MC_ST_GRANT, buf, mc_wr_len(&w), reply,
		      sizeof(reply), timeout_ns);
	mc_free(buf);
	if (rc < 0)
		return rc;
	rd = mc_rd_make(reply, sizeof(reply));
	assert_int_equal(mc_rd_u32(&rd), n);
	for (unsigned i = 0; i < n; i++)
		mc_st_granted_decode(&rd, &ret[i]);
	return 0;
}

static inline int32_t fix_put_one(struct fix *f, const char *key, uint64_t gen, uint64_t len,
				  const void *payload, struct mc_st_granted *ret)
{
	const struct mc_st_grant g = fix_grant(key, gen, len, payload);

	assert_int_equal(fix_put(f->conn, &g, 1, payload != NULL, FIX_SOON_NS, ret), 0);
	return ret->status;
}

/** A call of one record whose answer is one status. */
static inline int32_t fix_status(struct mc_rpc_conn *conn, uint16_t method, const struct mc_wr *w)
{
	uint8_t reply[16];
	struct mc_rd rd = mc_rd_make(reply, sizeof(reply));

	assert_int_equal(
	    fix_call(conn, method, w->start, mc_wr_len(w), reply, sizeof(reply), FIX_SOON_NS), 0);
	assert_int_equal(mc_rd_u32(&rd), 1);
	return (int32_t)mc_rd_u32(&rd);
}

static inline int32_t fix_seal_say(struct mc_rpc_conn *conn, const struct mc_st_seal *s)
{
	uint8_t buf[4096];
	struct mc_wr w = mc_wr_make(buf, sizeof(buf));

	mc_wr_u32(&w, 1);
	mc_st_seal_encode(&w, s);
	return fix_status(conn, MC_ST_SEAL, &w);
}

static inline int32_t fix_seal(struct mc_rpc_conn *conn, uint64_t addr, uint64_t gen,
			       uint32_t nchunks, const uint32_t *table)
{
	const struct mc_st_seal s = {.addr = addr,
				     .gen = gen,
				     .nchunks = nchunks,
				     .flags = table ? 0 : MC_ST_SEAL_COMPUTE,
				     .table = (const uint8_t *)table};

	return fix_seal_say(conn, &s);
}

/** The owner computes, and checks. */
static inline int32_t fix_seal_checked(struct mc_rpc_conn *conn, uint64_t addr, uint64_t gen,
				       uint32_t crc)
{
	const uint32_t word = htole32(crc);
	const struct mc_st_seal s = {.addr = addr,
				     .gen = gen,
				     .nchunks = 1,
				     .flags = MC_ST_SEAL_COMPUTE,
				     .table = (const uint8_t *)&word};

	return fix_seal_say(conn, &s);
}

/** The image at addr is whole, of this key and generation, and every chunk passes. */
static inline void fix_check(uint64_t addr, const char *key, uint64_t gen, uint64_t len, int fill)
{
	const uint8_t *image = (const uint8_t *)(uintptr_t)addr;
	struct mc_slot_info info;

	assert_int_equal(mc_slot_decode(image, 1u << 20, &info, NULL), 0);
	assert_true(info.gen == gen && info.len == len);
	assert_int_equal(info.key_len, strlen(key));
	assert_memory_equal(info.key, key, info.key_len);
	for (uint32_t i = 0; i < info.nchunks; i++) {
		const uint8_t *at = image + info.payload_off + (size_t)i * MC_SLOT_CHUNK;
		uint32_t n = mc_slot_chunk_len(&info, i);

		assert_int_equal(mc_slot_chunk_crc(&info, i, at, n),
				 mc_slot_table(image, &info, i));
		assert_int_equal(at[0], fill);
		assert_int_equal(at[n - 1], fill);
	}
}

static inline bool fix_is_readable(uint64_t addr)
{
	struct mc_slot_info info;

	return mc_slot_decode((const uint8_t *)(uintptr_t)addr, 4096, &info, NULL) == 0;
}

#endif
