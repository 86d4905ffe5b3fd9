/*
 * fuzz_coll_net.c: what ranks of other hosts send to a process group. The first byte says where the
 * rest comes from: 0 the data connection of a rank, 1 its control connection, 2 that of its
 * messages, else the first bytes of a connection. All are read by what reads them in a group.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include "base/clock.h"
#include "coll/net.h"

#define RANKS 3u
#define STREAM_MAX (96u << 10) /* what a socket takes at once */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

static struct mc_coll *group(void)
{
	static struct mc_coll_hub hub = {.silent_ns = MC_NS_PER_S};
	static struct mc_coll *g;
	struct mc_coll_board *board;

	if (g)
		return g;
	g = mc_aligned_alloc(MC_CACHELINE, sizeof(*g));
	board = mc_aligned_alloc(MC_CACHELINE, sizeof(*board));
	if (!g || !board || mc_loop_open("fuzz", &mc_clock_real, &hub.loop) < 0)
		return NULL;
	g->hub = &hub;
	g->inc = 7;
	g->ranks_max = RANKS;
	g->scratch_max = 1u << 20;
	g->board_fd = g->fd = -1;
	g->page = mmap(NULL, MC_COLL_PAGE_LEN, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
		       -1, 0);
	mc_list_init(&g->peers);
	pthread_mutex_init(&g->lock, NULL);
	pthread_mutex_init(&g->run_lock, NULL);
	atomic_store(&g->board, board);
	atomic_store(&g->active, (1u << RANKS) - 1);
	if (mc_coll_mail_open(g) < 0 || mc_coll_net_open(g) < 0)
		return NULL;
	/* Nobody drives the loop: what would be posted to it is not. */
	atomic_store(&g->net->is_kicked, true);
	return g;
}

/* A rank whose connections end in `ret_theirs`. */
static struct mc_coll_peer *peer(struct mc_coll *g, int ret_theirs[MC_COLL_CONNS])
{
	const struct mc_coll_hello h = {.slot = 1, .inc = 5};
	int ours[MC_COLL_CONNS], pair[2];

	for (int i = 0; i < MC_COLL_CONNS; i++) {
		if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair) < 0)
			return NULL;
		ours[i] = pair[0];
		ret_theirs[i] = pair[1];
	}
	if (mc_coll_net_take(g, &h, ours) < 0)
		return NULL;
	g->cur[1] = g->next[1];
	g->next[1] = NULL;
	return g->cur[1];
}

static void forget(struct mc_coll *g, struct mc_coll_peer *p, int theirs[MC_COLL_CONNS])
{
	mc_coll_ctl_stop(p);
	mc_list_del(&p->link);
	g->cur[1] = NULL;
	mc_coll_peer_free(p);
	for (int i = 0; i < MC_COLL_CONNS; i++)
		mc_fd_close(&theirs[i]);
	/* Messages that were set aside, and parts of one. */
	mc_coll_mail_free(g);
	if (mc_coll_mail_open(g) < 0)
		abort();
	atomic_store(&g->is_aborted, false);
	atomic_store(&atomic_load(&g->board)->gate, 0);
	atomic_store(&atomic_load(&g->board)->count, 0);
	atomic_store(&g->net->is_frozen, false);
	atomic_store(&g->net->broken, 0);
}

static void stream(const uint8_t *data, size_t len, enum mc_coll_conn kind)
{
	struct mc_coll *g = group();
	uint8_t message[64];
	int theirs[MC_COLL_CONNS];
	struct mc_coll_peer *p = g ? peer(g, theirs) : NULL;

	if (!p)
		return;
	if (send(theirs[kind - 1], data, mc_min(len, (size_t)STREAM_MAX), MSG_NOSIGNAL) >= 0)
		(void)shutdown(theirs[kind - 1], SHUT_WR);
	if (kind == MC_COLL_CONN_CTL)
		mc_coll_ctl_drain(p);
	else if (kind == MC_COLL_CONN_DATA)
		(void)mc_coll_net_wait(g, p, UINT64_MAX, 0);
	for (uint64_t tag = 0; kind == MC_COLL_CONN_MAIL && tag < 3; tag++)
		(void)mc_coll_recv(g, tag ? MC_COLL_ANY : 1, tag, message,
				   tag * sizeof(message) / 2, NULL);
	forget(g, p, theirs);
}

static void first_bytes(const uint8_t *data, size_t len)
{
	uint8_t bytes[MC_COLL_HELLO_LEN] = {0}, again[MC_COLL_HELLO_LEN];
	struct mc_wr w = mc_wr_make(again, sizeof(again));
	struct mc_coll_hello h;
	struct mc_coll_reply reply;
	struct mc_addr at;
	char hub[MC_COLL_HUB_ID_MAX];

	if (len)
		memcpy(bytes, data, mc_min(len, sizeof(bytes)));
	(void)mc_coll_reply_read(bytes, &reply);
	if (mc_coll_hello_read(bytes, &h) < 0)
		return;
	(void)mc_coll_address_net(h.address, &at, hub, NULL);
	mc_coll_hello_write(&w, &h);
	if (w.is_bad || mc_coll_hello_read(again, &h) < 0)
		abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	if (len > 1 && data[0] < MC_COLL_CONNS)
		stream(data + 1, len - 1, (enum mc_coll_conn)(MC_COLL_CONN_DATA + data[0]));
	else if (len > 1)
		first_bytes(data + 1, len - 1);
	return 0;
}
