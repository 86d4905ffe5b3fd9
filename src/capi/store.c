/*
 * store.c: upstream's C ABI of the Store over mooncake/store.h.
 */
#include <pthread.h>
#include <stdbool.h>
#include <string.h>

#include <mooncake/store.h>
#include <mooncake/store_c.h>

#include "base/ids.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/str.h"

#define STORES_MAX 4096u
#define INIT_BUFFER (1ull << 30) /* most that a store set up by init_all() may allocate */

/* What a handle stands for. */
struct face {
	pthread_mutex_t mu;	/* guards the setup */
	struct mc_store *store; /* NULL before it; written once */
};

static pthread_once_t once = PTHREAD_ONCE_INIT;
static struct mc_ids *faces; /* NULL when out of memory at first use */

static void face_fini(void *obj)
{
	struct face *f = obj;

	mc_store_close(f->store);
	pthread_mutex_destroy(&f->mu);
	mc_free(f);
}

static void table_open(void)
{
	if (mc_ids_open(STORES_MAX, face_fini, &faces) < 0)
		faces = NULL;
}

static struct face *face_get(mooncake_store_t handle)
{
	(void)pthread_once(&once, table_open);
	return faces ? mc_ids_get(faces, (uintptr_t)handle) : NULL;
}

static void face_put(mooncake_store_t handle)
{
	mc_ids_put(faces, (uintptr_t)handle);
}

/* The pinned store of a handle that is set up. @return 0: end with face_put(); a code */
static int store_get(mooncake_store_t handle, struct mc_store **ret)
{
	struct face *f = face_get(handle);

	if (!f)
		return MC_STORE_ILLEGAL_CLIENT;
	pthread_mutex_lock(&f->mu);
	*ret = f->store;
	pthread_mutex_unlock(&f->mu);
	if (*ret)
		return 0;
	face_put(handle);
	return MC_STORE_ILLEGAL_CLIENT;
}

mooncake_store_t mooncake_store_create(void)
{
	struct face *f;
	uint64_t id;

	(void)pthread_once(&once, table_open);
	f = faces ? mc_calloc(1, sizeof(*f)) : NULL;
	if (!f)
		return NULL;
	pthread_mutex_init(&f->mu, NULL);
	if (mc_ids_add(faces, f, &id) == 0)
		return (mooncake_store_t)(uintptr_t)id; /* a number in a pointer's clothes */
	face_fini(f);
	return NULL;
}

void mooncake_store_destroy(mooncake_store_t store)
{
	(void)pthread_once(&once, table_open);
	if (faces)
		(void)mc_ids_del(faces, (uintptr_t)store);
}

static int setup(mooncake_store_t handle, const struct mc_store_opts *opts)
{
	struct face *f = face_get(handle);
	struct mc_diag diag = {.text = ""};
	int rc = 0;

	if (!f)
		return MC_STORE_ILLEGAL_CLIENT;
	pthread_mutex_lock(&f->mu);
	if (!f->store)
		rc = mc_store_open(opts, &diag, &f->store);
	pthread_mutex_unlock(&f->mu);
	if (rc < 0)
		mc_log_error("store is not set up", "code=%d why=\"%s\"", rc, diag.text);
	face_put(handle);
	return rc;
}

int mooncake_store_setup(mooncake_store_t store, const char *local_hostname,
			 const char *metadata_server, uint64_t global_segment_size,
			 uint64_t local_buffer_size, const char *protocol, const char *device_name,
			 const char *master_server_addr)
{
	const struct mc_store_opts opts = {.size = sizeof(opts),
					   .name = local_hostname,
					   .metadata = metadata_server,
					   .protocol = protocol,
					   .devices = device_name,
					   .master = master_server_addr,
					   .segment_bytes = global_segment_size,
					   .buffer_bytes = local_buffer_size};

	return setup(store, &opts);
}

int mooncake_store_init_all(mooncake_store_t store, const char *protocol, const char *device_name,
			    uint64_t mount_segment_size)
{
	const struct mc_store_opts opts = {.size = sizeof(opts),
					   .protocol = protocol,
					   .devices = device_name,
					   .segment_bytes = mount_segment_size,
					   .buffer_bytes = INIT_BUFFER};

	return setup(store, &opts);
}

