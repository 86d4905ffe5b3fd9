/*
 * port.c: what is known of a port: its state and rate from verbs; which of its addresses belong to
 * an interface of this network namespace, and which NUMA node it is on, from sysfs.
 *
 *   class/infiniband/<dev>/ports/<n>/gid_attrs/types/<i>   "RoCE v2"; no such file: no address
 *   class/infiniband/<dev>/ports/<n>/gid_attrs/ndevs/<i>   "eth0", also of other namespaces
 *   class/infiniband/<dev>/ports/<n>/rate                  "100 Gb/sec (4X EDR)"
 *   class/infiniband/<dev>/device/numa_node                of the PCI device
 *   class/infiniband/<dev>/parent                          Soft-RoCE: the interface that it rides
 * on
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <limits.h>
#include <net/if.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "base/mem.h"
#include "base/str.h"
#include "xport/rdma/priv.h"

#define GIDS_MAX 256

/* First line of a small file below the root, without its newline. @return false: there is none */
static bool sys_line(char *buf, size_t cap, const char *root, const char *fmt, ...) MC_PRINTF(4, 5);
static bool sys_line(char *buf, size_t cap, const char *root, const char *fmt, ...)
{
	char path[PATH_MAX], rest[PATH_MAX / 2];
	va_list ap;
	ssize_t n;
	int fd;

	va_start(ap, fmt);
	n = vsnprintf(rest, sizeof(rest), fmt, ap);
	va_end(ap);
	if (n < 0 || (size_t)n >= sizeof(rest))
		return false;
	n = snprintf(path, sizeof(path), "%s/class/%s", root, rest);
	if (n < 0 || (size_t)n >= sizeof(path))
		return false;
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return false;
	n = read(fd, buf, cap - 1);
	(void)close(fd); /* nothing was written */
	if (n <= 0)
		return false;
	buf[n] = '\0';
	buf[strcspn(buf, "\n")] = '\0';
	return true;
}

/* ---- rate and place ---- */

/* Mbit/s of one lane by the bits of ibv_port_attr.active_speed. */
static uint32_t lane_mbps(unsigned speed)
{
	static const uint32_t mbps[] = {2500, 5000, 10000, 10312, 14062, 25781, 50000, 100000};

	for (unsigned i = 0; i < MC_ARRAY_LEN(mbps); i++) {
		if (speed == 1u << i)
			return mbps[i];
	}
	return 0;
}

static uint32_t width_lanes(unsigned width)
{
	static const uint8_t lanes[] = {1, 4, 8, 12, 2};

	for (unsigned i = 0; i < MC_ARRAY_LEN(lanes); i++) {
		if (width == 1u << i)
			return lanes[i];
	}
	return 0;
}

static uint32_t rate_mbps(const struct mc_rdma_port *port, const struct ibv_port_attr *attr,
			  const char *root)
{
	uint32_t mbps = lane_mbps(attr->active_speed) * width_lanes(attr->active_width);
	char text[64], *end;
	double gbps;

	/* Newer speeds do not fit in the attribute; the kernel's text has them. */
	if (mbps || !sys_line(text, sizeof(text), root, "infiniband/%s/ports/%u/rate", port->name,
			      port->port_num))
		return mbps;
	gbps = strtod(text, &end);
	return end != text && gbps > 0 && gbps < 1e6 ? (uint32_t)(gbps * 1000) : 0;
}

static int numa_of(const char *name, const char *root)
{
	char text[64], nic[IF_NAMESIZE + 8], *end;
	long node;

	if (!sys_line(text, sizeof(text), root, "infiniband/%s/device/numa_node", name) &&
	    (!sys_line(nic, sizeof(nic), root, "infiniband/%s/parent", name) ||
	     !sys_line(text, sizeof(text), root, "net/%s/device/numa_node", nic)))
		return -1;
	node = strtol(text, &end, 10);
	return end == text || *end || node < 0 || node > INT_MAX ? -1 : (int)node;
}

/* ---- addresses ---- */

static bool is_same_addr(const struct sockaddr *sa, const uint8_t *gid)
{
	static const uint8_t mapped[12] = {[10] = 0xff, [11] = 0xff};

	if (sa && sa->sa_family == AF_INET6)
		return memcmp(&((const struct sockaddr_in6 *)sa)->sin6_addr, gid, 16) == 0;
	return sa && sa->sa_family == AF_INET && memcmp(gid, mapped, sizeof(mapped)) == 0 &&
	       memcmp(&((const struct sockaddr_in *)sa)->sin_addr, gid + 12, 4) == 0;
}

