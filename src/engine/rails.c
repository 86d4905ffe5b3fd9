/*
 * rails.c: see rails.h. A lost rail is probed by a worker thread: a control connection from its
 * local to its remote address on which the peer shows its incarnation and nonce, so no slice is
 * ever risked on a rail that is not known to work again. A lost RDMA rail is probed by opening a
 * lane on it, not before its local port is up.
 */
#include "engine/rails.h"

#include <netinet/in.h>
#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "base/sync.h"
#include "engine/pair.h"
#include "engine/pump.h"

#define PROBE_NS (200 * MC_NS_PER_MS)

static unsigned common_bits(const struct mc_addr *a, const struct mc_addr *b)
{
	const uint8_t *x, *y;
	unsigned n, i;

	if (a->sa.sa_family != b->sa.sa_family)
		return 0;
	if (a->sa.sa_family == AF_INET) {
		x = (const uint8_t *)&((const struct sockaddr_in *)&a->ss)->sin_addr;
		y = (const uint8_t *)&((const struct sockaddr_in *)&b->ss)->sin_addr;
		n = 4;
	} else {
		x = (const uint8_t *)&((const struct sockaddr_in6 *)&a->ss)->sin6_addr;
		y = (const uint8_t *)&((const struct sockaddr_in6 *)&b->ss)->sin6_addr;
		n = 16;
	}
	for (i = 0; i < n && x[i] == y[i]; i++)
		;
	return i < n ? 1 + i * 8 + (unsigned)__builtin_clz((uint32_t)(x[i] ^ y[i]) << 24)
		     : 1 + n * 8;
}

/* The local address of a rail: with several, the one nearest to the remote one by prefix. */
static void rail_pair(struct mc_session *s, struct mc_rail *rail)
{
	struct mc_engine *eng = s->eng;
	unsigned best = 0, bits = 0;
	char text[MC_ADDR_TEXT_MAX];

	rail->local.len = 0;
	if (eng->nrail_addrs > 1) {
		for (unsigned i = 0; i < eng->nrail_addrs; i++) {
			unsigned b = common_bits(&eng->rail_addrs[i], &rail->remote);

			if (b > bits) {
				bits = b;
				best = i;
			}
		}
		rail->local = eng->rail_addrs[best];
		mc_addr_port_set(&rail->local, 0);
	}
	rail->stats = mc_stats_rail(
	    eng, "tcp", rail->local.len ? mc_addr_format_host(&rail->local, text) : "any",
	    s->peer->name);
}

/* Pairs of our RDMA ports and the peer's. */
void mc_rails_rdma(struct mc_session *s, const struct mc_ctl_port *ports, unsigned nports)
{
	struct mc_pair_port l[MC_RDMA_PORTS_MAX] = {0}, r[MC_RDMA_PORTS_MAX] = {0};
	struct mc_rdma_port mine[MC_RDMA_PORTS_MAX];
	struct mc_pair pairs[MC_RAILS_MAX];
	unsigned n = mc_rdma_ports(s->eng->rdma);

	for (unsigned i = 0; i < n; i++) {
		mc_rdma_port_get(s->eng->rdma, i, &mine[i]);
		l[i].name = mine[i].name;
		l[i].is_ethernet = mine[i].is_ethernet;
		l[i].is_down = !mc_rdma_port_is_up(s->eng->rdma, i);
		memcpy(l[i].gid, mine[i].gid, sizeof(l[i].gid));
	}
	for (unsigned i = 0; i < nports; i++) {
		r[i].name = ports[i].name;
		r[i].is_ethernet = ports[i].flags & MC_CTL_PORT_ETHERNET;
		r[i].is_down = ports[i].flags & MC_CTL_PORT_DOWN;
		memcpy(r[i].gid, ports[i].gid, sizeof(r[i].gid));
	}
	s->rdma.n = mc_pair_ports(l, n, r, nports, pairs, MC_RAILS_MAX);
	for (unsigned i = 0; i < s->rdma.n; i++) {
		struct mc_rail *rail = &s->rdma.v[i];
		char text[MC_ADDR_TEXT_MAX];

		rail->local_port = pairs[i].local;
		rail->remote_port = pairs[i].remote;
		/* Names of devices are short; longer ones are cut. */
		(void)snprintf(text, sizeof(text), "%.24s->%.24s", l[pairs[i].local].name,
			       r[pairs[i].remote].name);
		rail->stats = mc_stats_rail(s->eng, "rdma", text, s->peer->name);
	}
}

