/*
 * engine.c: opening and closing an engine: ports, threads, transports, metadata, in that order and
 * back.
 */
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/fork.h"
#include "base/log.h"
#include "base/rand.h"
#include "engine/ctl.h"
#include "engine/hca.h"
#include "engine/initiators.h"
#include "engine/stage.h"
#include "engine/staged.h"
#include "xport/self.h"
#include "xport/shm.h"

#define NAME_MAX_BYTES 256u
#define FENCE_CLOSE_NS MC_NS_PER_S /* a closing engine asks stopped peers no longer than this */

const char *mc_version(void)
{
	return MC_VERSION;
}

struct mc_xdev_env mc_engine_xdev_env(struct mc_engine *eng)
{
	return (struct mc_xdev_env){.loops = eng->loops,
				    .nloops = eng->nloops,
				    .regions = eng->regions,
				    .clk = mc_env_real.clk,
				    .disk = mc_env_real.disk,
				    .epoch = eng->epoch,
				    .nonce = eng->nonce};
}

/* ---- parts of opening ---- */

static void read_boot_id(struct mc_engine *eng)
{
	int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
	ssize_t n = fd >= 0 ? read(fd, eng->boot_id, sizeof(eng->boot_id) - 1) : 0;

	mc_fd_close(&fd);
	/* Unreadable: empty, and it is left to the socket's path whether this is a peer's host. */
	if (n <= 0)
		mc_log_debug("no boot id", "file=/proc/sys/kernel/random/boot_id");
	eng->boot_id[n > 0 ? n : 0] = '\0';
	eng->boot_id[strcspn(eng->boot_id, "\n")] = '\0';
}

static const char *limit_text(int which, char buf[24])
{
	struct rlimit lim = {0};

	if (getrlimit(which, &lim) < 0 || lim.rlim_cur == RLIM_INFINITY)
		return "any";
	(void)snprintf(buf, 24, "%llu", (unsigned long long)lim.rlim_cur); /* 20 digits at most */
	return buf;
}

/* Which of them it was the kernel does not tell everywhere. */
static void name_limits(struct mc_diag *diag)
{
	struct mc_diag what = *diag;
	char files[24], threads[24], space[24];

	mc_diag_set(diag, "%s (ulimit -n: %s open files; -u: %s threads; -v: %s bytes)", what.text,
		    limit_text(RLIMIT_NOFILE, files), limit_text(RLIMIT_NPROC, threads),
		    limit_text(RLIMIT_AS, space));
}

static int open_loops(struct mc_engine *eng)
{
	cpu_set_t set;
	int cores = sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : 1;
	unsigned want = eng->conf.loops ? (unsigned)eng->conf.loops : (cores > 1 ? 2 : 1);
	char name[16] = "mc-loop-0";
	int rc;

	for (unsigned i = 0; i < want; i++) {
		name[8] = (char)('0' + i);
		rc = mc_loop_open(name, &mc_clock_real, &eng->loops[i]);
		if (rc < 0)
			return rc;
		eng->nloops++;
		rc = mc_loop_start(eng->loops[i]);
		if (rc < 0)
			return rc;
	}
	return 0;
}

/* The advertised address, then every address that the device list names. */
static int choose_rails(struct mc_engine *eng, const struct mc_addr *bind, const char *devices,
			struct mc_diag *diag)
{
	struct mc_view parts[64];
	int n = devices && devices[0] ? mc_str_split(devices, ',', parts, MC_ARRAY_LEN(parts)) : 0;

	eng->rail_addrs[0] = *bind;
	mc_addr_port_set(&eng->rail_addrs[0], 0);
	eng->nrail_addrs = 1;
	for (int i = 0; i < n; i++) {
		struct mc_view v = mc_view_trim(parts[i]);
		char text[MC_ADDR_TEXT_MAX];
		struct mc_addr a;
		bool is_known = false;

		if (mc_view_copy(v, text, sizeof(text)) < 0 || mc_addr_parse(text, 0, &a) < 0)
			continue; /* the name of an RDMA device */
		if (!mc_addr_is_local(&a)) {
			mc_diag_set(diag, "device list: %s is not an address of this machine",
				    text);
			return -MC_E_ADDR;
		}
		for (unsigned k = 0; k < eng->nrail_addrs; k++)
			is_known |= mc_addr_is_equal(&a, &eng->rail_addrs[k]);
		if (is_known)
			continue;
		if (eng->nrail_addrs == MC_RAILS_MAX) {
			mc_diag_set(diag, "device list names more than %u addresses", MC_RAILS_MAX);
			return -MC_E_LIMIT;
		}
		eng->rail_addrs[eng->nrail_addrs++] = a;
	}
	return 0;
}

