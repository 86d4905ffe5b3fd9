/*
 * control.h: method numbers of control.proto, and its packed records. Pure.
 *
 * Records are little-endian, without gaps, in the order of the struct's members:
 *   mc_ctl_range   16 bytes: u64 addr, u64 len
 *   mc_ctl_region  80 bytes: u64 addr, u64 len, u32 id, u32 gen, u32 rights, u32 kind, u32 arena,
 *                  u32 0, u64 arena_off, 32 bytes key
 *   mc_ctl_port    64 bytes: 16 bytes gid, u32 mbps, u16 lid, u8 mtu, u8 flags, i16 numa, u16 0,
 *                  36 bytes name, filled up with zeros
 */
#ifndef MC_WIRE_CONTROL_H
#define MC_WIRE_CONTROL_H

#include <stddef.h>
#include <stdint.h>

#include "base/codec.h"
#include "base/err.h"

#define MC_CTL_VERSION 1
#define MC_CTL_RECORDS_MAX 65536 /* in one message */
#define MC_CTL_RANGE_LEN 16
#define MC_CTL_REGION_LEN 80
#define MC_CTL_KEY_LEN 32
#define MC_CTL_NONCE_LEN 16
#define MC_CTL_PORT_LEN 64
#define MC_CTL_PORT_NAME_LEN 36

enum mc_ctl_method {
	MC_CTL_HELLO = 1,
	MC_CTL_RESOLVE,
	MC_CTL_RETIRE,
	MC_CTL_NOTIFY,
	MC_CTL_PROBE,
	MC_CTL_CONNECT,
	MC_CTL_STAGE,
	MC_CTL_UNSTAGE,
	MC_CTL_METHOD_COUNT,
};

/** What becomes of a staged piece. */
enum mc_ctl_unstage {
	MC_CTL_UNSTAGE_DROP,
	MC_CTL_UNSTAGE_COMMIT, /* a write: into the region */
	MC_CTL_UNSTAGE_SPOIL,  /* as drop, and a write of ours may still land in the buffer */
	MC_CTL_UNSTAGE_COUNT,
};

struct mc_ctl_range {
	uint64_t addr, len;
};

/** A registered region, as xport.h's mc_remote_region. gen 0 in a reply: no such region. */
struct mc_ctl_region {
	uint64_t addr, len;
	uint32_t id, gen;
	uint32_t rights, kind;
	uint32_t arena;
	uint64_t arena_off;
	uint8_t key[MC_CTL_KEY_LEN];
};

enum mc_ctl_port_flag {
	MC_CTL_PORT_ETHERNET = 1, /* RoCE: the gid is its address, else the lid, too */
	MC_CTL_PORT_DOWN = 2,	  /* for now */
};

/** An RDMA port of the sender. */
struct mc_ctl_port {
	uint8_t gid[16];
	uint32_t mbps;
	uint16_t lid;
	uint8_t mtu;   /* enum ibv_mtu */
	uint8_t flags; /* enum mc_ctl_port_flag */
	int16_t numa;  /* -1: unknown */
	char name[MC_CTL_PORT_NAME_LEN + 1];
};

/** Number of records in a field. @return count; -MC_E_PROTO (no whole number of records);
 * -MC_E_TOO_BIG (more than MC_CTL_RECORDS_MAX) */
MC_MUST_CHECK int mc_ctl_count(size_t len_bytes, size_t record_len);

/* One record; the cursors turn bad at the end of the field. */
void mc_ctl_range_encode(struct mc_wr *w, const struct mc_ctl_range *range);
void mc_ctl_range_decode(struct mc_rd *r, struct mc_ctl_range *ret_range);
void mc_ctl_region_encode(struct mc_wr *w, const struct mc_ctl_region *region);
void mc_ctl_region_decode(struct mc_rd *r, struct mc_ctl_region *ret_region);
void mc_ctl_port_encode(struct mc_wr *w, const struct mc_ctl_port *port);
void mc_ctl_port_decode(struct mc_rd *r, struct mc_ctl_port *ret_port);

#endif
