/*
 * raw_group.h: a process group over hosts whose other ranks are bytes on sockets. Its loop has no
 * thread: what is posted to it waits for mc_loop_step().
 */
#ifndef MC_FUZZ_RAW_GROUP_H
#define MC_FUZZ_RAW_GROUP_H

#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include "base/clock.h"
#include "base/fork.h"
#include "coll/net.h"

#define RAW_RANKS 3u

/** Rank 0 of a group of RAW_RANKS, made once. @return NULL: no memory */
static inline struct mc_coll *raw_group(void)
{
	static struct mc_coll_port port;
	static struct mc_coll_hub hub = {.silent_ns = MC_NS_PER_S, .port = &port};
	static struct mc_coll *g;
	struct mc_coll_board *board;

	if (g)
		return g;
	g = mc_aligned_alloc(MC_CACHELINE, sizeof(*g));
	board = mc_aligned_alloc(MC_CACHELINE, sizeof(*board));
	if (!g || !board || mc_loop_open("fuzz", &mc_clock_real, &hub.loop) < 0 ||
	    mc_addr_parse("127.0.0.1", 0, &port.at) < 0)
		return NULL;
	g->hub = &hub;
	g->fork_gen = mc_fork_gen();
	g->inc = 7;
	g->ranks_max = RAW_RANKS;
	g->scratch_max = 1u << 20;
	g->board_fd = g->fd = -1;
	g->page = mmap(NULL, MC_COLL_PAGE_LEN, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
		       -1, 0);
	mc_list_init(&g->peers);
	pthread_mutex_init(&g->lock, NULL);
	pthread_mutex_init(&g->run_lock, NULL);
	atomic_store(&g->board, board);
	atomic_store(&g->active, (1u << RAW_RANKS) - 1);
	if (mc_coll_mail_open(g) < 0 || mc_coll_net_open(g) < 0)
		return NULL;
	/* What would be posted by the group is not. */
	atomic_store(&g->net->is_kicked, true);
	return g;
}

/** Rank `slot`, whose connections end in `ret_theirs`. @return NULL: no memory */
static inline struct mc_coll_peer *raw_peer(struct mc_coll *g, uint32_t slot,
					    int ret_theirs[MC_COLL_CONNS])
{
	const struct mc_coll_hello h = {.slot = slot, .inc = 5};
	int ours[MC_COLL_CONNS], pair[2];

	for (int i = 0; i < MC_COLL_CONNS; i++) {
		if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair) < 0)
			return NULL;
		ours[i] = pair[0];
		ret_theirs[i] = pair[1];
	}
	if (mc_coll_net_take(g, &h, ours) < 0)
		return NULL;
	g->cur[slot] = g->next[slot];
	g->next[slot] = NULL;
	return g->cur[slot];
}

static inline void raw_peer_forget(struct mc_coll *g, struct mc_coll_peer *p,
				   int theirs[MC_COLL_CONNS])
{
	mc_coll_ctl_stop(p);
	mc_list_del(&p->link);
	g->cur[p->slot] = NULL;
	mc_coll_peer_free(p);
	for (int i = 0; i < MC_COLL_CONNS; i++)
		mc_fd_close(&theirs[i]);
}

#endif
