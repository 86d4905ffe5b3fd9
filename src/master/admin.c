/*
 * admin.c: the master over HTTP. Answers are made on the side loop; what the index knows is copied
 * by a call to the other one.
 */
#include "master/admin.h"

#include <string.h>

#include "base/json.h"
#include "base/opt.h"
#include "base/statreg.h"
#include "io/http_server.h"
#include "master/admin_drain.h"
#include "master/admin_object.h"
#include "master/admin_remove.h"
#include "master/history.h"
#include "master/page.h"
#include "master/priv.h"

#define STATS_MAX 256u
#define TEXT_MAX (256u << 20)
#define BODY_MAX 65536u

/* Numbers that the index loop fills in when somebody asks. */
enum gauge {
	KEYS,
	BYTES,
	CAPACITY,
	USED,
	SOFT_PINNED,
	HARD_PINNED,
	EVICTED_KEYS,
	EVICTED_BYTES,
	OWNERS,
	CONNS,
	PENDING_FREES,
	TOMBSTONES,
	INDEX_BYTES,
	EPOCH,
	RECOVERING,
	MEMORY_REPLICAS,
	DISK_REPLICAS,
	DISK_CAPACITY,
	DISK_USED,
	REPAIRED,
	REPAIRED_BYTES,
	REPAIR_FAILED,
	REPAIRING,
	GAUGE_COUNT,
};

static const struct {
	const char *name, *help;
} gauges[GAUGE_COUNT] = {
    [KEYS] = {"master_key_count", "objects"},
    [BYTES] = {"master_payload_bytes", "bytes of objects, all replicas"},
    [CAPACITY] = {"master_total_capacity_bytes", "memory of all owners"},
    [USED] = {"master_allocated_bytes", "of that, in use"},
    [SOFT_PINNED] = {"master_soft_pin_key_count", "objects with a soft pin"},
    [HARD_PINNED] = {"master_hard_pin_key_count", "objects with a hard pin"},
    [EVICTED_KEYS] = {"master_evicted_key_count", "replicas evicted so far"},
    [EVICTED_BYTES] = {"master_evicted_size_bytes", "bytes evicted so far"},
    [OWNERS] = {"master_owners", "owners that are there"},
    [CONNS] = {"master_active_clients", "connections of clients and owners"},
    [PENDING_FREES] = {"master_pending_frees", "frees that owners have not acknowledged"},
    [TOMBSTONES] = {"master_tombstones", "removals that owners which are away do not know"},
    [INDEX_BYTES] = {"master_index_memory_bytes", "memory of the index"},
    [EPOCH] = {"master_epoch", "epoch of this master"},
    [RECOVERING] = {"master_recovering", "1 while owners of the last life have not announced"},
    [MEMORY_REPLICAS] = {"mem_cache_nums_", "replicas in memory"},
    [DISK_REPLICAS] = {"file_cache_nums_", "replicas on disk"},
    [DISK_CAPACITY] = {"master_total_file_capacity_bytes", "disk of all owners"},
    [DISK_USED] = {"master_allocated_file_size_bytes", "of that, in use"},
    [REPAIRED] = {"master_repaired_replicas", "replicas made again, so far"},
    [REPAIRED_BYTES] = {"master_repaired_bytes", "bytes of them"},
    [REPAIR_FAILED] = {"master_repair_failures", "that could not be made, so far"},
    [REPAIRING] = {"master_repairing", "1 while missing replicas are looked for and made"},
};

struct mc_master_admin {
	struct mc_master *m;
	struct mc_http_server *http;
	struct mc_admin_remove *remove;
	struct mc_stat_reg *reg;
	struct mc_gauge gauge[GAUGE_COUNT];
	struct mc_gauge owners_by_state[MC_MST_OWNER_STATE_COUNT];
	struct mc_history *history;
	struct mc_timer sample;
};

/* One question: what is copied on the index loop. */
struct ask {
	struct mc_master_admin *a;
	json_t *segments; /* wanted when not NULL */
	bool has_away;	  /* of those that are away, too */
	struct mc_addr at;
};

static void set(struct mc_master_admin *a, enum gauge g, uint64_t n)
{
	mc_gauge_set(&a->gauge[g], (int64_t)n);
}

