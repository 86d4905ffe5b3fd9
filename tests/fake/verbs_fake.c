/*
 * verbs_fake.c: the fabric as a whole: devices, protection domains, memory, asynchronous events,
 * and the failures that a test asks for.
 */
#include "verbs_fake.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "verbs_fake_priv.h"

#define UNACKED_WAIT_S 5
#define KEY_REMOTE 0x80000000u /* remote keys are never equal to local ones */
#define KEY_STEP 0x101u	       /* index and generation in one */
#define PAGE_BYTES 4096u

struct fake_fabric fab = {
    .lock = PTHREAD_MUTEX_INITIALIZER,
    .acked = PTHREAD_COND_INITIALIZER,
};

void *fake_alloc(size_t count, size_t size)
{
	void *p = calloc(count ? count : 1, size);

	mc_assert(p);
	return p;
}

/* ---- failures ---- */

static bool fails_now(enum verbs_fake_call call)
{
	if (fab.fail_in < 0 || (fab.fail_call != VERBS_FAKE_ANY && fab.fail_call != call))
		return false;
	if (fab.fail_in-- > 0)
		return false;
	fab.has_failed = true;
	return true;
}

int fake_enter(enum verbs_fake_call call, const struct ibv_context *ctx)
{
	mc_assert(fab.is_open);
	while (fab.block_call == call)
		(void)pthread_cond_wait(&fab.acked, &fab.lock); /* woken or not: looks again */
	fab.calls[call]++;
	fab.calls[VERBS_FAKE_ANY]++;
	if (fails_now(call))
		return fab.fail_err;
	return ctx && fake_dev_of(ctx)->is_dead ? EIO : 0;
}

int fake_enter_destroy(enum verbs_fake_call call, bool *ret_keep)
{
	int err = fake_enter(call, NULL);

	*ret_keep = err && err != EIO;
	return err;
}

void verbs_fake_fail(enum verbs_fake_call call, unsigned index, int err)
{
	pthread_mutex_lock(&fab.lock);
	fab.fail_call = call;
	fab.fail_in = index;
	fab.fail_err = err;
	fab.has_failed = false;
	pthread_mutex_unlock(&fab.lock);
}

void verbs_fake_block(enum verbs_fake_call call)
{
	pthread_mutex_lock(&fab.lock);
	fab.block_call = call;
	pthread_cond_broadcast(&fab.acked);
	pthread_mutex_unlock(&fab.lock);
}

bool verbs_fake_fail_clear(void)
{
	bool has_failed;

	pthread_mutex_lock(&fab.lock);
	has_failed = fab.has_failed;
	fab.has_failed = false;
	fab.fail_in = -1;
	fab.fail_wr_in = -1;
	pthread_mutex_unlock(&fab.lock);
	return has_failed;
}

unsigned verbs_fake_calls(enum verbs_fake_call call)
{
	unsigned n;

	pthread_mutex_lock(&fab.lock);
	n = fab.calls[call];
	pthread_mutex_unlock(&fab.lock);
	return n;
}

void verbs_fake_fail_wr(unsigned index, enum ibv_wc_status status)
{
	pthread_mutex_lock(&fab.lock);
	fab.fail_wr_in = index;
	fab.fail_wr_status = status;
	pthread_mutex_unlock(&fab.lock);
}

/* ---- events ---- */

int fake_events_open(struct fake_events *e)
{
	e->fd = eventfd(0, EFD_SEMAPHORE | EFD_CLOEXEC);
	return e->fd < 0 ? errno : 0;
}

void fake_events_close(struct fake_events *e)
{
	(void)close(e->fd); /* an eventfd has nothing to lose */
}

void fake_events_put(struct fake_events *e, void *of, const struct ibv_async_event *ev)
{
	struct fake_event *slot = &e->ring[(e->head + e->n) % FAKE_EVENTS_MAX];

	if (e->n == FAKE_EVENTS_MAX) /* nobody reads them */
		return;
	*slot = (struct fake_event){.of = of};
	if (ev)
		slot->ev = *ev;
	e->n++;
	mc_assert(eventfd_write(e->fd, 1) == 0);
}

