/*
 * fuzz_master_http.c: what anybody asks the master's HTTP server: a path with its query, GET or
 * POST (first byte), of a master that has objects, and has had some.
 *
 * Whatever was asked, an honest request after it is answered; what was only asked leaves no memory
 * behind (a POST may remove objects, whose owner is not there to acknowledge it).
 */
#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "io/http_server.h"
#include "master/admin.h"
#include "master/priv.h"
#include "raw_http.h"

#define OWNER 7u
#define ROUNDS 1000u /* honest requests until what was begun has ended */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

static struct mc_loop *loop, *side;
static struct mc_master *master;
static struct mc_addr at;

static void put(struct mc_index *ix, const char *name, uint64_t gen)
{
	struct mc_st_key key = {.len = 2, .bytes = (const uint8_t *)name};
	struct mc_st_commit c = {.gen = gen, .len = 100, .nreplicas = 1};
	struct mc_index_request q;
	uint64_t got;

	c.replicas[0] = (struct mc_st_replica){.owner = OWNER, .addr = gen * 4096};
	mc_assert(mc_index_begin(ix, &q, 1000, &key, 1) == 0);
	mc_assert(mc_index_commit(&q, 0, &c, &master->frees, &got) == 0);
	if (gen > 2)
		mc_assert(mc_index_remove(&q, 0, MC_INDEX_FORCE, &master->frees) == 0);
	mc_index_end(&q);
}

/* On the index loop: "a" and "b" are there, "c" has been. */
static void fill(void *arg)
{
	struct mc_mst_owner *o = mc_mst_owner_add(master, OWNER);

	(void)arg;
	mc_assert(o && mc_index_owner_join(master->index, OWNER) == 0);
	(void)mc_strlcpy(o->segment, sizeof(o->segment), "host:1 \"\\\n");
	put(master->index, "\0a", 1);
	put(master->index, "\0b", 2);
	put(master->index, "\0c", 3);
	master->frees.n = 0;
}

static void setup(void)
{
	struct mc_master_admin *admin;
	struct mc_master_conf conf;
	struct mc_diag diag = {.text = ""};
	struct mc_addr any;

	mc_log_level_set(MC_LOG_ERROR);
	mc_assert(mc_loop_open("master", mc_env_real.clk, &loop) == 0);
	mc_assert(mc_loop_open("side", mc_env_real.clk, &side) == 0);
	mc_assert(mc_loop_start(loop) == 0 && mc_loop_start(side) == 0);
	mc_master_conf_defaults(&conf);
	mc_assert(mc_master_open(&mc_env_real, loop, side, &conf, &diag, &master) == 0);
	mc_loop_call(loop, fill, NULL);
	mc_assert(mc_addr_parse("127.0.0.1", 0, &any) == 0);
	mc_assert(mc_master_admin_open(master, &any, &diag, &admin) == 0);
	mc_assert(mc_addr_parse("127.0.0.1", mc_master_admin_port(admin), &at) == 0);
}

static void count(void *ret_live)
{
	*(int64_t *)ret_live = mc_mem_live();
}

/* The request line of the input. @return its length */
static size_t request(const uint8_t *data, size_t len, uint8_t *to, size_t cap)
{
	int n = snprintf((char *)to, cap, "%s /", data[0] & 1 ? "POST" : "GET");
	static const char end[] = " HTTP/1.0\r\n\r\n";
	size_t room = cap - (size_t)n - sizeof(end), part = mc_min(len - 1, room);

	memcpy(to + n, data + 1, part);
	memcpy(to + n + part, end, sizeof(end) - 1);
	return (size_t)n + part + sizeof(end) - 1;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	uint8_t text[4096];
	int64_t before, after;
	size_t n;
	int fd;

	if (!master)
		setup();
	if (len < 1)
		return 0;
	n = request(data, len, text, sizeof(text));
	mc_loop_call(side, count, &before);
	fd = raw_http_say(&at, text, n, n);
	raw_http_be_served(&at);
	(void)close(fd);
	if (data[0] & 1)
		return 0;
	for (unsigned i = 0; i < ROUNDS; i++) {
		raw_http_be_served(&at);
		mc_loop_call(side, count, &after);
		if (after == before)
			return 0;
	}
	mc_assert(after == before);
	return 0;
}