static json_t *segment_json(struct mc_master *m, const struct mc_mst_owner *o)
{
	const struct mc_st_space *memory = &o->space[MC_ST_MEMORY], *disk = &o->space[MC_ST_DISK];
	uint64_t silent_ns = mc_clock_now(m->env.clk) - o->heard_ns;
	struct mc_index_pool pool;
	char id[17];

	(void)snprintf(id, sizeof(id), "%016llx", (unsigned long long)o->id);
	mc_index_pool(m->index, o->id, MC_ST_MEMORY, &pool);
	return json_pack("{s:s, s:s, s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "id", id,
			 "name", o->segment, "host", o->host, "state", mc_mst_owner_state_text(o),
			 "capacity", (json_int_t)memory->capacity, "used", (json_int_t)memory->used,
			 "disk_capacity", (json_int_t)disk->capacity, "disk_used",
			 (json_int_t)disk->used, "objects", (json_int_t)pool.objects,
			 /* never heard of in this life of the master: as long as that is */
			 "silent_ms", (json_int_t)(o->heard_ns ? silent_ns / MC_NS_PER_MS : 0),
			 "freeing", (json_int_t)pool.freeing, "unsent",
			 (json_int_t)(o->tx_len - o->tx_at));
}

/* On the index loop. */
static void collect(void *arg)
{
	struct ask *ask = arg;
	struct mc_master_admin *a = ask->a;
	struct mc_master *m = a->m;
	struct mc_rpc_server_stats server;
	struct mc_mst_repair_stats repair;
	struct mc_index_stats index;
	uint64_t capacity = 0, used = 0, disk = 0, disk_used = 0, owners = 0;
	struct mc_mst_owner *o;

	for (unsigned i = 0; i < MC_MST_OWNER_STATE_COUNT; i++)
		mc_gauge_set(&a->owners_by_state[i], 0);
	mc_list_each (o, &m->owners, link) {
		mc_gauge_add(&a->owners_by_state[o->state], 1);
		if (!o->is_joined) {
			if (ask->has_away && ask->segments)
				(void)json_array_append_new(ask->segments, segment_json(m, o));
			continue;
		}
		owners++;
		capacity += o->space[MC_ST_MEMORY].capacity;
		used += o->space[MC_ST_MEMORY].used;
		disk += o->space[MC_ST_DISK].capacity;
		disk_used += o->space[MC_ST_DISK].used;
		if (ask->segments)
			(void)json_array_append_new(ask->segments, segment_json(m, o));
	}
	mc_index_stats(m->index, &index);
	mc_rpc_server_stats(m->server, &server);
	set(a, KEYS, index.objects);
	set(a, BYTES, index.bytes);
	set(a, CAPACITY, capacity);
	set(a, USED, used);
	set(a, SOFT_PINNED, index.soft_pinned);
	set(a, HARD_PINNED, index.hard_pinned);
	set(a, EVICTED_KEYS, index.evicted_objects);
	set(a, EVICTED_BYTES, index.evicted_bytes);
	set(a, OWNERS, owners);
	set(a, CONNS, server.conns);
	set(a, PENDING_FREES, index.pending);
	set(a, TOMBSTONES, index.tombs);
	set(a, INDEX_BYTES, index.memory_bytes);
	set(a, EPOCH, mc_master_epoch(m));
	set(a, RECOVERING, m->is_recovering);
	set(a, MEMORY_REPLICAS, index.replicas[MC_ST_MEMORY]);
	set(a, DISK_REPLICAS, index.replicas[MC_ST_DISK]);
	set(a, DISK_CAPACITY, disk);
	set(a, DISK_USED, disk_used);
	mc_mst_repair_stats(m, &repair);
	set(a, REPAIRED, repair.made);
	set(a, REPAIRED_BYTES, repair.bytes);
	set(a, REPAIR_FAILED, repair.failed);
	set(a, REPAIRING, repair.is_running);
	ask->at = m->at;
}

static json_t *ask(struct mc_master_admin *a, bool has_segments)
{
	struct ask q = {.a = a, .segments = has_segments ? json_array() : NULL};

	mc_loop_call(a->m->loop, collect, &q);
	return q.segments;
}

