/*
 * err.h: the public error table plus what only the project itself uses.
 */
#ifndef MC_BASE_ERR_H
#define MC_BASE_ERR_H

#include <mooncake/err.h>

/** The row for errno (ENOMEM -> MC_E_NOMEM, ECONNRESET and EPIPE -> MC_E_RESET, …; else MC_E_IO).
 * Keeps errno. */
enum mc_err mc_err_of_errno(int err);

/** The same as a result: always < 0, and compilers and analyzers see that it is. */
static inline int mc_err_from_errno(int err)
{
	int rc = -(int)mc_err_of_errno(err);

	if (rc >= 0)
		__builtin_unreachable(); /* the table has no row for success */
	return rc;
}

/** Replace the text. NULL diag is allowed. Cuts at the end of the buffer. */
void mc_diag_set(struct mc_diag *diag, const char *fmt, ...) MC_PRINTF(2, 3);
/** Put context in front: "<fmt>: <old text>". NULL diag is allowed. */
void mc_diag_wrap(struct mc_diag *diag, const char *fmt, ...) MC_PRINTF(2, 3);

/** A broken invariant of our own code: prints the place to stderr and aborts. Never for input. */
#define mc_assert(cond) ((cond) ? (void)0 : mc_assert_fail(#cond, __FILE__, __LINE__))
_Noreturn void mc_assert_fail(const char *cond, const char *file, int line);

#endif
