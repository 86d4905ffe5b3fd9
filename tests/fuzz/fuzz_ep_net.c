/*
 * fuzz_ep_net.c: what ranks of other hosts send for expert parallelism, into a half that is under
 * way. Of the first byte bit 0 says that ranks 1 and 2 both send the rest (else rank 1 alone), bit
 * 1 that it is sent to the door instead, which rank 2 has not come through yet, bit 2 that the half
 * is a combine. If that decides the half, its end reads what they have put into the slots.
 */
#include <mooncake/ep.h>
#include <poll.h>

#include "coll/shmem.h"
#include "ep/net.h"
#include "raw_group.h"

#define STREAM_MAX (96u << 10) /* what a socket takes at once */
#define EXPERTS 6u
#define HIDDEN 16u
#define TOPK 2u
#define TOKENS 4u
#define LOCAL (EXPERTS / RAW_RANKS)
#define ROOM (RAW_RANKS * TOKENS)

enum { BOTH = 1, DOOR = 2, COMBINE = 4 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

static const struct mc_ep_shape shape = {.ranks = RAW_RANKS,
					 .experts = EXPERTS,
					 .hidden = HIDDEN,
					 .topk = TOPK,
					 .tokens_max = TOKENS,
					 .tokens = TOKENS};
static const struct mc_ep_patience for_ever = {.timeout_ns = MC_EP_NEVER};

struct crew {
	struct mc_coll *g;
	struct mc_ep *ep;
	struct mc_coll_peer *p[RAW_RANKS];
	int conns[RAW_RANKS][MC_COLL_CONNS];
	int theirs[RAW_RANKS]; /* ends of the links */
};

/* As after a meeting of all, which is the group's matter. */
static void crew_make(struct crew *c, bool is_door)
{
	int pair[2];

	c->g = raw_group();
	mc_assert(c->g);
	mc_assert(mc_coll_shmem_make("fuzz", MC_COLL_PAGE_LEN, &c->g->fd) == 0);
	c->g->side_next = 0;
	mc_assert(mc_ep_open(c->g, NULL, &c->ep) == 0);
	c->ep->epoch = 1;
	atomic_store(&c->ep->members, (1u << RAW_RANKS) - 1);
	mc_assert(mc_ep_enter(c->ep, 1) == 0);
	c->ep->net->epoch = 1;
	c->ep->net->key[0] = 1;
	c->ep->net->key[1] = 2;
	c->ep->net->members = ((1u << RAW_RANKS) - 1) & ~1ull;
	for (unsigned q = 1; q < RAW_RANKS; q++) {
		void *at = mmap(NULL, MC_EP_REGION, PROT_READ | PROT_WRITE,
				MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

		mc_assert(at != MAP_FAILED);
		c->p[q] = raw_peer(c->g, q, c->conns[q]);
		mc_assert(c->p[q]);
		/* Nobody probes a host that is known to be silent. */
		atomic_store(&c->p[q]->wire->fate, MC_COLL_SILENT);
		c->ep->peer[q] = (struct mc_ep_peer){.p = c->p[q], .memory = at, .page = at};
		c->theirs[q] = -1;
		if (is_door && q == 2)
			continue;
		mc_assert(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair) == 0);
		c->theirs[q] = pair[1];
		mc_ep_link_use(&c->ep->net->link[q], pair[0], true);
	}
}

static void crew_end(struct crew *c)
{
	for (unsigned q = 1; q < RAW_RANKS; q++)
		mc_fd_close(&c->theirs[q]);
	mc_ep_close(c->ep);
	for (unsigned q = 1; q < RAW_RANKS; q++)
		raw_peer_forget(c->g, c->p[q], c->conns[q]);
	mc_fd_close(&c->g->fd);
}

static struct mc_ep_half *begin(struct crew *c, bool is_combine)
{
	static const uint16_t rows[LOCAL * ROOM * HIDDEN];
	static const int64_t topk[TOKENS * TOPK] = {0, 1, 2, 3, 4, 5, 0, 4};
	const struct mc_ep_rows in = {.format = MC_EP_SAME, .elem_bytes = 2, .rows = rows};
	int64_t ranges[LOCAL * RAW_RANKS];
	struct mc_ep_half *h = NULL;

	/* Two rows of every source for every expert. */
	for (unsigned i = 0; i < LOCAL * RAW_RANKS; i++)
		ranges[i] = (int64_t)(i % RAW_RANKS * 2) << 32 | 2;
	if (is_combine)
		mc_assert(mc_ep_combine_begin(c->ep, &shape, rows, false, topk, ranges, &for_ever,
					      NULL, &h) == 0);
	else
		mc_assert(mc_ep_dispatch_begin(c->ep, &shape, &in, topk, &for_ever, NULL, &h) == 0);
	return h;
}

static void end(struct crew *c, struct mc_ep_half *h, bool is_combine)
{
	static uint16_t rows[LOCAL * ROOM * HIDDEN];
	static int32_t counts[LOCAL], tokens[LOCAL * ROOM];
	static int64_t ranges[LOCAL * RAW_RANKS];
	const struct mc_ep_arrived out = {
	    .rows = rows, .counts = counts, .tokens = tokens, .ranges = ranges};
	struct mc_coll_result result;
	struct mc_ep_look look;
	uint64_t ranks;

	if (mc_ep_deal_look(h, &look, &ranks) == 0) {
		(void)mc_ep_deal_is_heard(h, mc_ep_deal_ask(h));
		mc_ep_half_free(h);
	} else if (is_combine) {
		mc_assert(mc_ep_combine_end(h, NULL, rows, NULL, &result) == result.rc);
	} else if (mc_ep_dispatch_end(h, &out, NULL, &result) == 0) {
		for (unsigned e = 0; e < LOCAL; e++)
			mc_assert(counts[e] >= 0 && counts[e] <= (int32_t)ROOM);
	}
	while (mc_loop_step(c->g->hub->loop, 0) > 0)
		;
}

static void say(int fd, const uint8_t *data, size_t len)
{
	if (send(fd, data, mc_min(len, (size_t)STREAM_MAX), MSG_NOSIGNAL) >= 0)
		(void)shutdown(fd, SHUT_WR);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	struct crew c;
	struct mc_ep_half *h;
	bool is_combine;
	int door = -1;

	if (len < 2)
		return 0;
	crew_make(&c, data[0] & DOOR);
	is_combine = data[0] & COMBINE;
	h = begin(&c, is_combine);
	while (mc_loop_step(c.g->hub->loop, 0) > 0)
		;
	if (data[0] & DOOR) {
		mc_assert(mc_sock_connect(&c.ep->net->at, NULL, &door) == 0);
		mc_assert(mc_sock_wait(door, POLLOUT, mc_now_ns() + MC_NS_PER_S) == 0);
		say(door, data + 1, len - 1);
	} else {
		say(c.theirs[1], data + 1, len - 1);
		if (data[0] & BOTH)
			say(c.theirs[2], data + 1, len - 1);
	}
	while (mc_loop_step(c.g->hub->loop, 0) > 0)
		;
	end(&c, h, is_combine);
	mc_fd_close(&door);
	crew_end(&c);
	return 0;
}
