/*
 * store.c: a process's connection to a cluster, from open to close.
 *
 * Opening talks to the master once (JOIN, View), so a wrong address is an error within seconds.
 * Close waits for calls under way, then takes the process's own segment out of the pool.
 */
#include <stdio.h>
#include <time.h>

#include "base/crc.h"
#include "base/fork.h"
#include "base/log.h"
#include "base/opt.h"
#include "base/rand.h"
#include "base/str.h"
#include "base/upstream.h"
#include "client/link.h"
#include "client/tether.h"
#include "owner/dummies.h"
#include "owner/owner.h"
#include "ssd/ssd.h"

#define ADOPT_NS (10 * MC_NS_PER_S)
#define OPEN_NS (3 * MC_NS_PER_S)
#define HEALTH_NS MC_NS_PER_S
#define SOCKET_MAX 108u /* sun_path */

struct env {
	int64_t timeout_ms;
};

static const struct mc_opt env_table[] = {
    MC_OPT_INT(struct env, timeout_ms, "MC_RPC_TIMEOUT_MS", "30000", 1, INT32_MAX,
	       "milliseconds that a call of a Store's client may take"),
};

static int tenant_set(struct mc_store *st, const char *tenant, struct mc_diag *diag)
{
	size_t len = tenant && strcmp(tenant, "default") != 0 ? strlen(tenant) : 0;

	if (len > UINT8_MAX - 1) {
		mc_diag_set(diag, "tenant: its name has %zu bytes, more than %d", len,
			    UINT8_MAX - 1);
		return MC_STORE_INVALID_PARAMS;
	}
	st->tenant[0] = (uint8_t)len;
	if (len)
		memcpy(st->tenant + 1, tenant, len);
	st->tenant_len = 1 + len;
	return 0;
}

static int engine_set(struct mc_store *st, const struct mc_store_opts *o, struct mc_diag *diag)
{
	struct mc_engine_opts opts = {.size = sizeof(opts),
				      .name = o->name,
				      .metadata = o->metadata,
				      .protocol = o->protocol,
				      .devices = o->devices,
				      .is_one_of_many = true};
	int rc;

	if (o->engine) {
		st->eng = mc_engine_ref(o->engine);
		return 0;
	}
	rc = mc_engine_open(&opts, diag, &st->eng);
	if (rc == 0)
		return 0;
	if (rc == -MC_E_METADATA)
		mc_diag_wrap(diag,
			     "metadata service \"%s\" (does it run there? P2PHANDSHAKE needs none)",
			     o->metadata);
	else
		mc_diag_wrap(diag, "transfer engine");
	return rc == -MC_E_NOMEM || rc == -MC_E_LIMIT || rc == -MC_E_FORKED
		   ? MC_STORE_INTERNAL_ERROR
		   : MC_STORE_INVALID_PARAMS;
}

void mc_cli_follow(struct mc_store *st, const char *master)
{
	mc_cli_end_set(&st->master, master);
	/* Its epochs, and so its generations, say nothing of those of the old one. */
	atomic_store_explicit(&st->epoch, 0, memory_order_relaxed);
	pthread_mutex_lock(&st->gens_mu);
	st->gens_next = st->gens_end = 0;
	pthread_mutex_unlock(&st->gens_mu);
	mc_cli_cache_clear(st->cache);
	mc_cli_view_reset(&st->view);
}

int mc_cli_adopt_await(struct mc_store *st, struct mc_owner *owner, struct mc_diag *diag)
{
	struct timespec ts = {.tv_nsec = (long)MC_NS_PER_MS};
	uint64_t until_ns = mc_time_after(mc_now_ns(), ADOPT_NS);

	while (!mc_owner_is_adopted(owner)) {
		if (mc_now_ns() > until_ns) {
			mc_diag_set(diag, "master %s does not take in a segment of this process",
				    st->master.text);
			return MC_STORE_RPC_FAIL;
		}
		(void)nanosleep(&ts, NULL);
	}
	return 0;
}

/* Its directory is what is wrong when it cannot be opened, or there is no memory. */
static int disk_open(struct mc_store *st, const struct mc_store_opts *o, struct mc_owner_opts *opts,
		     struct mc_diag *diag)
{
	struct mc_ssd_place place;
	int rc;

	if (o->segment_bytes == 0) {
		mc_diag_set(diag, "a disk is behind memory of this process: it takes a "
				  "global_segment_size");
		return MC_STORE_INVALID_PARAMS;
	}
	rc = mc_ssd_place(o->disk_path, &place, diag);
	if (rc == 0)
		rc = mc_ssd_open(place.path, place.bytes, diag, &st->ssd);
	if (rc < 0) {
		mc_diag_wrap(diag, "SSD offload");
		return rc == -MC_E_NOMEM ? MC_STORE_INTERNAL_ERROR : MC_STORE_INVALID_PARAMS;
	}
	opts->id = mc_ssd_owner_id(st->ssd);
	opts->epoch = mc_ssd_epoch(st->ssd);
	opts->disk_bytes = mc_ssd_capacity(st->ssd);
	return 0;
}

