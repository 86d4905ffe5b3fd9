/*
 * cause.c: what a failed completion, or verb, condemns. Pure: two tables.
 *
 * What the peer or the path did condemns the rail: another one may work. A key that the target does
 * not know condemns only the operation. What is wrong with the operation's own memory does too, as
 * no other rail would find it right. InfiniBand Architecture Specification 1.4, 10.10.3;
 * ibv_poll_cq(3).
 */
#include <errno.h>

#include "base/mem.h"
#include "xport/rdma/priv.h"

static const uint8_t of_status[] = {
    [IBV_WC_LOC_LEN_ERR] = MC_E_TOO_BIG,
    /* With Soft-RoCE also the first answer of an interface that was set down. */
    [IBV_WC_LOC_QP_OP_ERR] = MC_E_IO,
    [IBV_WC_LOC_EEC_OP_ERR] = MC_E_IO,
    [IBV_WC_LOC_PROT_ERR] = MC_E_PERM,
    /* Ended by the failure of another request, or by us. */
    [IBV_WC_WR_FLUSH_ERR] = MC_E_RESET,
    [IBV_WC_MW_BIND_ERR] = MC_E_IO,
    [IBV_WC_BAD_RESP_ERR] = MC_E_IO,
    [IBV_WC_LOC_ACCESS_ERR] = MC_E_PERM,
    /* Not about keys: a length, a kind of request, a packet that the queue pair cannot take. */
    [IBV_WC_REM_INV_REQ_ERR] = MC_E_IO,
    [IBV_WC_REM_ACCESS_ERR] = MC_E_STALE,
    [IBV_WC_REM_OP_ERR] = MC_E_IO,
    [IBV_WC_RETRY_EXC_ERR] = MC_E_UNREACHABLE,
    [IBV_WC_RNR_RETRY_EXC_ERR] = MC_E_UNREACHABLE,
    [IBV_WC_LOC_RDD_VIOL_ERR] = MC_E_IO,
    [IBV_WC_REM_INV_RD_REQ_ERR] = MC_E_IO,
    [IBV_WC_REM_ABORT_ERR] = MC_E_RESET,
    [IBV_WC_INV_EECN_ERR] = MC_E_IO,
    [IBV_WC_INV_EEC_STATE_ERR] = MC_E_IO,
    [IBV_WC_FATAL_ERR] = MC_E_DEVICE,
    [IBV_WC_RESP_TIMEOUT_ERR] = MC_E_UNREACHABLE,
    [IBV_WC_GENERAL_ERR] = MC_E_IO,
};

int mc_rdma_wc_error(enum ibv_wc_status status)
{
	if (status == IBV_WC_SUCCESS)
		return 0;
	if ((size_t)status >= MC_ARRAY_LEN(of_status) || !of_status[status])
		return -MC_E_IO;
	return -(int)of_status[status];
}

int mc_rdma_errno(int err)
{
	switch (err) {
	case 0:
		return 0;
	case EIO: /* the driver's word for a device that is gone or in error */
	case ENODEV:
	case ENXIO:
		return -MC_E_DEVICE;
	case EINVAL: /* this device or path does not take it; another one may */
		return -MC_E_IO;
	case ETIMEDOUT: /* the peer's hardware address did not resolve */
	case ENODATA:
	case EADDRNOTAVAIL:
		return -MC_E_UNREACHABLE;
	case ENOSPC: /* queue pairs, completion queues, regions */
		return -MC_E_LIMIT;
	default:
		return mc_err_from_errno(err);
	}
}
