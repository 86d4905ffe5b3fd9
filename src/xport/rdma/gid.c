/*
 * gid.c: which address of a port is used. Pure: what is known of each address comes as arguments.
 *
 * A port of an Ethernet device lists each address of its interfaces twice (RoCE v1 and v2), and in
 * a container also those of other network namespaces, which cannot be used here.
 */
#include <string.h>

#include "xport/rdma/priv.h"

enum kind {
	KIND_NONE,	 /* all zero */
	KIND_LINK_LOCAL, /* fe80::/10, 169.254.0.0/16 */
	KIND_IPV6,
	KIND_IPV4,
};

static enum kind kind_of(const uint8_t *raw)
{
	static const uint8_t zero[16];
	static const uint8_t mapped[12] = {[10] = 0xff, [11] = 0xff};

	if (memcmp(raw, zero, sizeof(zero)) == 0)
		return KIND_NONE;
	if (memcmp(raw, mapped, sizeof(mapped)) == 0)
		return raw[12] == 169 && raw[13] == 254 ? KIND_LINK_LOCAL : KIND_IPV4;
	return raw[0] == 0xfe && (raw[1] & 0xc0) == 0x80 ? KIND_LINK_LOCAL : KIND_IPV6;
}

/* Larger is better. An interface that is here comes first: without it nothing can be sent. */
static unsigned score(const struct mc_rdma_gid *g)
{
	return (unsigned)g->has_netdev << 4 | (unsigned)g->is_v2 << 3 |
	       (unsigned)g->is_addr_ours << 2 | (unsigned)kind_of(g->raw);
}

bool mc_rdma_gid_is_best(const struct mc_rdma_gid *g)
{
	return g->has_netdev && g->is_v2 && g->is_addr_ours && kind_of(g->raw) == KIND_IPV4;
}

int mc_rdma_gid_choose(const struct mc_rdma_gid *gids, unsigned n, int keep)
{
	int best = keep;

	for (unsigned i = 0; i < n; i++) {
		const struct mc_rdma_gid *g = &gids[i];

		if (kind_of(g->raw) == KIND_NONE)
			continue;
		if (best < 0 || score(g) > score(&gids[best]) ||
		    (score(g) == score(&gids[best]) && best != keep && g->index < gids[best].index))
			best = (int)i;
	}
	return best;
}
