/*
 * fuzz_store_dummy.c: what hostile processes send to the socket where a node serves dummy clients
 * (raw_calls.h; an item's byte says which method, 0 mostly the right one), and what a hostile node
 * answers to a dummy client: an input whose first byte is 0xff is such an answer.
 *
 * However it ends, a good dummy is served afterwards, and nobody is counted who is gone.
 */
#include <stdio.h>
#include <unistd.h>

#include <mooncake/engine.h>

#include "base/log.h"
#include "client/tether.h"
#include "owner/dummies.h"
#include "raw_calls.h"
#include "wire/pb.h"
#include "wire/store.h"
#include "wire/store.pb-c.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

static struct mc_loop *loop;
static struct mc_dummies *dummies;
static struct mc_addr at;

static void setup(void)
{
	const struct mc_engine_opts opts = {.size = sizeof(opts), .name = "127.0.0.1"};
	char name[64];
	struct mc_dummies_conf conf = {.socket = name,
				       .master = "127.0.0.1:50051",
				       .metadata = "P2PHANDSHAKE",
				       .protocol = "tcp",
				       .tenant = "default"};
	struct mc_diag diag = {""};
	int rc = -MC_E_ADDR_IN_USE;

	mc_log_level_set(MC_LOG_ERROR);
	mc_assert(mc_loop_open("fuzz", mc_env_real.clk, &loop) == 0 && mc_loop_start(loop) == 0);
	mc_assert(mc_engine_open(&opts, &diag, &conf.engine) == 0);
	for (unsigned i = 0; rc == -MC_E_ADDR_IN_USE; i++) { /* others run beside this one */
		(void)snprintf(name, sizeof(name), MC_ST_DUMMY_SOCKET, (unsigned)getpid() + i);
		rc = mc_dummies_open(loop, &conf, &diag, &dummies);
	}
	mc_assert(rc == 0);
	mc_assert(mc_addr_unix(name, &at) == 0);
}

static void answer_read(const uint8_t *data, size_t len)
{
	struct mc_cli_setup setup;

	if (mc_cli_setup_parse(data, len, &setup) < 0)
		return;
	mc_assert(setup.master[0] && memchr(setup.master, 0, sizeof(setup.master)));
	mc_assert(setup.host[0] && memchr(setup.host, 0, sizeof(setup.host)));
	mc_assert(setup.segment[0] && memchr(setup.segment, 0, sizeof(setup.segment)));
	mc_assert(memchr(setup.metadata, 0, sizeof(setup.metadata)) &&
		  memchr(setup.protocol, 0, sizeof(setup.protocol)) &&
		  memchr(setup.devices, 0, sizeof(setup.devices)) &&
		  memchr(setup.tenant, 0, sizeof(setup.tenant)));
}

static void good_one(void)
{
	Mc__St__Dummy v = MC__ST__DUMMY__INIT;
	struct mc_dummies_stats before, after;
	uint64_t by_ns = mc_now_ns() + RAW_SOON_NS;
	uint8_t buf[64];
	struct raw r;
	size_t len;

	v.version = MC_ST_VERSION;
	v.client = 7;
	v.name = (char *)(uintptr_t) "good"; /* packing only reads */
	mc_assert(mc_pb_pack(&v.base, buf, sizeof(buf), &len) == 0);
	mc_dummies_stats(dummies, &before);
	raw_open(&r, &at);
	raw_wait(&r, raw_call(&r, MC_ST_DUMMY, 0, buf, len));
	mc_dummies_stats(dummies, &after);
	mc_assert(!r.is_over && after.total == before.total + 1 && after.refused == before.refused);
	raw_close(&r);
	while (after.now > 0) {
		mc_assert(mc_now_ns() < by_ns);
		(void)poll(NULL, 0, 1);
		mc_dummies_stats(dummies, &after);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	static struct raw_item item;
	struct raw r;

	if (len > 0 && data[0] == 0xff) {
		answer_read(data + 1, len - 1);
		return 0;
	}
	if (!dummies)
		setup();
	raw_open(&r, &at);
	while (raw_next(&data, &len, &item) && r.ncalls < RAW_CALLS_MAX) {
		uint16_t method = (uint16_t)(MC_ST_DUMMY + (item.what & 0x80 ? item.what : 0));

		raw_wait(&r, raw_call(&r, method, item.what & 1 ? MC_FRAME_STREAM : 0, item.bytes,
				      item.len));
	}
	raw_close(&r);
	good_one();
	return 0;
}
