/*
 * raw_calls.h: an input as calls of a hostile peer, over a real connection to a server in this
 * process. The frames are whole; the payloads are any bytes.
 *
 * An input is a list of items: a byte that chooses, a length of two bytes, that many bytes. What
 * the byte means is the target's. Replies are read when somebody waits; each call has one at most.
 */
#ifndef MC_FUZZ_RAW_CALLS_H
#define MC_FUZZ_RAW_CALLS_H

#include <poll.h>
#include <string.h>
#include <sys/socket.h>

#include "base/clock.h"
#include "base/err.h"
#include "base/mem.h"
#include "io/env.h"
#include "io/sock.h"
#include "wire/frame.h"

#define RAW_CALLS_MAX 24u
#define RAW_PAYLOAD_MAX 4096u
#define RAW_REPLY_MAX (1u << 20)
#define RAW_SOON_NS (10 * MC_NS_PER_S) /* never needed but where something is broken */

struct raw {
	int fd;
	bool is_over; /* the server hung up */
	uint64_t ncalls;
	uint32_t answered; /* a bit for each call */
};

struct raw_item {
	uint8_t what;
	uint16_t len;
	uint8_t bytes[RAW_PAYLOAD_MAX];
};

/** The next item. @return false: there is none */
static inline bool raw_next(const uint8_t **data, size_t *len, struct raw_item *ret)
{
	size_t n;

	if (*len < 3)
		return false;
	ret->what = (*data)[0];
	n = (size_t)((*data)[1] | (*data)[2] << 8) % RAW_PAYLOAD_MAX;
	*data += 3;
	*len -= 3;
	n = mc_min(n, *len);
	if (n)
		memcpy(ret->bytes, *data, n);
	ret->len = (uint16_t)n;
	*data += n;
	*len -= n;
	return true;
}

static inline void raw_send(struct raw *r, const struct mc_frame *f, const void *payload)
{
	uint8_t head[MC_FRAME_HEADER_LEN];

	mc_frame_encode(f, head);
	if (mc_sock_send_all(r->fd, head, sizeof(head), mc_now_ns() + RAW_SOON_NS) < 0 ||
	    mc_sock_send_all(r->fd, payload, f->payload_len, mc_now_ns() + RAW_SOON_NS) < 0)
		r->is_over = true;
}

/** Start a call. @return its id; 0: no more of them */
static inline uint64_t raw_call(struct raw *r, uint16_t method, uint8_t flags, const void *payload,
				size_t len)
{
	struct mc_frame f = {.type = MC_FRAME_REQUEST,
			     .flags = flags,
			     .method = method,
			     .call_id = r->ncalls + 1,
			     .payload_len = (uint32_t)len};

	if (r->ncalls == RAW_CALLS_MAX || r->is_over)
		return 0;
	raw_send(r, &f, payload);
	return ++r->ncalls;
}

/** A piece of a stream. */
static inline void raw_chunk(struct raw *r, uint64_t call, bool is_last, const void *payload,
			     size_t len)
{
	struct mc_frame f = {.type = MC_FRAME_CHUNK,
			     .flags = is_last ? MC_FRAME_LAST : 0,
			     .call_id = call,
			     .payload_len = (uint32_t)len};

	if (!r->is_over)
		raw_send(r, &f, payload);
}

static inline void raw_open(struct raw *r, const struct mc_addr *to)
{
	const struct mc_frame_hello hello = {.frame_max = RAW_REPLY_MAX,
					     .calls_max = RAW_CALLS_MAX};
	const struct mc_frame f = {.type = MC_FRAME_HELLO, .payload_len = MC_FRAME_HELLO_LEN};
	struct linger reset = {.l_onoff = 1};
	uint64_t by_ns = mc_now_ns() + RAW_SOON_NS;
	uint8_t buf[MC_FRAME_PREFACE_LEN], body[MC_FRAME_HELLO_LEN];

	*r = (struct raw){.fd = -1};
	mc_assert(mc_sock_connect(to, NULL, &r->fd) == 0);
	mc_assert(mc_sock_wait(r->fd, POLLOUT, by_ns) >= 0 && mc_sock_connect_result(r->fd) == 0);
	/* Leaves no port behind that cannot be used for a minute. */
	mc_assert(setsockopt(r->fd, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset)) == 0);
	(void)mc_sock_nodelay(r->fd);
	mc_assert(mc_sock_send_all(r->fd, MC_FRAME_PREFACE, MC_FRAME_PREFACE_LEN, by_ns) == 0);
	mc_frame_hello_encode(&hello, body);
	raw_send(r, &f, body);
	mc_assert(mc_sock_recv_all(r->fd, buf, sizeof(buf), by_ns) == 0);
	mc_assert(memcmp(buf, MC_FRAME_PREFACE, sizeof(buf)) == 0);
}

/** Read until something of this call comes, a piece or its reply, or the server has hung up. */
static inline void raw_wait(struct raw *r, uint64_t call)
{
	static uint8_t payload[RAW_REPLY_MAX];
	uint64_t by_ns = mc_now_ns() + RAW_SOON_NS;
	uint8_t head[MC_FRAME_HEADER_LEN];
	struct mc_frame f = {0};

	while (call && !r->is_over && f.call_id != call) {
		int rc = mc_sock_recv_all(r->fd, head, sizeof(head), by_ns);

		mc_assert(rc != -MC_E_TIMEDOUT);
		if (rc == 0)
			mc_assert(mc_frame_decode(head, &f) == 0 && f.payload_len <= RAW_REPLY_MAX);
		if (rc < 0 || mc_sock_recv_all(r->fd, payload, f.payload_len, by_ns) < 0) {
			r->is_over = true;
			return;
		}
		if (f.type != MC_FRAME_REPLY)
			continue;
		mc_assert(f.status <= 0 && f.status > -MC_E_COUNT);
		mc_assert(f.call_id >= 1 && f.call_id <= r->ncalls);
		mc_assert(!(r->answered & 1u << f.call_id));
		r->answered |= 1u << f.call_id;
	}
}

static inline void raw_close(struct raw *r)
{
	mc_fd_close(&r->fd);
}

#endif
