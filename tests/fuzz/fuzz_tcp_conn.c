/*
 * fuzz_tcp_conn.c: bytes of a stranger on the data port, through the accepted connection's own
 * event handler on a stepped loop: hello, requests and payload of ours, or upstream's frames.
 *
 * The first input byte says in what pieces the rest arrives, and whether answers are read
 * meanwhile. Registered memory stands at a fixed address between canaries; whatever the bytes were,
 * canaries and the read-only region stay as they are, the connection ends with its peer, and
 * nothing of it is left.
 */
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "xport/tcp_priv.h"

#define BASE ((uint8_t *)0x20000000) /* inputs name absolute addresses */
#define SPAN 65536u
#define RW_OFF 4096u
#define RW_LEN 8192u
#define RO_OFF 32768u
#define RO_LEN 4096u
#define CANARY 0xc5
#define STEPS_MAX 10000
#define PIECES_MAX 24 /* about; each costs a few rounds of the loop */
#define SOCKET_BYTES (64 << 10)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

static struct mc_loop *loop;
static struct mc_tcp_dev *dev;
static uint8_t kept[SPAN];

static void region(struct mc_region_table *t, size_t off, size_t len, uint32_t rights)
{
	struct mc_region_desc d = {.addr = (uintptr_t)(BASE + off), .len = len, .rights = rights};
	struct mc_region_info info;

	mc_assert(mc_region_add(t, &d, &info) == 0);
}

static void setup(void)
{
	static const uint8_t nonce[16] = "fuzz-fuzz-fuzz!";
	struct mc_region_table *t;
	struct mc_xdev_env env = {
	    .loops = &loop, .nloops = 1, .clk = &mc_clock_real, .epoch = 0x1122, .nonce = nonce};
	struct mc_tcp_opts o = {.naddrs = 1, .port_min = 20000, .port_max = 32000};
	struct mc_xdev *x;

	mc_assert(mmap(BASE, SPAN, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == BASE);
	memset(BASE, CANARY, SPAN);
	memset(kept, CANARY, SPAN);
	mc_assert(mc_loop_open("fuzz", &mc_clock_real, &loop) == 0);
	mc_assert(mc_region_table_open(&t) == 0);
	env.regions = t;
	mc_assert(mc_addr_parse("127.0.0.1", 0, &o.addrs[0]) == 0);
	mc_assert(mc_tcp_dev_open(&env, &o, &x) == 0);
	dev = (struct mc_tcp_dev *)x;				   /* its first member */
	region(t, RW_OFF, RW_LEN, MC_RIGHT_READ | MC_RIGHT_WRITE); /* id 0, generation 1 */
	region(t, RO_OFF, RO_LEN, MC_RIGHT_READ);		   /* id 1, generation 1 */
}

static void drain(int fd)
{
	static uint8_t sink[SOCKET_BYTES];

	while (recv(fd, sink, sizeof(sink), MSG_DONTWAIT) > 0)
		;
}

/* Until the loop has nothing to do. */
static void settle(void)
{
	int idle = 0;

	for (int i = 0; i < STEPS_MAX && idle < 2; i++)
		idle = mc_loop_step(loop, 0) == 0 ? idle + 1 : 0;
}

static void feed(int fd, const uint8_t *data, size_t len)
{
	size_t piece = (data[0] & 0x3f) == 0 ? len : (data[0] & 0x3fu) * (data[0] & 0x3fu);
	bool is_reader = (data[0] & 0x40) == 0;
	int stuck = 0;

	piece = mc_max(piece, len / PIECES_MAX + 1);
	for (size_t at = 1; at < len && stuck < 3;) {
		ssize_t n =
		    send(fd, data + at, mc_min(piece, len - at), MSG_DONTWAIT | MSG_NOSIGNAL);

		stuck = n > 0 ? 0 : stuck + 1;
		at += n > 0 ? (size_t)n : 0;
		settle();
		if (is_reader)
			drain(fd);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	int64_t live;
	int fds[2];

	if (!dev)
		setup();
	if (len < 2)
		return 0;
	live = mc_mem_live();
	mc_assert(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds) == 0);
	atomic_fetch_add_explicit(&dev->nconns, 1, memory_order_relaxed); /* as the acceptor does */
	mc_assert(mc_tcp_conn_start(dev, fds[0]) == 0);
	feed(fds[1], data, len);
	drain(fds[1]);
	settle();
	(void)close(fds[1]);
	settle();
	mc_assert(atomic_load_explicit(&dev->nconns, memory_order_relaxed) == 0);
	mc_assert(mc_mem_live() == live && mc_list_is_empty(&dev->lanes));
	dev->retired_n = dev->retired_at = 0; /* each input is a life of its own */
	mc_assert(memcmp(BASE, kept, RW_OFF) == 0);
	mc_assert(memcmp(BASE + RW_OFF + RW_LEN, kept, SPAN - RW_OFF - RW_LEN) == 0);
	return 0;
}
