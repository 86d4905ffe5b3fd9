/*
 * fixture.c: see fixture.h.
 */
#include "fixture.h"

/* ---- life ---- */

static void fix_listen(struct fix *f)
{
	int rc = -MC_E_ADDR_IN_USE;

	for (unsigned i = 0; rc == -MC_E_ADDR_IN_USE && i < 2000; i++) {
		char text[MC_ADDR_TEXT_MAX];
		struct mc_addr at;

		(void)snprintf(text, sizeof(text), "127.0.0.1:%u",
			       20000 + ((unsigned)getpid() * 7 + i) % 12000);
		assert_int_equal(mc_addr_parse(text, 0, &at), 0);
		rc = mc_master_listen(f->master, &at, &f->at);
	}
	assert_int_equal(rc, 0);
}

void fix_start(struct fix *f)
{
	struct mc_diag diag = {.text = ""};

	assert_int_equal(mc_loop_open("master", mc_env_real.clk, &f->loop), 0);
	assert_int_equal(mc_loop_open("side", mc_env_real.clk, &f->side), 0);
	assert_int_equal(mc_loop_start(f->loop), 0);
	assert_int_equal(mc_loop_start(f->side), 0);
	assert_int_equal(
	    mc_master_open(&mc_env_real, f->loop, f->side, &f->conf, &diag, &f->master), 0);
	fix_listen(f);
	assert_int_equal(mc_rpc_conn_open(&mc_env_real, f->client_loop, &f->at, NULL, &f->conn), 0);
}

/* Everything of the master is gone but for its directory, as after kill -9. */
static void fix_stop(struct fix *f)
{
	mc_rpc_conn_close(f->conn);
	mc_master_close(f->master);
	mc_loop_close(f->side);
	mc_loop_close(f->loop);
}

void fix_open(struct fix *f)
{
	*f = (struct fix){.dir = "/tmp/mc-master-test-XXXXXX"};
	assert_non_null(mkdtemp(f->dir));
	mc_master_conf_defaults(&f->conf);
	f->conf.state_dir = f->dir;
	f->conf.lease_ms = 0;
	f->buf = mc_calloc(1, FIX_BUF);
	assert_non_null(f->buf);
	assert_int_equal(mc_loop_open("client", mc_env_real.clk, &f->client_loop), 0);
	assert_int_equal(mc_loop_start(f->client_loop), 0);
}

void fix_run(struct fix *f)
{
	fix_open(f);
	fix_start(f);
}

/* ---- a client ---- */

int fix_call(struct fix *f, uint16_t method, const void *req, size_t len, size_t *ret_len)
{
	struct mc_rpc_call call = {.method = method,
				   .req = req,
				   .req_len = len,
				   .deadline_ns = mc_now_ns() + SOON_NS,
				   .reply_buf = f->buf,
				   .reply_cap = FIX_BUF};
	int rc = mc_rpc_sync(f->conn, &call);

	if (ret_len)
		*ret_len = call.reply_len;
	return rc;
}

struct fix_key fix_key(const char *text)
{
	struct fix_key k = {.len = (uint16_t)(1 + strlen(text))};

	assert_true(k.len <= sizeof(k.bytes));
	memcpy(k.bytes + 1, text, k.len - 1u);
	return k;
}

static struct mc_wr fix_keys(uint8_t *buf, size_t cap, const char *key)
{
	const struct fix_key text = fix_key(key);
	const struct mc_st_key k = {text.len, text.bytes};
	struct mc_wr w = mc_wr_make(buf, cap);

	mc_wr_u32(&w, 1);
	mc_st_key_encode(&w, &k);
	return w;
}

int32_t fix_exist(struct fix *f, const char *key)
{
	uint8_t req[256];
	struct mc_wr w = fix_keys(req, sizeof(req), key);
	struct mc_rd r;
	size_t len;

	assert_int_equal(fix_call(f, MC_ST_EXIST, req, mc_wr_len(&w), &len), 0);
	r = mc_rd_make(f->buf, len);
	assert_int_equal(mc_st_count_decode(&r), 1);
	return (int32_t)mc_rd_u32(&r);
}