static int disk_start(struct mc_store *st, struct mc_diag *diag)
{
	int rc = mc_ssd_start(st->ssd, st->owner);

	if (rc < 0) {
		mc_diag_set(diag, "SSD offload: %s", mc_err_text(rc));
		return MC_STORE_INTERNAL_ERROR;
	}
	mc_owner_start(st->owner);
	return 0;
}

static int segment_give(struct mc_store *st, const struct mc_store_opts *o, struct mc_diag *diag)
{
	struct mc_owner_opts opts = {.engine = st->eng,
				     .bytes = o->segment_bytes,
				     .master = st->master.text,
				     .protocol = o->protocol};
	int rc = o->disk_path ? disk_open(st, o, &opts, diag) : 0;

	if (rc < 0 || o->segment_bytes == 0)
		return rc;
	rc = mc_owner_open(&opts, diag, &st->owner);
	if (rc < 0) {
		mc_diag_wrap(diag, "global_segment_size of %llu bytes",
			     (unsigned long long)o->segment_bytes);
		return rc == -MC_E_INVAL ? MC_STORE_INVALID_PARAMS : MC_STORE_INTERNAL_ERROR;
	}
	if (st->ssd)
		rc = disk_start(st, diag);
	if (rc < 0)
		return rc;
	st->owner_id = mc_owner_id(st->owner);
	return mc_cli_adopt_await(st, st->owner, diag);
}

static void host_set(struct mc_store *st)
{
	const char *name = mc_engine_name(st->eng), *colon = strrchr(name, ':');
	size_t len = colon ? (size_t)(colon - name) : strlen(name);

	len = mc_min(len, sizeof(st->host) - 1);
	memcpy(st->host, name, len);
}

static int loop_open(struct mc_store *st)
{
	int rc = mc_rand_bytes(&st->client_id, sizeof(st->client_id));

	st->client_id |= 1; /* 0 is nobody */
	if (rc == 0)
		rc = mc_loop_open("mc-store", &mc_clock_real, &st->loop);
	if (rc == 0)
		rc = mc_loop_start(st->loop);
	if (rc == 0)
		rc = mc_cli_cache_open(&st->cache); /* a dummy's node may have it cleared */
	return rc;
}

static int parts_open(struct mc_store *st, const struct mc_store_opts *o)
{
	int rc = mc_cli_sessions_open(&st->sessions);

	if (rc == 0)
		rc = mc_cli_drops_open(st, &st->drops);
	if (rc == 0)
		rc = mc_cli_memory_open(st->eng, o->buffer_bytes, &st->memory);
	if (rc == 0)
		rc = mc_cli_mounts_open(&st->mounts);
	if (rc == 0)
		rc = mc_cli_counts_open(st);
	return rc;
}

/* A dummy reaches the cluster as its node says. */
static int node_ask(struct mc_store *st, struct mc_store_opts *o, struct mc_diag *diag)
{
	const struct mc_cli_setup *said;
	int rc =
	    mc_cli_tether_open(st, o->node, mc_time_after(mc_now_ns(), OPEN_NS), diag, &st->tether);

	if (rc == -MC_E_INVAL || rc == -MC_E_DNS)
		return MC_STORE_INVALID_PARAMS;
	if (rc < 0)
		return rc == -MC_E_NOMEM ? MC_STORE_INTERNAL_ERROR : MC_STORE_RPC_FAIL;
	said = mc_cli_tether_setup(st->tether);
	o->name = said->host;
	o->metadata = said->metadata[0] ? said->metadata : NULL;
	o->protocol = said->protocol[0] ? said->protocol : NULL;
	o->devices = said->devices[0] ? said->devices : NULL;
	o->master = said->master;
	o->tenant = said->tenant;
	return 0;
}

/* A dummy of this process is told what this process was opened with. */
static int dummies_serve(struct mc_store *st, const struct mc_store_opts *o, struct mc_diag *diag)
{
	char name[SOCKET_MAX] = "@";
	const struct mc_dummies_conf conf = {.socket = name,
					     .engine = st->eng,
					     .master = st->master.text,
					     .metadata = o->metadata,
					     .protocol = o->protocol,
					     .devices = o->devices,
					     .tenant = o->tenant};
	int rc =
	    mc_strlcpy(name + 1, sizeof(name) - 1, o->dummy_socket + (o->dummy_socket[0] == '@'));

	if (rc < 0 || !name[1]) {
		mc_diag_set(diag, "ipc_socket_path \"%s\" is no name of 1 to %u bytes",
			    o->dummy_socket, SOCKET_MAX - 2);
		return MC_STORE_INVALID_PARAMS;
	}
	rc = mc_dummies_open(st->loop, &conf, diag, &st->dummies);
	if (rc < 0)
		mc_diag_wrap(diag, "ipc_socket_path");
	return rc == 0					? 0
	       : rc == -MC_E_NOMEM || rc == -MC_E_LIMIT ? MC_STORE_INTERNAL_ERROR
							: MC_STORE_INVALID_PARAMS;
}