void fake_events_purge(struct fake_events *e, const void *of)
{
	for (unsigned i = 0; i < e->n; i++) {
		struct fake_event *slot = &e->ring[(e->head + i) % FAKE_EVENTS_MAX];

		if (slot->of == of)
			slot->is_gone = true;
	}
}

int fake_events_get(struct fake_events *e, struct fake_event *ret)
{
	eventfd_t one;

	for (;;) {
		if (eventfd_read(e->fd, &one) < 0)
			return -1;
		pthread_mutex_lock(&fab.lock);
		mc_assert(e->n > 0);
		*ret = e->ring[e->head];
		e->head = (e->head + 1) % FAKE_EVENTS_MAX;
		e->n--;
		if (!ret->is_gone)
			return 0;
		pthread_mutex_unlock(&fab.lock);
	}
}

void fake_wait_acked(const unsigned *unacked, const char *what)
{
	struct timespec until;

	mc_assert(clock_gettime(CLOCK_REALTIME, &until) == 0);
	until.tv_sec += UNACKED_WAIT_S;
	while (*unacked) {
		if (pthread_cond_timedwait(&fab.acked, &fab.lock, &until) == ETIMEDOUT) {
			fprintf(stderr, "verbs_fake: %s: %u events were not acknowledged\n", what,
				*unacked);
			abort();
		}
	}
}

void fake_async(struct fake_dev *dev, enum ibv_event_type type, unsigned port)
{
	struct ibv_async_event ev = {.event_type = type, .element.port_num = (int)port};
	struct fake_ctx *ctx;

	mc_list_each (ctx, &fab.ctxs, link) {
		if (ctx->dev == dev)
			fake_events_put(&ctx->async, NULL, &ev);
	}
}

static int v_get_async_event(struct ibv_context *ibv, struct ibv_async_event *ret)
{
	struct fake_ctx *ctx = (struct fake_ctx *)ibv;
	struct fake_event e;
	int err;

	pthread_mutex_lock(&fab.lock);
	err = fake_enter(VERBS_FAKE_GET_ASYNC_EVENT, NULL);
	pthread_mutex_unlock(&fab.lock);
	if (err) {
		errno = err;
		return -1;
	}
	if (fake_events_get(&ctx->async, &e) < 0)
		return -1;
	*ret = e.ev;
	if (e.of && e.ev.event_type == IBV_EVENT_CQ_ERR)
		((struct fake_cq *)e.of)->unacked++;
	else if (e.of)
		((struct fake_qp *)e.of)->unacked++;
	pthread_mutex_unlock(&fab.lock);
	return 0;
}

static void v_ack_async_event(struct ibv_async_event *ev)
{
	pthread_mutex_lock(&fab.lock);
	switch (ev->event_type) {
	case IBV_EVENT_CQ_ERR:
		((struct fake_cq *)ev->element.cq)->unacked--;
		break;
	case IBV_EVENT_QP_FATAL:
	case IBV_EVENT_QP_REQ_ERR:
	case IBV_EVENT_QP_ACCESS_ERR:
		((struct fake_qp *)ev->element.qp)->unacked--;
		break;
	default:
		break;
	}
	pthread_cond_broadcast(&fab.acked);
	pthread_mutex_unlock(&fab.lock);
}

void verbs_fake_event(unsigned dev, enum ibv_event_type type, unsigned port)
{
	pthread_mutex_lock(&fab.lock);
	fake_async(&fab.dev[dev], type, port);
	pthread_mutex_unlock(&fab.lock);
}

/* ---- devices ---- */

struct fake_dev *fake_dev_of(const struct ibv_context *ctx)
{
	return ((const struct fake_ctx *)ctx)->dev;
}

static struct ibv_device **v_get_device_list(int *ret_n)
{
	struct ibv_device **list = NULL;
	int err;

