/*
 * opt.h: option tables. One row says an option's name (which is its environment variable), type,
 *default, range, help and place in a struct; parsing, range checks, error texts and documentation
 *follow from the rows.
 *
 * Usage: static const struct mc_opt rows[] = {
 *	MC_OPT_INT(struct my_conf, lanes, "MC_TCP_LANES_PER_PEER", "4", 1, 16, "connections to one
 *peer"), …};
 */
#ifndef MC_BASE_OPT_H
#define MC_BASE_OPT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "base/str.h"

enum mc_opt_type {
	MC_OPT_TYPE_INT,    /* int64_t; min … max */
	MC_OPT_TYPE_SIZE,   /* uint64_t bytes, "64kb", "4gb"; min … max */
	MC_OPT_TYPE_BOOL,   /* bool; 1 true yes on, 0 false no off */
	MC_OPT_TYPE_DOUBLE, /* double; dmin … dmax */
	MC_OPT_TYPE_STR,    /* char[]; at least min and at most max bytes, max = room - 1 */
	MC_OPT_TYPE_ENUM,   /* int: place in `choices` (any case), which ends with NULL */
	MC_OPT_TYPE_COUNT,
};

struct mc_opt {
	const char *name;
	enum mc_opt_type type;
	const char *def; /* text, parsed like a value; a wrong one is a bug of the table */
	int64_t min, max;
	double dmin, dmax;
	const char *const *choices;
	const char *help;
	size_t offset;
};

#define MC_OPT_INT(st, field, nm, df, lo, hi, hlp)                                                 \
	{                                                                                          \
		.name = (nm), .type = MC_OPT_TYPE_INT, .def = (df), .min = (lo), .max = (hi),      \
		.help = (hlp), .offset = offsetof(st, field)                                       \
	}
#define MC_OPT_SIZE(st, field, nm, df, lo, hi, hlp)                                                \
	{                                                                                          \
		.name = (nm), .type = MC_OPT_TYPE_SIZE, .def = (df), .min = (lo), .max = (hi),     \
		.help = (hlp), .offset = offsetof(st, field)                                       \
	}
#define MC_OPT_BOOL(st, field, nm, df, hlp)                                                        \
	{                                                                                          \
		.name = (nm), .type = MC_OPT_TYPE_BOOL, .def = (df), .help = (hlp),                \
		.offset = offsetof(st, field)                                                      \
	}
#define MC_OPT_DOUBLE(st, field, nm, df, lo, hi, hlp)                                              \
	{                                                                                          \
		.name = (nm), .type = MC_OPT_TYPE_DOUBLE, .def = (df), .dmin = (lo), .dmax = (hi), \
		.help = (hlp), .offset = offsetof(st, field)                                       \
	}
#define MC_OPT_STR(st, field, nm, df, hlp)                                                         \
	{                                                                                          \
		.name = (nm), .type = MC_OPT_TYPE_STR, .def = (df),                                \
		.max = (int64_t)sizeof(((st *)0)->field) - 1, .help = (hlp),                       \
		.offset = offsetof(st, field)                                                      \
	}
#define MC_OPT_ENUM(st, field, nm, df, names, hlp)                                                 \
	{                                                                                          \
		.name = (nm), .type = MC_OPT_TYPE_ENUM, .def = (df), .choices = (names),           \
		.help = (hlp), .offset = offsetof(st, field)                                       \
	}

/** Fill every field with its default. */
void mc_opt_defaults(const struct mc_opt *table, size_t rows, void *conf);
/**
 * Parse `text` into the option's field.
 * @return 0; -MC_E_INVAL with a diag that names option, value and what is accepted (field
 * untouched)
 */
int mc_opt_set(const struct mc_opt *opt, void *conf, const char *text, struct mc_diag *diag);
/** Row of this name, or NULL. */
const struct mc_opt *mc_opt_find(const struct mc_opt *table, size_t rows, const char *name);
/**
 * Defaults, then the environment. A variable that is empty counts as unset. A wrong value is logged
 * as a warning and its default stays.
 * @param diag  receives the first complaint; may be NULL
 * @return number of wrong values. Not while another thread calls setenv().
 */
int mc_opt_load_env(const struct mc_opt *table, size_t rows, void *conf, struct mc_diag *diag);
/** Append a Markdown table of the rows, for the documentation. @return as mc_str_append() */
int mc_opt_dump(const struct mc_opt *table, size_t rows, struct mc_str *out);

/** Decimal digits only, all of `text`. @return 0; -MC_E_INVAL */
MC_MUST_CHECK int mc_opt_parse_u64(const char *text, uint64_t *ret_value);
/** As above with an optional "-". */
MC_MUST_CHECK int mc_opt_parse_i64(const char *text, int64_t *ret_value);
/**
 * Bytes: digits, then maybe one of b k kb kib m mb mib g gb gib t tb tib in any case, blanks
 * between allowed. All units are powers of 1024.
 * @return 0; -MC_E_INVAL (overflow included)
 */
MC_MUST_CHECK int mc_opt_parse_size(const char *text, uint64_t *ret_bytes);
/** @return 0; -MC_E_INVAL */
MC_MUST_CHECK int mc_opt_parse_bool(const char *text, bool *ret_value);

#endif
