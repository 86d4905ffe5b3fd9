/*
 * meta.h: the metadata service, where processes find each other by name: an HTTP server, etcd or
 * Redis, with upstream's keys. Not needed for peers that are named by address (P2P).
 *
 * Every call blocks until its deadline at most; never on a loop. A failure's diag names the
 * service, the address and the cause.
 */
#ifndef MC_DISCO_META_H
#define MC_DISCO_META_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

#define MC_META_VALUE_MAX (128u << 20)
#define MC_META_HOST_MAX 256u

struct mc_meta;

/** Settings from the environment. */
struct mc_meta_conf {
	char cluster[128];	  /* MC_METADATA_CLUSTER_ID: part of every key */
	char redis_username[128]; /* MC_REDIS_USERNAME */
	char redis_password[256]; /* MC_REDIS_PASSWORD */
	int64_t redis_db;	  /* MC_REDIS_DB_INDEX */
	int64_t refresh_s;	  /* MC_METADATA_REFRESH; 0: never */
};
void mc_meta_conf_load(struct mc_meta_conf *conf);

/** The word for "no service: names are addresses" ("P2PHANDSHAKE"). */
bool mc_meta_is_p2p(const char *conn);
/**
 * Does not connect yet.
 *
 * @param conn  "http://…", "https://…", "etcd://host:port[,host:port]", "redis://host:port";
 * without a scheme: etcd
 * @return 0; -MC_E_INVAL (diag says what is accepted); -MC_E_UNAVAILABLE (library missing);
 * -MC_E_NOMEM
 */
MC_MUST_CHECK int mc_meta_open(const char *conn, const struct mc_meta_conf *conf,
			       struct mc_meta **ret, struct mc_diag *diag);
/** No call may be under way. NULL is allowed. */
void mc_meta_close(struct mc_meta *meta);

/*
 * Below, deadline_ns is mc_now_ns() time; a call also gives up by itself after 3 s. Results: 0;
 * -MC_E_NOENT; -MC_E_METADATA (the service cannot be reached, or failed); -MC_E_PROTO (it holds
 * something that is not ours); -MC_E_TOO_BIG; -MC_E_NOMEM. Any thread, several at once.
 */

/** A segment's descriptor. @param ret_json NUL-terminated, ends with mc_free() */
MC_MUST_CHECK int mc_meta_segment_get(struct mc_meta *meta, const char *segment,
				      uint64_t deadline_ns, char **ret_json, size_t *ret_len,
				      struct mc_diag *diag);
MC_MUST_CHECK int mc_meta_segment_put(struct mc_meta *meta, const char *segment, const char *json,
				      size_t len, uint64_t deadline_ns, struct mc_diag *diag);
/** 0 also when there was none. */
MC_MUST_CHECK int mc_meta_segment_del(struct mc_meta *meta, const char *segment,
				      uint64_t deadline_ns, struct mc_diag *diag);

/** Where the control port of a server name is. */
struct mc_meta_rpc {
	char host[MC_META_HOST_MAX];
	uint16_t port;
};
MC_MUST_CHECK int mc_meta_rpc_get(struct mc_meta *meta, const char *server, uint64_t deadline_ns,
				  struct mc_meta_rpc *ret, struct mc_diag *diag);
/** A predecessor of the same name that left its entry behind is replaced. */
MC_MUST_CHECK int mc_meta_rpc_put(struct mc_meta *meta, const char *server,
				  const struct mc_meta_rpc *rpc, uint64_t deadline_ns,
				  struct mc_diag *diag);
MC_MUST_CHECK int mc_meta_rpc_del(struct mc_meta *meta, const char *server, uint64_t deadline_ns,
				  struct mc_diag *diag);

#endif