	pthread_mutex_lock(&fab.lock);
	err = fake_enter(VERBS_FAKE_GET_DEVICE_LIST, NULL);
	if (!err) {
		list = fake_alloc(fab.conf.ndevs + 1, sizeof(struct ibv_device *));
		/* Backwards: nobody may rely on the order of the list. */
		for (unsigned i = 0; i < fab.conf.ndevs; i++)
			list[i] = &fab.dev[fab.conf.ndevs - 1 - i].ibv;
		if (ret_n)
			*ret_n = (int)fab.conf.ndevs;
		fab.live.lists++;
	}
	pthread_mutex_unlock(&fab.lock);
	errno = err;
	return list;
}

static void v_free_device_list(struct ibv_device **list)
{
	pthread_mutex_lock(&fab.lock);
	fab.live.lists--;
	pthread_mutex_unlock(&fab.lock);
	free(list);
}

static const char *v_get_device_name(struct ibv_device *device)
{
	return device->name;
}

static struct ibv_context *v_open_device(struct ibv_device *device)
{
	struct fake_dev *dev = (struct fake_dev *)device;
	struct fake_ctx *ctx = NULL;
	int err;

	pthread_mutex_lock(&fab.lock);
	err = fake_enter(VERBS_FAKE_OPEN_DEVICE, NULL);
	if (!err && dev->is_dead)
		err = EIO;
	if (err)
		goto out;
	ctx = fake_alloc(1, sizeof(*ctx));
	err = fake_events_open(&ctx->async);
	if (err) {
		free(ctx);
		ctx = NULL;
		goto out;
	}
	ctx->dev = dev;
	ctx->ibv.device = device;
	ctx->ibv.async_fd = ctx->async.fd;
	ctx->ibv.cmd_fd = -1;
	ctx->ibv.num_comp_vectors = 1;
	ctx->ibv.ops.post_send = fake_post_send;
	ctx->ibv.ops.poll_cq = fake_poll_cq;
	ctx->ibv.ops.req_notify_cq = fake_req_notify_cq;
	mc_list_push_back(&fab.ctxs, &ctx->link);
	fab.live.contexts++;
out:
	pthread_mutex_unlock(&fab.lock);
	errno = err;
	return ctx ? &ctx->ibv : NULL;
}

static int v_close_device(struct ibv_context *ibv)
{
	struct fake_ctx *ctx = (struct fake_ctx *)ibv;
	bool is_kept;
	int err;

	pthread_mutex_lock(&fab.lock);
	err = fake_enter_destroy(VERBS_FAKE_CLOSE_DEVICE, &is_kept);
	if (!is_kept && ctx->npds + ctx->nchannels + ctx->ncqs > 0) {
		err = EBUSY;
		is_kept = true;
	}
	if (!is_kept) {
		mc_list_del(&ctx->link);
		fake_events_close(&ctx->async);
		fab.live.contexts--;
		free(ctx);
	}
	pthread_mutex_unlock(&fab.lock);
	return err;
}

static int v_query_device(struct ibv_context *ctx, struct ibv_device_attr *attr)
{
	int err;

	pthread_mutex_lock(&fab.lock);
	err = fake_enter(VERBS_FAKE_QUERY_DEVICE, ctx);
	*attr = (struct ibv_device_attr){
	    .max_mr_size = fab.conf.max_mr_size,
	    .page_size_cap = PAGE_BYTES,
	    .max_qp = (int)fab.conf.max_qp,
	    .max_qp_wr = (int)fab.conf.max_qp_wr,
	    .max_sge = (int)fab.conf.max_sge,
	    .max_sge_rd = (int)fab.conf.max_sge,
	    .max_cq = (int)fab.conf.max_qp * 2,
	    .max_cqe = (int)fab.conf.max_cqe,
	    .max_mr = (int)fab.conf.max_mr,
	    .max_pd = 1024,
	    .max_qp_rd_atom = (int)fab.conf.max_rd_atomic,
	    .max_qp_init_rd_atom = (int)fab.conf.max_rd_atomic,
	    .max_pkeys = 1,
	    .phys_port_cnt = (uint8_t)fab.conf.nports,
	};
	pthread_mutex_unlock(&fab.lock);
	return err;
}