/* What is needed of the address: its text. */
static const char *ask_address(struct mc_master_admin *a, char text[MC_ADDR_TEXT_MAX])
{
	struct ask q = {.a = a};

	text[0] = '\0';
	mc_loop_call(a->m->loop, collect, &q);
	return q.at.len ? mc_addr_format(&q.at, text) : text;
}

/* ---- pages ---- */

static void health(struct mc_master_admin *a, struct mc_str *out)
{
	char text[MC_ADDR_TEXT_MAX];
	const char *address = ask_address(a, text);
	long long epoch = mc_gauge_read(&a->gauge[EPOCH]);

	/* The view is the master's life: another one has another epoch. */
	(void)mc_str_appendf(out,
			     "{\"status\": \"ok\", \"role\": \"leader\", \"ha_state\": "
			     "\"standalone\", \"service_ready\": %s, \"leader_address\": "
			     "\"%s\", \"view_version\": %lld, \"epoch\": %lld}\n",
			     mc_gauge_read(&a->gauge[RECOVERING]) ? "false" : "true", address,
			     epoch, epoch);
}

/* There is one master, so it leads. */
static void role(struct mc_master_admin *a, struct mc_str *out)
{
	(void)a;
	(void)mc_str_puts(out, "{\"role\": \"leader\"}\n");
}

static void leader(struct mc_master_admin *a, struct mc_str *out)
{
	char text[MC_ADDR_TEXT_MAX];
	const char *address = ask_address(a, text);

	(void)mc_str_appendf(out, "{\"leader_address\": \"%s\", \"view_version\": %lld}\n", address,
			     (long long)mc_gauge_read(&a->gauge[EPOCH]));
}

static const char *text_of(const json_t *segment, const char *key)
{
	const char *text = json_string_value(json_object_get(segment, key));

	return text ? text : "";
}

/* A number of each segment; two of one name differ in their owner. */
static void segment_lines(const json_t *list, const char *name, const char *key, const char *help,
			  struct mc_str *out)
{
	(void)mc_str_appendf(out, "# HELP %s %s\n# TYPE %s gauge\n", name, help, name);
	for (size_t i = 0; i < json_array_size(list); i++) {
		const json_t *s = json_array_get(list, i);

		(void)mc_str_appendf(out, "%s{owner=\"%s\",segment=\"", name, text_of(s, "id"));
		for (const char *c = text_of(s, "name"); *c; c++) {
			if (*c == '"' || *c == '\\')
				(void)mc_str_puts(out, "\\");
			(void)mc_str_append(out, c, 1);
		}
		(void)mc_str_appendf(out, "\"} %lld\n",
				     (long long)json_integer_value(json_object_get(s, key)));
	}
}

static void metrics(struct mc_master_admin *a, struct mc_str *out)
{
	json_t *list = ask(a, true);

	out->rc = mc_stat_render(a->reg, out);
	segment_lines(list, "segment_allocated_bytes", "used", "memory in use", out);
	segment_lines(list, "segment_total_capacity_bytes", "capacity", "memory of a segment", out);
	segment_lines(list, "segment_disk_allocated_bytes", "disk_used", "disk in use", out);
	segment_lines(list, "segment_disk_capacity_bytes", "disk_capacity", "disk of a segment",
		      out);
	segment_lines(list, "segment_objects", "objects", "objects in memory", out);
	segment_lines(list, "segment_silent_ms", "silent_ms", "since its owner was heard", out);
	segment_lines(list, "segment_freeing_bytes", "freeing",
		      "bytes whose free it has not acknowledged", out);
	segment_lines(list, "segment_unsent_bytes", "unsent", "notes that wait for its stream",
		      out);
	json_decref(list);
	mc_admin_quota_metrics(a->m, out);
}

static void summary(struct mc_master_admin *a, struct mc_str *out)
{
	json_decref(ask(a, false));
	(void)mc_str_appendf(
	    out, "keys %lld, memory %lld of %lld bytes, owners %lld, evicted %lld\n",
	    (long long)mc_gauge_read(&a->gauge[KEYS]), (long long)mc_gauge_read(&a->gauge[USED]),
	    (long long)mc_gauge_read(&a->gauge[CAPACITY]),
	    (long long)mc_gauge_read(&a->gauge[OWNERS]),
	    (long long)mc_gauge_read(&a->gauge[EVICTED_KEYS]));
}

