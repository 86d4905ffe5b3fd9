/*
 * store_c.h: the Store's C interface of upstream Mooncake, for programs and bindings (Go, Rust)
 * written against it. Names, layouts and numbers are upstream's; libmooncake_store.so has them. New
 * programs use store.h.
 *
 * Functions give 0, a count or a negative number of upstream's table (mooncake/store.h). A store is
 * a checked handle: NULL, a foreign or an old one is -601. Texts are not kept.
 */
#ifndef MOONCAKE_STORE_C_H
#define MOONCAKE_STORE_C_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define MC_STORE_C_API __attribute__((visibility("default")))
#else
#define MC_STORE_C_API
#endif

typedef void *mooncake_store_t;

struct mooncake_replicate_config {
	size_t replica_num; /* 0: 1 */
	int with_soft_pin;
	int with_hard_pin;
	const char **preferred_segments;
	size_t preferred_segments_count;
};
typedef struct mooncake_replicate_config mooncake_replicate_config_t;

/** @return a store without connection; NULL: out of memory */
MC_STORE_C_API mooncake_store_t mooncake_store_create(void);
/** Leaves the cluster. Calls under way end first. */
MC_STORE_C_API void mooncake_store_destroy(mooncake_store_t store);
/** @return 0 (also when it is set up already); -600 (arguments), -900 (no master there), -1 */
MC_STORE_C_API int mooncake_store_setup(mooncake_store_t store, const char *local_hostname,
					const char *metadata_server, uint64_t global_segment_size,
					uint64_t local_buffer_size, const char *protocol,
					const char *device_name, const char *master_server_addr);
/** Set up on this machine with the master at its default address. */
MC_STORE_C_API int mooncake_store_init_all(mooncake_store_t store, const char *protocol,
					   const char *device_name, uint64_t mount_segment_size);
/** @return 0; 1 not set up; 2 the master does not answer */
MC_STORE_C_API int mooncake_store_health_check(mooncake_store_t store);

MC_STORE_C_API int mooncake_store_put(mooncake_store_t store, const char *key, const void *value,
				      size_t size, const mooncake_replicate_config_t *config);
/** As put; over RDMA the buffer should be registered. */
MC_STORE_C_API int mooncake_store_put_from(mooncake_store_t store, const char *key, void *buffer,
					   size_t size, const mooncake_replicate_config_t *config);
/** @param results_out  [count] @return 0; the first code that is not 0 */
MC_STORE_C_API int mooncake_store_batch_put_from(mooncake_store_t store, const char **keys,
						 void **buffers, const size_t *sizes, size_t count,
						 const mooncake_replicate_config_t *config,
						 int *results_out);
/** @return bytes; -704 not found; -600 the buffer is too small */
MC_STORE_C_API int64_t mooncake_store_get_into(mooncake_store_t store, const char *key,
					       void *buffer, size_t size);
/** @param results_out  [count]: bytes or a code @return 0; the first code below 0 */
MC_STORE_C_API int mooncake_store_batch_get_into(mooncake_store_t store, const char **keys,
						 void **buffers, const size_t *sizes, size_t count,
						 int64_t *results_out);
/** @return 1; 0; < 0 */
MC_STORE_C_API int mooncake_store_is_exist(mooncake_store_t store, const char *key);
MC_STORE_C_API int mooncake_store_batch_is_exist(mooncake_store_t store, const char **keys,
						 size_t count, int *results_out);
MC_STORE_C_API int64_t mooncake_store_get_size(mooncake_store_t store, const char *key);
/** "host:port" with its zero. @return 0; -600 (no room) */
MC_STORE_C_API int mooncake_store_get_hostname(mooncake_store_t store, char *buf_out,
					       size_t buf_len);
MC_STORE_C_API int mooncake_store_remove(mooncake_store_t store, const char *key, int force);
/** @return how many; < 0 */
MC_STORE_C_API int64_t mooncake_store_remove_by_regex(mooncake_store_t store, const char *pattern,
						      int force);
MC_STORE_C_API int64_t mooncake_store_remove_all(mooncake_store_t store, int force);
MC_STORE_C_API int mooncake_store_register_buffer(mooncake_store_t store, void *buffer,
						  size_t size);
MC_STORE_C_API int mooncake_store_unregister_buffer(mooncake_store_t store, void *buffer);

#ifdef __cplusplus
}
#endif

#endif
