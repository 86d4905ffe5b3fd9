/*
 * describe.c: see describe.h. The texts are kept until a registration changes them.
 */
#include "engine/describe.h"

#include <string.h>

#include "base/log.h"
#include "base/mem.h"
#include "disco/connection.h"
#include "disco/segdesc.h"
#include "disco/topo.h"
#include "xport/rdma/rdma.h"

/* What a listed range needs besides its numbers. */
struct extra {
	uint64_t rkey[MC_RDMA_PORTS_MAX];
	char location[MC_LOCATION_MAX];
};

struct listing {
	struct mc_engine *eng;
	struct mc_segdesc_buffer *bufs;
	struct extra *extras; /* of each of bufs; NULL: without RDMA */
	size_t n, cap;
	/* RDMA ports that have an address, in the order of devices[] and keys */
	unsigned nports;
	struct mc_rdma_port port[MC_RDMA_PORTS_MAX];
	uint8_t index[MC_RDMA_PORTS_MAX];
	char *matrix; /* mc_free() */
};

/* Local keys mean nothing to others; upstream's reader only counts them. */
static const uint64_t no_keys[MC_RDMA_PORTS_MAX];

static void list_region(void *user, const struct mc_region_info *info)
{
	uint32_t rkey[MC_RDMA_PORTS_MAX], lkey[MC_RDMA_PORTS_MAX];
	const struct mc_region_desc *d = &info->desc;
	struct listing *l = user;
	struct mc_segdesc_buffer *b = &l->bufs[l->n];
	struct extra *x;

	/* Transports reach neither files nor, as far as others know, our buffers for them. */
	if (l->n == l->cap || !(d->rights & (MC_RIGHT_READ | MC_RIGHT_WRITE)) ||
	    (d->rights & MC_RIGHT_UNLISTED) || d->is_split)
		return;
	*b = (struct mc_segdesc_buffer){.name = l->eng->name, .addr = d->addr, .len = d->len};
	if (l->extras) {
		x = &l->extras[l->n];
		memcpy(x->location, d->location, sizeof(x->location));
		b->name = x->location[0] ? x->location : "*";
		if (mc_rdma_mem_keys(l->eng->rdma, d->addr, d->len, rkey, lkey) == 0) {
			for (unsigned i = 0; i < l->nports; i++)
				x->rkey[i] = rkey[l->index[i]];
			b->rkey = x->rkey;
			b->lkey = no_keys;
			b->nkeys = l->nports;
		}
	}
	l->n++;
}

/* A port that has never been up is not shown: upstream's processes would try it again and again. */
static int list_ports(struct listing *l)
{
	struct mc_rdma_port all[MC_RDMA_PORTS_MAX] = {0};
	const char *names[MC_RDMA_PORTS_MAX];
	uint8_t index[MC_RDMA_PORTS_MAX] = {0};
	uint16_t order[MC_RDMA_PORTS_MAX];
	int rc;

	for (unsigned i = 0; i < mc_rdma_ports(l->eng->rdma); i++) {
		struct mc_rdma_port *port = &all[l->nports];

		mc_rdma_port_get(l->eng->rdma, i, port);
		if (!port->has_addr)
			continue;
		names[l->nports] = port->name;
		index[l->nports++] = (uint8_t)i;
	}
	rc = mc_topo_publish(l->eng->hca_topo, names, l->nports, order, &l->matrix);
	for (unsigned i = 0; i < l->nports && rc == 0; i++) {
		l->port[i] = all[order[i]];
		l->index[i] = index[order[i]];
	}
	return rc;
}

static int list_all(struct listing *l, bool is_rdma)
{
	int rc;

	/* Ranges registered meanwhile are in the next one. */
	l->cap = mc_region_count(l->eng->regions) + 64;
	l->bufs = mc_calloc(l->cap, sizeof(*l->bufs));
	if (!l->bufs)
		return -MC_E_NOMEM;
	if (is_rdma) {
		rc = list_ports(l);
		if (rc < 0)
			return rc;
		l->extras = mc_calloc(l->cap, sizeof(*l->extras));
		if (!l->extras)
			return -MC_E_NOMEM;
	}
	mc_region_each(l->eng->regions, list_region, l);
	return 0;
}