int mooncake_store_health_check(mooncake_store_t store)
{
	struct mc_store *st;
	int rc;

	if (store_get(store, &st) < 0)
		return 1;
	rc = mc_store_health(st);
	face_put(store);
	return rc;
}

static struct mc_store_key key_of(const char *text)
{
	return (struct mc_store_key){.bytes = text, .len = text ? strlen(text) : 0};
}

/* One item with one part for each key. NULL: out of memory, or what is no argument. */
static struct mc_store_item *items_make(const char **keys, void *const *buffers,
					const size_t *sizes, size_t n, int *ret_rc)
{
	struct mc_store_item *items;
	struct mc_store_part *parts;

	*ret_rc = MC_STORE_INVALID_PARAMS;
	if (n > MC_STORE_BATCH_MAX || (n > 0 && (!keys || !buffers || !sizes)))
		return NULL;
	*ret_rc = MC_STORE_INTERNAL_ERROR;
	items = mc_calloc(1, n * (sizeof(*items) + sizeof(*parts)) + 1);
	if (!items)
		return NULL;
	parts = (struct mc_store_part *)(items + n);
	for (size_t i = 0; i < n; i++) {
		parts[i] = (struct mc_store_part){buffers[i], buffers[i] ? sizes[i] : 0};
		items[i] = (struct mc_store_item){key_of(keys[i]), &parts[i], 1};
	}
	return items;
}

static int conf_make(const mooncake_replicate_config_t *config, struct mc_store_conf *ret)
{
	*ret = (struct mc_store_conf){.size = sizeof(*ret)};
	if (!config)
		return 0;
	if (config->replica_num > MC_STORE_REPLICAS_MAX ||
	    config->preferred_segments_count > UINT32_MAX ||
	    (config->preferred_segments_count > 0 && !config->preferred_segments))
		return MC_STORE_INVALID_PARAMS;
	ret->replicas = (uint32_t)config->replica_num;
	ret->soft_pin =
	    config->with_soft_pin ? MC_STORE_SOFT_PIN_ENABLE : MC_STORE_SOFT_PIN_PRESERVE;
	ret->is_hard_pinned = config->with_hard_pin != 0;
	ret->segments = config->preferred_segments;
	ret->nsegments = (uint32_t)config->preferred_segments_count;
	return 0;
}

int mooncake_store_batch_put_from(mooncake_store_t store, const char **keys, void **buffers,
				  const size_t *sizes, size_t count,
				  const mooncake_replicate_config_t *config, int *results_out)
{
	struct mc_store_item *items;
	struct mc_store_conf conf;
	struct mc_store *st;
	int rc = conf_make(config, &conf);

	if (rc == 0 && count > 0 && !results_out)
		rc = MC_STORE_INVALID_PARAMS;
	if (rc == 0)
		rc = store_get(store, &st);
	if (rc < 0)
		return rc;
	items = items_make(keys, buffers, sizes, count, &rc);
	if (items)
		rc = mc_store_put(st, items, (uint32_t)count, &conf, 0, results_out);
	mc_free(items);
	face_put(store);
	return rc;
}

int mooncake_store_put_from(mooncake_store_t store, const char *key, void *buffer, size_t size,
			    const mooncake_replicate_config_t *config)
{
	int result;

	return mooncake_store_batch_put_from(store, &key, &buffer, &size, 1, config, &result);
}

int mooncake_store_put(mooncake_store_t store, const char *key, const void *value, size_t size,
		       const mooncake_replicate_config_t *config)
{
	return mooncake_store_put_from(store, key, (void *)value, size, config); /* read only */
}

int mooncake_store_batch_get_into(mooncake_store_t store, const char **keys, void **buffers,
				  const size_t *sizes, size_t count, int64_t *results_out)
{
	struct mc_store_item *items;
	struct mc_store *st;
	int rc = count > 0 && !results_out ? MC_STORE_INVALID_PARAMS : store_get(store, &st);

	if (rc < 0)
		return rc;
	items = items_make(keys, buffers, sizes, count, &rc);
	if (items)
		rc = mc_store_get(st, items, (uint32_t)count, results_out);
	mc_free(items);
	face_put(store);
	return rc;
}

