/*
 * fuzz_store_owner.c: calls of a hostile client at an owner, through its rpc server: Put, Grant,
 * Seal, Drop, Regen, Writer, with payloads of any bytes (raw_calls.h).
 *
 * Six bytes 0xee behind two others stand for an address: the pool's, and 64 times the number in
 * front. When the connection is gone all slots are dropped, and nothing is left of them.
 */
#include "base/log.h"
#include "owner/priv.h"
#include "raw_calls.h"
#include "wire/pb.h"

#define POOL_BYTES (1u << 20)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

static struct mc_engine *eng;
static struct mc_owner *owner;
static struct mc_addr port;

static void setup(void)
{
	const struct mc_engine_opts opts = {.size = sizeof(opts), .name = "127.0.0.1"};
	struct mc_owner_opts own = {.master = "127.0.0.1:9", /* nobody */
				    .bytes = POOL_BYTES,
				    .grant_timeout_ms = 1};
	struct mc_diag diag = {""};

	mc_log_level_set(MC_LOG_ERROR);
	mc_assert(mc_engine_open(&opts, &diag, &eng) == 0);
	own.engine = eng;
	mc_assert(mc_owner_open(&own, &diag, &owner) == 0);
	mc_assert(mc_addr_parse(mc_owner_address(owner), 0, &port) == 0);
}

static void addresses_put(struct raw_item *item)
{
	for (size_t i = 0; i + 8 <= item->len; i++) {
		uint64_t addr;

		if (memcmp(item->bytes + i + 2, "\xee\xee\xee\xee\xee\xee", 6) != 0)
			continue;
		addr = (uintptr_t)owner->pool.base +
		       64ull * (item->bytes[i] | (unsigned)item->bytes[i + 1] << 8);
		addr = htole64(addr);
		memcpy(item->bytes + i, &addr, sizeof(addr));
	}
}

/* A segment is looked for, also by name: of this host alone, please. */
static void writer_tame(struct raw_item *item)
{
	_Alignas(16) uint8_t mem[16384];
	struct mc_pb_arena arena;
	ProtobufCMessage *got;
	Mc__St__Writer v;
	size_t len;

	mc_pb_arena_init(&arena, mem, sizeof(mem));
	if (mc_pb_unpack(&arena, &mc__st__writer__descriptor, item->bytes, item->len, &got) < 0)
		return;
	v = *(Mc__St__Writer *)got;
	if (v.segment[0] && strlen(v.segment) < MC_OWNER_NAME_MAX)
		v.segment = (char *)(uintptr_t)mc_engine_name(eng); /* packing only reads */
	v.base.n_unknown_fields = 0;
	if (mc_pb_pack(&v.base, item->bytes, sizeof(item->bytes), &len) == 0)
		item->len = (uint16_t)len;
}

/* Calls that wait for room end without. */
static void flush(void *arg)
{
	struct mc_owner *o = arg;

	(void)mc_owner_serve_waiting(o, true);
	mc_assert(mc_list_is_empty(&o->waiting) && o->waiting_bytes == 0);
}

/* Drop all there is. @return false: the work thread still has some */
static bool sweep(struct mc_owner *o)
{
	struct mc_st_place all[256];
	size_t n = 0;
	bool is_clean;

	pthread_mutex_lock(&o->lock);
	for (uint32_t id = 1; id < o->pool.nslots && n < MC_ARRAY_LEN(all); id++)
		if (o->pool.slots[id].state != MC_OSLOT_NONE)
			all[n++] = (struct mc_st_place){mc_opool_addr(&o->pool, id),
							o->pool.slots[id].gen};
	pthread_mutex_unlock(&o->lock);
	for (size_t i = 0; i < n; i++)
		mc_assert(mc_owner_drop(o, &all[i]) == 0);
	pthread_mutex_lock(&o->lock);
	is_clean = o->pool.live == 0;
	if (is_clean) {
		mc_assert(o->pool.nsealed == 0 && o->pool.ngranted == 0);
		mc_assert(mc_extent_used(o->pool.extent) == 0);
		memset(o->pool.dropped, 0, sizeof(o->pool.dropped)); /* inputs know nothing of
									 each other */
	}
	pthread_mutex_unlock(&o->lock);
	return is_clean;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	static const uint16_t methods[] = {MC_ST_PUT,  MC_ST_GRANT, MC_ST_SEAL,
					   MC_ST_DROP, MC_ST_REGEN, MC_ST_WRITER};
	static const uint8_t nothing[4];
	static struct raw_item item;
	uint64_t by_ns, last = 0;
	struct raw r;

	if (!owner)
		setup();
	raw_open(&r, &port);
	while (raw_next(&data, &len, &item) && r.ncalls < RAW_CALLS_MAX - 1) {
		uint16_t method = methods[item.what % MC_ARRAY_LEN(methods)];

		addresses_put(&item);
		if (method == MC_ST_WRITER)
			writer_tame(&item);
		(void)raw_call(&r, method, 0, item.bytes, item.len);
	}
	/* Answered at once, and after all that was sent before it. */
	last = raw_call(&r, MC_ST_DROP, 0, nothing, sizeof(nothing));
	raw_wait(&r, last);
	mc_loop_call(owner->loop, flush, owner);
	raw_close(&r);
	by_ns = mc_now_ns() + RAW_SOON_NS;
	while (!sweep(owner)) {
		mc_assert(mc_now_ns() < by_ns);
		(void)poll(NULL, 0, 1);
	}
	return 0;
}
