/*
 * hca.c: see hca.h. Memory is registered with every port before it becomes visible, so that whoever
 * resolves a range gets its keys; a range that no HCA takes has none, and peers use TCP for it. One
 * that is longer than an HCA takes is a region for transports that name addresses, and each part of
 * it that an HCA takes is one, too, with keys: who asks is told of the parts.
 */
#include "engine/hca.h"

#include <linux/mempolicy.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/log.h"
#include "base/str.h"
#include "disco/topo.h"

#define NAMES_MAX 1024u
#define RANGE_MIN (16u << 10)

struct mc_hca_place {
	char location[MC_TOPO_NAME_MAX];
	uint32_t ports;
};

static uint32_t all_ports(const struct mc_engine *eng)
{
	return (1u << mc_rdma_ports(eng->rdma)) - 1;
}

/* ---- open ---- */

/* MC_TE_FILTERS, as the topology reads it, too. */
static const char *filters_get(void)
{
	const char *filters = getenv("MC_TE_FILTERS");

	return filters ? filters : "";
}

/* The words of the device list that are no addresses and pass the filter. */
static int names_of(const char *devices, char ret_names[NAMES_MAX], struct mc_diag *diag)
{
	struct mc_view parts[64];
	int n = devices ? mc_str_split(devices, ',', parts, MC_ARRAY_LEN(parts)) : 0;
	const char *filters = filters_get();
	bool has_names = false;
	size_t used = 0;

	ret_names[0] = '\0';
	for (int i = 0; i < n; i++) {
		struct mc_view v = mc_view_trim(parts[i]);
		char text[MC_ADDR_TEXT_MAX];
		struct mc_addr a;

		if (v.len == 0 ||
		    (mc_view_copy(v, text, sizeof(text)) == 0 && mc_addr_parse(text, 0, &a) == 0))
			continue;
		has_names = true;
		if (used + v.len + 2 > NAMES_MAX) {
			mc_diag_set(diag, "device list is longer than %u bytes", NAMES_MAX);
			return -MC_E_INVAL;
		}
		if (used)
			ret_names[used++] = ',';
		memcpy(ret_names + used, v.at, v.len);
		ret_names[used + v.len] = '\0';
		if (mc_topo_is_listed(filters, ret_names + used))
			used += v.len;
		else
			used -= used ? 1 : 0; /* with its comma */
		ret_names[used] = '\0';
	}
	if (n >= 0 && has_names && used == 0) {
		mc_diag_set(diag, "the device list and MC_TE_FILTERS have no device in common");
		return -MC_E_NOENT;
	}
	if (n >= 0 && !has_names)
		n = mc_strlcpy(ret_names, NAMES_MAX, filters);
	if (n < 0)
		mc_diag_set(diag, "the list of devices is too long");
	return n < 0 ? -MC_E_INVAL : 0;
}

/* Preferred devices of each place, as ports. */
static int places_find(struct mc_engine *eng, const char *names)
{
	struct mc_topo_conf conf = {.devices = names};
	struct mc_diag diag = {0};
	struct mc_topo *topo;
	int rc = mc_topo_discover(&conf, &topo, &diag);

	if (rc == -MC_E_NOMEM)
		return rc;
	if (rc < 0) {
		mc_log_warn("no topology: every HCA is used for all memory", "cause=\"%s\"",
			    diag.text);
		return 0;
	}
	eng->hca_topo = topo;
	eng->hca_places = mc_calloc(topo->nlocations + 1, sizeof(*eng->hca_places));
	for (size_t i = 0; eng->hca_places && i < topo->nlocations; i++) {
		const struct mc_topo_location *l = &topo->locations[i];
		struct mc_hca_place *p = &eng->hca_places[eng->nhca_places++];

		(void)mc_strlcpy(p->location, sizeof(p->location), l->name); /* the same length */
		for (unsigned d = 0; d < l->npreferred; d++) {
			int port = mc_rdma_port_find(eng->rdma, topo->hcas[l->devs[d]].name);

			if (port >= 0)
				p->ports |= 1u << port;
		}
	}
	return eng->hca_places ? 0 : -MC_E_NOMEM;
}

/* Warn once a process: nobody reads it a hundred times. */
static void warn_tcp(const char *why)
{
	static _Atomic bool is_warned;

	if (!atomic_exchange_explicit(&is_warned, true, memory_order_relaxed))
		mc_log_warn("no RDMA: using TCP", "cause=\"%s\" fix=\"pass tcp to silence this\"",
			    why);
}

static bool is_any_up(const struct mc_engine *eng)
{
	for (unsigned i = 0; i < mc_rdma_ports(eng->rdma); i++)
		if (mc_rdma_port_is_up(eng->rdma, i))
			return true;
	return false;
}

