/*
 * dl.h: libraries that are used when they are there. Loaded on first use and never unloaded; a
 * missing one is an error that says why, not a failure to start.
 */
#ifndef MC_IO_DL_H
#define MC_IO_DL_H

#include <stdbool.h>
#include <stddef.h>

#include "base/err.h"

/** One function of a library and its place in the caller's table of pointers. */
struct mc_dl_sym {
	const char *name;
	size_t offset;
	bool is_optional; /* older libraries lack it: the pointer stays NULL */
};
#define MC_DL_SYM(table, field, symbol)                                                            \
	{                                                                                          \
		.name = (symbol), .offset = offsetof(table, field)                                 \
	}
#define MC_DL_SYM_OPTIONAL(table, field, symbol)                                                   \
	{                                                                                          \
		.name = (symbol), .offset = offsetof(table, field), .is_optional = true            \
	}

/**
 * Load the first of `sonames` that there is and fill in the table.
 *
 * @param sonames    ends with NULL; "libcurl.so.4"
 * @param table      receives a function pointer at each offset; on failure some may be set
 * @param ret_which  index of the soname that was loaded; may be NULL
 * @return 0; -MC_E_UNAVAILABLE, the diag says which library or symbol is missing and why. Any
 * thread; the caller sees to it that it runs once.
 */
MC_MUST_CHECK int mc_dl_load(const char *const *sonames, const struct mc_dl_sym *syms, size_t nsyms,
			     void *table, size_t *ret_which, struct mc_diag *diag);

#endif
