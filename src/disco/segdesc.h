/*
 * segdesc.h: the segment descriptor, which tells a peer how to reach a process and which memory it
 * shows. Upstream's JSON, plus one object "mc" that upstream's decoders pass over. Pure.
 *
 * The list of buffers is an advertisement, never a grant: the owner checks every access against
 * what is registered at that moment. That is why an encoder may widen ranges to fit a size limit.
 */
#ifndef MC_DISCO_SEGDESC_H
#define MC_DISCO_SEGDESC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

#define MC_SEGDESC_BYTES_MAX (128u << 20) /* JSON that is decoded at all */
#define MC_SEGDESC_BUFFERS_MAX 1000000u
#define MC_SEGDESC_DEVICES_MAX 256u
#define MC_SEGDESC_RAILS_MAX 64u
#define MC_SEGDESC_TEXT_MAX 4096u /* bytes of a name */
#define MC_SEGDESC_PROTOCOL_MAX 16u
#define MC_SEGDESC_MC_VERSION 1u /* of the "mc" object */

struct mc_segdesc_buffer {
	const char *name; /* location ("cpu:0"), or over TCP the segment's name */
	uint64_t addr, len;
	const uint64_t *rkey, *lkey; /* nkeys each, by device position; NULL: none */
	uint32_t nkeys;
};

struct mc_segdesc_device {
	const char *name, *gid; /* gid: "aa:bb:…" as text */
	uint16_t lid;
};

/** What a peer of our own kind adds; version 0: the peer is upstream's. */
struct mc_segdesc_ext {
	uint32_t version;
	uint64_t epoch;	    /* a new number for each incarnation of the process */
	uint64_t caps;	    /* bits; meaning is the engine's; below 2^53 */
	const char **rails; /* "ip:port" of more data addresses */
	size_t nrails;
};

/**
 * A decoded descriptor owns all it points to and ends with mc_segdesc_free(). One to be encoded is
 * filled in by the caller and borrows. Text members that do not apply are "".
 */
struct mc_segdesc {
	const char *name, *protocol, *timestamp, *rdma_server_name;
	const char *tcp_data_host; /* where the data port is; "": the host of the name */
	uint16_t tcp_data_port;	   /* 0: none */
	uint32_t tcp_proto_version;
	struct mc_segdesc_buffer *buffers;
	size_t nbuffers;
	struct mc_segdesc_device *devices;
	size_t ndevices;
	const char *priority_matrix; /* JSON text as it came; "": none */
	struct mc_segdesc_ext ext;
};

/**
 * Decode the JSON of a peer or a metadata service.
 *
 * @return 0; -MC_E_TOO_BIG (bytes, buffers, devices, rails, or a text beyond its limit);
 * -MC_E_PROTO (not JSON, a member missing, of the wrong type or range); -MC_E_UNSUPPORTED (a
 * protocol whose buffers are not memory ranges); -MC_E_NOMEM. diag names the member.
 */
MC_MUST_CHECK int mc_segdesc_decode(const void *json, size_t len, struct mc_segdesc **ret_desc,
				    struct mc_diag *diag);
/** NULL is allowed. */
void mc_segdesc_free(struct mc_segdesc *desc);

/**
 * Encode for a peer or a metadata service. As long as the text fits bytes_max every buffer is
 * listed as it is. Else ranges without keys are joined, touching ones first, then those with the
 * smallest gaps between them, until it fits; the first buffer is always listed by itself, because
 * clients ask for its address. Ranges with keys cannot be joined: mc_segdesc_fit() says how many
 * fit.
 *
 * @param bytes_max  most bytes of JSON; readers of upstream's take 1 MiB (MC_HANDSHAKE_MAX_LENGTH)
 * @param ret_json   NUL-terminated; ends with mc_free()
 * @return 0; -MC_E_TOO_BIG when even joined ranges do not fit; -MC_E_INVAL (a text that is not
 * UTF-8, an empty name, a range that is empty or wraps); -MC_E_NOMEM
 */
MC_MUST_CHECK int mc_segdesc_encode(const struct mc_segdesc *desc, size_t bytes_max,
				    char **ret_json, size_t *ret_len, struct mc_diag *diag);

/** How many of the descriptor's first buffers fit bytes_max, each with its keys: for those that
 * cannot be joined. @return the number; errors of mc_segdesc_encode() */
MC_MUST_CHECK int mc_segdesc_fit(const struct mc_segdesc *desc, size_t bytes_max,
				 struct mc_diag *diag);
/**
 * The protocol in a descriptor's text, without decoding the rest: one walk over it. Of an array the
 * first that is `want`, else the last.
 * @return true: ret holds it; false: there is none, or it is no text. Garbage may give either.
 */
bool mc_segdesc_protocol(const void *json, size_t len, const char *want,
			 char ret[MC_SEGDESC_PROTOCOL_MAX]);

/**
 * Join ranges in place until at most `want` are left: sorts by address, keeps element 0 where it
 * is, and joins across the smallest gaps first. Ranges that overlap are joined first of all. Pure;
 * names and keys of a joined range are those of its lowest part.
 * @param want >= 2
 * @return ranges left, <= want; -MC_E_NOMEM
 */
MC_MUST_CHECK int mc_segdesc_join(struct mc_segdesc_buffer *bufs, size_t n, size_t want);

#endif
