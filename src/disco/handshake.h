/*
 * handshake.h: upstream's control messages: frames and JSON bodies (pure), and the blocking client
 * side. The server side is control.h.
 *
 * A frame is u64 length (little-endian, of what follows), u8 type, JSON. Frames of old peers have
 * no type byte: their JSON follows the length, and they can only be Connection requests. One
 * request and one reply per connection.
 */
#ifndef MC_DISCO_HANDSHAKE_H
#define MC_DISCO_HANDSHAKE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

enum mc_hs_type {
	MC_HS_CONNECTION, /* queue pairs: connection.h */
	MC_HS_METADATA,	  /* segment descriptors, one each way */
	MC_HS_NOTIFY,	  /* one message for the peer's program */
	MC_HS_PROBE,	  /* is anybody there */
	MC_HS_TYPE_COUNT,
};

#define MC_HS_HEAD_BYTES 9u	     /* length and type */
#define MC_HS_REPLY_MAX (128u << 20) /* most bytes we take from a peer we have called */

/** Settings of the control port and its client, from the environment. */
struct mc_hs_conf {
	int64_t port_default;	   /* MC_HANDSHAKE_PORT: of names without a port */
	int64_t backlog;	   /* MC_HANDSHAKE_LISTEN_BACKLOG */
	int64_t connect_timeout_s; /* MC_HANDSHAKE_CONNECT_TIMEOUT */
	int64_t bytes_max; /* MC_HANDSHAKE_MAX_LENGTH: of a request, and of what we encode */
	int64_t port_min, port_max; /* MC_MIN_RPC_PORT, MC_MAX_RPC_PORT */
	bool is_legacy_port;	    /* MC_LEGACY_RPC_PORT_BINDING: with a metadata service, bind the
				     * port of the name */
	bool is_ipv6;		    /* MC_USE_IPV6 */
	char bind_address[80];	    /* MC_TCP_BIND_ADDRESS: advertised with a metadata service */
};
/** Defaults, then the environment; wrong values are logged and their defaults stay, also when
 * port_min > port_max. */
void mc_hs_conf_load(struct mc_hs_conf *conf);

/* ---- frames (pure) ---- */

struct mc_hs_frame {
	enum mc_hs_type type;
	bool is_legacy;	  /* no type byte: the reply must have none either */
	const char *json; /* view of the input */
	size_t len;
};

/**
 * Look at the bytes of a connection from its start.
 *
 * @param bytes_max  most bytes after the length field
 * @param ret_need   receives how many bytes in all the frame needs, as far as known; >= 9
 * @return 1 when the frame is whole (ret_frame is set); 0 when more bytes are needed;
 * -MC_E_TOO_BIG; -MC_E_PROTO (length 0)
 */
MC_MUST_CHECK int mc_hs_frame_parse(const void *data, size_t len, size_t bytes_max,
				    struct mc_hs_frame *ret_frame, size_t *ret_need);
/** Write the head of a frame in front of json_len bytes of JSON. @return its length, 8 or 9 */
size_t mc_hs_head_put(uint8_t head[MC_HS_HEAD_BYTES], enum mc_hs_type type, bool is_legacy,
		      size_t json_len);

/* ---- bodies (pure) ---- */

/** A notification as bytes, which end in a NUL that is not counted. Ends with mc_hs_notify_fini().
 */
struct mc_hs_notify {
	char *name, *msg;
	size_t name_len, msg_len;
};
/** @return 0; -MC_E_PROTO; -MC_E_NOMEM */
MC_MUST_CHECK int mc_hs_notify_decode(const char *json, size_t len, struct mc_hs_notify *ret,
				      struct mc_diag *diag);
void mc_hs_notify_fini(struct mc_hs_notify *n);
/** @return 0; -MC_E_INVAL when the bytes are not UTF-8 (JSON holds nothing else); -MC_E_NOMEM */
MC_MUST_CHECK int mc_hs_notify_encode(const void *name, size_t name_len, const void *msg,
				      size_t msg_len, char **ret_json, struct mc_diag *diag);
/** Body that refuses a Connection request, with the reason for the peer's log. @return JSON
 * (mc_free) or NULL */
char *mc_hs_reject_encode(const char *reason);

/* ---- client ---- */

/**
 * One request and its reply. Blocks: DNS (which knows no deadline) and then at most until
 * deadline_ns (mc_now_ns time); never on a loop.
 *
 * @param peer      "host:port", "[v6]:port" or "host"
 * @param ret_json  the reply, NUL-terminated; ends with mc_free()
 * @return 0; -MC_E_INVAL, -MC_E_DNS (peer's name); -MC_E_REFUSED, -MC_E_UNREACHABLE,
 * -MC_E_TIMEDOUT, -MC_E_RESET, -MC_E_IO; -MC_E_PROTO, -MC_E_TOO_BIG (reply); -MC_E_NOMEM. diag
 * names the peer.
 */
MC_MUST_CHECK int mc_handshake_call(const struct mc_hs_conf *conf, const char *peer,
				    enum mc_hs_type type, const char *json, uint64_t deadline_ns,
				    char **ret_json, size_t *ret_len, struct mc_diag *diag);
/** Exchange descriptors: ours goes, the peer's comes back. Errors as above. */
MC_MUST_CHECK int mc_handshake_metadata(const struct mc_hs_conf *conf, const char *peer,
					const char *mine_json, uint64_t deadline_ns,
					char **ret_json, size_t *ret_len, struct mc_diag *diag);
/** Deliver one message. 0: the peer has put it in its inbox. -MC_E_AGAIN: its inbox is full. */
MC_MUST_CHECK int mc_handshake_notify(const struct mc_hs_conf *conf, const char *peer,
				      const void *name, size_t name_len, const void *msg,
				      size_t msg_len, uint64_t deadline_ns, struct mc_diag *diag);
/** 0: the peer answers. */
MC_MUST_CHECK int mc_handshake_probe(const struct mc_hs_conf *conf, const char *peer,
				     uint64_t deadline_ns, struct mc_diag *diag);

#endif
