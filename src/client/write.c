/*
 * write.c: what is known of a write before an owner is asked: key, TLV, generation, places.
 */
#include "client/priv.h"

static void tlv_add(struct mc_wr *w, uint8_t type, const void *val, uint16_t len)
{
	mc_wr_u8(w, type);
	mc_wr_u8(w, 0);
	mc_wr_u16(w, len);
	mc_wr_bytes(w, val, len);
}

static void tlv_u32(struct mc_wr *w, uint8_t type, uint32_t val)
{
	uint8_t bytes[sizeof(val)];
	struct mc_wr v = mc_wr_make(bytes, sizeof(bytes));

	mc_wr_u32(&v, val);
	tlv_add(w, type, bytes, sizeof(bytes));
}

static void tlv_pins(struct mc_wr *w, const struct mc_store_conf *conf)
{
	uint8_t bytes[16];
	struct mc_wr v = mc_wr_make(bytes, sizeof(bytes));

	mc_wr_u8(&v, conf->is_hard_pinned);
	mc_wr_u8(&v, conf->soft_pin == MC_STORE_SOFT_PIN_ENABLE);
	mc_wr_u16(&v, 0);
	mc_wr_u32(&v, 0);
	mc_wr_u64(&v, conf->soft_pin_ttl_ms);
	tlv_add(w, MC_SLOT_TLV_PINS, bytes, sizeof(bytes));
}

/* @return 0; MC_STORE_INVALID_PARAMS (a group's name is too long) */
static int tlv_make(const struct mc_store_conf *conf, uint32_t index, uint8_t *buf,
		    uint16_t *ret_len)
{
	struct mc_wr w = mc_wr_make(buf, MC_SLOT_TLV_MAX);
	const char *group = conf->groups ? conf->groups[index] : NULL;

	if (group && *group) {
		size_t len = strlen(group);

		if (len > MC_SLOT_TLV_MAX)
			return MC_STORE_INVALID_PARAMS;
		tlv_add(&w, MC_SLOT_TLV_GROUP, group, (uint16_t)len);
	}
	if (conf->is_hard_pinned || conf->soft_pin == MC_STORE_SOFT_PIN_ENABLE)
		tlv_pins(&w, conf);
	if (conf->type)
		tlv_u32(&w, MC_SLOT_TLV_TYPE, conf->type);
	if (conf->replicas > 1)
		tlv_u32(&w, MC_SLOT_TLV_WANTED, conf->replicas);
	if (w.is_bad)
		return MC_STORE_INVALID_PARAMS;
	*ret_len = (uint16_t)mc_wr_len(&w);
	return 0;
}

int mc_cli_write_make(struct mc_cli_op *op, const struct mc_store_key *key, uint64_t len,
		      const struct mc_store_conf *conf, uint32_t index, struct mc_cli_write *ret)
{
	uint32_t wanted = conf && conf->replicas ? conf->replicas : 1;
	uint8_t tlv[MC_SLOT_TLV_MAX], *copy;
	int rc;

	*ret = (struct mc_cli_write){.len = len};
	rc = mc_cli_key_make(op, key, &ret->key);
	if (rc == 0 && (len == 0 || len > MC_SLOT_PAYLOAD_MAX))
		rc = MC_STORE_INVALID_PARAMS;
	if (rc == 0 && conf)
		rc = tlv_make(conf, index, tlv, &ret->tlv_len);
	if (rc < 0)
		return rc;
	if (ret->tlv_len > 0) {
		copy = mc_cli_alloc(op, 1, ret->tlv_len);
		if (!copy)
			return MC_STORE_INTERNAL_ERROR;
		memcpy(copy, tlv, ret->tlv_len);
		ret->tlv = copy;
	}
	ret->wanted = (uint8_t)mc_min(wanted, (uint32_t)MC_ST_REPLICAS_MAX);
	ret->info = (struct mc_slot_info){.key_hash = ret->key.hash,
					  .len = len,
					  .key = ret->key.bytes,
					  .tlv = ret->tlv,
					  .key_len = ret->key.len,
					  .tlv_len = ret->tlv_len};
	return mc_slot_layout(&ret->info) < 0 ? MC_STORE_INVALID_PARAMS : 0;
}

int mc_cli_write_parts(struct mc_cli_op *op, const struct mc_store_item *item,
		       struct mc_cli_write *w)
{
	struct mc_store_range *ranges = mc_cli_alloc(op, item->nparts, sizeof(*ranges));
	uint64_t at = 0;

	if (!ranges)
		return MC_STORE_INTERNAL_ERROR;
	for (uint32_t i = 0; i < item->nparts; i++) {
		if (item->parts[i].len == 0)
			continue;
		ranges[w->nranges++] =
		    (struct mc_store_range){at, item->parts[i].addr, item->parts[i].len};
		at += item->parts[i].len;
	}
	w->ranges = ranges;
	return 0;
}

int mc_cli_write_gens(struct mc_cli_op *op, struct mc_cli_write *writes, size_t n)
{
	uint64_t *gens = mc_cli_alloc(op, n, sizeof(*gens));
	uint32_t count = 0, next = 0;
	int rc;

	if (!gens)
		return MC_STORE_INTERNAL_ERROR;
	for (size_t i = 0; i < n; i++)
		count += writes[i].status == 0;
	rc = mc_cli_gens(op, count, false, gens);
	if (rc < 0)
		return mc_cli_code_rpc(rc);
	for (size_t i = 0; i < n; i++)
		if (writes[i].status == 0)
			writes[i].gen = writes[i].info.gen = gens[next++];
	return 0;
}

unsigned mc_cli_write_count(const struct mc_cli_write *w, enum mc_cli_target_state state)
{
	unsigned n = 0;

	for (unsigned t = 0; t < w->ntargets; t++)
		n += w->targets[t].state == state;
	return n;
}
