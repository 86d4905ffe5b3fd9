/*
 * te.c: upstream's C ABI over engine.h: engines, segments, memory, messages. batch.c has transfers.
 */
#include "capi/handle.h"

#include <stdio.h>
#include <string.h>

#include "base/err.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/upstream.h"
#include "capi/shutdown.h"

#define RIGHTS_ALL (MC_MEM_REMOTE_READ | MC_MEM_REMOTE_WRITE)

/* ---- engine ---- */

transfer_engine_t createTransferEngine(const char *metadata_conn_string,
				       const char *local_server_name, const char *ip_or_host_name,
				       uint64_t rpc_port, int auto_discover)
{
	struct mc_engine_opts opts = {
	    .size = sizeof(opts),
	    .name = local_server_name,
	    .metadata = metadata_conn_string,
	};
	struct mc_diag diag = {.text = ""};
	transfer_engine_t handle;
	struct mc_engine *eng;
	int rc;

	(void)ip_or_host_name;
	(void)rpc_port;
	(void)auto_discover;
	rc = mc_engine_open(&opts, &diag, &eng);
	if (rc < 0) {
		mc_log_error("engine does not open", "why=\"%s\"",
			     diag.text[0] ? diag.text : mc_err_text(rc));
		return NULL;
	}
	handle = mc_capi_engine_add(eng);
	if (!handle) {
		mc_log_error("engine does not open", "why=\"%s\"", mc_err_text(-MC_E_NOMEM));
		mc_engine_close(eng);
	}
	return handle;
}

void destroyTransferEngine(transfer_engine_t engine)
{
	mc_capi_engine_del(engine);
}

/* For functions that have nothing to do but to tell a live engine from none. */
static int engine_check(transfer_engine_t engine)
{
	if (!mc_capi_engine_get(engine))
		return MC_UP_INVALID_ARGUMENT;
	mc_capi_engine_put(engine);
	return 0;
}

int discoverTopology(transfer_engine_t engine)
{
	return engine_check(engine); /* done when the engine opened */
}

int getLocalIpAndPort(transfer_engine_t engine, char *buf_out, size_t buf_len)
{
	struct mc_capi_engine *eng = mc_capi_engine_get(engine);
	int rc = MC_UP_INVALID_ARGUMENT;

	if (!eng)
		return rc;
	if (buf_out && buf_len > 0) {
		int len = snprintf(buf_out, buf_len, "%s", mc_engine_address(eng->eng));

		if (len >= 0 && (size_t)len < buf_len)
			rc = 0;
		else
			buf_out[0] = '\0';
	}
	mc_capi_engine_put(engine);
	return rc;
}

/* Every engine has them all; which of them serves a peer is found out per peer. */
static bool transport_is_known(const char *proto)
{
	static const char *const known[] = {"tcp", "rdma", "shm", "file"};

	for (size_t i = 0; proto && i < MC_ARRAY_LEN(known); i++)
		if (strcmp(proto, known[i]) == 0)
			return true;
	return false;
}

transport_t installTransport(transfer_engine_t engine, const char *proto, void **args)
{
	(void)args; /* a NIC priority matrix: rails are chosen by what they deliver */
	if (engine_check(engine) < 0)
		return NULL;
	if (transport_is_known(proto))
		return engine;
	mc_log_error("no such transport in this build", "transport=%s known=tcp,rdma,shm,file",
		     proto ? proto : "NULL");
	return NULL;
}

int uninstallTransport(transfer_engine_t engine, const char *proto)
{
	int rc = engine_check(engine);

	return rc < 0 || transport_is_known(proto) ? rc : MC_UP_INVALID_ARGUMENT;
}

int enableGracefulShutdown(transfer_engine_t engine)
{
	int rc = engine_check(engine);

	return rc < 0 ? rc : mc_upstream_code(mc_capi_shutdown_add(engine));
}

/* ---- segments ---- */