static int check_protocol(const char *protocol, struct mc_diag *diag)
{
	static const char *const known[] = {"", "tcp", "shm", "rdma"};

	for (size_t i = 0; i < MC_ARRAY_LEN(known); i++)
		if (!protocol || strcmp(protocol, known[i]) == 0)
			return 0;
	mc_diag_set(diag, "protocol \"%s\" is not supported; use \"tcp\", \"shm\" or \"rdma\"",
		    protocol);
	return -MC_E_UNSUPPORTED;
}

static int open_transports(struct mc_engine *eng, struct mc_diag *diag)
{
	struct mc_xdev_env env = mc_engine_xdev_env(eng);
	struct mc_tcp_opts tcp = {.naddrs = eng->nrail_addrs,
				  .port_min = (uint16_t)eng->hs.port_min,
				  .port_max = (uint16_t)eng->hs.port_max,
				  .preface = MC_FRAME_PREFACE,
				  .adopt = mc_serve_adopt,
				  .adopt_user = eng};
	struct mc_diag why = {0};
	int rc;

	rc = mc_self_dev_open(&env, &eng->self);
	if (rc < 0)
		return rc;
	if (!eng->conf.is_shm_off && mc_shm_dev_open(&env, NULL, &eng->shm, &why) < 0) {
		mc_log_debug("shared memory is not available", "cause=\"%s\"", why.text);
		eng->shm = NULL;
	}
	memcpy(tcp.addrs, eng->rail_addrs, sizeof(eng->rail_addrs));
	rc = mc_tcp_dev_open(&env, &tcp, &eng->tcp);
	if (rc < 0)
		mc_diag_set(diag, "data port in %u-%u: %s", tcp.port_min, tcp.port_max,
			    mc_err_text(rc));
	return rc;
}

static int set_names(struct mc_engine *eng, const struct mc_engine_opts *opts,
		     const struct mc_control_place *place)
{
	bool has_name = eng->meta && opts->name && opts->name[0];
	bool is_made = has_name && opts->is_one_of_many && place->name_host[0];
	char address[NAME_MAX_BYTES + 16], name[NAME_MAX_BYTES + 16];
	int rc = mc_control_name(place->host, eng->port, address, sizeof(address));

	if (rc == 0 && is_made)
		rc = mc_control_name(place->name_host, eng->port, name, sizeof(name));
	if (rc < 0)
		return rc;
	eng->address = mc_strdup(address);
	eng->name = mc_strdup(is_made ? name : has_name ? opts->name : address);
	return eng->address && eng->name ? 0 : -MC_E_NOMEM;
}

static int open_identity(struct mc_engine *eng)
{
	int rc;

	do {
		rc = mc_rand_bytes(&eng->epoch, sizeof(eng->epoch));
	} while (rc == 0 && eng->epoch == 0);
	if (rc == 0)
		rc = mc_rand_bytes(eng->nonce, sizeof(eng->nonce));
	read_boot_id(eng);
	return rc;
}

struct publicity {
	struct mc_engine *eng;
	const struct mc_engine_opts *opts;
	const struct mc_control_place *place;
	struct mc_diag *diag;
	int rc;
};

static void publish(void *arg)
{
	struct publicity *p = arg;

	p->rc = mc_serve_open(p->eng, &p->place->bind, p->diag);
	if (p->rc == 0)
		p->rc = set_names(p->eng, p->opts, p->place);
}

/* On the loop that serves, so that no peer, which may be waiting for this port to come back, is
 * answered before the name is known. */
static int go_public(struct mc_engine *eng, const struct mc_engine_opts *opts,
		     const struct mc_control_place *place, struct mc_diag *diag)
{
	struct publicity p = {.eng = eng, .opts = opts, .place = place, .diag = diag};

	mc_loop_call(eng->loops[0], publish, &p);
	return p.rc;
}

