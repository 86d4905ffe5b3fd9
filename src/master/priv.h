/*
 * priv.h: what the files of the master share. Everything here is the index loop's but for what says
 * otherwise.
 */
#ifndef MC_MASTER_PRIV_H
#define MC_MASTER_PRIV_H

#include "base/list.h"
#include "base/stats.h"
#include "base/str.h"
#include "master/master.h"
#include "master/state.h"
#include "rpc/rpc.h"
#include "wire/pb.h"
#include "wire/store.h"
#include "wire/store.pb-c.h"

#define MC_MST_OWNERS_MAX 4096u
#define MC_MST_TEXT_MAX 128u /* names of owners, with NUL */
#define MC_MST_METHODS_MAX 32u

enum mc_mst_owner_state {
	MC_MST_ABSENT,	 /* of the roster; not seen in this life of the master, or dropped */
	MC_MST_SHAKING,	 /* its stream waits for the welcome */
	MC_MST_ANNOUNCE, /* says what it has */
	MC_MST_OK,
	MC_MST_SUSPECT, /* lost or silent, its replicas still stand in the index */
	MC_MST_OWNER_STATE_COUNT,
};

struct mc_mst_owner {
	struct mc_list link;	    /* mc_master.owners */
	struct mc_mst_owner *chain; /* of its bucket */
	struct mc_master *master;
	uint64_t id, incarnation;
	char segment[MC_MST_TEXT_MAX], address[MC_MST_TEXT_MAX], host[MC_MST_TEXT_MAX];
	char protocol[32];
	enum mc_mst_owner_state state;
	struct mc_st_space space[MC_ST_KIND_COUNT];
	uint64_t heard_ns;
	uint64_t told_free; /* memory free as the last view had it */
};

/** One kind of call. */
struct mc_mst_method {
	struct mc_master *master;
	const char *name;
	/** @return true: answered; false: it will be, by mc_mst_answer() */
	bool (*handle)(struct mc_master *m, struct mc_rpc_req *req, const struct mc_rpc_msg *msg);
	struct mc_counter calls, failures;
	struct mc_hist latency; /* ns */
};

struct mc_master {
	struct mc_env env;
	struct mc_loop *loop, *side;
	struct mc_master_conf conf;
	struct mc_rpc_server *server;
	struct mc_mst_method methods[MC_MST_METHODS_MAX];
	struct mc_state *state;
	_Atomic uint64_t epoch; /* written on the loop */
	uint64_t gen_next;	/* counter within the epoch */
	uint64_t view_version;
	struct mc_list owners;
	struct mc_mst_owner *owner_buckets[256];
	uint32_t nowners;
	uint8_t *buf; /* for answers; grows */
	size_t buf_cap;
	void *arena_mem; /* of `arena` */
	struct mc_pb_arena arena;
};

/* ---- master.c ---- */

/** Room for an answer of `len` bytes, until the next call of it. NULL: out of memory. */
uint8_t *mc_mst_buf(struct mc_master *m, size_t len);
/** Answer with a message of store.proto. */
void mc_mst_reply_pb(struct mc_master *m, struct mc_rpc_req *req, const ProtobufCMessage *msg);
/** Decode a message of store.proto; lives until the next one. Else the request is answered with an
 * error, and NULL. */
ProtobufCMessage *mc_mst_unpack(struct mc_master *m, struct mc_rpc_req *req,
				const ProtobufCMessageDescriptor *type,
				const struct mc_rpc_msg *msg);

/* ---- hello.c ---- */

bool mc_mst_join(struct mc_master *m, struct mc_rpc_req *req, const struct mc_rpc_msg *msg);
bool mc_mst_view(struct mc_master *m, struct mc_rpc_req *req, const struct mc_rpc_msg *msg);
bool mc_mst_gens(struct mc_master *m, struct mc_rpc_req *req, const struct mc_rpc_msg *msg);

#endif
