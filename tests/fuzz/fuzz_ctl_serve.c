/*
 * fuzz_ctl_serve.c: control calls of a hostile peer, with payloads of any bytes, at a whole engine:
 * Hello, offers of RDMA lanes, pieces of staged files, and all the others. They come over a
 * connection to its control port; workers do what blocks; RDMA is the fake fabric.
 *
 * An input is one byte (bit 0: all calls at once, else each waits for the last one's reply) and the
 * calls: a byte that chooses the method, a length of two bytes, the payload. Eight bytes 0xee in a
 * payload stand for the epoch of this peer, eight bytes 0xdd for the engine's. Every call is
 * answered exactly once, and once the connection is gone nothing that it made is left.
 */
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/log.h"
#include "engine/hca.h"
#include "engine/initiators.h"
#include "engine/stage.h"
#include "io/sock.h"
#include "verbs_fake.h"
#include "wire/frame.h"

#define CALLS_MAX 16u
#define PAYLOAD_MAX 4096u
#define REPLY_MAX (1u << 20)
#define MEM_BYTES (64u << 10)
#define FILE_BYTES (64u << 10)
#define SOON_NS (10 * MC_NS_PER_S) /* never needed but where something is broken */
#define RIGHTS (MC_MEM_REMOTE_READ | MC_MEM_REMOTE_WRITE)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

static struct mc_engine *eng;
static struct mc_addr port;
static uint64_t own_epoch;

static void setup(void)
{
	struct mc_engine_opts opts = {
	    .size = sizeof(opts), .name = "127.0.0.1", .protocol = "rdma"};
	char path[] = "/tmp/mc-fuzz-XXXXXX";
	struct mc_diag diag = {""};
	int fd = mkstemp(path);
	void *mem, *at;

	mc_log_level_set(MC_LOG_ERROR);
	mc_assert(fd >= 0 && ftruncate(fd, FILE_BYTES) == 0);
	(void)close(fd);
	mc_assert(setenv("MC_NO_SHM", "1", 1) == 0);
	mc_assert(mc_engine_open_verbs(&opts,
				       verbs_fake_open(&(struct verbs_fake_conf){.ndevs = 2}),
				       &diag, &eng) == 0);
	mem = mc_aligned_alloc(4096, MEM_BYTES);
	mc_assert(mem && mc_mem_reg(eng, mem, MEM_BYTES, NULL, RIGHTS) == 0);
	mc_assert(mc_mem_reg_file(eng, path, 0, FILE_BYTES, RIGHTS, &at) == 0);
	(void)unlink(path);
	mc_initiators_patience(eng, 1);
	mc_assert(mc_addr_parse(mc_engine_name(eng), 0, &port) == 0);
	own_epoch = 0x1000;
}

/* ---- what is sent ---- */

struct calls {
	unsigned n;
	size_t at[CALLS_MAX + 1]; /* where each begins in bytes, and the end */
	uint8_t bytes[CALLS_MAX * (MC_FRAME_HEADER_LEN + PAYLOAD_MAX)];
};

static void epochs_put(uint8_t *payload, size_t len)
{
	for (size_t i = 0; i + 8 <= len; i++) {
		const uint64_t *epoch = NULL;

		if (memcmp(payload + i, "\xee\xee\xee\xee\xee\xee\xee\xee", 8) == 0)
			epoch = &own_epoch;
		else if (memcmp(payload + i, "\xdd\xdd\xdd\xdd\xdd\xdd\xdd\xdd", 8) == 0)
			epoch = &eng->epoch;
		if (epoch)
			memcpy(payload + i, epoch, sizeof(*epoch));
	}
}

static void calls_make(struct calls *c, const uint8_t *data, size_t len)
{
	size_t at = 0;

	c->n = 0;
	c->at[0] = 0;
	while (c->n < CALLS_MAX && len - at >= 3) {
		struct mc_frame f = {.type = MC_FRAME_REQUEST,
				     .method = (uint16_t)(data[at] % (MC_CTL_METHOD_COUNT + 1)),
				     .call_id = c->n + 1};
		size_t n = (size_t)(data[at + 1] | data[at + 2] << 8) % PAYLOAD_MAX;
		uint8_t *out = c->bytes + c->at[c->n];

		at += 3;
		n = mc_min(n, len - at);
		f.payload_len = (uint32_t)n;
		mc_frame_encode(&f, out);
		memcpy(out + MC_FRAME_HEADER_LEN, data + at, n);
		epochs_put(out + MC_FRAME_HEADER_LEN, n);
		at += n;
		c->at[c->n + 1] = c->at[c->n] + MC_FRAME_HEADER_LEN + n;
		c->n++;
	}
}

