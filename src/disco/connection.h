/*
 * connection.h: the body of upstream's Connection message, with which two RDMA devices introduce
 * queue pairs to each other. Pure.
 *
 * Each side names itself and the other by "server@device" and lists its queue pairs; the i-th of
 * one side is connected to the i-th of the other. A reply with a reason in it is a refusal.
 * `ready_ack` present says that its sender knows a third step: the requester sends the request
 * again with ready_ack true when its own queue pairs are ready.
 */
#ifndef MC_DISCO_CONNECTION_H
#define MC_DISCO_CONNECTION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "base/str.h"

#define MC_NIC_PATH_MAX 512u		    /* "server@device", with its NUL */
#define MC_CONNECTION_QPS_MAX 256u	    /* what upstream's MC_NUM_QP_PER_EP allows */
#define MC_CONNECTION_REASON_MAX 256u	    /* more of a refusal is cut */
#define MC_CONNECTION_BYTES_MAX (64u << 10) /* of JSON that is decoded at all */
#define MC_GID_TEXT_MAX 48u		    /* "00:11:…:ff" with its NUL */

struct mc_connection {
	char local_nic[MC_NIC_PATH_MAX]; /* the sender's */
	char peer_nic[MC_NIC_PATH_MAX];	 /* whom it means */
	bool has_gid;			 /* false: it stands in the sender's descriptor */
	uint8_t gid[16];
	uint16_t lid;
	uint32_t nqps, qpn[MC_CONNECTION_QPS_MAX];
	bool has_ready_ack, is_ready;
	char reason[MC_CONNECTION_REASON_MAX]; /* "": no refusal */
};

/** @return 0; -MC_E_PROTO; -MC_E_TOO_BIG; -MC_E_NOMEM; the diag names the member */
MC_MUST_CHECK int mc_connection_decode(const char *json, size_t len, struct mc_connection *ret,
				       struct mc_diag *diag);
/** Every member that upstream's decoder looks at. @return 0; -MC_E_INVAL when a text is not UTF-8;
 * -MC_E_NOMEM. ret_json ends with mc_free(). */
MC_MUST_CHECK int mc_connection_encode(const struct mc_connection *c, char **ret_json,
				       size_t *ret_len);

/** "server@device" into its parts; the last '@' parts them. @return 0; -MC_E_PROTO (one is empty)
 */
MC_MUST_CHECK int mc_nic_path_split(const char *path, struct mc_view *ret_server,
				    struct mc_view *ret_device);
/** @return 0; -MC_E_TOO_BIG */
MC_MUST_CHECK int mc_nic_path_join(const char *server, const char *device,
				   char ret[MC_NIC_PATH_MAX]);

/** 16 hexadecimal bytes between colons. @return 0; -MC_E_PROTO */
MC_MUST_CHECK int mc_gid_parse(const char *text, uint8_t ret[16]);
const char *mc_gid_format(const uint8_t gid[16], char buf[MC_GID_TEXT_MAX]);

#endif
