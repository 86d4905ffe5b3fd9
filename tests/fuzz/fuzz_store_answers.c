/*
 * fuzz_store_answers.c: answers of a hostile master and a hostile owner at the Store's client, over
 * its connections; and slots of any bytes, which it reads through the engine.
 *
 * An input is a byte that chooses what is asked, and items: a byte, a length of two bytes, that
 * many bytes. A byte of 0xff makes the item a patch: two bytes say where in the pool the others are
 * xored in; any other one makes it an answer, and the next call that is no formality takes the next
 * of them; without one it is refused. Six bytes 0xee behind two others stand for an address: the
 * pool's, and 64 times the number in front. A good slot lies at the pool's beginning.
 */
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"
#include "base/log.h"
#include "client/priv.h"
#include "wire/pb.h"
#include "wire/store.pb-c.h"

#define POOL_BYTES (512u << 10)
#define ITEM_MAX 4096u
#define ITEMS_MAX 12u
#define SLOT_BYTES 70000u /* two chunks */
#define SLOT_GEN 5u
#define OWNER 100u
#define TIMEOUT_MS 15u
#define OUT_BYTES 80000u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

struct answer {
	size_t len;
	uint8_t bytes[ITEM_MAX];
};

static struct mc_loop *loop;
static struct mc_rpc_server *server;
static struct mc_addr port;
static struct mc_engine *eng; /* the owner's */
static struct mc_store *store;
static uint8_t *pool, good[POOL_BYTES];
/* of the loop, but between inputs */
static struct answer answers[ITEMS_MAX];
static unsigned nanswers, next;

/* ---- the other end: the loop ---- */

static void reply_pb(struct mc_rpc_req *req, const ProtobufCMessage *msg)
{
	uint8_t buf[1024];
	size_t len;

	mc_assert(mc_pb_pack(msg, buf, sizeof(buf), &len) == 0);
	(void)mc_rpc_reply(req, 0, buf, len, NULL, 0);
}

static void on_any(struct mc_rpc_req *req, const struct mc_rpc_msg *msg, void *user)
{
	(void)msg;
	(void)user;
	if (next == nanswers) {
		(void)mc_rpc_reply(req, -MC_E_INVAL, NULL, 0, NULL, 0);
		return;
	}
	(void)mc_rpc_reply(req, 0, answers[next].bytes, answers[next].len, NULL, 0);
	next++;
}

static void on_join(struct mc_rpc_req *req, const struct mc_rpc_msg *msg, void *user)
{
	Mc__St__JoinReply r = MC__ST__JOIN_REPLY__INIT;

	(void)msg;
	(void)user;
	r.epoch = 1;
	reply_pb(req, &r.base);
}

static void on_gens(struct mc_rpc_req *req, const struct mc_rpc_msg *msg, void *user)
{
	Mc__St__GensReply r = MC__ST__GENS_REPLY__INIT;

	(void)msg;
	(void)user;
	r.first_gen = 1ull << 40 | SLOT_GEN;
	r.ngens = 1;
	reply_pb(req, &r.base);
}

static void on_view(struct mc_rpc_req *req, const struct mc_rpc_msg *msg, void *user)
{
	Mc__St__ViewReply r = MC__ST__VIEW_REPLY__INIT;
	Mc__St__ViewOwner v = MC__ST__VIEW_OWNER__INIT, *list = &v;
	char text[MC_ADDR_TEXT_MAX];

	(void)msg;
	(void)user;
	v.id = OWNER;
	v.incarnation = 7;
	v.segment = (char *)(uintptr_t)mc_engine_name(eng); /* packing only reads */
	v.address = mc_addr_format(&port, text);
	v.capacity = v.free = POOL_BYTES;
	v.takes_puts = true;
	r.version = r.epoch = 1;
	r.n_owners = 1;
	r.owners = &list;
	reply_pb(req, &r.base);
}

/* Formalities: as many zeros as there are records. */
static void on_drop(struct mc_rpc_req *req, const struct mc_rpc_msg *msg, void *user)
{
	uint8_t buf[4 + 64 * 4] = {0};
	struct mc_rd rd = mc_rd_make(msg->data, msg->len);
	uint32_t n = mc_min(mc_rd_u32(&rd), 64u);
	struct mc_wr w = mc_wr_make(buf, sizeof(buf));

	(void)user;
	mc_wr_u32(&w, n);
	(void)mc_rpc_reply(req, 0, buf, 4 + (size_t)n * 4, NULL, 0);
}

