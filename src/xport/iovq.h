/*
 * iovq.h: a list of byte ranges that a socket call consumes from the front. Pure.
 */
#ifndef MC_XPORT_IOVQ_H
#define MC_XPORT_IOVQ_H

#include <stddef.h>
#include <sys/uio.h>

#include "xport/xport.h"

#define MC_IOVQ_MAX (MC_SLICE_FRAGS_MAX + 4)

struct mc_iovq {
	unsigned at, n;
	size_t left; /* bytes in [at, n) */
	struct iovec v[MC_IOVQ_MAX];
};

static inline void mc_iovq_reset(struct mc_iovq *q)
{
	q->at = q->n = 0;
	q->left = 0;
}

static inline void mc_iovq_push(struct mc_iovq *q, void *base, size_t len)
{
	if (len == 0)
		return;
	q->left += len;
	/* Neighbours become one range: a contiguous batch costs one iovec. */
	if (q->n > q->at && (char *)q->v[q->n - 1].iov_base + q->v[q->n - 1].iov_len == base) {
		q->v[q->n - 1].iov_len += len;
		return;
	}
	mc_assert(q->n < MC_IOVQ_MAX);
	q->v[q->n].iov_base = base;
	q->v[q->n].iov_len = len;
	q->n++;
}

/** Drop the first `len` bytes (<= left). */
static inline void mc_iovq_eat(struct mc_iovq *q, size_t len)
{
	q->left -= len;
	while (len > 0) {
		struct iovec *v = &q->v[q->at];

		if (len < v->iov_len) {
			v->iov_base = (char *)v->iov_base + len;
			v->iov_len -= len;
			return;
		}
		len -= v->iov_len;
		q->at++;
	}
}

#endif
