/*
 * sync.c: a transfer that its caller waits for. The caller's thread drives it: it borrows lanes,
 * writes and reads their sockets itself, and sleeps on them, so an exchange costs one wake-up each
 * way and no thread of ours is involved.
 */
#include "base/fork.h"
#include "engine/pump.h"

static bool is_one_session(const struct mc_gop *op)
{
	for (size_t i = 1; i < op->nslices; i++)
		if (op->slices[i].session != op->slices[0].session)
			return false;
	return true;
}

static void drive(struct mc_gop *op)
{
	uint64_t now_ns = op->begin_ns, block_ns, check_ns;
	struct mc_pump p;

	mc_pump_init(&p, op->slices[0].session, NULL, 0);
	block_ns = mc_pump_check_ns(&p);
	check_ns = mc_time_after(now_ns, block_ns);
	for (size_t i = 0; i < op->nslices; i++)
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
	mc_pump_release(&p);
	mc_assert(p.nlanes == 0);
}

int mc_transfer_sync(struct mc_engine *eng, const struct mc_group *group, struct mc_diag *diag)
{
	struct mc_gop *op;
	int rc;

	if (mc_engine_is_forked(eng))
		return -MC_E_FORKED;
	rc = mc_gop_open(eng, group, diag, &op);
	if (rc < 0)
		return rc;
	if (op->nslices > 0 && !is_one_session(op)) {
		mc_async_start(op);
		(void)mc_gop_wait(op, MC_TIME_NEVER); /* it ends by its deadline */
	} else {
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