segment_id_t openSegment(transfer_engine_t engine, const char *segment_name)
{
	struct mc_capi_engine *eng = mc_capi_engine_get(engine);
	struct mc_diag diag = {.text = ""};
	int32_t segment = MC_UP_INVALID_ARGUMENT;
	int rc = -MC_E_INVAL;

	if (!eng)
		return -1;
	if (segment_name && segment_name[0] == '/')
		segment_name++;
	if (segment_name && segment_name[0])
		rc = mc_segment_open(eng->eng, segment_name, 0, &diag, &segment);
	if (rc < 0)
		mc_log_error("segment does not open", "name=\"%s\" why=\"%s\"",
			     segment_name ? segment_name : "",
			     diag.text[0] ? diag.text : mc_err_text(rc));
	mc_capi_engine_put(engine);
	return rc < 0 ? -1 : segment;
}

segment_id_t openSegmentNoCache(transfer_engine_t engine, const char *segment_name)
{
	return openSegment(engine, segment_name);
}

int closeSegment(transfer_engine_t engine, segment_id_t segment_id)
{
	int rc = engine_check(engine);

	return rc == 0 && segment_id < 0 ? MC_UP_INVALID_ARGUMENT : rc;
}

int removeLocalSegment(transfer_engine_t engine, const char *segment_name)
{
	int rc = engine_check(engine);

	return rc == 0 && !segment_name ? MC_UP_INVALID_ARGUMENT : rc;
}

int syncSegmentCache(transfer_engine_t engine)
{
	return engine_check(engine);
}

int warmupEfaSegment(transfer_engine_t engine, const char *segment_name)
{
	return removeLocalSegment(engine, segment_name); /* the same checks, and nothing to do */
}

/* ---- memory ---- */

static int end_call(transfer_engine_t engine, int rc)
{
	mc_capi_engine_put(engine);
	return mc_upstream_code(rc);
}

int registerLocalMemory(transfer_engine_t engine, void *addr, size_t length, const char *location,
			int remote_accessible)
{
	struct mc_capi_engine *eng = mc_capi_engine_get(engine);

	if (!eng)
		return MC_UP_INVALID_ARGUMENT;
	return end_call(engine, mc_mem_reg(eng->eng, addr, length, location,
					   remote_accessible ? RIGHTS_ALL : 0));
}

int unregisterLocalMemory(transfer_engine_t engine, void *addr)
{
	struct mc_capi_engine *eng = mc_capi_engine_get(engine);

	if (!eng)
		return MC_UP_INVALID_ARGUMENT;
	return end_call(engine, mc_mem_unreg(eng->eng, addr));
}

int registerLocalMemoryBatch(transfer_engine_t engine, buffer_entry_t *buffer_list,
			     size_t buffer_len, const char *location)
{
	struct mc_capi_engine *eng = mc_capi_engine_get(engine);
	struct mc_mem *mem;
	int rc;

	if (!eng)
		return MC_UP_INVALID_ARGUMENT;
	if (buffer_len == 0)
		return end_call(engine, 0);
	if (!buffer_list)
		return end_call(engine, -MC_E_INVAL);
	mem = mc_calloc(buffer_len, sizeof(*mem));
	if (!mem)
		return end_call(engine, -MC_E_NOMEM);
	for (size_t i = 0; i < buffer_len; i++)
		mem[i] = (struct mc_mem){buffer_list[i].addr, buffer_list[i].length};
	rc = mc_mem_reg_batch(eng->eng, mem, buffer_len, location, RIGHTS_ALL);
	mc_free(mem);
	return end_call(engine, rc);
}

int unregisterLocalMemoryBatch(transfer_engine_t engine, void **addr_list, size_t addr_len)
{
	struct mc_capi_engine *eng = mc_capi_engine_get(engine);

	if (!eng)
		return MC_UP_INVALID_ARGUMENT;
	if (addr_len == 0)
		return end_call(engine, 0);
	if (!addr_list)
		return end_call(engine, -MC_E_INVAL);
	return end_call(engine, mc_mem_unreg_batch(eng->eng, addr_list, addr_len));
}

/* ---- messages ---- */

