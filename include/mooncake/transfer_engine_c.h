/*
 * transfer_engine_c.h: the C interface of upstream Mooncake, for programs written against it.
 *
 * Names, layouts and numbers are upstream's, so that NIXL's plugin and TensorRT-LLM's agent compile
 * and run unchanged over libtransfer_engine.so. New programs use engine.h.
 *
 * Two conventions meet here, both upstream's: functions that return an engine, a segment or a plain
 * result give 0 or a negative number; submitTransfer*(), getTransferStatus() and freeBatchID() give
 * 0 or a *positive* number of the same table.
 *
 * Better than upstream's: engines and batches are checked handles, so NULL, a foreign or an old one
 * is an error and never a crash. Every transfer ends by its deadline (MC_TRANSFER_TIMEOUT); one
 * that fails for whatever reason is STATUS_FAILED, because clients take every other end for
 * success. Messages leave by themselves after the last byte is visible, whether anybody asks for a
 * status or not. No argument is kept after a call returns; the memory that transfers move is the
 * caller's until they end.
 */
#ifndef MOONCAKE_TRANSFER_ENGINE_C_H
#define MOONCAKE_TRANSFER_ENGINE_C_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define MC_C_API __attribute__((visibility("default")))
#else
#define MC_C_API
#endif

/* Upstream's are macros as well: a program may use them in its own typedefs. */
#define segment_handle_t int32_t
#define segment_id_t int32_t
#define batch_id_t uint64_t

#define LOCAL_SEGMENT (0)
#define INVALID_BATCH UINT64_MAX

#define OPCODE_READ (0)
#define OPCODE_WRITE (1)

#define STATUS_WAITING (0)
#define STATUS_PENDING (1)
#define STATUS_INVALID (2)
#define STATUS_CANCELED (3)
#define STATUS_COMPLETED (4)
#define STATUS_TIMEOUT (5)
#define STATUS_FAILED (6)

typedef void *transfer_engine_t;
typedef void *transport_t;

struct transfer_request {
	int opcode;
	void *source; /* local */
	segment_id_t target_id;
	uint64_t target_offset; /* address in the peer; in a file its offset */
	uint64_t length;
};
typedef struct transfer_request transfer_request_t;

struct transfer_status {
	int status;
	uint64_t transferred_bytes;
};
typedef struct transfer_status transfer_status_t;

struct notify_msg {
	char *name;
	char *msg;
};
typedef struct notify_msg notify_msg_t;

struct buffer_entry {
	void *addr;
	size_t length;
};
typedef struct buffer_entry buffer_entry_t;

struct nic_load_stat {
	char device_name[64];
	uint64_t inflight_bytes;
	double ewma_bandwidth_bps;
};
typedef struct nic_load_stat nic_load_stat_t;

/* No function takes it; programs name it. */
struct segment_desc {
	int type;
	union {
		struct {
			void *addr;
			uint64_t size;
			const char *location;
		} rdma;
		struct {
			const char *file_path;
			const char *subsystem_name;
			const char *proto;
			const char *ip;
			uint64_t port;
		} nvmeof;
	} desc_;
};
typedef struct segment_desc segment_desc_t;

/* ---- engine ---- */

/**
 * @param metadata_conn_string "P2PHANDSHAKE", "http://…", "etcd://…", "redis://…"
 * @param local_server_name host or host:port, the name that peers open
 * @param ip_or_host_name, rpc_port not looked at, as upstream: the name says both
 * @param auto_discover not looked at: the transports of this build are there from the start
 * @return NULL on failure, which is logged
 */
MC_C_API transfer_engine_t createTransferEngine(const char *metadata_conn_string,
						const char *local_server_name,
						const char *ip_or_host_name, uint64_t rpc_port,
						int auto_discover);
