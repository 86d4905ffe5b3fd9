/*
 * fuzz_master_http.c: what anybody asks the master's HTTP server: a path with its query, by one of
 * four methods, perhaps with a body, of a master that has objects, and has had some, with quotas.
 *
 * Of the first byte, bits 0 and 1 choose the method, bit 2 says that the path ends with a NUL and
 * the body follows, bit 3 adds the header that browsers send from pages of others.
 *
 * Whatever was asked, an honest request after it is answered; what was only asked leaves no memory
 * behind (others may remove objects, whose owner is not there to acknowledge it, begin drains, set
 * quotas). The master is another one after some changes.
 */
#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "io/http_server.h"
#include "master/admin.h"
#include "master/priv.h"
#include "raw_http.h"

#define OWNER 7u
#define ROUNDS 100u	 /* honest requests until what was begun has ended */
#define TIMES 16u	 /* that a request is asked again when memory differs after it */
#define CHANGES_MAX 256u /* of one master */
#define METHOD(byte) ((byte)&3u)
#define HAS_BODY 4u
#define HAS_ORIGIN 8u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

static struct mc_loop *loop, *side;
static struct mc_master *master;
static struct mc_master_admin *admin;
static struct mc_addr at;
static unsigned nchanges; /* that were asked of it */

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

static void loops_start(void)
{
	mc_log_level_set(MC_LOG_ERROR);
	mc_assert(mc_loop_open("master", mc_env_real.clk, &loop) == 0);
	mc_assert(mc_loop_open("side", mc_env_real.clk, &side) == 0);
	mc_assert(mc_loop_start(loop) == 0 && mc_loop_start(side) == 0);
}

static void setup(void)
{
	struct mc_master_conf conf;
	struct mc_diag diag = {.text = ""};
	struct mc_addr any;

	if (!loop)
		loops_start();
	nchanges = 0;
	mc_master_conf_defaults(&conf);
	conf.has_tenants = true;
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

static void teardown(void)
{
	mc_master_admin_close(admin);
	mc_master_close(master);
	master = NULL;
}

/* The input as a request. @return its length */
static size_t request(const uint8_t *data, size_t len, uint8_t *to, size_t cap)
{
	static const char *const methods[] = {"GET", "POST", "PUT", "DELETE"};
	const uint8_t *path = data + 1, *nul = NULL, *body = data + len;
	size_t path_len, body_len;
	int n;

	if (data[0] & HAS_BODY)
		nul = memchr(path, 0, len - 1);
	if (nul)
		body = nul + 1;
	path_len = mc_min((size_t)((nul ? nul : body) - path), cap / 4);
	body_len = mc_min((size_t)(data + len - body), cap / 2);
	n = snprintf((char *)to, cap, "%s /", methods[METHOD(data[0])]);
	memcpy(to + n, path, path_len);
	n += (int)path_len;
	n += snprintf((char *)to + n, cap - (size_t)n, " HTTP/1.0\r\n%sContent-Length: %zu\r\n\r\n",
		      data[0] & HAS_ORIGIN ? "Origin: http://elsewhere\r\n" : "", body_len);
	memcpy(to + n, body, body_len);
	return (size_t)n + body_len;
}

static void ask(const uint8_t *text, size_t n)
{
	int fd = raw_http_say(&at, text, n, n);

	raw_http_be_served(&at);
	(void)close(fd);
}

/* Is as much memory in use as `before`, soon? */
static bool is_forgotten(int64_t before, int64_t *ret_after)
{
	for (unsigned i = 0; i < ROUNDS; i++) {
		raw_http_be_served(&at);
		mc_loop_call(side, count, ret_after);
		if (*ret_after == before)
			return true;
	}
	return false;
}

/* Drains and removals that were begun before change memory, too, but not to more each time. */
static bool is_leak(const uint8_t *text, size_t n, int64_t before)
{
	int64_t after;

	for (unsigned i = 0; i < TIMES; i++) {
		if (is_forgotten(before, &after) || after < before)
			return false;
		before = after;
		ask(text, n);
	}
	return true;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	static uint8_t text[1u << 17]; /* half of it is as much as a body may have */
	int64_t before;
	size_t n;

	if (!master)
		setup();
	if (len < 1)
		return 0;
	n = request(data, len, text, sizeof(text));
	mc_loop_call(side, count, &before);
	ask(text, n);
	if (METHOD(data[0]) == 0)
		mc_assert(!is_leak(text, n, before));
	else if (++nchanges == CHANGES_MAX)
		teardown();
	return 0;
}
