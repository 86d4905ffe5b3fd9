/*
 * local.c: the process's own slots: pinned, copied and checked in one pass, without the engine.
 */
#include "client/priv.h"
#include "owner/owner.h"

/* One range. @return 0; 1: some of it is no whole chunk, and was copied only; -MC_E_CORRUPT */
static int range_copy(const struct mc_cli_read *r, const struct mc_store_range *g,
		      const uint8_t *payload)
{
	uint64_t at = g->offset, stop = g->offset + g->len;
	bool is_partial = false;

	while (at < stop) {
		uint32_t chunk = (uint32_t)(at / MC_SLOT_CHUNK);
		uint64_t begin = (uint64_t)chunk * MC_SLOT_CHUNK;
		uint32_t len = mc_slot_chunk_len(&r->info, chunk);
		uint8_t *to = (uint8_t *)g->addr + (at - g->offset);
		size_t part = (size_t)(mc_min(begin + len, stop) - at);

		if (part == len) {
			if (mc_slot_chunk_copy(&r->info, chunk, to, payload + at, len) !=
			    mc_slot_table(r->head, &r->info, chunk))
				return -MC_E_CORRUPT;
		} else {
			memcpy(to, payload + at, part);
			is_partial = true;
		}
		at += part;
	}
	return is_partial ? 1 : 0;
}

int mc_cli_local_read(struct mc_cli_op *op, struct mc_cli_read *r)
{
	struct mc_owner_view view;
	bool is_partial = false;
	int rc = mc_owner_pin(op->st->owner, r->look.place.replicas[r->replica].addr,
			      r->look.place.gen, &view);

	if (rc < 0)
		return rc;
	r->head = view.image;
	r->info = view.info;
	if (r->info.len != r->look.place.len || r->info.key_len != r->look.key.len ||
	    memcmp(r->info.key, r->look.key.bytes, r->info.key_len) != 0)
		rc = -MC_E_NOENT;
	for (uint32_t i = 0; rc >= 0 && i < r->nranges; i++) {
		rc = range_copy(r, &r->ranges[i], view.image + r->info.payload_off);
		is_partial |= rc == 1;
	}
	/* What was cut at the end of a part lies in touching parts now. */
	if (rc >= 0 && is_partial)
		rc = mc_cli_read_check(r);
	mc_owner_unpin(op->st->owner, &view);
	r->head = NULL;
	r->info.key = r->look.key.bytes;
	return rc < 0 ? rc : 0;
}