int32_t fix_lookup(struct fix *f, const char *key, struct mc_st_object *ret)
{
	uint8_t req[256];
	struct mc_wr w = fix_keys(req, sizeof(req), key);
	struct mc_rd r;
	size_t len;

	assert_int_equal(fix_call(f, MC_ST_LOOKUP, req, mc_wr_len(&w), &len), 0);
	r = mc_rd_make(f->buf, len);
	assert_int_equal(mc_st_count_decode(&r), 1);
	mc_st_object_decode(&r, ret);
	assert_true(mc_rd_is_done(&r));
	return ret->status;
}

struct mc_st_object fix_find(struct fix *f, const char *key)
{
	struct mc_st_object obj;

	assert_int_equal(fix_lookup(f, key, &obj), 0);
	return obj;
}

Mc__St__JoinReply *fix_join(struct fix *f, struct mc_pb_arena *arena, uint32_t gens)
{
	Mc__St__Join m = MC__ST__JOIN__INIT;
	ProtobufCMessage *ret;
	uint8_t req[128];
	size_t len;

	m.version = MC_ST_VERSION;
	m.client = 7;
	m.name = (char *)"tester";
	m.gens = gens;
	assert_int_equal(mc_pb_pack(&m.base, req, sizeof(req), &len), 0);
	assert_int_equal(fix_call(f, MC_ST_JOIN, req, len, &len), 0);
	assert_int_equal(mc_pb_unpack(arena, &mc__st__join_reply__descriptor, f->buf, len, &ret),
			 0);
	return (Mc__St__JoinReply *)ret;
}

static size_t fix_commit_make(uint8_t *req, size_t cap, const char *key, uint64_t gen,
			      uint64_t owner, uint64_t addr, uint8_t flags)
{
	const struct fix_key text = fix_key(key);
	const struct mc_st_commit c = {.gen = gen,
				       .len = 100,
				       .key_len = text.len,
				       .flags = flags,
				       .nreplicas = 1,
				       .replicas = {{.owner = owner, .addr = addr}},
				       .key = text.bytes};
	struct mc_wr w = mc_wr_make(req, cap);

	mc_wr_u32(&w, 1);
	mc_st_commit_encode(&w, &c);
	return mc_wr_len(&w);
}

struct mc_st_committed fix_committed(const void *data, size_t len)
{
	struct mc_rd r = mc_rd_make(data, len);
	struct mc_st_committed ret;

	assert_int_equal(mc_st_count_decode(&r), 1);
	mc_st_committed_decode(&r, &ret);
	assert_true(mc_rd_is_done(&r));
	return ret;
}

struct mc_st_committed fix_commit(struct fix *f, const char *key, uint64_t gen, uint64_t owner,
				  uint64_t addr, uint8_t flags)
{
	uint8_t req[512];
	size_t n = fix_commit_make(req, sizeof(req), key, gen, owner, addr, flags), len;

	assert_int_equal(fix_call(f, MC_ST_COMMIT, req, n, &len), 0);
	return fix_committed(f->buf, len);
}

void fix_later_start(struct fix *f, struct fix_later *l, uint16_t method, size_t len)
{
	l->call = (struct mc_rpc_call){.method = method,
				       .flags = MC_RPC_WAITED,
				       .req = l->req,
				       .req_len = len,
				       .deadline_ns = mc_now_ns() + SOON_NS,
				       .reply_buf = l->reply,
				       .reply_cap = sizeof(l->reply)};
	assert_int_equal(mc_rpc_start(f->conn, &l->call), 0);
}

void fix_commit_later(struct fix *f, struct fix_later *l, const char *key, uint64_t gen,
		      uint64_t owner, uint64_t addr, uint8_t flags)
{
	fix_later_start(f, l, MC_ST_COMMIT,
			fix_commit_make(l->req, sizeof(l->req), key, gen, owner, addr, flags));
}

