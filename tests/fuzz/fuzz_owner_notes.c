/*
 * fuzz_owner_notes.c: what a hostile master says to an owner on its stream: WELCOME, ACK, FREE,
 * ORDER, NO_ROOM, OFFLOAD, COMMITTED, and what is none of these. A real connection; the owner has
 * two slots in memory and a record on a disk, whose jobs all end well.
 *
 * An input is items as in raw_calls.h, all sent at once. Of the byte that chooses, bit 7 is a piece
 * of the stream as it stands; else it is the type of a note whose head is made here. Six bytes 0xee
 * behind two others stand for an address: the pool's, and 64 times the number in front; eight bytes
 * 0xdd for that of a good slot to copy from. Orders name segments and addresses of this process.
 *
 * Whatever was said, every order ends, the disk's work too, and nothing of the owner is left.
 */
#include "base/log.h"
#include "owner/priv.h"
#include "raw_calls.h"
#include "wire/pb.h"

#define POOL_BYTES (1u << 20)
#define SOURCE_BYTES 4096u
#define SOURCE_KEY "source"
#define SOURCE_GEN 9u
#define RECORD_GEN 7u
#define PIECE 0x80u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

static struct mc_engine *eng;
static struct mc_loop *loop; /* the master's */
static struct mc_rpc_server *server;
static struct mc_addr port;
static uint8_t *source; /* a sealed slot */
/* What is said on the next stream, and how many there were. Under the lock. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static uint8_t said[256u << 10];
static size_t said_len;
static unsigned nstreams;

static void on_owner_chunk(struct mc_rpc_req *req, const void *data, size_t len, bool is_last)
{
	(void)data;
	(void)is_last;
	(void)mc_rpc_req_credit(req, (uint32_t)len); /* dead: nobody wants it */
}

static void on_owner(struct mc_rpc_req *req, const struct mc_rpc_msg *msg, void *user)
{
	(void)msg;
	(void)user;
	req->on_chunk = on_owner_chunk;
	pthread_mutex_lock(&lock);
	if (said_len)
		(void)mc_rpc_req_send(req, said, said_len,
				      false); /* gone: it was heard up to there */
	said_len = 0;
	nstreams++;
	pthread_mutex_unlock(&lock);
	(void)mc_rpc_reply(req, 0, NULL, 0, NULL, 0);
}

static void source_make(void)
{
	struct mc_slot_info info = {.gen = SOURCE_GEN,
				    .incarnation = 3,
				    .key_hash = mc_hash64(SOURCE_KEY, strlen(SOURCE_KEY), 0),
				    .len = 100,
				    .key = (const uint8_t *)SOURCE_KEY,
				    .key_len = strlen(SOURCE_KEY)};
	uint32_t crc;

	mc_assert(mc_slot_layout(&info) == 0 && info.nchunks == 1);
	mc_assert(info.slot_len <= SOURCE_BYTES);
	memset(source, 's', SOURCE_BYTES);
	crc = mc_slot_chunk_crc(&info, 0, source + info.payload_off, (uint32_t)info.len);
	mc_slot_seal(&info, &crc, source);
}

static void setup(void)
{
	const struct mc_rpc_method method = {MC_ST_OWNER, "owner", on_owner, NULL};
	const struct mc_rpc_server_opts serve = {.methods = &method, .nmethods = 1};
	const struct mc_engine_opts opts = {.size = sizeof(opts), .name = "127.0.0.1"};
	struct mc_diag diag = {""};
	struct mc_addr at;

	mc_log_level_set(MC_LOG_ERROR);
	mc_assert(mc_engine_open(&opts, &diag, &eng) == 0);
	source = mc_calloc(1, SOURCE_BYTES);
	mc_assert(source);
	source_make();
	mc_assert(mc_mem_reg(eng, source, SOURCE_BYTES, NULL, MC_MEM_REMOTE_READ) == 0);
	mc_assert(mc_addr_parse("127.0.0.1:0", 0, &at) == 0);
	mc_assert(mc_loop_open("master", &mc_clock_real, &loop) == 0 && mc_loop_start(loop) == 0);
	mc_assert(mc_rpc_server_open(&mc_env_real, loop, &serve, &server) == 0);
	mc_assert(mc_rpc_server_listen(server, &at, &port) == 0);
}

/* ---- the input ---- */

static void addresses_put(const struct mc_owner *o, struct raw_item *item)
{
	for (size_t i = 0; i + 8 <= item->len; i++) {
		uint8_t *at = item->bytes + i;
		uint64_t addr;

		if (memcmp(at + 2, "\xee\xee\xee\xee\xee\xee", 6) == 0)
			addr = (uintptr_t)o->pool.base + 64ull * (at[0] | (unsigned)at[1] << 8);
		else if (memcmp(at, "\xdd\xdd\xdd\xdd\xdd\xdd\xdd\xdd", 8) == 0)
			addr = (uintptr_t)source;
		else
			continue;
		addr = htole64(addr);
		memcpy(at, &addr, sizeof(addr));
	}
}