static void gid_match(struct mc_rdma_gid *g, const char *ndev, const struct ifaddrs *ifs)
{
	for (; ifs; ifs = ifs->ifa_next) {
		if (strcmp(ifs->ifa_name, ndev) != 0 || !(ifs->ifa_flags & IFF_UP))
			continue;
		g->has_netdev = true;
		g->is_addr_ours = g->is_addr_ours || is_same_addr(ifs->ifa_addr, g->raw);
	}
}

static bool gid_is_set(const uint8_t *raw)
{
	static const uint8_t zero[16];

	return memcmp(raw, zero, sizeof(zero)) != 0;
}

/* All addresses of the port. @return how many, at most GIDS_MAX */
static unsigned gids_load(struct mc_rdma_hca *h, struct mc_rdma_gid *gids)
{
	const struct mc_rdma_port *port = &h->port;
	const char *root = h->dev->sys_root;
	struct ifaddrs *ifs = NULL;
	char text[64];
	unsigned n = 0;

	if (getifaddrs(&ifs) < 0)
		ifs = NULL; /* then no address counts as ours, and the order decides */
	for (int i = 0; i < (int)h->ngids && i < GIDS_MAX; i++) {
		struct mc_rdma_gid *g = &gids[n];
		union ibv_gid gid;

		if (h->dev->v->query_gid(h->ctx, port->port_num, i, &gid) != 0 ||
		    !gid_is_set(gid.raw))
			continue;
		*g = (struct mc_rdma_gid){.index = (uint8_t)i};
		memcpy(g->raw, gid.raw, sizeof(g->raw));
		if (sys_line(text, sizeof(text), root, "infiniband/%s/ports/%u/gid_attrs/types/%d",
			     port->name, port->port_num, i))
			g->is_v2 = strcmp(text, "RoCE v2") == 0;
		if (sys_line(text, sizeof(text), root, "infiniband/%s/ports/%u/gid_attrs/ndevs/%d",
			     port->name, port->port_num, i))
			gid_match(g, text, ifs);
		n++;
	}
	if (ifs)
		freeifaddrs(ifs);
	return n;
}

static void gids_text(const struct mc_rdma_gid *gids, unsigned n, char *buf, size_t cap)
{
	char addr[INET6_ADDRSTRLEN];
	size_t len = 0;

	buf[0] = '\0';
	for (unsigned i = 0; i < n && len < cap; i++) {
		if (!inet_ntop(AF_INET6, gids[i].raw, addr, sizeof(addr)))
			continue;
		len += (size_t)snprintf(buf + len, cap - len, "%s%u (%s%s)", i ? ", " : "",
					gids[i].index, addr, gids[i].is_v2 ? ", RoCE v2" : "");
	}
}

/* Which of them to use. @return position in gids; -1: none */
static int gid_pick(const struct mc_rdma_hca *h, const struct mc_rdma_gid *gids, unsigned n)
{
	const struct mc_rdma_port *port = &h->port;
	int64_t wanted = h->dev->conf.gid_index;
	int keep = -1;

	if (!port->is_ethernet && wanted < 0)
		wanted = 0;
	for (unsigned i = 0; i < n; i++) {
		if (wanted >= 0 && gids[i].index == wanted)
			return (int)i;
		if (h->is_addr_ok && gids[i].index == port->gid_index &&
		    memcmp(gids[i].raw, port->gid, sizeof(port->gid)) == 0)
			keep = (int)i;
	}
	return wanted >= 0 ? -1 : mc_rdma_gid_choose(gids, n, keep);
}

/* Take this address. @return another one than before */
static bool gid_take(struct mc_rdma_hca *h, const struct mc_rdma_gid *g)
{
	struct mc_rdma_port *port = &h->port;
	bool is_other = !port->has_addr || g->index != port->gid_index ||
			memcmp(g->raw, port->gid, sizeof(port->gid)) != 0;

	h->is_addr_best = mc_rdma_gid_is_best(g);
	if (!is_other)
		return false;
	pthread_mutex_lock(&h->port_mu);
	memcpy(port->gid, g->raw, sizeof(port->gid));
	port->gid_index = g->index;
	port->has_addr = true;
	pthread_mutex_unlock(&h->port_mu);
	return true;
}

/* The one in use is where it was. */
static bool has_gid(const struct mc_rdma_hca *h)
{
	union ibv_gid gid;

	return h->dev->v->query_gid(h->ctx, h->port.port_num, h->port.gid_index, &gid) == 0 &&
	       memcmp(gid.raw, h->port.gid, sizeof(gid.raw)) == 0;
}