/* Array and texts in one allocation, so that freeNotifsMsgBuf() is one call. */
static notify_msg_t *notices_pack(const struct mc_notice *notice, int n)
{
	size_t bytes = (size_t)n * sizeof(notify_msg_t);
	notify_msg_t *out;
	char *text;

	for (int i = 0; i < n; i++)
		bytes += (size_t)notice[i].name_len + notice[i].msg_len + 2;
	out = mc_calloc(1, bytes);
	if (!out)
		return NULL;
	text = (char *)(out + n);
	for (int i = 0; i < n; i++) {
		/* All bytes, zeros inside too; the zero behind them is calloc's. */
		out[i].name = memcpy(text, notice[i].name, notice[i].name_len);
		text += notice[i].name_len + 1u;
		out[i].msg = memcpy(text, notice[i].msg, notice[i].msg_len);
		text += notice[i].msg_len + 1u;
	}
	return out;
}

notify_msg_t *getNotifsFromEngine(transfer_engine_t engine, int *size)
{
	struct mc_capi_engine *eng;
	struct mc_notice *notice = NULL;
	notify_msg_t *out = NULL;
	int n;

	if (!size)
		return NULL;
	*size = 0;
	eng = mc_capi_engine_get(engine);
	if (!eng)
		return NULL;
	n = mc_notices_take(eng->eng, &notice);
	if (n > 0) {
		out = notices_pack(notice, n);
		if (out)
			*size = n;
		else
			mc_log_error("messages are lost", "why=\"%s\" n=%d",
				     mc_err_text(-MC_E_NOMEM), n);
		mc_notices_free(notice, n);
	}
	mc_capi_engine_put(engine);
	return out;
}

int freeNotifsMsgBuf(notify_msg_t *msg, int size)
{
	(void)size;
	mc_free(msg);
	return 0;
}

int genNotifyInEngine(transfer_engine_t engine, uint64_t target_id, notify_msg_t notify_msg)
{
	struct mc_capi_engine *eng;
	struct mc_notify notify;
	int rc;

	if (!notify_msg.name || !notify_msg.msg || target_id > INT32_MAX)
		return MC_UP_INVALID_ARGUMENT;
	notify.name = notify_msg.name;
	notify.msg = notify_msg.msg;
	notify.name_len = (uint32_t)strnlen(notify_msg.name, MC_NOTIFY_MAX + 1);
	notify.msg_len = (uint32_t)strnlen(notify_msg.msg, MC_NOTIFY_MAX + 1);
	eng = mc_capi_engine_get(engine);
	if (!eng)
		return MC_UP_INVALID_ARGUMENT;
	rc = mc_notify_send(eng->eng, (int32_t)target_id, &notify, 0);
	if (rc < 0)
		mc_log_error("message is not sent", "segment=%llu why=\"%s\"",
			     (unsigned long long)target_id, mc_err_text(rc));
	return end_call(engine, rc);
}

/* ---- observation ---- */

int getNicLoadStats(transfer_engine_t engine, nic_load_stat_t *arr, size_t *count)
{
	int rc = engine_check(engine);

	(void)arr; /* loads are of RDMA devices; TCP rails are in the metrics */
	if (rc < 0 || !count)
		return MC_UP_INVALID_ARGUMENT;
	*count = 0;
	return 0;
}

int showLinks(transfer_engine_t engine, char *buf, size_t buf_len, int json)
{
	int len, rc = engine_check(engine);
	char *topology;

	if (rc < 0 || !buf || buf_len == 0)
		return MC_UP_INVALID_ARGUMENT;
	topology = mc_topology_json(NULL);
	if (!topology)
		return MC_UP_MEMORY;
	len = snprintf(buf, buf_len,
		       json ? "{\"local_nics\": [], \"topology\": %s}"
			    : "local NICs: none of RDMA\ntopology: %s\n",
		       topology);
	mc_text_free(topology);
	if (len >= 0 && (size_t)len < buf_len)
		return 0;
	buf[0] = '\0';
	return MC_UP_INVALID_ARGUMENT;
}
