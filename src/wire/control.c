/*
 * control.c: the packed records.
 */
#include "wire/control.h"

int mc_ctl_count(size_t len_bytes, size_t record_len)
{
	if (len_bytes % record_len != 0)
		return -MC_E_PROTO;
	if (len_bytes / record_len > MC_CTL_RECORDS_MAX)
		return -MC_E_TOO_BIG;
	return (int)(len_bytes / record_len);
}

void mc_ctl_range_encode(struct mc_wr *w, const struct mc_ctl_range *range)
{
	mc_wr_u64(w, range->addr);
	mc_wr_u64(w, range->len);
}

void mc_ctl_range_decode(struct mc_rd *r, struct mc_ctl_range *ret_range)
{
	ret_range->addr = mc_rd_u64(r);
	ret_range->len = mc_rd_u64(r);
}

void mc_ctl_region_encode(struct mc_wr *w, const struct mc_ctl_region *region)
{
	mc_wr_u64(w, region->addr);
	mc_wr_u64(w, region->len);
	mc_wr_u32(w, region->id);
	mc_wr_u32(w, region->gen);
	mc_wr_u32(w, region->rights);
	mc_wr_u32(w, region->kind);
	mc_wr_u32(w, region->arena);
	mc_wr_u32(w, 0);
	mc_wr_u64(w, region->arena_off);
	mc_wr_bytes(w, region->key, sizeof(region->key));
}

void mc_ctl_region_decode(struct mc_rd *r, struct mc_ctl_region *ret_region)
{
	const uint8_t *key;

	ret_region->addr = mc_rd_u64(r);
	ret_region->len = mc_rd_u64(r);
	ret_region->id = mc_rd_u32(r);
	ret_region->gen = mc_rd_u32(r);
	ret_region->rights = mc_rd_u32(r);
	ret_region->kind = mc_rd_u32(r);
	ret_region->arena = mc_rd_u32(r);
	(void)mc_rd_u32(r); /* for later: old receivers ignore it */
	ret_region->arena_off = mc_rd_u64(r);
	key = mc_rd_bytes(r, sizeof(ret_region->key));
	if (key)
		memcpy(ret_region->key, key, sizeof(ret_region->key));
	else
		memset(ret_region->key, 0, sizeof(ret_region->key));
}

void mc_ctl_port_encode(struct mc_wr *w, const struct mc_ctl_port *port)
{
	mc_wr_bytes(w, port->gid, sizeof(port->gid));
	mc_wr_u32(w, port->mbps);
	mc_wr_u16(w, port->lid);
	mc_wr_u8(w, port->mtu);
	mc_wr_u8(w, port->flags);
	mc_wr_u16(w, (uint16_t)port->numa);
	mc_wr_u16(w, 0);
	mc_wr_bytes(w, port->name, MC_CTL_PORT_NAME_LEN);
}

void mc_ctl_port_decode(struct mc_rd *r, struct mc_ctl_port *ret_port)
{
	const uint8_t *gid, *name;

	*ret_port = (struct mc_ctl_port){0};
	gid = mc_rd_bytes(r, sizeof(ret_port->gid));
	if (gid)
		memcpy(ret_port->gid, gid, sizeof(ret_port->gid));
	ret_port->mbps = mc_rd_u32(r);
	ret_port->lid = mc_rd_u16(r);
	ret_port->mtu = mc_rd_u8(r);
	ret_port->flags = mc_rd_u8(r);
	ret_port->numa = (int16_t)mc_rd_u16(r);
	(void)mc_rd_u16(r); /* for later: old receivers ignore it */
	name = mc_rd_bytes(r, MC_CTL_PORT_NAME_LEN);
	if (name)
		memcpy(ret_port->name, name, MC_CTL_PORT_NAME_LEN);
}