/* ---- the connection ---- */

static int greet(void)
{
	struct mc_frame_hello hello = {.frame_max = REPLY_MAX, .calls_max = CALLS_MAX};
	struct mc_frame f = {.type = MC_FRAME_HELLO, .payload_len = MC_FRAME_HELLO_LEN};
	uint8_t buf[MC_FRAME_PREFACE_LEN + MC_FRAME_HEADER_LEN + MC_FRAME_HELLO_LEN];
	struct linger reset = {.l_onoff = 1};
	uint64_t by_ns = mc_now_ns() + SOON_NS;
	int fd;

	mc_assert(mc_sock_connect(&port, NULL, &fd) == 0);
	mc_assert(mc_sock_wait(fd, POLLOUT, by_ns) >= 0 && mc_sock_connect_result(fd) == 0);
	/* Leaves no port behind that cannot be used for a minute. */
	mc_assert(setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset)) == 0);
	(void)mc_sock_nodelay(fd);
	memcpy(buf, MC_FRAME_PREFACE, MC_FRAME_PREFACE_LEN);
	mc_frame_encode(&f, buf + MC_FRAME_PREFACE_LEN);
	mc_frame_hello_encode(&hello, buf + MC_FRAME_PREFACE_LEN + MC_FRAME_HEADER_LEN);
	mc_assert(mc_sock_send_all(fd, buf, sizeof(buf), by_ns) == 0);
	mc_assert(mc_sock_recv_all(fd, buf, MC_FRAME_PREFACE_LEN, by_ns) == 0);
	mc_assert(memcmp(buf, MC_FRAME_PREFACE, MC_FRAME_PREFACE_LEN) == 0);
	return fd;
}

/* The next reply. @return its call */
static uint64_t reply(int fd)
{
	static uint8_t payload[REPLY_MAX];
	uint64_t by_ns = mc_now_ns() + SOON_NS;
	uint8_t head[MC_FRAME_HEADER_LEN];
	struct mc_frame f;

	do {
		mc_assert(mc_sock_recv_all(fd, head, sizeof(head), by_ns) == 0);
		mc_assert(mc_frame_decode(head, &f) == 0 && f.payload_len <= REPLY_MAX);
		mc_assert(mc_sock_recv_all(fd, payload, f.payload_len, by_ns) == 0);
		mc_assert(f.type == MC_FRAME_HELLO || f.type == MC_FRAME_REPLY);
	} while (f.type != MC_FRAME_REPLY);
	mc_assert(f.status <= 0 && f.status > -MC_E_COUNT);
	return f.call_id;
}

static void exchange(int fd, const struct calls *c, bool is_at_once)
{
	unsigned step = is_at_once ? c->n : 1, answered = 0;

	for (unsigned i = 0; i < c->n; i += step) {
		mc_assert(mc_sock_send_all(fd, c->bytes + c->at[i], c->at[i + step] - c->at[i],
					   mc_now_ns() + SOON_NS) == 0);
		for (unsigned k = 0; k < step; k++) {
			uint64_t id = reply(fd);

			mc_assert(id >= 1 && id <= c->n && !(answered & 1u << id));
			answered |= 1u << id;
		}
	}
}

static bool is_clean(void)
{
	struct mc_rdma_stats st;

	mc_rdma_stats_get(eng->rdma, &st);
	return st.inbound == 0 && mc_stage_count(eng) == 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	static struct calls c;
	uint64_t by_ns;
	int fd;

	if (!eng)
		setup();
	if (len < 1)
		return 0;
	own_epoch++;
	calls_make(&c, data + 1, len - 1);
	if (c.n == 0)
		return 0;
	fd = greet();
	exchange(fd, &c, data[0] & 1);
	mc_fd_close(&fd);
	by_ns = mc_now_ns() + SOON_NS;
	while (!is_clean()) {
		mc_assert(mc_now_ns() < by_ns);
		(void)poll(NULL, 0, 1);
	}
	return 0;
}