static void all_segments(struct mc_master_admin *a, struct mc_str *out)
{
	json_t *list = ask(a, true);

	for (size_t i = 0; i < json_array_size(list); i++)
		(void)mc_str_appendf(out, "%s\n", text_of(json_array_get(list, i), "name"));
	json_decref(list);
}

static void detail(struct mc_master_admin *a, struct mc_str *out)
{
	json_t *list = ask(a, true);

	if (list)
		out->rc = mc_json_dump(list, out);
	json_decref(list);
}

/* What the status page shows of who gives memory, and of the master. */
static void nodes(struct mc_master_admin *a, struct mc_str *out)
{
	struct ask q = {.a = a, .segments = json_array(), .has_away = true};
	uint64_t now = mc_clock_now(a->m->env.clk);

	mc_loop_call(a->m->loop, collect, &q);
	(void)mc_str_appendf(out, "{\"epoch\":%lld,\"recovering\":%s,\"up_ms\":%llu,\"nodes\":",
			     (long long)mc_gauge_read(&a->gauge[EPOCH]),
			     mc_gauge_read(&a->gauge[RECOVERING]) ? "true" : "false",
			     (unsigned long long)((now - a->m->start_ns) / MC_NS_PER_MS));
	if (!q.segments || (out->rc == 0 && mc_json_dump(q.segments, out) < 0))
		out->rc = -MC_E_NOMEM;
	(void)mc_str_puts(out, "}\n");
	json_decref(q.segments);
}

static void page(struct mc_master_admin *a, struct mc_str *out)
{
	(void)a;
	(void)mc_str_append(out, mc_status_page, sizeof(mc_status_page)); /* errors stick */
}

/* Those later than ?after=, in milliseconds of the wall clock. */
static int history(struct mc_master_admin *a, const char *after, struct mc_str *out)
{
	uint64_t after_ms = 0;

	if (after && mc_opt_parse_u64(after, &after_ms) < 0) {
		(void)mc_str_puts(out, "{\"error\":\"argument 'after': milliseconds\"}\n");
		return 400;
	}
	mc_history_json(a->history, after_ms, out);
	return 200;
}

static int query_segment(struct mc_master_admin *a, const char *name, struct mc_str *out)
{
	json_t *list = ask(a, true);
	int status = 500; /* as upstream answers */

	for (size_t i = 0; name && i < json_array_size(list); i++) {
		const json_t *s = json_array_get(list, i);

		if (strcmp(text_of(s, "name"), name) != 0)
			continue;
		(void)mc_str_appendf(out, "%s\nUsed(bytes): %lld\nCapacity(bytes) : %lld\n", name,
				     (long long)json_integer_value(json_object_get(s, "used")),
				     (long long)json_integer_value(json_object_get(s, "capacity")));
		status = 200;
	}
	if (status != 200)
		(void)mc_str_puts(out, "there is no such segment; /get_all_segments names all\n");
	json_decref(list);
	return status;
}

static void answer_take(struct mc_http_answer *ret, struct mc_str *out)
{
	if (out->rc < 0)
		ret->status = 503;
	ret->len = out->rc < 0 ? 0 : out->len;
	ret->body = mc_str_take(out);
	if (!ret->body)
		ret->len = 0;
}

static void on_get(struct mc_master_admin *a, const char *path, struct mc_http_answer *ret)
{
	static const struct {
		const char *path, *type;
		void (*fill)(struct mc_master_admin *a, struct mc_str *out);
	} pages[] = {
	    {"/health", "application/json", health},
	    {"/role", "application/json", role},
	    {"/ha_status", "application/json", health},
	    {"/leader", "application/json", leader},
	    {"/metrics", "text/plain; version=0.0.4", metrics},
	    {"/metrics/summary", "text/plain", summary},
	    {"/get_all_segments", "text/plain", all_segments},
	    {"/get_segments_detail", "application/json", detail},
	    {"/", "text/html; charset=utf-8", page},
	    {"/api/v1/nodes", "application/json", nodes},
	};
	struct mc_str out;

	mc_str_init(&out, TEXT_MAX);
	if (strcmp(path, "/query_segment") == 0)
		ret->status = query_segment(a, mc_http_arg(ret, "segment"), &out);
	for (size_t i = 0; i < MC_ARRAY_LEN(pages); i++) {
		if (strcmp(path, pages[i].path) != 0)
			continue;
		pages[i].fill(a, &out);
		ret->status = 200;
		ret->type = pages[i].type;
	}
	if (strcmp(path, "/api/v1/object") == 0 || strcmp(path, "/api/v1/history") == 0) {
		ret->type = "application/json";
		ret->status = strcmp(path, "/api/v1/object") == 0
				  ? mc_admin_object_page(a->m, ret, &out)
				  : history(a, mc_http_arg(ret, "after"), &out);
	} else if (ret->status == 404) {
		int status = mc_mst_keys_page(a->m, path, ret, &out);

		ret->status = status > 0 ? status : 404;
	}
	answer_take(ret, &out);
}

