/*
 * fuzz_coll_net.c: what ranks of other hosts send to a process group. The first byte says where the
 * rest comes from: 0 the data connection of a rank, 1 its control connection, 2 that of its
 * messages, else the first bytes of a connection. All are read by what reads them in a group.
 */
#include <string.h>

#include "raw_group.h"

#define STREAM_MAX (96u << 10) /* what a socket takes at once */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

static void forget(struct mc_coll *g, struct mc_coll_peer *p, int theirs[MC_COLL_CONNS])
{
	raw_peer_forget(g, p, theirs);
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
	struct mc_coll *g = raw_group();
	uint8_t message[64];
	int theirs[MC_COLL_CONNS];
	struct mc_coll_peer *p = g ? raw_peer(g, 1, theirs) : NULL;

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
