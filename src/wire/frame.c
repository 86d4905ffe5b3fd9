/*
 * frame.c: header bytes and what each field may be.
 */
#include "wire/frame.h"

#include "base/codec.h"

/* For each type: the flags it may have, and which fields may differ from 0. */
static const struct frame_rule {
	uint8_t flags;
	bool has_method, has_id, has_payload, has_status, has_deadline, has_fds;
} frame_rules[MC_FRAME_TYPE_COUNT] = {
    [MC_FRAME_HELLO] = {.has_payload = true},
    [MC_FRAME_REQUEST] = {.flags = MC_FRAME_STREAM,
			  .has_method = true,
			  .has_id = true,
			  .has_payload = true,
			  .has_deadline = true,
			  .has_fds = true},
    [MC_FRAME_REPLY] = {.has_id = true, .has_payload = true, .has_status = true, .has_fds = true},
    [MC_FRAME_CHUNK] = {.flags = MC_FRAME_LAST, .has_id = true, .has_payload = true},
    [MC_FRAME_CREDIT] = {.has_id = true, .has_status = true},
    [MC_FRAME_CANCEL] = {.has_id = true},
    [MC_FRAME_GOODBYE] = {.has_payload = true, .has_status = true},
};

void mc_frame_encode(const struct mc_frame *f, uint8_t buf[MC_FRAME_HEADER_LEN])
{
	struct mc_wr w = mc_wr_make(buf, MC_FRAME_HEADER_LEN);

	mc_wr_u32(&w, MC_FRAME_MAGIC);
	mc_wr_u8(&w, f->type);
	mc_wr_u8(&w, f->flags);
	mc_wr_u16(&w, f->method);
	mc_wr_u64(&w, f->call_id);
	mc_wr_u32(&w, f->payload_len);
	mc_wr_u32(&w, (uint32_t)f->status);
	mc_wr_u32(&w, f->deadline_ms);
	mc_wr_u16(&w, f->nfds);
	mc_wr_u16(&w, 0);
	mc_wr_u64(&w, 0);
	mc_assert(!w.is_bad && w.at == w.end);
}

static bool status_is_ok(const struct mc_frame *f)
{
	if (f->type == MC_FRAME_CREDIT)
		return f->status > 0 && f->status <= (int32_t)MC_FRAME_CREDIT_MAX;
	return f->status <= 0 && f->status > INT32_MIN;
}

static bool frame_is_ok(const struct mc_frame *f)
{
	const struct frame_rule *rule;

	if (f->type == 0 || f->type >= MC_FRAME_TYPE_COUNT)
		return false;
	rule = &frame_rules[f->type];
	return !(f->flags & ~rule->flags) && (rule->has_method || f->method == 0) &&
	       rule->has_id == (f->call_id != 0) && (rule->has_payload || f->payload_len == 0) &&
	       (rule->has_status ? status_is_ok(f) : f->status == 0) &&
	       (rule->has_deadline || f->deadline_ms == 0) && (rule->has_fds || f->nfds == 0) &&
	       f->nfds <= MC_FRAME_FDS_MAX;
}

int mc_frame_decode(const uint8_t buf[MC_FRAME_HEADER_LEN], struct mc_frame *ret_f)
{
	struct mc_rd r = mc_rd_make(buf, MC_FRAME_HEADER_LEN);
	struct mc_frame f;
	uint32_t magic = mc_rd_u32(&r);
	uint16_t reserved;
	uint64_t auth;

	if ((magic & 0xffffff) != (MC_FRAME_MAGIC & 0xffffff))
		return -MC_E_PROTO;
	if (magic != MC_FRAME_MAGIC)
		return -MC_E_VERSION;
	f.type = mc_rd_u8(&r);
	f.flags = mc_rd_u8(&r);
	f.method = mc_rd_u16(&r);
	f.call_id = mc_rd_u64(&r);
	f.payload_len = mc_rd_u32(&r);
	f.status = (int32_t)mc_rd_u32(&r);
	f.deadline_ms = mc_rd_u32(&r);
	f.nfds = mc_rd_u16(&r);
	reserved = mc_rd_u16(&r);
	auth = mc_rd_u64(&r);
	mc_assert(mc_rd_is_done(&r));
	if (auth != 0)
		return -MC_E_AUTH;
	if (reserved != 0 || !frame_is_ok(&f))
		return -MC_E_PROTO;
	*ret_f = f;
	return 0;
}

void mc_frame_hello_encode(const struct mc_frame_hello *h, uint8_t buf[MC_FRAME_HELLO_LEN])
{
	struct mc_wr w = mc_wr_make(buf, MC_FRAME_HELLO_LEN);

	mc_wr_u32(&w, h->frame_max);
	mc_wr_u32(&w, h->calls_max);
	mc_wr_u64(&w, h->features);
	mc_assert(!w.is_bad);
}

int mc_frame_hello_decode(const void *data, size_t len, struct mc_frame_hello *ret_h)
{
	struct mc_rd r = mc_rd_make(data, len);
	struct mc_frame_hello h;

	h.frame_max = mc_rd_u32(&r);
	h.calls_max = mc_rd_u32(&r);
	h.features = mc_rd_u64(&r);
	if (r.is_bad || h.frame_max == 0 || h.calls_max == 0)
		return -MC_E_PROTO;
	*ret_h = h;
	return 0;
}
