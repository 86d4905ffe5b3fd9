/*
 * ep_ext.h: what the two kinds of expert parallelism share: on processors (ep.c), on GPUs
 * (ep_cuda.c).
 */
#ifndef MC_PY_EP_EXT_H
#define MC_PY_EP_EXT_H

#include "coll_ext.h"

#include <mooncake/ep.h>

/* ranks, experts, hidden, topk, tokens_max, tokens, align; active, timeout_ns */
#define MC_PY_SHAPE "(IIIIIII)KK"

struct mc_py_begin {
	struct mc_ep_shape shape;
	unsigned long long active, timeout_ns;
};

#define MC_PY_SHAPE_ARGS(b)                                                                        \
	&(b)->shape.ranks, &(b)->shape.experts, &(b)->shape.hidden, &(b)->shape.topk,              \
	    &(b)->shape.tokens_max, &(b)->shape.tokens, &(b)->shape.align, &(b)->active,           \
	    &(b)->timeout_ns

static inline void *mc_py_at(unsigned long long address)
{
	return (void *)(uintptr_t)address;
}

static inline struct mc_ep_patience mc_py_patience(const struct mc_py_begin *b)
{
	return (struct mc_ep_patience){.active = mc_py_at(b->active), .timeout_ns = b->timeout_ns};
}

/** -> (code, text) */
static inline PyObject *mc_py_ep_failed(int rc, const struct mc_diag *diag)
{
	return Py_BuildValue("(is)", rc, diag->text[0] ? diag->text : mc_err_text(rc));
}

/** -> (code, text, ranks, failed) */
static inline PyObject *mc_py_ep_ended(int rc, const struct mc_diag *diag,
				       const struct mc_coll_result *r)
{
	return Py_BuildValue("(isKK)", rc, diag->text[0] ? diag->text : mc_err_text(rc),
			     (unsigned long long)r->ranks, (unsigned long long)r->failed);
}

#endif