static struct fake_port *port_of(const struct ibv_context *ctx, unsigned port)
{
	if (port < 1 || port > fab.conf.nports)
		return NULL;
	return &fake_dev_of(ctx)->port[port - 1];
}

static int v_query_port(struct ibv_context *ctx, uint8_t num, struct ibv_port_attr *attr)
{
	struct fake_port *port;
	int err;

	pthread_mutex_lock(&fab.lock);
	err = fake_enter(VERBS_FAKE_QUERY_PORT, ctx);
	port = port_of(ctx, num);
	if (!err && !port)
		err = EINVAL;
	if (!err) {
		bool is_down = port->link == VERBS_FAKE_DOWN;

		*attr = (struct ibv_port_attr){
		    .state = is_down ? IBV_PORT_DOWN : IBV_PORT_ACTIVE,
		    .max_mtu = IBV_MTU_4096,
		    .active_mtu = fab.conf.is_infiniband ? IBV_MTU_4096 : IBV_MTU_1024,
		    .gid_tbl_len = VERBS_FAKE_GIDS,
		    .max_msg_sz = 1u << 30,
		    .pkey_tbl_len = 1,
		    .lid = port->lid,
		    .active_width = 2, /* 4 lanes */
		    .active_speed = 4, /* 10 Gbit/s */
		    .link_layer = fab.conf.is_infiniband ? IBV_LINK_LAYER_INFINIBAND
							 : IBV_LINK_LAYER_ETHERNET,
		};
	}
	pthread_mutex_unlock(&fab.lock);
	return err;
}

static int v_query_gid(struct ibv_context *ctx, uint8_t num, int index, union ibv_gid *ret)
{
	struct fake_port *port;
	int err;

	pthread_mutex_lock(&fab.lock);
	err = fake_enter(VERBS_FAKE_QUERY_GID, ctx);
	port = port_of(ctx, num);
	if (!err && (!port || index < 0 || index >= (int)VERBS_FAKE_GIDS))
		err = EINVAL;
	if (!err)
		*ret = port->gid[index];
	pthread_mutex_unlock(&fab.lock);
	errno = err;
	return err ? -1 : 0;
}

void verbs_fake_gid_set(unsigned dev, unsigned port, unsigned index, const uint8_t gid[16])
{
	pthread_mutex_lock(&fab.lock);
	memcpy(fab.dev[dev].port[port - 1].gid[index].raw, gid, FAKE_GID_BYTES);
	fake_async(&fab.dev[dev], IBV_EVENT_GID_CHANGE, port);
	pthread_mutex_unlock(&fab.lock);
}

void verbs_fake_lid_set(unsigned dev, unsigned port, uint16_t lid)
{
	pthread_mutex_lock(&fab.lock);
	fab.dev[dev].port[port - 1].lid = lid;
	fake_async(&fab.dev[dev], IBV_EVENT_LID_CHANGE, port);
	pthread_mutex_unlock(&fab.lock);
}

void verbs_fake_gid_get(unsigned dev, unsigned port, unsigned index, uint8_t ret_gid[16])
{
	pthread_mutex_lock(&fab.lock);
	memcpy(ret_gid, fab.dev[dev].port[port - 1].gid[index].raw, FAKE_GID_BYTES);
	pthread_mutex_unlock(&fab.lock);
}

void verbs_fake_kill_dev(unsigned dev)
{
	struct fake_qp *qp;

	pthread_mutex_lock(&fab.lock);
	fab.dev[dev].is_dead = true;
	mc_list_each (qp, &fab.qps, link) {
		if (fake_dev_of(qp->ibv.context) == &fab.dev[dev])
			fake_qp_break(qp);
	}
	fake_async(&fab.dev[dev], IBV_EVENT_DEVICE_FATAL, 0);
	pthread_mutex_unlock(&fab.lock);
}