MC_C_API void destroyTransferEngine(transfer_engine_t engine);
MC_C_API int discoverTopology(transfer_engine_t engine);
/** "ip:port" that peers open. @return 0; -1 when buf_len is too small */
MC_C_API int getLocalIpAndPort(transfer_engine_t engine, char *buf_out, size_t buf_len);
/** @return a token, NULL when this build has no such transport */
MC_C_API transport_t installTransport(transfer_engine_t engine, const char *proto, void **args);
MC_C_API int uninstallTransport(transfer_engine_t engine, const char *proto);
/** The process leaves the metadata service before SIGINT, SIGTERM or exit() end it. */
MC_C_API int enableGracefulShutdown(transfer_engine_t engine);

/* ---- segments ---- */

/** The same name gives the same id. A leading '/' is dropped. @return id; -1 */
MC_C_API segment_id_t openSegment(transfer_engine_t engine, const char *segment_name);
/** openSegment(): the engine finds out by itself when what it knows of a peer is old. */
MC_C_API segment_id_t openSegmentNoCache(transfer_engine_t engine, const char *segment_name);
/** The id stays valid: others of the process may hold the same. @return 0; -1 */
MC_C_API int closeSegment(transfer_engine_t engine, segment_id_t segment_id);
MC_C_API int removeLocalSegment(transfer_engine_t engine, const char *segment_name);
MC_C_API int syncSegmentCache(transfer_engine_t engine);
MC_C_API int warmupEfaSegment(transfer_engine_t engine, const char *segment_name);

/* ---- memory ---- */

/** @return 0, also for a range that is registered already; negative */
MC_C_API int registerLocalMemory(transfer_engine_t engine, void *addr, size_t length,
				 const char *location, int remote_accessible);
MC_C_API int unregisterLocalMemory(transfer_engine_t engine, void *addr);
/** All or none. */
MC_C_API int registerLocalMemoryBatch(transfer_engine_t engine, buffer_entry_t *buffer_list,
				      size_t buffer_len, const char *location);
MC_C_API int unregisterLocalMemoryBatch(transfer_engine_t engine, void **addr_list,
					size_t addr_len);

/* ---- transfers ---- */

/** Room for batch_size transfers (at most 65536), filled by one or more submits. @return
 * INVALID_BATCH on failure */
MC_C_API batch_id_t allocateBatchID(transfer_engine_t engine, size_t batch_size);
/**
 * Start transfers; they are numbered on from the batch's last.
 * @return 0; > 0: none of them was started (1 argument, 2 more than the batch has room for, …)
 */
MC_C_API int submitTransfer(transfer_engine_t engine, batch_id_t batch_id,
			    struct transfer_request *entries, size_t count);
/**
 * submitTransfer() and a message to the segment of entries[0] once *all* transfers of the batch so
 * far are visible. Waits for those of earlier submits first.
 */
MC_C_API int submitTransferWithNotify(transfer_engine_t engine, batch_id_t batch_id,
				      struct transfer_request *entries, size_t count,
				      notify_msg_t notify_msg);
/** Never blocks. @return 0 with *status set; > 0 */
MC_C_API int getTransferStatus(transfer_engine_t engine, batch_id_t batch_id, size_t task_id,
			       struct transfer_status *status);
/**
 * @return 0; 4 while transfers are under way: the batch goes by itself once they have ended, asking
 * again is allowed; 1 for an unknown batch
 */
MC_C_API int freeBatchID(transfer_engine_t engine, batch_id_t batch_id);

/* ---- messages ---- */

/** Take all that have come: an array to end with freeNotifsMsgBuf(), NULL and *size 0 for none. */
MC_C_API notify_msg_t *getNotifsFromEngine(transfer_engine_t engine, int *size);
MC_C_API int freeNotifsMsgBuf(notify_msg_t *msg, int size);
/** Send one now. @return 0; negative */
MC_C_API int genNotifyInEngine(transfer_engine_t engine, uint64_t target_id,
			       notify_msg_t notify_msg);

/* ---- observation ---- */

/** @param count in: room in arr, out: how many there are */
MC_C_API int getNicLoadStats(transfer_engine_t engine, nic_load_stat_t *arr, size_t *count);
/** The machine's devices and topology as text, or JSON. @return 0; -1 when buf_len is too small */
MC_C_API int showLinks(transfer_engine_t engine, char *buf, size_t buf_len, int json);

#ifdef __cplusplus
}
#endif

#endif