void fix_remove_later(struct fix *f, struct fix_later *l, const char *key)
{
	struct mc_wr w = mc_wr_make(l->req, 4), k;

	mc_wr_u32(&w, MC_ST_REMOVE_FORCE); /* a lease of 0 ms lasts to the end of its millisecond */
	k = fix_keys(l->req + 4, sizeof(l->req) - 4, key);
	fix_later_start(f, l, MC_ST_REMOVE, 4 + mc_wr_len(&k));
}

int32_t fix_removed(struct fix *f, struct fix_later *l)
{
	struct mc_rd r;

	assert_int_equal(mc_rpc_wait(f->conn, &l->call), 0);
	r = mc_rd_make(l->reply, l->call.reply_len);
	assert_int_equal(mc_st_count_decode(&r), 1);
	return (int32_t)mc_rd_u32(&r);
}

struct mc_st_committed fix_committed_later(struct fix *f, struct fix_later *l)
{
	assert_int_equal(mc_rpc_wait(f->conn, &l->call), 0);
	return fix_committed(l->reply, l->call.reply_len);
}

/* ---- an owner ---- */

static void fo_on_end(struct mc_rpc_call *call, int rc, const struct mc_rpc_msg *reply)
{
	struct fix_owner *o = call->user;

	(void)reply;
	pthread_mutex_lock(&o->lock);
	o->is_over = true;
	o->rc = rc;
	pthread_cond_broadcast(&o->cond);
	pthread_mutex_unlock(&o->lock);
}

static void fo_on_chunk(struct mc_rpc_call *call, const void *data, size_t len, bool is_last)
{
	struct fix_owner *o = call->user;
	struct mc_st_note_head head;

	(void)is_last;
	pthread_mutex_lock(&o->lock);
	assert_true(o->rx_len + len <= sizeof(o->rx));
	memcpy(o->rx + o->rx_len, data, len);
	o->rx_len += len;
	while (o->rx_len >= MC_ST_NOTE_HEAD_LEN) {
		struct fix_note *n = &o->notes[o->nnotes % FIX_NOTES_MAX];
		size_t all;

		assert_int_equal(mc_st_note_head_decode(o->rx, &head), 0);
		all = MC_ST_NOTE_HEAD_LEN + head.len;
		if (o->rx_len < all)
			break;
		if (head.type != MC_ST_NOTE_ACK) {
			assert_true(head.len <= sizeof(n->data));
			n->type = head.type;
			n->len = head.len;
			memcpy(n->data, o->rx + MC_ST_NOTE_HEAD_LEN, head.len);
			o->nnotes++;
		}
		o->rx_len -= all;
		memmove(o->rx, o->rx + all, o->rx_len);
	}
	pthread_cond_broadcast(&o->cond);
	pthread_mutex_unlock(&o->lock);
}

struct fix_note fo_expect(struct fix_owner *o, uint8_t type)
{
	struct timespec until;
	struct fix_note n;
	int rc = 0;

	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += 10;
	pthread_mutex_lock(&o->lock);
	while (o->ntaken == o->nnotes && !o->is_over && rc == 0)
		rc = pthread_cond_timedwait(&o->cond, &o->lock, &until);
	assert_true(o->ntaken < o->nnotes);
	n = o->notes[o->ntaken++ % FIX_NOTES_MAX];
	pthread_mutex_unlock(&o->lock);
	if (n.type == MC_ST_NOTE_COMMITTED && type != MC_ST_NOTE_COMMITTED)
		return fo_expect(o, type);
	assert_int_equal(n.type, type);
	return n;
}

int fo_end(struct fix_owner *o)
{
	struct timespec until;
	int rc = 0;

	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += 10;
	pthread_mutex_lock(&o->lock);
	while (!o->is_over && rc == 0)
		rc = pthread_cond_timedwait(&o->cond, &o->lock, &until);
	assert_true(o->is_over);
	rc = o->rc;
	pthread_mutex_unlock(&o->lock);
	return rc;
}