void verbs_fake_link(unsigned dev, unsigned port, enum verbs_fake_link link)
{
	struct fake_port *p = &fab.dev[dev].port[port - 1];
	enum verbs_fake_link old;

	pthread_mutex_lock(&fab.lock);
	old = p->link;
	p->link = link;
	if (link == VERBS_FAKE_DOWN && old != link)
		fake_async(&fab.dev[dev], IBV_EVENT_PORT_ERR, port);
	else if (old == VERBS_FAKE_DOWN && old != link)
		fake_async(&fab.dev[dev], IBV_EVENT_PORT_ACTIVE, port);
	fake_wire_run();
	pthread_mutex_unlock(&fab.lock);
}

static int v_fork_init(void)
{
	int err;

	pthread_mutex_lock(&fab.lock);
	err = fake_enter(VERBS_FAKE_FORK_INIT, NULL);
	pthread_mutex_unlock(&fab.lock);
	return err;
}

/* ---- memory ---- */

static struct ibv_pd *v_alloc_pd(struct ibv_context *ctx)
{
	struct fake_pd *pd = NULL;
	int err;

	pthread_mutex_lock(&fab.lock);
	err = fake_enter(VERBS_FAKE_ALLOC_PD, ctx);
	if (!err) {
		pd = fake_alloc(1, sizeof(*pd));
		pd->ibv.context = ctx;
		((struct fake_ctx *)ctx)->npds++;
		fab.live.pds++;
	}
	pthread_mutex_unlock(&fab.lock);
	errno = err;
	return pd ? &pd->ibv : NULL;
}

static int v_dealloc_pd(struct ibv_pd *ibv)
{
	struct fake_pd *pd = (struct fake_pd *)ibv;
	bool is_kept;
	int err;

	pthread_mutex_lock(&fab.lock);
	err = fake_enter_destroy(VERBS_FAKE_DEALLOC_PD, &is_kept);
	if (!is_kept && pd->nmrs + pd->nqps > 0) {
		err = EBUSY;
		is_kept = true;
	}
	if (!is_kept) {
		((struct fake_ctx *)ibv->context)->npds--;
		fab.live.pds--;
		free(pd);
	}
	pthread_mutex_unlock(&fab.lock);
	return err;
}

static bool page_is_mapped(uint64_t addr)
{
	unsigned char vec;

	return mincore((void *)(uintptr_t)(addr & ~(uint64_t)(PAGE_BYTES - 1)), 1, &vec) == 0;
}

/* May the first page be written? */
static bool page_is_writable(uint64_t addr)
{
	FILE *maps = fopen("/proc/self/maps", "re");
	unsigned long long from, to;
	bool is_writable = false;
	char line[512], perms[8];

	mc_assert(maps);
	while (fgets(line, sizeof(line), maps))
		if (sscanf(line, "%llx-%llx %7s", &from, &to, perms) == 3 && addr >= from &&
		    addr < to)
			is_writable = perms[1] == 'w';
	(void)fclose(maps);
	return is_writable;
}

/* What the kernel and the device would say to this range. */
static int mr_check(const struct ibv_pd *pd, uint64_t addr, uint64_t len, unsigned access)
{
	uint64_t end;

	if (!len || __builtin_add_overflow(addr, len, &end) || len > fab.conf.max_mr_size)
		return EINVAL;
	if ((access & IBV_ACCESS_REMOTE_WRITE) && !(access & IBV_ACCESS_LOCAL_WRITE))
		return EINVAL;
	if (fake_dev_of(pd->context)->nmrs >= fab.conf.max_mr)
		return ENOMEM;
	if (fab.conf.lock_bytes_max && fab.mr_bytes + len > fab.conf.lock_bytes_max)
		return ENOMEM;
	if (!page_is_mapped(addr) || !page_is_mapped(end - 1))
		return EFAULT;
	return !(access & IBV_ACCESS_LOCAL_WRITE) || page_is_writable(addr) ? 0 : EFAULT;
}

