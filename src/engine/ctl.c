/*
 * ctl.c: encode, call, decode. Messages are small but for Resolve, whose records are fixed and
 * packed.
 */
#include "engine/ctl.h"

#include <unistd.h>

#include "control.pb-c.h"
#include "engine/stage.h"
#include "wire/control.h"
#include "wire/pb.h"
#include "xport/shm.h"

#define SMALL_BYTES 4096u
#define NOTIFY_BYTES (MC_NOTIFY_MAX + 1024u)

static ProtobufCBinaryData bin(const void *data, size_t len)
{
	return (ProtobufCBinaryData){.data = (uint8_t *)data, .len = len};
}

/* @return bytes written to buf, room for all ports */
static size_t ports_encode(const struct mc_xdev *dev, uint8_t *buf)
{
	struct mc_wr w = mc_wr_make(buf, MC_RDMA_PORTS_MAX * MC_CTL_PORT_LEN);

	for (unsigned i = 0; dev && i < mc_rdma_ports(dev); i++) {
		struct mc_ctl_port p = {0};
		struct mc_rdma_port port;

		mc_rdma_port_get(dev, i, &port);
		memcpy(p.gid, port.gid, sizeof(p.gid));
		p.mbps = port.mbps;
		p.lid = port.lid;
		p.mtu = port.mtu;
		p.flags = (port.is_ethernet ? MC_CTL_PORT_ETHERNET : 0) |
			  (mc_rdma_port_is_up(dev, i) ? 0 : MC_CTL_PORT_DOWN);
		p.numa = (int16_t)port.numa;
		(void)mc_strlcpy(p.name, sizeof(p.name), port.name); /* longer ones are cut */
		mc_ctl_port_encode(&w, &p);
	}
	return mc_wr_len(&w);
}

int mc_ctl_hello_encode(struct mc_engine *eng, uint8_t *buf, size_t cap, size_t *ret_len)
{
	uint8_t ports[MC_RDMA_PORTS_MAX * MC_CTL_PORT_LEN];
	Mc__Ctl__Hello m = MC__CTL__HELLO__INIT;
	char text[MC_RAILS_MAX][MC_ADDR_TEXT_MAX], *rails[MC_RAILS_MAX];

	m.version = MC_CTL_VERSION;
	m.segment = eng->name;
	m.epoch = eng->epoch;
	m.pid = (uint32_t)getpid();
	m.boot_id = eng->boot_id;
	m.uid = (uint32_t)getuid();
	m.nonce = bin(eng->nonce, sizeof(eng->nonce));
	if (eng->shm)
		m.shm_socket = (char *)mc_shm_dev_socket_path(eng->shm);
	for (unsigned i = 0; i < eng->nrail_addrs; i++) {
		struct mc_addr a = eng->rail_addrs[i];

		mc_addr_port_set(&a, mc_tcp_dev_port(eng->tcp));
		rails[i] = mc_addr_format(&a, text[i]);
	}
	m.rails = rails;
	m.n_rails = eng->nrail_addrs;
	m.rdma_ports = bin(ports, ports_encode(eng->rdma, ports));
	return mc_pb_pack(&m.base, buf, cap, ret_len);
}

/* More ports than we can use are left alone. */
static int ports_decode(const ProtobufCBinaryData *in, struct mc_ctl_peer *ret)
{
	struct mc_rd r = mc_rd_make(in->data, in->len);
	int n = mc_ctl_count(in->len, MC_CTL_PORT_LEN);

	if (n < 0)
		return -MC_E_PROTO;
	ret->nports = mc_min((unsigned)n, MC_RDMA_PORTS_MAX);
	for (unsigned i = 0; i < ret->nports; i++)
		mc_ctl_port_decode(&r, &ret->ports[i]);
	return 0;
}

static int hello_decode(const uint8_t *data, size_t len, struct mc_ctl_peer *ret)
{
	_Alignas(16) uint8_t mem[SMALL_BYTES * 2];
	struct mc_pb_arena arena;
	ProtobufCMessage *base;
	Mc__Ctl__Hello *m;
	int rc;

	mc_pb_arena_init(&arena, mem, sizeof(mem));
	rc = mc_pb_unpack(&arena, &mc__ctl__hello__descriptor, data, len, &base);
	if (rc < 0)
		return rc;
	m = (Mc__Ctl__Hello *)base;
	if (m->version != MC_CTL_VERSION)
		return -MC_E_VERSION;
	if (m->epoch == 0 || m->nonce.len != MC_NONCE_BYTES || m->n_rails > MC_RAILS_MAX)
		return -MC_E_PROTO;
	memset(ret, 0, sizeof(*ret));
	ret->epoch = m->epoch;
	memcpy(ret->nonce, m->nonce.data, MC_NONCE_BYTES);
	if (mc_strlcpy(ret->segment, sizeof(ret->segment), m->segment) < 0 ||
	    mc_strlcpy(ret->boot_id, sizeof(ret->boot_id), m->boot_id) < 0 ||
	    mc_strlcpy(ret->shm_socket, sizeof(ret->shm_socket), m->shm_socket) < 0)
		return -MC_E_PROTO;
	for (size_t i = 0; i < m->n_rails; i++)
		if (mc_strlcpy(ret->rails[i], MC_ADDR_TEXT_MAX, m->rails[i]) < 0)
			return -MC_E_PROTO;
	ret->nrails = (unsigned)m->n_rails;
	return ports_decode(&m->rdma_ports, ret);
}