bool mc_rdma_port_readdress(struct mc_rdma_hca *h)
{
	struct mc_rdma_gid gids[GIDS_MAX];
	char text[256];
	bool is_first = !h->port.has_addr;
	unsigned n;
	int at;

	if (h->is_addr_ok && h->is_addr_best && has_gid(h))
		return true;
	n = gids_load(h, gids);
	at = gid_pick(h, gids, n);
	if (at < 0)
		return false;
	if (!gid_take(h, &gids[at]))
		return true;
	gids_text(&gids[at], 1, text, sizeof(text));
	mc_log_info("RDMA port has got an address", "dev=%s port=%u gid='%s'", h->port.name,
		    h->port.port_num, text);
	if (!is_first)
		atomic_fetch_add(&h->addr_gen, 1);
	return true;
}

/* As the port is opened. */
static int address(struct mc_rdma_hca *h, struct mc_diag *diag)
{
	struct mc_rdma_gid gids[GIDS_MAX];
	struct mc_rdma_port *port = &h->port;
	unsigned n = gids_load(h, gids);
	int at = gid_pick(h, gids, n);
	char text[256];

	h->is_addr_ok = at >= 0;
	if (at >= 0) {
		(void)gid_take(h, &gids[at]);
		gids_text(&gids[at], 1, text, sizeof(text));
		if (port->is_ethernet && !gids[at].has_netdev)
			mc_log_info("RDMA address of no interface that is up here",
				    "dev=%s port=%u gid='%s'", port->name, port->port_num, text);
		return 0;
	}
	if (!h->is_link_up)
		return 0;
	if (n == 0) {
		mc_diag_set(diag, "port %u has no address: its interface has none, or is down",
			    port->port_num);
		return 0;
	}
	gids_text(gids, n, text, sizeof(text));
	mc_diag_set(diag, "port %u has no address at GID index %lld (MC_GID_INDEX); it has %s",
		    port->port_num, (long long)h->dev->conf.gid_index, text);
	return -MC_E_UNAVAILABLE;
}

static const char *state_name(enum ibv_port_state state)
{
	static const char *const names[] = {
	    [IBV_PORT_NOP] = "no change",
	    [IBV_PORT_DOWN] = "down",
	    [IBV_PORT_INIT] = "initializing: no subnet manager has configured it",
	    [IBV_PORT_ARMED] = "armed",
	    [IBV_PORT_ACTIVE] = "active",
	    [IBV_PORT_ACTIVE_DEFER] = "active, deferred",
	};

	return (size_t)state < MC_ARRAY_LEN(names) ? names[state] : "unknown";
}

static void attr_take(struct mc_rdma_hca *h, const struct ibv_port_attr *attr)
{
	struct mc_rdma_port *port = &h->port;
	uint32_t mbps = rate_mbps(port, attr, h->dev->sys_root);

	pthread_mutex_lock(&h->port_mu);
	port->lid = attr->lid;
	port->mtu = (uint8_t)attr->active_mtu;
	port->mbps = mbps;
	pthread_mutex_unlock(&h->port_mu);
}

int mc_rdma_port_ask(struct mc_rdma_hca *h, struct ibv_port_attr *ret)
{
	int rc = h->dev->v->query_port(h->ctx, h->port.port_num, ret);

	if (rc != 0)
		return mc_rdma_errno(rc > 0 ? rc : errno);
	attr_take(h, ret);
	return 0;
}

struct mc_rdma_port mc_rdma_port_now(struct mc_rdma_hca *h)
{
	struct mc_rdma_port port;

	pthread_mutex_lock(&h->port_mu);
	port = h->port;
	pthread_mutex_unlock(&h->port_mu);
	return port;
}

int mc_rdma_port_load(struct mc_rdma_hca *h, struct mc_diag *diag)
{
	struct mc_rdma_port *port = &h->port;
	struct ibv_port_attr attr = {.state = IBV_PORT_NOP};
	int err;

	if (h->dev->conf.port_num > h->attr.phys_port_cnt) {
		mc_diag_set(diag, "there is no port %lld (MC_IB_PORT), only %u",
			    (long long)h->dev->conf.port_num, h->attr.phys_port_cnt);
		return -MC_E_UNAVAILABLE;
	}
	port->port_num = (uint8_t)h->dev->conf.port_num;
	err = h->dev->v->query_port(h->ctx, port->port_num, &attr);
	if (err) {
		mc_diag_set(diag, "port %u cannot be queried", port->port_num);
		return -MC_E_UNAVAILABLE;
	}
	port->is_ethernet = attr.link_layer == IBV_LINK_LAYER_ETHERNET;
	port->numa = numa_of(port->name, h->dev->sys_root);
	attr_take(h, &attr);
	h->ngids = attr.gid_tbl_len > 0 ? (unsigned)attr.gid_tbl_len : 0;
	h->is_link_up = attr.state == IBV_PORT_ACTIVE;
	if (!h->is_link_up)
		mc_diag_set(diag, "port %u is not active: %s", port->port_num,
			    state_name(attr.state));
	return address(h, diag);
}
