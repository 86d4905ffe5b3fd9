/*
 * env.c: where the disk is, as upstream's environment variables say it.
 */
#include "base/opt.h"
#include "base/str.h"
#include "ssd/ssd.h"

static const struct mc_opt table[] = {
    MC_OPT_STR(struct mc_ssd_place, path, "MOONCAKE_OFFLOAD_FILE_STORAGE_PATH",
	       "/data/file_storage", "directory of an SSD tier"),
    MC_OPT_SIZE(struct mc_ssd_place, bytes, "MOONCAKE_OFFLOAD_TOTAL_SIZE_LIMIT_BYTES", "0", 0,
		INT64_MAX, "bytes of all its files; 0: nine tenths of what is free"),
};

int mc_ssd_place(const char *path, struct mc_ssd_place *ret, struct mc_diag *diag)
{
	if (mc_opt_load_env(table, MC_ARRAY_LEN(table), ret, diag) > 0)
		return -MC_E_INVAL;
	if (!path[0])
		return 0;
	if (mc_strlcpy(ret->path, sizeof(ret->path), path) < 0) {
		mc_diag_set(diag, "SSD directory: a path of more than %zu bytes",
			    sizeof(ret->path) - 1);
		return -MC_E_INVAL;
	}
	return 0;
}
