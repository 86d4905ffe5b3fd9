/*
 * transports_rdma.c: the RDMA transport, on the fabric inside the process (verbs_fake.h), or on
 * real devices between two processes, when MC_CONFORM_RDMA lists some: lanes go from the first port
 * to the last.
 */
#include <stdio.h>
#include <stdlib.h>

#include "conform.h"
#include "verbs_fake.h"
#include "xport/rdma/rdma.h"

static int open_with(struct side *s, const struct mc_verbs *verbs)
{
	struct mc_xdev_env e = env_of(s);
	struct mc_rdma_opts o = {.devices = getenv("MC_CONFORM_RDMA"), .verbs = verbs};
	struct mc_diag diag = {""};
	int rc;

	if (verbs)
		o.sys_root = "/nonexistent";
	rc = mc_rdma_dev_open(&e, &o, &s->dev, &diag);
	if (rc < 0)
		print_error("%s\n", diag.text);
	return rc;
}

static int fake_dev_open(struct side *s)
{
	struct verbs_fake_conf conf = {.ndevs = 2, .max_inline = 64};

	return open_with(s, verbs_fake_open(&conf));
}

static int real_dev_open(struct side *s)
{
	return open_with(s, NULL);
}

static int mem_reg(struct side *s, uint8_t *at, size_t len, uint32_t rights,
		   uint8_t ret_key[MC_XPORT_TOKEN_MAX])
{
	uint32_t rkeys[MC_RDMA_PORTS_MAX];
	struct mc_diag diag = {""};
	int rc = mc_rdma_mem_add(s->inner, (uintptr_t)at, len, rights, rkeys, &diag);

	if (rc < 0)
		print_error("%s\n", diag.text);
	else
		mc_rdma_key_put(ret_key, rkeys);
	return rc;
}

static void mem_unreg(struct side *s, uint8_t *at, size_t len)
{
	assert_int_equal(mc_rdma_mem_del(s->inner, (uintptr_t)at, len), 0);
}

static unsigned ports(const struct side *s)
{
	return mc_rdma_ports(s->inner);
}

static void forget(struct side *s, uint64_t initiator_epoch)
{
	mc_rdma_forget(s->inner, initiator_epoch);
}

#define RDMA .mem_reg = mem_reg, .mem_unreg = mem_unreg, .ports = ports, .forget = forget
#define UNFIT_KEY                                                                                  \
	.unfit = {[SWEEP_ZERO] = "length 0 touches nothing, and a device does not look at its "    \
				 "key (InfiniBand, 9.7.5)",                                        \
		  [SWEEP_GENERATION] = "regions are known by keys"}
#define FAKE .flags = T_KEY, UNFIT_KEY, .dev_open = fake_dev_open, .clean = verbs_fake_close, RDMA
#define REAL .flags = T_KEY | T_REMOTE | T_SLOW, UNFIT_KEY, .dev_open = real_dev_open, RDMA

static const struct transport fakes[] = {
    {.name = "rdma", FAKE},
    {.name = "rdma-fault", .fault = UNRULY, FAKE},
};
static const struct transport reals[] = {
    {.name = "rdma", REAL},
    {.name = "rdma-fault", .fault = UNRULY, REAL},
};

const struct transport *transports_more(size_t *ret_n)
{
	*ret_n = MC_ARRAY_LEN(fakes);
	return getenv("MC_CONFORM_RDMA") ? reals : fakes;
}
