/*
 * handle.c: tables of engines and batches.
 */
#include "capi/handle.h"

#include "base/err.h"
#include "base/ids.h"
#include "base/mem.h"

static pthread_once_t once = PTHREAD_ONCE_INIT;
static struct mc_ids *engines, *batches; /* NULL when out of memory at first use */

static void batch_fini(void *obj)
{
	struct mc_capi_batch *batch = obj;

	pthread_mutex_destroy(&batch->lock);
	mc_free(batch->group);
	mc_free(batch->scratch);
	mc_free(batch);
}

static void batches_drop(struct mc_list *list)
{
	struct mc_capi_batch *batch;

	mc_list_each (batch, list, link)
		mc_capi_batch_del(batch);
}

static void engine_fini(void *obj)
{
	struct mc_capi_engine *eng = obj;

	mc_engine_close(eng->eng); /* ends every group, so none needs to be freed */
	batches_drop(&eng->batches);
	batches_drop(&eng->leaving);
	pthread_mutex_destroy(&eng->lock);
	mc_free(eng);
}

static void tables_open(void)
{
	if (mc_ids_open(MC_CAPI_ENGINES_MAX, engine_fini, &engines) < 0)
		engines = NULL;
	if (mc_ids_open(MC_CAPI_BATCHES_MAX, batch_fini, &batches) < 0)
		batches = NULL;
}

static bool tables_are_open(void)
{
	(void)pthread_once(&once, tables_open);
	return engines && batches;
}

transfer_engine_t mc_capi_engine_add(struct mc_engine *eng)
{
	struct mc_capi_engine *obj = tables_are_open() ? mc_calloc(1, sizeof(*obj)) : NULL;
	uint64_t id;

	if (!obj)
		return NULL;
	obj->eng = eng;
	pthread_mutex_init(&obj->lock, NULL);
	mc_list_init(&obj->batches);
	mc_list_init(&obj->leaving);
	if (mc_ids_add(engines, obj, &id) < 0) {
		pthread_mutex_destroy(&obj->lock);
		mc_free(obj);
		return NULL;
	}
	return (transfer_engine_t)(uintptr_t)id; /* a number in a pointer's clothes */
}

struct mc_capi_engine *mc_capi_engine_get(transfer_engine_t handle)
{
	return tables_are_open() ? mc_ids_get(engines, (uintptr_t)handle) : NULL;
}

void mc_capi_engine_put(transfer_engine_t handle)
{
	mc_ids_put(engines, (uintptr_t)handle);
}

void mc_capi_engine_del(transfer_engine_t handle)
{
	if (tables_are_open())
		(void)mc_ids_del(engines, (uintptr_t)handle); /* unknown: nothing to end */
}

batch_id_t mc_capi_batch_add(struct mc_capi_engine *eng, transfer_engine_t handle,
			     uint32_t capacity)
{
	struct mc_capi_batch *batch = mc_calloc(1, sizeof(*batch));

	if (!batch)
		return INVALID_BATCH;
	batch->engine_id = (uintptr_t)handle;
	batch->capacity = capacity;
	pthread_mutex_init(&batch->lock, NULL);
	pthread_mutex_lock(&eng->lock);
	if (mc_ids_add(batches, batch, &batch->id) < 0) {
		pthread_mutex_unlock(&eng->lock);
		batch_fini(batch);
		return INVALID_BATCH;
	}
	mc_list_push_back(&eng->batches, &batch->link);
	pthread_mutex_unlock(&eng->lock);
	return batch->id;
}

struct mc_capi_batch *mc_capi_batch_get(transfer_engine_t handle, batch_id_t id)
{
	struct mc_capi_batch *batch = mc_ids_get(batches, id);

	if (!batch || batch->engine_id == (uintptr_t)handle)
		return batch;
	mc_ids_put(batches, id);
	return NULL;
}

void mc_capi_batch_put(batch_id_t id)
{
	mc_ids_put(batches, id);
}

void mc_capi_batch_del(struct mc_capi_batch *batch)
{
	mc_list_del(&batch->link);
	(void)mc_ids_del(batches, batch->id); /* whoever found it on a list is the only one */
}
