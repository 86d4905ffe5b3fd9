/*
 * master.c: a master's life, and what its calls share.
 */
#include "master/master.h"

#include "base/hash.h"
#include "base/log.h"
#include "master/priv.h"

#define CONNS_DEFAULT 16384u
#define BUF_MAX (64u << 20)
#define ARENA_LEN (256u << 10)
#define GEN_START_BITS 38

/* ---- calls ---- */

uint8_t *mc_mst_buf(struct mc_master *m, size_t len)
{
	if (mc_array_grow((void **)&m->buf, &m->buf_cap, len, BUF_MAX, 1) < 0)
		return NULL;
	return m->buf;
}

void mc_mst_reply_pb(struct mc_master *m, struct mc_rpc_req *req, const ProtobufCMessage *msg)
{
	size_t len = protobuf_c_message_get_packed_size(msg);
	uint8_t *buf = mc_mst_buf(m, len);
	int rc = buf ? mc_pb_pack(msg, buf, len, &len) : -MC_E_NOMEM;

	(void)mc_rpc_reply(req, rc, buf, rc == 0 ? len : 0, NULL, 0);
}

ProtobufCMessage *mc_mst_unpack(struct mc_master *m, struct mc_rpc_req *req,
				const ProtobufCMessageDescriptor *type,
				const struct mc_rpc_msg *msg)
{
	ProtobufCMessage *ret;
	int rc = mc_pb_unpack(&m->arena, type, msg->data, msg->len, &ret);

	if (rc == 0)
		return ret;
	(void)mc_rpc_reply(req, rc, NULL, 0, NULL, 0);
	return NULL;
}

static void on_call(struct mc_rpc_req *req, const struct mc_rpc_msg *msg, void *user)
{
	struct mc_mst_method *method = user;
	struct mc_master *m = method->master;
	uint64_t start = mc_clock_now(m->env.clk);

	mc_counter_add(&method->calls, 1);
	if (method->handle(m, req, msg))
		mc_hist_add(&method->latency, mc_clock_now(m->env.clk) - start);
}

static const struct {
	uint16_t number;
	const char *name;
	bool (*handle)(struct mc_master *m, struct mc_rpc_req *req, const struct mc_rpc_msg *msg);
} methods[] = {
    {MC_ST_JOIN, "join", mc_mst_join},
    {MC_ST_VIEW, "view", mc_mst_view},
    {MC_ST_GENS, "gens", mc_mst_gens},
};

static int serve(struct mc_master *m)
{
	struct mc_rpc_method rows[MC_MST_METHODS_MAX];
	struct mc_rpc_server_opts opts = {
	    .conns_max = m->conf.conns_max ? m->conf.conns_max : CONNS_DEFAULT,
	    .methods = rows,
	    .nmethods = MC_ARRAY_LEN(methods),
	};

	_Static_assert(MC_ARRAY_LEN(methods) <= MC_MST_METHODS_MAX, "room for all methods");
	for (size_t i = 0; i < MC_ARRAY_LEN(methods); i++) {
		m->methods[i].master = m;
		m->methods[i].name = methods[i].name;
		m->methods[i].handle = methods[i].handle;
		rows[i] = (struct mc_rpc_method){.method = methods[i].number,
						 .name = methods[i].name,
						 .handle = on_call,
						 .user = &m->methods[i]};
	}
	return mc_rpc_server_open(&m->env, m->loop, &opts, &m->server);
}

/* ---- life ---- */

void mc_master_conf_defaults(struct mc_master_conf *conf)
{
	*conf = (struct mc_master_conf){
	    .client_ttl_ms = 10000,
	    .lease_ms = 10000,
	    .soft_pin_ms = 1800000,
	    .soft_pin_max_ms = 86400000,
	    .may_evict_soft_pins = true,
	    .eviction_ratio = 0.05,
	    .watermark = 0.9,
	};
}

uint64_t mc_master_epoch(const struct mc_master *master)
{
	return atomic_load_explicit(&master->epoch, memory_order_relaxed);
}

/* The epoch is durable before anything is served. */
static int epoch_begin(struct mc_master *m)
{
	struct mc_state_found found;
	int rc = mc_state_open(&m->env, m->loop, m->side, m->conf.state_dir, &m->state, &found);

	if (rc < 0)
		return rc;
	atomic_store_explicit(&m->epoch, found.epoch + 1, memory_order_relaxed);
	/*
	 * Without a file this epoch may have been another life's, too, until an owner says so; the
	 * same generations must not be given out twice.
	 */
	m->gen_next = 1;
	if (!found.is_there) {
		uint64_t seed = mc_clock_now(m->env.clk);

		m->gen_next += mc_hash64(&seed, sizeof(seed), 0) >> (64 - GEN_START_BITS);
	}
	mc_state_found_fini(&found);
	return 0;
}

static void detach(void *arg)
{
	struct mc_master *m = arg;

	mc_state_close(m->state);
	m->state = NULL;
}

void mc_master_close(struct mc_master *master)
{
	if (!master)
		return;
	mc_rpc_server_close(master->server);
	mc_loop_call(master->loop, detach, master);
	mc_free(master->buf);
	mc_free(master->arena_mem);
	mc_free(master);
}

int mc_master_open(const struct mc_env *env, struct mc_loop *loop, struct mc_loop *side,
		   const struct mc_master_conf *conf, struct mc_diag *diag,
		   struct mc_master **ret_master)
{
	struct mc_master *m = mc_calloc(1, sizeof(*m));
	int rc = -MC_E_NOMEM;

	if (!m)
		return -MC_E_NOMEM;
	m->env = *env;
	m->loop = loop;
	m->side = side;
	m->conf = *conf;
	m->view_version = 1;
	mc_list_init(&m->owners);
	m->arena_mem = mc_aligned_alloc(MC_CACHELINE, ARENA_LEN);
	if (!m->arena_mem)
		goto fail;
	mc_pb_arena_init(&m->arena, m->arena_mem, ARENA_LEN);
	rc = epoch_begin(m);
	if (rc < 0)
		goto fail;
	rc = serve(m);
	if (rc < 0)
		goto fail;
	*ret_master = m;
	return 0;
fail:
	mc_diag_set(diag, "master: %s", mc_err_text(rc));
	mc_master_close(m);
	return rc;
}

int mc_master_listen(struct mc_master *master, const struct mc_addr *at, struct mc_addr *ret_bound)
{
	return mc_rpc_server_listen(master->server, at, ret_bound);
}