int mc_ctl_hello(struct mc_engine *eng, struct mc_rpc_conn *conn, uint64_t deadline_ns,
		 struct mc_ctl_peer *ret_peer)
{
	uint8_t req[SMALL_BYTES], reply[SMALL_BYTES];
	struct mc_rpc_call call = {.method = MC_CTL_HELLO,
				   .req = req,
				   .deadline_ns = deadline_ns,
				   .reply_buf = reply,
				   .reply_cap = sizeof(reply)};
	int rc = mc_ctl_hello_encode(eng, req, sizeof(req), &call.req_len);

	if (rc == 0)
		rc = mc_rpc_sync(conn, &call);
	if (rc == 0)
		rc = hello_decode(reply, call.reply_len, ret_peer);
	return rc;
}

/* ---- resolve ---- */

static void region_of(const struct mc_ctl_region *in, struct mc_remote_region *out)
{
	*out = (struct mc_remote_region){.addr = in->addr,
					 .len = in->len,
					 .id = in->id,
					 .gen = in->gen,
					 .rights = in->rights,
					 .kind = (enum mc_mem_kind)in->kind,
					 .arena = in->arena,
					 .arena_off = in->arena_off};
	memcpy(out->key, in->key, sizeof(out->key));
}

static int resolve_decode(const uint8_t *data, size_t len, const struct mc_iov *ranges, size_t n,
			  uint8_t *mem, size_t mem_cap, struct mc_remote_region *ret)
{
	struct mc_pb_arena arena;
	ProtobufCMessage *base;
	Mc__Ctl__ResolveReply *m;
	struct mc_rd rd;
	int rc;

	mc_pb_arena_init(&arena, mem, mem_cap);
	rc = mc_pb_unpack(&arena, &mc__ctl__resolve_reply__descriptor, data, len, &base);
	if (rc < 0)
		return rc;
	m = (Mc__Ctl__ResolveReply *)base;
	if (m->status < 0)
		return m->status > -MC_E_COUNT ? m->status : -MC_E_PROTO;
	if (m->records.len != n * MC_CTL_REGION_LEN)
		return -MC_E_PROTO;
	rd = mc_rd_make(m->records.data, m->records.len);
	for (size_t i = 0; i < n; i++) {
		struct mc_ctl_region r;
		uint64_t end;

		mc_ctl_region_decode(&rd, &r);
		/* What the peer says must hold the start of what was asked for, and not wrap. */
		if (r.gen != 0 &&
		    (__builtin_add_overflow(r.addr, r.len, &end) || ranges[i].addr < r.addr ||
		     ranges[i].addr >= end || r.kind >= MC_MEM_KIND_COUNT))
			return -MC_E_PROTO;
		region_of(&r, &ret[i]);
	}
	return 0;
}

int mc_ctl_resolve(struct mc_session *s, const struct mc_iov *ranges, size_t n,
		   uint64_t deadline_ns, struct mc_remote_region *ret)
{
	size_t req_cap = n * MC_CTL_RANGE_LEN + 64, reply_cap = n * MC_CTL_REGION_LEN + 64;
	size_t req_len, reply_len = 0;
	uint8_t *records = mc_calloc(1, n * MC_CTL_RANGE_LEN);
	uint8_t *req = mc_calloc(1, req_cap), *reply = mc_calloc(1, reply_cap);
	uint8_t *mem = mc_aligned_alloc(16, reply_cap + 1024);
	Mc__Ctl__Resolve m = MC__CTL__RESOLVE__INIT;
	struct mc_wr w;
	int rc = -MC_E_NOMEM;

	mc_assert(n <= MC_CTL_RESOLVE_MAX);
	if (!records || !req || !reply || !mem)
		goto out;
	w = mc_wr_make(records, n * MC_CTL_RANGE_LEN);
	for (size_t i = 0; i < n; i++)
		mc_ctl_range_encode(&w, &(struct mc_ctl_range){ranges[i].addr, ranges[i].len});
	m.records = bin(records, n * MC_CTL_RANGE_LEN);
	rc = mc_pb_pack(&m.base, req, req_cap, &req_len);
	if (rc == 0)
		rc = mc_session_call(s, MC_CTL_RESOLVE, req, req_len, deadline_ns, reply, reply_cap,
				     &reply_len);
	if (rc == 0)
		rc = resolve_decode(reply, reply_len, ranges, n, mem, reply_cap + 1024, ret);
out:
	mc_free(records);
	mc_free(req);
	mc_free(reply);
	mc_free(mem);
	return rc;
}

