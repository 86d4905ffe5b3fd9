/*
 * meta_ops.h: what a metadata service must do, for meta.c and the services behind it.
 */
#ifndef MC_DISCO_META_OPS_H
#define MC_DISCO_META_OPS_H

#include "disco/meta.h"

#define MC_META_CONNECT_MS 1500u

/** Errors are those of meta.h; the diag is set without the name of the operation. */
struct mc_meta_ops {
	int (*get)(struct mc_meta *meta, const char *key, uint64_t deadline_ns, char **ret,
		   size_t *ret_len, struct mc_diag *diag);
	/** -MC_E_EXIST: the service refuses to replace this key. */
	int (*put)(struct mc_meta *meta, const char *key, const char *val, size_t len,
		   uint64_t deadline_ns, struct mc_diag *diag);
	/** -MC_E_NOENT or 0 when there was none. */
	int (*del)(struct mc_meta *meta, const char *key, uint64_t deadline_ns,
		   struct mc_diag *diag);
	void (*close)(struct mc_meta *meta);
};

/** Embedded first in each service's object. */
struct mc_meta {
	const struct mc_meta_ops *ops;
	char prefix[160]; /* "mooncake/" or "mooncake/<cluster>/" */
};

/* `at` is what follows the scheme; for HTTP the whole URL. */
int mc_meta_http_open(const char *url, struct mc_meta **ret, struct mc_diag *diag);
int mc_meta_etcd_open(const char *at, struct mc_meta **ret, struct mc_diag *diag);
int mc_meta_redis_open(const char *at, const struct mc_meta_conf *conf, struct mc_meta **ret,
		       struct mc_diag *diag);

#endif
