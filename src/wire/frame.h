/*
 * frame.h: the frames of our rpc, little-endian. Pure.
 *
 * Each end first sends the 8 bytes of MC_FRAME_PREFACE, then frames: a header of 40 bytes and
 * `payload_len` bytes. Read as a little-endian u64 the preface is above 2^63, so a port that also
 * speaks protocols which begin with a u64 length tells them apart by these 8 bytes.
 *
 *   off size field
 *     0    4 magic        "MCF" and the version, 1
 *     4    1 type         enum mc_frame_type
 *     5    1 flags        enum mc_frame_flag
 *     6    2 method       REQUEST: what to call; else 0
 *     8    8 call_id      the client's, unique on the connection while the call lives; 0 only in
 *                         HELLO and GOODBYE
 *    16    4 payload_len  bytes after the header
 *    20    4 status       REPLY, GOODBYE: 0 or -enum mc_err; CREDIT: bytes granted, > 0; else 0
 *    24    4 deadline_ms  REQUEST: time left, 0 for none; else 0
 *    28    2 nfds         descriptors that travel with the first byte of this frame (unix sockets)
 *    30    2 reserved     0
 *    32    8 auth         0; reserved for an authentication code
 *
 * Streams: a REQUEST with MC_FRAME_STREAM opens both directions; CHUNK frames carry their bytes,
 * the last one of a direction has MC_FRAME_LAST. Each direction starts with MC_FRAME_CREDIT_START
 * bytes of credit, and the receiver grants more, at most MC_FRAME_CREDIT_MAX outstanding. The REPLY
 * ends both. Every REQUEST gets one REPLY, also after a CANCEL: until then it counts as in flight.
 */
#ifndef MC_WIRE_FRAME_H
#define MC_WIRE_FRAME_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

#define MC_FRAME_PREFACE "MCRPC\x01\xff\xff"
#define MC_FRAME_PREFACE_LEN 8
#define MC_FRAME_HEADER_LEN 40
#define MC_FRAME_MAGIC 0x0146434du /* "MCF" 1 */
#define MC_FRAME_FDS_MAX 8
#define MC_FRAME_CREDIT_START (256u << 10)
#define MC_FRAME_CREDIT_MAX (1u << 20) /* outstanding in one direction of a stream */

enum mc_frame_type {
	MC_FRAME_HELLO = 1, /* payload: struct mc_frame_hello; the first frame of each end */
	MC_FRAME_REQUEST,
	MC_FRAME_REPLY,
	MC_FRAME_CHUNK,
	MC_FRAME_CREDIT,
	MC_FRAME_CANCEL,  /* client: the reply is not wanted any more */
	MC_FRAME_GOODBYE, /* the last frame; status says why, payload is a text for people */
	MC_FRAME_TYPE_COUNT,
};

enum mc_frame_flag {
	MC_FRAME_STREAM = 1, /* REQUEST */
	MC_FRAME_LAST = 2,   /* CHUNK */
};

struct mc_frame {
	uint8_t type, flags;
	uint16_t method;
	uint64_t call_id;
	uint32_t payload_len;
	int32_t status;
	uint32_t deadline_ms;
	uint16_t nfds;
};

/** What an end accepts. 16 bytes; later versions append, receivers ignore what they do not know. */
struct mc_frame_hello {
	uint32_t frame_max; /* payload bytes */
	uint32_t calls_max; /* calls in flight */
	uint64_t features;  /* none defined */
};
#define MC_FRAME_HELLO_LEN 16

void mc_frame_encode(const struct mc_frame *f, uint8_t buf[MC_FRAME_HEADER_LEN]);
/**
 * @return 0; -MC_E_VERSION (our magic, another version); -MC_E_PROTO (anything a field may not be);
 * -MC_E_AUTH (an authentication code, which this version cannot check). The payload limit is the
 * caller's to check.
 */
MC_MUST_CHECK int mc_frame_decode(const uint8_t buf[MC_FRAME_HEADER_LEN], struct mc_frame *ret_f);

void mc_frame_hello_encode(const struct mc_frame_hello *h, uint8_t buf[MC_FRAME_HELLO_LEN]);
/** @return 0; -MC_E_PROTO (too short, or a limit of 0) */
MC_MUST_CHECK int mc_frame_hello_decode(const void *data, size_t len, struct mc_frame_hello *ret_h);

#endif
