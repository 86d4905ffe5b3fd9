/*
 * ctl.h: the control calls between two engines (wire/control.proto), typed. Each blocks until its
 * deadline at most; not on a loop.
 */
#ifndef MC_ENGINE_CTL_H
#define MC_ENGINE_CTL_H

#include "engine/priv.h"
#include "wire/control.h"
#include "xport/rdma/rdma.h"

#define MC_CTL_RESOLVE_MAX 2048u /* ranges a call */
#define MC_CTL_TEXT_MAX 256u
#define MC_CTL_OFFER_MAX 1024u /* bytes of an offer, and of its answer */

/** What a peer says of itself. */
struct mc_ctl_peer {
	uint64_t epoch;
	uint8_t nonce[MC_NONCE_BYTES];
	char segment[MC_CTL_TEXT_MAX];
	char boot_id[64];
	char shm_socket[MC_CTL_TEXT_MAX];
	char rails[MC_RAILS_MAX][MC_ADDR_TEXT_MAX];
	unsigned nrails;
	struct mc_ctl_port ports[MC_RDMA_PORTS_MAX];
	unsigned nports;
};

/* ctlconn.c */
struct mc_ctl_conn;
/** The session's first connection, to its control address. */
int mc_ctlconn_open(struct mc_session *s, uint64_t deadline_ns, struct mc_ctl_peer *ret_hello);
/** Borrow a connection, made anew if need be. @return 0; -MC_E_PEER_DEAD or -MC_E_PEER_RESTARTED
 * (the session is given up); connection errors. Blocks. */
int mc_ctlconn_get(struct mc_session *s, uint64_t deadline_ns, struct mc_ctl_conn **ret_conn);
/** Give it back. @param is_bad  it gave no answer: the next call uses another */
void mc_ctlconn_put(struct mc_session *s, struct mc_ctl_conn *conn, bool is_bad);
/** Nobody uses it any more. */
void mc_ctlconn_free(struct mc_ctl_conn *conn);

/* ctl.c */
/** Introduce ourselves on a fresh connection. @return 0; -MC_E_VERSION; -MC_E_PROTO; connection
 * errors */
int mc_ctl_hello(struct mc_engine *eng, struct mc_rpc_conn *conn, uint64_t deadline_ns,
		 struct mc_ctl_peer *ret_peer);
/** Our own Hello, encoded. @return length; < 0 */
int mc_ctl_hello_encode(struct mc_engine *eng, uint8_t *buf, size_t cap, size_t *ret_len);
/** @param n <= MC_CTL_RESOLVE_MAX; ret[i].gen 0: no such region */
int mc_ctl_resolve(struct mc_session *s, const struct mc_iov *ranges, size_t n,
		   uint64_t deadline_ns, struct mc_remote_region *ret);
/** @param ret_acked  as struct mc_xport_ops's retire() has it */
int mc_ctl_retire(struct mc_session *s, const char *transport, const uint8_t *token,
		  size_t token_len, uint64_t deadline_ns, uint64_t *ret_acked);
/** Offer a lane. @return length of the answer; the peer's refusal; connection errors */
int mc_ctl_connect(struct mc_session *s, const char *transport, const uint8_t *offer,
		   size_t offer_len, uint64_t deadline_ns, uint8_t answer[MC_CTL_OFFER_MAX]);
/** A region of ours as peers are told of it, keys included. */
void mc_ctl_region_tell(struct mc_engine *eng, const struct mc_region_info *info,
			struct mc_ctl_region *ret);
struct mc_stage_want;
/** A buffer at the peer. @param ret_addr in ret_region. @return mc_stage_begin()'s,
 * then *ret_is_answered; connection errors */
int mc_ctl_stage(struct mc_session *s, const struct mc_stage_want *want, uint64_t deadline_ns,
		 uint64_t *ret_addr, struct mc_remote_region *ret_region, bool *ret_is_answered);
/** @return mc_stage_end()'s, then *ret_is_answered; connection errors */
int mc_ctl_unstage(struct mc_session *s, uint64_t id, enum mc_ctl_unstage end, uint64_t deadline_ns,
		   bool *ret_is_answered);
int mc_ctl_notify(struct mc_session *s, uint64_t id, const void *name, size_t name_len,
		  const void *msg, size_t msg_len, uint64_t deadline_ns);
/** @param ret_epoch the incarnation that answered */
int mc_ctl_probe(struct mc_session *s, uint64_t deadline_ns, uint64_t *ret_epoch);

#endif