/* ---- small ones ---- */

static int status_of(int32_t status)
{
	return status > 0 || status <= -MC_E_COUNT ? -MC_E_PROTO : status;
}

int mc_ctl_retire(struct mc_session *s, const char *transport, const uint8_t *token,
		  size_t token_len, uint64_t deadline_ns, uint64_t *ret_acked)
{
	_Alignas(16) uint8_t mem[512];
	uint8_t req[256], reply[256];
	Mc__Ctl__Retire m = MC__CTL__RETIRE__INIT;
	const Mc__Ctl__RetireReply *r;
	struct mc_pb_arena arena;
	ProtobufCMessage *base;
	size_t req_len, reply_len = 0;
	int rc;

	m.transport = (char *)transport;
	m.token = bin(token, token_len);
	rc = mc_pb_pack(&m.base, req, sizeof(req), &req_len);
	if (rc == 0)
		rc = mc_session_call(s, MC_CTL_RETIRE, req, req_len, deadline_ns, reply,
				     sizeof(reply), &reply_len);
	if (rc < 0)
		return rc;
	mc_pb_arena_init(&arena, mem, sizeof(mem));
	rc = mc_pb_unpack(&arena, &mc__ctl__retire_reply__descriptor, reply, reply_len, &base);
	if (rc < 0)
		return rc;
	r = (const Mc__Ctl__RetireReply *)base;
	*ret_acked = r->acked;
	return status_of(r->status);
}

int mc_ctl_connect(struct mc_session *s, const char *transport, const uint8_t *offer,
		   size_t offer_len, uint64_t deadline_ns, uint8_t answer[MC_CTL_OFFER_MAX])
{
	_Alignas(16) uint8_t mem[MC_CTL_OFFER_MAX + 512];
	uint8_t req[MC_CTL_OFFER_MAX + 64], reply[MC_CTL_OFFER_MAX + 64];
	Mc__Ctl__Connect m = MC__CTL__CONNECT__INIT;
	Mc__Ctl__ConnectReply *r;
	struct mc_pb_arena arena;
	ProtobufCMessage *base;
	size_t req_len, reply_len = 0;
	int rc;

	m.transport = (char *)transport;
	m.offer = bin(offer, offer_len);
	rc = mc_pb_pack(&m.base, req, sizeof(req), &req_len);
	if (rc == 0)
		rc = mc_session_call(s, MC_CTL_CONNECT, req, req_len, deadline_ns, reply,
				     sizeof(reply), &reply_len);
	if (rc < 0)
		return rc;
	mc_pb_arena_init(&arena, mem, sizeof(mem));
	rc = mc_pb_unpack(&arena, &mc__ctl__connect_reply__descriptor, reply, reply_len, &base);
	if (rc < 0)
		return rc;
	r = (Mc__Ctl__ConnectReply *)base;
	if (r->status != 0)
		return status_of(r->status);
	if (r->answer.len == 0 || r->answer.len > MC_CTL_OFFER_MAX)
		return -MC_E_PROTO;
	memcpy(answer, r->answer.data, r->answer.len);
	return (int)r->answer.len;
}

/* What the peer says must hold the piece, and be memory that transports reach. */
static int piece_decode(const Mc__Ctl__StageReply *m, uint64_t len, struct mc_remote_region *ret)
{
	struct mc_rd rd = mc_rd_make(m->region.data, m->region.len);
	struct mc_ctl_region r;
	uint64_t end;

	if (m->region.len != MC_CTL_REGION_LEN)
		return -MC_E_PROTO;
	mc_ctl_region_decode(&rd, &r);
	if (r.gen == 0 || __builtin_add_overflow(r.addr, r.len, &end) || m->addr < r.addr ||
	    m->addr >= end || len > end - m->addr ||
	    (r.kind != MC_MEM_HOST && r.kind != MC_MEM_MEMFD))
		return -MC_E_PROTO;
	region_of(&r, ret);
	return 0;
}