static void on_writer(struct mc_rpc_req *req, const struct mc_rpc_msg *msg, void *user)
{
	(void)msg;
	(void)user;
	(void)mc_rpc_reply(req, 0, NULL, 0, NULL, 0);
}

/* ---- once ---- */

static void slot_make(void)
{
	struct mc_slot_info info = {.gen = SLOT_GEN,
				    .incarnation = 7,
				    .key_hash = mc_hash64("\0k", 2, 0),
				    .len = SLOT_BYTES,
				    .key = (const uint8_t *)"\0k",
				    .key_len = 2};
	uint32_t table[2];

	mc_assert(mc_slot_layout(&info) == 0 && info.nchunks == MC_ARRAY_LEN(table));
	memset(good, 'g', sizeof(good));
	for (uint32_t i = 0; i < info.nchunks; i++)
		table[i] =
		    mc_slot_chunk_crc(&info, i, good + info.payload_off + (size_t)i * MC_SLOT_CHUNK,
				      mc_slot_chunk_len(&info, i));
	mc_slot_seal(&info, table, good);
}

static void setup(void)
{
	static const uint16_t fuzzed[] = {MC_ST_EXIST,	  MC_ST_LOOKUP,	     MC_ST_COMMIT,
					  MC_ST_REMOVE,	  MC_ST_REMOVE_LIKE, MC_ST_LIST,
					  MC_ST_BAD,	  MC_ST_PUT,	     MC_ST_GRANT,
					  MC_ST_SEGMENTS, MC_ST_SEAL,	     MC_ST_REGEN};
	struct mc_rpc_method methods[MC_ARRAY_LEN(fuzzed) + 5] = {
	    {MC_ST_JOIN, "join", on_join, NULL},       {MC_ST_GENS, "gens", on_gens, NULL},
	    {MC_ST_VIEW, "view", on_view, NULL},       {MC_ST_DROP, "drop", on_drop, NULL},
	    {MC_ST_WRITER, "writer", on_writer, NULL},
	};
	const struct mc_rpc_server_opts opts = {.methods = methods,
						.nmethods = MC_ARRAY_LEN(methods)};
	const struct mc_engine_opts eo = {.size = sizeof(eo), .name = "127.0.0.1"};
	struct mc_store_opts so = {.size = sizeof(so), .name = "127.0.0.1", .timeout_ms = 3000};
	char text[MC_ADDR_TEXT_MAX];
	struct mc_diag diag = {""};
	struct mc_addr any;

	for (size_t i = 0; i < MC_ARRAY_LEN(fuzzed); i++)
		methods[5 + i] = (struct mc_rpc_method){fuzzed[i], "any", on_any, NULL};
	mc_log_level_set(MC_LOG_ERROR);
	mc_assert(setenv("MC_NO_SHM", "1", 1) == 0);
	slot_make();
	mc_assert(mc_engine_open(&eo, &diag, &eng) == 0);
	pool = mc_mem_alloc(eng, POOL_BYTES);
	mc_assert(pool != NULL);
	mc_assert(mc_loop_open("ends", &mc_clock_real, &loop) == 0 && mc_loop_start(loop) == 0);
	mc_assert(mc_addr_parse("127.0.0.1:0", 0, &any) == 0);
	mc_assert(mc_rpc_server_open(&mc_env_real, loop, &opts, &server) == 0);
	mc_assert(mc_rpc_server_listen(server, &any, &port) == 0);
	so.master = mc_addr_format(&port, text);
	mc_assert(mc_store_open(&so, &diag, &store) == 0);
	store->timeout_ms = TIMEOUT_MS;
}

/* ---- an input ---- */

static void addresses_put(uint8_t *bytes, size_t len)
{
	for (size_t i = 0; i + 8 <= len; i++) {
		uint64_t addr;

		if (memcmp(bytes + i + 2, "\xee\xee\xee\xee\xee\xee", 6) != 0)
			continue;
		addr = (uintptr_t)pool + 64ull * (bytes[i] | (unsigned)bytes[i + 1] << 8);
		addr = htole64(addr);
		memcpy(bytes + i, &addr, sizeof(addr));
	}
}

