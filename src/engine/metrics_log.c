/*
 * metrics_log.c: upstream's MC_TE_METRIC: a line with what moved in each interval, written whatever
 * the log level is.
 */
#include "base/log.h"
#include "engine/metrics.h"
#include "engine/priv.h"

struct mc_metrics_log {
	struct mc_engine *eng;
	struct mc_timer timer; /* on the first loop */
	uint64_t interval_ns, last_ns;
	struct mc_metrics_sum last;
};

static void on_time(struct mc_timer *t)
{
	struct mc_metrics_log *m = mc_container_of(t, struct mc_metrics_log, timer);
	struct mc_loop *loop = m->eng->loops[0];
	uint64_t now_ns = mc_loop_now(loop);
	double s = (double)(now_ns - m->last_ns) * 1e-9;
	static struct mc_log_site site;
	struct mc_metrics_sum sum;

	mc_metrics_sum(m->eng, &sum);
	mc_log_write(&site, MC_LOG_INFO, "transfer engine metrics",
		     "segment=%s read_MBps=%.1f write_MBps=%.1f groups=%llu failed=%llu "
		     "read_p50_us=%.0f write_p50_us=%.0f",
		     m->eng->name,
		     (double)(sum.bytes[MC_OP_READ] - m->last.bytes[MC_OP_READ]) / s / 1e6,
		     (double)(sum.bytes[MC_OP_WRITE] - m->last.bytes[MC_OP_WRITE]) / s / 1e6,
		     (unsigned long long)(sum.groups - m->last.groups),
		     (unsigned long long)(sum.failed - m->last.failed), sum.p50_us[MC_OP_READ],
		     sum.p50_us[MC_OP_WRITE]);
	m->last = sum;
	m->last_ns = now_ns;
	mc_loop_timer_set(loop, t, mc_time_after(now_ns, m->interval_ns));
}

static void begin(void *arg)
{
	struct mc_metrics_log *m = arg;

	m->last_ns = mc_loop_now(m->eng->loops[0]);
	mc_loop_timer_set(m->eng->loops[0], &m->timer, mc_time_after(m->last_ns, m->interval_ns));
}

static void end(void *arg)
{
	struct mc_metrics_log *m = arg;

	mc_loop_timer_cancel(m->eng->loops[0], &m->timer);
}

void mc_metrics_log_begin(struct mc_engine *eng)
{
	struct mc_metrics_log *m;

	if (!eng->conf.is_metric_logged)
		return;
	m = mc_calloc(1, sizeof(*m));
	if (!m) {
		mc_log_warn("metrics are not logged", "cause=\"%s\"", mc_err_text(MC_E_NOMEM));
		return;
	}
	m->eng = eng;
	m->interval_ns = (uint64_t)eng->conf.metric_interval_s * MC_NS_PER_S;
	m->timer.on_time = on_time;
	eng->metrics_log = m;
	mc_loop_call(eng->loops[0], begin, m);
}

void mc_metrics_log_end(struct mc_engine *eng)
{
	if (!eng->metrics_log)
		return;
	mc_loop_call(eng->loops[0], end, eng->metrics_log);
	mc_free(eng->metrics_log);
	eng->metrics_log = NULL;
}