static void group_unref(void *op)
{
	mc_gop_put(op);
}

static int engine_open(struct mc_engine *eng, const struct mc_engine_opts *opts,
		       const struct mc_verbs *verbs, struct mc_diag *diag)
{
	bool is_p2p = !opts->metadata || !opts->metadata[0] || mc_meta_is_p2p(opts->metadata);
	struct mc_control_place place;
	struct mc_meta_conf meta_conf;
	int rc = check_protocol(opts->protocol, diag);

	if (rc == 0)
		rc = mc_stats_open(eng);
	if (rc == 0)
		rc = open_identity(eng);
	if (rc == 0 && !is_p2p) {
		mc_meta_conf_load(&meta_conf);
		rc = mc_meta_open(opts->metadata, &meta_conf, &eng->meta, diag);
	}
	if (rc == 0)
		rc = mc_control_place(&eng->hs, opts->name ? opts->name : "", is_p2p, &place, diag);
	if (rc == 0)
		rc = choose_rails(eng, &place.bind, opts->devices, diag);
	if (rc == 0)
		rc = mc_work_open(eng);
	if (rc == 0)
		rc = open_loops(eng);
	if (rc == 0)
		rc = mc_region_table_open(&eng->regions);
	if (rc == 0)
		rc = mc_ids_open(MC_GROUPS_MAX, group_unref, &eng->groups);
	if (rc == 0)
		rc = mc_gop_pool_init(eng);
	if (rc == 0)
		rc = open_transports(eng, diag);
	if (rc == 0)
		rc = mc_hca_open(eng, opts->protocol, opts->devices, verbs, diag);
	if (rc == 0)
		rc = mc_stage_open(eng);
	if (rc == 0)
		rc = mc_staged_open(eng);
	if (rc == 0)
		rc = mc_initiators_open(eng);
	if (rc == 0)
		rc = go_public(eng, opts, &place, diag);
	if (rc == 0)
		rc = mc_peers_open(eng);
	if (rc == 0)
		rc = mc_idle_open(eng);
	if (rc == 0)
		rc = mc_join(eng, place.host, diag);
	if (rc == 0)
		rc = mc_metrics_serve(
		    eng, opts->metrics_port ? opts->metrics_port : (uint16_t)eng->conf.metrics_port,
		    opts->metrics_port != 0, diag);
	return rc;
}

/* ---- closing ---- */

static void wait_groups(struct mc_engine *eng)
{
	/* seq_cst: a group that did not see is_closing is seen here; it pairs with the release of
	 * the last mc_gop_put(), too */
	while (atomic_load(&eng->gops_live) > 0) {
		struct timespec ts = {.tv_nsec = 500000};

		(void)nanosleep(&ts, NULL);
	}
}

static void dev_close(struct mc_xdev **dev)
{
	if (*dev)
		(*dev)->ops->dev_close(*dev);
	*dev = NULL;
}

/* Allows for any part not to be there. */
static void engine_free(struct mc_engine *eng)
{
	atomic_store(&eng->fence_end_ns, mc_now_ns() + FENCE_CLOSE_NS);
	atomic_store(&eng->is_closing, true);
	mc_metrics_unserve(eng);
	mc_metrics_log_end(eng);
	mc_leave(eng);
	mc_idle_stop(eng);
	mc_watch_closed(eng, NULL);
	mc_ids_close(eng->groups);
	wait_groups(eng);
	mc_peers_close(eng);
	mc_stage_stop(eng);
	/* Peers take a control port that refuses them as proof that nothing lands here any more. */
	if (eng->regions)
		mc_mem_drop_all(eng);
	mc_serve_close(eng);
	mc_initiators_close(eng);
	mc_work_close(eng);
	mc_stage_close(eng);
	mc_staged_close(eng);
	mc_hca_close(eng);
	dev_close(&eng->tcp);
	dev_close(&eng->shm);
	dev_close(&eng->file);
	dev_close(&eng->self);
	for (unsigned i = 0; i < eng->nloops; i++)
		mc_loop_close(eng->loops[i]);
	mc_region_table_close(eng->regions);
	mc_join_free(eng);
	mc_idle_free(eng);
	mc_meta_close(eng->meta);
	mc_stats_close(eng);
	mc_inbox_fini(eng);
	mc_gop_pool_fini(eng);
	mc_quarantine_fini(&eng->quarantine);
	pthread_mutex_destroy(&eng->publish_mu);
	pthread_mutex_destroy(&eng->plain_mu);
	pthread_mutex_destroy(&eng->files_mu);
	pthread_mutex_destroy(&eng->peers_mu);
	pthread_mutex_destroy(&eng->pool_mu);
	pthread_mutex_destroy(&eng->inbox_mu);
	pthread_mutex_destroy(&eng->watch_mu);
	pthread_mutex_destroy(&eng->work_mu);
	pthread_cond_destroy(&eng->work_cond);
	mc_free(eng->name);
	mc_free(eng->address);
	mc_free(eng);
}