static void patch(const uint8_t *data, size_t len)
{
	size_t at;

	if (len < 2)
		return;
	at = data[0] | (size_t)data[1] << 8;
	for (size_t i = 2; i < len && at + i - 2 < POOL_BYTES; i++)
		pool[at + i - 2] ^= data[i];
}

static void items_take(const uint8_t *data, size_t len)
{
	while (len >= 3 && nanswers < ITEMS_MAX) {
		size_t n = (size_t)(data[1] | data[2] << 8) % ITEM_MAX;
		bool is_patch = data[0] == 0xff;

		data += 3;
		len -= 3;
		n = mc_min(n, len);
		if (is_patch) {
			patch(data, n);
		} else {
			struct answer *a = &answers[nanswers++];

			memcpy(a->bytes, data, n);
			a->len = n;
			addresses_put(a->bytes, n);
		}
		data += n;
		len -= n;
	}
}

static bool listed(void *user, const void *key, size_t key_len, uint64_t len, unsigned memory,
		   unsigned disk)
{
	unsigned *sum = user;

	(void)len;
	for (size_t i = 0; i < key_len; i++)
		*sum += ((const uint8_t *)key)[i];
	*sum += memory + disk;
	return true;
}

static void read_some(struct mc_store_key *keys, bool is_ranged)
{
	static uint8_t out[2][OUT_BYTES];
	struct mc_store_part parts[2] = {{out[0], OUT_BYTES}, {out[1], OUT_BYTES}};
	struct mc_store_item items[2] = {{keys[0], &parts[0], 1}, {keys[1], &parts[1], 1}};
	struct mc_store_range ranges[2] = {{100, out[0], 66000}, {3, out[1], 7}};
	struct mc_store_ranged ranged = {keys[0], ranges, 2};
	int64_t ret[2];

	if (is_ranged)
		(void)!mc_store_get_ranges(store, &ranged, 1, ret);
	else
		(void)!mc_store_get(store, items, 2, ret);
}

static void put_some(struct mc_store_key *keys, size_t len)
{
	static uint8_t in[300u << 10];
	struct mc_store_part part = {in, len};
	struct mc_store_item item = {keys[0], &part, 1};
	int32_t ret;

	(void)!mc_store_put(store, &item, 1, NULL, MC_STORE_UPSERT, &ret);
}

static void ask(unsigned what)
{
	struct mc_store_key keys[2] = {{"k", 1}, {"l", 1}};
	struct mc_store_replica replicas[MC_STORE_REPLICAS_MAX];
	unsigned sum = 0;
	int64_t sizes[2];
	int32_t ret[2];

	switch (what % 10) {
	case 0:
		(void)!mc_store_exist(store, keys, 2, ret);
		break;
	case 1:
		(void)!mc_store_size(store, keys, 2, sizes);
		break;
	case 2:
		read_some(keys, true);
		break;
	case 3:
		(void)!mc_store_remove(store, keys, 2, true, ret);
		break;
	case 4:
		(void)mc_store_list(store, "", listed, &sum);
		break;
	case 5:
		mc_text_free(mc_store_segments_json(store));
		break;
	case 6:
		(void)mc_store_remove_like(store, "x", false);
		break;
	case 7:
		(void)!mc_store_replicas(store, &keys[0], replicas);
		break;
	case 8:
		put_some(keys, what & 0x80 ? 300u << 10 : 100);
		break;
	default:
		read_some(keys, false);
		break;
	}
}

static void take(void *arg)
{
	const struct mc_store_part *input = arg;

	nanswers = next = 0;
	items_take(input->addr, input->len);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	struct mc_store_part input;

	if (!store)
		setup();
	if (len < 1)
		return 0;
	memcpy(pool, good, POOL_BYTES);
	input = (struct mc_store_part){(void *)(uintptr_t)(data + 1), len - 1}; /* only read */
	mc_loop_call(loop, take, &input);
	ask(data[0]);
	mc_cli_cache_clear(store->cache);
	pthread_mutex_lock(&store->view.mu);
	for (size_t i = 0; i < store->view.n; i++)
		mc_place_include(&store->view.place, store->view.owners[i]->id);
	pthread_mutex_unlock(&store->view.mu);
	return 0;
}
