/*
 * fuzz_tcp_lane.c: bytes of a stranger in answer to a lane's requests, for lanes of ours and for
 * upstream's frames of both versions. The lane's own poll() reads them from its socket.
 *
 * The first input byte chooses the lane, what it posts and in what pieces the rest arrives.
 * Whatever the bytes were, each slice comes back exactly once, nothing but the ranges of reads
 * changes in local memory, and nothing is left of the lane.
 */
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/rand.h"
#include "xport/tcp_priv.h"

#define SLICES 6
#define FRAGS 3
#define FRAG_BYTES 100u
#define FRAG_STEP 128u
#define LOCAL_BYTES (SLICES * FRAGS * FRAG_STEP + FRAG_STEP)
#define CANARY 0xc5

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

static struct mc_loop *loop;
static struct mc_xdev *dev;
static struct mc_addr address;
static int listen_fd;

static void setup(void)
{
	static const uint8_t nonce[16];
	struct mc_region_table *t;
	struct mc_xdev_env env = {
	    .loops = &loop, .nloops = 1, .clk = &mc_clock_real, .epoch = 7, .nonce = nonce};
	struct mc_tcp_opts o = {.naddrs = 1, .port_min = 20000, .port_max = 32000};
	char name[64];
	uint64_t unique;

	mc_assert(mc_rand_bytes(&unique, sizeof(unique)) == 0);
	(void)snprintf(name, sizeof(name), "@mc-fuzz-lane-%llx", (unsigned long long)unique);
	mc_assert(mc_loop_open("fuzz", &mc_clock_real, &loop) == 0);
	mc_assert(mc_region_table_open(&t) == 0);
	env.regions = t;
	mc_assert(mc_addr_parse("127.0.0.1", 0, &o.addrs[0]) == 0);
	mc_assert(mc_tcp_dev_open(&env, &o, &dev) == 0);
	mc_assert(mc_addr_unix(name, &address) == 0);
	mc_assert(mc_sock_listen(&address, 8, &listen_fd, NULL) == 0);
}

/* ---- slices ---- */

static uint8_t local[LOCAL_BYTES];
static struct mc_frag frags[SLICES][FRAGS];
static struct mc_slice slices[SLICES];
static unsigned ended[SLICES];
static const struct mc_remote_region rr = {.addr = 1 << 20, .len = 1 << 20, .id = 3, .gen = 9};

/* Bit i of `writes`: slice i writes. */
static void slices_make(uint8_t writes)
{
	memset(local, CANARY, sizeof(local));
	memset(ended, 0, sizeof(ended));
	for (unsigned i = 0; i < SLICES; i++) {
		slices[i] = (struct mc_slice){.op = writes >> i & 1 ? MC_OP_WRITE : MC_OP_READ,
					      .nfrags = 1 + i % FRAGS,
					      .frags = frags[i]};
		for (unsigned k = 0; k < slices[i].nfrags; k++) {
			frags[i][k] = (struct mc_frag){.local = local + FRAG_STEP +
								(size_t)(i * FRAGS + k) * FRAG_STEP,
						       .raddr = rr.addr + i * 1000 + k * FRAG_BYTES,
						       .len = FRAG_BYTES,
						       .rr = &rr};
			slices[i].len += FRAG_BYTES;
		}
	}
}

static void one_ended(const struct mc_slice *s)
{
	mc_assert(s >= slices && s < slices + SLICES);
	mc_assert(ended[s - slices]++ == 0);
}

/* Only the fragments of reads may have changed. */
static void local_check(void)
{
	for (unsigned i = 0; i < SLICES; i++)
		for (unsigned k = 0; k < slices[i].nfrags; k++)
			if (slices[i].op == MC_OP_READ)
				memset(frags[i][k].local, CANARY, FRAG_BYTES);
	for (size_t i = 0; i < sizeof(local); i++)
		mc_assert(local[i] == CANARY);
}

/* ---- the exchange ---- */

static void peer_drain(int fd)
{
	static uint8_t sink[16384];

	while (recv(fd, sink, sizeof(sink), MSG_DONTWAIT) > 0)
		;
}

/* @return false: the lane is broken */
static bool turn(struct mc_xlane *lane, unsigned *posted, unsigned upto)
{
	struct mc_slice *done[2];
	int rc = 0;

	while (*posted < upto) {
		struct mc_slice *s = &slices[*posted];

		rc = lane->ops->post(lane, &s, 1);
		if (rc <= 0)
			break;
		++*posted;
	}
	do {
		rc = lane->ops->poll(lane, 0, done, 2);
		for (int i = 0; i < rc; i++)
			one_ended(done[i]);
	} while (rc > 0);
	return rc == 0;
}

static void end(struct mc_xlane *lane, unsigned posted)
{
	uint8_t token[MC_XPORT_TOKEN_MAX];
	struct mc_list left, *node;

	mc_list_init(&left);
	(void)lane->ops->abort(lane, &left, token);
	while ((node = mc_list_pop_front(&left)))
		one_ended(mc_list_entry(node, struct mc_slice, link));
	for (unsigned i = 0; i < SLICES; i++)
		mc_assert(ended[i] == (i < posted ? 1 : 0));
	lane->ops->lane_close(lane);
}

static void exchange(struct mc_xlane *lane, int fd, const uint8_t *data, size_t len)
{
	size_t piece = data[0] & 0x38 ? (data[0] & 0x38u) : len, at = 2;
	/* One at a time takes the lane's short ways, all at once the long ones. */
	unsigned posted = 0, upto = data[0] & 0x40 ? SLICES : 1;
	bool is_up = turn(lane, &posted, upto);

	while (is_up && at < len) {
		ssize_t n =
		    send(fd, data + at, mc_min(piece, len - at), MSG_DONTWAIT | MSG_NOSIGNAL);

		if (n <= 0)
			break;
		at += (size_t)n;
		peer_drain(fd);
		is_up = turn(lane, &posted, upto);
		upto = mc_min(upto + 1, (unsigned)SLICES);
	}
	if (data[0] & 0x80)
		(void)shutdown(fd, SHUT_WR);
	if (is_up)
		(void)turn(lane, &posted, upto);
	end(lane, posted);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	struct mc_xpath path = {.peer_epoch = 0x1122, .peer_name = "fuzz"};
	unsigned kind;
	struct mc_xlane *lane;
	int64_t live;
	int fd, rc;

	if (!dev)
		setup();
	if (len < 2)
		return 0;
	live = mc_mem_live();
	path.remote = address;
	kind = data[0] & 3;
	rc = kind == 1 || kind == 2 ? mc_tcp_classic_lane_open(dev, &path, (int)kind, &lane)
				    : dev->ops->lane_open(dev, &path, &lane);
	mc_assert(rc == 0);
	mc_assert(mc_sock_accept(listen_fd, &fd, NULL) == 0);
	slices_make(data[1]);
	exchange(lane, fd, data, len);
	mc_fd_close(&fd);
	local_check();
	mc_assert(mc_mem_live() == live);
	return 0;
}
