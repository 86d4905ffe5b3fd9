/*
 * err.h: the one table of error codes, with the scope each one condemns. Part of the public ABI.
 *
 * Functions return 0 or a count, else -enum mc_err. The scope says how much a caller must rebuild:
 * only the operation, the rail it used, the local device, or everything that leads to the peer.
 * Diagnostics (struct mc_diag) carry the human context on cold paths; hot paths return the bare
 * code.
 */
#ifndef MOONCAKE_ERR_H
#define MOONCAKE_ERR_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define MC_MUST_CHECK __attribute__((warn_unused_result))
#define MC_PRINTF(fmt, args) __attribute__((format(printf, fmt, args)))
#define MC_API __attribute__((visibility("default")))

enum mc_err_scope {
	MC_SCOPE_OP,	 /* only this operation is wrong: arguments, rights, cancel, deadline */
	MC_SCOPE_RAIL,	 /* the path failed; another rail may work */
	MC_SCOPE_DEVICE, /* the local device failed: every rail on it is gone */
	MC_SCOPE_PEER,	 /* the peer is gone or does not speak with us */
	MC_SCOPE_LOCAL,	 /* this process: memory, limits, fork */
	MC_SCOPE_COUNT,
};

/* X(name, number, scope, text). Numbers are part of the ABI: append only. */
#define MC_ERR_TABLE(X)                                                                            \
	X(OK, 0, OP, "success")                                                                    \
	X(INVAL, 1, OP, "invalid argument")                                                        \
	X(NOMEM, 2, LOCAL, "out of memory")                                                        \
	X(AGAIN, 3, OP, "try again: full for now")                                                 \
	X(TIMEDOUT, 4, OP, "deadline passed")                                                      \
	X(CANCELED, 5, OP, "canceled")                                                             \
	X(NOENT, 6, OP, "not found")                                                               \
	X(EXIST, 7, OP, "already there")                                                           \
	X(RANGE, 8, OP, "address range is not registered at the peer")                             \
	X(PERM, 9, OP, "access right is missing")                                                  \
	X(STALE, 10, OP, "stale id: the object was freed or registered anew")                      \
	X(UNFENCED, 11, OP, "unfenced: it may still land")                                         \
	X(TOO_BIG, 12, OP, "larger than the limit")                                                \
	X(CLOSED, 13, OP, "object is closed")                                                      \
	X(FORKED, 14, LOCAL, "object belongs to the parent process (fork)")                        \
	X(UNSUPPORTED, 15, OP, "not supported")                                                    \
	X(UNAVAILABLE, 16, LOCAL, "not available on this machine")                                 \
	X(IO, 17, RAIL, "input/output error")                                                      \
	X(RESET, 18, RAIL, "connection was reset")                                                 \
	X(UNREACHABLE, 19, RAIL, "peer address is unreachable")                                    \
	X(REFUSED, 20, RAIL, "connection was refused")                                             \
	X(LINK_DOWN, 21, RAIL, "link is down")                                                     \
	X(STALLED, 22, RAIL, "no progress on the path")                                            \
	X(DEVICE, 23, DEVICE, "device failed")                                                     \
	X(PEER_DEAD, 24, PEER, "peer died")                                                        \
	X(PEER_RESTARTED, 25, PEER, "peer restarted")                                              \
	X(PROTO, 26, PEER, "peer broke the protocol")                                              \
	X(VERSION, 27, PEER, "peer speaks another version")                                        \
	X(AUTH, 28, PEER, "peer is not authenticated")                                             \
	X(DNS, 29, OP, "host name does not resolve")                                               \
	X(ADDR_IN_USE, 30, LOCAL, "address is in use")                                             \
	X(ADDR, 31, LOCAL, "address is not of this machine")                                       \
	X(LIMIT, 32, LOCAL, "limit of this process or system reached")                             \
	X(CORRUPT, 33, OP, "data is corrupt")                                                      \
	X(NOSPACE, 34, OP, "no space left")                                                        \
	X(METADATA, 35, OP, "metadata service failed")                                             \
	X(BUSY, 36, OP, "still in use")

enum mc_err {
#define MC_ERR_ENUM(name, num, scope, text) MC_E_##name = num,
	MC_ERR_TABLE(MC_ERR_ENUM)
#undef MC_ERR_ENUM
	    MC_E_COUNT
};

/** Text of a code; takes either sign. Never NULL: an unknown code gives "unknown error". Any
 * thread; static memory. */
MC_API const char *mc_err_text(int code);
/** Short name ("TIMEDOUT"), for logs and metric labels. Takes either sign; "UNKNOWN" for an unknown
 * code. */
MC_API const char *mc_err_name(int code);
/** How much of the path the code condemns. Takes either sign; an unknown code is MC_SCOPE_OP. */
MC_API enum mc_err_scope mc_err_scope(int code);
/** Context for a person, filled innermost first, wrapped once per level: "mount x: open y: no such
 * file". Caller owns it. */
struct mc_diag {
	char text[512];
};

#ifdef __cplusplus
}
#endif

#endif
