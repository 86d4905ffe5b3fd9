/*
 * pb.h: protobuf-c messages in and out of given memory: no heap, and a message that would need more
 * than the arena is refused.
 *
 * A decoded message and everything in it lives in the arena, until that is used again. Strings are
 * ended by NUL but may hold one before; use the bytes type where that matters.
 */
#ifndef MC_WIRE_PB_H
#define MC_WIRE_PB_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <protobuf-c/protobuf-c.h>

#include "base/err.h"

/** One owner. Holds pointers to itself: do not copy. */
struct mc_pb_arena {
	ProtobufCAllocator allocator;
	uint8_t *buf;
	size_t cap, used;
	bool is_full; /* something did not fit */
};

/** @param buf aligned to 16; stays the caller's */
void mc_pb_arena_init(struct mc_pb_arena *arena, void *buf, size_t cap_bytes);

/** Encode. @return 0; -MC_E_TOO_BIG (ret_len is then what it needs) */
MC_MUST_CHECK int mc_pb_pack(const ProtobufCMessage *msg, void *buf, size_t cap_bytes,
			     size_t *ret_len);
/** Decode into the arena, which is emptied first. @return 0; -MC_E_TOO_BIG (does not fit into the
 * arena); -MC_E_PROTO (not such a message) */
MC_MUST_CHECK int mc_pb_unpack(struct mc_pb_arena *arena, const ProtobufCMessageDescriptor *type,
			       const void *data, size_t len_bytes, ProtobufCMessage **ret_msg);

#endif
