/*
 * files.h: ranges of files registered as memory. Each has addresses of its own that nothing else in
 * the process has and nobody can touch: what is keyed by address works as for memory, and an access
 * that forgets what it is meets a fault of its own, not foreign bytes.
 */
#ifndef MC_ENGINE_FILES_H
#define MC_ENGINE_FILES_H

#include "engine/priv.h"

struct mc_file_mem;

/** The engine's device for files, opened at the first need. @return 0; -MC_E_NOMEM */
int mc_files_dev(struct mc_engine *eng, struct mc_xdev **ret_dev);
/** Is anything registered? Relaxed: who registers it knows. */
bool mc_files_any(const struct mc_engine *eng);
/**
 * Keep a range of a registered file alive until mc_files_unpin().
 * @param right  MC_RIGHT_STAGE_READ, MC_RIGHT_STAGE_WRITE, or both for the owner's own use
 * @return 0; -MC_E_STALE; -MC_E_RANGE; -MC_E_PERM (also for what is no file)
 */
int mc_files_pin(struct mc_engine *eng, uint32_t region, uint32_t gen, uint64_t off, uint64_t len,
		 uint32_t right, struct mc_file_mem **ret_file);
void mc_files_unpin(struct mc_engine *eng, uint32_t region);
/** Where in the file the range's offset lies. */
uint64_t mc_files_at(const struct mc_file_mem *file, uint64_t off);
/** Between memory and a pinned range. Blocks. @return 0; -MC_E_RANGE (a read past the file's end);
 * -MC_E_PERM; -MC_E_NOSPACE; -MC_E_IO; … */
int mc_files_move(struct mc_engine *eng, struct mc_file_mem *file, enum mc_op op, uint64_t off,
		  void *mem, uint64_t len);
/** The registration has ended: forget the file that lay there, if one did. */
void mc_files_drop(struct mc_engine *eng, uint64_t addr, uint64_t len);

#endif