/* What operators want: JSON in and out, several methods. */
static void on_operator(struct mc_master_admin *a, const char *path, struct mc_http_answer *ret)
{
	struct mc_str out;

	mc_str_init(&out, TEXT_MAX);
	ret->type = "application/json";
	ret->status = mc_admin_quota_has(path) ? mc_admin_quota_page(a->m, ret, &out)
					       : mc_admin_drain_page(a->m, path, ret, &out);
	answer_take(ret, &out);
}

static void on_request(void *user, const char *path, struct mc_http_answer *ret)
{
	static const char post[] = "/api/v1/remove_all";
	struct mc_master_admin *a = user;
	bool is_post = strcmp(path, post) == 0;

	if (mc_admin_drain_has(path) || mc_admin_quota_has(path)) {
		on_operator(a, path, ret);
	} else if (strcmp(mc_http_method(ret), is_post ? "POST" : "GET") != 0) {
		ret->status = 405;
		ret->body = mc_asprintf("%s is for %s\n", path, is_post ? "POST" : "GET");
		ret->len = ret->body ? strlen(ret->body) : 0;
	} else if (is_post) {
		(void)mc_admin_remove_page(a->remove, ret); /* now, or later */
	} else {
		on_get(a, path, ret);
	}
}

/* ---- samples ---- */

static uint64_t level(const struct mc_master_admin *a, enum gauge g)
{
	return (uint64_t)mc_gauge_read(&a->gauge[g]);
}

static void sample_soon(struct mc_master_admin *a)
{
	(void)mc_loop_timer_set(a->m->side, &a->sample,
				mc_loop_now(a->m->side) + MC_HISTORY_EVERY_S * MC_NS_PER_S);
}

static void sample_take(struct mc_timer *t)
{
	struct mc_master_admin *a = mc_container_of(t, struct mc_master_admin, sample);
	const struct mc_tally *c = &a->m->tally;
	struct mc_history_sample s = {.at_ms = mc_wall_ns() / MC_NS_PER_MS};

	json_decref(ask(a, false));
	s.keys = level(a, KEYS);
	s.used_bytes = level(a, USED);
	s.capacity_bytes = level(a, CAPACITY);
	s.disk_used_bytes = level(a, DISK_USED);
	s.disk_capacity_bytes = level(a, DISK_CAPACITY);
	s.owners = level(a, OWNERS);
	s.evicted = level(a, EVICTED_KEYS);
	s.evicted_bytes = level(a, EVICTED_BYTES);
	s.gets = mc_counter_read(&c->gets);
	s.memory_hits = mc_counter_read(&c->hits[MC_ST_MEMORY]);
	s.disk_hits = mc_counter_read(&c->hits[MC_ST_DISK]);
	s.hit_bytes = mc_counter_read(&c->hit_bytes[MC_ST_MEMORY]) +
		      mc_counter_read(&c->hit_bytes[MC_ST_DISK]);
	s.puts = mc_hist_count(&c->value_bytes);
	s.put_bytes = atomic_load_explicit(&c->value_bytes.sum, memory_order_relaxed);
	s.removes = mc_counter_read(&c->op[MC_TALLY_REMOVE].requests);
	for (size_t i = 0; i < MC_MST_METHODS_MAX; i++)
		s.calls += mc_counter_read(&a->m->methods[i].calls);
	mc_history_add(a->history, &s, &mc_mst_method(a->m, MC_ST_LOOKUP)->latency,
		       &mc_mst_method(a->m, MC_ST_COMMIT)->latency);
	sample_soon(a);
}

