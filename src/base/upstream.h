/*
 * upstream.h: from our error codes to the negative numbers of upstream's int APIs.
 *
 * Upstream's Status APIs (submit, status, free of a batch) return the same magnitudes, positive.
 * Shared by the C ABI and the Python face, so that both name an error alike.
 */
#ifndef MC_BASE_UPSTREAM_H
#define MC_BASE_UPSTREAM_H

#include <mooncake/err.h>

enum mc_upstream_code {
	MC_UP_INVALID_ARGUMENT = -1,
	MC_UP_TOO_MANY_REQUESTS = -2,
	MC_UP_NOT_REGISTERED = -3,
	MC_UP_BATCH_BUSY = -4,
	MC_UP_DEVICE = -6,
	MC_UP_DNS = -101,
	MC_UP_SOCKET = -102,
	MC_UP_MALFORMED = -103,
	MC_UP_REJECTED = -104,
	MC_UP_METADATA = -200,
	MC_UP_ENDPOINT = -201,
	MC_UP_CONTEXT = -202,
	MC_UP_MEMORY = -302,
	MC_UP_NOT_IMPLEMENTED = -303,
};

/** rc: 0 or a negative code of ours. @return 0 or a negative enum mc_upstream_code */
static inline int mc_upstream_code(int rc)
{
	switch (-rc) {
	case MC_E_OK:
		return 0;
	case MC_E_INVAL:
	case MC_E_STALE:
	case MC_E_TOO_BIG:
		return MC_UP_INVALID_ARGUMENT;
	case MC_E_AGAIN:
	case MC_E_LIMIT:
		return MC_UP_TOO_MANY_REQUESTS;
	case MC_E_NOENT:
	case MC_E_RANGE:
	case MC_E_PERM:
		return MC_UP_NOT_REGISTERED;
	case MC_E_BUSY:
		return MC_UP_BATCH_BUSY;
	case MC_E_DEVICE:
	case MC_E_UNAVAILABLE:
		return MC_UP_DEVICE;
	case MC_E_DNS:
	case MC_E_ADDR:
		return MC_UP_DNS;
	case MC_E_ADDR_IN_USE:
	case MC_E_RESET:
	case MC_E_IO:
	case MC_E_UNREACHABLE:
	case MC_E_REFUSED:
	case MC_E_LINK_DOWN:
		return MC_UP_SOCKET;
	case MC_E_PROTO:
	case MC_E_CORRUPT:
		return MC_UP_MALFORMED;
	case MC_E_VERSION:
	case MC_E_AUTH:
		return MC_UP_REJECTED;
	case MC_E_METADATA:
		return MC_UP_METADATA;
	case MC_E_PEER_DEAD:
	case MC_E_PEER_RESTARTED:
	case MC_E_STALLED:
	case MC_E_TIMEDOUT:
	case MC_E_UNFENCED:
		return MC_UP_ENDPOINT;
	case MC_E_NOMEM:
		return MC_UP_MEMORY;
	case MC_E_UNSUPPORTED:
		return MC_UP_NOT_IMPLEMENTED;
	default:
		return MC_UP_CONTEXT;
	}
}

#endif
