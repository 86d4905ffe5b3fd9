/*
 * master.c: a master's life, and what its calls share.
 */
#include "master/master.h"

#include "base/hash.h"
#include "base/rand.h"
#include "master/drain.h"

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

struct mc_st_key *mc_mst_keys(struct mc_master *m, uint32_t n)
{
	if (mc_array_grow((void **)&m->keys, &m->keys_cap, n, MC_ST_RECORDS_MAX + 1,
			  sizeof(*m->keys)) < 0)
		return NULL;
	return m->keys;
}

void *mc_mst_rows(struct mc_master *m, size_t n, size_t size)
{
	size_t len;

	if (__builtin_mul_overflow(n, size, &len) ||
	    mc_array_grow((void **)&m->rows, &m->rows_cap, len, BUF_MAX, 1) < 0)
		return NULL;
	return m->rows;
}

uint64_t mc_mst_now_ms(const struct mc_master *m)
{
	return mc_clock_now(m->env.clk) / MC_NS_PER_MS;
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
    {MC_ST_EXIST, "exist", mc_mst_exist},
    {MC_ST_LOOKUP, "lookup", mc_mst_lookup},
    {MC_ST_COMMIT, "commit", mc_mst_commit},
    {MC_ST_REMOVE, "remove", mc_mst_remove},
    {MC_ST_BAD, "bad", mc_mst_bad},
    {MC_ST_LIST, "list", mc_mst_list},
    {MC_ST_REMOVE_LIKE, "remove_like", mc_mst_remove_like},
    {MC_ST_SEGMENTS, "segments", mc_mst_segments},
    {MC_ST_TASK_CREATE, "task_create", mc_mst_task_create},
    {MC_ST_TASK_QUERY, "task_query", mc_mst_task_query},
    {MC_ST_CLEAR, "clear", mc_mst_clear},
    {MC_ST_OWNER, "owner", mc_mst_stream},
};

struct mc_mst_method *mc_mst_method(struct mc_master *m, uint16_t number)
{
	size_t i = 0;

	while (methods[i].number != number)
		i++;
	return &m->methods[i];
}

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
	    .repair_bytes_per_s = 256ull << 20,
	    .offload_queue_max = 50000,
	    .offload_cap_ratio = 0.5,
	    .tasks_finished_max = 10000,
	    .tasks_pending_max = 10000,
	    .tasks_processing_max = 10000,
	    .task_pending_ms = 300000,
	    .task_processing_ms = 300000,
	    .task_retries_max = 10,
	    .promotion_threshold = 2,
	    .promotion_beat_max = 1,
	    .promotion_queue_max = 50000,
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
	if (!found.is_there)
		m->gen_next +=
		    mc_hash64(&m->start_ns, sizeof(m->start_ns), 0) >> (64 - GEN_START_BITS);
	mc_mst_floor_set(m);
	rc = mc_mst_roster_load(m, &found);
	mc_state_found_fini(&found);
	return rc;
}

static int index_open(struct mc_master *m)
{
	uint64_t lease_ms = mc_min(m->conf.lease_ms, (uint64_t)UINT32_MAX);
	struct mc_index_conf conf = {
	    .lease_ttl_ms = (uint32_t)lease_ms,
	    .soft_pin_ttl_ms = m->conf.soft_pin_ms,
	    .soft_pin_ttl_max_ms = m->conf.soft_pin_max_ms,
	    .may_evict_soft_pinned = m->conf.may_evict_soft_pins,
	    .has_tenants = m->conf.has_tenants,
	    .quota = UINT64_MAX,
	    .tombs_max = MC_STATE_TOMBS_MAX / 2,
	};
	int rc = m->conf.seed ? 0 : mc_rand_bytes(&conf.seed, sizeof(conf.seed));

	if (m->conf.seed)
		conf.seed = m->conf.seed;
	if (m->conf.offload_on_evict) {
		double cap = m->conf.offload_cap_ratio * m->conf.offload_queue_max;

		cap = mc_min(cap, (double)MC_MST_VICTIMS_MAX);
		conf.due_max = (uint32_t)mc_max(cap, 1.0);
		conf.may_skip_disk = m->conf.offload_force_evict;
	}
	return rc < 0 ? rc : mc_index_open(&conf, &m->index);
}

/* On the loop, which has nothing else to do yet. */
static void begin(void *arg)
{
	struct mc_master *m = arg;

	m->begin_rc = epoch_begin(m);
	if (m->begin_rc == 0)
		m->begin_rc = mc_mst_tasks_open(m);
	if (m->begin_rc == 0)
		m->begin_rc = mc_mst_drains_open(m);
	if (m->begin_rc == 0)
		m->begin_rc = mc_mst_repair_open(m);
	if (m->begin_rc == 0)
		m->begin_rc = mc_mst_promotions_open(m);
}

static void close_begin(void *arg)
{
	struct mc_master *m = arg;

	m->is_closing = true;
}

static void close_end(void *arg)
{
	struct mc_master *m = arg;

	mc_mst_walks_drop(m); /* looks through those that wait, ops among them */
	mc_mst_ops_drop(m);
	mc_mst_leaving_drop(m);
	mc_mst_drains_close(m);
	mc_mst_repair_close(m);
	mc_mst_promotions_close(m);
	mc_mst_owners_fini(m);
	mc_mst_tasks_close(m);
	mc_state_close(m->state);
}

void mc_master_close(struct mc_master *master)
{
	if (!master)
		return;
	mc_loop_call(master->loop, close_begin, master);
	mc_rpc_server_close(master->server);
	mc_loop_call(master->loop, close_end, master);
	mc_index_close(master->index);
	mc_mst_frees_fini(master);
	mc_free(master->killed);
	mc_free(master->keys);
	mc_free(master->rows);
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
	m->start_ns = mc_clock_now(env->clk);
	mc_mst_owners_init(m);
	mc_mst_frees_init(m);
	mc_mst_marks_init(m);
	m->arena_mem = mc_aligned_alloc(MC_CACHELINE, ARENA_LEN);
	m->killed = mc_calloc(MC_MST_KILLED, sizeof(*m->killed));
	if (!m->arena_mem || !m->killed || !m->waits)
		goto fail;
	mc_pb_arena_init(&m->arena, m->arena_mem, ARENA_LEN);
	rc = index_open(m);
	if (rc < 0)
		goto fail;
	mc_loop_call(loop, begin, m);
	rc = m->begin_rc;
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

struct listened {
	struct mc_master *master;
	const struct mc_addr *at;
};

static void listened(void *arg)
{
	struct listened *l = arg;

	if (l->master->at.len == 0)
		l->master->at = *l->at;
}

int mc_master_listen(struct mc_master *master, const struct mc_addr *at, struct mc_addr *ret_bound)
{
	struct listened l = {master, ret_bound};
	int rc = mc_rpc_server_listen(master->server, at, ret_bound);

	if (rc == 0)
		mc_loop_call(master->loop, listened, &l);
	return rc;
}