/* Whoever an order names is asked: of this process alone, please. */
static void order_tame(const struct mc_owner *o, struct raw_item *item)
{
	_Alignas(16) uint8_t mem[16384];
	struct mc_pb_arena arena;
	ProtobufCMessage *got;
	Mc__St__Order v;
	size_t len;

	mc_pb_arena_init(&arena, mem, sizeof(mem));
	if (mc_pb_unpack(&arena, &mc__st__order__descriptor, item->bytes, item->len, &got) < 0)
		return;
	v = *(Mc__St__Order *)got;
	/* packing only reads */
	if (strlen(v.segment) < MC_OWNER_NAME_MAX)
		v.segment = (char *)(uintptr_t)mc_engine_name(eng);
	if (v.address[0] && strlen(v.address) < MC_OWNER_NAME_MAX)
		v.address = (char *)(uintptr_t)o->address;
	v.base.n_unknown_fields = 0;
	if (mc_pb_pack(&v.base, item->bytes, sizeof(item->bytes), &len) == 0)
		item->len = (uint16_t)len;
}

static void said_put(struct mc_owner *o, const uint8_t *data, size_t len)
{
	static struct raw_item item;
	uint64_t number = 0;
	size_t at = 0;

	while (raw_next(&data, &len, &item)) {
		struct mc_st_note_head head = {.type = item.what, .number = ++number};

		addresses_put(o, &item);
		if (item.what == MC_ST_NOTE_ORDER)
			order_tame(o, &item);
		if (at + MC_ST_NOTE_HEAD_LEN + item.len > MC_FRAME_CREDIT_START)
			break;
		head.len = item.len;
		if (!(item.what & PIECE)) {
			mc_st_note_head_encode(&head, said + at);
			at += MC_ST_NOTE_HEAD_LEN;
		}
		memcpy(said + at, item.bytes, item.len);
		at += item.len;
	}
	pthread_mutex_lock(&lock);
	said_len = at;
	nstreams = 0;
	pthread_mutex_unlock(&lock);
}

/* ---- the owner ---- */

static struct mc_st_grant grant(const char *key, uint64_t gen, const uint8_t *payload, uint64_t len)
{
	return (struct mc_st_grant){.gen = gen,
				    .len = len,
				    .key = (const uint8_t *)key,
				    .key_len = (uint16_t)strlen(key),
				    .payload = payload};
}

static struct mc_owner *owner_open(void)
{
	struct mc_owner_opts opts = {.engine = eng,
				     .bytes = POOL_BYTES,
				     .grant_timeout_ms = 1,
				     .check_after_ms = 1,
				     .disk_bytes = POOL_BYTES};
	struct mc_st_grant small = grant("small", 5, source, 100);
	struct mc_st_grant large = grant("large", 6, source, SOURCE_BYTES);
	struct mc_st_grant record = grant("record", RECORD_GEN, NULL, 100);
	char text[MC_ADDR_TEXT_MAX];
	struct mc_diag diag = {""};
	struct mc_st_granted got;
	struct mc_owner *o;

	opts.master = mc_addr_format(&port, text);
	mc_assert(mc_owner_open(&opts, &diag, &o) == 0);
	mc_assert(mc_owner_put(o, &small, MC_TIME_NEVER, &got) == 0);
	mc_assert(mc_owner_put(o, &large, MC_TIME_NEVER, &got) == 0);
	mc_assert(mc_owner_disk_has(o, &record) == 0);
	return o;
}

static void disk_serve(struct mc_owner *o)
{
	struct mc_owner_disk_job jobs[8];
	unsigned n;

	while ((n = mc_owner_disk_take(o, jobs, MC_ARRAY_LEN(jobs), POOL_BYTES, mc_now_ns())) > 0) {
		for (unsigned i = 0; i < n; i++) {
			if (jobs[i].what == MC_OWNER_DISK_READ)
				memset(jobs[i].payload, 'r', (size_t)jobs[i].len);
			mc_owner_disk_done(o, &jobs[i], 0);
		}
	}
}

struct look {
	struct mc_owner *o;
	bool is_over;
};

/* The stream has ended, and every order. Calls that wait for room end without. */
static void look(void *arg)
{
	struct look *l = arg;
	struct mc_ostream *s = &l->o->stream;

	(void)mc_owner_serve_waiting(l->o, true);
	mc_assert(s->ndone <= s->norders && s->norders <= MC_OWNER_ORDERS_MAX);
	l->is_over = s->state == MC_OSTREAM_DOWN && s->ndone == s->norders;
}

static bool is_heard(void)
{
	bool is;

	pthread_mutex_lock(&lock);
	is = nstreams > 0;
	pthread_mutex_unlock(&lock);
	return is;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	uint64_t by_ns = mc_now_ns() + RAW_SOON_NS;
	struct look l = {0};

	if (!eng)
		setup();
	l.o = owner_open();
	said_put(l.o, data, len);
	mc_owner_start(l.o);
	for (;;) {
		bool was_heard = is_heard(); /* before it is looked whether that is over */

		disk_serve(l.o);
		mc_loop_call(l.o->loop, look, &l);
		if (was_heard && l.is_over)
			break;
		mc_assert(mc_now_ns() < by_ns);
		(void)poll(NULL, 0, 1);
	}
	disk_serve(l.o);
	mc_owner_disk_end(l.o);
	mc_owner_close(l.o);
	return 0;
}