int64_t mooncake_store_get_into(mooncake_store_t store, const char *key, void *buffer, size_t size)
{
	int64_t result;
	int rc = mooncake_store_batch_get_into(store, &key, &buffer, &size, 1, &result);

	return rc < 0 ? rc : result;
}

int mooncake_store_batch_is_exist(mooncake_store_t store, const char **keys, size_t count,
				  int *results_out)
{
	struct mc_store_key *made;
	struct mc_store *st;
	int rc;

	if (count > MC_STORE_BATCH_MAX || (count > 0 && (!keys || !results_out)))
		return MC_STORE_INVALID_PARAMS;
	rc = store_get(store, &st);
	if (rc < 0)
		return rc;
	made = mc_calloc(count + 1, sizeof(*made));
	rc = MC_STORE_INTERNAL_ERROR;
	if (made) {
		for (size_t i = 0; i < count; i++)
			made[i] = key_of(keys[i]);
		rc = mc_store_exist(st, made, (uint32_t)count, results_out);
	}
	mc_free(made);
	face_put(store);
	return rc;
}

int mooncake_store_is_exist(mooncake_store_t store, const char *key)
{
	int result;
	int rc = mooncake_store_batch_is_exist(store, &key, 1, &result);

	return rc < 0 ? rc : result;
}

int64_t mooncake_store_get_size(mooncake_store_t store, const char *key)
{
	struct mc_store_key made = key_of(key);
	struct mc_store *st;
	int64_t size;
	int rc = store_get(store, &st);

	if (rc < 0)
		return rc;
	rc = mc_store_size(st, &made, 1, &size);
	face_put(store);
	return rc < 0 ? rc : size;
}

int mooncake_store_get_hostname(mooncake_store_t store, char *buf_out, size_t buf_len)
{
	struct mc_store *st;
	int rc = buf_out && buf_len > 0 ? store_get(store, &st) : MC_STORE_INVALID_PARAMS;

	if (rc < 0)
		return rc;
	if (mc_strlcpy(buf_out, buf_len, mc_store_hostname(st)) < 0)
		rc = MC_STORE_INVALID_PARAMS;
	face_put(store);
	return rc;
}

int mooncake_store_remove(mooncake_store_t store, const char *key, int force)
{
	struct mc_store_key made = key_of(key);
	struct mc_store *st;
	int32_t result;
	int rc = store_get(store, &st);

	if (rc < 0)
		return rc;
	rc = mc_store_remove(st, &made, 1, force != 0, &result);
	face_put(store);
	return rc;
}

static int64_t remove_like(mooncake_store_t store, const char *pattern, int force)
{
	struct mc_store *st;
	int64_t n;
	int rc = store_get(store, &st);

	if (rc < 0)
		return rc;
	n = mc_store_remove_like(st, pattern, force != 0);
	face_put(store);
	return n;
}

int64_t mooncake_store_remove_by_regex(mooncake_store_t store, const char *pattern, int force)
{
	return pattern && *pattern ? remove_like(store, pattern, force) : MC_STORE_INVALID_PARAMS;
}

int64_t mooncake_store_remove_all(mooncake_store_t store, int force)
{
	return remove_like(store, NULL, force);
}

int mooncake_store_register_buffer(mooncake_store_t store, void *buffer, size_t size)
{
	struct mc_store *st;
	int rc = store_get(store, &st);

	if (rc < 0)
		return rc;
	rc = mc_store_register(st, buffer, size);
	face_put(store);
	return rc;
}

int mooncake_store_unregister_buffer(mooncake_store_t store, void *buffer)
{
	struct mc_store *st;
	int rc = store_get(store, &st);

	if (rc < 0)
		return rc;
	rc = mc_store_unregister(st, buffer);
	face_put(store);
	return rc;
}
