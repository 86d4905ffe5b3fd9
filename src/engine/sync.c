/*
 * sync.c: a transfer that its caller waits for. The caller's thread drives it: it borrows lanes,
 * writes and reads their sockets itself, and sleeps on them, so an exchange costs one wake-up each
 * way and no thread of ours is involved.
 */
#include "base/fork.h"
#include "engine/pump.h"

#define CLIMB_BYTES_MIN (4u << 20) /* shorter transfers tell little */

/* One session's lanes carry all of it. */
static bool is_for_caller(const struct mc_gop *op)
{
	for (size_t i = 0; i < op->nslices; i++)
		if (op->slices[i].session != op->slices[0].session ||
		    op->slices[i].route == MC_ROUTE_STAGED)
			return false;
	return true;
}

/* Bulk over one rail: which width is it to be measured with? @return MC_CLIMB_WIDTHS: not measured
 */
static unsigned climb_begin(struct mc_pump *p, const struct mc_gop *op)
{
	struct mc_session *s = p->session;
	uint64_t bytes = 0;
	unsigned width;

	if (s->kind != MC_PEER_OURS || s->tcp.n > 1 || op->slices[0].route != MC_ROUTE_TCP)
		return MC_CLIMB_WIDTHS;
	for (size_t i = 0; i < op->nslices && bytes < CLIMB_BYTES_MIN; i++)
		bytes += op->slices[i].s.len;
	if (bytes < CLIMB_BYTES_MIN)
		return MC_CLIMB_WIDTHS;
	pthread_mutex_lock(&s->mu);
	width = mc_climb_width(&s->climb[op->op], (unsigned)s->eng->conf.lanes);
	pthread_mutex_unlock(&s->mu);
	p->lanes_max = mc_climb_lanes(width);
	return width;
}

static void climb_end(struct mc_pump *p, const struct mc_gop *op, unsigned width)
{
	struct mc_session *s = p->session;

	if (width == MC_CLIMB_WIDTHS || op->status < 0)
		return;
	pthread_mutex_lock(&s->mu);
	mc_climb_note(&s->climb[op->op], width,
		      atomic_load_explicit(&op->bytes, memory_order_relaxed),
		      mc_now_ns() - op->begin_ns);
	pthread_mutex_unlock(&s->mu);
}

static void drive(struct mc_gop *op)
{
	uint64_t now_ns = op->begin_ns, block_ns, check_ns;
	struct mc_pump p;
	unsigned width;

	mc_pump_init(&p, op->slices[0].session, NULL, 0);
	width = climb_begin(&p, op);
	block_ns = mc_pump_check_ns(&p);
	check_ns = mc_time_after(now_ns, block_ns);
	for (size_t i = 0; i < op->nslices; i++)
		if (!op->slices[i].is_held)
			mc_pump_add(&p, &op->slices[i]);
	for (;;) {
		mc_pump_feed(&p, now_ns);
		if (op->slices_left == 0)
			break;
		if (now_ns < p.wait_until_ns && p.nflying == 0) {
			struct timespec ts = {.tv_nsec = (long)(p.wait_until_ns - now_ns)};

			(void)nanosleep(&ts, NULL);
		} else {
			mc_pump_poll(&p, block_ns);
		}
		if (op->slices_left == 0)
			break;
		now_ns = mc_now_ns();
		if (now_ns >= check_ns || now_ns >= op->soft_ns) {
			mc_pump_check(&p, now_ns);
			check_ns = mc_time_after(now_ns, block_ns);
			if (op->slices_left == 0)
				break;
		}
	}
	climb_end(&p, op, width);
	mc_pump_release(&p);
	mc_assert(p.nlanes == 0);
}

int mc_transfer_sync(struct mc_engine *eng, const struct mc_group *group, struct mc_diag *diag)
{
	struct mc_peer *peer;
	struct mc_group g;
	struct mc_gop *op;
	int rc;

	if (mc_engine_is_forked(eng))
		return -MC_E_FORKED;
	mc_group_read(&g, group);
	rc = mc_gop_open(eng, &g, diag, &op);
	if (rc < 0)
		return rc;
	rc = mc_gop_build(op, &g, op->soft_ns, diag, &peer);
	if (rc < 0) {
		mc_gop_put(op);
		return rc;
	}
	if (op->nslices > 0 && !is_for_caller(op)) {
		mc_async_start(op);
		(void)mc_gop_wait(op, MC_TIME_NEVER); /* it ends by its deadline */
	} else {
		mc_tap_set(op, g.tap);
		if (op->nslices > 0)
			drive(op);
		mc_gop_end(op);
	}
	rc = op->status;
	if (rc < 0 && diag)
		*diag = op->diag;
	mc_gop_put(op);
	return rc;
}

int mc_transfer_within(const struct mc_eslice *es, enum mc_op op, uint64_t local, uint64_t remote,
		       uint64_t len, struct mc_diag *diag)
{
	struct mc_iov l = {local, len}, r = {remote, len};
	struct mc_transfer x = {
	    .op = (uint8_t)op, .nlocal = 1, .nremote = 1, .local = &l, .remote = &r};
	struct mc_group g = {
	    .size = sizeof(g), .n = 1, .transfers = &x, .priority = (uint8_t)es->op->prio};
	uint64_t now_ns = mc_now_ns();
	struct mc_peer *peer;
	struct mc_gop *hop;
	int rc;

	if (now_ns >= es->op->soft_ns)
		return -MC_E_TIMEDOUT;
	g.deadline_ns = es->op->soft_ns - now_ns;
	rc = mc_gop_open(es->session->eng, &g, diag, &hop);
	if (rc < 0)
		return rc;
	hop->within = es;
	rc = mc_gop_build(hop, &g, hop->soft_ns, diag, &peer);
	if (rc == 0) {
		drive(hop);
		mc_gop_end(hop);
		rc = hop->status;
		if (rc < 0)
			*diag = hop->diag;
	}
	mc_gop_put(hop);
	return rc;
}
