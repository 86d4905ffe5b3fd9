/*
 * args.h: command lines from an option table. "--name value", "--name=value", one dash or two, and
 * for booleans "--name" and "--noname", as upstream's tools take them. The table is base/opt.h's; a
 * wrong value is told with what is accepted.
 */
#ifndef MC_CLI_ARGS_H
#define MC_CLI_ARGS_H

#include "base/opt.h"

/** An option of upstream's that is not in the table: nothing here needs it, or it is refused. */
struct mc_args_other {
	const char *name;
	bool is_bool;
	/* Why not, and what to do; refused unless the value says no, 0 or nothing. NULL: taken
	 * without effect, which is logged. */
	const char *refusal;
};

/**
 * Fill conf with the table's defaults, then the arguments.
 * @param others  ends with a NULL name; NULL: none
 * @return 0; 1 when --help was asked for; -MC_E_INVAL with a diag that names the argument
 */
int mc_args_parse(const struct mc_opt *table, size_t rows, const struct mc_args_other *others,
		  int argc, char **argv, void *conf, struct mc_diag *diag);
/**
 * As mc_args_parse(), with the keys of a file (base/conf_text.h) between defaults and arguments:
 * the option named file_opt, a text, says which; none without it.
 * @return also codes of mc_conf_text_parse(); the diag names file and line
 */
int mc_args_parse_file(const struct mc_opt *table, size_t rows, const struct mc_args_other *others,
		       const char *file_opt, int argc, char **argv, void *conf,
		       struct mc_diag *diag);
/** Print all options with their defaults and ranges to stdout. */
void mc_args_help(const struct mc_opt *table, size_t rows, const char *usage);

#endif
