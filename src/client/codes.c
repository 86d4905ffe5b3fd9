/*
 * codes.c: the Store's codes: their names, and which one an error below becomes.
 */
#include "client/priv.h"

const char *mc_store_err_name(int code)
{
	switch (code) {
#define MC_STORE_ERR_NAME(name, num)                                                               \
	case num:                                                                                  \
		return #name;
		MC_STORE_ERR_TABLE(MC_STORE_ERR_NAME)
#undef MC_STORE_ERR_NAME
	default:
		return "UNKNOWN";
	}
}

static int local_code(int rc, int other)
{
	switch (-rc) {
	case MC_E_OK:
		return MC_STORE_OK;
	case MC_E_NOMEM:
	case MC_E_FORKED:
	case MC_E_LIMIT:
		return MC_STORE_INTERNAL_ERROR;
	case MC_E_UNSUPPORTED:
		return MC_STORE_NOT_SUPPORTED;
	default:
		return other;
	}
}

int mc_cli_code_rpc(int rc)
{
	return local_code(rc, rc == -MC_E_TIMEDOUT ? MC_STORE_RPC_TIMEOUT : MC_STORE_RPC_FAIL);
}

int mc_cli_code_move(int rc)
{
	return local_code(rc, MC_STORE_TRANSFER_FAIL);
}