int mc_ctl_stage(struct mc_session *s, const struct mc_stage_want *want, uint64_t deadline_ns,
		 uint64_t *ret_addr, struct mc_remote_region *ret_region, bool *ret_is_answered)
{
	_Alignas(16) uint8_t mem[512];
	uint8_t req[128], reply[MC_CTL_REGION_LEN + 64];
	Mc__Ctl__Stage m = MC__CTL__STAGE__INIT;
	const Mc__Ctl__StageReply *r;
	struct mc_pb_arena arena;
	ProtobufCMessage *base;
	size_t req_len, reply_len = 0;
	int rc;

	*ret_is_answered = false;
	m.id = want->id;
	m.op = want->op;
	m.region = want->region;
	m.gen = want->gen;
	m.offset = want->off;
	m.len = (uint32_t)want->len;
	rc = mc_pb_pack(&m.base, req, sizeof(req), &req_len);
	if (rc == 0)
		rc = mc_session_call(s, MC_CTL_STAGE, req, req_len, deadline_ns, reply,
				     sizeof(reply), &reply_len);
	if (rc < 0)
		return rc;
	mc_pb_arena_init(&arena, mem, sizeof(mem));
	rc = mc_pb_unpack(&arena, &mc__ctl__stage_reply__descriptor, reply, reply_len, &base);
	if (rc < 0)
		return rc;
	r = (const Mc__Ctl__StageReply *)base;
	rc = status_of(r->status);
	*ret_is_answered = rc != -MC_E_PROTO;
	if (rc == 0)
		rc = piece_decode(r, want->len, ret_region);
	if (rc == 0)
		*ret_addr = r->addr;
	return rc;
}

int mc_ctl_unstage(struct mc_session *s, uint64_t id, enum mc_ctl_unstage end, uint64_t deadline_ns,
		   bool *ret_is_answered)
{
	_Alignas(16) uint8_t mem[512];
	uint8_t req[64], reply[64];
	Mc__Ctl__Unstage m = MC__CTL__UNSTAGE__INIT;
	struct mc_pb_arena arena;
	ProtobufCMessage *base;
	size_t req_len, reply_len = 0;
	int rc;

	*ret_is_answered = false;
	m.id = id;
	m.end = end;
	rc = mc_pb_pack(&m.base, req, sizeof(req), &req_len);
	if (rc == 0)
		rc = mc_session_call(s, MC_CTL_UNSTAGE, req, req_len, deadline_ns, reply,
				     sizeof(reply), &reply_len);
	if (rc < 0)
		return rc;
	mc_pb_arena_init(&arena, mem, sizeof(mem));
	rc = mc_pb_unpack(&arena, &mc__ctl__unstage_reply__descriptor, reply, reply_len, &base);
	if (rc < 0)
		return rc;
	rc = status_of(((Mc__Ctl__UnstageReply *)base)->status);
	*ret_is_answered = rc != -MC_E_AGAIN && rc != -MC_E_PROTO;
	return rc;
}

int mc_ctl_notify(struct mc_session *s, uint64_t id, const void *name, size_t name_len,
		  const void *msg, size_t msg_len, uint64_t deadline_ns)
{
	_Alignas(16) uint8_t mem[512];
	uint8_t reply[256], *req = mc_calloc(1, NOTIFY_BYTES);
	Mc__Ctl__Notify m = MC__CTL__NOTIFY__INIT;
	struct mc_pb_arena arena;
	ProtobufCMessage *base;
	size_t req_len, reply_len = 0;
	int rc;

	if (!req)
		return -MC_E_NOMEM;
	m.id = id;
	m.name = bin(name, name_len);
	m.msg = bin(msg, msg_len);
	m.sender = s->eng->name;
	rc = mc_pb_pack(&m.base, req, NOTIFY_BYTES, &req_len);
	if (rc == 0)
		rc = mc_session_call(s, MC_CTL_NOTIFY, req, req_len, deadline_ns, reply,
				     sizeof(reply), &reply_len);
	mc_free(req);
	if (rc < 0)
		return rc;
	mc_pb_arena_init(&arena, mem, sizeof(mem));
	rc = mc_pb_unpack(&arena, &mc__ctl__notify_reply__descriptor, reply, reply_len, &base);
	return rc < 0 ? rc : status_of(((Mc__Ctl__NotifyReply *)base)->status);
}

int mc_ctl_probe(struct mc_session *s, uint64_t deadline_ns, uint64_t *ret_epoch)
{
	_Alignas(16) uint8_t mem[512];
	uint8_t reply[256];
	struct mc_pb_arena arena;
	ProtobufCMessage *base;
	size_t reply_len;
	int rc = mc_session_call(s, MC_CTL_PROBE, NULL, 0, deadline_ns, reply, sizeof(reply),
				 &reply_len);

	if (rc < 0)
		return rc;
	mc_pb_arena_init(&arena, mem, sizeof(mem));
	rc = mc_pb_unpack(&arena, &mc__ctl__probe_reply__descriptor, reply, reply_len, &base);
	if (rc == 0)
		*ret_epoch = ((Mc__Ctl__ProbeReply *)base)->epoch;
	return rc;
}
