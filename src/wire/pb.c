/*
 * pb.c: a bump allocator behind protobuf-c's allocator.
 */
#include "wire/pb.h"

#define PB_ALIGN 16u

static void *pb_alloc(void *user, size_t len)
{
	struct mc_pb_arena *arena = user;
	void *p = arena->buf + arena->used;

	if (len > arena->cap - arena->used) {
		arena->is_full = true;
		return NULL;
	}
	len = (len + PB_ALIGN - 1) & ~(size_t)(PB_ALIGN - 1);
	arena->used = len > arena->cap - arena->used ? arena->cap : arena->used + len;
	return p;
}

/* All at once, when the arena is used again. */
static void pb_free(void *user, void *p)
{
	(void)user;
	(void)p;
}

void mc_pb_arena_init(struct mc_pb_arena *arena, void *buf, size_t cap_bytes)
{
	mc_assert(((uintptr_t)buf & (PB_ALIGN - 1)) == 0);
	*arena = (struct mc_pb_arena){
	    .allocator = {.alloc = pb_alloc, .free = pb_free, .allocator_data = arena},
	    .buf = buf,
	    .cap = cap_bytes,
	};
}

int mc_pb_pack(const ProtobufCMessage *msg, void *buf, size_t cap_bytes, size_t *ret_len)
{
	*ret_len = protobuf_c_message_get_packed_size(msg);
	if (*ret_len > cap_bytes)
		return -MC_E_TOO_BIG;
	*ret_len = protobuf_c_message_pack(msg, buf);
	return 0;
}

int mc_pb_unpack(struct mc_pb_arena *arena, const ProtobufCMessageDescriptor *type,
		 const void *data, size_t len_bytes, ProtobufCMessage **ret_msg)
{
	ProtobufCMessage *msg;

	arena->used = 0;
	arena->is_full = false;
	msg = protobuf_c_message_unpack(type, &arena->allocator, len_bytes, data);
	if (!msg)
		return arena->is_full ? -MC_E_TOO_BIG : -MC_E_PROTO;
	*ret_msg = msg;
	return 0;
}