int mc_hca_open(struct mc_engine *eng, const char *protocol, const char *devices,
		const struct mc_verbs *verbs, struct mc_diag *diag)
{
	struct mc_xdev_env env = mc_engine_xdev_env(eng);
	bool is_asked = protocol && strcmp(protocol, "rdma") == 0;
	char names[NAMES_MAX];
	struct mc_rdma_opts opts = {.devices = names, .verbs = verbs};
	struct mc_diag why = {0};
	int rc;

	if (eng->conf.is_tcp_only || (!is_asked && !eng->conf.is_hca_forced))
		return 0;
	rc = names_of(devices, names, diag);
	if (rc < 0)
		return rc;
	rc = mc_rdma_dev_open(&env, &opts, &eng->rdma, &why);
	if (rc == 0 && !is_any_up(eng) && eng->conf.is_hca_forced) {
		mc_diag_set(diag, "MC_FORCE_HCA is set: %s", why.text);
		return -MC_E_UNAVAILABLE;
	}
	if (rc == 0 && !is_any_up(eng))
		warn_tcp(why.text);
	if (rc == 0)
		rc = mc_stats_rdma(eng);
	if (rc == 0)
		rc = places_find(eng, names);
	if (rc == 0 || eng->rdma)
		return rc;
	if (rc == -MC_E_NOMEM || rc == -MC_E_NOENT || eng->conf.is_hca_forced) {
		mc_diag_set(diag, "%s%s", eng->conf.is_hca_forced ? "MC_FORCE_HCA is set: " : "",
			    why.text[0] ? why.text : mc_err_text(rc));
		return rc;
	}
	warn_tcp(why.text[0] ? why.text : mc_err_text(rc));
	return 0;
}

void mc_hca_close(struct mc_engine *eng)
{
	if (eng->rdma)
		eng->rdma->ops->dev_close(eng->rdma);
	eng->rdma = NULL;
	mc_free(eng->hca_places);
	mc_topo_free(eng->hca_topo);
	eng->hca_topo = NULL;
	eng->hca_places = NULL;
}

/* ---- memory ---- */

bool mc_hca_mem_add(struct mc_engine *eng, uint64_t addr, uint64_t len, unsigned rights)
{
	uint32_t rkey[MC_RDMA_PORTS_MAX];
	struct mc_diag diag = {0};
	int rc = eng->rdma ? mc_rdma_mem_add(eng->rdma, addr, len, rights, rkey, &diag) : 0;

	if (rc < 0 && !atomic_exchange_explicit(&eng->is_hca_warned, true, memory_order_relaxed))
		mc_log_warn("memory goes over TCP: the HCAs refused it",
			    "addr=0x%llx len=%llu cause=\"%s\"", (unsigned long long)addr,
			    (unsigned long long)len, diag.text[0] ? diag.text : mc_err_text(rc));
	return eng->rdma && mc_rdma_mem_is_read_only(eng->rdma, addr, len);
}

void mc_hca_mem_del(struct mc_engine *eng, uint64_t addr, uint64_t len)
{
	if (eng->rdma)
		(void)mc_rdma_mem_del(eng->rdma, addr, len); /* it may have been refused */
}

void mc_hca_keys(struct mc_engine *eng, const struct mc_region_desc *desc,
		 uint8_t ret_key[MC_XPORT_TOKEN_MAX])
{
	uint32_t rkey[MC_RDMA_PORTS_MAX], lkey[MC_RDMA_PORTS_MAX];

	memset(ret_key, 0, MC_XPORT_TOKEN_MAX);
	if (eng->rdma && mc_rdma_mem_keys(eng->rdma, desc->addr, desc->len, rkey, lkey) == 0)
		mc_rdma_key_put(ret_key, rkey);
}

uint64_t mc_hca_range_max(const struct mc_engine *eng)
{
	/* Less than a few pages is no limit, but a driver that does not tell. */
	return eng->rdma ? mc_max(mc_rdma_range_max(eng->rdma), RANGE_MIN) : UINT64_MAX;
}

int mc_hca_region_find(struct mc_engine *eng, uint64_t addr, uint64_t len,
		       struct mc_region_info *ret_info)
{
	int rc = mc_region_find(eng->regions, addr, len, ret_info);

	if (rc == 0 && !ret_info->desc.is_split)
		return 0;
	return mc_region_find(eng->regions, addr, 1, ret_info);
}

/* Node of the page at addr; -1: unknown (no NUMA, forbidden, not there). */
static int node_of(uint64_t addr)
{
	int node = -1;

	if (syscall(SYS_get_mempolicy, &node, NULL, 0, addr, MPOL_F_NODE | MPOL_F_ADDR) != 0)
		return -1;
	return node;
}

void mc_hca_locate(const struct mc_engine *eng, struct mc_region_desc *desc)
{
	int node;

	if (!eng->rdma || eng->nhca_places < 2 || strcmp(desc->location, "*") != 0)
		return;
	node = node_of(desc->addr);
	/* A sample: memory that is spread over nodes has no place. */
	if (node < 0 || node_of(desc->addr + desc->len / 2) != node ||
	    node_of(desc->addr + desc->len - 1) != node)
		return;
	(void)snprintf(desc->location, sizeof(desc->location), "cpu:%d", node);
}

uint32_t mc_hca_near(const struct mc_engine *eng, const char *location)
{
	for (size_t i = 0; i < eng->nhca_places; i++)
		if (strcmp(eng->hca_places[i].location, location) == 0 &&
		    eng->hca_places[i].ports != 0)
			return eng->hca_places[i].ports;
	return all_ports(eng);
}