void fo_note(struct fix_owner *o, uint8_t type, const void *data, size_t len)
{
	struct mc_st_note_head head = {.len = (uint32_t)len, .type = type, .number = ++o->number};
	uint8_t buf[1024];

	assert_true(MC_ST_NOTE_HEAD_LEN + len <= sizeof(buf));
	mc_st_note_head_encode(&head, buf);
	if (len)
		memcpy(buf + MC_ST_NOTE_HEAD_LEN, data, len);
	assert_int_equal(
	    mc_rpc_call_send(o->conn, o->call.id, buf, MC_ST_NOTE_HEAD_LEN + len, false), 0);
}

void fo_has_as(struct fix_owner *o, uint8_t type, const char *key, uint64_t gen, uint64_t addr,
	       uint8_t flags)
{
	const struct fix_key text = fix_key(key);
	const struct mc_st_has h = {.gen = gen,
				    .len = 100,
				    .addr = addr,
				    .kind = addr == MC_ST_DISK_ADDR ? MC_ST_DISK : MC_ST_MEMORY,
				    .flags = flags,
				    .key_len = text.len,
				    .key = text.bytes};
	uint8_t buf[256];
	struct mc_wr w = mc_wr_make(buf, sizeof(buf));

	mc_st_has_encode(&w, &h);
	fo_note(o, type, buf, mc_wr_len(&w));
}

void fo_has(struct fix_owner *o, uint8_t type, const char *key, uint64_t gen, uint64_t addr)
{
	fo_has_as(o, type, key, gen, addr, 0);
}

void fo_space(struct fix_owner *o, uint8_t type, uint64_t used, uint64_t want)
{
	const struct mc_st_space s = {.capacity = 1000, .used = used, .largest = 0, .want = want};
	uint8_t buf[64];
	struct mc_wr w = mc_wr_make(buf, sizeof(buf));

	mc_st_space_encode(&w, &s);
	fo_note(o, type, buf, mc_wr_len(&w));
}

void fo_freed(struct fix_owner *o, uint64_t addr, uint64_t gen)
{
	const struct mc_st_place p = {addr, gen};
	uint8_t buf[16];
	struct mc_wr w = mc_wr_make(buf, sizeof(buf));

	mc_st_place_encode(&w, &p);
	fo_note(o, MC_ST_NOTE_FREED, buf, sizeof(buf));
}

void fo_expect_place(struct fix_owner *o, uint8_t type, uint64_t addr, uint64_t gen)
{
	struct fix_note n = fo_expect(o, type);
	struct mc_rd r = mc_rd_make(n.data, n.len);
	struct mc_st_place p;

	mc_st_place_decode(&r, &p);
	assert_true(mc_rd_is_done(&r));
	assert_int_equal(p.addr, addr);
	assert_int_equal(p.gen, gen);
}

void fo_expect_free(struct fix_owner *o, uint64_t addr, uint64_t gen)
{
	fo_expect_place(o, MC_ST_NOTE_FREE, addr, gen);
}

void fo_frees(struct fix_owner *o, uint64_t addr, uint64_t gen)
{
	fo_expect_free(o, addr, gen);
	fo_freed(o, addr, gen);
}

void fo_init(struct fix_owner *o, struct fix *f, uint64_t id)
{
	memset(o, 0, sizeof(*o));
	assert_true(f->nowners < FIX_OWNERS_MAX);
	f->owners[f->nowners++] = o;
	o->f = f;
	o->id = id;
	o->incarnation = id * 1000 + 1;
	pthread_mutex_init(&o->lock, NULL);
	pthread_cond_init(&o->cond, NULL);
}