/* A frame's length counts its type byte, too. */
static int encode(struct mc_engine *eng, struct mc_segdesc *d, size_t bytes_max, char **ret_json,
		  size_t *ret_len, struct mc_diag *diag)
{
	size_t all = d->nbuffers;
	int rc = mc_segdesc_encode(d, bytes_max - 1, ret_json, ret_len, diag);
	int n;

	if (rc != -MC_E_TOO_BIG || d->ndevices == 0)
		return rc;
	n = mc_segdesc_fit(d, bytes_max - 1, diag);
	if (n < 0)
		return n;
	d->nbuffers = (size_t)n;
	if (!atomic_exchange_explicit(&eng->is_desc_warned, true, memory_order_relaxed))
		mc_log_warn(
		    "upstream's peers cannot be told of all memory",
		    "ranges=%zu told=%d fix=\"a larger MC_HANDSHAKE_MAX_LENGTH at both ends, "
		    "or fewer and larger ranges\"",
		    all, n);
	return mc_segdesc_encode(d, bytes_max - 1, ret_json, ret_len, diag);
}

bool mc_describe_has_rdma(const struct mc_engine *eng)
{
	return eng->rdma && mc_rdma_has_addr(eng->rdma);
}

int mc_describe(struct mc_engine *eng, bool is_rdma, size_t bytes_max, char **ret_json,
		size_t *ret_len, struct mc_diag *diag)
{
	char text[MC_RAILS_MAX][MC_ADDR_TEXT_MAX], gid[MC_RDMA_PORTS_MAX][MC_GID_TEXT_MAX];
	struct mc_segdesc_device dev[MC_RDMA_PORTS_MAX];
	const char *rails[MC_RAILS_MAX];
	struct listing l = {.eng = eng};
	struct mc_segdesc d = {.name = eng->name,
			       .protocol = is_rdma ? "rdma" : "tcp",
			       .timestamp = "",
			       .rdma_server_name = "",
			       .tcp_data_host = "",
			       .tcp_data_port = mc_tcp_dev_port(eng->tcp),
			       .tcp_proto_version = 2,
			       .devices = dev,
			       .ext = {.version = MC_SEGDESC_MC_VERSION,
				       .epoch = eng->epoch,
				       .rails = rails,
				       .nrails = eng->nrail_addrs}};
	int rc = list_all(&l, is_rdma);

	d.priority_matrix = l.matrix ? l.matrix : "";
	for (unsigned i = 0; i < eng->nrail_addrs; i++) {
		struct mc_addr a = eng->rail_addrs[i];

		mc_addr_port_set(&a, d.tcp_data_port);
		rails[i] = mc_addr_format(&a, text[i]);
	}
	for (unsigned i = 0; i < l.nports; i++) {
		dev[i] = (struct mc_segdesc_device){
		    l.port[i].name, mc_gid_format(l.port[i].gid, gid[i]), l.port[i].lid};
	}
	d.ndevices = l.nports;
	d.buffers = l.bufs;
	d.nbuffers = l.n;
	if (rc == 0)
		rc = encode(eng, &d, bytes_max, ret_json, ret_len, diag);
	mc_free(l.bufs);
	mc_free(l.extras);
	mc_free(l.matrix);
	return rc;
}

int mc_describe_answer(void *user, const char *peer_json, size_t len,
		       struct mc_control_text **ret_text)
{
	struct mc_engine *eng = user;
	uint64_t version = mc_region_version(eng->regions);
	uint32_t ports = eng->rdma ? mc_rdma_ports_version(eng->rdma) : 0;
	char protocol[MC_SEGDESC_PROTOCOL_MAX], *json;
	struct mc_diag diag = {0};
	size_t json_len;
	bool is_rdma = mc_describe_has_rdma(eng) &&
		       mc_segdesc_protocol(peer_json, len, "rdma", protocol) &&
		       strcmp(protocol, "rdma") == 0;
	struct mc_control_text **kept = &eng->desc_text[is_rdma];
	int rc;

	if (!*kept || eng->desc_version[is_rdma] != version ||
	    (is_rdma && eng->desc_ports[is_rdma] != ports)) {
		rc = mc_describe(eng, is_rdma, (size_t)eng->hs.bytes_max, &json, &json_len, &diag);
		if (rc < 0) {
			mc_log_warn("cannot describe this segment", "cause=\"%s\"", diag.text);
			return rc;
		}
		mc_control_text_put(*kept);
		*kept = NULL;
		rc = mc_control_text_open(json, json_len, kept);
		if (rc < 0)
			return rc;
		eng->desc_version[is_rdma] = version;
		eng->desc_ports[is_rdma] = ports;
	}
	*ret_text = mc_control_text_get(*kept);
	return 0;
}

void mc_describe_drop(struct mc_engine *eng)
{
	for (size_t i = 0; i < MC_ARRAY_LEN(eng->desc_text); i++) {
		mc_control_text_put(eng->desc_text[i]);
		eng->desc_text[i] = NULL;
	}
}