int mc_rails_set(struct mc_session *s, const struct mc_ctl_peer *hello)
{
	s->tcp.n = 0;
	for (unsigned i = 0; i < hello->nrails; i++) {
		struct mc_rail *rail = &s->tcp.v[s->tcp.n];

		if (mc_addr_parse(hello->rails[i], 0, &rail->remote) < 0 ||
		    mc_addr_port(&rail->remote) == 0)
			return -MC_E_PROTO;
		/* A peer that listens on every address is reached where its control port was. */
		if (mc_addr_is_any(&rail->remote)) {
			uint16_t port = mc_addr_port(&rail->remote);

			rail->remote = s->ctl_addr;
			mc_addr_port_set(&rail->remote, port);
		}
		rail_pair(s, rail);
		s->tcp.n++;
	}
	/* With one address of ours, further ones of the peer are not further rails. */
	if (s->eng->nrail_addrs <= 1 && s->tcp.n > 1)
		s->tcp.n = 1;
	if (s->eng->rdma && hello->nports > 0)
		mc_rails_rdma(s, hello->ports, hello->nports);
	return s->tcp.n > 0 ? 0 : -MC_E_PROTO;
}

int mc_rails_to(const struct mc_session *s, const struct mc_addr *remote)
{
	for (unsigned i = 0; i < s->tcp.n; i++) {
		struct mc_addr a = s->tcp.v[i].remote;

		mc_addr_port_set(&a, mc_addr_port(remote));
		if (mc_addr_is_equal(&a, remote))
			return (int)i;
	}
	return -1;
}

void mc_rails_init(struct mc_session *s)
{
	for (unsigned i = 0; i < MC_RAILS_MAX; i++) {
		s->tcp.v[i] = (struct mc_rail){.session = s, .route = MC_ROUTE_TCP, .index = i};
		s->rdma.v[i] = (struct mc_rail){.session = s, .route = MC_ROUTE_RDMA, .index = i};
	}
	s->tcp.n = 1;
}

struct mc_rail_set *mc_rails_of(struct mc_session *s, enum mc_route route)
{
	if (route == MC_ROUTE_TCP)
		return &s->tcp;
	return route == MC_ROUTE_RDMA ? &s->rdma : NULL;
}

/* Under session.mu. */
static uint32_t up_bits(const struct mc_rail_set *set)
{
	uint32_t up = 0;

	for (unsigned i = 0; i < set->n; i++)
		if (set->v[i].health.state == MC_RAIL_UP)
			up |= 1u << i;
	return up;
}

uint32_t mc_rails_up(struct mc_session *s, enum mc_route route)
{
	uint32_t up;

	pthread_mutex_lock(&s->mu);
	up = up_bits(mc_rails_of(s, route));
	pthread_mutex_unlock(&s->mu);
	return up;
}

/* ---- probes ---- */

static int probe(struct mc_session *s, const struct mc_rail *rail)
{
	struct mc_rpc_conn_opts opts = {.from = rail->local.len ? &rail->local : NULL};
	struct mc_ctl_peer hello;
	struct mc_rpc_conn *conn;
	int rc = mc_rpc_conn_open(&mc_env_real, s->eng->loops[0], &rail->remote, &opts, &conn);

	if (rc < 0)
		return rc;
	rc = mc_ctl_hello(s->eng, conn, mc_now_ns() + PROBE_NS, &hello);
	mc_rpc_conn_close(conn);
	if (rc < 0)
		return rc;
	if (hello.epoch != s->epoch)
		return -MC_E_PEER_RESTARTED;
	return memcmp(hello.nonce, s->nonce, sizeof(s->nonce)) == 0 ? 0 : -MC_E_AUTH;
}

