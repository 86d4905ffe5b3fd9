/*
 * stage.h: the buffers of this process through which its files are read and written, by peers (the
 * calls Stage and Unstage) and by itself. A *piece* is one buffer's worth, named by its user: the
 * incarnation and an id of its own.
 */
#ifndef MC_ENGINE_STAGE_H
#define MC_ENGINE_STAGE_H

#include "engine/priv.h"
#include "wire/control.h"

#define MC_STAGE_BYTES (1u << 20) /* a piece, at most */
#define MC_STAGE_BUFS 16u
#define MC_STAGE_JOBS 6u /* calls of peers under way, of MC_WORKERS_MAX */

#define MC_STAGE_OURS 0 /* owner of our own pieces; no incarnation has this number */

struct mc_stage_want {
	uint64_t owner, id;
	enum mc_op op; /* of the file */
	uint32_t region, gen;
	uint64_t off, len;
};

/** Where a piece is now. */
struct mc_stage_piece {
	uint64_t addr;
	struct mc_region_info buf;
};

int mc_stage_open(struct mc_engine *eng);
/** Nothing is under way from the return on, or will be. NULL engine parts are allowed. */
void mc_stage_stop(struct mc_engine *eng);
void mc_stage_close(struct mc_engine *eng);
/**
 * Take a buffer; for a read, fill it. Blocks; not on a loop.
 * @return 0; -MC_E_AGAIN (no buffer is free, or this piece is not ready yet); -MC_E_STALE (region
 * or id are over); -MC_E_RANGE; -MC_E_PERM; -MC_E_INVAL; -MC_E_CLOSED; errors of the file
 */
int mc_stage_begin(struct mc_engine *eng, const struct mc_stage_want *want,
		   struct mc_stage_piece *ret_piece);
/**
 * Give it back; with COMMIT, after its bytes are in the file. From the return on, but for
 * -MC_E_AGAIN, the piece does nothing to the file any more, now and ever. A peer's COMMIT that is
 * repeated has the answer of the first. Blocks.
 * @return 0; -MC_E_NOENT; -MC_E_AGAIN (another call has it); errors of mc_stage_begin() for COMMIT
 */
int mc_stage_end(struct mc_engine *eng, uint64_t owner, uint64_t id, enum mc_ctl_unstage end);
/** Its owner is lost: its buffers are taken from under whatever still may write to them. Blocks. */
void mc_stage_forget(struct mc_engine *eng, uint64_t owner);
/** Buffers in use. */
unsigned mc_stage_count(struct mc_engine *eng);

struct mc_rpc_req;
struct mc_rpc_msg;
/* Handlers of the calls. */
void mc_stage_serve_begin(struct mc_rpc_req *req, const struct mc_rpc_msg *msg, void *user);
void mc_stage_serve_end(struct mc_rpc_req *req, const struct mc_rpc_msg *msg, void *user);

#endif
