/*
 * rdma_fix.h: an RDMA device's lower half over the fake fabric: what tests of ports and memory
 * share. The loop is stepped by the test.
 */
#ifndef TESTS_RDMA_FIX_H
#define TESTS_RDMA_FIX_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "base/mem.h"
#include "verbs_fake.h"
#include "xport/rdma/priv.h"

struct rdma_fix {
	struct mc_loop *loop;
	struct mc_rdma_dev *dev;
	struct mc_rdma_opts opts;
	struct mc_diag diag;
};

/* Fabric and loop; nothing is opened yet. */
static inline void fix_start(struct rdma_fix *f, const struct verbs_fake_conf *conf)
{
	memset(f, 0, sizeof(*f));
	f->opts.verbs = verbs_fake_open(conf);
	f->opts.sys_root = "/nonexistent";
	assert_int_equal(mc_loop_open("test", &mc_clock_real, &f->loop), 0);
	f->dev = mc_calloc(1, sizeof(*f->dev));
	assert_non_null(f->dev);
}

static inline int fix_open(struct rdma_fix *f)
{
	memset(f->dev, 0, sizeof(*f->dev));
	f->diag.text[0] = '\0';
	f->dev->v = f->opts.verbs;
	f->dev->env.loops = &f->loop;
	f->dev->env.nloops = 1;
	mc_rdma_conf_load(&f->dev->conf);
	return mc_rdma_hcas_open(f->dev, &f->opts, &f->diag);
}

static inline void fix_end(struct rdma_fix *f)
{
	assert_int_equal(verbs_fake_live_all(), 0);
	verbs_fake_close();
	mc_loop_close(f->loop);
	mc_free(f->dev);
}

/* Let the loop see what happened. */
static inline void fix_step(struct rdma_fix *f)
{
	while (mc_loop_step(f->loop, 0) > 0) {
	}
}

#endif
