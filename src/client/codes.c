/*
 * codes.c: which of the Store's codes an error below becomes.
 */
#include "client/priv.h"

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