void fo_start(struct fix_owner *o)
{
	Mc__St__Owner m = MC__ST__OWNER__INIT;
	char name[32];
	size_t len;

	(void)snprintf(name, sizeof(name), "host-%llu:1", (unsigned long long)o->id);
	m.version = MC_ST_VERSION;
	m.id = o->id;
	m.incarnation = o->incarnation;
	m.epoch = o->epoch;
	m.segment = m.address = m.host = name;
	m.capacity = 1000;
	m.disk_capacity = o->disk;
	assert_int_equal(mc_pb_pack(&m.base, o->req, sizeof(o->req), &len), 0);
	o->rx_len = 0;
	o->nnotes = o->ntaken = 0;
	o->is_over = false;
	assert_int_equal(
	    mc_rpc_conn_open(&mc_env_real, o->f->client_loop, &o->f->at, NULL, &o->conn), 0);
	o->call = (struct mc_rpc_call){.method = MC_ST_OWNER,
				       .flags = MC_RPC_STREAM,
				       .req = o->req,
				       .req_len = len,
				       .on_end = fo_on_end,
				       .on_chunk = fo_on_chunk,
				       .user = o};
	assert_int_equal(mc_rpc_start(o->conn, &o->call), 0);
}

uint64_t fo_welcomed(struct fix_owner *o)
{
	struct fix_note n = fo_expect(o, MC_ST_NOTE_WELCOME);
	struct mc_rd r = mc_rd_make(n.data, n.len);
	struct mc_st_welcome v;

	mc_st_welcome_decode(&r, &v);
	assert_true(mc_rd_is_done(&r));
	assert_true(v.epoch > 0 && v.epoch >= o->epoch);
	o->epoch = v.epoch;
	if (v.from == 0)
		o->number = 0;
	return v.from;
}

void fo_stop(struct fix_owner *o)
{
	mc_rpc_conn_close(o->conn);
	o->conn = NULL;
}

void fo_start_anew(struct fix_owner *o)
{
	fo_start(o);
	assert_int_equal(fo_welcomed(o), 0);
}

void fo_open(struct fix_owner *o, struct fix *f, uint64_t id)
{
	fo_init(o, f, id);
	fo_start_anew(o);
	fo_note(o, MC_ST_NOTE_HAS_ALL, NULL, 0);
}

/* ---- both ---- */

void fix_restart(struct fix *f)
{
	for (unsigned i = 0; i < f->nowners; i++)
		fo_stop(f->owners[i]);
	fix_stop(f);
	fix_start(f);
}

void fix_close(struct fix *f)
{
	static const char *const files[] = {"state", "tombstones", "new"};
	char path[128];

	for (unsigned i = 0; i < f->nowners; i++) {
		fo_stop(f->owners[i]);
		pthread_mutex_destroy(&f->owners[i]->lock);
		pthread_cond_destroy(&f->owners[i]->cond);
	}
	fix_stop(f);
	mc_loop_close(f->client_loop);
	mc_free(f->buf);
	for (size_t i = 0; i < MC_ARRAY_LEN(files); i++) {
		(void)snprintf(path, sizeof(path), "%s/%s", f->dir, files[i]);
		(void)unlink(path);
	}
	assert_int_equal(rmdir(f->dir), 0);
}

void fix_run_one(struct fix *f, struct fix_owner *o)
{
	fix_run(f);
	fo_open(o, f, 5);
}

void fix_run_two(struct fix *f, struct fix_owner *a, struct fix_owner *b)
{
	fix_run_one(f, a);
	fo_open(b, f, 6);
}

void fix_remove(struct fix *f, const char *key, struct fix_owner *o, uint64_t addr, uint64_t gen)
{
	struct fix_later later;

	fix_remove_later(f, &later, key);
	fo_frees(o, addr, gen);
	assert_int_equal(fix_removed(f, &later), 0);
}

void fix_until(struct fix *f, const char *key, int32_t status)
{
	uint64_t end = mc_now_ns() + SOON_NS;

	while (fix_exist(f, key) != status) {
		assert_true(mc_now_ns() < end);
		(void)poll(NULL, 0, 2); /* leaves the processor to the master */
	}
}