static struct ibv_mr *v_reg_mr_iova2(struct ibv_pd *pd, void *addr, size_t len, uint64_t iova,
				     unsigned access)
{
	struct fake_mr *mr = NULL;
	int err;

	pthread_mutex_lock(&fab.lock);
	err = fake_enter(VERBS_FAKE_REG_MR, pd->context);
	if (!err)
		err = iova == (uintptr_t)addr ? mr_check(pd, iova, len, access) : EINVAL;
	if (!err) {
		mr = fake_alloc(1, sizeof(*mr));
		mr->ibv =
		    (struct ibv_mr){.context = pd->context, .pd = pd, .addr = addr, .length = len};
		fab.next_mr += KEY_STEP;
		mr->ibv.lkey = fab.next_mr & ~KEY_REMOTE;
		mr->ibv.rkey = mr->ibv.lkey | KEY_REMOTE;
		mr->access = access;
		mc_list_push_back(&fab.mrs, &mr->link);
		((struct fake_pd *)pd)->nmrs++;
		fake_dev_of(pd->context)->nmrs++;
		fab.mr_bytes += len;
		fab.live.mrs++;
	}
	pthread_mutex_unlock(&fab.lock);
	errno = err;
	return mr ? &mr->ibv : NULL;
}

static struct ibv_mr *v_reg_mr(struct ibv_pd *pd, void *addr, size_t len, int access)
{
	return v_reg_mr_iova2(pd, addr, len, (uintptr_t)addr, (unsigned)access);
}

static int v_dereg_mr(struct ibv_mr *ibv)
{
	struct fake_mr *mr = (struct fake_mr *)ibv;
	bool is_kept;
	int err;

	pthread_mutex_lock(&fab.lock);
	err = fake_enter_destroy(VERBS_FAKE_DEREG_MR, &is_kept);
	if (!is_kept) {
		mc_list_del(&mr->link);
		((struct fake_pd *)ibv->pd)->nmrs--;
		fake_dev_of(ibv->context)->nmrs--;
		fab.mr_bytes -= ibv->length;
		fab.live.mrs--;
		free(mr);
	}
	pthread_mutex_unlock(&fab.lock);
	return err;
}

struct fake_mr *fake_mr_find(const struct fake_dev *dev, const struct ibv_pd *pd, uint32_t key,
			     bool is_remote)
{
	struct fake_mr *mr;

	mc_list_each (mr, &fab.mrs, link) {
		if ((is_remote ? mr->ibv.rkey : mr->ibv.lkey) == key)
			return fake_dev_of(mr->ibv.context) == dev && mr->ibv.pd == pd ? mr : NULL;
	}
	return NULL;
}

unsigned verbs_fake_mr_access(uint32_t key)
{
	unsigned access = 0;
	struct fake_mr *mr;

	pthread_mutex_lock(&fab.lock);
	mc_list_each (mr, &fab.mrs, link) {
		if (mr->ibv.lkey == key || mr->ibv.rkey == key)
			access = mr->access;
	}
	pthread_mutex_unlock(&fab.lock);
	return access;
}

/* ---- the fabric ---- */

static void conf_defaults(struct verbs_fake_conf *c)
{
	c->ndevs = c->ndevs ? c->ndevs : 1;
	c->nports = c->nports ? c->nports : 1;
	c->max_qp = c->max_qp ? c->max_qp : 1024;
	c->max_mr = c->max_mr ? c->max_mr : 4096;
	c->max_cqe = c->max_cqe ? c->max_cqe : 65536;
	c->max_qp_wr = c->max_qp_wr ? c->max_qp_wr : 1024;
	c->max_sge = c->max_sge ? c->max_sge : 16;
	c->max_rd_atomic = c->max_rd_atomic ? c->max_rd_atomic : 16;
	c->max_mr_size = c->max_mr_size ? c->max_mr_size : 1ull << 40;
	c->seed = c->seed ? c->seed : 1;
	mc_assert(c->ndevs <= VERBS_FAKE_DEVS_MAX && c->nports <= VERBS_FAKE_PORTS_MAX);
}