static int store_open(struct mc_store *st, struct mc_store_opts *o, struct mc_diag *diag)
{
	int rc = loop_open(st);

	if (rc < 0) {
		mc_diag_set(diag, "opening: %s", mc_err_text(rc));
		return MC_STORE_INTERNAL_ERROR;
	}
	if (o->node)
		rc = node_ask(st, o, diag);
	if (rc == 0)
		rc = tenant_set(st, o->tenant, diag);
	if (rc == 0)
		rc = mc_cli_master_set(st, o->master, diag);
	if (rc == 0)
		rc = engine_set(st, o, diag);
	if (rc < 0)
		return rc;
	host_set(st);
	rc = parts_open(st, o);
	if (rc < 0) {
		mc_diag_set(diag, "opening: %s", mc_err_text(rc));
		return MC_STORE_INTERNAL_ERROR;
	}
	rc = mc_cli_master_meet(st, diag);
	if (rc == 0)
		rc = segment_give(st, o, diag);
	return rc == 0 && o->dummy_socket ? dummies_serve(st, o, diag) : rc;
}

int mc_store_open(const struct mc_store_opts *opts, struct mc_diag *diag,
		  struct mc_store **ret_store)
{
	struct mc_store_opts o = {0};
	struct env env;
	struct mc_store *st = mc_calloc(1, sizeof(*st));
	int rc;

	if (!st) {
		mc_diag_set(diag, "%s", mc_err_text(MC_E_NOMEM));
		return MC_STORE_INTERNAL_ERROR;
	}
	if (opts)
		memcpy(&o, opts, mc_min((size_t)opts->size, sizeof(o)));
	st->fork_gen = mc_fork_gen();
	if (!MC_CRC_IS_ON)
		mc_log_warn("this build checks no bytes: it is one to measure with",
			    "hint=-Dchecksums=true");
	(void)mc_opt_load_env(env_table, MC_ARRAY_LEN(env_table), &env, NULL); /* it has warned */
	st->timeout_ms = o.timeout_ms ? o.timeout_ms : (uint32_t)env.timeout_ms;
	pthread_mutex_init(&st->gens_mu, NULL);
	pthread_mutex_init(&st->ops_mu, NULL);
	mc_list_init(&st->ops_idle);
	mc_cli_end_init(&st->master, st, true);
	mc_cli_view_init(&st->view);
	rc = store_open(st, &o, diag);
	if (rc < 0) {
		mc_store_close(st);
		return rc;
	}
	*ret_store = st;
	return 0;
}

/* No new calls; those under way end at their next step, or by their deadline. */
static void calls_end(struct mc_store *st)
{
	pthread_mutex_lock(&st->ops_mu);
	st->is_closing = true;
	pthread_mutex_unlock(&st->ops_mu);
	/* acquire: pairs with the release in mc_cli_op_end() */
	while (atomic_load_explicit(&st->nusers, memory_order_acquire) > 0) {
		struct timespec ts = {.tv_nsec = (long)MC_NS_PER_MS};

		(void)nanosleep(&ts, NULL);
	}
}

void mc_store_close(struct mc_store *store)
{
	struct mc_list *node;

	if (!store || mc_fork_is_child(store->fork_gen))
		return; /* a child has none of the threads that would have to end */
	mc_dummies_close(store->dummies);
	mc_cli_drops_stop(store->drops);
	calls_end(store);
	mc_cli_drops_close(store->drops);
	mc_cli_mounts_close(store->mounts);
	mc_ssd_stop(store->ssd);
	mc_owner_close(store->owner);
	mc_ssd_close(store->ssd);
	mc_cli_tether_close(store->tether);
	mc_cli_sessions_close(store->sessions);
	mc_cli_view_fini(&store->view);
	mc_cli_end_fini(&store->master);
	while ((node = mc_list_pop_front(&store->ops_idle)))
		mc_cli_op_free(mc_list_entry(node, struct mc_cli_op, link));
	mc_cli_memory_close(store->memory);
	mc_cli_cache_close(store->cache);
	mc_loop_close(store->loop);
	mc_cli_counts_close(store->counts);
	mc_engine_close(store->eng);
	pthread_mutex_destroy(&store->ops_mu);
	pthread_mutex_destroy(&store->gens_mu);
	mc_free(store);
}

const char *mc_store_hostname(const struct mc_store *store)
{
	return mc_engine_name(store->eng);
}

struct mc_engine *mc_store_engine(struct mc_store *store)
{
	return store->eng;
}

int mc_store_health(struct mc_store *store)
{
	struct mc_cli_op *op;
	int rc;

	if (mc_cli_op_begin(store, &op) < 0)
		return 2;
	op->deadline_ns = mc_min(op->deadline_ns, mc_time_after(mc_now_ns(), HEALTH_NS));
	rc = mc_cli_view_refresh(op, 0);
	mc_cli_op_end(op);
	return rc < 0 || (store->tether && !mc_cli_tether_is_up(store->tether)) ? 2 : 0;
}

uint64_t mc_store_fetches(const struct mc_store *store)
{
	return atomic_load_explicit(&store->nfetched, memory_order_relaxed);
}