int mc_engine_open(const struct mc_engine_opts *opts, struct mc_diag *diag,
		   struct mc_engine **ret_engine)
{
	return mc_engine_open_verbs(opts, NULL, diag, ret_engine);
}

int mc_engine_open_verbs(const struct mc_engine_opts *opts, const struct mc_verbs *verbs,
			 struct mc_diag *diag, struct mc_engine **ret_engine)
{
	struct mc_engine_opts o = {0};
	struct mc_diag mine = {0};
	struct mc_engine *eng;
	int rc;

	if (!opts || opts->size < sizeof(uint32_t)) {
		mc_diag_set(diag, "options are missing or their size is not set");
		return -MC_E_INVAL;
	}
	memcpy(&o, opts, opts->size < sizeof(o) ? opts->size : sizeof(o));
	eng = mc_aligned_alloc(MC_CACHELINE, sizeof(*eng));
	if (!eng)
		return -MC_E_NOMEM;
	atomic_init(&eng->refs, 1);
	eng->fork_gen = mc_fork_gen();
	mc_conf_load(&eng->conf);
	mc_hs_conf_load(&eng->hs);
	pthread_mutex_init(&eng->publish_mu, NULL);
	pthread_mutex_init(&eng->plain_mu, NULL);
	pthread_mutex_init(&eng->files_mu, NULL);
	pthread_mutex_init(&eng->peers_mu, NULL);
	pthread_mutex_init(&eng->pool_mu, NULL);
	pthread_mutex_init(&eng->inbox_mu, NULL);
	pthread_mutex_init(&eng->watch_mu, NULL);
	mc_list_init(&eng->watches);
	pthread_mutex_init(&eng->work_mu, NULL);
	pthread_cond_init(&eng->work_cond, NULL);
	mc_list_init(&eng->pool);
	mc_list_init(&eng->inbox);
	mc_list_init(&eng->work);
	mc_list_init(&eng->plain);
	mc_list_init(&eng->files);
	mc_quarantine_init(&eng->quarantine);
	mc_fd_limit_raise();
	rc = engine_open(eng, &o, verbs, &mine);
	if (rc < 0) {
		if (diag) {
			*diag = mine;
			if (!mine.text[0])
				mc_diag_set(diag, "%s", mc_err_text(rc));
			if (rc == -MC_E_LIMIT)
				name_limits(diag);
			mc_diag_wrap(diag, "open engine \"%s\"", o.name ? o.name : "");
		}
		engine_free(eng);
		return rc;
	}
	mc_metrics_log_begin(eng);
	mc_log_info("engine open", "segment=%s address=%s data_port=%u loops=%u", eng->name,
		    eng->address, mc_tcp_dev_port(eng->tcp), eng->nloops);
	*ret_engine = eng;
	return 0;
}

struct mc_engine *mc_engine_ref(struct mc_engine *eng)
{
	atomic_fetch_add_explicit(&eng->refs, 1, memory_order_relaxed);
	return eng;
}

void mc_engine_close(struct mc_engine *eng)
{
	if (!eng || mc_engine_is_forked(eng))
		return; /* a child has neither threads nor ports of it: its memory is all there is
			 */
	if (atomic_fetch_sub_explicit(&eng->refs, 1, memory_order_acq_rel) == 1)
		engine_free(eng);
}

const char *mc_engine_name(const struct mc_engine *eng)
{
	return eng->name;
}

const char *mc_engine_address(const struct mc_engine *eng)
{
	return eng->address;
}

uint16_t mc_engine_port(const struct mc_engine *eng)
{
	return eng->port;
}