static void dev_init(struct fake_dev *dev, unsigned index)
{
	*dev = (struct fake_dev){.index = index};
	dev->ibv.node_type = IBV_NODE_CA;
	dev->ibv.transport_type = IBV_TRANSPORT_IB;
	(void)snprintf(dev->ibv.name, sizeof(dev->ibv.name), "fake%u", index);
	(void)snprintf(dev->ibv.dev_name, sizeof(dev->ibv.dev_name), "uverbs%u", index);
	for (unsigned p = 0; p < fab.conf.nports; p++) {
		uint8_t *local = dev->port[p].gid[0].raw, *ip = dev->port[p].gid[1].raw;

		local[0] = 0xfe;
		local[1] = 0x80;
		local[14] = (uint8_t)(index + 1);
		local[15] = (uint8_t)(p + 1);
		if (fab.conf.is_infiniband)
			dev->port[p].lid = (uint16_t)((index + 1) * 16 + p + 1);
		ip[10] = ip[11] = 0xff;
		ip[12] = 10;
		ip[13] = 77;
		ip[14] = (uint8_t)index;
		ip[15] = (uint8_t)(p + 1);
	}
}

const struct mc_verbs *verbs_fake_open(const struct verbs_fake_conf *conf)
{
	static struct mc_verbs table;

	if (fab.is_open)
		verbs_fake_close();
	fab.conf = *conf;
	conf_defaults(&fab.conf);
	mc_list_init(&fab.ctxs);
	mc_list_init(&fab.mrs);
	mc_list_init(&fab.cqs);
	mc_list_init(&fab.qps);
	mc_list_init(&fab.wire);
	memset(&fab.live, 0, sizeof(fab.live));
	memset(fab.calls, 0, sizeof(fab.calls));
	fab.hold = VERBS_FAKE_PROMPT;
	fab.next_mr = 0x100;
	fab.next_qpn = 0x11;
	fab.mr_bytes = 0;
	fab.rand = fab.conf.seed;
	fab.fail_in = fab.fail_wr_in = -1;
	fab.has_failed = false;
	fab.block_call = VERBS_FAKE_ANY;
	for (unsigned i = 0; i < fab.conf.ndevs; i++)
		dev_init(&fab.dev[i], i);
	fab.is_open = true;
	table = (struct mc_verbs){
	    .get_device_list = v_get_device_list,
	    .free_device_list = v_free_device_list,
	    .get_device_name = v_get_device_name,
	    .open_device = v_open_device,
	    .close_device = v_close_device,
	    .query_device = v_query_device,
	    .query_port = v_query_port,
	    .query_gid = v_query_gid,
	    .alloc_pd = v_alloc_pd,
	    .dealloc_pd = v_dealloc_pd,
	    .reg_mr = v_reg_mr,
	    .reg_mr_iova2 = v_reg_mr_iova2,
	    .dereg_mr = v_dereg_mr,
	    .get_async_event = v_get_async_event,
	    .ack_async_event = v_ack_async_event,
	    .fork_init = v_fork_init,
	};
	fake_cq_verbs(&table);
	fake_qp_verbs(&table);
	return &table;
}

void verbs_fake_live(struct verbs_fake_live *ret)
{
	pthread_mutex_lock(&fab.lock);
	*ret = fab.live;
	pthread_mutex_unlock(&fab.lock);
}

unsigned verbs_fake_live_all(void)
{
	struct verbs_fake_live n;

	verbs_fake_live(&n);
	return n.lists + n.contexts + n.pds + n.mrs + n.channels + n.cqs + n.qps;
}

void verbs_fake_close(void)
{
	struct fake_packet *p;
	struct fake_ctx *ctx;
	struct fake_mr *mr;
	struct fake_cq *cq;
	struct fake_qp *qp;

	if (!fab.is_open)
		return;
	(void)verbs_fake_fail_clear(); /* nobody asks any more */
	fab.is_open = false;
	mc_list_each (p, &fab.wire, link) {
		free(p->data);
		free(p);
	}
	mc_list_each (qp, &fab.qps, link)
		fake_qp_free(qp);
	mc_list_each (cq, &fab.cqs, link) {
		free(cq->ring);
		free(cq);
	}
	mc_list_each (mr, &fab.mrs, link)
		free(mr);
	mc_list_each (ctx, &fab.ctxs, link) {
		fake_events_close(&ctx->async);
		free(ctx);
	}
}