/* On the side loop. The first sample is what later ones are compared with. */
static void samples_begin(void *arg)
{
	struct mc_master_admin *a = arg;

	a->sample.on_time = sample_take;
	sample_take(&a->sample);
}

static void samples_end(void *arg)
{
	struct mc_master_admin *a = arg;

	mc_loop_timer_cancel(a->m->side, &a->sample);
}

/* ---- life ---- */

static int stats_add(struct mc_master_admin *a)
{
	int rc = mc_tally_add(&a->m->tally, a->reg);

	for (unsigned i = 0; rc == 0 && i < GAUGE_COUNT; i++) {
		const struct mc_stat_desc d = {
		    .name = gauges[i].name, .help = gauges[i].help, .kind = MC_STAT_GAUGE};

		rc = mc_stat_add(a->reg, &d, NULL, 0, &a->gauge[i], NULL);
	}
	for (unsigned i = 0; rc == 0 && i < MC_MST_OWNER_STATE_COUNT; i++) {
		const struct mc_mst_owner like = {.state = (enum mc_mst_owner_state)i};
		const struct mc_stat_label label = {"state", mc_mst_owner_state_text(&like)};
		const struct mc_stat_desc d = {.name = "master_owners_by_state",
					       .help = "owners of the roster",
					       .kind = MC_STAT_GAUGE};

		rc = mc_stat_add(a->reg, &d, &label, 1, &a->owners_by_state[i], NULL);
	}
	for (unsigned i = 0; rc == 0 && i < MC_MST_METHODS_MAX && a->m->methods[i].name; i++) {
		const struct mc_mst_method *c = &a->m->methods[i];
		const struct mc_stat_label label = {"rpc", c->name};
		const struct mc_stat_desc calls = {
		    .name = "master_rpc_requests_total", .help = "calls", .kind = MC_STAT_COUNTER};
		const struct mc_stat_desc items = {.name = "master_rpc_items_total",
						   .help = "keys in calls",
						   .kind = MC_STAT_COUNTER};
		const struct mc_stat_desc latency = {.name = "master_rpc_latency_seconds",
						     .help = "from a call to its answer",
						     .kind = MC_STAT_HIST,
						     .scale = 1e-9};

		rc = mc_stat_add(a->reg, &calls, &label, 1, &c->calls, NULL);
		if (rc == 0)
			rc = mc_stat_add(a->reg, &items, &label, 1, &c->items, NULL);
		if (rc == 0)
			rc = mc_stat_add(a->reg, &latency, &label, 1, &c->latency, NULL);
	}
	return rc;
}

void mc_master_admin_close(struct mc_master_admin *admin)
{
	if (!admin)
		return;
	if (admin->http)
		mc_admin_remove_leave(admin->remove);
	mc_http_server_close(admin->http);
	mc_admin_remove_close(admin->remove);
	mc_stat_reg_close(admin->reg);
	if (admin->sample.on_time)
		mc_loop_call(admin->m->side, samples_end, admin);
	mc_history_close(admin->history);
	mc_free(admin);
}

int mc_master_admin_open(struct mc_master *master, const struct mc_addr *at, struct mc_diag *diag,
			 struct mc_master_admin **ret_admin)
{
	static const struct mc_http_opts opts = {.body_max = BODY_MAX};
	struct mc_master_admin *a = mc_calloc(1, sizeof(*a));
	int rc;

	if (!a)
		return -MC_E_NOMEM;
	a->m = master;
	rc = mc_stat_reg_open(STATS_MAX, &a->reg);
	if (rc == 0)
		rc = stats_add(a);
	if (rc == 0)
		rc = mc_history_open(&a->history);
	if (rc == 0)
		rc = mc_admin_remove_open(master, &a->remove);
	if (rc == 0)
		rc = mc_http_server_open_opts(master->side, at, &opts, on_request, a, &a->http,
					      diag);
	if (rc < 0) {
		mc_master_admin_close(a);
		return rc;
	}
	mc_loop_call(master->side, samples_begin, a);
	*ret_admin = a;
	return 0;
}

uint16_t mc_master_admin_port(const struct mc_master_admin *admin)
{
	return mc_http_server_port(admin->http);
}