/* Worker thread. */
static void probe_run(struct mc_worker_job *job)
{
	struct mc_rail *rail = mc_container_of(job, struct mc_rail, probe_job);
	struct mc_session *s = rail->session;
	char text[MC_ADDR_TEXT_MAX];
	int rc = probe(s, rail);

	if (rc == -MC_E_PEER_RESTARTED)
		mc_session_gone(s);
	mc_log_debug("rail probed", "peer=%s remote=%s outcome=\"%s\"", s->peer->name,
		     mc_addr_format(&rail->remote, text), mc_err_text(rc));
	pthread_mutex_lock(&s->mu);
	mc_rail_probed(&rail->health, rc == 0, mc_now_ns());
	pthread_mutex_unlock(&s->mu);
	if (rc == 0) {
		atomic_fetch_add_explicit(&s->lane_seq, 1, memory_order_release);
		mc_futex_wake(&s->lane_seq, INT32_MAX);
	}
	mc_session_put(s);
}

void mc_rails_look(struct mc_session *s, enum mc_route route, uint64_t now_ns,
		   struct mc_rails_view *ret)
{
	struct mc_rail_set *set = mc_rails_of(s, route);
	uint32_t due = 0;

	if (route == MC_ROUTE_RDMA && atomic_load_explicit(&s->is_rdma_off, memory_order_relaxed)) {
		*ret = (struct mc_rails_view){0};
		return;
	}
	if (set->n <= 1 && route == MC_ROUTE_TCP) {
		*ret = (struct mc_rails_view){.usable = 1, .up = 1};
		return;
	}
	pthread_mutex_lock(&s->mu);
	ret->up = up_bits(set);
	for (unsigned i = 0; i < set->n; i++) {
		ret->rate[i] = set->v[i].health.rate;
		ret->patience_ns[i] = mc_rail_patience(&set->v[i].health, now_ns);
		if (!(ret->up & (1u << i)) &&
		    (route != MC_ROUTE_RDMA || !mc_rails_is_link_down(&set->v[i])) &&
		    mc_rail_wants_probe(&set->v[i].health, now_ns))
			due |= 1u << i;
	}
	pthread_mutex_unlock(&s->mu);
	ret->usable = ret->up;
	/* All lost: with nothing else to go to, any may come back first. */
	if (!ret->up && mc_route_fallback(s, route) == MC_ROUTE_COUNT)
		ret->usable = (1u << set->n) - 1;
	for (unsigned i = 0; due; i++, due >>= 1) {
		if (!(due & 1))
			continue;
		if (route == MC_ROUTE_RDMA) {
			mc_offer_probe(&set->v[i]);
			continue;
		}
		set->v[i].probe_job.run = probe_run;
		mc_session_ref(s);
		mc_work_post(s->eng, &set->v[i].probe_job);
	}
}

void mc_rails_failed(struct mc_rail *rail, uint64_t now_ns)
{
	pthread_mutex_lock(&rail->session->mu);
	mc_rail_failed(&rail->health, now_ns);
	pthread_mutex_unlock(&rail->session->mu);
}

void mc_rails_gap(struct mc_rail *rail, uint64_t gap_ns, uint64_t now_ns)
{
	if (3 * gap_ns <= MC_RAIL_STALL_NS)
		return;
	pthread_mutex_lock(&rail->session->mu);
	mc_rail_gap(&rail->health, gap_ns, now_ns);
	pthread_mutex_unlock(&rail->session->mu);
}

bool mc_rails_is_link_down(const struct mc_rail *rail)
{
	if (rail->route == MC_ROUTE_RDMA)
		return !mc_rdma_port_is_up(rail->session->eng->rdma, rail->local_port);
	return rail->local.len != 0 && !mc_addr_is_running(&rail->local);
}
