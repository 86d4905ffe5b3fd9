/*
 * fuzz_coll_net.c: what ranks of other hosts send to a process group. The first byte says where the
 * rest comes from: 0 the data connection of a rank, 1 its control connection, else the first bytes
 * of a connection. Both connections are read by what reads them in a group.
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

/* A rank whose two connections end in `ret_theirs`: data, control. */
static struct mc_coll_peer *peer(struct mc_coll *g, int ret_theirs[2])
{
	const struct mc_coll_hello h = {.slot = 1, .inc = 5};
	int data[2], ctl[2];

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, data) < 0 ||
	    socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, ctl) < 0 ||
	    mc_coll_net_take(g, &h, &data[0], &ctl[0]) < 0)
		return NULL;
	ret_theirs[0] = data[1];
	ret_theirs[1] = ctl[1];
	g->cur[1] = g->next[1];
	g->next[1] = NULL;
	return g->cur[1];
}

static void forget(struct mc_coll *g, struct mc_coll_peer *p, int theirs[2])
{
	mc_coll_ctl_stop(p);
	mc_list_del(&p->link);
	g->cur[1] = NULL;
	mc_coll_peer_free(p);
	mc_fd_close(&theirs[0]);
	mc_fd_close(&theirs[1]);
	atomic_store(&atomic_load(&g->board)->gate, 0);
	atomic_store(&atomic_load(&g->board)->count, 0);
	atomic_store(&g->net->is_frozen, false);
	atomic_store(&g->net->broken, 0);
}

static void stream(const uint8_t *data, size_t len, bool is_ctl)
{
	struct mc_coll *g = group();
	int theirs[2];
	struct mc_coll_peer *p = g ? peer(g, theirs) : NULL;

	if (!p)
		return;
	if (send(theirs[is_ctl], data, mc_min(len, (size_t)STREAM_MAX), MSG_NOSIGNAL) >= 0)
		(void)shutdown(theirs[is_ctl], SHUT_WR);
	if (is_ctl)
		mc_coll_ctl_drain(p);
	else
		(void)mc_coll_net_wait(g, p, UINT64_MAX, 0);
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
	if (len > 1 && data[0] < 2)
		stream(data + 1, len - 1, data[0] == 1);
	else if (len > 1)
		first_bytes(data + 1, len - 1);
	return 0;
}
